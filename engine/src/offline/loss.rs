//! What cutting a shard's journal would lose, and where it can be cut at all.

use std::collections::HashMap;

use crate::disk::Disk;
use crate::error::OpenError;
use crate::format::{DATA_START, JournalEnd};
use crate::index::Index;
use crate::opening::Survey;
use crate::recovery::WalkedSegment;
use crate::scan::Found;
use crate::stream::StreamId;

use super::places::Source;
use super::segment_check::SegmentCheck;
use super::shard_check::{Examined, good_end};
use super::site::Site;
use super::{Cut, StreamRange, subtract};

/// What a cut costs.
#[derive(Clone, Debug, Default)]
pub struct Loss {
    /// Records that count now and would be gone, also those that are unreadable already.
    pub lost: Vec<StreamRange>,
    /// More may be lost than that: the end of a segment, or a shard's folder, is gone, and nothing
    /// tells what it held.
    pub lost_untold: bool,
    /// Records of older epochs that would come back, since the epoch that cut them is behind the
    /// cut.
    pub returned: Vec<StreamRange>,
    /// Trims to be said again, since they were said behind the cut.
    pub(super) trims: Vec<(StreamId, u64)>,
}

impl Loss {
    /// Number of records lost, as far as it is known.
    pub fn records(&self) -> u64 {
        self.lost.iter().map(|range| range.offsets.end - range.offsets.start).sum()
    }
}

/// The last place of a shard at which its journal can be cut so that everything before is whole.
pub(super) fn find_cut(
    site: &Site,
    shard: u16,
    examined: &Examined,
    checks: &HashMap<u64, SegmentCheck>,
) -> Result<Option<Cut>, OpenError> {
    let live = &examined.survey.recovered.live;
    let (end, whole) = good_end(live, checks);
    let earlier = live[..whole.min(live.len())].iter().rev().map(WalkedSegment::end);
    let candidates = end.into_iter().chain(earlier).chain([JournalEnd::default()]);
    for end in candidates {
        if loss(site, shard, examined, end)?.is_some() {
            let first = examined.files.iter().map(|file| file.number).min().unwrap_or(0);
            let (segment, byte) =
                if end.generation == 0 { (first, 0) } else { (end.number, end.offset) };
            return Ok(Some(Cut { shard, segment, byte }));
        }
    }
    Ok(None)
}

/// The last good batch before a place that somebody named; `None` when no such segment counts.
pub(super) fn resolve(
    site: &Site,
    examined: &Examined,
    cut: Cut,
) -> Result<Option<JournalEnd>, OpenError> {
    let live = &examined.survey.recovered.live;
    if cut.byte == 0 && examined.files.iter().map(|file| file.number).min() == Some(cut.segment) {
        return Ok(Some(JournalEnd::default()));
    }
    let Some(at) = live.iter().position(|segment| segment.found.number() == cut.segment) else {
        return Ok(None);
    };
    let segment = &live[at];
    let found = &segment.found;
    let reader = examined.disk.reader();
    let source = Source {
        reader: &*reader,
        file: found.file,
        seed: found.header.seed(),
        generation: found.generation(),
    };
    let mut end = None;
    let bytes = DATA_START..segment.end_offset.min(cut.byte);
    let path = site.directory.shard_path(cut.shard).join(&found.name);
    source
        .places(bytes, |place| {
            let Found::Batch(batch) = &place.found else { return false };
            end = Some(JournalEnd {
                number: found.number(),
                generation: found.generation(),
                offset: batch.end_offset(),
                sequence: batch.header.sequence.get(),
                crc: batch.header.crc.get(),
            });
            true
        })
        .map_err(OpenError::io("read", path))?;
    let before = || at.checked_sub(1).map_or_else(JournalEnd::default, |at| live[at].end());
    Ok(Some(end.unwrap_or_else(before)))
}

/// What cutting behind `end` would lose; `None` when what stays would not be whole either.
pub(super) fn loss(
    site: &Site,
    shard: u16,
    examined: &Examined,
    end: JournalEnd,
) -> Result<Option<Loss>, OpenError> {
    let (_, after) = site.survey(shard, Some(end), &examined.assumed)?;
    let before = &examined.survey.recovered.index;
    let is_whole = after.recovered.index.holes().iter().all(|(stream, hole)| {
        before.streams.get(stream).is_some_and(|state| hole.end <= state.trimmed)
    });
    let is_read = after.recovered.damages.iter().all(|damage| damage.bytes.is_empty());
    Ok((is_whole && is_read && after.recovered.ends_at(end)).then(|| compare(before, &after)))
}

fn compare(before: &Index, after: &Survey) -> Loss {
    let after = &after.recovered.index;
    let mut loss = Loss::default();
    let mut streams: Vec<StreamId> = before.streams.keys().copied().collect();
    streams.sort_unstable();
    for stream in streams {
        let (old, new) = (&before.streams[&stream], after.streams.get(&stream));
        let new_trimmed = new.map_or(0, |new| old.trimmed.min(new.end).max(new.trimmed));
        if let Some(new) = new
            && new_trimmed > new.trimmed
        {
            loss.trims.push((stream, new_trimmed));
        }
        let mut is = StreamRange::split(stream, &old.epochs, old.trimmed..old.end);
        let mut stays = new.map_or_else(Vec::new, |new| {
            StreamRange::split(stream, &new.epochs, new_trimmed..new.end)
        });
        (is, stays) = (difference(&is, &stays), difference(&stays, &is));
        loss.lost.append(&mut is);
        loss.returned.append(&mut stays);
    }
    loss
}

/// What is in `from` and not in `other`, of one stream.
fn difference(from: &[StreamRange], other: &[StreamRange]) -> Vec<StreamRange> {
    let left = from.iter().flat_map(|range| {
        let same: Vec<_> = other
            .iter()
            .filter(|other| other.epoch == range.epoch)
            .map(|other| other.offsets.clone())
            .collect();
        subtract(range.offsets.clone(), &same)
            .into_iter()
            .map(|offsets| StreamRange { offsets, ..range.clone() })
    });
    left.collect()
}
