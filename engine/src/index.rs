//! Where durable records are. Written by the shard once per durable batch, read by every reader.
//! No I/O.
//!
//! A stream knows which segment holds which of its offsets (*spans*). An unsealed segment also
//! knows where each frame is (*entries*); a sealed one has them in its file, so that memory does
//! not grow with the journal.

mod location;
mod recent;
mod segment;
mod spans;

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::task::Waker;

use crate::batch::SealedFrame;
use crate::disk::FileId;
use crate::error::Poisoned;
use crate::format::{EngineId, FooterHeader, RunRecord};
use crate::stream::{EpochStart, EpochTable, StreamId};
pub(crate) use location::{LocatedFrames, Location, NoLocation};
use recent::Recent;
use segment::{Entries, Frames};
pub(crate) use segment::{Entry, SealedIndex, SegmentIndex};
pub(crate) use spans::Span;
use spans::replace_spans;

/// All durable records of a shard.
#[derive(Debug, Default)]
pub(crate) struct Index {
    pub(crate) engine_id: EngineId,
    pub(crate) streams: HashMap<StreamId, StreamIndex>,
    pub(crate) segments: BTreeMap<u64, SegmentIndex>,
    /// Generations of sealed segments in which nothing counts any more.
    dead: Vec<u64>,
    /// Streams that went on beyond their end: a tail that waits inside of the gap waits in vain.
    skipped: Vec<StreamId>,
    /// Of each stream that tails wait on: tail, and whom to wake.
    waiting: HashMap<StreamId, Vec<(u64, Waker)>>,
    /// For those that wait, when they come.
    pub(crate) recent: Recent,
    /// A sealed segment with fewer live bytes than this is worth moving.
    pub(crate) straggler_bytes: u64,
    /// There may be such a segment that the mover has not looked at.
    pub(crate) has_straggler: bool,
    pub(crate) closed: bool,
    /// No record will come any more.
    pub(crate) poisoned: Option<Poisoned>,
}

/// A stream as it is durable.
#[derive(Clone, Debug, Default)]
pub(crate) struct StreamIndex {
    pub(crate) trimmed: u64,
    /// Offset after the last durable record.
    pub(crate) end: u64,
    pub(crate) epochs: EpochTable,
    /// Ordered, without overlap.
    spans: Vec<Span>,
}

impl StreamIndex {
    /// Which segment holds which offsets, in order.
    pub(crate) fn spans(&self) -> &[Span] {
        &self.spans
    }
}

impl Index {
    /// Adds an empty, unsealed segment.
    pub(crate) fn add_open_segment(&mut self, generation: u64, number: u64, file: FileId) {
        let frames = Frames::Open(Entries::new());
        let segment =
            SegmentIndex { number, file, frames, frame_bytes: 0, records: 0, live_records: 0 };
        self.segments.insert(generation, segment);
    }

    /// Adds a sealed segment by its runs (for recovery); the epochs of its streams must be known.
    pub(crate) fn add_sealed_segment(
        &mut self,
        generation: u64,
        number: u64,
        file: FileId,
        footer: &FooterHeader,
        runs: &[RunRecord],
    ) {
        let segment = SegmentIndex {
            number,
            file,
            frames: Frames::Sealed(SealedIndex::new(footer)),
            frame_bytes: runs.iter().map(|run| run.frame_bytes.get()).sum(),
            records: footer.records.get(),
            live_records: 0,
        };
        self.segments.insert(generation, segment);
        for run in runs {
            let (base, end) = (run.base_offset.get(), run.end_offset.get());
            self.place(StreamId::new(run.stream.get()), run.epoch.get(), base, end, generation);
        }
        self.has_straggler = true;
        self.note_dead(generation);
    }

    /// Adds a durable frame of an unsealed segment. `batch_offset` is where its batch starts. Returns where the
    /// frame is.
    pub(crate) fn add_frame(
        &mut self,
        generation: u64,
        batch_offset: u64,
        frame: &SealedFrame,
        moved: bool,
    ) -> u32 {
        let end = frame.base + u64::from(frame.count);
        let segment = self.segments.get_mut(&generation).expect("the segment was added");
        segment.frame_bytes += frame.length as u64;
        segment.records += u64::from(frame.count);
        let Frames::Open(entries) = &mut segment.frames else {
            panic!("a sealed segment takes no frame");
        };
        let entries = entries.entry((frame.stream, frame.epoch)).or_default();
        let position =
            u32::try_from(batch_offset + frame.position as u64).expect("segments are below 4 GiB");
        let entry = Entry { base: frame.base, count: frame.count, position, frame_crc: frame.crc };
        let at = match entries.last() {
            Some(last) if last.base > frame.base => {
                entries.partition_point(|other| other.base < frame.base)
            }
            _ => entries.len(),
        };
        entries.insert(at, entry);
        if !moved {
            let stream = self.streams.entry(frame.stream).or_default();
            if frame.epoch > stream.epochs.last().epoch {
                let start = EpochStart { epoch: frame.epoch, start: frame.base };
                stream.epochs.begin(start, stream.trimmed);
            }
            stream.end = stream.end.max(end);
        }
        self.place(frame.stream, frame.epoch, frame.base, end, generation);
        position
    }

