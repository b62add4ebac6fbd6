//! Keys for engines that store pairs: one prefix per writer, ascending.

use std::sync::atomic::{AtomicU32, Ordering};

/// Hands out prefixes.
#[derive(Default)]
pub struct Prefixes(AtomicU32);

impl Prefixes {
    /// One that nobody else has.
    pub fn keys(&self) -> Keys {
        Keys { prefix: self.0.fetch_add(1, Ordering::Relaxed), next: 0 }
    }
}

/// Ascending keys with the same prefix.
pub struct Keys {
    prefix: u32,
    next: u64,
}

impl Keys {
    /// The next one; keys sort as they are made.
    pub fn next(&mut self) -> [u8; 12] {
        let mut key = [0; 12];
        key[..4].copy_from_slice(&self.prefix.to_be_bytes());
        key[4..].copy_from_slice(&self.next.to_be_bytes());
        self.next += 1;
        key
    }
}
