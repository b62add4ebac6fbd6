//! What the two sides of a session tell each other beside frames.

use bytes::Bytes;
use ringwal_engine::{EpochStart, EpochTable, StreamId};
use zerocopy::IntoBytes;

use super::{
    EPOCH_MAX, MESSAGE_BYTES_MAX, MESSAGE_HEADER_BYTES, MessageHeader, OFFSET_MAX, WireError,
    check_length,
};

/// Epochs of one stream that fit a message. Of a longer table come several pieces, see
/// [`Message::pieces`].
const PIECE_ENTRIES_MAX: usize = (MESSAGE_BYTES_MAX - 24) / 16;
/// Epochs of all streams together that a leader may tell in a session: what it makes a follower
/// keep in memory is bounded by this.
pub const HISTORY_ENTRIES_MAX: usize = 4 << 20;

/// What a leader has of a stream: from `trimmed` on, by epochs. The last epoch is its own and
/// starts where the stream ended when it began. The first may be the one of the record just before
/// `trimmed`.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct History {
    /// Which stream.
    pub stream: StreamId,
    /// First offset that is not trimmed.
    pub trimmed: u64,
    /// Its epochs.
    pub epochs: EpochTable,
}

impl History {
    /// Bytes in a message.
    pub(crate) fn bytes(&self) -> usize {
        24 + 16 * self.epochs.entries().len()
    }

    /// Whether it is a piece that the next history of the same stream goes on with.
    pub fn is_unfinished(&self, present_epoch: u64) -> bool {
        let entries = self.epochs.entries();
        entries.len() == PIECE_ENTRIES_MAX && self.epochs.last().epoch != present_epoch
    }

    /// Both pieces as one; `None` when the second does not go on with the first.
    pub fn join(self, next: History) -> Option<History> {
        let fits = self.stream == next.stream && self.trimmed == next.trimmed;
        let entries = [self.epochs.entries(), next.epochs.entries()].concat();
        let epochs = EpochTable::from_entries(entries).filter(|_| fits)?;
        Some(History { epochs, ..self })
    }

    /// Itself, or several of at most as many epochs as fit a message.
    fn pieces(self) -> Vec<History> {
        let Self { stream, trimmed, epochs } = &self;
        if epochs.entries().len() <= PIECE_ENTRIES_MAX {
            return vec![self];
        }
        let piece = |entries: &[EpochStart]| {
            let epochs = EpochTable::from_entries(entries.to_vec()).expect("a part is in order");
            History { stream: *stream, trimmed: *trimmed, epochs }
        };
        epochs.entries().chunks(PIECE_ENTRIES_MAX).map(piece).collect()
    }
}

/// See the variants. Streams with offsets are pairs; a stream comes at most once in a list.
#[derive(Clone, Eq, PartialEq, Debug)]
pub enum Message {
    /// Leader: these streams have these histories.
    Histories(Vec<History>),
    /// Leader: those were all that it has now.
    HistoriesEnd,
    /// Either side, when it has said nothing for a while.
    Heartbeat {
        /// The sender's own clock, in nanoseconds; means nothing to the other side.
        time_ns: u64,
    },
    /// The answer to a heartbeat, with its time.
    HeartbeatAnswer {
        /// As it was in the heartbeat.
        time_ns: u64,
    },
    /// Leader: these streams are committed up to these offsets.
    Committed(Vec<(StreamId, u64)>),
    /// Leader: these streams are trimmed up to these offsets.
    Trimmed(Vec<(StreamId, u64)>),
    /// Follower: it wants these streams from these offsets on.
    Want(Vec<(StreamId, u64)>),
    /// Follower: these streams are durable here up to these offsets.
    Durable {
        /// From the arrival of the oldest frame in this report until it was durable, in
        /// nanoseconds.
        took_ns: u64,
        /// Streams and ends.
        ends: Vec<(StreamId, u64)>,
    },
    /// Who repairs: give these records, or only say whether they can be read.
    Fetch(Wanted),
    /// Who is asked: this is as far as one answer goes, and why.
    Fetched {
        /// Which stream.
        stream: StreamId,
        /// Records before it were sent, or were read and found right.
        end: u64,
        /// Why it ends there.
        stop: Stop,
    },
    /// Who asks: the next part of a request.
    Request(Part),
    /// Who is asked: the next part of a reply.
    Reply(Part),
    /// Who is asked: there will be no reply to the request with this number.
    NoReply {
        /// Its number.
        number: u64,
    },
    /// Either side: it ends the session, and why.
    Leaving {
        /// The epoch that it has promised by now.
        epoch: u64,
        /// Of which kind the reason is.
        cause: Cause,
        /// In words for a person.
        reason: String,
    },
}

