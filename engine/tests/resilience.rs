//! What goes wrong around the engine and must stay there: files that cannot be had, callers that
//! panic, wakers that call back, options at their extremes, a device that is lost or full. Most
//! of it on the simulated disk, where time is counted and not waited for.

#[path = "resilience/files.rs"]
mod files;
#[path = "common/skipped.rs"]
mod skipped;
#[path = "common/watchdog.rs"]
mod watchdog;
#[path = "resilience/watched.rs"]
mod watched;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use ringwal_engine::disk::sim::{Kind, SimDisk, SimHandle, SimOptions};
use ringwal_engine::disk::{BLOCK_BYTES, BufferMut, FileId, Operation, run};
use ringwal_engine::format::{DATA_START, FooterHeader};
use ringwal_engine::{
    Append, Clock, CommitError, OpenError, Options, ReadError, Record, Shard, StreamId, Tail,
};

use watched::{Watch, Watched};

const ENGINE: [u8; 16] = [3; 16];
const SEGMENT_BYTES: u64 = 64 << 10;
const STREAM: StreamId = StreamId::new(7);
const TURN: Duration = Duration::from_millis(5);
const HOUR: Duration = Duration::from_secs(3600);

/// A device, how its shards are opened, and what is seen of what they ask of it.
struct Device {
    sim: SimHandle,
    options: Options,
    watch: Arc<Watch>,
}

impl Device {
    fn new(seed: u64) -> Self {
        let (slot_bytes, pool_bytes) = (8 << 10, 96 << 10);
        let sim = SimOptions { seed, slot_bytes, pool_bytes, ..SimOptions::default() };
        Self {
            sim: SimHandle::with_options(sim),
            options: Options::new().batch_bytes_max(slot_bytes).idle_seal(None),
            watch: Arc::default(),
        }
    }

    fn open(&self) -> Result<Shard, OpenError> {
        let disk = Box::new(Watched::new(SimDisk::new(self.sim.clone()), self.watch.clone()));
        self.options.open_on(disk, ENGINE, SEGMENT_BYTES, Clock::Manual(self.sim.clock()))
    }

    fn kill(&self, shard: Shard) {
        self.sim.kill();
        shard.abandon();
    }

    fn append(&self, shard: &mut Shard, record: &[u8]) -> u64 {
        let token = shard.append(STREAM, record).expect("taken");
        while token.try_receipt().is_none() {
            shard.run_once(Some(TURN)).expect("healthy");
        }
        token.try_receipt().expect("looked at").expect("durable").offset()
    }

    /// Turns for this long, of the device's time, and counts the turns.
    fn turn_for(&self, shard: &mut Shard, time: Duration) -> u64 {
        let end_ns = self.sim.now_ns() + time.as_nanos() as u64;
        let mut turns = 0;
        while self.sim.now_ns() < end_ns && turns < 100_000 {
            let _ = shard.run_once(Some(Duration::from_nanos(end_ns - self.sim.now_ns())));
            turns += 1;
        }
        turns
    }

    /// Files with a segment's name that are not a whole segment.
    fn unfinished_files(&self) -> Vec<String> {
        let files = self.sim.list().into_iter();
        files
            .filter(|entry| entry.name.starts_with("segment-") && entry.length != SEGMENT_BYTES)
            .map(|entry| entry.name)
            .collect()
    }

    /// Puts zeroes over a part of a file, durably, as if nothing had ever been written there.
    fn wipe(&self, name: &str, from: u64, length: usize) {
        let mut disk = SimDisk::new(self.sim.clone());
        let open = Operation::Open { name: name.into(), create: false };
        let file = FileId(run(&mut disk, open).unwrap().0 as u32);
        let buffer = BufferMut::allocate(length).freeze();
        let write = Operation::Write { file, offset: from, buffer, from: 0, length, durable: true };
        assert_eq!(run(&mut disk, write).unwrap().0, length as u64);
    }
}

struct Count(AtomicU32);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

fn count() -> Arc<Count> {
    Arc::new(Count(AtomicU32::new(0)))
}

fn poll_tail(tail: &mut Tail, waker: &Waker) -> Poll<Result<Record, ReadError>> {
    std::pin::pin!(tail.next()).poll(&mut Context::from_waker(waker))
}

