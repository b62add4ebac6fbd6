//! The frame around every run: measured in parts, with the probe between them, so that engine and
//! yardstick see the same device; variants that are compared take turns.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use hdrhistogram::Histogram;
use ringwal_engine::Engine;
use ringwal_replication::Node;

use super::counters::Counters;
use super::recorder::{Collector, Recorder, Window};
use super::replicated;
use super::{Bench, cpu, stalls, trimmer};
use crate::environment::flush_requests;
use crate::probe;
use crate::report::model::SchedulerStalls;
use crate::report::{Run, RunBuilder, RunHistograms};

/// Rest of the device after a part that has written as much as it could.
const REST: Duration = Duration::from_millis(200);
/// How often the measuring thread looks up from its sleep.
const TICK: Duration = Duration::from_millis(20);

/// One part of a run, as the workload sees it.
pub struct Part<'a> {
    collector: &'a Collector,
    warmup: Duration,
    length: Duration,
    base_ns: u64,
    window: OnceLock<Window>,
    engine: OnceLock<Engine>,
    stop: AtomicBool,
}

impl Part<'_> {
    /// Names the engine of this part, if the variant has none: it is counted and trimmed, and
    /// closed when the part is over. To be called before [`Part::begin`].
    pub fn set_engine(&self, engine: Engine) {
        assert!(self.engine.set(engine).is_ok(), "a part has one engine");
    }

    /// To be called when everything is set up: the clock starts, first of the warm-up.
    pub fn begin(&self) -> Window {
        *self.window.get_or_init(|| {
            let from = Instant::now() + self.warmup;
            Window { from, until: from + self.length, base_ns: self.base_ns }
        })
    }

    /// Whether it is time to stop.
    pub fn is_over(&self, now: Instant) -> bool {
        self.stop.load(Ordering::Relaxed)
            || self.window.get().is_some_and(|window| now >= window.until)
    }

    /// A recorder for client number `client` of `clients`.
    pub fn recorder(&self, client: usize, clients: usize) -> Recorder<'_> {
        Recorder::new(self.collector, self.begin(), client, clients)
    }
}

/// What a workload hands back besides what it recorded.
#[derive(Debug, Default)]
pub struct Tally {
    /// Service times, where they differ from responses.
    pub service: Option<Histogram<u64>>,
    /// Counters of an engine that only the workload knows.
    pub counters: Option<Counters>,
    /// Further numbers, by name; of those with the same name the largest stays.
    pub extra: Vec<(&'static str, f64)>,
}

/// What is measured with the probe after each part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Yardstick {
    /// The usual slice.
    Slice,
    /// The slice, and bare writes of so many bytes for as long as the part.
    Bare(usize),
    /// Large sequential writes for as long as the part. Both leave the device with work to do, so
    /// there is a rest after each, and no slice.
    Sequential,
}

/// The work of one part.
pub type Work<'a> = Box<dyn Fn(&Part<'_>) -> Result<Tally> + Sync + 'a>;

/// A workload to be measured.
pub struct Variant<'a> {
    /// Name, description, clients, rate and record size.
    pub run: Run,
    /// The engine whose counters belong to it, and which is trimmed meanwhile.
    pub engine: Option<Engine>,
    /// The node that leads with this engine.
    pub node: Option<Arc<Node>>,
    /// What is compared with it.
    pub yardstick: Yardstick,
    /// The work of one part, until it [is over](Part::is_over).
    pub work: Work<'a>,
}

/// A variant with what came of it.
pub struct Measured {
    /// The run, complete but for the ratio to the probe.
    pub run: Run,
    /// Its histograms.
    pub histograms: RunHistograms,
    /// Writes per second, or bytes per second, of the yardstick beside it, a number per part.
    pub yardstick: Vec<f64>,
}

