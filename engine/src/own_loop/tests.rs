//! What only somebody inside can do to a shard.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::*;
use crate::disk::BLOCK_BYTES;
use crate::disk::sim::{SimDisk, SimHandle};
use crate::format::{BEGINNING_BYTES, BatchHeader, DATA_START, SegmentHeader};

const STREAM: StreamId = StreamId::new(7);
const OTHER: StreamId = StreamId::new(8);

fn open(sim: &SimHandle) -> Shard {
    open_ahead(sim, 1)
}

fn open_ahead(sim: &SimHandle, segments: usize) -> Shard {
    let clock = Clock::Manual(sim.clock());
    let options = Options::new().batch_bytes_max(16 << 10).idle_seal(None).segments_ahead(segments);
    options.open_on(Box::new(SimDisk::new(sim.clone())), [4; 16], 256 << 10, clock).unwrap()
}

/// A record that can be counted, and panics when it is taken.
struct Panics {
    is_copy: bool,
    ended: bool,
}

impl Clone for Panics {
    fn clone(&self) -> Self {
        Self { is_copy: true, ended: self.ended }
    }
}

impl Iterator for Panics {
    type Item = &'static [u8];

    fn next(&mut self) -> Option<Self::Item> {
        assert!(self.is_copy, "as a caller's iterator may");
        (!std::mem::replace(&mut self.ended, true)).then_some(b"never taken")
    }
}

#[test]
fn an_iterator_that_panics_leaves_a_queue_that_goes_on_and_a_journal_that_opens() {
    let sim = SimHandle::new(1);
    let mut shard = open(&sim);
    let panic_in = |shard: &Shard, stream| {
        let records = Panics { is_copy: false, ended: false };
        let attempt = || shard.shared.try_append(stream, records).map(drop);
        catch_unwind(AssertUnwindSafe(attempt)).expect_err("it panics");
    };
    let mut offsets = Vec::new();
    for round in 0..3u8 {
        // Alone in its batch; then between the records of another stream, and of its own.
        panic_in(&shard, OTHER);
        shard.run_once(Some(Duration::from_millis(1))).unwrap();
        let mut tokens = vec![shard.append(STREAM, [round, 0]).unwrap()];
        panic_in(&shard, OTHER);
        tokens.push(shard.append(STREAM, [round, 1]).unwrap());
        panic_in(&shard, STREAM);
        tokens.push(shard.append(STREAM, [round, 2]).unwrap());
        while tokens.iter().any(|token| token.try_receipt().is_none()) {
            shard.run_once(Some(Duration::from_millis(1))).unwrap();
        }
        offsets.extend(tokens.into_iter().map(|token| token.wait().unwrap().offset()));
    }
    assert_eq!(offsets, (0..9).collect::<Vec<_>>());
    sim.kill();
    shard.abandon();
    let shard = open(&sim);
    assert_eq!(shard.recovery().torn, None);
    assert!(shard.streams().iter().all(|summary| summary.stream == STREAM));
    let records: Vec<_> = shard.read(STREAM, ..).unwrap().map(Result::unwrap).collect();
    let payloads: Vec<_> = records.iter().map(|record| record.payload().to_vec()).collect();
    let expected: Vec<_> =
        (0..3).flat_map(|round| (0..3).map(move |number| vec![round, number])).collect();
    assert_eq!(payloads, expected);
}

#[test]
fn a_poisoned_shard_ends_its_part_of_a_subscription() {
    struct Count(std::sync::atomic::AtomicU32);
    impl std::task::Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        }
    }
    let sim = SimHandle::new(1);
    let mut shard = open(&sim);
    let sealed = shard.subscribe(8);
    let count = Arc::new(Count(0.into()));
    let waker = std::task::Waker::from(count.clone());
    while shard.run_once(Some(Duration::from_millis(5))).unwrap() > 0 {}
    sim.fail_next(crate::disk::sim::Kind::Write, 5);
    let token = shard.append(STREAM, b"x").unwrap();
    while sealed.try_next().is_pending() {
        shard.run_once(Some(Duration::from_millis(5))).unwrap();
    }
    assert!(sealed.park(&waker), "the frame was sealed, and nothing else is said");
    while shard.run_once(Some(Duration::from_millis(5))).is_ok() {}
    assert!(token.wait().is_err());
    assert_eq!(count.0.load(std::sync::atomic::Ordering::SeqCst), 1);
    assert!(matches!(sealed.try_next(), std::task::Poll::Ready(None)));
    assert!(sealed.next_blocking().is_none() && shard.subscribe(1).next_blocking().is_none());
}

/// Appends `count` records at once and waits for them. How many writes ended within a turn of the loop.
fn append_and_wait(
    sim: &SimHandle,
    shard: &mut Shard,
    count: u8,
    patience: Option<Duration>,
) -> u64 {
    let before = sim.happened().lone_writes;
    let tokens: Vec<_> = (0..count).map(|byte| shard.append(STREAM, [byte]).unwrap()).collect();
    while tokens.iter().any(|token| token.try_receipt().is_none()) {
        shard.run_once(patience).unwrap();
    }
    assert!(tokens.into_iter().all(|token| token.wait().is_ok()));
    sim.happened().lone_writes - before
}

