//! Every bound of the metadata store, by name.
//!
//! A bound decides whether a command does something, so every node must have the same ones: a change
//! of any of them is a new [`METADATA_VERSION`].

/// The newest metadata version that this build applies. See [`crate::command`] for the rule.
pub const METADATA_VERSION: u32 = 1;

/// Longest record of the metadata stream, in bytes, header included.
pub const RECORD_BYTES_MAX: usize = 1 << 20;

/// Longest topic name, in bytes.
pub const TOPIC_NAME_BYTES_MAX: usize = 249;
/// Most partitions of one topic.
pub const PARTITIONS_MAX: u32 = 10_000;
/// Most partitions of all topics together: each takes about 250 bytes of memory.
pub const PARTITIONS_TOTAL_MAX: u64 = 1 << 21;
/// Most replicas of a partition.
pub const REPLICATION_FACTOR_MAX: u16 = 16;
/// Most configuration entries of a topic.
pub const CONFIGURATION_ENTRIES_MAX: usize = 128;
/// Longest key of a configuration entry, in bytes.
pub const CONFIGURATION_KEY_BYTES_MAX: usize = 256;
/// Longest value of a configuration entry, in bytes.
pub const CONFIGURATION_VALUE_BYTES_MAX: usize = 4096;

/// Most registered brokers.
pub const BROKERS_MAX: usize = 10_000;
/// Most addresses of a broker.
pub const BROKER_ADDRESSES_MAX: usize = 16;
/// Longest address of a broker, in bytes.
pub const BROKER_ADDRESS_BYTES_MAX: usize = 512;

/// Greatest leader epoch that a command gives. What is counted from there on never comes to an end.
pub const LEADER_EPOCH_MAX: u64 = 1 << 55;
/// Most watermarks in one command.
pub const WATERMARKS_MAX: usize = 32_768;

/// Longest key of an embedder, in bytes.
pub const KEY_BYTES_MAX: usize = 1024;
/// Longest value of an embedder, in bytes.
pub const VALUE_BYTES_MAX: usize = 512 << 10;
/// Most bytes that all keys and values of an embedder have together.
pub const KEYS_BYTES_TOTAL_MAX: u64 = 256 << 20;

/// Most client sessions that are remembered; one more, and the one used longest ago is forgotten.
pub const SESSIONS_MAX: usize = 4096;
/// Most outcomes that are remembered of one session: the widest span of sequence numbers that its
/// client may have unanswered.
pub const SESSION_OUTCOMES_MAX: usize = 64;
