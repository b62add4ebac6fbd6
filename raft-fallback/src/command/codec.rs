//! The bytes of a record of the metadata stream. Little-endian; a checksum is in the frame that
//! holds the record.
//!
//! ```text
//!  0   2  record version: 1
//!  2   2  bytes of this header: 40, or more when a newer node adds optional fields behind
//!  4   2  kind of command
//!  6   2  flags that must be understood: none so far
//!  8   8  time of the leader, ms since 1970
//! 16  16  session: begun (8), random (8); zeroes for none
//! 32   8  sequence in the session, from 1 on; 0 without one
//! 40      the command, to the end of the record
//!
//! text: 2 bytes of length, UTF-8.  bytes: 4 bytes of length, bytes.  list: 4 bytes of count, items.
//!
//! 1 CreateTopic       name text, partitions 4, replication factor 2, list of (text, text), ascending
//! 2 DeleteTopic       name text
//! 3 RegisterBroker    broker 8, knows 4, list of text
//! 4 UnregisterBroker  broker 8
//! 5 SetLeader         topic 8, partition 4, leader epoch 8, has a leader 1, leader 8, list of 8, ascending
//! 6 UpdateWatermarks  list of (topic 8, partition 4, offset 8)
//! 7 PutKey            expected, key bytes, value bytes
//! 8 DeleteKey         expected, key bytes
//! 9 RaiseVersion      version 4
//! expected: 1 (0 any, 1 absent, 2 version), epoch 8, offset 8
//! ```

use std::collections::{BTreeMap, BTreeSet};

use crate::codec::{Malformed, Put, Reader};
use crate::command::{
    BrokerId, Command, Expected, InvalidCommand, NameError, Record, TopicName, Watermark,
};
use crate::limits::{
    BROKER_ADDRESS_BYTES_MAX, BROKER_ADDRESSES_MAX, CONFIGURATION_ENTRIES_MAX,
    CONFIGURATION_KEY_BYTES_MAX, CONFIGURATION_VALUE_BYTES_MAX, KEY_BYTES_MAX, RECORD_BYTES_MAX,
    REPLICATION_FACTOR_MAX, TOPIC_NAME_BYTES_MAX, VALUE_BYTES_MAX, WATERMARKS_MAX,
};
use crate::session::{Session, SessionId};
use crate::state::{KeyVersion, TopicId};

/// The record version of this build.
pub const RECORD_VERSION: u16 = 1;

const HEADER_BYTES: u16 = 40;

