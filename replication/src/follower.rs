//! The follower's side of one session: what it takes, cuts, wants and reports. A core without I/O.
//!
//! It begins when everything that was being appended has its outcome, and the leader's epoch has
//! been promised durably. Polling order: after each `handle_*`, [`Follower::poll_act`] until there
//! is none.

mod act;
#[cfg(test)]
mod tests;
mod told;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ringwal_engine::StreamId;
use ringwal_engine::format::FrameHeader;
use ringwal_engine::mutants::{self, Mutant};

pub use act::{Act, Refused, Why, Worth};
use told::Told;

use crate::history::{self, Held, Parting};
use crate::promise::is_replicated;
use crate::wire::{History, Message, OFFSET_MAX};

/// What was asked for and has not come is asked for again after so long, in nanoseconds; then after
/// twice as long, and so on, up to [`ASK_AGAIN_DOUBLINGS_MAX`] times.
pub const ASK_AGAIN_NS: u64 = 1_000_000_000;
/// See [`ASK_AGAIN_NS`].
pub const ASK_AGAIN_DOUBLINGS_MAX: u32 = 5;

/// Follows one session of one leader.
#[derive(Clone, Debug)]
pub struct Follower {
    epoch: u64,
    /// What was held when the session began, of streams that the leader has not named yet.
    held: BTreeMap<StreamId, Held>,
    /// What the leader tells before it has named all of its streams.
    told: Told,
    streams: BTreeMap<StreamId, Followed>,
    /// What is known to be committed, from this session and those before; all of it is durable here.
    committed: BTreeMap<StreamId, u64>,
    follows_trims: bool,
    acts: VecDeque<Act>,
    wants: BTreeMap<StreamId, u64>,
    reports: BTreeMap<StreamId, u64>,
    took_ns: u64,
    /// The newest heartbeat that is to be answered.
    answer: Option<u64>,
    /// Streams that were asked for and have not come: see [`Stage::Asked`].
    asked: BTreeSet<StreamId>,
    refused: BTreeMap<StreamId, Refused>,
    now_ns: u64,
    has_left: bool,
    /// Until it is polled.
    leaving: Option<Why>,
    /// See [`Follower::driven`].
    is_driven: bool,
}

#[derive(Clone, Debug)]
struct Followed {
    leader: History,
    /// Offset of the record that comes next.
    next: u64,
    /// Up to where everything is durable.
    durable: u64,
    trimmed: u64,
    /// What the leader says is committed: of its history, however much of that is here.
    said_committed: u64,
    stage: Stage,
    /// How often it was asked again for what comes next.
    attempts: u32,
}

#[derive(Copy, Clone, Eq, PartialEq, Debug)]
enum Stage {
    /// It is being cut, or begun anew.
    Waiting,
    Following,
    /// Something is missing, and has been asked for, or will be: again at this time.
    Asked {
        again_ns: u64,
    },
}

impl Followed {
    fn new(leader: History, held: &Held, stage: Stage) -> Self {
        Self {
            leader,
            next: held.end,
            durable: held.end,
            trimmed: held.trimmed,
            said_committed: 0,
            stage,
            attempts: 0,
        }
    }
}

impl Follower {
    /// Begins a session in `epoch`, with everything that is durable here, and what is known to be
    /// committed. Streams that are a node's own are left alone, here and everywhere else.
    pub fn new(
        epoch: u64,
        follows_trims: bool,
        mut held: BTreeMap<StreamId, Held>,
        committed: BTreeMap<StreamId, u64>,
    ) -> Self {
        held.retain(|stream, _| is_replicated(*stream));
        Self {
            epoch,
            held,
            told: Told::default(),
            streams: BTreeMap::new(),
            committed,
            follows_trims,
            acts: VecDeque::new(),
            wants: BTreeMap::new(),
            reports: BTreeMap::new(),
            took_ns: 0,
            answer: None,
            asked: BTreeSet::new(),
            refused: BTreeMap::new(),
            now_ns: 0,
            has_left: false,
            leaving: None,
            is_driven: false,
        }
    }

    /// Of a driven node: records reach it another way too, so the leader is told of those again when
    /// it sends them.
    pub fn driven(self) -> Self {
        Self { is_driven: true, ..self }
    }

