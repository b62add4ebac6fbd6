//! One seeded run: nodes, their connections, and one thing after another that happens to them.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use ringwal_engine::StreamId;
use ringwal_engine::format::FrameHeader;
use ringwal_replication::follower::{Act, Refused};
use ringwal_replication::node_id::NodeId;
use ringwal_replication::promise::{Admission, Promise, admit};
use ringwal_replication::wire::{
    Answer, ConnectionKind, Hello, Item, Message, PROTOCOL_VERSION, PROTOCOL_VERSION_MIN, Refusal,
};

use super::following::Following;
use super::node::{CLUSTER, Node, Part};
use super::oracle::{Counts, Oracle};
use crate::random::{Random, mix};
use crate::sim::trace;

/// Items that a connection takes before it is full.
const ITEMS_MAX: usize = 40;
/// Longest frame that is taken.
const FRAME_BYTES_MAX: usize = 64 << 10;
/// What a step takes, for the cores.
const STEP_NS: u64 = 10_000_000;
/// Rounds in which a sound cluster comes to rest.
const ROUNDS_MAX: usize = 100_000;

/// What a run was.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct Outcome {
    pub trace: u64,
    pub counts: Counts,
}

/// A connection from a leader to a follower.
#[derive(Default)]
pub struct Link {
    to_follower: VecDeque<Bytes>,
    to_leader: VecDeque<Vec<u8>>,
    /// The follower has answered the hello, and the leader has seen it.
    is_admitted: bool,
    /// The leader's number of the session, when it is open.
    session: Option<u64>,
}

