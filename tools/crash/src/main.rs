//! `ringwal-crash`: shows that the engine keeps its promise through crashes, kills, faults and
//! damage. Each command prints its seed, what it covered, what it skipped and why, and a closing
//! line; it exits with 0 only when nothing failed.

mod block;
mod cli;
mod report;
mod sim;

use std::process::ExitCode;

use clap::Parser as _;

use cli::{Arguments, Command};
use report::Report;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let request = arguments.request();
    if let Command::BlockRole(role) = &arguments.command {
        return block::role::exit_code(role.play());
    }
    let mut report = Report::new(arguments.command.name(), request.seed);
    let outcome = match &arguments.command {
        Command::Sim => sim::run(request, &mut report),
        Command::Replay(replay) => block::replay::run(request, replay, &mut report),
        Command::Faults(faults) => block::faults::run(request, faults, &mut report),
        Command::BlockRole(_) => unreachable!("played above"),
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
