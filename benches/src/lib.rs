//! Micro-benchmarks of the engine's parts: `cargo bench -p ringwal-benches`. They live in
//! `benches/`; here is only what several of them share. `src/peers` is a program of its own.
//!
//! They say where the time of one step goes. How fast records become durable is what
//! `ringwal bench` measures.

use std::path::Path;

use ringwal_engine::{AppendError, Engine, Options, StreamId};

/// The stream that every benchmark writes to.
pub const STREAM: StreamId = StreamId::new(7);
/// Bytes of a record.
pub const RECORD_BYTES: usize = 128;

/// Options that any machine can run, with or without io_uring.
pub fn options() -> Options {
    Engine::options().io_fallback(true)
}

/// Writes `records` records into a new directory. Without `close` the writer ends as a killed
/// process would, so that opening has to scan.
///
/// # Panics
/// When the directory cannot be written.
pub fn prepare(directory: &Path, records: u64, close: bool) {
    let mut shard = options().open_shard(directory).expect("a new directory can be opened");
    let record = [7; RECORD_BYTES];
    let mut last = None;
    for _ in 0..records {
        last = loop {
            match shard.append(STREAM, record) {
                Ok(token) => break Some(token),
                Err(AppendError::Full { .. }) => drop(shard.run_once(None)),
                Err(error) => panic!("{error}"),
            }
        };
    }
    while last.as_ref().is_some_and(|last| last.try_receipt().is_none()) {
        shard.run_once(None).expect("the disk writes");
    }
    if close {
        shard.close().expect("the disk writes");
    } else {
        shard.abandon();
    }
}