impl Measured {
    /// Median and 99th percentile in nanoseconds, of each part by itself: the medians of these. A
    /// stall in one part does not change them.
    pub fn of_parts(&self, length: Duration) -> (f64, f64) {
        let part_ns = (length.as_nanos() as u64).max(1);
        let mut parts: Vec<Histogram<u64>> = Vec::new();
        for interval in &self.histograms.intervals {
            let part = (interval.start_ns / part_ns) as usize;
            if parts.len() <= part {
                parts.resize_with(part + 1, probe::histogram);
            }
            parts[part].add(&interval.response).expect("a growing histogram takes every value");
        }
        parts.retain(|part| !part.is_empty());
        let of = |quantile| {
            let values: Vec<f64> =
                parts.iter().map(|part| part.value_at_quantile(quantile) as f64).collect();
            probe::median(&values)
        };
        (of(0.5), of(0.99))
    }
}

/// What has been collected of a variant so far.
struct Progressing<'a> {
    variant: Variant<'a>,
    collector: Collector,
    start_ns: u64,
    measured_ns: u64,
    cpu_ns: u64,
    device_flushes: Option<u64>,
    counters: Counters,
    sent: Sent,
    stalls: SchedulerStalls,
    service: Option<Histogram<u64>>,
    yardstick: Vec<f64>,
    first_slice: usize,
}

/// What the process and the device had used at one moment.
struct Snapshot {
    cpu_ns: u64,
    device_flushes: Option<u64>,
    counters: Option<Counters>,
    sent: Option<Sent>,
}

/// What a leader has sent to its followers, together.
#[derive(Debug, Clone, Copy, Default)]
struct Sent {
    frames: u64,
    calls: u64,
}

impl Sent {
    fn by(node: &Node) -> Sent {
        let mut sent = Sent::default();
        for follower in node.stats().followers {
            sent.frames += follower.frames;
            sent.calls += follower.calls;
        }
        sent
    }
}

/// Measures the variants in turn, part by part. Stops early when asked to; an error of a workload
/// ends everything.
pub fn measure(bench: &mut Bench, variants: Vec<Variant<'_>>) -> Result<Vec<Measured>> {
    let parts = bench.settings.parts();
    let length = bench.settings.duration / parts;
    measure_parts(bench, variants, parts, length)
}

/// As [`measure`], in `parts` of `length` each.
pub fn measure_parts(
    bench: &mut Bench,
    variants: Vec<Variant<'_>>,
    parts: u32,
    length: Duration,
) -> Result<Vec<Measured>> {
    let mut progressing: Vec<Progressing<'_>> = variants
        .into_iter()
        .map(|variant| Progressing::new(variant, bench, Collector::new(length, parts)))
        .collect();
    'parts: for index in 0..parts {
        let warmup = bench.settings.warmup_of_part(index);
        for one in &mut progressing {
            if bench.interrupt.is_asked() {
                one.variant.run.interrupted = true;
                break 'parts;
            }
            one.part(bench, warmup, length)?;
            one.beside(bench, length)?;
        }
    }
    Ok(progressing.into_iter().map(|one| one.finish(bench)).collect())
}

