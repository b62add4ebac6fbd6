//! Memory that direct I/O accepts, without unsafe code.

use std::fmt;

/// What every device accepts as an alignment.
const ALIGNMENT: usize = 4096;

/// Bytes that begin at a page.
pub struct AlignedBuffer {
    storage: Vec<u8>,
    start: usize,
    length: usize,
}

impl AlignedBuffer {
    /// `length` bytes that do not compress.
    pub fn filled(length: usize, seed: u64) -> AlignedBuffer {
        let mut storage = vec![0; length + ALIGNMENT];
        let address = storage.as_ptr().addr();
        let start = address.next_multiple_of(ALIGNMENT) - address;
        crate::payload::fill(&mut storage[start..start + length], seed);
        AlignedBuffer { storage, start, length }
    }

    /// The bytes, to be read into.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.storage[self.start..self.start + self.length]
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.storage[self.start..self.start + self.length]
    }
}

impl fmt::Debug for AlignedBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AlignedBuffer({} bytes)", self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_begins_at_a_page() {
        let buffer = AlignedBuffer::filled(8192, 1);
        assert_eq!(buffer.bytes().as_ptr().addr() % ALIGNMENT, 0);
        assert_eq!(buffer.bytes().len(), 8192);
    }
}
