//! What came of the newest records, for whoever has a receipt.
//!
//! The applier takes the lock once for each batch; who asks takes it once, and then waits for a slot of
//! its own. Nobody is woken whom the batch does not concern.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use ringwal_engine::{EpochStart, EpochTable};

use super::slot::Slot;
use crate::metadata::{Progress, Stopped};
use crate::state::Applied;

/// Why nothing is said of a record.
#[derive(Clone, Eq, PartialEq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OutcomeError {
    /// The history goes on without it: another epoch has its offset, or will have.
    #[error(
        "another epoch has the record's offset: it was cut, and is not in this history; everything below {} is applied, in epoch {}", progress.end, progress.epoch
    )]
    Superseded {
        /// How far this node is in that history.
        progress: Progress,
    },
    /// It was applied so long ago that its outcome is not remembered.
    #[error(
        "the outcome is not remembered here; everything below {} is applied: look whether the command was done", progress.end
    )]
    Gone {
        /// How far this node is.
        progress: Progress,
    },
    /// The time is over; it may still come.
    #[error("not applied here after {waited:?}; everything below {} is", progress.end)]
    Late {
        /// How long it was waited for.
        waited: Duration,
        /// How far this node is.
        progress: Progress,
    },
    /// This node applies nothing more.
    #[error("this node applies nothing more: {0}")]
    Stopped(Stopped),
}

type Answer = Result<Applied, OutcomeError>;

/// The newest outcomes, and who waits for one.
#[derive(Debug)]
pub(super) struct Outcomes {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Offset of the first outcome that is remembered.
    base: u64,
    /// With the epoch of each record, which of a retry is not the one in its outcome.
    remembered: VecDeque<(u64, Applied)>,
    remembered_max: usize,
    progress: Progress,
    /// Where epochs begin, as the stream said when it was looked at last.
    epochs: EpochTable,
    /// An epoch that has begun of which the stream may have no record yet.
    begun: Option<EpochStart>,
    stopped: Option<Stopped>,
    /// Numbers given to those who wait.
    numbers: u64,
    /// By offset and number.
    waiting: BTreeMap<(u64, u64), Waiting>,
}

#[derive(Debug)]
struct Waiting {
    epoch: u64,
    slot: Arc<Slot<Answer>>,
}

