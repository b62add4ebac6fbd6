//! Driven nodes on loopback, and what their embedder would do.

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ringwal_engine::{Engine, StreamId, boottime_ns};
use ringwal_replication::config::{Config, Member};
use ringwal_replication::driven::{Begun, Extension, Members};
use ringwal_replication::node_id::{ClusterId, NodeId, RunId};
use ringwal_replication::promise::Promise;
use ringwal_replication::{BeginAnew, Leadership, Node};

pub const CLUSTER: ClusterId = ClusterId::new([7; 16]);
pub const STREAM: StreamId = StreamId::new(9);
pub const OTHER: StreamId = StreamId::new(11);
pub const LIMIT: Duration = Duration::from_secs(20);

pub struct Cluster {
    directories: Vec<tempfile::TempDir>,
    pub members: Vec<Member>,
}

impl Cluster {
    pub fn new(nodes: u64) -> Self {
        // All at once, so that they differ.
        let listeners: Vec<_> =
            (0..nodes).map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port")).collect();
        let member = |(node, listener): (u64, &TcpListener)| Member {
            node: NodeId::new(node),
            address: listener.local_addr().expect("bound").to_string(),
        };
        Self {
            directories: (0..nodes).map(|_| tempfile::tempdir().expect("a directory")).collect(),
            members: (1..).zip(&listeners).map(member).collect(),
        }
    }

    pub fn path(&self, node: usize) -> &Path {
        self.directories[node - 1].path()
    }

    pub fn member(&self, node: usize) -> &Member {
        &self.members[node - 1]
    }

    pub fn config(&self, node: usize) -> Config {
        let mut config = Config::new(CLUSTER, NodeId::new(node as u64), self.members.clone());
        config.listen.clone_from(&self.member(node).address);
        config
    }

    pub fn engine(&self, node: usize) -> Engine {
        let options = Engine::options().shards(1).segment_bytes(1 << 20).pool_bytes(4 << 20);
        let options = options.batch_bytes_max(128 << 10).lock_wait(LIMIT);
        options.open(self.path(node)).expect("the engine opens")
    }

    /// As if this node had led in an epoch and nobody knows what of that is committed.
    pub fn write(&self, node: usize, stream: StreamId, epoch: u64, records: u64) {
        let engine = self.engine(node);
        engine.set_epoch(epoch);
        let append = |number| engine.stream(stream).append(record(number)).expect("queued");
        for token in (0..records).map(append).collect::<Vec<_>>() {
            token.wait().expect("durable");
        }
        engine.close().expect("a sound disk");
    }

    pub fn start(&self, node: usize) -> Node {
        self.start_as(node, self.config(node))
    }

    pub fn start_as(&self, node: usize, config: Config) -> Node {
        let snapshots = Arc::new(|anew: &BeginAnew| Some(anew.trimmed));
        Node::start_driven(self.engine(node), config, snapshots).expect("the node starts")
    }

    /// These of them, and sets of those who vote.
    pub fn members_of(&self, nodes: &[usize], voters: &[&[u64]]) -> Members {
        let set = |set: &&[u64]| set.iter().copied().map(NodeId::new).collect::<BTreeSet<_>>();
        Members {
            engines: BTreeMap::new(),
            nodes: nodes.iter().map(|node| self.member(*node).clone()).collect(),
            voters: voters.iter().map(set).collect(),
        }
    }
}

/// Closes the node and its engine, as a process that ends would.
pub fn stop(node: Node) {
    let engine = node.engine().clone();
    node.close();
    engine.close().expect("a sound disk");
}

/// An epoch of a running node.
pub fn of(leader: &Node, epoch: u64) -> Promise {
    Promise { epoch, leader: leader.id(), run: leader.run() }
}

/// An epoch of somebody who is not there.
pub fn of_nobody_here(epoch: u64) -> Promise {
    Promise { epoch, leader: NodeId::new(77), run: RunId::new([3; 16]) }
}

/// Where a node's streams end.
pub fn ends(node: &Node) -> Vec<(StreamId, u64)> {
    let replicated = |stream: StreamId| !(1..=3).contains(&stream.get());
    let streams = node.engine().streams().into_iter().filter(|s| replicated(s.stream));
    streams.map(|summary| (summary.stream, summary.end)).collect()
}

/// The epoch begins at its leader, which gets a lease for as long as any test lasts.
pub fn lead(leader: &Node, epoch: u64) -> Leadership {
    match leader.begin(of(leader, epoch), ends(leader)).wait().expect("it begins") {
        Begun::Leading(leadership) => {
            leadership.lease_until(boottime_ns() + 3_600_000_000_000);
            leadership
        }
        begun => panic!("{begun:?}"),
    }
}

/// The epoch begins at somebody who is to follow. Starts are those that its leader was begun with.
pub fn follow(node: &Node, promise: Promise, starts: &[(StreamId, u64)]) {
    let begun = node.begin(promise, starts.to_vec()).wait().expect("it begins");
    assert!(matches!(begun, Begun::Following), "{begun:?}");
}

pub fn extension(epoch: u64, base: u64, numbers: std::ops::Range<u64>) -> Extension {
    let records = numbers.map(|number| Bytes::from(record(number))).collect();
    Extension { epoch, stream: STREAM, base, records, committed: 0 }
}

pub fn record(number: u64) -> Vec<u8> {
    let mut record = number.to_le_bytes().to_vec();
    record.resize(8 + (number % 700) as usize, number as u8);
    record
}

pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !done() {
        assert!(Instant::now() < deadline, "not within {LIMIT:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub fn wait_end(node: &Node, stream: StreamId, end: u64) {
    let durable = node.wait_durable(stream, end - 1, Instant::now() + LIMIT);
    assert!(durable.expect("sound"), "stream {stream} does not get to {end}");
}

/// Epoch, offset and bytes of all records.
pub fn contents(node: &Node, stream: StreamId) -> Vec<(u64, u64, Vec<u8>)> {
    let records = node.engine().stream(stream).read(..).expect("from its start");
    records
        .map(|record| record.expect("sound"))
        .map(|record| (record.epoch(), record.offset(), record.payload().to_vec()))
        .collect()
}

/// What records 0, 1, … of one epoch are.
pub fn expected(epoch: u64, records: u64) -> Vec<(u64, u64, Vec<u8>)> {
    (0..records).map(|number| (epoch, number, record(number))).collect()
}

pub fn orphans(cluster: &Cluster, node: usize) -> usize {
    std::fs::read_dir(cluster.path(node).join("orphans")).map_or(0, Iterator::count)
}
