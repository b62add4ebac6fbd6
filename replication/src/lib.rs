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

    use ringwal_engine::StreamId;

    use crate::beginning::Begin;
    use crate::driven::BeginError;
    use crate::history::Held;
    use crate::promise::Promise;
    use crate::worker::Facts;

    pub use crate::framing::{frame_of, rest_of};

    /// What the beginning of an epoch cuts: of streams the first offset that goes, and the durable end.
    ///
    /// # Errors
    /// When it must cut nothing.
    pub fn cuts(
        promise: Promise,
        starts: &[(StreamId, u64)],
        leads: bool,
        held: &BTreeMap<StreamId, Held>,
        committed: &BTreeMap<StreamId, u64>,
    ) -> Result<Vec<(StreamId, u64, u64)>, BeginError> {
        let facts = Facts { committed: committed.clone(), ..Facts::default() };
        let begin = Begin { promise, starts: starts.iter().copied().collect(), leads, facts };
        let cuts = begin.cuts(held)?;
        Ok(cuts.into_iter().map(|cut| (cut.stream, cut.start, cut.end)).collect())
    }
}
