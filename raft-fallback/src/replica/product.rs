//! The product's replica: a driven [`Node`], and the thread that applies.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use ringwal_engine::{Append, CommitError, Engine, EpochStart, EpochTable, StreamId};
use ringwal_replication::config::Member;
use ringwal_replication::driven::{self, ExtendError, Extension, Members};
use ringwal_replication::history::Held;
use ringwal_replication::node_id::{NodeId, RunId};
use ringwal_replication::promise::{Promise, is_replicated};
use ringwal_replication::{Ack, Leadership, LedCommitError, Node, Pending};

use super::{
    AddError, Begun, Holding, Led, LedError, METADATA_STREAM, OutcomeError, Replica, Standing,
};
use crate::applying::{self, Applying};
use crate::base::Base;
use crate::command::{Command, Record};
use crate::raft::LogId;
use crate::state::Applied;
use crate::store::answering::now_ms;

/// See the module. Clones are the same.
#[derive(Clone)]
pub(crate) struct NodeReplica {
    node: Arc<Node>,
    applying: Applying,
    /// The last entry in the base that this run has saved: one is made beside the log that goes on, and another
    /// one may come meanwhile.
    saved: Arc<Mutex<Option<LogId>>>,
}

/// A leadership of a [`Node`].
#[derive(Clone)]
pub(crate) struct NodeLed {
    leadership: Leadership,
    engine: Engine,
}

impl NodeReplica {
    pub(crate) fn new(node: Arc<Node>, applying: Applying) -> Self {
        Self { node, applying, saved: Arc::default() }
    }

    fn engine(&self) -> &Engine {
        self.node.engine()
    }
}

impl NodeLed {
    /// For streams that are not the metadata's.
    pub(crate) fn leadership(&self) -> &Leadership {
        &self.leadership
    }
}

pub(crate) use ringwal_engine::boottime_ns;

fn holding(stream: StreamId, held: &Held) -> Holding {
    let Held { trimmed, end, epochs } = held;
    let epoch = end.checked_sub(1).map_or(0, |last| epochs.epoch_at(last));
    Holding { stream, trimmed: *trimmed, end: *end, epoch }
}

fn standing(held: &BTreeMap<StreamId, Held>, begun: Option<Promise>) -> Standing {
    let streams = held.iter().map(|(stream, held)| holding(*stream, held)).collect();
    Standing { streams, begun }
}

impl Replica for NodeReplica {
    type Led = NodeLed;

    fn id(&self) -> NodeId {
        self.node.id()
    }

    fn run(&self) -> RunId {
        self.node.run()
    }

    fn engine(&self) -> [u8; 16] {
        self.node.engine().id()
    }

    fn begun(&self) -> Option<Promise> {
        self.node.begun()
    }

    fn unfit(&self) -> Option<String> {
        if let Some(cause) = self.engine().poisoned() {
            return Some(format!("its engine has failed: {cause}"));
        }
        let lacking = self.node.stats().repairing?;
        Some(format!("it was repaired and not everything is back: {lacking}"))
    }

    fn has_failed(&self) -> bool {
        self.engine().poisoned().is_some()
    }

    fn boottime_ns(&self) -> u64 {
        boottime_ns()
    }

    fn now_ms(&self) -> u64 {
        now_ms()
    }

    async fn promise(&self, promise: Promise) -> Result<Standing, String> {
        let promised = self.node.promise(promise).await.map_err(|error| error.to_string())?;
        Ok(standing(&promised.held, promised.begun))
    }

    async fn begin(
        &self,
        promise: Promise,
        starts: Vec<(StreamId, u64)>,
    ) -> Result<Begun<NodeLed>, String> {
        let start = starts.iter().find(|(stream, _)| *stream == METADATA_STREAM);
        let start = start.map_or(0, |(_, start)| *start);
        let begun = loop {
            match self.node.begin(promise, starts.clone()).await {
                // It may be begun again: when there is room for what is to be kept as an orphan, perhaps.
                Err(error @ (driven::BeginError::Busy | driven::BeginError::Failed(_)))
                    if self.engine().poisoned().is_none() =>
                {
                    tracing::warn!(epoch = promise.epoch, %error, "an epoch cannot begin here yet");
                    tokio::time::sleep(BEGIN_AGAIN).await;
                }
                begun => break begun.map_err(|error| error.to_string())?,
            }
        };
        let begun = match begun {
            driven::Begun::Before => return Ok(Begun::Before),
            driven::Begun::Following | driven::Begun::Overtaken => Begun::Following,
            driven::Begun::Leading(leadership) => {
                Begun::Leading(NodeLed { leadership, engine: self.engine().clone() })
            }
        };
        // A state machine that has stopped stays so; the streams go on.
        if let Err(stopped) = self.applying.epoch_begun(promise.epoch, Some(start)).await {
            tracing::error!(%stopped, "the state machine does not follow the new epoch");
        }
        Ok(begun)
    }

