//! Flags of the offline tools.

use std::path::PathBuf;

use clap::Args;
use ringwal_engine::offline::Cut;

/// Flags of `ringwal inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// The engine's directory; an engine may be running in it.
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Flags of `ringwal verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// The engine's directory; no engine may be running in it.
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Flags of `ringwal dump`.
#[derive(Debug, Args)]
pub struct DumpArgs {
    /// The engine's directory; an engine may be running in it.
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
    /// Only this stream, in the order of its offsets; all streams come in the order in which they
    /// were written.
    #[arg(long, value_name = "ID")]
    pub stream: Option<u64>,
    /// Start at this offset of the stream.
    #[arg(long, value_name = "OFFSET", requires = "stream")]
    pub from: Option<u64>,
    /// Stop after this many records.
    #[arg(long, value_name = "N")]
    pub limit: Option<u64>,
    /// One JSON object per record, with the payload in base64.
    #[arg(long)]
    pub json: bool,
    /// Count the records of each stream instead of printing them.
    #[arg(long, conflicts_with_all = ["from", "limit"])]
    pub stats: bool,
    /// The records that were cut and are kept as orphans, file by file, instead of those of the
    /// journal; inspect lists the files.
    #[arg(long, conflicts_with = "stats")]
    pub orphans: bool,
}

/// Flags of `ringwal tail`.
#[derive(Debug, Args)]
pub struct TailArgs {
    /// The engine's directory; an engine may be running in it.
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
    /// Which stream.
    #[arg(long, value_name = "ID")]
    pub stream: u64,
    /// Go on as records come. They show up to 200 ms after they were written.
    #[arg(short, long)]
    pub follow: bool,
    /// Start at this offset [default: ten records before the end]
    #[arg(long, value_name = "OFFSET")]
    pub from: Option<u64>,
    /// One JSON object per record, with the payload in base64.
    #[arg(long)]
    pub json: bool,
}

/// Flags of `ringwal repair`.
#[derive(Debug, Args)]
pub struct RepairArgs {
    /// The engine's directory; no engine may be running in it.
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
    /// Only say what is damaged and what would be done.
    #[arg(long)]
    pub dry_run: bool,
    /// Give up everything that this shard wrote from this place on, as verify prints it; once for
    /// each damaged shard.
    #[arg(long, value_name = "SHARD:SEGMENT:BYTE")]
    pub accept_data_loss_from: Vec<Cut>,
    /// Folder for copies of every file that changes; it must not exist yet [default:
    /// DIR/backup-TIME]
    #[arg(long, value_name = "FOLDER")]
    pub backup: Option<PathBuf>,
    /// Fetch what is damaged from another node of the cluster, which runs; nothing is changed
    /// unless it has all of it. Running it again goes on where it was
    #[arg(long, value_name = "HOST:PORT", requires = "config")]
    pub from: Option<String>,
    /// The replication configuration of the node whose directory this is: cluster, node, members,
    /// TLS
    #[arg(long, value_name = "FILE", requires = "from")]
    pub config: Option<PathBuf>,
}
