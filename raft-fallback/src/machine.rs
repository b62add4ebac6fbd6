//! What Raft applies: each entry has its effect on the streams of this node, in the order of the log.
//!
//! | entry | effect |
//! | --- | --- |
//! | `EpochStart` | counts when its epoch is the term of its entry and greater than what has begun: cuts by I-17, then this node leads or follows in it |
//! | `Extend` | counts when its epoch is the term of its entry and the one that has begun: what is lacking below its base is fetched, what is lacking of its records is added; nothing is cut |
//! | membership | whose majorities count |
//!
//! Nothing of it is kept: after a restart the log is applied again from its beginning, or from the
//! snapshot that took its place. That changes nothing: an `EpochStart` that has begun, durably, is passed
//! over; so is an `Extend` of another epoch than that, and of one of the same epoch everything is here already,
//! or is added again. An entry is applied when its effect is durable, so no index is ahead of its effect.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use openraft::alias::{SnapshotMetaOf, SnapshotOf};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::type_config::TypeConfigExt as _;
use openraft::{AsyncRuntime, EntryPayload, OptionalSend};
use ringwal_replication::config::Member;
use ringwal_replication::node_id::NodeId;
use ringwal_replication::promise::Promise;
use crate::watch;

use crate::raft::{Effect, LogId, Payload, StoredMembership, Types};
use crate::replica::{AddError, Begun, METADATA_STREAM, Replica};
use crate::store::peers::Peers;
use crate::store::wire::{Answer, Ask};

/// Between two attempts to bring what is missing below an `Extend`.
const AGAIN: Duration = Duration::from_millis(50);
/// How long a node is asked how far it is.
const ASK_LIMIT: Duration = Duration::from_secs(2);

/// How far Raft's log is applied here.
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) struct AppliedLog {
    pub(crate) last: Option<LogId>,
    pub(crate) membership: Arc<StoredMembership>,
}

impl AppliedLog {
    /// The first entry that a leader writes is its blank one: then all before it is applied as well.
    pub(crate) fn has_applied_of_term(&self, term: u64) -> bool {
        self.last.is_some_and(|last| last.leader_id.term >= term)
    }

    pub(crate) fn has_applied(&self, index: u64) -> bool {
        self.last.is_some_and(|last| last.index >= index)
    }
}

/// What others watch of it.
#[derive(Debug)]
pub(crate) struct Watched<L> {
    pub(crate) applied: watch::Receiver<AppliedLog>,
    /// This node's leadership, when an epoch of its own has begun last.
    pub(crate) led: watch::Receiver<Option<L>>,
}

/// See the module.
pub(crate) struct Machine<R, N: Replica, P> {
    replica: N,
    peers: P,
    applied: watch::Sender<AppliedLog>,
    led: watch::Sender<Option<N::Led>>,
    runtime: std::marker::PhantomData<fn() -> R>,
}

impl<R: AsyncRuntime, N: Replica, P: Peers> Machine<R, N, P> {
    pub(crate) fn new(replica: N, peers: P) -> (Self, Watched<N::Led>) {
        let (applied, see_applied) = watch::channel(AppliedLog::default());
        let (led, see_led) = watch::channel(None);
        let machine = Self { replica, peers, applied, led, runtime: std::marker::PhantomData };
        (machine, Watched { applied: see_applied, led: see_led })
    }

    async fn effect(&mut self, log_id: LogId, payload: Payload) -> io::Result<Effect> {
        let term = log_id.leader_id.term;
        match payload {
            Payload::EpochStart { epoch, leader, run, starts } if epoch == term => {
                let promise = Promise { epoch, leader, run };
                let begun = self.replica.begin(promise, starts).await;
                let begun = begun.map_err(|why| failed(log_id, &why))?;
                let led = match begun {
                    Begun::Before => return Ok(Effect::Nothing),
                    Begun::Following => None,
                    Begun::Leading(led) => Some(led),
                };
                self.led.send_replace(led);
                Ok(Effect::Done)
            }
            Payload::Extend { epoch, base, records } if epoch == term => {
                self.extend(epoch, base, records).await.map_err(|why| failed(log_id, &why))
            }
            // Proposed late, in a term of the same node that is not its epoch.
            Payload::EpochStart { .. } | Payload::Extend { .. } => Ok(Effect::Nothing),
        }
    }

