//! What comes over a connection: hello, answer, messages, and items as they are received.

use anyhow::{Context as _, Result};
use ringwal_engine::{EpochStart, EpochTable, StreamId};
use ringwal_replication::link::Received;
use ringwal_replication::link::fuzzing::receive;
use ringwal_replication::node_id::{ClusterId, NodeId, RunId};
use ringwal_replication::promise::{Admission, Identity, Promise, admit};
use ringwal_replication::wire::{
    Answer, Cause, ConnectionKind, HELLO_BYTES, Hello, History, Item, Message, Refusal, Stop,
    Wanted,
};

use super::corpus::{Corpus, Kind};
use super::mutate::{fix_frame, mutate};
use super::targets::{Outcome, Verdict};
use crate::archive::{Files, unpack};
use crate::random::Random;

/// Longest frame that a receive buffer takes.
pub const FRAME_BYTES_MAX: usize = 1 << 20;
/// Items that come one after the other.
const ITEMS_MAX: u64 = 6;
/// Bytes of a message before its body.
const MESSAGE_HEADER_BYTES: usize = 16;

const CLUSTER: ClusterId = ClusterId::new([1; 16]);

const SEEDS: &[u8] = include_bytes!("../../corpus/wire.rwd");

/// The kept bytes, by what they are.
pub fn seeds() -> Result<Vec<(Kind, Vec<u8>)>> {
    let files = unpack(SEEDS).context("corpus/wire.rwd")?;
    let kind = |name: &str| match name.split('-').next() {
        Some("hello") => Ok(Kind::Hello),
        Some("answer") => Ok(Kind::Answer),
        Some("message") => Ok(Kind::Message),
        _ => anyhow::bail!("corpus/wire.rwd has a {name}"),
    };
    files.into_iter().map(|(name, bytes)| Ok((kind(&name)?, bytes))).collect()
}

/// What this version sends, to be kept.
pub fn make() -> Files {
    let mut files = Files::new();
    let hello = |kind, from, to, epoch| Hello {
        versions: (1, 1),
        kind,
        cluster: CLUSTER,
        from: NodeId::new(from),
        to: NodeId::new(to),
        run: RunId::new([4; 16]),
        engine: [5; 16],
        epoch,
    };
    for hello in [hello(ConnectionKind::Frames, 2, 3, 6), hello(ConnectionKind::Fetch, 1, 0, 0)] {
        files.insert(format!("hello-{}", files.len()), hello.encode().to_vec());
    }
    let refused = |refusal| Some((refusal, format!("because of {refusal}")));
    for refused in [None, refused(Refusal::Epoch), refused(Refusal::NotNow)] {
        let (node, run) = (NodeId::new(3), RunId::new([7; 16]));
        let version = u16::from(refused.is_none());
        let answer = Answer { version, refused, node, run, engine: [8; 16], epoch: 9 };
        files.insert(format!("answer-{}", files.len()), answer.encode());
    }
    for message in messages() {
        files.insert(format!("message-{:02}", files.len()), message.encode());
    }
    files
}

fn messages() -> Vec<Message> {
    let pairs = vec![(StreamId::new(4), 9), (StreamId::new(7), 12), (StreamId::new(9), 0)];
    let entry = |(epoch, start)| EpochStart { epoch, start };
    let history = |stream, trimmed, entries: &[(u64, u64)]| {
        let entries = entries.iter().copied().map(entry).collect();
        let epochs = EpochTable::from_entries(entries).expect("in order");
        History { stream: StreamId::new(stream), trimmed, epochs }
    };
    let wanted = |is_check| Wanted { stream: StreamId::new(7), from: 3, end: 9, is_check };
    let fetched = |stop| Message::Fetched { stream: StreamId::new(7), end: 5, stop };
    vec![
        Message::Histories(vec![
            history(4, 0, &[(1, 0), (5, 10)]),
            history(7, 6, &[(1, 5), (2, 8), (3, 9), (5, 12)]),
            history(0, 0, &[(5, 0)]),
        ]),
        Message::HistoriesEnd,
        Message::Heartbeat { time_ns: 7_000_000 },
        Message::HeartbeatAnswer { time_ns: 8_000_000 },
        Message::Committed(pairs.clone()),
        Message::Trimmed(pairs.clone()),
        Message::Want(pairs.clone()),
        Message::Durable { took_ns: 90_000, ends: pairs },
        Message::Leaving { epoch: 3, cause: Cause::Closing, reason: "it is closed".into() },
        Message::Fetch(wanted(false)),
        Message::Fetch(wanted(true)),
        fetched(Stop::Whole),
        fetched(Stop::More),
        fetched(Stop::End),
        fetched(Stop::Trimmed(12)),
        fetched(Stop::Damaged("segment-00000001 at byte 8192".into())),
    ]
}

