//! `inspect`, `verify`, `dump`, `tail` and `repair` as a shell sees them: on directories that are
//! whole, killed, in use, no engine's, newer, or damaged.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use ringwal_engine::{Engine, Io, StreamId};
use ringwal_replication::node_id::{NodeId, RunId};
use ringwal_replication::orphans::{Reason, keep};
use serde_json::Value;

const SEGMENT_BYTES: u64 = 128 << 10;

fn ringwal(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringwal"));
    command.args(arguments).stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Output {
    ringwal(arguments).output().unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| panic!("{:?}", output.status))
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

/// Fails with this code, and says it in the form of all errors.
#[track_caller]
fn assert_error(output: &Output, exit: i32, parts: &[&str]) {
    let text = stderr(output);
    assert_eq!(code(output), exit, "{text}{}", stdout(output));
    assert!(text.starts_with("error: "), "{text}");
    for part in parts {
        assert!(text.contains(part), "{part:?} in {text}");
    }
}

fn options() -> ringwal_engine::Options {
    Engine::options().io(Io::Blocking).segment_bytes(SEGMENT_BYTES)
}

/// 100 records in each of two streams, closed or not.
fn data(close: bool) -> (tempfile::TempDir, String) {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let mut shard = options().open_shard(&data).unwrap();
    for offset in 0..100 {
        for stream in [7, 8] {
            let mut record = format!("record {offset} of {stream}\n").into_bytes();
            record.resize(700, 0xFF);
            let token = shard.append(StreamId::new(stream), record).unwrap();
            while token.try_receipt().is_none() {
                shard.run_once(None).unwrap();
            }
        }
    }
    if close {
        drop(shard.close().unwrap())
    } else {
        shard.abandon()
    }
    let data = data.to_str().unwrap().to_owned();
    (directory, data)
}

fn segment(data: &str, number: u64) -> PathBuf {
    Path::new(data).join(format!("shard-00/segment-{number:08}"))
}

fn flip(file: &Path, byte: u64) {
    let file = OpenOptions::new().read(true).write(true).open(file).unwrap();
    let mut old = [0];
    file.read_exact_at(&mut old, byte).unwrap();
    file.write_all_at(&[old[0] ^ 4], byte).unwrap();
}

#[test]
fn a_killed_directory_is_shown_and_found_fine() {
    let (_keep, data) = data(false);
    let verify = run(&["verify", &data]);
    assert_eq!(code(&verify), 0, "{}", stdout(&verify));
    assert!(stdout(&verify).contains("200 records") && stdout(&verify).contains("fine: "));
    let json: Value = serde_json::from_slice(&run(&["verify", &data, "--json"]).stdout).unwrap();
    assert_eq!(json["schema"], "ringwal.verify/1");
    assert_eq!((&json["damaged"], &json["totals"]["records"]), (&false.into(), &200.into()));

    let inspect = run(&["inspect", &data]);
    assert_eq!(code(&inspect), 0);
    for part in ["sealed", "open", "unused", "anchor", "0@0; 0.."] {
        assert!(stdout(&inspect).contains(part), "{part} in {}", stdout(&inspect));
    }
    let json: Value = serde_json::from_slice(&run(&["inspect", &data, "--json"]).stdout).unwrap();
    assert_eq!(json["shards"][0]["streams"][1]["end"], 100);
    assert_eq!((&json["segment_bytes"], &json["in_use"]), (&SEGMENT_BYTES.into(), &false.into()));

    let dump = run(&["dump", &data]);
    assert_eq!((code(&dump), stdout(&dump).lines().count()), (0, 200));
    let line = stdout(&dump).lines().next().unwrap();
    let fields: Vec<_> = line.splitn(5, ' ').collect();
    let mut record = b"record 0 of 7\n".to_vec();
    record.resize(700, 0xFF);
    assert_eq!(fields[..4], ["7", "0", &format!("{:08x}", crc32c::crc32c(&record)), "700"]);
    assert!(fields[4].starts_with("record 0 of 7\\n\\xff\\xff") && fields[4].ends_with("\\xff"));

    let dump = run(&["dump", &data, "--stream", "8", "--from", "90", "--limit", "3", "--json"]);
    let lines: Vec<Value> =
        stdout(&dump).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let offsets: Vec<_> = lines.iter().map(|line| line["offset"].as_u64().unwrap()).collect();
    assert_eq!((offsets, &lines[0]["stream"]), (vec![90, 91, 92], &8.into()));
    let stats = run(&["dump", &data, "--stats", "--json"]);
    let json: Value = serde_json::from_slice(&stats.stdout).unwrap();
    assert_eq!(
        (&json["streams"][0]["records"], &json["streams"][0]["end"]),
        (&100.into(), &100.into())
    );
    assert!(stdout(&run(&["dump", &data, "--stats"])).contains("2 streams, 200 records"));

    let tail = run(&["tail", &data, "--stream", "7"]);
    let first = stdout(&tail).lines().next().unwrap();
    assert!(first.starts_with("7 90 ") && stdout(&tail).lines().count() == 10, "{first}");
    let tail = run(&["tail", &data, "--stream", "7", "--from", "98"]);
    assert_eq!(stdout(&tail).lines().count(), 2);
    let repair = run(&["repair", &data]);
    assert_eq!((code(&repair), stdout(&repair)), (0, "nothing to repair\n"));
}

#[test]
fn what_cannot_be_looked_into_says_why() {
    let directory = tempfile::tempdir().unwrap();
    let absent = directory.path().join("absent").to_str().unwrap().to_owned();
    let file = directory.path().join("file").to_str().unwrap().to_owned();
    fs::write(&file, b"not a directory").unwrap();
    for command in
        [&["inspect"][..], &["verify"], &["dump"], &["tail", "--stream", "1"], &["repair"]]
    {
        let on = |path: &str| run(&[command, &[path]].concat());
        assert_error(&on(&absent), 3, &["holds no engine", "fix: check the path"]);
        assert_error(&on(directory.path().to_str().unwrap()), 3, &["holds no engine"]);
        assert_error(&on(&file), 3, &["is not a directory", "fix: choose another path"]);
        assert!(!Path::new(&absent).exists());
    }
    let (_keep, data) = data(true);
    assert_error(&run(&["dump", &data, "--stream", "9"]), 1, &["no stream 9", "cause: ", "7, 8"]);
    assert_error(&run(&["tail", &data, "--stream", "9"]), 1, &["no stream 9", "fix: "]);
    let beyond = run(&["dump", &data, "--stream", "7", "--from", "1000"]);
    assert_eq!((code(&beyond), stdout(&beyond)), (0, ""));
    for nonsense in [
        &["dump", &data, "--from", "3"][..],
        &["dump", &data, "--stream", "x"],
        &["dump", &data, "--stats", "--limit", "1"],
        &["tail", &data],
        &["verify"],
        &["repair", &data, "--accept-data-loss-from", "everything"],
        &["repair", &data, "--accept-data-loss-from", "0:1"],
        &["inspect", &data, "--yaml"],
    ] {
        assert_eq!(code(&run(nonsense)), 2, "{nonsense:?}");
    }

    let engine = options().open(&data).unwrap();
    engine.stream(StreamId::new(7)).trim(20).unwrap();
    for command in ["verify", "repair"] {
        let process = format!("process {}", std::process::id());
        assert_error(&run(&[command, &data]), 1, &["in use", &process, "fix: close that one"]);
    }
    for command in ["inspect", "dump"] {
        assert_eq!(code(&run(&[command, &data])), 0, "{command} works beside an engine");
    }
    assert!(stdout(&run(&["inspect", &data])).contains("in use"));
    assert_eq!(code(&run(&["tail", &data, "--stream", "7"])), 0);
    let trimmed = run(&["dump", &data, "--stream", "7", "--from", "3"]);
    assert_error(&trimmed, 1, &["offset 3 of stream 7 is gone", "fix: --from 20"]);
    engine.close().unwrap();

    let path = Path::new(&data).join("engine");
    let mut bytes = fs::read(&path).unwrap();
    for copy in [0, 4096] {
        bytes[copy + 12] = 2;
        let crc = crc32c::crc32c(&bytes[copy + 12..copy + 64]);
        bytes[copy + 8..copy + 12].copy_from_slice(&crc.to_le_bytes());
    }
    fs::write(&path, bytes).unwrap();
    for command in ["inspect", "verify", "dump", "repair"] {
        let newer = run(&[command, &data]);
        assert_error(&newer, 1, &["newer version (format 2.0", "fix: use that version"]);
    }
}

#[test]
fn what_a_copy_tells_is_repaired_after_a_copy_was_made() {
    let (_keep, data) = data(false);
    flip(&segment(&data, 1), 40);
    flip(&Path::new(&data).join("engine"), 4096 + 40);
    let verify = run(&["verify", &data]);
    assert_eq!(code(&verify), 4);
    for part in [
        "repairable: shard-00/segment-00000001, bytes 0..4096",
        "nothing is lost",
        "fix: ringwal repair",
    ] {
        assert!(stdout(&verify).contains(part), "{part} in {}", stdout(&verify));
    }
    let dry = run(&["repair", &data, "--dry-run"]);
    assert_eq!(code(&dry), 4, "it is damaged still");
    assert!(stdout(&dry).contains("would repair: engine: "), "{}", stdout(&dry));
    assert_eq!(code(&run(&["verify", &data])), 4, "a dry run changes nothing");
    let repair = run(&["repair", &data]);
    assert_eq!(code(&repair), 0, "{}{}", stdout(&repair), stderr(&repair));
    let copies = stdout(&repair)
        .lines()
        .find_map(|line| line.strip_prefix("copies of every changed file: "))
        .unwrap();
    assert!(copies.starts_with(&format!("{data}/backup-2")), "{copies}");
    assert!(Path::new(copies).join("shard-00/segment-00000001").exists());
    assert_eq!(code(&run(&["verify", &data])), 0);
    options().open(&data).unwrap().close().unwrap();
}

#[test]
fn inspect_shows_that_a_segment_is_missing() {
    let (_keep, data) = data(false);
    fs::remove_file(segment(&data, 1)).unwrap();
    let inspect = run(&["inspect", &data]);
    assert_eq!(code(&inspect), 4, "{}", stdout(&inspect));
    assert!(stdout(&inspect).contains("segment-00000001"), "{}", stdout(&inspect));
}

#[test]
fn rot_is_given_up_only_where_verify_says_and_somebody_accepts() {
    let (_keep, data) = data(false);
    flip(&segment(&data, 3), 8192 + 2 * 4096 + 300);
    let verify = run(&["verify", &data]);
    assert_eq!(code(&verify), 4);
    let text = stdout(&verify).to_owned();
    assert!(text.contains("corrupt: shard-00/segment-00000003, bytes 16384..20480"), "{text}");
    let json: Value = serde_json::from_slice(&run(&["verify", &data, "--json"]).stdout).unwrap();
    let place = json["cuts"][0].as_str().unwrap();
    assert_eq!(place, "0:3:16384");
    assert!(text.contains(&format!("--accept-data-loss-from {place}")), "{text}");
    assert!(text.contains("unreadable: stream "), "{text}");

    let dump = run(&["dump", &data]);
    assert_error(&dump, 4, &["cannot be read whole", "segment-00000003", "fix: ringwal verify"]);
    assert_eq!(stdout(&dump).lines().count(), 199, "everything else is there");
    let unreadable = json["findings"][0]["unreadable"][0].clone();
    let stream = unreadable["stream"].to_string();
    let dump = run(&["dump", &data, "--stream", &stream]);
    let offset = &unreadable["from"];
    assert_error(&dump, 4, &[&format!("offsets {offset}.."), "fix: ringwal verify"]);
    assert_eq!(stdout(&dump).lines().count(), 99);
    assert_eq!(code(&run(&["dump", &data, "--limit", "5"])), 0);

    let without = run(&["repair", &data]);
    assert_eq!(code(&without), 4, "{}", stdout(&without));
    assert!(stdout(&without).contains("fix: restore the directory"), "{}", stdout(&without));
    for (wrong, cause) in
        [("0:99:8192", "no segment"), ("7:0:0", "no such shard"), ("0:5:8192", "begins before it")]
    {
        let refused = run(&["repair", &data, "--accept-data-loss-from", wrong]);
        assert_error(&refused, 2, &["cannot be cut", cause, "fix: take"]);
    }
    let accept = ["repair", &data, "--accept-data-loss-from", place];
    let dry = run(&[&accept[..], &["--dry-run"]].concat());
    assert_eq!(code(&dry), 4);
    assert!(stdout(&dry).contains("would lose: stream 7, offsets "), "{}", stdout(&dry));
    let before: BTreeSet<_> = stdout(&run(&["dump", &data])).lines().map(str::to_owned).collect();
    let repair = run(&accept);
    assert_eq!(code(&repair), 0, "{}{}", stdout(&repair), stderr(&repair));
    assert!(stdout(&repair).contains("  lost: stream 8, offsets "), "{}", stdout(&repair));
    assert_eq!(code(&run(&["verify", &data])), 0);
    let after = run(&["dump", &data]);
    assert_eq!(code(&after), 0);
    let after: BTreeSet<_> = stdout(&after).lines().map(str::to_owned).collect();
    assert!(after.is_subset(&before) && after.len() > 50);
    let lost: usize = stdout(&repair)
        .lines()
        .find_map(|line| line.split_once("lost ")?.1.strip_suffix(" records")?.parse().ok())
        .unwrap();
    assert_eq!(after.len() + lost, 200, "{}", stdout(&repair));
    options().open(&data).unwrap().close().unwrap();

    fs::remove_file(segment(&data, 0)).unwrap();
    let verify = run(&["verify", &data]);
    assert_eq!(code(&verify), 4);
    assert!(stdout(&verify).contains("is missing"), "{}", stdout(&verify));
}

/// The directory of [`data`], of which the ends of two streams were kept, and cut.
fn data_with_orphans() -> (tempfile::TempDir, String) {
    let (keep_it, data) = data(true);
    let engine = options().open(&data).unwrap();
    let reason = Reason { epoch: 5, leader: NodeId::new(2), run: RunId::new([7; 16]) };
    for (stream, from) in [(8, 98), (7, 97)] {
        let stream = engine.stream(StreamId::new(stream));
        keep(&engine, stream.id(), from, 100, reason).unwrap().unwrap();
        stream.truncate(from, 5).unwrap().wait().unwrap();
    }
    engine.close().unwrap();
    (keep_it, data)
}

#[test]
fn orphans_are_shown_checked_and_printed() {
    let (_keep, data) = data_with_orphans();
    let parse = |output: &Output| -> Value { serde_json::from_slice(&output.stdout).unwrap() };
    let inspect = run(&["inspect", &data]);
    assert_eq!(code(&inspect), 0, "{}", stdout(&inspect));
    for part in [
        "orphans: records that were cut",
        "  orphans/7-97-0.orphan: whole, ",
        "stream 7, offsets 97..100, 3 records, epochs 0@97, kept 20",
        "Z for node 2 in epoch 5\n",
    ] {
        assert!(stdout(&inspect).contains(part), "{part} in {}", stdout(&inspect));
    }
    let json = parse(&run(&["inspect", &data, "--json"]));
    let (orphan, kept) = (&json["orphans"][1], &json["orphans"][1]["kept"]);
    assert_eq!(
        (&orphan["file"], &orphan["state"]),
        (&"orphans/8-98-0.orphan".into(), &"whole".into())
    );
    assert_eq!((&orphan["records"], &orphan["epochs"][0]["start"]), (&2.into(), &98.into()));
    assert_eq!(
        (&kept["stream"], &kept["from"], &kept["until"]),
        (&8.into(), &98.into(), &100.into())
    );
    assert_eq!((&kept["leader"], &kept["leader_epoch"]), (&2.into(), &5.into()));
    assert_eq!(
        (&kept["engine_id"], &kept["leader_run"]),
        (&json["engine_id"], &"07".repeat(16).into())
    );

    let verify = run(&["verify", &data]);
    assert_eq!(code(&verify), 0, "{}", stdout(&verify));
    assert!(
        stdout(&verify).contains(": 2 orphans, 5 records, ")
            && stdout(&verify).contains("\nfine: ")
    );
    assert_eq!(parse(&run(&["verify", &data, "--json"]))["orphans"][0]["state"], "whole");

    let dump = |arguments: &[&str]| run(&[&["dump", &data, "--orphans"], arguments].concat());
    let offsets = |output: &Output| -> Vec<String> {
        let start = |line: &str| line.splitn(3, ' ').take(2).collect::<Vec<_>>().join(" ");
        stdout(output).lines().map(start).collect()
    };
    let all = dump(&[]);
    assert_eq!(
        (code(&all), offsets(&all)),
        (0, ["7 97", "7 98", "7 99", "8 98", "8 99"].map(String::from).into())
    );
    let line = stdout(&all).lines().next().unwrap();
    assert!(line.contains(" 700 record 97 of 7\\n\\xff"), "{line}");
    let some = dump(&["--stream", "7", "--from", "98", "--limit", "1"]);
    assert_eq!((code(&some), offsets(&some)), (0, vec!["7 98".to_owned()]));
    let none = dump(&["--limit", "0"]);
    assert_eq!((code(&none), stdout(&none)), (0, ""));
    assert_eq!(code(&dump(&["--stream", "9"])), 0);
    let lines = dump(&["--stream", "8", "--json"]);
    let record: Value = serde_json::from_str(stdout(&lines).lines().next().unwrap()).unwrap();
    assert_eq!(
        (&record["offset"], &record["epoch"], &record["length"]),
        (&98.into(), &0.into(), &700.into())
    );
    assert_eq!(code(&dump(&["--stats"])), 2);
    let journal = run(&["dump", &data, "--stream", "7"]);
    assert_eq!((code(&journal), stdout(&journal).lines().count()), (0, 97));
}

#[test]
fn a_damaged_orphan_is_named_and_the_journal_is_fine() {
    let (_keep, data) = data_with_orphans();
    let (torn, damaged) = ("orphans/7-97-0.orphan", "orphans/8-98-0.orphan");
    let path = |name: &str| Path::new(&data).join(name);
    // What else may lie there is nobody's business.
    fs::write(path("orphans/9-0-0.new"), b"unfinished").unwrap();
    fs::write(path("orphans/README"), b"do not look").unwrap();
    fs::create_dir(path("orphans/1-2-3.orphan")).unwrap();
    let length = fs::metadata(path(torn)).unwrap().len();
    File::options().write(true).open(path(torn)).unwrap().set_len(length - 700).unwrap();
    let verify = run(&["verify", &data]);
    assert_eq!(code(&verify), 0, "{}", stdout(&verify));
    assert!(
        stdout(&verify).contains(&format!("torn orphan: {torn} at byte ")),
        "{}",
        stdout(&verify)
    );
    assert_eq!(code(&run(&["inspect", &data])), 0);

    flip(&path(damaged), 300);
    let verify = run(&["verify", &data]);
    assert_eq!(code(&verify), 4);
    for part in [
        &format!("damaged orphan: {damaged} at byte 128 (to 896): the frame of offsets 98..99"),
        "2 orphans, 3 records",
        "the journal is fine: ",
        "damaged: orphans, which are no part of the journal",
        "fix: ringwal dump ",
    ] {
        assert!(stdout(&verify).contains(part), "{part} in {}", stdout(&verify));
    }
    let json: Value = serde_json::from_slice(&run(&["verify", &data, "--json"]).stdout).unwrap();
    assert_eq!((&json["damaged"], &json["corrupt"]), (&true.into(), &false.into()));
    assert_eq!(
        (&json["orphans"][0]["state"], &json["findings"]),
        (&"torn".into(), &Value::Array(vec![]))
    );
    let orphan = &json["orphans"][1];
    assert_eq!((&orphan["state"], &orphan["unreadable_records"]), (&"damaged".into(), &1.into()));
    assert_eq!((&orphan["problem"]["from"], &orphan["records"]), (&128.into(), &1.into()));

    let dump = run(&["dump", &data, "--orphans"]);
    assert_error(&dump, 4, &[torn, damaged, "fix: ringwal verify"]);
    assert_eq!(stdout(&dump).lines().count(), 3, "everything else is there");
    assert_eq!(code(&run(&["inspect", &data])), 0, "inspect reads no payload");
    flip(&path(damaged), 130);
    let inspect = run(&["inspect", &data]);
    assert_eq!(code(&inspect), 4, "{}", stdout(&inspect));
    let repair = run(&["repair", &data]);
    assert_eq!((code(&repair), stdout(&repair)), (0, "nothing to repair\n"));
    options().open(&data).unwrap().close().unwrap();
}

#[test]
fn nobody_reading_ends_a_dump_quietly() {
    let (_keep, data) = data(true);
    for arguments in [&["dump", &data][..], &["tail", &data, "--stream", "7", "-f"]] {
        let mut child =
            ringwal(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut first = [0; 10];
        child.stdout.take().unwrap().read_exact(&mut first).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!((code(&output), stderr(&output)), (0, ""), "{arguments:?}");
    }
}

#[test]
fn tail_follows_another_process_through_segments_and_restarts() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let engine = options().open(&data).unwrap();
    let mut child = ringwal(&["tail", data.to_str().unwrap(), "--stream", "7", "-f"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut expect = |offset: u64| {
        let began = Instant::now();
        let line = lines.next().unwrap().unwrap();
        assert!(line.starts_with(&format!("7 {offset} ")), "{offset}: {line}");
        assert!(began.elapsed() < Duration::from_secs(5), "the delay is bounded");
    };
    let mut offset = 0;
    let mut append = |engine: &Engine, count: u64| {
        for _ in 0..count {
            let record = vec![b'x'; 900];
            offset =
                engine.stream(StreamId::new(7)).append(record).unwrap().wait().unwrap().offset();
        }
        offset
    };
    append(&engine, 1);
    expect(0);
    for next in 1..=append(&engine, 150) {
        expect(next);
    }
    engine.close().unwrap();
    let engine = options().open(&data).unwrap();
    let until = append(&engine, 3);
    for next in until - 2..=until {
        expect(next);
    }
    engine.close().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn every_receipt_of_a_killed_bench_is_in_the_dump() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let (data, receipts, out) = (path("data"), path("receipts"), path("out"));
    for round in 0..3u64 {
        let mut bench = ringwal(&["bench", "--only", "loaded", "--io", "blocking"]);
        bench.args(["--duration", "30s", "--dir", &data, "--receipts", &receipts, "--out", &out]);
        let mut child = bench.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let grown = |than: u64| fs::metadata(&receipts).map_or(0, |file| file.len()) > than;
        let (began, length) = (Instant::now(), fs::metadata(&receipts).map_or(0, |f| f.len()));
        while !grown(length + 20_000) && began.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(5 + round));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let verify = run(&["verify", &data]);
        assert_eq!(code(&verify), 0, "{}{}", stdout(&verify), stderr(&verify));
        let dump = run(&["dump", &data]);
        assert_eq!(code(&dump), 0, "{}", stderr(&dump));
        let dumped: BTreeSet<String> = stdout(&dump)
            .lines()
            .map(|line| line.splitn(4, ' ').take(3).collect::<Vec<_>>().join(" "))
            .collect();
        let receipts = fs::read_to_string(&receipts).unwrap();
        let whole = &receipts[..receipts.rfind('\n').map_or(0, |end| end + 1)];
        assert!(whole.lines().count() > 500);
        for receipt in whole.lines() {
            assert!(dumped.contains(receipt), "round {round}: no record for {receipt:?}");
        }
    }
}
