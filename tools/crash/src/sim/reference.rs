//! What the engine must hold: plain maps, told by receipts and by what a recovery showed.
//!
//! Commands whose receipt has not come are *waiting*; when their shard dies they are *doubtful*:
//! the next recovery may show them, in order and whole, or not. What it shows is certain from
//! then on, and what it does not show must never be seen again.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use ringwal_engine::format::VerifiedFrame;
use ringwal_engine::{
    Append, AppendBatch, Barrier, Change, CommitError, EpochStart, FrameSlice, ReadError, Refusal,
    Shard, StreamId,
};

use crate::random::{Random, payload};

/// A record by its epoch and number.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct Written {
    pub epoch: u64,
    pub id: u64,
}

/// One stream.
#[derive(Clone, Eq, PartialEq, Debug, Default)]
pub struct Facts {
    pub trimmed: u64,
    pub epoch: u64,
    /// By offset; without holes.
    pub records: BTreeMap<u64, Written>,
    /// Cuts since the last recovery.
    cuts: Vec<EpochStart>,
}

impl Facts {
    pub fn end(&self) -> u64 {
        self.records.last_key_value().map_or(self.trimmed, |(last, _)| last + 1)
    }

    /// Receipts of different lanes may be looked at in another order than their batches had, so
    /// epochs decide what is cut.
    fn append(&mut self, offset: u64, written: Written) {
        self.epoch = self.epoch.max(written.epoch);
        let cut = self.cuts.iter().any(|cut| cut.epoch > written.epoch && cut.start <= offset);
        if !cut && offset >= self.trimmed {
            let other = self.records.insert(offset, written);
            assert!(other.is_none(), "offset {offset} has two records: {other:?} {written:?}");
        }
    }

    fn trim(&mut self, before: u64) {
        self.trimmed = self.trimmed.max(before);
        self.records = self.records.split_off(&self.trimmed);
    }

    fn cut(&mut self, cut: EpochStart) {
        self.epoch = self.epoch.max(cut.epoch);
        self.records.retain(|offset, written| *offset < cut.start || written.epoch >= cut.epoch);
        self.cuts.push(cut);
    }

    /// Receipts of appends that it overtook come later, so epochs decide here too, unless nothing of
    /// the stream was under way: then its epoch may be an older one.
    fn begin_anew(&mut self, start: EpochStart) {
        if start.epoch > self.epoch {
            self.cut(start);
            return self.trim(start.start);
        }
        *self = Self { trimmed: start.start, epoch: start.epoch, ..Self::default() };
    }

    fn check_whole(&self) {
        let count = self.records.len() as u64;
        let first = self.records.first_key_value().map_or(self.end(), |(first, _)| *first);
        assert_eq!((first, self.end() - first), (self.trimmed, count), "a hole in the stream");
    }
}

/// The epoch that a record gets.
#[derive(Copy, Clone, Debug)]
pub enum Carries {
    /// Its own, of a frame from elsewhere.
    Exactly(u64),
    /// The stream's last, or one that the node was given: this one, or a later one of this life.
    AtLeast(u64),
    /// None: the node does not lead, and the record must be refused.
    Never,
}

/// Something that was asked for.
#[derive(Clone, Debug)]
pub enum Command {
    Append {
        stream: usize,
        ids: Range<u64>,
        epoch: Carries,
    },
    Trim {
        stream: usize,
        before: u64,
    },
    Cut {
        stream: usize,
        start: EpochStart,
    },
    BeginAnew {
        stream: usize,
        start: EpochStart,
    },
    /// Changes nothing.
    Barrier,
}

impl Command {
    /// Whose; of a barrier, that of none.
    pub fn stream(&self) -> usize {
        match self {
            Self::Append { stream, .. }
            | Self::Trim { stream, .. }
            | Self::Cut { stream, .. }
            | Self::BeginAnew { stream, .. } => *stream,
            Self::Barrier => usize::MAX,
        }
    }

