//! What is fuzzed, and what must hold of it beside not panicking.

use std::sync::Arc;

use ringwal_engine::disk::Pool;
use ringwal_engine::format::{
    AnchorHeader, BatchHeader, EngineHeader, FRAME_HEADER_BYTES, FooterHeader, FrameHeader,
    FrameKind, ORPHAN_HEADER_BYTES, ORPHAN_TRAILER_BYTES, RUN_BYTES, SegmentHeader, SegmentSeed,
    VerifiedFrame,
};
use ringwal_engine::offline::{self, OrphanState, RepairOptions};
use ringwal_engine::{Clock, Engine, Io, Options, Shard, StreamId, fuzzing};
use ringwal_raft_fallback::fuzzing::Decoder;

use super::corpus::{Corpus, Directory, Kind, Sample, Spot};
use super::disk::{Image, MemoryDisk};
use super::mutate::{fix_batch, fix_block, fix_frame, fix_orphan, mutate, mutate_in_place};
use super::{leader, raft, wire};
use crate::random::Random;

/// What is fed.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Target {
    EngineHeader,
    AnchorHeader,
    SegmentHeader,
    BatchHeader,
    Batch,
    Frame,
    Controls,
    Footer,
    Index,
    FirstCheckpoint,
    Orphan,
    Text,
    Hello,
    Answer,
    Message,
    /// Items as a connection receives them.
    Items,
    /// The core of a follower.
    Follower,
    /// What the metadata store reads from disk and from other nodes.
    Raft(Decoder),
    /// The recovery of a shard on a disk in memory, reading, writing on, and the recovery of that.
    Recovery,
    /// The offline tools and a read-only open on a real directory.
    Offline,
}

/// How often each target comes, against the others.
const WEIGHTS: [(Target, u64); 29] = [
    (Target::EngineHeader, 200),
    (Target::AnchorHeader, 200),
    (Target::SegmentHeader, 300),
    (Target::BatchHeader, 400),
    (Target::Batch, 1200),
    (Target::Frame, 1600),
    (Target::Controls, 1600),
    (Target::Footer, 400),
    (Target::Index, 1200),
    (Target::FirstCheckpoint, 1000),
    (Target::Orphan, 800),
    (Target::Text, 200),
    (Target::Hello, 300),
    (Target::Answer, 300),
    (Target::Message, 1600),
    (Target::Items, 600),
    (Target::Follower, 600),
    (Target::Raft(Decoder::Request), 700),
    (Target::Raft(Decoder::Reply), 200),
    (Target::Raft(Decoder::Entry), 500),
    (Target::Raft(Decoder::Facts), 100),
    (Target::Raft(Decoder::StoreAsk), 400),
    (Target::Raft(Decoder::StoreAnswer), 400),
    (Target::Raft(Decoder::Question), 200),
    (Target::Raft(Decoder::Base), 300),
    (Target::Raft(Decoder::Snapshot), 400),
    (Target::Raft(Decoder::Record), 500),
    (Target::Recovery, 300),
    (Target::Offline, 2),
];

/// Bytes that a decoder may hold for each byte of input, and beside it.
const DECODER_BYTES: (usize, usize) = (16, 4 << 10);
/// The same of what comes over a connection, and is put into words again.
const WIRE_BYTES: (usize, usize) = (32, 16 << 10);
/// The same of a receive buffer: twice its chunks, and the longest frame that it takes.
const RECEIVED_BYTES: (usize, usize) = (64, 2 * (256 << 10) + 2 * wire::FRAME_BYTES_MAX);
/// The same of the store: entries, members and items are longer in memory than as bytes, and all is read twice.
const STORE_BYTES: (usize, usize) = (128, 64 << 10);
/// The same of its snapshots: the longest chunk.
const SNAPSHOT_BYTES: (usize, usize) = (128, 3 << 20);
/// The same of a recovery: its reads, the pool's bookkeeping, histograms, prepared segments.
const RECOVERY_BYTES: (usize, usize) = (24, 24 << 20);
/// The same of the offline tools.
const OFFLINE_BYTES: (usize, usize) = (64, 64 << 20);
/// A geometry beyond this is looked at, but nothing is written with it.
const SEGMENT_BYTES_WRITTEN: u64 = 1 << 20;
/// Records of a stream that are read; a mutated end may lie anywhere.
const RECORDS_MAX: usize = 3000;

