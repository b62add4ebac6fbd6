//! Which parts of the pool are registered with the ring. A registered part is in memory for good,
//! so each is registered when it is first used: an open does not pay for what a shard may never
//! need.

use std::io;
use std::ops::Range;

use io_uring::Submitter;

use super::refusal::{Environment, partly_note, unregistered_note};
use crate::disk::Pool;

/// Slots that are registered at once: enough for a shard with little to do.
const SLOTS_AT_ONCE: usize = 4;
/// A part is at least as long, so that it is one large page.
const PART_BYTES_MIN: usize = 2 << 20;

/// The registered buffers of a ring.
#[derive(Debug, Default)]
pub(super) struct Registration {
    /// Addresses of the pool.
    pool: Range<usize>,
    part_bytes: usize,
    /// By its place in the ring's table.
    registered: Vec<bool>,
    /// The kernel takes no more.
    is_full: bool,
}

impl Registration {
    /// Registers the parts that are used first. A refusal is a note, and all works without.
    pub fn new(submitter: &Submitter<'_>, pool: &Pool, notes: &mut Vec<String>) -> Self {
        let (address, bytes) = pool.mapping();
        let part_bytes = PART_BYTES_MIN.next_multiple_of(pool.slot_bytes());
        let parts = bytes.div_ceil(part_bytes);
        let pool_range = address as usize..address as usize + bytes;
        let mut this =
            Self { pool: pool_range, part_bytes, registered: vec![false; parts], is_full: false };
        let environment = Environment::read();
        if let Err(error) = this.begin(submitter, SLOTS_AT_ONCE * pool.slot_bytes()) {
            notes.push(unregistered_note(&error, bytes, environment));
            return Self::default();
        }
        notes.extend(partly_note(bytes, environment));
        this
    }

    fn begin(&mut self, submitter: &Submitter<'_>, bytes: usize) -> io::Result<()> {
        let parts = bytes.div_ceil(self.part_bytes).min(self.registered.len());
        match submitter.register_buffers_sparse(self.registered.len() as u32) {
            Ok(()) => {
                self.register(submitter, 0)?;
                self.is_full = (1..parts).any(|part| self.register(submitter, part).is_err());
                Ok(())
            }
            // Before Linux 5.19 a table is filled when it is made.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                let all: Vec<_> = (0..self.registered.len()).map(|part| self.part(part)).collect();
                // SAFETY: as in `register`.
                unsafe { submitter.register_buffers(&all) }?;
                self.registered.fill(true);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn part(&self, part: usize) -> libc::iovec {
        let start = self.pool.start + part * self.part_bytes;
        let length = self.part_bytes.min(self.pool.end - start);
        libc::iovec { iov_base: start as *mut libc::c_void, iov_len: length }
    }

    fn register(&mut self, submitter: &Submitter<'_>, part: usize) -> io::Result<()> {
        let bytes = [self.part(part)];
        // SAFETY: the mapping lives as long as the disk's pool or any buffer of it, the kernel
        // holds its pages by itself, and `InFlight` keeps the buffers of every operation.
        unsafe { submitter.register_buffers_update(part as u32, &bytes, None) }?;
        self.registered[part] = true;
        Ok(())
    }

    /// Whether the first part is registered.
    pub fn is_some(&self) -> bool {
        self.registered.first().is_some_and(|first| *first)
    }

    /// The place in the ring's table of the part with this address; it is registered when it is
    /// asked for the first time.
    pub fn index_of(&mut self, submitter: &Submitter<'_>, address: usize) -> Option<u16> {
        if !self.pool.contains(&address) {
            return None;
        }
        let part = (address - self.pool.start) / self.part_bytes;
        if !self.registered[part] {
            self.is_full = self.is_full || self.register(submitter, part).is_err();
        }
        self.registered[part].then_some(part as u16)
    }

    /// Which parts are registered.
    #[cfg(test)]
    pub fn in_use(&self) -> &[bool] {
        &self.registered
    }
}
