//! One follower's session as the leader sees it: where each stream is, and what is read for it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;

use bytes::Bytes;
use ringwal_engine::{FrameSlice, StreamId};

use super::outgoing::{Outgoing, Queued};
use super::{Limits, ReadOutcome, ReadRequest, end_of};
use crate::wire::History;

/// Counts of a session since it began.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Default)]
pub struct SessionCounts {
    /// Frames sent.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Frames that were read from segments to be sent.
    pub frames_read: u64,
    /// Their bytes.
    pub bytes_read: u64,
    /// Frames that were dropped from memory, to be read again.
    pub frames_dropped: u64,
    /// Their bytes.
    pub bytes_dropped: u64,
    /// Reads that failed.
    pub reads_failed: u64,
    /// Hand-overs to the connection.
    pub sends: u64,
}

/// What a session is like now.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct SessionState {
    /// Its number.
    pub number: u64,
    /// Counts since it began.
    pub counts: SessionCounts,
    /// Bytes of frames that wait, or are being written.
    pub queued_bytes: usize,
    /// Streams that are not sent as they are sealed: read from segments, or not asked for yet.
    pub behind: usize,
    /// Since when there has always been such a stream, on the clock of the owner.
    pub behind_since_ns: Option<u64>,
    /// Records that are sealed here and of which the follower has not reported that they are
    /// durable there.
    pub lag_records: u64,
    /// About how many bytes those are, by the mean length of what was seen of each stream; `None`
    /// when nothing was seen of one of them.
    pub lag_bytes: Option<u64>,
    /// The last round trip of a heartbeat, in nanoseconds.
    pub round_trip_ns: Option<u64>,
    /// What the follower said last of how long a frame took to become durable there, in nanoseconds.
    pub follower_took_ns: Option<u64>,
}

/// Where a stream is.
#[derive(Debug)]
struct Place {
    shard: u16,
    /// Offset to be sent next.
    next: u64,
    /// The furthest that this was before the follower asked again.
    reached: u64,
    stage: Stage,
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
    /// What the follower needs is trimmed: it has been told so, and asks again.
    Stuck,
}

impl Stage {
    fn is_live(&self) -> bool {
        matches!(self, Self::Live)
    }

