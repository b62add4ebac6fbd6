//! The leader's side of every session: what each follower gets next. A core without I/O.
//!
//! Polling order: after each `handle_*`, [`Leader::poll_read`] until there is none, and
//! [`Leader::poll_send`] for each follower whose connection is free.

mod outgoing;
mod session;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use bytes::Bytes;
use ringwal_engine::{FramePiece, FrameSlice, ReadError, StreamId};

use crate::history::{self, Held};
use crate::progress::{Progress, Voters};
use crate::promise::is_replicated;
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
    /// Bytes of one read from segments, and of what is handed to the connection at once. Nothing more
    /// is read for a follower while twice as many wait: so up to three times as many, and a frame,
    /// are in memory beside the window.
    pub read_bytes: usize,
    /// A session that has sent nothing for so long sends a heartbeat, in nanoseconds; a read that
    /// failed is tried again after as long.
    pub heartbeat_ns: u64,
}

/// A read of a shard's segments that a follower needs, for all streams of it that are behind.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct ReadRequest {
    /// Which follower.
    pub follower: usize,
    /// Which of its sessions; an outcome for an older one is forgotten.
    pub session: u64,
    /// Which shard.
    pub shard: u16,
    /// Streams, in order, each with the offset from which on it is wanted.
    pub wanted: Vec<(StreamId, u64)>,
    /// How many bytes, about.
    pub bytes_max: usize,
    /// One of them of which records from there on have been sealed: when nothing is durable of any,
    /// it is worth a short wait.
    pub sealed: Option<(StreamId, u64)>,
}

/// What came of a read. A stream that is not in it is asked for again.
#[derive(Clone, Debug, Default)]
pub struct ReadOutcome {
    /// Of each stream from the wanted offset on, in order and without a gap.
    pub frames: Vec<FrameSlice>,
    /// Streams of which nothing more was durable.
    pub ended: Vec<StreamId>,
    /// Streams of which what is wanted has been trimmed, and the first offset that is left.
    pub trimmed: Vec<(StreamId, u64)>,
    /// Streams that cannot be read now: tried again after a while.
    pub failed: Vec<StreamId>,
}

impl From<FramePiece> for ReadOutcome {
    fn from(piece: FramePiece) -> Self {
        let (mut trimmed, mut failed) = (Vec::new(), Vec::new());
        for (stream, error) in piece.failed {
            match error {
                ReadError::Trimmed { trimmed: left, .. } => trimmed.push((stream, left)),
                _ => failed.push(stream),
            }
        }
        Self { frames: piece.frames, ended: piece.ended, trimmed, failed }
    }
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
    enough: BTreeMap<StreamId, u64>,
    batches: u64,
    /// See [`Leader::driven`].
    is_driven: bool,
}

/// What the leader has of a stream.
#[derive(Debug)]
struct Led {
    shard: u16,
    /// Its own epoch is the last, from where the stream ended when that began.
    history: History,
    /// End of the last frame that was seen when it was sealed, or was found durable; what is sealed
    /// may be further.
    sealed: u64,
    /// What is known to be committed, as the owner has told.
    committed: u64,
    /// Records and bytes of the frames that were seen, for their mean length.
    seen: (u64, u64),
}

impl Led {
    fn new(shard: u16, history: History, sealed: u64) -> Self {
        Self { shard, history, sealed, committed: 0, seen: (0, 0) }
    }

    /// A stream that was made in this epoch.
    fn begun(shard: u16, stream: StreamId, epoch: u64) -> Self {
        Self::new(shard, history::begin(stream, Held::default(), epoch), 0)
    }

    /// A majority counts only with a record of the present epoch: an older one may still be cut by
    /// a leader who has not seen it (figure 8 of the Raft paper). Where everybody who reports knows
    /// durably that the epoch has begun, all from its start on counts.
    fn countable(&self, enough: u64, has_begun: bool) -> Option<u64> {
        let start = self.history.epochs.last().start;
        (enough > start || (has_begun && enough == start)).then_some(enough)
    }

    fn trim(&mut self, trimmed: u64) {
        history::trim(&mut self.history, trimmed);
        self.sealed = self.sealed.max(trimmed);
    }

