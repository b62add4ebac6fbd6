use super::*;

const VOTER_LEASE: Duration = Duration::from_nanos(500);
const DRIFT: Duration = Duration::from_nanos(100);
const LENGTH: u64 = 400;

fn lease(sets: &[&[u64]]) -> Lease {
    let mut lease = Lease::new(1, VOTER_LEASE, DRIFT);
    lease.set_voters(sets.iter().map(|set| set.iter().copied().collect()).collect());
    lease
}

/// An Append that was sent and taken.
fn take(lease: &mut Lease, term: u64, node: u64, at_ns: u64) {
    let sent = lease.handle_sent(term, node, at_ns).unwrap();
    lease.handle_acked(sent);
}

#[test]
fn it_runs_from_the_latest_sending_that_a_majority_took() {
    let mut lease = lease(&[&[1, 2, 3, 4, 5]]);
    assert_eq!(lease.valid_until(50), (0, None));
    take(&mut lease, 7, 2, 10);
    assert_eq!(lease.valid_until(50), (7, None), "two of five");
    take(&mut lease, 7, 3, 20);
    assert_eq!(lease.valid_until(50), (7, Some(10 + LENGTH)));
    take(&mut lease, 7, 4, 30);
    assert_eq!(lease.valid_until(50), (7, Some(20 + LENGTH)), "3 and 4, and this node itself");
    take(&mut lease, 7, 9, 40);
    assert_eq!(lease.valid_until(50), (7, Some(20 + LENGTH)), "9 does not vote");
}

#[test]
fn what_is_sent_and_not_taken_counts_for_nothing() {
    let mut lease = lease(&[&[1, 2, 3]]);
    take(&mut lease, 1, 2, 10);
    for at_ns in (100..2_000).step_by(100) {
        let _ = (lease.handle_sent(1, 2, at_ns), lease.handle_sent(1, 3, at_ns));
        assert_eq!(lease.valid_until(at_ns), (1, Some(10 + LENGTH)));
    }
}

#[test]
fn an_answer_that_is_overtaken_takes_nothing_back() {
    let mut lease = lease(&[&[1, 2]]);
    let early = lease.handle_sent(1, 2, 10).unwrap();
    take(&mut lease, 1, 2, 20);
    lease.handle_acked(early);
    assert_eq!(lease.valid_until(30), (1, Some(20 + LENGTH)));
}

#[test]
fn who_gets_no_answer_is_quiet_for_a_while_and_tries_again() {
    let mut lease = lease(&[&[1, 2, 3]]);
    let may = |lease: &mut Lease, at_ns| lease.handle_sent(1, 2, at_ns).is_some();
    assert!(may(&mut lease, 1_000), "the first of the term");
    assert!(may(&mut lease, 1_499));
    assert!(!may(&mut lease, 1_500), "silence for one lease");
    assert!(!may(&mut lease, 2_999));
    assert!(may(&mut lease, 3_000));
    assert!(may(&mut lease, 4_499));
    assert!(!may(&mut lease, 4_500));
    let sent = lease.handle_sent(1, 3, 6_000).unwrap();
    lease.handle_acked(sent);
    assert!(may(&mut lease, 6_499), "node 3 has answered");
    assert!(!may(&mut lease, 6_500));
    assert!(lease.handle_sent(2, 2, 6_500).is_some(), "elected again");
}

#[test]
fn who_is_alone_or_knows_no_voters_is_never_quiet() {
    for sets in [&[][..], &[&[1][..]]] {
        let mut lease = lease(sets);
        assert!((0..20_000).step_by(100).all(|at_ns| lease.handle_sent(1, 2, at_ns).is_some()));
    }
}

