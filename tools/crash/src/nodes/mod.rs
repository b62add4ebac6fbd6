//! Three nodes as processes in network namespaces of their own, for `network` and `store`: how they are started,
//! told and heard, how the network between them is disturbed, and how their directories are read when they are
//! closed.

pub mod directory;
mod hearing;
mod log;
mod process;
pub mod topology;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::report::Report;
pub use hearing::{Hearing, Processes};
pub use process::{Heard, Voice, run_node};

/// The kernel needs a moment to let go of what a killed process had open.
pub const LOCK_WAIT: Duration = Duration::from_secs(20);
/// The port of every node.
pub const PORT: u16 = 9291;
/// From so many seconds on, each kind of disturbance must have come.
pub const SECONDS_FOR_EVERY_TURN: u64 = 60;

/// How a set of nodes is disturbed.
#[derive(Clone, Debug, clap::Args)]
pub struct Disturbing {
    /// How long they are disturbed.
    #[arg(long, default_value_t = 60)]
    pub seconds: u64,
    /// Keeps directories and logs in FOLDER when something fails.
    #[arg(long, value_name = "FOLDER")]
    pub keep: Option<PathBuf>,
}

impl Default for Disturbing {
    fn default() -> Self {
        Self { seconds: 60, keep: None }
    }
}

/// Runs something in a thread of its own, whose namespaces nobody else is in, with a directory that goes away when
/// nothing fails.
///
/// # Errors
/// Those of `what`; where it cannot run, that is said in the report.
pub fn run_alone(
    name: &str,
    seed: u64,
    arguments: &Disturbing,
    report: &mut Report,
    what: impl FnOnce(&Path, &mut Report) -> Result<()> + Send,
) -> Result<()> {
    if let Some(why) = topology::missing() {
        report.skip(name, &why);
        return Ok(());
    }
    let place = tempfile::tempdir().context("making a directory for the nodes")?;
    let before = report.failed();
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| what(place.path(), report));
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    if report.failed() > before
        && let Some(keep) = &arguments.keep
    {
        let place = place.keep();
        fs::create_dir_all(keep).with_context(|| format!("creating {}", keep.display()))?;
        let kept = keep.join(format!("seed-{seed}"));
        let moved = std::process::Command::new("mv").arg(&place).arg(&kept).status();
        let is_moved = moved.is_ok_and(|status| status.success());
        println!("  evidence is in {}", if is_moved { &kept } else { &place }.display());
    }
    Ok(())
}
