//! Checks of the directory, its file system and the device under it.

use std::time::{Duration, Instant};

use super::{Check, Severity};
use crate::environment::{
    Device, DirectIo, FileSystem, FileSystemKind, Surroundings, scratch_file,
};
use crate::interrupt::Interrupt;
use crate::probe::DeviceProbe;

/// Below this there is no room for the first segments.
const FREE_BYTES_MIN: u64 = 256 << 20;
/// What a default engine and the bench use at most.
const FREE_BYTES_BEST: u64 = 1 << 30;
/// Size of the file that is written to see how fast durable writes are.
const PROBE_BYTES: u64 = 4 << 20;
/// How long they are written.
const PROBE_TIME: Duration = Duration::from_millis(150);
/// Faster than this is no device without a battery.
const FAST_NS: u64 = 8_000;

/// All of them.
pub fn checks(found: &Surroundings) -> Vec<Check> {
    let mut checks = vec![writable(found), file_system(&found.file_system), free(found)];
    checks.push(direct(&found.direct, &found.file_system));
    checks.push(alignment(&found.direct));
    checks.extend(found.device.as_ref().map(cache));
    checks.extend(found.device.as_ref().and_then(scheduler));
    checks.extend(speed(found));
    checks
}

fn writable(found: &Surroundings) -> Check {
    let check = Check::new("directory", "writable", found.directory.display().to_string());
    match scratch_file(&found.directory, false) {
        Ok(_) => check,
        Err(error) => Check { found: format!("{}: {error}", check.found), ..check }
            .severity(Severity::Error)
            .fix("choose another directory, or give this user the right to write there"),
    }
}

fn file_system(file_system: &FileSystem) -> Check {
    let name = &file_system.name;
    let found = match &file_system.upper {
        Some(upper) => {
            format!("{name} over {} ({})", upper.file_system, file_system.mount_options)
        }
        None => format!("{name} ({})", file_system.mount_options),
    };
    let check = Check::new("file system", "ext4 or xfs", shortened(&found));
    if let Some(option) = file_system.option_without_flushes() {
        return check.severity(Severity::Warning).fix(format!(
            "mounted with {option}: flushes do not reach the device, nothing is durable; mount it \
             without"
        ));
    }
    match file_system.kind {
        FileSystemKind::FirstClass => check,
        FileSystemKind::Memory => check.severity(Severity::Warning).fix(
            "this is memory: O_DIRECT and fdatasync succeed, and nothing is durable; use a \
             directory on a disk",
        ),
        FileSystemKind::Overlay => check.severity(Severity::Warning).fix(
            "durability is that of the file system under its upper directory; use a volume on \
             ext4 or xfs",
        ),
        FileSystemKind::CopyOnWrite if name == "btrfs" => check.severity(Severity::Warning).fix(
            "copy-on-write is switched off for new segments, but a snapshot brings it back, and \
             then an overwrite can fail with ENOSPC; use ext4 or xfs",
        ),
        FileSystemKind::CopyOnWrite => check
            .severity(Severity::Warning)
            .fix("every overwrite allocates and can fail with ENOSPC; use ext4 or xfs"),
        FileSystemKind::Network => check
            .severity(Severity::Error)
            .fix("the engine refuses network file systems; use a local disk"),
        FileSystemKind::Remote => check
            .severity(Severity::Warning)
            .fix("durability is that of another machine or process; use a local disk"),
        FileSystemKind::Other => {
            check.severity(Severity::Warning).fix("not tested; use ext4 or xfs")
        }
    }
}

/// Mount options of an overlay can be very long.
fn shortened(text: &str) -> String {
    const LENGTH_MAX: usize = 100;
    if text.chars().count() <= LENGTH_MAX {
        return text.to_owned();
    }
    text.chars().take(LENGTH_MAX).chain("…)".chars()).collect()
}

fn free(found: &Surroundings) -> Check {
    let file_system = &found.file_system;
    let mebibytes = |bytes: u64| bytes >> 20;
    let text = format!(
        "{} MiB of {} MiB",
        mebibytes(file_system.free_bytes),
        mebibytes(file_system.total_bytes)
    );
    let check = Check::new("free space", "256 MiB at first, 320 MiB in use", text);
    if file_system.free_bytes < FREE_BYTES_MIN {
        check.severity(Severity::Error).fix("free space on it, or choose another directory")
    } else if file_system.free_bytes < FREE_BYTES_BEST {
        check.severity(Severity::Warning).fix("the bench needs up to 1 GiB")
    } else {
        check
    }
}

