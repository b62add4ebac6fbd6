//! What an operator chooses: one schema, from TOML or built in Rust. Nothing here reads the
//! environment or a file.

pub(crate) mod address;
mod cluster;
mod text;

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use crate::node_id::{ClusterId, NodeId};

pub use cluster::ClusterConfig;

/// Where a node listens when nothing else is said.
pub const LISTEN_DEFAULT: &str = "127.0.0.1:9291";
/// Most members that a cluster has.
pub const MEMBERS_MAX: usize = 64;

const HOUR: Duration = Duration::from_secs(3600);

/// How a node replicates. Durations are texts like `"100ms"`, sizes texts like `"8 MiB"` or
/// numbers of bytes.
///
/// ```
/// let config = ringwal_replication::config::Config::from_toml(
///     r#"
///     cluster = "6f1d8c0a-52b7-4a59-9f0e-3f8c2d7b1e44"
///     node = 1
///     listen = "10.0.0.1:9291"
///     window_bytes = "16 MiB"
///     session_timeout = "3s"
///
///     [[members]]
///     node = 1
///     address = "10.0.0.1:9291"
///
///     [[members]]
///     node = 2
///     address = "node-2.example:9291"
///
///     [tls]
///     certificate = "/etc/ringwal/node-1.crt"
///     key = "/etc/ringwal/node-1.key"
///     authority = "/etc/ringwal/authority.crt"
///     "#,
/// )?;
/// assert_eq!(config.members.len(), 2);
/// # Ok::<(), ringwal_replication::config::ConfigError>(())
/// ```
///
/// Without TLS everything is on one machine, unless the operator says `insecure = true`:
///
/// ```
/// let text = r#"
///     cluster = "6f1d8c0a52b74a599f0e3f8c2d7b1e44"
///     node = 1
///     listen = "0.0.0.0:9291"
///     members = [{ node = 1, address = "127.0.0.1:9291" }]
/// "#;
/// let refused = ringwal_replication::config::Config::from_toml(text).unwrap_err();
/// assert!(refused.to_string().contains("insecure = true"), "{refused}");
/// ```
#[derive(Clone, Eq, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The cluster: 32 hexadecimal digits, or a UUID. The same for all of its nodes, and for no
    /// other cluster. No default.
    #[serde(deserialize_with = "text::cluster")]
    pub cluster: ClusterId,
    /// This node: at least 1, another one for each node, and never given to another disk. No
    /// default.
    #[serde(deserialize_with = "text::node")]
    pub node: NodeId,
    /// `host:port` to listen at, `[::1]:9291` for IPv6. Default [`LISTEN_DEFAULT`]. Without TLS
    /// it has to be a loopback address. Port 0 takes a free one, for tests.
    #[serde(default = "default::listen")]
    pub listen: String,
    /// The nodes of whose disks a majority has to hold what `Ack::Quorum` acknowledges, this one
    /// included, in any order, at most [`MEMBERS_MAX`]. No default. The leader keeps up to
    /// [`Config::window_bytes`] for each of the others.
    pub members: Vec<Member>,
    /// Bytes of sealed frames that wait for one follower; with more it is behind, and is fed from
    /// the segments. Default 8 MiB, 1 MiB to 1 GiB. Memory: up to so much for each follower; what
    /// followers have in common is held once. For one that is behind, besides, three reads' worth of
    /// frames: 3 MiB, or three quarters of the window when that is less. They are at least half of the
    /// memory that they keep.
    #[serde(default = "default::window_bytes", deserialize_with = "text::bytes")]
    pub window_bytes: usize,
    /// How often a session that is idle says that it is alive. Default 100 ms, 1 ms to 1 minute.
    #[serde(default = "default::heartbeat", deserialize_with = "text::duration")]
    pub heartbeat: Duration,
    /// A session is over when nothing has been heard for so long; a dial and its handshake may
    /// take as long. Default 2 s, at least three heartbeats, at most 1 hour.
    #[serde(default = "default::session_timeout", deserialize_with = "text::duration")]
    pub session_timeout: Duration,
    /// How long after a lost session the next dial is, at first; it doubles, with jitter. Default
    /// 20 ms, 1 ms to [`Config::reconnect_max`].
    #[serde(default = "default::reconnect_min", deserialize_with = "text::duration")]
    pub reconnect_min: Duration,
    /// Longest time between two dials. Default 2 s, at most 1 hour.
    #[serde(default = "default::reconnect_max", deserialize_with = "text::duration")]
    pub reconnect_max: Duration,
    /// Connections that others may have to this node at once; further ones are closed as they
    /// come. Default 64, at least as many as there are members, at most 4096. Memory: a receive
    /// buffer of 256 KiB each, and the longest frame while one arrives.
    #[serde(default = "default::connections_max")]
    pub connections_max: usize,
    /// What a connected follower still needs is kept from being trimmed as long as the journal of
    /// the shard is not longer than this. Default 1 GiB, any; 0 keeps nothing. On disk, not in
    /// memory.
    #[serde(default = "default::retain_bytes_max", deserialize_with = "text::bytes")]
    pub retain_bytes_max: u64,
    /// How long closing waits for followers to take what was sent. Default 2 s, at most 1 hour; 0
    /// waits for none.
    #[serde(default = "default::drain_timeout", deserialize_with = "text::duration")]
    pub drain_timeout: Duration,
    /// Whether a follower trims what its leader has trimmed. Default true.
    #[serde(default = "default::follow_trims")]
    pub follow_trims: bool,
    /// Bytes of records (and 4 for each), of all streams together, that a leader of a driven node may have appended and
    /// that are not committed: beyond it every append waits. This is the most that can be lost with a
    /// leader. Default 8 MiB, at least 64 KiB; without meaning where there is one voter only, or the
    /// node is not driven.
    #[serde(default = "default::unreplicated_bytes_max", deserialize_with = "text::bytes")]
    pub unreplicated_bytes_max: u64,
    /// Mutual TLS. Without it see [`Config::insecure`].
    #[serde(default)]
    pub tls: Option<TlsConfig>,
    /// Everybody who can reach this node may read all data, and write them as its leader: to be
    /// said in so many words when there is no TLS and an address is not of this machine. Default
    /// false; refused together with TLS.
    #[serde(default)]
    pub insecure: bool,
}

