//! The engine and its streams, as an embedder sees them. No I/O: commands go to the shards'
//! queues, reads go through the index.

use std::future::{Future, poll_fn};
use std::ops::RangeBounds;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};
use std::thread::ThreadId;

use bytes::Bytes;

use crate::batch::Asked;
use crate::clock::Clock;
use crate::config::Options;
use crate::directory::Directory;
use crate::engine_wide::EngineWide;
use crate::error::{
    AppendError, CloseError, MendError, OpenError, Poisoned, ReadError, SalvageError, TrimError,
};
use crate::format::{FormatError, FrameKind, VerifiedFrame};
use crate::opening::RecoveryReport;
use crate::queue::{Lane, QueueState};
use crate::reader::{FrameWalk, Frames, Records, Salvage, Tail};
use crate::receipt::{Append, AppendBatch, Barrier, Change};
use crate::shared::Shared;
use crate::stats::Stats;
use crate::stream::{EpochStart, EpochTable, StreamId};
use crate::subscription::{Subscription, subscribe};
use crate::thread::{ShardThread, Starting, start};

/// An open directory: its shards run until the last handle is dropped or [`Engine::close`] is
/// called. Clones are handles of the same engine.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    directory: Arc<Directory>,
    shards: Vec<Arc<Shared>>,
    reports: Vec<RecoveryReport>,
    threads: Mutex<Vec<ShardThread>>,
    /// Of the same threads: who of them closes the engine must not wait for itself.
    thread_ids: Vec<ThreadId>,
}

/// What a stream holds.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct StreamSummary {
    /// Which one.
    pub stream: StreamId,
    /// The shard that holds it.
    pub shard: u16,
    /// First offset that is not trimmed.
    pub trimmed: u64,
    /// Offset after the last durable record.
    pub end: u64,
    /// The newest epoch.
    pub epoch: u64,
}

/// What closing did.
#[derive(Clone, Debug)]
pub struct CloseReport {
    /// The last counts.
    pub stats: Stats,
}

impl Options {
    /// Opens a directory, or creates it, and starts its shards.
    ///
    /// # Errors
    /// See [`OpenError`]. A directory in use and a shard that is damaged or newer stay as they are;
    /// of several shards, a sound one may have begun a new incarnation by then.
    pub fn open(&self, directory: impl AsRef<Path>) -> Result<Engine, OpenError> {
        self.check()?;
        let directory = Arc::new(Directory::open(directory.as_ref(), self)?);
        let clock = Clock::real();
        let starting: Vec<_> = (0..directory.shards)
            .map(|shard| start(&directory, shard, self, clock.clone()))
            .collect();
        // Every thread is heard before one error, also of starting one, ends the others.
        let started: Vec<_> =
            starting.into_iter().map(|starting| starting.and_then(Starting::finish)).collect();
        let (threads, errors): (Vec<_>, Vec<_>) = started.into_iter().partition(Result::is_ok);
        let threads: Vec<_> = threads.into_iter().flatten().collect();
        let inner = Inner {
            directory,
            shards: threads.iter().map(|thread| thread.shared.clone()).collect(),
            reports: threads.iter().map(|thread| thread.report.clone()).collect(),
            thread_ids: threads.iter().filter_map(ShardThread::id).collect(),
            threads: Mutex::new(threads),
        };
        match errors.into_iter().find_map(Result::err) {
            Some(error) => Err(error),
            None => Ok(Engine { inner: Arc::new(inner) }),
        }
    }
}

impl Engine {
    /// The default options.
    pub fn options() -> Options {
        Options::default()
    }

    /// A handle of one stream. A stream exists as soon as it has a record.
    pub fn stream(&self, stream: StreamId) -> Stream {
        let shard = stream.shard(self.inner.shards.len() as u16);
        Stream { stream, shared: self.inner.shards[shard as usize].clone(), engine: self.clone() }
    }

    /// All streams that have, or had, a record, by id.
    pub fn streams(&self) -> Vec<StreamSummary> {
        let mut streams: Vec<_> =
            self.inner.shards.iter().flat_map(|shared| summaries(shared)).collect();
        streams.sort_by_key(|summary| summary.stream);
        streams
    }

    /// Everything that is counted.
    pub fn stats(&self) -> Stats {
        let free = crate::environment::free_bytes(&self.inner.directory.path).unwrap_or(0);
        Stats {
            shards: self
                .inner
                .shards
                .iter()
                .map(|shared| {
                    let mut stats = shard_stats(shared);
                    stats.free_bytes = free;
                    stats
                })
                .collect(),
        }
    }

