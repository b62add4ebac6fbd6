//! Repair over mutual TLS, from a running node and by one.

use ringwal_engine::StreamId;
use ringwal_engine::offline::FileState;
use ringwal_replication::Ack;
use ringwal_replication::repair::{FetchError, RepairFromError};
use ringwal_replication::wire::Refusal;

use super::authority::Authority;
use super::setup::{
    Cluster, STREAMS, append, assert_damaged, assert_whole, contents_of, files, segments, spoil,
    stop, wait_equal,
};

/// Node 1 runs; node 2 has followed it and is damaged.
fn damaged() -> (Cluster, ringwal_replication::Node) {
    let cluster = Cluster::secured(&["node-1", "node-2"]);
    let [leader, follower] = [1, 2].map(|node| cluster.start(node));
    append(&leader.lead(1).expect("a new epoch"), 0..12_000, Ack::Local);
    wait_equal(&leader, &follower);
    stop(follower);
    let path = cluster.path(2);
    spoil(&segments(&path, FileState::Sealed)[0], 8192 + (64 << 10));
    assert_damaged(&path);
    (cluster, leader)
}

#[test]
fn a_directory_is_repaired_from_who_knows_its_certificate() {
    let (cluster, leader) = damaged();
    let path = cluster.path(2);
    let before = files(&path);
    // Somebody else's authority; then a certificate of the cluster that is another node's.
    let mut stranger = cluster.repair(1);
    stranger.options.config.tls = Some(cluster.certificate(&Authority::new(), &["node-2"]));
    let refused = stranger.run().expect_err("nobody knows who issued it");
    let RepairFromError::Fetch(error) = &refused else { panic!("{refused}") };
    assert!(matches!(**error, FetchError::Link(_)), "{refused}");
    let mut plain = cluster.repair(1);
    plain.options.config.tls = None;
    let refused = plain.run().expect_err("it speaks TLS only");
    assert!(matches!(refused, RepairFromError::Fetch(_)), "{refused}");
    let mut other = cluster.repair(1);
    other.options.config.tls = Some(cluster.certificate_of(&["node-7"]));
    let refused = other.run().expect_err("it is not node 2");
    let RepairFromError::Fetch(error) = &refused else { panic!("{refused}") };
    let FetchError::Refused { refusal, why, .. } = &**error else { panic!("{refused}") };
    assert!(*refusal == Refusal::NotAMember && why.contains("node-7"), "{why}");
    assert!(files(&path) == before, "nothing was changed");

    let repaired = cluster.repair(1).run().expect("it is mended");
    assert!(repaired.lacking.is_none() && repaired.left.is_empty(), "{repaired:?}");
    stop(leader);
    assert_whole(&path);
    assert!(contents_of(&path) == contents_of(&cluster.path(1)));
}

#[test]
fn a_running_node_mends_itself_from_who_knows_its_certificate() {
    let (cluster, leader) = damaged();
    let mend = |node: &ringwal_replication::Node| {
        let one = |sum, stream: &u64| Ok(sum + node.mend(StreamId::new(*stream), 0..1 << 40)?);
        STREAMS
            .iter()
            .try_fold(0, one)
            .map_err(|error: ringwal_replication::MendRangeError| error.to_string())
    };
    let mut config = cluster.config(2);
    config.tls = Some(cluster.certificate_of(&["node-7"]));
    let wrong = cluster.start_as(2, config);
    let refused = mend(&wrong).expect_err("it is not node 2");
    assert!(refused.contains("not_a_member") && refused.contains("node-7"), "{refused}");
    stop(wrong);
    let follower = cluster.start(2);
    assert!(mend(&follower).expect("node 1 has it") > 0);
    stop(follower);
    stop(leader);
    assert_whole(&cluster.path(2));
    assert!(contents_of(&cluster.path(2)) == contents_of(&cluster.path(1)));
}
