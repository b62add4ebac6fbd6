//! A frame: its header, its payload, and the records in a data frame's. Nothing here speaks of
//! the disk, so that the same bytes travel.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use super::{FormatError, check_counters, layout};

/// Bytes of a record's length, in front of the record.
pub const RECORD_PREFIX_BYTES: usize = 4;
const FRAME_MAGIC: u16 = 0x4652; // "RF"

layout! {
    /// Starts every frame. Says nothing about the disk, so it travels as it is.
    pub struct FrameHeader: 64 {
        /// `RF`.
        pub magic: [u8; 2],
        /// See [`FrameKind`].
        pub kind: u8,
        /// Zero.
        pub reserved: u8,
        /// CRC32C of everything after it, then of `magic`, `kind` and `reserved`.
        pub crc: U32,
        /// Whose records.
        pub stream: U64,
        /// Leadership generation that wrote them.
        pub epoch: U64,
        /// Offset of the first record.
        pub base_offset: U64,
        /// Wall clock when the batch was sealed, nanoseconds since 1970. Information only.
        pub timestamp_ns: U64,
        /// Number of records.
        pub count: U32,
        /// Bytes that follow this header.
        pub payload_length: U32,
        /// CRC32C of those bytes.
        pub payload_crc: U32,
        /// Zero.
        pub reserved_tail: U32,
        /// Zero.
        pub reserved_end: U64,
    }
}

/// Bytes of [`FrameHeader`].
pub const FRAME_HEADER_BYTES: usize = size_of::<FrameHeader>();

/// What a frame holds.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
#[repr(u8)]
pub enum FrameKind {
    /// Records of a stream: each a 32-bit length and the bytes.
    Data = 1,
    /// Facts about streams and segments (trims, cuts, freed segments, checkpoints).
    Control = 2,
    /// Nothing: a command that was refused when its batch was sealed.
    Void = 3,
}

impl FrameKind {
    fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Data),
            2 => Some(Self::Control),
            3 => Some(Self::Void),
            _ => None,
        }
    }
}

impl FrameHeader {
    /// A header for `payload`; the CRCs are computed.
    pub fn new(
        kind: FrameKind,
        stream: u64,
        epoch: u64,
        base_offset: u64,
        count: u32,
        timestamp_ns: u64,
        payload: &[u8],
    ) -> Self {
        let mut header = Self {
            magic: FRAME_MAGIC.to_le_bytes(),
            kind: kind as u8,
            reserved: 0,
            crc: U32::ZERO,
            stream: stream.into(),
            epoch: epoch.into(),
            base_offset: base_offset.into(),
            timestamp_ns: timestamp_ns.into(),
            count: count.into(),
            payload_length: u32::try_from(payload.len()).expect("payload below 4 GiB").into(),
            payload_crc: crc32c::crc32c(payload).into(),
            reserved_tail: U32::ZERO,
            reserved_end: U64::ZERO,
        };
        header.crc = header.own_crc().into();
        header
    }

    /// The CRC in the bytes of a header.
    pub fn stored_crc(header: &[u8]) -> u32 {
        u32::from_le_bytes([header[4], header[5], header[6], header[7]])
    }

    fn own_crc(&self) -> u32 {
        let bytes = self.as_bytes();
        crc32c::crc32c_append(crc32c::crc32c(&bytes[8..]), &bytes[..4])
    }

    /// Reads and checks the header; the payload is not looked at.
    ///
    /// # Errors
    /// What is wrong with the bytes.
    pub fn verify(bytes: &[u8]) -> Result<(Self, FrameKind), FormatError> {
        let block = bytes.get(..FRAME_HEADER_BYTES).ok_or(FormatError::Short)?;
        let header = Self::read_from_bytes(block).map_err(|_| FormatError::Short)?;
        if header.magic != FRAME_MAGIC.to_le_bytes() {
            return Err(FormatError::Magic);
        }
        if header.own_crc() != header.crc.get() {
            return Err(FormatError::Checksum);
        }
        let kind = FrameKind::from_byte(header.kind).ok_or(FormatError::Magic)?;
        Ok((header, kind))
    }

