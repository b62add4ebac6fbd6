//! From histograms and counters to the model's runs and probe. No clock, no files.

use hdrhistogram::Histogram;

use super::histogram_files::{IntervalHistogram, RunHistograms};
use super::model::{
    Block, HeatMap, Interval, Latency, PercentilePoint, Probe, ProbeSlice, Report, Run, Stage,
};
use super::{metadata, replication, verdict};

/// Points on a percentile curve for each halving of the distance to 100 %.
const TICKS_PER_HALF_DISTANCE: u32 = 5;
/// Heat map rows for each doubling of latency.
const HEAT_ROWS_PER_OCTAVE: u32 = 8;
/// A run has at most so many heat map columns.
const HEAT_COLUMNS_MAX: usize = 160;
/// A run has at most so many blocks.
const BLOCKS_MAX: usize = 48;

/// A histogram as every part of the report expects it: nanoseconds, three digits,
/// growing as it must.
pub fn new_histogram() -> Histogram<u64> {
    Histogram::new(3).expect("three significant digits are valid")
}

/// Completes a [`Run`] from its histograms.
///
/// The caller fills what it counted (name, clients, durations, batches, flushes, …) and the
/// builder derives the rest: rates, percentiles, curves, time series, heat map and blocks.
/// It keeps the histograms for the files that hold them whole.
#[derive(Debug)]
pub struct RunBuilder {
    run: Run,
    histograms: RunHistograms,
}

impl RunBuilder {
    /// Starts from the counted fields and the response latencies of the whole run.
    pub fn new(run: Run, response: Histogram<u64>) -> RunBuilder {
        let histograms = RunHistograms {
            name: run.name.clone(),
            start_ns: run.start_ns,
            duration_ns: run.duration_ns,
            response,
            service: None,
            stages: Vec::new(),
            intervals: Vec::new(),
        };
        RunBuilder { run, histograms }
    }

    /// Latencies from the actual start; without them `service` equals `response`.
    pub fn service(mut self, service: Histogram<u64>) -> RunBuilder {
        self.histograms.service = Some(service);
        self
    }

    /// One stage, in the order in which a record passes through them.
    pub fn stage(mut self, name: &str, histogram: Histogram<u64>) -> RunBuilder {
        self.run.stages.push(Stage {
            name: name.to_owned(),
            count: histogram.len(),
            p50_ns: histogram.value_at_quantile(0.5),
            p99_ns: histogram.value_at_quantile(0.99),
            mean_ns: histogram.mean() as u64,
            max_ns: histogram.max(),
        });
        self.histograms.stages.push((name.to_owned(), histogram));
        self
    }

    /// The responses received in `duration_ns` from `start_ns` after the run began. Intervals
    /// come in order; the last may be shorter; one without responses is passed too, for a
    /// stall to be seen.
    pub fn interval(
        mut self,
        start_ns: u64,
        duration_ns: u64,
        response: Histogram<u64>,
    ) -> RunBuilder {
        self.histograms.intervals.push(IntervalHistogram { start_ns, duration_ns, response });
        self
    }

    /// Processor time of the whole process while measuring.
    pub fn cpu_time(mut self, cpu_ns: u64) -> RunBuilder {
        let records = self.run.records.max(self.histograms.response.len());
        self.run.cpu_ns_per_record = cpu_ns.checked_div(records).unwrap_or(0);
        self
    }

    /// The finished run, and its histograms for [`super::write_all`].
    pub fn finish(self) -> (Run, RunHistograms) {
        let RunBuilder { mut run, histograms } = self;
        let response = &histograms.response;
        if run.records == 0 {
            run.records = response.len();
        }
        run.records_per_second = per_second(run.records, run.duration_ns);
        run.bytes_per_second = (run.records_per_second * run.record_bytes as f64) as u64;
        if run.batches > 0 {
            run.records_per_batch = run.records as f64 / run.batches as f64;
        }
        run.response = latency_of(response);
        run.service = histograms.service.as_ref().map_or(run.response, latency_of);
        run.percentiles = percentile_curve(response);
        run.service_percentiles =
            histograms.service.as_ref().map(percentile_curve).unwrap_or_default();
        run.intervals = histograms.intervals.iter().map(interval_of).collect();
        run.heat_map = heat_map_of(&histograms.intervals);
        run.blocks = blocks_of(run.start_ns, &histograms.intervals);
        (run, histograms)
    }
}

