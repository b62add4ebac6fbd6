//! The follower's side of one session: what it takes, cuts, wants and reports. A core without I/O.
//!
//! It begins when everything that was being appended has its outcome, and the leader's epoch has
//! been promised durably. Polling order: after each `handle_*`, [`Follower::poll_act`] until there
//! is none.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};

use ringwal_engine::StreamId;
use ringwal_engine::format::FrameHeader;
use ringwal_engine::mutants::{self, Mutant};

use crate::history::{Held, Parting, part};
use crate::wire::{History, Message};

/// What its owner has to do.
#[derive(Clone, Eq, PartialEq, Debug)]
pub enum Act {
    /// Keep the records of a stream from an offset on as an orphan, then cut them and begin the
    /// epoch that the leader has there, all of it durably; then [`Follower::handle_cut`].
    Cut {
        /// Which stream.
        stream: StreamId,
        /// First offset that goes.
        from: u64,
        /// Durable end before.
        end: u64,
        /// The leader's epoch of that offset.
        epoch: u64,
    },
    /// Begin a stream anew: the leader has trimmed what is missing here. Whoever has a snapshot
    /// puts it in, keeps what is held as an orphan, skips to an offset not below `trimmed`, and
    /// calls [`Follower::handle_begun_anew`].
    BeginAnew {
        /// Which stream.
        stream: StreamId,
        /// What the leader has trimmed.
        trimmed: u64,
        /// What is held here, and is no part of that.
        held: std::ops::Range<u64>,
    },
    /// Trim a stream that the leader has trimmed.
    Trim {
        /// Which stream.
        stream: StreamId,
        /// First offset that stays.
        before: u64,
    },
    /// Send this.
    Send(Message),
    /// Drop the connection: the leader does not do what leaders do, or must not be followed.
    Leave(Why),
}

/// Why a session ends.
#[derive(Clone, Eq, PartialEq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Why {
    /// To follow would take back what a majority has.
    #[error(
        "following the leader of epoch {epoch} would cut stream {stream} at {at}, below its \
         committed offset {committed}; nothing was changed: look at the leader's disk before \
         anything else"
    )]
    BelowCommitted {
        /// Which epoch.
        epoch: u64,
        /// Which stream.
        stream: StreamId,
        /// Where it would be cut.
        at: u64,
        /// What is known to be committed.
        committed: u64,
    },
    /// What is trimmed here was applied, and the leader does not have it.
    #[error(
        "the leader of epoch {epoch} ends stream {stream} at {end}, and {trimmed} of it were \
         trimmed here; nothing was changed: look at the leader's disk before anything else"
    )]
    LeaderLacks {
        /// Which epoch.
        epoch: u64,
        /// Which stream.
        stream: StreamId,
        /// Where the leader's ends.
        end: u64,
        /// What is trimmed here.
        trimmed: u64,
    },
    /// The leader does what none does.
    #[error("the leader {0}")]
    Violation(String),
}

/// What a frame is worth.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Worth {
    /// The exact continuation: append it.
    Append,
    /// Held already, or waits for an earlier one.
    Ignore,
}

/// Follows one session of one leader.
#[derive(Clone, Debug)]
pub struct Follower {
    epoch: u64,
    /// What was held when the session began, of streams that the leader has not named yet.
    held: BTreeMap<StreamId, Held>,
    streams: BTreeMap<StreamId, Followed>,
    /// What is known to be committed, from this session and those before.
    committed: BTreeMap<StreamId, u64>,
    follows_trims: bool,
    acts: VecDeque<Act>,
    wants: Vec<(StreamId, u64)>,
    durable: BTreeMap<StreamId, u64>,
    took_ns: u64,
    /// The leader has named all streams that it had; those that it names now are new.
    told_all: bool,
    has_left: bool,
}

#[derive(Clone, Debug)]
struct Followed {
    leader: History,
    /// Offset of the record that comes next.
    next: u64,
    trimmed: u64,
    stage: Stage,
}

#[derive(Copy, Clone, Eq, PartialEq, Debug)]
enum Stage {
    /// It is being cut, or begun anew.
    Waiting,
    Following,
    /// Something was missing, and has been asked for.
    Asked,
}

