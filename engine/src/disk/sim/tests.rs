use super::super::{BLOCK_BYTES, Buffer, run};
use super::*;

const BLOCK: u64 = BLOCK_BYTES as u64;

fn open(disk: &mut SimDisk, name: &str) -> FileId {
    let (id, _) = run(disk, Operation::Open { name: name.into(), create: true }).unwrap();
    FileId(id as u32)
}

/// A file of `blocks` zeroed blocks that a power cut keeps.
fn prepare(disk: &mut SimDisk, name: &str, blocks: u64) -> FileId {
    let file = open(disk, name);
    run(disk, Operation::Allocate { file, length: blocks * BLOCK }).unwrap();
    run(disk, Operation::SyncAll { file }).unwrap();
    run(disk, Operation::SyncDirectory).unwrap();
    file
}

fn filled(byte: u8) -> Buffer {
    let mut buffer = BufferMut::allocate(BLOCK_BYTES);
    buffer.fill(byte);
    buffer.freeze()
}

fn write(file: FileId, block: u64, byte: u8, durable: bool) -> Operation {
    let (buffer, length) = (filled(byte), BLOCK_BYTES);
    Operation::Write { file, offset: block * BLOCK, buffer, from: 0, length, durable }
}

fn block(sim: &SimHandle, name: &str, block: usize) -> Vec<u8> {
    sim.bytes(name).unwrap()[block * BLOCK_BYTES..][..BLOCK_BYTES].to_vec()
}

