//! The end of a loop: closing in stages, or being left.

use super::{ShardLoop, TOKEN_SEALING};
use crate::error::CommitError;
use crate::flush::FlushFailure;
use crate::queue::QueueState;

/// How far closing has come.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(super) enum Ending {
    No,
    /// What is queued is still written.
    Draining,
    /// A last checkpoint is on its way.
    Checkpoint,
    /// The open segment is being sealed.
    Sealing,
    Done,
}

impl ShardLoop {
    /// Stops without another write.
    pub(crate) fn abandon(&mut self) {
        self.ending = Ending::Done;
    }

    /// Closing, one stage after another: drain, checkpoint, seal the open segment.
    pub(super) fn end(&mut self) {
        let closing = matches!(self.shared.queue().state, QueueState::Closing);
        if self.ending == Ending::No && closing {
            self.ending = Ending::Draining;
        }
        if self.poisoned.is_some() {
            if closing || self.ending != Ending::No {
                self.ending = Ending::Done;
            }
            return;
        }
        match self.ending {
            Ending::Draining => self.end_draining(),
            Ending::Checkpoint if self.is_drained() => {
                let facts = self.open.seal_facts(None);
                self.sealing.push(facts);
                self.ending = Ending::Sealing;
                self.end_sealing();
            }
            // No room for all of the checkpoint: the next open scans instead.
            Ending::Checkpoint
                if self.outbox_blocked
                    && self.flush.is_idle()
                    && self.segments.failure().is_some() =>
            {
                self.ending = Ending::Done;
            }
            Ending::Sealing => self.end_sealing(),
            _ => {}
        }
    }

    fn is_drained(&self) -> bool {
        self.flush.is_idle() && self.outbox.is_empty() && self.finished.is_empty()
    }

    fn end_draining(&mut self) {
        if self.segments.failure().is_some() {
            // No segment will come: what waits for one was never written.
            let mut queue = self.shared.queue();
            let waiting = [self.held_records.take(), self.held_controls.take()];
            let mut fillings: Vec<_> = waiting.into_iter().flatten().collect();
            fillings.extend(std::iter::from_fn(|| queue.take_records()));
            if self.held_local.is_some() || self.outbox_blocked {
                // The part of the reserve that they may use is used up.
                fillings.extend(self.held_local.take());
                fillings.extend(std::iter::from_fn(|| queue.take_local()));
            }
            if self.outbox_blocked && self.flush.is_idle() {
                // Nor can a trim be written, nor what the engine had to say itself.
                fillings.extend(std::iter::from_fn(|| queue.take_controls()));
                self.outbox.clear();
            }
            drop(queue);
            for filling in fillings {
                filling.into_ticket().complete(Err(CommitError::Closed));
            }
        }
        let held = [&self.held_controls, &self.held_local, &self.held_records];
        let waiting = held.into_iter().any(Option::is_some);
        if !waiting && self.is_drained() && self.shared.queue().is_empty() {
            self.ending = Ending::Checkpoint;
            self.push_checkpoint(Vec::new());
            self.open.expect_last_checkpoint();
            let now_ns = self.shared.clock.now_ns();
            self.fill_slots(now_ns);
            self.submit_flush(false);
        }
    }

    fn end_sealing(&mut self) {
        if let Some(operation) =
            self.sealing.poll_operation(self.flush.durable(), || self.shared.index())
        {
            self.disk.submit(TOKEN_SEALING, operation);
        }
        if self.sealing.is_idle() {
            self.ending = Ending::Done;
        }
    }
}

impl Drop for ShardLoop {
    /// A loop that ends by a panic leaves nobody waiting.
    fn drop(&mut self) {
        if self.ending == Ending::Done {
            return;
        }
        for durable in self.finished.drain(..) {
            durable.batch.ticket.complete(Ok(durable.batch.outcomes));
        }
        self.poison(FlushFailure {
            stage: "loop",
            file: self.open.segment.file,
            errno: None,
            message: "the shard's thread ended; please report it".into(),
        });
    }
}
