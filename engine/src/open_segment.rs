//! The segment that batches go to: how far it is filled and what its footer will say. No I/O.

use std::collections::HashMap;

use crate::batch::Sealed;
use crate::footer::SealFacts;
use crate::format::{BEGINNING_BYTES, DATA_START, index_bytes};
use crate::segments::Prepared;
use crate::stream::StreamId;

/// The segment in use.
#[derive(Debug)]
pub(crate) struct OpenSegment {
    pub(crate) segment: Prepared,
    /// Where the next batch goes.
    pub(crate) offset: u64,
    segment_bytes: u64,
    first_sequence: u64,
    first_previous_crc: u32,
    last_sequence: u64,
    last_crc: u32,
    entries: usize,
    /// End of the last run of each stream and epoch.
    run_ends: HashMap<(StreamId, u64), u64>,
    runs: usize,
    records: u64,
    payload_bytes: u64,
    /// The next batch starts the last checkpoint.
    checkpoint_expected: bool,
    checkpoint_offset: u64,
}

impl OpenSegment {
    pub(crate) fn new(
        segment: Prepared,
        segment_bytes: u64,
        first_sequence: u64,
        first_previous_crc: u32,
    ) -> Self {
        Self {
            segment,
            offset: DATA_START,
            segment_bytes,
            first_sequence,
            first_previous_crc,
            last_sequence: first_sequence - 1,
            last_crc: first_previous_crc,
            entries: 0,
            run_ends: HashMap::new(),
            runs: 0,
            records: 0,
            payload_bytes: 0,
            checkpoint_expected: false,
            checkpoint_offset: 0,
        }
    }

    /// Whether a batch fits, with room left for the index of everything.
    pub(crate) fn fits(&self, padded_length: usize, frames: usize) -> bool {
        let index = index_bytes(self.entries + frames, self.runs + frames);
        self.offset + padded_length as u64 + index <= self.segment_bytes
    }

    /// Whether what comes next lies behind the beginning of the segment, while the first batch is not durable yet:
    /// `durable` is the sequence up to which all are.
    pub(crate) fn waits_for_beginning(&self, durable: u64) -> bool {
        self.offset >= DATA_START + BEGINNING_BYTES && durable < self.first_sequence
    }

    /// Counts a batch that was sealed at `offset`.
    pub(crate) fn note(&mut self, batch: &Sealed) {
        if std::mem::take(&mut self.checkpoint_expected) {
            self.checkpoint_offset = self.offset;
        }
        self.offset += batch.padded_length as u64;
        self.last_sequence = batch.sequence;
        self.last_crc = batch.crc;
        self.records += batch.frames.iter().map(|frame| u64::from(frame.count)).sum::<u64>();
        self.payload_bytes += batch.payload_bytes;
        self.entries += batch.frames.len();
        for frame in &batch.frames {
            let end = frame.base + u64::from(frame.count);
            let last = self.run_ends.insert((frame.stream, frame.epoch), end);
            // A frame out of order may split a run in two.
            self.runs += match last {
                Some(last) if last == frame.base => 0,
                Some(_) => 2,
                None => 1,
            };
        }
    }

    /// CRC of the newest batch's header, here or in the segment before.
    pub(crate) fn last_crc(&self) -> u32 {
        self.last_crc
    }

    /// The next batch is the checkpoint after which nothing follows.
    pub(crate) fn expect_last_checkpoint(&mut self) {
        self.checkpoint_expected = true;
    }

    /// What the footer says when the segment ends here.
    pub(crate) fn seal_facts(&self, successor: Option<(u64, u64)>) -> SealFacts {
        SealFacts {
            generation: self.segment.generation,
            seed: self.segment.seed,
            segment_bytes: self.segment_bytes,
            first_sequence: self.first_sequence,
            first_previous_crc: self.first_previous_crc,
            last_sequence: self.last_sequence,
            last_crc: self.last_crc,
            end_offset: self.offset,
            checkpoint_offset: if successor.is_none() { self.checkpoint_offset } else { 0 },
            successor,
            records: self.records,
            payload_bytes: self.payload_bytes,
        }
    }
}
