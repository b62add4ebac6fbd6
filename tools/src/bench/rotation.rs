//! What a change of segment costs: many clients on small segments, which change all the time, and
//! the same on segments that are large enough to last; in turns.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use ringwal_engine::Options;

use super::Bench;
use super::closed_loop::Clients;
use super::data::SideDirectory;
use super::measure::{Measured, Part, Tally, Variant, Yardstick, measure_parts};
use crate::cli::Io;
use crate::exit::Failure;
use crate::report::Run;

/// Segments that change all the time.
const SMALL_SEGMENT_BYTES: u64 = 2 << 20;
/// Segments that last for one part. Two more of them are prepared, so this is a third of what is
/// used on disk.
const LARGE_SEGMENT_BYTES: u64 = 192 << 20;
/// Longest part that a large segment should last for.
const PART_MAX: Duration = Duration::from_millis(700);
/// Rotations that make the comparison mean something.
const ROTATIONS_MIN: u64 = 10;

/// Measures it.
pub fn run(bench: &mut Bench) -> Result<()> {
    let parts = bench.settings.duration.div_duration_f64(PART_MAX).ceil().max(1.0) as u32;
    let length = bench.settings.duration / parts;
    let mut variants = Vec::new();
    for io in bench.settings.io.clone() {
        variants.push(variant(bench, io, "rotation", SMALL_SEGMENT_BYTES));
        variants.push(variant(bench, io, "rotation-none", LARGE_SEGMENT_BYTES));
    }
    let measured = measure_parts(bench, variants, parts, length)?;
    let mut measured = measured.into_iter();
    while let (Some(rotating), Some(base)) = (measured.next(), measured.next()) {
        let rotating = compared(bench, rotating, &base);
        bench.keep(rotating);
    }
    Ok(())
}

fn variant<'a>(bench: &Bench, io: Io, name: &str, segment_bytes: u64) -> Variant<'a> {
    let name = format!("{name}{}", bench.settings.suffix(io));
    let fresh = Fresh {
        directory: bench.data.side(&name),
        options: bench.settings.options(io).shards(1).segment_bytes(segment_bytes),
        clients: bench.settings.clients,
        seed: bench.settings.seed,
        record_bytes: bench.settings.record_bytes,
    };
    let fresh = Arc::new(fresh);
    Variant {
        run: Run {
            name,
            description: format!(
                "{} clients, closed loop, segments of {} MiB",
                fresh.clients,
                segment_bytes >> 20
            ),
            clients: fresh.clients as u64,
            in_flight: 1,
            record_bytes: fresh.record_bytes as u64,
            ..Run::default()
        },
        engine: None,
        node: None,
        yardstick: Yardstick::Slice,
        work: Box::new(move |part| fresh.work(part)),
    }
}

/// Puts the run without rotations beside the one with.
fn compared(bench: &mut Bench, mut rotating: Measured, base: &Measured) -> Measured {
    let run = &mut rotating.run;
    let (with, without) = (run.response, base.run.response);
    run.extra.insert("without_p50_ns".to_owned(), without.p50_ns as f64);
    run.extra.insert("without_p99_ns".to_owned(), without.p99_ns as f64);
    run.extra.insert("without_rotations".to_owned(), base.run.rotations as f64);
    run.extra.insert("without_records_per_second".to_owned(), base.run.records_per_second);
    if without.p99_ns > 0 {
        let ratio = with.p99_ns as f64 / without.p99_ns as f64;
        run.extra.insert("p99_ratio_to_without".to_owned(), ratio);
    }
    if base.run.rotations > 0 {
        bench.warn(format!(
            "rotation: the run that should have had none had {}; its part of the comparison is \
             too slow",
            base.run.rotations
        ));
    }
    if run.rotations < ROTATIONS_MIN && !run.interrupted {
        bench.warn(format!(
            "rotation: only {} rotations; a longer --duration has more",
            run.rotations
        ));
    }
    rotating
}

/// Clients on an engine that is opened anew for each part.
struct Fresh {
    directory: SideDirectory,
    options: Options,
    clients: usize,
    seed: u64,
    record_bytes: usize,
}

impl Fresh {
    fn work(&self, part: &Part<'_>) -> Result<Tally> {
        self.directory.clear()?;
        let engine = self
            .options
            .clone()
            .open(self.directory.path())
            .map_err(|error| Failure::open(&error))?;
        part.set_engine(engine.clone());
        let clients = Clients {
            engine,
            count: self.clients,
            seed: self.seed,
            record_bytes: self.record_bytes,
            receipts: None,
            led: None,
        };
        clients.work(part).map(|()| Tally::default())
    }
}
