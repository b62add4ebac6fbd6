//! The leader's side of every session: what each follower gets next. A core without I/O.
//!
//! Polling order: after each `handle_*`, [`Leader::poll_read`] until there is none, and
//! [`Leader::poll_send`] for each follower whose connection is free.

mod session;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use ringwal_engine::{EpochStart, EpochTable, FrameSlice, StreamId};

use crate::history::Held;
use crate::progress::Progress;
use crate::wire::{History, Message};
use session::Session;
pub use session::{SessionCounts, SessionState};

/// What a leader grants each follower.
#[derive(Copy, Clone, Debug)]
pub struct Limits {
    /// Bytes of frames that wait for a follower in memory; beyond it the follower is behind.
    pub window_bytes: usize,
    /// Batch buffers that such frames may keep from their pool.
    pub window_buffers: usize,
    /// Bytes of one read from segments, and of what is handed to the connection at once.
    pub read_bytes: usize,
    /// A session that has sent nothing for so long sends a heartbeat, in nanoseconds.
    pub heartbeat_ns: u64,
}

/// A read of segments that a follower needs.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct ReadRequest {
    /// Which follower.
    pub follower: usize,
    /// Which of its sessions; an outcome for an older one is forgotten.
    pub session: u64,
    /// Which stream.
    pub stream: StreamId,
    /// From which offset on.
    pub from: u64,
    /// How many bytes, about.
    pub bytes_max: usize,
    /// Records from there on have been sealed: they are worth a short wait until they are durable.
    pub is_sealed: bool,
}

/// What came of a read.
#[derive(Clone, Debug)]
pub enum ReadOutcome {
    /// Frames from the wanted offset on.
    Frames {
        /// In order, without a gap.
        frames: Vec<FrameSlice>,
        /// Nothing more was durable.
        at_end: bool,
    },
    /// It has been trimmed.
    Trimmed {
        /// First offset that is left.
        trimmed: u64,
    },
    /// It cannot be read.
    Failed,
}

/// A follower has done what no follower does: its connection is to be dropped.
#[derive(Clone, Eq, PartialEq, Debug, thiserror::Error)]
#[error("the follower {0}")]
pub struct Violation(pub String);

/// Leads one epoch.
#[derive(Debug)]
pub struct Leader {
    epoch: u64,
    limits: Limits,
    streams: BTreeMap<StreamId, Led>,
    followers: Vec<Option<Session>>,
    sessions_begun: u64,
    progress: Progress,
    /// Streams of which enough followers have more, until they are polled.
    risen: VecDeque<(StreamId, u64)>,
    batches: u64,
}

/// What the leader has of a stream.
#[derive(Debug)]
struct Led {
    shard: u16,
    trimmed: u64,
    /// Its own epoch is the last, from where the stream ended when that began.
    epochs: EpochTable,
    /// End of the last frame that was seen when it was sealed; what is durable may be further.
    sealed: u64,
}

impl Led {
    /// A majority counts only with a record of the present epoch: an older one may still be cut by
    /// a leader who has not seen it (figure 8 of the Raft paper).
    fn countable(&self, enough: u64) -> Option<u64> {
        (enough > self.epochs.last().start).then_some(enough)
    }

    fn history(&self, stream: StreamId) -> History {
        History { stream, trimmed: self.trimmed, epochs: self.epochs.clone() }
    }
}

impl Leader {
    /// Begins an epoch with the streams as they are. Nothing is being appended.
    pub fn new(
        epoch: u64,
        followers: usize,
        limits: Limits,
        streams: impl IntoIterator<Item = (StreamId, u16, Held)>,
    ) -> Self {
        let lead = |(stream, shard, held): (StreamId, u16, Held)| {
            let Held { trimmed, end, mut epochs } = held;
            epochs.begin(EpochStart { epoch, start: end }, trimmed);
            (stream, Led { shard, trimmed, epochs, sealed: end })
        };
        Self {
            epoch,
            limits,
            streams: streams.into_iter().map(lead).collect(),
            followers: std::iter::repeat_with(|| None).take(followers).collect(),
            sessions_begun: 0,
            progress: Progress::new(followers),
            risen: VecDeque::new(),
            batches: 0,
        }
    }

    /// In which epoch.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// What the followers have.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// A session with a follower begins: it is told what there is. Its number.
    pub fn handle_connected(&mut self, follower: usize, now_ns: u64) -> u64 {
        self.sessions_begun += 1;
        self.progress.forget(follower);
        let mut session = Session::new(self.sessions_begun, self.limits, now_ns);
        let histories = self.streams.iter().map(|(stream, led)| led.history(*stream)).collect();
        session.tell(Message::Histories(histories));
        session.tell(Message::HistoriesEnd);
        self.followers[follower] = Some(session);
        self.sessions_begun
    }

    /// A session has ended, one way or another: what it has counted.
    pub fn handle_disconnected(&mut self, follower: usize) -> SessionCounts {
        self.followers[follower].take().map_or_else(SessionCounts::default, |s| s.state().counts)
    }

    /// Frames of one batch, in the order of their shard.
    pub fn handle_sealed(&mut self, shard: u16, frames: &[FrameSlice]) {
        self.batches += 1;
        for frame in frames {
            let end = frame.base_offset + u64::from(frame.count);
            let epoch = self.epoch;
            let sessions = &mut self.followers;
            let led = self.streams.entry(frame.stream).or_insert_with(|| {
                let epochs = EpochTable::from_entries(vec![EpochStart { epoch, start: 0 }]);
                let epochs = epochs.expect("one entry is in order");
                let led = Led { shard, trimmed: 0, epochs, sealed: 0 };
                for session in sessions.iter_mut().flatten() {
                    session.begin_stream(led.history(frame.stream));
                }
                led
            });
            led.sealed = led.sealed.max(end);
            for session in self.followers.iter_mut().flatten() {
                session.push_sealed(frame, self.batches);
            }
        }
    }

