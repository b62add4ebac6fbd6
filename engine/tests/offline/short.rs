//! Segments whose end was cut off.

use std::fs::OpenOptions;
use std::path::Path;

use ringwal_engine::OpenErrorKind;
use ringwal_engine::offline::{Severity, Snapshot, inspect, verify};

use super::setup::{
    BLOCK, Model, SEGMENT_BYTES, assert_finds, assert_whole, files, fill, held, mend, new, options,
    places, segment,
};

fn cut(data: &Path, number: u64, length: u64) {
    OpenOptions::new().write(true).open(segment(data, number)).unwrap().set_len(length).unwrap();
}

fn end(data: &Path) -> (u64, u64) {
    let end = inspect(data).unwrap().shards[0].end;
    (end.number, end.offset)
}

/// Nothing is mended or opened without a loss that was accepted; the rest stays.
#[track_caller]
fn assert_lost(data: &Path, model: &Model, length: &str, untold: bool) {
    let verification = verify(data).unwrap();
    assert_finds(&verification, Severity::Corrupt, "segment-", length);
    let cut_off = |finding: &&ringwal_engine::offline::Finding| finding.what.contains("cut off");
    let finding = verification.findings.iter().find(cut_off).unwrap();
    assert_eq!(finding.lost_untold, untold, "{finding}");
    assert_eq!(finding.lost.is_empty(), untold, "{finding}");
    assert!(finding.remedy().is_none(), "{finding}");
    for finding in verification.findings.iter().filter(|finding| !finding.lost_untold) {
        for lost in &finding.lost {
            let keys = lost.offsets.clone().map(|offset| (lost.stream.get(), offset));
            assert!(keys.into_iter().all(|key| model.contains_key(&key)), "{lost}");
        }
    }
    let before = files(data);
    assert_eq!(options().open(data).map(drop).unwrap_err().kind(), OpenErrorKind::Corrupt);
    let repair = mend(data, &[], false).unwrap();
    assert!(repair.after.is_none() && repair.before.is_corrupt());
    assert_eq!(files(data), before, "a plain repair changes nothing");

    let repair = mend(data, &verification.cuts, false).unwrap();
    assert!(repair.cuts.iter().all(|(_, loss)| loss.lost_untold == untold));
    assert!(!verify(data).unwrap().is_corrupt());
    let left = held(&Snapshot::open(data).unwrap());
    assert!(left.iter().all(|(key, value)| model.get(key) == Some(value)));
    assert!(left.len() < model.len());
    fill(data, 2, true);
    assert!(verify(data).unwrap().findings.is_empty());
}

#[test]
fn the_newest_segment_cut_off_is_a_loss_that_nothing_tells() {
    for close in [true, false] {
        // In a batch, between two batches, and before the first.
        for length in [50_000, 10 * BLOCK, 2 * BLOCK] {
            let (_keep, data, model) = new(7, close);
            cut(&data, end(&data).0, length);
            assert_lost(&data, &model, &format!("is {length} bytes long"), true);
        }
    }
    // Exactly behind the last batch: nothing says that it was the last.
    let (_keep, data, _) = new(100, false);
    let (number, end) = end(&data);
    cut(&data, number, end);
    assert_finds(&verify(&data).unwrap(), Severity::Corrupt, "segment-", "nothing tells");
}

#[test]
fn a_sealed_segment_cut_off_is_a_loss_that_the_next_one_tells() {
    for close in [true, false] {
        let (_keep, data, model) = new(155, close);
        cut(&data, places(&data).sealed, 40_000);
        assert_lost(&data, &model, "is 40000 bytes long", false);
    }
}

#[test]
fn where_no_batch_was_cut_off_nothing_is_lost() {
    // Behind the batches of a sealed segment, and of the newest one.
    for newest in [false, true] {
        for close in [true, false] {
            let (_keep, data, model) = new(155, close);
            let places = places(&data);
            let (number, length) = match newest {
                true => (end(&data).0, end(&data).1 + BLOCK),
                false => {
                    let live = inspect(&data).unwrap().shards[0].files.clone();
                    let name = format!("segment-{:08}", places.sealed);
                    let file = live.into_iter().find(|file| file.name == name).unwrap();
                    (places.sealed, file.end_offset)
                }
            };
            cut(&data, number, length);
            assert_mended(&data, &model, number);
        }
    }
    // A segment that was never used, or not since.
    let (_keep, data, model) = new(100, true);
    let unused = |file: &&ringwal_engine::offline::FileInspection| {
        file.state == ringwal_engine::offline::FileState::Unused
    };
    let shard = inspect(&data).unwrap().shards.remove(0);
    let name = &shard.files.iter().find(unused).unwrap().name;
    let number = name.rsplit('-').next().unwrap().parse().unwrap();
    cut(&data, number, 2 * BLOCK);
    assert_mended(&data, &model, number);
}

#[track_caller]
fn assert_mended(data: &Path, model: &Model, number: u64) {
    let verification = verify(data).unwrap();
    let what = format!("should be {SEGMENT_BYTES}: no batch was behind its end");
    assert_finds(&verification, Severity::Repairable, "segment-", &what);
    assert!(!verification.is_corrupt(), "{:?}", verification.findings);
    assert_eq!(options().open(data).map(drop).unwrap_err().kind(), OpenErrorKind::Corrupt);
    mend(data, &[], false).unwrap();
    assert_eq!(std::fs::metadata(segment(data, number)).unwrap().len(), SEGMENT_BYTES);
    assert_whole(data, model);
}
