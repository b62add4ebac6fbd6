//! What the chunks of a snapshot hold. No item goes over the end of a chunk.
//!
//! ```text
//! 1 state      metadata version 4, end 8, epoch 8, next stream 8, sessions forgotten up to 8
//! 2 broker     id 8, knows 4, registered 8, list of text                          each, by id
//! 3 topic      id 8, name text, replication factor 2, created 8, partitions 4,
//!              list of (text, text)                                               each, by id
//! 4 partition  leader epoch 8, has a leader 1, leader 8, watermark 8,
//!              list of 8 (replicas), list of 8 (in sync)                          each, of the topic before
//! 5 key        epoch 8, offset 8, key bytes, value bytes                          each, by key
//! 6 session    begun 8, random 8, last used 8, forgotten 8, outcomes 4            each, by id
//! 7 outcome    sequence 8, epoch 8, offset 8, code 2, word 8, word 8              each, of the session before
//! ```
//!
//! Each item begins with its kind, 1 byte. They come in this order.

use std::io;

use crate::codec::{Malformed, Put, Reader};
use crate::command::{BrokerId, DecodeError, codec};
use crate::limits::{
    KEY_BYTES_MAX, METADATA_VERSION, PARTITIONS_MAX, REPLICATION_FACTOR_MAX, SESSION_OUTCOMES_MAX,
    VALUE_BYTES_MAX,
};
use crate::session::{Remembered, SessionId, Sessions};
use crate::state::{
    Applied, Broker, Configuration, InSync, KeyValue, KeyVersion, Partition, State, Topic, TopicId,
    Topics, outcome,
};

/// No offset is greater: one can be added without a second thought.
const OFFSET_MAX: u64 = 1 << 56;

const STATE: u8 = 1;
const BROKER: u8 = 2;
const TOPIC: u8 = 3;
const PARTITION: u8 = 4;
const KEY: u8 = 5;
const SESSION: u8 = 6;
const OUTCOME: u8 = 7;

/// Takes one item after the other.
type Sink<'a> = &'a mut dyn FnMut(&dyn Fn(&mut Vec<u8>)) -> io::Result<()>;

pub(super) fn write(state: &State, sink: Sink<'_>) -> io::Result<()> {
    sink(&|bytes| {
        bytes.put_u8(STATE);
        bytes.put_u32(state.version);
        let State { end, epoch, .. } = *state;
        let others = [state.topics.next_stream(), state.sessions.forgotten_end()];
        [end, epoch].into_iter().chain(others).for_each(|word| bytes.put_u64(word));
    })?;
    for (id, broker) in state.brokers.iter() {
        sink(&|bytes| put_broker(bytes, id, broker))?;
    }
    for (id, topic) in state.topics.iter() {
        sink(&|bytes| put_topic(bytes, id, topic))?;
        for partition in &topic.partitions {
            sink(&|bytes| put_partition(bytes, partition))?;
        }
    }
    for (key, value) in state.keys.iter() {
        sink(&|bytes| put_key(bytes, key, value))?;
    }
    for (id, remembered) in state.sessions.iter() {
        sink(&|bytes| put_session(bytes, id, remembered))?;
        for (sequence, applied) in &remembered.outcomes {
            sink(&|bytes| put_outcome(bytes, *sequence, *applied))?;
        }
    }
    Ok(())
}

fn put_broker(bytes: &mut Vec<u8>, id: BrokerId, broker: &Broker) {
    bytes.put_u8(BROKER);
    bytes.put_u64(id.get());
    bytes.put_u32(broker.knows);
    bytes.put_u64(broker.registered_ms);
    codec::put_addresses(bytes, &broker.addresses);
}

fn put_topic(bytes: &mut Vec<u8>, id: TopicId, topic: &Topic) {
    bytes.put_u8(TOPIC);
    bytes.put_u64(id.get());
    bytes.put_text(topic.name.as_str());
    bytes.put_u16(topic.replication_factor);
    bytes.put_u64(topic.created_ms);
    bytes.put_count(topic.partitions.len());
    bytes.put_count(topic.configuration.iter().count());
    bytes.put(topic.configuration.as_bytes());
}

fn put_partition(bytes: &mut Vec<u8>, partition: &Partition) {
    let Partition { replicas, leader, leader_epoch, in_sync: _, high_watermark } = partition;
    bytes.put_u8(PARTITION);
    bytes.put_u64(*leader_epoch);
    codec::put_leader(bytes, *leader);
    bytes.put_u64(*high_watermark);
    bytes.put_count(replicas.len());
    replicas.iter().for_each(|broker| bytes.put_u64(broker.get()));
    let (mut in_sync, mut count) = ([0; REPLICATION_FACTOR_MAX as usize], 0);
    for broker in partition.in_sync() {
        in_sync[count] = broker.get();
        count += 1;
    }
    let in_sync = &mut in_sync[..count];
    in_sync.sort_unstable();
    bytes.put_count(count);
    in_sync.iter().for_each(|broker| bytes.put_u64(*broker));
}

