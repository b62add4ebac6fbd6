//! What must hold when all nodes have come to rest and are closed: what clients were told and have seen, against
//! the log that is in the directories.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context as _, Result};
use ringwal_raft_fallback::command::{Command, DecodeError, Record};
use ringwal_replication::Ack;

use super::child::digest_of;
use super::lines::content;
use super::operator::Rest;
use super::record::{History, Seen};
use crate::history::content::Contents;
use crate::history::{
    Asked, Key, Log, Origin, Outcome, Place, acknowledged, epochs, order, session_key,
};
use crate::nodes::directory;
use crate::random::hash;
use crate::report::Report;

/// The metadata stream.
const METADATA: u64 = 0;
/// Failures of a kind after which more of them tell nothing new.
const TOLD_MAX: usize = 3;

/// The records of a stream in order: epoch and bytes.
type Records = Vec<(u64, Vec<u8>)>;

/// What one node's directory holds.
#[derive(Debug, Default)]
struct Held {
    streams: BTreeMap<u64, Records>,
    /// Records of the metadata stream that were cut.
    orphans: BTreeMap<Place, Vec<u8>>,
}

impl Held {
    /// Takes away what has come after all nodes were at rest: what a leader has written for itself while the others
    /// closed, which no majority has. Anything else should not be there.
    fn take_after(&mut self, end: u64) -> Vec<String> {
        let records = self.streams.entry(METADATA).or_default();
        let end = end as usize;
        if records.len() < end {
            return vec![format!("{} records are left of {end}", records.len())];
        }
        let after = records.split_off(end).into_iter();
        let decoded = after.map(|(_, bytes)| Record::decode(&bytes));
        let is_nobodys = |record: &Result<Record, DecodeError>| {
            let record = record.as_ref();
            record.map_or(true, |record| origin_of(record, &BTreeSet::new()) != Origin::Leader)
        };
        let others = decoded.filter(is_nobodys);
        others.map(|record| format!("after all were at rest: {record:?}")).collect()
    }
}

/// What was cut, on any node.
#[derive(Debug, Default)]
pub struct Orphans {
    /// Where it was.
    pub places: BTreeSet<Place>,
    /// Which commands.
    pub keys: BTreeSet<Key>,
}

impl Orphans {
    fn has(&self, asked: &Asked) -> bool {
        match &asked.outcome {
            Outcome::Executed { place: Some(place), .. } => self.places.contains(place),
            _ => self.keys.contains(&asked.key),
        }
    }
}

/// Holds closed directories against what clients were told.
///
/// # Errors
/// When a directory cannot be looked at.
pub fn run(
    history: &History,
    rest: &Rest,
    paths: &[&Path],
    report: &mut Report,
) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    let mut held = Vec::new();
    for (node, path) in paths.iter().enumerate() {
        let mut one = read(node, path, &mut wrong, report)?;
        wrong.extend(
            one.take_after(rest.end).into_iter().map(|what| format!("node {node}: {what}")),
        );
        held.push(one);
    }
    wrong.extend(compare(&held));
    let known: BTreeSet<Key> = history.asked.iter().map(|asked| asked.key).collect();
    let origin = |record: &Record| origin_of(record, &known);
    let mut orphans = Orphans::default();
    for (place, bytes) in held.iter().flat_map(|held| &held.orphans) {
        orphans.places.insert(*place);
        if let Ok(Origin::Client(key)) = Record::decode(bytes).as_ref().map(origin) {
            orphans.keys.insert(key);
        }
    }
    let none = Records::new();
    let records = held[0].streams.get(&METADATA).unwrap_or(&none);
    report.cover("records of the metadata stream", records.len() as u64);
    report.cover("records in orphans", orphans.places.len() as u64);
    let looks = history.seen.iter().map(|seen| seen.look.clone()).collect();
    let mut contents = Contents::new(looks);
    let records = records.iter().map(|(epoch, bytes)| (*epoch, &bytes[..]));
    let log = Log::execute(records, origin, |state| contents.compare(state));
    let digest = digest_of(&log.state)?;
    for (node, other) in rest.digests.iter().enumerate().filter(|(_, other)| **other != digest) {
        wrong
            .push(format!("node {node} had another state than its log: {other:x}, not {digest:x}"));
    }
    let of_others = contents.finish(|place| orphans.places.contains(&place));
    report.cover("reads of what was cut later", of_others);
    report.cover("reads held against the log", contents.compared);
    report.cover("epochs in the log", BTreeSet::from_iter(log.epochs.iter()).len() as u64);
    wrong.extend(contents.wrong);
    wrong.extend(going_back(&history.seen));
    wrong.extend(log.wrong.iter().cloned());
    let (told, lost) = told(history, &log, &orphans);
    report.cover("commands that died with their leader", lost);
    wrong.extend(told);
    report.pass((history.asked.len() + history.seen.len()) as u64);
    if wrong.is_empty() {
        wrong.extend(self_check(history, &log, &orphans));
    }
    Ok(wrong)
}

