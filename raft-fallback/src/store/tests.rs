//! Three nodes in one process, over real sockets and real engines.

mod hazards;
mod network;

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ringwal_engine::Engine;
use ringwal_replication::Ack;
use ringwal_replication::config::{Config, Member};
use ringwal_replication::node_id::{ClusterId, NodeId};
use tempfile::TempDir;

use self::network::Network;
use super::stats::Reason;
use super::*;
use crate::config::StoreConfig;

const LONG: Duration = Duration::from_secs(30);

/// Nodes that can be stopped and started again.
struct Cluster {
    folder: TempDir,
    members: Vec<Member>,
    nodes: BTreeMap<u64, MetadataStore>,
    /// By node: whether its device fails.
    failing: BTreeMap<u64, Arc<AtomicBool>>,
    /// Between the nodes, and where they listen behind it.
    network: Option<(Network, Vec<String>)>,
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
        let mut cluster = Self {
            folder,
            members,
            nodes: BTreeMap::new(),
            failing: BTreeMap::new(),
            network: None,
        };
        drop(listeners);
        (1..=count).for_each(|id| cluster.start(id));
        cluster
    }

    /// With a network in between.
    fn networked(count: u64) -> Self {
        log_to_stderr();
        let (folder, members) = (TempDir::new().unwrap(), Vec::new());
        let network = Some((Network::new(), Vec::new()));
        let (nodes, failing) = (BTreeMap::new(), BTreeMap::new());
        let mut cluster = Self { folder, members, nodes, failing, network };
        (1..=count).for_each(|id| cluster.add_networked(id));
        (1..=count).for_each(|id| cluster.start(id));
        cluster
    }

    /// One more, which does not run yet.
    fn add_networked(&mut self, id: u64) {
        let free = || TcpListener::bind("127.0.0.1:0").unwrap();
        let (before, behind) = (free(), free());
        let address = |listener: &TcpListener| listener.local_addr().unwrap().to_string();
        self.members.push(Member { node: NodeId::new(id), address: address(&before) });
        let (network, listens) = self.network.as_mut().expect("there is a network");
        listens.push(address(&behind));
        network.forward(before, id, address(&behind));
    }

    fn network(&self) -> &Network {
        &self.network.as_ref().expect("there is a network").0
    }

    fn start(&mut self, id: u64) {
        self.start_as(id, false);
    }

    /// A node that waits to be added.
    fn start_joining(&mut self, id: u64) {
        self.start_as(id, true);
    }

    fn engine(&mut self, id: u64) -> Engine {
        let fails: Arc<AtomicBool> = Arc::default();
        self.failing.insert(id, fails.clone());
        let options = Engine::options().shards(1).segment_bytes(4 << 20).fails(fails);
        options.open(self.folder.path().join(id.to_string())).unwrap()
    }

    fn start_as(&mut self, id: u64, join: bool) {
        let engine = self.engine(id);
        let listen = match &self.network {
            Some((_, listens)) => listens[id as usize - 1].clone(),
            None => self.members[id as usize - 1].address.clone(),
        };
        let mut replication =
            Config::new(ClusterId::new([7; 16]), NodeId::new(id), self.members.clone());
        replication.listen = listen;
        let mut config = StoreConfig::new(replication);
        config.raft.join = join;
        let raft = Raft::start(engine, config).unwrap();
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
        let Some(last) = last.end.checked_sub(1) else { break };
        store.metadata().wait_applied(last).wait(Instant::now() + LONG).unwrap();
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
    for (id, store) in &cluster.nodes {
        let latencies = store.status().latencies;
        let (fast, fallback) = (latencies.other_fast.count(), latencies.other_fallback.count());
        assert_eq!((fast, fallback), if *id == leader { (1, 0) } else { (0, 1) }, "node {id}");
        assert!(latencies.apply.count() > 0 && latencies.create_fast.count() == 0);
    }
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

/// Keys that were put in a row.
fn put_many(store: &MetadataStore, what: &str, count: u32) {
    let puts: Vec<_> = (0..count)
        .map(|number| {
            let (key, value) = (format!("{what} {number}").into_bytes(), vec![7; 100]);
            store.execute(Command::PutKey { key, value, expected: Expected::Any }, Ack::Local)
        })
        .collect();
    for put in puts {
        put.wait().unwrap();
    }
}

fn keys(store: &MetadataStore) -> usize {
    store.metadata().read(|state| state.keys(b"").count()).1
}

#[test]
fn the_fast_path_is_switched_off_and_on_under_load_and_the_order_stays() {
    let cluster = Cluster::new(3);
    let leader = cluster.leader(|mode| mode == Mode::Fast);
    let store = cluster.nodes[&leader].clone();
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let store = store.clone();
            scope.spawn(move || put_many(&store, &format!("writer {writer}"), 150));
        }
        for is_on in [false, true, false, true] {
            store.set_fast_path(is_on);
            let expected = if is_on { Mode::Fast } else { Mode::Raft(Reason::SwitchedOff) };
            cluster.leader(|mode| mode == expected);
            let done = put(&store, &format!("after {is_on}"), Ack::Quorum).unwrap();
            assert_eq!(done.durable, Ack::Quorum);
        }
    });
    converge(&cluster);
    let commands = store.status().commands;
    assert!(commands.raft > 0 && commands.fast > 0, "{commands:?}");
    for store in cluster.nodes.values() {
        assert_eq!(keys(store), 4 * 150 + 2);
    }
}