    /// Makes `generation` the holder of the part of `base..end` that counts.
    fn place(&mut self, stream_id: StreamId, epoch: u64, base: u64, end: u64, generation: u64) {
        let stream = self.streams.entry(stream_id).or_default();
        let live = stream.epochs.clip(epoch, base.max(stream.trimmed), end.min(stream.end));
        if live.is_empty() {
            return;
        }
        self.segments.get_mut(&generation).expect("the segment was added").live_records +=
            live.end - live.start;
        match stream.spans.last_mut() {
            Some(last) if last.end == live.start && last.generation == generation => {
                last.end = live.end;
            }
            Some(last) if last.end > live.start => self.replace(stream_id, live, Some(generation)),
            _ => stream.spans.push(Span { base: live.start, end: live.end, generation }),
        }
    }

    /// Takes `range` from whoever holds it and gives it to `generation`, or to nobody.
    fn replace(&mut self, stream: StreamId, range: Range<u64>, generation: Option<u64>) {
        let Some(stream) = self.streams.get_mut(&stream) else { return };
        let lost = replace_spans(&mut stream.spans, range, generation);
        for (generation, records) in lost {
            if let Some(segment) = self.segments.get_mut(&generation) {
                let before = segment.live_bytes();
                segment.live_records -= records;
                self.has_straggler |= segment.is_sealed()
                    && before > self.straggler_bytes
                    && segment.live_bytes() <= self.straggler_bytes;
            }
            self.note_dead(generation);
        }
    }

    fn note_dead(&mut self, generation: u64) {
        let dead = self
            .segments
            .get(&generation)
            .is_some_and(|segment| segment.live_records == 0 && segment.is_sealed());
        if dead && !self.dead.contains(&generation) {
            self.dead.push(generation);
        }
    }

    /// Drops what lies below `before`, which may be beyond the end: then the stream goes on there.
    pub(crate) fn trim(&mut self, stream: StreamId, before: u64) {
        let state = self.streams.entry(stream).or_default();
        if before <= state.trimmed {
            return;
        }
        if before > state.end && self.waiting.contains_key(&stream) {
            self.skipped.push(stream);
        }
        state.trimmed = before;
        state.end = state.end.max(before);
        state.epochs.trim(before);
        self.replace(stream, 0..before, None);
    }

    /// Starts an epoch and drops what lies from its start on.
    pub(crate) fn begin_epoch(&mut self, stream: StreamId, start: EpochStart) {
        let state = self.streams.entry(stream).or_default();
        state.epochs.begin(start, state.trimmed);
        state.end = state.end.min(start.start);
        self.replace(stream, start.start..u64::MAX, None);
    }

    /// The frames of an unsealed segment as runs with their entries, by stream and offset.
    pub(crate) fn runs(&self, generation: u64) -> Vec<(RunRecord, Vec<Entry>)> {
        let Some(SegmentIndex { frames: Frames::Open(entries), frame_bytes, records, .. }) =
            self.segments.get(&generation)
        else {
            return Vec::new();
        };
        let mut keys: Vec<_> = entries.keys().copied().collect();
        keys.sort_unstable();
        let bytes_per_record = frame_bytes / (*records).max(1);
        let mut runs: Vec<(RunRecord, Vec<Entry>)> = Vec::new();
        for (stream, epoch) in keys {
            let mut open = false;
            for entry in &entries[&(stream, epoch)] {
                let continues =
                    open && runs.last().is_some_and(|(run, _)| run.end_offset.get() == entry.base);
                if !continues {
                    runs.push((new_run(stream, epoch, entry.base), Vec::new()));
                    open = true;
                }
                let (run, run_entries) = runs.last_mut().expect("just pushed");
                run.end_offset = entry.end().into();
                run.frame_bytes = ((entry.end() - run.base_offset.get()) * bytes_per_record).into();
                run_entries.push(*entry);
            }
        }
        runs
    }

