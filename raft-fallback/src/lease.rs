//! The lease of a leader (I-13): until when no other node can lead, as far as its voters' clocks and its
//! own go equally fast, but for an allowed drift.
//!
//! A voter that has taken an Append of the leader refuses its vote to anybody else for as long as its own
//! lease lasts, counted from when it took it. So a majority has refused until the latest time at which Appends
//! were *sent* that a majority took, and so much longer. [`Lease`] computes that and asks no clock.
//! [`LeaseKeeper`] shares it between the connections of a node and whoever publishes it.
//!
//! Times are nanoseconds of CLOCK_BOOTTIME: a machine that was suspended finds its lease lapsed. openraft's
//! own clock stands still meanwhile, so that a suspended voter refuses for longer than it has to.
//!
//! A leader whose Appends arrive while no answer comes back would keep its voters from electing another one for
//! ever. So, when no majority has answered for as long as a voter refuses, it sends nothing for three times as
//! long ([`Lease::handle_sent`]), then tries again for as long, and so on. openraft has that for heartbeats
//! only (`quorum_loss_probe_interval`), and repeats entries that wait for their answer.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Counts what voters have taken of a leader, in one term at a time. A core: times go in, a time comes out.
///
/// `handle_sent` before an Append is sent, `handle_acked` with what that gave when the voter has taken it;
/// `set_voters` whenever the membership changes, from the moment when the change is proposed.
#[derive(Clone, Debug)]
pub struct Lease {
    me: u64,
    voter_lease_ns: u64,
    length_ns: u64,
    term: u64,
    is_over: bool,
    /// When the first Append of this term was sent.
    began_ns: Option<u64>,
    voters: Vec<BTreeSet<u64>>,
    /// When the latest Append that it took in this term was sent.
    taken_ns: BTreeMap<u64, u64>,
}

/// An Append on its way.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct Sent {
    term: u64,
    node: u64,
    at_ns: u64,
}

impl Lease {
    /// The lease of node `me`, which has none yet.
    ///
    /// `voter_lease` is how long a voter refuses after an Append: openraft's is its greatest election timeout.
    /// `drift` is by how much two clocks may differ after that time; the leader's lease is shorter by so much.
    pub fn new(me: u64, voter_lease: Duration, drift: Duration) -> Self {
        let ns = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        Self {
            me,
            voter_lease_ns: ns(voter_lease).max(1),
            length_ns: ns(voter_lease.saturating_sub(drift)),
            term: 0,
            is_over: false,
            began_ns: None,
            voters: Vec::new(),
            taken_ns: BTreeMap::new(),
        }
    }

    /// Who votes: one set, or while the membership is joint two, of which each needs a majority.
    pub fn set_voters(&mut self, voters: Vec<BTreeSet<u64>>) {
        self.voters = voters;
    }

    /// This node has heard of a term. With a later one than before the lease is gone, and begins anew when it
    /// leads in that one.
    pub fn handle_term(&mut self, term: u64) {
        if term > self.term {
            self.term = term;
            self.is_over = false;
            self.began_ns = None;
            self.taken_ns.clear();
        }
    }

    /// No lease any more in this term, nor in an earlier one. For a leader that hands its leadership over:
    /// voters that have heard of that refuse nobody any more *in the rest of the term*, also when the
    /// hand-over comes to nothing.
    pub fn end(&mut self, term: u64) {
        self.handle_term(term);
        self.is_over |= term == self.term;
    }

    /// An Append of `term` is about to be sent to a node. With `None` it must not be: no majority has
    /// answered for so long that others shall have the time to elect.
    pub fn handle_sent(&mut self, term: u64, node: u64, now_ns: u64) -> Option<Sent> {
        self.handle_term(term);
        if term == self.term {
            let began_ns = *self.began_ns.get_or_insert(now_ns);
            let heard_ns = self.asked(now_ns).unwrap_or(0).max(began_ns);
            if !self.voters.is_empty() && self.is_quiet(now_ns.saturating_sub(heard_ns)) {
                return None;
            }
        }
        Some(Sent { term, node, at_ns: now_ns })
    }

