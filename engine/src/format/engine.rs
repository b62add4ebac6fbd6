//! The header of the file that names a directory's engine.

use zerocopy::little_endian::{U32, U64};

use super::{
    EngineId, FORMAT_MAJOR, FORMAT_MINOR, FormatError, INCOMPATIBLE_KNOWN, check_version, layout,
    verify_block, write_block,
};

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

    /// Reads and checks it.
    ///
    /// # Errors
    /// What is wrong with the bytes, or that they are newer.
    pub fn verify(bytes: &[u8]) -> Result<Self, FormatError> {
        let header: Self = verify_block(bytes, ENGINE_MAGIC, 0)?;
        check_version(header.major.get(), header.minor.get(), header.incompatible.get())?;
        Ok(header)
    }
}
