//! Reading durable records: by offset, and as they come. Runs on the reader's own thread with its
//! own reads; writes nothing and believes no byte before its checksum.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Wake as TaskWake, Waker};
use std::thread::{Thread, ThreadId};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::disk::{BLOCK_BYTES, Buffer, BufferMut, FileId, block_round_up};
use crate::error::ReadError;
use crate::footer::{read_entries, read_runs};
use crate::format::{
    DATA_START, ENTRY_BYTES, FRAME_HEADER_BYTES, FooterHeader, FormatError, FrameHeader, FrameKind,
    RECORD_PREFIX_BYTES, RUN_BYTES, SegmentSeed, VerifiedFrame,
};
use crate::index::{Entry, LocatedFrames, Location, NoLocation, SealedIndex};
use crate::segments::segment_name;
use crate::shared::Shared;
use crate::stream::StreamId;

/// Bytes read at once when the frames that follow lie close together.
const READ_AHEAD_BYTES: u64 = 256 << 10;
/// Frames of other streams between two of this one that are read along rather than skipped.
const READ_GAP_BYTES: u64 = 8 << 10;

/// A durable record. Its payload is a slice of the block that was read; nothing is copied.
#[derive(Clone, Debug)]
pub struct Record {
    stream: StreamId,
    epoch: u64,
    offset: u64,
    timestamp_ns: u64,
    payload: Bytes,
}

impl Record {
    /// Its stream.
    pub fn stream(&self) -> StreamId {
        self.stream
    }

    /// The epoch that wrote it.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Its offset in the stream.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Wall clock when its batch was sealed, nanoseconds since 1970. Information only.
    pub fn timestamp_ns(&self) -> u64 {
        self.timestamp_ns
    }

    /// Its bytes.
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// Its bytes, to keep.
    pub fn into_bytes(self) -> Bytes {
        self.payload
    }
}

/// A frame that was read and verified, on its way to be taken apart.
#[derive(Clone, Debug)]
struct ReadFrame {
    header: FrameHeader,
    /// Header and payload.
    bytes: Bytes,
    /// Offset of the next record.
    next: u64,
    /// Byte of that record in `bytes`.
    at: usize,
    /// Offset at which this frame stops to count.
    end: u64,
}

/// A block of a segment that was read.
#[derive(Debug)]
struct Chunk {
    generation: u64,
    from: u64,
    buffer: Buffer,
    length: usize,
}

/// Reads the records of one stream in order.
pub(crate) struct Reader {
    shared: Arc<Shared>,
    stream: StreamId,
    next: u64,
    frame: Option<ReadFrame>,
    /// Frames that follow, of the span being read.
    entries: VecDeque<Entry>,
    location: Option<Location>,
    chunk: Option<Chunk>,
    /// Length of the last frame.
    frame_bytes: usize,
}

/// Bytes that were not what the index promised.
enum Broken {
    /// The segment has been freed or cut meanwhile: look again.
    Stale,
    Error(ReadError),
}

impl Reader {
    pub(crate) fn new(shared: Arc<Shared>, stream: StreamId, next: u64) -> Self {
        let (entries, location) = (VecDeque::new(), None);
        Self { shared, stream, next, frame: None, entries, location, chunk: None, frame_bytes: 0 }
    }

    /// Offset of the record that comes next.
    pub(crate) fn next_offset(&self) -> u64 {
        self.next
    }

    /// Goes on at another offset.
    pub(crate) fn seek(&mut self, next: u64) {
        self.next = next;
        self.frame = None;
        self.entries.clear();
    }

    /// The next record, or `None` when it is not durable yet.
    pub(crate) fn read_next(&mut self) -> Result<Option<Record>, ReadError> {
        loop {
            if let Some(record) = self.take_from_frame() {
                return Ok(Some(record));
            }
            match self.load_frame() {
                Ok(true) => {}
                Ok(false) => return Ok(None),
                Err(Broken::Stale) => {
                    self.entries.clear();
                    self.chunk = None;
                }
                Err(Broken::Error(error)) => return Err(error),
            }
        }
    }

