//! `ringwal doctor`: whether this machine and directory can run the engine, and how well.

mod kernel;
mod machine;
mod storage;

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::cli::DoctorArgs;
use crate::environment;
use crate::exit::{self, Exit, Failure};
use crate::progress::colour_allowed;

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Check {
    /// What was looked at.
    pub condition: &'static str,
    /// What the engine needs or works best with.
    pub required: String,
    /// What is there.
    pub found: String,
    /// What that means.
    pub severity: Severity,
    /// What to do, where something is to be done.
    pub fix: Option<String>,
}

/// What a finding means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As it should be.
    Ok,
    /// Worth knowing.
    Note,
    /// It runs, but promises or performance are weaker.
    Warning,
    /// It cannot run.
    Error,
}

/// Everything that was looked at.
#[derive(Debug, Serialize)]
struct Examination {
    schema: &'static str,
    directory: String,
    file_system: String,
    device: Option<String>,
    can_run: bool,
    checks: Vec<Check>,
}

impl Check {
    fn new(
        condition: &'static str,
        required: impl Into<String>,
        found: impl Into<String>,
    ) -> Check {
        Check {
            condition,
            required: required.into(),
            found: found.into(),
            severity: Severity::Ok,
            fix: None,
        }
    }

    fn severity(mut self, severity: Severity) -> Check {
        self.severity = severity;
        self
    }

    fn fix(mut self, fix: impl Into<String>) -> Check {
        self.fix = Some(fix.into());
        self
    }
}

/// Runs the subcommand.
pub fn run(args: &DoctorArgs) -> Result<Exit> {
    let found = environment::look(&args.directory).map_err(|error| {
        Failure::environment(format!("cannot examine {}", args.directory.display()))
            .cause(error.to_string())
            .fix("name a directory that exists, or one below a directory that does")
    })?;
    let mut checks = kernel::checks(&found);
    checks.extend(storage::checks(&found));
    checks.extend(machine::checks(&found));
    let examination = Examination {
        schema: "ringwal.doctor/1",
        directory: found.directory.display().to_string(),
        file_system: found.file_system.name.clone(),
        device: found.device.as_ref().map(|device| device.name.clone()),
        can_run: checks.iter().all(|check| check.severity < Severity::Error),
        checks,
    };
    if args.json {
        let mut json = serde_json::to_string_pretty(&examination).context("the findings")?;
        json.push('\n');
        exit::print_last(&json)?;
    } else {
        let colour = colour_allowed(std::io::IsTerminal::is_terminal(&std::io::stdout()));
        exit::print_last(&examination.table(colour))?;
    }
    Ok(if examination.can_run { Exit::Success } else { Exit::Environment })
}

impl Examination {
    fn table(&self, colour: bool) -> String {
        let width = |of: fn(&Check) -> &str| {
            self.checks.iter().map(|check| of(check).chars().count()).max().unwrap_or(0)
        };
        let (condition, required) = (width(|c| c.condition), width(|c| &c.required));
        let device = self.device.as_deref().unwrap_or("no block device");
        let mut text = format!("{} on {}, {device}\n\n", self.directory, self.file_system);
        text += &format!("         {:condition$}  {:required$}  found\n", "condition", "required");
        for check in &self.checks {
            let (start, end) = if colour { (check.severity.colour(), "\x1b[0m") } else { ("", "") };
            text += &format!(
                "{start}{:<7}{end}  {:condition$}  {:required$}  {}\n",
                check.severity.word(),
                check.condition,
                check.required,
                check.found,
            );
            if let Some(fix) = &check.fix {
                text += &format!("         {:condition$}  fix: {fix}\n", "");
            }
        }
        text += &format!("\n{}\n", self.verdict());
        text
    }

    fn verdict(&self) -> String {
        let count = |severity| self.checks.iter().filter(|c| c.severity == severity).count();
        let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
        let plural = |count: usize| if count == 1 { "" } else { "s" };
        match (errors, warnings) {
            (0, 0) => "The engine runs here.".to_owned(),
            (0, n) => format!("The engine runs here, with {n} warning{}.", plural(n)),
            (n, _) => format!("The engine cannot run here: {n} error{}.", plural(n)),
        }
    }
}

impl Severity {
    fn word(self) -> &'static str {
        match self {
            Severity::Ok => "ok",
            Severity::Note => "note",
            Severity::Warning => "warning",
            Severity::Error => "error",
        }
    }

    fn colour(self) -> &'static str {
        match self {
            Severity::Ok => "\x1b[32m",
            Severity::Note => "\x1b[36m",
            Severity::Warning => "\x1b[33m",
            Severity::Error => "\x1b[31m",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_a_line_per_check_and_says_how_to_mend() {
        let examination = Examination {
            schema: "ringwal.doctor/1",
            directory: "/data".to_owned(),
            file_system: "ext4".to_owned(),
            device: Some("vda".to_owned()),
            can_run: false,
            checks: vec![
                Check::new("kernel", "5.11", "6.18"),
                Check::new("io_uring", "available", "EPERM")
                    .severity(Severity::Error)
                    .fix("sysctl kernel.io_uring_disabled=0"),
            ],
        };
        let table = examination.table(false);
        assert!(table.contains("ok       kernel    5.11       6.18"), "{table}");
        assert!(table.contains("error    io_uring  available  EPERM"), "{table}");
        assert!(table.contains("fix: sysctl kernel.io_uring_disabled=0"), "{table}");
        assert!(table.contains("cannot run here: 1 error."), "{table}");
        assert!(!table.contains('\x1b'));
        assert!(examination.table(true).contains("\x1b[31merror"));
    }
}
