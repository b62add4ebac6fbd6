//! `follow`, and `bench` with followers, as a shell sees them: real processes over loopback that are
//! killed and started again.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(60);

fn ringwal(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringwal"));
    command.args(arguments).current_dir(directory).stdin(Stdio::null());
    command.env_remove("RUST_LOG");
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

/// Nodes with a configuration `nodeN.toml` and a directory `dataN` each.
struct Cluster {
    directory: tempfile::TempDir,
}

impl Cluster {
    fn new(nodes: usize) -> Cluster {
        let directory = tempfile::tempdir().unwrap();
        // All at once, so that they differ.
        let ports: Vec<TcpListener> =
            (0..nodes).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let addresses: Vec<String> =
            ports.iter().map(|port| port.local_addr().unwrap().to_string()).collect();
        let mut members = String::new();
        for (node, address) in (1..).zip(&addresses) {
            members += &format!("\n[[members]]\nnode = {node}\naddress = \"{address}\"\n");
        }
        for (node, address) in (1..).zip(&addresses) {
            let config = format!(
                "cluster = \"6f1d8c0a-52b7-4a59-9f0e-3f8c2d7b1e44\"\nnode = {node}\n\
                 listen = \"{address}\"\n{members}"
            );
            fs::write(directory.path().join(format!("node{node}.toml")), config).unwrap();
        }
        Cluster { directory }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn follow(&self, node: usize) -> Process {
        let (data, config) = (format!("data{node}"), format!("node{node}.toml"));
        let arguments = ["follow", &data, "--config", &config, "--json"];
        let more = ["--io", "blocking", "--segment-size", "4MiB"];
        let process = self.start(&format!("follow{node}"), &[&arguments[..], &more].concat());
        process.wait_for("\"started\"");
        process
    }

    fn start(&self, name: &str, arguments: &[&str]) -> Process {
        let path = self.path().join(format!("{name}.out"));
        let (out, errors) = (File::create(&path).unwrap(), path.with_extension("err"));
        let mut command = ringwal(self.path(), arguments);
        command.stdout(out).stderr(File::create(&errors).unwrap());
        Process { child: command.spawn().unwrap(), out: path, errors }
    }

    /// Every record of replicated streams: stream, offset, checksum, length, bytes.
    fn records(&self, node: usize) -> BTreeSet<String> {
        let dump = run(self.path(), &["dump", &format!("data{node}")]);
        assert_eq!(dump.status.code(), Some(0), "{}", text(&dump.stderr));
        let is_own = |line: &&str| ["1 ", "2 ", "3 "].iter().any(|own| line.starts_with(own));
        text(&dump.stdout).lines().filter(|line| !is_own(line)).map(str::to_owned).collect()
    }

    fn verify(&self, node: usize) {
        let verify = run(self.path(), &["verify", &format!("data{node}")]);
        assert_eq!(verify.status.code(), Some(0), "{}", text(&verify.stdout));
    }
}

/// A process whose end is the end of its test.
struct Process {
    child: Child,
    out: PathBuf,
    errors: PathBuf,
}

impl Process {
    fn said(&self) -> String {
        fs::read_to_string(&self.out).unwrap()
    }

    fn wait_for(&self, part: &str) {
        let start = Instant::now();
        while !self.said().contains(part) {
            let errors = fs::read_to_string(&self.errors).unwrap();
            assert!(start.elapsed() < LIMIT, "no {part:?} in {}{errors}", self.said());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    fn end(mut self, signal: Signal) -> Option<i32> {
        self.signal(signal);
        self.child.wait().unwrap().code()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const LEAD: [&str; 14] = [
    "bench",
    "--config",
    "node1.toml",
    "--dir",
    "data1",
    "--keep",
    "--io",
    "blocking",
    "--only",
    "loaded",
    "--clients",
    "8",
    "--receipts",
    "receipts",
];

#[test]
fn nodes_that_are_killed_and_started_again_hold_the_same_records() {
    let cluster = Cluster::new(3);
    let (second, third) = (cluster.follow(2), cluster.follow(3));
    let arguments = [&LEAD[..], &["--duration", "120s", "--out", "first"]].concat();
    let leader = cluster.start("leader", &arguments);
    second.wait_for("\"following\"");
    third.wait_for("\"following\"");
    second.wait_for("\"event\":\"lag\"");
    let receipts = cluster.path().join("receipts");
    let wait_for_receipts = |more: u64| {
        let length = || fs::metadata(&receipts).map_or(0, |file| file.len());
        let (start, before) = (Instant::now(), length());
        while length() < before + more {
            assert!(start.elapsed() < LIMIT, "no receipts come");
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    wait_for_receipts(20_000);
    assert_eq!(second.end(Signal::KILL), None);
    wait_for_receipts(20_000);
    let second = cluster.follow(2);
    second.wait_for("\"following\"");
    wait_for_receipts(20_000);
    assert_eq!(leader.end(Signal::KILL), None);
    second.wait_for("\"lost\"");

    let short = ["--duration", "300ms", "--warmup", "20ms", "--out", "second", "--json", "-"];
    let output = run(cluster.path(), &[&LEAD[..], &short].concat());
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let names: Vec<_> = report["runs"].as_array().unwrap().iter().map(|r| &r["name"]).collect();
    assert_eq!(names, ["replicated-local-loaded", "replicated-quorum-loaded"]);
    for follower in [second, third] {
        follower.wait_for("\"lost\"");
        let lines: Vec<Value> =
            follower.said().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(lines.iter().filter(|line| line["event"] == "following").count() > 1);
        assert_eq!(follower.end(Signal::TERM), Some(0));
    }

    let records = cluster.records(1);
    for node in 1..=3 {
        cluster.verify(node);
        let others = cluster.records(node);
        let (ours, theirs) = (records.len(), others.len());
        assert!(others == records, "node {node} differs: {theirs} records beside {ours}");
    }
    // What was acknowledged, to whichever process, is there.
    let known: BTreeSet<String> = records
        .iter()
        .map(|line| line.splitn(4, ' ').take(3).collect::<Vec<_>>().join(" "))
        .collect();
    let receipts = fs::read_to_string(receipts).unwrap();
    let missing = receipts.lines().filter(|line| !known.contains(*line)).count();
    assert!(receipts.lines().count() > 1000);
    assert_eq!(missing, 0);
}

#[test]
fn followers_in_this_process_have_rows_ratios_and_stages() {
    let cluster = Cluster::new(1);
    let arguments = [
        "bench",
        "--followers",
        "1",
        "--ack",
        "local,quorum",
        "--io",
        "blocking",
        "--duration",
        "600ms",
        "--warmup",
        "50ms",
        "--clients",
        "4",
        "--out",
        "out",
    ];
    let output = run(cluster.path(), &arguments);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let screen = text(&output.stdout);
    let rows = [
        "idle ",
        "replicated-local-idle ",
        "replicated-quorum-idle ",
        "loaded ",
        "replicated-local-loaded ",
        "replicated-quorum-loaded ",
    ];
    for row in rows {
        assert!(screen.lines().any(|line| line.starts_with(row)), "{row} in {screen}");
    }
    assert!(screen.contains("idle: Ack::Quorum / Ack::Local: p50 "), "{screen}");
    assert!(screen.contains("network and queue") && screen.contains("wake-up"), "{screen}");

    let report = fs::read(cluster.path().join("out/report.json")).unwrap();
    let report: Value = serde_json::from_slice(&report).unwrap();
    let runs = report["runs"].as_array().unwrap();
    assert_eq!(runs.len(), rows.len());
    for (run, row) in runs.iter().zip(rows) {
        assert_eq!(run["name"], row.trim());
        assert!(run["records"].as_u64().unwrap() > 0, "{row}");
    }
    let quorum = &runs[2];
    assert_eq!((&quorum["ack"], &quorum["followers"]), (&"quorum".into(), &1.into()));
    assert!(quorum["extra"]["p50_ratio_to_local"].as_f64().unwrap() > 0.0);
    let stages: Vec<_> =
        quorum["stages"].as_array().unwrap().iter().map(|s| s["name"].as_str().unwrap()).collect();
    for stage in ["send", "network and queue", "follower durable", "reported", "committed"] {
        assert!(stages.contains(&stage), "{stage} in {stages:?}");
    }
    let page = fs::read_to_string(cluster.path().join("out/report.html")).unwrap();
    assert!(page.contains("What replication costs"));
    let left: Vec<_> =
        fs::read_dir(cluster.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().contains("ringwal-data")), "{left:?}");
}

#[test]
fn runs_with_processes_beside_them_have_rows_and_ratios() {
    let directory = tempfile::tempdir().unwrap();
    let arguments = [
        "bench",
        "--only",
        "sender,replicated-half,replicated-lagging,catch-up",
        "--io",
        "blocking",
        "--duration",
        "600ms",
        "--warmup",
        "50ms",
        "--clients",
        "4",
        "--behind",
        "4MiB",
        "--out",
        "out",
    ];
    let output = run(directory.path(), &arguments);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let report = fs::read(directory.path().join("out/report.json")).unwrap();
    let report: Value = serde_json::from_slice(&report).unwrap();
    let with = |rest: &[&'static str]| [&["part_p50_ns", "part_p99_ns"], rest].concat();
    let peers = ["peer_records_per_second", "peer_written_bytes_per_second"];
    let ratios = ["p50_ratio_to_control", "p99_ratio_to_control", "p99_ratio_to_alone"];
    let led = ["saturated_records_per_second", "frames_sent", "send_calls"];
    let to_gone = ["p50_ratio_to_gone", "p99_ratio_to_gone"];
    let expected = [
        ("sender", vec!["send_calls_per_frame"]),
        ("sender-small", vec!["send_calls_per_frame"]),
        ("replicated-half", with(&[&peers[..], &ratios, &led].concat())),
        ("replicated-half-control", with(&peers)),
        ("replicated-half-alone", with(&[])),
        ("replicated-gone", with(&[])),
        ("replicated-behind", with(&[&to_gone[..], &["lacked_bytes", "frames_sent"]].concat())),
        ("replicated-stopped", with(&to_gone)),
        ("catch-up", vec!["read_and_write_bytes_per_second", "ratio_to_read_and_write"]),
        ("catch-up-streams", vec![]),
    ];
    let runs = report["runs"].as_array().unwrap();
    let names: Vec<_> = runs.iter().map(|run| run["name"].as_str().unwrap()).collect();
    assert_eq!(names, expected.clone().map(|(name, _)| name));
    for (run, (name, extra)) in runs.iter().zip(expected) {
        assert!(run["records"].as_u64().unwrap() > 0, "{name}");
        assert!(run["response"]["p50_ns"].as_u64().unwrap() > 0, "{name}");
        for number in extra {
            assert!(run["extra"][number].as_f64().unwrap() > 0.0, "{name}: {number}");
        }
    }
    // A new follower had to get all of it; a sender that is busy fills its calls.
    assert_eq!(runs[8]["records"], 1024);
    assert!(runs[1]["extra"]["send_calls_per_frame"].as_f64().unwrap() <= 1.0 / 64.0);
    let screen = text(&output.stdout);
    for part in ["with followers", "follower / gone: ", "catch-up: ", "sender: "] {
        assert!(screen.contains(part), "{part:?} in {screen}");
    }
    let left: Vec<_> =
        fs::read_dir(directory.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["out"]);
}

/// Processes beside a measurement in this directory.
fn peers(directory: &Path) -> Vec<Pid> {
    let directory = directory.canonicalize().unwrap();
    let is_peer = |process: &Path| {
        let is_named = |line: Vec<u8>| line.windows(10).any(|part| part == b"bench-peer");
        fs::read(process.join("cmdline")).is_ok_and(is_named)
            && fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd == directory)
    };
    let processes = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path());
    let peers = processes.filter(|process| is_peer(process));
    peers.filter_map(|p| Pid::from_raw(p.file_name()?.to_str()?.parse().ok()?)).collect()
}

#[test]
fn processes_beside_a_measurement_die_with_it_also_when_they_are_stopped() {
    let cluster = Cluster::new(1);
    let arguments = ["bench", "--only", "replicated-half", "--io", "blocking", "--duration", "60s"];
    let bench = cluster.start("bench", &arguments);
    let wait_for = |count: usize| {
        let start = Instant::now();
        while peers(cluster.path()).len() != count {
            assert!(start.elapsed() < LIMIT, "{:?}", peers(cluster.path()));
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    wait_for(4);
    kill_process(peers(cluster.path())[0], Signal::STOP).unwrap();
    bench.end(Signal::KILL);
    wait_for(0);
}

#[test]
fn a_follower_prints_metrics_when_asked_and_ends_as_it_is_told() {
    let cluster = Cluster::new(2);
    let follower = cluster.follow(2);
    follower.signal(Signal::USR1);
    follower.wait_for("ringwal_replication_role{role=\"idle\"} 1");
    assert_eq!(follower.end(Signal::TERM), Some(0));
    let follower = cluster.follow(2);
    assert_eq!(follower.end(Signal::INT), Some(130));
}

#[test]
fn what_cannot_be_started_says_why_and_what_to_do() {
    let cluster = Cluster::new(2);
    let path = cluster.path();
    let follow = |data: &str, config: &str| {
        run(
            path,
            &["follow", data, "--config", config, "--io", "blocking", "--segment-size", "4MiB"],
        )
    };
    assert_error(&follow("data9", "none.toml"), 3, &["none.toml", "No such file"]);
    let good = fs::read_to_string(path.join("node2.toml")).unwrap();
    fs::write(path.join("bad.toml"), format!("window_bytes = 5\n{good}")).unwrap();
    assert_error(&follow("data9", "bad.toml"), 2, &["window_bytes = 5", "fix: "]);
    fs::write(path.join("bad.toml"), format!("colour = 5\n{good}")).unwrap();
    assert_error(&follow("data9", "bad.toml"), 2, &["line 1", "colour", "fix: "]);
    assert!(!path.join("data9").exists(), "nothing is made for a bad configuration");

    let follower = cluster.follow(2);
    assert_error(&follow("data2", "node1.toml"), 1, &["in use", "fix: "]);
    assert_error(&follow("data3", "node2.toml"), 1, &["in use", "listen", "fix: "]);
    assert_eq!(follower.end(Signal::TERM), Some(0));

    let lead = ["bench", "--config", "node1.toml", "--dir", "data1", "--io", "blocking"];
    let alone = ["--only", "idle", "--epoch", "7", "--duration", "100ms", "--out", "out"];
    let lonely = [&lead[..], &alone, &["--ack", "quorum"]].concat();
    assert_error(&run(path, &lonely), 3, &["no majority", "node 2 at", "ringwal follow"]);
    // That has led in epoch 7.
    let again = [&lead[..], &alone, &["--ack", "local"]].concat();
    assert_error(&run(path, &again), 2, &["epoch 7", "--epoch 8"]);
}