/// Latencies of one slice of the probe.
#[derive(Debug)]
pub struct ProbeSliceHistogram {
    /// "dsync" or "fdatasync".
    pub method: String,
    /// Since the measurement began.
    pub start_ns: u64,
    /// How long it took.
    pub duration_ns: u64,
    /// Latency of every write in it.
    pub latency: Histogram<u64>,
}

/// The probe from its slices: the better method by median is the yardstick. Also returns the
/// yardstick's latencies.
pub fn probe_of(
    slices: &[ProbeSliceHistogram],
    sequential_bytes_per_second: u64,
) -> (Probe, Histogram<u64>) {
    let (method, latency) = probe_of_better_method(slices);
    let mut duration_ns = 0;
    let (mut slowest, mut fastest) = (0_u64, u64::MAX);
    for slice in slices.iter().filter(|slice| slice.method == method && !slice.latency.is_empty()) {
        duration_ns += slice.duration_ns;
        let median = slice.latency.value_at_quantile(0.5);
        slowest = slowest.max(median);
        fastest = fastest.min(median);
    }
    let drift =
        if slowest == 0 || fastest == 0 { 0.0 } else { slowest as f64 / fastest as f64 - 1.0 };
    let summary = latency_of(&latency);
    let probe = Probe {
        method,
        operations: latency.len(),
        p50_ns: summary.p50_ns,
        p90_ns: summary.p90_ns,
        p99_ns: summary.p99_ns,
        p999_ns: summary.p999_ns,
        max_ns: summary.max_ns,
        operations_per_second: per_second(latency.len(), duration_ns),
        sequential_bytes_per_second,
        drift,
        slices: slices.iter().map(probe_slice_of).collect(),
        percentiles: percentile_curve(&latency),
    };
    (probe, latency)
}

fn probe_of_better_method(slices: &[ProbeSliceHistogram]) -> (String, Histogram<u64>) {
    let mut methods: Vec<(String, Histogram<u64>)> = Vec::new();
    for slice in slices {
        match methods.iter_mut().find(|(method, _)| *method == slice.method) {
            Some((_, sum)) => merge(sum, &slice.latency),
            None => methods.push((slice.method.clone(), slice.latency.clone())),
        }
    }
    methods
        .into_iter()
        .filter(|(_, latency)| !latency.is_empty())
        .min_by_key(|(_, latency)| latency.value_at_quantile(0.5))
        .unwrap_or_else(|| (String::new(), new_histogram()))
}

fn probe_slice_of(slice: &ProbeSliceHistogram) -> ProbeSlice {
    ProbeSlice {
        start_ns: slice.start_ns,
        duration_ns: slice.duration_ns,
        method: slice.method.clone(),
        operations: slice.latency.len(),
        operations_per_second: per_second(slice.latency.len(), slice.duration_ns),
        p50_ns: slice.latency.value_at_quantile(0.5),
        p99_ns: slice.latency.value_at_quantile(0.99),
    }
}

/// Fills what needs the whole report: the ratios to the probe, the primary run and, if it has
/// none yet, the verdict. To be called once, when probe and runs are in place.
pub fn complete(report: &mut Report) {
    let probe_p50_ns = report.probe.p50_ns;
    for run in &mut report.runs {
        // The time of an opening is not compared with that of a write.
        let writes = run.in_flight > 0 || run.clients == 0;
        let known = writes && probe_p50_ns > 0 && run.response.p50_ns > 0;
        run.ratio_to_probe_p50 = known.then(|| run.response.p50_ns as f64 / probe_p50_ns as f64);
    }
    replication::complete(report);
    metadata::complete(report);
    if report.run(&report.primary_run).is_none() {
        report.primary_run =
            choose_primary(&report.runs).map(|run| run.name.clone()).unwrap_or_default();
    }
    if report.verdict.is_empty() {
        report.verdict = verdict::sentence(report);
    }
}

