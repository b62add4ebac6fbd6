//! Any byte flipped anywhere.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use ringwal_engine::offline::{Severity, Snapshot, verify};

use super::setup::{Model, files, flip, mend, new, options};

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Records that can be read, whatever is damaged.
fn readable(data: &Path) -> Model {
    let mut model = Model::new();
    let snapshot = Snapshot::open(data).unwrap();
    let visited = snapshot.visit(|record| {
        model.insert((record.stream.get(), record.offset), record.payload.to_vec());
        ControlFlow::Continue(())
    });
    visited.unwrap();
    model
}

#[test]
fn no_flipped_byte_loses_a_record_in_silence() {
    let (keep, data, model) = new(155, false);
    let mut random = 0x5EED_u64;
    let mut next = |below: u64| {
        random =
            random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % below
    };
    let paths: Vec<PathBuf> = files(&data).into_keys().collect();
    let (mut noticed, mut torn) = (0, 0);
    for round in 0..200 {
        let rotten = keep.path().join("rotten");
        let _ = fs::remove_dir_all(&rotten);
        copy(&data, &rotten);
        let file = &paths[next(paths.len() as u64) as usize];
        let path = rotten.join(file.strip_prefix(&data).unwrap());
        let byte = next(fs::metadata(&path).unwrap().len());
        flip(&path, byte);
        let context = format!("round {round}: byte {byte} of {}", path.display());
        let verification = verify(&rotten).unwrap_or_else(|error| panic!("{context}: {error}"));
        let held = readable(&rotten);
        assert!(held.iter().all(|(key, value)| model.get(key) == Some(value)), "{context}");
        let is_torn = verification.findings.iter().any(|one| one.severity == Severity::Torn);
        if held != model {
            // One batch without a later one cannot be told from a torn tail.
            assert!(
                verification.is_corrupt() || (is_torn && held.len() + 1 == model.len()),
                "{context}"
            );
            torn += usize::from(is_torn);
        }
        if !verification.is_damaged() {
            continue;
        }
        noticed += 1;
        assert_eq!(verification.is_corrupt(), held != model, "{context}: {verification:?}");
        let repair = mend(&rotten, &verification.cuts, false);
        let repair = repair.unwrap_or_else(|error| panic!("{context}: {error}"));
        let after = repair.after.unwrap_or(repair.before);
        assert!(!after.is_corrupt(), "{context}: {:?}", after.findings);
        assert!(after.findings.iter().all(|one| one.remedy().is_none()), "{context}");
        options().open(&rotten).unwrap().close().unwrap();
        // Facts that are long superseded stay damaged until their segment is used again.
        let rest = verify(&rotten).unwrap().findings;
        assert!(rest.iter().all(|one| one.what.contains("nothing that counts")), "{rest:?}");
    }
    assert!(noticed > 20 && torn < 10, "{noticed} noticed, {torn} torn");
}
