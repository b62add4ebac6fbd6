//! This node follows: frames from the leader go through the core into this node's engine, and what
//! is durable goes back.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::task::{Poll, Waker};
use std::time::Instant;

use bytes::Bytes;
use ringwal_engine::format::{FrameHeader, VerifiedFrame};
use ringwal_engine::{
    AppendBatch, AppendError, CommitError, EpochTable, Refusal, Stream, StreamId,
};

use super::Context;
use super::accept::Place;
use super::connection::Connection;
use crate::follower::{Act, Follower, Refused, Worth};
use crate::framing::{record_bytes, rest_of};
use crate::link::Received;
use crate::orphans::Reason;
use crate::promise::Promise;
use crate::stats::FollowingStats;
use crate::wire::{Cause, Message};
use crate::worker::{BeginAnew, Job, Outcome};

/// Items that are taken in one turn, so that receipts get their time.
const ITEMS_PER_TURN: usize = 512;
/// Messages that wait for the connection; beyond it nothing more is done.
const OUTGOING_MAX: usize = 64;

/// Frames on their way into this node's engine. They outlive the session that they came by.
#[derive(Default)]
pub(crate) struct Appends {
    /// By shard: their receipts come in this order.
    under_way: Vec<VecDeque<Appending>>,
    waiting: Option<Waiting>,
}

struct Appending {
    token: AppendBatch,
    stream: StreamId,
    end: u64,
    came: Instant,
}

/// A frame that waits for room in the engine.
struct Waiting {
    room: Pin<Box<dyn Future<Output = Result<AppendBatch, AppendError>>>>,
    stream: StreamId,
    end: u64,
    came: Instant,
    shard: usize,
}

/// A frame has its outcome.
type Appended = (StreamId, u64, Instant, Result<(), CommitError>);

impl Appends {
    /// Everything has its outcome.
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_none() && self.under_way.iter().all(VecDeque::is_empty)
    }

    /// Whether something of a stream has no outcome.
    pub(crate) fn has(&self, stream: StreamId) -> bool {
        let waits = self.waiting.as_ref().is_some_and(|waiting| waiting.stream == stream);
        waits || self.under_way.iter().flatten().any(|appending| appending.stream == stream)
    }

    /// Of which stream a frame waits for room, if one does: nothing more is given before.
    pub(crate) fn waits_for_room(&self) -> Option<StreamId> {
        self.waiting.as_ref().map(|waiting| waiting.stream)
    }

    /// Gives the engine a frame that was made here. Its end, and the bytes of its records.
    pub(crate) fn give(
        &mut self,
        stream: &Stream,
        frame: Bytes,
        waker: &Waker,
    ) -> Result<(u64, u64), AppendError> {
        let (header, _) = FrameHeader::verify(&frame).map_err(AppendError::BadFrame)?;
        let (id, end, shard) = (stream.id(), header.end_offset(), stream.shard() as usize);
        let (came, given) = (Instant::now(), (end, record_bytes(frame.len())));
        match stream.try_append_frame(&frame) {
            Ok(token) => self.push(shard, Appending { token, stream: id, end, came }),
            Err(AppendError::Full { .. }) => {
                let room = Box::pin(stream.append_frame_async(frame));
                self.waiting = Some(Waiting { room, stream: id, end, came, shard });
                self.poll_waiting(waker)?;
            }
            Err(error) => return Err(error),
        }
        Ok(given)
    }

    fn push(&mut self, shard: usize, appending: Appending) {
        while self.under_way.len() <= shard {
            self.under_way.push(VecDeque::new());
        }
        self.under_way[shard].push_back(appending);
    }

    /// Goes on with the frame that waits for room; `waker` is called when there is some.
    pub(crate) fn poll_waiting(&mut self, waker: &Waker) -> Result<(), AppendError> {
        let Some(waiting) = &mut self.waiting else { return Ok(()) };
        let mut context = std::task::Context::from_waker(waker);
        let Poll::Ready(taken) = waiting.room.as_mut().poll(&mut context) else { return Ok(()) };
        let Waiting { stream, end, came, shard, .. } =
            self.waiting.take().expect("it has just been looked at");
        self.push(shard, Appending { token: taken?, stream, end, came });
        Ok(())
    }

    /// The next outcome; `waker` is called when there is another.
    pub(crate) fn poll_appended(&mut self, waker: &Waker) -> Option<Appended> {
        let mut context = std::task::Context::from_waker(waker);
        for shard in &mut self.under_way {
            let Some(first) = shard.front_mut() else { continue };
            if let Poll::Ready(outcome) = Pin::new(&mut first.token).poll(&mut context) {
                let Appending { stream, end, came, .. } =
                    shard.pop_front().expect("it has just been looked at");
                return Some((stream, end, came, outcome.map(|_| ())));
            }
        }
        None
    }
}

