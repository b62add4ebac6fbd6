//! The same over the port of replication: the product's transport.

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use openraft::Raft;
use openraft_rt_tokio::TokioRuntime;
use ringwal_engine::Engine;
use ringwal_raft_fallback::lease::{Lease, LeaseKeeper};
use ringwal_raft_fallback::raft::config::{RaftTimes, raft_config};
use ringwal_raft_fallback::raft::serve::{Duty, Served, Serving, Voting};
use ringwal_raft_fallback::raft::{EngineJournal, Networking, Payload, RaftLog, RaftNode};
use ringwal_replication::Node;
use ringwal_replication::config::{Config, Member};
use ringwal_replication::node_id::{ClusterId, NodeId};
use ringwal_replication::requests::{Asked, Replies};
use tokio::runtime::Handle;

use crate::cluster::{LONG, TestRaft};
use crate::machine::Machine;

struct Always;

impl Voting for Always {
    fn refuses(&self, _: Duty) -> Option<String> {
        None
    }
}

/// Hands what comes to the thread of Raft.
struct Answering {
    serving: Arc<Serving<TokioRuntime, Machine, Always>>,
    raft_thread: Handle,
}

impl Replies for Answering {
    fn handle(&self, asked: Asked) {
        let serving = self.serving.clone();
        self.raft_thread.spawn(async move {
            match serving.serve(asked.from, asked.bytes).await {
                Served::Reply(reply) => asked.reply.send(reply),
                Served::Store(_) => drop(asked.reply),
            }
        });
    }
}

struct Running {
    raft: TestRaft,
    machine: Machine,
    node: Node,
}

async fn start(directory: &std::path::Path, members: &[Member], id: u64) -> Running {
    let options = Engine::options().shards(1).segment_bytes(4 << 20).pool_bytes(8 << 20);
    let engine = options.open(directory).unwrap();
    let mut config = Config::new(ClusterId::new([3; 16]), NodeId::new(id), members.to_vec());
    config.listen.clone_from(&members[id as usize - 1].address);
    let node = Node::start(engine.clone(), config).unwrap();
    let times = RaftTimes::default();
    let began = Instant::now();
    let lease = Lease::new(id, times.voter_lease(), times.clock_drift);
    let lease = LeaseKeeper::new(lease, move || began.elapsed().as_nanos() as u64, |_, _| {});
    lease.set_voters(vec![BTreeSet::from([1, 2, 3])]);
    let transport = Arc::new(node.requests());
    let network: Networking<_, TokioRuntime> =
        Networking::new(NodeId::new(id), transport, Arc::new(lease));
    let engine_id = engine.id();
    let log = RaftLog::open(EngineJournal::new(engine).unwrap(), 1 << 20).await.unwrap();
    let config = Arc::new(raft_config("over the port", &times).unwrap());
    let machine = Machine::default();
    let raft = Raft::new(id, config, network, log, machine.clone()).await.unwrap();
    let serving = Arc::new(Serving::new(raft.clone(), engine_id, Always));
    node.reply_with(Arc::new(Answering { serving, raft_thread: Handle::current() }));
    Running { raft, machine, node }
}

#[tokio::test]
async fn three_nodes_elect_and_write_over_the_port_and_lose_their_leader() {
    let listeners: Vec<_> = (0..3).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let members: Vec<Member> = (1..)
        .zip(&listeners)
        .map(|(id, listener)| Member {
            node: NodeId::new(id),
            address: listener.local_addr().unwrap().to_string(),
        })
        .collect();
    drop(listeners);
    let directories: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let mut nodes = BTreeMap::new();
    for (id, directory) in (1..).zip(&directories) {
        nodes.insert(id, start(directory.path(), &members, id).await);
    }
    let named: BTreeMap<u64, RaftNode> = members
        .iter()
        .map(|member| {
            let engine = nodes[&member.node.get()].node.engine().id();
            (member.node.get(), RaftNode::new(&member.address, engine))
        })
        .collect();
    nodes[&1].raft.initialize(named).await.unwrap();
    nodes[&1].raft.wait(LONG).current_leader(1, "it has begun").await.unwrap();
    let write = |raft: TestRaft, length: usize| async move {
        let deadline = Instant::now() + LONG.unwrap();
        loop {
            let records = vec![Bytes::from(vec![7; length])];
            match raft
                .client_write(Payload::Extend { epoch: 1, base: 0, continues: false, records })
                .await
            {
                Ok(written) => return written.log_id.index,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            tokio::task::yield_now().await;
        }
    };
    let mut expected = Vec::new();
    let mut index = 0;
    for length in [1, 100_000, 900_000, 10] {
        index = write(nodes[&1].raft.clone(), length).await;
        expected.push((7, length as u32));
    }
    for node in nodes.values() {
        node.raft.wait(LONG).applied_index_at_least(Some(index), "there").await.unwrap();
    }

    let first = nodes.remove(&1).unwrap();
    first.raft.shutdown().await.unwrap();
    first.node.close();
    nodes.values().for_each(|node| node.raft.runtime_config().elect(true));
    let left = nodes[&2].raft.wait(LONG);
    let left = left.metrics(|seen| seen.current_leader.is_some_and(|id| id != 1), "another one");
    let leader = left.await.unwrap().current_leader.unwrap();
    index = write(nodes[&leader].raft.clone(), 5).await;
    expected.push((7, 5));
    for node in nodes.values() {
        node.raft.wait(LONG).applied_index_at_least(Some(index), "there").await.unwrap();
        assert_eq!(node.machine.records(), expected);
    }
}
