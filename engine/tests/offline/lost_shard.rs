//! Directories that lack a shard.

use std::fs;
use std::path::{Path, PathBuf};

use ringwal_engine::offline::{Cut, RepairError, Severity, Snapshot, inspect, verify};
use ringwal_engine::{Engine, Io, OpenErrorKind, StreamId};

use super::setup::{SEGMENT_BYTES, assert_finds, held, mend};

fn options() -> ringwal_engine::Options {
    Engine::options().io(Io::Blocking).segment_bytes(SEGMENT_BYTES)
}

fn two_shards() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let engine = options().shards(2).open(&data).unwrap();
    for id in 4..20 {
        engine.stream(StreamId::new(id)).append(b"record").unwrap().wait().unwrap();
    }
    engine.close().unwrap();
    (directory, data)
}

#[test]
fn a_shard_that_is_gone_is_named_and_given_up_only_when_accepted() {
    let lose: [fn(&Path); 2] = [
        |shard| fs::remove_dir_all(shard).unwrap(),
        |shard| {
            fs::remove_dir_all(shard).unwrap();
            fs::create_dir(shard).unwrap();
        },
    ];
    for lose in lose {
        for shard in [0, 1] {
            let (_keep, data) = two_shards();
            let before = held(&Snapshot::open(&data).unwrap());
            let folder = data.join(format!("shard-{shard:02}"));
            lose(&folder);
            let verification = verify(&data).unwrap();
            let name = format!("shard-{shard:02}");
            assert_finds(&verification, Severity::Corrupt, &name, "of this shard");
            assert!(verification.findings[0].lost_untold);
            let whole = Cut { shard, segment: 0, byte: 0 };
            assert_eq!(verification.cuts, [whole]);
            for error in [
                inspect(&data).map(drop).unwrap_err(),
                Snapshot::open(&data).map(drop).unwrap_err(),
                options().open(&data).map(drop).unwrap_err(),
                options().read_only(true).open(&data).map(drop).unwrap_err(),
            ] {
                assert_eq!(error.kind(), OpenErrorKind::Corrupt, "{error}");
            }
            let exists = folder.exists();
            assert!(mend(&data, &[], false).unwrap().before.is_corrupt());
            let wrong = Cut { byte: 8192, ..whole };
            let refused = mend(&data, &[wrong], false).unwrap_err();
            assert!(matches!(refused, RepairError::Position { .. }), "{refused}");
            assert_eq!(folder.exists(), exists);

            let repair = mend(&data, &[whole], false).unwrap();
            assert!(repair.cuts[0].1.lost_untold);
            assert!(repair.after.unwrap().findings.is_empty());
            let left = held(&Snapshot::open(&data).unwrap());
            assert!(!left.is_empty() && left.len() < before.len());
            assert!(left.iter().all(|(key, value)| before.get(key) == Some(value)));
            options().open(&data).unwrap().close().unwrap();
            assert!(verify(&data).unwrap().findings.is_empty());
        }
    }
}

#[test]
fn a_directory_that_was_only_made_is_fine_and_one_half_made_holds_nothing() {
    let (_keep, data) = two_shards();
    for shard in ["shard-00", "shard-01"] {
        for entry in fs::read_dir(data.join(shard)).unwrap().map(Result::unwrap) {
            fs::remove_file(entry.path()).unwrap();
        }
        fs::write(data.join(shard).join("anchor"), [0; 8192]).unwrap();
    }
    // As a process leaves it that was killed before it opened the first shard.
    assert!(verify(&data).unwrap().findings.is_empty());
    assert_eq!(inspect(&data).unwrap().shards.len(), 2);
    fs::remove_file(data.join("engine")).unwrap();
    assert!(verify(&data).unwrap_err().to_string().contains("holds no engine"));
    options().shards(2).open(&data).unwrap().close().unwrap();
    assert!(verify(&data).unwrap().findings.is_empty());
}
