//! The Raft side of a replicated metadata store on [`ringwal_engine`]. So far its log: see [`raft`].

#![forbid(unsafe_code)]

pub mod raft;
