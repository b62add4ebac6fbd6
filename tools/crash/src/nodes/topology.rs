//! The network of the nodes: a namespace each, joined by a bridge in a namespace of the test. All of
//! it is bound to this process: nothing has a name, and nothing is left behind however it ends.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::block::system::leave_network;

/// Number of nodes.
pub const NODES: usize = 3;
/// The test's own address.
const ROUTER: &str = "10.77.0.100/24";
/// What a slow node gets, and how much of it at once.
const SLOW: [&str; 6] = ["rate", "512kbit", "burst", "16kb", "latency", "100ms"];

/// Ways to disturb what passes the bridge. Nodes are counted from 0.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Disturbance {
    /// Nothing from or to a node.
    Cut(usize),
    /// Nothing between two nodes.
    CutBetween(usize, usize),
    /// Nothing from the first to the second.
    OneWay(usize, usize),
    /// Thirty of a hundred packets from or to a node are lost.
    Loss(usize),
}

/// See the module. The thread that makes it is in its namespace until it ends.
#[derive(Debug)]
pub struct Topology {
    router: File,
    nodes: Vec<File>,
    slow: Vec<usize>,
}

/// The address of a node.
pub fn address(node: usize) -> String {
    format!("10.77.0.{}", node + 1)
}

/// Why this machine cannot run it, if so.
pub fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("namespaces need root".into());
    }
    for (program, package) in [("ip", "iproute2"), ("tc", "iproute2"), ("nft", "nftables")] {
        if run(program, &["-V"]).is_err() {
            return Some(format!("no {program}: install {package}"));
        }
    }
    None
}

fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new("timeout").args(["10", program]).args(arguments).output();
    let output = output.with_context(|| format!("starting {program}"))?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        bail!("{program} {}: {why}", arguments.join(" "));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn namespace() -> Result<File> {
    File::open("/proc/thread-self/ns/net").context("the network namespace of a thread")
}

fn path(namespace: &File) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), namespace.as_raw_fd())
}

impl Topology {
    /// Makes all of it, and moves this thread there.
    ///
    /// # Errors
    /// Where the kernel lacks something.
    pub fn enter() -> Result<Topology> {
        leave_network()?;
        let router = namespace()?;
        run("ip", &["link", "add", "middle", "type", "bridge"])?;
        // Whoever is in here reaches all nodes, also those that are cut off from each other.
        run("ip", &["address", "add", ROUTER, "dev", "middle"])?;
        run("ip", &["link", "set", "middle", "up"])?;
        let mut nodes = Vec::new();
        for node in 0..NODES {
            leave_network()?;
            nodes.push(namespace()?);
            let (port, own) = (format!("node{node}"), format!("{}/24", address(node)));
            let peer = ["peer", "name", &port, "netns", &path(&router)];
            run("ip", &[&["link", "add", "out", "type", "veth"], &peer[..]].concat())?;
            run("ip", &["link", "set", "lo", "up"])?;
            run("ip", &["address", "add", &own, "dev", "out"])?;
            run("ip", &["link", "set", "out", "up"])?;
            enter(&router)?;
            run("ip", &["link", "set", &port, "master", "middle", "up"])?;
        }
        let mut topology = Topology { router, nodes, slow: Vec::new() };
        topology.disturb(&[])?;
        // Everything that will be asked of the kernel, once.
        topology.disturb(&[Disturbance::Loss(0)])?;
        topology.slow(0)?;
        topology.heal()?;
        Ok(topology)
    }

    /// Runs something in the namespace of a node: what it starts stays there.
    ///
    /// # Errors
    /// Those of `what`, and of the kernel.
    pub fn within<T>(&self, node: usize, what: impl FnOnce() -> Result<T>) -> Result<T> {
        enter(&self.nodes[node])?;
        let outcome = what();
        enter(&self.router)?;
        outcome
    }

    /// These disturbances, and no others, from now on: packets that have passed are on their way,
    /// none passes after.
    ///
    /// # Errors
    /// What nft says.
    pub fn disturb(&self, disturbances: &[Disturbance]) -> Result<()> {
        let mut script = String::from(
            "table bridge faults { chain forward { type filter hook forward priority 0; }; }\n\
             flush chain bridge faults forward\n",
        );
        for disturbance in disturbances {
            for what in rules(*disturbance) {
                script += &format!("add rule bridge faults forward {what} counter drop\n");
            }
        }
        let nft = Command::new("timeout")
            .args(["10", "nft", "-f", "-"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut nft = nft.context("starting nft")?;
        nft.stdin.take().context("its input")?.write_all(script.as_bytes())?;
        let output = nft.wait_with_output()?;
        if !output.status.success() {
            bail!("nft: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }

    /// Packets that the present disturbances have dropped.
    ///
    /// # Errors
    /// What nft says.
    pub fn dropped(&self) -> Result<u64> {
        let list = run("nft", &["list", "chain", "bridge", "faults", "forward"])?;
        let counts = list.split("packets ").skip(1);
        Ok(counts.filter_map(|rest| rest.split(' ').next()?.parse::<u64>().ok()).sum())
    }

    /// Little reaches a node from now on.
    ///
    /// # Errors
    /// What tc says.
    pub fn slow(&mut self, node: usize) -> Result<()> {
        let port = format!("node{node}");
        run("tc", &[&["qdisc", "add", "dev", &port, "root", "tbf"], &SLOW[..]].concat())?;
        self.slow.push(node);
        Ok(())
    }

    /// As it was.
    ///
    /// # Errors
    /// What the tools say.
    pub fn heal(&mut self) -> Result<()> {
        for node in std::mem::take(&mut self.slow) {
            run("tc", &["qdisc", "del", "dev", &format!("node{node}"), "root"])?;
        }
        self.disturb(&[])
    }
}

fn enter(namespace: &File) -> Result<()> {
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
        .context("entering a network namespace")
}

fn rules(disturbance: Disturbance) -> Vec<String> {
    let between = |from, to| format!("ip saddr {} ip daddr {}", address(from), address(to));
    let both = |node, more: &str| {
        ["saddr", "daddr"].map(|side| format!("ip {side} {}{more}", address(node))).to_vec()
    };
    match disturbance {
        Disturbance::Cut(node) => both(node, ""),
        Disturbance::CutBetween(one, other) => vec![between(one, other), between(other, one)],
        Disturbance::OneWay(from, to) => vec![between(from, to)],
        Disturbance::Loss(node) => both(node, " numgen random mod 100 < 30"),
    }
}
