//! The subcommands that only read what a measurement has left: `report` and `compare`.

use std::io::IsTerminal as _;

use anyhow::{Context as _, Result};

use crate::bench;
use crate::cli::{CompareArgs, ReportArgs};
use crate::exit::{self, Exit};
use crate::progress::colour_allowed;
use crate::report::{compare, read, redraw};

/// `ringwal report DIR`: draws the page again and prints the screen.
pub fn report(args: &ReportArgs) -> Result<Exit> {
    let (report, written) = redraw(&args.directory)?;
    let mut text = bench::screen(&report);
    for path in written {
        text += &format!("wrote {}\n", path.display());
    }
    exit::print_last(&text).map(|()| Exit::Success)
}

/// `ringwal compare A B`: what has changed, and how certain that is.
pub fn compare(args: &CompareArgs) -> Result<Exit> {
    let (before, after) = (read(&args.before)?, read(&args.after)?);
    let comparison = compare::compare(&before, &after, args.seed);
    if args.json {
        let mut json = serde_json::to_string_pretty(&comparison).context("the comparison")?;
        json.push('\n');
        exit::print_last(&json)?;
    } else {
        exit::print_last(&comparison.table(colour_allowed(std::io::stdout().is_terminal())))?;
    }
    Ok(if comparison.regression { Exit::Regression } else { Exit::Success })
}
