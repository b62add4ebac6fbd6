//! The state that every node comes to by applying the metadata stream, record by record.
//!
//! No I/O, no clock, no chance and no hashing order: equal records give equal states and equal
//! outcomes. [`State::apply`] is the only thing that changes a state.

mod brokers;
mod configuration;
mod keys;
pub(crate) mod outcome;
mod topics;

use std::collections::BTreeSet;

use ringwal_engine::mutants::{self, Mutant};

pub use brokers::Broker;
pub(crate) use brokers::Brokers;
pub use configuration::Configuration;
pub(crate) use keys::Keys;
pub use keys::{KeyValue, KeyVersion};
pub use outcome::{Applied, Bound, Done, Outcome, Rejection};
pub(crate) use topics::Topics;
pub use topics::{Assignment, FIRST_STREAM, InSync, Partition, Topic, TopicId};

use crate::command::{BrokerId, Command, Record, TopicName};
use crate::limits::METADATA_VERSION;
use crate::session::{Admission, Sessions};

/// Topics, brokers, watermarks and keys, after all records below [`State::end`].
///
/// It is applied by one thread; see [`crate::Metadata`] for sharing it. All of it is in memory.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct State {
    pub(crate) version: u32,
    pub(crate) end: u64,
    pub(crate) epoch: u64,
    pub(crate) topics: Topics,
    pub(crate) brokers: Brokers,
    pub(crate) keys: Keys,
    pub(crate) sessions: Sessions,
}

/// Why a record cannot be applied. The state is as before, and applying stops: going on would leave
/// a hole, or do what other nodes do not.
#[derive(Clone, Eq, PartialEq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApplyError {
    /// It is not the next one.
    #[error(
        "the record at offset {offset} was given to be applied, and {expected} is next: give every record once, in order"
    )]
    Order {
        /// Its offset.
        offset: u64,
        /// That of the next one.
        expected: u64,
    },
    /// Epochs never fall along a stream.
    #[error(
        "the record at offset {offset} has epoch {epoch}, after one of epoch {last}: the stream is damaged, or records of two histories were mixed"
    )]
    Epoch {
        /// Its offset.
        offset: u64,
        /// Its epoch.
        epoch: u64,
        /// The epoch of the record before.
        last: u64,
    },
    /// It is no command that this build understands.
    #[error("the record at offset {offset} of the metadata stream cannot be applied: {error}")]
    Decode {
        /// Its offset.
        offset: u64,
        /// What is wrong with it.
        error: crate::command::DecodeError,
    },
    /// It raises the metadata version beyond this build.
    #[error(
        "the record at offset {offset} raises the metadata version to {version}, and this build knows {METADATA_VERSION}: run a newer one"
    )]
    NewerVersion {
        /// Its offset.
        offset: u64,
        /// To which version.
        version: u32,
    },
}

impl Default for State {
    /// Before the first record.
    fn default() -> Self {
        Self {
            version: 1,
            end: 0,
            epoch: 0,
            topics: Topics::default(),
            brokers: Brokers::default(),
            keys: Keys::default(),
            sessions: Sessions::default(),
        }
    }
}

impl State {
    /// Applies the record at `offset`, which is [`State::end`], of this epoch. A rejected command is
    /// applied too: that is its outcome.
    ///
    /// # Errors
    /// When it cannot be applied here. Nothing has changed then.
    pub fn apply(
        &mut self,
        offset: u64,
        epoch: u64,
        record: Record,
    ) -> Result<Applied, ApplyError> {
        if offset != self.end {
            return Err(ApplyError::Order { offset, expected: self.end });
        }
        if epoch < self.epoch {
            return Err(ApplyError::Epoch { offset, epoch, last: self.epoch });
        }
        let Record { time_ms, session, command } = record;
        if let Command::RaiseVersion { version } = command
            && version > METADATA_VERSION
        {
            return Err(ApplyError::NewerVersion { offset, version });
        }
        self.end = offset + 1;
        self.epoch = epoch;
        let applied = |outcome| Applied { epoch, offset, is_retry: false, outcome };
        let session = session.filter(|_| !mutants::is(Mutant::SessionIgnored));
        match session.map(|session| (session, self.sessions.admit(session, offset))) {
            None => Ok(applied(self.execute(offset, epoch, time_ms, command))),
            Some((_, Admission::Again(first))) => Ok(Applied { is_retry: true, ..first }),
            Some((_, Admission::Refuse(why))) => Ok(applied(Err(why))),
            Some((session, Admission::Execute)) => {
                let applied = applied(self.execute(offset, epoch, time_ms, command));
                self.sessions.remember(session, applied);
                Ok(applied)
            }
        }
    }

