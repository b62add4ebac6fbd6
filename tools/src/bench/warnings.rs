//! Reasons to doubt the numbers, a sentence each.

use crate::environment::{FileSystemKind, Surroundings};
use crate::report::model::{Probe, Report};

/// A durable write faster than this was not durable, or the device has a battery.
const FAST_NS: u64 = 8_000;
/// A spinning disk cannot turn half way round faster than this.
const FAST_ROTATIONAL_NS: u64 = 500_000;
/// Load per processor above which others were at work when the measurement began.
const LOAD_PER_CPU_MAX: f64 = 0.5;
/// Drift of the probe above which ratios mean little.
const DRIFT_MAX: f64 = 0.3;

/// What can be said before anything was measured.
pub fn before(surroundings: &Surroundings) -> Vec<String> {
    let mut warnings = Vec::new();
    let name = &surroundings.file_system.name;
    match surroundings.file_system.kind {
        FileSystemKind::Memory => warnings.push(format!(
            "{name} is memory: nothing written there is durable, and the latencies are not those \
             of a disk. Use --dir on a real file system."
        )),
        FileSystemKind::Overlay => warnings.push(match &surroundings.file_system.upper {
            Some(upper) => {
                format!("overlay: what is measured is the {} under it.", upper.file_system)
            }
            None => "overlay: what is measured is whatever file system its upper directory is on; \
                     use --dir on a volume of your own."
                .to_owned(),
        }),
        FileSystemKind::CopyOnWrite => warnings
            .push(format!("{name} copies on write: latencies include the work of its metadata.")),
        FileSystemKind::Network | FileSystemKind::Remote => {
            warnings.push(format!("{name}: latencies are those of another machine or process."));
        }
        FileSystemKind::Other => {
            warnings.push(format!("{name} is not a file system that the engine is tested on."));
        }
        FileSystemKind::FirstClass => {}
    }
    if let Some(option) = surroundings.file_system.option_without_flushes() {
        warnings.push(format!("mounted with {option}: flushes do not reach the device."));
    }
    if let Some(problem) = &surroundings.direct.problem {
        warnings.push(format!("no direct I/O here ({problem}): writes go through the page cache."));
    }
    if cfg!(debug_assertions) {
        warnings.push("this is a debug build; measure with cargo run --release.".to_owned());
    }
    let load = surroundings.host.load[0];
    if load > LOAD_PER_CPU_MAX * f64::from(surroundings.host.cpus) {
        warnings.push(format!(
            "the machine was busy when the measurement began: load {load:.2} on {} processors.",
            surroundings.host.cpus
        ));
    }
    warnings
}

/// What the measurement itself shows.
pub fn after(surroundings: &Surroundings, report: &Report) -> Vec<String> {
    let mut warnings = Vec::new();
    warnings.extend(implausible(surroundings, &report.probe));
    if report.probe.drift > DRIFT_MAX {
        warnings.push(format!(
            "the bare device drifted by {:.0} % during the measurement: ratios to it mean little.",
            report.probe.drift * 100.0
        ));
    }
    if report.interrupted {
        warnings.push("the measurement was interrupted: this is what there was.".to_owned());
    }
    warnings
}

fn implausible(surroundings: &Surroundings, probe: &Probe) -> Option<String> {
    let device = surroundings.device.as_ref()?;
    // Virtual and loop disks often say that they spin, and mean nothing by it.
    let real = surroundings.host.virtualization == "none"
        && device.below.is_empty()
        && !device.disk.starts_with("loop");
    let rotational = real && device.rotational == Some(true);
    let limit_ns = if rotational { FAST_ROTATIONAL_NS } else { FAST_NS };
    (probe.p50_ns > 0 && probe.p50_ns < limit_ns).then(|| {
        format!(
            "{} answers a durable write in {:.1} µs, which is implausibly fast: its write cache \
             ({}) may not survive a power failure.",
            device.name,
            probe.p50_ns as f64 / 1000.0,
            if device.write_cache.is_empty() { "kind unknown" } else { &device.write_cache }
        )
    })
}
