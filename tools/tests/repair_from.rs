//! `ringwal repair --from` as a shell sees it: one node runs in this process, the other is damaged.

use std::fs::{self, OpenOptions};
use std::net::TcpListener;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use ringwal_engine::offline::{FileState, inspect};
use ringwal_engine::{Engine, StreamId};
use ringwal_replication::config::Config;
use ringwal_replication::{Ack, Node};

const STREAM: StreamId = StreamId::new(9);
const CLUSTER: &str = "6f1d8c0a52b74a599f0e3f8c2d7b1e44";
const RECORDS: u64 = 4_000;

struct Pair {
    _keep: tempfile::TempDir,
    root: PathBuf,
    addresses: [String; 2],
}

impl Pair {
    fn new() -> Self {
        let listeners = [1, 2].map(|_| TcpListener::bind("127.0.0.1:0").unwrap());
        let addresses = listeners.map(|listener| listener.local_addr().unwrap().to_string());
        let keep = tempfile::tempdir().unwrap();
        Self { root: keep.path().to_owned(), _keep: keep, addresses }
    }

    fn config(&self, cluster: &str, node: usize) -> String {
        let members: String = (1..)
            .zip(&self.addresses)
            .map(|(node, address)| format!("[[members]]\nnode = {node}\naddress = \"{address}\"\n"))
            .collect();
        let listen = &self.addresses[node - 1];
        format!("cluster = \"{cluster}\"\nnode = {node}\nlisten = \"{listen}\"\n{members}")
    }

    fn data(&self, node: usize) -> PathBuf {
        self.root.join(format!("node-{node}"))
    }

    fn start(&self, node: usize) -> Node {
        let options = Engine::options().shards(1).segment_bytes(256 << 10);
        let engine = options.open(self.data(node)).unwrap();
        Node::start(engine, Config::from_toml(&self.config(CLUSTER, node)).unwrap()).unwrap()
    }

    /// Asks node 1 to mend the directory of node 2.
    fn repair(&self, cluster: &str, more: &[&str]) -> Output {
        let config = self.root.join("node-2.toml");
        fs::write(&config, self.config(cluster, 2)).unwrap();
        ringwal(&["repair", path(&self.data(2)), "--from", &self.addresses[0]])
            .args(["--config", path(&config)])
            .args(more)
            .output()
            .unwrap()
    }
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn ringwal(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringwal"));
    command.args(arguments).stdin(Stdio::null());
    command
}

fn stop(node: Node) {
    let engine = node.engine().clone();
    node.close();
    engine.close().unwrap();
}

#[track_caller]
fn assert_says(output: &Output, exit: i32, parts: &[&str]) {
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(exit), "{text}");
    for part in parts {
        assert!(text.contains(part), "{part:?} in {text}");
    }
}

#[test]
fn a_damaged_directory_is_mended_from_a_running_node() {
    let pair = Pair::new();
    let [leader, follower] = [1, 2].map(|node| pair.start(node));
    let leadership = leader.lead(1).unwrap();
    for number in 0..RECORDS {
        let pending = leadership.append(STREAM, [number as u8; 300], Ack::Local).unwrap();
        if number % 100 == 99 {
            pending.wait().unwrap();
        }
    }
    let limit = Instant::now() + Duration::from_secs(20);
    assert!(follower.wait_durable(STREAM, RECORDS - 1, limit).unwrap());
    stop(follower);
    let data = pair.data(2);
    let inspection = inspect(&data).unwrap();
    let files = inspection.shards[0].files.iter();
    let sealed = files.filter(|file| file.state == FileState::Sealed && file.records > 0);
    let oldest = sealed.min_by_key(|file| file.generation).unwrap();
    let file = OpenOptions::new().write(true).open(data.join("shard-00").join(&oldest.name));
    file.unwrap().write_all_at(&[7; 32 << 10], 8192 + (32 << 10)).unwrap();

    let verify = || ringwal(&["verify", path(&data)]).output().unwrap();
    assert_says(&verify(), 4, &["corrupt", "--from HOST:PORT --config FILE"]);
    let without = ringwal(&["repair", path(&data), "--from", "127.0.0.1:1"]).output().unwrap();
    assert_says(&without, 2, &["--config"]);
    let other = CLUSTER.replace('6', "7");
    assert_says(&pair.repair(&other, &[]), 2, &["refuses (cluster)"]);
    let dry = pair.repair(CLUSTER, &["--dry-run"]);
    assert_says(&dry, 4, &["would fetch from node 1: stream 9", "nothing was changed"]);
    let mended = pair.repair(CLUSTER, &[]);
    assert_says(
        &mended,
        0,
        &["fetched from node 1: stream 9", "copies of every", "fine: every byte"],
    );
    assert_says(&verify(), 0, &["fine: every byte"]);
    assert_says(&pair.repair(CLUSTER, &[]), 0, &["nothing to fetch"]);
    let engine = Engine::options().read_only(true).open(&data).unwrap();
    let records: Vec<_> = engine.stream(STREAM).read(..).unwrap().map(Result::unwrap).collect();
    assert_eq!(records.len() as u64, RECORDS);
    assert!(records.iter().all(|record| record.payload() == [record.offset() as u8; 300]));
    engine.close().unwrap();
    stop(leader);
}
