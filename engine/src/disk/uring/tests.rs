use std::os::fd::AsFd;

use super::super::{BLOCK_BYTES, Buffer, BufferMut, FileId, run};
use super::*;

fn options() -> UringOptions {
    UringOptions {
        entries: 8,
        pool_bytes: 8 * BLOCK_BYTES,
        slot_bytes: BLOCK_BYTES,
        files_max: 8,
        ..UringOptions::default()
    }
}

/// A disk in a directory of its own, or `None` where io_uring is refused.
fn disk(options: UringOptions) -> Option<(tempfile::TempDir, UringDisk)> {
    let path = tempfile::tempdir().unwrap();
    let disk = unless_refused(UringDisk::open(path.path(), options, None))?;
    Some((path, disk))
}

fn unless_refused(disk: Result<UringDisk, UringError>) -> Option<UringDisk> {
    match disk {
        Err(error @ UringError::Setup { .. }) => {
            println!("SKIPPED: {error}");
            None
        }
        disk => Some(disk.unwrap()),
    }
}

fn open(disk: &mut UringDisk, name: &str) -> FileId {
    let (id, _) = run(disk, Operation::Open { name: name.into(), create: true }).unwrap();
    FileId(id as u32)
}

fn write(file: FileId, offset: u64, buffer: Buffer) -> Operation {
    let length = buffer.len();
    Operation::Write { file, offset, buffer, from: 0, length, durable: true }
}

fn slot(disk: &UringDisk, byte: u8) -> Buffer {
    let mut slot = disk.pool().acquire().unwrap();
    slot.fill(byte);
    slot.freeze()
}

#[test]
fn a_durable_write_alone_does_not_go_through_the_ring() {
    let Some((_path, mut disk)) = disk(options()) else { return };
    let file = open(&mut disk, "a");
    let mut completions = Vec::with_capacity(1);
    let before = disk.enters;
    disk.submit_alone(1, write(file, 0, slot(&disk, 1)));
    disk.reap(&mut completions, Wait::Forever).unwrap();
    assert_eq!((disk.enters, completions.remove(0).token), (before, 1));
    // What waits to be submitted goes first.
    disk.submit(2, write(file, 0, slot(&disk, 2)));
    disk.submit_alone(3, write(file, BLOCK_BYTES as u64, slot(&disk, 3)));
    assert_eq!((disk.in_flight(), disk.ready.len()), (2, 0));
    while completions.len() < 2 {
        disk.reap(&mut completions, Wait::Forever).unwrap();
    }
    assert!(completions.iter().all(|completion| completion.result.is_ok()));
}

#[test]
fn a_write_and_its_wait_are_one_system_call() {
    let Some((_path, mut disk)) = disk(options()) else { return };
    let file = open(&mut disk, "a");
    let mut completions = Vec::with_capacity(1);
    for round in 0..20 {
        let before = disk.enters;
        disk.submit(round, write(file, 0, slot(&disk, 1)));
        disk.reap(&mut completions, Wait::Forever).unwrap();
        assert_eq!(disk.enters - before, 1);
        assert_eq!(*completions.remove(0).result.as_ref().unwrap(), BLOCK_BYTES as u64);
    }
}

#[test]
fn an_idle_look_is_no_system_call() {
    let Some((_path, mut disk)) = disk(options()) else { return };
    open(&mut disk, "a");
    // The kernel may have something to say of what is over; it does not go on with that.
    let looks_without_a_call = |_| {
        let before = disk.enters;
        (0..100).for_each(|_| disk.reap(&mut Vec::new(), Wait::No).unwrap());
        disk.enters == before
    };
    assert!((0..10).any(looks_without_a_call));
}

#[test]
fn a_spinning_reap_sees_the_completion() {
    let Some((_path, mut disk)) = disk(options()) else { return };
    let file = open(&mut disk, "a");
    disk.submit(1, write(file, 0, slot(&disk, 1)));
    let mut completions = Vec::new();
    let end = Instant::now() + Duration::from_secs(20);
    while completions.is_empty() && Instant::now() < end {
        disk.reap(&mut completions, Wait::No).unwrap();
    }
    assert!(completions[0].result.is_ok());
}

#[test]
fn a_pool_that_cannot_be_registered_is_a_note_and_works() {
    // The kernel takes at most 1 GiB at a time. Nothing but one block of it is ever in memory.
    let bytes = (1 << 30) + BLOCK_BYTES;
    let Some((_path, mut disk)) =
        disk(UringOptions { pool_bytes: bytes, slot_bytes: bytes, ..options() })
    else {
        return;
    };
    let description = disk.description();
    assert!(!description.buffers_registered);
    assert!(description.notes[0].contains("not registered"), "{:?}", description.notes);
    let file = open(&mut disk, "a");
    let buffer = disk.pool().acquire().unwrap().freeze();
    let length = BLOCK_BYTES;
    let write = Operation::Write { file, offset: 0, buffer, from: 0, length, durable: true };
    assert_eq!(run(&mut disk, write).unwrap().0, BLOCK_BYTES as u64);
}

