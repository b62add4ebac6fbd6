//! The bytes on disk and on the wire, and their checksums. No I/O, no decisions.
//!
//! Little-endian throughout; every size is asserted at compile time, and `FORMAT.md` draws the
//! same bytes. A type named `…Header` here has been read but not believed: its `verify` is the
//! only way to trust it.

use std::ops::RangeInclusive;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::disk::BLOCK_BYTES;

/// Version that this code writes: a greater major is refused, a greater minor is read.
pub const FORMAT_MAJOR: u32 = 1;
/// See [`FORMAT_MAJOR`].
pub const FORMAT_MINOR: u32 = 0;
/// Incompatible features that this code knows (none yet). An unknown bit refuses the directory.
pub const INCOMPATIBLE_KNOWN: u64 = 0;

/// Where the batches of a segment start: after two header blocks.
pub const DATA_START: u64 = 2 * BLOCK_BYTES as u64;
/// Shards that a directory may have.
pub const SHARDS: RangeInclusive<u32> = 1..=64;
/// Length that its segments may have, in bytes; whole blocks.
pub const SEGMENT_BYTES: RangeInclusive<u64> = 64 << 10..=2 << 30;
/// No offset, sequence, generation, incarnation or segment number is greater: none gets that far,
/// one can be added to each without a second thought, and the shard puts a tag above them.
pub const COUNTER_MAX: u64 = 1 << 55;
/// Bytes of a record's length, in front of the record.
pub const RECORD_PREFIX_BYTES: usize = 4;

const SEGMENT_MAGIC: [u8; 8] = *b"RWSEGMNT";
const FOOTER_MAGIC: [u8; 8] = *b"RWFOOTER";
const ENGINE_MAGIC: [u8; 8] = *b"RWENGINE";
const ANCHOR_MAGIC: [u8; 8] = *b"RWANCHOR";
const BATCH_MAGIC: u32 = 0x3142_5752; // "RWB1"
const FRAME_MAGIC: u16 = 0x4652; // "RF"

/// Identity of an engine directory: random, fixed at its creation.
pub type EngineId = [u8; 16];