impl Target {
    /// The target of an execution.
    pub fn draw(random: &mut Random) -> Self {
        let mut left = random.below(WEIGHTS.iter().map(|(_, weight)| weight).sum());
        for (target, weight) in WEIGHTS {
            if left < weight {
                return target;
            }
            left -= weight;
        }
        Target::Text
    }

    /// The most that an input of this length may make it hold at once.
    pub fn bytes_max(self, length: usize) -> usize {
        let (each, beside) = match self {
            Target::Recovery => RECOVERY_BYTES,
            Target::Offline => OFFLINE_BYTES,
            Target::Hello | Target::Answer | Target::Message => WIRE_BYTES,
            Target::Items | Target::Follower => RECEIVED_BYTES,
            Target::Raft(Decoder::Snapshot) => SNAPSHOT_BYTES,
            Target::Raft(_) => STORE_BYTES,
            _ => DECODER_BYTES,
        };
        each * length + beside
    }
}

/// An input, ready to be fed.
pub enum Input {
    Bytes(Sample),
    /// What comes over a connection, and a number from which all else is drawn.
    Items(Vec<u8>, u64),
    Directory(Box<Directory>, u64),
}

/// What an execution found; `Err` is a failure.
pub type Outcome = Result<Verdict, String>;

/// What the decoder said.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    Accepted,
    Refused,
}

use Verdict::{Accepted, Refused};

/// What an execution runs on.
pub struct Bench {
    pool: Pool,
    place: tempfile::TempDir,
}

impl Bench {
    /// Memory, and a folder for real directories.
    pub fn new() -> anyhow::Result<Self> {
        let memory = std::path::Path::new("/dev/shm");
        let place = match memory.is_dir() {
            true => tempfile::tempdir_in(memory).or_else(|_| tempfile::tempdir())?,
            false => tempfile::tempdir()?,
        };
        Ok(Self { pool: Pool::new(8 * (16 << 10), 16 << 10)?, place })
    }
}

/// The input of an execution.
pub fn input(target: Target, corpus: &Corpus, random: &mut Random) -> Input {
    let kind = match target {
        Target::EngineHeader => Kind::Engine,
        Target::AnchorHeader => Kind::Anchor,
        Target::SegmentHeader => Kind::Segment,
        Target::BatchHeader | Target::Batch => Kind::Batch,
        Target::Frame | Target::Text => Kind::Frame,
        Target::Controls => Kind::Controls,
        Target::Footer => Kind::Footer,
        Target::Index => Kind::Index,
        Target::FirstCheckpoint => Kind::Start,
        Target::Orphan => Kind::Orphan,
        Target::Hello => Kind::Hello,
        Target::Answer => Kind::Answer,
        Target::Message => Kind::Message,
        Target::Raft(decoder) => Kind::Raft(decoder),
        Target::Items => return Input::Items(wire::items(corpus, random), random.next()),
        Target::Follower => {
            let chance = random.next();
            return Input::Items(leader::session(chance, random), chance);
        }
        Target::Recovery | Target::Offline => {
            let at = random.below(corpus.directories.len() as u64) as usize;
            let mut directory = corpus.directories[at].clone();
            mutate_directory(&mut directory, corpus, target, random);
            return Input::Directory(Box::new(directory), random.next());
        }
    };
    let samples = &corpus.samples[&kind];
    let draw = |random: &mut Random| &samples[random.below(samples.len() as u64) as usize];
    let mut sample = draw(random).clone();
    if target == Target::BatchHeader {
        sample.bytes.truncate(64);
    }
    let other = &draw(random).bytes;
    mutate(random, &mut sample.bytes, other);
    if !random.one_in(6) {
        fix(kind, &mut sample);
    }
    Input::Bytes(sample)
}

