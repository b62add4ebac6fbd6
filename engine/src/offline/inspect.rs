//! What a directory holds, from headers, footers and the batches that recovery has to read.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::disk::Disk;
use crate::error::OpenError;
use crate::format::JournalEnd;
use crate::opening::{ANCHOR, Survey};
use crate::recovery::{Damage, WalkedContents, WalkedSegment};
use crate::segments::segment_number;
use crate::stream::{EpochStart, StreamId};

use super::StreamRange;
use super::files::{Owner, SegmentFile, segment_files};
use super::site::Site;
use super::snapshot::settle;

/// A directory as it is at one moment.
#[derive(Clone, Debug)]
pub struct Inspection {
    /// Which one.
    pub directory: PathBuf,
    /// Random identity of the engine.
    pub engine_id: [u8; 16],
    /// Version of the format: major, minor.
    pub format: (u32, u32),
    /// Length of every segment file, in bytes.
    pub segment_bytes: u64,
    /// Whether an engine has it open.
    pub in_use: bool,
    /// Its shards, in order.
    pub shards: Vec<ShardInspection>,
}

/// One shard.
#[derive(Clone, Debug)]
pub struct ShardInspection {
    /// Its number.
    pub shard: u16,
    /// How often it was opened for writing.
    pub incarnation: u64,
    /// Number and generation of the segment with which the newest open began, as its anchor says.
    pub anchor: Option<(u64, u64)>,
    /// End of its journal.
    pub end: JournalEnd,
    /// Where a torn tail begins, if there is one: file and byte.
    pub torn: Option<(String, u64)>,
    /// What recovery would refuse to open for.
    pub damages: Vec<Damage>,
    /// Records that should be there and are not.
    pub missing: Vec<StreamRange>,
    /// The files in its folder but for the anchor, by name.
    pub files: Vec<FileInspection>,
    /// Its streams, by id.
    pub streams: Vec<StreamInspection>,
}

/// What a segment file is.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum FileState {
    /// Holds batches that count and has its index.
    Sealed,
    /// Holds batches that count, without an index: the next open seals it.
    Live,
    /// As live, and the newest: an engine writes to it, or did last.
    Open,
    /// Prepared, holds no batch.
    Unused,
    /// Nothing in it counts any more; it will be used again.
    Free,
    /// Belongs to another engine, shard or number.
    Foreign,
    /// Zeros so far: kept in reserve, or its preparing was cut short.
    Unprepared,
    /// Has no valid header and is not blank.
    Unreadable,
    /// Neither a segment nor the anchor.
    Other,
}

impl FileState {
    /// In a word or a few.
    pub fn word(self) -> &'static str {
        match self {
            Self::Sealed => "sealed",
            Self::Live => "live",
            Self::Open => "open",
            Self::Unused => "unused",
            Self::Free => "free",
            Self::Foreign => "foreign",
            Self::Unprepared => "not prepared yet",
            Self::Unreadable => "unreadable",
            Self::Other => "other",
        }
    }
}

/// A file of a shard. Counts are zero where it holds nothing that counts.
#[derive(Clone, Debug)]
pub struct FileInspection {
    /// Its name.
    pub name: String,
    /// Its length in bytes.
    pub length: u64,
    /// What it is.
    pub state: FileState,
    /// Life of the file, where its header tells.
    pub generation: Option<u64>,
    /// Which open wrote it, where its header tells.
    pub incarnation: Option<u64>,
    /// Batches.
    pub batches: u64,
    /// Sequences of the first and the last batch.
    pub sequences: Option<(u64, u64)>,
    /// Byte after the last batch.
    pub end_offset: u64,
    /// Records, also trimmed and moved ones.
    pub records: u64,
    /// Their payload bytes.
    pub payload_bytes: u64,
    /// Whether a valid footer ends it.
    pub has_footer: bool,
    /// Number and generation of the segment that follows, when the footer names one.
    pub successor: Option<(u64, u64)>,
}

/// A stream.
#[derive(Clone, Debug)]
pub struct StreamInspection {
    /// Which one.
    pub stream: StreamId,
    /// First offset that is not trimmed.
    pub trimmed: u64,
    /// Offset after the last record.
    pub end: u64,
    /// Its epochs, oldest first.
    pub epochs: Vec<EpochStart>,
    /// Which segment holds which of its records.
    pub spans: Vec<StreamSpan>,
}

/// Records of a stream in one segment.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct StreamSpan {
    /// Number of the segment.
    pub segment: u64,
    /// Its generation.
    pub generation: u64,
    /// Which records.
    pub offsets: Range<u64>,
}

/// Looks at a directory; also beside a running engine, as it is at one moment then.
///
/// # Errors
/// When it holds no engine, was written by a newer version, or cannot be read. Damage is no error.
pub fn inspect(directory: impl AsRef<Path>) -> Result<Inspection, OpenError> {
    let directory = directory.as_ref();
    settle(directory, |site| {
        let shards: Vec<_> =
            site.shards().map(|shard| inspect_shard(site, shard)).collect::<Result<_, _>>()?;
        let settled = shards.iter().all(|shard| shard.damages.is_empty());
        let inspection = Inspection {
            directory: directory.to_owned(),
            engine_id: site.header.engine_id,
            format: (site.header.major.get(), site.header.minor.get()),
            segment_bytes: site.directory.segment_bytes,
            in_use: Site::is_in_use(directory),
            shards,
        };
        Ok((inspection, settled))
    })
}

