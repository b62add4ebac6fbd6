//! What a follower's core asks its owner for, and is told by it.

use std::ops::Range;

use ringwal_engine::{EpochTable, StreamId};

use crate::wire::{Cause, Message};

/// What its owner has to do.
#[derive(Clone, Eq, PartialEq, Debug)]
pub enum Act {
    /// Keep the records of a stream from an offset on as an orphan, then cut them and begin the
    /// epoch that the leader has there, all of it durably; then
    /// [`Follower::handle_cut`](super::Follower::handle_cut).
    Cut {
        /// Which stream.
        stream: StreamId,
        /// First offset that goes.
        from: u64,
        /// Durable end before.
        end: u64,
        /// The leader's epoch of that offset.
        epoch: u64,
    },
    /// Begin a stream anew: the leader has trimmed what is missing here. When everything that is
    /// being appended has its outcome, whoever has a snapshot puts it in, chooses an offset not
    /// below `trimmed` up to which it goes, and keeps what is held as an orphan. Then, as one
    /// durable fact, the stream begins there, in the epoch that `epochs` has there; then
    /// [`Follower::handle_begun_anew`](super::Follower::handle_begun_anew).
    BeginAnew {
        /// Which stream.
        stream: StreamId,
        /// What the leader has trimmed.
        trimmed: u64,
        /// What is held here, and is no part of that.
        held: Range<u64>,
        /// The leader's epochs: every offset from `trimmed` on has one.
        epochs: EpochTable,
    },
    /// Trim a stream that the leader has trimmed.
    Trim {
        /// Which stream.
        stream: StreamId,
        /// First offset that stays; what is before is durable here.
        before: u64,
    },
    /// Send this.
    Send(Message),
    /// Drop the connection: the leader does not do what leaders do, or must not be followed.
    /// Nothing comes after this.
    Leave(Why),
}

/// Why a session ends.
#[derive(Clone, Eq, PartialEq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Why {
    /// To follow would take back what a majority has.
    #[error(
        "following the leader of epoch {epoch} would cut stream {stream} at {at}, below its \
         committed offset {committed}; nothing was changed: look at the leader's disk before \
         anything else"
    )]
    BelowCommitted {
        /// Which epoch.
        epoch: u64,
        /// Which stream.
        stream: StreamId,
        /// Where it would be cut, or where the leader is known to have something else.
        at: u64,
        /// What is known to be committed.
        committed: u64,
    },
    /// What is trimmed here was applied, and the leader does not have it.
    #[error(
        "the leader of epoch {epoch} ends stream {stream} at {end}, and {trimmed} of it were \
         trimmed here; nothing was changed: look at the leader's disk before anything else"
    )]
    LeaderLacks {
        /// Which epoch.
        epoch: u64,
        /// Which stream.
        stream: StreamId,
        /// Where the leader's ends.
        end: u64,
        /// What is trimmed here.
        trimmed: u64,
    },
    /// The leader does what none does.
    #[error("the leader {0}")]
    Violation(String),
}

impl Why {
    /// As what the leader is told, and it is counted.
    pub fn cause(&self) -> Cause {
        match self {
            Self::BelowCommitted { .. } => Cause::BelowCommitted,
            Self::LeaderLacks { .. } => Cause::LeaderLacks,
            Self::Violation(_) => Cause::Violation,
        }
    }
}

/// What a frame is worth.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Worth {
    /// The exact continuation: append it.
    Append,
    /// Held already, or waits for an earlier one, or nobody is followed any more.
    Ignore,
}

/// Why an engine did not take a frame that the core had told to append.
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Debug)]
#[non_exhaustive]
pub enum Refused {
    /// It was the continuation of one that had been refused.
    Discontinuous,
    /// There is no space on the disk.
    NoSpace,
    /// The engine holds as many streams and epochs as it can list. Only trims make room.
    TooManyStreams,
}

impl Refused {
    /// How much longer than for a gap it is waited before the stream is asked for again.
    pub(super) fn patience(self) -> u64 {
        match self {
            Self::Discontinuous | Self::NoSpace => 1,
            Self::TooManyStreams => 8,
        }
    }
}