/// See the module.
pub(crate) struct Following {
    pub(crate) promise: Promise,
    core: Follower,
    connection: Connection,
    _place: Place,
    outgoing: VecDeque<Bytes>,
    /// The answer to the hello has been handed to the connection.
    has_answered: bool,
    jobs: VecDeque<Job>,
    /// Trims that wait for the worker; the last of each stream counts.
    trims: BTreeMap<StreamId, u64>,
    /// When something was handed to the connection last.
    spoke: Instant,
}

/// What a turn has come to.
pub(crate) enum Turn {
    /// It goes on; whether there is more to do at once.
    Goes(bool),
    /// The session is over.
    Ends(Ending),
}

/// Why a session ends.
pub(crate) struct Ending {
    /// What the leader is told; `None` when there is nobody to tell.
    pub(crate) cause: Option<Cause>,
    pub(crate) why: String,
}

impl Ending {
    pub(crate) fn gone(why: String) -> Self {
        Self { cause: None, why }
    }

    fn for_cause(cause: Cause, why: impl ToString) -> Self {
        Self { cause: Some(cause), why: why.to_string() }
    }

    fn engine(why: impl ToString) -> Self {
        Self::for_cause(Cause::Engine, why)
    }
}

impl Following {
    pub(crate) fn new(
        promise: Promise,
        core: Follower,
        connection: Connection,
        place: Place,
        answer: Bytes,
    ) -> Self {
        Self {
            promise,
            core,
            connection,
            _place: place,
            outgoing: VecDeque::from([answer]),
            has_answered: false,
            jobs: VecDeque::new(),
            trims: BTreeMap::new(),
            spoke: Instant::now(),
        }
    }

    pub(crate) fn core(&self) -> &Follower {
        &self.core
    }

    /// See [`Follower::extendable`]. What was fetched meanwhile is seen.
    pub(crate) fn extendable(&mut self, stream: &Stream, appends: &Appends) -> Option<(u64, u64)> {
        let (next, durable) = self.core.extendable(stream.id())?;
        let end = stream.end();
        if end <= next || appends.has(stream.id()) {
            return Some((next, durable));
        }
        let table = EpochTable::from_entries(stream.epochs()).unwrap_or_default();
        self.core.handle_brought(stream.id(), end, table.epoch_at(end - 1));
        self.core.extendable(stream.id())
    }

    /// A stream is committed so far, whoever says it.
    pub(crate) fn handle_committed(&mut self, stream: StreamId, end: u64) {
        self.core.handle_committed(stream, end);
    }

    /// How far it is behind.
    pub(crate) fn stats(&self) -> FollowingStats {
        let lag_records = self.core.lag_records();
        FollowingStats { lag_records, silence: self.connection.silence() }
    }

    /// One turn of everything that can be done now.
    pub(crate) fn turn(&mut self, context: &mut Context, appends: &mut Appends) -> Turn {
        match self.try_turn(context, appends) {
            Ok(is_busy) => Turn::Goes(is_busy),
            Err(why) => Turn::Ends(why),
        }
    }

