//! Faults that the random runs found, each as the shortest story that shows it.

use std::time::Duration;

use ringwal_engine::disk::sim::{Fault, Kind, SimDisk, SimHandle, SimOptions};
use ringwal_engine::disk::{BufferMut, Disk, FileId, Operation, run};
use ringwal_engine::format::{FRAME_HEADER_BYTES, FrameHeader, FrameKind};
use ringwal_engine::{
    Clock, JournalEnd, OpenError, OpenErrorKind, Options, ReadError, Shard, StreamId,
};
use zerocopy::IntoBytes;

use super::journal::segments;

const ENGINE: [u8; 16] = [9; 16];
const SEGMENT_BYTES: u64 = 64 << 10;
const STREAM: StreamId = StreamId::new(7);

/// Each by its name.
pub const ALL: &[(&str, fn())] = &[
    ("unused_segments_of_older_incarnations", unused_segments_of_older_incarnations),
    ("a_footer_in_the_page_cache_is_synced", a_footer_in_the_page_cache_is_synced),
    ("the_anchor_is_older_than_the_newest_header", the_anchor_is_older_than_the_newest_header),
    ("a_failed_header_write_leaves_the_old_header", a_failed_header_write_leaves_the_old_header),
    ("waiting_for_a_segment_is_not_work", waiting_for_a_segment_is_not_work),
    ("closing_while_records_move", closing_while_records_move),
    ("another_valid_frame_in_the_same_place", another_valid_frame_in_the_same_place),
    ("a_sealed_segment_of_a_clone", a_sealed_segment_of_a_clone),
    ("the_newest_segment_of_a_clone", the_newest_segment_of_a_clone),
    ("a_clone_before_the_last_batch", a_clone_before_the_last_batch),
    ("the_anchor_never_needs_space_again", the_anchor_never_needs_space_again),
    ("damage_behind_a_roll_is_named_where_it_is", damage_behind_a_roll_is_named_where_it_is),
    ("a_name_that_was_not_durable_is_made_so", a_name_that_was_not_durable_is_made_so),
    ("what_was_given_up_stays_away", what_was_given_up_stays_away),
    ("a_scan_ends_where_the_file_ends", a_scan_ends_where_the_file_ends),
    ("a_checkpoint_ends_where_the_file_ends", a_checkpoint_ends_where_the_file_ends),
    ("a_short_read_hides_nothing", a_short_read_hides_nothing),
    ("an_end_that_is_not_there_is_refused", an_end_that_is_not_there_is_refused),
];

/// A device and how its shards are opened.
pub struct Story {
    pub sim: SimHandle,
    pub options: Options,
}

impl Story {
    pub fn new(seed: u64) -> Self {
        let (slot_bytes, pool_bytes) = (8 << 10, 96 << 10);
        let options = SimOptions { seed, slot_bytes, pool_bytes, ..SimOptions::default() };
        let options = SimHandle::with_options(options);
        Self { sim: options, options: Options::new().batch_bytes_max(slot_bytes).idle_seal(None) }
    }

    pub fn open(&self) -> Result<Shard, OpenError> {
        self.open_with(&self.options)
    }

    pub fn open_with(&self, options: &Options) -> Result<Shard, OpenError> {
        let disk = Box::new(SimDisk::new(self.sim.clone()));
        options.open_on(disk, ENGINE, SEGMENT_BYTES, Clock::Manual(self.sim.clock()))
    }

    pub fn kill(&self, shard: Shard) {
        self.sim.kill();
        shard.abandon();
    }

    /// Appends a record and waits for its receipt.
    pub fn append(&self, shard: &mut Shard, stream: StreamId, record: &[u8]) -> u64 {
        let token = shard.append(stream, record).expect("taken");
        loop {
            shard.run_once(Some(Duration::from_millis(5))).expect("healthy");
            if let Some(receipt) = token.try_receipt() {
                return receipt.expect("durable").offset();
            }
        }
    }

    pub fn trim(&self, shard: &mut Shard, stream: StreamId, before: u64) {
        let token = shard.trim(stream, before).expect("taken");
        while token.try_receipt().is_none() {
            shard.run_once(Some(Duration::from_millis(5))).expect("healthy");
        }
    }

