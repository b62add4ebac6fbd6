//! What is left to do when a majority of the voters is gone for good: one node that is left goes on alone, and
//! everything that only the others had is lost. An operator decides that, offline, in so many words.
//!
//! A membership of this node alone is written behind the last entry of its log. When it is started, it
//! elects itself, and applies its whole log, committed or not, before it leads in a new epoch. The others
//! must never come back with their disks: they know nothing of this, and may still be a majority.

use bytes::Bytes;
use openraft::EntryPayload;
use ringwal_engine::{AppendError, CommitError, Engine, ReadError};
use ringwal_replication::config::Member;
use ringwal_replication::node_id::NodeId;
use std::collections::{BTreeMap, BTreeSet};

use crate::base::{Base, BaseError};
use crate::raft::{
    Entry, LOG_STREAM, Membership, RaftNode, STATE_STREAM, decode_entry, encode_entry, log_id,
    stored_term,
};

/// What was given up.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct GivenUp {
    /// Who was in the cluster, as far as this node knew.
    pub members: Vec<NodeId>,
    /// Index of the entry that says that it is alone now.
    pub index: u64,
    /// What this node holds of the metadata stream.
    pub metadata_end: u64,
}

/// Why nothing was given up. The directory is as it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MajorityError {
    /// It has never been in a cluster.
    #[error("this directory knows of no cluster: there is nothing to recover in it")]
    NoCluster,
    /// It is not in the cluster that it knows.
    #[error(
        "node {0} is no member of the cluster that this directory knows; use the directory of a member"
    )]
    NotAMember(NodeId),
    /// The membership names it with another disk.
    #[error(
        "the cluster knows node {0} with another disk (I-15): its directory cannot go on alone"
    )]
    OtherDisk(NodeId),
    /// It is alone already.
    #[error("node {0} is the only voter already: start it")]
    Alone(NodeId),
    /// The log cannot be read.
    #[error("Raft's log cannot be read: {0}")]
    Read(#[from] ReadError),
    /// The base cannot be read.
    #[error(transparent)]
    Base(#[from] BaseError),
    /// An entry is not what it should be.
    #[error("Raft's log, offset {offset}: {why}")]
    Malformed {
        /// Where.
        offset: u64,
        /// What is wrong with it.
        why: String,
    },
    /// The entry cannot be written.
    #[error("the new membership is not durable: {0}")]
    Append(#[from] AppendError),
    /// The same.
    #[error("the new membership is not durable: {0}")]
    Commit(#[from] CommitError),
}

/// Has a node go on alone. Its engine is open here, and nothing else uses it.
///
/// # Errors
/// See [`MajorityError`].
pub fn give_up_majority(engine: &Engine, me: &Member) -> Result<GivenUp, MajorityError> {
    let base = Base::load(engine.directory())?;
    let mut last = base.as_ref().map(|base| base.last);
    let mut membership = base.map(|base| base.membership.membership().clone());
    let malformed = |offset, why: String| MajorityError::Malformed { offset, why };
    for record in engine.stream(LOG_STREAM).read(..)? {
        let record = record?;
        let offset = record.offset();
        let entry = decode_entry(Bytes::copy_from_slice(record.payload()));
        let (entry, _) = entry.map_err(|error| malformed(offset, error.to_string()))?;
        last = last.max(Some(entry.log_id));
        if let EntryPayload::Membership(found) = entry.payload {
            membership = Some(found);
        }
    }
    let (Some(last), Some(membership)) = (last, membership) else {
        return Err(MajorityError::NoCluster);
    };
    let known = membership.nodes().find(|(id, _)| **id == me.node.get());
    let (_, known) = known.ok_or(MajorityError::NotAMember(me.node))?;
    if known.engine != engine.id() {
        return Err(MajorityError::OtherDisk(me.node));
    }
    let voters: BTreeSet<u64> = membership.voter_ids().collect();
    if voters == BTreeSet::from([me.node.get()]) {
        return Err(MajorityError::Alone(me.node));
    }
    let mut term = last.leader_id.term;
    if let Some(record) = engine.stream(STATE_STREAM).read(..)?.last() {
        let record = record?;
        let found = stored_term(Bytes::copy_from_slice(record.payload()));
        term = term.max(found.map_err(|error| malformed(record.offset(), error.to_string()))?);
    }
    let nodes = BTreeMap::from([(me.node.get(), RaftNode::new(me.address.clone(), engine.id()))]);
    let alone = Membership::new(vec![BTreeSet::from([me.node.get()])], nodes);
    let index = last.index + 1;
    let alone = alone.map_err(|error| malformed(index, error.to_string()))?;
    let entry = Entry { log_id: log_id(term, index), payload: EntryPayload::Membership(alone) };
    let mut bytes = Vec::new();
    encode_entry(&entry, None, &mut bytes).map_err(|error| malformed(index, error.to_string()))?;
    let log = engine.stream(LOG_STREAM);
    if log.end() < index {
        log.skip_to(index)?.wait()?;
    }
    log.append(&bytes)?.wait()?;
    Ok(GivenUp {
        members: membership.nodes().map(|(id, _)| NodeId::new(*id)).collect(),
        index,
        metadata_end: engine.stream(crate::applying::METADATA_STREAM).end(),
    })
}
