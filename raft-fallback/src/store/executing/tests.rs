//! Commands whose leader, receipts and answers get lost at each place where that may be.

use std::sync::Mutex;
use std::sync::atomic::Ordering;

use openraft_rt_tokio::TokioRuntime;

use super::*;
use crate::command::Record;
use crate::control::Switch;
use crate::fakes::{FakeLed, FakePeers, FakeReplica, membership, put};
use crate::state::{Done, State};
use crate::store::fast::Gate;
use crate::store::peers::NoAnswer;
use crate::store::stats::Reason;

const LONG: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_millis(80);

/// Node 1, and who else is there.
struct Here {
    executor: Executor<FakeReplica, FakePeers>,
    led: watch::Sender<Option<FakeLed>>,
    proposals: mpsc::Receiver<Proposal>,
}

impl Here {
    fn new(peers: FakePeers, leads: Option<Leads>, leader: u64) -> Self {
        let members = membership(&[(1, "one"), (2, "two"), (3, "three")]);
        let seen = Seen {
            start: 0,
            term: 1,
            leader: Some(NodeId::new(leader)),
            leads,
            membership: Arc::new(members),
            has_ended: false,
        };
        let switch = Switch { is_on: true, has_wal: true };
        let shared = Shared {
            gate: Gate::new(),
            seen: watch::Sender::new(seen),
            switch: watch::Sender::new(switch),
            heard_ns: Arc::default(),
        };
        let (led, see_led) = watch::channel(None);
        let (propose, proposals) = mpsc::channel(8);
        let executor = Executor {
            replica: FakeReplica::new(1),
            peers,
            shared: Arc::new(shared),
            led: see_led,
            proposals: propose,
            counters: Arc::default(),
        };
        Self { executor, led, proposals }
    }

    /// With the fast path open in this epoch.
    async fn fast(peers: FakePeers, epoch: u64) -> (Self, FakeLed) {
        let here = Self::new(peers, Some(Leads::Fast), 1);
        let led = FakeLed::new(epoch);
        here.led.send_replace(Some(led.clone()));
        here.executor.shared.gate.open(led.clone()).await;
        (here, led)
    }

    fn execute(
        &self,
        ack: Ack,
        limit: Duration,
        origin: Origin,
    ) -> tokio::task::JoinHandle<Result<Answered, Unanswered>> {
        let executor = self.executor.clone();
        tokio::spawn(async move {
            executor.execute::<TokioRuntime>(put("key"), ack, limit, origin).await
        })
    }

    /// Node 2 leads from now on.
    async fn is_deposed(&self) {
        self.executor.shared.gate.close(Reason::NotLeader).await;
        self.led.send_replace(None);
        self.executor.shared.seen.send_modify(|seen| {
            (seen.leads, seen.leader, seen.term) = (None, Some(NodeId::new(2)), 2);
        });
    }
}

fn lost(may_be_done: bool) -> NoAnswer {
    NoAnswer { why: "the connection is gone".to_owned(), may_be_done }
}

/// A leader that executes what it is sent, and whose first answers are lost.
fn leader(mut state: State, mut lost_answers: u32) -> (FakePeers, Arc<Mutex<Vec<bytes::Bytes>>>) {
    let got = Arc::new(Mutex::new(Vec::new()));
    let asked = got.clone();
    let peers = FakePeers::new(move |_, ask| {
        let Ask::Execute { ack, record, .. } = ask else { panic!("{ask:?}") };
        asked.lock().unwrap().push(record.clone());
        let record = Record::decode(&record).unwrap();
        let applied = state.apply(state.end(), 2, record).unwrap();
        if lost_answers > 0 {
            lost_answers -= 1;
            return Err(lost(true));
        }
        Ok(Answer::Executed { durable: ack, applied })
    });
    (peers, got)
}

fn applied(epoch: u64, offset: u64) -> Applied {
    Applied { epoch, offset, is_retry: false, outcome: Ok(Done::Created) }
}

/// Lets everything go on that can.
async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_forward_whose_answer_is_lost_after_it_was_done_executes_once() {
    let (peers, got) = leader(State::default(), 2);
    let here = Here::new(peers, None, 2);
    let answered = here.execute(Ack::Quorum, LONG, Origin::Here).await.unwrap().unwrap();
    assert_eq!(answered.applied, Applied { is_retry: true, ..applied(2, 0) });
    assert_eq!(answered.durable, Ack::Quorum);
    let got = got.lock().unwrap();
    assert!(got.len() == 3 && got.iter().all(|record| *record == put("key")), "the same command");
}

