//! Raft's log over the engine, and over a shard on a simulated disk.

mod crashes;
mod killed;
mod machine;
mod restart;
mod simulated;
mod suite;
