//! What is left when everything has been measured: the files, the screen, the exit code.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context as _, Result};

use super::settings::Settings;
use super::{Bench, warnings};
use crate::environment::nearest_existing;
use crate::exit::{self, Exit, Failure};
use crate::progress::colour_allowed;
use crate::report::{HistogramData, Report, complete, slo, terminal, to_json, write_all};

/// Folder of all reports.
const RESULTS: &str = "ringwal-results";
/// Columns where standard output does not say.
const WIDTH: usize = 100;

/// Writes and prints everything; the exit code tells of interruption and missed objectives.
pub fn write(bench: Bench) -> Result<Exit> {
    let (probe, latency) = bench.probe.finish();
    let interrupted = bench.interrupt.is_asked();
    let (runs, histograms) = bench.results.into_iter().unzip();
    let settings = bench.settings;
    let mut report = Report {
        interrupted,
        started_unix_ns: bench.started_unix_ns,
        duration_ns: bench.started.elapsed().as_nanos() as u64,
        command: command_line(std::env::args_os().map(|arg| arg.to_string_lossy().into_owned())),
        seed: settings.seed,
        environment: bench.surroundings.to_model(
            &std::path::absolute(bench.data.path())?,
            &settings.io_names(),
            &settings.sync_name(),
        ),
        probe,
        runs,
        warnings: bench.warnings,
        ..Report::default()
    };
    let after = warnings::after(&bench.surroundings, &report);
    report.warnings.extend(after);
    complete(&mut report);

    let folder = match &settings.out {
        Some(out) => out.clone(),
        None => results_folder(report.started_unix_ns),
    };
    let data = HistogramData { runs: histograms, probe: Some(latency) };
    write_all(&folder, &report, &data)?;
    let on_stdout = settings.json.as_deref() == Some(Path::new("-"));
    if let Some(path) = settings.json.as_deref().filter(|_| !on_stdout) {
        let json = to_json(&report)?;
        std::fs::write(path, json).with_context(|| format!("writing {}", path.display()))?;
    }
    let misses = slo::evaluate(&settings.objectives, &report);
    for miss in &misses {
        exit::log(&format!("objective missed: {miss}"));
    }
    if on_stdout {
        exit::print_last(&String::from_utf8_lossy(&to_json(&report)?))?;
    } else {
        let mut text = screen(&report);
        text += &format!("\nreport: {}\n", folder.join("report.html").display());
        if bench.data.is_kept() {
            text += &format!("data:   {} (kept)\n", bench.data.path().display());
        }
        exit::print_last(&text)?;
    }
    Ok(match (interrupted, misses.is_empty()) {
        (true, _) => Exit::Interrupted,
        (false, false) => Exit::Regression,
        (false, true) => Exit::Success,
    })
}

/// The screen as it suits standard output.
pub fn screen(report: &Report) -> String {
    let is_terminal = std::io::stdout().is_terminal();
    let width = rustix::termios::tcgetwinsize(std::io::stdout())
        .map(|size| usize::from(size.ws_col))
        .ok()
        .filter(|&width| is_terminal && width > 0)
        .unwrap_or(WIDTH);
    terminal::screen(report, colour_allowed(is_terminal), width)
}

/// `ringwal-results/2026-02-03T141516Z`, with a number when there is one already.
fn results_folder(unix_ns: u64) -> PathBuf {
    let time = UNIX_EPOCH + Duration::from_nanos(unix_ns);
    let name = humantime::format_rfc3339_seconds(time).to_string().replace(':', "");
    let parent = Path::new(RESULTS);
    let numbered = (2..).map(|number| parent.join(format!("{name}-{number}")));
    std::iter::once(parent.join(&name))
        .chain(numbered)
        .find(|path| !path.exists())
        .unwrap_or_default()
}

/// The arguments as a shell takes them.
fn command_line(arguments: impl Iterator<Item = String>) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    let quoted: Vec<String> = arguments
        .map(|argument| {
            if !argument.is_empty() && argument.chars().all(plain) {
                argument
            } else {
                format!("'{}'", argument.replace('\'', r"'\''"))
            }
        })
        .collect();
    quoted.join(" ")
}

/// Fails early when the report could not be written in the end.
pub fn check_writable(settings: &Settings) -> Result<(), Failure> {
    let folder = settings.out.clone().unwrap_or_else(|| PathBuf::from(RESULTS));
    check_writable_directory(&folder, "--out DIR")?;
    match &settings.json {
        Some(json) if json != Path::new("-") => {
            let parent = json.parent().filter(|parent| !parent.as_os_str().is_empty());
            let parent = parent.unwrap_or(Path::new("."));
            if !parent.is_dir() {
                return Err(Failure::usage(format!("cannot write {}", json.display()))
                    .cause(format!("{} is not a directory", parent.display()))
                    .fix("--json FILE in a directory that exists"));
            }
            check_writable_directory(parent, "--json FILE")
        }
        _ => Ok(()),
    }
}

fn check_writable_directory(directory: &Path, flag: &str) -> Result<(), Failure> {
    nearest_existing(directory)
        .and_then(|existing| Ok(rustix::fs::access(existing, rustix::fs::Access::WRITE_OK)?))
        .map_err(|error| {
            Failure::new(
                Exit::Failure,
                format!("cannot write the report to {}", directory.display()),
            )
            .cause(error.to_string())
            .fix(format!("{flag} where this user may write"))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_is_quoted_where_a_shell_needs_it() {
        let arguments = ["target/release/ringwal", "--slo", "p99<2ms", "it's", ""];
        assert_eq!(
            command_line(arguments.into_iter().map(str::to_owned)),
            r"target/release/ringwal --slo 'p99<2ms' 'it'\''s' ''"
        );
    }

    #[test]
    fn the_results_folder_has_the_time_in_its_name() {
        let folder = results_folder(1_770_128_116_000_000_000);
        assert_eq!(folder, Path::new("ringwal-results/2026-02-03T141516Z"));
    }
}
