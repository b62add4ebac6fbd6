//! The header that each open leaves in a shard's anchor.

use zerocopy::little_endian::{U32, U64};

use super::{EngineId, FormatError, check_counters, layout, verify_block, write_block};

const ANCHOR_MAGIC: [u8; 8] = *b"RWANCHOR";

layout! {
    /// One of the two alternating blocks of a shard's `anchor`: what the newest open knew.
    pub struct AnchorHeader: 64 {
        /// `RWANCHOR`.
        pub magic: [u8; 8],
        /// CRC32C of everything after it.
        pub crc: U32,
        /// Shard number.
        pub shard: U32,
        /// Identity of the engine.
        pub engine_id: [u8; 16],
        /// Incarnation that this open began.
        pub incarnation: U64,
        /// Number of its first segment.
        pub first_number: U64,
        /// Generation of its first segment.
        pub first_generation: U64,
        /// Zero.
        pub reserved: U64,
    }
}

impl AnchorHeader {
    /// What an open leaves.
    pub fn new(
        engine_id: EngineId,
        shard: u32,
        incarnation: u64,
        first_number: u64,
        first_generation: u64,
    ) -> Self {
        Self {
            magic: ANCHOR_MAGIC,
            crc: U32::ZERO,
            shard: shard.into(),
            engine_id,
            incarnation: incarnation.into(),
            first_number: first_number.into(),
            first_generation: first_generation.into(),
            reserved: U64::ZERO,
        }
    }

    /// Writes it with its CRC.
    pub fn write(&self, block: &mut [u8]) {
        write_block(self, 0, block);
    }

    /// Reads and checks it.
    ///
    /// # Errors
    /// What is wrong with the bytes.
    pub fn verify(bytes: &[u8]) -> Result<Self, FormatError> {
        let anchor: Self = verify_block(bytes, ANCHOR_MAGIC, 0)?;
        let counters = [anchor.incarnation, anchor.first_number, anchor.first_generation];
        check_counters(&counters.map(U64::get))?;
        Ok(anchor)
    }
}
