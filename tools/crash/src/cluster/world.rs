//! One seeded run: nodes, their connections, and one thing after another that happens to them.

use std::collections::BTreeMap;

use ringwal_engine::StreamId;
use ringwal_replication::promise::{Fact, Promise};

use super::node::{Died, Node, Part};
use super::oracle::{Counts, Oracle};
use super::sessions::{Late, Link};
use crate::random::{Random, mix};
use crate::sim::trace;

/// What a step takes, for the cores.
const STEP_NS: u64 = 10_000_000;
/// Streams of a run.
const STREAMS_MAX: u64 = 14;

/// What a run was.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct Outcome {
    pub trace: u64,
    pub counts: Counts,
}

/// See the module.
pub struct World {
    pub nodes: Vec<Node>,
    /// By leader and follower.
    pub links: BTreeMap<(usize, usize), Link>,
    /// Messages of sessions that are over, which come late.
    pub late: Vec<Late>,
    /// Who hears whom.
    pub hears: Vec<Vec<bool>>,
    pub epoch: u64,
    /// What was asked for last in an election.
    pub newest_promise: Option<Promise>,
    pub random: Random,
    pub oracle: Oracle,
    pub streams: Vec<StreamId>,
    /// Whether peers lie in this run.
    pub has_liars: bool,
    /// Nothing goes wrong any more.
    pub is_healing: bool,
    pub now_ns: u64,
    trace: u64,
    steps: u64,
}

