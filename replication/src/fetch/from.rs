//! What a driven node lacks comes from another node, while it leads nobody.

use ringwal_engine::StreamId;

use super::client::FetchError;
use crate::node_id::NodeId;

/// Why records do not come from another node.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchFromError {
    /// The other node cannot be asked.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// Another node answers at that address.
    #[error("{address} is node {found}, not node {expected}")]
    OtherNode {
        /// Where.
        address: String,
        /// Who answers.
        found: NodeId,
        /// Who was to.
        expected: NodeId,
    },
    /// The beginning of what is wanted is trimmed there: a snapshot is needed.
    #[error("stream {stream} is trimmed up to {first} at node {node}: begin from a snapshot")]
    Trimmed {
        /// Which stream.
        stream: StreamId,
        /// First offset that is left there.
        first: u64,
        /// Who was asked.
        node: NodeId,
    },
    /// It has not all of that, or another history.
    #[error("stream {stream} at node {node}: {why}; ask another node")]
    Lacks {
        /// Which stream.
        stream: StreamId,
        /// Who was asked.
        node: NodeId,
        /// What it has not.
        why: String,
    },
    /// This node leads, or has changed its part meanwhile.
    #[error("nothing more was fetched: {0}")]
    Changed(String),
    /// The engine does not take it.
    #[error("stream {stream}, offset {offset}: not appended: {why}")]
    Append {
        /// Which stream.
        stream: StreamId,
        /// Where.
        offset: u64,
        /// Why.
        why: String,
    },
    /// The node was not started to be driven.
    #[error("this node is not driven: start it with start_driven")]
    NotDriven,
    /// The node is closed, or its thread has died.
    #[error("the node is closed")]
    Closed,
}