    /// Why a shard has stopped writing, if one has: the first failure of any of them, which stays.
    /// Known here before any token, reader or subscription tells it. One atomic load: cheap enough
    /// to be asked at every turn of a loop.
    pub fn poisoned(&self) -> Option<Poisoned> {
        self.inner.engine_wide().poisoned.get().cloned()
    }

    /// Bytes of the segments of all shards on disk, in use or kept for reuse: the sum of
    /// [`SegmentStats::bytes`](crate::SegmentStats::bytes), without the cost of [`Engine::stats`]. A
    /// short lock for each shard, and no system call.
    pub fn journal_bytes(&self) -> u64 {
        self.inner.shards.iter().map(|shared| shared.stats().segments.bytes).sum()
    }

    /// Its directory, as it was opened.
    pub fn directory(&self) -> &Path {
        &self.inner.directory.path
    }

    /// What opening found, per shard.
    pub fn recovery(&self) -> &[RecoveryReport] {
        &self.inner.reports
    }

    /// What tells this engine from every other one, drawn when the directory was made: another id
    /// is another disk.
    pub fn id(&self) -> [u8; 16] {
        self.inner.directory.engine_id
    }

    /// Longest frame that a batch of this engine can hold, header included, in bytes.
    pub fn frame_bytes_max(&self) -> usize {
        self.inner.shards[0].queue().payload_bytes_max() + crate::format::FRAME_HEADER_BYTES
    }

    /// Longest record, in bytes.
    pub fn record_bytes_max(&self) -> usize {
        self.inner.shards[0].queue().payload_bytes_max() - crate::format::RECORD_PREFIX_BYTES
    }

    /// From the next batch that is sealed on, records of this node carry at least `epoch`: in a
    /// stream whose last epoch is smaller, `epoch` begins with its next record, durably with that
    /// record. Foreign frames keep theirs. For replication: whoever leads sets its epoch once.
    ///
    /// It holds for every append that begins when this has returned. A record that waits already
    /// gets it or not; its receipt tells. A value below an earlier one is ignored. It is for all
    /// streams and shards, costs nothing until there is a record, and is forgotten when the
    /// engine closes: who needs it again keeps it elsewhere.
    ///
    /// In a replicated stream (all but 1 to 3) whose last epoch is greater by then, another node
    /// leads: records of this one are refused in their token
    /// ([`Refusal::EpochClosed`](crate::Refusal::EpochClosed)), as all are after
    /// [`Engine::close_epoch`]. A stream that gets one epoch too many for a checkpoint refuses its
    /// appends ([`Refusal::TooManyStreams`](crate::Refusal::TooManyStreams)) until streams are
    /// trimmed.
    ///
    /// # Panics
    /// When `epoch` is 2^63 or more.
    pub fn set_epoch(&self, epoch: u64) {
        self.inner.engine_wide().own_epoch.open(epoch);
    }

    /// This node does not lead any more: from the next batch that is sealed on, its own records in
    /// replicated streams (all but 1 to 3) are refused in their token
    /// ([`Refusal::EpochClosed`](crate::Refusal::EpochClosed)), until [`Engine::set_epoch`] with an
    /// epoch greater than every one before. Foreign frames, trims and cuts go on. It is for all
    /// streams and shards, and is forgotten when the engine closes, as the epoch is.
    ///
    /// What was sealed before is still on its way to the device. With [`Engine::barrier`] behind
    /// it, when that has its outcome: every own record of an earlier epoch is durable, visible
    /// to readers and has its receipt, or is none; and none will be sealed. Until an epoch is set,
    /// replicated streams then grow by foreign frames only. With [`Engine::fence_frames`] between
    /// the two (`close_epoch(); fence_frames(); barrier()?.wait()?`), the same is true of the foreign
    /// frames that were given before: nothing of this node or of an old leader is in flight or will
    /// be sealed.
    pub fn close_epoch(&self) {
        self.inner.engine_wide().own_epoch.close();
    }

    /// From now on records of this node in replicated streams (all but 1 to 3) are sealed under a lease
    /// only, until the engine closes: none is there until [`Engine::set_lease`], for each epoch
    /// anew. Without one they are refused in their token
    /// ([`Refusal::LeaseLapsed`](crate::Refusal::LeaseLapsed)). Foreign frames need none. Where it is
    /// required, sealing a batch reads the clock once.
    pub fn require_lease(&self) {
        self.inner.engine_wide().own_epoch.require_lease();
    }

