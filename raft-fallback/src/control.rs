//! What a node does when Raft elects it: it recovers what a majority has, begins an epoch, and then takes
//! commands, by the fast path as long as that is open, and through Raft otherwise.
//!
//! ```text
//! elected in term t ─▶ its blank entry is applied ─▶ promises of t ─▶ what is greatest is fetched
//!                   ─▶ EpochStart t is applied ─▶ Raft ⇄ fast, until the leadership is lost
//! ```
//!
//! One task on Raft's runtime. Whatever is lost with it (proposals, orders) has no outcome: who waits
//! learns that it is unknown.

mod gathering;
mod members;
mod proposer;
mod recover;
pub(crate) mod serve;
pub(crate) mod transfer;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use bytes::Bytes;
use openraft::async_runtime::WatchReceiver as _;
use openraft::{AsyncRuntime, Raft, ServerState};
use ringwal_engine::StreamId;
use ringwal_replication::config::Member;
use ringwal_replication::node_id::NodeId;
use tokio::sync::{mpsc, oneshot};

use crate::lease::LeaseKeeper;
use crate::machine::{Machine, Watched, members_of, voters_of};
use crate::raft::{StoredMembership, Types};
use crate::replica::Replica;
use crate::store::fast::Gate;
use crate::store::peers::Peers;
use crate::store::stats::Reason;
use crate::watch;

/// Between two attempts of whatever has failed while a node leads.
const AGAIN: Duration = Duration::from_millis(50);

/// Who cannot begin its epoch within this lets somebody else try.
const RECOVER_LIMIT: Duration = Duration::from_secs(15);
/// Between two attempts to have somebody else elected.
const GIVE_UP: Duration = Duration::from_millis(500);

/// Raft, as it runs here.
pub(crate) type RaftHandle<R, N, P> = Raft<Types<R>, Machine<R, N, P>>;

/// A record that is to be proposed to Raft.
pub(crate) struct Proposal {
    pub(crate) record: Bytes,
    pub(crate) placed: oneshot::Sender<Result<Placed, NotPlaced>>,
}

/// Where a record is in the metadata stream. It is applied, and committed if it came through Raft.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) struct Placed {
    pub(crate) epoch: u64,
    pub(crate) offset: u64,
    pub(crate) is_committed: bool,
}

/// Why a record has no place, as far as is known.
#[derive(Clone, Debug)]
pub(crate) enum NotPlaced {
    /// It certainly is nowhere.
    NotDone(String),
    /// It may be.
    Unknown(String),
}

/// What somebody asks of the leader, beside commands.
pub(crate) enum Order {
    /// Give the leadership to a node, or to whichever is furthest.
    Transfer { to: Option<NodeId>, limit: Duration, done: Done },
    /// Change who is in the cluster.
    Change { change: MemberChange, done: Done },
}

type Done = oneshot::Sender<Result<(), ChangeError>>;

/// A change of the membership.
#[derive(Clone, Eq, PartialEq, Debug)]
#[non_exhaustive]
pub enum MemberChange {
    /// A node joins: it gets everything, and does not vote.
    AddLearner(Member),
    /// Exactly these vote from now on; who did and is not among them goes on as a learner.
    SetVoters(BTreeSet<NodeId>),
    /// A node leaves. With a lost disk it may come back as a learner.
    Remove(NodeId),
}

/// Why something was not changed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChangeError {
    /// Another node leads.
    #[error("this node does not lead; ask {}", .0.map_or("again when one does".into(), |node| format!("node {node}")))]
    NotLeader(Option<NodeId>),
    /// It cannot be done now; nothing has changed.
    #[error("not done: {0}")]
    NotNow(String),
    /// The leadership is given away, and somebody else has it than was to have it.
    #[error("node {leader} was elected, and not node {asked}; ask node {leader} to give it on")]
    OtherElected {
        /// Who was to lead.
        asked: NodeId,
        /// Who does now.
        leader: NodeId,
    },
    /// It may be done, or come to be.
    #[error("not known to be done: {0}; look at the status")]
    Unknown(String),
}

/// What a node knows of who leads.
#[derive(Clone, Eq, PartialEq, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) term: u64,
    pub(crate) leader: Option<NodeId>,
    /// This node has been elected, and this is how far it is.
    pub(crate) leads: Option<Leads>,
    /// Where its epoch starts the metadata stream, when it leads.
    pub(crate) start: u64,
    pub(crate) membership: Arc<StoredMembership>,
    /// Raft has ended on this node: it learns of no leader any more.
    pub(crate) has_ended: bool,
}

