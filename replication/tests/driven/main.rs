//! Nodes that an embedder drives: real engines, threads and connections, over loopback.

mod beginning;
mod electing;
mod extending;
mod fetching;
mod leasing;
mod promising;
mod setup;
mod voting;
