//! Which batch is sealed next, and where its segment comes from.

use super::ShardLoop;
use super::ending::Ending;
use crate::batch::Filling;
use crate::checkpoint::{self, LiveSegment};
use crate::disk::BufferMut;
use crate::open_segment::OpenSegment;
use crate::queue::QueueState;
use crate::segments::Prepared;

/// Where a filling batch came from, and so where it goes back to.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
enum Lane {
    /// The engine's own records.
    Outbox,
    Controls,
    Records,
}

impl ShardLoop {
    /// Seals batches as long as flush slots are free.
    pub(super) fn fill_slots(&mut self, now_ns: u64) {
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
