//! One group commit in memory: fill it with commands, then seal it. No clock, no flush, no lock.
//!
//! The bytes are laid out while callers append (one copy each), with gaps for the headers; sealing
//! assigns offsets, fills the headers in and computes the checksums.

use std::sync::Arc;

use zerocopy::IntoBytes;
use zerocopy::little_endian::U32;

use crate::control::Control;
use crate::disk::{Buffer, BufferMut, block_round_up};
use crate::error::Refusal;
use crate::format::{
    BATCH_HEADER_BYTES, BatchHeader, FRAME_HEADER_BYTES, FrameHeader, FrameKind,
    RECORD_PREFIX_BYTES, SegmentSeed, batch_flags,
};
use crate::frame_fence::FenceRead;
use crate::own_epoch::OwnEpochRead;
use crate::receipt::{FrameOutcome, Place, Ticket};
use crate::stream::{EpochStart, StreamId, StreamTable};

/// A batch that still takes commands.
#[derive(Debug)]
pub(crate) struct Filling {
    buffer: BufferMut,
    length: usize,
    frames: Vec<Draft>,
    ticket: Arc<Ticket>,
    records: u64,
    /// When its first command came, in the shard's nanoseconds.
    pub(crate) oldest_ns: u64,
    /// See [`crate::format::batch_flags`].
    pub(crate) flags: u32,
}

/// A frame whose header is not written yet.
#[derive(Debug)]
struct Draft {
    kind: DraftKind,
    stream: StreamId,
    /// Byte of the header in the batch.
    position: usize,
    payload_length: usize,
    count: u32,
    /// Whether a later record of the stream may join it.
    open: bool,
}

#[derive(Debug)]
enum DraftKind {
    /// Records of this node.
    Own,
    /// A verified frame from elsewhere: must continue its stream exactly, and must not have been
    /// given before the fence was raised.
    Foreign { given: FenceRead },
    /// A verified frame of this shard, copied from an older segment.
    Moved,
    /// Facts of the shard itself, or a change that is checked against the streams when it is
    /// sealed.
    Control { asked: Option<Asked> },
}

/// A change of a stream that somebody asks for; where it is allowed it becomes a fact.
#[derive(Clone, Debug)]
pub(crate) enum Asked {
    /// Drops what lies below `before`.
    Trim { stream: StreamId, before: u64 },
    /// As a trim; `before` may lie beyond the end.
    SkipTo { stream: StreamId, before: u64 },
    /// Begins an epoch, and cuts what is there.
    Cut { stream: StreamId, start: EpochStart },
    /// Drops all that there is; the stream goes on where the epoch begins.
    BeginAnew { stream: StreamId, start: EpochStart },
    /// Nothing: its outcome tells that of every batch before it.
    Barrier,
}

impl Asked {
    /// Whose; what is of the whole shard goes by the name of stream 0.
    pub(crate) fn stream(&self) -> StreamId {
        match self {
            Self::Trim { stream, .. }
            | Self::SkipTo { stream, .. }
            | Self::Cut { stream, .. }
            | Self::BeginAnew { stream, .. } => *stream,
            Self::Barrier => StreamId::new(0),
        }
    }

    /// What it says when it is allowed, as bytes of a control frame.
    fn encode(&self, into: &mut Vec<u8>) {
        match *self {
            Self::Trim { stream, before } | Self::SkipTo { stream, before } => {
                Control::Trim { stream, before }.encode(into);
            }
            Self::Cut { stream, start } => Control::Epoch { stream, start }.encode(into),
            // Two facts in one frame: a crash keeps both or none, and no checkpoint is between.
            Self::BeginAnew { stream, start } => {
                Control::Trim { stream, before: start.start }.encode(into);
                Control::Epoch { stream, start }.encode(into);
            }
            Self::Barrier => {}
        }
    }