    /// A record that must be refused.
    fn is_refused(&self) -> bool {
        matches!(self, Self::Append { epoch: Carries::Never, .. })
    }
}

/// How its outcome comes.
pub enum Token {
    One(Append),
    Many(AppendBatch),
    Change(Change),
    Barrier(Barrier),
}

/// Epoch and offsets; nothing for a change.
type Outcome = Result<Option<(u64, Range<u64>)>, CommitError>;

impl Token {
    fn outcome(&self) -> Option<Outcome> {
        match self {
            Self::One(token) => token.try_receipt().map(|outcome| {
                outcome
                    .map(|receipt| Some((receipt.epoch(), receipt.offset()..receipt.offset() + 1)))
            }),
            Self::Many(token) => token.try_receipt().map(|outcome| {
                outcome.map(|receipts| {
                    let epoch = receipts.iter().next().map_or(0, |receipt| receipt.epoch());
                    Some((epoch, receipts.offsets()))
                })
            }),
            Self::Change(token) => token.try_receipt().map(|outcome| outcome.map(|()| None)),
            Self::Barrier(token) => token.try_receipt().map(|outcome| outcome.map(|()| None)),
        }
    }
}

/// A stream as a shard shows it.
#[derive(Clone, Eq, PartialEq, Debug, Default)]
pub struct Shown {
    pub trimmed: u64,
    pub end: u64,
    pub epoch: u64,
    /// Epoch and id (no bytes, no id) of each record from `trimmed` on.
    pub records: Vec<(u64, Option<u64>)>,
}

#[derive(Default)]
struct Lane {
    waiting: VecDeque<(Command, Token)>,
    doubtful: Vec<Command>,
}

/// All streams of one shard.
pub struct Reference {
    seed: u64,
    /// Cuts and appends of one stream may be under way together.
    wild: bool,
    /// The node's epochs in this life, the present one last.
    own_epochs: Vec<u64>,
    /// The node does not lead: its records are refused.
    pub closed: bool,
    pub ids: Vec<StreamId>,
    pub streams: Vec<Facts>,
    /// Length of each record by its number.
    lengths: Vec<u32>,
    records: Lane,
    /// Of the node's own streams.
    local: Lane,
    controls: Lane,
    pub acknowledged: u64,
    pub refused: u64,
    /// Epochs that began with a record.
    pub begun: u64,
}

impl Reference {
    pub fn new(seed: u64, wild: bool, ids: Vec<StreamId>) -> Self {
        let streams = vec![Facts::default(); ids.len()];
        let (records, local, controls) = Default::default();
        let lengths = Vec::new();
        Self {
            seed,
            wild,
            own_epochs: vec![0],
            closed: false,
            ids,
            streams,
            lengths,
            records,
            local,
            controls,
            acknowledged: 0,
            refused: 0,
            begun: 0,
        }
    }

    /// The node has this epoch from now on; a smaller one than before is ignored.
    pub fn set_epoch(&mut self, epoch: u64) {
        if epoch > self.own_epoch() {
            self.own_epochs.push(epoch);
            self.closed = false;
        }
    }

    /// The node has been opened again, and knows nothing of its epochs.
    pub fn forget_epochs(&mut self) {
        self.own_epochs = vec![0];
        self.closed = false;
    }

    /// The node's present epoch.
    pub fn own_epoch(&self) -> u64 {
        *self.own_epochs.last().expect("never empty")
    }

    /// Whether a record may carry `epoch` where the last one before it has `last`.
    fn may_carry(&self, carries: Carries, last: u64, epoch: u64) -> bool {
        match carries {
            Carries::Exactly(exactly) => epoch == exactly,
            Carries::Never => false,
            Carries::AtLeast(least) => {
                let own = self.own_epochs.iter().filter(|own| **own >= least);
                own.map(|own| last.max(*own)).any(|own| own == epoch)
            }
        }
    }

