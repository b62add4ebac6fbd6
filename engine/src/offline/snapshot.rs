//! The records of a directory as they are at one moment, also beside a running engine.

use std::collections::HashMap;
use std::ops::{ControlFlow, Range, RangeBounds};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Clock;
use crate::control::Control;
use crate::disk::{Disk, FileId};
use crate::engine::{StreamSummary, summaries};
use crate::error::{OpenError, ReadError};
use crate::format::{
    DATA_START, FRAME_HEADER_BYTES, JournalEnd, Records as FrameRecords, SegmentSeed,
};
use crate::queue::QueueState;
use crate::reader::Records;
use crate::recovery::{Damage, WalkedContents};
use crate::scan::{Found, VerifiedBatch};
use crate::shared::Shared;
use crate::stats::ShardStats;
use crate::stream::StreamId;

use super::files::segment_files;
use super::places::{Place, Source};
use super::site::{Hold, Site};
use super::spans_by_generation;

/// Looks at a running engine's files that gave a contradiction; more means damage.
const ATTEMPTS: usize = 12;
const BETWEEN_ATTEMPTS: Duration = Duration::from_millis(10);

/// Reads a directory that an engine may be writing to: what looks damaged is read again, since the
/// engine may have changed it between two reads. `read` says whether all was well.
pub(super) fn settle<T>(
    directory: &Path,
    read: impl Fn(&Site) -> Result<(T, bool), OpenError>,
) -> Result<T, OpenError> {
    for _ in 1..ATTEMPTS {
        let outcome = Site::open(directory, Hold::Not).and_then(|site| read(&site));
        match outcome {
            Ok((value, true)) => return Ok(value),
            Ok((value, false)) if !Site::is_in_use(directory) => return Ok(value),
            Err(error) if !Site::is_in_use(directory) => return Err(error),
            Ok(_) | Err(_) => std::thread::sleep(BETWEEN_ATTEMPTS),
        }
    }
    read(&Site::open(directory, Hold::Not)?).map(|(value, _)| value)
}

/// A segment that holds records.
struct LiveSegment {
    name: String,
    file: FileId,
    generation: u64,
    seed: SegmentSeed,
    end_offset: u64,
}

struct ShardSnapshot {
    shared: Arc<Shared>,
    live: Vec<LiveSegment>,
    end: JournalEnd,
    /// The last live segment takes batches still, as far as is known.
    is_open: bool,
    damages: Vec<Damage>,
}

/// The records of a directory at one moment. Takes no lock, so an engine may run in it; what it
/// frees meanwhile is gone for this snapshot too. Records show as soon as they are in the file,
/// which may be a moment before they are durable.
pub struct Snapshot {
    directory: PathBuf,
    shards: Vec<ShardSnapshot>,
}

/// A record that [`Snapshot::visit`] came by.
#[derive(Copy, Clone, Debug)]
pub struct VisitedRecord<'a> {
    /// Its stream.
    pub stream: StreamId,
    /// The epoch that wrote it.
    pub epoch: u64,
    /// Its offset.
    pub offset: u64,
    /// Its bytes.
    pub payload: &'a [u8],
}

impl Snapshot {
    /// Opens a directory for reading only.
    ///
    /// # Errors
    /// When it holds no engine, was written by a newer version, or cannot be read. Damage is no
    /// error: see [`Snapshot::damages`].
    pub fn open(directory: impl AsRef<Path>) -> Result<Self, OpenError> {
        let directory = directory.as_ref();
        let shards = settle(directory, |site| {
            let shards: Vec<ShardSnapshot> =
                site.shards().map(|shard| open_shard(site, shard)).collect::<Result<_, _>>()?;
            let settled = shards.iter().all(|shard| shard.damages.is_empty());
            Ok((shards, settled))
        })?;
        Ok(Self { directory: directory.to_owned(), shards })
    }

    /// What recovery found damaged: shard and damage. The rest can be read.
    pub fn damages(&self) -> Vec<(u16, Damage)> {
        self.shards
            .iter()
            .flat_map(|shard| {
                shard.damages.iter().map(|damage| (shard.shared.shard, damage.clone()))
            })
            .collect()
    }

    /// All streams, by id.
    pub fn streams(&self) -> Vec<StreamSummary> {
        let mut streams: Vec<_> =
            self.shards.iter().flat_map(|shard| summaries(&shard.shared)).collect();
        streams.sort_by_key(|summary| summary.stream);
        streams
    }

