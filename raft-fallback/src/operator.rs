//! What operators ask a store, as JSON inside a request of [`ringwal_replication::requests::Client`], and
//! what is answered.
//!
//! Whoever may connect may ask, and any node may be asked: one that does not lead gives commands to the
//! leader itself, and says who leads where only that node can do it.
//!
//! A command that is asked with a [`CommandId`] executes once, however often and wherever it is asked:
//! so an operator's tool that has no answer, or an unknown outcome, asks another node.

mod answering;
mod looking;
mod text;

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::command::{BrokerId, Command, Expected, NameError, TopicName, Watermark};
use crate::limits::METADATA_VERSION;
use crate::metadata::Metadata;
use crate::raft::rpc;
use crate::session::{Session, SessionId};
use crate::state::{Done, KeyVersion, Rejection};
use crate::store::wire;

pub use answering::serve;
pub use text::Text;

/// The version of questions and answers.
pub const VERSION: u32 = 1;

/// What is asked, and how.
#[derive(Clone, Eq, PartialEq, Debug, Serialize, Deserialize)]
pub struct Question {
    /// [`VERSION`] of who asks.
    pub version: u32,
    /// How long the answer may take, in milliseconds.
    pub limit_ms: u64,
    /// With it a command executes once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<CommandId>,
    /// What.
    pub ask: Ask,
}

/// Which command of which session it is: see [`SessionId`] and [`Session`].
#[derive(Copy, Clone, Eq, PartialEq, Debug, Serialize, Deserialize)]
pub struct CommandId {
    /// An applied end, which [`Status::applied`] tells.
    pub begun: u64,
    /// Random, greater than 0.
    pub random: u64,
    /// From 1 on.
    pub sequence: u64,
}

impl CommandId {
    /// As the state machine knows it; `None` when a number is 0 that must not be.
    pub fn session(self) -> Option<Session> {
        Session::new(SessionId::new(self.begun, self.random)?, self.sequence)
    }
}

/// What is asked.
#[derive(Clone, Eq, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    /// How the node is.
    Status,
    /// What is in the state.
    Look {
        /// What of it.
        look: Look,
        /// As of now, not as this node has it.
        linearizable: bool,
    },
    /// Change the state.
    Execute {
        /// How.
        write: Write,
        /// Answer when a majority has it durably.
        quorum: bool,
    },
    /// Let another node lead: this one, or whichever is best.
    TransferLeader {
        /// Which.
        to: Option<u64>,
    },
    /// Let a node in as a learner, or one that is in under another address.
    AddMember {
        /// Which.
        node: u64,
        /// `host:port` at which the others reach it.
        address: String,
    },
    /// Members become voters, beside those that are.
    PromoteMembers {
        /// Which.
        nodes: Vec<u64>,
    },
    /// A node is a member no more.
    RemoveMember {
        /// Which.
        node: u64,
    },
    /// Whether this node, when it leads, answers from its own log first.
    SetFastPath {
        /// Whether.
        on: bool,
    },
}

/// Something of the state.
#[derive(Clone, Eq, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Look {
    /// Topics in the order in which they were made, [`PAGE`] at most.
    Topics {
        /// The id of the last one that is known already; 0 for none.
        after: u64,
    },
    /// One topic, and [`PAGE`] of its partitions at most.
    Topic {
        /// Its name.
        name: String,
        /// The first partition.
        from: u32,
    },
    /// Brokers in order, [`PAGE_OF_BROKERS`] at most.
    Brokers {
        /// The last one that is known already.
        after: Option<u64>,
    },
    /// The value of a key.
    Key {
        /// Which key.
        key: Text,
    },
    /// Keys in order, [`PAGE`] at most, without their values.
    Keys {
        /// How they begin.
        prefix: Text,
        /// The last one that is known already.
        after: Option<Text>,
    },
    /// The high watermark of a partition.
    Watermark {
        /// Of which topic.
        topic: String,
        /// Which partition.
        partition: u32,
    },
}

/// Most topics, partitions or keys that one answer tells of: it has to fit a reply.
pub const PAGE: usize = 250;
/// Most brokers that one answer tells of.
pub const PAGE_OF_BROKERS: usize = 64;

