//! What a million creations of topics cost the metadata store: three replicas each, in 64 sessions. Applied,
//! as a snapshot. `cargo bench -p ringwal-raft-fallback --bench metadata`; with `-- restart`, behind a restart.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

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

/// First argument of a process that restarts.
const RESTART: &str = "restart-in";

fn main() {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some(RESTART) => restarted(&arguments[1]),
        Some("restart") => [0, 250_000, RECORDS.len() as u64].into_iter().for_each(restart),
        _ => divan::main(),
    }
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
    for token in tokens {
        token.wait().expect("it is durable");
    }
    (scratch, engine)
}

fn options() -> ApplyingOptions {
    let options = ApplyingOptions::new(Arc::new(AtomicU64::new(u64::MAX)), Box::new(|_| {}));
    ApplyingOptions { snapshot_records: u64::MAX, snapshot_bytes: u64::MAX, ..options }
}

/// Restarts: each in a process of its own, as in life. In one that has given back the memory of such a state
/// already, the allocator takes twice the time.
fn restart(behind: u64) {
    let (scratch, engine) = directory();
    let end = RECORDS.len() as u64 - behind;
    if end > 0 {
        let (_, applying) = Applying::start(&engine, options()).expect("it starts");
        let taken = applying.snapshot_below(end).expect("the disk has room").expect("the first");
        println!("a snapshot of {} bytes took {:?}", taken.bytes, taken.took);
    }
    engine.close().expect("it is whole");
    println!("restart with a snapshot of {end} records and {behind} behind it:");
    for _ in 0..3 {
        let this = std::env::current_exe().expect("a file");
        let mut child = std::process::Command::new(this);
        let status = child.arg(RESTART).arg(scratch.path()).status().expect("it runs");
        assert!(status.success(), "{status}");
    }
}

/// The process of its own.
fn restarted(directory: &str) {
    let began = Instant::now();
    let engine = Engine::options().open(directory).expect("the directory opens");
    let (opened, cpu) = (began.elapsed(), cpu_time());
    let (metadata, _applying) = Applying::start(&engine, options()).expect("it starts");
    let (took, cpu) = (began.elapsed() - opened, cpu_time() - cpu);
    let topics = metadata.read(|state| state.topics().len()).1;
    println!(
        "    the engine {opened:?}, the state {took:?}, of which {cpu:?} on a core: {topics} topics"
    );
    // Nobody waits for the memory to be given back.
    std::process::exit(0);
}

/// What this thread has had of a core: others may be busy on the machine.
fn cpu_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
    let ns = text.split_whitespace().next().and_then(|field| field.parse().ok());
    Duration::from_nanos(ns.expect("a number"))
}
