//! `replay` and `faults` in a small volume, with their self-check, and that nothing stays behind
//! when they are ended from outside.

use std::io::Write as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(30);

fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringwal-crash"));
    command.args(arguments);
    command
}

/// Runs a command that must end well. What it had to skip is said past the test harness.
fn run(arguments: &[&str]) -> String {
    let output = program(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}\n{text}\n{errors}");
    for skipped in text.lines().filter(|line| line.starts_with("SKIPPED")) {
        let _ = writeln!(std::io::stderr(), "{skipped}");
    }
    text
}

fn is_skipped(text: &str) -> bool {
    text.contains("SKIPPED")
}

#[test]
fn states_after_a_loss_of_power_keep_the_promise() {
    let text = run(&["replay", "--count", "48"]);
    if !is_skipped(&text) {
        assert!(text.contains("48 passed, 0 failed, 0 skipped"), "{text}");
    }
}

#[test]
fn broken_receipts_and_flushes_are_caught() {
    let text = run(&["replay", "--self-check", "--count", "60"]);
    if !is_skipped(&text) {
        assert!(text.contains("2 passed, 0 failed, 0 skipped"), "{text}");
    }
}

#[test]
fn failed_flushes_writes_and_no_space_show_as_they_must() {
    for case in ["EIO on flush", "short write", "step SyncDirectory"] {
        let text = run(&["faults", "--case", case]);
        assert!(is_skipped(&text) || text.contains(" 0 failed, 0 skipped"), "{text}");
    }
}

/// Loop devices of a process, by what is behind them.
fn loop_devices(process: u32) -> usize {
    let names = [format!("ringwal-crash-{process}-"), format!("device-{process}-")];
    let devices = std::fs::read_dir("/sys/block").unwrap().flatten();
    let backing = devices
        .filter_map(|device| std::fs::read_to_string(device.path().join("loop/backing_file")).ok());
    backing.filter(|file| names.iter().any(|name| file.contains(name))).count()
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {LIMIT:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn start(arguments: &[&str]) -> Child {
    program(arguments).stdout(Stdio::null()).spawn().unwrap()
}

#[test]
fn nothing_stays_behind_when_it_is_ended() {
    if is_skipped(&run(&["replay", "--fs", "ext4", "--count", "1"])) {
        return;
    }
    for (signal, pause) in
        [("INT", 300), ("KILL", 50), ("KILL", 400), ("KILL", 900), ("TERM", 1500)]
    {
        let mut process = start(&["replay", "--fs", "ext4", "--count", "100000"]);
        let id = process.id();
        wait_until("a loop device", || loop_devices(id) > 0);
        std::thread::sleep(Duration::from_millis(pause));
        let kill = Command::new("kill").args([&format!("-{signal}"), &id.to_string()]).status();
        assert!(kill.unwrap().success());
        wait_until("its end", || process.try_wait().unwrap().is_some());
        wait_until("its loop devices are free", || loop_devices(id) == 0);
    }
}
