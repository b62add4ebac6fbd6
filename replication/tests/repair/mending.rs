//! What is damaged comes back, and nothing else changes.

use std::fs;

use ringwal_engine::StreamId;
use ringwal_engine::offline::FileState;
use ringwal_replication::promise::NOBODY;
use ringwal_replication::repair::{Marker, RepairFromError};
use ringwal_replication::{Ack, LeadError, Node};

use super::setup::{
    Cluster, append, assert_damaged, assert_whole, contents, contents_of, promised, rot, segments,
    stop, wait_equal, wait_until,
};

/// Node 1 leads and goes on; node 2 has followed, and is stopped.
fn followed(cluster: &Cluster) -> Node {
    let [leader, follower] = [1, 2].map(|node| cluster.start(node));
    append(&leader.lead(1).expect("a new epoch"), 0..12_000, Ack::Local);
    wait_equal(&leader, &follower);
    stop(follower);
    leader
}

#[test]
fn a_sealed_segment_comes_back_byte_for_byte_and_the_promise_stays() {
    for shards in [1, 2] {
        let cluster = Cluster::new(2, shards);
        let leader = followed(&cluster);
        let path = cluster.path(2);
        let (before, promise) = (contents_of(&path), promised(&path));
        rot(&segments(&path, FileState::Sealed)[0], 8192 + (64 << 10));
        assert_damaged(&path);
        let dry = cluster.repair(1).dry().expect("it can be mended");
        assert!(!dry.brought.is_empty() && dry.after.is_none());
        let repaired = cluster.repair(1).run().expect("it is mended");
        assert!(repaired.left.is_empty() && repaired.lacking.is_none(), "{repaired:?}");
        assert!(repaired.brought.iter().all(|brought| brought.bytes > 0), "{repaired:?}");
        assert_whole(&path);
        assert!(contents_of(&path) == before, "with {shards} shards");
        assert_eq!(promised(&path), promise);
        // It goes on as if nothing had been.
        let follower = cluster.start(2);
        assert_eq!(follower.stats().repairing, None);
        assert!(matches!(follower.lead(1), Err(LeadError::EpochUsed { .. })));
        append(&leader.lead(2).expect("a new epoch"), 0..100, Ack::Quorum);
        wait_equal(&leader, &follower);
        assert!(contents(follower.engine()) == contents(leader.engine()));
        stop(follower);
        stop(leader);
    }
}

#[test]
fn a_segment_that_is_gone_comes_back() {
    let cluster = Cluster::new(2, 1);
    let leader = followed(&cluster);
    let path = cluster.path(2);
    let before = contents_of(&path);
    fs::remove_file(&segments(&path, FileState::Sealed)[1]).expect("it is there");
    assert_damaged(&path);
    let repaired = cluster.repair(1).run().expect("it is mended");
    assert!(!repaired.after.expect("something was changed").is_damaged());
    assert!(contents_of(&path) == before);
    let follower = cluster.start(2);
    wait_until("it has followed a leader", || follower.stats().repairing.is_none());
    stop(follower);
    stop(leader);
    assert_whole(&path);
}

#[test]
fn a_shard_that_is_gone_comes_back_and_what_it_has_promised_too() {
    let cluster = Cluster::new(2, 1);
    let leader = followed(&cluster);
    let path = cluster.path(2);
    let before = contents_of(&path);
    fs::remove_dir_all(path.join("shard-00")).expect("it is there");
    assert_damaged(&path);
    cluster.repair(1).dry().expect("it can be mended");
    let repaired = cluster.repair(1).run().expect("it is mended");
    assert!(repaired.lacking.is_some(), "nothing tells what it held");
    assert!(contents_of(&path) == before);
    let promise = promised(&path).expect("it promises what the others have seen");
    assert_eq!((promise.epoch, promise.leader), (1, NOBODY));
    // The epoch is not its own, and its leader is followed.
    let follower = cluster.start(2);
    wait_until("it has followed a leader", || follower.stats().repairing.is_none());
    assert!(matches!(follower.lead(1), Err(LeadError::EpochUsed { .. })));
    stop(follower);
    stop(leader);
    assert_whole(&path);
}

#[test]
fn whoever_may_have_lost_more_than_is_told_follows_before_it_leads() {
    let cluster = Cluster::new(3, 1);
    let [leader, follower, third] = [1, 2, 3].map(|node| cluster.start(node));
    append(&leader.lead(1).expect("a new epoch"), 0..5_000, Ack::Local);
    wait_equal(&leader, &follower);
    let expected = contents(leader.engine());
    cluster.kill(2, follower);
    let path = cluster.path(2);
    let open = segments(&path, FileState::Open);
    rot(open.last().expect("it was killed"), 8192 + 8192);
    assert_damaged(&path);

    // Its facts are in that shard, so every other member has to tell what it has promised.
    stop(third);
    let silent = cluster.repair(1).dry().expect_err("node 3 is silent");
    assert!(matches!(silent, RepairFromError::Promises { .. }), "{silent}");
    let third = cluster.start(3);
    let repaired = cluster.repair(1).run().expect("it is mended");
    assert!(!repaired.after.expect("something was changed").is_damaged());
    assert!(repaired.lacking.is_some(), "nothing tells how much the last batches held");
    assert!(contents_of(&path) == expected);
    assert_eq!(promised(&path).map(|promise| promise.epoch), Some(1));

    stop(leader);
    stop(third);
    let alone = cluster.start(2);
    let refused = alone.lead(9).expect_err("it lacks a leader");
    assert!(matches!(refused, LeadError::Repairing { .. }), "{refused}");
    assert!(alone.stats().repairing.is_some());
    let leader = cluster.start(1);
    append(&leader.lead(2).expect("a new epoch"), 0..10, Ack::Quorum);
    wait_until("it has all that its leader has", || alone.stats().repairing.is_none());
    stop(leader);
    alone.lead(3).expect("it may lead again");
    stop(alone);
    assert_whole(&path);
}

