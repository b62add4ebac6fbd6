//! Reading durable records: by offset, and as they come. Runs on the reader's own thread with its
//! own reads; writes nothing and believes no byte before its checksum.

mod chunk;
mod frames;
mod next_chunk;
mod record;
mod records;
mod salvage;
mod tail;
mod walk;

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use zerocopy::IntoBytes;

use crate::disk::{BLOCK_BYTES, BufferMut, block_round_up};
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
use crate::subscription::FrameSlice;
use chunk::Chunk;
pub use frames::Frames;
use next_chunk::NextChunk;
pub use record::Record;
pub use records::Records;
pub use salvage::{DamagedFrame, Salvage, Salvaged};
pub use tail::Tail;
pub use walk::{FramePiece, FrameWalk};

/// How far it reads ahead when the frames that follow lie close together; twice as far each time that it goes on
/// where it has read, up to [`READ_AHEAD_BYTES_MAX`].
const READ_AHEAD: ReadAhead = ReadAhead { bytes: 256 << 10, entries: 128 };
/// A device does a megabyte at once about as fast as it can do anything.
const READ_AHEAD_BYTES_MAX: u64 = 1 << 20;
/// Frames of other streams between two of this one that are read along rather than skipped.
const READ_GAP_BYTES: u64 = 8 << 10;

/// Reads the records of one stream in order.
pub(crate) struct Reader {
    shared: Arc<Shared>,
    stream: StreamId,
    next: u64,
    frame: Option<ReadFrame>,
    /// Frames that follow, of the span being read.
    entries: VecDeque<Entry>,
    location: Option<Location>,
    /// Those of them that had just become durable: byte in the segment, and the frame.
    recent: Vec<(u32, Bytes)>,
    chunk: Option<Chunk>,
    /// The one after it, when many have come one after another.
    next_chunk: NextChunk,
    /// Length of the last frame.
    frame_bytes: usize,
    /// At first, and after a seek.
    read_ahead: ReadAhead,
    /// By now.
    read_ahead_bytes: u64,
}

/// How much is read at once.
#[derive(Copy, Clone, Debug)]
struct ReadAhead {
    /// From the device.
    bytes: u64,
    /// Frames that one lookup takes out of the index of an unsealed segment.
    entries: usize,
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
    /// Cuts that there had been when that was looked up.
    cuts: u64,
}

impl ReadFrame {
    /// What counts of it from the next record on: the bytes as they were read when that is all,
    /// else a new frame of just those records.
    fn into_slice(self) -> FrameSlice {
        let is_whole =
            self.next == self.header.base_offset.get() && self.end == self.header.end_offset();
        let count = (self.end - self.next) as u32;
        FrameSlice {
            stream: StreamId::new(self.header.stream.get()),
            epoch: self.header.epoch.get(),
            base_offset: self.next,
            count,
            bytes: if is_whole { self.bytes } else { self.part(count) },
        }
    }

    /// A frame of `count` records from the next one on.
    fn part(&self, count: u32) -> Bytes {
        let until = skip_records(&self.bytes, self.at, u64::from(count));
        let payload = &self.bytes[self.at..until];
        let header = FrameHeader::new(
            FrameKind::Data,
            self.header.stream.get(),
            self.header.epoch.get(),
            self.next,
            count,
            self.header.timestamp_ns.get(),
            payload,
        );
        [header.as_bytes(), payload].concat().into()
    }
}

/// The byte behind `count` records that start at byte `at`; the frame was verified.
fn skip_records(bytes: &[u8], at: usize, count: u64) -> usize {
    (0..count).fold(at, |at, _| at + RECORD_PREFIX_BYTES + record_length(bytes, at))
}

fn record_length(bytes: &[u8], at: usize) -> usize {
    let prefix = &bytes[at..at + RECORD_PREFIX_BYTES];
    u32::from_le_bytes(prefix.try_into().expect("four bytes")) as usize
}

/// Bytes that were not what the index promised.
enum Broken {
    /// The segment has been freed or cut meanwhile: look again.
    Stale,
    Error(ReadError),
}

impl Reader {
    pub(crate) fn new(shared: Arc<Shared>, stream: StreamId, next: u64) -> Self {
        Self {
            shared,
            stream,
            next,
            frame: None,
            entries: VecDeque::new(),
            location: None,
            recent: Vec::new(),
            chunk: None,
            next_chunk: NextChunk::default(),
            frame_bytes: 0,
            read_ahead: READ_AHEAD,
            read_ahead_bytes: READ_AHEAD.bytes,
        }
    }

    /// The same with another beginning.
    fn with_read_ahead(mut self, read_ahead: ReadAhead) -> Self {
        self.read_ahead = read_ahead;
        self.read_ahead_bytes = read_ahead.bytes;
        self
    }

    /// Offset of the record that comes next.
    pub(crate) fn next_offset(&self) -> u64 {
        self.next
    }

