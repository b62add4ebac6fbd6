//! RocksDB, for what its log is worth.

use std::path::Path;

use anyhow::Result;
use rocksdb::{DB, IteratorMode, Options, WriteBatch, WriteOptions};

use super::keys::{Keys, Prefixes};
use crate::checker::Checker;
use crate::engine::{Contender, Kind, Opened, Shared, Writer};

/// RocksDB.
pub fn contender() -> Contender {
    Contender {
        name: "rocksdb",
        how: "RocksDB: sync = true, recycle_log_file_num = 4",
        kind: Kind::Peer,
        is_looped: false,
        open: |directory, _| Ok(Opened::Threads(Box::new(open(directory)?))),
        replay: Some(replay),
    }
}

struct Tree {
    database: DB,
    prefixes: Prefixes,
}

fn open(directory: &Path) -> Result<Tree> {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_recycle_log_file_num(4);
    Ok(Tree { database: DB::open(&options, directory)?, prefixes: Prefixes::default() })
}

impl Shared for Tree {
    fn writer(&self, _: usize) -> Result<Box<dyn Writer + Send + '_>> {
        let mut options = WriteOptions::default();
        options.set_sync(true);
        Ok(Box::new(Puts { database: &self.database, keys: self.prefixes.keys(), options }))
    }
}

struct Puts<'a> {
    database: &'a DB,
    keys: Keys,
    options: WriteOptions,
}

impl Writer for Puts<'_> {
    fn append(&mut self, record: &[u8]) -> Result<()> {
        Ok(self.database.put_opt(self.keys.next(), record, &self.options)?)
    }

    fn append_batch(&mut self, records: &[&[u8]]) -> Result<()> {
        let mut batch = WriteBatch::default();
        for record in records {
            batch.put(self.keys.next(), record);
        }
        Ok(self.database.write_opt(batch, &self.options)?)
    }
}

fn replay(directory: &Path, mut checker: Checker) -> Result<Checker> {
    for pair in open(directory)?.database.iterator(IteratorMode::Start) {
        checker.check(&pair?.1)?;
    }
    Ok(checker)
}
