//! The writing end of one stream: makes its records, checks its receipts, notes them.

use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use ringwal_engine::{
    Append, AppendBatch, AppendError, Engine, Receipt, Receipts, Stream, StreamId,
};
use ringwal_replication::{Ack, Leadership, Pending};

use super::receipts::{Lines, ReceiptFile};
use crate::payload::Records;

/// Number of the first stream that the bench writes: the smallest ones are reserved.
pub const FIRST_STREAM: u64 = 16;

/// The records of one stream, one after the other. A stream has one writer at a time.
pub struct Writer {
    stream: Stream,
    id: u64,
    records: Records,
    /// Offset of the next record to be made.
    next: u64,
    /// Offset of the next receipt.
    acknowledged: u64,
    receipts: Option<Arc<ReceiptFile>>,
    lines: Lines,
}

impl Writer {
    /// For stream number `index` of the bench; goes on where the stream ends.
    pub fn new(
        engine: &Engine,
        index: usize,
        seed: u64,
        record_bytes: usize,
        receipts: Option<Arc<ReceiptFile>>,
    ) -> Writer {
        let id = FIRST_STREAM + index as u64;
        let stream = engine.stream(StreamId::new(id));
        let end = stream.end();
        Writer {
            stream,
            id,
            records: Records::new(seed, id, record_bytes, 1),
            next: end,
            acknowledged: end,
            receipts,
            lines: Lines::default(),
        }
    }

    /// Makes room for batches of `count` records: one under way, and the next.
    pub fn in_batches_of(mut self, count: usize) -> Writer {
        self.records = self.records.with_room_for(2 * count);
        self
    }

    /// Makes the next record; returns its checksum when receipts are noted.
    pub fn make(&mut self) -> Option<u32> {
        let record = self.records.make(self.next);
        self.next += 1;
        self.receipts.as_ref().map(|_| crc32c::crc32c(record))
    }

    /// Forgets the record that was made last and could not be appended.
    pub fn take_back(&mut self) {
        self.next -= 1;
    }

    /// Appends the record that was made last.
    pub fn append(&self) -> Result<Append> {
        let record = self.records.made(self.next - 1);
        self.stream.append(record).with_context(|| format!("append to stream {}", self.id))
    }

    /// As [`Writer::append`], through a leader.
    pub fn append_led(&self, leadership: &Leadership, ack: Ack) -> Result<Pending<Append>> {
        let record = self.records.made(self.next - 1);
        leadership
            .append(StreamId::new(self.id), record, ack)
            .with_context(|| format!("append to stream {}", self.id))
    }

    /// As [`Writer::append`], but `None` when there is no room for it now.
    pub fn try_append(&self) -> Result<Option<Append>> {
        match self.stream.try_append(self.records.made(self.next - 1)) {
            Ok(append) => Ok(Some(append)),
            Err(AppendError::Full { .. }) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("append to stream {}", self.id)),
        }
    }

    /// Makes the next `count` records.
    pub fn make_batch(&mut self, count: usize) {
        for _ in 0..count {
            self.records.make(self.next);
            self.next += 1;
        }
    }

    /// Appends the `count` records that were made last, as one batch.
    pub fn append_batch(&mut self, count: usize) -> Result<AppendBatch> {
        let offsets = self.next - count as u64..self.next;
        let records = &self.records;
        let token = self
            .stream
            .append_batch(offsets.clone().map(|offset| records.made(offset)))
            .with_context(|| format!("append_batch to stream {}", self.id))?;
        if self.receipts.is_some() {
            for offset in offsets {
                self.lines.push(self.id, offset, crc32c::crc32c(records.made(offset)));
            }
        }
        Ok(token)
    }

    /// Checks the receipts of a batch and notes them.
    pub fn received_batch(&mut self, receipts: &Receipts, count: usize) -> Result<()> {
        let expected = self.acknowledged..self.acknowledged + count as u64;
        if receipts.offsets() != expected {
            let offsets = receipts.offsets();
            bail!("stream {}: receipts for {offsets:?}, expected {expected:?}", self.id);
        }
        self.acknowledged = expected.end;
        self.note()
    }

    /// Checks a receipt; they come in the order of the appends. The line for it waits for
    /// [`Writer::note`].
    pub fn received(&mut self, receipt: Receipt, crc: Option<u32>) -> Result<()> {
        if receipt.offset() != self.acknowledged {
            bail!(
                "stream {}: receipt for offset {}, expected {}",
                self.id,
                receipt.offset(),
                self.acknowledged
            );
        }
        if let Some(crc) = crc {
            self.lines.push(self.id, self.acknowledged, crc);
        }
        self.acknowledged += 1;
        Ok(())
    }

    /// Writes the lines of the receipts that were received.
    pub fn note(&mut self) -> Result<()> {
        match &self.receipts {
            Some(receipts) => receipts.write(&mut self.lines),
            None => Ok(()),
        }
    }
}
