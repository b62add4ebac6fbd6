use std::sync::mpsc;
use std::time::Duration;

use ringwal_engine::boottime_ns;
use ringwal_replication::driven::Begun;
use ringwal_replication::{Ack, LedAppendError, LedCommitError};

use crate::setup::*;

#[test]
fn without_a_lease_nothing_is_taken_and_no_receipt_given() {
    let cluster = Cluster::new(1);
    let node = cluster.start(1);
    let Ok(Begun::Leading(leadership)) = node.begin(of(&node, 1), vec![]).wait() else {
        panic!("it leads")
    };
    let refused = leadership.append(STREAM, record(0), Ack::Local);
    assert!(matches!(refused, Err(LedAppendError::NoLease { epoch: 1 })), "{refused:?}");
    leadership.lease_until(boottime_ns());
    let refused = leadership.append(STREAM, record(0), Ack::Local);
    assert!(matches!(refused, Err(LedAppendError::NoLease { .. })), "it is over");
    let lease = || leadership.lease_until(boottime_ns() + 3_600_000_000_000);
    for (offset, ack) in [Ack::Local, Ack::Quorum].into_iter().enumerate() {
        lease();
        let pending = leadership.append(STREAM, record(0), ack).expect("there is one");
        wait_end(&node, STREAM, offset as u64 + 1);
        leadership.revoke_lease();
        let unknown = pending.wait();
        assert!(
            matches!(&unknown, Err(LedCommitError::Unknown { epoch: 1, why }) if why.contains("lease")),
            "{unknown:?}"
        );
    }
    lease();
    let pending = leadership.append(STREAM, record(0), Ack::Local).expect("there is one");
    assert_eq!(pending.wait().expect("there is one").receipt.offset(), 2);
    // The next epoch has none before it gets one, whatever the one before does.
    let Ok(Begun::Leading(next)) = node.begin(of(&node, 2), vec![(STREAM, 3)]).wait() else {
        panic!("it leads")
    };
    lease();
    assert!(matches!(
        next.append(STREAM, record(0), Ack::Local),
        Err(LedAppendError::NoLease { epoch: 2 })
    ));
    stop(node);
}

#[test]
fn appends_wait_while_too_much_is_not_committed() {
    let cluster = Cluster::new(2);
    let mut config = cluster.config(1);
    config.unreplicated_bytes_max = 64 << 10;
    let (leader, follower) = (cluster.start_as(1, config), cluster.start(2));
    let leadership = lead(&leader, 1);
    let mut appended = 0;
    let refused = loop {
        match leadership.try_append(STREAM, vec![1; 1024], Ack::Local) {
            Ok(pending) => pending.wait().map(|_| ()).expect("durable here"),
            Err(error) => break error,
        }
        appended += 1;
    };
    assert!(
        matches!(refused, LedAppendError::Unreplicated { bytes: 65792, max: 65536 }),
        "{refused:?}"
    );
    assert_eq!(appended, 64);
    std::thread::scope(|scope| {
        let (done, is_done) = mpsc::channel();
        for ack in [Ack::Local, Ack::Quorum] {
            let (done, leadership) = (done.clone(), leadership.clone());
            scope.spawn(move || {
                let pending = leadership.append(STREAM, [2; 100], ack);
                done.send(pending.expect("it leads").wait()).expect("somebody waits");
            });
        }
        assert!(is_done.recv_timeout(Duration::from_millis(200)).is_err(), "nobody follows");
        follow(&follower, of(&leader, 1), &[]);
        for _ in 0..2 {
            is_done.recv_timeout(LIMIT).expect("there is room").expect("a receipt");
        }
    });
    wait_end(&follower, STREAM, 66);
    // Many times as much, as it is committed.
    for _ in 0..1000 {
        drop(leadership.append(STREAM, vec![3; 1024], Ack::Local).expect("it leads"));
    }
    // Whoever waits when the lease ends does not wait on.
    stop(follower);
    while leadership.try_append(STREAM, vec![1; 1024], Ack::Local).is_ok() {}
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| leadership.append(STREAM, [2; 100], Ack::Local).map(drop));
        leadership.lease_until(boottime_ns() + 50_000_000);
        let refused = waiting.join().expect("no panic");
        assert!(matches!(refused, Err(LedAppendError::NoLease { .. })), "{refused:?}");
    });
    stop(leader);
}

/// Where no other is needed for a majority there is no bound.
#[test]
fn alone_nothing_waits() {
    let cluster = Cluster::new(1);
    let mut config = cluster.config(1);
    config.unreplicated_bytes_max = 64 << 10;
    let node = cluster.start_as(1, config);
    let leadership = lead(&node, 1);
    let pending: Vec<_> = (0..500)
        .map(|_| leadership.append(STREAM, vec![1; 1024], Ack::Quorum).expect("it leads"))
        .collect();
    for pending in pending {
        pending.wait().expect("alone");
    }
    assert_eq!(leadership.committed_end(STREAM), 500);
    stop(node);
}