    fn decide(&self, streams: &mut StreamTable) -> Result<(), Refusal> {
        match *self {
            Self::Trim { stream, before } => streams.trim(stream, before),
            Self::SkipTo { stream, before } => streams.skip_to(stream, before),
            Self::Cut { stream, start } => streams.begin_epoch(stream, start),
            Self::BeginAnew { stream, start } => streams.begin_anew(stream, start),
            Self::Barrier => Ok(()),
        }
    }
}

/// A frame of a sealed batch.
#[derive(Clone, Debug)]
pub(crate) struct SealedFrame {
    pub(crate) stream: StreamId,
    pub(crate) epoch: u64,
    pub(crate) base: u64,
    pub(crate) count: u32,
    /// Byte of its header in the batch.
    pub(crate) position: usize,
    /// Bytes of header and payload.
    pub(crate) length: usize,
    /// CRC of its header.
    pub(crate) crc: u32,
}

impl SealedFrame {
    /// Bytes of its records.
    pub(crate) fn payload_bytes(&self) -> u64 {
        (self.length - FRAME_HEADER_BYTES - self.count as usize * RECORD_PREFIX_BYTES) as u64
    }
}

/// A batch whose bytes will never change.
#[derive(Debug)]
pub(crate) struct Sealed {
    pub(crate) buffer: Buffer,
    /// Bytes to write: whole blocks.
    pub(crate) padded_length: usize,
    /// Its header's CRC: the next link of the chain.
    pub(crate) crc: u32,
    pub(crate) sequence: u64,
    /// Generation of its segment.
    pub(crate) generation: u64,
    /// Data frames.
    pub(crate) frames: Vec<SealedFrame>,
    /// Facts about streams and segments in it.
    pub(crate) controls: Vec<Control>,
    pub(crate) outcomes: Vec<FrameOutcome>,
    pub(crate) ticket: Arc<Ticket>,
    pub(crate) records: u64,
    pub(crate) payload_bytes: u64,
    pub(crate) oldest_ns: u64,
    pub(crate) moved: bool,
}

/// Where a batch goes and what it follows.
#[derive(Copy, Clone, Debug)]
pub(crate) struct SealPlace {
    pub(crate) seed: SegmentSeed,
    pub(crate) generation: u64,
    pub(crate) offset: u64,
    pub(crate) sequence: u64,
    pub(crate) durable_sequence: u64,
    pub(crate) incarnation: u64,
    pub(crate) previous_crc: u32,
    pub(crate) timestamp_ns: u64,
    /// In which epoch records of this node are written, if they are.
    pub(crate) own_epoch: OwnEpochRead,
    /// Which frames from elsewhere are written.
    pub(crate) frame_fence: FenceRead,
}

/// Bytes that a record takes in a frame.
pub(crate) const fn record_bytes(length: usize) -> usize {
    RECORD_PREFIX_BYTES + length
}

/// Payload bytes that one batch of `batch_bytes` can hold in one frame.
pub(crate) const fn payload_bytes_max(batch_bytes: usize) -> usize {
    batch_bytes - BATCH_HEADER_BYTES - FRAME_HEADER_BYTES
}

/// Bytes of a batch with one frame of `payload` bytes.
pub(crate) const fn frame_bytes(payload: usize) -> usize {
    BATCH_HEADER_BYTES + FRAME_HEADER_BYTES + payload
}

impl Filling {
    /// An empty batch in `buffer`.
    pub(crate) fn new(buffer: BufferMut, now_ns: u64) -> Self {
        Self {
            buffer,
            length: BATCH_HEADER_BYTES,
            frames: Vec::with_capacity(8),
            ticket: Arc::default(),
            records: 0,
            oldest_ns: now_ns,
            flags: 0,
        }
    }

    /// Number of frames.
    pub(crate) fn frames(&self) -> usize {
        self.frames.len()
    }

    /// Number of records.
    pub(crate) fn records(&self) -> u64 {
        self.records
    }

    /// Bytes so far.
    pub(crate) fn length(&self) -> usize {
        self.length
    }

    /// Bytes on disk.
    pub(crate) fn padded_length(&self) -> usize {
        block_round_up(self.length)
    }

