//! An epoch is one run's, and its leader has everything that was committed; nobody promises an older one
//! than before; and a deposed leader answers nothing (I-13).

use ringwal_replication::promise::Promise;

use super::Oracle;
use crate::raft::runtime::true_ns;

impl Oracle {
    pub fn note_promise(&mut self, node: usize, promise: Promise) {
        self.counts.promises += 1;
        self.trace(&[1, true_ns(), node as u64, promise.epoch]);
        let before = self.promised.insert(node, promise.epoch).unwrap_or(0);
        assert!(
            before <= promise.epoch,
            "node {node} promised {before}, and now {}",
            promise.epoch
        );
    }

    pub fn note_begun(&mut self, node: usize, promise: Promise, start: u64, leads: bool) {
        let epoch = promise.epoch;
        self.trace(&[2, true_ns(), node as u64, epoch]);
        let known = *self.begun.entry(epoch).or_insert(promise);
        assert_eq!(known, promise, "epoch {epoch} has begun with two leaders");
        if leads {
            self.counts.epochs += 1;
            assert!(self.opened.insert(epoch), "epoch {epoch} was opened twice");
            // A deposed leader may open its epoch late, behind the start of a later one in the log.
            let end = self.committed.partition_point(|(of, _)| *of < epoch) as u64;
            assert!(start >= end, "epoch {epoch} starts at {start}, and {end} is committed");
        }
    }

    /// A leader answers by its fast path: with true time, before another epoch was opened.
    pub fn note_fast(&mut self, node: usize, epoch: u64) {
        self.counts.fast += 1;
        let latest = self.opened.last().copied().unwrap_or(0);
        assert!(
            latest <= epoch,
            "I-13: node {node} answers in epoch {epoch}, and {latest} has been opened"
        );
    }
}
