//! Exit codes, errors in the form this program prints them, and standard output whose reader
//! may go away.

use std::fmt;
use std::io::{self, Write as _};
use std::process::ExitCode;

use ringwal_engine::disk::uring::UringError;
use ringwal_engine::{OpenError, OpenErrorKind};

/// How to raise the limit on locked memory: 8192 KiB hold the rings of many shards, and kernels from
/// 5.16 on allow as much by default.
pub const MEMLOCK_FIXES: [&str; 3] =
    ["ulimit -l 8192", "LimitMEMLOCK=8M", "docker run --ulimit memlock=-1:-1"];

/// How the program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// All went well.
    Success,
    /// Something failed that has no code of its own.
    Failure,
    /// The command line makes no sense.
    Usage,
    /// This machine, kernel, directory or device cannot run it.
    Environment,
    /// Data on disk is damaged.
    Corrupt,
    /// A service level was missed, or a comparison found a regression.
    Regression,
    /// SIGINT or SIGTERM ended it early; what there was until then has been written.
    Interrupted,
}

impl Exit {
    /// The number that the shell sees.
    pub fn code(self) -> u8 {
        match self {
            Exit::Success => 0,
            Exit::Failure => 1,
            Exit::Usage => 2,
            Exit::Environment => 3,
            Exit::Corrupt => 4,
            Exit::Regression => 5,
            Exit::Interrupted => 130,
        }
    }
}

/// An error that knows its exit code and what to do about it.
#[derive(Debug)]
pub struct Failure {
    exit: Exit,
    error: String,
    causes: Vec<String>,
    fixes: Vec<String>,
    alternatives: Vec<String>,
}

impl Failure {
    /// An error in one line: what was attempted and what came of it.
    pub fn new(exit: Exit, error: impl Into<String>) -> Failure {
        Failure {
            exit,
            error: error.into(),
            causes: Vec::new(),
            fixes: Vec::new(),
            alternatives: Vec::new(),
        }
    }

    /// The command line makes no sense.
    pub fn usage(error: impl Into<String>) -> Failure {
        Failure::new(Exit::Usage, error)
    }

    /// This environment cannot run it.
    pub fn environment(error: impl Into<String>) -> Failure {
        Failure::new(Exit::Environment, error)
    }

    /// Why, with the live value.
    pub fn cause(mut self, cause: impl Into<String>) -> Failure {
        self.causes.push(cause.into());
        self
    }

    /// What mends it; several are alternatives on one line.
    pub fn fix(mut self, fix: impl Into<String>) -> Failure {
        self.fixes.push(fix.into());
        self
    }

    /// How to do without.
    pub fn or(mut self, alternative: impl Into<String>) -> Failure {
        self.alternatives.push(alternative.into());
        self
    }

    /// Why a data directory could not be opened.
    pub fn open(error: &OpenError) -> Failure {
        match error {
            OpenError::Ring(UringError::Setup { source, cause, advice }) => {
                let failure =
                    Failure::environment(format!("io_uring_setup: {source}")).cause(cause);
                match source.kind() {
                    io::ErrorKind::OutOfMemory => {
                        MEMLOCK_FIXES.into_iter().fold(failure, Failure::fix)
                    }
                    _ => failure.fix(advice),
                }
            }
            OpenError::Corrupt(corruption) => {
                let directory = corruption.directory.display();
                let mut failure =
                    Failure::new(Exit::Corrupt, format!("{directory} holds damaged data"));
                for damage in &corruption.damages {
                    failure = failure.cause(damage.to_string());
                }
                for (stream, range) in &corruption.missing {
                    let (start, end) = (range.start, range.end);
                    failure =
                        failure.cause(format!("stream {stream} lacks offsets {start}..{end}"));
                }
                failure
                    .fix("ringwal verify shows all of it")
                    .fix("ringwal repair --dry-run says what can be done")
                    .fix("restore it from a replica or a backup")
            }
            other => {
                // The engine's messages end in what to do.
                let text = other.to_string();
                let mut parts: Vec<_> = text.split("; ").collect();
                let fix = if parts.len() > 1 { parts.pop() } else { None };
                let mut failure = Failure::new(exit_of(other), parts.remove(0));
                failure.causes.extend(parts.into_iter().map(str::to_owned));
                failure.fixes.extend(fix.map(str::to_owned));
                match std::error::Error::source(other).map(ToString::to_string) {
                    Some(cause) if !text.contains(&cause) => failure.cause(cause),
                    _ => failure,
                }
            }
        }
    }

