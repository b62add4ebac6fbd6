//! What a journal is worth after a crash: unverified segments in, trusted state out. Serves
//! nobody, reads nothing itself.
//!
//! The decision at the first batch that is not the expected one is the table of
//! `ARCHITECTURE.md`, and one `match` in [`verdict`].
//!
//! Polling order: [`Walk::handle_sealed`] or [`Walk::begin_scan`] with a [`crate::scan`] for every
//! segment of the [`Plan`] in its order; then, while [`Walk::poll_state_source`] names a place,
//! scan that; then [`Walk::finish`].

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

use crate::control::Control;
use crate::disk::{BLOCK_BYTES, FileId};
use crate::format::{
    AnchorHeader, BatchHeader, DATA_START, FooterHeader, JournalEnd, RunRecord, SegmentHeader,
};
use crate::index::Index;
use crate::mutants::{self, Mutant};
use crate::scan::{Found, VerifiedBatch};
use crate::stream::{StreamId, StreamState};

/// Something acknowledged that is not there as it was written.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct Damage {
    /// Segment file.
    pub file: String,
    /// Byte range in it; empty when the whole file is meant.
    pub bytes: Range<u64>,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.bytes.is_empty() {
            write!(f, "{}: {}", self.file, self.what)
        } else {
            write!(
                f,
                "{} at byte {} (to {}): {}",
                self.file, self.bytes.start, self.bytes.end, self.what
            )
        }
    }
}

/// A directory with damage. Nothing in it was changed.
#[derive(Clone, Debug)]
pub struct Corruption {
    /// Which shard's folder.
    pub directory: PathBuf,
    /// What was found.
    pub damages: Vec<Damage>,
    /// Records that are not there though they should be.
    pub missing: Vec<(StreamId, Range<u64>)>,
}

impl fmt::Display for Corruption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} holds damaged data: ", self.directory.display())?;
        for (index, damage) in self.damages.iter().enumerate() {
            write!(f, "{}{damage}", if index == 0 { "" } else { "; " })?;
        }
        for (stream, range) in self.missing.iter().take(8) {
            write!(f, "; stream {stream} lacks offsets {}..{}", range.start, range.end)?;
        }
        write!(
            f,
            ". Nothing was changed. The rest can be read (read_only), `ringwal verify` shows all \
             of it, and `ringwal repair` says what can be done"
        )
    }
}

/// A file found in a shard's folder whose header was believed.
#[derive(Clone, Debug)]
pub(crate) struct FoundSegment {
    pub(crate) name: String,
    pub(crate) file: FileId,
    pub(crate) header: SegmentHeader,
    /// Its footer, when it has a valid one.
    pub(crate) footer: Option<FooterHeader>,
}

impl FoundSegment {
    pub(crate) fn generation(&self) -> u64 {
        self.header.generation.get()
    }

    pub(crate) fn number(&self) -> u64 {
        self.header.number.get()
    }
}

/// Which segments make the journal, and in which order.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// Oldest first.
    pub(crate) segments: Vec<FoundSegment>,
    /// Files that are not part of it: prepared but unused, or cut by an earlier recovery.
    pub(crate) unused: Vec<FoundSegment>,
    /// End of all incarnations but the newest, when the newest one's first segment says so.
    pub(crate) predecessor: Option<JournalEnd>,
    /// The generation that begins behind that end; it says nothing about later ones.
    predecessor_until: u64,
    pub(crate) incarnation: u64,
    pub(crate) generation_max: u64,
    /// Number and generation of segments that hold batches and have lost their header.
    pub(crate) headless: Vec<(u64, u64)>,
}

impl Plan {
    /// Orders what was found. `end` forces an end (for a repair): everything behind it is unused.
    pub(crate) fn new(
        found: Vec<FoundSegment>,
        anchor: Option<&AnchorHeader>,
        end: Option<JournalEnd>,
    ) -> Self {
        let incarnation_of = |segment: &FoundSegment| segment.header.incarnation.get();
        let newest = found.iter().map(incarnation_of).max().unwrap_or(0);
        let named = found
            .iter()
            .filter(|segment| incarnation_of(segment) == newest)
            .find_map(|segment| Some((segment.header.predecessor()?, segment.generation())));
        let (predecessor, predecessor_until) = match (end, named) {
            (Some(end), _) => (Some(end), u64::MAX),
            (None, Some((end, first))) => (Some(end), first),
            (None, None) => (None, 0),
        };
        let mut plan = Self {
            predecessor,
            predecessor_until,
            incarnation: newest.max(anchor.map_or(0, |anchor| anchor.incarnation.get())),
            generation_max: found
                .iter()
                .map(FoundSegment::generation)
                .max()
                .unwrap_or(0)
                .max(anchor.map_or(0, |anchor| anchor.first_generation.get())),
            ..Self::default()
        };
        let older = |segment: &FoundSegment| end.is_some() || incarnation_of(segment) < newest;
        let behind = |segment: &FoundSegment| {
            older(segment) && predecessor.is_some_and(|end| segment.generation() > end.generation)
        };
        (plan.unused, plan.segments) = found.into_iter().partition(behind);
        plan.segments.sort_by_key(FoundSegment::generation);
        plan
    }

