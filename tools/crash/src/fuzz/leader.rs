//! A follower's core under a leader that says whatever it likes: frames and messages that go together
//! as those of a leader do, and then do not. Beside it stands what the follower's engine would hold:
//! nothing may be asked of that which a follower must not do.

use std::collections::{BTreeMap, VecDeque};

use ringwal_engine::format::{FrameHeader, FrameKind};
use ringwal_engine::{EpochStart, EpochTable, StreamId};
use ringwal_replication::follower::{Act, Follower, Refused, Worth};
use ringwal_replication::history::{Held, known_difference};
use ringwal_replication::link::Received;
use ringwal_replication::link::fuzzing::receive;
use ringwal_replication::promise::is_replicated;
use ringwal_replication::wire::{EPOCH_MAX, History, Message, OFFSET_MAX, Stop, Wanted};
use zerocopy::IntoBytes;

use super::targets::{Outcome, Verdict};
use super::wire::{FRAME_BYTES_MAX, spoil};
use crate::random::Random;

/// The leader's epoch.
const EPOCH: u64 = 5;
const STREAMS: [u64; 6] = [0, 4, 7, 8, 9, 50];
/// Streams that nobody may speak of, or that nobody has.
const STRANGE: [u64; 5] = [1, 2, 3, 99, u64::MAX];
/// Items of one session.
const ITEMS_MAX: u64 = 40;
/// Acts after one item: the most that a message can name, and more than a session of these has.
const ACTS_MAX: usize = 100_000;

/// What a sound leader has: histories of some streams, drawn from a number.
fn histories(chance: u64) -> Vec<History> {
    let mut random = Random::with_purpose(chance, 1);
    let mut histories = Vec::new();
    for stream in STREAMS {
        if random.one_in(4) {
            continue;
        }
        let mut entries = Vec::new();
        let mut start = 0;
        for epoch in 1..EPOCH {
            if !random.one_in(2) {
                entries.push(EpochStart { epoch, start });
                start += 1 + random.below(9);
            }
        }
        entries.push(EpochStart { epoch: EPOCH, start });
        let trimmed = if random.one_in(3) { random.below(start + 1) } else { 0 };
        let mut epochs = EpochTable::from_entries(entries).expect("in order");
        epochs.trim(trimmed.saturating_sub(random.below(2)));
        histories.push(History { stream: StreamId::new(stream), trimmed, epochs });
    }
    histories
}

/// What a follower holds when the session begins: often a beginning of what the leader has.
fn held(chance: u64) -> BTreeMap<StreamId, Held> {
    let mut random = Random::with_purpose(chance, 2);
    let mut all = BTreeMap::new();
    for stream in STREAMS.into_iter().chain([1, 3, 60]) {
        if random.one_in(3) {
            continue;
        }
        let leader = histories(chance).into_iter().find(|h| h.stream.get() == stream);
        let end = random.below(40);
        let mut entries: Vec<_> = match leader {
            Some(leader) if !random.one_in(12) => leader.epochs.entries().to_vec(),
            _ => vec![EpochStart { epoch: random.below(3), start: 0 }],
        };
        entries.retain(|entry| entry.epoch < EPOCH && entry.start < end.max(1));
        if random.one_in(12) || entries.is_empty() {
            let (epoch, start) = entries.last().map_or((0, 0), |last| (last.epoch, last.start + 1));
            let start = if entries.is_empty() { 0 } else { start + random.below(5) };
            entries.push(EpochStart { epoch: epoch + 1 + random.below(2), start });
        }
        entries.retain(|entry| entry.start < end.max(1));
        let epochs = EpochTable::from_entries(entries).expect("in order");
        let trimmed = if random.one_in(10) { random.below(end + 1) } else { 0 };
        all.insert(StreamId::new(stream), Held { trimmed, end, epochs });
    }
    all
}

