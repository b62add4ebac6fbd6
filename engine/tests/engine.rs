//! The engine on real files, as an embedder uses it; each property with one shard and with two.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use ringwal_engine::{
    AppendError, CommitError, Engine, Io, OpenErrorKind, Options, ReadError, Refusal, SealedFrames,
    StreamId, SyncMode, TrimError,
};

const MIB: u64 = 1 << 20;

fn options(shards: u16) -> Options {
    Engine::options().shards(shards).segment_bytes(MIB).pool_bytes(4 << 20)
}

/// Runs a property with one shard and with two, on io_uring and without it.
fn everywhere(property: impl Fn(Options, &std::path::Path)) {
    for shards in [1, 2] {
        for io in [Io::Uring, Io::Blocking] {
            for sync in [SyncMode::Dsync, SyncMode::Fdatasync] {
                let directory = tempfile::tempdir().unwrap();
                property(options(shards).io(io).sync(sync), directory.path());
            }
        }
    }
}

fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(std::thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = std::pin::pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
        std::thread::park();
    }
}

fn payloads(engine: &Engine, stream: u64) -> Vec<Vec<u8>> {
    let records = engine.stream(StreamId::new(stream)).read(..).unwrap();
    records.map(|record| record.unwrap().payload().to_vec()).collect()
}

#[test]
fn records_come_back_after_reopening() {
    everywhere(|options, directory| {
        for round in 0..3u64 {
            let engine = options.open(directory).unwrap();
            for stream in 4..10 {
                let stream = engine.stream(StreamId::new(stream));
                assert_eq!(stream.end(), round * 3);
                let token = stream.append(format!("{round}")).unwrap();
                let batch = stream.append_batch([b"".as_slice(), b"x"]).unwrap();
                assert_eq!(token.wait().unwrap().offset(), round * 3);
                assert_eq!(batch.wait().unwrap().offsets(), round * 3 + 1..round * 3 + 3);
            }
            for stream in 4..10 {
                let expected: Vec<Vec<u8>> = (0..=round)
                    .flat_map(|round| [format!("{round}").into_bytes(), vec![], b"x".to_vec()])
                    .collect();
                assert_eq!(payloads(&engine, stream), expected);
            }
            assert_eq!(engine.streams().len(), 6);
            engine.close().unwrap();
        }
    });
}

#[test]
fn many_threads_get_their_own_offsets() {
    everywhere(|options, directory| {
        let engine = options.open(directory).unwrap();
        let threads: Vec<_> = (0..16u64)
            .map(|thread| {
                let stream = engine.stream(StreamId::new(4 + thread % 3));
                std::thread::spawn(move || {
                    let mut offsets = Vec::new();
                    for number in 0..50u64 {
                        let payload = (thread << 32 | number).to_le_bytes();
                        let receipt = stream.append(payload).unwrap().wait().unwrap();
                        offsets.push((stream.id(), receipt.offset(), payload.to_vec()));
                    }
                    offsets
                })
            })
            .collect();
        let receipts: Vec<_> =
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        engine.close().unwrap();
        let engine = options.open(directory).unwrap();
        for stream in 4..7 {
            let read = payloads(&engine, stream);
            let mine: Vec<_> = receipts.iter().filter(|(id, ..)| id.get() == stream).collect();
            assert_eq!(read.len(), mine.len());
            for (_, offset, payload) in mine {
                assert_eq!(&read[*offset as usize], payload);
            }
        }
    });
}

#[test]
fn futures_complete_without_a_runtime() {
    everywhere(|options, directory| {
        let engine = options.open(directory).unwrap();
        let stream = engine.stream(StreamId::new(7));
        block_on(async {
            let tokens: Vec<_> = (0..100u8).map(|byte| stream.append([byte]).unwrap()).collect();
            for (offset, token) in tokens.into_iter().enumerate() {
                assert_eq!(token.await.unwrap().offset(), offset as u64);
            }
            let token = stream.append_async(b"more").await.unwrap();
            assert_eq!(token.await.unwrap().offset(), 100);
        });
    });
}