/// A change of the state.
#[derive(Clone, Eq, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Write {
    /// [`Command::CreateTopic`].
    CreateTopic {
        /// Its name.
        name: String,
        /// How many partitions.
        partitions: u32,
        /// How many brokers hold each.
        replication_factor: u16,
        /// Whatever else is known of it.
        configuration: BTreeMap<String, String>,
    },
    /// [`Command::DeleteTopic`].
    DeleteTopic {
        /// Its name.
        name: String,
    },
    /// [`Command::RegisterBroker`], which knows what the node knows that is asked.
    RegisterBroker {
        /// Which.
        broker: u64,
        /// Where it is reached.
        addresses: Vec<String>,
    },
    /// [`Command::UnregisterBroker`].
    UnregisterBroker {
        /// Which.
        broker: u64,
    },
    /// [`Command::PutKey`].
    PutKey {
        /// Which key.
        key: Text,
        /// Its value.
        value: Text,
        /// What must be there before.
        expected: ExpectedKey,
    },
    /// [`Command::DeleteKey`].
    DeleteKey {
        /// Which key.
        key: Text,
        /// What must be there before.
        expected: ExpectedKey,
    },
    /// [`Command::UpdateWatermarks`], of the topic that has this name where it is asked.
    RaiseWatermark {
        /// Of which topic.
        topic: String,
        /// Which partition.
        partition: u32,
        /// The offset.
        offset: u64,
    },
}

/// [`Expected`].
#[derive(Copy, Clone, Eq, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExpectedKey {
    /// Anything, or nothing.
    Any,
    /// Nothing.
    Absent,
    /// This version.
    Version {
        /// Epoch of the record that set it.
        epoch: u64,
        /// Its offset.
        offset: u64,
    },
}

/// What is answered.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// How the node is.
    Status(Box<Status>),
    /// Some topics.
    Topics {
        /// Everything below this offset is applied.
        applied: u64,
        /// They.
        topics: Vec<TopicLine>,
        /// There are more.
        more: bool,
    },
    /// A topic.
    Topic(TopicShown),
    /// Some brokers.
    Brokers {
        /// Everything below this offset is applied.
        applied: u64,
        /// They.
        brokers: Vec<BrokerLine>,
        /// There are more.
        more: bool,
    },
    /// A key with its value.
    Key {
        /// Everything below this offset is applied.
        applied: u64,
        /// Its value.
        value: Text,
        /// The record that set it.
        epoch: u64,
        /// Its offset.
        offset: u64,
    },
    /// Some keys.
    Keys {
        /// Everything below this offset is applied.
        applied: u64,
        /// They.
        keys: Vec<KeyLine>,
        /// There are more.
        more: bool,
    },
    /// A high watermark.
    Watermark {
        /// Everything below this offset is applied.
        applied: u64,
        /// The offset.
        high_watermark: u64,
    },
    /// What was looked for is not there.
    NotFound {
        /// Everything below this offset is applied.
        applied: u64,
        /// What.
        what: String,
    },
    /// A command is executed.
    Executed(Executed),
    /// It is done.
    Done,
    /// It is not, or is not known to be.
    Failed(Failed),
}

/// A command that is executed.
#[derive(Clone, Eq, PartialEq, Debug, Serialize, Deserialize)]
pub struct Executed {
    /// Epoch of its record.
    pub epoch: u64,
    /// Offset of its record.
    pub offset: u64,
    /// A majority has it durably; otherwise the leader has.
    pub quorum: bool,
    /// It was executed before, by the same [`CommandId`].
    pub is_retry: bool,
    /// What it did.
    pub done: DoneShown,
}

/// [`Done`].
#[derive(Copy, Clone, Eq, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DoneShown {
    /// There is a topic that was not there before.
    TopicCreated {
        /// Its id.
        topic: u64,
    },
    /// A topic is there no more.
    TopicDeleted {
        /// Its id.
        topic: u64,
        /// How many partitions it had.
        partitions: u32,
    },
    /// A broker or key is there that was not there before.
    Created,
    /// Something is not as it was.
    Changed,
    /// Everything is as it was.
    Unchanged,
    /// Watermarks were raised, as far as they were lower.
    Watermarks {
        /// How many times one was raised.
        raised: u32,
        /// How many were for partitions that are not there.
        unknown: u32,
    },
}