    fn of(error: &anyhow::Error) -> (Exit, String) {
        let mut chain = error.chain();
        if let Some(failure) = chain.next().and_then(|first| first.downcast_ref::<Failure>()) {
            return (failure.exit, failure.text());
        }
        let mut failure = Failure::new(Exit::Failure, error.to_string());
        for cause in chain {
            match cause.downcast_ref::<Failure>() {
                None if cause.downcast_ref::<io::Error>().is_some_and(is_refused) => {
                    failure.exit = Exit::Environment;
                    failure.causes.push(cause.to_string());
                }
                Some(inner) => {
                    failure.exit = inner.exit;
                    failure.causes.push(inner.error.clone());
                    failure.causes.extend(inner.causes.iter().cloned());
                    failure.fixes.extend(inner.fixes.iter().cloned());
                    failure.alternatives.extend(inner.alternatives.iter().cloned());
                }
                None => failure.causes.push(cause.to_string()),
            }
        }
        (failure.exit, failure.text())
    }

    /// As it is printed.
    pub fn text(&self) -> String {
        let mut text = format!("error: {}\n", self.error);
        for cause in &self.causes {
            text += &format!("cause: {cause}\n");
        }
        if !self.fixes.is_empty() {
            text += &format!("fix: {}\n", self.fixes.join(" | "));
        }
        for alternative in &self.alternatives {
            text += &format!("or: {alternative}\n");
        }
        text
    }
}

fn exit_of(error: &OpenError) -> Exit {
    match error {
        OpenError::NoSpace { .. } | OpenError::Missing { .. } | OpenError::NotADirectory { .. } => {
            return Exit::Environment;
        }
        OpenError::Io { source, .. } if is_refused(source) => return Exit::Environment,
        _ => {}
    }
    match error.kind() {
        OpenErrorKind::Usage => Exit::Usage,
        OpenErrorKind::Environment => Exit::Environment,
        OpenErrorKind::Corrupt => Exit::Corrupt,
        _ => Exit::Failure,
    }
}

/// Whether the file system refused a path: the user can mend it, and it says nothing about data.
fn is_refused(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::IsADirectory
            | io::ErrorKind::PermissionDenied
            | io::ErrorKind::ReadOnlyFilesystem
            | io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
    )
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.error)
    }
}

impl std::error::Error for Failure {}

/// The reader of standard output has gone, as `| head` does: a reason to stop, not an error.
#[derive(Debug)]
struct StdoutClosed;

impl fmt::Display for StdoutClosed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nobody reads standard output any more")
    }
}

impl std::error::Error for StdoutClosed {}

/// Writes to standard output; the error of a reader that has gone ends the program quietly.
pub fn print(text: &str) -> anyhow::Result<()> {
    print_bytes(text.as_bytes())
}

/// As [`print()`], for bytes.
pub fn print_bytes(bytes: &[u8]) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(StdoutClosed.into()),
        Err(error) => Err(anyhow::Error::new(error).context("writing to standard output")),
    }
}

/// As [`print()`], for the last thing a program says: its exit code stays what it is when nobody
/// reads.
pub fn print_last(text: &str) -> anyhow::Result<()> {
    match print(text) {
        Err(error) if error.is::<StdoutClosed>() => Ok(()),
        outcome => outcome,
    }
}

/// A line on standard error; a reader that has gone is ignored.
pub fn log(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Prints the error, if there is one, and turns the outcome into the exit code.
pub fn finish(outcome: anyhow::Result<Exit>) -> ExitCode {
    let exit = match outcome {
        Ok(exit) => exit,
        Err(error) if error.is::<StdoutClosed>() => Exit::Success,
        Err(error) => {
            let (exit, text) = Failure::of(&error);
            let _ = io::stderr().lock().write_all(text.as_bytes());
            exit
        }
    };
    ExitCode::from(exit.code())
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn a_failure_has_cause_fix_and_alternative_on_their_own_lines() {
        let failure = Failure::environment("io_uring_setup: Cannot allocate memory")
            .cause("RLIMIT_MEMLOCK is 64 KiB")
            .fix("ulimit -l 8192")
            .fix("LimitMEMLOCK=8M")
            .or("--io blocking");
        let (exit, text) = Failure::of(&failure.into());
        assert_eq!(exit, Exit::Environment);
        assert_eq!(
            text,
            "error: io_uring_setup: Cannot allocate memory\ncause: RLIMIT_MEMLOCK is 64 KiB\n\
             fix: ulimit -l 8192 | LimitMEMLOCK=8M\nor: --io blocking\n"
        );
    }

    #[test]
    fn context_around_a_failure_keeps_its_code_and_its_fix() {
        let error = Err::<(), _>(Failure::usage("no such thing").fix("ask for another"))
            .context("reading the plan")
            .unwrap_err();
        let (exit, text) = Failure::of(&error);
        assert_eq!(exit, Exit::Usage);
        assert!(text.contains("cause: no such thing") && text.contains("fix: ask"), "{text}");
    }

    #[test]
    fn other_errors_show_their_chain() {
        let error = anyhow::Error::new(io::Error::other("on fire")).context("writing");
        let (exit, text) = Failure::of(&error);
        assert_eq!((exit, text.as_str()), (Exit::Failure, "error: writing\ncause: on fire\n"));
    }
}
