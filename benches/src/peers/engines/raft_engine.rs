//! raft-engine: the log of TiKV, one region per writer.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result};
use protobuf::well_known_types::BytesValue;
use raft_engine::{Config, Engine, LogBatch, MessageExt, ReadableSize};

use crate::checker::Checker;
use crate::engine::{Contender, Kind, Opened, Shared, Writer};
use crate::records::sequence_of;

/// Entries that a replay asks for at once.
const READ_ENTRIES: u64 = 4096;
/// Entries of a region that are left when it is tidied up.
const KEPT_ENTRIES: u64 = 64;

/// raft-engine.
pub fn contender() -> Contender {
    Contender {
        name: "raft-engine",
        how: "raft-engine 0.4: write(sync = true), a region per writer, files filled in advance and recycled",
        kind: Kind::Peer,
        open: |directory, _| Ok(Opened::Threads(Box::new(open(directory)?))),
        replay: Some(replay),
    }
}

struct Log {
    engine: Engine,
    regions: AtomicU64,
}

fn open(directory: &Path) -> Result<Log> {
    let config = Config {
        dir: directory.to_str().context("its directory must be UTF-8")?.to_owned(),
        target_file_size: ReadableSize::mb(64),
        purge_threshold: ReadableSize::mb(256),
        prefill_for_recycle: true,
        prefill_limit: Some(ReadableSize::mb(256)),
        ..Config::default()
    };
    Ok(Log { engine: Engine::open(config)?, regions: AtomicU64::new(1) })
}

/// An entry is a record; its number is in it.
struct Entries;

impl MessageExt for Entries {
    type Entry = BytesValue;

    fn index(entry: &BytesValue) -> u64 {
        sequence_of(entry.get_value()).map_or(0, |sequence| sequence + 1)
    }
}

impl Shared for Log {
    fn writer(&self, _: usize) -> Result<Box<dyn Writer + Send + '_>> {
        let region = self.regions.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(Region { engine: &self.engine, region, batch: LogBatch::default() }))
    }

    fn tidy(&self) -> Result<()> {
        for region in 1..self.regions.load(Ordering::Relaxed) {
            if let Some(last) = self.engine.last_index(region) {
                self.engine.compact_to(region, last.saturating_sub(KEPT_ENTRIES));
            }
        }
        self.engine.purge_expired_files()?;
        Ok(())
    }
}

struct Region<'a> {
    engine: &'a Engine,
    region: u64,
    batch: LogBatch,
}

impl Writer for Region<'_> {
    fn append(&mut self, record: &[u8]) -> Result<()> {
        self.append_batch(&[record])
    }

    fn append_batch(&mut self, records: &[&[u8]]) -> Result<()> {
        let entry = |record: &&[u8]| {
            let mut entry = BytesValue::new();
            entry.set_value(record.to_vec());
            entry
        };
        let entries: Vec<_> = records.iter().map(entry).collect();
        self.batch.add_entries::<Entries>(self.region, &entries)?;
        self.engine.write(&mut self.batch, true)?;
        Ok(())
    }
}

fn replay(directory: &Path, mut checker: Checker) -> Result<Checker> {
    let Log { engine, .. } = open(directory)?;
    let end = engine.last_index(1).map_or(1, |last| last + 1);
    let mut entries = Vec::with_capacity(READ_ENTRIES as usize);
    for begin in (1..end).step_by(READ_ENTRIES as usize) {
        let until = (begin + READ_ENTRIES).min(end);
        engine.fetch_entries_to::<Entries>(1, begin, until, None, &mut entries)?;
        for entry in entries.drain(..) {
            checker.check(entry.get_value())?;
        }
    }
    Ok(checker)
}
