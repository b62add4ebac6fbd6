//! What a node answers to the stores of others.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use crate::watch;
use bytes::Bytes;
use openraft::AsyncRuntime;
use ringwal_replication::Ack;
use ringwal_replication::node_id::NodeId;

use super::executing::{Answered, Executor, Origin, Unanswered};
use super::peers::Peers;
use super::wire::{About, Answer, Ask};
use crate::applying::Applying;
use crate::command::Record;
use crate::control::{Leads, RaftHandle};
use crate::founding;
use crate::lease::LeaseKeeper;
use crate::machine::AppliedLog;
use crate::metadata::{Metadata, Progress};
use crate::raft::StoredMembership;
use crate::raft::serve::{Duty, Voting};
use crate::replica::{Led, Replica};

/// No command of another node is tried for longer.
const LIMIT_MAX: Duration = Duration::from_secs(60);
/// How long a node waits, for a promise, until it has applied as much as the asker.
const PROMISE_LIMIT: Duration = Duration::from_secs(4);
/// Most of a snapshot in one answer.
const PART_BYTES_MAX: usize = 1 << 20;

/// What answering takes.
pub(crate) struct Answering<R: AsyncRuntime, N: Replica, P: Peers> {
    pub(crate) raft: RaftHandle<R, N, P>,
    pub(crate) executor: Executor<N, P>,
    pub(crate) applied: watch::Receiver<AppliedLog>,
    pub(crate) metadata: Metadata,
    pub(crate) lease: Arc<LeaseKeeper>,
    /// Where snapshots of the state machine are.
    pub(crate) snapshots: Option<Applying>,
    /// With whom it founds a cluster, if it does: as its configuration has it.
    pub(crate) founders: Option<BTreeSet<NodeId>>,
}

impl<R: AsyncRuntime, N: Replica, P: Peers> Answering<R, N, P> {
    /// Answers a question of a node.
    pub(crate) async fn answer(&self, from: NodeId, ask: Ask) -> Answer {
        let replica = &self.executor.replica;
        match ask {
            Ask::About => Answer::About(self.about().await),
            Ask::Found(founders) => {
                let is_named = |one: &super::wire::Founder| {
                    one.node == replica.id() && one.engine == replica.engine()
                };
                let nodes: BTreeSet<NodeId> = founders.iter().map(|one| one.node).collect();
                if self.founders.as_ref() != Some(&nodes) || !founders.iter().any(is_named) {
                    return Answer::Refused("this node founds no such cluster".to_owned());
                }
                match founding::write(&self.raft, &founders).await {
                    Ok(()) => Answer::Done,
                    Err(why) => Answer::NotDone(why),
                }
            }
            Ask::Promise { promise, .. } if promise.leader != from => {
                Answer::Refused("a promise is asked for by whoever leads".to_owned())
            }
            Ask::Promise { promise, index } => match self.promise(promise, index).await {
                Ok(standing) => Answer::Promised(standing),
                Err(why) => Answer::NotDone(why),
            },
            Ask::Holdings => Answer::Promised(replica.standing()),
            Ask::Execute { ack, limit_ms, record } => {
                self.execute(ack, Duration::from_millis(limit_ms.into()), record).await
            }
            Ask::ReadEnd { limit_ms } => {
                let limit = Duration::from_millis(limit_ms.into()).min(LIMIT_MAX);
                match self.read_end(limit).await {
                    Ok(Progress { epoch, end }) => Answer::ReadEnd { epoch, end },
                    Err(Unanswered::NotLeader(leader)) => Answer::NotLeader(leader),
                    Err(Unanswered::NotDone(why) | Unanswered::Unknown(why)) => {
                        Answer::NotDone(why)
                    }
                }
            }
            Ask::Snapshot { end, from } => self.snapshot(end, from),
            // The caller's.
            Ask::Operator(_) => Answer::Refused("no operator is answered here".to_owned()),
        }
    }

