//! One suite for every disk: what the engine may expect of `Disk`, whatever stands behind it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ringwal_engine::disk::blocking::{BlockingDisk, BlockingOptions};
use ringwal_engine::disk::sim::{SimDisk, SimHandle, SimOptions};
use ringwal_engine::disk::uring::{UringDisk, UringError, UringOptions};
use ringwal_engine::disk::{
    BLOCK_BYTES, Buffer, BufferMut, Completion, Disk, FileId, OngoingRead, Operation, Wait, run,
};

const BLOCK: u64 = BLOCK_BYTES as u64;
const SLOTS: usize = 16;

/// A disk, and the directory that goes when the test ends.
struct Setup {
    disk: Box<dyn Disk>,
    _directory: Option<tempfile::TempDir>,
}

fn blocking() -> Option<Setup> {
    let directory = tempfile::tempdir().unwrap();
    let (pool_bytes, slot_bytes) = (SLOTS * BLOCK_BYTES, BLOCK_BYTES);
    let options = BlockingOptions { pool_bytes, slot_bytes, read_only: false };
    let disk = Box::new(BlockingDisk::open(directory.path(), options).unwrap());
    Some(Setup { disk, _directory: Some(directory) })
}

fn uring() -> Option<Setup> {
    let directory = tempfile::tempdir().unwrap();
    let options = UringOptions {
        entries: 16,
        pool_bytes: SLOTS * BLOCK_BYTES,
        slot_bytes: BLOCK_BYTES,
        files_max: 16,
        ..UringOptions::default()
    };
    let disk = match UringDisk::open(directory.path(), options, None) {
        Err(error @ UringError::Setup { .. }) => {
            println!("SKIPPED: {error}");
            return None;
        }
        disk => Box::new(disk.unwrap()),
    };
    Some(Setup { disk, _directory: Some(directory) })
}

fn sim() -> Option<Setup> {
    let options = SimOptions {
        pool_bytes: SLOTS * BLOCK_BYTES,
        slot_bytes: BLOCK_BYTES,
        ..SimOptions::default()
    };
    let disk = Box::new(SimDisk::new(SimHandle::with_options(options)));
    Some(Setup { disk, _directory: None })
}

/// Each property becomes one test on each of the disks named.
macro_rules! conformance {
    ($($disk:ident: $($property:ident),+ $(,)?;)+) => {
        $(mod $disk {
            $(#[test]
            fn $property() {
                if let Some(mut setup) = super::$disk() {
                    super::$property(&mut *setup.disk);
                }
            })+
        })+
    };
    (all $common:tt real $real:tt) => {
        conformance!(@ blocking $common $real);
        conformance!(@ uring $common $real);
        conformance!(@ sim $common ());
    };
    (@ $disk:ident ($($common:ident),+ $(,)?) ($($real:ident),* $(,)?)) => {
        conformance!($disk: $($common,)+ $($real,)*;);
    };
}

conformance! {
    all (
        bytes_come_back_from_where_they_were_written,
        durable_writes_and_syncs_succeed,
        several_operations_are_in_flight,
        what_is_submitted_alone_ends_as_any_other,
        a_read_returns_its_buffer_whatever_the_result,
        a_read_at_the_end_is_short,
        a_missing_file_is_not_found,
        files_are_created_listed_and_removed,
        a_removed_file_is_closed,
        allocation_makes_the_length,
        a_wait_times_out,
        a_misaligned_operation_is_refused,
        a_file_that_is_not_open_is_refused,
        bad_names_are_refused,
        the_capacity_is_honoured,
        buffers_return_to_the_pool_after_completion,
        a_reader_on_another_thread_sees_what_was_written,
        an_ongoing_read_gives_what_there_was,
        a_disk_can_go_to_another_thread_before_its_first_use,
        it_describes_itself,
    )
    real (
        a_wake_interrupts_a_sleeping_reap,
        a_wake_that_came_before_the_sleep_is_not_lost,
        many_wakes_in_a_row_are_all_seen,
        an_idle_disk_sleeps,
    )
}

