//! A file of the simulated device: what readers see, and what a power cut leaves.

use super::happened::Happened;
use super::random::Random;

/// The unit that a power cut keeps or loses.
pub(super) const SECTOR_BYTES: usize = 512;

/// A completed write that no flush has covered.
#[derive(Clone, Debug)]
struct Pending {
    sequence: u64,
    offset: usize,
    bytes: Vec<u8>,
}

/// The bytes of one file, twice. Both are always equally long.
#[derive(Clone, Debug, Default)]
pub(super) struct Inode {
    view: Vec<u8>,
    durable: Vec<u8>,
    /// The length after a power cut, at the least.
    durable_length: usize,
    /// In the order of their completion.
    pending: Vec<Pending>,
}

/// What a power cut does to one write.
#[derive(Copy, Clone, Debug)]
pub(super) enum Fate {
    Lost,
    Whole,
    /// Sectors from the start up to some point.
    Prefix,
    /// Any sectors.
    Sectors,
    /// Any sectors, and one that was being written is neither as before nor as after.
    Shorn,
}

impl Fate {
    pub fn draw(random: &mut Random) -> Self {
        match random.below(9) {
            0 | 1 => Self::Lost,
            2 | 3 => Self::Whole,
            4 | 5 => Self::Prefix,
            6 | 7 => Self::Sectors,
            _ => Self::Shorn,
        }
    }
}

impl Fate {
    fn count(self, happened: &mut Happened) {
        happened.torn_writes += u64::from(!matches!(self, Self::Lost | Self::Whole));
        happened.shorn_sectors += u64::from(matches!(self, Self::Shorn));
    }
}

impl Inode {
    pub fn length(&self) -> usize {
        self.view.len()
    }

    pub fn view(&self) -> &[u8] {
        &self.view
    }

    /// What would be there after a power cut that loses all that it may lose.
    pub fn durable(&self) -> &[u8] {
        &self.durable[..self.durable_length]
    }

    /// Empties it for another use; the memory stays.
    pub fn clear(&mut self) {
        self.view.clear();
        self.durable.clear();
        self.pending.clear();
        self.durable_length = 0;
    }

    /// Makes it at least this long; new bytes read as zero.
    pub fn extend(&mut self, length: usize) {
        if length > self.view.len() {
            self.view.resize(length, 0);
            self.durable.resize(length, 0);
        }
    }

    /// A write into the volatile cache.
    pub fn write(&mut self, sequence: u64, offset: usize, bytes: &[u8]) {
        self.extend(offset + bytes.len());
        self.view[offset..offset + bytes.len()].copy_from_slice(bytes);
        self.pending.push(Pending { sequence, offset, bytes: bytes.to_vec() });
    }

    /// A write that is flushed by itself.
    pub fn write_durable(&mut self, offset: usize, bytes: &[u8]) {
        self.extend(offset + bytes.len());
        let range = offset..offset + bytes.len();
        self.view[range.clone()].copy_from_slice(bytes);
        self.durable[range.clone()].copy_from_slice(bytes);
        self.cut_pending(range.start, range.end);
    }

    /// Takes a range off the pending writes, so that a later flush does not bring old bytes back.
    fn cut_pending(&mut self, start: usize, end: usize) {
        let overlaps = |write: &Pending| write.offset < end && start < write.end();
        if !self.pending.iter().any(overlaps) {
            return;
        }
        let mut left = Vec::with_capacity(self.pending.len() + 1);
        for mut write in self.pending.drain(..) {
            if !overlaps(&write) {
                left.push(write);
                continue;
            }
            if write.end() > end {
                let bytes = write.bytes[end - write.offset..].to_vec();
                left.push(Pending { sequence: write.sequence, offset: end, bytes });
            }
            if write.offset < start {
                write.bytes.truncate(start - write.offset);
                left.push(write);
            }
        }
        self.pending = left;
    }

    /// A flush that covers the writes completed up to `covers`.
    pub fn flush(&mut self, covers: u64) {
        let covered = self.covered(covers);
        for write in self.pending.drain(..covered) {
            self.durable[write.offset..write.end()].copy_from_slice(&write.bytes);
        }
    }