    fn take_from_frame(&mut self) -> Option<Record> {
        let frame = self.frame.as_mut()?;
        if frame.next >= frame.end || frame.next != self.next {
            self.frame = None;
            return None;
        }
        let prefix = &frame.bytes[frame.at..frame.at + RECORD_PREFIX_BYTES];
        let length = u32::from_le_bytes(prefix.try_into().expect("four bytes")) as usize;
        let start = frame.at + RECORD_PREFIX_BYTES;
        let record = Record {
            stream: self.stream,
            epoch: frame.header.epoch.get(),
            offset: frame.next,
            timestamp_ns: frame.header.timestamp_ns.get(),
            payload: frame.bytes.slice(start..start + length),
        };
        frame.at = start + length;
        frame.next += 1;
        self.next = frame.next;
        Some(record)
    }

    /// Makes the frame that holds the next record the current one. False when it is not durable.
    fn load_frame(&mut self) -> Result<bool, Broken> {
        if self
            .entries
            .front()
            .is_none_or(|entry| self.next < entry.base || self.next >= entry.end())
        {
            let position = self
                .entries
                .iter()
                .position(|entry| entry.base <= self.next && self.next < entry.end());
            match position {
                Some(position) => drop(self.entries.drain(..position)),
                None => {
                    if !self.locate()? {
                        return Ok(false);
                    }
                }
            }
        }
        let Some(location) = self.location.clone() else { return Ok(false) };
        if self.next >= location.span_end {
            self.entries.clear();
            return Ok(true);
        }
        let Some(entry) = self.entries.pop_front() else { return Ok(true) };
        if u64::from(entry.position) >= self.shared.segment_bytes {
            return Err(self.corrupt(&location, 0, "its index does not lead to the record"));
        }
        let frame = self.read_frame(&location, entry)?;
        self.frame_bytes = frame.bytes.len();
        self.check_still_there(&location)?;
        self.frame = Some(frame);
        Ok(true)
    }

    fn locate(&mut self) -> Result<bool, Broken> {
        let located = self.shared.index().locate(self.stream, self.next);
        let location = match located {
            Ok(location) => location,
            Err(NoLocation::Beyond) => return Ok(false),
            Err(NoLocation::Trimmed(trimmed)) => {
                let (stream, offset) = (self.stream, self.next);
                return Err(Broken::Error(ReadError::Trimmed { stream, offset, trimmed }));
            }
            Err(NoLocation::Hole(next)) => {
                return Err(Broken::Error(ReadError::Missing {
                    stream: self.stream,
                    offset: self.next,
                    next,
                }));
            }
        };
        self.entries = match &location.frames {
            LocatedFrames::Entries(entries) => entries.clone().into(),
            LocatedFrames::Sealed(sealed) => self.load_entries(&location, *sealed)?.into(),
        };
        // Entries of a sealed segment come from the device: one that is damaged leads nowhere.
        let places = DATA_START..self.shared.segment_bytes;
        let leads_to_record = self.entries.front().is_some_and(|entry| {
            entry.base <= self.next
                && self.next < entry.end()
                && places.contains(&u64::from(entry.position))
        });
        if !leads_to_record {
            self.entries.clear();
            self.check_still_there(&location)?;
            return Err(self.corrupt(&location, 0, "its index does not lead to the record"));
        }
        self.location = Some(location);
        Ok(true)
    }

    /// Entries of the run that holds the next record, from the segment's own index.
    fn load_entries(&self, location: &Location, sealed: SealedIndex) -> Result<Vec<Entry>, Broken> {
        let footer = self.load_footer(location)?;
        let runs_bytes = sealed.runs as usize * RUN_BYTES;
        let bytes = self.read(location, sealed.runs_offset, runs_bytes)?;
        let runs = read_runs(&footer, &bytes)
            .map_err(|error| self.damaged(location, sealed.runs_offset, error))?;
        let run = runs.iter().find(|run| {
            run.stream.get() == self.stream.get()
                && run.epoch.get() == location.epoch
                && run.base_offset.get() <= self.next
                && self.next < run.end_offset.get()
        });
        let Some(run) = run else { return Ok(Vec::new()) };
        // Only the blocks that hold the run's entries.
        let first = run.entry.get() as usize * ENTRY_BYTES;
        let length = run.entries.get() as usize * ENTRY_BYTES;
        let skip = first / BLOCK_BYTES * BLOCK_BYTES;
        let from = sealed.entries_offset + skip as u64;
        let bytes = self.read(location, from, first - skip + length)?;
        let bytes = bytes.get(first - skip..).unwrap_or_default();
        let mut entries = read_entries(run, bytes, self.shared.segment_bytes)
            .map_err(|error| self.damaged(location, from, error))?;
        let before = entries.partition_point(|entry| entry.end() <= self.next);
        entries.drain(..before);
        Ok(entries)
    }