/// Items one after the other: messages and frames, some of them mutated, or all of it.
pub fn items(corpus: &Corpus, random: &mut Random) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..1 + random.below(ITEMS_MAX) {
        let kind = if random.one_in(2) { Kind::Message } else { Kind::Frame };
        let samples = &corpus.samples[&kind];
        let draw = |random: &mut Random| &samples[random.below(samples.len() as u64) as usize];
        let mut item = draw(random).bytes.clone();
        if random.one_in(4) {
            let other = &draw(random).bytes;
            mutate(random, &mut item, other);
            if !random.one_in(6) {
                fix(kind, &mut item);
            }
        }
        bytes.extend_from_slice(&item);
    }
    if random.one_in(3) {
        spoil(&mut bytes, random);
    }
    bytes
}

/// Mutates items that follow one another, and mostly puts their checksums right again.
pub fn spoil(bytes: &mut Vec<u8>, random: &mut Random) {
    let other = bytes.clone();
    mutate(random, bytes, &other);
    if !random.one_in(6) {
        fix_items(bytes);
    }
}

/// Checksums, and the length of a message.
pub fn fix(kind: Kind, bytes: &mut [u8]) {
    match kind {
        Kind::Hello | Kind::Answer => fix_hello(bytes),
        Kind::Message => {
            let length = (bytes.len().saturating_sub(MESSAGE_HEADER_BYTES) as u32).to_le_bytes();
            if let Some(field) = bytes.get_mut(8..12) {
                field.copy_from_slice(&length);
            }
            fix_message(bytes);
        }
        _ => drop(fix_frame(bytes)),
    }
}

fn fix_hello(bytes: &mut [u8]) {
    if let Some(bytes) = bytes.get_mut(..HELLO_BYTES) {
        let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..8]), &bytes[12..]);
        bytes[8..12].copy_from_slice(&crc.to_le_bytes());
    }
}

/// Both checksums; how long it says it is.
fn fix_message(bytes: &mut [u8]) -> Option<usize> {
    let length = u32::from_le_bytes(bytes.get(8..12)?.try_into().ok()?) as usize;
    let length = MESSAGE_HEADER_BYTES.checked_add(length)?;
    if let Some(body) = bytes.get(MESSAGE_HEADER_BYTES..length) {
        let crc = crc32c::crc32c(body);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    }
    let header = bytes.get_mut(..MESSAGE_HEADER_BYTES)?;
    let crc = crc32c::crc32c_append(crc32c::crc32c(&header[..4]), &header[8..]);
    header[4..8].copy_from_slice(&crc.to_le_bytes());
    Some(length)
}

/// Every item, as far as they lead from one to the next.
fn fix_items(bytes: &mut [u8]) {
    let mut at = 0;
    while let Some(item) = bytes.get_mut(at..).filter(|rest| rest.len() >= 2) {
        let length = match [item[0], item[1]] {
            [b'R', b'M'] => fix_message(item),
            [b'R', b'F'] => fix_frame(item),
            _ => None,
        };
        let Some(next) = length.and_then(|length| at.checked_add(length)) else { return };
        at = next;
    }
}

/// A hello is what it was when it is said again, and only a member of the cluster is followed.
pub fn hello(bytes: &[u8]) -> Outcome {
    let Ok(hello) = Hello::decode(bytes) else { return Ok(Verdict::Refused) };
    let again = hello.encode();
    let is_plain = bytes[17..24].iter().chain(&bytes[104..128]).all(|byte| *byte == 0);
    if Hello::decode(&again) != Ok(hello) || (is_plain && again != bytes[..HELLO_BYTES]) {
        return Err("hello: decoded and encoded again it is another".into());
    }
    let me = Identity { cluster: CLUSTER, node: NodeId::new(3) };
    let members = [1, 2, 3].map(NodeId::new);
    let promised = Promise { epoch: 5, leader: NodeId::new(1), run: RunId::new([4; 16]) };
    match admit(me, &members, Some(promised), &hello) {
        Admission::Refuse(..) => {}
        _ if hello.cluster != me.cluster
            || hello.epoch < promised.epoch
            || !members.contains(&hello.from)
            || hello.from == me.node
            || hello.to != me.node =>
        {
            return Err("a hello is admitted that must not be".into());
        }
        _ => {}
    }
    Ok(Verdict::Accepted)
}