#[tokio::test]
async fn a_forward_that_fails_says_whether_it_may_be_done_and_executes_nothing_here() {
    let mut here = Here::new(FakePeers::new(|_, _| Err(lost(false))), None, 2);
    let outcome = here.execute(Ack::Local, SHORT, Origin::Here).await.unwrap();
    assert!(matches!(outcome, Err(Unanswered::NotDone(_))), "{outcome:?}");
    // One that may have arrived is enough, whatever comes after it.
    let mut answers = vec![Err(lost(false)), Err(lost(true))];
    let peers = FakePeers::new(move |_, _| answers.pop().unwrap_or(Err(lost(false))));
    let mut other = Here::new(peers, None, 2);
    let outcome = other.execute(Ack::Local, SHORT, Origin::Here).await.unwrap();
    assert!(matches!(outcome, Err(Unanswered::Unknown(_))), "{outcome:?}");
    assert!(here.proposals.try_recv().is_err() && other.proposals.try_recv().is_err());
}

#[tokio::test]
async fn what_was_forwarded_is_not_forwarded_again() {
    let here = Here::new(FakePeers::none(), None, 3);
    let outcome = here.execute(Ack::Local, LONG, Origin::Forwarded).await.unwrap();
    let Err(Unanswered::NotLeader(Some(leader))) = outcome else { panic!("{outcome:?}") };
    assert_eq!(leader.get(), 3);
}

#[tokio::test]
async fn raft_answers_when_the_entry_is_committed_and_applied_and_not_before() {
    let leads = Some(Leads::Raft(Reason::SwitchedOff));
    let mut here = Here::new(FakePeers::none(), leads, 1);
    let asked = here.execute(Ack::Local, LONG, Origin::Here);
    let Proposal { record, placed } = here.proposals.recv().await.unwrap();
    assert_eq!(record, put("key"));
    settle().await;
    assert!(!asked.is_finished(), "it is only proposed");
    let place = Placed { epoch: 1, offset: 7, is_committed: true };
    placed.send(Ok(place)).expect("it waits");
    settle().await;
    assert!(!asked.is_finished(), "it is not applied");
    here.executor.replica.applies(applied(1, 7));
    let answered = asked.await.unwrap().unwrap();
    assert_eq!(answered, Answered { applied: applied(1, 7), durable: Ack::Quorum });
}

#[tokio::test]
async fn a_proposal_that_is_lost_with_its_leadership_has_no_certain_outcome() {
    let leads = Some(Leads::Raft(Reason::SwitchedOff));
    let mut here = Here::new(FakePeers::new(|_, _| Err(lost(false))), leads, 1);
    let asked = here.execute(Ack::Local, Duration::from_millis(300), Origin::Here);
    drop(here.proposals.recv().await.unwrap());
    here.is_deposed().await;
    let outcome = asked.await.unwrap();
    assert!(matches!(outcome, Err(Unanswered::Unknown(_))), "{outcome:?}");
}

/// Whatever became of the record: the next leader is asked for the same command.
#[tokio::test]
async fn a_leadership_that_is_lost_between_queue_and_receipt_leaves_one_command() {
    for survives in [true, false] {
        let mut state = State::default();
        if survives {
            state.apply(0, 1, Record::decode(&put("key")).unwrap()).unwrap();
        }
        let (peers, got) = leader(state, 0);
        let (here, led) = Here::fast(peers, 1).await;
        let asked = here.execute(Ack::Local, LONG, Origin::Here);
        settle().await;
        let (record, receipt) = led.take().expect("it is in the queue");
        here.is_deposed().await;
        receipt.send(Err(LedError::Unknown("the lease has lapsed".into()))).expect("it waits");
        let answered = asked.await.unwrap().unwrap();
        let epoch = if survives { 1 } else { 2 };
        let expected = Applied { is_retry: survives, ..applied(epoch, 0) };
        assert_eq!(answered.applied, expected);
        assert_eq!(*got.lock().unwrap(), [record]);
    }
}

