//! Directories that earlier versions wrote, read by this one: `tests/corpus/v<major>.<minor>/`,
//! one archive for each kind of directory, and beside it what must be in it.
//!
//! The folder of a version is written once, when the version is new, and never again:
//!
//! ```sh
//! RINGWAL_WRITE_CORPUS=$PWD/engine/tests/corpus/v1.0 \
//!     cargo test -p ringwal-engine --test format_corpus write_the_corpus
//! ```

#[path = "common/archive.rs"]
mod archive;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use archive::{Files, pack, unpack};
use ringwal_engine::offline::{Severity, Snapshot, inspect, verify};
use ringwal_engine::{Engine, Io, OpenError, Options, Shard, StreamId};

const SEGMENT_BYTES: u64 = 64 << 10;
const KINDS: [&str; 6] = ["closed", "killed", "torn", "two-shards", "epochs", "recycled"];

fn options() -> Options {
    let options = Engine::options().io(Io::Blocking).idle_seal(None).segments_free_max(1);
    options.batch_bytes_max(16 << 10).pool_bytes(1 << 20)
}

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus")
}

/// The files of a directory, but for the lock.
fn files_of(data: &Path) -> Files {
    let mut files = Files::new();
    let mut folders = vec![data.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let name = entry.path().strip_prefix(data).unwrap().to_string_lossy().into_owned();
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            } else if name != "lock" {
                files.insert(name, fs::read(entry.path()).unwrap());
            }
        }
    }
    files
}

fn put(files: &Files, data: &Path) {
    for (name, bytes) in files {
        let path = data.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

/// What is in a directory, as text: a line for each stream, its epochs, and each record.
fn contents(data: &Path) -> String {
    let engine = options().read_only(true).open(data).unwrap();
    let mut text = String::new();
    for summary in engine.streams() {
        let stream = engine.stream(summary.stream);
        let (id, trimmed, end) = (summary.stream, summary.trimmed, summary.end);
        writeln!(text, "stream {id} from {trimmed} to {end}").unwrap();
        for epoch in stream.epochs() {
            writeln!(text, "  epoch {} from {}", epoch.epoch, epoch.start).unwrap();
        }
        for record in stream.read(..).unwrap() {
            let record = record.unwrap();
            let crc = crc32c::crc32c(record.payload());
            let length = record.payload().len();
            writeln!(
                text,
                "  record {} of epoch {}: {length} bytes, {crc:08x}",
                record.offset(),
                record.epoch()
            )
            .unwrap();
        }
    }
    engine.close().unwrap();
    text
}

/// Every archive of every version: its name, its files, and what must be in them.
fn archives() -> Vec<(String, Files, String)> {
    let mut archives = Vec::new();
    for version in fs::read_dir(corpus()).unwrap().map(Result::unwrap) {
        for entry in fs::read_dir(version.path()).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == "rwd") {
                let files = unpack(&fs::read(&path).unwrap()).expect("an archive");
                let expected = fs::read_to_string(path.with_extension("txt")).unwrap();
                let name = path.strip_prefix(corpus()).unwrap().to_string_lossy().into_owned();
                archives.push((name, files, expected));
            }
        }
    }
    assert!(archives.len() >= KINDS.len(), "the corpus is gone");
    archives
}

/// The directories are told by their archive's name.
fn each(check: impl Fn(&str, &Path, &str)) {
    for (name, files, expected) in archives() {
        let directory = tempfile::tempdir().unwrap();
        let data = directory.path().join("data");
        put(&files, &data);
        check(&name, &data, &expected);
    }
}

#[test]
fn what_every_version_wrote_is_read_as_it_was_written() {
    if std::env::var_os("RINGWAL_WRITE_CORPUS").is_some() {
        return;
    }
    each(|name, data, expected| {
        let before = files_of(data);
        assert_eq!(contents(data), expected, "{name}");
        let verification = verify(data).unwrap();
        let is_torn = name.contains("torn");
        for finding in &verification.findings {
            assert!(is_torn && finding.severity == Severity::Torn, "{name}: {finding}");
        }
        assert_eq!(verification.findings.is_empty(), !is_torn, "{name}");
        let mut records = 0;
        let visited = Snapshot::open(data).unwrap().visit(|_| {
            records += 1;
            ControlFlow::Continue(())
        });
        assert!(visited.unwrap().is_empty());
        assert_eq!(records, expected.lines().filter(|line| line.contains("  record")).count());
        assert!(inspect(data).unwrap().shards.iter().all(|shard| shard.damages.is_empty()));
        assert_eq!(files_of(data), before, "{name}: reading changes nothing");
    });
}

#[test]
fn what_every_version_wrote_goes_on_being_written() {
    if std::env::var_os("RINGWAL_WRITE_CORPUS").is_some() {
        return;
    }
    each(|name, data, expected| {
        go_on(name, data, expected);
        assert!(verify(data).unwrap().findings.is_empty(), "{name}");
    });
}

