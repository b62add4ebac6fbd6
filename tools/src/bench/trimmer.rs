//! Keeps a measurement from filling the disk: drops what is durable when enough of it is there.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use ringwal_engine::{Engine, Stats};

/// How often it looks while little is written: the shard waits for a moment when its counters are
/// copied.
const INTERVAL_SLOW: Duration = Duration::from_millis(200);
/// How often it looks while segments fill quickly.
const INTERVAL_FAST: Duration = Duration::from_millis(25);
/// Sealed segments of each shard that may hold live records before they are trimmed.
const LIVE_SEGMENTS_MAX: usize = 3;
/// How soon it ends when told to.
const TICK: Duration = Duration::from_millis(25);

/// Trims until `stop` is set.
pub fn run(engine: &Engine, stop: &AtomicBool) -> Result<()> {
    let mut rotations = rotations_of(&engine.stats());
    while !stop.load(Ordering::Relaxed) {
        let stats = engine.stats();
        if stats.shards.iter().any(|shard| shard.segments.live > LIVE_SEGMENTS_MAX) {
            trim_all(engine)?;
        }
        let before = std::mem::replace(&mut rotations, rotations_of(&stats));
        let interval = if rotations > before { INTERVAL_FAST } else { INTERVAL_SLOW };
        let until = Instant::now() + interval;
        while Instant::now() < until && !stop.load(Ordering::Relaxed) {
            thread::sleep(TICK);
        }
    }
    Ok(())
}

fn rotations_of(stats: &Stats) -> u64 {
    stats.shards.iter().map(|shard| shard.rotations).sum()
}

/// Drops every record that is durable now.
fn trim_all(engine: &Engine) -> Result<()> {
    for summary in engine.streams() {
        if summary.end > summary.trimmed {
            engine
                .stream(summary.stream)
                .trim(summary.end)
                .with_context(|| format!("trimming stream {}", summary.stream))?;
        }
    }
    Ok(())
}
