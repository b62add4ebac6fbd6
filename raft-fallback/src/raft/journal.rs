//! The seam between Raft's log and the engine: what the log needs of it, and nothing more. The product has
//! an [`Engine`] behind it; a simulation a shard that it turns itself.

use std::future::Future;
use std::io;
use std::ops::Range;
use std::sync::mpsc;

use ringwal_engine::{
    AppendBatch, AppendError, Change, Engine, ReadError, Record, Stream, StreamId,
};
use tokio::sync::oneshot;

/// What a stream holds durably.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct Held {
    /// First offset that is not trimmed.
    pub trimmed: u64,
    /// Offset after the last record.
    pub end: u64,
    /// The stream's last epoch.
    pub epoch: u64,
}

/// Streams to write and read. Tokens tell what is durable, as the engine's do: in order for the records of
/// a stream, and in no order between records, changes and streams.
pub trait Journal: Send + Sync + 'static {
    /// Copies records to the end of a stream, all or none after a crash; waits for room only.
    fn append(
        &self,
        stream: StreamId,
        records: &[&[u8]],
    ) -> impl Future<Output = Result<AppendBatch, AppendError>> + Send;

    /// Starts `epoch` at `start` and cuts the records from there on.
    ///
    /// # Errors
    /// As [`Stream::truncate`].
    fn truncate(&self, stream: StreamId, start: u64, epoch: u64) -> Result<Change, AppendError>;

    /// Drops the records below `before`, which may lie behind the end.
    ///
    /// # Errors
    /// As [`Stream::skip_to`].
    fn skip_to(&self, stream: StreamId, before: u64) -> Result<Change, AppendError>;

    /// What a stream holds.
    fn held(&self, stream: StreamId) -> Held;

    /// Durable records from the start of a range on, until they have `bytes_max` or more, at least one if
    /// there is one. Must not block the thread that polls it for as long as a disk takes.
    fn read(
        &self,
        stream: StreamId,
        range: Range<u64>,
        bytes_max: usize,
    ) -> impl Future<Output = Result<Vec<Record>, ReadError>> + Send;

    /// Longest record, in bytes; as many fit one call of [`Journal::append`] when each is counted with 4
    /// bytes more.
    fn record_bytes_max(&self) -> usize;
}

/// The product's journal: an engine, and a thread (`ringwal-raft-rd`) that reads from it, because the engine reads
/// on the caller's thread and Raft's must not wait for a disk. Only entries that are not in memory any
/// more are read: after a restart, and for followers that are far behind.
pub struct EngineJournal {
    engine: Engine,
    reads: mpsc::Sender<Read>,
}

struct Read {
    stream: Stream,
    range: Range<u64>,
    bytes_max: usize,
    answer: oneshot::Sender<Result<Vec<Record>, ReadError>>,
}

impl EngineJournal {
    /// Starts the thread, which ends with the journal.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn new(engine: Engine) -> io::Result<Self> {
        // One read waits for each reader of the log at most.
        let (reads, asked) = mpsc::channel::<Read>();
        std::thread::Builder::new().name("ringwal-raft-rd".into()).spawn(move || {
            while let Ok(Read { stream, range, bytes_max, answer }) = asked.recv() {
                let records = stream.read(range).and_then(|records| take(records, bytes_max));
                // Who asked may have gone.
                let _ = answer.send(records);
            }
        })?;
        Ok(Self { engine, reads })
    }

    /// The engine.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }
}

/// Records until they have `bytes_max`.
fn take(
    records: impl Iterator<Item = Result<Record, ReadError>>,
    bytes_max: usize,
) -> Result<Vec<Record>, ReadError> {
    let mut bytes = 0;
    let mut taken = Vec::new();
    for record in records {
        let record = record?;
        bytes += record.payload().len();
        taken.push(record);
        if bytes >= bytes_max {
            break;
        }
    }
    Ok(taken)
}

impl Journal for EngineJournal {
    async fn append(
        &self,
        stream: StreamId,
        records: &[&[u8]],
    ) -> Result<AppendBatch, AppendError> {
        self.engine.stream(stream).append_batch_async(records).await
    }

    fn truncate(&self, stream: StreamId, start: u64, epoch: u64) -> Result<Change, AppendError> {
        self.engine.stream(stream).truncate(start, epoch)
    }

    fn skip_to(&self, stream: StreamId, before: u64) -> Result<Change, AppendError> {
        self.engine.stream(stream).skip_to(before)
    }

    fn held(&self, stream: StreamId) -> Held {
        let stream = self.engine.stream(stream);
        let epoch = stream.epochs().last().map_or(0, |last| last.epoch);
        Held { trimmed: stream.trimmed(), end: stream.end(), epoch }
    }

    async fn read(
        &self,
        stream: StreamId,
        range: Range<u64>,
        bytes_max: usize,
    ) -> Result<Vec<Record>, ReadError> {
        let (answer, answered) = oneshot::channel();
        let stream = self.engine.stream(stream);
        // The thread ends after this, which holds its sender; if it panicked, nobody answers.
        let _ = self.reads.send(Read { stream, range, bytes_max, answer });
        answered.await.unwrap_or(Err(ReadError::Closed))
    }

    fn record_bytes_max(&self) -> usize {
        self.engine.record_bytes_max()
    }
}
