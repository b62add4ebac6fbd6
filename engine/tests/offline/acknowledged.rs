//! Rot in acknowledged data: it is named, and cut only when its loss is accepted.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use ringwal_engine::offline::{Cut, RepairError, Severity, Snapshot, inspect, verify};
use ringwal_engine::{OpenErrorKind, StreamId};

use super::setup::{
    BLOCK, Places, assert_finds, assert_whole, files, fill, flip, held, mend, new, options,
    overwrite, payload, places, segment,
};

#[test]
fn rot_in_acknowledged_data_is_named_and_cut_only_when_accepted() {
    type Rot = fn(&Path, &Places);
    let cases: [(&str, Rot, &str); 10] = [
        (
            "batch header",
            |d, p| flip(&segment(d, p.sealed), 8192 + 2 * BLOCK + 20),
            "no batch header",
        ),
        (
            "frame header",
            |d, p| flip(&segment(d, p.sealed), 8192 + 3 * BLOCK + 70),
            "is damaged in",
        ),
        ("payload", |d, p| flip(&segment(d, p.sealed), 8192 + 3 * BLOCK + 500), "is damaged in"),
        (
            "a block of zeros",
            |d, p| overwrite(&segment(d, p.sealed), 8192 + 5 * BLOCK..8192 + 6 * BLOCK, 0),
            "no batch header where one must be (no magic)",
        ),
        (
            "a misdirected block",
            |d, p| {
                let bytes = fs::read(segment(d, p.sealed)).unwrap();
                let file = OpenOptions::new().write(true).open(segment(d, p.sealed)).unwrap();
                file.write_all_at(&bytes[8192..8192 + 4096], 8192 + 7 * BLOCK).unwrap();
            },
            "no batch header",
        ),
        ("in the open segment", |d, p| flip(&segment(d, p.open), 8192 + BLOCK + 400), "is damaged"),
        (
            "truncated",
            |d, p| {
                let file = OpenOptions::new().write(true).open(segment(d, p.sealed)).unwrap();
                file.set_len(8192 + 4 * BLOCK).unwrap();
            },
            "is damaged or missing",
        ),
        ("missing", |d, p| fs::remove_file(segment(d, p.sealed)).unwrap(), "is missing"),
        (
            "zero-length",
            |d, p| drop(fs::File::create(segment(d, p.sealed)).unwrap()),
            "is missing or its header is damaged",
        ),
        (
            "header and first batch",
            |d, p| overwrite(&segment(d, p.sealed), 0..3 * BLOCK, 7),
            "is missing or its header is damaged",
        ),
    ];
    for (name, rot, what) in cases {
        let (_keep, data, model) = new(155, false);
        rot(&data, &places(&data));
        let damaged = files(&data);
        let verification = verify(&data).unwrap();
        assert_finds(&verification, Severity::Corrupt, "", what);
        let rots_unsealed = name == "in the open segment";
        if rots_unsealed || what.contains("missing") {
            let refused = options().open(&data).map(drop).unwrap_err();
            assert_eq!(refused.kind(), OpenErrorKind::Corrupt, "{name}: {refused}");
            assert_eq!(files(&data), damaged, "{name}: refusing changes nothing");
        }
        let cut = *verification.cuts.first().unwrap_or_else(|| panic!("{name}: no place to cut"));
        assert_eq!(cut.to_string().parse::<Cut>().unwrap(), cut);

        // Without acceptance nothing acknowledged is given up.
        let without = mend(&data, &[], false).unwrap();
        let after = without.after.unwrap_or(without.before);
        assert!(after.is_corrupt(), "{name}: {:?}", after.findings);

        let dry = mend(&data, &[cut], true).unwrap();
        let (_, loss) = &dry.cuts[0];
        assert!(loss.records() > 0 && loss.returned.is_empty(), "{name}");
        let later = Cut { byte: cut.byte + BLOCK, ..cut };
        match mend(&data, &[later], true) {
            // Behind the last batch there is nothing more to keep.
            Ok(repair) => assert_eq!(repair.cuts[0].1.lost, loss.lost, "{name}"),
            Err(error) => assert!(matches!(error, RepairError::Position { .. }), "{name}: {error}"),
        }
        let repair = mend(&data, &[cut], false).unwrap();
        let after = repair.after.unwrap();
        assert!(!after.is_damaged(), "{name}: {:?}", after.findings);
        let backup = repair.backup.unwrap();
        let changed = |path: &Path| fs::read(path).ok().as_ref() != damaged.get(path);
        for path in damaged.keys().filter(|path| changed(path)) {
            assert!(
                backup.join(path.strip_prefix(&data).unwrap()).exists()
                    || data.join("backup-0").join(path.strip_prefix(&data).unwrap()).exists(),
                "{name}: {} changed without a copy",
                path.display()
            );
        }

        // Exactly what was said is gone, and everything before is there.
        let mut expected = model.clone();
        expected.retain(|(stream, offset), _| {
            !loss
                .lost
                .iter()
                .any(|range| range.stream.get() == *stream && range.offsets.contains(offset))
        });
        assert!(!expected.is_empty(), "{name}: what lies before the damage stays");
        assert_eq!((expected.len() as u64) + loss.records(), model.len() as u64, "{name}");
        assert_whole(&data, &expected);
    }
}

