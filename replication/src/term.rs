//! One node's time as leader of one epoch, as the callers who wait for a majority see it.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Poll, Waker};

use ringwal_engine::StreamId;

/// Shared by the replication thread, which raises it and ends it, and by everyone who waits.
#[derive(Debug)]
pub(crate) struct Term {
    epoch: u64,
    is_over: AtomicBool,
    why: OnceLock<String>,
    majority: Mutex<Majority>,
}

#[derive(Debug, Default)]
struct Majority {
    /// No follower is needed for one.
    is_alone: bool,
    streams: HashMap<StreamId, Watermark>,
}

#[derive(Debug, Default)]
struct Watermark {
    /// Enough followers have everything below this on their devices.
    enough: u64,
    /// Who waits for more, by what for.
    waiting: BTreeMap<u64, Vec<Waker>>,
}

impl Term {
    pub(crate) fn new(epoch: u64, is_alone: bool) -> Self {
        let majority = Majority { is_alone, streams: HashMap::new() };
        Self {
            epoch,
            is_over: AtomicBool::new(false),
            why: OnceLock::new(),
            majority: Mutex::new(majority),
        }
    }

    fn majority(&self) -> MutexGuard<'_, Majority> {
        self.majority.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Why it is over, if it is.
    pub(crate) fn ended(&self) -> Option<&str> {
        let is_over = self.is_over.load(Ordering::Acquire);
        is_over.then(|| self.why.get().map_or("it is over", String::as_str))
    }

    /// It is over: everyone who waits learns it.
    pub(crate) fn end(&self, why: &str) {
        let _ = self.why.set(why.to_owned());
        self.is_over.store(true, Ordering::Release);
        let streams = std::mem::take(&mut self.majority().streams);
        let waiting = streams.into_values().flat_map(|watermark| watermark.waiting.into_values());
        waiting.flatten().for_each(Waker::wake);
    }

    /// Enough followers have a stream up to `enough`.
    pub(crate) fn raise(&self, stream: StreamId, enough: u64) {
        let mut majority = self.majority();
        let watermark = majority.streams.entry(stream).or_default();
        watermark.enough = watermark.enough.max(enough);
        let later = watermark.waiting.split_off(&(watermark.enough + 1));
        let reached = std::mem::replace(&mut watermark.waiting, later);
        drop(majority);
        reached.into_values().flatten().for_each(Waker::wake);
    }

    /// Whether enough followers have everything below `end`; otherwise `waker` is called when that
    /// may have changed. An error when the term is over.
    pub(crate) fn poll_majority(
        &self,
        stream: StreamId,
        end: u64,
        waker: &Waker,
    ) -> Poll<Result<(), String>> {
        let mut majority = self.majority();
        // Under the lock, which `end` takes after it has said so.
        if let Some(why) = self.ended() {
            return Poll::Ready(Err(why.to_owned()));
        }
        if majority.is_alone {
            return Poll::Ready(Ok(()));
        }
        let watermark = majority.streams.entry(stream).or_default();
        if watermark.enough >= end {
            return Poll::Ready(Ok(()));
        }
        let waiting = watermark.waiting.entry(end).or_default();
        if !waiting.iter().any(|known| known.will_wake(waker)) {
            waiting.push(waker.clone());
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;

    use super::*;

    const STREAM: StreamId = StreamId::new(9);

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl std::task::Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn those_are_woken_whose_records_are_reached() {
        let term = Term::new(3, false);
        let counts: Vec<Arc<Count>> = (0..3).map(|_| Arc::default()).collect();
        for (end, count) in [5, 6, 7].into_iter().zip(&counts) {
            let waker = Waker::from(count.clone());
            assert!(term.poll_majority(STREAM, end, &waker).is_pending());
            assert!(term.poll_majority(STREAM, end, &waker).is_pending(), "registered once");
        }
        let woken =
            || counts.iter().map(|count| count.0.load(Ordering::SeqCst)).collect::<Vec<_>>();
        term.raise(STREAM, 6);
        assert_eq!(woken(), [1, 1, 0]);
        term.raise(STREAM, 2);
        let waker = Waker::noop();
        assert!(term.poll_majority(STREAM, 6, waker).is_ready(), "it never falls");
        term.end("deposed");
        assert_eq!(woken(), [1, 1, 1]);
        let ended = term.poll_majority(STREAM, 6, waker);
        assert!(matches!(ended, Poll::Ready(Err(why)) if why == "deposed"));
    }

    #[test]
    fn a_lone_node_is_a_majority() {
        assert!(Term::new(1, true).poll_majority(STREAM, 9, Waker::noop()).is_ready());
    }
}
