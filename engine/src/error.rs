//! Errors: one closed enum per operation. Each message says what happened, the live value and
//! what to do.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::stream::StreamId;

/// Why a shard takes no more writes (I-3): its first write or flush error, for every waiter.
#[derive(Clone, Debug)]
pub struct Poisoned(Arc<PoisonCause>);

/// See [`Poisoned`].
#[derive(Clone, Debug)]
pub struct PoisonCause {
    /// Which shard.
    pub shard: u16,
    /// What it was doing.
    pub stage: &'static str,
    /// File that it concerned.
    pub file: String,
    /// errno, when the device gave one.
    pub errno: Option<i32>,
    /// What happened.
    pub message: String,
}

impl Poisoned {
    /// Latches a cause.
    pub fn new(cause: PoisonCause) -> Self {
        Self(Arc::new(cause))
    }

    /// The first cause.
    pub fn cause(&self) -> &PoisonCause {
        &self.0
    }
}

impl fmt::Display for Poisoned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cause = &self.0;
        write!(
            f,
            "shard {} stopped writing after its first {} error on {}: {}; durable records stay \
             readable; check the device, then reopen the directory",
            cause.shard, cause.stage, cause.file, cause.message
        )
    }
}

impl std::error::Error for Poisoned {}

/// Why an append was not taken. Nothing of it was written.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AppendError {
    /// The queue has no room now; try again when receipts have come.
    #[error("the queue of shard {shard} is full ({queued_bytes} bytes wait); wait for receipts")]
    Full {
        /// Which shard.
        shard: u16,
        /// What waits in it.
        queued_bytes: usize,
    },
    /// A record or a batch of records is longer than one batch can be.
    #[error(
        "{bytes} bytes do not fit one batch, whose limit is {max} bytes; split the data, or raise batch_bytes_max, which a quarter of a segment bounds"
    )]
    TooLarge {
        /// Bytes that one batch would need.
        bytes: usize,
        /// What it may have.
        max: usize,
    },
    /// `append_batch` was given no record.
    #[error("an empty batch of records has no offset; append at least one record")]
    Empty,
    /// The engine has been closed.
    #[error("the engine is closed; open the directory again")]
    Closed,
    /// The engine was opened read-only.
    #[error("the engine was opened read-only; open it without read_only(true)")]
    ReadOnly,
    /// No segment is left, and none can be prepared.
    #[error(
        "no space: shard {shard} cannot prepare a segment ({cause}); free space on the file system or trim streams"
    )]
    NoSpace {
        /// Which shard.
        shard: u16,
        /// What preparing said.
        cause: String,
    },
    /// A write failed earlier.
    #[error("{0}")]
    Poisoned(Poisoned),
    /// Bytes given to `append_frame` are not a valid frame.
    #[error("the frame is damaged: {0}; ask its sender again")]
    BadFrame(crate::format::FormatError),
    /// A frame given to `append_frame` belongs to another stream.
    #[error("the frame is of stream {found}, not of stream {expected}; append it to its own")]
    WrongStream {
        /// The stream that it was given to.
        expected: StreamId,
        /// The stream that it names.
        found: StreamId,
    },
}