    fn see(&mut self, frames: &[FrameSlice]) {
        for frame in frames {
            self.seen.0 += u64::from(frame.count);
            self.seen.1 += frame.bytes.len() as u64;
        }
    }

    /// About how many bytes so many records are.
    fn bytes_of(&self, records: u64) -> Option<u64> {
        let (seen_records, seen_bytes) = self.seen;
        let bytes = u128::from(records) * u128::from(seen_bytes);
        match records {
            0 => Some(0),
            _ => bytes.checked_div(u128::from(seen_records))?.try_into().ok(),
        }
    }
}

impl Leader {
    /// Begins an epoch with the streams as they are. Nothing is being appended. Streams that are a
    /// node's own are left out, here and everywhere else. `followers` are all other members that
    /// are configured, connected or not.
    pub fn new(
        epoch: u64,
        followers: usize,
        limits: Limits,
        streams: impl IntoIterator<Item = (StreamId, u16, Held)>,
    ) -> Self {
        let lead = |(stream, shard, held): (StreamId, u16, Held)| {
            let end = held.end;
            (stream, Led::new(shard, history::begin(stream, held, epoch), end))
        };
        let replicated = streams.into_iter().filter(|(stream, ..)| is_replicated(*stream));
        Self {
            epoch,
            limits,
            streams: replicated.map(lead).collect(),
            followers: std::iter::repeat_with(|| None).take(followers).collect(),
            sessions_begun: 0,
            progress: Progress::new(followers),
            enough: BTreeMap::new(),
            batches: 0,
            is_driven: false,
        }
    }

    /// Of a driven node: followers that report know durably that the epoch has begun, and records may
    /// reach them another way too. So they may have more than they were sent, which does not count
    /// before it was.
    pub fn driven(self) -> Self {
        Self { is_driven: true, ..self }
    }

    /// One follower more, which is not connected; it votes when it is in a set.
    pub fn add_follower(&mut self) -> usize {
        self.followers.push(None);
        self.progress.add_follower()
    }

    /// A follower is none any more. Its number is not used again.
    pub fn remove_follower(&mut self, follower: usize) {
        self.followers[follower] = None;
        let mut changed = self.progress.forget(follower);
        changed.extend(self.progress.set_counted(follower, false));
        self.note_enough(changed);
    }

    /// Other sets of voters, by the numbers of followers.
    pub fn set_voters(&mut self, sets: Vec<Voters>) {
        let changed = self.progress.set_voters(sets);
        self.note_enough(changed);
    }

    /// In which epoch.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// How many followers there are, or have been.
    pub fn followers(&self) -> usize {
        self.followers.len()
    }

    /// What the followers have.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// A session with a follower begins: it is told what there is. What it reports counts for a
    /// majority if its disk is the one that it had, or when [`Leader::handle_counted`] says so. The
    /// number of the session.
    pub fn handle_connected(&mut self, follower: usize, counts: bool, now_ns: u64) -> u64 {
        self.sessions_begun += 1;
        let mut changed = self.progress.forget(follower);
        changed.extend(self.progress.set_counted(follower, counts));
        self.note_enough(changed);
        let streams = self.streams.iter();
        let committed = streams
            .filter(|(_, led)| led.committed > 0)
            .map(|(stream, led)| (*stream, led.committed))
            .collect();
        let streams = self.streams.iter().map(|(stream, led)| (*stream, led.shard));
        let number = self.sessions_begun;
        let session = Session::new(number, self.limits, streams, committed, now_ns);
        self.followers[follower] = Some(session);
        number
    }

    /// What a follower reports counts from now on.
    pub fn handle_counted(&mut self, follower: usize) {
        let changed = self.progress.set_counted(follower, true);
        self.note_enough(changed);
    }

    fn note_enough(&mut self, changed: impl IntoIterator<Item = (StreamId, u64)>) {
        for (stream, enough) in changed {
            if let Some(led) = self.streams.get(&stream) {
                self.enough.insert(stream, led.countable(enough, self.is_driven).unwrap_or(0));
            }
        }
    }

