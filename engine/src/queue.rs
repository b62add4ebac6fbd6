//! What callers put in and the shard takes out: batches that fill, in two lanes. Bounded; no I/O.
//!
//! Records wait in one lane. Trims and cuts have their own, so that a full disk, on which records
//! wait for space, can still be trimmed. Each lane keeps its order; between them there is none.

use std::collections::VecDeque;
use std::task::Waker;

use crate::batch::{Asked, Filling, record_bytes};
use crate::disk::{BufferMut, Pool};
use crate::error::{AppendError, Poisoned};
use crate::format::{BATCH_HEADER_BYTES, VerifiedFrame};
use crate::receipt::Place;
use crate::stream::StreamId;

/// Slots of the pool that waiting records leave free.
const SLOTS_KEPT: usize = 3;
/// Batches of trims and cuts that may wait; they have memory of their own.
const CONTROL_BATCHES_MAX: usize = 3;
/// Bytes of a batch of trims and cuts.
const CONTROL_BATCH_BYTES: usize = 64 << 10;

/// The two ways through the queue.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum Lane {
    Records,
    /// Trims and cuts.
    Controls,
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
    controls: VecDeque<Filling>,
    pub(crate) state: QueueState,
    /// Set while records wait for a segment that cannot be prepared: why.
    pub(crate) no_space: Option<String>,
    /// Threads that wait for room in each lane, since they were woken last.
    records_waiting: usize,
    controls_waiting: usize,
    tasks_waiting: Vec<Waker>,
}

impl Queue {
    pub(crate) fn new(shard: u16, pool: Pool, state: QueueState) -> Self {
        Self {
            shard,
            pool,
            records: VecDeque::new(),
            controls: VecDeque::new(),
            state,
            no_space: None,
            records_waiting: 0,
            controls_waiting: 0,
            tasks_waiting: Vec::new(),
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
        self.check_space()?;
        let fits = |filling: &Filling| filling.has_room(stream, payload);
        Ok(self.room(fits, now_ns)?.push_records(stream, records))
    }

    /// Adds a frame from elsewhere as it is.
    pub(crate) fn append_frame(
        &mut self,
        frame: &VerifiedFrame<'_>,
        now_ns: impl FnOnce() -> u64,
    ) -> Result<Place, AppendError> {
        self.admit(frame.payload.len())?;
        self.check_space()?;
        let fits = |filling: &Filling| filling.has_room_for_frame(frame.payload.len());
        Ok(self.room(fits, now_ns)?.push_frame(&frame.header, frame.payload, false))
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

    fn check_space(&self) -> Result<(), AppendError> {
        match &self.no_space {
            Some(cause) => Err(AppendError::NoSpace { shard: self.shard, cause: cause.clone() }),
            None => Ok(()),
        }
    }

    /// The filling batch, or the next one when it has no room.
    fn room(
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
        self.records.iter().map(|filling| filling.length() - BATCH_HEADER_BYTES).sum()
    }

    /// Records that wait.
    pub(crate) fn queued_records(&self) -> u64 {
        self.records.iter().map(Filling::records).sum()
    }

    /// When the oldest waiting record came, and whether its batch is full.
    pub(crate) fn oldest_records(&self) -> Option<(u64, bool)> {
        self.records.front().map(|filling| (filling.oldest_ns, self.records.len() > 1))
    }

    /// Takes the oldest batch of records.
    pub(crate) fn take_records(&mut self) -> Option<Filling> {
        self.records.pop_front()
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
        self.records.is_empty() && self.controls.is_empty()
    }

    /// Calls `waker` when there may be room.
    pub(crate) fn wait_for_room(&mut self, waker: &Waker) {
        if !self.tasks_waiting.iter().any(|task| task.will_wake(waker)) {
            self.tasks_waiting.push(waker.clone());
        }
    }

    /// Whether a command that was refused as [`AppendError::Full`] is worth another try.
    pub(crate) fn has_room_now(&self, lane: Lane) -> bool {
        if !matches!(self.state, QueueState::Open) {
            return true;
        }
        match lane {
            Lane::Controls => self.controls.len() < CONTROL_BATCHES_MAX,
            Lane::Records if self.no_space.is_some() => true,
            Lane::Records => {
                self.pool.starve();
                self.pool.slots_free() > SLOTS_KEPT
            }
        }
    }

    /// Whether someone waits for room and may find some.
    pub(crate) fn is_worth_waking(&self) -> bool {
        let records = self.records_waiting > 0 || !self.tasks_waiting.is_empty();
        (records && self.has_room_now(Lane::Records))
            || (self.controls_waiting > 0 && self.has_room_now(Lane::Controls))
    }

    /// Counts a thread that goes to sleep until there is room.
    pub(crate) fn note_waiting(&mut self, lane: Lane) {
        match lane {
            Lane::Records => self.records_waiting += 1,
            Lane::Controls => self.controls_waiting += 1,
        }
    }

    /// Forgets the threads that wait, who are being woken: whether there were any.
    pub(crate) fn take_threads(&mut self) -> bool {
        std::mem::take(&mut self.records_waiting) + std::mem::take(&mut self.controls_waiting) > 0
    }

    /// Takes the tasks that wait for room.
    pub(crate) fn take_tasks(&mut self) -> Vec<Waker> {
        std::mem::take(&mut self.tasks_waiting)
    }
}
