//! What replication is built on: epochs that begin with a record, frames that travel, skips, and
//! sealed frames for an event loop.

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use ringwal_engine::format::{FrameHeader, FrameKind, VerifiedFrame};
use ringwal_engine::offline::verify;
use ringwal_engine::{
    AppendError, CommitError, Engine, EpochStart, FrameSlice, Io, Options, ReadError, Refusal,
    SealedFrames, Stream, StreamId, Subscription,
};
use zerocopy::IntoBytes;

const STREAM: StreamId = StreamId::new(7);
const LONG: Duration = Duration::from_secs(10);

fn options(shards: u16) -> Options {
    Engine::options().shards(shards).segment_bytes(1 << 20).pool_bytes(4 << 20)
}

/// Runs a property with one shard and with two, on io_uring and without it.
fn everywhere(property: impl Fn(Options, &Path)) {
    for shards in [1, 2] {
        for io in [Io::Uring, Io::Blocking] {
            let directory = tempfile::tempdir().unwrap();
            property(options(shards).io(io), directory.path());
        }
    }
}

fn starts(table: &[(u64, u64)]) -> Vec<EpochStart> {
    table.iter().map(|(epoch, start)| EpochStart { epoch: *epoch, start: *start }).collect()
}

/// Offset and epoch of a record that is durable.
fn append(stream: &Stream, record: impl AsRef<[u8]>) -> (u64, u64) {
    let receipt = stream.append(record).unwrap().wait().unwrap();
    (receipt.offset(), receipt.epoch())
}

/// Offset, epoch and bytes of all records.
fn records(stream: &Stream) -> Vec<(u64, u64, Vec<u8>)> {
    let records = stream.read(..).unwrap().map(Result::unwrap);
    records.map(|record| (record.offset(), record.epoch(), record.payload().to_vec())).collect()
}

/// All frames from `from` on, contiguous and sound.
fn frames(stream: &Stream, from: u64, bytes_max: usize) -> Vec<FrameSlice> {
    let mut reader = stream.frames(from);
    let (mut frames, mut next): (Vec<FrameSlice>, _) = (Vec::new(), from);
    loop {
        let batch = reader.next_batch(bytes_max).unwrap();
        if batch.is_empty() {
            assert_eq!((reader.offset(), next), (stream.end(), stream.end()));
            return frames;
        }
        let all_but_last: usize = batch.iter().rev().skip(1).map(|frame| frame.bytes.len()).sum();
        assert!(batch.len() == 1 || all_but_last < bytes_max);
        for frame in batch {
            let header = VerifiedFrame::verify(&frame.bytes).unwrap().header;
            let told = (frame.stream.get(), frame.epoch, frame.base_offset, frame.count);
            let written = (header.stream.get(), header.epoch.get(), next, header.count.get());
            assert_eq!(told, written);
            assert_eq!(header.base_offset.get(), next);
            next += u64::from(frame.count);
            frames.push(frame);
        }
    }
}

#[test]
fn an_epoch_begins_with_the_next_record_of_each_stream() {
    everywhere(|options, directory| {
        let engine = options.open(directory).unwrap();
        let (old, new) = (engine.stream(STREAM), engine.stream(StreamId::new(8)));
        assert_eq!((append(&old, b"a"), append(&old, b"b")), ((0, 0), (1, 0)));
        engine.set_epoch(5);
        assert_eq!(old.epochs(), starts(&[(0, 0)]), "it begins with a record");
        engine.set_epoch(3);
        assert_eq!((append(&old, b"c"), append(&old, b"d")), ((2, 5), (3, 5)));
        assert_eq!(append(&new, b"e"), (0, 5));
        // A cut begins one that is greater than the node's: another node leads.
        new.truncate(1, 9).unwrap().wait().unwrap();
        let refused = new.append(b"not here").unwrap().wait();
        let expected = Refusal::EpochClosed { stream: new.id(), epoch: 5, last: 9 };
        assert!(matches!(&refused, Err(CommitError::Refused(refusal)) if *refusal == expected));
        assert_eq!(append(&old, b"f"), (4, 5), "which does not concern the others");
        engine.set_epoch(9);
        assert_eq!(append(&new, b"f"), (1, 9));
        let told = |engine: &Engine| {
            let epochs = engine.streams().iter().map(|summary| summary.epoch).collect::<Vec<_>>();
            (epochs, old.epochs().to_vec(), records(&engine.stream(STREAM)))
        };
        let before = told(&engine);
        assert_eq!(before.0, [5, 9]);
        assert_eq!(before.1, starts(&[(0, 0), (5, 2)]));
        assert_eq!(new.epochs(), starts(&[(5, 0), (9, 1)]));
        engine.close().unwrap();
        let engine = options.open(directory).unwrap();
        assert_eq!(told(&engine), before);
        let (old, new) = (engine.stream(STREAM), engine.stream(StreamId::new(8)));
        assert_eq!(old.epochs(), starts(&[(0, 0), (5, 2)]));
        assert_eq!(new.epochs(), starts(&[(5, 0), (9, 1)]));
        // It was in memory only; the streams keep theirs.
        assert_eq!(append(&old, b"g"), (5, 5));
        assert_eq!(append(&engine.stream(StreamId::new(9)), b"h"), (0, 0));
    });
}

