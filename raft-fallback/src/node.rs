//! One node of a cluster: its replication, its Raft, and the thread that applies. [`Raft::start`] starts
//! them, [`crate::MetadataStore`] is what is built on it.

use std::fmt;
use std::future::Future;
use std::io::Read;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use ringwal_engine::Engine;
use ringwal_replication::config::Member;
use ringwal_replication::{BeginAnew, Node, Requests, StartError as NodeStartError};
use tokio::sync::{Notify, mpsc};

use crate::applying::{self, Applying, ApplyingOptions};
use crate::config::{StoreConfig, StoreConfigError};
use crate::control::{Seen, Shared, Switch};
use crate::metadata::Metadata;
use crate::raft::{EngineJournal, OpenError};
use crate::replica::METADATA_STREAM;
use crate::replica::product::{NodeLed, NodeReplica};
use crate::store::fast::Gate;
use crate::store::peers::{answer, request};
use crate::store::stats::Counters;
use crate::store::wire::{Answer, Ask};
use crate::thread::{self, Inbox, Setup, Started, TASKS_MAX, Task};
use crate::watch;
use crate::wiring::{ENTRIES_KEPT, ENTRIES_PER_BASE, Parts};

/// How long one part of another node's snapshot may take.
const SNAPSHOT_LIMIT: Duration = Duration::from_secs(10);

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The configuration contradicts itself.
    #[error(transparent)]
    Config(#[from] StoreConfigError),
    /// Replication does not start.
    #[error(transparent)]
    Node(Box<NodeStartError>),
    /// There is no state to begin with.
    #[error(transparent)]
    Applying(#[from] applying::StartError),
    /// Raft's log cannot be opened.
    #[error(transparent)]
    Log(#[from] OpenError),
    /// openraft does not start.
    #[error("Raft does not start: {0}")]
    Raft(String),
    /// A thread cannot be started.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
}

impl From<NodeStartError> for StartError {
    fn from(error: NodeStartError) -> Self {
        Self::Node(Box::new(error))
    }
}

/// Answers what operators ask over the port, for the tools. Nobody is answered before it is set.
#[derive(Default)]
pub(crate) struct Operator(OnceLock<Box<Answerer>>);

type Answerer = dyn Fn(Bytes) -> Pin<Box<dyn Future<Output = Bytes> + Send>> + Send + Sync;

impl Operator {
    pub(crate) async fn answer(&self, ask: Bytes) -> Answer {
        match self.0.get() {
            Some(answerer) => Answer::Operator(answerer(ask).await),
            None => Answer::Refused("this node answers no operator".to_owned()),
        }
    }
}

/// A node. Clones are the same one; it runs until [`Raft::close`], or until the last clone and the last
/// store of it are dropped.
#[derive(Clone)]
pub struct Raft {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) node: Arc<Node>,
    pub(crate) config: StoreConfig,
    pub(crate) metadata: Metadata,
    pub(crate) applying: Applying,
    pub(crate) shared: Arc<Shared<NodeLed>>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) tasks: mpsc::Sender<Task>,
    pub(crate) operator: Arc<Operator>,
    pub(crate) started: Started,
    later: Later,
    closing: Arc<Notify>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl fmt::Debug for Raft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Raft").field("node", &self.inner.node.id()).finish_non_exhaustive()
    }
}

/// What exists only when everything has started, for those that start before. It is taken back when the
/// node closes: those hold each other.
#[derive(Clone, Default)]
struct Later(Arc<Mutex<Option<Begun>>>);

#[derive(Clone)]
struct Begun {
    node: Weak<Node>,
    requests: Requests,
    applying: Applying,
    seen: watch::Receiver<Seen>,
}

impl Raft {
    /// Starts a node on an engine. Its members found a cluster when all of them are there and none knows of
    /// one; a node with `join = true` waits until it is added.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn start(engine: Engine, config: StoreConfig) -> Result<Self, StartError> {
        config.check()?;
        let later = Later::default();
        let mut replication = config.replication.clone();
        // Each node trims behind its own snapshots.
        replication.follow_trims = false;
        let snapshots = later.clone();
        let begin_anew = move |anew: &BeginAnew| snapshots.begin_anew(anew);
        let node = Node::start_driven(engine.clone(), replication, Arc::new(begin_anew));
        let node = node.map_err(|error| StartError::Node(Box::new(error)))?;
        let node = Arc::new(node);

        let committed = Arc::new(AtomicU64::new(0));
        let trims = later.clone();
        let trim = move |before| {
            if let Some(node) = trims.get().and_then(|begun| begun.node.upgrade()) {
                node.trim(METADATA_STREAM, before);
            }
        };
        let mut options = ApplyingOptions::new(committed.clone(), Box::new(trim));
        options.snapshot_records = config.raft.snapshot_records;
        let (metadata, applying) = Applying::start(&engine, options)?;