    /// The records of one stream, in order.
    ///
    /// # Errors
    /// When the start has been trimmed.
    pub fn read(
        &self,
        stream: StreamId,
        offsets: impl RangeBounds<u64>,
    ) -> Result<Option<Records>, ReadError> {
        let holds = |shard: &&ShardSnapshot| shard.shared.index().streams.contains_key(&stream);
        let shard = self.shards.iter().find(holds);
        shard.map(|shard| Records::new(shard.shared.clone(), stream, offsets)).transpose()
    }

    /// Calls `each` for every record that counts, in the order in which each shard wrote them:
    /// a moved record comes where it was moved to. Reads every segment once. Returns what could
    /// not be read.
    ///
    /// # Errors
    /// When the device fails.
    pub fn visit(
        &self,
        mut each: impl FnMut(VisitedRecord<'_>) -> ControlFlow<()>,
    ) -> Result<Vec<Damage>, OpenError> {
        let mut damages = Vec::new();
        for shard in &self.shards {
            let spans = spans_by_generation(&shard.shared.index());
            for segment in &shard.live {
                let Some(spans) = spans.get(&segment.generation) else { continue };
                let mut by_stream: HashMap<StreamId, Vec<Range<u64>>> = HashMap::new();
                for (stream, range) in spans {
                    by_stream.entry(*stream).or_default().push(range.clone());
                }
                if self
                    .visit_segment(shard, segment, &by_stream, &mut damages, &mut each)?
                    .is_break()
                {
                    return Ok(damages);
                }
            }
        }
        Ok(damages)
    }

    fn visit_segment(
        &self,
        shard: &ShardSnapshot,
        segment: &LiveSegment,
        spans: &HashMap<StreamId, Vec<Range<u64>>>,
        damages: &mut Vec<Damage>,
        each: &mut impl FnMut(VisitedRecord<'_>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, OpenError> {
        let source = shard.source(segment);
        let mut flow = ControlFlow::Continue(());
        let mut bad: Vec<Range<u64>> = Vec::new();
        let places = source.places(DATA_START..segment.end_offset, |place| {
            match &place.found {
                Found::Batch(batch) => flow = shard.visit_batch(batch, place.bytes, spans, each),
                _ => note_bad(&mut bad, &place, segment.end_offset),
            }
            flow.is_continue()
        });
        let name = format!("{}/{}", Site::shard_name(shard.shared.shard), segment.name);
        places.map_err(OpenError::io("read", self.directory.join(&name)))?;
        if !bad.is_empty() && !self.was_freed(shard, segment) {
            damages.extend(bad.into_iter().map(|bytes| Damage {
                file: name.clone(),
                bytes,
                what: "batches that were written here are damaged".into(),
            }));
        }
        Ok(flow)
    }

    /// Whether the running engine has used the file for something else meanwhile.
    fn was_freed(&self, shard: &ShardSnapshot, segment: &LiveSegment) -> bool {
        let Ok(site) = Site::open(&self.directory, Hold::Not) else { return false };
        let Ok(mut disk) = site.disk(shard.shared.shard) else { return false };
        let Ok(files) = segment_files(&site, shard.shared.shard, &mut disk) else { return false };
        let now = files.iter().find(|file| file.name == segment.name);
        now.and_then(|file| file.header())
            .is_some_and(|header| header.generation.get() != segment.generation)
    }

    /// Takes in what an engine has written since; reads no more than that unless a segment was
    /// begun. Returns whether anything is new.
    ///
    /// # Errors
    /// As [`Snapshot::open`].
    pub fn refresh(&mut self) -> Result<bool, OpenError> {
        let mut grew = false;
        let mut reopen = self.shards.is_empty();
        for shard in &mut self.shards {
            let path = self.directory.join(Site::shard_name(shard.shared.shard));
            grew |= shard.extend().map_err(OpenError::io("read", path))?;
            reopen |= shard.has_successor(&self.directory)?;
        }
        if reopen {
            let shards = Self::open(&self.directory)?.shards;
            grew |= !shards.is_empty();
            self.shards = shards;
        }
        Ok(grew)
    }
}

fn note_bad(bad: &mut Vec<Range<u64>>, place: &Place<'_>, end: u64) {
    let until = match place.bytes.len() as u64 {
        0 => end,
        length => place.offset + length,
    };
    match bad.last_mut() {
        Some(last) if last.end == place.offset => last.end = until,
        _ => bad.push(place.offset..until),
    }
}

fn open_shard(site: &Site, shard: u16) -> Result<ShardSnapshot, OpenError> {
    let (disk, survey) = site.survey(shard, None, &HashMap::new())?;
    let (recovered, file_damages) = (survey.recovered, survey.file_damages);
    let is_open = recovered
        .live
        .last()
        .is_some_and(|segment| matches!(segment.contents, WalkedContents::Scanned(_)));
    let live = recovered.live.iter().map(|segment| LiveSegment {
        name: segment.found.name.clone(),
        file: segment.found.file,
        generation: segment.found.generation(),
        seed: segment.found.header.seed(),
        end_offset: segment.end_offset,
    });
    let live = live.collect();
    let shared = Arc::new(Shared::new(
        shard,
        site.directory.engine_id,
        site.directory.segment_bytes,
        Clock::real(),
        disk.pool(),
        disk.wake(),
        disk.reader(),
        Arc::default(),
        QueueState::ReadOnly,
        recovered.index,
        ShardStats::new(shard, disk.description()),
    ));
    let damages = file_damages.into_iter().chain(recovered.damages).collect();
    Ok(ShardSnapshot { shared, live, end: recovered.end, is_open, damages })
}

impl ShardSnapshot {
    fn source<'a>(&'a self, segment: &LiveSegment) -> Source<'a> {
        Source {
            reader: &*self.shared.reader,
            file: segment.file,
            seed: segment.seed,
            generation: segment.generation,
        }
    }