#[test]
fn a_closed_epoch_refuses_own_records_and_nothing_else() {
    everywhere(|options, directory| {
        let engine = options.open(directory).unwrap();
        let (stream, local) = (engine.stream(STREAM), engine.stream(StreamId::new(3)));
        engine.set_epoch(5);
        append(&stream, b"a");
        let other = tempfile::tempdir().unwrap();
        let leader = options.open(other.path()).unwrap();
        leader
            .stream(STREAM)
            .append_frame(&frames(&stream, 0, 1)[0].bytes)
            .unwrap()
            .wait()
            .unwrap();
        leader.set_epoch(8);
        append(&leader.stream(STREAM), b"b");
        engine.close_epoch();
        let refused = |stream: &Stream, last| {
            let refused = stream.append(b"x").unwrap().wait().unwrap_err();
            let expected = Refusal::EpochClosed { stream: stream.id(), epoch: 5, last };
            assert!(matches!(&refused, CommitError::Refused(told) if *told == expected));
            assert!(refused.to_string().contains("append at the leader"), "{refused}");
        };
        refused(&stream, 5);
        refused(&engine.stream(StreamId::new(0)), 0);
        assert_eq!(append(&local, b"a promise"), (0, 5), "it is nobody else's");
        let next = &frames(&leader.stream(STREAM), 1, 1)[0];
        stream.append_frame(&next.bytes).unwrap().wait().unwrap();
        stream.trim(1).unwrap();
        // What was there before is not enough to lead again.
        engine.set_epoch(5);
        refused(&stream, 8);
        engine.set_epoch(6);
        refused_as_behind(&stream);
        assert_eq!(append(&engine.stream(StreamId::new(9)), b"c"), (0, 6));
        engine.set_epoch(9);
        assert_eq!(append(&stream, b"c"), (2, 9));
        engine.barrier().unwrap().wait().unwrap();
        let stats = engine.stats();
        assert_eq!(stats.shards.iter().map(|shard| shard.records).sum::<u64>(), 5);
        engine.close().unwrap();
        assert!(verify(directory).unwrap().findings.is_empty());
        // It was in memory only.
        let engine = options.open(directory).unwrap();
        assert_eq!(append(&engine.stream(STREAM), b"d"), (3, 9));
    });
}

/// Of the shard's real clock: the batch is sealed while there is a lease, or there is none.
#[test]
fn without_a_lease_own_records_are_refused_when_they_are_sealed_and_nothing_else() {
    everywhere(|options, directory| {
        let engine = options.open(directory).unwrap();
        engine.require_lease();
        engine.set_epoch(5);
        let stream = engine.stream(STREAM);
        let lapsed = Refusal::LeaseLapsed { stream: STREAM, epoch: 5 };
        let refused = || stream.append("x").unwrap().wait().unwrap_err();
        assert!(matches!(refused(), CommitError::Refused(refusal) if refusal == lapsed));
        assert_eq!(append(&engine.stream(StreamId::new(3)), "own"), (0, 5));
        let foreign = stream.append_frame(&frame(STREAM, 5, 0)).unwrap().wait().unwrap();
        assert_eq!(foreign.offsets(), 0..1);
        let hour = 3_600_000_000_000;
        engine.set_lease(5, ringwal_engine::boottime_ns() + hour);
        assert_eq!(append(&stream, "x"), (1, 5));
        engine.set_lease(5, ringwal_engine::boottime_ns() - 1);
        assert!(matches!(refused(), CommitError::Refused(refusal) if refusal == lapsed));
        engine.set_lease(5, ringwal_engine::boottime_ns() + hour);
        engine.set_epoch(6);
        assert!(matches!(refused(), CommitError::Refused(Refusal::LeaseLapsed { epoch: 6, .. })));
        assert_eq!(stream.end(), 2);
        engine.close().unwrap();
    });
}

fn refused_as_behind(stream: &Stream) {
    let refused = stream.append(b"x").unwrap().wait().unwrap_err();
    let told = CommitError::Refused(Refusal::EpochClosed { stream: STREAM, epoch: 6, last: 8 });
    assert_eq!(refused.to_string(), told.to_string());
}

/// The promise of a follower: what was in flight is durable before it answers, and nothing of it
/// comes later.
#[test]
fn behind_a_closed_epoch_and_a_barrier_no_stream_grows() {
    everywhere(|options, directory| {
        let engine = options.open(directory).unwrap();
        for epoch in 1..=4u64 {
            engine.set_epoch(epoch);
            let callers: Vec<_> = (0..6u64)
                .map(|caller| {
                    let stream = engine.stream(StreamId::new(4 + caller % 3));
                    std::thread::spawn(move || {
                        let mut durable = Vec::new();
                        loop {
                            let tokens: Vec<_> = (0..8)
                                .map(|_| stream.append([caller as u8; 300]).unwrap())
                                .collect();
                            let mut refused = 0;
                            for token in tokens {
                                match token.wait() {
                                    Ok(receipt) => {
                                        durable.push((receipt.epoch(), receipt.offset()))
                                    }
                                    Err(CommitError::Refused(Refusal::EpochClosed { .. })) => {
                                        refused += 1;
                                    }
                                    Err(error) => panic!("{error}"),
                                }
                            }
                            if refused == 8 {
                                return (stream.id(), durable);
                            }
                        }
                    })
                })
                .collect();
            std::thread::sleep(Duration::from_millis(15));
            engine.close_epoch();
            engine.barrier().unwrap().wait().unwrap();
            let ends: Vec<_> = engine.streams().iter().map(|s| (s.stream, s.end)).collect();
            let mut receipts = 0;
            for caller in callers {
                let (stream, durable) = caller.join().unwrap();
                let end = ends.iter().find(|(id, _)| *id == stream).unwrap().1;
                assert!(
                    durable
                        .iter()
                        .all(|(in_epoch, offset)| (*in_epoch, *offset < end) == (epoch, true))
                );
                receipts += durable.len();
            }
            engine.barrier().unwrap().wait().unwrap();
            assert_eq!(
                ends,
                engine.streams().iter().map(|s| (s.stream, s.end)).collect::<Vec<_>>()
            );
            assert!(receipts > 0);
        }
        let ends: u64 = engine.streams().iter().map(|stream| stream.end).sum();
        engine.close().unwrap();
        let engine = options.open(directory).unwrap();
        assert_eq!(engine.streams().iter().map(|stream| stream.end).sum::<u64>(), ends);
    });
}

/// One record, as a leader of `epoch` sends it.
fn frame(stream: StreamId, epoch: u64, offset: u64) -> Bytes {
    let record = [stream.get(), epoch, offset].map(u64::to_le_bytes).concat();
    let payload = [&(record.len() as u32).to_le_bytes(), &*record].concat();
    let header = FrameHeader::new(FrameKind::Data, stream.get(), epoch, offset, 1, 0, &payload);
    [header.as_bytes(), &payload].concat().into()
}

fn is_fenced(error: &CommitError, stream: StreamId) -> bool {
    matches!(error, CommitError::Refused(Refusal::Fenced { stream: told }) if *told == stream)
}