/// Why a command that was queued did nothing when its batch was sealed.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// A foreign frame is not the exact continuation of its stream (I-9).
    #[error(
        "stream {stream} continues at offset {expected} in epoch {expected_epoch} or a later one, not at offset {offset} of epoch {epoch}"
    )]
    NotContinuation {
        /// Whose.
        stream: StreamId,
        /// Offset that the stream expects.
        expected: u64,
        /// The least epoch that it expects.
        expected_epoch: u64,
        /// What came.
        offset: u64,
        /// What came.
        epoch: u64,
    },
    /// A record of this node in a replicated stream while this node does not lead: its epoch is
    /// closed ([`crate::Engine::close_epoch`]), or the stream is in a greater one, of another leader.
    #[error(
        "stream {stream} is in epoch {last}, and this node does not lead it (its own last epoch was \
         {epoch}): append at the leader, or, to lead, set_epoch one that is greater than both"
    )]
    EpochClosed {
        /// Whose.
        stream: StreamId,
        /// The greatest epoch that this node was given; 0 for none.
        epoch: u64,
        /// The stream's last epoch.
        last: u64,
    },
    /// A record of this node in a replicated stream, whose batch was sealed when the lease of its epoch
    /// had lapsed, or before one was given ([`crate::Engine::set_lease`]). It was not written.
    #[error(
        "stream {stream}: the lease of epoch {epoch} had lapsed, so the record was not written; append \
         it again when there is one"
    )]
    LeaseLapsed {
        /// Whose.
        stream: StreamId,
        /// The epoch of this node.
        epoch: u64,
    },
    /// A foreign frame that was given before the fence was raised
    /// ([`crate::Engine::fence_frames`]), and was not sealed by then.
    #[error(
        "stream {stream}: this frame was given before fence_frames, which shuts out all of those; if \
         it is still wanted, append it again"
    )]
    Fenced {
        /// Whose.
        stream: StreamId,
    },
    /// Records that were to be moved to a newer segment are trimmed or cut by now.
    #[error("stream {stream}: none of {base}..{end} counts any more")]
    Dead {
        /// Whose.
        stream: StreamId,
        /// First offset.
        base: u64,
        /// Offset after the last.
        end: u64,
    },
    /// The shard holds as many streams and epochs as one checkpoint of its segments can list.
    #[error(
        "stream {stream}: one too many; segments of this length allow {max} streams per shard, each \
         later epoch counted as one; use fewer streams, more shards or longer segments, or trim"
    )]
    TooManyStreams {
        /// Whose.
        stream: StreamId,
        /// How many there may be.
        max: usize,
    },
    /// A trim reaches beyond the last record.
    #[error("stream {stream} ends at {end}; trim({before}) is beyond that")]
    TrimBeyondEnd {
        /// Whose.
        stream: StreamId,
        /// What was asked for.
        before: u64,
        /// Where it ends.
        end: u64,
    },
    /// A stream cannot begin anew where it has been trimmed.
    #[error("stream {stream} is trimmed up to {trimmed}; it cannot begin anew at {at}, below that")]
    AnewBelowTrim {
        /// Whose.
        stream: StreamId,
        /// What was asked for.
        at: u64,
        /// First offset that is not trimmed.
        trimmed: u64,
    },
    /// A skip, or a new beginning, leads further than any stream gets.
    #[error("stream {stream}: {before} is further than any stream gets ({max})")]
    SkipTooFar {
        /// Whose.
        stream: StreamId,
        /// What was asked for.
        before: u64,
        /// The furthest that is allowed.
        max: u64,
    },
    /// An epoch must be greater than those before its start, and none of those that it cuts.
    #[error(
        "stream {stream} is in epoch {last}; epoch {epoch} cannot begin there: it is not greater \
         than those before it, or is one that it would cut"
    )]
    EpochNotGreater {
        /// Whose.
        stream: StreamId,
        /// What was asked for.
        epoch: u64,
        /// The last one.
        last: u64,
    },
    /// A cut must lie inside the stream.
    #[error("stream {stream} holds {trimmed}..{end}; a cut at {start} is outside")]
    CutOutside {
        /// Whose.
        stream: StreamId,
        /// What was asked for.
        start: u64,
        /// First offset held.
        trimmed: u64,
        /// Offset after the last.
        end: u64,
    },
}

/// Why a queued command has no receipt.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommitError {
    /// The device failed: the record may be durable or not. Reopen and look.
    #[error("outcome unknown: {0}")]
    Unknown(Poisoned),
    /// It was never written: a write had failed before.
    #[error("not written: {0}")]
    NotWritten(Poisoned),
    /// It did nothing, and will not.
    #[error("refused: {0}")]
    Refused(Refusal),
    /// It was never written: the engine closed while it waited for space.
    #[error("not written: the engine closed before there was space for it")]
    Closed,
}

/// Why `trim` failed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrimError {
    /// It was not taken.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// It has no receipt.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