    /// Whether it sends nothing when no majority has answered for so long.
    fn is_quiet(&self, silence_ns: u64) -> bool {
        let period_ns = self.voter_lease_ns.saturating_mul(3);
        let lapsed_ns = silence_ns.checked_sub(self.voter_lease_ns);
        lapsed_ns.is_some_and(|lapsed_ns| (lapsed_ns / period_ns).is_multiple_of(2))
    }

    /// A node has taken an Append: answered with success. What is of another term than the present one does
    /// nothing.
    pub fn handle_acked(&mut self, sent: Sent) {
        if sent.term == self.term {
            let taken_ns = self.taken_ns.entry(sent.node).or_default();
            *taken_ns = sent.at_ns.max(*taken_ns);
        }
    }

    /// The present term, and until when this node alone can lead in it, if it leads at all; `None` if it
    /// has no lease. It does not vote for anybody else now, so it counts as asked now.
    pub fn valid_until(&self, now_ns: u64) -> (u64, Option<u64>) {
        let until = (!self.is_over).then(|| self.asked(now_ns)).flatten();
        (self.term, until.map(|asked_ns| asked_ns.saturating_add(self.length_ns)))
    }

    /// The latest time since which a majority of each set has been asked.
    fn asked(&self, now_ns: u64) -> Option<u64> {
        let of_set = |voters: &BTreeSet<u64>| {
            let asked = |node: &u64| match *node == self.me {
                true => Some(now_ns),
                false => self.taken_ns.get(node).copied(),
            };
            let mut times: Vec<Option<u64>> = voters.iter().map(asked).collect();
            times.sort_unstable_by(|one, other| other.cmp(one));
            // The majority's last one.
            times.get(voters.len() / 2).copied().flatten()
        };
        // `None` is less than any time. Without a set there is nobody to rely on.
        self.voters.iter().map(of_set).min().flatten()
    }
}

/// A [`Lease`] that the connections to all nodes share, with the clock that it is counted by. One short lock
/// for each Append and each answer, none per record.
pub struct LeaseKeeper {
    lease: Mutex<Lease>,
    clock: Box<dyn Fn() -> u64 + Send + Sync>,
    publish: Box<dyn Fn(u64, Option<u64>) + Send + Sync>,
}

impl LeaseKeeper {
    /// `clock` gives nanoseconds of CLOCK_BOOTTIME. `publish` is told the term, and until when the lease is
    /// valid, whenever that may have changed, in the order of the changes; it must be quick and not call back.
    pub fn new(
        lease: Lease,
        clock: impl Fn() -> u64 + Send + Sync + 'static,
        publish: impl Fn(u64, Option<u64>) + Send + Sync + 'static,
    ) -> Self {
        let (clock, publish) = (Box::new(clock), Box::new(publish));
        Self { lease: Mutex::new(lease), clock, publish }
    }

    fn lock(&self) -> MutexGuard<'_, Lease> {
        self.lease.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Lease)) {
        let mut lease = self.lock();
        change(&mut lease);
        let (term, until) = lease.valid_until((self.clock)());
        (self.publish)(term, until);
    }

    /// See [`Lease::set_voters`].
    pub fn set_voters(&self, voters: Vec<BTreeSet<u64>>) {
        self.change(|lease| lease.set_voters(voters));
    }

    /// See [`Lease::handle_term`].
    pub fn handle_term(&self, term: u64) {
        self.change(|lease| lease.handle_term(term));
    }

    /// See [`Lease::end`].
    pub fn end(&self, term: u64) {
        self.change(|lease| lease.end(term));
    }

    /// See [`Lease::handle_sent`].
    pub fn handle_sent(&self, term: u64, node: u64) -> Option<Sent> {
        let mut lease = self.lock();
        lease.handle_sent(term, node, (self.clock)())
    }

    /// See [`Lease::handle_acked`].
    pub fn handle_acked(&self, sent: Sent) {
        self.change(|lease| lease.handle_acked(sent));
    }

    /// See [`Lease::valid_until`]. A node that is the only voter is told nothing by its connections, of which
    /// it has none: whoever publishes its lease asks here.
    pub fn valid_until(&self) -> (u64, Option<u64>) {
        self.lock().valid_until((self.clock)())
    }
}

impl fmt::Debug for LeaseKeeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeaseKeeper").field("lease", &*self.lock()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