fn open(disk: &mut dyn Disk, name: &str) -> FileId {
    let (id, _) = run(disk, Operation::Open { name: name.into(), create: true }).unwrap();
    FileId(u32::try_from(id).unwrap())
}

fn slot(disk: &dyn Disk, byte: u8) -> Buffer {
    let mut slot = disk.pool().acquire().unwrap();
    slot.fill(byte);
    slot.freeze()
}

fn write(file: FileId, block: u64, buffer: Buffer, durable: bool) -> Operation {
    let length = buffer.len();
    Operation::Write { file, offset: block * BLOCK, buffer, from: 0, length, durable }
}

fn read(file: FileId, block: u64, blocks: usize) -> Operation {
    let length = blocks * BLOCK_BYTES;
    Operation::Read { file, offset: block * BLOCK, buffer: BufferMut::allocate(length), length }
}

fn reap(disk: &mut dyn Disk, count: usize) -> Vec<Completion> {
    let mut completions = Vec::new();
    while completions.len() < count {
        disk.reap(&mut completions, Wait::Forever).unwrap();
    }
    completions.sort_by_key(|completion| completion.token);
    completions
}

/// The end of one operation, also of one that fails.
fn end(disk: &mut dyn Disk, operation: Operation) -> Completion {
    disk.submit(77, operation);
    let completion = reap(disk, 1).remove(0);
    assert_eq!(completion.token, 77);
    completion
}

fn kind(completion: &Completion) -> io::ErrorKind {
    completion.result.as_ref().unwrap_err().kind()
}

fn bytes_come_back_from_where_they_were_written(disk: &mut dyn Disk) {
    let file = open(disk, "a");
    for block in [0, 3, 1] {
        let buffer = slot(disk, block as u8 + 1);
        assert_eq!(run(disk, write(file, block, buffer, false)).unwrap().0, BLOCK);
    }
    let mut buffer = BufferMut::allocate(2 * BLOCK_BYTES);
    buffer[BLOCK_BYTES..].fill(9);
    let (from, length) = (BLOCK_BYTES, BLOCK_BYTES);
    let buffer = buffer.freeze();
    let second_half =
        Operation::Write { file, offset: 4 * BLOCK, buffer, from, length, durable: false };
    assert_eq!(run(disk, second_half).unwrap().0, BLOCK);
    let (bytes, buffer) = run(disk, read(file, 0, 5)).unwrap();
    assert_eq!(bytes, 5 * BLOCK);
    for (block, expected) in buffer.unwrap().chunks(BLOCK_BYTES).zip([1, 2, 0, 4, 9]) {
        assert!(block.iter().all(|&byte| byte == expected));
    }
}

fn durable_writes_and_syncs_succeed(disk: &mut dyn Disk) {
    let file = open(disk, "a");
    let buffer = slot(disk, 1);
    assert_eq!(run(disk, write(file, 0, buffer.clone(), true)).unwrap().0, BLOCK);
    assert_eq!(run(disk, write(file, 1, buffer, false)).unwrap().0, BLOCK);
    assert_eq!(run(disk, Operation::Sync { file }).unwrap().0, 0);
    assert_eq!(run(disk, Operation::SyncAll { file }).unwrap().0, 0);
    assert_eq!(run(disk, Operation::SyncDirectory).unwrap().0, 0);
}

fn several_operations_are_in_flight(disk: &mut dyn Disk) {
    let file = open(disk, "a");
    for token in 0..8 {
        let buffer = slot(disk, token as u8);
        disk.submit(token, write(file, token, buffer, token % 2 == 0));
    }
    let completions = reap(disk, 8);
    for (token, completion) in completions.iter().enumerate() {
        assert_eq!(completion.token, token as u64);
        assert_eq!(*completion.result.as_ref().unwrap(), BLOCK);
    }
    (0..8).for_each(|token| disk.submit(token, read(file, token, 1)));
    for (token, completion) in reap(disk, 8).into_iter().enumerate() {
        assert!(completion.buffer.unwrap().iter().all(|&byte| byte == token as u8));
    }
}

