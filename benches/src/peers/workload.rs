//! The workloads, by number.

use anyhow::{Result, bail};

/// What is done to an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Workload {
    /// "W1" to "W8".
    pub name: &'static str,
    /// In words.
    pub title: &'static str,
    /// How it is driven.
    pub shape: Shape,
    /// Appending clients.
    pub clients: usize,
    /// Bytes of a record.
    pub record_bytes: usize,
    /// Records of one append.
    pub batch_records: usize,
}

/// How a workload is driven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Every client appends, waits until it is durable, and appends again.
    Closed,
    /// Records are written, the process is killed, another one reads all of them.
    Replay,
    /// Closed loops at half of what was reached at full speed, for an hour.
    Drift,
    /// Appends at fixed rates, whether the ones before are done or not.
    Open,
}

const fn closed(name: &'static str, title: &'static str, clients: usize) -> Workload {
    let shape = Shape::Closed;
    Workload { name, title, shape, clients, record_bytes: 128, batch_records: 1 }
}

/// All of them.
pub const ALL: [Workload; 8] = [
    closed("W1", "one thread, 128 B, closed loop", 1),
    closed("W2", "64 threads, 128 B, closed loop", 64),
    closed("W3", "256 threads, 128 B, closed loop", 256),
    Workload { batch_records: 1000, ..closed("W4", "one thread, batches of 1,000 × 128 B", 1) },
    Workload { record_bytes: 1024, ..closed("W5", "64 threads, 1 KiB, closed loop", 64) },
    Workload {
        shape: Shape::Replay,
        batch_records: 1000,
        ..closed("W6", "open and replay after a kill, 128 B, page cache dropped", 1)
    },
    Workload {
        shape: Shape::Drift,
        ..closed("W7", "64 threads, 128 B, half speed for long: drift", 64)
    },
    Workload {
        shape: Shape::Open,
        ..closed("W8", "open loop at fixed rates, 64 threads, 128 B", 64)
    },
];

/// By name.
///
/// # Errors
/// When there is none of that name.
pub fn by_name(name: &str) -> Result<Workload> {
    match ALL.iter().find(|workload| workload.name.eq_ignore_ascii_case(name)) {
        Some(workload) => Ok(*workload),
        None => bail!("there is no workload `{name}`: W1 to W8"),
    }
}
