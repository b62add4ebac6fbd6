//! What an engine must be able to do to be measured. An adapter is one file in `engines/`.

use std::path::Path;

use anyhow::Result;

use crate::checker::Checker;
use crate::load::{Load, Recorder};
use crate::workload::Workload;

/// An engine that can be chosen by name.
pub struct Contender {
    /// Its name on the command line and in the reports.
    pub name: &'static str,
    /// How an append becomes durable before it returns, and with which settings.
    pub how: &'static str,
    /// Who it is.
    pub kind: Kind,
    /// Its callers are no threads: it takes part in closed loops only.
    pub is_looped: bool,
    /// Opens it on an empty directory.
    pub open: fn(&Path, &Workload) -> Result<Opened>,
    /// Opens it on a directory that a killed process has left, and shows every record.
    pub replay: Option<fn(&Path, Checker) -> Result<Checker>>,
}

/// What a row stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// This engine with its default options.
    Own,
    /// This engine with other options: not ranked.
    OwnTuned,
    /// Another engine.
    Peer,
    /// The bare device: what bounds all of them; not ranked.
    Device,
    /// Not durable at all: shows that the check notices.
    Control,
}

impl Kind {
    /// Whether it takes part in the ranking.
    pub fn is_ranked(self) -> bool {
        matches!(self, Kind::Own | Kind::Peer)
    }

    /// Whether it is this engine.
    pub fn is_own(self) -> bool {
        matches!(self, Kind::Own | Kind::OwnTuned)
    }
}

/// An engine that is open.
pub enum Opened {
    /// Callers are threads that block until their records are durable.
    Threads(Box<dyn Shared>),
    /// All callers are on one thread, which the engine's own kind of loop drives.
    Loop(Box<dyn Looped>),
}

/// An engine for blocking threads.
pub trait Shared: Sync {
    /// What one of the threads appends with.
    ///
    /// # Errors
    /// The engine's.
    fn writer(&self, client: usize) -> Result<Box<dyn Writer + Send + '_>>;

    /// What its user would do beside writing: dropping what is not needed any more. Called every tenth
    /// of a second.
    ///
    /// # Errors
    /// The engine's.
    fn tidy(&self) -> Result<()> {
        Ok(())
    }

    /// Flushes that it has asked for, where they pass this program's own counting of system calls.
    fn flush_calls(&self) -> u64 {
        0
    }

    /// Bytes that its log has grown by, padding included, where it counts them.
    fn log_bytes(&self) -> Option<u64> {
        None
    }
}

/// One appending thread.
pub trait Writer {
    /// Appends a record. Durable when it returns.
    ///
    /// # Errors
    /// The engine's.
    fn append(&mut self, record: &[u8]) -> Result<()>;

    /// Appends records together. All are durable when it returns.
    ///
    /// # Errors
    /// The engine's.
    fn append_batch(&mut self, records: &[&[u8]]) -> Result<()>;
}

/// An engine whose callers are not threads.
pub trait Looped {
    /// A closed loop of all clients, until the load is over.
    ///
    /// # Errors
    /// The engine's.
    fn closed_loop(&mut self, load: &Load) -> Result<Recorder>;

    /// As [`Shared::flush_calls`].
    fn flush_calls(&self) -> u64;

    /// As [`Shared::log_bytes`].
    fn log_bytes(&self) -> Option<u64>;
}
