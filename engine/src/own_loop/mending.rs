//! Damaged records are put back while the shard runs, and whatever ends it in between.

use std::collections::BTreeMap;

use super::*;
use crate::disk::sim::{SimDisk, SimHandle};
use crate::error::{CommitError, Refusal};
use crate::format::{FrameHeader, FrameKind, VerifiedFrame};
use crate::reader::Salvaged;
use crate::segments::segment_name;
use crate::subscription::FrameSlice;

const STREAMS: [StreamId; 3] = [StreamId::new(3), StreamId::new(7), StreamId::new(8)];
const STREAM: StreamId = STREAMS[1];
const RECORDS: u64 = 120;

fn open(sim: &SimHandle) -> Shard {
    let clock = Clock::Manual(sim.clock());
    let options = Options::new().batch_bytes_max(16 << 10).pool_bytes(1 << 20).idle_seal(None);
    options.open_on(Box::new(SimDisk::new(sim.clone())), [4; 16], 256 << 10, clock).unwrap()
}

fn payload(stream: StreamId, offset: u64) -> Vec<u8> {
    let mut payload = [stream.get().to_le_bytes(), offset.to_le_bytes()].concat();
    payload.resize(3000, offset as u8);
    payload
}

/// Turns until there is nothing to be done.
fn settle(shard: &mut Shard) {
    while shard.run_once(Some(Duration::from_millis(1))).unwrap() > 0 {}
    for _ in 0..40 {
        shard.run_once(Some(Duration::from_millis(1))).unwrap();
    }
}

/// What another engine has.
type Frames = BTreeMap<(StreamId, u64), FrameSlice>;

/// A device with several sealed segments, whose shard was closed, and every frame of it.
fn lived() -> (SimHandle, Frames) {
    let sim = SimHandle::new(7);
    let mut shard = open(&sim);
    for offset in 0..RECORDS {
        for stream in STREAMS {
            drop(shard.append(stream, payload(stream, offset)).unwrap());
        }
        // Batches of one frame of each stream, and of more.
        if offset % 3 == 0 {
            settle(&mut shard);
        }
        if offset == RECORDS / 2 {
            drop(shard.truncate(STREAM, offset + 1, 5).unwrap());
        }
    }
    settle(&mut shard);
    let mut frames = Frames::new();
    for stream in STREAMS {
        let mut reader = shard.frames(stream, 0);
        while let [frame] = reader.next_batch(1).unwrap().as_slice() {
            frames.insert((stream, frame.base_offset), frame.clone());
        }
    }
    shard.close().unwrap();
    (sim, frames)
}

/// Turns a bit over in the payload of a record; in which file.
fn rot(sim: &SimHandle, stream: StreamId, offset: u64) -> String {
    let wanted = &payload(stream, offset)[..24];
    let segments = sim.list().into_iter().filter(|entry| entry.name.starts_with("segment"));
    let found = segments.filter_map(|entry| {
        let bytes = sim.bytes(&entry.name)?;
        Some((entry.name, bytes.windows(24).position(|window| window == wanted)?))
    });
    let found: Vec<_> = found.collect();
    let [(name, at)] = found.as_slice() else { panic!("it is there {} times", found.len()) };
    assert!(sim.flip(name, *at as u64 + 20, 3));
    name.clone()
}

/// Which records cannot be read; all others are right.
fn unreadable(shard: &Shard) -> Vec<(StreamId, u64)> {
    let all = STREAMS.into_iter().flat_map(|stream| (0..RECORDS).map(move |o| (stream, o)));
    let is_damaged = |(stream, offset): &(StreamId, u64)| match shard
        .read(*stream, *offset..=*offset)
        .unwrap()
        .next()
        .unwrap()
    {
        Ok(record) => {
            assert!(record.payload() == payload(*stream, *offset), "{stream} {offset}");
            false
        }
        Err(ReadError::Corrupt { .. } | ReadError::Io { .. }) => true,
        Err(error) => panic!("{error}"),
    };
    all.filter(is_damaged).collect()
}

