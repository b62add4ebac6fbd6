//! What must hold when all nodes have come to rest and are closed: looked at offline, in their
//! directories.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use anyhow::{Context as _, Result};

use super::ledger::{Acknowledged, Ledger};
use super::payload::{STREAMS, parts, recognise};
use crate::nodes::directory;
use crate::report::Report;

/// Failures of a kind after which more of them tell nothing new.
const TOLD_MAX: usize = 5;

/// A place that has one content for ever: stream, offset, epoch.
type Place = (u64, u64, u64);

/// See the module.
struct Check<'a> {
    seed: u64,
    ledger: &'a Ledger,
    /// Which submission is where, on any node, in streams and in orphans.
    contents: HashMap<Place, u64>,
    /// And where a submission is, with its stream.
    places: HashMap<(u64, u64), Place>,
    wrong: Vec<String>,
}

/// What a node has: of a stream, the submission and the epoch at each offset from `trimmed` on.
#[derive(Default, Eq, PartialEq)]
struct Kept {
    trimmed: u64,
    records: Vec<(u64, u64)>,
}

/// What one node's directory holds.
struct Directory {
    streams: HashMap<u64, Kept>,
    /// Records in its orphans.
    orphans: HashSet<(Place, u64)>,
}

/// Holds closed directories against what clients were told.
///
/// # Errors
/// When a directory cannot be looked at.
pub fn run(seed: u64, ledger: &Ledger, paths: &[&Path], report: &mut Report) -> Result<()> {
    let wrong = Vec::new();
    let mut check = Check { seed, ledger, contents: HashMap::new(), places: HashMap::new(), wrong };
    let mut directories = Vec::new();
    for (node, path) in paths.iter().enumerate() {
        directories.push(check.read(node, path, report)?);
    }
    check.compare(&directories, report);
    for acknowledged in &ledger.acknowledged {
        check.find(acknowledged, &directories, report);
    }
    report.pass(ledger.acknowledged.len() as u64);
    let wrong = check.wrong;
    if wrong.len() > TOLD_MAX {
        report.fail(format!("seed {seed}: {} more are wrong", wrong.len() - TOLD_MAX));
    }
    wrong.into_iter().take(TOLD_MAX).for_each(|what| report.fail(format!("seed {seed}: {what}")));
    Ok(())
}

impl Check<'_> {
    fn read(&mut self, node: usize, path: &Path, report: &mut Report) -> Result<Directory> {
        let mut records: HashMap<u64, Vec<(u64, u64)>> = HashMap::new();
        let mut orphans = HashSet::new();
        let read = directory::read(path, |found| {
            let place = (found.stream, found.offset, found.epoch);
            let number = self.take(node, place, found.payload);
            if !found.is_orphan {
                let kept = records.entry(found.stream).or_default();
                kept.push((number.unwrap_or(u64::MAX), found.epoch));
            } else if let Some(number) = number {
                orphans.insert((place, number));
            }
        });
        let read = read.with_context(|| format!("node {node}"))?;
        self.wrong.extend(read.wrong.into_iter().map(|what| format!("node {node}: {what}")));
        let mut streams = HashMap::new();
        for (stream, trimmed) in read.trimmed {
            if !STREAMS.contains(&stream) {
                self.wrong.push(format!("node {node}: stream {stream} was never written"));
            }
            let records = records.remove(&stream).unwrap_or_default();
            report.cover("records read back", records.len() as u64);
            streams.insert(stream, Kept { trimmed, records });
        }
        report.cover("orphans", read.orphans);
        report.cover("records in orphans", orphans.len() as u64);
        Ok(Directory { streams, orphans })
    }

    /// Recognises a record, and compares it with what is known to be there, and elsewhere.
    fn take(&mut self, node: usize, place: Place, payload: &[u8]) -> Option<u64> {
        let (stream, offset, epoch) = place;
        let at = format!("node {node} stream {stream} offset {offset} epoch {epoch}");
        let number = match recognise(self.seed, stream, payload) {
            Ok(number) => number,
            Err(what) => {
                self.wrong.push(format!("{at}: {what}"));
                return None;
            }
        };
        if let Err(what) = self.ledger.may_be_there(stream, number) {
            self.wrong.push(format!("{at}: {what}"));
        }
        if parts(number).0 != epoch {
            self.wrong.push(format!("{at}: it was submitted in epoch {}", parts(number).0));
        }
        let known = *self.contents.entry(place).or_insert(number);
        if known != number {
            self.wrong.push(format!("{at}: submission {number:#x}, and elsewhere {known:#x}"));
        }
        let known = *self.places.entry((stream, number)).or_insert(place);
        if known != place {
            self.wrong.push(format!("{at}: submission {number:#x} is also at {known:?}"));
        }
        Some(number)
    }

    /// All nodes hold the same, from where none has trimmed on.
    fn compare(&mut self, directories: &[Directory], report: &mut Report) {
        let none = Kept::default();
        for stream in STREAMS {
            let kept: Vec<&Kept> = directories
                .iter()
                .map(|directory| directory.streams.get(&stream).unwrap_or(&none))
                .collect();
            let end = |kept: &Kept| kept.trimmed + kept.records.len() as u64;
            let from = kept.iter().map(|kept| kept.trimmed).max().unwrap_or(0);
            let asked = self.ledger.trimmed(stream);
            if from > asked {
                self.wrong.push(format!("stream {stream}: trimmed to {from}, asked for {asked}"));
            }
            let first = kept[0];
            for (node, other) in kept.iter().enumerate().skip(1) {
                if end(other) != end(first) {
                    let ends = (end(first), end(other));
                    self.wrong.push(format!("stream {stream}: nodes 0 and {node} end at {ends:?}"));
                    continue;
                }
                let tail = |kept: &Kept| kept.records[(from - kept.trimmed) as usize..].to_vec();
                let (one, two) = (tail(first), tail(other));
                if let Some(at) = (0..one.len()).find(|at| one[*at] != two[*at]) {
                    let what = (from + at as u64, one[at], two[at]);
                    self.wrong
                        .push(format!("stream {stream}: nodes 0 and {node} differ at {what:?}"));
                }
                report.pass(1);
            }
        }
    }

    /// Where a record with a receipt is now.
    fn find(&mut self, receipt: &Acknowledged, directories: &[Directory], report: &mut Report) {
        let Acknowledged { node, stream, epoch, offset, number, is_quorum } = *receipt;
        let holds = |directory: &Directory| {
            let kept = directory.streams.get(&stream)?;
            let at = offset.checked_sub(kept.trimmed)?;
            Some(kept.records.get(at as usize) == Some(&(number, epoch)))
        };
        // A directory that has trimmed it says nothing.
        if directories.iter().filter_map(holds).next().is_none() {
            let is_asked = offset < self.ledger.trimmed(stream);
            if !is_asked {
                self.wrong.push(format!("{receipt:?} is trimmed, which nobody asked for"));
            }
            report.cover("receipts below a trim", 1);
        } else if directories.iter().all(|directory| holds(directory) != Some(false)) {
            report.cover("receipts that are in the streams", 1);
        } else if is_quorum {
            self.wrong.push(format!("a majority had {receipt:?}, and it is lost"));
        } else if directories[node].orphans.contains(&((stream, offset, epoch), number)) {
            report.cover("local receipts that are in orphans", 1);
        } else {
            self.wrong.push(format!("{receipt:?} is in no stream, and in no orphan of its node"));
        }
    }
}
