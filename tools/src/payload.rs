//! Bytes that do not compress and can be checked: every record follows from the seed, its stream
//! and its offset.

/// Odd constant of the splitmix64 generator.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// Fills `bytes` with noise.
///
/// A counter-based splitmix64: about 12 ns for 128 bytes, the words independent of each other.
pub fn fill(bytes: &mut [u8], seed: u64) {
    let mut state = mix(seed);
    let mut words = bytes.chunks_exact_mut(8);
    for word in &mut words {
        state = state.wrapping_add(GOLDEN);
        word.copy_from_slice(&mix(state).to_le_bytes());
    }
    let rest = words.into_remainder();
    let last = mix(state.wrapping_add(GOLDEN)).to_le_bytes();
    let length = rest.len();
    rest.copy_from_slice(&last[..length]);
}

/// Records whose noise comes round again after so many; the stamp at their start does not.
const PERIOD: usize = 64;

/// The records of one stream, a few at a time in memory.
///
/// Making one costs a stamp of 8 bytes, however long it is: what is measured is the engine, and the
/// bare writer beside it makes nothing either.
pub struct Records {
    seed: u64,
    stream: u64,
    record_bytes: usize,
    noise: Vec<u8>,
    slots: u64,
}

impl Records {
    /// Records of `record_bytes` each, of which `together` can be in memory at once.
    pub fn new(seed: u64, stream: u64, record_bytes: usize, together: usize) -> Records {
        let slots = together.next_multiple_of(PERIOD);
        let mut noise = vec![0; slots * record_bytes];
        for (slot, record) in noise.chunks_mut(record_bytes.max(1)).enumerate() {
            let index = (slot % PERIOD) as u64;
            fill(record, mix(seed ^ mix(stream ^ mix(index))));
        }
        Records { seed, stream, record_bytes, noise, slots: slots as u64 }
    }

    /// The same records, `together` of them in memory at once.
    pub fn with_room_for(self, together: usize) -> Records {
        Records::new(self.seed, self.stream, self.record_bytes, together)
    }

    /// Makes record `offset`; one made as many records ago as fit in memory is gone.
    pub fn make(&mut self, offset: u64) -> &[u8] {
        let at = self.position(offset);
        let record = &mut self.noise[at..at + self.record_bytes];
        let stamp = mix(self.seed ^ mix(self.stream.rotate_left(32) ^ offset)).to_le_bytes();
        let length = record.len().min(stamp.len());
        record[..length].copy_from_slice(&stamp[..length]);
        record
    }

    /// Record `offset`, which has been made.
    pub fn made(&self, offset: u64) -> &[u8] {
        let at = self.position(offset);
        &self.noise[at..at + self.record_bytes]
    }

    fn position(&self, offset: u64) -> usize {
        (offset % self.slots) as usize * self.record_bytes
    }
}

/// The finaliser of splitmix64.
pub fn mix(value: u64) -> u64 {
    let mut mixed = value;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(length: usize, seed: u64, stream: u64, offset: u64) -> Vec<u8> {
        Records::new(seed, stream, length, 1).make(offset).to_vec()
    }

    #[test]
    fn a_record_follows_from_seed_stream_and_offset_alone() {
        assert_eq!(record(128, 1, 2, 3), record(128, 1, 2, 3));
        assert_ne!(record(128, 1, 2, 3), record(128, 1, 2, 4));
        assert_ne!(record(128, 1, 2, 3), record(128, 1, 2, 3 + PERIOD as u64));
        assert_ne!(record(128, 1, 2, 3), record(128, 1, 3, 2));
        assert_ne!(record(128, 1, 2, 3), record(128, 2, 2, 3));
        assert!(record(0, 1, 2, 3).is_empty());
        assert_eq!(record(3, 1, 2, 3).len(), 3);
    }

    #[test]
    fn records_made_together_are_those_made_one_by_one() {
        let mut together = Records::new(1, 2, 24, 1000);
        (5000..6000).for_each(|offset| {
            together.make(offset);
        });
        for offset in 5000..6000 {
            assert_eq!(together.made(offset), record(24, 1, 2, offset));
        }
    }

    #[test]
    fn noise_holds_every_byte_about_as_often() {
        let mut noise = vec![0; 256 * 1000];
        fill(&mut noise, 7);
        let mut counts = [0_u32; 256];
        noise.iter().for_each(|&byte| counts[usize::from(byte)] += 1);
        assert!(counts.iter().all(|&count| (800..1200).contains(&count)), "{counts:?}");
    }
}