#[test]
fn who_comes_alone_again_and_again_is_written_without_the_ring() {
    let sim = SimHandle::new(1);
    let mut shard = open(&sim);
    let lone: u64 = (0..20).map(|_| append_and_wait(&sim, &mut shard, 1, None)).sum();
    assert!((10..20).contains(&lone), "{lone} of 20, after a few to be sure");
    assert_eq!(append_and_wait(&sim, &mut shard, 1, None), 1);
    // Whoever has a time limit gets the ring.
    assert_eq!(append_and_wait(&sim, &mut shard, 1, Some(Duration::from_millis(1))), 0);
    assert_eq!(append_and_wait(&sim, &mut shard, 1, None), 1);

    // One that comes while a flush is under way: the next ones have company.
    let first = shard.append(STREAM, b"first").unwrap();
    shard.run_once(Some(Duration::ZERO)).unwrap();
    let second = shard.append(STREAM, b"second").unwrap();
    while second.try_receipt().is_none() {
        shard.run_once(Some(Duration::from_millis(1))).unwrap();
    }
    assert!(first.try_receipt().is_some());
    assert_eq!(append_and_wait(&sim, &mut shard, 1, None), 0);
}

#[test]
fn who_comes_with_somebody_else_is_not_alone() {
    let sim = SimHandle::new(1);
    let mut shard = open(&sim);
    while append_and_wait(&sim, &mut shard, 1, None) == 0 {}
    // In batches of their own: one goes to the device while the other waits.
    let before = sim.happened().lone_writes;
    let trim = shard.trim(STREAM, 1).unwrap();
    let append = shard.append(STREAM, b"behind").unwrap();
    while trim.try_receipt().is_none() || append.try_receipt().is_none() {
        shard.run_once(None).unwrap();
    }
    assert_eq!(sim.happened().lone_writes, before);

    // Two at a time, which a device with one cache flush for both ends together.
    sim.set_delay_ns(1_000_000, 1_000_000);
    for _ in 0..20 {
        let first = shard.append(STREAM, b"first").unwrap();
        shard.run_once(Some(Duration::ZERO)).unwrap();
        let second = shard.append(STREAM, b"second").unwrap();
        sim.advance(Duration::from_micros(600));
        shard.run_once(Some(Duration::ZERO)).unwrap();
        sim.advance(Duration::from_millis(2));
        while first.try_receipt().is_none() || second.try_receipt().is_none() {
            shard.run_once(None).unwrap();
        }
    }
    assert_eq!(sim.happened().lone_writes, before);
    assert_eq!(append_and_wait(&sim, &mut shard, 1, None), 0);
}

#[test]
fn a_lone_write_that_fails_gives_no_receipt_and_one_that_is_short_is_finished_before_it() {
    use crate::disk::sim::{Fault, Kind};
    let sim = SimHandle::new(1);
    let mut shard = open(&sim);
    while append_and_wait(&sim, &mut shard, 1, None) == 0 {}
    sim.fault_next(Kind::Write, Fault::Short(4096));
    let long = shard.append(STREAM, [7; 6000]).unwrap();
    let before = sim.happened().lone_writes;
    while long.try_receipt().is_none() {
        shard.run_once(None).unwrap();
    }
    let offset = long.wait().unwrap().offset();
    assert_eq!(sim.happened().lone_writes, before + 1, "the rest goes through the ring");
    let failed = shard.append(STREAM, b"x").unwrap();
    sim.fail_next(Kind::Write, 5);
    while shard.run_once(None).is_ok() {}
    assert!(failed.wait().is_err());
    assert_eq!(sim.happened().lone_writes, before + 2);
    sim.crash();
    shard.abandon();
    let shard = open(&sim);
    let record = shard.read(STREAM, offset..=offset).unwrap().next().unwrap().unwrap();
    assert_eq!(record.payload(), [7; 6000]);
}

#[test]
fn subscribers_are_woken_before_a_lone_write() {
    struct Look(SimHandle, std::sync::atomic::AtomicU64);
    impl std::task::Wake for Look {
        fn wake(self: Arc<Self>) {
            self.1.store(self.0.happened().lone_writes, std::sync::atomic::Ordering::SeqCst);
        }
    }
    let sim = SimHandle::new(1);
    let mut shard = open(&sim);
    let sealed = shard.subscribe(8);
    while append_and_wait(&sim, &mut shard, 1, None) == 0 {}
    while sealed.try_next().is_ready() {}
    let look = Arc::new(Look(sim.clone(), u64::MAX.into()));
    assert!(sealed.park(&look.clone().into()));
    let before = sim.happened().lone_writes;
    assert_eq!(append_and_wait(&sim, &mut shard, 1, None), 1);
    assert_eq!(look.1.load(std::sync::atomic::Ordering::SeqCst), before, "the write was first");
}