    /// A flush that failed: what it covered is anything, and no later flush repairs it.
    pub fn flush_failed(&mut self, covers: u64, random: &mut Random) {
        let covered = self.covered(covers);
        for write in self.pending.drain(..covered) {
            survive(&mut self.durable, write.offset, &write.bytes, Fate::Sectors, random);
            let range = write.offset..write.end();
            self.view[range.clone()].copy_from_slice(&self.durable[range]);
        }
        for write in &self.pending {
            self.view[write.offset..write.end()].copy_from_slice(&write.bytes);
        }
    }

    /// A write that failed: any of its sectors may have reached the medium.
    pub fn write_failed(&mut self, offset: usize, bytes: &[u8], random: &mut Random) {
        let end = self.view.len().min(offset + bytes.len());
        let Some(bytes) = end.checked_sub(offset).map(|length| &bytes[..length]) else { return };
        survive(&mut self.durable, offset, bytes, Fate::Sectors, random);
        self.view[offset..end].copy_from_slice(&self.durable[offset..end]);
        self.cut_pending(offset, end);
    }

    /// Makes the length that it had when the flush was submitted durable.
    pub fn flush_length(&mut self, length: usize) {
        self.durable_length = self.durable_length.max(length);
    }

    /// Power cut: decides about each pending write. In-flight writes follow through
    /// [`Inode::tear`], then [`Inode::settle`] must be called.
    pub fn cut_power(&mut self, random: &mut Random, fate: Option<Fate>, happened: &mut Happened) {
        for write in self.pending.drain(..) {
            let fate = fate.unwrap_or_else(|| Fate::draw(random));
            fate.count(happened);
            survive(&mut self.durable, write.offset, &write.bytes, fate, random);
            let range = write.offset..write.end();
            self.view[range.clone()].copy_from_slice(&self.durable[range]);
        }
    }

    /// Power cut during a write.
    pub fn tear(
        &mut self,
        offset: usize,
        bytes: &[u8],
        fate: Fate,
        random: &mut Random,
        happened: &mut Happened,
    ) {
        fate.count(happened);
        self.extend(offset + bytes.len());
        survive(&mut self.durable, offset, bytes, fate, random);
        let range = offset..offset + bytes.len();
        self.view[range.clone()].copy_from_slice(&self.durable[range]);
    }

    /// Power cut: decides about a length that no flush has covered.
    pub fn settle(&mut self, random: &mut Random, happened: &mut Happened) {
        // A pending write that was superseded has left its bytes in the view: equal again.
        if self.view.len() > self.durable_length {
            let room = (self.view.len() - self.durable_length).div_ceil(SECTOR_BYTES) as u64;
            let kept = match random.below(3) {
                0 => 0,
                1 => room,
                _ => random.below(room + 1),
            };
            let length = self.durable_length + kept as usize * SECTOR_BYTES;
            happened.lengths_lost += u64::from(length < self.view.len());
            self.view.truncate(length);
            self.durable.truncate(length);
        }
        self.durable_length = self.view.len();
    }

    /// Bit rot: the bit is wrong in the cache and on the medium.
    pub fn flip(&mut self, offset: usize, bit: u32) {
        self.view[offset] ^= 1 << (bit % 8);
        self.durable[offset] ^= 1 << (bit % 8);
        let pending = |write: &&mut Pending| (write.offset..write.end()).contains(&offset);
        for write in self.pending.iter_mut().filter(pending) {
            write.bytes[offset - write.offset] ^= 1 << (bit % 8);
        }
    }

    fn covered(&self, covers: u64) -> usize {
        self.pending.partition_point(|write| write.sequence <= covers)
    }
}

impl Pending {
    fn end(&self) -> usize {
        self.offset + self.bytes.len()
    }
}