#[test]
fn a_fence_shuts_out_the_frames_that_wait_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let mut shard = options(1).open_shard(directory.path()).unwrap();
    let (own, local) = (StreamId::new(8), StreamId::new(3));
    let handed_over = shard.subscribe(64);
    let before = shard.append_frame(&frame(STREAM, 1, 0)).unwrap();
    while handed_over.try_next().is_pending() {
        shard.run_once(Some(Duration::ZERO)).unwrap();
    }
    // Sealed, and perhaps not durable; the following wait in the queue.
    let behind: Vec<_> =
        (1..4).map(|offset| shard.append_frame(&frame(STREAM, 1, offset)).unwrap()).collect();
    let behind_local = shard.append_frame(&frame(local, 1, 0)).unwrap();
    let of_this_node = shard.append(own, b"not a foreign frame").unwrap();
    shard.fence_frames();
    let after: Vec<_> =
        (1..3).map(|offset| shard.append_frame(&frame(STREAM, 2, offset)).unwrap()).collect();
    let barrier = shard.barrier().unwrap();
    while after[1].try_receipt().is_none() || barrier.try_receipt().is_none() {
        shard.run_once(None).unwrap();
    }
    assert_eq!(before.wait().unwrap().offsets(), 0..1);
    for token in behind {
        let refused = token.wait().unwrap_err();
        assert!(is_fenced(&refused, STREAM), "{refused}");
        assert!(refused.to_string().contains("append it again"), "{refused}");
    }
    assert!(is_fenced(&behind_local.wait().unwrap_err(), local));
    assert_eq!(of_this_node.wait().unwrap().offset(), 0);
    for (offset, token) in (1..).zip(after) {
        assert_eq!(token.wait().unwrap().offsets(), offset..offset + 1);
    }
    assert_eq!(shard.epochs(STREAM), starts(&[(1, 0), (2, 1)]));
    assert_eq!((shard.end(STREAM), shard.end(own), shard.end(local)), (3, 1, 0));
    shard.close().unwrap();
    assert!(verify(directory.path()).unwrap().findings.is_empty());
    let engine = options(1).open(directory.path()).unwrap();
    assert_eq!(engine.stream(STREAM).epochs(), starts(&[(1, 0), (2, 1)]));
}

#[test]
fn a_frame_is_given_when_it_is_named_and_not_when_there_is_room() {
    everywhere(|options, directory| {
        let engine = options.open(directory).unwrap();
        let stream = engine.stream(STREAM);
        let old = stream.append_frame_async(frame(STREAM, 1, 0));
        engine.fence_frames();
        let new = stream.append_frame_async(frame(STREAM, 2, 0));
        assert!(is_fenced(&taken(old).wait().unwrap_err(), STREAM));
        assert_eq!(taken(new).wait().unwrap().offsets(), 0..1);
        assert_eq!(stream.epochs(), starts(&[(2, 0)]));
    });
}

/// What a future gives that finds room at once.
fn taken<T>(future: impl Future<Output = Result<T, AppendError>> + Send + 'static) -> T {
    let mut context = Context::from_waker(Waker::noop());
    match kept_by_a_loop(future).as_mut().poll(&mut context) {
        Poll::Ready(token) => token.unwrap(),
        Poll::Pending => panic!("there is room"),
    }
}

/// A follower that changes its leader, while many threads still bring frames of the old one.
#[test]
fn behind_a_fence_and_a_barrier_no_stream_grows_by_old_frames() {
    const OPEN: u64 = 0;
    const CHANGING: u64 = 1;
    const FENCED: u64 = 2;
    let refused = AtomicU64::new(0);
    everywhere(|options, directory| {
        // Frames wait a little before they are sealed.
        let engine = options.linger(Duration::from_millis(1)).open(directory).unwrap();
        for leader in 1..=6u64 {
            let (phase, given) = (AtomicU64::new(OPEN), AtomicU64::new(0));
            let bring = |stream: Stream| {
                let mut tokens = Vec::new();
                let first = stream.end();
                while phase.load(Ordering::SeqCst) == OPEN {
                    let offset = first + tokens.len() as u64;
                    let token = stream.append_frame(&frame(stream.id(), leader, offset)).unwrap();
                    let before = phase.load(Ordering::SeqCst) == OPEN;
                    given.fetch_add(1, Ordering::SeqCst);
                    tokens.push((before, offset, token));
                }
                (stream, tokens)
            };
            std::thread::scope(|scope| {
                let bringers: Vec<_> = (4..10)
                    .map(|id| engine.stream(StreamId::new(id)))
                    .map(|stream| scope.spawn(|| bring(stream)))
                    .collect();
                while given.load(Ordering::SeqCst) < 40 * leader {
                    std::thread::yield_now();
                }
                phase.store(CHANGING, Ordering::SeqCst);
                engine.fence_frames();
                phase.store(FENCED, Ordering::SeqCst);
                engine.barrier().unwrap().wait().unwrap();
                let end = |id: StreamId| engine.stream(id).end();
                let ends: Vec<_> = (4..10).map(|id| end(StreamId::new(id))).collect();
                for (end, bringer) in ends.into_iter().zip(bringers) {
                    let (stream, tokens) = bringer.join().unwrap();
                    for (before, offset, token) in tokens {
                        match token.wait() {
                            Ok(_) => assert!(!before || offset < end, "{offset} of {end}"),
                            Err(error) if is_fenced(&error, stream.id()) => {
                                refused.fetch_add(1, Ordering::Relaxed);
                            }
                            // Given meanwhile, behind one that is refused.
                            Err(error) => assert!(!before, "{error}"),
                        }
                    }
                    let next = stream.end();
                    let sent = frame(stream.id(), leader + 1, next);
                    let receipts = stream.append_frame(&sent).unwrap().wait().unwrap();
                    assert_eq!(receipts.offsets(), next..next + 1);
                }
            });
        }
        engine.close().unwrap();
        assert!(verify(directory).unwrap().findings.is_empty());
    });
    assert!(refused.into_inner() > 0, "every frame had been sealed in time");
}

