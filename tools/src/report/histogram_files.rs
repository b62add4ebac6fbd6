//! `latency.hgrm` and `latency.hlog`: whole histograms in the formats of HdrHistogram,
//! for its viewers and log processors.

use std::fmt::Write as _;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context as _, Result, anyhow};
use hdrhistogram::Histogram;
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriter, IntervalLogWriterBuilder, Tag};

/// The log writer these files use.
type Log<'a, 'b> = IntervalLogWriter<'a, 'b, Vec<u8>, V2DeflateSerializer>;

/// Points per halving of the distance to 100 %, the customary number.
const TICKS_PER_HALF_DISTANCE: u32 = 5;

/// The histograms behind a report. `report.json` holds only what was derived from them.
#[derive(Debug, Default)]
pub struct HistogramData {
    /// One entry per run, in the order of the report.
    pub runs: Vec<RunHistograms>,
    /// The probe's better method.
    pub probe: Option<Histogram<u64>>,
}

/// The histograms of one run, all in nanoseconds.
#[derive(Debug)]
pub struct RunHistograms {
    /// Name of the run.
    pub name: String,
    /// Since the measurement began.
    pub start_ns: u64,
    /// Time measured.
    pub duration_ns: u64,
    /// From the intended start to the receipt, the whole run.
    pub response: Histogram<u64>,
    /// From the actual start to the receipt, where it differs.
    pub service: Option<Histogram<u64>>,
    /// Stages by name.
    pub stages: Vec<(String, Histogram<u64>)>,
    /// `response` over time; the last may be shorter.
    pub intervals: Vec<IntervalHistogram>,
}

/// What was received in one interval of a run.
#[derive(Debug)]
pub struct IntervalHistogram {
    /// Since the run began.
    pub start_ns: u64,
    /// Its length.
    pub duration_ns: u64,
    /// Response latencies.
    pub response: Histogram<u64>,
}

/// The text of a `.hgrm` file, as HdrHistogram's `outputPercentileDistribution` prints it,
/// with values in microseconds.
pub fn percentile_distribution(histogram: &Histogram<u64>) -> String {
    const NS_PER_UNIT: f64 = 1000.0;
    let mut text = String::from("       Value     Percentile TotalCount 1/(1-Percentile)\n\n");
    let mut total = 0;
    for step in histogram.iter_quantiles(TICKS_PER_HALF_DISTANCE) {
        total += step.count_since_last_iteration();
        let value = step.value_iterated_to().min(histogram.max()) as f64 / NS_PER_UNIT;
        let quantile = step.quantile_iterated_to();
        let _ = write!(text, "{value:12.3} {quantile:2.12} {total:10}");
        if quantile < 1.0 {
            let _ = write!(text, " {:14.2}", 1.0 / (1.0 - quantile));
        }
        text.push('\n');
    }
    let _ = writeln!(
        text,
        "#[Mean    = {:12.3}, StdDeviation   = {:12.3}]",
        histogram.mean() / NS_PER_UNIT,
        histogram.stdev() / NS_PER_UNIT
    );
    let _ = writeln!(
        text,
        "#[Max     = {:12.3}, Total count    = {:12}]",
        histogram.max() as f64 / NS_PER_UNIT,
        histogram.len()
    );
    let _ = writeln!(
        text,
        "#[Buckets = {:12}, SubBuckets     = {:12}]",
        histogram.buckets(),
        (2 * 10_u32.pow(u32::from(histogram.sigfig()))).next_power_of_two()
    );
    text
}

/// The bytes of a `.hlog` file: the primary run's response over time is untagged; the other
/// runs, service times, stages and the probe are tagged `run.response`, `run.service`,
/// `run.stage.name` and `probe`. Values are nanoseconds, interval maxima milliseconds.
pub fn interval_log(
    data: &HistogramData,
    started_unix_ns: u64,
    primary_run: &str,
) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut serializer = V2DeflateSerializer::new();
    IntervalLogWriterBuilder::new()
        .add_comment("[Response latencies in nanoseconds, written by ringwal]")
        .add_comment("[Histogram log format version 1.3]")
        .with_start_time(UNIX_EPOCH + Duration::from_nanos(started_unix_ns))
        .begin_log_with(&mut bytes, &mut serializer)?;
    bytes.extend_from_slice(
        b"\"StartTimestamp\",\"Interval_Length\",\"Interval_Max\",\"Interval_Compressed_Histogram\"\n",
    );
    let mut log = IntervalLogWriterBuilder::new()
        .with_max_value_divisor(1e6)
        .begin_log_with(&mut bytes, &mut serializer)?;
    for run in &data.runs {
        interval_log_of_run(&mut log, run, run.name == primary_run)
            .with_context(|| format!("latency.hlog: run {}", run.name))?;
    }
    if let Some(probe) = &data.probe {
        let end = data.runs.iter().map(|run| run.start_ns + run.duration_ns).max().unwrap_or(0);
        write_histogram(&mut log, probe, 0, end, Some("probe"))?;
    }
    Ok(bytes)
}

