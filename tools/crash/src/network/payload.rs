//! What records are made of: every byte follows from the seed, the stream and the number of the
//! submission, which holds the epoch that it was made in.

use crate::random::{Random, mix, payload};

/// Streams that are written.
pub const STREAMS: [u64; 6] = [0, 10, 11, 12, 13, 4000];
/// Bits of a submission's number below its epoch.
const EPOCH_SHIFT: u32 = 32;

/// The number of the `count`th submission of an epoch in a stream.
pub fn number(epoch: u64, count: u64) -> u64 {
    (epoch << EPOCH_SHIFT) | count
}

/// The epoch of a submission, and its place among those of its stream.
pub fn parts(number: u64) -> (u64, u64) {
    (number >> EPOCH_SHIFT, number & ((1 << EPOCH_SHIFT) - 1))
}

/// The record of a submission: its number, then noise.
pub fn record(seed: u64, stream: u64, number: u64) -> Vec<u8> {
    let seed = mix(seed ^ mix(stream));
    let mut random = Random::with_purpose(seed, number);
    let length =
        if random.one_in(200) { 4000 + random.below(12_000) } else { 8 + random.below(500) };
    payload(seed, number, length as usize)
}

/// Which submission a record is; an error when it is none as [`record`] makes them.
pub fn recognise(seed: u64, stream: u64, bytes: &[u8]) -> Result<u64, String> {
    let head = bytes.first_chunk::<8>().ok_or_else(|| format!("{} bytes only", bytes.len()))?;
    let number = u64::from_le_bytes(*head);
    if record(seed, stream, number) != bytes {
        return Err(format!("its bytes are not those of submission {number:#x}"));
    }
    Ok(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_recognised_and_no_other() {
        let mut bytes = record(7, 10, number(3, 9));
        assert_eq!(recognise(7, 10, &bytes), Ok(number(3, 9)));
        assert_eq!(parts(number(3, 9)), (3, 9));
        assert!(recognise(8, 10, &bytes).is_err());
        assert!(recognise(7, 11, &bytes).is_err());
        assert!(recognise(7, 10, &bytes[..7]).is_err());
        *bytes.last_mut().unwrap() ^= 1;
        assert!(recognise(7, 10, &bytes).is_err());
    }
}
