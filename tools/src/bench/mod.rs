//! `ringwal bench`: options, then a plan, then runs, then a report.

mod batch;
mod catch_up;
mod closed_loop;
mod counters;
mod cpu;
mod data;
mod half;
mod lagging;
mod led;
mod measure;
mod metadata;
mod open_loop;
mod own_loop;
mod peer;
mod receipts;
mod recorder;
mod recovery;
mod replicated;
mod results;
mod rotation;
mod sender;
mod settings;
pub mod stalls;
mod trimmer;
mod warnings;
mod window;
mod writer;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use ringwal_engine::{Engine, SegmentStats};

pub use metadata::child as node;
pub use peer::run as peer;
pub use recovery::writer as recovery_writer;
pub use results::screen;
pub use settings::engine_options;

use crate::cli::{BenchArgs, Io, RunName};
use crate::environment::{self, Surroundings};
use crate::exit::{Exit, Failure};
use crate::interrupt::Interrupt;
use crate::probe::DeviceProbe;
use crate::progress::Progress;
use crate::report::{Run, RunHistograms};

use data::DataDirectory;
use measure::Measured;
use receipts::ReceiptFile;
use settings::{Followers, PROBE_SLICE, Replication, SEQUENTIAL_TIME, Settings};

/// Size of the file that the probe writes.
const PROBE_BYTES: u64 = 64 << 20;
/// Where more shards would use more than 1 GiB, a new directory gets smaller segments.
const SEGMENT_BYTES_OF_ALL_SHARDS: u64 = 128 << 20;
/// Segments are not made smaller than this.
const SEGMENT_BYTES_MIN: u64 = 4 << 20;

/// Everything that the runs share, and what they have found so far.
struct Bench {
    settings: Settings,
    surroundings: Surroundings,
    /// The whole disk under the data directory.
    disk: Option<String>,
    interrupt: Interrupt,
    progress: Progress,
    started: Instant,
    started_unix_ns: u64,
    probe: DeviceProbe,
    // The engines are closed before the directory is removed.
    engines: Vec<(Io, Engine)>,
    data: DataDirectory,
    receipts: Option<Arc<ReceiptFile>>,
    results: Vec<(Run, RunHistograms)>,
    warnings: Vec<String>,
}

/// Runs the subcommand.
pub fn run(args: BenchArgs) -> Result<Exit> {
    let settings = Settings::new(args)?;
    results::check_writable(&settings)?;
    let mut bench = Bench::prepare(settings)?;
    if bench.settings.replication.is_some() {
        crate::logging::start(None);
        replicated::run(&mut bench)?;
    } else {
        for run in bench.settings.runs.clone() {
            if bench.interrupt.is_asked() {
                break;
            }
            bench.run(run)?;
        }
    }
    bench.close_engines()?;
    bench.probe_slice()?;
    bench.progress.clear();
    results::write(bench)
}

/// How long the segments of a new directory may take to be written before a measurement.
const PREPARING_MAX: Duration = Duration::from_secs(10);

/// Whether there are segments enough: what is prepared later is part of the work that is measured.
fn has_prepared(segments: &SegmentStats) -> bool {
    segments.prepared > segments.reserved
}

fn wait_until_prepared(engine: &Engine) {
    let patience = Instant::now() + PREPARING_MAX;
    let is_ready = || engine.stats().shards.iter().all(|shard| has_prepared(&shard.segments));
    while !is_ready() && Instant::now() < patience {
        std::thread::sleep(Duration::from_millis(5));
    }
}

impl Bench {
    fn prepare(settings: Settings) -> Result<Bench> {
        let interrupt = Interrupt::install().context("catching signals")?;
        let place = DataDirectory::place(&settings);
        let surroundings =
            environment::look(&place).map_err(|error| data::unusable(&place, &error))?;
        let data = DataDirectory::create(&settings, &surroundings)?;
        let receipts = settings.receipts.as_deref().map(ReceiptFile::open).transpose()?;
        let progress = Progress::new(settings.planned());
        progress.show("preparing");
        let started = Instant::now();
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut bench = Bench {
            disk: surroundings.device.as_ref().map(|device| device.disk.clone()),
            warnings: warnings::before(&surroundings),
            probe: DeviceProbe::prepare(data.path(), PROBE_BYTES, started)
                .map_err(|error| data::unusable(data.path(), &error))?,
            started_unix_ns: since_epoch.as_nanos() as u64,
            receipts: receipts.map(Arc::new),
            engines: Vec::new(),
            results: Vec::new(),
            settings,
            surroundings,
            interrupt,
            progress,
            started,
            data,
        };
        bench.probe.sequential(SEQUENTIAL_TIME, &bench.interrupt)?;
        bench.probe_slice()?;
        Ok(bench)
    }