    async fn begin_known(
        &self,
        promise: Promise,
        streams: Vec<(StreamId, Vec<EpochStart>)>,
    ) -> Result<(), String> {
        let start = streams.iter().find(|(stream, _)| *stream == METADATA_STREAM);
        let last = start.and_then(|(_, epochs)| epochs.last());
        let start = last.filter(|last| last.epoch == promise.epoch).map(|last| last.start);
        let table = |(stream, epochs)| {
            let table = EpochTable::from_entries(epochs);
            table.map(|table| (stream, table)).ok_or(format!("the epochs of stream {stream} fall"))
        };
        let tables = streams.into_iter().map(table).collect::<Result<_, _>>()?;
        let begun = self.node.begin_known(promise, tables).await;
        begun.map_err(|error| error.to_string())?;
        if let Err(stopped) = self.applying.epoch_begun(promise.epoch, start).await {
            tracing::error!(%stopped, "the state machine does not follow the new epoch");
        }
        Ok(())
    }

    fn epochs(&self) -> Vec<(StreamId, Vec<EpochStart>)> {
        let engine = self.engine();
        let streams = engine.streams().into_iter().map(|held| held.stream);
        let mut streams: Vec<_> = streams
            .filter(|stream| is_replicated(*stream))
            .map(|stream| (stream, engine.stream(stream).epochs()))
            .collect();
        streams.sort_unstable_by_key(|(stream, _)| *stream);
        streams
    }

    async fn load_base(&self) -> Result<Option<Base>, String> {
        let directory = self.engine().directory().to_owned();
        blocking(move || Base::load(&directory).map_err(|error| error.to_string())).await
    }

    async fn save_base(&self, base: Base) -> Result<(), String> {
        let directory = self.engine().directory().to_owned();
        let saved = self.saved.clone();
        blocking(move || {
            let mut saved = saved.lock().unwrap_or_else(PoisonError::into_inner);
            if saved.is_none_or(|saved| saved < base.last) {
                base.save(&directory).map_err(|error| error.to_string())?;
                *saved = Some(base.last);
            }
            Ok(())
        })
        .await
    }

    async fn extend(&self, epoch: u64, base: u64, records: Vec<Bytes>) -> Result<(), AddError> {
        let committed = base + records.len() as u64;
        let extension = Extension { epoch, stream: METADATA_STREAM, base, records, committed };
        match self.node.extend(extension).await {
            Ok(()) => Ok(()),
            Err(ExtendError::Lacks { end, .. }) => Err(AddError::Lacks { end }),
            Err(ExtendError::NotBegun { .. }) => Err(AddError::NotBegun),
            Err(error) => Err(AddError::Failed(error.to_string())),
        }
    }

    async fn fetch(
        &self,
        from: &Member,
        wanted: Vec<(StreamId, Range<u64>)>,
    ) -> Result<(), String> {
        self.node.fetch_from(from, wanted).await.map_err(|error| error.to_string())
    }

    fn set_members(
        &self,
        nodes: Vec<Member>,
        voters: Vec<BTreeSet<NodeId>>,
        engines: BTreeMap<NodeId, [u8; 16]>,
    ) {
        self.node.set_members(Members { nodes, voters, engines });
    }

    fn metadata_end(&self) -> u64 {
        self.engine().stream(METADATA_STREAM).end()
    }

    fn committed_ends(&self) -> Vec<(StreamId, u64)> {
        self.node.stats().committed.into_iter().collect()
    }

    fn standing(&self) -> Standing {
        let engine = self.engine();
        let streams = engine.streams().into_iter().filter(|held| is_replicated(held.stream));
        let mut streams: Vec<Holding> = streams
            .map(|held| {
                let epochs = engine.stream(held.stream).epochs();
                let before = epochs.iter().rev().find(|start| start.start < held.end);
                Holding {
                    stream: held.stream,
                    trimmed: held.trimmed,
                    end: held.end,
                    epoch: before.map_or(0, |start| start.epoch),
                }
            })
            .collect();
        streams.sort_unstable_by_key(|held| held.stream);
        Standing { streams, begun: self.begun() }
    }

