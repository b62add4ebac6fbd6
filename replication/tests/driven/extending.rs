use std::time::Duration;

use ringwal_engine::StreamId;
use ringwal_replication::Ack;
use ringwal_replication::driven::{ExtendError, Extension};

use crate::setup::*;

#[test]
fn without_a_session_records_are_added_once_and_late_ones_are_not() {
    let cluster = Cluster::new(1);
    let node = cluster.start(1);
    let early = node.extend(extension(1, 0, 0..3)).wait();
    assert!(matches!(early, Err(ExtendError::NotBegun { asked: 1, begun: None })), "{early:?}");
    let begun = of_nobody_here(1);
    follow(&node, begun, &[]);
    for _ in 0..2 {
        node.extend(extension(1, 0, 0..3)).wait().expect("it is added, or was");
        assert_eq!(contents(&node, STREAM), expected(1, 3));
    }
    // A part of it is here.
    node.extend(extension(1, 1, 1..5)).wait().expect("the rest is added");
    assert_eq!(contents(&node, STREAM), expected(1, 5));
    let lacks = node.extend(extension(1, 6, 6..8)).wait();
    assert!(matches!(lacks, Err(ExtendError::Lacks { end: 5, base: 6, .. })), "{lacks:?}");
    // One behind the other, without waiting; one is longer than a batch.
    let chain: Vec<_> = [(5, 900), (900, 901), (901, 1200)]
        .map(|(from, end)| node.extend(extension(1, from, from..end)))
        .into_iter()
        .collect();
    for extending in chain {
        extending.wait().expect("in their order");
    }
    assert_eq!(contents(&node, STREAM), expected(1, 1200));
    wait_until("all of it is committed", || node.stats().committed.get(&STREAM) == Some(&1200));
    let own = Extension { stream: StreamId::new(3), ..extension(1, 0, 0..1) };
    assert!(matches!(node.extend(own).wait(), Err(ExtendError::Failed(_))));
    // A later promise does not take it away: its epoch is the last that has begun.
    node.promise(of_nobody_here(2)).wait().expect("a later one");
    node.extend(extension(1, 1200, 1200..1201)).wait().expect("in the order of the log");
    follow(&node, of_nobody_here(2), &[(STREAM, 1201)]);
    let late = node.extend(extension(1, 1201, 1201..1202)).wait();
    assert!(
        matches!(late, Err(ExtendError::NotBegun { begun: Some(b), .. }) if b == of_nobody_here(2)),
        "{late:?}"
    );
    assert_eq!(contents(&node, STREAM), expected(1, 1201));
    stop(node);
    // Replayed after a restart it changes nothing.
    let node = cluster.start(1);
    let late = node.extend(extension(1, 0, 0..3)).wait();
    assert!(matches!(late, Err(ExtendError::NotBegun { .. })), "{late:?}");
    assert_eq!(contents(&node, STREAM), expected(1, 1201));
    stop(node);
}

#[test]
fn records_of_an_older_epoch_are_not_taken_for_those_of_an_extension() {
    let cluster = Cluster::new(1);
    cluster.write(1, STREAM, 1, 10);
    let node = cluster.start(1);
    follow(&node, of_nobody_here(2), &[(STREAM, 10)]);
    let below = node.extend(extension(2, 8, 8..10)).wait();
    assert!(
        matches!(&below, Err(ExtendError::Failed(why)) if why.contains("in epoch 1")),
        "{below:?}"
    );
    assert_ne!(node.stats().committed.get(&STREAM), Some(&10));
    node.extend(extension(2, 10, 10..12)).wait().expect("from its start on");
    assert_eq!(
        contents(&node, STREAM)[9..].iter().map(|(e, ..)| *e).collect::<Vec<_>>(),
        [1, 2, 2]
    );
    stop(node);
}

