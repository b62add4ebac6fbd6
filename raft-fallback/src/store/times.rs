//! Latencies in fixed buckets: any thread adds one with two additions, and nobody waits for a lock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bound of the first bucket that others see, in nanoseconds; each further one is twice as large, as in
/// replication's.
const BUCKET_NS_MIN: u64 = 25_000;
/// Buckets with an upper bound that others see: the last one ends at 13 seconds.
const BUCKETS: usize = 20;
/// As many times two goes the first of ours below that.
const OCTAVES_BELOW: u32 = 5;
const OCTAVES: usize = BUCKETS - 1 + OCTAVES_BELOW as usize;
/// Of ours in each doubling: within an eighth of the true value.
const PARTS: usize = 8;
const PLACES: usize = 1 + OCTAVES * PARTS;

/// Latencies since the start.
#[derive(Debug)]
pub(crate) struct Latencies {
    /// The last one has no upper bound.
    places: [AtomicU64; PLACES + 1],
    sum_ns: AtomicU64,
}

impl Default for Latencies {
    fn default() -> Self {
        Self { places: std::array::from_fn(|_| AtomicU64::new(0)), sum_ns: AtomicU64::new(0) }
    }
}

impl Latencies {
    pub(crate) fn add(&self, took: Duration) {
        let took_ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.places[place(took_ns)].fetch_add(1, Ordering::Relaxed);
        self.sum_ns.fetch_add(took_ns, Ordering::Relaxed);
    }

    pub(crate) fn stats(&self) -> LatencyStats {
        let counts = self.places.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        LatencyStats { counts, sum_ns: self.sum_ns.load(Ordering::Relaxed) }
    }
}

/// Which of ours a latency belongs to.
fn place(took_ns: u64) -> usize {
    // Finer than nanoseconds, so that the bounds are whole.
    let Some(above) = took_ns.saturating_mul(1 << OCTAVES_BELOW).checked_sub(BUCKET_NS_MIN + 1)
    else {
        return 0;
    };
    let octave = (above / BUCKET_NS_MIN + 1).ilog2();
    let low = BUCKET_NS_MIN << octave;
    let part = (above + BUCKET_NS_MIN - low) / (low / PARTS as u64);
    (1 + octave as usize * PARTS + part as usize).min(PLACES)
}

/// The greatest latency in it, in nanoseconds.
fn bound_ns(place: usize) -> u64 {
    let Some(above) = place.checked_sub(1) else { return BUCKET_NS_MIN >> OCTAVES_BELOW };
    let low = BUCKET_NS_MIN << (above / PARTS);
    (low + low / PARTS as u64 * (above % PARTS + 1) as u64) >> OCTAVES_BELOW
}

/// How long something took, each time since the start.
#[derive(Clone, Eq, PartialEq, Debug, Default)]
pub struct LatencyStats {
    /// Of each place, in order.
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
        (0..BUCKETS).map(|power| {
            let places = (power + OCTAVES_BELOW as usize) * PARTS + 1;
            let up_to = self.counts.iter().take(places).sum();
            (BUCKET_NS_MIN << power, up_to)
        })
    }

    /// Latencies in nanoseconds, each with how many there were, to within an eighth. What took longer than 13 s
    /// counts as so much.
    pub fn values(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let counted = self.counts.iter().enumerate().filter(|(_, count)| **count > 0);
        counted.map(|(place, count)| (bound_ns(place.min(PLACES - 1)), *count))
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

    #[test]
    fn a_latency_is_known_to_an_eighth() {
        for took_ns in
            [1, 781, 782, 900, 24_999, 25_000, 25_001, 336_000, 7_654_321, 13_000_000_000]
        {
            let latencies = Latencies::default();
            latencies.add(Duration::from_nanos(took_ns));
            let values: Vec<_> = latencies.stats().values().collect();
            let [(said_ns, 1)] = values[..] else { panic!("{took_ns}: {values:?}") };
            let most = (took_ns + took_ns / 8 + 1).max(782);
            assert!((took_ns..=most).contains(&said_ns), "{took_ns} is said to be {said_ns}");
        }
        assert_eq!(bound_ns(PLACES - 1), BUCKET_NS_MIN << (BUCKETS - 1));
        assert!((1..PLACES).all(|at| bound_ns(at - 1) < bound_ns(at)));
    }
}
