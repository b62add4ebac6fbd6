//! Medians of the runs, who is durable, and who is ahead.

use crate::cell::{CURVE, Latency, Point};
use crate::engine::{Contender, Kind};
use crate::matrix::Row;
use crate::settings::Plan;
use crate::workload::{Shape, Workload};

/// So much of what was acknowledged must have been covered by flushes; the rest is what was under way when
/// counting began and ended.
const COVERED: f64 = 0.98;
/// A rate is kept when so much of it is reached.
const REACHED: f64 = 0.97;

/// Everything that was found.
pub struct Summary {
    /// The engines, with how each makes an append durable.
    pub contenders: Vec<(&'static str, &'static str, Kind)>,
    /// By workload, in the order of the plan.
    pub tables: Vec<Table>,
    /// Runs of each.
    pub repeat: usize,
}

/// One workload.
pub struct Table {
    /// Which.
    pub workload: Workload,
    /// Best first: the ranked ones, then the others.
    pub outcomes: Vec<Outcome>,
}

/// One engine in one workload, at one rate.
pub struct Outcome {
    /// Its name.
    pub engine: &'static str,
    /// Who it is.
    pub kind: Kind,
    /// Whether flushes cover what it acknowledged.
    pub durable: bool,
    /// Medians over the runs, field by field.
    pub median: Point,
    /// The runs.
    pub runs: Vec<Point>,
    /// Why there are fewer runs than asked for.
    pub error: Option<String>,
}

impl Summary {
    /// Of all runs.
    pub fn of(plan: &Plan, rows: Vec<Row>) -> Summary {
        let tables = plan.workloads.iter().map(|&workload| {
            let rows = rows.iter().filter(|row| row.workload == workload);
            let mut outcomes: Vec<_> =
                rows.flat_map(|row| outcomes(&plan.contenders[row.contender], row)).collect();
            // Rates stay together in their order; what is not an open loop has one.
            outcomes.sort_by(|a, b| b.standing().total_cmp(&a.standing()));
            outcomes.sort_by_key(|outcome| !outcome.is_ranked());
            Table { workload, outcomes }
        });
        Summary {
            tables: tables.collect(),
            contenders: plan.contenders.iter().map(|c| (c.name, c.how, c.kind)).collect(),
            repeat: plan.repeat,
        }
    }
}

fn outcomes(contender: &Contender, row: &Row) -> Vec<Outcome> {
    let error = row.errors.first().cloned();
    let points = row.cells.iter().map(|cell| cell.points.len()).max().unwrap_or(0);
    let outcome = |runs: Vec<Point>| Outcome {
        engine: contender.name,
        kind: contender.kind,
        durable: !runs.is_empty() && runs.iter().all(is_durable),
        median: median(&runs),
        runs,
        error: error.clone(),
    };
    if points == 0 {
        return vec![outcome(Vec::new())];
    }
    let at = |position: usize| row.cells.iter().filter_map(move |cell| cell.points.get(position));
    (0..points).map(|position| outcome(at(position).cloned().collect())).collect()
}

impl Outcome {
    /// Whether it is compared with others.
    pub fn is_ranked(&self) -> bool {
        self.durable && self.kind.is_ranked()
    }

    /// Whether it keeps the rate of an open loop.
    pub fn keeps_rate(&self) -> bool {
        let rate = self.median.rate.unwrap_or(0) as f64;
        self.median.operations_per_second >= rate * REACHED
    }

    fn standing(&self) -> f64 {
        self.median.operations_per_second
    }

    /// Half the distance between the slowest and the fastest run, as a share of the median.
    pub fn spread(&self) -> f64 {
        let speeds = self.runs.iter().map(|run| run.operations_per_second);
        let (low, high) = speeds.fold((f64::MAX, 0.0_f64), |(l, h), s| (l.min(s), h.max(s)));
        if self.runs.is_empty() || self.standing() == 0.0 {
            return 0.0;
        }
        (high - low) / 2.0 / self.standing()
    }
}

impl Table {
    /// The durable peer with the most operations per second.
    pub fn best_peer(&self) -> Option<&Outcome> {
        self.ranked(Kind::Peer).next()
    }

    /// Ranked outcomes of one kind, best first.
    pub fn ranked(&self, kind: Kind) -> impl Iterator<Item = &Outcome> {
        let ranked = self.outcomes.iter().filter(|outcome| outcome.is_ranked());
        ranked.filter(move |outcome| outcome.kind == kind)
    }

