//! The program as a shell sees it: exit codes, streams, files that it leaves and files that it
//! does not leave.

use std::io::Read as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// A short measurement that needs no io_uring.
const SHORT: [&str; 8] =
    ["--io", "blocking", "--only", "idle", "--duration", "200ms", "--warmup", "20ms"];

fn ringwal(directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringwal"));
    command.current_dir(directory).stdin(Stdio::null()).env("TERM", "xterm");
    command.env_remove("NO_COLOR");
    command
}

fn run(directory: &Path, arguments: &[&str]) -> Output {
    ringwal(directory).args(arguments).output().unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| panic!("{:?}", output.status))
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn temporary() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// The whole of an error is on standard error, a line for each part.
fn assert_error(output: &Output, exit: i32, parts: &[&str]) {
    let stderr = text(&output.stderr);
    assert_eq!(code(output), exit, "{stderr}");
    assert!(stderr.starts_with("error: "), "{stderr}");
    for part in parts {
        assert!(stderr.lines().any(|line| line.starts_with(part)), "{part:?} in {stderr}");
    }
    assert!(output.stdout.is_empty());
}

#[test]
fn nonsense_is_a_usage_error_that_names_itself() {
    let directory = temporary();
    for (arguments, named) in [
        (&["--duration", "0s"][..], "longer than nothing"),
        (&["--duration", "5"], "number with a unit"),
        (&["--only", "everything"], "everything"),
        (&["--record-size", "2GiB"], "at most 1 MB"),
        (&["--slo", "fast"], "METRIC<TIME"),
        (&["--clients", "0"], "1..=4096"),
        (&["--followers", "0"], "1..=16"),
        (&["--followers", "2", "--only", "open"], "not run with followers"),
        (&["--followers", "2", "--only", "catch-up"], "not run with followers"),
        (&["--behind", "5KiB"], "from 1MiB to 64GiB"),
        (&["--ack", "quorum"], "--followers N"),
        (&["--config", "node.toml"], "--dir"),
        (&["follow", "data"], "--config"),
        (&["--rate", "5k", "--only", "idle"], "open loop"),
        (&["--receipts", "f", "--only", "recovery"], "recovery"),
        (&["doctor", "--nonsense"], "--nonsense"),
        (&["nonsense"], "nonsense"),
    ] {
        let output = run(directory.path(), arguments);
        assert_eq!(code(&output), 2, "{arguments:?}");
        let stderr = text(&output.stderr);
        assert!(stderr.starts_with("error: ") && stderr.contains(named), "{arguments:?}: {stderr}");
    }
    assert!(names(directory.path()).is_empty());
}

