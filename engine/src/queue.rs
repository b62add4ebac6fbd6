//! What callers put in and the shard takes out: batches that fill, in three lanes. Bounded; no I/O.
//!
//! Records wait in one lane. Trims and cuts have their own, so that a full disk, on which records
//! wait for space, can still be trimmed; so have the records of the node's own streams, so that it
//! can still promise. Each lane keeps its order; between them there is none.

use std::collections::VecDeque;
use std::task::Waker;

use crate::batch::{Asked, Filling, frame_bytes, record_bytes};
use crate::disk::{BufferMut, Pool};
use crate::error::{AppendError, Poisoned};
use crate::format::{BATCH_HEADER_BYTES, VerifiedFrame, batch_flags};
use crate::frame_fence::FenceRead;
use crate::receipt::Place;
use crate::stream::StreamId;

/// Slots of the pool that waiting records leave free.
const SLOTS_KEPT: usize = 3;
/// Batches of trims and cuts that may wait; they have memory of their own.
const CONTROL_BATCHES_MAX: usize = 3;
/// Bytes of a batch of trims and cuts.
const CONTROL_BATCH_BYTES: usize = 64 << 10;
/// Batches of the node's own streams that may wait; they have memory of their own.
const LOCAL_BATCHES_MAX: usize = 3;
/// Bytes of such a batch, unless one frame needs more.
const LOCAL_BATCH_BYTES: usize = 64 << 10;

/// The ways through the queue.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum Lane {
    Records,
    /// Records of the node's own streams.
    Local,
    /// Trims and cuts.
    Controls,
}

impl Lane {
    /// The one of a stream's records.
    pub(crate) fn of(stream: StreamId) -> Self {
        if stream.is_local() { Self::Local } else { Self::Records }
    }
}

/// Who waits for room in a lane, since they were woken last.
#[derive(Debug, Default)]
struct Waiting {
    threads: usize,
    tasks: Vec<Waker>,
}

/// Whether commands are taken.
#[derive(Clone, Debug)]
pub(crate) enum QueueState {
    Open,
    /// Closing: what is queued is still written.
    Closing,
    ReadOnly,
    Poisoned(Poisoned),
}

/// Commands of one shard that are not sealed yet.
#[derive(Debug)]
pub(crate) struct Queue {
    shard: u16,
    pool: Pool,
    records: VecDeque<Filling>,
    local: VecDeque<Filling>,
    controls: VecDeque<Filling>,
    pub(crate) state: QueueState,
    /// Set while records wait for a segment that cannot be prepared: why.
    pub(crate) no_space: Option<String>,
    /// The same of the node's own streams, which may use a part of the reserve before.
    pub(crate) no_space_local: Option<String>,
    waiting: [Waiting; LANES.len()],
}

const LANES: [Lane; 3] = [Lane::Records, Lane::Local, Lane::Controls];

impl Queue {
    pub(crate) fn new(shard: u16, pool: Pool, state: QueueState) -> Self {
        Self {
            shard,
            pool,
            records: VecDeque::new(),
            local: VecDeque::new(),
            controls: VecDeque::new(),
            state,
            no_space: None,
            no_space_local: None,
            waiting: Default::default(),
        }
    }

    /// Longest payload of one frame.
    pub(crate) fn payload_bytes_max(&self) -> usize {
        crate::batch::payload_bytes_max(self.pool.slot_bytes())
    }