/// What a leader sends in a session, as bytes.
pub fn session(chance: u64, random: &mut Random) -> Vec<u8> {
    let mut leader = Leader { histories: histories(chance), next: BTreeMap::new() };
    let mut bytes = Vec::new();
    let begins = !random.one_in(10);
    if begins {
        let histories = leader.histories.clone();
        let told = histories.into_iter().filter(|_| !random.one_in(25)).collect();
        bytes.extend(Message::Histories(told).encode());
    }
    if begins || random.one_in(2) {
        bytes.extend(Message::HistoriesEnd.encode());
    }
    // Frames begin where a follower may be.
    for (stream, held) in held(chance) {
        leader.next.insert(stream.get(), held.end);
    }
    for _ in 0..random.below(ITEMS_MAX) {
        let item = leader.item(random);
        bytes.extend(item);
    }
    if random.one_in(3) {
        spoil(&mut bytes, random);
    }
    bytes
}

struct Leader {
    histories: Vec<History>,
    next: BTreeMap<u64, u64>,
}

impl Leader {
    fn item(&mut self, random: &mut Random) -> Vec<u8> {
        let message = match random.below(16) {
            0 => Message::Heartbeat { time_ns: random.next() },
            1 | 2 => Message::Committed(self.pairs(random)),
            3 => Message::Trimmed(self.pairs(random)),
            4 => {
                let Some(mut history) = self.history(random) else { return Vec::new() };
                history.trimmed = history.trimmed.max(offset(random));
                Message::Histories(vec![history])
            }
            5 if random.one_in(2) => self.strange(random),
            _ => return self.frame(random),
        };
        message.encode()
    }

    fn history(&self, random: &mut Random) -> Option<History> {
        let at = random.below(self.histories.len() as u64) as usize;
        self.histories.get(at).cloned()
    }

    fn pairs(&self, random: &mut Random) -> Vec<(StreamId, u64)> {
        (0..1 + random.below(3)).map(|_| (stream(random), offset(random))).collect()
    }

    fn frame(&mut self, random: &mut Random) -> Vec<u8> {
        let Some(history) = self.history(random) else { return Vec::new() };
        let stream = history.stream.get();
        let next = self.next.entry(stream).or_default();
        let base = match random.below(12) {
            0 => offset(random),
            1 => next.saturating_sub(random.below(4)),
            _ => *next,
        };
        let epoch = match random.one_in(20) {
            true => random.below(EPOCH + 2),
            false => history.epochs.epoch_at(base),
        };
        let mut count = 1 + random.below(4) as u32;
        if !random.one_in(16) {
            // Not into the next epoch.
            while history.epochs.epoch_at(base + u64::from(count) - 1) != epoch && count > 1 {
                count -= 1;
            }
        }
        *next = base.saturating_add(u64::from(count));
        let stream = if random.one_in(60) { random.pick(&STRANGE) } else { stream };
        let payload = vec![0; 4 * count as usize];
        let frame = FrameHeader::new(FrameKind::Data, stream, epoch, base, count, 0, &payload);
        [frame.as_bytes(), &payload].concat()
    }

    /// What a leader does not say, or not like this.
    fn strange(&self, random: &mut Random) -> Message {
        match random.below(8) {
            0 => Message::HistoriesEnd,
            1 => Message::Want(self.pairs(random)),
            2 => Message::Durable { took_ns: random.next(), ends: self.pairs(random) },
            3 => Message::HeartbeatAnswer { time_ns: random.next() },
            4 => {
                let (stream, from) = (stream(random), random.below(OFFSET_MAX));
                Message::Fetch(Wanted { stream, from, end: from + 1, is_check: random.one_in(2) })
            }
            5 => {
                let (stream, end) = (stream(random), offset(random));
                Message::Fetched { stream, end, stop: Stop::More }
            }
            _ => {
                let epoch = random.pick(&[0, 1, EPOCH, EPOCH + 1, EPOCH_MAX]);
                let entries = vec![EpochStart { epoch, start: offset(random) }];
                let epochs = EpochTable::from_entries(entries).expect("there is one");
                let (stream, trimmed) = (stream(random), offset(random));
                Message::Histories(vec![History { stream, trimmed, epochs }])
            }
        }
    }
}

