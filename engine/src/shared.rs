//! What the shard's loop and everybody else share: the queue, the index and the counters, each
//! behind a lock of its own. A caller takes the queue's once for each command; the loop takes each
//! a few times per turn, never for each record, and holds none while it waits.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use crate::batch::Asked;
use crate::clock::Clock;
use crate::disk::{BufferMut, FileId, Pool, ReadAt, Wake};
use crate::engine_wide::EngineWide;
use crate::error::AppendError;
use crate::format::{EngineId, VerifiedFrame};
use crate::frame_fence::FenceRead;
use crate::index::Index;
use crate::queue::{Lane, Queue, QueueState};
use crate::receipt::Place;
use crate::stats::ShardStats;
use crate::stream::StreamId;
use crate::subscription::Subscriber;

/// The meeting place of one shard.
pub(crate) struct Shared {
    pub(crate) shard: u16,
    pub(crate) engine_id: EngineId,
    pub(crate) segment_bytes: u64,
    pub(crate) clock: Clock,
    pub(crate) pool: Pool,
    pub(crate) wake: Arc<Wake>,
    pub(crate) reader: Arc<dyn ReadAt>,
    pub(crate) engine_wide: Arc<EngineWide>,
    queue: Mutex<Queue>,
    room: Condvar,
    index: Mutex<Index>,
    /// Cuts that the index has seen: changed with its lock held, so that who holds a frame need not
    /// take that lock for each record of it.
    cuts: AtomicU64,
    stats: Mutex<ShardStats>,
    subscribers: Mutex<Vec<Subscriber>>,
    /// There are some, or the shard has ended: changed with the lock held.
    subscribed: AtomicBool,
    unsubscribed: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic of another thread leaves these structures whole: each change is made in one step.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    #[allow(clippy::too_many_arguments, reason = "one caller, which has them all by name")]
    pub(crate) fn new(
        shard: u16,
        engine_id: EngineId,
        segment_bytes: u64,
        clock: Clock,
        pool: Pool,
        wake: Arc<Wake>,
        reader: Arc<dyn ReadAt>,
        engine_wide: Arc<EngineWide>,
        state: QueueState,
        index: Index,
        stats: ShardStats,
    ) -> Self {
        pool.set_waker(wake.clone());
        Self {
            shard,
            engine_id,
            segment_bytes,
            clock,
            queue: Mutex::new(Queue::new(shard, pool.clone(), state)),
            pool,
            wake,
            reader,
            engine_wide,
            room: Condvar::new(),
            index: Mutex::new(index),
            cuts: AtomicU64::new(0),
            stats: Mutex::new(stats),
            subscribers: Mutex::default(),
            subscribed: AtomicBool::new(false),
            unsubscribed: AtomicBool::new(false),
        }
    }