    /// Of an open loop: engines, with the highest rate that each keeps.
    pub fn knees(&self) -> Vec<(&'static str, Kind, u64)> {
        let mut knees: Vec<(&'static str, Kind, u64)> = Vec::new();
        for outcome in &self.outcomes {
            let rate = outcome.median.rate.filter(|_| outcome.keeps_rate()).unwrap_or(0);
            match knees.iter_mut().find(|(engine, ..)| *engine == outcome.engine) {
                Some((.., knee)) => *knee = rate.max(*knee),
                None => knees.push((outcome.engine, outcome.kind, rate)),
            }
        }
        knees.sort_by_key(|(.., knee)| std::cmp::Reverse(*knee));
        knees
    }

    /// What an engine did at a rate.
    pub fn at_rate(&self, engine: &str, rate: u64) -> Option<&Outcome> {
        let of_engine = self.outcomes.iter().filter(|outcome| outcome.engine == engine);
        of_engine.into_iter().find(|outcome| outcome.median.rate == Some(rate))
    }

    /// The rates that were tried, lowest first.
    pub fn rates(&self) -> Vec<u64> {
        let mut rates: Vec<u64> =
            self.outcomes.iter().filter_map(|outcome| outcome.median.rate).collect();
        rates.sort_unstable();
        rates.dedup();
        rates
    }

    /// Whether it is an open loop.
    pub fn is_open(&self) -> bool {
        self.workload.shape == Shape::Open
    }
}

/// Acknowledgements that flushes cover: the device's own count, or where it has none the calls. A replay has none;
/// there every record came back.
fn is_durable(point: &Point) -> bool {
    if point.covered_by_flush == 0 {
        return true;
    }
    let flushes = point.device_flushes_per_operation.unwrap_or(point.flush_calls_per_operation);
    flushes * point.covered_by_flush as f64 >= COVERED
}

fn median(runs: &[Point]) -> Point {
    let of = |figure: &dyn Fn(&Point) -> Option<f64>| middle(runs.iter().filter_map(figure));
    let number = |figure: &dyn Fn(&Point) -> f64| of(&|run| Some(figure(run))).unwrap_or(0.0);
    let latency = |figure: &dyn Fn(&Latency) -> u64| {
        of(&|run| run.latency.as_ref().map(|latency| figure(latency) as f64))
            .map(|value| value as u64)
    };
    Point {
        rate: runs.first().and_then(|run| run.rate),
        operations_per_second: number(&|run| run.operations_per_second),
        latency: latency(&|latency| latency.p50_ns).map(|p50_ns| Latency {
            p50_ns,
            p99_ns: latency(&|latency| latency.p99_ns).unwrap_or(0),
            p999_ns: latency(&|latency| latency.p999_ns).unwrap_or(0),
            max_ns: latency(&|latency| latency.max_ns).unwrap_or(0),
            curve_ns: (0..CURVE.len())
                .map(|at| latency(&|l| l.curve_ns.get(at).copied().unwrap_or(0)).unwrap_or(0))
                .collect(),
        }),
        cpu_ns_per_operation: number(&|run| run.cpu_ns_per_operation),
        device_flushes_per_operation: of(&|run| run.device_flushes_per_operation),
        flush_calls_per_operation: number(&|run| run.flush_calls_per_operation),
        resident_bytes: number(&|run| run.resident_bytes as f64) as u64,
        log_bytes_per_payload_byte: of(&|run| run.log_bytes_per_payload_byte),
        disk_bytes_per_payload_byte: of(&|run| run.disk_bytes_per_payload_byte),
        covered_by_flush: runs.first().map_or(0, |run| run.covered_by_flush),
        slices: runs.first().map(|run| run.slices.clone()).unwrap_or_default(),
    }
}

/// The middle one; of an even number the lower of the two.
fn middle(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len().checked_sub(1)? / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(device_flushes: Option<f64>, calls: f64, clients: u64) -> Point {
        Point {
            device_flushes_per_operation: device_flushes,
            flush_calls_per_operation: calls,
            covered_by_flush: clients,
            ..Point::default()
        }
    }

    #[test]
    fn one_flush_covers_what_is_under_way_and_no_more() {
        assert!(is_durable(&point(Some(1.0), 1.0, 1)));
        assert!(!is_durable(&point(Some(0.5), 1.0, 1)), "calls that did not reach the device");
        assert!(is_durable(&point(Some(1.0 / 64.0), 0.0, 64)), "calls that were not seen");
        assert!(!is_durable(&point(Some(1.0 / 65.5), 1.0, 64)));
        assert!(is_durable(&point(None, 1.0, 1)));
        assert!(!is_durable(&point(None, 0.0, 1000)));
    }

    #[test]
    fn the_median_is_one_of_the_runs() {
        assert_eq!(middle([3.0, 1.0, 2.0].into_iter()), Some(2.0));
        assert_eq!(middle([4.0, 1.0, 2.0, 3.0].into_iter()), Some(2.0));
        assert_eq!(middle(std::iter::empty()), None);
    }
}
