//! `ringwal compare A B`: is B really different from A, or is it noise?
//!
//! Every value is a median over the blocks of a run. A difference counts only if its bootstrap
//! interval leaves out zero *and* it is larger than the noise of A against A and of B against
//! B *and* larger than what the bare device changed by meanwhile. Otherwise the answer is
//! `cannot tell`.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::bootstrap::{self, Random};
use super::human;
use super::model::{Block, Probe, Report, Run};

/// Changes smaller than this are called the same, however certain.
const SAME_BELOW: f64 = 0.03;
/// With fewer blocks on either side there is nothing to resample.
const BLOCKS_MIN: usize = 6;
/// Intended rates further apart than this make latencies incomparable.
const RATE_TOLERANCE: f64 = 0.05;

/// What came of comparing two reports; serializes as the JSON of `compare --json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// "ringwal.compare/1".
    pub schema: String,
    /// Seed of the resampling.
    pub seed: u64,
    /// Some row is worse.
    pub regression: bool,
    /// One row for each metric of each run that both reports have.
    pub rows: Vec<Row>,
    /// What else differs between the two: fields of the environment, versions, the command.
    pub environment: Vec<Difference>,
    /// What to keep in mind, a sentence each.
    pub notes: Vec<String>,
}

/// One metric of one run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Name of the run, or "probe".
    pub run: String,
    /// "records/s", "p50" or "p99".
    pub metric: String,
    /// "1/s" or "ns".
    pub unit: String,
    /// Median over the blocks of A.
    pub a: f64,
    /// Median over the blocks of B.
    pub b: f64,
    /// `b / a - 1`.
    pub change: f64,
    /// Lower end of its 95 % bootstrap interval.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// The larger of A against A and B against B.
    pub noise: f64,
    /// The answer.
    pub verdict: Verdict,
    /// Why it cannot tell, where a reader might wonder.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// The answer for one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// B is better than A by more than noise.
    Better,
    /// B is worse than A by more than noise: a regression.
    Worse,
    /// The difference is certainly too small to matter.
    Same,
    /// The noise is larger than the difference.
    #[serde(rename = "cannot tell")]
    CannotTell,
    /// The bare device: shown, not judged.
    Yardstick,
}

/// Something other than the results that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// Name of the field in `report.json`.
    pub field: String,
    /// Its value in A.
    pub a: String,
    /// Its value in B.
    pub b: String,
}

/// One number of a block, and which way is better.
struct Metric {
    name: &'static str,
    unit: &'static str,
    higher_is_better: bool,
    of: fn(&Block) -> f64,
}

const METRICS: [Metric; 3] = [
    Metric {
        name: "records/s",
        unit: "1/s",
        higher_is_better: true,
        of: |block| block.records_per_second,
    },
    Metric { name: "p50", unit: "ns", higher_is_better: false, of: |block| block.p50_ns as f64 },
    Metric { name: "p99", unit: "ns", higher_is_better: false, of: |block| block.p99_ns as f64 },
];

/// Compares B with A. The same reports and seed give the same answer.
pub fn compare(a: &Report, b: &Report, seed: u64) -> Comparison {
    let random = &mut Random::new(seed);
    let mut rows = Vec::new();
    let probe = probe_row(&a.probe, &b.probe, random);
    let device_change = probe.as_ref().map_or(0.0, |row| row.change);
    rows.extend(probe);
    let mut notes = Vec::new();
    for run_a in &a.runs {
        let Some(run_b) = b.run(&run_a.name) else {
            notes.push(format!("Run {} is only in A.", run_a.name));
            continue;
        };
        let incomparable = incomparable(run_a, run_b);
        if let Some(reason) = &incomparable {
            notes.push(format!("Run {} was made differently: {reason}.", run_a.name));
        }
        for metric in &METRICS {
            let context = Context { device_change, incomparable: incomparable.is_some() };
            rows.extend(metric_row(metric, run_a, run_b, &context, random));
        }
    }
    for run_b in b.runs.iter().filter(|run| a.run(&run.name).is_none()) {
        notes.push(format!("Run {} is only in B.", run_b.name));
    }
    for (name, report) in [("A", a), ("B", b)] {
        if report.interrupted {
            notes.push(format!("{name} was interrupted: its last run is shorter."));
        }
    }
    Comparison {
        schema: "ringwal.compare/1".to_owned(),
        seed,
        regression: rows.iter().any(|row| row.verdict == Verdict::Worse),
        rows,
        environment: differences(a, b),
        notes,
    }
}

