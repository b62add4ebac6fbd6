//! The way of a record into its batch, and of its receipt back to whoever waits.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};

use divan::Bencher;
use divan::counter::ItemsCount;
use ringwal_benches::{RECORD_BYTES, STREAM, options};
use ringwal_engine::disk::sim::{SimDisk, SimHandle, SimOptions};
use ringwal_engine::{Append, Clock, Engine, Shard};

/// Records of one sample: one batch and a bit.
const RECORDS: u64 = 1_000;
/// Long enough that few samples meet a rotation.
const SEGMENT_BYTES: u64 = 64 << 20;

fn main() {
    divan::main();
}

/// A shard on a simulated disk, which costs no device time, with its segments prepared.
fn simulated_shard() -> Shard {
    let sim = SimHandle::with_options(SimOptions {
        pool_bytes: 8 << 20,
        slot_bytes: 256 << 10,
        ..SimOptions::default()
    });
    let disk = Box::new(SimDisk::new(sim));
    let clock = Clock::Manual(Arc::new(AtomicU64::new(0)));
    let mut shard = options()
        .idle_seal(None)
        .open_on(disk, [1; 16], SEGMENT_BYTES, clock)
        .expect("an empty simulated disk opens");
    while shard.stats().segments.prepared < 2 {
        shard.run_once(None).expect("the simulated disk writes");
    }
    shard
}

/// Turns the loop until this token has its receipt, and drops what is not needed any more.
fn drain(shard: &mut Shard, last: &Append) {
    while last.try_receipt().is_none() {
        shard.run_once(None).expect("the simulated disk writes");
    }
    let end = last.try_receipt().expect("it has just come").expect("it was not refused").offset();
    drop(shard.trim(STREAM, end).expect("the lane of trims is empty"));
    shard.run_once(None).expect("the simulated disk writes");
}

/// One caller, nobody else at the queue: lock, copy, token.
#[divan::bench(max_time = 2)]
fn append_alone(bencher: Bencher<'_, '_>) {
    let shard = RefCell::new(simulated_shard());
    let last = RefCell::new(None);
    bencher
        .counter(ItemsCount::new(RECORDS))
        .with_inputs(|| {
            if let Some(last) = last.take() {
                drain(&mut shard.borrow_mut(), &last);
            }
        })
        .bench_local_values(|()| {
            let mut shard = shard.borrow_mut();
            for _ in 1..RECORDS {
                drop(shard.append(STREAM, [7; RECORD_BYTES]).expect("the queue was drained"));
            }
            let token = shard.append(STREAM, [7; RECORD_BYTES]).expect("the queue was drained");
            last.replace(Some(token));
        });
}

/// Several threads at the queue of a running shard, tokens dropped. The device keeps up or pushes
/// back.
#[divan::bench(args = [1, 2, 8], max_time = 3, sample_count = 20)]
fn append_from_threads(bencher: Bencher<'_, '_>, threads: u64) {
    let directory = tempfile::tempdir().expect("there is room for a directory");
    let engine = options().open(directory.path()).expect("a new directory can be opened");
    let stream = engine.stream(STREAM);
    let appended = AtomicU64::new(0);
    bencher.counter(ItemsCount::new(threads * RECORDS)).bench_local(|| {
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    for _ in 0..RECORDS {
                        drop(stream.append([7; RECORD_BYTES]).expect("the shard runs"));
                    }
                });
            }
        });
        // What lies well behind is durable; dropping it bounds the directory.
        let end = appended.fetch_add(threads * RECORDS, Ordering::Relaxed);
        drop(stream.trim_async(end.saturating_sub(100_000)));
    });
    engine.close().expect("the disk writes");
}

/// The smallest cycle without a device: append, seal, complete, receipt.
#[divan::bench(max_time = 1, sample_size = 64)]
fn turn_of_the_loop(bencher: Bencher<'_, '_>) {
    let mut shard = simulated_shard();
    let mut records = 0_u64;
    bencher.bench_local(|| {
        let token = shard.append(STREAM, [7; RECORD_BYTES]).expect("the queue is empty");
        while token.try_receipt().is_none() {
            shard.run_once(None).expect("the simulated disk writes");
        }
        records += 1;
        if records.is_multiple_of(256) {
            drain(&mut shard, &token);
        }
    });
}

/// A thread that waits for the tokens it is sent.
fn waiter(done: Sender<()>) -> Sender<Append> {
    let (tokens, inbox) = channel::<Append>();
    std::thread::spawn(move || {
        for token in inbox {
            token.wait().expect("the simulated disk writes");
            if done.send(()).is_err() {
                return;
            }
        }
    });
    tokens
}

/// One batch with a record of each of this many threads, until the last of them runs again.
#[divan::bench(args = [1, 8, 64], max_time = 2)]
fn wake_waiting_threads(bencher: Bencher<'_, '_>, threads: usize) {
    let mut shard = simulated_shard();
    let (done, finished) = channel();
    let waiters: Vec<_> = (0..threads).map(|_| waiter(done.clone())).collect();
    let mut batches = 0_u64;
    bencher.counter(ItemsCount::new(threads)).bench_local(|| {
        for waiter in &waiters {
            let token = shard.append(STREAM, [7; RECORD_BYTES]).expect("the queue is empty");
            waiter.send(token).expect("the waiter runs");
        }
        let last = shard.append(STREAM, [7; RECORD_BYTES]).expect("the queue is empty");
        while last.try_receipt().is_none() {
            shard.run_once(None).expect("the simulated disk writes");
        }
        for _ in &waiters {
            finished.recv().expect("the waiters run");
        }
        batches += 1;
        if batches.is_multiple_of(64) {
            drain(&mut shard, &last);
        }
    });
}

/// Through a running engine, device included: for comparing with the bare device.
#[divan::bench(max_time = 2)]
fn append_and_wait(bencher: Bencher<'_, '_>) {
    let directory = tempfile::tempdir().expect("there is room for a directory");
    let engine: Engine = options().open(directory.path()).expect("a new directory can be opened");
    let stream = engine.stream(STREAM);
    bencher.bench_local(|| {
        let token = stream.append([7; RECORD_BYTES]).expect("the shard runs");
        token.wait().expect("the disk writes").offset()
    });
    engine.close().expect("the disk writes");
}
