//! The same on real files: what needs threads, the ring, or a directory.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use ringwal_engine::disk::uring::{UringDisk, UringOptions};
use ringwal_engine::{Engine, Io, OpenErrorKind, Options, Stream, StreamId};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::skipped::skipped;
use crate::watchdog::Watchdog;

const STREAM: StreamId = StreamId::new(7);
/// Some more than the 1,024 files that a ring's table had room for.
const FILES: usize = 1100;

fn options() -> Options {
    Engine::options().segment_bytes(1 << 20).pool_bytes(4 << 20)
}

/// Whether this machine has io_uring for us; a reason is printed when not.
fn has_ring() -> bool {
    let directory = tempfile::tempdir().unwrap();
    match UringDisk::open(directory.path(), UringOptions::default(), None) {
        Ok(_) => true,
        Err(error) => {
            skipped(&error.to_string());
            false
        }
    }
}

/// The ways to the disk that this machine has.
fn ways() -> Vec<Io> {
    if has_ring() { vec![Io::Uring, Io::Blocking] } else { vec![Io::Blocking] }
}

fn payloads(stream: &Stream) -> Vec<Vec<u8>> {
    stream.read(..).unwrap().map(|record| record.unwrap().payload().to_vec()).collect()
}

#[test]
fn a_directory_of_more_files_than_a_usual_file_table_opens() {
    let limit = getrlimit(Resource::Nofile);
    let wanted = 3 * FILES as u64;
    if limit.current.is_some_and(|current| current < wanted) {
        let raised = Rlimit { current: Some(wanted), ..limit };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            return skipped(&format!("{wanted} files cannot be open at once: {error}"));
        }
    }
    if !has_ring() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let engine = options().open(directory.path()).unwrap();
    engine.stream(STREAM).append(b"one").unwrap().wait().unwrap();
    engine.close().unwrap();
    // Files that were never finished are opened like any other; they only cost less to make.
    let folder = directory.path().join("shard-00");
    for number in 100..100 + FILES {
        std::fs::File::create_new(folder.join(format!("segment-{number:08}"))).unwrap();
    }
    let engine = options().open(directory.path()).unwrap();
    engine.stream(STREAM).append(b"two").unwrap().wait().unwrap();
    assert_eq!(payloads(&engine.stream(STREAM)), [b"one", b"two"]);
    engine.close().unwrap();
}

/// A record whose bytes are had by code of the caller's.
struct Counted<'a> {
    calls: &'a AtomicU32,
    panics: bool,
}

impl AsRef<[u8]> for Counted<'_> {
    fn as_ref(&self) -> &[u8] {
        let calls = self.calls.fetch_add(1, Ordering::SeqCst);
        assert!(!(self.panics && calls == 1), "the second call is one too many");
        b"record"
    }
}

#[test]
fn a_record_is_asked_for_its_bytes_once() {
    let directory = tempfile::tempdir().unwrap();
    let engine = options().io(Io::Blocking).open(directory.path()).unwrap();
    let stream = engine.stream(STREAM);
    // One that changes its mind, or panics, when it is asked again would leave half a frame.
    let calls = AtomicU32::new(0);
    let record = Counted { calls: &calls, panics: true };
    assert_eq!(stream.append_batch([record]).unwrap().wait().unwrap().offsets(), 0..1);
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    engine.close().unwrap();

    let mut shard = options().open_shard(directory.path()).unwrap();
    let calls = AtomicU32::new(0);
    let records = [Counted { calls: &calls, panics: true }];
    drop(shard.append_batch(STREAM, &records).unwrap());
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    shard.close().unwrap();
}

#[test]
fn a_batch_whose_record_panics_is_not_taken_and_hinders_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let engine = options().io(Io::Blocking).open(directory.path()).unwrap();
    let stream = engine.stream(STREAM);
    stream.append(b"before").unwrap().wait().unwrap();
    let calls = AtomicU32::new(0);
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        // The second of the three panics.
        let record = |panics| Counted { calls: &calls, panics };
        stream.append_batch([record(false), record(true), record(false)]).map(drop)
    }));
    assert!(panicked.is_err());
    stream.append(b"after").unwrap().wait().unwrap();
    engine.close().unwrap();
    let engine = options().open(directory.path()).unwrap();
    assert_eq!(payloads(&engine.stream(STREAM)), [b"before".as_slice(), b"after"]);
}

/// A waker that uses the engine, as one does that runs its task in place.
struct CallsBack {
    stream: Stream,
    called: Sender<()>,
}

impl Wake for CallsBack {
    fn wake(self: Arc<Self>) {
        assert_eq!(self.stream.engine().stats().shards.len(), 1);
        let _ = self.stream.end();
        // Full is an answer, too.
        let _ = self.stream.try_append(b"from a waker").map(drop);
        let mut tail = self.stream.tail(u64::MAX);
        let next = std::pin::pin!(tail.next());
        assert!(next.poll(&mut Context::from_waker(Waker::noop())).is_pending());
        self.called.send(()).expect("the test waits for it");
    }
}

