//! One node's time as leader of one epoch, as the callers who wait for a majority see it.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Poll, Waker};

use ringwal_engine::StreamId;

use crate::gate::Gate;

/// Shared by the replication thread, which raises it and ends it, and by everyone who waits.
#[derive(Debug)]
pub(crate) struct Term {
    epoch: u64,
    is_over: AtomicBool,
    why: OnceLock<String>,
    majority: Mutex<Majority>,
    /// Of a driven node.
    gate: Option<Gate>,
}

#[derive(Debug, Default)]
struct Majority {
    /// No follower is needed for one.
    is_alone: bool,
    streams: HashMap<StreamId, Watermark>,
    /// Numbers given to those who wait.
    numbers: u64,
    /// Who only waits for the end, by number.
    until_end: BTreeMap<u64, Waker>,
}

#[derive(Debug, Default)]
struct Watermark {
    /// Enough followers have everything below this on their devices.
    enough: u64,
    /// Everything below this is known to be committed, however that came. It does not fall.
    committed: u64,
    /// Who waits for more, by what for and by number.
    waiting: BTreeMap<(u64, u64), Waker>,
}

impl Watermark {
    fn reached(&self) -> u64 {
        self.enough.max(self.committed)
    }

    /// Those who wait for no more than there is.
    fn take_reached(&mut self) -> BTreeMap<(u64, u64), Waker> {
        let later = self.waiting.split_off(&(self.reached().saturating_add(1), 0));
        std::mem::replace(&mut self.waiting, later)
    }
}

impl Term {
    pub(crate) fn new(epoch: u64, is_alone: bool) -> Self {
        let majority = Majority { is_alone, ..Majority::default() };
        Self {
            epoch,
            is_over: AtomicBool::new(false),
            why: OnceLock::new(),
            majority: Mutex::new(majority),
            gate: None,
        }
    }

    /// Of a driven node, that has no lease yet and knows so much to be committed.
    pub(crate) fn driven(epoch: u64, gate: Gate, committed: &BTreeMap<StreamId, u64>) -> Self {
        let watermark = |(stream, end): (&StreamId, &u64)| {
            (*stream, Watermark { committed: *end, ..Watermark::default() })
        };
        let streams = committed.iter().map(watermark).collect();
        let majority = Majority { streams, ..Majority::default() };
        Self { majority: Mutex::new(majority), gate: Some(gate), ..Self::new(epoch, false) }
    }

    pub(crate) fn gate(&self) -> Option<&Gate> {
        self.gate.as_ref()
    }

    /// Whether receipts may be given: it has its lease, or needs none.
    pub(crate) fn has_lease(&self) -> bool {
        self.gate.as_ref().is_none_or(Gate::has_lease)
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
        let (streams, until_end) = {
            let mut majority = self.majority();
            let waiting = |watermark: &mut Watermark| std::mem::take(&mut watermark.waiting);
            let streams: Vec<_> = majority.streams.values_mut().map(waiting).collect();
            (streams, std::mem::take(&mut majority.until_end))
        };
        streams.into_iter().flat_map(BTreeMap::into_values).for_each(Waker::wake);
        until_end.into_values().for_each(Waker::wake);
        self.gate.iter().for_each(Gate::wake);
    }

    /// Enough followers have a stream up to `enough`: more than before, or less, when one of them
    /// begins anew.
    pub(crate) fn set(&self, stream: StreamId, enough: u64) {
        let mut majority = self.majority();
        let watermark = majority.streams.entry(stream).or_default();
        watermark.enough = enough;
        let reached = watermark.take_reached();
        drop(majority);
        reached.into_values().for_each(Waker::wake);
    }

    /// Everything below `end` of a stream is committed.
    pub(crate) fn raise_committed(&self, stream: StreamId, end: u64) {
        let mut majority = self.majority();
        let watermark = majority.streams.entry(stream).or_default();
        watermark.committed = end.max(watermark.committed);
        let reached = watermark.take_reached();
        drop(majority);
        reached.into_values().for_each(Waker::wake);
    }

    /// Whether this node alone is a majority, from now on.
    pub(crate) fn set_alone(&self, is_alone: bool) {
        let mut majority = self.majority();
        majority.is_alone = is_alone;
        let waiting = |watermark: &mut Watermark| match is_alone {
            true => std::mem::take(&mut watermark.waiting),
            false => BTreeMap::new(),
        };
        let reached: Vec<_> = majority.streams.values_mut().map(waiting).collect();
        drop(majority);
        reached.into_iter().flat_map(BTreeMap::into_values).for_each(Waker::wake);
        self.gate.iter().for_each(|gate| gate.set_alone(is_alone));
    }

    /// What is committed of a stream whose durable end here is `end`.
    pub(crate) fn committed_end(&self, stream: StreamId, end: u64) -> u64 {
        let mut majority = self.majority();
        let is_alone = majority.is_alone;
        let watermark = majority.streams.entry(stream).or_default();
        let enough = if is_alone { end } else { watermark.enough.min(end) };
        watermark.committed = enough.max(watermark.committed);
        watermark.committed
    }

