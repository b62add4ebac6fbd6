//! Why a ring could not be had, told by what this process and kernel say about themselves.

use std::io;
use std::path::PathBuf;

use rustix::process::{Resource, getrlimit};

/// Why [`super::UringDisk::open`] failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UringError {
    /// The directory cannot be opened.
    #[error("cannot open the directory {}: {source}", path.display())]
    Directory {
        /// The directory that was asked for.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The wake-up event cannot be had.
    #[error(
        "cannot make the event that wakes a shard: {source}; raise the limit of open files (ulimit -n)"
    )]
    Event {
        /// What the kernel said.
        source: io::Error,
    },
    /// The memory for batches cannot be had.
    #[error("cannot map {pool_bytes} bytes of batch buffers: {source}")]
    Memory {
        /// The memory that was asked for, in bytes.
        pool_bytes: usize,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel or its administrator refuses io_uring.
    #[error("io_uring_setup: {source}: {cause}; {advice}, or use the blocking disk")]
    Setup {
        /// The errno of io_uring_setup(2).
        source: io::Error,
        /// What is known about the reason, with the live value.
        cause: String,
        /// What to do about it.
        advice: String,
    },
    /// The kernel's io_uring is too old to be used.
    #[error(
        "the io_uring of this kernel has no {missing}; use Linux {needed} or newer, \
         or the blocking disk"
    )]
    Old {
        /// The feature.
        missing: &'static str,
        /// The first version that has it.
        needed: &'static str,
    },
    /// The ring refuses the file table.
    #[error(
        "cannot register a table of {files} files with the ring: {source}; the limit of open \
         files (ulimit -n) must be at least that"
    )]
    FileTable {
        /// Entries that were asked for.
        files: u32,
        /// What the kernel said.
        source: io::Error,
    },
}

/// What the calling thread and the kernel say about themselves; `None` is what cannot be read.
#[derive(Copy, Clone, Default, Debug)]
pub(super) struct Environment {
    /// /proc/sys/kernel/io_uring_disabled.
    pub io_uring_disabled: Option<u32>,
    /// `Seccomp:` of /proc/thread-self/status; 2 is a filter.
    pub seccomp: Option<u32>,
    /// RLIMIT_MEMLOCK in bytes; `None` is unlimited.
    pub memlock_bytes: Option<u64>,
    /// CAP_IPC_LOCK: that limit does not count.
    pub may_lock: bool,
}

/// Number of CAP_IPC_LOCK.
const IPC_LOCK: u32 = 14;

impl Environment {
    pub fn read() -> Self {
        let number = |text: &str| text.trim().parse().ok();
        let disabled = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok();
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
        let line = |key| status.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
        let capabilities = line("CapEff:").and_then(|bits| u64::from_str_radix(bits, 16).ok());
        Self {
            io_uring_disabled: disabled.as_deref().and_then(number),
            seccomp: line("Seccomp:").and_then(number),
            memlock_bytes: getrlimit(Resource::Memlock).current,
            may_lock: capabilities.is_some_and(|bits| bits >> IPC_LOCK & 1 == 1),
        }
    }
}

/// Names the cause of a refused io_uring_setup, and what to do.
pub(super) fn setup_error(source: io::Error, environment: Environment) -> UringError {
    let (cause, advice) = match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => refused(environment),
        Some(libc::ENOSYS) => unknown_call(environment),
        Some(libc::ENOMEM) => (
            format!("RLIMIT_MEMLOCK is {}", bytes(environment.memlock_bytes)),
            "raise it (ulimit -l, LimitMEMLOCK=, --ulimit memlock=) or ask for fewer entries"
                .to_owned(),
        ),
        Some(libc::EMFILE | libc::ENFILE) => (
            "no file descriptor is left".to_owned(),
            "raise the limit of open files (ulimit -n)".to_owned(),
        ),
        _ => (
            "the kernel gives no further reason".to_owned(),
            "check the options of the ring".to_owned(),
        ),
    };
    UringError::Setup { source, cause, advice }
}

fn refused(environment: Environment) -> (String, String) {
    match environment {
        Environment { io_uring_disabled: Some(value @ 1..), .. } => (
            format!("the kernel forbids it (kernel.io_uring_disabled = {value})"),
            match value {
                1 => "join the group of kernel.io_uring_group or set the sysctl to 0".to_owned(),
                _ => "set it to 0 (sysctl kernel.io_uring_disabled=0)".to_owned(),
            },
        ),
        Environment { seccomp: Some(2), .. } => seccomp_filter(),
        _ => (
            "neither kernel.io_uring_disabled nor a seccomp filter forbids it".to_owned(),
            "ask the security module (SELinux, AppArmor) for the denial".to_owned(),
        ),
    }
}

