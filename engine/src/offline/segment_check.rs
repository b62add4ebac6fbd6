//! Reads a live segment in full: every batch with all its checksums, their chain, the padding, and
//! then its footer and index against what the batches would give.

use std::collections::HashMap;
use std::io;
use std::ops::Range;

use crate::control::Control;
use crate::disk::{BLOCK_BYTES, BufferMut, block_round_up};
use crate::footer::{FooterBlocks, SealFacts, build};
use crate::format::{
    BatchHeader, DATA_START, ENTRY_BYTES, FooterHeader, JournalEnd, RUN_BYTES, verify_frames,
};
use crate::index::Index;
use crate::recovery::{WalkedContents, WalkedSegment};
use crate::scan::{Found, VerifiedBatch};
use crate::stream::{EpochTable, StreamId};

use super::places::{Place, Source};
use super::{StreamRange, subtract};

/// A part that is not as it was written.
#[derive(Clone, Debug)]
pub(super) struct BadPart {
    pub(super) bytes: Range<u64>,
    pub(super) what: String,
}

/// Padding that is not zero: its block as it should be.
#[derive(Clone, Debug)]
pub(super) struct BadPadding {
    pub(super) bytes: Range<u64>,
    pub(super) block_offset: u64,
    pub(super) block: Vec<u8>,
}

/// What the batches of one segment are.
#[derive(Default)]
pub(super) struct SegmentCheck {
    pub(super) batches: u64,
    pub(super) records: u64,
    pub(super) payload_bytes: u64,
    /// Bytes of batches.
    pub(super) bytes: u64,
    pub(super) bad: Vec<BadPart>,
    pub(super) padding: Vec<BadPadding>,
    /// What is bad holds nothing that counts.
    pub(super) is_harmless: bool,
    /// The last batch before anything bad.
    pub(super) good_end: Option<JournalEnd>,
    pub(super) last: JournalEnd,
    /// The frames, as an unsealed segment.
    index: Index,
    found: HashMap<StreamId, Vec<(u64, Range<u64>)>>,
    checkpoints: Vec<u64>,
    /// Sequence and CRC that the next batch must follow.
    chain: Option<(u64, u32)>,
}

/// Checks the batches of `segment` up to its end.
pub(super) fn check_segment(
    segment: &WalkedSegment,
    source: Source<'_>,
) -> io::Result<SegmentCheck> {
    let mut check = SegmentCheck::default();
    let found = &segment.found;
    check.index.add_open_segment(found.generation(), found.number(), found.file);
    check.chain = Some((segment.first_sequence.wrapping_sub(1), segment.first_previous_crc));
    source.places(DATA_START..segment.end_offset, |place| {
        check.take(segment, source, &place);
        true
    })?;
    check.finish(segment);
    Ok(check)
}

impl SegmentCheck {
    fn take(&mut self, segment: &WalkedSegment, source: Source<'_>, place: &Place<'_>) {
        match &place.found {
            Found::Batch(batch) => self.take_batch(segment, batch, place.bytes),
            Found::Damaged(header) => {
                let what = describe_damaged(header, place.bytes, place.offset);
                self.note_bad(place.offset, header.padded_length() as u64, what);
            }
            Found::Nothing | Found::NeedBytes => {
                let what = match BatchHeader::verify(place.bytes, source.seed, place.offset) {
                    _ if place.bytes.is_empty() => "the file ends before its batches do".into(),
                    Err(error) => format!("no batch header where one must be ({error})"),
                    Ok(_) => "a batch of another life of the file is in its place".into(),
                };
                let length = match place.bytes.len() as u64 {
                    0 => segment.end_offset - place.offset,
                    length => length,
                };
                self.note_bad(place.offset, length, what);
            }
        }
    }

    fn note_bad(&mut self, offset: u64, length: u64, what: String) {
        self.chain = None;
        match self.bad.last_mut() {
            Some(last) if last.bytes.end == offset => last.bytes.end = offset + length,
            _ => self.bad.push(BadPart { bytes: offset..offset + length, what }),
        }
    }

