//! Which batches are on the device. A core without I/O: completions go in, operations and durable
//! batches come out.
//!
//! Polling order: `handle_*` for every completion, then [`Flush::poll_durable`] until it is empty,
//! then [`Flush::poll_operation`] until it is empty.
//!
//! Cursors: sealed ≥ written ≥ durable, each a batch sequence. Batches become durable in order,
//! whatever order the device answers in (I-1, I-2).

use std::collections::VecDeque;

use crate::batch::Sealed;
use crate::disk::{BLOCK_BYTES, Buffer, FileId};
use crate::mutants::{self, Mutant};

/// How a flush is asked for.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Default)]
pub enum SyncMode {
    /// With the batch's write (RWF_DSYNC): one completion. The default.
    #[default]
    Dsync,
    /// An fdatasync after the write.
    Fdatasync,
}

/// An operation that the device shall do.
#[derive(Debug)]
pub(crate) enum FlushOperation {
    /// Write a part of a batch.
    Write {
        sequence: u64,
        file: FileId,
        offset: u64,
        buffer: Buffer,
        from: usize,
        length: usize,
        durable: bool,
    },
    /// Sync a file for every batch written to it so far.
    Sync { id: u64, file: FileId },
}

/// The first thing that went wrong.
#[derive(Debug)]
pub(crate) struct FlushFailure {
    pub(crate) stage: &'static str,
    pub(crate) file: FileId,
    pub(crate) errno: Option<i32>,
    pub(crate) message: String,
}

#[derive(Copy, Clone, Eq, PartialEq, Debug)]
enum Stage {
    /// The write (or its rest) is to be submitted.
    ToWrite,
    Writing,
    /// Whole on the device's side, not known durable.
    Written,
    /// Covered by the sync with this id.
    Syncing(u64),
    Durable,
}

/// A batch between sealing and its receipts.
#[derive(Debug)]
struct InFlight {
    batch: Sealed,
    file: FileId,
    offset: u64,
    written: usize,
    short: bool,
    stage: Stage,
    sealed_ns: u64,
}

/// A batch that is durable, as are all before it.
#[derive(Debug)]
pub(crate) struct DurableBatch {
    pub(crate) batch: Sealed,
    /// Where it starts in its segment.
    pub(crate) offset: u64,
    /// When it was handed over, in the shard's nanoseconds.
    pub(crate) sealed_ns: u64,
}

/// Batches in flight, in order. Costs one small entry per batch; slots bound it.
#[derive(Debug)]
pub(crate) struct Flush {
    mode: SyncMode,
    slots: usize,
    in_flight: VecDeque<InFlight>,
    sealed: u64,
    durable: u64,
    next_sync: u64,
    /// A sync in flight: id and file.
    syncing: Option<(u64, FileId)>,
    /// A file whose receipts went ahead of its sync: never, but in a mutant.
    owed: Option<FileId>,
    flushes: u64,
    failed: bool,
}

impl Flush {
    /// Starts behind the batch with sequence `durable`.
    pub(crate) fn new(mode: SyncMode, slots: usize, durable: u64) -> Self {
        Self {
            mode,
            slots,
            in_flight: VecDeque::with_capacity(slots),
            sealed: durable,
            durable,
            next_sync: 0,
            syncing: None,
            owed: None,
            flushes: 0,
            failed: false,
        }
    }

    /// Whether another batch may start.
    pub(crate) fn has_slot(&self) -> bool {
        self.in_flight.len() < self.slots && !self.failed
    }

    /// Batches that may be in flight at once.
    pub(crate) fn slots(&self) -> usize {
        self.slots
    }

    /// Whether nothing is in flight.
    pub(crate) fn is_idle(&self) -> bool {
        self.in_flight.is_empty()
    }

    /// Whether one batch is in flight.
    pub(crate) fn has_one_in_flight(&self) -> bool {
        self.in_flight.len() == 1
    }

    /// Sequence up to which every batch is durable.
    pub(crate) fn durable(&self) -> u64 {
        self.durable
    }

    /// Sequence of the newest batch.
    pub(crate) fn sealed(&self) -> u64 {
        self.sealed
    }

    /// Flushes asked for so far.
    pub(crate) fn flushes(&self) -> u64 {
        self.flushes
    }

    /// Takes a sealed batch over.
    pub(crate) fn start(&mut self, batch: Sealed, file: FileId, offset: u64, now_ns: u64) {
        assert!(self.has_slot());
        assert_eq!(batch.sequence, self.sealed + 1, "batches are sealed in order");
        self.sealed = batch.sequence;
        self.in_flight.push_back(InFlight {
            batch,
            file,
            offset,
            written: 0,
            short: false,
            stage: Stage::ToWrite,
            sealed_ns: now_ns,
        });
    }

    /// The next operation for the device.
    pub(crate) fn poll_operation(&mut self) -> Option<FlushOperation> {
        if self.failed {
            return None;
        }
        let dsync = self.mode == SyncMode::Dsync;
        if let Some(batch) = self.in_flight.iter_mut().find(|batch| batch.stage == Stage::ToWrite) {
            batch.stage = Stage::Writing;
            // The rest of a short write is flushed by an explicit sync, also under dsync (I-2).
            let durable = dsync && !batch.short && !acknowledges_early();
            self.flushes += u64::from(durable);
            return Some(FlushOperation::Write {
                sequence: batch.batch.sequence,
                file: batch.file,
                offset: batch.offset + batch.written as u64,
                buffer: batch.batch.buffer.clone(),
                from: batch.written,
                length: batch.batch.padded_length - batch.written,
                durable,
            });
        }
        self.poll_sync()
    }