impl Outcomes {
    /// Nothing is remembered of what is below `progress`.
    pub(super) fn new(remembered_max: usize, progress: Progress) -> Self {
        let inner = Inner {
            base: progress.end,
            remembered: VecDeque::new(),
            remembered_max,
            progress,
            epochs: EpochTable::default(),
            begun: None,
            stopped: None,
            numbers: 0,
            waiting: BTreeMap::new(),
        };
        Self { inner: Mutex::new(inner) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // What a panic leaves behind is looked at, and not added to: the thread that adds has ended.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what came of records that follow those before, each with its epoch, and wakes who waits for
    /// one of them.
    pub(super) fn applied(
        &self,
        outcomes: impl IntoIterator<Item = (u64, Applied)>,
        progress: Progress,
    ) {
        let mut woken = Vec::new();
        let mut inner = self.lock();
        inner.progress = progress;
        inner.remember(outcomes);
        inner.answer_below(progress.end, &mut woken);
        drop(inner);
        wake(woken);
    }

    /// The state was replaced: nothing of what is remembered counts, but `outcomes` do, which are those of
    /// the last records below its end. What stopped it before does not any more.
    pub(super) fn replaced(
        &self,
        outcomes: impl IntoIterator<Item = (u64, Applied), IntoIter: ExactSizeIterator>,
        progress: Progress,
    ) {
        let outcomes = outcomes.into_iter();
        let mut woken = Vec::new();
        let mut inner = self.lock();
        inner.remembered.clear();
        inner.base = progress.end - outcomes.len() as u64;
        (inner.progress, inner.stopped) = (progress, None);
        inner.remember(outcomes);
        inner.answer_below(progress.end, &mut woken);
        drop(inner);
        wake(woken);
    }

    /// Where epochs begin by now: whoever waits for a record that can never come learns it.
    pub(super) fn history(
        &self,
        epochs: EpochTable,
        begun: Option<EpochStart>,
        progress: Progress,
    ) {
        let mut woken = Vec::new();
        let mut inner = self.lock();
        (inner.epochs, inner.progress) = (epochs, progress);
        inner.begun = begun.or(inner.begun);
        inner.answer_superseded(&mut woken);
        drop(inner);
        wake(woken);
    }

    /// Nothing more is applied, for now.
    pub(super) fn stop(&self, why: &Stopped) {
        let mut woken = Vec::new();
        let mut inner = self.lock();
        inner.stopped = Some(why.clone());
        for waiting in std::mem::take(&mut inner.waiting).into_values() {
            woken.extend(waiting.slot.fill(Err(OutcomeError::Stopped(why.clone()))));
        }
        drop(inner);
        wake(woken);
    }

    /// How many wait.
    pub(super) fn waiting(&self) -> usize {
        self.lock().waiting.len()
    }

    /// What came, or comes, of the record.
    pub(super) fn ask(self: &Arc<Self>, epoch: u64, offset: u64) -> OutcomeWait {
        let mut inner = self.lock();
        let waits = match inner.look(epoch, offset) {
            Some(answer) => Waits::Answered(answer),
            None => {
                inner.numbers += 1;
                let (number, slot) = (inner.numbers, Arc::default());
                let waiting = Waiting { epoch, slot: Arc::clone(&slot) };
                inner.waiting.insert((offset, number), waiting);
                Waits::Waiting { number, slot }
            }
        };
        drop(inner);
        OutcomeWait { outcomes: self.clone(), offset, waits }
    }
}

fn wake(woken: Vec<Waker>) {
    woken.into_iter().for_each(Waker::wake);
}

impl Inner {
    fn remember(&mut self, outcomes: impl IntoIterator<Item = (u64, Applied)>) {
        self.remembered.extend(outcomes);
        let too_many = self.remembered.len().saturating_sub(self.remembered_max);
        self.remembered.drain(..too_many);
        self.base += too_many as u64;
    }

    /// Answers everybody who waits for a record below `end`.
    fn answer_below(&mut self, end: u64, woken: &mut Vec<Waker>) {
        while let Some(first) = self.waiting.first_entry() {
            if first.key().0 >= end {
                return;
            }
            let ((offset, _), Waiting { epoch, slot }) = first.remove_entry();
            let answer = self.look(epoch, offset);
            woken.extend(slot.fill(answer.expect("everything below the end has an answer")));
        }
    }

    fn answer_superseded(&mut self, woken: &mut Vec<Waker>) {
        let superseded = |((offset, _), waiting): (&(u64, u64), &Waiting)| {
            self.is_superseded(waiting.epoch, *offset)
        };
        if !self.waiting.iter().any(superseded) {
            return;
        }
        let progress = self.progress;
        for ((offset, number), waiting) in std::mem::take(&mut self.waiting) {
            if self.is_superseded(waiting.epoch, offset) {
                let superseded = OutcomeError::Superseded { progress };
                woken.extend(waiting.slot.fill(Err(superseded)));
            } else {
                self.waiting.insert((offset, number), waiting);
            }
        }
    }

    /// Whether a later epoch begins at or before a record.
    fn is_superseded(&self, epoch: u64, offset: u64) -> bool {
        let is_of_begun = |begun: EpochStart| begun.start <= offset && begun.epoch > epoch;
        self.epochs.epoch_at(offset) > epoch || self.begun.is_some_and(is_of_begun)
    }

    /// The answer, if there is one now.
    fn look(&self, epoch: u64, offset: u64) -> Option<Answer> {
        let progress = self.progress;
        if offset >= progress.end {
            if self.is_superseded(epoch, offset) {
                return Some(Err(OutcomeError::Superseded { progress }));
            }
            return self.stopped.clone().map(|why| Err(OutcomeError::Stopped(why)));
        }
        let place = offset.checked_sub(self.base);
        let found = place.and_then(|place| self.remembered.get(usize::try_from(place).ok()?));
        Some(match found {
            Some((of, applied)) if *of == epoch => Ok(*applied),
            Some(_) => Err(OutcomeError::Superseded { progress }),
            None if self.is_superseded(epoch, offset) => Err(OutcomeError::Superseded { progress }),
            None => Err(OutcomeError::Gone { progress }),
        })
    }
}

/// Waits for the outcome of a record: a future on any runtime, or [`OutcomeWait::wait`]. Dropping it
/// only stops waiting.
#[must_use = "the outcome is lost with it"]
#[derive(Debug)]
pub struct OutcomeWait {
    outcomes: Arc<Outcomes>,
    offset: u64,
    waits: Waits,
}

#[derive(Debug)]
enum Waits {
    Answered(Answer),
    Waiting { number: u64, slot: Arc<Slot<Answer>> },
}

impl OutcomeWait {
    /// Blocks the thread until the outcome is there, or until `deadline`. It can be waited for again.
    ///
    /// # Errors
    /// See [`OutcomeError`].
    pub fn wait(&mut self, deadline: Instant) -> Result<Applied, OutcomeError> {
        let began = Instant::now();
        let slot = match &self.waits {
            Waits::Answered(answer) => return answer.clone(),
            Waits::Waiting { slot, .. } => slot,
        };
        slot.wait(Some(deadline)).unwrap_or_else(|| {
            let progress = self.outcomes.lock().progress;
            Err(OutcomeError::Late { waited: began.elapsed(), progress })
        })
    }
}

impl Future for OutcomeWait {
    type Output = Result<Applied, OutcomeError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &self.waits {
            Waits::Answered(answer) => Poll::Ready(answer.clone()),
            Waits::Waiting { slot, .. } => slot.poll(context),
        }
    }
}

impl Drop for OutcomeWait {
    fn drop(&mut self) {
        if let Waits::Waiting { number, slot } = &self.waits
            && !slot.is_full()
        {
            let gone = self.outcomes.lock().waiting.remove(&(self.offset, *number));
            drop(gone);
        }
    }
}
