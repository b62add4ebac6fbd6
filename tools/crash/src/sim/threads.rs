//! The engine with its own threads on real files: many callers, two shards, one reopen.

use std::collections::BTreeMap;
use std::path::Path;

use ringwal_engine::{Engine, Options, Stream, StreamId};

use crate::random::{Random, payload};

const SEED: u64 = 7;
const CALLERS: u64 = 6;
const RECORDS: u64 = 300;

fn options() -> Options {
    Options::new()
        .shards(2)
        .segment_bytes(256 << 10)
        .batch_bytes_max(32 << 10)
        .pool_bytes(1 << 20)
        .io_fallback(true)
}

/// Offset to id, by stream.
type Written = BTreeMap<u64, BTreeMap<u64, u64>>;

/// Several threads append to all streams; returns what their receipts said.
pub fn append_from_threads(path: &Path, streams: &[u64]) -> Written {
    let engine = options().open(path).expect("it opens");
    let mut written = Written::new();
    std::thread::scope(|scope| {
        let callers: Vec<_> = (0..CALLERS)
            .map(|caller| {
                let engine = &engine;
                scope.spawn(move || call(caller, streams, |id| engine.stream(StreamId::new(id))))
            })
            .collect();
        for caller in callers {
            for (stream, offset, id) in caller.join().expect("no caller panics") {
                let other = written.entry(stream).or_default().insert(offset, id);
                assert!(other.is_none(), "two receipts for offset {offset} of {stream}");
            }
        }
    });
    check(&engine, &written);
    engine.close().expect("it closes");
    written
}

fn call(caller: u64, streams: &[u64], stream: impl Fn(u64) -> Stream) -> Vec<(u64, u64, u64)> {
    let mut random = Random::new(caller);
    let mut receipts = Vec::new();
    for record in 0..RECORDS {
        let id = caller << 32 | record;
        let name = random.pick(streams);
        let bytes = payload(SEED, id, random.within(8..=600) as usize);
        let receipt = stream(name).append(&bytes).expect("taken").wait().expect("durable");
        receipts.push((name, receipt.offset(), id));
    }
    receipts
}

fn check(engine: &Engine, written: &Written) {
    for (name, expected) in written {
        let stream = engine.stream(StreamId::new(*name));
        let found: BTreeMap<u64, u64> = stream
            .read(0..)
            .expect("readable")
            .map(|record| {
                let record = record.expect("right");
                let id = record.payload().first_chunk::<8>().expect("an id");
                let id = u64::from_le_bytes(*id);
                let expected = payload(SEED, id, record.payload().len());
                assert!(record.payload() == &expected[..], "wrong bytes");
                (record.offset(), id)
            })
            .collect();
        assert_eq!(&found, expected, "stream {name}");
    }
}

/// Opens again and compares; twice, so that a second recovery sees what the first left.
pub fn reopen_and_compare(path: &Path, written: &Written) {
    for _ in 0..2 {
        let engine = options().open(path).expect("it opens again");
        check(&engine, written);
        drop(engine);
    }
}
