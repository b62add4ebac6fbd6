//! The bytes of what nodes ask each other and reply: requests of
//! [`ringwal_replication::requests`], whose port says who asks and of which cluster. Little-endian.
//!
//! ```text
//! request   0  version 1  u8     1  kind  u8     2  zero  u16
//!           4  to: the engine that the asker knows the other node by, 16 bytes (zero: whichever it has)
//!          20  body
//!     kind 1 append:          vote, log id of what is before, committed log id; count u32,
//!                             of each entry length u32, bytes as in the log
//!     kind 2 vote:            vote, last log id, transfer u8
//!     kind 3 pre-vote:        the same
//!     kind 4 transfer leader: vote, to node u64, last log id
//!     kind 5 snapshot:        vote, total u64, CRC32C of all of it u32, offset u64;
//!                             at offset 0: last log id, log id of the membership, membership;
//!                             length u32, bytes
//!     kind 6 store:           bytes that mean something to the store only
//!
//! reply     0  version 1  u8     1  kind  u8     2  zero  u16
//!           4  body
//!     kind 1 append:          u8: 0 success, 1 in part (log id), 2 conflict, 3 higher vote (vote)
//!     kind 2 vote:            vote, granted u8, last log id
//!     kind 3 pre-vote:        the same
//!     kind 4 transfer leader: u8: 0 done, 1 vote changed (expected, actual: votes),
//!                             2 not flushed (expected, actual: log ids)
//!     kind 5 snapshot:        u8: 0 more (offset u64), 1 installed (vote)
//!     kind 6 store:           bytes
//!     kind 7 refused:         u8: 0 other disk (engine 16 bytes), or a text (length u32, bytes):
//!                             1 does not vote, 2 is not ready, 3 does not understand
//!
//! vote      1 given or 2 granted by a majority u8, term u64, node u64
//! log id    term u64, index + 1 u64 (0: none)
//! ```

use bytes::{BufMut, Bytes};
use openraft::{StoredMembership, vote::leader_id_std::CommittedLeaderId};
use ringwal_replication::requests::REQUEST_BYTES_MAX;

use super::codec::{Malformed, Taker, limit, zero};
use super::entry::{
    self, ENTRY_BYTES_MAX, put_length, put_log_id, put_membership, take_log_id, take_membership,
};
use super::types::{Entry, LogId, RaftNode, Vote};

/// Longest snapshot of Raft that is sent, in bytes.
pub const SNAPSHOT_BYTES_MAX: usize = 64 << 20;
/// Bytes of a snapshot in one request.
pub const SNAPSHOT_CHUNK_BYTES: usize = 1 << 20;
/// An Append has not more bytes than this, unless it has a single entry: heartbeats go the same way, and
/// must not wait long behind it.
pub const APPEND_BYTES_MAX: usize = 256 << 10;
/// Longest text of a refusal, in bytes; what is longer is cut.
pub const REFUSAL_TEXT_BYTES_MAX: usize = 512;

const VERSION: u8 = 1;
const APPEND: u8 = 1;
const VOTE: u8 = 2;
const PRE_VOTE: u8 = 3;
const TRANSFER: u8 = 4;
const SNAPSHOT: u8 = 5;
const STORE: u8 = 6;
const REFUSED: u8 = 7;

/// The parts of an entry that every one has, and its length.
const ENTRY_BYTES_MIN: usize = 40;

/// The log position and members that a snapshot of Raft stands for.
pub type SnapshotMeta = openraft::SnapshotMeta<CommittedLeaderId<u64>, u64, RaftNode>;
/// A snapshot of Raft.
pub type Snapshot = openraft::Snapshot<CommittedLeaderId<u64>, u64, RaftNode, Bytes>;

/// A request.
#[derive(Clone, PartialEq, Debug)]
pub struct Request {
    /// The engine of the node that is meant; zeros for whichever it has.
    pub to_engine: [u8; 16],
    /// What is asked.
    pub ask: Ask,
}

