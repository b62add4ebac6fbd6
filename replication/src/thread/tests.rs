//! What only the inside of a node shows.

use std::time::{Duration, Instant};

use ringwal_engine::{Engine, StreamId};

use crate::config::{Config, Member};
use crate::link::FRAMES_WRITTEN;
use crate::node_id::{ClusterId, NodeId};
use crate::{Ack, Node};

const LIMIT: Duration = Duration::from_secs(20);

/// Two nodes on free ports.
fn nodes() -> ([tempfile::TempDir; 2], [Node; 2]) {
    let listeners = [1, 2].map(|_| std::net::TcpListener::bind("127.0.0.1:0").expect("a port"));
    let addresses = listeners.map(|listener| listener.local_addr().expect("bound").to_string());
    let directories = [1, 2].map(|_| tempfile::tempdir().expect("a directory"));
    let nodes = [1, 2].map(|node: usize| {
        let member = |(node, address): (u64, &String)| Member {
            node: NodeId::new(node),
            address: address.clone(),
        };
        let members = (1..).zip(&addresses).map(member).collect();
        let cluster = ClusterId::new([3; 16]);
        let mut config = Config::new(cluster, NodeId::new(node as u64), members);
        config.listen.clone_from(&addresses[node - 1]);
        let options = Engine::options().shards(2).segment_bytes(1 << 20).pool_bytes(4 << 20);
        let engine = options.open(directories[node - 1].path()).expect("the engine opens");
        Node::start(engine, config).expect("the node starts")
    });
    (directories, nodes)
}

/// From the callers' buffer in the pool to the socket: what a live follower is sent is never copied.
#[test]
fn every_frame_of_the_live_flow_is_written_from_the_pool() {
    let (_directories, [leader, follower]) = nodes();
    let leadership = leader.lead(1).expect("a new epoch");
    let streams = [20, 21, 22, 23].map(StreamId::new);
    let connected = Instant::now() + LIMIT;
    while !leader.stats().followers[0].is_connected {
        assert!(Instant::now() < connected, "no connection");
        std::thread::sleep(Duration::from_millis(5));
    }
    for round in 0..200 {
        let append = |stream| leadership.append(stream, vec![round; 3000], Ack::Quorum);
        let pending = streams.map(|stream| append(stream).expect("it leads"));
        for pending in pending {
            pending.wait().expect("a majority");
        }
    }
    let stats = leader.stats();
    let pools = leader.engine().buffer_addresses();
    let is_in_a_pool = |frame: &std::ops::Range<usize>| {
        pools.iter().any(|pool| pool.start <= frame.start && frame.end <= pool.end)
    };
    let written = FRAMES_WRITTEN.lock().expect("no panic");
    let frames = written.iter().filter(|(peer, _)| *peer == follower.address());
    let (within, beside): (Vec<_>, Vec<_>) =
        frames.map(|(_, frame)| frame).partition(|frame| is_in_a_pool(frame));
    assert_eq!(stats.followers[0].bytes_resent, 0, "nothing was read from segments");
    assert!(within.len() >= 200, "{} frames", within.len());
    assert!(beside.is_empty(), "{} of {} frames were copied", beside.len(), within.len());
}
