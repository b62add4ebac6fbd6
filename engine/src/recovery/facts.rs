//! What the journal's facts make of the streams and segments, in the order in which they were
//! written.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::checkpoint::LiveSegment;
use crate::control::Control;
use crate::scan::VerifiedBatch;
use crate::stream::{EpochStart, StreamId, StreamState};

/// State of the streams and the list of live segments, as facts build it.
#[derive(Debug, Default)]
pub(super) struct Facts {
    pub(super) streams: HashMap<StreamId, StreamState>,
    /// By generation, as the last checkpoint says, less what was freed since.
    pub(super) listed: BTreeMap<u64, LiveSegment>,
    /// Generations freed since the last checkpoint.
    pub(super) freed: HashSet<u64>,
    /// Generation of the segment that holds the last complete checkpoint.
    pub(super) checkpoint: Option<u64>,
    building: Option<(HashMap<StreamId, StreamState>, BTreeMap<u64, LiveSegment>)>,
}

impl Facts {
    pub(super) fn replay(&mut self, generation: u64, batch: &VerifiedBatch) {
        for control in &batch.controls {
            self.replay_control(generation, control);
        }
        if batch.is_moved() {
            return;
        }
        for frame in &batch.frames {
            let state = self.streams.entry(frame.stream).or_default();
            if frame.epoch > state.epochs.last().epoch {
                // It begins here, unless a cut that is lost to damage began it before.
                state.next = frame.base;
                let start = EpochStart { epoch: frame.epoch, start: frame.base };
                state.epochs.begin(start, state.trimmed);
            }
            state.next = state.next.max(frame.base + u64::from(frame.count));
        }
    }

    fn replay_control(&mut self, generation: u64, control: &Control) {
        match control {
            Control::Trim { stream, before } => {
                let state = self.streams.entry(*stream).or_default();
                state.trimmed = state.trimmed.max(*before);
                state.next = state.next.max(*before);
                state.epochs.trim(state.trimmed);
            }
            Control::Epoch { stream, start } => {
                let state = self.streams.entry(*stream).or_default();
                state.next = start.start;
                state.epochs.begin(*start, state.trimmed);
            }
            Control::Free { generation, .. } => {
                self.listed.remove(generation);
                self.freed.insert(*generation);
            }
            Control::CheckpointBegin => self.building = Some(Default::default()),
            Control::CheckpointStream { stream, trimmed, next, epochs } => {
                if let Some((streams, _)) = &mut self.building {
                    let (trimmed, next, epochs) = (*trimmed, *next, epochs.clone());
                    streams.insert(*stream, StreamState { trimmed, next, epochs });
                }
            }
            Control::CheckpointSegment { number, generation, last_crc } => {
                if let Some((_, listed)) = &mut self.building {
                    let (number, last_crc) = (*number, *last_crc);
                    listed.insert(*generation, LiveSegment { number, last_crc });
                }
            }
            Control::CheckpointEnd => {
                if let Some((streams, listed)) = self.building.take() {
                    self.streams = streams;
                    self.listed = listed;
                    self.freed.clear();
                    self.checkpoint = Some(generation);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::*;
    use crate::batch::SealedFrame;
    use crate::format::BatchHeader;

    fn batch(epoch: u64, base: u64, count: u32) -> VerifiedBatch {
        let stream = StreamId::new(7);
        let frame = SealedFrame { stream, epoch, base, count, position: 64, length: 64, crc: 0 };
        let header = BatchHeader::new_zeroed();
        let (frames, controls) = (vec![frame], Vec::new());
        VerifiedBatch { offset: 8192, header, frames, controls, payload_bytes: 0 }
    }

    #[test]
    fn records_begin_an_epoch_also_where_the_cut_that_did_is_lost() {
        let mut facts = Facts::default();
        facts.replay(1, &batch(0, 0, 6));
        facts.replay(1, &batch(5, 4, 1));
        facts.replay(1, &batch(5, 5, 2));
        let state = &facts.streams[&StreamId::new(7)];
        assert_eq!(state.next, 7);
        assert_eq!(state.epochs.epoch_at(3), 0);
        assert_eq!(state.epochs.last(), EpochStart { epoch: 5, start: 4 });
    }
}