/// Why something is not done, or not known to be.
#[derive(Clone, Eq, PartialEq, Debug, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Failed {
    /// The state does not allow it: it certainly did nothing.
    #[error("rejected: {why}")]
    Rejected {
        /// Of which kind, in a word for programs.
        code: String,
        /// In words for a person.
        why: String,
    },
    /// It certainly is not done. It may be asked again.
    #[error("not done: {why}")]
    NotDone {
        /// Why.
        why: String,
    },
    /// It may be done.
    #[error("unknown: {why}; it may be done")]
    Unknown {
        /// Why.
        why: String,
    },
    /// Only the leader does this.
    #[error("{}", not_leader(leader.as_ref()))]
    NotLeader {
        /// Who leads, if that is known.
        leader: Option<Place>,
    },
    /// The question makes no sense here. It certainly is not done, and never will be.
    #[error("{why}")]
    Refused {
        /// Why.
        why: String,
    },
}

fn not_leader(leader: Option<&Place>) -> String {
    match leader {
        Some(Place { node, address }) => format!("node {node} leads, at {address}; ask it"),
        None => "no node is known to lead; ask again later".to_owned(),
    }
}

/// A node and where it is reached.
#[derive(Clone, Eq, PartialEq, Debug, Serialize, Deserialize)]
pub struct Place {
    /// Which.
    pub node: u64,
    /// `host:port`.
    pub address: String,
}

/// How a node is.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Status {
    /// Which node.
    pub node: u64,
    /// Its cluster, 32 hexadecimal digits.
    pub cluster: String,
    /// `leader`, `follower`, `candidate`, `learner`, or what else it is.
    pub role: String,
    /// Raft's term.
    pub term: u64,
    /// The epoch that has begun here last.
    pub epoch: u64,
    /// Who leads, if that is known.
    pub leader: Option<u64>,
    /// How a command is executed that is asked here: `fast`, `raft`, `forward`, or what else.
    pub mode: String,
    /// The fast path is switched on here.
    pub fast_path: bool,
    /// A leader has its lease.
    pub has_lease: bool,
    /// Everything below this offset of the metadata stream is applied.
    pub applied: u64,
    /// A majority has everything below this offset, as this node knows.
    pub committed: u64,
    /// Topics that it has.
    pub topics: u64,
    /// Brokers that it has.
    pub brokers: u64,
    /// Every member, this node too when it is one.
    pub members: Vec<MemberLine>,
    /// Commands that this node executed on the fast path.
    pub fast: u64,
    /// Commands that took another way, by reason.
    pub fallbacks: BTreeMap<String, u64>,
    /// Why it must not lead or vote, if so.
    pub unfit: Option<String>,
}

/// A member of the cluster.
#[derive(Clone, Eq, PartialEq, Debug, Serialize, Deserialize)]
pub struct MemberLine {
    /// Which node.
    pub node: u64,
    /// `host:port` at which the others reach it.
    pub address: String,
    /// It counts for majorities.
    pub is_voter: bool,
    /// The engine that it must have, 32 hexadecimal digits; nothing while that is not known.
    pub engine: String,
}

/// A topic among others.
#[derive(Clone, Eq, PartialEq, Debug, Serialize, Deserialize)]
pub struct TopicLine {
    /// Its id.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// How many partitions it has.
    pub partitions: u32,
    /// How many brokers hold each.
    pub replication_factor: u16,
}

/// A topic.
#[derive(Clone, Eq, PartialEq, Debug, Serialize, Deserialize)]
pub struct TopicShown {
    /// Everything below this offset is applied.
    pub applied: u64,
    /// It.
    #[serde(flatten)]
    pub line: TopicLine,
    /// When it was made: the leader's clock, ms since 1970.
    pub created_ms: u64,
    /// Whatever was said when it was made.
    pub configuration: BTreeMap<String, String>,
    /// Some of its partitions.
    pub shown: Vec<PartitionLine>,
    /// It has more.
    pub more: bool,
}

