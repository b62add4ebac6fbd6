//! A made-up report with the shapes of a real one, for tests and for looking at the page.

use hdrhistogram::Histogram;

use super::bootstrap::Random;
use super::model::{DirectIoAlignment, Environment, Report, Run, SchedulerStalls};
use super::{HistogramData, ProbeSliceHistogram, RunBuilder, RunHistograms};

const INTERVAL_NS: u64 = 100_000_000;

/// A report of four runs and its histograms.
pub fn report() -> (Report, HistogramData) {
    report_with(42, 1.0)
}

/// The same with other random numbers and all latencies of the runs (not of the probe)
/// multiplied.
pub fn report_with(seed: u64, slowness: f64) -> (Report, HistogramData) {
    let random = &mut Random::new(seed);
    let slices: Vec<ProbeSliceHistogram> = (0..10)
        .map(|slice| {
            let method = if slice % 2 == 0 { "dsync" } else { "fdatasync" };
            let median = if slice % 2 == 0 { 126_000.0 } else { 141_000.0 };
            let median = median * (1.0 + 0.02 * slice as f64);
            ProbeSliceHistogram {
                method: method.to_owned(),
                start_ns: slice / 2 * 4_000_000_000 + slice % 2 * 250_000_000,
                duration_ns: 250_000_000,
                latency: latencies(1500, median, 0.18, random),
            }
        })
        .collect();
    let (probe, probe_latency) = super::probe_of(&slices, 1_940_000_000);
    let runs = [
        ("idle", 7_200, 142_000.0, 1),
        ("loaded", 96_000, 342_000.0, 64),
        ("open", 48_000, 205_000.0, 0),
        ("window", 400_000, 2_100_000.0, 1),
    ];
    let (runs, histograms) = runs
        .into_iter()
        .enumerate()
        .map(|(index, (name, rate, median, clients))| {
            run(name, index as u64, rate, median * slowness, clients, random)
        })
        .unzip();
    let mut report = Report {
        started_unix_ns: 1_770_128_100_000_000_000,
        duration_ns: 20_400_000_000,
        command: "ringwal bench --dir /srv/journal --record-size 128 --slo 'p99<2ms'".to_owned(),
        seed,
        environment: environment(),
        probe,
        runs,
        warnings: vec![
            "The device's median drifted by 16 % during the measurement; compare ratios, not \
             times."
                .to_owned(),
        ],
        ..Report::default()
    };
    super::complete(&mut report);
    (report, HistogramData { runs: histograms, probe: Some(probe_latency) })
}

fn run(
    name: &str,
    index: u64,
    rate: u64,
    median: f64,
    clients: u64,
    random: &mut Random,
) -> (Run, RunHistograms) {
    let open = name == "open";
    let (mut response, mut service) = (super::new_histogram(), super::new_histogram());
    let mut intervals = Vec::new();
    for interval in 0..41_u64 {
        let share = if interval == 40 { 4 } else { 10 };
        let wobble = 1.0 + 0.06 * (interval as f64 / 5.0).sin();
        // One hiccup of the device: fewer receipts, and in the open loop everyone waits.
        let stall = interval == 23;
        let records = rate * share / if stall { 150 } else { 100 };
        let mut part = latencies(records, median * wobble, 0.22, random);
        service.add(&part).unwrap();
        if stall {
            for delayed in 0..records / if open { 3 } else { 200 } {
                part.record(1_000_000 + delayed % 97 * 330_000).unwrap();
            }
        }
        response.add(&part).unwrap();
        intervals.push((interval * INTERVAL_NS, INTERVAL_NS * share / 10, part));
    }
    let records = response.len();
    let batches = if clients == 1 && name == "idle" { records } else { records / 41 };
    let counted = Run {
        name: name.to_owned(),
        description: match name {
            "idle" => "1 client, closed loop".to_owned(),
            "loaded" => "64 clients, closed loop".to_owned(),
            "open" => "open loop at half of what loaded reached".to_owned(),
            _ => "1 caller, 4096 appends in flight".to_owned(),
        },
        clients: clients.max(1),
        in_flight: if name == "window" { 4096 } else { 1 },
        rate: open.then_some(rate as f64),
        ack: "local".to_owned(),
        record_bytes: 128,
        start_ns: 1_000_000_000 + index * 4_900_000_000,
        duration_ns: 40 * INTERVAL_NS + INTERVAL_NS * 4 / 10,
        batches,
        flushes: batches,
        device_flushes: Some(batches + 3),
        rotations: u64::from(name == "window") * 3,
        scheduler_stalls: SchedulerStalls { count: 2, max_ns: 4_200_000 },
        ..Run::default()
    };
    let mut builder = RunBuilder::new(counted, response)
        .stage("queue", latencies(4000, median * 0.05, 0.4, random))
        .stage("batch", latencies(4000, median * 0.30, 0.5, random))
        .stage("write and flush", latencies(4000, median * 0.6, 0.2, random))
        .stage("receipt", latencies(4000, median * 0.03, 0.6, random))
        .cpu_time(records * 2300);
    if open {
        builder = builder.service(service);
    }
    for (start_ns, duration_ns, part) in intervals {
        builder = builder.interval(start_ns, duration_ns, part);
    }
    builder.finish()
}

/// Roughly log-normal latencies with a tail.
fn latencies(count: u64, median: f64, spread: f64, random: &mut Random) -> Histogram<u64> {
    /// Beyond these, each stands for several.
    const DRAWN_MAX: u64 = 2000;
    let mut histogram = super::new_histogram();
    let drawn = count.min(DRAWN_MAX);
    for index in 0..drawn {
        let weight = count / drawn + u64::from(index < count % drawn);
        let uniform = |random: &mut Random| (random.next() >> 11) as f64 / (1_u64 << 53) as f64;
        let sum: f64 = (0..6).map(|_| uniform(random) - 0.5).sum();
        let tail = (1.0 / uniform(random).max(1e-6)).powf(0.22);
        let value = median * (sum * spread * 1.2).exp() * (0.83 + tail * 0.15);
        histogram.record_n(value as u64, weight).unwrap();
    }
    histogram
}

fn environment() -> Environment {
    Environment {
        kernel: "6.12.9-amd64".to_owned(),
        cpu: "AMD EPYC 9354P 32-Core Processor".to_owned(),
        cpus: 8,
        memory_bytes: 32 << 30,
        virtualization: "kvm".to_owned(),
        directory: "/srv/journal".to_owned(),
        file_system: "ext4".to_owned(),
        mount_options: "rw,relatime,discard,errors=remount-ro".to_owned(),
        device: "nvme0n1".to_owned(),
        device_model: "SAMSUNG MZQL21T9HCJR-00A07".to_owned(),
        rotational: Some(false),
        write_cache: "write back".to_owned(),
        fua: Some(true),
        scheduler: "none".to_owned(),
        direct_io_alignment: DirectIoAlignment { memory_bytes: 4, offset_bytes: 512 },
        ring_features: ["single_mmap", "nodrop", "submit_stable", "ext_arg", "native_workers"]
            .map(str::to_owned)
            .to_vec(),
        memlock_bytes: Some(8 << 20),
        load: [0.42, 0.31, 0.2],
        clock_source: "tsc".to_owned(),
        build: "release".to_owned(),
        compiler: "rustc 1.95.0, x86_64-unknown-linux-gnu".to_owned(),
        io: "uring".to_owned(),
        sync: "dsync".to_owned(),
    }
}
