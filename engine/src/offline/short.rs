//! Segments that are shorter than they were made. Each is zeroed over its whole length before its
//! header is written, so a missing end is never a crash: it was cut off, with all that was in it.

use crate::disk::BLOCK_BYTES;
use crate::format::{BatchHeader, DATA_START};
use crate::recovery::WalkedContents;

use super::files::{SegmentFile, read_file};
use super::shard_check::Examined;

/// What a file's missing end held.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(super) enum Behind {
    /// No batch that counts: the journal goes on behind this segment without a gap, or had ended
    /// before the cut.
    Nothing,
    /// Batches whose records later segments tell, if they count.
    Told,
    /// Perhaps batches, and nothing later tells of them.
    Untold,
}

/// Looks for the proof that a file's missing end held nothing.
pub(super) fn behind(examined: &mut Examined, file: &SegmentFile) -> std::io::Result<Behind> {
    let assumed = examined.assumed.get(&file.name).copied();
    let Some(header) = assumed.or_else(|| file.header()) else { return Ok(Behind::Untold) };
    let generation = header.generation.get();
    let (recovered, plan) = (&examined.survey.recovered, &examined.survey.plan);
    let live = &recovered.live;
    let at = live.iter().position(|segment| segment.found.generation() == generation);
    let later = live.iter().find(|segment| segment.found.generation() > generation);
    if let Some(later) = later {
        let is_seamless = at.is_some_and(|at| {
            later.first_sequence == live[at].last_sequence + 1
                && later.first_previous_crc == live[at].last_crc
        });
        let is_nothing = is_seamless || recovered.damages.is_empty();
        return Ok(if is_nothing { Behind::Nothing } else { Behind::Told });
    }
    let was_closed = live.last().is_some_and(|newest| match &newest.contents {
        WalkedContents::Sealed(footer, _) => {
            footer.successor_generation.get() == 0
                && newest.found.header.incarnation == header.incarnation
        }
        WalkedContents::Scanned(_) => false,
    });
    if at.is_none() && (was_closed || plan.is_unused(generation)) {
        return Ok(Behind::Nothing);
    }
    let end = at.map_or(DATA_START, |at| live[at].end_offset);
    // The next batch would have begun in the block behind the last one.
    if !recovered.damages.is_empty() || end + BLOCK_BYTES as u64 > file.length {
        return Ok(Behind::Untold);
    }
    let bytes = read_file(&mut examined.disk, &file.name, end as usize + BLOCK_BYTES)?;
    let Some(next) = bytes.get(end as usize..) else { return Ok(Behind::Untold) };
    let begun = BatchHeader::verify(next, header.seed(), end);
    let is_begun = begun.is_ok_and(|batch| batch.generation.get() == generation);
    Ok(if is_begun { Behind::Untold } else { Behind::Nothing })
}
