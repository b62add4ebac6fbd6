use std::sync::atomic::{AtomicU64, AtomicUsize};

use super::*;
use crate::command::{Command, DecodeError, Record};
use crate::metadata::{Applier, Entry, Metadata, ReplaceError};
use crate::state::{ApplyError, Done, State};

fn record(command: Command) -> Vec<u8> {
    Record { time_ms: 0, session: None, command }.encode().unwrap()
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

fn key() -> Vec<u8> {
    record(Command::DeleteKey { key: vec![1], expected: Default::default() })
}

/// Appends records in an epoch.
fn apply(applier: &mut Applier, epoch: u64, records: &[Vec<u8>]) {
    let end = applier.progress().end;
    let entries = records.iter().zip(end..);
    let mut applied = Vec::new();
    let entry = |(payload, offset): (&'_ Vec<u8>, u64)| (offset, payload.clone());
    let owned: Vec<_> = entries.map(entry).collect();
    let entries = owned.iter().map(|(offset, payload)| Entry { offset: *offset, epoch, payload });
    applier.apply(entries, &mut applied).unwrap();
    assert!(applied.iter().all(|applied| applied.outcome.is_ok()), "{applied:?}");
}

#[derive(Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// A task that polls a wait.
struct Task<T> {
    wait: Wait<T>,
    count: Arc<Count>,
}

impl<T> Task<T> {
    fn new(wait: Wait<T>) -> Self {
        Self { wait, count: Arc::default() }
    }

    fn poll(&mut self) -> Poll<Result<T, WaitError>> {
        let waker = Waker::from(self.count.clone());
        Pin::new(&mut self.wait).poll(&mut Context::from_waker(&waker))
    }

    fn woken(&self) -> usize {
        self.count.0.load(Ordering::SeqCst)
    }
}

fn count(metadata: &Wait<impl Sized>) -> usize {
    metadata.shared.waiters.lock().wakers.len()
}

#[test]
fn those_are_woken_whose_record_is_applied() {
    let (metadata, mut applier) = Metadata::new(State::default(), 1);
    let mut tasks = [0, 1, 2].map(|offset| Task::new(metadata.wait_applied(offset)));
    assert!(tasks.iter_mut().all(|task| task.poll().is_pending() && task.poll().is_pending()));
    assert_eq!(count(&tasks[0].wait), 3, "each is registered once");
    apply(&mut applier, 1, &[key(), key()]);
    assert_eq!(tasks.each_ref().map(Task::woken), [1, 1, 0]);
    let there = Poll::Ready(Ok(Progress { epoch: 1, end: 2 }));
    assert_eq!(tasks[0].poll(), there);
    assert_eq!(tasks[1].poll(), there);
    assert!(tasks[2].poll().is_pending());
    let [.., last] = tasks;
    assert_eq!(count(&last.wait), 1);
    drop(last);
    assert!(!metadata.wait_applied(0).shared.waiters.is_any(), "nobody is left behind");
}

#[test]
fn what_is_there_is_not_waited_for() {
    let (metadata, mut applier) = Metadata::new(State::default(), 1);
    apply(&mut applier, 1, &[register(3), create("a")]);
    let now = Instant::now();
    let id = metadata.wait_for_topic(name("a")).wait(now).unwrap();
    let assignment = metadata.wait_for_assignment(name("a"), 1).wait(now).unwrap();
    assert_eq!(assignment.stream, id.stream(1));
    assert!(metadata.wait_for_broker(BrokerId::new(3)).wait(now).is_ok());
    assert_eq!(metadata.wait_applied(1).wait(now).unwrap().end, 2);
}

#[test]
fn each_waits_for_its_own() {
    let (metadata, mut applier) = Metadata::new(State::default(), 1);
    let mut a = Task::new(metadata.wait_for_topic(name("a")));
    let mut b = Task::new(metadata.wait_for_topic(name("b")));
    let mut broker = Task::new(metadata.wait_for_broker(BrokerId::new(1)));
    let mut partition = Task::new(metadata.wait_for_assignment(name("b"), 1));
    let mut no_such = Task::new(metadata.wait_for_assignment(name("b"), 7));
    assert!(a.poll().is_pending() && b.poll().is_pending() && broker.poll().is_pending());
    assert!(partition.poll().is_pending() && no_such.poll().is_pending());
    apply(&mut applier, 1, &[register(1)]);
    assert!(matches!(broker.poll(), Poll::Ready(Ok(_))));
    apply(&mut applier, 1, &[create("b"), key()]);
    assert_eq!((a.woken(), b.woken(), partition.woken(), no_such.woken()), (0, 1, 1, 1));
    assert!(matches!(b.poll(), Poll::Ready(Ok(_))));
    assert!(matches!(partition.poll(), Poll::Ready(Ok(_))));
    assert!(a.poll().is_pending() && no_such.poll().is_pending());
}

#[test]
fn an_assignment_is_there_when_somebody_leads() {
    let (metadata, mut applier) = Metadata::new(State::default(), 1);
    apply(&mut applier, 1, &[register(1), create("a")]);
    let broker = BrokerId::new(1);
    apply(&mut applier, 1, &[record(Command::UnregisterBroker { broker }), register(1)]);
    let mut partition = Task::new(metadata.wait_for_assignment(name("a"), 0));
    assert!(partition.poll().is_pending());
    let (_, topic) = metadata.read(|state| state.topic(&name("a")).unwrap().0);
    let (leader, in_sync) = (Some(broker), [broker].into());
    let set = Command::SetLeader { topic, partition: 0, leader, leader_epoch: 5, in_sync };
    apply(&mut applier, 1, &[record(set)]);
    assert_eq!(partition.woken(), 1);
    let Poll::Ready(Ok(assignment)) = partition.poll() else { panic!("it is led") };
    assert_eq!(assignment.placed.leader_epoch, 5);
}

#[test]
fn the_time_can_be_over() {
    let (metadata, mut applier) = Metadata::new(State::default(), 1);
    let mut wait = metadata.wait_applied(0);
    let error = wait.wait(Instant::now()).unwrap_err();
    assert!(matches!(error, WaitError::Late { .. }), "{error}");
    apply(&mut applier, 1, &[key()]);
    assert!(wait.wait(Instant::now()).is_ok(), "it can be waited for again");
}

#[test]
fn a_state_that_went_back_is_told() {
    let (metadata, mut applier) = Metadata::new(State::default(), 1);
    apply(&mut applier, 1, &[register(1)]);
    let (_, kept) = metadata.read(State::clone);
    apply(&mut applier, 1, &[create("lost"), key()]);
    let mut applied = Task::new(metadata.wait_applied(9));
    let mut reached = metadata.wait_applied(2);
    let mut topic = Task::new(metadata.wait_for_topic(name("other")));
    assert!(applied.poll().is_pending() && topic.poll().is_pending());
    let before = metadata.progress();

    applier.replace(kept, 4).unwrap();
    let after = metadata.progress();
    assert_eq!((before, after), (Progress { epoch: 1, end: 3 }, Progress { epoch: 4, end: 1 }));
    assert!(before < after, "what went back did so with a greater epoch");
    assert_eq!((applied.woken(), topic.woken()), (1, 1));
    let changed = WaitError::HistoryChanged { progress: after };
    assert_eq!(applied.poll(), Poll::Ready(Err(changed.clone())));
    assert_eq!(reached.wait(Instant::now()), Err(changed), "it was reached, and is gone");
    assert!(topic.poll().is_pending(), "it may come in the new history");
    assert!(metadata.read(|state| state.topic(&name("lost")).is_none()).1);

    // What is left of the stream has its old epochs; then the new leader's come.
    let mut again = Task::new(metadata.wait_applied(1));
    assert!(again.poll().is_pending());
    apply(&mut applier, 2, &[key()]);
    assert_eq!(again.poll(), Poll::Ready(Ok(Progress { epoch: 4, end: 2 })));
    apply(&mut applier, 4, &[create("other")]);
    assert!(matches!(topic.poll(), Poll::Ready(Ok(_))));
}

#[test]
fn a_state_goes_back_only_with_a_new_epoch() {
    let (metadata, mut applier) = Metadata::new(State::default(), 3);
    let early = State::default();
    apply(&mut applier, 3, &[register(1)]);
    let present = metadata.progress();
    let went_back = ReplaceError::WentBack { end: 0, present };
    assert_eq!(applier.replace(early.clone(), 3), Err(went_back));
    assert_eq!(applier.replace(early, 2), Err(ReplaceError::Epoch { epoch: 2, present }));

    // A snapshot that goes on within the epoch takes nothing back.
    let mut applied = Task::new(metadata.wait_applied(1));
    let mut topic = Task::new(metadata.wait_for_topic(name("a")));
    assert!(applied.poll().is_pending() && topic.poll().is_pending());
    let (_, mut later) = metadata.read(State::clone);
    let record = Record::decode(&create("a")).unwrap();
    later.apply(1, 3, record).unwrap();
    applier.replace(later.clone(), 3).unwrap();
    assert_eq!(applied.poll(), Poll::Ready(Ok(Progress { epoch: 3, end: 2 })));
    assert!(matches!(topic.poll(), Poll::Ready(Ok(_))));
    let record = Record::decode(&key()).unwrap();
    later.apply(2, 9, record).unwrap();
    assert_eq!(applier.replace(later, 8), Err(ReplaceError::Later { found: 9, epoch: 8 }));
}

#[test]
fn a_record_that_cannot_be_applied_stops_and_is_told() {
    let (metadata, mut applier) = Metadata::new(State::default(), 1);
    let mut newer = key();
    newer[4] = 99;
    let [good, newer, behind] = [register(1), newer, create("a")];
    let mut waiting = Task::new(metadata.wait_for_topic(name("a")));
    let mut first = Task::new(metadata.wait_applied(0));
    assert!(waiting.poll().is_pending() && first.poll().is_pending());
    let mut entries = Vec::new();
    for (payload, offset) in [&good, &newer, &behind].into_iter().zip(0..) {
        entries.push(Entry { offset, epoch: 1, payload });
    }
    let mut applied = Vec::new();
    let error = DecodeError::UnknownCommand { kind: 99 };
    let stops = ApplyError::Decode { offset: 1, error };
    assert_eq!(applier.apply(entries, &mut applied), Err(stops.clone()));
    assert_eq!(applied.len(), 1);
    assert_eq!(applied[0].outcome, Ok(Done::Created));
    let stopped = Stopped::Record(stops.clone());
    assert_eq!(metadata.stopped(), Some(stopped.clone()));
    assert_eq!(waiting.poll(), Poll::Ready(Err(WaitError::Stopped(stopped))));
    assert!(matches!(first.poll(), Poll::Ready(Ok(_))), "what is there is there");
    // It is not skipped later either.
    let entry = Entry { offset: 1, epoch: 1, payload: &behind };
    assert_eq!(applier.apply([entry], &mut applied), Err(stops));
    assert_eq!(metadata.progress().end, 1);
    // It was not committed, and is cut.
    let (_, state) = metadata.read(State::clone);
    applier.replace(state, 2).unwrap();
    apply(&mut applier, 2, &[behind]);
    assert_eq!(metadata.stopped(), None);
}

#[test]
fn an_order_of_records_that_is_wrong_stops() {
    let (metadata, mut applier) = Metadata::new(State::default(), 1);
    let payload = key();
    let mut applied = Vec::new();
    let entry = Entry { offset: 3, epoch: 1, payload: &payload };
    let wrong = ApplyError::Order { offset: 3, expected: 0 };
    assert_eq!(applier.apply([entry], &mut applied), Err(wrong.clone()));
    assert_eq!(metadata.stopped(), Some(Stopped::Record(wrong)));
}

#[test]
fn the_end_of_the_applier_is_told() {
    let (metadata, applier) = Metadata::new(State::default(), 1);
    let mut task = Task::new(metadata.wait_applied(0));
    assert!(task.poll().is_pending());
    let other = metadata.clone();
    let thread = std::thread::spawn(move || {
        let far = Instant::now() + Duration::from_secs(600);
        other.wait_for_topic(name("a")).wait(far)
    });
    drop(applier);
    assert_eq!(task.woken(), 1);
    let ended = WaitError::Stopped(Stopped::Ended);
    assert_eq!(task.poll(), Poll::Ready(Err(ended.clone())));
    assert_eq!(thread.join().unwrap(), Err(ended));
}

/// What comes after the first look and before somebody is registered wakes nobody: it is seen by the
/// second look, which comes after that.
#[test]
fn who_has_registered_looks_again() {
    let (metadata, mut applier) = Metadata::new(State::default(), 1);
    apply(&mut applier, 1, &[key()]);
    let mut wait = metadata.wait_applied(0);
    let shared = wait.shared.clone();
    let looks = AtomicUsize::new(0);
    wait.look = Box::new(move |view: &View| {
        let is_first = looks.fetch_add(1, Ordering::SeqCst) == 0;
        assert_eq!(shared.waiters.is_any(), !is_first);
        (!is_first).then(|| view.progress())
    });
    assert_eq!(Task::new(wait).poll(), Poll::Ready(Ok(Progress { epoch: 1, end: 1 })));
}

/// Waits that begin at the very moment at which a record is applied: if one wake-up were lost, its thread
/// would sleep until the deadline, and fail.
#[test]
fn no_wake_up_is_lost() {
    const ROUNDS: u64 = 10_000;
    let (metadata, mut applier) = Metadata::new(State::default(), 1);
    let begun = Arc::new(AtomicU64::new(0));
    let thread = std::thread::spawn({
        let (metadata, begun) = (metadata.clone(), begun.clone());
        move || {
            for round in 1..=ROUNDS {
                let mut wait = metadata.wait_applied(round - 1);
                begun.store(round, Ordering::Release);
                wait.wait(Instant::now() + Duration::from_secs(60)).unwrap();
            }
        }
    });
    let payload = key();
    let mut applied = Vec::new();
    for round in 1..=ROUNDS {
        while begun.load(Ordering::Acquire) < round {
            assert!(!thread.is_finished(), "it waited in vain");
            std::thread::yield_now();
        }
        // A moment later each time.
        (0..round % 128).for_each(|_| std::hint::spin_loop());
        let entry = Entry { offset: round - 1, epoch: 1, payload: &payload };
        applier.apply([entry], &mut applied).unwrap();
    }
    thread.join().unwrap();
    assert!(!metadata.wait_applied(u64::MAX).shared.waiters.is_any(), "nobody is left behind");
}
