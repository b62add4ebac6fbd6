//! Directories that are damaged, and mended from another node over loopback.

mod asking;
#[path = "../link/authority.rs"]
#[expect(dead_code, reason = "the tests of links use the rest")]
mod authority;
mod mending;
mod online;
mod refusing;
mod secured;
mod setup;
