//! A disk that is really full: ext4 and xfs images in which not a byte is left. Appends are pushed
//! back and then refused by name, nothing acknowledged is lost, and trimming, closing, and opening
//! after a kill go on as ever.
//!
//! EDQUOT takes the same path as ENOSPC.

#[path = "common/child.rs"]
mod child;
#[path = "common/mount.rs"]
mod mount;
#[path = "common/skipped.rs"]
mod skipped;
#[path = "common/watchdog.rs"]
mod watchdog;

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use ringwal_engine::format::{FrameHeader, FrameKind};
use ringwal_engine::{
    Append, AppendBatch, AppendError, CommitError, Engine, EpochStart, Io, OpenError,
    OpenErrorKind, Options, Refusal, Stream, StreamId,
};
use zerocopy::IntoBytes;

use child::Role;
use mount::Mounted;
use watchdog::Watchdog;

const MIB: u64 = 1 << 20;
const LIMIT: Duration = Duration::from_secs(120);
const STREAM: StreamId = StreamId::new(7);
const RECORD_BYTES: usize = 60_000;
/// What the tests leave to the engine of an image.
const ROOM: u64 = 20 * MIB;

fn options() -> Options {
    Engine::options().segment_bytes(MIB).pool_bytes(4 << 20)
}

/// An ext4 that gives root no more than others, in blocks of this size.
fn ext4(block: &str) -> Option<Mounted> {
    Mounted::image("ext4", 32 * MIB, &["-q", "-F", "-m", "0", "-b", block])
}

/// xfs wants 300 MiB; most of it is taken at once.
fn xfs() -> Option<Mounted> {
    let mounted = Mounted::image("xfs", 300 * MIB, &["-q"])?;
    take_space(&mounted.path().join("most"), ROOM);
    Some(mounted)
}

/// btrfs wants 109 MiB.
fn btrfs() -> Option<Mounted> {
    let mounted = Mounted::image("btrfs", 128 * MIB, &["-q"])?;
    take_space(&mounted.path().join("most"), ROOM);
    Some(mounted)
}

/// Grows a plain file until the file system has no more than `left` bytes.
fn take_space(path: &Path, left: u64) {
    let file = File::options().create(true).append(true).open(path).unwrap();
    let mut end = file.metadata().unwrap().len();
    let mut step = 64 * MIB;
    while step >= 1024 {
        let free = ringwal_engine::environment::free_bytes(path.parent().unwrap()).unwrap();
        let fits = left == 0 || free >= left + step;
        let flags = rustix::fs::FallocateFlags::empty();
        if fits && rustix::fs::fallocate(&file, flags, end, step).is_ok() {
            end += step;
        } else {
            step /= 2;
        }
    }
}

/// Takes every byte, also what has become free a moment later.
fn take_all_space(mounted: &Path) {
    take_space(&mounted.join("all"), 0);
}

fn payload(offset: u64) -> Vec<u8> {
    let mut bytes = vec![offset as u8 ^ 0x5A; RECORD_BYTES];
    bytes[..8].copy_from_slice(&offset.to_le_bytes());
    bytes
}

/// Appends until the engine says that there is no space. Gives the tokens, from `first` on.
fn append_until_full(stream: &Stream, first: u64) -> (Vec<Append>, AppendError) {
    let mut tokens = Vec::new();
    loop {
        match stream.append(payload(first + tokens.len() as u64)) {
            Ok(token) => tokens.push(token),
            Err(error) => return (tokens, error),
        }
    }
}

/// Offset after the last record whose receipt has come; receipts come in order.
fn acknowledged(tokens: &[Append], first: u64) -> u64 {
    let receipts = tokens.iter().map_while(|token| token.try_receipt().transpose().unwrap());
    let mut end = first;
    for receipt in receipts {
        assert_eq!(receipt.offset(), end);
        end += 1;
    }
    end
}

/// Every durable record of the stream is what was appended there.
fn check_records(stream: &Stream) {
    let (mut expected, end) = (stream.trimmed(), stream.end());
    for record in stream.read(..end).unwrap() {
        let record = record.unwrap();
        assert_eq!(record.offset(), expected);
        assert!(*record.payload() == *payload(expected), "record {expected}");
        expected += 1;
    }
    assert_eq!(expected, end);
}

