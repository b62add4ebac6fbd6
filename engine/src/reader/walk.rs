//! The frames of many streams of one shard, to send them on: each place of a segment is read once
//! for all of them. What continues a stream is decided by its offsets and the index, never by the
//! order in the file.

mod sealed;

use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::{READ_GAP_BYTES, ReadFrame, skip_records};
use crate::disk::{BLOCK_BYTES, BufferMut, block_round_down, block_round_up};
use crate::error::ReadError;
use crate::format::{FRAME_HEADER_BYTES, FormatError, FrameHeader, FrameKind, VerifiedFrame};
use crate::index::{Entry, Location, NoLocation};
use crate::segments::segment_name;
use crate::shared::Shared;
use crate::stream::StreamId;
use crate::subscription::FrameSlice;
use sealed::SealedEntries;

/// Reads the durable frames of many streams of a shard, a piece of a segment at a time, the oldest
/// first. Each frame is as it is on disk, for another engine, which takes it by
/// [`crate::Stream::append_frame`].
///
/// It keeps the index of the sealed segment that it was in last: 24 bytes for each frame.
pub struct FrameWalk {
    shared: Arc<Shared>,
    sealed: Option<SealedEntries>,
    /// Length of the last frame.
    frame_bytes: usize,
}

/// What [`FrameWalk::next_piece`] has read.
#[derive(Debug, Default)]
pub struct FramePiece {
    /// Frames; those of each stream go on from the offset that was wanted, in order and without a
    /// gap.
    pub frames: Vec<FrameSlice>,
    /// Streams of which nothing more was durable behind these frames.
    pub ended: Vec<StreamId>,
    /// Streams that cannot go on, and why: the next record has been trimmed, or cannot be read.
    pub failed: Vec<(StreamId, ReadError)>,
}

/// A wanted stream whose next record lies in the segment that is read.
struct Leg {
    stream: StreamId,
    /// Offset that was wanted.
    next: u64,
    location: Location,
    /// Offset behind what has been read.
    at: u64,
    /// Nothing more of it is read this time.
    is_over: bool,
    trouble: Option<Trouble>,
    /// Offset behind what was read and still counts.
    confirmed: u64,
    /// Epoch, and up to where it was last seen to count.
    counts: Option<(u64, u64)>,
}

/// Why a stream cannot go on.
#[derive(Clone, Debug)]
enum Trouble {
    Io(Arc<io::Error>),
    Damaged { position: u64, cause: String },
}

impl Trouble {
    fn damaged(position: u64, error: &FormatError) -> Self {
        Self::Damaged { position, cause: error.to_string() }
    }

    fn no_entry() -> Self {
        Self::Damaged { position: 0, cause: "its index does not lead to the record".to_owned() }
    }
}

impl Leg {
    fn new(stream: StreamId, next: u64, location: Location) -> Self {
        let (is_over, trouble, counts) = (false, None, None);
        Self { stream, next, location, at: next, is_over, trouble, confirmed: next, counts }
    }

    /// Where its next record is.
    fn first_position(&self, entries: &[Entry]) -> Result<u64, Trouble> {
        let first = Entry::position_of(entries, self.next).ok_or_else(Trouble::no_entry)?;
        Ok(u64::from(entries[first].position))
    }

    /// Its frames from the next record on, as long as each lies behind the one before, in `places`.
    fn plan(&self, entries: &[Entry], places: &Range<u64>, mut each: impl FnMut(Entry)) {
        let first = Entry::position_of(entries, self.next).unwrap_or(entries.len());
        let (mut next, mut places) = (self.next, places.clone());
        for entry in &entries[first..] {
            let position = u64::from(entry.position);
            let goes_on = entry.base <= next && next < self.location.span_end;
            if !goes_on || (entry.holds(next) && !places.contains(&position)) {
                return;
            }
            // An epoch that was cut and came back has the same records twice.
            if entry.holds(next) {
                (next, places.start) = (entry.end(), position);
                each(*entry);
            }
        }
    }

    fn stop(&mut self, trouble: Trouble) {
        self.is_over = true;
        self.trouble = Some(trouble);
    }

    fn error(&self, trouble: Trouble) -> ReadError {
        let (stream, offset) = (self.stream, self.at);
        let file = segment_name(self.location.number);
        match trouble {
            Trouble::Io(cause) => ReadError::Io { stream, offset, file, cause },
            Trouble::Damaged { position, cause } => {
                ReadError::Corrupt { stream, offset, file, position, cause }
            }
        }
    }
}

/// A frame that is to be read.
struct Planned {
    leg: usize,
    entry: Entry,
}

impl Planned {
    fn position(&self) -> u64 {
        u64::from(self.entry.position)
    }
}