/// Why a record could not be read.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The offset lies below the stream's first record.
    #[error("stream {stream} was trimmed up to {trimmed}; offset {offset} is gone")]
    Trimmed {
        /// Whose.
        stream: StreamId,
        /// What was asked for.
        offset: u64,
        /// First offset that is there.
        trimmed: u64,
    },
    /// It was acknowledged, and no segment holds it any more.
    #[error(
        "stream {stream}, offset {offset}: lost with a damaged segment (records go on at {next}); run `ringwal verify` on the directory, restore it from a replica or a backup"
    )]
    Missing {
        /// Whose.
        stream: StreamId,
        /// What was asked for.
        offset: u64,
        /// Where records go on.
        next: u64,
    },
    /// The bytes on disk are not what was written.
    #[error(
        "stream {stream}, offset {offset}: {file} at byte {position} is damaged ({cause}); run `ringwal verify` on the directory, restore it from a replica or a backup"
    )]
    Corrupt {
        /// Whose.
        stream: StreamId,
        /// What was asked for.
        offset: u64,
        /// Segment file.
        file: String,
        /// Byte in it.
        position: u64,
        /// What is wrong.
        cause: String,
    },
    /// The device failed.
    #[error("stream {stream}, offset {offset}: reading {file} failed: {cause}")]
    Io {
        /// Whose.
        stream: StreamId,
        /// What was asked for.
        offset: u64,
        /// Segment file.
        file: String,
        /// What it said.
        cause: Arc<io::Error>,
    },
    /// There is no such record yet, and none will come: a write failed.
    #[error("{0}")]
    Poisoned(Poisoned),
    /// The engine has been closed.
    #[error("the engine is closed; open the directory again")]
    Closed,
}

/// Why a frame is not put in the place of durable records.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MendError {
    /// It was not taken.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// It goes beyond what is durable here.
    #[error(
        "stream {stream} is durable up to {durable}, and this frame holds {base}..{end}; only what is \
         durable is put back"
    )]
    Beyond {
        /// Whose.
        stream: StreamId,
        /// First offset.
        base: u64,
        /// Offset after the last.
        end: u64,
        /// Durable end.
        durable: u64,
    },
    /// It is of another history.
    #[error(
        "stream {stream}: {base}..{end} of this frame are of epoch {epoch}, and not all of them are \
         here; ask a node with the same history"
    )]
    OtherHistory {
        /// Whose.
        stream: StreamId,
        /// First offset.
        base: u64,
        /// Offset after the last.
        end: u64,
        /// The frame's.
        epoch: u64,
    },
}

/// Why a segment cannot be looked through for what can be saved.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SalvageError {
    /// The record has been trimmed.
    #[error("stream {stream}, offset {offset}: it is trimmed")]
    Gone {
        /// Whose.
        stream: StreamId,
        /// Which record.
        offset: u64,
    },
    /// No segment holds it.
    #[error("stream {stream}, offset {offset}: no segment holds it")]
    NotHeld {
        /// Whose.
        stream: StreamId,
        /// Which record.
        offset: u64,
    },
    /// Its segment is still written, or its index is.
    #[error(
        "stream {stream}, offset {offset}: {file} is still written; it can be mended when it is full"
    )]
    NotSealed {
        /// Whose.
        stream: StreamId,
        /// Which record.
        offset: u64,
        /// Segment file.
        file: String,
    },
}

/// What kind of thing keeps a directory from being opened; decides a program's exit code.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum OpenErrorKind {
    /// The options contradict each other or the directory.
    Usage,
    /// This machine cannot run it: no io_uring, no direct I/O, no memory.
    Environment,
    /// Another process has it.
    InUse,
    /// Acknowledged data is damaged.
    Corrupt,
    /// A newer version wrote it.
    NewerFormat,
    /// The file system said no.
    Io,
}

