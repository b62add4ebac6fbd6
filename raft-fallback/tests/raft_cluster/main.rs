//! Three openraft nodes over our log, our messages and real engines.

mod cluster;
mod machine;
mod port;

use std::time::{Duration, Instant};

use openraft::ServerState;
use ringwal_raft_fallback::raft::Vote;
use ringwal_raft_fallback::raft::rpc::{
    APPEND_BYTES_MAX, Append, Ask, Candidacy, Refusal, Reply, Request, SNAPSHOT_CHUNK_BYTES,
    Transfer,
};
use ringwal_raft_fallback::raft::serve::Served;

use cluster::{Cluster, LONG};

/// Waits for what nobody tells of.
async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG.unwrap();
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn others(of: u64) -> Vec<u64> {
    (1..=3).filter(|id| *id != of).collect()
}

#[tokio::test]
async fn it_elects_writes_loses_its_leader_and_goes_on() {
    let mut cluster = Cluster::new().await;
    let first = cluster.leader_of(1, &[1, 2, 3]).await;
    let index = cluster.write(first, vec![1; 100]).await;
    for id in 1..=3 {
        cluster.applied(id, index).await;
    }
    until("a lease", || cluster.lease_is_valid(first)).await;
    assert!(others(first).iter().all(|id| !cluster.lease_is_valid(*id)), "one leader");

    let term = cluster.seen(first).current_term;
    cluster.stop(first).await;
    let left = others(first);
    let second = cluster.leader_of(left[0], &left).await;
    let index = cluster.write(second, vec![2; 100]).await;
    for id in &left {
        cluster.applied(*id, index).await;
    }
    until("a lease", || cluster.lease_is_valid(second)).await;
    assert!(cluster.seen(second).current_term > term);

    cluster.start(first).await;
    cluster.applied(first, index).await;
    assert_eq!(cluster.seen(first).state, ServerState::Follower);
    let expected = [(1, 100), (2, 100)];
    assert!(cluster.nodes.values().all(|node| node.machine.records() == expected));
    assert_eq!(cluster.leader_of(first, &[second]).await, second, "it disturbs nobody");
}

#[tokio::test]
async fn who_has_just_started_neither_votes_nor_campaigns() {
    let mut cluster = Cluster::new().await;
    let leader = cluster.leader_of(1, &[1, 2, 3]).await;
    let index = cluster.write(leader, vec![1; 10]).await;
    let [voter, candidate] = others(leader)[..] else { panic!("three nodes") };
    cluster.applied(voter, index).await;
    cluster.stop(voter).await;
    // Nobody keeps it from voting but itself: it hears of no leader.
    cluster.hub.isolate(voter);
    let asked = cluster.hub.count(|sent| sent.from == voter);
    let started = Instant::now();
    cluster.start(voter).await;
    let vote = Vote::new(99, candidate);
    let last = cluster.seen(leader).last_log_index;
    let last = last.map(|index| openraft::LogId::new(vote_leader(99), index));
    let candidacy = Candidacy { vote, last, is_transfer: true };
    let to_engine = cluster.nodes[&voter].engine;
    for ask in [Ask::Vote(candidacy), Ask::PreVote(candidacy)] {
        let bytes = Request { to_engine, ask }.encode().unwrap();
        let reply = reply(cluster.hub.serve(candidate, voter, bytes).await);
        assert!(matches!(reply, Reply::Refused(Refusal::NoVote(_))), "{reply:?}");
    }
    let vote = Vote::new_committed(99, leader);
    let ask = Ask::TransferLeader(Transfer { vote, to: voter, last: None });
    let bytes = Request { to_engine, ask }.encode().unwrap();
    let reply = reply(cluster.hub.serve(leader, voter, bytes).await);
    assert!(matches!(reply, Reply::Refused(Refusal::NotReady(_))), "{reply:?}");
    // It campaigns, but not before its time.
    until("a campaign", || cluster.hub.count(|sent| sent.from == voter) > asked).await;
    assert!(started.elapsed() >= cluster.times.voter_lease());
}

