//! Directories that are damaged, and mended from another node over loopback.

mod asking;
mod mending;
mod refusing;
mod setup;
