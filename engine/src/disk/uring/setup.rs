//! Making a ring and its file table on kernels of any age.

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use io_uring::{Builder, IoUring};
use rustix::process::{Resource, getrlimit};

use super::refusal::{Environment, UringError, setup_error};

/// How a [`super::UringDisk`] is opened.
#[derive(Clone, Debug)]
pub struct UringOptions {
    /// Operations in flight at once. Default 64; at most 16 Ki. Each costs 300 bytes or so.
    pub entries: u32,
    /// Memory for batches, in bytes. Default 32 MiB; at most 1 GiB can be registered.
    pub pool_bytes: usize,
    /// Bytes of one batch buffer, a multiple of [`crate::disk::BLOCK_BYTES`]. Default 1 MiB.
    pub slot_bytes: usize,
    /// Files open at once, at most the limit of open files. Default 1024; 8 bytes each.
    pub files_max: u32,
    /// Pin the pool once instead of at each write. Default true.
    pub register_buffers: bool,
    /// A kernel thread takes submissions, without system calls, until nothing has come for this
    /// long. It costs a core while it polls. Default `None`: off.
    pub sqpoll_idle: Option<Duration>,
    /// Open files for reading only and refuse every change. Default false.
    pub read_only: bool,
}

impl Default for UringOptions {
    fn default() -> Self {
        Self {
            entries: 64,
            pool_bytes: 32 << 20,
            slot_bytes: 1 << 20,
            files_max: 1024,
            register_buffers: true,
            sqpoll_idle: None,
            read_only: false,
        }
    }
}

impl UringOptions {
    /// The entries within the kernel's limit of 32 Ki, which includes the disk's own.
    pub(super) fn entries_clamped(&self) -> u32 {
        self.entries.clamp(1, 1 << 14)
    }
}

/// Places in the ring's file table that are not files of the directory.
pub(super) const LOCK_SLOT: u32 = 0;
pub(super) const EVENT_SLOT: u32 = 1;
pub(super) const DIRECTORY_SLOT: u32 = 2;
pub(super) const FIRST_FILE_SLOT: u32 = 3;

/// Asks for the best ring first: older kernels answer EINVAL to flags that they do not know.
pub(super) fn build_ring(options: &UringOptions) -> Result<IoUring, UringError> {
    // Room for the read of the wake-up event, and one to spare.
    let entries = (options.entries_clamped() + 2).next_power_of_two();
    let mut result = Err(io::Error::from_raw_os_error(libc::EINVAL));
    for level in [Level::Linux61, Level::Linux519, Level::Plain] {
        result = builder(options, level).build(entries);
        match &result {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            _ => break,
        }
    }
    let ring = result.map_err(|source| setup_error(source, Environment::read()))?;
    if !ring.params().is_feature_ext_arg() {
        return Err(UringError::Old { missing: "timeouts (EXT_ARG)", needed: "5.11" });
    }
    Ok(ring)
}

#[derive(Copy, Clone, Eq, PartialEq)]
enum Level {
    Linux61,
    Linux519,
    Plain,
}

fn builder(options: &UringOptions, level: Level) -> Builder {
    let mut builder = IoUring::builder();
    builder.setup_r_disabled();
    match options.sqpoll_idle {
        Some(idle) => {
            let idle = u32::try_from(idle.as_millis()).unwrap_or(u32::MAX);
            builder.setup_sqpoll(idle.max(1));
        }
        None if level == Level::Linux61 => {
            builder.setup_defer_taskrun().setup_taskrun_flag();
        }
        None if level == Level::Linux519 => {
            builder.setup_coop_taskrun().setup_taskrun_flag();
        }
        None => {}
    }
    if level == Level::Linux61 {
        builder.setup_single_issuer();
    }
    if level != Level::Plain {
        builder.setup_submit_all();
    }
    builder
}

/// Makes the file table and returns its size.
pub(super) fn register_files(
    ring: &IoUring,
    files_max: u32,
    own: &[RawFd; 3],
) -> Result<u32, UringError> {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let limit = u32::try_from(limit).unwrap_or(u32::MAX);
    let files = files_max.saturating_add(FIRST_FILE_SLOT).min(limit);
    let submitter = ring.submitter();
    let table = match submitter.register_files_sparse(files) {
        // Before 5.19 a table of absent files says the same.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            submitter.register_files(&vec![-1; files as usize])
        }
        result => result,
    };
    table
        .and_then(|()| submitter.register_files_update(LOCK_SLOT, own))
        .map_err(|source| UringError::FileTable { files, source })?;
    Ok(files)
}