/// Why a side leaves a session.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
#[repr(u64)]
pub enum Cause {
    /// It is being closed.
    Closing = 1,
    /// It follows, or leads, in another session from now on.
    Changing = 2,
    /// To follow would take back what is known to be committed.
    BelowCommitted = 3,
    /// The leader lacks what was trimmed here, and so applied.
    LeaderLacks = 4,
    /// The other side does what it must not.
    Violation = 5,
    /// Its engine does not take what it is given.
    Engine = 6,
}

impl Cause {
    /// Every one.
    pub(crate) const ALL: [Self; 6] = [
        Self::Closing,
        Self::Changing,
        Self::BelowCommitted,
        Self::LeaderLacks,
        Self::Violation,
        Self::Engine,
    ];

    /// The name under which it is counted.
    pub fn name(self) -> &'static str {
        match self {
            Self::Closing => "closing",
            Self::Changing => "changing",
            Self::BelowCommitted => "below_committed",
            Self::LeaderLacks => "leader_lacks",
            Self::Violation => "violation",
            Self::Engine => "engine",
        }
    }

    /// What an operator has to do when a follower leaves for it; `None` when it comes back by itself.
    pub(crate) fn remedy(self) -> Option<&'static str> {
        match self {
            Self::Closing | Self::Changing => None,
            Self::BelowCommitted | Self::LeaderLacks => Some(
                "this node lacks what others have acknowledged: let a node lead that has it, and \
                 look at the disk of this one",
            ),
            Self::Violation => Some(
                "see that both nodes run versions of this program that go together, and report it",
            ),
            Self::Engine => Some("look at the log and the disk of that follower"),
        }
    }
}

/// Bytes of a request or a reply. The parts of one follow each other, without another one's between.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct Part {
    /// Number of the request, on its connection.
    pub number: u64,
    /// Nothing more of it follows.
    pub is_last: bool,
    /// At most [`PART_BYTES_MAX`].
    pub bytes: Bytes,
}

impl Part {
    /// The parts of so many bytes: at least one.
    pub fn of(number: u64, bytes: &Bytes) -> impl Iterator<Item = Self> + use<> {
        let bytes = bytes.clone();
        let count = bytes.len().div_ceil(PART_BYTES_MAX).max(1);
        (1..=count).map(move |nth| {
            let start = (nth - 1) * PART_BYTES_MAX;
            let end = (start + PART_BYTES_MAX).min(bytes.len());
            Self { number, is_last: nth == count, bytes: bytes.slice(start..end) }
        })
    }
}

/// Records that somebody needs who repairs its own.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct Wanted {
    /// Of which stream.
    pub stream: StreamId,
    /// The first of them.
    pub from: u64,
    /// Offset after the last.
    pub end: u64,
    /// Read and check them, and send none.
    pub is_check: bool,
}

/// Why an answer to [`Message::Fetch`] goes no further.
#[derive(Clone, Eq, PartialEq, Debug)]
pub enum Stop {
    /// All that was asked for has been given.
    Whole,
    /// One answer is bounded: ask again from there on.
    More,
    /// No more is durable there.
    End,
    /// Everything below this offset is trimmed there.
    Trimmed(u64),
    /// It is damaged there, too: in words for a person.
    Damaged(String),
}

impl Stop {
    fn code(&self) -> (u64, u64, &str) {
        match self {
            Self::Whole => (0, 0, ""),
            Self::More => (1, 0, ""),
            Self::End => (2, 0, ""),
            Self::Trimmed(before) => (3, *before, ""),
            Self::Damaged(why) => (4, 0, why),
        }
    }
}

/// Bytes of one part of a request or a reply.
pub const PART_BYTES_MAX: usize = MESSAGE_BYTES_MAX - 16;

/// Streams of a list that fit a message.
pub(crate) const PAIRS_MAX: usize = (MESSAGE_BYTES_MAX - 8) / 16;

