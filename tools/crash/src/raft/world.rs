//! One seeded run: nodes that are started, what happens to them, and the end, when everything is healed.

use std::sync::Arc;
use std::time::Duration;

use openraft::AsyncRuntime as _;
use openraft_rt_sim::SimRuntime;
use ringwal_raft_fallback::raft::config::RaftTimes;
use ringwal_raft_fallback::simulating::{Brought, METADATA_STREAM, Simulated};
use ringwal_replication::Ack;
use ringwal_replication::config::Member;
use ringwal_replication::node_id::{NodeId, RunId};

use super::clients::Client;
use super::cluster::{Cluster, SimTransport, Up};
use super::links::Links;
use super::oracle::{Counts, Oracle};
use super::place::{Disk, Place};
use super::replica::{SimJournal, SimReplica};
use super::runtime::{Run, spawn_in, take_panic, true_ns};
use crate::random::{Random, mix};
use crate::sim::trace;

/// Clocks go too fast or too slow by at most this, so that any two of them differ by less than the allowed
/// drift, which is a tenth of the longest election timeout.
const DRIFT_PPM_MAX: u64 = 45_000;
/// Within this a cluster comes to rest when nothing goes wrong any more.
const HEALED_WITHIN: Duration = Duration::from_secs(60);

/// What a run was.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct Outcome {
    pub trace: u64,
    pub counts: Counts,
}

/// See the module.
pub struct World {
    pub cluster: Arc<Cluster>,
    pub disks: Vec<Disk>,
    pub random: Random,
    members: Vec<Member>,
    runs: u64,
    pub is_fast: bool,
    entries_per_base: u64,
    /// It stays down until a majority has come to work again without it.
    pub lost: Option<usize>,
}