#[test]
fn a_part_of_the_pool_is_registered_when_it_is_first_used() {
    let Some((path, mut disk)) =
        disk(UringOptions { pool_bytes: 9 << 20, slot_bytes: 1 << 20, ..options() })
    else {
        return;
    };
    assert_eq!(disk.registered.in_use(), [true, true, false, false, false]);
    let file = open(&mut disk, "a");
    let slots: Vec<_> = (0..9).map(|byte| slot(&disk, byte)).collect();
    for (buffer, parts) in [(&slots[8], 3), (&slots[5], 4), (&slots[4], 4), (&slots[0], 4)] {
        let offset = u64::from(buffer[0]) << 20;
        run(&mut disk, write(file, offset, buffer.clone())).unwrap();
        assert_eq!(disk.registered.in_use().iter().filter(|part| **part).count(), parts);
    }
    let bytes = std::fs::read(path.path().join("a")).unwrap();
    for byte in [0u8, 4, 5, 8] {
        let start = usize::from(byte) << 20;
        assert!(bytes[start..start + (1 << 20)].iter().all(|other| *other == byte));
    }
}

#[test]
fn a_kernel_thread_submits() {
    let sqpoll_idle = Some(Duration::from_millis(1));
    let Some((_path, mut disk)) = disk(UringOptions { sqpoll_idle, ..options() }) else { return };
    let file = open(&mut disk, "a");
    for round in 0..4 {
        let buffer = slot(&disk, round);
        run(&mut disk, write(file, 0, buffer)).unwrap();
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn dropping_waits_for_what_is_in_flight_and_lets_go_of_everything() {
    let path = tempfile::tempdir().unwrap();
    let lock = Arc::new(OwnedFd::from(File::create(path.path().join("lock")).unwrap()));
    let disk = UringDisk::open(path.path(), options(), Some(lock.clone()));
    let Some(mut disk) = unless_refused(disk) else { return };
    let pool = disk.pool();
    let file = open(&mut disk, "a");
    // One in the kernel and listening, one queued.
    disk.reap(&mut Vec::new(), Wait::For(Duration::from_millis(1))).unwrap();
    disk.submit(1, write(file, 0, slot(&disk, 3)));
    disk.reap(&mut Vec::new(), Wait::No).unwrap();
    disk.submit(2, write(file, BLOCK_BYTES as u64, slot(&disk, 4)));
    drop(disk);
    assert_eq!(pool.slots_free(), pool.slots());
    assert_eq!(Arc::strong_count(&lock), 1);
    assert_eq!(std::fs::metadata(path.path().join("a")).unwrap().len(), 2 * BLOCK_BYTES as u64);
}

#[test]
fn a_lock_is_free_again_when_the_disk_is_gone() {
    let path = tempfile::tempdir().unwrap();
    let take = || {
        let file = File::options().create(true).append(true).open(path.path().join("lock"));
        let lock = OwnedFd::from(file.unwrap());
        let kind = rustix::fs::FlockOperation::NonBlockingLockExclusive;
        rustix::fs::flock(lock.as_fd(), kind).map(|()| lock)
    };
    for _ in 0..10 {
        let lock = Arc::new(take().expect("the disk before this one let go of it"));
        let disk = UringDisk::open(path.path(), options(), Some(lock));
        let Some(mut disk) = unless_refused(disk) else { return };
        open(&mut disk, "a");
        assert!(take().is_err());
        drop(disk);
    }
}

#[test]
fn the_ring_belongs_to_the_thread_that_used_it_first() {
    let Some((_path, mut disk)) = disk(options()) else { return };
    let mut disk = std::thread::spawn(move || {
        open(&mut disk, "a");
        disk
    })
    .join()
    .unwrap();
    disk.submit(1, Operation::SyncDirectory);
    let error = disk.reap(&mut Vec::new(), Wait::Forever).unwrap_err();
    assert!(error.to_string().contains("thread"), "{error}");
}

#[test]
fn places_in_the_file_table_are_used_again() {
    let Some((_path, mut disk)) = disk(options()) else { return };
    for round in 0..100 {
        let name = format!("{round}");
        let file = open(&mut disk, &name);
        assert_eq!(file.0, round);
        disk.submit(1, Operation::Sync { file });
        disk.submit(2, Operation::Remove { name });
        let mut completions = Vec::new();
        while completions.len() < 2 {
            disk.reap(&mut completions, Wait::Forever).unwrap();
        }
        assert!(completions.iter().all(|completion| completion.result.is_ok()));
    }
}

#[test]
fn a_full_file_table_is_an_error_with_the_setting() {
    let Some((_path, mut disk)) = disk(UringOptions { files_max: 2, ..options() }) else { return };
    open(&mut disk, "a");
    open(&mut disk, "b");
    let error = run(&mut disk, Operation::Open { name: "c".into(), create: true }).unwrap_err();
    assert!(error.to_string().contains("ulimit -n"));
}

#[test]
fn a_buffer_outside_the_registered_pool_is_written_too() {
    let Some((path, mut disk)) = disk(options()) else { return };
    let file = open(&mut disk, "a");
    let mut buffer = BufferMut::allocate(BLOCK_BYTES);
    buffer.fill(9);
    run(&mut disk, write(file, 0, buffer.freeze())).unwrap();
    let other = Pool::new(BLOCK_BYTES, BLOCK_BYTES).unwrap();
    let mut slot = other.acquire().unwrap();
    slot.fill(8);
    run(&mut disk, write(file, BLOCK_BYTES as u64, slot.freeze())).unwrap();
    let bytes = std::fs::read(path.path().join("a")).unwrap();
    assert!(bytes[..BLOCK_BYTES].iter().all(|&byte| byte == 9));
    assert!(bytes[BLOCK_BYTES..].iter().all(|&byte| byte == 8));
}

#[test]
fn a_missing_directory_is_named() {
    let error = UringDisk::open(Path::new("/nonexistent/ringwal"), options(), None).unwrap_err();
    assert!(error.to_string().contains("/nonexistent/ringwal"));
}