/// Why a record cannot be applied by this build, or by any. Applying stops there: see
/// [`crate::command`].
#[derive(Clone, Eq, PartialEq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// Its layout is newer than this build.
    #[error(
        "the record has version {found}, and this build reads {known}: run the version that wrote it"
    )]
    NewerRecord {
        /// Its version.
        found: u16,
        /// The newest that is known here.
        known: u16,
    },
    /// It has a flag of a newer build.
    #[error(
        "the record has flags {flags:#06x}, none of which this build knows: run a newer version"
    )]
    UnknownFlags {
        /// All of them.
        flags: u16,
    },
    /// It is a command of a newer build.
    #[error(
        "a command of kind {kind}, which this build does not know: run the version that sent it"
    )]
    UnknownCommand {
        /// Its kind.
        kind: u16,
    },
    /// It is longer than any may be.
    #[error("a record of {bytes} bytes; none has more than {max}: it is no metadata command")]
    TooLong {
        /// How long it is.
        bytes: usize,
        /// How long one may be.
        max: usize,
    },
    /// Its bytes make no sense.
    #[error("no metadata command: {0}")]
    Malformed(#[from] Malformed),
    /// A command beyond its limits.
    #[error("no metadata command of this build: {0}")]
    Invalid(#[from] InvalidCommand),
    /// A topic name that is none.
    #[error("no metadata command of this build: {0}")]
    Name(#[from] NameError),
}

impl Record {
    /// The bytes to be appended to the metadata stream.
    ///
    /// # Errors
    /// When the command is beyond its limits, or the record beyond [`RECORD_BYTES_MAX`].
    pub fn encode(&self) -> Result<Vec<u8>, InvalidCommand> {
        let Self { time_ms, session, command } = self;
        command.check()?;
        let mut bytes = Vec::with_capacity(128);
        bytes.put_u16(RECORD_VERSION);
        bytes.put_u16(HEADER_BYTES);
        bytes.put_u16(command.kind());
        bytes.put_u16(0);
        bytes.put_u64(*time_ms);
        let (begun, random, sequence) = session.as_ref().map_or((0, 0, 0), |session| {
            (session.id().begun(), session.id().random(), session.sequence())
        });
        [begun, random, sequence].into_iter().for_each(|word| bytes.put_u64(word));
        command.put(&mut bytes);
        let (length, max) = (bytes.len(), RECORD_BYTES_MAX);
        if length > max { Err(InvalidCommand::TooLong { bytes: length, max }) } else { Ok(bytes) }
    }

    /// Reads and checks the bytes of one record.
    ///
    /// # Errors
    /// Why it is none, or none that this build understands.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        if bytes.len() > RECORD_BYTES_MAX {
            return Err(DecodeError::TooLong { bytes: bytes.len(), max: RECORD_BYTES_MAX });
        }
        let mut header = Reader(bytes);
        let found = header.u16("the record's version")?;
        if found > RECORD_VERSION {
            return Err(DecodeError::NewerRecord { found, known: RECORD_VERSION });
        }
        if found == 0 {
            return Err(Malformed::Value { what: "the record's version", value: 0 }.into());
        }
        let header_bytes = header.u16("the header's length")?;
        if header_bytes < HEADER_BYTES {
            let value = u64::from(header_bytes);
            return Err(Malformed::Value { what: "the header's length", value }.into());
        }
        let kind = header.u16("the kind of command")?;
        let flags = header.u16("the flags")?;
        if flags != 0 {
            return Err(DecodeError::UnknownFlags { flags });
        }
        let time_ms = header.u64("the time")?;
        let session = session(&mut header)?;
        let mut body = Reader(bytes);
        body.take(usize::from(header_bytes), "the header")?;
        let command = Command::read(kind, &mut body)?;
        command.check()?;
        Ok(Self { time_ms, session, command })
    }
}

fn session(header: &mut Reader<'_>) -> Result<Option<Session>, Malformed> {
    let what = "the session";
    let (begun, random, sequence) = (header.u64(what)?, header.u64(what)?, header.u64(what)?);
    if (begun, random, sequence) == (0, 0, 0) {
        return Ok(None);
    }
    let session = SessionId::new(begun, random).and_then(|id| Session::new(id, sequence));
    session
        .map(Some)
        .ok_or(Malformed::Place("a session without a random part, or without sequence"))
}

impl Command {
    fn kind(&self) -> u16 {
        match self {
            Self::CreateTopic { .. } => 1,
            Self::DeleteTopic { .. } => 2,
            Self::RegisterBroker { .. } => 3,
            Self::UnregisterBroker { .. } => 4,
            Self::SetLeader { .. } => 5,
            Self::UpdateWatermarks { .. } => 6,
            Self::PutKey { .. } => 7,
            Self::DeleteKey { .. } => 8,
            Self::RaiseVersion { .. } => 9,
        }
    }

