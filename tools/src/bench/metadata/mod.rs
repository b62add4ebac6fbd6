//! Topics made in a metadata store whose nodes are processes of their own on this disk: on the fast path
//! and through Raft, in turn; all of them probing the device at once; the death of a leader; and when
//! followers see what was answered. This process is the first node, and leads but for the fail-over.

mod child;
mod cluster;
mod failover;
mod load;
mod local;
mod visible;

use std::time::Instant;

use anyhow::{Context as _, Result};

use super::Bench;
use super::measure::{Variant, Yardstick, measure};
use crate::cli::RunName;
use crate::probe::DeviceProbe;
use crate::report::Run;

pub use child::run as child;
use cluster::Cluster;
use load::{Load, Way};

/// The runs on the fast path and what belongs to them.
pub const NAMES: [&str; 7] = [
    "replicated-create-idle",
    "replicated-create-loaded",
    "replicated-port-idle",
    "replicated-port-loaded",
    "nodes-probe",
    "replicated-visible",
    "replicated-failover",
];
/// The runs through Raft.
pub const NAMES_OF_RAFT: [&str; 2] = ["raft-create-idle", "raft-create-loaded"];
/// The file that each node probes with, and one write of it.
const PROBE_BYTES: u64 = 16 << 20;
const PROBE_WRITE_BYTES: usize = 4096;

/// Measures what was asked for of it.
pub fn run(bench: &mut Bench) -> Result<()> {
    crate::logging::start(None);
    bench.progress.show("starting nodes");
    let Some(cluster) = Cluster::start(bench)? else { return Ok(()) };
    let outcome = measure_all(bench, &cluster);
    let closed = cluster.close();
    outcome.and(closed)
}

fn measure_all(bench: &mut Bench, cluster: &Cluster) -> Result<()> {
    let is_asked = |run| bench.settings.runs.contains(&run);
    let (fast, raft) = (is_asked(RunName::Replicated), is_asked(RunName::Raft));
    let clients = bench.settings.clients;
    let mut kinds = Vec::new();
    // Those that are compared are beside each other.
    if fast {
        kinds.push((NAMES[0], Way::Fast, 1));
    }
    kinds.push((NAMES[4], Way::Probe, 1));
    if raft {
        kinds.push((NAMES_OF_RAFT[0], Way::Raft, 1));
    }
    if fast {
        kinds.push((NAMES[1], Way::Fast, clients));
    }
    if raft {
        kinds.push((NAMES_OF_RAFT[1], Way::Raft, clients));
    }
    if fast {
        kinds.extend([(NAMES[2], Way::Port, 1), (NAMES[3], Way::Port, clients)]);
    }
    let probe = DeviceProbe::prepare(bench.data.path(), PROBE_BYTES, Instant::now())
        .context("the probe's file")?;
    let load = Load::new(bench, cluster, probe);
    let description = |way: Way, clients: usize| match way {
        Way::Fast => format!("{clients} clients make topics in the leader's process, fast path"),
        Way::Raft => format!("{clients} clients make topics in the leader's process, through Raft"),
        Way::Port => format!("{clients} clients of a follower make topics, forwarded, fast path"),
        Way::Probe => "all nodes make bare 4 KiB writes durable at once".to_owned(),
    };
    let followers = cluster.followers() as u32;
    let variants = kinds.iter().map(|&(name, way, clients)| Variant {
        run: Run {
            name: name.to_owned(),
            description: description(way, clients),
            clients: clients as u64,
            in_flight: 1,
            followers: if way == Way::Probe { 0 } else { followers },
            ack: match way {
                Way::Fast | Way::Port => "local".to_owned(),
                Way::Raft => "quorum".to_owned(),
                Way::Probe => String::new(),
            },
            ..Run::default()
        },
        // Counted by the load; nothing of a metadata stream is trimmed but behind snapshots.
        engine: None,
        node: None,
        yardstick: Yardstick::Slice,
        work: Box::new({
            let load = &load;
            move |part| load.work(part, name, way, clients)
        }),
    });
    let mut measured = measure(bench, variants.collect())?;
    for one in &mut measured {
        one.run.extra.extend(load.extra_of(&one.run.name));
    }
    bench.keep_all(measured);
    if !fast || bench.interrupt.is_asked() {
        return Ok(());
    }
    visible::run(bench, cluster)?;
    failover::run(bench, cluster)
}