fn fix(kind: Kind, sample: &mut Sample) {
    let (bytes, place) = (&mut sample.bytes, sample.life.at(sample.offset));
    match kind {
        Kind::Engine | Kind::Anchor => fix_block(bytes, 64, 0),
        Kind::Segment => fix_block(bytes, 144, 0),
        Kind::Footer => fix_block(bytes, 128, place),
        Kind::Batch => fix_batch(bytes, place),
        Kind::Frame => drop(fix_frame(bytes)),
        Kind::Hello | Kind::Answer | Kind::Message => wire::fix(kind, bytes),
        Kind::Raft(decoder) => raft::fix(decoder, bytes),
        Kind::Controls => {}
        Kind::Orphan => fix_orphan(bytes),
        Kind::Index => {
            if let Some(footer) = &mut sample.footer {
                let from = (footer.runs_offset.get() - footer.entries_offset.get()) as usize;
                let until = from + footer.runs.get() as usize * RUN_BYTES;
                let runs = bytes.get(from..until).unwrap_or_default();
                footer.runs_crc = crc32c::crc32c(runs).into();
            }
        }
        Kind::Start => {
            // Every batch in it, as far as they lead from one to the next.
            let mut at = 0;
            while let Some(batch) = bytes.get_mut(at..).filter(|rest| rest.len() >= 64) {
                fix_batch(batch, sample.life.at(sample.offset + at as u64));
                let length = u32::from_le_bytes([batch[48], batch[49], batch[50], batch[51]]);
                at = at.saturating_add((length as usize).next_multiple_of(4096).max(4096));
            }
        }
    }
}

/// Changes structures in the files, or the files themselves.
fn mutate_directory(
    directory: &mut Directory,
    corpus: &Corpus,
    target: Target,
    random: &mut Random,
) {
    for _ in 0..1 + random.below(3) {
        if random.one_in(8) {
            mutate_files(&mut directory.image, random);
        } else {
            let at = random.below(directory.spots.len() as u64) as usize;
            mutate_spot(directory, at, corpus, random);
        }
    }
    if target == Target::Offline && random.one_in(3) {
        let other = directory.engine.clone();
        for copy in 0..2 {
            let block = &mut directory.engine[copy * 4096..(copy + 1) * 4096];
            mutate_in_place(random, &mut block[..64], &other);
            fix_block(block, 64, 0);
        }
    }
}

fn mutate_spot(directory: &mut Directory, at: usize, corpus: &Corpus, random: &mut Random) {
    let Spot { kind, file, life, offset, length } = directory.spots[at].clone();
    let Some(bytes) = directory.image.get_mut(&file) else { return };
    let Some(part) = Arc::make_mut(bytes).get_mut(offset..offset + length) else { return };
    let samples = &corpus.samples[&kind];
    let other = &samples[random.below(samples.len() as u64) as usize].bytes;
    // What has no bytes but padding is not worth much.
    let until = if kind == Kind::Batch && !random.one_in(10) {
        let length = u32::from_le_bytes([part[48], part[49], part[50], part[51]]) as usize;
        length.clamp(64, part.len())
    } else {
        part.len()
    };
    mutate_in_place(random, &mut part[..until], other);
    if random.one_in(4) {
        return;
    }
    match kind {
        Kind::Anchor => fix_block(part, 64, 0),
        Kind::Segment => fix_block(part, 144, 0),
        Kind::Batch => fix_batch(part, life.at(offset as u64)),
        Kind::Footer => fix_block(part, 128, life.at(offset as u64)),
        Kind::Index => fix_index(directory, &file, life),
        _ => {}
    }
    // Both copies, or the other one tells.
    if kind == Kind::Segment && random.one_in(2) {
        let Some(bytes) = directory.image.get_mut(&file) else { return };
        if bytes.len() >= 8192 {
            Arc::make_mut(bytes).copy_within(offset..offset + length, 4096 - offset);
        }
    }
}

