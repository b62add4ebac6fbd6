//! The loop of one shard: reap, advance, seal, submit, release, maintain. Policy lives in the
//! cores it drives; here is only their order.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::batch::{Filling, SealPlace, Sealed};
use crate::checkpoint;
use crate::control::Control;
use crate::disk::{BufferMut, Completion, Disk, FileId, Operation, Wait};
use crate::error::{CommitError, PoisonCause, Poisoned};
use crate::flush::{DurableBatch, Flush, FlushFailure, FlushOperation};
use crate::format::{JournalEnd, batch_flags};
use crate::mover::Mover;
use crate::mutants::{self, Mutant};
use crate::open_segment::OpenSegment;
use crate::queue::QueueState;
use crate::sealing::Sealing;
use crate::segments::{Prepared, Segments};
use crate::shared::Shared;
use crate::stream::StreamTable;

const TOKEN_WRITE: u64 = 1 << 56;
const TOKEN_SYNC: u64 = 2 << 56;
const TOKEN_SEGMENTS: u64 = 3 << 56;
const TOKEN_SEALING: u64 = 4 << 56;
const TOKEN_MOVER: u64 = 5 << 56;
const TOKEN_KIND: u64 = 0xFF << 56;

/// What the loop was told, in nanoseconds.
#[derive(Copy, Clone, Debug)]
pub(crate) struct LoopOptions {
    pub(crate) linger_ns: u64,
    pub(crate) idle_seal_ns: Option<u64>,
    pub(crate) spin_ns: u64,
}

/// How far closing has come.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
enum Ending {
    No,
    /// What is queued is still written.
    Draining,
    /// A last checkpoint is on its way.
    Checkpoint,
    /// The open segment is being sealed.
    Sealing,
    Done,
}

/// Where a filling batch came from, and so where it goes back to.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
enum Lane {
    /// The engine's own records.
    Outbox,
    Controls,
    Records,
}

/// One shard: everything between its queue and its disk.
pub(crate) struct ShardLoop {
    shared: Arc<Shared>,
    disk: Box<dyn Disk>,
    options: LoopOptions,
    incarnation: u64,
    flush: Flush,
    streams: StreamTable,
    segments: Segments,
    open: OpenSegment,
    /// The open segment may take records; one of the reserve may not until that is whole again.
    open_takes_records: bool,
    previous_crc: u32,
    /// Of the batch submitted last: file, end and last block.
    #[cfg(ringwal_mutants)]
    tail: Option<(FileId, u64, crate::disk::Buffer)>,
    sealing: Sealing,
    mover: Mover,
    /// The engine's own batches; they go first.
    outbox: VecDeque<Filling>,
    /// Batches that wait for a segment.
    held_records: Option<Filling>,
    held_controls: Option<Filling>,
    /// Generation to number of every segment that counts, as sealed so far.
    live: BTreeMap<u64, u64>,
    /// Segments whose freeing is not durable yet.
    freeing: HashMap<u64, (u64, FileId)>,
    /// A batch with records came after the last one that said what is durable.
    needs_idle_seal: bool,
    active_ns: u64,
    /// When the last batch of records was sealed, and how long a flush takes on average: batches
    /// in flight together are spread evenly over that time.
    sealed_ns: u64,
    flush_mean_ns: u64,
    /// The engine's own batches wait for a segment; a completion will bring one.
    outbox_blocked: bool,
    ending: Ending,
    disk_broken: bool,
    poisoned: Option<Poisoned>,
    completions: Vec<Completion>,
    finished: Vec<DurableBatch>,
    /// Live, prepared, free, failures: as the counters say.
    published: (usize, usize, usize, u64),
}

/// What recovery hands to a shard that may write.
pub(crate) struct Start {
    pub(crate) flush: Flush,
    pub(crate) streams: StreamTable,
    pub(crate) segments: Segments,
    pub(crate) first: Prepared,
    /// Records need not wait for the reserve.
    pub(crate) first_takes_records: bool,
    pub(crate) end: JournalEnd,
    pub(crate) incarnation: u64,
    pub(crate) live: BTreeMap<u64, u64>,
}

