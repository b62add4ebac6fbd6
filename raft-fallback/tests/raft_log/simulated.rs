//! A journal over the product's own shard on a simulated disk, turned by a task of the same thread: the
//! second user of the seam.

use std::future::poll_fn;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use ringwal_engine::disk::sim::{SimDisk, SimHandle, SimOptions};
use ringwal_engine::{
    AppendBatch, AppendError, Change, Clock, OpenError, Options, ReadError, Record, Shard, StreamId,
};
use ringwal_raft_fallback::raft::{Held, Journal};

pub const BATCH_BYTES: usize = 8 << 10;
const SEGMENT_BYTES: u64 = 64 << 10;
const TURN: Duration = Duration::from_micros(300);

pub fn blank_disk(seed: u64) -> SimHandle {
    SimHandle::with_options(SimOptions {
        seed,
        pool_bytes: 24 * BATCH_BYTES,
        slot_bytes: BATCH_BYTES,
        ..SimOptions::default()
    })
}

/// A shard, which a journal, the task that turns it and a test share.
#[derive(Clone)]
pub struct SimJournal(Arc<Mutex<Shard>>);

impl SimJournal {
    pub fn open(sim: &SimHandle) -> Result<Self, OpenError> {
        let disk = Box::new(SimDisk::new(sim.clone()));
        let options = Options::new().batch_bytes_max(BATCH_BYTES);
        let shard = options.open_on(disk, [7; 16], SEGMENT_BYTES, Clock::Manual(sim.clock()))?;
        Ok(Self(Arc::new(Mutex::new(shard))))
    }

    fn shard(&self) -> MutexGuard<'_, Shard> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One turn of the loop. How many commands got their outcome.
    pub fn turn(&self) -> u64 {
        // A shard whose machine is down has told so to whoever waits.
        self.shard().run_once(Some(TURN)).unwrap_or(0)
    }

    /// Gives a record to the shard, if it takes one now.
    pub fn try_append(&self, stream: StreamId, record: &[u8]) -> bool {
        self.shard().append(stream, record).is_ok()
    }

    /// The process is gone.
    pub fn abandon(self) {
        let shard = Arc::into_inner(self.0).expect("nobody else has it any more");
        shard.into_inner().unwrap_or_else(PoisonError::into_inner).abandon();
    }
}

/// Lets others run once.
pub async fn pause() {
    let mut paused = false;
    poll_fn(|context| {
        if std::mem::replace(&mut paused, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

impl Journal for SimJournal {
    async fn append(
        &self,
        stream: StreamId,
        records: &[&[u8]],
    ) -> Result<AppendBatch, AppendError> {
        loop {
            let appended = self.shard().append_batch(stream, records);
            match appended {
                Err(AppendError::Full { .. }) => pause().await,
                outcome => return outcome,
            }
        }
    }

    fn truncate(&self, stream: StreamId, start: u64, epoch: u64) -> Result<Change, AppendError> {
        self.shard().truncate(stream, start, epoch)
    }

    fn skip_to(&self, stream: StreamId, before: u64) -> Result<Change, AppendError> {
        self.shard().skip_to(stream, before)
    }

    fn held(&self, stream: StreamId) -> Held {
        let shard = self.shard();
        let epoch = shard.epochs(stream).last().map_or(0, |last| last.epoch);
        Held { trimmed: shard.trimmed(stream), end: shard.end(stream), epoch }
    }

    async fn read(
        &self,
        stream: StreamId,
        range: Range<u64>,
        bytes_max: usize,
    ) -> Result<Vec<Record>, ReadError> {
        let records = self.shard().read(stream, range)?;
        let mut bytes = 0;
        let until_full = |record: &Result<Record, ReadError>| {
            let wanted = bytes < bytes_max;
            bytes += record.as_ref().map_or(0, |record| record.payload().len());
            wanted
        };
        records.take_while(until_full).collect()
    }

    fn record_bytes_max(&self) -> usize {
        // As Engine::record_bytes_max: a batch less its header and those of a frame and a record.
        BATCH_BYTES - 128 - 4
    }
}
