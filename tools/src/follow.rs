//! `ringwal follow`: a node that follows whoever leads, until it is told to stop.

use std::io::{self, IsTerminal as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

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

/// Between two lines about how far it is behind.
const LAG: Duration = Duration::from_secs(1);

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
    let mut lines = Lines::new(args.json);
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
        lines.lag(&now)?;
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
    /// Standard error is a terminal, which has a line that says how far this node is behind.
    shows_lag: bool,
    is_shown: bool,
    /// When the lag was said last, and what.
    said: Option<(Instant, u64)>,
}

impl Lines {
    fn new(json: bool) -> Self {
        Self { json, shows_lag: io::stderr().is_terminal(), is_shown: false, said: None }
    }

    /// How far it is behind what the leader says is committed: once a second, in place on a terminal,
    /// and as JSON when that has changed.
    fn lag(&mut self, now: &NodeStats) -> Result<()> {
        let (Some(following), Role::Following { leader, .. }) = (now.following, now.role) else {
            self.said = None;
            return Ok(());
        };
        if self.said.is_some_and(|(when, _)| when.elapsed() < LAG) {
            return Ok(());
        }
        let before = self.said.replace((Instant::now(), following.lag_records));
        let (records, silent) = (following.lag_records, following.silence.as_secs_f64());
        if self.json {
            let is_new = before.is_none_or(|(_, before)| before != records);
            let json = json!({"event": "lag", "records": records, "silent_seconds": silent});
            return if is_new { exit::print(&format!("{json}\n")) } else { Ok(()) };
        }
        if self.shows_lag {
            let text = lag_line(leader, records, silent);
            self.is_shown = write!(io::stderr().lock(), "\r{text}\x1b[K").is_ok();
        }
        Ok(())
    }

    fn put(&mut self, text: String, json: Value) -> Result<()> {
        if std::mem::take(&mut self.is_shown) {
            let _ = write!(io::stderr().lock(), "\r\x1b[K");
        }
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

fn lag_line(leader: NodeId, records: u64, silent: f64) -> String {
    let behind = match records {
        0 => "in step with what is committed".to_owned(),
        records => format!("{records} committed records behind"),
    };
    format!("{behind}, heard of node {leader} {silent:.1} s ago")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_how_far_it_is_behind() {
        let line = |records| lag_line(NodeId::new(1), records, 0.04);
        assert_eq!(line(0), "in step with what is committed, heard of node 1 0.0 s ago");
        assert_eq!(line(7), "7 committed records behind, heard of node 1 0.0 s ago");
    }
}
