//! The state against a reference that is written as simply as it can be, in lists, and replicas of it
//! against each other.

use std::collections::BTreeSet;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use super::generate::related_records;
use crate::command::{BrokerId, Command, Expected, Record, TopicName};
use crate::limits::SESSION_OUTCOMES_MAX;
use crate::session::SessionId;
use crate::snapshot;
use crate::state::{Applied, Done, KeyVersion, Outcome, Rejection, State, TopicId, outcome};

#[derive(Default)]
struct Reference {
    topics: Vec<ReferenceTopic>,
    brokers: Vec<(BrokerId, Vec<String>, u32)>,
    keys: Vec<(Vec<u8>, Vec<u8>, KeyVersion)>,
    /// Every command of a session that was executed.
    executed: Vec<(SessionId, u64, Applied)>,
    /// Streams that each epoch has given.
    given: Vec<(u64, u64)>,
}

struct ReferenceTopic {
    name: TopicName,
    id: u64,
    partitions: Vec<ReferencePartition>,
}

struct ReferencePartition {
    replicas: Vec<BrokerId>,
    leader: Option<BrokerId>,
    leader_epoch: u64,
    in_sync: BTreeSet<BrokerId>,
    watermark: u64,
}

impl Reference {
    fn apply(&mut self, offset: u64, epoch: u64, record: &Record) -> Applied {
        let applied = |outcome| Applied { epoch, offset, is_retry: false, outcome };
        let Some(session) = record.session else {
            return applied(self.execute(offset, epoch, &record.command));
        };
        let (id, sequence) = (session.id(), session.sequence());
        let of_session = |one: &&(SessionId, u64, Applied)| one.0 == id;
        let mut numbers: Vec<u64> =
            self.executed.iter().filter(of_session).map(|one| one.1).collect();
        // No session is ever forgotten here: there are too few.
        if numbers.is_empty() && id.begun() > offset {
            return applied(Err(Rejection::SessionAhead { end: offset }));
        }
        numbers.sort_unstable();
        assert!(numbers.len() <= SESSION_OUTCOMES_MAX, "so few that none is forgotten");
        if let Some((.., first)) = self.executed.iter().find(|one| (one.0, one.1) == (id, sequence))
        {
            return Applied { is_retry: true, ..*first };
        }
        let applied = applied(self.execute(offset, epoch, &record.command));
        self.executed.push((id, sequence, applied));
        applied
    }

    fn has_broker(&self, broker: BrokerId) -> Result<(), Rejection> {
        let is_there = self.brokers.iter().any(|(id, ..)| *id == broker);
        if is_there { Ok(()) } else { Err(Rejection::BrokerNotFound { broker }) }
    }

    fn execute(&mut self, offset: u64, epoch: u64, command: &Command) -> Outcome {
        match command {
            Command::CreateTopic { name, partitions, replication_factor, .. } => {
                if name.as_str().starts_with("__") {
                    return Err(Rejection::TopicReserved);
                }
                if let Some(topic) = self.topics.iter().find(|topic| topic.name == *name) {
                    return Err(Rejection::TopicExists { topic: TopicId::new(topic.id) });
                }
                let placed = self.place(offset, *partitions, *replication_factor)?;
                let id = (epoch << 32) + 16 + self.given_in(epoch);
                self.given.push((epoch, u64::from(*partitions)));
                self.topics.push(ReferenceTopic { name: name.clone(), id, partitions: placed });
                Ok(Done::TopicCreated { topic: TopicId::new(id) })
            }
            Command::DeleteTopic { name } => {
                if name.as_str().starts_with("__") {
                    return Err(Rejection::TopicReserved);
                }
                let place = self.topics.iter().position(|topic| topic.name == *name);
                let topic = self.topics.remove(place.ok_or(Rejection::TopicNotFound)?);
                let partitions = topic.partitions.len() as u32;
                Ok(Done::TopicDeleted { topic: TopicId::new(topic.id), partitions })
            }
            Command::RegisterBroker { broker, addresses, knows } => {
                if *knows < 1 {
                    return Err(Rejection::BrokerTooOld { broker: *broker, knows: *knows });
                }
                let new = (*broker, addresses.clone(), *knows);
                let old = self.brokers.iter_mut().find(|(id, ..)| id == broker);
                match old {
                    Some(old) if *old == new => return Ok(Done::Unchanged),
                    Some(old) => *old = new,
                    None => {
                        self.brokers.push(new);
                        return Ok(Done::Created);
                    }
                }
                Ok(Done::Changed)
            }
            Command::UnregisterBroker { broker } => {
                self.has_broker(*broker)?;
                self.brokers.retain(|(id, ..)| id != broker);
                let all = self.topics.iter_mut().flat_map(|topic| &mut topic.partitions);
                all.for_each(|partition| partition.leave(*broker));
                Ok(Done::Changed)
            }
            Command::SetLeader { topic, partition, leader, leader_epoch, in_sync } => {
                let named: Vec<_> = leader.iter().chain(in_sync).copied().collect();
                named.iter().try_for_each(|broker| self.has_broker(*broker))?;
                let topic = self.topics.iter_mut().find(|one| one.id == topic.get());
                let topic = topic.ok_or(Rejection::TopicNotFound)?;
                let partitions = topic.partitions.len() as u32;
                let none = Rejection::PartitionNotFound { partitions };
                let placed = topic.partitions.get_mut(*partition as usize).ok_or(none)?;
                placed.set(*leader, *leader_epoch, in_sync)
            }
            Command::UpdateWatermarks { watermarks } => {
                let (mut raised, mut unknown) = (0, 0);
                for one in watermarks {
                    let topic = self.topics.iter_mut().find(|topic| topic.id == one.topic.get());
                    match topic.and_then(|topic| topic.partitions.get_mut(one.partition as usize)) {
                        None => unknown += 1,
                        Some(placed) => {
                            raised += u32::from(one.offset > placed.watermark);
                            placed.watermark = placed.watermark.max(one.offset);
                        }
                    }
                }
                Ok(Done::Watermarks { raised, unknown })
            }
            Command::PutKey { key, value, expected } => {
                let there = self.expect(key, *expected)?;
                self.keys.retain(|(one, ..)| one != key);
                self.keys.push((key.clone(), value.clone(), KeyVersion { epoch, offset }));
                Ok(if there { Done::Changed } else { Done::Created })
            }
            Command::DeleteKey { key, expected } => {
                let there = self.expect(key, *expected)?;
                self.keys.retain(|(one, ..)| one != key);
                Ok(if there { Done::Changed } else { Done::Unchanged })
            }
            Command::RaiseVersion { .. } => Ok(Done::Unchanged),
        }
    }