#[test]
fn a_full_queue_pushes_back_and_loses_nothing() {
    everywhere(|options, directory| {
        let engine = options.open(directory).unwrap();
        let stream = engine.stream(StreamId::new(7));
        let record = vec![1u8; 60_000];
        let mut tokens = Vec::new();
        let full = loop {
            match stream.try_append(&record) {
                Ok(token) => tokens.push(token),
                Err(error) => break error,
            }
            assert!(tokens.len() < 100_000, "the queue has a bound");
            stream.trim_async(0).map(drop).unwrap();
        };
        assert!(matches!(full, AppendError::Full { .. }), "{full}");
        tokens.push(stream.append(&record).unwrap());
        tokens.push(block_on(stream.append_async(&record)).unwrap());
        let count = tokens.len() as u64;
        for (offset, token) in tokens.into_iter().enumerate() {
            assert_eq!(token.wait().unwrap().offset(), offset as u64);
        }
        assert_eq!(stream.end(), count);
    });
}

/// What just became durable comes from memory to who waits for it: nothing else could, of emptied files.
#[test]
fn who_waits_at_the_end_of_a_stream_has_its_next_record_without_the_device() {
    everywhere(|options, directory| {
        let engine = options.open(directory).unwrap();
        let stream = engine.stream(StreamId::new(7));
        let mut tail = stream.tail(0);
        assert!(tail.next_timeout(Duration::from_millis(1)).unwrap().is_none());
        for payload in ["one", "two"] {
            stream.append(payload).unwrap().wait().unwrap();
        }
        for shard in std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()) {
            for file in std::fs::read_dir(shard).into_iter().flatten().map(Result::unwrap) {
                if file.file_name().to_string_lossy().starts_with("segment-") {
                    let file = std::fs::File::options().write(true).open(file.path()).unwrap();
                    file.set_len(0).unwrap();
                }
            }
        }
        assert_eq!(tail.next_blocking().unwrap().payload(), b"one");
        assert_eq!(tail.next_blocking().unwrap().payload(), b"two");
        drop(tail);
        let mut late = stream.read(..).unwrap();
        assert!(late.next().unwrap().is_err(), "nobody waits: it has to ask the device");
    });
}

#[test]
fn a_tail_sees_every_record_once_and_in_order() {
    everywhere(|options, directory| {
        let engine = options.open(directory).unwrap();
        let stream = engine.stream(StreamId::new(7));
        let mut tail = stream.tail(0);
        let reader = std::thread::spawn(move || {
            (0..500u32)
                .map(|_| tail.next_blocking().unwrap())
                .map(|record| u32::from_le_bytes(record.payload().try_into().unwrap()))
                .collect::<Vec<_>>()
        });
        for number in 0..500u32 {
            drop(stream.append(number.to_le_bytes()).unwrap());
            if number % 50 == 0 {
                std::thread::yield_now();
            }
        }
        assert_eq!(reader.join().unwrap(), (0..500).collect::<Vec<_>>());
        let mut tail = stream.tail(499);
        assert_eq!(block_on(tail.next()).unwrap().offset(), 499);
        assert!(tail.next_timeout(Duration::from_millis(1)).unwrap().is_none());
        engine.close().unwrap();
        assert!(matches!(tail.next_blocking(), Err(ReadError::Closed)));
    });
}

#[test]
fn trimming_gives_space_back_and_moves_stragglers() {
    everywhere(|options, directory| {
        let engine = options.open(directory).unwrap();
        let shards = engine.stats().shards.len() as u16;
        let busy = StreamId::new(7);
        let quiet = (8..).map(StreamId::new).find(|id| id.shard(shards) == busy.shard(shards));
        let (busy, quiet) = (engine.stream(busy), engine.stream(quiet.unwrap()));
        let record = vec![3u8; 30_000];
        for round in 0..200u64 {
            if round % 20 == 0 {
                quiet.append(round.to_le_bytes()).unwrap().wait().unwrap();
            }
            let receipt = busy.append(&record).unwrap().wait().unwrap();
            busy.trim(receipt.offset()).unwrap();
        }
        // Freed segments come back a little later: records move and facts become durable first.
        let stats = wait_until(&engine, |stats| stats.segments.live <= 4);
        assert!(stats.segments.live <= 4, "{:?}", stats.segments);
        assert!(stats.rotations >= 3);
        assert!(stats.moved_records > 0, "the quiet stream keeps old segments alive");
        let expected: Vec<Vec<u8>> = (0..10u64).map(|n| (n * 20).to_le_bytes().to_vec()).collect();
        assert_eq!(payloads(&engine, quiet.id().get()), expected);
        assert!(matches!(busy.read(0..1), Err(ReadError::Trimmed { .. })));
        assert!(matches!(
            busy.trim(10_000),
            Err(TrimError::Commit(CommitError::Refused(Refusal::TrimBeyondEnd { .. })))
        ));
        let held = (busy.trimmed(), busy.end());
        engine.close().unwrap();
        let engine = options.open(directory).unwrap();
        assert_eq!(payloads(&engine, quiet.id().get()), expected);
        let reopened = engine.stream(busy.id());
        assert_eq!((reopened.trimmed(), reopened.end()), held);
    });
}

