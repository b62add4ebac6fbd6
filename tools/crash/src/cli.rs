//! The command line.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::{Parser, Subcommand};

/// Crash, corruption and fault testing of the ringwal storage engine.
#[derive(Debug, Parser)]
#[command(name = "ringwal-crash", version)]
pub struct Arguments {
    /// What to test.
    #[command(subcommand)]
    pub command: Command,
    /// What everything random comes from; printed, so that a run can be repeated. Default: the
    /// clock.
    #[arg(long, global = true)]
    pub seed: Option<u64>,
    /// How much: crash points, states, cycles or executions. Default: as in CI.
    #[arg(long, global = true)]
    pub count: Option<u64>,
    /// Also writes the result as JSON to FILE, or to standard output for `-`.
    #[arg(long, global = true, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Gives the engine a known bug; only in a build with `--cfg ringwal_mutants`.
    #[arg(long, global = true, hide = true, value_name = "NAME")]
    pub mutant: Option<String>,
}

/// What to test.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Seeded runs of the engine on a simulated disk, with power cuts, kills and faults.
    Sim,
    /// Runs one seed of `sim` again and tells what is done.
    Repro,
    /// Shows that known bugs in the engine are caught: builds it with each of them.
    Mutants,
    /// Seeded runs of a cluster on simulated disks and connections; --count is the number of seeds.
    Cluster,
    /// Seeded runs of the metadata store with Raft, under virtual time; --count is the number of seeds.
    Raft,
    /// Everything, again and again with other seeds.
    Deep {
        /// How long, in hours.
        #[arg(long)]
        hours: f64,
    },
    /// `kill -9` of a process that writes, at random moments and in every phase of the engine's
    /// life, and ext4 shut down under one; --count is the number of kills.
    Kill,
    /// The process that `kill` kills.
    #[command(hide = true)]
    KillChild(crate::kill::ChildArguments),
    /// Every decoder of bytes from disk, and whole recoveries, fed with mutated inputs; --count is
    /// the number of executions.
    Fuzz(FuzzArguments),
    /// Writes the files that `fuzz` starts from.
    Corpus(CorpusArguments),
    /// States that a loss of power could leave on a real file system.
    Replay(crate::block::replay::ReplayArguments),
    /// A disk that fails, in every way, under the real engine.
    Faults(crate::block::faults::FaultsArguments),
    /// A process of `replay` or `faults`.
    #[command(hide = true)]
    BlockRole(crate::block::role::RoleArguments),
    /// Three nodes that replicate, as processes in network namespaces, which are cut off, slowed
    /// down, stopped and killed in turn.
    Network(crate::nodes::Disturbing),
    /// A node of `network`.
    #[command(hide = true)]
    NetworkNode(crate::network::NodeArguments),
    /// Three nodes with a metadata store, as processes in network namespaces, which are cut off, stopped, killed,
    /// poisoned and switched in turn under clients whose whole history is checked; then topics that are made
    /// rapidly, and used at once.
    Store(crate::nodes::Disturbing),
    /// A node of `store`.
    #[command(hide = true)]
    StoreNode(crate::store::StoreNodeArguments),
}

/// See [`Command::Fuzz`].
#[derive(Clone, Debug, clap::Args)]
pub struct FuzzArguments {
    /// Repeats this one execution of the seed.
    #[arg(long, value_name = "NUMBER")]
    pub execution: Option<u64>,
}

/// See [`Command::Corpus`].
#[derive(Clone, Debug, clap::Args)]
pub struct CorpusArguments {
    /// Folder to write to; in the repository it is tools/crash/corpus.
    #[arg(long, value_name = "FOLDER")]
    pub write: PathBuf,
}

/// How much of it, and from which seed.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// What everything random comes from.
    pub seed: u64,
    /// As the command counts: crash points, states, cycles or executions.
    pub count: Option<u64>,
}

impl Arguments {
    /// How much of it, and from which seed.
    pub fn request(&self) -> Request {
        let clock = || {
            let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            since.as_nanos() as u64 & 0xFFFF_FFFF
        };
        Request { seed: self.seed.unwrap_or_else(clock), count: self.count }
    }
}

impl Command {
    /// As it is typed.
    pub fn name(&self) -> &'static str {
        match self {
            Command::Sim => "sim",
            Command::Repro => "repro",
            Command::Mutants => "mutants",
            Command::Cluster => "cluster",
            Command::Raft => "raft",
            Command::Deep { .. } => "deep",
            Command::Kill => "kill",
            Command::KillChild(_) => "kill-child",
            Command::Fuzz(_) => "fuzz",
            Command::Corpus(_) => "corpus",
            Command::Replay(_) => "replay",
            Command::Faults(_) => "faults",
            Command::BlockRole(_) => "block-role",
            Command::Network(_) => "network",
            Command::NetworkNode(_) => "network-node",
            Command::Store(_) => "store",
            Command::StoreNode(_) => "store-node",
        }
    }
}
