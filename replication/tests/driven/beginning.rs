use ringwal_engine::EpochStart;
use ringwal_replication::Ack;
use ringwal_replication::driven::{BeginError, Begun};
use ringwal_replication::node_id::RunId;
use ringwal_replication::promise::Promise;

use crate::setup::*;

#[test]
fn what_is_not_of_it_is_cut_and_kept() {
    let cluster = Cluster::new(1);
    cluster.write(1, STREAM, 1, 10);
    cluster.write(1, OTHER, 2, 3);
    let node = cluster.start(1);
    let begun = of_nobody_here(3);
    follow(&node, begun, &[(STREAM, 4)]);
    assert_eq!(contents(&node, STREAM), expected(1, 4));
    let epochs = node.engine().stream(STREAM).epochs();
    assert_eq!(epochs.last(), Some(&EpochStart { epoch: 3, start: 4 }));
    // A stream that is not named starts at 0.
    assert_eq!(contents(&node, OTHER), []);
    assert_eq!(orphans(&cluster, 1), 2);
    wait_until("what was cut is counted", || node.stats().records_cut == 6 + 3);
    for before in [begun, of_nobody_here(2), of(&node, 3)] {
        let again = node.begin(before, vec![(STREAM, 0)]).wait().expect("nothing is done");
        assert!(matches!(again, Begun::Before), "{again:?}");
    }
    stop(node);
    let node = cluster.start(1);
    assert_eq!(node.begun(), Some(begun));
    let again = node.begin(begun, vec![(STREAM, 0)]).wait().expect("nothing is done");
    assert!(matches!(again, Begun::Before), "{again:?}");
    assert_eq!((node.stats().promised_epoch, contents(&node, STREAM).len()), (3, 4));
    stop(node);
}

/// It ended in between: one stream is kept and cut, one is kept, and nothing says that it has begun.
#[test]
fn it_is_begun_again_after_a_crash_in_between() {
    let cluster = Cluster::new(1);
    cluster.write(1, STREAM, 1, 10);
    cluster.write(1, OTHER, 1, 10);
    let begun = of_nobody_here(2);
    let engine = cluster.engine(1);
    for stream in [STREAM, OTHER] {
        let kept = ringwal_replication::orphans::keep(&engine, stream, 4, 10, begun.into());
        kept.expect("there is space");
    }
    engine.stream(STREAM).truncate(4, 2).expect("queued").wait().expect("cut");
    engine.close().expect("a sound disk");
    let node = cluster.start(1);
    assert_eq!((node.begun(), orphans(&cluster, 1)), (None, 2));
    follow(&node, begun, &[(STREAM, 4), (OTHER, 4)]);
    assert_eq!(contents(&node, STREAM), expected(1, 4));
    assert_eq!(contents(&node, OTHER), expected(1, 4));
    assert_eq!((node.begun(), orphans(&cluster, 1)), (Some(begun), 2), "nothing is kept twice");
    stop(node);
}

#[test]
fn nothing_that_is_committed_is_cut() {
    let cluster = Cluster::new(1);
    cluster.write(1, OTHER, 1, 5);
    let node = cluster.start(1);
    follow(&node, of_nobody_here(1), &[(OTHER, 5)]);
    node.extend(extension(1, 0, 0..10)).wait().expect("it is added");
    let refused = node.begin(of_nobody_here(2), vec![(STREAM, 9)]).wait();
    assert!(
        matches!(
            refused,
            Err(BeginError::BelowCommitted { stream: STREAM, start: 9, committed: 10, .. })
        ),
        "{refused:?}"
    );
    // Nothing was changed, also of the stream that might have been cut.
    assert_eq!((node.begun(), node.stats().promised_epoch), (Some(of_nobody_here(1)), 1));
    assert_eq!(
        (contents(&node, STREAM), contents(&node, OTHER)),
        (expected(1, 10), expected(1, 5))
    );
    // What is promised next makes it durable that it is committed.
    node.promise(of_nobody_here(2)).wait().expect("a later one");
    stop(node);
    let node = cluster.start(1);
    let refused = node.begin(of_nobody_here(2), vec![(STREAM, 9)]).wait();
    assert!(matches!(refused, Err(BeginError::BelowCommitted { .. })), "{refused:?}");
    stop(node);
}