/// A part of a segment that was read.
struct Chunk {
    from: u64,
    bytes: Bytes,
}

impl Chunk {
    /// What begins at a byte of the segment.
    fn skip_to(&self, position: u64) -> Bytes {
        self.bytes.slice(((position - self.from) as usize).min(self.bytes.len())..)
    }
}

impl FrameWalk {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, sealed: None, frame_bytes: 0 }
    }

    /// Reads on for these streams, each from the offset of the record that is wanted next: frames
    /// that lie within `bytes_max` of the oldest place that any of them needs, headers included.
    /// The last may go beyond that. A stream that is neither in the answer comes later, when its
    /// place is the oldest. Streams of other shards have ended.
    ///
    /// A frame of which only a part counts comes as a new frame of just those records, as with
    /// [`crate::Frames::next_batch`]. What of a stream cannot be read is in nobody's way. The frames
    /// are slices of the memory that they were read into, of which they are at least half.
    pub fn next_piece(&mut self, wanted: &[(StreamId, u64)], bytes_max: usize) -> FramePiece {
        loop {
            let mut piece = FramePiece::default();
            let mut legs = self.locate(wanted, &mut piece);
            let failed = piece.failed.len();
            let planned = self.plan(&mut legs, bytes_max.max(1) as u64);
            let read = self.read(&mut legs, &planned);
            self.confirm(&mut legs, read, &mut piece);
            let is_stale = piece.frames.is_empty() && piece.failed.len() == failed;
            if legs.is_empty() || !is_stale {
                return piece;
            }
        }
    }

    /// Those of the wanted streams whose next record is in the oldest segment that any needs.
    fn locate(&self, wanted: &[(StreamId, u64)], piece: &mut FramePiece) -> Vec<Leg> {
        let mut legs: Vec<Leg> = Vec::new();
        for &(stream, next) in wanted {
            let place = self.shared.index().place_of(stream, next);
            match place {
                Ok(location) => {
                    let oldest = legs.first().map(|leg| leg.location.generation);
                    if oldest.is_some_and(|oldest| location.generation < oldest) {
                        legs.clear();
                    }
                    if oldest.is_none_or(|oldest| location.generation <= oldest) {
                        legs.push(Leg::new(stream, next, location));
                    }
                }
                Err(NoLocation::Beyond) => piece.ended.push(stream),
                Err(NoLocation::Trimmed(trimmed)) => {
                    let error = ReadError::Trimmed { stream, offset: next, trimmed };
                    piece.failed.push((stream, error));
                }
                Err(NoLocation::Hole(goes_on)) => {
                    let error = ReadError::Missing { stream, offset: next, next: goes_on };
                    piece.failed.push((stream, error));
                }
            }
        }
        legs
    }

    /// Frames in the order of the device, within `window` of the first that any leg needs.
    fn plan(&mut self, legs: &mut [Leg], window: u64) -> Vec<Planned> {
        if let Err(trouble) = self.load_sealed(legs) {
            legs.iter_mut().for_each(|leg| leg.stop(trouble.clone()));
            return Vec::new();
        }
        let mut from = u64::MAX;
        for leg in legs.iter_mut() {
            match self.with_entries(leg, |entries| leg.first_position(entries)) {
                Ok(Some(first)) => from = from.min(first),
                // It was sealed or freed meanwhile.
                Ok(None) => leg.is_over = true,
                Err(trouble) => leg.stop(trouble),
            }
        }
        let (mut planned, places) = (Vec::new(), from..from.saturating_add(window));
        for (number, leg) in legs.iter().enumerate().filter(|(_, leg)| !leg.is_over) {
            let _ = self.with_entries(leg, |entries| {
                leg.plan(entries, &places, |entry| planned.push(Planned { leg: number, entry }));
                Ok(())
            });
        }
        planned.sort_unstable_by_key(Planned::position);
        planned
    }

    /// The index of the segment that the legs are in, when that is sealed.
    fn load_sealed(&mut self, legs: &[Leg]) -> Result<(), Trouble> {
        let Some(Leg { location, .. }) = legs.first() else { return Ok(()) };
        if self.sealed.as_ref().is_some_and(|known| known.generation == location.generation) {
            return Ok(());
        }
        self.sealed = None;
        let sealed = {
            let index = self.shared.index();
            index.segments.get(&location.generation).and_then(|segment| segment.sealed_index())
        };
        if let Some(sealed) = sealed {
            self.sealed = Some(SealedEntries::load(&self.shared, location, sealed)?);
        }
        Ok(())
    }

    /// Gives the frames of a leg, in the order of their offsets, to `with`. `None` when their segment
    /// has been sealed or freed meanwhile.
    fn with_entries<T>(
        &self,
        leg: &Leg,
        with: impl FnOnce(&[Entry]) -> Result<T, Trouble>,
    ) -> Result<Option<T>, Trouble> {
        match &self.sealed {
            Some(sealed) => with(sealed.of(leg)?).map(Some),
            None => {
                let (index, Location { generation, epoch, .. }) =
                    (self.shared.index(), leg.location);
                index.open_entries(generation, leg.stream, epoch).map(with).transpose()
            }
        }
    }

    /// Reads what was planned. A place that cannot be read stops the stream that needs it.
    fn read(&mut self, legs: &mut [Leg], planned: &[Planned]) -> Vec<(usize, ReadFrame)> {
        let mut read = Vec::with_capacity(planned.len());
        let (mut at, mut group_max) = (0, planned.len());
        while at < planned.len() {
            let Leg { is_over, location, .. } = legs[planned[at].leg];
            if is_over {
                at += 1;
                continue;
            }
            let until = planned.len().min(at + group_max);
            let group = &planned[at..at + self.close_together(&planned[at..until])];
            let last = group.last().expect("one at least").position();
            let end = last + self.frame_guess();
            match read_chunk(&self.shared, &location, group[0].position(), end) {
                Ok(chunk) => {
                    at += self.take_frames(legs, group, chunk, &mut read);
                    group_max = planned.len();
                }
                // One bad block must not hide what lies around it.
                Err(_) if group.len() > 1 => group_max = group.len() / 2,
                Err(_) => {
                    self.take_alone(legs, &group[0], &mut read);
                    at += 1;
                }
            }
        }
        read
    }

    fn frame_guess(&self) -> u64 {
        self.frame_bytes.max(BLOCK_BYTES) as u64
    }

    /// How many of these are worth one read.
    fn close_together(&self, planned: &[Planned]) -> usize {
        let reach = self.frame_guess() + READ_GAP_BYTES;
        let gap = planned.windows(2).position(|two| two[0].position() + reach < two[1].position());
        gap.map_or(planned.len(), |gap| gap + 1)
    }

    /// Takes frames out of what was read; how many are done with. One that is not whole is read
    /// again with those behind it, and one that is not whole at the start of a read by itself.
    fn take_frames(
        &mut self,
        legs: &mut [Leg],
        planned: &[Planned],
        chunk: Chunk,
        read: &mut Vec<(usize, ReadFrame)>,
    ) -> usize {
        let before = read.len();
        let mut done = 0;
        for one in planned {
            let leg = &mut legs[one.leg];
            if !leg.is_over {
                match take_frame(leg, one, &chunk.skip_to(one.position())) {
                    Ok(Some(frame)) => {
                        self.frame_bytes = frame.bytes.len();
                        read.push((one.leg, frame));
                    }
                    Ok(None) if done > 0 => break,
                    Ok(None) => {
                        self.take_alone(legs, one, read);
                        return 1;
                    }
                    Err(trouble) => leg.stop(trouble),
                }
            }
            done += 1;
        }
        keep_little(&mut read[before..], chunk.bytes.len());
        done
    }

    /// Reads one frame by itself: its header, and then as much as that says.
    fn take_alone(
        &mut self,
        legs: &mut [Leg],
        planned: &Planned,
        read: &mut Vec<(usize, ReadFrame)>,
    ) {
        let (leg, before) = (&mut legs[planned.leg], read.len());
        match self.read_alone(leg, planned) {
            Ok(frame) => {
                self.frame_bytes = frame.bytes.len();
                read.push((planned.leg, frame));
                keep_little(&mut read[before..], block_round_up(self.frame_bytes));
            }
            Err(trouble) => leg.stop(trouble),
        }
    }

    fn read_alone(&self, leg: &mut Leg, planned: &Planned) -> Result<ReadFrame, Trouble> {
        let position = planned.position();
        let io = |error| Trouble::Io(Arc::new(error));
        let damaged = |error: FormatError| Trouble::damaged(position, &error);
        let end = position + FRAME_HEADER_BYTES as u64;
        let chunk = read_chunk(&self.shared, &leg.location, position, end).map_err(io)?;
        let (header, _) = FrameHeader::verify(&chunk.skip_to(position)).map_err(damaged)?;
        let end = position + header.frame_length() as u64;
        if end > self.shared.segment_bytes {
            return Err(damaged(FormatError::Length));
        }
        let chunk = read_chunk(&self.shared, &leg.location, position, end).map_err(io)?;
        let frame = take_frame(leg, planned, &chunk.skip_to(position))?;
        frame.ok_or_else(|| damaged(FormatError::Length))
    }

    /// What was read counts only where the index still says so: it may have been trimmed or cut.
    fn confirm(&self, legs: &mut [Leg], read: Vec<(usize, ReadFrame)>, piece: &mut FramePiece) {
        for (leg, mut frame) in read {
            let leg = &mut legs[leg];
            if frame.next != leg.confirmed {
                continue;
            }
            frame.end = frame.end.min(self.counts_until(leg, frame.header.epoch.get(), frame.end));
            if frame.next < frame.end {
                leg.confirmed = frame.end;
                piece.frames.push(frame.into_slice());
            }
        }
        for leg in legs {
            let index = self.shared.index();
            let stream = index.streams.get(&leg.stream);
            if leg.confirmed > leg.next && stream.is_none_or(|stream| stream.end <= leg.confirmed) {
                piece.ended.push(leg.stream);
            }
            // The segment may have been freed, and its file have a new life.
            let is_there = index.place_of(leg.stream, leg.at).is_ok_and(|now| {
                let then = &leg.location;
                (now.generation, now.epoch) == (then.generation, then.epoch)
            });
            if let Some(trouble) = leg.trouble.take().filter(|_| is_there) {
                piece.failed.push((leg.stream, leg.error(trouble)));
            }
        }
    }

    /// Up to which offset the records of an epoch count by now, from what is confirmed on.
    fn counts_until(&self, leg: &mut Leg, epoch: u64, wanted: u64) -> u64 {
        let mut end = leg.confirmed;
        while end < wanted {
            if leg.counts.is_none_or(|(of, until)| of != epoch || until <= end) {
                let now = self.shared.index().place_of(leg.stream, end).ok();
                leg.counts = now.map(|now| (now.epoch, now.span_end));
            }
            match leg.counts {
                // In which segment it is by now does not matter: a moved frame is the same.
                Some((of, until)) if of == epoch => end = until,
                _ => break,
            }
        }
        end
    }
}