    /// The lease of `epoch`, the last that was given to [`Engine::set_epoch`], lasts until then, by
    /// [`boottime_ns`](crate::boottime_ns); 0 ends it. Of another epoch it is ignored, and where none is
    /// required. What was sealed before is still on its way to the device: whoever gives a receipt
    /// looks at the clock again.
    pub fn set_lease(&self, epoch: u64, boottime_ns: u64) {
        self.inner.engine_wide().own_epoch.set_lease(epoch, boottime_ns);
    }

    /// Bytes that wait in the queues of all shards, and are not sealed. A short lock for each.
    pub fn queued_bytes(&self) -> u64 {
        self.inner.shards.iter().map(|shared| shared.queue().queued_bytes() as u64).sum()
    }

    /// Foreign frames that were given to [`Stream::append_frame`], [`Stream::try_append_frame`] or
    /// [`Stream::append_frame_async`] before this and are not sealed yet are refused in their token
    /// ([`Refusal::Fenced`](crate::Refusal::Fenced)) when their turn comes, however long they
    /// wait: in the queue for space, or for room in it. A frame is given when the function is called,
    /// also where its future is polled later. Frames that are given when this has returned are taken;
    /// of those given meanwhile, each is one or the other. For a follower that changes its leader. It
    /// is for all streams and shards, does not wait, writes nothing, and is no part of what is on
    /// disk.
    ///
    /// What was sealed before is still on its way to the device. With [`Engine::barrier`] behind it,
    /// when that has its outcome: every frame that was given before is durable, visible to readers
    /// and has its receipt, or is none; and none will be sealed. With [`Engine::close_epoch`] before
    /// it (`close_epoch(); fence_frames(); barrier()?.wait()?`): nothing of this node or of an old
    /// leader is in flight or will be sealed, but for records of streams 1 to 3.
    ///
    /// A refused frame has its token completed when its batch is durable, on a full disk so only when
    /// there is space again: do not wait for it, but for the barrier.
    pub fn fence_frames(&self) {
        self.inner.engine_wide().frame_fence.raise();
    }

    /// Tells when every batch that any shard has sealed before, whatever is in it, is durable,
    /// visible to readers, and has its receipts sent: nothing is in flight any more of what was.
    ///
    /// It travels in the lane of trims and cuts (see [`Stream::truncate`]), and so says nothing of
    /// records that wait in their own lane and are not sealed yet: [`Engine::close_epoch`] and
    /// [`Engine::fence_frames`] before it (`close_epoch(); fence_frames(); barrier()?.wait()?`) see to
    /// it that none of those is sealed behind it, and then nothing of this node or of an old leader
    /// is in flight or will be sealed. Like those of trims, its outcome comes also while records wait
    /// for space: it is written into the reserve. It writes an empty fact, one block for each shard.
    /// Waits only for room in its lane.
    ///
    /// # Errors
    /// Everything of [`AppendError`] but `Full`, of the first shard that does not take it. The token
    /// tells the cause when a shard stops writing before: what was sealed there has its outcome too,
    /// which is not known.
    pub fn barrier(&self) -> Result<Barrier, AppendError> {
        let change = |shared: &Arc<Shared>| change(shared, &Asked::Barrier);
        self.inner.shards.iter().map(change).collect::<Result<_, _>>().map(Barrier)
    }

    /// Batch buffers of each shard (`pool_bytes / batch_bytes_max`, as far as a segment's length
    /// allows that). Slices of sealed frames never hold more than half of them: as long as slices
    /// of that many batches are alive, subscribers are handed nothing and lag. A sender that holds
    /// slices bounds how many batches they are of; the buffers that records wait in do not count.
    pub fn batch_buffers(&self) -> usize {
        self.inner.shards[0].pool.slots()
    }

    /// Where the batch buffers of each shard are in memory, for tests that nothing was copied.
    #[doc(hidden)]
    pub fn buffer_addresses(&self) -> Vec<std::ops::Range<usize>> {
        self.inner.shards.iter().map(|shared| shared.pool.addresses()).collect()
    }

