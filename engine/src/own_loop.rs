//! A shard without a thread: the caller owns the core and turns the loop.

use std::ops::RangeBounds;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::batch::Asked;
use crate::clock::Clock;
use crate::config::Options;
use crate::directory::Directory;
use crate::disk::{Disk, Wait};
use crate::engine::{StreamSummary, end_readers, epochs, shard_stats, summaries, verify_frame};
use crate::error::{AppendError, CloseError, MendError, OpenError, ReadError, SalvageError};
use crate::opening::{Driven, Identity, Opened, RecoveryReport, open_shard};
use crate::queue::QueueState;
use crate::reader::{FrameWalk, Frames, Records, Salvage, Tail};
use crate::receipt::{Append, AppendBatch, Barrier, Change};
use crate::shared::Shared;
use crate::stats::ShardStats;
use crate::stream::{EpochStart, StreamId};
use crate::subscription::{Subscription, subscribe};

/// One shard driven by the caller's own loop: the same guarantees as [`crate::Engine`], without a
/// thread and so without a hop between threads. Nothing becomes durable unless the caller calls
/// [`Shard::run_once`].
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let directory = tempfile::tempdir()?;
/// use ringwal_engine::{Engine, StreamId};
/// let mut shard = Engine::options().open_shard(directory.path())?;
/// let token = shard.append(StreamId::new(7), b"one")?;
/// let receipt = loop {
///     shard.run_once(None)?;
///     if let Some(receipt) = token.try_receipt() {
///         break receipt?;
///     }
/// };
/// assert_eq!(receipt.offset(), 0);
/// shard.close()?;
/// # Ok(())
/// # }
/// ```
pub struct Shard {
    shared: Arc<Shared>,
    driven: Driven,
    report: RecoveryReport,
    /// Keeps the lock; a simulated shard has none.
    _directory: Option<Directory>,
}

impl Options {
    /// Opens a directory of one shard for the caller's own loop. The thread that calls it must be
    /// the one that drives the shard.
    ///
    /// # Errors
    /// As [`Options::open`]; also when the directory has several shards or is to be read only.
    pub fn open_shard(&self, directory: impl AsRef<Path>) -> Result<Shard, OpenError> {
        self.check()?;
        let refused = |option, value: String| {
            let bounds = "the caller's own loop drives one shard, for writing".into();
            Err(OpenError::Option { option, value, bounds })
        };
        if self.read_only {
            return refused("read_only", "true".into());
        }
        if let Some(shards) = self.shards.filter(|shards| *shards != 1) {
            return refused("shards", shards.to_string());
        }
        let directory = Directory::open(directory.as_ref(), self)?;
        if directory.shards != 1 {
            return refused("shards", directory.shards.to_string());
        }
        let opened = crate::thread::open(&directory, 0, self, Clock::real())?;
        Ok(Shard::new(opened, Some(directory)))
    }

    /// Opens a shard on any disk, with any clock, also read-only: for simulation.
    ///
    /// # Errors
    /// As [`Options::open`].
    #[doc(hidden)]
    pub fn open_on(
        &self,
        disk: Box<dyn Disk>,
        engine_id: [u8; 16],
        segment_bytes: u64,
        clock: Clock,
    ) -> Result<Shard, OpenError> {
        let identity = Identity { engine_id, segment_bytes, engine_wide: Arc::default() };
        let path = Path::new("simulated");
        Ok(Shard::new(open_shard(disk, path, 0, &identity, self, clock)?, None))
    }
}

impl Shard {
    fn new(opened: Opened, directory: Option<Directory>) -> Self {
        let Opened { shared, driven, report } = opened;
        Self { shared, driven, report, _directory: directory }
    }

    /// Opens one shard of a directory that is locked already, whatever the others are like: for
    /// repairing.
    pub(crate) fn open_in(
        directory: Directory,
        shard: u16,
        options: &Options,
    ) -> Result<Self, OpenError> {
        let opened = crate::thread::open(&directory, shard, options, Clock::real())?;
        Ok(Self::new(opened, Some(directory)))
    }

    /// Copies a record into the next batch and fixes its order; never waits.
    ///
    /// # Errors
    /// Everything of [`AppendError`]; after `Full`, call [`Shard::run_once`].
    pub fn append(
        &mut self,
        stream: StreamId,
        record: impl AsRef<[u8]>,
    ) -> Result<Append, AppendError> {
        self.shared.try_append(stream, std::iter::once(record.as_ref())).map(Append)
    }

    /// Appends records that a crash keeps all or none of; never waits.
    ///
    /// # Errors
    /// As [`Shard::append`].
    pub fn append_batch<R: AsRef<[u8]>>(
        &mut self,
        stream: StreamId,
        records: &[R],
    ) -> Result<AppendBatch, AppendError> {
        let records: Vec<&[u8]> = records.iter().map(AsRef::as_ref).collect();
        self.shared.try_append(stream, records.iter().copied()).map(AppendBatch)
    }