/// What is asked of a node.
#[derive(Clone, PartialEq, Debug)]
pub enum Ask {
    /// Entries, or none: a heartbeat.
    Append(Append),
    /// Its vote.
    Vote(Candidacy),
    /// Whether it would give its vote.
    PreVote(Candidacy),
    /// To let another node lead, or to lead.
    TransferLeader(Transfer),
    /// A part of a snapshot.
    Snapshot(Chunk),
    /// Something of the store.
    Store(Bytes),
}

/// Entries of the log, from its leader.
#[derive(Clone, PartialEq, Debug)]
pub struct Append {
    /// The leader's vote, granted by a majority.
    pub vote: Vote,
    /// What is before the entries.
    pub previous: Option<LogId>,
    /// One after the other.
    pub entries: Vec<Entry>,
    /// What the leader knows to be committed.
    pub committed: Option<LogId>,
}

/// Who wants to lead.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct Candidacy {
    /// The vote that is asked for.
    pub vote: Vote,
    /// The candidate's last entry.
    pub last: Option<LogId>,
    /// The leader has handed over to it: voters need not wait for their lease.
    pub is_transfer: bool,
}

/// A leader hands over.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct Transfer {
    /// The leader's vote.
    pub vote: Vote,
    /// Who shall lead.
    pub to: u64,
    /// What that one must have.
    pub last: Option<LogId>,
}

/// A part of a snapshot.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct Chunk {
    /// The leader's vote.
    pub vote: Vote,
    /// Length of the whole snapshot.
    pub total: u64,
    /// CRC32C of the whole snapshot.
    pub checksum: u32,
    /// Where this part begins.
    pub offset: u64,
    /// With the first part: what the snapshot stands for.
    pub meta: Option<SnapshotMeta>,
    /// The part.
    pub bytes: Bytes,
}

impl Chunk {
    /// Offset after the part.
    pub fn end(&self) -> u64 {
        self.offset + self.bytes.len() as u64
    }

    /// Whether it is the last part.
    pub fn is_last(&self) -> bool {
        self.end() == self.total
    }
}

/// A reply.
#[derive(Clone, Eq, PartialEq, Debug)]
pub enum Reply {
    /// To [`Ask::Append`].
    Append(Appended),
    /// To [`Ask::Vote`].
    Vote(Voted),
    /// To [`Ask::PreVote`].
    PreVote(Voted),
    /// To [`Ask::TransferLeader`].
    TransferLeader(Transferred),
    /// To [`Ask::Snapshot`].
    Snapshot(SnapshotTaken),
    /// To [`Ask::Store`].
    Store(Bytes),
    /// To anything.
    Refused(Refusal),
}

/// What became of an [`Append`].
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Appended {
    /// All of it is durable there.
    Success,
    /// It is, up to here.
    InPart(Option<LogId>),
    /// What is before the entries is not in its log.
    Conflict,
    /// It has a higher vote.
    HigherVote(Vote),
}

/// A voter's answer.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct Voted {
    /// Its vote now.
    pub vote: Vote,
    /// Whether it is the one that was asked for.
    pub is_granted: bool,
    /// Its last entry.
    pub last: Option<LogId>,
}

/// What became of a [`Transfer`].
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Transferred {
    /// It is known there.
    Done,
    /// The node knows another vote.
    VoteChanged {
        /// The leader's.
        expected: Vote,
        /// Its own.
        actual: Vote,
    },
    /// The node lacks entries.
    NotFlushed {
        /// What it must have.
        expected: Option<LogId>,
        /// What it has.
        actual: Option<LogId>,
    },
}

/// What became of a [`Chunk`].
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum SnapshotTaken {
    /// More is wanted, from this offset on.
    More(u64),
    /// It was the last one, and the snapshot is installed, or was refused for a higher vote: this one is
    /// the node's.
    Installed(Vote),
}

