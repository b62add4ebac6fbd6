//! An orphan file: the records of a stream that were cut because another history goes on without
//! them. A header, their frames as they were on disk, and a trailer that only a whole file has.

use zerocopy::IntoBytes;
use zerocopy::little_endian::{U32, U64};

use super::{
    EngineId, FORMAT_MAJOR, FORMAT_MINOR, FormatError, FrameHeader, INCOMPATIBLE_KNOWN,
    check_counters, check_version, layout, verify_block, write_block,
};

/// Folder of the orphan files in an engine's directory.
pub const ORPHANS_FOLDER: &str = "orphans";
const ORPHAN_MAGIC: [u8; 8] = *b"RWORPHAN";
const TRAILER_MAGIC: [u8; 8] = *b"RWORPEND";
const EXTENSION: &str = ".orphan";
const UNFINISHED_EXTENSION: &str = ".new";

layout! {
    /// Starts an orphan file: whose records they are, and why they were cut.
    pub struct OrphanHeader: 128 {
        /// `RWORPHAN`.
        pub magic: [u8; 8],
        /// CRC32C of everything after it.
        pub crc: U32,
        /// Format version.
        pub major: U32,
        /// Format version.
        pub minor: U32,
        /// Zero.
        pub reserved: U32,
        /// Feature bits that must be known.
        pub incompatible: U64,
        /// Feature bits that may be ignored.
        pub compatible: U64,
        /// Engine that held the records.
        pub engine_id: EngineId,
        /// Their stream.
        pub stream: U64,
        /// Offset of the first record.
        pub base_offset: U64,
        /// Offset after the last record; greater than `base_offset`.
        pub end_offset: U64,
        /// Wall clock when they were kept, nanoseconds since 1970. Information only.
        pub time_ns: U64,
        /// Node that leads in the history that goes on without them.
        pub leader: U64,
        /// Epoch in which it leads.
        pub epoch: U64,
        /// Run of its process.
        pub run: [u8; 16],
        /// Zero.
        pub reserved_end: U64,
    }
}

/// Bytes of [`OrphanHeader`].
pub const ORPHAN_HEADER_BYTES: usize = size_of::<OrphanHeader>();

layout! {
    /// Ends an orphan file: what was written between it and the header.
    pub struct OrphanTrailer: 64 {
        /// `RWORPEND`.
        pub magic: [u8; 8],
        /// CRC32C of everything after it, seeded with the header's CRC.
        pub crc: U32,
        /// CRC32C of all frame headers, one after another.
        pub frames_crc: U32,
        /// Number of frames.
        pub frames: U64,
        /// Number of records.
        pub records: U64,
        /// Bytes of the frames, headers included.
        pub frame_bytes: U64,
        /// Zero.
        pub reserved: [u8; 24],
    }
}

/// Bytes of [`OrphanTrailer`].
pub const ORPHAN_TRAILER_BYTES: usize = size_of::<OrphanTrailer>();

/// Frames of an orphan file, counted; two files with the same frames have equal ones.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Default)]
pub struct OrphanFrames {
    /// Number of frames.
    pub frames: u64,
    /// Number of records.
    pub records: u64,
    /// Bytes, headers included.
    pub bytes: u64,
    /// CRC32C of all frame headers, one after another.
    pub crc: u32,
}

impl OrphanFrames {
    /// Counts one more.
    pub fn add(&mut self, header: &FrameHeader) {
        self.frames += 1;
        self.records += u64::from(header.count.get());
        self.bytes += header.frame_length() as u64;
        self.crc = crc32c::crc32c_append(self.crc, header.as_bytes());
    }
}

/// What an orphan file says about its records.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct OrphanFacts {
    /// Engine that held them.
    pub engine_id: EngineId,
    /// Their stream.
    pub stream: u64,
    /// Offset of the first.
    pub base_offset: u64,
    /// Offset after the last.
    pub end_offset: u64,
    /// Wall clock when they were kept, nanoseconds since 1970.
    pub time_ns: u64,
    /// Node that leads in the history that goes on without them.
    pub leader: u64,
    /// Epoch in which it leads.
    pub epoch: u64,
    /// Run of its process.
    pub run: [u8; 16],
}

impl OrphanHeader {
    /// The header of a file with these records.
    pub fn new(facts: &OrphanFacts) -> Self {
        let mut header = Self {
            magic: ORPHAN_MAGIC,
            crc: U32::ZERO,
            major: FORMAT_MAJOR.into(),
            minor: FORMAT_MINOR.into(),
            reserved: U32::ZERO,
            incompatible: INCOMPATIBLE_KNOWN.into(),
            compatible: U64::ZERO,
            engine_id: facts.engine_id,
            stream: facts.stream.into(),
            base_offset: facts.base_offset.into(),
            end_offset: facts.end_offset.into(),
            time_ns: facts.time_ns.into(),
            leader: facts.leader.into(),
            epoch: facts.epoch.into(),
            run: facts.run,
            reserved_end: U64::ZERO,
        };
        header.crc = crc32c::crc32c(&header.as_bytes()[12..]).into();
        header
    }

    /// Reads and checks it.
    ///
    /// # Errors
    /// What is wrong with the bytes, or that they are newer.
    pub fn verify(bytes: &[u8]) -> Result<Self, FormatError> {
        let header: Self = verify_block(bytes, ORPHAN_MAGIC, 0)?;
        check_version(header.major.get(), header.minor.get(), header.incompatible.get())?;
        check_counters(&[header.end_offset.get()])?;
        if header.base_offset.get() >= header.end_offset.get() {
            return Err(FormatError::Length);
        }
        Ok(header)
    }

