//! Decoders that are private otherwise, for fuzzing. Nobody else may use them.

use std::ops::ControlFlow;

use zerocopy::IntoBytes;

use crate::control::Control;
use crate::footer;
use crate::format::{
    EntryRecord, FooterHeader, FormatError, OrphanFacts, OrphanFrames, RunRecord, SegmentSeed,
    VerifiedFrame,
};
use crate::offline::OrphanState;
use crate::offline::orphan_file::{Depth, read_contents};
use crate::scan::{self, FirstCheckpoint, Found};

/// Decodes the facts of a control frame, and encodes them again.
///
/// # Errors
/// What is wrong with the bytes.
pub fn controls(payload: &[u8]) -> Result<Vec<u8>, FormatError> {
    let mut bytes = Vec::with_capacity(payload.len());
    Control::decode_all(payload)?.iter().for_each(|control| control.encode(&mut bytes));
    Ok(bytes)
}

/// Decodes the runs behind `runs_offset`.
///
/// # Errors
/// What is wrong with the bytes.
pub fn runs(footer: &FooterHeader, bytes: &[u8]) -> Result<Vec<RunRecord>, FormatError> {
    footer::read_runs(footer, bytes)
}

/// Decodes the entries of a run, and encodes them again.
///
/// # Errors
/// What is wrong with the bytes.
pub fn entries(run: &RunRecord, bytes: &[u8], segment_bytes: u64) -> Result<Vec<u8>, FormatError> {
    let entries = footer::read_entries(run, bytes, segment_bytes)?;
    let mut again = Vec::with_capacity(bytes.len());
    for entry in entries {
        again.extend_from_slice(EntryRecord::from(entry).as_bytes());
    }
    Ok(again)
}

/// Looks for a batch at `offset` of a segment, as recovery does: the bytes that it takes.
pub fn batch(
    bytes: &[u8],
    all: bool,
    seed: SegmentSeed,
    generation: u64,
    offset: u64,
) -> Option<usize> {
    match scan::look(bytes, all, seed, generation, offset) {
        Found::Batch(batch) => Some(batch.header.padded_length()),
        Found::Nothing | Found::Damaged(_) | Found::NeedBytes => None,
    }
}

/// Looks for the checkpoint that a segment's batches start with: how many segments it lists.
pub fn first_checkpoint(
    bytes: &[u8],
    all: bool,
    seed: SegmentSeed,
    generation: u64,
) -> Option<usize> {
    match scan::first_checkpoint(bytes, all, seed, generation, crate::format::DATA_START) {
        FirstCheckpoint::Lists(listed) => Some(listed.len()),
        FirstCheckpoint::Nothing | FirstCheckpoint::NeedBytes => None,
    }
}

/// Reads an orphan file: what it is worth, what its header says, and its frames.
///
/// # Panics
/// When it is another to who reads its headers only.
pub fn orphan(
    bytes: &[u8],
    mut each: impl FnMut(&VerifiedFrame<'_>),
) -> (OrphanState, Option<OrphanFacts>, OrphanFrames) {
    let read = |depth, each: &mut dyn FnMut(&VerifiedFrame<'_>)| {
        read_contents(std::io::Cursor::new(bytes), bytes.len() as u64, depth, |frame| {
            each(frame);
            ControlFlow::Continue(())
        })
        .expect("memory is read without an error")
    };
    let headers = read(Depth::Headers, &mut |_| {});
    let all = read(Depth::Payloads, &mut each);
    assert_eq!((headers.frames, headers.epochs), (all.frames, all.epochs));
    (all.state, all.header.map(|header| header.facts()), all.frames)
}

/// The number in a segment file's name.
pub fn segment_number(name: &str) -> Option<u64> {
    crate::segments::segment_number(name)
}
