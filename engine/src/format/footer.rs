//! The footer of a sealed segment, and the records of its index.

use zerocopy::little_endian::{U32, U64};

use super::{FormatError, SegmentSeed, layout, verify_block, write_block};
use crate::disk::{BLOCK_BYTES, block_round_up};

const FOOTER_MAGIC: [u8; 8] = *b"RWFOOTER";

layout! {
    /// Last block of a sealed segment.
    pub struct FooterHeader: 128 {
        /// `RWFOOTER`.
        pub magic: [u8; 8],
        /// CRC32C of everything after it, seeded (see [`SegmentSeed`]).
        pub crc: U32,
        /// `previous_crc` of the first batch.
        pub first_previous_crc: U32,
        /// Sequence of the first batch.
        pub first_sequence: U64,
        /// Sequence of the last batch.
        pub last_sequence: U64,
        /// `crc` of the last batch header.
        pub last_crc: U32,
        /// CRC32C of the runs.
        pub runs_crc: U32,
        /// Byte after the last batch.
        pub end_offset: U64,
        /// Where the entries are.
        pub entries_offset: U64,
        /// Where the runs are.
        pub runs_offset: U64,
        /// Number of entries.
        pub entries: U32,
        /// Number of runs.
        pub runs: U32,
        /// Offset of a checkpoint after which no control frame follows; 0 when there is none.
        pub checkpoint_offset: U64,
        /// Number of the segment that follows; meaningless when the next is 0.
        pub successor_number: U64,
        /// Its generation; 0 when the shard was closed or recovered here.
        pub successor_generation: U64,
        /// Records of the segment when it was sealed.
        pub records: U64,
        /// Payload bytes of those records.
        pub payload_bytes: U64,
        /// CRC32C of the entries.
        pub entries_crc: U32,
        /// Zero.
        pub reserved: U32,
        /// Zero.
        pub reserved_end: U64,
    }
}

layout! {
    /// Consecutive records of one stream and epoch in a sealed segment.
    pub struct RunRecord: 48 {
        /// Whose.
        pub stream: U64,
        /// Which epoch.
        pub epoch: U64,
        /// First offset.
        pub base_offset: U64,
        /// Offset after the last.
        pub end_offset: U64,
        /// First entry.
        pub entry: U32,
        /// Number of entries.
        pub entries: U32,
        /// Bytes of their frames.
        pub frame_bytes: U64,
    }
}

layout! {
    /// Where a frame of a sealed segment is.
    pub struct EntryRecord: 20 {
        /// Offset of its first record.
        pub base_offset: U64,
        /// Number of records.
        pub count: U32,
        /// Byte offset of the frame header in the segment.
        pub position: U32,
        /// `crc` of the frame header: a frame that an earlier life of the file left in the same
        /// place, with the same offsets, is another one.
        pub frame_crc: U32,
    }
}

/// Bytes of [`EntryRecord`].
pub const ENTRY_BYTES: usize = size_of::<EntryRecord>();
/// Bytes of [`RunRecord`].
pub const RUN_BYTES: usize = size_of::<RunRecord>();

impl FooterHeader {
    /// The magic, for building one.
    pub const MAGIC: [u8; 8] = FOOTER_MAGIC;

    /// Where the footer of a segment is.
    pub fn offset(segment_bytes: u64) -> u64 {
        segment_bytes - BLOCK_BYTES as u64
    }

    /// Writes it with its CRC.
    pub fn write(&self, seed: SegmentSeed, segment_bytes: u64, block: &mut [u8]) {
        write_block(self, seed.at(Self::offset(segment_bytes)), block);
    }

    /// Reads and checks it, lengths included.
    ///
    /// # Errors
    /// What is wrong with the bytes.
    pub fn verify(
        bytes: &[u8],
        seed: SegmentSeed,
        segment_bytes: u64,
    ) -> Result<Self, FormatError> {
        let footer: Self = verify_block(bytes, FOOTER_MAGIC, seed.at(Self::offset(segment_bytes)))?;
        let entries_end =
            footer.entries_offset.get() + u64::from(footer.entries.get()) * ENTRY_BYTES as u64;
        let runs_end = footer.runs_offset.get() + u64::from(footer.runs.get()) * RUN_BYTES as u64;
        if entries_end > segment_bytes
            || runs_end > segment_bytes
            || footer.end_offset.get() > segment_bytes
        {
            return Err(FormatError::Length);
        }
        Ok(footer)
    }
}

/// Bytes at the end of a segment that its index and footer need.
pub fn index_bytes(entries: usize, runs: usize) -> u64 {
    (block_round_up(entries * ENTRY_BYTES) + block_round_up(runs * RUN_BYTES) + BLOCK_BYTES) as u64
}
