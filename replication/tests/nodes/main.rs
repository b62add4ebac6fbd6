//! Whole nodes in one process, over loopback: real engines, threads and connections.

mod many;
mod names;

use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

use ringwal_engine::{Engine, StreamId};
use ringwal_replication::config::{Config, Member};
use ringwal_replication::node_id::{ClusterId, NodeId};
use ringwal_replication::stats::Role;
use ringwal_replication::{Ack, LeadError, LedAppendError, LedCommitError, Node};

const CLUSTER: ClusterId = ClusterId::new([7; 16]);
const STREAM: StreamId = StreamId::new(9);
const LIMIT: Duration = Duration::from_secs(20);

/// Directories and addresses of some nodes.
struct Cluster {
    directories: Vec<tempfile::TempDir>,
    addresses: Vec<String>,
}

impl Cluster {
    fn new(nodes: usize) -> Self {
        Self::on(nodes, "127.0.0.1").expect("free ports")
    }

    /// On free ports of a host.
    fn on(nodes: usize, host: &str) -> std::io::Result<Self> {
        let free = |_| TcpListener::bind(format!("{host}:0"));
        // All at once, so that they differ.
        let listeners = (0..nodes).map(free).collect::<Result<Vec<_>, _>>()?;
        let address = |listener: &TcpListener| {
            format!("{host}:{}", listener.local_addr().expect("bound").port())
        };
        Ok(Self {
            directories: (0..nodes).map(|_| tempfile::tempdir().expect("a directory")).collect(),
            addresses: listeners.iter().map(address).collect(),
        })
    }

    fn path(&self, node: usize) -> &Path {
        self.directories[node - 1].path()
    }

    fn config(&self, node: usize) -> Config {
        let members = (1..)
            .zip(&self.addresses)
            .map(|(node, address)| Member { node: NodeId::new(node), address: address.clone() });
        let mut config = Config::new(CLUSTER, NodeId::new(node as u64), members.collect());
        config.listen = self.addresses[node - 1].clone();
        config
    }

    fn engine(&self, node: usize) -> Engine {
        self.engine_of(node, 1 << 20)
    }

    fn engine_of(&self, node: usize, segment_bytes: u64) -> Engine {
        let options = Engine::options().shards(1).pool_bytes(4 << 20);
        let options = options.segment_bytes(segment_bytes);
        let options = options.batch_bytes_max(128 << 10).lock_wait(LIMIT);
        options.open(self.path(node)).expect("the engine opens")
    }

    fn start(&self, node: usize) -> Node {
        Node::start(self.engine(node), self.config(node)).expect("the node starts")
    }
}

/// Closes the node and its engine, as a process that ends would.
fn stop(node: Node) {
    let engine = node.engine().clone();
    node.close();
    engine.close().expect("a sound disk");
}

