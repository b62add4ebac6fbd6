//! The write-ahead log of the metadata, and how its records come to other nodes: what a store with the fast
//! path is built with.

use std::fmt;
use std::ops::RangeBounds;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ringwal_engine::{Record as EngineRecord, Stream};

use crate::command::{Command, Record};
use crate::node::{Inner, Raft};
use crate::replica::{Led as _, METADATA_STREAM};
use crate::store::fast::Taken;

/// Name of the metadata stream as a topic.
const TOPIC_NAME: &str = "__metadata";

/// Why a command is not in the write-ahead log.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WalError {
    /// It is no command.
    #[error("no command: {0}")]
    Invalid(String),
    /// The fast path is closed here. Nothing was written.
    #[error(
        "the fast path is closed here ({0}): execute the command by the store, which knows other ways"
    )]
    Closed(super::stats::Reason),
    /// It has no receipt.
    #[error("{0}")]
    NoReceipt(crate::replica::LedError),
    /// The log cannot be read.
    #[error("the metadata stream cannot be read: {0}")]
    Read(#[from] ringwal_engine::ReadError),
}

/// The metadata stream of a node: stream 0, `__metadata`, partition 0. Whoever leads appends to it; every node
/// holds it, and its state is what it says.
#[derive(Clone)]
pub struct MetadataWal {
    raft: Arc<Inner>,
}

impl fmt::Debug for MetadataWal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MetadataWal").field("end", &self.end()).finish_non_exhaustive()
    }
}

impl MetadataWal {
    /// That of a node.
    pub fn new(raft: &Raft) -> Self {
        Self { raft: raft.inner.clone() }
    }

    /// The stream's name as a topic.
    pub fn topic_name(&self) -> &'static str {
        TOPIC_NAME
    }

    /// The stream's partition in it.
    pub fn partition(&self) -> u32 {
        0
    }

    fn stream(&self) -> Stream {
        self.raft.node.engine().stream(METADATA_STREAM)
    }

    /// Offset after the last durable record.
    pub fn end(&self) -> u64 {
        self.stream().end()
    }

    /// Appends a command when the fast path is open here, and waits until it is *durable* on this node with
    /// the lease held: its offset. Durable is not applied: what comes of it, a rejection too, is known when
    /// [`Metadata::wait_applied`](crate::Metadata::wait_applied) says so, and to whoever looks at the state then. It
    /// carries no session, so appending it again executes it again; the store is what answers with an outcome,
    /// retries and forwards.
    ///
    /// # Errors
    /// See [`WalError`].
    pub async fn append(&self, command: Command) -> Result<u64, WalError> {
        let time_ms = super::answering::now_ms();
        let record = Record { time_ms, session: None, command }.encode();
        let record = record.map_err(|error| WalError::Invalid(error.to_string()))?;
        match self.raft.shared.gate.try_append(&record) {
            Taken::No(why) => Err(WalError::Closed(why)),
            Taken::Yes { offset, .. } => offset.await.map_err(WalError::NoReceipt),
        }
    }

    /// What is durable here, record by record, as it is replayed when a node starts: of an offset range of
    /// the stream.
    ///
    /// # Errors
    /// When it is trimmed, damaged, or the engine closed.
    pub fn replay(
        &self,
        offsets: impl RangeBounds<u64>,
    ) -> Result<impl Iterator<Item = Result<EngineRecord, ringwal_engine::ReadError>>, WalError>
    {
        Ok(self.stream().read(offsets)?)
    }
}

/// Why a record is not known to be with a majority.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplicateError {
    /// This node does not lead.
    #[error("this node does not lead: the record may be with a majority or not")]
    NotLeading,
    /// The epoch ended first.
    #[error("{0}")]
    Unknown(crate::replica::LedError),
}

/// Brings the records of the metadata stream to other nodes. Their frames leave with the sealed batch, from
/// the replication thread, and nobody waits for them; this says when a majority has them.
#[derive(Clone)]
pub struct MetadataReplicator {
    raft: Arc<Inner>,
    counts: Arc<ReplicatorCounts>,
}

#[derive(Debug, Default)]
struct ReplicatorCounts {
    spawned: AtomicU64,
}

impl fmt::Debug for MetadataReplicator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MetadataReplicator").field("counts", &self.counts).finish_non_exhaustive()
    }
}

impl MetadataReplicator {
    /// That of a node.
    pub fn new(raft: &Raft) -> Self {
        Self { raft: raft.inner.clone(), counts: Arc::default() }
    }

    /// Waits until a majority has everything up to the record at `offset`, which this node appended.
    ///
    /// # Errors
    /// See [`ReplicateError`].
    pub async fn replicate(&self, offset: u64) -> Result<(), ReplicateError> {
        let led = self.raft.started.executor.led.borrow().clone();
        let led = led.ok_or(ReplicateError::NotLeading)?;
        led.committed(offset + 1).await.map_err(ReplicateError::Unknown)
    }

    /// Fire and forget: the record at `offset` is on its way, or will be read again for whoever lacks it.
    /// Wakes nobody and waits for nothing; how far followers are is in the node's counts.
    pub fn spawn_replicate(&self, offset: u64) {
        debug_assert!(offset < self.raft.node.engine().stream(METADATA_STREAM).end());
        self.counts.spawned.fetch_add(1, Ordering::Relaxed);
    }

    /// How often [`MetadataReplicator::spawn_replicate`] was called.
    pub fn spawned(&self) -> u64 {
        self.counts.spawned.load(Ordering::Relaxed)
    }
}