    /// Calls `waker` when the term is over, until [`Term::forget_end`] with `number`, which is given
    /// here.
    pub(crate) fn wake_at_end(
        &self,
        number: &mut Option<u64>,
        waker: &Waker,
    ) -> Result<(), String> {
        let mut majority = self.majority();
        if let Some(why) = self.ended() {
            return Err(why.to_owned());
        }
        if number.is_none() {
            majority.numbers += 1;
            *number = Some(majority.numbers);
        }
        let number = number.unwrap_or_default();
        majority.until_end.entry(number).or_insert_with(|| waker.clone()).clone_from(waker);
        Ok(())
    }

    /// See [`Term::wake_at_end`].
    pub(crate) fn forget_end(&self, number: u64) {
        let gone = self.majority().until_end.remove(&number);
        drop(gone);
    }

    /// Whether enough followers have everything below `end`; otherwise `waker` is called when that
    /// may have changed, until [`Term::forget`] with the same `number`, which is given here. An error
    /// when the term is over.
    pub(crate) fn poll_majority(
        &self,
        stream: StreamId,
        end: u64,
        number: &mut Option<u64>,
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
        if number.is_none() {
            majority.numbers += 1;
            *number = Some(majority.numbers);
        }
        let watermark = majority.streams.entry(stream).or_default();
        if watermark.reached() >= end {
            return Poll::Ready(Ok(()));
        }
        let place = (end, number.unwrap_or(0));
        watermark.waiting.entry(place).or_insert_with(|| waker.clone()).clone_from(waker);
        Poll::Pending
    }

    /// Nobody waits under this number any more.
    pub(crate) fn forget(&self, stream: StreamId, end: u64, number: u64) {
        let mut majority = self.majority();
        let watermark = majority.streams.get_mut(&stream);
        let gone = watermark.and_then(|watermark| watermark.waiting.remove(&(end, number)));
        drop(majority);
        // Other people's code, and the lock has been given back.
        drop(gone);
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
            let mut number = None;
            assert!(term.poll_majority(STREAM, end, &mut number, &waker).is_pending());
            assert!(term.poll_majority(STREAM, end, &mut number, &waker).is_pending());
            let mut other = None;
            assert!(term.poll_majority(STREAM, end, &mut other, &waker).is_pending());
            term.forget(STREAM, end, other.expect("it was given one"));
        }
        let woken =
            || counts.iter().map(|count| count.0.load(Ordering::SeqCst)).collect::<Vec<_>>();
        term.set(STREAM, 6);
        assert_eq!(woken(), [1, 1, 0]);
        let waker = Waker::noop();
        assert!(term.poll_majority(STREAM, 6, &mut None, waker).is_ready());
        term.set(STREAM, 2);
        assert!(
            term.poll_majority(STREAM, 6, &mut None, waker).is_pending(),
            "a follower has begun anew"
        );
        term.end("deposed");
        assert_eq!(woken(), [1, 1, 1]);
        let ended = term.poll_majority(STREAM, 6, &mut None, waker);
        assert!(matches!(ended, Poll::Ready(Err(why)) if why == "deposed"));
    }

    #[test]
    fn what_is_committed_otherwise_does_not_fall() {
        let known = BTreeMap::from([(STREAM, 4)]);
        let term = Term::driven(3, Gate::new(100), &known);
        let count: Arc<Count> = Arc::default();
        let waker = Waker::from(count.clone());
        let mut numbers = [None; 2];
        assert!(term.poll_majority(STREAM, 4, &mut None, &waker).is_ready());
        for (number, end) in numbers.iter_mut().zip([6, 8]) {
            assert!(term.poll_majority(STREAM, end, number, &waker).is_pending());
        }
        term.raise_committed(STREAM, 7);
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        term.set(STREAM, 2);
        assert!(term.poll_majority(STREAM, 7, &mut None, &waker).is_ready());
        assert_eq!((term.committed_end(STREAM, 5), term.committed_end(STREAM, 9)), (7, 7));
        term.set(STREAM, 9);
        assert_eq!(count.0.load(Ordering::SeqCst), 2);
        assert_eq!(term.committed_end(STREAM, 8), 8, "what is durable here");
        term.set_alone(true);
        assert!(term.poll_majority(STREAM, 100, &mut None, &waker).is_ready());
        assert_eq!(term.committed_end(STREAM, 20), 20);
        term.wake_at_end(&mut None, &waker).expect("it lasts");
        term.end("deposed");
        assert_eq!(count.0.load(Ordering::SeqCst), 3);
        assert!(term.wake_at_end(&mut None, &waker).is_err());
        assert_eq!(term.committed_end(STREAM, 0), 20, "also when it is over");
    }

    #[test]
    fn a_lone_node_is_a_majority() {
        assert!(Term::new(1, true).poll_majority(STREAM, 9, &mut None, Waker::noop()).is_ready());
    }
}