#[test]
fn a_barrier_waits_for_what_was_sealed_before_it() {
    let directory = tempfile::tempdir().unwrap();
    let mut shard = options(1).open_shard(directory.path()).unwrap();
    let sealed = shard.subscribe(64);
    let (bell, waker) = Bell::new();
    let mut context = Context::from_waker(&waker);
    let mut last = None;
    for round in 0..50u64 {
        let token = shard.append(STREAM, b"x").unwrap();
        while sealed.try_next().is_pending() {
            shard.run_once(Some(Duration::ZERO)).unwrap();
        }
        let mut barrier = shard.barrier().unwrap();
        while Pin::new(&mut barrier).poll(&mut context).is_pending() {
            assert!(barrier.try_receipt().is_none());
            shard.run_once(None).unwrap();
        }
        assert!(matches!(barrier.try_receipt(), Some(Ok(()))));
        assert!(token.try_receipt().is_some() && shard.end(STREAM) == round + 1);
        last = Some(barrier);
    }
    assert!(bell.rings() > 0);
    assert!(shard.streams().len() == 1, "a barrier makes no stream");
    last.unwrap().wait().unwrap();
    let late = shard.barrier().unwrap();
    shard.close().unwrap();
    late.wait().unwrap();
}

#[test]
fn epochs_hold_where_segments_roll_records_move_and_the_directory_is_opened_again() {
    everywhere(|options, directory| {
        let mut expected = Vec::new();
        let mut epochs = vec![(0, 0)];
        for life in 0..3u64 {
            let engine = options.open(directory).unwrap();
            let shards = engine.stats().shards.len() as u16;
            let quiet =
                (8..).map(StreamId::new).find(|id| id.shard(shards) == STREAM.shard(shards));
            let (busy, quiet) = (engine.stream(STREAM), engine.stream(quiet.unwrap()));
            assert_eq!(records(&quiet), expected);
            assert_eq!(quiet.epochs(), starts(&epochs));
            for round in 0..120u64 {
                if round % 20 == 0 {
                    let epoch = life * 10 + round / 20 + 1;
                    engine.set_epoch(epoch);
                    let offset = expected.len() as u64;
                    assert_eq!(append(&quiet, epoch.to_le_bytes()), (offset, epoch));
                    expected.push((offset, epoch, epoch.to_le_bytes().to_vec()));
                    epochs.retain(|(_, start)| *start < offset);
                    epochs.push((epoch, offset));
                }
                let (offset, _) = append(&busy, [3; 30_000]);
                busy.trim(offset).unwrap();
            }
            assert_eq!(records(&quiet), expected);
            assert_eq!(quiet.epochs(), starts(&epochs));
            assert_eq!(busy.epochs().len(), 1, "a trim forgets them");
            let read = frames(&quiet, 0, 1);
            let read: Vec<_> = read.iter().map(|frame| (frame.epoch, frame.base_offset)).collect();
            assert_eq!(read, epochs, "each record is a frame of its own");
            let shard = usize::from(STREAM.shard(shards));
            let stats = engine.stats().shards.swap_remove(shard);
            assert!(stats.rotations >= 2 && (life == 0 || stats.moved_records > 0), "{stats:?}");
            if life == 1 {
                engine.close().unwrap();
            }
        }
        let verification = verify(directory).unwrap();
        assert!(verification.findings.is_empty(), "{:?}", verification.findings);
    });
}

#[test]
fn one_epoch_too_many_is_refused_like_a_stream() {
    let directory = tempfile::tempdir().unwrap();
    let mut shard = options(1)
        .segment_bytes(64 << 10)
        .pool_bytes(1 << 20)
        .open_shard(directory.path())
        .unwrap();
    let stream = |id: u64| StreamId::new(100 + id);
    let append = |shard: &mut ringwal_engine::Shard, id| {
        let token = shard.append(stream(id), b"x").unwrap();
        while token.try_receipt().is_none() {
            shard.run_once(None).unwrap();
        }
        token.wait().map(|receipt| (receipt.offset(), receipt.epoch()))
    };
    let streams = 300;
    for id in 0..streams {
        assert_eq!(append(&mut shard, id).unwrap(), (0, 0));
    }
    shard.set_epoch(1);
    let refused: Vec<_> = (0..streams).filter(|id| append(&mut shard, *id).is_err()).collect();
    assert_eq!(refused.len() as u64, 2 * streams - 512, "64 KiB list as many");
    let last = append(&mut shard, refused[0]).unwrap_err();
    assert!(matches!(last, CommitError::Refused(Refusal::TooManyStreams { .. })), "{last}");
    assert_eq!(shard.end(stream(refused[0])), 1, "and leaves no hole");
    let token = shard.trim(stream(0), 1).unwrap();
    while token.try_receipt().is_none() {
        shard.run_once(None).unwrap();
    }
    assert_eq!(append(&mut shard, refused[0]).unwrap(), (1, 1), "the trim made room for one");
    shard.close().unwrap();
    let shard = options(1).segment_bytes(64 << 10).pool_bytes(1 << 20);
    let shard = shard.open_shard(directory.path()).unwrap();
    assert_eq!(shard.epochs(stream(refused[0])), starts(&[(0, 0), (1, 1)]));
    assert_eq!(shard.epochs(stream(refused[1])), starts(&[(0, 0)]));
    assert_eq!((shard.trimmed(stream(0)), shard.end(stream(0))), (1, 2));
}

#[test]
fn a_follower_gets_the_same_bytes_and_the_same_epochs() {
    everywhere(|options, directory| {
        let leader = options.open(directory).unwrap();
        let stream = leader.stream(STREAM);
        for epoch in [0, 0, 2, 2, 7] {
            leader.set_epoch(epoch);
            for length in [0usize, 10, 5_000, 200_000] {
                drop(stream.append(vec![epoch as u8; length]).unwrap());
            }
            stream.append_batch([b"x", b"y"]).unwrap().wait().unwrap();
        }
        let other = tempfile::tempdir().unwrap();
        let follower = options.open(other.path()).unwrap();
        let followed = follower.stream(STREAM);
        let whole = frames(&stream, 0, 64 << 10);
        let tokens: Vec<_> =
            whole.iter().map(|frame| followed.append_frame(&frame.bytes).unwrap()).collect();
        for (token, frame) in tokens.into_iter().zip(&whole) {
            let receipts = token.wait().unwrap();
            assert_eq!(
                (receipts.offsets().start, receipts.epoch()),
                (frame.base_offset, frame.epoch)
            );
        }
        let same = |one: &Stream, two: &Stream| {
            let bytes = |frames: &[FrameSlice]| -> Vec<_> {
                frames.iter().map(|frame| frame.bytes.clone()).collect()
            };
            assert_eq!(one.epochs(), two.epochs());
            assert_eq!(records(one), records(two));
            assert_eq!(bytes(&frames(one, 0, 1 << 20)), bytes(&frames(two, 0, 1)));
        };
        same(&stream, &followed);
        assert_eq!(followed.epochs().last().unwrap().epoch, 7);
        // An epoch that is over does not come back, nor does a gap.
        let late = followed.append_frame(&whole[0].bytes).unwrap().wait().unwrap_err();
        assert!(matches!(late, CommitError::Refused(Refusal::NotContinuation { .. })), "{late}");
        follower.close().unwrap();
        let follower = options.open(other.path()).unwrap();
        same(&stream, &follower.stream(STREAM));
        // Who leads next goes on in an epoch of its own.
        follower.set_epoch(9);
        let (offset, epoch) = append(&follower.stream(STREAM), b"z");
        assert_eq!((offset, epoch), (stream.end(), 9));
        let next = &frames(&follower.stream(STREAM), offset, 1)[0];
        let receipts = stream.append_frame(&next.bytes).unwrap().wait().unwrap();
        assert_eq!((receipts.offsets(), receipts.epoch()), (offset..offset + 1, 9));
        same(&stream, &follower.stream(STREAM));
    });
}

