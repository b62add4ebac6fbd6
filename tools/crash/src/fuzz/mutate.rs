//! Mutations of bytes, and the checksums afterwards.

use ringwal_engine::format::{
    BATCH_HEADER_BYTES, FRAME_HEADER_BYTES, FrameHeader, ORPHAN_HEADER_BYTES, ORPHAN_TRAILER_BYTES,
    OrphanFrames,
};

use crate::random::Random;

const INTERESTING: [u64; 22] = [
    0,
    1,
    2,
    3,
    7,
    63,
    64,
    127,
    128,
    512,
    4095,
    4096,
    8192,
    65_535,
    65_536,
    i32::MAX as u64,
    u32::MAX as u64,
    1 << 32,
    i64::MAX as u64,
    1 << 63,
    u64::MAX - 1,
    u64::MAX,
];

/// Bytes on disk are bound to their place by this.
#[derive(Clone, Copy, Debug, Default)]
pub struct Life {
    pub engine_id: [u8; 16],
    pub number: u64,
    pub generation: u64,
}

impl Life {
    /// What the checksum of something at `offset` starts with.
    pub fn at(&self, offset: u64) -> u32 {
        let mut crc = crc32c::crc32c(&self.engine_id);
        for word in [self.number, self.generation, offset] {
            crc = crc32c::crc32c_append(crc, &word.to_le_bytes());
        }
        crc
    }
}

/// Changes a few things, also the length.
pub fn mutate(random: &mut Random, bytes: &mut Vec<u8>, other: &[u8]) {
    for _ in 0..1 + random.below(3) {
        match random.below(12) {
            0 => bytes.truncate(random.below(bytes.len() as u64 + 1) as usize),
            1 => {
                // A part once more.
                let (from, length) = range(random, bytes.len(), 128);
                let part = bytes[from..from + length].to_vec();
                let at = random.below(bytes.len() as u64 + 1) as usize;
                bytes.splice(at..at, part);
            }
            _ => mutate_in_place(random, bytes, other),
        }
    }
}

/// Changes something; the length stays.
pub fn mutate_in_place(random: &mut Random, bytes: &mut [u8], other: &[u8]) {
    if bytes.is_empty() {
        return;
    }
    let length = bytes.len() as u64;
    match random.below(10) {
        0 | 1 => bytes[random.below(length) as usize] ^= 1 << random.below(8),
        2 => bytes[random.below(length) as usize] = random.next() as u8,
        3..7 => {
            // An integer, mostly where one can be.
            let width = [1, 2, 4, 4, 8, 8][random.below(6) as usize];
            let at = random.below(length) as usize;
            let at = if random.one_in(8) { at } else { at / width * width };
            let Some(field) = bytes.get_mut(at..at + width) else { return };
            let mut word = [0; 8];
            word[..width].copy_from_slice(field);
            let was = u64::from_le_bytes(word);
            let value = match random.below(4) {
                0 => was.wrapping_add(1 + random.below(64)),
                1 => was.wrapping_sub(1 + random.below(64)),
                _ => INTERESTING[random.below(INTERESTING.len() as u64) as usize],
            };
            field.copy_from_slice(&value.to_le_bytes()[..width]);
        }
        7 => {
            // Something of another input, in the same or in another place.
            let (from, length) = range(random, other.len(), 96);
            let at = if random.one_in(2) { from } else { random.below(length as u64 + 1) as usize };
            if let Some(into) = bytes.get_mut(at..at + length) {
                into.copy_from_slice(&other[from..from + length]);
            }
        }
        8 => {
            let (from, length) = range(random, bytes.len(), 64);
            bytes[from..from + length].fill(if random.one_in(2) { 0 } else { 0xFF });
        }
        _ => {
            // Two words change places.
            let words = bytes.len() / 8;
            if words > 1 {
                let (one, two) = (random.below(words as u64), random.below(words as u64));
                for byte in 0..8 {
                    bytes.swap(one as usize * 8 + byte, two as usize * 8 + byte);
                }
            }
        }
    }
}

fn range(random: &mut Random, within: usize, most: u64) -> (usize, usize) {
    let length = random.below(most.min(within as u64) + 1) as usize;
    (random.below((within - length) as u64 + 1) as usize, length)
}

/// The checksum at byte 8, of what follows it.
pub fn fix_block(bytes: &mut [u8], length: usize, seed: u32) {
    if let Some(block) = bytes.get_mut(..length) {
        let crc = crc32c::crc32c_append(seed, &block[12..]);
        block[8..12].copy_from_slice(&crc.to_le_bytes());
    }
}

/// Both checksums of a frame; how long it says it is.
pub fn fix_frame(bytes: &mut [u8]) -> Option<usize> {
    let length = u32::from_le_bytes(bytes.get(44..48)?.try_into().ok()?) as usize;
    let length = FRAME_HEADER_BYTES.checked_add(length)?;
    if let Some(payload) = bytes.get(FRAME_HEADER_BYTES..length) {
        let crc = crc32c::crc32c(payload);
        bytes[48..52].copy_from_slice(&crc.to_le_bytes());
    }
    let header = bytes.get_mut(..FRAME_HEADER_BYTES)?;
    let crc = crc32c::crc32c_append(crc32c::crc32c(&header[8..]), &header[..4]);
    header[4..8].copy_from_slice(&crc.to_le_bytes());
    Some(length)
}

/// All checksums of an orphan file, and the counts in its trailer, as far as its lengths lead.
pub fn fix_orphan(bytes: &mut [u8]) {
    fix_block(bytes, ORPHAN_HEADER_BYTES, 0);
    let until = bytes.len().saturating_sub(ORPHAN_TRAILER_BYTES);
    let (mut at, mut counted) = (ORPHAN_HEADER_BYTES, OrphanFrames::default());
    while let Some(frame) = bytes.get_mut(at..until).filter(|rest| !rest.is_empty()) {
        let Some(length) = fix_frame(frame) else { break };
        let Ok((header, _)) = FrameHeader::verify(frame) else { break };
        counted.add(&header);
        at = at.saturating_add(length);
    }
    if at != until {
        return;
    }
    let (before, trailer) = bytes.split_at_mut(until);
    trailer[12..16].copy_from_slice(&counted.crc.to_le_bytes());
    for (at, count) in [(16, counted.frames), (24, counted.records), (32, counted.bytes)] {
        trailer[at..at + 8].copy_from_slice(&count.to_le_bytes());
    }
    let seed = u32::from_le_bytes([before[8], before[9], before[10], before[11]]);
    fix_block(trailer, ORPHAN_TRAILER_BYTES, seed);
}

/// All checksums of a batch, as far as its lengths lead.
pub fn fix_batch(bytes: &mut [u8], seed: u32) {
    let Some(header) = bytes.get(..BATCH_HEADER_BYTES) else { return };
    let frames = u32::from_le_bytes(header[52..56].try_into().unwrap_or_default());
    let (mut at, mut frames_crc) = (BATCH_HEADER_BYTES, 0);
    for _ in 0..frames {
        let Some(frame) = bytes.get_mut(at..) else { break };
        let Some(length) = fix_frame(frame) else { break };
        frames_crc = crc32c::crc32c_append(frames_crc, &frame[..FRAME_HEADER_BYTES]);
        let Some(next) = at.checked_add(length) else { break };
        at = next;
    }
    bytes[44..48].copy_from_slice(&frames_crc.to_le_bytes());
    let crc = crc32c::crc32c_append(seed, &bytes[8..BATCH_HEADER_BYTES]);
    bytes[4..8].copy_from_slice(&crc.to_le_bytes());
}