fn interval_log_of_run(log: &mut Log<'_, '_>, run: &RunHistograms, primary: bool) -> Result<()> {
    let tag = format!("{}.response", run.name);
    let tag = (!primary).then_some(tag.as_str());
    for interval in &run.intervals {
        let start_ns = run.start_ns + interval.start_ns;
        write_histogram(log, &interval.response, start_ns, interval.duration_ns, tag)?;
    }
    if run.intervals.is_empty() {
        write_histogram(log, &run.response, run.start_ns, run.duration_ns, tag)?;
    }
    if let Some(service) = &run.service {
        let tag = format!("{}.service", run.name);
        write_histogram(log, service, run.start_ns, run.duration_ns, Some(&tag))?;
    }
    for (name, stage) in &run.stages {
        let tag = format!("{}.stage.{name}", run.name);
        write_histogram(log, stage, run.start_ns, run.duration_ns, Some(&tag))?;
    }
    Ok(())
}

fn write_histogram(
    log: &mut Log<'_, '_>,
    histogram: &Histogram<u64>,
    start_ns: u64,
    duration_ns: u64,
    tag: Option<&str>,
) -> Result<()> {
    let tag = tag.map(|text| text.replace([' ', ',', '\r', '\n'], "-"));
    let tag = tag.as_deref().and_then(Tag::new);
    let (start, duration) = (Duration::from_nanos(start_ns), Duration::from_nanos(duration_ns));
    log.write_histogram(histogram, start, duration, tag).map_err(|error| anyhow!("{error}"))
}

#[cfg(test)]
mod tests {
    use hdrhistogram::serialization::Deserializer;
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

    use super::*;
    use crate::report::sample;

    #[test]
    fn percentile_text_counts_everything_and_ends_at_the_maximum() {
        let mut histogram = crate::report::new_histogram();
        for value in 1..=1000 {
            histogram.record(value * 1000).unwrap();
        }
        let text = percentile_distribution(&histogram);
        assert!(text.starts_with("       Value     Percentile TotalCount 1/(1-Percentile)\n\n"));
        let last = text.lines().rfind(|line| !line.starts_with('#')).unwrap();
        let fields: Vec<&str> = last.split_whitespace().collect();
        assert_eq!(fields[1..], ["1.000000000000", "1000"]);
        assert!(text.contains("Total count    =         1000]"), "{text}");
    }

    #[test]
    fn the_log_reads_back_with_every_record() {
        use base64::Engine as _;
        let (report, data) = sample::report();
        let bytes = interval_log(&data, report.started_unix_ns, &report.primary_run).unwrap();
        let mut untagged = 0;
        let mut tags = std::collections::BTreeSet::new();
        for entry in IntervalLogIterator::new(&bytes) {
            let LogEntry::Interval(interval) = entry.unwrap() else { continue };
            let encoded = base64::engine::general_purpose::STANDARD
                .decode(interval.encoded_histogram())
                .unwrap();
            let histogram: Histogram<u64> =
                Deserializer::new().deserialize(&mut encoded.as_slice()).unwrap();
            match interval.tag() {
                None => untagged += histogram.len(),
                Some(tag) => drop(tags.insert(tag.as_str().to_owned())),
            }
        }
        assert_eq!(untagged, report.primary().unwrap().records);
        assert!(tags.contains("idle.response"), "{tags:?}");
        assert!(tags.contains("open.service"), "{tags:?}");
        assert!(tags.contains("loaded.stage.write-and-flush"), "{tags:?}");
        assert!(tags.contains("probe"), "{tags:?}");
    }
}
