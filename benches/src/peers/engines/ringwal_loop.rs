//! This engine in the caller's own loop: no thread but the caller's, which serves all clients.

use std::collections::VecDeque;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use ringwal_engine::{Append, AppendBatch, Engine, Shard, StreamId};

use super::ringwal::{FIRST_STREAM, wait_for_segments};
use crate::engine::{Contender, Kind, Looped, Opened};
use crate::load::{Load, Recorder};

/// Records between two trims.
const TRIM_EVERY: u64 = 1 << 17;

/// With default options.
pub fn contender() -> Contender {
    Contender {
        name: "ringwal-loop",
        how: "as ringwal, the shard turned by the caller's own loop: no hop between threads",
        kind: Kind::Own,
        is_looped: true,
        open: |directory, _| Ok(Opened::Loop(Box::new(OwnLoop::open(directory)?))),
        replay: None,
    }
}

struct OwnLoop(Shard);

/// An append that a client waits for.
enum Waiting {
    One(Append),
    Batch(AppendBatch),
}

impl OwnLoop {
    fn open(directory: &Path) -> Result<OwnLoop> {
        let mut shard = Engine::options().open_shard(directory)?;
        let mut outcome = Ok(0);
        wait_for_segments(|| {
            outcome = shard.run_once(Some(Duration::from_millis(1)));
            shard.stats().segments
        });
        outcome?;
        Ok(OwnLoop(shard))
    }
}

impl Waiting {
    /// The offset after it, once it is durable.
    fn end(&self) -> Result<Option<u64>> {
        Ok(match self {
            Waiting::One(append) => append.try_receipt().transpose()?.map(|r| r.offset() + 1),
            Waiting::Batch(batch) => batch.try_receipt().transpose()?.map(|r| r.offsets().end),
        })
    }
}

impl Looped for OwnLoop {
    fn closed_loop(&mut self, load: &Load) -> Result<Recorder> {
        let shard = &mut self.0;
        let stream = StreamId::new(FIRST_STREAM);
        let mut records = load.records(0);
        let mut recorder = Recorder::new(load);
        // In the order of the stream, in which they become durable too.
        let mut waiting: VecDeque<(Instant, Waiting)> = VecDeque::with_capacity(load.clients);
        let mut trimmed = 0;
        let mut now = Instant::now();
        while now < load.until || !waiting.is_empty() {
            while now < load.until && waiting.len() < load.clients {
                let token = if load.batch_records == 1 {
                    let record = records.next();
                    now = Instant::now();
                    Waiting::One(shard.append(stream, record)?)
                } else {
                    let batch = records.next_batch();
                    now = Instant::now();
                    Waiting::Batch(shard.append_batch(stream, &batch)?)
                };
                waiting.push_back((now, token));
            }
            // Something waits: there is nothing else to do.
            shard.run_once(None)?;
            now = Instant::now();
            while let Some((start, token)) = waiting.front() {
                let Some(end) = token.end()? else { break };
                recorder.record(*start, now);
                waiting.pop_front();
                if end >= trimmed + TRIM_EVERY {
                    trimmed = end;
                    drop(shard.trim(stream, end).map_err(|error| anyhow!("trim: {error}"))?);
                }
            }
        }
        Ok(recorder)
    }

    fn flush_calls(&self) -> u64 {
        self.0.stats().flushes
    }

    fn log_bytes(&self) -> Option<u64> {
        Some(self.0.stats().written_bytes)
    }
}
