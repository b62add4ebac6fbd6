//! The `ringwal` program: measures group commit on this machine's disk, runs nodes of a cluster and asks
//! them, and looks into what the engine has written.

mod bench;
mod cli;
mod cluster;
mod commands;
mod doctor;
mod environment;
mod exit;
mod follow;
mod interrupt;
mod logging;
mod nodes;
mod offline;
mod payload;
mod probe;
mod progress;
mod report;

use std::process::ExitCode;

use clap::Parser as _;

use cli::{Cli, Command};
use exit::Exit;

fn main() -> ExitCode {
    exit::finish(run(Cli::parse()))
}

fn run(cli: Cli) -> anyhow::Result<Exit> {
    match cli.command {
        None => bench::run(cli.bench),
        Some(Command::Bench(args)) => bench::run(*args),
        Some(Command::RecoveryWriter(args)) => bench::recovery_writer(&args),
        Some(Command::BenchPeer(args)) => bench::peer(&args),
        Some(Command::BenchNode(args)) => bench::node(&args),
        Some(Command::Follow(args)) => follow::run(&args),
        Some(Command::RecoverMajority(args)) => cluster::recover_majority(&args),
        Some(Command::Node(args)) => cluster::node(&args),
        Some(Command::Cluster(args)) => cluster::local(&args),
        Some(Command::Topic(args)) => cluster::topic(&args),
        Some(Command::Broker(args)) => cluster::broker(&args),
        Some(Command::Key(args)) => cluster::key(&args),
        Some(Command::Watermark(args)) => cluster::watermark(&args),
        Some(Command::Status(args)) => cluster::status(&args),
        Some(Command::TransferLeader(args)) => cluster::transfer_leader(&args),
        Some(Command::Member(args)) => cluster::member(&args),
        Some(Command::FastPath(args)) => cluster::fast_path(&args),
        Some(Command::Report(args)) => commands::report(&args),
        Some(Command::Compare(args)) => commands::compare(&args),
        Some(Command::Doctor(args)) => doctor::run(&args),
        Some(Command::Completions { shell }) => {
            exit::print(&cli::completions(shell)).map(|()| Exit::Success)
        }
        Some(Command::Man { directory: None }) => {
            exit::print(&cli::manual_page()?).map(|()| Exit::Success)
        }
        Some(Command::Man { directory: Some(directory) }) => {
            cli::write_manual_pages(&directory)?;
            Ok(Exit::Success)
        }
        Some(Command::Inspect(args)) => offline::inspect(&args),
        Some(Command::Verify(args)) => offline::verify(&args),
        Some(Command::Dump(args)) => offline::dump(&args),
        Some(Command::Tail(args)) => offline::tail(&args),
        Some(Command::Repair(args)) => offline::repair(&args),
    }
}