    /// Sealed frames of all shards, as slices of the buffers that are written: `batches` messages
    /// wait at most. Those of streams 1 to 3, which are this node's own, are not among them. Only the order of each shard is kept. Nobody waits for a subscriber; one that
    /// is too slow is told so.
    pub fn subscribe(&self, batches: usize) -> Subscription {
        let shards: Vec<_> = self.inner.shards.iter().map(|shared| shared.shard).collect();
        let (subscription, subscribers) = subscribe(batches, &shards);
        for (shared, subscriber) in self.inner.shards.iter().zip(subscribers) {
            shared.subscribe(subscriber);
        }
        subscription
    }

    /// The durable frames of many streams of one shard (see [`StreamSummary::shard`]), read together:
    /// for sending them on.
    ///
    /// # Panics
    /// When there is no such shard.
    pub fn walk_frames(&self, shard: u16) -> FrameWalk {
        FrameWalk::new(self.inner.shards[usize::from(shard)].clone())
    }

    /// Writes what is queued, seals the journal, ends the threads and gives up the lock. Other
    /// handles get `Closed` from then on. In a waker that a shard's own thread runs, this (and
    /// dropping the last handle) only begins it: the threads end by themselves, and the lock is
    /// given up when the last of them and the last handle are gone.
    ///
    /// # Errors
    /// The first write error, or a panic of a shard's thread.
    pub fn close(self) -> Result<CloseReport, CloseError> {
        self.inner.close()?;
        Ok(CloseReport { stats: self.stats() })
    }
}

pub(crate) fn summaries(shared: &Shared) -> Vec<StreamSummary> {
    let index = shared.index();
    index
        .streams
        .iter()
        .map(|(stream, state)| StreamSummary {
            stream: *stream,
            shard: shared.shard,
            trimmed: state.trimmed,
            end: state.end,
            epoch: state.epochs.last().epoch,
        })
        .collect()
}

pub(crate) fn shard_stats(shared: &Shared) -> crate::stats::ShardStats {
    let (bytes, records, no_space) = {
        let queue = shared.queue();
        (queue.queued_bytes() as u64, queue.queued_records(), queue.no_space.clone())
    };
    let mut stats = shared.stats().clone();
    (stats.queue_bytes, stats.queue_records, stats.no_space) = (bytes, records, no_space);
    stats
}

impl Inner {
    fn engine_wide(&self) -> &EngineWide {
        &self.shards[0].engine_wide
    }

    fn close(&self) -> Result<(), CloseError> {
        for shared in &self.shards {
            let read_only = matches!(shared.queue().state, QueueState::ReadOnly);
            if !read_only {
                shared.set_state(QueueState::Closing);
            }
        }
        if self.thread_ids.contains(&std::thread::current().id()) {
            // A waker that a shard runs: its loop goes on when this returns, and ends the readers
            // itself. The lock goes with the last thread.
            return Ok(());
        }
        let mut outcome = Ok(());
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        for thread in threads.iter_mut() {
            let Some(handle) = thread.handle.take() else { continue };
            let result = match handle.join() {
                Ok(None) => Ok(()),
                Ok(Some(cause)) => Err(CloseError::Poisoned(cause)),
                Err(panic) => Err(CloseError::Panicked {
                    shard: thread.shared.shard,
                    message: panic_message(&*panic),
                }),
            };
            outcome = outcome.and(result);
        }
        drop(threads);
        for shared in &self.shards {
            end_readers(shared);
        }
        self.directory.unlock();
        outcome
    }
}

/// Tells whoever waits for records that none will come.
pub(crate) fn end_readers(shared: &Shared) {
    shared.unsubscribe_all();
    let mut index = shared.index();
    index.closed = true;
    let waiting = index.take_all_waiting();
    drop(index);
    waiting.into_iter().for_each(Waker::wake);
}

impl Drop for Inner {
    fn drop(&mut self) {
        let _ = self.close();
    }
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
}

/// A handle of one stream. Clones are cheap and may be used from any thread.
#[derive(Clone)]
pub struct Stream {
    stream: StreamId,
    shared: Arc<Shared>,
    /// Keeps the threads alive.
    engine: Engine,
}

impl Stream {
    /// Which stream.
    pub fn id(&self) -> StreamId {
        self.stream
    }

    /// The shard that holds it.
    pub fn shard(&self) -> u16 {
        self.shared.shard
    }

