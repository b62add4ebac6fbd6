//! How the parts of a node are put together: Raft, what it applies, the control of a leadership, and who
//! answers. The product does that on its thread (`thread.rs`), a simulation on its own clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use openraft::type_config::TypeConfigExt as _;
use openraft::{AsyncRuntime, Instant as _, SnapshotPolicy};
use ringwal_engine::StreamId;
use ringwal_replication::config::Member;
use tokio::sync::mpsc;

use crate::applying::Applying;
use crate::control::serve::lease_of;
use crate::control::{Control, Order, Proposal, RaftHandle, Seen, Shared};
use crate::lease::{Lease, LeaseKeeper};
use crate::machine::{Machine, members_of};
use crate::metadata::{Metadata, Progress};
use crate::node::StartError;
use crate::raft::config::{RaftTimes, raft_config};
use crate::raft::serve::Serving;
use crate::raft::{Journal, Networking, RaftLog, Transport, Types};
use crate::replica::{Led as _, METADATA_STREAM, Replica};
use crate::store::answering::{Answering, Fitness};
use crate::store::executing::{Executor, Unanswered};
use crate::store::peers::{NodePeers, Peers as _};
use crate::store::stats::Counters;
use crate::store::wire::{Answer, Ask};
use crate::{founding, watch};

/// Newest entries of Raft's log that stay in memory, in bytes.
const CACHE_BYTES_MAX: usize = 16 << 20;
/// Entries of Raft's log after which a base takes the place of what is applied, but for the last ones, which
/// followers may still need.
pub(crate) const ENTRIES_PER_BASE: u64 = 2_000;
pub(crate) const ENTRIES_KEPT: u64 = 500;
/// See where it is used.
const SPREAD: Duration = Duration::from_millis(150);
/// Proposals, and orders, that wait.
const PROPOSALS_MAX: usize = 4096;
const ORDERS_MAX: usize = 16;
/// How often the watermark is told to whoever makes snapshots.
const LOOK: Duration = Duration::from_millis(200);
/// Between two attempts to learn up to where to read.
const AGAIN: Duration = Duration::from_millis(20);

/// What a node is made of.
pub(crate) struct Parts<N: Replica, T, J> {
    pub(crate) times: RaftTimes,
    /// It waits to be added to a cluster.
    pub(crate) join: bool,
    /// See [`ENTRIES_PER_BASE`].
    pub(crate) entries_per_base: u64,
    pub(crate) entries_kept: u64,
    pub(crate) members: Vec<Member>,
    pub(crate) replica: N,
    pub(crate) transport: Arc<T>,
    pub(crate) journal: J,
    pub(crate) metadata: Metadata,
    pub(crate) snapshots: Option<Applying>,
    pub(crate) shared: Arc<Shared<N::Led>>,
    pub(crate) counters: Arc<Counters>,
    /// Up to where a majority has the metadata stream, for whoever makes snapshots.
    pub(crate) committed: Arc<AtomicU64>,
}

pub(crate) type WiredAnswering<R, N, T> = Answering<R, N, NodePeers<T>>;
pub(crate) type WiredServing<R, N, T> = Serving<R, Machine<R, N, NodePeers<T>>, Fitness<N>>;

/// A node that has been put together, and runs.
pub(crate) struct Wired<R: AsyncRuntime, N: Replica, T: Transport> {
    pub(crate) executor: Executor<N, NodePeers<T>>,
    pub(crate) orders: mpsc::Sender<Order>,
    pub(crate) lease: Arc<LeaseKeeper>,
    pub(crate) raft: RaftHandle<R, N, NodePeers<T>>,
    pub(crate) answering: WiredAnswering<R, N, T>,
    pub(crate) serving: WiredServing<R, N, T>,
}