    /// Offsets of a stream that may be extended: that of the next record, and the durable end. `None`
    /// before the leader has named its streams, and while the stream is cut or begun anew.
    pub fn extendable(&mut self, stream: StreamId) -> Option<(u64, u64)> {
        if self.has_left || !self.told.has_ended() || !is_replicated(stream) {
            return None;
        }
        if !self.streams.contains_key(&stream) {
            // The leader has nothing of it yet, and so it starts at 0 in its epoch.
            let held = self.held.remove(&stream).unwrap_or_default();
            assert_eq!(held.end, 0, "stream {stream} was compared when all were named");
            let history = history::begin(stream, Held::default(), self.epoch);
            self.streams.insert(stream, Followed::new(history, &held, Stage::Following));
        }
        let followed = &self.streams[&stream];
        (followed.stage != Stage::Waiting).then_some((followed.next, followed.durable))
    }

    /// Records up to `end` were brought another way and are durable; nothing of the stream is being
    /// appended. `epoch` is that of the last one: where it is the leader's, all before are its, too.
    pub fn handle_brought(&mut self, stream: StreamId, end: u64, epoch: u64) {
        let Some(followed) = self.streams.get_mut(&stream) else { return };
        let is_his = end > 0 && followed.leader.epochs.epoch_at(end - 1) == epoch;
        if followed.stage == Stage::Waiting || end <= followed.next || !is_his {
            return;
        }
        followed.next = end;
        self.handle_durable(stream, end, 0);
    }

    /// Offset of the record of a stream that comes next, where it is followed.
    pub fn next_offset(&self, stream: StreamId) -> Option<u64> {
        self.streams.get(&stream).map(|followed| followed.next)
    }

    /// A stream is committed up to here, not only as the leader says; all of it is durable.
    pub fn handle_committed(&mut self, stream: StreamId, end: u64) {
        let committed = self.committed.entry(stream).or_default();
        *committed = end.max(*committed);
    }

    /// In which epoch.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// What is known to be committed, of what is durable here: it may be kept, and told to the next
    /// leader.
    pub fn committed(&self) -> &BTreeMap<StreamId, u64> {
        &self.committed
    }

    /// What the leader says is committed of a stream that is followed: it may not be here yet.
    pub fn said_committed(&self, stream: StreamId) -> Option<u64> {
        self.streams.get(&stream).map(|followed| followed.said_committed)
    }

    /// Records that the leader says are committed and that are not durable here, of all streams.
    pub fn lag_records(&self) -> u64 {
        let lag = |followed: &Followed| followed.said_committed.saturating_sub(followed.durable);
        self.streams.values().map(lag).fold(0, u64::saturating_add)
    }

    /// The epoch that the leader has at an offset of a stream.
    pub fn epoch_at(&self, stream: StreamId, offset: u64) -> Option<u64> {
        self.streams.get(&stream).map(|followed| followed.leader.epochs.epoch_at(offset))
    }

    /// Streams of which the engine has refused a frame and nothing has become durable since.
    pub fn refused(&self) -> &BTreeMap<StreamId, Refused> {
        &self.refused
    }

    /// A message of the leader.
    pub fn handle_message(&mut self, message: Message) {
        if self.has_left {
            return;
        }
        match message {
            Message::Histories(histories) => {
                histories.into_iter().for_each(|history| self.handle_history(history));
            }
            Message::HistoriesEnd => self.handle_histories_end(),
            Message::Heartbeat { time_ns } => self.answer = Some(time_ns),
            Message::Committed(ends) => {
                for (stream, end) in ends {
                    // Of streams that are not followed it means nothing here.
                    if let Some(followed) = self.streams.get_mut(&stream) {
                        followed.said_committed = followed.said_committed.max(end);
                        self.note_committed(stream);
                    }
                }
            }
            Message::Trimmed(ends) => {
                for (stream, before) in ends {
                    if let Some(followed) = self.streams.get_mut(&stream) {
                        followed.leader.trimmed = followed.leader.trimmed.max(before);
                        self.follow_trim(stream);
                    }
                }
            }
            Message::HeartbeatAnswer { .. } | Message::Leaving { .. } => {}
            Message::Want(_) | Message::Durable { .. } => self.violation("speaks as a follower"),
            Message::Fetch(_) | Message::Fetched { .. } => self.violation("speaks of a repair"),
            Message::Request(_) | Message::Reply(_) | Message::NoReply { .. } => {
                self.violation("asks where nobody is asked")
            }
        }
    }

