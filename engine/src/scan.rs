//! Reads batches out of the bytes of one segment, in order, believing nothing. No I/O.
//!
//! As long as each batch is the expected one it is handed to the [`Walk`]; behind the first that
//! is not, every block is looked at for batches that say what was durable.

use std::collections::HashSet;

use crate::batch::SealedFrame;
use crate::control::Control;
use crate::disk::BLOCK_BYTES;
use crate::format::{BatchHeader, FrameKind, SegmentSeed, batch_flags, verify_frames};
use crate::mutants::{self, Mutant};
use crate::recovery::Walk;
use crate::stream::StreamId;

/// A batch whose every checksum is right.
#[derive(Clone, Debug)]
pub(crate) struct VerifiedBatch {
    pub(crate) offset: u64,
    pub(crate) header: BatchHeader,
    pub(crate) frames: Vec<SealedFrame>,
    pub(crate) controls: Vec<Control>,
    pub(crate) payload_bytes: u64,
}

impl VerifiedBatch {
    pub(crate) fn end_offset(&self) -> u64 {
        self.offset + self.header.padded_length() as u64
    }

    pub(crate) fn is_moved(&self) -> bool {
        self.header.flags.get() & batch_flags::MOVED != 0
    }
}

/// What is at a place where a batch could start.
#[derive(Debug)]
pub(crate) enum Found {
    /// No batch of this life of this segment.
    Nothing,
    /// Its header is right, its frames are not.
    Damaged(BatchHeader),
    /// All of it.
    Batch(VerifiedBatch),
    /// It goes on beyond the bytes at hand.
    NeedBytes,
}

/// Looks at one place. `bytes` start at `offset` of the segment; `all` says that no more follow.
pub(crate) fn look(
    bytes: &[u8],
    all: bool,
    seed: SegmentSeed,
    generation: u64,
    offset: u64,
) -> Found {
    let Ok(header) = BatchHeader::verify(bytes, seed, offset) else {
        return Found::Nothing;
    };
    if header.generation.get() != generation && !mutants::is(Mutant::NoGeneration) {
        return Found::Nothing;
    }
    if header.padded_length() > bytes.len() {
        return if all { Found::Damaged(header) } else { Found::NeedBytes };
    }
    let (mut frames, mut controls) = (Vec::new(), Vec::new());
    let mut payload_bytes = 0;
    let mut controls_bad = false;
    let verdict = verify_frames(&header, bytes, |position, frame| match frame.kind {
        FrameKind::Data => {
            let sealed = SealedFrame {
                stream: StreamId::new(frame.header.stream.get()),
                epoch: frame.header.epoch.get(),
                base: frame.header.base_offset.get(),
                count: frame.header.count.get(),
                position,
                length: frame.header.frame_length(),
                crc: frame.header.crc.get(),
            };
            payload_bytes += sealed.payload_bytes();
            frames.push(sealed);
        }
        FrameKind::Control => match Control::decode_all(frame.payload) {
            Ok(facts) => controls.extend(facts),
            Err(_) => controls_bad = true,
        },
        FrameKind::Void => {}
    });
    if verdict.is_err() || controls_bad {
        return Found::Damaged(header);
    }
    Found::Batch(VerifiedBatch { offset, header, frames, controls, payload_bytes })
}

/// What a segment starts with.
#[derive(Debug)]
pub(crate) enum FirstCheckpoint {
    /// A complete checkpoint, which lists these generations.
    Lists(HashSet<u64>),
    /// Something else, or nothing.
    Nothing,
    /// It goes on beyond the bytes at hand.
    NeedBytes,
}

/// Looks for a checkpoint in the bytes from `offset` of a segment on.
pub(crate) fn first_checkpoint(
    bytes: &[u8],
    all: bool,
    seed: SegmentSeed,
    generation: u64,
    offset: u64,
) -> FirstCheckpoint {
    let mut listed = None;
    let mut at = 0;
    while bytes.len() >= at + BLOCK_BYTES {
        let batch = match look(&bytes[at..], all, seed, generation, offset + at as u64) {
            Found::Batch(batch) => batch,
            Found::NeedBytes => return FirstCheckpoint::NeedBytes,
            Found::Nothing | Found::Damaged(_) => return FirstCheckpoint::Nothing,
        };
        at += batch.header.padded_length();
        for control in &batch.controls {
            match (control, &mut listed) {
                (Control::CheckpointBegin, _) => listed = Some(HashSet::new()),
                (Control::CheckpointSegment { generation, .. }, Some(listed)) => {
                    listed.insert(*generation);
                }
                (Control::CheckpointEnd, Some(listed)) => {
                    return FirstCheckpoint::Lists(std::mem::take(listed));
                }
                _ => {}
            }
        }
        if listed.is_none() {
            return FirstCheckpoint::Nothing;
        }
    }
    FirstCheckpoint::NeedBytes
}

/// The scan of one segment.
#[derive(Debug)]
pub(crate) struct SegmentScan {
    seed: SegmentSeed,
    generation: u64,
    position: u64,
    /// Byte at which to stop.
    limit: u64,
}

impl SegmentScan {
    /// From `start` up to `limit`.
    pub(crate) fn new(seed: SegmentSeed, generation: u64, start: u64, limit: u64) -> Self {
        Self { seed, generation, position: start, limit }
    }

    /// Nothing follows behind `end`.
    pub(crate) fn end_at(&mut self, end: u64) {
        self.limit = self.limit.min(end);
    }

    /// Whether it has seen everything.
    pub(crate) fn is_done(&self) -> bool {
        self.position + BLOCK_BYTES as u64 > self.limit
    }

    /// Takes bytes that follow those it used before and returns how many it used; the rest must
    /// come again with more behind it.
    pub(crate) fn handle_bytes(&mut self, bytes: &[u8], walk: &mut Walk) -> usize {
        let mut used = 0;
        while !self.is_done() && bytes.len() - used >= BLOCK_BYTES {
            let rest = &bytes[used..];
            let left = (self.limit - self.position) as usize;
            let rest = &rest[..rest.len().min(left)];
            let all = rest.len() == left;
            let found = look(rest, all, self.seed, self.generation, self.position);
            let step = match &found {
                Found::NeedBytes => break,
                Found::Batch(batch) => batch.header.padded_length(),
                Found::Nothing | Found::Damaged(_) => BLOCK_BYTES,
            };
            walk.handle_found(self.generation, self.position, found);
            used += step;
            self.position += step as u64;
        }
        used
    }
}
