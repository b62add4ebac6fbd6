//! The first bytes of a connection, and their answer.

use std::fmt;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{PROTOCOL_VERSION, PROTOCOL_VERSION_MIN, WireError};
use crate::node_id::{ClusterId, NodeId, RunId};

/// Bytes of a hello, and of an answer without its reason.
pub const HELLO_BYTES: usize = 128;
/// Longest reason behind a refusal, in bytes.
pub const REASON_BYTES_MAX: usize = 1024;

const HELLO_MAGIC: [u8; 8] = *b"ringwalH";
const ANSWER_MAGIC: [u8; 8] = *b"ringwalA";

#[derive(Copy, Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct HelloBytes {
    magic: [u8; 8],
    crc: U32,
    version_min: U16,
    version_max: U16,
    kind: u8,
    reserved: [u8; 7],
    cluster: [u8; 16],
    from: U64,
    to: U64,
    run: [u8; 16],
    engine: [u8; 16],
    epoch: U64,
    /// Bits that the other side must know to go on.
    features: U64,
    reserved_end: [u8; 24],
}

#[derive(Copy, Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct AnswerBytes {
    magic: [u8; 8],
    crc: U32,
    version: U16,
    /// 0: accepted; otherwise why not.
    status: U16,
    reason_length: U16,
    reserved: [u8; 6],
    node: U64,
    run: [u8; 16],
    engine: [u8; 16],
    epoch: U64,
    reserved_end: [u8; 56],
}

const _: () = assert!(size_of::<HelloBytes>() == HELLO_BYTES);
const _: () = assert!(size_of::<AnswerBytes>() == HELLO_BYTES);

/// What a connection is for. One port serves all.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
#[repr(u8)]
pub enum ConnectionKind {
    /// A leader feeds a follower.
    Frames = 1,
    /// Somebody reads ranges of streams, to repair its own.
    Fetch = 2,
    /// Somebody asks, and is replied to.
    Requests = 3,
}

impl ConnectionKind {
    fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Frames),
            2 => Some(Self::Fetch),
            3 => Some(Self::Requests),
            _ => None,
        }
    }
}

/// Who dials, whom it wants, and in which epoch.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct Hello {
    /// Oldest and newest protocol that it speaks.
    pub versions: (u16, u16),
    /// What for.
    pub kind: ConnectionKind,
    /// Of which cluster.
    pub cluster: ClusterId,
    /// Who dials.
    pub from: NodeId,
    /// Whom it thinks to have reached.
    pub to: NodeId,
    /// Which run of its process.
    pub run: RunId,
    /// Its engine's id: another one is another disk.
    pub engine: [u8; 16],
    /// In which epoch it speaks.
    pub epoch: u64,
}

impl Hello {
    /// The bytes.
    pub fn encode(&self) -> [u8; HELLO_BYTES] {
        let mut bytes = HelloBytes {
            magic: HELLO_MAGIC,
            crc: U32::ZERO,
            version_min: self.versions.0.into(),
            version_max: self.versions.1.into(),
            kind: self.kind as u8,
            reserved: [0; 7],
            cluster: self.cluster.bytes(),
            from: self.from.get().into(),
            to: self.to.get().into(),
            run: self.run.bytes(),
            engine: self.engine,
            epoch: self.epoch.into(),
            features: U64::ZERO,
            reserved_end: [0; 24],
        };
        bytes.crc = own_crc(bytes.as_bytes()).into();
        let mut encoded = [0; HELLO_BYTES];
        encoded.copy_from_slice(bytes.as_bytes());
        encoded
    }

    /// Reads and checks the bytes.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let (hello, _) = HelloBytes::read_from_prefix(bytes).map_err(|_| WireError::Short)?;
        check(&hello.magic, &HELLO_MAGIC, hello.as_bytes(), "hello")?;
        let kind = ConnectionKind::from_byte(hello.kind)
            .ok_or_else(|| unexpected(format!("connection of unknown kind {}", hello.kind)))?;
        if hello.features.get() != 0 {
            let bits = hello.features.get();
            return Err(unexpected(format!("the other side needs unknown features {bits:#x}")));
        }
        Ok(Self {
            versions: (hello.version_min.get(), hello.version_max.get()),
            kind,
            cluster: ClusterId::new(hello.cluster),
            from: NodeId::new(hello.from.get()),
            to: NodeId::new(hello.to.get()),
            run: RunId::new(hello.run),
            engine: hello.engine,
            epoch: hello.epoch.get(),
        })
    }

    /// The newest protocol that both sides speak.
    pub fn version(&self) -> Option<u16> {
        let (oldest, newest) = self.versions;
        let version = newest.min(PROTOCOL_VERSION);
        (version >= oldest.max(PROTOCOL_VERSION_MIN)).then_some(version)
    }
}

/// Why a connection is not wanted.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
#[repr(u16)]
pub enum Refusal {
    /// No common protocol.
    Version = 1,
    /// Another cluster.
    Cluster = 2,
    /// This is another node than the one that was dialled.
    Node = 3,
    /// A greater epoch, or the same one of another run, has been promised.
    Epoch = 4,
    /// The certificate, or its name, is not one of a member.
    NotAMember = 5,
    /// The node cannot serve it now: it is closing, its engine is poisoned, or is being opened.
    NotNow = 6,
    /// Connections of this kind are not for this.
    Kind = 7,
    /// The epoch has not begun at the node that is dialled, whose embedder drives it: dial again soon.
    NotBegun = 8,
}

impl Refusal {
    /// Every one.
    pub(crate) const ALL: [Self; 8] = [
        Self::Version,
        Self::Cluster,
        Self::Node,
        Self::Epoch,
        Self::NotAMember,
        Self::NotNow,
        Self::Kind,
        Self::NotBegun,
    ];

