//! The records of a range.

use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use super::{Reader, Record};
use crate::error::ReadError;
use crate::shared::Shared;
use crate::stream::StreamId;

/// The records of a range that were durable when it was asked for, in order.
pub struct Records {
    reader: Reader,
    end: u64,
    failed: bool,
}

impl Records {
    pub(crate) fn new(
        shared: Arc<Shared>,
        stream: StreamId,
        range: impl RangeBounds<u64>,
    ) -> Result<Self, ReadError> {
        let (trimmed, durable_end) =
            shared.index().streams.get(&stream).map_or((0, 0), |state| (state.trimmed, state.end));
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(start) => start.saturating_add(1),
            Bound::Unbounded => trimmed,
        };
        let end = match range.end_bound() {
            Bound::Included(end) => end.saturating_add(1),
            Bound::Excluded(end) => *end,
            Bound::Unbounded => durable_end,
        }
        .min(durable_end);
        if start < trimmed && start < end {
            return Err(ReadError::Trimmed { stream, offset: start, trimmed });
        }
        Ok(Self { reader: Reader::new(shared, stream, start), end, failed: false })
    }
}

impl Iterator for Records {
    type Item = Result<Record, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed || self.reader.next_offset() >= self.end {
            return None;
        }
        let record = self.reader.read_next().transpose()?;
        self.failed = record.is_err();
        Some(record)
    }
}
