//! Nodes ask each other, over the port that everything uses.

use std::net::TcpListener;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use ringwal_engine::Engine;
use ringwal_replication::Node;
use ringwal_replication::config::{Config, Member};
use ringwal_replication::node_id::{ClusterId, NodeId};
use ringwal_replication::requests::{
    Asked, REQUEST_BYTES_MAX, REQUESTS_MAX, Replies, Reply, RequestError,
};

const CLUSTER: ClusterId = ClusterId::new([9; 16]);
const LIMIT: Duration = Duration::from_secs(20);

struct Cluster {
    directories: Vec<tempfile::TempDir>,
    members: Vec<Member>,
}

impl Cluster {
    fn new(nodes: u64) -> Self {
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

    /// Starts a node that knows these members.
    fn start_knowing(&self, node: usize, cluster: ClusterId, members: &[Member]) -> Node {
        let mut config = Config::new(cluster, NodeId::new(node as u64), members.to_vec());
        config.listen.clone_from(&self.members[node - 1].address);
        let options = Engine::options().shards(1).segment_bytes(1 << 20).pool_bytes(4 << 20);
        let engine = options.lock_wait(LIMIT).open(self.directories[node - 1].path());
        Node::start(engine.expect("the engine opens"), config).expect("the node starts")
    }

    fn start(&self, node: usize) -> Node {
        self.start_knowing(node, CLUSTER, &self.members)
    }
}

fn stop(node: Node) {
    let engine = node.engine().clone();
    node.close();
    engine.close().expect("a sound disk");
}

/// Says who asks, and the same bytes turned round.
struct Turn;

impl Replies for Turn {
    fn handle(&self, asked: Asked) {
        let mut bytes = vec![asked.from.get() as u8];
        bytes.extend(asked.bytes.iter().rev());
        asked.reply.send(bytes);
    }
}

/// Keeps what comes.
#[derive(Default)]
struct Keep {
    kept: Mutex<Vec<(Bytes, Reply)>>,
}

impl Keep {
    fn wait_for(&self, count: usize) {
        let deadline = Instant::now() + LIMIT;
        while self.kept.lock().unwrap().len() < count {
            assert!(Instant::now() < deadline, "not {count} of them");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Replies for Keep {
    fn handle(&self, asked: Asked) {
        self.kept.lock().unwrap().push((asked.bytes, asked.reply));
    }
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at / 7) as u8).collect()
}

#[test]
fn requests_of_every_length_are_replied_to_both_ways() {
    let cluster = Cluster::new(2);
    let nodes = [1, 2].map(|node| cluster.start(node));
    nodes.iter().for_each(|node| node.reply_with(Arc::new(Turn)));
    for (from, to) in [(0, 1), (1, 0)] {
        let requests = nodes[from].requests();
        let lengths = [0, 1, 1000, 256 << 10, (256 << 10) + 1, REQUEST_BYTES_MAX - 1];
        let asked = lengths
            .map(|length| (length, requests.ask(&cluster.members[to], pattern(length), LIMIT)));
        for (length, request) in asked {
            let mut reply = request.wait().expect("a reply").to_vec();
            assert_eq!(reply.remove(0) as usize, from + 1);
            reply.reverse();
            assert!(reply == pattern(length), "{length} bytes");
        }
        let long = requests.ask(&cluster.members[to], vec![0; REQUEST_BYTES_MAX + 1], LIMIT);
        assert!(matches!(long.wait(), Err(RequestError::TooLong { .. })));
    }
    // A picture of the counts is made now and then.
    let deadline = Instant::now() + LIMIT;
    while nodes[0].stats().requests_taken < 6 {
        assert!(Instant::now() < deadline, "{:?}", nodes[0].stats());
        std::thread::sleep(Duration::from_millis(5));
    }
    nodes.into_iter().for_each(stop);
}

#[test]
fn replies_come_in_any_order_and_what_is_not_replied_to_is_told() {
    let cluster = Cluster::new(2);
    let nodes = [1, 2].map(|node| cluster.start(node));
    let keep = Arc::new(Keep::default());
    nodes[1].reply_with(keep.clone());
    let requests = nodes[0].requests();
    let ask = |n: u8, limit| requests.ask(&cluster.members[1], vec![n], limit);
    let asked = [1, 2, 3].map(|n| ask(n, LIMIT));
    keep.wait_for(3);
    let mut kept = std::mem::take(&mut *keep.kept.lock().unwrap());
    kept.remove(1);
    for (bytes, reply) in kept.into_iter().rev() {
        reply.send(bytes);
    }
    let outcomes = asked.map(|request| request.wait());
    assert_eq!(outcomes[0].as_deref().ok(), Some(&[1][..]));
    let dropped = outcomes[1].as_ref().unwrap_err();
    assert!(matches!(dropped, RequestError::NoReply { .. }) && dropped.may_be_done(), "{dropped}");
    assert_eq!(outcomes[2].as_deref().ok(), Some(&[3][..]));
    // Late ones, and as many as there may be.
    let late = ask(4, Duration::from_millis(10)).wait().unwrap_err();
    assert!(matches!(late, RequestError::Late { .. }), "{late}");
    // The late one is still counted on both sides.
    let asked: Vec<_> = (1..REQUESTS_MAX).map(|n| ask(n as u8, LIMIT)).collect();
    keep.wait_for(REQUESTS_MAX / 2);
    let deadline = Instant::now() + LIMIT;
    loop {
        // Of those before, each has its place until it has an outcome.
        let one = ask(0, Duration::from_millis(200)).wait().unwrap_err();
        match one {
            RequestError::Busy { .. } => break,
            other => assert!(Instant::now() < deadline, "{other}"),
        }
    }
    drop(std::mem::take(&mut *keep.kept.lock().unwrap()));
    stop(nodes.into_iter().nth(1).expect("the second"));
    for request in asked {
        let lost = request.wait().unwrap_err();
        let is_told = matches!(
            lost,
            RequestError::NoReply { .. }
                | RequestError::Lost { .. }
                | RequestError::NotReached { .. }
        );
        assert!(is_told, "{lost}");
    }
}

#[test]
fn who_is_not_there_or_of_another_cluster_was_not_asked() {
    let cluster = Cluster::new(3);
    let node = cluster.start(1);
    let ask = |to: usize| {
        let asked = node.requests().ask(&cluster.members[to - 1], vec![1], LIMIT);
        asked.wait().map(|bytes| bytes.to_vec())
    };
    let gone = ask(2).unwrap_err();
    assert!(matches!(gone, RequestError::NotReached { .. }) && !gone.may_be_done(), "{gone}");
    let foreign = cluster.start_knowing(3, ClusterId::new([1; 16]), &cluster.members);
    foreign.reply_with(Arc::new(Turn));
    let refused = ask(3).unwrap_err();
    assert!(refused.to_string().contains("another cluster"), "{refused}");
    // A node that nobody has as a member may ask, and be asked.
    let stranger = cluster.start_knowing(2, CLUSTER, &cluster.members[1..2]);
    let deadline = Instant::now() + LIMIT;
    let refused = loop {
        // What waits for the next attempt is given the outcome of the last.
        match ask(2).unwrap_err() {
            error if error.to_string().contains("nobody replies") => break error,
            error => assert!(Instant::now() < deadline, "{error}"),
        }
    };
    assert!(!refused.may_be_done());
    stranger.reply_with(Arc::new(Turn));
    while ask(2).ok() != Some(vec![1, 1]) {
        assert!(Instant::now() < deadline);
    }
    [node, foreign, stranger].into_iter().for_each(stop);
}

#[test]
fn a_node_that_was_started_again_is_asked_again() {
    let cluster = Cluster::new(2);
    let asking = cluster.start(1);
    let (mut done, mut undone) = (0, 0);
    let mut other = Some(cluster.start(2));
    for round in 0..3 {
        other.as_ref().expect("it runs").reply_with(Arc::new(Turn));
        let deadline = Instant::now() + LIMIT;
        let mut after = 0;
        while after < 20 {
            assert!(Instant::now() < deadline, "round {round}: {done} done, {undone} not");
            let asked = asking.requests().ask(&cluster.members[1], vec![round], LIMIT).wait();
            match asked {
                Ok(bytes) => {
                    assert_eq!(&*bytes, &[1, round]);
                    (done, after) = (done + 1, after + 1);
                }
                Err(_) => undone += 1,
            }
        }
        stop(other.take().expect("it runs"));
        other = Some(cluster.start(2));
    }
    stop(asking);
    stop(other.take().expect("it runs"));
}