    pub(crate) fn queue(&self) -> MutexGuard<'_, Queue> {
        lock(&self.queue)
    }

    pub(crate) fn index(&self) -> MutexGuard<'_, Index> {
        lock(&self.index)
    }

    /// How many cuts there were. Whoever remembers it looks here first, and at the index then.
    pub(crate) fn cuts(&self) -> u64 {
        self.cuts.load(Ordering::Acquire)
    }

    /// Counts a cut that `_index` has seen.
    pub(crate) fn note_cut(&self, _index: &mut Index) {
        self.cuts.fetch_add(1, Ordering::AcqRel);
    }

    /// Reads from a segment, on the caller's thread.
    ///
    /// # Errors
    /// As [`ReadAt::read_at`].
    pub(crate) fn read_at(
        &self,
        file: FileId,
        offset: u64,
        into: &mut BufferMut,
        length: usize,
    ) -> io::Result<usize> {
        // It shows when it begins and when it ends: that may be long.
        self.note_read();
        let read = self.reader.read_at(file, offset, into, length);
        self.note_read();
        read
    }

    /// A read begins, or ends: whoever has work for later sees that somebody reads.
    pub(crate) fn note_read(&self) {
        self.engine_wide.reads.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn stats(&self) -> MutexGuard<'_, ShardStats> {
        lock(&self.stats)
    }

    /// The subscribers, when there are any: one atomic load otherwise.
    pub(crate) fn subscribers(&self) -> Option<MutexGuard<'_, Vec<Subscriber>>> {
        self.subscribed.load(Ordering::Acquire).then(|| lock(&self.subscribers))
    }

    /// Adds one, which ends at once when the shard has ended.
    pub(crate) fn subscribe(&self, subscriber: Subscriber) {
        let mut subscribers = lock(&self.subscribers);
        if self.unsubscribed.load(Ordering::Relaxed) {
            drop(subscribers);
            return;
        }
        subscribers.push(subscriber);
        self.subscribed.store(true, Ordering::Release);
    }

    /// Ends every subscription of this shard, also those to come. That wakes the receivers: other
    /// people's code, which runs without the lock.
    pub(crate) fn unsubscribe_all(&self) {
        let mut subscribers = lock(&self.subscribers);
        self.unsubscribed.store(true, Ordering::Relaxed);
        let ended = std::mem::take(&mut *subscribers);
        drop(subscribers);
        drop(ended);
    }

    /// Queues records that stay together; never waits.
    pub(crate) fn try_append<'a, I>(
        &self,
        stream: StreamId,
        records: I,
    ) -> Result<Place, AppendError>
    where
        I: Iterator<Item = &'a [u8]> + Clone,
    {
        let place = self.queue().append(stream, records, || self.clock.now_ns())?;
        self.wake.wake();
        Ok(place)
    }

    /// Queues a frame from elsewhere, with the fence as it was when the caller gave it; never waits.
    pub(crate) fn try_append_frame(
        &self,
        frame: &VerifiedFrame<'_>,
        given: FenceRead,
    ) -> Result<Place, AppendError> {
        let place = self.queue().append_frame(frame, given, || self.clock.now_ns())?;
        self.wake.wake();
        Ok(place)
    }

    /// Queues a frame that takes the place of durable records; never waits.
    pub(crate) fn try_mend(&self, frame: &VerifiedFrame<'_>) -> Result<Place, AppendError> {
        let place = self.queue().mend(frame, || self.clock.now_ns())?;
        self.wake.wake();
        Ok(place)
    }

    /// Queues a trim, skip or cut; never waits.
    pub(crate) fn try_change(&self, asked: Asked) -> Result<Place, AppendError> {
        let place = self.queue().change(asked, || self.clock.now_ns())?;
        self.wake.wake();
        Ok(place)
    }

    /// Tries until there is room; sleeps in between (I-5).
    pub(crate) fn wait_for_room<T>(
        &self,
        lane: Lane,
        mut attempt: impl FnMut() -> Result<T, AppendError>,
    ) -> Result<T, AppendError> {
        let mut began_ns = None;
        loop {
            match attempt() {
                Err(AppendError::Full { .. }) => {
                    began_ns.get_or_insert_with(|| self.clock.now_ns());
                }
                outcome => {
                    if let Some(began_ns) = began_ns {
                        self.note_backpressure(began_ns);
                    }
                    return outcome;
                }
            }
            self.sleep_until_room(lane);
        }
    }

    fn sleep_until_room(&self, lane: Lane) {
        let mut queue = self.queue();
        if queue.has_room_now(lane) {
            return;
        }
        queue.note_waiting(lane);
        drop(self.room.wait(queue).unwrap_or_else(PoisonError::into_inner));
    }

    pub(crate) fn note_backpressure(&self, began_ns: u64) {
        let mut stats = self.stats();
        stats.backpressure_count += 1;
        stats.backpressure_ns += self.clock.now_ns() - began_ns;
    }

    /// Registers a task that waits for room in a lane. True when there is room already.
    pub(crate) fn register_for_room(&self, lane: Lane, waker: &Waker) -> bool {
        let mut queue = self.queue();
        if queue.has_room_now(lane) {
            return true;
        }
        queue.wait_for_room(lane, waker);
        false
    }

    /// Wakes whoever waits for room. Wakers are other people's code: they run without the lock.
    pub(crate) fn notify_room(&self, mut queue: MutexGuard<'_, Queue>) {
        if queue.take_threads() {
            self.room.notify_all();
        }
        let tasks = queue.take_tasks();
        drop(queue);
        tasks.into_iter().for_each(Waker::wake);
    }

    /// Changes the queue's state and tells everyone who waits on it.
    pub(crate) fn set_state(&self, state: QueueState) {
        let mut queue = self.queue();
        queue.state = state;
        self.notify_room(queue);
        self.wake.wake();
    }
}
