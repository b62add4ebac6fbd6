//! What the Raft side of a node needs of its replicated streams and of its state machine, and nothing
//! more. The product has a [`Node`](ringwal_replication::Node) and an applier behind it
//! (`replica/product.rs`); a simulation the cores of replication, on disks of its own.

pub(crate) mod product;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::ops::Range;

use bytes::Bytes;
use ringwal_engine::{EpochStart, StreamId};
use ringwal_replication::config::Member;
use ringwal_replication::node_id::{NodeId, RunId};
use ringwal_replication::promise::Promise;

use crate::metadata::Progress;
use crate::state::Applied;

pub use crate::applying::METADATA_STREAM;
use crate::base::Base;

/// What a node holds of a stream.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct Holding {
    /// Which stream.
    pub stream: StreamId,
    /// First offset that is not trimmed.
    pub trimmed: u64,
    /// Durable end.
    pub end: u64,
    /// Epoch of the last record; 0 before the first.
    pub epoch: u64,
}

/// What a node that has promised an epoch holds, when nothing of an older one is in flight any more.
#[derive(Clone, Eq, PartialEq, Debug, Default)]
pub struct Standing {
    /// Each replicated stream that it has, in order.
    pub streams: Vec<Holding>,
    /// The epoch that it has begun last.
    pub begun: Option<Promise>,
}

/// What came of the begin of an epoch.
#[derive(Clone, Debug)]
pub enum Begun<L> {
    /// This node leads.
    Leading(L),
    /// Somebody else does.
    Following,
    /// That epoch, or a later one, had begun already: nothing was done.
    Before,
}

/// Why records of an entry are not added.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AddError {
    /// Records before them are missing here.
    #[error("the stream ends at {end} here, and the records come after that")]
    Lacks {
        /// Where it ends.
        end: u64,
    },
    /// Their epoch is not the one that has begun: nothing is done.
    #[error("their epoch is not the one that has begun here")]
    NotBegun,
    /// They cannot be added here, now or ever.
    #[error("{0}")]
    Failed(String),
}

/// Why a command that a leader was given is not known to be done.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LedError {
    /// It certainly is not written, here or elsewhere.
    #[error("not written: {0}")]
    NotTaken(String),
    /// It may be.
    #[error("outcome unknown: {0}")]
    Unknown(String),
}

/// Why the outcome of a record is not known here.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OutcomeError {
    /// The offset has, or will have, another record: a later epoch has cut it.
    #[error("a later epoch has cut the record; the node is at {}, in epoch {}", .0.end, .0.epoch)]
    Superseded(Progress),
    /// Nobody remembers.
    #[error("{0}")]
    Unknown(String),
}

/// The right to append in one epoch, as long as it and its lease last.
pub trait Led: Clone + Send + Sync + 'static {
    /// In which epoch.
    fn epoch(&self) -> u64;

    /// Why it is over, if it is.
    fn ended(&self) -> Option<String>;

    /// Until when on CLOCK_BOOTTIME, in nanoseconds, the fast path may answer (I-13).
    fn lease_until(&self, boottime_ns: u64);

    /// Whether it and its lease last now (I-13).
    fn holds_lease(&self) -> bool;

    /// Waits until a record is durable here, with the lease held: its offset.
    type Pending: Future<Output = Result<u64, LedError>> + Send + 'static;

    /// Copies a record of the metadata stream into the next batch; waits for room. Dropping it means that
    /// the record is not taken.
    fn append(&self, record: &[u8])
    -> impl Future<Output = Result<Self::Pending, LedError>> + Send;

    /// Waits until everything of the metadata stream that was given to [`Led::append`] before has its
    /// outcome and nothing of it is in flight. Nothing must be given meanwhile.
    fn drained(&self) -> impl Future<Output = Result<(), LedError>> + Send;

    /// Waits until a majority has the metadata stream up to `end`.
    fn committed(&self, end: u64) -> impl Future<Output = Result<(), LedError>> + Send;

    /// Up to where a majority has a stream, as far as this leader knows; it never falls.
    fn committed_end(&self, stream: StreamId) -> u64;
}