/// Gets everything out of the segment that holds a record.
fn mend(shard: &mut Shard, frames: &Frames, offset: u64) -> Result<usize, CloseError> {
    let parts: Vec<_> = shard.salvage(STREAM, offset).unwrap().collect();
    let (mut tokens, mut damaged) = (Vec::new(), 0);
    for part in parts {
        let sources = match part {
            Salvaged::Sound(frame) => vec![frame],
            Salvaged::Damaged(part) => {
                damaged += 1;
                let inside = |frame: &&FrameSlice| {
                    frame.stream == part.stream
                        && frame.base_offset < part.offsets.end
                        && part.offsets.start < frame.base_offset + u64::from(frame.count)
                };
                frames.values().filter(inside).cloned().collect()
            }
        };
        for frame in sources {
            loop {
                match shard.mend(frame.stream, &frame.bytes) {
                    Ok(token) => break tokens.push(token),
                    Err(MendError::Append(AppendError::Full { .. })) => {
                        shard.run_once(Some(Duration::from_millis(1)))?;
                    }
                    Err(error) => panic!("{error}"),
                }
            }
        }
    }
    while tokens.iter().any(|token| token.try_receipt().is_none()) {
        shard.run_once(Some(Duration::from_millis(1)))?;
    }
    for token in tokens {
        token.wait().expect("it was durable before");
    }
    Ok(damaged)
}

#[test]
fn a_damaged_frame_comes_back_and_its_segment_goes() {
    let (sim, frames) = lived();
    let file = rot(&sim, STREAM, 20);
    let mut shard = open(&sim);
    let lost = unreadable(&shard);
    assert!(lost.contains(&(STREAM, 20)) && lost.iter().all(|(stream, _)| *stream == STREAM));
    let Salvaged::Damaged(part) = shard
        .salvage(STREAM, 20)
        .unwrap()
        .find(|part| matches!(part, Salvaged::Damaged(_)))
        .unwrap()
    else {
        panic!("it is damaged")
    };
    assert_eq!(part.offsets.clone().map(|offset| (STREAM, offset)).collect::<Vec<_>>(), lost);
    let own = &frames[&(STREAM, part.offsets.start)];
    let header = VerifiedFrame::verify(&own.bytes).unwrap().header;
    assert!(!part.contradicts(&header));
    let other = FrameHeader::new(
        FrameKind::Data,
        STREAM.get(),
        own.epoch,
        own.base_offset,
        own.count,
        header.timestamp_ns.get(),
        b"other",
    );
    assert!(part.contradicts(&other), "the index knows what was there");
    assert_eq!(mend(&mut shard, &frames, 20).unwrap(), 1);
    assert_eq!(unreadable(&shard), []);
    settle(&mut shard);
    let names: Vec<_> =
        shard.shared.index().segments.values().map(|s| segment_name(s.number)).collect();
    assert!(!names.contains(&file), "nothing counts in {file}: {names:?}");
    assert!(shard.stats().moved_records > 0);
    shard.close().unwrap();
    assert_eq!(unreadable(&open(&sim)), []);
}

#[test]
fn an_index_that_is_damaged_loses_no_stream_that_another_engine_has() {
    let (sim, frames) = lived();
    let mut shard = open(&sim);
    let name = {
        let index = shard.shared.index();
        segment_name(index.place_of(STREAM, 20).unwrap().number)
    };
    // Its footer is wanted by every read; the open has taken it from there before.
    assert!(sim.flip(&name, (256 << 10) - 4096 + 20, 1));
    let lost = unreadable(&shard);
    assert!(lost.contains(&(STREAM, 20)) && lost.len() > 30);
    assert!(mend(&mut shard, &frames, 20).unwrap() >= STREAMS.len());
    assert_eq!(unreadable(&shard), []);
    shard.close().unwrap();
    assert_eq!(unreadable(&open(&sim)), []);
}