    fn handle_history(&mut self, history: History) {
        let history = match self.told.take(history, self.epoch) {
            Ok(Some(history)) => history,
            // More of it comes.
            Ok(None) => return,
            Err(what) => return self.violation(&what),
        };
        let stream = history.stream;
        if let Some(followed) = self.streams.get_mut(&stream) {
            if !history::agrees(&followed.leader, &history) {
                let what = format!("tells another history of stream {stream} than before");
                return self.violation(&what);
            }
            // What it was to send next has been trimmed meanwhile, or it thinks so.
            followed.leader = history;
            if followed.stage != Stage::Waiting && !self.begin_anew_if_trimmed(stream) {
                self.want(stream);
            }
            return;
        }
        if !self.told.has_ended() {
            return self.told.keep(history).unwrap_or_else(|what| self.violation(&what));
        }
        if let Err(what) = self.told.count(&history) {
            return self.violation(&what);
        }
        let held = self.held.remove(&stream).unwrap_or_default();
        let parting = history::part(&held, &history);
        if let Some(why) = self.refusal(&held, &history, parting) {
            return self.leave(why);
        }
        // What is new comes from its first record on, unasked.
        let is_new = parting == Parting::Nowhere && held.end == 0;
        self.follow(held, history, parting);
        if is_new {
            self.wants.remove(&stream);
        }
    }

    /// All streams are compared before any is touched, so that a refusal has changed nothing.
    fn handle_histories_end(&mut self) {
        let mut told = match self.told.end() {
            Ok(told) => told,
            Err(what) => return self.violation(&what),
        };
        for (stream, held) in &self.held {
            if held.end == 0 || told.contains_key(stream) {
                continue;
            }
            if held.trimmed > 0 {
                let (stream, trimmed) = (*stream, held.trimmed);
                let epoch = self.epoch;
                return self.leave(Why::LeaderLacks { epoch, stream, end: 0, trimmed });
            }
            if held.epochs.last().epoch >= self.epoch {
                let what = format!("does not name stream {stream}, which it began");
                return self.violation(&what);
            }
            // Streams that the leader does not have start at 0 in its epoch.
            told.insert(*stream, history::begin(*stream, Held::default(), self.epoch));
        }
        let mut compared = Vec::with_capacity(told.len());
        for (stream, history) in told {
            let held = self.held.get(&stream).cloned().unwrap_or_default();
            let parting = history::part(&held, &history);
            if let Some(why) = self.refusal(&held, &history, parting) {
                return self.leave(why);
            }
            compared.push((held, history, parting));
        }
        for (held, history, parting) in compared {
            self.held.remove(&history.stream);
            self.follow(held, history, parting);
        }
    }

    /// Why this history must not be followed (I-14), if so.
    fn refusal(&self, held: &Held, history: &History, parting: Parting) -> Option<Why> {
        let (epoch, stream) = (self.epoch, history.stream);
        let at = match parting {
            Parting::Nowhere => return None,
            Parting::LeaderLacks { end } => {
                return Some(Why::LeaderLacks { epoch, stream, end, trimmed: held.trimmed });
            }
            Parting::At(at) => at,
            // What agrees, and what nobody can compare any more, is in the leader's snapshot.
            Parting::TooFar { .. } => history::known_difference(held, history)?,
        };
        let committed = self.committed.get(&stream).copied().unwrap_or(0);
        let is_below = at < committed && !mutants::is(Mutant::CutBelowCommitted);
        is_below.then_some(Why::BelowCommitted { epoch, stream, at, committed })
    }

    /// Follows a history that is not refused.
    fn follow(&mut self, held: Held, history: History, parting: Parting) {
        let stream = history.stream;
        let stage = match parting {
            Parting::Nowhere => Stage::Following,
            _ => Stage::Waiting,
        };
        let followed = Followed::new(history, &held, stage);
        match parting {
            Parting::Nowhere => {
                self.streams.insert(stream, followed);
                self.want(stream);
                self.follow_trim(stream);
            }
            Parting::At(at) => {
                let from =
                    at - u64::from(mutants::is(Mutant::CutBelowCommitted) && at > held.trimmed);
                let epoch = followed.leader.epochs.epoch_at(from);
                self.streams.insert(stream, followed);
                self.acts.push_back(Act::Cut { stream, from, end: held.end, epoch });
            }
            Parting::TooFar { .. } | Parting::LeaderLacks { .. } => {
                self.streams.insert(stream, followed);
                self.begin_anew(stream);
            }
        }
    }

