//! What an operator chooses for a node with a metadata store: replication's table, and `[raft]` beside it.

use std::time::Duration;

use ringwal_replication::config::{Config as ReplicationConfig, ConfigError};
use serde::Deserialize;

use crate::raft::config::{RaftTimes, TimesError};

/// Set to `true`, it switches the fast path off: see [`StoreConfig::with_environment`].
pub const DISABLE_FAST_PATH: &str = "RINGWAL_DISABLE_FAST_PATH";

/// How a node with a metadata store runs.
///
/// ```
/// let config = ringwal_raft_fallback::StoreConfig::from_toml(
///     r#"
///     cluster = "6f1d8c0a-52b7-4a59-9f0e-3f8c2d7b1e44"
///     node = 1
///     listen = "127.0.0.1:9291"
///     members = [
///         { node = 1, address = "127.0.0.1:9291" },
///         { node = 2, address = "127.0.0.1:9292" },
///         { node = 3, address = "127.0.0.1:9293" },
///     ]
///
///     [raft]
///     fast_path = true
///
///     [raft.times]
///     heartbeat = "100ms"
///     "#,
/// )?;
/// assert!(config.raft.fast_path && !config.raft.join);
/// # Ok::<(), ringwal_raft_fallback::StoreConfigError>(())
/// ```
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct StoreConfig {
    /// Who it is, where it listens, and with whom the cluster begins: `members` found it together, and
    /// from then on the log says who is in it. `follow_trims` is without meaning: each node trims the
    /// metadata stream behind its own snapshots.
    pub replication: ReplicationConfig,
    /// The table `[raft]`.
    pub raft: RaftOptions,
}

/// The table `[raft]`.
#[derive(Clone, Eq, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RaftOptions {
    /// Whether the fast path is open when this node leads. Default true. It can be switched at run time.
    pub fast_path: bool,
    /// Whether this node waits to be added to a cluster that is there, and founds none. Default false.
    pub join: bool,
    /// Heartbeats and election timeouts.
    pub times: RaftTimes,
    /// How long a command is tried, in milliseconds. Default 10,000, at least 10.
    pub command_limit_ms: u64,
    /// A snapshot of the state machine is made when so many records are committed behind the last one.
    /// Default 250,000, at least 1,000. It is what a restart applies at most.
    pub snapshot_records: u64,
}

impl Default for RaftOptions {
    fn default() -> Self {
        Self {
            fast_path: true,
            join: false,
            times: RaftTimes::default(),
            command_limit_ms: 10_000,
            snapshot_records: 250_000,
        }
    }
}

impl RaftOptions {
    /// How long a command is tried.
    pub fn command_limit(&self) -> Duration {
        Duration::from_millis(self.command_limit_ms)
    }
}

/// Why a configuration is not accepted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreConfigError {
    /// It is no TOML, or `[raft]` says what it must not.
    #[error("the configuration: {0}")]
    Text(String),
    /// Replication's part.
    #[error(transparent)]
    Replication(#[from] ConfigError),
    /// Raft's times.
    #[error("[raft.times]: {0}")]
    Times(#[from] TimesError),
    /// A number is outside its bounds.
    #[error("[raft] {name} is {value}; it has to be at least {least}")]
    TooSmall {
        /// Which one.
        name: &'static str,
        /// What it is.
        value: u64,
        /// The least that it may be.
        least: u64,
    },
}

impl StoreConfig {
    /// With the defaults of `[raft]`.
    pub fn new(replication: ReplicationConfig) -> Self {
        Self { replication, raft: RaftOptions::default() }
    }

    /// Reads and checks the text of a file.
    ///
    /// # Errors
    /// See [`StoreConfigError`].
    pub fn from_toml(text: &str) -> Result<Self, StoreConfigError> {
        let syntax = |error: toml::de::Error| StoreConfigError::Text(error.to_string());
        let mut table: toml::Table = toml::from_str(text).map_err(syntax)?;
        let raft = table.remove("raft").unwrap_or_else(|| toml::Table::new().into());
        let raft: RaftOptions = raft.try_into().map_err(syntax)?;
        let replication: ReplicationConfig =
            toml::Value::Table(table).try_into().map_err(syntax)?;
        let config = Self { replication, raft };
        config.check()?;
        Ok(config)
    }

    /// With what the environment says: [`DISABLE_FAST_PATH`]`=true` switches the fast path off.
    #[must_use]
    pub fn with_environment(mut self) -> Self {
        let says = std::env::var(DISABLE_FAST_PATH).unwrap_or_default();
        if matches!(says.as_str(), "true" | "1") {
            self.raft.fast_path = false;
        }
        self
    }

    /// Whether it contradicts itself.
    ///
    /// # Errors
    /// See [`StoreConfigError`].
    pub fn check(&self) -> Result<(), StoreConfigError> {
        self.replication.check()?;
        self.raft.times.check()?;
        let too_small = |name, value, least| match value < least {
            true => Err(StoreConfigError::TooSmall { name, value, least }),
            false => Ok(()),
        };
        too_small("command_limit_ms", self.raft.command_limit_ms, 10)?;
        too_small("snapshot_records", self.raft.snapshot_records, 1_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPLICATION: &str = "cluster = \"6f1d8c0a52b74a599f0e3f8c2d7b1e44\"\nnode = 1\n\
        members = [{ node = 1, address = \"127.0.0.1:9291\" }]\n";

    #[test]
    fn a_table_of_its_own_is_not_replications() {
        let text = format!(
            "{REPLICATION}[raft]\nfast_path = false\njoin = true\n[raft.times]\nheartbeat = \"50ms\"\n"
        );
        let config = StoreConfig::from_toml(&text).unwrap();
        assert!(!config.raft.fast_path && config.raft.join);
        assert_eq!(config.raft.times.heartbeat, Duration::from_millis(50));
        assert_eq!(StoreConfig::from_toml(REPLICATION).unwrap().raft, RaftOptions::default());
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (add, said) in [
            ("[raft]\nfastpath = true\n", "fastpath"),
            ("[raft]\ncommand_limit_ms = 1\n", "command_limit_ms is 1"),
            ("[raft.times]\nheartbeat = \"1h\"\n", "heartbeat"),
            ("[other]\n", "other"),
        ] {
            let error = StoreConfig::from_toml(&format!("{REPLICATION}{add}")).unwrap_err();
            assert!(error.to_string().contains(said), "{error}");
        }
    }
}
