//! This node leads: sealed frames go to the core, slices from it to the connections, reports of
//! the followers to whoever waits for a majority.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use ringwal_engine::{Engine, FrameSlice, SealedFrames, StreamId, StreamSummary, Subscription};

use super::connection::Connection;
use super::dial::{Dialled, Dialler, Refused};
use super::uncommitted::Uncommitted;
use super::{Clock, Context};
use crate::config::Member;
use crate::driven::Members;
use crate::framing::record_bytes;
use crate::history::Held;
use crate::leader::{Leader, Limits, ReadOutcome, ReadRequest};
use crate::link::Received;
use crate::node_id::NodeId;
use crate::progress::Voters;
use crate::stats::{FollowerCounters, FollowerStats, LeaderTimes, StageTimes};
use crate::term::Term;
use crate::wire::{ConnectionKind, Message, Refusal};
use crate::worker::{Facts, Job};

/// Messages from shards that wait.
const SEALED_MAX: usize = 1024;
/// Slices of one hand-over to a connection.
pub(crate) const SLICES_MAX: usize = 1024;
/// Messages from shards that are taken in one turn, so that the rest of it gets its time.
const SEALED_PER_TURN: usize = 256;
/// Items of one follower that are taken in one turn.
const ITEMS_PER_TURN: usize = 256;
/// Between two looks at everything that is durable, for what nothing else has shown.
const LOOK: Duration = Duration::from_millis(500);

/// See the module.
pub(crate) struct Leading {
    pub(crate) term: Arc<Term>,
    core: Leader,
    subscription: Subscription,
    followers: Vec<Follower>,
    /// Of each stream that enough followers have more of than was told to be committed: how much.
    risen: BTreeMap<StreamId, u64>,
    /// Trims that wait for followers, by stream.
    trims: BTreeMap<StreamId, u64>,
    /// Trims that the worker has.
    trimming: BTreeMap<StreamId, u64>,
    times: LeaderTimes,
    looked: Instant,
    /// What was durable at the last look, until all that was sealed before has been taken.
    durable_ends: Vec<StreamSummary>,
    /// The engine hands nothing over any more.
    is_cut_off: bool,
    /// Of a driven node: what may be lost with it.
    uncommitted: Uncommitted,
}

/// One follower.
struct Follower {
    /// Its number in the core.
    number: usize,
    dialler: Dialler,
    session: Option<Session>,
    /// The engine that it had last.
    engine: [u8; 16],
    counters: FollowerCounters,
}

struct Session {
    number: u64,
    connection: Connection,
    began: Instant,
}

/// What a turn has come to.
pub(crate) enum Turn {
    /// It goes on.
    Goes,
    /// Somebody has a greater epoch.
    Deposed(String),
}

impl Leading {
    /// Begins to lead in a term that is promised; nothing is being appended.
    pub(crate) fn new(
        context: &Context,
        term: Arc<Term>,
        held: impl IntoIterator<Item = (StreamId, Held)>,
    ) -> Self {
        let engine = &context.engine;
        // Before the first record of the epoch.
        let subscription = engine.subscribe(SEALED_MAX);
        let limits = Limits {
            window_bytes: context.config.window_bytes,
            // The engine hands nothing over while half of them are held.
            window_buffers: (engine.batch_buffers() / 2).saturating_sub(2).max(1),
            read_bytes: (context.config.window_bytes / 4).clamp(64 << 10, 1 << 20),
            heartbeat_ns: context.config.heartbeat.as_nanos() as u64,
        };
        let shards: BTreeMap<StreamId, u16> =
            engine.streams().into_iter().map(|summary| (summary.stream, summary.shard)).collect();
        let shard = |stream| shards.get(&stream).copied().unwrap_or(0);
        let streams = held.into_iter().map(|(stream, held)| (stream, shard(stream), held));
        let core = Leader::new(term.epoch(), 0, limits, streams);
        let core = if context.is_driven { core.driven() } else { core };
        let mut leading = Self {
            term,
            core,
            subscription,
            followers: Vec::new(),
            risen: BTreeMap::new(),
            trims: BTreeMap::new(),
            trimming: BTreeMap::new(),
            times: LeaderTimes::default(),
            looked: Instant::now(),
            durable_ends: Vec::new(),
            is_cut_off: false,
            uncommitted: Uncommitted::default(),
        };
        leading.set_members(context);
        engine.set_epoch(leading.term.epoch());
        leading
    }

