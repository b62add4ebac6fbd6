//! What a million creations of topics cost the metadata store: three replicas each, in 64 sessions. Applied,
//! as a snapshot, and behind a restart. `cargo bench -p ringwal-benches --bench metadata`.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, LazyLock};

use divan::{Bencher, black_box};
use ringwal_engine::Engine;
use ringwal_raft_fallback::applying::{Applying, ApplyingOptions, METADATA_STREAM};
use ringwal_raft_fallback::command::{BrokerId, Command, Record, TopicName};
use ringwal_raft_fallback::session::{Session, SessionId};
use ringwal_raft_fallback::{Entry, Metadata, State, snapshot};

const TOPICS: u64 = 1_000_000;
const SESSIONS: u64 = 64;
const BROKERS: u64 = 3;
/// As the thread that applies takes them.
const BATCH: usize = 1024;

fn main() {
    divan::main();
}

/// The records of the stream.
static RECORDS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let register = |id| {
        let (broker, addresses) = (BrokerId::new(id), vec![format!("broker-{id}:9092")]);
        let command = Command::RegisterBroker { broker, addresses, knows: 1 };
        Record { time_ms: 0, session: None, command }
    };
    let create = |number: u64| {
        let session = SessionId::new(0, 1 + number % SESSIONS);
        let session = session.and_then(|id| Session::new(id, 1 + number / SESSIONS));
        let command = Command::CreateTopic {
            // Not in the order of their names.
            name: TopicName::new(&format!("topic-{:016x}", mixed(number))).expect("a name"),
            partitions: 1,
            replication_factor: 3,
            configuration: [("retention.ms".to_owned(), "60000".to_owned())].into(),
        };
        Record { time_ms: number, session, command }
    };
    let records = (1..=BROKERS).map(register).chain((0..TOPICS).map(create));
    records.map(|record| record.encode().expect("within the limits")).collect()
});

fn mixed(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb)
}

static SNAPSHOT: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut bytes = Vec::new();
    snapshot::write(&applied(), &mut bytes).expect("memory");
    eprintln!("the snapshot has {} bytes", bytes.len());
    bytes
});

fn applied() -> State {
    let mut state = State::default();
    for (bytes, offset) in RECORDS.iter().zip(0..) {
        let record = Record::decode(bytes).expect("it is understood");
        state.apply(offset, 1, record).expect("it is in order");
    }
    state
}

/// Decoding and applying, with what readers share.
#[divan::bench(sample_count = 3, sample_size = 1)]
fn apply(bencher: Bencher) {
    LazyLock::force(&RECORDS);
    bencher.bench_local(|| {
        let (metadata, mut applier) = Metadata::new(State::default(), 1);
        let mut outcomes = Vec::new();
        for (records, base) in RECORDS.chunks(BATCH).zip((0..).step_by(BATCH)) {
            let entries = records.iter().zip(base..);
            let entries = entries.map(|(payload, offset)| Entry { offset, epoch: 1, payload });
            outcomes.clear();
            applier.apply(entries, &mut outcomes).expect("it is understood");
        }
        (metadata, applier)
    });
}

/// What a copy under the lock of the readers would hold them up for.
#[divan::bench(sample_count = 3, sample_size = 1)]
fn copy(bencher: Bencher) {
    let state = snapshot::read(&mut &SNAPSHOT[..]).expect("it is whole");
    bencher.bench_local(|| black_box(&state).clone());
}

#[divan::bench(sample_count = 3, sample_size = 1)]
fn write_snapshot(bencher: Bencher) {
    let state = snapshot::read(&mut &SNAPSHOT[..]).expect("it is whole");
    let length = SNAPSHOT.len();
    bencher.with_inputs(|| Vec::with_capacity(length)).bench_local_values(|mut bytes| {
        snapshot::write(&state, &mut bytes).expect("memory");
        bytes
    });
}

#[divan::bench(sample_count = 5, sample_size = 1)]
fn read_snapshot(bencher: Bencher) {
    LazyLock::force(&SNAPSHOT);
    bencher.bench_local(|| snapshot::read(&mut &SNAPSHOT[..]).expect("it is whole"));
}

/// A directory with all records in stream 0.
fn directory() -> (tempfile::TempDir, Engine) {
    let scratch = tempfile::tempdir_in(".").expect("a directory");
    let engine = Engine::options().open(scratch.path()).expect("the directory opens");
    engine.set_epoch(1);
    let stream = engine.stream(METADATA_STREAM);
    let tokens: Vec<_> =
        RECORDS.chunks(BATCH).map(|batch| stream.append_batch(batch).expect("room")).collect();
    tokens.into_iter().for_each(|token| drop(token.wait().expect("it is durable")));
    (scratch, engine)
}

fn options() -> ApplyingOptions {
    let options = ApplyingOptions::new(Arc::new(AtomicU64::new(u64::MAX)), Box::new(|_| {}));
    ApplyingOptions { snapshot_records: u64::MAX, snapshot_bytes: u64::MAX, ..options }
}

#[divan::bench(sample_count = 3, sample_size = 1)]
fn restart_from_the_stream(bencher: Bencher) {
    let (_scratch, engine) = directory();
    bencher.bench_local(|| Applying::start(&engine, options()).expect("it starts"));
}

/// With as many records behind the snapshot as there are when the next one is due.
#[divan::bench(args = [0, 250_000], sample_count = 3, sample_size = 1)]
fn restart_from_a_snapshot(bencher: Bencher, behind: u64) {
    let (_scratch, engine) = directory();
    let (_, applying) = Applying::start(&engine, options()).expect("it starts");
    let end = RECORDS.len() as u64 - behind;
    let taken = applying.snapshot_below(end).expect("the disk has room").expect("the first");
    eprintln!("a snapshot of {} bytes took {:?}", taken.bytes, taken.took);
    drop(applying);
    bencher.bench_local(|| Applying::start(&engine, options()).expect("it starts"));
}
