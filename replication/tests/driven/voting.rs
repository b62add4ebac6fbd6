use std::time::Duration;

use ringwal_replication::{Ack, Leadership, LedCommitError};

use crate::setup::*;

/// Whether a record is committed with who follows now. It may come when somebody else does.
fn quorum(leadership: &Leadership) -> ringwal_replication::Pending<ringwal_engine::Append> {
    leadership.append(STREAM, record(1), Ack::Quorum).expect("it leads")
}

fn is_late(pending: &mut ringwal_replication::Pending<ringwal_engine::Append>) -> bool {
    let late = pending.wait_timeout(Duration::from_millis(150));
    matches!(late, Err(LedCommitError::Late { is_durable_here: true, .. }))
}

#[test]
fn both_majorities_are_needed_while_the_membership_changes() {
    let cluster = Cluster::new(3);
    let [leader, second, third] = [1, 2, 3].map(|node| cluster.start(node));
    let leadership = lead(&leader, 1);
    follow(&second, of(&leader, 1), &[]);
    quorum(&leadership).wait().expect("two of three");
    leader.set_members(cluster.members_of(&[1, 2, 3], &[&[1, 2], &[1, 3]]));
    let mut pending = quorum(&leadership);
    assert!(is_late(&mut pending), "nobody of the other set has it");
    assert!(leadership.committed_end(STREAM) <= 1);
    follow(&third, of(&leader, 1), &[]);
    pending.wait().expect("one of each");
    // The leader is in none of them: its own disk does not count.
    leader.set_members(cluster.members_of(&[1, 2, 3], &[&[2, 3]]));
    quorum(&leadership).wait().expect("both");
    stop(third);
    let mut pending = quorum(&leadership);
    assert!(is_late(&mut pending), "leader and one of two");
    leader.set_members(cluster.members_of(&[1, 2], &[&[2]]));
    pending.wait().expect("the only one");
    [leader, second].into_iter().for_each(stop);
}

#[test]
fn who_only_learns_is_fed_and_does_not_count() {
    let cluster = Cluster::new(3);
    let [leader, learner] = [1, 3].map(|node| cluster.start(node));
    let leadership = lead(&leader, 1);
    leader.set_members(cluster.members_of(&[1, 2, 3], &[&[1, 2]]));
    follow(&learner, of(&leader, 1), &[]);
    let mut pending = quorum(&leadership);
    wait_end(&learner, STREAM, 1);
    assert!(is_late(&mut pending), "it only learns");
    leader.set_members(cluster.members_of(&[1, 3], &[&[1]]));
    pending.wait().expect("alone");
    leadership.committed(STREAM, 1).wait().expect("alone");
    quorum(&leadership).wait().expect("alone");
    wait_until("it learns what is committed, too", || {
        learner.stats().committed.get(&STREAM) == Some(&2)
    });
    // Nobody votes: nothing is committed any more, and what was stays so.
    leader.set_members(cluster.members_of(&[1, 3], &[]));
    assert!(is_late(&mut quorum(&leadership)));
    assert_eq!(leadership.committed_end(STREAM), 2);
    stop(leader);
    stop(learner);
}

#[test]
fn followers_come_and_go_while_it_leads() {
    let cluster = Cluster::new(3);
    let [leader, second, third] = [1, 2, 3].map(|node| cluster.start(node));
    leader.set_members(cluster.members_of(&[1], &[&[1]]));
    let leadership = lead(&leader, 1);
    quorum(&leadership).wait().expect("alone");
    follow(&second, of(&leader, 1), &[]);
    follow(&third, of(&leader, 1), &[]);
    leader.set_members(cluster.members_of(&[1, 2], &[&[1, 2]]));
    quorum(&leadership).wait().expect("the one that came");
    leader.set_members(cluster.members_of(&[1, 2, 3], &[&[1, 2, 3]]));
    wait_end(&third, STREAM, 2);
    quorum(&leadership).wait().expect("a majority");
    let nodes = || {
        let followers = leader.stats().followers;
        followers.iter().map(|f| (f.node.get(), f.is_connected)).collect::<Vec<_>>()
    };
    wait_until("both are there", || nodes() == [(2, true), (3, true)]);
    leader.set_members(cluster.members_of(&[1, 3], &[&[1, 3]]));
    wait_until("one is gone", || nodes() == [(3, true)]);
    let end = leader.engine().stream(STREAM).end();
    quorum(&leadership).wait().expect("the other one");
    wait_end(&third, STREAM, end + 1);
    leader.set_members(cluster.members_of(&[1, 3, 2], &[&[1, 2, 3]]));
    wait_end(&second, STREAM, end + 1);
    for node in [&second, &third] {
        assert!(contents(node, STREAM) == contents(&leader, STREAM));
    }
    [leader, second, third].into_iter().for_each(stop);
}

/// An epoch that everybody knows to have begun commits what it found, without a record of its own.
#[test]
fn what_it_found_is_committed_when_a_majority_has_it() {
    let cluster = Cluster::new(2);
    for node in [1, 2] {
        cluster.write(node, STREAM, 1, 10);
    }
    let (leader, follower) = (cluster.start(1), cluster.start(2));
    let leadership = lead(&leader, 2);
    let committed = leadership.committed(STREAM, 10);
    assert_eq!(leadership.committed_end(STREAM), 0);
    follow(&follower, of(&leader, 2), &[(STREAM, 10)]);
    committed.wait().expect("both have it");
    assert_eq!(leadership.committed_end(STREAM), 10);
    wait_until("the follower is told", || follower.stats().committed.get(&STREAM) == Some(&10));
    stop(leader);
    stop(follower);
}