    fn from_status(status: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|refusal| *refusal as u16 == status)
    }

    /// The name under which it is counted.
    pub fn name(self) -> &'static str {
        match self {
            Self::Version => "version",
            Self::Cluster => "cluster",
            Self::Node => "node",
            Self::Epoch => "epoch",
            Self::NotAMember => "not_a_member",
            Self::NotNow => "not_now",
            Self::Kind => "kind",
            Self::NotBegun => "not_begun",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The answer to a [`Hello`].
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct Answer {
    /// The protocol from now on; 0 when there is none.
    pub version: u16,
    /// Why not, if not: and in words for a person.
    pub refused: Option<(Refusal, String)>,
    /// Who answers.
    pub node: NodeId,
    /// Which run of its process.
    pub run: RunId,
    /// Its engine's id.
    pub engine: [u8; 16],
    /// The epoch that it has promised.
    pub epoch: u64,
}

impl Answer {
    /// The bytes: [`HELLO_BYTES`], and the reason of a refusal.
    pub fn encode(&self) -> Vec<u8> {
        let reason = self.refused.as_ref().map_or("", |(_, reason)| reason.as_str());
        let mut end = reason.len().min(REASON_BYTES_MAX);
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        let mut bytes = AnswerBytes {
            magic: ANSWER_MAGIC,
            crc: U32::ZERO,
            version: self.version.into(),
            status: self.refused.as_ref().map_or(0, |(refusal, _)| *refusal as u16).into(),
            reason_length: (end as u16).into(),
            reserved: [0; 6],
            node: self.node.get().into(),
            run: self.run.bytes(),
            engine: self.engine,
            epoch: self.epoch.into(),
            reserved_end: [0; 56],
        };
        bytes.crc = own_crc(bytes.as_bytes()).into();
        [bytes.as_bytes(), &reason.as_bytes()[..end]].concat()
    }

    /// Bytes of the reason behind an answer, as its first [`HELLO_BYTES`] say.
    ///
    /// # Errors
    /// When those are no answer.
    pub fn reason_length(bytes: &[u8]) -> Result<usize, WireError> {
        let (answer, _) = AnswerBytes::read_from_prefix(bytes).map_err(|_| WireError::Short)?;
        check(&answer.magic, &ANSWER_MAGIC, answer.as_bytes(), "answer")?;
        let length = usize::from(answer.reason_length.get());
        super::check_length("a reason", length, REASON_BYTES_MAX)?;
        Ok(length)
    }

    /// Reads and checks the bytes, the reason included.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let length = Self::reason_length(bytes)?;
        let (answer, rest) = AnswerBytes::read_from_prefix(bytes).map_err(|_| WireError::Short)?;
        let reason = rest.get(..length).ok_or(WireError::Short)?;
        let refused = match answer.status.get() {
            0 => None,
            status => {
                let refusal = Refusal::from_status(status)
                    .ok_or_else(|| unexpected(format!("refused with unknown status {status}")))?;
                Some((refusal, String::from_utf8_lossy(reason).into_owned()))
            }
        };
        Ok(Self {
            version: answer.version.get(),
            refused,
            node: NodeId::new(answer.node.get()),
            run: RunId::new(answer.run),
            engine: answer.engine,
            epoch: answer.epoch.get(),
        })
    }
}

/// Over everything but the CRC itself.
fn own_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&bytes[..8]), &bytes[12..])
}

fn check(
    magic: &[u8; 8],
    expected: &[u8; 8],
    bytes: &[u8],
    what: &'static str,
) -> Result<(), WireError> {
    if magic != expected {
        return Err(WireError::Magic(magic.to_vec()));
    }
    let stored = u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
    if own_crc(bytes) == stored { Ok(()) } else { Err(WireError::Checksum(what)) }
}

fn unexpected(what: String) -> WireError {
    WireError::Unexpected(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello() -> Hello {
        Hello {
            versions: (1, 3),
            kind: ConnectionKind::Frames,
            cluster: ClusterId::new([1; 16]),
            from: NodeId::new(2),
            to: NodeId::new(3),
            run: RunId::new([4; 16]),
            engine: [5; 16],
            epoch: 6,
        }
    }

    fn answer(refused: Option<(Refusal, String)>) -> Answer {
        let (node, run) = (NodeId::new(3), RunId::new([7; 16]));
        Answer { version: 1, refused, node, run, engine: [8; 16], epoch: 9 }
    }

    #[test]
    fn they_come_back_as_they_were_and_no_bit_of_them_may_flip() {
        let mut bytes = hello().encode().to_vec();
        assert_eq!(Hello::decode(&bytes), Ok(hello()));
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Hello::decode(&bytes).is_err(), "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        let refused = Some((Refusal::Epoch, "epoch 9 is promised".to_owned()));
        for answer in [answer(None), answer(refused)] {
            assert_eq!(Answer::decode(&answer.encode()), Ok(answer));
        }
    }

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        let told = answer(Some((Refusal::NotNow, "ä".repeat(REASON_BYTES_MAX))));
        let Some((_, reason)) = Answer::decode(&told.encode()).unwrap().refused else { panic!() };
        assert_eq!(reason, "ä".repeat(REASON_BYTES_MAX / 2));
    }

    #[test]
    fn the_newest_common_version_is_spoken() {
        let version = |versions| Hello { versions, ..hello() }.version();
        assert_eq!([(1, 1), (1, 9), (2, 9), (0, 0)].map(version), [Some(1), Some(1), None, None]);
    }
}