/// Longest reason in [`Message::Leaving`] and [`Stop::Damaged`], in bytes.
const LEAVING_BYTES_MAX: usize = 1024;

impl Message {
    /// The bytes, header included.
    ///
    /// # Panics
    /// When it is longer than [`MESSAGE_BYTES_MAX`]: lists are cut into pieces before, see
    /// [`Message::pieces`].
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Vec::new();
        let kind = match self {
            Self::Histories(histories) => {
                for history in histories {
                    let entries = history.epochs.entries();
                    put(&mut body, &[history.stream.get(), history.trimmed, entries.len() as u64]);
                    for entry in entries {
                        put(&mut body, &[entry.epoch, entry.start]);
                    }
                }
                1
            }
            Self::HistoriesEnd => 2,
            Self::Heartbeat { time_ns } => {
                put(&mut body, &[*time_ns]);
                3
            }
            Self::HeartbeatAnswer { time_ns } => {
                put(&mut body, &[*time_ns]);
                4
            }
            Self::Committed(ends) => {
                put_pairs(&mut body, ends);
                5
            }
            Self::Trimmed(ends) => {
                put_pairs(&mut body, ends);
                6
            }
            Self::Want(wants) => {
                put_pairs(&mut body, wants);
                7
            }
            Self::Durable { took_ns, ends } => {
                put(&mut body, &[*took_ns]);
                put_pairs(&mut body, ends);
                8
            }
            Self::Leaving { epoch, cause, reason } => {
                put(&mut body, &[*epoch, *cause as u64]);
                put_reason(&mut body, reason);
                9
            }
            Self::Fetch(Wanted { stream, from, end, is_check }) => {
                put(&mut body, &[stream.get(), *from, *end, u64::from(*is_check)]);
                10
            }
            Self::Fetched { stream, end, stop } => {
                let (code, detail, why) = stop.code();
                put(&mut body, &[stream.get(), *end, code, detail]);
                put_reason(&mut body, why);
                11
            }
            Self::Request(part) => {
                put_part(&mut body, part);
                12
            }
            Self::Reply(part) => {
                put_part(&mut body, part);
                13
            }
            Self::NoReply { number } => {
                put(&mut body, &[*number]);
                14
            }
        };
        assert!(body.len() <= MESSAGE_BYTES_MAX, "a message of {} bytes", body.len());
        [MessageHeader::new(kind, &body).as_bytes(), &body].concat()
    }

    /// Reads and checks one whole message.
    ///
    /// # Errors
    /// What is wrong with the bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let header = MessageHeader::verify(bytes)?;
        let end = MESSAGE_HEADER_BYTES + header.length.get() as usize;
        let body = bytes.get(MESSAGE_HEADER_BYTES..end).ok_or(WireError::Short)?;
        if crc32c::crc32c(body) != header.body_crc.get() {
            return Err(WireError::Checksum("message"));
        }
        let mut words = Words(body);
        let message = match header.kind {
            1 => {
                let mut histories = Vec::new();
                while !words.0.is_empty() {
                    histories.push(words.history()?);
                }
                Self::Histories(histories)
            }
            2 => Self::HistoriesEnd,
            3 => Self::Heartbeat { time_ns: words.next()? },
            4 => Self::HeartbeatAnswer { time_ns: words.next()? },
            5 => Self::Committed(words.pairs()?),
            6 => Self::Trimmed(words.pairs()?),
            7 => Self::Want(words.pairs()?),
            8 => Self::Durable { took_ns: words.next()?, ends: words.pairs()? },
            9 => {
                let (epoch, cause) = (words.next()?, words.cause()?);
                Self::Leaving { epoch, cause, reason: words.reason() }
            }
            10 => Self::Fetch(words.wanted()?),
            11 => {
                let (stream, end) = (StreamId::new(words.next()?), words.offset()?);
                Self::Fetched { stream, end, stop: words.stop()? }
            }
            12 => Self::Request(words.part()?),
            13 => Self::Reply(words.part()?),
            14 => Self::NoReply { number: words.next()? },
            kind => return Err(WireError::Unexpected(format!("a message of unknown kind {kind}"))),
        };
        if words.0.is_empty() { Ok(message) } else { Err(WireError::Short) }
    }

    /// What it takes in memory beside itself, about.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Histories(histories) => histories.iter().map(|h| 64 + h.bytes()).sum(),
            Self::Committed(pairs)
            | Self::Trimmed(pairs)
            | Self::Want(pairs)
            | Self::Durable { ends: pairs, .. } => 16 * pairs.len(),
            Self::Leaving { reason, .. } | Self::Fetched { stop: Stop::Damaged(reason), .. } => {
                reason.len()
            }
            Self::Request(part) | Self::Reply(part) => part.bytes.len(),
            _ => 0,
        }
    }

    /// As many messages as it takes to keep each of them short. A history of more epochs than fit
    /// one comes in pieces itself: see [`History::join`].
    pub fn pieces(self) -> Vec<Self> {
        let split = |pairs: Vec<(StreamId, u64)>, make: &dyn Fn(Vec<(StreamId, u64)>) -> Self| {
            pairs.chunks(PAIRS_MAX).map(|pairs| make(pairs.to_vec())).collect()
        };
        match self {
            Self::Committed(pairs) => split(pairs, &Self::Committed),
            Self::Trimmed(pairs) => split(pairs, &Self::Trimmed),
            Self::Want(pairs) => split(pairs, &Self::Want),
            Self::Durable { took_ns, ends } => split(ends, &|ends| Self::Durable { took_ns, ends }),
            Self::Histories(histories) => {
                let mut pieces: Vec<Vec<History>> = Vec::new();
                let mut room = 0;
                for history in histories.into_iter().flat_map(History::pieces) {
                    if history.bytes() > room {
                        pieces.push(Vec::new());
                        room = MESSAGE_BYTES_MAX;
                    }
                    room = room.saturating_sub(history.bytes());
                    pieces.last_mut().expect("just pushed").push(history);
                }
                pieces.into_iter().map(Self::Histories).collect()
            }
            other => vec![other],
        }
    }
}

