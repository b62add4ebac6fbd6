//! Which of the files that were found make the journal, and in which order.

use std::collections::HashSet;

use crate::disk::FileId;
use crate::format::{AnchorHeader, FooterHeader, JournalEnd, SegmentHeader};

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
    pub(super) predecessor_until: u64,
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

    /// Adds segments that hold batches and have lost their header. Their generations are not given
    /// again.
    pub(crate) fn add_headless(&mut self, headless: Vec<(u64, u64)>) {
        let newest = headless.iter().map(|(_, generation)| *generation).max();
        self.generation_max = self.generation_max.max(newest.unwrap_or(0));
        self.headless = headless;
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

    /// Whether recovery left this generation out from the beginning.
    pub(crate) fn is_unused(&self, generation: u64) -> bool {
        self.unused.iter().any(|segment| segment.generation() == generation)
    }

    /// Byte at which the scan of this segment must stop, if an end was named inside it.
    pub(crate) fn limit(&self, segment: &FoundSegment) -> Option<u64> {
        self.predecessor.filter(|end| end.generation == segment.generation()).map(|end| end.offset)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recovery::tests::{footer, found};

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
}
