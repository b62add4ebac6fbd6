//! Service level objectives on the command line: `p99<2ms`, `open:p99.9<=5ms,max<50ms`.

use std::fmt;

use anyhow::{Result, bail};

use super::human;
use super::model::{Latency, Report, Run};

/// One upper bound on a response latency.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Objective {
    /// The run it is about; without one, every run whose callers wait for each record (see
    /// [`evaluate`]).
    pub run: Option<String>,
    /// What is bounded.
    pub metric: Metric,
    /// The bound.
    pub limit_ns: u64,
    /// Whether the bound itself is still good: `<=`.
    pub inclusive: bool,
}

/// A number of the response summary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metric {
    /// Median.
    P50,
    /// 90th percentile.
    P90,
    /// 99th percentile.
    P99,
    /// 99.9th percentile.
    P999,
    /// The slowest.
    Max,
    /// Arithmetic mean.
    Mean,
}

/// An objective that a run did not meet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Miss {
    /// Name of the run.
    pub run: String,
    /// What it should have met.
    pub objective: Objective,
    /// What it did; `None` if it was not measured.
    pub measured_ns: Option<u64>,
}

const METRICS: [(&str, Metric); 7] = [
    ("p50", Metric::P50),
    ("p90", Metric::P90),
    ("p99", Metric::P99),
    ("p99.9", Metric::P999),
    ("p999", Metric::P999),
    ("max", Metric::Max),
    ("mean", Metric::Mean),
];

/// Parses objectives joined by commas.
///
/// # Errors
/// Names the part that is not an objective and what one looks like.
pub fn parse(text: &str) -> Result<Vec<Objective>> {
    text.split(',').map(|part| parse_objective(part.trim())).collect()
}

fn parse_objective(text: &str) -> Result<Objective> {
    let Some((left, right)) = text.split_once('<') else {
        bail!("{text:?} is not an objective: write METRIC<TIME, such as p99<2ms");
    };
    let (inclusive, limit) = match right.strip_prefix('=') {
        Some(limit) => (true, limit),
        None => (false, right),
    };
    let (run, metric) = match left.rsplit_once(':') {
        Some((run, metric)) if !run.trim().is_empty() => (Some(run.trim().to_owned()), metric),
        Some(_) => bail!("{text:?} has no run before the colon: write loaded:p99<2ms"),
        None => (None, left),
    };
    let metric = metric.trim().to_ascii_lowercase();
    let Some((_, metric)) = METRICS.iter().find(|(name, _)| *name == metric) else {
        let names: Vec<&str> = METRICS.iter().map(|(name, _)| *name).collect();
        bail!("{metric:?} in {text:?} is not measured: use one of {}", names.join(", "));
    };
    Ok(Objective { run, metric: *metric, limit_ns: parse_time(limit.trim(), text)?, inclusive })
}

fn parse_time(time: &str, objective: &str) -> Result<u64> {
    let digits = time.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(time.len());
    let (number, unit) = time.split_at(digits);
    let unit_ns = match unit.trim() {
        "ns" => 1.0,
        "us" | "µs" | "μs" => 1e3,
        "ms" => 1e6,
        "s" => 1e9,
        "" => bail!("{time:?} in {objective:?} has no unit: use ns, us, ms or s"),
        other => bail!("unit {other:?} in {objective:?} is unknown: use ns, us, ms or s"),
    };
    match number.parse::<f64>() {
        Ok(number) if number > 0.0 => Ok((number * unit_ns).round() as u64),
        _ => bail!("{number:?} in {objective:?} is not a number above zero"),
    }
}

/// The misses of a report; empty when every objective is met.
///
/// An objective without a run holds for every run whose callers wait for each record, so not
/// for those that keep many appends in flight to find the throughput at saturation: these are
/// named (`window:p99<50ms`) if they are meant. An objective that no measured run answers is
/// missed.
pub fn evaluate(objectives: &[Objective], report: &Report) -> Vec<Miss> {
    let mut misses = Vec::new();
    for objective in objectives {
        let runs: Vec<&Run> = report
            .runs
            .iter()
            .filter(|run| run.records > 0)
            .filter(|run| match &objective.run {
                Some(name) => run.name == *name,
                None => run.rate.is_some() || run.in_flight == 1,
            })
            .collect();
        if runs.is_empty() {
            let run = objective.run.clone().unwrap_or_else(|| "any run".to_owned());
            misses.push(Miss { run, objective: objective.clone(), measured_ns: None });
        }
        for run in runs {
            let measured_ns = objective.metric.of(&run.response);
            if !objective.is_met_by(measured_ns) {
                misses.push(Miss {
                    run: run.name.clone(),
                    objective: objective.clone(),
                    measured_ns: Some(measured_ns),
                });
            }
        }
    }
    misses
}