fn record(number: u64) -> Vec<u8> {
    let mut record = number.to_le_bytes().to_vec();
    record.resize(8 + (number % 700) as usize, number as u8);
    record
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !done() {
        assert!(Instant::now() < deadline, "not within {LIMIT:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn wait_end(node: &Node, stream: StreamId, end: u64) {
    if end > 0 {
        let durable = node.wait_durable(stream, end - 1, Instant::now() + LIMIT);
        assert!(durable.expect("sound"), "stream {stream} does not get to {end}");
    }
}

fn contents(node: &Node, stream: StreamId) -> Vec<(u64, u64, Vec<u8>)> {
    let records = node.engine().stream(stream).read(..).expect("from its start");
    records
        .map(|record| record.expect("sound"))
        .map(|record| (record.epoch(), record.offset(), record.payload().to_vec()))
        .collect()
}

#[test]
fn what_a_leader_appends_is_on_every_follower() {
    let cluster = Cluster::new(3);
    let nodes = [1, 2, 3].map(|node| cluster.start(node));
    let leadership = nodes[0].lead(1).expect("a new epoch");
    let streams = [STREAM, StreamId::new(0), StreamId::new(40)];
    let mut pending = Vec::new();
    for number in 0..3000 {
        let stream = streams[(number % 3) as usize];
        let ack = if number % 2 == 0 { Ack::Local } else { Ack::Quorum };
        pending.push((number, leadership.append(stream, record(number), ack).expect("it leads")));
    }
    for (number, pending) in pending {
        let acknowledged = pending.wait().expect("a receipt");
        assert_eq!(acknowledged.receipt.epoch(), 1);
        assert_eq!(acknowledged.receipt.offset(), number / 3);
    }
    for stream in streams {
        let expected = contents(&nodes[0], stream);
        assert_eq!(expected.len(), 1000);
        for follower in &nodes[1..] {
            wait_end(follower, stream, 1000);
            assert!(contents(follower, stream) == expected, "stream {stream} differs");
        }
    }
    wait_until("followers are shown as connected and in step", || {
        let stats = nodes[0].stats();
        stats.followers.len() == 2
            && stats.followers.iter().all(|f| f.is_connected && f.lag_records == 0 && f.frames > 0)
    });
    assert_eq!(nodes[0].stats().role, Role::Leading { epoch: 1 });
    nodes.into_iter().for_each(stop);
}

#[test]
fn a_quorum_needs_a_majority_and_local_needs_nobody() {
    let cluster = Cluster::new(3);
    let leader = cluster.start(1);
    let leadership = leader.lead(1).expect("a new epoch");
    let local = leadership.append(STREAM, record(0), Ack::Local).expect("it leads");
    assert_eq!(local.wait().expect("nobody is needed").durable, Ack::Local);
    let mut quorum = leadership.append(STREAM, record(1), Ack::Quorum).expect("it leads");
    let late = quorum.wait_timeout(Duration::from_millis(300));
    assert!(
        matches!(late, Err(LedCommitError::Late { is_durable_here: true, .. })),
        "nobody else has it: {late:?}"
    );
    let follower = cluster.start(3);
    let acknowledged = quorum.wait().expect("one follower makes a majority");
    assert_eq!((acknowledged.receipt.offset(), acknowledged.durable), (1, Ack::Quorum));
    wait_end(&follower, STREAM, 2);
    stop(leader);
    stop(follower);
}

#[test]
fn a_follower_that_was_away_catches_up_from_segments_while_the_leader_goes_on() {
    let cluster = Cluster::new(2);
    let leader = cluster.start(1);
    let leadership = leader.lead(1).expect("a new epoch");
    let mut number = 0;
    let mut append = |count: u64| {
        let tokens: Vec<_> = (number..number + count)
            .map(|n| leadership.append(STREAM, record(n), Ack::Local).expect("it leads"))
            .collect();
        number += count;
        for token in tokens {
            token.wait().expect("a receipt");
        }
        number
    };
    for _ in 0..3 {
        let follower = cluster.start(2);
        append(2000);
        stop(follower);
        append(6000);
        let follower = cluster.start(2);
        let end = append(3000);
        wait_end(&follower, STREAM, end);
        assert!(contents(&follower, STREAM) == contents(&leader, STREAM));
        stop(follower);
    }
    assert!(leader.stats().followers[0].bytes_resent > 0);
    stop(leader);
}

#[test]
fn an_epoch_belongs_to_one_run() {
    let cluster = Cluster::new(1);
    let node = cluster.start(1);
    assert!(matches!(node.lead(0), Err(LeadError::NoEpoch(0))));
    let leadership = node.lead(3).expect("a new epoch");
    leadership.append(STREAM, record(0), Ack::Quorum).expect("it leads").wait().expect("alone");
    assert!(matches!(node.lead(3), Err(LeadError::EpochUsed { promised: 3, .. })));
    stop(node);
    let node = cluster.start(1);
    let refused = node.lead(3).expect_err("another run");
    assert!(refused.to_string().contains("use 4"), "{refused}");
    let own = node.engine().stream(STREAM).append(record(1)).expect("queued").wait();
    assert!(own.is_err(), "nobody leads: {own:?}");
    let leadership = node.lead(4).expect("a greater one");
    let own = leadership.append(StreamId::new(3), record(1), Ack::Local);
    assert!(matches!(own, Err(LedAppendError::OwnStream(_))));
    stop(node);
}

#[test]
fn a_leader_that_was_cut_off_loses_what_nobody_had_and_keeps_it_as_an_orphan() {
    let cluster = Cluster::new(3);
    let [first, second, third] = [1, 2, 3].map(|node| cluster.start(node));
    let old = first.lead(1).expect("a new epoch");
    for number in 0..100 {
        let pending = old.append(STREAM, record(number), Ack::Quorum).expect("it leads");
        pending.wait().expect("a majority");
    }
    wait_end(&second, STREAM, 100);
    wait_end(&third, STREAM, 100);
    // It goes on alone, and knows nothing of its successor.
    stop(second);
    stop(third);
    for number in 100..130 {
        let pending = old.append(STREAM, record(number), Ack::Local).expect("it leads");
        pending.wait().expect("nobody is needed");
    }
    let mut hanging = old.append(STREAM, record(130), Ack::Quorum).expect("it leads");
    assert!(hanging.wait_timeout(Duration::from_millis(100)).is_err());
    let [second, third] = [2, 3].map(|node| cluster.start(node));
    let new = second.lead(2).expect("a later epoch");
    // Whoever dials, the greater epoch wins.
    let ended = hanging.wait();
    assert!(matches!(ended, Err(LedCommitError::Unknown { epoch: 1, .. })), "{ended:?}");
    assert!(old.ended().is_some());
    let refused = old.append(STREAM, record(131), Ack::Local);
    assert!(matches!(refused, Err(LedAppendError::NotLeading { epoch: 1, .. })));
    let end = second.engine().stream(STREAM).end();
    for number in 1000..1050 {
        let pending = new.append(STREAM, record(number), Ack::Quorum).expect("it leads");
        pending.wait().expect("a majority");
    }
    for node in [&first, &third] {
        wait_end(node, STREAM, end + 50);
        wait_until("the same histories", || contents(node, STREAM) == contents(&second, STREAM));
    }
    let acknowledged = contents(&first, STREAM);
    assert!((0..100).all(|n| acknowledged[n as usize].2 == record(n)), "a quorum is never lost");
    let orphans: Vec<_> = std::fs::read_dir(cluster.path(1).join("orphans"))
        .map(|entries| entries.flatten().collect())
        .unwrap_or_default();
    assert_eq!(orphans.is_empty(), end > 130, "what was cut is kept: {orphans:?}, end {end}");
    for node in [first, second, third] {
        stop(node);
    }
}

#[test]
fn a_leader_keeps_what_a_connected_follower_lacks_and_trims_with_it() {
    let cluster = Cluster::new(3);
    let [leader, second, follower] = [1, 2, 3].map(|node| cluster.start(node));
    let leadership = leader.lead(1).expect("a new epoch");
    for number in 0..500 {
        let pending = leadership.append(STREAM, record(number), Ack::Quorum).expect("it leads");
        pending.wait().expect("a majority");
    }
    leader.trim(STREAM, 300);
    for node in [&leader, &follower] {
        wait_until("both have trimmed", || node.engine().stream(STREAM).trimmed() == 300);
    }
    // For who is gone nothing is kept, and when it comes back it begins behind it.
    stop(follower);
    wait_until("the follower is gone", || !leader.stats().followers[1].is_connected);
    for number in 500..700 {
        let pending = leadership.append(STREAM, record(number), Ack::Quorum).expect("it leads");
        pending.wait().expect("the other one makes a majority");
    }
    leader.trim(STREAM, 650);
    wait_until("trimmed", || leader.engine().stream(STREAM).trimmed() == 650);
    // What is not committed is not trimmed: a later leader may lack it.
    stop(second);
    for number in 700..710 {
        let pending = leadership.append(STREAM, record(number), Ack::Local).expect("it leads");
        pending.wait().expect("nobody is needed");
    }
    leader.trim(STREAM, 705);
    wait_until("as far as it is committed", || leader.engine().stream(STREAM).trimmed() == 700);
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(leader.engine().stream(STREAM).trimmed(), 700);
    let follower = cluster.start(3);
    wait_end(&follower, STREAM, 710);
    wait_until("trimmed as asked for, now that it is committed", || {
        [&leader, &follower].iter().all(|node| node.engine().stream(STREAM).trimmed() == 705)
    });
    assert!(contents(&follower, STREAM) == contents(&leader, STREAM));
    wait_until("it began anew", || follower.stats().begun_anew == 1);
    stop(leader);
    stop(follower);
}

#[test]
fn a_leader_learns_why_nobody_follows_it() {
    let cluster = Cluster::new(3);
    let [first, second] = [1, 2].map(|node| cluster.start(node));
    let leadership = first.lead(1).expect("a new epoch");
    for number in 0..50 {
        let pending = leadership.append(STREAM, record(number), Ack::Quorum).expect("it leads");
        pending.wait().expect("a majority");
    }
    wait_until("the follower knows what is committed", || {
        second.stats().committed.get(&STREAM) == Some(&50)
    });
    let before = contents(&second, STREAM);
    stop(first);
    // It has nothing of what is committed, and must not be followed.
    let wrong = cluster.start(3);
    let leadership = wrong.lead(2).expect("a later epoch");
    let count = |counts: &[(&str, u64)], why| {
        counts.iter().find(|(name, _)| *name == why).map_or(0, |(_, count)| *count)
    };
    wait_until("the follower says why it leaves", || {
        count(&wrong.stats().followers[1].left_by, "below_committed") > 0
    });
    let text = wrong.stats().prometheus();
    let line = text.lines().find(|line| {
        line.starts_with("ringwal_replication_follower_left_total{node=\"2\"")
            && line.contains("cause=\"below_committed\"")
    });
    assert!(line.is_some_and(|line| !line.ends_with(" 0")), "{line:?}");
    wait_until("it counts that, too", || count(&second.stats().left, "below_committed") > 0);
    assert_eq!(second.stats().violations, 0);
    assert!(contents(&second, STREAM) == before, "nothing was changed");
    drop(leadership);
    stop(second);
    stop(wrong);
}

#[test]
fn a_follower_that_is_closed_says_so() {
    let cluster = Cluster::new(2);
    let [leader, follower] = [1, 2].map(|node| cluster.start(node));
    let leadership = leader.lead(1).expect("a new epoch");
    let pending = leadership.append(STREAM, record(0), Ack::Quorum).expect("it leads");
    pending.wait().expect("a majority");
    stop(follower);
    wait_until("it is counted", || leader.stats().followers[0].left_by[0] == ("closing", 1));
    stop(leader);
}

#[test]
fn a_thousand_streams_reach_a_follower() {
    let cluster = Cluster::new(2);
    let [leader, follower] = [1, 2].map(|node| cluster.start(node));
    let leadership = leader.lead(1).expect("a new epoch");
    let streams = || (100..1100).map(StreamId::new);
    let pending: Vec<_> = (0..5u64)
        .flat_map(|round| streams().map(move |stream| (round, stream)))
        .map(|(round, stream)| {
            leadership.append(stream, record(round), Ack::Quorum).expect("it leads")
        })
        .collect();
    for pending in pending {
        pending.wait().expect("a majority");
    }
    for stream in streams() {
        assert!(contents(&follower, stream) == contents(&leader, stream));
    }
    stop(leader);
    stop(follower);
}

#[test]
fn a_port_that_is_taken_is_a_clear_error() {
    let cluster = Cluster::new(1);
    let node = cluster.start(1);
    let other = tempfile::tempdir().expect("a directory");
    let engine =
        Engine::options().shards(1).segment_bytes(1 << 20).open(other.path()).expect("new");
    let error = Node::start(engine, cluster.config(1)).expect_err("taken");
    assert!(error.to_string().contains("in use"), "{error}");
    stop(node);
}
