//! What the stores of two nodes ask each other: the bytes inside a request between nodes.
//!
//! ```text
//! version u8 = 1, kind u8, then the fields below in order, little-endian
//! ```

use bytes::Bytes;
use ringwal_engine::StreamId;
use ringwal_replication::Ack;
use ringwal_replication::config::MEMBERS_MAX;
use ringwal_replication::node_id::{NodeId, RunId};
use ringwal_replication::promise::Promise;

use crate::codec::{Malformed, Put, Reader};
use crate::limits::RECORD_BYTES_MAX;
use crate::replica::{Holding, Standing};
use crate::state::{Applied, outcome};

const VERSION: u8 = 1;
/// Streams of which one answer tells: 32 bytes each, and a reply has 4 MiB.
pub(crate) const STREAMS_MAX: usize = 120_000;
const TEXT_BYTES_MAX: usize = 1024;

/// What is asked.
#[derive(Clone, Eq, PartialEq, Debug)]
pub(crate) enum Ask {
    /// Who are you, and how far?
    About,
    /// Promise an epoch, apply Raft's log up to this index, and say what you hold.
    Promise { promise: Promise, index: u64 },
    /// These are the members of the cluster: write that down, if you know of none.
    Found(Vec<Founder>),
    /// What do you hold? Nothing is promised.
    Holdings,
    /// You lead: execute this record, which is durable as asked before you answer.
    Execute { ack: Ack, limit_ms: u32, record: Bytes },
    /// You lead: up to where must be applied what is read now?
    ReadEnd { limit_ms: u32 },
    /// A part of your newest snapshot of the state machine: the one that ends there, or any when 0.
    Snapshot { end: u64, from: u64 },
    /// Of an operator.
    Operator(Bytes),
}

/// A node that the cluster begins with.
#[derive(Clone, Eq, PartialEq, Debug)]
pub(crate) struct Founder {
    pub(crate) node: NodeId,
    pub(crate) address: String,
    pub(crate) engine: [u8; 16],
}

/// What is replied.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Answer {
    About(About),
    Promised(Standing),
    /// It is executed, and as durable as `durable` says.
    Executed {
        durable: Ack,
        applied: Applied,
    },
    /// It is done.
    Done,
    /// It certainly is not done.
    NotDone(String),
    /// It may be done.
    Unknown(String),
    /// Another node leads, if any.
    NotLeader(Option<NodeId>),
    ReadEnd {
        epoch: u64,
        end: u64,
    },
    Snapshot {
        end: u64,
        total: u64,
        bytes: Bytes,
    },
    Operator(Bytes),
    /// It does not do that, now or ever.
    Refused(String),
}

/// Who a node is, and how far.
#[derive(Clone, Eq, PartialEq, Debug)]
pub(crate) struct About {
    pub(crate) node: NodeId,
    pub(crate) engine: [u8; 16],
    pub(crate) run: RunId,
    /// It knows of members.
    pub(crate) is_initialized: bool,
    pub(crate) begun: Option<Promise>,
    pub(crate) leader: Option<NodeId>,
    /// What is applied of the metadata stream.
    pub(crate) applied: u64,
}

const ABOUT: u8 = 1;
const PROMISE: u8 = 2;
const EXECUTE: u8 = 3;
const READ_END: u8 = 4;
const SNAPSHOT: u8 = 5;
const OPERATOR: u8 = 6;
const NOT_DONE: u8 = 7;
const UNKNOWN: u8 = 8;
const NOT_LEADER: u8 = 9;
const REFUSED: u8 = 10;
const HOLDINGS: u8 = 11;
const FOUND: u8 = 12;
const DONE: u8 = 13;