fn errno<T>(result: io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

fn all(disk: &mut SimDisk, count: usize) -> Vec<Completion> {
    let mut completions = Vec::new();
    while completions.len() < count {
        disk.reap(&mut completions, Wait::Forever).unwrap();
    }
    completions
}

#[test]
fn a_power_cut_keeps_what_was_flushed_and_tears_the_rest() {
    let (mut lost, mut whole, mut torn) = (0, 0, 0);
    for seed in 0..300 {
        let sim = SimHandle::new(seed);
        let mut disk = SimDisk::new(sim.clone());
        let file = prepare(&mut disk, "a", 4);
        run(&mut disk, write(file, 0, 1, false)).unwrap();
        run(&mut disk, Operation::Sync { file }).unwrap();
        run(&mut disk, write(file, 1, 2, true)).unwrap();
        run(&mut disk, write(file, 2, 3, false)).unwrap();
        disk.submit(9, write(file, 3, 4, true));
        sim.crash();
        assert!(disk.reap(&mut Vec::new(), Wait::Forever).is_err());
        assert_eq!(block(&sim, "a", 0), [1; BLOCK_BYTES]);
        assert_eq!(block(&sim, "a", 1), [2; BLOCK_BYTES]);
        for (index, byte) in [(2, 3), (3, 4)] {
            match block(&sim, "a", index).iter().filter(|&&found| found == byte).count() {
                0 => lost += 1,
                BLOCK_BYTES => whole += 1,
                _ => torn += 1,
            }
        }
        assert_eq!(sim.durable_bytes("a"), sim.bytes("a"));
    }
    assert!(lost > 50 && whole > 50 && torn > 50, "{lost} {whole} {torn}");
}

#[test]
fn a_flush_covers_no_write_that_was_in_flight_when_it_was_submitted() {
    let mut uncovered = 0;
    for seed in 0..100 {
        let sim = SimHandle::new(seed);
        let mut disk = SimDisk::new(sim.clone());
        let file = prepare(&mut disk, "a", 1);
        disk.submit(1, write(file, 0, 7, false));
        disk.submit(2, Operation::Sync { file });
        all(&mut disk, 2);
        assert_eq!(sim.durable_bytes("a").unwrap(), [0; BLOCK_BYTES]);
        sim.crash();
        uncovered += usize::from(block(&sim, "a", 0) != [7; BLOCK_BYTES]);
    }
    assert!(uncovered > 20);
}

#[test]
fn operations_complete_out_of_order() {
    let sim = SimHandle::new(3);
    let mut disk = SimDisk::new(sim);
    let file = prepare(&mut disk, "a", 16);
    (0..16).for_each(|token| disk.submit(token, write(file, token, 1, false)));
    let tokens: Vec<_> = all(&mut disk, 16).iter().map(|completion| completion.token).collect();
    assert!(!tokens.is_sorted());
}

#[test]
fn names_and_removals_last_only_when_the_directory_is_synced() {
    let (mut created, mut removed) = (0, 0);
    for seed in 0..100 {
        let sim = SimHandle::new(seed);
        let mut disk = SimDisk::new(sim.clone());
        prepare(&mut disk, "old", 1);
        prepare(&mut disk, "kept", 1);
        let file = open(&mut disk, "new");
        run(&mut disk, Operation::SyncAll { file }).unwrap();
        run(&mut disk, Operation::Remove { name: "old".into() }).unwrap();
        sim.crash();
        let names: Vec<_> = sim.list().into_iter().map(|entry| entry.name).collect();
        assert!(names.contains(&"kept".to_owned()));
        created += usize::from(names.contains(&"new".to_owned()));
        removed += usize::from(!names.contains(&"old".to_owned()));
    }
    assert!((20..80).contains(&created) && (20..80).contains(&removed), "{created} {removed}");
}

#[test]
fn a_kill_keeps_what_completed_and_makes_nothing_durable() {
    let mut applied = 0;
    for seed in 0..100 {
        let sim = SimHandle::new(seed);
        let mut disk = SimDisk::new(sim.clone());
        let file = prepare(&mut disk, "a", 2);
        run(&mut disk, write(file, 0, 1, false)).unwrap();
        disk.submit(1, write(file, 1, 2, true));
        sim.kill();
        assert!(disk.reap(&mut Vec::new(), Wait::No).is_err());
        assert_eq!(block(&sim, "a", 0), [1; BLOCK_BYTES]);
        assert_eq!(sim.durable_bytes("a").unwrap(), [0; 2 * BLOCK_BYTES]);
        applied += usize::from(block(&sim, "a", 1) == [2; BLOCK_BYTES]);

        let mut disk = SimDisk::new(sim.clone());
        let file = open(&mut disk, "a");
        run(&mut disk, Operation::Sync { file }).unwrap();
        assert_eq!(sim.durable_bytes("a"), sim.bytes("a"));
    }
    assert!((20..80).contains(&applied));
}

#[test]
fn a_failed_flush_is_not_repaired_by_the_next() {
    let mut lost = 0;
    for seed in 0..50 {
        let sim = SimHandle::new(seed);
        let mut disk = SimDisk::new(sim.clone());
        let file = prepare(&mut disk, "a", 1);
        run(&mut disk, write(file, 0, 1, false)).unwrap();
        sim.fail_next(Kind::Sync, libc::EIO);
        assert_eq!(errno(run(&mut disk, Operation::Sync { file })), Some(libc::EIO));
        run(&mut disk, Operation::Sync { file }).unwrap();
        lost += usize::from(sim.durable_bytes("a").unwrap() != [1; BLOCK_BYTES]);
    }
    assert!(lost > 40);
}

#[test]
fn faults_hit_the_operation_they_were_meant_for() {
    let sim = SimHandle::new(1);
    let mut disk = SimDisk::new(sim.clone());
    let file = prepare(&mut disk, "a", 4);
    sim.fault_next(Kind::Write, Fault::Short(512));
    assert_eq!(run(&mut disk, write(file, 0, 1, true)).unwrap().0, 512);
    assert_eq!(block(&sim, "a", 0).iter().filter(|&&byte| byte == 1).count(), 512);
    sim.fault_next(Kind::Write, Fault::Misdirected(3 * BLOCK));
    assert_eq!(run(&mut disk, write(file, 1, 2, true)).unwrap().0, BLOCK);
    assert_eq!(block(&sim, "a", 1), [0; BLOCK_BYTES]);
    assert_eq!(block(&sim, "a", 3), [2; BLOCK_BYTES]);
    sim.fault_next(Kind::Write, Fault::Lost);
    assert_eq!(run(&mut disk, write(file, 1, 3, true)).unwrap().0, BLOCK);
    assert_eq!(block(&sim, "a", 1), [0; BLOCK_BYTES]);
    sim.fail_at(sim.operations() + 1, libc::EIO);
    run(&mut disk, write(file, 1, 4, true)).unwrap();
    assert_eq!(errno(run(&mut disk, write(file, 2, 5, true))), Some(libc::EIO));
    sim.fail_always(Kind::SyncDirectory, libc::EIO);
    assert!(run(&mut disk, Operation::SyncDirectory).is_err());
    assert!(run(&mut disk, Operation::SyncDirectory).is_err());
    sim.clear_faults();
    run(&mut disk, Operation::SyncDirectory).unwrap();
    assert!(sim.flip("a", BLOCK, 3));
    assert_eq!(block(&sim, "a", 1)[0], 4 ^ 8);
    assert!(!sim.flip("a", 1 << 30, 0) && !sim.flip("b", 0, 0));
}

#[test]
fn a_full_device_refuses_to_grow_and_still_overwrites() {
    let options = SimOptions { capacity_bytes: Some(4 * BLOCK), ..SimOptions::default() };
    let sim = SimHandle::with_options(options);
    let mut disk = SimDisk::new(sim);
    let file = prepare(&mut disk, "a", 3);
    assert_eq!(disk.free_bytes().unwrap(), BLOCK);
    let too_long = Operation::Allocate { file, length: 5 * BLOCK };
    assert_eq!(errno(run(&mut disk, too_long)), Some(libc::ENOSPC));
    assert_eq!(errno(run(&mut disk, write(file, 4, 1, true))), Some(libc::ENOSPC));
    run(&mut disk, write(file, 2, 1, true)).unwrap();
    run(&mut disk, Operation::Remove { name: "a".into() }).unwrap();
    assert_eq!(disk.free_bytes().unwrap(), 4 * BLOCK);
}

#[test]
fn waiting_moves_the_clock_and_never_blocks() {
    let sim = SimHandle::new(0);
    let mut disk = SimDisk::new(sim.clone());
    let mut completions = Vec::new();
    disk.reap(&mut completions, Wait::Forever).unwrap();
    assert_eq!(sim.now_ns(), 0);
    disk.reap(&mut completions, Wait::For(Duration::from_secs(3600))).unwrap();
    assert_eq!(sim.now_ns(), 3_600_000_000_000);
    sim.stall(Duration::from_secs(5));
    disk.submit(1, Operation::SyncDirectory);
    disk.reap(&mut completions, Wait::For(Duration::from_secs(4))).unwrap();
    assert!(completions.is_empty());
    disk.reap(&mut completions, Wait::Forever).unwrap();
    assert_eq!(sim.now_ns(), 3_605_000_000_000);
    assert_eq!(completions.len(), 1);
}

#[test]
fn the_power_goes_at_the_operation_that_was_asked_for() {
    let sim = SimHandle::new(0);
    let mut disk = SimDisk::new(sim.clone());
    let file = prepare(&mut disk, "a", 2);
    sim.crash_at(sim.operations() + 1);
    run(&mut disk, write(file, 0, 1, true)).unwrap();
    disk.submit(1, write(file, 1, 1, true));
    assert!(disk.reap(&mut Vec::new(), Wait::Forever).is_err());
    assert_eq!(block(&sim, "a", 0), [1; BLOCK_BYTES]);
}

/// Work with crashes in between; returns what there is to compare.
fn churn(seed: u64, rounds: u64) -> (u64, Option<Vec<u8>>) {
    let sim = SimHandle::new(seed);
    for round in 0..rounds {
        let mut disk = SimDisk::new(sim.clone());
        let file = prepare(&mut disk, "a", 16);
        (0..8).for_each(|token| disk.submit(token, write(file, token, round as u8, token < 4)));
        disk.reap(&mut Vec::new(), Wait::Forever).unwrap();
        if round % 2 == 0 { sim.crash() } else { sim.kill() }
    }
    (sim.trace_hash(), sim.bytes("a"))
}

#[test]
fn a_seed_is_a_run_bit_for_bit() {
    for seed in 0..20 {
        assert_eq!(churn(seed, 20), churn(seed, 20));
    }
    assert_ne!(churn(1, 20).0, churn(2, 20).0);
}

#[test]
fn a_reader_sees_the_volatile_view_until_the_disk_is_dead() {
    let sim = SimHandle::new(0);
    let mut disk = SimDisk::new(sim.clone());
    let file = prepare(&mut disk, "a", 1);
    run(&mut disk, write(file, 0, 6, false)).unwrap();
    let reader = disk.reader();
    let mut buffer = BufferMut::allocate(BLOCK_BYTES);
    assert_eq!(reader.read_at(file, 0, &mut buffer, BLOCK_BYTES).unwrap(), BLOCK_BYTES);
    assert_eq!(buffer[..], [6; BLOCK_BYTES]);
    sim.fail_next(Kind::Read, libc::EIO);
    assert_eq!(errno(reader.read_at(file, 0, &mut buffer, BLOCK_BYTES)), Some(libc::EIO));
    sim.kill();
    assert!(reader.read_at(file, 0, &mut buffer, BLOCK_BYTES).is_err());
}