impl ShardLoop {
    pub(crate) fn new(
        shared: Arc<Shared>,
        disk: Box<dyn Disk>,
        options: LoopOptions,
        start: Start,
    ) -> Self {
        let Start { flush, streams, segments, first, first_takes_records, end, incarnation, live } =
            start;
        let mut shard = Self {
            options,
            incarnation,
            flush,
            streams,
            segments,
            open: OpenSegment::new(first, shared.segment_bytes, end.sequence + 1, end.crc),
            open_takes_records: first_takes_records,
            previous_crc: end.crc,
            #[cfg(ringwal_mutants)]
            tail: None,
            sealing: Sealing::new(shared.segment_bytes),
            mover: Mover::new(shared.segment_bytes, shared.pool.slot_bytes()),
            outbox: VecDeque::new(),
            held_records: None,
            held_controls: None,
            live,
            freeing: HashMap::new(),
            needs_idle_seal: false,
            active_ns: shared.clock.now_ns(),
            sealed_ns: 0,
            flush_mean_ns: 0,
            outbox_blocked: false,
            ending: Ending::No,
            disk_broken: false,
            poisoned: None,
            completions: Vec::with_capacity(64),
            finished: Vec::with_capacity(32),
            published: (0, 0, 0, 0),
            shared,
            disk,
        };
        // In one batch with the checkpoint: however often a full disk is opened and its process
        // killed, what the last one left is free.
        let freed = shard.take_dead();
        shard.enter_segment(first, freed);
        shard
    }

    /// Whether closing is over.
    pub(crate) fn is_done(&self) -> bool {
        self.ending == Ending::Done
    }

    /// Why it takes no more writes.
    pub(crate) fn poisoned(&self) -> Option<&Poisoned> {
        self.poisoned.as_ref()
    }

    /// One turn. Returns how many commands got their receipt.
    pub(crate) fn step(&mut self, wait: Wait) -> u64 {
        let wait = if self.completions.is_empty() { wait } else { Wait::No };
        self.reap(wait);
        self.shared.wake.unpark();
        let now_ns = self.shared.clock.now_ns();
        let mut completions = std::mem::take(&mut self.completions);
        for completion in completions.drain(..) {
            self.handle_completion(completion, now_ns);
        }
        self.completions = completions;
        self.advance();
        self.fill_slots(now_ns);
        let submitted = self.submit_flush();
        if submitted && !self.finished.is_empty() {
            // The device starts on the next batch while this one's waiters are woken.
            self.reap(Wait::No);
        }
        let released = self.release(now_ns);
        self.maintain(now_ns);
        self.end();
        released
    }

    /// Submits and reaps; a disk that has broken is left alone.
    fn reap(&mut self, wait: Wait) {
        if self.disk_broken {
            if wait != Wait::No {
                self.shared.wake.sleep();
            }
            return;
        }
        if let Err(error) = self.disk.reap(&mut self.completions, wait) {
            self.disk_broken = true;
            self.poison(FlushFailure {
                stage: "ring",
                file: self.open.segment.file,
                errno: error.raw_os_error(),
                message: error.to_string(),
            });
        }
    }

    /// Says how long the next turn may sleep, and whether new commands interrupt it.
    pub(crate) fn next_wait(&mut self) -> Wait {
        if !self.completions.is_empty() {
            return Wait::No;
        }
        let now_ns = self.shared.clock.now_ns();
        let spins = self.flush.is_idle() && now_ns < self.active_ns + self.options.spin_ns;
        if spins && self.poisoned.is_none() {
            // Not announced as asleep: whoever brings work need not wake it.
            return Wait::No;
        }
        let takes_work = self.poisoned.is_some() || self.flush.has_slot();
        if takes_work {
            self.shared.wake.park();
            if self.has_work(now_ns) {
                self.shared.wake.unpark();
                return Wait::No;
            }
        }
        let records_at = self.records_at();
        if records_at.is_some() && self.options.linger_ns == 0 {
            // Woken by the first record of a paced batch: the others need not wake again.
            self.shared.wake.unpark();
        }
        match self.deadline(records_at) {
            Some(at) => Wait::For(Duration::from_nanos(at.saturating_sub(now_ns).max(1_000))),
            None => Wait::Forever,
        }
    }

    fn has_work(&self, now_ns: u64) -> bool {
        let queue = self.shared.queue();
        let closing = matches!(queue.state, QueueState::Closing) && self.ending == Ending::No;
        if self.poisoned.is_some() {
            return closing || !queue.is_empty();
        }
        // What waits for a segment goes first: what is behind it is no work yet.
        let records_ready = !self.waits_for_segment()
            && queue.oldest_records().is_some_and(|oldest| now_ns >= self.ready_at(oldest));
        let controls_ready =
            !self.outbox_blocked && self.held_controls.is_none() && queue.has_controls();
        let outbox_ready = !self.outbox_blocked && !self.outbox.is_empty();
        let room = queue.is_worth_waking();
        closing || records_ready || controls_ready || outbox_ready || room
    }

