//! Damage of every kind and what is done about it, as far as `offline.rs` does not have it.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use ringwal_engine::offline::{
    RepairOptions, Severity, StreamRange, Verification, inspect, repair, verify,
};
use ringwal_engine::{Engine, Io, OpenError, Options, Shard, StreamId};

const SEGMENT_BYTES: u64 = 128 << 10;
const BLOCK: u64 = 4096;
const FOOTER: u64 = SEGMENT_BYTES - BLOCK;
const STREAMS: [u64; 3] = [7, 8, 20];
const RECORDS: u64 = 40;

fn options() -> Options {
    Engine::options().io(Io::Blocking).segment_bytes(SEGMENT_BYTES).idle_seal(None)
}

fn payload(stream: u64, offset: u64) -> Vec<u8> {
    format!("stream {stream} offset {offset} ").repeat(30).into_bytes()
}

/// A killed directory in which every record is a batch of its own, over several segments.
fn killed() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let mut shard = options().open_shard(&data).unwrap();
    for offset in 0..RECORDS {
        for stream in STREAMS {
            let token = shard.append(StreamId::new(stream), payload(stream, offset)).unwrap();
            while token.try_receipt().is_none() {
                shard.run_once(None).unwrap();
            }
        }
    }
    shard.abandon();
    (directory, data)
}

/// Numbers of the segments that hold batches, oldest first; the last one is not sealed.
fn live(data: &Path) -> Vec<u64> {
    let inspection = inspect(data).unwrap();
    let files = inspection.shards[0].files.iter().filter(|file| file.batches > 0);
    let mut live: Vec<_> = files
        .map(|file| (file.generation, file.name.rsplit('-').next().unwrap().parse().unwrap()))
        .collect();
    live.sort_unstable();
    live.into_iter().map(|(_, number)| number).collect()
}

fn name(number: u64) -> String {
    format!("shard-00/segment-{number:08}")
}

/// The records that an engine opened for reading only does not give; all others are right.
fn unreadable(data: &Path) -> BTreeSet<(u64, u64)> {
    let engine = options().read_only(true).open(data).unwrap();
    let mut unreadable = BTreeSet::new();
    for id in STREAMS {
        let stream = engine.stream(StreamId::new(id));
        for offset in 0..RECORDS {
            let mut records = match stream.read(offset..offset + 1) {
                Ok(records) => records,
                Err(_) => {
                    unreadable.insert((id, offset));
                    continue;
                }
            };
            match records.next() {
                Some(Ok(record)) => {
                    assert_eq!(record.offset(), offset);
                    assert!(*record.payload() == *payload(id, offset), "{id} {offset}");
                }
                Some(Err(_)) | None => drop(unreadable.insert((id, offset))),
            }
        }
    }
    engine.close().unwrap();
    unreadable
}

/// The records that a verification says are lost.
fn lost_by(verification: &Verification) -> BTreeSet<(u64, u64)> {
    let ranges = verification.findings.iter().flat_map(|finding| &finding.lost);
    let records = |range: &StreamRange| {
        let stream = range.stream.get();
        range.offsets.clone().map(|offset| (stream, offset)).collect::<Vec<_>>()
    };
    ranges.flat_map(records).collect()
}

fn flip(data: &Path, file: &str, byte: u64) {
    let file = OpenOptions::new().read(true).write(true).open(data.join(file)).unwrap();
    let mut old = [0];
    file.read_exact_at(&mut old, byte).unwrap();
    file.write_all_at(&[old[0] ^ 0x10], byte).unwrap();
}

fn word(data: &Path, file: &str, at: u64) -> u64 {
    let mut bytes = [0; 8];
    fs::File::open(data.join(file)).unwrap().read_exact_at(&mut bytes, at).unwrap();
    u64::from_le_bytes(bytes)
}

/// What a kind of rot is expected to cost.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
enum Cost {
    /// Every record can be read as it is.
    Nothing,
    /// Those of one batch are gone.
    Batch,
    /// Those of one segment, until it is repaired.
    Segment,
}

