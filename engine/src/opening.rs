//! Opening one shard: reads what recovery asks for, and, when it may write, makes the recovered
//! end durable and begins a new incarnation. Decides nothing: see [`crate::recovery`].

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::clock::Clock;
use crate::config::Options;
use crate::disk::{
    BLOCK_BYTES, BufferMut, Completion, Disk, FileId, Operation, Wait, block_round_up, run,
};
use crate::error::OpenError;
use crate::flush::Flush;
use crate::footer::{SealFacts, build, read_runs};
use crate::format::{
    AnchorHeader, BatchHeader, DATA_START, EngineId, FooterHeader, FormatError, JournalEnd,
    RUN_BYTES, RunRecord, SegmentHeader, SegmentSeed,
};
use crate::queue::QueueState;
use crate::recovery::{
    Corruption, Damage, FoundSegment, Plan, Recovered, Walk, WalkedContents, WalkedSegment,
};
use crate::scan::{FirstCheckpoint, SegmentScan, first_checkpoint};
use crate::segments::{Segments, SegmentsConfig, segment_number};
use crate::shard::{LoopOptions, ShardLoop, Start};
use crate::shared::Shared;
use crate::stats::ShardStats;
use crate::stream::StreamTable;

/// Bytes of one read while scanning.
const CHUNK_BYTES: usize = 1 << 20;
/// Bytes read first when a checkpoint is looked for.
const FIRST_BYTES: usize = 16 << 10;
/// Reads in flight while scanning.
const CHUNKS_AHEAD: usize = 4;
pub(crate) const ANCHOR: &str = "anchor";

/// What an open found and did, for one shard.
#[derive(Clone, Debug)]
pub struct RecoveryReport {
    /// Shard number.
    pub shard: u16,
    /// Segments that hold batches.
    pub segments: usize,
    /// Segments whose batches had to be read.
    pub scanned_segments: usize,
    /// Bytes read from them.
    pub scanned_bytes: u64,
    /// Records in the batches that were read.
    pub scanned_records: u64,
    /// How long it took.
    pub duration: Duration,
    /// Where the tail of a crash was cut: file and byte.
    pub torn: Option<(String, u64)>,
    /// The shard had been closed.
    pub clean: bool,
    /// The end of the journal before this open.
    pub end: JournalEnd,
    /// Which open this is.
    pub incarnation: u64,
    /// What is damaged; only a read-only open goes on then.
    pub damages: Vec<Damage>,
}

/// What all shards of a directory share.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) engine_id: EngineId,
    pub(crate) segment_bytes: u64,
}

/// A shard that has been recovered.
pub(crate) struct Opened {
    pub(crate) shared: Arc<Shared>,
    /// What is to be driven.
    pub(crate) driven: Driven,
    pub(crate) report: RecoveryReport,
}

/// See [`Opened`].
pub(crate) enum Driven {
    Loop(Box<ShardLoop>),
    /// Nothing: readers have their own way to the files. A simulated disk must live for them.
    ReadOnly {
        _disk: Box<dyn Disk>,
    },
}

struct Opening<'a> {
    disk: &'a mut dyn Disk,
    directory: PathBuf,
    identity: Identity,
    shard: u16,
    scanned_bytes: u64,
    scanned_segments: usize,
    damages: Vec<Damage>,
    /// Files without a valid header: number, file.
    unfinished: Vec<(u64, FileId)>,
    /// Of those, the ones that hold a batch: number and generation.
    headless: Vec<(u64, u64)>,
    number_max: Option<u64>,
    /// Headers to believe in place of what these files hold; empty unless a repair is weighed.
    assumed: HashMap<String, SegmentHeader>,
}

