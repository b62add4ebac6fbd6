//! Three nodes as real processes, in network namespaces of their own, whose network and processes are
//! disturbed in turn while clients write through whoever leads. At the end everything is healed, and
//! the directories are held against what the clients were told. `operator.rs` says who may lead.

mod check;
mod child;
mod ledger;
mod load;
mod log;
mod operator;
mod payload;
mod process;
mod topology;
mod turns;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

pub use child::NodeArguments;

use crate::cli::Request;
use crate::random::Random;
use crate::report::Report;
use operator::Operator;
use topology::{NODES, Topology};
use turns::{Turn, Turns};

/// All nodes hold the same within this, from when everything is healed on.
const REST_LIMIT: Duration = Duration::from_secs(30);
/// From so many seconds on, each kind of turn must have come.
const SECONDS_FOR_EVERY_TURN: u64 = 60;

/// See [`run`].
#[derive(Clone, Debug, clap::Args)]
pub struct NetworkArguments {
    /// How long the network is disturbed.
    #[arg(long, default_value_t = 60)]
    pub seconds: u64,
    /// Keeps directories and logs in FOLDER when something fails.
    #[arg(long, value_name = "FOLDER")]
    pub keep: Option<PathBuf>,
}

impl Default for NetworkArguments {
    fn default() -> Self {
        Self { seconds: 60, keep: None }
    }
}

/// Runs it, in a thread of its own, whose namespace nobody else is in.
///
/// # Errors
/// When it cannot run at all.
pub fn run(request: Request, arguments: &NetworkArguments, report: &mut Report) -> Result<()> {
    if let Some(why) = topology::missing() {
        report.skip("network", &why);
        return Ok(());
    }
    let place = tempfile::tempdir().context("making a directory for the nodes")?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| run_in(request.seed, arguments, place.path(), report));
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    if report.failed() > 0
        && let Some(keep) = &arguments.keep
    {
        let place = place.keep();
        fs::create_dir_all(keep).with_context(|| format!("creating {}", keep.display()))?;
        let kept = keep.join(format!("seed-{}", request.seed));
        let moved = std::process::Command::new("mv").arg(&place).arg(&kept).status();
        let is_moved = moved.is_ok_and(|status| status.success());
        println!("  evidence is in {}", if is_moved { &kept } else { &place }.display());
    }
    Ok(())
}

fn run_in(
    seed: u64,
    arguments: &NetworkArguments,
    place: &Path,
    report: &mut Report,
) -> Result<()> {
    let topology = match Topology::enter() {
        Ok(topology) => topology,
        Err(error) => {
            report.skip("network", &format!("{error:#}"));
            return Ok(());
        }
    };
    let mut operator = Operator::new(seed, place, topology);
    let outcome = disturb_and_heal(seed, arguments, &mut operator, report);
    operator.count_into(report);
    let fail = |what: String| format!("network --seed {seed}: {what}");
    operator.broken.iter().for_each(|what| report.fail(fail(what.clone())));
    if let Err(error) = outcome {
        report.fail(fail(format!("{error:#}")));
        return Ok(());
    }
    report.pass(1);
    if let Err(what) = operator.check_memory() {
        report.fail(fail(what));
    }
    let directories: Vec<PathBuf> = (0..NODES).map(|node| operator.directory(node)).collect();
    let paths: Vec<&Path> = directories.iter().map(PathBuf::as_path).collect();
    check::run(seed, &operator.ledger, &paths, report)?;
    if arguments.seconds >= SECONDS_FOR_EVERY_TURN {
        let turns = Turn::ALL.map(Turn::name);
        let consequences = [
            "packets dropped",
            "trims",
            "records cut",
            "bytes sent again",
            "outcomes that are unknown",
            "local receipts that are in orphans",
        ];
        for what in turns.into_iter().chain(consequences) {
            if report.covered(what) == 0 {
                report.fail(fail(format!("not covered: {what}")));
            }
        }
    }
    Ok(())
}

/// All turns, and then the way to rest: everything is healed and started again, one leads with a last
/// epoch, and its load goes until all have what it has.
fn disturb_and_heal(
    seed: u64,
    arguments: &NetworkArguments,
    operator: &mut Operator,
    report: &mut Report,
) -> Result<()> {
    operator.start_all()?;
    operator.start_over(REST_LIMIT)?;
    let mut turns = Turns { operator, report, random: Random::new(seed) };
    let deadline = Instant::now() + Duration::from_secs(arguments.seconds);
    let mut deck = Vec::new();
    while Instant::now() < deadline {
        // Shuffled, so that every kind comes, each after every other.
        if deck.is_empty() {
            deck = Turn::ALL.to_vec();
            for at in (1..deck.len()).rev() {
                deck.swap(at, turns.random.below(at as u64 + 1) as usize);
            }
        }
        turns.take(deck.pop().expect("it has just been filled"))?;
    }
    for node in 0..NODES {
        operator.kill(node)?;
    }
    operator.start_all()?;
    operator.start_over(REST_LIMIT)?;
    let before = operator.ledger.quorum;
    operator.wait("receipts of a majority in the last epoch", REST_LIMIT, |operator| {
        operator.ledger.quorum >= before + 100
    })?;
    operator.rest(REST_LIMIT)?;
    operator.close_all()
}