fn inspect_shard(site: &Site, shard: u16) -> Result<ShardInspection, OpenError> {
    let (mut disk, survey) = site.survey(shard, None, &HashMap::new())?;
    let segments = segment_files(site, shard, &mut disk)?;
    let path = site.directory.shard_path(shard);
    let mut files: Vec<_> =
        segments.iter().map(|file| inspect_file(site, shard, &survey, file)).collect();
    let others = disk.list().map_err(OpenError::io("list", path))?;
    let is_other = |name: &str| segment_number(name).is_none() && name != ANCHOR;
    files.extend(
        others.into_iter().filter(|entry| is_other(&entry.name)).map(|entry| FileInspection {
            name: entry.name,
            ..blank(entry.length, FileState::Other)
        }),
    );
    files.sort_by(|left, right| left.name.cmp(&right.name));
    let Survey { anchor, plan, recovered, file_damages } = survey;
    let numbers: HashMap<u64, u64> =
        recovered.index.segments.iter().map(|(id, segment)| (*id, segment.number)).collect();
    let mut streams: Vec<_> = recovered
        .index
        .streams
        .iter()
        .map(|(stream, state)| StreamInspection {
            stream: *stream,
            trimmed: state.trimmed,
            end: state.end,
            epochs: state.epochs.entries().to_vec(),
            spans: state
                .spans()
                .iter()
                .map(|span| StreamSpan {
                    segment: numbers.get(&span.generation).copied().unwrap_or_default(),
                    generation: span.generation,
                    offsets: span.base..span.end,
                })
                .collect(),
        })
        .collect();
    streams.sort_by_key(|stream| stream.stream);
    let missing = recovered.missing.iter().flat_map(|(stream, range)| {
        let epochs = &recovered.index.streams[stream].epochs;
        StreamRange::split(*stream, epochs, range.clone())
    });
    Ok(ShardInspection {
        shard,
        incarnation: plan.incarnation,
        anchor: anchor.map(|anchor| (anchor.first_number.get(), anchor.first_generation.get())),
        end: recovered.end,
        torn: recovered.torn.clone(),
        missing: missing.collect(),
        damages: file_damages.into_iter().chain(recovered.damages).collect(),
        files,
        streams,
    })
}

fn blank(length: u64, state: FileState) -> FileInspection {
    FileInspection {
        name: String::new(),
        length,
        state,
        generation: None,
        incarnation: None,
        batches: 0,
        sequences: None,
        end_offset: 0,
        records: 0,
        payload_bytes: 0,
        has_footer: false,
        successor: None,
    }
}

fn inspect_file(site: &Site, shard: u16, survey: &Survey, file: &SegmentFile) -> FileInspection {
    let header = file.header();
    let base = FileInspection {
        name: file.name.clone(),
        generation: header.map(|header| header.generation.get()),
        incarnation: header.map(|header| header.incarnation.get()),
        ..blank(file.length, FileState::Unreadable)
    };
    match file.owner(site, shard) {
        Owner::Unknown if file.blocks.iter().all(|byte| *byte == 0) => {
            return FileInspection { state: FileState::Unprepared, ..base };
        }
        Owner::Unknown => return base,
        Owner::OtherEngine | Owner::Misplaced { .. } => {
            return FileInspection { state: FileState::Foreign, ..base };
        }
        Owner::This => {}
    }
    let live = &survey.recovered.live;
    let is_it = |segment: &&WalkedSegment| Some(segment.found.generation()) == base.generation;
    let Some(segment) = live.iter().find(is_it) else {
        // What was prepared since the journal's end was never written to.
        let is_new = base.generation > Some(survey.recovered.end.generation);
        let was_cut = survey.plan.unused.iter().any(|found| found.name == file.name);
        let state = if is_new && !was_cut { FileState::Unused } else { FileState::Free };
        return FileInspection { state, ..base };
    };
    let newest = live.last().map(|last| last.found.generation());
    let state = match &segment.contents {
        WalkedContents::Sealed(..) => FileState::Sealed,
        WalkedContents::Scanned(_) if newest == base.generation => FileState::Open,
        WalkedContents::Scanned(_) => FileState::Live,
    };
    let successor = segment.found.footer.and_then(|footer| {
        let generation = footer.successor_generation.get();
        (generation != 0).then(|| (footer.successor_number.get(), generation))
    });
    FileInspection {
        state,
        batches: segment.last_sequence - segment.first_sequence + 1,
        sequences: Some((segment.first_sequence, segment.last_sequence)),
        end_offset: segment.end_offset,
        records: segment.records,
        payload_bytes: segment.payload_bytes,
        has_footer: segment.found.footer.is_some(),
        successor,
        ..base
    }
}
