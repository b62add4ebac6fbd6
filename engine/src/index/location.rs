//! The answer to where a record is.

use super::segment::{Entry, SealedIndex};
use crate::disk::FileId;

/// Where a record is.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) struct Location {
    pub(crate) number: u64,
    pub(crate) generation: u64,
    pub(crate) file: FileId,
    /// Epoch that the record carries.
    pub(crate) epoch: u64,
    /// Offset after the last record of this span.
    pub(crate) span_end: u64,
}

/// How to find the frame in its segment.
#[derive(Clone, Debug)]
pub(crate) enum LocatedFrames {
    /// The frame and some that follow it.
    Entries(Vec<Entry>),
    /// By the segment's own index.
    Sealed(SealedIndex),
}

/// Why there is no location.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum NoLocation {
    /// Below the first record.
    Trimmed(u64),
    /// Not durable (yet).
    Beyond,
    /// It should be there and is not: lost or damaged. Records go on at this offset.
    Hole(u64),
}