    async fn about(&self) -> About {
        let replica = &self.executor.replica;
        About {
            node: replica.id(),
            engine: replica.engine(),
            run: replica.run(),
            // Who cannot say has been a member of something.
            is_initialized: self.raft.is_initialized().await.unwrap_or(true),
            begun: replica.begun(),
            leader: self.executor.shared.seen.borrow().leader,
            applied: self.metadata.progress().end,
        }
    }

    /// Everything of older epochs ends; Raft's log is applied as far as the asker has; then what is held.
    async fn promise(
        &self,
        promise: ringwal_replication::promise::Promise,
        index: u64,
    ) -> Result<crate::replica::Standing, String> {
        let replica = &self.executor.replica;
        let membership = self.executor.shared.seen.borrow().membership.clone();
        if let Some(why) = replica.unfit().or_else(|| no_member(replica, &membership)) {
            return Err(why);
        }
        replica.promise(promise).await?;
        let mut applied = self.applied.clone();
        let has_applied = applied.wait_for(|applied| applied.has_applied(index));
        match R::timeout(PROMISE_LIMIT, has_applied).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) => return Err("Raft has ended here".to_owned()),
            Err(_) => return Err(format!("entry {index} is not applied here yet")),
        }
        replica.promise(promise).await
    }

    async fn execute(&self, ack: Ack, limit: Duration, record: Bytes) -> Answer {
        // It came from elsewhere: what cannot be applied must not be appended.
        let record = match Record::decode(&record) {
            Ok(record) if record.session.is_some() => record,
            Ok(_) => return Answer::Refused("a forwarded command needs a session".to_owned()),
            Err(error) => return Answer::Refused(error.to_string()),
        };
        let record = match (Record { time_ms: self.executor.replica.now_ms(), ..record }).encode() {
            Ok(record) => record,
            Err(error) => return Answer::Refused(error.to_string()),
        };
        super::stats::add(&self.executor.counters.answered);
        let limit = limit.min(LIMIT_MAX);
        let origin = Origin::Forwarded;
        match self.executor.execute::<R>(record.into(), ack, limit, origin).await {
            Ok(Answered { applied, durable }) => Answer::Executed { durable, applied },
            Err(Unanswered::NotDone(why)) => Answer::NotDone(why),
            Err(Unanswered::Unknown(why)) => Answer::Unknown(why),
            Err(Unanswered::NotLeader(leader)) => Answer::NotLeader(leader),
        }
    }

    /// Up to where a read that begins now has to see, when this node leads: it holds its lease, or a
    /// majority says so, and a majority has it.
    pub(crate) async fn read_end(&self, limit: Duration) -> Result<Progress, Unanswered> {
        let seen = self.executor.shared.seen.borrow().clone();
        if !matches!(seen.leads, Some(Leads::Raft(_) | Leads::Fast)) {
            return Err(Unanswered::NotLeader(seen.leader));
        }
        let led = self.executor.led.borrow().clone();
        let Some(led) = led.filter(|led| led.epoch() == seen.term) else {
            return Err(Unanswered::NotLeader(None));
        };
        // Whatever is durable here may have been answered to somebody who appends by himself.
        let durable = self.executor.replica.metadata_end();
        let began = Progress { epoch: led.epoch(), end: durable.max(seen.start) };
        let confirm = async {
            // Whatever was answered before this epoch is below its start.
            let applied = self.metadata.wait_progress(began).await;
            let progress = applied.map_err(|error| Unanswered::NotDone(error.to_string()))?;
            let (term, until) = self.lease.valid_until();
            let now = self.executor.replica.boottime_ns();
            if term != led.epoch() || until.is_none_or(|until| until <= now) {
                let policy = openraft::ReadPolicy::ReadIndex;
                let read = self.raft.ensure_linearizable(policy).await;
                read.map_err(|error| Unanswered::NotDone(error.to_string()))?;
            }
            let committed = led.committed(progress.end).await;
            committed.map_err(|error| Unanswered::NotDone(error.to_string()))?;
            Ok(progress)
        };
        let confirmed = R::timeout(limit, confirm).await;
        confirmed.unwrap_or_else(|_| {
            Err(Unanswered::NotDone(format!("no majority has answered within {limit:?}")))
        })
    }

    fn snapshot(&self, end: u64, from: u64) -> Answer {
        let Some(applying) = &self.snapshots else {
            return Answer::Refused("this node keeps no snapshots".to_owned());
        };
        let file = match applying.newest_snapshot() {
            Ok(Some(file)) if end == 0 || file.id().end == end => file,
            Ok(Some(_)) => {
                return Answer::NotDone("there is a newer snapshot: begin anew".to_owned());
            }
            Ok(None) => return Answer::NotDone("there is no snapshot here yet".to_owned()),
            Err(error) => return Answer::NotDone(error.to_string()),
        };
        match file.read_at(from, PART_BYTES_MAX) {
            Ok(part) => {
                let (end, total) = (file.id().end, file.bytes());
                Answer::Snapshot { end, total, bytes: part.into() }
            }
            Err(error) => Answer::NotDone(error.to_string()),
        }
    }
}

