//! Makes snapshots, beside the state that is shared: from the snapshot before and the records behind it.
//!
//! Neither readers nor the applier notice, and it ends at any offset that is wanted, also where more is
//! applied already: it is never above the committed watermark. The price is the memory of a second
//! state for as long as it takes, and the time of reading the snapshot before and of applying what came
//! since, on a thread of its own.

use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ringwal_engine::{ReadError, Stream};

use super::folder::{Folder, FolderError, SnapshotId};
use super::replay::{self, Position, RebuildError};
use crate::snapshot::SnapshotError;
use crate::state::{ApplyError, State};

/// A snapshot that was made.
#[derive(Copy, Clone, Debug)]
pub struct SnapshotInfo {
    /// Which state it holds.
    pub id: SnapshotId,
    /// Its length in bytes.
    pub bytes: u64,
    /// How long it took, from reading the one before to its durable name.
    pub took: Duration,
}

/// Why a snapshot was not made. Those that are there stay, and nothing was trimmed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TakeError {
    /// There is nothing to begin from.
    #[error("no snapshot of the metadata: {0}")]
    Begin(#[from] RebuildError),
    /// The files of snapshots.
    #[error("no snapshot of the metadata: {0}")]
    Folder(#[from] FolderError),
    /// A record cannot be read.
    #[error("no snapshot of the metadata: {0}")]
    Read(#[from] ReadError),
    /// A record cannot be applied.
    #[error("no snapshot of the metadata: {0}")]
    Apply(#[from] ApplyError),
    /// The stream does not hold what is said to be committed.
    #[error(
        "no snapshot of the metadata: the stream has no committed records up to {upto}; it gave those below {end}"
    )]
    NotThere {
        /// Where the snapshot was to end.
        upto: u64,
        /// Where the records ended.
        end: u64,
    },
    /// The node is shutting down.
    #[error("no snapshot of the metadata: the node is shutting down")]
    Ended,
}

/// Why a snapshot of another node is not installed. Nothing has changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InstallError {
    /// Its bytes give no state.
    #[error("the snapshot that came: {0}")]
    Bytes(#[from] SnapshotError),
    /// The files of snapshots.
    #[error("the snapshot that came: {0}")]
    Folder(#[from] FolderError),
    /// More is applied here.
    #[error(
        "the snapshot that came ends at {end}, and this node has applied everything below {applied}"
    )]
    Older {
        /// Where it ends.
        end: u64,
        /// What is applied.
        applied: u64,
    },
    /// The state cannot take the place of the present one.
    #[error("the snapshot that came: {0}")]
    Replace(#[from] crate::metadata::ReplaceError),
    /// Nobody applies any more.
    #[error("the snapshot that came: the node is shutting down")]
    Ended,
}

/// Who makes them: one at a time.
pub(super) struct Snapshots {
    pub(super) folder: Folder,
    pub(super) stream: Stream,
    /// Told below which offset nothing of the stream is needed any more.
    pub(super) trim: Box<dyn Fn(u64) + Send>,
}

impl Snapshots {
    /// Makes one that ends at `upto`, which is committed; `None` when the newest ends there or later.
    pub(super) fn take(
        &self,
        upto: u64,
        ends: &AtomicBool,
    ) -> Result<Option<SnapshotInfo>, TakeError> {
        let began = Instant::now();
        let newest = self.folder.list()?.first().map_or(0, |id| id.end);
        if newest >= upto {
            return Ok(None);
        }
        let mut state = replay::begin(&self.folder, &self.stream)?;
        self.advance(&mut state, upto, ends)?;
        let id = SnapshotId::of(&state);
        let bytes = self.folder.begin()?.write(&state)?;
        // It can be large.
        drop(state);
        self.keep()?;
        let took = began.elapsed();
        tracing::info!(end = id.end, epoch = id.epoch, bytes, ?took, "a snapshot of the metadata");
        Ok(Some(SnapshotInfo { id, bytes, took }))
    }

    fn advance(&self, state: &mut State, upto: u64, ends: &AtomicBool) -> Result<(), TakeError> {
        for record in self.stream.read(state.end()..upto)? {
            if ends.load(Ordering::Relaxed) {
                return Err(TakeError::Ended);
            }
            replay::apply(state, &record?)?;
        }
        // Committed records are never cut (I-14): this only makes sure.
        let is_held = Position::of(state, false).holds(&self.stream);
        if state.end() < upto || !is_held {
            return Err(TakeError::NotThere { upto, end: state.end() });
        }
        Ok(())
    }

    /// Removes old ones, and gives up what the stream has from before the older of those that stay.
    fn keep(&self) -> Result<(), FolderError> {
        let kept = self.folder.prune()?;
        if let [_, .., older] = kept[..] {
            (self.trim)(older.end);
        }
        Ok(())
    }

    /// Writes the bytes of another node's snapshot, when all of them are sound and `check` agrees with the
    /// state. `place` puts it in its place when it is durable.
    pub(super) fn install(
        &self,
        reader: &mut dyn Read,
        check: impl FnOnce(&State) -> Result<(), InstallError>,
        place: impl FnOnce(State) -> Result<u64, InstallError>,
    ) -> Result<u64, InstallError> {
        let mut unfinished = self.folder.begin()?;
        let state = unfinished.copy(reader)?;
        check(&state)?;
        unfinished.finish(SnapshotId::of(&state))?;
        let end = place(state)?;
        self.folder.prune()?;
        Ok(end)
    }
}
