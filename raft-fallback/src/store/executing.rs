//! How a command becomes a record of the metadata stream, and what came of it comes back.
//!
//! ```text
//! this node leads ─▶ gate open ─▶ fast: its own stream ─────────────┐
//!                 └▶ gate closed ─▶ Raft: an Extend entry ──────────┤▶ applied here ─▶ outcome
//! it does not ─▶ forwarded to the leader, never executed here (I-16) ┘
//! ```
//!
//! Whatever is not known to be done is tried again, with the same session and number, until the time is over:
//! it executes once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use openraft::type_config::TypeConfigExt as _;
use openraft::{AsyncRuntime, Instant as _};
use ringwal_replication::Ack;
use ringwal_replication::node_id::NodeId;
use tokio::sync::{mpsc, oneshot};

use super::fast::Taken;
use super::peers::Peers;
use super::stats::{Counters, add};
use super::wire::{Answer, Ask};
use crate::control::{Leads, NotPlaced, Placed, Proposal, Seen, Shared};
use crate::machine::members_of;
use crate::raft::Types;
use crate::replica::{Led, LedError, OutcomeError, Replica};
use crate::state::{Applied, Outcome, Rejection};
use crate::watch;

/// How long it is waited at most for something to change, before it is tried again.
const AGAIN: Duration = Duration::from_millis(20);

/// How long one answer of the leader is waited for.
const FORWARD_LIMIT: Duration = Duration::from_secs(3);
/// How long another node is asked who leads.
const ASK_LIMIT: Duration = Duration::from_millis(500);

/// A command that was executed, whatever came of it.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) struct Answered {
    pub(crate) applied: Applied,
    pub(crate) durable: Ack,
}

/// Why there is no outcome.
#[derive(Clone, Debug)]
pub(crate) enum Unanswered {
    /// It certainly is not done, and will not be.
    NotDone(String),
    /// It may be.
    Unknown(String),
    /// Another node leads, if any: ask that one.
    NotLeader(Option<NodeId>),
}

/// See the module. Clones are the same.
pub(crate) struct Executor<N: Replica, P> {
    pub(crate) replica: N,
    pub(crate) peers: P,
    pub(crate) shared: Arc<Shared<N::Led>>,
    pub(crate) led: watch::Receiver<Option<N::Led>>,
    pub(crate) proposals: mpsc::Sender<Proposal>,
    pub(crate) counters: Arc<Counters>,
}

impl<N: Replica, P: Clone> Clone for Executor<N, P> {
    fn clone(&self) -> Self {
        Self {
            replica: self.replica.clone(),
            peers: self.peers.clone(),
            shared: self.shared.clone(),
            led: self.led.clone(),
            proposals: self.proposals.clone(),
            counters: self.counters.clone(),
        }
    }
}

impl<N: Replica, P: Peers> Executor<N, P> {
    /// The fast path, for any thread and in any future; none when it is closed, or has no room now.
    pub(crate) async fn try_execute_fast(
        &self,
        record: &[u8],
        ack: Ack,
    ) -> Option<Result<Answered, Unanswered>> {
        let taken = self.shared.gate.try_append(record);
        self.outcome_of(taken, ack).await
    }

    async fn execute_fast(&self, record: &[u8], ack: Ack) -> Option<Result<Answered, Unanswered>> {
        let taken = self.shared.gate.append(record).await;
        self.outcome_of(taken, ack).await
    }

    async fn outcome_of(
        &self,
        taken: Taken<<N::Led as Led>::Pending>,
        ack: Ack,
    ) -> Option<Result<Answered, Unanswered>> {
        match taken {
            Taken::No(why) => {
                self.counters.note_fallback(why);
                None
            }
            Taken::Yes { epoch, offset } => {
                add(&self.counters.fast);
                let queued = Instant::now();
                Some(match offset.await {
                    Ok(offset) => {
                        self.counters.durable.add(queued.elapsed());
                        let placed = Placed { epoch, offset, is_committed: false };
                        self.outcome(placed, ack).await
                    }
                    Err(LedError::NotTaken(why)) => Err(Unanswered::NotDone(why)),
                    Err(LedError::Unknown(why)) => Err(Unanswered::Unknown(why)),
                })
            }
        }
    }

