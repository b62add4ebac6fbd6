//! The frames of a sealed segment, by its own index: read once for all of its streams.

use std::sync::Arc;

use super::{Leg, Trouble, read_chunk};
use crate::disk::BLOCK_BYTES;
use crate::footer::{read_entries, read_runs};
use crate::format::{ENTRY_BYTES, FooterHeader, RUN_BYTES, RunRecord, SegmentSeed};
use crate::index::{Entry, Location, SealedIndex};
use crate::shared::Shared;

/// See the module.
pub(super) struct SealedEntries {
    pub(super) generation: u64,
    /// By stream, epoch and offset.
    runs: Vec<(RunRecord, Result<Vec<Entry>, Trouble>)>,
}

impl SealedEntries {
    pub(super) fn load(
        shared: &Shared,
        location: &Location,
        sealed: SealedIndex,
    ) -> Result<Self, Trouble> {
        let read = |from: u64, length: usize| {
            let chunk = read_chunk(shared, location, from, from + length as u64)?;
            Ok::<_, std::io::Error>(chunk.skip_to(from))
        };
        let io = |error| Trouble::Io(Arc::new(error));
        let at = FooterHeader::offset(shared.segment_bytes);
        let block = read(at, BLOCK_BYTES).map_err(io)?;
        let seed = SegmentSeed::new(&shared.engine_id, location.number, location.generation);
        let footer = FooterHeader::verify(&block, seed, shared.segment_bytes)
            .map_err(|error| Trouble::damaged(at, &error))?;
        let bytes = read(sealed.runs_offset, sealed.runs as usize * RUN_BYTES).map_err(io)?;
        let runs = read_runs(&footer, &bytes)
            .map_err(|error| Trouble::damaged(sealed.runs_offset, &error))?;
        // One bad block must not hide the entries of others: then they are read run by run.
        let all = read(sealed.entries_offset, footer.entries.get() as usize * ENTRY_BYTES).ok();
        let entries = |run: &RunRecord| {
            let skip = run.entry.get() as usize * ENTRY_BYTES;
            let (from, length) =
                (sealed.entries_offset + skip as u64, run.entries.get() as usize * ENTRY_BYTES);
            let bytes = match &all {
                Some(all) => all.slice(skip.min(all.len())..),
                None => read(from, length).map_err(io)?,
            };
            read_entries(run, &bytes, shared.segment_bytes)
                .map_err(|error| Trouble::damaged(from, &error))
        };
        let mut runs: Vec<_> = runs.into_iter().map(|run| (run, entries(&run))).collect();
        runs.sort_by_key(|(run, _)| (run.stream.get(), run.epoch.get(), run.base_offset.get()));
        Ok(Self { generation: location.generation, runs })
    }

    /// The frames of a leg, from before its next record on.
    pub(super) fn of(&self, leg: &Leg) -> Result<&[Entry], Trouble> {
        let (stream, epoch, next) = (leg.stream.get(), leg.location.epoch, leg.next);
        let first = self
            .runs
            .partition_point(|(run, _)| (run.stream.get(), run.epoch.get()) < (stream, epoch));
        let of_epoch = self.runs[first..]
            .iter()
            .take_while(|(run, _)| (run.stream.get(), run.epoch.get()) == (stream, epoch));
        let holds = |run: &RunRecord| run.base_offset.get() <= next && next < run.end_offset.get();
        let run = of_epoch.into_iter().find(|(run, _)| holds(run));
        let (_, entries) = run.ok_or_else(Trouble::no_entry)?;
        entries.as_deref().map_err(Clone::clone)
    }
}
