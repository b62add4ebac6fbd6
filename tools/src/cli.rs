//! The command line: subcommands, flags, and their values in human units.

mod cluster;

use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};
use tracing_subscriber::filter::LevelFilter;

use crate::logging;
use crate::offline::{DumpArgs, InspectArgs, RepairArgs, TailArgs, VerifyArgs};
use crate::report::slo::{self, Objective};

pub use cluster::*;

/// As the table of the README has them.
const EXIT_CODES: &str = "\
Exit codes:
  0    fine
  1    failure that has no code of its own; also a directory that another process has open
  2    usage: the command line, or options that contradict the directory
  3    the environment refuses: no io_uring, no such directory, no engine in it, no right, no space
  4    data is damaged
  5    an objective missed, or a regression
  130  interrupted by SIGINT or SIGTERM; what there was until then is written (follow exits 0 on
       SIGTERM, which is its usual end)";

/// Group commit on io_uring: measures how fast records become durable on this disk.
///
/// Without a subcommand it is `ringwal bench`.
#[derive(Debug, Parser)]
#[command(name = "ringwal", version, args_conflicts_with_subcommands = true)]
#[command(max_term_width = 100, after_help = EXIT_CODES)]
pub struct Cli {
    /// What to do; `bench` when left out.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The flags of `bench`, for when it is left out.
    #[command(flatten)]
    pub bench: BenchArgs,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Measure commit latency and throughput, beside what the bare device can do
    Bench(Box<BenchArgs>),
    /// Follow whoever leads, as a node of a cluster, until SIGTERM or SIGINT; SIGUSR1 prints metrics
    Follow(FollowArgs),
    /// Run one node of a cluster with its metadata store, until SIGTERM or SIGINT; SIGUSR1 prints metrics
    Node(NodeArgs),
    /// Run a cluster of some nodes on this machine, as processes of their own, until SIGTERM or SIGINT
    Cluster(ClusterArgs),
    /// Create, delete and show topics
    Topic(TopicArgs),
    /// Register, unregister and show brokers, which hold partitions
    Broker(BrokerArgs),
    /// Put, delete and show keys
    Key(KeyArgs),
    /// Raise and show high watermarks of partitions
    Watermark(WatermarkArgs),
    /// Show how every member of a cluster is
    Status(ClientArgs),
    /// Let another node lead
    TransferLeader(TransferArgs),
    /// Add, promote, remove and show members of a cluster
    Member(MemberArgs),
    /// Switch the fast path of every member on or off, or show where it is on
    FastPath(FastPathArgs),
    /// Let one node go on alone when a majority is gone for good: loses what only the others have
    RecoverMajority(MajorityArgs),
    /// Draw the page of a results folder again
    Report(ReportArgs),
    /// Compare two results folders: differences with their uncertainty; exits 5 on a regression
    Compare(CompareArgs),
    /// Check whether this machine and directory can run the engine, and how well
    Doctor(DoctorArgs),
    /// Show what a directory holds: segments, streams, epochs, orphans; also beside a running engine
    Inspect(InspectArgs),
    /// Check every byte of a directory, orphans included; exits 4 when it is damaged, or one of them
    /// is; one that is torn is only named
    Verify(VerifyArgs),
    /// Print records: stream, offset, CRC-32C, length, payload; also beside a running engine
    Dump(DumpArgs),
    /// Print the newest records of a stream, and follow it; also beside a running engine
    Tail(TailArgs),
    /// Mend a damaged directory, after copying what changes; loses only what it is told to
    Repair(RepairArgs),
    /// Print a completion script for a shell
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
    /// Print the manual page, or write one page per subcommand into a directory
    Man {
        /// Where to write the pages; without it the main page is printed.
        directory: Option<PathBuf>,
    },
    /// The writer that the recovery run kills
    #[command(hide = true)]
    RecoveryWriter(RecoveryWriterArgs),
    /// A follower of a measurement, or who does the same work unconnected
    #[command(hide = true)]
    BenchPeer(BenchPeerArgs),
    /// A node of a measurement with a metadata store
    #[command(hide = true)]
    BenchNode(BenchNodeArgs),
}

/// Flags of `ringwal bench`.
#[derive(Debug, Clone, Args)]
pub struct BenchArgs {
    /// Measure in this directory and keep what is written there; it must hold no records, except
    /// with --receipts [default: a directory of its own in the current folder, removed at the end]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,

    /// Time measured in each run
    #[arg(long, value_name = "TIME", default_value = "3500ms", value_parser = duration)]
    pub duration: Duration,

    /// Time before each measurement that does not count
    #[arg(long, value_name = "TIME", default_value = "400ms", value_parser = duration_or_zero)]
    pub warmup: Duration,