/// Why a node does not do what it is asked.
#[derive(Clone, Eq, PartialEq, Debug, thiserror::Error)]
pub enum Refusal {
    /// It has another engine than the one that is meant: its disk was exchanged (I-15).
    #[error(
        "the node has engine {:032x}, another one than the membership names: take it out of the cluster, and add it as a learner",
        u128::from_be_bytes(*engine)
    )]
    OtherDisk {
        /// The one that it has.
        engine: [u8; 16],
    },
    /// It does not vote now.
    #[error("the node does not vote now: {0}")]
    NoVote(String),
    /// It does nothing of the kind now.
    #[error("the node is not ready: {0}")]
    NotReady(String),
    /// It does not know what is meant.
    #[error("the node does not understand the request: {0}")]
    NotUnderstood(String),
}

fn put_vote(into: &mut Vec<u8>, vote: Vote) {
    into.put_u8(1 + u8::from(vote.committed));
    into.put_u64_le(vote.leader_id.term);
    into.put_u64_le(vote.leader_id.voted_for);
}

fn take_vote(from: &mut Taker) -> Result<Vote, Malformed> {
    let (kind, term, node) = (from.u8()?, from.u64()?, from.u64()?);
    match kind {
        1 => Ok(Vote::new(term, node)),
        2 => Ok(Vote::new_committed(term, node)),
        kind => Err(Malformed::Unknown { what: "kind of vote", value: kind.into() }),
    }
}

/// A vote that a majority has granted, or one that none has.
fn take_vote_that(is_granted: bool, from: &mut Taker) -> Result<Vote, Malformed> {
    let vote = take_vote(from)?;
    match vote.committed == is_granted {
        true => Ok(vote),
        false => Err(Malformed::Unknown { what: "vote of a leader or candidate", value: 1 }),
    }
}

fn take_bool(what: &'static str, from: &mut Taker) -> Result<bool, Malformed> {
    match from.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        value => Err(Malformed::Unknown { what, value: value.into() }),
    }
}

fn take_version(what: &'static str, from: &mut Taker) -> Result<u8, Malformed> {
    let found = from.u8()?;
    if found != VERSION {
        return Err(Malformed::Version { what, found, known: VERSION });
    }
    let kind = from.u8()?;
    zero("reserved field", from.u16()?.into())?;
    Ok(kind)
}

/// The rest of it.
fn take_rest(from: &mut Taker) -> Result<Bytes, Malformed> {
    from.bytes(from.left())
}

fn put_header(into: &mut Vec<u8>, kind: u8, to_engine: [u8; 16]) {
    into.extend_from_slice(&[VERSION, kind, 0, 0]);
    into.extend_from_slice(&to_engine);
}

impl Request {
    /// Its bytes.
    ///
    /// # Errors
    /// When they are more than a request may have, or an entry is too long. Of an Append that is, see
    /// [`encode_append`].
    pub fn encode(&self) -> Result<Vec<u8>, Malformed> {
        let mut bytes = Vec::new();
        let to = self.to_engine;
        match &self.ask {
            Ask::Append(append) => {
                let all = append.entries.len();
                let (append, taken) = encode_append(to, append, 0, REQUEST_BYTES_MAX)?;
                limit("entries that are too long for one request", (all - taken) as u64, 0)?;
                return Ok(append);
            }
            Ask::Vote(candidacy) => {
                put_header(&mut bytes, VOTE, to);
                put_candidacy(&mut bytes, candidacy);
            }
            Ask::PreVote(candidacy) => {
                put_header(&mut bytes, PRE_VOTE, to);
                put_candidacy(&mut bytes, candidacy);
            }
            Ask::TransferLeader(transfer) => {
                put_header(&mut bytes, TRANSFER, to);
                put_vote(&mut bytes, transfer.vote);
                bytes.put_u64_le(transfer.to);
                put_log_id(&mut bytes, transfer.last);
            }
            Ask::Snapshot(chunk) => {
                put_header(&mut bytes, SNAPSHOT, to);
                put_chunk(&mut bytes, chunk);
            }
            Ask::Store(store) => {
                put_header(&mut bytes, STORE, to);
                bytes.extend_from_slice(store);
            }
        }
        limit("bytes of a request", bytes.len() as u64, REQUEST_BYTES_MAX as u64)?;
        Ok(bytes)
    }