    /// Another that goes its own way from here on; nothing may be under way.
    pub fn fork(&self) -> Self {
        assert!(self.is_settled(), "what is under way has one owner");
        let lane = |lane: &Lane| Lane { doubtful: lane.doubtful.clone(), ..Lane::default() };
        Self {
            seed: self.seed,
            wild: self.wild,
            own_epochs: self.own_epochs.clone(),
            closed: self.closed,
            ids: self.ids.clone(),
            streams: self.streams.clone(),
            lengths: self.lengths.clone(),
            records: lane(&self.records),
            local: lane(&self.local),
            controls: lane(&self.controls),
            acknowledged: 0,
            refused: 0,
            begun: 0,
        }
    }

    /// Gives no record one of the next `count` numbers.
    pub fn skip_numbers(&mut self, count: usize) {
        self.lengths.resize(self.lengths.len() + count, 0);
    }

    /// Length of a record by its number.
    pub fn length(&self, id: u64) -> usize {
        self.lengths[id as usize] as usize
    }

    /// The bytes of a record by its number.
    pub fn bytes_of(&self, id: u64) -> Vec<u8> {
        payload(self.seed, id, self.length(id))
    }

    /// Numbers for records of these lengths, and their bytes.
    pub fn make_records(&mut self, lengths: &[usize]) -> (Range<u64>, Vec<Vec<u8>>) {
        let first = self.lengths.len() as u64;
        self.lengths.extend(lengths.iter().map(|length| *length as u32));
        let ids = first..self.lengths.len() as u64;
        let payloads = ids.clone().zip(lengths).map(|(id, length)| payload(self.seed, id, *length));
        (ids.clone(), payloads.collect())
    }

    /// A command was taken.
    pub fn begin(&mut self, command: Command, token: Token) {
        let lane = match command {
            Command::Append { stream, .. } if self.ids[stream].is_local() => &mut self.local,
            Command::Append { .. } => &mut self.records,
            _ => &mut self.controls,
        };
        lane.waiting.push_back((command, token));
    }

    /// Whether appends, and whether changes, of the stream are under way.
    pub fn busy(&self, stream: usize) -> (bool, bool) {
        let waits =
            |lane: &Lane| lane.waiting.iter().any(|(command, _)| command.stream() == stream);
        (waits(&self.records) || waits(&self.local), waits(&self.controls))
    }

    /// Whether anything is under way.
    pub fn is_settled(&self) -> bool {
        [&self.records, &self.local, &self.controls].iter().all(|lane| lane.waiting.is_empty())
    }

    /// Whether nothing is under way, nor of unknown outcome.
    pub fn is_certain(&self) -> bool {
        let lanes = [&self.records, &self.local, &self.controls];
        self.is_settled() && lanes.iter().all(|lane| lane.doubtful.is_empty())
    }

    /// The epochs of each stream, as a shard shows them.
    pub fn epochs(&self, shard: &Shard) -> Vec<Vec<EpochStart>> {
        self.ids.iter().map(|id| shard.epochs(*id)).collect()
    }

