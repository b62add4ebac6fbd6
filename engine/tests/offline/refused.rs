//! What the tools do not touch: no engine, and newer formats.

use std::fs;

use ringwal_engine::OpenErrorKind;
use ringwal_engine::offline::{RepairError, RepairOptions, Snapshot, inspect, repair, verify};

use super::setup::{assert_whole, files, mend, new, options};

#[test]
fn what_holds_no_engine_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let file = path.join("file");
    fs::write(&file, b"x").unwrap();
    let absent = path.join("absent");
    // A source tree has a folder of that name.
    let tree = tempfile::tempdir().unwrap();
    fs::create_dir(tree.path().join("engine")).unwrap();
    for (path, what) in [
        (absent.as_path(), "holds no engine"),
        (path, "holds no engine"),
        (tree.path(), "holds no engine"),
        (file.as_path(), "is not a directory"),
    ] {
        for error in [
            inspect(path).map(drop).unwrap_err(),
            verify(path).map(drop).unwrap_err(),
            Snapshot::open(path).map(drop).unwrap_err(),
        ] {
            assert!(error.to_string().contains(what), "{error}");
            assert_eq!(error.kind(), OpenErrorKind::Io);
        }
        let options =
            RepairOptions { dry_run: false, accept_loss_from: vec![], backup: path.join("b") };
        assert!(repair(path, &options).unwrap_err().to_string().contains(what));
    }
    assert!(!absent.exists() && fs::read_dir(path).unwrap().count() == 1);

    // Segments without the file that names the engine are never given a new one.
    let (_keep, data, model) = new(30, true);
    fs::remove_file(data.join("engine")).unwrap();
    assert_eq!(options().open(&data).map(drop).unwrap_err().kind(), OpenErrorKind::Corrupt);
    assert!(!data.join("engine").exists());
    mend(&data, &[], false).unwrap();
    assert_whole(&data, &model);
}

#[test]
fn a_newer_format_is_named_and_left_alone() {
    for (file, major_at) in [("engine", 12), ("shard-00/segment-00000000", 12)] {
        let (_keep, data, _) = new(20, true);
        let path = data.join(file);
        let mut bytes = fs::read(&path).unwrap();
        let length = if file == "engine" { 64 } else { 144 };
        for copy in [0, 4096] {
            bytes[copy + major_at] = 9;
            let crc = crc32c::crc32c(&bytes[copy + 12..copy + length]);
            bytes[copy + 8..copy + 12].copy_from_slice(&crc.to_le_bytes());
        }
        fs::write(&path, bytes).unwrap();
        let before = files(&data);
        for error in [
            inspect(&data).map(drop).unwrap_err(),
            verify(&data).map(drop).unwrap_err(),
            Snapshot::open(&data).map(drop).unwrap_err(),
            options().open(&data).map(drop).unwrap_err(),
        ] {
            assert_eq!(error.kind(), OpenErrorKind::NewerFormat, "{error}");
            assert!(error.to_string().contains("format 9.0"), "{error}");
        }
        assert!(matches!(mend(&data, &[], false), Err(RepairError::Open(_))));
        assert_eq!(files(&data), before);
    }
}
