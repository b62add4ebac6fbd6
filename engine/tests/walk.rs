//! Frames of many streams that are read together.

use std::collections::BTreeMap;
use std::time::Duration;

use ringwal_engine::disk::sim::{Kind, SimDisk, SimHandle};
use ringwal_engine::format::VerifiedFrame;
use ringwal_engine::{Clock, FramePiece, FrameWalk, Options, ReadError, Shard, StreamId};

const SEGMENT_BYTES: u64 = 256 << 10;
const TURN: Duration = Duration::from_millis(1);
const EIO: i32 = 5;

type Wanted = Vec<(StreamId, u64)>;
/// Offset, epoch and bytes.
type Records = Vec<(u64, u64, Vec<u8>)>;

fn stream(number: u64) -> StreamId {
    StreamId::new(10 + number)
}

fn open(sim: &SimHandle) -> Shard {
    let clock = Clock::Manual(sim.clock());
    let options = Options::new().batch_bytes_max(16 << 10);
    options.open_on(Box::new(SimDisk::new(sim.clone())), [4; 16], SEGMENT_BYTES, clock).unwrap()
}

fn turn_until(shard: &mut Shard, mut done: impl FnMut(&Shard) -> bool) {
    for _ in 0..100_000 {
        if done(shard) {
            return;
        }
        shard.run_once(Some(TURN)).unwrap();
    }
    panic!("no progress");
}

/// Appends to each of these streams in turn, a batch each time.
fn append(shard: &mut Shard, streams: &[u64], rounds: u64, length: usize) {
    for round in 0..rounds {
        let record = |number: &u64| vec![(*number + round) as u8; length];
        let append = |number: &u64| shard.append(stream(*number), record(number)).unwrap();
        let tokens: Vec<_> = streams.iter().map(append).collect();
        turn_until(shard, |_| tokens.iter().all(|token| token.try_receipt().is_some()));
    }
}

fn truncate(shard: &mut Shard, number: u64, start: u64, epoch: u64) {
    let change = shard.truncate(stream(number), start, epoch).unwrap();
    turn_until(shard, |_| change.try_receipt().is_some());
}

fn trim(shard: &mut Shard, number: u64, before: u64) {
    let change = shard.trim(stream(number), before).unwrap();
    turn_until(shard, |_| change.try_receipt().is_some());
}

/// What a walk has given.
#[derive(Default)]
struct Walked {
    records: BTreeMap<StreamId, Records>,
    failed: BTreeMap<StreamId, ReadError>,
    pieces: usize,
}

impl Walked {
    /// Takes a piece; each stream goes on where it was. What has ended or failed is wanted no more.
    fn take(&mut self, piece: FramePiece, wanted: &mut Wanted) {
        self.pieces += 1;
        for frame in &piece.frames {
            let known = wanted.iter_mut().find(|(id, _)| *id == frame.stream);
            let (id, next) = known.expect("it was wanted");
            let verified = VerifiedFrame::verify(&frame.bytes).unwrap();
            assert_eq!(frame.base_offset, *next, "stream {id} goes on without a gap");
            assert_eq!(verified.header.base_offset.get(), *next);
            for record in verified.records() {
                let records = self.records.entry(*id).or_default();
                records.push((*next, frame.epoch, record.to_vec()));
                *next += 1;
            }
        }
        wanted.retain(|(id, _)| {
            !piece.ended.contains(id) && !piece.failed.iter().any(|(failed, _)| failed == id)
        });
        self.failed.extend(piece.failed);
    }

    fn go_on(&mut self, walk: &mut FrameWalk, mut wanted: Wanted, bytes_max: usize) {
        while !wanted.is_empty() {
            let piece = walk.next_piece(&wanted, bytes_max);
            assert!(
                !(piece.frames.is_empty() && piece.ended.is_empty() && piece.failed.is_empty())
            );
            self.take(piece, &mut wanted);
        }
    }

    fn all(shard: &Shard, wanted: &Wanted, bytes_max: usize) -> Self {
        let mut walked = Self::default();
        walked.go_on(&mut shard.walk_frames(), wanted.clone(), bytes_max);
        walked
    }

    /// Compares with what is read one stream at a time.
    fn check(&self, shard: &Shard, wanted: &Wanted) {
        for (id, from) in wanted.iter().filter(|(id, _)| !self.failed.contains_key(id)) {
            let none = Vec::new();
            let walked = self.records.get(id).unwrap_or(&none);
            assert!(*walked == records(shard, *id, *from), "stream {id} from {from}");
        }
    }
}

fn records(shard: &Shard, id: StreamId, from: u64) -> Records {
    let records = shard.read(id, from..).unwrap().map(Result::unwrap);
    records.map(|record| (record.offset(), record.epoch(), record.payload().to_vec())).collect()
}