    fn run(&mut self, run: RunName) -> Result<()> {
        match run {
            RunName::Idle => closed_loop::idle(self),
            RunName::Loaded => closed_loop::loaded(self),
            RunName::Open => open_loop::run(self),
            RunName::Window => window::small(self),
            RunName::Window4k => window::large(self),
            RunName::Batch => batch::run(self),
            RunName::OwnLoop => own_loop::run(self),
            RunName::Rotation => rotation::run(self),
            RunName::Recovery => recovery::run(self),
            RunName::Sender => sender::run(self),
            RunName::ReplicatedHalf => half::run(self),
            RunName::ReplicatedLagging => lagging::run(self),
            RunName::CatchUp => catch_up::run(self),
            RunName::Replicated => metadata::run(self),
            // In turn with it.
            RunName::Raft if self.settings.runs.contains(&RunName::Replicated) => Ok(()),
            RunName::Raft => metadata::run(self),
        }
    }

    /// The engine for each kind of I/O, with the suffix of its runs' names. They are opened at the
    /// first call and sleep while others are measured.
    fn engines(&mut self) -> Result<Vec<(String, Engine)>> {
        if self.engines.is_empty() {
            for (index, &io) in self.settings.io.iter().enumerate() {
                let engine = self.open(io, index == 0)?;
                wait_until_prepared(&engine);
                self.engines.push((io, engine));
            }
        }
        let settings = &self.settings;
        Ok(self.engines.iter().map(|(io, e)| (settings.suffix(*io), e.clone())).collect())
    }

    /// The first engine lives in the data directory itself.
    fn open(&self, io: Io, first: bool) -> Result<Engine> {
        let path = match first {
            true => self.data.path().to_owned(),
            false => self.data.path().join(crate::cli::name_of(&io)),
        };
        self.open_at(io, &path, None)
    }

    /// The engine of a directory; a new one gets segments of so many bytes, where that is said.
    fn open_at(&self, io: Io, path: &Path, segment_bytes: Option<u64>) -> Result<Engine> {
        let mut options = self.settings.options(io);
        if self.settings.replication.is_some() {
            options = options.lock_wait(crate::nodes::LOCK_WAIT);
        }
        let shards = u64::from(self.settings.shards);
        let is_new = std::fs::read_dir(path).map_or(true, |mut entries| entries.next().is_none());
        if shards > 2 && is_new {
            let segment_bytes =
                SEGMENT_BYTES_OF_ALL_SHARDS / shards / SEGMENT_BYTES_MIN * SEGMENT_BYTES_MIN;
            options = options.segment_bytes(segment_bytes.max(SEGMENT_BYTES_MIN));
        } else if let Some(segment_bytes) = segment_bytes.filter(|_| is_new) {
            options = options.segment_bytes(segment_bytes);
        }
        let engine = options.open(path).map_err(|error| {
            let failure = Failure::open(&error);
            match (error.kind(), io) {
                (ringwal_engine::OpenErrorKind::Environment, Io::Uring) => {
                    failure.or("--io blocking")
                }
                _ => failure,
            }
        })?;
        self.refuse_records_of_others(path, &engine)?;
        let record_bytes_max = engine.record_bytes_max();
        if self.settings.record_bytes > record_bytes_max {
            return Err(Failure::usage(format!(
                "--record-size {} is too large for one record",
                self.settings.record_bytes
            ))
            .cause(format!("the engine takes records of at most {record_bytes_max} bytes"))
            .fix("a smaller --record-size")
            .into());
        }
        Ok(engine)
    }

    /// What is measured is trimmed as it goes, and records that were there before would go with it.
    fn refuse_records_of_others(&self, path: &Path, engine: &Engine) -> Result<(), Failure> {
        let mut streams = engine.streams();
        // A node's own facts stay.
        streams.retain(|stream| !stream.stream.is_local());
        let records: u64 = streams.iter().map(|stream| stream.end - stream.trimmed).sum();
        if records == 0 || !self.settings.trims {
            return Ok(());
        }
        Err(Failure::environment(format!("{} holds records already", path.display()))
            .cause(format!(
                "{records} records in {} streams, which would be trimmed",
                streams.len()
            ))
            .fix("--dir DIR with a directory that is new, or without records")
            .or(match self.settings.replication {
                Some(Replication { followers: Followers::Members(_), .. }) => {
                    "--keep, which trims nothing"
                }
                _ => "--receipts FILE, which trims nothing",
            }))
    }

    fn close_engines(&mut self) -> Result<()> {
        for (_, engine) in self.engines.drain(..) {
            engine.close().context("closing the engine")?;
        }
        Ok(())
    }

    /// One slice of the probe.
    fn probe_slice(&mut self) -> Result<()> {
        self.progress.show("probe");
        self.probe.slice(PROBE_SLICE, &self.interrupt)
    }

    fn elapsed_ns(&self) -> u64 {
        self.elapsed().as_nanos() as u64
    }

    fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// A run that has been made.
    fn result(&self, name: &str) -> Option<&Run> {
        self.results.iter().map(|(run, _)| run).find(|run| run.name == name)
    }

    fn keep(&mut self, measured: Measured) {
        // What was interrupted before anything was measured is no result.
        if measured.run.records > 0 {
            self.results.push((measured.run, measured.histograms));
        }
    }

    fn keep_all(&mut self, measured: Vec<Measured>) {
        measured.into_iter().for_each(|one| self.keep(one));
    }

    fn warn(&mut self, warning: String) {
        self.warnings.push(warning);
    }
}
