//! Changes of the membership. A watermark needs both majorities from before the joint entry is proposed,
//! until the uniform one is applied; and the new majority must hold what is committed before.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::time::Duration;

use openraft::{AsyncRuntime, ChangeMembers};
use ringwal_engine::StreamId;
use ringwal_replication::config::Member;
use ringwal_replication::node_id::NodeId;

use super::recover::has_majorities;
use super::{AGAIN, ChangeError, Control, MemberChange, RaftHandle};
use crate::machine::{engines_of, members_of, voters_of};
use crate::raft::RaftNode;
use crate::replica::{Led, Replica, Standing};
use crate::store::peers::Peers;
use crate::store::wire::{Answer, Ask};

/// How long a node is asked who it is, or what it holds.
const ASK_LIMIT: Duration = Duration::from_secs(2);
/// How long new voters may take to hold what is committed.
const CATCH_UP_LIMIT: Duration = Duration::from_secs(60);

/// A leader knows what its predecessor has committed only when a majority has everything from before its
/// epoch; until then nobody is admitted.
pub(super) fn check_starts<L: Led>(led: &L, starts: &[(StreamId, u64)]) -> Result<(), String> {
    let is_behind = |(stream, start): &&(StreamId, u64)| led.committed_end(*stream) < *start;
    match starts.iter().find(is_behind) {
        None => Ok(()),
        Some((stream, start)) => Err(format!(
            "stream {stream} is committed up to {}, and this epoch starts at {start}; ask again when a \
             majority has caught up",
            led.committed_end(*stream)
        )),
    }
}

impl<R: AsyncRuntime, N: Replica, P: Peers> Control<R, N, P> {
    /// Makes a change, apart from the loop, which goes on.
    pub(super) fn change_members(
        &self,
        change: MemberChange,
        led: N::Led,
    ) -> impl Future<Output = Result<(), ChangeError>> + Send + 'static + use<R, N, P> {
        let changer = Changer {
            raft: self.raft.clone(),
            replica: self.replica.clone(),
            peers: self.peers.clone(),
            led,
            members: self.members(),
            voters: voters_of(&self.membership()),
            engines: engines_of(&self.membership()),
        };
        async move {
            match change {
                MemberChange::AddLearner(member) => changer.add(member).await,
                MemberChange::SetVoters(voters) => changer.set_voters(voters, true).await,
                MemberChange::Remove(node) => changer.remove(node).await,
            }
        }
    }
}

struct Changer<R: AsyncRuntime, N: Replica, P: Peers> {
    raft: RaftHandle<R, N, P>,
    replica: N,
    peers: P,
    led: N::Led,
    members: Vec<Member>,
    voters: Vec<BTreeSet<NodeId>>,
    engines: BTreeMap<NodeId, [u8; 16]>,
}

fn not_now(why: impl Into<String>) -> ChangeError {
    ChangeError::NotNow(why.into())
}

impl<R: AsyncRuntime, N: Replica, P: Peers> Changer<R, N, P> {
    /// Its engine is asked of the node itself: a member is one with its disk (I-15).
    async fn add(mut self, member: Member) -> Result<(), ChangeError> {
        let node = member.node;
        if self.members.iter().any(|known| known.node == node) {
            return Err(not_now(format!(
                "node {node} is a member; take it out first if its disk is another one now"
            )));
        }
        let about = self.peers.ask(&member, Ask::About, ASK_LIMIT).await;
        let engine = match about {
            Ok(Answer::About(about)) if about.node == node => about.engine,
            Ok(_) => return Err(not_now(format!("{} is not node {node}", member.address))),
            Err(no_answer) => return Err(not_now(no_answer.why)),
        };
        let raft_node = RaftNode::new(member.address.clone(), engine);
        self.members.push(member);
        self.engines.insert(node, engine);
        let (members, voters) = (self.members.clone(), self.voters.clone());
        self.replica.set_members(members, voters, self.engines.clone());
        let added = self.raft.add_learner(node.get(), raft_node, false).await;
        added.map(drop).map_err(|error| ChangeError::Unknown(error.to_string()))
    }

