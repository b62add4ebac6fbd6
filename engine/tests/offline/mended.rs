//! Damage that is mended without loss.

use std::fs;
use std::path::Path;

use ringwal_engine::OpenError;
use ringwal_engine::offline::{FileState, Severity, inspect, verify};

use super::setup::{
    BLOCK, Places, SEGMENT_BYTES, assert_finds, assert_whole, files, flip, mend, new, options,
    overwrite, places, segment,
};

#[test]
fn what_another_copy_or_the_batches_tell_is_mended_without_loss() {
    type Rot = fn(&Path, &Places);
    let cases: [(&str, Rot, &str, &str); 15] = [
        (
            "first header",
            |d, p| flip(&segment(d, p.sealed), 30),
            "segment-",
            "copy 1 of its header",
        ),
        ("second header", |d, p| flip(&segment(d, p.open), BLOCK + 1), "segment-", "copy 2"),
        (
            "both headers of a sealed segment",
            |d, p| overwrite(&segment(d, p.sealed), 0..2 * BLOCK, 0x5A),
            "segment-",
            "both copies of its header",
        ),
        (
            "both headers of the open segment",
            |d, p| overwrite(&segment(d, p.open), 0..2 * BLOCK, 0),
            "segment-",
            "both copies of its header",
        ),
        ("engine 1", |d, _| flip(&d.join("engine"), 40), "engine", "the other copy tells it"),
        ("engine 2", |d, _| flip(&d.join("engine"), BLOCK + 5), "engine", "copy 2"),
        (
            "both",
            |d, _| overwrite(&d.join("engine"), 0..2 * BLOCK, 0),
            "engine",
            "the segments tell it",
        ),
        ("no engine", |d, _| fs::remove_file(d.join("engine")).unwrap(), "engine", "too few bytes"),
        ("anchor", |d, _| flip(&d.join("shard-00/anchor"), BLOCK + 20), "anchor", "anchor"),
        (
            "no anchor",
            |d, _| fs::remove_file(d.join("shard-00/anchor")).unwrap(),
            "anchor",
            "the anchor is lost",
        ),
        (
            "footer",
            |d, p| flip(&segment(d, p.sealed), SEGMENT_BYTES - BLOCK + 17),
            "segment-",
            "the footer is damaged",
        ),
        ("entries", |d, p| flip(&segment(d, p.sealed), p.entries + 9), "segment-", "the entries"),
        ("runs", |d, p| flip(&segment(d, p.sealed), p.runs + 9), "segment-", "the runs"),
        (
            "padding",
            |d, p| {
                let bytes = fs::read(segment(d, p.sealed)).unwrap();
                let length = u32::from_le_bytes(bytes[8192 + 48..8192 + 52].try_into().unwrap());
                flip(&segment(d, p.sealed), 8192 + u64::from(length) + 3);
            },
            "segment-",
            "the padding behind a batch",
        ),
        (
            "renamed",
            |d, p| fs::rename(segment(d, p.sealed), segment(d, 77)).unwrap(),
            "segment-00000077",
            "was renamed",
        ),
    ];
    for (name, rot, file, what) in cases {
        let (_keep, data, model) = new(155, false);
        rot(&data, &places(&data));
        let damaged = files(&data);
        let verification = verify(&data).unwrap();
        assert_finds(&verification, Severity::Repairable, file, what);
        assert!(!verification.is_corrupt(), "{name}: {:#?}", verification.findings);
        let dry = mend(&data, &[], true).unwrap();
        assert!(!dry.steps.is_empty() && dry.after.is_none() && dry.backup.is_none());
        assert_eq!(files(&data), damaged, "{name}: a dry run writes nothing");
        let repair = mend(&data, &[], false).unwrap();
        assert!(!repair.after.unwrap().is_damaged(), "{name}");
        let backup = repair.backup.unwrap();
        for (path, bytes) in damaged {
            let copy = backup.join(path.strip_prefix(&data).unwrap());
            let now = fs::read(&path).ok();
            assert!(
                now.as_ref() == Some(&bytes) || fs::read(copy).is_ok_and(|copy| copy == bytes),
                "{name}: {} changed without a copy",
                path.display()
            );
        }
        assert_whole(&data, &model);
    }
}

#[test]
fn foreign_files_are_put_right_without_loss() {
    // Another engine's segment.
    let (_keep, data, model) = new(100, true);
    let (_other, other, _) = new(100, true);
    fs::copy(segment(&other, 1), segment(&data, 90)).unwrap();
    assert!(matches!(options().open(&data), Err(OpenError::Corrupt(_))));
    assert_finds(&verify(&data).unwrap(), Severity::Repairable, "90", "another engine");
    let states = &inspect(&data).unwrap().shards[0].files;
    assert!(states.iter().any(|file| file.state == FileState::Foreign));
    let repair = mend(&data, &[], false).unwrap();
    assert!(repair.backup.unwrap().join("shard-00/segment-00000090").exists());
    assert_whole(&data, &model);

    // A second copy of one of its own.
    let (_keep, data, model) = new(100, true);
    fs::copy(segment(&data, 1), segment(&data, 91)).unwrap();
    assert_finds(&verify(&data).unwrap(), Severity::Repairable, "91", "was renamed");
    mend(&data, &[], false).unwrap();
    assert!(segment(&data, 1).exists() && !segment(&data, 91).exists());
    assert_whole(&data, &model);

    // Files that were never finished, and strangers.
    let (_keep, data, model) = new(100, true);
    fs::write(segment(&data, 80), b"").unwrap();
    fs::write(data.join("shard-00/notes.txt"), b"hello").unwrap();
    fs::create_dir(data.join("backup-of-mine")).unwrap();
    assert!(verify(&data).unwrap().findings.is_empty());
    assert_whole(&data, &model);
}
