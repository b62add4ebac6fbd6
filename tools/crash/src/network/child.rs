//! The process of a node: an engine, its replication, and whatever the operator says, line by line.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use ringwal_engine::{Engine, EpochTable, StreamId};
use ringwal_replication::config::{Config, Member};
use ringwal_replication::node_id::{ClusterId, NodeId};
use ringwal_replication::stats::Role;
use ringwal_replication::{Leadership, Node};
use serde::{Deserialize, Serialize};

use super::load::Load;
use super::payload::STREAMS;
use crate::nodes::topology::{NODES, address};
use crate::nodes::{LOCK_WAIT, PORT, Voice, run_node};

const CLUSTER: ClusterId = ClusterId::new([0x77; 16]);

/// What a node is given.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Setup {
    /// Which one, from 0.
    pub node: usize,
    /// Its engine's directory.
    pub directory: PathBuf,
    /// Where it logs.
    pub log: PathBuf,
    /// Shards of its engine.
    pub shards: u16,
    /// What records are made of.
    pub seed: u64,
}

/// What a node says of itself.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct State {
    /// The question that this answers.
    pub question: u64,
    /// The epoch that it leads in.
    pub leads: Option<u64>,
    /// The epoch that it follows in.
    pub follows: Option<u64>,
    /// The greatest epoch that it has promised.
    pub promised: u64,
    /// What it holds of each of [`STREAMS`].
    pub streams: Vec<Holding>,
    /// Counted since it started.
    pub counts: Vec<(String, u64)>,
    /// What it has of its followers, for people.
    pub followers: Vec<String>,
}

/// What a node holds of a stream. The greater is the one that has more, as Raft compares logs.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Ord, PartialOrd, Serialize, Deserialize)]
pub struct Holding {
    /// Epoch of its last record.
    pub epoch: u64,
    /// Its durable end.
    pub end: u64,
}

/// The hidden command.
#[derive(Debug, clap::Args)]
pub struct NodeArguments {
    setup: String,
}

impl NodeArguments {
    /// Runs the node.
    ///
    /// # Errors
    /// Whatever no node may do on a sound disk.
    pub fn run(&self) -> Result<()> {
        run_node(&self.setup, |setup: &Setup| &setup.log, serve)
    }
}

fn config(setup: &Setup) -> Config {
    let members = (0..NODES).map(|node| Member {
        node: NodeId::new(node as u64 + 1),
        address: format!("{}:{PORT}", address(node)),
    });
    let mut config = Config::new(CLUSTER, NodeId::new(setup.node as u64 + 1), members.collect());
    config.listen = format!("{}:{PORT}", address(setup.node));
    config.insecure = true;
    config.heartbeat = Duration::from_millis(50);
    config.session_timeout = Duration::from_millis(500);
    config.reconnect_max = Duration::from_millis(200);
    // Small, so that followers fall behind, and trims do not wait for them for ever.
    config.window_bytes = 1 << 20;
    config.retain_bytes_max = 12 << 20;
    config
}

fn serve(setup: &Setup, voice: &Voice) -> Result<()> {
    let options = Engine::options().segment_bytes(1 << 20).pool_bytes(4 << 20);
    let options = options.batch_bytes_max(128 << 10).shards(setup.shards).lock_wait(LOCK_WAIT);
    let engine = options.open(&setup.directory).context("opening the engine")?;
    let node = Arc::new(Node::start(engine.clone(), config(setup)).context("starting the node")?);
    voice.say("up");
    // Of the last epoch that it led in.
    let load: Arc<Mutex<Option<Arc<Load>>>> = Arc::default();
    let present = || load.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let mut line = String::new();
    loop {
        line.clear();
        if std::io::stdin().read_line(&mut line)? == 0 {
            return Ok(());
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        let numbers: Vec<u64> = words.iter().filter_map(|word| word.parse().ok()).collect();
        match (words.first().copied(), &numbers[..]) {
            (Some("lead"), [epoch]) => {
                // In a thread of its own: it may take a while, and questions are answered meanwhile.
                let (node, voice, load) = (node.clone(), voice.clone(), load.clone());
                let (epoch, seed) = (*epoch, setup.seed);
                std::thread::spawn(move || match node.lead(epoch) {
                    Ok(leadership) => {
                        voice.say(&format!("led {epoch}"));
                        let started = Load::start(seed, leadership, voice);
                        *load.lock().unwrap_or_else(PoisonError::into_inner) = Some(started);
                    }
                    Err(error) => voice.say(&format!("unled {epoch} {error}")),
                });
            }
            (Some("retire"), []) => {
                if let Some(load) = present() {
                    load.leadership().retire("the operator wants another leader");
                }
            }
            (Some("quiet"), []) => {
                if let Some(load) = present() {
                    load.quiet();
                }
            }
            (Some("state"), [question]) => {
                let state = state(*question, &engine, &node);
                voice.say(&format!("state {}", serde_json::to_string(&state)?));
            }
            (Some("trim"), [stream, before]) => node.trim(StreamId::new(*stream), *before),
            (Some("close"), []) => {
                if let Some(load) = present() {
                    load.leadership().retire("the node is about to close");
                    wait_until_over(load.leadership());
                }
                let node = Arc::into_inner(node).context("the node is used elsewhere")?;
                node.close();
                engine.close().context("closing the engine")?;
                voice.say("closed");
                return Ok(());
            }
            _ => voice.say(&format!("broken not understood: {line:?}")),
        }
    }
}

fn wait_until_over(leadership: &Leadership) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while leadership.ended().is_none() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn state(question: u64, engine: &Engine, node: &Node) -> State {
    let stats = node.stats();
    let (leads, follows) = match stats.role {
        Role::Idle => (None, None),
        Role::Leading { epoch } => (Some(epoch), None),
        Role::Following { epoch, .. } => (None, Some(epoch)),
    };
    let counts = [
        ("frames taken from leaders", stats.frames_received),
        ("records cut", stats.records_cut),
        ("streams begun anew", stats.begun_anew),
        ("violations", stats.violations),
        ("sessions ended", stats.sessions_ended),
        ("shards that lagged", stats.lagged),
        ("bytes sent again", stats.followers.iter().map(|follower| follower.bytes_resent).sum()),
        ("frames dropped", stats.followers.iter().map(|follower| follower.frames_dropped).sum()),
    ];
    let refused =
        stats.refused.iter().map(|(why, count)| (format!("hellos refused: {why}"), *count));
    let counts = counts.map(|(what, count)| (what.to_owned(), count)).into_iter().chain(refused);
    let followers = stats.followers.iter().map(|follower| {
        format!(
            "{} connected {} behind {} lag {} queued {} failure {:?}",
            follower.node,
            follower.is_connected,
            follower.streams_behind,
            follower.lag_records,
            follower.queued_bytes,
            follower.last_failure
        )
    });
    State {
        question,
        leads,
        follows,
        promised: stats.promised_epoch,
        streams: STREAMS.iter().map(|stream| holding(engine, *stream)).collect(),
        counts: counts.filter(|(_, count)| *count > 0).collect(),
        followers: followers.collect(),
    }
}

/// What grows meanwhile makes the answer too small, never too great; a cut makes it look again.
fn holding(engine: &Engine, stream: u64) -> Holding {
    let stream = engine.stream(StreamId::new(stream));
    loop {
        let end = stream.end();
        let table = EpochTable::from_entries(stream.epochs());
        if stream.end() >= end {
            let epoch = table.filter(|_| end > 0).map_or(0, |table| table.epoch_at(end - 1));
            return Holding { epoch, end };
        }
    }
}
