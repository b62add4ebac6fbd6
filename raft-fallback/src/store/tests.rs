//! Three nodes in one process, over real sockets and real engines.

use std::collections::BTreeMap;
use std::sync::Once;
use std::time::{Duration, Instant};

use ringwal_engine::Engine;
use ringwal_replication::Ack;
use ringwal_replication::config::{Config, Member};
use ringwal_replication::node_id::{ClusterId, NodeId};
use tempfile::TempDir;

use super::*;
use crate::config::StoreConfig;

const LONG: Duration = Duration::from_secs(30);

/// Nodes that can be stopped and started again.
struct Cluster {
    folder: TempDir,
    members: Vec<Member>,
    nodes: BTreeMap<u64, MetadataStore>,
}

fn log_to_stderr() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if std::env::var_os("RINGWAL_TEST_LOG").is_some() {
            let _ = tracing_subscriber::fmt().with_writer(std::io::stderr).try_init();
        }
    });
}

impl Cluster {
    fn new(count: u64) -> Self {
        log_to_stderr();
        let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let listeners: Vec<_> = (0..count).map(|_| free()).collect();
        let members = listeners.iter().zip(1..).map(|(listener, id)| Member {
            node: NodeId::new(id),
            address: listener.local_addr().unwrap().to_string(),
        });
        let members = members.collect();
        let folder = TempDir::new().unwrap();
        let mut cluster = Self { folder, members, nodes: BTreeMap::new() };
        drop(listeners);
        (1..=count).for_each(|id| cluster.start(id));
        cluster
    }

    fn start(&mut self, id: u64) {
        let engine = Engine::options()
            .shards(1)
            .segment_bytes(4 << 20)
            .open(self.folder.path().join(id.to_string()))
            .unwrap();
        let listen = self.members[id as usize - 1].address.clone();
        let mut replication =
            Config::new(ClusterId::new([7; 16]), NodeId::new(id), self.members.clone());
        replication.listen = listen;
        let raft = Raft::start(engine, StoreConfig::new(replication)).unwrap();
        let (wal, replicator) = (MetadataWal::new(&raft), MetadataReplicator::new(&raft));
        self.nodes.insert(id, MetadataStore::new_with_wal(&raft, wal, replicator));
    }

    fn stop(&mut self, id: u64) {
        let store = self.nodes.remove(&id).expect("it runs");
        store.raft().close();
    }

    fn any(&self) -> &MetadataStore {
        self.nodes.values().next().expect("one runs")
    }

    /// The node that leads with the fast path as wanted.
    fn leader(&self, mode: impl Fn(Mode) -> bool) -> u64 {
        let until = Instant::now() + LONG;
        loop {
            let leads = |store: &MetadataStore| mode(store.status().mode);
            if let Some((id, _)) = self.nodes.iter().find(|(_, store)| leads(store)) {
                return *id;
            }
            let modes: Vec<_> = self.nodes.values().map(|store| store.status()).collect();
            assert!(Instant::now() < until, "nobody leads: {modes:#?}");
            std::thread::yield_now();
        }
    }
}

fn put(store: &MetadataStore, key: &str, ack: Ack) -> Result<Executed, ExecuteError> {
    let (key, value) = (key.as_bytes().to_vec(), b"value".to_vec());
    store.execute(Command::PutKey { key, value, expected: Expected::Any }, ack).wait()
}

/// Until every node has applied the same.
fn converge(cluster: &Cluster) -> u64 {
    let last = cluster.any().linearize(LONG).wait().unwrap();
    for store in cluster.nodes.values() {
        let mut wait = store.metadata().wait_applied(last.end - 1);
        wait.wait(Instant::now() + LONG).unwrap();
    }
    last.end
}

#[test]
fn commands_are_executed_from_every_node_and_survive_their_leader() {
    let mut cluster = Cluster::new(3);
    let leader = cluster.leader(|mode| mode == Mode::Fast);
    for (id, store) in &cluster.nodes {
        let done = put(store, &format!("from {id}"), Ack::Quorum).unwrap();
        assert_eq!((done.done, done.durable), (Done::Created, Ack::Quorum));
    }
    assert!(cluster.nodes[&leader].status().commands.fast >= 3);
    converge(&cluster);
    cluster.stop(leader);
    let done = put(cluster.any(), "after", Ack::Quorum).unwrap();
    assert_eq!(done.done, Done::Created);
    assert_ne!(cluster.leader(|mode| mode == Mode::Fast), leader);
    cluster.start(leader);
    converge(&cluster);
    for store in cluster.nodes.values() {
        let (_, keys) = store.metadata().read(|state| state.keys(b"").count());
        assert_eq!(keys, 4);
    }
}
