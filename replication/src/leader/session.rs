//! One follower's session as the leader sees it: what waits to be sent, and where each stream is.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use ringwal_engine::{FrameSlice, StreamId};

use super::{Limits, ReadOutcome, ReadRequest};
use crate::wire::{History, Message};

/// Counts of a session since it began.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Default)]
pub struct SessionCounts {
    /// Frames sent.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Of those, bytes that were read from segments.
    pub bytes_read: u64,
    /// Frames that were dropped from memory, to be read again.
    pub frames_dropped: u64,
    /// Hand-overs to the connection.
    pub sends: u64,
}

/// What a session is like now.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct SessionState {
    /// Counts since it began.
    pub counts: SessionCounts,
    /// Bytes of frames that wait, or are being written.
    pub queued_bytes: usize,
    /// Streams that are read from segments.
    pub behind: usize,
    /// The last round trip of a heartbeat, in nanoseconds.
    pub round_trip_ns: Option<u64>,
}

/// Where a stream is.
#[derive(Debug)]
struct Place {
    /// Offset to be sent next.
    next: u64,
    /// The furthest that this was before the follower asked again.
    reached: u64,
    stage: Stage,
    /// Waits for a read, or is being read.
    reading: bool,
}

#[derive(Debug)]
enum Stage {
    /// The follower has been told its history and has not answered.
    Told,
    /// Read from segments.
    Behind,
    /// As before, but what is sealed meanwhile is held: the gap between is small.
    Joining(VecDeque<Queued>),
    /// Sent as it is sealed.
    Live,
    /// What the follower needs is trimmed, or cannot be read.
    Stuck,
}

/// Something that waits to be sent.
#[derive(Debug)]
struct Queued {
    bytes: Bytes,
    /// Stream, base and end, when it is a frame.
    frame: Option<(StreamId, u64, u64)>,
    /// The batch whose buffer it keeps; 0 when it keeps none.
    batch: u64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Session {
    number: u64,
    limits: Limits,
    places: BTreeMap<StreamId, Place>,
    queue: VecDeque<Queued>,
    /// Being written.
    sending: Vec<Queued>,
    /// Bytes of frames that keep their buffers: in the queue, in `sending` and held.
    kept_bytes: usize,
    /// Bytes of frames that were read: in the queue and in `sending`.
    read_bytes: usize,
    /// What is to be told of committed and trimmed offsets when the queue is empty.
    committed: BTreeMap<StreamId, u64>,
    trimmed: BTreeMap<StreamId, u64>,
    /// The newest heartbeat that is to be answered.
    answer: Option<u64>,
    /// Batches that keep their buffers, with the number of frames that do.
    buffers: BTreeMap<u64, usize>,
    /// Streams that wait for a read, in turn.
    behind: VecDeque<StreamId>,
    is_reading: bool,
    last_sent_ns: u64,
    round_trip_ns: Option<u64>,
    counts: SessionCounts,
}

impl Session {
    pub fn new(number: u64, limits: Limits, now_ns: u64) -> Self {
        Self {
            number,
            limits,
            places: BTreeMap::new(),
            queue: VecDeque::new(),
            sending: Vec::new(),
            kept_bytes: 0,
            read_bytes: 0,
            committed: BTreeMap::new(),
            trimmed: BTreeMap::new(),
            answer: None,
            buffers: BTreeMap::new(),
            behind: VecDeque::new(),
            is_reading: false,
            last_sent_ns: now_ns,
            round_trip_ns: None,
            counts: SessionCounts::default(),
        }
    }

    pub fn number(&self) -> u64 {
        self.number
    }

    pub fn state(&self) -> SessionState {
        let is_behind = |place: &&Place| !matches!(place.stage, Stage::Live);
        SessionState {
            counts: self.counts,
            queued_bytes: self.kept_bytes + self.read_bytes,
            behind: self.places.values().filter(is_behind).count(),
            round_trip_ns: self.round_trip_ns,
        }
    }

    // What is told.

    /// Tells what is committed, as soon as nothing else waits: only the newest of it counts.
    pub fn tell_committed(&mut self, ends: &[(StreamId, u64)]) {
        self.committed.extend(ends.iter().copied());
    }

