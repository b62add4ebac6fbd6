//! Keeps a measurement from filling the disk: drops what is durable when enough of it is there.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use ringwal_engine::{Engine, StreamSummary};
use ringwal_replication::Node;

use super::writer::FIRST_STREAM;

/// How often it looks while little is written: the shard waits for a moment when its counters are
/// copied.
const INTERVAL_SLOW: Duration = Duration::from_millis(200);
/// How often it looks while segments fill quickly. A segment takes 20 ms at 3 GB/s, and space that
/// comes back late makes the engine prepare new segments in place of used ones.
const INTERVAL_FAST: Duration = Duration::from_millis(4);
/// Sealed segments of each shard that may hold live records before they are trimmed.
const LIVE_SEGMENTS_MAX: usize = 3;
/// Bytes of live records of a stream that are trimmed without a look at the counters.
const LIVE_BYTES_MAX: u64 = 64 << 20;
/// How soon it ends when told to.
const TICK: Duration = Duration::from_millis(25);

/// Trims records of `record_bytes` until `stop` is set; those of a node by way of it, so that its
/// followers learn of it.
pub fn run(
    engine: &Engine,
    node: Option<&Node>,
    record_bytes: u64,
    stop: &AtomicBool,
) -> Result<()> {
    let mut looked = Instant::now();
    let mut quick = false;
    while !stop.load(Ordering::Relaxed) {
        let trimmed = trim(engine, node, |summary| {
            (summary.end - summary.trimmed) * record_bytes > LIVE_BYTES_MAX
        })?;
        if looked.elapsed() >= INTERVAL_SLOW {
            looked = Instant::now();
            quick = false;
            let stats = engine.stats();
            if stats.shards.iter().any(|shard| shard.segments.live > LIVE_SEGMENTS_MAX) {
                trim(engine, node, |_| true)?;
            }
        }
        quick |= trimmed > 0;
        thread::sleep(if quick { INTERVAL_FAST } else { TICK });
    }
    Ok(())
}

/// Drops what is durable now of the streams that are to be trimmed; returns how many.
fn trim(
    engine: &Engine,
    node: Option<&Node>,
    is_due: impl Fn(&StreamSummary) -> bool,
) -> Result<usize> {
    let mut trimmed = 0;
    for summary in engine.streams() {
        // Streams below the first are not the load's: they are there to be lacked by a follower.
        let is_load = summary.stream.get() >= FIRST_STREAM;
        if !is_load || summary.end <= summary.trimmed || !is_due(&summary) {
            continue;
        }
        match node {
            Some(node) => node.trim(summary.stream, summary.end),
            None => engine
                .stream(summary.stream)
                .trim(summary.end)
                .with_context(|| format!("trimming stream {}", summary.stream))?,
        }
        trimmed += 1;
    }
    Ok(trimmed)
}
