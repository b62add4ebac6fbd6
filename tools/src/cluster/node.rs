//! `ringwal node`: one node of a cluster with its metadata store, until it is told to stop.

use anyhow::Result;

use crate::cli::NodeArgs;
use crate::exit::Exit;

/// Runs the subcommand.
pub fn run(_args: &NodeArgs) -> Result<Exit> {
    anyhow::bail!("not yet")
}
