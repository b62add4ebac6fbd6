//! What was promised, and what must hold of every node at every moment.

use std::collections::{BTreeMap, BTreeSet};

use ringwal_engine::StreamId;
use ringwal_replication::node_id::NodeId;
use ringwal_replication::promise::Promise;

use super::node::Node;
use super::orphans;
use super::store::Store;

macro_rules! counts {
    ($($name:ident $text:literal)*) => {
        /// How often things happened.
        #[derive(Clone, Eq, PartialEq, Debug, Default)]
        pub struct Counts { $(#[doc = $text] pub $name: u64,)* }

        impl Counts {
            /// All of them, with their names.
            pub fn all(&self) -> Vec<(&'static str, u64)> { vec![$(($text, self.$name),)*] }

            /// Takes over what another run has counted.
            pub fn merge(&mut self, other: &Self) { $(self.$name += other.$name;)* }
        }
    };
}

counts! {
    appends "records appended"
    local "receipts: durable at the leader"
    quorum "receipts: durable on a majority"
    unknown "appends whose outcome is unknown"
    refused_late "appends refused because the epoch was over"
    epochs "epochs begun"
    elections_failed "epochs given up for want of a majority"
    deposed "leaders that learnt of a greater epoch"
    sessions "sessions that began"
    refused "sessions refused"
    breaks "connections that broke"
    partitions "partitions"
    power_cuts "power cuts"
    kills "kills"
    died_promising "crashes inside a promise"
    died_changing "crashes inside a cut or a new beginning"
    died_electing "crashes inside an election"
    disks_lost "disks lost"
    disks_of_leaders_lost "disks of leaders lost"
    readmitted "nodes that vote again with new disks"
    several_shards "runs with several shards on each node"
    late_streams "streams made in the middle of a run"
    found_late "streams found by their durable end"
    read_errors "reads for followers that failed"
    lies_found "lies that ended a session"
    lies_ignored "lies that were ignored"
    old_messages "messages of a session that was over"
    healed "runs healed without a new epoch"
    sent "frames handed to connections"
    frames "frames taken by followers"
    no_room "frames that a follower had no space for"
    ignored "frames ignored"
    read "bytes read from segments for followers"
    dropped "frames dropped from memory"
    lagged "batches that were not handed over"
    cuts "cuts"
    orphans "records kept as orphans"
    anew "streams begun anew"
    trims "trims"
    committed "watermarks told"
}

/// A record by its epoch and number.
pub type Written = (u64, u64);

/// Knows every record.
#[derive(Default)]
pub struct Oracle {
    pub counts: Counts,
    /// What was seen at (stream, epoch, offset): one content for ever.
    seen: BTreeMap<(StreamId, u64, u64), u64>,
    /// What a majority has: it stays.
    committed: BTreeMap<(StreamId, u64), Written>,
    committed_ends: BTreeMap<StreamId, u64>,
    /// Up to where every record of that is known: a quorum receipt is of one record only.
    noted_ends: BTreeMap<StreamId, u64>,
    /// What each node has ever promised.
    promised: BTreeMap<NodeId, Promise>,
    /// What each node has kept as orphans, or was about to, when it began to cut.
    dropped: BTreeMap<NodeId, BTreeSet<orphans::Orphan>>,
    /// Quorum receipts that have not been compared with the disks yet: stream and offset.
    receipts: Vec<(StreamId, u64)>,
    records: u64,
}

impl Oracle {
    /// A number for the next record.
    pub fn next_record(&mut self) -> u64 {
        self.records += 1;
        self.records
    }

    /// A node holds this record.
    fn see(&mut self, stream: StreamId, epoch: u64, offset: u64, record: u64) {
        let known = *self.seen.entry((stream, epoch, offset)).or_insert(record);
        assert_eq!(known, record, "two records at {offset} of stream {stream} in epoch {epoch}");
    }

    /// A quorum receipt: the record is where it says, for ever.
    pub fn note_quorum(&mut self, stream: StreamId, epoch: u64, offset: u64, record: u64) {
        self.counts.quorum += 1;
        self.see(stream, epoch, offset, record);
        self.commit(stream, offset, (epoch, record));
        self.receipts.push((stream, offset));
    }

    /// What has a quorum receipt is durable on a majority now. A node that is down may have it, and
    /// one that has lost its disks may have had it when it said so.
    pub fn check_receipts(&mut self, nodes: &[Node]) {
        for (stream, offset) in std::mem::take(&mut self.receipts) {
            let may_have = |node: &&Node| {
                let has = |store: &Store| store.at(stream).end(stream) > offset;
                node.is_learner || node.store.as_ref().is_none_or(has)
            };
            let having = nodes.iter().filter(may_have).count();
            assert!(having > nodes.len() / 2, "offset {offset} of stream {stream} is on {having}");
        }
    }

    /// A node promises an epoch, or follows in it: never an older one than before, and never one
    /// of another run (I-11).
    pub fn note_promise(&mut self, node: NodeId, promise: Promise) {
        let before = *self.promised.entry(node).or_insert(promise);
        let is_right = before.epoch < promise.epoch || before == promise;
        assert!(is_right, "node {node} has promised {before:?}, and now {promise:?}");
        self.promised.insert(node, promise);
    }

    /// A node that starts again knows what it had promised.
    pub fn check_promise(&self, node: NodeId, promised: Option<Promise>) {
        let Some(before) = self.promised.get(&node) else { return };
        let is_known =
            promised.is_some_and(|promised| promised.epoch > before.epoch || promised == *before);
        assert!(is_known, "node {node} had promised {before:?}, and starts with {promised:?}");
    }

    /// A local receipt.
    pub fn note_local(&mut self, stream: StreamId, epoch: u64, offset: u64, record: u64) {
        self.counts.local += 1;
        self.see(stream, epoch, offset, record);
    }

    fn commit(&mut self, stream: StreamId, offset: u64, written: Written) {
        let known = *self.committed.entry((stream, offset)).or_insert(written);
        assert_eq!(known, written, "offset {offset} of stream {stream} is committed twice");
        let end = self.committed_ends.entry(stream).or_default();
        *end = (*end).max(offset + 1);
    }

    /// A leader says what is committed.
    pub fn note_committed(&mut self, store: &Store, stream: StreamId, end: u64) {
        self.counts.committed += 1;
        let noted = self.noted_ends.get(&stream).copied().unwrap_or(0);
        for (offset, written) in
            store.records(stream, noted.max(store.at(stream).trimmed(stream)), end)
        {
            self.commit(stream, offset, written);
        }
        self.noted_ends.insert(stream, noted.max(end));
    }

    /// A node drops records of a stream, that nothing else has from `lost` on: never what is
    /// committed (I-14), and nothing without a trace (I-12).
    pub fn note_cut(&mut self, node: NodeId, stream: StreamId, cut: &[(u64, Written)], lost: u64) {
        self.counts.cuts += 1;
        self.counts.orphans += cut.len() as u64;
        let dropped = self.dropped.entry(node).or_default();
        for (offset, written) in cut {
            let committed = self.committed.get(&(stream, *offset)).filter(|_| *offset >= lost);
            assert_ne!(committed, Some(written), "offset {offset} of stream {stream} is cut");
            dropped.insert((stream, *offset, written.0, written.1));
        }
    }

    /// A node has lost its disks, and with them what it promised and kept.
    pub fn note_lost(&mut self, node: NodeId) {
        self.promised.remove(&node);
        self.dropped.remove(&node);
    }

    /// Every record of a node is one that was written there, and what it has ever begun to drop is
    /// held or kept.
    pub fn check_node(&mut self, node: NodeId, store: &Store) {
        let mut all = orphans::all(store);
        for (stream, held) in store.all_held() {
            for (offset, (epoch, record)) in store.records(stream, held.trimmed, held.end) {
                self.see(stream, epoch, offset, record);
                all.insert((stream, offset, epoch, record));
            }
        }
        for dropped in self.dropped.get(&node).into_iter().flatten() {
            let (stream, offset, epoch, number) = *dropped;
            // It was not cut after all, and what is committed is in a snapshot when it is trimmed.
            let is_covered = self.committed.get(&(stream, offset)) == Some(&(epoch, number))
                && offset < store.at(stream).trimmed(stream);
            assert!(
                is_covered || all.contains(dropped),
                "node {node} has lost {dropped:?} without a trace: {:?} is held, {:?} committed",
                store.held(stream),
                self.committed.get(&(stream, offset))
            );
        }
    }

    /// A new leader has everything that was ever committed.
    pub fn check_leader(&mut self, node: NodeId, store: &Store) {
        self.check_node(node, store);
        for (stream, end) in self.committed_ends.clone() {
            let held = store.held(stream);
            assert!(held.end >= end, "stream {stream} ends at {}, {end} is committed", held.end);
            for (offset, written) in store.records(stream, held.trimmed, end) {
                self.commit(stream, offset, written);
            }
        }
    }

    /// Whether a node holds everything that was ever committed.
    pub fn has_everything(&self, store: &Store) -> bool {
        self.committed_ends.iter().all(|(stream, end)| {
            let held = store.held(*stream);
            let last = || store.records(*stream, end - 1, *end)[0].1;
            held.end >= *end
                && (held.trimmed >= *end
                    || Some(&last()) == self.committed.get(&(*stream, end - 1)))
        })
    }

    /// Two nodes hold the same, as far as neither has trimmed it.
    pub fn check_equal(&self, one: &Store, other: &Store) {
        let (mut mine, mut theirs) = (one.all_held(), other.all_held());
        mine.retain(|_, held| held.end > 0);
        theirs.retain(|_, held| held.end > 0);
        assert!(mine.keys().eq(theirs.keys()), "they have other streams");
        for (stream, mine) in mine {
            let theirs = &theirs[&stream];
            assert_eq!(mine.end, theirs.end, "stream {stream} ends elsewhere");
            let from = mine.trimmed.max(theirs.trimmed);
            let of = |store: &Store| store.records(stream, from, mine.end);
            assert_eq!(of(one), of(other), "stream {stream} differs");
        }
    }
}

/// The bytes of a record.
pub fn payload(number: u64, length: usize) -> Vec<u8> {
    crate::random::payload(7, number, length)
}