/// Opens, appends over more than a segment, closes, and finds the old and the new.
fn go_on(name: &str, data: &Path, expected: &str) {
    let engine = options().open(data).unwrap();
    let stream = engine.stream(StreamId::new(4000));
    for number in 0..40u8 {
        stream.append([number; 2000]).unwrap().wait().unwrap();
    }
    engine.close().unwrap();
    let now = contents(data);
    let (before, new) = now.split_once("stream 4000 from 0 to 40\n").unwrap();
    // An epoch and 40 records; streams with a greater id come behind it.
    let (new, behind): (Vec<_>, Vec<_>) = new.lines().enumerate().partition(|(at, _)| *at < 41);
    assert_eq!(new.len(), 41, "{name}");
    let behind: String = behind.iter().map(|(_, line)| format!("{line}\n")).collect();
    assert_eq!(format!("{before}{behind}"), expected, "{name}");
}

/// Changes the version or feature bits in the headers of a file, checksums included.
fn change_headers(path: &Path, change: &dyn Fn(&mut [u8])) {
    let mut bytes = fs::read(path).unwrap();
    for at in [0, 4096] {
        let length = match bytes.get(at..at + 8) {
            Some(b"RWENGINE") => 64,
            Some(b"RWSEGMNT") => 144,
            _ => continue,
        };
        let header = &mut bytes[at..at + length];
        change(header);
        let crc = crc32c::crc32c(&header[12..]);
        header[8..12].copy_from_slice(&crc.to_le_bytes());
    }
    fs::write(path, bytes).unwrap();
}

fn paths_of(data: &Path) -> Vec<PathBuf> {
    let is_versioned = |name: &&String| name.as_str() == "engine" || name.contains("segment-");
    files_of(data).keys().filter(is_versioned).map(|name| data.join(name)).collect()
}

#[test]
fn a_newer_minor_version_with_unknown_compatible_bits_opens_and_goes_on() {
    each(|name, data, expected| {
        for path in paths_of(data) {
            change_headers(&path, &|header| {
                header[16..20].copy_from_slice(&7u32.to_le_bytes());
                header[32..40].copy_from_slice(&(1u64 << 40 | 1).to_le_bytes());
            });
        }
        assert_eq!(contents(data), expected, "{name}");
        go_on(name, data, expected);
    });
}

#[test]
fn a_newer_major_version_or_an_unknown_incompatible_bit_is_refused_before_a_byte_is_written() {
    type Change = (&'static str, &'static dyn Fn(&mut [u8]));
    let changes: [Change; 3] = [
        ("format 2.0", &|header| header[12..16].copy_from_slice(&2u32.to_le_bytes())),
        ("0x8000", &|header| header[24..32].copy_from_slice(&0x8000u64.to_le_bytes())),
        ("0x1", &|header| header[24..32].copy_from_slice(&1u64.to_le_bytes())),
    ];
    for (what, change) in changes {
        each(|name, data, _| {
            let untouched = files_of(data);
            // Of a segment, one is enough; of the engine file, too.
            for path in paths_of(data) {
                let bytes = fs::read(&path).unwrap();
                if !bytes.starts_with(b"RW") {
                    continue;
                }
                change_headers(&path, change);
                let before = files_of(data);
                assert!(before != untouched);
                for options in [options(), options().read_only(true)] {
                    let error = options.open(data).err().unwrap();
                    assert!(matches!(error, OpenError::NewerFormat { .. }), "{name}: {error}");
                    let text = error.to_string();
                    let file = path.file_name().unwrap().to_str().unwrap();
                    assert!(text.contains(what) && text.contains(file), "{name}: {text}");
                }
                let is_refused = |error: OpenError| matches!(error, OpenError::NewerFormat { .. });
                assert!(is_refused(verify(data).unwrap_err()));
                assert!(is_refused(inspect(data).unwrap_err()));
                let after = files_of(data);
                // The other shard of two may have begun an incarnation by then.
                let same = |name: &&String| {
                    let folder = path.strip_prefix(data).unwrap().parent().unwrap();
                    *folder == *"" || Path::new(name).starts_with(folder)
                };
                for name in before.keys().filter(same) {
                    assert!(before[name] == after[name], "{name} was written to");
                }
                assert!(before["engine"] == after["engine"]);
                fs::remove_dir_all(data).unwrap();
                put(&untouched, data);
            }
        });
    }
}

