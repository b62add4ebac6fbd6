//! Scheduler stalls: a thread that sleeps a little and looks how late it was woken.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::report::model::SchedulerStalls;

/// How long it sleeps each time: 500 wake-ups a second cost well under one per cent of a processor.
const NAP: Duration = Duration::from_millis(2);
/// What counts as a stall.
const STALL: Duration = Duration::from_millis(1);

/// Watches until `stop` is set.
pub fn watch(stop: &AtomicBool) -> SchedulerStalls {
    let mut stalls = SchedulerStalls::default();
    let mut before = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        std::thread::sleep(NAP);
        let now = Instant::now();
        let late = (now - before).saturating_sub(NAP);
        if late > STALL {
            stalls.count += 1;
            stalls.max_ns = stalls.max_ns.max(late.as_nanos() as u64);
        }
        before = now;
    }
    stalls
}

/// The stalls of two stretches of time together.
pub fn sum(a: SchedulerStalls, b: SchedulerStalls) -> SchedulerStalls {
    SchedulerStalls { count: a.count + b.count, max_ns: a.max_ns.max(b.max_ns) }
}

/// Spins for `duration` and returns the gaps in its own running: a thread that never sleeps loses
/// the processor only to somebody else.
pub fn spin(duration: Duration) -> SchedulerStalls {
    let mut stalls = SchedulerStalls::default();
    let start = Instant::now();
    let mut before = start;
    while before - start < duration {
        let now = Instant::now();
        let gap = now - before;
        if gap > STALL {
            stalls.count += 1;
        }
        stalls.max_ns = stalls.max_ns.max(gap.as_nanos() as u64);
        before = now;
    }
    stalls
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spinning_measures_at_least_its_own_step() {
        let stalls = spin(Duration::from_millis(5));
        assert!(stalls.max_ns > 0);
    }

    #[test]
    fn watching_ends_when_told() {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let watcher = scope.spawn(|| watch(&stop));
            std::thread::sleep(Duration::from_millis(10));
            stop.store(true, Ordering::Relaxed);
            watcher.join().unwrap();
        });
    }
}
