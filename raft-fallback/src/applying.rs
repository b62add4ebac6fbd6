//! The thread `ringwal-apply`: the durable records of stream 0 become the state, in order, on every node.
//!
//! ```text
//! newest snapshot ─▶ replay of stream 0 ─▶ Metadata (readers, waiters)
//!                                        ▲
//! stream 0, durable records ─▶ batches ──┴─▶ outcomes, for who has a receipt
//!                                 │
//!                                 └─ due? ─▶ a thread of its own: snapshot ─▶ trim
//! ```
//!
//! **Cuts.** What was applied may be cut (it was not committed), and then the state is made anew, from a
//! snapshot, which is never above the committed watermark, and the stream. Readers see the old state in the
//! old epoch meanwhile. A cut is noticed in two ways, neither of which depends on when it comes:
//! - a record whose epoch is not that of the record before it: the stream's table of epochs, read
//!   after the record, says whether the record before is still what was applied (I-17);
//! - [`Applying::epoch_begun`], which looks at the table in any case. Nothing else would tell of a cut behind
//!   which no record has come.
//!
//! It is called *after* the cut is durable. Before it there is nothing to be seen; and the epoch would be
//! used up: what is seen goes back only together with a greater epoch.

mod folder;
mod outcomes;
mod replay;
mod slot;
mod snapshots;
#[cfg(test)]
mod tests;
mod work;

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::io::Read;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::thread::{JoinHandle, Thread};

use ringwal_engine::{Engine, StreamId};

use self::folder::Folder;
pub use self::folder::{FolderError, SnapshotFile, SnapshotId};
use self::outcomes::Outcomes;
pub use self::outcomes::{OutcomeError, OutcomeWait};
pub use self::replay::RebuildError;
use self::replay::{Rebuilt, epochs, rebuild};
use self::slot::Slot;
use self::snapshots::Snapshots;
pub use self::snapshots::{InstallError, SnapshotInfo, TakeError};
use self::work::{Due, Work};
use crate::metadata::{Metadata, Progress, Stopped};
use crate::state::State;
use crate::store::times::{Latencies, LatencyStats};

/// The metadata stream: `__metadata`, partition 0.
pub const METADATA_STREAM: StreamId = StreamId::new(0);

/// How a node applies.
pub struct ApplyingOptions {
    /// The committed watermark of stream 0, as this node knows it: the owner raises it. Snapshots end
    /// there or below.
    pub committed: Arc<AtomicU64>,
    /// Told below which offset stream 0 is not needed any more, because two snapshots hold it. It is called on
    /// the thread that makes the snapshot, and should do no more than queue the trim.
    pub trim: Box<dyn Fn(u64) + Send>,
    /// A snapshot is due when so many records are committed and not in one. It is what a restart has to
    /// apply at most, but for what comes while one is made. 250,000 by default.
    pub snapshot_records: u64,
    /// Likewise in bytes of records. 64 MiB by default.
    pub snapshot_bytes: u64,
    /// How many outcomes are remembered: the newest. 65,536 by default, at about 80 bytes.
    pub outcomes_max: usize,
}

impl ApplyingOptions {
    /// With the defaults.
    pub fn new(committed: Arc<AtomicU64>, trim: Box<dyn Fn(u64) + Send>) -> Self {
        Self {
            committed,
            trim,
            snapshot_records: 250_000,
            snapshot_bytes: 64 << 20,
            outcomes_max: 1 << 16,
        }
    }
}

impl fmt::Debug for ApplyingOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApplyingOptions")
            .field("committed", &self.committed)
            .finish_non_exhaustive()
    }
}

/// Why a node does not begin to apply.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// There is no state.
    #[error(transparent)]
    State(#[from] RebuildError),
    /// There is no thread.
    #[error("the thread that applies cannot be started: {0}")]
    Thread(std::io::Error),
}

/// A handle of the thread. It ends when the last one is dropped, or with the engine.
#[derive(Clone)]
pub struct Applying {
    handle: Arc<Handle>,
}