    fn load_footer(&self, location: &Location) -> Result<FooterHeader, Broken> {
        let offset = FooterHeader::offset(self.shared.segment_bytes);
        let block = self.read(location, offset, BLOCK_BYTES)?;
        let seed = SegmentSeed::new(&self.shared.engine_id, location.number, location.generation);
        FooterHeader::verify(&block, seed, self.shared.segment_bytes)
            .map_err(|error| self.damaged(location, offset, error))
    }

    /// The frame of `entry`, from the chunk at hand when it is in there. That chunk may have been
    /// read before the frame was written: then it is read again.
    fn read_frame(&mut self, location: &Location, entry: Entry) -> Result<ReadFrame, Broken> {
        if self.chunk.is_some()
            && let Ok(frame) = self.read_frame_once(location, entry)
        {
            return Ok(frame);
        }
        self.chunk = None;
        self.read_frame_once(location, entry)
    }

    /// Reads and verifies a frame.
    fn read_frame_once(&mut self, location: &Location, entry: Entry) -> Result<ReadFrame, Broken> {
        let position = u64::from(entry.position);
        let mut wanted = FRAME_HEADER_BYTES;
        for attempt in 0..2 {
            let bytes = self.chunk_at(location, position, wanted)?;
            match VerifiedFrame::verify(&bytes) {
                Ok(frame) => return self.take_frame(location, entry, frame.header, &bytes),
                Err(FormatError::Length) if attempt == 0 => {
                    let header = FrameHeader::verify(&bytes)
                        .map_err(|error| self.damaged(location, position, error))?
                        .0;
                    wanted = header.frame_length();
                    if position + wanted as u64 > self.shared.segment_bytes {
                        return Err(self.damaged(location, position, FormatError::Length));
                    }
                }
                Err(error) => return Err(self.damaged(location, position, error)),
            }
        }
        Err(self.damaged(location, position, FormatError::Length))
    }

    fn take_frame(
        &self,
        location: &Location,
        entry: Entry,
        header: FrameHeader,
        bytes: &Bytes,
    ) -> Result<ReadFrame, Broken> {
        let expected = header.kind == FrameKind::Data as u8
            && header.stream.get() == self.stream.get()
            && header.epoch.get() == location.epoch
            && header.base_offset.get() == entry.base
            && header.count.get() == entry.count
            && header.crc.get() == entry.frame_crc;
        if !expected {
            self.check_still_there(location)?;
            let position = u64::from(entry.position);
            return Err(self.corrupt(location, position, "another frame is in its place"));
        }
        let bytes = bytes.slice(..header.frame_length());
        let mut at = FRAME_HEADER_BYTES;
        for _ in header.base_offset.get()..self.next {
            let prefix = &bytes[at..at + RECORD_PREFIX_BYTES];
            let length = u32::from_le_bytes(prefix.try_into().expect("four bytes")) as usize;
            at += RECORD_PREFIX_BYTES + length;
        }
        let end = header.end_offset().min(location.span_end);
        Ok(ReadFrame { header, bytes, next: self.next, at, end })
    }

