//! How long the loop sleeps, and what wakes it: pacing, the linger, deadlines.

use std::time::Duration;

use super::ShardLoop;
use super::ending::Ending;
use crate::disk::Wait;
use crate::queue::QueueState;

impl ShardLoop {
    /// Says how long the next turn may sleep, and whether new commands interrupt it.
    pub(crate) fn next_wait(&mut self) -> Wait {
        if !self.completions.is_empty() {
            return Wait::No;
        }
        let now_ns = self.shared.clock.now_ns();
        let spins = self.ending == Ending::No
            && self.flush.is_idle()
            && now_ns < self.active_ns + self.options.spin_ns;
        if spins && self.poisoned.is_none() {
            // Not announced as asleep: whoever brings work need not wake it.
            return Wait::No;
        }
        let takes_work = self.poisoned.is_some() || self.may_seal();
        if takes_work {
            self.shared.wake.park();
            if self.has_work(now_ns) {
                self.shared.wake.unpark();
                return Wait::No;
            }
        }
        let records_at = self.records_at();
        if records_at.is_some() && self.options.linger_ns == 0 {
            // Woken by the first record of a paced batch: the others need not wake again.
            self.shared.wake.unpark();
        }
        match self.deadline(records_at) {
            Some(at) => Wait::For(Duration::from_nanos(at.saturating_sub(now_ns).max(1_000))),
            None => Wait::Forever,
        }
    }

    fn has_work(&self, now_ns: u64) -> bool {
        let queue = self.shared.queue();
        let closing = matches!(queue.state, QueueState::Closing) && self.ending == Ending::No;
        if self.poisoned.is_some() {
            return closing || !queue.is_empty();
        }
        // What waits for a segment goes first: what is behind it is no work yet.
        let records_ready = !self.waits_for_segment()
            && queue.oldest_records().is_some_and(|oldest| now_ns >= self.ready_at(oldest));
        let controls_ready =
            !self.outbox_blocked && self.held_controls.is_none() && queue.has_controls();
        let local_ready = !self.outbox_blocked
            && self.held_controls.is_none()
            && self.held_local.is_none()
            && queue.has_local();
        let outbox_ready = !self.outbox_blocked && !self.outbox.is_empty();
        let room = queue.is_worth_waking();
        closing || records_ready || local_ready || controls_ready || outbox_ready || room
    }

    pub(super) fn waits_for_segment(&self) -> bool {
        let held = [&self.held_controls, &self.held_local, &self.held_records];
        self.outbox_blocked || held.into_iter().any(Option::is_some)
    }

    /// When waiting records are sealed: at once when they fill a batch, else after the linger and
    /// in step with the batches in flight.
    pub(super) fn ready_at(&self, (oldest_ns, full): (u64, bool)) -> u64 {
        if full { 0 } else { self.paced_until().max(oldest_ns + self.options.linger_ns) }
    }

    /// While a flush is under way, the next waits for its share of the flush time. It would
    /// otherwise start with the first record that comes and leave the many behind it waiting.
    fn paced_until(&self) -> u64 {
        if self.flush.is_idle() {
            return 0;
        }
        self.sealed_ns + self.flush_mean_ns / self.flush.slots() as u64
    }

    /// When the records that wait are sealed, if they may be.
    fn records_at(&self) -> Option<u64> {
        if !self.may_seal() || self.waits_for_segment() {
            return None;
        }
        self.shared.queue().oldest_records().map(|oldest| self.ready_at(oldest))
    }

    fn deadline(&self, records_at: Option<u64>) -> Option<u64> {
        let seal = self
            .options
            .idle_seal_ns
            .filter(|_| self.needs_idle_seal && self.flush.is_idle() && self.poisoned.is_none())
            // What keeps the seal from being written is no reason to wake up for it.
            .filter(|_| self.outbox.is_empty() && self.ending == Ending::No)
            .map(|after| self.active_ns + after);
        let prepares = matches!(self.ending, Ending::No | Ending::Draining | Ending::Checkpoint);
        let retry = self.segments.retry_at().filter(|_| prepares && self.poisoned.is_none());
        let leaves = self.leaves_to_readers && self.ending == Ending::No && self.poisoned.is_none();
        let readers = leaves.then_some(self.readers_until_ns);
        [records_at, seal, retry, readers].into_iter().flatten().min()
    }
}