    /// Client threads of the loaded run, and streams of the open loop
    #[arg(long, value_name = "N", default_value_t = 64,
          value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub clients: u32,

    /// Records per second of the open loop, and of replicated-half and replicated-lagging [default:
    /// half of what many clients reach]
    #[arg(long, value_name = "N", value_parser = rate)]
    pub rate: Option<f64>,

    /// Walk the open loop through rising rates up to the knee
    #[arg(long, conflicts_with = "rate")]
    pub sweep: bool,

    /// Appends that the caller of the window runs keeps in flight
    #[arg(long, value_name = "N", default_value_t = 16_384,
          value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    pub window: u32,

    /// Payload of a record, at most 1 MB (1,000,000 bytes)
    #[arg(long, value_name = "SIZE", default_value = "128B", value_parser = record_size)]
    pub record_size: ByteSize,

    /// Shards: threads with a ring each
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u16).range(1..=64))]
    pub shards: u16,

    /// How the engine does its I/O; two, joined by a comma, are measured side by side
    #[arg(long, value_enum, value_delimiter = ',', default_value = "uring")]
    pub io: Vec<Io>,

    /// How a batch is made durable [default: dsync]
    #[arg(long, value_enum)]
    pub sync: Option<Sync>,

    /// Batches in flight on each shard [default: what the engine finds best]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=32))]
    pub flush_slots: Option<u16>,

    /// Time that a batch waits for more records [default: none]
    #[arg(long, value_name = "TIME", value_parser = duration_or_zero)]
    pub linger: Option<Duration>,

    /// Which runs to make [default: idle,loaded,open,window]; the last six are about replication
    /// and start nodes of their own
    #[arg(long, value_enum, value_delimiter = ',', value_name = "NAME,…")]
    pub only: Vec<RunName>,

    /// Replicate to so many followers in this process, over loopback: idle and loaded runs, beside an
    /// engine without followers
    #[arg(long, value_name = "N", conflicts_with = "config",
          value_parser = clap::value_parser!(u32).range(1..=16))]
    pub followers: Option<u32>,

    /// Lead as the node of this configuration (TOML); its other members follow as processes of
    /// their own: ringwal follow. Needs --dir
    #[arg(long, value_name = "FILE", requires = "dir")]
    pub config: Option<PathBuf>,

    /// Nodes of the metadata store in replicated and raft, each a process of its own
    #[arg(long, value_name = "N", default_value_t = 3,
          value_parser = clap::value_parser!(u16).range(3..=7))]
    pub nodes: u16,

    /// What replicated appends wait for [default: local,quorum]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "ACK,…")]
    pub ack: Vec<AckName>,

    /// The epoch to lead in, greater than every one before [default: milliseconds since 1970]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1 << 62))]
    pub epoch: Option<u64>,

    /// Bytes that a follower lacks in replicated-lagging and catch-up; the disk takes twice as much
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = behind)]
    pub behind: ByteSize,

    /// Keep the data directory; with --config nothing is trimmed either, and records that are there
    /// stay
    #[arg(long)]
    pub keep: bool,

    /// Write a line per receipt (stream, offset, CRC-32C of the record) to this file, after the
    /// receipt; implies --keep, and nothing is trimmed
    #[arg(long, value_name = "FILE")]
    pub receipts: Option<PathBuf>,

    /// Folder of the report [default: ringwal-results/TIME]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,

    /// Write report.json here too; "-" is standard output, instead of the screen
    #[arg(long, value_name = "FILE|-")]
    pub json: Option<PathBuf>,

    /// Seed of the records' bytes [default: from the clock, printed in the report]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,

    /// Upper bounds on response latency, such as 'p99<2ms' or 'open:p99.9<5ms,max<50ms'; exits 5
    /// when one is missed. A bound without a run holds for all but batch, window and recovery,
    /// whose callers do not wait for each record
    #[arg(long, value_name = "BOUND", value_parser = objectives)]
    pub slo: Option<Objectives>,
}

/// Flags of `ringwal follow`.
#[derive(Debug, Args)]
pub struct FollowArgs {
    /// The directory of this node's engine; it is made when it is not there. It belongs to this node
    /// and to no other
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,

    /// The configuration of this node (TOML; the README shows one)
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,

    /// Print JSON: a line for each change, and once a second when it is more or less behind
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
}

/// Flags of `ringwal report`.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// The results folder, or the report.json in it.
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
}

/// Flags of `ringwal compare`.
#[derive(Debug, Args)]
pub struct CompareArgs {
    /// The results folder before.
    #[arg(value_name = "A")]
    pub before: PathBuf,
    /// The results folder after.
    #[arg(value_name = "B")]
    pub after: PathBuf,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Seed of the resampling; the same seed gives the same answer.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
}

