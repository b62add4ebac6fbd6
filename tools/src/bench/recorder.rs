//! Latencies over time without a lock per record: a histogram per client and interval, handed
//! over to a common collection when the interval has passed.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::probe::histogram;

/// Length of the shortest interval.
const INTERVAL_MIN_NS: u64 = 100_000_000;
/// A run has at most about so many intervals, however long it is.
const INTERVALS_MAX: u64 = 150;

/// The intervals of one run, filled by all its clients.
#[derive(Debug)]
pub struct Collector {
    interval_ns: u64,
    intervals: Mutex<Vec<Histogram<u64>>>,
}

impl Collector {
    /// For a run measured in parts of `part` each; an interval never spans two parts.
    pub fn new(part: Duration, parts: u32) -> Collector {
        let part_ns = part.as_nanos() as u64;
        let shortest = (part_ns * u64::from(parts) / INTERVALS_MAX).max(INTERVAL_MIN_NS);
        let intervals_per_part = (part_ns / shortest).max(1);
        Collector {
            interval_ns: part_ns.div_ceil(intervals_per_part).max(1),
            intervals: Mutex::default(),
        }
    }

    fn add(&self, index: u64, latencies: &Histogram<u64>) {
        let mut intervals = self.intervals.lock().unwrap_or_else(|p| p.into_inner());
        let index = index as usize;
        if intervals.len() <= index {
            intervals.resize_with(index + 1, histogram);
        }
        intervals[index].add(latencies).expect("a growing histogram takes every value");
    }

    /// The intervals up to `duration_ns` of measured time, the empty ones too: start, length,
    /// latencies.
    pub fn finish(self, duration_ns: u64) -> Vec<(u64, u64, Histogram<u64>)> {
        let mut intervals = self.intervals.into_inner().unwrap_or_else(|p| p.into_inner());
        let count = duration_ns.div_ceil(self.interval_ns) as usize;
        if intervals.len() < count {
            intervals.resize_with(count, histogram);
        }
        let numbered = (0..).zip(intervals);
        numbered
            .map(|(index, latencies)| {
                let start_ns = index * self.interval_ns;
                let end_ns = (start_ns + self.interval_ns).min(duration_ns.max(start_ns + 1));
                (start_ns, end_ns - start_ns, latencies)
            })
            .collect()
    }
}

/// The stretch of time whose appends count.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    /// Its beginning.
    pub from: Instant,
    /// Its end.
    pub until: Instant,
    /// Time measured in earlier parts of the run.
    pub base_ns: u64,
}

/// What one client records.
///
/// Two histograms take turns: when an interval has passed the other one goes on at once, and the
/// full one is added to the collection a little later, at another moment for every client, so that
/// sixty-four of them do not stop together.
#[derive(Debug)]
pub struct Recorder<'a> {
    collector: &'a Collector,
    window: Window,
    stagger_ns: u64,
    index: u64,
    current: Histogram<u64>,
    full: Histogram<u64>,
    full_index: u64,
    /// Measured time at which the next thing is to be done: turn, or hand over.
    due_ns: u64,
}

impl<'a> Recorder<'a> {
    /// For client number `client` of `clients`.
    pub fn new(
        collector: &'a Collector,
        window: Window,
        client: usize,
        clients: usize,
    ) -> Recorder<'a> {
        let index = window.base_ns / collector.interval_ns;
        Recorder {
            stagger_ns: collector.interval_ns / 2 * client as u64 / clients.max(1) as u64,
            index,
            current: histogram(),
            full: histogram(),
            full_index: index,
            due_ns: (index + 1) * collector.interval_ns,
            collector,
            window,
        }
    }

    /// One append at `start`, or meant for then, whose receipt came `latency` later. It belongs to
    /// the moment of its start: what a stall delayed counts, however late it came.
    pub fn record(&mut self, start: Instant, latency: Duration) {
        self.record_many(start, latency, 1);
    }

    /// As many appends at once.
    pub fn record_many(&mut self, start: Instant, latency: Duration, count: u64) {
        if start < self.window.from || start >= self.window.until {
            return;
        }
        let at_ns = self.window.base_ns + (start - self.window.from).as_nanos() as u64;
        if at_ns >= self.due_ns {
            self.turn(at_ns);
        }
        self.current
            .record_n(latency.as_nanos() as u64, count)
            .expect("a growing histogram takes every value");
    }

    fn turn(&mut self, at_ns: u64) {
        let interval_ns = self.collector.interval_ns;
        let index = at_ns / interval_ns;
        if index > self.index {
            self.hand_over();
            std::mem::swap(&mut self.current, &mut self.full);
            self.full_index = self.index;
            self.index = index;
            self.due_ns = index * interval_ns + self.stagger_ns;
        }
        if at_ns >= self.due_ns {
            self.hand_over();
            self.due_ns = (index + 1) * interval_ns;
        }
    }

    fn hand_over(&mut self) {
        if !self.full.is_empty() {
            self.collector.add(self.full_index, &self.full);
            // Not `clear`, which would leave its smallest and largest value to the next interval.
            self.full.reset();
        }
    }
}

