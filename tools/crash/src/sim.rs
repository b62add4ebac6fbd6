//! Seeded runs of the engine on the simulated disk.
use anyhow::Result;

use crate::cli::Request;
use crate::report::Report;

/// Runs it.
pub fn run(_request: Request, report: &mut Report) -> Result<()> {
    report.skip("sim", "not there yet");
    Ok(())
}