#[test]
fn a_file_that_could_not_be_opened_is_not_left_behind() {
    let device = Device::new(1);
    let mut shard = device.open().unwrap();
    // As when the descriptor cannot be kept: the file has been created by then.
    device.watch.fail_next_create();
    while shard.stats().errors.prepare == 0 {
        shard.run_once(Some(TURN)).unwrap();
    }
    device.turn_for(&mut shard, Duration::from_millis(100));
    assert_eq!(device.unfinished_files(), [""; 0]);
    device.turn_for(&mut shard, Duration::from_secs(5));
    assert_eq!(shard.stats().errors.prepare, 1);
    assert_eq!(shard.stats().segments.prepared, 3, "it was tried again");
    assert_eq!(device.unfinished_files(), [""; 0]);
    shard.close().unwrap();
}

#[test]
fn evidence_behind_a_segment_that_lost_everything_is_not_skipped() {
    let device = Device::new(2);
    let mut shard = device.open().unwrap();
    while shard.stats().rotations < 2 {
        device.append(&mut shard, &[5; 3000]);
    }
    device.append(&mut shard, b"says that what is before it was durable");
    device.kill(shard);
    // The second of three segments keeps its header only, as if it had never been used.
    let length = (SEGMENT_BYTES - DATA_START) as usize;
    device.wipe("segment-00000001", DATA_START, length);
    // The third has no footer yet.
    let last = device.sim.bytes("segment-00000002").expect("a third segment");
    let footer = &last[FooterHeader::offset(SEGMENT_BYTES) as usize..];
    assert_eq!(footer, [0; BLOCK_BYTES]);
    match device.open() {
        Err(OpenError::Corrupt(corruption)) => {
            let files: Vec<_> = corruption.damages.iter().map(|damage| &damage.file[..]).collect();
            assert!(files.contains(&"segment-00000001"), "{corruption}");
        }
        Err(error) => panic!("{error}"),
        Ok(shard) => panic!("acknowledged records are gone: {:?}", shard.recovery()),
    }
}

#[test]
fn a_full_disk_is_tried_again_without_turning_on_the_spot() {
    let device = Device::new(3);
    let mut shard = device.open().unwrap();
    device.sim.set_capacity_bytes(Some(0));
    // Slow enough that most of the time a try is under way.
    device.sim.set_delay_ns(1_000_000_000, 1_000_000_000);
    let turns = device.turn_for(&mut shard, Duration::from_secs(100));
    let tries = shard.stats().errors.prepare;
    assert!((10..=50).contains(&tries), "{tries} tries");
    assert!(turns < 1_000, "{turns} turns in 100 seconds");
}

#[test]
fn a_poisoned_shard_sleeps_whatever_it_had_planned() {
    let device = Device::new(4);
    let mut shard = device.open().unwrap();
    device.sim.set_capacity_bytes(Some(0));
    while shard.stats().errors.prepare == 0 {
        shard.run_once(Some(TURN)).unwrap();
    }
    // No segment is being prepared when the write fails; the next try would be a second later.
    device.turn_for(&mut shard, Duration::from_millis(100));
    device.sim.fail_next(Kind::Write, libc::EIO);
    let token = shard.append(STREAM, b"lost").unwrap();
    while token.try_receipt().is_none() {
        let _ = shard.run_once(Some(TURN));
    }
    assert!(matches!(token.try_receipt(), Some(Err(CommitError::Unknown(_)))));
    let turns = device.turn_for(&mut shard, 10 * HOUR);
    assert!(turns < 20, "{turns} turns with nothing to do");
}

#[test]
fn a_shard_that_seals_its_journal_for_the_last_time_waits_for_nothing_else() {
    let device = Device::new(5);
    let mut shard = device.open().unwrap();
    device.sim.set_capacity_bytes(Some(0));
    while shard.stats().errors.prepare == 0 {
        shard.run_once(Some(TURN)).unwrap();
    }
    device.turn_for(&mut shard, Duration::from_millis(100));
    // The footer is slow: the time of the next try passes while it is written.
    let sim = device.sim.clone();
    device.watch.before_each(move |operation| {
        let last_block = FooterHeader::offset(SEGMENT_BYTES);
        if matches!(operation, Operation::Write { offset, .. } if *offset == last_block) {
            sim.set_delay_ns(5_000_000_000, 5_000_000_000);
        }
    });
    let (reaps, began_ns) = (device.watch.reaps(), device.sim.now_ns());
    shard.close().unwrap();
    let reaps = device.watch.reaps() - reaps;
    assert!(device.sim.now_ns() - began_ns > 5_000_000_000, "the footer was not slow");
    assert!(reaps < 100, "{reaps} looks at the disk");
}