    /// One sync serves every batch of its file that is written *now* (I-2).
    fn poll_sync(&mut self) -> Option<FlushOperation> {
        if self.syncing.is_some() {
            return None;
        }
        if let Some(file) = self.owed.take() {
            let id = self.next_sync;
            self.next_sync += 1;
            self.syncing = Some((id, file));
            return Some(FlushOperation::Sync { id, file });
        }
        let file = self.in_flight.iter().find(|batch| batch.stage == Stage::Written)?.file;
        let id = self.next_sync;
        self.next_sync += 1;
        for batch in &mut self.in_flight {
            if batch.stage == Stage::Written && batch.file == file {
                batch.stage = Stage::Syncing(id);
            }
        }
        self.syncing = Some((id, file));
        self.flushes += 1;
        Some(FlushOperation::Sync { id, file })
    }

    /// The end of a write.
    pub(crate) fn handle_write(
        &mut self,
        sequence: u64,
        result: &std::io::Result<u64>,
    ) -> Result<(), FlushFailure> {
        let dsync = self.mode == SyncMode::Dsync;
        let Some(batch) = self
            .in_flight
            .iter_mut()
            .find(|batch| batch.batch.sequence == sequence && batch.stage == Stage::Writing)
        else {
            panic!("a write of batch {sequence} completed twice");
        };
        let rest = batch.batch.padded_length - batch.written;
        let failure = match result {
            Ok(written) if *written as usize == rest => {
                batch.written += rest;
                batch.stage = if dsync && !batch.short { Stage::Durable } else { Stage::Written };
                if acknowledges_early() {
                    batch.stage = Stage::Durable;
                    self.owed =
                        Some(batch.file).filter(|_| mutants::is(Mutant::ReceiptBeforeFsync));
                }
                return Ok(());
            }
            Ok(written) if *written > 0 && mutants::is(Mutant::ShortWriteIgnored) => {
                batch.written += rest;
                batch.stage = if dsync { Stage::Durable } else { Stage::Written };
                return Ok(());
            }
            Ok(written)
                if !batch.short
                    && *written > 0
                    && (*written as usize) < rest
                    && written.is_multiple_of(BLOCK_BYTES as u64) =>
            {
                batch.written += *written as usize;
                batch.short = true;
                batch.stage = Stage::ToWrite;
                return Ok(());
            }
            Ok(written) => FlushFailure {
                stage: "write",
                file: batch.file,
                errno: None,
                message: format!("{written} of {rest} bytes written"),
            },
            Err(error) => failure("write", batch.file, error),
        };
        self.failed = true;
        Err(failure)
    }

    /// The end of a sync.
    pub(crate) fn handle_sync(
        &mut self,
        id: u64,
        result: &std::io::Result<u64>,
    ) -> Result<(), FlushFailure> {
        let (syncing, file) = self.syncing.take().expect("a sync was in flight");
        assert_eq!(syncing, id, "one sync at a time");
        if let Err(error) = result {
            if mutants::is(Mutant::FsyncRetried) {
                self.sync_again(id);
                return Ok(());
            }
            self.failed = true;
            return Err(failure("fdatasync", file, error));
        }
        for batch in &mut self.in_flight {
            if batch.stage == Stage::Syncing(id) {
                batch.stage = Stage::Durable;
            }
        }
        Ok(())
    }

    /// What a failed sync must not lead to: see [`Mutant::FsyncRetried`].
    fn sync_again(&mut self, id: u64) {
        for batch in &mut self.in_flight {
            if batch.stage == Stage::Syncing(id) {
                batch.stage = Stage::Written;
            }
        }
    }

    /// The next batch that is durable with all before it.
    pub(crate) fn poll_durable(&mut self) -> Option<DurableBatch> {
        if self.failed || self.in_flight.front()?.stage != Stage::Durable {
            return None;
        }
        let InFlight { batch, offset, written, sealed_ns, .. } = self.in_flight.pop_front()?;
        assert_eq!(batch.sequence, self.durable + 1, "receipts leave in order");
        assert_eq!(written, batch.padded_length);
        self.durable = batch.sequence;
        assert!(self.durable <= self.sealed);
        Some(DurableBatch { batch, offset, sealed_ns })
    }

    /// After a failure: every batch whose outcome nobody knows.
    pub(crate) fn take_unknown(&mut self) -> Vec<Sealed> {
        self.failed = true;
        self.in_flight.drain(..).map(|in_flight| in_flight.batch).collect()
    }
}

fn acknowledges_early() -> bool {
    mutants::is(Mutant::NoFsync) || mutants::is(Mutant::ReceiptBeforeFsync)
}

fn failure(stage: &'static str, file: FileId, error: &std::io::Error) -> FlushFailure {
    FlushFailure { stage, file, errno: error.raw_os_error(), message: error.to_string() }
}