    fn waits_for_segment(&self) -> bool {
        self.outbox_blocked || self.held_controls.is_some() || self.held_records.is_some()
    }

    /// When waiting records are sealed: at once when they fill a batch, else after the linger and
    /// in step with the batches in flight.
    fn ready_at(&self, (oldest_ns, full): (u64, bool)) -> u64 {
        if full { 0 } else { self.paced_until().max(oldest_ns + self.options.linger_ns) }
    }

    /// While a flush is under way, the next waits for its share of the flush time. It would
    /// otherwise start with the first record that comes and leave the many behind it waiting.
    fn paced_until(&self) -> u64 {
        if self.flush.is_idle() {
            return 0;
        }
        self.sealed_ns + self.flush_mean_ns / self.flush.slots() as u64
    }

    /// When the records that wait are sealed, if a slot is free for them.
    fn records_at(&self) -> Option<u64> {
        if !self.flush.has_slot() || self.waits_for_segment() {
            return None;
        }
        self.shared.queue().oldest_records().map(|oldest| self.ready_at(oldest))
    }

    fn deadline(&self, records_at: Option<u64>) -> Option<u64> {
        let seal = self
            .options
            .idle_seal_ns
            .filter(|_| self.needs_idle_seal && self.flush.is_idle() && self.poisoned.is_none())
            // What keeps the seal from being written is no reason to wake up for it.
            .filter(|_| self.outbox.is_empty() && self.ending == Ending::No)
            .map(|after| self.active_ns + after);
        let prepares = matches!(self.ending, Ending::No | Ending::Draining | Ending::Checkpoint);
        let retry = self.segments.retry_at().filter(|_| prepares && self.poisoned.is_none());
        [records_at, seal, retry].into_iter().flatten().min()
    }

    fn handle_completion(&mut self, completion: Completion, now_ns: u64) {
        let Completion { token, result, buffer } = completion;
        let id = token & !TOKEN_KIND;
        let outcome = match token & TOKEN_KIND {
            TOKEN_WRITE if self.poisoned.is_none() => self.flush.handle_write(id, &result),
            TOKEN_SYNC if self.poisoned.is_none() => self.flush.handle_sync(id, &result),
            TOKEN_SEGMENTS => {
                self.segments.handle_completion(result, now_ns);
                Ok(())
            }
            TOKEN_SEALING if self.poisoned.is_none() => self.handle_sealing(&result),
            TOKEN_MOVER => {
                self.handle_moved(result, buffer);
                Ok(())
            }
            _ => Ok(()),
        };
        if let Err(failure) = outcome {
            self.poison(failure);
        }
    }

    /// Moves the durable cursor and makes its batches visible to readers.
    fn advance(&mut self) {
        self.outbox_blocked = false;
        let first = self.finished.len();
        while let Some(batch) = self.flush.poll_durable() {
            self.finished.push(batch);
        }
        if self.finished.len() == first {
            return;
        }
        self.active_ns = self.shared.clock.now_ns();
        let mut wakers = Vec::new();
        let mut index = self.shared.index();
        for durable in &self.finished[first..] {
            let batch = &durable.batch;
            for control in &batch.controls {
                match control {
                    Control::Trim { stream, before } => index.trim(*stream, *before),
                    Control::Epoch { stream, start } => index.begin_epoch(*stream, *start),
                    Control::Free { generation, .. } => {
                        if let Some((number, file)) = self.freeing.remove(generation) {
                            self.segments.give_back(number, file);
                        }
                    }
                    _ => {}
                }
            }
            for frame in &batch.frames {
                index.add_frame(batch.generation, durable.offset, frame, batch.moved);
            }
            wakers.append(&mut index.take_waiting(&batch.frames));
        }
        drop(index);
        wakers.into_iter().for_each(std::task::Waker::wake);
    }

