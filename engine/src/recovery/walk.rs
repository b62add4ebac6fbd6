//! The walk through the journal, from its oldest segment to its end: what is found at each place,
//! as it is found. What it comes to in the end is `finish.rs`.

use std::collections::HashSet;
use std::ops::Range;

use super::facts::Facts;
use super::{Damage, FoundSegment, Plan, WalkedContents, WalkedSegment};
use crate::config::SEGMENT_BATCHES_MIN;
use crate::disk::BLOCK_BYTES;
use crate::format::{
    AnchorHeader, BatchHeader, DATA_START, FRAME_HEADER_BYTES, FooterHeader, JournalEnd, RunRecord,
    index_bytes,
};
use crate::mutants::{self, Mutant};
use crate::scan::{Found, VerifiedBatch};

/// Walks the journal from its oldest segment to its end.
#[derive(Debug)]
pub(crate) struct Walk {
    pub(super) newest_incarnation: u64,
    pub(super) predecessor: Option<JournalEnd>,
    pub(super) predecessor_until: u64,
    pub(super) anchor: Option<AnchorHeader>,
    pub(super) present: HashSet<u64>,
    pub(super) headless: Vec<(u64, u64)>,
    chain: Option<Chain>,
    /// The segment before was scanned to its end, so the next must go on exactly.
    strict: bool,
    pub(super) broken: Option<Break>,
    /// Highest sequence that something behind the break says was durable.
    pub(super) evidence: u64,
    pub(super) something_there: bool,
    pub(super) segments: Vec<WalkedSegment>,
    pub(super) islands: Vec<(u64, VerifiedBatch)>,
    pub(super) facts: Facts,
    /// Generation of the sealed segment that is scanned for facts only.
    state_source: Option<u64>,
    state_search: Option<StateSearch>,
    pub(super) damages: Vec<Damage>,
    pub(super) scanned_records: u64,
    /// End of what the scan begun last has found in its segment.
    found_until: u64,
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
pub(super) struct Break {
    pub(super) name: String,
    pub(super) generation: u64,
    /// Where it should be, up to where it would end as far as that can be told.
    pub(super) bytes: Range<u64>,
    pub(super) expected: u64,
    /// A batch was begun there.
    pub(super) begun: bool,
}

/// Which sealed segments are read for facts, by their place among the sealed ones.
#[derive(Copy, Clone, Debug)]
struct StateSearch {
    first: usize,
    next: usize,
    /// From their first batch, not from the last checkpoint.
    whole: bool,
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
            islands: Vec::new(),
            facts: Facts::default(),
            state_source: None,
            state_search: None,
            damages: Vec::new(),
            scanned_records: 0,
            found_until: DATA_START,
        }
    }

    /// Whether the scan begun last has found nothing, neither a batch nor the beginning of one.
    pub(crate) fn last_segment_is_untouched(&self) -> bool {
        self.found_until == DATA_START
    }

    /// Whether the segment that was scanned last has room left for any batch, and for the index of it all, as one
    /// without any batch has: then its incarnation has used no segment behind it.
    pub(crate) fn last_segment_was_never_full(&self, segment_bytes: u64) -> bool {
        let Some(last) = self.segments.last() else { return false };
        let WalkedContents::Scanned(frames) = &last.contents else { return false };
        let batch_bytes = segment_bytes / SEGMENT_BATCHES_MIN as u64;
        let frames_max = batch_bytes as usize / FRAME_HEADER_BYTES;
        // A frame out of order may have split a run in two.
        let runs_max = 2 * frames.len() + frames_max;
        let needed = batch_bytes + index_bytes(frames.len() + frames_max, runs_max);
        self.found_until == last.end_offset && self.found_until + needed <= segment_bytes
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
                self.break_at(found, one_block(DATA_START), adjacent);
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
        self.found_until = DATA_START;
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
    pub(super) fn meet_predecessor(&mut self, end: JournalEnd, until: u64) {
        if let Some(broken) = &self.broken {
            if broken.generation >= until {
                return;
            }
            if broken.expected > end.sequence {
                if self.islands.iter().any(|(generation, _)| *generation >= until) {
                    // Batches of the new incarnation were refused: no sound journal has those.
                    self.evidence = self.evidence.max(broken.expected);
                } else {
                    self.broken = None;
                }
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
            self.break_at(&found, last_block(end.offset)..end.offset, true);
            self.evidence = self.evidence.max(end.sequence);
        }
    }

    /// The end that was named is the last batch before this segment, or another batch with its
    /// sequence: then one of the two belongs to another history.
    fn meet_predecessor_crc(&mut self, found: &FoundSegment, end: JournalEnd) {
        let Some(chain) = self.chain else { return };
        if chain.sequence == end.sequence && !chain.leads_to(end.crc) {
            self.break_at(found, one_block(DATA_START), true);
            self.evidence = self.evidence.max(chain.sequence + 1);
        }
    }

    fn break_at(&mut self, found: &FoundSegment, bytes: Range<u64>, begun: bool) {
        self.broken.get_or_insert(Break {
            name: found.name.clone(),
            generation: found.generation(),
            bytes,
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
        self.found_until = match &found {
            Found::Batch(batch) => batch.end_offset(),
            Found::Damaged(header) => offset + header.padded_length() as u64,
            Found::Nothing | Found::NeedBytes => self.found_until,
        };
        match found {
            Found::Batch(batch) if self.is_next(&batch) => self.accept(batch),
            Found::Batch(batch) => {
                self.break_here(one_block(offset), false);
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
                if self.may_go_on_at(offset)
                    && self.broken.as_ref().is_some_and(|b| b.expected == header.sequence.get())
                {
                    self.broken = None;
                }
                self.break_here(offset..offset + header.padded_length() as u64, true);
                if self.expects_before(&header) {
                    self.something_there = true;
                    self.evidence = self.evidence.max(durable_sequence(&header));
                }
            }
            Found::Nothing => self.break_here(one_block(offset), false),
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
    fn break_here(&mut self, bytes: Range<u64>, begun: bool) {
        let segment = self.segments.last().expect("a scan was begun");
        let found = segment.found.clone();
        self.break_at(&found, bytes, begun);
    }

    fn is_next(&mut self, batch: &VerifiedBatch) -> bool {
        let first_of_segment = batch.offset == DATA_START;
        if self.broken.is_some() {
            let goes_on = self.may_go_on_at(batch.offset) && self.continues_chain(batch);
            if goes_on {
                self.broken = None;
            }
            return goes_on;
        }
        self.continues_chain(batch) || (first_of_segment && self.may_skip(batch))
    }

    /// Whether the batch that was not where it was expected may be here instead: only the first
    /// place of a later segment is where a journal goes on.
    fn may_go_on_at(&self, offset: u64) -> bool {
        self.broken.as_ref().is_some_and(|broken| {
            offset == DATA_START
                && !broken.begun
                && !self.something_there
                && broken.generation < self.current_generation()
        })
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

    pub(super) fn append(&mut self, batch: VerifiedBatch) {
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
}

/// What a batch says was durable before it.
fn durable_sequence(header: &BatchHeader) -> u64 {
    if mutants::is(Mutant::NoDurableWatermark) { 0 } else { header.durable_sequence.get() }
}

fn one_block(offset: u64) -> Range<u64> {
    offset..offset + BLOCK_BYTES as u64
}

fn last_block(offset: u64) -> u64 {
    offset.saturating_sub(BLOCK_BYTES as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recovery::tests::{footer, found};

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
}
