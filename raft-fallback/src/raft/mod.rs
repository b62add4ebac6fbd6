//! Raft's log, vote and committed index in reserved streams of the engine, and its messages over the port
//! of replication.
//!
//! Stream 1 is the log: the offset of a record is the index of its entry. Stream 2 holds the vote, what
//! has been purged and what is known to be committed; its last record counts. Both are this node's own
//! and not replicated by anything but Raft. No state machine is in here.
//!
//! The path of an entry by file: [`Payload`] → `entry.rs` (bytes) → `log_store.rs` → [`Journal`]
//! (`journal.rs`) → the engine → `completion.rs`, which tells Raft that it is durable. Reading: `cache.rs`,
//! and what is not in there from the journal.
//!
//! A message: openraft → `network.rs` → `rpc.rs` (bytes) → [`Transport`] → the other node's `serve.rs` → its
//! openraft. `network.rs` tells the leader's lease ([`crate::lease`]) what is sent and answered.

mod away;
mod cache;
mod codec;
mod completion;
pub mod config;
mod entry;
mod journal;
mod log_store;
mod network;
mod payload;
pub mod rpc;
pub mod serve;
mod types;
mod vote;

pub use codec::Malformed;
pub(crate) use entry::log_id;
pub use entry::{ENTRY_BYTES_MAX, decode as decode_entry, encode as encode_entry};
pub use journal::{EngineJournal, Held, Journal};
pub use log_store::{LOG_STREAM, OpenError, RaftLog, RaftLogReader, STATE_STREAM};
pub use network::{Network, Networking, Transport};
pub use payload::Payload;
pub use types::{Effect, Entry, LogId, Membership, RaftNode, StoredMembership, Types, Vote};
pub(crate) use vote::{LogFacts, stored_term};