macro_rules! layout {
    ($(#[$doc:meta])* pub struct $name:ident: $bytes:literal { $($(#[$field_doc:meta])* pub $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Copy, Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
        #[repr(C)]
        pub struct $name { $($(#[$field_doc])* pub $field: $type,)* }
        const _: () = assert!(size_of::<$name>() == $bytes);
    };
}

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

/// Bits of [`BatchHeader::flags`].
pub mod batch_flags {
    /// Data frames in it were copied from older segments and keep their offsets.
    pub const MOVED: u32 = 1;
    /// Written because the shard was idle or closing; carries no record.
    pub const SEAL: u32 = 2;
}

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

/// Bytes of [`BatchHeader`].
pub const BATCH_HEADER_BYTES: usize = size_of::<BatchHeader>();
/// Bytes of [`FrameHeader`].
pub const FRAME_HEADER_BYTES: usize = size_of::<FrameHeader>();
/// Bytes of [`EntryRecord`].
pub const ENTRY_BYTES: usize = size_of::<EntryRecord>();
/// Bytes of [`RunRecord`].
pub const RUN_BYTES: usize = size_of::<RunRecord>();

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
}

fn check_version(major: u32, minor: u32, incompatible: u64) -> Result<(), FormatError> {
    if major > FORMAT_MAJOR || incompatible & !INCOMPATIBLE_KNOWN != 0 {
        return Err(FormatError::Newer(major, minor, incompatible));
    }
    Ok(())
}

/// Whether a writer can have counted that far.
pub(crate) fn check_counters(counters: &[u64]) -> Result<(), FormatError> {
    if counters.iter().any(|counter| *counter > COUNTER_MAX) {
        return Err(FormatError::Length);
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
        if !header.is_possible() {
            return Err(FormatError::Length);
        }
        Ok(header)
    }

    /// Whether there can be such a directory: everything else is sized by these numbers.
    pub fn is_possible(&self) -> bool {
        let segment_bytes = self.segment_bytes.get();
        SHARDS.contains(&self.shards.get())
            && SEGMENT_BYTES.contains(&segment_bytes)
            && segment_bytes.is_multiple_of(BLOCK_BYTES as u64)
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
        let counters = [
            header.number,
            header.generation,
            header.incarnation,
            header.predecessor_number,
            header.predecessor_generation,
            header.predecessor_offset,
            header.predecessor_sequence,
        ];
        check_counters(&counters.map(U64::get))?;
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

/// Ties a checksum to engine, segment, generation and file offset, so that a misdirected write
/// or a block left over from an earlier life of the file never passes.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct SegmentSeed(u32);

impl SegmentSeed {
    /// The seed of one life of one file.
    pub fn new(engine_id: &EngineId, number: u64, generation: u64) -> Self {
        let crc = crc32c::crc32c(engine_id);
        let crc = crc32c::crc32c_append(crc, &number.to_le_bytes());
        Self(crc32c::crc32c_append(crc, &generation.to_le_bytes()))
    }

    fn at(self, offset: u64) -> u32 {
        crc32c::crc32c_append(self.0, &offset.to_le_bytes())
    }
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
        let counters = [header.generation, header.sequence, header.durable_sequence];
        check_counters(&counters.map(U64::get))?;
        check_counters(&[header.incarnation.get()])?;
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
        if !footer.is_possible(segment_bytes) {
            return Err(FormatError::Length);
        }
        Ok(footer)
    }

    /// Batches, entries, runs and footer lie one behind the other, each from a block on.
    fn is_possible(&self, segment_bytes: u64) -> bool {
        let list = |offset: U64, count: U32, bytes: usize| {
            let length = u64::from(count.get()) * bytes as u64;
            (offset.get(), offset.get().saturating_add(length))
        };
        let (entries, entries_end) = list(self.entries_offset, self.entries, ENTRY_BYTES);
        let (runs, runs_end) = list(self.runs_offset, self.runs, RUN_BYTES);
        let (end, checkpoint) = (self.end_offset.get(), self.checkpoint_offset.get());
        let in_blocks = |offset: &u64| offset.is_multiple_of(BLOCK_BYTES as u64);
        [end, entries, runs, checkpoint].iter().all(in_blocks)
            && DATA_START <= end
            && end <= entries
            && entries_end <= runs
            && runs_end <= Self::offset(segment_bytes)
            && (checkpoint == 0 || (DATA_START..end).contains(&checkpoint))
            && self.first_sequence.get() > 0
            && self.first_sequence.get() <= self.last_sequence.get()
            && check_counters(&[self.last_sequence, self.successor_generation].map(U64::get))
                .is_ok()
    }
}

/// Bytes at the end of a segment that its index and footer need.
pub fn index_bytes(entries: usize, runs: usize) -> u64 {
    (crate::disk::block_round_up(entries * ENTRY_BYTES)
        + crate::disk::block_round_up(runs * RUN_BYTES)
        + BLOCK_BYTES) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(BatchHeader::verify(&block, seed(), 12288).unwrap_err(), FormatError::Checksum);
        let other_life = SegmentSeed::new(&[7; 16], 3, 10);
        assert_eq!(
            BatchHeader::verify(&block, other_life, 8192).unwrap_err(),
            FormatError::Checksum
        );
    }

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
    fn record_lengths_that_do_not_add_up_are_refused() {
        let payload = [9u32.to_le_bytes().as_slice(), b"abc"].concat();
        let header = FrameHeader::new(FrameKind::Data, 7, 1, 40, 1, 5, &payload);
        let frame = [header.as_bytes(), &payload].concat();
        assert_eq!(VerifiedFrame::verify(&frame).unwrap_err(), FormatError::Length);
    }
}
