//! When the other node cannot give it all back, nothing is changed.

use ringwal_engine::offline::{self, FileState};
use ringwal_replication::node_id::{ClusterId, NodeId};
use ringwal_replication::repair::{FetchError, RepairFromError};
use ringwal_replication::wire::Refusal;
use ringwal_replication::{Ack, Node};

use super::setup::{
    Cluster, append, assert_damaged, contents_of, files, rot, segments, stop, wait_equal,
};

/// Node 2 has led and had all; node 1 has followed.
fn led() -> (Cluster, [Node; 2]) {
    let cluster = Cluster::new(2, 1);
    let nodes = [1, 2].map(|node| cluster.start(node));
    append(&nodes[1].lead(1).expect("a new epoch"), 0..8_000, Ack::Local);
    wait_equal(&nodes[0], &nodes[1]);
    (cluster, nodes)
}

#[test]
fn a_node_that_has_less_is_no_source() {
    let (cluster, [other, node]) = led();
    let path = cluster.path(2);
    stop(other);
    let leadership = node.lead(2).expect("a new epoch");
    append(&leadership, 8_000..12_000, Ack::Local);
    drop(leadership);
    stop(node);
    let other = cluster.start(1);
    rot(&segments(&path, FileState::Sealed)[0], 8192 + (64 << 10));
    assert_damaged(&path);
    let before = files(&path);
    let refused = cluster.repair(1).run().expect_err("records are only here");
    let RepairFromError::PeerLacks { lacks, node } = &refused else { panic!("{refused}") };
    assert_eq!((lacks.len(), *node), (5, NodeId::new(1)));
    assert!(refused.to_string().contains("ends at"), "{refused}");
    assert!(files(&path) == before, "nothing was changed");
    // Unless somebody gives that up in so many words.
    let cuts = offline::verify(&path).expect("readable").cuts;
    let repaired = cluster.repair(1).accept(&cuts).run().expect("it is mended");
    assert!(!repaired.after.expect("something was changed").is_damaged());
    assert!(repaired.lacking.is_some(), "it follows before it leads");
    stop(other);
}

#[test]
fn a_node_that_is_damaged_in_the_same_place_says_so() {
    let (cluster, [other, node]) = led();
    let (path, other_path) = (cluster.path(2), cluster.path(1));
    stop(other);
    stop(node);
    let sound = contents_of(&path);
    for segment in segments(&other_path, FileState::Sealed) {
        (1..5).for_each(|part| rot(&segment, 8192 + (part << 17)));
    }
    let other = cluster.start(1);
    let segment = segments(&path, FileState::Sealed)[0].clone();
    let whole = std::fs::read(&segment).expect("readable");
    rot(&segment, 8192 + (64 << 10));
    let before = files(&path);
    let refused = cluster.repair(1).run().expect_err("it is damaged there, too");
    assert!(matches!(refused, RepairFromError::PeerLacks { .. }), "{refused}");
    assert!(refused.to_string().contains("cannot be read there either"), "{refused}");
    assert!(files(&path) == before, "nothing was changed");
    std::fs::write(&segment, whole).expect("room");
    assert!(contents_of(&path) == sound);
    stop(other);
}

#[test]
fn strangers_do_not_repair_each_other() {
    let (cluster, [other, node]) = led();
    let path = cluster.path(2);
    stop(node);
    rot(&segments(&path, FileState::Sealed)[0], 8192 + (64 << 10));
    let before = files(&path);
    let mut asked = cluster.repair(1);
    asked.options.config.cluster = ClusterId::new([8; 16]);
    let refused = asked.run().expect_err("another cluster");
    let is = |error: &RepairFromError, why: Refusal| {
        let RepairFromError::Fetch(error) = error else { return false };
        matches!(**error, FetchError::Refused { refusal, .. } if refusal == why)
    };
    assert!(is(&refused, Refusal::Cluster), "{refused}");
    let mut asked = cluster.repair(1);
    asked.options.config.node = NodeId::new(1);
    let refused = asked.run().expect_err("itself");
    assert!(is(&refused, Refusal::Node), "{refused}");
    let mut asked = cluster.repair(1);
    asked.options.config.members[1].node = NodeId::new(5);
    asked.options.config.node = NodeId::new(5);
    let refused = asked.run().expect_err("none of the members");
    assert!(is(&refused, Refusal::NotAMember), "{refused}");
    stop(other);
    let refused = cluster.repair(1).run().expect_err("nobody is there");
    let RepairFromError::Fetch(error) = &refused else { panic!("{refused}") };
    assert!(matches!(**error, FetchError::Link(_)), "{refused}");
    assert!(files(&path) == before, "nothing was changed");
}
