//! Processor time and memory of this process.

use rustix::time::{ClockId, clock_gettime};

/// Processor time that all threads of this process have used.
pub fn process_ns() -> u64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Memory of this process that is resident.
pub fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

/// How much the memory of this process grows from now on.
#[derive(Debug, Clone, Copy)]
pub struct Growth {
    before_bytes: u64,
}

impl Growth {
    /// From now on. The kernel forgets the largest size until now; where it does not, that counts.
    pub fn begin() -> Growth {
        let _ = std::fs::write("/proc/self/clear_refs", "5");
        Growth { before_bytes: status_bytes("VmRSS:").unwrap_or(0) }
    }

    /// The largest size since then, beyond what it was.
    pub fn bytes(self) -> u64 {
        status_bytes("VmHWM:").unwrap_or(0).saturating_sub(self.before_bytes)
    }
}

/// A size in `/proc/self/status`.
fn status_bytes(name: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    let kibibytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kibibytes << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_grows_and_memory_is_there() {
        let before = process_ns();
        let mut sum = 0_u64;
        while process_ns() - before < 1_000_000 {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(process_ns() > before);
        assert!(resident_bytes().unwrap() > 100_000);
    }

    #[test]
    fn memory_that_was_touched_is_growth_also_when_it_is_gone() {
        let growth = Growth::begin();
        drop(std::hint::black_box(vec![1_u8; 32 << 20]));
        assert!(growth.bytes() >= 24 << 20, "{growth:?}");
    }
}
