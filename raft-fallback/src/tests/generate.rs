//! Commands for property tests.

use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::{btree_map, btree_set, vec};
use proptest::prelude::*;

use crate::command::{BrokerId, Command, Expected, Record, TopicName, Watermark};
use crate::session::{Session, SessionId};
use crate::state::{KeyVersion, TopicId};

/// Any record, within the limits of the smaller fields.
pub(crate) fn any_record() -> impl Strategy<Value = Record> {
    let session = (any::<u64>(), 1u64.., 1u64..).prop_map(|(begun, random, sequence)| {
        Session::new(SessionId::new(begun, random).unwrap(), sequence).unwrap()
    });
    let rest = (any::<u64>(), proptest::option::of(session), any_command());
    rest.prop_map(|(time_ms, session, command)| Record { time_ms, session, command })
}

fn any_name() -> impl Strategy<Value = TopicName> {
    "[a-zA-Z0-9_-][a-zA-Z0-9._-]{0,40}".prop_map(|name| TopicName::new(&name).unwrap())
}

fn any_broker() -> impl Strategy<Value = BrokerId> {
    any::<u64>().prop_map(BrokerId::new)
}

fn any_brokers() -> impl Strategy<Value = BTreeSet<BrokerId>> {
    btree_set(any_broker(), 1..16)
}

fn any_expected() -> impl Strategy<Value = Expected> {
    prop_oneof![
        Just(Expected::Any),
        Just(Expected::Absent),
        any::<(u64, u64)>()
            .prop_map(|(epoch, offset)| Expected::Version(KeyVersion { epoch, offset })),
    ]
}

fn any_command() -> impl Strategy<Value = Command> {
    let configuration = btree_map(".{1,20}", ".{0,40}", 0..8);
    let create = (any_name(), 1u32..=10_000, 1u16..=16, configuration);
    let watermark = any::<(u64, u32, u64)>().prop_map(|(topic, partition, offset)| Watermark {
        topic: TopicId::new(topic),
        partition,
        offset,
    });
    let leader = (
        any::<u64>(),
        any::<u32>(),
        proptest::option::of(any_broker()),
        0u64..1 << 55,
        any_brokers(),
    );
    let key = || vec(any::<u8>(), 1..40);
    let put = (key(), vec(any::<u8>(), 0..200), any_expected());
    prop_oneof![
        create.prop_map(|(name, partitions, replication_factor, configuration)| {
            Command::CreateTopic { name, partitions, replication_factor, configuration }
        }),
        any_name().prop_map(|name| Command::DeleteTopic { name }),
        (any_broker(), vec(".{1,30}", 0..4), any::<u32>()).prop_map(
            |(broker, addresses, knows)| Command::RegisterBroker { broker, addresses, knows }
        ),
        any_broker().prop_map(|broker| Command::UnregisterBroker { broker }),
        leader.prop_map(|(topic, partition, leader, leader_epoch, in_sync)| {
            let topic = TopicId::new(topic);
            Command::SetLeader { topic, partition, leader, leader_epoch, in_sync }
        }),
        vec(watermark, 1..20).prop_map(|watermarks| Command::UpdateWatermarks { watermarks }),
        put.prop_map(|(key, value, expected)| Command::PutKey { key, value, expected }),
        (key(), any_expected()).prop_map(|(key, expected)| Command::DeleteKey { key, expected }),
        any::<u32>().prop_map(|version| Command::RaiseVersion { version }),
    ]
}

/// A record at a place in the stream.
pub(crate) type Placed = (u64, Record);

/// Records, each with its epoch, that have much to do with each other: few names, brokers, keys and
/// sessions, and ids of topics that there are now and then.
pub(crate) fn related_records(length: usize) -> impl Strategy<Value = Vec<Placed>> {
    let one = (0u64..20, 0u64..2000, few_sessions(), few_commands());
    vec(one, 0..length).prop_map(|records| {
        let mut epoch = 1;
        let place = |(step, time_ms, session, command)| {
            epoch += u64::from(step == 0);
            (epoch, Record { time_ms, session, command })
        };
        records.into_iter().map(place).collect()
    })
}

fn few_sessions() -> impl Strategy<Value = Option<Session>> {
    let session = (0u64..3, 1u64..4, 1u64..30).prop_map(|(begun, random, sequence)| {
        let id = SessionId::new(begun * 10, random).unwrap();
        Session::new(id, sequence).unwrap()
    });
    proptest::option::weighted(0.4, session)
}

fn few_names() -> impl Strategy<Value = TopicName> {
    let names = ["a", "b", "c", "d", "__metadata"].map(|name| TopicName::new(name).unwrap());
    proptest::sample::select(names.to_vec())
}

fn few_brokers() -> impl Strategy<Value = BrokerId> {
    (1u64..6).prop_map(BrokerId::new)
}

fn few_topics() -> impl Strategy<Value = TopicId> {
    (1u64..4, 16u64..26).prop_map(|(epoch, first)| TopicId::new((epoch << 32) + first))
}

fn few_expected() -> impl Strategy<Value = Expected> {
    let version = (1u64..3, 0u64..40)
        .prop_map(|(epoch, offset)| Expected::Version(KeyVersion { epoch, offset }));
    prop_oneof![3 => Just(Expected::Any), 1 => Just(Expected::Absent), 2 => version]
}

fn few_commands() -> impl Strategy<Value = Command> {
    let create = (few_names(), 1u32..5, 1u16..5).prop_map(|(name, partitions, copies)| {
        let configuration = BTreeMap::from([("copies".to_owned(), copies.to_string())]);
        Command::CreateTopic { name, partitions, replication_factor: copies, configuration }
    });
    let register = (few_brokers(), 0u32..3, 0u32..3).prop_map(|(broker, address, knows)| {
        let addresses = vec![format!("host-{address}:9092")];
        Command::RegisterBroker { broker, addresses, knows: knows.min(1) }
    });
    let in_sync = btree_set(few_brokers(), 1..4);
    let leader = (few_topics(), 0u32..4, proptest::option::of(few_brokers()), 0u64..6, in_sync)
        .prop_map(|(topic, partition, leader, leader_epoch, in_sync)| Command::SetLeader {
            topic,
            partition,
            leader,
            leader_epoch,
            in_sync,
        });
    let watermark = (few_topics(), 0u32..4, 0u64..50)
        .prop_map(|(topic, partition, offset)| Watermark { topic, partition, offset });
    let key = || vec(0u8..3, 1..3);
    let put = (key(), vec(any::<u8>(), 0..9), few_expected());
    prop_oneof![
        6 => create,
        2 => few_names().prop_map(|name| Command::DeleteTopic { name }),
        6 => register,
        1 => few_brokers().prop_map(|broker| Command::UnregisterBroker { broker }),
        5 => leader,
        4 => vec(watermark, 1..5).prop_map(|watermarks| Command::UpdateWatermarks { watermarks }),
        4 => put.prop_map(|(key, value, expected)| Command::PutKey { key, value, expected }),
        2 => (key(), few_expected())
            .prop_map(|(key, expected)| Command::DeleteKey { key, expected }),
        1 => (0u32..2).prop_map(|version| Command::RaiseVersion { version }),
    ]
}