fn what_is_submitted_alone_ends_as_any_other(disk: &mut dyn Disk) {
    let file = open(disk, "a");
    for (token, durable) in [(0, true), (1, false), (2, true)] {
        disk.submit_alone(token, write(file, token, slot(disk, token as u8 + 1), durable));
    }
    let completions = reap(disk, 3);
    assert!(completions.iter().all(|completion| *completion.result.as_ref().unwrap() == BLOCK));
    // Beside others that are in flight.
    disk.submit(3, write(file, 3, slot(disk, 4), true));
    let mut completions = Vec::new();
    disk.reap(&mut completions, Wait::No).unwrap();
    disk.submit_alone(4, write(file, 4, slot(disk, 5), true));
    completions.extend(reap(disk, 2 - completions.len()));
    completions.sort_by_key(|completion| completion.token);
    assert_eq!(completions.iter().map(|completion| completion.token).collect::<Vec<_>>(), [3, 4]);
    disk.submit_alone(5, read(file, 0, 5));
    let bytes = reap(disk, 1).remove(0).buffer.unwrap();
    for (block, byte) in (1..=5).enumerate() {
        assert!(bytes[block * BLOCK_BYTES..][..BLOCK_BYTES].iter().all(|&it| it == byte));
    }
    disk.submit_alone(6, write(FileId(12345), 0, slot(disk, 1), true));
    assert_eq!(kind(&reap(disk, 1)[0]), io::ErrorKind::NotFound);
    let (buffer, length) = (slot(disk, 1), BLOCK_BYTES);
    let askew = Operation::Write { file, offset: 1, buffer, from: 0, length, durable: true };
    disk.submit_alone(7, askew);
    assert_eq!(kind(&reap(disk, 1)[0]), io::ErrorKind::InvalidInput);
}

fn a_read_returns_its_buffer_whatever_the_result(disk: &mut dyn Disk) {
    let file = open(disk, "a");
    let outside = Operation::Read {
        file,
        offset: 0,
        buffer: BufferMut::allocate(BLOCK_BYTES),
        length: 2 * BLOCK_BYTES,
    };
    for operation in [read(FileId(99), 0, 1), outside] {
        let completion = end(disk, operation);
        assert!(completion.result.is_err());
        assert_eq!(completion.buffer.unwrap().len(), BLOCK_BYTES);
    }
}

fn a_read_at_the_end_is_short(disk: &mut dyn Disk) {
    let file = open(disk, "a");
    let buffer = slot(disk, 1);
    run(disk, write(file, 0, buffer, false)).unwrap();
    assert_eq!(run(disk, read(file, 0, 3)).unwrap().0, BLOCK);
    assert_eq!(run(disk, read(file, 5, 1)).unwrap().0, 0);
}

fn a_missing_file_is_not_found(disk: &mut dyn Disk) {
    let missing = end(disk, Operation::Open { name: "missing".into(), create: false });
    assert_eq!(kind(&missing), io::ErrorKind::NotFound);
    let missing = end(disk, Operation::Remove { name: "missing".into() });
    assert_eq!(kind(&missing), io::ErrorKind::NotFound);
    assert!(disk.list().unwrap().is_empty());
}

fn files_are_created_listed_and_removed(disk: &mut dyn Disk) {
    let first = open(disk, "b");
    let second = open(disk, "a");
    assert_ne!(first, second);
    let buffer = slot(disk, 1);
    run(disk, write(first, 0, buffer, false)).unwrap();
    let listed = |disk: &mut dyn Disk| -> Vec<(String, u64)> {
        disk.list().unwrap().into_iter().map(|entry| (entry.name, entry.length)).collect()
    };
    assert_eq!(listed(disk), [("a".to_owned(), 0), ("b".to_owned(), BLOCK)]);
    assert_eq!(run(disk, Operation::Remove { name: "a".into() }).unwrap().0, 0);
    assert_eq!(listed(disk), [("b".to_owned(), BLOCK)]);
    let again = open(disk, "b");
    assert_eq!(run(disk, read(again, 0, 1)).unwrap().0, BLOCK);
    assert!(disk.free_bytes().unwrap() > 0);
}

