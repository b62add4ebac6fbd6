//! Directories to look into, ways to damage them, and what must hold afterwards.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::ops::{ControlFlow, Range};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use ringwal_engine::offline::{
    Cut, FileState, Repair, RepairError, RepairOptions, Severity, Snapshot, Verification, inspect,
    repair, verify,
};
use ringwal_engine::{Engine, Io, StreamId};

pub const SEGMENT_BYTES: u64 = 128 << 10;
pub const BLOCK: u64 = 4096;
pub const STREAMS: [u64; 3] = [7, 8, 20];

pub type Model = BTreeMap<(u64, u64), Vec<u8>>;

pub fn options() -> ringwal_engine::Options {
    Engine::options().io(Io::Blocking).segment_bytes(SEGMENT_BYTES).idle_seal(None)
}

pub fn payload(stream: u64, offset: u64) -> Vec<u8> {
    let mut bytes = format!("stream {stream} offset {offset} ").into_bytes();
    bytes.resize(900, b'a' + (offset % 26) as u8);
    bytes
}

/// Appends `records` to each stream, one at a time; the engine is closed, or ends as if killed.
pub fn fill(directory: &Path, records: u64, close: bool) -> Model {
    let mut shard = options().open_shard(directory).unwrap();
    let mut model = held(&Snapshot::open(directory).unwrap());
    for _ in 0..records {
        for stream in STREAMS {
            let offset = model.range((stream, 0)..(stream + 1, 0)).count() as u64;
            let token = shard.append(StreamId::new(stream), payload(stream, offset)).unwrap();
            while token.try_receipt().is_none() {
                shard.run_once(None).unwrap();
            }
            model.insert((stream, offset), payload(stream, offset));
        }
    }
    if close {
        drop(shard.close().unwrap())
    } else {
        shard.abandon()
    }
    model
}

pub fn held(snapshot: &Snapshot) -> Model {
    let mut model = Model::new();
    let damages = snapshot
        .visit(|record| {
            let key = (record.stream.get(), record.offset);
            assert!(model.insert(key, record.payload.to_vec()).is_none(), "{key:?} came twice");
            ControlFlow::Continue(())
        })
        .unwrap();
    assert!(damages.is_empty(), "{damages:?}");
    model
}

pub fn new(records: u64, close: bool) -> (tempfile::TempDir, PathBuf, Model) {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let model = fill(&data, records, close);
    (directory, data, model)
}

pub fn segment(data: &Path, number: u64) -> PathBuf {
    data.join(format!("shard-00/segment-{number:08}"))
}

pub fn flip(file: &Path, byte: u64) {
    let file = OpenOptions::new().read(true).write(true).open(file).unwrap();
    let mut old = [0];
    file.read_exact_at(&mut old, byte).unwrap();
    file.write_all_at(&[old[0] ^ 0x10], byte).unwrap();
}

pub fn overwrite(file: &Path, bytes: Range<u64>, value: u8) {
    let file = OpenOptions::new().write(true).open(file).unwrap();
    file.write_all_at(&vec![value; (bytes.end - bytes.start) as usize], bytes.start).unwrap();
}

pub fn files(data: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for folder in [data.to_owned(), data.join("shard-00")] {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            // The lock's holder leaves its number there.
            if entry.file_type().unwrap().is_file() && entry.file_name() != "lock" {
                files.insert(entry.path(), fs::read(entry.path()).unwrap());
            }
        }
    }
    files
}

pub fn mend(data: &Path, cuts: &[Cut], dry_run: bool) -> Result<Repair, RepairError> {
    let backup = (0..).map(|n| data.join(format!("backup-{n}"))).find(|path| !path.exists());
    let accept_loss_from = cuts.to_vec();
    repair(data, &RepairOptions { dry_run, accept_loss_from, backup: backup.unwrap() })
}

/// Everything is there, nothing is damaged, and the engine goes on.
#[track_caller]
pub fn assert_whole(data: &Path, model: &Model) {
    let verification = verify(data).unwrap();
    assert!(!verification.is_damaged(), "{:?}", verification.findings);
    assert_eq!(held(&Snapshot::open(data).unwrap()), *model);
    let more = fill(data, 2, true);
    assert!(model.iter().all(|(key, value)| more.get(key) == Some(value)));
    let verification = verify(data).unwrap();
    assert!(verification.findings.is_empty(), "{:?}", verification.findings);
}

#[track_caller]
pub fn assert_finds(verification: &Verification, severity: Severity, file: &str, what: &str) {
    let found = verification.findings.iter().any(|finding| {
        finding.severity == severity
            && finding.file.to_string_lossy().contains(file)
            && finding.to_string().contains(what)
    });
    assert!(found, "no {severity:?} {file} {what:?} in {:#?}", verification.findings);
}

/// A segment of each kind, and the batches of a sealed one in the middle.
pub struct Places {
    pub sealed: u64,
    pub open: u64,
    pub entries: u64,
    pub runs: u64,
}

pub fn places(data: &Path) -> Places {
    let inspection = inspect(data).unwrap();
    let live: Vec<_> = inspection.shards[0]
        .files
        .iter()
        .filter(|file| matches!(file.state, FileState::Sealed | FileState::Open))
        .collect();
    let number = |name: &str| name.rsplit('-').next().unwrap().parse().unwrap();
    let mut by_life: Vec<_> =
        live.iter().map(|file| (file.generation, number(&file.name))).collect();
    by_life.sort_unstable();
    let sealed: u64 = by_life[1].1;
    let bytes = fs::read(segment(data, sealed)).unwrap();
    let footer = (SEGMENT_BYTES - BLOCK) as usize;
    let word =
        |at: usize| u64::from_le_bytes(bytes[footer + at..footer + at + 8].try_into().unwrap());
    Places { sealed, open: by_life.last().unwrap().1, entries: word(48), runs: word(56) }
}
