//! The metadata store: what a storage node embeds. Commands go to the leader's own stream when that may
//! be, and through Raft otherwise; each answer says what it promises.
//!
//! ```text
//! MetadataStore ─▶ executing.rs ─▶ fast.rs (gate) ─▶ the stream of this node ─▶ applied ─▶ outcome
//!                       │        └▶ control (Extend) ─▶ Raft ─▶ machine.rs ────┘
//!                       └─▶ peers.rs ─▶ the leader's answering.rs
//! ```

pub(crate) mod answering;
pub(crate) mod executing;
pub(crate) mod fast;
mod partitions;
pub(crate) mod peers;
mod prometheus;
pub(crate) mod reading;
pub(crate) mod sessions;
pub(crate) mod stats;
mod status;
#[cfg(test)]
mod tests;
pub(crate) mod times;
mod wal;
pub(crate) mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use ringwal_replication::Ack;
use ringwal_replication::node_id::NodeId;
use tokio::sync::oneshot;

use crate::blocking::block_on;
use crate::command::{BrokerId, Command, Expected, Record, TopicName, Watermark};
use crate::control::{ChangeError, MemberChange, Order, Switch};
use crate::limits::METADATA_VERSION;
use crate::metadata::{Metadata, Progress};
use crate::node::{Inner, Raft};
use crate::replica::Led as _;
use crate::replica::product::boottime_ns;
use crate::session::Session;
use crate::state::{Applied, Done, Rejection, State, TopicId};
use crate::thread::Task;
use executing::{Answered, Unanswered, is_of_session};
pub use partitions::{Partitions, ProduceError};
use sessions::{Own, Sessions};
pub use status::{MemberStatus, Mode, StoreStatus};
pub use wal::{MetadataReplicator, MetadataWal, ReplicateError, WalError};

/// What an order may take beside the time that it says.
const ORDER_EXTRA: Duration = Duration::from_secs(5);
/// How long a change of the membership may take: new voters have to catch up.
const CHANGE_LIMIT: Duration = Duration::from_secs(90);

/// A command that was executed, and what that is worth.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct Executed {
    /// Epoch of its record.
    pub epoch: u64,
    /// Offset of its record in the metadata stream.
    pub offset: u64,
    /// Where it is durable: with [`Ack::Local`] it can be lost with the leader.
    pub durable: Ack,
    /// It had been executed before, by an attempt whose answer was lost.
    pub is_retry: bool,
    /// What it did.
    pub done: Done,
}

/// Why a command is not known to be done.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExecuteError {
    /// It was executed, and did nothing: certain, on every node.
    #[error("rejected: {0}")]
    Rejected(Rejection),
    /// It says something that no command may say. Nothing was sent.
    #[error("no command: {0}")]
    Invalid(String),
    /// It certainly was not executed, and will not be.
    #[error("not done: {why}")]
    NotDone {
        /// Why.
        why: String,
    },
    /// It may be executed, now or later. Look at the state, or execute it again if twice does no harm.
    #[error("outcome unknown: {why}")]
    Unknown {
        /// Why.
        why: String,
    },
}

/// Why a read is not known to be up to date.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// No leader has said, in time, up to where it has to see.
    #[error("not known to be up to date: {0}; try again, or read what is here")]
    NotConfirmed(String),
}

/// The store of one node. Clones are the same.
///
/// Reads of [`MetadataStore::metadata`] are local: they see what this node has applied, and say up to which
/// offset. What they see may be taken back, together with a new epoch, while no majority has it.
#[derive(Clone)]
pub struct MetadataStore {
    raft: Arc<Inner>,
    sessions: Arc<Sessions>,
    wal: Option<MetadataWal>,
    replicator: Option<MetadataReplicator>,
}

impl fmt::Debug for MetadataStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MetadataStore").field("node", &self.raft.node.id()).finish_non_exhaustive()
    }
}

impl MetadataStore {
    /// A store without the fast path: every command goes through Raft, whatever is switched on.
    pub fn new(raft: &Raft) -> Self {
        Self::build(raft, None, None)
    }

