//! The replicated metadata store of ringwal, for a storage node to embed: topics, their partitions, brokers,
//! who leads what, high watermarks, and keys of the embedder's own. [`MetadataStore`] is where an embedder
//! begins.
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use ringwal_engine::Engine;
//! use ringwal_raft_fallback::command::{BrokerId, TopicName};
//! use ringwal_raft_fallback::state::Done;
//! use ringwal_raft_fallback::{
//!     MetadataReplicator, MetadataStore, MetadataWal, Raft, StoreConfig,
//! };
//! use ringwal_replication::Ack;
//!
//! # let directory = tempfile::tempdir()?;
//! # let address = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
//! let config = StoreConfig::from_toml(&format!(
//!     r#"
//!     cluster = "6f1d8c0a-52b7-4a59-9f0e-3f8c2d7b1e44"
//!     node = 1
//!     listen = "{address}"
//!     members = [{{ node = 1, address = "{address}" }}] # the same at all of its nodes
//!     "#
//! ))?;
//! # let options = Engine::options().shards(1).segment_bytes(4 << 20);
//! # let engine = options.open(directory.path())?;
//! # #[cfg(any())]
//! let engine = Engine::options().shards(1).open("data")?;
//! let raft = Raft::start(engine.clone(), config.with_environment())?;
//! let (wal, replicator) = (MetadataWal::new(&raft), MetadataReplicator::new(&raft));
//! let store = MetadataStore::new_with_wal(&raft, wal, replicator);
//!
//! // From any node: the leader executes it, once. Or `.await`, on any runtime.
//! store.register_broker(BrokerId::new(1), vec!["one.example:9092".to_owned()]).wait()?;
//! let name = TopicName::new("orders")?;
//! let created = store.create_topic(name.clone(), 3, 1, Default::default()).wait()?;
//! let Done::TopicCreated { topic } = created.done else { unreachable!() };
//!
//! // Records of partition 2, on the node that leads.
//! let partitions = store.partitions().ok_or("another node leads: produce there")?;
//! let pending = partitions.append(topic, 2, b"an order", Ack::Local)?;
//! assert_eq!(pending.wait()?.receipt.offset(), 0);
//!
//! // On any node, as they become durable there.
//! let mut records = raft.node().subscribe(topic.stream(2), 0);
//! assert_eq!(records.next_blocking()?.payload(), b"an order");
//! let (_, known) = store.metadata().read(|state| state.topic(&name).map(|(id, _)| id));
//! assert_eq!(known, Some(topic));
//!
//! raft.close();
//! drop((store, partitions, raft));
//! engine.close()?;
//! # Ok(())
//! # }
//! ```
//!
//! `examples/storage_node.rs` is this with three nodes.
//!
//! # What an answer promises
//!
//! [`MetadataStore::execute`] and its conveniences end in one of three ways:
//! - [`Executed`]: done, with the epoch and the offset of its record, and where that is durable. With
//!   [`Ack::Local`](ringwal_replication::Ack::Local) it is on the leader's device, is applied there, and *can
//!   be lost*: if the leader dies or is cut off before another node has it, the next epoch begins without it.
//!   With [`Ack::Quorum`](ringwal_replication::Ack::Quorum) a majority has it, and it stays. What went
//!   through Raft is always with a majority.
//! - [`ExecuteError::NotDone`], [`Rejected`](ExecuteError::Rejected) and [`Invalid`](ExecuteError::Invalid):
//!   certainly without effect, now and later.
//! - [`ExecuteError::Unknown`]: it may be done. Look, or execute it again where twice does no harm.
//!
//! Attempts of one call share a session and a number, so that it is executed once, also across leaders.
//! The leader answers from its own log (the *fast path*: one flush of its device) while it holds its lease, and
//! through Raft otherwise; [`StoreStatus::mode`] says which, and [`Reason`] why.
//!
//! Reads of [`MetadataStore::metadata`] are of this node, and say up to which offset. After
//! [`MetadataStore::linearize`] they see whatever was answered anywhere before it.
//!
//! # Which stream has a partition's records
//!
//! The id of a topic is the stream of its first partition: partition `n` is in stream *id + n*
//! ([`state::TopicId::stream`]), on every node. Ids are given once: a topic that is deleted and made again has
//! other streams. Streams 0 to 15 are the system's; 0 is the metadata stream, `__metadata`, partition 0. The node
//! that leads the cluster takes the records of all partitions ([`MetadataStore::partitions`]); what
//! [`command::Command::SetLeader`] says is kept for the embedder, and not looked at.
//!
//! # Limits
//!
//! - All state is in memory, on every node; [`limits`] has every bound.
//! - Deleting a topic leaves its records: the embedder trims their streams, with
//!   [`Node::trim`](ringwal_replication::Node::trim) on each node.
//! - A command's record has 1 MiB at most, and the embedder's values half of that.
//! - The fast path needs two voters or more: [`Reason::SingleNode`].
//!
//! # Inside
//!
//! The state is what every node applies, in offset order, from the records of stream 0:
//!
//! ```text
//! bytes of a record ─▶ command/codec.rs ─▶ session.rs ─▶ state.rs ─▶ waiters.rs
//!                      (unknown: stop)     (once)        (outcome)   (who waits for it)
//! ```
//!
//! Nothing of the state machine reads a clock to decide something, draws a random number or depends on the
//! order of a hash: nodes that apply the same records hold the same state, to the byte ([`snapshot`]).
//! [`Applier`] shows the state machine by itself.
#![forbid(unsafe_code)]

pub mod applying;
mod base;
mod blocking;
mod codec;
pub mod command;
mod config;
mod control;
#[cfg(test)]
mod fakes;
mod founding;
#[doc(hidden)]
pub mod fuzzing;
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
pub use store::stats::{CommandCounts, Reason, StoreLatencies};
pub use store::times::LatencyStats;
pub use store::{
    Changing, ExecuteError, Executed, Execution, Linearizing, MemberStatus, MetadataReplicator,
    MetadataStore, MetadataWal, Mode, Partitions, ProduceError, ReadError, ReplicateError,
    StoreStatus, WalError,
};
pub use waiters::{Wait, WaitError};
