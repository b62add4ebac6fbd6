//! `peers`: this engine side by side with those that it would be used instead of.
//!
//! The way of a run: `settings.rs` → `matrix.rs`, which starts this program again for each → `work/`, one file
//! for each shape of workload → `engines/`, one file for each engine → `costs.rs` → `cell.rs`, and back in the
//! first process `summary.rs` → `table.rs`, `json.rs`, `html.rs`.

mod cell;
mod checker;
mod costs;
mod device;
mod engine;
mod engines;
mod flush_calls;
mod html;
#[allow(dead_code, reason = "shared with the `ringwal` program, which uses all of it")]
#[path = "../../../tools/src/report/human.rs"]
mod human;
mod json;
mod load;
mod machine;
mod matrix;
mod records;
mod settings;
mod summary;
#[allow(dead_code, reason = "shared with the `ringwal` program, which uses all of it")]
#[path = "../../../tools/src/report/svg.rs"]
mod svg;
mod table;
mod work;
mod workload;

use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context as _, Result};
use clap::Parser as _;
use signal_hook::consts::{SIGINT, SIGTERM};

use machine::Machine;
use settings::{One, Settings};
use summary::Summary;

/// Exit code after SIGINT and SIGTERM.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    match run(&Settings::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(settings: &Settings) -> Result<ExitCode> {
    match &settings.one {
        Some(One::List) => return list().map(|()| ExitCode::SUCCESS),
        Some(One::Run(run)) => return matrix::run_here(run, false).map(|()| ExitCode::SUCCESS),
        Some(One::Write(run)) => return matrix::run_here(run, true).map(|()| ExitCode::SUCCESS),
        None => {}
    }
    let plan = settings.plan()?;
    let machine = Machine::look(&settings.dir)?;
    for warning in machine.warnings() {
        eprintln!("warning: {warning}");
    }
    // The run that is under way ends by the same signal; its files are removed.
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
    }
    let Some(rows) = matrix::run(&plan, &settings.dir, &interrupted)? else {
        return Ok(ExitCode::from(INTERRUPTED));
    };
    let summary = Summary::of(&plan, rows);
    let page = html::page(&summary, &machine);
    std::fs::write(&settings.html, page)
        .with_context(|| format!("writing {}", settings.html.display()))?;
    let mut out = std::io::stdout().lock();
    match &settings.json {
        Some(path) if path.as_os_str() == "-" => writeln!(out, "{}", json::text(&summary)?)?,
        json => {
            if let Some(path) = json {
                std::fs::write(path, json::text(&summary)?)
                    .with_context(|| format!("writing {}", path.display()))?;
            }
            out.write_all(table::text(&summary, &machine).as_bytes())?;
        }
    }
    eprintln!("the page is {}", settings.html.display());
    Ok(ExitCode::SUCCESS)
}

fn list() -> Result<()> {
    let mut out = std::io::stdout().lock();
    for contender in engines::all() {
        writeln!(out, "{:18} {}", contender.name, contender.how)?;
    }
    Ok(())
}
