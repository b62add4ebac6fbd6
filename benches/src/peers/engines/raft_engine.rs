//! raft-engine: the log of TiKV, one region per writer.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result};
use protobuf::well_known_types::BytesValue;
use raft_engine::{Command, Config, Engine, LogBatch, MessageExt, ReadableSize};

use crate::checker::Checker;
use crate::engine::{Contender, Kind, Opened, Shared, Writer};
use crate::workload::{Shape, Workload};

/// Entries that a replay asks for at once.
const READ_ENTRIES: u64 = 4096;
/// Bytes of a file.
const FILE_BYTES: u64 = 64 << 20;
/// Where the bytes go that use up the first file.
const FILLING: (u64, &[u8]) = (u64::MAX, b"filling");

/// raft-engine.
pub fn contender() -> Contender {
    Contender {
        name: "raft-engine",
        how: "raft-engine 0.4: write(sync = true), a region per writer, files filled in advance and recycled, no compression",
        kind: Kind::Peer,
        is_looped: false,
        open: |directory, workload| Ok(Opened::Threads(Box::new(open(directory, workload)?))),
        replay: Some(replay),
    }
}

struct Log {
    engine: Engine,
    regions: AtomicU64,
}

fn config(directory: &Path) -> Result<Config> {
    Ok(Config {
        dir: directory.to_str().context("its directory must be UTF-8")?.to_owned(),
        target_file_size: ReadableSize(FILE_BYTES),
        purge_threshold: ReadableSize(4 * FILE_BYTES),
        batch_compression_threshold: ReadableSize(0),
        ..Config::default()
    })
}

fn open(directory: &Path, workload: &Workload) -> Result<Log> {
    let prefill = workload.shape != Shape::Replay;
    let limit = prefill.then_some(ReadableSize(4 * FILE_BYTES));
    let config =
        Config { prefill_for_recycle: prefill, prefill_limit: limit, ..config(directory)? };
    let engine = Engine::open(config)?;
    // The first file is a new one; those that are filled in advance come after it.
    let mut batch = LogBatch::default();
    for _ in 0..if prefill { FILE_BYTES >> 20 } else { 0 } {
        batch.put(FILLING.0, FILLING.1.to_vec(), vec![0; 1 << 20])?;
        engine.write(&mut batch, false)?;
    }
    Ok(Log { engine, regions: AtomicU64::new(1) })
}

/// An entry is a record; its number is in it.
struct Entries;

impl MessageExt for Entries {
    type Entry = BytesValue;

    fn index(entry: &BytesValue) -> u64 {
        let sequence = entry.get_value().first_chunk().copied().map(u64::from_le_bytes);
        sequence.map_or(0, |sequence| sequence + 1)
    }
}

impl Shared for Log {
    fn writer(&self, _: usize) -> Result<Box<dyn Writer + Send + '_>> {
        let region = self.regions.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(Region { engine: &self.engine, region, batch: LogBatch::default() }))
    }

    fn tidy(&self) -> Result<()> {
        let mut batch = LogBatch::default();
        for region in 1..self.regions.load(Ordering::Relaxed) {
            let span = self.engine.first_index(region).zip(self.engine.last_index(region));
            if let Some((_, index)) = span.filter(|(first, last)| first < last) {
                batch.add_command(region, Command::Compact { index });
            }
        }
        self.engine.write(&mut batch, false)?;
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
    let engine = Engine::open(config(directory)?)?;
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
