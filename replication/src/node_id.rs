//! Who is who: clusters, nodes, and the runs of their processes.

use std::fmt;

/// A cluster. Nodes of different ones refuse each other.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
pub struct ClusterId([u8; 16]);

impl ClusterId {
    /// The cluster with this id.
    pub const fn new(id: [u8; 16]) -> Self {
        Self(id)
    }

    /// Its id.
    pub const fn bytes(self) -> [u8; 16] {
        self.0
    }
}

/// One node of a cluster: chosen by the operator, greater than 0.
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash, Debug)]
pub struct NodeId(u64);

impl NodeId {
    /// The node with this id.
    pub const fn new(id: u64) -> Self {
        Self(id)
    }

    /// Its id.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One run of a node's process: random. An epoch belongs to one of them.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
pub struct RunId([u8; 16]);

impl RunId {
    /// The run with this id.
    pub const fn new(id: [u8; 16]) -> Self {
        Self(id)
    }

    /// Its id.
    pub const fn bytes(self) -> [u8; 16] {
        self.0
    }
}
