//! Orphan files, written from real engines and read again: whole, torn, damaged, twice, and on a
//! disk that is full.

#[path = "../../engine/tests/common/mount.rs"]
mod mount;
#[path = "orphans/setup.rs"]
mod setup;
#[path = "../../engine/tests/common/skipped.rs"]
mod skipped;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use proptest::prelude::*;
use ringwal_engine::offline::{self, OrphanState, orphans, verify_orphans};
use ringwal_engine::{Engine, Io, StreamId, fuzzing};
use ringwal_replication::orphans::{OrphanError, keep};

use mount::Mounted;
use setup::{FRAME_RECORDS, STREAM, Small, end, files, fill, held, options, reason, visited};

#[test]
fn what_is_cut_can_be_read_with_its_epochs_from_any_record_on() {
    for (shards, io) in [(1, Io::Blocking), (2, Io::Uring)] {
        let directory = tempfile::tempdir().unwrap();
        let engine = options().shards(shards).io(io).open(directory.path()).unwrap();
        let streams: Vec<_> = (0..5).map(|id| StreamId::new(id * 7)).collect();
        for epoch in 1..4 {
            engine.set_epoch(epoch);
            streams.iter().for_each(|stream| fill(&engine, *stream, 4));
        }
        // Inside of a frame, another, at the start of an epoch, everything, the last record only.
        for (stream, from) in streams.iter().zip([3, 6, 16, 0, 47]) {
            let until = end(&engine, *stream);
            let expected = held(&engine, *stream, from..until);
            let path = keep(&engine, *stream, from, until, reason(9)).unwrap().unwrap();
            let name = format!("{stream}-{from}-0.orphan");
            assert_eq!(path, directory.path().join("orphans").join(&name));
            engine.stream(*stream).truncate(from, 9).unwrap().wait().unwrap();
            assert_eq!(visited(directory.path(), &format!("orphans/{name}")), expected);
        }
        assert_eq!(orphans(directory.path()).unwrap().len(), 5, "beside a running engine");
        engine.close().unwrap();
        let engine = options().open(directory.path()).unwrap();
        assert!(streams.iter().zip([3, 6, 16, 0, 47]).all(|(id, at)| end(&engine, *id) == at));
        engine.close().unwrap();

        let read = verify_orphans(directory.path()).unwrap();
        for orphan in &read {
            let facts = orphan.facts.unwrap();
            assert_eq!((orphan.state, &orphan.problem), (OrphanState::Whole, &None));
            assert_eq!((facts.epoch, facts.leader, facts.run), (9, 2, [7; 16]));
            assert_eq!(facts.engine_id, offline::engine_id(directory.path()).unwrap());
            assert_eq!(orphan.records(), facts.end_offset - facts.base_offset);
            assert!(facts.time_ns > 1 << 60);
        }
        let epochs = |at: usize| -> Vec<_> {
            read[at].epochs.iter().map(|entry| (entry.epoch, entry.start)).collect()
        };
        assert_eq!(epochs(0), [(1, 3), (2, 16), (3, 32)]);
        assert_eq!((epochs(2), epochs(4)), (vec![(2, 16), (3, 32)], vec![(3, 47)]));
        assert!(offline::verify(directory.path()).unwrap().findings.is_empty());
        assert!(offline::inspect(directory.path()).unwrap().shards[0].damages.is_empty());
    }
}

#[test]
fn only_what_was_asked_for_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    let engine = options().open(directory.path()).unwrap();
    fill(&engine, STREAM, 3);
    let until = end(&engine, STREAM);
    assert_eq!(keep(&engine, STREAM, 5, 5, reason(1)).unwrap(), None);
    assert!(!directory.path().join("orphans").exists());
    let error = keep(&engine, STREAM, 5, 4, reason(1)).unwrap_err();
    assert!(matches!(error, OrphanError::Backwards { from: 5, end: 4, .. }), "{error}");
    let error = keep(&engine, STREAM, 5, until + 1, reason(1)).unwrap_err();
    let is_it = matches!(error, OrphanError::NotDurable { durable, end, .. }
        if (durable, end) == (until, until + 1));
    assert!(is_it, "{error}");
    assert_eq!(files(directory.path()), [""; 0]);
    engine.stream(STREAM).trim(2).unwrap();
    let error = keep(&engine, STREAM, 1, until, reason(1)).unwrap_err();
    assert!(error.to_string().contains("was trimmed up to 2"), "{error}");
    assert_eq!(files(directory.path()), [""; 0]);

    // Both ends inside of frames.
    let path = keep(&engine, STREAM, 3, 10, reason(1)).unwrap().unwrap();
    assert_eq!(visited(directory.path(), "orphans/7-3-0.orphan"), held(&engine, STREAM, 3..10));
    assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o640);
}