    async fn remove(self, node: NodeId) -> Result<(), ChangeError> {
        if node == self.replica.id() {
            return Err(not_now("this node leads: transfer the leadership first"));
        }
        let mut voters: BTreeSet<NodeId> = self.voters.iter().flatten().copied().collect();
        if voters.remove(&node) {
            return self.set_voters(voters, false).await;
        }
        let change = ChangeMembers::RemoveNodes(BTreeSet::from([node.get()]));
        let removed = self.raft.change_membership(change, false).await;
        removed.map(drop).map_err(|error| ChangeError::Unknown(error.to_string()))
    }

    /// `retain`: who votes no more goes on as a learner.
    async fn set_voters(self, voters: BTreeSet<NodeId>, retain: bool) -> Result<(), ChangeError> {
        if voters.is_empty() {
            return Err(not_now("a cluster needs a voter"));
        }
        if let Some(stranger) =
            voters.iter().find(|node| !self.members.iter().any(|member| member.node == **node))
        {
            return Err(not_now(format!("node {stranger} is no member: add it first")));
        }
        if !voters.contains(&self.replica.id()) {
            return Err(not_now(
                "this node leads and would not vote: transfer the leadership first",
            ));
        }
        // From now on both majorities count, and what is committed already the new one has to hold.
        let mut both = self.voters.clone();
        if !both.contains(&voters) {
            both.push(voters.clone());
        }
        self.replica.set_members(self.members.clone(), both, self.engines.clone());
        let changed = match self.wait_for_majority(&voters).await {
            Ok(()) => {
                let ids: BTreeSet<u64> = voters.iter().map(|node| node.get()).collect();
                let changed = self.raft.change_membership(ids, retain).await;
                changed.map(drop).map_err(|error| ChangeError::Unknown(error.to_string()))
            }
            Err(why) => Err(ChangeError::NotNow(why)),
        };
        use openraft::async_runtime::WatchReceiver as _;
        let now = self.raft.server_metrics().borrow_watched().membership_config.clone();
        self.replica.set_members(members_of(&now), voters_of(&now), engines_of(&now));
        changed
    }

    async fn wait_for_majority(&self, voters: &BTreeSet<NodeId>) -> Result<(), String> {
        let deadline = self.replica.boottime_ns() + CATCH_UP_LIMIT.as_nanos() as u64;
        let me = self.replica.id();
        // The new sets count when this is answered, so what is committed by then the old ones had alone.
        if let Some(begun) = self.replica.begun() {
            self.replica.promise(begun).await?;
        }
        let own = self.replica.standing().streams;
        let needed: Vec<(StreamId, u64)> =
            own.iter().map(|held| (held.stream, self.led.committed_end(held.stream))).collect();
        let epoch = self.led.epoch();
        let holds = |standing: &Standing| {
            let is_cut = standing.begun.is_some_and(|begun| begun.epoch == epoch);
            is_cut
                && needed.iter().all(|(stream, end)| {
                    let held = standing.streams.iter().find(|held| held.stream == *stream);
                    held.map_or(0, |held| held.end) >= *end
                })
        };
        loop {
            let mut holding = BTreeSet::from([me]);
            let mut lacking = Vec::new();
            for member in self.members.iter().filter(|member| voters.contains(&member.node)) {
                if member.node == me {
                    continue;
                }
                match self.peers.ask(member, Ask::Holdings, ASK_LIMIT).await {
                    Ok(Answer::Promised(standing)) if holds(&standing) => {
                        holding.insert(member.node);
                    }
                    _ => lacking.push(member.node.to_string()),
                }
            }
            if has_majorities(std::slice::from_ref(voters), &holding) {
                return Ok(());
            }
            if self.replica.boottime_ns() > deadline {
                return Err(format!(
                    "nodes {} do not hold what is committed after {CATCH_UP_LIMIT:?}; look at their lag",
                    lacking.join(", ")
                ));
            }
            R::sleep(AGAIN).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fakes::FakeLed;

    #[test]
    fn nobody_is_admitted_before_the_watermark_has_reached_the_start_of_the_epoch() {
        let led = FakeLed::new(3);
        let starts = [(StreamId::new(0), 5), (StreamId::new(9), 2)];
        led.committed.send_replace(4);
        assert!(check_starts(&led, &starts).unwrap_err().contains("starts at 5"));
        led.committed.send_replace(5);
        assert_eq!(check_starts(&led, &starts), Ok(()));
    }
}