    /// The engine that it belongs to.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Copies a record into the next batch and fixes its order. Waits for room when the queue is
    /// full. The record is durable when the token's receipt comes.
    ///
    /// # Errors
    /// Everything of [`AppendError`] but `Full`.
    pub fn append(&self, record: impl AsRef<[u8]>) -> Result<Append, AppendError> {
        let record = record.as_ref();
        self.shared.wait_for_room(Lane::of(self.stream), || self.try_append(record))
    }

    /// As [`Stream::append`], but never waits.
    ///
    /// # Errors
    /// Everything of [`AppendError`].
    pub fn try_append(&self, record: impl AsRef<[u8]>) -> Result<Append, AppendError> {
        let records = std::iter::once(record.as_ref());
        self.shared.try_append(self.stream, records).map(Append)
    }

    /// As [`Stream::append`], but waits for room without blocking the thread.
    ///
    /// # Errors
    /// Everything of [`AppendError`] but `Full`.
    pub async fn append_async(&self, record: impl AsRef<[u8]>) -> Result<Append, AppendError> {
        let record = record.as_ref();
        self.when_room(|| self.try_append(record)).await
    }

    /// Appends records that a crash keeps all or none of, and that follow one another.
    ///
    /// # Errors
    /// Everything of [`AppendError`] but `Full`.
    pub fn append_batch<I>(&self, records: I) -> Result<AppendBatch, AppendError>
    where
        I: IntoIterator,
        I::Item: AsRef<[u8]>,
    {
        let records: Vec<_> = records.into_iter().collect();
        self.shared.wait_for_room(Lane::of(self.stream), || self.try_batch(&records))
    }

    /// As [`Stream::append_batch`], but waits for room without blocking the thread.
    ///
    /// # Errors
    /// Everything of [`AppendError`] but `Full`.
    pub async fn append_batch_async<I>(&self, records: I) -> Result<AppendBatch, AppendError>
    where
        I: IntoIterator,
        I::Item: AsRef<[u8]>,
    {
        let records: Vec<_> = records.into_iter().collect();
        self.when_room(|| self.try_batch(&records)).await
    }

    fn try_batch<R: AsRef<[u8]>>(&self, records: &[R]) -> Result<AppendBatch, AppendError> {
        // The caller's code runs once, and not under the queue's lock.
        let records: Vec<&[u8]> = records.iter().map(AsRef::as_ref).collect();
        self.shared.try_append(self.stream, records.iter().copied()).map(AppendBatch)
    }

    fn when_room<T>(
        &self,
        mut attempt: impl FnMut() -> Result<T, AppendError>,
    ) -> impl Future<Output = Result<T, AppendError>> {
        let (lane, mut began_ns) = (Lane::of(self.stream), None);
        poll_fn(move |context| {
            loop {
                match attempt() {
                    Err(AppendError::Full { .. }) => {
                        began_ns.get_or_insert_with(|| self.shared.clock.now_ns());
                    }
                    outcome => {
                        if let Some(began_ns) = began_ns.take() {
                            self.shared.note_backpressure(began_ns);
                        }
                        return Poll::Ready(outcome);
                    }
                }
                if !self.shared.register_for_room(lane, context.waker()) {
                    return Poll::Pending;
                }
            }
        })
    }

    /// Appends a frame that another engine sealed, unchanged, at its own offsets. Waits for room.
    ///
    /// It must be the exact continuation of the stream: its first offset is the stream's next, and
    /// its epoch is the stream's last or a greater one, which then begins with it, durably with the
    /// frame.
    ///
    /// # Errors
    /// `BadFrame` for damaged bytes, `WrongStream`, `TooLarge` when no batch of this engine can
    /// hold it, and everything of [`AppendError`] but `Full`. A frame that is not the exact
    /// continuation is refused in the token, as is one that was not sealed before
    /// [`Engine::fence_frames`].
    pub fn append_frame(&self, frame: &[u8]) -> Result<AppendBatch, AppendError> {
        let given = self.shared.engine_wide.frame_fence.get();
        let frame = self.verify_frame(frame)?;
        self.shared.wait_for_room(Lane::of(self.stream), || {
            self.shared.try_append_frame(&frame, given).map(AppendBatch)
        })
    }

    /// As [`Stream::append_frame`], but never waits.
    ///
    /// # Errors
    /// As [`Stream::append_frame`]; also `Full`, when there is no room now.
    pub fn try_append_frame(&self, frame: &[u8]) -> Result<AppendBatch, AppendError> {
        let given = self.shared.engine_wide.frame_fence.get();
        self.shared.try_append_frame(&self.verify_frame(frame)?, given).map(AppendBatch)
    }