    fn execute(&mut self, offset: u64, epoch: u64, time_ms: u64, command: Command) -> Outcome {
        match command {
            Command::CreateTopic { name, partitions, replication_factor, configuration } => {
                let (created_ms, count) = (time_ms, partitions as usize);
                let configuration = Configuration::from(&configuration);
                let partitions = Vec::new();
                let topic =
                    Topic { name, replication_factor, configuration, created_ms, partitions };
                let place = || self.brokers.place(offset, count, replication_factor);
                self.topics.create(epoch, topic, place)
            }
            Command::DeleteTopic { name } => self.topics.delete(&name),
            Command::RegisterBroker { broker, addresses, knows } => {
                let registered_ms = time_ms;
                if knows < self.version {
                    return Err(Rejection::BrokerTooOld { broker, knows });
                }
                self.brokers.register(broker, Broker { addresses, knows, registered_ms })
            }
            Command::UnregisterBroker { broker } => {
                let done = self.brokers.unregister(broker)?;
                self.topics.leave(broker);
                Ok(done)
            }
            Command::SetLeader { topic, partition, leader, leader_epoch, in_sync } => {
                self.check_registered(leader, &in_sync)?;
                let partition = self.topics.partition_mut(topic, partition)?;
                partition.set_leader(leader, leader_epoch, in_sync)
            }
            Command::UpdateWatermarks { watermarks } => Ok(self.topics.raise(&watermarks)),
            Command::PutKey { key, value, expected } => {
                let version = KeyVersion { epoch, offset };
                self.keys.put(key, KeyValue { value, version }, expected)
            }
            Command::DeleteKey { key, expected } => self.keys.delete(&key, expected),
            Command::RaiseVersion { version } => self.raise_version(version),
        }
    }

    fn check_registered(
        &self,
        leader: Option<BrokerId>,
        in_sync: &BTreeSet<BrokerId>,
    ) -> Result<(), Rejection> {
        let unknown = |broker: &&BrokerId| self.brokers.get(**broker).is_none();
        match leader.iter().chain(in_sync).find(unknown) {
            Some(broker) => Err(Rejection::BrokerNotFound { broker: *broker }),
            None => Ok(()),
        }
    }

    fn raise_version(&mut self, version: u32) -> Outcome {
        if version <= self.version {
            return Ok(Done::Unchanged);
        }
        match self.brokers.iter().find(|(_, broker)| broker.knows < version) {
            Some((broker, Broker { knows, .. })) => {
                Err(Rejection::BrokerTooOld { broker, knows: *knows })
            }
            None => {
                self.version = version;
                Ok(Done::Changed)
            }
        }
    }

    /// The offset of the next record: every one below is applied.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// The epoch of the last record; 0 before the first.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The metadata version. See [`crate::command`].
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The topic of this name.
    pub fn topic(&self, name: &TopicName) -> Option<(TopicId, &Topic)> {
        self.topics.by_name(name)
    }

    /// The topic with this id.
    pub fn topic_by_id(&self, id: TopicId) -> Option<&Topic> {
        self.topics.get(id)
    }

    /// All topics, by id: in the order in which they were made.
    pub fn topics(&self) -> impl ExactSizeIterator<Item = (TopicId, &Topic)> {
        self.topics.iter()
    }

    /// The brokers and the stream of a partition.
    pub fn assignment(&self, name: &TopicName, partition: u32) -> Option<Assignment> {
        let (id, topic) = self.topics.by_name(name)?;
        let placed = topic.partitions.get(partition as usize)?;
        Some(Assignment {
            topic: id,
            partition,
            stream: id.stream(partition),
            placed: placed.clone(),
        })
    }

    /// The high watermark of a partition.
    pub fn watermark(&self, topic: TopicId, partition: u32) -> Option<u64> {
        let topic = self.topics.get(topic)?;
        topic.partitions.get(partition as usize).map(|placed| placed.high_watermark)
    }

    /// What is known of a broker, if it is registered.
    pub fn broker(&self, id: BrokerId) -> Option<&Broker> {
        self.brokers.get(id)
    }

    /// All registered brokers, by id.
    pub fn brokers(&self) -> impl ExactSizeIterator<Item = (BrokerId, &Broker)> {
        self.brokers.iter()
    }

    /// A key of the embedder.
    pub fn key(&self, key: &[u8]) -> Option<&KeyValue> {
        self.keys.get(key)
    }

    /// The embedder's keys that begin with `prefix`, in order; all, when it is empty.
    pub fn keys<'a>(&'a self, prefix: &'a [u8]) -> impl Iterator<Item = (&'a [u8], &'a KeyValue)> {
        self.keys.with_prefix(prefix)
    }

    /// How many client sessions are remembered.
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }
}

#[cfg(test)]
mod tests;