impl Metric {
    fn of(self, latency: &Latency) -> u64 {
        match self {
            Metric::P50 => latency.p50_ns,
            Metric::P90 => latency.p90_ns,
            Metric::P99 => latency.p99_ns,
            Metric::P999 => latency.p999_ns,
            Metric::Max => latency.max_ns,
            Metric::Mean => latency.mean_ns,
        }
    }
}

impl Objective {
    fn is_met_by(&self, measured_ns: u64) -> bool {
        measured_ns < self.limit_ns || (self.inclusive && measured_ns == self.limit_ns)
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Metric::P50 => "p50",
            Metric::P90 => "p90",
            Metric::P99 => "p99",
            Metric::P999 => "p99.9",
            Metric::Max => "max",
            Metric::Mean => "mean",
        })
    }
}

impl fmt::Display for Objective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(run) = &self.run {
            write!(f, "{run}:")?;
        }
        let sign = if self.inclusive { "<=" } else { "<" };
        write!(f, "{}{sign}{}", self.metric, human::duration(self.limit_ns))
    }
}

impl fmt::Display for Miss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.measured_ns {
            Some(measured_ns) => {
                let measured = human::duration(measured_ns);
                write!(f, "{}: {} was {measured}", self.run, self.objective.metric)?;
            }
            None => write!(f, "{}: not measured", self.run)?,
        }
        write!(f, ", objective {}", self.objective)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(name: &str, p99_ns: u64, in_flight: u64) -> Run {
        Run {
            name: name.to_owned(),
            records: 100,
            in_flight,
            response: Latency { p99_ns, max_ns: p99_ns * 2, ..Latency::default() },
            ..Run::default()
        }
    }

    #[test]
    fn objectives_are_parsed_with_units_and_runs() {
        let parsed = parse("p99<2ms, open:p99.9 <= 1.5 ms,max<50us").unwrap();
        let shown: Vec<String> = parsed.iter().map(Objective::to_string).collect();
        assert_eq!(shown, ["p99<2 ms", "open:p99.9<=1.50 ms", "max<50 µs"]);
        assert_eq!(parsed[1].limit_ns, 1_500_000);
        assert_eq!(parse("P999<1s").unwrap()[0].metric, Metric::P999);
    }

    #[test]
    fn nonsense_is_named() {
        for (text, message) in [
            ("fast", "is not an objective: write METRIC<TIME"),
            ("", "is not an objective"),
            ("p99>2ms", "is not an objective"),
            ("p98<2ms", "\"p98\" in \"p98<2ms\" is not measured: use one of p50, p90"),
            ("p99<2", "has no unit"),
            ("p99<2h", "unit \"h\""),
            ("p99<ms", "is not a number above zero"),
            ("p99<1.2.3ms", "is not a number above zero"),
            (":p99<2ms", "has no run before the colon"),
            ("p99<2ms,", "is not an objective"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(message), "{text}: {error}");
        }
    }

    #[test]
    fn misses_name_run_and_value() {
        let report = Report {
            runs: vec![run("idle", 300_000, 1), run("loaded", 2_000_000, 1), run("window", 1, 64)],
            ..Report::default()
        };
        let missed = |text: &str| -> Vec<String> {
            evaluate(&parse(text).unwrap(), &report).iter().map(Miss::to_string).collect()
        };
        assert_eq!(missed("p99<2ms"), ["loaded: p99 was 2 ms, objective p99<2 ms"]);
        assert!(missed("p99<=2ms,idle:max<1ms").is_empty());
        assert!(missed("window:p99<1ms").is_empty());
        assert_eq!(missed("open:p50<1s"), ["open: not measured, objective open:p50<1 s"]);
    }
}
