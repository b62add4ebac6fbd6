//! Commits per second of a cluster of one with Raft's log on the engine: what Raft costs beside the log's
//! own flush. `cargo bench -p ringwal-raft-fallback --bench raft_log [-- DIRECTORY]`.

use std::collections::BTreeMap;
use std::future::Future;
use std::io::Cursor;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use openraft::alias::{SnapshotOf, VoteOf};
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::v2::RaftNetworkV2;
use openraft::network::{RPCOption, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse,
};
use openraft::{Config, OptionalSend, Raft};
use ringwal_engine::Engine;
use ringwal_raft_fallback::raft::{EngineJournal, Payload, RaftLog, RaftNode, Types};

#[path = "../tests/raft_log/machine.rs"]
mod machine;

use machine::Machine;

/// A cluster of one has nobody to talk to.
struct Nobody;

type Data = Cursor<Vec<u8>>;

fn nobody() -> Unreachable<Types> {
    Unreachable::from_string("there is no other node")
}

impl RaftNetworkFactory<Types> for Nobody {
    type Network = Self;

    async fn new_client(&mut self, _: u64, _: &RaftNode) -> Self {
        Self
    }
}

impl RaftNetworkV2<Types> for Nobody {
    type SnapshotData = Data;

    async fn append_entries(
        &mut self,
        _: AppendEntriesRequest<Types>,
        _: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        Err(RPCError::Unreachable(nobody()))
    }

    async fn vote(
        &mut self,
        _: VoteRequest<Types>,
        _: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        Err(RPCError::Unreachable(nobody()))
    }

    async fn full_snapshot(
        &mut self,
        _: VoteOf<Types>,
        _: SnapshotOf<Types, Data>,
        _: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        Err(StreamingError::Unreachable(nobody()))
    }
}

async fn run(raft: &Raft<Types, Machine>, clients: usize, commands: usize) {
    let began = Instant::now();
    let tasks: Vec<_> = (0..clients)
        .map(|_| {
            let raft = raft.clone();
            tokio::spawn(async move {
                let mut times = Vec::with_capacity(commands / clients);
                for _ in 0..commands / clients {
                    let records = vec![Bytes::from_static(&[7; 128])];
                    let began = Instant::now();
                    let payload = Payload::Extend { epoch: 1, base: 0, continues: false, records };
                    raft.client_write(payload).await.expect("it leads");
                    times.push(began.elapsed());
                }
                times
            })
        })
        .collect();
    let mut times = Vec::new();
    for task in tasks {
        times.extend(task.await.expect("no client panics"));
    }
    let seconds = began.elapsed().as_secs_f64();
    times.sort_unstable();
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize];
    println!(
        "{clients:>4} clients: {:>8.0} commits/s, p50 {:?}, p99 {:?}",
        times.len() as f64 / seconds,
        at(0.5),
        at(0.99)
    );
}

async fn measure(directory: &std::path::Path) {
    let engine = Engine::options().open(directory).expect("the directory opens");
    let log = RaftLog::open(EngineJournal::new(engine.clone()).expect("a thread"), 8 << 20);
    let config = Config { heartbeat_interval: 100, ..Config::default() };
    let config = Arc::new(config.validate().expect("sound"));
    let log = log.await.expect("the log opens");
    let raft = Raft::new(1, config, Nobody, log, Machine::default()).await.expect("it starts");
    let members = BTreeMap::from([(1, RaftNode::new("nowhere", [0; 16]))]);
    raft.initialize(members).await.expect("it is blank");
    let led = raft.wait(Some(Duration::from_secs(5)));
    led.metrics(|metrics| metrics.current_leader == Some(1), "leads").await.expect("it is alone");
    let first = Payload::Extend { epoch: 1, base: 0, continues: false, records: Vec::new() };
    while raft.client_write(first.clone()).await.is_err() {
        tokio::task::yield_now().await;
    }
    for (clients, commands) in [(1, 3_000), (64, 100_000), (256, 200_000)] {
        let batches = |engine: &Engine| engine.stats().shards[0].batches;
        let before = batches(&engine);
        run(&raft, clients, commands).await;
        println!("              {} batches", batches(&engine) - before);
    }
    raft.shutdown().await.expect("its task ends");
}

fn main() {
    let chosen = std::env::args().nth(1).filter(|argument| !argument.starts_with('-'));
    let scratch = tempfile::tempdir_in(chosen.unwrap_or_else(|| ".".into())).expect("a directory");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(measure(scratch.path()));
}
