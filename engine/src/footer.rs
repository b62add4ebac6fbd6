//! The index and footer that seal a segment: built from the shard's index, read back at open.
//! No I/O.

use zerocopy::{FromBytes, IntoBytes};

use crate::disk::{BLOCK_BYTES, Buffer, BufferMut, block_round_up};
use crate::format::{
    DATA_START, ENTRY_BYTES, EntryRecord, FRAME_HEADER_BYTES, FooterHeader, FormatError, RUN_BYTES,
    RunRecord, SegmentSeed, check_counters,
};
use crate::index::Entry;

/// What a segment's footer says beside its index.
#[derive(Clone, Debug)]
pub(crate) struct SealFacts {
    pub(crate) generation: u64,
    pub(crate) seed: SegmentSeed,
    pub(crate) segment_bytes: u64,
    pub(crate) first_sequence: u64,
    pub(crate) first_previous_crc: u32,
    pub(crate) last_sequence: u64,
    pub(crate) last_crc: u32,
    pub(crate) end_offset: u64,
    pub(crate) checkpoint_offset: u64,
    /// Number and generation of the segment that follows.
    pub(crate) successor: Option<(u64, u64)>,
    pub(crate) records: u64,
    pub(crate) payload_bytes: u64,
}

/// The blocks to write, in this order, each durable before the next.
#[derive(Debug)]
pub(crate) struct FooterBlocks {
    /// Entries and runs.
    pub(crate) body: Buffer,
    pub(crate) body_offset: u64,
    /// Bytes of it to write; 0 when there is no frame to index.
    pub(crate) body_length: usize,
    /// The last block of the file.
    pub(crate) last: Buffer,
    pub(crate) last_offset: u64,
    pub(crate) footer: FooterHeader,
}

/// Lays entries, runs and footer out at the end of the segment.
pub(crate) fn build(facts: &SealFacts, runs: Vec<(RunRecord, Vec<Entry>)>) -> FooterBlocks {
    let entries: usize = runs.iter().map(|(_, entries)| entries.len()).sum();
    let indexed: u64 =
        runs.iter().flat_map(|(_, entries)| entries).map(|entry| u64::from(entry.count)).sum();
    assert_eq!(indexed, facts.records, "the index names every record");
    let entries_bytes = block_round_up(entries * ENTRY_BYTES);
    let runs_bytes = block_round_up(runs.len() * RUN_BYTES);
    let last_offset = FooterHeader::offset(facts.segment_bytes);
    let runs_offset = last_offset - runs_bytes as u64;
    let entries_offset = runs_offset - entries_bytes as u64;
    assert!(entries_offset >= facts.end_offset, "room for the index was kept");

    let body_length = entries_bytes + runs_bytes;
    let mut body = BufferMut::allocate(body_length);
    let mut entry_index = 0;
    for (run_index, (mut run, run_entries)) in runs.iter().cloned().enumerate() {
        run.entry = (entry_index as u32).into();
        run.entries = (run_entries.len() as u32).into();
        for entry in run_entries {
            let at = entry_index * ENTRY_BYTES;
            body[at..at + ENTRY_BYTES].copy_from_slice(EntryRecord::from(entry).as_bytes());
            entry_index += 1;
        }
        let at = entries_bytes + run_index * RUN_BYTES;
        body[at..at + RUN_BYTES].copy_from_slice(run.as_bytes());
    }
    let (number, generation) = facts.successor.unwrap_or_default();
    let footer = FooterHeader {
        magic: FooterHeader::MAGIC,
        crc: 0.into(),
        first_previous_crc: facts.first_previous_crc.into(),
        first_sequence: facts.first_sequence.into(),
        last_sequence: facts.last_sequence.into(),
        last_crc: facts.last_crc.into(),
        runs_crc: crc32c::crc32c(&body[entries_bytes..entries_bytes + runs.len() * RUN_BYTES])
            .into(),
        end_offset: facts.end_offset.into(),
        entries_offset: entries_offset.into(),
        runs_offset: runs_offset.into(),
        entries: (entries as u32).into(),
        runs: (runs.len() as u32).into(),
        checkpoint_offset: facts.checkpoint_offset.into(),
        successor_number: number.into(),
        successor_generation: generation.into(),
        records: facts.records.into(),
        payload_bytes: facts.payload_bytes.into(),
        entries_crc: crc32c::crc32c(&body[..entries * ENTRY_BYTES]).into(),
        reserved: 0.into(),
        reserved_end: 0.into(),
    };
    let mut last = BufferMut::allocate(BLOCK_BYTES);
    footer.write(facts.seed, facts.segment_bytes, &mut last);
    let (body, last) = (body.freeze(), last.freeze());
    FooterBlocks { body, body_offset: entries_offset, body_length, last, last_offset, footer }
}

impl From<Entry> for EntryRecord {
    fn from(entry: Entry) -> Self {
        Self {
            base_offset: entry.base.into(),
            count: entry.count.into(),
            position: entry.position.into(),
            frame_crc: entry.frame_crc.into(),
        }
    }
}