    /// What came of a record that has its place, when it is as durable as asked.
    async fn outcome(&self, placed: Placed, ack: Ack) -> Result<Answered, Unanswered> {
        let Placed { epoch, offset, is_committed } = placed;
        let asked = Instant::now();
        let applied = match self.replica.outcome(epoch, offset).await {
            Ok(applied) => applied,
            Err(error @ (OutcomeError::Superseded(_) | OutcomeError::Unknown(_))) => {
                return Err(Unanswered::Unknown(error.to_string()));
            }
        };
        self.counters.outcome.add(asked.elapsed());
        if is_committed {
            return Ok(Answered { applied, durable: Ack::Quorum });
        }
        match ack {
            Ack::Local => self.check_lease(epoch)?,
            // Of a command that was executed before, its first record is the older one.
            Ack::Quorum => self.committed(epoch, applied.offset.max(offset) + 1).await?,
        }
        Ok(Answered { applied, durable: ack })
    }

    /// The last look at the lease (I-13): applying may have taken longer than it lasts, and then somebody else
    /// may lead, without this record.
    fn check_lease(&self, epoch: u64) -> Result<(), Unanswered> {
        let led = self.led.borrow();
        match led.as_ref().filter(|led| led.epoch() == epoch) {
            Some(led) if led.holds_lease() => Ok(()),
            Some(_) => {
                let why = "the lease has lapsed before the record was applied";
                Err(Unanswered::Unknown(why.to_owned()))
            }
            None => Err(epoch_ended()),
        }
    }

    /// Waits until a majority has the metadata stream up to there, in the epoch that this node leads in.
    async fn committed(&self, epoch: u64, end: u64) -> Result<(), Unanswered> {
        let led = self.led.borrow().clone().filter(|led| led.epoch() == epoch);
        let led = led.ok_or_else(epoch_ended)?;
        led.committed(end).await.map_err(|error| Unanswered::Unknown(error.to_string()))
    }

    /// Where the fast path was opened meanwhile, it came through that.
    async fn execute_by_raft(&self, record: Bytes, ack: Ack) -> Result<Answered, Unanswered> {
        add(&self.counters.raft);
        let (place, placed) = oneshot::channel();
        let proposed = Instant::now();
        let proposal = Proposal { record, placed: place };
        if self.proposals.send(proposal).await.is_err() {
            return Err(Unanswered::NotDone("the node is closing".to_owned()));
        }
        match placed.await {
            Ok(Ok(placed)) => {
                self.counters.proposed.add(proposed.elapsed());
                self.outcome(placed, ack).await
            }
            Ok(Err(NotPlaced::NotDone(why))) => Err(Unanswered::NotDone(why)),
            Ok(Err(NotPlaced::Unknown(why))) => Err(Unanswered::Unknown(why)),
            Err(_) => Err(Unanswered::Unknown("the leadership ended first".to_owned())),
        }
    }

    /// Executes on this node, which leads.
    async fn execute_here(&self, record: Bytes, ack: Ack) -> Result<Answered, Unanswered> {
        if let Some(outcome) = self.execute_fast(&record, ack).await {
            return outcome;
        }
        self.execute_by_raft(record, ack).await
    }

