//! The loop of one shard: reap, advance, seal, submit, release, maintain. Policy lives in the
//! cores it drives; here is only their order.

mod company;
mod ending;
mod filling;
mod maintenance;
mod poisoning;
mod waiting;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::task::Waker;

use hdrhistogram::Histogram;

use crate::batch::{Filling, SealPlace, Sealed};
use crate::checkpoint::LiveSegment;
use crate::control::Control;
use crate::disk::{Completion, Disk, FileId, Operation, Wait};
use crate::error::Poisoned;
use crate::flush::{DurableBatch, Flush, FlushFailure, FlushOperation};
use crate::format::JournalEnd;
use crate::mover::Mover;
use crate::mutants::{self, Mutant};
use crate::open_segment::OpenSegment;
use crate::sealing::Sealing;
use crate::segments::{Prepared, Segments};
use crate::shared::Shared;
use crate::stream::StreamTable;
use crate::subscription::hand_over;
use company::Company;
use ending::Ending;

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
    /// Of the batch submitted last: file, end and last block.
    #[cfg(ringwal_mutants)]
    tail: Option<(FileId, u64, crate::disk::Buffer)>,
    sealing: Sealing,
    mover: Mover,
    /// The engine's own batches; they go first.
    outbox: VecDeque<Filling>,
    /// The last batch of records was one of the node's own streams: others have their turn.
    local_was_last: bool,
    /// Bytes of the reserve that records of the node's own streams took, since it was whole.
    local_borrowed_bytes: u64,
    /// Batches that wait for a segment.
    held_records: Option<Filling>,
    held_local: Option<Filling>,
    held_controls: Option<Filling>,
    /// Generation to number of every segment that counts, as sealed so far.
    live: BTreeMap<u64, LiveSegment>,
    /// Segments whose freeing is not durable yet.
    freeing: HashMap<u64, (u64, FileId)>,
    /// The last batch has frames, of records or facts: none behind it says that it is durable.
    needs_idle_seal: bool,
    active_ns: u64,
    /// When the last batch of records was sealed, and how long a flush takes on average: batches
    /// in flight together are spread evenly over that time.
    sealed_ns: u64,
    flush_mean_ns: u64,
    company: Company,
    /// Records have come since it was opened. Until then, who reads what was there before goes first.
    has_taken_records: bool,
    /// Reads by others that have been seen, until when more are expected, and whether filling waits for them.
    reads_seen: u64,
    readers_until_ns: u64,
    leaves_to_readers: bool,
    /// The engine's own batches wait for a segment; a completion will bring one.
    outbox_blocked: bool,
    ending: Ending,
    disk_broken: bool,
    poisoned: Option<Poisoned>,
    completions: Vec<Completion>,
    finished: VecDeque<DurableBatch>,
    /// Of receivers that were parked when a batch was handed over.
    subscriber_wakers: Vec<Waker>,
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
    pub(crate) live: BTreeMap<u64, LiveSegment>,
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
            #[cfg(ringwal_mutants)]
            tail: None,
            sealing: Sealing::new(shared.segment_bytes),
            mover: Mover::new(shared.segment_bytes, shared.pool.slot_bytes()),
            outbox: VecDeque::new(),
            local_was_last: false,
            local_borrowed_bytes: 0,
            held_records: None,
            held_local: None,
            held_controls: None,
            live,
            freeing: HashMap::new(),
            needs_idle_seal: false,
            active_ns: shared.clock.now_ns(),
            sealed_ns: 0,
            flush_mean_ns: 0,
            company: Company::default(),
            has_taken_records: false,
            reads_seen: 0,
            readers_until_ns: 0,
            leaves_to_readers: false,
            outbox_blocked: false,
            ending: Ending::No,
            disk_broken: false,
            poisoned: None,
            completions: Vec::with_capacity(64),
            finished: VecDeque::with_capacity(32),
            subscriber_wakers: Vec::new(),
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

    /// One turn. Returns how many commands got their receipt. `patient`: whoever turns it has nothing else
    /// to do and may be held for a whole flush.
    pub(crate) fn step(&mut self, wait: Wait, patient: bool) -> u64 {
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
        let alone = patient && self.has_nothing_else();
        if alone {
            // This thread is about to wait for the device: others begin with the same bytes before.
            self.wake_subscribers();
        }
        let submitted = self.submit_flush(alone);
        let wakes = !self.finished.is_empty() || !self.subscriber_wakers.is_empty();
        if submitted && wakes {
            // The device starts on the next batch while waiters are woken.
            self.reap(Wait::No);
        }
        self.wake_subscribers();
        let released = self.release(now_ns);
        self.maintain(now_ns);
        self.end();
        self.wake_subscribers();
        released
    }

    /// Wakers are other people's code: they run when no lock is held.
    fn wake_subscribers(&mut self) {
        self.subscriber_wakers.drain(..).for_each(Waker::wake);
    }

    /// Submits and reaps; a disk that has broken is left alone.
    fn reap(&mut self, wait: Wait) {
        if self.disk_broken {
            // That it cannot even sleep is no worse than what has happened already.
            let _ = match wait {
                Wait::No => Ok(()),
                Wait::For(timeout) => self.shared.wake.sleep(Some(timeout)),
                Wait::Forever => self.shared.wake.sleep(None),
            };
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
            self.finished.push_back(batch);
        }
        if self.finished.len() == first {
            return;
        }
        self.active_ns = self.shared.clock.now_ns();
        let nobody_came = self.finished.len() == first + 1
            && self.flush.is_idle()
            && self.shared.queue().is_empty();
        self.company.note_durable(nobody_came);
        let mut wakers = Vec::new();
        let mut index = self.shared.index();
        for durable in self.finished.range(first..) {
            let batch = &durable.batch;
            for control in &batch.controls {
                match control {
                    Control::Trim { stream, before } => index.trim(*stream, *before),
                    Control::Epoch { stream, start } => {
                        index.begin_epoch(*stream, *start);
                        self.shared.note_cut(&mut index);
                    }
                    Control::Free { generation, .. } => {
                        if let Some((number, file)) = self.freeing.remove(generation) {
                            self.segments.give_back(number, file);
                        }
                    }
                    _ => {}
                }
            }
            for frame in &batch.frames {
                let (generation, moved) = (batch.generation, batch.moved);
                let position = index.add_frame(generation, durable.offset, frame, moved);
                if !moved {
                    let bytes = &batch.buffer[frame.position..frame.position + frame.length];
                    index.recent.note(frame.stream, generation, position, bytes);
                }
            }
            wakers.append(&mut index.take_waiting(&batch.frames));
        }
        drop(index);
        wakers.into_iter().for_each(Waker::wake);
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
            previous_crc: self.open.last_crc(),
            timestamp_ns: self.shared.clock.unix_ns(),
            own_epoch: self.shared.engine_wide.own_epoch.get(|| self.shared.clock.boottime_ns()),
            frame_fence: self.shared.engine_wide.frame_fence.get(),
        };
        let sealed = filling.seal(&mut self.streams, place);
        self.needs_idle_seal = !is_empty;
        let offset = self.open.offset;
        self.open.note(&sealed);
        if let Some(mut subscribers) = self.shared.subscribers() {
            let (pool, wakers) = (&self.shared.pool, &mut self.subscriber_wakers);
            hand_over(&mut subscribers, &sealed, pool, wakers);
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

    /// No caller waits for anything but the one batch in flight, and none is expected; work of the shard's
    /// own may wait.
    fn has_nothing_else(&self) -> bool {
        self.company.is_alone()
            && self.flush.has_one_in_flight()
            && self.finished.is_empty()
            && self.shared.queue().is_empty()
    }

    /// Hands the flush core's operations to the disk. Whether there were any.
    fn submit_flush(&mut self, alone: bool) -> bool {
        let mut submitted = false;
        while let Some(operation) = self.flush.poll_operation() {
            submitted = true;
            match operation {
                FlushOperation::Write { sequence, file, offset, buffer, from, length, durable } => {
                    #[cfg(ringwal_mutants)]
                    self.rewrite_tail(file, offset, &buffer[from..from + length]);
                    let write = Operation::Write { file, offset, buffer, from, length, durable };
                    if alone {
                        self.disk.submit_alone(TOKEN_WRITE | sequence, write);
                    } else {
                        self.disk.submit(TOKEN_WRITE | sequence, write);
                    }
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
        let mut tail = crate::disk::BufferMut::allocate(block);
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
        while let Some(DurableBatch { batch, sealed_ns, .. }) = self.finished.pop_front() {
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
}

/// The histograms grow as needed, so that nothing is out of their range.
fn record(histogram: &mut Histogram<u64>, value: u64) {
    let _ = histogram.record(value);
}