    /// Others are dialled, and count, from now on; what is known to be committed stays so.
    pub(crate) fn set_members(&mut self, context: &Context) {
        let Members { nodes, voters, .. } = &context.members;
        let is_follower = |member: &&Member| member.node != context.me.node;
        let wanted: Vec<&Member> = nodes.iter().filter(is_follower).collect();
        let (left, gone): (Vec<_>, Vec<_>) = std::mem::take(&mut self.followers)
            .into_iter()
            .partition(|follower| wanted.contains(&follower.dialler.member()));
        self.followers = left;
        for follower in gone {
            let node = follower.dialler.member().node;
            tracing::info!(%node, epoch = self.term.epoch(), "follows no more, or from elsewhere");
            self.core.remove_follower(follower.number);
        }
        for member in wanted {
            if self.followers.iter().any(|follower| follower.dialler.member() == member) {
                continue;
            }
            let (kind, epoch) = (ConnectionKind::Frames, self.term.epoch());
            self.followers.push(Follower {
                number: self.core.add_follower(),
                dialler: Dialler::start(context, member.clone(), kind, epoch),
                session: None,
                engine: [0; 16],
                counters: FollowerCounters::new(member),
            });
        }
        let number = |node: &NodeId| {
            let follower = self.followers.iter().find(|f| f.dialler.member().node == *node);
            follower.map(|follower| follower.number)
        };
        let voters = voters.iter().map(|set| {
            let followers = set.iter().filter_map(number).collect();
            Voters::new(set.len(), set.contains(&context.me.node), followers)
        });
        self.core.set_voters(voters.collect());
        let is_alone = self.core.progress().is_alone();
        if is_alone != self.uncommitted.is_alone {
            self.uncommitted = Uncommitted::new(is_alone);
            self.term.gate().iter().for_each(|gate| gate.set_bytes(0));
        }
        self.term.set_alone(is_alone);
        // The order of who is configured, as far as anybody sees it.
        let place = |node| nodes.iter().position(|member| member.node == node);
        self.followers.sort_by_key(|follower| place(follower.dialler.member().node));
    }

    /// A stream is committed so far, whoever says it; all of it is durable here.
    pub(crate) fn handle_committed(&mut self, stream: StreamId, end: u64) {
        self.note_committed(stream, end);
        self.core.tell_committed(&[(stream, end)]);
    }

    /// Of a driven node: those who wait learn it.
    fn note_committed(&mut self, stream: StreamId, end: u64) {
        if let Some(gate) = self.term.gate() {
            gate.release(self.uncommitted.take_below(stream, end));
            self.term.raise_committed(stream, end);
        }
    }

    /// One turn of everything that can be done now. True when there is more to do at once.
    pub(crate) fn turn(&mut self, context: &mut Context) -> (Turn, bool) {
        let mut is_busy = self.take_sealed(context);
        // Frames that are still to be taken would look as if they were missed, and be read from segments.
        if !is_busy {
            for StreamSummary { stream, shard, end, .. } in std::mem::take(&mut self.durable_ends) {
                self.core.handle_durable_end(stream, shard, end);
            }
        }
        for follower in 0..self.followers.len() {
            match self.take_dialled(follower, context) {
                Turn::Goes => {}
                deposed => return (deposed, false),
            }
            let (turn, more) = self.take_received(follower, context);
            if let Turn::Deposed(_) = turn {
                return (turn, false);
            }
            is_busy |= more;
        }
        self.raise(&context.engine, &mut context.facts.committed);
        self.core.handle_time(context.clock.now_ns());
        while context.worker.has_room()
            && let Some(request) = self.core.poll_read()
        {
            context.worker.give(Job::Read(request));
        }
        self.send(&context.clock);
        (Turn::Goes, is_busy)
    }