fn fix_index(directory: &mut Directory, file: &str, life: super::mutate::Life) {
    let footer_at = FooterHeader::offset(directory.segment_bytes) as usize;
    let Some(bytes) = directory.image.get_mut(file) else { return };
    let bytes = Arc::make_mut(bytes);
    let word = |bytes: &[u8], at: usize| -> usize {
        bytes
            .get(footer_at + at..footer_at + at + 8)
            .map_or(0, |word| u64::from_le_bytes(word.try_into().unwrap_or_default()) as usize)
    };
    let (entries_at, runs_at) = (word(bytes, 48), word(bytes, 56));
    let (entries, runs) = (word(bytes, 64) & 0xFFFF_FFFF, word(bytes, 64) >> 32);
    for (from, length, crc_at) in [(entries_at, entries * 20, 112), (runs_at, runs * 48, 36)] {
        let Some(part) = from.checked_add(length).and_then(|until| bytes.get(from..until)) else {
            return;
        };
        let crc = crc32c::crc32c(part).to_le_bytes();
        let Some(into) = bytes.get_mut(footer_at + crc_at..footer_at + crc_at + 4) else { return };
        into.copy_from_slice(&crc);
    }
    if let Some(block) = bytes.get_mut(footer_at..) {
        fix_block(block, 128, life.at(footer_at as u64));
    }
}

fn mutate_files(image: &mut Image, random: &mut Random) {
    let draw = |image: &Image, random: &mut Random| {
        let at = random.below(image.len() as u64) as usize;
        image.keys().nth(at).cloned()
    };
    let Some(name) = draw(image, random) else { return };
    let Some(bytes) = image.get(&name).cloned() else { return };
    match random.below(8) {
        0 => drop(image.remove(&name)),
        1 => {
            let mut shorter = bytes.to_vec();
            shorter.truncate(random.below(bytes.len() as u64 + 1) as usize);
            image.insert(name, Arc::new(shorter));
        }
        2 => {
            // Over another file, or under another name.
            let names = ["segment-00000077", "segment-18446744073709551615", "segment-0000000"];
            let to = match random.below(4) {
                at @ 0..3 => Some(names[at as usize].to_owned()),
                _ => draw(image, random),
            };
            image.extend(to.map(|to| (to, bytes)));
        }
        3 => {
            let mut longer = bytes.to_vec();
            longer.resize(bytes.len() + random.below(16_384) as usize, 0x5A);
            image.insert(name, Arc::new(longer));
        }
        _ => {
            // Blocks of zeros, of something else, or of another place.
            let mut changed = bytes.to_vec();
            let blocks = (bytes.len() / 4096).max(1) as u64;
            let (to, from) = (random.below(blocks), random.below(blocks));
            let (to, from) = (to as usize * 4096, from as usize * 4096);
            if to.max(from) + 4096 <= changed.len() {
                match random.below(3) {
                    0 => changed[to..to + 4096].fill(0),
                    1 => changed[to..to + 4096].fill(random.next() as u8),
                    _ => changed.copy_within(from..from + 4096, to),
                }
            }
            image.insert(name, Arc::new(changed));
        }
    }
}

impl Input {
    /// Bytes of it.
    pub fn length(&self) -> usize {
        match self {
            Input::Bytes(sample) => sample.bytes.len(),
            Input::Items(bytes, _) => bytes.len(),
            Input::Directory(directory, _) => {
                directory.image.values().map(|bytes| bytes.len()).sum::<usize>()
            }
        }
    }

    /// Its bytes in one archive, to be kept.
    pub fn archive(&self) -> Vec<u8> {
        match self {
            Input::Bytes(sample) => sample.bytes.clone(),
            Input::Items(bytes, _) => bytes.clone(),
            Input::Directory(directory, _) => {
                let mut files = crate::archive::Files::new();
                files.insert("engine".into(), directory.engine.clone());
                for (name, bytes) in &directory.image {
                    files.insert(format!("shard-00/{name}"), bytes.to_vec());
                }
                crate::archive::pack(&files)
            }
        }
    }
}