    fn put(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::CreateTopic { name, partitions, replication_factor, configuration } => {
                bytes.put_text(name.as_str());
                bytes.put_u32(*partitions);
                bytes.put_u16(*replication_factor);
                put_configuration(bytes, configuration);
            }
            Self::DeleteTopic { name } => bytes.put_text(name.as_str()),
            Self::RegisterBroker { broker, addresses, knows } => {
                bytes.put_u64(broker.get());
                bytes.put_u32(*knows);
                put_addresses(bytes, addresses);
            }
            Self::UnregisterBroker { broker } => bytes.put_u64(broker.get()),
            Self::SetLeader { topic, partition, leader, leader_epoch, in_sync } => {
                bytes.put_u64(topic.get());
                bytes.put_u32(*partition);
                bytes.put_u64(*leader_epoch);
                put_leader(bytes, *leader);
                bytes.put_count(in_sync.len());
                in_sync.iter().for_each(|broker| bytes.put_u64(broker.get()));
            }
            Self::UpdateWatermarks { watermarks } => {
                bytes.put_count(watermarks.len());
                for Watermark { topic, partition, offset } in watermarks {
                    bytes.put_u64(topic.get());
                    bytes.put_u32(*partition);
                    bytes.put_u64(*offset);
                }
            }
            Self::PutKey { key, value, expected } => {
                put_expected(bytes, *expected);
                bytes.put_bytes(key);
                bytes.put_bytes(value);
            }
            Self::DeleteKey { key, expected } => {
                put_expected(bytes, *expected);
                bytes.put_bytes(key);
            }
            Self::RaiseVersion { version } => bytes.put_u32(*version),
        }
    }

    fn read(kind: u16, body: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(match kind {
            1 => Self::CreateTopic {
                name: topic_name(body)?,
                partitions: body.u32("the number of partitions")?,
                replication_factor: body.u16("the replication factor")?,
                configuration: configuration(body)?,
            },
            2 => Self::DeleteTopic { name: topic_name(body)? },
            3 => Self::RegisterBroker {
                broker: broker(body)?,
                knows: body.u32("the known version")?,
                addresses: addresses(body)?,
            },
            4 => Self::UnregisterBroker { broker: broker(body)? },
            5 => Self::SetLeader {
                topic: TopicId::new(body.u64("the topic")?),
                partition: body.u32("the partition")?,
                leader_epoch: body.u64("the leader's epoch")?,
                leader: leader(body)?,
                in_sync: in_sync(body)?,
            },
            6 => Self::UpdateWatermarks { watermarks: watermarks(body)? },
            7 => Self::PutKey {
                expected: expected(body)?,
                key: body.bytes(KEY_BYTES_MAX, "the key")?.to_vec(),
                value: body.bytes(VALUE_BYTES_MAX, "the value")?.to_vec(),
            },
            8 => Self::DeleteKey {
                expected: expected(body)?,
                key: body.bytes(KEY_BYTES_MAX, "the key")?.to_vec(),
            },
            9 => Self::RaiseVersion { version: body.u32("the version")? },
            kind => return Err(DecodeError::UnknownCommand { kind }),
        })
    }
}

pub(crate) fn topic_name(reader: &mut Reader<'_>) -> Result<TopicName, DecodeError> {
    Ok(TopicName::new(reader.text(TOPIC_NAME_BYTES_MAX, "the topic's name")?)?)
}

pub(crate) fn put_configuration(bytes: &mut impl Put, configuration: &BTreeMap<String, String>) {
    bytes.put_count(configuration.len());
    put_texts(bytes, configuration);
}

/// The same without the count.
pub(crate) fn put_texts(bytes: &mut impl Put, configuration: &BTreeMap<String, String>) {
    for (key, value) in configuration {
        bytes.put_text(key);
        bytes.put_text(value);
    }
}

fn configuration(reader: &mut Reader<'_>) -> Result<BTreeMap<String, String>, Malformed> {
    let mut configuration = BTreeMap::new();
    configuration_bytes(reader, |key, value| {
        configuration.insert(key.to_owned(), value.to_owned());
    })?;
    Ok(configuration)
}

