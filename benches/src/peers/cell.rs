//! What one run of one engine in one process has found: a line of JSON from child to parent.

use serde::{Deserialize, Serialize};

use crate::load::Recorder;

/// The outcome of one process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Cell {
    /// Of an open loop, one for each rate; else one.
    pub points: Vec<Point>,
}

/// Latencies and costs at one rate.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Point {
    /// Appends per second that were intended; of open loops only.
    pub rate: Option<u64>,
    /// Records per second.
    pub operations_per_second: f64,
    /// Latency of an append; of an open loop from its intended start. Absent for a replay.
    pub latency: Option<Latency>,
    /// Processor time of the whole process, for each record.
    pub cpu_ns_per_operation: f64,
    /// Flushes that the device has completed, for each record; absent where it does not tell.
    pub device_flushes_per_operation: Option<f64>,
    /// Flushes that were asked for, for each record.
    pub flush_calls_per_operation: f64,
    /// Memory at the end.
    pub resident_bytes: u64,
    /// What the log grew by for each byte of payload, padding included.
    pub log_bytes_per_payload_byte: Option<f64>,
    /// All files, spare ones too, for each byte of payload.
    pub disk_bytes_per_payload_byte: Option<f64>,
    /// Records that one flush can cover at most: what is under way at one time. 0 for a replay.
    pub covered_by_flush: u64,
    /// The parts of a long run, in turn.
    pub slices: Vec<Slice>,
}

/// A part of a long run.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Slice {
    /// Records per second.
    pub operations_per_second: f64,
    /// 99th percentile, from the intended start.
    pub p99_ns: u64,
}

/// Latencies in nanoseconds.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Latency {
    /// Median.
    pub p50_ns: u64,
    /// 99th percentile.
    pub p99_ns: u64,
    /// 99.9th percentile.
    pub p999_ns: u64,
    /// The longest.
    pub max_ns: u64,
    /// Nanoseconds at each of [`CURVE`].
    pub curve_ns: Vec<u64>,
}

/// Percentiles of a latency curve.
pub const CURVE: [f64; 13] =
    [1.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.5, 99.9, 99.95, 99.99, 100.0];

impl Latency {
    /// From what the clients saw.
    pub fn of(histogram: &hdrhistogram::Histogram<u64>) -> Latency {
        let at = |percentile| histogram.value_at_percentile(percentile);
        Latency {
            p50_ns: at(50.0),
            p99_ns: at(99.0),
            p999_ns: at(99.9),
            max_ns: histogram.max(),
            curve_ns: CURVE.into_iter().map(at).collect(),
        }
    }
}

/// A rate is kept when so much of it is reached.
const REACHED: f64 = 0.97;

impl Point {
    /// Whether it keeps the rate of an open loop.
    pub fn keeps_rate(&self) -> bool {
        self.operations_per_second >= self.rate.unwrap_or(0) as f64 * REACHED
    }

    /// Rates and latencies of clients that ran for `seconds`.
    pub fn of(seen: &Recorder, seconds: f64, batch_records: usize) -> Point {
        Point {
            operations_per_second: seen.counted as f64 * batch_records as f64 / seconds,
            latency: Some(Latency::of(&seen.latencies)),
            ..Point::default()
        }
    }
}