    async fn read(&self, offsets: Range<u64>) -> Result<Vec<Bytes>, String> {
        let stream = self.engine().stream(METADATA_STREAM);
        let read = move || {
            let records = stream.read(offsets).map_err(|error| error.to_string())?;
            let mut bytes = 0;
            let mut taken = Vec::new();
            for record in records {
                let record = record.map_err(|error| error.to_string())?;
                bytes += record.payload().len();
                taken.push(Bytes::copy_from_slice(record.payload()));
                if bytes >= READ_BYTES_MAX {
                    break;
                }
            }
            Ok(taken)
        };
        blocking(read).await
    }

    async fn outcome(&self, epoch: u64, offset: u64) -> Result<Applied, OutcomeError> {
        self.applying.outcome(epoch, offset).await.map_err(|error| match error {
            applying::OutcomeError::Superseded { progress } => OutcomeError::Superseded(progress),
            error => OutcomeError::Unknown(error.to_string()),
        })
    }
}

/// What waits for a disk, on a thread that may.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_| Err("the thread that waits for the disk has panicked".to_owned()))
}

/// Between two attempts to begin an epoch.
const BEGIN_AGAIN: Duration = Duration::from_millis(100);
/// About what is read at once for an entry.
const READ_BYTES_MAX: usize = 1 << 20;

/// A record that is in the engine's queue, or further.
pub(crate) struct PendingOffset(Pending<Append>);

impl Future for PendingOffset {
    type Output = Result<u64, LedError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let acknowledged = Pin::new(&mut self.0).poll(context);
        acknowledged.map(|outcome| match outcome {
            Ok(acknowledged) => Ok(acknowledged.receipt.offset()),
            Err(error) => Err(led_error(&error)),
        })
    }
}

/// What is certain of a record without a receipt.
fn led_error(error: &LedCommitError) -> LedError {
    let why = error.to_string();
    match error {
        LedCommitError::NotLeading { .. }
        | LedCommitError::NoLease { .. }
        | LedCommitError::Engine(
            CommitError::NotWritten(_) | CommitError::Refused(_) | CommitError::Closed,
        ) => LedError::NotTaken(why),
        _ => LedError::Unknown(why),
    }
}

impl Led for NodeLed {
    type Pending = PendingOffset;

    fn epoch(&self) -> u64 {
        self.leadership.epoch()
    }

    fn ended(&self) -> Option<String> {
        self.leadership.ended()
    }

    fn lease_until(&self, boottime_ns: u64) {
        self.leadership.lease_until(boottime_ns);
    }

    fn holds_lease(&self) -> bool {
        self.leadership.holds_lease()
    }

    async fn append(&self, record: &[u8]) -> Result<PendingOffset, LedError> {
        let pending = self.leadership.append_async(METADATA_STREAM, record, Ack::Local).await;
        pending.map(PendingOffset).map_err(|error| LedError::NotTaken(error.to_string()))
    }

    /// Records of a stream are sealed, or refused, in the order in which they were given. So a last one,
    /// which does nothing, has its outcome behind all others.
    async fn drained(&self) -> Result<(), LedError> {
        let unknown = |error: &dyn std::fmt::Display| LedError::Unknown(error.to_string());
        let command = Command::RaiseVersion { version: 1 };
        let nothing = Record { time_ms: 0, session: None, command };
        let nothing = nothing.encode().map_err(|error| unknown(&error))?;
        let stream = self.engine.stream(METADATA_STREAM);
        // Whether it is taken does not matter: with the epoch or the lease over, it is not.
        let last = stream.append_async(&nothing).await.map_err(|error| unknown(&error))?;
        if let Err(error) = last.await {
            tracing::debug!(%error, "the last record of the fast path");
        }
        let barrier = self.engine.barrier().map_err(|error| unknown(&error))?;
        barrier.await.map_err(|error| unknown(&error))
    }

    async fn committed(&self, end: u64) -> Result<(), LedError> {
        let committed = self.leadership.committed(METADATA_STREAM, end).await;
        committed.map_err(|error| LedError::Unknown(error.to_string()))
    }

    fn committed_end(&self, stream: StreamId) -> u64 {
        self.leadership.committed_end(stream)
    }
}
