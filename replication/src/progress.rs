//! What the followers of one epoch say is durable with them, and what that makes of each stream.

use std::collections::BTreeMap;

use ringwal_engine::StreamId;

/// One of the sets of voters of which a majority makes a record committed.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct Voters {
    /// The followers among them.
    followers: Vec<usize>,
    /// How many of these make a majority, with the leader if it votes.
    needed: usize,
}

impl Voters {
    /// A set of `voters` nodes, the leader included when it is one of them: `followers` are those that
    /// are known of the others.
    pub fn new(voters: usize, has_leader: bool, followers: Vec<usize>) -> Self {
        Self { followers, needed: voters / 2 + 1 - usize::from(has_leader) }
    }

    /// What enough of them have.
    fn enough(&self, ends: &[u64], counted: &[bool]) -> u64 {
        if self.needed == 0 {
            return u64::MAX;
        }
        let end = |follower: &usize| if counted[*follower] { ends[*follower] } else { 0 };
        let mut sorted: Vec<u64> = self.followers.iter().map(end).collect();
        sorted.sort_unstable_by(|one, other| other.cmp(one));
        sorted.get(self.needed - 1).copied().unwrap_or(0)
    }
}

/// Durable ends of the followers. The leader's own end is not in here: what is committed is the
/// lesser of that and [`Progress::enough`], from the first record of the leader's epoch on.
#[derive(Debug)]
pub struct Progress {
    /// A majority of each is needed; of none, nothing is enough.
    sets: Vec<Voters>,
    /// Followers that count for a majority: those whose disk is the one that they had.
    counted: Vec<bool>,
    streams: BTreeMap<StreamId, Ends>,
}

#[derive(Debug)]
struct Ends {
    by_follower: Vec<u64>,
    /// What as many followers as are needed have. It falls when one of them is forgotten: it may come
    /// back with less. What is committed does not fall.
    enough: u64,
}

impl Ends {
    /// Whether `enough` is another one by now.
    fn count(&mut self, counted: &[bool], sets: &[Voters]) -> bool {
        let of_sets = sets.iter().map(|set| set.enough(&self.by_follower, counted));
        let enough = of_sets.min().unwrap_or(0);
        std::mem::replace(&mut self.enough, enough) != enough
    }
}

impl Progress {
    /// Of a leader with so many followers: all other members that are configured, whether they are
    /// connected or not. All of them vote, with the leader.
    pub fn new(followers: usize) -> Self {
        let counted = vec![false; followers];
        let all = Voters::new(followers + 1, true, (0..followers).collect());
        Self { sets: vec![all], counted, streams: BTreeMap::new() }
    }

    /// One follower more; it votes when it is in a set.
    pub fn add_follower(&mut self) -> usize {
        self.counted.push(false);
        self.streams.values_mut().for_each(|ends| ends.by_follower.push(0));
        self.counted.len() - 1
    }

    /// Other sets of voters. As [`Progress::forget`].
    ///
    /// # Panics
    /// When a follower is named that is none.
    pub fn set_voters(&mut self, sets: Vec<Voters>) -> Vec<(StreamId, u64)> {
        let known = |set: &Voters| set.followers.iter().all(|voter| *voter < self.counted.len());
        assert!(sets.iter().all(known), "voters that are no followers: {sets:?}");
        self.sets = sets;
        self.count()
    }

    /// Whether the leader alone is a majority.
    pub fn is_alone(&self) -> bool {
        !self.sets.is_empty() && self.sets.iter().all(|set| set.needed == 0)
    }

    /// A follower has this much of a stream on its device. The new value of
    /// [`Progress::enough`], when it has changed.
    pub fn report(&mut self, follower: usize, stream: StreamId, end: u64) -> Option<u64> {
        let is_alone = self.is_alone();
        let ends = self
            .streams
            .entry(stream)
            .or_insert_with(|| Ends { by_follower: vec![0; self.counted.len()], enough: 0 });
        ends.by_follower[follower] = end;
        let has_changed = !is_alone && ends.count(&self.counted, &self.sets);
        has_changed.then_some(ends.enough)
    }

    /// A follower begins anew: what it said before may be gone with its disk. The streams whose
    /// [`Progress::enough`] has changed, and the new values.
    pub fn forget(&mut self, follower: usize) -> Vec<(StreamId, u64)> {
        self.streams.values_mut().for_each(|ends| ends.by_follower[follower] = 0);
        self.count()
    }

    /// Whether what a follower reports counts from now on: not while its disk is another one than
    /// it had (I-15). As [`Progress::forget`].
    pub fn set_counted(&mut self, follower: usize, counts: bool) -> Vec<(StreamId, u64)> {
        self.counted[follower] = counts;
        self.count()
    }