    /// Leaves out files without a footer that are older than the newest checkpoint and not listed
    /// in it: an older incarnation prepared them and never used them, or its tail was cut there.
    /// Neither says anything about what counts.
    pub(crate) fn leave_out_stale(&mut self, checkpoint: u64, listed: &HashSet<u64>) {
        let is_stale = |segment: &FoundSegment| {
            let generation = segment.generation();
            segment.footer.is_none() && generation < checkpoint && !listed.contains(&generation)
        };
        let (stale, segments) = std::mem::take(&mut self.segments).into_iter().partition(is_stale);
        self.segments = segments;
        self.unused.extend::<Vec<_>>(stale);
    }

    /// Byte at which the scan of this segment must stop, if an end was named inside it.
    pub(crate) fn limit(&self, segment: &FoundSegment) -> Option<u64> {
        self.predecessor.filter(|end| end.generation == segment.generation()).map(|end| end.offset)
    }
}

/// What a scanned or sealed segment gave.
#[derive(Debug)]
pub(crate) struct WalkedSegment {
    pub(crate) found: FoundSegment,
    pub(crate) first_sequence: u64,
    pub(crate) first_previous_crc: u32,
    pub(crate) last_sequence: u64,
    pub(crate) last_crc: u32,
    pub(crate) end_offset: u64,
    pub(crate) records: u64,
    pub(crate) payload_bytes: u64,
    pub(crate) contents: WalkedContents,
}

impl WalkedSegment {
    /// Its last batch.
    pub(crate) fn end(&self) -> JournalEnd {
        JournalEnd {
            number: self.found.number(),
            generation: self.found.generation(),
            offset: self.end_offset,
            sequence: self.last_sequence,
            crc: self.last_crc,
        }
    }
}

/// See [`WalkedSegment`].
#[derive(Debug)]
pub(crate) enum WalkedContents {
    /// From its own index.
    Sealed(FooterHeader, Vec<RunRecord>),
    /// From its batches: (batch offset, frame, moved).
    Scanned(Vec<(u64, crate::batch::SealedFrame, bool)>),
}

/// Sequence and chain CRC of the batch before the one that must come.
#[derive(Copy, Clone, Debug)]
struct Chain {
    sequence: u64,
    crc: u32,
}

impl Chain {
    /// Whether what names this CRC as the one before it comes next.
    fn leads_to(self, previous_crc: u32) -> bool {
        previous_crc == self.crc || mutants::is(Mutant::NoChain)
    }
}

/// Where the expected batch was not.
#[derive(Clone, Debug)]
struct Break {
    name: String,
    generation: u64,
    offset: u64,
    expected: u64,
    /// A batch was begun there.
    begun: bool,
}

/// The verdict on a break.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum Verdict {
    /// Nothing was ever there: the journal ends.
    End,
    /// Something was, and nobody was told that it is durable: cut.
    Torn,
    /// It was durable and is not there.
    Corrupt,
}

/// The table: what a missing or invalid batch means.
///
/// | a later batch, footer or header says that it was durable | anything of it or behind it | verdict |
/// | --- | --- | --- |
/// | yes | – | corrupt |
/// | no | yes | torn |
/// | no | no | end |
pub(crate) fn verdict(expected: u64, durable_evidence: u64, something_there: bool) -> Verdict {
    match (durable_evidence >= expected, something_there) {
        (true, _) => Verdict::Corrupt,
        (false, true) => Verdict::Torn,
        (false, false) => Verdict::End,
    }
}