fn vote_leader(term: u64) -> openraft::vote::leader_id_std::CommittedLeaderId<u64> {
    openraft::vote::leader_id_std::CommittedLeaderId::new(term)
}

fn reply(served: Served) -> Reply {
    let Served::Reply(bytes) = served else { panic!("it is not for the store") };
    Reply::decode(bytes).unwrap()
}

#[tokio::test]
async fn what_a_follower_lacks_comes_in_pieces() {
    let cluster = Cluster::new().await;
    let leader = cluster.leader_of(1, &[1, 2, 3]).await;
    let behind = others(leader)[0];
    cluster.hub.isolate(behind);
    let mut index = 0;
    for number in 0..50 {
        index = cluster.write(leader, vec![number; 60_000]).await;
    }
    cluster.hub.heal();
    cluster.applied(behind, index).await;
    let expected: Vec<(u8, u32)> = (0..50).map(|number| (number, 60_000)).collect();
    assert_eq!(cluster.nodes[&behind].machine.records(), expected);
    let appends = cluster.hub.sent().into_iter().filter(|sent| sent.to == behind);
    let (mut longest, mut most) = (0, 0);
    for sent in appends {
        if let Ask::Append(Append { entries, .. }) = sent.ask {
            longest = longest.max(sent.bytes);
            most = most.max(entries.len());
        }
    }
    assert!(longest <= APPEND_BYTES_MAX, "{longest}");
    assert!(most > 2, "but several at once: {most}");
}

#[tokio::test]
async fn who_is_alone_raises_no_term() {
    let cluster = Cluster::new().await;
    let leader = cluster.leader_of(1, &[1, 2, 3]).await;
    let alone = others(leader)[0];
    let index = cluster.write(leader, vec![1; 10]).await;
    cluster.applied(alone, index).await;
    let term = cluster.seen(leader).current_term;
    cluster.hub.isolate(alone);
    let asks = |ask: &Ask| matches!(ask, Ask::PreVote(_));
    until("two campaigns", || cluster.hub.count(|sent| sent.from == alone && asks(&sent.ask)) >= 4)
        .await;
    cluster.hub.heal();
    let index = cluster.write(leader, vec![2; 10]).await;
    cluster.applied(alone, index).await;
    for id in 1..=3 {
        assert_eq!(cluster.seen(id).current_term, term);
    }
}

#[tokio::test]
async fn a_leader_hands_over_and_has_no_lease_any_more() {
    let cluster = Cluster::new().await;
    let leader = cluster.leader_of(1, &[1, 2, 3]).await;
    let next = others(leader)[1];
    let index = cluster.write(leader, vec![1; 10]).await;
    cluster.applied(next, index).await;
    until("a lease", || cluster.lease_is_valid(leader)).await;
    cluster.raft(leader).trigger().transfer_leader(next).await.unwrap();
    for id in 1..=3 {
        assert_eq!(cluster.leader_of(id, &[next]).await, next);
    }
    assert!(!cluster.lease_is_valid(leader));
    until("a lease", || cluster.lease_is_valid(next)).await;
    let index = cluster.write(next, vec![2; 10]).await;
    cluster.applied(leader, index).await;
}

#[tokio::test]
async fn a_leader_that_hears_no_answer_makes_room_for_another() {
    let cluster = Cluster::new().await;
    let leader = cluster.leader_of(1, &[1, 2, 3]).await;
    cluster.write(leader, vec![1; 10]).await;
    let left = others(leader);
    // What it sends still arrives, and is repeated.
    let pending = cluster.raft(leader).clone();
    left.iter().for_each(|id| cluster.hub.cut(*id, leader));
    let records = vec![bytes::Bytes::from_static(b"unknown")];
    let payload = ringwal_raft_fallback::raft::Payload::Extend {
        epoch: 1,
        base: 0,
        continues: false,
        records,
    };
    let waits = tokio::spawn(async move { pending.client_write(payload).await });
    let next = cluster.leader_of(left[0], &left).await;
    assert!(!cluster.lease_is_valid(leader));
    cluster.hub.heal();
    let index = cluster.write(next, vec![3; 10]).await;
    cluster.applied(leader, index).await;
    assert_eq!(cluster.leader_of(leader, &left).await, next);
    // It may have been done or not; but an outcome there is.
    let _ = waits.await.unwrap();
}