    /// A store with the fast path: when this node leads and holds its lease, a command is answered when
    /// it is durable in this node's write-ahead log, and applied. Anything else goes through Raft.
    pub fn new_with_wal(raft: &Raft, wal: MetadataWal, replicator: MetadataReplicator) -> Self {
        Self::build(raft, Some(wal), Some(replicator))
    }

    fn build(
        raft: &Raft,
        wal: Option<MetadataWal>,
        replicator: Option<MetadataReplicator>,
    ) -> Self {
        let has_wal = wal.is_some();
        let raft = raft.inner.clone();
        raft.shared.switch.send_modify(|switch| switch.has_wal |= has_wal);
        Self { raft, sessions: Arc::default(), wal, replicator }
    }

    /// Executes a command, wherever the leader is, once: on this node, or by forwarding it. It is tried
    /// again within [`RaftOptions::command_limit_ms`](crate::RaftOptions::command_limit_ms). Nothing
    /// happens before the future is polled or waited for.
    ///
    /// The outcome's errors are [`ExecuteError`]s.
    pub fn execute(&self, command: Command, ack: Ack) -> Execution {
        self.execute_within(command, ack, self.raft.config.raft.command_limit())
    }

    /// As [`MetadataStore::execute`], within another limit. What goes the fast way waits for this node's
    /// device, however long that takes.
    pub fn execute_within(&self, command: Command, ack: Ack, limit: Duration) -> Execution {
        let store = self.clone();
        Execution(Box::pin(async move { store.run(command, ack, limit).await }))
    }

    /// As [`MetadataStore::execute_within`], as this command of a session that somebody else has: once, also
    /// when it is asked at several nodes.
    pub(crate) async fn run_as(
        &self,
        session: Session,
        command: Command,
        ack: Ack,
        limit: Duration,
    ) -> Result<Executed, ExecuteError> {
        let is_create = matches!(command, Command::CreateTopic { .. });
        let record = Record { time_ms: answering::now_ms(), session: Some(session), command };
        match record.encode() {
            Err(error) => Err(ExecuteError::Invalid(error.to_string())),
            Ok(record) => self.run_record(&record, is_create, ack, limit).await,
        }
    }

    async fn run(
        &self,
        command: Command,
        ack: Ack,
        limit: Duration,
    ) -> Result<Executed, ExecuteError> {
        let own = self.session().await?;
        let first = self.run_as(own.command(), command.clone(), ack, limit).await;
        // The cluster has forgotten the session, and nothing of this command was executed in it.
        match first {
            Err(ExecuteError::Rejected(why)) if is_of_session(&Err(why)) => own.forget(),
            outcome => return outcome,
        }
        let own = self.session().await?;
        self.run_as(own.command(), command, ack, limit).await
    }

    async fn session(&self) -> Result<Own, ExecuteError> {
        let applied = self.raft.metadata.progress().end;
        self.sessions.take(applied).await.map_err(|error| {
            let why = format!("no random number for a session: {error}");
            ExecuteError::NotDone { why }
        })
    }

    async fn run_record(
        &self,
        record: &[u8],
        is_create: bool,
        ack: Ack,
        limit: Duration,
    ) -> Result<Executed, ExecuteError> {
        let began = Instant::now();
        let executor = &self.raft.started.executor;
        let fast = executor.try_execute_fast(record, ack).await;
        let is_fast = matches!(fast, Some(Ok(_)));
        let answered = match fast {
            Some(Ok(answered)) => Ok(answered),
            // The same session and number: it executes once.
            Some(Err(_)) | None => {
                let (done, outcome) = oneshot::channel();
                let was_given = fast.is_some();
                let record = record.to_vec().into();
                let task = Task::Execute { record, ack, limit, done };
                let closed = || "the node is closed".to_owned();
                let sent = self.raft.tasks.send(task).await;
                let slow = match sent {
                    Ok(()) => outcome.await.unwrap_or_else(|_| Err(Unanswered::Unknown(closed()))),
                    Err(_) => Err(Unanswered::NotDone(closed())),
                };
                match (slow, fast) {
                    // What was given to the stream before may still be there.
                    (Err(Unanswered::NotDone(_) | Unanswered::NotLeader(_)), Some(Err(first)))
                        if was_given =>
                    {
                        Err(first)
                    }
                    // What an attempt before it did is not known then.
                    (Ok(answered), Some(Err(Unanswered::Unknown(why))))
                        if is_of_session(&answered.applied.outcome) =>
                    {
                        Err(Unanswered::Unknown(why))
                    }
                    (slow, _) => slow,
                }
            }
        };
        if answered.is_ok() {
            let counters = &self.raft.counters;
            let latencies = match (is_create, is_fast) {
                (true, true) => &counters.create_fast,
                (true, false) => &counters.create_fallback,
                (false, true) => &counters.other_fast,
                (false, false) => &counters.other_fallback,
            };
            latencies.add(began.elapsed());
        }
        self.executed(answered)
    }

