//! Medians of the runs, who is durable, and who is ahead.

use crate::cell::{CURVE, Latency, Point};
use crate::engine::Kind;
use crate::matrix::Row;
use crate::settings::Plan;
use crate::workload::{Shape, Workload};

/// So much of what was acknowledged must have been covered by flushes; the rest is what was under way when
/// counting began and ended.
const COVERED: f64 = 0.98;

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
    /// The ranked ones first, best first; of an open loop by engine and rate.
    pub outcomes: Vec<Outcome>,
}

/// One engine in one workload, at one rate.
pub struct Outcome {
    /// Its name.
    pub engine: &'static str,
    /// Who it is.
    pub kind: Kind,
    /// Its callers are no threads.
    pub is_looped: bool,
    /// Whether flushes cover what it acknowledged, in all runs and at all rates. A replay does not show it:
    /// there it is so if it is in the other workloads.
    pub durable: bool,
    /// Medians over the runs, field by field.
    pub median: Point,
    /// The runs.
    pub runs: Vec<Point>,
    /// Runs that were asked for.
    repeat: usize,
    /// Why there are fewer runs than asked for.
    pub error: Option<String>,
}

impl Summary {
    /// Of all runs.
    pub fn of(plan: &Plan, rows: Vec<Row>) -> Summary {
        let tables = plan.workloads.iter().map(|&workload| {
            let rows = rows.iter().filter(|row| row.workload == workload);
            let outcomes = rows.flat_map(|row| outcomes(plan, row));
            Table { workload, outcomes: outcomes.collect() }
        });
        let mut tables: Vec<Table> = tables.collect();
        judge_replays(&mut tables);
        tables.iter_mut().for_each(Table::sort);
        Summary {
            tables,
            contenders: plan.contenders.iter().map(|c| (c.name, c.how, c.kind)).collect(),
            repeat: plan.repeat,
        }
    }
}

/// One for each rate.
fn outcomes(plan: &Plan, row: &Row) -> Vec<Outcome> {
    let contender = &plan.contenders[row.contender];
    let all = || row.cells.iter().flat_map(|cell| &cell.points);
    let durable = all().next().is_some() && all().all(is_durable);
    let outcome = |runs: Vec<Point>| Outcome {
        engine: contender.name,
        kind: contender.kind,
        is_looped: contender.is_looped,
        durable,
        median: median(&runs),
        runs,
        repeat: plan.repeat,
        error: row.errors.first().cloned(),
    };
    let rates = row.cells.iter().map(|cell| cell.points.len()).max().unwrap_or(0);
    let at = |position: usize| row.cells.iter().filter_map(move |cell| cell.points.get(position));
    (0..rates.max(1)).map(|position| outcome(at(position).cloned().collect())).collect()
}

/// A killed process leaves its page cache, so that a replay says nothing about the device.
fn judge_replays(tables: &mut [Table]) {
    let is_replay = |table: &&Table| table.workload.shape == Shape::Replay;
    let others = tables.iter().filter(|table| !is_replay(table)).flat_map(|table| &table.outcomes);
    let not_durable: Vec<_> =
        others.filter(|other| !other.durable).map(|other| other.engine).collect();
    for table in tables.iter_mut().filter(|table| table.workload.shape == Shape::Replay) {
        for outcome in &mut table.outcomes {
            outcome.durable &= !not_durable.contains(&outcome.engine);
        }
    }
}

impl Outcome {
    /// Whether it is compared with others.
    pub fn is_ranked(&self) -> bool {
        self.durable && self.kind.is_ranked()
    }

    /// Whether most runs came to this rate of an open loop, and the median keeps it.
    pub fn keeps_rate(&self) -> bool {
        self.runs.len() * 2 > self.repeat && self.median.keeps_rate()
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
    /// Best first; of an open loop by engine and rate.
    fn sort(&mut self) {
        if self.is_open() {
            self.outcomes.sort_by_key(|outcome| (outcome.engine, outcome.median.rate));
            return;
        }
        self.outcomes.sort_by(|a, b| b.standing().total_cmp(&a.standing()));
        self.outcomes.sort_by_key(|outcome| !outcome.is_ranked());
    }

    /// The durable peer with the most operations per second.
    pub fn best_peer(&self) -> Option<&Outcome> {
        self.ranked(Kind::Peer).next()
    }

    /// Ranked outcomes of one kind, best first.
    pub fn ranked(&self, kind: Kind) -> impl Iterator<Item = &Outcome> {
        let ranked = self.outcomes.iter().filter(|outcome| outcome.is_ranked());
        ranked.filter(move |outcome| outcome.kind == kind)
    }

    /// Of an open loop: one outcome of each engine, with the highest rate that it keeps, highest first.
    pub fn knees(&self) -> Vec<(&Outcome, u64)> {
        let of_engines = self.outcomes.chunk_by(|a, b| a.engine == b.engine);
        let mut knees: Vec<_> = of_engines
            .map(|outcomes| {
                let kept = outcomes.iter().filter(|outcome| outcome.keeps_rate());
                (&outcomes[0], kept.filter_map(|outcome| outcome.median.rate).max().unwrap_or(0))
            })
            .collect();
        knees.sort_by_key(|(_, knee)| std::cmp::Reverse(*knee));
        knees
    }

    /// What an engine did at a rate.
    pub fn at_rate(&self, engine: &str, rate: u64) -> Option<&Outcome> {
        let mut outcomes = self.outcomes.iter();
        outcomes.find(|outcome| outcome.engine == engine && outcome.median.rate == Some(rate))
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

/// Acknowledgements that flushes cover: the device's own count, or where it has none the calls.
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