#[test]
fn the_only_member_has_nobody_to_follow() {
    for (members, leads) in [(1, true), (2, false)] {
        let cluster = Cluster::new(members, 1);
        let node = cluster.start(1);
        append(&node.lead(1).expect("a new epoch"), 0..100, Ack::Local);
        stop(node);
        let marker = Marker { must_follow: true, ..Marker::default() };
        marker.store(&cluster.path(1)).expect("room");
        let node = cluster.start(1);
        let led = node.lead(2);
        assert_eq!(led.is_ok(), leads, "{led:?}");
        if leads {
            wait_until("it is forgotten", || node.stats().repairing.is_none());
        }
        stop(node);
        assert_eq!(cluster.path(1).join("repairing").exists(), !leads);
    }
}

#[test]
fn it_goes_on_where_it_was_stopped() {
    let cluster = Cluster::new(2, 1);
    let leader = followed(&cluster);
    let path = cluster.path(2);
    let (before, promise) = (contents_of(&path), promised(&path));
    rot(&segments(&path, FileState::Sealed)[0], 8192 + (64 << 10));
    for frames in [1, 3, 5] {
        let stopped = cluster.repair(1).stop_after(frames).run().expect_err("in the middle");
        assert!(matches!(stopped, RepairFromError::Stopped(_)), "{stopped}");
        assert_eq!(promised(&path), promise);
        assert!(path.join("repairing").exists());
    }
    // Not all is back: it does not lead.
    stop(leader);
    let alone = cluster.start(2);
    assert!(matches!(alone.lead(7), Err(LeadError::Repairing { .. })));
    stop(alone);
    let leader = cluster.start(1);
    let dry = cluster.repair(1).dry().expect("it can go on");
    assert!(dry.lacking.is_some());
    let repaired = cluster.repair(1).run().expect("it comes to its end");
    assert!(repaired.lacking.is_none(), "{repaired:?}");
    assert_whole(&path);
    assert!(contents_of(&path) == before);
    let nothing = cluster.repair(1).run().expect("there is nothing to do");
    assert!(nothing.peer.is_none() && nothing.after.is_none());
    stop(leader);
}

#[test]
fn records_of_the_nodes_own_streams_are_carried_over() {
    let cluster = Cluster::new(2, 1);
    let leader = followed(&cluster);
    let path = cluster.path(2);
    let follower = cluster.start(2);
    let own = follower.engine().stream(StreamId::new(1));
    for number in 0..20u64 {
        own.append(number.to_le_bytes()).expect("queued").wait().expect("durable");
    }
    append(&leader.lead(2).expect("a new epoch"), 0..100, Ack::Quorum);
    wait_equal(&leader, &follower);
    stop(follower);
    let read = || {
        let engine =
            ringwal_engine::Engine::options().read_only(true).open(&path).expect("readable");
        let records = engine.stream(StreamId::new(1)).read(..).expect("from its start");
        records.map(|record| record.expect("sound").payload().to_vec()).collect::<Vec<_>>()
    };
    let before = read();
    assert_eq!(before.len(), 20);
    rot(&segments(&path, FileState::Sealed)[0], 8192 + (64 << 10));
    let repaired = cluster.repair(1).run().expect("it is mended");
    assert!(repaired.lacking.is_none(), "{repaired:?}");
    assert_whole(&path);
    assert_eq!(read(), before);
    stop(leader);
}

#[test]
fn what_was_trimmed_behind_the_damage_stays_trimmed() {
    let cluster = Cluster::new(2, 1);
    let [leader, follower] = [1, 2].map(|node| cluster.start(node));
    let leadership = leader.lead(1).expect("a new epoch");
    append(&leadership, 0..12_000, Ack::Local);
    wait_equal(&leader, &follower);
    let stream = StreamId::new(9);
    let trimmed = follower.engine().stream(stream).end() - 10;
    leader.trim(stream, trimmed);
    wait_until("both have trimmed", || follower.engine().stream(stream).trimmed() == trimmed);
    stop(follower);
    let path = cluster.path(2);
    let sealed = segments(&path, FileState::Sealed);
    (1..5).for_each(|part| rot(&sealed[0], 8192 + (part << 17)));
    assert_damaged(&path);
    cluster.repair(1).run().expect("it is mended");
    assert_whole(&path);
    let follower = cluster.start(2);
    assert_eq!(follower.engine().stream(stream).trimmed(), trimmed);
    append(&leadership, 0..100, Ack::Quorum);
    wait_equal(&leader, &follower);
    stop(follower);
    stop(leader);
}
