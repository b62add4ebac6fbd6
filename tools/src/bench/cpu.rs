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
}