fn direct(direct: &DirectIo, file_system: &FileSystem) -> Check {
    let check = Check::new("direct I/O", "4 KiB, also with RWF_DSYNC", "works");
    if let Some(cause) = &direct.untested {
        return Check { found: format!("not tested: {cause}"), ..check }.severity(Severity::Note);
    }
    let found = match &direct.problem {
        None if file_system.kind == FileSystemKind::Memory => {
            return Check { found: "accepted, but there is no device".to_owned(), ..check }
                .severity(Severity::Note);
        }
        None => return check,
        Some(problem) => problem.clone(),
    };
    let check = Check { found, ..check }.severity(Severity::Warning);
    if direct.works {
        check.fix("run with --sync fdatasync")
    } else {
        check.fix("writes go through the page cache, with a copy; use ext4 or xfs")
    }
}

fn alignment(direct: &DirectIo) -> Check {
    let required = "at most 4096";
    if !direct.works {
        let found = match &direct.untested {
            Some(cause) => format!("not tested: {cause}"),
            None => "not known without direct I/O".to_owned(),
        };
        return Check::new("alignment", required, found).severity(Severity::Note);
    }
    let source = if direct.told_by_kernel { "STATX_DIOALIGN" } else { "tried" };
    let found = format!(
        "memory {}, offset {} ({source}); a real write worked",
        direct.memory_alignment, direct.offset_alignment
    );
    let check = Check::new("alignment", required, found);
    if direct.offset_alignment > 4096 || direct.memory_alignment > 4096 {
        check.severity(Severity::Error).fix("use a file system with blocks of at most 4096 bytes")
    } else {
        check
    }
}

fn cache(device: &Device) -> Check {
    let kind = if device.write_cache.is_empty() { "unknown" } else { &device.write_cache };
    let fua = match device.fua {
        Some(true) => "FUA",
        Some(false) => "no FUA",
        None => "FUA unknown",
    };
    let check = Check::new("write cache", "flushes honoured", format!("{kind}, {fua}"));
    match (kind, device.fua) {
        ("unknown", _) => check.severity(Severity::Note).fix(format!(
            "{} does not tell; whether flushes reach the disk is up to what is under it",
            device.name
        )),
        ("write back", Some(false) | None) => check.severity(Severity::Note).fix(
            "every durable write costs a flush of the whole cache; a device with FUA does not",
        ),
        _ => check,
    }
}

fn scheduler(device: &Device) -> Option<Check> {
    if device.scheduler.is_empty() {
        return None;
    }
    let found = format!("{} on {}", device.scheduler, device.disk);
    let check = Check::new("I/O scheduler", "none, mq-deadline or kyber", found);
    Some(match device.scheduler.as_str() {
        "none" | "mq-deadline" | "kyber" => check,
        _ => check
            .severity(Severity::Note)
            .fix(format!("echo none > /sys/block/{}/queue/scheduler", device.disk)),
    })
}

/// A few durable writes, to see whether the device answers as a device would.
fn speed(found: &Surroundings) -> Option<Check> {
    if found.file_system.free_bytes < FREE_BYTES_MIN || found.file_system.read_only {
        return None;
    }
    let mut probe = DeviceProbe::prepare(&found.directory, PROBE_BYTES, Instant::now()).ok()?;
    probe.slice(PROBE_TIME, &Interrupt::default()).ok()?;
    let (probe, _) = probe.finish();
    let microseconds = |ns: u64| ns as f64 / 1000.0;
    let text = format!(
        "p50 {:.1} µs, p99 {:.1} µs with {}",
        microseconds(probe.p50_ns),
        microseconds(probe.p99_ns),
        probe.method
    );
    let check = Check::new("durable 4 KiB write", "plausible for a device", text);
    Some(if probe.p50_ns >= FAST_NS {
        check
    } else if found.device.is_none() {
        check.severity(Severity::Warning).fix("nothing that is durable is so fast: this is memory")
    } else {
        check.severity(Severity::Warning).fix(
            "implausibly fast: find out whether the cache that answers survives a power failure",
        )
    })
}