    pub fn turn(&self, shard: &mut Shard, turns: usize) {
        for _ in 0..turns {
            shard.run_once(Some(Duration::from_millis(5))).expect("healthy");
        }
    }
}

/// Incarnations leave prepared segments that they never used. Those lie between the segments of
/// later ones, and are neither an end nor a gap.
pub fn unused_segments_of_older_incarnations() {
    let mut story = Story::new(1);
    story.options = story.options.segments_ahead(3).segments_free_max(8);
    let mut end = 0;
    for life in 0..12 {
        let mut shard = story.open().unwrap_or_else(|error| panic!("life {life}: {error}"));
        let found: u64 = shard.streams().iter().map(|summary| summary.end).sum();
        assert_eq!(found, end, "life {life}");
        for _ in 0..6 + 7 * (life % 3) {
            end = story.append(&mut shard, STREAM, &[life; 3000]) + 1;
        }
        if life % 2 == 1 {
            story.trim(&mut shard, STREAM, end - 2);
            story.turn(&mut shard, 40);
        }
        story.kill(shard);
    }
}

/// The footer that a killed process had under way is durable before anything relies on it.
pub fn a_footer_in_the_page_cache_is_synced() {
    for seed in 0..60 {
        let story = Story::new(seed);
        let mut shard = story.open().unwrap();
        while shard.stats().rotations < 1 {
            story.append(&mut shard, STREAM, &[1; 2000]);
        }
        story.kill(shard);
        let shard = story.open().unwrap();
        for segment in segments(&story.sim, SEGMENT_BYTES) {
            if segment.footer.is_some() {
                let name = &segment.name;
                let (seen, safe) = (story.sim.bytes(name), story.sim.durable_bytes(name));
                assert!(seen == safe, "seed {seed}: {name} is not durable");
            }
        }
        story.kill(shard);
    }
}

/// An open that dies between its first segment header and its anchor used the file that the old
/// anchor names.
pub fn the_anchor_is_older_than_the_newest_header() {
    for at in 0..60 {
        let story = Story::new(at);
        let shard = story.open().unwrap();
        story.kill(shard);
        for _ in 0..3 {
            story.sim.crash_at(story.sim.operations() + at);
            match story.open() {
                Ok(shard) => {
                    story.sim.crash();
                    shard.abandon();
                }
                Err(error) => assert_ne!(error.kind(), OpenErrorKind::Corrupt, "{at}: {error}"),
            }
            story.sim.crash_at(u64::MAX);
        }
        story.open().unwrap_or_else(|error| panic!("{at}: {error}")).close().unwrap();
    }
}

/// A header write that fails leaves the header that the file had.
pub fn a_failed_header_write_leaves_the_old_header() {
    for copy in 0..2 {
        let story = Story::new(copy);
        let shard = story.open().unwrap();
        story.kill(shard);
        let read_only = story.options.clone().read_only(true);
        let disk = Box::new(SimDisk::new(story.sim.clone()));
        let clock = Clock::Manual(story.sim.clock());
        let look = read_only.open_on(disk, ENGINE, SEGMENT_BYTES, clock).unwrap();
        assert!(look.recovery().damages.is_empty());
        drop(look);
        if copy == 0 {
            story.sim.fail_next(Kind::Write, libc::EIO);
        } else {
            // The first copy is written, the second is not.
            story.sim.fault_next(Kind::Write, Fault::Short(4096));
            story.sim.fail_next(Kind::Write, libc::EIO);
        }
        let _ = story.open();
        story.sim.clear_faults();
        story.open().unwrap_or_else(|error| panic!("copy {copy}: {error}")).close().unwrap();
    }
}

/// While the engine's own batch waits for a segment, records behind it are no work: the loop
/// sleeps until the segment is there instead of turning on the spot.
pub fn waiting_for_a_segment_is_not_work() {
    let mut story = Story::new(3);
    story.options = story.options.idle_seal(Some(Duration::ZERO));
    story.sim.set_delay_ns(1_000_000, 2_000_000);
    let mut shard = story.open().unwrap();
    let mut tokens = Vec::new();
    let mut turns = 0;
    while tokens.len() < 200 {
        match shard.append(STREAM, [2; 3000]) {
            Ok(token) => tokens.push(token),
            Err(_) => {
                shard.run_once(Some(Duration::from_millis(5))).unwrap();
                turns += 1;
            }
        }
        assert!(turns < 5_000, "it turns on the spot");
    }
    shard.close().unwrap();
    assert!(tokens.iter().all(|token| matches!(token.try_receipt(), Some(Ok(_)))));
}

