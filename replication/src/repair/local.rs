//! What a damaged directory still tells, read-only.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use bytes::Bytes;
use ringwal_engine::offline::{self, FileState, Severity, Verification};
use ringwal_engine::{Engine, Io, OpenError, ReadError, StreamId};

use super::RepairFromError;
use super::marker::greater;
use crate::history::Held;
use crate::promise::{FACTS_STREAM, Fact, Promise};
use crate::worker;

/// Bytes of frames of streams 1 and 2 that are carried over; they are held in memory.
const OWN_BYTES_MAX: usize = 64 << 20;

/// See the module.
pub(super) struct Local {
    pub(super) shards: u16,
    /// Damaged shards, and whether what they held is told: where each stream ended.
    pub(super) damaged: BTreeMap<u16, bool>,
    /// Every replicated stream.
    pub(super) held: BTreeMap<StreamId, Held>,
    pub(super) promise: Option<Promise>,
    pub(super) committed: BTreeMap<StreamId, u64>,
    /// There are, or were, records of stream 3.
    has_facts: bool,
    /// Every record of stream 3 that there ever was has been read.
    pub(super) are_facts_whole: bool,
    /// Streams 1 and 2 in damaged shards: frames, or why not all can be read.
    pub(super) own: BTreeMap<StreamId, Result<Vec<Bytes>, String>>,
}

impl Local {
    pub(super) fn read(directory: &Path, found: &Verification) -> Result<Self, RepairFromError> {
        let damaged = damaged(directory, found)?;
        let mut local = Self {
            shards: found.shards,
            damaged,
            held: BTreeMap::new(),
            promise: None,
            committed: BTreeMap::new(),
            has_facts: false,
            are_facts_whole: false,
            own: BTreeMap::new(),
        };
        let options = Engine::options().read_only(true).io(Io::Blocking);
        let engine = match options.open(directory) {
            Ok(engine) => engine,
            Err(OpenError::Corrupt(_)) if local.is_all_gone(found) => return Ok(local),
            Err(error) => return Err(error.into()),
        };
        local.held = worker::held(&engine);
        local.read_facts(&engine, found);
        local.read_own(&engine);
        engine.close()?;
        Ok(local)
    }

    /// Whether a shard's folder is gone, and nothing else is damaged: then nothing can be read, and
    /// nothing that can be read is given up.
    fn is_all_gone(&self, found: &Verification) -> bool {
        let is_whole = |shard: &u16| {
            found.cuts.iter().any(|cut| (cut.shard, cut.segment, cut.byte) == (*shard, 0, 0))
        };
        self.damaged.keys().all(is_whole)
    }

    pub(super) fn shard(&self, stream: StreamId) -> u16 {
        stream.shard(self.shards)
    }

    /// Whether it is the directory of a node: a node promises before it has any record, and whoever
    /// leads has an epoch. Where nothing is left, it may be one.
    pub(super) fn may_be_of_a_node(&self) -> bool {
        let has_epochs = self.held.values().any(|held| held.epochs.last().epoch > 0);
        let is_unknown = self.held.is_empty() && self.is_told(FACTS_STREAM) == Some(false);
        self.has_facts || has_epochs || is_unknown
    }

    /// Whether the shard of a stream is damaged, and if so, whether it is told what it held.
    pub(super) fn is_told(&self, stream: StreamId) -> Option<bool> {
        self.damaged.get(&self.shard(stream)).copied()
    }

    /// The last of each kind counts, or rather the greatest: what is known never falls.
    fn read_facts(&mut self, engine: &Engine, found: &Verification) {
        let stream = engine.stream(FACTS_STREAM);
        self.has_facts = stream.end() > 0;
        let mut is_whole = true;
        let mut next = stream.trimmed();
        while next < stream.end() {
            let record = stream.read(next..).and_then(|mut records| records.next().transpose());
            match record {
                Ok(Some(record)) => {
                    next = record.offset() + 1;
                    match Fact::decode(record.payload()) {
                        // Which disk another member had is learned again when it is led.
                        // It is learnt again from the embedder's log.
                        Some(Fact::Member(..) | Fact::Begun(_)) => {}
                        Some(Fact::Promise(promise)) => {
                            self.promise = greater(self.promise, Some(promise));
                        }
                        Some(Fact::Committed(ends)) => {
                            for (stream, end) in ends {
                                let known = self.committed.entry(stream).or_default();
                                *known = end.max(*known);
                            }
                        }
                        None => {}
                    }
                }
                Err(ReadError::Missing { next: after, .. }) => {
                    (is_whole, next) = (false, after.max(next + 1));
                }
                Ok(None) | Err(_) => (is_whole, next) = (false, next + 1),
            }
        }
        let mut lost = found.findings.iter().flat_map(|finding| &finding.lost);
        let is_lost = lost.any(|range| range.stream == FACTS_STREAM);
        self.are_facts_whole = is_whole && !is_lost && self.is_told(FACTS_STREAM) != Some(false);
    }

    fn read_own(&mut self, engine: &Engine) {
        for stream in [1, 2].map(StreamId::new) {
            let Some(is_told) = self.is_told(stream) else { continue };
            if engine.stream(stream).end() > 0 {
                self.own.insert(stream, read_all(engine, stream, is_told));
            }
        }
    }
}

/// Damaged shards, and whether it is told where their streams ended: when all that is damaged lies in
/// segments whose index is whole. Of the others, and of segments that are missing, nothing tells how
/// much the last batches held.
fn damaged(directory: &Path, found: &Verification) -> Result<BTreeMap<u16, bool>, OpenError> {
    let corrupt = found.findings.iter().filter(|finding| finding.severity == Severity::Corrupt);
    let mut damaged = BTreeMap::new();
    let mut sealed = BTreeSet::new();
    if let Ok(inspection) = offline::inspect(directory) {
        for shard in inspection.shards {
            for file in shard.files.into_iter().filter(|file| file.state == FileState::Sealed) {
                sealed.insert((shard.shard, file.name));
            }
        }
    }
    for finding in corrupt {
        let Some(shard) = finding.shard else { continue };
        let name = finding.file.file_name().map(|name| name.to_string_lossy().into_owned());
        let is_sealed = name.is_some_and(|name| sealed.contains(&(shard, name)));
        let is_told = is_sealed && !finding.lost_untold;
        *damaged.entry(shard).or_insert(true) &= is_told;
    }
    Ok(damaged)
}

fn read_all(engine: &Engine, stream: StreamId, is_told: bool) -> Result<Vec<Bytes>, String> {
    if !is_told {
        return Err("nothing tells how much it held".into());
    }
    let stream = engine.stream(stream);
    let mut frames = stream.frames(stream.trimmed());
    let (mut all, mut bytes) = (Vec::new(), 0);
    loop {
        let batch = frames.next_batch(1 << 20).map_err(|error| error.to_string())?;
        if batch.is_empty() {
            return Ok(all);
        }
        // A copy: a slice would keep all that was read with it.
        all.extend(batch.iter().map(|frame| Bytes::copy_from_slice(&frame.bytes)));
        bytes += batch.iter().map(|frame| frame.bytes.len()).sum::<usize>();
        if bytes > OWN_BYTES_MAX {
            return Err(format!("it is longer than {OWN_BYTES_MAX} bytes"));
        }
    }
}