    /// Seals batches as long as flush slots are free.
    fn fill_slots(&mut self, now_ns: u64) {
        while self.poisoned.is_none() && self.flush.has_slot() {
            let Some((filling, lane)) = self.next_filling(now_ns) else { break };
            if lane == Lane::Records && !self.open_takes_records {
                self.open_takes_records = self.segments.reserve_is_safe();
                if !self.open_takes_records {
                    self.put_back(filling, lane);
                    break;
                }
            }
            if !self.open.fits(filling.padded_length(), filling.frames()) {
                self.put_back(filling, lane);
                let rolled = self.roll(lane != Lane::Records);
                self.outbox_blocked = lane == Lane::Outbox && !rolled;
                if !rolled {
                    break;
                }
                continue;
            }
            self.seal(filling, now_ns);
        }
        self.note_space();
    }

    fn next_filling(&mut self, now_ns: u64) -> Option<(Filling, Lane)> {
        if let Some(filling) = self.outbox.pop_front() {
            return Some((filling, Lane::Outbox));
        }
        let controls = self.held_controls.take().or_else(|| self.shared.queue().take_controls());
        if let Some(filling) = controls {
            return Some((filling, Lane::Controls));
        }
        if let Some(filling) = self.held_records.take() {
            return Some((filling, Lane::Records));
        }
        let mut queue = self.shared.queue();
        let oldest = queue.oldest_records()?;
        let ready = now_ns >= self.ready_at(oldest) || !matches!(queue.state, QueueState::Open);
        ready.then(|| queue.take_records()).flatten().map(|filling| (filling, Lane::Records))
    }

    fn put_back(&mut self, filling: Filling, lane: Lane) {
        match lane {
            Lane::Outbox => self.outbox.push_front(filling),
            Lane::Controls => self.held_controls = Some(filling),
            Lane::Records => self.held_records = Some(filling),
        }
    }

    /// Tells callers whether records wait for space that cannot be had.
    fn note_space(&mut self) {
        let cause = match (&self.held_records, self.segments.failure()) {
            (Some(_), Some(cause)) => Some(cause.to_owned()),
            _ => None,
        };
        let mut queue = self.shared.queue();
        if queue.no_space != cause {
            queue.no_space = cause;
            self.shared.notify_room(queue);
        }
    }

    /// Goes on in the next prepared segment. False when there is none.
    fn roll(&mut self, own: bool) -> bool {
        let Some(next) = self.segments.take(own) else { return false };
        let facts = self.open.seal_facts(Some((next.number, next.generation)));
        self.sealing.push(facts);
        self.open = OpenSegment::new(
            next,
            self.shared.segment_bytes,
            self.flush.sealed() + 1,
            self.previous_crc,
        );
        self.open_takes_records = !own;
        self.shared.stats().rotations += 1;
        if self.ending == Ending::Checkpoint {
            self.open.expect_last_checkpoint();
        }
        self.enter_segment(next, Vec::new());
        true
    }

    /// Every segment starts with a checkpoint, so that nothing older is read for it. `facts` go
    /// with it.
    fn enter_segment(&mut self, segment: Prepared, facts: Vec<u8>) {
        self.live.insert(segment.generation, segment.number);
        self.shared.index().add_open_segment(segment.generation, segment.number, segment.file);
        self.push_checkpoint(facts);
    }

    fn push_checkpoint(&mut self, facts: Vec<u8>) {
        let bytes_max = crate::batch::payload_bytes_max(self.shared.pool.slot_bytes());
        let mut payloads = checkpoint::payloads(&self.streams, &self.live, bytes_max);
        match payloads.last_mut() {
            Some(last) if last.len() + facts.len() <= bytes_max => last.extend(facts),
            _ => payloads.push(facts),
        }
        for payload in payloads.into_iter().rev() {
            self.outbox.push_front(self.own_batch(&payload));
        }
    }

    fn own_batch(&self, payload: &[u8]) -> Filling {
        let bytes = crate::batch::frame_bytes(payload.len());
        let mut filling = Filling::new(BufferMut::allocate(bytes), self.shared.clock.now_ns());
        filling.push_facts(payload);
        filling
    }

