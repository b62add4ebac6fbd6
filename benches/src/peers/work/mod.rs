//! The shapes of workloads, each run in a process of its own.

pub mod closed_loop;
pub mod open_loop;
pub mod replay;
