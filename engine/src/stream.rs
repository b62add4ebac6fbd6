//! Streams as they are sealed so far: offsets, epochs and trims. Decides whether a command may
//! extend a stream; knows nothing of segments or of what is durable.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;

use crate::error::Refusal;

/// Names a stream. Ids 0 to 3 are reserved for the system.
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash, Debug)]
pub struct StreamId(u64);

impl StreamId {
    /// The stream with this id.
    pub const fn new(id: u64) -> Self {
        Self(id)
    }

    /// Its id.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The shard that holds it, of `shards`: a stable hash, part of the format.
    pub fn shard(self, shards: u16) -> u16 {
        // The finalizer of SplitMix64 (Steele, Lea, Flood 2014) spreads consecutive ids.
        let mut hash = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        hash = (hash ^ (hash >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        hash = (hash ^ (hash >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((hash ^ (hash >> 31)) % u64::from(shards)) as u16
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// From `start` on, records carry `epoch`.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct EpochStart {
    /// Leadership generation.
    pub epoch: u64,
    /// First offset that carries it.
    pub start: u64,
}

/// The epochs of a stream (I-17): the record at offset o carries the last epoch whose start ≤ o.
/// Epochs and starts both grow along the table; it is never empty.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct EpochTable(Vec<EpochStart>);

impl Default for EpochTable {
    fn default() -> Self {
        Self(vec![EpochStart { epoch: 0, start: 0 }])
    }
}

impl EpochTable {
    /// A table read from disk, or `None` when it is not in order.
    pub fn from_entries(entries: Vec<EpochStart>) -> Option<Self> {
        let ordered = entries
            .windows(2)
            .all(|pair| pair[0].epoch < pair[1].epoch && pair[0].start < pair[1].start);
        (ordered && !entries.is_empty()).then_some(Self(entries))
    }

    /// All entries, oldest first.
    pub fn entries(&self) -> &[EpochStart] {
        &self.0
    }

    /// The newest entry.
    pub fn last(&self) -> EpochStart {
        *self.0.last().expect("a table is never empty")
    }

    /// The epoch of the record at `offset`.
    pub fn epoch_at(&self, offset: u64) -> u64 {
        let after = self.0.partition_point(|entry| entry.start <= offset);
        self.0[after.saturating_sub(1)].epoch
    }

    /// The offsets of `base..end` whose records carry `epoch`.
    pub fn clip(&self, epoch: u64, base: u64, end: u64) -> std::ops::Range<u64> {
        let Some(index) = self.0.iter().position(|entry| entry.epoch == epoch) else {
            return base..base;
        };
        let from = if index == 0 { 0 } else { self.0[index].start };
        let until = self.0.get(index + 1).map_or(u64::MAX, |entry| entry.start);
        let from = base.max(from);
        from..end.min(until).max(from)
    }

    /// Starts an epoch; entries that it leaves without a record go.
    pub fn begin(&mut self, start: EpochStart) {
        self.0.retain(|entry| entry.start < start.start);
        self.0.push(start);
    }

    /// Forgets epochs that ended at or before `trimmed`.
    pub fn trim(&mut self, trimmed: u64) {
        let keep = self.0.partition_point(|entry| entry.start <= trimmed).saturating_sub(1);
        self.0.drain(..keep);
    }
}

/// A stream as sealed.
#[derive(Clone, Eq, PartialEq, Debug, Default)]
pub struct StreamState {
    /// First offset that is not trimmed.
    pub trimmed: u64,
    /// Offset that the next record gets.
    pub next: u64,
    /// Its epochs.
    pub epochs: EpochTable,
}

/// All streams of a shard as sealed.
#[derive(Clone, Debug)]
pub struct StreamTable {
    streams: HashMap<StreamId, StreamState>,
    /// Epochs of all streams, at least one for each.
    epochs: usize,
    /// A checkpoint of more would not fit a segment.
    epochs_max: usize,
}

impl StreamTable {
    /// A table as recovered.
    pub fn new(streams: HashMap<StreamId, StreamState>, epochs_max: usize) -> Self {
        let epochs = streams.values().map(|state| state.epochs.entries().len()).sum();
        Self { streams, epochs, epochs_max }
    }

    /// The stream's state, made when it is new.
    fn state(&mut self, stream: StreamId) -> Result<&mut StreamState, Refusal> {
        match self.streams.entry(stream) {
            Entry::Occupied(entry) => Ok(entry.into_mut()),
            Entry::Vacant(_) if self.epochs >= self.epochs_max => {
                Err(Refusal::TooManyStreams { stream, max: self.epochs_max })
            }
            Entry::Vacant(entry) => {
                self.epochs += 1;
                Ok(entry.insert(StreamState::default()))
            }
        }
    }

    /// All streams, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (StreamId, &StreamState)> {
        self.streams.iter().map(|(id, state)| (*id, state))
    }

    #[cfg(test)]
    fn get(&self, stream: StreamId) -> Option<&StreamState> {
        self.streams.get(&stream)
    }

    /// Gives `count` records of this node their place: base offset and epoch.
    ///
    /// # Errors
    /// When it would be one stream too many.
    pub fn append(&mut self, stream: StreamId, count: u32) -> Result<(u64, u64), Refusal> {
        let state = self.state(stream)?;
        let base = state.next;
        state.next += u64::from(count);
        Ok((base, state.epochs.last().epoch))
    }

    /// Accepts a frame from elsewhere when it is the exact continuation (I-9).
    ///
    /// # Errors
    /// What the continuation would have been.
    pub fn append_frame(
        &mut self,
        stream: StreamId,
        epoch: u64,
        base: u64,
        count: u32,
    ) -> Result<(), Refusal> {
        let state = self.state(stream)?;
        let expected_epoch = state.epochs.last().epoch;
        if base != state.next || epoch != expected_epoch {
            return Err(Refusal::NotContinuation {
                stream,
                expected: state.next,
                expected_epoch,
                offset: base,
                epoch,
            });
        }
        state.next += u64::from(count);
        Ok(())
    }

    /// Whether any of these records still counts: neither trimmed nor cut.
    ///
    /// # Errors
    /// When none does.
    pub fn check_live(
        &self,
        stream: StreamId,
        epoch: u64,
        base: u64,
        end: u64,
    ) -> Result<(), Refusal> {
        let live = self.streams.get(&stream).is_some_and(|state| {
            !state.epochs.clip(epoch, base.max(state.trimmed), end.min(state.next)).is_empty()
        });
        if live { Ok(()) } else { Err(Refusal::Dead { stream, base, end }) }
    }

    /// Drops the records below `before`. Trimming less than before is a no-op.
    ///
    /// # Errors
    /// When there is no record that far yet.
    pub fn trim(&mut self, stream: StreamId, before: u64) -> Result<(), Refusal> {
        let state = self.state(stream)?;
        if before > state.next {
            return Err(Refusal::TrimBeyondEnd { stream, before, end: state.next });
        }
        state.trimmed = state.trimmed.max(before);
        let before = state.epochs.entries().len();
        state.epochs.trim(state.trimmed);
        let after = state.epochs.entries().len();
        self.epochs -= before - after;
        Ok(())
    }

    /// Starts an epoch and cuts the records from its start on.
    ///
    /// # Errors
    /// When the epoch is not greater than the last, or the start lies outside the stream.
    pub fn begin_epoch(&mut self, stream: StreamId, start: EpochStart) -> Result<(), Refusal> {
        let full = self.epochs >= self.epochs_max;
        let max = self.epochs_max;
        let state = self.state(stream)?;
        let last = state.epochs.last().epoch;
        if start.epoch <= last {
            return Err(Refusal::EpochNotGreater { stream, epoch: start.epoch, last });
        }
        if start.start > state.next || start.start < state.trimmed {
            return Err(Refusal::CutOutside {
                stream,
                start: start.start,
                trimmed: state.trimmed,
                end: state.next,
            });
        }
        let before = state.epochs.entries().len();
        let mut epochs = state.epochs.clone();
        epochs.begin(start);
        if full && epochs.entries().len() > before {
            return Err(Refusal::TooManyStreams { stream, max });
        }
        (state.next, state.epochs) = (start.start, epochs);
        let after = state.epochs.entries().len();
        self.epochs = self.epochs - before + after;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_answers_by_offset() {
        let mut table = EpochTable::default();
        table.begin(EpochStart { epoch: 2, start: 10 });
        table.begin(EpochStart { epoch: 5, start: 20 });
        assert_eq!((table.epoch_at(9), table.epoch_at(10), table.epoch_at(25)), (0, 2, 5));
        assert_eq!(table.clip(2, 5, 40), 10..20);
        assert_eq!(table.clip(3, 5, 40), 5..5);
        table.begin(EpochStart { epoch: 7, start: 10 });
        assert_eq!(table.entries().len(), 2, "epochs 2 and 5 have no record left");
        table.trim(15);
        assert_eq!(table.entries(), [EpochStart { epoch: 7, start: 10 }]);
        assert_eq!(table.clip(7, 5, 40), 5..40, "what came before the table is the first epoch's");
    }

    #[test]
    fn a_foreign_frame_must_continue_exactly() {
        let mut table = StreamTable::new(HashMap::new(), 100);
        let stream = StreamId::new(9);
        assert!(table.append_frame(stream, 0, 0, 4).is_ok());
        assert!(table.append_frame(stream, 0, 3, 4).is_err());
        assert!(table.append_frame(stream, 1, 4, 4).is_err());
        table.begin_epoch(stream, EpochStart { epoch: 1, start: 2 }).unwrap();
        assert!(table.append_frame(stream, 1, 2, 4).is_ok());
        assert_eq!(table.get(stream).unwrap().next, 6);
    }

    #[test]
    fn trims_and_cuts_stay_inside_the_stream() {
        let mut table = StreamTable::new(HashMap::new(), 100);
        let stream = StreamId::new(9);
        table.append(stream, 10).unwrap();
        assert!(table.trim(stream, 11).is_err());
        table.trim(stream, 6).unwrap();
        table.trim(stream, 3).unwrap();
        assert_eq!(table.get(stream).unwrap().trimmed, 6);
        assert!(table.begin_epoch(stream, EpochStart { epoch: 1, start: 5 }).is_err());
        assert!(table.begin_epoch(stream, EpochStart { epoch: 0, start: 8 }).is_err());
        assert!(table.begin_epoch(stream, EpochStart { epoch: 1, start: 8 }).is_ok());
    }

    #[test]
    fn streams_and_epochs_are_bounded_together() {
        let mut table = StreamTable::new(HashMap::new(), 3);
        let (first, second) = (StreamId::new(7), StreamId::new(8));
        table.append(first, 10).unwrap();
        table.begin_epoch(first, EpochStart { epoch: 1, start: 5 }).unwrap();
        table.append(second, 1).unwrap();
        let third = table.append(StreamId::new(9), 1).unwrap_err();
        assert!(matches!(third, Refusal::TooManyStreams { max: 3, .. }), "{third}");
        table.append(first, 5).unwrap();
        let start = EpochStart { epoch: 2, start: 8 };
        assert!(table.begin_epoch(first, start).is_err());
        assert!(
            table.begin_epoch(first, EpochStart { epoch: 2, start: 5 }).is_ok(),
            "replaces one"
        );
        table.trim(first, 5).unwrap();
        assert!(table.append(StreamId::new(9), 1).is_ok(), "the trim made room");
    }

    #[test]
    fn the_hash_is_stable_and_spreads() {
        let shards: Vec<u16> = (0..16).map(|id| StreamId::new(id).shard(2)).collect();
        assert!(shards.contains(&0) && shards.contains(&1));
        assert_eq!(
            (0..8).map(|id| StreamId::new(id).shard(4)).collect::<Vec<_>>(),
            [3, 1, 2, 1, 2, 2, 0, 3],
            "part of the format: may never change"
        );
    }
}
