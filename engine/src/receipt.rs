//! Receipts: one ticket per batch, one token per command. Nothing here is reached before the
//! batch is durable.
//!
//! All callers that wait for one batch block on one word, so that waking them is one system call
//! of the shard thread, however many they are.

use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};

use rustix::thread::futex;

use crate::error::{CommitError, Refusal};
use crate::stream::StreamId;

const DONE: u32 = 1;
const THREADS_WAIT: u32 = 2;
const TASKS_WAIT: u32 = 4;

/// What became of a frame of a durable batch.
#[derive(Clone, Debug)]
pub(crate) enum FrameOutcome {
    /// Its records have offsets from `base` on.
    Placed { base: u64, epoch: u64 },
    /// It does nothing.
    Refused(Refusal),
}

/// What became of a batch.
pub(crate) type BatchOutcome = Result<Vec<FrameOutcome>, CommitError>;

/// Where the outcome of one batch appears.
#[derive(Debug, Default)]
pub(crate) struct Ticket {
    state: AtomicU32,
    outcome: OnceLock<BatchOutcome>,
    tasks: Mutex<Vec<Waker>>,
}

impl Ticket {
    /// Publishes the outcome and wakes everyone, threads by one call.
    pub(crate) fn complete(&self, outcome: BatchOutcome) {
        let first = self.outcome.set(outcome).is_ok();
        assert!(first, "a batch has one outcome");
        let waiting = self.state.swap(DONE, Ordering::AcqRel);
        if waiting & THREADS_WAIT != 0 {
            let _ = futex::wake(&self.state, futex::Flags::PRIVATE, i32::MAX as u32);
        }
        if waiting & TASKS_WAIT != 0 {
            let tasks =
                std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
            tasks.into_iter().for_each(Waker::wake);
        }
    }

    fn get(&self) -> Option<&BatchOutcome> {
        (self.state.load(Ordering::Acquire) & DONE != 0).then(|| self.outcome.get()).flatten()
    }

    fn wait(&self) -> &BatchOutcome {
        loop {
            if let Some(outcome) = self.get() {
                return outcome;
            }
            let state = self.state.fetch_or(THREADS_WAIT, Ordering::AcqRel) | THREADS_WAIT;
            if state & DONE == 0 {
                let _ = futex::wait(&self.state, futex::Flags::PRIVATE, state, None);
            }
        }
    }

    /// `registered` is where the token's waker was put when it was polled before.
    fn poll(
        &self,
        context: &mut Context<'_>,
        registered: &mut Option<usize>,
    ) -> Poll<&BatchOutcome> {
        if let Some(outcome) = self.get() {
            return Poll::Ready(outcome);
        }
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        // A task that polls many tokens registers once, and a token that is polled again finds its
        // place: both without a search.
        let place = registered.unwrap_or(tasks.len().saturating_sub(1));
        match tasks.get_mut(place) {
            Some(task) if task.will_wake(context.waker()) => *registered = Some(place),
            _ => {
                *registered = Some(tasks.len());
                tasks.push(context.waker().clone());
            }
        }
        // Announced after it is registered: `complete` either sees the bit and takes the list,
        // or was first, and then the state says so here.
        let state = self.state.fetch_or(TASKS_WAIT, Ordering::AcqRel);
        drop(tasks);
        if state & DONE != 0 {
            return self.get().map_or(Poll::Pending, Poll::Ready);
        }
        Poll::Pending
    }
}

/// A record is durable on this node.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct Receipt {
    stream: StreamId,
    epoch: u64,
    offset: u64,
}

impl Receipt {
    /// The record's stream.
    pub fn stream(&self) -> StreamId {
        self.stream
    }

    /// The epoch in which it was written.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Its offset in the stream.
    pub fn offset(&self) -> u64 {
        self.offset
    }
}

/// Records that were appended together are durable on this node.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct Receipts {
    stream: StreamId,
    epoch: u64,
    offsets: Range<u64>,
}

impl Receipts {
    /// The records' stream.
    pub fn stream(&self) -> StreamId {
        self.stream
    }

    /// The epoch in which they were written.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Their offsets.
    pub fn offsets(&self) -> Range<u64> {
        self.offsets.clone()
    }

    /// Receipt of each record, in order.
    pub fn iter(&self) -> impl Iterator<Item = Receipt> + '_ {
        let (stream, epoch) = (self.stream, self.epoch);
        self.offsets.clone().map(move |offset| Receipt { stream, epoch, offset })
    }
}

/// Where a command is in its batch.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) ticket: Arc<Ticket>,
    pub(crate) stream: StreamId,
    /// Index of its frame in the batch.
    pub(crate) frame: u32,
    /// Index of its first record in the frame.
    pub(crate) record: u32,
    /// Number of its records.
    pub(crate) count: u32,
    /// Where its task is registered with the ticket.
    pub(crate) registered: Option<usize>,
}

