//! `ringwal cluster`: nodes on this machine, as processes of their own, which end with this one.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use ringwal_replication::node_id::NodeId;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::asking::Cluster;
use super::files::{Folder, data_folder, log_file, node_file, uuid};
use crate::cli::{self, ClusterArgs};
use crate::exit::{self, Exit, Failure};
use crate::interrupt::Interrupt;

/// Between two looks at the processes.
const LOOK: Duration = Duration::from_millis(50);
/// How long a node may take to say who leads.
const ASK: Duration = Duration::from_millis(300);
/// How long nodes may take to end; then they are killed.
const ENDING: Duration = Duration::from_secs(30);
/// Lines of its log that are shown of a node that has died.
const LAST_LINES: usize = 5;

/// Runs the subcommand.
pub fn run(args: &ClusterArgs) -> Result<Exit> {
    let interrupt = Interrupt::install().context("catching signals")?;
    let folder = Folder::prepare(&args.directory, args.nodes, args.port)?;
    check_ports(&folder)?;
    let mut running = Running { children: BTreeMap::new(), json: args.json };
    running.start(&folder, args)?;
    let outcome = running.watch(&folder, &interrupt);
    running.end()?;
    outcome?;
    running.put("all nodes have ended".to_owned(), json!({"event": "closed"}))?;
    Ok(if interrupt.is_termination() { Exit::Success } else { Exit::Interrupted })
}

/// Nobody else may listen where the nodes are to.
fn check_ports(folder: &Folder) -> Result<()> {
    for (node, config) in &folder.nodes {
        let listen = &config.replication.listen;
        if let Err(error) = TcpListener::bind(listen) {
            return Err(Failure::new(
                Exit::Failure,
                format!("node {node} cannot listen at {listen}"),
            )
            .cause(error.to_string())
            .fix("stop what listens there, a cluster that runs already perhaps")
            .fix("use other ports in another folder: --port PORT --directory DIR")
            .into());
        }
    }
    Ok(())
}

/// The processes.
struct Running {
    children: BTreeMap<NodeId, Child>,
    json: bool,
}

impl Running {
    fn put(&self, text: String, json: Value) -> Result<()> {
        exit::print(&if self.json { format!("{json}\n") } else { format!("{text}\n") })
    }

    fn start(&mut self, folder: &Folder, args: &ClusterArgs) -> Result<()> {
        let (cluster, path) = (uuid(folder.cluster.cluster), folder.path.display());
        self.put(
            format!("cluster {cluster} in {path}"),
            json!({"event": "cluster", "cluster": cluster, "directory": path.to_string()}),
        )?;
        for (node, config) in &folder.nodes {
            let child = spawn(folder, *node, args)?;
            let (process, address) = (child.id(), &config.replication.listen);
            self.children.insert(*node, child);
            let (data, log) = (data_folder(*node), log_file(*node));
            self.put(
                format!(
                    "node {node} at {address}: process {process}, data in {data}, log in {log}"
                ),
                json!({
                    "event": "started", "node": node.get(), "address": address,
                    "process": process, "data": data, "log": log,
                }),
            )?;
        }
        Ok(())
    }

