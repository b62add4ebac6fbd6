//! A process is killed behind a write and before its flush, and the next one finds what it wrote in the kernel's
//! cache. What that one says to be durable (in a promise, or in a report as a follower) must be so.

use ringwal_engine::StreamId;
use ringwal_engine::disk::sim::SimHandle;
use ringwal_raft_fallback::raft::Journal as _;

use crate::crashes::Random;
use crate::simulated::{SimJournal, blank_disk};

/// The metadata stream, which is replicated.
const STREAM: StreamId = StreamId::new(0);

fn record(number: u64) -> Vec<u8> {
    format!("record {number} {}", "x".repeat(number as usize % 700)).into_bytes()
}

/// What a node says to be durable when it has started: nothing but the engine's durable end is ever reported.
fn reported(journal: &SimJournal) -> u64 {
    journal.held(STREAM).end
}

fn assert_records(journal: &SimJournal, end: u64) {
    let read = journal.read(STREAM, 0..end, usize::MAX);
    let read = tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(read);
    let read = read.unwrap();
    assert_eq!(read.len() as u64, end);
    for (found, number) in read.iter().zip(0..) {
        assert_eq!(found.payload(), record(number), "record {number}");
    }
}

/// Appends from here on, until it is killed at some operation of the disk.
fn append_until_killed(sim: &SimHandle, journal: SimJournal, random: &mut Random) {
    let before = sim.kills();
    let mut next = reported(&journal);
    sim.kill_at(sim.operations() + 1 + random.below(40));
    while sim.kills() == before {
        for _ in 0..=random.below(4) {
            // A full lane takes it another time; a machine that is down never.
            if journal.try_append(STREAM, &record(next)) {
                next += 1;
            }
        }
        journal.turn();
    }
    journal.abandon();
}

#[test]
fn what_a_killed_process_wrote_is_flushed_before_the_next_one_reports_it() {
    let (mut lives, mut unflushed) = (0, 0);
    for seed in 1..=300 {
        let sim = blank_disk(seed);
        let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        append_until_killed(&sim, SimJournal::open(&sim).unwrap(), &mut random);
        for _ in 0..3 {
            // Had the power gone at once, and nobody started in between: so much would be left.
            let other = sim.fork();
            other.crash();
            let left = SimJournal::open(&other).unwrap();
            let left_end = reported(&left);
            left.abandon();
            let next = SimJournal::open(&sim).unwrap();
            let said = reported(&next);
            // It has said so; then the power goes.
            sim.crash();
            next.abandon();
            let after = SimJournal::open(&sim).unwrap();
            assert_eq!(reported(&after), said, "seed {seed}: said to be durable, and lost");
            assert_records(&after, said);
            lives += 1;
            unflushed += u64::from(left_end < said);
            append_until_killed(&sim, after, &mut random);
        }
    }
    println!("{unflushed} of {lives} times a record was found that nobody had flushed");
    assert!(unflushed > 50, "{unflushed} of {lives}: too little happened");
}