impl Ask {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        match self {
            Self::About => bytes.put_u8(ABOUT),
            Self::Holdings => bytes.put_u8(HOLDINGS),
            Self::Found(founders) => {
                bytes.put_u8(FOUND);
                bytes.put_count(founders.len());
                for Founder { node, address, engine } in founders {
                    bytes.put_u64(node.get());
                    bytes.put(engine);
                    bytes.put_text(address);
                }
            }
            Self::Promise { promise, index } => {
                bytes.put_u8(PROMISE);
                put_promise(&mut bytes, promise);
                bytes.put_u64(*index);
            }
            Self::Execute { ack, limit_ms, record } => {
                bytes.put_u8(EXECUTE);
                bytes.put_u8(put_ack(*ack));
                bytes.put_u32(*limit_ms);
                bytes.put_bytes(record);
            }
            Self::ReadEnd { limit_ms } => {
                bytes.put_u8(READ_END);
                bytes.put_u32(*limit_ms);
            }
            Self::Snapshot { end, from } => {
                bytes.put_u8(SNAPSHOT);
                bytes.put_u64(*end);
                bytes.put_u64(*from);
            }
            Self::Operator(ask) => {
                bytes.put_u8(OPERATOR);
                bytes.put(ask);
            }
        }
        bytes
    }

    pub(crate) fn decode(bytes: &Bytes) -> Result<Self, Malformed> {
        let mut reader = Reader(bytes);
        version(&mut reader)?;
        let ask = match reader.u8("the kind of question")? {
            ABOUT => Self::About,
            HOLDINGS => Self::Holdings,
            FOUND => {
                let founder = |reader: &mut Reader<'_>| {
                    let node = NodeId::new(reader.u64("a node")?);
                    let engine = sixteen(reader)?;
                    let address = reader.text(TEXT_BYTES_MAX, "an address")?.to_owned();
                    Ok(Founder { node, address, engine })
                };
                let count = reader.count(MEMBERS_MAX, 26, "members")?;
                let founders = (0..count).map(|_| founder(&mut reader));
                Self::Found(founders.collect::<Result<_, Malformed>>()?)
            }
            PROMISE => {
                let promise = promise(&mut reader)?;
                Self::Promise { promise, index: reader.u64("an index")? }
            }
            EXECUTE => {
                let ack = ack(&mut reader)?;
                let limit_ms = reader.u32("a limit")?;
                let record = slice(bytes, reader.bytes(RECORD_BYTES_MAX, "a record")?);
                Self::Execute { ack, limit_ms, record }
            }
            READ_END => Self::ReadEnd { limit_ms: reader.u32("a limit")? },
            SNAPSHOT => Self::Snapshot { end: reader.u64("an end")?, from: reader.u64("a place")? },
            OPERATOR => Self::Operator(slice(bytes, std::mem::take(&mut reader.0))),
            kind => {
                return Err(Malformed::Value { what: "the kind of question", value: kind.into() });
            }
        };
        at_end(reader).map(|()| ask)
    }
}

impl Answer {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        match self {
            Self::About(about) => {
                bytes.put_u8(ABOUT);
                bytes.put_u64(about.node.get());
                bytes.put(&about.engine);
                bytes.put(&about.run.bytes());
                bytes.put_u8(about.is_initialized.into());
                put_begun(&mut bytes, about.begun.as_ref());
                bytes.put_u64(about.leader.map_or(0, NodeId::get));
                bytes.put_u64(about.applied);
            }
            Self::Promised(Standing { streams, begun }) => {
                bytes.put_u8(PROMISE);
                put_begun(&mut bytes, begun.as_ref());
                bytes.put_count(streams.len());
                for Holding { stream, trimmed, end, epoch } in streams {
                    for word in [stream.get(), *trimmed, *end, *epoch] {
                        bytes.put_u64(word);
                    }
                }
            }
            Self::Executed { durable, applied } => {
                bytes.put_u8(EXECUTE);
                bytes.put_u8(put_ack(*durable));
                bytes.put_u64(applied.epoch);
                bytes.put_u64(applied.offset);
                bytes.put_u8(applied.is_retry.into());
                let (code, one, two) = outcome::to_words(applied.outcome);
                bytes.put_u16(code);
                bytes.put_u64(one);
                bytes.put_u64(two);
            }
            Self::Done => bytes.put_u8(DONE),
            Self::NotDone(why) => put_text(&mut bytes, NOT_DONE, why),
            Self::Unknown(why) => put_text(&mut bytes, UNKNOWN, why),
            Self::Refused(why) => put_text(&mut bytes, REFUSED, why),
            Self::NotLeader(leader) => {
                bytes.put_u8(NOT_LEADER);
                bytes.put_u64(leader.map_or(0, NodeId::get));
            }
            Self::ReadEnd { epoch, end } => {
                bytes.put_u8(READ_END);
                bytes.put_u64(*epoch);
                bytes.put_u64(*end);
            }
            Self::Snapshot { end, total, bytes: part } => {
                bytes.put_u8(SNAPSHOT);
                bytes.put_u64(*end);
                bytes.put_u64(*total);
                bytes.put(part);
            }
            Self::Operator(answer) => {
                bytes.put_u8(OPERATOR);
                bytes.put(answer);
            }
        }
        bytes
    }

    pub(crate) fn decode(bytes: &Bytes) -> Result<Self, Malformed> {
        let mut reader = Reader(bytes);
        version(&mut reader)?;
        let answer = match reader.u8("the kind of answer")? {
            ABOUT => Self::About(About {
                node: NodeId::new(reader.u64("a node")?),
                engine: sixteen(&mut reader)?,
                run: RunId::new(sixteen(&mut reader)?),
                is_initialized: flag(&mut reader)?,
                begun: begun(&mut reader)?,
                leader: node(&mut reader)?,
                applied: reader.u64("an end")?,
            }),
            PROMISE => {
                let begun = begun(&mut reader)?;
                let count = reader.count(STREAMS_MAX, 32, "streams")?;
                let holding = |reader: &mut Reader<'_>| {
                    Ok(Holding {
                        stream: StreamId::new(reader.u64("a stream")?),
                        trimmed: reader.u64("a trimmed offset")?,
                        end: reader.u64("an end")?,
                        epoch: reader.u64("an epoch")?,
                    })
                };
                let streams =
                    (0..count).map(|_| holding(&mut reader)).collect::<Result<_, Malformed>>()?;
                Self::Promised(Standing { streams, begun })
            }
            EXECUTE => {
                let durable = ack(&mut reader)?;
                let (epoch, offset) = (reader.u64("an epoch")?, reader.u64("an offset")?);
                let is_retry = flag(&mut reader)?;
                let code = reader.u16("an outcome")?;
                let (one, two) = (reader.u64("an outcome")?, reader.u64("an outcome")?);
                let value = code.into();
                let outcome = outcome::from_words(code, one, two)
                    .ok_or(Malformed::Value { what: "an outcome", value })?;
                let applied = Applied { epoch, offset, is_retry, outcome };
                Self::Executed { durable, applied }
            }
            DONE => Self::Done,
            NOT_DONE => Self::NotDone(text(&mut reader)?),
            UNKNOWN => Self::Unknown(text(&mut reader)?),
            REFUSED => Self::Refused(text(&mut reader)?),
            NOT_LEADER => Self::NotLeader(node(&mut reader)?),
            READ_END => {
                Self::ReadEnd { epoch: reader.u64("an epoch")?, end: reader.u64("an end")? }
            }
            SNAPSHOT => {
                let (end, total) = (reader.u64("an end")?, reader.u64("a length")?);
                let part = slice(bytes, std::mem::take(&mut reader.0));
                Self::Snapshot { end, total, bytes: part }
            }
            OPERATOR => Self::Operator(slice(bytes, std::mem::take(&mut reader.0))),
            kind => {
                return Err(Malformed::Value { what: "the kind of answer", value: kind.into() });
            }
        };
        at_end(reader).map(|()| answer)
    }
}