/// A turn of the loop while somebody reads what was there before.
fn turn_beside_a_reader(shard: &mut Shard) {
    assert_eq!(shard.read(STREAM, ..).unwrap().map(Result::unwrap).count(), 1);
    shard.run_once(Some(Duration::from_micros(100))).unwrap();
}

#[test]
fn segments_are_filled_after_the_first_reading_or_when_records_come() {
    let sim = SimHandle::new(1);
    let mut shard = open(&sim);
    let token = shard.append(STREAM, b"before").unwrap();
    while token.try_receipt().is_none() {
        shard.run_once(None).unwrap();
    }
    for (ahead, appends) in [(12, false), (24, true)] {
        sim.kill();
        shard.abandon();
        shard = open_ahead(&sim, ahead);
        let prepared = |shard: &Shard| shard.stats().segments.prepared;
        // Those that need only a header are ready soon.
        (0..50).for_each(|_| turn_beside_a_reader(&mut shard));
        let at_first = prepared(&shard);
        (0..500).for_each(|_| turn_beside_a_reader(&mut shard));
        assert_eq!(prepared(&shard), at_first, "the reader goes first");
        if appends {
            drop(shard.append(OTHER, b"now").unwrap());
            (0..500).for_each(|_| turn_beside_a_reader(&mut shard));
            assert!(prepared(&shard) > at_first, "records go first");
        } else {
            let mut turns = 0;
            while prepared(&shard) < ahead + 2 {
                shard.run_once(None).unwrap();
                turns += 1;
            }
            assert!(turns < 300, "{turns} turns: it sleeps while the device works");
        }
    }
}

#[test]
fn a_shard_that_is_poisoned_while_it_leaves_the_device_to_readers_sleeps() {
    let sim = SimHandle::new(1);
    let mut shard = open(&sim);
    let token = shard.append(STREAM, b"before").unwrap();
    while token.try_receipt().is_none() {
        shard.run_once(None).unwrap();
    }
    sim.kill();
    shard.abandon();
    shard = open_ahead(&sim, 12);
    (0..50).for_each(|_| turn_beside_a_reader(&mut shard));
    sim.fail_next(crate::disk::sim::Kind::Write, 5);
    drop(shard.trim(STREAM, 1).unwrap());
    while shard.run_once(Some(Duration::from_micros(100))).is_ok() {}
    let Driven::Loop(turning) = &mut shard.driven else { panic!("it was opened for writing") };
    assert_eq!(turning.next_wait(), Wait::Forever);
}

/// Where batches of this life of a segment start, as far as their headers are right.
fn batches(segment: &[u8]) -> Vec<u64> {
    let header = SegmentHeader::verify(&segment[..BLOCK_BYTES]).unwrap();
    let places = (DATA_START..segment.len() as u64).step_by(BLOCK_BYTES);
    let is_batch = |at: &u64| {
        let found = BatchHeader::verify(&segment[*at as usize..], header.seed(), *at);
        found.is_ok_and(|batch| batch.generation == header.generation)
    };
    places.filter(is_batch).collect()
}

#[test]
fn a_power_cut_leaves_nothing_far_behind_the_beginning_of_a_segment_without_it() {
    static RECORD: [u8; 60_000] = [7; 60_000];
    let (mut far, mut torn) = (0, 0);
    for seed in 0..24 {
        let sim = SimHandle::new(seed);
        let clock = Clock::Manual(sim.clock());
        // Two megabytes in flight.
        let options = Options::new().idle_seal(None).flush_slots(32);
        let disk = Box::new(SimDisk::new(sim.clone()));
        let mut shard = options.open_on(disk, [4; 16], 4 << 20, clock).unwrap();
        let mut tokens = Vec::new();
        let mut fill = |shard: &mut Shard, records: usize| {
            tokens.extend((0..records).map_while(|_| shard.append(STREAM, RECORD).ok()));
        };
        while shard.stats().rotations == 0 {
            fill(&mut shard, 1);
            shard.run_once(Some(Duration::from_micros(100))).unwrap();
        }
        // Until a time that differs from seed to seed.
        for _ in 0..seed % 6 {
            fill(&mut shard, 40);
            shard.run_once(Some(Duration::from_micros(100))).unwrap();
        }
        sim.crash();
        shard.abandon();
        for entry in sim.list() {
            let bytes = sim.bytes(&entry.name).unwrap_or_default();
            if entry.length < 4 << 20 || SegmentHeader::verify(&bytes[..BLOCK_BYTES]).is_err() {
                continue;
            }
            let batches = batches(&bytes);
            let is_far = batches.iter().any(|at| *at >= DATA_START + BEGINNING_BYTES);
            let has_beginning = batches.first() == Some(&DATA_START);
            assert!(has_beginning || !is_far, "seed {seed}, {}: {batches:?}", entry.name);
            far += u32::from(is_far);
            torn += u32::from(!batches.is_empty() && !has_beginning);
        }
    }
    assert!(far > 24 && torn > 0, "{far} and {torn} segments: the test has not met the case");
}
