//! `ringwal dump`: the records, one per line, or their counts; or those that were cut.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use anyhow::Result;
use ringwal_engine::Damage;
use ringwal_engine::offline::Snapshot;
use serde_json::json;

use super::lines::Lines;
use super::stream_reader::{StreamReader, open};
use super::{DumpArgs, orphans, print_json, size};
use crate::exit::{self, Exit, Failure};

/// Runs the subcommand.
pub fn run(args: &DumpArgs) -> Result<Exit> {
    if args.orphans {
        orphans::dump(args)?;
    } else if args.stats {
        stats(args)?;
    } else if let Some(stream) = args.stream {
        dump_stream(args, stream)?;
    } else {
        dump_all(args)?;
    }
    Ok(Exit::Success)
}

fn dump_stream(args: &DumpArgs, stream: u64) -> Result<()> {
    let from = |summary: Option<ringwal_engine::StreamSummary>| {
        args.from.unwrap_or_else(|| summary.map_or(0, |summary| summary.trimmed))
    };
    let mut reader = StreamReader::open(&args.directory, stream, from)?;
    reader.check_exists()?;
    let mut lines = Lines::new(args.json);
    let mut left = args.limit.unwrap_or(u64::MAX);
    if left > 0 {
        reader.read(|record| {
            lines.push(stream, record.offset(), record.epoch(), record.payload())?;
            left -= 1;
            Ok(left > 0)
        })?;
    }
    lines.flush()?;
    reader.finish()
}

fn dump_all(args: &DumpArgs) -> Result<()> {
    let snapshot = open(&args.directory)?;
    let mut lines = Lines::new(args.json);
    let mut left = args.limit.unwrap_or(u64::MAX);
    let mut outcome = Ok(());
    let damages = snapshot
        .visit(|record| {
            if left == 0 {
                return ControlFlow::Break(());
            }
            left -= 1;
            let stream = record.stream.get();
            outcome = lines.push(stream, record.offset, record.epoch, record.payload);
            if outcome.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })
        .map_err(|error| Failure::open(&error))?;
    outcome?;
    lines.flush()?;
    // What a limit kept from being read is no damage.
    if left > 0 { check(&args.directory, &snapshot, damages) } else { Ok(()) }
}

/// Fails when not everything could be read.
fn check(directory: &Path, snapshot: &Snapshot, damages: Vec<Damage>) -> Result<()> {
    let found = snapshot.damages();
    if damages.is_empty() && found.is_empty() {
        return Ok(());
    }
    let what = format!("{} cannot be read whole", directory.display());
    let mut failure = Failure::new(Exit::Corrupt, what);
    for damage in damages {
        failure = failure.cause(damage.to_string());
    }
    for (shard, damage) in found {
        failure = failure.cause(format!("shard {shard}: {damage}"));
    }
    Err(failure.fix(format!("ringwal verify {}", directory.display())).into())
}

#[derive(Default)]
struct Counts {
    records: u64,
    payload_bytes: u64,
}

fn stats(args: &DumpArgs) -> Result<()> {
    let snapshot = open(&args.directory)?;
    let mut counts: BTreeMap<u64, Counts> = BTreeMap::new();
    let damages = snapshot
        .visit(|record| {
            let counts = counts.entry(record.stream.get()).or_default();
            counts.records += 1;
            counts.payload_bytes += record.payload.len() as u64;
            ControlFlow::Continue(())
        })
        .map_err(|error| Failure::open(&error))?;
    let streams: Vec<_> = snapshot
        .streams()
        .into_iter()
        .filter(|summary| args.stream.is_none_or(|stream| summary.stream.get() == stream))
        .collect();
    let none = Counts::default();
    let of = |stream: u64| counts.get(&stream).unwrap_or(&none);
    if args.json {
        let streams: Vec<_> = streams
            .iter()
            .map(|summary| {
                let counts = of(summary.stream.get());
                json!({
                    "stream": summary.stream.get(), "shard": summary.shard,
                    "records": counts.records, "payload_bytes": counts.payload_bytes,
                    "trimmed": summary.trimmed, "end": summary.end, "epoch": summary.epoch,
                })
            })
            .collect();
        print_json(&json!({ "schema": "ringwal.dump-stats/1", "streams": streams }))?;
    } else {
        let mut text = format!(
            "{:>20} {:>5} {:>12} {:>12} {:>12} {:>12} {:>6}\n",
            "stream", "shard", "records", "payload", "trimmed", "end", "epoch"
        );
        for summary in &streams {
            let counts = of(summary.stream.get());
            text += &format!(
                "{:>20} {:>5} {:>12} {:>12} {:>12} {:>12} {:>6}\n",
                summary.stream.get(),
                summary.shard,
                counts.records,
                size(counts.payload_bytes),
                summary.trimmed,
                summary.end,
                summary.epoch
            );
        }
        let records: u64 = streams.iter().map(|summary| of(summary.stream.get()).records).sum();
        let bytes = streams.iter().map(|summary| of(summary.stream.get()).payload_bytes).sum();
        let streams = super::count(streams.len() as u64, "stream", "streams");
        let records = super::count(records, "record", "records");
        text += &format!("{streams}, {records}, {}\n", size(bytes));
        exit::print_last(&text)?;
    }
    check(&args.directory, &snapshot, damages)
}
