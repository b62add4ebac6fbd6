//! The command `kill`, with a small number of kills.

use std::process::Command;

#[test]
fn a_few_kills_find_nothing() {
    let output = Command::new(env!("CARGO_BIN_EXE_ringwal-crash"))
        .args(["kill", "--count", "20", "--json", "-"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    for line in text.lines().filter(|line| line.starts_with("SKIPPED")) {
        println!("{line}");
    }
    assert!(text.contains("kill: seed ") && text.contains(" 0 failed, "), "{text}");
    assert!(text.contains("checks after a read-only open: 2"), "{text}");
}