/// Segment file, and byte in it, of a frame.
fn place(sim: &SimHandle, shard: &Shard, id: StreamId, offset: u64) -> (String, u64) {
    let frame = shard.frames(id, offset).next_batch(1).unwrap().remove(0).bytes;
    let find = |name: String| {
        let bytes = sim.bytes(&name)?;
        let at = bytes.windows(frame.len()).position(|window| *window == frame[..])?;
        Some((name, at as u64))
    };
    sim.list().into_iter().find_map(|entry| find(entry.name)).expect("it is in a segment")
}

#[test]
fn interleaved_streams_are_walked_once() {
    let sim = SimHandle::new(1);
    let mut shard = open(&sim);
    let streams: Vec<u64> = (0..16).collect();
    append(&mut shard, &streams, 120, 500);
    let whole: Wanted = streams.iter().map(|number| (stream(*number), 0)).collect();
    // One of them comes to its end in an old segment, one is not there, one is in step.
    append(&mut shard, &streams[1..], 30, 500);
    let apart: Wanted =
        (0..18).map(|number| (stream(number), (number * 9) % 121 + 30 * (number / 17))).collect();
    for sealed in [false, true] {
        for wanted in [&whole, &apart] {
            for bytes_max in [1, 10_000, 64 << 10] {
                let walked = Walked::all(&shard, wanted, bytes_max);
                walked.check(&shard, wanted);
                assert!(walked.failed.is_empty());
                let journal = sim.list().len() * SEGMENT_BYTES as usize;
                let pieces = 2 * journal / bytes_max + 8;
                assert!(walked.pieces <= pieces, "{} of {pieces} pieces", walked.pieces);
            }
        }
        if !sealed {
            // Opening seals what there is.
            shard.close().unwrap();
            shard = open(&sim);
        }
    }
}

#[test]
fn frames_that_lie_far_apart_do_not_keep_what_lies_between() {
    let sim = SimHandle::new(2);
    let mut shard = open(&sim);
    for _ in 0..10 {
        append(&mut shard, &[0], 1, 100);
        append(&mut shard, &[1, 2], 1, 3000);
    }
    let wanted = vec![(stream(0), 0)];
    let piece = shard.walk_frames().next_piece(&wanted, 128 << 10);
    assert_eq!((piece.frames.len(), &piece.ended[..]), (10, &[stream(0)][..]));
    let starts: Vec<_> = piece.frames.iter().map(|frame| frame.bytes.as_ptr() as usize).collect();
    let length = piece.frames[0].bytes.len();
    assert!(starts.windows(2).all(|two| two[1] - two[0] == length), "copied together");
}

#[test]
fn a_frame_that_is_longer_than_a_piece_comes_whole_and_a_part_as_a_frame() {
    let sim = SimHandle::new(3);
    let mut shard = open(&sim);
    let token = shard.append_batch(stream(0), &[[1u8; 1000]; 12]).unwrap();
    turn_until(&mut shard, |_| token.try_receipt().is_some());
    append(&mut shard, &[0, 1], 3, 10_000);
    for from in [0, 5] {
        let wanted = vec![(stream(0), from), (stream(1), 1)];
        for bytes_max in [1, 12_000, 1 << 20] {
            Walked::all(&shard, &wanted, bytes_max).check(&shard, &wanted);
        }
    }
}

#[test]
fn moved_frames_come_in_the_order_of_their_offsets() {
    let sim = SimHandle::new(4);
    let mut shard = open(&sim);
    // Quiet streams keep segments alive until their records are moved behind newer ones.
    for round in 0..12 {
        append(&mut shard, &[0, 1], 1, 300);
        append(&mut shard, &[2], 19, 13_000);
        let end = shard.end(stream(2));
        trim(&mut shard, 2, end - 2);
        for _ in 0..100 {
            shard.run_once(Some(TURN)).unwrap();
        }
        let wanted: Wanted = (0..3).map(|n| (stream(n), shard.trimmed(stream(n)))).collect();
        for bytes_max in [1, 20_000, 1 << 20] {
            let walked = Walked::all(&shard, &wanted, bytes_max);
            walked.check(&shard, &wanted);
            assert!(walked.failed.is_empty(), "{round}: {:?}", walked.failed);
        }
    }
    assert!(shard.stats().moved_records > 0);
}

#[test]
fn trims_and_cuts_during_a_walk_concern_nobody_else() {
    for bytes_max in [1, 8000, 40_000] {
        let sim = SimHandle::new(5);
        let mut shard = open(&sim);
        append(&mut shard, &[0, 1, 2, 3], 100, 700);
        let mut wanted: Wanted = (0..4).map(|number| (stream(number), 0)).collect();
        let (mut walk, mut walked) = (shard.walk_frames(), Walked::default());
        walked.take(walk.next_piece(&wanted, bytes_max), &mut wanted);
        let read = |wanted: &Wanted, number| {
            wanted.iter().find(|(id, _)| *id == stream(number)).unwrap().1
        };
        trim(&mut shard, 1, 80);
        truncate(&mut shard, 2, 60, 7);
        // A cut of what has been read: the caller goes back.
        truncate(&mut shard, 3, 0, 7);
        wanted.iter_mut().filter(|(id, _)| *id == stream(3)).for_each(|(_, next)| *next = 0);
        walked.records.remove(&stream(3));
        shard.set_epoch(7);
        append(&mut shard, &[0, 1, 2, 3], 3, 100);
        let before = read(&wanted, 1);
        walked.go_on(&mut walk, wanted, bytes_max);
        let failed: Vec<_> = walked.failed.values().collect();
        let [ReadError::Trimmed { offset, trimmed: 80, .. }] = failed[..] else {
            panic!("{failed:?}")
        };
        assert_eq!(*offset, before);
        for number in [0, 2, 3] {
            assert!(walked.records[&stream(number)] == records(&shard, stream(number), 0));
        }
        let epochs: Vec<_> =
            walked.records[&stream(2)].iter().map(|(_, epoch, _)| *epoch).collect();
        assert_eq!((epochs[59], epochs[60], epochs.len()), (0, 7, 63));
    }
}

