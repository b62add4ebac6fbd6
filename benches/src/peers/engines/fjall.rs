//! fjall: an LSM tree with a journal.

use std::path::Path;

use anyhow::Result;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use super::keys::{Keys, Prefixes};
use crate::checker::Checker;
use crate::engine::{Contender, Kind, Opened, Shared, Writer};

/// fjall.
pub fn contender() -> Contender {
    Contender {
        name: "fjall",
        how: "fjall 3.1: a batch with durability(PersistMode::SyncData) per append",
        kind: Kind::Peer,
        is_looped: false,
        open: |directory, _| Ok(Opened::Threads(Box::new(open(directory)?))),
        replay: Some(replay),
    }
}

struct Tree {
    database: Database,
    keyspace: Keyspace,
    prefixes: Prefixes,
}

fn open(directory: &Path) -> Result<Tree> {
    let database = Database::builder(directory).open()?;
    let keyspace = database.keyspace("records", KeyspaceCreateOptions::default)?;
    Ok(Tree { database, keyspace, prefixes: Prefixes::default() })
}

impl Shared for Tree {
    fn writer(&self, _: usize) -> Result<Box<dyn Writer + Send + '_>> {
        Ok(Box::new(Batches { tree: self, keys: self.prefixes.keys() }))
    }
}

struct Batches<'a> {
    tree: &'a Tree,
    keys: Keys,
}

impl Writer for Batches<'_> {
    fn append(&mut self, record: &[u8]) -> Result<()> {
        self.append_batch(&[record])
    }

    fn append_batch(&mut self, records: &[&[u8]]) -> Result<()> {
        let mut batch = self.tree.database.batch().durability(Some(PersistMode::SyncData));
        for record in records {
            batch.insert(&self.tree.keyspace, self.keys.next(), *record);
        }
        Ok(batch.commit()?)
    }
}

fn replay(directory: &Path, mut checker: Checker) -> Result<Checker> {
    let tree = open(directory)?;
    for pair in tree.keyspace.iter() {
        checker.check(&pair.value()?)?;
    }
    Ok(checker)
}
