//! Seeded runs of the metadata store under virtual time: the product's openraft, log, control, machine, executor,
//! lease and founding, on one thread and one clock, over the product's shards on simulated disks and the
//! cores of replication.
//!
//! - [`runtime`] is the clock and the tasks of each process; [`links`] what is between nodes.
//! - [`place`] is what one run of a process has, with its part as [`leading`] or [`following`];
//!   [`replica`] are the product's seams over it, [`cluster`] all that are up.
//! - [`world`] starts nodes and ends a run, [`trouble`] is what happens to them, [`clients`] use them.
//! - [`oracle`] knows what was promised and compares.

mod clients;
mod cluster;
mod following;
mod leading;
mod links;
mod oracle;
mod place;
mod replica;
mod runtime;
#[cfg(test)]
mod tests;
mod trouble;
mod world;

use anyhow::Result;
use tracing_subscriber::Layer as _;
use tracing_subscriber::layer::SubscriberExt as _;

use crate::cli::Request;
use crate::report::Report;
use crate::sim::{catch, trace};

/// Seeds in CI.
const SEEDS: u64 = 1000;
/// Seeds that are run twice.
const SEEDS_TWICE: u64 = 20;
/// Seeds after which everything must have happened.
const SEEDS_FULL: u64 = 200;

/// Runs seeds, some of them twice.
///
/// # Errors
/// Never; what fails is in the report.
pub fn run(request: Request, report: &mut Report) -> Result<()> {
    let all = request.count.unwrap_or(SEEDS);
    if all == 1 {
        trace::switch_on();
        log_with_true_time();
    }
    let mut counts = oracle::Counts::default();
    let outcomes = crate::cluster::run_all(request.seed..request.seed + all, &run_one);
    report.cover("seeds", outcomes.len() as u64);
    for outcome in outcomes {
        match outcome {
            Ok(outcome) => {
                report.pass(1);
                counts.merge(&outcome.counts);
            }
            Err(failure) => report.fail(failure),
        }
    }
    for (what, count) in counts.all() {
        report.cover(what, count);
        if count == 0 && report.failed() == 0 && all >= SEEDS_FULL {
            report.fail(format!("never happened: {what}"));
        }
    }
    for seed in request.seed..request.seed + SEEDS_TWICE.min(all) {
        match (catch(|| world::run(seed)), catch(|| world::run(seed))) {
            (Ok(one), Ok(two)) if one == two => report.pass(1),
            (Ok(_), Ok(_)) => report.fail(format!("raft seed {seed} gave two runs")),
            // Reported above.
            _ => {}
        }
        report.cover("seeds run twice with equal traces", 1);
    }
    Ok(())
}

/// The product's own log, of openraft only what is wrong.
fn log_with_true_time() {
    let filter = tracing_subscriber::filter::filter_fn(|event| {
        event.target().starts_with("ringwal") || *event.level() <= tracing::Level::WARN
    });
    let layer = tracing_subscriber::fmt::layer().with_timer(runtime::TrueTime).with_ansi(false);
    let logging = tracing_subscriber::registry().with(layer.with_filter(filter));
    let _ = tracing::subscriber::set_global_default(logging);
}

fn run_one(seed: u64) -> Result<world::Outcome, String> {
    catch(|| world::run(seed)).map_err(|message| {
        format!("raft, seed {seed}: {message}\n  repeat with: ringwal-crash raft --seed {seed} --count 1")
    })
}
