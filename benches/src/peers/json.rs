//! The figures for programs: a list with one entry for each engine, workload and rate.

use anyhow::Result;
use serde::Serialize;

use crate::cell::{Point, Slice};
use crate::engine::Kind;
use crate::summary::{Outcome, Summary};

#[derive(Serialize)]
struct Entry<'a> {
    engine: &'a str,
    kind: Kind,
    workload: &'a str,
    /// Of an open loop: appends per second that were intended.
    rate: Option<u64>,
    durable: bool,
    ranked: bool,
    #[serde(flatten)]
    figures: Figures,
    cpu_ns_per_operation: f64,
    flushes_per_operation: f64,
    flushes_counted_by: &'static str,
    flush_calls_per_operation: f64,
    resident_bytes: u64,
    log_bytes_per_payload_byte: Option<f64>,
    disk_bytes_per_payload_byte: Option<f64>,
    runs: Vec<Figures>,
    slices: &'a [Slice],
    error: Option<&'a str>,
}

/// Absent latencies are those of a replay.
#[derive(Serialize)]
struct Figures {
    operations_per_second: f64,
    p50_ns: Option<u64>,
    p99_ns: Option<u64>,
    p999_ns: Option<u64>,
    max_ns: Option<u64>,
}

impl Figures {
    fn of(point: &Point) -> Figures {
        let latency = point.latency.as_ref();
        Figures {
            operations_per_second: point.operations_per_second,
            p50_ns: latency.map(|latency| latency.p50_ns),
            p99_ns: latency.map(|latency| latency.p99_ns),
            p999_ns: latency.map(|latency| latency.p999_ns),
            max_ns: latency.map(|latency| latency.max_ns),
        }
    }
}

/// The whole list.
///
/// # Errors
/// None in practice: all of it can be written as JSON.
pub fn text(summary: &Summary) -> Result<String> {
    let entries: Vec<_> = summary
        .tables
        .iter()
        .flat_map(|table| table.outcomes.iter().map(|outcome| entry(table.workload.name, outcome)))
        .collect();
    Ok(serde_json::to_string_pretty(&entries)?)
}

fn entry<'a>(workload: &'a str, outcome: &'a Outcome) -> Entry<'a> {
    let median = &outcome.median;
    Entry {
        engine: outcome.engine,
        kind: outcome.kind,
        workload,
        rate: median.rate,
        durable: outcome.durable,
        ranked: outcome.is_ranked(),
        figures: Figures::of(median),
        cpu_ns_per_operation: median.cpu_ns_per_operation,
        flushes_per_operation: median
            .device_flushes_per_operation
            .unwrap_or(median.flush_calls_per_operation),
        flushes_counted_by: match median.device_flushes_per_operation {
            Some(_) => "device",
            None => "calls",
        },
        flush_calls_per_operation: median.flush_calls_per_operation,
        resident_bytes: median.resident_bytes,
        log_bytes_per_payload_byte: median.log_bytes_per_payload_byte,
        disk_bytes_per_payload_byte: median.disk_bytes_per_payload_byte,
        runs: outcome.runs.iter().map(Figures::of).collect(),
        slices: &median.slices,
        error: outcome.error.as_deref(),
    }
}