    /// Takes the outcomes that have come.
    pub fn settle(&mut self) {
        let mut outcomes = Vec::new();
        for lane in [&mut self.controls, &mut self.local, &mut self.records] {
            while let Some((_, token)) = lane.waiting.front()
                && let Some(outcome) = token.outcome()
            {
                let (command, _) = lane.waiting.pop_front().expect("it is there");
                match outcome {
                    Ok(place) => {
                        assert!(!command.is_refused(), "{command:?} of a node that does not lead");
                        assert!(lane.doubtful.is_empty(), "I-1: a receipt behind a doubtful one");
                        outcomes.push((command, place));
                    }
                    Err(CommitError::Unknown(_)) if command.is_refused() => {}
                    Err(CommitError::Unknown(_)) => lane.doubtful.push(command),
                    // Never written: forgotten, so that to see it again is an error.
                    Err(CommitError::NotWritten(_) | CommitError::Closed) => {}
                    Err(CommitError::Refused(refusal)) => {
                        let is_closed = matches!(refusal, Refusal::EpochClosed { .. });
                        let is_known = self.wild || (command.is_refused() && is_closed);
                        assert!(is_known, "{command:?} refused: {refusal}");
                        // A cut may take the place that a frame from elsewhere was made for, or
                        // bring an epoch that the node does not lead in.
                        let is_own = matches!(
                            command,
                            Command::Append { epoch: Carries::AtLeast(_) | Carries::Never, .. }
                        );
                        assert!(!is_own || is_closed, "{refusal}");
                        self.refused += 1;
                    }
                    Err(other) => panic!("{command:?}: {other}"),
                }
            }
            let early = lane.waiting.iter().any(|(_, token)| token.outcome().is_some());
            assert!(!early, "I-1: a receipt before an earlier one");
        }
        for (command, place) in outcomes {
            self.acknowledge(command, place);
        }
        self.streams.iter().for_each(Facts::check_whole);
    }

    fn acknowledge(&mut self, command: Command, place: Option<(u64, Range<u64>)>) {
        self.acknowledged += 1;
        if let Command::Barrier = command {
            return;
        }
        let last = self.streams[command.stream()].epoch;
        if let (Command::Append { epoch: carries, .. }, Some((epoch, _))) = (&command, &place) {
            // Where cuts race, the last epoch of now need not be the one of then.
            let may = self.wild || self.may_carry(*carries, last, *epoch);
            assert!(may, "{command:?} carries {epoch} behind {last}: {:?}", self.own_epochs);
            self.begun += u64::from(*epoch > last);
        }
        let facts = &mut self.streams[command.stream()];
        match command {
            Command::Append { ids, .. } => {
                let (epoch, offsets) = place.expect("an append has a place");
                assert_eq!(ids.end - ids.start, offsets.end - offsets.start);
                for (id, offset) in ids.zip(offsets) {
                    facts.append(offset, Written { epoch, id });
                }
            }
            Command::Trim { before, .. } => facts.trim(before),
            Command::Cut { start, .. } => facts.cut(start),
            Command::BeginAnew { start, .. } => facts.begin_anew(start),
            Command::Barrier => {}
        }
    }

    /// The shard has died: what waits is doubtful.
    pub fn die(&mut self) {
        self.settle();
        for lane in [&mut self.controls, &mut self.local, &mut self.records] {
            let waiting = lane.waiting.drain(..).map(|(command, _)| command);
            lane.doubtful.extend(waiting.filter(|command| !command.is_refused()));
        }
    }

    /// Whether the shard shows the streams as they are certain to be now.
    pub fn check_ends(&self, shard: &Shard) {
        let shown = shard.streams();
        for (stream, (id, facts)) in self.ids.iter().zip(&self.streams).enumerate() {
            let shown = shown.iter().find(|shown| shown.stream == *id);
            let shown = shown.map_or((0, 0, 0), |shown| (shown.trimmed, shown.end, shown.epoch));
            assert_eq!(shown, (facts.trimmed, facts.end(), facts.epoch), "stream {stream}");
        }
    }

    /// Reads a range and compares every byte.
    pub fn check_read(&self, shard: &Shard, stream: usize, range: Range<u64>) {
        let facts = &self.streams[stream];
        let records = match shard.read(self.ids[stream], range.clone()) {
            Ok(records) => records,
            Err(ReadError::Trimmed { trimmed, .. }) => {
                assert!(trimmed == facts.trimmed && range.start < trimmed);
                return;
            }
            Err(error) => panic!("reading {stream} {range:?}: {error}"),
        };
        let mut next = range.start;
        for record in records {
            let record = record.unwrap_or_else(|error| panic!("stream {stream}: {error}"));
            let written = facts.records.get(&next);
            let written = written.unwrap_or_else(|| panic!("stream {stream}: {next} is not there"));
            assert_eq!((record.offset(), record.epoch()), (next, written.epoch));
            self.check_bytes(record.payload(), Some(written.id));
            next += 1;
        }
        assert!(next >= range.end.min(facts.end()), "stream {stream} {range:?} ended at {next}");
    }

