//! What this crate decodes from disk and from other nodes, and what it writes of each, for fuzzing. Nobody else
//! may use it.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use openraft::EntryPayload;
use ringwal_engine::{EpochStart, StreamId};
use ringwal_replication::Ack;
use ringwal_replication::node_id::{NodeId, RunId};
use ringwal_replication::promise::Promise;

use crate::base::{Base, Chain, StreamBase};
use crate::command::{BrokerId, Command, Expected, Record, TopicName, Watermark};
use crate::limits::METADATA_VERSION;
use crate::operator::Question;
use crate::raft::rpc::{
    self, Append, Appended, Candidacy, Chunk, Refusal, Reply, Request, SnapshotMeta, SnapshotTaken,
    Transfer, Transferred, Voted,
};
use crate::raft::{
    Entry, LogFacts, Membership, Payload, RaftNode, StoredMembership, Vote, decode_entry,
    encode_entry, log_id,
};
use crate::replica::{Holding, Standing};
use crate::session::{Session, SessionId};
use crate::state::{Applied, Done, Rejection, State};
use crate::store::wire::{About, Answer, Ask, Founder};
use crate::{operator, snapshot};

/// What is decoded.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Decoder {
    /// A request of Raft, or of a store.
    Request,
    /// The reply to one.
    Reply,
    /// An entry of the log.
    Entry,
    /// A record of stream 2.
    Facts,
    /// What a store asks, inside of a request.
    StoreAsk,
    /// What it is answered.
    StoreAnswer,
    /// What an operator asks, inside of that.
    Question,
    /// What takes the place of the log's beginning.
    Base,
    /// The state.
    Snapshot,
    /// A record of the metadata stream.
    Record,
}

/// Decodes, and encodes what that gave; none when the bytes are refused.
///
/// # Errors
/// When what was decoded cannot be encoded.
pub fn again(decoder: Decoder, bytes: &Bytes) -> Result<Option<Vec<u8>>, String> {
    fn text(error: impl ToString) -> String {
        error.to_string()
    }
    let encoded = match decoder {
        Decoder::Request => {
            Request::decode(bytes.clone()).ok().map(|one| one.encode().map_err(text))
        }
        Decoder::Reply => Reply::decode(bytes.clone()).ok().map(|reply| Ok(reply.encode())),
        Decoder::Entry => decode_entry(bytes.clone()).ok().map(|(entry, committed)| {
            let mut bytes = Vec::new();
            encode_entry(&entry, committed, &mut bytes).map_err(text)?;
            Ok(bytes)
        }),
        Decoder::Facts => LogFacts::decode(bytes.clone()).ok().map(|facts| Ok(facts.encode())),
        Decoder::StoreAsk => Ask::decode(bytes).ok().map(|ask| Ok(ask.encode())),
        Decoder::StoreAnswer => Answer::decode(bytes).ok().map(|answer| Ok(answer.encode())),
        Decoder::Question => {
            Question::decode(bytes).ok().map(|question| serde_json::to_vec(&question).map_err(text))
        }
        Decoder::Base => Base::decode(bytes).ok().map(|base| base.encode().map_err(text)),
        Decoder::Snapshot => snapshot::read(&mut &bytes[..]).ok().map(|state| {
            let mut bytes = Vec::new();
            snapshot::write(&state, &mut bytes).map_err(text)?;
            Ok(bytes)
        }),
        Decoder::Record => Record::decode(bytes).ok().map(|record| record.encode().map_err(text)),
    };
    encoded.transpose()
}

/// Bytes of each kind, as this version writes them.
pub fn samples() -> Vec<(Decoder, Vec<u8>)> {
    let mut samples = Vec::new();
    let mut put = |decoder, all: Vec<Vec<u8>>| {
        samples.extend(all.into_iter().map(|bytes| (decoder, bytes)));
    };
    let encode = |(entry, committed): &(Entry, _)| {
        let mut bytes = Vec::new();
        encode_entry(entry, *committed, &mut bytes).expect("it is short");
        bytes
    };
    let all = entries();
    put(Decoder::Entry, all.iter().map(encode).collect());
    let asks: Vec<Vec<u8>> = asks().iter().map(Ask::encode).collect();
    let answers: Vec<Vec<u8>> = answers().iter().map(Answer::encode).collect();
    let entries = all.into_iter().map(|(entry, _)| entry).collect();
    put(Decoder::Request, requests(entries, asks[0].clone().into()));
    put(Decoder::Reply, replies(answers[0].clone().into()));
    put(Decoder::StoreAsk, asks);
    put(Decoder::StoreAnswer, answers);
    let facts =
        [(None, None), (Some(Vote::new(3, 9)), None), (Some(granted()), Some(log_id(2, 4)))];
    let facts = facts.map(|(vote, purged)| LogFacts { vote, purged, committed: purged }.encode());
    put(Decoder::Facts, facts.to_vec());
    put(Decoder::Question, questions());
    put(Decoder::Base, vec![base().encode().expect("it is short")]);
    let records = records();
    put(Decoder::Record, records.iter().map(|one| one.encode().expect("a command")).collect());
    let mut state = State::default();
    let mut states = vec![state.clone()];
    for record in records {
        state.apply(state.end(), 3, record).expect("in order");
    }
    states.push(state);
    let snapshot = |state: &State| {
        let mut bytes = Vec::new();
        snapshot::write(state, &mut bytes).expect("memory");
        bytes
    };
    put(Decoder::Snapshot, states.iter().map(snapshot).collect());
    samples
}

