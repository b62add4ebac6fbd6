//! Behind a process that was killed: every receipt that it got is kept.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::ops::ControlFlow;
use std::process::{Command, Stdio};

use ringwal_engine::offline::{Snapshot, verify};
use ringwal_engine::{Engine, StreamId};

use super::setup::payload;

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
            .args([
                "offline::killed::writer_to_be_killed",
                "--exact",
                "--nocapture",
                "--test-threads=1",
            ])
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