    /// Now and then: sessions that are silent, streams that nothing has shown, trims that waited.
    pub(crate) fn tick(&mut self, context: &mut Context) -> Turn {
        if let Some(cause) = context.engine.poisoned() {
            return Turn::Deposed(format!("this node's engine has failed: {cause}"));
        }
        let limit = context.config.session_timeout;
        for follower in 0..self.followers.len() {
            let session = self.followers[follower].session.as_ref();
            let silent = session
                .map(|session| session.connection.silence())
                .filter(|silent| *silent > limit && !context.was_late);
            if let Some(silent) = silent {
                self.end_session(follower, &format!("silent for {silent:?}"), context);
            }
        }
        if self.looked.elapsed() >= LOOK {
            self.looked = Instant::now();
            self.durable_ends = context.engine.streams();
        }
        self.trim(context);
        self.tick_gate(context);
        Turn::Goes
    }

    /// Appends that waited for room do not when the lease has lapsed. Records that were refused when
    /// they were sealed are forgotten when everything that was appended has its outcome.
    fn tick_gate(&mut self, context: &Context) {
        let Some(gate) = self.term.gate() else { return };
        if !gate.has_lease() {
            gate.wake();
        }
        let appended = gate.appended();
        let is_quiet = self.uncommitted.appended == appended && context.engine.queued_bytes() == 0;
        if is_quiet && !self.uncommitted.is_alone {
            gate.set_bytes(self.uncommitted.bytes);
        }
        self.uncommitted.appended = appended;
    }

    /// Takes what shards have sealed.
    fn take_sealed(&mut self, context: &Context) -> bool {
        for _ in 0..SEALED_PER_TURN {
            match self.subscription.try_next() {
                Poll::Ready(Some(SealedFrames::Batch { shard, frames })) => {
                    self.times.note_sealed(&frames, self.core.followers());
                    if self.term.gate().is_some() {
                        self.note_sealed(&frames);
                    }
                    self.core.handle_sealed(shard, &frames);
                }
                Poll::Ready(Some(SealedFrames::Lagged { shard })) => {
                    context.counters.lagged.add(1);
                    self.core.handle_lagged(shard);
                }
                Poll::Ready(None) => {
                    // Every shard is closed or poisoned. What is durable still goes out.
                    self.is_cut_off = true;
                    return false;
                }
                Poll::Pending => return false,
            }
        }
        true
    }

    /// Of a driven node: what is not committed yet; and what is as soon as it is durable here.
    fn note_sealed(&mut self, frames: &[FrameSlice]) {
        for frame in frames {
            let end = frame.base_offset + u64::from(frame.count);
            if self.uncommitted.is_alone {
                self.risen.insert(frame.stream, end);
            } else {
                self.uncommitted.push(frame.stream, end, record_bytes(frame.bytes.len()));
            }
        }
    }

    /// Asks to be woken for sealed frames; false when there are some.
    pub(crate) fn park(&self, waker: &Waker) -> bool {
        self.is_cut_off || self.subscription.park(waker)
    }

    fn take_dialled(&mut self, index: usize, context: &mut Context) -> Turn {
        let follower = &mut self.followers[index];
        match follower.dialler.take() {
            None => Turn::Goes,
            Some(Dialled::Answered { reader, writer, version, engine }) => {
                let wake = context.wake.clone();
                let connection = Connection::start(reader, writer, context.frame_bytes_max, wake);
                let node = follower.dialler.member().node;
                let is_named = context.members.engines.get(&node).map(|named| *named == engine);
                let known = context.facts.members.get(&node);
                let counts = is_named != Some(false) && known == Some(&engine);
                let is_other = !counts && !is_named.unwrap_or(known.is_none());
                if is_other {
                    tracing::error!(
                        %node,
                        "has another disk than it had: it is fed, and does not count for a majority \
                         until it is re-admitted"
                    );
                } else {
                    // It counts when that is durable.
                    context.facts.members.insert(node, engine);
                }
                let number =
                    self.core.handle_connected(follower.number, counts, context.clock.now_ns());
                follower.counters.is_other_disk = is_other;
                follower.engine = engine;
                follower.session = Some(Session { number, connection, began: Instant::now() });
                follower.counters.connects += 1;
                tracing::info!(%node, version, epoch = self.term.epoch(), "follower connected");
                Turn::Goes
            }
            Some(Dialled::Failed(why)) => {
                follower.counters.note_failure(&why);
                Turn::Goes
            }
            Some(Dialled::Refused(Refused { refusal, epoch, why })) => {
                follower.counters.note_refused(refusal, &why);
                // The same epoch is another run's: two nodes must not use one.
                if refusal == Refusal::Epoch && epoch >= self.term.epoch() {
                    let node = follower.dialler.member().node;
                    return Turn::Deposed(format!("node {node} has promised epoch {epoch}: {why}"));
                }
                Turn::Goes
            }
        }
    }

