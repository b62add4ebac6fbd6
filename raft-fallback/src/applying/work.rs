//! What the thread does, step by step.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::task::Context;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ringwal_engine::{EpochStart, ReadError, Record as Durable, Stream, Tail};

use super::replay::{Position, RebuildError, Rebuilt, epochs, rebuild, take_batch};
use super::snapshots::{InstallError, TakeError};
use super::{Request, Shared, lock};
use crate::metadata::{Applier, Entry, Progress, Stopped};
use crate::state::{Applied, State};
use crate::waiters::this_thread;

/// How long it waits before it tries again what did not go.
const PAUSE: Duration = Duration::from_secs(1);

/// What the thread has.
pub(super) struct Work {
    pub(super) shared: Arc<Shared>,
    pub(super) applier: Applier,
    pub(super) stream: Stream,
    pub(super) tail: Tail,
    /// How far the state is that is shown.
    pub(super) position: Position,
    pub(super) outcomes_max: usize,
    /// The greatest that the owner has told.
    pub(super) begun: Option<EpochStart>,
    pub(super) batch: Vec<Durable>,
    pub(super) applied: Vec<Applied>,
    /// At a record that cannot be applied: nothing more is, until that is cut.
    pub(super) is_stopped: bool,
    /// What is shown has records that are not in the stream: it has to be made anew.
    pub(super) is_cut: bool,
    pub(super) due: Due,
}

/// When the next snapshot is due.
pub(super) struct Due {
    pub(super) records: u64,
    pub(super) bytes: u64,
    /// Where the last one ended, or was to end.
    pub(super) tried_end: u64,
    /// Bytes of the records that were applied since then.
    pub(super) bytes_since: u64,
    /// Makes one.
    pub(super) thread: Option<JoinHandle<()>>,
}

/// What is to be done after a step.
enum Next {
    /// There may be more.
    Go,
    /// Somebody will wake.
    Sleep,
    /// Nobody may: look again after a pause.
    Pause,
    End(Stopped),
}

impl Work {
    pub(super) fn run(mut self) {
        let waker = this_thread();
        let mut context = Context::from_waker(&waker);
        let why = loop {
            if self.shared.ends.load(Ordering::Acquire) {
                break Stopped::Ended;
            }
            self.answer_requests(&mut context);
            let next = self.step(&mut context);
            let waits_for_commits = self.snapshot_if_due();
            match next {
                Next::Go => {}
                Next::Pause => std::thread::park_timeout(PAUSE),
                Next::Sleep if waits_for_commits => std::thread::park_timeout(PAUSE),
                Next::Sleep => std::thread::park(),
                Next::End(why) => break why,
            }
        };
        self.applier.stop(why.clone());
        self.end(&why);
    }

    /// Everybody who waits learns that it is over, also when this thread panics: see [`Drop`].
    fn end(&mut self, why: &Stopped) {
        self.shared.ends.store(true, Ordering::Release);
        let mut mailbox = lock(&self.shared.mailbox);
        mailbox.has_ended = true;
        let requests = std::mem::take(&mut mailbox.requests);
        drop(mailbox);
        for request in requests {
            let waker = match request {
                Request::Begun { slot, .. } => slot.fill(Err(why.clone())),
                Request::Install { slot, .. } => slot.fill(Arc::default()),
            };
            if let Some(waker) = waker {
                waker.wake();
            }
        }
        self.shared.outcomes.stop(why);
        if let Some(thread) = self.due.thread.take() {
            let _ = thread.join();
        }
    }