    /// Reads frames up to the durable end, as whoever sends them on does, and compares every byte.
    pub fn check_frames(&self, shard: &Shard, stream: usize, from: u64, bytes_max: usize) {
        let (id, facts) = (self.ids[stream], &self.streams[stream]);
        let mut reader = shard.frames(id, from);
        let mut next = from;
        loop {
            let frames = match reader.next_batch(bytes_max) {
                Ok(frames) => frames,
                Err(ReadError::Trimmed { trimmed, .. }) => {
                    assert!(trimmed == facts.trimmed && from < trimmed);
                    return;
                }
                Err(error) => panic!("frames of {stream} from {next}: {error}"),
            };
            if frames.is_empty() {
                break;
            }
            frames.iter().for_each(|frame| next = self.check_frame(stream, frame, next));
        }
        assert_eq!(next, facts.end().max(from), "stream {stream} from {from}");
    }

    /// A frame that begins at `next`, with every byte; where the next one begins.
    fn check_frame(&self, stream: usize, frame: &FrameSlice, mut next: u64) -> u64 {
        let facts = &self.streams[stream];
        let verified = VerifiedFrame::verify(&frame.bytes).expect("it can be sent on");
        let header = &verified.header;
        let told = (frame.stream.get(), frame.epoch, frame.base_offset, frame.count);
        let written = (header.stream, header.epoch, header.base_offset, header.count);
        let written = (written.0.get(), written.1.get(), written.2.get(), written.3.get());
        assert_eq!((told, frame.base_offset), (written, next), "stream {stream}");
        for record in verified.records() {
            let written = facts.records.get(&next);
            let written = written.unwrap_or_else(|| panic!("{stream}: {next} is not there"));
            assert_eq!(frame.epoch, written.epoch, "stream {stream} offset {next}");
            self.check_bytes(record, Some(written.id));
            next += 1;
        }
        assert_eq!(next, frame.base_offset + u64::from(frame.count));
        next
    }

    /// Reads the frames of all streams together, this one from an offset on and the others near their
    /// ends, and compares every byte.
    pub fn check_walk(&self, shard: &Shard, stream: usize, from: u64, bytes_max: usize) {
        let number = |id| self.ids.iter().position(|other| *other == id).expect("it was wanted");
        let from = |other: usize| {
            let facts = &self.streams[other];
            let near_end = facts.end().saturating_sub(20).max(facts.trimmed);
            if other == stream { from } else { near_end }
        };
        let all = self.ids.iter().enumerate();
        let mut wanted: Vec<_> = all.map(|(other, id)| (*id, from(other))).collect();
        let mut walk = shard.walk_frames();
        while !wanted.is_empty() {
            let piece = walk.next_piece(&wanted, bytes_max);
            for frame in &piece.frames {
                let known = wanted.iter_mut().find(|(id, _)| *id == frame.stream);
                let (id, next) = known.expect("it was wanted");
                *next = self.check_frame(number(*id), frame, *next);
            }
            for (id, error) in &piece.failed {
                let (facts, from) = (&self.streams[number(*id)], from(number(*id)));
                let ReadError::Trimmed { trimmed, .. } = error else { panic!("{error}") };
                assert!(*trimmed == facts.trimmed && from < facts.trimmed, "{error}");
            }
            let came = piece.frames.len() + piece.ended.len() + piece.failed.len();
            assert!(came > 0, "each piece brings something");
            wanted.retain(|(id, next)| {
                let is_ended = piece.ended.contains(id);
                let end = self.streams[number(*id)].end().max(from(number(*id)));
                assert_eq!(is_ended, *next >= end, "stream {id} at {next} of {end}");
                !is_ended && !piece.failed.iter().any(|(failed, _)| failed == id)
            });
        }
    }

