//! What was promised, and what must hold of every node at every moment.

use std::collections::BTreeMap;

use ringwal_engine::{EpochTable, Shard, StreamId};
use ringwal_replication::history::Held;
use ringwal_replication::node_id::NodeId;
use ringwal_replication::promise::Promise;

use super::node::Node;

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
    epochs "epochs begun"
    elections_failed "epochs given up for want of a majority"
    deposed "leaders that learnt of a greater epoch"
    sessions "sessions that began"
    refused "sessions refused"
    breaks "connections that broke"
    partitions "partitions"
    power_cuts "power cuts"
    kills "kills"
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
    /// What each node has ever promised.
    promised: BTreeMap<NodeId, Promise>,
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

    /// What has a quorum receipt is durable on a majority now. A node that is down may have it.
    pub fn check_receipts(&mut self, nodes: &[Node]) {
        for (stream, offset) in std::mem::take(&mut self.receipts) {
            let may_have = |node: &&Node| {
                node.shard.as_ref().is_none_or(|shard| held(shard, stream).end > offset)
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
    pub fn note_committed(&mut self, shard: &Shard, stream: StreamId, end: u64) {
        self.counts.committed += 1;
        let from = self.committed_ends.get(&stream).copied().unwrap_or(0);
        let from = from.max(held(shard, stream).trimmed);
        for (offset, written) in records(shard, stream, from, end) {
            self.commit(stream, offset, written);
        }
    }

    /// A node cuts records of a stream: never what is committed (I-14).
    pub fn note_cut(&mut self, stream: StreamId, cut: &[(u64, Written)]) {
        self.counts.cuts += 1;
        self.counts.orphans += cut.len() as u64;
        for (offset, written) in cut {
            let committed = self.committed.get(&(stream, *offset));
            assert_ne!(committed, Some(written), "offset {offset} of stream {stream} is cut");
        }
    }

    /// Every record of a node is one that was written there.
    pub fn check_node(&mut self, shard: &Shard) {
        for summary in shard.streams() {
            if !ringwal_replication::promise::is_replicated(summary.stream) {
                continue;
            }
            let stream = summary.stream;
            for (offset, (epoch, record)) in records(shard, stream, summary.trimmed, summary.end) {
                self.see(stream, epoch, offset, record);
            }
        }
    }

    /// A new leader has everything that was ever committed.
    pub fn check_leader(&mut self, shard: &Shard) {
        self.check_node(shard);
        for (stream, end) in self.committed_ends.clone() {
            let held = held(shard, stream);
            assert!(held.end >= end, "stream {stream} ends at {}, {end} is committed", held.end);
            for (offset, written) in records(shard, stream, held.trimmed, end) {
                self.commit(stream, offset, written);
            }
        }
    }

    /// Two nodes hold the same, as far as neither has trimmed it.
    pub fn check_equal(&self, one: &Shard, other: &Shard) {
        let streams = |shard: &Shard| -> Vec<StreamId> {
            let all = shard.streams().into_iter();
            all.filter(|summary| {
                ringwal_replication::promise::is_replicated(summary.stream) && summary.end > 0
            })
            .map(|summary| summary.stream)
            .collect()
        };
        assert_eq!(streams(one), streams(other));
        for stream in streams(one) {
            let (mine, theirs) = (held(one, stream), held(other, stream));
            assert_eq!(mine.end, theirs.end, "stream {stream} ends elsewhere");
            let from = mine.trimmed.max(theirs.trimmed);
            let (mine, theirs) =
                (records(one, stream, from, mine.end), records(other, stream, from, theirs.end));
            assert_eq!(mine, theirs, "stream {stream} differs");
        }
    }
}

/// What a node holds of a stream.
pub fn held(shard: &Shard, stream: StreamId) -> Held {
    let summary = shard.streams().into_iter().find(|summary| summary.stream == stream);
    let Some(summary) = summary else { return Held::default() };
    let epochs = EpochTable::from_entries(shard.epochs(stream)).expect("the engine's own table");
    Held { trimmed: summary.trimmed, end: summary.end, epochs }
}

/// Everything that a node holds, by stream.
pub fn all_held(shard: &Shard) -> BTreeMap<StreamId, Held> {
    shard
        .streams()
        .into_iter()
        .filter(|summary| ringwal_replication::promise::is_replicated(summary.stream))
        .map(|summary| (summary.stream, held(shard, summary.stream)))
        .collect()
}

/// Offsets with epoch and number of a range of records; each is as it was made.
pub fn records(shard: &Shard, stream: StreamId, from: u64, end: u64) -> Vec<(u64, Written)> {
    if from >= end {
        return Vec::new();
    }
    let records = shard.read(stream, from..end).expect("it is not trimmed");
    let all: Vec<_> = records
        .map(|record| {
            let record = record.unwrap_or_else(|error| panic!("stream {stream}: {error}"));
            let bytes: &[u8] = record.payload();
            let number = u64::from_le_bytes(*bytes.first_chunk().expect("a number"));
            assert_eq!(*bytes, *payload(number, bytes.len()), "record {number} is damaged");
            (record.offset(), (record.epoch(), number))
        })
        .collect();
    assert_eq!(all.len() as u64, end - from, "stream {stream} {from}..{end} has a hole");
    all
}

/// The bytes of a record.
pub fn payload(number: u64, length: usize) -> Vec<u8> {
    crate::random::payload(7, number, length)
}