    fn seal(&mut self, filling: Filling, now_ns: u64) {
        let is_empty = filling.frames() == 0;
        let place = SealPlace {
            seed: self.open.segment.seed,
            generation: self.open.segment.generation,
            offset: self.open.offset,
            sequence: self.flush.sealed() + 1,
            durable_sequence: match mutants::is(Mutant::NoDurableWatermark) {
                true => 0,
                false => self.flush.durable(),
            },
            incarnation: self.incarnation,
            previous_crc: self.previous_crc,
            timestamp_ns: self.shared.clock.unix_ns(),
        };
        let sealed = filling.seal(&mut self.streams, place);
        self.previous_crc = sealed.crc;
        self.needs_idle_seal = !is_empty;
        let offset = self.open.offset;
        self.open.note(&sealed);
        if let Some(mut subscribers) = self.shared.subscribers() {
            subscribers.retain_mut(|subscriber| subscriber.hand_over(&sealed, &self.shared.pool));
        }
        let sealed_ns = self.shared.clock.now_ns();
        self.sealed_ns = sealed_ns;
        {
            let mut stats = self.shared.stats();
            record(&mut stats.queue_ns, now_ns.saturating_sub(sealed.oldest_ns));
            record(&mut stats.seal_ns, sealed_ns.saturating_sub(now_ns));
        }
        self.flush.start(sealed, self.open.segment.file, offset, sealed_ns);
    }

    /// Hands the flush core's operations to the disk. Whether there were any.
    fn submit_flush(&mut self) -> bool {
        let mut submitted = false;
        while let Some(operation) = self.flush.poll_operation() {
            submitted = true;
            match operation {
                FlushOperation::Write { sequence, file, offset, buffer, from, length, durable } => {
                    #[cfg(ringwal_mutants)]
                    self.rewrite_tail(file, offset, &buffer[from..from + length]);
                    let write = Operation::Write { file, offset, buffer, from, length, durable };
                    self.disk.submit(TOKEN_WRITE | sequence, write);
                }
                FlushOperation::Sync { id, file } => {
                    self.disk.submit(TOKEN_SYNC | id, Operation::Sync { file });
                }
            }
        }
        submitted
    }

    /// See [`Mutant::TailBlockRewritten`].
    #[cfg(ringwal_mutants)]
    fn rewrite_tail(&mut self, file: FileId, offset: u64, bytes: &[u8]) {
        if !mutants::is(Mutant::TailBlockRewritten) {
            return;
        }
        let block = crate::disk::BLOCK_BYTES;
        let mut tail = BufferMut::allocate(block);
        tail[..block].copy_from_slice(&bytes[bytes.len() - block..]);
        let next = (file, offset + bytes.len() as u64, tail.freeze());
        let last = self.tail.replace(next);
        if let Some((_, end, buffer)) = last.filter(|last| (last.0, last.1) == (file, offset)) {
            let (offset, length) = (end - block as u64, block);
            let write = Operation::Write { file, offset, buffer, from: 0, length, durable: false };
            self.disk.submit(0, write);
        }
    }

    /// Sends the receipts of durable batches, in order (I-1).
    fn release(&mut self, now_ns: u64) -> u64 {
        if self.finished.is_empty() {
            return 0;
        }
        let mut released = 0;
        while !self.finished.is_empty() {
            let durable = self.finished.remove(0);
            let DurableBatch { batch, sealed_ns, .. } = durable;
            let flush_ns = now_ns.saturating_sub(sealed_ns);
            self.flush_mean_ns = (self.flush_mean_ns * 7 + flush_ns) / 8;
            let Sealed { buffer, ticket, outcomes, records, payload_bytes, padded_length, .. } =
                batch;
            drop(buffer);
            released += outcomes.len() as u64;
            ticket.complete(Ok(outcomes));
            let mut stats = self.shared.stats();
            stats.batches += 1;
            stats.written_bytes += padded_length as u64;
            stats.flushes = self.flush.flushes();
            record(&mut stats.flush_ns, flush_ns);
            if batch.moved {
                stats.moved_records += records;
            } else if records > 0 {
                stats.records += records;
                stats.payload_bytes += payload_bytes;
                record(&mut stats.batch_records, records);
                record(&mut stats.batch_bytes, padded_length as u64);
            }
            record(&mut stats.receipt_ns, self.shared.clock.now_ns().saturating_sub(now_ns));
        }
        released
    }