struct Handle {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What the thread shares with its handles.
struct Shared {
    mailbox: Mutex<Mailbox>,
    metadata: Metadata,
    outcomes: Arc<Outcomes>,
    /// Of batches, from being read to everybody woken.
    latencies: Latencies,
    committed: Arc<AtomicU64>,
    snapshots: Mutex<Snapshots>,
    /// To look at snapshots without waiting for whoever makes one.
    folder: Folder,
    last_snapshot: Mutex<Option<SnapshotInfo>>,
    /// The thread has one made that was due.
    is_taking: AtomicBool,
    /// What keeps it from going on for now.
    trouble: Mutex<Option<String>>,
    /// Everything ends.
    ends: AtomicBool,
    thread: OnceLock<Thread>,
}

/// What the thread is asked to do. No bound is needed: each request belongs to a caller that waits for it.
#[derive(Default)]
struct Mailbox {
    requests: VecDeque<Request>,
    /// The thread takes no more.
    has_ended: bool,
}

enum Request {
    Begun { epoch: u64, start: Option<u64>, slot: Arc<Slot<Result<Progress, Stopped>>> },
    Install { state: Box<State>, slot: Arc<Slot<Installed>> },
}

/// What came of an installation. Its error cannot be cloned.
type Installed = Arc<Mutex<Option<Result<u64, InstallError>>>>;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change is made in one step.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Applying {
    /// Makes the state from the newest snapshot (in `metadata-snapshots`, in the engine's directory) and the
    /// durable records of stream 0, and starts the thread that goes on with those that come.
    ///
    /// The epoch that it shows first is the stream's last; the owner says of later ones
    /// ([`Applying::epoch_begun`]).
    ///
    /// # Errors
    /// When no snapshot can be read that reaches to where the stream begins.
    pub fn start(
        engine: &Engine,
        options: ApplyingOptions,
    ) -> Result<(Metadata, Self), StartError> {
        let stream = engine.stream(METADATA_STREAM);
        let folder = Folder::new(engine.directory());
        let mut tail = stream.tail(0);
        let mut context = Context::from_waker(std::task::Waker::noop());
        let outcomes_max = options.outcomes_max;
        let rebuilt = rebuild(&folder, &stream, &mut tail, &mut context, outcomes_max)?;
        let Rebuilt { state, position, outcomes, snapshot_end, bytes } = rebuilt;
        let table = epochs(&stream);
        let (metadata, applier) = Metadata::new(state, table.last().epoch);
        let progress = applier.progress();
        let answers = Arc::new(Outcomes::new(outcomes_max, progress));
        answers.history(table, None, progress);
        answers.replaced(outcomes, progress);
        let shared = Arc::new(Shared {
            mailbox: Mutex::default(),
            metadata: metadata.clone(),
            outcomes: answers,
            latencies: Latencies::default(),
            committed: options.committed,
            snapshots: Mutex::new(Snapshots {
                folder: folder.clone(),
                stream: stream.clone(),
                trim: options.trim,
            }),
            folder,
            last_snapshot: Mutex::default(),
            is_taking: AtomicBool::new(false),
            trouble: Mutex::default(),
            ends: AtomicBool::new(false),
            thread: OnceLock::new(),
        });
        let due = Due {
            records: options.snapshot_records.max(1),
            bytes: options.snapshot_bytes.max(1),
            tried_end: snapshot_end,
            bytes_since: bytes,
            thread: None,
        };
        let work = Work {
            shared: shared.clone(),
            applier,
            stream,
            tail,
            position,
            outcomes_max,
            begun: None,
            batch: Vec::new(),
            applied: Vec::new(),
            is_stopped: false,
            is_cut: false,
            due,
        };
        let thread = std::thread::Builder::new().name("ringwal-apply".into());
        let thread = thread.spawn(move || work.run()).map_err(StartError::Thread)?;
        let _ = shared.thread.set(thread.thread().clone());
        let handle = Handle { shared, thread: Mutex::new(Some(thread)) };
        Ok((metadata, Self { handle: Arc::new(handle) }))
    }

    /// An epoch has begun here: its `EpochStart` was applied, and **what that cuts of stream 0 is cut,
    /// durably**. `start` is where it begins in stream 0, if that is known: whoever waits for the
    /// outcome of an older record from there on learns that it will not come.
    ///
    /// If something that was applied is cut, the state is made anew, and takes the place of the present one with
    /// this epoch; else the epoch is raised. The token tells when readers see it; that more of the stream is
    /// to be applied is another matter ([`Metadata::wait_applied`]). One that is not greater than
    /// the present is fine: then it is only looked whether all that was applied is still there.
    pub fn epoch_begun(&self, epoch: u64, start: Option<u64>) -> EpochSeen {
        let slot = Arc::new(Slot::default());
        let request = Request::Begun { epoch, start, slot: slot.clone() };
        if !self.shared().ask(request) {
            drop(slot.fill(Err(Stopped::Ended)));
        }
        EpochSeen { slot }
    }

    /// The outcome of a record, for whoever has its receipt, on any node: of one that was applied, or of
    /// one that will be.
    pub fn outcome(&self, epoch: u64, offset: u64) -> OutcomeWait {
        self.shared().outcomes.ask(epoch, offset)
    }

    /// Makes a snapshot now, of what is committed below `watermark`, and returns when it is durable and the
    /// stream's beginning is given up. `None` when the newest one ends there already. It does not
    /// disturb readers or the applier; see the module for the price. One is made at a time.
    ///
    /// # Errors
    /// Why there is none. What is there stays.
    pub fn snapshot_below(&self, watermark: u64) -> Result<Option<SnapshotInfo>, TakeError> {
        self.shared().take_snapshot(watermark)
    }

    /// The snapshot that was made last, by this run.
    pub fn last_snapshot(&self) -> Option<SnapshotInfo> {
        *lock(&self.shared().last_snapshot)
    }

    /// Opens the newest snapshot, for another node.
    ///
    /// # Errors
    /// What the file system says.
    pub fn newest_snapshot(&self) -> Result<Option<SnapshotFile>, FolderError> {
        self.shared().folder.open_newest()
    }

    /// Puts another node's snapshot in the place of the state: reads all of it, checks it, makes it durable, and
    /// returns the offset at which stream 0 has to go on ([`ringwal_engine::Stream::begin_anew`]; the owner does
    /// that next). It blocks. The reader ends where the snapshot does.
    ///
    /// # Errors
    /// Why it is not installed.
    pub fn install(&self, reader: &mut dyn Read) -> Result<u64, InstallError> {
        let shared = self.shared();
        let snapshots = lock(&shared.snapshots);
        let applied = || shared.metadata.progress().end;
        let check = |state: &State| match (state.end(), applied()) {
            (end, applied) if end < applied => Err(InstallError::Older { end, applied }),
            _ => Ok(()),
        };
        snapshots.install(reader, check, |state| shared.place(state))
    }

    /// What keeps it from going on at the moment, if anything does: it is tried again each second. What ends
    /// it for good is in [`Metadata::stopped`].
    pub fn trouble(&self) -> Option<String> {
        lock(&self.shared().trouble).clone()
    }

    /// How long batches took, from being read to everybody who waits having been woken.
    pub fn latencies(&self) -> LatencyStats {
        self.shared().latencies.stats()
    }

    /// How many wait for an outcome.
    pub fn waiting(&self) -> usize {
        self.shared().outcomes.waiting()
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.handle.shared
    }
}

impl fmt::Debug for Applying {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let progress = self.shared().metadata.progress();
        f.debug_struct("Applying").field("progress", &progress).finish_non_exhaustive()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::Release);
        let Some(thread) = lock(&self.thread).take() else { return };
        thread.thread().unpark();
        // In a waker that the thread runs itself, it ends when that returns.
        if thread.thread().id() != std::thread::current().id() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// False when nobody will do it.
    fn ask(&self, request: Request) -> bool {
        let mut mailbox = lock(&self.mailbox);
        if mailbox.has_ended {
            return false;
        }
        mailbox.requests.push_back(request);
        drop(mailbox);
        self.unpark();
        true
    }