/// Records that are being moved when the shard closes: the segment's index names all of them.
pub fn closing_while_records_move() {
    for turns in 0..40 {
        let mut story = Story::new(turns);
        story.options = story.options.segments_free_max(0);
        let cold = StreamId::new(4);
        let mut shard = story.open().unwrap();
        let (mut colds, mut end) = (0, 0);
        for _ in 0..6 {
            colds = story.append(&mut shard, cold, &[3; 50]) + 1;
            let rotations = shard.stats().rotations;
            while shard.stats().rotations == rotations {
                end = story.append(&mut shard, STREAM, &[4; 3000]) + 1;
            }
        }
        let trimmed = shard.trim(STREAM, end).unwrap();
        story.turn(&mut shard, turns as usize);
        drop(trimmed);
        shard.close().unwrap();
        let shard = story.open().unwrap_or_else(|error| panic!("{turns} turns: {error}"));
        assert!(shard.recovery().clean, "{turns} turns: {:?}", shard.recovery());
        assert_eq!(shard.read(cold, ..).unwrap().filter(Result::is_ok).count() as u64, colds);
        story.kill(shard);
    }
}

/// A valid frame with the same stream, epoch and offsets is not the record, when its bytes are
/// others: such a one is left by a write that was never acknowledged, in the same place of a
/// recycled file, and shows when the device loses the write over it.
pub fn another_valid_frame_in_the_same_place() {
    let story = Story::new(5);
    let mut shard = story.open().unwrap();
    story.append(&mut shard, STREAM, b"right");
    shard.close().unwrap();
    let segment = segments(&story.sim, SEGMENT_BYTES).pop().expect("one segment");
    let batch = segment.batches.iter().find(|batch| !batch.frames.is_empty()).expect("a record");
    let payload = [5u32.to_le_bytes().as_slice(), b"wrong"].concat();
    let header = FrameHeader::new(FrameKind::Data, STREAM.get(), 0, 0, 1, 0, &payload);
    overwrite(&story.sim, &segment.name, batch.offset, |block| {
        block[64..64 + FRAME_HEADER_BYTES].copy_from_slice(header.as_bytes());
        block[64 + FRAME_HEADER_BYTES..][..payload.len()].copy_from_slice(&payload);
    });
    let shard = story.open().expect("a sealed segment is not scanned");
    let record = shard.read(STREAM, 0..1).unwrap().next().expect("it was acknowledged");
    assert!(matches!(record, Err(ReadError::Corrupt { .. })), "{record:?}");
}

/// A sealed segment of another history is no part of this one, also when what comes behind the
/// next segment goes on as it should.
pub fn a_sealed_segment_of_a_clone() {
    let (story, clone) = (Story::new(6), Story::new(6));
    let write = |story: &Story, byte: u8| {
        let mut shard = story.open().unwrap();
        while shard.stats().rotations < 3 {
            story.append(&mut shard, STREAM, &[byte; 2000]);
        }
        story.turn(&mut shard, 20);
        story.kill(shard);
    };
    write(&story, 1);
    write(&clone, 2);
    let sealed = segments(&story.sim, SEGMENT_BYTES);
    let sealed = sealed.iter().filter(|segment| segment.footer.is_some());
    let names: Vec<_> = sealed.map(|segment| segment.name.clone()).collect();
    assert!(names.len() >= 2, "{names:?}");
    for name in names {
        expect_named(&story, &clone, &name);
    }
}

/// The first segment of an incarnation names the end of all before it, CRC and all: a segment of
/// another history names another batch.
pub fn the_newest_segment_of_a_clone() {
    let (story, clone) = (Story::new(7), Story::new(7));
    for (story, byte) in [(&story, 1), (&clone, 2)] {
        for _ in 0..2 {
            let mut shard = story.open().unwrap();
            for _ in 0..5 {
                story.append(&mut shard, STREAM, &[byte; 1000]);
            }
            story.kill(shard);
        }
    }
    let used = segments(&story.sim, SEGMENT_BYTES);
    let newest = used.iter().rfind(|segment| !segment.batches.is_empty()).expect("one is in use");
    assert!(newest.predecessor.is_some() && newest.footer.is_none(), "{newest:?}");
    expect_named(&story, &clone, &newest.name);
}