    fn given_in(&self, epoch: u64) -> u64 {
        self.given.iter().filter(|(one, _)| *one == epoch).map(|(_, count)| count).sum()
    }

    fn expect(&self, key: &[u8], expected: Expected) -> Result<bool, Rejection> {
        let found = self.keys.iter().find(|(one, ..)| one == key).map(|(.., version)| *version);
        match (expected, found) {
            (Expected::Any, _) | (Expected::Absent, None) => Ok(found.is_some()),
            (Expected::Version(version), Some(found)) if version == found => Ok(true),
            _ => Err(Rejection::KeyVersion { found }),
        }
    }

    fn place(
        &self,
        offset: u64,
        partitions: u32,
        copies: u16,
    ) -> Result<Vec<ReferencePartition>, Rejection> {
        let mut brokers: Vec<BrokerId> = self.brokers.iter().map(|(id, ..)| *id).collect();
        brokers.sort();
        let count = brokers.len();
        if count < usize::from(copies) {
            return Err(Rejection::TooFewBrokers { asked: copies, registered: count as u32 });
        }
        let start = offset as usize % count;
        let partition = |number: usize| {
            let mut from_first = brokers.clone();
            from_first.rotate_left((start + number) % count);
            // The others turn by one with each round of the first.
            if count > 1 {
                from_first[1..].rotate_left((start + number / count) % (count - 1));
            }
            from_first.truncate(usize::from(copies));
            ReferencePartition {
                leader: Some(from_first[0]),
                leader_epoch: 1,
                in_sync: from_first.iter().copied().collect(),
                replicas: from_first,
                watermark: 0,
            }
        };
        Ok((0..partitions as usize).map(partition).collect())
    }

    fn compare(&self, state: &State) {
        let mut topics: Vec<_> = self.topics.iter().collect();
        topics.sort_by_key(|topic| topic.id);
        assert_eq!(topics.len(), state.topics().len());
        for (expected, (id, topic)) in topics.into_iter().zip(state.topics()) {
            assert_eq!((expected.id, &expected.name), (id.get(), &topic.name));
            assert_eq!(state.topic(&topic.name), Some((id, topic)));
            assert_eq!(expected.partitions.len(), topic.partitions.len());
            for (expected, placed) in expected.partitions.iter().zip(&topic.partitions) {
                assert_eq!(expected.replicas, placed.replicas);
                assert_eq!(expected.leader, placed.leader);
                assert_eq!(expected.leader_epoch, placed.leader_epoch);
                assert_eq!(expected.in_sync, placed.in_sync().collect());
                assert_eq!(expected.watermark, placed.high_watermark);
            }
        }
        assert_eq!(self.brokers.len(), state.brokers().len());
        for (id, addresses, knows) in &self.brokers {
            let broker = state.broker(*id).expect("it is registered");
            assert_eq!((addresses, knows), (&broker.addresses, &broker.knows));
        }
        assert_eq!(self.keys.len(), state.keys(b"").count());
        for (key, value, version) in &self.keys {
            let there = state.key(key).expect("it is there");
            assert_eq!((value, version), (&there.value, &there.version));
        }
    }
}

