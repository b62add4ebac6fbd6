//! Directories without damage.

use std::fs;

use ringwal_engine::StreamId;
use ringwal_engine::offline::{FileState, Snapshot, inspect, verify};

use super::setup::{STREAMS, assert_whole, files, fill, held, mend, new, options};

#[test]
fn a_killed_directory_is_whole_and_nothing_is_written_to_it() {
    let (_keep, data, model) = new(155, false);
    let before = files(&data);
    let verification = verify(&data).unwrap();
    assert!(!verification.is_damaged(), "{:?}", verification.findings);
    assert_eq!(verification.totals.records, model.len() as u64);
    assert!(verification.totals.segments > 3);
    let inspection = inspect(&data).unwrap();
    assert!(!inspection.in_use);
    let shard = &inspection.shards[0];
    assert!(shard.damages.is_empty() && shard.torn.is_none());
    let count = |state| shard.files.iter().filter(|file| file.state == state).count();
    assert_eq!(count(FileState::Open) + count(FileState::Live), 1, "{:#?}", shard.files);
    assert!(count(FileState::Sealed) > 2 && count(FileState::Unused) > 0);
    assert_eq!((count(FileState::Other), count(FileState::Unreadable)), (0, 0));
    let batches: u64 = shard.files.iter().map(|file| file.batches).sum();
    assert_eq!((batches, shard.end.sequence), (verification.totals.batches, batches));
    for stream in &shard.streams {
        assert_eq!((stream.trimmed, stream.end), (0, 155));
        assert_eq!(stream.spans.first().unwrap().offsets.start, 0);
        assert_eq!(stream.spans.last().unwrap().offsets.end, 155);
    }
    let snapshot = Snapshot::open(&data).unwrap();
    assert_eq!(held(&snapshot), model);
    for stream in STREAMS {
        let records = snapshot.read(StreamId::new(stream), 3..9).unwrap().unwrap();
        let offsets: Vec<_> = records.map(|record| record.unwrap().offset()).collect();
        assert_eq!(offsets, (3..9).collect::<Vec<_>>());
    }
    assert!(snapshot.read(StreamId::new(99), ..).unwrap().is_none());
    let dry = mend(&data, &[], true).unwrap();
    assert!(dry.steps.is_empty() && dry.after.is_none());
    assert_eq!(files(&data), before, "looking changes nothing");
    assert_whole(&data, &model);
}

#[test]
fn several_incarnations_trims_and_moves_are_no_findings() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    for round in 0..6 {
        let mut model = fill(&data, 120, round % 2 == 0);
        let engine = options().open(&data).unwrap();
        for stream in [7, 8] {
            let stream = engine.stream(StreamId::new(stream));
            stream.trim(stream.end() - 5).unwrap();
            model.retain(|(id, offset), _| *id != stream.id().get() || *offset >= stream.trimmed());
        }
        engine.close().unwrap();
        let verification = verify(&data).unwrap();
        assert!(verification.findings.is_empty(), "{:?}", verification.findings);
        assert_eq!(held(&Snapshot::open(&data).unwrap()), model, "round {round}");
        // Later rounds count from the end, as the model of `fill` does not.
        let engine = options().open(&data).unwrap();
        for stream in STREAMS {
            let stream = engine.stream(StreamId::new(stream));
            stream.truncate(stream.trimmed(), 1 + round).unwrap().wait().unwrap();
            stream.trim(stream.end()).unwrap();
        }
        engine.close().unwrap();
        assert!(held(&Snapshot::open(&data).unwrap()).is_empty());
        fs::remove_dir_all(&data).unwrap();
    }
}
