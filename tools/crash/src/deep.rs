//! Everything, again and again with other seeds, for as long as was asked.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::block::{faults, replay};
use crate::cli::Request;
use crate::report::Report;
use crate::{cluster, fuzz, kill, network, raft, sim, store};

/// What a round is made of, in turn: name, how much of it (`None`: the whole table), and what runs it.
const PARTS: &[(&str, Option<u64>, Part)] = &[
    ("sim", Some(500_000), sim::run),
    ("cluster", Some(20_000), cluster::run),
    ("raft", Some(10_000), raft::run),
    ("replay", Some(4000), |request, report| replay::run(request, &Default::default(), report)),
    ("faults", None, |request, report| faults::run(request, &Default::default(), report)),
    ("kill", Some(500), kill::run),
    ("network", None, |request, report| network::run(request, &Default::default(), report)),
    ("store", None, |request, report| store::run(request, &Default::default(), report)),
    ("fuzz", Some(10_000_000), |request, report| fuzz::run(request, None, report)),
];

type Part = fn(Request, &mut Report) -> Result<()>;

/// Seeds from one round to the next; no part uses more in a round.
const SEEDS_PER_ROUND: u64 = 1_000_000;
/// Time between two lines that say how far it is.
const PROGRESS: Duration = Duration::from_secs(60);
/// Failures after which more of them tell nothing new.
const FAILURES_MAX: u64 = 20;

/// Runs rounds until `hours` have passed.
///
/// # Errors
/// When a part cannot run at all.
pub fn run(request: Request, hours: f64, report: &mut Report) -> Result<()> {
    let begun = Instant::now();
    let time = Duration::try_from_secs_f64(hours * 3600.0)?;
    let progress = Mutex::new(report.totals());
    let (done, is_done) = mpsc::channel::<()>();
    thread::scope(|scope| {
        let progress = &progress;
        scope.spawn(move || {
            while is_done.recv_timeout(PROGRESS) == Err(RecvTimeoutError::Timeout) {
                let totals = progress.lock().unwrap_or_else(PoisonError::into_inner);
                println!("{:.0} min: {totals}", begun.elapsed().as_secs_f64() / 60.0);
            }
        });
        // Ends the line above, also when a part fails.
        let _done = done;
        for round in 0.. {
            let seed = request.seed.wrapping_add(round * SEEDS_PER_ROUND);
            for (name, count, part) in PARTS {
                if begun.elapsed() >= time || report.failed() >= FAILURES_MAX {
                    return Ok(());
                }
                let count = count.map(|count| request.count.unwrap_or(count));
                let mut seen = Report::new(name, seed);
                part(Request { seed, count }, &mut seen)?;
                report.add(seen);
                report.cover(&format!("rounds of {name}"), 1);
                *progress.lock().unwrap_or_else(PoisonError::into_inner) = report.totals();
            }
        }
        Ok(())
    })
}
