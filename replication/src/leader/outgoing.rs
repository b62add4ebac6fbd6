//! What waits to be sent to one follower: frames within its window, and what is to be told, of which
//! only the newest counts. However long a follower does not read, this does not grow.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use ringwal_engine::{FrameSlice, StreamId};

use super::{Limits, SessionCounts, end_of};
use crate::wire::{History, MESSAGE_BYTES_MAX, Message, PAIRS_MAX};

/// A frame that waits to be sent.
#[derive(Debug)]
pub(super) struct Queued {
    bytes: Bytes,
    pub stream: StreamId,
    pub base: u64,
    pub end: u64,
    /// The batch whose buffer it keeps; 0 when it keeps none.
    batch: u64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Outgoing {
    limits: Limits,
    queue: VecDeque<Queued>,
    /// Frames that are being written.
    sending: Vec<Queued>,
    is_sending: bool,
    /// Bytes of frames that keep their buffers: in the queue, in `sending` and held elsewhere.
    kept_bytes: usize,
    /// Bytes of frames that were read: in the queue and in `sending`.
    read_bytes: usize,
    /// Batches that keep their buffers, with the number of frames that do.
    buffers: BTreeMap<u64, usize>,
    /// Streams whose histories are to be told, before any frame.
    histories: BTreeSet<StreamId>,
    /// Pieces of those that did not fit one message.
    pieces: VecDeque<Message>,
    /// The first histories have not all been told yet.
    end_is_due: bool,
    committed: BTreeMap<StreamId, u64>,
    trimmed: BTreeMap<StreamId, u64>,
    /// The newest heartbeat that is to be answered.
    answer: Option<u64>,
    heartbeat: Option<u64>,
    last_sent_ns: u64,
    /// The last hand-over had messages: when there is room for one slice only, it is a frame's turn.
    told_last: bool,
    pub counts: SessionCounts,
}

impl Outgoing {
    /// Of a session that begins with the histories of these streams, and what of them is committed.
    pub fn new(
        limits: Limits,
        histories: BTreeSet<StreamId>,
        committed: BTreeMap<StreamId, u64>,
        now_ns: u64,
    ) -> Self {
        Self {
            limits,
            queue: VecDeque::new(),
            sending: Vec::new(),
            is_sending: false,
            kept_bytes: 0,
            read_bytes: 0,
            buffers: BTreeMap::new(),
            histories,
            pieces: VecDeque::new(),
            end_is_due: true,
            committed,
            trimmed: BTreeMap::new(),
            answer: None,
            heartbeat: None,
            last_sent_ns: now_ns,
            told_last: false,
            counts: SessionCounts::default(),
        }
    }

    /// Bytes of frames that wait, or are being written.
    pub fn bytes(&self) -> usize {
        self.kept_bytes + self.read_bytes
    }

    /// Whether enough that was read waits: one read's worth is sent while the next is made.
    pub fn has_read_enough(&self) -> bool {
        self.read_bytes >= 2 * self.limits.read_bytes
    }

    // Messages.

    /// Tells a history, anew when it has been told before.
    pub fn tell_history(&mut self, stream: StreamId) {
        self.histories.insert(stream);
    }

    /// Whether the histories that a session begins with are still being told.
    pub fn is_beginning(&self) -> bool {
        self.end_is_due
    }

    /// Tells what is committed.
    pub fn tell_committed(&mut self, ends: impl IntoIterator<Item = (StreamId, u64)>) {
        self.committed.extend(ends);
    }

    /// Tells what is trimmed.
    pub fn tell_trimmed(&mut self, stream: StreamId, before: u64) {
        self.trimmed.insert(stream, before);
    }

    /// Answers a heartbeat.
    pub fn answer(&mut self, time_ns: u64) {
        self.answer = Some(time_ns);
    }

    /// Says that it is there, after a silence.
    pub fn beat(&mut self, now_ns: u64) {
        let is_due = now_ns.saturating_sub(self.last_sent_ns) >= self.limits.heartbeat_ns;
        if is_due && self.queue.is_empty() && !self.is_sending {
            self.heartbeat = Some(now_ns);
        }
    }

    fn tells_histories(&self) -> bool {
        self.end_is_due || !self.histories.is_empty() || !self.pieces.is_empty()
    }

    /// Histories first: no frame may come before the history of its stream, and nothing may be
    /// said of a stream that was not named.
    fn next_message(&mut self, history: &impl Fn(StreamId) -> Option<History>) -> Option<Message> {
        if self.pieces.is_empty() && !self.histories.is_empty() {
            self.take_histories(history);
        }
        if let Some(piece) = self.pieces.pop_front() {
            return Some(piece);
        }
        if std::mem::take(&mut self.end_is_due) {
            return Some(Message::HistoriesEnd);
        }
        if let Some(time_ns) = self.answer.take() {
            return Some(Message::HeartbeatAnswer { time_ns });
        }
        if !self.committed.is_empty() {
            return Some(Message::Committed(take_some(&mut self.committed)));
        }
        if !self.trimmed.is_empty() {
            return Some(Message::Trimmed(take_some(&mut self.trimmed)));
        }
        self.heartbeat.take().map(|time_ns| Message::Heartbeat { time_ns })
    }