    fn count(&mut self) -> Vec<(StreamId, u64)> {
        if self.is_alone() {
            return Vec::new();
        }
        let (counted, sets) = (&self.counted, &self.sets);
        let changed = self.streams.iter_mut().filter_map(|(stream, ends)| {
            ends.count(counted, sets).then_some((*stream, ends.enough))
        });
        changed.collect()
    }

    /// The offset up to which enough followers have a stream, for a majority with the leader.
    pub fn enough(&self, stream: StreamId) -> u64 {
        if self.is_alone() {
            return u64::MAX;
        }
        self.streams.get(&stream).map_or(0, |ends| ends.enough)
    }

    /// What one follower said last.
    pub fn end(&self, follower: usize, stream: StreamId) -> u64 {
        self.streams.get(&stream).map_or(0, |ends| ends.by_follower[follower])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: StreamId = StreamId::new(9);

    fn counting(followers: usize) -> Progress {
        let mut progress = Progress::new(followers);
        (0..followers).for_each(|follower| drop(progress.set_counted(follower, true)));
        progress
    }

    #[test]
    fn a_majority_counts_the_leader_once() {
        for (followers, needed) in [(0, 0), (1, 1), (2, 1), (3, 2), (4, 2), (7, 4)] {
            assert_eq!(Progress::new(followers).sets[0].needed, needed, "{followers} followers");
        }
        let mut progress = counting(4);
        assert_eq!(progress.report(0, STREAM, 10), None);
        assert_eq!(progress.report(3, STREAM, 7), Some(7));
        assert_eq!(progress.report(1, STREAM, 9), Some(9));
        assert_eq!(progress.enough(STREAM), 9);
        assert_eq!(Progress::new(0).enough(STREAM), u64::MAX);
    }

    /// Against the definition, for every number of members: the followers are all that are
    /// configured, connected or not.
    #[test]
    fn two_majorities_always_share_a_member() {
        for members in 1..=10usize {
            let with_leader = Progress::new(members - 1).sets[0].needed + 1;
            assert!(2 * with_leader > members, "{with_leader} of {members} are no majority");
            assert!(2 * (with_leader - 1) <= members, "{with_leader} of {members} are too many");
        }
        let mut progress = counting(3);
        assert_eq!(progress.report(0, STREAM, 10), None, "two of four members");
        assert_eq!(progress.report(2, STREAM, 9), Some(9));
    }

    #[test]
    fn a_follower_that_begins_anew_counts_with_what_it_has_now() {
        let mut progress = counting(2);
        assert_eq!(progress.report(0, STREAM, 10), Some(10));
        assert_eq!(progress.forget(0), [(STREAM, 0)]);
        assert_eq!(progress.report(1, STREAM, 4), Some(4));
        assert_eq!((progress.enough(STREAM), progress.end(0, STREAM)), (4, 0));
    }

    #[test]
    fn another_disk_does_not_count_until_it_may() {
        let mut progress = Progress::new(2);
        assert_eq!(progress.report(0, STREAM, 10), None);
        assert_eq!((progress.enough(STREAM), progress.end(0, STREAM)), (0, 10));
        assert_eq!(progress.set_counted(0, true), [(STREAM, 10)]);
        assert_eq!(progress.set_counted(0, false), [(STREAM, 0)]);
    }

    #[test]
    fn while_the_membership_changes_both_majorities_are_needed() {
        let mut progress = counting(2);
        progress.report(0, STREAM, 10);
        assert_eq!(progress.enough(STREAM), 10, "the leader and one of three");
        let third = progress.add_follower();
        assert!(progress.set_counted(third, true).is_empty());
        // From {leader, 0, 1} to {0, 1, 2}, without the leader.
        let old = Voters::new(3, true, vec![0, 1]);
        let new = Voters::new(3, false, vec![0, 1, 2]);
        assert_eq!(progress.set_voters(vec![old, new.clone()]), [(STREAM, 0)]);
        assert_eq!(progress.report(2, STREAM, 7), Some(7), "two of three, and the old majority");
        assert_eq!(progress.set_voters(vec![new]), []);
        assert_eq!(progress.report(1, STREAM, 9), Some(9));
    }

    #[test]
    fn who_only_learns_does_not_count_and_nobody_is_no_majority() {
        let mut progress = counting(2);
        progress.set_voters(vec![Voters::new(2, true, vec![1])]);
        assert_eq!(progress.report(0, STREAM, 10), None, "a learner");
        assert_eq!(progress.report(1, STREAM, 4), Some(4));
        assert_eq!(progress.set_voters(vec![Voters::new(5, false, vec![0, 1])]), [(STREAM, 0)]);
        progress.set_voters(vec![Voters::new(1, true, vec![])]);
        assert_eq!((progress.is_alone(), progress.enough(STREAM)), (true, u64::MAX));
        progress.set_voters(vec![]);
        assert_eq!((progress.is_alone(), progress.enough(STREAM)), (false, 0));
    }
}
