//! Where two histories of a stream part (I-17): a pure function of two epoch tables.
//!
//! The record at offset o carries the last epoch whose start ≤ o, and one run of one process
//! writes in an epoch. So where two nodes name the same epoch for an offset they hold the same
//! bytes there, as in Kafka's KIP-101 and Viewstamped Replication.

use ringwal_engine::{EpochStart, EpochTable, StreamId};

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

/// What a leader tells of a stream that it holds like this when it begins an epoch.
pub fn begin(stream: StreamId, held: Held, epoch: u64) -> History {
    let Held { trimmed, end, mut epochs } = held;
    // The epoch of the last record is kept, also when all are trimmed: it tells who has the same.
    epochs.begin(EpochStart { epoch, start: end }, 0);
    History { stream, trimmed, epochs }
}

/// Forgets epochs that ended below what is trimmed. That of the record just before is kept: by it,
/// whoever ends exactly there can be told from who ends there with another history.
pub fn trim(history: &mut History, trimmed: u64) {
    history.trimmed = history.trimmed.max(trimmed);
    history.epochs.trim(history.trimmed.saturating_sub(1));
}

/// Whether a history that is told again is the same, as far as both tables reach back: also below
/// what is trimmed by now, since what was followed there was compared with the first.
pub fn agrees(before: &History, now: &History) -> bool {
    let reaches_to = |history: &History| history.epochs.entries()[0].start;
    let from = reaches_to(before).max(reaches_to(now));
    now.trimmed >= before.trimmed
        && first_difference(&before.epochs, &now.epochs, from, u64::MAX).is_none()
}

/// The first offset, of those that both tables reach back to, that is held in another epoch than
/// the leader has it: also where [`part`] says that a stream must begin anew. The leader's history
/// goes on without the records from there on, or without some before.
pub fn known_difference(held: &Held, leader: &History) -> Option<u64> {
    first_difference(&held.epochs, &leader.epochs, known_from(held, leader), held.end)
}

/// Tables reach back to the first epoch that they still name.
fn known_from(held: &Held, leader: &History) -> u64 {
    leader.epochs.entries()[0].start.max(held.trimmed)
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
    let known_from = known_from(held, leader);
    let unknown = held.trimmed < known_from.min(held.end);
    let Some(at) = known_difference(held, leader) else {
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

    #[test]
    fn who_ends_exactly_at_what_is_trimmed_is_told_from_who_only_looks_like_it() {
        let stream = StreamId::new(9);
        let all_trimmed = begin(stream, held(60, 60, &[(3, 50)]), 5);
        assert_eq!(all_trimmed.epochs, table(&[(3, 50), (5, 60)]));
        let mut trimmed_later = history(0, &[(1, 0), (3, 50), (5, 60)]);
        trim(&mut trimmed_later, 60);
        assert_eq!(trimmed_later, all_trimmed);
        let too_far = Parting::TooFar { trimmed: 60 };
        let equal = held(0, 60, &[(1, 0), (3, 50)]);
        assert_eq!(part(&equal, &all_trimmed), Parting::Nowhere);
        assert_eq!(part(&held(0, 60, &[(1, 0), (4, 55)]), &all_trimmed), too_far);
        assert_eq!(part(&held(0, 59, &[(1, 0), (3, 50)]), &all_trimmed), too_far);
    }

    #[test]
    fn what_differs_is_known_also_where_it_is_trimmed() {
        let leader = history(60, &[(3, 50), (5, 80)]);
        assert_eq!(known_difference(&held(0, 70, &[(1, 0), (4, 55)]), &leader), Some(50));
        assert_eq!(known_difference(&held(0, 70, &[(3, 0), (4, 55)]), &leader), Some(55));
        assert_eq!(known_difference(&held(0, 55, &[(3, 0)]), &leader), None);
        assert_eq!(known_difference(&held(0, 50, &[(1, 0)]), &leader), None, "nobody knows");
    }

    #[test]
    fn a_history_that_is_told_again_is_the_same() {
        let before = history(10, &[(1, 0), (3, 50), (5, 80)]);
        assert!(agrees(&before, &before));
        assert!(agrees(&before, &history(60, &[(3, 50), (5, 80)])));
        assert!(agrees(&before, &history(90, &[(5, 80)])));
        assert!(!agrees(&before, &history(9, &[(1, 0), (3, 50), (5, 80)])), "trims do not fall");
        assert!(!agrees(&before, &history(60, &[(3, 50), (5, 81)])));
        assert!(!agrees(&before, &history(20, &[(1, 0), (2, 40), (3, 50), (5, 80)])));
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