#[test]
fn a_position_that_is_wrong_is_refused_before_anything_changes() {
    let (_keep, data, _) = new(155, false);
    let places = places(&data);
    flip(&segment(&data, places.sealed), 8192 + 3 * BLOCK + 70);
    let before = files(&data);
    let cut = verify(&data).unwrap().cuts[0];
    for (wrong, what) in [
        (Cut { shard: 5, ..cut }, "there is no such shard"),
        (Cut { segment: 4711, ..cut }, "no segment of this number"),
        (Cut { segment: places.open, ..cut }, "the damage begins before it"),
        (Cut { byte: cut.byte + 4 * BLOCK, ..cut }, ""),
    ] {
        match mend(&data, &[wrong], false) {
            Err(RepairError::Position { advice, why, .. }) => {
                assert!(why.contains(what) && advice.contains("take"), "{why}; {advice}");
            }
            // The damaged batch ends the journal wherever it is cut behind it.
            Ok(repair) if what.is_empty() => assert!(!repair.after.unwrap().is_damaged()),
            other => panic!("{wrong}: {other:?}"),
        }
        if !what.is_empty() {
            assert_eq!(files(&data), before, "{wrong}");
        }
    }
    let (_keep, data, model) = new(20, true);
    let refused = mend(&data, &[Cut { shard: 0, segment: 0, byte: 8192 }], false).unwrap_err();
    assert!(refused.to_string().contains("no acknowledged data of this shard is damaged"));
    assert_whole(&data, &model);
}

#[test]
fn trimmed_records_stay_trimmed_when_the_trim_is_cut_off() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    fill(&data, 150, true);
    let mut shard = options().open_shard(&data).unwrap();
    let append = |shard: &mut ringwal_engine::Shard, stream, record: &[u8]| {
        let token = shard.append(StreamId::new(stream), record).unwrap();
        while token.try_receipt().is_none() {
            shard.run_once(None).unwrap();
        }
    };
    append(&mut shard, 7, b"before the trim");
    let trim = shard.trim(StreamId::new(7), 100).unwrap();
    while trim.try_receipt().is_none() {
        shard.run_once(None).unwrap();
    }
    for _ in 0..3 {
        append(&mut shard, 8, b"after the trim");
    }
    shard.abandon();
    let inspection = inspect(&data).unwrap();
    let shard = &inspection.shards[0];
    let last = shard.files.iter().max_by_key(|file| file.sequences).unwrap();
    // A checkpoint, the record, the trim.
    flip(&data.join("shard-00").join(&last.name), 8192 + BLOCK + 80);
    let verification = verify(&data).unwrap();
    assert!(verification.is_corrupt(), "{:?}", verification.findings);
    let repair = mend(&data, &verification.cuts, false).unwrap();
    assert!(!repair.after.unwrap().is_damaged());
    let kept = held(&Snapshot::open(&data).unwrap());
    assert!(kept.keys().all(|(stream, offset)| *stream != 7 || *offset >= 100));
    assert!(kept.contains_key(&(7, 149)));
    options().open(&data).unwrap().close().unwrap();
}

#[test]
fn two_shards_are_repaired_one_by_one() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let engine = options().shards(2).open(&data).unwrap();
    for _ in 0..100 {
        for id in 0..8 {
            engine.stream(StreamId::new(id)).append(payload(id, 0)).unwrap().wait().unwrap();
        }
    }
    engine.close().unwrap();
    for shard in 0..2 {
        flip(&data.join(format!("shard-{shard:02}/segment-00000001")), 8192 + 5 * BLOCK + 90);
    }
    let verification = verify(&data).unwrap();
    assert_eq!(verification.cuts.len(), 2, "{:?}", verification.findings);
    let first = mend(&data, &verification.cuts[..1], false).unwrap();
    assert!(first.after.unwrap().is_corrupt(), "the other shard is still damaged");
    let second = mend(&data, &verification.cuts[1..], false).unwrap();
    assert!(!second.after.unwrap().is_damaged());
    let engine = options().open(&data).unwrap();
    assert_eq!(engine.streams().len(), 8);
    engine.close().unwrap();
    fs::rename(data.join("shard-01"), directory.path().join("elsewhere")).unwrap();
    let verification = verify(&data).unwrap();
    assert_finds(&verification, Severity::Corrupt, "shard-01", "missing");
    let refused = options().open(&data).map(drop).unwrap_err();
    assert_eq!(refused.kind(), OpenErrorKind::Corrupt, "{refused}");
    assert!(!data.join("shard-01").exists());
}
