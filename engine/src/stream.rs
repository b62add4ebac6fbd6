//! Streams as they are sealed so far: offsets, epochs and trims. Decides whether a command may
//! extend a stream; knows nothing of segments or of what is durable.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;

use crate::error::Refusal;
use crate::format::COUNTER_LAST;
use crate::own_epoch::OwnEpochRead;

/// The greatest offset that a stream may skip to: as many records again fit behind it.
const SKIP_MAX: u64 = COUNTER_LAST / 2;

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

    /// Whether it is one of this node alone, which is not replicated: 1 to 3.
    pub const fn is_local(self) -> bool {
        matches!(self.0, 1..=3)
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

    /// Starts an epoch; entries that it leaves without a record go: also all before it, when the
    /// stream is `trimmed` up to there. One that is in force just before goes on.
    pub fn begin(&mut self, start: EpochStart, trimmed: u64) {
        self.0.retain(|entry| is_left(*entry, start.start, trimmed));
        if self.0.last().is_none_or(|last| last.epoch != start.epoch) {
            self.0.push(start);
        }
    }

    /// Whether an epoch may start there: it is greater than what is left before it, and none of
    /// those that it cuts. It may be smaller than those, since another node's history can go on
    /// with an epoch that is older than what this one has to cut; and it may be the one just before
    /// `start`, when another one begins there.
    pub fn may_begin(&self, start: EpochStart, trimmed: u64) -> bool {
        let left = self.0.partition_point(|entry| is_left(*entry, start.start, trimmed));
        let (left, cut) = self.0.split_at(left);
        if left.is_empty() && trimmed == start.start && trimmed > 0 {
            return true;
        }
        let goes_on = || cut.first().is_some_and(|first| first.start == start.start);
        let follows = left.last().is_none_or(|last| {
            last.epoch < start.epoch || (last.epoch == start.epoch && goes_on())
        });
        follows && cut.iter().all(|entry| entry.epoch != start.epoch)
    }

    /// Forgets epochs that ended at or before `trimmed`.
    pub fn trim(&mut self, trimmed: u64) {
        let keep = self.0.partition_point(|entry| entry.start <= trimmed).saturating_sub(1);
        self.0.drain(..keep);
    }
}

