//! From being elected to the begin of an epoch: promises of a majority, what is greatest of each stream,
//! and the entry that says where the epoch starts.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use openraft::AsyncRuntime;
use ringwal_engine::StreamId;
use ringwal_replication::config::Member;
use ringwal_replication::node_id::NodeId;
use ringwal_replication::promise::Promise;

use super::{AGAIN, Control, Starts};
use crate::machine::voters_of;
use crate::raft::{Effect, Payload};
use crate::replica::{Holding, Replica, Standing};
use crate::store::peers::Peers;
use crate::store::wire::{Answer, Ask, STREAMS_MAX};

/// How long one node is asked for its promise: what it has in flight has to have its outcome.
const PROMISE_LIMIT: Duration = Duration::from_secs(5);
/// Streams of which one entry can say where they start.
const STARTS_MAX: usize = 60_000;
const _: () = assert!(STARTS_MAX <= STREAMS_MAX);

/// Whether a majority of each set has answered.
pub(super) fn has_majorities(voters: &[BTreeSet<NodeId>], answered: &BTreeSet<NodeId>) -> bool {
    let has_majority = |set: &BTreeSet<NodeId>| 2 * set.intersection(answered).count() > set.len();
    !voters.is_empty() && voters.iter().all(has_majority)
}

/// Of each stream the greatest (epoch of the last record, durable end), and who has it.
fn greatest(standings: &BTreeMap<NodeId, Standing>) -> BTreeMap<StreamId, (Holding, NodeId)> {
    let mut greatest: BTreeMap<StreamId, (Holding, NodeId)> = BTreeMap::new();
    let holdings = standings
        .iter()
        .flat_map(|(node, standing)| standing.streams.iter().map(|holding| (*holding, *node)));
    for (holding, node) in holdings {
        let best = greatest.entry(holding.stream).or_insert((holding, node));
        if (holding.epoch, holding.end) > (best.0.epoch, best.0.end) {
            *best = (holding, node);
        }
    }
    greatest
}

impl<R: AsyncRuntime, N: Replica, P: Peers> Control<R, N, P> {
    /// Begins the epoch of a term in which this node is elected; where it starts. Tries until that is
    /// done.
    pub(super) async fn recover(&mut self, term: u64) -> Starts {
        // The first entry of a leader is a blank one.
        let is_applied = |applied: &crate::machine::AppliedLog| applied.has_applied_of_term(term);
        let _ = self.watched.applied.wait_for(is_applied).await;
        let mut attempts = 0u32;
        loop {
            match self.try_recover(term).await {
                Ok(starts) => return starts,
                Err(why) => {
                    attempts += 1;
                    tracing::warn!(term, attempts, why, "elected, and cannot begin to lead yet");
                    R::sleep(AGAIN).await;
                }
            }
        }
    }

    async fn try_recover(&mut self, term: u64) -> Result<Starts, String> {
        let me = self.replica.id();
        let promise = Promise { epoch: term, leader: me, run: self.replica.run() };
        let own = self.replica.promise(promise).await?;
        let mut standings = self.promises(promise).await;
        standings.insert(me, own);
        self.fetch_greatest(&standings).await?;
        let own = self.replica.promise(promise).await?;
        let ends: BTreeMap<StreamId, Holding> =
            own.streams.iter().map(|holding| (holding.stream, *holding)).collect();
        for (stream, (best, node)) in greatest(&standings) {
            let (epoch, end) = ends.get(&stream).map_or((0, 0), |held| (held.epoch, held.end));
            if (epoch, end) < (best.epoch, best.end) {
                return Err(format!(
                    "stream {stream} is at {} in epoch {} on node {node}, and at {end} in epoch {epoch} here",
                    best.end, best.epoch
                ));
            }
        }
        let starts: Starts = own.streams.iter().map(|held| (held.stream, held.end)).collect();
        if starts.len() > STARTS_MAX {
            let streams = starts.len();
            return Err(format!(
                "{streams} streams are replicated; an epoch begins with {STARTS_MAX}"
            ));
        }
        let (leader, run) = (me, promise.run);
        let entry = Payload::EpochStart { epoch: term, leader, run, starts: starts.clone() };
        let written = self.raft.client_write(entry).await.map_err(|error| error.to_string())?;
        match written.data {
            Effect::Done => Ok(starts),
            Effect::Nothing => Err(format!(
                "epoch {term} did not begin with its entry; {:?} has begun",
                self.replica.begun()
            )),
        }
    }