    /// Bytes from `position` on, at least `wanted` of them where the segment has them.
    fn chunk_at(
        &mut self,
        location: &Location,
        position: u64,
        wanted: usize,
    ) -> Result<Bytes, Broken> {
        if let Some(chunk) = &self.chunk
            && chunk.generation == location.generation
            && chunk.from <= position
            && position + wanted as u64 <= chunk.from + chunk.length as u64
        {
            let at = (position - chunk.from) as usize;
            return Ok(chunk.buffer.to_bytes().slice(at..chunk.length));
        }
        let from = position / BLOCK_BYTES as u64 * BLOCK_BYTES as u64;
        let left = (self.shared.segment_bytes - from) as usize;
        let end = self.read_ahead_until(position, position + wanted as u64);
        let length = block_round_up((end - from) as usize).min(left);
        let (buffer, length) = self.read_buffer(location.file, location, from, length)?;
        let buffer = buffer.freeze();
        let at = ((position - from) as usize).min(length);
        let bytes = buffer.to_bytes().slice(at..length);
        self.chunk = Some(Chunk { generation: location.generation, from, buffer, length });
        Ok(bytes)
    }

    /// How far to read for the frame at `position`: over those that follow closely, taking each
    /// to be as long as the last.
    fn read_ahead_until(&self, position: u64, needed: u64) -> u64 {
        let guess = self.frame_bytes.max(BLOCK_BYTES) as u64;
        let mut end = needed.max(position + guess);
        for entry in &self.entries {
            let next = u64::from(entry.position);
            if next < position || next > end + READ_GAP_BYTES || end > position + READ_AHEAD_BYTES {
                break;
            }
            end = end.max(next + guess);
        }
        end
    }

    fn read(&self, location: &Location, from: u64, length: usize) -> Result<Vec<u8>, Broken> {
        let (buffer, read) = self.read_buffer(location.file, location, from, length)?;
        Ok(buffer[..read.min(length)].to_vec())
    }

    fn read_buffer(
        &self,
        file: FileId,
        location: &Location,
        from: u64,
        length: usize,
    ) -> Result<(BufferMut, usize), Broken> {
        let length = block_round_up(length);
        let mut buffer = BufferMut::allocate(length);
        match self.shared.reader.read_at(file, from, &mut buffer, length) {
            Ok(read) => Ok((buffer, read)),
            Err(error) => {
                self.check_still_there(location)?;
                Err(Broken::Error(ReadError::Io {
                    stream: self.stream,
                    offset: self.next,
                    file: segment_name(location.number),
                    cause: Arc::new(error),
                }))
            }
        }
    }

    /// What was read counts only if the segment was not freed before.
    fn check_still_there(&self, location: &Location) -> Result<(), Broken> {
        let index = self.shared.index();
        match index.locate(self.stream, self.next) {
            Ok(now) if now.generation == location.generation && now.epoch == location.epoch => {
                Ok(())
            }
            _ => Err(Broken::Stale),
        }
    }

    fn damaged(&self, location: &Location, position: u64, error: FormatError) -> Broken {
        match self.check_still_there(location) {
            Err(stale) => stale,
            Ok(()) => self.corrupt(location, position, &error.to_string()),
        }
    }

    fn corrupt(&self, location: &Location, position: u64, cause: &str) -> Broken {
        Broken::Error(ReadError::Corrupt {
            stream: self.stream,
            offset: self.next,
            file: segment_name(location.number),
            position,
            cause: cause.to_owned(),
        })
    }
}

/// The records of a range that were durable when it was asked for, in order.
pub struct Records {
    reader: Reader,
    end: u64,
    failed: bool,
}

impl Records {
    pub(crate) fn new(
        shared: Arc<Shared>,
        stream: StreamId,
        range: impl RangeBounds<u64>,
    ) -> Result<Self, ReadError> {
        let (trimmed, durable_end) =
            shared.index().streams.get(&stream).map_or((0, 0), |state| (state.trimmed, state.end));
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(start) => start.saturating_add(1),
            Bound::Unbounded => trimmed,
        };
        let end = match range.end_bound() {
            Bound::Included(end) => end.saturating_add(1),
            Bound::Excluded(end) => *end,
            Bound::Unbounded => durable_end,
        }
        .min(durable_end);
        if start < trimmed && start < end {
            return Err(ReadError::Trimmed { stream, offset: start, trimmed });
        }
        Ok(Self { reader: Reader::new(shared, stream, start), end, failed: false })
    }
}

