//! The process of a node: an engine, its Raft and its metadata store, clients, and whatever the operator says,
//! line by line.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use ringwal_engine::Engine;
use ringwal_raft_fallback::command::TopicName;
use ringwal_raft_fallback::operator::{self, DoneShown};
use ringwal_raft_fallback::state::TopicId;
use ringwal_raft_fallback::{
    MetadataReplicator, MetadataStore, MetadataWal, Raft, StoreConfig, StoreStatus, snapshot,
};
use ringwal_replication::Ack;
use ringwal_replication::config::{Config, Member};
use ringwal_replication::node_id::{ClusterId, NodeId};
use serde::{Deserialize, Serialize};

use super::clients::{Clients, create};
use crate::nodes::topology::{NODES, address};
use crate::nodes::{LOCK_WAIT, PORT, Voice, run_node};
use crate::random::hash;

/// Of all nodes.
pub const CLUSTER: ClusterId = ClusterId::new([0x78; 16]);
/// How long a leader that gives its leadership away looks for another one.
const TRANSFER_LIMIT: Duration = Duration::from_secs(2);
/// What a scenario does has its outcome within this.
const SCENARIO_LIMIT: Duration = Duration::from_secs(20);

/// What a node is given.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Setup {
    /// Which one, from 0.
    pub node: usize,
    /// Counts the processes of a run, from 1.
    pub life: u64,
    /// Its engine's directory.
    pub directory: PathBuf,
    /// Where it logs.
    pub log: PathBuf,
    /// What everything random comes from.
    pub seed: u64,
    /// It has no clients of its own.
    pub is_quiet: bool,
}

/// What a node says of itself.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct State {
    /// The question that this answers.
    pub question: u64,
    /// [`ringwal_raft_fallback::Mode`], by its name.
    pub mode: String,
    /// Who leads, from 0, as far as it knows.
    pub leader: Option<usize>,
    /// Raft's term.
    pub term: u64,
    /// The epoch that has begun here last.
    pub epoch: Option<u64>,
    /// Ends of the metadata stream: applied, durable and committed.
    pub ends: [u64; 3],
    /// A hash of all that is applied, when that was asked for.
    pub digest: Option<u64>,
    /// Why it does not vote, and why nothing is applied.
    pub trouble: Vec<String>,
    /// Counted since it started.
    pub counts: Vec<(String, u64)>,
}

impl State {
    /// Whether it leads, in an epoch that has begun.
    pub fn leads(&self) -> bool {
        matches!(self.mode.as_str(), "fast" | "raft")
    }
}

/// The hidden command.
#[derive(Debug, clap::Args)]
pub struct StoreNodeArguments {
    setup: String,
}

impl StoreNodeArguments {
    /// Runs the node.
    ///
    /// # Errors
    /// Whatever no node may do on a sound disk.
    pub fn run(&self) -> Result<()> {
        run_node(&self.setup, |setup: &Setup| &setup.log, serve)
    }
}

/// A node, as others know it.
pub fn member(node: usize) -> Member {
    let id = NodeId::new(node as u64 + 1);
    Member { node: id, address: format!("{}:{PORT}", address(node)) }
}

fn config(setup: &Setup) -> StoreConfig {
    let mut config =
        Config::new(CLUSTER, member(setup.node).node, (0..NODES).map(member).collect());
    config.listen = member(setup.node).address;
    config.insecure = true;
    StoreConfig::new(config)
}

/// What a node has.
#[derive(Clone)]
struct Place {
    raft: Raft,
    store: MetadataStore,
    clients: Arc<Clients>,
    voice: Voice,
}

fn serve(setup: &Setup, voice: &Voice) -> Result<()> {
    let options = Engine::options().segment_bytes(4 << 20).shards(1).lock_wait(LOCK_WAIT);
    let engine = options.open(&setup.directory).context("opening the engine")?;
    let raft = Raft::start(engine.clone(), config(setup)).context("starting Raft")?;
    let (wal, replicator) = (MetadataWal::new(&raft), MetadataReplicator::new(&raft));
    let store = MetadataStore::new_with_wal(&raft, wal, replicator);
    operator::serve(&store);
    let voice = voice.clone();
    let clients = Clients::new(store.clone(), voice.clone(), setup.seed, setup.life);
    if !setup.is_quiet {
        clients.start();
    }
    voice.say("up");
    let place = Place { raft, store, clients, voice };
    let mut line = String::new();
    loop {
        line.clear();
        if std::io::stdin().read_line(&mut line)? == 0 {
            return Ok(());
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            [what @ ("state" | "digest"), question] => {
                let mut state = state(question.parse()?, &place.store);
                if what == "digest" {
                    state.digest = Some(digest(&place.store)?);
                }
                place.voice.say(&format!("state {}", serde_json::to_string(&state)?));
            }
            ["quiet"] => place.clients.quiet(),
            ["fast", is_on] => place.store.set_fast_path(is_on == "on"),
            ["close"] => {
                let Place { raft, store, clients, voice } = place;
                raft.close();
                drop((raft, store, clients));
                engine.close().context("closing the engine")?;
                voice.say("closed");
                return Ok(());
            }
            // In a thread of its own: it may take a while, and questions are answered meanwhile.
            _ => {
                let (place, line) = (place.clone(), line.trim().to_owned());
                std::thread::spawn(move || {
                    let said = match place.obey(&line) {
                        Ok(()) => format!("done {line}"),
                        Err(error) => format!("not {line}: {error:#}"),
                    };
                    // Before the operator may close the node.
                    let voice = place.voice.clone();
                    drop(place);
                    voice.say(&said);
                });
            }
        }
    }
}

