//! A leader with an epoch: the fast path and Raft, and the change from one to the other.
//!
//! Closing: nobody gets through the gate any more; what is in flight has its outcome; then Raft goes on from
//! the watermark. Opening: nothing more is proposed; every entry is applied; then the gate is opened. So the
//! order of commands is the order of offsets throughout.

use std::time::Duration;

use futures_util::future::BoxFuture;
use openraft::AsyncRuntime;
use openraft::alias::InstantOf;
use openraft::type_config::TypeConfigExt as _;
use ringwal_engine::mutants::{self, Mutant};

use super::gathering::Gathering;
use super::members::check_starts;
use super::proposer::Proposer;
use super::transfer::Transfer;
use super::{ChangeError, Control, Done, Leads, NotPlaced, Order, Placed, Proposal, Starts};
use crate::machine::{engines_of, members_of, voters_of};
use crate::raft::Types;
use crate::replica::{Led, LedError, METADATA_STREAM, Replica};
use crate::store::fast::Taken;
use crate::store::peers::Peers;
use crate::store::stats::Reason;

/// How often it is looked whether the lease comes and goes.
const LOOK: Duration = Duration::from_millis(10);
/// A lease is worth opening the fast path for when it lasts for so long.
const LEASE_MIN: Duration = Duration::from_millis(50);

/// A change of the membership that is under way.
type Changing = BoxFuture<'static, (Done, Result<(), ChangeError>)>;

impl<R: AsyncRuntime, N: Replica, P: Peers> Control<R, N, P> {
    /// Leads until that ends; why it did.
    pub(super) async fn serve(&mut self, term: u64, led: N::Led, starts: Starts) -> String {
        let mut gathering = Gathering::<InstantOf<Types<R>>>::new();
        let membership = self.membership();
        let (members, voters) = (members_of(&membership), voters_of(&membership));
        self.replica.set_members(members, voters, engines_of(&membership));
        let mut proposer = Proposer::new(self.raft.clone(), term, self.entry_bytes_max);
        let mut switch = self.shared.switch.subscribe();
        let mut changing: Option<Changing> = None;
        let mut mode = None;
        // Raft goes on from the watermark: that must not lie in an older epoch.
        let start = starts.iter().find(|(stream, _)| *stream == METADATA_STREAM);
        let start = start.map_or(0, |(_, start)| *start);
        let leadership = led.clone();
        let mut ready: Option<BoxFuture<'static, Result<(), LedError>>> =
            Some(Box::pin(async move { leadership.committed(start).await }));
        // What is read here is up to date when as much is applied.
        self.shared.seen.send_modify(|seen| seen.start = start);
        tracing::info!(epoch = term, "leading");
        loop {
            let is_ready = ready.is_none();
            let wish = if is_ready { self.wish(&led) } else { Err(Reason::Recovering) };
            match (mode, wish) {
                (Some(Leads::Fast), Err(why)) => {
                    self.shared.gate.close(why).await;
                    // What is in flight may still be taken: Raft must not go on beside it in this epoch.
                    if let Err(error) = led.drained().await {
                        return format!("the fast path cannot be closed: {error}");
                    }
                    tracing::info!(epoch = term, %why, "the fast path is closed");
                    proposer.reset();
                    mode = Some(Leads::Raft(why));
                    self.set_leads(mode);
                }
                (Some(Leads::Fast), Ok(())) => {}
                (_, Ok(())) if proposer.is_empty() || mutants::is(Mutant::SwitchOnEarly) => {
                    self.shared.gate.open(led.clone()).await;
                    mode = Some(Leads::Fast);
                    self.set_leads(mode);
                    tracing::info!(epoch = term, "the fast path is open");
                }
                // It opens when what is proposed is applied.
                (_, Ok(())) => {}
                (_, Err(why)) if mode != Some(Leads::Raft(why)) => {
                    self.shared.gate.close(why).await;
                    tracing::info!(epoch = term, %why, "commands go through Raft");
                    mode = Some(Leads::Raft(why));
                    self.set_leads(mode);
                }
                (_, Err(_)) => {}
            }
            if let Some(why) = led.ended() {
                return why;
            }
            let is_fast = mode == Some(Leads::Fast);
            let may_propose = is_ready && wish.is_err() && proposer.has_room();
            if is_fast {
                gathering.take().into_iter().for_each(|proposal| self.append_fast(proposal));
            } else if may_propose && gathering.is_due(Types::<R>::now()) {
                let together = gathering.take();
                if let Err(why) = proposer.propose(&self.replica, &led, together).await {
                    return why;
                }
            }
            let due = gathering.due().filter(|_| may_propose);
            tokio::select! {
                biased;
                done = proposer.next_done(), if !proposer.is_empty() => match done {
                    Ok(count) => gathering.note_done(count),
                    Err(why) => return why,
                },
                is_committed = poll_option(&mut ready) => {
                    ready = None;
                    if let Err(error) = is_committed {
                        return error.to_string();
                    }
                }
                changed = switch.changed() => {
                    if changed.is_err() {
                        return "the store is closed".to_owned();
                    }
                }
                (done, outcome) = poll_option(&mut changing) => {
                    changing = None;
                    let _ = done.send(outcome);
                }
                order = self.orders.recv() => match order {
                    None => return "the store is closed".to_owned(),
                    Some(Order::Transfer { to: named, limit, done }) => {
                        let Some(to) = self.successor(named) else {
                            let why = "there is no other voter with that id".to_owned();
                            let _ = done.send(Err(ChangeError::NotNow(why)));
                            continue;
                        };
                        self.shared.gate.close(Reason::Transferring).await;
                        let was_fast = mode == Some(Leads::Fast);
                        drop(gathering);
                        let transfer = Transfer::new(term, to, named.is_some(), limit, done);
                        return self.transfer(&led, &mut proposer, was_fast, transfer).await;
                    }
                    Some(Order::Change { done, .. }) if changing.is_some() => {
                        let why = "another change of the membership is under way".to_owned();
                        let _ = done.send(Err(ChangeError::NotNow(why)));
                    }
                    Some(Order::Change { change, done }) => match check_starts(&led, &starts) {
                        Err(why) => drop(done.send(Err(ChangeError::NotNow(why)))),
                        Ok(()) => {
                            let change = self.change_members(change, led.clone());
                            changing = Some(Box::pin(async move { (done, change.await) }));
                        }
                    },
                },
                proposal = self.proposals.recv(), if gathering.has_room() => {
                    let Some(proposal) = proposal else { return "the store is closed".to_owned() };
                    let now = Types::<R>::now();
                    gathering.push(proposal, now);
                    while gathering.has_room() && let Ok(proposal) = self.proposals.try_recv() {
                        gathering.push(proposal, now);
                    }
                }
                () = sleep_until_option::<R>(due) => {}
                () = R::sleep(LOOK) => {}
            }
        }
    }

