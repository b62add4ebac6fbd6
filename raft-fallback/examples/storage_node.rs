//! A storage node: it makes topics known with the metadata store, and keeps their records in streams.
//!
//! `cargo run --release -p ringwal-raft-fallback --example storage_node` runs three of them in one process,
//! on free ports, in a directory that it removes. The first record that is produced creates its topic; a
//! follower consumes what the leader takes.

use std::error::Error;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ringwal_engine::Engine;
use ringwal_raft_fallback::command::{BrokerId, TopicName};
use ringwal_raft_fallback::state::{Done, Rejection, TopicId};
use ringwal_raft_fallback::{
    ExecuteError, MetadataReplicator, MetadataStore, MetadataWal, Mode, Raft, StoreConfig,
};
use ringwal_replication::Ack;

type Outcome<T> = Result<T, Box<dyn Error>>;

const PATIENCE: Duration = Duration::from_secs(20);
const RECORDS: u32 = 10;

/// A process has one of these.
struct StorageNode {
    engine: Engine,
    raft: Raft,
    store: MetadataStore,
}

impl StorageNode {
    fn start(directory: PathBuf, node: usize, addresses: &[String]) -> Outcome<Self> {
        let member = |(id, address)| format!("{{ node = {id}, address = \"{address}\" }},");
        let members: String = (1..).zip(addresses).map(member).collect();
        let listen = &addresses[node - 1];
        let config = StoreConfig::from_toml(&format!(
            r#"
            cluster = "6f1d8c0a-52b7-4a59-9f0e-3f8c2d7b1e44"
            node = {node}
            listen = "{listen}"
            members = [{members}]
            "#
        ))?;
        let engine = Engine::options().shards(1).segment_bytes(4 << 20).open(directory)?;
        let raft = Raft::start(engine.clone(), config.with_environment())?;
        let (wal, replicator) = (MetadataWal::new(&raft), MetadataReplicator::new(&raft));
        let store = MetadataStore::new_with_wal(&raft, wal, replicator);
        Ok(Self { engine, raft, store })
    }

    /// Whether it leads and may append. Where the fast path is switched off, commands go through Raft.
    fn leads(&self) -> bool {
        let is_fast = self.store.status().mode == Mode::Fast;
        (is_fast || !self.store.is_fast_path()) && self.store.partitions().is_some()
    }

    /// The topic's id, on any node; it is made when it is not there.
    fn topic(&self, name: &TopicName) -> Outcome<TopicId> {
        let (_, known) = self.store.metadata().read(|state| state.topic(name).map(|(id, _)| id));
        if let Some(topic) = known {
            return Ok(topic);
        }
        let create = self.store.create_topic(name.clone(), 1, 3, Default::default());
        match create.wait() {
            Ok(executed) => match executed.done {
                Done::TopicCreated { topic } => Ok(topic),
                other => Err(format!("a topic was to be created: {other:?}").into()),
            },
            // Somebody else was faster.
            Err(ExecuteError::Rejected(Rejection::TopicExists { topic })) => Ok(topic),
            Err(error) => Err(error.into()),
        }
    }

    /// Appends to partition 0, on the node that leads; the record's offset there.
    fn produce(&self, name: &TopicName, record: &[u8]) -> Outcome<u64> {
        let topic = self.topic(name)?;
        let partitions = self.store.partitions().ok_or("another node leads: produce there")?;
        let acknowledged = partitions.append(topic, 0, record, Ack::Local)?.wait()?;
        Ok(acknowledged.receipt.offset())
    }

    /// Reads partition 0 from its beginning, on any node, as records become durable there.
    fn consume(&self, name: &TopicName, count: u32) -> Outcome<()> {
        let mut topic = self.store.metadata().wait_for_topic(name.clone());
        let stream = topic.wait(Instant::now() + PATIENCE)?.stream(0);
        let mut records = self.raft.node().subscribe(stream, 0);
        for _ in 0..count {
            let record = records.next_blocking()?;
            println!("  {}: {}", record.offset(), String::from_utf8_lossy(record.payload()));
        }
        Ok(())
    }

    fn stop(self) -> Outcome<()> {
        let Self { engine, raft, store } = self;
        raft.close();
        drop((store, raft));
        engine.close()?;
        Ok(())
    }
}

/// The node that leads now. They find each other, and elect one.
fn leader(nodes: &[StorageNode]) -> Outcome<&StorageNode> {
    let began = Instant::now();
    loop {
        match nodes.iter().find(|node| node.leads()) {
            Some(leader) => return Ok(leader),
            None if began.elapsed() > PATIENCE => return Err("nobody leads".into()),
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

fn run(directory: &Path, addresses: &[String]) -> Outcome<()> {
    let start =
        |node: usize| StorageNode::start(directory.join(format!("node-{node}")), node, addresses);
    let nodes = (1..=addresses.len()).map(start).collect::<Outcome<Vec<_>>>()?;
    let began = Instant::now();
    let status = leader(&nodes)?.store.status();
    println!("node {} leads in epoch {} after {:?}", status.node, status.term, began.elapsed());

    // A command goes to the leader, whichever node is asked.
    for (id, (node, address)) in (1..).zip(nodes.iter().zip(addresses)) {
        node.store.register_broker(BrokerId::new(id), vec![address.clone()]).wait()?;
    }

    let name = TopicName::new("orders")?;
    for number in 0..RECORDS {
        let leader = leader(&nodes)?;
        let began = Instant::now();
        let offset = leader.produce(&name, format!("order {number}").as_bytes())?;
        let what = if number == 0 { ", its topic created" } else { "" };
        println!("record {offset} is durable after {:?}{what}", began.elapsed());
    }

    let follower = nodes.iter().find(|node| !node.leads()).ok_or("all nodes lead")?;
    println!("node {} has of {name}:", follower.store.status().node);
    follower.consume(&name, RECORDS)?;
    nodes.into_iter().try_for_each(StorageNode::stop)
}

fn main() -> Outcome<()> {
    let listeners =
        (0..3).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<Vec<_>, _>>()?;
    let addresses = listeners.iter().map(|listener| Ok(listener.local_addr()?.to_string()));
    let addresses = addresses.collect::<Outcome<Vec<_>>>()?;
    drop(listeners);
    run(tempfile::tempdir()?.path(), &addresses)
}
