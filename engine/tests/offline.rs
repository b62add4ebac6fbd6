//! The offline tools on directories that are whole, killed, or damaged in every way of the list:
//! what each kind of rot is called, what a repair does, and that nothing acknowledged is lost
//! without being named.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::ops::{ControlFlow, Range};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ringwal_engine::offline::{
    Cut, FileState, Repair, RepairError, RepairOptions, Severity, Snapshot, Verification, inspect,
    repair, verify,
};
use ringwal_engine::{Engine, Io, OpenError, OpenErrorKind, StreamId};

const SEGMENT_BYTES: u64 = 128 << 10;
const BLOCK: u64 = 4096;
const STREAMS: [u64; 3] = [7, 8, 20];

type Model = BTreeMap<(u64, u64), Vec<u8>>;

fn options() -> ringwal_engine::Options {
    Engine::options().io(Io::Blocking).segment_bytes(SEGMENT_BYTES).idle_seal(None)
}

fn payload(stream: u64, offset: u64) -> Vec<u8> {
    let mut bytes = format!("stream {stream} offset {offset} ").into_bytes();
    bytes.resize(900, b'a' + (offset % 26) as u8);
    bytes
}

/// Appends `records` to each stream, one at a time; the engine is closed, or ends as if killed.
fn fill(directory: &Path, records: u64, close: bool) -> Model {
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

fn held(snapshot: &Snapshot) -> Model {
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

fn new(records: u64, close: bool) -> (tempfile::TempDir, PathBuf, Model) {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let model = fill(&data, records, close);
    (directory, data, model)
}

fn segment(data: &Path, number: u64) -> PathBuf {
    data.join(format!("shard-00/segment-{number:08}"))
}

fn flip(file: &Path, byte: u64) {
    let file = OpenOptions::new().read(true).write(true).open(file).unwrap();
    let mut old = [0];
    file.read_exact_at(&mut old, byte).unwrap();
    file.write_all_at(&[old[0] ^ 0x10], byte).unwrap();
}

fn overwrite(file: &Path, bytes: Range<u64>, value: u8) {
    let file = OpenOptions::new().write(true).open(file).unwrap();
    file.write_all_at(&vec![value; (bytes.end - bytes.start) as usize], bytes.start).unwrap();
}

fn files(data: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
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

fn mend(data: &Path, cuts: &[Cut], dry_run: bool) -> Result<Repair, RepairError> {
    let backup = (0..).map(|n| data.join(format!("backup-{n}"))).find(|path| !path.exists());
    let accept_loss_from = cuts.to_vec();
    repair(data, &RepairOptions { dry_run, accept_loss_from, backup: backup.unwrap() })
}

/// Everything is there, nothing is damaged, and the engine goes on.
#[track_caller]
fn assert_whole(data: &Path, model: &Model) {
    let verification = verify(data).unwrap();
    assert!(!verification.is_damaged(), "{:?}", verification.findings);
    assert_eq!(held(&Snapshot::open(data).unwrap()), *model);
    let more = fill(data, 2, true);
    assert!(model.iter().all(|(key, value)| more.get(key) == Some(value)));
    let verification = verify(data).unwrap();
    assert!(verification.findings.is_empty(), "{:?}", verification.findings);
}

#[track_caller]
fn assert_finds(verification: &Verification, severity: Severity, file: &str, what: &str) {
    let found = verification.findings.iter().any(|finding| {
        finding.severity == severity
            && finding.file.to_string_lossy().contains(file)
            && finding.to_string().contains(what)
    });
    assert!(found, "no {severity:?} {file} {what:?} in {:#?}", verification.findings);
}

/// A segment of each kind, and the batches of a sealed one in the middle.
struct Places {
    sealed: u64,
    open: u64,
    entries: u64,
    runs: u64,
}

fn places(data: &Path) -> Places {
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
    assert_eq!(count(FileState::Other), 1, "the anchor");
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
            "the segments tells it",
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
fn foreign_and_short_files_are_put_right_without_loss() {
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

    // A segment without its end, where no batch was.
    let (_keep, data, model) = new(100, false);
    let open = places(&data).open;
    let end = inspect(&data).unwrap().shards[0].end.offset;
    OpenOptions::new().write(true).open(segment(&data, open)).unwrap().set_len(end).unwrap();
    let should = format!("should be {SEGMENT_BYTES}");
    assert_finds(&verify(&data).unwrap(), Severity::Repairable, "segment", &should);
    mend(&data, &[], false).unwrap();
    assert_eq!(fs::metadata(segment(&data, open)).unwrap().len(), SEGMENT_BYTES);
    assert_whole(&data, &model);

    // Files that were never finished, and strangers.
    let (_keep, data, model) = new(100, true);
    fs::write(segment(&data, 80), b"").unwrap();
    fs::write(data.join("shard-00/notes.txt"), b"hello").unwrap();
    fs::create_dir(data.join("backup-of-mine")).unwrap();
    assert!(verify(&data).unwrap().findings.is_empty());
    assert_whole(&data, &model);
}

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

#[test]
fn what_holds_no_engine_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let file = path.join("file");
    fs::write(&file, b"x").unwrap();
    let absent = path.join("absent");
    for (path, what) in [
        (absent.as_path(), "holds no engine"),
        (path, "holds no engine"),
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

/// Not a test of its own: the process that [`every_receipt_survives_a_kill`] kills.
#[test]
fn writer_to_be_killed() {
    let Some(data) = std::env::var_os("RINGWAL_TEST_WRITER") else { return };
    let engine = Engine::options().io_fallback(true).segment_bytes(1 << 20).shards(2);
    let engine = engine.open(data).unwrap();
    std::thread::scope(|scope| {
        for id in 0..6 {
            let stream = engine.stream(StreamId::new(id));
            scope.spawn(move || {
                loop {
                    let offset = stream.end();
                    let bytes = payload(id, offset);
                    let receipt = stream.append(&bytes).unwrap().wait().unwrap();
                    let crc = crc32c::crc32c(&bytes);
                    let line = format!("{id} {} {crc:08x}\n", receipt.offset());
                    std::io::stdout().write_all(line.as_bytes()).unwrap();
                }
            });
        }
    });
}

#[test]
fn every_receipt_survives_a_kill() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let mut receipts: BTreeMap<(u64, u64), u32> = BTreeMap::new();
    for round in 0..6u32 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["writer_to_be_killed", "--exact", "--nocapture", "--test-threads=1"])
            .env("RINGWAL_TEST_WRITER", &data)
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let (mut count, mut line) = (0, String::new());
        while lines.read_line(&mut line).unwrap() > 0 {
            let fields: Vec<_> = line.split_whitespace().collect();
            if line.ends_with('\n')
                && let [stream, offset, crc] = fields[..]
                && let (Ok(stream), Ok(offset), Ok(crc)) =
                    (stream.parse(), offset.parse(), u32::from_str_radix(crc, 16))
            {
                receipts.insert((stream, offset), crc);
                count += 1;
            }
            if count == 60 + 200 * round {
                child.kill().unwrap();
            }
            line.clear();
        }
        child.wait().unwrap();
        // Right away: the kernel may still hold the lock for the dead.
        let verification = verify(&data).unwrap();
        assert!(!verification.is_damaged(), "round {round}: {:?}", verification.findings);
        let mut dumped = BTreeMap::new();
        let damages = Snapshot::open(&data)
            .unwrap()
            .visit(|record| {
                let key = (record.stream.get(), record.offset);
                dumped.insert(key, crc32c::crc32c(record.payload));
                ControlFlow::Continue(())
            })
            .unwrap();
        assert!(damages.is_empty() && receipts.len() > 50);
        for (key, crc) in &receipts {
            assert_eq!(dumped.get(key), Some(crc), "round {round}: {key:?}");
        }
    }
}

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
