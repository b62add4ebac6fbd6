//! Beside an engine that runs.

use std::ops::ControlFlow;

use ringwal_engine::offline::{RepairError, Snapshot, inspect, verify};
use ringwal_engine::{OpenErrorKind, StreamId};

use super::setup::{mend, options, payload};

#[test]
fn beside_a_running_engine_records_show_and_verify_waits_its_turn() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let engine = options().open(&data).unwrap();
    let stream = engine.stream(StreamId::new(7));
    stream.append(b"0").unwrap().wait().unwrap();
    let mut snapshot = Snapshot::open(&data).unwrap();
    assert!(inspect(&data).unwrap().in_use);
    for refused in [
        verify(&data).map(drop).unwrap_err(),
        match mend(&data, &[], false) {
            Err(RepairError::Open(error)) => error,
            other => panic!("{other:?}"),
        },
    ] {
        assert_eq!(refused.kind(), OpenErrorKind::InUse);
        let process = format!("process {}", std::process::id());
        assert!(refused.to_string().contains(&process), "{refused}");
    }
    // Records come in by refreshing, across segments, trims, and another open.
    let mut next = 0;
    for offset in 1..400u64 {
        stream.append(payload(7, offset)).unwrap().wait().unwrap();
        if offset % 7 == 0 {
            assert!(snapshot.refresh().unwrap());
            let records = snapshot.read(StreamId::new(7), next..).unwrap().unwrap();
            for record in records {
                assert_eq!(record.unwrap().offset(), next);
                next += 1;
            }
            assert_eq!(next, offset + 1);
        }
    }
    stream.trim(300).unwrap();
    snapshot.refresh().unwrap();
    snapshot.refresh().unwrap();
    assert_eq!(snapshot.streams()[0].trimmed, 300);
    engine.close().unwrap();
    snapshot.refresh().unwrap();
    assert!(!snapshot.refresh().unwrap(), "nothing more comes");
    let engine = options().open(&data).unwrap();
    engine.stream(StreamId::new(9)).append(b"new").unwrap().wait().unwrap();
    assert!(snapshot.refresh().unwrap());
    assert_eq!(snapshot.streams().len(), 2);
    engine.close().unwrap();
    assert!(verify(&data).unwrap().findings.is_empty());
}

#[test]
fn a_busy_engine_never_looks_damaged() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let engine = options().shards(2).segments_free_max(0).open(&data).unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for id in 0..4 {
            let (stream, stop) = (engine.stream(StreamId::new(id)), &stop);
            scope.spawn(move || {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let tokens: Vec<_> =
                        (0..40).map(|_| stream.append(payload(id, 0)).unwrap()).collect();
                    let last = tokens.into_iter().map(|token| token.wait().unwrap()).last();
                    let end = last.unwrap().offset();
                    if end % 3 == 0 {
                        stream.trim(end.saturating_sub(200)).unwrap();
                    }
                }
            });
        }
        for _ in 0..25 {
            let inspection = inspect(&data).unwrap();
            for shard in &inspection.shards {
                assert!(shard.damages.is_empty(), "{:?}", shard.damages);
            }
            let snapshot = Snapshot::open(&data).unwrap();
            let damages = snapshot.visit(|_| ControlFlow::Continue(())).unwrap();
            assert!(damages.is_empty(), "{damages:?}");
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    engine.close().unwrap();
    assert!(verify(&data).unwrap().findings.is_empty());
}