/// Bytes that are turned over, in which file, what it costs, and how bad it is called.
type Rot = (&'static str, String, Vec<u64>, Cost, Severity);

fn rots(data: &Path) -> Vec<Rot> {
    let live = live(data);
    assert!(live.len() > 3);
    let (sealed, open) = (name(live[1]), name(*live.last().unwrap()));
    let (entries, runs) = (word(data, &sealed, FOOTER + 48), word(data, &sealed, FOOTER + 56));
    let batch = |number: u64| 2 * BLOCK + number * BLOCK;
    let padding = batch(2) + (word(data, &sealed, batch(2) + 48) & 0xFFFF_FFFF) + 3;
    let (engine, anchor) = ("engine".to_owned(), "shard-00/anchor".to_owned());
    use Cost::{Batch, Nothing, Segment};
    use Severity::{Corrupt, Repairable};
    vec![
        ("the first header of a sealed segment", sealed.clone(), vec![30], Nothing, Repairable),
        ("its second header", sealed.clone(), vec![BLOCK + 140], Nothing, Repairable),
        ("both of its headers", sealed.clone(), vec![70, BLOCK + 70], Segment, Repairable),
        ("its batch header", sealed.clone(), vec![batch(3) + 20], Nothing, Corrupt),
        ("the chain in it", sealed.clone(), vec![batch(3) + 40], Nothing, Corrupt),
        ("its frame header", sealed.clone(), vec![batch(4) + 64 + 24], Batch, Corrupt),
        ("its payload", sealed.clone(), vec![batch(5) + 300], Batch, Corrupt),
        ("its padding", sealed.clone(), vec![padding], Nothing, Repairable),
        ("its footer", sealed.clone(), vec![FOOTER + 17], Nothing, Repairable),
        ("its entries", sealed.clone(), vec![entries + 3], Segment, Repairable),
        ("its runs", sealed.clone(), vec![runs + 19], Nothing, Repairable),
        ("the first header of the open segment", open.clone(), vec![30], Nothing, Repairable),
        ("both of its headers", open.clone(), vec![70, BLOCK + 70], Segment, Repairable),
        ("a batch header in it", open.clone(), vec![batch(3) + 20], Batch, Corrupt),
        ("a frame header in it", open.clone(), vec![batch(3) + 64 + 24], Batch, Corrupt),
        ("a payload in it", open, vec![batch(4) + 300], Batch, Corrupt),
        ("the engine file", engine.clone(), vec![40], Nothing, Repairable),
        ("its second copy", engine, vec![BLOCK + 40], Nothing, Repairable),
        ("the anchor", anchor, vec![BLOCK + 40], Nothing, Repairable),
    ]
}

#[test]
fn every_kind_of_rot_is_named_with_file_and_range_and_the_rest_stays_readable() {
    let (keep, whole) = killed();
    let kinds = rots(&whole).len();
    for kind in 0..kinds {
        let data = keep.path().join(format!("copy-{kind}"));
        fs::create_dir_all(data.join("shard-00")).unwrap();
        for folder in ["", "shard-00"] {
            for entry in fs::read_dir(whole.join(folder)).unwrap().map(Result::unwrap) {
                if entry.file_type().unwrap().is_file() {
                    fs::copy(entry.path(), data.join(folder).join(entry.file_name())).unwrap();
                }
            }
        }
        let (what, file, bytes, cost, severity) = rots(&data).swap_remove(kind);
        let what = format!("{what} ({file})");
        bytes.iter().for_each(|byte| flip(&data, &file, *byte));
        let verification = verify(&data).unwrap();
        let of_file: Vec<_> =
            verification.findings.iter().filter(|one| one.file == Path::new(&file)).collect();
        for byte in &bytes {
            let named = of_file.iter().any(|finding| finding.bytes.contains(byte));
            assert!(named, "{what}: byte {byte} is in none of {:#?}", verification.findings);
        }
        let range = |range: &Range<u64>| range.end - range.start <= SEGMENT_BYTES;
        assert!(of_file.iter().all(|finding| range(&finding.bytes)), "{what}");
        let worst = verification.findings.iter().map(|finding| finding.severity).max();
        assert_eq!(worst, Some(severity), "{what}: {:#?}", verification.findings);

        let gone = unreadable(&data);
        let most = match cost {
            Cost::Nothing => 0,
            Cost::Batch => 1,
            Cost::Segment => (SEGMENT_BYTES / BLOCK) as usize,
        };
        assert!(gone.len() <= most, "{what}: {gone:?} cannot be read");
        let lost = lost_by(&verification);
        if severity == Severity::Corrupt {
            // By its index, the engine still finds what has lost only its batch's header.
            let kept = usize::from(cost == Cost::Nothing);
            assert!(lost.len() == 1 && gone.len() + kept == 1, "{what}: {gone:?} of {lost:?}");
            assert!(gone.is_subset(&lost), "{what}: {gone:?} of {lost:?}");
        } else {
            assert!(lost.is_empty(), "{what}: {lost:?}");
        }

        // What a dry run says is what a repair does, and then it opens.
        let options_with = |dry_run| RepairOptions {
            dry_run,
            accept_loss_from: verification.cuts.clone(),
            backup: data.join("backup"),
        };
        let dry = repair(&data, &options_with(true)).unwrap();
        assert!(dry.after.is_none() && dry.backup.is_none() && !data.join("backup").exists());
        assert_eq!(unreadable(&data), gone, "{what}: a dry run changes nothing");
        let done = repair(&data, &options_with(false)).unwrap();
        assert_eq!(dry.steps, done.steps, "{what}");
        assert_eq!(dry.cuts.len(), done.cuts.len(), "{what}");
        let mut given_up = BTreeSet::new();
        for ((cut, dry), (done_cut, done)) in dry.cuts.iter().zip(&done.cuts) {
            assert_eq!((cut, &dry.lost), (done_cut, &done.lost), "{what}");
            for range in &dry.lost {
                given_up.extend(range.offsets.clone().map(|offset| (range.stream.get(), offset)));
            }
        }
        // A batch that holds nothing that counts stays damaged until its segment is used again.
        let rest = done.after.unwrap_or(done.before);
        assert!(rest.findings.iter().all(|one| one.remedy().is_none()), "{what}");
        assert!(!rest.is_corrupt(), "{what}: {:#?}", rest.findings);
        assert_eq!(unreadable(&data), given_up, "{what}");
        options().open(&data).unwrap().close().unwrap();
        assert_eq!(unreadable(&data), given_up, "{what}");
    }
}

#[test]
fn a_segment_that_is_missing_empty_or_foreign_is_named_and_the_others_stay_readable() {
    type Change = fn(&Path, &Path);
    let changes: [(&str, Change); 3] = [
        ("missing", |_, path| fs::remove_file(path).unwrap()),
        ("empty", |_, path| drop(fs::File::create(path).unwrap())),
        ("foreign", |data, path| {
            let (_keep, other) = killed();
            fs::copy(other.join(name(live(&other)[1])), path).unwrap();
            assert!(data.exists());
        }),
    ];
    for (what, change) in changes {
        let (_keep, data) = killed();
        let file = name(live(&data)[1]);
        change(&data, &data.join(&file));
        let verification = verify(&data).unwrap();
        assert!(verification.is_corrupt(), "{what}: {:#?}", verification.findings);
        let named = verification.findings.iter().any(|one| one.file == Path::new(&file));
        assert!(named, "{what}: {:#?}", verification.findings);
        assert!(matches!(kind(&data, &options()), Some(OpenError::Corrupt(_))), "{what}");
        let gone = unreadable(&data);
        assert!(!gone.is_empty() && gone.len() <= (SEGMENT_BYTES / BLOCK) as usize, "{what}");
        assert_eq!(gone, lost_by(&verification), "{what}: exactly what is named cannot be read");
    }
}

fn kind(data: &Path, options: &Options) -> Option<OpenError> {
    options.open(data).err()
}

#[test]
fn a_directory_whose_making_was_cut_short_holds_nothing_and_is_made_again() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    options().shards(2).open(&data).unwrap().close().unwrap();
    // The folders are made first, each with a blank anchor, then the file that names the engine.
    fs::remove_file(data.join("engine")).unwrap();
    fs::remove_dir_all(data.join("shard-01")).unwrap();
    for entry in fs::read_dir(data.join("shard-00")).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    let refused = kind(&data, &options().read_only(true)).unwrap();
    assert!(matches!(refused, OpenError::Missing { .. }), "{refused}");
    options().shards(2).open(&data).unwrap().close().unwrap();
    assert!(kind(&data, &options().read_only(true)).is_none());
    // When that file is there, everything was: a folder that is missing is damage.
    fs::remove_dir_all(data.join("shard-01")).unwrap();
    for options in [options(), options().read_only(true)] {
        assert!(matches!(kind(&data, &options), Some(OpenError::Corrupt(_))));
    }
}