    /// The request of these bytes. Entries, parts of snapshots and what is the store's are slices of them.
    ///
    /// # Errors
    /// When the bytes are not exactly one request of a version that is known.
    pub fn decode(bytes: Bytes) -> Result<Self, Malformed> {
        limit("bytes of a request", bytes.len() as u64, REQUEST_BYTES_MAX as u64)?;
        let mut from = Taker::new(bytes);
        let kind = take_version("request", &mut from)?;
        let to_engine = from.id()?;
        let ask = match kind {
            APPEND => Ask::Append(take_append(&mut from)?),
            VOTE => Ask::Vote(take_candidacy(&mut from)?),
            PRE_VOTE => Ask::PreVote(take_candidacy(&mut from)?),
            TRANSFER => Ask::TransferLeader(Transfer {
                vote: take_vote_that(true, &mut from)?,
                to: from.u64()?,
                last: take_log_id(&mut from)?,
            }),
            SNAPSHOT => Ask::Snapshot(take_chunk(&mut from)?),
            STORE => Ask::Store(take_rest(&mut from)?),
            kind => return Err(Malformed::Unknown { what: "kind of request", value: kind.into() }),
        };
        from.end()?;
        Ok(Self { to_engine, ask })
    }
}

/// The bytes of an Append with the entries of `append` from the one at `skip` on, as many as are not more than
/// about `bytes_max` bytes together, at least one if there is one; and how many they are. What is
/// before them is the entry before, or what is before all of them.
///
/// # Errors
/// When an entry is longer than any may be.
pub fn encode_append(
    to_engine: [u8; 16],
    append: &Append,
    skip: usize,
    bytes_max: usize,
) -> Result<(Vec<u8>, usize), Malformed> {
    let mut bytes = Vec::new();
    put_header(&mut bytes, APPEND, to_engine);
    put_vote(&mut bytes, append.vote);
    let before = skip.checked_sub(1).and_then(|before| append.entries.get(before));
    put_log_id(&mut bytes, before.map_or(append.previous, |before| Some(before.log_id)));
    put_log_id(&mut bytes, append.committed);
    let count_at = bytes.len();
    put_length(&mut bytes, 0);
    let mut count: u32 = 0;
    for entry in append.entries.iter().skip(skip) {
        let length_at = bytes.len();
        put_length(&mut bytes, 0);
        let length = entry::encode(entry, None, &mut bytes)?;
        if count > 0 && bytes.len() > bytes_max {
            bytes.truncate(length_at);
            break;
        }
        bytes[length_at..length_at + 4].copy_from_slice(&(length as u32).to_le_bytes());
        count += 1;
    }
    bytes[count_at..count_at + 4].copy_from_slice(&count.to_le_bytes());
    Ok((bytes, count as usize))
}

fn take_append(from: &mut Taker) -> Result<Append, Malformed> {
    let vote = take_vote_that(true, from)?;
    let (previous, committed) = (take_log_id(from)?, take_log_id(from)?);
    let mut entries = Vec::new();
    let mut expected = previous.map_or(0, |previous| previous.index + 1);
    for _ in 0..from.count(ENTRY_BYTES_MIN)? {
        let bytes = from.sized("bytes of an entry", ENTRY_BYTES_MAX)?;
        let (entry, _) = entry::decode(bytes)?;
        let found = entry.log_id.index;
        if found != expected {
            return Err(Malformed::OutOfPlace { expected, found });
        }
        expected = expected.wrapping_add(1);
        entries.push(entry);
    }
    Ok(Append { vote, previous, entries, committed })
}

fn put_candidacy(into: &mut Vec<u8>, candidacy: &Candidacy) {
    put_vote(into, candidacy.vote);
    put_log_id(into, candidacy.last);
    into.put_u8(candidacy.is_transfer.into());
}