    fn answer_requests(&mut self, context: &mut Context<'_>) {
        loop {
            let request = lock(&self.shared.mailbox).requests.pop_front();
            let waker = match request {
                None => return,
                Some(Request::Begun { epoch, start, slot }) => {
                    slot.fill(self.epoch_begun(epoch, start, context))
                }
                Some(Request::Install { state, slot }) => {
                    let outcome = self.install(*state);
                    slot.fill(Arc::new(Mutex::new(Some(outcome))))
                }
            };
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    fn epoch_begun(
        &mut self,
        epoch: u64,
        start: Option<u64>,
        context: &mut Context<'_>,
    ) -> Result<Progress, Stopped> {
        let is_later = self.begun.is_none_or(|begun| begun.epoch < epoch);
        if is_later {
            // Without a start nothing is said of any record.
            self.begun = Some(EpochStart { epoch, start: start.unwrap_or(u64::MAX) });
        }
        // What stopped it may be cut, too.
        self.is_cut |= self.is_stopped || !self.position.holds(&self.stream);
        if self.is_cut {
            self.rebuild(context).map_err(|cause| Stopped::Unreadable { cause })?;
        } else {
            self.applier.raise_epoch(epoch);
            self.publish_history();
        }
        Ok(self.applier.progress())
    }

    fn publish_history(&self) {
        let progress = self.applier.progress();
        self.shared.outcomes.history(epochs(&self.stream), self.begun, progress);
    }

    /// Makes the state anew. Until it is there, what is shown stays as it is.
    fn rebuild(&mut self, context: &mut Context<'_>) -> Result<(), String> {
        self.is_cut = true;
        let before = self.applier.progress();
        let outcomes_max = self.outcomes_max;
        let folder = self.shared.folder.clone();
        let made = rebuild(&folder, &self.stream, &mut self.tail, context, outcomes_max);
        let Rebuilt { state, position, outcomes, snapshot_end, bytes } = match made {
            Ok(rebuilt) => rebuilt,
            Err(error) => return Err(self.in_trouble(&error.to_string())),
        };
        let begun = self.begun.map_or(0, |begun| begun.epoch);
        let epoch = begun.max(epochs(&self.stream).last().epoch).max(position.epoch);
        if epoch <= before.epoch && !self.is_stopped {
            let (end, epoch) = (before.end, before.epoch);
            return Err(self.in_trouble(&format!(
                "records below {end} were cut after epoch {epoch} was said to have begun: a greater epoch has to begin"
            )));
        }
        if let Err(error) = self.applier.replace(state, epoch.max(before.epoch)) {
            return Err(self.in_trouble(&error.to_string()));
        }
        let progress = self.applier.progress();
        self.publish_history();
        self.shared.outcomes.replaced(outcomes, progress);
        (self.position, self.is_cut, self.is_stopped) = (position, false, false);
        (self.due.tried_end, self.due.bytes_since) = (snapshot_end, bytes);
        *lock(&self.shared.trouble) = None;
        let (was, end) = (before.end, progress.end);
        tracing::warn!(was, end, epoch, "applied records were cut; the metadata was made anew");
        Ok(())
    }

    fn in_trouble(&self, cause: &str) -> String {
        self.shared.trouble(cause);
        cause.to_owned()
    }

    fn install(&mut self, state: State) -> Result<u64, InstallError> {
        let (end, before) = (state.end(), self.applier.progress());
        if end < before.end {
            return Err(InstallError::Older { end, applied: before.end });
        }
        let epoch = before.epoch.max(state.epoch());
        let position = Position::of(&state, true);
        self.applier.replace(state, epoch)?;
        self.tail.seek(end);
        let progress = self.applier.progress();
        self.publish_history();
        self.shared.outcomes.replaced(VecDeque::new(), progress);
        (self.position, self.is_cut, self.is_stopped) = (position, false, false);
        (self.due.tried_end, self.due.bytes_since) = (end, 0);
        *lock(&self.shared.trouble) = None;
        tracing::info!(end, epoch, "the metadata goes on from another node's snapshot");
        Ok(end)
    }

    /// Applies the records that are there.
    fn step(&mut self, context: &mut Context<'_>) -> Next {
        if self.is_cut {
            return if self.rebuild(context).is_ok() { Next::Go } else { Next::Pause };
        }
        if self.is_stopped {
            return Next::Sleep;
        }
        match take_batch(&mut self.tail, context, &mut self.batch) {
            Ok(()) => {}
            Err(ReadError::Closed) => return Next::End(Stopped::Ended),
            Err(error @ ReadError::Poisoned(_)) => {
                return Next::End(Stopped::Unreadable { cause: error.to_string() });
            }
            Err(ReadError::Trimmed { trimmed, .. }) => {
                // Others have begun the stream anew, or skipped: only a snapshot leads there.
                let end = self.position.end;
                let error = RebuildError::Hole { trimmed, end };
                self.in_trouble(&error.to_string());
                return Next::Pause;
            }
            Err(error) => {
                self.in_trouble(&error.to_string());
                return Next::Pause;
            }
        }
        if self.batch.is_empty() {
            return Next::Sleep;
        }
        if self.shared.is_in_trouble() {
            *lock(&self.shared.trouble) = None;
        }
        if !self.position.is_followed_by(&self.stream, &self.batch) {
            self.is_cut = true;
            return Next::Go;
        }
        self.apply();
        Next::Go
    }

    fn apply(&mut self) {
        let began = Instant::now();
        let entries = self.batch.iter().map(|record| Entry {
            offset: record.offset(),
            epoch: record.epoch(),
            payload: record.payload(),
        });
        self.applied.clear();
        let outcome = self.applier.apply(entries, &mut self.applied);
        let done = &self.batch[..self.applied.len()];
        let before = self.position.epoch;
        if let Some(last) = done.last() {
            let (end, epoch) = (last.offset() + 1, last.epoch());
            self.position = Position { end, epoch, is_snapshot: false };
        }
        let bytes: usize = done.iter().map(|record| record.payload().len()).sum();
        self.due.bytes_since += bytes as u64;
        // The outcomes first: what history says of progress is believed of them.
        let epochs = done.iter().map(Durable::epoch);
        let applied = epochs.zip(self.applied.iter().copied());
        self.shared.outcomes.applied(applied, self.applier.progress());
        if self.position.epoch != before {
            self.publish_history();
        }
        self.shared.latencies.add(began.elapsed());
        if let Err(error) = outcome {
            tracing::error!(%error, "the metadata stream is applied no further");
            self.is_stopped = true;
            self.shared.outcomes.stop(&Stopped::Record(error));
        }
        // Slices of what was read, which can be much more.
        self.batch.clear();
    }

    /// Begins a snapshot when one is due. Whether one would be, if more were committed.
    fn snapshot_if_due(&mut self) -> bool {
        let due = &mut self.due;
        let is_many = |end: u64| end.saturating_sub(due.tried_end) >= due.records;
        let is_long = due.bytes_since >= due.bytes;
        if !is_many(self.position.end) && !is_long {
            return false;
        }
        if self.shared.is_taking.load(Ordering::Acquire) {
            // Its end wakes this thread.
            return false;
        }
        let upto = self.position.end.min(self.shared.committed.load(Ordering::Acquire));
        let is_due = is_many(upto) || (is_long && upto > due.tried_end);
        if !is_due {
            return true;
        }
        (due.tried_end, due.bytes_since) = (upto, 0);
        self.shared.is_taking.store(true, Ordering::Release);
        let taking = Taking(self.shared.clone());
        let thread = std::thread::Builder::new().name("ringwal-snap".into()).spawn(move || {
            match taking.0.take_snapshot(upto) {
                Ok(_) | Err(TakeError::Ended) => {}
                Err(error) => tracing::error!(%error, "it is tried again when more is committed"),
            }
        });
        match thread {
            Ok(thread) => due.thread = Some(thread),
            Err(error) => tracing::error!(%error, "no thread for a snapshot of the metadata"),
        }
        false
    }
}

/// A snapshot is being made until this is dropped.
struct Taking(Arc<Shared>);

impl Drop for Taking {
    fn drop(&mut self) {
        self.0.is_taking.store(false, Ordering::Release);
        self.0.unpark();
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // After a panic; else all of it was done.
        if std::thread::panicking() {
            self.end(&Stopped::Ended);
        }
    }
}