    /// Work beside the path of records: segments, footers, moving, the idle seal, waiters for room.
    fn maintain(&mut self, now_ns: u64) {
        let queue = self.shared.queue();
        if queue.is_worth_waking() {
            self.shared.notify_room(queue);
        } else {
            drop(queue);
        }
        if self.poisoned.is_some() {
            return;
        }
        if matches!(self.ending, Ending::No | Ending::Draining | Ending::Checkpoint)
            && let Some(operation) = self.segments.poll_operation(now_ns)
        {
            self.disk.submit(TOKEN_SEGMENTS, operation);
        }
        if let Some(operation) =
            self.sealing.poll_operation(self.flush.durable(), || self.shared.index())
        {
            self.disk.submit(TOKEN_SEALING, operation);
        }
        if matches!(self.ending, Ending::No | Ending::Draining) {
            self.free_dead();
        }
        if self.ending == Ending::No {
            let pressed = self.segments.failure().is_some();
            let operation = self.mover.poll_operation(&mut self.shared.index(), pressed);
            if let Some(operation) = operation {
                self.disk.submit(TOKEN_MOVER, operation);
            }
            self.seal_when_idle(now_ns);
        }
        self.publish_segments();
    }

    fn publish_segments(&mut self) {
        let (prepared, free, failures) = self.segments.counts();
        let counts = (self.live.len(), prepared, free, failures);
        if std::mem::replace(&mut self.published, counts) == counts {
            return;
        }
        let mut stats = self.shared.stats();
        stats.segments.live = self.live.len();
        stats.segments.prepared = prepared;
        stats.segments.free = free;
        stats.segments.bytes =
            (self.live.len() + prepared + free) as u64 * self.shared.segment_bytes;
        stats.errors.prepare = failures;
    }

    /// Says durably that dead segments are free; they are used again only after that.
    fn free_dead(&mut self) {
        let payload = self.take_dead();
        if !payload.is_empty() {
            let filling = self.own_batch(&payload);
            self.outbox.push_back(filling);
        }
    }

    /// The facts that free the dead segments.
    fn take_dead(&mut self) -> Vec<u8> {
        let mut payload = Vec::new();
        let mut index = self.shared.index();
        let dead = index.take_dead();
        for generation in dead {
            let Some(segment) = index.remove_segment(generation) else { continue };
            self.live.remove(&generation);
            self.freeing.insert(generation, (segment.number, segment.file));
            Control::Free { number: segment.number, generation }.encode(&mut payload);
        }
        payload
    }

    fn seal_when_idle(&mut self, now_ns: u64) {
        let Some(after_ns) = self.options.idle_seal_ns else { return };
        let due = self.needs_idle_seal
            && self.flush.is_idle()
            && self.outbox.is_empty()
            && now_ns >= self.active_ns + after_ns;
        if due {
            let mut filling = Filling::new(BufferMut::allocate(crate::disk::BLOCK_BYTES), now_ns);
            filling.flags |= batch_flags::SEAL;
            self.outbox.push_back(filling);
            self.shared.stats().idle_seals += 1;
            self.fill_slots(now_ns);
            self.submit_flush();
        }
    }

    fn handle_sealing(&mut self, result: &io::Result<u64>) -> Result<(), FlushFailure> {
        if let Some((generation, footer)) = self.sealing.handle_completion(result)? {
            self.shared.index().seal_segment(generation, &footer);
        }
        Ok(())
    }

    fn handle_moved(&mut self, result: io::Result<u64>, buffer: Option<BufferMut>) {
        if result.is_err() {
            self.shared.stats().errors.read += 1;
        }
        let mut index = self.shared.index();
        let batches = self.mover.handle_read(result, buffer, &mut index);
        drop(index);
        // Behind the last checkpoint nothing follows: its segment is being sealed.
        if matches!(self.ending, Ending::No | Ending::Draining) {
            self.outbox.extend(batches);
        }
    }

    /// Closing, one stage after another: drain, checkpoint, seal the open segment.
    fn end(&mut self) {
        let closing = matches!(self.shared.queue().state, QueueState::Closing);
        if self.ending == Ending::No && closing {
            self.ending = Ending::Draining;
        }
        if self.poisoned.is_some() {
            if closing || self.ending != Ending::No {
                self.ending = Ending::Done;
            }
            return;
        }
        match self.ending {
            Ending::Draining => self.end_draining(),
            Ending::Checkpoint if self.is_drained() => {
                let facts = self.open.seal_facts(None);
                self.sealing.push(facts);
                self.ending = Ending::Sealing;
                self.end_sealing();
            }
            // No room for all of the checkpoint: the next open scans instead.
            Ending::Checkpoint
                if self.outbox_blocked
                    && self.flush.is_idle()
                    && self.segments.failure().is_some() =>
            {
                self.ending = Ending::Done;
            }
            Ending::Sealing => self.end_sealing(),
            _ => {}
        }
    }

