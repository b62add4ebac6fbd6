//! Records that follow from client and sequence number alone, and are not worth compressing.

use std::sync::LazyLock;

/// Bytes of noise that records are cut from: so many that pieces rarely overlap within what a compressor
/// remembers, so few that they stay in a processor's cache.
const NOISE_BYTES: usize = 1 << 20;

/// Shared by all clients.
static NOISE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    (0..NOISE_BYTES / 8).flat_map(|_| next_random(&mut state).to_le_bytes()).collect()
});

/// The records of one client, several at a time.
pub struct Records {
    client: u32,
    record_bytes: usize,
    noise: &'static [u8],
    buffer: Vec<u8>,
    next: u64,
}

impl Records {
    /// Records of `record_bytes`, at least 16, `together` at a time.
    pub fn new(client: u32, record_bytes: usize, together: usize) -> Records {
        assert!(record_bytes >= 16, "a record holds its client and number");
        let buffer = vec![0; record_bytes * together];
        Records { client, record_bytes, noise: &NOISE, buffer, next: 0 }
    }

    /// The next record.
    pub fn next(&mut self) -> &[u8] {
        self.make(0);
        &self.buffer[..self.record_bytes]
    }

    /// The next records together.
    pub fn next_batch(&mut self) -> Vec<&[u8]> {
        for index in 0..self.buffer.len() / self.record_bytes {
            self.make(index);
        }
        self.buffer.chunks(self.record_bytes).collect()
    }

    /// A sequence number, the client, and a piece of noise that depends on both.
    fn make(&mut self, index: usize) {
        let sequence = self.next;
        self.next += 1;
        let record = &mut self.buffer[index * self.record_bytes..][..self.record_bytes];
        record[..8].copy_from_slice(&sequence.to_le_bytes());
        record[8..12].copy_from_slice(&self.client.to_le_bytes());
        let mut state = sequence ^ u64::from(self.client) << 32 | 1 << 63;
        let room = self.noise.len() - self.record_bytes;
        let at = next_random(&mut state) as usize % room;
        record[12..].copy_from_slice(&self.noise[at..at + self.record_bytes - 12]);
    }
}

/// Marsaglia's xorshift64, multiplied.
fn next_random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    state.wrapping_mul(0x2545_f491_4f6c_dd1d)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_follow_from_client_and_number() {
        let mut one = Records::new(3, 128, 1);
        let mut together = Records::new(3, 128, 10);
        for record in together.next_batch() {
            assert_eq!(record, one.next());
        }
        assert_eq!(one.next().first_chunk().copied().map(u64::from_le_bytes), Some(10));
        assert_ne!(Records::new(4, 128, 1).next(), Records::new(3, 128, 1).next());
    }
}