impl Iterator for Records {
    type Item = Result<Record, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed || self.reader.next_offset() >= self.end {
            return None;
        }
        let record = self.reader.read_next().transpose()?;
        self.failed = record.is_err();
        Some(record)
    }
}

/// The durable records of a stream from an offset on, as they come. Loses none: it looks at the
/// durable end, registers, and looks again before it sleeps.
pub struct Tail {
    reader: Reader,
    /// Tells it from all others, where it is registered.
    id: u64,
    registered: bool,
    /// Wakes the thread that waited last.
    waker: Option<(ThreadId, Waker)>,
}

impl Tail {
    pub(crate) fn new(shared: Arc<Shared>, stream: StreamId, from: u64) -> Self {
        static NEXT_ID: AtomicU64 = AtomicU64::new(0);
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        Self { reader: Reader::new(shared, stream, from), id, registered: false, waker: None }
    }

    /// Offset of the record that comes next.
    pub fn offset(&self) -> u64 {
        self.reader.next_offset()
    }

    /// Goes on at another offset.
    pub fn seek(&mut self, offset: u64) {
        self.reader.seek(offset);
    }

    /// The next record, waiting for it.
    ///
    /// # Errors
    /// When it cannot be read, was trimmed, or the engine was closed.
    pub fn next_blocking(&mut self) -> Result<Record, ReadError> {
        loop {
            if let Some(record) = self.next_until(None)? {
                return Ok(record);
            }
        }
    }

    /// The next record, or `None` when the time is over.
    ///
    /// # Errors
    /// As [`Tail::next_blocking`].
    pub fn next_timeout(&mut self, timeout: Duration) -> Result<Option<Record>, ReadError> {
        match Instant::now().checked_add(timeout) {
            Some(deadline) => self.next_until(Some(deadline)),
            None => self.next_blocking().map(Some),
        }
    }

    /// The same for every call of one thread, so that waiting again registers nothing anew.
    fn thread_waker(&mut self) -> Waker {
        let current = std::thread::current();
        match &self.waker {
            Some((thread, waker)) if *thread == current.id() => waker.clone(),
            _ => {
                let id = current.id();
                let waker = Waker::from(Arc::new(ThreadWaker(current)));
                self.waker = Some((id, waker.clone()));
                waker
            }
        }
    }

    fn next_until(&mut self, deadline: Option<Instant>) -> Result<Option<Record>, ReadError> {
        let waker = self.thread_waker();
        let mut context = Context::from_waker(&waker);
        loop {
            if let Poll::Ready(record) = self.poll_next(&mut context) {
                return record.map(Some);
            }
            match deadline {
                None => std::thread::park(),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Ok(None);
                    }
                    std::thread::park_timeout(left);
                }
            }
        }
    }

    /// The next record, on any runtime. The read itself blocks for one device access.
    ///
    /// # Errors
    /// As [`Tail::next_blocking`].
    pub async fn next(&mut self) -> Result<Record, ReadError> {
        poll_fn(|context| self.poll_next(context)).await
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<Record, ReadError>> {
        if let Some(record) = self.reader.read_next().transpose() {
            return Poll::Ready(record);
        }
        {
            let mut index = self.reader.shared.index();
            if index.closed {
                return Poll::Ready(Err(ReadError::Closed));
            }
            if let Some(cause) = &index.poisoned {
                return Poll::Ready(Err(ReadError::Poisoned(cause.clone())));
            }
            self.registered = true;
            let replaced = index.wait_for(self.reader.stream, self.id, context.waker());
            drop(index);
            drop(replaced);
        }
        match self.reader.read_next().transpose() {
            Some(record) => Poll::Ready(record),
            None => Poll::Pending,
        }
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        if self.registered {
            let waker = self.reader.shared.index().stop_waiting(self.reader.stream, self.id);
            // Other people's code, and the lock has been given back.
            drop(waker);
        }
    }
}

struct ThreadWaker(Thread);

impl TaskWake for ThreadWaker {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}
