//! `ringwal-crash`: shows that the engine keeps its promise through crashes, kills, faults and
//! damage. Each command prints its seed, what it covered, what it skipped and why, and a closing
//! line; it exits with 0 only when nothing failed.

#[path = "../../../engine/tests/common/archive.rs"]
mod archive;
mod block;
mod cli;
mod cluster;
mod deep;
mod fuzz;
mod history;
mod kill;
mod mutants;
mod network;
mod nodes;
mod raft;
mod random;
mod report;
mod sim;
mod store;

use std::process::ExitCode;

use clap::Parser as _;

use cli::{Arguments, Command};
use report::Report;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(mutant) = &arguments.mutant
        && !ringwal_engine::mutants::choose(mutant)
    {
        eprintln!("error: this build has no mutant {mutant}");
        return ExitCode::FAILURE;
    }
    match &arguments.command {
        Command::KillChild(child) => return kill::run_child(child),
        Command::BlockRole(role) => return block::role::exit_code(role.play()),
        Command::NetworkNode(node) => return block::role::exit_code(node.run()),
        Command::StoreNode(node) => return block::role::exit_code(node.run()),
        _ => {}
    }
    let request = arguments.request();
    let mut report = Report::new(arguments.command.name(), request.seed);
    let outcome = match &arguments.command {
        Command::Sim => sim::run(request, &mut report),
        Command::Repro => sim::repro(request, &mut report),
        Command::Cluster => cluster::run(request, &mut report),
        Command::Raft => raft::run(request, &mut report),
        Command::Mutants => mutants::run(request, &mut report),
        Command::Deep { hours } => deep::run(request, *hours, &mut report),
        Command::Kill => kill::run(request, &mut report),
        Command::Fuzz(fuzz) => fuzz::run(request, fuzz.execution, &mut report),
        Command::Corpus(corpus) => fuzz::write_corpus(&corpus.write, &mut report),
        Command::Replay(replay) => block::replay::run(request, replay, &mut report),
        Command::Faults(faults) => block::faults::run(request, faults, &mut report),
        Command::Network(network) => network::run(request, network, &mut report),
        Command::Store(store) => store::run(request, store, &mut report),
        Command::KillChild(_)
        | Command::BlockRole(_)
        | Command::NetworkNode(_)
        | Command::StoreNode(_) => unreachable!("played above"),
    };
    match outcome.and_then(|()| report.finish(arguments.json.as_deref())) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
