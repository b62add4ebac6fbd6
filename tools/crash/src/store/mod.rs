//! Three nodes with a metadata store as real processes, in network namespaces of their own, which found a cluster
//! and elect their leaders. Their network, processes and disks are disturbed in turn while clients execute commands
//! and read, at every node. At the end everything is healed, and what clients were told is held against the log
//! that all nodes have.
//!
//! - [`child`] is a node's process, [`clients`] are in it, [`outside`] beside it; [`lines`] is what they say.
//! - [`operator`] runs the nodes, [`turns`] is what happens to them, [`scenarios`] what is done when nothing does.
//! - [`record`] is what clients were told, [`check`] compares.

mod check;
mod child;
mod clients;
mod lines;
mod operator;
mod outside;
mod record;
mod scenarios;
mod turns;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

pub use child::StoreNodeArguments;

use crate::block::system::leave_namespace;
use crate::cli::Request;
use crate::nodes::topology::{NODES, Topology};
use crate::nodes::{self, Disturbing, Hearing as _, SECONDS_FOR_EVERY_TURN};
use crate::random::Random;
use crate::report::Report;
use operator::{Operator, Rest};
use outside::Outside;
use turns::{Turn, Turns};

/// All nodes hold the same within this, from when everything is healed on.
const REST_LIMIT: Duration = Duration::from_secs(30);

/// Runs it.
///
/// # Errors
/// When it cannot run at all.
pub fn run(request: Request, arguments: &Disturbing, report: &mut Report) -> Result<()> {
    let Request { seed, .. } = request;
    nodes::run_alone("store", seed, arguments, report, |place, report| {
        run_in(seed, arguments, place, report)
    })
}

fn run_in(seed: u64, arguments: &Disturbing, place: &Path, report: &mut Report) -> Result<()> {
    let topology = match Topology::enter() {
        Ok(topology) => topology,
        Err(error) => {
            report.skip("store", &format!("{error:#}"));
            return Ok(());
        }
    };
    let mut operator = Operator::new(seed, place, topology);
    if let Err(error) = leave_namespace().and_then(|()| operator.mount_frail_disk()) {
        report.skip("store with a leader whose disk fails", &format!("{error:#}"));
    }
    let before = report.failed();
    let outcome = disturb_and_heal(seed, arguments, &mut operator, report);
    operator.count_into(report);
    let history = operator.record.history(report);
    let fail = |what: String| format!("store --seed {seed}: {what}");
    operator.broken.iter().for_each(|what| report.fail(fail(what.clone())));
    match outcome {
        Err(error) => report.fail(fail(format!("{error:#}"))),
        Ok(rest) => {
            report.pass(1);
            let directories: Vec<PathBuf> =
                (0..NODES).map(|node| operator.directory(node)).collect();
            let paths: Vec<&Path> = directories.iter().map(PathBuf::as_path).collect();
            for wrong in check::run(&history, &rest, &paths, report)? {
                report.fail(fail(wrong));
            }
            if arguments.seconds >= SECONDS_FOR_EVERY_TURN {
                find_what_never_happened(&operator, report, fail);
            }
        }
    }
    if report.failed() > before && arguments.keep.is_some() {
        operator.keep_frail_disk()?;
    }
    Ok(())
}

fn find_what_never_happened(
    operator: &Operator,
    report: &mut Report,
    fail: impl Fn(String) -> String,
) {
    let turns = Turn::ALL.into_iter().filter(|turn| is_possible(*turn, operator)).map(Turn::name);
    let consequences = [
        "packets dropped",
        "records cut",
        "records in orphans",
        "commands by the fast path",
        "commands through Raft",
        "commands forwarded",
        "commands executed, on the leader",
        "commands executed, with a majority",
        "commands that had been executed before",
        "commands that were rejected",
        "commands that are certainly not done",
        "commands whose outcome is unknown",
        "commands whose client died",
        "commands that died with their leader",
        "linearizable reads",
        "linearizable reads that were not confirmed",
        "local reads",
        "reads of what was cut later",
    ];
    for what in turns.chain(consequences) {
        if report.covered(what) == 0 {
            report.fail(fail(format!("never happened: {what}")));
        }
    }
}

fn is_possible(turn: Turn, operator: &Operator) -> bool {
    turn != Turn::Poison || operator.has_frail_disk()
}

/// All turns, and then the way to rest; what all nodes have then.
fn disturb_and_heal(
    seed: u64,
    arguments: &Disturbing,
    operator: &mut Operator,
    report: &mut Report,
) -> Result<Rest> {
    operator.start_all()?;
    operator.leader(REST_LIMIT).context("a cluster that is founded")?;
    let outside = Outside::start(seed, &operator.processes.mouth());
    let disturbed = disturb(seed, arguments, operator, report);
    if let Err(error) = disturbed {
        outside.end();
        return Err(error);
    }
    operator.wait_for_all(50, REST_LIMIT).context("at the end")?;
    outside.end();
    let told = operator.processes.tell_all("quiet");
    let mut over = 0;
    operator.wait("clients end", REST_LIMIT, |operator| {
        over +=
            (0..NODES).filter(|node| operator.processes.take_said(*node, "over").is_some()).count();
        over == told
    })?;
    operator.rest(REST_LIMIT)?;
    scenarios::run(operator, report)?;
    let rest = operator.rest(REST_LIMIT)?;
    operator.close_all()?;
    Ok(rest)
}

fn disturb(
    seed: u64,
    arguments: &Disturbing,
    operator: &mut Operator,
    report: &mut Report,
) -> Result<()> {
    operator.wait_for_all(5, REST_LIMIT).context("at the beginning")?;
    let random = Random::new(seed);
    let deck: Vec<Turn> =
        Turn::ALL.into_iter().filter(|turn| is_possible(*turn, operator)).collect();
    let progress_max = Default::default();
    let mut turns = Turns { operator, report, random, has_loss: false, progress_max };
    let deadline = Instant::now() + Duration::from_secs(arguments.seconds);
    let mut left = Vec::new();
    while Instant::now() < deadline {
        if left.is_empty() {
            left = turns.random.shuffled(&deck);
        }
        turns.take(left.pop().expect("it has just been filled"))?;
    }
    let (beside, after) = turns.progress_max;
    report.cover(
        "longest time until commands go on beside a disturbance, ms",
        beside.as_millis() as u64,
    );
    report.cover(
        "longest time until commands go on at all nodes after it, ms",
        after.as_millis() as u64,
    );
    Ok(())
}