/// How far an elected node is.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum Leads {
    /// It has no epoch yet.
    Recovering,
    /// Commands go through Raft, for this reason.
    Raft(Reason),
    /// The fast path is open.
    Fast,
}

/// What control and those who execute commands share.
pub(crate) struct Shared<L> {
    pub(crate) gate: Gate<L>,
    pub(crate) seen: watch::Sender<Seen>,
    /// Whether the fast path may be used, as far as the operator says, and as the store was built.
    pub(crate) switch: watch::Sender<Switch>,
    /// When another node was heard as the leader last, on CLOCK_BOOTTIME; 0 for never.
    pub(crate) heard_ns: Arc<AtomicU64>,
}

/// See [`Shared::switch`].
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) struct Switch {
    pub(crate) is_on: bool,
    pub(crate) has_wal: bool,
}

/// See the module.
pub(crate) struct Control<R: AsyncRuntime, N: Replica, P: Peers> {
    pub(crate) raft: RaftHandle<R, N, P>,
    pub(crate) replica: N,
    pub(crate) peers: P,
    pub(crate) watched: Watched<N::Led>,
    pub(crate) shared: Arc<Shared<N::Led>>,
    pub(crate) lease: Arc<LeaseKeeper>,
    pub(crate) proposals: mpsc::Receiver<Proposal>,
    pub(crate) orders: mpsc::Receiver<Order>,
    /// Longest entry of the log.
    pub(crate) entry_bytes_max: usize,
    /// A transfer that is under way.
    pub(crate) transferring: Option<transfer::Transfer>,
}

/// Where the streams end that a new epoch begins with.
type Starts = Vec<(StreamId, u64)>;

impl<R: AsyncRuntime, N: Replica, P: Peers> Control<R, N, P> {
    /// Runs until nobody can ask any more.
    pub(crate) async fn run(mut self) {
        let (shared, lease) = (self.shared.clone(), self.lease.clone());
        drop(R::spawn(watch_raft::<R, N::Led>(self.raft.server_metrics(), shared, lease)));
        let mut metrics = self.raft.server_metrics();
        let mut led = 0;
        loop {
            let Some(term) = self.elected_in().filter(|term| *term > led) else {
                if !self.wait_to_lead(&mut metrics).await {
                    return;
                }
                continue;
            };
            led = term;
            let lost = lost::<R>(self.raft.server_metrics(), term);
            let why = tokio::select! {
                biased;
                why = self.lead(term) => why,
                () = lost => "another term has begun".to_owned(),
            };
            self.lease.end(term);
            let is_fit = self.replica.unfit().is_none();
            let closed = if is_fit { Reason::NotLeader } else { Reason::Poisoned };
            self.shared.gate.close(closed).await;
            self.set_leads(None);
            if let Some(transfer) = self.transferring.take() {
                let seen = self.shared.seen.subscribe();
                drop(R::spawn(transfer.tell::<R>(self.replica.id(), seen)));
            }
            tracing::info!(term, why, "leading no more");
            // One that has ended by itself is no good to anybody, and must not begin again in its term: what
            // it had proposed may still be applied.
            let mut attempt = 0;
            while self.elected_in() == Some(term) && self.runs().await {
                self.give_up(term, attempt).await;
                attempt += 1;
            }
        }
    }

    /// The term in which this node is elected.
    fn elected_in(&self) -> Option<u64> {
        elected_in::<R>(&self.raft.server_metrics().borrow_watched().clone())
    }

    /// Answers who asks of a node that does not lead, until something has changed. False when nobody can
    /// ask any more.
    async fn wait_to_lead(&mut self, metrics: &mut ServerMetrics<R>) -> bool {
        tokio::select! {
            biased;
            changed = metrics.changed() => changed.is_ok(),
            order = self.orders.recv() => {
                let Some(order) = order else { return false };
                let (Order::Transfer { done, .. } | Order::Change { done, .. }) = order;
                let leader = self.shared.seen.borrow().leader;
                let _ = done.send(Err(ChangeError::NotLeader(leader)));
                true
            }
            proposal = self.proposals.recv() => {
                let Some(proposal) = proposal else { return false };
                refuse(proposal, "this node does not lead");
                true
            }
        }
    }