/// Appends as soon as there is space; a trim gives it back a little later.
fn append_when_possible(stream: &Stream, offset: u64) -> Append {
    loop {
        match stream.append(payload(offset)) {
            Ok(token) => return token,
            Err(AppendError::NoSpace { .. }) => std::thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    }
}

fn fill_trim_and_go_on(options: &Options, mounted: &Path) {
    let engine = options.open(mounted.join("data")).unwrap();
    let stream = engine.stream(STREAM);
    let mut next = 0;
    for round in 0..3 {
        let (mut tokens, mut error) = append_until_full(&stream, next);
        // A little may still be given back: then there is more to fill.
        while engine.stats().shards[0].no_space.is_none() {
            let (more, last) = append_until_full(&stream, next + tokens.len() as u64);
            tokens.extend(more);
            error = last;
        }
        assert!(matches!(error, AppendError::NoSpace { .. }), "{error}");
        assert!(error.to_string().contains("segment-"), "{error}");
        if round == 1 {
            take_all_space(mounted);
        }
        let end = acknowledged(&tokens, next);
        assert!(end >= next + 16 && stream.end() >= end, "{end} of {}", tokens.len());
        check_records(&stream);

        stream.trim(end - 4).unwrap();
        // What waited for space gets it.
        for (offset, token) in (next..).zip(tokens) {
            assert_eq!(token.wait().unwrap().offset(), offset);
            next = offset + 1;
        }
        for _ in 0..8 {
            let receipt = append_when_possible(&stream, next).wait().unwrap();
            assert_eq!(receipt.offset(), next);
            next += 1;
        }
        check_records(&stream);
        let stats = &engine.stats().shards[0];
        assert!(stats.backpressure_count > 0 && stats.errors.prepare > 0, "{:?}", stats.errors);
        assert!(stats.poisoned.is_none());
    }
    close_when_full(options, engine, mounted, next);
}

fn close_when_full(options: &Options, engine: Engine, mounted: &Path, next: u64) {
    let (tokens, _) = append_until_full(&engine.stream(STREAM), next);
    take_all_space(mounted);
    engine.close().unwrap();
    let mut end = next;
    for token in tokens {
        match token.wait() {
            Ok(receipt) => {
                assert_eq!(receipt.offset(), end);
                end += 1;
            }
            Err(error) => assert!(matches!(error, CommitError::Closed), "{error}"),
        }
    }
    for _ in 0..4 {
        let engine = options.open(mounted.join("data")).unwrap();
        let stream = engine.stream(STREAM);
        assert_eq!(stream.end(), end);
        check_records(&stream);
        engine.close().unwrap();
    }
}

#[test]
fn appends_are_refused_by_name_and_go_on_after_a_trim() {
    let _watchdog = Watchdog::new("full ext4", LIMIT);
    for io in [Io::Uring, Io::Blocking] {
        let Some(mounted) = ext4("4096") else { return };
        fill_trim_and_go_on(&options().io(io), mounted.path());
    }
}

#[test]
fn small_blocks_make_no_difference() {
    let _watchdog = Watchdog::new("full ext4 of small blocks", LIMIT);
    let Some(mounted) = ext4("1024") else { return };
    fill_trim_and_go_on(&options(), mounted.path());
}

#[test]
fn two_shards_share_a_full_disk() {
    let _watchdog = Watchdog::new("full ext4, two shards", LIMIT);
    let Some(mounted) = ext4("4096") else { return };
    let engine = options().shards(2).open(mounted.path().join("data")).unwrap();
    let other = (8..).map(StreamId::new).find(|id| id.shard(2) != STREAM.shard(2)).unwrap();
    let streams = [engine.stream(STREAM), engine.stream(other)];
    let fillers = streams.clone().map(|stream| {
        std::thread::spawn(move || {
            let (tokens, error) = append_until_full(&stream, 0);
            assert!(matches!(error, AppendError::NoSpace { .. }), "{error}");
            tokens
        })
    });
    let tokens = fillers.map(|filler| filler.join().unwrap());
    // One shard may have got nearly all of it. What that one gives back, the other may use.
    let ends = [acknowledged(&tokens[0], 0), acknowledged(&tokens[1], 0)];
    let most = usize::from(ends[1] > ends[0]);
    streams[most].trim(ends[most]).unwrap();
    for tokens in tokens {
        for token in tokens {
            token.wait().unwrap();
        }
    }
    streams.iter().for_each(check_records);
    engine.close().unwrap();
}

/// What a node promises, and has to promise durably, goes into the reserve; what it writes beyond a
/// share of that waits, so that trims still find room.
#[test]
fn the_nodes_own_streams_go_on_for_a_while() {
    let _watchdog = Watchdog::new("own streams on full ext4", LIMIT);
    for io in [Io::Uring, Io::Blocking] {
        let Some(mounted) = ext4("4096") else { return };
        let data = mounted.path().join("data");
        let engine = options().io(io).open(&data).unwrap();
        let (stream, own) = (engine.stream(STREAM), engine.stream(StreamId::new(3)));
        let (tokens, _) = append_until_full(&stream, 0);
        take_all_space(mounted.path());
        let promise = |number: u64| own.append(number.to_le_bytes()).unwrap().wait().unwrap();
        for number in 0..20 {
            assert_eq!(promise(number).offset(), number);
        }
        // Far more than that is refused by name, and not silently.
        let refused = loop {
            match own.append([1; 50_000]) {
                Ok(token) => drop(token),
                Err(error) => break error,
            }
        };
        assert!(matches!(refused, AppendError::NoSpace { .. }), "{refused}");
        let bytes =
            own.read(..).unwrap().map(|record| record.unwrap().payload().len()).sum::<usize>();
        assert!(bytes as u64 <= MIB / 4, "{bytes}");
        // The others have waited all the while, and a trim lets all of them go on.
        let end = acknowledged(&tokens, 0);
        stream.trim(end - 4).unwrap();
        for (offset, token) in (0..).zip(tokens) {
            assert_eq!(token.wait().unwrap().offset(), offset);
        }
        while let Err(error) = own.append(b"again") {
            assert!(matches!(error, AppendError::NoSpace { .. }), "{error}");
            std::thread::yield_now();
        }
        engine.close().unwrap();
        // Also what is opened on a full disk can promise.
        let engine = options().io(io).open(&data).unwrap();
        let (stream, own) = (engine.stream(STREAM), engine.stream(StreamId::new(3)));
        check_records(&stream);
        let last = own.read(own.end() - 1..).unwrap().next().unwrap().unwrap();
        assert_eq!(last.payload(), b"again");
        drop(append_until_full(&stream, stream.end()));
        take_all_space(mounted.path());
        engine.close().unwrap();
        take_all_space(mounted.path());
        let engine = options().io(io).open(&data).unwrap();
        let own = engine.stream(StreamId::new(3));
        own.append(b"on a full disk").unwrap().wait().unwrap();
        engine.close().unwrap();
    }
}

/// One record, as a leader of `epoch` sends it.
fn frame(epoch: u64, offset: u64) -> Vec<u8> {
    let record = payload(offset);
    let payload = [&(record.len() as u32).to_le_bytes(), &*record].concat();
    let header = FrameHeader::new(FrameKind::Data, STREAM.get(), epoch, offset, 1, 0, &payload);
    [header.as_bytes(), &payload].concat()
}

/// A follower changes its leader though frames of the old one will wait for ever, for all it knows.
#[test]
fn frames_that_wait_for_space_are_never_sealed_behind_a_fence() {
    let _watchdog = Watchdog::new("a fence on full ext4", LIMIT);
    for io in [Io::Uring, Io::Blocking] {
        let Some(mounted) = ext4("4096") else { return };
        let data = mounted.path().join("data");
        let engine = options().io(io).open(&data).unwrap();
        let stream = engine.stream(STREAM);
        let mut tokens = Vec::new();
        let refused = loop {
            match stream.append_frame(&frame(1, tokens.len() as u64)) {
                Ok(token) => tokens.push(token),
                Err(error) => break error,
            }
        };
        assert!(matches!(refused, AppendError::NoSpace { .. }), "{refused}");
        take_all_space(mounted.path());

        engine.close_epoch();
        engine.fence_frames();
        engine.barrier().unwrap().wait().unwrap();
        let end = stream.end();
        assert!(end >= 16 && end < tokens.len() as u64, "{end} of {}", tokens.len());
        let told = |token: &AppendBatch| token.try_receipt().is_some();
        assert!(tokens[..end as usize].iter().all(told), "they were sealed before");
        assert!(!tokens[end as usize..].iter().any(told), "they wait for space");

        stream.trim(end - 4).unwrap();
        for token in tokens.drain(end as usize..) {
            let refused = token.wait().unwrap_err();
            let expected = Refusal::Fenced { stream: STREAM };
            assert!(matches!(&refused, CommitError::Refused(told) if *told == expected));
        }
        assert_eq!(stream.end(), end);
        // The new leader's history goes on where that of the old one ended here.
        let token = loop {
            match stream.append_frame(&frame(2, end)) {
                Ok(token) => break token,
                Err(AppendError::NoSpace { .. }) => std::thread::yield_now(),
                Err(error) => panic!("{error}"),
            }
        };
        assert_eq!(token.wait().unwrap().offsets(), end..end + 1);
        let epochs = [EpochStart { epoch: 1, start: 0 }, EpochStart { epoch: 2, start: end }];
        for engine in [Some(engine), None] {
            let engine = engine.unwrap_or_else(|| options().io(io).open(&data).unwrap());
            let stream = engine.stream(STREAM);
            assert_eq!((stream.end(), stream.epochs()), (end + 1, epochs.to_vec()));
            check_records(&stream);
            engine.close().unwrap();
        }
    }
}

/// More of them than fit in all of the reserve: what they fill is freed by itself.
#[test]
fn barriers_go_on_while_records_wait_for_space() {
    let _watchdog = Watchdog::new("barriers on full ext4", LIMIT);
    for io in [Io::Uring, Io::Blocking] {
        let Some(mounted) = ext4("4096") else { return };
        let engine = options().io(io).open(mounted.path().join("data")).unwrap();
        let stream = engine.stream(STREAM);
        let (tokens, _) = append_until_full(&stream, 0);
        take_all_space(mounted.path());
        let reserved = engine.stats().shards[0].segments.reserved as u64;
        let barriers = (reserved + 2) * MIB / 4096;
        for _ in 0..barriers {
            engine.barrier().unwrap().wait().unwrap();
        }
        let end = acknowledged(&tokens, 0);
        assert!(end < tokens.len() as u64 && engine.stats().shards[0].no_space.is_some());
        stream.trim(end - 4).unwrap();
        for (offset, token) in (0..).zip(tokens) {
            assert_eq!(token.wait().unwrap().offset(), offset);
        }
        check_records(&stream);
        engine.close().unwrap();
    }
}

#[test]
fn xfs_is_the_same() {
    let _watchdog = Watchdog::new("full xfs", LIMIT);
    let Some(mounted) = xfs() else { return };
    fill_trim_and_go_on(&options(), mounted.path());
}

#[test]
fn btrfs_is_the_same() {
    let _watchdog = Watchdog::new("full btrfs", LIMIT);
    let Some(mounted) = btrfs() else { return };
    fill_trim_and_go_on(&options(), mounted.path());
}

#[test]
fn a_kill_on_a_full_btrfs_loses_no_segment() {
    let _watchdog = Watchdog::new("kill on full btrfs", LIMIT);
    let Some(mounted) = btrfs() else { return };
    full_and_killed(mounted.path());
}

#[test]
fn no_space_at_all_refuses_a_new_directory() {
    let _watchdog = Watchdog::new("new on full ext4", LIMIT);
    let Some(mounted) = ext4("4096") else { return };
    let data = mounted.path().join("data");
    std::fs::create_dir(&data).unwrap();
    take_space(&mounted.path().join("most"), 64 << 10);
    let error = options().open(&data).err().unwrap();
    assert!(matches!(error, OpenError::NoSpace { segment_bytes: MIB, .. }), "{error}");
    assert_eq!(error.kind(), OpenErrorKind::Io);
    take_all_space(mounted.path());
    let error = options().open(&data).err().unwrap();
    assert_eq!(error.kind(), OpenErrorKind::Io, "{error}");
    std::fs::remove_file(mounted.path().join("all")).unwrap();
    std::fs::remove_file(mounted.path().join("most")).unwrap();
    let engine = options().open(&data).unwrap();
    engine.stream(STREAM).append(payload(0)).unwrap().wait().unwrap();
    engine.close().unwrap();
}

/// Five times in a row at the same turn, so that what one turn leaves behind adds up.
#[test]
fn an_end_at_any_turn_after_opening_loses_no_segment() {
    let _watchdog = Watchdog::new("ended at any turn on full ext4", LIMIT);
    let Some(mounted) = ext4("4096") else { return };
    let data = mounted.path().join("data");
    let engine = options().open(&data).unwrap();
    drop(append_until_full(&engine.stream(STREAM), 0));
    engine.close().unwrap();
    for turns in 0..8 {
        for _ in 0..5 {
            take_all_space(mounted.path());
            let mut shard = options().open_shard(&data).unwrap();
            for _ in 0..turns {
                shard.run_once(Some(Duration::from_millis(1))).unwrap();
            }
            shard.abandon();
        }
    }
    let engine = options().open(&data).unwrap();
    check_records(&engine.stream(STREAM));
    engine.close().unwrap();
}

#[test]
fn a_checkpoint_of_several_batches_fits_in_the_reserve() {
    let _watchdog = Watchdog::new("many streams on full ext4", LIMIT);
    let Some(mounted) = ext4("4096") else { return };
    let data = mounted.path().join("data");
    let engine = options().open(&data).unwrap();
    let streams = || (8..8 + STREAMS).map(|id| engine.stream(StreamId::new(id)));
    let tokens: Vec<_> = streams().map(|stream| stream.append(b"x").unwrap()).collect();
    for token in tokens {
        token.wait().unwrap();
    }
    drop(append_until_full(&engine.stream(STREAM), 0));
    take_all_space(mounted.path());
    engine.close().unwrap();
    for cycle in 0..6 {
        take_all_space(mounted.path());
        if cycle % 2 == 0 {
            let mut opened = Role::start("idle", data.to_str().unwrap());
            let line = opened.hear().unwrap();
            assert!(line.starts_with("0 "), "{line}");
            opened.kill();
        }
        let engine = options().open(&data).unwrap();
        assert_eq!(engine.streams().len() as u64, STREAMS + 1);
        check_records(&engine.stream(STREAM));
        engine.close().unwrap();
    }
}

/// Their checkpoint is longer than one batch of 256 KiB can be.
const STREAMS: u64 = 6000;

/// The roles of this binary's children.
#[test]
fn child() {
    let Some((role, directory)) = child::role() else { return };
    let engine = match options().lock_wait(Duration::from_secs(20)).open(directory) {
        Ok(engine) => engine,
        Err(error) => return child::say(&format!("refused {error}")),
    };
    let stream = engine.stream(STREAM);
    child::say(&format!("{} {}", stream.trimmed(), stream.end()));
    match role.as_str() {
        "fill" => {
            let first = stream.end();
            let (tokens, _) = append_until_full(&stream, first);
            child::say(&format!("full {}", acknowledged(&tokens, first)));
            // What waits for space may still get it.
            std::mem::forget(tokens);
        }
        // Many small changes, none of which frees a segment.
        "trim" => {
            for before in stream.trimmed().. {
                if stream.trim(before / 64).is_err() {
                    break;
                }
            }
        }
        "idle" => {}
        other => panic!("no role {other}"),
    }
    loop {
        std::thread::park();
    }
}

fn full_and_killed(mounted: &Path) {
    let data = mounted.join("data");
    let data = data.to_str().unwrap();
    let mut filling = Role::start("fill", data);
    assert_eq!(filling.hear().unwrap(), "0 0");
    let full = filling.hear().unwrap();
    let acknowledged: u64 = full.strip_prefix("full ").unwrap().parse().unwrap();
    assert!(acknowledged > 16);
    take_all_space(mounted);
    filling.kill();

    for cycle in 0..CYCLES {
        // Whatever the engine gives back, somebody else takes.
        take_all_space(mounted);
        let role = ["idle", "trim", "fill"][cycle as usize % 3];
        let mut opened = Role::start(role, data);
        if cycle % 4 != 3 {
            let line = opened.hear().unwrap();
            let end = line.split(' ').next_back().and_then(|end| end.parse::<u64>().ok());
            assert!(end >= Some(acknowledged), "cycle {cycle}, {role}: {line}");
        }
        // From within the opening to behind its last write.
        std::thread::sleep(Duration::from_micros(u64::from(cycle) * 700));
        opened.kill();
    }
    take_all_space(mounted);
    let engine = options().open(data).unwrap();
    let stream = engine.stream(STREAM);
    check_records(&stream);
    assert!(stream.end() >= acknowledged);
    let end = stream.end();
    stream.trim(end - 1).unwrap();
    for offset in end..end + 40 {
        append_when_possible(&stream, offset).wait().unwrap();
    }
    engine.close().unwrap();
    let engine = options().open(data).unwrap();
    check_records(&engine.stream(STREAM));
}

const CYCLES: u32 = 24;

#[test]
fn a_kill_on_a_full_ext4_loses_no_segment() {
    let _watchdog = Watchdog::new("kill on full ext4", LIMIT);
    let Some(mounted) = ext4("4096") else { return };
    full_and_killed(mounted.path());
}

#[test]
fn a_kill_on_a_full_xfs_loses_no_segment() {
    let _watchdog = Watchdog::new("kill on full xfs", LIMIT);
    let Some(mounted) = xfs() else { return };
    full_and_killed(mounted.path());
}