fn a_removed_file_is_closed(disk: &mut dyn Disk) {
    let file = open(disk, "a");
    run(disk, Operation::Remove { name: "a".into() }).unwrap();
    let buffer = slot(disk, 1);
    assert_eq!(kind(&end(disk, write(file, 0, buffer, false))), io::ErrorKind::NotFound);
    let new = open(disk, "a");
    assert_ne!(new, file);
    assert_eq!(run(disk, read(new, 0, 1)).unwrap().0, 0);
}

fn allocation_makes_the_length(disk: &mut dyn Disk) {
    let file = open(disk, "a");
    let allocated = end(disk, Operation::Allocate { file, length: 16 * BLOCK });
    if allocated.result.is_err() {
        println!("SKIPPED: this file system has no fallocate: {allocated:?}");
        return;
    }
    assert_eq!(disk.list().unwrap()[0].length, 16 * BLOCK);
    let (bytes, buffer) = run(disk, read(file, 0, 16)).unwrap();
    assert_eq!(bytes, 16 * BLOCK);
    assert!(buffer.unwrap().iter().all(|&byte| byte == 0));
    let huge = end(disk, Operation::Allocate { file, length: u64::MAX });
    assert!(huge.result.is_err());
}

fn a_wait_times_out(disk: &mut dyn Disk) {
    let mut completions = Vec::new();
    disk.reap(&mut completions, Wait::No).unwrap();
    let begin = Instant::now();
    disk.reap(&mut completions, Wait::For(Duration::ZERO)).unwrap();
    disk.reap(&mut completions, Wait::For(Duration::from_millis(20))).unwrap();
    assert!(completions.is_empty());
    let simulated = disk.description().name == "sim";
    assert!(simulated || begin.elapsed() >= Duration::from_millis(20));
    assert!(begin.elapsed() < Duration::from_secs(10));
}

fn a_misaligned_operation_is_refused(disk: &mut dyn Disk) {
    let file = open(disk, "a");
    let (durable, buffer) = (false, slot(disk, 1));
    for (offset, from, length) in
        [(1, 0, BLOCK_BYTES), (0, 512, BLOCK_BYTES), (0, 0, 100), (0, BLOCK_BYTES, BLOCK_BYTES)]
    {
        let buffer = buffer.clone();
        let write = Operation::Write { file, offset, buffer, from, length, durable };
        assert_eq!(kind(&end(disk, write)), io::ErrorKind::InvalidInput);
    }
    let length = BLOCK_BYTES;
    let read =
        Operation::Read { file, offset: 7, buffer: BufferMut::allocate(BLOCK_BYTES), length };
    assert_eq!(kind(&end(disk, read)), io::ErrorKind::InvalidInput);
}

fn a_file_that_is_not_open_is_refused(disk: &mut dyn Disk) {
    let file = FileId(12345);
    let buffer = slot(disk, 1);
    for operation in [
        write(file, 0, buffer, true),
        read(file, 0, 1),
        Operation::Sync { file },
        Operation::SyncAll { file },
        Operation::Allocate { file, length: BLOCK },
    ] {
        assert_eq!(kind(&end(disk, operation)), io::ErrorKind::NotFound);
    }
    let mut buffer = BufferMut::allocate(BLOCK_BYTES);
    let error = disk.reader().read_at(file, 0, &mut buffer, BLOCK_BYTES).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
}

fn bad_names_are_refused(disk: &mut dyn Disk) {
    for name in ["", ".", "..", "../a", "/tmp/a", "a/b", "a\0b"] {
        let name = name.to_owned();
        let opened = end(disk, Operation::Open { name: name.clone(), create: true });
        assert_eq!(kind(&opened), io::ErrorKind::InvalidInput);
        assert_eq!(kind(&end(disk, Operation::Remove { name })), io::ErrorKind::InvalidInput);
    }
}