/// Copies what of a write survives.
fn survive(durable: &mut [u8], offset: usize, bytes: &[u8], fate: Fate, random: &mut Random) {
    let sectors = bytes.len().div_ceil(SECTOR_BYTES);
    if matches!(fate, Fate::Shorn) && sectors > 0 {
        survive(durable, offset, bytes, Fate::Sectors, random);
        let shorn = random.below(sectors as u64) as usize * SECTOR_BYTES;
        let end = bytes.len().min(shorn + SECTOR_BYTES);
        durable[offset + shorn..offset + end].fill_with(|| random.next() as u8);
        return;
    }
    let target = &mut durable[offset..offset + bytes.len()];
    match fate {
        Fate::Lost => {}
        Fate::Whole => target.copy_from_slice(bytes),
        Fate::Prefix => {
            let kept = random.below(sectors as u64 + 1) as usize * SECTOR_BYTES;
            let kept = kept.min(bytes.len());
            target[..kept].copy_from_slice(&bytes[..kept]);
        }
        Fate::Sectors | Fate::Shorn => {
            let sectors = target.chunks_mut(SECTOR_BYTES).zip(bytes.chunks(SECTOR_BYTES));
            let mut coins = 0;
            for (index, (target, bytes)) in sectors.enumerate() {
                if index % 64 == 0 {
                    coins = random.next();
                }
                if coins >> (index % 64) & 1 == 1 {
                    target.copy_from_slice(bytes);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(inode: &mut Inode, seed: u64) {
        let mut random = Random::new(seed);
        inode.cut_power(&mut random, None, &mut Happened::default());
        inode.settle(&mut random, &mut Happened::default());
        assert_eq!(inode.view, inode.durable);
    }

    #[test]
    fn a_flush_covers_only_what_had_completed() {
        let mut inode = Inode::default();
        inode.extend(2048);
        inode.flush_length(2048);
        inode.write(1, 0, &[1; 512]);
        inode.write(2, 512, &[2; 512]);
        inode.flush(1);
        assert!(inode.durable()[..512].iter().all(|&byte| byte == 1));
        assert!(inode.durable()[512..].iter().all(|&byte| byte == 0));
        let mut random = Random::new(1);
        inode.cut_power(&mut random, Some(Fate::Lost), &mut Happened::default());
        inode.settle(&mut random, &mut Happened::default());
        assert!(inode.view()[512..].iter().all(|&byte| byte == 0));
    }

    #[test]
    fn a_power_cut_keeps_sectors_whole_or_shears_one_and_flushed_bytes_always() {
        for seed in 0..200 {
            let mut inode = Inode::default();
            inode.write(1, 0, &[1; 4096]);
            inode.flush(1);
            inode.flush_length(4096);
            inode.write(2, 1024, &[2; 2048]);
            inode.write_durable(2048, &[3; 512]);
            cut(&mut inode, seed);
            let mut noise = 0;
            for (index, sector) in inode.view().chunks(SECTOR_BYTES).enumerate() {
                let is_whole = sector.iter().all(|&byte| byte == sector[0]);
                match index {
                    4 => assert!(is_whole && sector[0] == 3),
                    2 | 3 | 5 if is_whole => assert!([1, 2].contains(&sector[0])),
                    2 | 3 | 5 => noise += 1,
                    _ => assert!(is_whole && sector[0] == 1),
                }
            }
            // The write was split by the durable one, so there are two that can be shorn.
            assert!(noise <= 2);
        }
    }

    #[test]
    fn an_old_write_does_not_come_back_over_a_durable_one() {
        let mut inode = Inode::default();
        inode.write(1, 0, &[1; 2048]);
        inode.write_durable(512, &[2; 512]);
        inode.flush(1);
        inode.flush_length(2048);
        let expected = [[1u8; 512], [2; 512], [1; 512], [1; 512]].concat();
        assert_eq!(inode.durable(), expected);
        assert_eq!(inode.view(), expected);
    }

    #[test]
    fn a_failed_flush_leaves_anything_and_a_later_one_repairs_nothing() {
        let mut changed = 0;
        for seed in 0..50 {
            let mut inode = Inode::default();
            inode.write(1, 0, &[1; 4096]);
            inode.flush_length(4096);
            inode.flush_failed(1, &mut Random::new(seed));
            let after = inode.durable().to_vec();
            inode.flush(1);
            assert_eq!(inode.durable(), after);
            assert_eq!(inode.view(), after);
            changed += usize::from(after != vec![1; 4096]);
        }
        assert!(changed > 40);
    }

    #[test]
    fn a_length_is_kept_only_when_flushed() {
        let mut lengths = std::collections::BTreeSet::new();
        for seed in 0..100 {
            let mut inode = Inode::default();
            inode.extend(512);
            inode.flush_length(512);
            inode.extend(4096);
            cut(&mut inode, seed);
            lengths.insert(inode.length());
        }
        assert_eq!((lengths.first(), lengths.last()), (Some(&512), Some(&4096)));
    }
}