    fn try_turn(&mut self, context: &mut Context, appends: &mut Appends) -> Result<bool, Ending> {
        let has_room = self.outgoing.len() < OUTGOING_MAX;
        let is_busy = has_room && self.take_received(context, appends)?;
        // Behind what has just been appended, so that its outcome wakes this thread.
        self.take_appended(context, appends)?;
        self.act(context)?;
        while context.worker.has_room()
            && let Some(job) = self.jobs.pop_front()
        {
            context.worker.give(job);
        }
        while context.worker.has_room()
            && let Some((stream, before)) = self.trims.pop_first()
        {
            context.worker.give(Job::Trim { stream, before });
        }
        let _ = self.connection.take_sent();
        if !self.outgoing.is_empty() && self.connection.is_free() {
            self.connection.send(self.outgoing.drain(..).collect());
            self.spoke = Instant::now();
            self.has_answered = true;
        }
        if let Some(why) = self.connection.ended() {
            return Err(Ending::gone(why));
        }
        Ok(is_busy)
    }

    fn take_appended(
        &mut self,
        context: &mut Context,
        appends: &mut Appends,
    ) -> Result<(), Ending> {
        appends.poll_waiting(&context.waker).map_err(Ending::engine)?;
        while let Some((stream, end, came, outcome)) = appends.poll_appended(&context.waker) {
            let end_here = || context.engine.stream(stream).end();
            match outcome {
                Ok(()) => self.core.handle_durable(stream, end, came.elapsed().as_nanos() as u64),
                Err(CommitError::Refused(Refusal::TooManyStreams { .. })) => {
                    self.core.handle_refused(stream, end_here(), Refused::TooManyStreams);
                }
                // The continuation of one that was refused.
                Err(CommitError::Refused(Refusal::NotContinuation { .. })) => {
                    self.core.handle_refused(stream, end_here(), Refused::Discontinuous);
                }
                Err(error) => {
                    if matches!(error, CommitError::Unknown(_) | CommitError::NotWritten(_)) {
                        context.failed = Some(error.to_string());
                    }
                    let why = format!("the engine does not take stream {stream}: {error}");
                    return Err(Ending::engine(why));
                }
            }
        }
        Ok(())
    }

    fn take_received(
        &mut self,
        context: &mut Context,
        appends: &mut Appends,
    ) -> Result<bool, Ending> {
        for _ in 0..ITEMS_PER_TURN {
            if appends.waiting.is_some() {
                return Ok(false);
            }
            let Some((item, came)) = self.connection.take_received() else { return Ok(false) };
            match item {
                Received::Frame(frame) => self.take_frame(frame, came, context, appends)?,
                Received::Message(Message::Leaving { epoch, reason, .. }) => {
                    let why = format!("the leader of epoch {epoch} leaves: {reason}");
                    return Err(Ending::gone(why));
                }
                Received::Message(message) => {
                    if let Some(repairing) = &mut context.repairing {
                        repairing.handle_message(&message);
                    }
                    self.core.handle_message(message);
                }
            }
        }
        Ok(true)
    }

    pub(crate) fn take_frame(
        &mut self,
        mut frame: Bytes,
        came: Instant,
        context: &mut Context,
        appends: &mut Appends,
    ) -> Result<(), Ending> {
        let (mut header, _) = FrameHeader::verify(&frame)
            .map_err(|error| Ending::for_cause(Cause::Violation, error))?;
        context.counters.frames_received.add(1);
        context.counters.bytes_received.add(frame.len() as u64);
        if context.is_driven
            && let Some(next) = self.core.next_offset(StreamId::new(header.stream.get()))
            && (header.base_offset.get() + 1..header.end_offset()).contains(&next)
        {
            // Its beginning has come another way.
            let whole = VerifiedFrame::verify(&frame)
                .map_err(|error| Ending::for_cause(Cause::Violation, error))?;
            frame = rest_of(&whole, next);
            (header, _) = FrameHeader::verify(&frame)
                .map_err(|error| Ending::for_cause(Cause::Violation, error))?;
        }
        if self.core.handle_frame(&header) == Worth::Ignore {
            return Ok(());
        }
        let stream = context.engine.stream(StreamId::new(header.stream.get()));
        let (id, end, shard) = (stream.id(), header.end_offset(), stream.shard() as usize);
        match stream.try_append_frame(&frame) {
            Ok(token) => {
                appends.push(shard, Appending { token, stream: id, end, came });
                Ok(())
            }
            Err(AppendError::Full { .. }) => {
                let room = Box::pin(stream.append_frame_async(frame));
                appends.waiting = Some(Waiting { room, stream: id, end, came, shard });
                appends.poll_waiting(&context.waker).map_err(Ending::engine)
            }
            Err(AppendError::BadFrame(error)) => {
                context.counters.violations.add(1);
                let why = format!("the leader has sent a damaged frame of stream {id}: {error}");
                Err(Ending::for_cause(Cause::Violation, why))
            }
            Err(AppendError::NoSpace { .. }) if !appends.has(id) => {
                // It is asked for again; the other shards may have space.
                let end = context.engine.stream(id).end();
                self.core.handle_refused(id, end, Refused::NoSpace);
                Ok(())
            }
            Err(error) => {
                if let AppendError::Poisoned(cause) = &error {
                    context.failed = Some(cause.to_string());
                }
                Err(Ending::engine(format!("the engine does not take stream {id}: {error}")))
            }
        }
    }