/// An answer is what it was when it is given again.
pub fn answer(bytes: &[u8]) -> Outcome {
    let length = Answer::reason_length(bytes);
    let Ok(answer) = Answer::decode(bytes) else { return Ok(Verdict::Refused) };
    let again = answer.encode();
    let length = length.map_err(|error| format!("an answer without a reason's length: {error}"))?;
    let is_plain = bytes[18..24].iter().chain(&bytes[72..128]).all(|byte| *byte == 0)
        && std::str::from_utf8(&bytes[HELLO_BYTES..HELLO_BYTES + length]).is_ok()
        && (answer.refused.is_some() || length == 0);
    if is_plain && again != bytes[..HELLO_BYTES + length] {
        return Err("answer: decoded and encoded again it is another".into());
    }
    match Answer::decode(&again) {
        Ok(other) if is_same_answer(&answer, &other) => Ok(Verdict::Accepted),
        other => Err(format!("answer: decoded again it is {other:?}")),
    }
}

/// What is no text grows when it is made one, and is cut again.
fn is_same_answer(one: &Answer, other: &Answer) -> bool {
    let reason = |answer: &Answer| answer.refused.clone().map(|(_, reason)| reason);
    let is_cut = reason(one).unwrap_or_default().starts_with(&reason(other).unwrap_or_default());
    let plain = |answer: &Answer| {
        let refused = answer.refused.as_ref().map(|(refusal, _)| (*refusal, String::new()));
        Answer { refused, ..answer.clone() }
    };
    is_cut && plain(one) == plain(other)
}

/// A message is what it was when it is sent again.
pub fn message(bytes: &[u8]) -> Outcome {
    let Ok(message) = Message::decode(bytes) else { return Ok(Verdict::Refused) };
    check_message(bytes, &message)?;
    Ok(Verdict::Accepted)
}

fn check_message(bytes: &[u8], message: &Message) -> Result<(), String> {
    let again = message.encode();
    let decoded = Message::decode(&again);
    let is_same = match (message, &decoded) {
        (
            Message::Leaving { epoch, cause, reason },
            Ok(Message::Leaving { epoch: same, cause: also, reason: cut }),
        ) => epoch == same && cause == also && reason.starts_with(cut),
        (
            Message::Fetched { stream, end, stop: Stop::Damaged(why) },
            Ok(Message::Fetched { stream: same, end: also, stop: Stop::Damaged(cut) }),
        ) => stream == same && end == also && why.starts_with(cut),
        (one, Ok(other)) => one == other && (bytes[3] != 0 || bytes.starts_with(&again)),
        (_, Err(_)) => false,
    };
    if !is_same {
        return Err(format!("message: decoded and encoded again it is {decoded:?}"));
    }
    let pieces = message.clone().pieces();
    match pieces.iter().all(|piece| Message::decode(&piece.encode()).is_ok()) {
        true => Ok(()),
        false => Err("a piece of a message is none".into()),
    }
}

/// However bytes are cut, the same items come out, and they are what went in.
pub fn received(bytes: &[u8], chance: u64) -> Outcome {
    let mut random = Random::new(chance);
    let most = [3, 40, 700, 70_000][random.below(4) as usize];
    let (items, ended) = receive(bytes, FRAME_BYTES_MAX, || 1 + random.below(most) as usize);
    let at_once = receive(bytes, FRAME_BYTES_MAX, || usize::MAX);
    if (&items, &ended) != (&at_once.0, &at_once.1) {
        return Err("items depend on how they are cut".into());
    }
    let mut rest = bytes;
    for received in &items {
        let length = match Item::look(rest, FRAME_BYTES_MAX) {
            Ok(Some(item)) => item.length(),
            other => return Err(format!("an item is received, and there is {other:?}")),
        };
        let (item, next) = rest.split_at_checked(length).ok_or("an item is not all there")?;
        match received {
            Received::Frame(frame) if frame == item => {}
            Received::Frame(_) => return Err("a frame is not what was sent".into()),
            Received::Message(message) => check_message(item, message)?,
        }
        rest = next;
    }
    Ok(if items.is_empty() { Verdict::Refused } else { Verdict::Accepted })
}
