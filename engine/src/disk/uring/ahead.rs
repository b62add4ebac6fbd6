//! One read of a reader that goes on while its thread does something else: in a small ring of its own, so that
//! the shard's is never shared.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use io_uring::types::Fd;
use io_uring::{IoUring, opcode};

use crate::disk::files::{Directory, OpenFile, check_range};
use crate::disk::{BufferMut, FileId, ReadAhead, ReadAt};

/// Reads of other threads, of a disk that has a ring.
pub(super) struct RingReader(pub Arc<Directory>);

impl ReadAt for RingReader {
    fn read_at(
        &self,
        file: FileId,
        offset: u64,
        into: &mut BufferMut,
        length: usize,
    ) -> io::Result<usize> {
        self.0.read_at(file, offset, into, length)
    }

    fn ahead(&self) -> Option<Box<dyn ReadAhead>> {
        let ring = IoUring::new(1).ok()?;
        let directory = self.0.clone();
        Some(Box::new(RingAhead { ring: Some(ring), directory, in_flight: None }))
    }
}

struct RingAhead {
    /// Until it is broken.
    ring: Option<IoUring>,
    directory: Arc<Directory>,
    in_flight: Option<InFlight>,
}

/// A read in the kernel's hands, with all that it points to.
struct InFlight {
    buffer: BufferMut,
    length: usize,
    _file: Arc<OpenFile>,
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
        match ring.submit_and_wait(1) {
            Err(error) if !is_passing(&error) => return Err(error),
            _ => {}
        }
    }
}

/// A wait that ended early: a signal, or the kernel is short of room or memory.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN))
}

impl ReadAhead for RingAhead {
    fn begin(&mut self, file: FileId, offset: u64, mut buffer: BufferMut, length: usize) {
        drop(self.end());
        let (Some(ring), Ok(open)) = (&mut self.ring, self.directory.get(file)) else { return };
        if check_range(offset, 0, length, buffer.len()).is_err() {
            return;
        }
        let descriptor = Fd(open.file.as_raw_fd());
        let read = opcode::Read::new(descriptor, buffer.as_mut_ptr(), length as u32);
        // SAFETY: the buffer and the file are held in `in_flight` until the completion has been seen.
        let pushed = unsafe { ring.submission().push(&read.offset(offset).build()) };
        pushed.expect("nothing else is in this ring, which has room for one");
        self.in_flight = Some(InFlight { buffer, length, _file: open });
        // What is not taken now is taken when it is waited for.
        let _ = ring.submit();
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

impl Drop for RingAhead {
    fn drop(&mut self) {
        drop(self.end());
    }
}
