//! openraft's own suite for storage, over the real engine and over a simulated disk.

use std::time::Duration;

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use openraft_rt_tokio::TokioRuntime;
use ringwal_engine::Engine;
use ringwal_raft_fallback::raft::{EngineJournal, RaftLog, Types};

use crate::machine::Machine;
use crate::simulated::{SimJournal, blank_disk};

/// Two shards, of which streams 1 and 2 are in different ones; nothing is kept in memory that can be read.
struct OnEngine;

impl StoreBuilder<Types, RaftLog<EngineJournal, TokioRuntime>, Machine, tempfile::TempDir>
    for OnEngine
{
    async fn build(
        &self,
    ) -> Result<
        (tempfile::TempDir, RaftLog<EngineJournal, TokioRuntime>, Machine),
        StorageError<Types>,
    > {
        let directory = tempfile::tempdir().unwrap();
        let options = Engine::options().shards(2).segment_bytes(256 << 10);
        let engine = options.pool_bytes(1 << 20).open(directory.path()).unwrap();
        let log = RaftLog::open(EngineJournal::new(engine).unwrap(), 0).await.unwrap();
        Ok((directory, log, Machine::default()))
    }
}

#[tokio::test]
async fn the_suite_passes_over_the_engine() {
    Suite::test_all(OnEngine).await.unwrap();
}

struct Simulated;

impl StoreBuilder<Types, RaftLog<SimJournal, TokioRuntime>, Machine, ()> for Simulated {
    async fn build(
        &self,
    ) -> Result<((), RaftLog<SimJournal, TokioRuntime>, Machine), StorageError<Types>> {
        let journal = SimJournal::open(&blank_disk(1)).unwrap();
        let turned = journal.clone();
        // Real time only decides how often an idle shard is turned: the suite sleeps in it.
        tokio::spawn(async move {
            loop {
                match turned.turn() {
                    0 => tokio::time::sleep(Duration::from_micros(200)).await,
                    _ => tokio::task::yield_now().await,
                }
            }
        });
        let log = RaftLog::open(journal, 1 << 20).await.unwrap();
        Ok(((), log, Machine::default()))
    }
}

#[tokio::test]
async fn the_suite_passes_over_a_shard_on_a_simulated_disk() {
    Suite::test_all(Simulated).await.unwrap();
}
