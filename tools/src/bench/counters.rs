//! What the engine counted between two moments.

use hdrhistogram::Histogram;
use ringwal_engine::ShardStats;
use ringwal_raft_fallback::{LatencyStats, StoreLatencies};
use ringwal_replication::stats::StageTimes;

use crate::report::new_histogram;

/// Names of the stages that the engine times, in the order in which a record passes them.
const STAGES: [&str; 4] = ["queue", "batch", "write and flush", "receipt"];

/// Names of the stages that replication times, of samples. `send`, `network and queue` and `follower
/// durable` follow one another; `reported` and `committed` begin when the frame is sealed.
const REPLICATION_STAGES: [&str; 5] =
    ["send", "network and queue", "follower durable", "reported", "committed"];

/// Names of the stages of a metadata store: an entry of Raft, from being proposed to being applied, and a command
/// that has its place, until its outcome is known.
const STORE_STAGES: [&str; 2] = ["entry", "applied"];

/// Counters of all shards together.
#[derive(Debug, Clone)]
pub struct Counters {
    /// Group commits.
    pub batches: u64,
    /// Records in them.
    pub records: u64,
    /// Flushes asked for.
    pub flushes: u64,
    /// Segments begun.
    pub rotations: u64,
    /// Bytes written to segments, headers and padding included.
    pub written_bytes: u64,
    /// Time that callers waited for room.
    pub backpressure_ns: u64,
    stages: [Histogram<u64>; 4],
    replication: [Histogram<u64>; 5],
    store: [Histogram<u64>; 2],
}

impl Default for Counters {
    fn default() -> Counters {
        Counters {
            batches: 0,
            records: 0,
            flushes: 0,
            rotations: 0,
            written_bytes: 0,
            backpressure_ns: 0,
            stages: std::array::from_fn(|_| new_histogram()),
            replication: std::array::from_fn(|_| new_histogram()),
            store: std::array::from_fn(|_| new_histogram()),
        }
    }
}

impl Counters {
    /// The sum over shards.
    pub fn of<'a>(shards: impl IntoIterator<Item = &'a ShardStats>) -> Counters {
        let mut sum = Counters::default();
        for shard in shards {
            sum.batches += shard.batches;
            sum.records += shard.records;
            sum.flushes += shard.flushes;
            sum.rotations += shard.rotations;
            sum.written_bytes += shard.written_bytes;
            sum.backpressure_ns += shard.backpressure_ns;
            let stages = [&shard.queue_ns, &shard.seal_ns, &shard.flush_ns, &shard.receipt_ns];
            for (stage, more) in sum.stages.iter_mut().zip(stages) {
                stage.add(more).expect("a growing histogram takes every value");
            }
        }
        sum
    }

    /// With what a leader has timed.
    pub fn with_times(mut self, times: &StageTimes) -> Counters {
        let StageTimes { send_ns, network_ns, follower_ns, reported_ns, committed_ns, .. } = times;
        let stages = [send_ns, network_ns, follower_ns, reported_ns, committed_ns];
        for (stage, more) in self.replication.iter_mut().zip(stages) {
            stage.add(more).expect("a growing histogram takes every value");
        }
        self
    }

    /// With what a metadata store has timed.
    pub fn with_store(mut self, times: &StoreLatencies) -> Counters {
        let add = |(stage, times): (&mut Histogram<u64>, &LatencyStats)| {
            for (value_ns, count) in times.values() {
                stage.record_n(value_ns, count).expect("a growing histogram takes every value");
            }
        };
        self.store.iter_mut().zip([&times.proposed, &times.outcome]).for_each(add);
        self
    }

    /// Adds what was counted from `before` to `after`.
    pub fn add_difference(&mut self, before: &Counters, after: &Counters) {
        self.batches += after.batches.saturating_sub(before.batches);
        self.records += after.records.saturating_sub(before.records);
        self.flushes += after.flushes.saturating_sub(before.flushes);
        self.rotations += after.rotations.saturating_sub(before.rotations);
        self.written_bytes += after.written_bytes.saturating_sub(before.written_bytes);
        self.backpressure_ns += after.backpressure_ns.saturating_sub(before.backpressure_ns);
        let all = |c: &'_ Counters| {
            let all = c.stages.iter().chain(&c.replication).chain(&c.store);
            all.cloned().collect::<Vec<_>>()
        };
        let pairs = all(before).into_iter().zip(all(after));
        let sums = self.stages.iter_mut().chain(&mut self.replication).chain(&mut self.store);
        for (sum, (before, mut difference)) in sums.zip(pairs) {
            // Both come from the same growing counts, so there is nothing that cannot be taken off.
            if difference.subtract(&before).is_ok() {
                sum.add(&difference).expect("a growing histogram takes every value");
            }
        }
    }

    /// Adds the counters of another stretch of time.
    pub fn add(&mut self, more: &Counters) {
        self.add_difference(&Counters::default(), more);
    }

    /// The stages that have seen something, by name.
    pub fn stages(self) -> impl Iterator<Item = (&'static str, Histogram<u64>)> {
        let own = STAGES.into_iter().zip(self.stages);
        let replication = REPLICATION_STAGES.into_iter().zip(self.replication);
        let store = STORE_STAGES.into_iter().zip(self.store);
        own.chain(replication).chain(store).filter(|(_, histogram)| !histogram.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_holds_only_what_came_between() {
        let mut before = Counters { batches: 3, ..Counters::default() };
        before.stages[2].record(100_000).unwrap();
        let mut after = before.clone();
        after.batches = 5;
        after.stages[2].record(90_000).unwrap();
        after.stages[2].record(5_000_000).unwrap();
        let mut sum = Counters::default();
        sum.add_difference(&before, &after);
        sum.add_difference(&before, &after);
        assert_eq!(sum.batches, 4);
        let stages: Vec<_> = sum.stages().collect();
        assert_eq!(stages.len(), 1);
        assert_eq!((stages[0].0, stages[0].1.len()), ("write and flush", 4));
        assert!(stages[0].1.max() >= 4_990_000);
    }
}
