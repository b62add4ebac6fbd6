//! The receive buffer of a connection, for fuzzing. Nobody else may use it.

use super::items::{ItemBuffer, Received};
use crate::wire::WireError;

/// What comes out when bytes come in reads of so many each: the items, and what ended them. What is
/// left over at the end is a part of an item.
pub fn receive(
    mut bytes: &[u8],
    frame_bytes_max: usize,
    mut read_bytes: impl FnMut() -> usize,
) -> (Vec<Received>, Option<WireError>) {
    let (mut buffer, mut items) = (ItemBuffer::new(), Vec::new());
    while !bytes.is_empty() {
        let mut room = buffer.take_for_read();
        let free = room.capacity() - room.len();
        let (read, rest) = bytes.split_at(read_bytes().clamp(1, bytes.len().min(free)));
        room.extend_from_slice(read);
        buffer.put_back(room, read.len());
        bytes = rest;
        loop {
            match buffer.next_item(frame_bytes_max) {
                Ok(Some(item)) => items.push(item),
                Ok(None) => break,
                Err(error) => return (items, Some(error)),
            }
        }
    }
    (items, None)
}