#[test]
fn whatever_ends_it_in_between_nothing_else_is_lost() {
    let (sim, frames) = lived();
    rot(&sim, STREAM, 20);
    rot(&sim, STREAM, 90);
    let lost = unreadable(&open(&sim));
    let (mut ended, mut finished) = (0, false);
    for step in 0.. {
        for is_kill in [false, true] {
            let sim = sim.fork();
            let mut shard = open(&sim);
            let at = sim.operations() + step;
            if is_kill {
                sim.kill_at(at)
            } else {
                sim.crash_at(at)
            }
            let outcome = mend(&mut shard, &frames, 20).and_then(|_| mend(&mut shard, &frames, 90));
            finished = outcome.is_ok();
            ended += u32::from(!finished);
            shard.abandon();
            sim.kill();
            sim.kill_at(u64::MAX);
            sim.crash_at(u64::MAX);
            let mut shard = open(&sim);
            let left = unreadable(&shard);
            assert!(left.iter().all(|record| lost.contains(record)), "step {step}: {left:?}");
            assert!(!finished || left.is_empty(), "step {step}: {left:?}");
            for (_, offset) in left {
                mend(&mut shard, &frames, offset).unwrap();
            }
            settle(&mut shard);
            assert_eq!(unreadable(&shard), [], "step {step}");
            shard.close().unwrap();
            assert_eq!(unreadable(&open(&sim)), [], "step {step}");
        }
        if finished {
            break;
        }
    }
    assert!(ended > 10, "only {ended} of them ended in between");
}

#[test]
fn a_trim_or_cut_meanwhile_wins() {
    let (sim, frames) = lived();
    rot(&sim, STREAM, 20);
    let mut shard = open(&sim);
    let frame =
        &frames[&(STREAM, frames.keys().filter(|k| k.0 == STREAM && k.1 <= 20).last().unwrap().1)];
    let token = shard.mend(STREAM, &frame.bytes).unwrap();
    let trim = shard.trim(STREAM, 70).unwrap();
    settle(&mut shard);
    trim.wait().unwrap();
    let refused = token.wait().expect_err("nothing of it counts");
    assert!(matches!(refused, CommitError::Refused(Refusal::Dead { .. })), "{refused}");
    assert!(matches!(shard.salvage(STREAM, 20), Err(SalvageError::Gone { .. })));

    let last = frames.values().rfind(|frame| frame.stream == STREAM).unwrap();
    let token = shard.mend(STREAM, &last.bytes).unwrap();
    drop(shard.truncate(STREAM, last.base_offset, 9).unwrap());
    settle(&mut shard);
    assert!(token.wait().is_err(), "it is cut");
    assert_eq!(shard.end(STREAM), last.base_offset);
    let beyond = shard.mend(STREAM, &last.bytes).expect_err("it is not durable any more");
    assert!(matches!(beyond, MendError::Beyond { .. }), "{beyond}");
    sim.kill();
    shard.abandon();
    let shard = open(&sim);
    assert_eq!((shard.trimmed(STREAM), shard.end(STREAM)), (70, last.base_offset));
    assert!(shard.read(STREAM, ..).unwrap().all(|record| record.is_ok()));
}

#[test]
fn the_segment_that_is_being_written_is_left_for_later() {
    let sim = SimHandle::new(7);
    let mut shard = open(&sim);
    drop(shard.append(STREAM, payload(STREAM, 0)).unwrap());
    settle(&mut shard);
    let refused = shard.salvage(STREAM, 0).err().expect("it is not sealed");
    assert!(matches!(refused, SalvageError::NotSealed { .. }), "{refused}");
    let refused = shard.salvage(STREAM, 1).err().expect("there is none");
    assert!(matches!(refused, SalvageError::NotHeld { .. }), "{refused}");
}
