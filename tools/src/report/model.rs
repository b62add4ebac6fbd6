//! What `report.json` holds: plain data, integers in nanoseconds and bytes.
//! No drawing, no measuring, no files.

use serde::{Deserialize, Serialize};

/// The schema this program writes: a name and a major version.
pub const SCHEMA: &str = "ringwal.bench/1";

/// Everything one `ringwal bench` found out.
///
/// Fields that a reader does not know are ignored, fields that a file lacks take their
/// empty value; only a newer major version of the schema is refused
/// (see [`super::read`]).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Always [`SCHEMA`] in what this program writes.
    pub schema: String,
    /// The measurement was stopped early; what is here is what there was until then.
    #[serde(default)]
    pub interrupted: bool,
    /// One sentence that says how it went.
    #[serde(default)]
    pub verdict: String,
    /// When the measurement began, nanoseconds since 1970-01-01 UTC.
    #[serde(default)]
    pub started_unix_ns: u64,
    /// How long all of it took, probe and warm-up included.
    #[serde(default)]
    pub duration_ns: u64,
    /// Version of the program that measured.
    #[serde(default)]
    pub ringwal_version: String,
    /// The exact command line, quoted for a shell.
    #[serde(default)]
    pub command: String,
    /// The seed of everything random.
    #[serde(default)]
    pub seed: u64,
    /// Name of the run that `latency.hgrm` and the untagged series of `latency.hlog` show.
    #[serde(default)]
    pub primary_run: String,
    /// Where it was measured.
    #[serde(default)]
    pub environment: Environment,
    /// The bare device, the yardstick.
    #[serde(default)]
    pub probe: Probe,
    /// The runs in the order they were made.
    #[serde(default)]
    pub runs: Vec<Run>,
    /// What was aimed at, with what was measured beside it.
    #[serde(default)]
    pub targets: Vec<Target>,
    /// Reasons to doubt the numbers, a sentence each.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// The machine, its disk and the build. Empty strings and `None` mean *not known*.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Environment {
    /// Kernel release, as `uname -r`.
    pub kernel: String,
    /// Processor model.
    pub cpu: String,
    /// Processors this process may use.
    pub cpus: u32,
    /// Memory of the machine.
    pub memory_bytes: u64,
    /// Kind of virtual machine or container, or "none".
    pub virtualization: String,
    /// The data directory.
    pub directory: String,
    /// Type of the file system under the data directory.
    pub file_system: String,
    /// Its mount options, comma-separated.
    pub mount_options: String,
    /// The block device under it.
    pub device: String,
    /// Model name of that device.
    pub device_model: String,
    /// Whether the device spins.
    pub rotational: Option<bool>,
    /// Its write cache: "write back", "write through".
    pub write_cache: String,
    /// Whether the device takes forced-unit-access writes.
    pub fua: Option<bool>,
    /// The active I/O scheduler.
    pub scheduler: String,
    /// What direct I/O demands.
    pub direct_io_alignment: DirectIoAlignment,
    /// Features the kernel's io_uring reports, by name; empty without io_uring.
    pub ring_features: Vec<String>,
    /// RLIMIT_MEMLOCK; `None` is unlimited.
    pub memlock_bytes: Option<u64>,
    /// Load averages over 1, 5 and 15 minutes when the measurement began.
    pub load: [f64; 3],
    /// Clock source of the kernel.
    pub clock_source: String,
    /// "release" or "debug".
    pub build: String,
    /// Compiler and target, where known.
    pub compiler: String,
    /// How the engine did its I/O: "uring" or "blocking".
    pub io: String,
    /// How it asked for durability: "dsync" or "fdatasync".
    pub sync: String,
}

/// Alignment that direct I/O needs; zero where it is not available.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DirectIoAlignment {
    /// Of the address in memory.
    pub memory_bytes: u32,
    /// Of offset and length in the file.
    pub offset_bytes: u32,
}