#[test]
fn a_measurement_without_a_subcommand_leaves_its_report_and_nothing_else() {
    let directory = temporary();
    let mut arguments = SHORT.to_vec();
    arguments.extend(["--json", "-", "--seed", "7", "--slo", "p99<1s"]);
    let output = run(directory.path(), &arguments);
    assert_eq!(code(&output), 0, "{}", text(&output.stderr));
    assert_eq!(text(&output.stderr), "", "no progress when piped");
    assert_eq!(names(directory.path()), ["ringwal-results"]);

    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["schema"], "ringwal.bench/1");
    assert_eq!(report["interrupted"], false);
    assert_eq!(report["seed"], 7);
    assert!(report["command"].as_str().unwrap().contains("--slo 'p99<1s'"));
    for key in [
        "kernel",
        "cpu",
        "file_system",
        "mount_options",
        "device",
        "write_cache",
        "fua",
        "scheduler",
        "direct_io_alignment",
        "ring_features",
        "memlock_bytes",
        "load",
    ] {
        assert!(report["environment"].get(key).is_some(), "environment.{key}");
    }
    for key in [
        "method",
        "p50_ns",
        "p99_ns",
        "operations_per_second",
        "sequential_bytes_per_second",
        "slices",
        "drift",
    ] {
        assert!(report["probe"].get(key).is_some(), "probe.{key}");
    }
    assert!(report["probe"]["slices"].as_array().unwrap().len() >= 4);
    let run = &report["runs"][0];
    for key in [
        "name",
        "clients",
        "rate",
        "record_bytes",
        "records",
        "duration_ns",
        "records_per_second",
        "bytes_per_second",
        "response",
        "service",
        "stages",
        "batches",
        "records_per_batch",
        "flushes",
        "rotations",
        "cpu_ns_per_record",
        "ratio_to_probe_p50",
    ] {
        assert!(run.get(key).is_some(), "runs[0].{key}");
    }
    assert_eq!(run["name"], "idle");
    assert!(run["records"].as_u64().unwrap() > 0);
    assert!(run["batches"].as_u64().unwrap() > 0);
    assert!(run["response"]["p50_ns"].as_u64().unwrap() > 0);
    assert!(run["duration_ns"].as_u64().unwrap() <= 210_000_000);
    let counted: u64 =
        run["intervals"].as_array().unwrap().iter().map(|i| i["records"].as_u64().unwrap()).sum();
    assert_eq!(run["records"].as_u64().unwrap(), counted);

    // The same report is in the folder, and can be drawn again and compared with itself.
    let results = directory.path().join("ringwal-results");
    let folder = results.join(&names(&results)[0]);
    assert_eq!(std::fs::read(folder.join("report.json")).unwrap(), output.stdout);
    let folder = folder.to_str().unwrap();
    let drawn = run_ok(directory.path(), &["report", folder]);
    assert!(drawn.contains("idle") && drawn.contains("report.html"), "{drawn}");
    let compared = run_ok(directory.path(), &["compare", folder, folder]);
    assert!(!compared.contains("worse"), "{compared}");
}

fn run_ok(directory: &Path, arguments: &[&str]) -> String {
    let output = run(directory, arguments);
    assert_eq!(code(&output), 0, "{arguments:?}: {}", text(&output.stderr));
    let stdout = text(&output.stdout).to_owned();
    assert!(!stdout.contains('\x1b'), "no colour when piped: {stdout}");
    stdout
}

#[test]
fn a_missed_objective_exits_5() {
    let directory = temporary();
    let mut arguments = SHORT.to_vec();
    arguments.extend(["--slo", "p50<1ns", "--out", "here"]);
    let output = run(directory.path(), &arguments);
    assert_eq!(code(&output), 5);
    assert!(text(&output.stderr).contains("objective missed: idle: p50"));
    assert!(text(&output.stdout).contains("report: here/report.html"));
    assert_eq!(names(directory.path()), ["here"]);
}

#[test]
fn a_directory_that_was_asked_for_is_kept_with_every_receipt_in_it() {
    let directory = temporary();
    let mut arguments = SHORT.to_vec();
    arguments.extend(["--dir", "data", "--receipts", "receipts", "--seed", "3"]);
    for _ in 0..2 {
        let output = run(directory.path(), &arguments);
        assert_eq!(code(&output), 0, "{}", text(&output.stderr));
    }
    let receipts = std::fs::read_to_string(directory.path().join("receipts")).unwrap();
    assert!(receipts.ends_with('\n'));
    let data = directory.path().join("data");
    let engine =
        ringwal_engine::Engine::options().io(ringwal_engine::Io::Blocking).open(data).unwrap();
    let stream = engine.stream(ringwal_engine::StreamId::new(16));
    let mut records = stream.read(0..).unwrap();
    let mut lines = 0;
    for (offset, line) in receipts.lines().enumerate() {
        let record = records.next().unwrap().unwrap();
        let crc = crc32c::crc32c(record.payload());
        assert_eq!(line, format!("16 {offset} {crc:08x}"));
        lines += 1;
    }
    assert!(lines > 2, "two runs have written more than that");
}

