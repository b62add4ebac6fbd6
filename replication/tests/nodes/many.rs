//! Many followers, and many streams.

use super::*;

#[test]
fn eight_followers_follow_and_four_of_them_make_a_majority() {
    let cluster = Cluster::new(9);
    let leader = cluster.start(1);
    let mut followers: Vec<_> = (2..=9).map(|node| cluster.start(node)).collect();
    let leadership = leader.lead(1).expect("a new epoch");
    let append = |number| leadership.append(STREAM, record(number), Ack::Quorum).expect("it leads");
    let pending: Vec<_> = (0..200).map(append).collect();
    for pending in pending {
        pending.wait().expect("a majority");
    }
    let expected = contents(&leader, STREAM);
    for follower in &followers {
        wait_end(follower, STREAM, 200);
        wait_until("it knows that it is in step", || {
            let stats = follower.stats();
            stats.committed.get(&STREAM) == Some(&200)
                && stats.following.is_some_and(|following| following.lag_records == 0)
        });
        assert!(contents(follower, STREAM) == expected);
    }
    followers.drain(4..).for_each(stop);
    append(200).wait().expect("five of nine");
    followers.drain(3..).for_each(stop);
    let late = append(201).wait_timeout(Duration::from_millis(200));
    assert!(matches!(late, Err(LedCommitError::Late { .. })), "four of nine: {late:?}");
    followers.into_iter().chain([leader]).for_each(stop);
}

#[test]
fn ten_thousand_streams_reach_those_who_follow_and_one_that_comes_late() {
    const STREAMS: u64 = 10_000;
    let cluster = Cluster::new(3);
    let start = |node| {
        Node::start(cluster.engine_of(node, 8 << 20), cluster.config(node)).expect("it starts")
    };
    let [leader, first] = [1, 2].map(start);
    let leadership = leader.lead(1).expect("a new epoch");
    let streams = || (100..100 + STREAMS).map(StreamId::new);
    let append = |round: u64| {
        let append = |stream: StreamId| {
            let record = stream.get().wrapping_mul(round + 1).to_le_bytes();
            leadership.append(stream, record, Ack::Quorum).expect("it leads")
        };
        let pending: Vec<_> = streams().map(append).collect();
        for pending in pending {
            assert_eq!(pending.wait().expect("a majority").receipt.offset(), round);
        }
    };
    (0..2).for_each(append);
    let late = start(3);
    append(2);
    for node in [&first, &late] {
        for stream in streams() {
            wait_end(node, stream, 3);
        }
        assert_eq!(
            node.engine().streams().iter().filter(|s| s.stream.get() >= 100).count(),
            10_000
        );
    }
    // Each record is a read of the device: of some streams.
    for stream in streams().step_by(16) {
        let expected = contents(&leader, stream);
        assert_eq!(expected.len(), 3);
        for node in [&first, &late] {
            assert!(contents(node, stream) == expected, "stream {stream} differs");
        }
    }
    [leader, first, late].into_iter().for_each(stop);
}
