//! What an open that may write does behind recovery: it makes what was accepted durable, seals it,
//! and begins a new incarnation.

use std::collections::HashSet;
use std::io;

use super::{ANCHOR, Opening};
use crate::checkpoint::LiveSegment;
use crate::config::Options;
use crate::directory::corrupt;
use crate::disk::{BLOCK_BYTES, BufferMut, FileId, Operation, run};
use crate::error::OpenError;
use crate::flush::Flush;
use crate::footer::{SealFacts, build};
use crate::format::{AnchorHeader, COUNTER_LAST, DATA_START, FooterHeader, SegmentSeed};
use crate::index::Index;
use crate::mutants::{self, Mutant};
use crate::recovery::{Damage, FoundSegment, Plan, Recovered, WalkedContents, WalkedSegment};
use crate::segments::{Segments, SegmentsConfig};
use crate::shard::Start;
use crate::stream::StreamTable;

impl Opening<'_> {
    /// Makes what was accepted durable, seals it, and begins a new incarnation.
    pub(super) fn begin(
        &mut self,
        plan: &Plan,
        recovered: &mut Recovered,
        anchor_file: Option<FileId>,
        options: &Options,
    ) -> Result<Start, OpenError> {
        if let Some(damage) = high_counter(plan, recovered) {
            return Err(corrupt(&self.directory, &damage.file, &damage.what));
        }
        if !self.unfinished.is_empty() {
            // Whoever made these may have died before their names were durable.
            self.sync_directory()?;
        }
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
        if options.accept_loss_from.is_some_and(|(shard, _)| shard == self.shard) {
            self.give_up(plan, recovered)?;
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
        self.write_anchor(anchor_file, incarnation, first.number, first.generation)
            .map_err(|error| self.no_space(error))?;
        let epochs_max = (self.identity.segment_bytes / 2 / 64) as usize;
        let live = recovered
            .live
            .iter()
            .map(|segment| {
                let (number, last_crc) = (segment.found.number(), segment.last_crc);
                (segment.found.generation(), LiveSegment { number, last_crc })
            })
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

    /// Takes the headers off the files behind an end that somebody insists on: sealed ones would
    /// count again once a later end than that is named.
    fn give_up(&mut self, plan: &Plan, recovered: &Recovered) -> Result<(), OpenError> {
        let live: HashSet<u64> =
            recovered.live.iter().map(|segment| segment.found.generation()).collect();
        let all = plan.segments.iter().chain(&plan.unused);
        for found in all.filter(|found| !live.contains(&found.generation())) {
            let zeroes = BufferMut::allocate(DATA_START as usize).freeze();
            self.write(&found.name, found.file, 0, zeroes, DATA_START as usize)?;
            self.given_up.insert(found.generation());
            self.unfinished.push((found.number(), found.file));
        }
        Ok(())
    }

    /// Why there is no first segment.
    fn no_segment(&self, refusal: Option<io::Error>) -> OpenError {
        let refusal = refusal.unwrap_or_else(|| io::Error::from_raw_os_error(libc::ENOSPC));
        self.no_space(self.io("preparing a segment in", "")(refusal))
    }

    /// A refusal for want of space tells how much is wanted.
    fn no_space(&self, error: OpenError) -> OpenError {
        match error {
            OpenError::Io { source, .. }
                if matches!(source.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT)) =>
            {
                OpenError::NoSpace {
                    directory: self.directory.clone(),
                    segment_bytes: self.identity.segment_bytes,
                    free_bytes: self.disk.free_bytes().unwrap_or(0),
                }
            }
            other => other,
        }
    }

    /// Gives a recovered tail its index and footer, so that no later open scans it.
    fn seal(
        &mut self,
        segment: &WalkedSegment,
        successor: Option<(u64, u64)>,
        index: &Index,
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
        let all = plan.segments.iter().chain(&plan.unused);
        let is_clean = |found: &&FoundSegment| {
            let generation = found.generation();
            !live.contains(&generation) && !self.given_up.contains(&generation)
        };
        let clean = all.filter(is_clean).map(|found| (found.number(), found.file)).collect();
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
        let file = match file {
            Some(file) => file,
            None => self.lay_anchor()?,
        };
        let id = self.identity.engine_id;
        let anchor = AnchorHeader::new(id, u32::from(self.shard), incarnation, number, generation);
        let mut block = BufferMut::allocate(BLOCK_BYTES);
        anchor.write(&mut block);
        let offset = (incarnation % 2) * BLOCK_BYTES as u64;
        self.write(ANCHOR, file, offset, block.freeze(), BLOCK_BYTES)
    }

    /// Makes room for both blocks of the anchor, durably before one of them says anything: a
    /// later open that finds one written never needs space for the other.
    fn lay_anchor(&mut self) -> Result<FileId, OpenError> {
        let file = self.open_file(ANCHOR, true)?;
        let allocate = Operation::Allocate { file, length: 2 * BLOCK_BYTES as u64 };
        self.run("allocate", ANCHOR, allocate)?;
        self.run("sync", ANCHOR, Operation::SyncAll { file })?;
        self.sync_directory()?;
        Ok(file)
    }

    fn sync_directory(&mut self) -> Result<(), OpenError> {
        if !mutants::is(Mutant::NoDirectorySync) {
            self.run("sync", "", Operation::SyncDirectory)?;
        }
        Ok(())
    }
}

/// A counter so high that what follows would not be believed.
pub(super) fn high_counter(plan: &Plan, recovered: &Recovered) -> Option<Damage> {
    let generations = plan.segments.iter().map(FoundSegment::generation);
    let offsets = recovered.streams.values().map(|state| state.next);
    let highest = [plan.incarnation, recovered.end.sequence].into_iter();
    let highest = highest.chain(generations).chain(offsets).max().unwrap_or(0);
    (highest >= COUNTER_LAST).then(|| Damage {
        file: "journal".into(),
        bytes: 0..0,
        what: format!("a counter stands at {highest}: no engine lives so long"),
    })
}
