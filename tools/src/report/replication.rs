//! What replication costs: ratios between runs of the same measurement, and the way of a record
//! through a follower.

use super::human;
use super::model::{Report, Run};

/// Names in [`Run::extra`].
const TO_LOCAL: &str = "p50_ratio_to_local";
const TO_ALONE: &str = "p50_ratio_to_alone";
const RATE_TO_LOCAL: &str = "records_per_second_ratio_to_local";
const RATE_TO_ALONE: &str = "records_per_second_ratio_to_alone";
const WAKE_UP: &str = "wake_up_p50_ns";

const STAGES: [&str; 5] =
    ["send", "network and queue", "follower durable", "reported", "committed"];

/// Sets each replicated run beside the same one with `Ack::Local`, and without followers.
pub fn complete(report: &mut Report) {
    let runs: Vec<(String, u64, f64)> = report
        .runs
        .iter()
        .map(|run| (run.name.clone(), run.response.p50_ns, run.records_per_second))
        .collect();
    for run in &mut report.runs {
        let Some((ack, workload)) = parts(&run.name) else { continue };
        let local = (ack != "local").then(|| format!("replicated-local-{workload}"));
        let others = [
            (local, TO_LOCAL, RATE_TO_LOCAL),
            (Some(workload.to_owned()), TO_ALONE, RATE_TO_ALONE),
        ];
        let (p50_ns, rate) = (run.response.p50_ns, run.records_per_second);
        for (other, p50_name, rate_name) in others {
            let other = runs.iter().find(|(name, ..)| Some(name) == other.as_ref());
            if let Some((_, other_p50_ns, other_rate)) = other
                && *other_p50_ns > 0
                && *other_rate > 0.0
            {
                run.extra.insert(p50_name.to_owned(), p50_ns as f64 / *other_p50_ns as f64);
                run.extra.insert(rate_name.to_owned(), rate / other_rate);
            }
        }
        if let Some(wake_up_ns) = wake_up_ns(run).filter(|_| ack == "quorum") {
            run.extra.insert(WAKE_UP.to_owned(), wake_up_ns as f64);
        }
    }
}

/// `("quorum", "idle")` of `replicated-quorum-idle`.
fn parts(name: &str) -> Option<(&str, &str)> {
    let parts = name.strip_prefix("replicated-")?.split_once('-')?;
    ["local", "quorum"].contains(&parts.0).then_some(parts)
}

fn stage_ns(run: &Run, name: &str) -> Option<u64> {
    run.stages.iter().find(|stage| stage.name == name).map(|stage| stage.p50_ns)
}

/// Whether replication times this stage: it is no step of the way through the node's own engine.
pub fn is_stage(name: &str) -> bool {
    STAGES.contains(&name)
}

/// What is left of the median response when the medians up to *committed* are taken off: the waiting
/// thread wakes up, and before that its own node's disk, where that is later than the followers'.
fn wake_up_ns(run: &Run) -> Option<u64> {
    let before: Option<u64> =
        ["queue", "batch", "committed"].into_iter().map(|name| stage_ns(run, name)).sum();
    Some(run.response.p50_ns.saturating_sub(before?))
}

/// The way to a majority, from durations only: each is measured with one clock. Medians, so that
/// they need not add up.
pub fn waterfall(run: &Run) -> Option<String> {
    let wake_up_ns = *run.extra.get(WAKE_UP)? as u64;
    let mut steps = Vec::new();
    for name in ["queue", "batch", "send", "network and queue", "follower durable"] {
        steps.push(format!("{name} {}", human::duration(stage_ns(run, name)?)));
    }
    steps.push(format!("wake-up {}", human::duration(wake_up_ns)));
    let since_sealed: Option<Vec<String>> = ["reported", "committed"]
        .into_iter()
        .map(|name| Some(format!("{name} {}", human::duration(stage_ns(run, name)?))))
        .collect();
    let (steps, since_sealed) = (steps.join(" → "), since_sealed?.join(", "));
    Some(format!("{}, p50: {steps}; since sealed: {since_sealed}", run.name))
}