#[test]
fn a_suffix_that_is_kept_twice_is_one_file_and_another_history_is_another() {
    let directory = tempfile::tempdir().unwrap();
    let keep = |engine: &Engine, epoch| {
        let until = end(engine, STREAM);
        keep(engine, STREAM, 5, until, reason(epoch)).unwrap().unwrap()
    };
    let engine = options().open(directory.path()).unwrap();
    engine.set_epoch(1);
    fill(&engine, STREAM, 3);
    let first = keep(&engine, 4);
    engine.close().unwrap();
    // Killed before the cut; what another kill left is in the way of nothing.
    let unfinished = directory.path().join("orphans/7-5-1.new");
    fs::write(&unfinished, b"RWORPHAN").unwrap();
    let engine = options().open(directory.path()).unwrap();
    assert_eq!(keep(&engine, 6), first, "it keeps its own reason");
    assert_eq!(files(directory.path()), ["7-5-0.orphan"]);
    assert_eq!(orphans(directory.path()).unwrap()[0].facts.unwrap().epoch, 4);

    // The same offsets with other records.
    engine.stream(STREAM).truncate(5, 6).unwrap().wait().unwrap();
    for record in 0..7 {
        engine.stream(STREAM).append([record]).unwrap().wait().unwrap();
    }
    let expected = held(&engine, STREAM, 5..12);
    let second = keep(&engine, 8);
    assert_eq!(second, directory.path().join("orphans/7-5-1.orphan"));
    assert_eq!(visited(directory.path(), "orphans/7-5-1.orphan"), expected);
    assert_eq!(keep(&engine, 8), second);

    // A damaged one is worth nothing, and stays for whoever can make something of it.
    let mut bytes = fs::read(&second).unwrap();
    bytes[250] ^= 1;
    fs::write(&second, &bytes).unwrap();
    assert_eq!(keep(&engine, 8), directory.path().join("orphans/7-5-2.orphan"));
    assert_eq!(visited(directory.path(), "orphans/7-5-2.orphan"), expected);
    assert_eq!(fs::read(&second).unwrap(), bytes);
    assert_eq!(files(directory.path()), ["7-5-0.orphan", "7-5-1.orphan", "7-5-2.orphan"]);
}

#[test]
fn a_file_that_ends_early_is_torn_and_gives_no_wrong_record() {
    let small = Small::new();
    let whole = fs::read(&small.path).unwrap();
    let mut most = 0;
    for length in 0..whole.len() {
        fs::write(&small.path, &whole[..length]).unwrap();
        let directory = small.directory.path();
        for found in [orphans(directory), verify_orphans(directory)] {
            let found = &found.unwrap()[0];
            assert_eq!(found.state, OrphanState::Torn, "{length} bytes");
            let problem = found.problem.as_ref().unwrap();
            assert_eq!((&problem.file, problem.bytes.end), (&small.file(), length as u64));
            assert_eq!(found.facts.is_some(), length >= 128);
        }
        let records = visited(small.directory.path(), &small.file());
        assert!(small.records.starts_with(&records) && records.len() >= most, "{length} bytes");
        most = records.len();
    }
    assert_eq!(most, small.records.len(), "all are there when only the trailer is not");
}

#[test]
fn every_flipped_bit_is_named_and_gives_no_wrong_record() {
    let small = Small::new();
    let mut bytes = fs::read(&small.path).unwrap();
    let file = File::options().write(true).open(&small.path).unwrap();
    let mut counts = BTreeSet::new();
    for bit in 0..bytes.len() * 8 {
        // In place: a file that is made again is flushed at every close.
        let (at, flipped) = (bit as u64 / 8, bytes[bit / 8] ^ 1 << (bit % 8));
        file.write_all_at(&[flipped], at).unwrap();
        let found = &verify_orphans(small.directory.path()).unwrap()[0];
        assert_eq!(found.state, OrphanState::Damaged, "bit {bit}");
        let problem = found.problem.as_ref().unwrap();
        assert!(problem.to_string().starts_with("orphans/7-2-0.orphan at byte "), "{problem}");
        assert!(problem.bytes.contains(&(bit as u64 / 8)), "bit {bit}: {problem}");
        let records = visited(small.directory.path(), &small.file());
        assert!(records.iter().all(|record| small.records.contains(record)), "bit {bit}");
        assert!(found.records() == records.len() as u64 && found.records() <= 6);
        counts.insert(records.len());
        file.write_all_at(&[bytes[bit / 8]], at).unwrap();
    }
    let expected = [0, 2, 4, 6];
    assert_eq!(counts, expected.into(), "what is not damaged is given: either frame, none, both");
    bytes.push(0);
    fs::write(&small.path, &bytes).unwrap();
    let found = &verify_orphans(small.directory.path()).unwrap()[0];
    assert_eq!((found.state, found.records()), (OrphanState::Damaged, 6));
}

#[test]
fn a_newer_file_is_named_and_left_alone() {
    let small = Small::new();
    let mut bytes = fs::read(&small.path).unwrap();
    bytes[12] = 2;
    let crc = crc32c::crc32c(&bytes[12..128]);
    bytes[8..12].copy_from_slice(&crc.to_le_bytes());
    fs::write(&small.path, &bytes).unwrap();
    let found = &orphans(small.directory.path()).unwrap()[0];
    assert_eq!((found.state, found.facts), (OrphanState::Newer, None));
    assert!(found.problem.as_ref().unwrap().what.contains("format 2.0"));
}