/// One of those that count for a majority.
#[derive(Clone, Eq, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// Which node.
    #[serde(deserialize_with = "text::node")]
    pub node: NodeId,
    /// `host:port` at which the others reach it. With TLS its certificate has to hold this host
    /// name, or IP address, among its subject alternative names.
    pub address: String,
}

impl Member {
    /// Its host, without brackets; nothing when the address has no such form.
    pub(crate) fn host(&self) -> &str {
        address::split(&self.address).map_or("", |(host, _)| host)
    }
}

/// PEM files for mutual TLS 1.3.
#[derive(Clone, Eq, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// This node's certificate, and those between it and the authority, in this order. It serves
    /// as server and as client.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The authorities, one or more, that have signed the certificates of all nodes.
    pub authority: PathBuf,
    /// How often the files are looked at for a change. Default 10 s, 100 ms to 1 day.
    #[serde(default = "default::reload", deserialize_with = "text::duration")]
    pub reload: Duration,
}

mod default {
    use std::time::Duration;

    pub fn listen() -> String {
        super::LISTEN_DEFAULT.into()
    }
    pub fn window_bytes() -> usize {
        8 << 20
    }
    pub fn heartbeat() -> Duration {
        Duration::from_millis(100)
    }
    pub fn session_timeout() -> Duration {
        Duration::from_secs(2)
    }
    pub fn reconnect_min() -> Duration {
        Duration::from_millis(20)
    }
    pub fn reconnect_max() -> Duration {
        Duration::from_secs(2)
    }
    pub fn connections_max() -> usize {
        64
    }
    pub fn retain_bytes_max() -> u64 {
        1 << 30
    }
    pub fn drain_timeout() -> Duration {
        Duration::from_secs(2)
    }
    pub fn follow_trims() -> bool {
        true
    }
    pub fn unreplicated_bytes_max() -> u64 {
        8 << 20
    }
    pub fn reload() -> Duration {
        Duration::from_secs(10)
    }
}

impl TlsConfig {
    /// Of these files, with the defaults.
    pub fn new(
        certificate: impl Into<PathBuf>,
        key: impl Into<PathBuf>,
        authority: impl Into<PathBuf>,
    ) -> Self {
        Self {
            certificate: certificate.into(),
            key: key.into(),
            authority: authority.into(),
            reload: default::reload(),
        }
    }
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// It is no TOML, or not of this schema.
    #[error("the replication configuration cannot be read: {0}")]
    Text(#[from] toml::de::Error),
    /// A field has a value that it must not have.
    #[error("{field} = {value}: {problem}")]
    Field {
        /// Which one.
        field: String,
        /// What it is.
        value: String,
        /// What is wrong with it, and what to do.
        problem: String,
    },
}

fn refused(
    field: impl Into<String>,
    value: impl std::fmt::Debug,
    problem: impl Into<String>,
) -> ConfigError {
    ConfigError::Field { field: field.into(), value: format!("{value:?}"), problem: problem.into() }
}

impl Config {
    /// With the defaults: without TLS, at [`LISTEN_DEFAULT`]. [`Config::check`] it when all is set.
    pub fn new(cluster: ClusterId, node: NodeId, members: Vec<Member>) -> Self {
        Self {
            cluster,
            node,
            listen: default::listen(),
            members,
            window_bytes: default::window_bytes(),
            heartbeat: default::heartbeat(),
            session_timeout: default::session_timeout(),
            reconnect_min: default::reconnect_min(),
            reconnect_max: default::reconnect_max(),
            connections_max: default::connections_max(),
            retain_bytes_max: default::retain_bytes_max(),
            drain_timeout: default::drain_timeout(),
            follow_trims: default::follow_trims(),
            unreplicated_bytes_max: default::unreplicated_bytes_max(),
            tls: None,
            insecure: false,
        }
    }

