//! Who gives epochs: asks a majority for a promise, brings the candidate up to the best of it, and
//! lets it lead. What Raft does in the product, all at once, since it is not what is tested here.

use std::collections::BTreeSet;

use ringwal_engine::StreamId;
use ringwal_replication::history::{self, Parting, part};
use ringwal_replication::promise::{Fact, Promise};

use super::leading::Leading;
use super::node::{Died, Part};
use super::world::World;

impl World {
    /// Tries to let `candidate` lead in a new epoch. False when there is no majority, or somebody
    /// died in it.
    pub fn elect(&mut self, candidate: usize) -> bool {
        let count = self.nodes.len();
        let is_voter = |world: &Self, node: usize| {
            !world.nodes[node].is_learner && world.hears_both_ways(candidate, node)
        };
        let mut members: Vec<usize> = (0..count).filter(|node| is_voter(self, *node)).collect();
        if members.len() <= count / 2 || !members.contains(&candidate) {
            self.oracle.counts.elections_failed += 1;
            return false;
        }
        self.epoch += 1;
        let (leader, run) = (self.nodes[candidate].id, self.nodes[candidate].run);
        let promise = Promise { epoch: self.epoch, leader, run };
        self.newest_promise = Some(promise);
        self.tell(|| format!("node {candidate} leads {} by {members:?}", promise.epoch));
        members.retain(|member| {
            let promised = self.promise(*member, promise);
            self.survives(*member, promised, |counts| &mut counts.died_promising)
        });
        let has_majority = members.len() > count / 2 && members.contains(&candidate);
        if !has_majority || !self.catch_up_all(candidate, &members) {
            self.oracle.counts.elections_failed += 1;
            return false;
        }
        let epoch = self.epoch;
        let node = &mut self.nodes[candidate];
        let store = node.store.as_mut().expect("it is up");
        let leading = Leading::new(store, epoch, count - 1, &mut self.random);
        self.oracle.check_leader(node.id, store);
        node.part = Part::Leading(Box::new(leading));
        self.oracle.counts.epochs += 1;
        true
    }

    /// A node promises an epoch: durably, and with nothing of an older one under way.
    fn promise(&mut self, member: usize, promise: Promise) -> Result<(), Died> {
        self.begin_promise(member, promise);
        self.endanger(member);
        let node = &mut self.nodes[member];
        node.turn_until(|node| node.is_quiet())?;
        node.dies_in = None;
        self.oracle.note_promise(node.id, promise);
        self.end_part(member);
        Ok(())
    }

    /// From now on nobody of an older epoch is followed, and nothing more is appended in one.
    pub fn begin_promise(&mut self, member: usize, promise: Promise) {
        self.drop_links(|(leader, follower)| leader == member || follower == member);
        let node = &mut self.nodes[member];
        node.admitting = None;
        node.promised = Some(promise);
        if let Part::Following(following) = &mut node.part {
            following.is_over = true;
        }
        node.store().shards().iter_mut().for_each(|shard| shard.close_epoch());
        node.save(&Fact::Promise(promise));
    }

    /// Everything that a node was at has its outcome.
    pub fn end_part(&mut self, member: usize) {
        let node = &mut self.nodes[member];
        match std::mem::replace(&mut node.part, Part::Idle) {
            Part::Idle => {}
            Part::Leading(leading) => {
                self.oracle.counts.deposed += 1;
                leading.give_up(&mut self.oracle);
            }
            Part::Following(following) => node.committed = following.core.committed().clone(),
        }
    }

    /// Brings the candidate up to the best of every stream.
    fn catch_up_all(&mut self, candidate: usize, members: &[usize]) -> bool {
        for stream in self.streams_of(members) {
            self.endanger(candidate);
            let outcome = self.catch_up(candidate, members, stream);
            if !self.survives(candidate, outcome, |counts| &mut counts.died_electing) {
                return false;
            }
        }
        true
    }

    fn streams_of(&self, members: &[usize]) -> BTreeSet<StreamId> {
        let stores = members.iter().filter_map(|member| self.nodes[*member].store.as_ref());
        stores.flat_map(|store| store.all_held().into_keys()).collect()
    }

    /// Brings one stream of the candidate up to the greatest by epoch of the last record, and end.
    fn catch_up(
        &mut self,
        candidate: usize,
        members: &[usize],
        stream: StreamId,
    ) -> Result<(), Died> {
        let rank = |world: &mut Self, member: usize| {
            let held = world.nodes[member].store().held(stream);
            let epoch = held.end.checked_sub(1).map_or(0, |last| held.epochs.epoch_at(last));
            (epoch, held.end, member == candidate)
        };
        let best = *members.iter().max_by_key(|member| rank(self, **member)).expect("a majority");
        if best == candidate {
            return Ok(());
        }
        let theirs = self.nodes[best].store().held(stream);
        let history = history::begin(stream, theirs.clone(), self.epoch);
        let mine = self.nodes[candidate].store().held(stream);
        let (node, oracle) = (&mut self.nodes[candidate], &mut self.oracle);
        let from = match part(&mine, &history) {
            Parting::Nowhere => mine.end,
            Parting::At(at) => {
                node.cut(stream, at, history.epochs.epoch_at(at), oracle)?;
                at
            }
            Parting::TooFar { trimmed } => {
                node.begin_anew(stream, trimmed, history.epochs.epoch_at(trimmed), oracle)?;
                trimmed
            }
            Parting::LeaderLacks { .. } => panic!("a majority lacks what was trimmed"),
        };
        self.fetch(candidate, best, stream, from..theirs.end)
    }

    fn fetch(
        &mut self,
        to: usize,
        from: usize,
        stream: StreamId,
        range: std::ops::Range<u64>,
    ) -> Result<(), Died> {
        let mut frames = self.nodes[from].store().at(stream).frames(stream, range.start);
        while frames.offset() < range.end {
            for frame in frames.next_batch(16 << 10).expect("a sound disk") {
                self.nodes[to].append_frame(stream, &frame.bytes);
            }
        }
        self.nodes[to].turn_until(|node| node.store().at(stream).end(stream) >= range.end)
    }
}
