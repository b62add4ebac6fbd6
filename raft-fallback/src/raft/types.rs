//! What openraft is told about our types. The runtime is a parameter: the product's is tokio, a
//! simulation brings its own.

use std::cmp::Ordering;
use std::fmt;
use std::marker::PhantomData;

use openraft::impls::{InlineBatch, OneshotResponder};
use openraft::vote::leader_id_std::{CommittedLeaderId, LeaderId};
use openraft::{AnyError, AsyncRuntime, EntryPayload, OptionalSend, RaftTypeConfig};
use openraft_rt_tokio::TokioRuntime;

use super::payload::Payload;

/// Our types, on the runtime `R`.
pub struct Types<R = TokioRuntime>(PhantomData<fn() -> R>);

/// Names an entry: the term of the leader that wrote it, and its index. One leader per term, so that the
/// leader itself need not be named.
pub type LogId = openraft::LogId<CommittedLeaderId<u64>>;

/// A vote for a node in a term, and whether a majority has given theirs.
pub type Vote = openraft::impls::Vote<LeaderId<u64, u64>>;

/// Who is in the cluster: node ids are numbers of
/// [`NodeId`](ringwal_replication::node_id::NodeId)s, and of each node its address and disk are kept.
pub type Membership = openraft::Membership<u64, RaftNode>;

/// The same, and the entry that says so.
pub type StoredMembership = openraft::StoredMembership<CommittedLeaderId<u64>, u64, RaftNode>;

/// What a membership says of a node beside its id.
#[derive(Clone, Eq, PartialEq, Debug, Default)]
pub struct RaftNode {
    /// `host:port` at which the others reach it.
    pub address: String,
    /// Its engine (`Engine::id`): the node counts as a member only with this disk (I-15).
    pub engine: [u8; 16],
}

impl RaftNode {
    /// The node at this address, with this engine.
    pub fn new(address: impl Into<String>, engine: [u8; 16]) -> Self {
        Self { address: address.into(), engine }
    }
}

impl fmt::Display for RaftNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (engine {:032x})", self.address, u128::from_be_bytes(self.engine))
    }
}

/// What came of an entry when it was applied.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Effect {
    /// It counts.
    Done,
    /// It does nothing: it is of an epoch that was not the present one, or of another term than its epoch.
    Nothing,
}

/// An entry of the log.
pub type Entry =
    openraft::impls::Entry<CommittedLeaderId<u64>, EntryPayload<Payload, u64, RaftNode>>;

impl<R: AsyncRuntime> RaftTypeConfig for Types<R> {
    type D = Payload;
    type R = Effect;
    type NodeId = u64;
    type Node = RaftNode;
    type Term = u64;
    type LeaderId = LeaderId<u64, u64>;
    type Vote = Vote;
    type Payload = EntryPayload<Payload, u64, RaftNode>;
    type Entry = Entry;
    type AsyncRuntime = R;
    type Responder<T>
        = OneshotResponder<Self, T>
    where
        T: OptionalSend + 'static;
    type Batch<T>
        = InlineBatch<T>
    where
        T: OptionalSend + 'static;
    type ErrorSource = AnyError;
}

// Derived, these would ask the same of `R`, of which there is no value.
impl<R> fmt::Debug for Types<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Types")
    }
}

impl<R> Clone for Types<R> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<R> Copy for Types<R> {}

impl<R> Default for Types<R> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<R> PartialEq for Types<R> {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl<R> Eq for Types<R> {}

impl<R> PartialOrd for Types<R> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<R> Ord for Types<R> {
    fn cmp(&self, _: &Self) -> Ordering {
        Ordering::Equal
    }
}