/// State of the streams and the list of live segments, as facts build it.
#[derive(Debug, Default)]
struct Facts {
    streams: HashMap<StreamId, StreamState>,
    /// Generation to number, as the last checkpoint says, less what was freed since.
    listed: BTreeMap<u64, u64>,
    /// Generations freed since the last checkpoint.
    freed: HashSet<u64>,
    /// Generation of the segment that holds the last complete checkpoint.
    checkpoint: Option<u64>,
    building: Option<(HashMap<StreamId, StreamState>, BTreeMap<u64, u64>)>,
}

impl Facts {
    fn replay(&mut self, generation: u64, batch: &VerifiedBatch) {
        for control in &batch.controls {
            self.replay_control(generation, control);
        }
        if batch.is_moved() {
            return;
        }
        for frame in &batch.frames {
            let state = self.streams.entry(frame.stream).or_default();
            state.next = state.next.max(frame.base + u64::from(frame.count));
        }
    }

    fn replay_control(&mut self, generation: u64, control: &Control) {
        match control {
            Control::Trim { stream, before } => {
                let state = self.streams.entry(*stream).or_default();
                state.trimmed = state.trimmed.max(*before);
                state.next = state.next.max(*before);
                state.epochs.trim(state.trimmed);
            }
            Control::Epoch { stream, start } => {
                let state = self.streams.entry(*stream).or_default();
                state.next = start.start;
                state.epochs.begin(*start);
            }
            Control::Free { generation, .. } => {
                self.listed.remove(generation);
                self.freed.insert(*generation);
            }
            Control::CheckpointBegin => self.building = Some(Default::default()),
            Control::CheckpointStream { stream, trimmed, next, epochs } => {
                if let Some((streams, _)) = &mut self.building {
                    let (trimmed, next, epochs) = (*trimmed, *next, epochs.clone());
                    streams.insert(*stream, StreamState { trimmed, next, epochs });
                }
            }
            Control::CheckpointSegment { number, generation } => {
                if let Some((_, listed)) = &mut self.building {
                    listed.insert(*generation, *number);
                }
            }
            Control::CheckpointEnd => {
                if let Some((streams, listed)) = self.building.take() {
                    self.streams = streams;
                    self.listed = listed;
                    self.freed.clear();
                    self.checkpoint = Some(generation);
                }
            }
        }
    }
}

/// Which sealed segments are read for facts, by their place among the sealed ones.
#[derive(Copy, Clone, Debug)]
struct StateSearch {
    first: usize,
    next: usize,
    /// From their first batch, not from the last checkpoint.
    whole: bool,
}

/// Walks the journal from its oldest segment to its end.
#[derive(Debug)]
pub(crate) struct Walk {
    newest_incarnation: u64,
    predecessor: Option<JournalEnd>,
    predecessor_until: u64,
    anchor: Option<AnchorHeader>,
    present: HashSet<u64>,
    headless: Vec<(u64, u64)>,
    chain: Option<Chain>,
    /// The segment before was scanned to its end, so the next must go on exactly.
    strict: bool,
    broken: Option<Break>,
    /// Highest sequence that something behind the break says was durable.
    evidence: u64,
    something_there: bool,
    segments: Vec<WalkedSegment>,
    left_out: Vec<FoundSegment>,
    islands: Vec<(u64, VerifiedBatch)>,
    facts: Facts,
    /// Generation of the sealed segment that is scanned for facts only.
    state_source: Option<u64>,
    state_search: Option<StateSearch>,
    damages: Vec<Damage>,
    scanned_records: u64,
    last_segment_found_nothing: bool,
}

/// What recovery believes in the end.
#[derive(Debug)]
pub(crate) struct Recovered {
    pub(crate) streams: HashMap<StreamId, StreamState>,
    pub(crate) index: Index,
    pub(crate) end: JournalEnd,
    /// Segments that hold accepted batches, oldest first; the index has them.
    pub(crate) live: Vec<WalkedSegment>,
    /// Segments of the plan that hold none.
    pub(crate) unused: Vec<FoundSegment>,
    pub(crate) damages: Vec<Damage>,
    pub(crate) missing: Vec<(StreamId, Range<u64>)>,
    /// Where a torn tail was cut.
    pub(crate) torn: Option<(String, u64)>,
    pub(crate) scanned_records: u64,
}