fn granted() -> Vote {
    Vote::new_committed(5, 2)
}

fn promise() -> Promise {
    Promise { epoch: 5, leader: NodeId::new(2), run: RunId::new([9; 16]) }
}

fn membership() -> Membership {
    let configs = vec![BTreeSet::from([1, 2]), BTreeSet::from([2, 3])];
    let node = |id| (id, RaftNode::new(format!("node{id}:9291"), [id as u8; 16]));
    Membership::new(configs, (1..5).map(node).collect::<BTreeMap<_, _>>()).expect("it is sound")
}

/// One behind the other, from the first on.
fn entries() -> Vec<(Entry, Option<crate::raft::LogId>)> {
    let records = (0..3).map(|length| Bytes::from(vec![7; length * 9])).collect();
    let starts = vec![(StreamId::new(0), 8), (StreamId::new(17), 0)];
    let Promise { epoch, leader, run } = promise();
    let payloads = [
        EntryPayload::Membership(membership()),
        EntryPayload::Blank,
        EntryPayload::Normal(Payload::EpochStart { epoch, leader, run, starts }),
        EntryPayload::Normal(Payload::Extend { epoch, base: 8, continues: true, records }),
    ];
    let entry = |(payload, index): (_, u64)| {
        let committed = index.checked_sub(2).map(|index| log_id(4, index));
        (Entry { log_id: log_id(5, index), payload }, committed)
    };
    payloads.into_iter().zip(0..).map(entry).collect()
}

fn requests(entries: Vec<Entry>, store: Bytes) -> Vec<Vec<u8>> {
    let last_membership = StoredMembership::new(Some(log_id(2, 8)), membership());
    let meta = SnapshotMeta { last_log_id: Some(log_id(4, 20)), last_membership };
    let chunk = |offset, meta| Chunk {
        vote: granted(),
        total: 90,
        checksum: 0xdead_beef,
        offset,
        meta,
        bytes: Bytes::from(vec![3; 60 - offset as usize]),
    };
    let append = |entries| Append { vote: granted(), previous: None, entries, committed: None };
    let candidacy =
        Candidacy { vote: Vote::new(5, 2), last: Some(log_id(4, 9)), is_transfer: true };
    let asks = vec![
        rpc::Ask::Append(append(Vec::new())),
        rpc::Ask::Append(append(entries)),
        rpc::Ask::Vote(candidacy),
        rpc::Ask::PreVote(candidacy),
        rpc::Ask::TransferLeader(Transfer { vote: granted(), to: 3, last: Some(log_id(4, 9)) }),
        rpc::Ask::Snapshot(chunk(0, Some(meta))),
        rpc::Ask::Snapshot(chunk(30, None)),
        rpc::Ask::Store(store),
    ];
    let requests = asks.into_iter().map(|ask| Request { to_engine: [7; 16], ask });
    requests.map(|request| request.encode().expect("it is short")).collect()
}

fn replies(store: Bytes) -> Vec<Vec<u8>> {
    let voted = Voted { vote: Vote::new(5, 2), is_granted: true, last: Some(log_id(4, 9)) };
    let (expected, actual) = (Some(log_id(4, 9)), None);
    let replies = [
        Reply::Append(Appended::Success),
        Reply::Append(Appended::InPart(Some(log_id(4, 9)))),
        Reply::Append(Appended::Conflict),
        Reply::Append(Appended::HigherVote(Vote::new(9, 1))),
        Reply::Vote(voted),
        Reply::PreVote(Voted { is_granted: false, last: None, ..voted }),
        Reply::TransferLeader(Transferred::Done),
        Reply::TransferLeader(Transferred::NotFlushed { expected, actual }),
        Reply::TransferLeader(Transferred::VoteChanged {
            expected: granted(),
            actual: Vote::new(9, 1),
        }),
        Reply::Snapshot(SnapshotTaken::More(60)),
        Reply::Snapshot(SnapshotTaken::Installed(granted())),
        Reply::Store(store),
        Reply::Refused(Refusal::OtherDisk { engine: [8; 16] }),
        Reply::Refused(Refusal::NoVote("it has just started".into())),
        Reply::Refused(Refusal::NotUnderstood("version 9".into())),
    ];
    replies.iter().map(Reply::encode).collect()
}