#[test]
fn a_part_of_a_frame_is_a_frame() {
    everywhere(|options, directory| {
        let engine = options.open(directory).unwrap();
        let stream = engine.stream(STREAM);
        let sealed = engine.subscribe(16);
        stream.append_batch((0..10u8).map(|byte| vec![byte; 50])).unwrap().wait().unwrap();
        let whole = frames(&stream, 0, 1);
        let Some(SealedFrames::Batch { shard, frames: slices }) = sealed.next_timeout(LONG) else {
            panic!("a batch was sealed");
        };
        assert_eq!(shard, STREAM.shard(engine.stats().shards.len() as u16));
        assert_eq!((whole.len(), &whole[0].bytes), (1, &slices[0].bytes), "the same bytes");
        let parts = frames(&stream, 4, 1);
        assert_eq!((parts[0].base_offset, parts[0].count), (4, 6));
        // What a later epoch cut off is not given.
        stream.truncate(6, 3).unwrap().wait().unwrap();
        append(&stream, b"new");
        let parts = frames(&stream, 4, 1 << 20);
        let told: Vec<_> = parts.iter().map(|f| (f.epoch, f.base_offset, f.count)).collect();
        assert_eq!(told, [(0, 4, 2), (3, 6, 1)]);
        let other = tempfile::tempdir().unwrap();
        let follower = options.open(other.path()).unwrap();
        let followed = follower.stream(STREAM);
        for frame in frames(&stream, 0, 100) {
            followed.append_frame(&frame.bytes).unwrap().wait().unwrap();
        }
        assert_eq!((records(&followed), followed.epochs()), (records(&stream), stream.epochs()));
        stream.trim(5).unwrap();
        let trimmed = stream.frames(4).next_batch(1).unwrap_err();
        assert!(matches!(trimmed, ReadError::Trimmed { trimmed: 5, .. }), "{trimmed}");
        assert_eq!(
            (frames(&stream, 5, 1)[0].count, stream.frames(7).next_batch(1).unwrap().len()),
            (1, 0)
        );
        assert!(engine.stream(StreamId::new(999)).frames(0).next_batch(1).unwrap().is_empty());
    });
}

#[test]
fn frames_that_a_cut_replaces_are_not_read_from_memory() {
    let directory = tempfile::tempdir().unwrap();
    let engine = options(1).open(directory.path()).unwrap();
    let stream = engine.stream(STREAM);
    for record in 0..4u8 {
        stream.append_batch([[record], [record]]).unwrap().wait().unwrap();
    }
    let (mut frames, mut tail) = (stream.frames(0), stream.tail(0));
    assert_eq!(frames.next_batch(1).unwrap().len(), 1);
    assert_eq!(tail.next_blocking().unwrap().offset(), 0);
    assert_eq!(tail.next_blocking().unwrap().offset(), 1);
    stream.truncate(3, 2).unwrap().wait().unwrap();
    let part = frames.next_batch(1 << 20).unwrap();
    assert_eq!((part.len(), part[0].base_offset, part[0].count), (1, 2, 1));
    append(&stream, b"new");
    let new = frames.next_batch(1 << 20).unwrap();
    assert_eq!((new.len(), new[0].base_offset, new[0].epoch), (1, 3, 2));
    let seen: Vec<_> = (0..2).map(|_| tail.next_blocking().unwrap()).collect();
    assert_eq!((seen[0].offset(), seen[0].epoch()), (2, 0));
    assert_eq!((seen[1].offset(), seen[1].epoch(), seen[1].payload()), (3, 2, &b"new"[..]));
}

/// The rest of a frame that a tail or a range holds in memory is gone with the cut.
#[test]
fn what_a_reader_holds_of_a_cut_frame_is_not_given() {
    everywhere(|options, directory| {
        let engine = options.open(directory).unwrap();
        let stream = engine.stream(STREAM);
        let batch = |byte: u8| stream.append_batch([[byte]; 6]).unwrap().wait().unwrap();
        for byte in 0..3 {
            batch(byte);
        }
        // Inside of the first frame; the others are in memory as entries of the index.
        let (mut tail, mut range) = (stream.tail(0), stream.read(..).unwrap());
        let next = |tail: &mut ringwal_engine::Tail| {
            let record = tail.next_blocking().unwrap();
            (record.offset(), record.epoch(), record.payload()[0])
        };
        assert_eq!([next(&mut tail), next(&mut tail)], [(0, 0, 0), (1, 0, 0)]);
        assert_eq!(range.next().unwrap().unwrap().offset(), 0);
        // A cut of another stream, or behind the frame, changes nothing for it.
        let other = engine.stream(StreamId::new(8));
        other.truncate(0, 3).unwrap().wait().unwrap();
        stream.truncate(14, 3).unwrap().wait().unwrap();
        assert_eq!(next(&mut tail), (2, 0, 0));
        stream.truncate(4, 5).unwrap().wait().unwrap();
        assert_eq!(next(&mut tail), (3, 0, 0), "this one stays");
        assert!(
            tail.next_timeout(Duration::from_millis(5)).unwrap().is_none(),
            "cut, not rewritten"
        );
        batch(7);
        assert_eq!([next(&mut tail), next(&mut tail)], [(4, 5, 7), (5, 5, 7)]);
        let rest: Vec<_> = range.map(|record| record.unwrap().payload()[0]).collect();
        assert_eq!(rest, [0, 0, 0, 7, 7, 7, 7, 7, 7]);
        // A new beginning inside of the frame.
        stream.begin_anew(8, 4).unwrap().wait().unwrap();
        let gone = tail.next_blocking().unwrap_err();
        assert!(matches!(gone, ReadError::Trimmed { trimmed: 8, .. }), "{gone}");
        batch(9);
        tail.seek(8);
        assert_eq!(next(&mut tail), (8, 4, 9));
    });
}

