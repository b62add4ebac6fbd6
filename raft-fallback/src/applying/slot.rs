//! One answer for one who asked: a future, or a thread that blocks.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use crate::waiters::this_thread;

/// Filled once. Who waits locks nothing that others lock too.
#[derive(Debug)]
pub(super) struct Slot<T>(Mutex<Content<T>>);

#[derive(Debug)]
enum Content<T> {
    Empty(Option<Waker>),
    Full(T),
}

impl<T> Default for Slot<T> {
    fn default() -> Self {
        Self(Mutex::new(Content::Empty(None)))
    }
}

impl<T: Clone> Slot<T> {
    fn lock(&self) -> MutexGuard<'_, Content<T>> {
        // Each change is made in one step.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first answer stays. Whoever is returned is to be woken, with no lock held.
    #[must_use = "somebody may be to be woken"]
    pub(super) fn fill(&self, answer: T) -> Option<Waker> {
        let mut content = self.lock();
        match &mut *content {
            Content::Full(_) => None,
            Content::Empty(waker) => {
                let waker = waker.take();
                *content = Content::Full(answer);
                waker
            }
        }
    }

    pub(super) fn is_full(&self) -> bool {
        matches!(*self.lock(), Content::Full(_))
    }

    pub(super) fn poll(&self, context: &mut Context<'_>) -> Poll<T> {
        let mut content = self.lock();
        let before = match &mut *content {
            Content::Full(answer) => return Poll::Ready(answer.clone()),
            Content::Empty(Some(waker)) if waker.will_wake(context.waker()) => None,
            Content::Empty(waker) => waker.replace(context.waker().clone()),
        };
        drop(content);
        // Other people's code, and the lock has been given back.
        drop(before);
        Poll::Pending
    }

    /// Blocks the thread; `None` when the time is over.
    pub(super) fn wait(&self, deadline: Option<Instant>) -> Option<T> {
        let waker = this_thread();
        let mut context = Context::from_waker(&waker);
        loop {
            if let Poll::Ready(answer) = self.poll(&mut context) {
                return Some(answer);
            }
            let Some(deadline) = deadline else {
                std::thread::park();
                continue;
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            std::thread::park_timeout(left);
        }
    }
}
