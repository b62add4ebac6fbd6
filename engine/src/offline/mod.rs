//! Looking into a directory without running it: what it holds ([`inspect()`]), whether every byte
//! is what was written ([`verify()`]), its records ([`Snapshot`]), what replication has cut and kept
//! ([`orphans()`]), and mending it ([`repair()`]).
//!
//! All but [`repair()`] open nothing for writing. [`verify()`] and [`repair()`] want the directory
//! for themselves; all else also works beside a running engine. What is
//! believed is decided by the recovery that opening uses; there is no second one here.
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let directory = tempfile::tempdir()?;
//! # let data = directory.path();
//! use ringwal_engine::{Engine, StreamId, offline};
//!
//! let engine = Engine::options().open(data)?;
//! engine.stream(StreamId::new(7)).append(b"one")?.wait()?;
//! assert_eq!(offline::inspect(data)?.shards[0].streams[0].end, 1); // beside the running engine
//! engine.close()?;
//!
//! let verification = offline::verify(data)?;
//! assert!(!verification.is_damaged());
//! assert_eq!(verification.totals.records, 1);
//! offline::Snapshot::open(data)?.visit(|record| {
//!     println!("{} {}: {:?}", record.stream, record.offset, record.payload);
//!     std::ops::ControlFlow::Continue(())
//! })?;
//! # Ok(())
//! # }
//! ```

mod files;
mod inspect;
mod loss;
pub(crate) mod orphan_file;
mod orphans;
mod places;
mod remedy;
mod repair;
mod segment_check;
mod shard_check;
mod short;
mod site;
mod snapshot;
mod verify;

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

pub use inspect::{
    FileInspection, FileState, Inspection, ShardInspection, StreamInspection, StreamSpan, inspect,
};
pub use loss::Loss;
pub use orphan_file::OrphanState;
pub use orphans::{Orphan, engine_id, orphans, verify_orphans, visit_orphan};
pub use repair::{Repair, RepairError, RepairOptions, repair};
pub use snapshot::{Snapshot, VisitedRecord};
pub use verify::{Finding, Severity, Totals, Verification, verify};

pub use crate::format::{OrphanFacts, OrphanFrames};
use crate::index::Index;
use crate::stream::{EpochTable, StreamId};

/// Consecutive records of one stream and epoch.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct StreamRange {
    /// Whose.
    pub stream: StreamId,
    /// Epoch that they carry.
    pub epoch: u64,
    /// Which.
    pub offsets: Range<u64>,
}

impl StreamRange {
    /// `offsets` of a stream, cut where its epochs change.
    fn split(stream: StreamId, epochs: &EpochTable, offsets: Range<u64>) -> Vec<Self> {
        epochs
            .entries()
            .iter()
            .map(|entry| Self {
                stream,
                epoch: entry.epoch,
                offsets: epochs.clip(entry.epoch, offsets.start, offsets.end),
            })
            .filter(|range| !range.offsets.is_empty())
            .collect()
    }
}

impl fmt::Display for StreamRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { stream, epoch, offsets } = self;
        write!(f, "stream {stream}, offsets {}..{}", offsets.start, offsets.end)?;
        if *epoch == 0 { Ok(()) } else { write!(f, " of epoch {epoch}") }
    }
}

/// A place in a shard's journal, as `SHARD:SEGMENT:BYTE`: everything of that shard from there on.
///
/// ```
/// let cut: ringwal_engine::offline::Cut = "0:3:8192".parse()?;
/// assert_eq!((cut.shard, cut.segment, cut.byte), (0, 3, 8192));
/// assert_eq!(cut.to_string(), "0:3:8192");
/// # Ok::<(), String>(())
/// ```
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Debug)]
pub struct Cut {
    /// Shard number.
    pub shard: u16,
    /// Segment number, as in the file's name.
    pub segment: u64,
    /// Byte in the file.
    pub byte: u64,
}

impl Cut {
    /// All of a shard.
    fn whole(shard: u16) -> Self {
        Self { shard, segment: 0, byte: 0 }
    }
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.shard, self.segment, self.byte)
    }
}

impl FromStr for Cut {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts: Vec<_> = text.split(':').collect();
        let parsed = match parts[..] {
            [shard, segment, byte] => {
                shard.parse().ok().zip(segment.parse().ok()).zip(byte.parse().ok())
            }
            _ => None,
        };
        let ((shard, segment), byte) =
            parsed.ok_or("write SHARD:SEGMENT:BYTE as verify prints it, such as 0:3:8192")?;
        Ok(Self { shard, segment, byte })
    }
}

/// Offsets of streams that count, by the segment that holds them.
fn spans_by_generation(index: &Index) -> HashMap<u64, Vec<(StreamId, Range<u64>)>> {
    let mut spans: HashMap<u64, Vec<_>> = HashMap::new();
    for (stream, state) in &index.streams {
        for span in state.spans() {
            spans.entry(span.generation).or_default().push((*stream, span.base..span.end));
        }
    }
    spans
}

/// What is left of `range` without `holes`.
fn subtract(range: Range<u64>, holes: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut left = vec![range];
    for hole in holes {
        left = left
            .into_iter()
            .flat_map(|range| {
                let before = range.start..range.end.min(hole.start);
                let behind = range.start.max(hole.end)..range.end;
                if hole.start >= hole.end { [range, 0..0] } else { [before, behind] }
            })
            .filter(|range| range.start < range.end)
            .collect();
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_subtracted() {
        assert_eq!(subtract(0..10, &[2..4, 8..12]), [0..2, 4..8]);
        assert!(subtract(0..10, std::slice::from_ref(&(0..10))).is_empty());
        assert!(subtract(3..5, &[0..3, 5..9]).first() == Some(&(3..5)));
    }

    #[test]
    fn nonsense_is_no_place() {
        for text in ["", "1", "0:0", "0:0:0:0", "a:b:c", "-1:0:0", "70000:0:0"] {
            assert!(text.parse::<Cut>().is_err(), "{text}");
        }
    }
}
