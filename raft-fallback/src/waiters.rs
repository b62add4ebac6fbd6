//! Who waits for the state to come to something. Nobody is missed: who waits registers, looks again,
//! and only then sleeps; the applier changes the state first and looks for them then.
//!
//! No bound is needed: each entry belongs to a [`Wait`] that somebody holds.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::ops::Bound;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use crate::command::{BrokerId, TopicName};
use crate::metadata::{Progress, Shared, Stopped, View};

/// What a change can be about: who waits is found by it.
#[derive(Clone, Eq, PartialEq, Ord, PartialOrd, Debug)]
pub(crate) enum Key {
    /// The record at this offset is applied.
    Applied(u64),
    /// Something about the topic of this name.
    Topic(TopicName),
    /// This broker is registered.
    Broker(BrokerId),
}

/// Why somebody waited in vain.
#[derive(Clone, Eq, PartialEq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WaitError {
    /// The time is over; it may still come.
    #[error("not there after {waited:?}; this node has applied everything below {}", progress.end)]
    Late {
        /// How long it was waited for.
        waited: Duration,
        /// How far this node is.
        progress: Progress,
    },
    /// What was applied here was not committed, and other records took its place: the record that was
    /// waited for may be gone, also when one with its offset is there.
    #[error(
        "the history has changed in epoch {}: everything below {} is applied; ask the leader what became of the record", progress.epoch, progress.end
    )]
    HistoryChanged {
        /// How far this node is in the new one.
        progress: Progress,
    },
    /// This node applies nothing more.
    #[error("this node applies nothing more: {0}")]
    Stopped(Stopped),
}

/// All who wait.
#[derive(Debug, Default)]
pub(crate) struct Waiters {
    waiting: Mutex<Waiting>,
    /// How many entries there are: changed with the lock held.
    count: AtomicUsize,
}

#[derive(Debug, Default)]
struct Waiting {
    /// Numbers given to those who wait.
    numbers: u64,
    wakers: BTreeMap<(Key, u64), Waker>,
}

impl Waiters {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Each change is made in one step.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether anybody waits. To be asked with the view locked for writing: whoever registers looks at
    /// the view after that, so either is seen here, or sees what is changed here.
    pub(crate) fn is_any(&self) -> bool {
        self.count() > 0
    }

    /// How many wait.
    pub(crate) fn count(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// `waker` is called when the key is woken, unless it is forgotten before.
    pub(crate) fn register(&self, key: &Key, number: &mut Option<u64>, waker: &Waker) {
        let mut waiting = self.lock();
        let number = *number.get_or_insert_with(|| {
            waiting.numbers += 1;
            waiting.numbers
        });
        let before = waiting.wakers.insert((key.clone(), number), waker.clone());
        self.count.store(waiting.wakers.len(), Ordering::Release);
        drop(waiting);
        // Other people's code, and the lock has been given back.
        drop(before);
    }

    fn forget(&self, key: &Key, number: u64) {
        let mut waiting = self.lock();
        let gone = waiting.wakers.remove(&(key.clone(), number));
        self.count.store(waiting.wakers.len(), Ordering::Release);
        drop(waiting);
        drop(gone);
    }

    /// Wakes whoever waits for a record below `end`, or for one of `keys`, which are taken.
    pub(crate) fn wake(&self, end: u64, keys: &mut Vec<Key>) {
        let mut woken = Vec::new();
        let mut waiting = self.lock();
        waiting.take((Key::Applied(0), 0)..(Key::Applied(end), 0), &mut woken);
        for key in keys.drain(..) {
            let all = (Bound::Included((key.clone(), 0)), Bound::Included((key, u64::MAX)));
            waiting.take(all, &mut woken);
        }
        self.count.store(waiting.wakers.len(), Ordering::Release);
        drop(waiting);
        woken.into_iter().for_each(Waker::wake);
    }

    /// Wakes everybody.
    pub(crate) fn wake_all(&self) {
        let mut waiting = self.lock();
        let woken = std::mem::take(&mut waiting.wakers);
        self.count.store(0, Ordering::Release);
        drop(waiting);
        woken.into_values().for_each(Waker::wake);
    }
}

impl Waiting {
    fn take(
        &mut self,
        range: impl std::ops::RangeBounds<(Key, u64)> + Clone,
        woken: &mut Vec<Waker>,
    ) {
        while let Some((place, _)) = self.wakers.range(range.clone()).next() {
            let place = place.clone();
            woken.extend(self.wakers.remove(&place));
        }
    }
}

type Look<T> = Box<dyn Fn(&View) -> Option<T> + Send + Sync>;

/// Waits for something about the state, from [`crate::Metadata`]: a future on any runtime, or
/// [`Wait::wait`]. Dropping it only stops waiting.
#[must_use = "nothing is waited for until it is polled or waited on"]
pub struct Wait<T> {
    shared: Arc<Shared>,
    key: Key,
    look: Look<T>,
    /// The history that it was asked of, when it is about a record of it.
    history: Option<u64>,
    number: Option<u64>,
}

impl<T> fmt::Debug for Wait<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wait").field("key", &self.key).finish_non_exhaustive()
    }
}

impl<T> Wait<T> {
    pub(crate) fn new(shared: Arc<Shared>, key: Key, history: Option<u64>, look: Look<T>) -> Self {
        Self { shared, key, look, history, number: None }
    }

    /// Blocks the thread until it is there, or until `deadline`. It can be waited for again.
    ///
    /// # Errors
    /// When it does not come: see [`WaitError`].
    pub fn wait(&mut self, deadline: Instant) -> Result<T, WaitError> {
        let waker = this_thread();
        let mut context = Context::from_waker(&waker);
        let began = Instant::now();
        loop {
            if let Poll::Ready(outcome) = Pin::new(&mut *self).poll(&mut context) {
                return outcome;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let progress = self.shared.view().progress();
                return Err(WaitError::Late { waited: began.elapsed(), progress });
            }
            std::thread::park_timeout(left);
        }
    }

    fn look(&self) -> Option<Result<T, WaitError>> {
        let view = self.shared.view();
        if self.history.is_some_and(|history| history != view.history) {
            return Some(Err(WaitError::HistoryChanged { progress: view.progress() }));
        }
        let there = (self.look)(&view).map(Ok);
        there.or_else(|| view.stopped.clone().map(|why| Err(WaitError::Stopped(why))))
    }
}

impl<T> Future for Wait<T> {
    type Output = Result<T, WaitError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(outcome) = self.look() {
            return Poll::Ready(outcome);
        }
        let Self { shared, key, number, .. } = &mut *self;
        shared.waiters.register(key, number, context.waker());
        self.look().map_or(Poll::Pending, Poll::Ready)
    }
}

impl<T> Drop for Wait<T> {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.shared.waiters.forget(&self.key, number);
        }
    }
}

/// Wakes the thread that asks for it, when it is parked. The same one each time.
pub(crate) fn this_thread() -> Waker {
    UNPARK.with(Waker::clone)
}

thread_local! {
    static UNPARK: Waker = Waker::from(Arc::new(Unpark(std::thread::current())));
}

/// Wakes a thread that is parked.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

#[cfg(test)]
mod tests;