/// Nobody is told that a command is not done when a record of it may be somewhere.
#[tokio::test]
async fn what_had_no_receipt_stays_unknown_when_nobody_answers_later() {
    let (here, led) = Here::fast(FakePeers::new(|_, _| Err(lost(false))), 1).await;
    let asked = here.execute(Ack::Local, Duration::from_millis(300), Origin::Here);
    settle().await;
    let (_, receipt) = led.take().expect("it is in the queue");
    here.is_deposed().await;
    receipt.send(Err(LedError::Unknown("the lease has lapsed".into()))).expect("it waits");
    let outcome = asked.await.unwrap();
    assert!(matches!(outcome, Err(Unanswered::Unknown(_))), "{outcome:?}");
}

/// The receipt came with the lease held, and the applier was slow: somebody else may lead, without the record.
#[tokio::test]
async fn a_lease_that_lapses_while_the_record_is_applied_gives_no_plain_answer() {
    let (here, led) = Here::fast(FakePeers::none(), 1).await;
    let fast = |ack| {
        let executor = here.executor.clone();
        tokio::spawn(async move { executor.execute_fast(&put("key"), ack).await.unwrap() })
    };
    // With the lease held it is answered.
    let asked = fast(Ack::Local);
    settle().await;
    led.take().expect("it is in the queue").1.send(Ok(3)).expect("it waits");
    here.executor.replica.applies(applied(1, 3));
    let answered = asked.await.unwrap().unwrap();
    assert_eq!(answered, Answered { applied: applied(1, 3), durable: Ack::Local });
    let asked = fast(Ack::Local);
    settle().await;
    led.take().expect("it is in the queue").1.send(Ok(4)).expect("it waits");
    settle().await;
    led.has_lease.store(false, Ordering::SeqCst);
    here.executor.replica.applies(applied(1, 4));
    let outcome = asked.await.unwrap();
    assert!(matches!(outcome, Err(Unanswered::Unknown(_))), "{outcome:?}");
    // What a majority has stays, whoever leads.
    led.committed.send_replace(6);
    let asked = fast(Ack::Quorum);
    settle().await;
    led.take().expect("it is in the queue").1.send(Ok(5)).expect("it waits");
    here.executor.replica.applies(applied(1, 5));
    assert_eq!(asked.await.unwrap().unwrap().durable, Ack::Quorum);
}

/// It is asked of the next leader, as the same command.
#[tokio::test]
async fn what_was_applied_behind_the_lease_is_asked_of_the_next_leader() {
    let (peers, got) = leader(State::default(), 0);
    let (here, led) = Here::fast(peers, 1).await;
    let asked = here.execute(Ack::Local, LONG, Origin::Here);
    settle().await;
    let (record, receipt) = led.take().expect("it is in the queue");
    receipt.send(Ok(0)).expect("it waits");
    settle().await;
    here.is_deposed().await;
    here.executor.replica.applies(applied(1, 0));
    assert_eq!(asked.await.unwrap().unwrap().applied, applied(2, 0));
    assert_eq!(*got.lock().unwrap(), [record]);
}

#[tokio::test]
async fn a_quorum_is_not_answered_from_the_leaders_own_disk() {
    let (here, led) = Here::fast(FakePeers::none(), 1).await;
    let asked = here.execute(Ack::Quorum, LONG, Origin::Here);
    settle().await;
    led.take().expect("it is in the queue").1.send(Ok(4)).expect("it waits");
    here.executor.replica.applies(applied(1, 4));
    settle().await;
    assert!(!asked.is_finished(), "nobody else has it");
    led.committed.send_replace(4);
    settle().await;
    assert!(!asked.is_finished(), "nobody else has it");
    led.committed.send_replace(5);
    assert_eq!(asked.await.unwrap().unwrap().durable, Ack::Quorum);
    // The epoch ends while it is being applied.
    let asked = here.executor.clone();
    let asked = tokio::spawn(async move { asked.execute_fast(&put("key"), Ack::Quorum).await });
    settle().await;
    here.led.send_replace(Some(FakeLed::new(2)));
    led.take().expect("it is in the queue").1.send(Ok(5)).expect("it waits");
    here.executor.replica.applies(applied(1, 5));
    let outcome = asked.await.unwrap();
    assert!(matches!(outcome, Some(Err(Unanswered::Unknown(_)))), "{outcome:?}");
}