/// The end of a crash lies in a file of its own, a close comes after it, and the first batch of what
/// was closed is damaged. The checkpoint that the close left says that the old file does not count.
#[test]
fn damage_at_the_start_of_what_was_closed_blames_no_file_that_was_cut_long_ago() {
    let (_directory, data) = killed();
    // So many files are ready that none of the later opens needs the old one.
    let mut shard = options().segments_ahead(8).open_shard(&data).unwrap();
    let append = |shard: &mut Shard| {
        let token = shard.append(StreamId::new(7), vec![1; 3000]).unwrap();
        while token.try_receipt().is_none() {
            shard.run_once(None).unwrap();
        }
    };
    let newest = || *live(&data).last().unwrap();
    for _ in 0..4 {
        let last = newest();
        while newest() == last {
            append(&mut shard);
        }
    }
    shard.abandon();
    let torn = name(newest());
    // Its checkpoint and the batch behind it.
    flip(&data, &torn, 2 * BLOCK + 100);
    flip(&data, &torn, 3 * BLOCK + 20);
    let mut shard = options().open_shard(&data).unwrap();
    let cut = shard.recovery().torn.clone();
    assert!(cut.is_some_and(|(file, at)| torn.ends_with(&file) && at == 2 * BLOCK));
    append(&mut shard);
    shard.close().unwrap();
    let closed = name(newest());
    flip(&data, &closed, 2 * BLOCK + 100);
    // The first open still finds the old file behind the end that its incarnation names; the next
    // ones have only the checkpoint.
    for _ in 0..3 {
        options().open_shard(&data).unwrap().abandon();
        let findings = verify(&data).unwrap().findings;
        assert!(findings.iter().all(|finding| finding.file == closed), "{torn}: {findings:?}");
    }
}

