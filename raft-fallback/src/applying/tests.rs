use std::fs;
use std::path::PathBuf;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use super::*;
use crate::WaitError;
use crate::command::{BrokerId, Command, Expected, Record, TopicName};
use crate::session::{Session, SessionId};
use crate::snapshot;
use crate::state::{ApplyError, Done};

/// A node's engine, and what its owner knows.
struct Node {
    directory: tempfile::TempDir,
    engine: Engine,
    committed: Arc<AtomicU64>,
    trims: Arc<Mutex<Vec<u64>>>,
}

fn open(directory: &tempfile::TempDir) -> Engine {
    let options = Engine::options().shards(1).segment_bytes(1 << 20).pool_bytes(4 << 20);
    options.open(directory.path()).unwrap()
}

impl Node {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let engine = open(&directory);
        engine.set_epoch(1);
        Self { engine, directory, committed: Arc::default(), trims: Arc::default() }
    }

    /// With no bound on what is committed.
    fn committed() -> Self {
        let node = Self::new();
        node.committed.store(u64::MAX, Ordering::SeqCst);
        node
    }

    fn options(&self) -> ApplyingOptions {
        let trims = self.trims.clone();
        let trim = move |before| lock(&trims).push(before);
        ApplyingOptions::new(self.committed.clone(), Box::new(trim))
    }

    fn start(&self) -> (Metadata, Applying) {
        Applying::start(&self.engine, self.options()).unwrap()
    }

    fn stream(&self) -> ringwal_engine::Stream {
        self.engine.stream(METADATA_STREAM)
    }

    fn append(&self, records: &[Vec<u8>]) -> u64 {
        let receipts = self.stream().append_batch(records).unwrap().wait().unwrap();
        receipts.offsets().end
    }

    /// As an `EpochStart` does it: from now on, this node leads in `epoch`.
    fn cut(&self, start: u64, epoch: u64) {
        self.stream().truncate(start, epoch).unwrap().wait().unwrap();
        self.engine.set_epoch(epoch);
    }

    fn restart(self) -> Self {
        self.engine.close().unwrap();
        let engine = open(&self.directory);
        engine.set_epoch(1);
        Self { engine, ..self }
    }

    fn snapshots(&self) -> PathBuf {
        self.directory.path().join(folder::FOLDER)
    }

    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.snapshots()).into_iter().flatten();
        let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name();
        let mut names: Vec<_> = entries.map(|one| name(one).into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// What a node that has only the stream comes to.
    fn replayed(&self) -> Vec<u8> {
        let mut state = State::default();
        for record in self.stream().read(0..).unwrap() {
            replay::apply(&mut state, &record.unwrap()).unwrap();
        }
        bytes(&state)
    }
}

fn file(end: u64, epoch: u64, kind: &str) -> String {
    format!("{end:020}-{epoch:020}.{kind}")
}

fn bytes(state: &State) -> Vec<u8> {
    let mut bytes = Vec::new();
    snapshot::write(state, &mut bytes).unwrap();
    bytes
}

fn shown(metadata: &Metadata) -> Vec<u8> {
    metadata.read(bytes).1
}

fn record(command: Command) -> Vec<u8> {
    Record { time_ms: 7, session: None, command }.encode().unwrap()
}

fn register(broker: u64) -> Vec<u8> {
    let broker = BrokerId::new(broker);
    record(Command::RegisterBroker { broker, addresses: vec![], knows: 1 })
}

fn name(name: &str) -> TopicName {
    TopicName::new(name).unwrap()
}

fn create(topic: &str) -> Vec<u8> {
    let (name, configuration) = (name(topic), Default::default());
    record(Command::CreateTopic { name, partitions: 2, replication_factor: 1, configuration })
}

fn put(value: u64) -> Vec<u8> {
    let (key, value) = (b"key".to_vec(), value.to_le_bytes().to_vec());
    record(Command::PutKey { key, value, expected: Expected::Any })
}

fn puts(values: std::ops::Range<u64>) -> Vec<Vec<u8>> {
    values.map(put).collect()
}

fn far() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

fn reaches(metadata: &Metadata, end: u64) -> Progress {
    metadata.wait_applied(end - 1).wait(far()).unwrap()
}

