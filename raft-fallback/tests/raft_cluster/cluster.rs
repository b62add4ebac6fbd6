//! Three nodes in one process: real engines, and requests that are handed over in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::{Config, Raft, RaftMetrics, SnapshotPolicy};
use openraft_rt_tokio::TokioRuntime;
use ringwal_engine::Engine;
use ringwal_raft_fallback::lease::{Lease, LeaseKeeper};
use ringwal_raft_fallback::raft::config::{RaftTimes, raft_config};
use ringwal_raft_fallback::raft::rpc::{Ask, Request};
use ringwal_raft_fallback::raft::serve::{Duty, Served, Serving, Voting};
use ringwal_raft_fallback::raft::{
    EngineJournal, Networking, Payload, RaftLog, RaftNode, Transport, Types,
};
use ringwal_replication::config::Member;
use ringwal_replication::node_id::NodeId;
use ringwal_replication::requests::RequestError;

use crate::machine::Machine;

pub type TestRaft = Raft<Types, Machine>;
type TestServing = Serving<TokioRuntime, Machine, Policy>;

/// For whatever is waited for: far more than it takes.
pub const LONG: Option<Duration> = Some(Duration::from_secs(30));

/// A voter that keeps quiet for one lease after its start.
pub struct Policy {
    started: Instant,
    lease: Duration,
}

impl Voting for Policy {
    fn refuses(&self, duty: Duty) -> Option<String> {
        let is_early = self.started.elapsed() < self.lease;
        let waits = matches!(duty, Duty::Vote | Duty::Transfer);
        (is_early && waits).then(|| "it has just started".to_owned())
    }
}

/// What was sent, by whom to whom, whether or not it arrived.
#[derive(Clone)]
pub struct Sent {
    pub from: u64,
    pub to: u64,
    pub ask: Ask,
    pub bytes: usize,
}

#[derive(Default)]
struct Links {
    nodes: BTreeMap<u64, Arc<TestServing>>,
    /// From whom to whom nothing comes, be it a request or a reply.
    cut: BTreeSet<(u64, u64)>,
    sent: Vec<Sent>,
}

#[derive(Clone, Default)]
pub struct Hub(Arc<Mutex<Links>>);

impl Hub {
    fn lock(&self) -> MutexGuard<'_, Links> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing comes from one node to the other any more.
    pub fn cut(&self, from: u64, to: u64) {
        self.lock().cut.insert((from, to));
    }

    /// A node is alone.
    pub fn isolate(&self, node: u64) {
        (1..=3).filter(|other| *other != node).for_each(|other| {
            self.cut(node, other);
            self.cut(other, node);
        });
    }

    pub fn heal(&self) {
        self.lock().cut.clear();
    }

    pub fn sent(&self) -> Vec<Sent> {
        self.lock().sent.clone()
    }

    pub fn count(&self, which: impl Fn(&Sent) -> bool) -> usize {
        self.lock().sent.iter().filter(|sent| which(sent)).count()
    }

    /// What a node replies to bytes, as if they came from another one.
    pub async fn serve(&self, from: u64, to: u64, bytes: Vec<u8>) -> Served {
        let serving = self.lock().nodes[&to].clone();
        serving.serve(NodeId::new(from), bytes.into()).await
    }
}

/// One node's way to the others.
pub struct Way {
    from: u64,
    hub: Hub,
}

impl Transport for Way {
    async fn ask(&self, to: &Member, bytes: Bytes, limit: Duration) -> Result<Bytes, RequestError> {
        let (from, node) = (self.from, to.node);
        let Request { ask, .. } = Request::decode(bytes.clone()).expect("what is sent is sound");
        let serving = {
            let mut links = self.hub.lock();
            let sent = Sent { from, to: node.get(), ask, bytes: bytes.len() };
            links.sent.push(sent);
            let is_cut = links.cut.contains(&(from, node.get()));
            links.nodes.get(&node.get()).filter(|_| !is_cut).cloned()
        };
        let Some(serving) = serving else {
            return Err(RequestError::NotReached { node, why: "nobody listens".to_owned() });
        };
        let served = tokio::time::timeout(limit, async {
            let served = serving.serve(NodeId::new(from), bytes).await;
            if self.hub.lock().cut.contains(&(node.get(), from)) {
                std::future::pending::<()>().await;
            }
            served
        });
        match served.await {
            Ok(Served::Reply(reply)) => Ok(reply),
            Ok(Served::Store(_)) => Err(RequestError::NoReply { node }),
            Err(_) => Err(RequestError::Late { node, limit, is_sent: true }),
        }
    }
}

pub struct Node {
    pub raft: TestRaft,
    pub machine: Machine,
    pub lease: Arc<LeaseKeeper>,
    pub engine: [u8; 16],
}