    fn begin_anew(&mut self, stream: StreamId) {
        let Some(followed) = self.streams.get_mut(&stream) else { return };
        followed.stage = Stage::Waiting;
        let History { trimmed, epochs, .. } = followed.leader.clone();
        let held = followed.trimmed..followed.next;
        self.asked.remove(&stream);
        self.wants.remove(&stream);
        self.acts.push_back(Act::BeginAnew { stream, trimmed, held, epochs });
    }

    /// Whether it must.
    fn begin_anew_if_trimmed(&mut self, stream: StreamId) -> bool {
        let is_trimmed = self.streams.get(&stream).is_some_and(|followed| {
            followed.next < followed.leader.trimmed && followed.stage != Stage::Waiting
        });
        if is_trimmed {
            self.begin_anew(stream);
        }
        is_trimmed
    }

    /// A cut is durable.
    pub fn handle_cut(&mut self, stream: StreamId, at: u64) {
        self.follow_from(stream, at);
    }

    /// A stream begins anew at `at`: what came before is in a snapshot.
    pub fn handle_begun_anew(&mut self, stream: StreamId, at: u64) {
        if let Some(followed) = self.streams.get_mut(&stream) {
            followed.trimmed = at;
        }
        self.follow_from(stream, at);
    }

    fn follow_from(&mut self, stream: StreamId, at: u64) {
        let Some(followed) = self.streams.get_mut(&stream) else { return };
        assert_eq!(followed.stage, Stage::Waiting, "stream {stream} was to be cut or begun anew");
        followed.next = at;
        followed.durable = at;
        followed.stage = Stage::Following;
        self.note_committed(stream);
        self.follow_trim(stream);
        if !self.begin_anew_if_trimmed(stream) {
            self.want(stream);
        }
    }

    /// A frame whose checksums are right.
    pub fn handle_frame(&mut self, header: &FrameHeader) -> Worth {
        if self.has_left {
            return Worth::Ignore;
        }
        let stream = StreamId::new(header.stream.get());
        let (epoch, base) = (header.epoch.get(), header.base_offset.get());
        let end = header.end_offset();
        let Some(followed) = self.streams.get_mut(&stream) else {
            self.violation(&format!("sends stream {stream} without its history"));
            return Worth::Ignore;
        };
        let epochs = &followed.leader.epochs;
        let is_right = |offset| epochs.epoch_at(offset) == epoch;
        if end <= base || end > OFFSET_MAX || !is_right(base) || !is_right(end - 1) {
            let what = format!("sends {base}..{end} of stream {stream} in the wrong epoch {epoch}");
            self.violation(&what);
            return Worth::Ignore;
        }
        if followed.stage == Stage::Waiting || end <= followed.next {
            if self.is_driven && followed.stage != Stage::Waiting && end <= followed.durable {
                self.reports.insert(stream, followed.durable);
            }
            return Worth::Ignore;
        }
        if base > followed.next && !mutants::is(Mutant::GapAccepted) {
            if followed.stage == Stage::Following {
                self.ask(stream, 1);
                self.want(stream);
            }
            return Worth::Ignore;
        }
        if base < followed.next {
            let next = followed.next;
            self.violation(&format!("sends {base}..{end} of stream {stream}, which is at {next}"));
            return Worth::Ignore;
        }
        followed.next = end;
        followed.stage = Stage::Following;
        self.asked.remove(&stream);
        if mutants::is(Mutant::ReportBeforeFsync) {
            self.reports.insert(stream, end);
        }
        Worth::Append
    }

    /// Frames of a stream are durable up to `end`; the oldest of them took so long.
    pub fn handle_durable(&mut self, stream: StreamId, end: u64, took_ns: u64) {
        let Some(followed) = self.streams.get_mut(&stream) else { return };
        followed.durable = followed.durable.max(end);
        followed.attempts = 0;
        self.refused.remove(&stream);
        self.reports.insert(stream, end);
        self.took_ns = self.took_ns.max(took_ns);
        self.note_committed(stream);
        self.follow_trim(stream);
    }

