//! What our entries say, beside those of Raft itself.

use std::fmt;

use bytes::Bytes;
use ringwal_engine::StreamId;
use ringwal_replication::node_id::{NodeId, RunId};

/// What an entry of ours says. Opaque to Raft.
#[derive(Clone, Eq, PartialEq, Debug)]
pub enum Payload {
    /// The metadata stream goes on with these records. Whoever applies it adds what it lacks of them, and
    /// cuts nothing.
    Extend {
        /// The epoch that it belongs to; in another one it does nothing.
        epoch: u64,
        /// Offset of the first record.
        base: u64,
        /// It goes on where the `Extend` before it ends, and does nothing when that one has done nothing, or
        /// is not there. Else everything from the committed watermark on begins here, or with it.
        continues: bool,
        /// The records, one after the other.
        records: Vec<Bytes>,
    },
    /// An epoch begins.
    EpochStart {
        /// Which one: the term of its entry.
        epoch: u64,
        /// Who leads in it.
        leader: NodeId,
        /// In which run of its process: an epoch belongs to one.
        run: RunId,
        /// Where it begins, of each replicated stream; of one that is not listed, at 0.
        starts: Vec<(StreamId, u64)>,
    },
}

impl fmt::Display for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Extend { epoch, base, records, .. } => {
                let end = base + records.len() as u64;
                write!(f, "extend the metadata stream with {base}..{end} in epoch {epoch}")
            }
            Self::EpochStart { epoch, leader, starts, .. } => {
                write!(f, "epoch {epoch} of node {leader} begins in {} streams", starts.len())
            }
        }
    }
}
