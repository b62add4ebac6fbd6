//! A closed loop: how many clients, what they append, when it counts; and what each of them saw.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::records::Records;

/// What clients do, and until when.
#[derive(Debug, Clone)]
pub struct Load {
    /// How many append at once.
    pub clients: usize,
    /// Bytes of a record.
    pub record_bytes: usize,
    /// Records of one append.
    pub batch_records: usize,
    /// Appends that begin earlier do not count.
    pub from: Instant,
    /// Nothing begins later.
    pub until: Instant,
}

impl Load {
    /// The records of one client.
    pub fn records(&self, client: usize) -> Records {
        Records::new(client as u32, self.record_bytes, self.batch_records)
    }
}

/// A histogram of nanoseconds, three digits.
pub fn histogram() -> Histogram<u64> {
    let mut histogram = Histogram::new_with_bounds(64, 128, 3).expect("the bounds are valid");
    histogram.auto(true);
    histogram
}

/// Latencies of one client, or of all.
pub struct Recorder {
    from: Instant,
    until: Instant,
    /// Of those appends that began and ended in the time that counts.
    pub latencies: Histogram<u64>,
    /// All appends, those while warming up too.
    pub appends: u64,
}

impl Recorder {
    /// Empty.
    pub fn new(load: &Load) -> Recorder {
        Recorder { from: load.from, until: load.until, latencies: histogram(), appends: 0 }
    }

    /// Counts an append.
    pub fn record(&mut self, started: Instant, ended: Instant) {
        self.appends += 1;
        if started >= self.from && ended <= self.until {
            record(&mut self.latencies, ended - started);
        }
    }

    /// The sum of several.
    pub fn sum(recorders: Vec<Recorder>) -> (Histogram<u64>, u64) {
        let mut sum = (histogram(), 0);
        for one in recorders {
            sum.0.add(one.latencies).expect("a growing histogram takes every value");
            sum.1 += one.appends;
        }
        sum
    }
}

/// Puts a time into a histogram.
pub fn record(histogram: &mut Histogram<u64>, time: Duration) {
    histogram.record(time.as_nanos() as u64).expect("a growing histogram takes every value");
}