impl Walk {
    pub(crate) fn new(plan: &Plan, anchor: Option<AnchorHeader>) -> Self {
        // An open that died before it wrote its anchor may have used the old one's file again.
        let is_newer = |segment: &FoundSegment| {
            anchor.is_some_and(|anchor| segment.header.incarnation > anchor.incarnation)
        };
        let anchor = anchor.filter(|_| !plan.segments.iter().any(is_newer));
        Self {
            newest_incarnation: plan.incarnation,
            predecessor: plan.predecessor,
            predecessor_until: plan.predecessor_until,
            anchor,
            present: plan.segments.iter().map(FoundSegment::generation).collect(),
            headless: plan.headless.clone(),
            chain: None,
            strict: false,
            broken: None,
            evidence: 0,
            something_there: false,
            segments: Vec::new(),
            left_out: Vec::new(),
            islands: Vec::new(),
            facts: Facts::default(),
            state_source: None,
            state_search: None,
            damages: Vec::new(),
            scanned_records: 0,
            last_segment_found_nothing: true,
        }
    }

    /// Whether the scan begun last found no batch at all.
    pub(crate) fn last_segment_is_untouched(&self) -> bool {
        self.segments.last().is_some_and(|segment| segment.last_sequence == 0)
            && self.last_segment_found_nothing
    }

    /// A sealed segment: its footer was written when all of it was durable.
    pub(crate) fn handle_sealed(
        &mut self,
        found: &FoundSegment,
        footer: FooterHeader,
        runs: Vec<RunRecord>,
    ) {
        let (first, last) = (footer.first_sequence.get(), footer.last_sequence.get());
        let goes_on = self.broken.as_ref().is_some_and(|broken| {
            !broken.begun && !self.something_there && broken.expected == first
        });
        if goes_on {
            self.broken = None;
        }
        if self.broken.is_some() {
            self.evidence = self.evidence.max(last);
            self.something_there = true;
        } else if let Some(chain) = self.chain {
            let adjacent = first == chain.sequence + 1;
            if (adjacent && !chain.leads_to(footer.first_previous_crc.get()))
                || first <= chain.sequence
                || (self.strict && !adjacent)
            {
                // All of a sealed segment was durable, so one with the wrong chain is no torn
                // tail, and nothing behind it can show that the journal goes on.
                self.break_at(found, DATA_START, adjacent);
                self.evidence = self.evidence.max(last);
            }
        }
        self.chain = Some(Chain { sequence: last, crc: footer.last_crc.get() });
        self.strict = false;
        self.segments.push(WalkedSegment {
            found: found.clone(),
            first_sequence: first,
            first_previous_crc: footer.first_previous_crc.get(),
            last_sequence: last,
            last_crc: footer.last_crc.get(),
            end_offset: footer.end_offset.get(),
            records: footer.records.get(),
            payload_bytes: footer.payload_bytes.get(),
            contents: WalkedContents::Sealed(footer, runs),
        });
    }

    /// Whether an earlier recovery, or a close, has named the end of this segment's incarnation
    /// in a segment before it.
    pub(crate) fn is_behind_the_end(&self, found: &FoundSegment) -> bool {
        self.segments.last().is_some_and(|last| match &last.contents {
            WalkedContents::Sealed(footer, _) => {
                footer.successor_generation.get() == 0
                    && last.found.header.incarnation.get() == found.header.incarnation.get()
            }
            WalkedContents::Scanned(_) => false,
        })
    }

    /// A segment without a footer that is not part of the journal.
    pub(crate) fn leave_out(&mut self, found: &FoundSegment) {
        self.left_out.push(found.clone());
    }

    /// A segment without a footer comes next; its places follow by [`Walk::handle_found`].
    pub(crate) fn begin_scan(&mut self, found: &FoundSegment) {
        if let Some(end) = found.header.predecessor() {
            self.meet_predecessor(end, found.generation());
            if self.broken.is_none() {
                self.meet_predecessor_crc(found, end);
            }
            if self.broken.is_none() {
                self.chain = Some(Chain { sequence: end.sequence, crc: end.crc });
                self.strict = true;
            }
        } else if let Some(WalkedContents::Sealed(footer, _)) =
            self.segments.last().map(|segment| &segment.contents)
        {
            self.strict = footer.successor_generation.get() == found.generation();
        }
        self.last_segment_found_nothing = true;
        self.segments.push(WalkedSegment {
            found: found.clone(),
            first_sequence: 0,
            first_previous_crc: 0,
            last_sequence: 0,
            last_crc: 0,
            end_offset: DATA_START,
            records: 0,
            payload_bytes: 0,
            contents: WalkedContents::Scanned(Vec::new()),
        });
    }

