use super::looking::look_at;
use super::*;
use crate::command::Record;
use crate::metadata::{Applier, Entry};
use crate::state::State;

fn question(ask: Ask) -> Question {
    Question { version: VERSION, limit_ms: 1500, command: None, ask }
}

fn inside(question: &Question) -> Bytes {
    let bytes = question.encode().expect("it is short");
    let Ok(rpc::Request { ask: rpc::Ask::Store(store), .. }) = rpc::Request::decode(bytes.into())
    else {
        panic!("no request of a store")
    };
    match wire::Ask::decode(&store) {
        Ok(wire::Ask::Operator(json)) => json,
        other => panic!("{other:?}"),
    }
}

fn reply(answer: &wire::Answer) -> Bytes {
    rpc::Reply::Store(answer.encode().into()).encode().into()
}

fn look(metadata: &Metadata, look: Look) -> Answer {
    metadata.read(|state| look_at(state, look)).1.unwrap_or_else(Answer::Failed)
}

/// A store that has executed these.
fn applied(writes: Vec<Write>) -> (Metadata, Applier) {
    let (metadata, mut applier) = Metadata::new(State::default(), 1);
    let mut outcomes = Vec::new();
    for (offset, write) in (0..).zip(writes) {
        let command = write.command(&metadata).expect("it makes sense");
        let payload = Record { time_ms: 1000, session: None, command }.encode().unwrap();
        let entry = Entry { offset, epoch: 1, payload: &payload };
        applier.apply([entry], &mut outcomes).unwrap();
    }
    assert!(outcomes.iter().all(|applied| applied.outcome.is_ok()), "{outcomes:?}");
    (metadata, applier)
}

fn broker(broker: u64) -> Write {
    Write::RegisterBroker { broker, addresses: vec![format!("{broker}.example:9092")] }
}

fn topic(name: &str, partitions: u32) -> Write {
    let configuration = [("retention.ms".to_owned(), "60000".to_owned())].into();
    Write::CreateTopic { name: name.into(), partitions, replication_factor: 1, configuration }
}

fn put(key: &[u8], value: &[u8]) -> Write {
    let (key, value) = (key.to_vec().into(), value.to_vec().into());
    Write::PutKey { key, value, expected: ExpectedKey::Any }
}

#[test]
fn questions_and_answers_come_back_as_they_were() {
    let command = CommandId { begun: u64::MAX, random: u64::MAX - 1, sequence: 3 };
    for ask in [
        Ask::Status,
        Ask::Look { look: Look::Topics { after: 7 }, linearizable: true },
        Ask::Look { look: Look::Key { key: vec![0xff, 0].into() }, linearizable: false },
        Ask::Execute { write: topic("orders", 3), quorum: true },
        Ask::Execute { write: put(b"\xff", "ü".as_bytes()), quorum: false },
        Ask::TransferLeader { to: None },
        Ask::AddMember { node: 4, address: "127.0.0.1:9294".into() },
        Ask::SetFastPath { on: false },
    ] {
        let asked = Question { command: Some(command), ..question(ask) };
        assert_eq!(Question::decode(&inside(&asked)), Ok(asked));
    }
    let executed = Executed {
        epoch: 3,
        offset: u64::MAX,
        quorum: false,
        is_retry: true,
        done: DoneShown::TopicCreated { topic: 1 << 40 },
    };
    for answer in [
        Answer::Status(Box::default()),
        Answer::Executed(executed),
        Answer::Done,
        Answer::Failed(Failed::NotLeader {
            leader: Some(Place { node: 2, address: "node-2:9291".into() }),
        }),
    ] {
        let reply = reply(&wire::Answer::Operator(answer.json()));
        assert_eq!(Answer::decode(&reply).unwrap(), answer);
    }
    let refused = reply(&wire::Answer::Refused("not here".into()));
    assert!(Answer::decode(&refused).unwrap_err().to_string().contains("not here"));
    assert!(matches!(Answer::decode(&Bytes::from_static(b"?")), Err(AnswerError::Malformed(_))));
    let long = question(Ask::Execute { write: put(b"key", &vec![0; 1 << 20]), quorum: false });
    assert!(long.encode().is_err(), "six bytes of JSON for each");
}

