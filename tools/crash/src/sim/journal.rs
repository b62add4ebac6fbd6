//! The bytes of a device, read by the test itself: segments and the batches in them.

use ringwal_engine::disk::BLOCK_BYTES;
use ringwal_engine::disk::sim::SimHandle;
use ringwal_engine::format::{
    BatchHeader, DATA_START, FooterHeader, FrameKind, SegmentHeader, VerifiedFrame, verify_frames,
};

/// A batch whose checksums are right.
#[derive(Clone, Debug)]
pub struct Batch {
    pub offset: u64,
    pub length: u64,
    pub sequence: u64,
    pub crc: u32,
    pub durable_sequence: u64,
    /// Stream, epoch, first offset and offset behind the last of each data frame.
    pub frames: Vec<(u64, u64, u64, u64)>,
}

/// A file with a valid header.
#[derive(Clone, Debug)]
pub struct Segment {
    pub name: String,
    pub generation: u64,
    pub incarnation: u64,
    /// First and last sequence, and where the batches end, as its footer says.
    pub footer: Option<(u64, u64, u64)>,
    /// Generation that its footer names as the next.
    pub successor: u64,
    /// Generation, offset and sequence of the end before its incarnation, when it is the first.
    pub predecessor: Option<(u64, u64, u64)>,
    pub batches: Vec<Batch>,
}

/// All segments, by generation.
pub fn segments(sim: &SimHandle, segment_bytes: u64) -> Vec<Segment> {
    let mut segments: Vec<Segment> = sim
        .list()
        .iter()
        .filter(|entry| entry.name.starts_with("segment-"))
        .filter_map(|entry| segment(sim, &entry.name, segment_bytes))
        .collect();
    segments.sort_by_key(|segment| segment.generation);
    segments
}

fn segment(sim: &SimHandle, name: &str, segment_bytes: u64) -> Option<Segment> {
    let bytes = sim.bytes(name)?;
    let header =
        bytes.chunks(BLOCK_BYTES).take(2).find_map(|block| SegmentHeader::verify(block).ok())?;
    let seed = header.seed();
    let footer = bytes
        .get(FooterHeader::offset(segment_bytes) as usize..)
        .and_then(|block| FooterHeader::verify(block, seed, segment_bytes).ok());
    let mut batches = Vec::new();
    let mut offset = DATA_START as usize;
    while offset < bytes.len() {
        let mut frames = Vec::new();
        let valid =
            BatchHeader::verify(&bytes[offset..], seed, offset as u64).ok().filter(|batch| {
                let each = |_, frame: VerifiedFrame<'_>| {
                    if frame.kind == FrameKind::Data {
                        let (header, end) = (frame.header, frame.header.end_offset());
                        let (stream, epoch) = (header.stream.get(), header.epoch.get());
                        frames.push((stream, epoch, header.base_offset.get(), end));
                    }
                };
                verify_frames(batch, &bytes[offset..], each).is_ok()
                    && batch.generation == header.generation
            });
        let Some(batch) = valid else {
            offset += BLOCK_BYTES;
            continue;
        };
        batches.push(Batch {
            offset: offset as u64,
            length: batch.padded_length() as u64,
            sequence: batch.sequence.get(),
            crc: batch.crc.get(),
            durable_sequence: batch.durable_sequence.get(),
            frames,
        });
        offset += batch.padded_length();
    }
    Some(Segment {
        name: name.to_owned(),
        generation: header.generation.get(),
        incarnation: header.incarnation.get(),
        footer: footer.map(|footer| {
            (footer.first_sequence.get(), footer.last_sequence.get(), footer.end_offset.get())
        }),
        successor: footer.map_or(0, |footer| footer.successor_generation.get()),
        predecessor: header.predecessor().map(|end| (end.generation, end.offset, end.sequence)),
        batches,
    })
}

/// One line per segment, for a person.
pub fn describe(sim: &SimHandle, segment_bytes: u64) -> String {
    let lines = segments(sim, segment_bytes).into_iter().map(|segment| {
        let places: Vec<_> = segment
            .batches
            .iter()
            .map(|b| {
                format!("{}@{}({}) {:?}", b.sequence, b.offset / 4096, b.durable_sequence, b.frames)
            })
            .collect();
        format!(
            "{} generation {} incarnation {} after {:?} footer {:?} next {}: {}",
            segment.name,
            segment.generation,
            segment.incarnation,
            segment.predecessor,
            segment.footer,
            segment.successor,
            places.join(" ")
        )
    });
    lines.collect::<Vec<_>>().join("\n")
}
