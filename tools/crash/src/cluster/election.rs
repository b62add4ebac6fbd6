//! Who gives epochs: asks a majority for a promise, brings the candidate up to the best of it, and
//! lets it lead. What Raft does in the product, all at once, since it is not what is tested here.

use std::collections::BTreeSet;

use ringwal_engine::StreamId;
use ringwal_replication::history::{self, Parting, part};
use ringwal_replication::promise::{Fact, Promise};

use super::leading::Leading;
use super::node::Part;
use super::oracle::{all_held, held};
use super::world::World;

impl World {
    /// Tries to let `candidate` lead in a new epoch. False when there is no majority.
    pub fn elect(&mut self, candidate: usize) -> bool {
        let count = self.nodes.len();
        let members: Vec<usize> =
            (0..count).filter(|node| self.hears_both_ways(candidate, *node)).collect();
        if members.len() <= count / 2 || !members.contains(&candidate) {
            self.oracle.counts.elections_failed += 1;
            return false;
        }
        self.epoch += 1;
        let (leader, run) = (self.nodes[candidate].id, self.nodes[candidate].run);
        let promise = Promise { epoch: self.epoch, leader, run };
        self.tell(|| format!("node {candidate} leads {} by {members:?}", promise.epoch));
        for member in &members {
            self.promise(*member, promise);
        }
        for stream in self.streams_of(&members) {
            self.catch_up(candidate, &members, stream);
        }
        let epoch = self.epoch;
        let node = &mut self.nodes[candidate];
        let shard = node.shard.as_mut().expect("it is up");
        let leading = Leading::new(shard, epoch, count - 1, &mut self.random);
        node.part = Part::Leading(Box::new(leading));
        self.oracle.counts.epochs += 1;
        self.oracle.check_leader(self.nodes[candidate].shard());
        true
    }

    /// A node promises an epoch: durably, and with nothing of an older one under way.
    pub fn promise(&mut self, member: usize, promise: Promise) {
        self.drop_links(|(leader, follower)| leader == member || follower == member);
        let node = &mut self.nodes[member];
        self.oracle.note_promise(node.id, promise);
        node.promised = Some(promise);
        node.save(&Fact::Promise(promise));
        node.turn_until(|node| node.is_quiet());
        let part = std::mem::replace(&mut node.part, Part::Idle);
        match part {
            Part::Idle => {}
            Part::Leading(leading) => {
                self.oracle.counts.deposed += 1;
                leading.give_up(&mut self.oracle);
            }
            Part::Following(following) => {
                node.committed = following.core.committed().clone();
            }
        }
    }

    fn streams_of(&mut self, members: &[usize]) -> BTreeSet<StreamId> {
        let nodes = &mut self.nodes;
        members.iter().flat_map(|member| all_held(nodes[*member].shard()).into_keys()).collect()
    }

    /// Brings one stream of the candidate up to the greatest by epoch of the last record, and end.
    fn catch_up(&mut self, candidate: usize, members: &[usize], stream: StreamId) {
        let rank = |world: &mut Self, member: usize| {
            let held = held(world.nodes[member].shard(), stream);
            let epoch = held.end.checked_sub(1).map_or(0, |last| held.epochs.epoch_at(last));
            (epoch, held.end, member == candidate)
        };
        let best = *members.iter().max_by_key(|member| rank(self, **member)).expect("a majority");
        if best == candidate {
            return;
        }
        let theirs = held(self.nodes[best].shard(), stream);
        let history = history::begin(stream, theirs.clone(), self.epoch);
        let mine = held(self.nodes[candidate].shard(), stream);
        let from = match part(&mine, &history) {
            Parting::Nowhere => mine.end,
            Parting::At(at) => {
                let epoch = history.epochs.epoch_at(at);
                self.nodes[candidate].cut(stream, at, epoch, &mut self.oracle);
                at
            }
            Parting::TooFar { trimmed } => {
                let epoch = history.epochs.epoch_at(trimmed);
                self.nodes[candidate].begin_anew(stream, trimmed, epoch, &mut self.oracle);
                trimmed
            }
            Parting::LeaderLacks { .. } => panic!("a majority lacks what was trimmed"),
        };
        self.fetch(candidate, best, stream, from..theirs.end);
    }

    fn fetch(&mut self, to: usize, from: usize, stream: StreamId, range: std::ops::Range<u64>) {
        let mut frames = self.nodes[from].shard().frames(stream, range.start);
        while frames.offset() < range.end {
            for frame in frames.next_batch(16 << 10).expect("a sound disk") {
                self.nodes[to].append_frame(&frame.bytes);
            }
        }
        let node = &mut self.nodes[to];
        node.turn_until(|node| held(node.shard(), stream).end >= range.end);
    }
}
