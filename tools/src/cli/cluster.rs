//! Flags of the subcommands that run nodes and ask them.

use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use clap::{Args, Subcommand, ValueEnum};
use tracing_subscriber::filter::LevelFilter;

use super::{AckName, Io, Sync, duration};
use crate::logging;

/// Flags of whoever asks a cluster.
#[derive(Debug, Clone, Args)]
pub struct ClientArgs {
    /// The cluster's file (TOML): its id, and nodes of it
    #[arg(long, value_name = "FILE", default_value = "cluster.toml")]
    pub config: PathBuf,

    /// Print JSON
    #[arg(long)]
    pub json: bool,

    /// How long to try, at one node after the other
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    pub deadline: Duration,
}

/// What a command waits for.
#[derive(Debug, Clone, Args)]
pub struct WriteArgs {
    /// Wait for the leader's device, or for those of a majority
    #[arg(long, value_enum, default_value = "local")]
    pub ack: AckName,
}

/// How what is shown is read.
#[derive(Debug, Clone, Args)]
pub struct ReadArgs {
    /// Show what is there now, not what the node that is asked has applied so far
    #[arg(long)]
    pub linearizable: bool,
}

/// Flags of `ringwal node`.
#[derive(Debug, Args)]
pub struct NodeArgs {
    /// The configuration of this node (TOML; the README shows one)
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,

    /// The directory of this node's engine; it is made when it is not there. It belongs to this node
    /// and to no other [default: node-N in the current folder]
    #[arg(long, value_name = "DIR")]
    pub directory: Option<PathBuf>,

    /// The node is new to a cluster that is there: it waits until it is added (ringwal member add)
    #[arg(long)]
    pub join: bool,

    /// Print JSON: a line for each change
    #[arg(long)]
    pub json: bool,

    /// Shards of a new directory: threads with a ring each
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u16).range(1..=64))]
    pub shards: u16,

    /// Length of the segments of a new directory [default: 64 MiB]
    #[arg(long, value_name = "SIZE")]
    pub segment_size: Option<ByteSize>,

    /// How the engine does its I/O
    #[arg(long, value_enum, default_value = "uring")]
    pub io: Io,

    /// How a batch is made durable [default: dsync]
    #[arg(long, value_enum)]
    pub sync: Option<Sync>,

    /// What is logged on standard error: off, error, warn, info, debug, trace [default: RUST_LOG
    /// where that is one of these, else warn]
    #[arg(long, value_name = "LEVEL", value_parser = logging::level)]
    pub log: Option<LevelFilter>,

    /// The process that it ends with
    #[arg(long, hide = true)]
    pub parent: Option<u32>,
}

/// Flags of `ringwal recover-majority`.
#[derive(Debug, Args)]
pub struct MajorityArgs {
    /// The configuration of the node that is left
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,

    /// Its directory; nothing else may use it meanwhile
    #[arg(long, value_name = "DIR")]
    pub directory: PathBuf,

    /// What only the other nodes have is lost, also what was acknowledged, and they never come back
    #[arg(long)]
    pub accept_data_loss: bool,

    /// Print JSON
    #[arg(long)]
    pub json: bool,

    /// What is logged on standard error: off, error, warn, info, debug, trace [default: RUST_LOG
    /// where that is one of these, else warn]
    #[arg(long, value_name = "LEVEL", value_parser = logging::level)]
    pub log: Option<LevelFilter>,
}

/// Flags of `ringwal cluster`.
#[derive(Debug, Args)]
pub struct ClusterArgs {
    /// How many nodes [default: 3, or as many as the folder has files of]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=16))]
    pub nodes: Option<u16>,

    /// The folder with the files and the data of the nodes. What is there is gone on with
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub directory: PathBuf,

    /// The port of node 1; the others have those that follow [default: 9291, or what the folder's
    /// files say]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1024..=65_000))]
    pub port: Option<u16>,

    /// How the engines do their I/O
    #[arg(long, value_enum, default_value = "uring")]
    pub io: Io,

    /// Length of the segments of new directories [default: 64 MiB]
    #[arg(long, value_name = "SIZE")]
    pub segment_size: Option<ByteSize>,

    /// What the nodes log: see ringwal node [default: info]
    #[arg(long, value_name = "LEVEL", value_parser = logging::level)]
    pub log: Option<LevelFilter>,

    /// Print JSON: a line for each change
    #[arg(long)]
    pub json: bool,
}

/// Flags of `ringwal topic`.
#[derive(Debug, Args)]
pub struct TopicArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: TopicCommand,
}

