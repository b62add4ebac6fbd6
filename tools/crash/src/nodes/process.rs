//! Both ends of a node's process.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};
use serde::de::DeserializeOwned;

use super::log::Log;
use crate::block::system::raw_stdout;

/// How a node talks to the operator. What it says leaves in one write, so that a line that arrived is whole.
#[derive(Clone, Debug)]
pub struct Voice {
    output: Arc<Mutex<File>>,
}

impl Voice {
    /// One line; it is with the operator when this returns, also when the process is killed then.
    pub fn say(&self, line: &str) {
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        // A parent that is gone takes this process with it.
        let _ = output.write_all(format!("{line}\n").as_bytes());
    }
}

/// Runs a node in this process, until it is told to close, or killed. It dies with its parent.
///
/// # Errors
/// Whatever no node may do on a sound disk.
pub fn run_node<S: DeserializeOwned>(
    setup: &str,
    log: impl FnOnce(&S) -> &Path,
    serve: impl FnOnce(&S, &Voice) -> Result<()>,
) -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let setup: S = serde_json::from_str(setup).context("the setup of a node")?;
    Log::install(log(&setup))?;
    let voice = Voice { output: Arc::new(Mutex::new(raw_stdout()?)) };
    let outcome = serve(&setup, &voice);
    if let Err(error) = &outcome {
        voice.say(&format!("broken {error:#}"));
    }
    outcome
}

/// A line of a node, and in which of its lives it was said.
#[derive(Debug)]
pub struct Heard {
    /// Which node, from 0.
    pub node: usize,
    /// Counts the processes.
    pub life: u64,
    /// What it said; `None` when there is no more.
    pub line: Option<String>,
}

/// A node's process; killed at the latest when this is dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    input: ChildStdin,
    /// Counts the processes.
    pub life: u64,
    /// It is stopped, and would not answer.
    pub is_stopped: bool,
}

impl Process {
    /// Starts it in the network namespace that this thread is in. Its lines go to `heard`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(
        arguments: [&str; 2],
        node: usize,
        life: u64,
        heard: Sender<Heard>,
    ) -> Result<Process> {
        let mut child = Command::new("/proc/self/exe")
            .args(arguments)
            // It has the same known bug as this process, if any.
            .args(std::env::args().skip_while(|argument| argument != "--mutant").take(2))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting a node")?;
        let output = child.stdout.take().context("its output")?;
        let input = child.stdin.take().context("its input")?;
        std::thread::spawn(move || {
            let lines = BufReader::new(output).lines().map_while(Result::ok).map(Some);
            for line in lines.chain([None]) {
                if heard.send(Heard { node, life, line }).is_err() {
                    return;
                }
            }
        });
        Ok(Process { child, input, life, is_stopped: false })
    }

    /// Tells it something. One that is gone hears nothing.
    pub fn tell(&mut self, line: &str) {
        let _ = writeln!(self.input, "{line}");
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(self.child.id() as i32).context("a process has an id")?;
        kill_process(pid, signal).context("sending a signal")
    }

    /// The most memory that it has had, in KiB.
    ///
    /// # Errors
    /// When it is gone.
    pub fn memory_kib_max(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        kib.context("no VmHWM in a process's status")
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When that takes longer than `limit`.
    pub fn end(&mut self, limit: Duration) -> Result<std::process::ExitStatus> {
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        bail!("a node does not end within {limit:?}")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.end(Duration::from_secs(5));
    }
}