/// Runs a seed.
pub fn run(seed: u64) -> Outcome {
    let mut world = World::new(seed);
    let steps = world.random.pick(&[300, 1500, 4000]);
    for _ in 0..steps {
        world.step();
    }
    world.heal();
    let disks = world.nodes.iter().flat_map(|node| &node.disks);
    let trace = disks.fold(world.trace, |all, disk| mix(all ^ disk.trace_hash()));
    Outcome { trace, counts: world.oracle.counts }
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random::with_purpose(seed, 0xC1);
        let count = random.pick(&[2, 3, 3, 3, 5]) as usize;
        let shards = random.pick(&[1, 1, 2, 3]);
        let streams = random.within(1..=6);
        let has_liars = random.chance(250);
        let mut oracle = Oracle::default();
        oracle.counts.several_shards += u64::from(shards > 1);
        Self {
            nodes: (1..=count as u64).map(|number| Node::new(number, shards, seed << 8)).collect(),
            links: BTreeMap::new(),
            late: Vec::new(),
            hears: vec![vec![true; count]; count],
            epoch: 0,
            newest_promise: None,
            random,
            oracle,
            streams: (0..streams).map(|stream| StreamId::new(4 + stream)).collect(),
            has_liars,
            is_healing: false,
            now_ns: 0,
            trace: 0,
            steps: 0,
        }
    }

    /// Whether two nodes are up and hear each other.
    pub fn hears_both_ways(&self, one: usize, other: usize) -> bool {
        self.nodes[one].is_up()
            && self.nodes[other].is_up()
            && self.hears[one][other]
            && self.hears[other][one]
    }

    pub fn tell(&self, what: impl FnOnce() -> String) {
        trace::tell(|| format!("{:>6} {}", self.steps, what()));
    }

    pub fn any_node(&mut self) -> usize {
        self.random.below(self.nodes.len() as u64) as usize
    }

    /// Somebody who thinks to lead, if there is one.
    pub fn any_leader(&mut self) -> usize {
        let leads = |node: &usize| matches!(self.nodes[*node].part, Part::Leading(_));
        let leaders: Vec<usize> = (0..self.nodes.len()).filter(leads).collect();
        if leaders.is_empty() { self.any_node() } else { self.random.pick(&leaders) }
    }

    fn any_link(&mut self) -> Option<(usize, usize)> {
        let at = self.random.below(self.links.len() as u64) as usize;
        self.links.keys().nth(at).copied()
    }

    /// Time passes by a step.
    pub fn pass(&mut self, steps: u64) {
        self.steps += 1;
        self.now_ns += steps * STEP_NS;
    }

    /// One thing happens.
    fn step(&mut self) {
        self.pass(1);
        let what = self.random.below(1000);
        self.trace = mix(self.trace ^ what);
        match what {
            0..220 => {
                let node = self.any_node();
                self.turn(node);
            }
            220..360 => self.append(),
            360..720 => {
                if let Some((leader, follower)) = self.any_link() {
                    self.serve(leader, follower);
                }
            }
            720..880 => {
                let node = self.any_leader();
                for _ in 0..self.random.within(1..=4) {
                    self.lead(node);
                }
            }
            880..960 => self.dial(),
            960..970 => self.trim(),
            970..976 => {
                if let Some(link) = self.any_link() {
                    self.oracle.counts.breaks += 1;
                    self.drop_link(link);
                }
            }
            976..980 => self.part_network(),
            980..990 => self.hears.iter_mut().for_each(|hears| hears.fill(true)),
            990..992 => {
                let node = self.any_node();
                self.crash(node);
            }
            992..996 => {
                let node = self.any_node();
                if !self.nodes[node].is_up() {
                    self.restart(node);
                }
            }
            996 => self.deliver_late(),
            _ => {
                let node = self.any_node();
                if self.nodes[node].is_up() {
                    self.elect(node);
                }
            }
        }
    }

    /// The shards of a node go on, and its receipts are taken.
    pub fn turn(&mut self, node: usize) {
        // What is rare must not take so long that it never comes to its end.
        let is_busy = self.nodes[node].admitting.is_some() || self.nodes[node].is_changing();
        let turns = if is_busy { self.random.within(1..=4) } else { 1 };
        (0..turns).for_each(|_| self.nodes[node].turn());
        let Node { id, part, store, .. } = &mut self.nodes[node];
        match (part, store) {
            (Part::Leading(leading), _) => leading.settle(&mut self.oracle),
            (Part::Following(following), Some(store)) => {
                following.settle();
                following.core.handle_time(self.now_ns);
                following.advance(*id, store, &mut self.oracle);
            }
            _ => {}
        }
        self.oracle.check_receipts(&self.nodes);
        self.do_acts(node);
        self.go_on_admitting(node);
        self.readmit(node);
        self.die_at_work(node);
    }

    /// Promises, cuts and new beginnings are rare, and a crash inside of them more so.
    fn die_at_work(&mut self, node: usize) {
        let is_admitting = self.nodes[node].admitting.is_some();
        let is_changing = self.nodes[node].is_changing();
        if self.is_healing || !(is_admitting || is_changing) || !self.random.chance(30) {
            return;
        }
        self.oracle.counts.died_promising += u64::from(is_admitting);
        self.oracle.counts.died_changing += u64::from(is_changing);
        self.crash(node);
    }

    fn append(&mut self) {
        if self.random.chance(10) && (self.streams.len() as u64) < STREAMS_MAX {
            self.oracle.counts.late_streams += 1;
            self.streams.push(StreamId::new(4 + self.streams.len() as u64));
        }
        let (node, stream) = (self.any_leader(), self.random.pick(&self.streams));
        let Node { part, store, .. } = &mut self.nodes[node];
        if let (Part::Leading(leading), Some(store)) = (part, store) {
            leading.append(store, stream, &mut self.random, &mut self.oracle);
        }
    }

    /// A leader's thread does something.
    pub fn lead(&mut self, node: usize) {
        let what = self.random.below(10);
        let fails = !self.is_healing && self.random.chance(100);
        let Node { part, store, .. } = &mut self.nodes[node];
        let (Part::Leading(leading), Some(store)) = (part, store) else { return };
        match what {
            0..4 => leading.pump(1 + what, &mut self.oracle),
            4 | 5 => leading.read(),
            6 | 7 => {
                self.oracle.counts.read_errors += u64::from(fails && !leading.reads.is_empty());
                leading.finish_read(fails);
            }
            8 => leading.tell_committed(store, &mut self.oracle),
            _ => {
                leading.check_ends(store, &mut self.oracle);
                leading.core.handle_time(self.now_ns);
            }
        }
    }

    /// A leader has learnt that its epoch is over.
    pub fn depose(&mut self, leader: usize) {
        self.drop_links(|(other, _)| other == leader);
        let node = &mut self.nodes[leader];
        node.store().shards().iter_mut().for_each(|shard| shard.close_epoch());
        node.turn_until(|node| node.is_quiet()).expect("nobody is in danger");
        self.end_part(leader);
    }

    /// The leader trims what is committed.
    fn trim(&mut self) {
        let (node, stream) = (self.any_leader(), self.random.pick(&self.streams));
        let Node { part, store, .. } = &mut self.nodes[node];
        let (Part::Leading(leading), Some(store)) = (part, store) else { return };
        let shard = store.of(stream);
        let committed = leading.committed(stream).min(shard.end(stream));
        let before = self.random.within(committed.saturating_sub(20)..=committed);
        if before > 0 && shard.trim(stream, before).is_ok() {
            self.oracle.counts.trims += 1;
            leading.core.handle_trimmed(stream, before);
        }
    }

    fn part_network(&mut self) {
        self.oracle.counts.partitions += 1;
        let count = self.nodes.len();
        let (one, other) = (self.any_node(), self.any_node());
        if self.random.chance(500) {
            self.hears[one][other] = one == other;
            return;
        }
        for node in (0..count).filter(|node| *node != one) {
            self.hears[one][node] = false;
            self.hears[node][one] = false;
        }
    }

    /// Sometimes, a node does not come to the end of what it is going to do.
    pub fn endanger(&mut self, node: usize) {
        let dies = !self.is_healing && self.random.chance(20);
        self.nodes[node].dies_in = dies.then(|| self.random.below(12));
    }

    /// Takes a node down that died; whether it did not.
    pub fn survives(
        &mut self,
        node: usize,
        outcome: Result<(), Died>,
        count: impl Fn(&mut Counts) -> &mut u64,
    ) -> bool {
        self.nodes[node].dies_in = None;
        if outcome.is_err() {
            *count(&mut self.oracle.counts) += 1;
            self.crash(node);
        }
        outcome.is_ok()
    }

    fn crash(&mut self, node: usize) {
        if !self.nodes[node].is_up() {
            return;
        }
        let power = self.random.chance(600);
        let counts = &mut self.oracle.counts;
        *(if power { &mut counts.power_cuts } else { &mut counts.kills }) += 1;
        self.tell(|| format!("node {node} crashes"));
        self.drop_links(|(leader, follower)| leader == node || follower == node);
        let leading = self.nodes[node].crash(power);
        let led = leading.is_some();
        if let Some(leading) = leading {
            leading.give_up(&mut self.oracle);
        }
        // As many disks may be lost as leave a majority that still votes.
        let voters = self.nodes.iter().filter(|node| !node.is_learner).count();
        let may_lose = !self.nodes[node].is_learner && voters > self.nodes.len() / 2 + 1;
        if may_lose && self.random.chance(100) {
            self.tell(|| format!("node {node} loses its disks"));
            self.oracle.counts.disks_lost += 1;
            self.oracle.counts.disks_of_leaders_lost += u64::from(led);
            self.oracle.note_lost(self.nodes[node].id);
            self.nodes[node].lose_disks();
        }
    }

    pub fn restart(&mut self, number: usize) {
        let node = &mut self.nodes[number];
        node.start().unwrap_or_else(|error| panic!("node {}: {error}", node.id));
        self.oracle.check_node(node.id, node.store.as_ref().expect("it is up"));
        self.oracle.check_promise(node.id, node.promised);
        // Whoever has lost its disks asks which epoch there is before it follows anybody: what it
        // had promised is gone too.
        if let Some(promise) = self.newest_promise.filter(|_| node.is_learner)
            && node.promised.is_none_or(|promised| promised.epoch < promise.epoch)
        {
            node.promised = Some(promise);
            node.save(&Fact::Promise(promise));
        }
    }

    /// A learner that follows the newest leader votes again when it holds what is committed.
    fn readmit(&mut self, number: usize) {
        let node = &mut self.nodes[number];
        let Part::Following(following) = &node.part else { return };
        let is_newest = node.is_learner
            && !following.is_over
            && !following.is_changing()
            && self.newest_promise.is_some_and(|newest| newest.epoch == following.core.epoch());
        let Some(store) = node.store.as_ref().filter(|_| is_newest) else { return };
        if self.oracle.has_everything(store) {
            self.oracle.counts.readmitted += 1;
            node.is_learner = false;
        }
    }
}
