//! Damage of every kind and what is done about it, as far as `offline.rs` does not have it.

use std::fs;
use std::path::Path;

use ringwal_engine::offline::verify;
use ringwal_engine::{Engine, Io, OpenError, Options};

fn options() -> Options {
    Engine::options().io(Io::Blocking).segment_bytes(128 << 10).idle_seal(None)
}

fn kind(data: &Path, options: &Options) -> Option<OpenError> {
    options.open(data).err()
}

#[test]
fn a_directory_whose_making_was_cut_short_holds_nothing_and_is_made_again() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    options().shards(2).open(&data).unwrap().close().unwrap();
    // The engine file is made first, then the folders, then anything in them.
    for shard in 0..2 {
        fs::remove_dir_all(data.join(format!("shard-{shard:02}"))).unwrap();
    }
    let refused = kind(&data, &options().read_only(true)).unwrap();
    assert!(matches!(refused, OpenError::Missing { .. }), "{refused}");
    assert!(verify(&data).unwrap().findings.is_empty());
    fs::create_dir(data.join("shard-00")).unwrap();
    assert!(matches!(kind(&data, &options().read_only(true)), Some(OpenError::Missing { .. })));
    options().open(&data).unwrap().close().unwrap();
    assert!(kind(&data, &options().read_only(true)).is_none());
    // With something in another shard's folder, a missing one is damage.
    fs::remove_dir_all(data.join("shard-01")).unwrap();
    for options in [options(), options().read_only(true)] {
        assert!(matches!(kind(&data, &options), Some(OpenError::Corrupt(_))));
    }
}
