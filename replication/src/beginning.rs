//! What the beginning of an epoch cuts (I-17), and what it must not: decided before anything is
//! changed. No I/O.

use std::collections::BTreeMap;

use ringwal_engine::{EpochTable, StreamId};

use crate::driven::BeginError;
use crate::history::{Held, known_difference};
use crate::promise::{Promise, is_replicated};
use crate::wire::History;
use crate::worker::Facts;

/// An epoch that is to begin here.
#[derive(Debug)]
pub(crate) struct Begin {
    pub(crate) promise: Promise,
    pub(crate) starts: Starts,
    /// This node is to lead in it.
    pub(crate) leads: bool,
    pub(crate) facts: Facts,
}

/// Where an epoch starts the streams.
#[derive(Clone, Debug)]
pub(crate) enum Starts {
    /// Each one at an offset; those that are not named at 0.
    At(BTreeMap<StreamId, u64>),
    /// It has begun elsewhere, and others before it that this node does not know of: all epochs of each
    /// stream.
    Known(BTreeMap<StreamId, EpochTable>),
}

impl Default for Starts {
    fn default() -> Self {
        Self::At(BTreeMap::new())
    }
}

impl Starts {
    /// Where a stream of the history that begins here goes on without what is held, and in which epoch.
    fn cut(&self, promise: Promise, stream: StreamId, held: &Held) -> Option<(u64, u64)> {
        match self {
            Self::At(starts) => {
                let start = starts.get(&stream).copied().unwrap_or(0);
                // Records of this epoch, or a later one, are what it was cut for before.
                let is_other = held.end > start && held.epochs.epoch_at(start) < promise.epoch;
                is_other.then_some((start, promise.epoch))
            }
            Self::Known(tables) => match tables.get(&stream) {
                Some(epochs) => {
                    let (trimmed, epochs) = (epochs.entries()[0].start, epochs.clone());
                    let history = History { stream, trimmed, epochs };
                    let at = known_difference(held, &history)?;
                    Some((at, history.epochs.epoch_at(at)))
                }
                None => (held.end > 0).then_some((held.trimmed, promise.epoch)),
            },
        }
    }
}

/// Records that are to be cut.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) struct Cutting {
    pub(crate) stream: StreamId,
    /// First offset that goes.
    pub(crate) start: u64,
    /// Durable end.
    pub(crate) end: u64,
    /// The epoch of what comes there.
    pub(crate) epoch: u64,
}

impl Begin {
    /// What is to be cut of what is held.
    ///
    /// # Errors
    /// When nothing of all that must be done: something would be cut that is committed or was trimmed
    /// (I-14), or something of the leader itself.
    pub(crate) fn cuts(&self, held: &BTreeMap<StreamId, Held>) -> Result<Vec<Cutting>, BeginError> {
        let epoch = self.promise.epoch;
        let held = held.iter().filter(|(stream, _)| is_replicated(**stream));
        if let (true, Starts::At(starts)) = (self.leads, &self.starts) {
            return self
                .check_own(starts, held.map(|(stream, held)| (*stream, held.end)).collect());
        }
        let mut cuts = Vec::new();
        for (stream, held) in held {
            let Some((start, of)) = self.starts.cut(self.promise, *stream, held) else { continue };
            let committed = self.facts.committed.get(stream).copied().unwrap_or(0);
            let committed = committed.max(held.trimmed);
            if start < committed {
                let stream = *stream;
                return Err(BeginError::BelowCommitted { epoch, stream, start, committed });
            }
            cuts.push(Cutting { stream: *stream, start, end: held.end, epoch: of });
        }
        Ok(cuts)
    }

