//! This engine, as tasks use it: all clients are futures on one thread.

use std::time::Instant;

use anyhow::Result;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use ringwal_engine::{Engine, Stream};

use super::ringwal::Ringwal;
use crate::engine::{Contender, Kind, Looped, Opened, Shared as _};
use crate::load::{Load, Recorder};

/// Appends of a client between two trims of its stream.
const TRIM_EVERY: u64 = 4096;

/// With default options.
pub fn contender() -> Contender {
    Contender {
        name: "ringwal-tasks",
        how: "as ringwal, its clients futures on one thread of a tokio runtime",
        kind: Kind::Own,
        is_looped: true,
        open: |directory, _| {
            Ok(Opened::Loop(Box::new(Tasks(Ringwal::open(directory, &Engine::options())?))))
        },
        replay: None,
    }
}

struct Tasks(Ringwal);

impl Looped for Tasks {
    fn closed_loop(&mut self, load: &Load) -> Result<Recorder> {
        let runtime = tokio::runtime::Builder::new_current_thread().build()?;
        runtime.block_on(async {
            let mut clients: FuturesUnordered<_> =
                (0..load.clients).map(|client| task(self.0.stream(), load, client)).collect();
            let mut seen = Recorder::new(load);
            while let Some(recorder) = clients.next().await {
                seen.add(&recorder?);
            }
            Ok(seen)
        })
    }

    fn flush_calls(&self) -> u64 {
        self.0.flush_calls()
    }

    fn log_bytes(&self) -> Option<u64> {
        self.0.log_bytes()
    }
}

async fn task(stream: Stream, load: &Load, client: usize) -> Result<Recorder> {
    let mut records = load.records(client);
    let mut recorder = Recorder::new(load);
    let mut now = Instant::now();
    while now < load.until {
        let start;
        let end;
        if load.batch_records == 1 {
            let record = records.next();
            start = Instant::now();
            end = stream.append(record)?.await?.offset();
        } else {
            let batch = records.next_batch();
            start = Instant::now();
            end = stream.append_batch(batch)?.await?.offsets().end;
        }
        now = Instant::now();
        recorder.record(start, now);
        if recorder.appends.is_multiple_of(TRIM_EVERY) {
            drop(stream.trim_async(end)?);
        }
    }
    Ok(recorder)
}