#[test]
fn a_store_without_the_log_goes_through_raft() {
    let mut cluster = Cluster::new(1);
    let store = MetadataStore::new(&cluster.any().raft());
    let done = put(&store, "alone", Ack::Local).unwrap();
    assert_eq!((done.done, done.durable), (Done::Created, Ack::Quorum), "through Raft");
    cluster.leader(|mode| mode == Mode::Raft(Reason::SingleNode));
    put_many(&store, "more", 20);
    drop(store);
    cluster.stop(1);
    cluster.start(1);
    assert_eq!(put(cluster.any(), "again", Ack::Local).unwrap().done, Done::Created);
    assert_eq!(keys(cluster.any()), 22);
}

#[test]
fn leadership_is_given_away_with_commands_in_flight() {
    let cluster = Cluster::new(3);
    let leader = cluster.leader(|mode| mode == Mode::Fast);
    let to = leader % 3 + 1;
    let store = cluster.nodes[&leader].clone();
    std::thread::scope(|scope| {
        let writer = store.clone();
        scope.spawn(move || put_many(&writer, "in flight", 300));
        match store.transfer_leader(Some(NodeId::new(to)), LONG).wait() {
            Ok(()) | Err(ChangeError::OtherElected { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    });
    cluster.leader(|mode| mode == Mode::Fast);
    converge(&cluster);
    cluster.nodes.values().for_each(|store| assert_eq!(keys(store), 300));
    assert_eq!(store.status().mode, Mode::Forwarding);
}

#[test]
fn a_node_is_added_and_votes_and_one_is_taken_out() {
    let mut cluster = Cluster::new(3);
    cluster.leader(|mode| mode == Mode::Fast);
    put_many(cluster.any(), "before", 50);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (node, address) = (NodeId::new(4), listener.local_addr().unwrap().to_string());
    drop(listener);
    let member = Member { node, address };
    cluster.members.push(member.clone());
    cluster.start_joining(4);
    let change = |cluster: &Cluster, change: MemberChange| {
        let until = Instant::now() + LONG;
        loop {
            let leader = cluster.leader(|mode| matches!(mode, Mode::Fast | Mode::Raft(_)));
            match cluster.nodes[&leader].change_members(change.clone()).wait() {
                Ok(()) => return,
                Err(error) => assert!(Instant::now() < until, "{error}"),
            }
        }
    };
    change(&cluster, MemberChange::AddLearner(member));
    let voters = (1..=4).map(NodeId::new).collect();
    change(&cluster, MemberChange::SetVoters(voters));
    converge(&cluster);
    assert_eq!(keys(&cluster.nodes[&4]), 50);
    let leader = cluster.leader(|mode| matches!(mode, Mode::Fast | Mode::Raft(_)));
    let gone = leader % 3 + 1;
    change(&cluster, MemberChange::Remove(NodeId::new(gone)));
    cluster.stop(gone);
    put_many(&cluster.nodes[&4], "after", 50);
    converge(&cluster);
    assert_eq!(keys(&cluster.nodes[&4]), 100);
    let members = cluster.nodes[&leader].status().members;
    assert!(members.iter().all(|member| member.is_voter && member.node.get() != gone));
    assert_eq!(members.len(), 3);
}

/// Its log and its records are gone from the others: it begins with a base, and with a snapshot.
#[test]
fn a_node_that_is_far_behind_begins_with_what_the_others_have_left() {
    let mut cluster = Cluster::new(3);
    let leader = cluster.leader(|mode| mode == Mode::Fast);
    let behind = leader % 3 + 1;
    put_many(cluster.any(), "before", 20);
    converge(&cluster);
    cluster.stop(behind);
    let store = cluster.nodes[&leader].clone();
    store.set_fast_path(false);
    cluster.leader(|mode| mode == Mode::Raft(Reason::SwitchedOff));
    // Each one is an entry of its own.
    for number in 0..40 {
        put(&store, &format!("through Raft {number}"), Ack::Local).unwrap();
    }
    let raft = store.raft();
    crate::blocking::block_on(raft.inner.started.raft.trigger().snapshot()).unwrap();
    let until = Instant::now() + LONG;
    let log = |store: &MetadataStore| {
        let engine = store.raft().inner.node.engine().clone();
        engine.stream(crate::raft::LOG_STREAM).trimmed()
    };
    crate::blocking::block_on(async {
        let metrics = raft.inner.started.raft.data_metrics();
        loop {
            use openraft::async_runtime::WatchReceiver as _;
            let upto = metrics.borrow_watched().snapshot.map(|snapshot| snapshot.index);
            if let Some(upto) = upto {
                raft.inner.started.raft.trigger().purge_log(upto).await.unwrap();
                break;
            }
            assert!(Instant::now() < until, "no base is made");
            std::thread::yield_now();
        }
    });
    while log(&store) == 0 {
        assert!(Instant::now() < until, "the log is not purged");
        std::thread::yield_now();
    }
    cluster.start(behind);
    let until = Instant::now() + LONG;
    converge(&cluster);
    assert_eq!(keys(&cluster.nodes[&behind]), 60);
    while log(&cluster.nodes[&behind]) == 0 {
        assert!(Instant::now() < until, "it did not begin with a base");
        std::thread::yield_now();
    }
    cluster.stop(behind);
    cluster.start(behind);
    put(&cluster.nodes[&behind], "after", Ack::Quorum).unwrap();
    converge(&cluster);
    assert_eq!(keys(&cluster.nodes[&behind]), 61);
}

#[test]
fn partitions_are_appended_to_by_the_leader_alone() {
    let cluster = Cluster::new(3);
    let leader = cluster.leader(|mode| mode == Mode::Fast);
    let (follower, store) = (leader % 3 + 1, cluster.nodes[&leader].clone());
    store.register_broker(BrokerId::new(1), vec!["one.example:9092".to_owned()]).wait().unwrap();
    let name = TopicName::new("orders").unwrap();
    let created = store.create_topic(name.clone(), 2, 1, BTreeMap::new()).wait().unwrap();
    let Done::TopicCreated { topic } = created.done else { panic!("{created:?}") };
    assert!(cluster.nodes[&follower].partitions().is_none());
    let partitions = store.partitions().unwrap();
    assert_eq!(partitions.epoch(), created.epoch);
    let pending = partitions.append(topic, 1, b"one", Ack::Quorum).unwrap();
    assert_eq!(pending.wait().unwrap().receipt.offset(), 0);
    assert_eq!(partitions.committed_end(topic, 1), 1);
    let mut known = cluster.nodes[&follower].metadata().wait_for_topic(name);
    assert_eq!(known.wait(Instant::now() + LONG).unwrap(), topic);
    let raft = cluster.nodes[&follower].raft();
    let record = raft.node().subscribe(topic.stream(1), 0).next_blocking().unwrap();
    assert_eq!(record.payload(), b"one");
    store.transfer_leader(None, LONG).wait().unwrap();
    cluster.leader(|mode| mode == Mode::Fast);
    let refused = partitions.append(topic, 1, b"two", Ack::Local).unwrap_err();
    assert!(matches!(refused, ProduceError::Led(_)), "{refused}");
    assert!(partitions.ended().is_some() && store.partitions().is_none());
}

#[test]
fn a_transfer_to_nobody_leaves_the_fast_path_as_it_is() {
    let cluster = Cluster::new(3);
    let leader = cluster.leader(|mode| mode == Mode::Fast);
    let store = cluster.nodes[&leader].clone();
    let refused = store.transfer_leader(Some(NodeId::new(9)), LONG).wait().unwrap_err();
    assert!(matches!(refused, ChangeError::NotNow(_)), "{refused}");
    cluster.leader(|mode| mode == Mode::Fast);
    let fast = store.status().commands.fast;
    put(&store, "after", Ack::Local).unwrap();
    assert_eq!(store.status().commands.fast, fast + 1);
}

#[test]
fn one_node_goes_on_alone_when_an_operator_gives_up_the_others() {
    let mut cluster = Cluster::new(3);
    let leader = cluster.leader(|mode| mode == Mode::Fast);
    put_many(cluster.any(), "before", 20);
    converge(&cluster);
    let left = leader % 3 + 1;
    (1..=3).for_each(|id| cluster.stop(id));
    let member = cluster.members[left as usize - 1].clone();
    let engine = cluster.engine(left);
    let given_up = crate::give_up_majority(&engine, &member).unwrap();
    assert_eq!((given_up.members.len(), given_up.metadata_end >= 20), (3, true));
    let again = crate::give_up_majority(&engine, &member);
    assert!(matches!(again, Err(crate::MajorityError::Alone(_))), "{again:?}");
    engine.close().unwrap();
    cluster.start(left);
    cluster.leader(|mode| mode == Mode::Raft(Reason::SingleNode));
    assert_eq!(put(cluster.any(), "after", Ack::Quorum).unwrap().done, Done::Created);
    assert_eq!(keys(cluster.any()), 21);
    assert_eq!(cluster.any().status().members.len(), 1);
}