/// Runs a seed.
pub fn run(seed: u64) -> Outcome {
    let mut runtime = SimRuntime::with_seed(seed);
    runtime.block_on(async move {
        let mut world = World::new(seed);
        let outcome = world.play().await;
        world.end();
        outcome
    })
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random::with_purpose(seed, 0x4A);
        let count = random.pick(&[3, 3, 3, 3, 5]) as usize;
        let links = Links::new(count, Random::with_purpose(seed, 0x4B));
        let cluster = Cluster::new(count, links, Oracle::default());
        let member = |number: u64| Member {
            node: NodeId::new(number + 1),
            address: format!("node-{}:9000", number + 1),
        };
        Self {
            cluster,
            disks: (0..count as u64).map(|node| Disk::blank(seed << 8 | node)).collect(),
            members: (0..count as u64).map(member).collect(),
            is_fast: !random.chance(150),
            entries_per_base: random.pick(&[8, 40, 2000]),
            random,
            runs: 0,
            lost: None,
        }
    }

    pub fn nodes(&self) -> usize {
        self.disks.len()
    }

    pub fn tell(&self, what: impl FnOnce() -> String) {
        trace::tell(|| format!("{:>9.3} {}", true_ns() as f64 / 1e6, what()));
    }

    /// Time passes; a task that has panicked ends the run.
    pub async fn pass(&self, time: Duration) {
        SimRuntime::sleep(time).await;
        if let Some(panic) = take_panic() {
            panic!("{panic}");
        }
    }

    pub async fn pass_ms(&mut self, from: u64, to: u64) {
        let ms = self.random.within(from..=to);
        self.pass(Duration::from_millis(ms)).await;
    }

    async fn play(&mut self) -> Outcome {
        for node in 0..self.nodes() {
            self.start(node);
            self.pass_ms(0, 50).await;
        }
        let clients: Vec<_> = (0..self.nodes() as u64 + 1)
            .map(|number| {
                let random = Random::new(self.random.next());
                Client::start(self.cluster.clone(), number + 1, random)
            })
            .collect();
        self.make_trouble().await;
        if self.random.chance(500) {
            self.lose_leader().await;
        }
        self.heal().await;
        clients.iter().for_each(Client::stop);
        self.come_to_rest().await;
        self.check();
        let disks = self.disks.iter();
        let lost = self.cluster.links.lost();
        self.cluster.oracle(|oracle| {
            oracle.counts.lost_messages += lost;
            let trace = disks.fold(oracle.trace, |all, disk| mix(all ^ disk.sim.trace_hash()));
            Outcome { trace, counts: oracle.counts.clone() }
        })
    }

    /// A process begins on a node that has none.
    pub fn start(&mut self, number: usize) {
        self.runs += 1;
        let drift = self.random.within(0..=2 * DRIFT_PPM_MAX) as i64 - DRIFT_PPM_MAX as i64;
        let run = Run::new(number, drift);
        let mut run_id = [0; 16];
        run_id[..8].copy_from_slice(&self.random.next().to_le_bytes());
        run_id[8] = self.runs as u8;
        let (disk, cluster) = (self.disks[number].clone(), self.cluster.clone());
        let place = Place::open(number, RunId::new(run_id), run.clone(), disk, cluster);
        let place = place.unwrap_or_else(|error| panic!("node {number}: {error}"));
        self.tell(|| {
            let state = place.lock();
            let (end, begun) = (state.end(METADATA_STREAM), state.begun.map(|begun| begun.epoch));
            format!("node {number} starts with {end} records, begun {begun:?}, drift {drift}")
        });
        self.cluster.set(number, Some(Up { place: place.clone(), node: None }));
        drop(spawn_in(Some(run.clone()), place.clone().run()));
        let (cluster, members) = (self.cluster.clone(), self.members.clone());
        let (is_fast, entries_per_base) = (self.is_fast, self.entries_per_base);
        drop(spawn_in(Some(run), async move {
            let brought = Brought {
                times: RaftTimes::default(),
                members,
                replica: SimReplica(place.clone()),
                transport: Arc::new(SimTransport { me: number, cluster: cluster.clone() }),
                journal: SimJournal(place.clone()),
                metadata: place.metadata.clone(),
                entries_per_base,
                entries_kept: entries_per_base / 4,
                is_fast,
            };
            let node = Simulated::start(brought).await;
            let node = node.unwrap_or_else(|error| panic!("node {number}: {error}"));
            cluster.set(number, Some(Up { place, node: Some(Arc::new(node)) }));
        }));
    }

    /// The process of a node ends, or its machine loses its power. False when it is down already.
    pub fn crash(&mut self, number: usize, power: bool) -> bool {
        let Some(Up { place, node }) = self.cluster.set(number, None) else { return false };
        self.tell(|| format!("node {number} dies, power cut: {power}"));
        self.cluster.oracle(|oracle| {
            let counts = &mut oracle.counts;
            *(if power { &mut counts.power_cuts } else { &mut counts.kills }) += 1;
            oracle.trace(&[8, true_ns(), number as u64]);
        });
        if power {
            self.disks[number].sim.crash();
        } else {
            self.disks[number].sim.kill();
        }
        place.run.end();
        drop(node);
        place.abandon();
        true
    }

    pub fn restart(&mut self, number: usize) {
        if self.cluster.up(number).is_none() {
            self.start(number);
        }
    }

    /// Who leads with an epoch, as far as it knows.
    pub fn leader(&self) -> Option<usize> {
        let leads = |number: &usize| {
            let node = self.cluster.node(*number);
            node.is_some_and(|node| node.leads().is_some())
        };
        let term = |number: &usize| self.cluster.node(*number).map(|node| node.seen().0);
        (0..self.nodes()).filter(leads).max_by_key(term)
    }

    /// Nothing goes wrong any more: everything must come to work again.
    async fn heal(&mut self) {
        self.tell(|| "healing".to_owned());
        self.cluster.links.set_quality(0, 0);
        self.cluster.links.heal();
        for number in 0..self.nodes() {
            if let Some(up) = self.cluster.up(number) {
                up.place.run.go_on();
            }
            if self.lost != Some(number) {
                self.restart(number);
            }
        }
        let began_ns = true_ns();
        let mut client = Client::last(self.cluster.clone());
        while !client.execute_once(Ack::Quorum).await {
            self.pass(Duration::from_millis(20)).await;
            let waited = Duration::from_nanos(true_ns() - began_ns);
            assert!(waited < HEALED_WITHIN, "no command succeeds: {}", self.who_is_where());
        }
        if let Some(lost) = self.lost.take() {
            self.restart(lost);
        }
    }

    /// All nodes come to hold the same.
    async fn come_to_rest(&mut self) {
        let began_ns = true_ns();
        loop {
            self.pass(Duration::from_millis(50)).await;
            let rest: Vec<_> = (0..self.nodes()).map(|number| self.rest(number)).collect();
            if rest[0].is_some() && rest.iter().all(|one| *one == rest[0]) {
                return;
            }
            let waited = Duration::from_nanos(true_ns() - began_ns);
            assert!(waited < HEALED_WITHIN, "no rest: {}", self.who_is_where());
        }
    }

    /// End of the metadata stream, what is committed and applied, and the epoch, when these agree.
    fn rest(&self, number: usize) -> Option<(u64, u64)> {
        let place = self.cluster.up(number)?.place;
        let state = place.lock();
        let end = state.end(METADATA_STREAM);
        let is_at_rest = state.outcomes.len() as u64 == end
            && self.cluster.oracle(|oracle| oracle.committed_end()) == end;
        is_at_rest.then_some((end, state.begun?.epoch))
    }

    fn who_is_where(&self) -> String {
        let one = |number: usize| match self.cluster.up(number) {
            None => format!("node {number} is down"),
            Some(up) => {
                let seen = up.node.as_ref().map(|node| (node.seen(), node.leads()));
                let state = up.place.lock();
                let end = state.end(METADATA_STREAM);
                let begun = state.begun.map(|begun| begun.epoch);
                let promised = state.promised.map(|promised| promised.epoch);
                let part = match &state.part {
                    super::place::Part::Idle => "idle",
                    super::place::Part::Leading(_) => "leading",
                    super::place::Part::Following(_) => "following",
                };
                format!(
                    "node {number}: {part}, {seen:?}, end {end}, begun {begun:?}, promised {promised:?}, committed {:?}",
                    state.committed
                )
            }
        };
        (0..self.nodes()).map(one).collect::<Vec<_>>().join("; ")
    }

    fn check(&self) {
        let mut records = Vec::new();
        for number in 0..self.nodes() {
            let up = self.cluster.up(number).expect("all are up");
            let mut state = up.place.lock();
            let shard = state.shard();
            self.cluster.oracle(|oracle| oracle.check_node(number, shard));
            let read = shard.read(METADATA_STREAM, ..).expect("nothing is trimmed");
            let read = read.map(|record| record.expect("the disk is sound"));
            records = read.map(|record| (record.epoch(), record.payload().to_vec())).collect();
        }
        self.cluster.oracle(|oracle| oracle.check_acknowledged(&records));
        self.check_machines();
    }

    /// State machines that have applied the same are the same, to the byte.
    fn check_machines(&self) {
        let snapshot = |number: usize| {
            let up = self.cluster.up(number).expect("all are up");
            let (_, bytes) = up.place.metadata.read(|state| {
                let mut bytes = Vec::new();
                let written = ringwal_raft_fallback::snapshot::write(state, &mut bytes);
                written.map(|()| bytes).expect("memory has room")
            });
            bytes
        };
        let first = snapshot(0);
        for number in 1..self.nodes() {
            assert_eq!(snapshot(number), first, "state machines 0 and {number} differ");
        }
    }

    /// Everybody is gone.
    fn end(&mut self) {
        for number in 0..self.nodes() {
            if let Some(Up { place, node }) = self.cluster.set(number, None) {
                self.disks[number].sim.kill();
                place.run.end();
                drop(node);
                place.abandon();
            }
        }
        self.cluster.links.heal();
    }
}
