//! okaywal: group commit of entries in segments that are recycled after a checkpoint.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Result, anyhow};
use okaywal::{Configuration, Entry, EntryId, LogManager, LogVoid, SegmentReader, WriteAheadLog};

use crate::checker::Checker;
use crate::engine::{Contender, Kind, Opened, Shared, Writer};
use crate::workload::{Shape, Workload};

/// okaywal.
pub fn contender() -> Contender {
    Contender {
        name: "okaywal",
        how: "okaywal 0.3: commit() returns after an fdatasync shared by all who wait; default settings",
        kind: Kind::Peer,
        is_looped: false,
        open,
        replay: Some(replay),
    }
}

struct Log(WriteAheadLog);

fn configuration(directory: &Path) -> Configuration {
    Configuration::default_for(directory)
}

fn open(directory: &Path, workload: &Workload) -> Result<Opened> {
    let mut configuration = configuration(directory);
    if workload.shape == Shape::Replay {
        // Everything stays for the replay; a checkpoint would recycle it.
        configuration = configuration.checkpoint_after_bytes(u64::MAX);
    }
    Ok(Opened::Threads(Box::new(Log(configuration.open(LogVoid)?))))
}

impl Shared for Log {
    fn writer(&self, _: usize) -> Result<Box<dyn Writer + Send + '_>> {
        Ok(Box::new(&self.0))
    }
}

impl Writer for &WriteAheadLog {
    fn append(&mut self, record: &[u8]) -> Result<()> {
        self.append_batch(&[record])
    }

    fn append_batch(&mut self, records: &[&[u8]]) -> Result<()> {
        let mut entry = self.begin_entry()?;
        for record in records {
            entry.write_chunk(record)?;
        }
        entry.commit()?;
        Ok(())
    }
}

/// Shows every recovered chunk to the checker.
struct Reader(Arc<Mutex<Option<Checker>>>);

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reader")
    }
}

impl LogManager for Reader {
    fn recover(&mut self, entry: &mut Entry<'_>) -> io::Result<()> {
        let mut checker = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(checker) = checker.as_mut() else { return Ok(()) };
        for chunk in entry.read_all_chunks()?.unwrap_or_default() {
            checker.check(&chunk).map_err(io::Error::other)?;
        }
        Ok(())
    }

    fn checkpoint_to(
        &mut self,
        _: EntryId,
        _: &mut SegmentReader,
        _: &WriteAheadLog,
    ) -> io::Result<()> {
        Ok(())
    }
}

fn replay(directory: &Path, checker: Checker) -> Result<Checker> {
    let shared = Arc::new(Mutex::new(Some(checker)));
    let log = configuration(directory).open(Reader(shared.clone()))?;
    let checker = shared.lock().unwrap_or_else(PoisonError::into_inner).take();
    drop(log);
    checker.ok_or_else(|| anyhow!("the checker is gone"))
}
