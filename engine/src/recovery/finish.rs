//! The end of a walk: the verdict on the break, what must be there and is not, and the trusted
//! state.

use std::collections::HashMap;
use std::ops::Range;

use super::walk::{Break, Walk};
use super::{Damage, Recovered, Verdict, WalkedContents, WalkedSegment, verdict};
use crate::disk::BLOCK_BYTES;
use crate::format::{DATA_START, JournalEnd};
use crate::index::Index;
use crate::mutants::{self, Mutant};
use crate::stream::{StreamId, StreamState};

impl Walk {
    /// Decides what the break means and builds the trusted state.
    pub(crate) fn finish(mut self) -> Recovered {
        if let Some(end) = self.predecessor {
            self.meet_predecessor(end, self.predecessor_until);
        }
        let torn = self.decide();
        self.drop_freed();
        self.check_listed(torn.as_ref());
        let last = self.segments.iter().rev().find(|segment| segment.last_sequence > 0);
        let end = last.map_or_else(JournalEnd::default, WalkedSegment::end);
        let end = match self.predecessor {
            Some(predecessor) if end.sequence < predecessor.sequence => predecessor,
            _ => end,
        };
        let mut live = self.segments;
        live.retain(|segment| segment.last_sequence > 0);
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
            damages: self.damages,
            missing,
            torn: torn.map(|(name, bytes)| (name, bytes.start)),
            scanned_records: self.scanned_records,
        }
    }

    /// Where a torn tail is cut, if one is.
    fn decide(&mut self) -> Option<(String, Range<u64>)> {
        let broken = self.broken.take()?;
        let something = self.something_there || broken.begun;
        match verdict(broken.expected, self.evidence, something) {
            Verdict::End => None,
            Verdict::Torn => Some((broken.name, broken.bytes)),
            Verdict::Corrupt => {
                let what = format!(
                    "batch {} was durable (a later one says so up to {}) and is damaged or missing",
                    broken.expected, self.evidence
                );
                for (file, bytes) in self.places_of(&broken) {
                    self.damages.push(Damage { file, bytes, what: what.clone() });
                }
                self.accept_islands();
                None
            }
        }
    }

    /// Where batches are not that must be there: up to the next one that verifies.
    fn places_of(&self, broken: &Break) -> Vec<(String, Range<u64>)> {
        let mut place = (broken.name.clone(), broken.bytes.clone());
        let Some((generation, island)) = self.islands.first() else { return vec![place] };
        if *generation == broken.generation {
            place.1.end = island.offset.max(broken.bytes.end);
            return vec![place];
        }
        // The journal goes on in a later segment, and each of them is filled from its first place.
        let later = self.segments.iter().find(|segment| segment.found.generation() == *generation);
        let Some(later) = later.filter(|_| island.offset > DATA_START) else { return vec![place] };
        let there = (later.found.name.clone(), DATA_START..island.offset);
        let is_only = island.header.sequence.get() == broken.expected + 1;
        if is_only && !broken.begun { vec![there] } else { vec![place, there] }
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
    fn check_listed(&mut self, torn: Option<&(String, Range<u64>)>) {
        let mut missing = Vec::new();
        for (generation, listed) in &self.facts.listed {
            if !self.present.contains(generation) {
                missing.push((listed.number, *generation, "the last checkpoint lists it"));
            }
        }
        if let (Some((file, bytes)), false) = (torn, missing.is_empty()) {
            // Nothing durable is said to have freed it, and its file has been used again.
            let what = "a batch is damaged here, which may be what freed a listed segment that is \
                        missing";
            let (file, bytes) = (file.clone(), bytes.clone());
            self.damages.push(Damage { file, bytes, what: what.into() });
        }
        self.check_last_crcs();
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
            let is_cut = *generation < self.predecessor_until
                && self.predecessor.is_some_and(|end| *generation > end.generation);
            let counts = !is_cut && self.counts(*generation);
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

    /// A listed segment whose last batch is another than the one that was listed belongs to another
    /// history, or has lost its end.
    fn check_last_crcs(&mut self) {
        for segment in &self.segments {
            let listed = self.facts.listed.get(&segment.found.generation());
            let expected = listed.map_or(0, |listed| listed.last_crc);
            let leads_here = expected == segment.last_crc || mutants::is(Mutant::NoChain);
            if expected != 0 && segment.last_sequence > 0 && !leads_here {
                let what = "its last batch is not the one that the last checkpoint names: the end \
                            is damaged, or the file is of another history (a restore from a wrong \
                            backup?)";
                self.damages.push(Damage {
                    file: segment.found.name.clone(),
                    bytes: segment.end_offset - BLOCK_BYTES as u64..segment.end_offset,
                    what: what.into(),
                });
            }
        }
    }
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
    use crate::checkpoint::LiveSegment;
    use crate::format::BatchHeader;
    use crate::recovery::Plan;
    use crate::recovery::tests::{footer, found};
    use crate::scan::{Found, VerifiedBatch};

    #[test]
    fn a_segment_that_was_cut_and_has_no_header_is_no_damage() {
        let damages = |headless: u64| {
            let end = JournalEnd { generation: 3, sequence: 8, ..JournalEnd::default() };
            let mut plan = Plan { predecessor: Some(end), predecessor_until: 6, ..Plan::default() };
            plan.add_headless(vec![(9, headless)]);
            assert_eq!(plan.generation_max, headless);
            Walk::new(&plan, None).finish().damages.len()
        };
        assert_eq!([2, 3, 4, 5, 6, 7].map(damages), [1, 1, 0, 0, 1, 1]);
    }

    #[test]
    fn a_break_behind_a_named_end_is_damage_when_what_follows_was_refused_too() {
        let damages = |followed: bool| {
            let end = JournalEnd { generation: 2, ..JournalEnd::default() };
            let plan = Plan { predecessor: Some(end), predecessor_until: 6, ..Plan::default() };
            let mut walk = Walk::new(&plan, None);
            walk.begin_scan(&found(2, 1, None));
            walk.handle_found(2, DATA_START, Found::Nothing);
            walk.begin_scan(&found(6, 2, None));
            if followed {
                let mut header = BatchHeader::new_zeroed();
                header.sequence = 9.into();
                let (frames, controls) = (Vec::new(), Vec::new());
                let offset = DATA_START;
                let batch = VerifiedBatch { offset, header, frames, controls, payload_bytes: 0 };
                walk.handle_found(6, DATA_START, Found::Batch(batch));
            }
            walk.finish().damages.len()
        };
        assert_eq!([false, true].map(damages), [0, 1]);
    }

    #[test]
    fn a_torn_batch_that_may_have_freed_what_is_missing_is_named_too() {
        let damages = |torn: bool| {
            let plan = Plan::new(vec![found(2, 1, None)], None, None);
            let mut walk = Walk::new(&plan, None);
            walk.facts.listed.insert(1, LiveSegment { number: 1, last_crc: 7 });
            walk.begin_scan(&found(2, 1, None));
            if torn {
                let header = BatchHeader::new_zeroed();
                walk.handle_found(2, DATA_START, Found::Damaged(header));
            }
            walk.finish().damages.into_iter().map(|damage| damage.file).collect::<Vec<_>>()
        };
        let (missing, torn) = (crate::segments::segment_name(1), crate::segments::segment_name(2));
        assert_eq!(damages(true), [torn, missing.clone()]);
        assert_eq!(damages(false), [missing]);
    }

    #[test]
    fn a_segment_of_another_history_is_named_at_its_last_batch() {
        let damages = |listed_crc: u32| {
            let plan = Plan::new(vec![found(1, 1, None)], None, None);
            let mut walk = Walk::new(&plan, None);
            let mut footer = footer(1, 2, 0);
            (footer.last_crc, footer.end_offset) = (7.into(), (DATA_START + 8192).into());
            walk.handle_sealed(&found(1, 1, None), footer, Vec::new());
            let listed = LiveSegment { number: 1, last_crc: listed_crc };
            walk.facts.listed.insert(1, listed);
            walk.finish().damages
        };
        assert_eq!(damages(7), []);
        let [damage] = damages(8).try_into().expect("one");
        assert_eq!(damage.file, crate::segments::segment_name(1));
        assert_eq!(damage.bytes, DATA_START + 4096..DATA_START + 8192);
    }
}