    fn is_read(&self) -> bool {
        matches!(self, Self::Behind | Self::Joining(_))
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Session {
    number: u64,
    limits: Limits,
    places: BTreeMap<StreamId, Place>,
    /// How many of them are not live, and since when that was never 0.
    behind_count: usize,
    behind_since_ns: u64,
    pub outgoing: Outgoing,
    /// Streams that are read, by shard; those whose read has failed are not among them.
    behind: BTreeMap<u16, BTreeSet<StreamId>>,
    /// The shard that was read last.
    read_last: u16,
    is_reading: bool,
    /// Streams whose read has failed, and when it is tried again.
    failed: BTreeMap<StreamId, u64>,
    /// The owner's clock, as it was last seen.
    now_ns: u64,
    round_trip_ns: Option<u64>,
    took_ns: Option<u64>,
}

impl Session {
    /// It begins with the histories of these streams, and what of them is committed.
    pub fn new(
        number: u64,
        limits: Limits,
        streams: impl Iterator<Item = (StreamId, u16)>,
        committed: BTreeMap<StreamId, u64>,
        now_ns: u64,
    ) -> Self {
        let told =
            |(stream, shard)| (stream, Place { shard, next: 0, reached: 0, stage: Stage::Told });
        let places: BTreeMap<_, _> = streams.map(told).collect();
        let listed = places.keys().copied().collect();
        Self {
            number,
            limits,
            behind_count: places.len(),
            places,
            behind_since_ns: now_ns,
            outgoing: Outgoing::new(limits, listed, committed, now_ns),
            behind: BTreeMap::new(),
            read_last: 0,
            is_reading: false,
            failed: BTreeMap::new(),
            now_ns,
            round_trip_ns: None,
            took_ns: None,
        }
    }

    pub fn number(&self) -> u64 {
        self.number
    }

    pub fn state(&self, lag_records: u64, lag_bytes: Option<u64>) -> SessionState {
        SessionState {
            number: self.number,
            counts: self.outgoing.counts,
            queued_bytes: self.outgoing.bytes(),
            behind: self.behind_count,
            behind_since_ns: (self.behind_count > 0).then_some(self.behind_since_ns),
            lag_records,
            lag_bytes,
            round_trip_ns: self.round_trip_ns,
            follower_took_ns: self.took_ns,
        }
    }

    fn set_stage(&mut self, stream: StreamId, stage: Stage) {
        let Some(place) = self.places.get_mut(&stream) else { return };
        let (was_live, is_live) = (place.stage.is_live(), stage.is_live());
        place.stage = stage;
        if was_live && !is_live {
            if self.behind_count == 0 {
                self.behind_since_ns = self.now_ns;
            }
            self.behind_count += 1;
        }
        self.behind_count -= usize::from(!was_live && is_live);
        if !self.places[&stream].stage.is_read() {
            self.stop_reading(stream);
        }
    }

    // What is told.

    /// A stream that has just been made: a follower that holds nothing of it needs not be asked,
    /// once it has been told all that there were before.
    pub fn begin_stream(&mut self, stream: StreamId, shard: u16) {
        let is_listed = self.outgoing.is_beginning();
        self.outgoing.tell_history(stream);
        let place = Place { shard, next: 0, reached: 0, stage: Stage::Live };
        self.places.insert(stream, place);
        if is_listed {
            self.set_stage(stream, Stage::Told);
        }
    }

    /// The follower must begin anew behind what is trimmed: it is told the history again, and what
    /// it would not take any more is not sent.
    fn lose(&mut self, stream: StreamId) {
        self.drop_held(stream);
        self.outgoing.drop_stream(stream);
        self.outgoing.tell_history(stream);
        if let Some(place) = self.places.get_mut(&stream) {
            // What it has been sent it may still report.
            place.reached = place.next.max(place.reached);
            place.next = 0;
        }
        self.set_stage(stream, Stage::Stuck);
    }

    /// Time passes: heartbeats are due, and reads that failed are tried again.
    pub fn handle_time(&mut self, now_ns: u64) {
        self.now_ns = now_ns;
        self.outgoing.beat(now_ns);
        let is_due =
            |(stream, again_ns): (&StreamId, &u64)| (*again_ns <= now_ns).then_some(*stream);
        let due: Vec<StreamId> = self.failed.iter().filter_map(is_due).collect();
        due.into_iter().for_each(|stream| self.want_read(stream));
    }

    /// The follower has said something.
    pub fn note_time(&mut self, now_ns: u64) {
        self.now_ns = now_ns;
    }

    pub fn note_round_trip(&mut self, began_ns: u64, now_ns: u64) {
        self.round_trip_ns = now_ns.checked_sub(began_ns);
    }

    pub fn note_took(&mut self, took_ns: u64) {
        self.took_ns = Some(took_ns);
    }

    // What is sealed.

    /// A frame that has just been sealed: now, later, or from the segment.
    pub fn push_sealed(&mut self, frame: &FrameSlice, batch: u64) {
        let Some(place) = self.places.get_mut(&frame.stream) else { return };
        let (base, end) = (frame.base_offset, end_of(frame));
        match &mut place.stage {
            Stage::Told | Stage::Behind | Stage::Stuck => return,
            Stage::Live if end <= place.next => return,
            Stage::Live if base == place.next => {
                place.next = end;
                let queued = self.outgoing.keep(frame, batch);
                self.outgoing.push(queued);
            }
            Stage::Live => {
                let queued = self.outgoing.keep(frame, batch);
                self.set_stage(frame.stream, Stage::Joining(VecDeque::from([queued])));
                self.want_read(frame.stream);
            }
            Stage::Joining(held) => held.push_back(self.outgoing.keep(frame, batch)),
        }
        if self.outgoing.is_over_window() {
            self.drop_frames();
        }
    }

    /// Gives up every frame that keeps its buffer and is not being written: it is read again.
    fn drop_frames(&mut self) {
        let first = self.outgoing.drop_kept();
        let is_joining = |place: &Place| matches!(place.stage, Stage::Joining(_));
        let all = self.places.iter();
        let joining: Vec<StreamId> =
            all.filter(|(_, place)| is_joining(place)).map(|(stream, _)| *stream).collect();
        joining.into_iter().for_each(|stream| self.fall_behind(stream));
        for (stream, base) in first {
            let Some(place) = self.places.get_mut(&stream) else { continue };
            if matches!(place.stage, Stage::Stuck) {
                continue;
            }
            // The follower may have asked for more than that since they were queued.
            place.reached = place.reached.max(place.next);
            place.next = place.next.min(base);
            self.set_stage(stream, Stage::Behind);
            self.want_read(stream);
        }
    }

    /// A stream is read from segments again, from where it is.
    pub fn fall_behind(&mut self, stream: StreamId) {
        self.drop_held(stream);
        let Some(place) = self.places.get_mut(&stream) else { return };
        if matches!(place.stage, Stage::Live | Stage::Joining(_)) {
            self.set_stage(stream, Stage::Behind);
        }
        self.want_read(stream);
    }

    /// What nothing else has shown.
    pub fn check_end(&mut self, stream: StreamId, end: u64) {
        let place = self.places.get(&stream);
        if place.is_some_and(|place| place.stage.is_live() && place.next < end) {
            self.fall_behind(stream);
        }
    }

    // What is wanted and read.

    /// The follower wants a stream from here on. Whether this is the answer to its history, and so
    /// the follower's durable end.
    pub fn want(&mut self, stream: StreamId, from: u64, sealed: u64) -> bool {
        self.drop_held(stream);
        self.failed.remove(&stream);
        let Some(place) = self.places.get_mut(&stream) else { return false };
        let is_first = matches!(place.stage, Stage::Told);
        place.reached = place.reached.max(place.next);
        place.next = from;
        if from == sealed {
            self.set_stage(stream, Stage::Live);
        } else {
            self.set_stage(stream, Stage::Behind);
            self.want_read(stream);
        }
        is_first
    }

    /// Up to where a stream is in the queue; `None` when the follower has not asked for it.
    pub fn queued_until(&self, stream: StreamId) -> Option<u64> {
        let place = self.places.get(&stream)?;
        (!matches!(place.stage, Stage::Told)).then(|| place.next.max(place.reached))
    }

    /// A stream that is read waits for its turn, also when a read of it has just failed.
    fn want_read(&mut self, stream: StreamId) {
        self.failed.remove(&stream);
        if let Some(place) = self.places.get(&stream).filter(|place| place.stage.is_read()) {
            self.behind.entry(place.shard).or_default().insert(stream);
        }
    }

    fn stop_reading(&mut self, stream: StreamId) {
        let Some(Place { shard, .. }) = self.places.get(&stream) else { return };
        if let Some(streams) = self.behind.get_mut(shard) {
            streams.remove(&stream);
            if streams.is_empty() {
                self.behind.remove(shard);
            }
        }
    }

    /// A stream is not read for a while.
    fn read_later(&mut self, stream: StreamId) {
        self.stop_reading(stream);
        let again_ns = self.now_ns.saturating_add(self.limits.heartbeat_ns);
        self.failed.insert(stream, again_ns);
    }

    /// A read for all streams of a shard that are behind; shards take turns.
    pub fn poll_read(
        &mut self,
        follower: usize,
        sealed: impl Fn(StreamId) -> u64,
    ) -> Option<ReadRequest> {
        if self.is_reading || self.outgoing.has_read_enough() {
            return None;
        }
        let behind_it = (Bound::Excluded(self.read_last), Bound::Unbounded);
        let next = self.behind.range(behind_it).next().or_else(|| self.behind.first_key_value());
        let (&shard, streams) = next?;
        let wanted: Vec<_> =
            streams.iter().map(|stream| (*stream, self.places[stream].next)).collect();
        let sealed = wanted.iter().find(|(stream, next)| *next < sealed(*stream)).copied();
        (self.is_reading, self.read_last) = (true, shard);
        let (session, bytes_max) = (self.number, self.limits.read_bytes);
        Some(ReadRequest { follower, session, shard, wanted, bytes_max, sealed })
    }

    /// The end of a read; `state` tells how far a stream is sealed, and trimmed.
    pub fn take_read(
        &mut self,
        request: &ReadRequest,
        outcome: ReadOutcome,
        state: impl Fn(StreamId) -> (u64, u64),
    ) {
        self.is_reading = false;
        let ReadOutcome { frames, ended, trimmed, failed } = outcome;
        // It was waited for, and is still not durable: the disk is slow, or has failed.
        let is_vain = request.sealed.is_some()
            && (frames.is_empty() && trimmed.is_empty() && failed.is_empty());
        let ended: BTreeSet<StreamId> = ended.into_iter().collect();
        // Some may be sent as they are sealed by now, or were asked for from elsewhere meanwhile.
        let is_meant = |(stream, from): &&(StreamId, u64)| {
            let place = self.places.get(stream);
            place.is_some_and(|place| place.stage.is_read() && place.next == *from)
        };
        let meant: BTreeMap<_, _> = request.wanted.iter().filter(is_meant).copied().collect();
        for frame in frames.iter().filter(|frame| meant.contains_key(&frame.stream)) {
            self.push_read(frame);
        }
        for (&stream, &from) in &meant {
            let (is_ended, (sealed, _)) = (ended.contains(&stream), state(stream));
            if is_ended || self.places[&stream].next > from {
                self.join(stream, is_ended, sealed);
            }
            let place = &self.places[&stream];
            if is_vain && is_ended && place.stage.is_read() {
                self.read_later(stream);
            }
        }
        let trimmed = trimmed.into_iter().map(|(stream, _)| stream);
        for stream in trimmed.chain(failed).filter(|stream| meant.contains_key(stream)) {
            let place = &self.places[&stream];
            if !place.stage.is_read() {
                continue;
            }
            if place.next < state(stream).1 {
                self.lose(stream);
            } else {
                self.drop_held(stream);
                self.outgoing.counts.reads_failed += 1;
                self.read_later(stream);
            }
        }
    }

    fn push_read(&mut self, frame: &FrameSlice) {
        let Some(place) = self.places.get_mut(&frame.stream) else { return };
        assert_eq!(frame.base_offset, place.next, "a read is without a gap");
        place.next = end_of(frame);
        self.outgoing.push_read(frame);
    }

    /// Goes on with what is sealed, where the read has reached that.
    fn join(&mut self, stream: StreamId, at_end: bool, sealed: u64) {
        let Some(place) = self.places.get_mut(&stream) else { return };
        match &mut place.stage {
            Stage::Behind if at_end && place.next >= sealed => self.set_stage(stream, Stage::Live),
            Stage::Joining(held) => {
                while held.front().is_some_and(|queued| queued.end <= place.next) {
                    held.pop_front().iter().for_each(|queued| self.outgoing.release(queued));
                }
                if held.front().is_some_and(|queued| queued.base != place.next) {
                    return self.want_read(stream);
                }
                place.next = held.back().map_or(place.next, |last| last.end);
                let held = std::mem::take(held);
                held.into_iter().for_each(|queued| self.outgoing.push(queued));
                self.set_stage(stream, Stage::Live);
            }
            _ => self.want_read(stream),
        }
    }

    fn drop_held(&mut self, stream: StreamId) {
        let Some(place) = self.places.get_mut(&stream) else { return };
        if let Stage::Joining(held) = &mut place.stage {
            let held = std::mem::take(held);
            self.set_stage(stream, Stage::Behind);
            held.iter().for_each(|queued| self.outgoing.drop_frame(queued));
        }
    }

    // What is sent.

    pub fn poll_send(
        &mut self,
        slices_max: usize,
        now_ns: u64,
        history: &impl Fn(StreamId) -> Option<History>,
    ) -> Vec<Bytes> {
        self.now_ns = now_ns;
        self.outgoing.poll(slices_max, now_ns, history)
    }
}
