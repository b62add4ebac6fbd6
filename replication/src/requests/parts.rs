//! Requests and replies in parts, as they travel.

use bytes::{Bytes, BytesMut};

use super::REQUEST_BYTES_MAX;
use crate::wire::{Message, Part};

/// Parts that have come of what is not whole yet.
#[derive(Default)]
pub(crate) struct Coming {
    number: u64,
    bytes: BytesMut,
    has_begun: bool,
}

impl Coming {
    /// The whole, with its last part.
    pub(crate) fn take(&mut self, part: Part) -> Result<Option<(u64, Bytes)>, String> {
        let Part { number, is_last, bytes } = part;
        if self.has_begun && self.number != number {
            return Err(format!("a part of {number} between those of {}", self.number));
        }
        if self.bytes.len() + bytes.len() > REQUEST_BYTES_MAX {
            return Err(format!("more than {REQUEST_BYTES_MAX} bytes in one"));
        }
        if is_last && !self.has_begun {
            return Ok(Some((number, bytes)));
        }
        (self.number, self.has_begun) = (number, !is_last);
        self.bytes.extend_from_slice(&bytes);
        Ok(is_last.then(|| (number, std::mem::take(&mut self.bytes).freeze())))
    }
}

/// Parts in bytes.
pub(crate) fn encode(number: u64, bytes: &Bytes, message: fn(Part) -> Message) -> Vec<Bytes> {
    Part::of(number, bytes).map(|part| Bytes::from(message(part).encode())).collect()
}