#[test]
fn each_of_two_sets_needs_its_majority() {
    let mut lease = lease(&[&[1, 2, 3], &[3, 4, 5]]);
    take(&mut lease, 2, 2, 10);
    assert_eq!(lease.valid_until(50), (2, None), "nobody of the new set");
    take(&mut lease, 2, 3, 20);
    take(&mut lease, 2, 4, 5);
    assert_eq!(lease.valid_until(50), (2, Some(5 + LENGTH)), "this node is not of the new set");
    take(&mut lease, 2, 5, 30);
    assert_eq!(lease.valid_until(50), (2, Some(20 + LENGTH)));
    lease.set_voters(vec![BTreeSet::from([3, 4, 5])]);
    assert_eq!(lease.valid_until(50), (2, Some(20 + LENGTH)));
}

#[test]
fn without_voters_there_is_none_and_alone_it_goes_on_for_ever() {
    assert_eq!(lease(&[]).valid_until(9), (0, None));
    assert_eq!(lease(&[&[]]).valid_until(9), (0, None));
    let mut alone = lease(&[&[1]]);
    alone.handle_term(3);
    assert_eq!(alone.valid_until(9), (3, Some(9 + LENGTH)));
    assert_eq!(alone.valid_until(9_000), (3, Some(9_000 + LENGTH)));
}

#[test]
fn a_later_term_ends_it_also_for_what_is_on_its_way() {
    let mut lease = lease(&[&[1, 2, 3]]);
    let before = lease.handle_sent(4, 2, 10).unwrap();
    take(&mut lease, 4, 2, 20);
    lease.handle_term(6);
    assert_eq!(lease.valid_until(30), (6, None));
    lease.handle_acked(before);
    assert_eq!(lease.valid_until(30), (6, None), "taken in term 4");
    // A connection of the old term is slow to end.
    take(&mut lease, 4, 3, 30);
    lease.handle_term(5);
    assert_eq!(lease.valid_until(40), (6, None));
    take(&mut lease, 6, 3, 40);
    assert_eq!(lease.valid_until(50), (6, Some(40 + LENGTH)));
}

#[test]
fn a_machine_that_was_suspended_finds_it_lapsed() {
    let mut lease = lease(&[&[1, 2, 3]]);
    let sent = lease.handle_sent(1, 2, 1_000).unwrap();
    let awake_ns = 10_000_000;
    lease.handle_acked(sent);
    let (_, until) = lease.valid_until(awake_ns);
    assert_eq!(until, Some(1_000 + LENGTH), "the answer lay there meanwhile");
    assert!(until.is_some_and(|until_ns| until_ns < awake_ns));
    take(&mut lease, 1, 3, awake_ns);
    assert_eq!(lease.valid_until(awake_ns + 1), (1, Some(awake_ns + LENGTH)));
}

#[test]
fn who_hands_over_has_none_for_the_rest_of_the_term() {
    let mut lease = lease(&[&[1, 2, 3]]);
    let sent = lease.handle_sent(3, 2, 10).unwrap();
    lease.end(3);
    lease.handle_acked(sent);
    take(&mut lease, 3, 3, 20);
    assert_eq!(lease.valid_until(30), (3, None));
    lease.end(2);
    take(&mut lease, 5, 3, 40);
    assert_eq!(lease.valid_until(50), (5, Some(40 + LENGTH)), "elected again");
    lease.end(4);
    assert_eq!(lease.valid_until(50), (5, Some(40 + LENGTH)));
}

#[test]
fn the_keeper_tells_of_every_change_in_order() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    let now = Arc::new(AtomicU64::new(10));
    let told = Arc::new(Mutex::new(Vec::new()));
    let (clock, published) = (now.clone(), told.clone());
    let keeper = LeaseKeeper::new(
        lease(&[&[1, 2, 3]]),
        move || clock.load(Ordering::Relaxed),
        move |term, until| published.lock().unwrap().push((term, until)),
    );
    let sent = keeper.handle_sent(1, 2).unwrap();
    now.store(70, Ordering::Relaxed);
    keeper.handle_acked(sent);
    keeper.set_voters(vec![BTreeSet::from([1, 3])]);
    keeper.end(1);
    keeper.handle_term(2);
    let expected = [(1, Some(10 + LENGTH)), (1, None), (1, None), (2, None)];
    assert_eq!(*told.lock().unwrap(), expected);
    assert_eq!(keeper.valid_until(), (2, None));
}
