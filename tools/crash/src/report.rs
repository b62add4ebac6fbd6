//! What a command has seen: counted, printed, and written as JSON.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result};
use serde::Serialize;

/// The outcome of one command. Whatever a check finds goes through [`Report::pass`],
/// [`Report::fail`] or [`Report::skip`]; a skip is never a pass.
#[derive(Debug, Serialize)]
pub struct Report {
    command: String,
    seed: u64,
    seconds: f64,
    passed: u64,
    failed: u64,
    skipped: u64,
    /// What was covered, by name: crash points, kinds of faults, states.
    covered: BTreeMap<String, u64>,
    /// A line for each failure, with all that is needed to repeat it.
    failures: Vec<String>,
    /// What could not be run, and why.
    skips: Vec<String>,
    #[serde(skip)]
    begun: Instant,
}

impl Report {
    /// Begins; prints the seed.
    pub fn new(command: &str, seed: u64) -> Report {
        println!("{command}: seed {seed}");
        Report {
            command: command.to_owned(),
            seed,
            seconds: 0.0,
            passed: 0,
            failed: 0,
            skipped: 0,
            covered: BTreeMap::new(),
            failures: Vec::new(),
            skips: Vec::new(),
            begun: Instant::now(),
        }
    }

    /// So many checks passed.
    pub fn pass(&mut self, count: u64) {
        self.passed += count;
    }

    /// A check failed; `what` says how to repeat it.
    pub fn fail(&mut self, what: impl Into<String>) {
        let what = what.into();
        println!("FAILED {what}");
        self.failed += 1;
        self.failures.push(what);
    }

    /// A check could not be run here.
    pub fn skip(&mut self, what: &str, why: &str) {
        println!("SKIPPED {what}: {why}");
        self.skipped += 1;
        self.skips.push(format!("{what}: {why}"));
    }

    /// Counts what was covered.
    pub fn cover(&mut self, what: &str, count: u64) {
        *self.covered.entry(what.to_owned()).or_default() += count;
    }

    /// How often something was covered.
    pub fn covered(&self, what: &str) -> u64 {
        self.covered.get(what).copied().unwrap_or(0)
    }

    /// Failures so far.
    pub fn failed(&self) -> u64 {
        self.failed
    }

    /// The totals so far, in one line.
    pub fn totals(&self) -> String {
        let points = self.covered("crash points");
        let Report { passed, failed, skipped, .. } = self;
        format!("{points} crash points; {passed} passed, {failed} failed, {skipped} skipped")
    }

    /// Takes over what a part of the command has seen.
    pub fn add(&mut self, part: Report) {
        self.passed += part.passed;
        self.failed += part.failed;
        self.skipped += part.skipped;
        for (what, count) in part.covered {
            *self.covered.entry(what).or_default() += count;
        }
        self.failures.extend(part.failures);
        self.skips.extend(part.skips);
    }

    /// Prints what was covered and the closing line, and writes the JSON. Whether nothing failed.
    ///
    /// # Errors
    /// When the JSON cannot be written.
    pub fn finish(mut self, json: Option<&Path>) -> Result<bool> {
        self.seconds = self.begun.elapsed().as_secs_f64();
        for (what, count) in &self.covered {
            println!("  {what}: {count}");
        }
        println!("{} seed {} took {:.1} s", self.command, self.seed, self.seconds);
        if let Some(path) = json {
            self.write_json(path)?;
        }
        println!("{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped);
        Ok(self.failed == 0)
    }

    fn write_json(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).context("encoding the report")?;
        if path == Path::new("-") {
            return writeln!(io::stdout(), "{text}").context("writing the report");
        }
        let mut file =
            File::create(path).with_context(|| format!("creating {}", path.display()))?;
        writeln!(file, "{text}").with_context(|| format!("writing {}", path.display()))
    }
}
