//! The thread `ringwal-raft`: openraft, what it applies, the control of a leadership, and whatever waits
//! for them. One runtime of one thread; nothing in it waits for a disk.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use openraft::SnapshotPolicy;
use openraft_rt_tokio::TokioRuntime;
use ringwal_engine::StreamId;
use ringwal_replication::Ack;
use ringwal_replication::requests::{Asked, Replies};
use tokio::sync::{Notify, mpsc, oneshot, watch};

use crate::applying::Applying;
use crate::control::{Control, Order, Proposal, RaftHandle, Seen, Shared};
use crate::founding;
use crate::lease::{Lease, LeaseKeeper};
use crate::machine::Machine;
use crate::metadata::{Metadata, Progress};
use crate::node::{Operator, StartError};
use crate::raft::config::raft_config;
use crate::raft::rpc::Reply;
use crate::raft::serve::{Served, Serving};
use crate::raft::{EngineJournal, Networking, RaftLog};
use crate::replica::product::{NodeLed, NodeReplica, boottime_ns};
use crate::replica::{Led as _, METADATA_STREAM, Replica as _};
use crate::store::answering::{Answering, Fitness};
use crate::store::executing::{Answered, Executor, Origin, Unanswered};
use crate::store::peers::NodePeers;
use crate::store::stats::Counters;
use crate::store::wire::{Answer, Ask};
use crate::{StoreConfig, machine};

/// Newest entries of Raft's log that stay in memory, in bytes.
const CACHE_BYTES_MAX: usize = 16 << 20;
/// Entries of Raft's log after which a base takes the place of what is applied, but for the last ones, which
/// followers may still need.
const ENTRIES_PER_BASE: u64 = 2_000;
const ENTRIES_KEPT: u64 = 500;
/// Tasks that wait for the thread: requests of other nodes, and commands that do not go the fast way.
pub(crate) const TASKS_MAX: usize = 4096;
/// Proposals, and orders, that wait.
const PROPOSALS_MAX: usize = 4096;
const ORDERS_MAX: usize = 16;
/// See where it is used.
const SPREAD: Duration = Duration::from_millis(150);
/// How often the watermark is told to whoever makes snapshots.
const LOOK: Duration = Duration::from_millis(200);
/// What is under way gets its outcome within this, when the node closes.
const LAST_WORDS: Duration = Duration::from_millis(200);

type Product = NodeReplica;
type Handle = RaftHandle<TokioRuntime, Product, NodePeers>;

/// Something for the thread to do.
pub(crate) enum Task {
    /// A command that did not go the fast way.
    Execute {
        record: Bytes,
        ack: Ack,
        limit: Duration,
        done: oneshot::Sender<Result<Answered, Unanswered>>,
    },
    /// Up to where a read has to see.
    ReadEnd { limit: Duration, done: oneshot::Sender<Result<Progress, Unanswered>> },
    /// Another node asks.
    Serve(Asked),
}

/// What other nodes ask comes to the thread; what has no place gets no reply.
pub(crate) struct Inbox(pub(crate) mpsc::Sender<Task>);

impl Replies for Inbox {
    fn handle(&self, asked: Asked) {
        // Dropping it says that there will be no reply.
        let _ = self.0.try_send(Task::Serve(asked));
    }
}

/// What the thread is started with.
pub(crate) struct Setup {
    pub(crate) config: StoreConfig,
    pub(crate) replica: NodeReplica,
    pub(crate) peers: NodePeers,
    pub(crate) journal: EngineJournal,
    pub(crate) metadata: Metadata,
    pub(crate) applying: Applying,
    pub(crate) shared: Arc<Shared<NodeLed>>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) committed: Arc<std::sync::atomic::AtomicU64>,
    pub(crate) tasks: mpsc::Receiver<Task>,
    pub(crate) operator: Arc<Operator>,
    /// It is to end.
    pub(crate) closing: Arc<Notify>,
    pub(crate) started: std::sync::mpsc::Sender<Result<Started, StartError>>,
}

/// What others need of the thread.
pub(crate) struct Started {
    pub(crate) executor: Executor<NodeReplica, NodePeers>,
    pub(crate) orders: mpsc::Sender<Order>,
    pub(crate) lease: Arc<LeaseKeeper>,
    pub(crate) raft: Handle,
}