/// A part of `bytes` without copying it.
fn slice(bytes: &Bytes, part: &[u8]) -> Bytes {
    if part.is_empty() { Bytes::new() } else { bytes.slice_ref(part) }
}

fn version(reader: &mut Reader<'_>) -> Result<(), Malformed> {
    match reader.u8("the version")? {
        VERSION => Ok(()),
        value => Err(Malformed::Value { what: "the version", value: value.into() }),
    }
}

fn at_end(reader: Reader<'_>) -> Result<(), Malformed> {
    if reader.0.is_empty() {
        Ok(())
    } else {
        Err(Malformed::Place("bytes are left behind the end"))
    }
}

fn put_promise(bytes: &mut Vec<u8>, promise: &Promise) {
    bytes.put_u64(promise.epoch);
    bytes.put_u64(promise.leader.get());
    bytes.put(&promise.run.bytes());
}

fn promise(reader: &mut Reader<'_>) -> Result<Promise, Malformed> {
    let (epoch, leader) = (reader.u64("an epoch")?, NodeId::new(reader.u64("a leader")?));
    Ok(Promise { epoch, leader, run: RunId::new(sixteen(reader)?) })
}

/// Nothing has begun: all zero.
fn put_begun(bytes: &mut Vec<u8>, begun: Option<&Promise>) {
    let none = Promise { epoch: 0, leader: NodeId::new(0), run: RunId::new([0; 16]) };
    put_promise(bytes, begun.unwrap_or(&none));
}

fn begun(reader: &mut Reader<'_>) -> Result<Option<Promise>, Malformed> {
    Ok(Some(promise(reader)?).filter(|promise| promise.epoch > 0))
}

fn sixteen(reader: &mut Reader<'_>) -> Result<[u8; 16], Malformed> {
    Ok(reader.take(16, "an id")?.try_into().expect("exactly as many were taken"))
}

fn node(reader: &mut Reader<'_>) -> Result<Option<NodeId>, Malformed> {
    Ok(Some(NodeId::new(reader.u64("a node")?)).filter(|node| node.get() > 0))
}

fn flag(reader: &mut Reader<'_>) -> Result<bool, Malformed> {
    match reader.u8("a flag")? {
        0 => Ok(false),
        1 => Ok(true),
        value => Err(Malformed::Value { what: "a flag", value: value.into() }),
    }
}

fn put_ack(ack: Ack) -> u8 {
    match ack {
        Ack::Local => 0,
        Ack::Quorum => 1,
    }
}