    /// Frames of a shard were sealed and not handed over.
    pub fn handle_lagged(&mut self, shard: u16) {
        let of_shard: Vec<StreamId> =
            self.streams.iter().filter(|(_, led)| led.shard == shard).map(|(id, _)| *id).collect();
        for session in self.followers.iter_mut().flatten() {
            of_shard.iter().for_each(|stream| session.fall_behind(*stream));
        }
    }

    /// The durable end of a stream, looked at from time to time: what nothing else has shown is
    /// found by it.
    pub fn handle_durable_end(&mut self, stream: StreamId, end: u64) {
        for session in self.followers.iter_mut().flatten() {
            session.check_end(stream, end);
        }
    }

    /// Records of a stream were trimmed.
    pub fn handle_trimmed(&mut self, stream: StreamId, before: u64) {
        let Some(led) = self.streams.get_mut(&stream) else { return };
        led.trimmed = led.trimmed.max(before);
        led.epochs.trim(led.trimmed);
        let told = [(stream, led.trimmed)];
        self.followers.iter_mut().flatten().for_each(|session| session.tell_trimmed(&told));
    }

    /// A message of a follower.
    ///
    /// # Errors
    /// When no follower says that.
    pub fn handle_message(
        &mut self,
        follower: usize,
        message: Message,
        now_ns: u64,
    ) -> Result<(), Violation> {
        let Some(session) = &mut self.followers[follower] else { return Ok(()) };
        match message {
            Message::Want(wants) => {
                for (stream, from) in wants {
                    let Some(led) = self.streams.get(&stream) else {
                        if from == 0 {
                            // It has cut a stream that is not there: told when there is one.
                            continue;
                        }
                        let what = format!("wants stream {stream}, of which it was not told");
                        return Err(Violation(what));
                    };
                    let is_first = session.want(stream, from, led.sealed);
                    if is_first && let Some(enough) = self.progress.report(follower, stream, from) {
                        self.risen.extend(led.countable(enough).map(|enough| (stream, enough)));
                    }
                }
            }
            Message::Durable { ends, .. } => {
                for (stream, end) in ends {
                    let sent = session.queued_until(stream).ok_or_else(|| {
                        Violation(format!("reports stream {stream}, which it was not sent"))
                    })?;
                    if end > sent {
                        let what = format!("reports {end} of stream {stream}, sent up to {sent}");
                        return Err(Violation(what));
                    }
                    if let (Some(enough), Some(led)) =
                        (self.progress.report(follower, stream, end), self.streams.get(&stream))
                    {
                        self.risen.extend(led.countable(enough).map(|enough| (stream, enough)));
                    }
                }
            }
            Message::Heartbeat { time_ns } => session.answer(time_ns),
            Message::HeartbeatAnswer { time_ns } => session.note_round_trip(time_ns, now_ns),
            Message::Leaving { .. } => {}
            Message::Histories(_)
            | Message::HistoriesEnd
            | Message::Committed(_)
            | Message::Trimmed(_) => {
                return Err(Violation("speaks as a leader".into()));
            }
        }
        Ok(())
    }

    /// The end of a read.
    pub fn handle_read(&mut self, request: ReadRequest, outcome: ReadOutcome) {
        let Some(session) = &mut self.followers[request.follower] else { return };
        if session.number() != request.session {
            return;
        }
        let Some(led) = self.streams.get_mut(&request.stream) else { return };
        if let ReadOutcome::Trimmed { trimmed } = outcome {
            led.trimmed = led.trimmed.max(trimmed);
            led.epochs.trim(led.trimmed);
            session.lose(led.history(request.stream));
            return;
        }
        session.take_read(request, outcome, led.sealed);
    }

    /// Sessions that have been silent for a while say that they are there.
    pub fn handle_time(&mut self, now_ns: u64) {
        self.followers.iter_mut().flatten().for_each(|session| session.beat(now_ns));
    }

    /// Tells every follower what is committed.
    pub fn tell_committed(&mut self, ends: &[(StreamId, u64)]) {
        self.followers.iter_mut().flatten().for_each(|session| session.tell_committed(ends));
    }

    /// A read that is needed next.
    pub fn poll_read(&mut self) -> Option<ReadRequest> {
        let streams = &self.streams;
        self.followers.iter_mut().enumerate().find_map(|(follower, session)| {
            let sealed = |stream| streams.get(&stream).map_or(0, |led| led.sealed);
            session.as_mut()?.poll_read(follower, sealed)
        })
    }

    /// Slices for a follower's connection, in order, at most `slices_max`; all of them are written
    /// before more are asked for, see [`Leader::handle_sent`].
    pub fn poll_send(&mut self, follower: usize, slices_max: usize, now_ns: u64) -> Vec<Bytes> {
        self.followers[follower].as_mut().map_or_else(Vec::new, |s| s.poll_send(slices_max, now_ns))
    }

    /// What was polled last for this follower has been written.
    pub fn handle_sent(&mut self, follower: usize) {
        if let Some(session) = &mut self.followers[follower] {
            session.handle_sent();
        }
    }

    /// A stream of which enough followers have more than before, and how much.
    pub fn poll_risen(&mut self) -> Option<(StreamId, u64)> {
        self.risen.pop_front()
    }

    /// What a follower's session is like; `None` when there is none.
    pub fn session(&self, follower: usize) -> Option<SessionState> {
        self.followers[follower].as_ref().map(Session::state)
    }
}
