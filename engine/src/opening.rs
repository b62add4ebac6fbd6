//! Opening one shard: reads what recovery asks for, and, when it may write, makes the recovered
//! end durable and begins a new incarnation. Decides nothing: see [`crate::recovery`].

mod beginning;
mod reading;

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use beginning::high_counter;

use crate::clock::Clock;
use crate::config::Options;
use crate::disk::{BufferMut, Disk, FileId, Operation, block_round_up, run};
use crate::engine_wide::EngineWide;
use crate::error::OpenError;
use crate::format::{AnchorHeader, EngineId, JournalEnd, SegmentHeader};
use crate::queue::QueueState;
use crate::recovery::{Corruption, Damage, Plan, Recovered, WalkedContents};
use crate::shard::{LoopOptions, ShardLoop};
use crate::shared::Shared;
use crate::stats::ShardStats;

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
    pub(crate) engine_wide: Arc<EngineWide>,
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
    let (anchor, anchor_file) = opening.read_anchor()?.unzip();
    let (plan, mut recovered) = opening.recover(anchor, forced)?;
    if let Some(end) = forced.filter(|end| !recovered.ends_at(*end)) {
        return Err(OpenError::Option {
            option: "accept_loss_from",
            value: format!("{end:?}"),
            bounds: "no batch that can be kept ends there; `ringwal verify` names the places"
                .into(),
        });
    }
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
        let begun = opening.begin(&plan, &mut recovered, anchor_file, options)?;
        Some(begun)
    };
    report.duration = began.elapsed();
    let mut description = disk.description();
    if start.is_some() {
        description.notes.extend(options.batch_bytes_note(identity.segment_bytes));
    }
    let stats = ShardStats::new(shard, description);
    let state = if start.is_some() { QueueState::Open } else { QueueState::ReadOnly };
    let shared = Arc::new(Shared::new(
        shard,
        identity.engine_id,
        identity.segment_bytes,
        clock,
        disk.pool(),
        disk.wake(),
        disk.reader(),
        identity.engine_wide.clone(),
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
    let anchor = opening.read_anchor()?.map(|(anchor, _)| anchor);
    let (plan, recovered) = opening.recover(anchor, forced)?;
    Ok(Survey { anchor, plan, recovered, file_damages: opening.damages })
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
    /// Generations that lie behind an end that somebody insists on, and have lost their headers.
    given_up: HashSet<u64>,
    number_max: Option<u64>,
    /// Headers to believe in place of what these files hold; empty unless a repair is weighed.
    assumed: HashMap<String, SegmentHeader>,
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
            given_up: HashSet::new(),
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
        plan.add_headless(std::mem::take(&mut self.headless));
        if let Some((generation, listed)) = self.newest_checkpoint(&plan)? {
            plan.leave_out_stale(generation, &listed);
        }
        let mut recovered = self.walk(&plan, anchor.filter(|_| forced.is_none()))?;
        recovered.damages.extend(high_counter(&plan, &recovered));
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
        if (read as usize) < length {
            self.check_end(name, offset + read)?;
        }
        Ok(buffer.map(|buffer| buffer[..read as usize].to_vec()).unwrap_or_default())
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
}