#[test]
fn an_event_loop_waits_for_room_for_a_frame() {
    let directory = tempfile::tempdir().unwrap();
    let other = tempfile::tempdir().unwrap();
    let leader = options(1).open(other.path()).unwrap();
    let stream = leader.stream(STREAM);
    for _ in 0..60 {
        stream.append([5; 200_000]).unwrap().wait().unwrap();
    }
    let whole = frames(&stream, 0, 1 << 20);
    let engine = options(1).open(directory.path()).unwrap();
    let (bell, waker) = Bell::new();
    let mut context = Context::from_waker(&waker);
    let mut waited = 0;
    for frame in &whole {
        let taken = engine.stream(STREAM).append_frame_async(frame.bytes.clone());
        let mut taken = kept_by_a_loop(taken);
        loop {
            let rings = bell.rings();
            match taken.as_mut().poll(&mut context) {
                Poll::Ready(token) => break drop(token.unwrap()),
                Poll::Pending => bell.wait_for(rings + 1),
            }
            waited += 1;
        }
    }
    assert!(waited > 0, "there was always room");
    engine.stream(STREAM).trim_async(0).unwrap().wait().unwrap();
    let wrong = engine.stream(StreamId::new(8)).append_frame_async(whole[0].bytes.clone());
    let wrong = kept_by_a_loop(wrong).as_mut().poll(&mut context);
    assert!(matches!(wrong, Poll::Ready(Err(AppendError::WrongStream { .. }))));
    engine.close().unwrap();
    let engine = options(1).open(directory.path()).unwrap();
    assert_eq!(records(&engine.stream(STREAM)), records(&stream));
}

fn kept_by_a_loop<F: Future + Send + 'static>(future: F) -> Pin<Box<F>> {
    Box::pin(future)
}

#[test]
fn a_frame_that_finds_no_room_is_not_taken() {
    let directory = tempfile::tempdir().unwrap();
    let mut shard = options(1).open_shard(directory.path()).unwrap();
    let other = tempfile::tempdir().unwrap();
    let leader = options(1).open(other.path()).unwrap();
    let stream = leader.stream(STREAM);
    for _ in 0..60 {
        stream.append([5; 200_000]).unwrap().wait().unwrap();
    }
    let whole = frames(&stream, 0, 1 << 20);
    let mut tokens = Vec::new();
    let full = loop {
        match shard.append_frame(&whole[tokens.len()].bytes) {
            Ok(token) => tokens.push(token),
            Err(error) => break error,
        }
    };
    assert!(matches!(full, AppendError::Full { .. }), "{full}");
    assert!(matches!(shard.append_frame(b"no frame"), Err(AppendError::BadFrame(_))));
    while tokens.iter().any(|token| token.try_receipt().is_none()) {
        shard.run_once(None).unwrap();
    }
    assert_eq!(shard.end(STREAM), tokens.len() as u64);
    shard.close().unwrap();
    let engine = options(1).open(directory.path()).unwrap();
    let followed = engine.stream(STREAM);
    for frame in &whole[tokens.len()..] {
        loop {
            match followed.try_append_frame(&frame.bytes) {
                Ok(token) => break drop(token),
                Err(AppendError::Full { .. }) => std::thread::yield_now(),
                Err(error) => panic!("{error}"),
            }
        }
    }
    followed.trim_async(0).unwrap().wait().unwrap();
    engine.close().unwrap();
    let engine = options(1).open(directory.path()).unwrap();
    assert_eq!(engine.stream(STREAM).end(), 60);
}

#[test]
fn a_skip_drops_everything_and_goes_on_where_it_says() {
    everywhere(|options, directory| {
        let engine = options.open(directory).unwrap();
        let (stream, empty) = (engine.stream(STREAM), engine.stream(StreamId::new(8)));
        engine.set_epoch(4);
        append(&stream, b"a");
        let (mut inside, mut behind) = (stream.tail(1), stream.tail(100));
        let waiting = std::thread::spawn(move || inside.next_blocking());
        let refused = stream.trim_async(100).unwrap().wait();
        assert!(matches!(refused, Err(CommitError::Refused(Refusal::TrimBeyondEnd { .. }))));
        stream.skip_to(100).unwrap().wait().unwrap();
        empty.skip_to(30).unwrap().wait().unwrap();
        let woken = waiting.join().unwrap().unwrap_err();
        assert!(matches!(woken, ReadError::Trimmed { trimmed: 100, .. }), "{woken}");
        let bounds = |stream: &Stream| (stream.trimmed(), stream.end(), stream.epochs());
        assert_eq!(bounds(&stream), (100, 100, starts(&[(4, 0)])));
        assert_eq!(bounds(&empty), (30, 30, starts(&[(0, 0)])));
        assert!(records(&stream).is_empty());
        engine.close().unwrap();
        let engine = options.open(directory).unwrap();
        let (stream, empty) = (engine.stream(STREAM), engine.stream(StreamId::new(8)));
        assert_eq!(bounds(&stream), (100, 100, starts(&[(4, 0)])));
        assert!(behind.next_timeout(Duration::from_millis(1)).is_err(), "that engine is closed");
        behind = stream.tail(100);
        assert_eq!(append(&stream, b"b"), (100, 4));
        assert_eq!(behind.next_blocking().unwrap().payload(), b"b");
        assert_eq!(append(&empty, b"c"), (30, 0));
        stream.skip_to(101).unwrap().wait().unwrap();
        stream.skip_to(60).unwrap().wait().unwrap();
        assert_eq!((stream.trimmed(), stream.end()), (101, 101), "nothing comes back");
        let far = stream.skip_to(u64::MAX).unwrap().wait();
        assert!(matches!(far, Err(CommitError::Refused(Refusal::SkipTooFar { .. }))), "{far:?}");
        drop((stream, empty, behind));
        drop(engine);
        let engine = options.open(directory).unwrap();
        assert_eq!(engine.stream(STREAM).end(), 101);
        assert_eq!(records(&engine.stream(StreamId::new(8))), [(30, 0, b"c".to_vec())]);
        engine.close().unwrap();
        assert!(verify(directory).unwrap().findings.is_empty());
    });
}