/// Writes the corpus of this version.
#[test]
fn write_the_corpus_when_asked_to() {
    let Some(folder) = std::env::var_os("RINGWAL_WRITE_CORPUS") else { return };
    // Tests run in the package's folder, commands in the workspace's.
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join(folder);
    fs::create_dir_all(&folder).unwrap();
    for kind in KINDS {
        let directory = tempfile::tempdir().unwrap();
        let data = directory.path().join("data");
        let model = write(kind, &data);
        let text = contents(&data);
        for ((stream, offset), payload) in model {
            let crc = crc32c::crc32c(&payload);
            let stream = text.split("stream ").find(|part| part.starts_with(&format!("{stream} ")));
            let line = format!("  record {offset} of epoch ");
            let record = stream.unwrap().lines().find(|one| one.starts_with(&line)).unwrap();
            assert!(record.ends_with(&format!("{} bytes, {crc:08x}", payload.len())), "{record}");
        }
        fs::write(folder.join(format!("{kind}.rwd")), pack(&files_of(&data))).unwrap();
        fs::write(folder.join(format!("{kind}.txt")), text).unwrap();
    }
}

type Model = BTreeMap<(u64, u64), Vec<u8>>;

fn payload(stream: u64, offset: u64) -> Vec<u8> {
    let text = format!("stream {stream} offset {offset} ");
    text.repeat(1 + (offset % 5) as usize).into_bytes()
}

fn append(shard: &mut Shard, model: &mut Model, stream: u64, offsets: std::ops::Range<u64>) {
    for offset in offsets {
        let token = shard.append(StreamId::new(stream), payload(stream, offset)).unwrap();
        while token.try_receipt().is_none() {
            shard.run_once(None).unwrap();
        }
        assert_eq!(token.wait().unwrap().offset(), offset);
        model.insert((stream, offset), payload(stream, offset));
    }
}

fn change(shard: &mut Shard, change: ringwal_engine::Change) {
    while change.try_receipt().is_none() {
        shard.run_once(None).unwrap();
    }
    change.wait().unwrap();
}

fn trim(shard: &mut Shard, model: &mut Model, stream: u64, before: u64) {
    let token = shard.trim(StreamId::new(stream), before).unwrap();
    change(shard, token);
    model.retain(|(id, offset), _| *id != stream || *offset >= before);
}

/// A directory of one kind, and what must be in it.
fn write(kind: &str, data: &Path) -> Model {
    let options = options().segment_bytes(SEGMENT_BYTES);
    let mut model = Model::new();
    if kind == "two-shards" {
        let engine = options.shards(2).open(data).unwrap();
        for offset in 0..4 {
            for stream in 20..26 {
                let token = engine.stream(StreamId::new(stream)).append(payload(stream, offset));
                token.unwrap().wait().unwrap();
                model.insert((stream, offset), payload(stream, offset));
            }
        }
        engine.close().unwrap();
        return model;
    }
    let mut shard = options.open_shard(data).unwrap();
    append(&mut shard, &mut model, 7, 0..5);
    match kind {
        "closed" => {
            append(&mut shard, &mut model, u64::MAX, 0..2);
            shard.close().unwrap();
            return model;
        }
        "torn" => {
            let before = model.clone();
            append(&mut shard, &mut model, 8, 0..1);
            append(&mut shard, &mut model, 7, 5..6);
            shard.abandon();
            // Of the newest batch only the first sectors are there: nobody had its receipt.
            let end = inspect(data).unwrap().shards[0].end;
            let path = data.join(format!("shard-00/segment-{:08}", end.number));
            let mut bytes = fs::read(&path).unwrap();
            let last = end.offset as usize - 4096;
            bytes[last + 64..last + 4096].fill(0);
            fs::write(path, bytes).unwrap();
            model.remove(&(7, 5));
            assert_eq!(model.len(), before.len() + 1);
            return model;
        }
        "epochs" => {
            append(&mut shard, &mut model, 8, 0..9);
            for (epoch, start) in [(3, 7), (9, 8)] {
                let token = shard.truncate(StreamId::new(8), start, epoch).unwrap();
                change(&mut shard, token);
                model.retain(|(stream, offset), _| *stream != 8 || *offset < start);
                append(&mut shard, &mut model, 8, start..start + 3);
            }
            trim(&mut shard, &mut model, 8, 5);
            trim(&mut shard, &mut model, 7, 5);
        }
        "recycled" => {
            // One record of stream 9 in each of several segments, which is moved in the end.
            for round in 0..6 {
                append(&mut shard, &mut model, 9, round..round + 1);
                append(&mut shard, &mut model, 8, round * 12..round * 12 + 12);
                trim(&mut shard, &mut model, 8, round * 12 + 11);
            }
            shard.abandon();
            // Another open, which ends with a kill, too.
            shard = options.open_shard(data).unwrap();
            append(&mut shard, &mut model, 7, 5..8);
            let files = &inspect(data).unwrap().shards[0].files;
            assert!(files.iter().any(|file| file.generation.is_some_and(|one| one > 6)));
        }
        _ => {}
    }
    shard.abandon();
    model
}