    /// As [`Session::tell_committed`], of what is trimmed.
    pub fn tell_trimmed(&mut self, ends: &[(StreamId, u64)]) {
        self.trimmed.extend(ends.iter().copied());
    }

    /// Answers a heartbeat.
    pub fn answer(&mut self, time_ns: u64) {
        self.answer = Some(time_ns);
    }

    /// What only counts in its newest form is put into words when nothing waits before it, so that
    /// it cannot pile up.
    fn tell_newest(&mut self) {
        if let Some(time_ns) = self.answer.take() {
            self.tell(Message::HeartbeatAnswer { time_ns });
        }
        if !self.committed.is_empty() {
            let ends = std::mem::take(&mut self.committed).into_iter().collect();
            self.tell(Message::Committed(ends));
        }
        if !self.trimmed.is_empty() {
            let ends = std::mem::take(&mut self.trimmed).into_iter().collect();
            self.tell(Message::Trimmed(ends));
        }
    }

    /// Queues a message.
    pub fn tell(&mut self, message: Message) {
        if let Message::Histories(histories) = &message {
            for history in histories {
                let place = Place { next: 0, reached: 0, stage: Stage::Told, reading: false };
                self.places.insert(history.stream, place);
            }
        }
        for piece in message.pieces() {
            let bytes = Bytes::from(piece.encode());
            self.queue.push_back(Queued { bytes, frame: None, batch: 0 });
        }
    }

    /// A stream that has just been made: a follower that holds nothing of it needs not be asked.
    pub fn begin_stream(&mut self, history: History) {
        let stream = history.stream;
        self.tell(Message::Histories(vec![history]));
        self.places
            .insert(stream, Place { next: 0, reached: 0, stage: Stage::Live, reading: false });
    }

    /// The follower must begin anew behind what is trimmed.
    pub fn lose(&mut self, history: History) {
        self.is_reading = false;
        let stream = history.stream;
        self.drop_held(stream);
        // What it has been sent it may still report.
        let reached = self.places.get(&stream).map_or(0, |place| place.next.max(place.reached));
        self.tell(Message::Histories(vec![history]));
        let stuck = Place { next: 0, reached, stage: Stage::Stuck, reading: false };
        self.places.insert(stream, stuck);
    }

    pub fn beat(&mut self, now_ns: u64) {
        let is_due = now_ns.saturating_sub(self.last_sent_ns) >= self.limits.heartbeat_ns;
        if is_due && self.queue.is_empty() && self.sending.is_empty() {
            self.tell(Message::Heartbeat { time_ns: now_ns });
        }
    }

    pub fn note_round_trip(&mut self, began_ns: u64, now_ns: u64) {
        self.round_trip_ns = now_ns.checked_sub(began_ns);
    }

    // What is sealed.

    /// A frame that has just been sealed: now, later, or from the segment.
    pub fn push_sealed(&mut self, frame: &FrameSlice, batch: u64) {
        let Some(place) = self.places.get_mut(&frame.stream) else { return };
        let (base, end) = (frame.base_offset, frame.base_offset + u64::from(frame.count));
        let queued =
            || Queued { bytes: frame.bytes.clone(), frame: Some((frame.stream, base, end)), batch };
        match &mut place.stage {
            Stage::Told | Stage::Behind | Stage::Stuck => return,
            Stage::Live if end <= place.next => return,
            Stage::Live if base == place.next => {
                place.next = end;
                self.queue.push_back(queued());
            }
            Stage::Live => {
                place.stage = Stage::Joining(VecDeque::from([queued()]));
                self.want_read(frame.stream);
            }
            Stage::Joining(held) => held.push_back(queued()),
        }
        self.kept_bytes += frame.bytes.len();
        *self.buffers.entry(batch).or_default() += 1;
        let too_much = self.kept_bytes > self.limits.window_bytes
            || self.buffers.len() > self.limits.window_buffers;
        if too_much {
            self.drop_frames();
        }
    }