fn put(body: &mut Vec<u8>, words: &[u64]) {
    words.iter().for_each(|word| body.extend_from_slice(&word.to_le_bytes()));
}

fn put_part(body: &mut Vec<u8>, part: &Part) {
    put(body, &[part.number, u64::from(part.is_last)]);
    body.extend_from_slice(&part.bytes);
}

fn put_reason(body: &mut Vec<u8>, reason: &str) {
    let mut end = reason.len().min(LEAVING_BYTES_MAX);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    body.extend_from_slice(&reason.as_bytes()[..end]);
}

fn put_pairs(body: &mut Vec<u8>, pairs: &[(StreamId, u64)]) {
    pairs.iter().for_each(|(stream, offset)| put(body, &[stream.get(), *offset]));
}

/// What is left of a body.
struct Words<'a>(&'a [u8]);

impl Words<'_> {
    fn next(&mut self) -> Result<u64, WireError> {
        let (word, rest) = self.0.split_first_chunk().ok_or(WireError::Short)?;
        self.0 = rest;
        Ok(u64::from_le_bytes(*word))
    }

    fn bounded(&mut self, what: &str, max: u64) -> Result<u64, WireError> {
        let word = self.next()?;
        let told = || WireError::Unexpected(format!("{what} {word}; none is beyond {max}"));
        (word <= max).then_some(word).ok_or_else(told)
    }

    fn offset(&mut self) -> Result<u64, WireError> {
        self.bounded("an offset of", OFFSET_MAX)
    }

    fn pairs(&mut self) -> Result<Vec<(StreamId, u64)>, WireError> {
        let mut pairs = Vec::with_capacity(self.0.len() / 16);
        while !self.0.is_empty() {
            pairs.push((StreamId::new(self.next()?), self.offset()?));
        }
        Ok(pairs)
    }

    fn reason(&mut self) -> String {
        let text = std::mem::take(&mut self.0);
        String::from_utf8_lossy(&text[..text.len().min(LEAVING_BYTES_MAX)]).into_owned()
    }

    fn cause(&mut self) -> Result<Cause, WireError> {
        let code = self.next()?;
        let told = || WireError::Unexpected(format!("a session that is left for cause {code}"));
        Cause::ALL.into_iter().find(|cause| *cause as u64 == code).ok_or_else(told)
    }

    fn part(&mut self) -> Result<Part, WireError> {
        let (number, is_last) = (self.next()?, self.bounded("a flag of", 1)? == 1);
        let bytes = std::mem::take(&mut self.0);
        check_length("a part", bytes.len(), PART_BYTES_MAX)?;
        if !is_last && bytes.len() < PART_BYTES_MAX {
            let length = bytes.len();
            let what =
                format!("a part of {length} bytes that is not the last; it has {PART_BYTES_MAX}");
            return Err(WireError::Unexpected(what));
        }
        Ok(Part { number, is_last, bytes: Bytes::copy_from_slice(bytes) })
    }

    fn wanted(&mut self) -> Result<Wanted, WireError> {
        let (stream, from, end) = (StreamId::new(self.next()?), self.offset()?, self.offset()?);
        let is_check = self.bounded("a flag of", 1)? == 1;
        if from >= end {
            let what = format!("offsets {from}..{end} of stream {stream}, which are none");
            return Err(WireError::Unexpected(what));
        }
        Ok(Wanted { stream, from, end, is_check })
    }

    fn stop(&mut self) -> Result<Stop, WireError> {
        let (code, detail) = (self.next()?, self.offset()?);
        match code {
            4 => return Ok(Stop::Damaged(self.reason())),
            3 => return Ok(Stop::Trimmed(detail)),
            _ if detail != 0 => {}
            0 => return Ok(Stop::Whole),
            1 => return Ok(Stop::More),
            2 => return Ok(Stop::End),
            _ => {}
        }
        Err(WireError::Unexpected(format!("a range that ends for unknown reason {code}")))
    }

    fn history(&mut self) -> Result<History, WireError> {
        let (stream, trimmed, count) = (StreamId::new(self.next()?), self.offset()?, self.next()?);
        // As many as there can be, before anything is allocated.
        if count > (self.0.len() / 16) as u64 {
            return Err(WireError::Short);
        }
        let mut entries = Vec::with_capacity(count as usize);
        for _ in 0..count {
            entries.push(EpochStart {
                epoch: self.bounded("an epoch of", EPOCH_MAX)?,
                start: self.offset()?,
            });
        }
        let epochs = EpochTable::from_entries(entries).ok_or_else(|| {
            WireError::Unexpected(format!("the epochs of stream {stream} are in no order"))
        })?;
        Ok(History { stream, trimmed, epochs })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::Item;

    fn table(entries: &[(u64, u64)]) -> EpochTable {
        let entry = |(epoch, start): &(u64, u64)| EpochStart { epoch: *epoch, start: *start };
        EpochTable::from_entries(entries.iter().map(entry).collect()).expect("in order")
    }

    fn fetched(stop: Stop) -> Message {
        Message::Fetched { stream: StreamId::new(4), end: 8, stop }
    }

    fn all() -> Vec<Message> {
        let pairs = vec![(StreamId::new(4), 9), (StreamId::new(u64::MAX), 0)];
        let epochs = table(&[(1, 0), (4, 10)]);
        let history = History { stream: StreamId::new(8), trimmed: 3, epochs };
        vec![
            Message::Histories(vec![history.clone(), history]),
            Message::HistoriesEnd,
            Message::Heartbeat { time_ns: 7 },
            Message::HeartbeatAnswer { time_ns: 8 },
            Message::Committed(pairs.clone()),
            Message::Trimmed(pairs.clone()),
            Message::Want(pairs.clone()),
            Message::Durable { took_ns: 5, ends: pairs },
            Message::Leaving { epoch: 3, cause: Cause::Closing, reason: "it is closed".into() },
            Message::Fetch(Wanted { stream: StreamId::new(4), from: 7, end: 9, is_check: false }),
            Message::Fetch(Wanted { stream: StreamId::new(4), from: 0, end: 1, is_check: true }),
            fetched(Stop::Whole),
            fetched(Stop::More),
            fetched(Stop::End),
            fetched(Stop::Trimmed(12)),
            fetched(Stop::Damaged("segment-00000001 at byte 8192".into())),
            Message::Request(Part { number: 3, is_last: true, bytes: Bytes::new() }),
            Message::Request(Part { number: 4, is_last: true, bytes: vec![7; 30].into() }),
            Message::Reply(Part { number: u64::MAX, is_last: true, bytes: vec![8; 9].into() }),
            Message::NoReply { number: 5 },
        ]
    }

    #[test]
    fn each_comes_back_as_it_was_and_no_bit_of_it_may_flip() {
        for message in all() {
            let mut bytes = message.encode();
            let length = bytes.len();
            assert_eq!(Item::look(&bytes, 0), Ok(Some(Item::Message { length })));
            assert_eq!(Message::decode(&bytes), Ok(message));
            for bit in 0..length * 8 {
                bytes[bit / 8] ^= 1 << (bit % 8);
                let looked = Item::look(&bytes, 0).and_then(|_| Message::decode(&bytes));
                assert!(looked.is_err(), "bit {bit}");
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
        }
    }

    #[test]
    fn a_long_list_is_sent_in_pieces() {
        let pairs: Vec<_> = (0..40_000).map(|stream| (StreamId::new(stream), stream)).collect();
        let mut back = Vec::new();
        for piece in Message::Want(pairs.clone()).pieces() {
            let Ok(Message::Want(piece)) = Message::decode(&piece.encode()) else { panic!() };
            back.extend(piece);
        }
        assert_eq!(back, pairs);
        let history = |stream| History {
            stream: StreamId::new(stream),
            trimmed: 0,
            epochs: table(&[(1, 0), (2, 1), (3, 2)]),
        };
        let histories: Vec<_> = (0..10_000).map(history).collect();
        let pieces = Message::Histories(histories).pieces();
        assert!(pieces.len() > 2 && pieces.iter().all(|p| p.encode().len() < MESSAGE_BYTES_MAX));
    }

    #[test]
    fn a_history_of_very_many_epochs_is_told_in_pieces() {
        for entries in [PIECE_ENTRIES_MAX, PIECE_ENTRIES_MAX + 1, 3 * PIECE_ENTRIES_MAX] {
            let entry = |n| EpochStart { epoch: n, start: n };
            let epochs = EpochTable::from_entries((0..entries as u64).map(entry).collect());
            let history = History { stream: StreamId::new(8), trimmed: 3, epochs: epochs.unwrap() };
            let present = history.epochs.last().epoch;
            let mut back: Option<History> = None;
            for piece in Message::Histories(vec![history.clone()]).pieces() {
                let Ok(Message::Histories(piece)) = Message::decode(&piece.encode()) else {
                    panic!()
                };
                for piece in piece {
                    assert!(back.as_ref().is_none_or(|back| back.is_unfinished(present)
                        || back.epochs.entries().len() > PIECE_ENTRIES_MAX));
                    back = back.map_or(Some(piece.clone()), |back| back.join(piece));
                }
            }
            assert_eq!(back, Some(history));
        }
        let piece = History { stream: StreamId::new(8), trimmed: 3, epochs: table(&[(1, 0)]) };
        assert_eq!(piece.clone().join(piece.clone()), None, "epochs grow");
        let other = History { trimmed: 4, epochs: table(&[(2, 1)]), ..piece.clone() };
        assert_eq!(piece.join(other), None, "it is another");
    }

    #[test]
    fn no_offset_and_no_epoch_is_beyond_what_can_be_counted() {
        let message = |kind: u8, words: &[u64]| {
            let mut body = Vec::new();
            put(&mut body, words);
            Message::decode(&[MessageHeader::new(kind, &body).as_bytes(), &body].concat())
        };
        for kind in [5, 6, 7] {
            assert!(message(kind, &[8, OFFSET_MAX]).is_ok());
            assert!(message(kind, &[8, OFFSET_MAX + 1]).is_err());
            assert!(message(kind, &[8, u64::MAX]).is_err());
        }
        assert!(message(8, &[1, 8, u64::MAX]).is_err());
        assert!(message(1, &[8, 0, 1, EPOCH_MAX, OFFSET_MAX]).is_ok());
        for bad in [
            [8, OFFSET_MAX + 1, 1, 1, 0],
            [8, 0, 1, EPOCH_MAX + 1, 0],
            [8, 0, 1, 1, u64::MAX],
            [8, 0, 1, u64::MAX, 0],
        ] {
            assert!(message(1, &bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_range_that_is_none_and_an_unknown_reason_are_refused() {
        let message = |kind: u8, words: &[u64]| {
            let mut body = Vec::new();
            put(&mut body, words);
            Message::decode(&[MessageHeader::new(kind, &body).as_bytes(), &body].concat())
        };
        assert!(message(10, &[8, 3, 4, 1]).is_ok());
        for bad in [
            &[8, 4, 4, 0][..],
            &[8, 5, 4, 0],
            &[8, 3, 4, 2],
            &[8, 3, OFFSET_MAX + 1, 0],
            &[8, u64::MAX, u64::MAX, 0],
            &[8, 3, 4],
            &[8, 3, 4, 0, 0],
        ] {
            assert!(message(10, bad).is_err(), "{bad:?}");
        }
        for (bad, is_good) in [
            (&[8, 3, 0, 0][..], true),
            (&[8, 3, 3, OFFSET_MAX], true),
            (&[8, 3, 3, OFFSET_MAX + 1], false),
            (&[8, OFFSET_MAX + 1, 0, 0], false),
            (&[8, 3, 0, 1], false),
            (&[8, 3, 5, 0], false),
            (&[8, 3, 0, 0, 0], false),
            (&[8, 3, 0], false),
        ] {
            assert_eq!(message(11, bad).is_ok(), is_good, "{bad:?}");
        }
        let long = fetched(Stop::Damaged("é".repeat(2000)));
        let Ok(Message::Fetched { stop: Stop::Damaged(why), .. }) = Message::decode(&long.encode())
        else {
            panic!("it is cut to what a person reads");
        };
        assert_eq!(why, "é".repeat(LEAVING_BYTES_MAX / 2));
    }

    #[test]
    fn every_cause_is_known_again_and_no_other_is() {
        for cause in Cause::ALL {
            let message = Message::Leaving { epoch: 3, cause, reason: String::new() };
            assert_eq!(Message::decode(&message.encode()), Ok(message));
        }
        let mut body = Vec::new();
        put(&mut body, &[3, 7]);
        let bytes = [MessageHeader::new(9, &body).as_bytes(), &body].concat();
        assert!(matches!(Message::decode(&bytes), Err(WireError::Unexpected(_))));
    }

    #[test]
    fn lengths_are_checked_before_they_are_believed() {
        let mut body = Vec::new();
        put(&mut body, &[8, 0, u64::MAX]);
        let bytes = [MessageHeader::new(1, &body).as_bytes(), &body].concat();
        assert_eq!(Message::decode(&bytes), Err(WireError::Short));
        let mut header = MessageHeader::new(1, &[]);
        header.length = u32::MAX.into();
        header.crc = header.own_crc().into();
        let looked = Item::look(header.as_bytes(), 0).unwrap_err();
        assert!(matches!(looked, WireError::TooLong { .. }), "{looked}");
    }

    #[test]
    fn what_does_not_begin_as_a_message_is_none() {
        let mut header = MessageHeader::new(2, &[]);
        assert_eq!(Message::decode(header.as_bytes()), Ok(Message::HistoriesEnd));
        header.magic = *b"RF";
        header.crc = header.own_crc().into();
        let decoded = Message::decode(header.as_bytes());
        assert_eq!(decoded, Err(WireError::Magic(b"RF".to_vec())));
    }

    #[test]
    fn only_the_last_part_is_short() {
        let part = Part { number: 1, is_last: false, bytes: vec![0; PART_BYTES_MAX - 1].into() };
        assert!(Message::decode(&Message::Reply(part).encode()).is_err());
    }

    #[test]
    fn a_long_request_goes_in_parts() {
        for length in [0, 1, PART_BYTES_MAX, PART_BYTES_MAX + 1, 3 * PART_BYTES_MAX] {
            let bytes = Bytes::from((0..length).map(|n| n as u8).collect::<Vec<_>>());
            let (mut back, mut is_whole) = (Vec::new(), false);
            for part in Part::of(6, &bytes) {
                let Ok(Message::Request(part)) = Message::decode(&Message::Request(part).encode())
                else {
                    panic!()
                };
                assert!(part.number == 6 && !is_whole);
                back.extend_from_slice(&part.bytes);
                is_whole = part.is_last;
            }
            assert!(is_whole && back == bytes, "{length}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Item::look(&bytes, 1 << 20);
            for kind in 0..16 {
                let body = bytes.split_off(bytes.len().min(16));
                let bytes = [MessageHeader::new(kind, &body).as_bytes(), &body].concat();
                let _ = Message::decode(&bytes);
            }
        }
    }
}
