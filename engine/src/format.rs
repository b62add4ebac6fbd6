//! The bytes on disk and on the wire, and their checksums. No I/O, no decisions.
//!
//! Little-endian throughout; every size is asserted at compile time, and `FORMAT.md` draws the
//! same bytes. A type named `…Header` here has been read but not believed: its `verify` is the
//! only way to trust it.
//!
//! One file per structure below; here is what they share.

mod anchor;
mod batch;
mod engine;
mod footer;
mod frame;
mod orphan;
mod segment;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::disk::BLOCK_BYTES;
pub use anchor::AnchorHeader;
pub use batch::{BATCH_HEADER_BYTES, BatchHeader, batch_flags, verify_frames};
pub use engine::{EngineHeader, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN, SHARDS_MAX};
pub use footer::{ENTRY_BYTES, EntryRecord, FooterHeader, RUN_BYTES, RunRecord, index_bytes};
pub use frame::{
    FRAME_HEADER_BYTES, FrameHeader, FrameKind, RECORD_PREFIX_BYTES, Records, VerifiedFrame,
};
pub use orphan::{
    ORPHAN_HEADER_BYTES, ORPHAN_TRAILER_BYTES, ORPHANS_FOLDER, OrphanFacts, OrphanFrames,
    OrphanHeader, OrphanName, OrphanTrailer,
};
pub use segment::{JournalEnd, SegmentHeader, SegmentSeed};

/// Version that this code writes: a greater major is refused, a greater minor is read.
pub const FORMAT_MAJOR: u32 = 1;
/// See [`FORMAT_MAJOR`].
pub const FORMAT_MINOR: u32 = 0;
/// Incompatible features that this code knows (none yet). An unknown bit refuses the directory.
pub const INCOMPATIBLE_KNOWN: u64 = 0;

/// Where the batches of a segment start: after two header blocks.
pub const DATA_START: u64 = 2 * BLOCK_BYTES as u64;

/// Bytes from [`DATA_START`] on in which a batch may start before the first batch of the segment is durable.
pub const BEGINNING_BYTES: u64 = 1 << 20;

/// No offset, sequence, generation, incarnation or segment number is greater: none gets that far,
/// one can be added to each without a second thought, and the shard puts a tag above them.
pub const COUNTER_MAX: u64 = 1 << 55;
/// Where a counter stands so high, writing does not go on: what followed would come to that bound.
pub const COUNTER_LAST: u64 = COUNTER_MAX / 2;

/// Identity of an engine directory: random, fixed at its creation.
pub type EngineId = [u8; 16];

/// Why bytes were not believed.
#[derive(Copy, Clone, Eq, PartialEq, Debug, thiserror::Error)]
pub enum FormatError {
    /// Fewer bytes than the structure has.
    #[error("too few bytes")]
    Short,
    /// Another magic: there is nothing of this kind here.
    #[error("no magic")]
    Magic,
    /// The checksum differs.
    #[error("checksum differs")]
    Checksum,
    /// A length or count contradicts another.
    #[error("a length is out of bounds")]
    Length,
    /// Written by a newer version: major, minor, incompatible bits.
    #[error("format {0}.{1} with incompatible features {2:#x}")]
    Newer(u32, u32, u64),
    /// A number that counts up and has no next: no engine lives so long.
    #[error("{0} = {1} is beyond what an engine can count to")]
    Count(&'static str, u64),
    /// Numbers that no directory can have: shards, bytes of a segment.
    #[error("{0} shards with segments of {1} bytes are outside of the format's limits")]
    Geometry(u32, u64),
}

/// Defines a structure of the format: its fields in order, without gaps, and its size.
macro_rules! layout {
    ($(#[$doc:meta])* pub struct $name:ident: $bytes:literal { $($(#[$field_doc:meta])* pub $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(
            Copy,
            Clone,
            Debug,
            zerocopy::FromBytes,
            zerocopy::IntoBytes,
            zerocopy::KnownLayout,
            zerocopy::Immutable,
            zerocopy::Unaligned,
        )]
        #[repr(C)]
        pub struct $name { $($(#[$field_doc])* pub $field: $type,)* }
        const _: () = assert!(size_of::<$name>() == $bytes);
    };
}
use layout;

/// Whether a writer can have counted that far; the first that cannot be is named.
fn check_counts(counts: &[(&'static str, u64)]) -> Result<(), FormatError> {
    let impossible = counts.iter().find(|(_, count)| *count > COUNTER_MAX);
    impossible.map_or(Ok(()), |(name, count)| Err(FormatError::Count(name, *count)))
}

/// As [`check_counts`], where the place says what is counted.
pub(crate) fn check_counters(counters: &[u64]) -> Result<(), FormatError> {
    counters.iter().try_for_each(|counter| check_counts(&[("counter", *counter)]))
}

fn check_version(major: u32, minor: u32, incompatible: u64) -> Result<(), FormatError> {
    if major > FORMAT_MAJOR || incompatible & !INCOMPATIBLE_KNOWN != 0 {
        return Err(FormatError::Newer(major, minor, incompatible));
    }
    Ok(())
}

/// Checks a block's magic and CRC (at byte 8, over everything after it) and returns it.
fn verify_block<T>(bytes: &[u8], magic: [u8; 8], seed: u32) -> Result<T, FormatError>
where
    T: FromBytes + KnownLayout + Immutable,
{
    let block = bytes.get(..size_of::<T>()).ok_or(FormatError::Short)?;
    if block[..8] != magic {
        return Err(FormatError::Magic);
    }
    let stored = u32::from_le_bytes([block[8], block[9], block[10], block[11]]);
    if crc32c::crc32c_append(seed, &block[12..]) != stored {
        return Err(FormatError::Checksum);
    }
    T::read_from_bytes(block).map_err(|_| FormatError::Short)
}

/// Writes a structure with magic and CRC (at byte 8) into `block`.
fn write_block<T: IntoBytes + Immutable>(value: &T, seed: u32, block: &mut [u8]) {
    let bytes = value.as_bytes();
    block[..bytes.len()].copy_from_slice(bytes);
    let crc = crc32c::crc32c_append(seed, &bytes[12..]);
    block[8..12].copy_from_slice(&crc.to_le_bytes());
}