/// A last batch that nothing declares durable may be a torn tail; one that is whole, has the right
/// sequence and follows another batch than the one before it is not.
pub fn a_clone_before_the_last_batch() {
    let (story, clone) = (Story::new(8), Story::new(8));
    for (story, byte) in [(&story, 1), (&clone, 2)] {
        let mut shard = story.open().unwrap();
        while shard.stats().rotations < 1 {
            story.append(&mut shard, STREAM, &[byte; 2000]);
        }
        story.turn(&mut shard, 20);
        story.kill(shard);
    }
    let used = segments(&story.sim, SEGMENT_BYTES);
    let sealed = used.iter().find(|segment| segment.footer.is_some()).expect("one is sealed");
    let newest = used.iter().rfind(|segment| !segment.batches.is_empty()).expect("one is in use");
    let first = newest.batches.first().expect("it has a batch");
    let mut bytes = story.sim.bytes(&newest.name).expect("it is there");
    bytes[(first.offset + first.length) as usize..].fill(0);
    story.sim.put(&newest.name, &bytes);
    assert!(first.durable_sequence < first.sequence && newest.name != sealed.name);
    expect_named(&story, &clone, &sealed.name);
}

/// Whatever fails while the first open makes the anchor, and whatever a loss of power leaves of
/// it: once an open has succeeded, the next ones need no space.
pub fn the_anchor_never_needs_space_again() {
    for seed in 0..40 {
        let story = Story::new(seed);
        let began = story.sim.operations();
        story.open().expect("healthy").abandon();
        let operations = story.sim.operations() - began;
        for at in 0..operations {
            let story = Story::new(seed);
            story.sim.fail_at(began + at, libc::EIO);
            if let Ok(shard) = story.open() {
                shard.abandon();
            }
            story.sim.clear_faults();
            let mut shard = story.open().expect("healthy");
            story.append(&mut shard, STREAM, b"kept");
            story.turn(&mut shard, 40);
            story.sim.crash();
            shard.abandon();
            let used = story.sim.list().iter().map(|entry| entry.length).sum();
            story.sim.set_capacity_bytes(Some(used));
            for _ in 0..2 {
                let shard = story.open().unwrap_or_else(|error| panic!("{seed}, {at}: {error}"));
                story.sim.crash();
                shard.abandon();
            }
        }
    }
}

/// The segment before may have no footer yet: then the batch that is damaged could have been its
/// next one, but lies at the start of the next segment.
pub fn damage_behind_a_roll_is_named_where_it_is() {
    let mut seen = 0;
    for seed in 0..40 {
        let story = Story::new(seed);
        story.sim.set_delay_ns(1_000_000, 2_000_000);
        let mut shard = story.open().unwrap();
        while shard.stats().rotations < 1 {
            story.append(&mut shard, STREAM, &[1; 6000]);
        }
        story.append(&mut shard, STREAM, &[1; 6000]);
        story.kill(shard);
        let mut used = segments(&story.sim, SEGMENT_BYTES);
        used.retain(|segment| !segment.batches.is_empty());
        let [.., before, newest] = used.as_slice() else { panic!("it has rolled") };
        if before.footer.is_some() {
            continue;
        }
        let batch = &newest.batches[0];
        // In its header, and in its frames.
        for offset in [8, 80] {
            seen += 1;
            let own = story.sim.bytes(&newest.name).expect("it is there");
            story.sim.flip(&newest.name, batch.offset + offset, 3);
            let Err(OpenError::Corrupt(corruption)) = story.open() else {
                panic!("seed {seed}, byte {offset}: it opens");
            };
            let [damage] = corruption.damages.as_slice() else { panic!("{corruption}") };
            assert_eq!(damage.file, newest.name, "{corruption}");
            let whole = batch.offset..batch.offset + batch.length;
            assert_eq!(damage.bytes, whole, "seed {seed}, byte {offset}: {corruption}");
            story.sim.put(&newest.name, &own);
        }
    }
    assert!(seen > 0, "no seed has a segment without its footer");
}

