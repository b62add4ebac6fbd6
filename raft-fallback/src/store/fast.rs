//! The fast path's gate: whether a command may go to this node's own stream at once, and why not.
//!
//! Whoever appends holds the gate for reading until the engine has the record; whoever closes it waits for
//! all of those. So when it is closed, and what was appended has its outcome, nothing more comes, and Raft
//! may go on where the stream ends.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;

use futures_util::FutureExt as _;
use tokio::sync::{Notify, RwLock};

use crate::replica::Led;
use crate::store::stats::Reason;

/// See the module.
#[derive(Debug)]
pub(crate) struct Gate<L> {
    way: RwLock<Result<L, Reason>>,
    /// Somebody wants to close it: who waits for room in the engine gives up.
    is_closing: AtomicBool,
    closing: Notify,
}

/// What came of an attempt.
pub(crate) enum Taken<F> {
    /// It is in the engine's queue: its offset comes when it is durable, with the lease held.
    Yes {
        /// In which epoch.
        epoch: u64,
        /// Its offset, some day.
        offset: F,
    },
    /// It certainly is not.
    No(Reason),
}

impl<L: Led> Gate<L> {
    pub(crate) fn new() -> Self {
        Self {
            way: RwLock::new(Err(Reason::NotLeader)),
            is_closing: AtomicBool::new(false),
            closing: Notify::new(),
        }
    }

    /// Opens it for a leadership: the stream is where its leader wants it.
    pub(crate) async fn open(&self, led: L) {
        *self.way.write().await = Ok(led);
    }

    /// Closes it: when this returns, nobody is between the gate and the engine's queue.
    pub(crate) async fn close(&self, why: Reason) {
        self.is_closing.store(true, Ordering::SeqCst);
        self.closing.notify_waiters();
        let mut way = self.way.write().await;
        *way = Err(why);
        self.is_closing.store(false, Ordering::SeqCst);
    }

    /// Gives a record to the engine, if it is open and there is room now. For callers whose futures may be
    /// polled or not: the gate is not held while they wait.
    pub(crate) fn try_append(&self, record: &[u8]) -> Taken<L::Pending> {
        // Who cannot look is kept out by somebody who opens or closes it.
        let Ok(way) = self.way.try_read() else { return Taken::No(Reason::Closing) };
        let led = match &*way {
            Ok(led) => led,
            Err(why) => return Taken::No(*why),
        };
        match led.append(record).now_or_never() {
            Some(Ok(offset)) => Taken::Yes { epoch: led.epoch(), offset },
            Some(Err(_)) => Taken::No(Reason::NoLease),
            None => Taken::No(Reason::Full),
        }
    }

    /// Gives a record to the engine, if it is open; waits for room. For tasks that are polled whenever they
    /// are woken: the gate is held meanwhile, and closing it waits for them.
    pub(crate) async fn append(&self, record: &[u8]) -> Taken<L::Pending> {
        let way = self.way.read().await;
        let led = match &*way {
            Ok(led) => led,
            Err(why) => return Taken::No(*why),
        };
        let mut append = pin!(led.append(record));
        let mut closing = pin!(self.closing.notified());
        let taken = poll_fn(|context| {
            if let Poll::Ready(taken) = append.as_mut().poll(context) {
                return Poll::Ready(Some(taken));
            }
            // It waits for room. Registered first, looked at then, so that no closing is missed.
            let is_notified = closing.as_mut().poll(context).is_ready();
            if is_notified || self.is_closing.load(Ordering::SeqCst) {
                return Poll::Ready(None);
            }
            Poll::Pending
        });
        match taken.await {
            Some(Ok(offset)) => Taken::Yes { epoch: led.epoch(), offset },
            Some(Err(_)) => Taken::No(Reason::NoLease),
            None => Taken::No(Reason::Closing),
        }
    }
}