/// See the module.
pub struct World {
    pub nodes: Vec<Node>,
    /// By leader and follower.
    pub links: BTreeMap<(usize, usize), Link>,
    /// Who hears whom.
    hears: Vec<Vec<bool>>,
    pub epoch: u64,
    pub random: Random,
    pub oracle: Oracle,
    streams: Vec<StreamId>,
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
    let nodes = world.nodes.iter().map(|node| node.sim.trace_hash());
    let trace = nodes.fold(world.trace, |all, one| mix(all ^ one));
    Outcome { trace, counts: world.oracle.counts }
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random::with_purpose(seed, 0xC1);
        let count = random.pick(&[2, 3, 3, 3, 5]) as usize;
        let streams = random.within(1..=6);
        Self {
            nodes: (1..=count as u64).map(|number| Node::new(number, seed << 8)).collect(),
            links: BTreeMap::new(),
            hears: vec![vec![true; count]; count],
            epoch: 0,
            random,
            oracle: Oracle::default(),
            streams: (0..streams).map(|stream| StreamId::new(4 + stream)).collect(),
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

    fn any_node(&mut self) -> usize {
        self.random.below(self.nodes.len() as u64) as usize
    }

    fn any_link(&mut self) -> Option<(usize, usize)> {
        let at = self.random.below(self.links.len() as u64) as usize;
        self.links.keys().nth(at).copied()
    }

    /// One thing happens.
    fn step(&mut self) {
        self.steps += 1;
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
                let node = self.any_node();
                self.lead(node);
            }
            880..960 => self.dial(),
            960..970 => self.trim(),
            970..976 => {
                if let Some(link) = self.any_link() {
                    self.oracle.counts.breaks += 1;
                    self.drop_link(link);
                }
            }
            976..979 => self.part_network(),
            979..990 => self.hears.iter_mut().for_each(|hears| hears.fill(true)),
            990..992 => self.crash(),
            992..997 => {
                let node = self.any_node();
                if !self.nodes[node].is_up() {
                    self.restart(node);
                }
            }
            _ => {
                let node = self.any_node();
                if self.nodes[node].is_up() {
                    self.elect(node);
                }
            }
        }
    }

    /// The shard of a node goes on, and its receipts are taken.
    fn turn(&mut self, node: usize) {
        self.nodes[node].turn();
        let Node { part, .. } = &mut self.nodes[node];
        match part {
            Part::Idle => {}
            Part::Leading(leading) => leading.settle(&mut self.oracle),
            Part::Following(following) => {
                following.settle();
                following.core.handle_time(now_ns(self.steps));
            }
        }
        self.oracle.check_receipts(&self.nodes);
        self.do_acts(node);
    }

    fn append(&mut self) {
        let (node, stream) = (self.any_node(), self.random.pick(&self.streams));
        let Node { part, shard, .. } = &mut self.nodes[node];
        if let (Part::Leading(leading), Some(shard)) = (part, shard) {
            leading.append(shard, stream, &mut self.random, &mut self.oracle);
        }
    }

    /// A leader's thread does something.
    fn lead(&mut self, node: usize) {
        let what = self.random.below(10);
        let Node { part, shard, .. } = &mut self.nodes[node];
        let (Part::Leading(leading), Some(shard)) = (part, shard) else { return };
        match what {
            0..4 => leading.pump(1 + what, &mut self.oracle),
            4 | 5 => leading.read(),
            6 | 7 => leading.finish_read(shard),
            8 => leading.tell_committed(shard, &mut self.oracle),
            _ => {
                leading.check_ends(shard);
                leading.core.handle_time(now_ns(self.steps));
            }
        }
    }

    /// A leader without a connection to a member makes one.
    fn dial(&mut self) {
        let (leader, follower) = (self.any_node(), self.any_node());
        let is_new = leader != follower && !self.links.contains_key(&(leader, follower));
        if !is_new || !self.hears_both_ways(leader, follower) {
            return;
        }
        let Node { part: Part::Leading(leading), id, run, .. } = &self.nodes[leader] else {
            return;
        };
        let hello = Hello {
            versions: (PROTOCOL_VERSION_MIN, PROTOCOL_VERSION),
            kind: ConnectionKind::Frames,
            cluster: CLUSTER,
            from: *id,
            to: self.nodes[follower].id,
            run: *run,
            engine: self.nodes[leader].engine(),
            epoch: leading.core.epoch(),
        };
        let mut link = Link::default();
        link.to_follower.push_back(Bytes::copy_from_slice(&hello.encode()));
        self.links.insert((leader, follower), link);
    }

    /// Something moves on a connection.
    fn serve(&mut self, leader: usize, follower: usize) {
        match self.random.below(3) {
            0 => self.send(leader, follower),
            1 if self.hears[follower][leader] => {
                for _ in 0..self.random.within(1..=8) {
                    if !self.deliver_to_follower(leader, follower) {
                        break;
                    }
                }
            }
            2 if self.hears[leader][follower] => {
                for _ in 0..self.random.within(1..=8) {
                    if !self.deliver_to_leader(leader, follower) {
                        break;
                    }
                }
            }
            _ => {}
        }
    }

    fn send(&mut self, leader: usize, follower: usize) {
        let Some(link) = self.links.get_mut(&(leader, follower)) else { return };
        let Part::Leading(leading) = &mut self.nodes[leader].part else { return };
        let Some(session) = link.session else { return };
        if link.to_follower.len() < ITEMS_MAX {
            let slices = leading.core.poll_send(slot(leader, follower), 8, now_ns(self.steps));
            for slice in &slices {
                trace::tell(|| format!("{leader}>{follower} {}", describe(slice)));
            }
            // What is on its way keeps no buffer of the pool.
            link.to_follower.extend(slices.iter().map(|slice| Bytes::copy_from_slice(slice)));
            leading.core.handle_sent(slot(leader, follower), session);
        }
    }

    /// False when there is nothing, or no room for it.
    fn deliver_to_follower(&mut self, leader: usize, follower: usize) -> bool {
        let Some(link) = self.links.get_mut(&(leader, follower)) else { return false };
        let Some(bytes) = link.to_follower.front().cloned() else { return false };
        trace::tell(|| format!("{leader}>{follower} comes {}", describe(&bytes)));
        if !link.is_admitted {
            link.to_follower.pop_front();
            self.admit(leader, follower, &bytes);
            return true;
        }
        let item = Item::look(&bytes, FRAME_BYTES_MAX).expect("sound").expect("whole");
        if matches!(item, Item::Frame { .. }) && self.random.chance(3) {
            link.to_follower.pop_front();
            self.refuse(follower, &bytes);
            return true;
        }
        let Node { part, shard, .. } = &mut self.nodes[follower];
        let (Part::Following(following), Some(shard)) = (part, shard) else { return false };
        match item {
            Item::Frame { .. } => {
                if !following.take_frame(shard, &bytes, &mut self.oracle) {
                    return false;
                }
            }
            Item::Message { .. } => {
                following.core.handle_message(Message::decode(&bytes).expect("sound"));
            }
        }
        link.to_follower.pop_front();
        self.do_acts(follower);
        true
    }

    /// A follower's engine has no space for a frame.
    fn refuse(&mut self, follower: usize, bytes: &[u8]) {
        self.oracle.counts.no_room += 1;
        let (header, _) = FrameHeader::verify(bytes).expect("sound");
        let stream = StreamId::new(header.stream.get());
        self.nodes[follower].turn_until(|node| node.is_quiet());
        let end = super::oracle::held(self.nodes[follower].shard(), stream).end;
        let Part::Following(following) = &mut self.nodes[follower].part else { return };
        following.settle();
        following.core.handle_refused(stream, end, Refused::NoSpace);
    }

    fn admit(&mut self, leader: usize, follower: usize, bytes: &[u8]) {
        let hello = Hello::decode(bytes).expect("sound");
        let node = &self.nodes[follower];
        let mut refused = None;
        let members: Vec<NodeId> = self.nodes.iter().map(|node| node.id).collect();
        match admit(node.identity(), &members, node.promised, &hello) {
            Admission::Follow => {}
            Admission::Promise(promise) => {
                let link = self.links.remove(&(leader, follower));
                self.promise(follower, promise);
                self.links.extend(link.map(|link| ((leader, follower), link)));
            }
            Admission::Refuse(why, text) => {
                self.oracle.counts.refused += 1;
                refused = Some((why, text));
            }
        }
        let node = &mut self.nodes[follower];
        if refused.is_none() {
            self.oracle.counts.sessions += 1;
            let followed = Promise { epoch: hello.epoch, leader: hello.from, run: hello.run };
            self.oracle.note_promise(node.id, followed);
            node.turn_until(|node| node.is_quiet());
            if let Part::Following(following) = &node.part {
                node.committed = following.core.committed().clone();
            }
            node.save_committed(&mut self.random);
            let committed = node.committed.clone();
            let shard = node.shard.as_ref().expect("it is up");
            let following = Following::new(shard, leader, hello.epoch, committed);
            node.part = Part::Following(Box::new(following));
        }
        let answer = Answer {
            version: PROTOCOL_VERSION,
            refused,
            node: node.id,
            run: node.run,
            engine: node.engine(),
            epoch: node.promised.map_or(0, |promise| promise.epoch),
        };
        let link = self.links.get_mut(&(leader, follower)).expect("it is there");
        link.is_admitted = true;
        link.to_leader.push_back(answer.encode());
    }

    fn deliver_to_leader(&mut self, leader: usize, follower: usize) -> bool {
        let Some(link) = self.links.get_mut(&(leader, follower)) else { return false };
        let Some(bytes) = link.to_leader.pop_front() else { return false };
        let Part::Leading(leading) = &mut self.nodes[leader].part else { return false };
        if let Some(session) = link.session {
            trace::tell(|| format!("{leader}<{follower} comes {}", describe(&bytes)));
            let message = Message::decode(&bytes).expect("sound");
            let (slot, now_ns) = (slot(leader, follower), now_ns(self.steps));
            let outcome = leading.core.handle_message(slot, session, message, now_ns);
            outcome.unwrap_or_else(|violation| panic!("{violation}"));
            return true;
        }
        let answer = Answer::decode(&bytes).expect("sound");
        match answer.refused {
            None => {
                let slot = slot(leader, follower);
                link.session = Some(leading.core.handle_connected(slot, now_ns(self.steps)));
            }
            Some((refusal, _)) => {
                assert_eq!(refusal, Refusal::Epoch, "nothing else is refused here");
                self.drop_link((leader, follower));
                if answer.epoch > leading_epoch(&self.nodes[leader]) {
                    self.depose(leader);
                }
            }
        }
        true
    }

    /// A leader has learnt that its epoch is over.
    fn depose(&mut self, leader: usize) {
        self.drop_links(|(other, _)| other == leader);
        self.nodes[leader].turn_until(|node| node.is_quiet());
        let part = std::mem::replace(&mut self.nodes[leader].part, Part::Idle);
        if let Part::Leading(leading) = part {
            self.oracle.counts.deposed += 1;
            leading.give_up(&mut self.oracle);
        }
    }

    /// Does what a follower's core asks for.
    fn do_acts(&mut self, number: usize) {
        loop {
            let Part::Following(following) = &mut self.nodes[number].part else { return };
            let leader = following.leader;
            let Some(act) = following.core.poll_act() else { return };
            match act {
                Act::Send(message) => {
                    let link = self.links.get_mut(&(leader, number));
                    if let Some(link) = link.filter(|link| link.is_admitted) {
                        link.to_leader.push_back(message.encode());
                    }
                }
                Act::Cut { stream, from, epoch, .. } => {
                    self.nodes[number].cut(stream, from, epoch, &mut self.oracle);
                    self.with_follower(number, |core| core.handle_cut(stream, from));
                }
                Act::BeginAnew { stream, trimmed, epochs, .. } => {
                    let epoch = epochs.epoch_at(trimmed);
                    self.nodes[number].turn_until(|node| node.is_quiet());
                    self.nodes[number].begin_anew(stream, trimmed, epoch, &mut self.oracle);
                    self.with_follower(number, |core| core.handle_begun_anew(stream, trimmed));
                }
                Act::Trim { stream, before } => {
                    self.nodes[number].turn_until(|node| node.is_quiet());
                    let _ = self.nodes[number].shard().trim(stream, before);
                }
                Act::Leave(why) => panic!("node {}: {why}", self.nodes[number].id),
            }
        }
    }

    fn with_follower(
        &mut self,
        number: usize,
        tell: impl FnOnce(&mut ringwal_replication::follower::Follower),
    ) {
        if let Part::Following(following) = &mut self.nodes[number].part {
            tell(&mut following.core);
        }
    }

    fn drop_link(&mut self, link: (usize, usize)) {
        let session = self.links.remove(&link).and_then(|link| link.session);
        if let (Some(session), Part::Leading(leading)) = (session, &mut self.nodes[link.0].part) {
            leading.disconnect(slot(link.0, link.1), session, &mut self.oracle);
        }
    }

    pub fn drop_links(&mut self, which: impl Fn((usize, usize)) -> bool) {
        let links: Vec<_> = self.links.keys().copied().filter(|link| which(*link)).collect();
        links.into_iter().for_each(|link| self.drop_link(link));
    }

    /// The leader trims what is committed.
    fn trim(&mut self) {
        let (node, stream) = (self.any_node(), self.random.pick(&self.streams));
        let Node { part, shard, .. } = &mut self.nodes[node];
        let (Part::Leading(leading), Some(shard)) = (part, shard) else { return };
        let end = super::oracle::held(shard, stream).end;
        let committed = leading.committed(stream).min(end);
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

    fn crash(&mut self) {
        let node = self.any_node();
        if !self.nodes[node].is_up() {
            return;
        }
        let power = self.random.chance(600);
        let count =
            if power { &mut self.oracle.counts.power_cuts } else { &mut self.oracle.counts.kills };
        *count += 1;
        self.drop_links(|(leader, follower)| leader == node || follower == node);
        if let Part::Leading(leading) = std::mem::replace(&mut self.nodes[node].part, Part::Idle) {
            leading.give_up(&mut self.oracle);
        }
        self.nodes[node].crash(power);
    }

    fn restart(&mut self, node: usize) {
        let started = self.nodes[node].start();
        started.unwrap_or_else(|error| panic!("node {}: {error}", node + 1));
        self.oracle.check_node(self.nodes[node].shard());
    }

    /// Everything is up and connected: one leader, and all nodes come to hold the same.
    fn heal(&mut self) {
        self.hears.iter_mut().for_each(|hears| hears.fill(true));
        for node in 0..self.nodes.len() {
            if !self.nodes[node].is_up() {
                self.restart(node);
            }
        }
        let leader = self.any_node();
        assert!(self.elect(leader), "everybody hears everybody");
        for _ in 0..20 {
            let stream = self.random.pick(&self.streams);
            let Node { part, shard, .. } = &mut self.nodes[leader];
            if let (Part::Leading(leading), Some(shard)) = (part, shard) {
                leading.append(shard, stream, &mut self.random, &mut self.oracle);
            }
        }
        for _ in 0..ROUNDS_MAX {
            if self.is_at_rest(leader) {
                self.check_equal(leader);
                return self.drop_links(|_| true);
            }
            self.round(leader);
        }
        panic!("the nodes do not come to hold the same");
    }

    /// Everything goes on by a step.
    fn round(&mut self, leader: usize) {
        self.steps += 1;
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

    fn is_at_rest(&mut self, leader: usize) -> bool {
        let ends = |node: &mut Node| -> Vec<(StreamId, u64)> {
            let all = super::oracle::all_held(node.shard()).into_iter();
            all.map(|(stream, held)| (stream, held.end)).filter(|(_, end)| *end > 0).collect()
        };
        let Part::Leading(leading) = &self.nodes[leader].part else { return false };
        if !leading.is_settled() {
            return false;
        }
        let wanted = ends(&mut self.nodes[leader]);
        self.nodes.iter_mut().all(|node| ends(node) == wanted)
    }

    fn check_equal(&mut self, leader: usize) {
        self.oracle.check_leader(self.nodes[leader].shard.as_ref().expect("it is up"));
        for node in (0..self.nodes.len()).filter(|node| *node != leader) {
            let (one, other) = (&self.nodes[leader].shard, &self.nodes[node].shard);
            let (one, other) = (one.as_ref().expect("up"), other.as_ref().expect("up"));
            self.oracle.check_equal(one, other);
        }
    }
}

/// The time after so many steps.
fn now_ns(steps: u64) -> u64 {
    steps * STEP_NS
}

/// The number of a follower among those of a leader.
fn slot(leader: usize, follower: usize) -> usize {
    follower - usize::from(follower > leader)
}

/// An item, for a person.
fn describe(bytes: &[u8]) -> String {
    match Item::look(bytes, FRAME_BYTES_MAX) {
        Ok(Some(Item::Message { .. })) => format!("{:?}", Message::decode(bytes)),
        Ok(Some(Item::Frame { .. })) => {
            let (header, _) = FrameHeader::verify(bytes).expect("a frame");
            let (stream, epoch) = (header.stream.get(), header.epoch.get());
            format!("frame {stream} {epoch} {}..{}", header.base_offset.get(), header.end_offset())
        }
        _ => "a hello".into(),
    }
}

fn leading_epoch(node: &Node) -> u64 {
    match &node.part {
        Part::Leading(leading) => leading.core.epoch(),
        _ => u64::MAX,
    }
}