impl Drop for Recorder<'_> {
    fn drop(&mut self) {
        self.hand_over();
        if !self.current.is_empty() {
            self.collector.add(self.index, &self.current);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);

    #[test]
    fn every_append_in_the_window_lands_in_its_interval() {
        let collector = Collector::new(1000 * MILLISECOND, 2);
        let from = Instant::now() + 50 * MILLISECOND;
        for part in 0..2_u32 {
            let base_ns = u64::from(part) * 1_000_000_000;
            let window = Window { from, until: from + 1000 * MILLISECOND, base_ns };
            for client in 0..3 {
                let mut recorder = Recorder::new(&collector, window, client, 3);
                recorder.record(from - MILLISECOND, MILLISECOND);
                for millisecond in 0..1000 {
                    recorder.record(from + millisecond * MILLISECOND, MILLISECOND);
                }
                recorder.record(window.until, MILLISECOND);
            }
        }
        let intervals = collector.finish(2_000_000_000);
        assert_eq!(intervals.len(), 20);
        for (index, (start_ns, duration_ns, latencies)) in intervals.iter().enumerate() {
            assert_eq!(*start_ns, index as u64 * 100_000_000);
            assert_eq!(*duration_ns, 100_000_000);
            assert_eq!(latencies.len(), 300);
        }
    }

    #[test]
    fn a_maximum_stays_in_its_interval() {
        let collector = Collector::new(1000 * MILLISECOND, 1);
        let from = Instant::now();
        let window = Window { from, until: from + 1000 * MILLISECOND, base_ns: 0 };
        let mut recorder = Recorder::new(&collector, window, 0, 1);
        recorder.record(from + 10 * MILLISECOND, 500 * MILLISECOND);
        for millisecond in 100..1000 {
            recorder.record(from + millisecond * MILLISECOND, MILLISECOND);
        }
        // Begun in time, however late its receipt.
        recorder.record(from + 999 * MILLISECOND, 3000 * MILLISECOND);
        drop(recorder);
        let maxima: Vec<u64> = collector
            .finish(1_000_000_000)
            .iter()
            .map(|(_, _, latencies)| latencies.max() / 100_000_000)
            .collect();
        assert_eq!(maxima, [5, 0, 0, 0, 0, 0, 0, 0, 0, 30]);
    }

    #[test]
    fn intervals_without_receipts_are_there_and_the_last_is_cut() {
        let collector = Collector::new(1000 * MILLISECOND, 1);
        let from = Instant::now();
        let window = Window { from, until: from + 1000 * MILLISECOND, base_ns: 0 };
        let mut recorder = Recorder::new(&collector, window, 0, 1);
        recorder.record(from + 10 * MILLISECOND, MILLISECOND);
        recorder.record(from + 310 * MILLISECOND, MILLISECOND);
        drop(recorder);
        let intervals = collector.finish(350_000_000);
        let counts: Vec<u64> = intervals.iter().map(|(_, _, l)| l.len()).collect();
        assert_eq!(counts, [1, 0, 0, 1]);
        assert_eq!(intervals[3].1, 50_000_000);
    }

    #[test]
    fn long_runs_have_longer_intervals() {
        let collector = Collector::new(Duration::from_secs(60), 10);
        assert!(collector.interval_ns >= 4_000_000_000);
        let collector = Collector::new(20 * MILLISECOND, 1);
        assert_eq!(collector.interval_ns, 20_000_000);
    }
}
