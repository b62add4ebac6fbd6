//! What fuzzing found in decoders and in recovery, each as a test of its own.

use std::fs;
use std::path::Path;

use ringwal_engine::format::{
    AnchorHeader, BatchHeader, COUNTER_LAST, COUNTER_MAX, EngineHeader, FooterHeader, FormatError,
    FrameHeader, FrameKind, SegmentHeader, SegmentSeed, VerifiedFrame,
};
use ringwal_engine::offline::{RepairOptions, Severity, repair, verify};
use ringwal_engine::{Engine, Io, OpenError, OpenErrorKind, Options, StreamId, fuzzing};
use zerocopy::IntoBytes;

const ID: [u8; 16] = [7; 16];
const SEGMENT_BYTES: u64 = 128 << 10;

fn options() -> Options {
    Engine::options().io(Io::Blocking).segment_bytes(SEGMENT_BYTES).idle_seal(None)
}

/// A directory with a few records of stream 7, closed.
fn new() -> (tempfile::TempDir, std::path::PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let engine = options().open(&data).unwrap();
    for _ in 0..3 {
        engine.stream(StreamId::new(7)).append(b"record").unwrap().wait().unwrap();
    }
    engine.close().unwrap();
    (directory, data)
}

/// Puts the checksum of a block right after `change`.
fn rewrite(path: &Path, blocks: &[usize], length: usize, change: impl Fn(&mut [u8])) {
    let mut bytes = fs::read(path).unwrap();
    for at in blocks {
        let block = &mut bytes[*at..*at + length];
        change(block);
        let crc = crc32c::crc32c(&block[12..]);
        block[8..12].copy_from_slice(&crc.to_le_bytes());
    }
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_geometry_that_cannot_be_is_damage_and_sizes_nothing() {
    let mut block = [0; 4096];
    for (shards, segment_bytes) in [
        (0, SEGMENT_BYTES),
        (65, SEGMENT_BYTES),
        (65_537, SEGMENT_BYTES),
        (1, 0),
        (1, 60 << 10),
        (1, SEGMENT_BYTES + 1),
        (1, (2 << 30) + 4096),
        (1, u64::MAX / 4096 * 4096),
    ] {
        EngineHeader::new(ID, shards, segment_bytes).write(&mut block);
        let refused = FormatError::Geometry(shards, segment_bytes);
        assert_eq!(EngineHeader::verify(&block).unwrap_err(), refused);
        let (_keep, data) = new();
        rewrite(&data.join("engine"), &[0, 4096], 64, |block| {
            block[20..24].copy_from_slice(&u32::to_le_bytes(shards));
            block[56..64].copy_from_slice(&u64::to_le_bytes(segment_bytes));
        });
        let read_only = Engine::options().io(Io::Blocking).read_only(true).open(&data);
        assert_eq!(read_only.err().unwrap().kind(), OpenErrorKind::Corrupt);
        // The segments tell it again.
        let verification = verify(&data).unwrap();
        assert!(verification.is_damaged() && !verification.is_corrupt());
    }
    EngineHeader::new(ID, 64, 2 << 30).write(&mut block);
    assert!(EngineHeader::verify(&block).is_ok());
}

#[test]
fn segments_of_an_impossible_length_do_not_tell_an_engine_file() {
    let (_keep, data) = new();
    fs::remove_file(data.join("engine")).unwrap();
    for entry in fs::read_dir(data.join("shard-00")).unwrap().map(Result::unwrap) {
        let is_segment = entry.file_name().to_string_lossy().starts_with("segment");
        // One may be there that was not finished.
        if is_segment && entry.metadata().unwrap().len() >= 8192 {
            rewrite(&entry.path(), &[0, 4096], 144, |block| {
                block[80..88].copy_from_slice(&(1u64 << 50).to_le_bytes());
            });
        }
    }
    assert!(matches!(verify(&data), Err(OpenError::Corrupt(_))));
}

#[test]
fn a_counter_that_nobody_can_reach_is_not_believed() {
    let mut block = [0; 4096];
    let segment = |number, generation, incarnation| {
        SegmentHeader::new(ID, 0, number, generation, incarnation, SEGMENT_BYTES, None)
    };
    for (counters, is_right) in [
        ([COUNTER_MAX, 1, 1], true),
        ([COUNTER_MAX + 1, 1, 1], false),
        ([1, u64::MAX, 1], false),
        ([1, 1, u64::MAX], false),
    ] {
        let [number, generation, incarnation] = counters;
        segment(number, generation, incarnation).write(&mut block);
        assert_eq!(SegmentHeader::verify(&block).is_ok(), is_right, "{counters:?}");
        AnchorHeader::new(ID, 0, incarnation, number, generation).write(&mut block);
        assert_eq!(AnchorHeader::verify(&block).is_ok(), is_right, "{counters:?}");
    }
    let end = ringwal_engine::JournalEnd { offset: u64::MAX, ..Default::default() };
    SegmentHeader::new(ID, 0, 1, 1, 1, SEGMENT_BYTES, Some(end)).write(&mut block);
    let refused = FormatError::Count("predecessor_offset", u64::MAX);
    assert_eq!(SegmentHeader::verify(&block).unwrap_err(), refused);

    let seed = SegmentSeed::new(&ID, 1, 1);
    let batch = |sequence: u64| BatchHeader {
        magic: BatchHeader::magic(),
        crc: 0.into(),
        generation: 1.into(),
        sequence: sequence.into(),
        durable_sequence: 0.into(),
        incarnation: 1.into(),
        previous_crc: 0.into(),
        frames_crc: 0.into(),
        length: 64.into(),
        frames: 0.into(),
        flags: 0.into(),
        reserved: 0.into(),
    };
    for (sequence, is_right) in [(COUNTER_MAX, true), (u64::MAX, false)] {
        batch(sequence).write(seed, 8192, &mut block);
        assert_eq!(BatchHeader::verify(&block, seed, 8192).is_ok(), is_right);
    }

    // The shard's own tokens have room for it: a close behind a greater one never ended.
    const { assert!(COUNTER_MAX < 1 << 56) };

    let payload = [0; 4];
    for (base, is_right) in [(COUNTER_MAX - 1, true), (COUNTER_MAX, false), (u64::MAX - 1, false)] {
        let header = FrameHeader::new(FrameKind::Data, 7, 0, base, 1, 0, &payload);
        let frame = [header.as_bytes(), &payload].concat();
        assert_eq!(VerifiedFrame::verify(&frame).is_ok(), is_right, "{base}");
    }

    let words =
        |words: &[u64]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
    assert!(fuzzing::controls(&words(&[1, 7, 5])).is_ok());
    for wrong in [
        &[1, 7, u64::MAX][..],
        &[2, 7, 1, u64::MAX],
        &[3, 1, u64::MAX],
        &[6, 1, u64::MAX, 0],
        &[5, 7, 0, u64::MAX, 1, 0, 0],
    ] {
        let refused = FormatError::Count("counter", u64::MAX);
        assert_eq!(fuzzing::controls(&words(wrong)).unwrap_err(), refused, "{wrong:?}");
    }
    assert!(fuzzing::controls(&words(&[6, 1, 2, u64::from(u32::MAX)])).is_ok());
    let no_checksum = words(&[6, 1, 2, 1 << 32]);
    assert_eq!(fuzzing::controls(&no_checksum).unwrap_err(), FormatError::Length);
    let trimmed_beyond_its_end = words(&[5, 7, 9, 8, 1, 0, 0]);
    assert_eq!(fuzzing::controls(&trimmed_beyond_its_end).unwrap_err(), FormatError::Length);
    assert_eq!(fuzzing::segment_number("segment-18446744073709551615"), None);
    assert_eq!(fuzzing::segment_number("segment-00000012"), Some(12));
}

#[test]
fn a_counter_near_its_bound_is_named_before_anything_is_written() {
    let (_keep, data) = new();
    let path = data.join("shard-00/anchor");
    let mut anchors = fs::read(&path).unwrap();
    let known: Vec<_> =
        anchors.chunks(4096).filter_map(|block| AnchorHeader::verify(block).ok()).collect();
    let [known] = known.as_slice() else { panic!("one open, one block") };
    let (number, generation) = (known.first_number.get(), known.first_generation.get());
    for (incarnation, is_right) in [(COUNTER_LAST - 1, true), (COUNTER_LAST, false)] {
        AnchorHeader::new(known.engine_id, 0, incarnation, number, generation)
            .write(&mut anchors[..4096]);
        anchors[4096..].fill(0);
        fs::write(&path, &anchors).unwrap();
        let verification = verify(&data).unwrap();
        assert_eq!(verification.is_damaged(), !is_right, "{verification:?}");
        let looked = Engine::options().io(Io::Blocking).read_only(true).open(&data).unwrap();
        assert_eq!(looked.stream(StreamId::new(7)).read(..).unwrap().count(), 3);
        drop(looked);
        if !is_right {
            let error = options().open(&data).err().unwrap();
            assert_eq!(error.kind(), OpenErrorKind::Corrupt);
            assert!(error.to_string().contains(&format!("a counter stands at {incarnation}")));
        }
    }
}

#[test]
fn a_footer_whose_parts_do_not_lie_behind_one_another_is_not_believed() {
    let (_keep, data) = new();
    let bytes = fs::read(data.join("shard-00/segment-00000000")).unwrap();
    let header = SegmentHeader::verify(&bytes).unwrap();
    let at = FooterHeader::offset(SEGMENT_BYTES) as usize;
    let footer = FooterHeader::verify(&bytes[at..], header.seed(), SEGMENT_BYTES).unwrap();
    let mut block = [0; 4096];
    let mut check = |change: &dyn Fn(&mut FooterHeader)| {
        let mut footer = footer;
        change(&mut footer);
        footer.write(header.seed(), SEGMENT_BYTES, &mut block);
        FooterHeader::verify(&block, header.seed(), SEGMENT_BYTES).is_ok()
    };
    assert!(check(&|_| {}));
    assert!(!check(&|footer| footer.entries_offset = (u64::MAX - 10).into()));
    assert!(!check(&|footer| footer.runs_offset = (u64::MAX - 4095).into()));
    assert!(!check(&|footer| footer.runs_offset = (footer.runs_offset.get() + 8).into()));
    assert!(!check(&|footer| footer.entries = u32::MAX.into()));
    assert!(!check(&|footer| footer.end_offset = 4096.into()));
    assert!(!check(&|footer| footer.end_offset = SEGMENT_BYTES.into()));
    assert!(!check(&|footer| footer.checkpoint_offset = SEGMENT_BYTES.into()));
    assert!(!check(&|footer| footer.first_sequence = 0.into()));
    assert!(!check(&|footer| footer.last_sequence = u64::MAX.into()));
}

#[test]
fn a_shard_that_the_engine_does_not_have_is_no_shard_to_put_a_segment_back_to() {
    for shard in [1u32, 4242, 65_536, u32::MAX] {
        let (_keep, data) = new();
        let foreign = data.join("shard-00/segment-00000090");
        fs::copy(data.join("shard-00/segment-00000000"), &foreign).unwrap();
        rewrite(&foreign, &[0, 4096], 144, |block| {
            block[20..24].copy_from_slice(&shard.to_le_bytes());
        });
        assert_eq!(options().open(&data).err().unwrap().kind(), OpenErrorKind::Corrupt);
        let verification = verify(&data).unwrap();
        assert!(verification.findings.iter().any(|finding| {
            finding.severity == Severity::Repairable && finding.file.ends_with("segment-00000090")
        }));
        let backup = data.join("backup");
        let options_ = RepairOptions { dry_run: false, accept_loss_from: vec![], backup };
        let repaired = repair(&data, &options_).unwrap();
        assert!(!repaired.after.unwrap().is_damaged(), "shard {shard}");
        let engine = options().open(&data).unwrap();
        assert_eq!(engine.stream(StreamId::new(7)).end(), 3);
        engine.close().unwrap();
    }
}
