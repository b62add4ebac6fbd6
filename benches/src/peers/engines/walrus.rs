//! walrus-rust: a log of topics.

use std::path::Path;

use anyhow::{Context as _, Result};
use walrus_rust::{FsyncSchedule, ReadConsistency, Walrus};

use crate::checker::Checker;
use crate::engine::{Contender, Kind, Opened, Shared, Writer};
use crate::workload::{Workload, by_name};

/// Environment variables that tell it where its files are, and to print nothing.
pub const DIRECTORY_VARIABLE: &str = "WALRUS_DATA_DIR";
/// See [`DIRECTORY_VARIABLE`].
pub const QUIET_VARIABLE: &str = "WALRUS_QUIET";
/// Bytes that a replay asks for at once.
const READ_BYTES: usize = 1 << 20;

/// walrus-rust.
pub fn contender() -> Contender {
    Contender {
        name: "walrus",
        how: "walrus-rust 0.2: FsyncSchedule::SyncEach, a topic per writer; batches flush by themselves",
        kind: Kind::Peer,
        is_looped: false,
        open: |_, workload| Ok(Opened::Threads(Box::new(open(workload)?))),
        replay: Some(replay),
    }
}

struct Log(Walrus);

/// Opens it where the environment says: there is no other way to tell it.
fn open(workload: &Workload) -> Result<Log> {
    let schedule = match workload.batch_records {
        1 => FsyncSchedule::SyncEach,
        // A batch is flushed before it returns with any schedule; with this one each of its records would be, too.
        _ => FsyncSchedule::Milliseconds(100),
    };
    let reads = ReadConsistency::AtLeastOnce { persist_every: u32::MAX };
    let log = Walrus::with_consistency_and_schedule(reads, schedule).context("opening the log")?;
    Ok(Log(log))
}

impl Shared for Log {
    fn writer(&self, client: usize) -> Result<Box<dyn Writer + Send + '_>> {
        Ok(Box::new(Topic { log: &self.0, name: topic(client) }))
    }
}

fn topic(client: usize) -> String {
    format!("topic-{client}")
}

struct Topic<'a> {
    log: &'a Walrus,
    name: String,
}

impl Writer for Topic<'_> {
    fn append(&mut self, record: &[u8]) -> Result<()> {
        Ok(self.log.append_for_topic(&self.name, record)?)
    }

    fn append_batch(&mut self, records: &[&[u8]]) -> Result<()> {
        Ok(self.log.batch_append_for_topic(&self.name, records)?)
    }
}

fn replay(_: &Path, mut checker: Checker) -> Result<Checker> {
    let log = open(&by_name("W6")?)?.0;
    loop {
        let entries = log.batch_read_for_topic(&topic(0), READ_BYTES, true)?;
        if entries.is_empty() {
            return Ok(checker);
        }
        for entry in entries {
            checker.check(&entry.data)?;
        }
    }
}
