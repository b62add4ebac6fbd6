//! The first write error of a shard, and what it means for whoever waits (I-3).

use super::ShardLoop;
use crate::disk::FileId;
use crate::error::{CommitError, PoisonCause, Poisoned};
use crate::flush::FlushFailure;
use crate::queue::QueueState;

impl ShardLoop {
    /// The first failure latches; everyone who waits gets it (I-3).
    pub(super) fn poison(&mut self, failure: FlushFailure) {
        if self.poisoned.is_some() {
            return;
        }
        let number = self.number_of(failure.file);
        let cause = Poisoned::new(PoisonCause {
            shard: self.shared.shard,
            stage: failure.stage,
            file: crate::segments::segment_name(number),
            errno: failure.errno,
            message: failure.message,
        });
        self.poisoned = Some(cause.clone());
        // Of several shards the first one's stays.
        let _ = self.shared.engine_wide.poisoned.set(cause.clone());
        {
            let mut stats = self.shared.stats();
            stats.poisoned = Some(cause.to_string());
            match failure.stage {
                "fdatasync" => stats.errors.sync += 1,
                _ => stats.errors.write += 1,
            }
        }
        let tails = {
            let mut index = self.shared.index();
            index.poisoned = Some(cause.clone());
            index.take_all_waiting()
        };
        tails.into_iter().for_each(std::task::Waker::wake);
        let mut queue = self.shared.queue();
        if matches!(queue.state, QueueState::Open) {
            queue.state = QueueState::Poisoned(cause.clone());
        }
        let mut waiting: Vec<_> = self.outbox.drain(..).collect();
        waiting.extend(self.held_records.take());
        waiting.extend(self.held_local.take());
        waiting.extend(self.held_controls.take());
        waiting.extend(std::iter::from_fn(|| queue.take_records()));
        waiting.extend(std::iter::from_fn(|| queue.take_local()));
        waiting.extend(std::iter::from_fn(|| queue.take_controls()));
        self.shared.notify_room(queue);
        for batch in self.flush.take_unknown() {
            batch.ticket.complete(Err(CommitError::Unknown(cause.clone())));
        }
        for filling in waiting {
            filling.into_ticket().complete(Err(CommitError::NotWritten(cause.clone())));
        }
        // Nothing more will be sealed: who waits for that is told, as by a close.
        self.shared.unsubscribe_all();
    }

    fn number_of(&self, file: FileId) -> u64 {
        let index = self.shared.index();
        index
            .segments
            .values()
            .find(|segment| segment.file == file)
            .map_or(self.open.segment.number, |segment| segment.number)
    }
}