    async fn lead(&mut self, term: u64) -> String {
        tracing::info!(term, "elected");
        self.shared.gate.close(Reason::Recovering).await;
        self.set_leads(Some(Leads::Recovering));
        self.lease.handle_term(term);
        let recovered = R::timeout(RECOVER_LIMIT, self.recover(term)).await;
        let Ok(starts) = recovered else {
            return format!("no epoch has begun within {RECOVER_LIMIT:?}");
        };
        let epoch = |led: &Option<N::Led>| {
            led.as_ref().is_some_and(|led| crate::replica::Led::epoch(led) == term)
        };
        let led = self.watched.led.wait_for(epoch).await.ok().and_then(|led| led.clone());
        match led {
            Some(led) => self.serve(term, led, starts).await,
            None => "what Raft applies has ended".to_owned(),
        }
    }

    /// Lets go of a leadership that is of no use, for somebody else to be elected: each voter in turn. Who is
    /// the only one begins another term.
    async fn give_up(&self, term: u64, attempt: usize) {
        let me = self.replica.id();
        let seen = self.shared.seen.borrow().clone();
        let voters: BTreeSet<NodeId> = voters_of(&seen.membership).into_iter().flatten().collect();
        let others: Vec<NodeId> = voters.into_iter().filter(|node| *node != me).collect();
        let given = match others.get(attempt % others.len().max(1)) {
            Some(to) => {
                tracing::info!(term, %to, "giving the leadership away");
                self.raft.trigger().transfer_leader(to.get()).await
            }
            None => self.raft.trigger().elect(false).await,
        };
        if let Err(error) = given {
            tracing::info!(term, %error, "the leadership is not given away");
        }
        R::sleep(GIVE_UP).await;
    }

    /// Whether Raft runs here: it has neither ended nor panicked.
    async fn runs(&self) -> bool {
        let is_running = self.raft.metrics().borrow_watched().running_state.is_ok();
        is_running && self.raft.is_initialized().await.is_ok()
    }

    fn set_leads(&self, leads: Option<Leads>) {
        self.shared.seen.send_modify(|serving| serving.leads = leads);
    }

    /// Who is in the cluster as far as this node's log says, committed or not.
    fn membership(&self) -> Arc<StoredMembership> {
        self.raft.server_metrics().borrow_watched().membership_config.clone()
    }

    fn members(&self) -> Vec<Member> {
        members_of(&self.membership())
    }
}

/// What Raft knows of who leads, and of who is in the cluster, is told to all who need it.
async fn watch_raft<R: AsyncRuntime, L: crate::replica::Led>(
    mut metrics: ServerMetrics<R>,
    shared: Arc<Shared<L>>,
    lease: Arc<LeaseKeeper>,
) {
    loop {
        let now = metrics.borrow_watched().clone();
        let membership = now.membership_config.clone();
        if shared.seen.borrow().membership != membership {
            lease.set_voters(membership.membership().get_joint_config().clone());
        }
        shared.seen.send_if_modified(|seen| {
            let before = seen.clone();
            seen.term = now.vote.leader_id.term;
            seen.leader = now.current_leader.map(NodeId::new);
            seen.membership = membership;
            before != *seen
        });
        if metrics.changed().await.is_err() {
            // Raft has ended here, with its engine perhaps: others may know who leads.
            return shared.seen.send_modify(|seen| {
                (seen.leader, seen.has_ended) = (None, true);
            });
        }
    }
}

type ServerMetrics<R> =
    openraft::alias::WatchReceiverOf<Types<R>, openraft::metrics::RaftServerMetrics<Types<R>>>;

fn elected_in<R: AsyncRuntime>(
    metrics: &openraft::metrics::RaftServerMetrics<Types<R>>,
) -> Option<u64> {
    (metrics.state == ServerState::Leader).then_some(metrics.vote.leader_id.term)
}

/// Comes when the node does not lead in that term any more.
async fn lost<R: AsyncRuntime>(mut metrics: ServerMetrics<R>, term: u64) {
    while elected_in::<R>(&metrics.borrow_watched().clone()) == Some(term) {
        if metrics.changed().await.is_err() {
            return;
        }
    }
}

pub(crate) fn refuse(proposal: Proposal, why: &str) {
    let _ = proposal.placed.send(Err(NotPlaced::NotDone(why.to_owned())));
}
