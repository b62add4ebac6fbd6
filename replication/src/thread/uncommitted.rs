//! What a driven leader has sealed and does not know to be committed: how many bytes of records.

use std::collections::{BTreeMap, VecDeque};

use ringwal_engine::StreamId;

/// Memory: 16 bytes for each frame that is not committed.
#[derive(Debug, Default)]
pub(super) struct Uncommitted {
    /// Of each stream, where frames end, and bytes of their records.
    streams: BTreeMap<StreamId, VecDeque<(u64, u64)>>,
    /// Of all of them.
    pub(super) bytes: u64,
    /// Nobody else is needed for a majority, and nothing is counted.
    pub(super) is_alone: bool,
    /// What had been appended, ever, at the last look.
    pub(super) appended: u64,
}

impl Uncommitted {
    pub(super) fn new(is_alone: bool) -> Self {
        Self { is_alone, ..Self::default() }
    }

    /// A frame is sealed.
    pub(super) fn push(&mut self, stream: StreamId, end: u64, bytes: u64) {
        self.streams.entry(stream).or_default().push_back((end, bytes));
        self.bytes += bytes;
    }

    /// A stream is committed up to `end`: bytes of the frames that are it whole.
    pub(super) fn take_below(&mut self, stream: StreamId, end: u64) -> u64 {
        let Some(frames) = self.streams.get_mut(&stream) else { return 0 };
        let mut taken = 0;
        while let Some((_, bytes)) = frames.front().filter(|(frame_end, _)| *frame_end <= end) {
            taken += bytes;
            frames.pop_front();
        }
        if frames.is_empty() {
            self.streams.remove(&stream);
        }
        self.bytes -= taken;
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_count_until_they_are_committed_whole() {
        let (a, b) = (StreamId::new(9), StreamId::new(11));
        let mut uncommitted = Uncommitted::default();
        for (stream, end, bytes) in [(a, 2, 10), (a, 5, 30), (b, 1, 7), (a, 6, 5)] {
            uncommitted.push(stream, end, bytes);
        }
        let taken = [(a, 1), (a, 5), (b, 9), (b, 9), (a, 6)]
            .map(|(stream, end)| (uncommitted.take_below(stream, end), uncommitted.bytes));
        assert_eq!(taken, [(0, 52), (40, 12), (7, 5), (0, 5), (5, 0)]);
    }
}
