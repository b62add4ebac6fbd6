//! A metadata store of several processes: what was aimed at beside what was measured.

use super::human;
use super::model::{Report, Run, Target};

/// Adds what can be told from the runs that are there.
pub fn complete(report: &mut Report) {
    let mut targets = Vec::new();
    let run = |name: &str| report.run(name).filter(|run| run.records > 0);
    let fast = run("replicated-create-idle");
    if let (Some(fast), Some(probe)) = (fast, run("nodes-probe")) {
        let ratio = p50(fast) / p50(probe);
        targets.push(most("create_topic p50 / p50 of all nodes probing at once", ratio, 1.4, "×"));
    }
    let loaded = run("replicated-create-loaded");
    if let Some(loaded) = loaded {
        let rate = loaded.records_per_second;
        targets.push(least("fast path, many clients: commands/s", rate, 40_000.0, ""));
    }
    let raft_loaded = run("raft-create-loaded");
    if let Some(raft) = raft_loaded {
        let rate = raft.records_per_second;
        targets.push(least("Raft, many clients: commands/s", rate, 20_000.0, ""));
    }
    if let Some(failover) = run("replicated-failover") {
        let seconds = p50(failover) / 1e9;
        targets.push(most("fail-over to the first fast answer, median", seconds, 1.5, "s"));
    }
    if let Some(visible) = run("replicated-visible") {
        let p99 = visible.response.p99_ns as f64 / 1e6;
        targets.push(most("visible on every follower after the answer, p99", p99, 5.0, "ms"));
    }
    let mut claim = |name: &str, figure: f64, bound: f64, upto: f64| {
        let claimed = format!("claimed before: {bound} to {upto}×");
        targets.push(Target { claimed, ..least(name, figure, bound, "×") });
    };
    if let (Some(fast), Some(raft)) = (loaded, raft_loaded) {
        let ratio = fast.records_per_second / raft.records_per_second;
        claim("throughput, many clients, fast path / Raft", ratio, 4.0, 5.0);
    }
    if let (Some(fast), Some(raft)) = (fast, run("raft-create-idle")) {
        claim("latency, one client, p50, Raft / fast path", p50(raft) / p50(fast), 5.0, 25.0);
    }
    report.targets = targets;
}

fn p50(run: &Run) -> f64 {
    run.response.p50_ns.max(1) as f64
}

fn most(name: &str, figure: f64, bound: f64, unit: &str) -> Target {
    let (name, unit) = (name.to_owned(), unit.to_owned());
    Target { name, figure, unit, at_most: Some(bound), met: figure <= bound, ..Target::default() }
}

fn least(name: &str, figure: f64, bound: f64, unit: &str) -> Target {
    let (name, unit) = (name.to_owned(), unit.to_owned());
    Target { name, figure, unit, at_least: Some(bound), met: figure >= bound, ..Target::default() }
}

/// A line for each target, and one for each run that has stages: those, and the flushes of each node.
pub fn lines(report: &Report) -> Vec<String> {
    let of_target = |target: &Target| {
        let value = |value: f64| match target.unit.as_str() {
            "" => human::count(value),
            "×" => human::ratio(value),
            unit => format!("{value:.2} {unit}"),
        };
        let bound = match (target.at_most, target.at_least) {
            (Some(bound), _) => format!("at most {}", value(bound)),
            (_, Some(bound)) if target.claimed.is_empty() => format!("at least {}", value(bound)),
            _ => target.claimed.clone(),
        };
        let met = if target.met { "met" } else { "not met" };
        format!("{}: {} ({bound}): {met}", target.name, value(target.figure))
    };
    let ways = report.runs.iter().filter_map(way);
    report.targets.iter().map(of_target).chain(ways).collect()
}

/// Where a command's time goes, and what it costs each node.
fn way(run: &Run) -> Option<String> {
    let mut counts = Vec::new();
    for node in 1.. {
        let Some(count) = run.extra.get(&format!("node_{node}_flushes")) else { break };
        counts.push(format!("{:.2}", count / run.records.max(1) as f64));
    }
    if counts.is_empty() {
        return None;
    }
    // Through Raft a command waits for two writes, of the log and of the stream, on more than one node.
    let is_shown = |name: &str| run.ack == "local" || ["entry", "applied"].contains(&name);
    let stages = run.stages.iter().filter(|stage| is_shown(&stage.name));
    let stages: Vec<String> =
        stages.map(|stage| format!("{} {}", stage.name, human::duration(stage.p50_ns))).collect();
    let (stages, flushes) = (stages.join(" → "), counts.join(" / "));
    Some(format!("{}, p50: {stages}; flushes of each node per command: {flushes}", run.name))
}

#[cfg(test)]
mod tests {
    use super::super::model::{Latency, Stage};
    use super::*;

    #[test]
    fn targets_are_said_with_their_figure() {
        let run = |name: &str, p50_ns, rate| Run {
            name: name.to_owned(),
            records: 10,
            records_per_second: rate,
            response: Latency { p50_ns, p99_ns: p50_ns, ..Latency::default() },
            ..Run::default()
        };
        let mut fast = run("replicated-create-idle", 130_000, 7_000.0);
        fast.extra =
            [("node_1_flushes".to_owned(), 10.0), ("node_2_flushes".to_owned(), 5.0)].into();
        fast.ack = "local".to_owned();
        let stage =
            |name: &str, p50_ns| Stage { name: name.to_owned(), p50_ns, ..Stage::default() };
        fast.stages = vec![stage("write and flush", 100_000), stage("applied", 12_000)];
        let mut report = Report {
            runs: vec![
                fast,
                run("nodes-probe", 100_000, 10_000.0),
                run("raft-create-idle", 390_000, 2_000.0),
                run("replicated-failover", 1_600_000_000, 1.0),
                run("replicated-visible", 1_000_000, 1.0),
            ],
            ..Report::default()
        };
        complete(&mut report);
        assert_eq!(
            lines(&report),
            [
                "create_topic p50 / p50 of all nodes probing at once: 1.30× (at most 1.40×): met",
                "fail-over to the first fast answer, median: 1.60 s (at most 1.50 s): not met",
                "visible on every follower after the answer, p99: 1.00 ms (at most 5.00 ms): met",
                "latency, one client, p50, Raft / fast path: 3.00× (claimed before: 5 to 25×): not met",
                "replicated-create-idle, p50: write and flush 100 µs → applied 12 µs; flushes of each node per command: 1.00 / 0.50",
            ]
        );
    }
}
