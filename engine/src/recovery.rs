//! What a journal is worth after a crash: unverified segments in, trusted state out. Serves
//! nobody, reads nothing itself.
//!
//! The decision at the first batch that is not the expected one is the table of
//! `ARCHITECTURE.md`, and one `match` in [`verdict`].
//!
//! Polling order: [`Walk::handle_sealed`] or [`Walk::begin_scan`] with a [`crate::scan`] for every
//! segment of the [`Plan`] in its order; then, while [`Walk::poll_state_source`] names a place,
//! scan that; then [`Walk::finish`].

mod damage;
mod facts;
mod finish;
mod plan;
mod walk;

use std::collections::HashMap;
use std::ops::Range;

use crate::format::{FooterHeader, JournalEnd, RunRecord};
use crate::index::Index;
use crate::stream::{StreamId, StreamState};
pub use damage::{Corruption, Damage};
pub(crate) use plan::{FoundSegment, Plan};
pub(crate) use walk::Walk;

/// The verdict on a break.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum Verdict {
    /// Nothing was ever there: the journal ends.
    End,
    /// Something was, and nobody was told that it is durable: cut.
    Torn,
    /// It was durable and is not there.
    Corrupt,
}

/// The table: what a missing or invalid batch means.
///
/// | a later batch, footer or header says that it was durable | anything of it or behind it | verdict |
/// | --- | --- | --- |
/// | yes | – | corrupt |
/// | no | yes | torn |
/// | no | no | end |
pub(crate) fn verdict(expected: u64, durable_evidence: u64, something_there: bool) -> Verdict {
    match (durable_evidence >= expected, something_there) {
        (true, _) => Verdict::Corrupt,
        (false, true) => Verdict::Torn,
        (false, false) => Verdict::End,
    }
}

/// What recovery believes in the end.
#[derive(Debug)]
pub(crate) struct Recovered {
    pub(crate) streams: HashMap<StreamId, StreamState>,
    pub(crate) index: Index,
    pub(crate) end: JournalEnd,
    /// Segments that hold accepted batches, oldest first; the index has them.
    pub(crate) live: Vec<WalkedSegment>,
    pub(crate) damages: Vec<Damage>,
    pub(crate) missing: Vec<(StreamId, Range<u64>)>,
    /// Where a torn tail was cut.
    pub(crate) torn: Option<(String, u64)>,
    pub(crate) scanned_records: u64,
}

impl Recovered {
    /// Whether what counts ends with this batch.
    pub(crate) fn ends_at(&self, end: JournalEnd) -> bool {
        self.end.sequence == end.sequence
            && self.live.last().map_or(end.generation == 0, |segment| segment.end() == end)
    }
}

/// What a scanned or sealed segment gave.
#[derive(Debug)]
pub(crate) struct WalkedSegment {
    pub(crate) found: FoundSegment,
    pub(crate) first_sequence: u64,
    pub(crate) first_previous_crc: u32,
    pub(crate) last_sequence: u64,
    pub(crate) last_crc: u32,
    pub(crate) end_offset: u64,
    pub(crate) records: u64,
    pub(crate) payload_bytes: u64,
    pub(crate) contents: WalkedContents,
}

impl WalkedSegment {
    /// Its last batch.
    pub(crate) fn end(&self) -> JournalEnd {
        JournalEnd {
            number: self.found.number(),
            generation: self.found.generation(),
            offset: self.end_offset,
            sequence: self.last_sequence,
            crc: self.last_crc,
        }
    }
}

/// See [`WalkedSegment`].
#[derive(Debug)]
pub(crate) enum WalkedContents {
    /// From its own index.
    Sealed(FooterHeader, Vec<RunRecord>),
    /// From its batches: (batch offset, frame, moved).
    Scanned(Vec<(u64, crate::batch::SealedFrame, bool)>),
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::*;
    use crate::disk::FileId;
    use crate::format::SegmentHeader;

    pub(super) fn found(
        generation: u64,
        incarnation: u64,
        footer: Option<FooterHeader>,
    ) -> FoundSegment {
        let header =
            SegmentHeader::new([1; 16], 0, generation, generation, incarnation, 1 << 20, None);
        let name = crate::segments::segment_name(generation);
        FoundSegment { name, file: FileId(generation as u32), header, footer }
    }

    pub(super) fn footer(first: u64, last: u64, successor: u64) -> FooterHeader {
        let mut footer = FooterHeader::new_zeroed();
        footer.first_sequence = first.into();
        footer.last_sequence = last.into();
        footer.successor_generation = successor.into();
        footer
    }

    #[test]
    fn the_table() {
        assert_eq!(verdict(5, 4, false), Verdict::End);
        assert_eq!(verdict(5, 4, true), Verdict::Torn);
        assert_eq!(verdict(5, 5, false), Verdict::Corrupt);
        assert_eq!(verdict(5, 9, true), Verdict::Corrupt);
    }
}