#[test]
fn a_leader_begins_at_its_own_ends_and_in_its_own_run_only() {
    let cluster = Cluster::new(1);
    cluster.write(1, STREAM, 1, 10);
    let node = cluster.start(1);
    for (starts, end) in
        [(vec![(STREAM, 9)], 10), (vec![], 10), (vec![(STREAM, 10), (OTHER, 1)], 0)]
    {
        let refused = node.begin(of(&node, 2), starts).wait();
        assert!(
            matches!(refused, Err(BeginError::NotItsEnd { epoch: 2, end: held, .. }) if held == end),
            "{refused:?}"
        );
    }
    assert_eq!((node.begun(), node.stats().promised_epoch), (None, 0));
    let other_run = Promise { run: RunId::new([8; 16]), ..of(&node, 2) };
    node.promise(other_run).wait().expect("of an earlier start");
    let refused = node.begin(of(&node, 2), vec![(STREAM, 10)]).wait();
    assert!(matches!(refused, Err(BeginError::OtherRun { .. })), "{refused:?}");
    // Its own, but of an earlier run: it does not lead.
    follow(&node, other_run, &[(STREAM, 10)]);
    let leadership = lead(&node, 3);
    let pending = leadership.append(STREAM, record(10), Ack::Quorum).expect("it leads");
    pending.wait().expect("alone");
    assert_eq!(contents(&node, STREAM)[10].0, 3);
    stop(node);
}

#[test]
fn below_a_later_promise_it_cuts_and_follows_nobody() {
    let cluster = Cluster::new(2);
    cluster.write(2, STREAM, 1, 10);
    let (leader, node) = (cluster.start(1), cluster.start(2));
    node.promise(of_nobody_here(5)).wait().expect("the first");
    let begun = of(&leader, 3);
    let overtaken = node.begin(begun, vec![(STREAM, 4)]).wait().expect("in the order of the log");
    assert!(matches!(overtaken, Begun::Overtaken), "{overtaken:?}");
    assert_eq!((node.begun(), contents(&node, STREAM)), (Some(begun), expected(1, 4)));
    // Its leader learns of the later one.
    let leadership = lead(&leader, 3);
    wait_until("it is deposed", || leadership.ended().is_some());
    let why = leadership.ended().expect("it is over");
    assert!(why.contains("epoch 5"), "{why}");
    stop(node);
    let node = cluster.start(2);
    assert_eq!((node.begun(), node.stats().promised_epoch), (Some(begun), 5));
    assert!(node.promise(of_nobody_here(4)).wait().is_err(), "5 is promised");
    stop(node);
    stop(leader);
}

#[test]
fn who_was_cut_off_is_cut_when_the_next_epoch_begins_and_follows_it() {
    let cluster = Cluster::new(3);
    let [first, second, third] = [1, 2, 3].map(|node| cluster.start(node));
    let old = lead(&first, 1);
    for node in [&second, &third] {
        follow(node, of(&first, 1), &[]);
    }
    for number in 0..50 {
        let pending = old.append(STREAM, record(number), Ack::Quorum).expect("it leads");
        pending.wait().expect("a majority");
    }
    wait_end(&second, STREAM, 50);
    wait_end(&third, STREAM, 50);
    // A majority promises; the leader goes on and does not know it.
    let new = of(&second, 2);
    for node in [&second, &third] {
        let promised = node.promise(new).wait().expect("a later one");
        assert_eq!(promised.held[&STREAM].end, 50);
        assert_eq!(promised.begun, Some(of(&first, 1)));
    }
    let mut local = 50;
    while let Ok(pending) = old.append(STREAM, record(local), Ack::Local) {
        // It is deposed as soon as it dials.
        let _ = pending.wait();
        local += 1;
    }
    let leadership = lead(&second, 2);
    follow(&third, new, &[(STREAM, 50)]);
    for number in 50..60 {
        let pending = leadership.append(STREAM, record(number), Ack::Quorum).expect("it leads");
        pending.wait().expect("a majority");
    }
    follow(&first, new, &[(STREAM, 50)]);
    wait_end(&first, STREAM, 60);
    wait_until("the same histories", || {
        contents(&first, STREAM) == contents(&second, STREAM)
            && contents(&third, STREAM) == contents(&second, STREAM)
    });
    assert!(contents(&first, STREAM)[50..].iter().all(|(epoch, ..)| *epoch == 2));
    [first, second, third].into_iter().for_each(stop);
}
