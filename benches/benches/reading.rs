//! Reading durable records, from an unsealed segment and from sealed ones.

use divan::Bencher;
use divan::counter::ItemsCount;
use ringwal_benches::{STREAM, options, prepare};
use ringwal_engine::Engine;

const RECORDS: u64 = 100_000;
/// Step between the offsets of single reads: prime, so that all parts are met.
const STEP: u64 = 7_919;

fn main() {
    divan::main();
}

fn prepared(close: bool) -> (tempfile::TempDir, Engine) {
    let directory = tempfile::tempdir().expect("there is room for a directory");
    prepare(directory.path(), RECORDS, close);
    let engine = options().read_only(true).open(directory.path()).expect("the directory is whole");
    (directory, engine)
}

#[divan::bench(args = [false, true], max_time = 2)]
fn in_order(bencher: Bencher<'_, '_>, sealed: bool) {
    let (_directory, engine) = prepared(sealed);
    let stream = engine.stream(STREAM);
    bencher.counter(ItemsCount::new(RECORDS)).bench_local(|| {
        let records = stream.read(0..).expect("nothing is trimmed");
        records.map(|record| record.expect("the directory is whole").payload().len()).sum::<usize>()
    });
}

#[divan::bench(args = [false, true], max_time = 2)]
fn one(bencher: Bencher<'_, '_>, sealed: bool) {
    let (_directory, engine) = prepared(sealed);
    let stream = engine.stream(STREAM);
    let mut offset = 0;
    bencher.bench_local(|| {
        offset = (offset + STEP) % RECORDS;
        stream.read(offset..=offset).expect("nothing is trimmed").next()
    });
}
