//! Reads the places of a segment where a batch can be, one after the other.

use std::io;
use std::ops::Range;

use crate::disk::{BLOCK_BYTES, BufferMut, FileId, ReadAt, block_round_up};
use crate::format::{BatchHeader, SegmentSeed};
use crate::scan::{Found, look};

/// Bytes of one read.
const CHUNK_BYTES: usize = 1 << 20;

/// One life of a segment file.
#[derive(Copy, Clone)]
pub(super) struct Source<'a> {
    pub(super) reader: &'a dyn ReadAt,
    pub(super) file: FileId,
    pub(super) seed: SegmentSeed,
    pub(super) generation: u64,
}

/// What is at a place.
pub(super) struct Place<'a> {
    pub(super) offset: u64,
    /// The batch with its padding; one block where there is none.
    pub(super) bytes: &'a [u8],
    pub(super) found: Found,
}

impl Source<'_> {
    /// Calls `each` for every place of `range`; it says whether to go on. The file may end earlier:
    /// what is not there is one place without bytes.
    pub(super) fn places(
        &self,
        range: Range<u64>,
        mut each: impl FnMut(Place<'_>) -> bool,
    ) -> io::Result<()> {
        let mut buffer = BufferMut::allocate(0);
        let (mut position, mut wanted) = (range.start, CHUNK_BYTES);
        while position + BLOCK_BYTES as u64 <= range.end {
            let left = range.end - position;
            let length = block_round_up((wanted as u64).min(left) as usize);
            if buffer.len() < length {
                buffer = BufferMut::allocate(length);
            }
            let read = self.reader.read_at(self.file, position, &mut buffer, length)?;
            let read = (read as u64).min(left) as usize;
            let all = read as u64 == left || read < length;
            let mut used = 0;
            wanted = CHUNK_BYTES;
            while read - used >= BLOCK_BYTES {
                let (rest, offset) = (&buffer[used..read], position + used as u64);
                let found = look(rest, all, self.seed, self.generation, offset);
                let step = match &found {
                    Found::NeedBytes => {
                        wanted = self.batch_bytes(rest, offset).max(CHUNK_BYTES);
                        break;
                    }
                    Found::Batch(batch) => batch.header.padded_length(),
                    Found::Damaged(header) => header.padded_length().min(rest.len()),
                    Found::Nothing => BLOCK_BYTES,
                };
                if !each(Place { offset, bytes: &rest[..step], found }) {
                    return Ok(());
                }
                used += step;
            }
            position += used as u64;
            if used == 0 && all {
                each(Place { offset: position, bytes: &[], found: Found::Nothing });
                return Ok(());
            }
        }
        Ok(())
    }

    fn batch_bytes(&self, bytes: &[u8], offset: u64) -> usize {
        BatchHeader::verify(bytes, self.seed, offset).map_or(0, |header| header.padded_length())
    }
}