    /// A new incarnation named this end: what comes before must reach it.
    /// This concerns what lies before `until`, the generation that began the incarnation.
    fn meet_predecessor(&mut self, end: JournalEnd, until: u64) {
        if let Some(broken) = &self.broken {
            if broken.generation >= until {
                return;
            }
            if broken.expected > end.sequence {
                self.broken = None;
            } else {
                self.evidence = self.evidence.max(end.sequence);
            }
            return;
        }
        let short = self.chain.is_some_and(|chain| chain.sequence < end.sequence);
        if short
            && self.present.contains(&end.generation)
            && let Some(last) = self.segments.last()
        {
            let found = last.found.clone();
            self.break_at(&found, last_block(end.offset), true);
            self.evidence = self.evidence.max(end.sequence);
        }
    }

    /// The end that was named is the last batch before this segment, or another batch with its
    /// sequence: then one of the two belongs to another history.
    fn meet_predecessor_crc(&mut self, found: &FoundSegment, end: JournalEnd) {
        let Some(chain) = self.chain else { return };
        if chain.sequence == end.sequence && !chain.leads_to(end.crc) {
            self.break_at(found, DATA_START, true);
            self.evidence = self.evidence.max(chain.sequence + 1);
        }
    }

    fn break_at(&mut self, found: &FoundSegment, offset: u64, begun: bool) {
        self.broken.get_or_insert(Break {
            name: found.name.clone(),
            generation: found.generation(),
            offset,
            expected: self.chain.map_or(1, |chain| chain.sequence + 1),
            begun,
        });
    }

    /// What a scan found at the next place of the segment begun last.
    pub(crate) fn handle_found(&mut self, generation: u64, offset: u64, found: Found) {
        if self.state_source == Some(generation) {
            match &found {
                Found::Batch(batch) => self.facts.replay(generation, batch),
                Found::NeedBytes => {}
                Found::Nothing | Found::Damaged(_) => self.handle_state_damage(offset),
            }
            return;
        }
        if !matches!(found, Found::Nothing) {
            self.last_segment_found_nothing = false;
        }
        match found {
            Found::Batch(batch) if self.is_next(&batch) => self.accept(batch),
            Found::Batch(batch) => {
                self.break_here(offset, false);
                self.evidence = self.evidence.max(durable_sequence(&batch.header));
                if self.is_of_another_history(&batch.header) {
                    self.evidence = self.evidence.max(batch.header.sequence.get());
                }
                if self.expects_before(&batch.header) {
                    self.something_there = true;
                    self.islands.push((generation, batch));
                }
            }
            Found::Damaged(header) => {
                self.break_here(offset, true);
                if self.expects_before(&header) {
                    self.something_there = true;
                    self.evidence = self.evidence.max(durable_sequence(&header));
                }
            }
            Found::Nothing => self.break_here(offset, false),
            Found::NeedBytes => {}
        }
    }

    /// A sealed segment whose facts are needed is damaged.
    fn handle_state_damage(&mut self, offset: u64) {
        let source = self.state_source;
        let name = self
            .segments
            .iter()
            .find(|segment| Some(segment.found.generation()) == source)
            .map_or_else(String::new, |segment| segment.found.name.clone());
        let known = |damage: &Damage| damage.file == name && damage.bytes.contains(&offset);
        if self.damages.iter().any(known) {
            return;
        }
        match self.damages.last_mut() {
            Some(last) if last.file == name && last.bytes.end == offset => {
                last.bytes.end = offset + BLOCK_BYTES as u64;
            }
            _ => self.damages.push(Damage {
                file: name,
                bytes: offset..offset + BLOCK_BYTES as u64,
                what: "a batch of this sealed segment is damaged".into(),
            }),
        }
    }

    /// Whether this batch has the sequence that must come and follows another batch than the one
    /// that was found. A journal writes a sequence once in all that an open reads of it, so no
    /// torn tail looks like this.
    fn is_of_another_history(&self, header: &BatchHeader) -> bool {
        self.chain.is_some_and(|chain| {
            header.sequence.get() == chain.sequence + 1
                && !chain.leads_to(header.previous_crc.get())
        })
    }

    /// Whether a batch header is not older than the expected batch.
    fn expects_before(&self, header: &BatchHeader) -> bool {
        self.broken.as_ref().is_none_or(|broken| header.sequence.get() >= broken.expected)
    }

    /// Records where the expected batch was not. Behind the last batch of a segment this is
    /// ordinary: the journal may go on in the next one.
    fn break_here(&mut self, offset: u64, begun: bool) {
        let segment = self.segments.last().expect("a scan was begun");
        let found = segment.found.clone();
        self.break_at(&found, offset, begun);
    }