#[test]
fn a_stream_begins_anew_inside_of_what_it_holds_and_beyond_it() {
    everywhere(|options, directory| {
        let engine = options.open(directory).unwrap();
        let stream = engine.stream(STREAM);
        for epoch in [3, 6] {
            engine.set_epoch(epoch);
            for _ in 0..4 {
                append(&stream, b"old");
            }
        }
        let waiting = {
            let mut tail = stream.tail(8);
            std::thread::spawn(move || tail.next_blocking())
        };
        let bounds = |stream: &Stream| (stream.trimmed(), stream.end(), stream.epochs());
        // Inside, in an older epoch than the one it drops.
        stream.begin_anew(5, 4).unwrap().wait().unwrap();
        assert_eq!(bounds(&stream), (5, 5, starts(&[(4, 5)])));
        assert!(records(&stream).is_empty());
        let below = stream.begin_anew(4, 9).unwrap().wait();
        let expected = Refusal::AnewBelowTrim { stream: STREAM, at: 4, trimmed: 5 };
        assert!(matches!(below, Err(CommitError::Refused(refusal)) if refusal == expected));
        assert_eq!(append(&stream, b"new"), (5, 6), "the node's own epoch begins there");
        // Beyond: nothing is left, and who waits in the gap is told.
        stream.begin_anew(50, 2).unwrap().wait().unwrap();
        assert_eq!(bounds(&stream), (50, 50, starts(&[(2, 50)])));
        let woken = waiting.join().unwrap().unwrap_err();
        assert!(matches!(woken, ReadError::Trimmed { trimmed: 50, .. }), "{woken}");
        let other = engine.stream(StreamId::new(8));
        other.begin_anew(0, 7).unwrap().wait().unwrap();
        assert_eq!(bounds(&other), (0, 0, starts(&[(7, 0)])));
        drop((stream, other));
        drop(engine);
        let engine = options.open(directory).unwrap();
        let (stream, other) = (engine.stream(STREAM), engine.stream(StreamId::new(8)));
        assert_eq!(bounds(&stream), (50, 50, starts(&[(2, 50)])));
        assert_eq!(append(&stream, b"on"), (50, 2));
        assert_eq!((bounds(&other), append(&other, b"first")), ((0, 0, starts(&[(7, 0)])), (0, 7)));
        engine.close().unwrap();
        assert!(verify(directory).unwrap().findings.is_empty());
    });
}

/// Counts how often it is woken, and lets a thread wait for that.
#[derive(Default)]
struct Bell {
    rings: AtomicU32,
    thread: std::sync::Mutex<Option<std::thread::Thread>>,
}

impl Bell {
    fn new() -> (Arc<Self>, Waker) {
        let bell = Arc::new(Self::default());
        *bell.thread.lock().unwrap() = Some(std::thread::current());
        (bell.clone(), Waker::from(bell))
    }

    fn rings(&self) -> u32 {
        self.rings.load(Ordering::SeqCst)
    }

    fn wait_for(&self, rings: u32) {
        let began = Instant::now();
        while self.rings() < rings {
            assert!(began.elapsed() < LONG, "a wake-up was lost");
            std::thread::park_timeout(LONG);
        }
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.rings.fetch_add(1, Ordering::SeqCst);
        if let Some(thread) = &*self.thread.lock().unwrap() {
            thread.unpark();
        }
    }
}

fn take_all(subscription: &Subscription) -> (usize, usize) {
    let (mut frames_seen, mut lags) = (0, 0);
    while let Poll::Ready(Some(sealed)) = subscription.try_next() {
        match sealed {
            SealedFrames::Batch { frames, .. } => frames_seen += frames.len(),
            SealedFrames::Lagged { .. } => lags += 1,
        }
    }
    (frames_seen, lags)
}

#[test]
fn a_parked_receiver_is_woken_once_for_many_frames() {
    let directory = tempfile::tempdir().unwrap();
    let mut shard = options(1).open_shard(directory.path()).unwrap();
    let sealed = shard.subscribe(64);
    let (bell, waker) = Bell::new();
    assert!(sealed.try_next().is_pending());
    assert!(sealed.park(&waker));
    for round in 0..5u8 {
        let token = shard.append(STREAM, [round]).unwrap();
        while token.try_receipt().is_none() {
            shard.run_once(None).unwrap();
        }
    }
    assert_eq!(bell.rings(), 1);
    assert!(!sealed.park(&waker), "something is there");
    assert_eq!(take_all(&sealed), (5, 0));
    assert!(sealed.park(&waker));
    shard.close().unwrap();
    assert_eq!(bell.rings(), 2, "the end is something too");
    assert!(matches!(sealed.try_next(), Poll::Ready(None)));
    assert!(!sealed.park(&waker));
    assert!(sealed.next_blocking().is_none());
}

#[test]
fn no_wake_up_is_lost_between_threads() {
    everywhere(|options, directory| {
        // More buffers than there are records: nothing lags.
        let options = options.pool_bytes(64 << 20).batch_bytes_max(32 << 10);
        let engine = options.open(directory).unwrap();
        let sealed = engine.subscribe(4096);
        let writers: Vec<_> = (0..4)
            .map(|stream| {
                let stream = engine.stream(StreamId::new(4 + stream));
                std::thread::spawn(move || {
                    (0..150).for_each(|_| {
                        append(&stream, b"x");
                    })
                })
            })
            .collect();
        let (bell, waker) = Bell::new();
        let mut records = 0;
        while records < 600 {
            while let Poll::Ready(Some(next)) = sealed.try_next() {
                let SealedFrames::Batch { frames, .. } = next else { panic!("it keeps up") };
                records += frames.iter().map(|frame| frame.count).sum::<u32>();
            }
            let rings = bell.rings();
            if records < 600 && sealed.park(&waker) {
                bell.wait_for(rings + 1);
            }
        }
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        let late = engine.clone();
        engine.close().unwrap();
        assert!(matches!(sealed.try_next(), Poll::Ready(None)));
        assert!(late.subscribe(1).next_blocking().is_none(), "nothing will come");
    });
}