    /// Bytes of header and payload.
    pub fn frame_length(&self) -> usize {
        FRAME_HEADER_BYTES + self.payload_length.get() as usize
    }

    /// Offset after the last record.
    pub fn end_offset(&self) -> u64 {
        self.base_offset.get().saturating_add(u64::from(self.count.get()))
    }
}

/// A frame whose header and payload have both been checked.
#[derive(Copy, Clone, Debug)]
pub struct VerifiedFrame<'a> {
    /// The header.
    pub header: FrameHeader,
    /// What it holds.
    pub kind: FrameKind,
    /// Its payload.
    pub payload: &'a [u8],
}

impl<'a> VerifiedFrame<'a> {
    /// Checks the frame at the start of `bytes`, every length in it included.
    ///
    /// # Errors
    /// What is wrong with the bytes.
    pub fn verify(bytes: &'a [u8]) -> Result<Self, FormatError> {
        let (header, kind) = FrameHeader::verify(bytes)?;
        let payload =
            bytes.get(FRAME_HEADER_BYTES..header.frame_length()).ok_or(FormatError::Length)?;
        if crc32c::crc32c(payload) != header.payload_crc.get() {
            return Err(FormatError::Checksum);
        }
        check_counters(&[header.end_offset()])?;
        if kind == FrameKind::Data
            && (header.count.get() == 0
                || Records::new(payload).count_checked() != Some(header.count.get()))
        {
            return Err(FormatError::Length);
        }
        Ok(Self { header, kind, payload })
    }

    /// The records of a data frame.
    pub fn records(&self) -> Records<'a> {
        Records::new(self.payload)
    }
}

/// The records in a data frame's payload, in order.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    rest: &'a [u8],
}

impl<'a> Records<'a> {
    /// Over a payload.
    pub fn new(payload: &'a [u8]) -> Self {
        Self { rest: payload }
    }

    /// The number of records, or `None` when the lengths do not add up.
    fn count_checked(&self) -> Option<u32> {
        let (mut rest, mut count) = (self.rest, 0u32);
        while !rest.is_empty() {
            let (prefix, tail) = rest.split_first_chunk::<RECORD_PREFIX_BYTES>()?;
            rest = tail.get(u32::from_le_bytes(*prefix) as usize..)?;
            count = count.checked_add(1)?;
        }
        Some(count)
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = &'a [u8];
    fn next(&mut self) -> Option<&'a [u8]> {
        let (prefix, tail) = self.rest.split_first_chunk::<RECORD_PREFIX_BYTES>()?;
        let record = tail.get(..u32::from_le_bytes(*prefix) as usize)?;
        self.rest = &tail[record.len()..];
        Some(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_of_a_frame_is_found() {
        let payload = [3u32.to_le_bytes().as_slice(), b"abc", &0u32.to_le_bytes()].concat();
        let header = FrameHeader::new(FrameKind::Data, 7, 1, 40, 2, 5, &payload);
        let mut frame = [header.as_bytes(), &payload].concat();
        assert_eq!(
            VerifiedFrame::verify(&frame).unwrap().records().collect::<Vec<_>>(),
            [b"abc".as_slice(), b""]
        );
        for bit in 0..frame.len() * 8 {
            frame[bit / 8] ^= 1 << (bit % 8);
            assert!(VerifiedFrame::verify(&frame).is_err(), "bit {bit} went unnoticed");
            frame[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn record_lengths_that_do_not_add_up_are_refused() {
        let payload = [9u32.to_le_bytes().as_slice(), b"abc"].concat();
        let header = FrameHeader::new(FrameKind::Data, 7, 1, 40, 1, 5, &payload);
        let frame = [header.as_bytes(), &payload].concat();
        assert_eq!(VerifiedFrame::verify(&frame).unwrap_err(), FormatError::Length);
    }
}