/// Feeds it.
pub fn execute(target: Target, input: &Input, bench: &Bench) -> Outcome {
    match input {
        Input::Bytes(sample) => decode(target, sample),
        Input::Items(bytes, chance) if target == Target::Follower => leader::follow(bytes, *chance),
        Input::Items(bytes, chance) => wire::received(bytes, *chance),
        Input::Directory(directory, chance) if target == Target::Offline => {
            look_offline(directory, *chance, bench)
        }
        Input::Directory(directory, chance) => recover(directory, *chance, bench),
    }
}

fn verdict<T, E>(result: Result<T, E>) -> Verdict {
    if result.is_ok() { Accepted } else { Refused }
}

/// What was accepted must be written as it was read.
fn same(what: &str, read: &[u8], written: &[u8]) -> Outcome {
    match read.get(..written.len()) == Some(written) {
        true => Ok(Accepted),
        false => Err(format!("{what}: decoded and encoded again it is another")),
    }
}

fn decode(target: Target, sample: &Sample) -> Outcome {
    let bytes = sample.bytes.as_slice();
    let (life, offset) = (sample.life, sample.offset);
    let seed = SegmentSeed::new(&life.engine_id, life.number, life.generation);
    let segment_bytes = sample.segment_bytes;
    let mut block = [0u8; 4096];
    match target {
        Target::EngineHeader => match EngineHeader::verify(bytes) {
            Err(_) => Ok(Refused),
            Ok(header) => {
                header.write(&mut block);
                same("engine header", bytes, &block[..64])
            }
        },
        Target::AnchorHeader => match AnchorHeader::verify(bytes) {
            Err(_) => Ok(Refused),
            Ok(header) => {
                header.write(&mut block);
                same("anchor", bytes, &block[..64])
            }
        },
        Target::SegmentHeader => match SegmentHeader::verify(bytes) {
            Err(_) => Ok(Refused),
            Ok(header) => {
                let _ = (header.predecessor(), header.seed());
                header.write(&mut block);
                same("segment header", bytes, &block[..144])
            }
        },
        Target::BatchHeader => {
            let _ = BatchHeader::verify_itself(bytes, &life.engine_id, life.number);
            match BatchHeader::verify(bytes, seed, offset) {
                Err(_) => Ok(Refused),
                Ok(header) => {
                    header.padded_length();
                    header.write(seed, offset, &mut block);
                    same("batch header", bytes, &block[..64])
                }
            }
        }
        Target::Batch => {
            let some = fuzzing::batch(bytes, false, seed, life.generation, offset);
            let all = fuzzing::batch(bytes, true, seed, life.generation, offset);
            match (some, all) {
                (Some(one), Some(other)) if one == other && one <= bytes.len() => Ok(Accepted),
                (None, None) => Ok(Refused),
                other => Err(format!("a batch is there and is not: {other:?}")),
            }
        }
        Target::Frame => match VerifiedFrame::verify(bytes) {
            Err(_) => Ok(Refused),
            Ok(frame) => check_frame(bytes, &frame),
        },
        Target::Controls => match fuzzing::controls(bytes) {
            Err(_) => Ok(Refused),
            Ok(again) if again == bytes => Ok(Accepted),
            Ok(_) => Err("facts: decoded and encoded again they are others".into()),
        },
        Target::Footer => match FooterHeader::verify(bytes, seed, segment_bytes) {
            Err(_) => Ok(Refused),
            Ok(footer) => {
                footer.write(seed, segment_bytes, &mut block);
                same("footer", bytes, &block[..128])
            }
        },
        Target::Index => {
            let Some(footer) = sample.footer else { return Ok(Refused) };
            let at = (footer.runs_offset.get() - footer.entries_offset.get()) as usize;
            let runs = match fuzzing::runs(&footer, bytes.get(at..).unwrap_or_default()) {
                Ok(runs) => runs,
                Err(_) => return Ok(Refused),
            };
            for run in &runs {
                let from = run.entry.get() as usize * 20;
                let entries = bytes.get(from..).unwrap_or_default();
                if let Ok(again) = fuzzing::entries(run, entries, segment_bytes) {
                    same("entries", entries, &again)?;
                }
            }
            Ok(Accepted)
        }
        Target::FirstCheckpoint => {
            let listed = fuzzing::first_checkpoint(bytes, true, seed, life.generation);
            let _ = fuzzing::first_checkpoint(bytes, false, seed, life.generation);
            Ok(if listed.is_some() { Accepted } else { Refused })
        }
        Target::Orphan => read_orphan(bytes),
        Target::Text => {
            let text = String::from_utf8_lossy(&bytes[..bytes.len().min(40)]);
            let number = fuzzing::segment_number(&format!("segment-{text}"));
            let digits: String =
                bytes.iter().take(22).map(|byte| (b'0' + byte % 10) as char).collect();
            let other = fuzzing::segment_number(&format!("segment-{digits}"));
            let cut = format!("{}:{digits}:{}", bytes.len() % 70, bytes.len());
            let cut = cut.parse::<offline::Cut>().or_else(|_| text.parse());
            Ok(if number.or(other).is_some() || cut.is_ok() { Accepted } else { Refused })
        }
        Target::Hello => wire::hello(bytes),
        Target::Answer => wire::answer(bytes),
        Target::Message => wire::message(bytes),
        Target::Raft(decoder) => raft::check(decoder, bytes),
        Target::Items | Target::Follower | Target::Recovery | Target::Offline => Ok(Refused),
    }
}