    /// Promises of others, until there are enough with this node's own.
    async fn promises(&self, promise: Promise) -> BTreeMap<NodeId, Standing> {
        let me = self.replica.id();
        let index = self.watched.applied.borrow().last.map_or(0, |last| last.index);
        let voters = voters_of(&self.membership());
        let counts = |member: &&Member| {
            member.node != me && voters.iter().any(|set| set.contains(&member.node))
        };
        let members = self.members();
        let asked = members.iter().filter(counts);
        let mut asks: FuturesUnordered<_> =
            asked.map(|member| self.promise_of(member, promise, index)).collect();
        let mut standings = BTreeMap::new();
        let mut answered = BTreeSet::from([me]);
        while !has_majorities(&voters, &answered) {
            let Some((node, standing)) = asks.next().await else { break };
            answered.insert(node);
            standings.insert(node, standing);
        }
        standings
    }

    /// Asks one node until it has promised.
    async fn promise_of(
        &self,
        member: &Member,
        promise: Promise,
        index: u64,
    ) -> (NodeId, Standing) {
        loop {
            let ask = Ask::Promise { promise, index };
            let why = match self.peers.ask(member, ask, PROMISE_LIMIT).await {
                Ok(Answer::Promised(standing)) => return (member.node, standing),
                Ok(Answer::Refused(why) | Answer::NotDone(why)) => why,
                Ok(_) => "it answers something else".to_owned(),
                Err(no_answer) => no_answer.why,
            };
            tracing::info!(node = %member.node, epoch = promise.epoch, why, "no promise");
            R::sleep(AGAIN).await;
        }
    }

    /// Brings what others have and this node lacks.
    async fn fetch_greatest(&self, standings: &BTreeMap<NodeId, Standing>) -> Result<(), String> {
        let me = self.replica.id();
        let own: BTreeMap<StreamId, u64> = standings
            .get(&me)
            .into_iter()
            .flat_map(|standing| standing.streams.iter().map(|held| (held.stream, held.end)))
            .collect();
        let mut wanted: BTreeMap<NodeId, Vec<(StreamId, Range<u64>)>> = BTreeMap::new();
        for (stream, (best, node)) in greatest(standings) {
            let end = own.get(&stream).copied().unwrap_or(0);
            if node != me && best.end > end {
                wanted.entry(node).or_default().push((stream, end..best.end));
            }
        }
        let members = self.members();
        for (node, wanted) in wanted {
            let member = members.iter().find(|member| member.node == node);
            let member = member.ok_or_else(|| format!("node {node} is no member any more"))?;
            let streams = wanted.len();
            tracing::info!(%node, streams, "fetching what this node lacks before it leads");
            self.replica.fetch(member, wanted).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(ids: &[u64]) -> BTreeSet<NodeId> {
        ids.iter().copied().map(NodeId::new).collect()
    }

    #[test]
    fn each_set_needs_its_majority() {
        let sets = [nodes(&[1, 2, 3]), nodes(&[3, 4, 5, 6])];
        assert!(!has_majorities(&sets, &nodes(&[1, 2, 3, 4])));
        assert!(!has_majorities(&sets, &nodes(&[1, 4, 5, 6])));
        assert!(has_majorities(&sets, &nodes(&[1, 3, 4, 5])));
        assert!(has_majorities(&sets[..1], &nodes(&[1, 2])));
        assert!(!has_majorities(&[], &nodes(&[1])), "nobody counts");
    }

    #[test]
    fn a_later_epoch_is_greater_than_a_longer_stream() {
        let held = |epoch, end| Standing {
            streams: vec![Holding { stream: StreamId::new(0), trimmed: 0, end, epoch }],
            begun: None,
        };
        let node = NodeId::new;
        let standings = [(node(1), held(2, 50)), (node(2), held(3, 40)), (node(3), held(3, 45))];
        let best = greatest(&standings.into())[&StreamId::new(0)];
        assert_eq!((best.0.end, best.1), (45, node(3)));
    }
}
