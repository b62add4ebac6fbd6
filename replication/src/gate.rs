//! What appends of a driven leader have to pass: its lease (I-13), and room for what is not committed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::task::{Poll, Waker};

use ringwal_engine::boottime_ns;

/// Without a lock on the way of an append that has room. Bytes are those of records.
#[derive(Debug)]
pub(crate) struct Gate {
    lease_until_ns: AtomicU64,
    /// Appended and not committed, about.
    bytes: AtomicU64,
    /// Appended, ever.
    appended: AtomicU64,
    /// With so many of them an append waits.
    bytes_max: AtomicU64,
    /// What that is while others are needed for a majority.
    configured: u64,
    waiting: Mutex<Vec<Waker>>,
}

impl Gate {
    pub(crate) fn new(bytes_max: u64) -> Self {
        Self {
            lease_until_ns: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            appended: AtomicU64::new(0),
            bytes_max: AtomicU64::new(bytes_max),
            configured: bytes_max,
            waiting: Mutex::new(Vec::new()),
        }
    }

    pub(crate) fn set_lease(&self, until_ns: u64) {
        self.lease_until_ns.store(until_ns, Ordering::Release);
        if until_ns == 0 {
            self.wake();
        }
    }

    pub(crate) fn has_lease(&self) -> bool {
        boottime_ns() < self.lease_until_ns.load(Ordering::Acquire)
    }

    /// How many bytes are not committed, and how many may be, when there is no room.
    pub(crate) fn full(&self) -> Option<(u64, u64)> {
        let (bytes, max) =
            (self.bytes.load(Ordering::Acquire), self.bytes_max.load(Ordering::Acquire));
        (bytes >= max).then_some((bytes, max))
    }

    /// Ready when there is room, or no lease; otherwise `waker` is called when that may have changed.
    pub(crate) fn poll_room(&self, waker: &Waker) -> Poll<()> {
        if self.full().is_none() {
            return Poll::Ready(());
        }
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        // Under the lock, which whoever wakes takes behind its change.
        if self.full().is_none() || !self.has_lease() {
            return Poll::Ready(());
        }
        if !waiting.iter().any(|other| other.will_wake(waker)) {
            waiting.push(waker.clone());
        }
        Poll::Pending
    }

    pub(crate) fn note_appended(&self, bytes: u64) {
        self.appended.fetch_add(bytes, Ordering::AcqRel);
        self.bytes.fetch_add(bytes, Ordering::AcqRel);
    }

    /// As [`Gate::note_appended`], until it is known whether they are.
    pub(crate) fn count(&self, bytes: u64) -> Counted<'_> {
        self.note_appended(bytes);
        Counted { gate: self, bytes }
    }

    /// All that was ever appended.
    pub(crate) fn appended(&self) -> u64 {
        self.appended.load(Ordering::Acquire)
    }

    /// These are committed, or were not appended after all.
    pub(crate) fn release(&self, bytes: u64) {
        let less = |before: u64| Some(before.saturating_sub(bytes));
        let _ = self.bytes.fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
        if self.full().is_none() {
            self.wake();
        }
    }

    /// Everything that was appended has its outcome, and so many bytes of it are not committed.
    pub(crate) fn set_bytes(&self, bytes: u64) {
        self.bytes.store(bytes, Ordering::Release);
        if self.full().is_none() {
            self.wake();
        }
    }

    /// Whether this node alone is a majority: then there is no bound.
    pub(crate) fn set_alone(&self, is_alone: bool) {
        let max = if is_alone { u64::MAX } else { self.configured };
        self.bytes_max.store(max, Ordering::Release);
        self.wake();
    }

    /// Whoever waits looks again.
    pub(crate) fn wake(&self) {
        let waiting =
            std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        waiting.into_iter().for_each(Waker::wake);
    }
}

/// Bytes that are counted as appended, and are given back when this is dropped.
#[derive(Debug)]
pub(crate) struct Counted<'a> {
    gate: &'a Gate,
    bytes: u64,
}

impl Counted<'_> {
    /// They are appended.
    pub(crate) fn keep(mut self) {
        self.bytes = 0;
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.gate.release(self.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl std::task::Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn appends_wait_for_room_and_not_without_a_lease() {
        let gate = Gate::new(100);
        let count: Arc<Count> = Arc::default();
        let waker = Waker::from(count.clone());
        gate.set_lease(u64::MAX);
        gate.note_appended(99);
        assert!(gate.poll_room(&waker).is_ready());
        gate.note_appended(60);
        assert_eq!(gate.full(), Some((159, 100)));
        assert!(gate.poll_room(&waker).is_pending());
        gate.release(59);
        assert!(gate.poll_room(&waker).is_pending(), "as many as there may be");
        gate.release(1);
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        assert!(gate.poll_room(&waker).is_ready());
        gate.note_appended(60);
        assert!(gate.poll_room(&waker).is_pending());
        gate.set_lease(0);
        assert_eq!(count.0.load(Ordering::SeqCst), 2);
        assert!(gate.poll_room(&waker).is_ready(), "there is nothing to wait for");
        gate.set_lease(u64::MAX);
        gate.set_alone(true);
        assert!(gate.poll_room(&waker).is_ready());
        gate.set_alone(false);
        gate.release(1000);
        assert_eq!(gate.full(), None);
        assert_eq!(gate.appended(), 219);
    }

    #[test]
    fn a_lease_ends_by_the_clock() {
        let gate = Gate::new(1);
        assert!(!gate.has_lease(), "none was given");
        gate.set_lease(boottime_ns() + 3_600_000_000_000);
        assert!(gate.has_lease());
        gate.set_lease(boottime_ns());
        assert!(!gate.has_lease());
    }
}
