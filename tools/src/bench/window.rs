//! Saturation: one caller that keeps many appends in flight. `window` has records of the usual
//! size, `window-4k` of 4 KiB, to be compared with plain large writes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result};
use ringwal_engine::{Append, Engine, Receipt};

use super::Bench;
use super::measure::{Part, Tally, Variant, Yardstick, measure};
use super::receipts::ReceiptFile;
use super::recorder::Recorder;
use super::writer::Writer;
use crate::probe::median;
use crate::report::Run;

/// Appends that share one look at the clock, and go to one stream where there are several.
const GROUP: usize = 16;
/// With several shards the caller writes to so many streams for each, to reach all of them.
const STREAMS_PER_SHARD: usize = 4;

/// Records of the usual size.
pub fn small(bench: &mut Bench) -> Result<()> {
    let record_bytes = bench.settings.record_bytes;
    run(bench, "window", record_bytes, Yardstick::Slice)
}

/// Records of 4 KiB.
pub fn large(bench: &mut Bench) -> Result<()> {
    run(bench, "window-4k", 4096, Yardstick::Sequential)
}

fn run(bench: &mut Bench, name: &str, record_bytes: usize, yardstick: Yardstick) -> Result<()> {
    let mut variants = Vec::new();
    for (suffix, engine) in bench.engines()? {
        let caller = Caller {
            engine: engine.clone(),
            in_flight_max: bench.settings.window,
            streams: streams(bench.settings.shards),
            seed: bench.settings.seed,
            record_bytes,
            receipts: bench.receipts.clone(),
        };
        variants.push(Variant {
            run: Run {
                name: format!("{name}{suffix}"),
                description: format!("1 caller, up to {} in flight", caller.in_flight_max),
                clients: 1,
                in_flight: caller.in_flight_max as u64,
                record_bytes: record_bytes as u64,
                ..Run::default()
            },
            engine: Some(engine),
            node: None,
            yardstick,
            work: Box::new(move |part| caller.work(part).map(|()| Tally::default())),
        });
    }
    let mut measured = measure(bench, variants)?;
    for one in &mut measured {
        let sequential = median(&one.yardstick);
        if sequential > 0.0 {
            let ratio = one.run.bytes_per_second as f64 / sequential;
            one.run.extra.insert("sequential_bytes_per_second".to_owned(), sequential);
            one.run.extra.insert("ratio_to_sequential".to_owned(), ratio);
        }
    }
    bench.keep_all(measured);
    Ok(())
}

/// Streams that one caller writes to.
fn streams(shards: u16) -> usize {
    if shards == 1 { 1 } else { usize::from(shards) * STREAMS_PER_SHARD }
}

/// One thread with a window of appends.
struct Caller {
    engine: Engine,
    in_flight_max: usize,
    streams: usize,
    seed: u64,
    record_bytes: usize,
    receipts: Option<Arc<ReceiptFile>>,
}

/// An append that waits for its receipt.
struct Waiting {
    append: Append,
    start: Instant,
    stream: usize,
    crc: Option<u32>,
}

impl Caller {
    fn work(&self, part: &Part<'_>) -> Result<()> {
        let mut writers: Vec<Writer> = (0..self.streams)
            .map(|stream| {
                let receipts = self.receipts.clone();
                Writer::new(&self.engine, stream, self.seed, self.record_bytes, receipts)
            })
            .collect();
        let mut waiting = VecDeque::with_capacity(self.in_flight_max);
        let mut recorder = part.recorder(0, 1);
        let mut stream = 0;
        let mut now = Instant::now();
        while !part.is_over(now) {
            while waiting.len() < self.in_flight_max {
                let room = self.in_flight_max - waiting.len();
                let full = append_group(&mut writers, stream, room.min(GROUP), &mut waiting)?;
                stream = (stream + 1) % self.streams;
                if full {
                    break;
                }
            }
            now = reap(&mut waiting, &mut writers, &mut recorder)?;
        }
        while !waiting.is_empty() {
            reap(&mut waiting, &mut writers, &mut recorder)?;
        }
        Ok(())
    }
}

/// Appends a few records; `true` when the engine has no room for more. The clock is read once,
/// before the first, so that the latencies of the others are a little too long rather than too
/// short.
fn append_group(
    writers: &mut [Writer],
    stream: usize,
    count: usize,
    waiting: &mut VecDeque<Waiting>,
) -> Result<bool> {
    let start = Instant::now();
    for _ in 0..count {
        let crc = writers[stream].make();
        let append = match writers[stream].try_append()? {
            Some(append) => append,
            // Receipts are taken before this one waits for room, or they would look late.
            None if waiting.is_empty() => writers[stream].append()?,
            None => {
                writers[stream].take_back();
                return Ok(true);
            }
        };
        waiting.push_back(Waiting { append, start, stream, crc });
    }
    Ok(false)
}

/// Waits for the oldest append, then takes whatever else has its receipt already; returns when
/// that was.
fn reap(
    waiting: &mut VecDeque<Waiting>,
    writers: &mut [Writer],
    recorder: &mut Recorder<'_>,
) -> Result<Instant> {
    let Some(oldest) = waiting.pop_front() else { return Ok(Instant::now()) };
    let (start, stream, crc) = (oldest.start, oldest.stream, oldest.crc);
    let receipt = oldest.append.wait().context("waiting for a receipt")?;
    let mut now = Instant::now();
    let mut take = |start: Instant, stream: usize, crc, receipt: Receipt, now| {
        recorder.record(start, now - start);
        writers[stream].received(receipt, crc)
    };
    take(start, stream, crc, receipt, now)?;
    let mut taken = 1;
    while let Some(receipt) = waiting.front().and_then(|front| front.append.try_receipt()) {
        let front = waiting.pop_front().expect("it was just looked at");
        if taken % GROUP == 0 {
            now = Instant::now();
        }
        taken += 1;
        take(front.start, front.stream, front.crc, receipt.context("a receipt")?, now)?;
    }
    for writer in writers {
        writer.note()?;
    }
    Ok(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_shard_has_one_stream() {
        assert_eq!(streams(1), 1);
        assert_eq!(streams(2), 8);
    }
}
