//! What every record holds: derived from the seed, the life that wrote it, its stream and its
//! offset, so that each byte of what comes back can be checked.

use crate::random::Random;

/// The bytes of one record.
pub fn payload(seed: u64, life: u32, stream: u64, offset: u64) -> Vec<u8> {
    let place = stream << 40 ^ u64::from(life) << 24 ^ offset.wrapping_mul(0x1_0000_0001);
    let mut random = Random::with_purpose(seed, place);
    let length = match random.below(100) {
        0..70 => 20 + random.below(600),
        70..95 => 1_000 + random.below(7_000),
        _ => 20_000 + random.below(40_000),
    };
    let mut bytes = Vec::with_capacity(length as usize + 8);
    for word in [offset, stream, u64::from(life)] {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    while bytes.len() < length as usize {
        bytes.extend_from_slice(&random.next().to_le_bytes());
    }
    bytes.truncate((length as usize).max(20));
    bytes
}

/// Says what a wrong record looks like.
pub fn difference(found: &[u8], expected: &[u8]) -> String {
    let word = |at: usize| {
        let bytes = found.get(at * 8..at * 8 + 8).and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, u64::from_le_bytes)
    };
    let first = found.iter().zip(expected).take_while(|(found, expected)| found == expected);
    format!(
        "{} bytes, {} expected, different from byte {} on (it says offset {}, stream {}, life {})",
        found.len(),
        expected.len(),
        first.count(),
        word(0),
        word(1),
        word(2)
    )
}
