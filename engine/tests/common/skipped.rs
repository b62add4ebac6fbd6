//! How a test says that it did not run.

use std::io::Write;

/// Says on standard error, past the harness, why a test did not run.
pub fn skipped(reason: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: {reason}");
}