    /// Whether it holds records that are durable already.
    pub(crate) fn is_moved(&self) -> bool {
        self.flags & batch_flags::MOVED != 0
    }

    /// Whether `payload` more bytes of the stream fit.
    pub(crate) fn has_room(&self, stream: StreamId, payload: usize) -> bool {
        let header = if self.continues(stream) { 0 } else { FRAME_HEADER_BYTES };
        self.length + header + payload <= self.buffer.len()
    }

    /// Whether a frame of its own with `payload` bytes fits.
    pub(crate) fn has_room_for_frame(&self, payload: usize) -> bool {
        self.length + FRAME_HEADER_BYTES + payload <= self.buffer.len()
    }

    fn continues(&self, stream: StreamId) -> bool {
        self.frames.last().is_some_and(|frame| frame.open && frame.stream == stream)
    }

    /// Adds records that stay together; room was checked.
    pub(crate) fn push_records<'a>(
        &mut self,
        stream: StreamId,
        records: impl Iterator<Item = &'a [u8]>,
    ) -> Place {
        if !self.continues(stream) {
            self.begin(DraftKind::Own, stream, true);
        }
        let (mut position, start) = (self.length, self.length);
        let mut count = 0;
        for record in records {
            let end = position + record_bytes(record.len());
            let (prefix, bytes) = self.buffer[position..end].split_at_mut(RECORD_PREFIX_BYTES);
            prefix.copy_from_slice(&(record.len() as u32).to_le_bytes());
            bytes.copy_from_slice(record);
            position = end;
            count += 1;
        }
        let payload = position - start;
        self.finish(payload, count)
    }

    /// Adds a verified frame from elsewhere as it is; room was checked.
    pub(crate) fn push_foreign(
        &mut self,
        header: &FrameHeader,
        payload: &[u8],
        given: FenceRead,
    ) -> Place {
        self.push_frame(DraftKind::Foreign { given }, header, payload)
    }

    /// Adds a verified frame of this shard as it is; room was checked.
    pub(crate) fn push_moved(&mut self, header: &FrameHeader, payload: &[u8]) -> Place {
        self.push_frame(DraftKind::Moved, header, payload)
    }

    fn push_frame(&mut self, kind: DraftKind, header: &FrameHeader, payload: &[u8]) -> Place {
        self.begin(kind, StreamId::new(header.stream.get()), false);
        let start = self.length;
        self.buffer[start - FRAME_HEADER_BYTES..start].copy_from_slice(header.as_bytes());
        self.buffer[start..start + payload.len()].copy_from_slice(payload);
        self.finish(payload.len(), header.count.get())
    }

    /// Adds a change that was asked for, to be checked when it is sealed; room was checked.
    pub(crate) fn push_asked(&mut self, asked: Asked) -> Place {
        let mut payload = Vec::new();
        asked.encode(&mut payload);
        self.push_control(asked.stream(), &payload, Some(asked))
    }

    /// Adds facts of the shard itself; room was checked.
    pub(crate) fn push_facts(&mut self, payload: &[u8]) -> Place {
        self.push_control(StreamId::new(0), payload, None)
    }

    fn push_control(&mut self, stream: StreamId, payload: &[u8], asked: Option<Asked>) -> Place {
        self.begin(DraftKind::Control { asked }, stream, false);
        let start = self.length;
        self.buffer[start..start + payload.len()].copy_from_slice(payload);
        self.finish(payload.len(), 0)
    }

    fn begin(&mut self, kind: DraftKind, stream: StreamId, open: bool) {
        let position = self.length;
        self.length += FRAME_HEADER_BYTES;
        self.frames.push(Draft { kind, stream, position, payload_length: 0, count: 0, open });
    }

    fn finish(&mut self, payload: usize, count: u32) -> Place {
        self.length += payload;
        self.records += u64::from(count);
        let frame = self.frames.len() as u32 - 1;
        let draft = self.frames.last_mut().expect("begin pushed one");
        let record = draft.count;
        draft.payload_length += payload;
        draft.count += count;
        Place {
            ticket: self.ticket.clone(),
            stream: draft.stream,
            frame,
            record,
            count,
            registered: None,
        }
    }

    /// The ticket, for failing a batch that will never be written.
    pub(crate) fn into_ticket(self) -> Arc<Ticket> {
        self.ticket
    }

    /// Assigns offsets, writes every header and zeroes the padding.
    pub(crate) fn seal(mut self, streams: &mut StreamTable, place: SealPlace) -> Sealed {
        let mut sealed_frames = Vec::with_capacity(self.frames.len());
        let mut outcomes = Vec::with_capacity(self.frames.len());
        let mut controls = Vec::new();
        let mut frames_crc = 0;
        let frames = std::mem::take(&mut self.frames);
        let count = frames.len() as u32;
        for draft in frames {
            let (position, length) = (draft.position, FRAME_HEADER_BYTES + draft.payload_length);
            let outcome = self.seal_frame(&draft, streams, &place);
            let header = &self.buffer[position..position + FRAME_HEADER_BYTES];
            frames_crc = crc32c::crc32c_append(frames_crc, header);
            if let (FrameOutcome::Placed { base, epoch }, true) = (&outcome, draft.count > 0) {
                sealed_frames.push(SealedFrame {
                    stream: draft.stream,
                    epoch: *epoch,
                    base: *base,
                    count: draft.count,
                    position,
                    length,
                    crc: FrameHeader::stored_crc(header),
                });
            }
            if let (DraftKind::Control { .. }, FrameOutcome::Placed { .. }) = (draft.kind, &outcome)
            {
                controls.extend(self.facts(position, length));
            }
            outcomes.push(outcome);
        }
        let payload_bytes = sealed_frames.iter().map(SealedFrame::payload_bytes).sum();
        let records = sealed_frames.iter().map(|frame| u64::from(frame.count)).sum();
        let padded_length = self.padded_length();
        self.buffer[self.length..padded_length].fill(0);
        let crc = self.seal_batch_header(place, count, frames_crc);
        Sealed {
            buffer: self.buffer.freeze(),
            padded_length,
            crc,
            sequence: place.sequence,
            generation: place.generation,
            frames: sealed_frames,
            controls,
            outcomes,
            ticket: self.ticket,
            records,
            payload_bytes,
            oldest_ns: self.oldest_ns,
            moved: self.flags & batch_flags::MOVED != 0,
        }
    }

    fn facts(&self, position: usize, length: usize) -> Vec<Control> {
        Control::decode_all(&self.buffer[position + FRAME_HEADER_BYTES..position + length])
            .expect("they were encoded when pushed")
    }

    /// Decides what the frame is worth now and writes its header.
    fn seal_frame(
        &mut self,
        draft: &Draft,
        streams: &mut StreamTable,
        place: &SealPlace,
    ) -> FrameOutcome {
        let (timestamp_ns, own_epoch) = (place.timestamp_ns, place.own_epoch);
        let start = draft.position + FRAME_HEADER_BYTES;
        let payload = start..start + draft.payload_length;
        let verified = |buffer: &[u8]| {
            FrameHeader::verify(&buffer[draft.position..]).expect("it was verified when pushed").0
        };
        let outcome = match &draft.kind {
            // A caller's iterator that panicked leaves a frame without a record.
            DraftKind::Own if draft.count == 0 => {
                self.write_unplaced(FrameKind::Void, draft, timestamp_ns);
                return FrameOutcome::Placed { base: 0, epoch: 0 };
            }
            DraftKind::Own => {
                let (base, epoch) = match streams.append_own(draft.stream, own_epoch, draft.count) {
                    Ok(place) => place,
                    Err(refusal) => {
                        self.write_unplaced(FrameKind::Void, draft, timestamp_ns);
                        return FrameOutcome::Refused(refusal);
                    }
                };
                let header = FrameHeader::new(
                    FrameKind::Data,
                    draft.stream.get(),
                    epoch,
                    base,
                    draft.count,
                    timestamp_ns,
                    &self.buffer[payload.clone()],
                );
                self.buffer[draft.position..start].copy_from_slice(header.as_bytes());
                return FrameOutcome::Placed { base, epoch };
            }
            DraftKind::Foreign { given } if given.is_behind(place.frame_fence) => {
                Err(Refusal::Fenced { stream: draft.stream })
            }
            DraftKind::Foreign { .. } => {
                let header = verified(&self.buffer);
                let (base, epoch) = (header.base_offset.get(), header.epoch.get());
                streams
                    .append_frame(draft.stream, epoch, base, draft.count)
                    .map(|()| FrameOutcome::Placed { base, epoch })
            }
            DraftKind::Moved => {
                let header = verified(&self.buffer);
                let (base, epoch) = (header.base_offset.get(), header.epoch.get());
                streams
                    .check_live(draft.stream, epoch, base, header.end_offset())
                    .map(|()| FrameOutcome::Placed { base, epoch })
            }
            DraftKind::Control { asked } => {
                let decision = asked.as_ref().map_or(Ok(()), |asked| asked.decide(streams));
                if decision.is_ok() {
                    self.write_unplaced(FrameKind::Control, draft, timestamp_ns);
                }
                decision.map(|()| FrameOutcome::Placed { base: 0, epoch: 0 })
            }
        };
        outcome.unwrap_or_else(|refusal| {
            self.write_unplaced(FrameKind::Void, draft, timestamp_ns);
            FrameOutcome::Refused(refusal)
        })
    }

    fn write_unplaced(&mut self, kind: FrameKind, draft: &Draft, timestamp_ns: u64) {
        let start = draft.position + FRAME_HEADER_BYTES;
        let payload = &self.buffer[start..start + draft.payload_length];
        let header = FrameHeader::new(kind, draft.stream.get(), 0, 0, 0, timestamp_ns, payload);
        self.buffer[draft.position..start].copy_from_slice(header.as_bytes());
    }

    fn seal_batch_header(&mut self, place: SealPlace, frames: u32, frames_crc: u32) -> u32 {
        let header = BatchHeader {
            magic: BatchHeader::magic(),
            crc: U32::ZERO,
            generation: place.generation.into(),
            sequence: place.sequence.into(),
            durable_sequence: place.durable_sequence.into(),
            incarnation: place.incarnation.into(),
            previous_crc: place.previous_crc.into(),
            frames_crc: frames_crc.into(),
            length: (self.length as u32).into(),
            frames: frames.into(),
            flags: self.flags.into(),
            reserved: U32::ZERO,
        };
        header.write(place.seed, place.offset, &mut self.buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::verify_frames;
    use crate::frame_fence::FrameFence;

    fn place() -> SealPlace {
        SealPlace {
            seed: SegmentSeed::new(&[1; 16], 0, 1),
            generation: 1,
            offset: 8192,
            sequence: 1,
            durable_sequence: 0,
            incarnation: 1,
            previous_crc: 0,
            timestamp_ns: 0,
            own_epoch: OwnEpochRead::open(0),
            frame_fence: FrameFence::default().get(),
        }
    }

    fn filling() -> Filling {
        let mut buffer = BufferMut::allocate(64 << 10);
        buffer.fill(0xAA);
        Filling::new(buffer, 0)
    }

    #[test]
    fn what_is_sealed_verifies_and_carries_the_records() {
        let (a, b) = (StreamId::new(10), StreamId::new(11));
        let mut filling = filling();
        let first = filling.push_records(a, [b"one".as_slice()].into_iter());
        let second = filling.push_records(a, [b"two".as_slice(), b""].into_iter());
        let third = filling.push_records(b, [b"three".as_slice()].into_iter());
        assert_eq!((first.frame, second.frame, second.record, third.frame), (0, 0, 1, 1));
        let mut streams = StreamTable::new(Default::default(), 100);
        streams.append(b, 0, 5).unwrap();
        let sealed = filling.seal(&mut streams, place());
        let header = BatchHeader::verify(&sealed.buffer, place().seed, 8192).unwrap();
        let mut seen = Vec::new();
        verify_frames(&header, &sealed.buffer, |_, frame| {
            for record in frame.records() {
                seen.push((
                    frame.header.stream.get(),
                    frame.header.base_offset.get(),
                    record.to_vec(),
                ));
            }
        })
        .unwrap();
        let expected = [
            (10, 0, b"one".to_vec()),
            (10, 0, b"two".to_vec()),
            (10, 0, vec![]),
            (11, 5, b"three".to_vec()),
        ];
        assert_eq!(seen, expected);
        assert!(
            sealed.buffer[header.length.get() as usize..sealed.padded_length]
                .iter()
                .all(|b| *b == 0)
        );
        assert_eq!(sealed.payload_bytes, 11);
    }

    #[test]
    fn a_refused_command_becomes_void_and_leaves_no_hole() {
        let stream = StreamId::new(10);
        let mut filling = filling();
        filling.push_asked(Asked::Trim { stream, before: 9 });
        filling.push_records(stream, [b"x".as_slice()].into_iter());
        let start = EpochStart { epoch: 1, start: 1 };
        filling.push_asked(Asked::Cut { stream, start });
        let sealed = filling.seal(&mut StreamTable::new(Default::default(), 100), place());
        assert!(matches!(sealed.outcomes[0], FrameOutcome::Refused(_)));
        assert!(matches!(sealed.outcomes[1], FrameOutcome::Placed { base: 0, epoch: 0 }));
        assert_eq!(sealed.controls, [Control::Epoch { stream, start }]);
        let header = BatchHeader::verify(&sealed.buffer, place().seed, 8192).unwrap();
        let mut kinds = Vec::new();
        verify_frames(&header, &sealed.buffer, |_, frame| kinds.push(frame.kind)).unwrap();
        assert_eq!(kinds, [FrameKind::Void, FrameKind::Data, FrameKind::Control]);
    }

    #[test]
    fn beginning_anew_is_one_frame_of_two_facts() {
        let stream = StreamId::new(10);
        let mut filling = filling();
        let mut streams = StreamTable::new(Default::default(), 100);
        let start = EpochStart { epoch: 1, start: 9 };
        filling.push_asked(Asked::BeginAnew { stream, start });
        filling.push_asked(Asked::BeginAnew { stream, start: EpochStart { epoch: 2, start: 8 } });
        let sealed = filling.seal(&mut streams, place());
        assert_eq!(sealed.outcomes.len(), 2);
        assert!(matches!(sealed.outcomes[1], FrameOutcome::Refused(_)));
        let facts = [Control::Trim { stream, before: 9 }, Control::Epoch { stream, start }];
        assert_eq!(sealed.controls, facts);
    }

    #[test]
    fn only_records_of_this_node_carry_its_epoch() {
        let (own, foreign) = (StreamId::new(10), StreamId::new(11));
        let payload = [1u32.to_le_bytes().as_slice(), b"x"].concat();
        let header = FrameHeader::new(FrameKind::Data, foreign.get(), 3, 0, 1, 0, &payload);
        let mut filling = filling();
        filling.push_records(own, [b"x".as_slice()].into_iter());
        filling.push_foreign(&header, &payload, place().frame_fence);
        let mut streams = StreamTable::new(Default::default(), 100);
        let sealed =
            filling.seal(&mut streams, SealPlace { own_epoch: OwnEpochRead::open(5), ..place() });
        let epochs: Vec<_> = sealed.frames.iter().map(|frame| frame.epoch).collect();
        assert_eq!(epochs, [5, 3]);
        let written: Vec<_> = sealed
            .frames
            .iter()
            .map(|frame| FrameHeader::verify(&sealed.buffer[frame.position..]).unwrap().0)
            .map(|header| header.epoch.get())
            .collect();
        assert_eq!(written, epochs);
        assert!(sealed.controls.is_empty(), "the frame itself begins the epoch");
    }
}
