//! When followers have what the leader has answered: topics are made one after the other on an idle
//! network, and each process notes on CLOCK_MONOTONIC when it has them.

use std::time::Instant;

use anyhow::Result;

use super::super::Bench;
use super::super::measure::Measured;
use super::NAMES;
use super::cluster::Cluster;
use super::local::{create, monotonic_ns};
use crate::probe::histogram;
use crate::report::{Run, RunBuilder};

/// Topics.
const COUNT: u64 = 1_000;
const PREFIX: &str = "visible";

/// Measures it.
pub fn run(bench: &mut Bench, cluster: &Cluster) -> Result<()> {
    bench.progress.show(NAMES[5]);
    cluster.set_fast_path(true)?;
    let start_ns = bench.elapsed_ns();
    cluster.ask_all(&format!("watch {PREFIX} {COUNT}"), || Ok(()))?;
    let begin = Instant::now();
    let mut answered = Vec::new();
    for number in 0..COUNT {
        create(&cluster.node.store, &format!("{PREFIX}-{number}"))?;
        answered.push(monotonic_ns());
        if bench.interrupt.is_asked() {
            return Ok(());
        }
    }
    let duration = begin.elapsed();
    let (seen, ()) = cluster.ask_all("seen", || Ok(()))?;
    let mut latency = histogram();
    let mut before = 0_u64;
    for times in &seen {
        let times = times.split(' ').map_while(|time| time.parse::<u64>().ok());
        for (seen, answered) in times.zip(&answered) {
            // Also what is there before the answer counts, as nothing.
            before += u64::from(seen <= *answered);
            latency.record(seen.saturating_sub(*answered))?;
        }
    }
    let run = Run {
        name: NAMES[5].to_owned(),
        description: format!(
            "{COUNT} topics made in the leader's process; from each answer to each follower's waiter"
        ),
        clients: 1,
        followers: cluster.followers() as u32,
        ack: "local".to_owned(),
        start_ns,
        duration_ns: duration.as_nanos() as u64,
        records: latency.len(),
        extra: [("seen_before_answer".to_owned(), before as f64)].into(),
        ..Run::default()
    };
    let (run, histograms) = RunBuilder::new(run, latency).finish();
    bench.keep(Measured { run, histograms, yardstick: Vec::new() });
    Ok(())
}