fn take_candidacy(from: &mut Taker) -> Result<Candidacy, Malformed> {
    let (vote, last) = (take_vote_that(false, from)?, take_log_id(from)?);
    Ok(Candidacy { vote, last, is_transfer: take_bool("transfer flag", from)? })
}

fn put_chunk(into: &mut Vec<u8>, chunk: &Chunk) {
    put_vote(into, chunk.vote);
    into.put_u64_le(chunk.total);
    into.put_u32_le(chunk.checksum);
    into.put_u64_le(chunk.offset);
    if let Some(meta) = &chunk.meta {
        put_log_id(into, meta.last_log_id);
        put_log_id(into, *meta.last_membership.log_id());
        put_membership(into, meta.last_membership.membership());
    }
    put_length(into, chunk.bytes.len());
    into.extend_from_slice(&chunk.bytes);
}

fn take_chunk(from: &mut Taker) -> Result<Chunk, Malformed> {
    let vote = take_vote_that(true, from)?;
    let (total, checksum, offset) = (from.u64()?, from.u32()?, from.u64()?);
    limit("bytes of a snapshot", total, SNAPSHOT_BYTES_MAX as u64)?;
    limit("as the offset in a snapshot", offset, total)?;
    let mut meta = None;
    if offset == 0 {
        let (last_log_id, log_id) = (take_log_id(from)?, take_log_id(from)?);
        let last_membership = StoredMembership::new(log_id, take_membership(from)?);
        meta = Some(SnapshotMeta { last_log_id, last_membership });
    }
    let bytes = from.sized("bytes of a part of a snapshot", SNAPSHOT_CHUNK_BYTES)?;
    let chunk = Chunk { vote, total, checksum, offset, meta, bytes };
    limit("bytes up to the end of a part of a snapshot", chunk.end(), total)?;
    if chunk.bytes.is_empty() && total > 0 {
        return Err(Malformed::Unknown { what: "length of a part of a snapshot", value: 0 });
    }
    Ok(chunk)
}

impl Reply {
    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION, self.kind(), 0, 0];
        match self {
            Self::Append(Appended::Success) => bytes.put_u8(0),
            Self::Append(Appended::InPart(end)) => {
                bytes.put_u8(1);
                put_log_id(&mut bytes, *end);
            }
            Self::Append(Appended::Conflict) => bytes.put_u8(2),
            Self::Append(Appended::HigherVote(vote)) => {
                bytes.put_u8(3);
                put_vote(&mut bytes, *vote);
            }
            Self::Vote(voted) | Self::PreVote(voted) => {
                put_vote(&mut bytes, voted.vote);
                bytes.put_u8(voted.is_granted.into());
                put_log_id(&mut bytes, voted.last);
            }
            Self::TransferLeader(Transferred::Done) => bytes.put_u8(0),
            Self::TransferLeader(Transferred::VoteChanged { expected, actual }) => {
                bytes.put_u8(1);
                put_vote(&mut bytes, *expected);
                put_vote(&mut bytes, *actual);
            }
            Self::TransferLeader(Transferred::NotFlushed { expected, actual }) => {
                bytes.put_u8(2);
                put_log_id(&mut bytes, *expected);
                put_log_id(&mut bytes, *actual);
            }
            Self::Snapshot(SnapshotTaken::More(offset)) => {
                bytes.put_u8(0);
                bytes.put_u64_le(*offset);
            }
            Self::Snapshot(SnapshotTaken::Installed(vote)) => {
                bytes.put_u8(1);
                put_vote(&mut bytes, *vote);
            }
            Self::Store(store) => bytes.extend_from_slice(store),
            Self::Refused(refusal) => put_refusal(&mut bytes, refusal),
        }
        bytes
    }

    fn kind(&self) -> u8 {
        match self {
            Self::Append(_) => APPEND,
            Self::Vote(_) => VOTE,
            Self::PreVote(_) => PRE_VOTE,
            Self::TransferLeader(_) => TRANSFER,
            Self::Snapshot(_) => SNAPSHOT,
            Self::Store(_) => STORE,
            Self::Refused(_) => REFUSED,
        }
    }

    /// The reply of these bytes.
    ///
    /// # Errors
    /// When the bytes are not exactly one reply of a version that is known.
    pub fn decode(bytes: Bytes) -> Result<Self, Malformed> {
        let mut from = Taker::new(bytes);
        let reply = match take_version("reply", &mut from)? {
            APPEND => Self::Append(take_appended(&mut from)?),
            VOTE => Self::Vote(take_voted(&mut from)?),
            PRE_VOTE => Self::PreVote(take_voted(&mut from)?),
            TRANSFER => Self::TransferLeader(take_transferred(&mut from)?),
            SNAPSHOT => Self::Snapshot(match from.u8()? {
                0 => SnapshotTaken::More(from.u64()?),
                1 => SnapshotTaken::Installed(take_vote(&mut from)?),
                kind => return Err(unknown("outcome of a part of a snapshot", kind)),
            }),
            STORE => Self::Store(take_rest(&mut from)?),
            REFUSED => Self::Refused(take_refusal(&mut from)?),
            kind => return Err(unknown("kind of reply", kind)),
        };
        from.end()?;
        Ok(reply)
    }
}

