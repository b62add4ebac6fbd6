use ringwal_replication::Ack;
use ringwal_replication::driven::ExtendError;
use ringwal_replication::fetch::FetchFromError;

use crate::setup::*;

#[test]
fn what_is_lacking_comes_from_another_node() {
    let cluster = Cluster::new(2);
    cluster.write(1, STREAM, 1, 3000);
    cluster.write(1, OTHER, 2, 10);
    let (other, node) = (cluster.start(1), cluster.start(2));
    node.fetch_from(cluster.member(1), vec![(STREAM, 0..1000)]).wait().expect("it has them");
    let end = node.engine().stream(STREAM).end();
    assert!(end >= 1000, "whole frames come: {end}");
    // An extension says what is lacking, and is added when that has come.
    follow(&node, of_nobody_here(3), &[(STREAM, 3000), (OTHER, 10)]);
    follow(&other, of_nobody_here(3), &[(STREAM, 3000), (OTHER, 10)]);
    let extension = extension(3, 3000, 3000..3010);
    let lacks = node.extend(extension.clone()).wait();
    assert!(matches!(lacks, Err(ExtendError::Lacks { base: 3000, end: held, .. }) if held == end));
    let wants = vec![(STREAM, end..3000), (OTHER, 0..10)];
    node.fetch_from(cluster.member(1), wants.clone()).wait().expect("it has them");
    node.extend(extension.clone()).wait().expect("nothing is lacking");
    other.extend(extension).wait().expect("nothing is lacking");
    for stream in [STREAM, OTHER] {
        assert!(contents(&node, stream) == contents(&other, stream), "stream {stream}");
    }
    node.fetch_from(cluster.member(1), wants).wait().expect("nothing is lacking");
    stop(other);
    node.fetch_from(cluster.member(1), vec![(STREAM, 0..10)]).wait().expect("nobody is asked");
    let unreached = node.fetch_from(cluster.member(1), vec![(STREAM, 0..9999)]).wait();
    assert!(matches!(unreached, Err(FetchFromError::Fetch(_))), "{unreached:?}");
    stop(node);
}

/// The leader that is followed has not got it yet, and somebody else has.
#[test]
fn who_follows_goes_on_behind_what_it_has_fetched() {
    let cluster = Cluster::new(3);
    let [leader, other, node] = [1, 2, 3].map(|node| cluster.start(node));
    let leadership = lead(&leader, 1);
    for follower in [&other, &node] {
        follow(follower, of(&leader, 1), &[]);
    }
    let append = |number| {
        let pending = leadership.append(STREAM, record(number), Ack::Quorum).expect("it leads");
        pending.wait().expect("a majority")
    };
    append(0);
    wait_end(&other, STREAM, 1);
    wait_end(&node, STREAM, 1);
    other.extend(extension(1, 1, 1..5)).wait().expect("with a session");
    let lacks = node.extend(extension(1, 5, 5..6)).wait();
    assert!(matches!(lacks, Err(ExtendError::Lacks { end: 1, base: 5, .. })), "{lacks:?}");
    node.fetch_from(cluster.member(2), vec![(STREAM, 1..5)]).wait().expect("it has them");
    node.extend(extension(1, 5, 5..6)).wait().expect("nothing is lacking");
    for holder in [&other, &leader] {
        holder.extend(extension(1, 1, 1..6)).wait().expect("nothing is lacking");
    }
    stop(other);
    assert_eq!(append(6).receipt.offset(), 6);
    assert_eq!(
        (contents(&node, STREAM), contents(&leader, STREAM)),
        (expected(1, 7), expected(1, 7))
    );
    assert_eq!((leader.stats().violations, node.stats().violations), (0, 0));
    stop(leader);
    stop(node);
}

#[test]
fn what_does_not_come_says_why() {
    let cluster = Cluster::new(2);
    cluster.write(1, STREAM, 2, 100);
    cluster.write(1, OTHER, 2, 100);
    cluster.write(2, OTHER, 1, 10);
    let (other, node) = (cluster.start(1), cluster.start(2));
    let fetch = |stream, end| {
        let outcome = node.fetch_from(cluster.member(1), vec![(stream, 0..end)]).wait();
        outcome.expect_err("it does not come")
    };
    let error = fetch(STREAM, 101);
    assert!(
        matches!(&error, FetchFromError::Lacks { why, .. } if why.contains("ends at 100")),
        "{error}"
    );
    let error = fetch(ringwal_engine::StreamId::new(40), 1);
    assert!(
        matches!(&error, FetchFromError::Lacks { why, .. } if why.contains("not there")),
        "{error}"
    );
    let error = fetch(OTHER, 100);
    assert!(
        matches!(&error, FetchFromError::Lacks { why, .. } if why.contains("history")),
        "{error}"
    );
    let mut wrong = cluster.member(2).clone();
    wrong.address.clone_from(&cluster.member(1).address);
    let error = other.fetch_from(&wrong, vec![(STREAM, 0..200)]).wait().expect_err("itself");
    assert!(
        matches!(error, FetchFromError::Fetch(_) | FetchFromError::OtherNode { .. }),
        "{error}"
    );
    other.engine().stream(STREAM).trim(30).expect("it is there");
    let error = fetch(STREAM, 100);
    assert!(matches!(error, FetchFromError::Trimmed { stream: STREAM, first: 30, .. }), "{error}");
    assert_eq!((contents(&node, STREAM).len(), contents(&node, OTHER).len()), (0, 10));
    let _leadership = lead(&node, 3);
    let error = fetch(STREAM, 100);
    assert!(matches!(error, FetchFromError::Changed(_)), "{error}");
    stop(other);
    stop(node);
}
