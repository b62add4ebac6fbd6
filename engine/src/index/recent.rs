//! Copies of the frames that became durable last, of streams that somebody follows: who waits for a record has it
//! without asking the device, which would take as long again as making it durable did.
//!
//! A frame that is durable stays what it is where it is, whatever is cut or moved. So a copy is known by
//! its place, and whether it counts is asked of the index, as it is for one that was read.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;

use super::Entry;
use crate::stream::StreamId;

/// Bytes of copies, and of one of them. A long frame is read: the device is quick then, compared with the copy.
const BYTES_MAX: usize = 512 << 10;
const FRAME_BYTES_MAX: usize = 64 << 10;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Recent {
    /// Of each stream that is followed, how many tails do.
    followers: HashMap<StreamId, u32>,
    /// Oldest first, which is the order of their places.
    frames: VecDeque<RecentFrame>,
    bytes: usize,
}

#[derive(Debug)]
struct RecentFrame {
    generation: u64,
    position: u32,
    bytes: Bytes,
}

impl Recent {
    /// A tail has come to the stream's end.
    pub(crate) fn follow(&mut self, stream: StreamId) {
        *self.followers.entry(stream).or_default() += 1;
    }

    /// That tail is gone.
    pub(crate) fn leave(&mut self, stream: StreamId) {
        if let Some(followers) = self.followers.get_mut(&stream) {
            *followers -= 1;
            if *followers == 0 {
                self.followers.remove(&stream);
            }
        }
        if self.followers.is_empty() {
            (self.frames, self.bytes) = (VecDeque::new(), 0);
        }
    }

    /// A frame has become durable, at this place of its segment.
    pub(crate) fn note(&mut self, stream: StreamId, generation: u64, position: u32, bytes: &[u8]) {
        if bytes.len() > FRAME_BYTES_MAX || !self.followers.contains_key(&stream) {
            return;
        }
        self.bytes += bytes.len();
        let bytes = Bytes::copy_from_slice(bytes);
        self.frames.push_back(RecentFrame { generation, position, bytes });
        while self.bytes > BYTES_MAX {
            let oldest = self.frames.pop_front().expect("the bytes are of frames");
            self.bytes -= oldest.bytes.len();
        }
    }

    /// The copies of some of these frames of a segment, each with its place.
    pub(crate) fn of(&self, generation: u64, entries: &[Entry]) -> Vec<(u32, Bytes)> {
        let place = |frame: &RecentFrame| (frame.generation, frame.position);
        let copy = |entry: &Entry| {
            let at = self.frames.binary_search_by_key(&(generation, entry.position), place).ok()?;
            Some((entry.position, self.frames[at].bytes.clone()))
        };
        // Who is far behind is told so by the last one.
        match (self.frames.front(), entries.last()) {
            (Some(oldest), Some(last)) if place(oldest) <= (generation, last.position) => {
                entries.iter().filter_map(copy).collect()
            }
            _ => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: StreamId = StreamId::new(7);

    fn entry(position: u32) -> Entry {
        Entry { base: 0, count: 1, position, frame_crc: 0 }
    }

    #[test]
    fn only_what_is_followed_is_kept() {
        let mut recent = Recent::default();
        recent.note(STREAM, 1, 64, b"nobody");
        recent.follow(STREAM);
        recent.follow(STREAM);
        recent.note(StreamId::new(8), 1, 128, b"another");
        recent.note(STREAM, 1, 192, b"this");
        recent.leave(STREAM);
        recent.note(STREAM, 2, 192, b"in the next segment");
        let all = [entry(64), entry(128), entry(192)];
        assert_eq!(recent.of(1, &all), [(192, Bytes::from_static(b"this"))]);
        assert_eq!(recent.of(2, &all), [(192, Bytes::from_static(b"in the next segment"))]);
        assert!(recent.of(1, &[entry(128)]).is_empty());
        recent.leave(STREAM);
        assert!(recent.of(1, &all).is_empty(), "when nobody follows nothing is kept");
    }

    #[test]
    fn copies_have_bounds_together_and_each() {
        let mut recent = Recent::default();
        recent.follow(STREAM);
        let frame = vec![7; FRAME_BYTES_MAX];
        let positions = 1..=20;
        for position in positions.clone() {
            recent.note(STREAM, 1, position, &frame);
        }
        recent.note(STREAM, 1, 21, &vec![7; FRAME_BYTES_MAX + 1]);
        let all: Vec<_> = positions.clone().map(entry).collect();
        let kept: Vec<_> = recent.of(1, &all).into_iter().map(|(position, _)| position).collect();
        assert_eq!(kept, (13..=20).collect::<Vec<_>>());
        assert_eq!(recent.bytes, BYTES_MAX);
    }
}