/// Flags of `ringwal doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// The directory to judge; it need not exist yet.
    #[arg(value_name = "DIR", default_value = ".")]
    pub directory: PathBuf,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Flags of the hidden writer of the recovery run.
#[derive(Debug, Args)]
pub struct RecoveryWriterArgs {
    /// Where to write.
    #[arg(long)]
    pub dir: PathBuf,
    /// How many records.
    #[arg(long)]
    pub records: u64,
    /// Payload of each.
    #[arg(long)]
    pub record_bytes: u64,
    /// Seed of their bytes.
    #[arg(long)]
    pub seed: u64,
    /// Shards.
    #[arg(long)]
    pub shards: u16,
    /// How the engine does its I/O.
    #[arg(long, value_enum)]
    pub io: Io,
    /// How a batch is made durable.
    #[arg(long, value_enum)]
    pub sync: Option<Sync>,
    /// Close the engine in the end instead of waiting for death.
    #[arg(long)]
    pub close: bool,
}

/// Flags of a hidden process beside a measurement.
#[derive(Debug, Args)]
pub struct BenchPeerArgs {
    /// The process that it ends with.
    #[arg(long)]
    pub parent: u32,
    /// The directory of its engine.
    #[arg(long)]
    pub dir: PathBuf,
    /// Shards.
    #[arg(long)]
    pub shards: u16,
    /// Length of its segments.
    #[arg(long)]
    pub segment_bytes: u64,
    /// How the engine does its I/O.
    #[arg(long, value_enum)]
    pub io: Io,
    /// How a batch is made durable.
    #[arg(long, value_enum)]
    pub sync: Option<Sync>,
    /// It follows, as this node; without it, it writes what it is told to.
    #[arg(long, requires = "listen", requires = "members")]
    pub node: Option<u64>,
    /// Members of its cluster.
    #[arg(long)]
    pub members: Option<u64>,
    /// Where it listens.
    #[arg(long)]
    pub listen: Option<String>,
    /// It says how long it took to get so many records.
    #[arg(long)]
    pub await_records: Option<u64>,
    /// Streams that it writes.
    #[arg(long, default_value_t = 1)]
    pub streams: usize,
    /// Payload of each of its records.
    #[arg(long, default_value_t = 128)]
    pub record_bytes: usize,
    /// Seed of their bytes.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// Flags of a hidden node of a measurement.
#[derive(Debug, Args)]
pub struct BenchNodeArgs {
    /// The process that it ends with.
    #[arg(long)]
    pub parent: u32,
    /// The directory of its engine.
    #[arg(long)]
    pub dir: PathBuf,
    /// Shards.
    #[arg(long)]
    pub shards: u16,
    /// How the engine does its I/O.
    #[arg(long, value_enum)]
    pub io: Io,
    /// How a batch is made durable.
    #[arg(long, value_enum)]
    pub sync: Option<Sync>,
    /// Which node it is.
    #[arg(long)]
    pub node: u64,
    /// Where the nodes listen, the first one first.
    #[arg(long, value_delimiter = ',')]
    pub members: Vec<String>,
}

/// How the engine does its I/O.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Io {
    /// io_uring
    Uring,
    /// Plain system calls on the shard's thread
    Blocking,
}

/// How a batch is made durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Sync {
    /// The write carries RWF_DSYNC
    Dsync,
    /// An fdatasync follows the write
    Fdatasync,
}

/// What a replicated append waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum AckName {
    /// This node's device
    Local,
    /// The devices of a majority of the members
    Quorum,
}

/// The kinds of run, in the order of running: those that leave the device with much to write back
/// come last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum RunName {
    /// One client, closed loop
    Idle,
    /// The same through a shard in the caller's own loop
    OwnLoop,
    /// Many clients, closed loop
    Loaded,
    /// A fixed rate, latency from the intended start
    Open,
    /// Many segment rotations against none
    Rotation,
    /// Batches of 1,000 records, one at a time
    Batch,
    /// One caller with many appends in flight
    Window,
    /// Opening 1,000,000 records after a kill and after a clean close
    Recovery,
    /// Like window, with 4 KiB records
    #[value(name = "window-4k")]
    Window4k,
    /// The sender alone: frames of 64 KiB, and small ones
    Sender,
    /// Half of the saturated rate with two followers in processes of their own, beside a control and
    /// a lone leader
    ReplicatedHalf,
    /// The same with a follower that is gone, stopped, or behind
    ReplicatedLagging,
    /// How fast a follower gets what it lacks
    CatchUp,
    /// Topics created on the fast path of a metadata store whose nodes are processes of their own, in
    /// the leader's process and through the port; fail-over; when followers see what was answered
    Replicated,
    /// The same topics through Raft; with `replicated` in turn with it
    Raft,
}

