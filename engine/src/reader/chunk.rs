//! How much of a segment is read at once, and what is kept of it for the frames that follow.

use std::ops::Range;

use bytes::Bytes;

use super::{Broken, READ_AHEAD_BYTES_MAX, READ_GAP_BYTES, Reader};
use crate::disk::{BLOCK_BYTES, Buffer, BufferMut, block_round_down, block_round_up};
use crate::index::{Entry, Location};

/// A part of a segment that was read.
#[derive(Debug)]
pub(super) struct Chunk {
    generation: u64,
    from: u64,
    buffer: Buffer,
    bytes: Bytes,
}

impl Chunk {
    pub(super) fn new(generation: u64, from: u64, buffer: BufferMut, length: usize) -> Self {
        let buffer = buffer.freeze();
        let bytes = buffer.to_bytes().slice(..length);
        Self { generation, from, buffer, bytes }
    }

    fn end(&self) -> u64 {
        self.from + self.bytes.len() as u64
    }

    /// Its buffer, when nobody keeps a record of it.
    fn into_spare(self) -> Option<BufferMut> {
        drop(self.bytes);
        self.buffer.into_mut()
    }
}

/// Room for `length` bytes: what there is to spare, when it is not one that a long frame had needed.
pub(super) fn buffer_for(length: usize, spare: Option<BufferMut>) -> BufferMut {
    let lengths = length..=2 * length.max(READ_AHEAD_BYTES_MAX as usize);
    spare
        .filter(|buffer| lengths.contains(&buffer.len()))
        .unwrap_or_else(|| BufferMut::allocate(length))
}

impl Reader {
    /// Bytes from `position` on, at least `wanted` of them where the segment has them.
    pub(super) fn chunk_at(
        &mut self,
        location: &Location,
        position: u64,
        wanted: usize,
    ) -> Result<Bytes, Broken> {
        if let Some(chunk) = &self.chunk
            && chunk.generation == location.generation
            && chunk.from <= position
            && position + wanted as u64 <= chunk.end()
        {
            return Ok(chunk.bytes.slice((position - chunk.from) as usize..));
        }
        let (last, from) = (self.chunk.take(), block_round_down(position));
        let goes_on = last.as_ref().is_some_and(|chunk| {
            chunk.generation == location.generation && chunk.from < from && from <= chunk.end()
        });
        if goes_on && self.read_ahead_bytes < READ_AHEAD_BYTES_MAX {
            self.read_ahead_bytes *= 2;
        }
        let mut spare = last.and_then(Chunk::into_spare);
        let needed = position..position + wanted as u64;
        let next = self.next_chunk.take(&self.shared, location.generation, needed.clone());
        let chunk = match next {
            Some(chunk) => chunk,
            None => {
                let length = self.chunk_length(needed, self.entries.iter());
                let buffer = buffer_for(length, spare.take());
                let (buffer, read) = self.read_into(buffer, location, from, length)?;
                Chunk::new(location.generation, from, buffer, read)
            }
        };
        if goes_on && self.read_ahead_bytes == READ_AHEAD_BYTES_MAX {
            self.begin_next_chunk(location, chunk.end(), spare);
        }
        let skip = (position - chunk.from) as usize;
        let bytes = chunk.bytes.slice(skip.min(chunk.bytes.len())..);
        self.chunk = Some(chunk);
        Ok(bytes)
    }

    /// Begins to read the chunk behind `end`, with the first frame that may not be whole before it.
    fn begin_next_chunk(&mut self, location: &Location, end: u64, spare: Option<BufferMut>) {
        let is_behind = |entry: &Entry| u64::from(entry.position) + self.frame_guess() > end;
        let Some(first) = self.entries.iter().position(is_behind) else { return };
        let position = u64::from(self.entries[first].position);
        // An entry of a sealed segment comes from the device: a damaged one leads anywhere.
        if position >= self.shared.segment_bytes {
            return;
        }
        let length = self.chunk_length(position..position, self.entries.range(first..));
        let from = block_round_down(position);
        self.next_chunk.begin(&self.shared, location, from, length, spare);
    }

    /// How many bytes to read, from the block on where `needed` starts, for these and for the frames of `entries`
    /// that follow closely.
    fn chunk_length<'a>(
        &self,
        needed: Range<u64>,
        entries: impl Iterator<Item = &'a Entry>,
    ) -> usize {
        let from = block_round_down(needed.start);
        let left = (self.shared.segment_bytes - from) as usize;
        let end = self.read_ahead_until(needed, entries);
        block_round_up((end - from) as usize).min(left)
    }

    /// How far to read for the frame at the start of `needed`: over those that follow closely, taking each
    /// to be as long as the last.
    fn read_ahead_until<'a>(
        &self,
        needed: Range<u64>,
        entries: impl Iterator<Item = &'a Entry>,
    ) -> u64 {
        let (position, guess) = (needed.start, self.frame_guess());
        let mut end = needed.end.max(position + guess);
        for entry in entries {
            let next = u64::from(entry.position);
            let is_enough = end > position + self.read_ahead_bytes;
            if next < position || next > end + READ_GAP_BYTES || is_enough {
                break;
            }
            end = end.max(next + guess);
        }
        end
    }

    fn frame_guess(&self) -> u64 {
        self.frame_bytes.max(BLOCK_BYTES) as u64
    }
}
