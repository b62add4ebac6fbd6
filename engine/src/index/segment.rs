//! What the index knows of one segment: its frames while it is unsealed, later only where its own
//! index is.

use std::collections::HashMap;

use crate::disk::FileId;
use crate::format::FooterHeader;
use crate::stream::StreamId;

/// A segment that holds records.
#[derive(Debug)]
pub(crate) struct SegmentIndex {
    pub(crate) number: u64,
    pub(crate) file: FileId,
    pub(super) frames: Frames,
    /// Bytes of all its frames.
    pub(super) frame_bytes: u64,
    pub(super) records: u64,
    pub(super) live_records: u64,
}

impl SegmentIndex {
    /// Bytes of frames that still count, estimated by the share of live records.
    pub(crate) fn live_bytes(&self) -> u64 {
        if self.records == 0 {
            return 0;
        }
        (u128::from(self.frame_bytes) * u128::from(self.live_records) / u128::from(self.records))
            as u64
    }

    pub(crate) fn is_sealed(&self) -> bool {
        matches!(self.frames, Frames::Sealed(_))
    }

    /// Where the index of a sealed segment is.
    pub(crate) fn sealed_index(&self) -> Option<SealedIndex> {
        match &self.frames {
            Frames::Sealed(sealed) => Some(*sealed),
            Frames::Open(_) => None,
        }
    }
}

#[derive(Debug)]
pub(super) enum Frames {
    Open(Entries),
    Sealed(SealedIndex),
}

/// Frames of one epoch of one stream in an unsealed segment, in the order of their offsets.
pub(super) type Entries = HashMap<(StreamId, u64), Vec<Entry>>;

/// Where the index of a sealed segment is in its file.
#[derive(Copy, Clone, Debug)]
pub(crate) struct SealedIndex {
    pub(crate) entries_offset: u64,
    pub(crate) runs_offset: u64,
    pub(crate) runs: u32,
}

impl SealedIndex {
    pub(crate) fn new(footer: &FooterHeader) -> Self {
        Self {
            entries_offset: footer.entries_offset.get(),
            runs_offset: footer.runs_offset.get(),
            runs: footer.runs.get(),
        }
    }
}

/// A frame in a segment.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) struct Entry {
    pub(crate) base: u64,
    pub(crate) count: u32,
    /// Byte of the frame header in the segment.
    pub(crate) position: u32,
    /// CRC of the frame header.
    pub(crate) frame_crc: u32,
}

impl Entry {
    pub(crate) fn end(&self) -> u64 {
        self.base.saturating_add(u64::from(self.count))
    }

    pub(crate) fn holds(&self, offset: u64) -> bool {
        self.base <= offset && offset < self.end()
    }

    /// Which of these, in the order of their offsets, holds an offset.
    pub(crate) fn position_of(entries: &[Self], offset: u64) -> Option<usize> {
        let first = entries.partition_point(|entry| entry.end() <= offset);
        match entries.get(first) {
            Some(entry) if entry.holds(offset) => Some(first),
            // An epoch that was cut and came back has the same records twice.
            _ => entries.iter().position(|entry| entry.holds(offset)),
        }
    }
}
