//! SQLite: one connection, as it has one writer at a time.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use anyhow::Result;
use rusqlite::Connection;

use crate::checker::Checker;
use crate::engine::{Contender, Kind, Opened, Shared, Writer};

/// SQLite.
pub fn contender() -> Contender {
    Contender {
        name: "sqlite",
        how: "SQLite: journal_mode=WAL, synchronous=FULL, built with fdatasync; a transaction per append",
        kind: Kind::Peer,
        is_looped: false,
        open: |directory, _| {
            let connection = open(directory)?;
            connection.execute_batch(
                "CREATE TABLE records (id INTEGER PRIMARY KEY, data BLOB NOT NULL)",
            )?;
            Ok(Opened::Threads(Box::new(Sqlite(Mutex::new(connection)))))
        },
        replay: Some(replay),
    }
}

struct Sqlite(Mutex<Connection>);

fn open(directory: &Path) -> Result<Connection> {
    let connection = Connection::open(directory.join("records.sqlite"))?;
    connection.execute_batch("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;")?;
    Ok(connection)
}

impl Shared for Sqlite {
    fn writer(&self, _: usize) -> Result<Box<dyn Writer + Send + '_>> {
        Ok(Box::new(&self.0))
    }
}

impl Writer for &Mutex<Connection> {
    fn append(&mut self, record: &[u8]) -> Result<()> {
        let connection = self.lock().unwrap_or_else(PoisonError::into_inner);
        insert(&connection, record)
    }

    fn append_batch(&mut self, records: &[&[u8]]) -> Result<()> {
        let mut connection = self.lock().unwrap_or_else(PoisonError::into_inner);
        let transaction = connection.transaction()?;
        for record in records {
            insert(&transaction, record)?;
        }
        Ok(transaction.commit()?)
    }
}

fn insert(connection: &Connection, record: &[u8]) -> Result<()> {
    connection.prepare_cached("INSERT INTO records (data) VALUES (?1)")?.execute([record])?;
    Ok(())
}

fn replay(directory: &Path, mut checker: Checker) -> Result<Checker> {
    let connection = open(directory)?;
    let mut select = connection.prepare("SELECT data FROM records ORDER BY id")?;
    let mut rows = select.query([])?;
    while let Some(row) = rows.next()? {
        checker.check(row.get_ref(0)?.as_blob()?)?;
    }
    Ok(checker)
}
