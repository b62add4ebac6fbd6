//! A hasher for states, which are many small numbers: eight of them to a word, one multiplication a word.
//! The one of the standard library takes most of the time of a run.

use std::hash::Hasher;

const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

pub struct PackedHasher {
    hash: u64,
    word: u64,
    filled: u32,
}

impl PackedHasher {
    pub fn new() -> Self {
        Self { hash: 0x2545_f491_4f6c_dd1d, word: 0, filled: 0 }
    }
}

/// Both halves of the product, so that every bit of the word reaches every bit of the hash.
fn mix(hash: u64, word: u64) -> u64 {
    let product = u128::from(hash ^ word) * u128::from(FACTOR);
    (product as u64 ^ (product >> 64) as u64).rotate_left(23)
}

impl Hasher for PackedHasher {
    fn write_u8(&mut self, byte: u8) {
        self.word = self.word << 8 | u64::from(byte);
        self.filled += 1;
        if self.filled == 8 {
            self.hash = mix(self.hash, self.word);
            (self.word, self.filled) = (0, 0);
        }
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u8(*byte);
        }
    }

    /// Lengths and discriminants are small here.
    fn write_usize(&mut self, number: usize) {
        self.write_u8(number as u8);
    }

    fn write_isize(&mut self, number: isize) {
        self.write_u8(number as u8);
    }

    fn finish(&self) -> u64 {
        let last = mix(self.hash, self.word ^ u64::from(self.filled) << 56);
        mix(last, FACTOR.rotate_left(32))
    }
}