fn unknown(what: &'static str, value: u8) -> Malformed {
    Malformed::Unknown { what, value: value.into() }
}

fn take_appended(from: &mut Taker) -> Result<Appended, Malformed> {
    match from.u8()? {
        0 => Ok(Appended::Success),
        1 => Ok(Appended::InPart(take_log_id(from)?)),
        2 => Ok(Appended::Conflict),
        3 => Ok(Appended::HigherVote(take_vote(from)?)),
        kind => Err(unknown("outcome of an Append", kind)),
    }
}

fn take_voted(from: &mut Taker) -> Result<Voted, Malformed> {
    let vote = take_vote(from)?;
    let is_granted = take_bool("granted flag", from)?;
    Ok(Voted { vote, is_granted, last: take_log_id(from)? })
}

fn take_transferred(from: &mut Taker) -> Result<Transferred, Malformed> {
    match from.u8()? {
        0 => Ok(Transferred::Done),
        1 => Ok(Transferred::VoteChanged { expected: take_vote(from)?, actual: take_vote(from)? }),
        2 => {
            let (expected, actual) = (take_log_id(from)?, take_log_id(from)?);
            Ok(Transferred::NotFlushed { expected, actual })
        }
        kind => Err(unknown("outcome of a transfer", kind)),
    }
}

fn put_refusal(into: &mut Vec<u8>, refusal: &Refusal) {
    let (kind, text) = match refusal {
        Refusal::OtherDisk { engine } => {
            into.put_u8(0);
            into.extend_from_slice(engine);
            return;
        }
        Refusal::NoVote(text) => (1, text),
        Refusal::NotReady(text) => (2, text),
        Refusal::NotUnderstood(text) => (3, text),
    };
    let mut length = text.len().min(REFUSAL_TEXT_BYTES_MAX);
    while !text.is_char_boundary(length) {
        length -= 1;
    }
    let text = &text[..length];
    into.put_u8(kind);
    put_length(into, text.len());
    into.extend_from_slice(text.as_bytes());
}

fn take_refusal(from: &mut Taker) -> Result<Refusal, Malformed> {
    let kind = from.u8()?;
    if kind == 0 {
        return Ok(Refusal::OtherDisk { engine: from.id()? });
    }
    let text = from.sized("bytes of a text", REFUSAL_TEXT_BYTES_MAX)?;
    let text = String::from_utf8(text.to_vec()).map_err(|_| Malformed::Text)?;
    match kind {
        1 => Ok(Refusal::NoVote(text)),
        2 => Ok(Refusal::NotReady(text)),
        3 => Ok(Refusal::NotUnderstood(text)),
        kind => Err(unknown("reason of a refusal", kind)),
    }
}

#[cfg(test)]
mod tests;