    async fn extend(
        &mut self,
        epoch: u64,
        base: u64,
        records: Vec<Bytes>,
    ) -> Result<Effect, String> {
        loop {
            match self.replica.extend(epoch, base, records.clone()).await {
                Ok(()) => return Ok(Effect::Done),
                Err(AddError::NotBegun) => return Ok(Effect::Nothing),
                Err(AddError::Failed(why)) => return Err(why),
                Err(AddError::Lacks { end }) => {
                    if !self.fetch_below(epoch, end, base).await {
                        Types::<R>::sleep(AGAIN).await;
                    }
                }
            }
        }
    }

    /// Brings the records of the metadata stream from `end` to `base`, from whoever has begun the same
    /// epoch: it has cut what is not of this history. The leader may be dead.
    async fn fetch_below(&self, epoch: u64, end: u64, base: u64) -> bool {
        let membership = self.applied.borrow().membership.clone();
        for member in members_of(&membership) {
            if member.node == self.replica.id() {
                continue;
            }
            let about = self.peers.ask(&member, Ask::About, ASK_LIMIT).await;
            let Ok(Answer::About(about)) = about else { continue };
            if about.begun.is_none_or(|begun| begun.epoch != epoch) {
                continue;
            }
            match self.replica.fetch(&member, vec![(METADATA_STREAM, end..base)]).await {
                Ok(()) => return true,
                Err(why) => {
                    tracing::info!(node = %member.node, why, "records below an entry of Raft are not there");
                }
            }
        }
        false
    }

    fn note(&self, log_id: LogId, membership: Option<StoredMembership>) {
        if let Some(membership) = &membership {
            let (nodes, voters) = (members_of(membership), voters_of(membership));
            self.replica.set_members(nodes, voters);
        }
        self.applied.send_modify(|applied| {
            applied.last = Some(log_id);
            if let Some(membership) = membership {
                applied.membership = Arc::new(membership);
            }
        });
    }
}

fn failed(log_id: LogId, why: &str) -> io::Error {
    io::Error::other(format!("applying entry {log_id} of Raft's log: {why}"))
}

/// All nodes of a membership, learners too, in order.
pub(crate) fn members_of(membership: &StoredMembership) -> Vec<Member> {
    let member = |(id, node): (&u64, &crate::raft::RaftNode)| Member {
        node: NodeId::new(*id),
        address: node.address.clone(),
    };
    membership.nodes().map(member).collect()
}

/// The sets whose majorities count: two while it is joint.
pub(crate) fn voters_of(membership: &StoredMembership) -> Vec<BTreeSet<NodeId>> {
    let set = |ids: &BTreeSet<u64>| ids.iter().copied().map(NodeId::new).collect();
    membership.membership().get_joint_config().iter().map(set).collect()
}

impl<R: AsyncRuntime, N: Replica, P: Peers> RaftStateMachine<Types<R>> for Machine<R, N, P> {
    type SnapshotData = Bytes;
    type SnapshotBuilder = NoSnapshots;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok((None, StoredMembership::default()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<Types<R>>>> + Unpin + OptionalSend,
    {
        while let Some(entry) = entries.next().await {
            let (entry, responder) = entry?;
            let log_id = entry.log_id;
            let (effect, membership) = match entry.payload {
                EntryPayload::Blank => (Effect::Done, None),
                EntryPayload::Membership(membership) => {
                    (Effect::Done, Some(StoredMembership::new(Some(log_id), membership)))
                }
                EntryPayload::Normal(payload) => (self.effect(log_id, payload).await?, None),
            };
            self.note(log_id, membership);
            if let Some(responder) = responder {
                responder.send(effect);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> NoSnapshots {
        NoSnapshots
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMetaOf<Types<R>>,
        _: Bytes,
    ) -> io::Result<()> {
        Err(io::Error::other(format!(
            "a snapshot of Raft's log up to {:?} is not taken",
            meta.last_log_id
        )))
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<SnapshotOf<Types<R>, Bytes>>> {
        Ok(None)
    }
}

/// Raft's log is kept whole: it is never asked for a snapshot.
pub(crate) struct NoSnapshots;

impl<R: AsyncRuntime> RaftSnapshotBuilder<Types<R>> for NoSnapshots {
    type SnapshotData = Bytes;

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf<Types<R>, Bytes>> {
        Err(io::Error::other("no snapshot of Raft's log is made"))
    }
}
