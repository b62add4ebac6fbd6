//! Kills of a process that writes. A child of this very program opens a directory, appends to
//! several streams from several threads, trims, cuts and closes, and says through a pipe what it is
//! about to do and what it has a receipt for. The parent kills it: at random moments, and in each
//! phase of the engine's life; or it shuts the file system down under it. Then it opens the
//! directory and holds it against what it heard.

mod child;
mod cycle;
mod ext4;
mod model;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, bail};

pub use child::{ChildArguments, run_child};

use crate::cli::Request;
use crate::report::Report;
use cycle::{Aim, Bench};

/// Kills when nothing else is asked for.
const CYCLES: u64 = 500;
/// So many kills for one shutdown of a file system.
const KILLS_PER_SHUTDOWN: u64 = 10;
/// From so many kills on, each phase must have been hit.
const CYCLES_FOR_EVERY_PHASE: u64 = 100;

/// Set by SIGINT and SIGTERM, so that whatever is mounted or running is ended in order.
#[derive(Clone)]
struct Stop(Arc<AtomicBool>);

impl Stop {
    fn install() -> Result<Self> {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            // The second one ends the program at once.
            signal_hook::flag::register_conditional_shutdown(signal, 130, flag.clone())
                .and_then(|_| signal_hook::flag::register(signal, flag.clone()))
                .context("listening for signals")?;
        }
        Ok(Self(flag))
    }

    fn check(&self) -> Result<()> {
        if self.0.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        Ok(())
    }
}

/// Runs the kills, and the shutdowns where they are possible.
pub fn run(request: Request, report: &mut Report) -> Result<()> {
    let stop = Stop::install()?;
    let cycles = request.count.unwrap_or(CYCLES);
    let place = tempfile::tempdir().context("making a directory for the kills")?;
    let mut bench = Bench::new(request.seed, place.path());
    for cycle in 0..cycles {
        stop.check()?;
        if bench.kill_and_check(cycle, report)? {
            report.pass(1);
        }
    }
    bench.count_into(report);
    if cycles >= CYCLES_FOR_EVERY_PHASE {
        for aim in Aim::PHASES {
            if report.covered(&aim.hits()) == 0 {
                report.fail(format!("seed {}: no kill hit the phase {aim}", request.seed));
            }
        }
    }
    ext4::run(request.seed, cycles.div_ceil(KILLS_PER_SHUTDOWN), &stop, report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_phases_have_names() {
        let names: Vec<_> = Aim::PHASES.iter().map(Aim::to_string).collect();
        assert_eq!(names, ["open", "prepare", "roll", "trim", "close"]);
    }
}
