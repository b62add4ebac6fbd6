//! Latencies in fixed buckets: any thread adds one with two additions, and nobody waits for a lock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bound of the first bucket, in nanoseconds; each further one is twice as large, as in replication's.
const BUCKET_NS_MIN: u64 = 25_000;
/// Buckets with an upper bound: the last one ends at 13 seconds.
const BUCKETS: usize = 20;

/// Latencies since the start.
#[derive(Debug, Default)]
pub(crate) struct Latencies {
    /// The last one has no upper bound.
    buckets: [AtomicU64; BUCKETS + 1],
    sum_ns: AtomicU64,
}

impl Latencies {
    pub(crate) fn add(&self, took: Duration) {
        let took_ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let bucket = bounds_ns().position(|bound_ns| took_ns <= bound_ns).unwrap_or(BUCKETS);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_ns.fetch_add(took_ns, Ordering::Relaxed);
    }

    pub(crate) fn stats(&self) -> LatencyStats {
        let counts = self.buckets.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        LatencyStats { counts, sum_ns: self.sum_ns.load(Ordering::Relaxed) }
    }
}

fn bounds_ns() -> impl Iterator<Item = u64> {
    (0..BUCKETS).map(|power| BUCKET_NS_MIN << power)
}

/// How long something took, each time since the start.
#[derive(Clone, Eq, PartialEq, Debug, Default)]
pub struct LatencyStats {
    /// Of each bucket, in order; see [`LatencyStats::buckets`].
    counts: Vec<u64>,
    /// Nanoseconds of all of them together.
    pub sum_ns: u64,
}

impl LatencyStats {
    /// How many there were.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Upper bounds in nanoseconds, each with the count of those up to there: from 25 µs on, doubling, up to
    /// 13 s. Longer ones are in [`LatencyStats::count`] only.
    pub fn buckets(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let up_to = self.counts.iter().scan(0, |total, count| {
            *total += count;
            Some(*total)
        });
        bounds_ns().zip(up_to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_counted_once_in_its_bucket_and_in_all_above() {
        let latencies = Latencies::default();
        for took_us in [0, 25, 26, 1_000, 60_000_000] {
            latencies.add(Duration::from_micros(took_us));
        }
        let stats = latencies.stats();
        assert_eq!((stats.count(), stats.sum_ns), (5, 60_001_051_000));
        let buckets: Vec<_> = stats.buckets().collect();
        assert_eq!(buckets.len(), BUCKETS);
        assert_eq!(buckets[..2], [(25_000, 2), (50_000, 3)]);
        assert_eq!(buckets[6], (1_600_000, 4));
        assert_eq!(buckets[19], (25_000 << 19, 4), "the longest is in none");
        assert_eq!(LatencyStats::default().count(), 0);
    }
}