/// Recovers a shard on `disk`, in the thread that will drive it.
pub(crate) fn open_shard(
    mut disk: Box<dyn Disk>,
    directory: &Path,
    shard: u16,
    identity: &Identity,
    options: &Options,
    clock: Clock,
) -> Result<Opened, OpenError> {
    let began = Instant::now();
    let mut opening = Opening::new(&mut *disk, directory, shard, identity);
    let forced = options.accept_loss_from.filter(|(at, _)| *at == shard).map(|(_, end)| end);
    let (anchor, anchor_file) = opening.read_anchor(options.read_only)?;
    let (mut plan, mut recovered) = opening.recover(anchor, forced)?;
    recovered.damages.append(&mut opening.damages);
    if !recovered.damages.is_empty() && !options.read_only && forced.is_none() {
        return Err(OpenError::Corrupt(Box::new(Corruption {
            directory: directory.to_owned(),
            damages: recovered.damages,
            missing: recovered.missing,
        })));
    }
    let mut report = opening.report(&recovered, plan.incarnation + 1);
    let start = if options.read_only {
        None
    } else {
        plan.unused.append(&mut recovered.unused);
        let begun = opening.begin(&plan, &mut recovered, anchor_file, options)?;
        Some(begun)
    };
    report.duration = began.elapsed();
    let stats = ShardStats::new(shard, disk.description());
    let state = if start.is_some() { QueueState::Open } else { QueueState::ReadOnly };
    let shared = Arc::new(Shared::new(
        shard,
        identity.engine_id,
        identity.segment_bytes,
        clock,
        disk.pool(),
        disk.wake(),
        disk.reader(),
        state,
        recovered.index,
        stats,
    ));
    shared.stats().segments.reserved = options.segments_reserved;
    let driven = match start {
        Some(start) => {
            // Far beyond any run, and far from overflowing when added to a time.
            let nanoseconds = |time: Duration| {
                u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).min(u64::MAX / 4)
            };
            let loop_options = LoopOptions {
                linger_ns: nanoseconds(options.linger),
                idle_seal_ns: options.idle_seal.map(nanoseconds),
                spin_ns: nanoseconds(options.spin),
            };
            Driven::Loop(Box::new(ShardLoop::new(shared.clone(), disk, loop_options, start)))
        }
        None => Driven::ReadOnly { _disk: disk },
    };
    Ok(Opened { shared, driven, report })
}

/// What recovery makes of a shard, with nothing changed: for the offline tools.
pub(crate) struct Survey {
    pub(crate) anchor: Option<AnchorHeader>,
    pub(crate) plan: Plan,
    /// Without what is wrong with a file's header or length.
    pub(crate) recovered: Recovered,
    /// What is wrong with those.
    pub(crate) file_damages: Vec<Damage>,
}

/// Runs recovery up to its verdict: with `forced` as if the journal ended there, with `assumed`
/// as if these files had these headers.
pub(crate) fn survey(
    disk: &mut dyn Disk,
    directory: &Path,
    shard: u16,
    identity: &Identity,
    forced: Option<JournalEnd>,
    assumed: &HashMap<String, SegmentHeader>,
) -> Result<Survey, OpenError> {
    let mut opening = Opening::new(disk, directory, shard, identity);
    opening.assumed = assumed.clone();
    let (anchor, _) = opening.read_anchor(true)?;
    let (plan, recovered) = opening.recover(anchor, forced)?;
    Ok(Survey { anchor, plan, recovered, file_damages: opening.damages })
}

impl<'a> Opening<'a> {
    fn new(
        disk: &'a mut dyn Disk,
        directory: &Path,
        shard: u16,
        identity: &Identity,
    ) -> Opening<'a> {
        Opening {
            disk,
            directory: directory.to_owned(),
            identity: identity.clone(),
            shard,
            scanned_bytes: 0,
            scanned_segments: 0,
            damages: Vec::new(),
            unfinished: Vec::new(),
            headless: Vec::new(),
            number_max: None,
            assumed: HashMap::new(),
        }
    }
}