/// A line for each workload: what a majority costs beside `Ack::Local`, and that beside no followers.
pub fn ratios(report: &Report) -> Vec<String> {
    let mut lines = Vec::new();
    for workload in ["idle", "loaded"] {
        let mut facts = Vec::new();
        for (ack, p50, rate, other) in [
            ("quorum", TO_LOCAL, RATE_TO_LOCAL, "Ack::Local"),
            ("local", TO_ALONE, RATE_TO_ALONE, "no followers"),
        ] {
            let Some(run) = report.run(&format!("replicated-{ack}-{workload}")) else { continue };
            let (Some(p50), Some(rate)) = (run.extra.get(p50), run.extra.get(rate)) else {
                continue;
            };
            let ack = if ack == "quorum" { "Ack::Quorum" } else { "Ack::Local" };
            let (p50, rate) = (human::ratio(*p50), human::ratio(*rate));
            facts.push(format!("{ack} / {other}: p50 {p50}, records/s {rate}"));
        }
        if !facts.is_empty() {
            lines.push(format!("{workload}: {}", facts.join("; ")));
        }
    }
    lines
}

/// Half of the saturated rate: with live followers, beside the control and a lone leader. Medians of
/// parts.
fn half(report: &Report) -> Option<String> {
    let run = report.run("replicated-half")?;
    let ratio = |name: &str| run.extra.get(name).copied().map(human::ratio);
    let times = |name: &str| {
        let extra = &report.run(name)?.extra;
        let time = |name| extra.get(name).map(|time: &f64| human::duration(*time as u64));
        Some(format!("{} / {}", time("part_p50_ns")?, time("part_p99_ns")?))
    };
    Some(format!(
        "{} records/s, p50 / p99: {} with followers, {} control, {} alone; p99 {} the control's (p50 \
         {}), {} a lone leader's (p50 {})",
        human::count(run.rate?),
        times("replicated-half")?,
        times("replicated-half-control")?,
        times("replicated-half-alone")?,
        ratio("p99_ratio_to_control")?,
        ratio("p50_ratio_to_control")?,
        ratio("p99_ratio_to_alone")?,
        ratio("p50_ratio_to_alone")?,
    ))
}

/// A follower that does not keep up, beside one that is gone. Medians of parts.
fn lagging(report: &Report) -> Option<String> {
    let grown = |run: &Run| run.extra.get("resident_growth_bytes").map(|b| human::bytes(*b as u64));
    let gone = report.run("replicated-gone")?;
    let mut facts = Vec::new();
    for (name, words) in [("replicated-behind", "behind"), ("replicated-stopped", "stopped")] {
        let run = report.run(name)?;
        let ratio = |name: &str| run.extra.get(name).copied().map(human::ratio);
        facts.push(format!(
            "{words}: p50 {}, p99 {}",
            ratio("p50_ratio_to_gone")?,
            ratio("p99_ratio_to_gone")?
        ));
    }
    let (behind, stopped) = (report.run("replicated-behind")?, report.run("replicated-stopped")?);
    Some(format!(
        "follower / gone: {}; the leader's memory grew by {} gone, {} behind, {} stopped",
        facts.join("; "),
        grown(gone)?,
        grown(behind)?,
        grown(stopped)?
    ))
}

fn catch_up(report: &Report) -> Option<String> {
    let run = report.run("catch-up")?;
    let extra = |name: &str| run.extra.get(name).copied();
    let mut text = format!(
        "catch-up: {}, {} reading and writing at once ({})",
        human::bytes_per_second(run.bytes_per_second),
        human::ratio(extra("ratio_to_read_and_write")?),
        human::bytes_per_second(extra("read_and_write_bytes_per_second")? as u64)
    );
    if let Some(streams) = report.run("catch-up-streams") {
        let rate = human::count(streams.records_per_second);
        text += &format!("; of interleaved streams {rate} records/s");
    }
    Some(text)
}

fn sender(report: &Report) -> Option<String> {
    let run = report.run("sender")?;
    let mut text = format!("sender: {}", human::bytes_per_second(run.bytes_per_second));
    if let Some(small) = report.run("sender-small")
        && let Some(calls) = small.extra.get("send_calls_per_frame").filter(|calls| **calls > 0.0)
    {
        text += &format!("; of small frames one call for each {:.0}", 1.0 / calls);
    }
    Some(text)
}

/// All of it, for a page or a screen.
pub fn lines(report: &Report) -> Vec<String> {
    let waterfalls = report.runs.iter().filter_map(waterfall);
    let others = [half(report), lagging(report), catch_up(report), sender(report)];
    ratios(report).into_iter().chain(waterfalls).chain(others.into_iter().flatten()).collect()
}

#[cfg(test)]
mod tests {
    use super::super::model::{Latency, Stage};
    use super::*;