    fn is_next(&mut self, batch: &VerifiedBatch) -> bool {
        let first_of_segment = batch.offset == DATA_START;
        if let Some(broken) = &self.broken {
            // Only the first batch of a later segment can be where the journal goes on.
            let goes_on = first_of_segment
                && !broken.begun
                && !self.something_there
                && broken.generation < self.current_generation()
                && self.continues_chain(batch);
            if goes_on {
                self.broken = None;
            }
            return goes_on;
        }
        self.continues_chain(batch) || (first_of_segment && self.may_skip(batch))
    }

    fn current_generation(&self) -> u64 {
        self.segments.last().map_or(0, |segment| segment.found.generation())
    }

    fn continues_chain(&self, batch: &VerifiedBatch) -> bool {
        self.chain.is_some_and(|chain| {
            batch.header.sequence.get() == chain.sequence + 1
                && chain.leads_to(batch.header.previous_crc.get())
        })
    }

    /// Freed segments may lie between a sealed one and this; the checkpoint's list decides later.
    fn may_skip(&self, batch: &VerifiedBatch) -> bool {
        !self.strict
            && self.chain.is_none_or(|chain| batch.header.sequence.get() > chain.sequence + 1)
    }

    fn accept(&mut self, batch: VerifiedBatch) {
        let generation = self.current_generation();
        self.facts.replay(generation, &batch);
        let (sequence, crc) = (batch.header.sequence.get(), batch.header.crc.get());
        self.chain = Some(Chain { sequence, crc });
        self.strict = true;
        self.append(batch);
    }

    fn append(&mut self, batch: VerifiedBatch) {
        let segment = self.segments.last_mut().expect("a scan was begun");
        if segment.last_sequence == 0 {
            segment.first_sequence = batch.header.sequence.get();
            segment.first_previous_crc = batch.header.previous_crc.get();
        }
        segment.last_sequence = batch.header.sequence.get();
        segment.last_crc = batch.header.crc.get();
        segment.end_offset = batch.end_offset();
        segment.payload_bytes += batch.payload_bytes;
        let (offset, moved) = (batch.offset, batch.is_moved());
        let WalkedContents::Scanned(frames) = &mut segment.contents else {
            panic!("a scan was begun");
        };
        for frame in batch.frames {
            segment.records += u64::from(frame.count);
            self.scanned_records += u64::from(frame.count);
            frames.push((offset, frame, moved));
        }
    }

    /// A sealed segment that must be read for the state of the streams, and the bytes. Answered by
    /// a scan of just these. Where a checkpoint is damaged, the one before it and all that was
    /// said since are asked for, so that what is readable can be found.
    pub(crate) fn poll_state_source(&mut self) -> Option<(FoundSegment, Range<u64>)> {
        let is_sealed =
            |segment: &&WalkedSegment| matches!(segment.contents, WalkedContents::Sealed(..));
        let sealed: Vec<_> = self.segments.iter().filter(is_sealed).collect();
        let newest = sealed.len().checked_sub(1)?;
        let search = match self.state_search {
            None => {
                let generation = sealed[newest].found.generation();
                if self.facts.checkpoint.is_some_and(|checkpoint| checkpoint > generation) {
                    return None;
                }
                StateSearch { first: newest, next: newest, whole: false }
            }
            Some(search) if search.next <= newest => search,
            Some(_) if self.facts.checkpoint.is_some() => return None,
            Some(search) => {
                let first = if search.whole { search.first.checked_sub(1)? } else { newest };
                StateSearch { first, next: first, whole: true }
            }
        };
        let source = sealed[search.next];
        let from = match &source.contents {
            WalkedContents::Sealed(footer, _)
                if !search.whole && footer.checkpoint_offset.get() != 0 =>
            {
                footer.checkpoint_offset.get()
            }
            _ => DATA_START,
        };
        let (found, end) = (source.found.clone(), source.end_offset);
        if search.next == search.first {
            self.facts = Facts::default();
        }
        self.state_source = Some(found.generation());
        self.state_search = Some(StateSearch { next: search.next + 1, ..search });
        Some((found, from..end))
    }

