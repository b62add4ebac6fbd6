//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::{Args, Parser, Subcommand};

use crate::engine::Contender;
use crate::workload::{ALL, Shape, Workload};
use crate::{engines, workload};

/// Runs the same workloads on ringwal, on other storage engines and on the bare device, each durable before it
/// returns, and says so where one is not.
#[derive(Debug, Parser)]
#[command(name = "peers", version)]
pub struct Settings {
    /// One run in this process; the program starts itself with it.
    #[command(subcommand)]
    pub one: Option<One>,
    /// A fifth of everything, once: minutes instead of half an hour.
    #[arg(long)]
    pub quick: bool,
    /// Workloads, W1 to W8; all but W7, which takes an hour for each engine, when not given.
    #[arg(long, value_delimiter = ',', value_name = "W1,…")]
    pub workload: Vec<String>,
    /// Engines; all that are in this build when not given. `list` shows them.
    #[arg(long, value_delimiter = ',', value_name = "NAME,…")]
    pub engine: Vec<String>,
    /// Length of a run; 2, or 0.4 with --quick.
    #[arg(long)]
    pub seconds: Option<f64>,
    /// Runs of each, interleaved; 3, or 1 with --quick.
    #[arg(long)]
    pub repeat: Option<usize>,
    /// Records of W6; 1,000,000, or 100,000 with --quick. A multiple of 1,000.
    #[arg(long)]
    pub records: Option<u64>,
    /// Minutes of W7.
    #[arg(long, default_value_t = 60.0)]
    pub minutes: f64,
    /// Where data is written, and removed again; the current folder when not given.
    #[arg(long, default_value = ".")]
    pub dir: PathBuf,
    /// Where the page is written.
    #[arg(long, default_value = "ringwal-peers.html", value_name = "FILE")]
    pub html: PathBuf,
    /// Where the figures are written, `-` for the terminal.
    #[arg(long, value_name = "FILE|-")]
    pub json: Option<PathBuf>,
}

/// What a process does that is not the one a person started.
#[derive(Debug, Subcommand)]
pub enum One {
    /// The engines of this build, and how each makes an append durable.
    List,
    /// One workload on one engine; prints a line of JSON.
    #[command(hide = true)]
    Run(Run),
    /// Writes for a replay, prints a line of JSON, and ends as a killed process does.
    #[command(hide = true)]
    Write(Run),
}

/// One run.
#[derive(Debug, Args)]
pub struct Run {
    /// Engine.
    pub engine: String,
    /// Workload.
    pub workload: String,
    /// Its directory, which exists.
    pub directory: PathBuf,
    /// Nanoseconds that do not count.
    pub warm_up_ns: u64,
    /// Nanoseconds that count.
    pub length_ns: u64,
    /// Records of a replay, or rate of a long run.
    pub number: u64,
}

/// What is run, all defaults filled in.
pub struct Plan {
    /// Engines, in the order in which they take turns.
    pub contenders: Vec<Contender>,
    /// Workloads.
    pub workloads: Vec<Workload>,
    /// Runs of each.
    pub repeat: usize,
    /// Before a run counts.
    pub warm_up: Duration,
    /// A run.
    pub length: Duration,
    /// A rate of an open loop.
    pub step: Duration,
    /// A long run.
    pub drift: Duration,
    /// Records of a replay.
    pub records: u64,
}

impl Settings {
    /// Checks everything.
    ///
    /// # Errors
    /// When a name is unknown or a number makes no sense.
    pub fn plan(&self) -> Result<Plan> {
        let seconds = self.seconds.unwrap_or(if self.quick { 0.4 } else { 2.0 });
        ensure!((0.05..=3600.0).contains(&seconds), "--seconds {seconds}: 0.05 to 3600");
        let repeat = self.repeat.unwrap_or(if self.quick { 1 } else { 3 });
        ensure!((1..=100).contains(&repeat), "--repeat {repeat}: 1 to 100");
        let records = self.records.unwrap_or(if self.quick { 100_000 } else { 1_000_000 });
        ensure!(
            records > 0 && records.is_multiple_of(1000),
            "--records {records}: a multiple of 1,000"
        );
        ensure!((0.1..=1e5).contains(&self.minutes), "--minutes {}: 0.1 to 100000", self.minutes);
        let names = |names: &[String]| names.iter().map(|name| name.trim().to_owned()).collect();
        let engine_names: Vec<String> = names(&self.engine);
        let workload_names: Vec<String> = names(&self.workload);
        let contenders = match engine_names.is_empty() {
            true => engines::all(),
            false => {
                engine_names.iter().map(|name| engines::by_name(name)).collect::<Result<_>>()?
            }
        };
        let workloads = match workload_names.is_empty() {
            true => ALL.into_iter().filter(|workload| workload.shape != Shape::Drift).collect(),
            false => {
                workload_names.iter().map(|name| workload::by_name(name)).collect::<Result<_>>()?
            }
        };
        Ok(Plan {
            contenders,
            workloads,
            repeat,
            warm_up: Duration::from_secs_f64((seconds / 5.0).clamp(0.1, 1.0)),
            length: Duration::from_secs_f64(seconds),
            step: Duration::from_secs_f64((seconds / 3.0).max(0.05)),
            drift: Duration::from_secs_f64(self.minutes * 60.0),
            records,
        })
    }
}
