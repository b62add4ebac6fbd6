//! The operator's end of all nodes: starts them, and hears what they say.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::Signal;
use serde::Serialize;

use super::process::{Heard, Process};
use super::topology::{NODES, Topology};

/// A process is there, or is gone, within this.
const PROCESS_LIMIT: Duration = Duration::from_secs(30);
/// Between two looks at something that will come.
const LOOK: Duration = Duration::from_millis(20);

/// The processes of all nodes, and the network between them.
pub struct Processes {
    /// The network.
    pub topology: Topology,
    /// Name of the hidden command that is a node.
    command: &'static str,
    processes: [Option<Process>; NODES],
    /// Processes so far.
    pub lives: u64,
    heard: (Sender<Heard>, Receiver<Heard>),
    /// What was said and not looked at yet: node and line.
    said: Vec<(usize, String)>,
    /// Most memory that any node has had, in KiB.
    pub memory_kib_max: u64,
}

impl Processes {
    /// None is started yet.
    pub fn new(command: &'static str, topology: Topology) -> Processes {
        let processes = [const { None }; NODES];
        let (heard, said) = (channel(), Vec::new());
        Processes { topology, command, processes, lives: 0, heard, said, memory_kib_max: 0 }
    }

    /// Whether a node runs, or is stopped.
    pub fn is_there(&self, node: usize) -> bool {
        self.processes[node].is_some()
    }

    /// Whether a node is stopped.
    pub fn is_stopped(&self, node: usize) -> bool {
        self.processes[node].as_ref().is_some_and(|process| process.is_stopped)
    }

    /// Starts a node in its namespace; the number of its life.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&mut self, node: usize, setup: &impl Serialize) -> Result<u64> {
        self.lives += 1;
        let setup = serde_json::to_string(setup)?;
        let (arguments, life, heard) = ([self.command, &setup], self.lives, self.heard.0.clone());
        let process =
            self.topology.within(node, || Process::start(arguments, node, life, heard))?;
        self.processes[node] = Some(process);
        Ok(life)
    }

    /// Tells a node something. One that is gone hears nothing.
    pub fn tell(&mut self, node: usize, line: &str) {
        if let Some(process) = &mut self.processes[node] {
            process.tell(line);
        }
    }

    /// Tells it to all that are not stopped; how many these are.
    pub fn tell_all(&mut self, line: &str) -> usize {
        let mut told = 0;
        for process in self.processes.iter_mut().flatten().filter(|process| !process.is_stopped) {
            process.tell(line);
            told += 1;
        }
        told
    }

    /// Stops a node where it stands, or lets it go on.
    ///
    /// # Errors
    /// When it is not there.
    pub fn set_stopped(&mut self, node: usize, is_stopped: bool) -> Result<()> {
        let process = self.processes[node].as_mut().context("it is there")?;
        process.signal(if is_stopped { Signal::STOP } else { Signal::CONT })?;
        process.is_stopped = is_stopped;
        Ok(())
    }

    /// For whoever says something without being a node.
    pub fn mouth(&self) -> Sender<Heard> {
        self.heard.0.clone()
    }

    /// Keeps what was said, for [`Processes::take_said`].
    pub fn keep_said(&mut self, node: usize, line: String) {
        self.said.push((node, line));
    }

    /// What a node has said that begins like this, without that; once.
    pub fn take_said(&mut self, node: usize, beginning: &str) -> Option<String> {
        let is_it = |(of, line): &(usize, String)| *of == node && line.starts_with(beginning);
        let (_, line) = self.said.remove(self.said.iter().position(is_it)?);
        Some(line[beginning.len()..].trim().to_owned())
    }
}

/// Whoever runs nodes and hears what they say.
pub trait Hearing: Sized {
    /// They.
    fn processes(&mut self) -> &mut Processes;

    /// Takes what was said.
    ///
    /// # Errors
    /// When a node has ended by itself, or says what none says.
    fn hear(&mut self, heard: Heard) -> Result<()>;

    /// Listens for a while.
    ///
    /// # Errors
    /// When a node has ended by itself.
    fn listen(&mut self, time: Duration) -> Result<()> {
        let deadline = Instant::now() + time;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.processes().heard.1.recv_timeout(left) {
                Ok(heard) => self.hear(heard)?,
                Err(RecvTimeoutError::Timeout) => return Ok(()),
                Err(RecvTimeoutError::Disconnected) => bail!("the operator's own end is open"),
            }
        }
    }

    /// Waits until something is so.
    ///
    /// # Errors
    /// When it is not, within the limit.
    fn wait(
        &mut self,
        what: &str,
        limit: Duration,
        mut is_so: impl FnMut(&mut Self) -> bool,
    ) -> Result<()> {
        let deadline = Instant::now() + limit;
        while !is_so(self) {
            if Instant::now() >= deadline {
                bail!("not within {limit:?}: {what}");
            }
            self.listen(LOOK)?;
        }
        Ok(())
    }

    /// Everything that a process said before its end.
    ///
    /// # Errors
    /// When its pipe does not end.
    fn hear_out(&mut self, node: usize, life: u64) -> Result<()> {
        loop {
            let heard = self.processes().heard.1.recv_timeout(PROCESS_LIMIT);
            let heard = heard.context("the end of a pipe")?;
            if heard.node == node && heard.life == life && heard.line.is_none() {
                return Ok(());
            }
            self.hear(heard)?;
        }
    }

    /// Waits until these nodes say that they are up.
    ///
    /// # Errors
    /// When one does not.
    fn wait_up(&mut self, mut nodes: Vec<usize>) -> Result<()> {
        self.wait("nodes that start", PROCESS_LIMIT, |own| {
            nodes.retain(|node| own.processes().take_said(*node, "up").is_none());
            nodes.is_empty()
        })
    }

    /// Ends a node without warning, if it is there. What it said before is heard.
    ///
    /// # Errors
    /// When it does not end.
    fn end(&mut self, node: usize) -> Result<()> {
        let processes = self.processes();
        let Some(mut process) = processes.processes[node].take() else { return Ok(()) };
        processes.memory_kib_max = processes.memory_kib_max.max(process.memory_kib_max()?);
        process.signal(Signal::KILL)?;
        process.end(PROCESS_LIMIT)?;
        self.hear_out(node, process.life)
    }

    /// Ends all nodes in order.
    ///
    /// # Errors
    /// When one does not end, or not well.
    fn close_all(&mut self) -> Result<()> {
        for node in 0..NODES {
            let processes = self.processes();
            let mut process = processes.processes[node].take().context("all are there")?;
            processes.memory_kib_max = processes.memory_kib_max.max(process.memory_kib_max()?);
            process.tell("close");
            let status = process.end(PROCESS_LIMIT)?;
            self.hear_out(node, process.life)?;
            if !status.success() {
                bail!("node {node} has ended with {status}");
            }
        }
        Ok(())
    }
}
