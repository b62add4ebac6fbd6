//! Batches of 1,000 records, one at a time, beside the same bytes written bare.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result};
use ringwal_engine::Engine;

use super::Bench;
use super::measure::{Part, Tally, Variant, Yardstick, measure};
use super::receipts::ReceiptFile;
use super::writer::Writer;
use crate::probe::median;
use crate::report::Run;

/// Records in a batch.
const RECORDS: usize = 1000;
/// A batch of large records has fewer of them: it has to fit one group commit.
const BATCH_BYTES_MAX: usize = 900 << 10;
/// Bare writes come in multiples of this, as those of the engine do.
const BLOCK_BYTES: usize = 4096;

/// Measures it.
pub fn run(bench: &mut Bench) -> Result<()> {
    let record_bytes = bench.settings.record_bytes;
    let count = (BATCH_BYTES_MAX / record_bytes.max(1)).clamp(1, RECORDS);
    let bare_bytes = (count * record_bytes).next_multiple_of(BLOCK_BYTES).max(BLOCK_BYTES);
    let mut variants = Vec::new();
    for (suffix, engine) in bench.engines()? {
        let caller = Caller {
            engine: engine.clone(),
            seed: bench.settings.seed,
            record_bytes,
            count,
            receipts: bench.receipts.clone(),
        };
        variants.push(Variant {
            run: Run {
                name: format!("batch{suffix}"),
                description: format!("1 caller, batches of {count} records, one at a time"),
                clients: 1,
                in_flight: count as u64,
                record_bytes: record_bytes as u64,
                ..Run::default()
            },
            engine: Some(engine),
            node: None,
            yardstick: Yardstick::Bare(bare_bytes),
            work: Box::new(move |part| caller.work(part).map(|()| Tally::default())),
        });
    }
    let mut measured = measure(bench, variants)?;
    for one in &mut measured {
        let bare = median(&one.yardstick) * count as f64;
        if bare > 0.0 {
            let ratio = one.run.records_per_second / bare;
            one.run.extra.insert("bare_records_per_second".to_owned(), bare);
            one.run.extra.insert("ratio_to_bare".to_owned(), ratio);
        }
    }
    bench.keep_all(measured);
    Ok(())
}

struct Caller {
    engine: Engine,
    seed: u64,
    record_bytes: usize,
    count: usize,
    receipts: Option<Arc<ReceiptFile>>,
}

impl Caller {
    /// The next batch is made while this one is under way: the bare writer has its bytes ready too.
    fn work(&self, part: &Part<'_>) -> Result<()> {
        let receipts = self.receipts.clone();
        let mut writer = Writer::new(&self.engine, 0, self.seed, self.record_bytes, receipts)
            .in_batches_of(self.count);
        let mut recorder = part.recorder(0, 1);
        writer.make_batch(self.count);
        let mut now = Instant::now();
        while !part.is_over(now) {
            let start = Instant::now();
            let append = writer.append_batch(self.count)?;
            writer.make_batch(self.count);
            let receipts = append.wait().context("waiting for a batch")?;
            now = Instant::now();
            recorder.record_many(start, now - start, self.count as u64);
            writer.received_batch(&receipts, self.count)?;
        }
        Ok(())
    }
}
