//! Opening a directory, read-only so that each time finds the same bytes.

use divan::Bencher;
use divan::counter::ItemsCount;
use ringwal_benches::{options, prepare};

const RECORDS: u64 = 200_000;

fn main() {
    divan::main();
}

fn open(bencher: Bencher<'_, '_>, close: bool) {
    let directory = tempfile::tempdir().expect("there is room for a directory");
    prepare(directory.path(), RECORDS, close);
    bencher.counter(ItemsCount::new(RECORDS)).bench_local(|| {
        options().read_only(true).open(directory.path()).expect("the directory is whole")
    });
}

/// The open segment is scanned: every checksum of every record.
#[divan::bench(max_time = 3)]
fn after_a_kill(bencher: Bencher<'_, '_>) {
    open(bencher, false);
}

/// Footers are read, no record.
#[divan::bench(max_time = 2)]
fn after_a_clean_close(bencher: Bencher<'_, '_>) {
    open(bencher, true);
}
