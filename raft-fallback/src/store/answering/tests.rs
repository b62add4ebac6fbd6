use super::*;
use crate::control::Seen;
use crate::fakes::{FakeReplica, membership};
use crate::lease::Lease;

const NOW_NS: u64 = 10_000;
const ALL: [Duty; 4] = [Duty::Vote, Duty::Transfer, Duty::Append, Duty::Snapshot];

/// Node 1 of three, whose lease lasts as long as said, and which votes from a time on.
fn fitness(
    change: impl FnOnce(&mut FakeReplica),
    lease: bool,
    from_ns: u64,
) -> Fitness<FakeReplica> {
    let mut replica = FakeReplica::new(1);
    replica.now_ns = NOW_NS;
    change(&mut replica);
    let members = membership(&[(1, "one"), (2, "two"), (3, "three")]);
    let voters = members.membership().get_joint_config().clone();
    let core = Lease::new(1, Duration::from_nanos(500), Duration::from_nanos(50));
    let keeper = LeaseKeeper::new(core, || NOW_NS, |_, _| ());
    keeper.set_voters(voters);
    if lease {
        let sent = keeper.handle_sent(1, 2).expect("nobody is quiet");
        keeper.handle_acked(sent);
    }
    let seen = Seen { membership: Arc::new(members), ..Seen::default() };
    let (_, seen) = watch::channel(seen);
    Fitness {
        replica,
        lease: Arc::new(keeper),
        seen,
        votes_from_ns: from_ns,
        heard_ns: Arc::default(),
    }
}

fn refused(fitness: &Fitness<FakeReplica>) -> Vec<Duty> {
    ALL.into_iter().filter(|duty| fitness.refuses(*duty).is_some()).collect()
}

#[test]
fn a_node_that_is_fit_does_all_its_duties() {
    assert_eq!(refused(&fitness(|_| (), false, 0)), []);
}

#[test]
fn a_node_whose_engine_has_failed_does_none_of_its_duties() {
    let fitness = fitness(|node| node.unfit = Some("its engine has failed".into()), false, 0);
    assert_eq!(refused(&fitness), ALL);
}

#[test]
fn a_node_that_is_being_repaired_follows_and_does_not_vote() {
    let fitness = fitness(|node| node.unfit = Some("it was repaired".into()), false, 0);
    assert_eq!(refused(&fitness), [Duty::Vote, Duty::Transfer]);
}

/// Appends name the disk that they are for, so there is nothing to refuse here.
#[test]
fn a_blank_disk_with_an_old_identity_gives_no_vote() {
    let fitness = fitness(|node| node.engine = [99; 16], false, 0);
    assert_eq!(refused(&fitness), [Duty::Vote]);
    assert!(fitness.refuses_to_vote().unwrap().contains("another one"));
    let stranger = self::fitness(|node| node.id = 9, false, 0);
    assert_eq!(refused(&stranger), [Duty::Vote]);
}

#[test]
fn who_has_just_started_gives_no_vote_and_takes_no_leadership() {
    assert_eq!(refused(&fitness(|_| (), false, NOW_NS + 1)), [Duty::Vote, Duty::Transfer]);
}

#[test]
fn who_leads_and_holds_its_lease_gives_no_vote() {
    let leader = fitness(|_| (), true, 0);
    assert!(leader.holds_lease());
    assert_eq!(refused(&leader), [Duty::Vote]);
    let later = fitness(|node| node.now_ns += 450, true, 0);
    assert!(!later.holds_lease(), "it has lapsed");
    assert_eq!(refused(&later), []);
}
