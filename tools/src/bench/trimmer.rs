//! Keeps a measurement from filling the disk: drops what is durable when enough of it is there.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use ringwal_engine::Engine;

/// How often it looks.
const INTERVAL: Duration = Duration::from_millis(50);
/// Sealed segments of each shard that may hold live records before they are trimmed.
const LIVE_SEGMENTS_MAX: usize = 3;

/// Trims until `stop` is set.
pub fn run(engine: &Engine, stop: &AtomicBool) -> Result<()> {
    while !stop.load(Ordering::Relaxed) {
        if engine.stats().shards.iter().any(|shard| shard.segments.live > LIVE_SEGMENTS_MAX) {
            trim_all(engine)?;
        }
        thread::sleep(INTERVAL);
    }
    Ok(())
}

/// Drops every record that is durable now.
pub fn trim_all(engine: &Engine) -> Result<()> {
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
