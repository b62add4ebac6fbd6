//! Where two histories of a stream part (I-17): a pure function of two epoch tables.
//!
//! The record at offset o carries the last epoch whose start ≤ o, and one run of one process
//! writes in an epoch. So where two nodes name the same epoch for an offset they hold the same
//! bytes there, as in Kafka's KIP-101 and Viewstamped Replication.

use ringwal_engine::EpochTable;

use crate::wire::History;

/// What a follower holds of a stream.
#[derive(Clone, Eq, PartialEq, Debug, Default)]
pub struct Held {
    /// First offset that is not trimmed.
    pub trimmed: u64,
    /// Durable end.
    pub end: u64,
    /// Its epochs.
    pub epochs: EpochTable,
}

/// What a follower has to do to follow a leader.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Parting {
    /// Nothing: what it holds is a beginning of what the leader has.
    Nowhere,
    /// Cut from this offset on.
    At(u64),
    /// The leader has trimmed what the follower would need, or what would tell whether the two
    /// agree: it must begin anew from a snapshot, at this offset or later.
    TooFar {
        /// What the leader has trimmed.
        trimmed: u64,
    },
    /// The follower has trimmed, and so applied, what the leader does not have.
    LeaderLacks {
        /// Where the leader's stream ended.
        end: u64,
    },
}

/// Compares what is held with the leader's history.
pub fn part(held: &Held, leader: &History) -> Parting {
    let present = leader.epochs.last();
    // What lies beyond the start of the leader's present epoch is its own, or nobody's.
    let is_its_own = || held.epochs.epoch_at(held.trimmed - 1) == present.epoch;
    if held.trimmed > present.start && !is_its_own() {
        return Parting::LeaderLacks { end: present.start };
    }
    let too_far = Parting::TooFar { trimmed: leader.trimmed };
    // Tables reach back to the first epoch that they still name.
    let known_from = leader.epochs.entries()[0].start.max(held.trimmed);
    let unknown = held.trimmed < known_from.min(held.end);
    let Some(at) = first_difference(&held.epochs, &leader.epochs, known_from, held.end) else {
        let compared = known_from < held.end;
        let agrees = compared || !unknown;
        // An epoch without a record may be in the way of the one that goes on.
        let in_the_way = held.epochs.last().epoch > leader.epochs.epoch_at(held.end);
        return match held.end < leader.trimmed || !agrees {
            true => too_far,
            false if in_the_way => Parting::At(held.end),
            false => Parting::Nowhere,
        };
    };
    if at < leader.trimmed || (at == known_from && unknown) { too_far } else { Parting::At(at) }
}

