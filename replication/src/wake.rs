//! Wakes the replication thread from any thread, once however often it is asked to.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

/// Something has come for the replication thread.
#[derive(Debug, Default)]
pub(crate) struct Wake {
    is_set: AtomicBool,
    notify: Notify,
}

impl Wake {
    /// Makes its loop turn once more.
    pub(crate) fn wake(&self) {
        if !self.is_set.swap(true, Ordering::AcqRel) {
            self.notify.notify_one();
        }
    }

    /// Waits until something has come, at most so long. What comes from now on wakes again.
    ///
    /// The runtime submits to its ring only when it goes to sleep, so that a loop that always finds
    /// something would keep all of its writes: each turn passes through the ring at least once.
    pub(crate) async fn wait(&self, limit: Duration) {
        if self.is_set.load(Ordering::Acquire) {
            let _ = tokio_uring::no_op().await;
        } else {
            let _ = tokio::time::timeout(limit, self.notify.notified()).await;
        }
        // Acquires what was published before each wake-up that this takes.
        self.is_set.swap(false, Ordering::AcqRel);
    }
}

impl std::task::Wake for Wake {
    fn wake(self: Arc<Self>) {
        Wake::wake(&self);
    }

    fn wake_by_ref(self: &Arc<Self>) {
        Wake::wake(self);
    }
}