    /// Says who has died, and at first who leads, until a signal comes or none is left.
    fn watch(&mut self, folder: &Folder, interrupt: &Interrupt) -> Result<()> {
        let mut is_led = false;
        while !interrupt.is_asked() {
            self.reap(folder)?;
            if self.children.is_empty() {
                return Err(Failure::new(Exit::Failure, "no node runs any more")
                    .fix("see why in the logs, and run it again")
                    .into());
            }
            if !is_led {
                is_led = self.say_who_leads(folder)?;
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    fn reap(&mut self, folder: &Folder) -> Result<()> {
        let mut ended = Vec::new();
        for (node, child) in &mut self.children {
            if let Some(status) = child.try_wait().context("looking at a node's process")? {
                ended.push((*node, status));
            }
        }
        for (node, status) in ended {
            self.children.remove(&node);
            let how = how(status);
            let (file, data) = (node_file(node), data_folder(node));
            let mut text = format!(
                "node {node} {how}; to start it again: ringwal node --config {file} --directory {data}"
            );
            if status.signal().is_none() {
                for line in last_lines(folder, node) {
                    text += &format!("\n  {line}");
                }
            }
            let json = json!({
                "event": "ended", "node": node.get(), "signal": status.signal(),
                "code": status.code(),
            });
            self.put(text, json)?;
        }
        Ok(())
    }

    fn say_who_leads(&self, folder: &Folder) -> Result<bool> {
        let Ok(status) = Cluster::of(folder.cluster.clone(), ASK).status() else {
            return Ok(false);
        };
        // It leads when its epoch has begun.
        let Some(leader) = status.leader.filter(|_| status.epoch == status.term) else {
            return Ok(false);
        };
        let process = self.children.get(&NodeId::new(leader)).map(Child::id);
        let kill = match process {
            Some(process) => format!("\n  kill -9 {process}    # the leader"),
            None => String::new(),
        };
        let text = format!(
            "node {leader} leads in epoch {}\nin this folder, in another terminal:\n  \
             ringwal status\n  ringwal broker register 1 127.0.0.1:9092\n  \
             ringwal topic create orders --partitions 3\n  ringwal topic get orders{kill}\n\
             Ctrl-C ends all nodes; run again, they go on",
            status.epoch
        );
        self.put(text, json!({"event": "leader", "node": leader, "epoch": status.epoch}))?;
        Ok(true)
    }

    /// Ends every process, in order if it can be.
    fn end(&mut self) -> Result<()> {
        for child in self.children.values() {
            // One that has just died is reaped below.
            let _ = kill_process(Pid::from_child(child), Signal::TERM);
        }
        let deadline = Instant::now() + ENDING;
        while !self.children.is_empty() && Instant::now() < deadline {
            let mut ended = Vec::new();
            for (node, child) in &mut self.children {
                if child.try_wait().context("looking at a node's process")?.is_some() {
                    ended.push(*node);
                }
            }
            for node in ended {
                self.children.remove(&node);
            }
            std::thread::sleep(LOOK);
        }
        for (node, mut child) in std::mem::take(&mut self.children) {
            exit::log(&format!("node {node} does not end: killed"));
            child.kill().context("killing a node's process")?;
            child.wait().context("waiting for a node's process")?;
        }
        Ok(())
    }
}

impl Drop for Running {
    /// Whatever went wrong, nobody is left behind.
    fn drop(&mut self) {
        for child in self.children.values_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn spawn(folder: &Folder, node: NodeId, args: &ClusterArgs) -> Result<Child> {
    let log = folder.path.join(log_file(node));
    let open = File::options().create(true).append(true).open(&log);
    let log = open.with_context(|| format!("opening {}", log.display()))?;
    let program = std::env::current_exe().context("finding this program")?;
    let mut command = Command::new(program);
    command.arg("node").arg("--config").arg(node_file(node));
    command.arg("--directory").arg(data_folder(node));
    command.arg("--parent").arg(std::process::id().to_string());
    command.arg("--io").arg(cli::name_of(&args.io));
    if let Some(bytes) = args.segment_size {
        command.arg("--segment-size").arg(format!("{}B", bytes.as_u64()));
    }
    let level = args.log.map_or("info".to_owned(), |level| level.to_string());
    command.arg("--log").arg(level);
    let errors = log.try_clone().context("sharing a log")?;
    command.current_dir(&folder.path).stdin(Stdio::null()).stdout(log).stderr(errors);
    // What the terminal sends is for this process; the others are told by it.
    command.process_group(0);
    command.spawn().with_context(|| format!("starting node {node}"))
}

fn how(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(signal), _) => format!("was killed by signal {signal}"),
        (None, Some(code)) => format!("has ended with code {code}"),
        (None, None) => format!("has ended: {status}"),
    }
}

fn last_lines(folder: &Folder, node: NodeId) -> Vec<String> {
    let text = fs::read(folder.path.join(log_file(node))).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(LAST_LINES);
    lines[from..].iter().map(|line| (*line).to_owned()).collect()
}
