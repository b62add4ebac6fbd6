//! The log over the real engine: restarts, long appends, entries that are not in memory any more, failures.

use openraft::RaftLogReader;
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::type_config::TypeConfigExt;
use openraft_rt_tokio::TokioRuntime;
use ringwal_engine::Engine;
use ringwal_engine::disk::sim::Kind;
use ringwal_raft_fallback::raft::{
    EngineJournal, Entry, Journal, OpenError, RaftLog, STATE_STREAM, Types, Vote,
};

use crate::crashes::{entry, log_id};
use crate::simulated::{SimJournal, blank_disk};

async fn open(
    directory: &tempfile::TempDir,
    cache_bytes: usize,
) -> RaftLog<EngineJournal, TokioRuntime> {
    let options = Engine::options().shards(2).segment_bytes(256 << 10).pool_bytes(1 << 20);
    let engine = options.open(directory.path()).unwrap();
    RaftLog::open(EngineJournal::new(engine).unwrap(), cache_bytes).await.unwrap()
}

async fn append<J: Journal>(
    log: &mut RaftLog<J, TokioRuntime>,
    entries: Vec<Entry>,
) -> std::io::Result<()> {
    let (sender, receiver) = Types::<TokioRuntime>::oneshot();
    log.append(entries, IOFlushed::signal(sender)).await?;
    receiver.await.unwrap()
}

#[tokio::test]
async fn everything_is_there_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let mut log = open(&directory, 1 << 20).await;
    append(&mut log, (0..20).map(|index| entry(1, index, 100)).collect()).await.unwrap();
    log.truncate_after(Some(log_id(1, 9))).await.unwrap();
    log.save_committed(Some(log_id(1, 8))).await.unwrap();
    append(&mut log, (10..15).map(|index| entry(3, index, 100)).collect()).await.unwrap();
    log.purge(log_id(1, 4)).await.unwrap();
    // More votes than stream 2 keeps.
    for term in 4..400 {
        log.save_vote(&Vote::new(term, 2)).await.unwrap();
    }
    log.save_vote(&Vote::new_committed(400, 2)).await.unwrap();
    drop(log);

    let mut log = open(&directory, 1 << 20).await;
    let state = log.get_log_state().await.unwrap();
    assert_eq!(state.last_purged_log_id, Some(log_id(1, 4)));
    assert_eq!(state.last_log_id, Some(log_id(3, 14)));
    assert_eq!(log.read_committed().await.unwrap(), Some(log_id(1, 8)));
    let mut reader = log.get_log_reader().await;
    assert_eq!(reader.read_vote().await.unwrap(), Some(Vote::new_committed(400, 2)));
    let expected: Vec<Entry> = (5..10)
        .map(|index| entry(1, index, 100))
        .chain((10..15).map(|index| entry(3, index, 100)))
        .collect();
    assert_eq!(reader.try_get_log_entries(..).await.unwrap(), expected);
    drop((log, reader));

    let engine = Engine::options().open(directory.path()).unwrap();
    let votes = engine.stream(STATE_STREAM);
    assert!(votes.trimmed() > 300, "stream 2 is trimmed as it grows: {}", votes.trimmed());
}

#[tokio::test]
async fn many_long_entries_in_one_append_and_what_is_read_of_them() {
    let directory = tempfile::tempdir().unwrap();
    let mut log = open(&directory, 100_000).await;
    let max = log.entry_bytes_max();
    assert!(max > 60_000, "{max}");
    let entries: Vec<Entry> = (0..60).map(|index| entry(1, index, 50_000)).collect();
    append(&mut log, entries.clone()).await.unwrap();
    let mut reader = log.get_log_reader().await;
    assert_eq!(reader.try_get_log_entries(..).await.unwrap(), entries);
    assert_eq!(reader.try_get_log_entries(57..100).await.unwrap(), entries[57..]);
    assert_eq!(reader.try_get_log_entries(20..=57).await.unwrap(), entries[20..58]);
    let limited = reader.limited_get_log_entries(0, 60).await.unwrap();
    assert_eq!(limited, entries[..limited.len()]);
    assert!((2..59).contains(&limited.len()), "{}", limited.len());

    let too_long = append(&mut log, vec![entry(1, 60, max)]).await.unwrap_err();
    assert!(too_long.to_string().contains("an entry has at most"), "{too_long}");
    let hole = append(&mut log, vec![entry(1, 61, 10)]).await.unwrap_err();
    assert!(hole.to_string().contains("the entry of index 61 lies at 60"), "{hole}");
    append(&mut log, vec![entry(1, 60, 10)]).await.unwrap();
}

#[tokio::test]
async fn a_log_that_somebody_else_has_trimmed_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let mut log = open(&directory, 0).await;
    append(&mut log, (0..9).map(|index| entry(1, index, 10)).collect()).await.unwrap();
    drop(log);
    let engine = Engine::options().open(directory.path()).unwrap();
    engine.stream(ringwal_raft_fallback::raft::LOG_STREAM).trim(5).unwrap();
    let refused = RaftLog::<_, TokioRuntime>::open(EngineJournal::new(engine).unwrap(), 0).await;
    assert!(matches!(refused.err(), Some(OpenError::Missing { first: 5, purged: 0 })));
}

#[tokio::test]
async fn after_a_failed_write_nothing_is_acknowledged_and_what_was_durable_is_read() {
    let sim = blank_disk(3);
    let journal = SimJournal::open(&sim).unwrap();
    let turned = journal.clone();
    tokio::spawn(async move {
        loop {
            turned.turn();
            tokio::task::yield_now().await;
        }
    });
    let mut log = RaftLog::<_, TokioRuntime>::open(journal, 0).await.unwrap();
    append(&mut log, vec![entry(1, 0, 10)]).await.unwrap();
    sim.fail_always(Kind::Write, 5);
    assert!(append(&mut log, vec![entry(1, 1, 10)]).await.is_err());
    assert!(append(&mut log, vec![entry(1, 2, 10)]).await.is_err());
    assert!(log.save_vote(&Vote::new(9, 1)).await.is_err());
    assert!(log.truncate_after(None).await.is_err());
    assert!(log.purge(log_id(1, 0)).await.is_err());
    let mut reader = log.get_log_reader().await;
    assert_eq!(reader.read_vote().await.unwrap(), None);
    assert_eq!(reader.try_get_log_entries(0..1).await.unwrap(), [entry(1, 0, 10)]);
}