/// Runs until it is told to close.
pub(crate) fn run(setup: Setup) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = setup.started.send(Err(StartError::Thread(error)));
            return;
        }
    };
    runtime.block_on(async move {
        let Setup { started, mut tasks, operator, closing, .. } = setup;
        let metadata = setup.metadata.clone();
        let parts = Parts {
            config: setup.config,
            replica: setup.replica,
            peers: setup.peers,
            journal: setup.journal,
            applying: setup.applying,
            shared: setup.shared,
            counters: setup.counters,
            committed: setup.committed,
        };
        match start(parts, metadata).await {
            Err(error) => drop(started.send(Err(error))),
            Ok((begun, answering, serving)) => {
                let raft = begun.raft.clone();
                let _ = started.send(Ok(begun));
                let work = turn(&mut tasks, Arc::new(answering), Arc::new(serving), operator);
                tokio::select! {
                    () = work => {}
                    () = closing.notified() => {}
                }
                if let Err(error) = raft.shutdown().await {
                    tracing::error!(%error, "Raft has panicked");
                }
                tokio::time::sleep(LAST_WORDS).await;
            }
        }
    });
    // What waits for a disk is not waited for.
    runtime.shutdown_background();
}

struct Parts {
    config: StoreConfig,
    replica: NodeReplica,
    peers: NodePeers,
    journal: EngineJournal,
    applying: Applying,
    shared: Arc<Shared<NodeLed>>,
    counters: Arc<Counters>,
    committed: Arc<std::sync::atomic::AtomicU64>,
}

type NodeAnswering = Answering<TokioRuntime, Product, NodePeers>;
type NodeServing =
    Serving<TokioRuntime, Machine<TokioRuntime, Product, NodePeers>, Fitness<Product>>;

async fn start(
    parts: Parts,
    metadata: Metadata,
) -> Result<(Started, NodeAnswering, NodeServing), StartError> {
    let Parts { config, replica, peers, journal, applying, shared, counters, committed } = parts;
    let raft_failed = |error: &dyn std::fmt::Display| StartError::Raft(error.to_string());
    let log = RaftLog::<_, TokioRuntime>::open(journal, CACHE_BYTES_MAX).await?;
    let entry_bytes_max = log.entry_bytes_max();
    let base = replica.load_base().await.map_err(StartError::Raft)?;
    let (machine, watched) = Machine::new(replica.clone(), peers.clone(), base);
    let (applied, led) = (watched.applied.clone(), watched.led.clone());
    let times = &config.raft.times;
    let me = replica.id();
    let lease = Lease::new(me.get(), times.voter_lease(), times.clock_drift);
    let leading = led.clone();
    let publish = move |term: u64, until: Option<u64>| {
        if let Some(led) = &*leading.borrow() {
            led.lease_until(until.filter(|_| led.epoch() == term).unwrap_or(0));
        }
    };
    let lease = Arc::new(LeaseKeeper::new(lease, boottime_ns, publish));
    let mut raft_config = raft_config("ringwal", times).map_err(|error| raft_failed(&error))?;
    raft_config.snapshot_policy = SnapshotPolicy::LogsSinceLast(ENTRIES_PER_BASE);
    raft_config.max_in_snapshot_log_to_keep = ENTRIES_KEPT;
    let network = Networking::new(me, Arc::new(peers.0.clone()), lease.clone());
    let raft = openraft::Raft::new(me.get(), Arc::new(raft_config), network, log, machine).await;
    let raft: Handle = raft.map_err(|error| raft_failed(&error))?;
    let (propose, proposals) = mpsc::channel::<Proposal>(PROPOSALS_MAX);
    let (order, orders) = mpsc::channel::<Order>(ORDERS_MAX);
    let control = Control {
        raft: raft.clone(),
        replica: replica.clone(),
        peers: peers.clone(),
        watched,
        shared: shared.clone(),
        lease: lease.clone(),
        proposals,
        orders,
        entry_bytes_max,
        transferring: None,
    };
    tokio::spawn(control.run());
    // Nodes that are started together do not stand for election together.
    let spread = u64::from(replica.run().bytes()[0]) * SPREAD.as_nanos() as u64 / 256;
    let votes_from_ns = boottime_ns() + times.voter_lease().as_nanos() as u64 + spread;
    let fitness = |seen: watch::Receiver<Seen>| Fitness {
        replica: replica.clone(),
        lease: lease.clone(),
        seen,
        votes_from_ns,
    };
    tokio::spawn(stand(raft.clone(), fitness(shared.seen.subscribe()), shared.seen.subscribe()));
    if !config.raft.join {
        let members = config.replication.members.clone();
        tokio::spawn(founding::found(raft.clone(), replica.clone(), peers.clone(), members));
    }
    tokio::spawn(tell_committed(replica.clone(), committed));
    let executor = Executor {
        replica: replica.clone(),
        peers,
        shared: shared.clone(),
        led,
        proposals: propose,
        counters,
    };
    let answering = Answering {
        raft: raft.clone(),
        executor: executor.clone(),
        applied,
        metadata,
        lease: lease.clone(),
        snapshots: Some(applying),
        joins: config.raft.join,
    };
    let engine = replica.engine();
    let serving = Serving::new(raft.clone(), engine, fitness(shared.seen.subscribe()));
    Ok((Started { executor, orders: order, lease, raft }, answering, serving))
}