/// Bare 4 KiB durable writes by plain system calls: the yardstick.
///
/// The top-level numbers are those of the better of the two methods.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Probe {
    /// The better method: "dsync" (RWF_DSYNC) or "fdatasync".
    pub method: String,
    /// Writes it made.
    pub operations: u64,
    /// Median of one durable write.
    pub p50_ns: u64,
    /// 90th percentile.
    pub p90_ns: u64,
    /// 99th percentile.
    pub p99_ns: u64,
    /// 99.9th percentile.
    pub p999_ns: u64,
    /// The slowest.
    pub max_ns: u64,
    /// One at a time, back to back.
    pub operations_per_second: f64,
    /// Large sequential writes.
    pub sequential_bytes_per_second: u64,
    /// Largest slice median over the smallest, minus one: 0.5 is "half more".
    pub drift: f64,
    /// The slices before, between and after the runs, both methods.
    pub slices: Vec<ProbeSlice>,
    /// Percentile curve of the better method.
    pub percentiles: Vec<PercentilePoint>,
}

/// One slice of the probe.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProbeSlice {
    /// Since the measurement began.
    pub start_ns: u64,
    /// How long it took.
    pub duration_ns: u64,
    /// "dsync" or "fdatasync".
    pub method: String,
    /// Writes made.
    pub operations: u64,
    /// Writes per second.
    pub operations_per_second: f64,
    /// Median of one write.
    pub p50_ns: u64,
    /// 99th percentile.
    pub p99_ns: u64,
}

/// One workload and what came of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Run {
    /// "idle", "loaded", "open", "window", "own-loop", "batch", "window-4k", "rotation",
    /// "recovery", "replicated-…", "catch-up…", "sender…" or "raft-…".
    pub name: String,
    /// A few words for people: "64 clients, closed loop".
    pub description: String,
    /// This run was stopped early.
    pub interrupted: bool,
    /// Callers at the same time.
    pub clients: u64,
    /// Appends that each caller keeps in flight.
    pub in_flight: u64,
    /// Intended records per second; `None` in a closed loop.
    pub rate: Option<f64>,
    /// Followers it replicated to.
    pub followers: u32,
    /// "local" or "quorum".
    pub ack: String,
    /// Payload of each record.
    pub record_bytes: u64,
    /// Records acknowledged while measuring.
    pub records: u64,
    /// Appends that failed while measuring.
    pub errors: u64,
    /// Since the measurement began.
    pub start_ns: u64,
    /// Time measured, warm-up not included.
    pub duration_ns: u64,
    /// Records acknowledged per second.
    pub records_per_second: f64,
    /// Payload acknowledged per second.
    pub bytes_per_second: u64,
    /// From the intended start to the receipt.
    pub response: Latency,
    /// From the actual start to the receipt; equals `response` in a closed loop.
    pub service: Latency,
    /// `response.p50_ns` over the probe's median.
    pub ratio_to_probe_p50: Option<f64>,
    /// Where the time went, in the order a record passes through.
    pub stages: Vec<Stage>,
    /// Group commits.
    pub batches: u64,
    /// Records per group commit.
    pub records_per_batch: f64,
    /// Flushes the engine asked for.
    pub flushes: u64,
    /// Flushes the kernel counted at the device meanwhile (`/proc/diskstats`), where it does.
    pub device_flushes: Option<u64>,
    /// Segments begun while measuring.
    pub rotations: u64,
    /// Processor time of the whole process per record.
    pub cpu_ns_per_record: u64,
    /// Times the scheduler kept a ready thread waiting.
    pub scheduler_stalls: SchedulerStalls,
    /// The run over time, at even intervals; the last may be shorter.
    pub intervals: Vec<Interval>,
    /// Percentile curve of `response`.
    pub percentiles: Vec<PercentilePoint>,
    /// Percentile curve of `service`; empty in a closed loop.
    pub service_percentiles: Vec<PercentilePoint>,
    /// Time × latency counts of `response`.
    pub heat_map: Option<HeatMap>,
    /// Slices that `compare` resamples.
    pub blocks: Vec<Block>,
    /// Further numbers that only some runs have, with the unit at the end of the name.
    pub extra: std::collections::BTreeMap<String, f64>,
}