#[test]
fn tails_that_are_given_up_leave_no_waker_behind() {
    let device = Device::new(6);
    let shard = device.open().unwrap();
    let mut wakers: Vec<Weak<Count>> = Vec::new();
    for _ in 0..100 {
        let (mut tail, count) = (shard.tail(STREAM, 0), count());
        let waker = Waker::from(count.clone());
        assert!(poll_tail(&mut tail, &waker).is_pending());
        wakers.push(Arc::downgrade(&count));
    }
    let kept = wakers.iter().filter(|waker| waker.strong_count() > 0).count();
    assert_eq!(kept, 0, "wakers of tails that are gone");
}

#[test]
fn a_tail_that_is_polled_by_many_tasks_keeps_the_last_waker_only() {
    let device = Device::new(7);
    let mut shard = device.open().unwrap();
    let (mut tail, mut other) = (shard.tail(STREAM, 0), shard.tail(STREAM, 0));
    let shared = count();
    assert!(poll_tail(&mut other, &Waker::from(shared.clone())).is_pending());
    let mut wakers: Vec<Weak<Count>> = Vec::new();
    for _ in 0..100 {
        let count = count();
        assert!(poll_tail(&mut tail, &Waker::from(count.clone())).is_pending());
        wakers.push(Arc::downgrade(&count));
    }
    let kept = wakers.iter().filter(|waker| waker.strong_count() > 0).count();
    assert_eq!(kept, 1, "only the task that polled last is to be woken");
    // A tail that goes takes no other one's waker with it, also of the same task.
    assert!(poll_tail(&mut tail, &Waker::from(shared.clone())).is_pending());
    drop(tail);
    device.append(&mut shard, b"one");
    assert_eq!(shared.0.load(Ordering::SeqCst), 1);
    assert!(poll_tail(&mut other, Waker::noop()).is_ready());
}

/// A device on which records have taken all space but the reserve of one segment: the shard, the
/// record that waits for space, and how many are durable.
fn full_of_records() -> (Device, Shard, Append, u64) {
    let mut device = Device::new(8);
    device.options = device.options.segments_reserved(1);
    let mut shard = device.open().unwrap();
    device.turn_for(&mut shard, Duration::from_secs(1));
    device.sim.set_capacity_bytes(Some(0));
    let mut durable = 0;
    loop {
        let token = shard.append(STREAM, [1; 3000]).unwrap();
        device.turn_for(&mut shard, TURN);
        match token.try_receipt() {
            Some(receipt) => durable = receipt.unwrap().offset() + 1,
            None => return (device, shard, token, durable),
        }
    }
}

#[test]
fn closing_ends_when_the_engine_itself_has_no_space_to_write() {
    // How many trims fit into the reserve. They trim nothing, so nothing is freed.
    let (device, mut shard, ..) = full_of_records();
    let mut trim_fits = |_: &usize| {
        let trim = shard.trim(STREAM, 0).unwrap();
        device.turn_for(&mut shard, TURN);
        trim.try_receipt().is_some()
    };
    let fitting = (0..1000).take_while(&mut trim_fits).count();
    assert!((1..100).contains(&fitting), "{fitting}");
    device.kill(shard);

    // The last one that fits frees segments, and that is what cannot be written any more.
    let (device, mut shard, held, durable) = full_of_records();
    for trim in 1..=fitting {
        let token = shard.trim(STREAM, if trim == fitting { durable } else { 0 }).unwrap();
        device.turn_for(&mut shard, TURN);
        assert!(matches!(token.try_receipt(), Some(Ok(()))));
    }
    let segments = shard.stats().segments;
    assert_eq!((segments.live, segments.prepared, segments.free), (1, 0, 0), "it waits");
    let waiting = shard.trim(STREAM, 0).unwrap();
    // What does not end by itself ends with an error, long after it should have.
    device.watch.end_after(device.watch.reaps() + 10_000);
    shard.close().expect("closing ends by itself");
    assert!(matches!(held.try_receipt(), Some(Err(CommitError::Closed))));
    assert!(matches!(waiting.try_receipt(), Some(Err(CommitError::Closed))));
    device.watch.end_after(u64::MAX);
    device.sim.set_capacity_bytes(None);
    let shard = device.open().unwrap();
    let summary = shard.streams()[0];
    assert_eq!((summary.trimmed, summary.end), (durable, durable));
}