    /// Goes on at another offset.
    pub(crate) fn seek(&mut self, next: u64) {
        if next != self.next {
            self.read_ahead_bytes = self.read_ahead.bytes;
            self.next_chunk = NextChunk::default();
        }
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
            if !self.load()? {
                return Ok(None);
            }
        }
    }

    /// What counts of the frame that holds the next record, from that one on; `None` when it is
    /// not durable yet.
    fn read_next_frame(&mut self) -> Result<Option<FrameSlice>, ReadError> {
        loop {
            if let Some(frame) = self.frame.take() {
                self.next = frame.end;
                return Ok(Some(frame.into_slice()));
            }
            if !self.load()? {
                return Ok(None);
            }
        }
    }

    /// Goes a step towards the frame of the next record. False when it is not durable.
    fn load(&mut self) -> Result<bool, ReadError> {
        match self.load_frame() {
            Ok(true) => Ok(true),
            Ok(false) => {
                // What comes next is not in there, and a reader that waits holds no ring.
                self.chunk = None;
                self.next_chunk = NextChunk::default();
                Ok(false)
            }
            Err(Broken::Stale) => {
                self.entries.clear();
                self.chunk = None;
                Ok(true)
            }
            Err(Broken::Error(error)) => Err(error),
        }
    }

    fn take_from_frame(&mut self) -> Option<Record> {
        self.drop_what_was_cut();
        let frame = self.frame.as_mut()?;
        if frame.next >= frame.end || frame.next != self.next {
            self.frame = None;
            return None;
        }
        let length = record_length(&frame.bytes, frame.at);
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

    /// A cut since the frame was read may have taken what is left of it: other records, of another
    /// epoch, come in its place (I-17).
    fn drop_what_was_cut(&mut self) {
        let Some(frame) = &mut self.frame else { return };
        let cuts = self.shared.cuts();
        if frame.cuts == cuts || frame.next != self.next {
            return;
        }
        frame.cuts = cuts;
        match self.shared.index().place_of(self.stream, self.next) {
            // In which segment it is by now does not matter: a moved frame is the same.
            Ok(now) if now.epoch == frame.header.epoch.get() => {
                frame.end = frame.end.min(now.span_end);
            }
            _ => self.frame = None,
        }
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
        let Some(location) = self.location else { return Ok(false) };
        if self.next >= location.span_end {
            self.entries.clear();
            return Ok(true);
        }
        let Some(entry) = self.entries.pop_front() else { return Ok(true) };
        if u64::from(entry.position) >= self.shared.segment_bytes {
            return Err(self.corrupt(&location, 0, "its index does not lead to the record"));
        }
        let cuts = self.shared.cuts();
        let mut frame = match self.recent_frame(&location, entry)? {
            Some(frame) => frame,
            None => self.read_frame(&location, entry)?,
        };
        self.frame_bytes = frame.bytes.len();
        // A cut since it was located may have left only its beginning.
        frame.end = frame.end.min(self.check_still_there(&location)?);
        frame.cuts = cuts;
        self.frame = Some(frame);
        Ok(true)
    }

    fn locate(&mut self) -> Result<bool, Broken> {
        let index = self.shared.index();
        let located = index.locate(self.stream, self.next, self.read_ahead.entries);
        self.recent = match &located {
            Ok((location, LocatedFrames::Entries(entries))) => {
                index.recent.of(location.generation, entries)
            }
            _ => Vec::new(),
        };
        drop(index);
        let (location, frames) = match located {
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
        self.entries = match frames {
            LocatedFrames::Entries(entries) => entries.into(),
            LocatedFrames::Sealed(sealed) => self.load_entries(&location, sealed)?.into(),
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

    /// The frame of `entry`, if it has just become durable.
    fn recent_frame(&self, location: &Location, entry: Entry) -> Result<Option<ReadFrame>, Broken> {
        let mut recent = self.recent.iter();
        let Some((_, bytes)) = recent.find(|(position, _)| *position == entry.position) else {
            return Ok(None);
        };
        match VerifiedFrame::verify(bytes) {
            Ok(frame) => self.take_frame(location, entry, frame.header, bytes).map(Some),
            Err(error) => Err(self.damaged(location, u64::from(entry.position), error)),
        }
    }

    /// The frame of `entry`, from the chunk at hand when it is in there. That chunk may have been
    /// read before the frame was written: then it is read again.
    fn read_frame(&mut self, location: &Location, entry: Entry) -> Result<ReadFrame, Broken> {
        if (self.chunk.is_some() || self.next_chunk.is_under_way())
            && let Ok(frame) = self.read_frame_once(location, entry)
        {
            return Ok(frame);
        }
        self.chunk = None;
        self.next_chunk.forget();
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
        let before = self.next - header.base_offset.get();
        let at = skip_records(&bytes, FRAME_HEADER_BYTES, before);
        let end = header.end_offset().min(location.span_end);
        Ok(ReadFrame { header, bytes, next: self.next, at, end, cuts: 0 })
    }

    fn read(&self, location: &Location, from: u64, length: usize) -> Result<Vec<u8>, Broken> {
        let blocks = block_round_up(length);
        let (buffer, read) = self.read_into(BufferMut::allocate(blocks), location, from, blocks)?;
        Ok(buffer[..read.min(length)].to_vec())
    }

    fn read_into(
        &self,
        mut buffer: BufferMut,
        location: &Location,
        from: u64,
        length: usize,
    ) -> Result<(BufferMut, usize), Broken> {
        match self.shared.read_at(location.file, from, &mut buffer, length) {
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

    /// What was read counts only if the segment was not freed before. Returns where it ends by now.
    fn check_still_there(&self, location: &Location) -> Result<u64, Broken> {
        match self.shared.index().place_of(self.stream, self.next) {
            Ok(now) if now.generation == location.generation && now.epoch == location.epoch => {
                Ok(now.span_end)
            }
            _ => Err(Broken::Stale),
        }
    }

    fn damaged(&self, location: &Location, position: u64, error: FormatError) -> Broken {
        match self.check_still_there(location) {
            Err(stale) => stale,
            Ok(_) => self.corrupt(location, position, &error.to_string()),
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