impl Opening<'_> {
    /// What the files are worth; `forced` is an end that somebody insists on.
    fn recover(
        &mut self,
        anchor: Option<AnchorHeader>,
        forced: Option<JournalEnd>,
    ) -> Result<(Plan, Recovered), OpenError> {
        let found = self.find_segments()?;
        let mut plan = Plan::new(found, anchor.as_ref(), forced);
        plan.headless = std::mem::take(&mut self.headless);
        if let Some((generation, listed)) = self.newest_checkpoint(&plan)? {
            plan.leave_out_stale(generation, &listed);
        }
        let mut recovered = self.walk(&plan, anchor.filter(|_| forced.is_none()))?;
        recovered.index.engine_id = self.identity.engine_id;
        recovered.index.straggler_bytes = self.identity.segment_bytes / crate::mover::LIVE_SHARE;
        Ok((plan, recovered))
    }

    fn io(&self, what: &'static str, name: &str) -> impl FnOnce(io::Error) -> OpenError + use<> {
        OpenError::io(what, self.directory.join(name))
    }

    fn run(
        &mut self,
        what: &'static str,
        name: &str,
        operation: Operation,
    ) -> Result<u64, OpenError> {
        run(self.disk, operation).map(|(value, _)| value).map_err(self.io(what, name))
    }

    fn write(
        &mut self,
        name: &str,
        file: FileId,
        offset: u64,
        buffer: crate::disk::Buffer,
        length: usize,
    ) -> Result<(), OpenError> {
        let write = Operation::Write { file, offset, buffer, from: 0, length, durable: true };
        let written = self.run("write", name, write)?;
        if written as usize != length {
            let error = io::Error::other(format!("{written} of {length} bytes written"));
            return Err(self.io("write", name)(error));
        }
        Ok(())
    }

    fn open_file(&mut self, name: &str, create: bool) -> Result<FileId, OpenError> {
        let open = Operation::Open { name: name.to_owned(), create };
        self.run("open", name, open).map(|value| FileId(value as u32))
    }

    /// Reads `length` bytes, or what the file has of them.
    fn read(
        &mut self,
        name: &str,
        file: FileId,
        offset: u64,
        length: usize,
    ) -> Result<Vec<u8>, OpenError> {
        let length = block_round_up(length);
        let buffer = BufferMut::allocate(length);
        let operation = Operation::Read { file, offset, buffer, length };
        let (read, buffer) = run(self.disk, operation).map_err(self.io("read", name))?;
        Ok(buffer.map(|buffer| buffer[..read as usize].to_vec()).unwrap_or_default())
    }

    /// The newest of the two blocks of the anchor.
    fn read_anchor(
        &mut self,
        read_only: bool,
    ) -> Result<(Option<AnchorHeader>, Option<FileId>), OpenError> {
        let exists = self
            .disk
            .list()
            .map_err(self.io("list", ""))?
            .iter()
            .any(|entry| entry.name == ANCHOR && entry.length > 0);
        if !exists {
            return Ok((None, None));
        }
        let file = self.open_file(ANCHOR, false)?;
        let bytes = self.read(ANCHOR, file, 0, 2 * BLOCK_BYTES)?;
        let newest = bytes
            .chunks(BLOCK_BYTES)
            .filter_map(|block| AnchorHeader::verify(block).ok())
            .filter(|anchor| anchor.engine_id == self.identity.engine_id)
            .max_by_key(|anchor| anchor.incarnation.get());
        Ok((newest, Some(file).filter(|_| !read_only)))
    }

    fn find_segments(&mut self) -> Result<Vec<FoundSegment>, OpenError> {
        let mut found = Vec::new();
        for entry in self.disk.list().map_err(self.io("list", ""))? {
            let Some(number) = segment_number(&entry.name) else { continue };
            self.number_max = self.number_max.max(Some(number));
            let file = self.open_file(&entry.name, false)?;
            let blocks = self.read(&entry.name, file, 0, DATA_START as usize + BLOCK_BYTES)?;
            let known_damages = self.damages.len();
            let header = match self.assumed.get(&entry.name) {
                Some(assumed) => Some(*assumed),
                None => self.header(&entry.name, number, &blocks)?,
            };
            match header {
                Some(header) => {
                    let footer = self.read_footer(&entry.name, file, &header)?;
                    self.check_length(&entry.name, entry.length);
                    found.push(FoundSegment { name: entry.name, file, header, footer });
                }
                // A foreign file is left alone.
                None if self.damages.len() > known_damages => {}
                None => {
                    self.headless.extend(self.first_generation(number, &blocks));
                    self.unfinished.push((number, file));
                }
            }
        }
        Ok(found)
    }

    /// The header from either copy; `None` when there is no valid one.
    fn header(
        &mut self,
        name: &str,
        number: u64,
        blocks: &[u8],
    ) -> Result<Option<SegmentHeader>, OpenError> {
        let mut header = None;
        for block in blocks.chunks(BLOCK_BYTES).take(2) {
            match SegmentHeader::verify(block) {
                Ok(valid) => header = header.or(Some(valid)),
                Err(FormatError::Newer(major, minor, bits)) => {
                    let found = FormatError::Newer(major, minor, bits).to_string();
                    return Err(OpenError::NewerFormat { file: self.directory.join(name), found });
                }
                Err(_) => {}
            }
        }
        let Some(header) = header else { return Ok(None) };
        let foreign = if header.engine_id != self.identity.engine_id {
            Some("belongs to another engine; move it out of the directory")
        } else if header.shard.get() != u32::from(self.shard) {
            Some("belongs to another shard; move it back")
        } else if header.number.get() != number {
            Some("was renamed: its header holds another number")
        } else {
            None
        };
        if let Some(what) = foreign {
            self.damages.push(Damage { file: name.to_owned(), bytes: 0..0, what: what.to_owned() });
            return Ok(None);
        }
        Ok(Some(header))
    }

    /// Number and generation of a segment without a header, as its first batch tells them.
    fn first_generation(&self, number: u64, blocks: &[u8]) -> Option<(u64, u64)> {
        let first = blocks.get(DATA_START as usize..)?;
        let batch = BatchHeader::verify_itself(first, &self.identity.engine_id, number).ok()?;
        Some((number, batch.generation.get()))
    }

    fn check_length(&mut self, name: &str, length: u64) {
        let expected = self.identity.segment_bytes;
        if length < expected {
            self.damages.push(Damage {
                file: name.to_owned(),
                bytes: length..expected,
                what: format!("the file is {length} bytes long and should be {expected}"),
            });
        }
    }

    fn read_footer(
        &mut self,
        name: &str,
        file: FileId,
        header: &SegmentHeader,
    ) -> Result<Option<FooterHeader>, OpenError> {
        let offset = FooterHeader::offset(self.identity.segment_bytes);
        let block = self.read(name, file, offset, BLOCK_BYTES)?;
        Ok(FooterHeader::verify(&block, header.seed(), self.identity.segment_bytes).ok())
    }

    fn read_runs(
        &mut self,
        found: &FoundSegment,
        footer: &FooterHeader,
    ) -> Result<Option<Vec<RunRecord>>, OpenError> {
        let length = footer.runs.get() as usize * RUN_BYTES;
        if length == 0 {
            return Ok(Some(Vec::new()));
        }
        let bytes = self.read(&found.name, found.file, footer.runs_offset.get(), length)?;
        Ok(read_runs(footer, &bytes).ok())
    }

    /// The newest complete checkpoint at the start of a segment: its generation, and the
    /// generations that it lists.
    fn newest_checkpoint(&mut self, plan: &Plan) -> Result<Option<(u64, HashSet<u64>)>, OpenError> {
        for found in plan.segments.iter().rev() {
            let limit = plan.limit(found).unwrap_or(u64::MAX).min(self.identity.segment_bytes);
            let left = limit.saturating_sub(DATA_START) as usize;
            let mut length = FIRST_BYTES.min(left);
            loop {
                let bytes = self.read(&found.name, found.file, DATA_START, length)?;
                let all = length == left;
                match first_checkpoint(&bytes, all, found.header.seed(), found.generation()) {
                    FirstCheckpoint::Lists(listed) => {
                        return Ok(Some((found.generation(), listed)));
                    }
                    FirstCheckpoint::NeedBytes if !all => length = (4 * length).min(left),
                    FirstCheckpoint::NeedBytes | FirstCheckpoint::Nothing => break,
                }
            }
        }
        Ok(None)
    }

    /// Feeds the whole journal to recovery.
    fn walk(&mut self, plan: &Plan, anchor: Option<AnchorHeader>) -> Result<Recovered, OpenError> {
        let mut walk = Walk::new(plan, anchor);
        let mut untouched = None;
        for found in &plan.segments {
            let limit = plan.limit(found);
            let sealed = found
                .footer
                .filter(|footer| limit.is_none_or(|limit| footer.end_offset.get() <= limit));
            if let Some(footer) = sealed
                && let Some(runs) = self.read_runs(found, &footer)?
            {
                walk.handle_sealed(found, footer, runs);
                continue;
            }
            if walk.is_behind_the_end(found) {
                walk.leave_out(found);
                continue;
            }
            walk.begin_scan(found);
            let incarnation = found.header.incarnation.get();
            let mut limit = limit.unwrap_or(u64::MAX).min(self.identity.segment_bytes);
            if untouched == Some(incarnation) {
                // An incarnation uses its segments in order: behind an unused one there is no
                // batch, or else the beginning shows that the unused one was not unused.
                limit = limit.min(DATA_START + CHUNK_BYTES as u64);
            }
            self.scan(found, DATA_START..limit, &mut walk)?;
            if walk.last_segment_is_untouched() {
                untouched = Some(incarnation);
            }
        }
        while let Some((found, bytes)) = walk.poll_state_source() {
            self.scan(&found, bytes, &mut walk)?;
        }
        Ok(walk.finish())
    }

    /// Reads a segment in large chunks, several at once, and hands them on in order.
    fn scan(
        &mut self,
        found: &FoundSegment,
        bytes: std::ops::Range<u64>,
        walk: &mut Walk,
    ) -> Result<(), OpenError> {
        self.scanned_segments += 1;
        let seed = found.header.seed();
        let mut scan = SegmentScan::new(seed, found.generation(), bytes.start, bytes.end);
        let (mut next, mut wanted) = (bytes.start, bytes.start);
        let mut arrived: Vec<Completion> = Vec::new();
        let mut pending: Vec<u8> = Vec::new();
        let mut in_flight = 0;
        loop {
            while in_flight < CHUNKS_AHEAD && next < bytes.end {
                let length = block_round_up((bytes.end - next).min(CHUNK_BYTES as u64) as usize);
                let buffer = BufferMut::allocate(length);
                let read = Operation::Read { file: found.file, offset: next, buffer, length };
                self.disk.submit(next, read);
                next += length as u64;
                in_flight += 1;
            }
            if in_flight == 0 {
                break;
            }
            let before = arrived.len();
            self.disk.reap(&mut arrived, Wait::Forever).map_err(self.io("read", &found.name))?;
            in_flight -= arrived.len() - before;
            while let Some(at) = arrived.iter().position(|completion| completion.token == wanted) {
                let Completion { result, buffer, .. } = arrived.swap_remove(at);
                let length = result.map_err(self.io("read", &found.name))? as usize;
                let Some(buffer) = buffer else { break };
                pending.extend_from_slice(&buffer[..length]);
                wanted += block_round_up(buffer.len().min(CHUNK_BYTES)) as u64;
                self.scanned_bytes += length as u64;
                let used = scan.handle_bytes(&pending, walk);
                pending.drain(..used);
            }
        }
        Ok(())
    }

    fn report(&self, recovered: &Recovered, incarnation: u64) -> RecoveryReport {
        let clean = recovered.live.last().is_none_or(|segment| match &segment.contents {
            WalkedContents::Sealed(footer, _) => footer.checkpoint_offset.get() != 0,
            WalkedContents::Scanned(_) => false,
        });
        RecoveryReport {
            shard: self.shard,
            segments: recovered.live.len(),
            scanned_segments: self.scanned_segments,
            scanned_bytes: self.scanned_bytes,
            scanned_records: recovered.scanned_records,
            duration: Duration::ZERO,
            torn: recovered.torn.clone(),
            clean,
            end: recovered.end,
            incarnation,
            damages: recovered.damages.clone(),
        }
    }

    /// Makes what was accepted durable, seals it, and begins a new incarnation.
    fn begin(
        &mut self,
        plan: &Plan,
        recovered: &mut Recovered,
        anchor_file: Option<FileId>,
        options: &Options,
    ) -> Result<Start, OpenError> {
        // Footers are written one after another, so only the newest may have been under way.
        let is_sealed =
            |segment: &WalkedSegment| matches!(segment.contents, WalkedContents::Sealed(..));
        let newest_sealed = recovered.live.iter().rposition(is_sealed);
        for (at, segment) in recovered.live.iter().enumerate() {
            if !is_sealed(segment) || Some(at) == newest_sealed {
                // What a killed process wrote may not be on the device yet.
                let sync = Operation::Sync { file: segment.found.file };
                self.run("fdatasync", &segment.found.name, sync)?;
            }
        }
        for (at, segment) in recovered.live.iter().enumerate() {
            if let WalkedContents::Scanned(_) = &segment.contents {
                let next = recovered.live.get(at + 1).map(|next| &next.found);
                let successor = next.map(|next| (next.number(), next.generation()));
                let footer = self.seal(segment, successor, &recovered.index)?;
                recovered.index.seal_segment(segment.found.generation(), &footer);
            }
        }
        // A new journal has no records to restart with; that there is space is enough to begin.
        let wanted = (options.segments_ahead + options.segments_reserved + 1) as u64;
        let first_takes_records = recovered.live.is_empty()
            && self
                .disk
                .free_bytes()
                .is_ok_and(|free| free >= wanted * self.identity.segment_bytes);
        let incarnation = plan.incarnation + 1;
        let mut segments = self.segments(plan, recovered, incarnation, options);
        let mut refusal = None;
        let first = loop {
            if let Some(first) = segments.take(true) {
                break first;
            }
            let Some(operation) = segments.poll_operation(0) else {
                return Err(self.no_segment(refusal));
            };
            let result = run(self.disk, operation).map(|(value, _)| value);
            if let (Err(error), None) = (&result, &refusal) {
                refusal = Some(match error.raw_os_error() {
                    Some(errno) => io::Error::from_raw_os_error(errno),
                    None => io::Error::other(error.to_string()),
                });
            }
            segments.handle_completion(result, 0);
        };
        self.write_anchor(anchor_file, incarnation, first.number, first.generation)?;
        let epochs_max = (self.identity.segment_bytes / 2 / 64) as usize;
        let live = recovered
            .live
            .iter()
            .map(|segment| (segment.found.generation(), segment.found.number()))
            .collect();
        Ok(Start {
            flush: Flush::new(options.sync, options.flush_slots, recovered.end.sequence),
            first_takes_records,
            streams: StreamTable::new(std::mem::take(&mut recovered.streams), epochs_max),
            segments,
            first,
            end: recovered.end,
            incarnation,
            live,
        })
    }

    /// Why there is no first segment.
    fn no_segment(&self, refusal: Option<io::Error>) -> OpenError {
        match refusal {
            Some(error) if !matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT)) => {
                self.io("preparing a segment in", "")(error)
            }
            _ => OpenError::NoSpace {
                directory: self.directory.clone(),
                segment_bytes: self.identity.segment_bytes,
                free_bytes: self.disk.free_bytes().unwrap_or(0),
            },
        }
    }

    /// Gives a recovered tail its index and footer, so that no later open scans it.
    fn seal(
        &mut self,
        segment: &WalkedSegment,
        successor: Option<(u64, u64)>,
        index: &crate::index::Index,
    ) -> Result<FooterHeader, OpenError> {
        let (number, generation) = (segment.found.number(), segment.found.generation());
        let facts = SealFacts {
            generation,
            seed: SegmentSeed::new(&self.identity.engine_id, number, generation),
            segment_bytes: self.identity.segment_bytes,
            first_sequence: segment.first_sequence,
            first_previous_crc: segment.first_previous_crc,
            last_sequence: segment.last_sequence,
            last_crc: segment.last_crc,
            end_offset: segment.end_offset,
            checkpoint_offset: 0,
            successor,
            records: segment.records,
            payload_bytes: segment.payload_bytes,
        };
        let blocks = build(&facts, index.runs(generation));
        let (name, file) = (&segment.found.name, segment.found.file);
        if blocks.body_length > 0 {
            self.write(name, file, blocks.body_offset, blocks.body, blocks.body_length)?;
        }
        self.write(name, file, blocks.last_offset, blocks.last, BLOCK_BYTES)?;
        Ok(blocks.footer)
    }

    fn segments(
        &mut self,
        plan: &Plan,
        recovered: &Recovered,
        incarnation: u64,
        options: &Options,
    ) -> Segments {
        let config = SegmentsConfig {
            engine_id: self.identity.engine_id,
            shard: self.shard,
            incarnation,
            segment_bytes: self.identity.segment_bytes,
            ahead: options.segments_ahead,
            reserved: options.segments_reserved,
            free_max: options.segments_free_max,
        };
        let live: HashSet<u64> =
            recovered.live.iter().map(|segment| segment.found.generation()).collect();
        let mut clean = Vec::new();
        for found in plan.segments.iter().chain(&plan.unused) {
            let entry = (found.number(), found.file);
            if !live.contains(&found.generation()) && !clean.contains(&entry) {
                clean.push(entry);
            }
        }
        let next_number = self.number_max.map_or(0, |number| number + 1);
        let unfinished = std::mem::take(&mut self.unfinished);
        let generation = plan.generation_max + 1;
        Segments::new(config, next_number, generation, recovered.end, clean, unfinished)
    }

    /// Remembers where this incarnation begins, in the block that the last open did not write.
    fn write_anchor(
        &mut self,
        file: Option<FileId>,
        incarnation: u64,
        number: u64,
        generation: u64,
    ) -> Result<(), OpenError> {
        let created = file.is_none();
        let file = match file {
            Some(file) => file,
            None => self.open_file(ANCHOR, true)?,
        };
        if created {
            let allocate = Operation::Allocate { file, length: 2 * BLOCK_BYTES as u64 };
            self.run("allocate", ANCHOR, allocate)?;
        }
        let id = self.identity.engine_id;
        let anchor = AnchorHeader::new(id, u32::from(self.shard), incarnation, number, generation);
        let mut block = BufferMut::allocate(BLOCK_BYTES);
        anchor.write(&mut block);
        let offset = (incarnation % 2) * BLOCK_BYTES as u64;
        self.write(ANCHOR, file, offset, block.freeze(), BLOCK_BYTES)?;
        if created {
            self.run("sync", ANCHOR, Operation::SyncAll { file })?;
            self.run("sync", "", Operation::SyncDirectory)?;
        }
        Ok(())
    }
}
