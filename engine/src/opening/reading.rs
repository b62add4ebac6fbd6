//! What an open reads: the anchor, the segments' headers and footers, and the batches that
//! recovery asks for.

use std::collections::HashSet;

use super::{ANCHOR, Opening};
use crate::disk::{BLOCK_BYTES, BufferMut, Completion, FileId, Operation, Wait, block_round_up};
use crate::error::OpenError;
use crate::footer::read_runs;
use crate::format::{
    AnchorHeader, BEGINNING_BYTES, BatchHeader, DATA_START, FooterHeader, FormatError, RUN_BYTES,
    RunRecord, SegmentHeader,
};
use crate::recovery::{Damage, FoundSegment, Plan, Recovered, Walk};
use crate::scan::{FirstCheckpoint, SegmentScan, first_checkpoint};
use crate::segments::segment_number;

/// Bytes of one read while scanning.
const CHUNK_BYTES: usize = 1 << 20;
const _: () = assert!(CHUNK_BYTES as u64 >= BEGINNING_BYTES);
/// Bytes read first when a checkpoint is looked for.
const FIRST_BYTES: usize = 16 << 10;
/// Reads in flight while scanning.
const CHUNKS_AHEAD: usize = 4;

impl Opening<'_> {
    /// The newest of the two blocks of the anchor, and its file.
    pub(super) fn read_anchor(&mut self) -> Result<Option<(AnchorHeader, FileId)>, OpenError> {
        let entries = self.disk.list().map_err(self.io("list", ""))?;
        if !entries.iter().any(|entry| entry.name == ANCHOR) {
            return Ok(None);
        }
        let file = self.open_file(ANCHOR, false)?;
        let bytes = self.read(ANCHOR, file, 0, 2 * BLOCK_BYTES)?;
        let newest = bytes
            .chunks(BLOCK_BYTES)
            .filter_map(|block| AnchorHeader::verify(block).ok())
            .filter(|anchor| anchor.engine_id == self.identity.engine_id)
            .max_by_key(|anchor| anchor.incarnation.get());
        Ok(newest.map(|anchor| (anchor, file)))
    }

    pub(super) fn find_segments(&mut self) -> Result<Vec<FoundSegment>, OpenError> {
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

    /// The newest complete checkpoint that a segment starts with, or that a close has left at its
    /// end: its generation, and the generations that it lists.
    pub(super) fn newest_checkpoint(
        &mut self,
        plan: &Plan,
    ) -> Result<Option<(u64, HashSet<u64>)>, OpenError> {
        for found in plan.segments.iter().rev() {
            let limit = plan.limit(found).unwrap_or(u64::MAX).min(self.identity.segment_bytes);
            let places = DATA_START + 1..limit;
            let closing = found.footer.map(|footer| footer.checkpoint_offset.get());
            let closing = closing.filter(|offset| places.contains(offset));
            for offset in [Some(DATA_START), closing].into_iter().flatten() {
                if let Some(listed) = self.checkpoint_at(found, offset..limit)? {
                    return Ok(Some((found.generation(), listed)));
                }
            }
        }
        Ok(None)
    }

    /// What the checkpoint lists that these bytes of a segment start with.
    fn checkpoint_at(
        &mut self,
        found: &FoundSegment,
        bytes: std::ops::Range<u64>,
    ) -> Result<Option<HashSet<u64>>, OpenError> {
        let (seed, generation, offset) = (found.header.seed(), found.generation(), bytes.start);
        let left = bytes.end.saturating_sub(offset) as usize;
        let mut length = FIRST_BYTES.min(left);
        loop {
            let bytes = self.read(&found.name, found.file, offset, length)?;
            // The file may end earlier than it should.
            let all = length == left || bytes.len() < length;
            match first_checkpoint(&bytes, all, seed, generation, offset) {
                FirstCheckpoint::Lists(listed) => return Ok(Some(listed)),
                FirstCheckpoint::NeedBytes if !all => length = (4 * length).min(left),
                FirstCheckpoint::NeedBytes | FirstCheckpoint::Nothing => return Ok(None),
            }
        }
    }

    /// Feeds the whole journal to recovery.
    pub(super) fn walk(
        &mut self,
        plan: &Plan,
        anchor: Option<AnchorHeader>,
    ) -> Result<Recovered, OpenError> {
        let mut walk = Walk::new(plan, anchor);
        // The incarnation whose segments from here on should be empty.
        let mut ended = None;
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
                continue;
            }
            walk.begin_scan(found);
            let incarnation = found.header.incarnation.get();
            let limit = limit.unwrap_or(u64::MAX).min(self.identity.segment_bytes);
            // An incarnation uses its segments in order: behind one that was never full there is no batch, or
            // else the beginning shows that it was.
            let is_brief = ended == Some(incarnation);
            self.scan(found, DATA_START..limit, is_brief, &mut walk)?;
            if walk.last_segment_was_never_full(self.identity.segment_bytes) {
                ended = Some(incarnation);
            }
        }
        while let Some((found, bytes)) = walk.poll_state_source() {
            let is_brief = false;
            self.scan(&found, bytes, is_brief, &mut walk)?;
        }
        Ok(walk.finish())
    }

    /// A short read is the end of a file only where the file ends: behind a failing page of a
    /// cache lie records.
    pub(super) fn check_end(&mut self, name: &str, at: u64) -> Result<(), OpenError> {
        let entries = self.disk.list().map_err(self.io("list", ""))?;
        match entries.iter().find(|entry| entry.name == name) {
            Some(entry) if at < entry.length => {
                let what = format!("a read ended at byte {at} of {}", entry.length);
                Err(self.io("read", name)(std::io::Error::other(what)))
            }
            _ => Ok(()),
        }
    }

    /// Reads a segment in large chunks, several at once, and hands them on in order. A brief scan reads one first,
    /// and ends as soon as all that it has read holds nothing.
    fn scan(
        &mut self,
        found: &FoundSegment,
        bytes: std::ops::Range<u64>,
        is_brief: bool,
        walk: &mut Walk,
    ) -> Result<(), OpenError> {
        self.scanned_segments += 1;
        let seed = found.header.seed();
        let mut scan = SegmentScan::new(seed, found.generation(), bytes.start, bytes.end);
        let (mut next, mut wanted) = (bytes.start, bytes.start);
        let mut arrived: Vec<Completion> = Vec::new();
        // The beginning of a batch whose rest is in the next chunk.
        let mut pending: Vec<u8> = Vec::new();
        let mut buffers: Vec<BufferMut> = Vec::with_capacity(CHUNKS_AHEAD);
        let mut in_flight = 0;
        loop {
            // What a brief scan reads next depends on what the first chunk holds.
            let in_flight_max = if is_brief && wanted == bytes.start { 1 } else { CHUNKS_AHEAD };
            while in_flight < in_flight_max && next < bytes.end {
                let length = block_round_up((bytes.end - next).min(CHUNK_BYTES as u64) as usize);
                let buffer = buffers.pop().filter(|buffer| buffer.len() == length);
                let buffer = buffer.unwrap_or_else(|| BufferMut::allocate(length));
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
                if length < buffer.len() {
                    // The file ends here, however long it should be.
                    self.check_end(&found.name, wanted + length as u64)?;
                    scan.end_at(wanted + length as u64);
                    next = bytes.end;
                }
                wanted += block_round_up(buffer.len().min(CHUNK_BYTES)) as u64;
                self.scanned_bytes += length as u64;
                let used = scan.handle_bytes(&pending, walk);
                pending.drain(..used);
                if is_brief && walk.last_segment_is_untouched() && pending.is_empty() {
                    next = bytes.end;
                }
                buffers.push(buffer);
            }
        }
        Ok(())
    }
}
