//! The header of a segment, the end of a journal that it may name, and the seed that ties
//! checksums to a segment.

use zerocopy::little_endian::{U32, U64};

use super::{
    EngineId, FORMAT_MAJOR, FORMAT_MINOR, FormatError, INCOMPATIBLE_KNOWN, check_counts,
    check_version, layout, verify_block, write_block,
};
use crate::mutants::{self, Mutant};

const SEGMENT_MAGIC: [u8; 8] = *b"RWSEGMNT";

layout! {
    /// First two blocks of a segment, the same bytes twice.
    pub struct SegmentHeader: 144 {
        /// `RWSEGMNT`.
        pub magic: [u8; 8],
        /// CRC32C of everything after it.
        pub crc: U32,
        /// Format major version.
        pub major: U32,
        /// Format minor version.
        pub minor: U32,
        /// Shard number.
        pub shard: U32,
        /// Features without which this segment must not be read or written.
        pub incompatible: U64,
        /// Features that may be ignored.
        pub compatible: U64,
        /// Identity of the engine.
        pub engine_id: [u8; 16],
        /// Number of the file, as in its name.
        pub number: U64,
        /// Life of the file: grows with every use, never reused in the shard.
        pub generation: U64,
        /// Which open wrote it.
        pub incarnation: U64,
        /// Length of the file in bytes.
        pub segment_bytes: U64,
        /// 1 when it is the first of its incarnation; then the predecessor's end follows.
        pub first: U32,
        /// Chain CRC of the last batch that the previous incarnation is worth.
        pub predecessor_crc: U32,
        /// Number of the segment that holds that batch (0 with generation 0: there is none).
        pub predecessor_number: U64,
        /// Its generation.
        pub predecessor_generation: U64,
        /// Byte after that batch.
        pub predecessor_offset: U64,
        /// Sequence of that batch.
        pub predecessor_sequence: U64,
        /// Zero.
        pub reserved: [U64; 2],
    }
}

impl SegmentHeader {
    /// The header of a life of a file. `predecessor` makes it the first of its incarnation.
    pub fn new(
        engine_id: EngineId,
        shard: u32,
        number: u64,
        generation: u64,
        incarnation: u64,
        segment_bytes: u64,
        predecessor: Option<JournalEnd>,
    ) -> Self {
        let end = predecessor.unwrap_or_default();
        Self {
            magic: SEGMENT_MAGIC,
            crc: U32::ZERO,
            major: FORMAT_MAJOR.into(),
            minor: FORMAT_MINOR.into(),
            shard: shard.into(),
            incompatible: INCOMPATIBLE_KNOWN.into(),
            compatible: U64::ZERO,
            engine_id,
            number: number.into(),
            generation: generation.into(),
            incarnation: incarnation.into(),
            segment_bytes: segment_bytes.into(),
            first: u32::from(predecessor.is_some()).into(),
            predecessor_crc: end.crc.into(),
            predecessor_number: end.number.into(),
            predecessor_generation: end.generation.into(),
            predecessor_offset: end.offset.into(),
            predecessor_sequence: end.sequence.into(),
            reserved: [U64::ZERO; 2],
        }
    }

    /// Writes it with its CRC.
    pub fn write(&self, block: &mut [u8]) {
        write_block(self, 0, block);
    }

    /// Reads and checks one copy.
    ///
    /// # Errors
    /// What is wrong with the bytes, or that they are newer.
    pub fn verify(bytes: &[u8]) -> Result<Self, FormatError> {
        let header: Self = verify_block(bytes, SEGMENT_MAGIC, 0)?;
        check_version(header.major.get(), header.minor.get(), header.incompatible.get())?;
        check_counts(&[
            ("number", header.number.get()),
            ("generation", header.generation.get()),
            ("incarnation", header.incarnation.get()),
            ("predecessor_generation", header.predecessor_generation.get()),
            ("predecessor_offset", header.predecessor_offset.get()),
            ("predecessor_sequence", header.predecessor_sequence.get()),
        ])?;
        Ok(header)
    }

    /// Where the previous incarnation ends, when this is the first segment of one.
    pub fn predecessor(&self) -> Option<JournalEnd> {
        (self.first.get() != 0).then(|| JournalEnd {
            number: self.predecessor_number.get(),
            generation: self.predecessor_generation.get(),
            offset: self.predecessor_offset.get(),
            sequence: self.predecessor_sequence.get(),
            crc: self.predecessor_crc.get(),
        })
    }

    /// The seed of this life's checksums.
    pub fn seed(&self) -> SegmentSeed {
        SegmentSeed::new(&self.engine_id, self.number.get(), self.generation.get())
    }
}

/// End of a journal: the last batch that counts.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Default)]
pub struct JournalEnd {
    /// Segment number.
    pub number: u64,
    /// Its generation; 0 when there is no batch at all.
    pub generation: u64,
    /// Byte after the batch.
    pub offset: u64,
    /// The batch's sequence.
    pub sequence: u64,
    /// The batch's header CRC.
    pub crc: u32,
}

/// Ties a checksum to engine, segment, generation and file offset, so that a misdirected write
/// or a block left over from an earlier life of the file never passes.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct SegmentSeed(u32);

impl SegmentSeed {
    /// The seed of one life of one file.
    pub fn new(engine_id: &EngineId, number: u64, generation: u64) -> Self {
        let crc = crc32c::crc32c(engine_id);
        let crc = crc32c::crc32c_append(crc, &number.to_le_bytes());
        let generation = if mutants::is(Mutant::NoGeneration) { 0 } else { generation };
        Self(crc32c::crc32c_append(crc, &generation.to_le_bytes()))
    }

    pub(super) fn at(self, offset: u64) -> u32 {
        crc32c::crc32c_append(self.0, &offset.to_le_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::BLOCK_BYTES;

    #[test]
    fn a_newer_major_or_unknown_feature_is_refused_by_name() {
        let mut header = SegmentHeader::new([1; 16], 0, 1, 1, 1, 1 << 20, None);
        header.incompatible = 4.into();
        let mut block = [0u8; BLOCK_BYTES];
        header.write(&mut block);
        assert_eq!(
            SegmentHeader::verify(&block).unwrap_err(),
            FormatError::Newer(FORMAT_MAJOR, FORMAT_MINOR, 4)
        );
        header.incompatible = U64::ZERO;
        header.compatible = 8.into();
        header.minor = (FORMAT_MINOR + 1).into();
        header.write(&mut block);
        assert!(SegmentHeader::verify(&block).is_ok());
    }

    #[test]
    fn a_header_that_nothing_could_follow_is_refused_whatever_its_checksum() {
        let verified = |number, generation, incarnation, sequence| {
            let end = JournalEnd { sequence, ..JournalEnd::default() };
            let header =
                SegmentHeader::new([1; 16], 0, number, generation, incarnation, 1 << 20, Some(end));
            let mut block = [0u8; BLOCK_BYTES];
            header.write(&mut block);
            SegmentHeader::verify(&block).map(drop)
        };
        assert_eq!(verified(1, 1, 1, 1), Ok(()));
        let max = u64::MAX;
        for (verified, name) in [
            (verified(max, 1, 1, 1), "number"),
            (verified(1, max, 1, 1), "generation"),
            (verified(1, 1, max, 1), "incarnation"),
            (verified(1, 1, 1, max), "predecessor_sequence"),
        ] {
            assert_eq!(verified, Err(FormatError::Count(name, max)));
        }
    }
}
