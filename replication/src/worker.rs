//! The thread beside the replication thread that waits for disks: it reads segments for followers
//! that are behind, keeps and cuts what is of another history, and makes facts durable. One job at
//! a time, in order.

use std::collections::{BTreeMap, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use ringwal_engine::mutants::{self, Mutant};
use ringwal_engine::{
    Barrier, CommitError, Engine, EpochTable, FrameSlice, FrameWalk, Frames, ReadError, StreamId,
};

use crate::beginning::{Begin, Cutting};
use crate::driven::BeginError;
use crate::history::Held;
use crate::leader::{ReadOutcome, ReadRequest};
use crate::link::tls::{Tls, TlsError};
use crate::mend::Mender;
use crate::node_id::NodeId;
use crate::orphans::{self, Reason};
use crate::promise::{FACTS_STREAM, Fact, Promise, is_replicated};
use crate::repair::Marker;
use crate::stats::Counters;
use crate::wake::Wake;
use crate::wire::{Stop, Wanted};

/// Jobs that wait; their owner holds back more.
const JOBS_MAX: usize = 64;
/// How long a read waits for records that are sealed and not durable yet.
const DURABLE_WAIT: Duration = Duration::from_millis(20);
/// Bytes of one record of facts.
const FACT_BYTES_MAX: usize = 32 << 10;

/// What it is asked to do.
#[derive(Debug)]
pub(crate) enum Job {
    /// Read segments for a follower.
    Read(ReadRequest),
    /// Close this node's epoch, wait for what is in flight, and make a promise durable.
    Promise { promise: Promise, facts: Facts },
    /// Look whether records that are held in an epoch already are these.
    Compare(Box<Compare>),
    /// Begin an epoch: promise it, keep and cut what is not of it, and make it durable that it has
    /// begun.
    Begin(Box<Begin>),
    /// Wait for what is in flight, and tell what is held.
    Hold,
    /// Make durable what this node knows.
    Save(Facts),
    /// Drop a prefix of a stream.
    Trim { stream: StreamId, before: u64 },
    /// Load certificates again if their files have changed.
    Reload(Arc<Tls>),
    /// Read a part of what somebody wants who repairs its own.
    Fetch { session: u64, wanted: Wanted, bytes_max: usize },
    /// What a repair had taken away is back: forget that it was.
    EndRepair,
    /// Keep records as an orphan, then cut them and begin an epoch there.
    Cut { stream: StreamId, from: u64, end: u64, epoch: u64, reason: Reason },
    /// Keep what is held as an orphan, then begin a stream anew.
    BeginAnew { anew: BeginAnew, epochs: EpochTable, reason: Reason },
}

/// Records that are to be held already.
#[derive(Debug)]
pub(crate) struct Compare {
    /// Who asks.
    pub(crate) number: u64,
    pub(crate) stream: StreamId,
    pub(crate) epoch: u64,
    pub(crate) base: u64,
    pub(crate) records: Vec<Bytes>,
}

/// A stream whose leader has trimmed what is missing here.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct BeginAnew {
    /// Which stream.
    pub stream: StreamId,
    /// What the leader has trimmed.
    pub trimmed: u64,
    /// What is held here; it is kept as an orphan.
    pub held: std::ops::Range<u64>,
    /// The node that has trimmed it, and has a snapshot.
    pub from: NodeId,
}

/// Puts in what the leader has trimmed, from a snapshot, and says where the stream goes on: at
/// [`BeginAnew::trimmed`] or later. `None` when it cannot now; the leader is then asked again later.
/// It may wait, but not for the leader or for long: until it returns, this node can follow nobody
/// else and not lead.
pub type Snapshots = dyn Fn(&BeginAnew) -> Option<u64> + Send + Sync;

/// A part of what somebody wanted.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub(crate) wanted: Wanted,
    /// None where it was only to be checked.
    pub(crate) frames: Vec<FrameSlice>,
    /// Offset after the last.
    pub(crate) end: u64,
    pub(crate) stop: Stop,
}

