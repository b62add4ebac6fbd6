//! Replay: one process writes and is killed, another one opens the directory and reads every record.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use crate::cell::{Cell, Point};
use crate::checker::Checker;
use crate::costs::{Costs, disk_bytes};
use crate::device::Device;
use crate::engine::{Contender, Opened};
use crate::records::Records;
use crate::workload::Workload;

/// Writes `records`, and leaves everything as it is: the caller is killed.
pub fn write(
    contender: &Contender,
    workload: &Workload,
    directory: &Path,
    records: u64,
) -> Result<Cell> {
    let Opened::Threads(engine) = (contender.open)(directory, workload)? else {
        bail!("{} has no threads", contender.name);
    };
    // It is never closed: nothing may be tidied up on the way out.
    let engine = Box::leak(engine);
    let log_before = engine.log_bytes();
    let mut writer = engine.writer(0)?;
    let mut source = Records::new(0, workload.record_bytes, workload.batch_records);
    for _ in 0..records / workload.batch_records as u64 {
        writer.append_batch(&source.next_batch())?;
    }
    let payload_bytes = (records * workload.record_bytes as u64) as f64;
    let log = engine.log_bytes().zip(log_before);
    let point = Point {
        log_bytes_per_payload_byte: log.map(|(now, then)| (now - then) as f64 / payload_bytes),
        disk_bytes_per_payload_byte: Some(disk_bytes(directory) as f64 / payload_bytes),
        ..Point::default()
    };
    Ok(Cell { points: vec![point] })
}

/// Opens and reads all of it; what the engine does behind the last record does not count.
pub fn read(
    contender: &Contender,
    workload: &Workload,
    directory: &Path,
    records: u64,
) -> Result<Cell> {
    let replay = contender.replay.with_context(|| format!("{} has no replay", contender.name))?;
    let device = Device::of(directory);
    let before = Costs::now(&device, 0);
    let start = Instant::now();
    let checker = replay(directory, Checker::new(workload.record_bytes, records))?;
    let after = Costs::now(&device, 0);
    let took = checker.complete()?.duration_since(start);
    let mut point =
        Point { operations_per_second: records as f64 / took.as_secs_f64(), ..Point::default() };
    after.put(&before, records, &mut point);
    Ok(Cell { points: vec![point] })
}
