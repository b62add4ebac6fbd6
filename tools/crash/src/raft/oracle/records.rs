//! One record for ever at each epoch and offset (I-17), with one outcome on every node; what is committed
//! is never cut (I-14), nor anything else in its place.

use std::ops::Range;

use ringwal_engine::{Record, Shard};
use ringwal_raft_fallback::simulating::{Applied, METADATA_STREAM};

use super::Oracle;
use crate::raft::runtime::true_ns;
use crate::random::hash;

impl Oracle {
    /// A node has applied records: what came of each.
    pub fn note_applied(&mut self, node: usize, records: &[Record], applied: &[(u64, Applied)]) {
        for (record, (epoch, applied)) in records.iter().zip(applied) {
            let place = (*epoch, record.offset());
            self.trace(&[3, true_ns(), node as u64, place.0, place.1]);
            self.see(place, hash(record.payload()));
            let known = *self.applied.entry(place).or_insert(*applied);
            assert_eq!(known, *applied, "node {node}: another outcome at {place:?}");
        }
    }

    fn see(&mut self, place: (u64, u64), hash: u64) {
        let known = *self.seen.entry(place).or_insert(hash);
        assert_eq!(known, hash, "I-17: two records at (epoch, offset) {place:?}");
    }

    fn commit(&mut self, record: &Record) {
        let written = (record.epoch(), hash(record.payload()));
        self.see((record.epoch(), record.offset()), written.1);
        match self.committed.get(record.offset() as usize) {
            Some(known) => {
                assert_eq!(*known, written, "offset {} is committed twice", record.offset());
            }
            None => self.committed.push(written),
        }
    }

    /// Somebody knows that the metadata stream is committed up to here, and has it.
    pub fn note_committed(&mut self, shard: &Shard, end: u64) {
        let from = self.committed_end().min(end.saturating_sub(1));
        for record in shard.read(METADATA_STREAM, from..end).expect("nothing is trimmed") {
            self.commit(&record.expect("the disk is sound"));
        }
        assert!(self.committed_end() >= end, "{end} is committed, and not there");
    }

    /// Records of an entry are applied on a node: they are committed.
    pub fn note_extended(&mut self, node: usize, shard: &Shard, end: u64) {
        self.counts.extended += 1;
        self.trace(&[4, true_ns(), node as u64, end]);
        self.note_committed(shard, end);
    }

    /// A node is about to cut records of the metadata stream.
    pub fn note_cut(&mut self, node: usize, shard: &Shard, range: Range<u64>) {
        self.counts.cuts += 1;
        for record in shard.read(METADATA_STREAM, range).expect("nothing is trimmed") {
            let record = record.expect("the disk is sound");
            let (epoch, offset) = (record.epoch(), record.offset());
            self.counts.orphans += 1;
            self.trace(&[5, true_ns(), node as u64, epoch, offset]);
            let committed = self.committed.get(offset as usize).map(|(epoch, _)| *epoch);
            assert_ne!(committed, Some(epoch), "I-14: node {node} cuts offset {offset}");
            self.orphans.insert((epoch, offset));
        }
    }

    /// At the end: a node holds what is committed, and all hold the same.
    pub fn check_node(&mut self, node: usize, shard: &Shard) {
        let end = shard.end(METADATA_STREAM);
        assert!(end >= self.committed_end(), "node {node} ends at {end}");
        for record in shard.read(METADATA_STREAM, ..).expect("nothing is trimmed") {
            self.commit(&record.expect("the disk is sound"));
        }
    }
}