/// What came of a job.
#[derive(Debug)]
pub(crate) enum Outcome {
    Read(ReadRequest, ReadOutcome),
    /// Whether it is durable, and what every stream holds then.
    Promised(Promise, Result<BTreeMap<StreamId, Held>, String>),
    /// Whether the epoch has begun, durably, and what every stream holds then.
    Begun {
        promise: Promise,
        /// It may be promised, durably, even where it has not begun.
        may_be_promised: bool,
        /// This node was to lead in it.
        leads: bool,
        begun: Result<BTreeMap<StreamId, Held>, BeginError>,
    },
    Held(Result<BTreeMap<StreamId, Held>, String>),
    /// Who asked, and the first offset at which something else is held.
    Compared {
        number: u64,
        other: Option<u64>,
    },
    Saved(Facts, Result<(), String>),
    Trimmed {
        stream: StreamId,
        before: u64,
        outcome: Result<(), String>,
    },
    Reloaded(Result<bool, TlsError>),
    Cut {
        stream: StreamId,
        at: u64,
        outcome: Result<(), String>,
    },
    BegunAnew {
        stream: StreamId,
        outcome: Result<u64, String>,
    },
    Fetched(u64, Fetched),
    RepairEnded(Result<(), String>),
}

/// Its owner's end. Dropping it ends the thread when its job is done, which is not waited for.
pub(crate) struct Worker {
    jobs: Option<Sender<Job>>,
    outcomes: Receiver<Outcome>,
    thread: Option<JoinHandle<()>>,
    /// Jobs without an outcome.
    under_way: usize,
}

impl Worker {
    pub(crate) fn start(
        engine: Engine,
        snapshots: Arc<Snapshots>,
        mender: Mender,
        counters: Arc<Counters>,
        wake: Arc<Wake>,
    ) -> std::io::Result<Self> {
        let (jobs, to_do) = bounded::<Job>(JOBS_MAX);
        let (done, outcomes) = bounded(JOBS_MAX);
        let thread =
            std::thread::Builder::new().name("ringwal-worker".into()).spawn(move || {
                let (walks, fetching) = (HashMap::new(), None);
                let mut work = Work { engine, snapshots, mender, counters, walks, fetching };
                for job in to_do {
                    if done.send(work.outcome(job)).is_err() {
                        return;
                    }
                    wake.wake();
                }
            })?;
        Ok(Self { jobs: Some(jobs), outcomes, thread: Some(thread), under_way: 0 })
    }

    /// Whether nothing is under way.
    pub(crate) fn is_idle(&self) -> bool {
        self.under_way == 0
    }

    /// Whether its thread has panicked: what is under way has no outcome then.
    pub(crate) fn has_died(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Whether it takes a job now.
    pub(crate) fn has_room(&self) -> bool {
        self.under_way < JOBS_MAX
    }

    /// Gives it a job; [`Worker::has_room`] has said that it can.
    pub(crate) fn give(&mut self, job: Job) {
        let Some(jobs) = &self.jobs else { return };
        match jobs.try_send(job) {
            Ok(()) => self.under_way += 1,
            Err(TrySendError::Full(job)) => panic!("no room was asked for before {job:?}"),
            // Its thread has panicked: see `has_died`.
            Err(TrySendError::Disconnected(_)) => self.under_way += 1,
        }
    }

    /// What is done.
    pub(crate) fn take(&mut self) -> Option<Outcome> {
        let outcome = self.outcomes.try_recv().ok()?;
        self.under_way -= 1;
        Some(outcome)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It ends when its job does, which may be a disk that stands still: nobody waits for that.
        self.jobs = None;
    }
}

struct Work {
    engine: Engine,
    snapshots: Arc<Snapshots>,
    mender: Mender,
    counters: Arc<Counters>,
    /// By follower: its session, and what has been walked for it of each shard.
    walks: HashMap<usize, (u64, HashMap<u16, FrameWalk>)>,
    /// Where the last read ended for somebody who repairs.
    fetching: Option<(u64, StreamId, Frames)>,
}

impl Work {
    fn outcome(&mut self, job: Job) -> Outcome {
        match job {
            Job::Read(request) => {
                let outcome = self.read(&request);
                Outcome::Read(request, outcome)
            }
            Job::Promise { promise, facts } => {
                let held = self.promise(promise, facts).map_err(|error| error.to_string());
                Outcome::Promised(promise, held)
            }
            Job::Compare(compare) => {
                Outcome::Compared { number: compare.number, other: self.compare(&compare) }
            }
            Job::Begin(begin) => {
                let (promise, leads, mut may_be_promised) = (begin.promise, begin.leads, false);
                let begun = self.begin(*begin, &mut may_be_promised);
                Outcome::Begun { promise, may_be_promised, leads, begun }
            }
            Job::Hold => {
                let waited = self.engine.barrier().map_err(refused).and_then(Barrier::wait);
                let held = waited.map(|()| held(&self.engine));
                Outcome::Held(held.map_err(|error| error.to_string()))
            }
            Job::Save(facts) => {
                let saved = facts.save(&self.engine).map_err(|error| error.to_string());
                Outcome::Saved(facts, saved)
            }
            Job::Trim { stream, before } => {
                let trimmed = self.engine.stream(stream).trim(before);
                Outcome::Trimmed { stream, before, outcome: trimmed.map_err(|e| e.to_string()) }
            }
            Job::Reload(tls) => Outcome::Reloaded(tls.reload_if_changed()),
            Job::Fetch { session, wanted, bytes_max } => {
                Outcome::Fetched(session, self.fetch(session, wanted, bytes_max))
            }
            Job::EndRepair => {
                let ended = Marker::remove(self.engine.directory());
                Outcome::RepairEnded(ended.map_err(|error| error.to_string()))
            }
            Job::Cut { stream, from, end, epoch, reason } => {
                let outcome = self.cut(stream, from, end, epoch, reason);
                Outcome::Cut { stream, at: from, outcome: outcome.map_err(|e| e.to_string()) }
            }
            Job::BeginAnew { anew, epochs, reason } => {
                let stream = anew.stream;
                Outcome::BegunAnew {
                    stream,
                    outcome: begin_anew(&self.engine, &*self.snapshots, &anew, &epochs, reason),
                }
            }
        }
    }

