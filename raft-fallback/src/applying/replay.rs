//! From a snapshot and the stream to a state, and whether what was applied is still what the stream holds.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll};

use ringwal_engine::{EpochTable, ReadError, Record as Durable, Stream, Tail};

use super::folder::{Folder, FolderError, SnapshotId};
use crate::command::Record;
use crate::state::{Applied, ApplyError, State};

/// Most records that are applied at once: for so long readers wait.
const BATCH_RECORDS: usize = 1024;
/// Beyond so many bytes a batch takes no more.
const BATCH_BYTES: usize = 1 << 20;

/// Why there is no state.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RebuildError {
    /// The files of snapshots.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The stream cannot be read.
    #[error("the metadata stream cannot be read: {0}")]
    Read(#[from] ReadError),
    /// The stream begins behind what there is a snapshot of.
    #[error(
        "the metadata stream begins at {trimmed}, and the newest snapshot that can be read ends at {end}: what lies between is needed; take a snapshot of another node"
    )]
    Hole {
        /// The first offset that is not trimmed.
        trimmed: u64,
        /// Where the snapshot ends; 0 without one.
        end: u64,
    },
    /// The stream has another history than the snapshot, which holds committed records only.
    #[error(
        "the newest snapshot ends at {} in epoch {}, and the metadata stream has another epoch there: committed records were cut, or the stream has to begin anew", snapshot.end, snapshot.epoch
    )]
    Contradiction {
        /// The snapshot.
        snapshot: SnapshotId,
    },
}

/// How far a state is, and by which history.
#[derive(Copy, Clone, Debug)]
pub(super) struct Position {
    /// Everything below is applied.
    pub(super) end: u64,
    /// The epoch of the last record.
    pub(super) epoch: u64,
    /// It is a snapshot's, and nothing of the stream was applied since. Then the stream may well end
    /// below: it comes there, or begins anew there.
    pub(super) is_snapshot: bool,
}

impl Position {
    pub(super) fn of(state: &State, is_snapshot: bool) -> Self {
        Self { end: state.end(), epoch: state.epoch(), is_snapshot }
    }

    /// Whether everything that was applied is in the stream. By I-17 the last record tells: with one writer
    /// in each epoch, streams that have the same epoch at an offset are equal up to there. What was
    /// trimmed is committed.
    pub(super) fn holds(self, stream: &Stream) -> bool {
        let Self { end, epoch, is_snapshot } = self;
        is_snapshot
            || end <= stream.trimmed()
            || (stream.end() >= end && epochs(stream).epoch_at(end - 1) == epoch)
    }

    /// Whether the records that were read follow it. Only a change of the epoch has to be looked at: no
    /// cut goes by without one, and the table that is read now is as new as the records, or newer.
    pub(super) fn is_followed_by(self, stream: &Stream, records: &[Durable]) -> bool {
        let mut epoch = self.epoch;
        for record in records {
            let (offset, next) = (record.offset(), record.epoch());
            if next != epoch {
                let is_known = offset > 0 && offset > stream.trimmed();
                let is_same = || epochs(stream).epoch_at(offset - 1) == epoch;
                if next < epoch || (is_known && !is_same()) {
                    return false;
                }
            }
            epoch = next;
        }
        true
    }
}

/// Where the stream's epochs begin.
pub(super) fn epochs(stream: &Stream) -> EpochTable {
    EpochTable::from_entries(stream.epochs()).expect("a stream's epochs are in order")
}

/// Takes the durable records that are there, up to the length of a batch. When there are none, the context
/// is woken when some come.
pub(super) fn take_batch(
    tail: &mut Tail,
    context: &mut Context<'_>,
    batch: &mut Vec<Durable>,
) -> Result<(), ReadError> {
    batch.clear();
    let mut bytes = 0;
    while batch.len() < BATCH_RECORDS && bytes < BATCH_BYTES {
        match pin!(tail.next()).poll(context) {
            Poll::Ready(Ok(record)) => {
                bytes += record.payload().len();
                batch.push(record);
            }
            // It comes again, when what was read before is applied.
            Poll::Ready(Err(_)) if !batch.is_empty() => break,
            Poll::Ready(Err(error)) => return Err(error),
            Poll::Pending => break,
        }
    }
    Ok(())
}

/// Decodes and applies one record.
pub(super) fn apply(state: &mut State, record: &Durable) -> Result<Applied, ApplyError> {
    let offset = record.offset();
    let decoded = Record::decode(record.payload());
    let decoded = decoded.map_err(|error| ApplyError::Decode { offset, error })?;
    state.apply(offset, record.epoch(), decoded)
}

/// A state, made from the newest snapshot and the stream.
#[derive(Debug)]
pub(super) struct Rebuilt {
    pub(super) state: State,
    pub(super) position: Position,
    /// Of the last records, each with its epoch.
    pub(super) outcomes: VecDeque<(u64, Applied)>,
    /// Where the snapshot ended; 0 without one.
    pub(super) snapshot_end: u64,
    /// Bytes of the records that were applied.
    pub(super) bytes: u64,
}

/// Makes a state from the newest snapshot and all durable records behind it. It ends before one that cannot
/// be applied. The tail goes on where it ends.
pub(super) fn rebuild(
    folder: &Folder,
    stream: &Stream,
    tail: &mut Tail,
    context: &mut Context<'_>,
    outcomes_max: usize,
) -> Result<Rebuilt, RebuildError> {
    'again: loop {
        let mut state = begin(folder, stream)?;
        let (snapshot_end, mut bytes) = (state.end(), 0);
        let mut position = Position::of(&state, snapshot_end > 0);
        let mut outcomes = VecDeque::new();
        let mut batch = Vec::new();
        tail.seek(snapshot_end);
        'all: loop {
            take_batch(tail, context, &mut batch)?;
            if batch.is_empty() {
                break;
            }
            if !position.is_followed_by(stream, &batch) {
                // It was cut meanwhile.
                continue 'again;
            }
            for record in &batch {
                // What stands in the way is found again, and said, by whoever goes on from here.
                let Ok(applied) = apply(&mut state, record) else { break 'all };
                if outcomes.len() == outcomes_max {
                    outcomes.pop_front();
                }
                outcomes.push_back((record.epoch(), applied));
                bytes += record.payload().len() as u64;
            }
            position = Position::of(&state, false);
        }
        position =
            Position { is_snapshot: state.end() == snapshot_end, ..Position::of(&state, false) };
        if position.holds(stream) {
            tail.seek(state.end());
            return Ok(Rebuilt { state, position, outcomes, snapshot_end, bytes });
        }
    }
}

/// The newest snapshot, or what is before the first record, where the stream goes on from there.
pub(super) fn begin(folder: &Folder, stream: &Stream) -> Result<State, RebuildError> {
    let state = folder.load_newest()?.unwrap_or_default();
    let (end, trimmed) = (state.end(), stream.trimmed());
    if end < trimmed {
        return Err(RebuildError::Hole { trimmed, end });
    }
    let snapshot = SnapshotId::of(&state);
    if stream.end() < end {
        tracing::warn!(
            snapshot_end = end,
            stream_end = stream.end(),
            "the metadata stream ends below the newest snapshot: it has to come there, or to begin anew"
        );
    } else if end > trimmed && !Position::of(&state, false).holds(stream) {
        return Err(RebuildError::Contradiction { snapshot });
    }
    Ok(state)
}