/// A partition.
#[derive(Clone, Eq, PartialEq, Debug, Serialize, Deserialize)]
pub struct PartitionLine {
    /// Which.
    pub partition: u32,
    /// The stream with its records.
    pub stream: u64,
    /// The broker that leads, if any.
    pub leader: Option<u64>,
    /// Grows whenever another one leads.
    pub leader_epoch: u64,
    /// The brokers that hold it.
    pub replicas: Vec<u64>,
    /// Those that have all of it.
    pub in_sync: Vec<u64>,
    /// Everything below this offset is replicated.
    pub high_watermark: u64,
}

/// A broker.
#[derive(Clone, Eq, PartialEq, Debug, Serialize, Deserialize)]
pub struct BrokerLine {
    /// Which.
    pub broker: u64,
    /// Where it is reached.
    pub addresses: Vec<String>,
    /// The newest metadata version that it applies.
    pub knows: u32,
    /// When it was registered or changed last: the leader's clock, ms since 1970.
    pub registered_ms: u64,
}

/// A key.
#[derive(Clone, Eq, PartialEq, Debug, Serialize, Deserialize)]
pub struct KeyLine {
    /// It.
    pub key: Text,
    /// Length of its value.
    pub bytes: u64,
    /// The record that set it.
    pub epoch: u64,
    /// Its offset.
    pub offset: u64,
}

impl Question {
    /// The bytes of a request, to whatever disk.
    ///
    /// # Errors
    /// When it is longer than a request may be.
    pub fn encode(&self) -> Result<Vec<u8>, Failed> {
        let json = serde_json::to_vec(self).expect("text and numbers");
        let ask = rpc::Ask::Store(wire::Ask::Operator(json.into()).encode().into());
        let request = rpc::Request { to_engine: [0; 16], ask };
        request.encode().map_err(|error| Failed::Refused { why: error.to_string() })
    }

    /// Reads what a request has inside.
    pub(crate) fn decode(json: &[u8]) -> Result<Self, Failed> {
        let refused = |why: String| Failed::Refused { why };
        // The version first: a later one may have any form.
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let versioned: Versioned = serde_json::from_slice(json)
            .map_err(|error| refused(format!("this is no question: {error}")))?;
        if versioned.version != VERSION {
            let asked = versioned.version;
            let why = format!("the question has version {asked}, and this node knows {VERSION}");
            return Err(refused(why));
        }
        serde_json::from_slice(json)
            .map_err(|error| refused(format!("this node does not know the question: {error}")))
    }
}

/// Why bytes are no answer of a store.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AnswerError {
    /// The reply is none of a store.
    #[error("this is no answer of a store: {0}")]
    Malformed(String),
    /// The store refuses.
    #[error("refused: {0}")]
    Refused(String),
    /// What is inside cannot be read.
    #[error("the answer cannot be read: {0}")]
    Json(String),
}

impl Answer {
    /// Reads a reply.
    ///
    /// # Errors
    /// When it is no answer.
    pub fn decode(reply: &Bytes) -> Result<Self, AnswerError> {
        let store = match rpc::Reply::decode(reply.clone()) {
            Ok(rpc::Reply::Store(store)) => store,
            Ok(rpc::Reply::Refused(refusal)) => {
                return Err(AnswerError::Refused(refusal.to_string()));
            }
            Ok(_) => return Err(AnswerError::Malformed("it is one of Raft".to_owned())),
            Err(error) => return Err(AnswerError::Malformed(error.to_string())),
        };
        match wire::Answer::decode(&store) {
            Ok(wire::Answer::Operator(json)) => {
                serde_json::from_slice(&json).map_err(|error| AnswerError::Json(error.to_string()))
            }
            Ok(wire::Answer::Refused(why)) => Err(AnswerError::Refused(why)),
            Ok(_) => Err(AnswerError::Malformed("it is one to another question".to_owned())),
            Err(error) => Err(AnswerError::Malformed(error.to_string())),
        }
    }

    /// What goes inside a reply.
    pub(crate) fn json(&self) -> Bytes {
        serde_json::to_vec(self).expect("text and numbers").into()
    }
}

/// The reply to a request, as a store gives it that answers like this. `None` when the request is none of
/// an operator. For tests of programs that ask.
#[doc(hidden)]
pub fn reply_to(request: Bytes, answer: impl FnOnce(Question) -> Answer) -> Option<Vec<u8>> {
    let Ok(rpc::Request { ask: rpc::Ask::Store(store), .. }) = rpc::Request::decode(request) else {
        return None;
    };
    let Ok(wire::Ask::Operator(json)) = wire::Ask::decode(&store) else { return None };
    let answer = Question::decode(&json).map_or_else(Answer::Failed, answer);
    let store = wire::Answer::Operator(answer.json()).encode();
    Some(rpc::Reply::Store(store.into()).encode())
}