fn put_key(bytes: &mut Vec<u8>, key: &[u8], value: &KeyValue) {
    bytes.put_u8(KEY);
    bytes.put_u64(value.version.epoch);
    bytes.put_u64(value.version.offset);
    bytes.put_bytes(key);
    bytes.put_bytes(&value.value);
}

fn put_session(bytes: &mut Vec<u8>, id: SessionId, remembered: &Remembered) {
    bytes.put_u8(SESSION);
    let Remembered { last_used, forgotten, outcomes } = remembered;
    let words = [id.begun(), id.random(), *last_used, *forgotten];
    words.into_iter().for_each(|word| bytes.put_u64(word));
    bytes.put_count(outcomes.len());
}

fn put_outcome(bytes: &mut Vec<u8>, sequence: u64, applied: Applied) {
    bytes.put_u8(OUTCOME);
    [sequence, applied.epoch, applied.offset].into_iter().for_each(|word| bytes.put_u64(word));
    let (code, one, two) = outcome::to_words(applied.outcome);
    bytes.put_u16(code);
    bytes.put_u64(one);
    bytes.put_u64(two);
}

/// A state that is being read.
#[derive(Debug, Default)]
pub(super) struct Building {
    state: Option<State>,
    /// The kind of the last item, without those that belong to another one.
    last: u8,
    /// A topic that has still to get partitions, and how many.
    topic: Option<(TopicId, Topic, usize)>,
    /// A session that has still to get outcomes, and how many.
    session: Option<(SessionId, Remembered, usize)>,
}

pub(super) enum ItemError {
    NewerVersion(u32),
    Content(DecodeError),
}

impl<E: Into<DecodeError>> From<E> for ItemError {
    fn from(error: E) -> Self {
        Self::Content(error.into())
    }
}

fn must(holds: bool, what: &'static str) -> Result<(), Malformed> {
    if holds { Ok(()) } else { Err(Malformed::Place(what)) }
}

impl Building {
    /// Takes the items of a chunk.
    pub(super) fn read(&mut self, bytes: &[u8]) -> Result<(), ItemError> {
        let mut reader = Reader(bytes);
        while !reader.0.is_empty() {
            self.item(&mut reader)?;
        }
        Ok(())
    }

    pub(super) fn finish(self) -> Result<State, DecodeError> {
        must(self.is_whole(), "a topic or a session is not whole")?;
        let mut state = self.state.ok_or(Malformed::Place("nothing is there"))?;
        must(state.topics.restore_names(), "two topics have one name")?;
        Ok(state)
    }

    fn is_whole(&self) -> bool {
        self.topic.is_none() && self.session.is_none()
    }

    fn item(&mut self, reader: &mut Reader<'_>) -> Result<(), ItemError> {
        let kind = reader.u8("the kind of an item")?;
        match kind {
            PARTITION => return self.partition(reader),
            OUTCOME => return self.outcome(reader),
            _ => {}
        }
        must(self.is_whole(), "a topic or a session is not whole")?;
        let follows = if kind == STATE { self.last == 0 } else { kind >= self.last };
        must(follows && (self.last > 0 || kind == STATE), "an item is out of order")?;
        self.last = kind;
        match kind {
            STATE => self.begin(reader),
            BROKER => self.broker(reader),
            TOPIC => self.begin_topic(reader),
            KEY => self.key(reader),
            SESSION => self.begin_session(reader),
            kind => {
                let (what, value) = ("the kind of an item", u64::from(kind));
                Err(Malformed::Value { what, value }.into())
            }
        }
    }

    fn state(&mut self) -> &mut State {
        self.state.as_mut().expect("it is the first item")
    }

    fn begin(&mut self, reader: &mut Reader<'_>) -> Result<(), ItemError> {
        let version = reader.u32("the metadata version")?;
        if version > METADATA_VERSION {
            return Err(ItemError::NewerVersion(version));
        }
        let mut word = || reader.u64("the state");
        let (end, epoch, next_stream, forgotten_end) = (word()?, word()?, word()?, word()?);
        let is_possible = version > 0 && end <= OFFSET_MAX && forgotten_end <= end;
        must(is_possible, "no state can be so")?;
        let topics = Topics::restored(next_stream);
        let sessions = Sessions::restored(forgotten_end);
        self.state = Some(State { version, end, epoch, topics, sessions, ..State::default() });
        Ok(())
    }

    fn broker(&mut self, reader: &mut Reader<'_>) -> Result<(), ItemError> {
        let id = codec::broker(reader)?;
        let knows = reader.u32("the known version")?;
        let registered_ms = reader.u64("when a broker was registered")?;
        let addresses = codec::addresses(reader)?;
        let broker = Broker { addresses, knows, registered_ms };
        Ok(must(self.state().brokers.restore(id, broker), "a broker is out of order")?)
    }