    fn is_drained(&self) -> bool {
        self.flush.is_idle() && self.outbox.is_empty() && self.finished.is_empty()
    }

    fn end_draining(&mut self) {
        if self.segments.failure().is_some() {
            // No segment will come: what waits for one was never written.
            let mut queue = self.shared.queue();
            let waiting = [self.held_records.take(), self.held_controls.take()];
            let mut fillings: Vec<_> = waiting.into_iter().flatten().collect();
            fillings.extend(std::iter::from_fn(|| queue.take_records()));
            if self.outbox_blocked && self.flush.is_idle() {
                // Nor can a trim be written, nor what the engine had to say itself.
                fillings.extend(std::iter::from_fn(|| queue.take_controls()));
                self.outbox.clear();
            }
            drop(queue);
            for filling in fillings {
                filling.into_ticket().complete(Err(CommitError::Closed));
            }
        }
        let waiting = self.held_records.is_some() || self.held_controls.is_some();
        if !waiting && self.is_drained() && self.shared.queue().is_empty() {
            self.ending = Ending::Checkpoint;
            self.push_checkpoint(Vec::new());
            self.open.expect_last_checkpoint();
            let now_ns = self.shared.clock.now_ns();
            self.fill_slots(now_ns);
            self.submit_flush();
        }
    }

    fn end_sealing(&mut self) {
        if let Some(operation) =
            self.sealing.poll_operation(self.flush.durable(), || self.shared.index())
        {
            self.disk.submit(TOKEN_SEALING, operation);
        }
        if self.sealing.is_idle() {
            self.ending = Ending::Done;
        }
    }

    /// The first failure latches; everyone who waits gets it (I-3).
    fn poison(&mut self, failure: FlushFailure) {
        if self.poisoned.is_some() {
            return;
        }
        let number = self.number_of(failure.file);
        let cause = Poisoned::new(PoisonCause {
            shard: self.shared.shard,
            stage: failure.stage,
            file: crate::segments::segment_name(number),
            errno: failure.errno,
            message: failure.message,
        });
        self.poisoned = Some(cause.clone());
        {
            let mut stats = self.shared.stats();
            stats.poisoned = Some(cause.to_string());
            match failure.stage {
                "fdatasync" => stats.errors.sync += 1,
                _ => stats.errors.write += 1,
            }
        }
        let tails = {
            let mut index = self.shared.index();
            index.poisoned = Some(cause.clone());
            index.take_all_waiting()
        };
        tails.into_iter().for_each(std::task::Waker::wake);
        let mut queue = self.shared.queue();
        if matches!(queue.state, QueueState::Open) {
            queue.state = QueueState::Poisoned(cause.clone());
        }
        let mut waiting: Vec<_> = self.outbox.drain(..).collect();
        waiting.extend(self.held_records.take());
        waiting.extend(self.held_controls.take());
        waiting.extend(std::iter::from_fn(|| queue.take_records()));
        waiting.extend(std::iter::from_fn(|| queue.take_controls()));
        self.shared.notify_room(queue);
        for batch in self.flush.take_unknown() {
            batch.ticket.complete(Err(CommitError::Unknown(cause.clone())));
        }
        for filling in waiting {
            filling.into_ticket().complete(Err(CommitError::NotWritten(cause.clone())));
        }
    }

    fn number_of(&self, file: FileId) -> u64 {
        let index = self.shared.index();
        index
            .segments
            .values()
            .find(|segment| segment.file == file)
            .map_or(self.open.segment.number, |segment| segment.number)
    }

    /// Stops without another write.
    pub(crate) fn abandon(&mut self) {
        self.ending = Ending::Done;
    }
}

impl Drop for ShardLoop {
    /// A loop that ends by a panic leaves nobody waiting.
    fn drop(&mut self) {
        if self.ending == Ending::Done {
            return;
        }
        for durable in self.finished.drain(..) {
            durable.batch.ticket.complete(Ok(durable.batch.outcomes));
        }
        self.poison(FlushFailure {
            stage: "loop",
            file: self.open.segment.file,
            errno: None,
            message: "the shard's thread ended; please report it".into(),
        });
    }
}

/// The histograms grow as needed, so that nothing is out of their range.
fn record(histogram: &mut Histogram<u64>, value: u64) {
    let _ = histogram.record(value);
}