#[test]
fn what_is_not_understood_is_refused() {
    for (json, part) in [
        ("", "no question"),
        ("{\"version\": 2, \"ask\": {\"colour\": 1}}", "version 2"),
        ("{\"version\": 1, \"limit_ms\": 5, \"ask\": \"colour\"}", "colour"),
    ] {
        match Question::decode(json.as_bytes()) {
            Err(Failed::Refused { why }) => assert!(why.contains(part), "{why}"),
            other => panic!("{other:?}"),
        }
    }
    let (metadata, _applier) = applied(vec![]);
    let why = |write: Write| write.command(&metadata).unwrap_err().to_string();
    assert!(why(topic("no name", 1)).contains("' '"));
    assert!(why(topic("orders", 0)).contains("partitions is 0"));
    let watermark = Write::RaiseWatermark { topic: "orders".into(), partition: 0, offset: 1 };
    assert!(why(watermark).contains("no such topic"));
    assert_eq!(CommandId { begun: 0, random: 0, sequence: 1 }.session(), None);
}

#[test]
fn what_is_there_is_shown() {
    let (metadata, _applier) =
        applied(vec![broker(3), broker(1), topic("orders", 2), put(b"color", b"\xfe")]);
    let watermark = Write::RaiseWatermark { topic: "orders".into(), partition: 1, offset: 9 };
    assert!(matches!(watermark.command(&metadata), Ok(Command::UpdateWatermarks { .. })));
    let Answer::Brokers { applied: 4, brokers, more: false } =
        look(&metadata, Look::Brokers { after: None })
    else {
        panic!("brokers")
    };
    assert_eq!(brokers.iter().map(|line| line.broker).collect::<Vec<_>>(), [1, 3]);
    let Answer::Topic(shown) = look(&metadata, Look::Topic { name: "orders".into(), from: 1 })
    else {
        panic!("a topic")
    };
    assert_eq!((shown.line.partitions, shown.shown.len(), shown.more), (2, 1, false));
    assert_eq!(shown.shown[0].stream, shown.line.id + 1);
    assert_eq!(shown.configuration["retention.ms"], "60000");
    let value = look(&metadata, Look::Key { key: "color".into() });
    let wanted = Answer::Key { applied: 4, value: vec![0xfe].into(), epoch: 1, offset: 3 };
    assert_eq!(value, wanted);
    let mark = Look::Watermark { topic: "orders".into(), partition: 0 };
    let wanted = Answer::Watermark { applied: 4, high_watermark: 0 };
    assert_eq!(look(&metadata, mark), wanted);
    for absent in [
        Look::Topic { name: "bills".into(), from: 0 },
        Look::Key { key: "colour".into() },
        Look::Watermark { topic: "orders".into(), partition: 2 },
    ] {
        assert!(matches!(look(&metadata, absent), Answer::NotFound { .. }));
    }
}

#[test]
fn what_is_longer_than_a_page_comes_in_several() {
    let count = 2 * PAGE as u32 + 7;
    let mut writes = vec![broker(1), topic("wide", count)];
    writes.extend((0..count).map(|n| topic(&format!("topic-{n}"), 1)));
    writes.extend((0..count).map(|n| put(format!("key-{n:04}").as_bytes(), b"1")));
    writes.push(put(b"other", b"1"));
    let (metadata, _applier) = applied(writes);

    let (mut names, mut after) = (Vec::new(), 0);
    loop {
        let Answer::Topics { topics, more, .. } = look(&metadata, Look::Topics { after }) else {
            panic!("topics")
        };
        after = topics.last().map_or(after, |line| line.id);
        names.extend(topics.into_iter().map(|line| line.name));
        if !more {
            break;
        }
    }
    assert_eq!(names.len(), count as usize + 1);
    assert_eq!((&*names[0], &*names[count as usize]), ("wide", &*format!("topic-{}", count - 1)));

    let (mut keys, mut after) = (Vec::new(), None);
    loop {
        let prefix = "key-".into();
        let Answer::Keys { keys: some, more, .. } = look(&metadata, Look::Keys { prefix, after })
        else {
            panic!("keys")
        };
        after = some.last().map(|line| line.key.clone());
        keys.extend(some);
        if !more {
            break;
        }
    }
    assert_eq!(keys.len(), count as usize);

    let mut partitions = 0;
    while partitions < count {
        let from = partitions;
        let Answer::Topic(shown) = look(&metadata, Look::Topic { name: "wide".into(), from })
        else {
            panic!("a topic")
        };
        assert_eq!(shown.shown[0].partition, partitions);
        partitions += shown.shown.len() as u32;
        assert_eq!(shown.more, partitions < count);
    }
}