/// What `ringwal topic` does.
#[derive(Debug, Subcommand)]
pub enum TopicCommand {
    /// Make a topic; its partitions are placed on the registered brokers
    Create {
        /// Its name, which no other topic has
        name: String,
        /// How many partitions
        #[arg(long, value_name = "N", default_value_t = 1)]
        partitions: u32,
        /// How many brokers hold each partition
        #[arg(long, value_name = "N", default_value_t = 1)]
        replication_factor: u16,
        /// Something else to be known of it; may be given several times
        #[arg(long = "set", value_name = "KEY=VALUE", value_parser = setting)]
        settings: Vec<(String, String)>,
        /// See there.
        #[command(flatten)]
        write: WriteArgs,
        /// See there.
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Drop a topic with its partitions
    Delete {
        /// Its name
        name: String,
        /// See there.
        #[command(flatten)]
        write: WriteArgs,
        /// See there.
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Show all topics
    List {
        /// See there.
        #[command(flatten)]
        read: ReadArgs,
        /// See there.
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Show one topic with its partitions
    Get {
        /// Its name
        name: String,
        /// See there.
        #[command(flatten)]
        read: ReadArgs,
        /// See there.
        #[command(flatten)]
        client: ClientArgs,
    },
}

/// Flags of `ringwal broker`.
#[derive(Debug, Args)]
pub struct BrokerArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: BrokerCommand,
}

/// What `ringwal broker` does.
#[derive(Debug, Subcommand)]
pub enum BrokerCommand {
    /// Make a broker known, or change where it is reached
    Register {
        /// Its number
        broker: u64,
        /// Where it is reached, the preferred address first
        addresses: Vec<String>,
        /// See there.
        #[command(flatten)]
        write: WriteArgs,
        /// See there.
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Forget a broker; partitions that it leads are led by another one in sync, or by none
    Unregister {
        /// Its number
        broker: u64,
        /// See there.
        #[command(flatten)]
        write: WriteArgs,
        /// See there.
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Show all brokers
    List {
        /// See there.
        #[command(flatten)]
        read: ReadArgs,
        /// See there.
        #[command(flatten)]
        client: ClientArgs,
    },
}

/// Flags of `ringwal key`.
#[derive(Debug, Args)]
pub struct KeyArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: KeyCommand,
}

/// What must be there before a key is changed.
#[derive(Debug, Clone, Args)]
#[group(multiple = false)]
pub struct ExpectedArgs {
    /// Only when the key is not there
    #[arg(long)]
    pub if_absent: bool,
    /// Only when the key has this version, as key get shows it
    #[arg(long, value_name = "EPOCH:OFFSET", value_parser = version)]
    pub if_version: Option<(u64, u64)>,
}

/// What `ringwal key` does.
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Set a key
    Put {
        /// Which key
        key: String,
        /// Its value
        value: String,
        /// See there.
        #[command(flatten)]
        expected: ExpectedArgs,
        /// See there.
        #[command(flatten)]
        write: WriteArgs,
        /// See there.
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Show the value of a key
    Get {
        /// Which key
        key: String,
        /// See there.
        #[command(flatten)]
        read: ReadArgs,
        /// See there.
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Remove a key
    Delete {
        /// Which key
        key: String,
        /// See there.
        #[command(flatten)]
        expected: ExpectedArgs,
        /// See there.
        #[command(flatten)]
        write: WriteArgs,
        /// See there.
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Show keys, without their values
    List {
        /// How they begin [default: all keys]
        #[arg(default_value = "", hide_default_value = true)]
        prefix: String,
        /// See there.
        #[command(flatten)]
        read: ReadArgs,
        /// See there.
        #[command(flatten)]
        client: ClientArgs,
    },
}

/// Flags of `ringwal watermark`.
#[derive(Debug, Args)]
pub struct WatermarkArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: WatermarkCommand,
}

/// What `ringwal watermark` does.
#[derive(Debug, Subcommand)]
pub enum WatermarkCommand {
    /// Raise the high watermark of a partition; it never falls
    Raise {
        /// Of which topic
        topic: String,
        /// Which partition
        partition: u32,
        /// The offset
        offset: u64,
        /// See there.
        #[command(flatten)]
        write: WriteArgs,
        /// See there.
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Show the high watermark of a partition
    Get {
        /// Of which topic
        topic: String,
        /// Which partition
        partition: u32,
        /// See there.
        #[command(flatten)]
        read: ReadArgs,
        /// See there.
        #[command(flatten)]
        client: ClientArgs,
    },
}

/// Flags of `ringwal transfer-leader`.
#[derive(Debug, Args)]
pub struct TransferArgs {
    /// The node that is to lead [default: one that has everything]
    #[arg(long, value_name = "N", value_parser = node())]
    pub to: Option<u64>,
    /// See there.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// Flags of `ringwal member`.
#[derive(Debug, Args)]
pub struct MemberArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: MemberCommand,
}

/// What `ringwal member` does.
#[derive(Debug, Subcommand)]
pub enum MemberCommand {
    /// Add a node as a learner: it gets everything and counts for no majority. It has to run (ringwal
    /// node --join). Also what a node needs whose disk is another one than before
    Add {
        /// Its number
        #[arg(value_parser = node())]
        node: u64,
        /// host:port at which the others reach it
        address: String,
        /// See there.
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Let learners vote and count for majorities, once a majority of all who then vote has what is
    /// committed
    Promote {
        /// Their numbers
        #[arg(required = true, value_parser = node())]
        nodes: Vec<u64>,
        /// See there.
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Remove a member. It is not stopped
    Remove {
        /// Its number
        #[arg(value_parser = node())]
        node: u64,
        /// See there.
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Show all members
    List {
        /// See there.
        #[command(flatten)]
        client: ClientArgs,
    },
}

/// Flags of `ringwal fast-path`.
#[derive(Debug, Args)]
pub struct FastPathArgs {
    /// What to do. A node that is started again does what its configuration says
    #[arg(value_enum)]
    pub action: FastPathAction,
    /// See there.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// What `ringwal fast-path` does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FastPathAction {
    /// The leader answers from its own log, and followers get it at the same time
    On,
    /// Every command goes through Raft
    Off,
    /// Only show it
    Show,
}

fn node() -> clap::builder::RangedU64ValueParser {
    clap::value_parser!(u64).range(1..1 << 63)
}

fn setting(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write it as KEY=VALUE, such as retention.ms=60000".to_owned()),
    }
}

fn version(text: &str) -> Result<(u64, u64), String> {
    let numbers = text
        .split_once(':')
        .and_then(|(epoch, offset)| Some((epoch.parse().ok()?, offset.parse().ok()?)));
    numbers.ok_or_else(|| "write it as EPOCH:OFFSET, such as 3:17".to_owned())
}