    fn run(name: &str, p50_ns: u64, stages: &[(&str, u64)]) -> Run {
        let stage = |(name, p50_ns): &(&str, u64)| Stage {
            name: (*name).to_owned(),
            p50_ns: *p50_ns,
            ..Stage::default()
        };
        Run {
            name: name.to_owned(),
            records: 1,
            records_per_second: 1e9 / p50_ns as f64,
            response: Latency { p50_ns, ..Latency::default() },
            stages: stages.iter().map(stage).collect(),
            ..Run::default()
        }
    }

    #[test]
    fn a_majority_is_set_beside_local_and_local_beside_no_followers() {
        let stages = [
            ("queue", 4_000),
            ("batch", 1_000),
            ("send", 10_000),
            ("network and queue", 30_000),
            ("follower durable", 100_000),
            ("reported", 140_000),
            ("committed", 142_000),
        ];
        let mut report = Report {
            runs: vec![
                run("idle", 100_000, &[]),
                run("replicated-local-idle", 110_000, &stages),
                run("replicated-quorum-idle", 165_000, &stages),
            ],
            ..Report::default()
        };
        complete(&mut report);
        assert_eq!(
            lines(&report),
            [
                "idle: Ack::Quorum / Ack::Local: p50 1.50×, records/s 0.67×; Ack::Local / no \
                 followers: p50 1.10×, records/s 0.91×",
                "replicated-quorum-idle, p50: queue 4 µs → batch 1 µs → send 10 µs → network and \
                 queue 30 µs → follower durable 100 µs → wake-up 18 µs; since sealed: \
                 reported 140 µs, committed 142 µs",
            ]
        );
        assert_eq!(report.runs[2].extra["p50_ratio_to_alone"], 1.65);
        assert!(report.runs[0].extra.is_empty());
    }

    #[test]
    fn what_was_set_beside_each_other_is_said_in_a_line_each() {
        let with = |name: &str, p50_ns, extra: &[(&str, f64)]| Run {
            rate: Some(50_000.0),
            bytes_per_second: 400_000_000,
            extra: extra.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect(),
            ..run(name, p50_ns, &[])
        };
        let times = |p50, p99| [("part_p50_ns", p50), ("part_p99_ns", p99)];
        let to = [
            ("p50_ratio_to_control", 1.02),
            ("p99_ratio_to_control", 1.2),
            ("p50_ratio_to_alone", 1.3),
            ("p99_ratio_to_alone", 2.0),
        ];
        let grown = ("resident_growth_bytes", 1_048_576.0);
        let to_gone = [("p50_ratio_to_gone", 1.0), ("p99_ratio_to_gone", 0.9), grown];
        let disk =
            [("ratio_to_read_and_write", 0.8), ("read_and_write_bytes_per_second", 500_000_000.0)];
        let mut report = Report {
            runs: vec![
                with("replicated-half", 1, &[&times(200_000.0, 600_000.0)[..], &to].concat()),
                with("replicated-half-control", 1, &times(196_000.0, 500_000.0)),
                with("replicated-half-alone", 1, &times(150_000.0, 300_000.0)),
                with("replicated-gone", 1, &[grown]),
                with("replicated-behind", 1, &to_gone),
                with("replicated-stopped", 1, &to_gone),
                with("catch-up", 1, &disk),
                with("catch-up-streams", 100_000, &[]),
                with("sender", 1, &[]),
                with("sender-small", 1, &[("send_calls_per_frame", 0.002)]),
            ],
            ..Report::default()
        };
        complete(&mut report);
        assert_eq!(
            lines(&report),
            [
                "50 k records/s, p50 / p99: 200 µs / 600 µs with followers, 196 µs / 500 µs \
                 control, 150 µs / 300 µs alone; p99 1.20× the control's (p50 1.02×), 2.00× a lone \
                 leader's (p50 1.30×)",
                "follower / gone: behind: p50 1.00×, p99 0.90×; stopped: p50 1.00×, p99 0.90×; the \
                 leader's memory grew by 1 MiB gone, 1 MiB behind, 1 MiB stopped",
                "catch-up: 400 MB/s, 0.80× reading and writing at once (500 MB/s); of interleaved \
                 streams 10 k records/s",
                "sender: 400 MB/s; of small frames one call for each 500",
            ]
        );
    }

    #[test]
    fn without_followers_there_is_nothing_to_say() {
        let mut report = Report { runs: vec![run("idle", 1, &[])], ..Report::default() };
        complete(&mut report);
        assert!(lines(&report).is_empty());
    }
}
