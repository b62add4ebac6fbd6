//! Three nodes as real processes, in network namespaces of their own, whose network and processes are
//! disturbed in turn while clients write through whoever leads. At the end everything is healed, and
//! the directories are held against what the clients were told. `operator.rs` says who may lead.

mod check;
mod child;
mod ledger;
mod load;
mod operator;
mod payload;
mod turns;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Result;

pub use child::NodeArguments;

use crate::cli::Request;
use crate::nodes::topology::{NODES, Topology};
use crate::nodes::{self, Disturbing, Hearing as _, SECONDS_FOR_EVERY_TURN};
use crate::random::Random;
use crate::report::Report;
use operator::Operator;
use turns::{Turn, Turns};

/// All nodes hold the same within this, from when everything is healed on.
const REST_LIMIT: Duration = Duration::from_secs(30);

/// Runs it.
///
/// # Errors
/// When it cannot run at all.
pub fn run(request: Request, arguments: &Disturbing, report: &mut Report) -> Result<()> {
    let Request { seed, .. } = request;
    nodes::run_alone("network", seed, arguments, report, |place, report| {
        run_in(seed, arguments, place, report)
    })
}

fn run_in(seed: u64, arguments: &Disturbing, place: &Path, report: &mut Report) -> Result<()> {
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
    arguments: &Disturbing,
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
            deck = turns.random.shuffled(&Turn::ALL);
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
