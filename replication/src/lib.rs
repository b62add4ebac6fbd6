//! Replication for [`ringwal_engine`]: the leader's frames leave for its followers when they are
//! sealed, and nobody is waited for.
//!
//! [`Node`] is where an embedder begins. The path of a frame by file: `node.rs` → the engine →
//! `thread/leading.rs` → `leader.rs` (core) → `thread/connection.rs` → `link.rs`, and on the other
//! side `thread/following.rs` → `follower.rs` (core) → the engine → back as a report → `progress.rs`
//! → `term.rs`, where those wait who want a majority. The cores do no I/O.

mod acknowledge;
mod beginning;
pub mod config;
pub mod driven;
pub mod fetch;
pub mod follower;
mod framing;
mod gate;
pub mod history;
pub mod leader;
pub mod link;
mod mend;
mod node;
pub mod node_id;
pub mod orphans;
pub mod progress;
pub mod promise;
pub mod repair;
pub mod requests;
#[doc(hidden)]
pub mod sending;
pub mod stats;
mod term;
mod thread;
mod wake;
pub mod wire;
mod worker;

pub use acknowledge::{
    Ack, Acknowledged, Committed, LedAppendError, LedCommitError, Pending, Placed, Token,
};
pub use mend::MendRangeError;
pub use node::{Leadership, Node, Requests, StartError};
pub use thread::LeadError;
pub use worker::{BeginAnew, FactsError, Snapshots};

/// For the simulation of a cluster in `tools/crash`, and nobody else.
#[doc(hidden)]
pub mod simulating {
    use std::collections::BTreeMap;

    use ringwal_engine::{EpochTable, StreamId};

    use crate::beginning::{Begin, Starts};
    use crate::driven::BeginError;
    use crate::history::Held;
    use crate::promise::Promise;
    use crate::worker::Facts;

    pub use crate::framing::{frame_of, rest_of};

    /// Where an epoch starts the streams: each one at an offset, or all epochs of each are known.
    pub enum Begins {
        /// At these offsets.
        At(Vec<(StreamId, u64)>),
        /// With these tables.
        Known(Vec<(StreamId, EpochTable)>),
    }

    /// Records that are to be cut.
    pub struct Cut {
        /// Of which stream.
        pub stream: StreamId,
        /// First offset that goes.
        pub start: u64,
        /// Durable end.
        pub end: u64,
        /// The epoch of what comes there.
        pub epoch: u64,
    }

    /// What the beginning of an epoch cuts.
    ///
    /// # Errors
    /// When it must cut nothing.
    pub fn cuts(
        promise: Promise,
        begins: Begins,
        leads: bool,
        held: &BTreeMap<StreamId, Held>,
        committed: &BTreeMap<StreamId, u64>,
    ) -> Result<Vec<Cut>, BeginError> {
        let facts = Facts { committed: committed.clone(), ..Facts::default() };
        let starts = match begins {
            Begins::At(starts) => Starts::At(starts.into_iter().collect()),
            Begins::Known(tables) => Starts::Known(tables.into_iter().collect()),
        };
        let begin = Begin { promise, starts, leads, facts };
        let cut = |cut: &crate::beginning::Cutting| Cut {
            stream: cut.stream,
            start: cut.start,
            end: cut.end,
            epoch: cut.epoch,
        };
        Ok(begin.cuts(held)?.iter().map(cut).collect())
    }
}