        let replica = NodeReplica::new(node.clone(), applying.clone());
        let seen = watch::Sender::new(Seen::default());
        later.set(Some(Begun {
            node: Arc::downgrade(&node),
            requests: node.requests(),
            applying: applying.clone(),
            seen: seen.subscribe(),
        }));
        let switch = Switch { is_on: config.raft.fast_path, has_wal: false };
        let switch = watch::Sender::new(switch);
        let shared = Shared { gate: Gate::new(), seen, switch, heard_ns: Arc::default() };
        let shared = Arc::new(shared);
        let (tasks, to_do) = mpsc::channel(TASKS_MAX);
        let counters = Arc::new(Counters::default());
        let operator = Arc::new(Operator::default());
        let (begin, begun) = std::sync::mpsc::channel();
        let closing = Arc::new(Notify::new());
        let parts = Parts {
            times: config.raft.times.clone(),
            join: config.raft.join,
            entries_per_base: ENTRIES_PER_BASE,
            entries_kept: ENTRIES_KEPT,
            members: config.replication.members.clone(),
            replica,
            transport: Arc::new(node.requests()),
            journal: EngineJournal::new(engine).map_err(StartError::Thread)?,
            metadata: metadata.clone(),
            snapshots: Some(applying.clone()),
            shared: shared.clone(),
            counters: counters.clone(),
            committed,
        };
        let setup = Setup {
            parts,
            tasks: to_do,
            operator: operator.clone(),
            closing: closing.clone(),
            started: begin,
        };
        let thread = std::thread::Builder::new().name("ringwal-raft".into());
        let thread = thread.spawn(move || thread::run(setup)).map_err(StartError::Thread)?;
        let started = begun.recv().unwrap_or_else(|_| {
            Err(StartError::Raft("its thread has panicked: see its log".to_owned()))
        })?;
        node.reply_with(Arc::new(Inbox(tasks.clone())));
        let thread = Mutex::new(Some(thread));
        let inner = Inner {
            node,
            config,
            metadata,
            applying,
            shared,
            counters,
            tasks,
            operator,
            started,
            later,
            closing,
            thread,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.inner.node.address()
    }

    /// Its replication: to read streams, and for what is counted.
    pub fn node(&self) -> &Node {
        &self.inner.node
    }

    /// Answers what operators ask over the port; the first one that is set stays.
    pub fn operate_with(
        &self,
        answerer: impl Fn(Bytes) -> Pin<Box<dyn Future<Output = Bytes> + Send>> + Send + Sync + 'static,
    ) {
        let _ = self.inner.operator.0.set(Box::new(answerer));
    }

    /// Ends Raft here: this node leads, votes and answers no more. Its streams end with the last clone.
    pub fn close(&self) {
        self.inner.close();
    }
}

impl Inner {
    fn close(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(thread) = thread else { return };
        self.closing.notify_one();
        if thread.join().is_err() {
            tracing::error!("the thread of Raft has panicked");
        }
        self.later.set(None);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close();
    }
}

impl Later {
    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Begun>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self) -> Option<Begun> {
        self.lock().clone()
    }

    fn set(&self, begun: Option<Begun>) {
        let before = std::mem::replace(&mut *self.lock(), begun);
        // It may be the last one, and the lock has been given back.
        drop(before);
    }

    /// The leader has trimmed what is missing here: its snapshot of the state takes its place.
    fn begin_anew(&self, anew: &BeginAnew) -> Option<u64> {
        if anew.stream != METADATA_STREAM {
            return Some(anew.trimmed);
        }
        let Begun { requests, applying, seen, .. } = self.get()?;
        let seen = seen.borrow().clone();
        let members = crate::machine::members_of(&seen.membership);
        let from = members.into_iter().find(|member| member.node == anew.from)?;
        match applying.install(&mut SnapshotReader::new(requests, from)) {
            Ok(end) => Some(end),
            Err(error) => {
                tracing::warn!(%error, "the leader's snapshot of the state is not taken");
                None
            }
        }
    }
}

/// Reads another node's newest snapshot, a part at a time. On a thread that may wait.
struct SnapshotReader {
    requests: Requests,
    from: Member,
    /// Which snapshot, once that is known.
    end: u64,
    place: u64,
    total: Option<u64>,
    part: Bytes,
}

impl SnapshotReader {
    fn new(requests: Requests, from: Member) -> Self {
        Self { requests, from, end: 0, place: 0, total: None, part: Bytes::new() }
    }
}

impl Read for SnapshotReader {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let failed = |why: String| std::io::Error::other(format!("node {}: {why}", self.from.node));
        if self.part.is_empty() && self.total.is_none_or(|total| self.place < total) {
            let ask = request(&Ask::Snapshot { end: self.end, from: self.place });
            let ask = ask.map_err(|error| failed(error.why))?;
            let replied = self.requests.ask(&self.from, ask, SNAPSHOT_LIMIT).wait();
            match answer(replied).map_err(|error| failed(error.why))? {
                Answer::Snapshot { end, total, bytes } => {
                    if bytes.is_empty() {
                        return Err(failed(format!("its snapshot has nothing at {}", self.place)));
                    }
                    self.end = end;
                    self.total = Some(total);
                    self.part = bytes;
                }
                Answer::NotDone(why) | Answer::Refused(why) => return Err(failed(why)),
                _ => return Err(failed("it answers something else".to_owned())),
            }
        }
        let length = into.len().min(self.part.len());
        into[..length].copy_from_slice(&self.part.split_to(length));
        self.place += length as u64;
        Ok(length)
    }
}