impl From<EntryRecord> for Entry {
    fn from(record: EntryRecord) -> Self {
        Self {
            base: record.base_offset.get(),
            count: record.count.get(),
            position: record.position.get(),
            frame_crc: record.frame_crc.get(),
        }
    }
}

/// The runs, read from `runs_offset` on.
///
/// # Errors
/// When they are not what was written.
pub(crate) fn read_runs(
    footer: &FooterHeader,
    bytes: &[u8],
) -> Result<Vec<RunRecord>, FormatError> {
    let length = footer.runs.get() as usize * RUN_BYTES;
    let bytes = bytes.get(..length).ok_or(FormatError::Short)?;
    if crc32c::crc32c(bytes) != footer.runs_crc.get() {
        return Err(FormatError::Checksum);
    }
    let (runs, entries) = (bytes.chunks_exact(RUN_BYTES), footer.entries.get());
    runs.map(|run| {
        let run = RunRecord::read_from_bytes(run).map_err(|_| FormatError::Short)?;
        let entries_end = u64::from(run.entry.get()) + u64::from(run.entries.get());
        let ordered = run.base_offset.get() < run.end_offset.get();
        if entries_end > u64::from(entries) || !ordered {
            return Err(FormatError::Length);
        }
        check_counters(&[run.end_offset.get()])?;
        // Segments are shorter than that.
        if run.frame_bytes.get() > u64::from(u32::MAX) {
            return Err(FormatError::Length);
        }
        Ok(run)
    })
    .collect()
}

/// The entries of a run, which follow one another without a gap, from the bytes that they begin.
///
/// # Errors
/// When they are not what was written. A part of the entries has no checksum of its own, so this
/// finds what a reader could stumble over; the frame itself tells the rest.
pub(crate) fn read_entries(
    run: &RunRecord,
    bytes: &[u8],
    segment_bytes: u64,
) -> Result<Vec<Entry>, FormatError> {
    let length = run.entries.get() as usize * ENTRY_BYTES;
    let bytes = bytes.get(..length).ok_or(FormatError::Short)?;
    let mut next = run.base_offset.get();
    let mut entries = Vec::with_capacity(run.entries.get() as usize);
    for bytes in bytes.chunks_exact(ENTRY_BYTES) {
        let record = EntryRecord::read_from_bytes(bytes).map_err(|_| FormatError::Short)?;
        let entry = Entry::from(record);
        let places = DATA_START..segment_bytes - FRAME_HEADER_BYTES as u64;
        let follows = entry.base == next && entry.count > 0;
        if !follows || !places.contains(&u64::from(entry.position)) {
            return Err(FormatError::Length);
        }
        next = next.checked_add(u64::from(entry.count)).ok_or(FormatError::Length)?;
        entries.push(entry);
    }
    if next != run.end_offset.get() {
        return Err(FormatError::Length);
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> SealFacts {
        SealFacts {
            generation: 2,
            seed: SegmentSeed::new(&[3; 16], 1, 2),
            segment_bytes: 1 << 20,
            first_sequence: 1,
            first_previous_crc: 0,
            last_sequence: 4,
            last_crc: 9,
            end_offset: 64 << 10,
            checkpoint_offset: 0,
            successor: None,
            records: 3,
            payload_bytes: 30,
        }
    }

    #[test]
    fn an_index_comes_back_as_it_was_built() {
        let run = RunRecord {
            stream: 7.into(),
            epoch: 0.into(),
            base_offset: 5.into(),
            end_offset: 8.into(),
            entry: 0.into(),
            entries: 0.into(),
            frame_bytes: 300.into(),
        };
        let entries = vec![
            Entry { base: 5, count: 2, position: 8256, frame_crc: 7 },
            Entry { base: 7, count: 1, position: 12352, frame_crc: 8 },
        ];
        let blocks = build(&facts(), vec![(run, entries.clone())]);
        let footer =
            FooterHeader::verify(&blocks.last, facts().seed, facts().segment_bytes).unwrap();
        let at = (footer.runs_offset.get() - blocks.body_offset) as usize;
        let runs = read_runs(&footer, &blocks.body[at..]).unwrap();
        assert_eq!((runs[0].stream.get(), runs[0].entries.get()), (7, 2));
        assert_eq!(read_entries(&runs[0], &blocks.body, 1 << 20).unwrap(), entries);
        for byte in 0..16 {
            let mut rotten = blocks.body.to_vec();
            rotten[byte] ^= 0x80;
            let found = read_entries(&runs[0], &rotten, 1 << 20);
            assert!(found.is_err() || (12..16).contains(&byte), "byte {byte}");
        }
        assert!(read_runs(&footer, &blocks.body[at + 1..]).is_err());
    }

    #[test]
    fn a_segment_without_frames_has_a_footer_too() {
        let blocks = build(&SealFacts { records: 0, ..facts() }, Vec::new());
        assert_eq!(blocks.body_length, 0);
        assert!(FooterHeader::verify(&blocks.last, facts().seed, 1 << 20).is_ok());
    }
}