fn stream(random: &mut Random) -> StreamId {
    let from = if random.one_in(12) { STRANGE.as_slice() } else { STREAMS.as_slice() };
    StreamId::new(random.pick(from))
}

fn offset(random: &mut Random) -> u64 {
    match random.below(16) {
        0 => random.pick(&[OFFSET_MAX, OFFSET_MAX - 1, 1 << 40]),
        _ => random.below(60),
    }
}

/// Feeds a session to a core.
pub fn follow(bytes: &[u8], chance: u64) -> Outcome {
    let mut owner = Owner::new(chance);
    let (items, _) = receive(bytes, FRAME_BYTES_MAX, || usize::MAX);
    for item in items {
        match item {
            Received::Frame(frame) => {
                let (header, _) = FrameHeader::verify(&frame).map_err(|error| error.to_string())?;
                let worth = owner.core.handle_frame(&header);
                if worth == Worth::Append {
                    owner.append(&header)?;
                }
            }
            Received::Message(message) => {
                owner.hear(&message);
                owner.core.handle_message(message);
            }
        }
        owner.act()?;
        owner.go_on();
        owner.act()?;
    }
    Ok(if owner.appended > 0 { Verdict::Accepted } else { Verdict::Refused })
}

/// The follower's engine, as far as the core has to do with it.
struct Owner {
    core: Follower,
    random: Random,
    now_ns: u64,
    streams: BTreeMap<StreamId, Owned>,
    /// What was known to be committed, and what was said to be.
    committed: BTreeMap<StreamId, u64>,
    said: BTreeMap<StreamId, u64>,
    /// Cuts and new beginnings, in the order in which they were asked for.
    jobs: VecDeque<Act>,
    follows_trims: bool,
    has_heard_all: bool,
    has_left: bool,
    appended: u64,
}

#[derive(Default)]
struct Owned {
    trimmed: u64,
    durable: u64,
    epochs: EpochTable,
    /// Ends of frames that have no outcome, and their epochs.
    under_way: VecDeque<(u64, u64, u64)>,
    has_job: bool,
}

impl Owned {
    fn next(&self) -> u64 {
        self.under_way.back().map_or(self.durable, |(_, end, _)| *end)
    }

    fn last_epoch(&self) -> u64 {
        self.under_way.back().map_or(self.epochs.last().epoch, |(_, _, epoch)| *epoch)
    }
}

impl Owner {
    fn new(chance: u64) -> Self {
        let held = held(chance);
        let mut random = Random::with_purpose(chance, 3);
        let known = |random: &mut Random, end: u64| match random.below(6) {
            0 => random.below(end + 1),
            _ => 0,
        };
        let committed: BTreeMap<_, _> = held
            .iter()
            .filter(|(stream, _)| is_replicated(**stream))
            .map(|(stream, held)| (*stream, known(&mut random, held.end)))
            .collect();
        let owned = |held: Held| Owned {
            trimmed: held.trimmed,
            durable: held.end,
            epochs: held.epochs,
            ..Owned::default()
        };
        let follows_trims = !random.one_in(4);
        Self {
            core: Follower::new(EPOCH, follows_trims, held.clone(), committed.clone()),
            random,
            now_ns: 0,
            streams: held.into_iter().map(|(stream, held)| (stream, owned(held))).collect(),
            committed,
            said: BTreeMap::new(),
            jobs: VecDeque::new(),
            follows_trims,
            has_heard_all: false,
            has_left: false,
            appended: 0,
        }
    }

    fn hear(&mut self, message: &Message) {
        match message {
            Message::HistoriesEnd => self.has_heard_all = true,
            Message::Committed(ends) => {
                for (stream, end) in ends {
                    let said = self.said.entry(*stream).or_default();
                    *said = (*said).max(*end);
                }
            }
            _ => {}
        }
    }

