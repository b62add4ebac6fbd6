//! Engines with something to keep, and what is read from what was kept.

use std::fs;
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};

use ringwal_engine::offline::visit_orphan;
use ringwal_engine::{Engine, Options, StreamId};
use ringwal_replication::node_id::{NodeId, RunId};
use ringwal_replication::orphans::{Reason, keep};

pub const STREAM: StreamId = StreamId::new(7);
/// Records of a frame that [`fill`] appends.
pub const FRAME_RECORDS: u64 = 4;

/// Offset, epoch and bytes.
pub type Kept = (u64, u64, Vec<u8>);

pub fn options() -> Options {
    Engine::options().segment_bytes(1 << 20).pool_bytes(4 << 20)
}

pub fn reason(epoch: u64) -> Reason {
    Reason { epoch, leader: NodeId::new(2), run: RunId::new([7; 16]) }
}

/// Appends frames of a few records each, one of them empty.
pub fn fill(engine: &Engine, stream: StreamId, frames: u64) {
    for frame in 0..frames {
        let record = |number: u64| format!("{stream} {frame} {number}").repeat(number as usize);
        let records: Vec<_> = (0..FRAME_RECORDS).map(record).collect();
        engine.stream(stream).append_batch(&records).unwrap().wait().unwrap();
    }
}

pub fn end(engine: &Engine, stream: StreamId) -> u64 {
    engine.stream(stream).end()
}

/// What the engine holds.
pub fn held(engine: &Engine, stream: StreamId, offsets: Range<u64>) -> Vec<Kept> {
    let records = engine.stream(stream).read(offsets).unwrap().map(Result::unwrap);
    records.map(|record| (record.offset(), record.epoch(), record.payload().to_vec())).collect()
}

/// What an orphan file gives.
pub fn visited(directory: &Path, file: &str) -> Vec<Kept> {
    let mut records = Vec::new();
    visit_orphan(directory, file, |record| {
        records.push((record.offset, record.epoch, record.payload.to_vec()));
        ControlFlow::Continue(())
    })
    .unwrap();
    records
}

/// Names in the folder of orphans.
pub fn files(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory.join("orphans")).into_iter().flatten();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// An engine's directory, closed, with one small orphan: its path, and what it holds.
pub struct Small {
    pub directory: tempfile::TempDir,
    pub path: PathBuf,
    pub records: Vec<Kept>,
}

impl Small {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let engine = options().open(directory.path()).unwrap();
        for epoch in 1..3 {
            engine.set_epoch(epoch);
            fill(&engine, STREAM, 1);
        }
        let until = end(&engine, STREAM);
        let records = held(&engine, STREAM, 2..until);
        let path = keep(&engine, STREAM, 2, until, reason(5)).unwrap().unwrap();
        engine.close().unwrap();
        Self { directory, path, records }
    }

    /// Its name in the directory.
    pub fn file(&self) -> String {
        format!("orphans/{}", self.path.file_name().unwrap().to_str().unwrap())
    }
}
