//! A state as bytes, and back. Equal states give equal bytes.
//!
//! ```text
//!  0   4  "RWMS"
//!  4   2  format version: 1
//!  6   2  zeroes
//!  8   4  CRC32C of the bytes before
//! 12      chunks: length 4, CRC32C 4, items; the last has length 0
//! ```
//!
//! The checksum of a chunk goes on from that of the one before (of the header, for the first), over
//! the length and then the items: a chunk that is missing, moved or of another snapshot does not
//! pass. A length is compared with [`CHUNK_BYTES_MAX`] before anything is allocated, and no chunk is
//! looked into before its checksum was right. The items are in `snapshot/items.rs`.
//!
//! Both directions take a piece at a time. Behind the last chunk nothing is read.

mod items;

use std::io::{self, ErrorKind, Read, Write};

use crate::command::DecodeError;
use crate::limits::METADATA_VERSION;
use crate::state::State;

/// The format that this build writes, and the newest that it reads.
pub const FORMAT_VERSION: u16 = 1;

/// Longest chunk, in bytes.
pub const CHUNK_BYTES_MAX: usize = 1 << 20;

const MAGIC: [u8; 4] = *b"RWMS";
const HEADER_BYTES: usize = 12;
/// Beyond this a chunk is ended; one more item always fits.
const CHUNK_BYTES: usize = 64 << 10;

/// Why bytes give no state.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// They cannot be read.
    #[error("the snapshot cannot be read: {0}")]
    Io(#[from] io::Error),
    /// They end before the snapshot does.
    #[error("the snapshot ends in chunk {chunk}: take another one")]
    Short {
        /// In which chunk, from 1 on; 0 is the header.
        chunk: u64,
    },
    /// They are something else.
    #[error("no metadata snapshot: it begins with {0:02x?}")]
    Magic([u8; 4]),
    /// Another build wrote them, most likely a newer one.
    #[error(
        "the snapshot has format {found}, and this build reads {known}: run the version that wrote it"
    )]
    Format {
        /// Its format.
        found: u16,
        /// The one that is known here.
        known: u16,
    },
    /// The state is beyond this build.
    #[error(
        "the snapshot has metadata version {found}, and this build knows {METADATA_VERSION}: run a newer one"
    )]
    NewerVersion {
        /// Its metadata version.
        found: u32,
    },
    /// They are not as they were written.
    #[error("the snapshot is damaged: the checksum of chunk {chunk} is wrong; take another one")]
    Checksum {
        /// In which chunk, from 1 on; 0 is the header.
        chunk: u64,
    },
    /// A length beyond its limit.
    #[error("the snapshot is damaged: chunk {chunk} has {length} bytes, {CHUNK_BYTES_MAX} at most")]
    TooLong {
        /// Which chunk.
        chunk: u64,
        /// Its length.
        length: usize,
    },
    /// The checksums are right, and what is there cannot be.
    #[error("the snapshot makes no sense in chunk {chunk}: {error}")]
    Content {
        /// In which chunk.
        chunk: u64,
        /// What is wrong.
        error: DecodeError,
    },
}

/// Writes all of a state, a chunk at a time.
///
/// # Errors
/// The writer's.
pub fn write(state: &State, writer: &mut impl Write) -> io::Result<()> {
    let mut header = [0; HEADER_BYTES];
    header[..4].copy_from_slice(&MAGIC);
    header[4..6].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    let crc = crc32c::crc32c(&header[..8]);
    header[8..].copy_from_slice(&crc.to_le_bytes());
    writer.write_all(&header)?;
    let mut chunks = Chunks { writer, crc, bytes: Vec::with_capacity(CHUNK_BYTES * 2) };
    items::write(state, &mut |put| chunks.item(put))?;
    if !chunks.bytes.is_empty() {
        chunks.end_chunk()?;
    }
    chunks.end_chunk()
}

struct Chunks<'a, W> {
    writer: &'a mut W,
    /// Of the chunk before.
    crc: u32,
    bytes: Vec<u8>,
}

impl<W: Write> Chunks<'_, W> {
    fn item(&mut self, put: &dyn Fn(&mut Vec<u8>)) -> io::Result<()> {
        put(&mut self.bytes);
        if self.bytes.len() >= CHUNK_BYTES { self.end_chunk() } else { Ok(()) }
    }

    fn end_chunk(&mut self) -> io::Result<()> {
        assert!(self.bytes.len() <= CHUNK_BYTES_MAX, "a chunk of {} bytes", self.bytes.len());
        let length = u32::try_from(self.bytes.len()).expect("chunks are short").to_le_bytes();
        self.crc = chunk_crc(self.crc, length, &self.bytes);
        self.writer.write_all(&length)?;
        self.writer.write_all(&self.crc.to_le_bytes())?;
        self.writer.write_all(&self.bytes)?;
        self.bytes.clear();
        Ok(())
    }
}

fn chunk_crc(before: u32, length: [u8; 4], bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(before, &length), bytes)
}

/// Reads a state, a chunk at a time.
///
/// # Errors
/// Why there is none; then nothing of it may be used.
pub fn read(reader: &mut impl Read) -> Result<State, SnapshotError> {
    let mut header = [0; HEADER_BYTES];
    fill(reader, &mut header, 0)?;
    let [magic, version, crc] = [0, 4, 8].map(|at| word(&header, at));
    if magic != MAGIC {
        return Err(SnapshotError::Magic(magic));
    }
    let mut crc = u32::from_le_bytes(crc);
    if crc32c::crc32c(&header[..8]) != crc {
        return Err(SnapshotError::Checksum { chunk: 0 });
    }
    let found = u16::from_le_bytes([version[0], version[1]]);
    if found != FORMAT_VERSION {
        return Err(SnapshotError::Format { found, known: FORMAT_VERSION });
    }
    let mut items = items::Building::default();
    let mut bytes = Vec::new();
    for chunk in 1.. {
        let mut start = [0; 8];
        fill(reader, &mut start, chunk)?;
        let [length_bytes, said] = [0, 4].map(|at| word(&start, at));
        let length = u32::from_le_bytes(length_bytes) as usize;
        if length > CHUNK_BYTES_MAX {
            return Err(SnapshotError::TooLong { chunk, length });
        }
        bytes.resize(length, 0);
        fill(reader, &mut bytes, chunk)?;
        crc = chunk_crc(crc, length_bytes, &bytes);
        if crc != u32::from_le_bytes(said) {
            return Err(SnapshotError::Checksum { chunk });
        }
        if length == 0 {
            let content = |error| SnapshotError::Content { chunk, error };
            return items.finish().map_err(content);
        }
        items.read(&bytes).map_err(|error| match error {
            items::ItemError::NewerVersion(found) => SnapshotError::NewerVersion { found },
            items::ItemError::Content(error) => SnapshotError::Content { chunk, error },
        })?;
    }
    unreachable!("chunks are counted in 64 bits")
}

fn word(bytes: &[u8], at: usize) -> [u8; 4] {
    bytes[at..at + 4].try_into().expect("four bytes")
}

fn fill(reader: &mut impl Read, bytes: &mut [u8], chunk: u64) -> Result<(), SnapshotError> {
    reader.read_exact(bytes).map_err(|error| match error.kind() {
        ErrorKind::UnexpectedEof => SnapshotError::Short { chunk },
        _ => SnapshotError::Io(error),
    })
}

#[cfg(test)]
mod tests;
