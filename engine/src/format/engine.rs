//! The header of the file that names a directory's engine.

use zerocopy::little_endian::{U32, U64};

use super::{
    EngineId, FORMAT_MAJOR, FORMAT_MINOR, FormatError, INCOMPATIBLE_KNOWN, check_version, layout,
    verify_block, write_block,
};
use crate::disk::BLOCK_BYTES;

const ENGINE_MAGIC: [u8; 8] = *b"RWENGINE";

layout! {
    /// First block of `engine`, the file that names the directory's engine.
    pub struct EngineHeader: 64 {
        /// `RWENGINE`.
        pub magic: [u8; 8],
        /// CRC32C of everything after it.
        pub crc: U32,
        /// Format major version.
        pub major: U32,
        /// Format minor version.
        pub minor: U32,
        /// Number of shards, fixed for the life of the directory.
        pub shards: U32,
        /// Features without which this directory must not be read or written.
        pub incompatible: U64,
        /// Features that may be ignored.
        pub compatible: U64,
        /// Identity.
        pub engine_id: [u8; 16],
        /// Length of every segment file, in bytes.
        pub segment_bytes: U64,
    }
}

/// Most shards of a directory; the least is one.
pub const SHARDS_MAX: u32 = 64;
/// Shortest segment.
pub const SEGMENT_BYTES_MIN: u64 = 64 << 10;
/// Longest segment: positions in its index have 32 bits.
pub const SEGMENT_BYTES_MAX: u64 = 2 << 30;

impl EngineHeader {
    /// A new directory's.
    pub fn new(engine_id: EngineId, shards: u32, segment_bytes: u64) -> Self {
        Self {
            magic: ENGINE_MAGIC,
            crc: U32::ZERO,
            major: FORMAT_MAJOR.into(),
            minor: FORMAT_MINOR.into(),
            shards: shards.into(),
            incompatible: INCOMPATIBLE_KNOWN.into(),
            compatible: U64::ZERO,
            engine_id,
            segment_bytes: segment_bytes.into(),
        }
    }

    /// Writes it with its CRC.
    pub fn write(&self, block: &mut [u8]) {
        write_block(self, 0, block);
    }

    /// Reads and checks it, its limits included.
    ///
    /// # Errors
    /// What is wrong with the bytes, or that they are newer.
    pub fn verify(bytes: &[u8]) -> Result<Self, FormatError> {
        let header: Self = verify_block(bytes, ENGINE_MAGIC, 0)?;
        check_version(header.major.get(), header.minor.get(), header.incompatible.get())?;
        header.check_geometry()?;
        Ok(header)
    }

    /// Whether shards and segments are within the limits of the format.
    ///
    /// # Errors
    /// [`FormatError::Geometry`] when they are not.
    pub fn check_geometry(&self) -> Result<(), FormatError> {
        let (shards, segment_bytes) = (self.shards.get(), self.segment_bytes.get());
        let is_possible = (1..=SHARDS_MAX).contains(&shards)
            && (SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&segment_bytes)
            && segment_bytes.is_multiple_of(BLOCK_BYTES as u64);
        is_possible.then_some(()).ok_or(FormatError::Geometry(shards, segment_bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_with_impossible_numbers_is_refused_whatever_its_checksum() {
        let verified = |shards, segment_bytes| {
            let mut block = [0; BLOCK_BYTES];
            EngineHeader::new([5; 16], shards, segment_bytes).write(&mut block);
            EngineHeader::verify(&block).map(drop)
        };
        assert_eq!(verified(1, SEGMENT_BYTES_MIN), Ok(()));
        assert_eq!(verified(SHARDS_MAX, SEGMENT_BYTES_MAX), Ok(()));
        for (shards, segment_bytes) in [
            (0, 1 << 20),
            (65, 1 << 20),
            (65_537, 1 << 20),
            (1, 0),
            (1, 4096),
            (1, (1 << 20) + 1),
            (1, SEGMENT_BYTES_MAX + 4096),
            (u32::MAX, u64::MAX),
        ] {
            let refused = FormatError::Geometry(shards, segment_bytes);
            assert_eq!(verified(shards, segment_bytes), Err(refused));
        }
    }
}
