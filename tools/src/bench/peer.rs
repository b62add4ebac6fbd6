//! Processes beside a measurement: followers, and writers that do a follower's work unconnected.
//! They take commands line by line, answer each with a line, and die with this process.

mod child;

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use ringwal_replication::config::{Config, Member};
use ringwal_replication::node_id::{ClusterId, NodeId};
use rustix::process::{Pid, Signal, kill_process};

use super::settings::Settings;
use crate::cli;
use crate::interrupt::Interrupt;

pub use child::run;

/// What a leader keeps for a follower, of a disk that they share.
const RETAIN_BYTES_MAX: u64 = 128 << 20;
/// A process that takes longer to start or to answer has a problem of its own.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks for an interruption.
const LOOK: Duration = Duration::from_millis(50);

/// The configuration of a follower. It dials nobody, so that it needs no addresses.
pub fn follower(node: u64, members: u64, listen: &str) -> Config {
    let members = (1..=members).map(|node| member(node, format!("127.0.0.1:{node}"))).collect();
    configuration(node, members, listen)
}

/// The configuration of a leader, which is node 1, of followers at these addresses.
pub fn leader(followers: &[String]) -> Config {
    let own = std::iter::once(member(1, "127.0.0.1:1".to_owned()));
    let others = (2..).zip(followers).map(|(node, address)| member(node, address.clone()));
    configuration(1, own.chain(others).collect(), "127.0.0.1:0")
}

fn member(node: u64, address: String) -> Member {
    Member { node: NodeId::new(node), address }
}

fn configuration(node: u64, members: Vec<Member>, listen: &str) -> Config {
    let cluster = ClusterId::new(*b"ringwal bench me");
    let mut config = Config::new(cluster, NodeId::new(node), members);
    config.listen = listen.to_owned();
    config.retain_bytes_max = RETAIN_BYTES_MAX;
    config
}

/// An address that is free now, for a follower that is started more than once.
pub fn free_address() -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").context("looking for a free port")?;
    Ok(listener.local_addr().context("looking for a free port")?.to_string())
}

/// What a process is for.
#[derive(Debug, Clone)]
pub enum Part {
    /// A node that follows.
    Follower {
        /// Which one.
        node: u64,
        /// Nodes of the cluster.
        members: u64,
        /// Where it listens.
        listen: String,
        /// It says when it has so many records.
        await_records: Option<u64>,
    },
    /// An engine that is told what to write.
    Writer,
}

/// What the engine of a process has counted.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    /// Group commits.
    pub batches: u64,
    /// Records in them.
    pub records: u64,
    /// Bytes written to segments.
    pub written_bytes: u64,
}

impl Counts {
    /// What has been counted since.
    pub fn since(self, before: Counts) -> Counts {
        Counts {
            batches: self.batches.saturating_sub(before.batches),
            records: self.records.saturating_sub(before.records),
            written_bytes: self.written_bytes.saturating_sub(before.written_bytes),
        }
    }
}

/// A process. Dropping it kills it, whatever it does: also when it is stopped.
#[derive(Debug)]
pub struct Peer {
    child: Child,
    stdin: ChildStdin,
    lines: Receiver<String>,
    interrupt: Interrupt,
    /// Where it listens, if it does.
    pub address: String,
}

impl Peer {
    /// Starts one, and waits until its engine is open. It dies with the thread that calls this.
    pub fn start(
        settings: &Settings,
        interrupt: &Interrupt,
        directory: &Path,
        segment_bytes: u64,
        part: &Part,
    ) -> Result<Peer> {
        let program = std::env::current_exe().context("the path of this program")?;
        let mut command = Command::new(program);
        command
            .arg("bench-peer")
            .args(["--parent", &std::process::id().to_string()])
            .arg("--dir")
            .arg(directory)
            .args(["--shards", &settings.shards.to_string()])
            .args(["--segment-bytes", &segment_bytes.to_string()])
            .args(["--io", &cli::name_of(&settings.io[0])])
            .args(["--streams", &settings.clients.to_string()])
            .args(["--record-bytes", &settings.record_bytes.to_string()])
            .args(["--seed", &settings.seed.to_string()]);
        if let Some(sync) = &settings.sync {
            command.args(["--sync", &cli::name_of(sync)]);
        }
        if let Part::Follower { node, members, listen, await_records } = part {
            command
                .args(["--node", &node.to_string()])
                .args(["--members", &members.to_string()])
                .args(["--listen", listen]);
            if let Some(records) = await_records {
                command.args(["--await-records", &records.to_string()]);
            }
        }
        Peer::spawn(command, interrupt)
    }

    /// Starts the process of a command, and waits for its first line: where it listens. It dies with the
    /// thread that calls this.
    pub fn spawn(mut command: Command, interrupt: &Interrupt) -> Result<Peer> {
        // A group of its own: Ctrl-C is for this process, which ends its peers in order.
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("starting a process beside the measurement")?;
        let stdin = child.stdin.take().context("the input of a process")?;
        let stdout = child.stdout.take().context("the output of a process")?;
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let mut peer =
            Peer { child, stdin, lines, interrupt: interrupt.clone(), address: String::new() };
        if let Some(address) = peer.line(PATIENCE)? {
            peer.address = address;
        }
        Ok(peer)
    }

    /// Its next line; `None` when the measurement is interrupted before.
    pub fn line(&mut self, patience: Duration) -> Result<Option<String>> {
        let start = Instant::now();
        while start.elapsed() < patience {
            match self.lines.recv_timeout(LOOK) {
                Ok(line) => return Ok(Some(line)),
                Err(RecvTimeoutError::Timeout) if self.interrupt.is_asked() => return Ok(None),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.child.wait().context("a process beside the measurement")?;
                    bail!("a process beside the measurement ended with {status}");
                }
            }
        }
        bail!("a process beside the measurement has said nothing for {patience:?}")
    }

    /// Its answer to a command; nothing when the measurement is interrupted before.
    pub fn ask(&mut self, command: &str) -> Result<String> {
        self.tell(command)?;
        self.answer()
    }

    /// Gives it a command; its answer is to be taken before the next one.
    pub fn tell(&mut self, command: &str) -> Result<()> {
        writeln!(self.stdin, "{command}").context("a command for a process")
    }

    /// Its answer to the last command; nothing when the measurement is interrupted before.
    pub fn answer(&mut self) -> Result<String> {
        Ok(self.line(PATIENCE)?.unwrap_or_default())
    }

    /// What its engine has counted.
    pub fn counts(&mut self) -> Result<Counts> {
        let answer = self.ask("counts")?;
        let numbers: Vec<u64> = answer.split(' ').map_while(|text| text.parse().ok()).collect();
        match numbers[..] {
            [batches, records, written_bytes] => Ok(Counts { batches, records, written_bytes }),
            _ if self.interrupt.is_asked() => Ok(Counts::default()),
            _ => bail!("a process beside the measurement has counted {answer:?}"),
        }
    }

    /// Stops it, or has it go on.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(Pid::from_child(&self.child), signal).context("a signal for a process")
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