/// A file that an open finds without a header may have a name that is not durable yet, and a
/// directory sync that fails may lose it: nothing is written to such a file.
pub fn a_name_that_was_not_durable_is_made_so() {
    for at in 0..60 {
        let story = Story::new(at);
        let mut shard = story.open().unwrap();
        story.append(&mut shard, STREAM, b"first");
        story.sim.kill_at(story.sim.operations() + at);
        for _ in 0..40 {
            let _ = shard.append(STREAM, [1; 3000]);
            if shard.run_once(Some(Duration::from_millis(5))).is_err() {
                break;
            }
        }
        shard.abandon();
        story.sim.kill_at(u64::MAX);
        // A header that cannot be written gives that open another unfinished file.
        story.sim.fail_next(Kind::Write, libc::EIO);
        if let Ok(mut shard) = story.open() {
            story.sim.fail_next(Kind::SyncDirectory, libc::EIO);
            for _ in 0..100 {
                let _ = shard.append(STREAM, [2; 3000]);
                let _ = shard.run_once(Some(Duration::from_millis(100)));
            }
            shard.abandon();
        }
        story.sim.clear_faults();
        story.sim.kill();
        story.open().unwrap_or_else(|error| panic!("{at}: {error}")).abandon();
    }
}

/// An end that somebody insisted on stays the end: sealed segments behind it do not count again
/// when the journal has grown beyond what they hold.
pub fn what_was_given_up_stays_away() {
    for seed in 0..20 {
        let mut story = Story::new(seed);
        story.options = story.options.segments_free_max(8);
        let mut shard = story.open().unwrap();
        let kept = story.append(&mut shard, STREAM, b"kept") + 1;
        shard.close().unwrap();
        let mut shard = story.open().unwrap();
        let end = shard.recovery().end;
        while shard.stats().rotations < 6 {
            story.append(&mut shard, STREAM, &[1; 6000]);
        }
        story.turn(&mut shard, 30);
        story.kill(shard);
        let mut insists = story.open_with(&story.options.clone().accept_loss_from(0, end)).unwrap();
        assert_eq!(story.append(&mut insists, STREAM, b"after"), kept);
        story.kill(insists);
        let mut end = kept + 1;
        for life in 0..4 {
            let mut shard = story.open().unwrap_or_else(|error| panic!("life {life}: {error}"));
            assert_eq!(shard.streams().iter().map(|stream| stream.end).sum::<u64>(), end);
            let rotations = shard.stats().rotations;
            for _ in 0..seed {
                story.append(&mut shard, STREAM, &[3; 700]);
            }
            while life > 1 && shard.stats().rotations == rotations {
                story.append(&mut shard, STREAM, &[2; 3000]);
            }
            story.turn(&mut shard, 10);
            end = story.append(&mut shard, STREAM, b"last") + 1;
            story.kill(shard);
        }
    }
}

/// However long a segment should be, nothing is read behind the end of its file.
pub fn a_scan_ends_where_the_file_ends() {
    let story = Story::new(9);
    let mut shard = story.open().unwrap();
    story.append(&mut shard, STREAM, b"there");
    story.kill(shard);
    let before = story.sim.operations();
    let disk = Box::new(SimDisk::new(story.sim.clone()));
    let (options, clock) =
        (story.options.clone().read_only(true), Clock::Manual(story.sim.clock()));
    let look = options.open_on(disk, ENGINE, 1 << 40, clock).expect("it can be read");
    assert!(!look.recovery().damages.is_empty(), "the files are too short");
    assert_eq!(look.read(STREAM, ..).unwrap().filter(Result::is_ok).count(), 1);
    let operations = story.sim.operations() - before;
    assert!(operations < 100, "{operations} operations");
}

/// A checkpoint that does not end is looked for no further than its file goes.
pub fn a_checkpoint_ends_where_the_file_ends() {
    let story = Story::new(12);
    let mut shard = story.open().unwrap();
    for stream in 0..480 {
        story.append(&mut shard, StreamId::new(100 + stream), b"one");
    }
    let rotations = shard.stats().rotations;
    while shard.stats().rotations == rotations {
        story.append(&mut shard, STREAM, &[1; 3000]);
    }
    story.append(&mut shard, STREAM, &[1; 3000]);
    story.kill(shard);
    let used = segments(&story.sim, SEGMENT_BYTES);
    let newest = used.iter().rfind(|segment| !segment.batches.is_empty()).expect("one is in use");
    let bytes = story.sim.bytes(&newest.name).expect("it is there");
    let fourth = &newest.batches[3];
    assert!(fourth.frames.is_empty(), "the checkpoint is longer than three batches");
    story.sim.put(&newest.name, &bytes[..fourth.offset as usize]);
    let disk = Box::new(SimDisk::new(story.sim.clone()));
    let (options, clock) =
        (story.options.clone().read_only(true), Clock::Manual(story.sim.clock()));
    // So much memory is not to be had.
    let look = options.open_on(disk, ENGINE, 1 << 60, clock).expect("it can be read");
    assert!(!look.recovery().damages.is_empty());
}

