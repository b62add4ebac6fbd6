//! The tables on the terminal.

use std::fmt::Write as _;

use crate::engine::Kind;
use crate::human;
use crate::machine::Machine;
use crate::summary::{Outcome, Summary, Table};
use crate::workload::Shape;

/// Everything.
pub fn text(summary: &Summary, machine: &Machine) -> String {
    let mut text = format!("{}\n{}\n", machine.command, machine.line());
    let _ = writeln!(text, "medians of {} runs, engines taking turns", summary.repeat);
    for table in &summary.tables {
        let _ = writeln!(text, "\n{}: {}", table.workload.name, table.workload.title);
        match table.workload.shape {
            Shape::Open => open(&mut text, table),
            Shape::Drift => drift(&mut text, table),
            Shape::Closed | Shape::Replay => one(&mut text, table),
        }
        for line in verdict(table) {
            let _ = writeln!(text, "  {line}");
        }
    }
    let _ = writeln!(text);
    for (name, how, _) in &summary.contenders {
        let _ = writeln!(text, "{name:18} {how}");
    }
    text
}

/// Headings of the columns after the engine's name.
pub const COLUMNS: [&str; 10] = [
    "records/s",
    "spread",
    "p50",
    "p99",
    "p99.9",
    "max",
    "CPU/record",
    "flushes",
    "memory",
    "log/payload",
];

/// A row in words; empty where there is nothing to say.
pub fn cells(outcome: &Outcome) -> [String; 10] {
    let median = &outcome.median;
    let time = |ns: Option<u64>| ns.map_or(String::new(), human::duration);
    let latency = median.latency.as_ref();
    let flushes = median.device_flushes_per_operation.unwrap_or(median.flush_calls_per_operation);
    [
        human::count(median.operations_per_second),
        format!("±{:.0} %", outcome.spread() * 100.0),
        time(latency.map(|latency| latency.p50_ns)),
        time(latency.map(|latency| latency.p99_ns)),
        time(latency.map(|latency| latency.p999_ns)),
        time(latency.map(|latency| latency.max_ns)),
        human::duration(median.cpu_ns_per_operation as u64),
        format!("{flushes:.4}"),
        human::bytes(median.resident_bytes >> 20 << 20),
        median.log_bytes_per_payload_byte.map_or(String::new(), |ratio| format!("{ratio:.2}")),
    ]
}

/// What a row is, if it is not ranked.
pub fn remark(outcome: &Outcome) -> String {
    match (outcome.kind, &outcome.error) {
        (_, Some(error)) if outcome.runs.is_empty() => format!("failed: {error}"),
        (_, Some(error)) => format!("{} runs; one failed: {error}", outcome.runs.len()),
        (Kind::Control, _) if !outcome.durable => "not durable, and meant to be".to_owned(),
        _ if !outcome.durable => "NOT DURABLE: more acknowledged than flushed".to_owned(),
        (Kind::OwnTuned, _) => "tuned".to_owned(),
        (Kind::Device, _) => "device".to_owned(),
        _ if outcome.is_looped => "callers are no threads".to_owned(),
        _ => String::new(),
    }
}

fn one(text: &mut String, table: &Table) {
    row(text, "", COLUMNS.map(str::to_owned), "");
    for outcome in &table.outcomes {
        row(text, outcome.engine, cells(outcome), &remark(outcome));
    }
}

fn row(text: &mut String, name: &str, cells: [String; 10], remark: &str) {
    let mut line = format!("  {name:18}");
    for cell in cells {
        let _ = write!(line, " {cell:>11}");
    }
    let _ = writeln!(text, "{}", format!("{line}  {remark}").trim_end());
}

/// p99.9 at each rate; a rate that was not kept has none.
fn open(text: &mut String, table: &Table) {
    let rates = table.rates();
    let mut line = format!("  {:18}", "p99.9 at");
    for rate in &rates {
        let _ = write!(line, " {:>9}", human::per_second(*rate as f64));
    }
    let _ = writeln!(text, "{line}");
    for (outcome, _) in table.knees() {
        let mut line = format!("  {:18}", outcome.engine);
        for &rate in &rates {
            let _ = write!(line, " {:>9}", open_cell(table, outcome.engine, rate));
        }
        let _ = writeln!(text, "{}", format!("{line}  {}", remark(outcome)).trim_end());
    }
}

/// One cell of an open loop.
pub fn open_cell(table: &Table, engine: &str, rate: u64) -> String {
    match table.at_rate(engine, rate) {
        Some(outcome) if outcome.keeps_rate() => {
            let latency = outcome.median.latency.as_ref();
            latency.map_or(String::new(), |latency| human::duration(latency.p999_ns))
        }
        Some(_) => "not kept".to_owned(),
        None => String::new(),
    }
}

fn drift(text: &mut String, table: &Table) {
    one(text, table);
    for outcome in &table.outcomes {
        let slices = &outcome.median.slices;
        let shown = slices.iter().step_by((slices.len() / 12).max(1));
        let p99: Vec<_> = shown.map(|slice| human::duration(slice.p99_ns)).collect();
        let _ = writeln!(text, "  {:18} p99 over time: {}", outcome.engine, p99.join(", "));
    }
}

/// This engine against the best of the others, a line for each of its rows.
pub fn verdict(table: &Table) -> Vec<String> {
    if table.is_open() {
        return verdict_open(table);
    }
    let Some(best) = table.best_peer() else { return Vec::new() };
    let over = |own: f64, peer: f64| human::ratio(own / peer.max(1e-9));
    let line = |own: &Outcome| {
        let (a, b) = (&own.median, &best.median);
        let mut parts =
            vec![format!("{} records/s", over(a.operations_per_second, b.operations_per_second))];
        if let Some((a, b)) = a.latency.as_ref().zip(b.latency.as_ref()) {
            parts.push(format!("{} p50", over(a.p50_ns as f64, b.p50_ns as f64)));
            parts.push(format!("{} p99", over(a.p99_ns as f64, b.p99_ns as f64)));
        }
        parts.push(format!("{} CPU", over(a.cpu_ns_per_operation, b.cpu_ns_per_operation)));
        format!("{} against {}, the best peer: {}", own.engine, best.engine, parts.join(", "))
    };
    table.ranked(Kind::Own).map(line).collect()
}

fn verdict_open(table: &Table) -> Vec<String> {
    let knees = table.knees();
    let is_peer = |outcome: &Outcome| outcome.kind == Kind::Peer && outcome.is_ranked();
    let best = knees.iter().find(|(outcome, _)| is_peer(outcome));
    let Some((best, knee)) = best.filter(|(_, knee)| table.rates().contains(&(knee / 2))) else {
        return Vec::new();
    };
    let shown = knees.iter().filter(|(outcome, _)| {
        outcome.kind.is_own() || outcome.kind == Kind::Device || outcome.engine == best.engine
    });
    let p999: Vec<_> = shown
        .map(|(outcome, _)| {
            format!("{} {}", outcome.engine, open_cell(table, outcome.engine, knee / 2))
        })
        .collect();
    vec![format!(
        "{} keeps {}; p99.9 at half of it: {}",
        best.engine,
        human::per_second(*knee as f64),
        p999.join(", ")
    )]
}
