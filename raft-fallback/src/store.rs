//! The store.
pub(crate) mod fast;
pub(crate) mod peers;
pub(crate) mod stats;
pub(crate) mod wire;