    /// Gives up every frame that keeps its buffer and is not being written: it is read again.
    fn drop_frames(&mut self) {
        let mut first: BTreeMap<StreamId, u64> = BTreeMap::new();
        let queue = std::mem::take(&mut self.queue);
        let mut dropped = Vec::new();
        for queued in queue {
            match queued.frame {
                Some((stream, base, _)) if queued.batch != 0 => {
                    first.entry(stream).or_insert(base);
                    dropped.push(queued);
                }
                _ => self.queue.push_back(queued),
            }
        }
        dropped.iter().for_each(|queued| self.release(queued));
        self.counts.frames_dropped += dropped.len() as u64;
        let joining: Vec<StreamId> = self
            .places
            .iter()
            .filter(|(_, place)| matches!(place.stage, Stage::Joining(_)))
            .map(|(stream, _)| *stream)
            .collect();
        joining.into_iter().for_each(|stream| self.fall_behind(stream));
        for (stream, base) in first {
            let Some(place) = self.places.get_mut(&stream) else { continue };
            if matches!(place.stage, Stage::Stuck) {
                continue;
            }
            // The follower may have asked for more than that since they were queued.
            place.reached = place.reached.max(place.next);
            place.next = place.next.min(base);
            place.stage = Stage::Behind;
            self.want_read(stream);
        }
    }

    /// A stream is read from segments again, from where it is.
    pub fn fall_behind(&mut self, stream: StreamId) {
        self.drop_held(stream);
        let Some(place) = self.places.get_mut(&stream) else { return };
        if matches!(place.stage, Stage::Live | Stage::Joining(_)) {
            place.stage = Stage::Behind;
            self.want_read(stream);
        }
    }

    /// What nothing else has shown.
    pub fn check_end(&mut self, stream: StreamId, end: u64) {
        let is_missed = self
            .places
            .get(&stream)
            .is_some_and(|place| matches!(place.stage, Stage::Live) && place.next < end);
        if is_missed {
            self.fall_behind(stream);
        }
    }

    // What is wanted and read.

    /// The follower wants a stream from here on. Whether this is the answer to its history, and so
    /// the follower's durable end.
    pub fn want(&mut self, stream: StreamId, from: u64, sealed: u64) -> bool {
        self.drop_held(stream);
        let Some(place) = self.places.get_mut(&stream) else { return false };
        let is_first = matches!(place.stage, Stage::Told);
        place.reached = place.reached.max(place.next);
        place.next = from;
        place.stage = if from == sealed { Stage::Live } else { Stage::Behind };
        if from != sealed {
            self.want_read(stream);
        }
        is_first
    }

    /// Up to where a stream is in the queue; `None` when the follower has not asked for it.
    pub fn queued_until(&self, stream: StreamId) -> Option<u64> {
        let place = self.places.get(&stream)?;
        (!matches!(place.stage, Stage::Told)).then(|| place.next.max(place.reached))
    }

    fn want_read(&mut self, stream: StreamId) {
        if let Some(place) = self.places.get_mut(&stream)
            && !place.reading
        {
            place.reading = true;
            self.behind.push_back(stream);
        }
    }

    pub fn poll_read(
        &mut self,
        follower: usize,
        sealed: impl Fn(StreamId) -> u64,
    ) -> Option<ReadRequest> {
        if self.is_reading || self.read_bytes >= self.limits.read_bytes {
            return None;
        }
        while let Some(stream) = self.behind.pop_front() {
            let Some(place) = self.places.get_mut(&stream) else { continue };
            if !matches!(place.stage, Stage::Behind | Stage::Joining(_)) {
                place.reading = false;
                continue;
            }
            self.is_reading = true;
            return Some(ReadRequest {
                follower,
                session: self.number,
                stream,
                from: place.next,
                bytes_max: self.limits.read_bytes,
                is_sealed: place.next < sealed(stream),
            });
        }
        None
    }

