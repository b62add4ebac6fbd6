//! A model of the epoch and fallback protocol, checked by exhaustion: `check` looks at every state of every
//! configuration, `refute` shows for each known mistake how it loses something.

mod configuration;
mod narrate;
mod packed;
mod properties;
mod report;
mod sequence;
mod state;
mod step;
#[cfg(test)]
mod tests;

use std::num::NonZeroUsize;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Checks the model of epochs, promises and the Raft fallback")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// Threads that look at states.
    #[arg(long, global = true, default_value = "2")]
    threads: NonZeroUsize,
}

#[derive(Subcommand)]
enum Command {
    /// Looks at every state of the protocol as it is meant.
    Check {
        /// Only these configurations.
        names: Vec<String>,
    },
    /// Finds for each known mistake the shortest way to a violation, and tells it.
    Refute {
        /// Only these mistakes.
        names: Vec<String>,
        /// Does not tell the way.
        #[arg(long)]
        brief: bool,
    },
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let threads = arguments.threads.get();
    let well = match arguments.command {
        Command::Check { names } => report::check(&names, threads)?,
        Command::Refute { names, brief } => report::refute(&names, brief)?,
    };
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
