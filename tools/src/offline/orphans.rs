//! Orphan files as `inspect` and `verify` show them, and as `dump --orphans` prints them.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::Result;
use ringwal_engine::offline::{self, Orphan, OrphanFacts, OrphanState};
use serde_json::{Value, json};

use super::lines::Lines;
use super::{DumpArgs, count, hex, size};
use crate::exit::{Exit, Failure};

/// Epochs that a line shows; JSON has all.
const SHOWN: usize = 4;

/// Whether one of them is damaged. A torn one is not: what is there of it is as it was written.
pub fn any_damaged(orphans: &[Orphan]) -> bool {
    orphans.iter().any(|orphan| orphan.state == OrphanState::Damaged)
}

/// All of them, a line each and one for what is wrong.
pub fn table(orphans: &[Orphan], engine_id: &[u8; 16]) -> String {
    if orphans.is_empty() {
        return String::new();
    }
    let mut text = "\norphans: records that were cut, kept beside the journal\n".to_owned();
    for orphan in orphans {
        let told = orphan.facts.map_or_else(String::new, |facts| told(orphan, &facts, engine_id));
        let bytes = size(orphan.bytes);
        text += &format!("  {}: {}, {bytes}{told}\n", orphan.file, orphan.state.word());
        if let Some(problem) = &orphan.problem {
            text += &format!("    {problem}\n");
        }
    }
    text
}

fn told(orphan: &Orphan, facts: &OrphanFacts, engine_id: &[u8; 16]) -> String {
    let OrphanFacts { stream, base_offset, end_offset, leader, epoch, .. } = facts;
    let epochs: Vec<_> = orphan
        .epochs
        .iter()
        .take(SHOWN)
        .map(|entry| format!("{}@{}", entry.epoch, entry.start))
        .collect();
    let more = match orphan.epochs.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!(" (+{more})"),
    };
    let other = match facts.engine_id == *engine_id {
        true => String::new(),
        false => format!(", of another engine ({})", hex(&facts.engine_id)),
    };
    format!(
        ", stream {stream}, offsets {base_offset}..{end_offset}, {}, epochs {}{more}, kept {} for node \
         {leader} in epoch {epoch}{other}",
        count(orphan.records(), "record", "records"),
        epochs.join(" "),
        time(facts.time_ns),
    )
}

fn time(unix_ns: u64) -> String {
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_nanos(unix_ns)).to_string()
}

/// Those that are not whole, a line each.
pub fn findings(orphans: &[Orphan]) -> String {
    let problems = orphans.iter().filter_map(|orphan| Some((orphan, orphan.problem.as_ref()?)));
    problems
        .map(|(orphan, problem)| format!("{} orphan: {problem}\n", orphan.state.word()))
        .collect()
}

/// What was read; nothing when there is none.
pub fn totals(directory: &Path, orphans: &[Orphan]) -> String {
    if orphans.is_empty() {
        return String::new();
    }
    format!(
        "{}: {}, {}, {} read and checked\n",
        directory.display(),
        count(orphans.len() as u64, "orphan", "orphans"),
        count(orphans.iter().map(Orphan::records).sum(), "record", "records"),
        size(orphans.iter().map(|orphan| orphan.bytes).sum()),
    )
}

/// Everything about one, for programs.
pub fn json(orphan: &Orphan) -> Value {
    let facts = orphan.facts.map(|facts| {
        json!({
            "engine_id": hex(&facts.engine_id), "stream": facts.stream,
            "from": facts.base_offset, "until": facts.end_offset,
            "time": time(facts.time_ns), "time_ns": facts.time_ns,
            "leader": facts.leader, "leader_epoch": facts.epoch, "leader_run": hex(&facts.run),
        })
    });
    json!({
        "file": orphan.file, "bytes": orphan.bytes, "state": orphan.state.word(),
        "kept": facts,
        "records": orphan.records(), "unreadable_records": orphan.unreadable_records,
        "frames": orphan.frames.frames,
        "epochs": orphan.epochs.iter().map(|entry| json!({
            "epoch": entry.epoch, "start": entry.start,
        })).collect::<Vec<_>>(),
        "problem": orphan.problem.as_ref().map(|problem| json!({
            "from": problem.bytes.start, "until": problem.bytes.end, "what": problem.what,
        })),
    })
}

/// `ringwal dump --orphans`: the records that were cut, file by file.
pub fn dump(args: &DumpArgs) -> Result<()> {
    let open = |error| Failure::open(&error);
    let orphans = offline::orphans(&args.directory).map_err(open)?;
    let mut lines = Lines::new(args.json);
    let mut left = args.limit.unwrap_or(u64::MAX);
    let mut problems = Vec::new();
    // One whose header is not to be believed may be of any stream.
    let is_asked = |orphan: &&Orphan| match (args.stream, &orphan.facts) {
        (Some(stream), Some(facts)) => facts.stream == stream,
        _ => true,
    };
    for orphan in orphans.iter().filter(is_asked) {
        if left == 0 {
            break;
        }
        let mut outcome = Ok(());
        let read = offline::visit_orphan(&args.directory, &orphan.file, |record| {
            if record.offset < args.from.unwrap_or(0) {
                return ControlFlow::Continue(());
            }
            let (stream, epoch) = (record.stream.get(), record.epoch);
            outcome = lines.push(stream, record.offset, epoch, record.payload);
            left -= 1;
            match left > 0 && outcome.is_ok() {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            }
        });
        outcome?;
        problems.extend(read.map_err(open)?.problem);
    }
    lines.flush()?;
    if problems.is_empty() {
        return Ok(());
    }
    let what = format!("not all orphans of {} can be read whole", args.directory.display());
    let failure = Failure::new(Exit::Corrupt, what);
    let failure = problems.iter().fold(failure, |failure, it| failure.cause(it.to_string()));
    Err(failure.fix(format!("ringwal verify {}", args.directory.display())).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_that_a_header_can_say_is_printed() {
        assert_eq!(time(0), "1970-01-01T00:00:00Z");
        assert!(time(u64::MAX).starts_with("2554-"));
    }
}
