//! Each property refuses a small history that breaks it, and takes the one that does not.

use ringwal_raft_fallback::command::{Command, Expected, Record};
use ringwal_raft_fallback::session::SessionId;

use super::content::{Contents, Look};
use super::*;

const EPOCHS: [u64; 4] = [1, 1, 3, 3];

/// A put of a key, as the given command of session 7.
fn put(sequence: u64, key: &str) -> Vec<u8> {
    let id = SessionId::new(0, 7).unwrap();
    let command = Command::PutKey {
        key: key.as_bytes().to_vec(),
        value: sequence.to_le_bytes().to_vec(),
        expected: Expected::Any,
    };
    Record { time_ms: 0, session: Session::new(id, sequence), command }.encode().unwrap()
}

/// Commands 1, 2, 3 and 2 again, of two epochs.
fn records() -> Vec<Vec<u8>> {
    vec![put(1, "a"), put(2, "a"), put(3, "b"), put(2, "a")]
}

fn execute_with(look: impl FnMut(&State)) -> Log {
    let records = records();
    let records = EPOCHS.into_iter().zip(records.iter().map(|bytes| &bytes[..]));
    Log::execute(records, origin_by_session, look)
}

fn log() -> Log {
    let log = execute_with(|_| {});
    assert_eq!(log.wrong, Vec::<String>::new());
    log
}

fn executed(sequence: u64, place: Place, did: DoneShown, durable: Ack) -> Asked {
    let outcome = Outcome::Executed { place: Some(place), did: Ok(did), durable };
    asked(sequence, 10 * sequence, 10 * sequence + 5, outcome)
}

fn asked(sequence: u64, asked_ns: u64, answered_ns: u64, outcome: Outcome) -> Asked {
    Asked { key: (7, sequence), asked_ns, answered_ns, outcome }
}

/// What clients were told of the log, as it was.
fn truth() -> Vec<Asked> {
    vec![
        executed(1, (1, 0), DoneShown::Created, Ack::Quorum),
        executed(2, (1, 1), DoneShown::Changed, Ack::Local),
        executed(3, (3, 2), DoneShown::Created, Ack::Quorum),
    ]
}

fn check(asked: &[Asked], was_cut: bool) -> Vec<String> {
    acknowledged::check(asked, &log(), |_| was_cut).0
}

fn refuses(wrong: &[String], said: &str) {
    assert!(wrong.iter().any(|wrong| wrong.contains(said)), "{said:?} is not in {wrong:?}");
}

#[test]
fn what_is_so_is_accepted() {
    assert_eq!(check(&truth(), false), Vec::<String>::new());
    assert_eq!(order::check(&truth(), &[], &log()), Vec::<String>::new());
}

#[test]
fn a_command_that_a_majority_had_is_not_lost() {
    refuses(&check(&[executed(4, (3, 3), DoneShown::Created, Ack::Quorum)], true), "is lost");
}

#[test]
fn a_command_is_where_it_was_said_to_be() {
    for place in [(1, 1), (2, 0)] {
        refuses(&check(&[executed(1, place, DoneShown::Created, Ack::Quorum)], true), "is lost");
    }
}

#[test]
fn a_command_did_what_it_was_said_to_do() {
    refuses(&check(&[executed(1, (1, 0), DoneShown::Changed, Ack::Quorum)], true), "is lost");
    let rejected = Outcome::Executed {
        place: None,
        did: Err("the topic is there already".to_owned()),
        durable: Ack::Quorum,
    };
    refuses(&check(&[asked(1, 10, 15, rejected)], true), "is lost");
}

#[test]
fn a_command_of_the_leader_alone_is_lost_only_with_its_epoch_and_kept() {
    let of_an_epoch_that_is_over = executed(4, (2, 2), DoneShown::Created, Ack::Local);
    let (wrong, lost) = acknowledged::check([&of_an_epoch_that_is_over], &log(), |_| true);
    assert_eq!((wrong.len(), lost), (0, 1));
    refuses(&check(&[of_an_epoch_that_is_over], false), "without a trace");
    // Its epoch was not over there.
    for place in [(3, 2), (4, 2)] {
        let asked = executed(4, place, DoneShown::Created, Ack::Local);
        refuses(&check(&[asked], true), "without a trace");
    }
}

#[test]
fn a_leader_that_has_been_replaced_answers_nothing() {
    assert_eq!(epochs::check(&truth()), Vec::<String>::new());
    // It was asked before, and answers when another one leads.
    let mut late = executed(4, (1, 2), DoneShown::Created, Ack::Local);
    (late.asked_ns, late.answered_ns) = (34, 99);
    assert_eq!(epochs::check(truth().iter().chain([&late])), Vec::<String>::new());
    late.asked_ns = 36;
    refuses(&epochs::check(truth().iter().chain([&late])), "I-13");
}

#[test]
fn what_is_certainly_not_done_is_not_there() {
    for outcome in [Outcome::NotDone, Outcome::Refused] {
        refuses(&check(&[asked(2, 20, 25, outcome.clone())], false), "is done");
        assert_eq!(check(&[asked(9, 20, 25, outcome)], false).len(), 0);
    }
}

