//! A file that is never flushed: what the page cache is worth, and the proof that the check of durability
//! notices.

use std::fs::File;
use std::io::Write as _;

use anyhow::Result;

use crate::engine::{Contender, Kind, Opened, Shared, Writer};

/// Acknowledges what is in memory only.
pub fn contender() -> Contender {
    Contender {
        name: "no-flush",
        how: "appends to a file and never flushes: not durable",
        kind: Kind::Control,
        is_looped: false,
        open: |directory, _| {
            let file = File::options().create(true).append(true).open(directory.join("log"))?;
            Ok(Opened::Threads(Box::new(NoFlush(file))))
        },
        replay: None,
    }
}

struct NoFlush(File);

impl Shared for NoFlush {
    fn writer(&self, _: usize) -> Result<Box<dyn Writer + Send + '_>> {
        Ok(Box::new(&self.0))
    }
}

impl Writer for &File {
    fn append(&mut self, record: &[u8]) -> Result<()> {
        Ok(self.write_all(record)?)
    }

    fn append_batch(&mut self, records: &[&[u8]]) -> Result<()> {
        Ok(self.write_all(&records.concat())?)
    }
}
