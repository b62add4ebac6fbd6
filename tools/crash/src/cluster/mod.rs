//! Seeded runs of several nodes: the cores of leader and followers, each over the real shards on
//! simulated disks, with connections that stall and break, partitions in one direction or both,
//! power cuts, kills, lost disks, peers that lie, and changes of the leader.
//!
//! - [`world`] lets one thing happen after another, whichever the seed says.
//! - [`sessions`] are the connections: hellos, items, and what a follower's core asks for.
//! - [`lies`] are what no peer says.
//! - [`healing`] is the end of a run: everybody must come to hold the same.
//! - [`node`] is one node: its disks, what it has promised, its part as leader or follower;
//!   [`store`] its shards, [`orphans`] what it keeps of what it cuts.
//! - [`election`] is the embedder that gives epochs: it asks a majority and brings the new leader up
//!   to the best of it.
//! - [`oracle`] knows what was promised and compares.

mod election;
mod following;
mod healing;
mod leading;
mod lies;
mod node;
mod oracle;
mod orphans;
mod sessions;
mod store;
mod world;

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;

use crate::cli::Request;
use crate::report::Report;
use crate::sim::{catch, trace};
pub use world::Outcome;

/// Seeds in CI.
const SEEDS: u64 = 2000;
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
    }
    let seeds = request.seed..request.seed + all;
    let mut counts = oracle::Counts::default();
    let outcomes = run_all(seeds, &run_one);
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
            (Ok(_), Ok(_)) => report.fail(format!("cluster seed {seed} gave two runs")),
            // Reported above.
            _ => {}
        }
        report.cover("seeds run twice with equal traces", 1);
    }
    Ok(())
}

/// On all cores, until one has failed; in the order of the seeds.
pub fn run_all<T: Send>(
    seeds: std::ops::Range<u64>,
    run_one: &(dyn Fn(u64) -> Result<T, String> + Sync),
) -> Vec<Result<T, String>> {
    let threads = std::thread::available_parallelism().map_or(2, usize::from) as u64;
    let has_failed = AtomicBool::new(false);
    let has_failed = &has_failed;
    let mut outcomes: Vec<(u64, Result<T, String>)> = std::thread::scope(|scope| {
        let run = |first: u64, seeds: std::ops::Range<u64>| {
            let mine = (seeds.start + first..seeds.end).step_by(threads as usize);
            let mut outcomes = Vec::new();
            for seed in mine.take_while(|_| !has_failed.load(Ordering::Relaxed)) {
                let outcome = run_one(seed);
                has_failed.fetch_or(outcome.is_err(), Ordering::Relaxed);
                outcomes.push((seed, outcome));
            }
            outcomes
        };
        let workers: Vec<_> = (0..threads)
            .map(|first| {
                let seeds = seeds.clone();
                scope.spawn(move || run(first, seeds))
            })
            .collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("panics are caught")).collect()
    });
    outcomes.sort_by_key(|(seed, _)| *seed);
    outcomes.into_iter().map(|(_, outcome)| outcome).collect()
}

fn run_one(seed: u64) -> Result<Outcome, String> {
    catch(|| world::run(seed)).map_err(|message| {
        format!("cluster, seed {seed}: {message}\n  repeat with: ringwal-crash cluster --seed {seed} --count 1")
    })
}