    /// Hands on what counts of a batch.
    fn visit_batch(
        &self,
        batch: &VerifiedBatch,
        bytes: &[u8],
        spans: &HashMap<StreamId, Vec<Range<u64>>>,
        each: &mut impl FnMut(VisitedRecord<'_>) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        for frame in &batch.frames {
            let Some(ranges) = spans.get(&frame.stream) else { continue };
            let (stream, epoch) = (frame.stream, frame.epoch);
            let carried = {
                let index = self.shared.index();
                let epochs = &index.streams[&stream].epochs;
                epochs.clip(epoch, frame.base, frame.base + u64::from(frame.count))
            };
            let until = frame.position + frame.length;
            let payload = &bytes[frame.position + FRAME_HEADER_BYTES..until];
            for (offset, payload) in (frame.base..).zip(FrameRecords::new(payload)) {
                let counts =
                    carried.contains(&offset) && ranges.iter().any(|range| range.contains(&offset));
                if counts {
                    each(VisitedRecord { stream, epoch, offset, payload })?;
                }
            }
        }
        ControlFlow::Continue(())
    }

    /// Takes in the batches that follow the last one in its segment.
    fn extend(&mut self) -> std::io::Result<bool> {
        if !self.is_open {
            return Ok(false);
        }
        let Some(segment) = self.live.last() else { return Ok(false) };
        let (generation, mut end) = (segment.generation, self.end);
        let shared = &self.shared;
        self.source(segment).places(end.offset..shared.segment_bytes, |place| {
            let Found::Batch(batch) = &place.found else { return false };
            let header = &batch.header;
            let follows =
                header.sequence.get() == end.sequence + 1 && header.previous_crc.get() == end.crc;
            if follows {
                let (offset, sequence) = (batch.end_offset(), header.sequence.get());
                end = JournalEnd { offset, sequence, crc: header.crc.get(), ..end };
                let mut index = shared.index();
                for control in &batch.controls {
                    match control {
                        Control::Trim { stream, before } => index.trim(*stream, *before),
                        Control::Epoch { stream, start } => index.begin_epoch(*stream, *start),
                        _ => {}
                    }
                }
                for frame in &batch.frames {
                    index.add_frame(generation, batch.offset, frame, batch.is_moved());
                }
            }
            follows
        })?;
        let grew = end != self.end;
        self.end = end;
        if let Some(segment) = self.live.last_mut() {
            segment.end_offset = end.offset;
        }
        Ok(grew)
    }

    /// Whether a segment was begun behind the last one.
    fn has_successor(&self, directory: &Path) -> Result<bool, OpenError> {
        let site = Site::open(directory, Hold::Not)?;
        let shard = self.shared.shard;
        let mut disk = site.disk(shard)?;
        let files = match segment_files(&site, shard, &mut disk) {
            // Removed between listing and opening.
            Err(OpenError::Io { .. }) => return Ok(true),
            files => files?,
        };
        let newest = self.live.last().map_or(0, |segment| segment.generation);
        Ok(files.iter().any(|file| file.begins_behind(&site, newest)))
    }
}

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Snapshot").field("directory", &self.directory).finish_non_exhaustive()
    }
}
