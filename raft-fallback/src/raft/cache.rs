//! The newest entries, in memory: those that the engine cannot be asked for yet, and as many of the others
//! as a bound of bytes allows.

use std::collections::VecDeque;
use std::ops::Range;

use super::types::Entry;

/// What an entry costs beside its bytes, about.
const ENTRY_OVERHEAD_BYTES: usize = 128;

/// Entries without a gap, up to the end of the log.
#[derive(Debug)]
pub(super) struct Cache {
    /// Each with what it costs.
    entries: VecDeque<(Entry, usize)>,
    first: u64,
    bytes: usize,
    bytes_max: usize,
}

impl Cache {
    /// An empty one in front of the entry `end`.
    pub(super) fn new(end: u64, bytes_max: usize) -> Self {
        Self { entries: VecDeque::new(), first: end, bytes: 0, bytes_max }
    }

    /// Index of the first entry that it holds, or of the next one.
    pub(super) fn first(&self) -> u64 {
        self.first
    }

    pub(super) fn push(&mut self, entry: Entry, encoded_bytes: usize) {
        let cost = encoded_bytes + ENTRY_OVERHEAD_BYTES;
        assert_eq!(entry.log_id.index, self.first + self.entries.len() as u64, "no gap");
        self.entries.push_back((entry, cost));
        self.bytes += cost;
    }

    /// Drops the oldest entries beyond the bound, but only those below `durable`.
    pub(super) fn evict(&mut self, durable: u64) {
        while self.bytes > self.bytes_max && self.first < durable {
            let Some((_, cost)) = self.entries.pop_front() else { return };
            self.bytes -= cost;
            self.first += 1;
        }
    }

    /// Drops the entries from `end` on.
    pub(super) fn truncate(&mut self, end: u64) {
        while self.first + self.entries.len() as u64 > end {
            match self.entries.pop_back() {
                Some((_, cost)) => self.bytes -= cost,
                None => self.first = end,
            }
        }
    }

    /// Drops the entries below `start`; an empty one then begins there at least.
    pub(super) fn purge(&mut self, start: u64) {
        while self.first < start {
            match self.entries.pop_front() {
                Some((_, cost)) => {
                    self.bytes -= cost;
                    self.first += 1;
                }
                None => self.first = start,
            }
        }
    }

    /// Copies entries of a range that it holds, until they are `bytes_max` or more.
    pub(super) fn read(&self, range: Range<u64>, bytes_max: usize, into: &mut Vec<Entry>) {
        let start = (range.start - self.first) as usize;
        let count = range.end.saturating_sub(range.start) as usize;
        let mut bytes = 0;
        for (entry, cost) in self.entries.iter().skip(start).take(count) {
            if bytes >= bytes_max {
                return;
            }
            into.push(entry.clone());
            bytes += cost;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::entry::log_id;
    use super::*;
    use openraft::EntryPayload;

    fn entry(index: u64) -> Entry {
        Entry { log_id: log_id(1, index), payload: EntryPayload::Blank }
    }

    #[test]
    fn what_is_not_durable_stays_whatever_it_costs() {
        let mut cache = Cache::new(5, 3 * (ENTRY_OVERHEAD_BYTES + 10));
        (5..15).for_each(|index| cache.push(entry(index), 10));
        cache.evict(7);
        assert_eq!(cache.first(), 7);
        cache.evict(15);
        assert_eq!(cache.first(), 12);
        let mut read = Vec::new();
        cache.read(13..15, usize::MAX, &mut read);
        assert_eq!(read, [entry(13), entry(14)]);
        cache.truncate(14);
        cache.push(entry(14), 10);
        cache.truncate(8);
        assert_eq!((cache.first(), cache.bytes), (8, 0));
        cache.push(entry(8), 10);
        cache.purge(30);
        assert_eq!((cache.first(), cache.bytes), (30, 0));
    }
}