    fn read(&mut self, request: &ReadRequest) -> ReadOutcome {
        let (session, walks) = self.walks.entry(request.follower).or_default();
        if *session != request.session {
            walks.clear();
            *session = request.session;
        }
        let begin = || self.engine.walk_frames(request.shard);
        let walk = walks.entry(request.shard).or_insert_with(begin);
        let mut piece = walk.next_piece(&request.wanted, request.bytes_max);
        let is_empty = piece.frames.is_empty() && piece.failed.is_empty();
        if let Some((stream, from)) = request.sealed.filter(|_| is_empty) {
            // It is about to be durable; an answer without anything would be asked again at once.
            let _ = self.engine.stream(stream).tail(from).next_timeout(DURABLE_WAIT);
            piece = walk.next_piece(&request.wanted, request.bytes_max);
        }
        if piece.ended.len() == request.wanted.len() {
            walks.remove(&request.shard);
        }
        let not_trimmed =
            |(_, error): &&(_, ReadError)| !matches!(error, ReadError::Trimmed { .. });
        let failed: Vec<_> = piece.failed.iter().filter(not_trimmed).collect();
        if let Some((_, error)) = failed.first() {
            tracing::error!(%error, others = failed.len() - 1, "cannot read for a follower");
        }
        failed.iter().for_each(|(_, error)| self.mender.note(error));
        piece.into()
    }

    /// By I-17 the same epoch and offset are the same bytes. What cannot be read, or is of another epoch, says
    /// nothing here.
    fn compare(&self, compare: &Compare) -> Option<u64> {
        let Compare { stream, epoch, base, records, .. } = compare;
        let held = self.engine.stream(*stream).read(*base..*base + records.len() as u64).ok()?;
        for (held, record) in held.zip(records) {
            match held {
                Ok(held) if held.epoch() == *epoch && held.payload() != record => {
                    return Some(held.offset());
                }
                Ok(_) => {}
                Err(error) => {
                    self.mender.note(&error);
                    return None;
                }
            }
        }
        None
    }

