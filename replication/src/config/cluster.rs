//! What a program needs to know that is no node, and asks one.

use serde::Deserialize;

use super::{ConfigError, Member, TlsConfig, address, refused, text};
use crate::node_id::ClusterId;

/// A cluster as its clients know it.
///
/// ```
/// let config = ringwal_replication::config::ClusterConfig::from_toml(
///     r#"
///     cluster = "6f1d8c0a-52b7-4a59-9f0e-3f8c2d7b1e44"
///     members = [
///         { node = 1, address = "node-1.example:9291" },
///         { node = 2, address = "node-2.example:9291" },
///     ]
///
///     [tls]
///     certificate = "operator.crt"
///     key = "operator.key"
///     authority = "authority.crt"
///     "#,
/// )?;
/// assert_eq!(config.members.len(), 2);
/// # Ok::<(), ringwal_replication::config::ConfigError>(())
/// ```
#[derive(Clone, Eq, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterConfig {
    /// The cluster: as its nodes have it.
    #[serde(deserialize_with = "text::cluster")]
    pub cluster: ClusterId,
    /// Nodes of it, one at least. Others are learnt from them.
    pub members: Vec<Member>,
    /// Mutual TLS. The certificate has to be a node's, or to name
    /// [`OPERATOR`](crate::requests::OPERATOR).
    #[serde(default)]
    pub tls: Option<TlsConfig>,
}

impl ClusterConfig {
    /// Reads and checks a TOML text.
    ///
    /// # Errors
    /// When it is not of this schema, names no node, or has an address that is none.
    pub fn from_toml(text: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text)?;
        if config.members.is_empty() {
            return Err(refused("members", 0, "nobody could be asked; name one node at least"));
        }
        for Member { node, address } in &config.members {
            let field = format!("members: node {node}: address");
            address::split(address).map_err(|problem| refused(field, address, problem))?;
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_has_somebody_to_ask_at_an_address() {
        let text = |members: &str| {
            format!("cluster = \"6f1d8c0a52b74a599f0e3f8c2d7b1e44\"\nmembers = [{members}]")
        };
        let read = |members: &str| ClusterConfig::from_toml(&text(members));
        assert_eq!(read("{ node = 1, address = \"localhost:1\" }").unwrap().tls, None);
        for (members, part) in [
            ("", "name one node"),
            ("{ node = 1, address = \"localhost\" }", "host:port"),
            ("{ node = 1, adress = \"localhost:1\" }", "adress"),
        ] {
            let why = read(members).unwrap_err().to_string();
            assert!(why.contains(part), "{why}");
        }
    }
}