fn ack(reader: &mut Reader<'_>) -> Result<Ack, Malformed> {
    Ok(if flag(reader)? { Ack::Quorum } else { Ack::Local })
}

fn put_text(bytes: &mut Vec<u8>, kind: u8, text: &str) {
    bytes.put_u8(kind);
    let mut length = text.len().min(TEXT_BYTES_MAX);
    while !text.is_char_boundary(length) {
        length -= 1;
    }
    bytes.put_text(&text[..length]);
}

fn text(reader: &mut Reader<'_>) -> Result<String, Malformed> {
    Ok(reader.text(TEXT_BYTES_MAX, "a text")?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Done;

    fn some_promise() -> Promise {
        Promise { epoch: 7, leader: NodeId::new(2), run: RunId::new([9; 16]) }
    }

    fn asks() -> Vec<Ask> {
        vec![
            Ask::About,
            Ask::Holdings,
            Ask::Found(vec![Founder {
                node: NodeId::new(1),
                address: "one:9291".into(),
                engine: [3; 16],
            }]),
            Ask::Promise { promise: some_promise(), index: 12 },
            Ask::Execute { ack: Ack::Quorum, limit_ms: 900, record: Bytes::from_static(b"record") },
            Ask::ReadEnd { limit_ms: 1 },
            Ask::Snapshot { end: 4, from: 1 << 40 },
            Ask::Operator(Bytes::from_static(b"{}")),
        ]
    }

    fn answers() -> Vec<Answer> {
        let about = About {
            node: NodeId::new(3),
            engine: [1; 16],
            run: RunId::new([2; 16]),
            is_initialized: true,
            begun: Some(some_promise()),
            leader: None,
            applied: 99,
        };
        let holding = Holding { stream: StreamId::new(0), trimmed: 1, end: 20, epoch: 3 };
        let outcome = Ok(Done::Changed);
        let applied = Applied { epoch: 3, offset: 8, is_retry: true, outcome };
        vec![
            Answer::About(about),
            Answer::Promised(Standing { streams: vec![holding; 3], begun: None }),
            Answer::Executed { durable: Ack::Local, applied },
            Answer::Done,
            Answer::NotDone("no".into()),
            Answer::Unknown("perhaps".into()),
            Answer::NotLeader(Some(NodeId::new(4))),
            Answer::NotLeader(None),
            Answer::ReadEnd { epoch: 1, end: 2 },
            Answer::Snapshot { end: 1, total: 3, bytes: Bytes::from_static(b"abc") },
            Answer::Operator(Bytes::from_static(b"[]")),
            Answer::Refused("never".into()),
        ]
    }

    #[test]
    fn everything_comes_back_as_it_was_and_no_beginning_of_it_is_taken() {
        for ask in asks() {
            let bytes = Bytes::from(ask.encode());
            assert_eq!(Ask::decode(&bytes).as_ref(), Ok(&ask));
            // What ends with bytes of the other side has no end of its own.
            let until = if matches!(ask, Ask::Operator(_)) { 2 } else { bytes.len() };
            for length in 0..until {
                assert!(Ask::decode(&bytes.slice(..length)).is_err(), "{ask:?} {length}");
            }
        }
        for answer in answers() {
            let bytes = Bytes::from(answer.encode());
            assert_eq!(Answer::decode(&bytes).as_ref(), Ok(&answer));
            let until = match answer {
                Answer::Operator(_) => 2,
                Answer::Snapshot { .. } => 18,
                _ => bytes.len(),
            };
            for length in 0..until {
                assert!(Answer::decode(&bytes.slice(..length)).is_err(), "{answer:?} {length}");
            }
        }
    }

    #[test]
    fn more_behind_the_end_another_version_and_bombs_are_refused() {
        let mut bytes = Ask::About.encode();
        bytes.push(0);
        assert!(Ask::decode(&bytes.into()).is_err());
        assert!(Ask::decode(&Bytes::from_static(&[2, ABOUT])).is_err());
        assert!(Answer::decode(&Bytes::from_static(&[VERSION, 99])).is_err());
        let mut bomb = vec![VERSION, PROMISE];
        put_begun(&mut bomb, None);
        bomb.put_u32(u32::MAX);
        assert!(matches!(Answer::decode(&bomb.into()), Err(Malformed::TooLong { .. })));
    }

    #[test]
    fn a_text_that_is_too_long_is_cut_between_two_characters() {
        let long = "é".repeat(TEXT_BYTES_MAX);
        let answer = Answer::decode(&Answer::NotDone(long.clone()).encode().into()).unwrap();
        assert_eq!(answer, Answer::NotDone(long[..TEXT_BYTES_MAX].to_owned()));
    }
}