    fn take_received(&mut self, index: usize, context: &mut Context) -> (Turn, bool) {
        for _ in 0..ITEMS_PER_TURN {
            let Follower { number: follower, session: Some(session), .. } = &self.followers[index]
            else {
                return (Turn::Goes, false);
            };
            let follower = *follower;
            if session.connection.take_sent() {
                self.core.handle_sent(follower, session.number);
                self.times.note_sent(follower);
            }
            let Some((item, _)) = session.connection.take_received() else {
                if let Some(why) = session.connection.ended() {
                    self.end_session(index, &why, context);
                }
                return (Turn::Goes, false);
            };
            let number = session.number;
            let Received::Message(message) = item else {
                self.end_session(index, "a follower sends frames", context);
                return (Turn::Goes, false);
            };
            if let Message::Leaving { epoch, cause, reason } = &message {
                if *epoch > self.term.epoch() {
                    return (Turn::Deposed(reason.clone()), false);
                }
                self.followers[index].counters.note_left(*cause, reason);
                let why = format!("it leaves ({}): {reason}", cause.name());
                self.end_session(index, &why, context);
                return (Turn::Goes, false);
            }
            if let Message::Durable { took_ns, ends } = &message {
                self.times.note_reported(follower, *took_ns, ends);
            }
            let now_ns = context.clock.now_ns();
            if let Err(violation) = self.core.handle_message(follower, number, message, now_ns) {
                context.counters.violations.add(1);
                self.followers[index].dialler.punish();
                self.end_session(index, &violation.to_string(), context);
                return (Turn::Goes, false);
            }
        }
        (Turn::Goes, true)
    }

    fn end_session(&mut self, index: usize, why: &str, context: &Context) {
        let follower = &mut self.followers[index];
        let Some(session) = follower.session.take() else { return };
        let counts = self.core.handle_disconnected(follower.number, session.number);
        follower.counters.add(&counts, session.connection.calls());
        follower.dialler.again(session.began.elapsed());
        let (node, epoch) = (follower.dialler.member().node, self.term.epoch());
        context.counters.sessions_ended.add(1);
        tracing::info!(%node, epoch, why, "follower disconnected");
    }

    /// What followers have reported reaches those who wait, and what is committed the followers.
    fn raise(&mut self, engine: &Engine, committed: &mut BTreeMap<StreamId, u64>) {
        while let Some((stream, enough)) = self.core.poll_enough() {
            self.term.set(stream, enough);
            self.times.note_enough(stream, enough);
            self.risen.insert(stream, enough);
        }
        if self.risen.is_empty() {
            return;
        }
        // Of what followers had first, this node has a part only by now.
        let mut told = Vec::new();
        self.risen.retain(|stream, enough| {
            let end = engine.stream(*stream).end().min(*enough);
            let known = committed.entry(*stream).or_default();
            if end > *known {
                *known = end;
                told.push((*stream, end));
            }
            end < *enough
        });
        self.core.tell_committed(&told);
        for (stream, end) in told {
            self.note_committed(stream, end);
        }
    }

    fn send(&mut self, clock: &Clock) {
        for follower in &mut self.followers {
            let index = follower.number;
            let Some(session) = &follower.session else { continue };
            if !session.connection.is_free() {
                continue;
            }
            let slices = self.core.poll_send(index, SLICES_MAX, clock.now_ns());
            if !slices.is_empty() {
                self.times.note_handed(index, &slices);
                session.connection.send(slices);
            }
        }
    }

    /// A read has ended.
    pub(crate) fn handle_read(&mut self, request: &ReadRequest, outcome: ReadOutcome) {
        self.core.handle_read(request, outcome);
    }

    /// Trims when no connected follower needs the records any more, or the journal is too long.
    pub(crate) fn handle_trim(&mut self, stream: StreamId, before: u64) {
        let wanted = self.trims.entry(stream).or_default();
        *wanted = before.max(*wanted);
    }