/// Something that was aimed at, or claimed before, and what was measured.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Target {
    /// What is measured.
    pub name: String,
    /// What was measured.
    pub figure: f64,
    /// Of figure and bounds: "×", "s", "ms", or empty for a plain number.
    pub unit: String,
    /// It should be at most this.
    pub at_most: Option<f64>,
    /// It should be at least this.
    pub at_least: Option<f64>,
    /// Not a target but somebody's claim, in words; else empty.
    pub claimed: String,
    /// Whether it is so.
    pub met: bool,
}

/// Summary of a latency distribution.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Latency {
    /// Median.
    pub p50_ns: u64,
    /// 90th percentile.
    pub p90_ns: u64,
    /// 99th percentile.
    pub p99_ns: u64,
    /// 99.9th percentile.
    pub p999_ns: u64,
    /// The slowest.
    pub max_ns: u64,
    /// Arithmetic mean.
    pub mean_ns: u64,
}

/// One part of a record's way.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stage {
    /// "queue", "batch", "write and flush", "receipt"; with followers also "send", "network and
    /// queue", "follower durable", "reported", "committed", all of samples; of a metadata store also "entry" (of
    /// Raft, until it is applied) and "applied" (from there, or from its receipt, to the outcome).
    pub name: String,
    /// Records (or batches) seen.
    pub count: u64,
    /// Median.
    pub p50_ns: u64,
    /// 99th percentile.
    pub p99_ns: u64,
    /// Arithmetic mean.
    pub mean_ns: u64,
    /// The slowest.
    pub max_ns: u64,
}

/// How often and how long a ready thread had to wait for a processor.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SchedulerStalls {
    /// Stalls longer than a millisecond.
    pub count: u64,
    /// The longest.
    pub max_ns: u64,
}

/// One interval of a run's time series.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Interval {
    /// Since the run began.
    pub start_ns: u64,
    /// Its length.
    pub duration_ns: u64,
    /// Records acknowledged in it.
    pub records: u64,
    /// Response median.
    pub p50_ns: u64,
    /// Response 99th percentile.
    pub p99_ns: u64,
    /// Response 99.9th percentile.
    pub p999_ns: u64,
    /// Slowest response.
    pub max_ns: u64,
}

/// One point of a percentile curve.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PercentilePoint {
    /// 0 to 100.
    pub percentile: f64,
    /// The latency that so many did not exceed.
    pub value_ns: u64,
}

/// Counts over time × latency. Row `r` holds latencies from
/// `low_ns × 2^(r / rows_per_octave)` up to where the next row begins.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HeatMap {
    /// Length of a column.
    pub column_ns: u64,
    /// Lower edge of the lowest row.
    pub low_ns: f64,
    /// Rows for each doubling of latency.
    pub rows_per_octave: u32,
    /// Number of rows; every column has as many counts.
    pub rows: u32,
    /// The columns from the earliest to the latest, each from the lowest row up.
    pub columns: Vec<Vec<u64>>,
}

/// One slice of a run, for resampling: long enough for a median, short enough to have many.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Block {
    /// Since the measurement began, so that blocks of interleaved runs can be ordered.
    pub start_ns: u64,
    /// Its length.
    pub duration_ns: u64,
    /// Records acknowledged in it.
    pub records: u64,
    /// Records acknowledged per second.
    pub records_per_second: f64,
    /// Response median.
    pub p50_ns: u64,
    /// Response 99th percentile.
    pub p99_ns: u64,
}

impl Report {
    /// The run of that name.
    pub fn run(&self, name: &str) -> Option<&Run> {
        self.runs.iter().find(|run| run.name == name)
    }

    /// The run whose latency the histogram files show untagged.
    pub fn primary(&self) -> Option<&Run> {
        self.run(&self.primary_run).or_else(|| super::build::choose_primary(&self.runs))
    }
}

impl Default for Report {
    fn default() -> Report {
        Report {
            schema: SCHEMA.to_owned(),
            interrupted: false,
            verdict: String::new(),
            started_unix_ns: 0,
            duration_ns: 0,
            ringwal_version: env!("CARGO_PKG_VERSION").to_owned(),
            command: String::new(),
            seed: 0,
            primary_run: String::new(),
            environment: Environment::default(),
            probe: Probe::default(),
            runs: Vec::new(),
            targets: Vec::new(),
            warnings: Vec::new(),
        }
    }
}