    fn owned(&mut self, stream: StreamId) -> Result<&mut Owned, String> {
        match is_replicated(stream) && !self.has_left && self.has_heard_all {
            true => Ok(self.streams.entry(stream).or_default()),
            false => Err(format!("does something with stream {stream}, and must not")),
        }
    }

    /// I-9: the exact continuation, in the epoch of the record before or a later one.
    fn append(&mut self, header: &FrameHeader) -> Result<(), String> {
        let stream = StreamId::new(header.stream.get());
        let (base, end, epoch) =
            (header.base_offset.get(), header.end_offset(), header.epoch.get());
        let owned = self.owned(stream)?;
        let goes_on = base == owned.next() && end > base && end <= OFFSET_MAX;
        // Of a stream without a record no epoch counts.
        let is_later = owned.next() == 0 || epoch >= owned.last_epoch();
        if !goes_on || !is_later || owned.has_job {
            return Err(format!(
                "appends {base}..{end} of epoch {epoch} behind {} of epoch {}",
                owned.next(),
                owned.last_epoch()
            ));
        }
        owned.under_way.push_back((base, end, epoch));
        self.appended += 1;
        Ok(())
    }

    /// Does what the core asks for, and looks at whether it may.
    fn act(&mut self) -> Result<(), String> {
        for _ in 0..ACTS_MAX {
            let Some(act) = self.core.poll_act() else { return self.check_committed() };
            self.check(&act).map_err(|what| format!("{what}: {act:?}"))?;
            match act {
                Act::Cut { stream, .. } | Act::BeginAnew { stream, .. } => {
                    self.owned(stream)?.has_job = true;
                    self.jobs.push_back(act);
                }
                Act::Trim { stream, before } => {
                    let owned = self.owned(stream)?;
                    owned.trimmed = before;
                    owned.epochs.trim(before);
                }
                Act::Send(_) => {}
                Act::Leave(_) => self.has_left = true,
            }
        }
        Err("acts and acts".into())
    }

    fn check(&mut self, act: &Act) -> Result<(), String> {
        let known = |core: &Follower, stream| core.committed().get(stream).copied().unwrap_or(0);
        let is_right = match act {
            Act::Cut { stream, from, end, .. } => {
                let committed = known(&self.core, stream);
                let owned = self.owned(*stream)?;
                !owned.has_job
                    && *end == owned.next()
                    && owned.under_way.is_empty()
                    && (owned.trimmed..=*end).contains(from)
                    && *from >= committed
            }
            Act::BeginAnew { stream, trimmed, held, epochs } => {
                let committed = known(&self.core, stream);
                let owned = self.owned(*stream)?;
                let history =
                    History { stream: *stream, trimmed: *trimmed, epochs: epochs.clone() };
                let (trimmed, end) = (owned.trimmed, owned.durable);
                let here = Held { trimmed, end, epochs: owned.epochs.clone() };
                !owned.has_job
                    && *held == (owned.trimmed..owned.next())
                    && known_difference(&here, &history).is_none_or(|at| at >= committed)
            }
            Act::Trim { stream, before } => {
                let follows_trims = self.follows_trims;
                let owned = self.owned(*stream)?;
                follows_trims && (owned.trimmed + 1..=owned.durable).contains(before)
            }
            Act::Send(Message::Want(wants)) => {
                let is_next = |(stream, from): &(StreamId, u64)| {
                    self.owned(*stream).is_ok_and(|owned| *from == owned.next() && !owned.has_job)
                };
                wants.iter().all(is_next)
            }
            Act::Send(Message::Durable { ends, .. }) => {
                let is_durable = |(stream, end): &(StreamId, u64)| {
                    self.owned(*stream).is_ok_and(|owned| *end <= owned.durable)
                };
                ends.iter().all(is_durable)
            }
            Act::Send(Message::HeartbeatAnswer { .. }) => !self.has_left,
            Act::Send(_) => false,
            Act::Leave(_) => !self.has_left,
        };
        if is_right { Ok(()) } else { Err("a follower must not".into()) }
    }

