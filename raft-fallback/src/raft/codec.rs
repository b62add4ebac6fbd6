//! Little-endian numbers out of bytes that nobody has checked yet, and into bytes.

use bytes::{Buf, Bytes};

/// Why bytes are not what they should be. The engine's checksum was right: somebody else wrote them, or
/// a newer version.
#[derive(Clone, Eq, PartialEq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Malformed {
    /// A version that this one does not know.
    #[error(
        "version {found} of a {what}, and this program reads version {known}: use a newer program"
    )]
    Version {
        /// Of what.
        what: &'static str,
        /// What it says.
        found: u8,
        /// What is known.
        known: u8,
    },
    /// A kind or flag that this version does not know.
    #[error("{value} is no {what} that version 1 has: the bytes are not what they are taken for")]
    Unknown {
        /// What it should be.
        what: &'static str,
        /// What it is.
        value: u64,
    },
    /// It ends too early.
    #[error("it ends after {bytes} bytes, in the middle of something")]
    Short {
        /// How many there were.
        bytes: usize,
    },
    /// It does not end where it should.
    #[error("{bytes} bytes are left behind its end")]
    Trailing {
        /// How many.
        bytes: usize,
    },
    /// Longer than any may be.
    #[error("{bytes} bytes; an entry has at most {max}: write several")]
    TooLong {
        /// How long.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// More of something than there may be.
    #[error("{value} {what}, of which there are at most {max}: nobody of this version sends that")]
    TooMuch {
        /// Of what.
        what: &'static str,
        /// How much.
        value: u64,
        /// The limit.
        max: u64,
    },
    /// A text that is none.
    #[error("a text that is not UTF-8")]
    Text,
    /// A membership that openraft does not accept.
    #[error("a membership that cannot be: {0}")]
    Membership(String),
    /// The entry of another place.
    #[error("the entry of index {found} lies at {expected}")]
    OutOfPlace {
        /// Where it lies.
        expected: u64,
        /// What it says.
        found: u64,
    },
}

/// Takes numbers from the front.
pub(super) struct Taker {
    rest: Bytes,
    length: usize,
}

impl Taker {
    pub(super) fn new(bytes: Bytes) -> Self {
        let length = bytes.len();
        Self { rest: bytes, length }
    }

    fn need(&self, bytes: usize) -> Result<(), Malformed> {
        if self.rest.len() < bytes { Err(Malformed::Short { bytes: self.length }) } else { Ok(()) }
    }

    pub(super) fn u8(&mut self) -> Result<u8, Malformed> {
        self.need(1)?;
        Ok(self.rest.get_u8())
    }

    pub(super) fn u16(&mut self) -> Result<u16, Malformed> {
        self.need(2)?;
        Ok(self.rest.get_u16_le())
    }

    pub(super) fn u32(&mut self) -> Result<u32, Malformed> {
        self.need(4)?;
        Ok(self.rest.get_u32_le())
    }

    pub(super) fn u64(&mut self) -> Result<u64, Malformed> {
        self.need(8)?;
        Ok(self.rest.get_u64_le())
    }

    /// 16 bytes: an engine or a run.
    pub(super) fn id(&mut self) -> Result<[u8; 16], Malformed> {
        let mut id = [0; 16];
        self.need(id.len())?;
        self.rest.copy_to_slice(&mut id);
        Ok(id)
    }

    pub(super) fn bytes(&mut self, length: usize) -> Result<Bytes, Malformed> {
        self.need(length)?;
        Ok(self.rest.split_to(length))
    }

    /// A count of things of at least so many bytes each: never more than there can be.
    pub(super) fn count(&mut self, bytes_each: usize) -> Result<usize, Malformed> {
        let count = self.u32()? as usize;
        self.need(count.saturating_mul(bytes_each))?;
        Ok(count)
    }

    /// A length and so many bytes, of which there are not more than `max`.
    pub(super) fn sized(&mut self, what: &'static str, max: usize) -> Result<Bytes, Malformed> {
        let length = self.u32()? as usize;
        limit(what, length as u64, max as u64)?;
        self.bytes(length)
    }

    pub(super) fn left(&self) -> usize {
        self.rest.len()
    }

    pub(super) fn end(self) -> Result<(), Malformed> {
        match self.rest.len() {
            0 => Ok(()),
            bytes => Err(Malformed::Trailing { bytes }),
        }
    }
}

/// Says that a field which must be 0 in this version is.
pub(super) fn zero(what: &'static str, value: u64) -> Result<(), Malformed> {
    if value == 0 { Ok(()) } else { Err(Malformed::Unknown { what, value }) }
}

/// Says that there is not more of something than there may be.
pub(super) fn limit(what: &'static str, value: u64, max: u64) -> Result<(), Malformed> {
    if value <= max { Ok(()) } else { Err(Malformed::TooMuch { what, value, max }) }
}