#[tokio::test]
async fn a_snapshot_goes_in_parts_to_who_lacks_what_was_purged() {
    let mut cluster = Cluster::new().await;
    let leader = cluster.leader_of(1, &[1, 2, 3]).await;
    let behind = others(leader)[0];
    cluster.stop(behind).await;
    let mut index = 0;
    for number in 0..30 {
        index = cluster.write(leader, vec![number; 10]).await;
    }
    cluster.raft(leader).trigger().snapshot().await.unwrap();
    cluster.raft(leader).wait(LONG).metrics(|seen| seen.snapshot.is_some(), "it").await.unwrap();
    cluster.raft(leader).trigger().purge_log(index).await.unwrap();
    cluster.raft(leader).wait(LONG).metrics(|seen| seen.purged.is_some(), "it").await.unwrap();
    cluster.start(behind).await;
    cluster.applied(behind, index).await;
    let expected: Vec<(u8, u32)> = (0..30).map(|number| (number, 10)).collect();
    assert_eq!(cluster.nodes[&behind].machine.records(), expected);
    let parts = cluster.hub.count(|sent| matches!(sent.ask, Ask::Snapshot(_)));
    assert!(parts >= 30 * 100_000 / SNAPSHOT_CHUNK_BYTES, "{parts}");
}

#[tokio::test]
async fn a_member_with_another_disk_is_told_so_and_takes_nothing() {
    let mut cluster = Cluster::new().await;
    let leader = cluster.leader_of(1, &[1, 2, 3]).await;
    let index = cluster.write(leader, vec![1; 10]).await;
    let lost = others(leader)[0];
    let before = cluster.nodes[&lost].engine;
    cluster.applied(lost, index).await;
    cluster.stop(lost).await;
    cluster.lose_disk(lost);
    cluster.start(lost).await;
    let engine = cluster.nodes[&lost].engine;
    let append = Append {
        vote: Vote::new_committed(1, leader),
        previous: None,
        entries: Vec::new(),
        committed: None,
    };
    for (to_engine, is_refused) in [(before, true), ([0; 16], true), (engine, false)] {
        let ask = Ask::Append(append.clone());
        let bytes = Request { to_engine, ask }.encode().unwrap();
        let reply = reply(cluster.hub.serve(leader, lost, bytes).await);
        assert_eq!(reply == Reply::Refused(Refusal::OtherDisk { engine }), is_refused, "{reply:?}");
    }
    // Of the store, whichever engine it has may be asked.
    let store = Ask::Store(bytes::Bytes::from_static(b"?"));
    let bytes = Request { to_engine: [0; 16], ask: store }.encode().unwrap();
    let served = cluster.hub.serve(leader, lost, bytes).await;
    assert_eq!(served, Served::Store(bytes::Bytes::from_static(b"?")));
    // Nobody speaks for somebody else.
    let bytes = Request { to_engine: engine, ask: Ask::Append(append) }.encode().unwrap();
    let reply = reply(cluster.hub.serve(others(leader)[1], lost, bytes).await);
    assert!(matches!(reply, Reply::Refused(Refusal::NotUnderstood(_))), "{reply:?}");
    let index = cluster.write(leader, vec![2; 10]).await;
    cluster.applied(others(leader)[1], index).await;
    assert_eq!(cluster.nodes[&lost].machine.records(), []);
}
