//! This test binary once more, in another role: what must be killed, or must lose a right that a
//! process cannot get back, happens in a process of its own.
//!
//! A binary that uses this has one test named `child`, which does nothing without a role.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, ExitStatus, Stdio};

const ROLE: &str = "RINGWAL_TEST_ROLE";
const ARGUMENT: &str = "RINGWAL_TEST_ARGUMENT";
/// Starts each line that a child has to say; the harness prints others.
const MARK: &str = "child says ";

/// The role and argument of this process, when it is a child. It dies with its parent.
pub fn role() -> Option<(String, String)> {
    let role = std::env::var(ROLE).ok()?;
    let argument = std::env::var(ARGUMENT).ok()?;
    // SAFETY: no memory is involved.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    Some((role, argument))
}

/// Tells the parent a line.
pub fn say(line: &str) {
    // Not `println!`: the line must be out before the next thing happens.
    let mut out = std::io::stdout().lock();
    writeln!(out, "\n{MARK}{line}").and_then(|()| out.flush()).expect("the parent listens");
}

/// A child that is killed at the latest when this is dropped.
pub struct Role {
    process: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Role {
    pub fn start(role: &str, argument: &str) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture", "--test-threads=1"])
            .env(ROLE, role)
            .env(ARGUMENT, argument)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        Self { process, lines }
    }

    /// The next line that it says; `None` when it has ended.
    pub fn hear(&mut self) -> Option<String> {
        self.lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| line.strip_prefix(MARK).map(str::to_owned))
    }

    /// Kills it at once and waits until it is gone.
    #[allow(dead_code, reason = "not every test kills its children")]
    pub fn kill(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Everything else that it says, and how it ended.
    #[allow(dead_code, reason = "not every test lets its children end")]
    pub fn end(mut self) -> (Vec<String>, ExitStatus) {
        let lines = std::iter::from_fn(|| self.hear()).collect();
        (lines, self.process.wait().unwrap())
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