/// See the module.
pub trait Replica: Clone + Send + Sync + 'static {
    /// Its leadership.
    type Led: Led;

    /// Which node.
    fn id(&self) -> NodeId;

    /// Which run of its process: an epoch belongs to one.
    fn run(&self) -> RunId;

    /// Which disk (I-15).
    fn engine(&self) -> [u8; 16];

    /// The epoch that it has begun last, durably.
    fn begun(&self) -> Option<Promise>;

    /// Why it must not vote, promise or lead, if so: its engine has failed, or a repair is not over.
    fn unfit(&self) -> Option<String>;

    /// Whether its engine has failed: then it does nothing of Raft any more.
    fn has_failed(&self) -> bool {
        false
    }

    /// Nanoseconds on CLOCK_BOOTTIME.
    fn boottime_ns(&self) -> u64;

    /// Milliseconds since 1970, for whoever reads a command's time.
    fn now_ms(&self) -> u64;

    /// Ends whatever is of an older epoch, and promises this one, durably. Once more for what is held now.
    fn promise(&self, promise: Promise) -> impl Future<Output = Result<Standing, String>> + Send;

    /// An epoch begins, where `starts` says: cuts by I-17, then this node leads or follows in it. The state
    /// machine goes back where records were cut.
    fn begin(
        &self,
        promise: Promise,
        starts: Vec<(StreamId, u64)>,
    ) -> impl Future<Output = Result<Begun<Self::Led>, String>> + Send;

    /// As [`Replica::begin`], of an epoch before which others have begun that this node has not heard of; all
    /// epochs of each stream are known. This node never leads in it.
    fn begin_known(
        &self,
        promise: Promise,
        streams: Vec<(StreamId, Vec<EpochStart>)>,
    ) -> impl Future<Output = Result<(), String>> + Send;

    /// All epochs of each replicated stream, as they are here.
    fn epochs(&self) -> Vec<(StreamId, Vec<EpochStart>)>;

    /// The base of Raft's log that is kept, durably, and the way to keep another one.
    fn load_base(&self) -> impl Future<Output = Result<Option<Base>, String>> + Send;

    /// See [`Replica::load_base`].
    fn save_base(&self, base: Base) -> impl Future<Output = Result<(), String>> + Send;

    /// Adds what is lacking of these records of the metadata stream, and waits until all are durable
    /// here. They are committed.
    fn extend(
        &self,
        epoch: u64,
        base: u64,
        records: Vec<Bytes>,
    ) -> impl Future<Output = Result<(), AddError>> + Send;

    /// Brings what is lacking from another node, durably.
    fn fetch(
        &self,
        from: &Member,
        wanted: Vec<(StreamId, Range<u64>)>,
    ) -> impl Future<Output = Result<(), String>> + Send;

    /// Who is in the cluster, whose majorities count, and with which engine each node does (I-15).
    fn set_members(
        &self,
        nodes: Vec<Member>,
        voters: Vec<BTreeSet<NodeId>>,
        engines: BTreeMap<NodeId, [u8; 16]>,
    );

    /// What is durable of the metadata stream.
    fn metadata_end(&self) -> u64;

    /// What is known to be committed of each replicated stream.
    fn committed_ends(&self) -> Vec<(StreamId, u64)>;

    /// What this node holds now.
    fn standing(&self) -> Standing;

    /// Durable records of the metadata stream.
    fn read(&self, offsets: Range<u64>) -> impl Future<Output = Result<Vec<Bytes>, String>> + Send;

    /// What came of the record that was given this offset in this epoch, when it is applied here.
    fn outcome(
        &self,
        epoch: u64,
        offset: u64,
    ) -> impl Future<Output = Result<Applied, OutcomeError>> + Send;
}
