//! A lock on an open file description: it lives as long as any descriptor of it, a ring's included.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Locks the whole file, exclusively or shared, without waiting.
///
/// # Errors
/// `WouldBlock` when another open file description holds it.
pub(crate) fn lock_file(file: BorrowedFd<'_>, exclusive: bool) -> io::Result<()> {
    let kind = if exclusive { libc::F_WRLCK } else { libc::F_RDLCK };
    let lock = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    loop {
        // SAFETY: the descriptor is open and the structure lives through the call.
        let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
        if result == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