    /// Says that the segment's index is durable in its file.
    pub(crate) fn seal_segment(&mut self, generation: u64, footer: &FooterHeader) {
        if let Some(segment) = self.segments.get_mut(&generation) {
            segment.frames = Frames::Sealed(SealedIndex::new(footer));
        }
        self.has_straggler = true;
        self.note_dead(generation);
    }

    /// Segments that may be freed, oldest first.
    pub(crate) fn take_dead(&mut self) -> Vec<u64> {
        let mut dead = std::mem::take(&mut self.dead);
        dead.sort_unstable();
        dead
    }

    /// Forgets a segment in which nothing counts. Readers that still hold its location notice.
    pub(crate) fn remove_segment(&mut self, generation: u64) -> Option<SegmentIndex> {
        let segment = self.segments.remove(&generation)?;
        assert_eq!(segment.live_records, 0, "a segment with live records is never freed");
        Some(segment)
    }

    /// Where the record at `offset` is, and up to `entries_max` frames from its own on.
    pub(crate) fn locate(
        &self,
        stream: StreamId,
        offset: u64,
        entries_max: usize,
    ) -> Result<(Location, LocatedFrames), NoLocation> {
        let location = self.place_of(stream, offset)?;
        let frames = match &self.segments[&location.generation].frames {
            Frames::Sealed(sealed) => LocatedFrames::Sealed(*sealed),
            Frames::Open(entries) => {
                let entries = entries.get(&(stream, location.epoch)).map_or(&[][..], Vec::as_slice);
                let first = Entry::position_of(entries, offset).unwrap_or(entries.len());
                let until = entries.len().min(first + entries_max);
                LocatedFrames::Entries(entries[first..until].to_vec())
            }
        };
        Ok((location, frames))
    }

    /// As [`Index::locate`], without the frames.
    pub(crate) fn place_of(&self, stream: StreamId, offset: u64) -> Result<Location, NoLocation> {
        let state = self.streams.get(&stream).ok_or(NoLocation::Beyond)?;
        if offset < state.trimmed {
            return Err(NoLocation::Trimmed(state.trimmed));
        }
        if offset >= state.end {
            return Err(NoLocation::Beyond);
        }
        let at = state.spans.partition_point(|span| span.end <= offset);
        let span = match state.spans.get(at) {
            Some(span) if span.base <= offset => *span,
            other => return Err(NoLocation::Hole(other.map_or(state.end, |span| span.base))),
        };
        let segment = &self.segments[&span.generation];
        let epoch = state.epochs.epoch_at(offset);
        Ok(Location {
            number: segment.number,
            generation: span.generation,
            file: segment.file,
            epoch,
            span_end: state.epochs.clip(epoch, offset, span.end).end,
        })
    }

    /// Frames of one epoch of a stream in an unsealed segment, in the order of their offsets; `None`
    /// when it is sealed or gone.
    pub(crate) fn open_entries(
        &self,
        generation: u64,
        stream: StreamId,
        epoch: u64,
    ) -> Option<&[Entry]> {
        match &self.segments.get(&generation)?.frames {
            Frames::Open(entries) => {
                Some(entries.get(&(stream, epoch)).map_or(&[][..], Vec::as_slice))
            }
            Frames::Sealed(_) => None,
        }
    }

    /// Parts of streams that no segment holds though they should be there.
    pub(crate) fn holes(&self) -> Vec<(StreamId, Range<u64>)> {
        let mut holes = Vec::new();
        for (id, stream) in &self.streams {
            let mut next = stream.trimmed;
            for span in &stream.spans {
                if span.base > next {
                    holes.push((*id, next..span.base));
                }
                next = span.end.max(next);
            }
            if next < stream.end {
                holes.push((*id, next..stream.end));
            }
        }
        holes.sort_by_key(|(id, range)| (*id, range.start));
        holes
    }

    /// Parts of a stream that `generation` holds and that count.
    pub(crate) fn spans_of(&self, generation: u64) -> Vec<(StreamId, Span)> {
        let mut spans: Vec<_> = self
            .streams
            .iter()
            .flat_map(|(id, stream)| stream.spans.iter().map(|span| (*id, *span)))
            .filter(|(_, span)| span.generation == generation)
            .collect();
        spans.sort_by_key(|(id, span)| (*id, span.base));
        spans
    }