    /// Adds records that stay together. The one copy of the caller's bytes.
    pub(crate) fn append<'a, I>(
        &mut self,
        stream: StreamId,
        records: I,
        now_ns: impl FnOnce() -> u64,
    ) -> Result<Place, AppendError>
    where
        I: Iterator<Item = &'a [u8]> + Clone,
    {
        let payload: usize = records.clone().map(|record| record_bytes(record.len())).sum();
        if payload == 0 {
            return Err(AppendError::Empty);
        }
        self.admit(payload)?;
        let lane = Lane::of(stream);
        let fits = |filling: &Filling| !filling.is_moved() && filling.has_room(stream, payload);
        Ok(self.room(lane, payload, fits, now_ns)?.push_records(stream, records))
    }

    /// Adds a frame from elsewhere as it is; `given`: the fence when its caller began.
    pub(crate) fn append_frame(
        &mut self,
        frame: &VerifiedFrame<'_>,
        given: FenceRead,
        now_ns: impl FnOnce() -> u64,
    ) -> Result<Place, AppendError> {
        let payload = frame.payload.len();
        self.admit(payload)?;
        let lane = Lane::of(StreamId::new(frame.header.stream.get()));
        let fits = |filling: &Filling| !filling.is_moved() && filling.has_room_for_frame(payload);
        let filling = self.room(lane, payload, fits, now_ns)?;
        Ok(filling.push_foreign(&frame.header, frame.payload, given))
    }

    /// Adds a frame that takes the place of durable records. It waits among the records, in batches
    /// of its own: those of moved records are told apart.
    pub(crate) fn mend(
        &mut self,
        frame: &VerifiedFrame<'_>,
        now_ns: impl FnOnce() -> u64,
    ) -> Result<Place, AppendError> {
        let payload = frame.payload.len();
        self.admit(payload)?;
        let fits = |filling: &Filling| filling.is_moved() && filling.has_room_for_frame(payload);
        let filling = self.room(Lane::Records, payload, fits, now_ns)?;
        filling.flags |= batch_flags::MOVED;
        Ok(filling.push_moved(&frame.header, frame.payload))
    }

    /// Adds a trim or cut.
    pub(crate) fn change(
        &mut self,
        asked: Asked,
        now_ns: impl FnOnce() -> u64,
    ) -> Result<Place, AppendError> {
        self.admit(0)?;
        let full = self.controls.back().is_none_or(|filling| !filling.has_room_for_frame(128));
        if full {
            if self.controls.len() >= CONTROL_BATCHES_MAX {
                return Err(self.full());
            }
            let bytes = CONTROL_BATCH_BYTES.min(self.pool.slot_bytes());
            self.controls.push_back(Filling::new(BufferMut::allocate(bytes), now_ns()));
        }
        Ok(self.controls.back_mut().expect("just pushed").push_asked(asked))
    }

    fn admit(&self, payload: usize) -> Result<(), AppendError> {
        match &self.state {
            QueueState::Open => {}
            QueueState::Closing => return Err(AppendError::Closed),
            QueueState::ReadOnly => return Err(AppendError::ReadOnly),
            QueueState::Poisoned(cause) => return Err(AppendError::Poisoned(cause.clone())),
        }
        let max = self.payload_bytes_max();
        if payload > max {
            return Err(AppendError::TooLarge { bytes: payload, max });
        }
        Ok(())
    }

    fn no_space(&self, lane: Lane) -> Option<&String> {
        match lane {
            Lane::Records => self.no_space.as_ref(),
            Lane::Local => self.no_space_local.as_ref(),
            Lane::Controls => None,
        }
    }

    /// The filling batch of a lane of records, or the next one when it has no room.
    fn room(
        &mut self,
        lane: Lane,
        payload: usize,
        fits: impl Fn(&Filling) -> bool,
        now_ns: impl FnOnce() -> u64,
    ) -> Result<&mut Filling, AppendError> {
        if let Some(cause) = self.no_space(lane) {
            return Err(AppendError::NoSpace { shard: self.shard, cause: cause.clone() });
        }
        match lane {
            Lane::Local => self.room_local(payload, fits, now_ns),
            _ => self.room_records(fits, now_ns),
        }
    }

    fn room_local(
        &mut self,
        payload: usize,
        fits: impl Fn(&Filling) -> bool,
        now_ns: impl FnOnce() -> u64,
    ) -> Result<&mut Filling, AppendError> {
        if !self.local.back().is_some_and(fits) {
            if self.local.len() >= LOCAL_BATCHES_MAX {
                return Err(self.full());
            }
            let needed = frame_bytes(payload).max(LOCAL_BATCH_BYTES);
            let bytes = needed.min(self.pool.slot_bytes());
            self.local.push_back(Filling::new(BufferMut::allocate(bytes), now_ns()));
        }
        Ok(self.local.back_mut().expect("just looked"))
    }

    fn room_records(
        &mut self,
        fits: impl Fn(&Filling) -> bool,
        now_ns: impl FnOnce() -> u64,
    ) -> Result<&mut Filling, AppendError> {
        if !self.records.back().is_some_and(fits) {
            if self.pool.slots_free() <= SLOTS_KEPT {
                self.pool.starve();
                if self.pool.slots_free() <= SLOTS_KEPT {
                    return Err(self.full());
                }
            }
            let buffer = self.pool.acquire().ok_or_else(|| self.full())?;
            self.records.push_back(Filling::new(buffer, now_ns()));
        }
        Ok(self.records.back_mut().expect("just looked"))
    }

    fn full(&self) -> AppendError {
        AppendError::Full { shard: self.shard, queued_bytes: self.queued_bytes() }
    }

    /// Bytes that wait.
    pub(crate) fn queued_bytes(&self) -> usize {
        self.fillings().map(|filling| filling.length() - BATCH_HEADER_BYTES).sum()
    }

    /// Records that wait.
    pub(crate) fn queued_records(&self) -> u64 {
        self.fillings().map(Filling::records).sum()
    }

    /// Batches of records that wait.
    fn fillings(&self) -> impl Iterator<Item = &Filling> {
        self.records.iter().chain(&self.local)
    }

    /// When the oldest waiting record came, and whether its batch is full.
    pub(crate) fn oldest_records(&self) -> Option<(u64, bool)> {
        self.records.front().map(|filling| (filling.oldest_ns, self.records.len() > 1))
    }

    /// Takes the oldest batch of records.
    pub(crate) fn take_records(&mut self) -> Option<Filling> {
        self.records.pop_front()
    }

    /// Takes the oldest batch of the node's own streams.
    pub(crate) fn take_local(&mut self) -> Option<Filling> {
        self.local.pop_front()
    }

    /// Whether records of the node's own streams wait.
    pub(crate) fn has_local(&self) -> bool {
        !self.local.is_empty()
    }

    /// Takes the oldest batch of trims and cuts.
    pub(crate) fn take_controls(&mut self) -> Option<Filling> {
        self.controls.pop_front()
    }

    /// Whether trims or cuts wait.
    pub(crate) fn has_controls(&self) -> bool {
        !self.controls.is_empty()
    }

    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.records.is_empty() && self.local.is_empty() && self.controls.is_empty()
    }

    /// Calls `waker` when there may be room.
    pub(crate) fn wait_for_room(&mut self, lane: Lane, waker: &Waker) {
        let tasks = &mut self.waiting[lane as usize].tasks;
        if !tasks.iter().any(|task| task.will_wake(waker)) {
            tasks.push(waker.clone());
        }
    }

    /// Whether a command that was refused as [`AppendError::Full`] is worth another try.
    pub(crate) fn has_room_now(&self, lane: Lane) -> bool {
        if !matches!(self.state, QueueState::Open) {
            return true;
        }
        if self.no_space(lane).is_some() {
            return true;
        }
        match lane {
            Lane::Controls => self.controls.len() < CONTROL_BATCHES_MAX,
            Lane::Local => self.local.len() < LOCAL_BATCHES_MAX,
            Lane::Records => {
                self.pool.starve();
                self.pool.slots_free() > SLOTS_KEPT
            }
        }
    }

    /// Whether someone waits for room and may find some.
    pub(crate) fn is_worth_waking(&self) -> bool {
        LANES.into_iter().any(|lane| {
            let Waiting { threads, tasks } = &self.waiting[lane as usize];
            (*threads > 0 || !tasks.is_empty()) && self.has_room_now(lane)
        })
    }

    /// Counts a thread that goes to sleep until there is room.
    pub(crate) fn note_waiting(&mut self, lane: Lane) {
        self.waiting[lane as usize].threads += 1;
    }

    /// Forgets the threads that wait, who are being woken: whether there were any.
    pub(crate) fn take_threads(&mut self) -> bool {
        let threads = self.waiting.iter_mut().map(|lane| std::mem::take(&mut lane.threads));
        threads.sum::<usize>() > 0
    }

    /// Takes the tasks that wait for room.
    pub(crate) fn take_tasks(&mut self) -> Vec<Waker> {
        self.waiting.iter_mut().flat_map(|lane| std::mem::take(&mut lane.tasks)).collect()
    }
}