#[test]
fn what_cannot_be_read_is_named_and_nothing_is_left_behind() {
    let directory = tempfile::tempdir().unwrap();
    let engine = options().io(Io::Blocking).open(directory.path()).unwrap();
    fill(&engine, STREAM, 3);
    let until = end(&engine, STREAM);
    // The payload of the second frame, on the disk.
    let segment = directory.path().join("shard-00/segment-00000000");
    let mut bytes = fs::read(&segment).unwrap();
    let needle = b"7 1 2";
    let at = bytes.windows(needle.len()).position(|window| window == needle).unwrap();
    bytes[at] ^= 1;
    fs::write(&segment, &bytes).unwrap();
    let error = keep(&engine, STREAM, 0, until, reason(3)).unwrap_err();
    assert!(matches!(error, OrphanError::Unreadable { .. }), "{error}");
    for part in ["0..12 of stream 7", "must not be cut", "offset 4", "segment-00000000 at byte"] {
        assert!(error.to_string().contains(part), "{part} in {error}");
    }
    assert_eq!(files(directory.path()), [""; 0]);
    let behind = keep(&engine, STREAM, 2 * FRAME_RECORDS, until, reason(3)).unwrap();
    assert!(behind.is_some());
}

#[test]
fn a_full_disk_is_said_and_nothing_is_left_behind() {
    let options_of_mkfs = ["-q", "-F", "-m", "0", "-b", "1024"];
    let Some(mounted) = Mounted::image("ext4", 32 << 20, &options_of_mkfs) else { return };
    let data = mounted.path().join("data");
    let engine = options().open(&data).unwrap();
    for _ in 0..40 {
        engine.stream(STREAM).append([0x5A; 60_000]).unwrap().wait().unwrap();
    }
    let until = end(&engine, STREAM);
    let expected = held(&engine, STREAM, 1..until);
    // From a disk on which not even the folder can be made to one that lacks half of the file.
    for room in [0, 4 << 10, 300 << 10, 1200 << 10] {
        let balloon = mounted.path().join("balloon");
        take_space(&mounted, &balloon, room);
        let error = keep(&engine, STREAM, 1, until, reason(3)).unwrap_err();
        let OrphanError::NoSpace { from: 1, free_bytes, .. } = error else { panic!("{error}") };
        assert!(free_bytes >= room / 2 && free_bytes < 2 << 20, "{free_bytes} of {room}");
        assert!(error.to_string().contains("it must not be cut before"), "{error}");
        assert_eq!(files(&data), [""; 0]);
        fs::remove_file(balloon).unwrap();
    }
    keep(&engine, STREAM, 1, until, reason(3)).unwrap().unwrap();
    assert_eq!(visited(&data, "orphans/7-1-0.orphan"), expected);
}

/// Fills the file system but for about `room` bytes.
fn take_space(mounted: &Mounted, balloon: &Path, room: u64) {
    let free = || ringwal_engine::environment::free_bytes(mounted.path()).unwrap();
    let mut file = File::create(balloon).unwrap();
    let mut step = 1 << 20;
    while step >= 1024 {
        if free() < room + step as u64 || file.write_all(&vec![1; step]).is_err() {
            step /= 2;
        }
        let _ = file.sync_all();
    }
}

/// Reads an orphan from memory; what it gives must fit into it, and be in order.
fn read(bytes: &[u8]) -> OrphanState {
    let (mut held, mut next) = (0, None);
    let (state, facts, frames) = fuzzing::orphan(bytes, |frame| {
        assert!(next.is_none_or(|next| next <= frame.header.base_offset.get()));
        next = Some(frame.header.end_offset());
        held += frame.records().map(|record| 4 + record.len()).sum::<usize>();
    });
    assert!(held <= bytes.len() && frames.bytes as usize <= bytes.len());
    if state == OrphanState::Whole {
        let facts = facts.unwrap();
        assert_eq!(frames.records, facts.end_offset - facts.base_offset);
        assert_eq!(frames.bytes as usize + 128 + 64, bytes.len());
    }
    state
}

fn fix_header(bytes: &mut [u8]) {
    if let Some(header) = bytes.get_mut(..128) {
        header[..8].copy_from_slice(b"RWORPHAN");
        let crc = crc32c::crc32c(&header[12..]);
        header[8..12].copy_from_slice(&crc.to_le_bytes());
    }
}

proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..700)) {
        read(&bytes);
        fix_header(&mut bytes);
        read(&bytes);
    }

    #[test]
    fn no_change_makes_the_reader_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        length in any::<prop::sample::Index>(),
        cut in any::<bool>(),
        fix in any::<bool>(),
    ) {
        let mut bytes = SMALL.with(Clone::clone);
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if fix {
            fix_header(&mut bytes);
        }
        if cut {
            bytes.truncate(length.index(bytes.len()));
        }
        read(&bytes);
    }
}

thread_local! {
    static SMALL: Vec<u8> = {
        let small = Small::new();
        let bytes = fs::read(&small.path).unwrap();
        assert_eq!(read(&bytes), OrphanState::Whole);
        bytes
    };
}
