//! The segment files of a shard's folder: what their headers say, and what they would say if a
//! copy, the batches or the file's proper name were asked.

use std::collections::HashMap;
use std::path::PathBuf;

use crate::disk::blocking::BlockingDisk;
use crate::disk::{BLOCK_BYTES, BufferMut, Disk, FileId, Operation, block_round_up, run};
use crate::error::OpenError;
use crate::format::{BatchHeader, DATA_START, FormatError, SegmentHeader};
use crate::opening::Survey;
use crate::segments::{segment_name, segment_number};

use super::remedy::Remedy;
use super::site::Site;

/// A file named like a segment.
pub(super) struct SegmentFile {
    pub(super) name: String,
    pub(super) number: u64,
    pub(super) length: u64,
    pub(super) copies: [Result<SegmentHeader, FormatError>; 2],
    /// The two header blocks and the first of the data.
    pub(super) blocks: Vec<u8>,
}

/// Whose a file is.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(super) enum Owner {
    /// As it should be.
    This,
    /// Another engine's.
    OtherEngine,
    /// Of this engine, but another shard or another number.
    Misplaced { shard: u16, number: u64 },
    /// Its header cannot be read.
    Unknown,
}

/// Reads the headers of all files that are named like segments.
pub(super) fn segment_files(
    site: &Site,
    shard: u16,
    disk: &mut BlockingDisk,
) -> Result<Vec<SegmentFile>, OpenError> {
    let path = site.directory.shard_path(shard);
    let mut files = Vec::new();
    for entry in disk.list().map_err(OpenError::io("list", &path))? {
        let Some(number) = segment_number(&entry.name) else { continue };
        let length = DATA_START as usize + BLOCK_BYTES;
        let blocks = read_file(disk, &entry.name, length)
            .map_err(OpenError::io("read", path.join(&entry.name)))?;
        let copies =
            [0, BLOCK_BYTES].map(|at| SegmentHeader::verify(blocks.get(at..).unwrap_or(&[])));
        files.push(SegmentFile { name: entry.name, number, length: entry.length, copies, blocks });
    }
    Ok(files)
}

/// The first `length` bytes of a file, or what there is of them.
pub(super) fn read_file(
    disk: &mut BlockingDisk,
    name: &str,
    length: usize,
) -> std::io::Result<Vec<u8>> {
    let (file, _) = run(disk, Operation::Open { name: name.to_owned(), create: false })?;
    let length = block_round_up(length);
    let buffer = BufferMut::allocate(length);
    let operation = Operation::Read { file: FileId(file as u32), offset: 0, buffer, length };
    let (read, buffer) = run(disk, operation)?;
    Ok(buffer.map(|buffer| buffer[..read as usize].to_vec()).unwrap_or_default())
}

impl SegmentFile {
    /// The header from either copy.
    pub(super) fn header(&self) -> Option<SegmentHeader> {
        self.copies.iter().find_map(|copy| copy.as_ref().ok().copied())
    }

    pub(super) fn owner(&self, site: &Site, shard: u16) -> Owner {
        let Some(header) = self.header() else { return Owner::Unknown };
        if header.engine_id != site.directory.engine_id {
            return Owner::OtherEngine;
        }
        let Some(its_shard) = u16::try_from(header.shard.get())
            .ok()
            .filter(|its_shard| site.shards().contains(its_shard))
        else {
            return Owner::OtherEngine;
        };
        let number = header.number.get();
        if (its_shard, number) == (shard, self.number) {
            return Owner::This;
        }
        Owner::Misplaced { shard: its_shard, number }
    }

    /// The first batch's header, believed by the checksum of the generation that it names itself.
    /// For a file whose own header is lost.
    fn first_batch(&self, site: &Site) -> Option<BatchHeader> {
        let bytes = self.blocks.get(DATA_START as usize..)?;
        BatchHeader::verify_itself(bytes, &site.directory.engine_id, self.number).ok()
    }

    /// Whether it holds a batch of a later life than `generation`.
    pub(super) fn begins_behind(&self, site: &Site, generation: u64) -> bool {
        self.header().is_some_and(|header| {
            header.generation.get() > generation
                && self.first_batch(site).is_some_and(|batch| batch.generation == header.generation)
        })
    }

    /// The header as its first batch and the segment before it tell it.
    pub(super) fn rebuilt_header(
        &self,
        site: &Site,
        shard: u16,
        survey: &Survey,
    ) -> Option<SegmentHeader> {
        let batch = self.first_batch(site)?;
        let (generation, incarnation) = (batch.generation.get(), batch.incarnation.get());
        let before = survey
            .recovered
            .live
            .iter()
            .rev()
            .find(|segment| segment.found.generation() < generation);
        let continues = before.is_none_or(|segment| {
            segment.last_sequence + 1 == batch.sequence.get()
                && segment.last_crc == batch.previous_crc.get()
        });
        let predecessor = match before {
            Some(segment) if segment.found.header.incarnation.get() == incarnation => None,
            Some(segment) if continues => Some(segment.end()),
            Some(_) => return None,
            None if batch.sequence.get() == 1 => Some(Default::default()),
            None => None,
        };
        Some(SegmentHeader::new(
            site.directory.engine_id,
            u32::from(shard),
            self.number,
            generation,
            incarnation,
            site.directory.segment_bytes,
            predecessor,
        ))
    }
}

/// Header blocks as they are written.
pub(super) fn header_blocks(header: &SegmentHeader) -> Vec<u8> {
    let mut blocks = vec![0; DATA_START as usize];
    header.write(&mut blocks[..BLOCK_BYTES]);
    header.write(&mut blocks[BLOCK_BYTES..]);
    blocks
}

/// Files that a repair can make count again, with the header that each would have.
pub(super) fn assumptions(
    site: &Site,
    shard: u16,
    files: &[SegmentFile],
    survey: &Survey,
) -> HashMap<String, SegmentHeader> {
    let mut assumed = HashMap::new();
    for file in files {
        let header = match file.owner(site, shard) {
            // A file that nobody misses will be prepared again.
            Owner::Unknown => {
                let mut damages = survey.recovered.damages.iter();
                let is_missed = damages.any(|damage| damage.file == file.name);
                file.rebuilt_header(site, shard, survey).filter(|_| is_missed)
            }
            Owner::Misplaced { shard: its, number } => {
                let name_is_free = files.iter().all(|other| other.number != number);
                file.header().filter(|_| its == shard && name_is_free)
            }
            Owner::This | Owner::OtherEngine => None,
        };
        assumed.extend(header.map(|header| (file.name.clone(), header)));
    }
    assumed
}

/// Where a misplaced file goes: to its own name, or, when that is taken, aside.
pub(super) fn put_back(site: &Site, from: PathBuf, shard: u16, number: u64) -> Remedy {
    let to = PathBuf::from(Site::shard_name(shard)).join(segment_name(number));
    if site.directory.path.join(&to).exists() {
        return Remedy::SetAside { file: from };
    }
    Remedy::Move { from, to }
}
