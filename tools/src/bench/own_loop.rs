//! One client without a thread hop: a shard driven by the caller's own loop.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use ringwal_engine::{Options, Receipt, Shard, StreamId};

use super::counters::Counters;
use super::measure::{Part, Tally, Variant, Yardstick, measure};
use super::writer::FIRST_STREAM;
use super::{Bench, PREPARING_MAX, has_prepared};
use crate::exit::Failure;
use crate::payload::Records;
use crate::report::Run;

/// How long the loop may sleep while segments are prepared.
const TURN: Duration = Duration::from_millis(1);

/// Measures it.
pub fn run(bench: &mut Bench) -> Result<()> {
    let mut variants = Vec::new();
    for &io in &bench.settings.io {
        let suffix = bench.settings.suffix(io);
        let caller = Caller {
            options: bench.settings.options(io).shards(1),
            seed: bench.settings.seed,
            record_bytes: bench.settings.record_bytes,
        };
        let directory = bench.data.side(&format!("own-loop{suffix}"));
        variants.push(Variant {
            run: Run {
                name: format!("own-loop{suffix}"),
                description: "1 client that drives the shard itself".to_owned(),
                clients: 1,
                in_flight: 1,
                record_bytes: caller.record_bytes as u64,
                ..Run::default()
            },
            engine: None,
            node: None,
            yardstick: Yardstick::Slice,
            // Nothing is trimmed here; every part begins with an empty directory instead.
            work: Box::new(move |part| {
                directory.clear()?;
                let tally = caller.work(directory.path(), part);
                tally.and_then(|tally| directory.clear().map(|()| tally))
            }),
        });
    }
    let measured = measure(bench, variants)?;
    bench.keep_all(measured);
    Ok(())
}

struct Caller {
    options: Options,
    seed: u64,
    record_bytes: usize,
}

impl Caller {
    fn work(&self, directory: &Path, part: &Part<'_>) -> Result<Tally> {
        let mut shard =
            self.options.clone().open_shard(directory).map_err(|error| Failure::open(&error))?;
        let stream = StreamId::new(FIRST_STREAM);
        let mut records = Records::new(self.seed, FIRST_STREAM, self.record_bytes, 1);
        // The segments of a new directory are written first: that is not what is measured here.
        let patience = Instant::now() + PREPARING_MAX;
        while !has_prepared(&shard.stats().segments) && Instant::now() < patience {
            shard.run_once(Some(TURN)).context("preparing segments")?;
        }
        let mut recorder = part.recorder(0, 1);
        let window = part.begin();
        let mut before = None;
        let mut now = Instant::now();
        let mut offset = 0;
        while !part.is_over(now) {
            if before.is_none() && now >= window.from {
                before = Some(counters(&shard));
            }
            let record = records.make(offset);
            offset += 1;
            let start = Instant::now();
            append_durably(&mut shard, stream, record)?;
            now = Instant::now();
            recorder.record(start, now - start);
        }
        let after = counters(&shard);
        drop(recorder);
        shard.close().context("closing the shard")?;
        let mut counted = Counters::default();
        if let Some(before) = before {
            counted.add_difference(&before, &after);
        }
        Ok(Tally { counters: Some(counted), ..Tally::default() })
    }
}

fn append_durably(shard: &mut Shard, stream: StreamId, record: &[u8]) -> Result<Receipt> {
    let append = shard.append(stream, record).context("append")?;
    loop {
        shard.run_once(None).context("the shard's loop")?;
        if let Some(receipt) = append.try_receipt() {
            return receipt.context("a receipt");
        }
    }
}

fn counters(shard: &Shard) -> Counters {
    Counters::of([&shard.stats()])
}
