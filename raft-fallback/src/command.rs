//! What can be asked of the metadata store: one enum, one record of the metadata stream for each.
//!
//! **Who understands what.** Nodes of several versions apply the same records, and all must come to
//! the same state. So there are three rules:
//! 1. *A record that a node does not understand stops it.* A newer record version, an unknown flag,
//!    an unknown kind of command or a value without meaning is a [`DecodeError`]: nothing is applied
//!    from there on, and nothing is skipped. The node goes on with a newer build.
//! 2. *Bytes behind the known fields of the header or of a command are passed over.* A newer
//!    node may put optional fields there, and only such as change neither the state nor any outcome.
//! 3. *The metadata version* is part of the state ([`crate::State::version`]). Whatever changes what
//!    commands do, a limit too, comes with a greater
//!    [`METADATA_VERSION`](crate::limits::METADATA_VERSION), takes effect when
//!    [`Command::RaiseVersion`] is applied, and is not sent before. Brokers say which version they know
//!    when they register: the raise is rejected while one of them knows less, and so is, later, a
//!    broker that knows less. Whoever has not registered and knows less stops, by rule 1.
//!
//! The bytes are in `command/codec.rs`.

pub(crate) mod codec;
mod topic_name;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

pub use codec::{DecodeError, RECORD_VERSION};
pub use topic_name::{NameError, TopicName};

use crate::limits::{
    BROKER_ADDRESS_BYTES_MAX, BROKER_ADDRESSES_MAX, CONFIGURATION_ENTRIES_MAX,
    CONFIGURATION_KEY_BYTES_MAX, CONFIGURATION_VALUE_BYTES_MAX, KEY_BYTES_MAX, LEADER_EPOCH_MAX,
    PARTITIONS_MAX, REPLICATION_FACTOR_MAX, VALUE_BYTES_MAX, WATERMARKS_MAX,
};
use crate::session::Session;
use crate::state::{KeyVersion, TopicId};

/// A node that stores partitions: chosen by the operator.
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash, Debug)]
pub struct BrokerId(u64);

impl BrokerId {
    /// The broker with this id.
    pub const fn new(id: u64) -> Self {
        Self(id)
    }

    /// Its id.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for BrokerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One record of the metadata stream.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct Record {
    /// Milliseconds since 1970 on the clock of the leader that appended it. No node looks at its own
    /// clock when it applies.
    pub time_ms: u64,
    /// Who asked, and its how-manieth command this is: then it executes once, however often it is
    /// appended. None: it executes as often as it is appended.
    pub session: Option<Session>,
    /// What is to be done.
    pub command: Command,
}

/// What is to be done.
#[derive(Clone, Eq, PartialEq, Debug)]
#[non_exhaustive]
pub enum Command {
    /// Makes a topic, and places its partitions on the registered brokers.
    CreateTopic {
        /// Its name, which no other topic has.
        name: TopicName,
        /// How many partitions: 1 to [`PARTITIONS_MAX`].
        partitions: u32,
        /// How many brokers hold each: 1 to [`REPLICATION_FACTOR_MAX`]. As many must be registered.
        replication_factor: u16,
        /// Whatever else is known of it.
        configuration: BTreeMap<String, String>,
    },
    /// Drops a topic with all its partitions.
    DeleteTopic {
        /// Its name.
        name: TopicName,
    },
    /// Makes a broker known, or changes what is known of it.
    RegisterBroker {
        /// Which broker.
        broker: BrokerId,
        /// Where it is reached, the preferred address first.
        addresses: Vec<String>,
        /// The newest metadata version that it applies.
        knows: u32,
    },
    /// Forgets a broker. Partitions that it led are led by another one in sync, or by none.
    UnregisterBroker {
        /// Which broker.
        broker: BrokerId,
    },
    /// Says who leads a partition, and who has all of it.
    SetLeader {
        /// Of which topic. An id, so that a later topic of the same name is not meant.
        topic: TopicId,
        /// Which partition.
        partition: u32,
        /// Who leads: one of those in sync, or nobody.
        leader: Option<BrokerId>,
        /// Never less than what the partition has; greater, when another broker leads.
        leader_epoch: u64,
        /// Who has all of it: some of its replicas.
        in_sync: BTreeSet<BrokerId>,
    },
    /// Raises high watermarks, many at once; none ever falls.
    UpdateWatermarks {
        /// Those to be raised. Partitions that are not there, any more or yet, are counted and left out.
        watermarks: Vec<Watermark>,
    },
    /// Sets a key of the embedder.
    PutKey {
        /// Which key: 1 to [`KEY_BYTES_MAX`] bytes.
        key: Vec<u8>,
        /// Its value: up to [`VALUE_BYTES_MAX`] bytes.
        value: Vec<u8>,
        /// What must be there before.
        expected: Expected,
    },
    /// Removes a key of the embedder.
    DeleteKey {
        /// Which key.
        key: Vec<u8>,
        /// What must be there before.
        expected: Expected,
    },
    /// Raises the metadata version.
    RaiseVersion {
        /// To this one.
        version: u32,
    },
}

/// The high watermark of a partition: everything below is replicated as its topic wants it.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct Watermark {
    /// Of which topic.
    pub topic: TopicId,
    /// Which partition.
    pub partition: u32,
    /// The offset.
    pub offset: u64,
}