/// Who wanted a record: a command whose session is not known was executed by a node for one of its own clients.
fn origin_of(record: &Record, known: &BTreeSet<Key>) -> Origin {
    let session = record.session.as_ref().map(session_key).filter(|key| known.contains(key));
    let key = session.unwrap_or_else(|| content(&record.command));
    match record.command {
        _ if known.contains(&key) => Origin::Client(key),
        Command::RaiseVersion { version: 1 } if record.session.is_none() => Origin::Leader,
        _ => Origin::Nobody,
    }
}

/// What is not as it was told.
fn told(history: &History, log: &Log, orphans: &Orphans) -> (Vec<String>, u64) {
    let (mut wrong, lost) = acknowledged::check(&history.asked, log, |asked| orphans.has(asked));
    wrong.extend(epochs::check(&history.asked));
    wrong.truncate(TOLD_MAX);
    wrong.extend(order::check(&history.asked, &history.reads, log));
    (wrong, lost)
}

fn read(node: usize, path: &Path, wrong: &mut Vec<String>, report: &mut Report) -> Result<Held> {
    let mut held = Held::default();
    let read = directory::read(path, |found| {
        let record = (found.epoch, found.payload.to_vec());
        if !found.is_orphan {
            held.streams.entry(found.stream).or_default().push(record);
        } else if found.stream == METADATA {
            held.orphans.insert((found.epoch, found.offset), record.1);
        }
    });
    let read = read.with_context(|| format!("node {node}"))?;
    report.cover("orphans", read.orphans);
    wrong.extend(read.wrong.into_iter().map(|what| format!("node {node}: {what}")));
    for (stream, trimmed) in read.trimmed.into_iter().filter(|(_, trimmed)| *trimmed > 0) {
        wrong.push(format!("node {node}: stream {stream} is trimmed to {trimmed}; nobody asked"));
    }
    Ok(held)
}

/// All nodes hold the same, and one record is at each epoch and offset (I-17), also where it was cut.
fn compare(held: &[Held]) -> Vec<String> {
    let mut wrong = Vec::new();
    for (node, other) in held.iter().enumerate().skip(1) {
        let streams: BTreeSet<&u64> = held[0].streams.keys().chain(other.streams.keys()).collect();
        for stream in streams {
            let records = |held: &Held| held.streams.get(stream).cloned().unwrap_or_default();
            let (one, two) = (records(&held[0]), records(other));
            if one != two {
                let at = one.iter().zip(&two).position(|(one, two)| one != two);
                let ends = (one.len(), two.len());
                wrong.push(format!(
                    "stream {stream}: nodes 0 and {node} differ at {at:?}, their ends are {ends:?}"
                ));
            }
        }
    }
    let mut at: BTreeMap<Place, u64> = BTreeMap::new();
    for held in held {
        let records = held.streams.get(&METADATA).into_iter().flatten().zip(0..);
        let present = records.map(|((epoch, bytes), offset)| ((*epoch, offset), bytes));
        for (place, bytes) in present.chain(held.orphans.iter().map(|(at, bytes)| (*at, bytes))) {
            let hash = hash(bytes);
            if *at.entry(place).or_insert(hash) != hash {
                wrong.push(format!("two records at epoch and offset {place:?}"));
            }
        }
    }
    wrong
}

/// What a client of a node sees goes back only together with a greater epoch.
fn going_back(seen: &[Seen]) -> Vec<String> {
    let (mut wrong, mut last) = (Vec::new(), BTreeMap::new());
    for seen in seen {
        let Some(progress) = seen.progress else { continue };
        let present = (progress, seen.look.end);
        let before = last.insert(seen.client, present).unwrap_or_default();
        if present < before {
            wrong.push(format!("{seen:?} comes after {before:?}"));
        }
    }
    wrong
}

