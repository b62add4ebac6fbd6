use std::sync::atomic::{AtomicBool, Ordering};

use ringwal_replication::driven::{Begun, PromiseError};
use ringwal_replication::node_id::RunId;
use ringwal_replication::promise::Promise;
use ringwal_replication::repair::Marker;
use ringwal_replication::{Ack, LeadError, LedCommitError, Node};

use crate::setup::*;

fn count(counts: &[(&'static str, u64)], which: &str) -> u64 {
    counts.iter().find(|(name, _)| *name == which).map_or(0, |(_, count)| *count)
}

#[test]
fn a_hello_promises_nothing_and_who_has_begun_is_followed_at_once() {
    let cluster = Cluster::new(2);
    let mut config = cluster.config(1);
    // A pause that grew with each refusal would outlast this test.
    config.reconnect_max = std::time::Duration::from_secs(3600);
    let (leader, follower) = (cluster.start_as(1, config), cluster.start(2));
    assert!(matches!(follower.lead(9), Err(LeadError::Driven)));
    let leadership = lead(&leader, 1);
    wait_until("it is refused again and again", || {
        count(&leader.stats().followers[0].refused_by, "not_begun") >= 15
    });
    let stats = follower.stats();
    assert_eq!((stats.promised_epoch, follower.begun()), (0, None));
    follower.promise(of(&leader, 1)).wait().expect("nothing is in the way");
    let refused = count(&leader.stats().followers[0].refused_by, "not_begun");
    wait_until("a promise is not enough", || {
        count(&leader.stats().followers[0].refused_by, "not_begun") > refused + 2
    });
    assert!(!leader.stats().followers[0].is_connected);
    follow(&follower, of(&leader, 1), &[]);
    let pending = leadership.append(STREAM, record(0), Ack::Quorum).expect("it leads");
    pending.wait().expect("a majority");
    assert_eq!(follower.begun(), Some(of(&leader, 1)));
    // The same promise again takes nothing away from who leads and who follows in it.
    for node in [&leader, &follower] {
        let promised = node.promise(of(&leader, 1)).wait().expect("the same");
        assert_eq!((promised.held[&STREAM].end, promised.begun), (1, Some(of(&leader, 1))));
    }
    assert_eq!(leadership.ended(), None);
    // It is followed again after a restart, with nothing said.
    stop(follower);
    let follower = cluster.start(2);
    assert_eq!(follower.begun(), Some(of(&leader, 1)));
    let pending = leadership.append(STREAM, record(1), Ack::Quorum).expect("it leads");
    pending.wait().expect("a majority");
    stop(leader);
    stop(follower);
}

#[test]
fn a_promise_waits_for_what_is_in_flight_and_says_it_and_nothing_comes_behind_it() {
    let cluster = Cluster::new(1);
    let node = cluster.start(1);
    let leadership = lead(&node, 1);
    let is_over = AtomicBool::new(false);
    let (acknowledged, promised) = std::thread::scope(|scope| {
        let appending = scope.spawn(|| {
            let mut pending = Vec::new();
            while let Ok(token) = leadership.append(STREAM, record(7), Ack::Local) {
                pending.push(token);
            }
            is_over.store(true, Ordering::SeqCst);
            let mut acknowledged = 0;
            for token in pending {
                match token.wait() {
                    Ok(durable) => acknowledged = durable.receipt.offset() + 1,
                    Err(
                        LedCommitError::Unknown { epoch: 1, .. }
                        | LedCommitError::NotLeading { epoch: 1 },
                    ) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            acknowledged
        });
        wait_end(&node, STREAM, 500);
        let promised = node.promise(of_nobody_here(2)).wait().expect("a later one");
        (appending.join().expect("no panic"), promised)
    });
    assert!(is_over.load(Ordering::SeqCst));
    let held = promised.held[&STREAM].end;
    assert!(acknowledged <= held && held >= 500, "{acknowledged} were acknowledged of {held}");
    assert_eq!(node.engine().stream(STREAM).end(), held);
    assert_eq!(contents(&node, STREAM).len() as u64, held);
    assert!(leadership.ended().is_some_and(|why| why.contains("epoch 2")));
    stop(node);
}

fn refused(node: &Node, promise: Promise) -> Promise {
    match node.promise(promise).wait() {
        Err(PromiseError::Promised { asked, promised }) if asked == promise.epoch => promised,
        outcome => panic!("{outcome:?}"),
    }
}

#[test]
fn a_promise_survives_a_restart_and_shuts_out_older_ones_and_other_runs() {
    let cluster = Cluster::new(1);
    let mut node = cluster.start(1);
    let five = of_nobody_here(5);
    node.promise(five).wait().expect("the first");
    for _ in 0..2 {
        assert_eq!(refused(&node, of_nobody_here(4)), five);
        assert_eq!(refused(&node, Promise { run: RunId::new([4; 16]), ..five }), five);
        assert_eq!(refused(&node, of(&node, 5)), five);
        let promised = node.promise(five).wait().expect("the same");
        assert_eq!((promised.held.len(), promised.begun), (0, None));
        stop(node);
        node = cluster.start(1);
    }
    assert!(matches!(node.promise(of_nobody_here(0)).wait(), Err(PromiseError::NoEpoch(0))));
    node.promise(of_nobody_here(6)).wait().expect("a later one");
    // Many at once: one after the other, and none of them is lost.
    let many: Vec<_> = (7..40).map(|epoch| node.promise(of_nobody_here(epoch))).collect();
    for promising in many {
        promising.wait().expect("each is later than the one before");
    }
    assert_eq!(refused(&node, of_nobody_here(38)).epoch, 39);
    stop(node);
}

#[test]
fn a_node_that_was_repaired_promises_nothing_and_follows() {
    let cluster = Cluster::new(1);
    cluster.write(1, STREAM, 1, 3);
    let ends = [(STREAM, 4)].into();
    let marker = Marker { ends, ..Marker::default() };
    marker.store(cluster.path(1)).expect("a directory");
    let node = cluster.start(1);
    let promised = node.promise(of_nobody_here(2)).wait();
    assert!(matches!(promised, Err(PromiseError::Repairing { .. })), "{promised:?}");
    let begun = node.begin(of_nobody_here(2), vec![(STREAM, 3)]).wait();
    assert!(matches!(begun, Ok(Begun::Following)), "following brings it back: {begun:?}");
    assert_eq!((node.begun(), contents(&node, STREAM).len()), (Some(of_nobody_here(2)), 3));
    stop(node);
}

#[test]
fn a_node_that_nobody_drives_says_so_and_one_that_is_closed_too() {
    let cluster = Cluster::new(1);
    let node = Node::start(cluster.engine(1), cluster.config(1)).expect("it starts");
    let promised = node.promise(of_nobody_here(1)).wait();
    assert!(matches!(promised, Err(PromiseError::NotDriven)), "{promised:?}");
    let leadership = node.lead(1).expect("as ever");
    let pending = leadership.append(STREAM, record(0), Ack::Quorum).expect("without a lease");
    pending.wait().expect("alone");
    stop(node);
}
