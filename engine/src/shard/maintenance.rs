//! Work beside the path of records: preparing, sealing and freeing segments, moving, the idle seal.

use std::io;
use std::sync::atomic::Ordering;

use super::ending::Ending;
use super::{ShardLoop, TOKEN_MOVER, TOKEN_SEALING, TOKEN_SEGMENTS};
use crate::batch::Filling;
use crate::control::Control;
use crate::disk::BufferMut;
use crate::flush::FlushFailure;
use crate::format::batch_flags;

/// So long after a read the next one may come.
const READERS_NS: u64 = 5_000_000;

impl ShardLoop {
    /// Work beside the path of records: segments, footers, moving, the idle seal, waiters for room.
    pub(super) fn maintain(&mut self, now_ns: u64) {
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
            && !self.leaves_device_to_readers(now_ns)
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

    /// Whoever opens a journal reads it before it appends: filling segments for later, the reserve being
    /// there, would take the device from it.
    fn leaves_device_to_readers(&mut self, now_ns: u64) -> bool {
        let reads = self.shared.engine_wide.reads.load(Ordering::Relaxed);
        if std::mem::replace(&mut self.reads_seen, reads) != reads {
            self.readers_until_ns = now_ns + READERS_NS;
        }
        self.leaves_to_readers = now_ns < self.readers_until_ns
            && !self.has_taken_records
            && !self.waits_for_segment()
            && self.ending == Ending::No
            && self.segments.is_filling()
            && self.segments.reserve_is_safe()
            && self.segments.failure().is_none();
        self.leaves_to_readers
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
    pub(super) fn take_dead(&mut self) -> Vec<u8> {
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
            self.submit_flush(false);
        }
    }

    pub(super) fn handle_sealing(&mut self, result: &io::Result<u64>) -> Result<(), FlushFailure> {
        if let Some((generation, footer)) = self.sealing.handle_completion(result)? {
            self.shared.index().seal_segment(generation, &footer);
        }
        Ok(())
    }

    pub(super) fn handle_moved(&mut self, result: io::Result<u64>, buffer: Option<BufferMut>) {
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
}