/// Why a directory could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// An option is out of bounds.
    #[error("option {option} = {value} is out of bounds: {bounds}")]
    Option {
        /// Which one.
        option: &'static str,
        /// What it was.
        value: String,
        /// What it may be.
        bounds: String,
    },
    /// The directory was created with other geometry.
    #[error("{} was created with {stored} {option}, not {asked}; leave the option out", directory.display())]
    Geometry {
        /// Which directory.
        directory: PathBuf,
        /// `shards` or `segment_bytes`.
        option: &'static str,
        /// What it has.
        stored: u64,
        /// What was asked for.
        asked: u64,
    },
    /// Nothing there, and nothing may be created.
    #[error("{} holds no engine; check the path", directory.display())]
    Missing {
        /// Which directory.
        directory: PathBuf,
    },
    /// The path is not a directory.
    #[error("{} is not a directory; choose another path", directory.display())]
    NotADirectory {
        /// Which path.
        directory: PathBuf,
    },
    /// Another process has the lock.
    #[error("{} is in use by another process{}; close that one first (waited {waited:?})", directory.display(), holder(holder_id))]
    InUse {
        /// Which directory.
        directory: PathBuf,
        /// The holder's process id, when the kernel tells.
        holder_id: Option<u32>,
        /// How long this one waited.
        waited: Duration,
    },
    /// A newer version wrote it. Nothing was changed.
    #[error("{} was written by a newer version ({found}); this one reads format {}.x; use that version", file.display(), crate::format::FORMAT_MAJOR)]
    NewerFormat {
        /// Which file.
        file: PathBuf,
        /// What it says.
        found: String,
    },
    /// Acknowledged data is damaged. Nothing was changed.
    #[error("{}", .0)]
    Corrupt(Box<crate::recovery::Corruption>),
    /// io_uring is refused.
    #[error("{0}")]
    Ring(#[from] crate::disk::uring::UringError),
    /// The file system cannot do what the engine needs.
    #[error("{} ({file_system}): {message}", directory.display())]
    FileSystem {
        /// Which directory.
        directory: PathBuf,
        /// Which kind.
        file_system: String,
        /// What is missing and what to do.
        message: String,
    },
    /// No space for the first segments.
    #[error("no space to prepare a segment of {segment_bytes} bytes in {}: {free_bytes} bytes are free; free space or choose a smaller segment_bytes", directory.display())]
    NoSpace {
        /// Which directory.
        directory: PathBuf,
        /// What it needs.
        segment_bytes: u64,
        /// What there is.
        free_bytes: u64,
    },
    /// Anything else that the file system said.
    #[error("{what} {}: {source}", path.display())]
    Io {
        /// What was being done.
        what: &'static str,
        /// To which path.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// A shard's thread could not be started.
    #[error("starting the thread of shard {shard}: {source}")]
    Thread {
        /// Which shard.
        shard: u16,
        /// What the system said.
        source: io::Error,
    },
}

fn holder(process: &Option<u32>) -> String {
    process.map(|id| format!(" (process {id})")).unwrap_or_default()
}

impl OpenError {
    /// What kind it is.
    pub fn kind(&self) -> OpenErrorKind {
        match self {
            Self::Option { .. } | Self::Geometry { .. } => OpenErrorKind::Usage,
            Self::InUse { .. } => OpenErrorKind::InUse,
            Self::NewerFormat { .. } => OpenErrorKind::NewerFormat,
            Self::Corrupt(_) => OpenErrorKind::Corrupt,
            Self::Ring(_) | Self::FileSystem { .. } | Self::Thread { .. } => {
                OpenErrorKind::Environment
            }
            Self::Missing { .. } | Self::NotADirectory { .. } => OpenErrorKind::Io,
            Self::NoSpace { .. } | Self::Io { .. } => OpenErrorKind::Io,
        }
    }

    pub(crate) fn io(
        what: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { what, path, source }
    }
}

/// What went wrong while closing. The lock is released all the same.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CloseError {
    /// A write failed, now or earlier.
    #[error("{0}")]
    Poisoned(Poisoned),
    /// A shard's thread panicked.
    #[error(
        "the thread of shard {shard} panicked: {message}; the directory recovers at the next open; please report it"
    )]
    Panicked {
        /// Which shard.
        shard: u16,
        /// Its message.
        message: String,
    },
}