    fn take_batch(&mut self, segment: &WalkedSegment, batch: &VerifiedBatch, bytes: &[u8]) {
        let header = &batch.header;
        let (sequence, crc) = (header.sequence.get(), header.crc.get());
        let length = header.padded_length() as u64;
        let follows = self.chain.is_none_or(|(last, last_crc)| {
            sequence == last.wrapping_add(1) && header.previous_crc.get() == last_crc
        });
        if !follows || header.incarnation.get() != segment.found.header.incarnation.get() {
            let what = format!("batch {sequence} does not follow the one before it");
            self.note_bad(batch.offset, length, what);
        }
        self.chain = Some((sequence, crc));
        self.batches += 1;
        self.bytes += length;
        self.payload_bytes += batch.payload_bytes;
        self.last = JournalEnd {
            number: segment.found.number(),
            generation: segment.found.generation(),
            offset: batch.end_offset(),
            sequence,
            crc,
        };
        if self.bad.is_empty() {
            self.good_end = Some(self.last);
        }
        if batch.controls.contains(&Control::CheckpointBegin) {
            self.checkpoints.push(batch.offset);
        }
        for frame in &batch.frames {
            let end = frame.base + u64::from(frame.count);
            self.records += u64::from(frame.count);
            let generation = segment.found.generation();
            self.index.add_frame(generation, batch.offset, frame, true);
            self.found.entry(frame.stream).or_default().push((frame.epoch, frame.base..end));
        }
        self.check_padding(batch, bytes);
    }

    fn check_padding(&mut self, batch: &VerifiedBatch, bytes: &[u8]) {
        let used = batch.header.length.get() as usize;
        let is_set = |byte: &u8| *byte != 0;
        let Some(first) = bytes[used..].iter().position(is_set) else { return };
        let last = bytes[used..].iter().rposition(is_set).unwrap_or(first);
        let at = |index: usize| batch.offset + (used + index) as u64;
        let block_start = (used - 1) / BLOCK_BYTES * BLOCK_BYTES;
        let mut block = bytes[block_start..].to_vec();
        block[used - block_start..].fill(0);
        self.padding.push(BadPadding {
            bytes: at(first)..at(last) + 1,
            block_offset: batch.offset + block_start as u64,
            block,
        });
    }

    /// The end must be the one that the journal has.
    fn finish(&mut self, segment: &WalkedSegment) {
        let end = segment.end();
        if self.bad.is_empty() && self.last != end {
            let what = format!(
                "the batches end at byte {} with batch {}, not with batch {}",
                self.last.offset, self.last.sequence, end.sequence
            );
            self.bad.push(BadPart { bytes: self.last.offset..end.offset.max(1), what });
        }
    }

    /// Whether every batch is as it was written.
    pub(super) fn is_complete(&self) -> bool {
        self.bad.is_empty()
    }

    /// Records that count, that this segment should hold, and that no good batch of it holds.
    pub(super) fn lost(&self, spans: &[(StreamId, Range<u64>)], index: &Index) -> Vec<StreamRange> {
        let mut lost = Vec::new();
        for (stream, span) in spans {
            let epochs: &EpochTable = &index.streams[stream].epochs;
            let held: Vec<_> = self
                .found
                .get(stream)
                .into_iter()
                .flatten()
                .map(|(epoch, range)| epochs.clip(*epoch, range.start, range.end))
                .collect();
            for range in subtract(span.clone(), &held) {
                lost.extend(StreamRange::split(*stream, epochs, range));
            }
        }
        lost
    }

    /// The footer and index that the batches give, with what only the old footer knows.
    pub(super) fn rebuilt_footer(
        &self,
        segment: &WalkedSegment,
        segment_bytes: u64,
        old: Option<&FooterHeader>,
    ) -> FooterBlocks {
        let generation = segment.found.generation();
        let checkpoint_offset = old.map_or(0, |footer| footer.checkpoint_offset.get());
        let successor = old.and_then(|footer| {
            let generation = footer.successor_generation.get();
            (generation != 0).then(|| (footer.successor_number.get(), generation))
        });
        let facts = SealFacts {
            generation,
            seed: segment.found.header.seed(),
            segment_bytes,
            first_sequence: segment.first_sequence,
            first_previous_crc: segment.first_previous_crc,
            last_sequence: segment.last_sequence,
            last_crc: segment.last_crc,
            end_offset: segment.end_offset,
            checkpoint_offset: match checkpoint_offset {
                offset if self.checkpoints.contains(&offset) => offset,
                _ => 0,
            },
            successor,
            records: self.records,
            payload_bytes: self.payload_bytes,
        };
        build(&facts, self.index.runs(generation))
    }

