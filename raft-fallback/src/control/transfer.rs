//! Giving the leadership away, and saying who has it then.
//!
//! Once another voter was told to lead, the lease of this term is gone for good (I-13), and openraft neither
//! proposes nor sends heartbeats in it any more, whether that voter takes the leadership or not. So this term
//! ends here in any case: when nobody has taken it in time, the leadership is offered to every voter in turn, as
//! one that has ended by itself, and whoever is elected begins an epoch of its own.

use std::time::Duration;

use openraft::AsyncRuntime;
use ringwal_replication::node_id::NodeId;

use super::proposer::Proposer;
use super::{ChangeError, Control, Done, Seen};
use crate::replica::{Led, Replica};
use crate::store::peers::Peers;
use crate::watch;

/// Whoever is elected is heard of within so long at least, or it is not known.
const HEARD_LIMIT: Duration = Duration::from_secs(3);

/// A leadership that is being given away.
pub(crate) struct Transfer {
    /// The term that ends with it.
    term: u64,
    /// Who is told to lead.
    to: NodeId,
    /// Nobody else would do.
    is_named: bool,
    limit: Duration,
    done: Done,
}

impl Transfer {
    pub(super) fn new(term: u64, to: NodeId, is_named: bool, limit: Duration, done: Done) -> Self {
        Self { term, to, is_named, limit, done }
    }

    /// Says what has come of it, when it is heard of: node `me` leads no more.
    pub(super) async fn tell<R: AsyncRuntime>(self, me: NodeId, mut seen: watch::Receiver<Seen>) {
        let Self { term, to, is_named, limit, done } = self;
        let is_decided = |seen: &Seen| seen.term > term && seen.leader.is_some();
        let decided = R::timeout(limit.max(HEARD_LIMIT), seen.wait_for(is_decided)).await;
        let leader = decided.ok().and_then(Result::ok).and_then(|seen| seen.leader);
        let outcome = match leader {
            Some(leader) if leader == to || (!is_named && leader != me) => Ok(()),
            Some(leader) => Err(ChangeError::OtherElected { asked: to, leader }),
            None => {
                let why = format!("node {to} was told to lead, and nobody is known to lead yet");
                Err(ChangeError::Unknown(why))
            }
        };
        let _ = done.send(outcome);
    }
}

impl<R: AsyncRuntime, N: Replica, P: Peers> Control<R, N, P> {
    /// Everything in flight has its outcome and the lease is gone, before anybody else is told to lead. Why
    /// this leadership is over then.
    pub(super) async fn transfer(
        &mut self,
        led: &N::Led,
        proposer: &mut Proposer<R, N, P>,
        was_fast: bool,
        transfer: Transfer,
    ) -> String {
        let Transfer { term, to, limit, .. } = transfer;
        // While Raft extends the stream, nothing else may: not even a record that does nothing.
        if was_fast && let Err(error) = led.drained().await {
            tracing::info!(%error, "closing the fast path");
        }
        while !proposer.is_empty() {
            if let Err(why) = proposer.next_done().await {
                return why;
            }
        }
        self.lease.end(term);
        led.lease_until(0);
        self.transferring = Some(transfer);
        tracing::info!(term, %to, "giving the leadership to another node");
        let asked = self.raft.trigger().transfer_leader(to.get()).await;
        // When it is taken, this task ends where it waits.
        let limit = if asked.is_ok() { limit } else { Duration::ZERO };
        R::sleep(limit).await;
        format!("node {to} has not taken the leadership within {limit:?}")
    }

    /// Who is to lead instead: the voter that is named, or whose log is furthest.
    pub(super) fn successor(&self, to: Option<NodeId>) -> Option<NodeId> {
        let me = self.replica.id();
        let voters: Vec<NodeId> = self.membership().voter_ids().map(NodeId::new).collect();
        match to {
            Some(to) => Some(to).filter(|to| *to != me && voters.contains(to)),
            None => self.furthest(&voters),
        }
    }

    /// The voter whose log is furthest, as far as this leader knows.
    fn furthest(&self, voters: &[NodeId]) -> Option<NodeId> {
        use openraft::async_runtime::WatchReceiver as _;
        let me = self.replica.id();
        let metrics = self.raft.data_metrics().borrow_watched().clone();
        let replication = metrics.replication.unwrap_or_default();
        let others = voters.iter().filter(|node| **node != me);
        others.max_by_key(|node| replication.get(&node.get()).cloned().flatten()).copied()
    }
}

#[cfg(test)]
mod tests {
    use openraft_rt_tokio::TokioRuntime;
    use tokio::sync::oneshot;

    use super::*;

    /// Node 1 has told node 2 to lead, in term 7; what is said when these are seen, one after the other.
    async fn told(is_named: bool, seen: &[(u64, Option<u64>)]) -> Result<(), ChangeError> {
        let (done, outcome) = oneshot::channel();
        let limit = Duration::from_secs(30);
        let transfer = Transfer::new(7, NodeId::new(2), is_named, limit, done);
        let (see, seeing) = watch::channel(Seen::default());
        let telling = tokio::spawn(transfer.tell::<TokioRuntime>(NodeId::new(1), seeing));
        for (term, leader) in seen {
            tokio::task::yield_now().await;
            let leader = leader.map(NodeId::new);
            see.send_modify(|seen| (seen.term, seen.leader) = (*term, leader));
        }
        // A last one that nobody was elected in: whoever has waited sees that it is over.
        tokio::task::yield_now().await;
        drop(see);
        telling.await.unwrap();
        outcome.await.unwrap()
    }

    #[tokio::test]
    async fn whoever_was_elected_instead_is_named() {
        let candidate = [(7, Some(1)), (7, None), (8, None)];
        let elected = |leader| [&candidate[..], &[(8, Some(leader))]].concat();
        assert!(told(true, &elected(2)).await.is_ok());
        assert!(told(false, &elected(2)).await.is_ok());
        assert!(told(false, &elected(3)).await.is_ok(), "anybody else would do");
        for (is_named, leader) in [(true, 3), (true, 1), (false, 1)] {
            let error = told(is_named, &elected(leader)).await.unwrap_err();
            let ChangeError::OtherElected { asked, leader: other } = error else {
                panic!("{error}")
            };
            assert_eq!((asked.get(), other.get()), (2, leader));
        }
        let error = told(true, &candidate).await.unwrap_err();
        assert!(matches!(error, ChangeError::Unknown(_)), "{error}");
    }
}