    fn trim(&mut self, context: &mut Context) {
        if self.trims.is_empty() {
            return;
        }
        let is_long = context.engine.journal_bytes() > context.config.retain_bytes_max;
        let (core, followers) = (&self.core, &self.followers);
        self.trims.retain(|stream, before| {
            let connected = followers.iter().filter(|follower| follower.session.is_some());
            let needed = connected.map(|f| core.progress().end(f.number, *stream)).min();
            let allowed = if is_long { *before } else { needed.unwrap_or(*before).min(*before) };
            let handle = context.engine.stream(*stream);
            // A later leader may lack what is not committed, and would then find a node that it can
            // not compare itself with. What has no place with the worker waits for a later turn.
            let committed = context.facts.committed.get(stream).copied().unwrap_or(0);
            let durable = handle.end();
            let allowed = allowed.min(if followers.is_empty() { durable } else { committed });
            let given = self.trimming.get(stream).copied().unwrap_or(0).max(handle.trimmed());
            if allowed > given && context.worker.has_room() {
                context.worker.give(Job::Trim { stream: *stream, before: allowed });
                self.trimming.insert(*stream, allowed);
            }
            allowed < *before || handle.trimmed() < *before
        });
    }

    /// A trim is durable, or is not: followers are told of those that are.
    pub(crate) fn handle_trimmed(&mut self, stream: StreamId, before: u64, is_done: bool) {
        self.trimming.remove(&stream);
        if is_done {
            self.core.handle_trimmed(stream, before);
        } else {
            self.trims.remove(&stream);
        }
    }

    /// What this node knows of its members is durable: their disks count.
    pub(crate) fn handle_saved(&mut self, facts: &Facts) {
        for follower in &self.followers {
            let saved = facts.members.get(&follower.dialler.member().node);
            if follower.session.is_some() && saved == Some(&follower.engine) {
                self.core.handle_counted(follower.number);
            }
        }
    }

    /// Members count with the disks that they are named with, when that is durable.
    pub(crate) fn readmit_named(
        &mut self,
        engines: &BTreeMap<NodeId, [u8; 16]>,
        facts: &mut Facts,
    ) {
        for follower in self.followers.iter_mut().filter(|follower| follower.session.is_some()) {
            let node = follower.dialler.member().node;
            if follower.counters.is_other_disk && engines.get(&node) == Some(&follower.engine) {
                follower.counters.is_other_disk = false;
                facts.members.insert(node, follower.engine);
            }
        }
    }

    /// A member counts with the disk that it has now, when that is durable.
    pub(crate) fn readmit(&mut self, node: NodeId, facts: &mut Facts) {
        let follower = self.followers.iter_mut().find(|f| f.dialler.member().node == node);
        match follower {
            Some(follower) if follower.session.is_some() => {
                follower.counters.is_other_disk = false;
                facts.members.insert(node, follower.engine);
            }
            _ => drop(facts.members.remove(&node)),
        }
    }

    /// Everything that was sealed has been sent to every follower that is connected.
    pub(crate) fn is_drained(&self) -> bool {
        self.followers.iter().all(|follower| {
            let state = self.core.session(follower.number);
            let session = follower.session.as_ref();
            state.is_none_or(|state| state.lag_records == 0 && state.behind == 0)
                && session.is_none_or(|session| session.connection.is_free())
        })
    }

    /// Leads no more: whoever waits learns why, and the connections of followers are closed.
    pub(crate) fn end(&mut self, why: &str) {
        self.term.end(why);
        self.followers.iter_mut().for_each(|follower| follower.session = None);
    }

    /// What is counted of each follower.
    pub(crate) fn follower_stats(&self, clock: &Clock) -> Vec<FollowerStats> {
        let stats = self.followers.iter().map(|follower| {
            let calls = follower.session.as_ref().map_or(0, |s| s.connection.calls());
            follower.counters.stats(self.core.session(follower.number), calls, clock.now_ns())
        });
        stats.collect()
    }

    /// Latencies of the stages.
    pub(crate) fn times(&self) -> &StageTimes {
        self.times.times()
    }
}

impl Drop for Leading {
    fn drop(&mut self) {
        self.term.end("the node has stopped to lead");
    }
}