/// What is given is the continuation of what was given before; a whole file has all of it.
fn read_orphan(bytes: &[u8]) -> Outcome {
    let (mut next, mut records) = (None, 0);
    let mut is_in_order = true;
    let (state, facts, frames) = fuzzing::orphan(bytes, |frame| {
        let base = frame.header.base_offset.get();
        is_in_order &= next.is_none_or(|next| next <= base);
        next = Some(frame.header.end_offset());
        records += frame.records().count() as u64;
    });
    if !is_in_order || frames.bytes > bytes.len() as u64 || records > frames.records {
        return Err("an orphan gives more than it holds".into());
    }
    let (OrphanState::Whole, Some(facts)) = (state, facts) else { return Ok(Refused) };
    let is_all = facts.end_offset - facts.base_offset == records
        && next == Some(facts.end_offset)
        && frames.bytes as usize + ORPHAN_HEADER_BYTES + ORPHAN_TRAILER_BYTES == bytes.len();
    if is_all { Ok(Accepted) } else { Err("an orphan is whole and lacks something".into()) }
}

fn check_frame(bytes: &[u8], frame: &VerifiedFrame<'_>) -> Outcome {
    let header = &frame.header;
    let records: usize = match frame.kind {
        FrameKind::Data => frame.records().map(|record| record.len() + 4).sum(),
        FrameKind::Control | FrameKind::Void => frame.payload.len(),
    };
    if records != frame.payload.len() {
        return Err("a frame's records do not make up its payload".into());
    }
    let written = FrameHeader::new(
        frame.kind,
        header.stream.get(),
        header.epoch.get(),
        header.base_offset.get(),
        header.count.get(),
        header.timestamp_ns.get(),
        frame.payload,
    );
    let is_plain =
        header.reserved == 0 && header.reserved_tail.get() == 0 && header.reserved_end.get() == 0;
    if is_plain && FrameHeader::stored_crc(&bytes[..FRAME_HEADER_BYTES]) != written.crc.get() {
        return Err("frame: decoded and encoded again it is another".into());
    }
    Ok(Accepted)
}

fn options() -> Options {
    let options = Engine::options().batch_bytes_max(16 << 10).idle_seal(None);
    options.segments_reserved(1).segments_free_max(1)
}