#[test]
fn the_data_directory_stays_when_asked() {
    let directory = temporary();
    let mut arguments = SHORT.to_vec();
    arguments.push("--keep");
    let stdout = run_ok(directory.path(), &arguments);
    assert!(stdout.contains("(kept)"), "{stdout}");
    let kept: Vec<String> =
        names(directory.path()).into_iter().filter(|n| n.starts_with("ringwal-data-")).collect();
    assert_eq!(kept.len(), 1);
}

#[test]
fn directories_that_cannot_be_used_are_refused_with_cause_and_fix() {
    let directory = temporary();
    let file = directory.path().join("file");
    std::fs::write(&file, b"").unwrap();
    let output = run(directory.path(), &["--only", "idle", "--dir", "file"]);
    assert_error(&output, 3, &["cause: ", "fix: --dir"]);
    let output = run(directory.path(), &["doctor", "file"]);
    assert_error(&output, 3, &["cause: ", "fix: "]);
    let output = run(directory.path(), &["--only", "idle", "--dir", "file/below"]);
    assert_error(&output, 3, &["cause: ", "fix: --dir"]);
    let output = run(directory.path(), &["report", "missing"]);
    assert_error(&output, 3, &["cause: "]);

    let data = directory.path().join("data");
    let options = ringwal_engine::Engine::options().io(ringwal_engine::Io::Blocking);
    let engine = options.open(&data).unwrap();
    let mut arguments = SHORT.to_vec();
    arguments.extend(["--dir", "data"]);
    let output = run(directory.path(), &arguments);
    assert_error(&output, 1, &["error: ", "fix: "]);
    assert!(text(&output.stderr).contains("in use"), "{}", text(&output.stderr));
    drop(engine);
}

#[test]
fn the_first_interrupt_leaves_a_partial_report_that_says_so() {
    let directory = temporary();
    let mut child = start(
        directory.path(),
        &[
            "--io",
            "blocking",
            "--only",
            "idle,loaded",
            "--duration",
            "60s",
            "--json",
            "report.json",
        ],
    );
    wait_for_data(directory.path(), &mut child);
    std::thread::sleep(Duration::from_millis(2500));
    signal(&child, Signal::INT);
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(130));
    let report = std::fs::read(directory.path().join("report.json")).unwrap();
    let report: Value = serde_json::from_slice(&report).unwrap();
    assert_eq!(report["interrupted"], true);
    let runs = report["runs"].as_array().unwrap();
    assert_eq!((runs.len(), &runs[0]["name"]), (1, &Value::from("idle")));
    assert_eq!(runs[0]["interrupted"], true);
    let duration_ns = runs[0]["duration_ns"].as_u64().unwrap();
    assert!((1..10_000_000_000).contains(&duration_ns), "{duration_ns}");
    assert_eq!(names(directory.path()), ["report.json", "ringwal-results"], "no data is left");
}

#[test]
fn a_second_interrupt_kills() {
    let directory = temporary();
    let mut child = start(
        directory.path(),
        &["--io", "blocking", "--only", "loaded", "--duration", "60s", "--out", "out"],
    );
    wait_for_data(directory.path(), &mut child);
    // Stopped between the two, it cannot end in an orderly way before the second one comes.
    signal(&child, Signal::STOP);
    signal(&child, Signal::INT);
    signal(&child, Signal::TERM);
    signal(&child, Signal::CONT);
    let status = child.wait().unwrap();
    assert!(matches!(status.signal(), Some(2 | 15)), "{status:?}");
}