fn wait_until(
    engine: &Engine,
    done: impl Fn(&ringwal_engine::ShardStats) -> bool,
) -> ringwal_engine::ShardStats {
    let stream = engine.stream(StreamId::new(7));
    let shard = usize::from(stream.id().shard(engine.stats().shards.len() as u16));
    for _ in 0..1000 {
        let stats = engine.stats().shards.swap_remove(shard);
        if done(&stats) {
            return stats;
        }
        // Progress of the shard is an event: each receipt is one turn of its loop.
        let end = stream.append(b"tick").unwrap().wait().unwrap().offset();
        stream.trim(end).unwrap();
    }
    engine.stats().shards.swap_remove(shard)
}

#[test]
fn sealed_frames_are_the_very_bytes_that_are_written() {
    everywhere(|options, directory| {
        let engine = options.open(directory).unwrap();
        let subscription = engine.subscribe(64);
        let stream = engine.stream(StreamId::new(7));
        stream.append_batch([b"one", b"two"]).unwrap().wait().unwrap();
        let Some(SealedFrames::Batch { frames, .. }) =
            subscription.next_timeout(Duration::from_secs(10))
        else {
            panic!("a batch was sealed");
        };
        assert_eq!((frames[0].base_offset, frames[0].count), (0, 2));
        // The same bytes make the same record in another engine, at the same offset.
        let other = tempfile::tempdir().unwrap();
        let follower = options.open(other.path()).unwrap();
        let followed = follower.stream(StreamId::new(7));
        let receipts = followed.append_frame(&frames[0].bytes).unwrap().wait().unwrap();
        assert_eq!(receipts.offsets(), 0..2);
        assert_eq!(payloads(&follower, 7), [b"one", b"two"]);
        let twice = followed.append_frame(&frames[0].bytes).unwrap().wait();
        assert!(matches!(twice, Err(CommitError::Refused(Refusal::NotContinuation { .. }))));
        let mut damaged = frames[0].bytes.to_vec();
        *damaged.last_mut().unwrap() ^= 1;
        assert!(matches!(followed.append_frame(&damaged), Err(AppendError::BadFrame(_))));
        let strange = follower.stream(StreamId::new(8)).append_frame(&frames[0].bytes);
        let Err(AppendError::WrongStream { expected, found }) = strange else { panic!() };
        assert_eq!((expected, found), (StreamId::new(8), StreamId::new(7)));
    });
}

#[test]
fn a_slow_subscriber_is_told_and_starves_nobody() {
    everywhere(|options, directory| {
        let engine = options.open(directory).unwrap();
        let subscription = engine.subscribe(1000);
        let stream = engine.stream(StreamId::new(7));
        for _ in 0..200 {
            stream.append(b"x").unwrap().wait().unwrap();
        }
        let mut seen = 0;
        let mut lagged = false;
        while let Some(sealed) = subscription.next_timeout(Duration::ZERO) {
            match sealed {
                SealedFrames::Batch { frames, .. } => seen += frames.len(),
                SealedFrames::Lagged { .. } => lagged = true,
            }
        }
        assert!(lagged && seen < 200, "half of the pool at most: {seen} frames were kept");
        assert!(seen > 0);
    });
}