/// In the same epoch: by offset and epoch alone they would be taken for those that are here.
#[test]
fn other_records_in_the_same_epoch_are_said_loudly_and_nothing_is_changed() {
    let cluster = Cluster::new(2);
    let node = cluster.start(1);
    follow(&node, of_nobody_here(1), &[]);
    node.extend(extension(1, 0, 0..5)).wait().expect("it is added");
    let mut other = extension(1, 2, 2..8);
    other.records[1] = bytes::Bytes::from_static(b"another history");
    let differs = node.extend(other.clone()).wait();
    assert!(
        matches!(differs, Err(ExtendError::Differs { stream: STREAM, epoch: 1, offset: 3 })),
        "{differs:?}"
    );
    assert_eq!(contents(&node, STREAM), expected(1, 5));
    wait_until("it is counted", || node.stats().differences == 1);
    assert_eq!(node.stats().committed.get(&STREAM), Some(&5), "nor is more committed");
    // One of two histories is wrong: this node counts for nobody any more.
    let after = node.extend(extension(1, 5, 5..6)).wait();
    assert!(
        matches!(&after, Err(ExtendError::Failed(why)) if why.contains("another record")),
        "{after:?}"
    );
    stop(node);
    // What is trimmed says nothing.
    let node = cluster.start(1);
    node.engine().stream(STREAM).trim(4).expect("a prefix");
    node.extend(Extension { base: 2, ..other }).wait().expect("it is trimmed there");
    assert_eq!(node.engine().stream(STREAM).end(), 8);
    stop(node);
    // With a session.
    let (leader, follower) = (cluster.start(1), cluster.start(2));
    let leadership = lead(&leader, 2);
    follow(&follower, of(&leader, 2), &[(STREAM, 8)]);
    let pending = leadership.append(STREAM, record(8), Ack::Quorum).expect("it leads");
    assert_eq!(pending.wait().expect("a majority").receipt.offset(), 8);
    for node in [&follower, &leader] {
        let differs = node.extend(extension(2, 8, 9..12)).wait();
        let is_said = matches!(differs, Err(ExtendError::Differs { epoch: 2, offset: 8, .. }));
        assert!(is_said, "{differs:?}");
        assert_eq!(node.engine().stream(STREAM).end(), 9);
        wait_until("it is counted", || node.stats().differences == 1);
        let after = node.extend(extension(2, 8, 8..11)).wait();
        assert!(matches!(after, Err(ExtendError::Failed(_))), "{after:?}");
    }
    stop(leader);
    stop(follower);
}

#[test]
fn a_leader_extends_and_those_who_wait_for_a_majority_learn_it() {
    let cluster = Cluster::new(3);
    let leader = cluster.start(1);
    let leadership = lead(&leader, 1);
    for number in 0..3 {
        let pending = leadership.append(STREAM, record(number), Ack::Local).expect("it leads");
        pending.wait().expect("durable here");
    }
    let mut quorum = leadership.append(STREAM, record(3), Ack::Quorum).expect("it leads");
    assert!(quorum.wait_timeout(Duration::from_millis(100)).is_err(), "nobody follows");
    assert_eq!(leadership.committed_end(STREAM), 0);
    let committed = leadership.committed(STREAM, 6);
    // The whole tail, and new ones.
    leader.extend(extension(1, 0, 0..6)).wait().expect("it leads");
    committed.wait().expect("the entry is committed");
    quorum.wait().expect("the entry is committed");
    assert_eq!((leadership.committed_end(STREAM), contents(&leader, STREAM)), (6, expected(1, 6)));
    // Who comes later gets all of it, and knows it is committed.
    let follower = cluster.start(2);
    follow(&follower, of(&leader, 1), &[]);
    wait_end(&follower, STREAM, 6);
    assert_eq!(contents(&follower, STREAM), expected(1, 6));
    wait_until("it is told", || follower.stats().committed.get(&STREAM) == Some(&6));
    leader.extend(extension(1, 6, 6..9)).wait().expect("with a session");
    wait_end(&follower, STREAM, 9);
    let waiting = leadership.committed(STREAM, 100);
    leadership.retire("the test is over");
    assert!(waiting.wait().is_err(), "the term is over");
    stop(leader);
    stop(follower);
}