#[test]
fn a_power_cut_right_after_opening_keeps_what_was_opened() {
    for seed in 0..50 {
        let device = Device::new(seed);
        for incarnation in 1..=4 {
            let shard = device.open().unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            assert_eq!(shard.recovery().incarnation, incarnation, "seed {seed}: it was forgotten");
            // What a cut might leave by luck is not enough.
            for name in ["anchor", "segment-00000000"] {
                assert!(device.sim.durable_bytes(name).is_some(), "{name} can get lost");
            }
            device.sim.crash();
            shard.abandon();
        }
    }
}

#[test]
fn tails_end_with_the_cause_when_the_shard_stops_writing() {
    let device = Device::new(9);
    let mut shard = device.open().unwrap();
    device.append(&mut shard, b"durable");
    let (mut tail, mut fresh) = (shard.tail(STREAM, 1), shard.tail(STREAM, 0));
    let count = count();
    let waker = Waker::from(count.clone());
    assert!(poll_tail(&mut tail, &waker).is_pending());
    device.sim.fail_next(Kind::Write, libc::EIO);
    let token: Append = shard.append(STREAM, b"lost").unwrap();
    while token.try_receipt().is_none() {
        let _ = shard.run_once(Some(TURN));
    }
    assert_eq!(count.0.load(Ordering::SeqCst), 1, "nobody told the tail");
    let poisoned = |polled: Poll<_>| match polled {
        Poll::Ready(Err(ReadError::Poisoned(cause))) => cause.cause().errno == Some(libc::EIO),
        _ => false,
    };
    assert!(poisoned(poll_tail(&mut tail, &waker)));
    // What was durable is still handed out first.
    match poll_tail(&mut fresh, &waker) {
        Poll::Ready(Ok(record)) => assert_eq!(record.payload(), b"durable"),
        other => panic!("{other:?}"),
    }
    assert!(poisoned(poll_tail(&mut fresh, &waker)));
}

#[test]
fn turning_a_poisoned_shard_without_a_limit_returns_its_error() {
    let device = Device::new(10);
    let mut shard = device.open().unwrap();
    device.sim.fail_next(Kind::Write, libc::EIO);
    let token = shard.append(STREAM, b"lost").unwrap();
    while token.try_receipt().is_none() {
        let _ = shard.run_once(Some(TURN));
    }
    device.turn_for(&mut shard, HOUR);
    let endless = device.watch.endless_reaps();
    for _ in 0..3 {
        shard.run_once(None).expect_err("it stopped writing");
    }
    // The simulated disk returns where a real one would sleep.
    assert_eq!(device.watch.endless_reaps(), endless, "a real disk would sleep for ever");
}

#[test]
fn the_longest_durations_mean_never() {
    let mut device = Device::new(11);
    device.sim.advance(HOUR);
    device.options = device.options.linger(Duration::MAX).idle_seal(Some(Duration::MAX));
    let mut shard = device.open().unwrap();
    // What fills a batch does not wait for company; the rest does.
    let tokens: Vec<_> = (0..4).map(|_| shard.append(STREAM, [1; 3000]).unwrap()).collect();
    device.turn_for(&mut shard, 1000 * HOUR);
    let durable = tokens.iter().filter(|token| token.try_receipt().is_some()).count();
    assert_eq!(durable, 2, "one batch is full");
    assert_eq!(shard.stats().idle_seals, 0);
    shard.run_once(Some(Duration::MAX)).unwrap();
    shard.close().unwrap();
    assert!(tokens.iter().all(|token| matches!(token.try_receipt(), Some(Ok(_)))));

    device.options = device.options.linger(Duration::ZERO).spin(Duration::MAX);
    let mut shard = device.open().unwrap();
    device.append(&mut shard, b"while it spins");
    // Closing waits for the footer, and spinning does not let the simulated time pass.
    device.kill(shard);
}