impl Place {
    fn receipts(&self, outcome: &BatchOutcome) -> Result<Receipts, CommitError> {
        let frames = outcome.as_ref().map_err(Clone::clone)?;
        match &frames[self.frame as usize] {
            FrameOutcome::Placed { base, epoch } => {
                let first = base + u64::from(self.record);
                let offsets = first..first + u64::from(self.count);
                Ok(Receipts { stream: self.stream, epoch: *epoch, offsets })
            }
            FrameOutcome::Refused(refusal) => Err(CommitError::Refused(refusal.clone())),
        }
    }
}

macro_rules! token {
    ($(#[$doc:meta])* $name:ident, $output:ty, $from:expr) => {
        $(#[$doc])*
        #[derive(Debug)]
        #[must_use = "the record is durable only when its receipt has come; drop(..) to ignore it"]
        pub struct $name(pub(crate) Place);

        impl $name {
            /// Blocks the thread until the outcome is known.
            ///
            /// # Errors
            /// When there is no receipt: see [`CommitError`] for what is certain then.
            pub fn wait(self) -> Result<$output, CommitError> {
                self.0.receipts(self.0.ticket.wait()).map($from)
            }

            /// The outcome, if it is known. Never blocks.
            pub fn try_receipt(&self) -> Option<Result<$output, CommitError>> {
                Some(self.0.receipts(self.0.ticket.get()?).map($from))
            }
        }

        impl Future for $name {
            type Output = Result<$output, CommitError>;
            fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
                let ticket = self.0.ticket.clone();
                let outcome = ticket.poll(context, &mut self.0.registered);
                outcome.map(|outcome| self.0.receipts(outcome).map($from))
            }
        }
    };
}

token!(
    /// An appended record whose order is fixed. Wait for its [`Receipt`] by [`Append::wait`] or
    /// as a future on any runtime; dropping it only detaches.
    Append,
    Receipt,
    |receipts: Receipts| Receipt {
        stream: receipts.stream,
        epoch: receipts.epoch,
        offset: receipts.offsets.start,
    }
);

token!(
    /// Records appended together: after a crash all of them are there, or none.
    AppendBatch,
    Receipts,
    |receipts| receipts
);

token!(
    /// A trim or cut on its way to the device.
    Change,
    (),
    |_| ()
);

/// Tells when every batch that was sealed before it has its outcome, on every shard:
/// [`crate::Engine::barrier`]. Wait for it by [`Barrier::wait`] or as a future on any runtime.
#[derive(Debug)]
#[must_use = "it only tells something to who waits for it"]
pub struct Barrier(pub(crate) Vec<Change>);

impl Barrier {
    /// Blocks the thread until it is known of every shard.
    ///
    /// # Errors
    /// The first cause, when a shard has stopped writing or was closed: see [`CommitError`].
    pub fn wait(self) -> Result<(), CommitError> {
        self.0.into_iter().map(Change::wait).fold(Ok(()), Result::and)
    }

    /// The outcome, if it is known of every shard. Never blocks.
    pub fn try_receipt(&self) -> Option<Result<(), CommitError>> {
        self.0
            .iter()
            .map(Change::try_receipt)
            .try_fold(Ok(()), |first, next| Some(first.and(next?)))
    }
}

impl Future for Barrier {
    type Output = Result<(), CommitError>;
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut outcome = Poll::Ready(Ok(()));
        for shard in &mut self.0 {
            let next = Pin::new(shard).poll(context);
            outcome = match (outcome, next) {
                (Poll::Ready(first), Poll::Ready(next)) => Poll::Ready(first.and(next)),
                _ => Poll::Pending,
            };
        }
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(ticket: &Arc<Ticket>) -> Place {
        let (ticket, stream) = (ticket.clone(), StreamId::new(5));
        Place { ticket, stream, frame: 0, record: 2, count: 1, registered: None }
    }

    #[test]
    fn every_waiting_thread_gets_its_offset() {
        let ticket = Arc::new(Ticket::default());
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let token = Append(place(&ticket));
                std::thread::spawn(move || token.wait().unwrap().offset())
            })
            .collect();
        ticket.complete(Ok(vec![FrameOutcome::Placed { base: 40, epoch: 1 }]));
        for thread in threads {
            assert_eq!(thread.join().unwrap(), 42);
        }
    }

    #[test]
    fn a_task_is_woken_once_however_many_tokens_it_polls() {
        struct Count(AtomicU32);
        impl std::task::Wake for Count {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }
        let ticket = Arc::new(Ticket::default());
        let count = Arc::new(Count(AtomicU32::new(0)));
        let waker = Waker::from(count.clone());
        let mut context = Context::from_waker(&waker);
        let mut tokens: Vec<_> = (0..3).map(|_| Append(place(&ticket))).collect();
        for token in &mut tokens {
            assert!(Pin::new(token).poll(&mut context).is_pending());
        }
        ticket.complete(Err(CommitError::Closed));
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        for token in &mut tokens {
            assert!(Pin::new(token).poll(&mut context).is_ready());
        }
    }
}