    /// Reads one record. False when the shard does not know it; wrong bytes are never excused.
    pub fn read_one(&self, shard: &Shard, stream: usize, offset: u64) -> Result<bool, ReadError> {
        let written = self.streams[stream].records[&offset];
        let Some(record) = shard.read(self.ids[stream], offset..offset + 1)?.next() else {
            return Ok(false);
        };
        let record = record?;
        assert_eq!((record.offset(), record.epoch()), (offset, written.epoch), "{stream}");
        self.check_bytes(record.payload(), Some(written.id));
        Ok(true)
    }

    /// The id in a payload, when every byte of it is right.
    fn check_bytes(&self, bytes: &[u8], expected: Option<u64>) -> Option<u64> {
        let id = bytes.first_chunk::<8>().map(|id| u64::from_le_bytes(*id));
        if let (Some(id), Some(expected)) = (id, expected) {
            assert_eq!(id, expected, "another record");
        }
        let known = id.or(expected);
        let Some(length) = known.map(|id| self.lengths.get(id as usize)) else { return id };
        let length = *length.expect("no such record was ever submitted") as usize;
        assert!(bytes == &payload(self.seed, known.unwrap_or(0), length)[..], "wrong bytes");
        id
    }

    /// Everything that a shard shows, every byte checked against its id.
    pub fn show(&self, shard: &Shard) -> Vec<Shown> {
        let summaries = shard.streams();
        for summary in &summaries {
            assert!(self.ids.contains(&summary.stream), "a stream that nobody made");
        }
        let show = |id: &StreamId| {
            let Some(summary) = summaries.iter().find(|summary| summary.stream == *id) else {
                return Shown::default();
            };
            let mut records = Vec::new();
            for record in shard.read(*id, ..).expect("from its start it can be read") {
                let record = record.unwrap_or_else(|error| panic!("stream {id}: {error}"));
                assert_eq!(record.offset(), summary.trimmed + records.len() as u64);
                records.push((record.epoch(), self.check_bytes(record.payload(), None)));
            }
            let (trimmed, end, epoch) = (summary.trimmed, summary.end, summary.epoch);
            assert_eq!(trimmed + records.len() as u64, end, "stream {id} ends early");
            Shown { trimmed, end, epoch, records }
        };
        self.ids.iter().map(show).collect()
    }

    /// Checks what a recovery shows and believes it. Returns how many doubtful commands it kept.
    pub fn recover(&mut self, shown: &[Shown]) -> usize {
        let records = std::mem::take(&mut self.records.doubtful);
        let local = std::mem::take(&mut self.local.doubtful);
        let controls = std::mem::take(&mut self.controls.doubtful);
        let kept = if self.wild {
            self.recover_wild(shown, &[records, local].concat(), &controls)
        } else {
            self.recover_exactly(shown, &[records, local], &controls)
        };
        for (stream, (facts, shown)) in self.streams.iter_mut().zip(shown).enumerate() {
            facts.cuts.clear();
            facts.check_whole();
            assert_eq!(
                (facts.trimmed, facts.end(), facts.epoch),
                (shown.trimmed, shown.end, shown.epoch),
                "stream {stream}"
            );
        }
        kept
    }

