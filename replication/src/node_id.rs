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

/// Set in the ids of programs that are no node.
const CLIENT_BIT: u64 = 1 << 63;

/// One node of a cluster: chosen by the operator, greater than 0 and less than 2^63.
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

    /// A program that is no node and only asks ([`crate::requests::Client`]): `random` tells it from
    /// others.
    pub const fn client(random: u64) -> Self {
        Self(random | CLIENT_BIT)
    }

    /// Whether it is no node, but a program that only asks.
    pub const fn is_client(self) -> bool {
        self.0 & CLIENT_BIT != 0
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
