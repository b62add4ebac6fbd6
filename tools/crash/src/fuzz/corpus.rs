//! The files that fuzzing starts from: small directories in archives, and the structures in them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use ringwal_engine::format::{
    BatchHeader, DATA_START, EngineHeader, FooterHeader, FrameHeader, FrameKind, OrphanFacts,
    OrphanFrames, OrphanHeader, OrphanTrailer, SegmentHeader, verify_frames,
};
use ringwal_engine::{Append, Engine, Io, Options, Shard, StreamId};
use ringwal_raft_fallback::fuzzing::Decoder;
use zerocopy::IntoBytes;

use super::disk::Image;
use super::mutate::Life;
use super::{raft, wire};
use crate::archive::{Files, pack, unpack};

const FOLDER: &str = "shard-00/";
const SEGMENT_BYTES: u64 = 64 << 10;

const ARCHIVES: [(&str, &[u8]); 6] = [
    ("closed", include_bytes!("../../corpus/closed.rwd")),
    ("killed", include_bytes!("../../corpus/killed.rwd")),
    ("torn", include_bytes!("../../corpus/torn.rwd")),
    ("sealed", include_bytes!("../../corpus/sealed.rwd")),
    ("trimmed", include_bytes!("../../corpus/trimmed.rwd")),
    ("moved", include_bytes!("../../corpus/moved.rwd")),
];

/// What a part of a file is.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Kind {
    Engine,
    Anchor,
    Segment,
    Batch,
    Frame,
    Controls,
    Footer,
    Index,
    /// The batches that a segment starts with.
    Start,
    /// A whole file.
    Orphan,
    Hello,
    Answer,
    Message,
    Raft(Decoder),
}

/// A part of a file.
#[derive(Clone, Debug)]
pub struct Sample {
    pub bytes: Vec<u8>,
    pub life: Life,
    pub offset: u64,
    pub segment_bytes: u64,
    /// The footer that an index belongs to.
    pub footer: Option<FooterHeader>,
}

/// Where a structure with a checksum is in a directory.
#[derive(Clone, Debug)]
pub struct Spot {
    pub kind: Kind,
    pub file: String,
    pub life: Life,
    pub offset: usize,
    pub length: usize,
}

/// A directory of one shard.
#[derive(Clone, Debug)]
pub struct Directory {
    pub engine_id: [u8; 16],
    pub segment_bytes: u64,
    pub engine: Vec<u8>,
    /// The shard's folder.
    pub image: Image,
    pub spots: Vec<Spot>,
}

/// Everything that there is to start from.
#[derive(Debug, Default)]
pub struct Corpus {
    pub samples: BTreeMap<Kind, Vec<Sample>>,
    pub directories: Vec<Directory>,
}

impl Corpus {
    /// Takes the archives apart.
    pub fn load() -> Result<Self> {
        let mut corpus = Self::default();
        for (name, archive) in ARCHIVES {
            let files = unpack(archive).with_context(|| format!("corpus/{name}.rwd"))?;
            corpus.take(files).with_context(|| format!("corpus/{name}.rwd"))?;
        }
        let life = Life { engine_id: [7; 16], ..Life::default() };
        let orphans = [orphan(1), orphan(4)].map(|bytes| (Kind::Orphan, bytes));
        for (kind, bytes) in orphans.into_iter().chain(wire::seeds()?).chain(raft::seeds()) {
            corpus.put(kind, Sample { bytes, life, offset: 0, segment_bytes: 0, footer: None });
        }
        Ok(corpus)
    }

    fn take(&mut self, mut files: Files) -> Result<()> {
        let engine = files.remove("engine").context("no engine file")?;
        let header = EngineHeader::verify(&engine)?;
        let (engine_id, segment_bytes) = (header.engine_id, header.segment_bytes.get());
        let life = Life { engine_id, ..Life::default() };
        let mut directory =
            Directory { engine_id, segment_bytes, engine, image: Image::new(), spots: Vec::new() };
        let sample = |bytes: &[u8]| Sample {
            bytes: bytes.to_vec(),
            life,
            offset: 0,
            segment_bytes,
            footer: None,
        };
        self.put(Kind::Engine, sample(&directory.engine[..64]));
        for (path, bytes) in files {
            let Some(file) = path.strip_prefix(FOLDER) else { continue };
            if file == "anchor" {
                for offset in [0, 4096] {
                    self.put(Kind::Anchor, sample(&bytes[offset..offset + 64]));
                    directory.spot(Kind::Anchor, file, life, offset, 64);
                }
            } else if let Ok(header) = SegmentHeader::verify(&bytes) {
                self.take_segment(&mut directory, file, &bytes, &header)?;
            }
            directory.image.insert(file.to_owned(), Arc::new(bytes));
        }
        self.directories.push(directory);
        Ok(())
    }

