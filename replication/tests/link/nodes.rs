//! Whole nodes over TLS: who a certificate makes somebody.

use std::time::{Duration, Instant};

use ringwal_engine::{Engine, StreamId};
use ringwal_replication::config::{Config, Member};
use ringwal_replication::node_id::{ClusterId, NodeId};
use ringwal_replication::{Ack, Node};

use crate::authority::{Authority, write};

const STREAM: StreamId = StreamId::new(12);
const LIMIT: Duration = Duration::from_secs(20);

/// A leader and a follower, with these names in their certificates beside the address.
fn nodes(directory: &std::path::Path, authority: &Authority, names: [&[&str]; 2]) -> [Node; 2] {
    let listeners = [1, 2].map(|_| std::net::TcpListener::bind("127.0.0.1:0").expect("a port"));
    let addresses = listeners.map(|listener| listener.local_addr().expect("bound").to_string());
    [1, 2].map(|node: usize| {
        let member = |(node, address): (u64, &String)| Member {
            node: NodeId::new(node),
            address: address.clone(),
        };
        let members = (1..).zip(&addresses).map(member).collect();
        let mut config = Config::new(ClusterId::new([4; 16]), NodeId::new(node as u64), members);
        config.listen.clone_from(&addresses[node - 1]);
        let place = directory.join(node.to_string());
        std::fs::create_dir_all(&place).expect("a directory");
        let issued = authority.issue_with(names[node - 1][0], |params| {
            let more = rcgen::CertificateParams::new(
                names[node - 1][1..].iter().map(|name| (*name).to_owned()).collect::<Vec<_>>(),
            );
            params.subject_alt_names.extend(more.expect("names").subject_alt_names);
        });
        config.tls = Some(write(&place, &issued, &[authority]));
        let options = Engine::options().shards(1).segment_bytes(1 << 20).pool_bytes(4 << 20);
        let engine = options.open(place.join("data")).expect("the engine opens");
        Node::start(engine, config).expect("the node starts")
    })
}

#[test]
fn members_with_their_names_or_addresses_replicate() {
    for names in [[&["127.0.0.1"][..], &["127.0.0.1"]], [&["node-1"], &["node-2", "127.0.0.1"]]] {
        let directory = tempfile::tempdir().expect("a directory");
        let [leader, follower] = nodes(directory.path(), &Authority::new(), names);
        let leadership = leader.lead(1).expect("a new epoch");
        for number in 0..200u64 {
            let record = number.to_le_bytes();
            let pending = leadership.append(STREAM, record, Ack::Quorum).expect("it leads");
            pending.wait().expect("a majority");
        }
        let durable = follower.wait_durable(STREAM, 199, Instant::now() + LIMIT);
        assert!(durable.expect("sound"));
    }
}

#[test]
fn nobody_leads_with_the_certificate_of_another_member() {
    let directory = tempfile::tempdir().expect("a directory");
    let names = [&["node-7"][..], &["node-2", "127.0.0.1"]];
    let [leader, follower] = nodes(directory.path(), &Authority::new(), names);
    let leadership = leader.lead(1).expect("a new epoch");
    let mut pending = leadership.append(STREAM, b"record", Ack::Quorum).expect("it leads");
    let deadline = Instant::now() + LIMIT;
    while leader.stats().followers[0].refused == 0 {
        assert!(Instant::now() < deadline, "it is not refused");
        std::thread::sleep(Duration::from_millis(5));
    }
    let why = leader.stats().followers[0].last_failure.clone().expect("a reason");
    assert!(why.contains("node-7") && why.contains("node-1"), "{why}");
    assert!(pending.wait_timeout(Duration::from_millis(50)).is_err());
    let refused = follower.stats().refused;
    assert!(refused.iter().any(|(reason, count)| *reason == "not_a_member" && *count > 0));
    assert_eq!((follower.stats().promised_epoch, follower.engine().stream(STREAM).end()), (0, 0));
}