    /// Reads and checks a TOML text.
    ///
    /// # Errors
    /// When it is not of this schema, or fails [`Config::check`].
    pub fn from_toml(text: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text)?;
        config.check()?;
        Ok(config)
    }

    /// Checks all bounds, and that nothing is open to a network by accident.
    ///
    /// # Errors
    /// The first field that is wrong, with its value and what to do.
    pub fn check(&self) -> Result<(), ConfigError> {
        self.check_members()?;
        self.check_times()?;
        self.check_sizes()?;
        self.check_openness()
    }

    fn check_members(&self) -> Result<(), ConfigError> {
        if self.node.get() == 0 {
            return Err(refused("node", 0, "nodes are numbered from 1; choose another number"));
        }
        let count = self.members.len();
        if count > MEMBERS_MAX {
            let problem = format!("at most {MEMBERS_MAX} nodes are members; name fewer");
            return Err(refused("members", count, problem));
        }
        let (mut nodes, mut addresses) = (HashSet::new(), HashSet::new());
        for Member { node, address } in &self.members {
            let field = format!("members: node {node}: address");
            if node.get() == 0 {
                return Err(refused("members: node", 0, "nodes are numbered from 1"));
            }
            if node.is_client() {
                let problem = "nodes have numbers below 2^63; choose a smaller one";
                return Err(refused("members: node", node.get(), problem));
            }
            if !nodes.insert(*node) {
                let problem = "it is named twice; each node is one member";
                return Err(refused("members: node", node.get(), problem));
            }
            let (_, port) =
                address::split(address).map_err(|problem| refused(&field, address, problem))?;
            if port == 0 {
                return Err(refused(field, address, "nobody can dial port 0; name its port"));
            }
            if !addresses.insert(address) {
                let problem = "another member has the same address; each has its own";
                return Err(refused(field, address, problem));
            }
        }
        if !nodes.contains(&self.node) {
            let problem = "this node is not among the members; add it, with the address at which \
                           the others reach it";
            return Err(refused("node", self.node.get(), problem));
        }
        Ok(())
    }

    fn check_times(&self) -> Result<(), ConfigError> {
        let milli = Duration::from_millis(1);
        within("heartbeat", self.heartbeat, milli, Duration::from_secs(60))?;
        within("session_timeout", self.session_timeout, milli, HOUR)?;
        if self.session_timeout < 3 * self.heartbeat {
            let problem = format!(
                "one lost heartbeat would end a session; make it at least {:?}, three heartbeats",
                3 * self.heartbeat
            );
            return Err(refused("session_timeout", self.session_timeout, problem));
        }
        within("reconnect_max", self.reconnect_max, milli, HOUR)?;
        within("reconnect_min", self.reconnect_min, milli, self.reconnect_max)?;
        within("drain_timeout", self.drain_timeout, Duration::ZERO, HOUR)?;
        match &self.tls {
            Some(tls) => within("tls.reload", tls.reload, 100 * milli, 24 * HOUR),
            None => Ok(()),
        }
    }

    fn check_sizes(&self) -> Result<(), ConfigError> {
        within("window_bytes", self.window_bytes, 1 << 20, 1 << 30)?;
        within("unreplicated_bytes_max", self.unreplicated_bytes_max, 64 << 10, u64::MAX)?;
        within("connections_max", self.connections_max, self.members.len().max(1), 4096)
    }

    fn check_openness(&self) -> Result<(), ConfigError> {
        let (host, _) = address::split(&self.listen)
            .map_err(|problem| refused("listen", &self.listen, problem))?;
        if self.tls.is_some() {
            return match self.insecure {
                true => Err(refused("insecure", true, "there is TLS as well; remove one of both")),
                false => Ok(()),
            };
        }
        if self.insecure {
            return Ok(());
        }
        const PROBLEM: &str = "without TLS only loopback addresses are allowed (127.0.0.1, [::1], \
                               localhost), because whoever reaches a node may read and write \
                               everything; add [tls], or say insecure = true";
        if !address::is_loopback(host) {
            return Err(refused("listen", &self.listen, PROBLEM));
        }
        for Member { node, address } in &self.members {
            if !address::split(address).is_ok_and(|(host, _)| address::is_loopback(host)) {
                return Err(refused(format!("members: node {node}: address"), address, PROBLEM));
            }
        }
        Ok(())
    }
}

fn within<T: PartialOrd + std::fmt::Debug>(
    field: &str,
    value: T,
    min: T,
    max: T,
) -> Result<(), ConfigError> {
    if value >= min && value <= max {
        return Ok(());
    }
    Err(refused(field, value, format!("it has to be between {min:?} and {max:?}; change it")))
}

#[cfg(test)]
mod tests;
