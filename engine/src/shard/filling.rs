//! Which batch is sealed next, and where its segment comes from.

use super::ShardLoop;
use super::ending::Ending;
use crate::batch::Filling;
use crate::checkpoint::{self, LiveSegment};
use crate::disk::BufferMut;
use crate::open_segment::OpenSegment;
use crate::queue::QueueState;
use crate::segments::Prepared;

/// The part of a segment's length that records of the node's own streams may take of the reserve.
const LOCAL_SHARE: u64 = 4;

/// Where a filling batch came from, and so where it goes back to.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
enum Lane {
    /// The engine's own records.
    Outbox,
    Controls,
    /// Records of the node's own streams.
    Local,
    Records,
}

impl Lane {
    /// What the shard must be able to write: the reserve is for that.
    fn is_own(self) -> bool {
        matches!(self, Self::Outbox | Self::Controls)
    }
}

impl ShardLoop {
    /// Seals batches as long as flush slots are free.
    pub(super) fn fill_slots(&mut self, now_ns: u64) {
        while self.poisoned.is_none() && self.may_seal() {
            let Some((filling, lane)) = self.next_filling(now_ns) else { break };
            let bytes = filling.padded_length();
            if !self.may_take(lane, bytes) {
                self.put_back(filling, lane);
                break;
            }
            if !self.open.fits(bytes, filling.frames()) {
                self.put_back(filling, lane);
                let rolled = self.roll(lane, bytes);
                self.outbox_blocked = lane == Lane::Outbox && !rolled;
                if !rolled {
                    break;
                }
                continue;
            }
            if lane == Lane::Local && !self.open_takes_records {
                self.local_borrowed_bytes += bytes as u64;
            }
            if !lane.is_own() {
                self.local_was_last = lane == Lane::Local;
                self.has_taken_records = true;
            }
            self.seal(filling, now_ns);
        }
        self.note_space();
    }

    /// Whether a flush slot is free for what comes next. Until the first batch of a segment is durable, nothing is
    /// sealed far behind it: an open that finds nothing at the beginning looks no further.
    pub(super) fn may_seal(&self) -> bool {
        self.flush.has_slot() && !self.open.waits_for_beginning(self.flush.durable())
    }

    /// Whether the open segment may take a batch. One of the reserve takes no records until that is
    /// whole again, but for a few of the node's own streams.
    fn may_take(&mut self, lane: Lane, bytes: usize) -> bool {
        if lane.is_own() {
            return true;
        }
        self.open_takes_records = self.open_takes_records || self.segments.reserve_is_safe();
        if self.open_takes_records {
            self.local_borrowed_bytes = 0;
            return true;
        }
        lane == Lane::Local && self.may_borrow(bytes)
    }

    /// A full disk must not keep a node from promising, nor its promises the shard from trimming.
    fn may_borrow(&self, bytes: usize) -> bool {
        self.local_borrowed_bytes + bytes as u64 <= self.shared.segment_bytes / LOCAL_SHARE
    }

    fn next_filling(&mut self, now_ns: u64) -> Option<(Filling, Lane)> {
        if let Some(filling) = self.outbox.pop_front() {
            return Some((filling, Lane::Outbox));
        }
        let controls = self.held_controls.take().or_else(|| self.shared.queue().take_controls());
        if let Some(filling) = controls {
            return Some((filling, Lane::Controls));
        }
        let mut queue = self.shared.queue();
        let is_open = matches!(queue.state, QueueState::Open);
        let oldest = queue.oldest_records();
        let ready = oldest.is_some_and(|oldest| !is_open || now_ns >= self.ready_at(oldest));
        // In turn, so that neither starves; but what waits for space lets the others pass.
        let local_waits = self.local_was_last && ready && self.held_records.is_none();
        if !local_waits {
            let local = self.held_local.take().or_else(|| queue.take_local());
            if let Some(filling) = local {
                return Some((filling, Lane::Local));
            }
        }
        if let Some(filling) = self.held_records.take() {
            return Some((filling, Lane::Records));
        }
        ready.then(|| queue.take_records()).flatten().map(|filling| (filling, Lane::Records))
    }

    fn put_back(&mut self, filling: Filling, lane: Lane) {
        match lane {
            Lane::Outbox => self.outbox.push_front(filling),
            Lane::Controls => self.held_controls = Some(filling),
            Lane::Local => self.held_local = Some(filling),
            Lane::Records => self.held_records = Some(filling),
        }
    }

    /// Tells callers whether records wait for space that cannot be had.
    fn note_space(&mut self) {
        let cause = |held: &Option<Filling>| {
            held.as_ref().and_then(|_| self.segments.failure()).map(str::to_owned)
        };
        let (records, local) = (cause(&self.held_records), cause(&self.held_local));
        let mut queue = self.shared.queue();
        if queue.no_space != records || queue.no_space_local != local {
            (queue.no_space, queue.no_space_local) = (records, local);
            self.shared.notify_room(queue);
        }
    }

    /// Goes on in the next prepared segment. False when there is none for a batch of this lane.
    fn roll(&mut self, lane: Lane, bytes: usize) -> bool {
        let mut own = lane.is_own();
        let mut next = self.segments.take(own);
        let borrows = lane == Lane::Local && self.segments.failure().is_some();
        if next.is_none() && borrows && self.may_borrow(bytes) {
            next = self.segments.take_but_last();
            own = true;
        }
        let Some(next) = next else { return false };
        let facts = self.open.seal_facts(Some((next.number, next.generation)));
        if let Some(closed) = self.live.get_mut(&facts.generation) {
            closed.last_crc = facts.last_crc;
        }
        self.open = OpenSegment::new(
            next,
            self.shared.segment_bytes,
            self.flush.sealed() + 1,
            facts.last_crc,
        );
        self.sealing.push(facts);
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
    pub(super) fn enter_segment(&mut self, segment: Prepared, facts: Vec<u8>) {
        let live = LiveSegment { number: segment.number, last_crc: 0 };
        self.live.insert(segment.generation, live);
        self.shared.index().add_open_segment(segment.generation, segment.number, segment.file);
        self.push_checkpoint(facts);
    }

    pub(super) fn push_checkpoint(&mut self, facts: Vec<u8>) {
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

    pub(super) fn own_batch(&self, payload: &[u8]) -> Filling {
        let bytes = crate::batch::frame_bytes(payload.len());
        let mut filling = Filling::new(BufferMut::allocate(bytes), self.shared.clock.now_ns());
        filling.push_facts(payload);
        filling
    }
}