pub struct Cluster {
    pub hub: Hub,
    pub times: RaftTimes,
    pub nodes: BTreeMap<u64, Node>,
    directories: BTreeMap<u64, tempfile::TempDir>,
    began: Instant,
}

impl Cluster {
    /// Three nodes with blank disks, of which one is told to begin.
    pub async fn new() -> Self {
        let directories = (1..=3).map(|id| (id, tempfile::tempdir().unwrap())).collect();
        let (hub, times, nodes) = (Hub::default(), RaftTimes::default(), BTreeMap::new());
        let mut cluster = Self { hub, times, nodes, directories, began: Instant::now() };
        for id in 1..=3 {
            cluster.start(id).await;
        }
        let members: BTreeMap<u64, RaftNode> = cluster
            .nodes
            .iter()
            .map(|(id, node)| (*id, RaftNode::new(format!("memory:{id}"), node.engine)))
            .collect();
        cluster.nodes[&1].raft.initialize(members).await.unwrap();
        cluster
    }

    pub async fn start(&mut self, id: u64) {
        let options = Engine::options().shards(1).segment_bytes(256 << 10).pool_bytes(1 << 20);
        let engine = options.open(self.directories[&id].path()).unwrap();
        let engine_id = engine.id();
        let log = RaftLog::open(EngineJournal::new(engine).unwrap(), 1 << 20).await.unwrap();
        let lease = Lease::new(id, self.times.voter_lease(), self.times.clock_drift);
        let began = self.began;
        let lease =
            LeaseKeeper::new(lease, move || began.elapsed().as_nanos() as u64, |_term, _until| {});
        lease.set_voters(vec![BTreeSet::from([1, 2, 3])]);
        let lease = Arc::new(lease);
        let way = Arc::new(Way { from: id, hub: self.hub.clone() });
        let network: Networking<Way, TokioRuntime> =
            Networking::new(NodeId::new(id), way, lease.clone());
        let config = Config {
            snapshot_policy: SnapshotPolicy::Never,
            max_in_snapshot_log_to_keep: 0,
            ..raft_config("three nodes", &self.times).unwrap()
        };
        let machine = Machine::default();
        let raft = Raft::new(id, Arc::new(config), network, log, machine.clone()).await.unwrap();
        let policy = Policy { started: Instant::now(), lease: self.times.voter_lease() };
        // The rule of the product: no campaign before one lease is over.
        let (elects, after) = (raft.clone(), self.times.voter_lease());
        tokio::spawn(async move {
            tokio::time::sleep(after).await;
            elects.runtime_config().elect(true);
        });
        let serving = Arc::new(Serving::new(raft.clone(), engine_id, policy));
        self.hub.lock().nodes.insert(id, serving);
        self.nodes.insert(id, Node { raft, machine, lease, engine: engine_id });
    }

    /// It answers nobody any more and ends.
    pub async fn stop(&mut self, id: u64) {
        let serving = self.hub.lock().nodes.remove(&id);
        let node = self.nodes.remove(&id).unwrap();
        node.raft.shutdown().await.unwrap();
        drop((serving, node));
    }

    /// It has lost its disk.
    pub fn lose_disk(&mut self, id: u64) {
        self.directories.insert(id, tempfile::tempdir().unwrap());
    }

    pub fn raft(&self, id: u64) -> &TestRaft {
        &self.nodes[&id].raft
    }

    pub fn seen(&self, id: u64) -> RaftMetrics<Types> {
        self.raft(id).metrics().borrow_watched().clone()
    }

    /// Who leads, as soon as node `of` knows of one of `among`.
    pub async fn leader_of(&self, of: u64, among: &[u64]) -> u64 {
        let among = among.to_vec();
        let is_there = move |leader: Option<u64>| leader.is_some_and(|id| among.contains(&id));
        let metrics = self.raft(of).wait(LONG);
        let metrics = metrics.metrics(move |seen| is_there(seen.current_leader), "a leader").await;
        metrics.unwrap().current_leader.unwrap()
    }

    /// Writes through whoever leads, as often as it takes: while a leader has no lease it refuses.
    pub async fn write(&self, through: u64, record: Vec<u8>) -> u64 {
        let deadline = Instant::now() + LONG.unwrap();
        loop {
            let records = vec![Bytes::from(record.clone())];
            let payload = Payload::Extend { epoch: 1, base: 0, continues: false, records };
            match self.raft(through).client_write(payload).await {
                Ok(written) => return written.log_id.index,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            // Its lease comes with the next heartbeat's answer, of which nobody is told.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Until a node has applied an entry.
    pub async fn applied(&self, id: u64, index: u64) {
        let wait = self.raft(id).wait(LONG);
        wait.applied_index_at_least(Some(index), "applied").await.unwrap();
    }

    pub fn lease_is_valid(&self, id: u64) -> bool {
        let now = self.began.elapsed().as_nanos() as u64;
        self.nodes[&id].lease.valid_until().1.is_some_and(|until| now < until)
    }
}