/// What bears on every row of a run.
struct Context {
    /// Change of the probe's median latency.
    device_change: f64,
    /// The two runs did not do the same thing.
    incomparable: bool,
}

fn metric_row(
    metric: &Metric,
    run_a: &Run,
    run_b: &Run,
    context: &Context,
    random: &mut Random,
) -> Option<Row> {
    // A block without records has no latency; its rate of zero counts.
    let values = |run: &Run| -> Vec<f64> {
        let used = |block: &&Block| metric.higher_is_better || block.records > 0;
        run.blocks.iter().filter(used).map(metric.of).collect()
    };
    let (a, b) = (values(run_a), values(run_b));
    let mut row = row(&run_a.name, metric.name, metric.unit, &a, &b, random)?;
    let blocks = a.len().min(b.len());
    (row.verdict, row.reason) = judge(&row, blocks, metric.higher_is_better, context);
    Some(row)
}

fn probe_row(a: &Probe, b: &Probe, random: &mut Random) -> Option<Row> {
    let values = |probe: &Probe| -> Vec<f64> {
        let same_method = probe.slices.iter().filter(|slice| slice.method == a.method);
        same_method.filter(|slice| slice.p50_ns > 0).map(|slice| slice.p50_ns as f64).collect()
    };
    let mut row = row("probe", "p50", "ns", &values(a), &values(b), random)?;
    row.verdict = Verdict::Yardstick;
    Some(row)
}

fn row(
    run: &str,
    metric: &str,
    unit: &str,
    a: &[f64],
    b: &[f64],
    random: &mut Random,
) -> Option<Row> {
    let change = bootstrap::change(a, b, random)?;
    let noise_a = bootstrap::noise(a, random).unwrap_or(0.0);
    let noise_b = bootstrap::noise(b, random).unwrap_or(0.0);
    Some(Row {
        run: run.to_owned(),
        metric: metric.to_owned(),
        unit: unit.to_owned(),
        a: bootstrap::median(a)?,
        b: bootstrap::median(b)?,
        change: change.estimate,
        low: change.low,
        high: change.high,
        noise: noise_a.max(noise_b),
        verdict: Verdict::CannotTell,
        reason: String::new(),
    })
}

fn judge(row: &Row, blocks: usize, higher_is_better: bool, context: &Context) -> (Verdict, String) {
    let cannot_tell = |reason: &str| (Verdict::CannotTell, reason.to_owned());
    if context.incomparable {
        return cannot_tell("made differently");
    }
    if blocks < BLOCKS_MIN {
        return cannot_tell("too few blocks");
    }
    let certainly_small = row.low > -SAME_BELOW && row.high < SAME_BELOW;
    if certainly_small && row.noise < SAME_BELOW {
        return (Verdict::Same, String::new());
    }
    if row.change.abs() <= row.noise || (row.low <= 0.0 && 0.0 <= row.high) {
        return cannot_tell("noise is larger");
    }
    if row.change.abs() < SAME_BELOW {
        return (Verdict::Same, String::new());
    }
    let worse = (row.change < 0.0) == higher_is_better;
    let device_worse = context.device_change > 0.0;
    // In latency terms, so that half the rate is twice the time.
    let slower = if higher_is_better { 1.0 / (1.0 + row.change) - 1.0 } else { row.change };
    if worse == device_worse && slower.abs() <= context.device_change.abs() + row.noise {
        return cannot_tell("the bare device changed as much");
    }
    (if worse { Verdict::Worse } else { Verdict::Better }, String::new())
}