#[test]
fn what_is_not_known_may_be_there_or_not_and_once() {
    let unknown = [asked(2, 20, 25, Outcome::Unknown), asked(9, 20, 25, Outcome::Unknown)];
    assert_eq!(check(&unknown, false).len(), 0);
    // By content, so that the session does not make it one: as if it had been executed in two sessions.
    let records = records();
    let twice = [&records[0][..], &records[1], &put(9, "a").clone()];
    let as_two = |record: &Record| match &record.command {
        Command::PutKey { value, .. } => Origin::Client((0, u64::from(value[0]).min(2))),
        _ => Origin::Nobody,
    };
    let log = Log::execute([1, 1, 1].into_iter().zip(twice), as_two, |_| {});
    refuses(&log.wrong, "executed at 1 and at 2");
}

#[test]
fn what_nobody_asked_for_is_not_there() {
    let records = records();
    let records = EPOCHS.into_iter().zip(records.iter().map(|bytes| &bytes[..]));
    let log = Log::execute(records, |_| Origin::Nobody, |_| {});
    refuses(&log.wrong, "nobody has asked for what is at 0");
    let log = Log::execute([(1, &b"no command"[..])], |_| Origin::Leader, |_| {});
    refuses(&log.wrong, "is no command");
}

#[test]
fn a_retry_is_no_second_execution() {
    let log = log();
    assert_eq!(log.executed.len(), 3);
    assert_eq!(log.executed[&(7, 2)].place, (1, 1));
}

#[test]
fn who_was_answered_before_another_asked_comes_before_it() {
    let mut asked = truth();
    // The second was answered before the first was asked, and comes behind it.
    asked[0].asked_ns = 30;
    asked[0].answered_ns = 40;
    refuses(&order::check(&asked, &[], &log()), "not linearizable");
    // Also when nobody knows what came of the first.
    asked[0].outcome = Outcome::Unknown;
    refuses(&order::check(&asked, &[], &log()), "not linearizable");
    // At the same time they may come in any order.
    asked[0].asked_ns = 22;
    assert_eq!(order::check(&asked, &[], &log()).len(), 0);
}

fn read(asked_ns: u64, end: u64) -> Read {
    let epoch = Some(end.checked_sub(1).map_or(0, |last| EPOCHS[last as usize]));
    Read { asked_ns, answered_ns: asked_ns + 2, end, epoch }
}

#[test]
fn a_read_has_seen_what_was_answered_before_and_nothing_that_was_asked_later() {
    let check = |read| order::check(&truth(), [&read], &log());
    assert_eq!(check(read(27, 2)).len(), 0);
    refuses(&check(read(27, 1)), "not linearizable");
    refuses(&check(read(27, 3)), "not linearizable");
    // As a leader would answer that has been replaced, and does not know it.
    refuses(&check(read(1_000, 2)), "not linearizable");
}

#[test]
fn reads_do_not_go_back_and_see_only_what_is_committed() {
    let none: [Asked; 0] = [];
    assert_eq!(order::check(&none, &[read(10, 2), read(20, 2)], &log()).len(), 0);
    refuses(&order::check(&none, &[read(10, 3), read(20, 2)], &log()), "not linearizable");
    for (end, epoch) in [(2, Some(2)), (5, Some(3)), (5, None)] {
        let of_another = Read { epoch, ..read(10, 0) };
        refuses(&order::check(&none, &[Read { end, ..of_another }], &log()), "not committed");
    }
}

#[test]
fn reads_have_seen_what_was_there() {
    let look = |end: u64, version| Look {
        end,
        epoch: Some(end.checked_sub(1).map_or(0, |last| EPOCHS[last as usize])),
        key: b"a".to_vec(),
        version,
    };
    let contents = |looks| {
        let mut contents = Contents::new(looks);
        execute_with(|state| contents.compare(state));
        contents
    };
    let mut sound = contents(vec![
        look(0, None),
        look(1, Some((1, 0))),
        look(2, Some((1, 1))),
        look(4, Some((1, 1))),
    ]);
    assert_eq!((sound.finish(|_| false), sound.compared), (0, 4));
    assert_eq!(sound.wrong.len(), 0);
    let of_any_epoch = Look { epoch: None, ..look(2, Some((1, 0))) };
    for wrong in [of_any_epoch, look(0, Some((1, 0))), look(1, None), look(2, Some((1, 0)))] {
        refuses(&contents(vec![wrong]).wrong, "there");
    }
    // What has seen another history has to be of one that was cut.
    let other = Look { epoch: Some(2), ..look(3, None) };
    let beyond = Look { end: 9, ..look(4, None) };
    for look in [other, beyond] {
        let mut contents = contents(vec![look.clone()]);
        assert_eq!(contents.finish(|place| place == (look.epoch.unwrap(), look.end - 1)), 1);
        assert_eq!(contents.wrong.len(), 0);
        let mut contents = Contents::new(vec![look]);
        execute_with(|state| contents.compare(state));
        contents.finish(|_| false);
        refuses(&contents.wrong, "in no log and in no orphan");
    }
}
