//! The replicated metadata store of ringwal, for a storage node to embed. [`MetadataStore`] is where an
//! embedder begins: its leader answers from its own log while it holds its lease, and through Raft otherwise.
//! The state is what every node applies, in offset order, from the records of stream 0 (`__metadata`,
//! partition 0).
//!
//! ```text
//! bytes of a record ─▶ command/codec.rs ─▶ session.rs ─▶ state.rs ─▶ waiters.rs
//!                      (unknown: stop)     (once)        (outcome)   (who waits for it)
//! ```
//!
//! Nothing of the state machine reads a clock to decide something, draws a random number or depends on the order of a
//! hash: nodes that apply the same records hold the same state, to the byte ([`snapshot`]).
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::{Duration, Instant};
//! use ringwal_raft_fallback::command::{BrokerId, Command, Record, TopicName};
//! use ringwal_raft_fallback::{Entry, Metadata, State, snapshot};
//!
//! let (metadata, mut applier) = Metadata::new(State::default(), 1);
//! let name = TopicName::new("orders")?;
//! let mut topic = metadata.wait_for_topic(name.clone()); // also a future
//!
//! // What a leader appends to the metadata stream, and every node finds there.
//! let addresses = vec!["one.example:9092".to_owned()];
//! let register = Command::RegisterBroker { broker: BrokerId::new(1), addresses, knows: 1 };
//! let create = Command::CreateTopic {
//!     name: name.clone(),
//!     partitions: 3,
//!     replication_factor: 1,
//!     configuration: [("retention.ms".into(), "60000".into())].into(),
//! };
//! let mut records = Vec::new();
//! for command in [register, create] {
//!     records.push(Record { time_ms: 1_000, session: None, command }.encode()?);
//! }
//!
//! let mut applied = Vec::new();
//! let entries = records.iter().zip(0..).map(|(payload, offset)| Entry { offset, epoch: 1, payload });
//! applier.apply(entries, &mut applied)?;
//! assert!(applied.iter().all(|applied| applied.outcome.is_ok()));
//!
//! let id = topic.wait(Instant::now() + Duration::from_secs(1))?;
//! let (progress, assignment) = metadata.read(|state| state.assignment(&name, 2));
//! assert_eq!(progress.end, 2);
//! assert_eq!(assignment.unwrap().stream, id.stream(2));
//!
//! let (_, bytes) = metadata.read(|state| {
//!     let mut bytes = Vec::new();
//!     snapshot::write(state, &mut bytes).map(|()| bytes)
//! });
//! let again = snapshot::read(&mut &bytes?[..])?;
//! assert_eq!(again.end(), 2);
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

pub mod applying;
mod base;
mod blocking;
mod codec;
pub mod command;
mod config;
mod control;
mod founding;
pub mod lease;
pub mod limits;
mod machine;
mod majority;
mod metadata;
mod node;
pub mod operator;
pub mod raft;
mod replica;
pub mod session;
#[doc(hidden)]
pub mod simulating;
pub mod snapshot;
pub mod state;
mod store;
#[cfg(test)]
mod tests;
mod thread;
mod waiters;
mod watch;
mod wiring;

pub use codec::Malformed;
pub use config::{DISABLE_FAST_PATH, RaftOptions, StoreConfig, StoreConfigError};
pub use control::{ChangeError, MemberChange};
pub use majority::{GivenUp, MajorityError, give_up_majority};
pub use metadata::{Applier, Entry, Metadata, Progress, ReplaceError, Stopped};
pub use node::{Raft, StartError};
pub use state::State;
pub use store::stats::{CommandCounts, Reason};
pub use store::{
    Changing, ExecuteError, Executed, Execution, Linearizing, MemberStatus, MetadataReplicator,
    MetadataStore, MetadataWal, Mode, ReadError, ReplicateError, StoreStatus, WalError,
};
pub use waiters::{Wait, WaitError};