impl Place {
    fn obey(&self, line: &str) -> Result<()> {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |word: &str| word.parse::<u64>();
        match words[..] {
            ["transfer", to] => {
                let to = number(to)?.checked_sub(1).map(|node| NodeId::new(node + 1));
                self.store.transfer_leader(to, TRANSFER_LIMIT).wait()?;
            }
            ["create", prefix, count] => {
                let runtime = tokio::runtime::Builder::new_current_thread().build()?;
                let names = (0..number(count)?).map(|topic| topic_name(prefix, topic));
                let created = names.map(|name| self.create(name));
                let created = runtime.block_on(futures_util::future::join_all(created));
                created.into_iter().collect::<Result<Vec<TopicId>>>()?;
            }
            ["await", prefix, count] => {
                let deadline = Instant::now() + SCENARIO_LIMIT;
                for topic in 0..number(count)? {
                    self.wait_for(&topic_name(prefix, topic), deadline)?;
                }
            }
            ["produce", name, record] => {
                let topic = self.wait_for(name, Instant::now() + SCENARIO_LIMIT)?;
                self.produce(topic, record)?;
            }
            ["use", name, record] => {
                let runtime = tokio::runtime::Builder::new_current_thread().build()?;
                let topic = runtime.block_on(self.create(name.to_owned()))?;
                self.produce(topic, record)?;
            }
            ["consume", name, record] => {
                let topic = self.wait_for(name, Instant::now() + SCENARIO_LIMIT)?;
                let mut records = self.raft.node().subscribe(topic.stream(0), 0);
                let found = records.next_blocking()?;
                let is_it = (found.offset(), found.payload()) == (0, record.as_bytes());
                ensure!(is_it, "another record is at {}", found.offset());
            }
            _ => self.voice.say(&format!("broken not understood: {line:?}")),
        }
        Ok(())
    }

    async fn create(&self, name: String) -> Result<TopicId> {
        let created =
            self.clients.execute(create(&name, 1, Default::default()), Ack::Local, SCENARIO_LIMIT);
        match created.await {
            Some(DoneShown::TopicCreated { topic }) => Ok(TopicId::new(topic)),
            other => anyhow::bail!("topic {name} is not created: {other:?}"),
        }
    }

    fn wait_for(&self, name: &str, deadline: Instant) -> Result<TopicId> {
        let topic = self.store.metadata().wait_for_topic(TopicName::new(name)?).wait(deadline);
        topic.with_context(|| format!("waiting for topic {name}"))
    }

    fn produce(&self, topic: TopicId, record: &str) -> Result<()> {
        let partitions = self.store.partitions().context("another node leads")?;
        let receipt = partitions.append(topic, 0, record, Ack::Local)?.wait()?.receipt;
        ensure!(receipt.offset() == 0, "the first record is at {}", receipt.offset());
        Ok(())
    }
}

/// The name of one of many topics.
fn topic_name(prefix: &str, number: u64) -> String {
    format!("{prefix}-{number}")
}

fn digest(store: &MetadataStore) -> Result<u64> {
    store.metadata().read(digest_of).1
}

/// A hash of a state: equal for equal states, on all nodes.
pub fn digest_of(state: &ringwal_raft_fallback::State) -> Result<u64> {
    let mut bytes = Vec::new();
    snapshot::write(state, &mut bytes)?;
    Ok(hash(&bytes))
}

fn state(question: u64, store: &MetadataStore) -> State {
    let status = store.status();
    let StoreStatus { mode, leader, term, begun, applied, durable, committed, .. } = status;
    let commands = status.commands;
    let mut counts = vec![
        ("commands by the fast path".to_owned(), commands.fast),
        ("commands through Raft".to_owned(), commands.raft),
        ("commands forwarded".to_owned(), commands.forwarded),
        ("attempts after the first one".to_owned(), commands.retried),
        ("records cut".to_owned(), status.records_cut),
    ];
    let fallbacks = commands.fallbacks.iter();
    counts.extend(fallbacks.map(|(why, count)| (format!("not the fast path: {why}"), *count)));
    State {
        question,
        mode: mode.name().to_owned(),
        leader: leader.map(|leader| leader.get() as usize - 1),
        term,
        epoch: begun.map(|begun| begun.epoch),
        ends: [applied.end, durable, committed],
        digest: None,
        trouble: status.unfit.into_iter().chain(status.trouble).collect(),
        counts: counts.into_iter().filter(|(_, count)| *count > 0).collect(),
    }
}