    fn fetch(&mut self, session: u64, wanted: Wanted, bytes_max: usize) -> Fetched {
        let Wanted { stream, from, end: until, is_check } = wanted;
        let mut reader = match self.fetching.take() {
            Some((of, same, frames)) if (of, same, frames.offset()) == (session, stream, from) => {
                frames
            }
            _ => self.engine.stream(stream).frames(from),
        };
        let fetched = |end, stop| Fetched { wanted, frames: Vec::new(), end, stop };
        let mut frames = match reader.next_batch(bytes_max) {
            Ok(frames) => frames,
            Err(ReadError::Trimmed { trimmed, .. }) => {
                return fetched(from, Stop::Trimmed(trimmed));
            }
            Err(ReadError::Poisoned(_) | ReadError::Closed) => return fetched(from, Stop::End),
            Err(error) => {
                self.mender.note(&error);
                return fetched(from, Stop::Damaged(error.to_string()));
            }
        };
        frames.retain(|frame| frame.base_offset < until);
        let end = frames.last().map_or(from, |last| last.base_offset + u64::from(last.count));
        let stop = match end {
            end if end >= until => Stop::Whole,
            end if end == from => Stop::End,
            _ => Stop::More,
        };
        if stop == Stop::More {
            self.fetching = Some((session, stream, reader));
        }
        if is_check {
            frames.clear();
        }
        Fetched { wanted, frames, end, stop }
    }

    /// Everything that this node has under way in an older epoch has its outcome before the promise
    /// is made, and nothing of it can come after.
    fn promise(
        &self,
        promise: Promise,
        facts: Facts,
    ) -> Result<BTreeMap<StreamId, Held>, CommitError> {
        self.engine.close_epoch();
        self.engine.fence_frames();
        self.engine.barrier().map_err(refused)?.wait()?;
        // A promise never goes down.
        let is_new = facts.promise.is_none_or(|before| before.epoch < promise.epoch);
        if is_new {
            Facts { promise: Some(promise), ..facts }.save(&self.engine)?;
        }
        Ok(held(&self.engine))
    }

    /// As [`Node::begin`](crate::Node::begin) says.
    fn begin(
        &self,
        begin: Begin,
        may_be_promised: &mut bool,
    ) -> Result<BTreeMap<StreamId, Held>, BeginError> {
        let failed = |error: CommitError| BeginError::Failed(error.to_string());
        // Before anything is promised, and again when nothing is in flight.
        begin.cuts(&held(&self.engine))?;
        *may_be_promised = true;
        let held_now = self.promise(begin.promise, begin.facts.clone()).map_err(failed)?;
        let Begin { promise, ref facts, .. } = begin;
        for Cutting { stream, start, end, epoch } in begin.cuts(&held_now)? {
            tracing::info!(%stream, start, end, epoch = promise.epoch, "cut: it is of an older epoch");
            let cut = self.cut(stream, start, end, epoch, promise.into());
            cut.map_err(|error| {
                BeginError::Failed(format!("stream {stream} is not cut at {start}: {error}"))
            })?;
            self.counters.records_cut.add(end - start);
        }
        let promised = facts.promise.filter(|promised| promised.epoch > promise.epoch);
        let promised = Some(promised.unwrap_or(promise));
        let facts = Facts { promise: promised, begun: Some(promise), ..facts.clone() };
        facts.save(&self.engine).map_err(failed)?;
        Ok(held(&self.engine))
    }