    fn executed(&self, answered: Result<Answered, Unanswered>) -> Result<Executed, ExecuteError> {
        match answered {
            Ok(Answered { applied, durable }) => {
                let Applied { epoch, offset, is_retry, outcome } = applied;
                let done = outcome.map_err(ExecuteError::Rejected)?;
                Ok(Executed { epoch, offset, durable, is_retry, done })
            }
            Err(Unanswered::NotDone(why)) => Err(ExecuteError::NotDone { why }),
            Err(Unanswered::NotLeader(_)) => {
                Err(ExecuteError::NotDone { why: "no leader is known".to_owned() })
            }
            Err(Unanswered::Unknown(why)) => {
                stats::add(&self.raft.counters.unknown);
                Err(ExecuteError::Unknown { why })
            }
        }
    }

    /// Makes a topic; see [`Command::CreateTopic`]. Answered when it is durable on the leader.
    pub fn create_topic(
        &self,
        name: TopicName,
        partitions: u32,
        replication_factor: u16,
        configuration: BTreeMap<String, String>,
    ) -> Execution {
        let create = Command::CreateTopic { name, partitions, replication_factor, configuration };
        self.execute(create, Ack::Local)
    }

    /// Drops a topic; see [`Command::DeleteTopic`].
    pub fn delete_topic(&self, name: TopicName) -> Execution {
        self.execute(Command::DeleteTopic { name }, Ack::Local)
    }

    /// Makes a broker known; see [`Command::RegisterBroker`].
    pub fn register_broker(&self, broker: BrokerId, addresses: Vec<String>) -> Execution {
        let knows = METADATA_VERSION;
        self.execute(Command::RegisterBroker { broker, addresses, knows }, Ack::Local)
    }

    /// Forgets a broker; see [`Command::UnregisterBroker`].
    pub fn unregister_broker(&self, broker: BrokerId) -> Execution {
        self.execute(Command::UnregisterBroker { broker }, Ack::Local)
    }

    /// Says who leads a partition, and who is in sync; see [`Command::SetLeader`].
    pub fn set_leader(
        &self,
        topic: TopicId,
        partition: u32,
        leader: Option<BrokerId>,
        leader_epoch: u64,
        in_sync: BTreeSet<BrokerId>,
    ) -> Execution {
        let set = Command::SetLeader { topic, partition, leader, leader_epoch, in_sync };
        self.execute(set, Ack::Local)
    }

    /// Raises high watermarks, many with one command; see [`Command::UpdateWatermarks`].
    pub fn update_watermarks(&self, watermarks: Vec<Watermark>) -> Execution {
        self.execute(Command::UpdateWatermarks { watermarks }, Ack::Local)
    }

    /// Sets a key of the embedder; see [`Command::PutKey`].
    pub fn put_key(&self, key: Vec<u8>, value: Vec<u8>, expected: Expected) -> Execution {
        self.execute(Command::PutKey { key, value, expected }, Ack::Local)
    }

    /// Removes a key of the embedder; see [`Command::DeleteKey`].
    pub fn delete_key(&self, key: Vec<u8>, expected: Expected) -> Execution {
        self.execute(Command::DeleteKey { key, expected }, Ack::Local)
    }