/// A read that ends before the file does is an error, and not the end of what was written.
pub fn a_short_read_hides_nothing() {
    let story = Story::new(10);
    let mut shard = story.open().unwrap();
    while shard.stats().rotations < 2 {
        story.append(&mut shard, STREAM, &[1; 3000]);
    }
    let end = story.append(&mut shard, STREAM, &[1; 3000]) + 1;
    story.kill(shard);
    let mut refused = 0;
    for bytes in [0, 512, 4096, 8192] {
        for at in 0..40 {
            story.sim.fault_at(story.sim.operations() + at, Fault::Short(bytes));
            match story.open() {
                Ok(shard) => {
                    assert_eq!(shard.streams()[0].end, end, "{bytes} bytes at {at}");
                    story.kill(shard);
                }
                Err(OpenError::Io { .. } | OpenError::NoSpace { .. }) => refused += 1,
                Err(error) => panic!("{bytes} bytes at {at}: {error}"),
            }
            story.sim.clear_faults();
        }
    }
    assert!(refused > 0, "no read was short");
    let shard = story.open().unwrap();
    let whole = shard.read(STREAM, ..).unwrap().filter(Result::is_ok).count() as u64;
    assert_eq!(whole, end);
    story.kill(shard);
}

/// Somebody insists on an end that no batch has: that is refused, and nothing is lost by it.
pub fn an_end_that_is_not_there_is_refused() {
    let story = Story::new(11);
    let mut shard = story.open().unwrap();
    story.append(&mut shard, STREAM, b"kept");
    shard.close().unwrap();
    let shard = story.open().unwrap();
    let end = shard.recovery().end;
    story.kill(shard);
    for wrong in [
        JournalEnd { sequence: end.sequence + 1, ..end },
        JournalEnd { offset: end.offset + 4096, ..end },
        JournalEnd { generation: end.generation + 1, ..end },
        JournalEnd { crc: !end.crc, ..end },
    ] {
        let before = story.sim.list();
        let error = story.open_with(&story.options.clone().accept_loss_from(0, wrong));
        let error = error.err().expect("no batch ends there");
        assert_eq!(error.kind(), OpenErrorKind::Usage, "{error}");
        assert_eq!(before, story.sim.list());
    }
    let shard = story.open().unwrap();
    assert_eq!(shard.read(STREAM, ..).unwrap().filter(Result::is_ok).count(), 1);
    story.kill(shard);
}

/// With this file of the clone in its place, the directory does not open.
fn expect_named(story: &Story, clone: &Story, name: &str) {
    let own = story.sim.bytes(name).expect("it is there");
    story.sim.put(name, &clone.sim.bytes(name).expect("the clone has it"));
    match story.open() {
        Err(error) => assert_eq!(error.kind(), OpenErrorKind::Corrupt, "{name}: {error}"),
        Ok(_) => panic!("{name} of the clone was believed"),
    }
    story.sim.put(name, &own);
}

fn overwrite(sim: &SimHandle, name: &str, offset: u64, change: impl FnOnce(&mut [u8])) {
    let mut disk = SimDisk::new(sim.clone());
    let open = Operation::Open { name: name.into(), create: false };
    let file = FileId(run(&mut disk as &mut dyn Disk, open).unwrap().0 as u32);
    let mut buffer = BufferMut::allocate(4096);
    buffer.copy_from_slice(&sim.bytes(name).unwrap()[offset as usize..][..4096]);
    change(&mut buffer);
    let (buffer, length) = (buffer.freeze(), 4096);
    let write = Operation::Write { file, offset, buffer, from: 0, length, durable: true };
    run(&mut disk, write).unwrap();
}
