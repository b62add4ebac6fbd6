//! What the libraries of a node log, into a file: evidence, should the node do something wrong.

use std::fmt::{Debug, Write as _};
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber, span};

/// Appends every event to a file, in one write each.
#[derive(Debug)]
pub struct Log {
    file: File,
}

impl Log {
    /// Logs everything of this process to a file.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn install(path: &Path) -> Result<()> {
        let file = File::options().create(true).append(true).open(path);
        let file = file.with_context(|| format!("opening {}", path.display()))?;
        tracing::subscriber::set_global_default(Log { file }).context("logging")?;
        tracing::info!(process = std::process::id(), "begins");
        Ok(())
    }
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let _ = match field.name() {
            "message" => write!(self.0, " {value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::DEBUG
    }

    fn event(&self, event: &Event<'_>) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let metadata = event.metadata();
        let mut line =
            Line(format!("{:.3} {} {}:", now.as_secs_f64(), metadata.level(), metadata.target()));
        event.record(&mut line);
        line.0.push('\n');
        let _ = (&self.file).write_all(line.0.as_bytes());
    }

    // Nothing here has spans.
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}
