//! Raft's log, vote and committed index in reserved streams of the engine.
//!
//! Stream 1 is the log: the offset of a record is the index of its entry. Stream 2 holds the vote, what
//! has been purged and what is known to be committed; its last record counts. Both are this node's own
//! and not replicated by anything but Raft. No network, no state machine, no election is in here.
//!
//! The path of an entry by file: [`Payload`] → `entry.rs` (bytes) → `log_store.rs` → [`Journal`]
//! (`journal.rs`) → the engine → `completion.rs`, which tells Raft that it is durable. Reading: `cache.rs`,
//! and what is not in there from the journal.

mod cache;
mod codec;
mod completion;
mod entry;
mod journal;
mod log_store;
mod payload;
mod types;
mod vote;

pub use codec::Malformed;
pub use entry::{ENTRY_BYTES_MAX, decode as decode_entry, encode as encode_entry};
pub use journal::{EngineJournal, Held, Journal};
pub use log_store::{LOG_STREAM, OpenError, RaftLog, RaftLogReader, STATE_STREAM};
pub use payload::Payload;
pub use types::{Effect, Entry, LogId, Membership, RaftNode, StoredMembership, Types, Vote};
