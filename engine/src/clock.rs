//! Time as the shard sees it. Cores take it as a number; only drivers ask this.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Where time comes from.
#[derive(Clone, Debug)]
pub enum Clock {
    /// The machine's.
    Real(Instant),
    /// A test's, in nanoseconds.
    Manual(Arc<AtomicU64>),
}

impl Clock {
    /// The machine's clock, counted from now.
    pub fn real() -> Self {
        Self::Real(Instant::now())
    }

    /// Nanoseconds since the clock began; never goes back.
    pub fn now_ns(&self) -> u64 {
        match self {
            Self::Real(origin) => origin.elapsed().as_nanos() as u64,
            Self::Manual(now) => now.load(Ordering::Relaxed),
        }
    }

    /// Nanoseconds since the machine was started, also while it slept: what leases end by.
    pub fn boottime_ns(&self) -> u64 {
        match self {
            Self::Real(_) => boottime_ns(),
            Self::Manual(now) => now.load(Ordering::Relaxed),
        }
    }

    /// Nanoseconds since 1970, for information only.
    pub fn unix_ns(&self) -> u64 {
        match self {
            Self::Real(_) => SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| since.as_nanos() as u64),
            Self::Manual(now) => now.load(Ordering::Relaxed),
        }
    }
}

/// `CLOCK_BOOTTIME` in nanoseconds: by it leases end, see
/// [`Engine::set_lease`](crate::Engine::set_lease).
pub fn boottime_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
