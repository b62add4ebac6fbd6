//! Moves the few records that keep otherwise dead segments alive into the open one, so that space
//! comes back. A core without I/O: it asks for reads and hands back batches.
//!
//! The method is that of log-structured file systems (Rosenblum and Ousterhout 1992), with the
//! frames copied as they are: they keep their epoch, offsets and checksums.

use std::collections::{HashSet, VecDeque};
use std::io;

use crate::batch::Filling;
use crate::disk::{BLOCK_BYTES, BufferMut, FileId, Operation, block_round_down, block_round_up};
use crate::footer::{read_entries, read_runs};
use crate::format::{
    ENTRY_BYTES, FooterHeader, FrameKind, SegmentSeed, VerifiedFrame, batch_flags,
};
use crate::index::{Entry, Index, Span};
use crate::stream::StreamId;

/// A sealed segment with no more live bytes than this share of its length is a straggler.
pub(crate) const LIVE_SHARE: u64 = 8;
/// Stragglers that are left alone while there is space: moving costs writes.
const STRAGGLERS_KEPT: usize = 2;

/// Byte of a frame header in its segment, and the header's CRC.
type Place = (u32, u32);

#[derive(Debug)]
enum Stage {
    Idle,
    /// Reading the segment's index.
    Index,
    /// Reading the frames at these bytes, in order.
    Frames(VecDeque<Place>),
    /// Everything was handed over; waiting until it is durable.
    Draining,
}

/// Moves one segment's records at a time.
#[derive(Debug)]
pub(crate) struct Mover {
    segment_bytes: u64,
    batch_bytes: usize,
    stage: Stage,
    generation: u64,
    file: FileId,
    /// Where the bytes being read start in the segment.
    reading_from: Option<u64>,
    /// Segments with a frame that cannot be read; left as they are.
    damaged: HashSet<u64>,
}

impl Mover {
    pub(crate) fn new(segment_bytes: u64, batch_bytes: usize) -> Self {
        Self {
            segment_bytes,
            batch_bytes,
            stage: Stage::Idle,
            generation: 0,
            file: FileId(u32::MAX),
            reading_from: None,
            damaged: HashSet::new(),
        }
    }

    /// The next read. `pressed` says that there is no space for new segments.
    pub(crate) fn poll_operation(&mut self, index: &mut Index, pressed: bool) -> Option<Operation> {
        if self.reading_from.is_some() {
            return None;
        }
        match &self.stage {
            Stage::Idle => self.pick(index, pressed),
            Stage::Draining => {
                if !index.segments.contains_key(&self.generation) {
                    self.stage = Stage::Idle;
                }
                None
            }
            Stage::Index => None,
            Stage::Frames(positions) => {
                let position = u64::from(positions.front()?.0);
                let from = block_round_down(position);
                let left = (self.segment_bytes - from) as usize;
                Some(self.read(from, left.min(self.batch_bytes + 2 * BLOCK_BYTES)))
            }
        }
    }

    fn pick(&mut self, index: &mut Index, pressed: bool) -> Option<Operation> {
        if !index.has_straggler && !pressed {
            return None;
        }
        let limit = index.straggler_bytes;
        let is_straggler = |generation: &u64, live: u64| {
            live > 0 && live <= limit && !self.damaged.contains(generation)
        };
        let mut stragglers = index
            .segments
            .iter()
            .filter(|(generation, segment)| {
                segment.is_sealed() && is_straggler(generation, segment.live_bytes())
            })
            .map(|(generation, segment)| (*generation, segment.file, segment.sealed_index()));
        let first = stragglers.next();
        let kept = if pressed { 0 } else { STRAGGLERS_KEPT };
        let Some((generation, file, sealed)) = first.filter(|_| stragglers.count() >= kept) else {
            index.has_straggler = false;
            return None;
        };
        (self.generation, self.file) = (generation, file);
        self.stage = Stage::Index;
        let from = sealed?.entries_offset;
        Some(self.read(from, (self.segment_bytes - from) as usize))
    }

    fn read(&mut self, from: u64, length: usize) -> Operation {
        self.reading_from = Some(from);
        let (buffer, length) = (BufferMut::allocate(length), block_round_up(length));
        Operation::Read { file: self.file, offset: from, buffer, length }
    }

    /// The end of a read; batches that carry the records on.
    pub(crate) fn handle_read(
        &mut self,
        result: io::Result<u64>,
        buffer: Option<BufferMut>,
        index: &mut Index,
    ) -> Vec<Filling> {
        let from = self.reading_from.take().expect("a read was in flight");
        let bytes = match (&result, &buffer) {
            (Ok(length), Some(buffer)) => &buffer[..(*length as usize).min(buffer.len())],
            _ => return self.give_up(),
        };
        match &mut self.stage {
            Stage::Index => match self.frames_to_move(bytes, from, index) {
                Some(positions) => {
                    self.stage = Stage::Frames(positions);
                    self.drain_when_empty();
                    Vec::new()
                }
                None => self.give_up(),
            },
            Stage::Frames(positions) => {
                let mut positions = std::mem::take(positions);
                match self.carry_on(bytes, from, &mut positions) {
                    Some(filling) => {
                        self.stage = Stage::Frames(positions);
                        self.drain_when_empty();
                        vec![filling]
                    }
                    None => self.give_up(),
                }
            }
            Stage::Idle | Stage::Draining => Vec::new(),
        }
    }

