//! The records of a stream as they come, for a thread or a task that waits for them.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Wake as TaskWake, Waker};
use std::thread::{Thread, ThreadId};
use std::time::{Duration, Instant};

use super::{Reader, Record};
use crate::error::ReadError;
use crate::shared::Shared;
use crate::stream::StreamId;

/// The durable records of a stream from an offset on, as they come. Loses none: it looks at the
/// durable end, registers, and looks again before it sleeps.
pub struct Tail {
    reader: Reader,
    /// Tells it from all others, where it is registered.
    id: u64,
    registered: bool,
    /// Wakes the thread that waited last.
    waker: Option<(ThreadId, Waker)>,
}

impl Tail {
    pub(crate) fn new(shared: Arc<Shared>, stream: StreamId, from: u64) -> Self {
        static NEXT_ID: AtomicU64 = AtomicU64::new(0);
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        Self { reader: Reader::new(shared, stream, from), id, registered: false, waker: None }
    }

    /// Offset of the record that comes next.
    pub fn offset(&self) -> u64 {
        self.reader.next_offset()
    }

    /// Goes on at another offset.
    pub fn seek(&mut self, offset: u64) {
        self.reader.seek(offset);
    }

    /// The next record, waiting for it.
    ///
    /// # Errors
    /// When it cannot be read, was trimmed, or the engine was closed.
    pub fn next_blocking(&mut self) -> Result<Record, ReadError> {
        loop {
            if let Some(record) = self.next_until(None)? {
                return Ok(record);
            }
        }
    }

    /// The next record, or `None` when the time is over.
    ///
    /// # Errors
    /// As [`Tail::next_blocking`].
    pub fn next_timeout(&mut self, timeout: Duration) -> Result<Option<Record>, ReadError> {
        match Instant::now().checked_add(timeout) {
            Some(deadline) => self.next_until(Some(deadline)),
            None => self.next_blocking().map(Some),
        }
    }

    /// The same for every call of one thread, so that waiting again registers nothing anew.
    fn thread_waker(&mut self) -> Waker {
        let current = std::thread::current();
        match &self.waker {
            Some((thread, waker)) if *thread == current.id() => waker.clone(),
            _ => {
                let id = current.id();
                let waker = Waker::from(Arc::new(ThreadWaker(current)));
                self.waker = Some((id, waker.clone()));
                waker
            }
        }
    }

    fn next_until(&mut self, deadline: Option<Instant>) -> Result<Option<Record>, ReadError> {
        let waker = self.thread_waker();
        let mut context = Context::from_waker(&waker);
        loop {
            if let Poll::Ready(record) = self.poll_next(&mut context) {
                return record.map(Some);
            }
            match deadline {
                None => std::thread::park(),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Ok(None);
                    }
                    std::thread::park_timeout(left);
                }
            }
        }
    }

    /// The next record, on any runtime. The read itself blocks for one device access.
    ///
    /// # Errors
    /// As [`Tail::next_blocking`].
    pub async fn next(&mut self) -> Result<Record, ReadError> {
        poll_fn(|context| self.poll_next(context)).await
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<Record, ReadError>> {
        if let Some(record) = self.reader.read_next().transpose() {
            return Poll::Ready(record);
        }
        {
            let mut index = self.reader.shared.index();
            if index.closed {
                return Poll::Ready(Err(ReadError::Closed));
            }
            if let Some(cause) = &index.poisoned {
                return Poll::Ready(Err(ReadError::Poisoned(cause.clone())));
            }
            if !self.registered {
                index.recent.follow(self.reader.stream);
                self.registered = true;
            }
            let replaced = index.wait_for(self.reader.stream, self.id, context.waker());
            drop(index);
            drop(replaced);
        }
        match self.reader.read_next().transpose() {
            Some(record) => Poll::Ready(record),
            None => Poll::Pending,
        }
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        if self.registered {
            let mut index = self.reader.shared.index();
            index.recent.leave(self.reader.stream);
            let waker = index.stop_waiting(self.reader.stream, self.id);
            drop(index);
            // Other people's code, and the lock has been given back.
            drop(waker);
        }
    }
}

struct ThreadWaker(Thread);

impl TaskWake for ThreadWaker {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}