/// Does whatever comes, side by side, begun in the order in which it came.
async fn turn(
    tasks: &mut mpsc::Receiver<Task>,
    answering: Arc<NodeAnswering>,
    serving: Arc<NodeServing>,
    operator: Arc<Operator>,
) {
    while let Some(task) = tasks.recv().await {
        match task {
            Task::Execute { record, ack, limit, done } => {
                let executor = answering.executor.clone();
                tokio::spawn(async move {
                    let origin = Origin::Here;
                    let outcome =
                        executor.execute::<TokioRuntime>(record, ack, limit, origin).await;
                    let _ = done.send(outcome);
                });
            }
            Task::ReadEnd { limit, done } => {
                let answering = answering.clone();
                tokio::spawn(async move {
                    let _ = done.send(read_end(&answering, limit).await);
                });
            }
            Task::Serve(Asked { from, bytes, reply }) => {
                let (answering, serving) = (answering.clone(), serving.clone());
                let operator = operator.clone();
                tokio::spawn(async move {
                    let bytes = match serving.serve(from, bytes).await {
                        Served::Reply(bytes) => bytes,
                        Served::Store(bytes) => {
                            let answer = match Ask::decode(&bytes) {
                                Ok(Ask::Operator(ask)) => operator.answer(ask).await,
                                Ok(_) if from.is_client() => {
                                    Answer::Refused("only nodes ask that".to_owned())
                                }
                                Ok(ask) => answering.answer(from, ask).await,
                                Err(error) => Answer::Refused(error.to_string()),
                            };
                            Reply::Store(answer.encode().into()).encode().into()
                        }
                    };
                    reply.send(bytes);
                });
            }
        }
    }
}

/// As [`Answering::read_end`], wherever the leader is.
async fn read_end(answering: &NodeAnswering, limit: Duration) -> Result<Progress, Unanswered> {
    use crate::store::peers::Peers as _;
    let began = Instant::now();
    let mut seen = answering.executor.shared.seen.subscribe();
    loop {
        let left = limit.saturating_sub(began.elapsed());
        let (leader, membership) = {
            let seen = seen.borrow_and_update();
            (seen.leader, seen.membership.clone())
        };
        let outcome = match leader {
            Some(leader) if leader != answering.executor.replica.id() => {
                let members = machine::members_of(&membership);
                let member = members.into_iter().find(|member| member.node == leader);
                let limit_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX);
                match member {
                    None => Err(format!("node {leader}, which leads, is not known here")),
                    Some(member) => {
                        let ask = Ask::ReadEnd { limit_ms };
                        match answering.executor.peers.ask(&member, ask, left).await {
                            Ok(Answer::ReadEnd { epoch, end }) => Ok(Progress { epoch, end }),
                            Ok(Answer::NotDone(why) | Answer::Refused(why)) => Err(why),
                            Ok(_) => Err(format!("node {leader} does not lead any more")),
                            Err(no_answer) => Err(no_answer.why),
                        }
                    }
                }
            }
            _ => answering.read_end(left).await.map_err(|error| match error {
                Unanswered::NotLeader(_) => "no leader is known".to_owned(),
                Unanswered::NotDone(why) | Unanswered::Unknown(why) => why,
            }),
        };
        match outcome {
            Ok(progress) => return Ok(progress),
            Err(why) if began.elapsed() >= limit => return Err(Unanswered::NotDone(why)),
            Err(_) => drop(tokio::time::timeout(Duration::from_millis(20), seen.changed()).await),
        }
    }
}

/// Whether this node may be elected changes: openraft is told.
async fn stand(raft: Handle, fitness: Fitness<Product>, mut seen: watch::Receiver<Seen>) {
    let mut stands = false;
    loop {
        // Who leads already is not elected again; what it may do is not touched.
        let leads = fitness.holds_lease();
        let may = fitness.replica.unfit().is_none() && fitness.refuses_to_vote().is_none();
        if may != stands && !leads {
            stands = may;
            raft.runtime_config().elect(may);
        }
        if tokio::time::timeout(LOOK, seen.changed()).await.is_ok_and(|changed| changed.is_err()) {
            return;
        }
    }
}

/// Snapshots end at the watermark or below.
async fn tell_committed(replica: Product, committed: Arc<std::sync::atomic::AtomicU64>) {
    loop {
        let known = replica.committed_ends().into_iter();
        let end = known.filter(|(stream, _): &(StreamId, u64)| *stream == METADATA_STREAM);
        let end = end.map(|(_, end)| end).max().unwrap_or(0);
        committed.fetch_max(end, std::sync::atomic::Ordering::AcqRel);
        tokio::time::sleep(LOOK).await;
    }
}
