//! `cluster`, `node` and their clients, as a shell sees them: real processes over loopback that are killed and
//! started again.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(60);
/// What every node of a test is started with beside its files.
const SMALL: [&str; 4] = ["--io", "blocking", "--segment-size", "4MiB"];

fn ringwal(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringwal"));
    command.args(arguments).current_dir(directory).stdin(Stdio::null());
    command.env_remove("RUST_LOG").env_remove("RINGWAL_DISABLE_FAST_PATH");
    command
}

fn run(directory: &Path, arguments: &[&str]) -> Output {
    ringwal(directory, arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[track_caller]
fn assert_error(output: &Output, exit: i32, parts: &[&str]) {
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(exit), "{stderr}{}", text(&output.stdout));
    assert!(stderr.starts_with("error: "), "{stderr}");
    for part in parts {
        assert!(stderr.contains(part), "{part:?} in {stderr}");
    }
}

/// The first of so many ports in a row that are free, below those that the kernel gives away.
fn free_ports(count: u16) -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let offset = std::process::id() as u16 % 40 * 500 + NEXT.fetch_add(10, Ordering::Relaxed);
        let first = 10_000 + offset % 20_000;
        let is_free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
        if (first..first + count).all(is_free) {
            return first;
        }
    }
}

/// A process whose end is the end of its test.
struct Process {
    child: Child,
    out: PathBuf,
}