    fn unpark(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    fn take_snapshot(&self, watermark: u64) -> Result<Option<SnapshotInfo>, TakeError> {
        let snapshots = lock(&self.snapshots);
        let committed = self.committed.load(Ordering::Acquire);
        let upto = watermark.min(committed).min(self.metadata.progress().end);
        let taken = snapshots.take(upto, &self.ends)?;
        if taken.is_some() {
            *lock(&self.last_snapshot) = taken;
        }
        Ok(taken)
    }

    /// Gives the thread a state that is durable as a snapshot, and waits until it is shown.
    fn place(&self, state: State) -> Result<u64, InstallError> {
        let slot: Arc<Slot<Installed>> = Arc::default();
        let request = Request::Install { state: Box::new(state), slot: slot.clone() };
        if !self.ask(request) {
            return Err(InstallError::Ended);
        }
        let installed = slot.wait(None).expect("no deadline was given");
        lock(&installed).take().unwrap_or(Err(InstallError::Ended))
    }

    fn is_in_trouble(&self) -> bool {
        lock(&self.trouble).is_some()
    }

    /// Says it once.
    fn trouble(&self, cause: &str) {
        let mut trouble = lock(&self.trouble);
        if trouble.as_deref() != Some(cause) {
            tracing::error!(cause, "the metadata stream is not applied for now; it is tried again");
            *trouble = Some(cause.to_owned());
        }
    }
}

/// Tells when an epoch is seen: a future on any runtime, or [`EpochSeen::wait`]. Dropping it only stops
/// waiting.
#[derive(Debug)]
pub struct EpochSeen {
    slot: Arc<Slot<Result<Progress, Stopped>>>,
}

impl EpochSeen {
    /// Blocks the thread until then.
    ///
    /// # Errors
    /// Why the state could not be made anew, or nobody applies.
    pub fn wait(self) -> Result<Progress, Stopped> {
        self.slot.wait(None).expect("no deadline was given")
    }
}

impl Future for EpochSeen {
    type Output = Result<Progress, Stopped>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.slot.poll(context)
    }
}
