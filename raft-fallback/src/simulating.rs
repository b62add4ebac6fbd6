//! For the simulation of a cluster in `tools/crash`, and nobody else: a node that is put together as the
//! product's is, on a runtime, disks and links that the simulation brings.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::type_config::TypeConfigExt as _;
use openraft::{AsyncRuntime, Instant as _};
use ringwal_replication::Ack;
use ringwal_replication::config::Member;
use ringwal_replication::node_id::NodeId;
use tokio::sync::oneshot;

use crate::control::{Leads, Order, Shared, Switch};
use crate::metadata::{Metadata, Progress};
use crate::raft::config::RaftTimes;
use crate::raft::rpc::Reply;
use crate::raft::serve::Served;
use crate::raft::{Journal, Transport, Types};
use crate::store::executing::{Answered, Origin, Unanswered};
use crate::store::fast::Gate;
use crate::store::reading;
use crate::store::stats::Counters;
use crate::store::wire::{Answer, Ask};
use crate::wiring::{self, Parts, Wired, wire};
use crate::{ChangeError, State, watch};

pub use crate::base::Base;
pub use crate::replica::{
    AddError, Begun, Holding, Led, LedError, METADATA_STREAM, OutcomeError, Replica, Standing,
};
pub use crate::state::Applied;

/// What a simulation gives to a node.
pub struct Brought<N, T, J> {
    /// The times of elections.
    pub times: RaftTimes,
    /// Who founds the cluster.
    pub members: Vec<Member>,
    /// Its streams and its state machine.
    pub replica: N,
    /// Its way to the others.
    pub transport: Arc<T>,
    /// Its streams for Raft.
    pub journal: J,
    /// What its replica applies to.
    pub metadata: Metadata,
    /// Entries of Raft's log after which a base takes the place of what is applied, and how many stay.
    pub entries_per_base: u64,
    /// See there.
    pub entries_kept: u64,
    /// Whether the fast path is switched on.
    pub is_fast: bool,
}

/// What is not known of a command.
#[derive(Clone, Debug)]
pub enum NoOutcome {
    /// It certainly is not done, and will not be.
    NotDone(String),
    /// It may be.
    Unknown(String),
}

/// A node. It runs as long as the tasks of its runtime.
pub struct Simulated<R: AsyncRuntime, N: Replica, T: Transport> {
    wired: Wired<R, N, T>,
    shared: Arc<Shared<N::Led>>,
}

impl<R: AsyncRuntime, N: Replica, T: Transport> Simulated<R, N, T> {
    /// Puts a node together.
    ///
    /// # Errors
    /// When its log cannot be opened, or openraft does not start.
    pub async fn start<J: Journal>(brought: Brought<N, T, J>) -> Result<Self, String> {
        let switch = watch::Sender::new(Switch { is_on: brought.is_fast, has_wal: true });
        let seen = watch::Sender::new(crate::control::Seen::default());
        let shared = Shared { gate: Gate::new(), seen, switch, heard_ns: Arc::default() };
        let shared = Arc::new(shared);
        let parts = Parts {
            times: brought.times,
            join: false,
            entries_per_base: brought.entries_per_base,
            entries_kept: brought.entries_kept,
            members: brought.members,
            replica: brought.replica,
            transport: brought.transport,
            journal: brought.journal,
            metadata: brought.metadata,
            snapshots: None,
            shared: shared.clone(),
            counters: Arc::new(Counters::default()),
            committed: Arc::default(),
        };
        let wired = wire::<R, N, T, J>(parts).await.map_err(|error| error.to_string())?;
        Ok(Self { wired, shared })
    }

    /// Serves a request of another node.
    pub async fn serve(&self, from: NodeId, bytes: Bytes) -> Bytes {
        match self.wired.serving.serve(from, bytes).await {
            Served::Reply(bytes) => bytes,
            Served::Store(bytes) => {
                let answer = match Ask::decode(&bytes) {
                    Ok(ask) => self.wired.answering.answer(from, ask).await,
                    Err(error) => Answer::Refused(error.to_string()),
                };
                Reply::Store(answer.encode().into()).encode().into()
            }
        }
    }

    /// Executes a record that carries a session, wherever the leader is.
    ///
    /// # Errors
    /// See [`NoOutcome`].
    pub async fn execute(
        &self,
        record: Bytes,
        ack: Ack,
        limit: Duration,
    ) -> Result<(Applied, Ack), NoOutcome> {
        let executor = &self.wired.executor;
        match executor.execute::<R>(record, ack, limit, Origin::Here).await {
            Ok(Answered { applied, durable }) => Ok((applied, durable)),
            Err(Unanswered::NotDone(why)) => Err(NoOutcome::NotDone(why)),
            Err(Unanswered::Unknown(why)) => Err(NoOutcome::Unknown(why)),
            Err(Unanswered::NotLeader(_)) => Err(NoOutcome::NotDone("no leader".to_owned())),
        }
    }

    /// A linearizable read, as the product's.
    ///
    /// # Errors
    /// When it is not confirmed in time.
    pub async fn read<V>(
        &self,
        limit: Duration,
        look: impl FnMut(&State) -> V,
    ) -> Result<(Progress, V), String> {
        let answering = &self.wired.answering;
        let deadline = Types::<R>::now() + limit;
        let left = || deadline.saturating_duration_since(Types::<R>::now());
        let confirm = || wiring::see(answering, left());
        let read = reading::read(&answering.metadata, confirm, look).await;
        read.map_err(|error| format!("{error:?}"))
    }

    /// Switches the fast path on or off.
    pub fn set_fast_path(&self, is_on: bool) {
        self.shared.switch.send_modify(|switch| switch.is_on = is_on);
    }

    /// Gives the leadership to another node, if this one leads.
    ///
    /// # Errors
    /// See [`ChangeError`].
    pub async fn transfer(&self, to: Option<NodeId>, limit: Duration) -> Result<(), ChangeError> {
        let (done, outcome) = oneshot::channel();
        let closed = || ChangeError::Unknown("the node is closing".to_owned());
        let order = Order::Transfer { to, limit, done };
        self.wired.orders.send(order).await.map_err(|_| closed())?;
        outcome.await.unwrap_or_else(|_| Err(closed()))
    }

    /// The term that it has heard of, and who leads in it as far as it knows.
    pub fn seen(&self) -> (u64, Option<NodeId>) {
        let seen = self.shared.seen.borrow();
        (seen.term, seen.leader)
    }

    /// Whether it leads with an epoch, and whether the fast path is open.
    pub fn leads(&self) -> Option<bool> {
        match self.shared.seen.borrow().leads {
            None | Some(Leads::Recovering) => None,
            Some(Leads::Raft(_)) => Some(false),
            Some(Leads::Fast) => Some(true),
        }
    }
}