/// The entry is applied here before its leader applies it: what the leader sends then is held already.
#[test]
fn a_follower_may_be_ahead_of_its_leader_and_counts_when_that_has_sent_as_much() {
    let cluster = Cluster::new(2);
    let (leader, follower) = (cluster.start(1), cluster.start(2));
    let leadership = lead(&leader, 1);
    follow(&follower, of(&leader, 1), &[]);
    let append = |number: u64| {
        let pending = leadership.append(STREAM, record(number), Ack::Quorum).expect("it leads");
        pending.wait().expect("a majority")
    };
    append(0);
    let mut next = 1;
    for round in 0..20 {
        let end = next + 1 + round % 3;
        follower.extend(extension(1, next, next..end)).wait().expect("with a session");
        leader.extend(extension(1, next, next..end)).wait().expect("it leads");
        // Its offset is the one behind: the leader has the same.
        assert_eq!(append(end).receipt.offset(), end);
        next = end + 1;
    }
    // The beginning of a batch came another way.
    follower.extend(extension(1, next, next..next + 2)).wait().expect("with a session");
    let batch = (next..next + 6).map(record);
    let pending = leadership.append_batch(STREAM, batch, Ack::Quorum).expect("it leads");
    pending.wait().expect("a majority");
    append(next + 6);
    // A stream of which the leader has nothing yet.
    let other = |base, numbers| Extension { stream: OTHER, ..extension(1, base, numbers) };
    follower.extend(other(0, 0..2)).wait().expect("with a session");
    let pending =
        leadership.append_batch(OTHER, (0..2).map(record), Ack::Quorum).expect("it leads");
    pending.wait().expect("a majority");
    // Ahead, and then it connects again.
    follower.extend(other(2, 2..4)).wait().expect("with a session");
    stop(follower);
    let follower = cluster.start(2);
    let pending =
        leadership.append_batch(OTHER, (2..5).map(record), Ack::Quorum).expect("it leads");
    pending.wait().expect("a majority");
    for stream in [STREAM, OTHER] {
        assert!(contents(&follower, stream) == contents(&leader, stream), "stream {stream}");
    }
    assert_eq!(contents(&leader, STREAM), expected(1, next + 7));
    assert_eq!((leader.stats().violations, follower.stats().violations), (0, 0));
    stop(leader);
    stop(follower);
}

#[test]
fn what_is_before_an_extension_comes_from_the_leader_or_is_said_to_be_lacking() {
    let cluster = Cluster::new(2);
    let (leader, follower) = (cluster.start(1), cluster.start(2));
    let leadership = lead(&leader, 1);
    follow(&follower, of(&leader, 1), &[]);
    for round in 0..20 {
        let base = round * 11 + 10;
        let pending: Vec<_> = (base - 10..base)
            .map(|number| leadership.append(STREAM, record(number), Ack::Local).expect("it leads"))
            .collect();
        let extending = follower.extend(extension(1, base, base..base + 1));
        for pending in pending {
            pending.wait().expect("durable here");
        }
        leader.extend(extension(1, base, base..base + 1)).wait().expect("it leads");
        extending.wait().expect("the leader brings what is before");
    }
    assert_eq!(contents(&follower, STREAM), expected(1, 220));
    let lacks = follower.extend(extension(1, 300, 300..301)).wait();
    assert!(matches!(lacks, Err(ExtendError::Lacks { end: 220, base: 300, .. })), "{lacks:?}");
    // The session goes on.
    let pending = leadership.append(STREAM, record(220), Ack::Quorum).expect("it leads");
    pending.wait().expect("a majority");
    stop(leader);
    stop(follower);
}