#[test]
fn a_cut_starts_an_epoch_and_old_records_never_return() {
    everywhere(|options, directory| {
        let engine = options.open(directory).unwrap();
        let stream = engine.stream(StreamId::new(7));
        stream.append_batch([b"a", b"b", b"c"]).unwrap().wait().unwrap();
        stream.truncate(1, 5).unwrap().wait().unwrap();
        assert_eq!(stream.end(), 1);
        let refused = stream.truncate(1, 5).unwrap().wait();
        assert!(matches!(refused, Err(CommitError::Refused(Refusal::EpochNotGreater { .. }))));
        let receipt = stream.append(b"d").unwrap().wait().unwrap();
        assert_eq!((receipt.offset(), receipt.epoch()), (1, 5));
        engine.close().unwrap();
        let engine = options.open(directory).unwrap();
        assert_eq!(payloads(&engine, 7), [b"a", b"d"]);
        assert_eq!(engine.stream(StreamId::new(7)).epochs().last().unwrap().epoch, 5);
    });
}

#[test]
fn bad_requests_say_what_is_wrong() {
    let directory = tempfile::tempdir().unwrap();
    let engine = options(1).open(directory.path()).unwrap();
    let stream = engine.stream(StreamId::new(7));
    let most = engine.record_bytes_max();
    let too_large = stream.append(vec![0; most + 1]).unwrap_err();
    assert!(matches!(too_large, AppendError::TooLarge { .. }), "{too_large}");
    assert_eq!(stream.append(vec![9; most]).unwrap().wait().unwrap().offset(), 0);
    assert!(matches!(stream.append_batch::<[&[u8]; 0]>([]), Err(AppendError::Empty)));
    let in_use = options(1).lock_wait(Duration::ZERO).open(directory.path()).err().unwrap();
    assert_eq!(in_use.kind(), OpenErrorKind::InUse, "{in_use}");
    assert!(in_use.to_string().contains(&std::process::id().to_string()), "{in_use}");
    engine.clone().close().unwrap();
    assert!(matches!(stream.append(b"late"), Err(AppendError::Closed)));
    let shards = options(2).open(directory.path()).err().unwrap();
    assert_eq!(shards.kind(), OpenErrorKind::Usage, "{shards}");
    for (wrong, name) in [
        (Engine::options().shards(0), "shards"),
        (Engine::options().segment_bytes(5000), "segment_bytes"),
        (Engine::options().flush_slots(0), "flush_slots"),
        (Engine::options().pool_bytes(4096), "pool_bytes"),
    ] {
        let error = wrong.open(directory.path()).err().unwrap();
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[test]
fn a_read_only_engine_reads_and_takes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let engine = options(2).open(directory.path()).unwrap();
    engine.stream(StreamId::new(7)).append(b"one").unwrap().wait().unwrap();
    engine.close().unwrap();
    let reader = Engine::options().read_only(true).open(directory.path()).unwrap();
    let second = Engine::options().read_only(true).open(directory.path()).unwrap();
    for engine in [reader, second] {
        assert_eq!(payloads(&engine, 7), [b"one"]);
        let refused = engine.stream(StreamId::new(7)).append(b"two").unwrap_err();
        assert!(matches!(refused, AppendError::ReadOnly));
    }
}

#[test]
fn dropping_the_last_handle_closes_like_close() {
    let directory = tempfile::tempdir().unwrap();
    let engine = options(1).open(directory.path()).unwrap();
    let stream = engine.stream(StreamId::new(7));
    drop(engine);
    drop(stream.append(b"one").unwrap());
    drop(stream);
    let engine = options(1).open(directory.path()).unwrap();
    assert!(engine.recovery()[0].clean, "{:?}", engine.recovery()[0]);
    assert_eq!(payloads(&engine, 7), [b"one"]);
}

#[test]
fn an_idle_shard_says_that_its_last_records_are_durable() {
    let directory = tempfile::tempdir().unwrap();
    let mut shard = options(1).open_shard(directory.path()).unwrap();
    let token = shard.append(StreamId::new(7), b"one").unwrap();
    while token.try_receipt().is_none() {
        shard.run_once(None).unwrap();
    }
    while shard.stats().idle_seals == 0 {
        shard.run_once(None).unwrap();
    }
    let batches = shard.stats().batches;
    // Sealed once: after that it sleeps until something comes.
    let began = std::time::Instant::now();
    while began.elapsed() < Duration::from_millis(60) {
        shard.run_once(Some(Duration::from_millis(20))).unwrap();
    }
    assert_eq!(shard.stats().idle_seals, 1);
    assert!(shard.stats().batches <= batches + 1);
}

#[test]
fn one_wake_up_reaches_all_tasks_of_a_batch() {
    struct Count(AtomicU32);
    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let directory = tempfile::tempdir().unwrap();
    let mut shard = options(1).open_shard(directory.path()).unwrap();
    let count = Arc::new(Count(AtomicU32::new(0)));
    let waker = Waker::from(count.clone());
    let mut context = Context::from_waker(&waker);
    let mut tokens: Vec<_> =
        (0..64u8).map(|byte| shard.append(StreamId::new(7), [byte]).unwrap()).collect();
    for token in &mut tokens {
        assert!(std::pin::Pin::new(token).poll(&mut context).is_pending());
    }
    while tokens[0].try_receipt().is_none() {
        shard.run_once(None).unwrap();
    }
    assert_eq!(count.0.load(Ordering::SeqCst), 1);
    assert!(tokens.iter().all(|token| token.try_receipt().is_some()));
}

#[test]
fn a_batch_limit_above_a_quarter_of_a_segment_is_lowered_and_told() {
    for (asked, told) in [(None, false), (Some(MIB / 4), false), (Some(MIB), true)] {
        let directory = tempfile::tempdir().unwrap();
        let options = asked.map_or(options(1), |bytes| options(1).batch_bytes_max(bytes as usize));
        let engine = options.open(directory.path()).unwrap();
        assert!(engine.record_bytes_max() < MIB as usize / 4);
        let notes = engine.stats().shards.swap_remove(0).disk.notes;
        let tells = notes.iter().any(|note| note.contains("batch_bytes_max"));
        assert_eq!(tells, told, "{asked:?}: {notes:?}");
    }
}

#[test]
fn the_last_handle_may_be_dropped_in_a_waker_that_a_shard_runs() {
    /// Drops its handle when it is woken, and tells on which thread.
    struct Last(Mutex<Option<Engine>>, Sender<Option<String>>);
    impl Wake for Last {
        fn wake(self: Arc<Self>) {
            drop(self.0.lock().unwrap().take());
            self.1.send(std::thread::current().name().map(str::to_owned)).unwrap();
        }
    }
    everywhere(|options, directory| {
        // Long enough for this thread to let go of its own handles first.
        let engine = options.clone().linger(Duration::from_millis(200)).open(directory).unwrap();
        let stream = engine.stream(StreamId::new(7));
        let mut tail = stream.tail(0);
        let (sender, dropped) = channel();
        let waker = Waker::from(Arc::new(Last(Mutex::new(Some(engine)), sender)));
        let mut token = std::pin::pin!(stream.append(b"one").unwrap());
        assert!(token.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        drop((stream, waker));
        let name = dropped.recv_timeout(Duration::from_secs(10)).unwrap();
        assert!(name.is_some_and(|name| name.starts_with("ringwal-shard-")));
        assert_eq!(token.try_receipt().unwrap().unwrap().offset(), 0);
        assert_eq!(tail.next_blocking().unwrap().payload(), b"one");
        assert!(matches!(tail.next_blocking(), Err(ReadError::Closed)));
        // The journal was closed in order, and the lock is free.
        let engine = options.open(directory).unwrap();
        assert!(engine.recovery().iter().all(|report| report.clean), "{:?}", engine.recovery());
        assert_eq!(payloads(&engine, 7), [b"one"]);
    });
}

#[test]
fn an_own_loop_of_several_shards_or_to_be_read_only_is_refused_before_anything_is_made() {
    let parent = tempfile::tempdir().unwrap();
    let directory = parent.path().join("data");
    for (options, what) in
        [(options(1).read_only(true), "option read_only = true"), (options(3), "option shards = 3")]
    {
        let error = options.open_shard(&directory).map(drop).unwrap_err();
        assert!(error.to_string().contains(what), "{error}");
        assert!(!directory.exists());
    }
    options(2).open(&directory).unwrap().close().unwrap();
    let error = Engine::options().open_shard(&directory).map(drop).unwrap_err();
    assert!(error.to_string().contains("option shards = 2"), "{error}");
}
