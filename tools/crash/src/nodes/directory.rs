//! What the directory of a closed node holds, record by record.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use anyhow::{Result, bail};
use ringwal_engine::offline::{self, Snapshot};

/// A record, in a stream or in an orphan.
#[derive(Clone, Copy, Debug)]
pub struct Found<'a> {
    /// Which stream it is, or was, in.
    pub stream: u64,
    /// Where.
    pub offset: u64,
    /// Of which epoch it is.
    pub epoch: u64,
    /// Its bytes.
    pub payload: &'a [u8],
    /// It was cut.
    pub is_orphan: bool,
}

/// What there is beside records.
#[derive(Debug, Default)]
pub struct Directory {
    /// Its replicated streams, and where each begins.
    pub trimmed: BTreeMap<u64, u64>,
    /// Number of its orphans.
    pub orphans: u64,
    /// What must not be.
    pub wrong: Vec<String>,
}

/// Reads all replicated streams in order, and then all orphans. A record of a stream always comes at the offset
/// after the one before.
///
/// # Errors
/// When the directory cannot be looked at.
pub fn read(path: &Path, mut take: impl FnMut(Found<'_>)) -> Result<Directory> {
    let mut directory = Directory::default();
    for finding in offline::verify(path)?.findings {
        directory.wrong.push(format!("verify says {finding}"));
    }
    let snapshot = Snapshot::open(path)?;
    for summary in snapshot.streams() {
        let stream = summary.stream.get();
        if (1..=3).contains(&stream) {
            continue;
        }
        directory.trimmed.insert(stream, summary.trimmed);
        let records = snapshot.read(summary.stream, summary.trimmed..)?.into_iter().flatten();
        for (record, expected) in records.zip(summary.trimmed..) {
            let record = record?;
            if record.offset() != expected {
                bail!("stream {stream}: offset {} comes at {expected}", record.offset());
            }
            let (offset, epoch, payload) = (record.offset(), record.epoch(), record.payload());
            take(Found { stream, offset, epoch, payload, is_orphan: false });
        }
    }
    for orphan in offline::orphans(path)? {
        let read = offline::visit_orphan(path, &orphan.file, |record| {
            let (stream, offset) = (record.stream.get(), record.offset);
            let (epoch, payload) = (record.epoch, record.payload);
            take(Found { stream, offset, epoch, payload, is_orphan: true });
            ControlFlow::Continue(())
        })?;
        if let Some(problem) = read.problem {
            directory.wrong.push(format!("orphan {}: {problem:?}", orphan.file));
        }
        directory.orphans += 1;
    }
    Ok(directory)
}
