//! What is counted of a store.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use super::times::{Latencies, LatencyStats};

/// Why a command did not take the fast path.
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash, Debug)]
#[non_exhaustive]
pub enum Reason {
    /// Another node leads, or none: it was forwarded.
    NotLeader,
    /// This node has been elected and does not lead yet.
    Recovering,
    /// The fast path is switched off.
    SwitchedOff,
    /// No majority has answered this leader for so long that another one may be elected.
    NoLease,
    /// The store was built without the write-ahead log.
    NoWal,
    /// The engine of this node has failed.
    Poisoned,
    /// A cluster with one voter.
    SingleNode,
    /// Leadership is being given away.
    Transferring,
    /// The fast path is just being opened or closed.
    Closing,
    /// No room in the engine's queue, or too much that no majority has
    /// ([`unreplicated_bytes_max`](ringwal_replication::config::Config::unreplicated_bytes_max)).
    Full,
}

impl Reason {
    /// All of them, in the order of the counts.
    pub const ALL: [Self; 10] = [
        Self::NotLeader,
        Self::Recovering,
        Self::SwitchedOff,
        Self::NoLease,
        Self::NoWal,
        Self::Poisoned,
        Self::SingleNode,
        Self::Transferring,
        Self::Closing,
        Self::Full,
    ];

    /// As it is called in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::NotLeader => "not_leader",
            Self::Recovering => "recovering",
            Self::SwitchedOff => "switched_off",
            Self::NoLease => "no_lease",
            Self::NoWal => "no_wal",
            Self::Poisoned => "poisoned",
            Self::SingleNode => "single_node",
            Self::Transferring => "transferring",
            Self::Closing => "closing",
            Self::Full => "full",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Counts of one store, by any thread.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) fast: AtomicU64,
    pub(crate) raft: AtomicU64,
    pub(crate) forwarded: AtomicU64,
    pub(crate) answered: AtomicU64,
    pub(crate) retried: AtomicU64,
    pub(crate) unknown: AtomicU64,
    fallbacks: [AtomicU64; Reason::ALL.len()],
    pub(crate) create_fast: Latencies,
    pub(crate) create_fallback: Latencies,
    pub(crate) other_fast: Latencies,
    pub(crate) other_fallback: Latencies,
    pub(crate) durable: Latencies,
    pub(crate) proposed: Latencies,
    pub(crate) outcome: Latencies,
}

impl Counters {
    pub(crate) fn note_fallback(&self, why: Reason) {
        add(&self.fallbacks[why as usize]);
    }

    pub(crate) fn stats(&self) -> CommandCounts {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let fallbacks = Reason::ALL.map(|why| (why, count(&self.fallbacks[why as usize])));
        CommandCounts {
            fast: count(&self.fast),
            raft: count(&self.raft),
            forwarded: count(&self.forwarded),
            answered: count(&self.answered),
            retried: count(&self.retried),
            unknown: count(&self.unknown),
            fallbacks: fallbacks.to_vec(),
        }
    }

    pub(crate) fn latencies(&self, apply: LatencyStats) -> StoreLatencies {
        StoreLatencies {
            create_fast: self.create_fast.stats(),
            create_fallback: self.create_fallback.stats(),
            other_fast: self.other_fast.stats(),
            other_fallback: self.other_fallback.stats(),
            durable: self.durable.stats(),
            proposed: self.proposed.stats(),
            outcome: self.outcome.stats(),
            apply,
        }
    }
}

pub(crate) fn add(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Commands since this node was started.
#[derive(Clone, Eq, PartialEq, Debug, Default)]
pub struct CommandCounts {
    /// Given to the stream of this node, which led.
    pub fast: u64,
    /// Proposed to Raft by this node, which led.
    pub raft: u64,
    /// Sent to the leader.
    pub forwarded: u64,
    /// Executed for other nodes.
    pub answered: u64,
    /// Attempts after the first one.
    pub retried: u64,
    /// Ended without a known outcome.
    pub unknown: u64,
    /// Attempts that did not take the fast path, by reason.
    pub fallbacks: Vec<(Reason, u64)>,
}

/// How long things took, since this node was started.
#[derive(Clone, Eq, PartialEq, Debug, Default)]
pub struct StoreLatencies {
    /// Topics that callers at this node made, by the fast path: from the call to the answer. Those that were
    /// rejected are among them, those without an outcome are not.
    pub create_fast: LatencyStats,
    /// The same through Raft or another node, with all attempts.
    pub create_fallback: LatencyStats,
    /// All other commands of callers at this node, by the fast path.
    pub other_fast: LatencyStats,
    /// The same through Raft or another node.
    pub other_fallback: LatencyStats,
    /// Of the fast path: from the engine's queue to durable here, with the lease held.
    pub durable: LatencyStats,
    /// Through Raft: from being proposed to its entry being applied on this node, which leads.
    pub proposed: LatencyStats,
    /// Of each record that has its place here: until it is applied and its outcome known.
    pub outcome: LatencyStats,
    /// Of each batch of records that was applied here, whoever led: from being read to everybody who waits
    /// having been woken.
    pub apply: LatencyStats,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_place_and_name() {
        let counters = Counters::default();
        for (place, why) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(why as usize, place);
            (0..=place).for_each(|_| counters.note_fallback(why));
        }
        let fallbacks = counters.stats().fallbacks;
        assert!(fallbacks.iter().zip(1..).all(|((_, count), expected)| *count == expected));
        let mut names: Vec<_> = Reason::ALL.map(Reason::name).to_vec();
        names.dedup();
        assert_eq!(names.len(), Reason::ALL.len());
    }
}