    fn cut(
        &self,
        stream: StreamId,
        from: u64,
        end: u64,
        epoch: u64,
        reason: Reason,
    ) -> Result<(), Box<dyn std::error::Error>> {
        orphans::keep(&self.engine, stream, from, end, reason)?;
        self.engine.stream(stream).truncate(from, epoch)?.wait()?;
        Ok(())
    }
}

/// Puts in what is trimmed elsewhere, keeps what is held as an orphan, and lets the stream go on behind the
/// snapshot: where it does.
pub(crate) fn begin_anew(
    engine: &Engine,
    snapshots: &Snapshots,
    anew: &BeginAnew,
    epochs: &EpochTable,
    reason: Reason,
) -> Result<u64, String> {
    // Code of the embedder: its panic must not end this thread.
    let at = catch_unwind(AssertUnwindSafe(|| snapshots(anew)))
        .map_err(|_| format!("the snapshots of stream {} panicked", anew.stream))?
        .ok_or_else(|| format!("no snapshot of stream {} to begin anew from", anew.stream))?;
    if at < anew.trimmed {
        let (stream, trimmed) = (anew.stream, anew.trimmed);
        return Err(format!("a snapshot of stream {stream} ends at {at}, below {trimmed}"));
    }
    let begun = || -> Result<(), Box<dyn std::error::Error>> {
        orphans::keep(engine, anew.stream, anew.held.start, anew.held.end, reason)?;
        engine.stream(anew.stream).begin_anew(at, epochs.epoch_at(at))?.wait()?;
        Ok(())
    };
    begun().map(|()| at).map_err(|error| error.to_string())
}

pub(crate) fn refused(error: ringwal_engine::AppendError) -> CommitError {
    match error {
        ringwal_engine::AppendError::Poisoned(cause) => CommitError::NotWritten(cause),
        _ => CommitError::Closed,
    }
}

/// What a node keeps in its facts stream.
#[derive(Clone, Eq, PartialEq, Debug, Default)]
pub(crate) struct Facts {
    pub(crate) promise: Option<Promise>,
    /// What is known to be committed.
    pub(crate) committed: BTreeMap<StreamId, u64>,
    /// The engines of the members that this node has led.
    pub(crate) members: BTreeMap<NodeId, [u8; 16]>,
    /// The epoch that has begun last, of a driven node. It is not greater than what is promised.
    pub(crate) begun: Option<Promise>,
}

impl Facts {
    /// Writes all of them anew, the promise last, and drops the older ones.
    pub(crate) fn save(&self, engine: &Engine) -> Result<(), CommitError> {
        let ends: Vec<_> = self.committed.iter().map(|(stream, end)| (*stream, *end)).collect();
        let committed = ends.chunks(FACT_BYTES_MAX / 16).map(|ends| Fact::Committed(ends.to_vec()));
        let members = self.members.iter().map(|(node, engine)| Fact::Member(*node, *engine));
        let begun = self.begun.map(Fact::Begun);
        let facts = committed.chain(members).chain(begun).chain(self.promise.map(Fact::Promise));
        let stream = engine.stream(FACTS_STREAM);
        let mut base = None;
        for fact in facts {
            let receipt = stream.append(fact.encode()).map_err(refused)?.wait()?;
            base.get_or_insert(receipt.offset());
        }
        // The last of each kind counts: what is older goes only when all of it is there anew.
        if let Some(base) = base
            && self.promise.is_some()
            && !mutants::is(Mutant::PromiseNotPersisted)
        {
            // Not waited for: what is there twice says the same.
            let _ = stream.trim_async(base);
        }
        Ok(())
    }

    /// What the facts stream says.
    ///
    /// # Errors
    /// When it cannot be read, or holds a fact that a newer version has written: to go on without it
    /// would forget it.
    pub(crate) fn load(engine: &Engine) -> Result<Self, FactsError> {
        let mut facts = Self::default();
        for record in engine.stream(FACTS_STREAM).read(..)? {
            let record = record?;
            match Fact::decode(record.payload()) {
                Some(Fact::Promise(promise)) => facts.promise = Some(promise),
                Some(Fact::Begun(begun)) => facts.begun = Some(begun),
                Some(Fact::Member(node, engine)) => drop(facts.members.insert(node, engine)),
                Some(Fact::Committed(ends)) => {
                    for (stream, end) in ends {
                        let known = facts.committed.entry(stream).or_default();
                        *known = end.max(*known);
                    }
                }
                None => return Err(FactsError::Newer { offset: record.offset() }),
            }
        }
        Ok(facts)
    }
}

/// Why the facts of a node cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FactsError {
    /// They cannot be read.
    #[error("what this node has promised cannot be read: {0}")]
    Read(#[from] ReadError),
    /// They were written by a newer version.
    #[error(
        "record {offset} of stream 3, where this node keeps what it has promised, is of a kind that \
         this version does not know; use the version that wrote it, or a later one"
    )]
    Newer {
        /// Which record.
        offset: u64,
    },
}

/// What every replicated stream holds durably.
pub(crate) fn held(engine: &Engine) -> BTreeMap<StreamId, Held> {
    let streams = engine.streams().into_iter().filter(|summary| is_replicated(summary.stream));
    streams
        .map(|summary| {
            let entries = engine.stream(summary.stream).epochs();
            let epochs = EpochTable::from_entries(entries).expect("a stream's epochs are in order");
            (summary.stream, Held { trimmed: summary.trimmed, end: summary.end, epochs })
        })
        .collect()
}