/// Puts a node together, on the runtime that this is polled by.
pub(crate) async fn wire<R, N, T, J>(parts: Parts<N, T, J>) -> Result<Wired<R, N, T>, StartError>
where
    R: AsyncRuntime,
    N: Replica,
    T: Transport,
    J: Journal,
{
    let Parts { times, join, members, replica, transport, journal, metadata, .. } = parts;
    let (shared, counters, committed) = (parts.shared, parts.counters, parts.committed);
    let peers = NodePeers(transport.clone());
    let raft_failed = |error: &dyn std::fmt::Display| StartError::Raft(error.to_string());
    let log = RaftLog::<_, R>::open(journal, CACHE_BYTES_MAX).await?;
    let entry_bytes_max = log.entry_bytes_max();
    let base = replica.load_base().await.map_err(StartError::Raft)?;
    let (machine, watched) = Machine::new(replica.clone(), peers.clone(), base);
    let (applied, led) = (watched.applied.clone(), watched.led.clone());
    let me = replica.id();
    let lease = Lease::new(me.get(), times.voter_lease(), times.clock_drift);
    let leading = led.clone();
    let publish = move |term: u64, until: Option<u64>| {
        if let Some(led) = &*leading.borrow() {
            led.lease_until(lease_of(led.epoch(), term, until));
        }
    };
    let clock = replica.clone();
    let lease = Arc::new(LeaseKeeper::new(lease, move || clock.boottime_ns(), publish));
    let mut raft_config = raft_config("ringwal", &times).map_err(|error| raft_failed(&error))?;
    raft_config.snapshot_policy = SnapshotPolicy::LogsSinceLast(parts.entries_per_base);
    raft_config.max_in_snapshot_log_to_keep = parts.entries_kept;
    let network = Networking::new(me, transport, lease.clone());
    let raft = openraft::Raft::new(me.get(), Arc::new(raft_config), network, log, machine).await;
    let raft: RaftHandle<R, N, NodePeers<T>> = raft.map_err(|error| raft_failed(&error))?;
    let (propose, proposals) = mpsc::channel::<Proposal>(PROPOSALS_MAX);
    let (orders, to_do) = mpsc::channel::<Order>(ORDERS_MAX);
    let control = Control {
        raft: raft.clone(),
        replica: replica.clone(),
        peers: peers.clone(),
        watched,
        shared: shared.clone(),
        lease: lease.clone(),
        proposals,
        orders: to_do,
        entry_bytes_max,
        transferring: None,
    };
    drop(R::spawn(control.run()));
    // Nodes that are started together do not stand for election together.
    let spread = u64::from(replica.run().bytes()[0]) * SPREAD.as_nanos() as u64 / 256;
    let votes_from_ns = replica.boottime_ns() + times.voter_lease().as_nanos() as u64 + spread;
    let fitness = |seen: watch::Receiver<Seen>| Fitness {
        replica: replica.clone(),
        lease: lease.clone(),
        seen,
        votes_from_ns,
        heard_ns: shared.heard_ns.clone(),
    };
    drop(R::spawn(stand(raft.clone(), fitness(shared.seen.subscribe()), shared.seen.subscribe())));
    if !join {
        let members = members.clone();
        drop(R::spawn(founding::found(raft.clone(), replica.clone(), peers.clone(), members)));
    }
    drop(R::spawn(tell_committed::<R, N>(replica.clone(), committed)));
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
        snapshots: parts.snapshots,
        founders: (!join).then(|| members.iter().map(|member| member.node).collect()),
    };
    let engine = replica.engine();
    let serving = Serving::new(raft.clone(), engine, fitness(shared.seen.subscribe()));
    Ok(Wired { executor, orders, lease, raft, answering, serving })
}

/// Whether this node may be elected changes: openraft is told.
async fn stand<R: AsyncRuntime, N: Replica, T: Transport>(
    raft: RaftHandle<R, N, NodePeers<T>>,
    fitness: Fitness<N>,
    mut seen: watch::Receiver<Seen>,
) {
    let mut stands = false;
    loop {
        // Who leads already is not elected again; what it may do is not touched.
        let leads = fitness.holds_lease();
        let may = fitness.replica.unfit().is_none() && fitness.refuses_to_vote().is_none();
        if may != stands && !leads {
            stands = may;
            raft.runtime_config().elect(may);
        }
        if R::timeout(LOOK, seen.changed()).await.is_ok_and(|changed| changed.is_err()) {
            return;
        }
    }
}

/// Snapshots end at the watermark or below.
async fn tell_committed<R: AsyncRuntime, N: Replica>(replica: N, committed: Arc<AtomicU64>) {
    loop {
        let known = replica.committed_ends().into_iter();
        let end = known.filter(|(stream, _): &(StreamId, u64)| *stream == METADATA_STREAM);
        let end = end.map(|(_, end)| end).max().unwrap_or(0);
        committed.fetch_max(end, Ordering::AcqRel);
        R::sleep(LOOK).await;
    }
}

/// As [`Answering::read_end`], wherever the leader is.
pub(crate) async fn read_end<R: AsyncRuntime, N: Replica, T: Transport>(
    answering: &WiredAnswering<R, N, T>,
    limit: Duration,
) -> Result<Progress, Unanswered> {
    let deadline = Types::<R>::now() + limit;
    let mut seen = answering.executor.shared.seen.subscribe();
    loop {
        let left = deadline.saturating_duration_since(Types::<R>::now());
        let (leader, membership) = {
            let seen = seen.borrow_and_update();
            (seen.leader, seen.membership.clone())
        };
        let outcome = match leader {
            Some(leader) if leader != answering.executor.replica.id() => {
                let members = members_of(&membership);
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
            Err(why) if Types::<R>::now() >= deadline => return Err(Unanswered::NotDone(why)),
            Err(_) => drop(R::timeout(AGAIN, seen.changed()).await),
        }
    }
}

/// As [`read_end`], and then waits until this node has applied as much.
pub(crate) async fn see<R: AsyncRuntime, N: Replica, T: Transport>(
    answering: &WiredAnswering<R, N, T>,
    limit: Duration,
) -> Result<Progress, Unanswered> {
    let deadline = Types::<R>::now() + limit;
    let told = read_end(answering, limit).await?;
    let left = deadline.saturating_duration_since(Types::<R>::now());
    match R::timeout(left, answering.metadata.wait_progress(told)).await {
        Ok(Ok(_)) => Ok(told),
        Ok(Err(error)) => Err(Unanswered::NotDone(error.to_string())),
        Err(_) => Err(Unanswered::NotDone(format!("this node is behind after {limit:?}"))),
    }
}
