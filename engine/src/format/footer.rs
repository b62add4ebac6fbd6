//! The footer of a sealed segment, and the records of its index.

use zerocopy::little_endian::{U32, U64};

use super::{
    DATA_START, FormatError, SegmentSeed, check_counters, layout, verify_block, write_block,
};
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

    /// Reads and checks it, every place and length in it included.
    ///
    /// # Errors
    /// What is wrong with the bytes.
    pub fn verify(
        bytes: &[u8],
        seed: SegmentSeed,
        segment_bytes: u64,
    ) -> Result<Self, FormatError> {
        let footer: Self = verify_block(bytes, FOOTER_MAGIC, seed.at(Self::offset(segment_bytes)))?;
        footer.is_laid_out(segment_bytes).then_some(footer).ok_or(FormatError::Length)
    }

    /// Whether batches, entries, runs and footer follow one another at whole blocks, and its
    /// batches can be counted.
    fn is_laid_out(&self, segment_bytes: u64) -> bool {
        let (end, checkpoint) = (self.end_offset.get(), self.checkpoint_offset.get());
        let (entries, runs) = (self.entries_offset.get(), self.runs_offset.get());
        let entries_end = entries.checked_add(u64::from(self.entries.get()) * ENTRY_BYTES as u64);
        let runs_end = runs.checked_add(u64::from(self.runs.get()) * RUN_BYTES as u64);
        [end, checkpoint, entries, runs].iter().all(|at| at.is_multiple_of(BLOCK_BYTES as u64))
            && (DATA_START..=entries).contains(&end)
            && (checkpoint == 0 || (DATA_START..end).contains(&checkpoint))
            && entries_end.is_some_and(|entries_end| entries_end <= runs)
            && runs_end.is_some_and(|runs_end| runs_end <= Self::offset(segment_bytes))
            && (1..=self.last_sequence.get()).contains(&self.first_sequence.get())
            && check_counters(&[self.last_sequence, self.successor_generation].map(U64::get))
                .is_ok()
    }
}

/// Bytes at the end of a segment that its index and footer need.
pub fn index_bytes(entries: usize, runs: usize) -> u64 {
    (block_round_up(entries * ENTRY_BYTES) + block_round_up(runs * RUN_BYTES) + BLOCK_BYTES) as u64
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::*;

    const SEGMENT_BYTES: u64 = 1 << 20;

    /// The verdict on a footer that is whole but for what `change` does before its CRC is made.
    fn verified(change: impl Fn(&mut FooterHeader)) -> Result<(), FormatError> {
        let mut footer = FooterHeader::new_zeroed();
        footer.magic = FooterHeader::MAGIC;
        (footer.first_sequence, footer.last_sequence) = (1.into(), 4.into());
        (footer.entries, footer.runs) = (10.into(), 2.into());
        footer.end_offset = (64 << 10).into();
        footer.checkpoint_offset = DATA_START.into();
        footer.runs_offset = (FooterHeader::offset(SEGMENT_BYTES) - 4096).into();
        footer.entries_offset = (FooterHeader::offset(SEGMENT_BYTES) - 8192).into();
        change(&mut footer);
        let seed = SegmentSeed::new(&[3; 16], 1, 2);
        let mut block = [0; BLOCK_BYTES];
        footer.write(seed, SEGMENT_BYTES, &mut block);
        FooterHeader::verify(&block, seed, SEGMENT_BYTES).map(drop)
    }

    #[test]
    fn a_footer_with_impossible_places_is_refused_whatever_its_checksum() {
        assert_eq!(verified(|_| {}), Ok(()));
        let changes: [fn(&mut FooterHeader); 11] = [
            |footer| footer.entries_offset = u64::MAX.into(),
            |footer| footer.entries_offset = (u64::MAX - 4095).into(),
            |footer| footer.runs_offset = (u64::MAX - 4095).into(),
            |footer| footer.runs_offset = (64 << 10).into(),
            |footer| footer.runs_offset = (footer.runs_offset.get() + 1).into(),
            |footer| footer.entries = u32::MAX.into(),
            |footer| footer.runs = u32::MAX.into(),
            |footer| footer.end_offset = 0.into(),
            |footer| footer.end_offset = SEGMENT_BYTES.into(),
            |footer| footer.checkpoint_offset = SEGMENT_BYTES.into(),
            |footer| footer.last_sequence = u64::MAX.into(),
        ];
        for (number, change) in changes.into_iter().enumerate() {
            assert_eq!(verified(change), Err(FormatError::Length), "change {number}");
        }
    }
}
