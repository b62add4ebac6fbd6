//! The store.
pub(crate) mod peers;
pub(crate) mod wire;
