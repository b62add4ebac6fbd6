//! `ringwal inspect`: what a directory holds, orphans included.

use std::fmt::Write as _;

use anyhow::Result;
use ringwal_engine::offline::{
    self, FileInspection, Inspection, ShardInspection, StreamInspection,
};
use serde_json::{Value, json};

use super::{InspectArgs, hex, orphans, print_json, range_json, size};
use crate::exit::{self, Exit, Failure};

/// Spans and epochs of a stream that the table shows; JSON has all.
const SHOWN: usize = 4;

/// Runs the subcommand.
pub fn run(args: &InspectArgs) -> Result<Exit> {
    let inspection = offline::inspect(&args.directory).map_err(|error| Failure::open(&error))?;
    let kept = offline::orphans(&args.directory).map_err(|error| Failure::open(&error))?;
    if args.json {
        let mut value = json(&inspection);
        value["orphans"] = kept.iter().map(orphans::json).collect();
        print_json(&value)?;
    } else {
        exit::print_last(&(table(&inspection) + &orphans::table(&kept, &inspection.engine_id)))?;
    }
    let is_damaged =
        |shard: &ShardInspection| !shard.damages.is_empty() || !shard.missing.is_empty();
    let damaged = inspection.shards.iter().any(is_damaged) || orphans::any_damaged(&kept);
    Ok(if damaged { Exit::Corrupt } else { Exit::Success })
}

fn table(inspection: &Inspection) -> String {
    let (major, minor) = inspection.format;
    let mut text = format!(
        "{}: engine {}, format {major}.{minor}, {}, segments of {}{}\n",
        inspection.directory.display(),
        hex(&inspection.engine_id),
        super::count(inspection.shards.len() as u64, "shard", "shards"),
        size(inspection.segment_bytes),
        if inspection.in_use { ", in use" } else { "" },
    );
    for shard in &inspection.shards {
        text += &shard_table(shard);
    }
    text
}

fn shard_table(shard: &ShardInspection) -> String {
    let end = &shard.end;
    let mut text = format!(
        "\nshard {}: incarnation {}; ends in segment {} at byte {} with batch {}",
        shard.shard, shard.incarnation, end.number, end.offset, end.sequence
    );
    if let Some((number, generation)) = shard.anchor {
        let _ = write!(text, "; anchor: segment {number}, generation {generation}");
    }
    text += "\n";
    let _ = writeln!(
        text,
        "  {:<18} {:<16} {:>10} {:>11} {:>9} {:>21} {:>10} {:>10} {:>10}  next",
        "file",
        "state",
        "generation",
        "incarnation",
        "batches",
        "sequence",
        "records",
        "payload",
        "end"
    );
    for file in &shard.files {
        text += &file_line(file);
    }
    let _ = writeln!(
        text,
        "  {:>20} {:>12} {:>12}  epochs (epoch@offset), and offsets by segment",
        "stream", "trimmed", "end"
    );
    for stream in &shard.streams {
        text += &stream_line(stream);
    }
    if let Some((file, byte)) = &shard.torn {
        let _ = writeln!(text, "  torn: {file} at byte {byte}, cut by the next open");
    }
    for damage in &shard.damages {
        let _ = writeln!(text, "  damaged: {damage}");
    }
    for missing in &shard.missing {
        let _ = writeln!(text, "  missing: {missing}");
    }
    text
}

fn file_line(file: &FileInspection) -> String {
    let optional = |value: Option<u64>| value.map_or_else(String::new, |value| value.to_string());
    let sequences = file.sequences.map_or_else(String::new, |(a, b)| format!("{a}..={b}"));
    let next = file.successor.map_or_else(String::new, |(number, _)| number.to_string());
    let line = format!(
        "  {:<18} {:<16} {:>10} {:>11} {:>9} {:>21} {:>10} {:>10} {:>10}  {next}",
        file.name,
        file.state.word(),
        optional(file.generation),
        optional(file.incarnation),
        file.batches,
        sequences,
        file.records,
        size(file.payload_bytes),
        file.end_offset,
    );
    format!("{}\n", line.trim_end())
}

fn stream_line(stream: &StreamInspection) -> String {
    let more =
        |all: usize| if all > SHOWN { format!(" (+{})", all - SHOWN) } else { String::new() };
    let epochs: Vec<_> = stream
        .epochs
        .iter()
        .rev()
        .take(SHOWN)
        .rev()
        .map(|entry| format!("{}@{}", entry.epoch, entry.start))
        .collect();
    let spans: Vec<_> = stream
        .spans
        .iter()
        .take(SHOWN)
        .map(|span| format!("{}..{} in {}", span.offsets.start, span.offsets.end, span.segment))
        .collect();
    format!(
        "  {:>20} {:>12} {:>12}  {}{}; {}{}\n",
        stream.stream.get(),
        stream.trimmed,
        stream.end,
        epochs.join(" "),
        more(stream.epochs.len()),
        spans.join(", "),
        more(stream.spans.len()),
    )
}

fn json(inspection: &Inspection) -> Value {
    json!({
        "schema": "ringwal.inspect/1",
        "directory": inspection.directory,
        "engine_id": hex(&inspection.engine_id),
        "format": { "major": inspection.format.0, "minor": inspection.format.1 },
        "segment_bytes": inspection.segment_bytes,
        "in_use": inspection.in_use,
        "shards": inspection.shards.iter().map(shard_json).collect::<Vec<_>>(),
    })
}

fn shard_json(shard: &ShardInspection) -> Value {
    let end = &shard.end;
    let place =
        |(number, generation): (u64, u64)| json!({ "segment": number, "generation": generation });
    json!({
        "shard": shard.shard,
        "incarnation": shard.incarnation,
        "anchor": shard.anchor.map(place),
        "end": {
            "segment": end.number, "generation": end.generation, "byte": end.offset,
            "sequence": end.sequence, "crc32c": format!("{:08x}", end.crc),
        },
        "torn": shard.torn.as_ref().map(|(file, byte)| json!({ "file": file, "byte": byte })),
        "damages": shard.damages.iter().map(|damage| json!({
            "file": damage.file, "from": damage.bytes.start, "until": damage.bytes.end,
            "what": damage.what,
        })).collect::<Vec<_>>(),
        "missing": shard.missing.iter().map(range_json).collect::<Vec<_>>(),
        "files": shard.files.iter().map(|file| json!({
            "name": file.name, "bytes": file.length, "state": file.state.word(),
            "generation": file.generation, "incarnation": file.incarnation,
            "batches": file.batches,
            "first_sequence": file.sequences.map(|(first, _)| first),
            "last_sequence": file.sequences.map(|(_, last)| last),
            "end_offset": file.end_offset, "records": file.records,
            "payload_bytes": file.payload_bytes, "footer": file.has_footer,
            "successor": file.successor.map(place),
        })).collect::<Vec<_>>(),
        "streams": shard.streams.iter().map(|stream| json!({
            "stream": stream.stream.get(), "trimmed": stream.trimmed, "end": stream.end,
            "epochs": stream.epochs.iter().map(|entry| json!({
                "epoch": entry.epoch, "start": entry.start,
            })).collect::<Vec<_>>(),
            "spans": stream.spans.iter().map(|span| json!({
                "segment": span.segment, "generation": span.generation,
                "from": span.offsets.start, "until": span.offsets.end,
            })).collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
    })
}
