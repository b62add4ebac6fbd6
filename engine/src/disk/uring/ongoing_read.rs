//! One read of a reader that goes on while its thread does something else: in a small ring of its own, so that
//! the shard's is never shared.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use io_uring::types::Fd;
use io_uring::{IoUring, opcode};

use super::pass_over;
use crate::disk::files::{Directory, OpenFile, check_range};
use crate::disk::{BufferMut, FileId, OngoingRead, ReadAt};

/// Reads of other threads as [`Directory`] does them, and a ring for one that goes on meanwhile: without
/// io_uring there is none.
pub(super) struct RingReader {
    pub directory: Arc<Directory>,
}

impl ReadAt for RingReader {
    fn read_at(
        &self,
        file: FileId,
        offset: u64,
        into: &mut BufferMut,
        length: usize,
    ) -> io::Result<usize> {
        self.directory.read_at(file, offset, into, length)
    }

    fn ongoing_read(&self) -> Option<Box<dyn OngoingRead>> {
        let lent = Lent::take()?;
        let ring = IoUring::new(1).ok()?;
        let directory = self.directory.clone();
        Some(Box::new(RingRead { ring: Some(ring), directory, in_flight: None, _lent: lent }))
    }
}

/// Rings that readers of this process have at most: each is a file descriptor.
const RINGS_MAX: usize = 64;

/// One of those rings.
struct Lent;

static RINGS_LENT: AtomicUsize = AtomicUsize::new(0);

impl Lent {
    fn take() -> Option<Self> {
        let lent = Self;
        (RINGS_LENT.fetch_add(1, Ordering::Relaxed) < RINGS_MAX).then_some(lent)
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        RINGS_LENT.fetch_sub(1, Ordering::Relaxed);
    }
}

struct RingRead {
    /// Until it is broken.
    ring: Option<IoUring>,
    directory: Arc<Directory>,
    in_flight: Option<InFlight>,
    _lent: Lent,
}

/// A read in the kernel's hands, with all that it points to (I-8).
struct InFlight {
    buffer: BufferMut,
    length: usize,
    /// Until the kernel holds it by itself: a reader that pauses must not keep a file that was removed.
    _file: Option<Arc<OpenFile>>,
}

/// Waits for the one read that is in flight; its result as the kernel gives it.
///
/// # Errors
/// When the ring cannot go on: the kernel may still have the read.
fn wait(ring: &mut IoUring) -> io::Result<i32> {
    loop {
        if let Some(entry) = ring.completion().next() {
            return Ok(entry.result());
        }
        if let Err(error) = ring.submit_and_wait(1) {
            pass_over(error)?;
        }
    }
}

impl OngoingRead for RingRead {
    fn begin(&mut self, file: FileId, offset: u64, mut buffer: BufferMut, length: usize) -> bool {
        drop(self.end());
        let (Some(ring), Ok(open)) = (&mut self.ring, self.directory.get(file)) else {
            return false;
        };
        if check_range(offset, 0, length, buffer.len()).is_err() {
            return false;
        }
        let descriptor = Fd(open.file.as_raw_fd());
        let read = opcode::Read::new(descriptor, buffer.as_mut_ptr(), length as u32);
        // SAFETY: the buffer is held in `in_flight` until the completion has been seen, and the file until the
        // kernel has taken the read.
        let pushed = unsafe { ring.submission().push(&read.offset(offset).build()) };
        pushed.expect("nothing else is in this ring, which has room for one");
        // What is not taken now is taken when it is waited for.
        let is_taken = matches!(ring.submit(), Ok(1));
        self.in_flight = Some(InFlight { buffer, length, _file: (!is_taken).then_some(open) });
        true
    }

    fn end(&mut self) -> Option<BufferMut> {
        let in_flight = self.in_flight.take()?;
        match self.ring.as_mut().map(wait) {
            Some(Ok(read)) => {
                (usize::try_from(read) == Ok(in_flight.length)).then_some(in_flight.buffer)
            }
            _ => {
                // The kernel may still write to the buffer: it is leaked rather than used again.
                std::mem::forget(in_flight);
                self.ring = None;
                None
            }
        }
    }
}

impl Drop for RingRead {
    fn drop(&mut self) {
        drop(self.end());
    }
}