    /// From the next batch that is sealed on, records of this node carry at least `epoch`: see
    /// [`crate::Engine::set_epoch`].
    ///
    /// # Panics
    /// When `epoch` is 2^63 or more.
    pub fn set_epoch(&mut self, epoch: u64) {
        self.shared.engine_wide.own_epoch.open(epoch);
    }

    /// This node's own records in replicated streams are refused from the next batch that is sealed
    /// on: see [`crate::Engine::close_epoch`].
    pub fn close_epoch(&mut self) {
        self.shared.engine_wide.own_epoch.close();
    }

    /// Foreign frames that were given before and are not sealed yet are refused in their token when
    /// their turn comes, those that are given later are taken: see [`crate::Engine::fence_frames`].
    /// `close_epoch(); fence_frames(); barrier()?` and the outcome of that: nothing of this node or of
    /// an old leader is in flight or will be sealed.
    pub fn fence_frames(&mut self) {
        self.shared.engine_wide.frame_fence.raise();
    }

    /// Tells when every batch that was sealed before is durable, visible to readers, and has its
    /// receipts sent; never waits. See [`crate::Engine::barrier`].
    ///
    /// # Errors
    /// As [`Shard::append`].
    pub fn barrier(&mut self) -> Result<Barrier, AppendError> {
        self.shared.try_change(Asked::Barrier).map(|marker| Barrier(vec![Change(marker)]))
    }

    /// Appends a frame that another engine sealed, to the stream that it names; never waits. See
    /// [`crate::Stream::append_frame`].
    ///
    /// # Errors
    /// As [`Shard::append`]; also `BadFrame` for damaged bytes.
    pub fn append_frame(&mut self, frame: &[u8]) -> Result<AppendBatch, AppendError> {
        let given = self.shared.engine_wide.frame_fence.get();
        self.shared.try_append_frame(&verify_frame(frame)?, given).map(AppendBatch)
    }

    /// Writes durable records again, in the place of those that are here; never waits. See
    /// [`crate::Stream::mend`].
    ///
    /// # Errors
    /// See [`MendError`].
    pub fn mend(&mut self, stream: StreamId, frame: &[u8]) -> Result<AppendBatch, MendError> {
        let frame = crate::mend::verify(stream, frame)?;
        crate::mend::try_mend(&self.shared, stream, &frame)
    }

    /// Looks through the sealed segment that holds a record: see [`crate::Stream::salvage`].
    ///
    /// # Errors
    /// See [`SalvageError`].
    pub fn salvage(&self, stream: StreamId, offset: u64) -> Result<Salvage, SalvageError> {
        Salvage::new(self.shared.clone(), stream, offset)
    }

    /// Queues a trim; never waits. Ordered as [`Shard::truncate`].
    ///
    /// # Errors
    /// As [`Shard::append`].
    pub fn trim(&mut self, stream: StreamId, before: u64) -> Result<Change, AppendError> {
        self.shared.try_change(Asked::Trim { stream, before }).map(Change)
    }

    /// Queues a trim that may lead beyond the stream's end; never waits. See
    /// [`crate::Stream::skip_to`].
    ///
    /// # Errors
    /// As [`Shard::append`].
    pub fn skip_to(&mut self, stream: StreamId, before: u64) -> Result<Change, AppendError> {
        self.shared.try_change(Asked::SkipTo { stream, before }).map(Change)
    }

    /// Queues the start of an epoch, which cuts the records from `start` on; never waits. Trims and
    /// cuts are ordered among themselves, not against appends whose outcome is not known yet: see
    /// [`crate::Stream::truncate`].
    ///
    /// # Errors
    /// As [`Shard::append`].
    pub fn truncate(
        &mut self,
        stream: StreamId,
        start: u64,
        epoch: u64,
    ) -> Result<Change, AppendError> {
        let start = EpochStart { epoch, start };
        self.shared.try_change(Asked::Cut { stream, start }).map(Change)
    }

    /// Queues a new beginning of a stream, which drops all that it holds; never waits. See
    /// [`crate::Stream::begin_anew`].
    ///
    /// # Errors
    /// As [`Shard::append`].
    pub fn begin_anew(
        &mut self,
        stream: StreamId,
        at: u64,
        epoch: u64,
    ) -> Result<Change, AppendError> {
        let start = EpochStart { epoch, start: at };
        self.shared.try_change(Asked::BeginAnew { stream, start }).map(Change)
    }