    /// What is wrong with the index and footer of a sealed segment, and what they should be.
    pub(super) fn check_footer(
        &self,
        segment: &WalkedSegment,
        source: Source<'_>,
        segment_bytes: u64,
    ) -> io::Result<Option<(BadPart, FooterBlocks)>> {
        let read = |offset, length| {
            let length = block_round_up(length);
            let mut bytes = BufferMut::allocate(length);
            let read = source.reader.read_at(source.file, offset, &mut bytes, length)?;
            Ok::<_, io::Error>(bytes[..read].to_vec())
        };
        let footer_offset = FooterHeader::offset(segment_bytes);
        let whole = footer_offset..segment_bytes;
        let WalkedContents::Sealed(footer, _) = &segment.contents else {
            let block = read(footer_offset, BLOCK_BYTES)?;
            let seed = segment.found.header.seed();
            if let Ok(footer) = FooterHeader::verify(&block, seed, segment_bytes) {
                // With its runs right, it would have been taken as sealed.
                let runs = footer.runs_offset.get();
                let bytes = runs..runs + u64::from(footer.runs.get()) * RUN_BYTES as u64;
                let what = "the runs of its index are damaged; the batches are whole".into();
                let blocks = self.rebuilt_footer(segment, segment_bytes, Some(&footer));
                return Ok(Some((BadPart { bytes, what }, blocks)));
            }
            let blocks = self.rebuilt_footer(segment, segment_bytes, None);
            // What an earlier life of the file left there is no damage.
            return Ok(resembles(&block, &blocks.footer).then(|| {
                let what = "the footer is damaged; the batches are whole".into();
                (BadPart { bytes: whole, what }, blocks)
            }));
        };
        let blocks = self.rebuilt_footer(segment, segment_bytes, Some(footer));
        let entries_bytes = footer.entries.get() as usize * ENTRY_BYTES;
        let entries_offset = footer.entries_offset.get();
        let runs_bytes = footer.runs.get() as usize * RUN_BYTES;
        let runs_offset = footer.runs_offset.get();
        let entries = read(entries_offset, entries_bytes)?;
        let crc = entries.get(..entries_bytes).map(crc32c::crc32c);
        let found = if crc != Some(footer.entries_crc.get()) {
            let bytes = entries_offset..entries_offset + entries_bytes as u64;
            Some((bytes, "the entries of its index are damaged; the batches are whole"))
        } else if blocks.footer.runs_crc.get() != footer.runs_crc.get()
            || blocks.footer.entries_crc.get() != footer.entries_crc.get()
        {
            let bytes = entries_offset..runs_offset + runs_bytes as u64;
            Some((bytes, "its index is not that of its batches"))
        } else if zerocopy::IntoBytes::as_bytes(&blocks.footer)[12..]
            != zerocopy::IntoBytes::as_bytes(footer)[12..]
        {
            Some((whole, "its footer is not that of its batches"))
        } else {
            None
        };
        Ok(found.map(|(bytes, what)| (BadPart { bytes, what: what.into() }, blocks)))
    }
}

fn describe_damaged(header: &BatchHeader, bytes: &[u8], offset: u64) -> String {
    let sequence = header.sequence.get();
    match verify_frames(header, bytes, |_, _| {}) {
        Err((position, error)) => {
            let at = offset + position as u64;
            format!("batch {sequence} is damaged in the frame at byte {at} ({error})")
        }
        Ok(()) => format!("batch {sequence} holds facts that cannot be read"),
    }
}

/// Whether the block was this footer before something happened to it: most of what tells one life
/// of a segment from another is the same.
fn resembles(block: &[u8], footer: &FooterHeader) -> bool {
    let Ok((found, _)) = <FooterHeader as zerocopy::FromBytes>::read_from_prefix(block) else {
        return false;
    };
    let same = [
        found.first_sequence == footer.first_sequence,
        found.last_sequence == footer.last_sequence,
        found.last_crc == footer.last_crc,
        found.end_offset == footer.end_offset,
        found.runs_crc == footer.runs_crc,
        found.entries_crc == footer.entries_crc,
    ];
    same.iter().filter(|same| **same).count() >= 4
}