/// Whether an entry has records when the next epoch begins at `start`.
fn is_left(entry: EpochStart, start: u64, trimmed: u64) -> bool {
    entry.start < start && trimmed < start
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

    /// As [`StreamTable::append`] for records of this node, in the epoch that it has.
    ///
    /// # Errors
    /// When this node does not lead; when it would be one stream or epoch too many.
    pub(crate) fn append_own(
        &mut self,
        stream: StreamId,
        own: OwnEpochRead,
        count: u32,
    ) -> Result<(u64, u64), Refusal> {
        let (_, _, last) = self.bounds(stream);
        self.append(stream, own.admit(stream, last)?, count)
    }

    /// Gives `count` records their place: base offset and epoch. They carry `epoch` or the stream's
    /// last, whichever is greater.
    ///
    /// # Errors
    /// When it would be one stream or epoch too many.
    pub fn append(
        &mut self,
        stream: StreamId,
        epoch: u64,
        count: u32,
    ) -> Result<(u64, u64), Refusal> {
        let state = self.state(stream)?;
        let (base, last) = (state.next, state.epochs.last().epoch);
        if epoch > last {
            self.begin_epoch(stream, EpochStart { epoch, start: base })?;
            return self.append(stream, epoch, count);
        }
        state.next += u64::from(count);
        Ok((base, last))
    }

    /// Accepts a frame from elsewhere when it is the exact continuation (I-9): the next offset, in
    /// the stream's last epoch or in a later one, which begins there.
    ///
    /// # Errors
    /// What the continuation would have been; also when it would be one stream or epoch too many.
    pub fn append_frame(
        &mut self,
        stream: StreamId,
        epoch: u64,
        base: u64,
        count: u32,
    ) -> Result<(), Refusal> {
        let (_, expected, expected_epoch) = self.bounds(stream);
        if base != expected || epoch < expected_epoch {
            let offset = base;
            return Err(Refusal::NotContinuation {
                stream,
                expected,
                expected_epoch,
                offset,
                epoch,
            });
        }
        self.append(stream, epoch, count).map(drop)
    }

    /// First offset that is not trimmed, offset that the next record gets, and last epoch. What is
    /// refused does not make a stream.
    fn bounds(&self, stream: StreamId) -> (u64, u64, u64) {
        self.streams
            .get(&stream)
            .map_or((0, 0, 0), |state| (state.trimmed, state.next, state.epochs.last().epoch))
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
        let (_, end, _) = self.bounds(stream);
        if before > end {
            return Err(Refusal::TrimBeyondEnd { stream, before, end });
        }
        self.drop_below(stream, before)
    }

    /// As a trim, and beyond the end the next record gets the offset `before`.
    ///
    /// # Errors
    /// When that is further than any stream gets, or it would be one stream too many.
    pub fn skip_to(&mut self, stream: StreamId, before: u64) -> Result<(), Refusal> {
        if before > SKIP_MAX {
            return Err(Refusal::SkipTooFar { stream, before, max: SKIP_MAX });
        }
        self.drop_below(stream, before)
    }

    /// Drops all records; the next one is the first of an epoch, which may be any: nothing is left
    /// that it could contradict.
    ///
    /// # Errors
    /// When it begins below what is trimmed or further than any stream gets, or it would be one
    /// stream too many.
    pub fn begin_anew(&mut self, stream: StreamId, start: EpochStart) -> Result<(), Refusal> {
        let (trimmed, _, _) = self.bounds(stream);
        let (at, max) = (start.start, SKIP_MAX);
        if at < trimmed {
            return Err(Refusal::AnewBelowTrim { stream, at, trimmed });
        }
        if at > max {
            return Err(Refusal::SkipTooFar { stream, before: at, max });
        }
        let state = self.state(stream)?;
        let before = state.epochs.entries().len();
        (state.trimmed, state.next) = (at, at);
        state.epochs.begin(start, at);
        let after = state.epochs.entries().len();
        self.epochs = self.epochs - before + after;
        Ok(())
    }

    fn drop_below(&mut self, stream: StreamId, before: u64) -> Result<(), Refusal> {
        let state = self.state(stream)?;
        state.trimmed = state.trimmed.max(before);
        state.next = state.next.max(before);
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
        let (trimmed, end, last) = self.bounds(stream);
        let epochs = self.streams.get(&stream).map(|state| &state.epochs);
        if !epochs.map_or(start.epoch > 0, |epochs| epochs.may_begin(start, trimmed)) {
            return Err(Refusal::EpochNotGreater { stream, epoch: start.epoch, last });
        }
        if start.start > end || start.start < trimmed {
            let start = start.start;
            return Err(Refusal::CutOutside { stream, start, trimmed, end });
        }
        let full = self.epochs >= self.epochs_max;
        let max = self.epochs_max;
        let state = self.state(stream)?;
        let before = state.epochs.entries().len();
        let mut epochs = state.epochs.clone();
        epochs.begin(start, trimmed);
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
        table.begin(EpochStart { epoch: 2, start: 10 }, 0);
        table.begin(EpochStart { epoch: 5, start: 20 }, 0);
        assert_eq!((table.epoch_at(9), table.epoch_at(10), table.epoch_at(25)), (0, 2, 5));
        assert_eq!(table.clip(2, 5, 40), 10..20);
        assert_eq!(table.clip(3, 5, 40), 5..5);
        table.begin(EpochStart { epoch: 7, start: 10 }, 0);
        assert_eq!(table.entries().len(), 2, "epochs 2 and 5 have no record left");
        table.trim(15);
        assert_eq!(table.entries(), [EpochStart { epoch: 7, start: 10 }]);
        assert_eq!(table.clip(7, 5, 40), 5..40, "what came before the table is the first epoch's");
    }

    #[test]
    fn another_history_may_go_on_with_an_older_epoch() {
        let mut table = EpochTable::default();
        table.begin(EpochStart { epoch: 2, start: 10 }, 0);
        table.begin(EpochStart { epoch: 5, start: 20 }, 0);
        let may = |epoch, start| table.may_begin(EpochStart { epoch, start }, 4);
        assert_eq!(
            [(6, 20), (4, 20), (5, 20), (3, 15)].map(|(e, s)| may(e, s)),
            [true, true, false, true]
        );
        assert!(may(2, 20), "5 is cut, and 2 goes on");
        assert!(!may(2, 15), "2 would be cut and written once more");
        assert!(!may(1, 15) && !may(2, 10) && may(0, 10));
        assert!(may(5, 4) && may(0, 4), "nothing is left");
        let mut goes_on = table.clone();
        goes_on.begin(EpochStart { epoch: 2, start: 20 }, 4);
        assert_eq!(goes_on.entries(), &table.entries()[..2]);
        table.begin(EpochStart { epoch: 1, start: 30 }, 30);
        assert_eq!(table.entries(), [EpochStart { epoch: 1, start: 30 }]);
    }

    #[test]
    fn a_foreign_frame_must_continue_exactly() {
        let mut table = StreamTable::new(HashMap::new(), 100);
        let stream = StreamId::new(9);
        assert!(table.append_frame(stream, 0, 0, 4).is_ok());
        assert!(table.append_frame(stream, 0, 3, 4).is_err());
        assert!(table.append_frame(stream, 1, 5, 4).is_err());
        table.begin_epoch(stream, EpochStart { epoch: 1, start: 2 }).unwrap();
        assert!(table.append_frame(stream, 0, 2, 4).is_err());
        assert!(table.append_frame(stream, 1, 2, 4).is_ok());
        assert_eq!(table.get(stream).unwrap().next, 6);
        assert!(table.append_frame(stream, 4, 6, 1).is_ok(), "a later epoch begins there");
        assert_eq!(table.get(stream).unwrap().epochs.last(), EpochStart { epoch: 4, start: 6 });
        assert!(table.append_frame(stream, 3, 7, 1).is_err());
    }

    #[test]
    fn own_records_carry_the_greater_epoch() {
        let mut table = StreamTable::new(HashMap::new(), 100);
        let (old, new) = (StreamId::new(9), StreamId::new(10));
        assert_eq!(table.append(old, 0, 3), Ok((0, 0)));
        assert_eq!(table.append(old, 2, 3), Ok((3, 2)));
        assert_eq!(table.append(old, 1, 1), Ok((6, 2)), "an epoch never falls");
        assert_eq!(table.append(new, 2, 1), Ok((0, 2)));
        let starts = |stream| table.get(stream).unwrap().epochs.entries().to_vec();
        let begun = |epoch, start| EpochStart { epoch, start };
        assert_eq!((starts(old), starts(new)), (vec![begun(0, 0), begun(2, 3)], vec![begun(2, 0)]));
    }

    #[test]
    fn a_skip_leaves_nothing_and_goes_on_behind_it() {
        let mut table = StreamTable::new(HashMap::new(), 100);
        let stream = StreamId::new(9);
        table.append(stream, 0, 10).unwrap();
        table.append(stream, 3, 10).unwrap();
        table.skip_to(stream, 5).unwrap();
        assert_eq!(table.get(stream).unwrap().next, 20, "inside of the stream it is a trim");
        table.skip_to(stream, 70).unwrap();
        let state = table.get(stream).unwrap();
        assert_eq!((state.trimmed, state.next, state.epochs.entries().len()), (70, 70, 1));
        assert_eq!(table.append(stream, 0, 1), Ok((70, 3)));
        let too_far = table.skip_to(stream, SKIP_MAX + 1);
        assert!(matches!(too_far, Err(Refusal::SkipTooFar { .. })));
        table.skip_to(stream, SKIP_MAX).unwrap();
        table.append(stream, 0, 9).unwrap();
        table.trim(stream, SKIP_MAX + 5).unwrap();
    }

    #[test]
    fn a_stream_that_begins_anew_has_one_epoch_and_no_record() {
        let mut table = StreamTable::new(HashMap::new(), 3);
        let stream = StreamId::new(9);
        table.append(stream, 3, 10).unwrap();
        table.append(stream, 5, 10).unwrap();
        for (at, epoch) in [(15, 4), (15, 4), (40, 3), (40, 9), (SKIP_MAX, 0)] {
            let start = EpochStart { epoch, start: at };
            table.begin_anew(stream, start).unwrap();
            let state = table.get(stream).unwrap();
            assert_eq!((state.trimmed, state.next), (at, at));
            assert_eq!((state.epochs.entries(), table.epochs), (&[start][..], 1));
        }
        let below = table.begin_anew(stream, EpochStart { epoch: 9, start: 39 });
        assert!(matches!(below, Err(Refusal::AnewBelowTrim { at: 39, trimmed: SKIP_MAX, .. })));
        let far = table.begin_anew(stream, EpochStart { epoch: 9, start: SKIP_MAX + 1 });
        assert!(matches!(far, Err(Refusal::SkipTooFar { .. })), "{far:?}");
        for id in 10..12 {
            table.begin_anew(StreamId::new(id), EpochStart { epoch: 2, start: 0 }).unwrap();
        }
        let many = table.begin_anew(StreamId::new(12), EpochStart { epoch: 2, start: 0 });
        assert!(matches!(many, Err(Refusal::TooManyStreams { .. })), "{many:?}");
    }

    #[test]
    fn what_is_refused_makes_no_stream() {
        let mut table = StreamTable::new(HashMap::new(), 100);
        let stream = StreamId::new(9);
        assert!(table.trim(stream, 1).is_err());
        assert!(table.append_frame(stream, 0, 1, 1).is_err());
        assert!(table.begin_epoch(stream, EpochStart { epoch: 1, start: 1 }).is_err());
        assert!(table.skip_to(stream, SKIP_MAX + 1).is_err());
        assert!(table.iter().next().is_none());
    }

    #[test]
    fn trims_and_cuts_stay_inside_the_stream() {
        let mut table = StreamTable::new(HashMap::new(), 100);
        let stream = StreamId::new(9);
        table.append(stream, 0, 10).unwrap();
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
        table.append(first, 0, 10).unwrap();
        table.begin_epoch(first, EpochStart { epoch: 1, start: 5 }).unwrap();
        table.append(second, 0, 1).unwrap();
        let third = table.append(StreamId::new(9), 0, 1).unwrap_err();
        assert!(matches!(third, Refusal::TooManyStreams { max: 3, .. }), "{third}");
        let own = table.append(second, 9, 1).unwrap_err();
        assert!(matches!(own, Refusal::TooManyStreams { max: 3, .. }), "{own}");
        let foreign = table.append_frame(second, 9, 1, 1).unwrap_err();
        assert!(matches!(foreign, Refusal::TooManyStreams { max: 3, .. }), "{foreign}");
        assert_eq!(table.get(second).unwrap().next, 1);
        table.append(first, 0, 5).unwrap();
        let start = EpochStart { epoch: 2, start: 8 };
        assert!(table.begin_epoch(first, start).is_err());
        assert!(
            table.begin_epoch(first, EpochStart { epoch: 2, start: 5 }).is_ok(),
            "replaces one"
        );
        table.trim(first, 5).unwrap();
        assert!(table.append(StreamId::new(9), 0, 1).is_ok(), "the trim made room");
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
