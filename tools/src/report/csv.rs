//! The same numbers for spreadsheets: integers in ns, one header line, no unit conversion.

use std::fmt::Write as _;

use super::model::{PercentilePoint, Report};

/// Percentile curves: `run,series,percentile,value_ns`.
pub fn latency(report: &Report) -> String {
    let mut text = String::from("run,series,percentile,value_ns\n");
    for run in &report.runs {
        latency_of_series(&mut text, &run.name, "response", &run.percentiles);
        latency_of_series(&mut text, &run.name, "service", &run.service_percentiles);
    }
    latency_of_series(&mut text, "probe", &report.probe.method, &report.probe.percentiles);
    text
}

fn latency_of_series(text: &mut String, run: &str, series: &str, points: &[PercentilePoint]) {
    for point in points {
        let _ = writeln!(
            text,
            "{},{},{},{}",
            field(run),
            field(series),
            point.percentile,
            point.value_ns
        );
    }
}

/// Intervals of every run.
pub fn time_series(report: &Report) -> String {
    let mut text = String::from(
        "run,start_ns,duration_ns,records,records_per_second,p50_ns,p99_ns,p999_ns,max_ns\n",
    );
    for run in &report.runs {
        for interval in &run.intervals {
            let rate = interval.records as f64 * 1e9 / interval.duration_ns.max(1) as f64;
            let _ = writeln!(
                text,
                "{},{},{},{},{rate:.1},{},{},{},{}",
                field(&run.name),
                interval.start_ns,
                interval.duration_ns,
                interval.records,
                interval.p50_ns,
                interval.p99_ns,
                interval.p999_ns,
                interval.max_ns
            );
        }
    }
    text
}

fn field(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn every_line_has_the_columns_of_the_header() {
        let (report, _) = sample::report();
        for (text, columns) in [(latency(&report), 4), (time_series(&report), 9)] {
            assert!(text.lines().count() > 20);
            for line in text.lines() {
                assert_eq!(line.split(',').count(), columns, "{line}");
            }
        }
    }

    #[test]
    fn names_with_commas_are_quoted() {
        assert_eq!(field("a,\"b\""), "\"a,\"\"b\"\"\"");
    }
}