    /// Whether the fast path should be open, and why not.
    fn wish(&self, led: &N::Led) -> Result<(), Reason> {
        let switch = *self.shared.switch.borrow();
        let membership = self.membership();
        let voters: std::collections::BTreeSet<u64> = membership.voter_ids().collect();
        let (term, until) = self.lease.valid_until();
        let until = lease_of(led.epoch(), term, until);
        led.lease_until(until);
        let lease_end = self.replica.boottime_ns() + LEASE_MIN.as_nanos() as u64;
        match () {
            () if !switch.has_wal => Err(Reason::NoWal),
            () if !switch.is_on => Err(Reason::SwitchedOff),
            () if voters.len() < 2 => Err(Reason::SingleNode),
            () if until < lease_end => Err(Reason::NoLease),
            () => Ok(()),
        }
    }

    /// A record that came for Raft when the fast path was opened.
    fn append_fast(&self, Proposal { record, placed }: Proposal) {
        let shared = self.shared.clone();
        let append = async move {
            let outcome = match shared.gate.append(&record).await {
                Taken::No(why) => {
                    Err(NotPlaced::NotDone(format!("the fast path has closed ({why})")))
                }
                Taken::Yes { epoch, offset } => match offset.await {
                    Ok(offset) => Ok(Placed { epoch, offset, is_committed: false }),
                    Err(crate::replica::LedError::NotTaken(why)) => Err(NotPlaced::NotDone(why)),
                    Err(crate::replica::LedError::Unknown(why)) => Err(NotPlaced::Unknown(why)),
                },
            };
            let _ = placed.send(outcome);
        };
        drop(R::spawn(append));
    }
}

/// Until when a leader of this epoch may answer, with a lease of a term.
pub(crate) fn lease_of(epoch: u64, term: u64, until: Option<u64>) -> u64 {
    if mutants::is(Mutant::LeaseIgnored) {
        return u64::MAX;
    }
    until.filter(|_| term == epoch).unwrap_or(0)
}

/// Comes then, if there is such a time.
async fn sleep_until_option<R: AsyncRuntime>(then: Option<InstantOf<Types<R>>>) {
    match then {
        Some(then) => Types::<R>::sleep_until(then).await,
        None => std::future::pending().await,
    }
}

/// Comes when there is something and it is done.
async fn poll_option<T>(future: &mut Option<BoxFuture<'static, T>>) -> T {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}