    fn act(&mut self, context: &mut Context) -> Result<(), Ending> {
        let Promise { epoch, leader, run } = self.promise;
        let reason = Reason { epoch, leader, run };
        while self.outgoing.len() < OUTGOING_MAX
            && let Some(act) = self.core.poll_act()
        {
            match act {
                Act::Send(message) => self.outgoing.push_back(Bytes::from(message.encode())),
                Act::Cut { stream, from, end, epoch } => {
                    context.counters.records_cut.add(end - from);
                    self.jobs.push_back(Job::Cut { stream, from, end, epoch, reason });
                }
                Act::BeginAnew { stream, trimmed, held, epochs } => {
                    let from = self.promise.leader;
                    let anew = BeginAnew { stream, trimmed, held, from };
                    self.jobs.push_back(Job::BeginAnew { anew, epochs, reason });
                }
                Act::Trim { stream, before } => {
                    self.trims.insert(stream, before);
                }
                Act::Leave(why) => {
                    let cause = why.cause();
                    if cause == Cause::Violation {
                        context.counters.violations.add(1);
                    }
                    return Err(Ending::for_cause(cause, why));
                }
            }
        }
        Ok(())
    }

    /// A job that this session gave is done.
    pub(crate) fn handle_outcome(
        &mut self,
        outcome: Outcome,
        context: &Context,
    ) -> Result<(), Ending> {
        match outcome {
            Outcome::Cut { stream, at, outcome } => {
                outcome.map_err(|error| {
                    Ending::engine(format!("cannot cut stream {stream}: {error}"))
                })?;
                self.core.handle_cut(stream, at);
            }
            Outcome::BegunAnew { stream, outcome } => {
                let at = outcome.map_err(|error| {
                    Ending::engine(format!("cannot begin stream {stream} anew: {error}"))
                })?;
                context.counters.begun_anew.add(1);
                self.core.handle_begun_anew(stream, at);
            }
            _ => {}
        }
        Ok(())
    }

    /// The session is over, and the leader is told why.
    pub(crate) fn leave(&self, epoch: u64, cause: Cause, why: &str) {
        let message = Message::Leaving { epoch, cause, reason: why.to_owned() };
        if self.has_answered {
            self.connection.say_last(Bytes::from(message.encode()));
        }
    }

    /// Now and then: a leader that is silent is gone.
    pub(crate) fn tick(&mut self, context: &Context) -> Result<(), Ending> {
        self.core.handle_time(context.clock.now_ns());
        let silent = self.connection.silence();
        if silent > context.config.session_timeout && !context.was_late {
            return Err(Ending::gone(format!("the leader has been silent for {silent:?}")));
        }
        // The leader hears that this node is there also while a long frame comes, or its engine has
        // no room.
        if self.spoke.elapsed() >= context.config.heartbeat && self.outgoing.is_empty() {
            let time_ns = context.clock.now_ns();
            self.outgoing.push_back(Bytes::from(Message::Heartbeat { time_ns }.encode()));
        }
        Ok(())
    }
}