    /// Decides what the break means and builds the trusted state.
    pub(crate) fn finish(mut self) -> Recovered {
        if let Some(end) = self.predecessor {
            self.meet_predecessor(end, self.predecessor_until);
        }
        let torn = self.decide();
        self.drop_freed();
        self.check_listed();
        let last = self.segments.iter().rev().find(|segment| segment.last_sequence > 0);
        let end = last.map_or_else(JournalEnd::default, WalkedSegment::end);
        let end = match self.predecessor {
            Some(predecessor) if end.sequence < predecessor.sequence => predecessor,
            _ => end,
        };
        let (live, empty): (Vec<_>, Vec<_>) =
            self.segments.into_iter().partition(|segment| segment.last_sequence > 0);
        let index = build_index(&self.facts.streams, &live);
        let missing = index.holes();
        let unexplained = if self.damages.is_empty() { 8 } else { 0 };
        for (stream, range) in missing.iter().take(unexplained) {
            self.damages.push(Damage {
                file: "journal".into(),
                bytes: 0..0,
                what: format!("no segment holds stream {stream}, {}..{}", range.start, range.end),
            });
        }
        Recovered {
            streams: self.facts.streams,
            index,
            end,
            live,
            unused: empty.into_iter().map(|segment| segment.found).chain(self.left_out).collect(),
            damages: self.damages,
            missing,
            torn,
            scanned_records: self.scanned_records,
        }
    }

    fn decide(&mut self) -> Option<(String, u64)> {
        let broken = self.broken.take()?;
        let something = self.something_there || broken.begun;
        match verdict(broken.expected, self.evidence, something) {
            Verdict::End => None,
            Verdict::Torn => Some((broken.name, broken.offset)),
            Verdict::Corrupt => {
                let until = self
                    .islands
                    .iter()
                    .find(|(generation, _)| *generation == broken.generation)
                    .map_or(broken.offset + BLOCK_BYTES as u64, |(_, batch)| batch.offset);
                self.damages.push(Damage {
                    file: broken.name,
                    bytes: broken.offset..until.max(broken.offset + 1),
                    what: format!(
                        "batch {} was durable (a later one says so up to {}) and is damaged or \
                         missing",
                        broken.expected, self.evidence
                    ),
                });
                self.accept_islands();
                None
            }
        }
    }

    /// Behind damage, what verifies stays readable.
    fn accept_islands(&mut self) {
        for (generation, batch) in std::mem::take(&mut self.islands) {
            self.facts.replay(generation, &batch);
            let at = self.segments.iter().position(|s| s.found.generation() == generation);
            let Some(at) = at else { continue };
            let last = self.segments.len() - 1;
            self.segments.swap(at, last);
            if matches!(self.segments[last].contents, WalkedContents::Scanned(_)) {
                self.append(batch);
            }
            self.segments.swap(at, last);
        }
    }

    /// Segments that the checkpoint does not list, or that were freed since, do not count.
    fn drop_freed(&mut self) {
        let segments = std::mem::take(&mut self.segments);
        self.segments = segments
            .into_iter()
            .filter(|segment| self.counts(segment.found.generation()))
            .collect();
    }

    fn counts(&self, generation: u64) -> bool {
        let Some(checkpoint) = self.facts.checkpoint else { return true };
        !self.facts.freed.contains(&generation)
            && (generation >= checkpoint || self.facts.listed.contains_key(&generation))
    }

    /// What must be there: listed segments, a sealed segment's successor, the anchor's segment.
    fn check_listed(&mut self) {
        let mut missing = Vec::new();
        for (generation, number) in &self.facts.listed {
            if !self.present.contains(generation) {
                missing.push((*number, *generation, "the last checkpoint lists it"));
            }
        }
        if let Some(WalkedSegment { found, contents: WalkedContents::Sealed(footer, _), .. }) =
            self.segments.iter().rev().find(|segment| segment.last_sequence > 0)
        {
            let (number, generation) =
                (footer.successor_number.get(), footer.successor_generation.get());
            let is_newest = found.header.incarnation.get() == self.newest_incarnation;
            if generation != 0 && is_newest && !self.present.contains(&generation) {
                missing.push((number, generation, "its predecessor names it"));
            }
        }
        if let Some(anchor) = &self.anchor {
            let (number, generation) = (anchor.first_number.get(), anchor.first_generation.get());
            let superseded =
                self.facts.checkpoint.is_some_and(|checkpoint| checkpoint > generation);
            let listed = missing.iter().any(|(_, other, _)| *other == generation);
            if !superseded && !listed && !self.present.contains(&generation) {
                missing.push((number, generation, "the newest open began with it"));
            }
        }
        // To prepare such a file again would destroy what its batches say.
        for (number, generation) in &self.headless {
            let counts = self.counts(*generation);
            let listed = missing.iter().any(|(_, other, _)| other == generation);
            if counts && !listed {
                missing.push((*number, *generation, "it holds batches"));
            }
        }
        for (number, generation, why) in missing {
            self.damages.push(Damage {
                file: crate::segments::segment_name(number),
                bytes: 0..0,
                what: format!(
                    "generation {generation} of this segment is missing or its header is \
                     damaged; {why}"
                ),
            });
        }
    }
}