    /// Calls `waker` when the stream has grown, or the engine closes. A tail has one waker; the one
    /// before is other people's code, and is dropped by the caller, without the lock.
    pub(crate) fn wait_for(&mut self, stream: StreamId, tail: u64, waker: &Waker) -> Option<Waker> {
        let waiting = self.waiting.entry(stream).or_default();
        match waiting.iter_mut().find(|(other, _)| *other == tail) {
            Some((_, known)) if known.will_wake(waker) => None,
            Some((_, known)) => Some(std::mem::replace(known, waker.clone())),
            None => {
                waiting.push((tail, waker.clone()));
                None
            }
        }
    }

    /// Forgets a tail that is gone, and returns its waker.
    pub(crate) fn stop_waiting(&mut self, stream: StreamId, tail: u64) -> Option<Waker> {
        let waiting = self.waiting.get_mut(&stream)?;
        let at = waiting.iter().position(|(other, _)| *other == tail)?;
        let (_, waker) = waiting.swap_remove(at);
        if waiting.is_empty() {
            self.waiting.remove(&stream);
        }
        Some(waker)
    }

    /// Takes the wakers of the streams that grew or skipped.
    pub(crate) fn take_waiting(&mut self, frames: &[SealedFrame]) -> Vec<Waker> {
        let skipped = std::mem::take(&mut self.skipped);
        if self.waiting.is_empty() {
            return Vec::new();
        }
        let grown = frames.iter().map(|frame| frame.stream);
        let waiting = grown.chain(skipped).filter_map(|stream| self.waiting.remove(&stream));
        waiting.flatten().map(|(_, waker)| waker).collect()
    }

    /// Takes the wakers of all streams.
    pub(crate) fn take_all_waiting(&mut self) -> Vec<Waker> {
        self.waiting.drain().flat_map(|(_, waiting)| waiting).map(|(_, waker)| waker).collect()
    }
}

