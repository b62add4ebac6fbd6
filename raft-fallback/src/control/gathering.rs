//! Commands that wait to be proposed together. An entry of Raft costs each node two flushes and a dozen messages,
//! however many commands are in it; and whoever had an answer just now will ask again. So the next entry waits
//! a moment for as many as were answered and waited when the last one was done. It is group commit's
//! `commit_delay`, which knows how many siblings to wait for.

use std::collections::VecDeque;
use std::time::Duration;

use super::Proposal;

/// So long an entry waits for its commands, at most.
const LINGER: Duration = Duration::from_millis(1);
/// Commands that wait here, at most.
const WAITING_MAX: usize = 4096;

/// See the module. `I` is an instant.
pub(super) struct Gathering<I> {
    waiting: VecDeque<Proposal>,
    /// As many are likely to come.
    expected: usize,
    /// When the first of those that wait is proposed in any case.
    due: Option<I>,
}

impl<I: Copy + Ord + std::ops::Add<Duration, Output = I>> Gathering<I> {
    pub(super) fn new() -> Self {
        Self { waiting: VecDeque::new(), expected: 0, due: None }
    }

    pub(super) fn has_room(&self) -> bool {
        self.waiting.len() < WAITING_MAX
    }

    pub(super) fn push(&mut self, proposal: Proposal, now: I) {
        self.due.get_or_insert(now + LINGER);
        self.waiting.push_back(proposal);
    }

    /// An entry is done, and so many commands have their outcome.
    pub(super) fn note_done(&mut self, count: usize) {
        self.expected = count + self.waiting.len();
    }

    /// When it is to be proposed, though fewer have come than were expected.
    pub(super) fn due(&self) -> Option<I> {
        self.due
    }

    pub(super) fn is_due(&self, now: I) -> bool {
        let is_late = self.due.is_some_and(|due| due <= now);
        !self.waiting.is_empty() && (is_late || self.waiting.len() >= self.expected)
    }

    pub(super) fn take(&mut self) -> VecDeque<Proposal> {
        self.due = None;
        std::mem::take(&mut self.waiting)
    }
}

/// However a leadership ends: what waits here was given to nobody.
impl<I> Drop for Gathering<I> {
    fn drop(&mut self) {
        let why = "the leadership ended before it was proposed";
        self.waiting.drain(..).for_each(|proposal| super::refuse(proposal, why));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use bytes::Bytes;
    use tokio::sync::oneshot;

    use super::*;

    fn push(gathering: &mut Gathering<Instant>, count: usize, now: Instant) {
        for _ in 0..count {
            let (placed, _) = oneshot::channel();
            gathering.push(Proposal { record: Bytes::new(), placed }, now);
        }
    }

    #[test]
    fn an_entry_waits_for_as_many_as_were_answered_and_waited_or_a_moment() {
        let (mut gathering, start) = (Gathering::new(), Instant::now());
        assert!(!gathering.is_due(start), "there is nothing");
        push(&mut gathering, 1, start);
        assert!(gathering.is_due(start), "nobody else is expected");
        assert_eq!(gathering.take().len(), 1);
        // Three come while an entry of five is under way: eight are expected when it is done.
        push(&mut gathering, 3, start);
        gathering.note_done(5);
        push(&mut gathering, 4, start + LINGER / 2);
        assert!(!gathering.is_due(start + LINGER / 2));
        push(&mut gathering, 1, start + LINGER / 2);
        assert!(gathering.is_due(start + LINGER / 2));
        assert_eq!((gathering.take().len(), gathering.due()), (8, None));
        // The moment begins with the first of those that wait.
        gathering.note_done(8);
        push(&mut gathering, 2, start + LINGER);
        push(&mut gathering, 1, start + LINGER * 3 / 2);
        assert!(!gathering.is_due(start + LINGER * 3 / 2));
        assert_eq!(gathering.due(), Some(start + LINGER * 2));
        assert!(gathering.is_due(start + LINGER * 2));
    }
}