/// The first offset of `from..end` for which the tables name different epochs.
fn first_difference(one: &EpochTable, other: &EpochTable, from: u64, end: u64) -> Option<u64> {
    let starts = |table: &EpochTable| table.entries().iter().map(|entry| entry.start).collect();
    let (mut offsets, others): (Vec<u64>, Vec<u64>) = (starts(one), starts(other));
    offsets.extend(others);
    offsets.push(from);
    offsets.retain(|offset| (from..end).contains(offset));
    offsets.sort_unstable();
    offsets.into_iter().find(|offset| one.epoch_at(*offset) != other.epoch_at(*offset))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use ringwal_engine::{EpochStart, StreamId};

    use super::*;

    fn table(entries: &[(u64, u64)]) -> EpochTable {
        let entry = |(epoch, start): &(u64, u64)| EpochStart { epoch: *epoch, start: *start };
        EpochTable::from_entries(entries.iter().map(entry).collect()).expect("in order")
    }

    fn held(trimmed: u64, end: u64, epochs: &[(u64, u64)]) -> Held {
        Held { trimmed, end, epochs: table(epochs) }
    }

    fn history(trimmed: u64, epochs: &[(u64, u64)]) -> History {
        History { stream: StreamId::new(9), trimmed, epochs: table(epochs) }
    }

    #[test]
    fn a_beginning_of_the_leaders_history_follows() {
        let leader = history(0, &[(1, 0), (3, 50), (5, 80)]);
        for (end, epochs) in [
            (0, &[(0, 0)][..]),
            (40, &[(1, 0)]),
            (50, &[(1, 0)]),
            (60, &[(1, 0), (3, 50)]),
            (80, &[(1, 0), (3, 50)]),
            (80, &[(1, 0), (3, 50), (4, 80)]),
            (0, &[(1, 0)]),
        ] {
            assert_eq!(part(&held(0, end, epochs), &leader), Parting::Nowhere, "{end} {epochs:?}");
        }
    }

    #[test]
    fn a_suffix_of_another_epoch_is_cut() {
        let leader = history(0, &[(1, 0), (3, 50), (5, 80)]);
        for (end, epochs, at) in [
            (60, &[(1, 0)][..], 50),
            (90, &[(1, 0), (3, 50)], 80),
            (70, &[(1, 0), (2, 40)], 40),
            (70, &[(1, 0), (3, 55)], 50),
            (70, &[(2, 0)], 0),
            (70, &[(1, 0), (3, 50), (4, 70)], 70),
            (0, &[(3, 0)], 0),
        ] {
            assert_eq!(part(&held(0, end, epochs), &leader), Parting::At(at), "{end} {epochs:?}");
        }
    }

    #[test]
    fn what_is_trimmed_cannot_be_compared() {
        let leader = history(60, &[(3, 50), (5, 80)]);
        let too_far = Parting::TooFar { trimmed: 60 };
        assert_eq!(part(&held(0, 40, &[(1, 0)]), &leader), too_far, "its end is gone");
        assert_eq!(part(&held(0, 55, &[(1, 0), (3, 50)]), &leader), too_far);
        assert_eq!(part(&held(0, 60, &[(1, 0), (3, 50)]), &leader), Parting::Nowhere);
        assert_eq!(part(&held(0, 70, &[(1, 0)]), &leader), too_far, "it parts below 50 or there");
        assert_eq!(part(&held(0, 70, &[(1, 0), (3, 50), (4, 65)]), &leader), Parting::At(65));
        assert_eq!(part(&held(50, 70, &[(1, 0)]), &leader), too_far, "it parts below what is left");
        assert_eq!(part(&held(60, 70, &[(4, 55)]), &leader), Parting::At(60), "all that it holds");
        assert_eq!(part(&held(90, 95, &[(4, 55)]), &leader), Parting::LeaderLacks { end: 80 });
        assert_eq!(part(&held(90, 95, &[(5, 80)]), &leader), Parting::Nowhere, "it follows it");
        let at_start = history(50, &[(3, 50), (5, 80)]);
        assert_eq!(part(&held(0, 50, &[(1, 0)]), &at_start), Parting::TooFar { trimmed: 50 });
        assert_eq!(part(&held(50, 50, &[(1, 0)]), &at_start), Parting::Nowhere, "it holds nothing");
        assert_eq!(part(&held(0, 0, &[(0, 0)]), &at_start), Parting::TooFar { trimmed: 50 });
    }

    /// Epochs of offsets, each at most as long as `lengths` say.
    fn any_table() -> impl Strategy<Value = Vec<(u64, u64)>> {
        proptest::collection::vec((1u64..4, 1u64..6), 1..6).prop_map(|steps| {
            let (mut epoch, mut start) = (0, 0);
            let mut entries = vec![(0, 0)];
            for (more_epoch, more_start) in steps {
                (epoch, start) = (epoch + more_epoch, start + more_start);
                entries.push((epoch, start));
            }
            entries
        })
    }

    proptest! {
        /// Against the definition, offset by offset, where nothing is trimmed.
        #[test]
        fn it_is_the_first_offset_with_another_epoch(
            ours in any_table(), theirs in any_table(), length in 0u64..12,
        ) {
            let end = ours.last().unwrap().1 + length;
            let (held, leader) = (held(0, end, &ours), history(0, &theirs));
            let differs = |o: &u64| held.epochs.epoch_at(*o) != leader.epochs.epoch_at(*o);
            let in_the_way = held.epochs.last().epoch > leader.epochs.epoch_at(end);
            let expected = match (0..end).find(differs) {
                Some(at) => Parting::At(at),
                None if in_the_way => Parting::At(end),
                None => Parting::Nowhere,
            };
            prop_assert_eq!(part(&held, &leader), expected);
        }
    }
}