fn new_run(stream: StreamId, epoch: u64, base: u64) -> RunRecord {
    RunRecord {
        stream: stream.get().into(),
        epoch: epoch.into(),
        base_offset: base.into(),
        end_offset: base.into(),
        entry: 0.into(),
        entries: 0.into(),
        frame_bytes: 0.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(stream: u64, epoch: u64, base: u64, count: u32) -> SealedFrame {
        let stream = StreamId::new(stream);
        SealedFrame { stream, epoch, base, count, position: 64, length: 100, crc: 0 }
    }

    fn index(generations: &[u64]) -> Index {
        let mut index = Index::default();
        for generation in generations {
            index.add_open_segment(*generation, *generation, FileId(*generation as u32));
        }
        index
    }

    fn generation(index: &Index, offset: u64) -> Result<u64, NoLocation> {
        index.place_of(StreamId::new(7), offset).map(|location| location.generation)
    }

    #[test]
    fn spans_follow_appends_trims_and_cuts() {
        let mut index = index(&[1, 2]);
        index.add_frame(1, 8192, &frame(7, 0, 0, 10), false);
        index.add_frame(2, 8192, &frame(7, 0, 10, 10), false);
        assert_eq!((generation(&index, 9), generation(&index, 10)), (Ok(1), Ok(2)));
        assert_eq!(generation(&index, 20), Err(NoLocation::Beyond));
        index.begin_epoch(StreamId::new(7), EpochStart { epoch: 1, start: 8 });
        assert_eq!(generation(&index, 8), Err(NoLocation::Beyond));
        index.add_frame(2, 12288, &frame(7, 1, 8, 4), false);
        assert_eq!((generation(&index, 7), generation(&index, 8)), (Ok(1), Ok(2)));
        index.trim(StreamId::new(7), 9);
        assert_eq!(generation(&index, 8), Err(NoLocation::Trimmed(9)));
        assert_eq!(index.segments[&1].live_records, 0);
        assert_eq!(index.segments[&2].live_records, 3);
        assert!(index.holes().is_empty());
    }

    #[test]
    fn a_frame_begins_its_epoch_unless_it_was_moved() {
        let mut index = index(&[1, 2]);
        index.add_frame(1, 8192, &frame(7, 0, 0, 10), false);
        index.add_frame(1, 12288, &frame(7, 3, 10, 10), false);
        index.add_frame(2, 8192, &frame(7, 0, 0, 10), true);
        let epochs = &index.streams[&StreamId::new(7)].epochs;
        assert_eq!(epochs.last(), EpochStart { epoch: 3, start: 10 });
        assert_eq!((epochs.epoch_at(9), epochs.entries().len()), (0, 2));
        assert_eq!((generation(&index, 9), generation(&index, 10)), (Ok(2), Ok(1)));
        let (place, _) = index.locate(StreamId::new(7), 4, 9).unwrap();
        assert_eq!((place.epoch, place.span_end), (0, 10));
    }

    #[test]
    fn an_epoch_that_begins_behind_what_is_trimmed_is_the_only_one() {
        let (mut index, stream) = (index(&[1]), StreamId::new(7));
        index.add_frame(1, 8192, &frame(7, 0, 0, 10), false);
        index.trim(stream, 10);
        index.add_frame(1, 12288, &frame(7, 3, 10, 1), false);
        let begun = EpochStart { epoch: 3, start: 10 };
        assert_eq!(index.streams[&stream].epochs.entries(), [begun]);
        index.trim(stream, 10);
        assert_eq!(index.streams[&stream].epochs.entries(), [begun]);
    }

    #[test]
    fn a_skip_wakes_who_waits_and_leaves_no_hole() {
        let (mut index, stream) = (index(&[1]), StreamId::new(7));
        index.add_frame(1, 8192, &frame(7, 0, 0, 10), false);
        assert!(index.wait_for(stream, 1, Waker::noop()).is_none());
        index.trim(stream, 10);
        assert!(index.take_waiting(&[]).is_empty(), "nothing came, and nothing else will");
        index.trim(stream, 50);
        assert_eq!(index.take_waiting(&[]).len(), 1);
        assert_eq!(generation(&index, 10), Err(NoLocation::Trimmed(50)));
        assert_eq!(generation(&index, 50), Err(NoLocation::Beyond));
        index.add_frame(1, 12288, &frame(7, 0, 50, 2), false);
        assert_eq!(generation(&index, 51), Ok(1));
        assert!(index.holes().is_empty());
    }

    #[test]
    fn a_moved_frame_takes_over_what_still_counts() {
        let mut index = index(&[1, 2, 3]);
        index.add_frame(1, 8192, &frame(7, 0, 0, 10), false);
        index.add_frame(2, 8192, &frame(7, 0, 10, 10), false);
        index.trim(StreamId::new(7), 4);
        index.add_frame(3, 8192, &frame(7, 0, 0, 10), true);
        assert_eq!((generation(&index, 4), generation(&index, 10)), (Ok(3), Ok(2)));
        assert_eq!(index.segments[&1].live_records, 0);
        assert_eq!(index.segments[&3].live_records, 6);
        assert!(index.take_dead().is_empty(), "an unsealed segment is not freed");
        assert!(index.holes().is_empty());
    }

    #[test]
    fn frames_that_are_moved_one_by_one_leave_one_span() {
        let mut index = index(&[1, 2]);
        index.add_frame(1, 8192, &frame(7, 0, 0, 100), false);
        for base in (0..100).step_by(2).chain((1..100).step_by(2)) {
            index.add_frame(2, 8192, &frame(7, 0, base, 1), true);
        }
        let whole = Span { base: 0, end: 100, generation: 2 };
        assert_eq!(index.streams[&StreamId::new(7)].spans(), &[whole]);
    }

    #[test]
    fn runs_are_contiguous_and_ordered() {
        let mut index = index(&[1]);
        index.add_frame(1, 8192, &frame(7, 0, 20, 5), false);
        index.add_frame(1, 8192, &frame(7, 0, 25, 5), false);
        index.add_frame(1, 8192, &frame(7, 0, 3, 2), true);
        index.add_frame(1, 8192, &frame(5, 0, 0, 1), false);
        let runs: Vec<_> = index
            .runs(1)
            .iter()
            .map(|(run, entries)| {
                (run.stream.get(), run.base_offset.get(), run.end_offset.get(), entries.len())
            })
            .collect();
        assert_eq!(runs, [(5, 0, 1, 1), (7, 3, 5, 1), (7, 20, 30, 2)]);
    }

    #[test]
    fn a_missing_part_is_a_hole() {
        let mut index = index(&[1, 3]);
        index.add_frame(1, 8192, &frame(7, 0, 0, 10), false);
        index.add_frame(3, 8192, &frame(7, 0, 15, 5), false);
        assert_eq!(generation(&index, 12), Err(NoLocation::Hole(15)));
        assert_eq!(index.holes(), [(StreamId::new(7), 10..15)]);
    }
}
