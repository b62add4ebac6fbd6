//! How many clients append what, when it counts, and what each of them saw.

use std::time::Instant;

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
    /// What begins earlier has no latency, and what ends earlier is not counted.
    pub from: Instant,
    /// What begins later has no latency, and what ends later is not counted.
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
    /// Of appends that began in the time that counts, however late they ended.
    pub latencies: Histogram<u64>,
    /// Appends that ended in the time that counts, whenever they began.
    pub counted: u64,
    /// All appends, those while warming up too.
    pub appends: u64,
}

impl Recorder {
    /// Empty.
    pub fn new(load: &Load) -> Recorder {
        Recorder {
            from: load.from,
            until: load.until,
            latencies: histogram(),
            counted: 0,
            appends: 0,
        }
    }

    /// Counts an append.
    pub fn record(&mut self, started: Instant, ended: Instant) {
        self.appends += 1;
        if (self.from..self.until).contains(&ended) {
            self.counted += 1;
        }
        self.record_latency(started, ended);
    }

    /// Puts in what an append has waited for until now that was due, and never began.
    pub fn record_latency(&mut self, started: Instant, ended: Instant) {
        if (self.from..self.until).contains(&started) {
            let time = ended.saturating_duration_since(started).as_nanos() as u64;
            self.latencies.record(time).expect("a growing histogram takes every value");
        }
    }

    /// Adds what another one saw.
    pub fn add(&mut self, other: &Recorder) {
        self.latencies.add(&other.latencies).expect("a growing histogram takes every value");
        self.counted += other.counted;
        self.appends += other.appends;
    }
}
