//! This engine, as threads use it.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use ringwal_engine::{Engine, Io, Options, SegmentStats, Stream, StreamId, SyncMode};

use crate::checker::Checker;
use crate::engine::{Contender, Kind, Opened, Shared, Writer};

/// Streams 1 to 15 may be used by a node that embeds the engine.
pub const FIRST_STREAM: u64 = 16;

/// With default options.
pub fn contender() -> Contender {
    Contender {
        name: "ringwal",
        how: "group commit by io_uring (a plain call while nobody else comes), a write with RWF_DSYNC per batch; default options",
        kind: Kind::Own,
        is_looped: false,
        open: |directory, _| open(directory, &Engine::options()),
        replay: Some(replay),
    }
}

/// Without io_uring.
pub fn blocking() -> Contender {
    Contender {
        name: "ringwal-blocking",
        how: "the same with plain system calls of the shard's thread: io(Io::Blocking)",
        kind: Kind::OwnTuned,
        open: |directory, _| open(directory, &Engine::options().io(Io::Blocking)),
        ..contender()
    }
}

/// With a shard that looks for work before it sleeps.
pub fn spinning() -> Contender {
    Contender {
        name: "ringwal-spin",
        how: "tuned: spin(50 µs), which costs a core",
        kind: Kind::OwnTuned,
        open: |directory, _| open(directory, &Engine::options().spin(Duration::from_micros(50))),
        replay: None,
        ..contender()
    }
}

/// With more batches in flight.
pub fn four_slots() -> Contender {
    Contender {
        name: "ringwal-4-slots",
        how: "tuned: flush_slots(4)",
        kind: Kind::OwnTuned,
        open: |directory, _| open(directory, &Engine::options().flush_slots(4)),
        replay: None,
        ..contender()
    }
}

/// With a flush of its own after the write.
pub fn fdatasync() -> Contender {
    Contender {
        name: "ringwal-fdatasync",
        how: "tuned: sync(SyncMode::Fdatasync), a linked fdatasync after each write",
        kind: Kind::OwnTuned,
        open: |directory, _| open(directory, &Engine::options().sync(SyncMode::Fdatasync)),
        replay: None,
        ..contender()
    }
}

/// An open engine.
pub struct Ringwal {
    engine: Engine,
    writers: AtomicU64,
    tidied: Mutex<Vec<(Stream, u64)>>,
}

fn open(directory: &Path, options: &Options) -> Result<Opened> {
    Ok(Opened::Threads(Box::new(Ringwal::open(directory, options)?)))
}

impl Ringwal {
    /// Opens it, and waits until its first segments are written.
    pub fn open(directory: &Path, options: &Options) -> Result<Ringwal> {
        let engine = options.open(directory).context("opening the engine")?;
        wait_for_segments(|| {
            engine.stats().shards.first().map(|shard| shard.segments).unwrap_or_default()
        });
        let writers = AtomicU64::new(FIRST_STREAM);
        Ok(Ringwal { engine, writers, tidied: Mutex::default() })
    }

    /// A stream that nobody else writes to.
    pub fn stream(&self) -> Stream {
        let stream =
            self.engine.stream(StreamId::new(self.writers.fetch_add(1, Ordering::Relaxed)));
        self.tidied.lock().expect("no writer panics").push((stream.clone(), 0));
        stream
    }
}

/// The segments of a new directory are written in the background; a user's first second is not what is measured.
pub fn wait_for_segments(mut segments: impl FnMut() -> SegmentStats) {
    let patience = Instant::now() + Duration::from_secs(10);
    loop {
        let SegmentStats { prepared, reserved, .. } = segments();
        if prepared > reserved || Instant::now() > patience {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

impl Shared for Ringwal {
    fn writer(&self, _: usize) -> Result<Box<dyn Writer + Send + '_>> {
        Ok(Box::new(self.stream()))
    }

    /// Trims what was durable a tenth of a second ago.
    fn tidy(&self) -> Result<()> {
        for (stream, end) in self.tidied.lock().expect("no writer panics").iter_mut() {
            let now = stream.end();
            if *end > 0 && *end < now {
                drop(stream.trim_async(*end).context("trim")?);
            }
            *end = now;
        }
        Ok(())
    }

    fn flush_calls(&self) -> u64 {
        self.engine.stats().shards.iter().map(|shard| shard.flushes).sum()
    }

    fn log_bytes(&self) -> Option<u64> {
        Some(self.engine.stats().shards.iter().map(|shard| shard.written_bytes).sum())
    }
}

impl Writer for Stream {
    fn append(&mut self, record: &[u8]) -> Result<()> {
        Stream::append(self, record)?.wait()?;
        Ok(())
    }

    fn append_batch(&mut self, records: &[&[u8]]) -> Result<()> {
        Stream::append_batch(self, records)?.wait()?;
        Ok(())
    }
}

fn replay(directory: &Path, mut checker: Checker) -> Result<Checker> {
    let engine = Engine::options().open(directory)?;
    for record in engine.stream(StreamId::new(FIRST_STREAM)).read(..)? {
        checker.check(record?.payload())?;
    }
    Ok(checker)
}
