//! The header of a batch, and the check of all its frames against it.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use super::{
    DATA_START, EngineId, FRAME_HEADER_BYTES, FormatError, SegmentSeed, VerifiedFrame,
    check_counts, layout,
};

const BATCH_MAGIC: u32 = 0x3142_5752; // "RWB1"

layout! {
    /// Starts every batch.
    pub struct BatchHeader: 64 {
        /// `RWB1`.
        pub magic: U32,
        /// CRC32C of everything after it, seeded (see [`SegmentSeed`]).
        pub crc: U32,
        /// Generation of the segment.
        pub generation: U64,
        /// Counts the batches of the shard from 1, without gaps.
        pub sequence: U64,
        /// Highest sequence up to which every batch was durable when this one was sealed.
        pub durable_sequence: U64,
        /// Which open wrote it.
        pub incarnation: U64,
        /// `crc` of the previous batch header: a chain.
        pub previous_crc: U32,
        /// CRC32C of all frame headers, one after another.
        pub frames_crc: U32,
        /// Bytes of header and frames, before the padding to whole blocks.
        pub length: U32,
        /// Number of frames.
        pub frames: U32,
        /// See [`batch_flags`].
        pub flags: U32,
        /// Zero.
        pub reserved: U32,
    }
}

/// Bytes of [`BatchHeader`].
pub const BATCH_HEADER_BYTES: usize = size_of::<BatchHeader>();

/// Bits of [`BatchHeader::flags`].
pub mod batch_flags {
    /// Data frames in it were copied from older segments and keep their offsets.
    pub const MOVED: u32 = 1;
    /// Written because the shard was idle; has no frame.
    pub const SEAL: u32 = 2;
}

impl BatchHeader {
    /// Everything but magic and CRC, which [`BatchHeader::write`] adds.
    pub fn magic() -> U32 {
        BATCH_MAGIC.into()
    }

    /// Writes it at the start of `batch` and returns its CRC, the next link of the chain.
    pub fn write(&self, seed: SegmentSeed, offset: u64, batch: &mut [u8]) -> u32 {
        let bytes = self.as_bytes();
        batch[..bytes.len()].copy_from_slice(bytes);
        let crc = crc32c::crc32c_append(seed.at(offset), &bytes[8..]);
        batch[4..8].copy_from_slice(&crc.to_le_bytes());
        crc
    }

    /// Reads and checks the header at `offset`; the frames are not looked at.
    ///
    /// # Errors
    /// What is wrong with the bytes.
    pub fn verify(bytes: &[u8], seed: SegmentSeed, offset: u64) -> Result<Self, FormatError> {
        let block = bytes.get(..BATCH_HEADER_BYTES).ok_or(FormatError::Short)?;
        if block[..4] != BATCH_MAGIC.to_le_bytes() {
            return Err(FormatError::Magic);
        }
        let header = Self::read_from_bytes(block).map_err(|_| FormatError::Short)?;
        if crc32c::crc32c_append(seed.at(offset), &block[8..]) != header.crc.get() {
            return Err(FormatError::Checksum);
        }
        if (header.length.get() as usize) < BATCH_HEADER_BYTES {
            return Err(FormatError::Length);
        }
        check_counts(&[
            ("generation", header.generation.get()),
            ("sequence", header.sequence.get()),
            ("durable_sequence", header.durable_sequence.get()),
            ("incarnation", header.incarnation.get()),
        ])?;
        Ok(header)
    }

    /// Reads and checks the first header of a segment for the generation that it names itself: for
    /// a segment whose own header is lost.
    ///
    /// # Errors
    /// What is wrong with the bytes.
    pub fn verify_itself(
        bytes: &[u8],
        engine_id: &EngineId,
        number: u64,
    ) -> Result<Self, FormatError> {
        let (unverified, _) = Self::read_from_prefix(bytes).map_err(|_| FormatError::Short)?;
        let seed = SegmentSeed::new(engine_id, number, unverified.generation.get());
        Self::verify(bytes, seed, DATA_START)
    }

    /// Bytes of the batch on disk: whole blocks.
    pub fn padded_length(&self) -> usize {
        crate::disk::block_round_up(self.length.get() as usize)
    }
}

/// Checks all frames of a batch against its (already verified) header and yields them.
///
/// # Errors
/// What is wrong with the first bad frame, and where it is in the batch.
pub fn verify_frames<'a>(
    header: &BatchHeader,
    batch: &'a [u8],
    mut each: impl FnMut(usize, VerifiedFrame<'a>),
) -> Result<(), (usize, FormatError)> {
    let length = header.length.get() as usize;
    let bytes = batch.get(..length).ok_or((0, FormatError::Short))?;
    let mut position = BATCH_HEADER_BYTES;
    let mut frames_crc = 0;
    for _ in 0..header.frames.get() {
        let frame = VerifiedFrame::verify(&bytes[position.min(length)..])
            .map_err(|error| (position, error))?;
        frames_crc =
            crc32c::crc32c_append(frames_crc, &bytes[position..position + FRAME_HEADER_BYTES]);
        each(position, frame);
        position += frame.header.frame_length();
    }
    if position != length || frames_crc != header.frames_crc.get() {
        return Err((position, FormatError::Checksum));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::BLOCK_BYTES;

    fn seed() -> SegmentSeed {
        SegmentSeed::new(&[7; 16], 3, 9)
    }

    #[test]
    fn a_batch_header_is_bound_to_its_place() {
        let header = BatchHeader {
            magic: BatchHeader::magic(),
            crc: U32::ZERO,
            generation: 9.into(),
            sequence: 1.into(),
            durable_sequence: U64::ZERO,
            incarnation: 1.into(),
            previous_crc: U32::ZERO,
            frames_crc: U32::ZERO,
            length: 64.into(),
            frames: U32::ZERO,
            flags: U32::ZERO,
            reserved: U32::ZERO,
        };
        let mut block = [0u8; BLOCK_BYTES];
        header.write(seed(), 8192, &mut block);
        assert!(BatchHeader::verify(&block, seed(), 8192).is_ok());
        let endless = BatchHeader { sequence: u64::MAX.into(), ..header };
        endless.write(seed(), 8192, &mut block);
        let refused = FormatError::Count("sequence", u64::MAX);
        assert_eq!(BatchHeader::verify(&block, seed(), 8192).unwrap_err(), refused);
        header.write(seed(), 8192, &mut block);
        assert_eq!(BatchHeader::verify(&block, seed(), 12288).unwrap_err(), FormatError::Checksum);
        let other_life = SegmentSeed::new(&[7; 16], 3, 10);
        assert_eq!(
            BatchHeader::verify(&block, other_life, 8192).unwrap_err(),
            FormatError::Checksum
        );
    }
}