fn the_capacity_is_honoured(disk: &mut dyn Disk) {
    let file = open(disk, "a");
    let capacity = disk.capacity();
    let buffer = slot(disk, 1);
    for token in 0..capacity + 3 {
        disk.submit(token as u64, write(file, token as u64, buffer.clone(), false));
    }
    let completions = reap(disk, capacity + 3);
    let refused: Vec<_> =
        completions.iter().filter(|completion| completion.result.is_err()).collect();
    assert_eq!(refused.len(), 3);
    assert!(refused.iter().all(|completion| completion.token >= capacity as u64));
    run(disk, write(file, 0, buffer, false)).unwrap();
}

fn buffers_return_to_the_pool_after_completion(disk: &mut dyn Disk) {
    let file = open(disk, "a");
    let pool = disk.pool();
    assert_eq!(pool.slots(), SLOTS);
    for round in 0..3 {
        for token in 0..SLOTS as u64 {
            let buffer = slot(disk, token as u8);
            disk.submit(token, write(file, token, buffer, round == 1));
        }
        // The disk of system calls is done with a buffer at once; the others hold it.
        let held = disk.description().name != "blocking";
        assert_eq!(pool.acquire().is_none(), held);
        reap(disk, SLOTS);
        assert_eq!(pool.slots_free(), SLOTS);
    }
    // A slice that somebody else still holds keeps its slot (I-8).
    let buffer = slot(disk, 5);
    let slice = buffer.to_bytes().slice(..10);
    run(disk, write(file, 0, buffer, true)).unwrap();
    assert_eq!(pool.slots_free(), SLOTS - 1);
    assert_eq!(slice[..], [5; 10]);
    drop(slice);
    assert_eq!(pool.slots_free(), SLOTS);
}

fn a_reader_on_another_thread_sees_what_was_written(disk: &mut dyn Disk) {
    let file = open(disk, "a");
    let buffer = slot(disk, 8);
    run(disk, write(file, 1, buffer, true)).unwrap();
    let reader = disk.reader();
    let check = move || {
        let mut buffer = BufferMut::allocate(4 * BLOCK_BYTES);
        let length = 4 * BLOCK_BYTES;
        assert_eq!(reader.read_at(file, 0, &mut buffer, length).unwrap(), 2 * BLOCK_BYTES);
        assert!(buffer[..BLOCK_BYTES].iter().all(|&byte| byte == 0));
        assert!(buffer[BLOCK_BYTES..2 * BLOCK_BYTES].iter().all(|&byte| byte == 8));
        let error = reader.read_at(file, 3, &mut buffer, length).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    };
    std::thread::spawn(check).join().unwrap();
}

fn an_ongoing_read_gives_what_there_was(disk: &mut dyn Disk) {
    let file = open(disk, "a");
    (1..4).for_each(|block| {
        let buffer = slot(disk, block as u8);
        run(disk, write(file, block, buffer, true)).unwrap();
    });
    let Some(mut read) = disk.reader().ongoing_read() else {
        assert_eq!(disk.description().name, "blocking", "the others have the means");
        return;
    };
    assert!(read.end().is_none(), "nothing was begun");
    let begin = |read: &mut Box<dyn OngoingRead>, block: u64, blocks: usize| {
        let buffer = BufferMut::allocate(4 * BLOCK_BYTES);
        read.begin(file, block * BLOCK, buffer, blocks * BLOCK_BYTES);
    };
    for round in 0..20 {
        begin(&mut read, 1 + round % 3, 1);
        let buffer = read.end().expect("it is all there");
        assert!(buffer[..BLOCK_BYTES].iter().all(|&byte| u64::from(byte) == 1 + round % 3));
        assert!(read.end().is_none(), "it is over");
    }
    // Of two, the second.
    begin(&mut read, 1, 1);
    begin(&mut read, 2, 2);
    let buffer = read.end().expect("it is all there");
    assert!(buffer[BLOCK_BYTES..2 * BLOCK_BYTES].iter().all(|&byte| byte == 3));
    // What is not all there is nothing, and so is what could not begin.
    begin(&mut read, 2, 3);
    assert!(read.end().is_none());
    read.begin(file, BLOCK, BufferMut::allocate(BLOCK_BYTES), 2 * BLOCK_BYTES);
    assert!(read.end().is_none(), "longer than its buffer");
    read.begin(FileId(99), 0, BufferMut::allocate(BLOCK_BYTES), BLOCK_BYTES);
    assert!(read.end().is_none(), "no such file");
    begin(&mut read, 3, 1);
    assert!(read.end().is_some(), "and it goes on");
    // One that nobody waits for; and the file may go away under it.
    begin(&mut read, 1, 3);
    run(disk, Operation::Remove { name: "a".into() }).unwrap();
    drop(read);
}