    fn drain_when_empty(&mut self) {
        if matches!(&self.stage, Stage::Frames(positions) if positions.is_empty()) {
            self.stage = Stage::Draining;
        }
    }

    fn give_up(&mut self) -> Vec<Filling> {
        self.damaged.insert(self.generation);
        self.stage = Stage::Idle;
        Vec::new()
    }

    /// Bytes of the frames that still hold a live record.
    fn frames_to_move(&self, bytes: &[u8], from: u64, index: &Index) -> Option<VecDeque<Place>> {
        let sealed = index.segments.get(&self.generation)?.sealed_index()?;
        let footer_at = (FooterHeader::offset(self.segment_bytes) - from) as usize;
        let runs_at = (sealed.runs_offset - from) as usize;
        let footer = FooterHeader::verify(
            bytes.get(footer_at..)?,
            SegmentSeed::new(
                &index.engine_id,
                index.segments[&self.generation].number,
                self.generation,
            ),
            self.segment_bytes,
        )
        .ok()?;
        let entries = bytes.get(..footer.entries.get() as usize * ENTRY_BYTES)?;
        if crc32c::crc32c(entries) != footer.entries_crc.get() {
            return None;
        }
        let runs = read_runs(&footer, bytes.get(runs_at..)?).ok()?;
        let spans = index.spans_of(self.generation);
        let mut positions = Vec::new();
        for run in runs {
            let spans = spans_of_stream(&spans, StreamId::new(run.stream.get()));
            if spans.is_empty() {
                continue;
            }
            let bytes = entries.get(run.entry.get() as usize * ENTRY_BYTES..)?;
            let entries = read_entries(&run, bytes, self.segment_bytes).ok()?;
            let live = entries.iter().filter(|entry| is_live(spans, entry));
            positions.extend(live.map(|entry| (entry.position, entry.frame_crc)));
        }
        positions.sort_unstable();
        Some(positions.into())
    }

    /// Copies the frames at hand into a batch; at least the first, or the segment is damaged.
    fn carry_on(
        &self,
        bytes: &[u8],
        from: u64,
        positions: &mut VecDeque<Place>,
    ) -> Option<Filling> {
        let mut filling = Filling::new(BufferMut::allocate(self.batch_bytes), 0);
        filling.flags |= batch_flags::MOVED;
        while let Some((position, crc)) = positions.front() {
            let at = (u64::from(*position) - from) as usize;
            let frame = bytes.get(at..).and_then(|bytes| VerifiedFrame::verify(bytes).ok());
            let frame = frame.filter(|frame| {
                frame.kind == FrameKind::Data
                    && frame.header.crc.get() == *crc
                    && filling.has_room_for_frame(frame.payload.len())
            });
            let Some(frame) = frame else { break };
            filling.push_moved(&frame.header, frame.payload);
            positions.pop_front();
        }
        (filling.frames() > 0).then_some(filling)
    }
}

/// The part of `spans` that is of `stream`; they are ordered by stream and offset.
fn spans_of_stream(spans: &[(StreamId, Span)], stream: StreamId) -> &[(StreamId, Span)] {
    let first = spans.partition_point(|(id, _)| *id < stream);
    let length = spans[first..].partition_point(|(id, _)| *id == stream);
    &spans[first..first + length]
}

/// Whether one of a stream's spans, which do not overlap, holds a record of the entry.
fn is_live(spans: &[(StreamId, Span)], entry: &Entry) -> bool {
    let next = spans.partition_point(|(_, span)| span.end <= entry.base);
    spans.get(next).is_some_and(|(_, span)| span.base < entry.end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_live_when_a_span_of_its_stream_holds_one_of_its_records() {
        let span = |stream, base, end| (StreamId::new(stream), Span { base, end, generation: 1 });
        let spans =
            [span(4, 0, 90), span(7, 10, 20), span(7, 20, 25), span(7, 40, 50), span(9, 0, 90)];
        assert!(spans_of_stream(&spans, StreamId::new(5)).is_empty());
        assert!(spans_of_stream(&spans, StreamId::new(10)).is_empty());
        assert_eq!(spans_of_stream(&spans, StreamId::new(4)), &spans[..1]);
        let of_stream = spans_of_stream(&spans, StreamId::new(7));
        assert_eq!(of_stream, &spans[1..4]);
        for base in 0..60 {
            for count in 1..20 {
                let entry = Entry { base, count, position: 0, frame_crc: 0 };
                let expected = of_stream
                    .iter()
                    .any(|(_, span)| span.base < entry.end() && entry.base < span.end);
                assert_eq!(is_live(of_stream, &entry), expected, "{entry:?}");
            }
        }
    }
}