/// The run that stands for the whole: the loaded one where there is one.
pub(super) fn choose_primary(runs: &[Run]) -> Option<&Run> {
    ["loaded", "open", "idle", "replicated-quorum-loaded", "replicated-local-loaded"]
        .iter()
        .find_map(|name| runs.iter().find(|run| run.name == *name))
        .or_else(|| runs.first())
}

/// Summary of a histogram of nanoseconds.
fn latency_of(histogram: &Histogram<u64>) -> Latency {
    Latency {
        p50_ns: histogram.value_at_quantile(0.5),
        p90_ns: histogram.value_at_quantile(0.9),
        p99_ns: histogram.value_at_quantile(0.99),
        p999_ns: histogram.value_at_quantile(0.999),
        max_ns: histogram.max(),
        mean_ns: histogram.mean() as u64,
    }
}

fn percentile_curve(histogram: &Histogram<u64>) -> Vec<PercentilePoint> {
    histogram
        .iter_quantiles(TICKS_PER_HALF_DISTANCE)
        .map(|step| PercentilePoint {
            percentile: step.quantile_iterated_to() * 100.0,
            value_ns: step.value_iterated_to().min(histogram.max()),
        })
        .collect()
}

fn interval_of(interval: &IntervalHistogram) -> Interval {
    let latency = latency_of(&interval.response);
    Interval {
        start_ns: interval.start_ns,
        duration_ns: interval.duration_ns,
        records: interval.response.len(),
        p50_ns: latency.p50_ns,
        p99_ns: latency.p99_ns,
        p999_ns: latency.p999_ns,
        max_ns: latency.max_ns,
    }
}

fn block_of(start_ns: u64, duration_ns: u64, response: &Histogram<u64>) -> Block {
    Block {
        start_ns,
        duration_ns,
        records: response.len(),
        records_per_second: per_second(response.len(), duration_ns),
        p50_ns: response.value_at_quantile(0.5),
        p99_ns: response.value_at_quantile(0.99),
    }
}

/// Neighbouring intervals become one block; a last one of less than half the length is left out.
fn blocks_of(run_start_ns: u64, intervals: &[IntervalHistogram]) -> Vec<Block> {
    let group = intervals.len().div_ceil(BLOCKS_MAX).max(1);
    let mut blocks: Vec<Block> = intervals
        .chunks(group)
        .map(|chunk| {
            let duration_ns = chunk.iter().map(|interval| interval.duration_ns).sum();
            block_of(run_start_ns + chunk[0].start_ns, duration_ns, &sum_of(chunk))
        })
        .collect();
    if let [first, .., last] = blocks.as_slice()
        && last.duration_ns < first.duration_ns / 2
    {
        blocks.pop();
    }
    blocks
}

fn heat_map_of(intervals: &[IntervalHistogram]) -> Option<HeatMap> {
    let responses = || intervals.iter().map(|interval| &interval.response);
    let lowest = responses().filter(|response| !response.is_empty()).map(|r| r.min()).min()?;
    let highest = responses().map(|response| response.max()).max()?;
    let rows_per_octave = f64::from(HEAT_ROWS_PER_OCTAVE);
    let row_of = |value: u64| ((value.max(1) as f64).log2() * rows_per_octave).floor() as i64;
    let first_row = row_of(lowest);
    let rows = (row_of(highest) - first_row + 1) as usize;

    let group = intervals.len().div_ceil(HEAT_COLUMNS_MAX).max(1);
    let columns = intervals
        .chunks(group)
        .map(|chunk| {
            let mut column = vec![0_u64; rows];
            for interval in chunk {
                for step in interval.response.iter_recorded() {
                    let value = step.value_iterated_to().clamp(lowest, highest);
                    column[(row_of(value) - first_row) as usize] += step.count_at_value();
                }
            }
            column
        })
        .collect();
    let column_ns = intervals[..group.min(intervals.len())].iter().map(|i| i.duration_ns).sum();
    Some(HeatMap {
        column_ns,
        low_ns: (first_row as f64 / rows_per_octave).exp2(),
        rows_per_octave: HEAT_ROWS_PER_OCTAVE,
        rows: rows as u32,
        columns,
    })
}

