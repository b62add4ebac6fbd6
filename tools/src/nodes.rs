//! What `node`, `follow` and `bench` have in common as nodes of a cluster: the configuration's file, the
//! start, and their errors.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use ringwal_engine::Engine;
use ringwal_raft_fallback::{Raft, StartError as RaftStartError, StoreConfig, StoreConfigError};
use ringwal_replication::config::{Config, ConfigError};
use ringwal_replication::{Node, StartError};

use crate::exit::{Exit, Failure};

/// How long opening waits for the lock of a process that has just been killed: the kernel lets go
/// of its ring, and of the files in it, a little later.
pub const LOCK_WAIT: Duration = Duration::from_secs(2);

/// Reads and checks the configuration of a node.
pub fn read_config(path: &Path) -> Result<Config> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("reading the configuration {}", path.display()))?;
    Config::from_toml(&text)
        .map_err(|error| refused(path, &text, &error, "is no configuration of a node").into())
}

/// Reads and checks the configuration of a node with a metadata store; the environment may switch its fast
/// path off.
pub fn read_store_config(path: &Path) -> Result<StoreConfig> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("reading the configuration {}", path.display()))?;
    match StoreConfig::from_toml(&text) {
        Ok(config) => Ok(config.with_environment()),
        Err(StoreConfigError::Replication(error)) => {
            Err(refused(path, &text, &error, "is no configuration of a node").into())
        }
        Err(StoreConfigError::Text(error)) => {
            let failure =
                Failure::usage(format!("{} is no configuration of a node", path.display()));
            Err(failure
                .cause(error.trim().replace('\n', " "))
                .fix("correct it; the README shows one under A cluster")
                .into())
        }
        Err(error) => Err(sentence(Exit::Usage, &format!("{}: {error}", path.display())).into()),
    }
}

/// A file that cannot be what it `is` not.
pub fn refused(path: &Path, text: &str, error: &ConfigError, is: &str) -> Failure {
    let path = path.display();
    match error {
        ConfigError::Text(error) => {
            let before = error.span().map_or("", |span| &text[..span.start.min(text.len())]);
            let line = before.matches('\n').count() + 1;
            Failure::usage(format!("{path} {is}"))
                .cause(format!("line {line}: {}", error.message().trim().replace('\n', " ")))
                .fix("correct it; the README shows one under Replication")
        }
        other => sentence(Exit::Usage, &format!("{path}: {other}")),
    }
}

/// A message that ends in what to do, in the form of all errors.
fn sentence(exit: Exit, text: &str) -> Failure {
    let mut parts: Vec<&str> = text.split("; ").collect();
    let fix = if parts.len() > 1 { parts.pop() } else { None };
    let mut failure = Failure::new(exit, parts.remove(0));
    for part in parts {
        failure = failure.cause(part);
    }
    match fix {
        Some(fix) => failure.fix(fix),
        None => failure,
    }
}

/// Starts the node of a configuration.
pub fn start(engine: Engine, config: Config) -> Result<Node> {
    Node::start(engine, config)
        .map_err(|error| sentence(exit_of(&error), &error.to_string()).into())
}

/// Starts the node of a configuration, with its Raft.
pub fn start_raft(engine: Engine, config: StoreConfig) -> Result<Raft> {
    Raft::start(engine, config).map_err(|error| {
        let exit = match &error {
            RaftStartError::Config(_) => Exit::Usage,
            RaftStartError::Node(error) => exit_of(error),
            _ => Exit::Failure,
        };
        sentence(exit, &error.to_string()).into()
    })
}

fn exit_of(error: &StartError) -> Exit {
    match error {
        StartError::Config(_) => Exit::Usage,
        StartError::Listen(ringwal_replication::link::LinkError::AddressInUse { .. }) => {
            Exit::Failure
        }
        StartError::Tls(_) | StartError::Listen(_) | StartError::System { .. } => Exit::Environment,
        _ => Exit::Failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text_of(config: &str) -> String {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("node.toml");
        std::fs::write(&path, config).unwrap();
        let error = read_config(&path).unwrap_err();
        let failure = error.downcast_ref::<Failure>().expect("a failure with its code");
        failure.text()
    }

    #[test]
    fn a_bad_configuration_names_line_field_value_and_fix() {
        let text =
            text_of("cluster = \"6f1d8c0a52b74a599f0e3f8c2d7b1e44\"\nnode = 1\ncolour = 2\n");
        assert!(text.contains("line 3") && text.contains("colour"), "{text}");
        assert!(text.contains("\nfix: "), "{text}");
        let text = text_of(
            "cluster = \"6f1d8c0a52b74a599f0e3f8c2d7b1e44\"\nnode = 1\nwindow_bytes = 1\n\
             members = [{ node = 1, address = \"127.0.0.1:9291\" }]\n",
        );
        assert!(text.contains("window_bytes = 1") && text.contains("\nfix: "), "{text}");
    }
}
