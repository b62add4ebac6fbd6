//! Checks of the kernel and of what it allows this process: version, io_uring, limits.

use rustix::io::Errno;

use super::{Check, Severity};
use crate::environment::{
    DEFER_TASKRUN, Ring, RingError, SINGLE_ISSUER, Seccomp, Surroundings, WRITE_FIXED,
};

/// What io_uring needs for timed waits.
const KERNEL_MIN: (u32, u32) = (5, 11);
/// What it needs for deferred task work.
const KERNEL_BEST: (u32, u32) = (6, 1);
/// What the rings of a few shards need, and what kernels from 5.16 on allow by default. Buffers
/// beyond it work too, unregistered.
const MEMLOCK_BYTES: u64 = 8 << 20;
/// The buffers of one shard, and its rings.
const MEMLOCK_REGISTERED_BYTES: u64 = 40 << 20;
/// What goes without io_uring.
const BLOCKING: &str = "or run with --io blocking";

/// All of them.
pub fn checks(found: &Surroundings) -> Vec<Check> {
    vec![
        kernel(found),
        sysctl(&found.ring),
        seccomp(found),
        ring(found),
        features(&found.ring),
        memlock(found),
    ]
}

fn kernel(found: &Surroundings) -> Check {
    let check = Check::new("kernel", "5.11, better 6.1", &found.host.kernel);
    match found.host.kernel_version {
        version if version < KERNEL_MIN => {
            check.severity(Severity::Error).fix(format!("a kernel from 5.11 on, {BLOCKING}"))
        }
        version if version < KERNEL_BEST => {
            check.severity(Severity::Note).fix("6.1 and later cost less CPU per batch")
        }
        _ => check,
    }
}

fn sysctl(ring: &Ring) -> Check {
    let required = "0 (or no such setting)";
    let found = ring.disabled.map_or("no such setting".to_owned(), |value| value.to_string());
    let check = Check::new("kernel.io_uring_disabled", required, found);
    match (ring.disabled, &ring.error) {
        (None | Some(0), _) => check,
        // 1 leaves it to privileged processes and to members of a group, as this one is.
        (Some(_), None) => check.severity(Severity::Note),
        (Some(1), Some(_)) => check.severity(Severity::Error).fix(format!(
            "sysctl kernel.io_uring_disabled=0 | join the group kernel.io_uring_group names, \
             {BLOCKING}"
        )),
        (Some(_), Some(_)) => check
            .severity(Severity::Error)
            .fix(format!("sysctl kernel.io_uring_disabled=0, {BLOCKING}")),
    }
}

fn seccomp(found: &Surroundings) -> Check {
    let text = match found.host.seccomp {
        Seccomp::Off => "no filter",
        Seccomp::Strict => "strict mode",
        Seccomp::Filter => "a filter is on",
    };
    let check = Check::new("seccomp", "io_uring calls allowed", text);
    match (found.host.seccomp, &found.ring.error) {
        (Seccomp::Off, _) => check,
        (_, None) => Check { found: format!("{text}, which allows io_uring"), ..check },
        (_, Some(error)) if is_refusal(error) && found.ring.disabled.unwrap_or(0) == 0 => {
            check.severity(Severity::Error).fix(format!(
                "allow io_uring_setup, io_uring_enter and io_uring_register in the profile | \
                 docker run --security-opt seccomp=PROFILE, {BLOCKING}"
            ))
        }
        (_, Some(_)) => check.severity(Severity::Note),
    }
}

fn is_refusal(error: &RingError) -> bool {
    let refusals = [Errno::PERM, Errno::ACCESS, Errno::NOSYS];
    refusals.iter().any(|errno| errno.raw_os_error() == error.number)
}

fn ring(found: &Surroundings) -> Check {
    let required = "a ring can be set up";
    let Some(error) = &found.ring.error else { return Check::new("io_uring", required, "yes") };
    let no_memory = error.number == Errno::NOMEM.raw_os_error();
    let fix = match found.ring.disabled {
        Some(1..) => "see kernel.io_uring_disabled".to_owned(),
        _ if no_memory => crate::exit::MEMLOCK_FIXES.join(" | "),
        _ if is_refusal(error) && found.host.seccomp != Seccomp::Off => "see seccomp".to_owned(),
        _ if error.number == Errno::NOSYS.raw_os_error() => "a kernel with io_uring".to_owned(),
        _ => "ask the security module (SELinux, AppArmor) for the denial".to_owned(),
    };
    Check::new("io_uring", required, format!("io_uring_setup: {}", error.message))
        .severity(Severity::Error)
        .fix(format!("{fix}, {BLOCKING}"))
}

fn features(ring: &Ring) -> Check {
    let wanted = [WRITE_FIXED, "fsync", "ext_arg", SINGLE_ISSUER, DEFER_TASKRUN];
    let check = Check::new("ring features", wanted.join(" "), ring.features.join(" "));
    if ring.error.is_some() {
        return Check { found: "no ring to ask".to_owned(), ..check }.severity(Severity::Note);
    }
    let missing: Vec<&str> =
        wanted.into_iter().filter(|name| !ring.features.contains(name)).collect();
    let found = match missing.as_slice() {
        [] => "all".to_owned(),
        names => format!("missing: {}", names.join(" ")),
    };
    let check = Check { found, ..check };
    if missing.is_empty() {
        check
    } else if missing.iter().all(|&name| [SINGLE_ISSUER, DEFER_TASKRUN].contains(&name)) {
        check.severity(Severity::Note).fix("Linux 6.1 has them; without them batches cost more CPU")
    } else {
        check.severity(Severity::Error).fix(format!("a newer kernel, {BLOCKING}"))
    }
}

fn memlock(found: &Surroundings) -> Check {
    let limit = match found.host.memlock.bytes {
        None => "unlimited".to_owned(),
        Some(bytes) if bytes < 1 << 20 => format!("{} KiB", bytes >> 10),
        Some(bytes) => format!("{} MiB", bytes >> 20),
    };
    let check = Check::new("memlock limit", "8192 KiB, for the rings", limit.clone());
    match found.host.memlock.bytes {
        _ if found.host.memlock.exempt => {
            Check { found: format!("{limit}, not applied (CAP_IPC_LOCK)"), ..check }
        }
        None => check,
        Some(bytes) if bytes >= MEMLOCK_REGISTERED_BYTES => check,
        Some(bytes) if bytes >= MEMLOCK_BYTES => check
            .severity(Severity::Note)
            .fix("none needed: buffers beyond the limit are used unregistered, for some CPU"),
        Some(_) => check.severity(Severity::Warning).fix(crate::exit::MEMLOCK_FIXES.join(" | ")),
    }
}