fn sum_of(intervals: &[IntervalHistogram]) -> Histogram<u64> {
    let mut sum = new_histogram();
    for interval in intervals {
        merge(&mut sum, &interval.response);
    }
    sum
}

fn merge(sum: &mut Histogram<u64>, part: &Histogram<u64>) {
    sum.auto(true);
    sum.add(part).expect("a growing histogram takes every value");
}

fn per_second(count: u64, duration_ns: u64) -> f64 {
    if duration_ns == 0 { 0.0 } else { count as f64 * 1e9 / duration_ns as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn histogram(values: &[u64]) -> Histogram<u64> {
        let mut histogram = new_histogram();
        for value in values {
            histogram.record(*value).unwrap();
        }
        histogram
    }

    #[test]
    fn a_run_is_derived_from_its_histograms() {
        let counted = Run {
            name: "idle".to_owned(),
            record_bytes: 128,
            duration_ns: 250_000_000,
            batches: 2,
            ..Run::default()
        };
        let values = [100_000, 120_000, 130_000, 4_000_000];
        let (run, histograms) = RunBuilder::new(counted, histogram(&values))
            .stage("queue", histogram(&[1_000, 2_000]))
            .interval(0, 100_000_000, histogram(&values[..2]))
            .interval(100_000_000, 100_000_000, histogram(&[]))
            .interval(200_000_000, 40_000_000, histogram(&values[2..]))
            .cpu_time(100_000)
            .finish();
        assert_eq!(run.records, 4);
        assert_eq!(run.records_per_second, 16.0);
        assert_eq!(run.bytes_per_second, 2048);
        assert_eq!(run.records_per_batch, 2.0);
        assert_eq!(run.cpu_ns_per_record, 25_000);
        assert_eq!(run.service, run.response);
        assert_eq!(run.intervals.len(), 3);
        assert_eq!(run.intervals[1].records, 0);
        assert_eq!(run.blocks.len(), 2, "the short last block is left out");
        assert_eq!(run.stages[0].count, 2);
        assert_eq!(histograms.stages.len(), 1);
        assert_eq!(run.percentiles.last().unwrap().percentile, 100.0);

        let heat = run.heat_map.unwrap();
        assert_eq!(heat.columns.len(), 3);
        assert!(heat.columns.iter().all(|column| column.len() == heat.rows as usize));
        assert_eq!(heat.columns.iter().flatten().sum::<u64>(), 4);
        assert!(heat.low_ns <= 100_000.0 && heat.low_ns * 1.2 > 100_000.0);
    }

    #[test]
    fn the_better_probe_method_is_the_yardstick() {
        let slice = |method: &str, start_ns, value| ProbeSliceHistogram {
            method: method.to_owned(),
            start_ns,
            duration_ns: 1_000_000,
            latency: histogram(&[value; 10]),
        };
        let slices = [
            slice("dsync", 0, 100_000),
            slice("fdatasync", 1, 140_000),
            slice("dsync", 2, 150_000),
            slice("fdatasync", 3, 141_000),
        ];
        let (probe, latency) = probe_of(&slices, 1_000);
        assert_eq!(probe.method, "dsync");
        assert_eq!(latency.len(), 20);
        assert_eq!(probe.slices.len(), 4);
        assert!((probe.drift - 0.5).abs() < 0.01, "{}", probe.drift);
    }

    #[test]
    fn an_empty_run_has_no_numbers_and_does_not_panic() {
        let (run, _) = RunBuilder::new(Run::default(), new_histogram())
            .interval(0, 1, new_histogram())
            .cpu_time(5)
            .finish();
        assert_eq!(run.records, 0);
        assert_eq!(run.heat_map, None);
        let (probe, _) = probe_of(&[], 0);
        assert_eq!(probe.p50_ns, 0);
        let mut report = Report { runs: vec![run], ..Report::default() };
        complete(&mut report);
        assert_eq!(report.runs[0].ratio_to_probe_p50, None);
    }
}