    /// The engine did not take a frame; everything before it has its outcome, and this is the
    /// stream's end. It is asked for again after a while, which is longer each time.
    pub fn handle_refused(&mut self, stream: StreamId, end: u64, why: Refused) {
        let Some(followed) = self.streams.get_mut(&stream) else { return };
        if followed.stage == Stage::Waiting {
            return;
        }
        followed.next = end;
        followed.durable = end;
        let is_asked = followed.stage != Stage::Following;
        self.wants.remove(&stream);
        let worst = self.refused.entry(stream).or_insert(why);
        *worst = why.max(*worst);
        let patience = worst.patience();
        // What was on its way behind a refused one is refused too: that is one refusal.
        if !is_asked {
            self.ask(stream, patience);
        }
    }

    /// Time passes: what has not come is asked for again.
    pub fn handle_time(&mut self, now_ns: u64) {
        self.now_ns = self.now_ns.max(now_ns);
        for stream in self.asked.clone() {
            let stage = self.streams.get(&stream).map(|followed| followed.stage);
            let Some(Stage::Asked { again_ns }) = stage else { continue };
            if again_ns <= now_ns {
                let patience = self.refused.get(&stream).map_or(1, |why| why.patience());
                self.ask(stream, patience);
                self.want(stream);
            }
        }
    }

    /// Something is missing: asked for again later, unless it comes.
    fn ask(&mut self, stream: StreamId, patience: u64) {
        let Some(followed) = self.streams.get_mut(&stream) else { return };
        let doublings = followed.attempts.min(ASK_AGAIN_DOUBLINGS_MAX);
        followed.attempts = followed.attempts.saturating_add(1);
        let wait_ns = ASK_AGAIN_NS * patience * (1 << doublings);
        followed.stage = Stage::Asked { again_ns: self.now_ns.saturating_add(wait_ns) };
        self.asked.insert(stream);
    }

    fn want(&mut self, stream: StreamId) {
        if let Some(followed) = self.streams.get(&stream) {
            self.wants.insert(stream, followed.next);
        }
    }

    /// What the leader says counts as far as it is durable here, and not before what parts from the
    /// leader's history is cut.
    fn note_committed(&mut self, stream: StreamId) {
        let Some(followed) = self.streams.get(&stream) else { return };
        let known = followed.said_committed.min(followed.durable);
        if followed.stage != Stage::Waiting && known > 0 {
            let committed = self.committed.entry(stream).or_default();
            *committed = known.max(*committed);
        }
    }

    /// Trims what the leader has trimmed, as far as it is durable here: again as that grows.
    fn follow_trim(&mut self, stream: StreamId) {
        let Some(followed) = self.streams.get_mut(&stream) else { return };
        let before = followed.leader.trimmed.min(followed.durable);
        let follows = followed.stage != Stage::Waiting && self.follows_trims;
        if follows && before > followed.trimmed {
            followed.trimmed = before;
            self.acts.push_back(Act::Trim { stream, before });
        }
    }

    fn violation(&mut self, what: &str) {
        self.leave(Why::Violation(what.to_owned()));
    }

    /// Nothing is done any more that this leader asked for.
    fn leave(&mut self, why: Why) {
        if !self.has_left {
            self.has_left = true;
            self.leaving = Some(why);
        }
    }

    /// What is to be done next. Reports and wishes of many streams go together.
    pub fn poll_act(&mut self) -> Option<Act> {
        if self.has_left {
            return self.leaving.take().map(Act::Leave);
        }
        if let Some(act) = self.acts.pop_front() {
            return Some(act);
        }
        let message = if let Some(time_ns) = self.answer.take() {
            Message::HeartbeatAnswer { time_ns }
        } else if !self.wants.is_empty() {
            Message::Want(std::mem::take(&mut self.wants).into_iter().collect())
        } else if !self.reports.is_empty() {
            let took_ns = std::mem::take(&mut self.took_ns);
            let ends = std::mem::take(&mut self.reports).into_iter().collect();
            Message::Durable { took_ns, ends }
        } else {
            return None;
        };
        self.acts.extend(message.pieces().into_iter().map(Act::Send));
        self.acts.pop_front()
    }
}