    /// The starts are where the leader's own streams end, for all of them.
    fn check_own(
        &self,
        starts: &BTreeMap<StreamId, u64>,
        mut ends: BTreeMap<StreamId, u64>,
    ) -> Result<Vec<Cutting>, BeginError> {
        for (stream, _) in starts.iter().filter(|(stream, _)| is_replicated(**stream)) {
            ends.entry(*stream).or_insert(0);
        }
        for (stream, end) in ends {
            let start = starts.get(&stream).copied().unwrap_or(0);
            if start != end {
                let epoch = self.promise.epoch;
                return Err(BeginError::NotItsEnd { epoch, stream, start, end });
            }
        }
        Ok(Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use ringwal_engine::EpochStart;

    use super::*;
    use crate::node_id::{NodeId, RunId};

    const STREAM: StreamId = StreamId::new(9);
    const OTHER: StreamId = StreamId::new(11);

    fn held(trimmed: u64, end: u64, epochs: &[(u64, u64)]) -> Held {
        let entry = |(epoch, start): &(u64, u64)| EpochStart { epoch: *epoch, start: *start };
        let epochs = EpochTable::from_entries(epochs.iter().map(entry).collect());
        Held { trimmed, end, epochs: epochs.expect("in order") }
    }

    fn begin(epoch: u64, starts: &[(StreamId, u64)], leads: bool) -> Begin {
        let run = RunId::new([1; 16]);
        Begin {
            promise: Promise { epoch, leader: NodeId::new(2), run },
            starts: Starts::At(starts.iter().copied().collect()),
            leads,
            facts: Facts::default(),
        }
    }

    fn cuts(begin: &Begin, held: &Held) -> Vec<(u64, u64)> {
        let cuts = begin.cuts(&BTreeMap::from([(STREAM, held.clone())])).expect("allowed");
        cuts.iter().map(|cut| (cut.start, cut.end)).collect()
    }

    #[test]
    fn what_is_behind_the_start_and_of_an_older_epoch_is_cut() {
        let at_80 = begin(5, &[(STREAM, 80)], false);
        for (end, epochs, expected) in [
            (70, &[(1, 0), (3, 50)][..], vec![]),
            (80, &[(1, 0), (3, 50)], vec![]),
            (90, &[(1, 0), (3, 50)], vec![(80, 90)]),
            (90, &[(1, 0), (4, 85)], vec![(80, 90)]),
            (90, &[(1, 0), (5, 80)], vec![]),
            (80, &[(1, 0), (5, 80)], vec![]),
            (90, &[(1, 0), (6, 70)], vec![]),
        ] {
            assert_eq!(cuts(&at_80, &held(0, end, epochs)), expected, "{end} {epochs:?}");
        }
        let not_named = begin(5, &[(OTHER, 80)], false);
        assert_eq!(cuts(&not_named, &held(0, 3, &[(1, 0)])), [(0, 3)]);
        let own = BTreeMap::from([(StreamId::new(2), held(0, 9, &[(1, 0)]))]);
        assert_eq!(not_named.cuts(&own).expect("allowed"), []);
    }

    #[test]
    fn nothing_that_is_committed_or_was_trimmed_is_cut() {
        let mut at_80 = begin(5, &[(STREAM, 80)], false);
        at_80.facts.committed = BTreeMap::from([(STREAM, 80)]);
        assert_eq!(cuts(&at_80, &held(0, 90, &[(1, 0)])), [(80, 90)]);
        let refused = |begin: &Begin, held| begin.cuts(&BTreeMap::from([(STREAM, held)]));
        let trimmed = refused(&at_80, held(81, 90, &[(1, 0)]));
        assert!(matches!(trimmed, Err(BeginError::BelowCommitted { committed: 81, .. })));
        at_80.facts.committed = BTreeMap::from([(STREAM, 85)]);
        let committed = refused(&at_80, held(0, 90, &[(1, 0)]));
        assert!(matches!(
            committed,
            Err(BeginError::BelowCommitted { epoch: 5, start: 80, committed: 85, .. })
        ));
    }

    #[test]
    fn a_history_of_several_epochs_cuts_where_it_parts() {
        let table = held(0, 0, &[(1, 0), (3, 50), (5, 80)]).epochs;
        let mut known = begin(5, &[], false);
        known.starts = Starts::Known(BTreeMap::from([(STREAM, table)]));
        for (end, epochs, expected) in [
            (70, &[(1, 0), (3, 50)][..], vec![]),
            (90, &[(1, 0), (3, 50)], vec![(80, 5)]),
            (70, &[(1, 0), (2, 40)], vec![(40, 1)]),
            (90, &[(1, 0)], vec![(50, 3)]),
            (90, &[(1, 0), (3, 50), (5, 80)], vec![]),
        ] {
            let held = BTreeMap::from([(STREAM, held(0, end, epochs))]);
            let cuts = known.cuts(&held).expect("allowed");
            let cuts: Vec<_> = cuts.iter().map(|cut| (cut.start, cut.epoch)).collect();
            assert_eq!(cuts, expected, "{end} {epochs:?}");
        }
        let unknown = BTreeMap::from([(OTHER, held(0, 3, &[(1, 0)]))]);
        assert_eq!(known.cuts(&unknown).expect("allowed")[0].start, 0, "nobody else has it");
        known.facts.committed = BTreeMap::from([(STREAM, 60)]);
        let held = BTreeMap::from([(STREAM, held(0, 90, &[(1, 0)]))]);
        assert!(matches!(known.cuts(&held), Err(BeginError::BelowCommitted { start: 50, .. })));
    }

    #[test]
    fn a_leader_cuts_nothing_of_its_own() {
        let held = |end| BTreeMap::from([(STREAM, held(0, end, &[(1, 0)]))]);
        let outcome = |starts: &[(StreamId, u64)], end| begin(5, starts, true).cuts(&held(end));
        assert_eq!(outcome(&[(STREAM, 80)], 80).expect("its end"), []);
        assert_eq!(outcome(&[(STREAM, 80), (OTHER, 0)], 80).expect("nothing of the other"), []);
        for (starts, end) in [
            (&[(STREAM, 80)][..], 81),
            (&[(STREAM, 80)], 79),
            (&[], 80),
            (&[(STREAM, 80), (OTHER, 1)], 80),
        ] {
            assert!(
                matches!(outcome(starts, end), Err(BeginError::NotItsEnd { .. })),
                "{starts:?}"
            );
        }
    }
}