#[test]
fn a_waker_may_use_the_engine() {
    let _watchdog = Watchdog::new("a_waker_may_use_the_engine", Duration::from_secs(60));
    for io in ways() {
        let directory = tempfile::tempdir().unwrap();
        let engine = options().io(io).open(directory.path()).unwrap();
        let stream = engine.stream(STREAM);
        let (called, calls) = channel();
        let waker = Waker::from(Arc::new(CallsBack { stream: stream.clone(), called }));
        let mut context = Context::from_waker(&waker);

        // A tail.
        let mut tail = stream.tail(0);
        assert!(std::pin::pin!(tail.next()).poll(&mut context).is_pending());
        drop(stream.append(b"for the tail").unwrap());
        calls.recv().unwrap();

        // A receipt, unless it is there before it is asked for.
        loop {
            let mut token = stream.append(b"for the receipt").unwrap();
            if std::pin::Pin::new(&mut token).poll(&mut context).is_pending() {
                break;
            }
        }
        calls.recv().unwrap();

        // Room, unless it comes between the refusal and the registration.
        let record = vec![1; 60_000];
        let mut waiting = loop {
            while stream.try_append(&record).map(drop).is_ok() {}
            let mut waiting = Box::pin(stream.append_async(&record));
            match waiting.as_mut().poll(&mut context) {
                Poll::Pending => break waiting,
                Poll::Ready(token) => drop(token.unwrap()),
            }
        };
        calls.recv().unwrap();
        // Only one more refusal registers it again.
        if let Poll::Ready(token) = waiting.as_mut().poll(&mut context) {
            drop(token.unwrap());
        }
        drop(waiting);
        engine.close().unwrap();
    }
}

/// A waker that lets go of a handle.
struct LetsGo {
    stream: Mutex<Option<Stream>>,
    called: Sender<()>,
}

impl Wake for LetsGo {
    fn wake(self: Arc<Self>) {
        drop(self.stream.lock().unwrap().take());
        self.called.send(()).expect("the test waits for it");
    }
}

#[test]
fn the_last_handle_may_go_in_a_waker() {
    let _watchdog = Watchdog::new("the_last_handle_may_go_in_a_waker", Duration::from_secs(60));
    for io in ways() {
        let directory = tempfile::tempdir().unwrap();
        // The batch waits for company until all other handles have gone.
        let lingers = options().io(io).linger(Duration::from_millis(300));
        let engine = lingers.open(directory.path()).unwrap();
        let stream = engine.stream(STREAM);
        let (called, calls) = channel();
        let mut token = stream.append(b"one").unwrap();
        let waker = LetsGo { stream: Mutex::new(Some(stream)), called };
        let waker = Waker::from(Arc::new(waker));
        let polled = std::pin::Pin::new(&mut token).poll(&mut Context::from_waker(&waker));
        assert!(polled.is_pending());
        drop(engine);
        calls.recv().unwrap();
        assert_eq!(token.wait().unwrap().offset(), 0);
        let engine = options().open(directory.path()).unwrap();
        assert!(engine.recovery()[0].clean, "{:?}", engine.recovery()[0]);
        assert_eq!(payloads(&engine.stream(STREAM)), [b"one"]);
    }
}

#[test]
fn an_open_that_one_shard_refuses_leaves_the_others_ready_for_the_next() {
    for io in ways() {
        let options = options().shards(2).io(io);
        let directory = tempfile::tempdir().unwrap();
        let engine = options.open(directory.path()).unwrap();
        for id in 4..12 {
            engine.stream(StreamId::new(id)).append(id.to_le_bytes()).unwrap().wait().unwrap();
        }
        engine.close().unwrap();
        // Who waits for the lock waits for somebody: here everybody has ended by then.
        let at_once = options.lock_wait(Duration::ZERO);
        for shard in ["shard-00", "shard-01"] {
            let segment = std::fs::read_dir(directory.path().join(shard)).unwrap();
            let segments = segment.map(|entry| entry.unwrap().path());
            let name = segments.filter(|path| !path.ends_with("anchor")).min().unwrap();
            let aside = directory.path().join("aside");
            std::fs::rename(&name, &aside).unwrap();
            for _ in 0..3 {
                let error = at_once.open(directory.path()).err().expect("a segment is missing");
                assert_eq!(error.kind(), OpenErrorKind::Corrupt, "{error}");
            }
            std::fs::rename(&aside, &name).unwrap();
            let engine = at_once.open(directory.path()).unwrap();
            for id in 4..12u64 {
                assert_eq!(payloads(&engine.stream(StreamId::new(id))), [id.to_le_bytes()]);
            }
            engine.close().unwrap();
        }
    }
}

#[test]
fn the_longest_durations_are_taken_by_real_disks() {
    for io in ways() {
        let directory = tempfile::tempdir().unwrap();
        let longest = options().io(io).idle_seal(Some(Duration::MAX)).lock_wait(Duration::MAX);
        for options in [longest.clone().linger(Duration::MAX), longest.spin(Duration::MAX)] {
            let engine = options.open(directory.path()).unwrap();
            let stream = engine.stream(STREAM);
            let end = stream.end();
            let token = stream.append(b"one").unwrap();
            // Closing waits for no company.
            engine.close().unwrap();
            assert_eq!(token.wait().unwrap().offset(), end);
        }
        let mut shard = options().io(io).open_shard(directory.path()).unwrap();
        let token = shard.append(STREAM, b"two").unwrap();
        while token.try_receipt().is_none() {
            shard.run_once(Some(Duration::MAX)).unwrap();
        }
        let record = shard.tail(STREAM, 2).next_timeout(Duration::MAX).unwrap();
        assert_eq!(record.expect("it is there").payload(), b"two");
        shard.close().unwrap();
    }
}