fn a_disk_can_go_to_another_thread_before_its_first_use(disk: &mut dyn Disk) {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let file = open(disk, "a");
            let buffer = slot(disk, 1);
            run(disk, write(file, 0, buffer, true)).unwrap();
        });
    });
}

fn it_describes_itself(disk: &mut dyn Disk) {
    open(disk, "a");
    let description = disk.description();
    assert!(["uring", "blocking", "sim"].contains(&description.name));
    let notes_missing = description.notes.is_empty() && !description.direct;
    assert!(!notes_missing, "a file system without O_DIRECT is worth a note");
}

fn a_wake_interrupts_a_sleeping_reap(disk: &mut dyn Disk) {
    let wake = disk.wake();
    wake.park();
    let waker = wake.clone();
    let thread = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(20));
        waker.wake();
    });
    let mut completions = Vec::new();
    disk.reap(&mut completions, Wait::Forever).unwrap();
    wake.unpark();
    thread.join().unwrap();
    assert!(completions.is_empty());
    let begin = Instant::now();
    disk.reap(&mut completions, Wait::For(Duration::from_millis(10))).unwrap();
    assert!(begin.elapsed() >= Duration::from_millis(10), "one wake-up is seen once");
}

fn a_wake_that_came_before_the_sleep_is_not_lost(disk: &mut dyn Disk) {
    let wake = disk.wake();
    for look_first in [false, true, false, true] {
        wake.park();
        wake.wake();
        if look_first {
            disk.reap(&mut Vec::new(), Wait::No).unwrap();
        }
        disk.reap(&mut Vec::new(), Wait::Forever).unwrap();
        wake.unpark();
    }
}

fn many_wakes_in_a_row_are_all_seen(disk: &mut dyn Disk) {
    let wake = disk.wake();
    let stop = Arc::new(AtomicBool::new(false));
    let thread = std::thread::spawn({
        let (wake, stop) = (wake.clone(), stop.clone());
        move || {
            for _ in 0..2000 {
                wake.wake();
                std::thread::yield_now();
            }
            stop.store(true, Ordering::SeqCst);
            wake.wake();
        }
    });
    // A lost wake-up would leave this asleep for ever.
    loop {
        wake.park();
        if stop.load(Ordering::SeqCst) {
            break;
        }
        disk.reap(&mut Vec::new(), Wait::Forever).unwrap();
        wake.unpark();
    }
    thread.join().unwrap();
}

fn an_idle_disk_sleeps(disk: &mut dyn Disk) {
    let Some(before) = thread_cpu() else {
        println!("SKIPPED: this kernel has no /proc/thread-self/schedstat");
        return;
    };
    disk.reap(&mut Vec::new(), Wait::For(Duration::from_millis(200))).unwrap();
    let spent = thread_cpu().unwrap() - before;
    assert!(spent < Duration::from_millis(20), "{spent:?} of CPU");
}

/// Time that this thread has spent on a CPU.
fn thread_cpu() -> Option<Duration> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    text.split(' ').next()?.parse().ok().map(Duration::from_nanos)
}