impl ReferencePartition {
    fn leave(&mut self, broker: BrokerId) {
        let left: BTreeSet<_> = self.in_sync.iter().copied().filter(|one| *one != broker).collect();
        if self.leader == Some(broker) {
            self.leader = self.replicas.iter().copied().find(|one| left.contains(one));
            self.leader_epoch += 1;
        }
        if !left.is_empty() {
            self.in_sync = left;
        }
    }

    fn set(
        &mut self,
        leader: Option<BrokerId>,
        epoch: u64,
        in_sync: &BTreeSet<BrokerId>,
    ) -> Outcome {
        for broker in in_sync {
            if !self.replicas.contains(broker) {
                return Err(Rejection::NotAReplica { broker: *broker });
            }
        }
        if let Some(broker) = leader
            && !in_sync.contains(&broker)
        {
            return Err(Rejection::LeaderNotInSync { broker });
        }
        let is_newer = epoch > self.leader_epoch;
        if !is_newer && (epoch != self.leader_epoch || leader != self.leader) {
            return Err(Rejection::LeaderEpoch { current: self.leader_epoch });
        }
        let is_same = !is_newer && *in_sync == self.in_sync;
        (self.leader, self.leader_epoch, self.in_sync) = (leader, epoch, in_sync.clone());
        Ok(if is_same { Done::Unchanged } else { Done::Changed })
    }
}

fn bytes(state: &State) -> Vec<u8> {
    let mut bytes = Vec::new();
    snapshot::write(state, &mut bytes).unwrap();
    bytes
}

/// What the two tests below go through, so that they say something.
#[test]
fn the_records_come_to_every_outcome() {
    let mut runner = TestRunner::deterministic();
    let (mut codes, mut retries) = (BTreeSet::new(), 0);
    for _ in 0..200 {
        let records = related_records(300).new_tree(&mut runner).unwrap().current();
        let mut state = State::default();
        for ((epoch, record), offset) in records.into_iter().zip(0..) {
            let applied = state.apply(offset, epoch, record).unwrap();
            codes.insert(outcome::to_words(applied.outcome).0);
            retries += u32::from(applied.is_retry);
        }
    }
    // All but those for which there are too few: full (113), expired (114) and forgotten (116).
    let expected: BTreeSet<u16> = (1..=6).chain(101..=112).chain([115]).collect();
    assert_eq!(codes, expected);
    assert!(retries > 1000, "{retries}");
}

proptest! {
    #[test]
    fn it_does_what_the_reference_does(records in related_records(300)) {
        let (mut state, mut reference) = (State::default(), Reference::default());
        for ((epoch, record), offset) in records.into_iter().zip(0..) {
            let expected = reference.apply(offset, epoch, &record);
            prop_assert_eq!(state.apply(offset, epoch, record), Ok(expected));
            prop_assert_eq!((state.end(), state.epoch()), (offset + 1, epoch));
        }
        reference.compare(&state);
    }

    /// A replica from a snapshot at any offset and the rest comes to what one has that applied all,
    /// outcome by outcome and byte by byte; records go as bytes.
    #[test]
    fn replicas_come_to_the_same(records in related_records(200), at in 0usize..200) {
        let records: Vec<_> =
            records.into_iter().map(|(epoch, record)| (epoch, record.encode().unwrap())).collect();
        let at = at.min(records.len());
        let apply = |state: &mut State, from: usize, to: usize| {
            let mut all = Vec::new();
            for (offset, (epoch, bytes)) in (from..to).zip(&records[from..to]) {
                let record = Record::decode(bytes).unwrap();
                all.push(state.apply(offset as u64, *epoch, record).unwrap());
            }
            all
        };
        let (mut one, mut other) = (State::default(), State::default());
        apply(&mut one, 0, at);
        apply(&mut other, 0, at);
        let snapshot = bytes(&one);
        prop_assert_eq!(&snapshot, &bytes(&other));
        let mut restored = snapshot::read(&mut &snapshot[..]).unwrap();
        prop_assert_eq!(&restored, &one);
        let rest = apply(&mut one, at, records.len());
        prop_assert_eq!(&rest, &apply(&mut restored, at, records.len()));
        prop_assert_eq!(&restored, &one);
        prop_assert_eq!(bytes(&restored), bytes(&one));
    }
}
