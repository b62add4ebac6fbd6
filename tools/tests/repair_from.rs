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
use ringwal_replication::{Ack, LeadError, Node};

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
        self.command(cluster, more).output().unwrap()
    }

    fn command(&self, cluster: &str, more: &[&str]) -> Command {
        let config = self.root.join("node-2.toml");
        fs::write(&config, self.config(cluster, 2)).unwrap();
        let mut command = ringwal(&["repair", path(&self.data(2)), "--from", &self.addresses[0]]);
        command.args(["--config", path(&config)]).args(more);
        command
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

/// Node 1, which leads, and the directory of node 2, which has followed and is damaged.
fn damaged() -> (Pair, Node) {
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
    (pair, leader)
}

#[track_caller]
fn assert_whole(data: &Path) {
    let verified = ringwal(&["verify", path(data)]).output().unwrap();
    assert_says(&verified, 0, &["fine: every byte"]);
    let engine = Engine::options().read_only(true).open(data).unwrap();
    let records: Vec<_> = engine.stream(STREAM).read(..).unwrap().map(Result::unwrap).collect();
    assert_eq!(records.len() as u64, RECORDS);
    assert!(records.iter().all(|record| record.payload() == [record.offset() as u8; 300]));
    engine.close().unwrap();
}

#[test]
fn a_damaged_directory_is_mended_from_a_running_node() {
    let (pair, leader) = damaged();
    let data = pair.data(2);
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
    assert_whole(&data);
    assert!(!data.join("repairing").exists());
    stop(leader);
}

/// `kill -9` at any moment, and again, and then to the end.
#[test]
fn a_repair_that_is_killed_goes_on_when_it_is_run_again() {
    let (pair, leader) = damaged();
    let (data, kept) = (pair.data(2), pair.root.join("kept"));
    copy(&data, &kept);
    let began = Instant::now();
    assert_says(&pair.repair(CLUSTER, &[]), 0, &["fetched from node 1"]);
    let whole = began.elapsed();
    let (mut killed, mut left_marked) = (0, 0);
    // The golden ratio spreads the moments evenly over the time that it takes.
    let moments = (1..=18u32).map(|n| whole.mul_f64((f64::from(n) * 0.618_034).fract()));
    for (number, moment) in moments.enumerate() {
        if number % 3 == 0 {
            fs::remove_dir_all(&data).unwrap();
            copy(&kept, &data);
        }
        let mut child = pair.command(CLUSTER, &[]).stdout(Stdio::null()).spawn().unwrap();
        std::thread::sleep(moment);
        child.kill().unwrap();
        killed += u32::from(!child.wait().unwrap().success());
        left_marked += u32::from(data.join("repairing").exists());
        if number % 3 == 2 {
            let ended = pair.repair(CLUSTER, &[]);
            // Killed while it ended the journal, it no longer knows that nothing else was there.
            let is_marked = data.join("repairing").exists();
            let says = if is_marked { "must follow a leader" } else { "fine: every byte" };
            assert_says(&ended, 0, &[says]);
            assert_whole(&data);
        }
    }
    println!(
        "{killed} of 18 were killed, {left_marked} of them in the middle; one takes {whole:?}"
    );
    assert!(killed >= 6, "only {killed} were killed before their end");
    // What it promised is there again, and it goes on.
    let follower = pair.start(2);
    let leadership = leader.lead(2).unwrap();
    leadership.append(STREAM, b"more", Ack::Quorum).unwrap().wait().unwrap();
    wait_until_all_is_back(&follower);
    stop(follower);
    stop(leader);
}

fn wait_until_all_is_back(node: &Node) {
    let limit = Instant::now() + Duration::from_secs(20);
    while node.stats().repairing.is_some() {
        assert!(Instant::now() < limit, "{:?}", node.stats().repairing);
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_node_whose_records_are_given_up_follows_before_it_leads() {
    let (pair, leader) = damaged();
    let data = pair.data(2);
    let verified = ringwal(&["verify", path(&data)]).output().unwrap();
    let text =
        String::from_utf8(verified.stdout).unwrap() + &String::from_utf8_lossy(&verified.stderr);
    let place = text.split("--accept-data-loss-from ").nth(1).expect("a place");
    let place = place.split(|c: char| !c.is_ascii_digit() && c != ':').next().unwrap();
    let give_up = ["repair", path(&data), "--accept-data-loss-from", place];
    let dry = ringwal(&give_up).arg("--dry-run").output().unwrap();
    assert_says(&dry, 4, &["would lose"]);
    assert!(!data.join("repairing").exists());
    assert_says(&ringwal(&give_up).output().unwrap(), 0, &["lost", "must follow a leader"]);
    assert!(data.join("repairing").exists());
    stop(leader);
    let alone = pair.start(2);
    assert!(alone.engine().stream(STREAM).end() < RECORDS);
    let refused = alone.lead(7).unwrap_err();
    assert!(matches!(refused, LeadError::Repairing { .. }), "{refused}");
    let leader = pair.start(1);
    let leadership = leader.lead(8).unwrap();
    leadership.append(STREAM, b"more", Ack::Quorum).unwrap().wait().unwrap();
    wait_until_all_is_back(&alone);
    stop(leader);
    alone.lead(9).unwrap();
    assert_eq!(alone.engine().stream(STREAM).end(), RECORDS + 1);
    stop(alone);
}

/// An engine that nobody replicates has nothing to follow.
#[test]
fn a_directory_that_is_no_nodes_is_not_marked() {
    let keep = tempfile::tempdir().unwrap();
    let data = keep.path().join("data");
    let engine = Engine::options().shards(1).segment_bytes(256 << 10).open(&data).unwrap();
    for number in 0..RECORDS {
        drop(engine.stream(STREAM).append([number as u8; 300]).unwrap());
    }
    engine.close().unwrap();
    let inspection = inspect(&data).unwrap();
    let files = inspection.shards[0].files.iter().filter(|file| file.records > 0);
    let oldest = files.min_by_key(|file| file.generation).unwrap();
    let file = OpenOptions::new().write(true).open(data.join("shard-00").join(&oldest.name));
    file.unwrap().write_all_at(&[7; 32 << 10], 8192 + (32 << 10)).unwrap();
    let place = ringwal_engine::offline::verify(&data).unwrap().cuts[0].to_string();
    let output = ringwal(&["repair", path(&data), "--accept-data-loss-from", &place]).output();
    assert_says(output.as_ref().unwrap(), 0, &["lost"]);
    assert!(!data.join("repairing").exists());
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() {
            copy(&from, &to);
        } else {
            fs::copy(&from, &to).unwrap();
        }
    }
}