/// Reads whole blocks from the one that holds `position` on, up to `end` or the end of the segment.
fn read_chunk(shared: &Shared, location: &Location, position: u64, end: u64) -> io::Result<Chunk> {
    let from = block_round_down(position);
    let left = (shared.segment_bytes - from) as usize;
    let length = block_round_up((end - from) as usize).min(left);
    let mut buffer = BufferMut::allocate(length);
    let read = shared.read_at(location.file, from, &mut buffer, length)?;
    Ok(Chunk { from, bytes: buffer.freeze().to_bytes().slice(..read.min(length)) })
}

/// Verifies the frame at the start of `bytes`, and that it is the one that the index promised. `None`
/// when it is not all there.
fn take_frame(
    leg: &mut Leg,
    planned: &Planned,
    bytes: &Bytes,
) -> Result<Option<ReadFrame>, Trouble> {
    let (entry, position) = (&planned.entry, planned.position());
    let header = match VerifiedFrame::verify(bytes) {
        Ok(frame) => frame.header,
        Err(FormatError::Length | FormatError::Short) => return Ok(None),
        Err(error) => return Err(Trouble::damaged(position, &error)),
    };
    let is_expected = header.kind == FrameKind::Data as u8
        && header.stream.get() == leg.stream.get()
        && header.epoch.get() == leg.location.epoch
        && header.base_offset.get() == entry.base
        && header.count.get() == entry.count
        && header.crc.get() == entry.frame_crc;
    if !is_expected {
        let cause = "another frame is in its place".to_owned();
        return Err(Trouble::Damaged { position, cause });
    }
    let bytes = bytes.slice(..header.frame_length());
    let before = leg.at - entry.base;
    let at = skip_records(&bytes, FRAME_HEADER_BYTES, before);
    let (next, end) = (leg.at, header.end_offset().min(leg.location.span_end));
    leg.at = end;
    Ok(Some(ReadFrame { header, bytes, next, at, end, cuts: 0 }))
}

/// When only a little of what was read at once is used, that is copied: whoever keeps it keeps
/// nothing else.
fn keep_little(read: &mut [(usize, ReadFrame)], chunk_bytes: usize) {
    let bytes: usize = read.iter().map(|(_, frame)| frame.bytes.len()).sum();
    if bytes * 2 >= chunk_bytes {
        return;
    }
    let mut copy = Vec::with_capacity(bytes);
    read.iter().for_each(|(_, frame)| copy.extend_from_slice(&frame.bytes));
    let mut copy = Bytes::from(copy);
    for (_, frame) in read {
        frame.bytes = copy.split_to(frame.bytes.len());
    }
}

impl std::fmt::Debug for FrameWalk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FrameWalk").field("shard", &self.shared.shard).finish_non_exhaustive()
    }
}