    fn take_segment(
        &mut self,
        directory: &mut Directory,
        file: &str,
        bytes: &[u8],
        header: &SegmentHeader,
    ) -> Result<()> {
        let (number, generation) = (header.number.get(), header.generation.get());
        let life = Life { engine_id: header.engine_id, number, generation };
        let segment_bytes = header.segment_bytes.get();
        let part = |bytes: &[u8], offset: usize| Sample {
            bytes: bytes.to_vec(),
            life,
            offset: offset as u64,
            segment_bytes,
            footer: None,
        };
        self.put(Kind::Segment, part(&bytes[..144], 0));
        for offset in [0, 4096] {
            directory.spot(Kind::Segment, file, life, offset, 144);
        }
        let mut at = DATA_START as usize;
        while let Ok(batch) = BatchHeader::verify(&bytes[at..], header.seed(), at as u64) {
            let whole = &bytes[at..at + batch.padded_length()];
            self.put(Kind::Batch, part(whole, at));
            directory.spot(Kind::Batch, file, life, at, whole.len());
            let mut frames = Vec::new();
            let _ = verify_frames(&batch, whole, |from, frame| frames.push((from, frame)));
            for (from, frame) in frames {
                let until = from + frame.header.frame_length();
                self.put(Kind::Frame, part(&whole[from..until], 0));
                if frame.kind == FrameKind::Control {
                    self.put(Kind::Controls, part(frame.payload, 0));
                }
            }
            at += whole.len();
        }
        let start = DATA_START as usize;
        let until = at.min(start + (16 << 10));
        if until > start {
            self.put(Kind::Start, part(&bytes[start..until], start));
        }
        let footer_at = FooterHeader::offset(segment_bytes) as usize;
        if let Ok(footer) = FooterHeader::verify(&bytes[footer_at..], header.seed(), segment_bytes)
        {
            self.put(Kind::Footer, part(&bytes[footer_at..footer_at + 128], footer_at));
            directory.spot(Kind::Footer, file, life, footer_at, 128);
            let from = footer.entries_offset.get() as usize;
            let index = Sample { footer: Some(footer), ..part(&bytes[from..footer_at], from) };
            self.put(Kind::Index, index);
            directory.spot(Kind::Index, file, life, from, footer_at - from);
        }
        Ok(())
    }

    fn put(&mut self, kind: Kind, sample: Sample) {
        self.samples.entry(kind).or_default().push(sample);
    }
}

impl Directory {
    fn spot(&mut self, kind: Kind, file: &str, life: Life, offset: usize, length: usize) {
        self.spots.push(Spot { kind, file: file.to_owned(), life, offset, length });
    }
}

/// An orphan file of so many frames, as replication writes it.
fn orphan(frames: u64) -> Vec<u8> {
    let facts = OrphanFacts {
        engine_id: [7; 16],
        stream: 7,
        base_offset: 10,
        end_offset: 10 + 2 * frames,
        time_ns: 1,
        leader: 2,
        epoch: 9,
        run: [1; 16],
    };
    let header = OrphanHeader::new(&facts);
    let (mut bytes, mut counted) = (header.as_bytes().to_vec(), OrphanFrames::default());
    for frame in 0..frames {
        let payload = [5u32.to_le_bytes().as_slice(), b"bytes", &0u32.to_le_bytes()].concat();
        let (epoch, base) = (3 + frame / 2, 10 + 2 * frame);
        let frame = FrameHeader::new(FrameKind::Data, 7, epoch, base, 2, 1, &payload);
        counted.add(&frame);
        bytes.extend_from_slice(frame.as_bytes());
        bytes.extend_from_slice(&payload);
    }
    bytes.extend_from_slice(OrphanTrailer::new(&header, &counted).as_bytes());
    bytes
}

