//! What is damaged comes back while the node runs.

use ringwal_engine::StreamId;
use ringwal_engine::offline::FileState;
use ringwal_replication::{Ack, LeadError, MendRangeError, Node};

use super::setup::{
    Cluster, STREAMS, append, assert_damaged, assert_whole, contents, contents_of, segments, spoil,
    stop, wait_equal, wait_until,
};

const STREAM: StreamId = StreamId::new(9);

/// Nodes 1 and 2 have the same, and are stopped.
fn two_alike(cluster: &Cluster) {
    let [leader, follower] = [1, 2].map(|node| cluster.start(node));
    append(&leader.lead(1).expect("a new epoch"), 0..12_000, Ack::Local);
    wait_equal(&leader, &follower);
    stop(leader);
    stop(follower);
}

/// Damages sealed segments of a node in several places.
fn damage(cluster: &Cluster, node: usize) {
    let path = cluster.path(node);
    let sealed = segments(&path, FileState::Sealed);
    spoil(&sealed[0], 8192 + (64 << 10));
    spoil(&sealed[0], 8192 + (400 << 10));
    spoil(&sealed[1], 8192 + (200 << 10));
    assert_damaged(&path);
}

fn mend_all(node: &Node) -> Result<u64, MendRangeError> {
    STREAMS
        .iter()
        .try_fold(0, |sum, stream| Ok(sum + node.mend(StreamId::new(*stream), 0..1 << 40)?))
}

#[test]
fn a_leader_mends_what_a_follower_lacks_and_goes_on() {
    for shards in [1, 2] {
        let cluster = Cluster::new(3, shards);
        two_alike(&cluster);
        let before = contents_of(&cluster.path(2));
        damage(&cluster, 1);
        let [leader, follower] = [1, 2].map(|node| cluster.start(node));
        let leadership = leader.lead(2).expect("nobody knows of it yet");
        append(&leadership, 0..100, Ack::Quorum);
        assert_eq!(leader.stats().places_found, 0);
        // The third has nothing, and is fed from the leader's segments.
        let third = cluster.start(3);
        wait_equal(&leader, &third);
        // A picture of the counts may be older than what it shows.
        wait_until("it is mended", || {
            let stats = leader.stats();
            stats.places_mended > 0 && stats.records_mended > 0 && stats.damage.is_none()
        });
        let stats = leader.stats();
        assert_eq!((stats.places_damaged, stats.places_mended), (0, stats.places_found));
        let text = stats.prometheus();
        assert!(text.contains("ringwal_replication_damaged_places 0"), "{text}");
        append(&leadership, 100..200, Ack::Quorum);
        wait_equal(&leader, &third);
        wait_equal(&leader, &follower);
        assert!(contents(third.engine()) == contents(leader.engine()));
        for node in [leader, follower, third] {
            stop(node);
        }
        let path = cluster.path(1);
        assert_whole(&path);
        let after = contents_of(&path);
        assert!(before.iter().all(|(stream, records)| after[stream].starts_with(records)));
        assert!(after == contents_of(&cluster.path(2)));
    }
}

#[test]
fn a_follower_mends_what_it_is_told_to() {
    let cluster = Cluster::new(2, 1);
    two_alike(&cluster);
    let before = contents_of(&cluster.path(1));
    damage(&cluster, 2);
    let [leader, follower] = [1, 2].map(|node| cluster.start(node));
    let own = follower.mend(StreamId::new(3), 0..1).expect_err("nobody else has it");
    assert!(matches!(own, MendRangeError::OwnStream(_)), "{own}");
    assert!(mend_all(&follower).expect("node 1 has it") > 0);
    assert_eq!(mend_all(&follower).expect("all is there"), 0);
    assert!(contents(follower.engine()) == before);
    // It goes on as if nothing had been.
    append(&leader.lead(2).expect("a new epoch"), 0..100, Ack::Quorum);
    wait_equal(&leader, &follower);
    stop(leader);
    follower.lead(3).expect("nothing is damaged");
    stop(follower);
    assert_whole(&cluster.path(2));
}

#[test]
fn what_nobody_else_has_stays_damaged_and_keeps_the_node_from_leading() {
    let cluster = Cluster::new(2, 1);
    let leader = cluster.start(1);
    append(&leader.lead(1).expect("a new epoch"), 0..12_000, Ack::Local);
    stop(leader);
    damage(&cluster, 1);
    let [leader, follower] = [1, 2].map(|node| cluster.start(node));
    let leadership = leader.lead(2).expect("nobody knows of it yet");
    // The first place is told, which need not be the one that was tried first.
    wait_until("its own read has met it, and node 2 was asked", || {
        let damage = leader.stats().damage;
        damage.is_some_and(|damage| damage.contains("node 2: stream"))
    });
    let refused = mend_all(&leader).expect_err("nobody has it");
    let MendRangeError::NotMended { stream, offset, .. } = refused else { panic!("{refused}") };
    // The present leader goes on with everything else; once it has ended it does not begin again.
    let sound = StreamId::new(1234);
    leadership.append(sound, b"x", Ack::Quorum).expect("it leads").wait().expect("a majority");
    leadership.retire("a test");
    wait_until("it has ended", || leadership.ended().is_some());
    let refused = leader.lead(3).expect_err("another one could lead");
    assert!(matches!(refused, LeadError::Damaged { .. }), "{refused}");
    // What is trimmed is no damage.
    for stream in STREAMS.map(StreamId::new) {
        let handle = leader.engine().stream(stream);
        handle.trim(handle.end()).expect("sound");
        leader.mend(stream, 0..1 << 40).expect("nothing is left to be read");
    }
    wait_until("it is forgotten", || leader.stats().damage.is_none());
    assert!(leader.engine().stream(stream).trimmed() > offset);
    leader.lead(4).expect("nothing is damaged");
    stop(leader);
    stop(follower);
}

#[test]
fn another_history_is_not_put_in() {
    let cluster = Cluster::new(2, 1);
    two_alike(&cluster);
    // The two go on alone, each in its own way.
    for (node, epoch) in [(1, 2), (2, 3)] {
        let node = cluster.start(node);
        append(&node.lead(epoch).expect("a new epoch"), 0..6_000, Ack::Local);
        stop(node);
    }
    let path = cluster.path(1);
    let before = contents_of(&path);
    let sealed = segments(&path, FileState::Sealed);
    spoil(&sealed[0], 8192 + (64 << 10));
    spoil(&sealed[sealed.len() - 1], 8192 + (64 << 10));
    let node = cluster.start(1);
    let engine = node.engine().clone();
    let peer = cluster.start(2);
    let refused = mend_all(&node).expect_err("its last records are only here");
    assert!(refused.to_string().contains("of another epoch"), "{refused}");
    let sound: Vec<_> = engine.stream(STREAM).read(0..500).expect("there").collect();
    assert!(sound.iter().zip(&before[&9]).all(|(record, before)| {
        record.as_ref().is_ok_and(|record| record.payload() == before.2)
    }));
    stop(peer);
    stop(node);
}
