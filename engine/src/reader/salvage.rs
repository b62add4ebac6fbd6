//! What counts in a sealed segment, frame by frame: what can be read of it, and what is damaged.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::{Broken, ReadFrame, Reader};
use crate::disk::block_round_down;
use crate::error::{ReadError, SalvageError};
use crate::format::{DATA_START, FRAME_HEADER_BYTES, FormatError, FrameHeader, VerifiedFrame};
use crate::index::{Entry, LocatedFrames, Location, NoLocation};
use crate::segments::segment_name;
use crate::shared::Shared;
use crate::stream::StreamId;
use crate::subscription::FrameSlice;

/// A part of what counts in a segment.
#[derive(Clone, Debug)]
pub enum Salvaged {
    /// It can be read.
    Sound(FrameSlice),
    /// It cannot.
    Damaged(DamagedFrame),
}

/// Durable records that cannot be read: those of one frame, or all that a segment holds of a stream,
/// when its index does not lead to them.
#[derive(Clone, Debug)]
pub struct DamagedFrame {
    /// Whose records.
    pub stream: StreamId,
    /// Their offsets.
    pub offsets: Range<u64>,
    /// What reading them says.
    pub cause: ReadError,
    /// The whole frame, as the segment's index knows it.
    entry: Option<Entry>,
}

impl DamagedFrame {
    /// Whether the segment's index says that other bytes were here: a header has the checksum of its
    /// payload, and the index that of the header.
    pub fn contradicts(&self, header: &FrameHeader) -> bool {
        self.entry.is_some_and(|entry| {
            header.stream.get() == self.stream.get()
                && (header.base_offset.get(), header.count.get()) == (entry.base, entry.count)
                && header.crc.get() != entry.frame_crc
        })
    }
}

/// Everything that counts in the sealed segment that holds a record, of all streams, in the order of
/// streams and offsets. Reads on the caller's thread. What is trimmed, cut or moved meanwhile is left
/// out.
pub struct Salvage {
    shared: Arc<Shared>,
    number: u64,
    generation: u64,
    /// What is still to be looked at.
    spans: VecDeque<(StreamId, Range<u64>)>,
    reader: Reader,
    location: Option<Location>,
    /// Frames of the span that is being read.
    entries: VecDeque<Entry>,
}

impl Salvage {
    pub(crate) fn new(
        shared: Arc<Shared>,
        stream: StreamId,
        offset: u64,
    ) -> Result<Self, SalvageError> {
        let index = shared.index();
        let location = match index.place_of(stream, offset) {
            Ok(location) => location,
            Err(NoLocation::Trimmed(_)) => return Err(SalvageError::Gone { stream, offset }),
            Err(_) => return Err(SalvageError::NotHeld { stream, offset }),
        };
        if !index.segments[&location.generation].is_sealed() {
            let file = segment_name(location.number);
            return Err(SalvageError::NotSealed { stream, offset, file });
        }
        let spans = index.spans_of(location.generation).into_iter();
        let spans = spans.map(|(stream, span)| (stream, span.base..span.end)).collect();
        drop(index);
        Ok(Self {
            reader: Reader::new(shared.clone(), stream, offset),
            shared,
            number: location.number,
            generation: location.generation,
            spans,
            location: None,
            entries: VecDeque::new(),
        })
    }

    /// Its file.
    pub fn file(&self) -> String {
        segment_name(self.number)
    }

    /// The next part of the first span; `None` when it has to look again.
    fn step(&mut self, stream: StreamId, span: &Range<u64>) -> Option<Salvaged> {
        self.reader.stream = stream;
        self.reader.seek(span.start);
        while self.entries.front().is_some_and(|entry| entry.end() <= span.start) {
            self.entries.pop_front();
        }
        let location = self.location.filter(|location| span.start < location.span_end);
        // Behind what was cut meanwhile, the next entry is another part's.
        let entry = self.entries.pop_front().filter(|entry| entry.holds(span.start));
        let (Some(location), Some(entry)) = (location, entry) else {
            return self.load(stream, span);
        };
        let end = location.span_end.min(span.end);
        match self.read_frame(&location, entry) {
            Ok(mut frame) => {
                let Ok(still) = self.reader.check_still_there(&location) else {
                    self.entries.clear();
                    return None;
                };
                frame.end = frame.end.min(still).min(span.end);
                self.spans[0].1.start = frame.end;
                Some(Salvaged::Sound(frame.into_slice()))
            }
            Err(Broken::Stale) => {
                self.entries.clear();
                None
            }
            Err(Broken::Error(cause)) => {
                self.damaged(stream, span.start..entry.end().min(end), cause, Some(entry))
            }
        }
    }

