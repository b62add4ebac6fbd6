//! What a run costs: processor time, flushes, memory, disk.

use std::path::Path;

use rustix::time::{ClockId, clock_gettime};

use crate::cell::Point;
use crate::device::Device;
use crate::flush_calls;

/// Counters at one moment.
pub struct Costs {
    cpu_ns: u64,
    flush_calls: u64,
    device_flushes: Option<u64>,
}

impl Costs {
    /// Now. `own` are flushes that the engine counts itself.
    pub fn now(device: &Device, own: u64) -> Costs {
        let time = clock_gettime(ClockId::ProcessCPUTime);
        Costs {
            cpu_ns: time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64,
            flush_calls: flush_calls::count() + own,
            device_flushes: device.flushes(),
        }
    }

    /// Puts what was spent on `operations` since `before` into a point.
    pub fn put(&self, before: &Costs, operations: u64, point: &mut Point) {
        let operations = operations.max(1) as f64;
        let each = |after: u64, before: u64| after.saturating_sub(before) as f64 / operations;
        point.cpu_ns_per_operation = each(self.cpu_ns, before.cpu_ns);
        point.flush_calls_per_operation = each(self.flush_calls, before.flush_calls);
        point.device_flushes_per_operation = self
            .device_flushes
            .zip(before.device_flushes)
            .map(|(after, before)| each(after, before));
        point.resident_bytes = resident_bytes();
    }
}

fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0) * rustix::param::page_size() as u64
}

/// Bytes that the files of a directory take up on disk.
pub fn disk_bytes(directory: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let Ok(entries) = std::fs::read_dir(directory) else { return 0 };
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => disk_bytes(&entry.path()),
        Ok(metadata) => metadata.blocks() * 512,
        Err(_) => 0,
    });
    sizes.sum()
}