    /// What this node has applied: to read, and to wait for.
    pub fn metadata(&self) -> &Metadata {
        &self.raft.metadata
    }

    /// Waits until this node has applied everything that was answered anywhere before this was called, and
    /// says up to where that is. The leader says so, when it holds its lease or has asked a majority, and a
    /// majority has all of it. What is read here then is at least as new; it may be newer than what is
    /// committed: [`MetadataStore::read`] looks at that as well.
    ///
    /// The outcome's error is [`ReadError::NotConfirmed`].
    pub fn linearize(&self, limit: Duration) -> Linearizing {
        let raft = self.raft.clone();
        Linearizing(Box::pin(async move {
            let closed = || ReadError::NotConfirmed("the node is closed".to_owned());
            let (done, end) = oneshot::channel();
            let task = Task::ReadEnd { limit, done };
            raft.tasks.send(task).await.map_err(|_| closed())?;
            let told = end.await.map_err(|_| closed())?.map_err(|error| match error {
                Unanswered::NotDone(why) | Unanswered::Unknown(why) => ReadError::NotConfirmed(why),
                Unanswered::NotLeader(_) => ReadError::NotConfirmed("no leader is known".into()),
            })?;
            Ok(told)
        }))
    }

    /// A linearizable read: what `look` sees of this node's state has everything that was answered anywhere
    /// before this was called, and all of it is committed. It may look several times.
    ///
    /// The outcome's error is [`ReadError::NotConfirmed`].
    pub fn read<V: Send + 'static>(
        &self,
        limit: Duration,
        look: impl Fn(&State) -> V + Send + 'static,
    ) -> Reading<V> {
        let store = self.clone();
        Reading(Box::pin(async move {
            let deadline = Instant::now() + limit;
            let left = || deadline.saturating_duration_since(Instant::now());
            reading::read(store.metadata(), || store.linearize(left()), look).await
        }))
    }

    /// The right to append to the streams of partitions, when this node leads and holds its lease: of the
    /// present epoch. Whoever leads does for all topics; [`StoreStatus::leader`] says who that is. Keep it
    /// for as long as it takes records.
    pub fn partitions(&self) -> Option<Partitions> {
        let led = self.raft.started.executor.led.borrow();
        let led = led.as_ref().filter(|led| led.ended().is_none())?;
        let (term, until) = self.raft.started.lease.valid_until();
        let is_valid = term == led.epoch() && until? > boottime_ns();
        is_valid.then(|| Partitions::new(led.leadership().clone()))
    }

    /// Whether the fast path is switched on at this node, for when it leads.
    pub fn is_fast_path(&self) -> bool {
        self.raft.shared.switch.borrow().is_on
    }

    /// Switches the fast path on or off at this node, now and for when it leads. Commands that are under
    /// way get their outcome; those that come go through Raft, in order. Not kept over a restart: that is
    /// what the configuration is for.
    pub fn set_fast_path(&self, is_on: bool) {
        self.raft.shared.switch.send_if_modified(|switch: &mut Switch| {
            let is_new = switch.is_on != is_on;
            switch.is_on = is_on;
            is_new
        });
    }

    /// How this node and its cluster are.
    pub fn status(&self) -> StoreStatus {
        status::status(&self.raft)
    }

    /// Gives the leadership to another voter, or to whichever is furthest. What is in flight has its
    /// outcome before anybody is told. To be asked of the leader. Done when it is elected, before it has an
    /// epoch. In any case this node's term is over: if somebody else is elected than was named, that is
    /// [`ChangeError::OtherElected`].
    ///
    /// The outcome's errors are [`ChangeError`]s.
    pub fn transfer_leader(&self, to: Option<NodeId>, limit: Duration) -> Changing {
        // A node that does not lead yet does not look at orders.
        self.order(limit + ORDER_EXTRA, move |done| Order::Transfer { to, limit, done })
    }

    /// Changes who is in the cluster. To be asked of the leader.
    ///
    /// The outcome's errors are [`ChangeError`]s.
    pub fn change_members(&self, change: MemberChange) -> Changing {
        self.order(CHANGE_LIMIT, move |done| Order::Change { change, done })
    }

    fn order(
        &self,
        limit: Duration,
        order: impl FnOnce(oneshot::Sender<Result<(), ChangeError>>) -> Order + Send + 'static,
    ) -> Changing {
        let raft = self.raft.clone();
        Changing(Box::pin(async move {
            let (done, outcome) = oneshot::channel();
            let closed = || ChangeError::NotNow("the node is closed".to_owned());
            let (limited, in_time) = oneshot::channel();
            let task = Task::Order { order: order(done), outcome, limit, done: limited };
            raft.tasks.send(task).await.map_err(|_| closed())?;
            let lost = || ChangeError::Unknown("the node is closed".to_owned());
            in_time.await.unwrap_or_else(|_| Err(lost()))
        }))
    }

    /// Its write-ahead log, if it was built with one.
    pub fn wal(&self) -> Option<&MetadataWal> {
        self.wal.as_ref()
    }

    /// Its replicator, if it was built with one.
    pub fn replicator(&self) -> Option<&MetadataReplicator> {
        self.replicator.as_ref()
    }

    /// The node that it is of.
    pub fn raft(&self) -> Raft {
        Raft { inner: self.raft.clone() }
    }

    /// For whoever the node holds itself.
    pub(crate) fn downgrade(&self) -> WeakStore {
        WeakStore { raft: Arc::downgrade(&self.raft), sessions: self.sessions.clone() }
    }
}