impl Write {
    /// As the state machine executes it. The name of a topic that is meant by its id is looked up in
    /// what this node has applied.
    pub(crate) fn command(self, metadata: &Metadata) -> Result<Command, Failed> {
        let name = |name: &str| {
            TopicName::new(name)
                .map_err(|error: NameError| Failed::Refused { why: error.to_string() })
        };
        let command = match self {
            Self::CreateTopic { name: topic, partitions, replication_factor, configuration } => {
                let name = name(&topic)?;
                Command::CreateTopic { name, partitions, replication_factor, configuration }
            }
            Self::DeleteTopic { name: topic } => Command::DeleteTopic { name: name(&topic)? },
            Self::RegisterBroker { broker, addresses } => Command::RegisterBroker {
                broker: BrokerId::new(broker),
                addresses,
                knows: METADATA_VERSION,
            },
            Self::UnregisterBroker { broker } => {
                Command::UnregisterBroker { broker: BrokerId::new(broker) }
            }
            Self::PutKey { key, value, expected } => Command::PutKey {
                key: key.into_bytes(),
                value: value.into_bytes(),
                expected: expected.into(),
            },
            Self::DeleteKey { key, expected } => {
                Command::DeleteKey { key: key.into_bytes(), expected: expected.into() }
            }
            Self::RaiseWatermark { topic, partition, offset } => {
                let name = name(&topic)?;
                let found = metadata.read(|state| state.topic(&name).map(|(id, _)| id)).1;
                let topic = found.ok_or_else(|| rejected(Rejection::TopicNotFound))?;
                let watermarks = vec![Watermark { topic, partition, offset }];
                Command::UpdateWatermarks { watermarks }
            }
        };
        let checked = command.check().map_err(|error| Failed::Refused { why: error.to_string() });
        checked.map(|()| command)
    }
}

impl From<ExpectedKey> for Expected {
    fn from(expected: ExpectedKey) -> Self {
        match expected {
            ExpectedKey::Any => Self::Any,
            ExpectedKey::Absent => Self::Absent,
            ExpectedKey::Version { epoch, offset } => Self::Version(KeyVersion { epoch, offset }),
        }
    }
}

impl From<Done> for DoneShown {
    fn from(done: Done) -> Self {
        match done {
            Done::TopicCreated { topic } => Self::TopicCreated { topic: topic.get() },
            Done::TopicDeleted { topic, partitions } => {
                Self::TopicDeleted { topic: topic.get(), partitions }
            }
            Done::Created => Self::Created,
            Done::Changed => Self::Changed,
            Done::Unchanged => Self::Unchanged,
            Done::Watermarks { raised, unknown } => Self::Watermarks { raised, unknown },
        }
    }
}

pub(crate) fn rejected(rejection: Rejection) -> Failed {
    let code = match rejection {
        Rejection::TopicExists { .. } => "topic_exists",
        Rejection::TopicNotFound => "topic_not_found",
        Rejection::TopicReserved => "topic_reserved",
        Rejection::PartitionNotFound { .. } => "partition_not_found",
        Rejection::TooFewBrokers { .. } => "too_few_brokers",
        Rejection::BrokerNotFound { .. } => "broker_not_found",
        Rejection::BrokerTooOld { .. } => "broker_too_old",
        Rejection::NotAReplica { .. } => "not_a_replica",
        Rejection::LeaderNotInSync { .. } => "leader_not_in_sync",
        Rejection::LeaderEpoch { .. } => "leader_epoch",
        Rejection::KeyVersion { .. } => "key_version",
        Rejection::Full { .. } => "full",
        Rejection::SessionExpired { .. } => "session_expired",
        Rejection::SessionAhead { .. } => "session_ahead",
        Rejection::SequenceForgotten { .. } => "sequence_forgotten",
    };
    Failed::Rejected { code: code.to_owned(), why: rejection.to_string() }
}

#[cfg(test)]
mod tests;
