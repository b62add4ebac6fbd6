//! Resampling of per-block values: how far a median could have come out otherwise.

/// A small, fast, seeded generator (SplitMix64); the same seed gives the same report.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// A generator that repeats itself for the same seed.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// 64 random bits.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// An index below `length`, which is not zero. The bias of a plain modulus is far below
    /// what a few thousand resamples can show.
    pub fn below(&mut self, length: usize) -> usize {
        (self.next() % length as u64) as usize
    }
}

/// Resamples per interval.
const RESAMPLES: usize = 2000;

/// The change from `a` to `b`, as `median(b) / median(a) - 1`, with a 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Change {
    /// 0.1 is ten percent more.
    pub estimate: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// Change of the median with its bootstrap interval. `None` if either side is empty or the
/// median of `a` is zero.
pub fn change(a: &[f64], b: &[f64], random: &mut Random) -> Option<Change> {
    let estimate = relative(median(a)?, median(b)?)?;
    let mut changes: Vec<f64> = (0..RESAMPLES)
        .filter_map(|_| {
            let (a, b) = (resample(a, random), resample(b, random));
            relative(median(&a)?, median(&b)?)
        })
        .collect();
    changes.sort_by(f64::total_cmp);
    Some(Change { estimate, low: quantile(&changes, 0.025)?, high: quantile(&changes, 0.975)? })
}

/// How much a series differs from itself: the change between halves of it that 95 % of random
/// splits stay below, and that its first and second half in time stay below too, so that a
/// drift counts as noise.
pub fn noise(series: &[f64], random: &mut Random) -> Option<f64> {
    if series.len() < 4 {
        return None;
    }
    let half = series.len() / 2;
    let between = |values: &[f64]| {
        let (first, second) = values.split_at(half);
        Some(relative(median(first)?, median(second)?)?.abs())
    };
    let drift = between(series)?;
    let mut shuffled = series.to_vec();
    let mut changes: Vec<f64> = (0..RESAMPLES)
        .filter_map(|_| {
            shuffle(&mut shuffled, random);
            between(&shuffled)
        })
        .collect();
    changes.sort_by(f64::total_cmp);
    Some(drift.max(quantile(&changes, 0.95)?))
}

/// Median; `None` of nothing.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        length if length % 2 == 1 => Some(sorted[middle]),
        _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
    }
}

fn relative(a: f64, b: f64) -> Option<f64> {
    let change = b / a - 1.0;
    change.is_finite().then_some(change)
}

fn resample(values: &[f64], random: &mut Random) -> Vec<f64> {
    (0..values.len()).map(|_| values[random.below(values.len())]).collect()
}

fn shuffle(values: &mut [f64], random: &mut Random) {
    for last in (1..values.len()).rev() {
        values.swap(last, random.below(last + 1));
    }
}

fn quantile(sorted: &[f64], quantile: f64) -> Option<f64> {
    let index = (quantile * sorted.len().saturating_sub(1) as f64).round() as usize;
    sorted.get(index).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noisy(center: f64, random: &mut Random) -> Vec<f64> {
        (0..30).map(|_| center * (0.98 + random.below(41) as f64 / 1000.0)).collect()
    }

    #[test]
    fn the_interval_holds_the_true_change_and_a_seed_repeats_it() {
        let mut random = Random::new(7);
        let (a, b) = (noisy(100.0, &mut random), noisy(120.0, &mut random));
        let first = change(&a, &b, &mut Random::new(1)).unwrap();
        assert!(first.low < 0.2 && 0.2 < first.high, "{first:?}");
        assert!(first.high - first.low < 0.05, "{first:?}");
        assert_eq!(change(&a, &b, &mut Random::new(1)), Some(first));
    }

    #[test]
    fn a_drifting_series_is_noisier_than_a_steady_one() {
        let steady = noisy(100.0, &mut Random::new(3));
        let drifting: Vec<f64> =
            steady.iter().enumerate().map(|(i, v)| v * (1.0 + i as f64 / 50.0)).collect();
        let random = &mut Random::new(4);
        let (steady, drifting) =
            (noise(&steady, random).unwrap(), noise(&drifting, random).unwrap());
        assert!(steady < 0.03, "{steady}");
        assert!(drifting > 0.2, "{drifting}");
    }

    #[test]
    fn nothing_has_no_median_and_no_noise() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0, 4.0]), Some(2.5));
        assert_eq!(noise(&[1.0, 2.0, 3.0], &mut Random::new(0)), None);
        assert_eq!(change(&[0.0], &[1.0], &mut Random::new(0)), None);
    }
}
