//! Counts the flushes that this process asks the kernel for. The functions below stand in the place
//! of those of the C library, for every engine that is linked into this program: they count and make the same
//! system call.
//!
//! What passes them: writes to files opened with O_SYNC, writes with RWF_DSYNC, and io_uring. The device's own
//! counter sees those.

use std::sync::atomic::{AtomicU64, Ordering};

use libc::{c_int, c_void, size_t};

static CALLS: AtomicU64 = AtomicU64::new(0);

/// Flushes asked for since the program began.
pub fn count() -> u64 {
    CALLS.load(Ordering::Relaxed)
}

/// One that was asked for in another way.
pub fn note() {
    CALLS.fetch_add(1, Ordering::Relaxed);
}

/// fsync(2).
// SAFETY: the name is that of a function of the C library, and so are arguments, result and effect.
#[unsafe(no_mangle)]
extern "C" fn fsync(file: c_int) -> c_int {
    note();
    // SAFETY: the system call of that name, with its argument as it came.
    unsafe { libc::syscall(libc::SYS_fsync, file) as c_int }
}

/// fdatasync(2).
// SAFETY: as for `fsync`.
#[unsafe(no_mangle)]
extern "C" fn fdatasync(file: c_int) -> c_int {
    note();
    // SAFETY: the system call of that name, with its argument as it came.
    unsafe { libc::syscall(libc::SYS_fdatasync, file) as c_int }
}

/// msync(2).
// SAFETY: as for `fsync`.
#[unsafe(no_mangle)]
extern "C" fn msync(address: *mut c_void, length: size_t, flags: c_int) -> c_int {
    if flags & libc::MS_SYNC != 0 {
        note();
    }
    // SAFETY: the system call of that name, with its arguments as they came.
    unsafe { libc::syscall(libc::SYS_msync, address, length, flags) as c_int }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flushes_of_the_standard_library_are_counted() {
        let file = tempfile::tempfile().unwrap();
        let before = count();
        file.sync_data().unwrap();
        file.sync_all().unwrap();
        assert!(count() >= before + 2);
    }
}