fn unknown_call(environment: Environment) -> (String, String) {
    if environment.seccomp == Some(2) {
        return seccomp_filter();
    }
    ("the kernel is older than 5.1 or built without it".to_owned(), "use another kernel".to_owned())
}

fn seccomp_filter() -> (String, String) {
    (
        "a seccomp filter, as containers have, is on this process (Seccomp: 2) and the likely cause"
            .to_owned(),
        "allow io_uring_setup, io_uring_enter and io_uring_register in the profile".to_owned(),
    )
}

/// Says that batch buffers are not registered, why, and what would help.
pub(super) fn unregistered_note(
    error: &io::Error,
    pool_bytes: usize,
    environment: Environment,
) -> String {
    let cause = match error.raw_os_error() {
        Some(libc::ENOMEM) => format!(
            "{pool_bytes} bytes are needed and RLIMIT_MEMLOCK is {} for all rings of this user; \
             raise it (ulimit -l, LimitMEMLOCK=, --ulimit memlock=) or make the pool smaller",
            bytes(environment.memlock_bytes)
        ),
        _ => format!("the kernel refuses {pool_bytes} bytes: {error}"),
    };
    format!("batch buffers are not registered with the ring, so each write pins its pages: {cause}")
}

/// Says that some batch buffers will not be registered, when the limit tells so beforehand.
pub(super) fn partly_note(pool_bytes: usize, environment: Environment) -> Option<String> {
    let limit = environment.memlock_bytes.filter(|_| !environment.may_lock)?;
    (limit < pool_bytes as u64).then(|| {
        format!(
            "only part of the batch buffers is registered with the ring, so writes from the others \
             pin their pages: they are {pool_bytes} bytes and RLIMIT_MEMLOCK is {limit} bytes for \
             all rings of this user; raise it (ulimit -l, LimitMEMLOCK=, --ulimit memlock=) or make \
             the pool smaller"
        )
    })
}

fn bytes(limit: Option<u64>) -> String {
    limit.map_or_else(|| "unlimited".to_owned(), |limit| format!("{limit} bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(errno: i32, environment: Environment) -> String {
        setup_error(io::Error::from_raw_os_error(errno), environment).to_string()
    }

    #[test]
    fn a_refusal_names_its_cause_and_the_live_value() {
        let plain = Environment::default();
        let sysctl = Environment { io_uring_disabled: Some(2), seccomp: Some(2), ..plain };
        assert!(message(libc::EPERM, sysctl).contains("kernel.io_uring_disabled = 2"));
        let group = Environment { io_uring_disabled: Some(1), ..plain };
        assert!(message(libc::EPERM, group).contains("kernel.io_uring_group"));
        let filter = Environment { io_uring_disabled: Some(0), seccomp: Some(2), ..plain };
        assert!(message(libc::EPERM, filter).contains("Seccomp: 2"));
        assert!(message(libc::ENOSYS, filter).contains("Seccomp: 2"));
        assert!(message(libc::ENOSYS, plain).contains("older than 5.1"));
        assert!(message(libc::EPERM, plain).contains("SELinux"));
        let limit = Environment { memlock_bytes: Some(65536), ..plain };
        assert!(message(libc::ENOMEM, limit).contains("RLIMIT_MEMLOCK is 65536 bytes"));
        for errno in [libc::EPERM, libc::ENOSYS, libc::ENOMEM, libc::EMFILE, libc::EINVAL] {
            assert!(message(errno, plain).contains("blocking disk"));
        }
    }

    #[test]
    fn a_memlock_limit_is_named_with_the_need_and_the_fix() {
        let environment = Environment { memlock_bytes: Some(0), ..Environment::default() };
        let error = io::Error::from_raw_os_error(libc::ENOMEM);
        let note = unregistered_note(&error, 33_554_432, environment);
        for part in ["33554432 bytes are needed", "RLIMIT_MEMLOCK is 0 bytes", "ulimit -l"] {
            assert!(note.contains(part), "{note}");
        }
    }

    #[test]
    fn a_memlock_limit_below_the_pool_is_told_beforehand_unless_it_does_not_count() {
        let environment = |memlock_bytes, may_lock| Environment {
            memlock_bytes,
            may_lock,
            ..Environment::default()
        };
        let note = partly_note(33_554_432, environment(Some(8_388_608), false)).unwrap();
        for part in ["they are 33554432 bytes", "RLIMIT_MEMLOCK is 8388608 bytes", "ulimit -l"] {
            assert!(note.contains(part), "{note}");
        }
        assert_eq!(partly_note(33_554_432, environment(Some(33_554_432), false)), None);
        assert_eq!(partly_note(33_554_432, environment(Some(0), true)), None);
        assert_eq!(partly_note(33_554_432, environment(None, false)), None);
    }

    #[test]
    fn this_process_can_be_read() {
        assert!(Environment::read().seccomp.is_some());
    }
}