#[test]
fn what_a_damaged_place_holds_is_in_nobodys_way() {
    for sealed in [false, true] {
        let sim = SimHandle::new(6);
        let mut shard = open(&sim);
        append(&mut shard, &[0, 1, 2], 150, 900);
        if sealed {
            shard.close().unwrap();
            shard = open(&sim);
        }
        let wanted: Wanted = (0..3).map(|number| (stream(number), 0)).collect();
        let expected = [0, 2].map(|number| records(&shard, stream(number), 0));
        let (file, at) = place(&sim, &shard, stream(1), 33);
        assert!(sim.flip(&file, at + 100, 3));
        for bytes_max in [1, 30_000] {
            let walked = Walked::all(&shard, &wanted, bytes_max);
            assert_eq!(walked.records[&stream(1)].len(), 33, "up to the damage");
            let error = &walked.failed[&stream(1)];
            let is_named = matches!(error, ReadError::Corrupt { offset: 33, position, .. }
                if *position == at);
            assert!(is_named && error.to_string().contains(&file), "{error}");
            assert!([0, 2].map(|number| walked.records[&stream(number)].clone()) == expected);
            assert_eq!(walked.failed.len(), 1);
        }
    }
}

#[test]
fn damage_in_the_index_of_a_segment_stops_whom_it_concerns() {
    let sim = SimHandle::new(7);
    let mut shard = open(&sim);
    append(&mut shard, &[0, 1, 2], 20, 900);
    shard.close().unwrap();
    let mut shard = open(&sim);
    append(&mut shard, &[0, 1, 2], 5, 900);
    let (file, at) = place(&sim, &shard, stream(1), 7);
    // The entry of that frame: base, count, position.
    let entry = [&7u64.to_le_bytes()[..], &1u32.to_le_bytes(), &(at as u32).to_le_bytes()].concat();
    let bytes = sim.bytes(&file).unwrap();
    let at = bytes.windows(entry.len()).position(|window| *window == entry[..]).unwrap() as u64;
    assert!(sim.flip(&file, at + 1, 0), "another base");
    let wanted: Wanted = (0..3).map(|number| (stream(number), 0)).collect();
    let walked = Walked::all(&shard, &wanted, 1 << 20);
    assert!(matches!(walked.failed[&stream(1)], ReadError::Corrupt { .. }));
    assert_eq!((walked.failed.len(), walked.records[&stream(2)].len()), (1, 25));
    // Its footer: then none of that segment can be found.
    assert!(sim.flip(&file, SEGMENT_BYTES - 4096 + 20, 0));
    let walked = Walked::all(&shard, &wanted, 1 << 20);
    assert_eq!((walked.failed.len(), walked.records.len()), (3, 0));
    let behind = (0..3).map(|number| (stream(number), 20)).collect();
    let walked = Walked::all(&shard, &behind, 1 << 20);
    assert!(walked.failed.is_empty());
    walked.check(&shard, &behind);
}

#[test]
fn a_block_that_cannot_be_read_hides_no_other() {
    let sim = SimHandle::new(8);
    let mut shard = open(&sim);
    append(&mut shard, &[0, 1, 2, 3], 4, 1500);
    let wanted: Wanted = (0..4).map(|number| (stream(number), 0)).collect();
    // A piece of 16 frames, then of 8, 4, 2 and 1, and the header of that one alone.
    for failing in 1..=6 {
        (0..failing).for_each(|_| sim.fail_next(Kind::Read, EIO));
        let mut left = wanted.clone();
        let mut walked = Walked::default();
        walked.take(shard.walk_frames().next_piece(&wanted, 1 << 20), &mut left);
        let failed: Vec<_> = walked.failed.keys().copied().collect();
        let is_lost = failing == 6;
        assert_eq!(failed, if is_lost { vec![stream(0)] } else { Vec::new() }, "{failing} errors");
        let came: Vec<_> = walked.records.iter().map(|(id, r)| (*id, r.len())).collect();
        let expected = (u64::from(is_lost)..4).map(|number| (stream(number), 4));
        assert_eq!(came, expected.collect::<Vec<_>>(), "{failing} errors");
    }
}
