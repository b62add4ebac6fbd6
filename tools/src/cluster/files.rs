//! The files of `ringwal cluster`: `cluster.toml` for whoever asks, and for each node `node-N.toml`, its
//! data `node-N` and its log `node-N.log`.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use ringwal_raft_fallback::StoreConfig;
use ringwal_replication::config::{ClusterConfig, Member};
use ringwal_replication::node_id::{ClusterId, NodeId};

use super::asking::read_config;
use crate::exit::Failure;
use crate::nodes;

/// Nodes when nothing is said.
const NODES_DEFAULT: u16 = 3;
/// The port of the first one when nothing is said.
const PORT_DEFAULT: u16 = 9291;
/// What clients read.
const CLUSTER_FILE: &str = "cluster.toml";

/// What a folder holds.
pub struct Folder {
    /// Where.
    pub path: PathBuf,
    /// For whoever asks.
    pub cluster: ClusterConfig,
    /// The nodes that run here.
    pub nodes: BTreeMap<NodeId, StoreConfig>,
}

impl Folder {
    /// Takes what is there, and writes what is missing.
    pub fn prepare(path: &Path, nodes: Option<u16>, port: Option<u16>) -> Result<Folder> {
        fs::create_dir_all(path)
            .with_context(|| format!("making the folder {}", path.display()))?;
        let file = path.join(CLUSTER_FILE);
        let is_new = !file.exists();
        if is_new {
            if let Some(found) = node_files(path)?.keys().next() {
                let (node, file) = (node_file(*found), file.display());
                return Err(Failure::usage(format!("there is {node} and no {file}"))
                    .fix("put the cluster's file back")
                    .fix("use another folder: --directory DIR")
                    .into());
            }
            write(&file, &cluster_text(nodes.unwrap_or(NODES_DEFAULT), port)?)?;
        }
        let cluster = read_config(&file)?;
        let mut configs = BTreeMap::new();
        for member in &cluster.members {
            let name = path.join(node_file(member.node));
            if !name.exists() {
                write(&name, &node_text(&cluster, member))?;
            }
        }
        for (node, name) in node_files(path)? {
            let config = nodes::read_store_config(&name)?;
            let of = &config.replication;
            if of.node != node || of.cluster != cluster.cluster {
                let error = format!("{} is not of node {node} of this cluster", name.display());
                return Err(Failure::usage(error).fix("correct it, or move it away").into());
            }
            configs.insert(node, config);
        }
        let folder = Folder { path: path.to_owned(), cluster, nodes: configs };
        if !is_new {
            folder.check(nodes, port)?;
        }
        Ok(folder)
    }

    /// What is asked for has to be what is there.
    fn check(&self, nodes: Option<u16>, port: Option<u16>) -> Result<()> {
        let count = self.nodes.len();
        if nodes.is_some_and(|nodes| usize::from(nodes) != count) {
            let path = self.path.display();
            return Err(Failure::usage(format!("{path} has the files of {count} nodes"))
                .fix("leave --nodes out")
                .fix("use another folder: --directory DIR")
                .or("add a node to a running cluster: ringwal member add")
                .into());
        }
        let first = self.nodes.values().next().map(|config| &config.replication);
        let Some((port, first)) = port.zip(first) else { return Ok(()) };
        if !first.listen.ends_with(&format!(":{port}")) {
            let (node, listen) = (first.node, &first.listen);
            return Err(Failure::usage(format!("node {node} of this folder listens at {listen}"))
                .fix("leave --port out")
                .fix("use another folder: --directory DIR")
                .into());
        }
        Ok(())
    }
}

/// Name of a node's configuration.
pub fn node_file(node: NodeId) -> String {
    format!("node-{node}.toml")
}

/// Name of the folder with its data.
pub fn data_folder(node: NodeId) -> String {
    format!("node-{node}")
}

/// Name of its log.
pub fn log_file(node: NodeId) -> String {
    format!("node-{node}.log")
}

/// The configurations of nodes that are there.
fn node_files(path: &Path) -> Result<BTreeMap<NodeId, PathBuf>> {
    let reading = || format!("reading the folder {}", path.display());
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(path).with_context(reading)? {
        let entry = entry.with_context(reading)?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| {
            name.strip_prefix("node-")?.strip_suffix(".toml")?.parse::<u64>().ok()
        });
        if let Some(number) = number {
            found.insert(NodeId::new(number), entry.path());
        }
    }
    Ok(found)
}

