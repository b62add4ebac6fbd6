//! Replication for [`ringwal_engine`]: the leader's frames leave for its followers when they are
//! sealed, and nobody is waited for.
//!
//! Being built: see "Replication: the shape" in ARCHITECTURE.md. What is here are the parts without
//! I/O.

pub mod follower;
pub mod history;
pub mod leader;
pub mod node_id;
pub mod orphans;
pub mod progress;
pub mod promise;
pub mod wire;