fn incomparable(a: &Run, b: &Run) -> Option<String> {
    let counts = [
        ("clients", a.clients, b.clients),
        ("appends in flight", a.in_flight, b.in_flight),
        ("bytes per record", a.record_bytes, b.record_bytes),
        ("followers", u64::from(a.followers), u64::from(b.followers)),
    ];
    if let Some((name, a, b)) = counts.into_iter().find(|(_, a, b)| a != b) {
        return Some(format!("{name} {a} and {b}"));
    }
    if a.ack != b.ack {
        return Some(format!("ack {:?} and {:?}", a.ack, b.ack));
    }
    match (a.rate, b.rate) {
        (None, None) => None,
        (Some(rate_a), Some(rate_b)) if (rate_b / rate_a - 1.0).abs() <= RATE_TOLERANCE => None,
        (rate_a, rate_b) => {
            let shown = |rate: Option<f64>| rate.map_or("none".to_owned(), human::per_second);
            Some(format!(
                "intended rates {} and {}; give both the same --rate",
                shown(rate_a),
                shown(rate_b)
            ))
        }
    }
}

fn differences(a: &Report, b: &Report) -> Vec<Difference> {
    let mut fields =
        vec![("ringwal_version", a.ringwal_version.clone(), b.ringwal_version.clone())];
    fields.push(("command", a.command.clone(), b.command.clone()));
    fields.push(("probe.method", a.probe.method.clone(), b.probe.method.clone()));
    let mut differences: Vec<Difference> = fields
        .into_iter()
        .filter(|(_, a, b)| a != b)
        .map(|(field, a, b)| Difference { field: field.to_owned(), a, b })
        .collect();
    let value_of = |report: &Report| serde_json::to_value(&report.environment);
    let (Ok(a), Ok(b)) = (value_of(a), value_of(b)) else { return differences };
    for (field, a) in a.as_object().into_iter().flatten() {
        let b = &b[field];
        // Loads always differ a little.
        let close_load = field == "load"
            && (a[0].as_f64().unwrap_or(0.0) - b[0].as_f64().unwrap_or(0.0)).abs() < 1.0;
        if a != b && !close_load {
            let text = |value: &serde_json::Value| match value {
                serde_json::Value::String(text) => text.clone(),
                serde_json::Value::Null => "not known".to_owned(),
                other => other.to_string(),
            };
            let field = format!("environment.{field}");
            differences.push(Difference { field, a: text(a), b: text(b) });
        }
    }
    differences
}

impl Comparison {
    /// The comparison as a table for a terminal.
    pub fn table(&self, color: bool) -> String {
        let mut text = "Medians over blocks of time, not the totals of the reports.\n\n".to_owned();
        text += &format!(
            "{:<12} {:<9} {:>9} {:>9} {:>8}  {:<18} {:>7}  {}\n",
            "run", "metric", "A", "B", "change", "95 % interval", "noise", "verdict"
        );
        for row in &self.rows {
            let value = |value: f64| match row.unit.as_str() {
                "ns" => human::duration(value as u64),
                _ => human::count(value),
            };
            let interval = format!("{} … {}", signed(row.low), signed(row.high));
            let (style, verdict) = match row.verdict {
                Verdict::Better => ("32", "better"),
                Verdict::Worse => ("31;1", "WORSE"),
                Verdict::Same => ("0", "same"),
                Verdict::CannotTell => ("33", "cannot tell"),
                Verdict::Yardstick => ("2", "(the yardstick)"),
            };
            let verdict = match row.reason.as_str() {
                "" => verdict.to_owned(),
                reason => format!("{verdict}: {reason}"),
            };
            let verdict = if color { format!("\x1b[{style}m{verdict}\x1b[0m") } else { verdict };
            let _ = writeln!(
                text,
                "{:<12} {:<9} {:>9} {:>9} {:>8}  {interval:<18} {:>7}  {verdict}",
                row.run,
                row.metric,
                value(row.a),
                value(row.b),
                signed(row.change),
                human::percent(row.noise),
            );
        }
        for difference in &self.environment {
            let Difference { field, a, b } = difference;
            let _ = writeln!(text, "differs: {field}: {a} | {b}");
        }
        for note in &self.notes {
            let _ = writeln!(text, "note: {note}");
        }
        text.push_str(if self.regression {
            "B is worse than A.\n"
        } else {
            "No regression that these measurements can tell.\n"
        });
        text
    }
}