    /// One state for each choice of prefixes of the lanes: the shown one must be among them.
    fn recover_exactly(
        &mut self,
        shown: &[Shown],
        records: &[Vec<Command>],
        controls: &[Command],
    ) -> usize {
        let mut expected = self.streams.clone();
        let mut appended: Vec<u64> = shown.iter().map(|shown| shown.end).collect();
        for (left, facts) in appended.iter_mut().zip(&expected) {
            *left = left.saturating_sub(facts.end());
        }
        let mut kept = 0;
        for lane in records {
            for command in lane {
                let Command::Append { stream, ids, epoch: carries } = command else { continue };
                let count = ids.end - ids.start;
                if appended[*stream] < count {
                    break;
                }
                appended[*stream] -= count;
                let facts = &mut expected[*stream];
                let epoch = self.epoch_shown(facts, &shown[*stream], *carries);
                ids.clone().for_each(|id| facts.append(facts.end(), Written { epoch, id }));
                kept += 1;
            }
        }
        let heads = |streams: &[Facts]| -> Vec<_> {
            streams.iter().map(|facts| (facts.trimmed, facts.end(), facts.epoch)).collect()
        };
        let wanted: Vec<_> = shown.iter().map(|s| (s.trimmed, s.end, s.epoch)).collect();
        let mut prefix = controls.iter();
        while heads(&expected) != wanted {
            let Some(command) = prefix.next() else {
                panic!(
                    "recovered {wanted:?}, certain {:?}, doubtful {records:?} {controls:?}",
                    heads(&self.streams)
                );
            };
            match command {
                Command::Trim { stream, before } => expected[*stream].trim(*before),
                Command::Cut { stream, start } => expected[*stream].cut(*start),
                Command::BeginAnew { stream, start } => expected[*stream].begin_anew(*start),
                Command::Barrier => {}
                Command::Append { .. } => unreachable!("appends have their own lane"),
            }
            kept += 1;
        }
        for (stream, (facts, shown)) in expected.iter().zip(shown).enumerate() {
            for ((offset, written), (epoch, id)) in facts.records.iter().zip(&shown.records) {
                let matches = match id {
                    Some(id) => *id == written.id,
                    None => self.lengths[written.id as usize] == 0,
                };
                assert!(
                    matches && written.epoch == *epoch,
                    "stream {stream} offset {offset}: {written:?}, shown {epoch} {id:?}"
                );
            }
        }
        self.streams = expected;
        kept
    }

    /// The epoch of doubtful records that come next in a stream. What is trimmed does not show
    /// theirs: then the stream's last one may be.
    fn epoch_shown(&self, facts: &Facts, shown: &Shown, carries: Carries) -> u64 {
        let index = facts.end().checked_sub(shown.trimmed);
        let record = index.and_then(|index| shown.records.get(index as usize));
        let epoch = record.map_or(shown.epoch, |(epoch, _)| *epoch);
        if self.may_carry(carries, facts.epoch, epoch) {
            return epoch;
        }
        assert!(record.is_none(), "epoch {epoch} behind {}: {carries:?}", facts.epoch);
        match carries {
            Carries::Exactly(epoch) => epoch,
            Carries::AtLeast(least) => least.max(facts.epoch),
            Carries::Never => unreachable!("it is not doubtful"),
        }
    }