    async fn forward(
        &self,
        to: NodeId,
        record: Bytes,
        ack: Ack,
        limit: Duration,
    ) -> Result<Answered, Unanswered> {
        let membership = self.shared.seen.borrow().membership.clone();
        let member = members_of(&membership).into_iter().find(|member| member.node == to);
        let Some(member) = member else {
            return Err(Unanswered::NotDone(format!("node {to}, which leads, is not known here")));
        };
        add(&self.counters.forwarded);
        // An answer may be lost without a word: then it is asked again, with the same session and number.
        let limit = limit.min(FORWARD_LIMIT);
        let limit_ms = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX);
        let ask = Ask::Execute { ack, limit_ms, record };
        match self.peers.ask(&member, ask, limit).await {
            Ok(Answer::Executed { durable, applied }) => Ok(Answered { applied, durable }),
            Ok(Answer::NotDone(why) | Answer::Refused(why)) => Err(Unanswered::NotDone(why)),
            Ok(Answer::NotLeader(leader)) => Err(Unanswered::NotLeader(leader)),
            Ok(Answer::Unknown(why)) => Err(Unanswered::Unknown(why)),
            Ok(_) => Err(Unanswered::Unknown(format!("node {to} answers something else"))),
            Err(no_answer) if no_answer.may_be_done => Err(Unanswered::Unknown(no_answer.why)),
            Err(no_answer) => Err(Unanswered::NotDone(no_answer.why)),
        }
    }

    /// One attempt, wherever the leader is.
    async fn attempt<R: AsyncRuntime>(
        &self,
        record: Bytes,
        ack: Ack,
        limit: Duration,
        origin: Origin,
    ) -> Result<Answered, Unanswered> {
        let seen = self.shared.seen.borrow().clone();
        match (seen.leads, seen.leader) {
            (Some(Leads::Raft(_) | Leads::Fast), _) => {
                let execute = self.execute_here(record, ack);
                let late = || Err(Unanswered::Unknown(format!("no outcome within {limit:?}")));
                R::timeout(limit, execute).await.unwrap_or_else(|_| late())
            }
            (Some(Leads::Recovering), _) => {
                Err(Unanswered::NotDone("this node is about to lead".to_owned()))
            }
            (None, Some(leader)) if leader != self.replica.id() && origin == Origin::Here => {
                self.forward(leader, record, ack, limit).await
            }
            (None, _)
                if origin == Origin::Here && (seen.has_ended || self.replica.unfit().is_some()) =>
            {
                match self.ask_who_leads().await {
                    Some(leader) => self.forward(leader, record, ack, limit).await,
                    None => Err(Unanswered::NotLeader(None)),
                }
            }
            (None, leader) => {
                Err(Unanswered::NotLeader(leader.filter(|leader| *leader != self.replica.id())))
            }
        }
    }

    /// This node takes no part in elections, or in Raft any more: others know.
    async fn ask_who_leads(&self) -> Option<NodeId> {
        let (me, membership) = (self.replica.id(), self.shared.seen.borrow().membership.clone());
        for member in members_of(&membership).into_iter().filter(|member| member.node != me) {
            if let Ok(Answer::About(about)) = self.peers.ask(&member, Ask::About, ASK_LIMIT).await
                && let Some(leader) = about.leader.filter(|leader| *leader != me)
            {
                return Some(leader);
            }
        }
        None
    }

    /// Executes a record that carries a session, as often as it takes, until the time is over. Of another
    /// node only while this one leads.
    pub(crate) async fn execute<R: AsyncRuntime>(
        &self,
        record: Bytes,
        ack: Ack,
        limit: Duration,
        origin: Origin,
    ) -> Result<Answered, Unanswered> {
        let deadline = Types::<R>::now() + limit;
        let mut may_be_done = None;
        let mut seen: watch::Receiver<Seen> = self.shared.seen.subscribe();
        loop {
            let left = deadline.saturating_duration_since(Types::<R>::now());
            seen.borrow_and_update();
            let why = match self.attempt::<R>(record.clone(), ack, left, origin).await {
                Ok(answered)
                    if may_be_done.is_some() && is_of_session(&answered.applied.outcome) =>
                {
                    return Err(Unanswered::Unknown(
                        "the session is forgotten, and an attempt before may have been executed"
                            .into(),
                    ));
                }
                Ok(answered) => return Ok(answered),
                Err(Unanswered::NotLeader(leader)) if origin == Origin::Forwarded => {
                    return Err(match may_be_done {
                        None => Unanswered::NotLeader(leader),
                        Some(why) => Unanswered::Unknown(why),
                    });
                }
                Err(Unanswered::NotLeader(_)) => "no leader is known".to_owned(),
                Err(Unanswered::NotDone(why)) => why,
                Err(Unanswered::Unknown(why)) => {
                    may_be_done = Some(why.clone());
                    why
                }
            };
            if Types::<R>::now() + AGAIN >= deadline {
                return Err(match may_be_done {
                    None => Unanswered::NotDone(format!("not within {limit:?}: {why}")),
                    Some(why) => Unanswered::Unknown(why),
                });
            }
            add(&self.counters.retried);
            let _ = R::timeout(AGAIN, seen.changed()).await;
        }
    }
}

fn epoch_ended() -> Unanswered {
    Unanswered::Unknown("the epoch ended first".to_owned())
}

/// Whether it was rejected for its session: what another attempt did is not known then.
pub(crate) fn is_of_session(outcome: &Outcome) -> bool {
    matches!(
        outcome,
        Err(Rejection::SessionExpired { .. }
            | Rejection::SessionAhead { .. }
            | Rejection::SequenceForgotten { .. })
    )
}

/// Whose command it is.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum Origin {
    /// Of a caller on this node.
    Here,
    /// Of another node, which took this one for the leader.
    Forwarded,
}

#[cfg(test)]
mod tests;