    fn begin_topic(&mut self, reader: &mut Reader<'_>) -> Result<(), ItemError> {
        let id = TopicId::new(reader.u64("the topic")?);
        let name = codec::topic_name(reader)?;
        let replication_factor = reader.u16("the replication factor")?;
        let created_ms = reader.u64("when a topic was made")?;
        let count = reader.count(PARTITIONS_MAX as usize, 0, "the partitions")?;
        let configuration = Configuration::read(reader)?;
        must(count > 0, "a topic has no partition")?;
        let partitions = Vec::with_capacity(count);
        let topic = Topic { name, replication_factor, configuration, created_ms, partitions };
        self.topic = Some((id, topic, count));
        Ok(())
    }

    fn partition(&mut self, reader: &mut Reader<'_>) -> Result<(), ItemError> {
        let (id, mut topic, due) =
            self.topic.take().ok_or(Malformed::Place("a partition has no topic"))?;
        let leader_epoch = reader.u64("the leader's epoch")?;
        let leader = codec::leader(reader)?;
        let high_watermark = reader.u64("a watermark")?;
        let count = reader.count(usize::from(REPLICATION_FACTOR_MAX), 8, "the replicas")?;
        let replicas = (0..count).map(|_| codec::broker(reader)).collect::<Result<Vec<_>, _>>()?;
        let is_repeated = |place: usize| replicas[..place].contains(&replicas[place]);
        must(!(1..count).any(is_repeated), "a broker has two replicas of a partition")?;
        let in_sync = Self::in_sync(reader, &replicas)?;
        topic.partitions.push(Partition {
            replicas,
            leader,
            leader_epoch,
            in_sync,
            high_watermark,
        });
        if topic.partitions.len() < due {
            self.topic = Some((id, topic, due));
            return Ok(());
        }
        Ok(must(self.state().topics.restore(id, topic), "a topic is out of order")?)
    }

    fn in_sync(reader: &mut Reader<'_>, replicas: &[BrokerId]) -> Result<InSync, ItemError> {
        let count = reader.count(usize::from(REPLICATION_FACTOR_MAX), 8, "the brokers in sync")?;
        must(count > 0, "nobody is in sync")?;
        let mut in_sync = [BrokerId::new(0); REPLICATION_FACTOR_MAX as usize];
        for place in 0..count {
            in_sync[place] = codec::broker(reader)?;
            let is_in_order = place == 0 || in_sync[place - 1] < in_sync[place];
            must(is_in_order, "brokers in sync are not in order")?;
        }
        let in_sync = InSync::new(replicas, in_sync[..count].iter().copied());
        Ok(in_sync.map_err(|_| Malformed::Place("who is in sync has no replica"))?)
    }

    fn key(&mut self, reader: &mut Reader<'_>) -> Result<(), ItemError> {
        let (epoch, offset) = (reader.u64("a key")?, reader.u64("a key")?);
        let key = reader.bytes(KEY_BYTES_MAX, "a key")?.to_vec();
        let value = reader.bytes(VALUE_BYTES_MAX, "a value")?.to_vec();
        let value = KeyValue { value, version: KeyVersion { epoch, offset } };
        Ok(must(self.state().keys.restore(key, value), "a key is out of order")?)
    }

    fn begin_session(&mut self, reader: &mut Reader<'_>) -> Result<(), ItemError> {
        let mut word = || reader.u64("a session");
        let (begun, random, last_used, forgotten) = (word()?, word()?, word()?, word()?);
        let id = SessionId::new(begun, random).ok_or(Malformed::Place("a session of nobody"))?;
        let due = reader.count(SESSION_OUTCOMES_MAX, 0, "the outcomes")?;
        must(begun <= last_used && last_used < self.state().end, "no session can be so")?;
        let remembered = Remembered { last_used, forgotten, ..Remembered::default() };
        self.session_or_done(id, remembered, due)
    }

    fn session_or_done(
        &mut self,
        id: SessionId,
        remembered: Remembered,
        due: usize,
    ) -> Result<(), ItemError> {
        if remembered.outcomes.len() < due {
            self.session = Some((id, remembered, due));
            return Ok(());
        }
        let restored = self.state().sessions.restore(id, remembered);
        Ok(must(restored, "a session is out of order")?)
    }

    fn outcome(&mut self, reader: &mut Reader<'_>) -> Result<(), ItemError> {
        let (id, mut remembered, due) =
            self.session.take().ok_or(Malformed::Place("an outcome has no session"))?;
        let mut word = || reader.u64("an outcome");
        let (sequence, epoch, offset) = (word()?, word()?, word()?);
        let code = reader.u16("an outcome")?;
        let mut word = || reader.u64("an outcome");
        let outcome = outcome::from_words(code, word()?, word()?);
        let (what, value) = ("an outcome", u64::from(code));
        let outcome = outcome.ok_or(Malformed::Value { what, value })?;
        let last = remembered.outcomes.back().map_or(remembered.forgotten, |(last, _)| *last);
        must(sequence > last, "an outcome is out of order")?;
        let applied = Applied { epoch, offset, is_retry: false, outcome };
        remembered.outcomes.push_back((sequence, applied));
        self.session_or_done(id, remembered, due)
    }
}