    pub fn take_read(&mut self, request: ReadRequest, outcome: ReadOutcome, sealed: u64) {
        self.is_reading = false;
        let stream = request.stream;
        let Some(place) = self.places.get_mut(&stream) else { return };
        place.reading = false;
        if !matches!(place.stage, Stage::Behind | Stage::Joining(_)) {
            return;
        }
        if place.next != request.from {
            // It was asked for from elsewhere meanwhile.
            return self.want_read(stream);
        }
        match outcome {
            ReadOutcome::Frames { frames, at_end } => {
                self.push_read(stream, frames);
                self.join(stream, at_end, sealed);
            }
            ReadOutcome::Trimmed { .. } | ReadOutcome::Failed => {
                self.drop_held(stream);
                if let Some(place) = self.places.get_mut(&stream) {
                    place.stage = Stage::Stuck;
                }
            }
        }
    }

    fn push_read(&mut self, stream: StreamId, frames: Vec<FrameSlice>) {
        let Some(place) = self.places.get_mut(&stream) else { return };
        for frame in frames {
            assert_eq!(frame.base_offset, place.next, "a read is without a gap");
            let end = frame.base_offset + u64::from(frame.count);
            place.next = end;
            self.read_bytes += frame.bytes.len();
            self.counts.bytes_read += frame.bytes.len() as u64;
            let frame_of = Some((stream, frame.base_offset, end));
            self.queue.push_back(Queued { bytes: frame.bytes, frame: frame_of, batch: 0 });
        }
    }

    /// Goes on with what is sealed, where the read has reached that.
    fn join(&mut self, stream: StreamId, at_end: bool, sealed: u64) {
        let Some(place) = self.places.get_mut(&stream) else { return };
        match &mut place.stage {
            Stage::Behind if at_end && place.next >= sealed => place.stage = Stage::Live,
            Stage::Joining(held) => {
                let mut covered = Vec::new();
                while held.front().is_some_and(|queued| queued.end() <= place.next) {
                    covered.extend(held.pop_front());
                }
                let is_met = held.front().is_none_or(|queued| queued.base() == place.next);
                if is_met {
                    let held = std::mem::take(held);
                    if let Some(last) = held.back() {
                        place.next = last.end();
                    }
                    place.stage = Stage::Live;
                    self.queue.extend(held);
                } else {
                    self.want_read(stream);
                }
                covered.iter().for_each(|queued| self.release(queued));
            }
            _ => self.want_read(stream),
        }
    }

    fn drop_held(&mut self, stream: StreamId) {
        let Some(place) = self.places.get_mut(&stream) else { return };
        if let Stage::Joining(held) = &mut place.stage {
            let held = std::mem::take(held);
            place.stage = Stage::Behind;
            self.counts.frames_dropped += held.len() as u64;
            held.iter().for_each(|queued| self.release(queued));
        }
    }

    // What is sent.

    pub fn poll_send(&mut self, slices_max: usize, now_ns: u64) -> Vec<Bytes> {
        assert!(self.sending.is_empty(), "one hand-over at a time");
        let mut bytes = 0;
        if self.queue.is_empty() {
            self.tell_newest();
        }
        while self.sending.len() < slices_max && bytes < self.limits.read_bytes {
            let Some(queued) = self.queue.pop_front() else { break };
            bytes += queued.bytes.len();
            if queued.frame.is_some() {
                self.counts.frames += 1;
                self.counts.bytes += queued.bytes.len() as u64;
            }
            self.sending.push(queued);
        }
        if !self.sending.is_empty() {
            self.last_sent_ns = now_ns;
            self.counts.sends += 1;
        }
        self.sending.iter().map(|queued| queued.bytes.clone()).collect()
    }

    pub fn handle_sent(&mut self) {
        for queued in std::mem::take(&mut self.sending) {
            self.release(&queued);
        }
    }

    fn release(&mut self, queued: &Queued) {
        if queued.frame.is_none() {
            return;
        }
        if queued.batch == 0 {
            self.read_bytes -= queued.bytes.len();
            return;
        }
        self.kept_bytes -= queued.bytes.len();
        if let Some(frames) = self.buffers.get_mut(&queued.batch) {
            *frames -= 1;
            if *frames == 0 {
                self.buffers.remove(&queued.batch);
            }
        }
    }
}

impl Queued {
    fn base(&self) -> u64 {
        self.frame.map_or(0, |(_, base, _)| base)
    }

    fn end(&self) -> u64 {
        self.frame.map_or(0, |(_, _, end)| end)
    }
}