/// Opens, reads, writes on, closes, and opens again what that has left.
fn recover(directory: &Directory, chance: u64, bench: &Bench) -> Outcome {
    let disk = MemoryDisk::new(directory.image.clone(), bench.pool.clone());
    let open = |disk: &MemoryDisk, read_only: bool| {
        let options = options().read_only(read_only);
        let disk = Box::new(disk.clone());
        options.open_on(disk, directory.engine_id, directory.segment_bytes, Clock::real())
    };
    let outcome = (|| {
        let Ok(shard) = open(&disk, true) else { return Ok(Refused) };
        read_all(&shard);
        let is_damaged = !shard.recovery().damages.is_empty();
        shard.abandon();
        if disk.files() != directory.image {
            return Err("a read-only open has changed something".into());
        }
        if !chance.is_multiple_of(4) {
            return Ok(if is_damaged { Refused } else { Accepted });
        }
        let mut shard = match open(&disk, false) {
            Ok(_) if is_damaged => return Err("damage is opened for writing".into()),
            Ok(shard) => shard,
            Err(_) if disk.files() != directory.image && is_damaged => {
                return Err("a refused open has changed something".into());
            }
            Err(_) => return Ok(Refused),
        };
        read_all(&shard);
        let written = write_on(&mut shard);
        if chance.is_multiple_of(8) {
            shard.abandon();
        } else {
            let _ = shard.close();
        }
        let again =
            open(&disk, true).map_err(|error| format!("not to be opened again: {error}"))?;
        if let Some((stream, offset)) = written
            && again.recovery().damages.is_empty()
        {
            let mut records = again.read(stream, offset..).map_err(|error| error.to_string())?;
            let record = records.next().ok_or("what was written on is gone")?;
            let record = record.map_err(|error| format!("what was written on: {error}"))?;
            if record.payload() != b"on" {
                return Err("what was written on has changed".into());
            }
        }
        again.abandon();
        Ok(Accepted)
    })();
    match disk.is_exhausted() {
        true => Err("recovery goes on and on".into()),
        false => outcome,
    }
}

fn write_on(shard: &mut Shard) -> Option<(StreamId, u64)> {
    let stream = StreamId::new(4242);
    let token = shard.append(stream, b"on").ok()?;
    for _ in 0..1000 {
        if let Some(receipt) = token.try_receipt() {
            return receipt.ok().map(|receipt| (stream, receipt.offset()));
        }
        shard.run_once(None).ok()?;
    }
    None
}

fn read_all(shard: &Shard) {
    for summary in shard.streams().iter().take(32) {
        let Ok(records) = shard.read(summary.stream, ..) else { continue };
        for record in records.take(RECORDS_MAX) {
            if record.is_err() {
                break;
            }
        }
    }
}

fn look_offline(directory: &Directory, chance: u64, bench: &Bench) -> Outcome {
    let data = bench.place.path().join("data");
    let _ = std::fs::remove_dir_all(&data);
    let write = || -> std::io::Result<()> {
        std::fs::create_dir_all(data.join("shard-00"))?;
        std::fs::write(data.join("engine"), &directory.engine)?;
        for (name, bytes) in &directory.image {
            std::fs::write(data.join("shard-00").join(name), bytes.as_slice())?;
        }
        Ok(())
    };
    write().map_err(|error| format!("writing to {}: {error}", data.display()))?;
    let inspection = offline::inspect(&data);
    // Segments that are short are lengthened, and new ones prepared, in all their length.
    let is_large =
        inspection.as_ref().is_ok_and(|found| found.segment_bytes > SEGMENT_BYTES_WRITTEN);
    let inspected = verdict(inspection);
    if let Ok(snapshot) = offline::Snapshot::open(&data) {
        let _ = snapshot.visit(|_| std::ops::ControlFlow::Continue(()));
    }
    let options = options().io(Io::Blocking).pool_bytes(1 << 20);
    if let Ok(engine) = options.clone().read_only(true).open(&data) {
        let _ = engine.close();
    }
    let Ok(verification) = offline::verify(&data) else { return Ok(inspected) };
    let backup = bench.place.path().join("data/backup");
    let repair = RepairOptions {
        dry_run: is_large || chance.is_multiple_of(2),
        accept_loss_from: verification.cuts.clone(),
        backup,
    };
    let repaired = offline::repair(&data, &repair);
    if let Ok(repair) = repaired
        && let Some(after) = repair.after
        && !after.is_damaged()
        && let Err(error) = options.open(&data)
    {
        return Err(format!("repaired and not to be opened: {error}"));
    }
    Ok(inspected)
}