    /// A session has ended, one way or another: what it has counted. Nothing when it is not the
    /// present one.
    pub fn handle_disconnected(&mut self, follower: usize, session: u64) -> SessionCounts {
        let present = self.present(follower, session).map(|session| session.outgoing.counts);
        if present.is_some() {
            self.followers[follower] = None;
        }
        present.unwrap_or_default()
    }

    /// The session of a follower, when it is the one with this number.
    fn present(&mut self, follower: usize, session: u64) -> Option<&mut Session> {
        self.followers[follower].as_mut().filter(|present| present.number() == session)
    }

    /// The stream, begun when nothing was known of it.
    fn begin_stream(&mut self, stream: StreamId, shard: u16) -> &mut Led {
        let (epoch, sessions) = (self.epoch, &mut self.followers);
        self.streams.entry(stream).or_insert_with(|| {
            sessions.iter_mut().flatten().for_each(|session| session.begin_stream(stream, shard));
            Led::begun(shard, stream, epoch)
        })
    }

    /// Frames of one batch, in the order of their shard.
    pub fn handle_sealed(&mut self, shard: u16, frames: &[FrameSlice]) {
        self.batches += 1;
        for frame in frames.iter().filter(|frame| is_replicated(frame.stream)) {
            let led = self.begin_stream(frame.stream, shard);
            led.sealed = led.sealed.max(end_of(frame));
            led.see(std::slice::from_ref(frame));
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
    /// found by it, also a stream all of whose frames were missed.
    pub fn handle_durable_end(&mut self, stream: StreamId, shard: u16, end: u64) {
        if end == 0 || !is_replicated(stream) {
            return;
        }
        let led = self.begin_stream(stream, shard);
        led.sealed = led.sealed.max(end);
        for session in self.followers.iter_mut().flatten() {
            session.check_end(stream, end);
        }
    }

    /// Records of a stream were trimmed.
    pub fn handle_trimmed(&mut self, stream: StreamId, before: u64) {
        let Some(led) = self.streams.get_mut(&stream) else { return };
        led.trim(before);
        let trimmed = led.history.trimmed;
        for session in self.followers.iter_mut().flatten() {
            session.outgoing.tell_trimmed(stream, trimmed);
        }
    }

    /// A message of a follower, that came in the session with this number; of an older one it is
    /// forgotten.
    ///
    /// # Errors
    /// When no follower says that: the session is to be ended.
    pub fn handle_message(
        &mut self,
        follower: usize,
        session: u64,
        message: Message,
        now_ns: u64,
    ) -> Result<(), Violation> {
        let Some(present) = self.present(follower, session) else { return Ok(()) };
        present.note_time(now_ns);
        match message {
            Message::Want(wants) => {
                wants.into_iter().try_for_each(|(stream, from)| self.want(follower, stream, from))
            }
            Message::Durable { took_ns, ends } => {
                present.note_took(took_ns);
                ends.into_iter().try_for_each(|(stream, end)| self.report(follower, stream, end))
            }
            Message::Heartbeat { time_ns } => {
                present.outgoing.answer(time_ns);
                Ok(())
            }
            Message::HeartbeatAnswer { time_ns } => {
                present.note_round_trip(time_ns, now_ns);
                Ok(())
            }
            Message::Leaving { .. } => Ok(()),
            Message::Histories(_)
            | Message::HistoriesEnd
            | Message::Committed(_)
            | Message::Trimmed(_) => Err(Violation("speaks as a leader".into())),
            Message::Fetch(_) | Message::Fetched { .. } => {
                Err(Violation("speaks of a repair".into()))
            }
            Message::Request(_) | Message::Reply(_) | Message::NoReply { .. } => {
                Err(Violation("asks where nobody is asked".into()))
            }
        }
    }

    fn want(&mut self, follower: usize, stream: StreamId, from: u64) -> Result<(), Violation> {
        let Some(session) = &mut self.followers[follower] else { return Ok(()) };
        let Some(led) = self.streams.get(&stream) else {
            if from == 0 && is_replicated(stream) {
                // It has cut a stream that is not there: told when there is one.
                return Ok(());
            }
            return Err(Violation(format!("wants stream {stream}, of which it was not told")));
        };
        let from = if self.is_driven { from.min(led.sealed) } else { from };
        if from > led.sealed {
            let sealed = led.sealed;
            let what = format!("wants stream {stream} from {from} on, which ends at {sealed}");
            return Err(Violation(what));
        }
        if session.want(stream, from, led.sealed) {
            self.count(follower, stream, from);
        }
        Ok(())
    }

    fn report(&mut self, follower: usize, stream: StreamId, end: u64) -> Result<(), Violation> {
        let Some(session) = &self.followers[follower] else { return Ok(()) };
        let Some(sent) = session.queued_until(stream) else {
            if self.is_driven {
                // It says so again when that is sent.
                return Ok(());
            }
            return Err(Violation(format!("reports stream {stream}, which it was not sent")));
        };
        let end = if self.is_driven { end.min(sent) } else { end };
        if end > sent {
            let what = format!("reports {end} of stream {stream}, sent up to {sent}");
            return Err(Violation(what));
        }
        self.count(follower, stream, end);
        Ok(())
    }

    /// A follower has this much of a stream on its device.
    fn count(&mut self, follower: usize, stream: StreamId, end: u64) {
        let enough = self.progress.report(follower, stream, end);
        self.note_enough(enough.map(|enough| (stream, enough)));
    }

    /// The end of a read.
    pub fn handle_read(&mut self, request: &ReadRequest, outcome: ReadOutcome) {
        for (stream, trimmed) in &outcome.trimmed {
            if let Some(led) = self.streams.get_mut(stream) {
                led.trim(*trimmed);
            }
        }
        for frame in &outcome.frames {
            if let Some(led) = self.streams.get_mut(&frame.stream) {
                // What is read is durable, also where its frames are still to be handed over.
                led.sealed = led.sealed.max(end_of(frame));
                led.see(std::slice::from_ref(frame));
            }
        }
        let (streams, sessions) = (&self.streams, &mut self.followers);
        let present = sessions[request.follower].as_mut();
        if let Some(session) = present.filter(|session| session.number() == request.session) {
            let state = |stream| {
                streams.get(&stream).map_or((0, 0), |led| (led.sealed, led.history.trimmed))
            };
            session.take_read(request, outcome, state);
        }
    }

    /// Time passes: sessions that have been silent for a while say that they are there, and reads
    /// that failed are tried again.
    pub fn handle_time(&mut self, now_ns: u64) {
        self.followers.iter_mut().flatten().for_each(|session| session.handle_time(now_ns));
    }

    /// Tells every follower what is committed: those that are connected, and whoever will be.
    pub fn tell_committed(&mut self, ends: &[(StreamId, u64)]) {
        for (stream, end) in ends {
            let Some(led) = self.streams.get_mut(stream) else { continue };
            led.committed = led.committed.max(*end);
            let told = [(*stream, led.committed)];
            for session in self.followers.iter_mut().flatten() {
                session.outgoing.tell_committed(told);
            }
        }
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
        let streams = &self.streams;
        let history = |stream| streams.get(&stream).map(|led| led.history.clone());
        let session = self.followers[follower].as_mut();
        session.map_or_else(Vec::new, |session| session.poll_send(slices_max, now_ns, &history))
    }

    /// What was polled last in this session has been written.
    pub fn handle_sent(&mut self, follower: usize, session: u64) {
        if let Some(session) = self.present(follower, session) {
            session.outgoing.handle_sent();
        }
    }

    /// A stream of which enough followers have more than before, or less, and how much.
    pub fn poll_enough(&mut self) -> Option<(StreamId, u64)> {
        self.enough.pop_first()
    }

    /// What a follower's session is like; `None` when there is none. Looks at every stream.
    pub fn session(&self, follower: usize) -> Option<SessionState> {
        let session = self.followers[follower].as_ref()?;
        let (mut records, mut bytes) = (0, Some(0));
        for (stream, led) in &self.streams {
            let has = self.progress.end(follower, *stream).max(led.history.trimmed);
            let missing = led.sealed.saturating_sub(has);
            records += missing;
            let more = led.bytes_of(missing);
            bytes = bytes.and_then(|bytes: u64| Some(bytes.saturating_add(more?)));
        }
        Some(session.state(records, bytes))
    }
}

fn end_of(frame: &FrameSlice) -> u64 {
    frame.base_offset + u64::from(frame.count)
}