/// Lies about this history: each of them has to be noticed.
fn self_check(history: &History, log: &Log, orphans: &Orphans) -> Vec<String> {
    type Lie = (&'static str, fn(&mut History, &mut Log) -> Option<()>);
    fn committed(history: &mut History) -> Option<&mut Asked> {
        history.asked.iter_mut().find(|asked| {
            let outcome = &asked.outcome;
            matches!(outcome, Outcome::Executed { place: Some(_), durable: Ack::Quorum, .. })
        })
    }
    let lies: [Lie; 7] = [
        ("a command of a majority that is not there", |history, log| {
            log.executed.remove(&committed(history)?.key).map(drop)
        }),
        ("a command of a majority at another offset", |history, log| {
            log.executed.get_mut(&committed(history)?.key)?.place.1 += 1;
            Some(())
        }),
        ("a command of a majority in another epoch", |history, log| {
            log.executed.get_mut(&committed(history)?.key)?.place.0 += 1;
            Some(())
        }),
        ("a command that is done and was said not to be", |history, _| {
            committed(history)?.outcome = Outcome::NotDone;
            Some(())
        }),
        ("the first command asked after all others were answered", |history, log| {
            let (first, _) = log.executed.iter().min_by_key(|(_, there)| there.place.1)?;
            history.asked.iter_mut().find(|asked| asked.key == *first)?.asked_ns = u64::MAX;
            Some(())
        }),
        ("a read that has not seen what was answered", |history, log| {
            let last = history.reads.iter_mut().max_by_key(|read| read.asked_ns)?;
            (last.end, last.epoch) = (1, Some(*log.epochs.first()?));
            Some(())
        }),
        ("a read of what comes later", |history, log| {
            let first = history.reads.iter_mut().min_by_key(|read| read.asked_ns)?;
            (first.end, first.epoch) = (log.epochs.len() as u64, Some(*log.epochs.last()?));
            Some(())
        }),
    ];
    let mut missed = Vec::new();
    for (what, lie) in lies {
        let mut history = history.clone();
        let mut told_of =
            Log { executed: log.executed.clone(), epochs: log.epochs.clone(), ..Log::default() };
        let is_told = lie(&mut history, &mut told_of).is_some();
        if !is_told || told(&history, &told_of, orphans).0.is_empty() {
            missed.push(format!("the checker does not notice {what}"));
        }
    }
    missed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::content::Look;

    fn held(records: &[(u64, &[u8])], orphans: &[(Place, &[u8])]) -> Held {
        let records = records.iter().map(|(epoch, bytes)| (*epoch, bytes.to_vec())).collect();
        let orphans = orphans.iter().map(|(place, bytes)| (*place, bytes.to_vec())).collect();
        Held { streams: BTreeMap::from([(METADATA, records)]), orphans }
    }

    #[test]
    fn nodes_hold_the_same() {
        let one = || held(&[(1, b"a"), (2, b"b")], &[((1, 1), b"c")]);
        assert_eq!(compare(&[one(), held(&[(1, b"a"), (2, b"b")], &[])]), Vec::<String>::new());
        for other in [
            held(&[(1, b"a")], &[]),
            held(&[(1, b"a"), (2, b"x")], &[]),
            held(&[(1, b"a"), (3, b"b")], &[]),
            held(&[(1, b"a"), (2, b"b"), (2, b"c")], &[]),
        ] {
            assert!(!compare(&[one(), other]).is_empty());
        }
    }

    #[test]
    fn behind_the_rest_is_only_what_a_leader_writes_for_itself() {
        let command = Command::RaiseVersion { version: 1 };
        let nothing = Record { time_ms: 0, session: None, command }.encode().unwrap();
        let mut with_nothing = held(&[(1, b"a"), (1, &nothing)], &[]);
        assert_eq!(with_nothing.take_after(1), Vec::<String>::new());
        assert_eq!(with_nothing.streams[&METADATA].len(), 1);
        assert_eq!(held(&[(1, b"a"), (1, b"b")], &[]).take_after(1).len(), 1);
        assert_eq!(held(&[(1, b"a")], &[]).take_after(2).len(), 1);
    }

    #[test]
    fn one_record_is_at_an_epoch_and_offset_also_where_it_was_cut() {
        let with = |orphan: (Place, &'static [u8])| held(&[(1, b"a"), (2, b"b")], &[orphan]);
        assert_eq!(compare(&[with(((1, 1), b"c")), with(((1, 1), b"c"))]).len(), 0);
        assert_eq!(compare(&[with(((1, 1), b"c")), with(((1, 1), b"d"))]).len(), 1);
        assert_eq!(compare(&[with(((1, 0), b"x")), with(((1, 1), b"c"))]).len(), 1);
    }

    #[test]
    fn what_a_node_shows_goes_back_only_with_a_greater_epoch() {
        let seen = |client, progress, end| Seen {
            client,
            progress: Some(progress),
            look: Look { end, epoch: Some(1), key: Vec::new(), version: None },
        };
        let fine = [seen(1, 1, 5), seen(2, 1, 4), seen(1, 1, 5), seen(1, 2, 3), seen(2, 1, 6)];
        assert_eq!(going_back(&fine), Vec::<String>::new());
        assert_eq!(going_back(&[seen(1, 2, 5), seen(1, 2, 4)]).len(), 1);
        assert_eq!(going_back(&[seen(1, 2, 5), seen(1, 1, 9)]).len(), 1);
    }
}