/// A name as the command line and the report write it.
pub fn name_of(value: &impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

/// Parsed service level objectives.
#[derive(Debug, Clone)]
pub struct Objectives(pub Vec<Objective>);

fn objectives(text: &str) -> Result<Objectives, String> {
    slo::parse(text).map(Objectives).map_err(|error| error.to_string())
}

fn duration(text: &str) -> Result<Duration, String> {
    match duration_or_zero(text)? {
        Duration::ZERO => Err("it must be longer than nothing".to_owned()),
        duration => Ok(duration),
    }
}

fn duration_or_zero(text: &str) -> Result<Duration, String> {
    const MAX: Duration = Duration::from_secs(24 * 60 * 60);
    match humantime::parse_duration(text) {
        Ok(duration) if duration <= MAX => Ok(duration),
        Ok(_) => Err("at most 24h".to_owned()),
        Err(error) => Err(format!("{error}; write a number with a unit, such as 5s or 200ms")),
    }
}

fn record_size(text: &str) -> Result<ByteSize, String> {
    match text.parse::<ByteSize>() {
        Ok(size) if size <= ByteSize::mb(1) => Ok(size),
        Ok(_) => Err("at most 1 MB, 1,000,000 bytes".to_owned()),
        Err(error) => Err(format!("{error}; write a number with a unit, such as 128B or 4KiB")),
    }
}

fn behind(text: &str) -> Result<ByteSize, String> {
    match text.parse::<ByteSize>() {
        Ok(size) if (ByteSize::mib(1)..=ByteSize::gib(64)).contains(&size) => Ok(size),
        Ok(_) => Err("from 1MiB to 64GiB".to_owned()),
        Err(error) => Err(format!("{error}; write a number with a unit, such as 1GiB")),
    }
}

fn rate(text: &str) -> Result<f64, String> {
    let text = text.trim();
    let (digits, factor) = match text.as_bytes().last() {
        Some(b'k' | b'K') => (&text[..text.len() - 1], 1e3),
        Some(b'M') => (&text[..text.len() - 1], 1e6),
        _ => (text, 1.0),
    };
    match digits.trim().parse::<f64>().map(|number| number * factor) {
        Ok(rate) if (0.1..=1e9).contains(&rate) => Ok(rate),
        Ok(_) => Err("from 0.1 to 1000M records per second".to_owned()),
        Err(_) => Err("write records per second, such as 5000 or 50k".to_owned()),
    }
}

/// The completion script for `shell`.
pub fn completions(shell: clap_complete::Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "ringwal", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// The main manual page.
pub fn manual_page() -> std::io::Result<String> {
    let mut page = Vec::new();
    clap_mangen::Man::new(Cli::command()).render(&mut page)?;
    Ok(String::from_utf8_lossy(&page).into_owned())
}

/// Writes a manual page per subcommand.
pub fn write_manual_pages(directory: &std::path::Path) -> std::io::Result<()> {
    std::fs::create_dir_all(directory)?;
    clap_mangen::generate_to(Cli::command(), directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(std::iter::once("ringwal").chain(arguments.iter().copied()))
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn bench_is_what_happens_without_a_subcommand() {
        let cli = parse(&["--only", "idle,window-4k", "--rate", "50k"]).unwrap();
        assert!(cli.command.is_none());
        assert_eq!(cli.bench.only, [RunName::Idle, RunName::Window4k]);
        assert_eq!(cli.bench.rate, Some(50_000.0));
        let cli = parse(&["bench", "--record-size", "4KiB", "--io", "uring,blocking"]).unwrap();
        let Some(Command::Bench(bench)) = cli.command else { panic!("{cli:?}") };
        assert_eq!(bench.record_size, ByteSize::kib(4));
        assert_eq!(bench.io, [Io::Uring, Io::Blocking]);
    }

    #[test]
    fn nonsense_is_refused() {
        for nonsense in [
            &["--duration", "0s"][..],
            &["--duration", "5"],
            &["--duration", "25h"],
            &["--clients", "0"],
            &["--clients", "many"],
            &["--rate", "-1"],
            &["--rate", "NaN"],
            &["--only", "everything"],
            &["--record-size", "2GiB"],
            &["--record-size", "-5"],
            &["--slo", "fast"],
            &["--shards", "0"],
            &["--io", "floppy"],
            &["--window", "0"],
            &["--followers", "0"],
            &["--only", "idle", "doctor"],
            &["nonsense"],
            &["report"],
            &["compare", "a"],
        ] {
            let error = parse(nonsense).expect_err(&format!("{nonsense:?}"));
            assert_eq!(error.exit_code(), 2, "{nonsense:?}");
        }
    }

    #[test]
    fn a_record_of_nothing_is_allowed() {
        assert_eq!(parse(&["--record-size", "0B"]).unwrap().bench.record_size, ByteSize::b(0));
    }
}