/// Records of a journal that is killed in the middle of its third segment.
const LONG_RECORDS: u64 = 140;
const LONG_SEGMENT_BYTES: u64 = 4 << 20;

/// Of a segment that should be empty.
const LOOKED_AT_BYTES: u64 = 1 << 20;

fn long() -> Options {
    options().segment_bytes(LONG_SEGMENT_BYTES)
}

fn killed_in_a_third_long_segment() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let mut shard = long().open_shard(&data).unwrap();
    for offset in 0..LONG_RECORDS {
        let record = vec![offset as u8; 64 << 10];
        let token = shard.append(StreamId::new(7), record).unwrap();
        while token.try_receipt().is_none() {
            shard.run_once(None).unwrap();
        }
    }
    shard.abandon();
    (directory, data)
}

#[test]
fn behind_a_segment_that_was_never_full_only_the_beginning_is_looked_at() {
    let (_directory, data) = killed_in_a_third_long_segment();
    let engine = long().read_only(true).open(&data).unwrap();
    let report = &engine.recovery()[0];
    let prepared = report.scanned_segments as u64 - 1;
    assert!(prepared > 0, "behind the third, some were prepared for later");
    let expected = LONG_SEGMENT_BYTES - 2 * BLOCK + prepared * LOOKED_AT_BYTES;
    assert_eq!(report.scanned_bytes, expected, "of {} segments", report.scanned_segments);
    assert_eq!(engine.stream(StreamId::new(7)).end(), LONG_RECORDS);
}

/// As if the device had lost all that came behind the first megabyte of the second segment: what it looks like is
/// one that was never full.
#[test]
fn what_follows_a_segment_whose_rest_is_lost_is_met_and_read() {
    let (_directory, data) = killed_in_a_third_long_segment();
    let [_, second, third] = live(&data)[..] else { panic!("three segments") };
    let file = OpenOptions::new().write(true).open(data.join(name(second))).unwrap();
    file.write_all_at(&vec![0; 3 << 20], 1 << 20).unwrap();
    let Err(OpenError::Corrupt(corruption)) = long().open(&data) else {
        panic!("acknowledged records are not there");
    };
    let files: BTreeSet<_> = corruption.damages.iter().map(|damage| damage.file.as_str()).collect();
    assert!(files.len() == 1 && name(second).ends_with(files.first().unwrap()), "{corruption}");
    // The third is there as a whole.
    let inspection = inspect(&data).unwrap();
    let mut files = inspection.shards[0].files.iter();
    let third = files.find(|file| name(third).ends_with(&file.name)).unwrap();
    assert!(third.records > 16, "more than the first megabyte of it is in use");
    let engine = long().read_only(true).open(&data).unwrap();
    let stream = engine.stream(StreamId::new(7));
    let is_readable = |offset: &u64| {
        let Ok(mut records) = stream.read(*offset..offset + 1) else { return false };
        let Some(Ok(record)) = records.next() else { return false };
        record.offset() == *offset && record.payload()[..] == [*offset as u8; 64 << 10]
    };
    let readable = (0..LONG_RECORDS).rev().take_while(is_readable).count();
    assert_eq!(readable as u64, third.records);
}
