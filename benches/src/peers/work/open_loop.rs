//! Open loop: appends come at a fixed rate, whether the ones before are durable or not. Each is counted
//! from the moment that was intended, so that a stall is seen by every append that it delayed.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::cell::{Cell, Point, Slice};
use crate::costs::Costs;
use crate::device::Device;
use crate::engine::{Contender, Opened, Shared};
use crate::load::{Load, Recorder};
use crate::work::closed_loop::with_clients;
use crate::workload::Workload;

/// The lowest rate; each next one is twice as high.
const FIRST_RATE: u64 = 1_000;
/// The highest.
const LAST_RATE: u64 = 1_024_000;
/// A rate is kept when so much of it is reached.
const REACHED: f64 = 0.97;
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
    let Opened::Threads(engine) = (contender.open)(directory, workload)? else {
        bail!("{} has no threads: an open loop needs them", contender.name);
    };
    let device = Device::of(directory);
    let mut points = Vec::new();
    let (mut rate, mut misses) = (FIRST_RATE, 0);
    while rate <= LAST_RATE && misses < MISSES {
        let point = at_rate(engine.as_ref(), workload, rate, warm_up, length, &device)?;
        let kept = point.operations_per_second >= rate as f64 * REACHED;
        misses = if kept { 0 } else { misses + 1 };
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
    let Opened::Threads(engine) = (contender.open)(directory, workload)? else {
        bail!("{} has no threads: an open loop needs them", contender.name);
    };
    let device = Device::of(directory);
    let mut slices = Vec::new();
    let mut last = Point::default();
    for _ in 0..SLICES {
        let each = length / SLICES;
        last = at_rate(engine.as_ref(), workload, rate, Duration::ZERO, each, &device)?;
        slices.push(Slice {
            operations_per_second: last.operations_per_second,
            p99_ns: last.latency.as_ref().map_or(0, |latency| latency.p99_ns),
        });
    }
    Ok(Cell { points: vec![Point { slices, ..last }] })
}

fn at_rate(
    engine: &dyn Shared,
    workload: &Workload,
    rate: u64,
    warm_up: Duration,
    length: Duration,
    device: &Device,
) -> Result<Point> {
    let start = Instant::now() + Duration::from_millis(20);
    let load = Load {
        clients: workload.clients,
        record_bytes: workload.record_bytes,
        batch_records: 1,
        from: start + warm_up,
        until: start + warm_up + length,
    };
    let before = Costs::now(device, engine.flush_calls());
    let recorders = with_clients(engine, load.clients, load.until, |client| {
        at_rate_client(engine, &load, start, rate, client)
    })?;
    let after = Costs::now(device, engine.flush_calls());
    let (mut point, operations) = Point::of(recorders, length.as_secs_f64(), 1);
    after.put(&before, operations, &mut point);
    point.rate = Some(rate);
    point.covered_by_flush = workload.clients as u64;
    Ok(point)
}

/// Appends of one client are spread evenly, and those of all clients among each other.
fn at_rate_client(
    engine: &dyn Shared,
    load: &Load,
    start: Instant,
    rate: u64,
    client: usize,
) -> Result<Recorder> {
    let mut writer = engine.writer(client)?;
    let mut records = load.records(client);
    let mut recorder = Recorder::new(load);
    let apart = 1e9 / rate as f64;
    for number in 0.. {
        let position = (number * load.clients + client) as f64;
        let intended = start + Duration::from_nanos((position * apart) as u64);
        if intended >= load.until {
            break;
        }
        if let Some(early) = intended.checked_duration_since(Instant::now()) {
            thread::sleep(early);
        }
        writer.append(records.next())?;
        let now = Instant::now();
        recorder.record(intended, now);
        // Far behind: the rate is not kept, and there is no need to catch up after the end.
        if now >= load.until {
            break;
        }
    }
    Ok(recorder)
}
