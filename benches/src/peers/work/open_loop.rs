//! Open loop: appends come at a fixed rate, whether the ones before are durable or not. Each is counted
//! from the moment that was intended, so that a stall is seen by every append that it delayed.

use std::num::NonZeroU64;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::cell::{Cell, Point, Slice};
use crate::costs::Costs;
use crate::device::Device;
use crate::engine::{Contender, Opened, Shared};
use crate::load::{Load, Recorder};
use crate::work::closed_loop::{open, with_clients};
use crate::workload::Workload;

/// The lowest rate; each next one is twice as high.
const FIRST_RATE: u64 = 1_000;
/// The highest.
const LAST_RATE: u64 = 1_024_000;
/// A client that is late goes on for so much longer with what was due, as a share of the length.
const LATE: u32 = 2;
/// So many misses in a row end the walk: one stall of the machine is no knee.
const MISSES: u32 = 2;
/// Slices of a long run.
const SLICES: u32 = 60;

/// Walks up the rates until they are not kept any more.
pub fn run(
    contender: &Contender,
    workload: &Workload,
    directory: &Path,
    warm_up: Duration,
    length: Duration,
) -> Result<Cell> {
    let engine = open_threaded(contender, workload, directory)?;
    let device = Device::of(directory);
    let mut points = Vec::new();
    let (mut rate, mut misses) = (FIRST_RATE, 0);
    while rate <= LAST_RATE && misses < MISSES {
        let step = at_rate(engine.as_ref(), workload, rate, warm_up, length, &device)?;
        let point = step.point(rate, workload, length);
        misses = if point.keeps_rate() { 0 } else { misses + 1 };
        points.push(point);
        rate *= 2;
    }
    Ok(Cell { points })
}

/// One rate for long, in slices.
pub fn drift(
    contender: &Contender,
    workload: &Workload,
    directory: &Path,
    rate: u64,
    length: Duration,
) -> Result<Cell> {
    let engine = open_threaded(contender, workload, directory)?;
    let device = Device::of(directory);
    let each = length / SLICES;
    let mut slices = Vec::new();
    let mut whole: Option<Step> = None;
    for _ in 0..SLICES {
        let step = at_rate(engine.as_ref(), workload, rate, Duration::ZERO, each, &device)?;
        let point = step.point(rate, workload, each);
        slices.push(Slice {
            operations_per_second: point.operations_per_second,
            p99_ns: point.latency.as_ref().map_or(0, |latency| latency.p99_ns),
        });
        match &mut whole {
            None => whole = Some(step),
            Some(whole) => {
                whole.seen.add(&step.seen);
                whole.after = step.after;
            }
        }
    }
    let points = whole.map(|whole| Point { slices, ..whole.point(rate, workload, each * SLICES) });
    Ok(Cell { points: points.into_iter().collect() })
}

fn open_threaded(
    contender: &Contender,
    workload: &Workload,
    directory: &Path,
) -> Result<Box<dyn Shared>> {
    match open(contender, workload, directory)? {
        Opened::Threads(engine) => Ok(engine),
        Opened::Loop(_) => bail!("{} has no threads: an open loop needs them", contender.name),
    }
}

/// What one rate has shown.
struct Step {
    seen: Recorder,
    before: Costs,
    after: Costs,
}

impl Step {
    fn point(&self, rate: u64, workload: &Workload, length: Duration) -> Point {
        let mut point = Point::of(&self.seen, length.as_secs_f64(), 1);
        self.after.put(&self.before, self.seen.appends, &mut point);
        point.rate = Some(rate);
        point.covered_by_flush = workload.clients as u64;
        point
    }
}

fn at_rate(
    engine: &dyn Shared,
    workload: &Workload,
    rate: u64,
    warm_up: Duration,
    length: Duration,
    device: &Device,
) -> Result<Step> {
    let start = Instant::now() + Duration::from_millis(20);
    let load = Load {
        clients: workload.clients,
        record_bytes: workload.record_bytes,
        batch_records: 1,
        from: start + warm_up,
        until: start + warm_up + length,
    };
    let before = Costs::now(device, engine.flush_calls());
    let seen =
        with_clients(engine, &load, |client| at_rate_client(engine, &load, start, rate, client))?;
    Ok(Step { seen, before, after: Costs::now(device, engine.flush_calls()) })
}

/// Appends of one client are spread evenly, and those of all clients among each other.
fn at_rate_client(
    engine: &dyn Shared,
    load: &Load,
    start: Instant,
    rate: u64,
    client: usize,
) -> Result<Recorder> {
    // A sleep ends when it should, as far as the kernel can.
    let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
    let mut writer = engine.writer(client)?;
    let mut records = load.records(client);
    let mut recorder = Recorder::new(load);
    let patience = load.until + (load.until - load.from) / LATE;
    let apart = 1e9 / rate as f64;
    for number in 0.. {
        let position = (number * load.clients + client) as f64;
        let intended = start + Duration::from_nanos((position * apart) as u64);
        if intended >= load.until {
            break;
        }
        let mut now = Instant::now();
        if now >= patience {
            // It was due, and never began: it has waited at least for so long.
            recorder.record_latency(intended, now);
            continue;
        }
        if let Some(early) = intended.checked_duration_since(now) {
            thread::sleep(early);
        }
        writer.append(records.next())?;
        now = Instant::now();
        recorder.record(intended, now);
    }
    Ok(recorder)
}
