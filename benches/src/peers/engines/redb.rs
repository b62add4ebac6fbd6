//! redb: a copy-on-write B-tree, one writing transaction at a time.

use std::path::Path;

use anyhow::Result;
use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};

use super::keys::{Keys, Prefixes};
use crate::checker::Checker;
use crate::engine::{Contender, Kind, Opened, Shared, Writer};

const TABLE: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("records");

/// redb.
pub fn contender() -> Contender {
    Contender {
        name: "redb",
        how: "redb 4.6: a transaction per append with Durability::Immediate, the default",
        kind: Kind::Peer,
        is_looped: false,
        open: |directory, _| {
            let database = Database::create(directory.join("redb"))?;
            Ok(Opened::Threads(Box::new(Redb { database, prefixes: Prefixes::default() })))
        },
        replay: Some(replay),
    }
}

struct Redb {
    database: Database,
    prefixes: Prefixes,
}

impl Shared for Redb {
    fn writer(&self, _: usize) -> Result<Box<dyn Writer + Send + '_>> {
        Ok(Box::new(Transactions { database: &self.database, keys: self.prefixes.keys() }))
    }
}

struct Transactions<'a> {
    database: &'a Database,
    keys: Keys,
}

impl Writer for Transactions<'_> {
    fn append(&mut self, record: &[u8]) -> Result<()> {
        self.append_batch(&[record])
    }

    fn append_batch(&mut self, records: &[&[u8]]) -> Result<()> {
        let transaction = self.database.begin_write()?;
        {
            let mut table = transaction.open_table(TABLE)?;
            for record in records {
                table.insert(self.keys.next().as_slice(), *record)?;
            }
        }
        Ok(transaction.commit()?)
    }
}

fn replay(directory: &Path, mut checker: Checker) -> Result<Checker> {
    let database = Database::open(directory.join("redb"))?;
    for pair in database.begin_read()?.open_table(TABLE)?.iter()? {
        checker.check(pair?.1.value())?;
    }
    Ok(checker)
}
