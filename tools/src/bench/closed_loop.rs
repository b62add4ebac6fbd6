//! Closed loop: every client is a thread that appends a record, waits for its receipt, and
//! appends the next. `idle` has one client, `loaded` many.

use std::sync::Arc;
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result};
use ringwal_engine::Engine;
use ringwal_replication::{Ack, Leadership};

use super::Bench;
use super::measure::{Part, Tally, Variant, Yardstick, joined, measure};
use super::receipts::ReceiptFile;
use super::writer::Writer;
use crate::report::Run;

/// What a client was doing when it failed.
const WAITING: &str = "waiting for a receipt";

/// What every client of a closed loop needs.
#[derive(Clone)]
pub struct Clients {
    /// Where they write.
    pub engine: Engine,
    /// How many there are.
    pub count: usize,
    /// Seed of their records.
    pub seed: u64,
    /// Size of their records.
    pub record_bytes: usize,
    /// Where they note receipts.
    pub receipts: Option<Arc<ReceiptFile>>,
    /// They append through a leader, and wait for this.
    pub led: Option<(Leadership, Ack)>,
}

/// One client.
pub fn idle(bench: &mut Bench) -> Result<()> {
    run(bench, "idle", 1)
}

/// Many clients.
pub fn loaded(bench: &mut Bench) -> Result<()> {
    let count = bench.settings.clients;
    run(bench, "loaded", count)
}

fn run(bench: &mut Bench, name: &str, count: usize) -> Result<()> {
    let mut variants = Vec::new();
    for (suffix, engine) in bench.engines()? {
        let clients = Clients {
            engine: engine.clone(),
            count,
            seed: bench.settings.seed,
            record_bytes: bench.settings.record_bytes,
            receipts: bench.receipts.clone(),
            led: None,
        };
        variants.push(Variant {
            run: Run {
                name: format!("{name}{suffix}"),
                description: description(count),
                clients: count as u64,
                in_flight: 1,
                record_bytes: clients.record_bytes as u64,
                ..Run::default()
            },
            engine: Some(engine),
            node: None,
            yardstick: Yardstick::Slice,
            work: Box::new(move |part| clients.work(part).map(|()| Tally::default())),
        });
    }
    let measured = measure(bench, variants)?;
    bench.keep_all(measured);
    Ok(())
}

/// How many clients, in words.
pub fn description(count: usize) -> String {
    if count == 1 {
        "1 client, closed loop".to_owned()
    } else {
        format!("{count} clients, closed loop")
    }
}

impl Clients {
    /// Runs all clients until the part is over.
    pub fn work(&self, part: &Part<'_>) -> Result<()> {
        part.begin();
        if self.count == 1 {
            return self.client(part, 0);
        }
        thread::scope(|scope| {
            let clients: Vec<_> = (0..self.count)
                .map(|index| {
                    thread::Builder::new()
                        .name(format!("client-{index}"))
                        .stack_size(256 << 10)
                        .spawn_scoped(scope, move || self.client(part, index))
                        .with_context(|| format!("starting client {index}"))
                })
                .collect();
            let mut outcome = Ok(());
            for client in clients {
                outcome = outcome.and(client.and_then(joined));
            }
            outcome
        })
    }

    fn client(&self, part: &Part<'_>, index: usize) -> Result<()> {
        let mut writer =
            Writer::new(&self.engine, index, self.seed, self.record_bytes, self.receipts.clone());
        let mut recorder = part.recorder(index, self.count);
        let mut now = Instant::now();
        while !part.is_over(now) {
            let crc = writer.make();
            let start = Instant::now();
            let receipt = match &self.led {
                None => writer.append()?.wait().context(WAITING)?,
                Some((leadership, ack)) => {
                    writer.append_led(leadership, *ack)?.wait().context(WAITING)?.receipt
                }
            };
            now = Instant::now();
            recorder.record(start, now - start);
            writer.received(receipt, crc)?;
            writer.note()?;
        }
        Ok(())
    }
}