/// Waits for what nothing tells of.
fn until(what: impl Fn() -> bool) {
    let limit = far();
    while !what() {
        assert!(Instant::now() < limit, "it does not come");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_restart_without_a_snapshot_replays_all() {
    let node = Node::new();
    let (metadata, applying) = node.start();
    assert_eq!(metadata.progress(), Progress { epoch: 0, end: 0 });
    node.append(&[register(1), create("a"), put(3)]);
    assert_eq!(reaches(&metadata, 3), Progress { epoch: 1, end: 3 });
    let before = shown(&metadata);
    let outcome = applying.outcome(1, 1).wait(far()).unwrap();
    drop(applying);
    let ended = WaitError::Stopped(Stopped::Ended);
    assert_eq!(metadata.wait_applied(9).wait(far()), Err(ended));

    let node = node.restart();
    let (metadata, applying) = node.start();
    assert_eq!(metadata.progress(), Progress { epoch: 1, end: 3 }, "it is there at once");
    assert_eq!(shown(&metadata), before);
    assert_eq!(applying.outcome(1, 1).wait(far()), Ok(outcome), "also what came of it");
    node.append(&puts(4..5));
    reaches(&metadata, 4);
    assert_eq!(shown(&metadata), node.replayed());
}

#[test]
fn a_restart_with_snapshots_goes_on_from_the_newest() {
    let node = Node::committed();
    let (metadata, applying) = node.start();
    for step in 0..4 {
        let end = node.append(&[register(step), put(step)]);
        reaches(&metadata, end);
        let taken = applying.snapshot_below(u64::MAX).unwrap().unwrap();
        assert_eq!(taken.id, SnapshotId { end, epoch: 1 });
        assert_eq!(applying.last_snapshot().unwrap().id, taken.id);
    }
    assert!(applying.snapshot_below(u64::MAX).unwrap().is_none(), "nothing is new");
    assert_eq!(node.files(), [file(6, 1, "snapshot"), file(8, 1, "snapshot")]);
    assert_eq!(*lock(&node.trims), [2, 4, 6], "where the older of the two ends");
    node.append(&puts(9..12));
    let expected = node.replayed();
    node.stream().trim(6).unwrap();
    drop(applying);

    let node = node.restart();
    let (metadata, _applying) = node.start();
    assert_eq!(metadata.progress(), Progress { epoch: 1, end: 11 });
    assert_eq!(shown(&metadata), expected);
}

#[test]
fn a_snapshot_is_never_above_the_watermark() {
    let node = Node::new();
    let (metadata, applying) = node.start();
    node.append(&puts(0..10));
    reaches(&metadata, 10);
    assert!(applying.snapshot_below(u64::MAX).unwrap().is_none(), "nothing is committed");
    node.committed.store(6, Ordering::SeqCst);
    assert_eq!(applying.snapshot_below(4).unwrap().unwrap().id.end, 4);
    assert_eq!(applying.snapshot_below(u64::MAX).unwrap().unwrap().id.end, 6);
    node.committed.store(99, Ordering::SeqCst);
    assert_eq!(applying.snapshot_below(u64::MAX).unwrap().unwrap().id.end, 10, "what is applied");
    let taken = applying.newest_snapshot().unwrap().unwrap();
    assert_eq!(taken.read_at(0, usize::MAX).unwrap(), node.replayed());
    assert_eq!(taken.read_at(taken.bytes() - 3, 9).unwrap().len(), 3);
}

#[test]
fn snapshots_are_made_when_they_are_due() {
    let node = Node::new();
    let options = ApplyingOptions { snapshot_records: 10, ..node.options() };
    let (metadata, applying) = Applying::start(&node.engine, options).unwrap();
    let end = node.append(&puts(0..25));
    reaches(&metadata, end);
    assert!(node.files().is_empty(), "nothing is committed");
    node.committed.store(12, Ordering::SeqCst);
    node.append(&puts(25..26));
    until(|| applying.last_snapshot().is_some());
    assert_eq!(applying.last_snapshot().unwrap().id.end, 12);
    // Also when no record comes.
    node.committed.store(26, Ordering::SeqCst);
    until(|| applying.last_snapshot().unwrap().id.end == 26);
    until(|| *lock(&node.trims) == [12]);
    drop(applying);
    let by_bytes = ApplyingOptions { snapshot_bytes: 100, ..node.options() };
    let (metadata, applying) = Applying::start(&node.engine, by_bytes).unwrap();
    node.committed.store(u64::MAX, Ordering::SeqCst);
    let end = node.append(&puts(0..3));
    reaches(&metadata, end);
    until(|| applying.last_snapshot().is_some_and(|taken| taken.id.end == end));
}

#[test]
fn what_is_half_written_is_no_snapshot() {
    let node = Node::committed();
    let (metadata, applying) = node.start();
    reaches(&metadata, node.append(&puts(0..5)));
    applying.snapshot_below(3).unwrap();
    drop(applying);
    let whole = fs::read(node.snapshots().join(file(3, 1, "snapshot"))).unwrap();
    let half = node.snapshots().join("snapshot.writing");
    fs::write(&half, &whole[..whole.len() / 2]).unwrap();
    let (metadata, applying) = node.start();
    assert_eq!(shown(&metadata), node.replayed());
    applying.snapshot_below(5).unwrap();
    assert_eq!(node.files(), [file(3, 1, "snapshot"), file(5, 1, "snapshot")]);
}

#[test]
fn a_damaged_snapshot_is_passed_over_where_the_stream_reaches_back() {
    let node = Node::committed();
    let (metadata, applying) = node.start();
    reaches(&metadata, node.append(&puts(0..9)));
    for upto in [3, 5] {
        applying.snapshot_below(upto).unwrap();
    }
    drop(applying);
    let expected = node.replayed();
    node.stream().trim(3).unwrap();
    let newest = node.snapshots().join(file(5, 1, "snapshot"));
    let whole = fs::read(&newest).unwrap();
    let mut damaged = whole.clone();
    damaged[whole.len() / 2] ^= 1;
    for bytes in [&damaged[..], &whole[..whole.len() - 1], &[]] {
        fs::write(&newest, bytes).unwrap();
        let (metadata, applying) = node.start();
        assert_eq!(shown(&metadata), expected);
        assert_eq!(node.files(), [file(3, 1, "snapshot"), file(5, 1, "damaged")]);
        drop(applying);
    }
    // What is damaged does not count as one that is kept.
    let (_, applying) = node.start();
    lock(&node.trims).clear();
    applying.snapshot_below(7).unwrap();
    assert_eq!(*lock(&node.trims), [3]);
    drop(applying);

    // Nothing leads over a hole.
    fs::write(node.snapshots().join(file(7, 1, "snapshot")), b"nothing").unwrap();
    fs::remove_file(node.snapshots().join(file(3, 1, "snapshot"))).unwrap();
    let refused = Applying::start(&node.engine, node.options()).unwrap_err();
    assert!(
        matches!(refused, StartError::State(RebuildError::Hole { trimmed: 3, end: 0 })),
        "{refused}"
    );
}

#[test]
fn after_a_cut_the_state_is_what_a_replay_comes_to() {
    let node = Node::new();
    node.committed.store(4, Ordering::SeqCst);
    let (metadata, applying) = node.start();
    node.append(&[register(1), create("kept"), put(1), put(2), create("lost"), put(3)]);
    reaches(&metadata, 6);
    applying.snapshot_below(u64::MAX).unwrap();
    let mut lost = metadata.wait_applied(5);
    let mut other = metadata.wait_for_topic(name("other"));
    assert!(lost.wait(far()).is_ok());

    node.cut(4, 2);
    assert_eq!(metadata.progress(), Progress { epoch: 1, end: 6 }, "nobody has said so");
    let seen = applying.epoch_begun(2, Some(4)).wait().unwrap();
    assert_eq!(seen, Progress { epoch: 2, end: 4 });
    assert_eq!(metadata.progress(), seen);
    assert_eq!(shown(&metadata), node.replayed());
    let changed = WaitError::HistoryChanged { progress: seen };
    assert_eq!(lost.wait(far()), Err(changed));

    let thread = std::thread::spawn(move || other.wait(far()));
    node.append(&[create("other"), put(9)]);
    assert_eq!(reaches(&metadata, 6), Progress { epoch: 2, end: 6 });
    assert!(thread.join().unwrap().is_ok());
    assert_eq!(shown(&metadata), node.replayed());
    assert!(metadata.read(|state| state.topic(&name("lost")).is_none()).1);
}

#[test]
fn a_cut_is_noticed_by_what_comes_behind_it() {
    let node = Node::new();
    let (metadata, _applying) = node.start();
    node.append(&puts(0..6));
    reaches(&metadata, 6);
    node.cut(4, 2);
    // As many as were there, and one more: that one is what the thread reads.
    node.append(&[register(1), register(2), register(3)]);
    until(|| metadata.progress() == Progress { epoch: 2, end: 7 });
    assert_eq!(shown(&metadata), node.replayed());
}

#[test]
fn an_epoch_that_cuts_nothing_is_only_raised() {
    let node = Node::new();
    let (metadata, applying) = node.start();
    node.append(&puts(0..3));
    reaches(&metadata, 3);
    let mut waits = metadata.wait_applied(3);
    assert!(waits.wait(Instant::now()).is_err());
    assert_eq!(applying.epoch_begun(5, Some(3)).wait(), Ok(Progress { epoch: 5, end: 3 }));
    assert_eq!(applying.epoch_begun(4, None).wait(), Ok(Progress { epoch: 5, end: 3 }));
    node.engine.set_epoch(5);
    node.append(&puts(3..4));
    assert_eq!(waits.wait(far()), Ok(Progress { epoch: 5, end: 4 }), "no history has changed");
}

/// Cuts at any moment, in the middle of batches too, with and without somebody who says so.
#[test]
fn cuts_at_any_moment_leave_what_the_stream_holds() {
    let node = Node::new();
    node.committed.store(20, Ordering::SeqCst);
    node.append(&puts(0..20));
    let options = ApplyingOptions { snapshot_records: 7, ..node.options() };
    let (metadata, applying) = Applying::start(&node.engine, options).unwrap();
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move |bound: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (random >> 33) % bound
    };
    let mut last = metadata.progress();
    for epoch in 2..150 {
        let tokens: Vec<_> = (0..next(300))
            .map(|value| node.stream().append(put(epoch * 1000 + value)).unwrap())
            .collect();
        let waits = next(3);
        if waits > 0 {
            tokens.into_iter().take(1 + next(40) as usize).for_each(|token| drop(token.wait()));
        }
        // Nothing of the old epoch is sealed behind the cut.
        node.engine.close_epoch();
        node.engine.barrier().unwrap().wait().unwrap();
        let (from, end) = (20, node.stream().end());
        node.cut(from + next(end - from + 1), epoch);
        if waits < 2 {
            let progress = applying.epoch_begun(epoch, None).wait().unwrap();
            assert!(last < progress, "{last:?} {progress:?}");
            assert_eq!(progress.epoch, epoch);
            // It may have more to apply.
            reaches(&metadata, node.stream().end());
            assert_eq!(shown(&metadata), node.replayed());
            last = progress;
        }
    }
    applying.epoch_begun(150, None).wait().unwrap();
    reaches(&metadata, node.stream().end());
    assert_eq!(shown(&metadata), node.replayed());
    assert_eq!(metadata.stopped(), None);
    assert_eq!(applying.trouble(), None);
}

#[test]
fn outcomes_are_told_across_a_cut() {
    let node = Node::new();
    let (metadata, applying) = node.start();
    let mut early = applying.outcome(1, 1);
    let mut never = applying.outcome(1, 7);
    let mut later = applying.outcome(2, 7);
    node.append(&[register(1), create("a"), put(1), put(2)]);
    reaches(&metadata, 4);
    let created = early.wait(far()).unwrap();
    assert!(matches!(created.outcome, Ok(Done::TopicCreated { .. })));
    let late = never.wait(Instant::now()).unwrap_err();
    assert!(matches!(late, OutcomeError::Late { .. }), "{late}");
    assert_eq!(applying.waiting(), 2);

    node.cut(2, 2);
    let progress = applying.epoch_begun(2, Some(2)).wait().unwrap();
    let superseded = Err(OutcomeError::Superseded { progress });
    assert_eq!(never.wait(far()), superseded, "it waited");
    assert_eq!(applying.outcome(1, 3).wait(far()), superseded, "it was applied");
    assert_eq!(applying.outcome(1, 9).wait(far()), superseded, "it can never come");
    assert_eq!(applying.outcome(1, 1).wait(far()), Ok(created), "it was not cut");
    node.append(&puts(2..8));
    assert_eq!(later.wait(far()).unwrap().offset, 7);
    let progress = metadata.progress();
    let superseded = Err(OutcomeError::Superseded { progress });
    assert_eq!(applying.outcome(1, 3).wait(far()), superseded, "another has its offset");
    assert_eq!(applying.waiting(), 0);
    // An epoch of which stream 0 has no record yet: only its start is known.
    let mut waits = applying.outcome(2, 8);
    let progress = applying.epoch_begun(3, Some(8)).wait().unwrap();
    assert_eq!(waits.wait(far()), Err(OutcomeError::Superseded { progress }));
}

#[test]
fn outcomes_are_remembered_for_a_while() {
    let node = Node::new();
    let options = ApplyingOptions { outcomes_max: 3, ..node.options() };
    let (metadata, applying) = Applying::start(&node.engine, options).unwrap();
    let session = SessionId::new(0, 9).and_then(|id| Session::new(id, 1));
    let command = Command::DeleteKey { key: vec![1], expected: Expected::Any };
    let once = Record { time_ms: 0, session, command }.encode().unwrap();
    let end = node.append(&[once.clone(), put(1), put(2), put(3), once]);
    reaches(&metadata, end);
    let progress = metadata.progress();
    for offset in 0..2 {
        let gone = Err(OutcomeError::Gone { progress });
        assert_eq!(applying.outcome(1, offset).wait(far()), gone);
    }
    for offset in 2..4 {
        assert_eq!(applying.outcome(1, offset).wait(far()).unwrap().offset, offset);
    }
    let retry = applying.outcome(1, 4).wait(far()).unwrap();
    assert!(retry.is_retry && retry.offset == 0, "{retry:?}");
    drop(applying.outcome(1, 99));
    assert_eq!(applying.waiting(), 0, "nobody is left behind");
}

#[test]
fn sixty_four_callers_each_get_their_own_outcome() {
    const CALLERS: u64 = 64;
    const COMMANDS: u64 = 40;
    let node = Node::new();
    let (metadata, applying) = node.start();
    node.append(&[register(1)]);
    let barrier = Barrier::new(CALLERS as usize);
    std::thread::scope(|scope| {
        for caller in 0..CALLERS {
            let (stream, applying, metadata) = (node.stream(), &applying, &metadata);
            let barrier = &barrier;
            scope.spawn(move || {
                barrier.wait();
                for command in 0..COMMANDS {
                    let topic = format!("topic-{caller}-{command}");
                    let receipt = stream.append(create(&topic)).unwrap().wait().unwrap();
                    let mut wait = applying.outcome(receipt.epoch(), receipt.offset());
                    let applied = wait.wait(far()).unwrap();
                    assert_eq!(applied.offset, receipt.offset());
                    let Ok(Done::TopicCreated { topic: id }) = applied.outcome else {
                        panic!("{applied:?}")
                    };
                    let there = metadata.read(|state| state.topic(&name(&topic)).unwrap().0).1;
                    assert_eq!(there, id, "who is answered reads what was written");
                }
            });
        }
    });
    assert_eq!(metadata.progress().end, 1 + CALLERS * COMMANDS);
    assert_eq!(applying.waiting(), 0);
    assert_eq!(shown(&metadata), node.replayed());
}

#[test]
fn a_record_that_cannot_be_applied_stops_until_it_is_cut() {
    let node = Node::committed();
    let (metadata, applying) = node.start();
    let mut waits = applying.outcome(1, 5);
    let mut topic = metadata.wait_for_topic(name("a"));
    let mut newer = put(1);
    newer[4] = 99;
    node.append(&[register(1), put(1), newer, create("a")]);
    let error = crate::command::DecodeError::UnknownCommand { kind: 99 };
    let why = Stopped::Record(ApplyError::Decode { offset: 2, error });
    assert_eq!(waits.wait(far()), Err(OutcomeError::Stopped(why.clone())));
    assert_eq!(topic.wait(far()), Err(WaitError::Stopped(why.clone())));
    assert_eq!(metadata.stopped(), Some(why.clone()));
    assert_eq!(applying.outcome(1, 2).wait(far()), Err(OutcomeError::Stopped(why.clone())));
    assert!(applying.outcome(1, 1).wait(far()).is_ok(), "what is applied is applied");
    assert_eq!(applying.snapshot_below(u64::MAX).unwrap().unwrap().id.end, 2);
    drop(applying);

    // A restart does not pass it over.
    let (metadata, applying) = node.start();
    until(|| metadata.stopped() == Some(why.clone()));
    assert_eq!(metadata.progress().end, 2);
    node.cut(2, 2);
    node.append(&[create("a")]);
    applying.epoch_begun(2, Some(2)).wait().unwrap();
    assert!(metadata.wait_for_topic(name("a")).wait(far()).is_ok());
    assert_eq!(metadata.stopped(), None);
    assert_eq!(shown(&metadata), node.replayed());
}

#[test]
fn another_nodes_snapshot_takes_the_place_of_the_state() {
    let leader = Node::committed();
    let (metadata, applying) = leader.start();
    leader.append(&[register(1), create("a"), put(1), put(2), put(3)]);
    reaches(&metadata, 5);
    applying.snapshot_below(5).unwrap();
    let file = applying.newest_snapshot().unwrap().unwrap();
    let mut whole = Vec::new();
    while (whole.len() as u64) < file.bytes() {
        whole.extend(file.read_at(whole.len() as u64, 50).unwrap());
    }
    leader.append(&puts(6..9));
    reaches(&metadata, 8);

    let node = Node::committed();
    let (far_behind, follower) = node.start();
    node.append(&[register(1)]);
    reaches(&far_behind, 1);
    let mut damaged = whole.clone();
    damaged[30] ^= 1;
    for bytes in [&damaged[..], &whole[..whole.len() - 1], &[]] {
        let refused = follower.install(&mut &bytes[..]).unwrap_err();
        assert!(matches!(refused, InstallError::Bytes(_)), "{refused}");
        assert!(node.files().is_empty(), "nothing is left of it");
    }
    assert_eq!(far_behind.progress().end, 1);

    let mut waits = follower.outcome(1, 6);
    assert_eq!(follower.install(&mut &whole[..]).unwrap(), 5);
    assert_eq!(far_behind.progress(), Progress { epoch: 1, end: 5 });
    assert_eq!(node.files(), [super::tests::file(5, 1, "snapshot")]);
    let gone = follower.outcome(1, 2).wait(far()).unwrap_err();
    assert!(matches!(gone, OutcomeError::Gone { .. }), "{gone}");
    // The stream is behind it until it begins anew, also when the node ends in between.
    assert_eq!(follower.epoch_begun(1, None).wait(), Ok(far_behind.progress()));
    drop(follower);
    let (_, follower_) = node.start();
    drop(follower_);
    let (far_behind, follower) = node.start();
    assert_eq!(far_behind.progress(), Progress { epoch: 1, end: 5 });
    drop(waits.wait(Instant::now()));
    node.stream().begin_anew(5, 1).unwrap().wait().unwrap();
    let frames = leader.stream().frames(5).next_batch(1 << 20).unwrap();
    for frame in frames {
        node.stream().append_frame(&frame.bytes).unwrap().wait().unwrap();
    }
    reaches(&far_behind, 8);
    assert_eq!(shown(&far_behind), shown(&metadata));
    assert_eq!(follower.outcome(1, 6).wait(far()).unwrap().offset, 6);
    let older = follower.install(&mut &whole[..]).unwrap_err();
    assert!(matches!(older, InstallError::Older { end: 5, applied: 8 }), "{older}");
}

#[test]
fn the_end_of_the_engine_is_told() {
    let node = Node::new();
    let (metadata, applying) = node.start();
    let mut waits = applying.outcome(1, 0);
    node.engine.clone().close().unwrap();
    assert_eq!(waits.wait(far()), Err(OutcomeError::Stopped(Stopped::Ended)));
    until(|| metadata.stopped() == Some(Stopped::Ended));
    assert_eq!(applying.epoch_begun(9, None).wait(), Err(Stopped::Ended));
    let refused = applying.install(&mut &bytes(&State::default())[..]).unwrap_err();
    assert!(matches!(refused, InstallError::Ended), "{refused}");
}
