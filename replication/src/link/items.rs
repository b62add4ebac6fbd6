//! What has been received and not been taken: bytes in, whole items out. No I/O.

use bytes::{Bytes, BytesMut};

use crate::wire::{Item, Message, WireError};

/// Bytes of a receive buffer.
pub(super) const CHUNK_BYTES: usize = 256 << 10;
/// Room that there is for a read, at least.
const READ_BYTES_MIN: usize = 64 << 10;
/// Longest item that shares a buffer with others; a longer one gets a buffer of its own.
const SHARED_ITEM_BYTES_MAX: usize = CHUNK_BYTES - READ_BYTES_MIN;

/// One whole item from the other side.
#[derive(Clone, Eq, PartialEq, Debug)]
pub enum Received {
    /// A data frame, header and payload. Only its header has been checked.
    Frame(Bytes),
    /// A message.
    Message(Message),
}

/// The receive buffer of one connection.
///
/// Frames are taken out without a copy, so a frame that is kept pins the buffer that it came in:
/// [`CHUNK_BYTES`], with all frames that came in the same one, or exactly its own length when it
/// is longer than [`SHARED_ITEM_BYTES_MAX`]. A short frame never pins a longer buffer than that,
/// and a buffer is left only when less than [`READ_BYTES_MIN`] of it is free. When all of its
/// frames have been dropped it is used again. Who wants to keep a few short frames for long copies
/// them.
///
/// Price: a chunk per connection, and the start of an item is copied when it crosses the end of a
/// chunk.
pub(super) struct ItemBuffer {
    bytes: BytesMut,
    /// Whether `bytes` is a chunk, or else the buffer of one long item.
    is_chunk: bool,
    /// Length of what begins at the front and is not all there; 0 when that is not known.
    wanted: usize,
    /// Whether all that is there has been looked at, so that more is needed.
    is_looked_at: bool,
}

impl ItemBuffer {
    pub(super) fn new() -> Self {
        Self { bytes: BytesMut::new(), is_chunk: false, wanted: 0, is_looked_at: true }
    }

    /// Bytes that are there.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether something is there that may be a whole item: no more is read before that is known.
    pub(super) fn is_to_be_looked_at(&self) -> bool {
        !self.is_looked_at && !self.bytes.is_empty()
    }

    /// Hands the buffer out for a read, with room behind what is in it.
    pub(super) fn take_for_read(&mut self) -> BytesMut {
        self.make_room();
        std::mem::take(&mut self.bytes)
    }

    /// Takes it back, with so many bytes more than there were.
    pub(super) fn put_back(&mut self, bytes: BytesMut, read: usize) {
        self.bytes = bytes;
        self.is_looked_at = self.is_looked_at && read == 0;
    }

    /// The next whole item. `None` when it is not all there.
    ///
    /// # Errors
    /// When there is no item, or one that is longer than its limit; nothing is allocated for it.
    pub(super) fn next_item(
        &mut self,
        frame_bytes_max: usize,
    ) -> Result<Option<Received>, WireError> {
        let item = Item::look(&self.bytes, frame_bytes_max)?;
        let Some(bytes) = self.next_bytes(item.map_or(0, Item::length)) else {
            return Ok(None);
        };
        match item {
            Some(Item::Message { .. }) => Message::decode(&bytes).map(Received::Message).map(Some),
            _ => Ok(Some(Received::Frame(bytes))),
        }
    }

    /// The next so many bytes; 0 when it is not known how many are needed.
    pub(super) fn next_bytes(&mut self, wanted: usize) -> Option<Bytes> {
        if wanted == 0 || self.bytes.len() < wanted {
            self.wanted = wanted;
            self.is_looked_at = true;
            return None;
        }
        self.wanted = 0;
        self.is_looked_at = false;
        let bytes = self.bytes.split_to(wanted).freeze();
        if !self.is_chunk && self.bytes.is_empty() {
            // Not to be pinned by what is left of it, which is nothing.
            self.bytes = BytesMut::new();
        }
        Some(bytes)
    }

    /// Room for what is wanted, and for a read that is worth its call.
    fn make_room(&mut self) {
        let free = self.bytes.capacity() - self.bytes.len();
        let missing = self.wanted.saturating_sub(self.bytes.len());
        if self.wanted > SHARED_ITEM_BYTES_MAX {
            if free < missing {
                // No byte more than it has: nothing else may come into this buffer.
                self.move_to(self.wanted, false);
            }
            return;
        }
        let needed = missing.max(READ_BYTES_MIN);
        if !(self.is_chunk && (free >= needed || self.bytes.try_reclaim(needed))) {
            self.move_to(CHUNK_BYTES, true);
        }
    }

    fn move_to(&mut self, capacity: usize, is_chunk: bool) {
        let mut bytes = BytesMut::with_capacity(capacity);
        bytes.extend_from_slice(&self.bytes);
        self.bytes = bytes;
        self.is_chunk = is_chunk;
    }
}

#[cfg(test)]
mod tests;