fn cluster_text(nodes: u16, port: Option<u16>) -> Result<String> {
    let mut id = [0; 16];
    fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut id))
        .context("drawing a random number")?;
    let first = port.unwrap_or(PORT_DEFAULT);
    let members = (0..nodes).map(|nth| Member {
        node: NodeId::new(u64::from(nth) + 1),
        address: format!("127.0.0.1:{}", first + nth),
    });
    Ok(format!(
        "# A cluster on this machine, made by `ringwal cluster`. Clients read this file.\n\
         cluster = \"{}\"\n{}",
        uuid(ClusterId::new(id)),
        members_text(&members.collect::<Vec<_>>())
    ))
}

fn node_text(cluster: &ClusterConfig, member: &Member) -> String {
    let (node, address) = (member.node, &member.address);
    let (file, data) = (node_file(node), data_folder(node));
    format!(
        "# ringwal node --config {file} --directory {data}\n\
         cluster = \"{}\"\nnode = {node}\nlisten = \"{address}\"\n{}",
        uuid(cluster.cluster),
        members_text(&cluster.members)
    )
}

fn members_text(members: &[Member]) -> String {
    let one = |Member { node, address }: &Member| {
        format!("    {{ node = {node}, address = \"{address}\" }},\n")
    };
    let lines: String = members.iter().map(one).collect();
    format!("members = [\n{lines}]\n")
}

/// The id as people write it.
pub fn uuid(cluster: ClusterId) -> String {
    let digits: String = cluster.bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    let [a, b, c, d] = [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20]];
    format!("{a}-{b}-{c}-{d}-{}", &digits[20..])
}

/// All of it is there, or nothing.
fn write(path: &Path, text: &str) -> Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, text)
        .and_then(|()| fs::rename(&new, path))
        .with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_gone_on_with() {
        let keep = tempfile::tempdir().unwrap();
        let path = keep.path().join("new");
        let first = Folder::prepare(&path, Some(2), Some(9500)).unwrap();
        assert_eq!(first.nodes.len(), 2);
        assert_eq!(first.nodes[&NodeId::new(2)].replication.listen, "127.0.0.1:9501");
        assert_eq!(first.nodes[&NodeId::new(1)].replication.members, first.cluster.members);

        // A node that was added by hand, and one whose file is lost.
        let text = fs::read_to_string(path.join("node-2.toml")).unwrap();
        let third = text
            .replace(
                "node = 2\nlisten = \"127.0.0.1:9501\"",
                "node = 3\nlisten = \"127.0.0.1:9502\"",
            )
            .replace("\n]", "\n    { node = 3, address = \"127.0.0.1:9502\" },\n]");
        fs::write(path.join("node-3.toml"), third).unwrap();
        fs::remove_file(path.join("node-1.toml")).unwrap();
        let again = Folder::prepare(&path, None, Some(9500)).unwrap();
        assert_eq!(again.cluster, first.cluster);
        assert_eq!(again.nodes[&NodeId::new(1)], first.nodes[&NodeId::new(1)]);
        assert_eq!(again.nodes.len(), 3);

        let text_of = |outcome: Result<Folder>| match outcome {
            Ok(_) => panic!("it is taken"),
            Err(error) => error.downcast_ref::<Failure>().expect("with its code").text(),
        };
        let other = text_of(Folder::prepare(&path, Some(5), None));
        assert!(other.contains("files of 3 nodes") && other.contains("leave --nodes out"));
        assert!(text_of(Folder::prepare(&path, None, Some(9291))).contains("127.0.0.1:9500"));
        fs::remove_file(path.join(CLUSTER_FILE)).unwrap();
        assert!(text_of(Folder::prepare(&path, None, None)).contains("node-1.toml and no"));
    }

    #[test]
    fn an_id_is_written_as_it_is_read() {
        let text = "6f1d8c0a-52b7-4a59-9f0e-3f8c2d7b1e44";
        let config =
            format!("cluster = \"{text}\"\nmembers = [{{ node = 1, address = \"localhost:1\" }}]");
        assert_eq!(uuid(ClusterConfig::from_toml(&config).unwrap().cluster), text);
    }
}