    /// What is known to be committed never falls, is durable here, and was said.
    fn check_committed(&mut self) -> Result<(), String> {
        for (stream, committed) in self.core.committed() {
            let before = self.committed.insert(*stream, *committed).unwrap_or(0);
            let said = self.said.get(stream).copied().unwrap_or(0);
            let durable = self.streams.get(stream).map_or(0, |owned| owned.durable);
            let is_new = *committed > before;
            if *committed < before || (is_new && (*committed > said || *committed > durable)) {
                return Err(format!(
                    "{committed} of stream {stream} are committed; before {before}, said {said}, \
                     durable {durable}"
                ));
            }
        }
        Ok(())
    }

    /// Something of what is under way has its outcome, or time passes.
    fn go_on(&mut self) {
        match self.random.below(8) {
            0..3 => self.write(),
            3 => self.refuse(),
            4..6 => self.do_job(),
            6 => {
                self.now_ns = self.now_ns.saturating_add(self.random.next() >> 32);
                self.core.handle_time(self.now_ns);
            }
            _ => {}
        }
    }

    fn draw(&mut self) -> Option<StreamId> {
        let busy = |(_, owned): &(&StreamId, &Owned)| !owned.under_way.is_empty();
        let count = self.streams.iter().filter(busy).count() as u64;
        let at = self.random.below(count) as usize;
        self.streams.iter().filter(busy).nth(at).map(|(stream, _)| *stream)
    }

    fn write(&mut self) {
        let Some(stream) = self.draw() else { return };
        let frames = 1 + self.random.below(4);
        for _ in 0..frames {
            let Some(end) = self.write_one(stream) else { return };
            self.core.handle_durable(stream, end, 1);
        }
    }

    fn write_one(&mut self, stream: StreamId) -> Option<u64> {
        let owned = self.streams.get_mut(&stream)?;
        let (base, end, epoch) = owned.under_way.pop_front()?;
        owned.epochs.begin(EpochStart { epoch, start: base }, owned.trimmed);
        owned.durable = end;
        Some(end)
    }

    fn refuse(&mut self) {
        let Some(stream) = self.draw() else { return };
        let mut why = self.random.pick(&[Refused::NoSpace, Refused::TooManyStreams]);
        let Some(owned) = self.streams.get_mut(&stream) else { return };
        // What comes behind it is refused as well.
        for _ in std::mem::take(&mut owned.under_way) {
            self.core.handle_refused(stream, owned.durable, why);
            why = Refused::Discontinuous;
        }
    }

    /// A cut or a new beginning, behind everything that was appended before.
    fn do_job(&mut self) {
        let Some(job) = self.jobs.pop_front() else { return };
        let (Act::Cut { stream, .. } | Act::BeginAnew { stream, .. }) = job else { return };
        while let Some(end) = self.write_one(stream) {
            self.core.handle_durable(stream, end, 1);
        }
        let Some(owned) = self.streams.get_mut(&stream) else { return };
        owned.has_job = false;
        match job {
            Act::Cut { from, epoch, .. } => {
                owned.epochs.begin(EpochStart { epoch, start: from }, owned.trimmed);
                owned.durable = from;
                self.core.handle_cut(stream, from);
            }
            Act::BeginAnew { trimmed, epochs, .. } => {
                let at = (trimmed + self.random.below(3)).min(OFFSET_MAX);
                let entry = EpochStart { epoch: epochs.epoch_at(at), start: at };
                owned.epochs = EpochTable::from_entries(vec![entry]).expect("there is one");
                (owned.trimmed, owned.durable) = (at, at);
                self.core.handle_begun_anew(stream, at);
            }
            _ => {}
        }
    }
}