impl Process {
    fn start(directory: &Path, name: &str, arguments: &[&str]) -> Process {
        let out = directory.join(format!("{name}.out"));
        let (stdout, stderr) = (File::create(&out).unwrap(), out.with_extension("err"));
        let mut command = ringwal(directory, arguments);
        command.stdout(stdout).stderr(File::create(stderr).unwrap());
        Process { child: command.spawn().unwrap(), out }
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.out).unwrap()
    }

    fn wait_for(&self, part: &str) {
        let start = Instant::now();
        while !self.said().contains(part) {
            let errors = fs::read_to_string(self.out.with_extension("err")).unwrap();
            assert!(start.elapsed() < LIMIT, "no {part:?} in {}{errors}", self.said());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn end(mut self, signal: Signal) -> Option<i32> {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
        self.child.wait().unwrap().code()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One cluster at a time: leaders have to be heard in time by the others.
static ONE: Mutex<()> = Mutex::new(());

/// `ringwal cluster` in a folder of its own.
struct Cluster {
    _one: MutexGuard<'static, ()>,
    folder: tempfile::TempDir,
    port: u16,
    process: Option<Process>,
    /// Nodes that were started by hand.
    nodes: BTreeMap<u64, Process>,
}

impl Cluster {
    fn start() -> Cluster {
        let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = tempfile::tempdir().unwrap();
        // One more is for a node that is added.
        let port = free_ports(4);
        let mut cluster = Cluster { _one, folder, port, process: None, nodes: BTreeMap::new() };
        cluster.run_all(&["--port", &port.to_string()]);
        cluster
    }

    fn run_all(&mut self, more: &[&str]) {
        let arguments = [&["cluster", "--json"][..], &SMALL, more].concat();
        let process = Process::start(self.path(), "cluster", &arguments);
        process.wait_for("\"leader\"");
        self.process = Some(process);
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn try_run(&self, arguments: &[&str]) -> Output {
        run(self.path(), arguments)
    }

    /// Runs a client that must succeed.
    #[track_caller]
    fn run(&self, arguments: &[&str]) -> Value {
        let output = self.try_run(&[arguments, &["--json"]].concat());
        assert_eq!(
            output.status.code(),
            Some(0),
            "{arguments:?}: {}{}",
            text(&output.stdout),
            text(&output.stderr)
        );
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Looks at what this node has applied.
    #[track_caller]
    fn run_at(&self, node: u64, arguments: &[&str]) -> Value {
        let file = format!("only-{node}.toml");
        let all = fs::read_to_string(self.path().join("cluster.toml")).unwrap();
        let is_other = |line: &&str| {
            line.contains("{ node =") && !line.contains(&format!("{{ node = {node},"))
        };
        let only: String =
            all.lines().filter(|line| !is_other(line)).map(|line| format!("{line}\n")).collect();
        fs::write(self.path().join(&file), only).unwrap();
        self.run(&[arguments, &["--config", &file]].concat())
    }

    /// Waits until all of these answer alike: the same leader, epoch and applied end.
    fn wait_until_equal(&self, nodes: &[u64]) -> Value {
        let start = Instant::now();
        loop {
            let output = self.try_run(&["status", "--json"]);
            let status: Value = serde_json::from_slice(&output.stdout).unwrap();
            let of = |node: &u64| {
                let all = status["nodes"].as_array().unwrap().iter();
                all.clone().find(|said| said["node"] == *node).cloned().unwrap_or_default()
            };
            let part = |node: &u64| {
                let said = of(node);
                ["leader", "epoch", "applied", "committed", "topics", "brokers"]
                    .map(|field| said[field].clone())
            };
            let first = part(&nodes[0]);
            let is_led = first[0].is_u64() && first[2] == first[3];
            if is_led && nodes.iter().all(|node| part(node) == first) {
                return of(&nodes[0]);
            }
            assert!(start.elapsed() < LIMIT, "{status:#}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn leader(&self) -> u64 {
        self.wait_until_led()["leader"].as_u64().unwrap()
    }

    fn wait_until_led(&self) -> Value {
        let start = Instant::now();
        loop {
            let output = self.try_run(&["status", "--json"]);
            let status: Value = serde_json::from_slice(&output.stdout).unwrap();
            let leads = status["nodes"].as_array().unwrap().iter().find(|n| n["role"] == "leader");
            if let Some(leads) = leads {
                return leads.clone();
            }
            assert!(start.elapsed() < LIMIT, "{status:#}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn process_of(&self, node: u64) -> Pid {
        let said = self.process.as_ref().unwrap().said();
        let events = said.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let mut started = events.filter(|e| e["event"] == "started" && e["node"] == node);
        let started = started.next_back();
        Pid::from_raw(started.unwrap()["process"].as_i64().unwrap() as i32).unwrap()
    }

    /// Signals a node, and waits until its process has ended.
    fn end(&mut self, node: u64, signal: Signal) {
        match self.nodes.remove(&node) {
            Some(process) => drop(process.end(signal)),
            None => {
                kill_process(self.process_of(node), signal).unwrap();
                let ended = format!("\"event\":\"ended\",\"node\":{node},");
                let process = self.process.as_ref().unwrap();
                process.wait_for(&ended);
            }
        }
    }

    /// Starts a node by hand.
    fn start_node(&mut self, node: u64, more: &[&str]) {
        let (file, data) = (format!("node-{node}.toml"), format!("node-{node}"));
        let arguments = ["node", "--config", &file, "--directory", &data, "--json"];
        let arguments = [&arguments[..], &SMALL, more].concat();
        let process = Process::start(self.path(), &format!("by-hand-{node}"), &arguments);
        process.wait_for("\"started\"");
        self.nodes.insert(node, process);
    }

    fn stop(mut self) {
        // It ends by itself, with an error, when none of its own nodes runs any more.
        let wanted = if self.nodes.len() < 3 { 0 } else { 1 };
        for (_, node) in std::mem::take(&mut self.nodes) {
            assert_eq!(node.end(Signal::TERM), Some(0));
        }
        assert_eq!(self.process.take().unwrap().end(Signal::TERM), Some(wanted));
    }
}

fn names(topics: &Value) -> Vec<String> {
    let topics = topics["topics"].as_array().unwrap().iter();
    topics.map(|topic| topic["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn topics_are_on_all_nodes_and_survive_the_leader() {
    let mut cluster = Cluster::start();
    cluster.run(&["broker", "register", "1", "one.example:9092"]);

    // One hundred, rapidly.
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let cluster = &cluster;
            scope.spawn(move || {
                for nth in 0..25 {
                    let created = cluster.run(&["topic", "create", &format!("t-{thread}-{nth}")]);
                    assert!(created["done"]["topic_created"]["topic"].is_u64(), "{created}");
                }
            });
        }
    });
    let status = cluster.wait_until_equal(&[1, 2, 3]);
    assert_eq!((status["topics"].as_u64(), status["brokers"].as_u64()), (Some(100), Some(1)));
    let lists = [1, 2, 3].map(|node| names(&cluster.run_at(node, &["topic", "list"])));
    assert_eq!(lists[0].len(), 100);
    assert!(lists.iter().all(|list| *list == lists[0]));

    // One that is used at once, at every node.
    for node in 1..=3 {
        let name = format!("used-at-once-{node}");
        let created = cluster.run(&["topic", "create", &name, "--partitions", "3"]);
        let id = created["done"]["topic_created"]["topic"].as_u64().unwrap();
        let topic = cluster.run_at(node, &["topic", "get", &name, "--linearizable"]);
        assert_eq!(topic["id"], id);
        assert_eq!(topic["partitions"][2]["stream"], id + 2);
        cluster.run_at(node, &["watermark", "raise", &name, "2", "17"]);
        let mark = cluster.run_at(node, &["watermark", "get", &name, "2", "--linearizable"]);
        assert_eq!(mark["high_watermark"], 17);
    }
    let again = cluster.try_run(&["topic", "create", "t-0-0"]);
    assert_error(&again, 1, &["there already"]);

    // The leader goes; the others go on; it comes back.
    let leader = cluster.leader();
    let before = cluster.wait_until_equal(&[1, 2, 3]);
    cluster.end(leader, Signal::KILL);
    cluster.run(&["topic", "create", "without-it", "--ack", "quorum"]);
    let silent = cluster.try_run(&["status"]);
    assert_error(&silent, 1, &["1 of 3 nodes do not answer", "ringwal node --config"]);
    assert!(text(&silent.stdout).contains("no answer"));
    cluster.start_node(leader, &[]);
    let after = cluster.wait_until_equal(&[1, 2, 3]);
    assert!(after["epoch"].as_u64() > before["epoch"].as_u64(), "{before} {after}");
    assert_eq!(after["topics"], 104);
    let lists = [1, 2, 3].map(|node| names(&cluster.run_at(node, &["topic", "list"])));
    assert_eq!(lists[0].last().unwrap(), "without-it");
    assert!(lists.iter().all(|list| *list == lists[0]));
    cluster.stop();
}

#[test]
fn a_rolling_restart_fails_no_command() {
    let mut cluster = Cluster::start();
    cluster.run(&["broker", "register", "1", "one.example:9092"]);
    let (folder, over) = (cluster.path().to_owned(), AtomicBool::new(false));
    let created = std::thread::scope(|scope| {
        let creating = scope.spawn(|| {
            let mut count = 0_u64;
            while !over.load(Ordering::Relaxed) {
                let name = format!("topic-{count}");
                let output = run(&folder, &["topic", "create", &name]);
                assert!(output.status.success(), "{name}: {}", text(&output.stderr));
                count += 1;
            }
            count
        });
        for node in [1, 2, 3, 1] {
            cluster.end(node, Signal::TERM);
            cluster.start_node(node, &[]);
            cluster.wait_until_led();
        }
        over.store(true, Ordering::Relaxed);
        creating.join().unwrap()
    });
    let status = cluster.wait_until_equal(&[1, 2, 3]);
    assert_eq!(status["topics"], created);
    assert!(created > 20, "{created}");
    cluster.stop();
}

#[test]
fn a_node_is_added_leads_and_is_removed() {
    let mut cluster = Cluster::start();
    cluster.run(&["key", "put", "color", "blue"]);
    let address = format!("127.0.0.1:{}", cluster.port + 3);
    let one = fs::read_to_string(cluster.path().join("node-1.toml")).unwrap();
    let four = one
        .replace("\nnode = 1\n", "\nnode = 4\n")
        .replace(
            &format!("listen = \"127.0.0.1:{}\"", cluster.port),
            &format!("listen = \"{address}\""),
        )
        .replace("\n]", &format!("\n    {{ node = 4, address = \"{address}\" }},\n]"));
    fs::write(cluster.path().join("node-4.toml"), four).unwrap();
    cluster.start_node(4, &["--join"]);

    let unknown = cluster.try_run(&["member", "promote", "4"]);
    assert_error(&unknown, 1, &["node 4 is no member", "ringwal member add"]);
    cluster.run(&["member", "add", "4", &address]);
    let part = |cluster: &Cluster| {
        let members = cluster.run(&["member", "list"]);
        let four = members["members"].as_array().unwrap().iter().find(|m| m["node"] == 4).cloned();
        four.map(|member| member["is_voter"].as_bool().unwrap())
    };
    assert_eq!(part(&cluster), Some(false));
    cluster.run(&["member", "promote", "4"]);
    assert_eq!(part(&cluster), Some(true));
    assert_eq!(cluster.run(&["transfer-leader", "--to", "4"])["leader"], 4);
    cluster.run(&["key", "put", "color", "red", "--ack", "quorum"]);
    let status = cluster.wait_until_equal(&[1, 2, 3, 4]);
    assert_eq!(status["leader"], 4);
    let other = cluster.run(&["transfer-leader"])["leader"].as_u64().unwrap();
    assert_ne!(other, 4);
    cluster.run(&["member", "remove", "4"]);
    assert_eq!(part(&cluster), None);
    assert_eq!(cluster.run(&["key", "get", "color", "--linearizable"])["value"], "red");
    cluster.stop();
}

#[test]
fn the_fast_path_is_switched_while_commands_come() {
    let cluster = Cluster::start();
    let mode = |cluster: &Cluster| {
        let leader = cluster.wait_until_led();
        (leader["mode"].as_str().unwrap().to_owned(), leader["fast_path"].as_bool().unwrap())
    };
    assert_eq!(mode(&cluster), ("fast".to_owned(), true));
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let putting = scope.spawn(|| {
            let mut count = 0;
            while !over.load(Ordering::Relaxed) {
                cluster.run(&["key", "put", &format!("key-{count:05}"), "1"]);
                count += 1;
            }
            count
        });
        for action in ["off", "on", "off"] {
            let shown = cluster.run(&["fast-path", action]);
            let nodes = shown["nodes"].as_array().unwrap();
            assert!(nodes.len() == 3 && nodes.iter().all(|n| n["fast_path"] == (action == "on")));
            let wanted = if action == "on" { "fast" } else { "raft (switched_off)" };
            assert_eq!(mode(&cluster), (wanted.to_owned(), action == "on"));
            let put = cluster.run(&["key", "put", "switched", action]);
            assert_eq!(put["quorum"], action == "off", "by Raft it is on a majority");
        }
        over.store(true, Ordering::Relaxed);
        let count: usize = putting.join().unwrap();
        let keys = cluster.run(&["key", "list", "key-", "--linearizable"]);
        assert_eq!(keys["keys"].as_array().unwrap().len(), count);
    });
    let leader = cluster.wait_until_led();
    assert!(leader["fallbacks"]["switched_off"].as_u64() > Some(0), "{leader}");
    cluster.stop();
}

#[test]
fn what_runs_is_gone_on_with_and_what_cannot_is_said() {
    let mut cluster = Cluster::start();
    cluster.run(&["key", "put", "color", "blue", "--if-absent"]);
    let version = cluster.run(&["key", "get", "color", "--linearizable"]);
    let wrong = format!("{}:{}", version["epoch"], version["offset"].as_u64().unwrap() + 1);
    let other = cluster.try_run(&["key", "put", "color", "red", "--if-version", &wrong]);
    assert_error(&other, 1, &["not expected"]);
    assert_error(&cluster.try_run(&["key", "get", "colour"]), 1, &["no key colour"]);
    assert_error(&cluster.try_run(&["topic", "get", "no name"]), 1, &["' '"]);
    let twice = cluster.try_run(&["cluster"]);
    let listen = format!("node 1 cannot listen at 127.0.0.1:{}", cluster.port);
    assert_error(&twice, 1, &[&listen, "--port"]);
    assert_error(&cluster.try_run(&["cluster", "--nodes", "5"]), 2, &["files of 3 nodes"]);

    // Its nodes end with it, also when it is killed.
    let nodes = [1, 2, 3].map(|node| cluster.process_of(node));
    cluster.process.take().unwrap().end(Signal::KILL);
    let start = Instant::now();
    while nodes.iter().any(|node| rustix::process::test_kill_process(*node).is_ok()) {
        assert!(start.elapsed() < LIMIT, "nodes are left behind");
        std::thread::sleep(Duration::from_millis(20));
    }
    let gone = cluster.try_run(&["status", "--deadline", "1s"]);
    assert_error(&gone, 1, &["3 of 3 nodes do not answer"]);
    let gone = cluster.try_run(&["key", "get", "color", "--deadline", "500ms"]);
    assert_error(&gone, 1, &["within 500ms", "node 1 at 127.0.0.1", "--deadline"]);
    cluster.run_all(&[]);
    assert_eq!(cluster.run(&["key", "get", "color", "--linearizable"])["value"], "blue");
    cluster.stop();
}

#[test]
fn bad_requests_say_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    assert_error(&run(path, &["status"]), 3, &["no cluster file cluster.toml", "--config FILE"]);
    fs::write(path.join("cluster.toml"), "cluster = \"x\"\nmembers = []\n").unwrap();
    assert_error(&run(path, &["status"]), 2, &["line 1", "32 hexadecimal digits"]);
    fs::write(path.join("node.toml"), "node = 1\ncolour = 2\n").unwrap();
    assert_error(&run(path, &["node", "--config", "node.toml"]), 2, &["no configuration"]);
    let usage = |arguments: &[&str], part: &str| {
        let output = run(path, arguments);
        let stderr = text(&output.stderr);
        assert!(output.status.code() == Some(2) && stderr.contains(part), "{stderr}");
    };
    usage(&["topic"], "create");
    usage(&["topic", "create"], "<NAME>");
    usage(&["topic", "create", "a", "--set", "b"], "KEY=VALUE");
    usage(&["key", "put", "a", "b", "--if-version", "3"], "EPOCH:OFFSET");
    usage(&["key", "put", "a", "b", "--if-version", "3:1", "--if-absent"], "cannot be used");
    usage(&["member", "add", "0", "localhost:1"], "0 is not in 1..");
    usage(&["cluster", "--nodes", "0"], "1..=16");
    usage(&["fast-path", "maybe"], "possible values");
    usage(&["node"], "--config");
}

#[test]
fn a_node_with_a_blank_disk_comes_back_as_a_learner() {
    let mut cluster = Cluster::start();
    cluster.run(&["key", "put", "color", "blue", "--ack", "quorum"]);
    let lost = cluster.leader() % 3 + 1;
    cluster.end(lost, Signal::KILL);
    fs::remove_dir_all(cluster.path().join(format!("node-{lost}"))).unwrap();
    let name = lost.to_string();
    cluster.run(&["member", "remove", &name]);
    cluster.start_node(lost, &["--join"]);
    let address = format!("127.0.0.1:{}", cluster.port + lost as u16 - 1);
    cluster.run(&["member", "add", &name, &address]);
    cluster.run(&["member", "promote", &name]);
    cluster.wait_until_equal(&[1, 2, 3]);
    assert_eq!(cluster.run_at(lost, &["key", "get", "color"])["value"], "blue");
    cluster.stop();
}

#[test]
fn one_node_goes_on_alone_when_the_others_are_given_up() {
    let mut cluster = Cluster::start();
    cluster.run(&["key", "put", "color", "blue", "--ack", "quorum"]);
    cluster.wait_until_equal(&[1, 2, 3]);
    assert_eq!(cluster.process.take().unwrap().end(Signal::TERM), Some(0));
    let left = ["recover-majority", "--config", "node-2.toml", "--directory", "node-2"];
    assert_error(&cluster.try_run(&left), 2, &["--accept-data-loss", "would be lost"]);
    let given_up = cluster.run(&[&left[..], &["--accept-data-loss"]].concat());
    assert_eq!((&given_up["given_up"], &given_up["node"]), (&serde_json::json!([1, 3]), &2.into()));
    cluster.start_node(2, &[]);
    cluster.run(&["key", "put", "color", "green"]);
    assert_eq!(cluster.run_at(2, &["key", "get", "color"])["value"], "green");
    assert_error(&cluster.try_run(&left), 2, &["--accept-data-loss"]);
    let again = [&left[..], &["--accept-data-loss"]].concat();
    assert_error(&cluster.try_run(&again), 1, &["another process"]);
    let node = cluster.nodes.remove(&2).unwrap();
    assert_eq!(node.end(Signal::TERM), Some(0));
    assert_error(&cluster.try_run(&again), 2, &["only voter already"]);
}