/// What a batch says was durable before it.
fn durable_sequence(header: &BatchHeader) -> u64 {
    if mutants::is(Mutant::NoDurableWatermark) { 0 } else { header.durable_sequence.get() }
}

fn last_block(offset: u64) -> u64 {
    offset.saturating_sub(BLOCK_BYTES as u64)
}

/// The index over all live segments; streams first, so that only what counts is placed.
fn build_index(streams: &HashMap<StreamId, StreamState>, live: &[WalkedSegment]) -> Index {
    let mut index = Index::default();
    for (stream, state) in streams {
        let entry = index.streams.entry(*stream).or_default();
        entry.trimmed = state.trimmed;
        entry.end = state.next;
        entry.epochs = state.epochs.clone();
    }
    for segment in live {
        let (generation, number) = (segment.found.generation(), segment.found.number());
        match &segment.contents {
            WalkedContents::Sealed(footer, runs) => {
                index.add_sealed_segment(generation, number, segment.found.file, footer, runs);
            }
            WalkedContents::Scanned(frames) => {
                index.add_open_segment(generation, number, segment.found.file);
                for (offset, frame, _) in frames {
                    // Ends are known already; nothing here may move one.
                    index.add_frame(generation, *offset, frame, true);
                }
            }
        }
    }
    index
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::*;

    fn found(generation: u64, incarnation: u64, footer: Option<FooterHeader>) -> FoundSegment {
        let header =
            SegmentHeader::new([1; 16], 0, generation, generation, incarnation, 1 << 20, None);
        let name = crate::segments::segment_name(generation);
        FoundSegment { name, file: FileId(generation as u32), header, footer }
    }

    fn footer(first: u64, last: u64, successor: u64) -> FooterHeader {
        let mut footer = FooterHeader::new_zeroed();
        footer.first_sequence = first.into();
        footer.last_sequence = last.into();
        footer.successor_generation = successor.into();
        footer
    }

    #[test]
    fn what_older_incarnations_left_unused_is_no_part_of_the_journal() {
        let sealed = Some(footer(1, 2, 0));
        let found = [
            found(3, 1, None),
            found(4, 1, None),
            found(5, 1, sealed),
            found(6, 2, None),
            found(7, 2, None),
        ];
        let mut plan = Plan::new(found.to_vec(), None, None);
        plan.leave_out_stale(6, &HashSet::from([3, 6]));
        let generations = |segments: &[FoundSegment]| -> Vec<_> {
            segments.iter().map(FoundSegment::generation).collect()
        };
        assert_eq!(generations(&plan.segments), [3, 5, 6, 7]);
        assert_eq!(generations(&plan.unused), [4]);
    }

    #[test]
    fn behind_a_named_end_an_incarnation_has_no_segment() {
        let plan = Plan::default();
        let mut walk = Walk::new(&plan, None);
        walk.handle_sealed(&found(1, 1, None), footer(1, 2, 2), Vec::new());
        assert!(!walk.is_behind_the_end(&found(2, 1, None)), "its successor was named");
        walk.handle_sealed(&found(2, 1, None), footer(3, 4, 0), Vec::new());
        assert!(walk.is_behind_the_end(&found(3, 1, None)), "cut by an earlier recovery");
        assert!(!walk.is_behind_the_end(&found(4, 2, None)));
    }

    #[test]
    fn an_anchor_older_than_the_newest_header_says_nothing() {
        let plan = Plan::new(vec![found(5, 2, None)], None, None);
        let damages = |incarnation| {
            let anchor = AnchorHeader::new([1; 16], 0, incarnation, 4, 4);
            Walk::new(&plan, Some(anchor)).finish().damages.len()
        };
        assert_eq!((damages(1), damages(2)), (0, 1));
    }

    #[test]
    fn the_table() {
        assert_eq!(verdict(5, 4, false), Verdict::End);
        assert_eq!(verdict(5, 4, true), Verdict::Torn);
        assert_eq!(verdict(5, 5, false), Verdict::Corrupt);
        assert_eq!(verdict(5, 9, true), Verdict::Corrupt);
    }
}
