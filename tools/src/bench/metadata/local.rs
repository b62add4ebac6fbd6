//! One node with its metadata store in this process: the bench's own, or that of a process beside it.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use ringwal_engine::Engine;
use ringwal_raft_fallback::command::TopicName;
use ringwal_raft_fallback::{
    Executed, MetadataReplicator, MetadataStore, MetadataWal, Raft, StoreConfig,
};
use ringwal_replication::config::{Config, Member};
use ringwal_replication::node_id::{ClusterId, NodeId};

use super::super::wait_until_prepared;
use crate::exit::Failure;
use crate::nodes;

/// Of all nodes.
pub const SEGMENT_BYTES: u64 = 32 << 20;

/// See the module.
pub struct LocalNode {
    engine: Engine,
    raft: Raft,
    pub store: MetadataStore,
}

impl LocalNode {
    /// Node number `node`, from 1, of those that listen at `addresses`.
    pub fn start(
        options: ringwal_engine::Options,
        directory: &Path,
        node: u64,
        addresses: &[String],
    ) -> Result<LocalNode> {
        let options = options.segment_bytes(SEGMENT_BYTES).lock_wait(nodes::LOCK_WAIT);
        let engine = options.open(directory).map_err(|error| Failure::open(&error))?;
        wait_until_prepared(&engine);
        let members = (1..)
            .zip(addresses)
            .map(|(node, address)| Member { node: NodeId::new(node), address: address.clone() });
        let cluster = ClusterId::new(*b"ringwal bench no");
        let mut config = Config::new(cluster, NodeId::new(node), members.collect());
        config.listen = addresses[node as usize - 1].clone();
        let raft = nodes::start_raft(engine.clone(), StoreConfig::new(config))?;
        let (wal, replicator) = (MetadataWal::new(&raft), MetadataReplicator::new(&raft));
        let store = MetadataStore::new_with_wal(&raft, wal, replicator);
        Ok(LocalNode { engine, raft, store })
    }

    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    pub fn close(self) -> Result<()> {
        let LocalNode { engine, raft, store } = self;
        raft.close();
        drop((store, raft));
        engine.close().context("closing the engine of a node").map(drop)
    }
}

/// Makes a topic.
pub fn create(store: &MetadataStore, name: &str) -> Result<Executed> {
    let name = TopicName::new(name).context("the name of a topic")?;
    let created = store.create_topic(name, 1, 1, [].into()).wait();
    created.context("making a topic")
}

/// One client: makes topics whose names begin so, one after the other, until it is over. Each is given
/// with its beginning and how long it took.
pub fn create_until(
    store: &MetadataStore,
    prefix: &str,
    is_over: impl Fn(Instant) -> bool,
    mut answered: impl FnMut(Instant, Duration, &Executed),
) -> Result<()> {
    let mut now = Instant::now();
    for number in 0_u64.. {
        if is_over(now) {
            break;
        }
        let name = format!("{prefix}-{number}");
        let start = Instant::now();
        let executed = create(store, &name)?;
        now = Instant::now();
        if executed.is_retry {
            bail!("topic {name} had been made before");
        }
        answered(start, now - start, &executed);
    }
    Ok(())
}

/// Nanoseconds on CLOCK_MONOTONIC, which all processes of a machine share.
pub fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
