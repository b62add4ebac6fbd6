//! `ringwal follow`: a node that follows whoever leads, until it is told to stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use ringwal_engine::Engine;
use ringwal_replication::Node;
use ringwal_replication::node_id::NodeId;
use ringwal_replication::stats::{NodeStats, Role};
use serde_json::{Value, json};
use signal_hook::consts::SIGUSR1;

use crate::bench::engine_options;
use crate::cli::FollowArgs;
use crate::exit::{self, Exit, Failure};
use crate::interrupt::Interrupt;
use crate::{logging, nodes};

/// Between two looks at what the node does; its own picture is a tenth of a second old at most.
const LOOK: Duration = Duration::from_millis(50);
/// Looks between two at whether the engine still writes: that takes a moment of the shard.
const LOOKS_PER_HEALTH: u32 = 20;

/// Runs the subcommand.
pub fn run(args: &FollowArgs) -> Result<Exit> {
    logging::start(args.log);
    let interrupt = Interrupt::install().context("catching signals")?;
    let metrics = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(SIGUSR1, metrics.clone()).context("catching SIGUSR1")?;
    let config = nodes::read_config(&args.config)?;
    let me = config.node;
    let engine = open(args)?;
    let node = nodes::start(engine.clone(), config)?;
    let mut lines = Lines { json: args.json };
    let outcome = lines
        .started(&node, me, args)
        .and_then(|()| watch(&node, &engine, &interrupt, &metrics, &mut lines));
    // Whatever ended it: what has come is made durable before it ends.
    node.close();
    engine.close().context("closing the engine")?;
    outcome?;
    lines.put("closed".to_owned(), json!({"event": "closed"}))?;
    Ok(if interrupt.is_termination() { Exit::Success } else { Exit::Interrupted })
}

fn open(args: &FollowArgs) -> Result<Engine> {
    let options = engine_options(args.io, args.sync).shards(args.shards);
    let mut options = options.lock_wait(nodes::LOCK_WAIT);
    if let Some(bytes) = args.segment_size {
        options = options.segment_bytes(bytes.as_u64());
    }
    options.open(&args.directory).map_err(|error| Failure::open(&error).into())
}

/// Says what changes until a signal comes, or the engine can write no more.
fn watch(
    node: &Node,
    engine: &Engine,
    interrupt: &Interrupt,
    metrics: &AtomicBool,
    lines: &mut Lines,
) -> Result<()> {
    let mut before = NodeStats::default();
    let mut looks = 0;
    while !interrupt.is_asked() {
        if metrics.swap(false, Ordering::Relaxed) {
            exit::print(&node.stats().prometheus())?;
        }
        let now = node.stats();
        lines.changes(&before, &now)?;
        before = now;
        looks += 1;
        if looks % LOOKS_PER_HEALTH == 0 {
            check_health(engine)?;
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}

fn check_health(engine: &Engine) -> Result<()> {
    let shards = engine.stats().shards;
    match shards.iter().enumerate().find_map(|(index, s)| Some((index, s.poisoned.as_ref()?))) {
        None => Ok(()),
        Some((shard, cause)) => {
            Err(Failure::new(Exit::Failure, format!("shard {shard} writes no more"))
                .cause(cause)
                .fix("see to the device, run ringwal verify, and start this node again")
                .into())
        }
    }
}

/// A line for each change: for people, or as JSON.
struct Lines {
    json: bool,
}

impl Lines {
    fn put(&mut self, text: String, json: Value) -> Result<()> {
        exit::print(&if self.json { format!("{json}\n") } else { format!("{text}\n") })
    }

    fn started(&mut self, node: &Node, me: NodeId, args: &FollowArgs) -> Result<()> {
        let address = node.address();
        let engine: String = node.engine().id().iter().map(|byte| format!("{byte:02x}")).collect();
        let directory = args.directory.display().to_string();
        self.put(
            format!("node {me} listens at {address}, engine {engine} in {directory}"),
            json!({
                "event": "started", "node": me.get(), "address": address.to_string(),
                "engine": engine, "directory": directory,
            }),
        )
    }

    fn changes(&mut self, before: &NodeStats, now: &NodeStats) -> Result<()> {
        if before.role != now.role {
            if let Role::Following { epoch, leader } = before.role {
                self.put(
                    format!("lost node {leader} of epoch {epoch}"),
                    json!({"event": "lost", "leader": leader.get(), "epoch": epoch}),
                )?;
            }
            if let Role::Following { epoch, leader } = now.role {
                self.put(
                    format!("following node {leader} in epoch {epoch}"),
                    json!({"event": "following", "leader": leader.get(), "epoch": epoch}),
                )?;
            }
        }
        let cut = now.records_cut - before.records_cut;
        if cut > 0 {
            self.put(
                format!(
                    "cut {cut} records that the leader's history does not have; kept in orphans/"
                ),
                json!({"event": "cut", "records": cut}),
            )?;
        }
        let anew = now.begun_anew - before.begun_anew;
        if anew > 0 {
            self.put(
                format!("began {anew} streams anew, whose beginning the leader has trimmed"),
                json!({"event": "begun_anew", "streams": anew}),
            )?;
        }
        for (reason, count) in &now.refused {
            let known = before.refused.iter().find(|(name, _)| name == reason);
            let more = count - known.map_or(0, |(_, count)| *count);
            if more > 0 {
                self.put(
                    format!("refused a node that wanted to lead: {reason}"),
                    json!({"event": "refused", "reason": reason, "count": more}),
                )?;
            }
        }
        Ok(())
    }
}
