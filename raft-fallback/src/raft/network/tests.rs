use std::collections::BTreeSet;
use std::sync::Mutex;

use futures_util::FutureExt;
use openraft::EntryPayload;
use openraft_rt_tokio::TokioRuntime;
use tokio::sync::oneshot;

use super::super::entry::log_id;
use super::super::payload::Payload;
use super::super::types::Entry;
use super::*;
use crate::lease::Lease;

type Outcome = Result<Bytes, RequestError>;
type IsRight = fn(&RPCError<Types>) -> bool;
type Answer = Result<StreamAppendResult<Types>, RPCError<Types>>;

/// Requests that wait for the test to answer them.
#[derive(Default)]
struct Held(Mutex<Vec<(Request, oneshot::Sender<Outcome>)>>);

impl Transport for Held {
    async fn ask(&self, to: &Member, bytes: Bytes, _: Duration) -> Outcome {
        assert_eq!(to.address, "there:1");
        let (sender, receiver) = oneshot::channel();
        let request = Request::decode(bytes).expect("what is sent is sound");
        self.0.lock().unwrap().push((request, sender));
        receiver.await.expect("the test answers")
    }
}

impl Held {
    fn count(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    fn take(&self, at: usize) -> (Ask, oneshot::Sender<Outcome>) {
        let (request, way) = self.0.lock().unwrap().remove(at);
        assert_eq!(request.to_engine, [9; 16]);
        (request.ask, way)
    }

    /// Answers the request at a place, and gives what was asked.
    fn answer(&self, at: usize, reply: Reply) -> Ask {
        let (ask, way) = self.take(at);
        way.send(Ok(reply.encode().into())).expect("somebody waits");
        ask
    }
}

struct Setup {
    held: Arc<Held>,
    lease: Arc<LeaseKeeper>,
    network: Network<Held, TokioRuntime>,
}

async fn setup() -> Setup {
    let lease = Lease::new(1, Duration::from_nanos(500), Duration::from_nanos(100));
    let lease = Arc::new(LeaseKeeper::new(lease, || 1000, |_, _| {}));
    lease.set_voters(vec![BTreeSet::from([1, 2])]);
    let held = Arc::new(Held::default());
    let mut networking = Networking::new(NodeId::new(1), held.clone(), lease.clone());
    let node = RaftNode::new("there:1", [9; 16]);
    let network = networking.new_client(2, &node).await;
    Setup { held, lease, network }
}

fn entry(index: u64, length: usize) -> Entry {
    let records = vec![Bytes::from(vec![1; length])];
    let payload =
        EntryPayload::Normal(Payload::Extend { epoch: 1, base: 0, continues: false, records });
    Entry { log_id: log_id(3, index), payload }
}

/// From `start` on, a piece for three entries each time.
fn request(start: u64, count: u64) -> AppendEntriesRequest<Types> {
    AppendEntriesRequest {
        vote: Vote::new_committed(3, 1),
        prev_log_id: start.checked_sub(1).map(|index| log_id(3, index)),
        entries: (start..start + count).map(|index| entry(index, 85_000)).collect(),
        leader_commit: None,
    }
}

fn option() -> RPCOption {
    RPCOption::new(Duration::from_secs(1))
}

fn success() -> Reply {
    Reply::Append(Appended::Success)
}

fn entries(ask: &Ask) -> std::ops::Range<u64> {
    let Ask::Append(append) = ask else { panic!("an Append, not {ask:?}") };
    let start = append.previous.map_or(0, |previous| previous.index + 1);
    start..start + append.entries.len() as u64
}

fn end(answer: Option<Answer>) -> u64 {
    let Some(Ok(Ok(Some(end)))) = answer else { panic!("a success, not {answer:?}") };
    assert_eq!(end.leader_id.term, 3);
    end.index
}

#[tokio::test]
async fn pieces_are_pipelined_and_answered_in_order_each_with_its_own_end() {
    let Setup { held, lease, mut network } = setup().await;
    // Ten pieces, and three without an entry.
    let requests = vec![request(0, 7), request(7, 20), request(27, 0), request(27, 1)];
    let input = stream::iter(requests).chain(stream::pending());
    let mut answers = network.stream_append(input, option()).await.unwrap();
    assert!(answers.next().now_or_never().is_none());
    assert_eq!(held.count(), APPENDS_IN_FLIGHT, "no more at once");
    assert_eq!(entries(&held.answer(1, success())), 3..6);
    assert!(answers.next().now_or_never().is_none(), "the first one comes first");
    assert_eq!(entries(&held.answer(0, success())), 0..3);
    assert_eq!(end(answers.next().await), 2);
    assert_eq!(end(answers.next().await), 5);
    assert!(lease.valid_until().1.is_some());
    let mut ends = Vec::new();
    for _ in 0..9 {
        assert!(answers.next().now_or_never().is_none());
        held.answer(0, success());
        ends.push(end(answers.next().await));
    }
    assert_eq!(ends, [6, 9, 12, 15, 18, 21, 24, 26, 26], "the last one is a heartbeat");
    assert!(answers.next().now_or_never().is_none());
    assert_eq!(entries(&held.answer(0, success())), 27..28);
    assert_eq!(end(answers.next().await), 27);
}

#[tokio::test]
async fn nothing_follows_what_is_no_success() {
    let conflict = Err(StreamAppendError::Conflict(log_id(3, 4)));
    let higher = Vote::new(8, 2);
    for (reply, expected) in [
        (Appended::Conflict, conflict),
        (Appended::HigherVote(higher), Err(StreamAppendError::HigherVote(higher))),
        (Appended::InPart(Some(log_id(3, 5))), Ok(Some(log_id(3, 5)))),
    ] {
        let Setup { held, lease, mut network } = setup().await;
        let input = stream::iter(vec![request(5, 9)]).chain(stream::pending());
        let mut answers = network.stream_append(input, option()).await.unwrap();
        assert!(answers.next().now_or_never().is_none());
        held.answer(0, Reply::Append(reply));
        held.answer(0, success());
        assert_eq!(answers.next().await.unwrap().unwrap(), expected);
        assert!(answers.next().await.is_none());
        assert_eq!(lease.valid_until().1, None, "no success came");
    }
}

#[tokio::test]
async fn replies_that_cannot_be_are_errors() {
    let refusal = Refusal::NotReady("it installs a snapshot".to_owned());
    for (reply, expected) in [
        (Reply::Append(Appended::Conflict), "answers something else"),
        (Reply::Append(Appended::InPart(Some(log_id(3, 9)))), "answers something else"),
        (Reply::Snapshot(SnapshotTaken::More(1)), "answers something else"),
        (Reply::Refused(refusal), "node 2 at there:1: the node is not ready: it installs"),
    ] {
        let Setup { held, mut network, .. } = setup().await;
        let mut answers =
            network.stream_append(stream::iter(vec![request(0, 2)]), option()).await.unwrap();
        assert!(answers.next().now_or_never().is_none());
        held.answer(0, reply);
        let error = answers.next().await.unwrap().unwrap_err();
        assert!(matches!(error, RPCError::Unreachable(_)), "{error}");
        assert!(error.to_string().contains(expected), "{error}");
        assert!(answers.next().await.is_none());
    }
}

#[tokio::test]
async fn a_single_append_sends_what_fits_and_says_so() {
    let Setup { held, mut network, .. } = setup().await;
    let mut appending = network.append_entries(request(5, 4), option()).boxed();
    assert!(appending.as_mut().now_or_never().is_none());
    assert_eq!(entries(&held.answer(0, success())), 5..8);
    let answer = appending.await.unwrap();
    assert_eq!(answer, AppendEntriesResponse::PartialSuccess(Some(log_id(3, 7))));
    let mut appending = network.append_entries(request(8, 3), option()).boxed();
    assert!(appending.as_mut().now_or_never().is_none());
    held.answer(0, success());
    assert_eq!(appending.await.unwrap(), AppendEntriesResponse::Success);
}

#[tokio::test]
async fn errors_say_whether_to_ask_again() {
    let node = NodeId::new(2);
    let (why, limit) = (|| "cut".to_owned(), Duration::from_secs(1));
    let kinds: [(RequestError, IsRight); 5] = [
        (RequestError::NotReached { node, why: why() }, |e| matches!(e, RPCError::Unreachable(_))),
        (RequestError::Busy { node }, |e| matches!(e, RPCError::Unreachable(_))),
        (RequestError::Lost { node, why: why() }, |e| matches!(e, RPCError::Network(_))),
        (RequestError::NoReply { node }, |e| matches!(e, RPCError::Network(_))),
        (RequestError::Late { node, limit, is_sent: true }, |e| matches!(e, RPCError::Timeout(_))),
    ];
    for (error, is_right) in kinds {
        let Setup { held, mut network, .. } = setup().await;
        let mut asking = network.vote(VoteRequest::new(Vote::new(4, 1), None), option()).boxed();
        assert!(asking.as_mut().now_or_never().is_none());
        let text = error.to_string();
        held.take(0).1.send(Err(error)).unwrap();
        let mapped = asking.await.unwrap_err();
        assert!(is_right(&mapped), "{text}: {mapped:?}");
    }
}

#[tokio::test]
async fn a_vote_for_a_hand_over_says_so_and_who_hands_over_ends_its_lease() {
    let Setup { held, lease, mut network } = setup().await;
    let mut vote = VoteRequest::new(Vote::new(4, 1), Some(log_id(3, 9)));
    vote.leadership_transfer = true;
    let mut voting = network.vote(vote, option()).boxed();
    assert!(voting.as_mut().now_or_never().is_none());
    let voted = Voted { vote: Vote::new(4, 1), is_granted: true, last: Some(log_id(3, 2)) };
    let ask = held.answer(0, Reply::Vote(voted));
    let candidacy =
        Candidacy { vote: Vote::new(4, 1), last: Some(log_id(3, 9)), is_transfer: true };
    assert_eq!(ask, Ask::Vote(candidacy));
    let answer = voting.await.unwrap();
    assert!(answer.vote_granted && answer.last_log_id == Some(log_id(3, 2)));

    lease.handle_acked(lease.handle_sent(4, 2).unwrap());
    assert!(lease.valid_until().1.is_some());
    let request = TransferLeaderRequest::new(Vote::new_committed(4, 1), 2, None);
    let mut handing = network.transfer_leader(request, option()).boxed();
    assert!(handing.as_mut().now_or_never().is_none());
    assert_eq!(lease.valid_until(), (4, None), "before anybody can know");
    held.answer(0, Reply::TransferLeader(Transferred::Done));
    assert_eq!(handing.await.unwrap(), Ok(()));
}

fn snapshot(length: usize) -> Snapshot {
    let last_log_id = Some(log_id(2, 7));
    let meta = rpc::SnapshotMeta { last_log_id, last_membership: Default::default() };
    Snapshot { meta, snapshot: Bytes::from(vec![5; length]) }
}

#[tokio::test]
async fn a_snapshot_goes_part_by_part() {
    for (length, parts) in
        [(0, 1), (1, 1), (SNAPSHOT_CHUNK_BYTES, 1), (SNAPSHOT_CHUNK_BYTES + 1, 2)]
    {
        let Setup { held, mut network, .. } = setup().await;
        let vote = Vote::new_committed(3, 1);
        let never = std::future::pending();
        let mut sending = network.full_snapshot(vote, snapshot(length), never, option()).boxed();
        for part in 1..=parts {
            assert!(sending.as_mut().now_or_never().is_none());
            let (ask, way) = held.take(0);
            let Ask::Snapshot(chunk) = ask else { panic!("a part, not {ask:?}") };
            assert_eq!(chunk.meta.is_some(), part == 1);
            assert_eq!(chunk.is_last(), part == parts);
            let taken = match chunk.is_last() {
                true => SnapshotTaken::Installed(vote),
                false => SnapshotTaken::More(chunk.end()),
            };
            way.send(Ok(Reply::Snapshot(taken).encode().into())).unwrap();
        }
        assert_eq!(sending.await.unwrap().vote, vote);
    }
}

#[tokio::test]
async fn a_snapshot_is_given_up_when_it_is_cancelled_or_too_long() {
    let Setup { held, mut network, .. } = setup().await;
    let vote = Vote::new_committed(3, 1);
    let never = std::future::pending();
    let long = network.full_snapshot(vote, snapshot(SNAPSHOT_BYTES_MAX + 1), never, option()).await;
    assert!(long.unwrap_err().to_string().contains("at most 67108864 are sent"));
    let (cancel, cancelled) = oneshot::channel::<()>();
    let cancelled = async move {
        let _ = cancelled.await;
        ReplicationClosed::new("it leads no more")
    };
    let mut sending = network.full_snapshot(vote, snapshot(10), cancelled, option()).boxed();
    assert!(sending.as_mut().now_or_never().is_none());
    assert_eq!(held.count(), 1);
    drop(cancel);
    assert!(matches!(sending.await, Err(StreamingError::Closed(_))));
}
