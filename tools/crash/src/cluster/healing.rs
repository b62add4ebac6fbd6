//! The end of a run: nothing goes wrong any more, and everybody must come to hold the same, first
//! under the leader that there is.

use super::node::{Node, Part};
use super::world::World;

/// Rounds in which a sound cluster comes to rest.
const ROUNDS_MAX: usize = 20_000;
/// Steps that a round takes, so that what waits for a time does not wait for many rounds.
const ROUND_STEPS: u64 = 20;
/// Records that are appended at last.
const APPENDS: usize = 20;

impl World {
    /// Everything is up and connected: one leader, and all nodes come to hold the same.
    pub fn heal(&mut self) {
        self.is_healing = true;
        self.hears.iter_mut().for_each(|hears| hears.fill(true));
        let tampered: Vec<_> =
            self.links.iter().filter(|(_, link)| link.is_tampered).map(|(at, _)| *at).collect();
        tampered.into_iter().for_each(|link| self.drop_link(link));
        for node in 0..self.nodes.len() {
            if !self.nodes[node].is_up() {
                self.restart(node);
            }
        }
        let leader = match self.present_leader() {
            Some(leader) => {
                // Sessions go on as they are, with everything that is stuck in them.
                self.oracle.counts.healed += 1;
                self.come_to_rest(leader);
                leader
            }
            None => {
                let leader = self.any_voter();
                assert!(self.elect(leader), "everybody hears everybody");
                leader
            }
        };
        for _ in 0..APPENDS {
            let stream = self.random.pick(&self.streams);
            let Node { part, store, .. } = &mut self.nodes[leader];
            if let (Part::Leading(leading), Some(store)) = (part, store) {
                leading.append(store, stream, &mut self.random, &mut self.oracle);
            }
        }
        self.come_to_rest(leader);
        self.drop_links(|_| true);
    }

    /// Who leads, when nobody has promised a greater epoch.
    fn present_leader(&self) -> Option<usize> {
        let newest = self.newest_promise?;
        let leads = |node: &Node| match &node.part {
            Part::Leading(leading) => leading.core.epoch() == newest.epoch,
            _ => false,
        };
        self.nodes.iter().position(leads)
    }

    fn any_voter(&mut self) -> usize {
        loop {
            let node = self.any_node();
            if !self.nodes[node].is_learner {
                return node;
            }
        }
    }

    fn come_to_rest(&mut self, leader: usize) {
        for _ in 0..ROUNDS_MAX {
            if self.is_at_rest(leader) {
                return self.check_equal(leader);
            }
            self.round(leader);
        }
        panic!("the nodes do not come to hold the same: {}", self.who_is_behind(leader));
    }

    /// Everything goes on by a step.
    fn round(&mut self, leader: usize) {
        self.pass(ROUND_STEPS);
        for node in 0..self.nodes.len() {
            self.turn(node);
            if node == leader {
                (0..4).for_each(|_| self.lead(leader));
                continue;
            }
            if !self.links.contains_key(&(leader, node)) {
                self.dial();
            }
            self.send(leader, node);
            while self.deliver_to_follower(leader, node) {}
            while self.deliver_to_leader(leader, node) {}
        }
    }

    fn is_at_rest(&self, leader: usize) -> bool {
        let Part::Leading(leading) = &self.nodes[leader].part else { return false };
        if !leading.is_settled() || !leading.is_followed(self.nodes.len() - 1) {
            return false;
        }
        let ends = |node: &Node| {
            let mut held = node.store.as_ref().expect("it is up").all_held();
            held.retain(|_, held| held.end > 0);
            held.into_iter().map(|(stream, held)| (stream, held.end)).collect::<Vec<_>>()
        };
        let wanted = ends(&self.nodes[leader]);
        self.nodes.iter().all(|node| !node.is_changing() && ends(node) == wanted)
    }

    fn who_is_behind(&self, leader: usize) -> String {
        let Part::Leading(leading) = &self.nodes[leader].part else {
            return format!("node {leader} leads no more");
        };
        let sessions: Vec<_> =
            (0..self.nodes.len() - 1).map(|follower| leading.core.session(follower)).collect();
        format!("settled: {}, {sessions:?}", leading.is_settled())
    }

    fn check_equal(&mut self, leader: usize) {
        for node in &self.nodes {
            self.oracle.check_node(node.id, node.store.as_ref().expect("it is up"));
        }
        let (id, one) = (self.nodes[leader].id, self.nodes[leader].store.as_ref().expect("up"));
        self.oracle.check_leader(id, one);
        for other in &self.nodes {
            self.oracle.check_equal(one, other.store.as_ref().expect("up"));
        }
    }
}
