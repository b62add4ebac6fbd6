//! The bytes of a connection: hello and answer, then items. Little-endian; sizes are asserted.
//!
//! An item is a data frame, byte for byte as it is on disk, or a [`Message`] behind a
//! [`MessageHeader`]. Both begin with a magic and hold their length in a part that has a checksum
//! of its own, so that a length is believed, and compared with its limit, before anything is
//! allocated.

mod hello;
mod message;

use ringwal_engine::FormatError;
use ringwal_engine::format::{FRAME_HEADER_BYTES, FrameHeader, FrameKind};
use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub use hello::{Answer, ConnectionKind, HELLO_BYTES, Hello, REASON_BYTES_MAX, Refusal};
pub(crate) use message::PAIRS_MAX;
pub use message::{
    Cause, HISTORY_ENTRIES_MAX, History, Message, PART_BYTES_MAX, Part, Stop, Wanted,
};

/// The protocol of this version.
pub const PROTOCOL_VERSION: u16 = 1;
/// The oldest protocol that it speaks.
pub const PROTOCOL_VERSION_MIN: u16 = 1;
/// Longest message behind its header, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 256 << 10;
/// No offset is greater: what an engine can count to. One can be added to each without a second
/// thought.
pub const OFFSET_MAX: u64 = ringwal_engine::format::COUNTER_MAX;
/// No epoch is greater: there is always a next one.
pub const EPOCH_MAX: u64 = ringwal_engine::format::COUNTER_LAST;
/// Bytes of a [`MessageHeader`].
pub const MESSAGE_HEADER_BYTES: usize = size_of::<MessageHeader>();
/// Bytes from which the length of every item can be told.
pub const ITEM_START_BYTES: usize = MESSAGE_HEADER_BYTES;

const MESSAGE_MAGIC: [u8; 2] = *b"RM";
const FRAME_MAGIC: [u8; 2] = *b"RF";

/// Starts every message.
#[derive(Copy, Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct MessageHeader {
    magic: [u8; 2],
    kind: u8,
    reserved: u8,
    /// CRC32C of the header without this field.
    crc: U32,
    /// Bytes that follow.
    length: U32,
    /// CRC32C of those.
    body_crc: U32,
}

const _: () = assert!(MESSAGE_HEADER_BYTES == 16);

impl MessageHeader {
    fn new(kind: u8, body: &[u8]) -> Self {
        let mut header = Self {
            magic: MESSAGE_MAGIC,
            kind,
            reserved: 0,
            crc: U32::ZERO,
            length: u32::try_from(body.len()).expect("messages are short").into(),
            body_crc: crc32c::crc32c(body).into(),
        };
        header.crc = header.own_crc().into();
        header
    }

    fn own_crc(&self) -> u32 {
        let bytes = self.as_bytes();
        crc32c::crc32c_append(crc32c::crc32c(&bytes[..4]), &bytes[8..])
    }

    fn verify(bytes: &[u8]) -> Result<Self, WireError> {
        let (header, _) = Self::read_from_prefix(bytes).map_err(|_| WireError::Short)?;
        if header.magic != MESSAGE_MAGIC {
            return Err(WireError::Magic(header.magic.to_vec()));
        }
        if header.own_crc() != header.crc.get() {
            return Err(WireError::Checksum("message header"));
        }
        Ok(header)
    }
}

/// Why bytes from a connection are not what they must be.
#[derive(Clone, Eq, PartialEq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// It ends too early.
    #[error("the bytes end too early")]
    Short,
    /// Neither hello nor item starts like this.
    #[error("unknown magic {0:02x?}: the other side is no ringwal node, or speaks TLS")]
    Magic(Vec<u8>),
    /// A checksum does not match.
    #[error("the checksum of a {0} is wrong")]
    Checksum(&'static str),
    /// A length beyond its limit.
    #[error("{what} of {length} bytes; at most {limit} are taken")]
    TooLong {
        /// What it is.
        what: &'static str,
        /// Its length.
        length: usize,
        /// The limit.
        limit: usize,
    },
    /// A frame that is damaged.
    #[error("a frame is damaged: {0}")]
    Frame(FormatError),
    /// Something that has no place here.
    #[error("{0}")]
    Unexpected(String),
}

/// What the next item is, and how many bytes it has in all.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Item {
    /// A data frame.
    Frame {
        /// Header and payload.
        length: usize,
    },
    /// A message.
    Message {
        /// Header and body.
        length: usize,
    },
}

impl Item {
    /// Bytes in all.
    pub fn length(self) -> usize {
        match self {
            Self::Frame { length } | Self::Message { length } => length,
        }
    }

    /// Looks at the first bytes of an item. `None` when more are needed to tell.
    ///
    /// # Errors
    /// When no item starts like this, or one that is longer than its limit.
    pub fn look(bytes: &[u8], frame_bytes_max: usize) -> Result<Option<Self>, WireError> {
        if bytes.len() < ITEM_START_BYTES {
            return Ok(None);
        }
        let magic = [bytes[0], bytes[1]];
        match magic {
            FRAME_MAGIC => {
                if bytes.len() < FRAME_HEADER_BYTES {
                    return Ok(None);
                }
                let (header, kind) = FrameHeader::verify(bytes).map_err(WireError::Frame)?;
                if kind != FrameKind::Data {
                    let what = format!("a frame of kind {kind:?}, which never travels");
                    return Err(WireError::Unexpected(what));
                }
                let length = header.frame_length();
                check_length("a frame", length, frame_bytes_max)?;
                Ok(Some(Self::Frame { length }))
            }
            MESSAGE_MAGIC => {
                let header = MessageHeader::verify(bytes)?;
                let length = header.length.get() as usize;
                check_length("a message", length, MESSAGE_BYTES_MAX)?;
                Ok(Some(Self::Message { length: MESSAGE_HEADER_BYTES + length }))
            }
            _ => Err(WireError::Magic(magic.to_vec())),
        }
    }
}

fn check_length(what: &'static str, length: usize, limit: usize) -> Result<(), WireError> {
    if length <= limit { Ok(()) } else { Err(WireError::TooLong { what, length, limit }) }
}
