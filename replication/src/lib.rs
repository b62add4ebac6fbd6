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