/// Milliseconds since 1970, for whoever reads a command's time.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    since.as_millis() as u64
}

/// When a node does its duties in Raft.
pub(crate) struct Fitness<N: Replica> {
    pub(crate) replica: N,
    pub(crate) lease: Arc<LeaseKeeper>,
    pub(crate) seen: watch::Receiver<crate::control::Seen>,
    /// On CLOCK_BOOTTIME: a voter that was restarted may have given its word to a leader.
    pub(crate) votes_from_ns: u64,
    /// See [`Shared::heard_ns`](crate::control::Shared::heard_ns).
    pub(crate) heard_ns: Arc<AtomicU64>,
}

impl<N: Replica> Fitness<N> {
    /// Whether it answers for others: it leads, and a majority has given its word. Who is the only voter
    /// needs nobody's.
    pub(crate) fn holds_lease(&self) -> bool {
        let voters = self.seen.borrow().membership.voter_ids().count();
        let (_, until) = self.lease.valid_until();
        voters > 1 && until.is_some_and(|until| until > self.replica.boottime_ns())
    }

    /// Why this node gives nobody its vote, and does not stand for election.
    pub(crate) fn refuses_to_vote(&self) -> Option<String> {
        let now = self.replica.boottime_ns();
        if now < self.votes_from_ns {
            return Some("it has just started, and may have heard of a leader before".to_owned());
        }
        if self.holds_lease() {
            return Some("it leads, and holds its lease".to_owned());
        }
        no_member(&self.replica, &self.seen.borrow().membership)
    }
}

/// Why a node is none of the members that it knows of, if so: a blank disk knows of none (I-15).
fn no_member(replica: &impl Replica, membership: &StoredMembership) -> Option<String> {
    let (id, engine) = (replica.id().get(), replica.engine());
    match membership.nodes().find(|(node, _)| **node == id) {
        Some((_, node)) if node.engine == engine => None,
        Some(_) => Some("its disk is another one than the cluster knows (I-15)".to_owned()),
        None => Some("it knows of no cluster that it is a member of".to_owned()),
    }
}

impl<N: Replica> Voting for Fitness<N> {
    fn refuses(&self, duty: Duty) -> Option<String> {
        match duty {
            Duty::Vote => self.replica.unfit().or_else(|| self.refuses_to_vote()),
            Duty::Transfer if self.replica.unfit().is_some() => self.replica.unfit(),
            Duty::Transfer => {
                let now = self.replica.boottime_ns();
                (now < self.votes_from_ns).then(|| "it has just started".to_owned())
            }
            // What a repair has taken away comes back by following.
            Duty::Append | Duty::Snapshot if self.replica.has_failed() => self.replica.unfit(),
            Duty::Append | Duty::Snapshot => {
                self.heard_ns.store(self.replica.boottime_ns(), Ordering::Relaxed);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests;