/// A store that does not keep its node.
#[derive(Clone)]
pub(crate) struct WeakStore {
    raft: Weak<Inner>,
    sessions: Arc<Sessions>,
}

impl WeakStore {
    /// The store, without its log and its replicator, while its node is there.
    pub(crate) fn upgrade(&self) -> Option<MetadataStore> {
        let (raft, sessions) = (self.raft.upgrade()?, self.sessions.clone());
        Some(MetadataStore { raft, sessions, wal: None, replicator: None })
    }
}

macro_rules! outcome {
    ($(#[$doc:meta])* $name:ident, $output:ty, $error:ty) => {
        $(#[$doc])*
        #[must_use = "nothing happens until it is polled or waited for"]
        pub struct $name(Pin<Box<dyn Future<Output = Result<$output, $error>> + Send>>);

        impl $name {
            /// Blocks the thread until the outcome is known.
            ///
            /// # Errors
            /// Why there is none, or a bad one.
            pub fn wait(self) -> Result<$output, $error> {
                block_on(self)
            }
        }

        impl Future for $name {
            type Output = Result<$output, $error>;

            fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
                self.0.as_mut().poll(context)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(stringify!($name))
            }
        }
    };
}

outcome!(
    /// A command: a future for any runtime, or [`Execution::wait`]. Dropping it detaches: what has begun may
    /// still be done.
    Execution,
    Executed,
    ExecuteError
);
/// See [`MetadataStore::read`]: a future for any runtime, or [`Reading::wait`].
#[must_use = "nothing happens until it is polled or waited for"]
pub struct Reading<V>(Pin<Box<dyn Future<Output = ReadOutcome<V>> + Send>>);

type ReadOutcome<V> = Result<(Progress, V), ReadError>;

impl<V> Reading<V> {
    /// Blocks the thread until it is known.
    ///
    /// # Errors
    /// Why it is not.
    pub fn wait(self) -> Result<(Progress, V), ReadError> {
        block_on(self)
    }
}

impl<V> Future for Reading<V> {
    type Output = Result<(Progress, V), ReadError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(context)
    }
}

impl<V> fmt::Debug for Reading<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reading")
    }
}

outcome!(
    /// See [`MetadataStore::linearize`].
    Linearizing,
    Progress,
    ReadError
);
outcome!(
    /// See [`MetadataStore::change_members`] and [`MetadataStore::transfer_leader`].
    Changing,
    (),
    ChangeError
);