    fn damaged(
        &mut self,
        stream: StreamId,
        offsets: Range<u64>,
        cause: ReadError,
        entry: Option<Entry>,
    ) -> Option<Salvaged> {
        self.spans[0].1.start = offsets.end;
        Some(Salvaged::Damaged(DamagedFrame { stream, offsets, cause, entry }))
    }

    /// Finds what is left of the span in this segment, and its frames.
    fn load(&mut self, stream: StreamId, span: &Range<u64>) -> Option<Salvaged> {
        self.entries.clear();
        let place = self.shared.index().locate(stream, span.start, 0);
        let (location, sealed) = match place {
            Ok((location, LocatedFrames::Sealed(sealed)))
                if location.generation == self.generation =>
            {
                (location, sealed)
            }
            Ok((elsewhere, _)) => {
                self.spans[0].1.start = elsewhere.span_end;
                return None;
            }
            Err(NoLocation::Trimmed(next) | NoLocation::Hole(next)) => {
                self.spans[0].1.start = next;
                return None;
            }
            Err(NoLocation::Beyond) => {
                self.spans[0].1.start = span.end;
                return None;
            }
        };
        let read = self.reader.load_entries(&location, sealed).and_then(|entries| {
            let places = DATA_START..self.shared.segment_bytes;
            let first = entries.iter().find(|entry| entry.end() > span.start);
            let leads = first.is_some_and(|entry| {
                entry.holds(span.start) && places.contains(&u64::from(entry.position))
            });
            match leads {
                true => Ok(entries),
                false => Err(self.reader.corrupt(&location, 0, "its index leads elsewhere")),
            }
        });
        match read {
            Ok(entries) => {
                (self.entries, self.location) = (entries.into(), Some(location));
                None
            }
            Err(Broken::Stale) => None,
            Err(Broken::Error(cause)) => {
                self.damaged(stream, span.start..location.span_end.min(span.end), cause, None)
            }
        }
    }

    /// Blocks that lie beside a damaged one are read for themselves: what was read ahead fails for
    /// all of them.
    fn read_frame(&mut self, location: &Location, entry: Entry) -> Result<ReadFrame, Broken> {
        self.reader.entries.clone_from(&self.entries);
        let frame = self.reader.read_frame(location, entry);
        self.reader.entries.clear();
        match frame {
            Err(Broken::Error(_)) => {
                self.reader.chunk = None;
                self.read_alone(location, entry)
            }
            frame => frame,
        }
    }

    fn read_alone(&self, location: &Location, entry: Entry) -> Result<ReadFrame, Broken> {
        let position = u64::from(entry.position);
        let from = block_round_down(position);
        let skip = (position - from) as usize;
        let damaged = |error| self.reader.damaged(location, position, error);
        let short = || damaged(FormatError::Short);
        let bytes = self.reader.read(location, from, skip + FRAME_HEADER_BYTES)?;
        let header = FrameHeader::verify(bytes.get(skip..).ok_or_else(short)?).map_err(damaged)?.0;
        let length = skip + header.frame_length();
        if from + length as u64 > self.shared.segment_bytes {
            return Err(damaged(FormatError::Length));
        }
        let bytes = Bytes::from(self.reader.read(location, from, length)?);
        let bytes = bytes.slice(skip.min(bytes.len())..);
        let header = VerifiedFrame::verify(&bytes).map_err(damaged)?.header;
        self.reader.take_frame(location, entry, header, &bytes)
    }
}

impl Iterator for Salvage {
    type Item = Salvaged;

    fn next(&mut self) -> Option<Salvaged> {
        loop {
            let (stream, span) = self.spans.front().cloned()?;
            if span.is_empty() {
                self.spans.pop_front();
                self.entries.clear();
                continue;
            }
            if let Some(part) = self.step(stream, &span) {
                return Some(part);
            }
        }
    }
}
