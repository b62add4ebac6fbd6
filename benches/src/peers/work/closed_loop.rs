//! Closed loop: every client appends, waits until it is durable, and appends again.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};

use crate::cell::{Cell, Point};
use crate::costs::{Costs, disk_bytes};
use crate::device::Device;
use crate::engine::{Contender, Opened, Shared};
use crate::load::{Load, Recorder};
use crate::workload::Workload;

/// Between two calls of [`Shared::tidy`].
const TIDY_EVERY: Duration = Duration::from_millis(100);
/// Stack of a client.
const STACK_BYTES: usize = 256 << 10;

/// Runs it.
pub fn run(
    contender: &Contender,
    workload: &Workload,
    directory: &Path,
    warm_up: Duration,
    length: Duration,
) -> Result<Cell> {
    let device = Device::of(directory);
    let mut opened = open(contender, workload, directory)?;
    let now = Instant::now();
    let load = Load {
        clients: workload.clients,
        record_bytes: workload.record_bytes,
        batch_records: workload.batch_records,
        from: now + warm_up,
        until: now + warm_up + length,
    };
    let (before, log_before) = (Costs::now(&device, opened.flush_calls()), opened.log_bytes());
    let seen = match &mut opened {
        Opened::Threads(engine) => threads(engine.as_ref(), &load)?,
        Opened::Loop(engine) => engine.closed_loop(&load)?,
    };
    let after = Costs::now(&device, opened.flush_calls());
    let mut point = Point::of(&seen, length.as_secs_f64(), workload.batch_records);
    let operations = seen.appends * workload.batch_records as u64;
    after.put(&before, operations, &mut point);
    let payload_bytes = (operations * workload.record_bytes as u64).max(1) as f64;
    point.log_bytes_per_payload_byte = opened
        .log_bytes()
        .zip(log_before)
        .map(|(after, before)| (after - before) as f64 / payload_bytes);
    point.disk_bytes_per_payload_byte = Some(disk_bytes(directory) as f64 / payload_bytes);
    point.covered_by_flush = (workload.clients * workload.batch_records) as u64;
    Ok(Cell { points: vec![point] })
}

/// Opens an engine; what that left in memory is written before anything is measured.
pub fn open(contender: &Contender, workload: &Workload, directory: &Path) -> Result<Opened> {
    let opened = (contender.open)(directory, workload)?;
    rustix::fs::syncfs(std::fs::File::open(directory)?)?;
    Ok(opened)
}

impl Opened {
    fn flush_calls(&self) -> u64 {
        match self {
            Opened::Threads(engine) => engine.flush_calls(),
            Opened::Loop(engine) => engine.flush_calls(),
        }
    }

    fn log_bytes(&self) -> Option<u64> {
        match self {
            Opened::Threads(engine) => engine.log_bytes(),
            Opened::Loop(engine) => engine.log_bytes(),
        }
    }
}

/// One thread for each client.
fn threads(engine: &dyn Shared, load: &Load) -> Result<Recorder> {
    with_clients(engine, load, |client| thread_of(engine, load, client))
}

/// Runs `work` on a thread for each client, and tidies up meanwhile. Returns what all of them saw.
pub fn with_clients(
    engine: &dyn Shared,
    load: &Load,
    work: impl Fn(usize) -> Result<Recorder> + Sync,
) -> Result<Recorder> {
    let work = &work;
    thread::scope(|scope| {
        let clients: Vec<_> = (0..load.clients)
            .map(|client| {
                thread::Builder::new()
                    .name(format!("client-{client}"))
                    .stack_size(STACK_BYTES)
                    .spawn_scoped(scope, move || work(client))
                    .with_context(|| format!("starting client {client}"))
            })
            .collect::<Result<_>>()?;
        let mut next = Instant::now() + TIDY_EVERY;
        while next < load.until && !clients.iter().any(|client| client.is_finished()) {
            thread::sleep(next.saturating_duration_since(Instant::now()));
            engine.tidy()?;
            next += TIDY_EVERY;
        }
        let mut seen = Recorder::new(load);
        for client in clients {
            seen.add(&client.join().map_err(|_| anyhow!("a client panicked"))??);
        }
        Ok(seen)
    })
}

fn thread_of(engine: &dyn Shared, load: &Load, client: usize) -> Result<Recorder> {
    let mut writer = engine.writer(client)?;
    let mut records = load.records(client);
    let mut recorder = Recorder::new(load);
    let mut now = Instant::now();
    while now < load.until {
        let start;
        if load.batch_records == 1 {
            let record = records.next();
            start = Instant::now();
            writer.append(record)?;
        } else {
            let batch = records.next_batch();
            start = Instant::now();
            writer.append_batch(&batch)?;
        }
        now = Instant::now();
        recorder.record(start, now);
    }
    Ok(recorder)
}