/// What a key must have before a command changes it.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Default)]
pub enum Expected {
    /// Anything, or nothing.
    #[default]
    Any,
    /// Nothing.
    Absent,
    /// The value that this record set.
    Version(KeyVersion),
}

/// Why a command cannot be a record.
#[derive(Clone, Eq, PartialEq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidCommand {
    /// A number or length out of its bounds.
    #[error("{what} is {value}; it must be {min} to {max}")]
    Bounds {
        /// What it is.
        what: &'static str,
        /// What it says.
        value: u64,
        /// The least.
        min: u64,
        /// The greatest.
        max: u64,
    },
    /// The record would be longer than any may be.
    #[error("the record has {bytes} bytes; {max} at most: send several, or shorter ones")]
    TooLong {
        /// How long it is.
        bytes: usize,
        /// How long it may be.
        max: usize,
    },
}

fn check(
    what: &'static str,
    value: usize,
    bounds: std::ops::RangeInclusive<usize>,
) -> Result<(), InvalidCommand> {
    if bounds.contains(&value) {
        return Ok(());
    }
    let [value, min, max] = [value, *bounds.start(), *bounds.end()].map(|number| number as u64);
    Err(InvalidCommand::Bounds { what, value, min, max })
}

impl Command {
    /// Whether everything is within its limits. Whoever encodes a record checks this, and whoever
    /// decodes one checks it again.
    ///
    /// # Errors
    /// What is not.
    pub fn check(&self) -> Result<(), InvalidCommand> {
        match self {
            Self::CreateTopic { name: _, partitions, replication_factor, configuration } => {
                check(
                    "the number of partitions",
                    *partitions as usize,
                    1..=PARTITIONS_MAX as usize,
                )?;
                let factors = 1..=usize::from(REPLICATION_FACTOR_MAX);
                check("the replication factor", usize::from(*replication_factor), factors)?;
                check_configuration(configuration)
            }
            Self::RegisterBroker { addresses, .. } => {
                check("the number of addresses", addresses.len(), 0..=BROKER_ADDRESSES_MAX)?;
                addresses.iter().try_for_each(|address| {
                    check("the length of an address", address.len(), 1..=BROKER_ADDRESS_BYTES_MAX)
                })
            }
            Self::SetLeader { leader_epoch, in_sync, .. } => {
                if *leader_epoch > LEADER_EPOCH_MAX {
                    let (value, max) = (*leader_epoch, LEADER_EPOCH_MAX);
                    let what = "the leader's epoch";
                    return Err(InvalidCommand::Bounds { what, value, min: 0, max });
                }
                let counts = 1..=usize::from(REPLICATION_FACTOR_MAX);
                check("the number of brokers in sync", in_sync.len(), counts)
            }
            Self::UpdateWatermarks { watermarks } => {
                check("the number of watermarks", watermarks.len(), 1..=WATERMARKS_MAX)
            }
            Self::PutKey { key, value, .. } => {
                check("the length of a key", key.len(), 1..=KEY_BYTES_MAX)?;
                check("the length of a value", value.len(), 0..=VALUE_BYTES_MAX)
            }
            Self::DeleteKey { key, .. } => {
                check("the length of a key", key.len(), 1..=KEY_BYTES_MAX)
            }
            Self::DeleteTopic { .. }
            | Self::UnregisterBroker { .. }
            | Self::RaiseVersion { .. } => Ok(()),
        }
    }
}

fn check_configuration(configuration: &BTreeMap<String, String>) -> Result<(), InvalidCommand> {
    check(
        "the number of configuration entries",
        configuration.len(),
        0..=CONFIGURATION_ENTRIES_MAX,
    )?;
    configuration.iter().try_for_each(|(key, value)| {
        check("the length of a configuration key", key.len(), 1..=CONFIGURATION_KEY_BYTES_MAX)?;
        let lengths = 0..=CONFIGURATION_VALUE_BYTES_MAX;
        check("the length of a configuration value", value.len(), lengths)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_checked_by_name() {
        let create = |partitions, replication_factor| Command::CreateTopic {
            name: TopicName::new("orders").unwrap(),
            partitions,
            replication_factor,
            configuration: BTreeMap::new(),
        };
        assert_eq!(create(PARTITIONS_MAX, REPLICATION_FACTOR_MAX).check(), Ok(()));
        for bad in [
            create(0, 1),
            create(PARTITIONS_MAX + 1, 1),
            create(1, 0),
            create(1, REPLICATION_FACTOR_MAX + 1),
            Command::UpdateWatermarks { watermarks: vec![] },
            Command::DeleteKey { key: vec![], expected: Expected::Any },
            Command::DeleteKey { key: vec![1; KEY_BYTES_MAX + 1], expected: Expected::Any },
            Command::PutKey {
                key: vec![1],
                value: vec![0; VALUE_BYTES_MAX + 1],
                expected: Expected::Any,
            },
            Command::RegisterBroker {
                broker: BrokerId::new(1),
                addresses: vec![String::new()],
                knows: 1,
            },
            Command::SetLeader {
                topic: TopicId::new(16),
                partition: 0,
                leader: None,
                leader_epoch: 1,
                in_sync: BTreeSet::new(),
            },
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
        let said = create(0, 1).check().unwrap_err().to_string();
        assert_eq!(said, "the number of partitions is 0; it must be 1 to 10000");
    }
}
