use std::collections::BTreeMap;

use super::*;
use crate::command::{DecodeError, Expected};
use crate::session::{Session, SessionId};

fn record(command: Command) -> Record {
    Record { time_ms: 5, session: None, command }
}

fn register(broker: u64, knows: u32) -> Record {
    let broker = BrokerId::new(broker);
    record(Command::RegisterBroker { broker, addresses: vec!["a:1".into()], knows })
}

fn create(name: &str, partitions: u32, replication_factor: u16) -> Record {
    let name = TopicName::new(name).unwrap();
    let configuration = BTreeMap::new();
    record(Command::CreateTopic { name, partitions, replication_factor, configuration })
}

fn put(value: &[u8], sequence: u64) -> Record {
    let command =
        Command::PutKey { key: b"k".into(), value: value.into(), expected: Expected::Any };
    let session = SessionId::new(0, 9).and_then(|id| Session::new(id, sequence));
    Record { session, ..record(command) }
}

#[test]
fn records_are_applied_in_order_only() {
    let mut state = State::default();
    let order = |offset, expected| Err(ApplyError::Order { offset, expected });
    assert_eq!(state.apply(1, 1, register(1, 1)), order(1, 0));
    assert!(state.apply(0, 2, register(1, 1)).is_ok());
    let after = state.clone();
    assert_eq!(state.apply(0, 2, register(2, 1)), order(0, 1));
    assert_eq!(state.apply(2, 2, register(2, 1)), order(2, 1));
    let epoch = Err(ApplyError::Epoch { offset: 1, epoch: 1, last: 2 });
    assert_eq!(state.apply(1, 1, register(2, 1)), epoch);
    assert_eq!(state, after, "nothing has changed");
    assert!(state.apply(1, 2, register(2, 1)).is_ok());
}

#[test]
fn a_retry_does_nothing_again() {
    let mut state = State::default();
    let first = state.apply(0, 1, put(b"one", 1)).unwrap();
    assert_eq!(first.outcome, Ok(Done::Created));
    state.apply(1, 1, put(b"two", 2)).unwrap();
    // Another leader has it again.
    let again = state.apply(2, 4, put(b"one", 1)).unwrap();
    assert_eq!(again, Applied { is_retry: true, ..first });
    assert_eq!(state.key(b"k").unwrap().value, b"two");
    assert_eq!((state.end(), state.epoch(), state.sessions()), (3, 4, 1));
}

#[test]
fn a_rejection_is_remembered_too() {
    let mut state = State::default();
    let session = SessionId::new(0, 9).and_then(|id| Session::new(id, 1));
    let asked = Record { session, ..create("a", 1, 1) };
    let first = state.apply(0, 1, asked.clone()).unwrap();
    assert_eq!(first.outcome, Err(Rejection::TooFewBrokers { asked: 1, registered: 0 }));
    state.apply(1, 1, register(1, 1)).unwrap();
    assert_eq!(state.apply(2, 1, asked).unwrap(), Applied { is_retry: true, ..first });
    assert_eq!(state.topics().len(), 0);
}

#[test]
fn a_topic_is_told_in_full() {
    let mut state = State::default();
    for (offset, broker) in (0..).zip([4, 7, 9]) {
        state.apply(offset, 1, register(broker, 1)).unwrap();
    }
    let applied = state.apply(3, 1, create("orders", 2, 2)).unwrap();
    let id = TopicId::new((1 << 32) + 16);
    assert_eq!(applied.outcome, Ok(Done::TopicCreated { topic: id }));
    let name = TopicName::new("orders").unwrap();
    let assignment = state.assignment(&name, 1).unwrap();
    assert_eq!((assignment.topic, assignment.stream), (id, id.stream(1)));
    assert_eq!(assignment.placed.leader, Some(BrokerId::new(7)));
    assert_eq!(state.assignment(&name, 2), None);
    assert_eq!((state.watermark(id, 1), state.watermark(id, 2)), (Some(0), None));
    assert_eq!(state.topic_by_id(id).unwrap().created_ms, 5);
    let exists = Err(Rejection::TopicExists { topic: id });
    let again = state.apply(4, 1, create("orders", 2, 9)).unwrap();
    assert_eq!(again.outcome, exists, "whatever else is wrong with it");
}

#[test]
fn an_unknown_broker_leads_nothing() {
    let mut state = State::default();
    state.apply(0, 1, register(1, 1)).unwrap();
    state.apply(1, 1, create("a", 1, 1)).unwrap();
    let (topic, _) = state.topic(&TopicName::new("a").unwrap()).unwrap();
    let in_sync = BTreeSet::from([BrokerId::new(1), BrokerId::new(2)]);
    let leader = Some(BrokerId::new(1));
    let set = Command::SetLeader { topic, partition: 0, leader, leader_epoch: 2, in_sync };
    let unknown = Err(Rejection::BrokerNotFound { broker: BrokerId::new(2) });
    assert_eq!(state.apply(2, 1, record(set)).unwrap().outcome, unknown);
}

#[test]
fn a_metadata_version_is_raised_when_all_know_it() {
    let mut state = State::default();
    let raise = |version| record(Command::RaiseVersion { version });
    let too_old =
        |broker, knows| Err(Rejection::BrokerTooOld { broker: BrokerId::new(broker), knows });
    assert_eq!(state.apply(0, 1, register(1, 0)).unwrap().outcome, too_old(1, 0));
    assert_eq!(state.apply(1, 1, raise(1)).unwrap().outcome, Ok(Done::Unchanged));
    let newer = METADATA_VERSION + 1;
    let stops = Err(ApplyError::NewerVersion { offset: 2, version: newer });
    assert_eq!(state.apply(2, 1, raise(newer)), stops);
    assert_eq!(state.end(), 2);
    // The rule itself, one version back: this build knows no other.
    state.version = 0;
    state.apply(2, 1, register(1, 0)).unwrap();
    state.apply(3, 1, register(2, 1)).unwrap();
    assert_eq!(state.apply(4, 1, raise(1)).unwrap().outcome, too_old(1, 0));
    state.apply(5, 1, register(1, 1)).unwrap();
    assert_eq!(state.apply(6, 1, raise(1)).unwrap().outcome, Ok(Done::Changed));
    assert_eq!(state.version(), 1);
}

#[test]
fn errors_say_what_to_do() {
    let error = DecodeError::UnknownCommand { kind: 77 };
    let said = ApplyError::Decode { offset: 12, error }.to_string();
    assert_eq!(
        said,
        "the record at offset 12 of the metadata stream cannot be applied: a command of kind 77, \
         which this build does not know: run the version that sent it"
    );
}