    /// One turn of the loop: seals and submits what waits, and sends the receipts of what has
    /// become durable. Sleeps until something happens, at most `timeout`. Returns how many commands got
    /// their outcome: 0 does not mean that nothing was done.
    ///
    /// With `None` the caller has nothing else to do. Where one batch comes after the other, the turn that
    /// seals a batch then also waits for the device, which nothing interrupts, and the next turn sends the
    /// receipts. It is faster; who has other work, or must come back in time, gives a `timeout`.
    ///
    /// # Errors
    /// When the shard has stopped writing.
    pub fn run_once(&mut self, timeout: Option<Duration>) -> Result<u64, CloseError> {
        let Driven::Loop(turning) = &mut self.driven else { return Ok(0) };
        let wait = match (turning.next_wait(), timeout) {
            (Wait::Forever, Some(timeout)) => Wait::For(timeout),
            (Wait::For(wait), Some(timeout)) => Wait::For(wait.min(timeout)),
            // Nothing more will happen to a shard that has stopped writing.
            (Wait::Forever, None) if turning.poisoned().is_some() => Wait::No,
            (wait, _) => wait,
        };
        let released = turning.step(wait, timeout.is_none());
        match turning.poisoned() {
            Some(cause) => Err(CloseError::Poisoned(cause.clone())),
            None => Ok(released),
        }
    }

    /// The durable records of a range of offsets.
    ///
    /// # Errors
    /// When the start has been trimmed.
    pub fn read(
        &self,
        stream: StreamId,
        offsets: impl RangeBounds<u64>,
    ) -> Result<Records, ReadError> {
        Records::new(self.shared.clone(), stream, offsets)
    }

    /// The durable records from `offset` on; wait for them on another thread only.
    pub fn tail(&self, stream: StreamId, offset: u64) -> Tail {
        Tail::new(self.shared.clone(), stream, offset)
    }

    /// The durable frames from `offset` on, as they are on disk: for sending them on.
    pub fn frames(&self, stream: StreamId, offset: u64) -> Frames {
        Frames::new(self.shared.clone(), stream, offset)
    }

    /// The durable frames of many streams, read together: for sending them on.
    pub fn walk_frames(&self) -> FrameWalk {
        FrameWalk::new(self.shared.clone())
    }

    /// Sealed frames: see [`crate::Engine::subscribe`].
    pub fn subscribe(&mut self, batches: usize) -> Subscription {
        let (subscription, subscribers) = subscribe(batches, &[self.shared.shard]);
        subscribers.into_iter().for_each(|subscriber| self.shared.subscribe(subscriber));
        subscription
    }

    /// Batch buffers that there are: see [`crate::Engine::batch_buffers`].
    pub fn batch_buffers(&self) -> usize {
        self.shared.pool.slots()
    }

    /// First offset of the stream that is not trimmed.
    pub fn trimmed(&self, stream: StreamId) -> u64 {
        self.shared.index().streams.get(&stream).map_or(0, |state| state.trimmed)
    }

    /// Offset after the stream's last durable record.
    pub fn end(&self, stream: StreamId) -> u64 {
        self.shared.index().streams.get(&stream).map_or(0, |state| state.end)
    }

    /// The stream's epochs, oldest first.
    pub fn epochs(&self, stream: StreamId) -> Vec<EpochStart> {
        epochs(&self.shared, stream)
    }

    /// All streams, by id.
    pub fn streams(&self) -> Vec<StreamSummary> {
        let mut streams = summaries(&self.shared);
        streams.sort_by_key(|summary| summary.stream);
        streams
    }

    /// What opening found.
    pub fn recovery(&self) -> &RecoveryReport {
        &self.report
    }

    #[cfg(test)]
    pub(crate) fn shared(&self) -> Arc<Shared> {
        self.shared.clone()
    }

    /// Everything that is counted.
    pub fn stats(&self) -> ShardStats {
        shard_stats(&self.shared)
    }

    /// Writes what is queued, seals the journal and gives up the lock.
    ///
    /// # Errors
    /// The first write error.
    pub fn close(mut self) -> Result<ShardStats, CloseError> {
        self.finish();
        let poisoned = match &self.driven {
            Driven::Loop(turning) => turning.poisoned(),
            Driven::ReadOnly { .. } => None,
        };
        match poisoned {
            Some(cause) => Err(CloseError::Poisoned(cause.clone())),
            None => Ok(self.stats()),
        }
    }

    /// Ends without writing anything more, as a killed process would: for tests.
    #[doc(hidden)]
    pub fn abandon(mut self) {
        if let Driven::Loop(turning) = &mut self.driven {
            turning.abandon();
        }
    }

    fn finish(&mut self) {
        if let Driven::Loop(turning) = &mut self.driven {
            if !turning.is_done() {
                self.shared.set_state(QueueState::Closing);
            }
            while !turning.is_done() {
                let wait = turning.next_wait();
                turning.step(wait, true);
            }
        }
        end_readers(&self.shared);
    }
}

impl Drop for Shard {
    fn drop(&mut self) {
        self.finish();
    }
}

#[cfg(test)]
mod mending;
#[cfg(test)]
mod tests;