fn asks() -> Vec<Ask> {
    let record = records()[0].encode().expect("a command").into();
    let founder = |id: u64| Founder {
        node: NodeId::new(id),
        address: format!("node{id}:9291"),
        engine: [id as u8; 16],
    };
    vec![
        Ask::Execute { ack: Ack::Quorum, limit_ms: 700, record },
        Ask::About,
        Ask::Promise { promise: promise(), index: 7 },
        Ask::Found((1..4).map(founder).collect()),
        Ask::Holdings,
        Ask::ReadEnd { limit_ms: 9 },
        Ask::Snapshot { end: 0, from: 1 << 20 },
        Ask::Operator(questions().remove(0).into()),
    ]
}

fn answers() -> Vec<Answer> {
    let holding = |stream| Holding { stream: StreamId::new(stream), trimmed: 1, end: 9, epoch: 5 };
    let about = About {
        node: NodeId::new(2),
        engine: [8; 16],
        run: RunId::new([9; 16]),
        is_initialized: true,
        begun: Some(promise()),
        leader: Some(NodeId::new(1)),
        applied: 12,
    };
    let applied = |outcome| Applied { epoch: 5, offset: 9, is_retry: true, outcome };
    let rejected = Err(Rejection::TooFewBrokers { asked: 3, registered: 2 });
    vec![
        Answer::About(about),
        Answer::Promised(Standing { streams: [0, 17].map(holding).into(), begun: None }),
        Answer::Executed { durable: Ack::Local, applied: applied(Ok(Done::Created)) },
        Answer::Executed { durable: Ack::Quorum, applied: applied(rejected) },
        Answer::Done,
        Answer::NotDone("no leader".into()),
        Answer::Unknown("the epoch ended first".into()),
        Answer::NotLeader(Some(NodeId::new(3))),
        Answer::ReadEnd { epoch: 5, end: 12 },
        Answer::Snapshot { end: 12, total: 90, bytes: Bytes::from(vec![3; 30]) },
        Answer::Operator(Bytes::from_static(b"{\"done\":null}")),
        Answer::Refused("it is no question".into()),
    ]
}

fn questions() -> Vec<Vec<u8>> {
    let asks = [
        operator::Ask::Status,
        operator::Ask::TransferLeader { to: Some(3) },
        operator::Ask::AddMember { node: 4, address: "node4:9291".into() },
        operator::Ask::PromoteMembers { nodes: vec![4, 5] },
        operator::Ask::SetFastPath { on: true },
    ];
    let question = |ask| {
        let question = Question { version: operator::VERSION, limit_ms: 700, command: None, ask };
        serde_json::to_vec(&question).expect("text and numbers")
    };
    asks.map(question).into()
}

fn base() -> Base {
    let epochs = vec![EpochStart { epoch: 2, start: 0 }, EpochStart { epoch: 5, start: 8 }];
    Base {
        chain: Some(Chain { epoch: 4, end: 75 }),
        last: log_id(5, 20),
        membership: StoredMembership::new(Some(log_id(2, 8)), membership()),
        begun: Some(promise()),
        starts: vec![(StreamId::new(0), 8)],
        streams: vec![StreamBase { stream: StreamId::new(0), committed: 9, epochs }],
    }
}

/// One behind the other: each does something.
fn records() -> Vec<Record> {
    let name = || TopicName::new("orders").expect("a name");
    // The first topic's id, in epoch 3.
    let topic = crate::state::TopicId::new((3 << 32) + 16);
    let configuration = BTreeMap::from([("retention".to_owned(), "9".to_owned())]);
    let watermarks = vec![Watermark { topic, partition: 1, offset: 70 }];
    let [broker, other] = [1, 2].map(BrokerId::new);
    let register = |broker| Command::RegisterBroker {
        broker,
        addresses: vec!["one.example:9092".to_owned()],
        knows: METADATA_VERSION,
    };
    let (key, value, expected) = (b"key".to_vec(), b"value".to_vec(), Expected::Any);
    let commands = [
        register(broker),
        register(other),
        Command::CreateTopic { name: name(), partitions: 3, replication_factor: 2, configuration },
        Command::SetLeader {
            topic,
            partition: 1,
            leader: Some(broker),
            leader_epoch: 4,
            in_sync: BTreeSet::from([broker, other]),
        },
        Command::UpdateWatermarks { watermarks },
        Command::PutKey { key: key.clone(), value: value.clone(), expected },
        Command::PutKey { key: b"other".to_vec(), value, expected: Expected::Absent },
        Command::DeleteKey { key, expected: Expected::Any },
        Command::UnregisterBroker { broker: BrokerId::new(9) },
        Command::DeleteTopic { name: TopicName::new("nobody").expect("a name") },
        Command::RaiseVersion { version: METADATA_VERSION },
    ];
    let record = |(command, sequence)| {
        let id = SessionId::new(0, 77).expect("not 0");
        let session = Session::new(id, sequence).filter(|_| sequence % 3 > 0);
        Record { time_ms: 1_700_000_000_000, session, command }
    };
    commands.into_iter().zip(1..).map(record).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sample_is_decoded_and_encoded_as_it_was() {
        for (decoder, bytes) in samples() {
            assert_eq!(again(decoder, &bytes.clone().into()), Ok(Some(bytes)), "{decoder:?}");
        }
    }
}
