//! Seeded runs of the engine on the simulated disk.
//!
//! - [`driver`] lets one shard after another live and die on a device and asks the [`mod@reference`]
//!   after each step what must hold. [`shards`] does so with several that die together.
//! - [`corruption`] damages a journal, [`mending`] puts back what it took, [`clones`] mixes two that have the same past, [`given_up`]
//!   insists on an earlier end of one, as a repair does.
//! - [`scenarios`] are the faults that such runs have found, each as the shortest story.
//! - [`events`] counts what happened; a run of full size in which something never did has failed.

mod clones;
mod corruption;
mod driver;
mod events;
mod given_up;
mod journal;
mod mending;
mod reference;
mod scenarios;
mod seeds;
mod setup;
mod shards;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod threads;
pub mod trace;

use anyhow::Result;

use crate::cli::Request;
use crate::report::Report;
use events::{Counts, Event};
pub use seeds::catch;
use seeds::{Failure, Kind};

/// Crash points in CI.
const CRASH_POINTS: u64 = 200_000;
/// Crash points in which all events must have happened.
const CRASH_POINTS_FULL: u64 = 20_000;
/// Seeds that are run twice.
const SEEDS_TWICE: u64 = 20;

/// Runs it: seeds until they have seen enough, some of them twice, then the scenarios.
///
/// # Errors
/// Never; what fails is in the report.
pub fn run(request: Request, report: &mut Report) -> Result<()> {
    let crash_points = request.count.unwrap_or(CRASH_POINTS);
    let series = seeds::run_until(request.seed, crash_points);
    report.pass(series.runs - series.failures.len() as u64);
    for event in Event::ALL {
        report.cover(event.name(), series.counts.get(*event));
    }
    report.cover("seeds", series.runs);
    for failure in &series.failures {
        report.fail(describe(failure));
    }
    if series.failures.is_empty() {
        check_events(&series.counts, report);
        run_twice(request.seed, report);
    }
    run_scenarios(report);
    Ok(())
}

/// Runs one seed and tells what is done.
///
/// # Errors
/// Never; what fails is in the report.
pub fn repro(request: Request, report: &mut Report) -> Result<()> {
    let seed = request.seed;
    println!("seed {seed} is about {}", Kind::of(seed).name());
    trace::switch_on();
    match seeds::catch(|| seeds::run(seed)) {
        Ok(outcome) => {
            for event in Event::ALL.iter().filter(|event| outcome.counts.get(**event) > 0) {
                report.cover(event.name(), outcome.counts.get(*event));
            }
            report.pass(1);
        }
        Err(message) => report.fail(describe(&Failure { seed, message })),
    }
    Ok(())
}

/// What failed, and the line that repeats it.
fn describe(failure: &Failure) -> String {
    let Failure { seed, message } = failure;
    let kind = Kind::of(*seed).name();
    format!("{kind}, seed {seed}: {message}\n  repeat with: ringwal-crash repro --seed {seed}")
}

/// What should happen has happened.
fn check_events(counts: &Counts, report: &mut Report) {
    let wanted = Event::ALL.iter().filter(|event| event.must_happen());
    let (never, seen): (Vec<&Event>, Vec<&Event>) =
        wanted.partition(|event| counts.get(**event) == 0);
    if counts.get(Event::CrashPoints) < CRASH_POINTS_FULL {
        if !never.is_empty() {
            let why =
                format!("less than {CRASH_POINTS_FULL} crash points: {} did not", never.len());
            report.skip("whether everything happened", &why);
        }
        return;
    }
    report.pass(seen.len() as u64);
    for event in never {
        report.fail(format!("never happened: {}", event.name()));
    }
}

/// The same seed is the same run, bit for bit.
fn run_twice(first: u64, report: &mut Report) {
    for seed in first..first + SEEDS_TWICE {
        match (seeds::catch(|| seeds::run(seed)), seeds::catch(|| seeds::run(seed))) {
            (Ok(one), Ok(two)) if one == two => report.pass(1),
            _ => report.fail(format!("seed {seed} gave two runs")),
        }
        report.cover("seeds run twice with equal traces", 1);
    }
}

fn run_scenarios(report: &mut Report) {
    for (name, scenario) in scenarios::ALL {
        match seeds::catch(scenario) {
            Ok(()) => report.pass(1),
            Err(message) => report.fail(format!("scenario {name}: {message}")),
        }
        report.cover("scenarios", 1);
    }
}