impl Follower {
    /// Begins a session in `epoch`, with everything that is durable here, and what is known to be
    /// committed.
    pub fn new(
        epoch: u64,
        follows_trims: bool,
        held: BTreeMap<StreamId, Held>,
        committed: BTreeMap<StreamId, u64>,
    ) -> Self {
        Self {
            epoch,
            held,
            streams: BTreeMap::new(),
            committed,
            follows_trims,
            acts: VecDeque::new(),
            wants: Vec::new(),
            durable: BTreeMap::new(),
            took_ns: 0,
            told_all: false,
            has_left: false,
        }
    }

    /// In which epoch.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// What is known to be committed.
    pub fn committed(&self) -> &BTreeMap<StreamId, u64> {
        &self.committed
    }

    /// The epoch that the leader has at an offset of a stream.
    pub fn epoch_at(&self, stream: StreamId, offset: u64) -> Option<u64> {
        self.streams.get(&stream).map(|followed| followed.leader.epochs.epoch_at(offset))
    }

    /// A message of the leader.
    pub fn handle_message(&mut self, message: Message) {
        match message {
            Message::Histories(histories) => {
                histories.into_iter().for_each(|history| self.handle_history(history));
            }
            Message::HistoriesEnd => self.handle_histories_end(),
            Message::Heartbeat { time_ns } => {
                self.acts.push_back(Act::Send(Message::HeartbeatAnswer { time_ns }));
            }
            Message::Committed(ends) => {
                for (stream, end) in ends {
                    let committed = self.committed.entry(stream).or_default();
                    *committed = end.max(*committed);
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
        }
    }

    fn handle_history(&mut self, history: History) {
        let stream = history.stream;
        if history.epochs.last().epoch != self.epoch {
            let what = format!("tells a history of stream {stream} that is of another epoch");
            return self.violation(&what);
        }
        if let Some(followed) = self.streams.get_mut(&stream) {
            // What it was to send next has been trimmed meanwhile.
            followed.leader = history;
            return self.begin_anew_if_trimmed(stream);
        }
        let held = self.held.remove(&stream).unwrap_or_default();
        let followed = |stage| Followed {
            leader: history.clone(),
            next: held.end,
            trimmed: held.trimmed,
            stage,
        };
        match part(&held, &history) {
            Parting::Nowhere => {
                self.streams.insert(stream, followed(Stage::Following));
                // What is new comes from its first record on, unasked.
                if !self.told_all || held.end > 0 {
                    self.wants.push((stream, held.end));
                }
                self.follow_trim(stream);
            }
            Parting::At(at) => {
                let at =
                    at - u64::from(mutants::is(Mutant::CutBelowCommitted) && at > held.trimmed);
                self.streams.insert(stream, followed(Stage::Waiting));
                self.cut(stream, at, held.end, history.epochs.epoch_at(at));
            }
            Parting::TooFar { trimmed } => {
                self.streams.insert(stream, followed(Stage::Waiting));
                let held = held.trimmed..held.end;
                self.acts.push_back(Act::BeginAnew { stream, trimmed, held });
            }
            Parting::LeaderLacks { end } => self.lacks(stream, end, held.trimmed),
        }
    }

    fn begin_anew_if_trimmed(&mut self, stream: StreamId) {
        let Some(followed) = self.streams.get_mut(&stream) else { return };
        let trimmed = followed.leader.trimmed;
        if followed.next < trimmed && followed.stage != Stage::Waiting {
            followed.stage = Stage::Waiting;
            let held = followed.trimmed..followed.next;
            self.acts.push_back(Act::BeginAnew { stream, trimmed, held });
        }
    }

    /// Streams that the leader does not have start at 0 in its epoch.
    fn handle_histories_end(&mut self) {
        self.told_all = true;
        for (stream, held) in std::mem::take(&mut self.held) {
            if held.end == 0 {
                continue;
            }
            if held.trimmed > 0 {
                return self.lacks(stream, 0, held.trimmed);
            }
            let start = ringwal_engine::EpochStart { epoch: self.epoch, start: 0 };
            let epochs = ringwal_engine::EpochTable::from_entries(vec![start]);
            let epochs = epochs.expect("one entry is in order");
            let leader = History { stream, trimmed: 0, epochs };
            let followed = Followed { leader, next: held.end, trimmed: 0, stage: Stage::Waiting };
            self.streams.insert(stream, followed);
            self.cut(stream, 0, held.end, self.epoch);
        }
    }

    fn cut(&mut self, stream: StreamId, at: u64, end: u64, epoch: u64) {
        let committed = self.committed.get(&stream).copied().unwrap_or(0);
        if at < committed && !mutants::is(Mutant::CutBelowCommitted) {
            let epoch = self.epoch;
            return self.leave(Why::BelowCommitted { epoch, stream, at, committed });
        }
        self.acts.push_back(Act::Cut { stream, from: at, end, epoch });
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
        followed.next = at;
        followed.stage = Stage::Following;
        self.wants.push((stream, at));
        self.follow_trim(stream);
        self.begin_anew_if_trimmed(stream);
    }

    /// A frame whose checksums are right.
    pub fn handle_frame(&mut self, header: &FrameHeader) -> Worth {
        let stream = StreamId::new(header.stream.get());
        let (epoch, base) = (header.epoch.get(), header.base_offset.get());
        let end = header.end_offset();
        let Some(followed) = self.streams.get_mut(&stream) else {
            self.violation(&format!("sends stream {stream} without its history"));
            return Worth::Ignore;
        };
        let epochs = &followed.leader.epochs;
        let is_right = |offset| epochs.epoch_at(offset) == epoch;
        if end <= base || !is_right(base) || !is_right(end - 1) {
            let what = format!("sends {base}..{end} of stream {stream} in the wrong epoch {epoch}");
            self.violation(&what);
            return Worth::Ignore;
        }
        if followed.stage == Stage::Waiting || end <= followed.next {
            return Worth::Ignore;
        }
        if base > followed.next && !mutants::is(Mutant::GapAccepted) {
            if followed.stage == Stage::Following {
                followed.stage = Stage::Asked;
                self.wants.push((stream, followed.next));
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
        if mutants::is(Mutant::ReportBeforeFsync) {
            self.durable.insert(stream, end);
        }
        Worth::Append
    }

    /// Frames of a stream are durable up to `end`; the oldest of them took so long.
    pub fn handle_durable(&mut self, stream: StreamId, end: u64, took_ns: u64) {
        self.durable.insert(stream, end);
        self.took_ns = self.took_ns.max(took_ns);
    }

    /// The engine did not take a frame, for want of space; everything before it has its outcome,
    /// and this is the stream's end. It is asked for again when there is room.
    pub fn handle_refused(&mut self, stream: StreamId, end: u64) {
        if let Some(followed) = self.streams.get_mut(&stream)
            && followed.stage != Stage::Waiting
        {
            followed.next = end;
            followed.stage = Stage::Asked;
            self.wants.push((stream, end));
        }
    }

    fn follow_trim(&mut self, stream: StreamId) {
        let Some(followed) = self.streams.get_mut(&stream) else { return };
        let before = followed.leader.trimmed.min(followed.next);
        let follows = followed.stage != Stage::Waiting && self.follows_trims;
        if follows && before > followed.trimmed {
            followed.trimmed = before;
            self.acts.push_back(Act::Trim { stream, before });
        }
    }

    fn lacks(&mut self, stream: StreamId, end: u64, trimmed: u64) {
        self.leave(Why::LeaderLacks { epoch: self.epoch, stream, end, trimmed });
    }

    fn violation(&mut self, what: &str) {
        self.leave(Why::Violation(what.to_owned()));
    }

    fn leave(&mut self, why: Why) {
        if !self.has_left {
            self.has_left = true;
            self.acts.push_back(Act::Leave(why));
        }
    }

    /// What is to be done next. Reports and wishes of many streams go together.
    pub fn poll_act(&mut self) -> Option<Act> {
        if let Some(act) = self.acts.pop_front() {
            return Some(act);
        }
        if self.has_left {
            return None;
        }
        let message = if !self.wants.is_empty() {
            Message::Want(std::mem::take(&mut self.wants))
        } else if !self.durable.is_empty() {
            let took_ns = std::mem::take(&mut self.took_ns);
            let ends = std::mem::take(&mut self.durable).into_iter().collect();
            Message::Durable { took_ns, ends }
        } else {
            return None;
        };
        self.acts.extend(message.pieces().into_iter().map(Act::Send));
        self.acts.pop_front()
    }
}