fn start(directory: &Path, arguments: &[&str]) -> Child {
    let mut command = ringwal(directory);
    command.args(arguments).stdout(Stdio::null()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

/// Waits until the data directory holds something, so that signals are caught.
fn wait_for_data(directory: &Path, child: &mut Child) {
    let start = Instant::now();
    let is_data = |path: &PathBuf| path.to_string_lossy().contains("ringwal-data-");
    while start.elapsed() < Duration::from_secs(30) {
        let entries = std::fs::read_dir(directory).unwrap();
        let data = entries.map(|entry| entry.unwrap().path()).find(is_data);
        if data.is_some_and(|data| std::fs::read_dir(data).is_ok_and(|mut d| d.next().is_some())) {
            return;
        }
        if child.try_wait().unwrap().is_some() {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    panic!("no data directory; {stderr}");
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let directory = temporary();
    for arguments in [&["completions", "bash"][..], &["man"], &["doctor", "/dev/shm"]] {
        let mut child = ringwal(directory.path())
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!(code(&output), 0, "{arguments:?}");
        assert_eq!(text(&output.stderr), "", "{arguments:?}");
    }
}

#[test]
fn doctor_tells_the_truth_about_memory_and_leaves_nothing() {
    let directory = temporary();
    let shared = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = shared.path().to_str().unwrap();
    let table = run(directory.path(), &["doctor", path]);
    let stdout = text(&table.stdout);
    assert!(stdout.contains("tmpfs") && stdout.contains("nothing is durable"), "{stdout}");
    assert!(!stdout.contains('\x1b'));

    let json = run(directory.path(), &["doctor", "--json", path]);
    let found: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(found["schema"], "ringwal.doctor/1");
    assert_eq!(found["file_system"], "tmpfs");
    assert_eq!(code(&json), if found["can_run"] == true { 0 } else { 3 });
    let checks = found["checks"].as_array().unwrap();
    for check in checks {
        for key in ["condition", "required", "found", "severity", "fix"] {
            assert!(check.get(key).is_some(), "{key} in {check}");
        }
        assert!(check["severity"] == "ok" || !check["found"].as_str().unwrap().is_empty());
    }
    let of = |condition: &str| checks.iter().find(|c| c["condition"] == condition).unwrap();
    assert_eq!(of("file system")["severity"], "warning");
    assert!(names(shared.path()).is_empty());
    // A directory that is not there yet is judged by its parent, and not made.
    let below = shared.path().join("not/yet");
    let output = run(directory.path(), &["doctor", below.to_str().unwrap()]);
    assert!(text(&output.stdout).contains("tmpfs"));
    assert!(names(shared.path()).is_empty());
}

#[test]
fn colours_are_for_terminals_that_want_them() {
    // script(1) gives the program a terminal.
    let on_terminal = |no_colour: &str| {
        Command::new("script")
            .args(["-qec", concat!(env!("CARGO_BIN_EXE_ringwal"), " doctor /dev/shm"), "/dev/null"])
            .env("TERM", "xterm")
            .env("NO_COLOR", no_colour)
            .stdin(Stdio::null())
            .output()
    };
    let Ok(coloured) = on_terminal("") else { return };
    assert!(text(&coloured.stdout).contains("\x1b[33mwarning"), "{}", text(&coloured.stdout));
    let plain = on_terminal("1").unwrap();
    assert!(text(&plain.stdout).contains("warning") && !text(&plain.stdout).contains('\x1b'));
}

#[test]
fn completions_and_manual_pages_are_there() {
    let directory = temporary();
    for shell in ["bash", "zsh", "fish"] {
        let script = run_ok(directory.path(), &["completions", shell]);
        assert!(script.contains("ringwal") && script.contains("doctor"), "{shell}");
        assert!(script.contains("receipts"), "{shell}");
    }
    let page = run_ok(directory.path(), &["man"]);
    assert!(page.contains(".TH ringwal"), "{page}");
    run_ok(directory.path(), &["man", "pages"]);
    let pages = names(&directory.path().join("pages"));
    for page in ["ringwal.1", "ringwal-bench.1", "ringwal-doctor.1", "ringwal-compare.1"] {
        assert!(pages.contains(&page.to_owned()), "{pages:?}");
    }
    assert_eq!(code(&run(directory.path(), &["completions", "dosshell"])), 2);
}