#[test]
fn what_was_missed_is_told_in_its_place_and_also_when_nothing_follows() {
    let directory = tempfile::tempdir().unwrap();
    let mut shard = options(1).open_shard(directory.path()).unwrap();
    let half = shard.batch_buffers() / 2;
    let sealed = shard.subscribe(2);
    let append = |shard: &mut ringwal_engine::Shard| {
        let token = shard.append(STREAM, b"x").unwrap();
        while token.try_receipt().is_none() {
            shard.run_once(None).unwrap();
        }
    };
    let told = |sealed: &Subscription| match sealed.try_next() {
        Poll::Ready(Some(SealedFrames::Batch { frames, .. })) => Some(frames[0].base_offset),
        Poll::Ready(Some(SealedFrames::Lagged { shard: 0 })) => None,
        other => panic!("{other:?}"),
    };
    // Two fit. The third is missed, and nothing comes behind it.
    (0..3).for_each(|_| append(&mut shard));
    assert_eq!([told(&sealed), told(&sealed), told(&sealed)], [Some(0), Some(1), None]);
    assert!(sealed.try_next().is_pending());
    // Room again: what follows is told behind what is missing, once.
    (0..3).for_each(|_| append(&mut shard));
    assert_eq!(told(&sealed), Some(3));
    append(&mut shard);
    assert_eq!([told(&sealed), told(&sealed), told(&sealed)], [Some(4), None, Some(6)]);
    assert!(sealed.try_next().is_pending());
    // Who holds half of the buffers gets nothing until some come back.
    let mut held = Vec::new();
    let (bell, waker) = Bell::new();
    loop {
        append(&mut shard);
        match sealed.try_next() {
            Poll::Ready(Some(SealedFrames::Batch { frames, .. })) => held.push(frames),
            Poll::Ready(Some(SealedFrames::Lagged { .. })) => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(held.len(), half);
    assert!(sealed.park(&waker));
    append(&mut shard);
    assert_eq!(bell.rings(), 1, "a lag is something to look at");
    drop(held);
    append(&mut shard);
    assert_eq!(told(&sealed), None);
    assert!(told(&sealed).is_some());
}

#[test]
fn the_nodes_own_streams_are_handed_to_nobody_and_pass_the_others() {
    everywhere(|options, directory| {
        let engine = options.open(directory).unwrap();
        let sealed = engine.subscribe(64);
        for id in 1..=3 {
            let own = engine.stream(StreamId::new(id));
            append(&own, [id as u8; 200_000]);
            own.append_batch([&[1; 10][..], &[2; 150_000]]).unwrap().wait().unwrap();
            assert_eq!(append(&own, b"small").0, 3);
        }
        append(&engine.stream(STREAM), b"one");
        let Some(SealedFrames::Batch { frames, .. }) = sealed.next_timeout(LONG) else {
            panic!("nothing was missed");
        };
        assert_eq!((frames.len(), frames[0].stream), (1, STREAM));
        // Both kinds at once, with more of each than waits anywhere.
        let writers = [2, 3, 7, 8].map(|id| {
            let stream = engine.stream(StreamId::new(id));
            let first = stream.end();
            std::thread::spawn(move || {
                let tokens: Vec<_> =
                    (0..400).map(|_| stream.append([id as u8; 9_000]).unwrap()).collect();
                for (offset, token) in (first..).zip(tokens) {
                    assert_eq!(token.wait().unwrap().offset(), offset);
                }
            })
        });
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        let ends = [1, 2, 3, 7, 8].map(|id| engine.stream(StreamId::new(id)).end());
        assert_eq!(ends, [4, 404, 404, 401, 400]);
        engine.close().unwrap();
        let engine = options.open(directory).unwrap();
        let kept = [1, 2, 3, 7, 8].map(|id| records(&engine.stream(StreamId::new(id))).len());
        assert_eq!(kept, [4, 404, 404, 401, 400]);
        engine.close().unwrap();
        assert!(verify(directory).unwrap().findings.is_empty());
    });
}

/// Buffers that records wait in are not the receiver's: it takes each batch at once and keeps up.
#[test]
fn callers_that_fill_the_queue_do_not_make_a_receiver_lag() {
    let directory = tempfile::tempdir().unwrap();
    let mut shard = options(1).open_shard(directory.path()).unwrap();
    let sealed = shard.subscribe(64);
    let mut tokens = Vec::new();
    for _ in 0..20 {
        while let Ok(token) = shard.append(STREAM, [1; 100_000]) {
            tokens.push(token);
        }
        shard.run_once(None).unwrap();
        while let Poll::Ready(next) = sealed.try_next() {
            assert!(matches!(next, Some(SealedFrames::Batch { .. })), "{next:?}");
        }
    }
    while tokens.iter().any(|token| token.try_receipt().is_none()) {
        shard.run_once(None).unwrap();
    }
    assert!(shard.end(STREAM) > 2 * shard.batch_buffers() as u64);
}

#[test]
fn one_event_loop_waits_for_tokens_of_every_kind() {
    everywhere(|options, directory| {
        // Nothing is sealed before all of it has been polled.
        let engine = options.linger(Duration::from_millis(100)).open(directory).unwrap();
        let stream = engine.stream(STREAM);
        append(&stream, b"a");
        let (bell, waker) = Bell::new();
        let mut context = Context::from_waker(&waker);
        let mut one = stream.append(b"b").unwrap();
        let mut many = stream.append_batch([b"c", b"d"]).unwrap();
        let mut change = stream.trim_async(1).unwrap();
        let mut left = 3;
        let mut done = [false; 3];
        while left > 0 {
            let rings = bell.rings();
            let now = [
                !done[0] && Pin::new(&mut one).poll(&mut context).map(Result::unwrap).is_ready(),
                !done[1] && Pin::new(&mut many).poll(&mut context).map(Result::unwrap).is_ready(),
                !done[2] && Pin::new(&mut change).poll(&mut context).map(Result::unwrap).is_ready(),
            ];
            for (done, now) in done.iter_mut().zip(now) {
                *done |= now;
                left -= usize::from(now);
            }
            if left > 0 && !now.contains(&true) {
                bell.wait_for(rings + 1);
            }
        }
        assert!(bell.rings() <= 2, "one for each batch: {}", bell.rings());
        assert_eq!(many.wait().unwrap().offsets(), 2..4);
    });
}