    /// What it says.
    pub fn facts(&self) -> OrphanFacts {
        OrphanFacts {
            engine_id: self.engine_id,
            stream: self.stream.get(),
            base_offset: self.base_offset.get(),
            end_offset: self.end_offset.get(),
            time_ns: self.time_ns.get(),
            leader: self.leader.get(),
            epoch: self.epoch.get(),
            run: self.run,
        }
    }
}

impl OrphanTrailer {
    /// The trailer of a file with this header and these frames.
    pub fn new(header: &OrphanHeader, frames: &OrphanFrames) -> Self {
        let mut trailer = Self {
            magic: TRAILER_MAGIC,
            crc: U32::ZERO,
            frames_crc: frames.crc.into(),
            frames: frames.frames.into(),
            records: frames.records.into(),
            frame_bytes: frames.bytes.into(),
            reserved: [0; 24],
        };
        let mut block = [0; ORPHAN_TRAILER_BYTES];
        write_block(&trailer, header.crc.get(), &mut block);
        trailer.crc = u32::from_le_bytes([block[8], block[9], block[10], block[11]]).into();
        trailer
    }

    /// Reads and checks it: that it ends the file of this header, and that these frames are all.
    ///
    /// # Errors
    /// What is wrong with the bytes.
    pub fn verify(
        bytes: &[u8],
        header: &OrphanHeader,
        frames: &OrphanFrames,
    ) -> Result<(), FormatError> {
        let trailer: Self = verify_block(bytes, TRAILER_MAGIC, header.crc.get())?;
        let told = OrphanFrames {
            frames: trailer.frames.get(),
            records: trailer.records.get(),
            bytes: trailer.frame_bytes.get(),
            crc: trailer.frames_crc.get(),
        };
        if told == *frames { Ok(()) } else { Err(FormatError::Length) }
    }
}

/// What the name of an orphan file says; the number tells files of the same stream and offset
/// apart.
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Debug)]
pub struct OrphanName {
    /// Stream.
    pub stream: u64,
    /// Offset of the first record.
    pub offset: u64,
    /// From 0 on.
    pub number: u64,
}

impl OrphanName {
    /// Of a finished file.
    pub fn file(&self) -> String {
        format!("{}{EXTENSION}", self.stem())
    }

    /// Of the same one while it is written.
    pub fn unfinished(&self) -> String {
        format!("{}{UNFINISHED_EXTENSION}", self.stem())
    }

    fn stem(&self) -> String {
        format!("{}-{}-{}", self.stream, self.offset, self.number)
    }

    /// Reads the name of a finished file.
    pub fn parse(name: &str) -> Option<Self> {
        Self::parse_stem(name.strip_suffix(EXTENSION)?)
    }

    /// Reads the name of a file that was not finished.
    pub fn parse_unfinished(name: &str) -> Option<Self> {
        Self::parse_stem(name.strip_suffix(UNFINISHED_EXTENSION)?)
    }

    fn parse_stem(stem: &str) -> Option<Self> {
        let mut parts = stem.split('-').map(|part| part.parse().ok());
        let (stream, offset, number) = (parts.next()??, parts.next()??, parts.next()??);
        let name = Self { stream, offset, number };
        // Signs and leading zeros are another name.
        (name.stem() == stem).then_some(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::FrameKind;

    fn facts() -> OrphanFacts {
        OrphanFacts {
            engine_id: [7; 16],
            stream: 4,
            base_offset: 10,
            end_offset: 12,
            time_ns: 99,
            leader: 2,
            epoch: 5,
            run: [1; 16],
        }
    }

    #[test]
    fn every_flipped_bit_of_header_and_trailer_is_found() {
        let header = OrphanHeader::new(&facts());
        assert_eq!(OrphanHeader::verify(header.as_bytes()).unwrap().facts(), facts());
        let mut frames = OrphanFrames::default();
        let payload = [0; 8];
        frames.add(&FrameHeader::new(FrameKind::Data, 4, 3, 10, 2, 0, &payload));
        let trailer = OrphanTrailer::new(&header, &frames);
        OrphanTrailer::verify(trailer.as_bytes(), &header, &frames).unwrap();
        let mut bytes = header.as_bytes().to_vec();
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(OrphanHeader::verify(&bytes).is_err(), "bit {bit} went unnoticed");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        let mut bytes = trailer.as_bytes().to_vec();
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(OrphanTrailer::verify(&bytes, &header, &frames).is_err(), "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        let other = OrphanHeader::new(&OrphanFacts { time_ns: 100, ..facts() });
        let of_other = OrphanTrailer::verify(trailer.as_bytes(), &other, &frames);
        assert_eq!(of_other, Err(FormatError::Checksum));
    }

    #[test]
    fn offsets_that_cannot_be_are_refused() {
        for (base_offset, end_offset) in [(5, 5), (6, 5), (0, u64::MAX)] {
            let header = OrphanHeader::new(&OrphanFacts { base_offset, end_offset, ..facts() });
            assert!(OrphanHeader::verify(header.as_bytes()).is_err());
        }
    }

    #[test]
    fn names_are_read_as_they_are_written() {
        let name = OrphanName { stream: u64::MAX, offset: 0, number: 3 };
        assert_eq!(name.file(), "18446744073709551615-0-3.orphan");
        assert_eq!(OrphanName::parse(&name.file()), Some(name));
        assert_eq!(OrphanName::parse_unfinished(&name.unfinished()), Some(name));
        for other in ["1-2.orphan", "1-2-3", "01-2-3.orphan", "+1-2-3.orphan", "1-2-3-4.orphan"] {
            assert_eq!(OrphanName::parse(other), None, "{other}");
        }
        assert_eq!(OrphanName::parse(&name.unfinished()), None);
    }
}