impl<'a> Progressing<'a> {
    fn new(variant: Variant<'a>, bench: &Bench, collector: Collector) -> Progressing<'a> {
        Progressing {
            variant,
            collector,
            start_ns: bench.elapsed_ns(),
            measured_ns: 0,
            cpu_ns: 0,
            device_flushes: None,
            counters: Counters::default(),
            sent: Sent::default(),
            stalls: SchedulerStalls::default(),
            service: None,
            yardstick: Vec::new(),
            // The slices just before this run belong to it as well.
            first_slice: bench.probe.slice_count().saturating_sub(2),
        }
    }

    fn part(&mut self, bench: &Bench, warmup: Duration, length: Duration) -> Result<()> {
        if let Some(leader) = &self.variant.node {
            // What the part before has left to the followers is not this one's.
            replicated::wait_until_in_step(leader, bench);
        }
        let part = Part {
            collector: &self.collector,
            warmup,
            length,
            base_ns: self.measured_ns,
            window: OnceLock::new(),
            engine: OnceLock::new(),
            stop: AtomicBool::new(false),
        };
        let work = &self.variant.work;
        let node = self.variant.node.as_deref();
        let record_bytes = self.variant.run.record_bytes;
        let over = AtomicBool::new(false);
        let (outcome, before, after, duration, stalls) = thread::scope(|scope| {
            let worker = named(scope, "bench", || work(&part));
            let Some(window) = wait_for_beginning(&part, &worker, bench) else {
                over.store(true, Ordering::Relaxed);
                return (joined(worker), None, None, Duration::ZERO, SchedulerStalls::default());
            };
            let engine = self.variant.engine.as_ref().or(part.engine.get());
            let trimmer = engine.filter(|_| bench.settings.trims).map(|engine| {
                named(scope, "trimmer", || trimmer::run(engine, node, record_bytes, &over))
            });
            while sleep_until(window.from, &worker, bench) {}
            let watcher = named(scope, "stalls", || stalls::watch(&over));
            let before = Snapshot::take(bench, engine, node);
            while sleep_until(window.until, &worker, bench) {
                bench.progress.show(&self.variant.run.name);
            }
            let duration = Instant::now().min(window.until).saturating_duration_since(window.from);
            let after = Snapshot::take(bench, engine, node);
            part.stop.store(true, Ordering::Relaxed);
            let outcome = joined(worker);
            over.store(true, Ordering::Relaxed);
            let stalls = watcher.join().unwrap_or_default();
            let trimmed = trimmer.map_or(Ok(()), joined);
            (trimmed.and(outcome), Some(before), Some(after), duration, stalls)
        });
        drop(part);
        let tally = outcome?;
        self.measured_ns += duration.as_nanos() as u64;
        self.stalls = stalls::sum(self.stalls, stalls);
        self.variant.run.interrupted |= bench.interrupt.is_asked();
        self.add_usage(before, after);
        self.add_tally(tally);
        Ok(())
    }

    fn add_usage(&mut self, before: Option<Snapshot>, after: Option<Snapshot>) {
        let (Some(before), Some(after)) = (before, after) else { return };
        self.cpu_ns += after.cpu_ns - before.cpu_ns;
        if let (Some(before), Some(after)) = (before.device_flushes, after.device_flushes) {
            *self.device_flushes.get_or_insert(0) += after - before;
        }
        if let (Some(before), Some(after)) = (before.counters, after.counters) {
            self.counters.add_difference(&before, &after);
        }
        if let (Some(before), Some(after)) = (before.sent, after.sent) {
            self.sent.frames += after.frames - before.frames;
            self.sent.calls += after.calls - before.calls;
        }
    }

    fn add_tally(&mut self, tally: Tally) {
        if let Some(service) = tally.service {
            let sum = self.service.get_or_insert_with(probe::histogram);
            sum.add(service).expect("a growing histogram takes every value");
        }
        if let Some(counters) = tally.counters {
            self.counters.add(&counters);
        }
        for (name, value) in tally.extra {
            let largest = self.variant.run.extra.entry(name.to_owned()).or_insert(value);
            *largest = largest.max(value);
        }
    }

    fn beside(&mut self, bench: &mut Bench, length: Duration) -> Result<()> {
        match self.variant.yardstick {
            Yardstick::Slice => bench.probe_slice()?,
            Yardstick::Bare(bytes) => {
                bench.probe_slice()?;
                let bare = bench.probe.bare(bytes, length, &bench.interrupt)?;
                self.yardstick.push(bare.per_second());
            }
            Yardstick::Sequential => {
                thread::sleep(REST);
                self.yardstick.push(bench.probe.sequential(length, &bench.interrupt)?);
                thread::sleep(REST);
            }
        }
        Ok(())
    }

    fn finish(self, bench: &Bench) -> Measured {
        let intervals = self.collector.finish(self.measured_ns);
        let mut response = probe::histogram();
        for (_, _, latencies) in &intervals {
            response.add(latencies).expect("a growing histogram takes every value");
        }
        let mut run = self.variant.run;
        run.start_ns = self.start_ns;
        run.duration_ns = self.measured_ns;
        run.records = response.len();
        run.batches = self.counters.batches;
        run.flushes = self.counters.flushes;
        run.rotations = self.counters.rotations;
        run.device_flushes = self.device_flushes;
        run.scheduler_stalls = self.stalls;
        run.extra.insert("written_bytes".to_owned(), self.counters.written_bytes as f64);
        run.extra.insert("backpressure_ns".to_owned(), self.counters.backpressure_ns as f64);
        if let Some(bytes) = cpu::resident_bytes() {
            run.extra.insert("resident_bytes".to_owned(), bytes as f64);
        }
        if self.sent.frames > 0 {
            let Sent { frames, calls } = self.sent;
            run.extra.insert("frames_sent".to_owned(), frames as f64);
            run.extra.insert("send_calls".to_owned(), calls as f64);
        }
        let adjacent_ns = bench.probe.median_ns_since(self.first_slice);
        if adjacent_ns > 0 && !response.is_empty() {
            let ratio = response.value_at_quantile(0.5) as f64 / adjacent_ns as f64;
            run.extra.insert("ratio_to_adjacent_probe_p50".to_owned(), ratio);
        }
        let mut builder = RunBuilder::new(run, response).cpu_time(self.cpu_ns);
        if let Some(service) = self.service {
            builder = builder.service(service);
        }
        for (name, histogram) in self.counters.stages() {
            builder = builder.stage(name, histogram);
        }
        for (start_ns, duration_ns, latencies) in intervals {
            builder = builder.interval(start_ns, duration_ns, latencies);
        }
        let (run, histograms) = builder.finish();
        Measured { run, histograms, yardstick: self.yardstick }
    }
}

impl Snapshot {
    fn take(bench: &Bench, engine: Option<&Engine>, node: Option<&Node>) -> Snapshot {
        let counters = engine.map(|engine| {
            let counters = Counters::of(&engine.stats().shards);
            match node.and_then(|node| node.stats().times) {
                Some(times) => counters.with_times(&times),
                None => counters,
            }
        });
        Snapshot {
            cpu_ns: cpu::process_ns(),
            device_flushes: bench.disk.as_deref().and_then(flush_requests),
            counters,
            sent: node.map(Sent::by),
        }
    }
}

fn named<'scope, T: Send + 'scope>(
    scope: &'scope thread::Scope<'scope, '_>,
    name: &str,
    work: impl FnOnce() -> T + Send + 'scope,
) -> ScopedJoinHandle<'scope, T> {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn_scoped(scope, work)
        .expect("a thread can be started")
}

/// Waits for the workload to be set up; `None` when it ended before.
fn wait_for_beginning<T>(
    part: &Part<'_>,
    worker: &ScopedJoinHandle<'_, T>,
    bench: &Bench,
) -> Option<Window> {
    loop {
        if let Some(window) = part.window.get() {
            return Some(*window);
        }
        if worker.is_finished() {
            return None;
        }
        bench.progress.show("preparing");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Sleeps for a moment, at most until `then`; `false` when there is nothing more to wait for.
fn sleep_until<T>(then: Instant, worker: &ScopedJoinHandle<'_, T>, bench: &Bench) -> bool {
    let left = then.saturating_duration_since(Instant::now());
    thread::sleep(left.min(TICK));
    left > TICK && !worker.is_finished() && !bench.interrupt.is_asked()
}

/// The result of a thread; a panic is an error of the run.
pub fn joined<T>(worker: ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    worker.join().unwrap_or_else(|panic| {
        let message = panic
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_default();
        Err(anyhow!("a thread of the measurement panicked: {message}"))
    })
}
