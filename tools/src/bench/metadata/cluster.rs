//! The nodes: this process is the first one, the others are processes of their own.

use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use hdrhistogram::Histogram;
use ringwal_raft_fallback::Mode;
use ringwal_raft_fallback::command::BrokerId;
use ringwal_replication::node_id::NodeId;

use super::super::Bench;
use super::super::data::SideDirectory;
use super::super::peer::{self, Peer};
use super::super::settings::Settings;
use super::local::LocalNode;
use crate::cli;
use crate::interrupt::Interrupt;
use crate::probe::histogram;

/// How long a change of the cluster may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(2);

/// See the module.
pub struct Cluster {
    pub node: LocalNode,
    /// From node 2 on.
    peers: Mutex<Vec<Option<Peer>>>,
    settings: Settings,
    interrupt: Interrupt,
    addresses: Vec<String>,
    directories: Vec<SideDirectory>,
}

impl Cluster {
    /// Starts all of them, and has this one lead; `None` when interrupted before.
    pub fn start(bench: &Bench) -> Result<Option<Cluster>> {
        let settings = &bench.settings;
        let nodes = settings.nodes;
        let mut addresses: Vec<String> = Vec::new();
        while addresses.len() < nodes as usize {
            let address = peer::free_address()?;
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        let directories: Vec<SideDirectory> =
            (1..=nodes).map(|node| bench.data.side(&format!("node-{node}"))).collect();
        let io = settings.io[0];
        let options = settings.options(io);
        let node = LocalNode::start(options, directories[0].path(), 1, &addresses)?;
        let cluster = Cluster {
            node,
            peers: Mutex::new((2..=nodes).map(|_| None).collect()),
            settings: settings.clone(),
            interrupt: bench.interrupt.clone(),
            addresses,
            directories,
        };
        (2..=nodes).try_for_each(|node| cluster.start_peer(node))?;
        cluster
            .wait_until("somebody leads", |cluster| cluster.node.store.status().leader.is_some())?;
        cluster.lead(1)?;
        if cluster.interrupt.is_asked() {
            return Ok(None);
        }
        let broker = cluster.node.store.register_broker(BrokerId::new(1), vec!["one:1".to_owned()]);
        broker.wait().context("registering a broker")?;
        Ok(Some(cluster))
    }

    /// Starts the process of a node.
    pub fn start_peer(&self, node: u64) -> Result<()> {
        let program = std::env::current_exe().context("the path of this program")?;
        let mut command = Command::new(program);
        command
            .arg("bench-node")
            .args(["--parent", &std::process::id().to_string()])
            .arg("--dir")
            .arg(self.directories[node as usize - 1].path())
            .args(["--shards", &self.settings.shards.to_string()])
            .args(["--io", &cli::name_of(&self.settings.io[0])])
            .args(["--node", &node.to_string()])
            .args(["--members", &self.addresses.join(",")]);
        if let Some(sync) = &self.settings.sync {
            command.args(["--sync", &cli::name_of(sync)]);
        }
        let peer = Peer::spawn(command, &self.interrupt)?;
        self.peers()[node as usize - 2] = Some(peer);
        Ok(())
    }

    fn peers(&self) -> MutexGuard<'_, Vec<Option<Peer>>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Kills a process: SIGKILL.
    pub fn kill(&self, node: u64) {
        let peer = self.peers()[node as usize - 2].take();
        drop(peer);
    }

    /// How many there are beside this one.
    pub fn followers(&self) -> usize {
        self.addresses.len() - 1
    }

    /// The answer of one process.
    pub fn ask(&self, node: u64, command: &str) -> Result<String> {
        match &mut self.peers()[node as usize - 2] {
            Some(peer) => peer.ask(command),
            None => bail!("node {node} does not run"),
        }
    }

    /// The answers of all processes, which do it at once; `meanwhile` is done here.
    pub fn ask_all<T>(
        &self,
        command: &str,
        meanwhile: impl FnOnce() -> Result<T>,
    ) -> Result<(Vec<String>, T)> {
        let mut peers = self.peers();
        peers.iter_mut().flatten().try_for_each(|peer| peer.tell(command))?;
        let here = meanwhile()?;
        let answers = peers.iter_mut().flatten().map(Peer::answer).collect::<Result<_>>()?;
        Ok((answers, here))
    }

    /// Waits; returns at once when interrupted.
    pub fn wait_until(&self, what: &str, is_so: impl Fn(&Cluster) -> bool) -> Result<()> {
        let start = Instant::now();
        while !is_so(self) && !self.interrupt.is_asked() {
            if start.elapsed() > PATIENCE {
                let status = self.node.store.status();
                bail!("{what}: not within {PATIENCE:?}; node 1: {status:?}");
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Has a node lead, on the fast path.
    pub fn lead(&self, node: u64) -> Result<()> {
        let wanted = Some(NodeId::new(node));
        let start = Instant::now();
        while self.node.store.status().leader != wanted && !self.interrupt.is_asked() {
            let status = self.node.store.status();
            // It may be refused for now: its node has just started, or is behind.
            let refused = match status.leader {
                Some(leader) if leader == status.node => {
                    let given = self.node.store.transfer_leader(wanted, Duration::from_secs(5));
                    given.wait().err().map(|error| error.to_string())
                }
                Some(leader) => Some(self.ask(leader.get(), &format!("transfer {node}"))?),
                None => None,
            };
            if start.elapsed() > PATIENCE {
                bail!("node {node} does not lead within {PATIENCE:?}: {refused:?}");
            }
            std::thread::sleep(LOOK * 10);
        }
        self.wait_until("the fast path is open", |cluster| match node {
            1 => cluster.node.store.status().mode == Mode::Fast,
            node => cluster.ask(node, "status").is_ok_and(|status| status.starts_with("fast ")),
        })
    }

    /// Switches the fast path everywhere, and waits until this node, which leads, does as it is told.
    pub fn set_fast_path(&self, is_on: bool) -> Result<()> {
        self.ask_all(&format!("fast-path {is_on}"), || {
            self.node.store.set_fast_path(is_on);
            Ok(())
        })?;
        self.wait_until("the fast path is switched", |cluster| {
            match cluster.node.store.status().mode {
                Mode::Fast => is_on,
                Mode::Raft(_) => !is_on,
                _ => false,
            }
        })
    }

    /// Waits until a node has applied all that this one has.
    pub fn wait_for(&self, node: u64) -> Result<()> {
        let end = self.node.store.metadata().progress().end;
        self.wait_until("a node is in step", |cluster| {
            let status = cluster.ask(node, "status").unwrap_or_default();
            let applied = status.split(' ').nth(1).and_then(|end| end.parse().ok());
            applied.is_some_and(|applied: u64| applied >= end)
        })
    }

    /// Ends all of them, this one first: nobody is elected without a majority.
    pub fn close(self) -> Result<()> {
        let Cluster { node, peers, .. } = self;
        drop(peers);
        node.close()
    }
}

/// What a process has written with `text_of`.
pub fn histogram_of(text: &str) -> Result<Histogram<u64>> {
    let mut latency = histogram();
    for pair in text.split(' ').filter(|pair| !pair.is_empty()) {
        let (value, count) = pair.split_once(':').context("a latency with its count")?;
        latency.record_n(value.parse()?, count.parse()?)?;
    }
    Ok(latency)
}