/// Writes the archives anew; each is a directory that this version has really written, or what it
/// sends.
///
/// # Errors
/// When something cannot be written.
pub fn write(folder: &Path) -> Result<Vec<(String, usize)>> {
    std::fs::create_dir_all(folder)?;
    let archive = pack(&wire::make());
    std::fs::write(folder.join("wire.rwd"), &archive)?;
    let mut written = vec![("wire".to_owned(), archive.len())];
    for (name, _) in ARCHIVES {
        let place = tempfile::tempdir()?;
        let data = place.path().join("data");
        make(name, &data).with_context(|| format!("making {name}"))?;
        let mut files = Files::new();
        files.insert("engine".into(), std::fs::read(data.join("engine"))?);
        for entry in std::fs::read_dir(data.join(FOLDER))? {
            let entry = entry?;
            let name = format!("{FOLDER}{}", entry.file_name().to_string_lossy());
            files.insert(name, std::fs::read(entry.path())?);
        }
        let archive = pack(&files);
        std::fs::write(folder.join(format!("{name}.rwd")), &archive)?;
        written.push((name.to_owned(), archive.len()));
    }
    Ok(written)
}

fn options() -> Options {
    let options = Engine::options().io(Io::Blocking).segment_bytes(SEGMENT_BYTES);
    options.idle_seal(None).pool_bytes(1 << 20).segments_free_max(1).segments_reserved(1)
}

/// Appends, one batch for each record.
fn append(shard: &mut Shard, stream: u64, records: u64) -> Result<()> {
    for number in 0..records {
        let record = vec![b'a' + (number % 26) as u8; 1 + (number % 90) as usize];
        let token = shard.append(StreamId::new(stream), record)?;
        wait(shard, &token)?;
    }
    Ok(())
}

fn wait(shard: &mut Shard, token: &Append) -> Result<()> {
    while token.try_receipt().transpose()?.is_none() {
        shard.run_once(None)?;
    }
    Ok(())
}

fn change(shard: &mut Shard, change: ringwal_engine::Change) -> Result<()> {
    while change.try_receipt().transpose()?.is_none() {
        shard.run_once(None)?;
    }
    Ok(())
}

fn trim(shard: &mut Shard, stream: u64, before: u64) -> Result<()> {
    let token = shard.trim(StreamId::new(stream), before)?;
    change(shard, token)
}

fn make(name: &str, data: &Path) -> Result<()> {
    let mut shard = options().open_shard(data)?;
    append(&mut shard, 7, 3)?;
    match name {
        "closed" => {
            let records: Vec<_> = (0..5u8).map(|byte| vec![byte; 20]).collect();
            let token = shard.append_batch(StreamId::new(9), &records)?;
            while token.try_receipt().transpose()?.is_none() {
                shard.run_once(None)?;
            }
            return shard.close().map(drop).map_err(Into::into);
        }
        "killed" => append(&mut shard, 8, 4)?,
        "torn" => {
            append(&mut shard, 8, 4)?;
            shard.abandon();
            // The newest batch is there in part only.
            let end = ringwal_engine::offline::inspect(data)?.shards[0].end;
            let path = data.join(format!("{FOLDER}segment-{:08}", end.number));
            let mut bytes = std::fs::read(&path)?;
            let last = (end.offset - 4096) as usize;
            bytes[last + 100..last + 4096].fill(0);
            std::fs::write(path, bytes)?;
            return Ok(());
        }
        "sealed" => append(&mut shard, 8, 30)?,
        "trimmed" => {
            append(&mut shard, 8, 20)?;
            trim(&mut shard, 8, 18)?;
            let cut = shard.truncate(StreamId::new(8), 19, 3)?;
            change(&mut shard, cut)?;
            append(&mut shard, 8, 2)?;
            shard.abandon();
            let mut shard = options().open_shard(data)?;
            append(&mut shard, 7, 14)?;
            trim(&mut shard, 7, 16)?;
            append(&mut shard, 9, 2)?;
            shard.abandon();
            return Ok(());
        }
        _ => {
            for _ in 0..6 {
                append(&mut shard, 20, 1)?;
                append(&mut shard, 8, 12)?;
                let end = shard.streams().iter().map(|stream| stream.end).max().unwrap_or(0);
                trim(&mut shard, 8, end.saturating_sub(1))?;
            }
        }
    }
    shard.abandon();
    Ok(())
}