    /// As many histories as fit a message; one that is longer makes several.
    fn take_histories(&mut self, history: &impl Fn(StreamId) -> Option<History>) {
        let (mut told, mut bytes) = (Vec::new(), 0);
        while bytes < MESSAGE_BYTES_MAX / 2
            && let Some(stream) = self.histories.pop_first()
        {
            let Some(history) = history(stream) else { continue };
            bytes += history.bytes();
            told.push(history);
        }
        self.pieces.extend(Message::Histories(told).pieces());
    }

    // Frames.

    /// A sealed frame, counted against the window from now on.
    pub fn keep(&mut self, frame: &FrameSlice, batch: u64) -> Queued {
        self.kept_bytes += frame.bytes.len();
        *self.buffers.entry(batch).or_default() += 1;
        queued(frame, batch)
    }

    /// Whether frames keep more than the follower is granted.
    pub fn is_over_window(&self) -> bool {
        self.kept_bytes > self.limits.window_bytes
            || self.buffers.len() > self.limits.window_buffers
    }

    /// To be sent behind everything that waits.
    pub fn push(&mut self, queued: Queued) {
        self.queue.push_back(queued);
    }

    /// As [`Outgoing::push`], of a frame that was read.
    pub fn push_read(&mut self, frame: &FrameSlice) {
        self.read_bytes += frame.bytes.len();
        self.counts.bytes_read += frame.bytes.len() as u64;
        self.counts.frames_read += 1;
        self.queue.push_back(queued(frame, 0));
    }

    /// A frame that will not be sent.
    pub fn drop_frame(&mut self, queued: &Queued) {
        self.counts.frames_dropped += 1;
        self.counts.bytes_dropped += queued.bytes.len() as u64;
        self.release(queued);
    }

    /// Drops every frame that keeps its buffer and is not being written: each stream with the offset
    /// of the first that is gone.
    pub fn drop_kept(&mut self) -> BTreeMap<StreamId, u64> {
        let mut first = BTreeMap::new();
        for queued in self.drop_where(|queued| queued.batch != 0) {
            first.entry(queued.stream).or_insert(queued.base);
        }
        first
    }

    /// Drops what waits of a stream.
    pub fn drop_stream(&mut self, stream: StreamId) {
        self.drop_where(|queued| queued.stream == stream);
    }

    fn drop_where(&mut self, which: impl Fn(&Queued) -> bool) -> Vec<Queued> {
        let (dropped, left): (Vec<_>, VecDeque<_>) = {
            let mut dropped = Vec::new();
            let mut left = VecDeque::with_capacity(self.queue.len());
            for queued in self.queue.drain(..) {
                if which(&queued) { dropped.push(queued) } else { left.push_back(queued) }
            }
            (dropped, left)
        };
        self.queue = left;
        dropped.iter().for_each(|queued| self.drop_frame(queued));
        dropped
    }

    /// Forgets a frame that needs not be sent, or has been.
    pub fn release(&mut self, queued: &Queued) {
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

    // The connection.

    /// What is written next. Messages and frames both get their turn, whatever waits.
    pub fn poll(
        &mut self,
        slices_max: usize,
        now_ns: u64,
        history: &impl Fn(StreamId) -> Option<History>,
    ) -> Vec<Bytes> {
        assert!(!self.is_sending, "one hand-over at a time");
        let for_messages = match self.queue.is_empty() || self.tells_histories() {
            true => slices_max,
            false => (slices_max / 2).max(usize::from(!self.told_last)),
        };
        let mut slices = Vec::new();
        while slices.len() < for_messages
            && let Some(message) = self.next_message(history)
        {
            slices.push(Bytes::from(message.encode()));
        }
        self.told_last = !slices.is_empty();
        if !self.tells_histories() {
            self.poll_frames(slices_max, &mut slices);
        }
        if !slices.is_empty() {
            self.is_sending = true;
            self.last_sent_ns = now_ns;
            self.counts.sends += 1;
        }
        slices
    }

    fn poll_frames(&mut self, slices_max: usize, slices: &mut Vec<Bytes>) {
        let mut bytes = 0;
        while slices.len() < slices_max && bytes < self.limits.read_bytes {
            let Some(queued) = self.queue.pop_front() else { break };
            bytes += queued.bytes.len();
            self.counts.frames += 1;
            self.counts.bytes += queued.bytes.len() as u64;
            slices.push(queued.bytes.clone());
            self.sending.push(queued);
        }
    }

    /// All of it has been written.
    pub fn handle_sent(&mut self) {
        self.is_sending = false;
        for queued in std::mem::take(&mut self.sending) {
            self.release(&queued);
        }
    }
}

fn queued(frame: &FrameSlice, batch: u64) -> Queued {
    let (base, end) = (frame.base_offset, end_of(frame));
    Queued { bytes: frame.bytes.clone(), stream: frame.stream, base, end, batch }
}

/// The first streams of a list, as many as fit a message.
fn take_some(ends: &mut BTreeMap<StreamId, u64>) -> Vec<(StreamId, u64)> {
    std::iter::from_fn(|| ends.pop_first()).take(PAIRS_MAX).collect()
}