    /// Cuts and appends raced: each record must be explained by itself.
    fn recover_wild(
        &mut self,
        shown: &[Shown],
        records: &[Command],
        controls: &[Command],
    ) -> usize {
        let mut kept = 0;
        for (stream, shown) in shown.iter().enumerate() {
            let mine = |command: &&Command| command.stream() == stream;
            let cuts: Vec<EpochStart> = controls
                .iter()
                .filter(mine)
                .filter_map(|command| match command {
                    Command::Cut { start, .. } | Command::BeginAnew { start, .. }
                        if start.epoch <= shown.epoch =>
                    {
                        Some(*start)
                    }
                    _ => None,
                })
                .collect();
            let facts = self.streams[stream].clone();
            let trims = controls.iter().filter(mine).filter_map(|command| match command {
                Command::Trim { before, .. } => Some(*before),
                Command::BeginAnew { start, .. } => Some(start.start),
                _ => None,
            });
            let known_trim =
                shown.trimmed == facts.trimmed || trims.clone().any(|trim| trim == shown.trimmed);
            let carried = records.iter().filter(mine).any(|command| match command {
                Command::Append { epoch: Carries::Exactly(epoch), .. } => *epoch == shown.epoch,
                _ => self.own_epochs.contains(&shown.epoch),
            });
            let known_epoch = carried
                || shown.epoch == facts.epoch
                || cuts.iter().any(|cut| cut.epoch == shown.epoch);
            assert!(known_trim && shown.trimmed >= facts.trimmed, "stream {stream}: trimmed");
            assert!(known_epoch && shown.epoch >= facts.epoch, "stream {stream}: epoch");
            let is_gone = |offset: u64, epoch: u64| {
                offset < shown.trimmed
                    || cuts.iter().any(|cut| cut.epoch > epoch && cut.start <= offset)
            };
            let at = |offset: u64| {
                let index = offset.checked_sub(shown.trimmed)?;
                shown.records.get(index as usize).copied()
            };
            for (offset, written) in &facts.records {
                let there = at(*offset) == Some((written.epoch, Some(written.id)));
                assert!(
                    there || is_gone(*offset, written.epoch),
                    "stream {stream} offset {offset}: acknowledged {written:?} is lost"
                );
            }
            kept += self.explain_records(stream, shown, &facts, records, &cuts);
            let mut recovered = Facts { trimmed: shown.trimmed, epoch: shown.epoch, ..facts };
            recovered.records = (shown.trimmed..)
                .zip(&shown.records)
                .map(|(offset, (epoch, id))| {
                    (offset, Written { epoch: *epoch, id: id.expect("wild records have bytes") })
                })
                .collect();
            self.streams[stream] = recovered;
        }
        kept
    }

    /// Every record that is shown was acknowledged there, or is doubtful, in order and whole.
    fn explain_records(
        &self,
        stream: usize,
        shown: &Shown,
        facts: &Facts,
        records: &[Command],
        cuts: &[EpochStart],
    ) -> usize {
        let mut last = None;
        let mut kept = 0;
        for (offset, (epoch, id)) in (shown.trimmed..).zip(&shown.records) {
            let id = id.expect("wild records have bytes");
            if facts.records.get(&offset) == Some(&Written { epoch: *epoch, id }) {
                continue;
            }
            let group = records.iter().position(
                |command| matches!(command, Command::Append { ids, .. } if ids.contains(&id)),
            );
            let group = group.unwrap_or_else(|| {
                panic!("stream {stream} offset {offset}: record {id} came back from the dead")
            });
            let Command::Append { stream: owner, ids, epoch: carries } = &records[group] else {
                unreachable!()
            };
            assert_eq!(*owner, stream, "a record in another stream");
            let is_known = match carries {
                Carries::Exactly(exactly) => epoch == exactly,
                Carries::AtLeast(least) => epoch >= least,
                Carries::Never => false,
            };
            assert!(is_known, "stream {stream} offset {offset}: {epoch}, not {carries:?}");
            assert!(last.is_none_or(|last| last < id), "stream {stream}: out of order");
            last = Some(id);
            kept += 1;
            // Whole, but for what was trimmed in front of it or cut behind it.
            let begins = id == ids.start || offset == shown.trimmed || {
                let before = shown.records[(offset - shown.trimmed - 1) as usize].1;
                before == Some(id - 1)
            };
            let behind = shown.records.get((offset - shown.trimmed + 1) as usize);
            let ends = id + 1 == ids.end
                || behind.is_some_and(|(_, next)| *next == Some(id + 1))
                || cuts.iter().any(|cut| cut.start == offset + 1);
            assert!(begins && ends, "stream {stream}: a part of the batch {ids:?} came back");
        }
        kept
    }

    /// A stream, by its place: mostly busy ones, seldom a cold one.
    pub fn pick_stream(&self, random: &mut Random) -> usize {
        let count = self.ids.len() as u64;
        if count > 1 && !random.chance(60) { 1 + random.below(count - 1) as usize } else { 0 }
    }
}