    /// As [`Stream::append_frame`], but waits for room without blocking the thread. The future owns
    /// what it needs, so an event loop may keep it. The order is fixed when it is ready; for
    /// [`Engine::fence_frames`], the frame is given when this is called.
    ///
    /// # Errors
    /// As [`Stream::append_frame`].
    pub fn append_frame_async(
        &self,
        frame: Bytes,
    ) -> impl Future<Output = Result<AppendBatch, AppendError>> + Send + use<> {
        let given = self.shared.engine_wide.frame_fence.get();
        let stream = self.clone();
        async move {
            let frame = stream.verify_frame(&frame)?;
            let attempt = || stream.shared.try_append_frame(&frame, given).map(AppendBatch);
            stream.when_room(attempt).await
        }
    }

    fn verify_frame<'a>(&self, bytes: &'a [u8]) -> Result<VerifiedFrame<'a>, AppendError> {
        let frame = verify_frame(bytes)?;
        let (expected, found) = (self.stream, StreamId::new(frame.header.stream.get()));
        if found != expected {
            return Err(AppendError::WrongStream { expected, found });
        }
        Ok(frame)
    }

    /// The durable records of a range of offsets. An open end means the durable end of now; an
    /// open start the first record that is not trimmed.
    ///
    /// An iterator that goes on for megabytes has the next one read while one is taken apart, by a small ring of
    /// its own: 2 MiB and a file descriptor, for at most 64 iterators and tails of a process at once. Between two
    /// records, a system call of this thread that waits with a time limit may end early with EINTR, as by a signal.
    ///
    /// # Errors
    /// When the start has been trimmed.
    pub fn read(&self, offsets: impl RangeBounds<u64>) -> Result<Records, ReadError> {
        Records::new(self.shared.clone(), self.stream, offsets)
    }

    /// The durable records from `offset` on, as they come.
    pub fn tail(&self, offset: u64) -> Tail {
        Tail::new(self.shared.clone(), self.stream, offset)
    }

    /// The durable frames from `offset` on, as they are on disk: for sending them on.
    pub fn frames(&self, offset: u64) -> Frames {
        Frames::new(self.shared.clone(), self.stream, offset)
    }

    /// Writes durable records again, in the place of those that are here: for a range that cannot be
    /// read any more, by a frame that another engine has (see [`Stream::salvage`]), or to get sound
    /// records out of a damaged segment. Waits for room. When the token has its receipt, the new
    /// place is durable and is read; the old one counts no more, in this engine and after a crash.
    ///
    /// By I-17 an equal stream, epoch and offset means equal records, which is what is checked here.
    /// Whoever knows the bytes that were there compares them
    /// ([`DamagedFrame::contradicts`](crate::DamagedFrame::contradicts)). Only what still counts when
    /// the frame is sealed is put back: a trim or cut wins, and where nothing is left the token says
    /// [`Refusal::Dead`](crate::Refusal::Dead). Subscribers are not handed it again.
    ///
    /// # Errors
    /// See [`MendError`]; everything of [`AppendError`] but `Full`.
    pub fn mend(&self, frame: &[u8]) -> Result<AppendBatch, MendError> {
        let frame = crate::mend::verify(self.stream, frame)?;
        let attempt = || match crate::mend::try_mend(&self.shared, self.stream, &frame) {
            Err(MendError::Append(error)) => Err(error),
            outcome => Ok(outcome),
        };
        self.shared.wait_for_room(Lane::Records, attempt)?
    }

    /// Looks through the sealed segment that holds the record at `offset`: what counts in it, of all
    /// streams, and what of that is damaged. For getting everything out of a damaged segment with
    /// [`Stream::mend`]: when nothing counts in it any more, it is freed.
    ///
    /// # Errors
    /// See [`SalvageError`].
    pub fn salvage(&self, offset: u64) -> Result<Salvage, SalvageError> {
        Salvage::new(self.shared.clone(), self.stream, offset)
    }

    /// Drops the records below `before` and waits until that is durable. A trim has a way of its
    /// own through the queue: it may overtake records that wait (see [`Stream::truncate`]).
    ///
    /// # Errors
    /// When the stream is shorter, or the write fails.
    pub fn trim(&self, before: u64) -> Result<(), TrimError> {
        Ok(self.trim_async(before)?.wait()?)
    }

    /// Queues a trim; the token tells when it is durable. Waits only for room.
    ///
    /// # Errors
    /// Everything of [`AppendError`] but `Full`.
    pub fn trim_async(&self, before: u64) -> Result<Change, AppendError> {
        change(&self.shared, &Asked::Trim { stream: self.stream, before })
    }

    /// As [`Stream::trim_async`], and `before` may lie beyond the stream's end: then everything
    /// that it holds is dropped, and its next record has the offset `before`. For a follower that
    /// starts from a snapshot. The stream's epochs stay as they are.
    ///
    /// Records that wait when it takes effect get offsets behind it; a tail that waits below
    /// `before` gets `Trimmed`.
    ///
    /// # Errors
    /// Everything of [`AppendError`] but `Full`; the token says whether it was allowed.
    pub fn skip_to(&self, before: u64) -> Result<Change, AppendError> {
        change(&self.shared, &Asked::SkipTo { stream: self.stream, before })
    }

    /// Starts `epoch` at offset `start` and cuts the records from there on. For replication: what
    /// is cut must be kept elsewhere first.
    ///
    /// Trims and cuts of a shard travel in a lane of their own, and take effect in the order in
    /// which they were queued. Between them and appends there is no order, in either direction,
    /// until a token has told the outcome of one: a cut applies to what is sealed when its turn
    /// comes, so it may overtake records that wait, which then carry the new epoch, and a record
    /// that was appended behind it may be sealed first and be cut. Wait for the first token where
    /// the order matters.
    ///
    /// # Errors
    /// Everything of [`AppendError`] but `Full`; the token says whether the cut was allowed.
    pub fn truncate(&self, start: u64, epoch: u64) -> Result<Change, AppendError> {
        let start = EpochStart { epoch, start };
        change(&self.shared, &Asked::Cut { stream: self.stream, start })
    }

    /// Drops all that the stream holds and lets it go on at offset `at` in `epoch`, as one durable
    /// fact: after a crash all of that has happened, or nothing. For a follower that starts from
    /// another node's snapshot; what is dropped must be kept elsewhere first.
    ///
    /// `at` may lie inside of what is held, or beyond; not below what is trimmed. `epoch` may be any,
    /// also an older one than those that are dropped, or one of them: records that have the same
    /// epoch and offset again must be the same records (I-17). Ordered as [`Stream::truncate`]; a
    /// tail that waits below `at` gets `Trimmed`.
    ///
    /// # Errors
    /// Everything of [`AppendError`] but `Full`; the token says whether it was allowed.
    pub fn begin_anew(&self, at: u64, epoch: u64) -> Result<Change, AppendError> {
        let start = EpochStart { epoch, start: at };
        change(&self.shared, &Asked::BeginAnew { stream: self.stream, start })
    }

    /// First offset that is not trimmed.
    pub fn trimmed(&self) -> u64 {
        self.shared.index().streams.get(&self.stream).map_or(0, |state| state.trimmed)
    }

    /// Offset after the last durable record.
    pub fn end(&self) -> u64 {
        self.shared.index().streams.get(&self.stream).map_or(0, |state| state.end)
    }

    /// The stream's epochs, oldest first.
    pub fn epochs(&self) -> Vec<EpochStart> {
        epochs(&self.shared, self.stream)
    }
}

fn change(shared: &Shared, asked: &Asked) -> Result<Change, AppendError> {
    shared.wait_for_room(Lane::Controls, || shared.try_change(asked.clone()).map(Change))
}

/// The epochs of a stream as it is durable; those of a new one when it is not there.
pub(crate) fn epochs(shared: &Shared, stream: StreamId) -> Vec<EpochStart> {
    let index = shared.index();
    index.streams.get(&stream).map_or_else(
        || EpochTable::default().entries().to_vec(),
        |state| state.epochs.entries().to_vec(),
    )
}

/// Believes the bytes of a data frame, or says why not.
pub(crate) fn verify_frame(bytes: &[u8]) -> Result<VerifiedFrame<'_>, AppendError> {
    let frame = VerifiedFrame::verify(bytes).map_err(AppendError::BadFrame)?;
    if frame.kind != FrameKind::Data {
        return Err(AppendError::BadFrame(FormatError::Magic));
    }
    Ok(frame)
}

#[cfg(test)]
mod tests;