/// Checks a configuration, gives each entry to `entry`, and returns the bytes behind the count.
pub(crate) fn configuration_bytes<'a>(
    reader: &mut Reader<'a>,
    mut entry: impl FnMut(&str, &str),
) -> Result<&'a [u8], Malformed> {
    let count = reader.count(CONFIGURATION_ENTRIES_MAX, 4, "the configuration")?;
    let bytes = reader.0;
    let mut last: Option<&str> = None;
    for _ in 0..count {
        let key = reader.text(CONFIGURATION_KEY_BYTES_MAX, "a configuration key")?;
        let value = reader.text(CONFIGURATION_VALUE_BYTES_MAX, "a configuration value")?;
        if last.is_some_and(|last| last >= key) {
            return Err(Malformed::Place("configuration keys are not in order"));
        }
        last = Some(key);
        entry(key, value);
    }
    Ok(&bytes[..bytes.len() - reader.0.len()])
}

pub(crate) fn broker(reader: &mut Reader<'_>) -> Result<BrokerId, Malformed> {
    reader.u64("the broker").map(BrokerId::new)
}

pub(crate) fn put_addresses(bytes: &mut impl Put, addresses: &[String]) {
    bytes.put_count(addresses.len());
    addresses.iter().for_each(|address| bytes.put_text(address));
}

pub(crate) fn addresses(reader: &mut Reader<'_>) -> Result<Vec<String>, Malformed> {
    let count = reader.count(BROKER_ADDRESSES_MAX, 2, "the addresses")?;
    let address = |_| reader.text(BROKER_ADDRESS_BYTES_MAX, "an address").map(str::to_owned);
    (0..count).map(address).collect()
}

pub(crate) fn put_leader(bytes: &mut impl Put, leader: Option<BrokerId>) {
    bytes.put_u8(leader.is_some().into());
    bytes.put_u64(leader.map_or(0, BrokerId::get));
}

pub(crate) fn leader(reader: &mut Reader<'_>) -> Result<Option<BrokerId>, Malformed> {
    match (reader.u8("the leader")?, reader.u64("the leader")?) {
        (0, 0) => Ok(None),
        (1, leader) => Ok(Some(BrokerId::new(leader))),
        (value, _) => {
            Err(Malformed::Value { what: "whether there is a leader", value: value.into() })
        }
    }
}

pub(crate) fn in_sync(reader: &mut Reader<'_>) -> Result<BTreeSet<BrokerId>, Malformed> {
    let count = reader.count(usize::from(REPLICATION_FACTOR_MAX), 8, "the brokers in sync")?;
    let mut in_sync = BTreeSet::new();
    for _ in 0..count {
        let broker = broker(reader)?;
        if in_sync.last().is_some_and(|last| *last >= broker) {
            return Err(Malformed::Place("brokers in sync are not in order"));
        }
        in_sync.insert(broker);
    }
    Ok(in_sync)
}

fn watermarks(reader: &mut Reader<'_>) -> Result<Vec<Watermark>, Malformed> {
    let count = reader.count(WATERMARKS_MAX, 20, "the watermarks")?;
    let mut watermarks = Vec::with_capacity(count);
    for _ in 0..count {
        let topic = TopicId::new(reader.u64("a watermark's topic")?);
        let partition = reader.u32("a watermark's partition")?;
        let offset = reader.u64("a watermark")?;
        watermarks.push(Watermark { topic, partition, offset });
    }
    Ok(watermarks)
}

fn put_expected(bytes: &mut Vec<u8>, expected: Expected) {
    let (code, epoch, offset) = match expected {
        Expected::Any => (0, 0, 0),
        Expected::Absent => (1, 0, 0),
        Expected::Version(KeyVersion { epoch, offset }) => (2, epoch, offset),
    };
    bytes.put_u8(code);
    bytes.put_u64(epoch);
    bytes.put_u64(offset);
}

fn expected(reader: &mut Reader<'_>) -> Result<Expected, Malformed> {
    let what = "what the key must have";
    match (reader.u8(what)?, reader.u64(what)?, reader.u64(what)?) {
        (0, 0, 0) => Ok(Expected::Any),
        (1, 0, 0) => Ok(Expected::Absent),
        (2, epoch, offset) => Ok(Expected::Version(KeyVersion { epoch, offset })),
        (value, ..) => Err(Malformed::Value { what, value: value.into() }),
    }
}

#[cfg(test)]
mod tests;