fn signed(fraction: f64) -> String {
    let text = human::percent(fraction);
    if fraction > 0.0 { format!("+{text}") } else { text }
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    fn verdicts(comparison: &Comparison, run: &str) -> Vec<Verdict> {
        comparison.rows.iter().filter(|row| row.run == run).map(|row| row.verdict).collect()
    }

    #[test]
    fn a_report_does_not_differ_from_itself() {
        let (a, _) = sample::report();
        let comparison = compare(&a, &a, 1);
        assert!(!comparison.regression);
        assert!(comparison.environment.is_empty());
        for row in &comparison.rows {
            assert!(
                !matches!(row.verdict, Verdict::Better | Verdict::Worse),
                "{}",
                comparison.table(false)
            );
        }
    }

    #[test]
    fn another_measurement_of_the_same_is_no_regression() {
        let (a, _) = sample::report_with(1, 1.0);
        let (b, _) = sample::report_with(2, 1.0);
        assert!(!compare(&a, &b, 1).regression, "{}", compare(&a, &b, 1).table(false));
    }

    #[test]
    fn a_slower_program_on_the_same_device_is_a_regression() {
        let (a, _) = sample::report_with(1, 1.0);
        let (mut b, _) = sample::report_with(2, 1.4);
        let comparison = compare(&a, &b, 1);
        assert!(comparison.regression);
        assert_eq!(verdicts(&comparison, "idle")[1], Verdict::Worse, "{}", comparison.table(false));
        assert!(verdicts(&compare(&b, &a, 1), "idle").contains(&Verdict::Better));

        for slice in &mut b.probe.slices {
            slice.p50_ns = slice.p50_ns * 7 / 5;
        }
        let comparison = compare(&a, &b, 1);
        assert_eq!(verdicts(&comparison, "idle")[1], Verdict::CannotTell);
        assert!(!comparison.regression, "the device slowed down as much");
    }

    #[test]
    fn noise_and_short_runs_cannot_tell() {
        let (a, _) = sample::report_with(1, 1.0);
        let (mut b, _) = sample::report_with(2, 1.2);
        for (index, block) in b.runs[0].blocks.iter_mut().enumerate() {
            block.p50_ns = if index % 3 == 0 { block.p50_ns * 2 } else { block.p50_ns };
        }
        b.runs[1].blocks.truncate(4);
        let comparison = compare(&a, &b, 1);
        assert_eq!(verdicts(&comparison, "idle")[1], Verdict::CannotTell);
        assert_eq!(verdicts(&comparison, "loaded")[1], Verdict::CannotTell);
    }

    #[test]
    fn what_differs_is_listed() {
        let (a, _) = sample::report();
        let mut b = a.clone();
        b.environment.scheduler = "mq-deadline".to_owned();
        b.environment.load[0] = 9.0;
        b.runs[0].record_bytes = 4096;
        b.runs.pop();
        b.interrupted = true;
        let comparison = compare(&a, &b, 1);
        let fields: Vec<&str> = comparison.environment.iter().map(|d| d.field.as_str()).collect();
        assert_eq!(fields, ["environment.load", "environment.scheduler"]);
        assert_eq!(comparison.notes.len(), 3, "{:?}", comparison.notes);
        let table = comparison.table(false);
        assert!(table.contains("scheduler: none | mq-deadline"), "{table}");
        assert!(table.contains("bytes per record 128 and 4096"), "{table}");
        assert!(!table.contains('\x1b'));
        let json = serde_json::to_string(&comparison).unwrap();
        assert!(json.contains("\"cannot tell\""));
        assert_eq!(serde_json::from_str::<Comparison>(&json).unwrap(), comparison);
    }
}
