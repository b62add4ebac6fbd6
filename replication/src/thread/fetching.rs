//! Others read ranges here, to repair their own. One read of the worker at a time for all of them,
//! and none while this node changes its part: whoever repairs waits, and nobody waits for it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::Context;
use super::accept::{Arrived, Place};
use super::connection::Connection;
use crate::history::Held;
use crate::link::Received;
use crate::node_id::NodeId;
use crate::promise::is_replicated;
use crate::wire::{Answer, History, Message, Stop, Wanted};
use crate::worker::{self, Fetched, Job};

/// Who may read at once. Price of each: two answers, of [`READ_BYTES`] and one frame.
const SESSIONS_MAX: usize = 4;
/// Requests of one that wait; one more ends its session.
const ASKED_MAX: usize = 16;
/// Bytes of frames in one answer, about.
const READ_BYTES: usize = 1 << 20;
/// Items of one that are taken in one turn.
const ITEMS_PER_TURN: usize = 32;
/// Who neither asks nor takes an answer for so long is gone.
const IDLE_MAX: Duration = Duration::from_secs(30);

/// See the module.
#[derive(Default)]
pub(crate) struct Fetching {
    sessions: VecDeque<Session>,
    begun: u64,
    /// The worker has one of its jobs.
    is_reading: bool,
}

struct Session {
    number: u64,
    node: NodeId,
    connection: Connection,
    _place: Place,
    outgoing: Vec<Bytes>,
    asked: VecDeque<Wanted>,
    /// Its request is with the worker.
    is_served: bool,
    progressed: Instant,
}

impl Fetching {
    /// Why nobody more may read, if so.
    pub(crate) fn is_full(&self) -> Option<String> {
        (self.sessions.len() >= SESSIONS_MAX)
            .then(|| format!("{SESSIONS_MAX} others read here to repair; try again later"))
    }

    /// Begins a session: the answer, what this node has, and then what is asked for.
    pub(crate) fn begin(&mut self, context: &Context, arrived: Arrived, answer: &Answer) {
        let Arrived { reader, writer, hello, place, .. } = arrived;
        let wake = context.wake.clone();
        // Whoever reads sends no frame.
        let connection = Connection::start(reader, writer, 0, wake);
        let held = worker::held(&context.engine);
        let ends = held.iter().map(|(stream, held)| (*stream, held.end)).collect();
        let histories = held.into_iter().map(|(stream, Held { trimmed, epochs, .. })| History {
            stream,
            trimmed,
            epochs,
        });
        let messages = [
            Message::Histories(histories.collect()),
            Message::Durable { took_ns: 0, ends },
            Message::HistoriesEnd,
        ];
        let messages = messages.into_iter().flat_map(Message::pieces);
        let mut outgoing = vec![Bytes::from(answer.encode())];
        outgoing.extend(messages.map(|message| Bytes::from(message.encode())));
        self.begun += 1;
        tracing::info!(node = %hello.from, "reads here, to repair its own");
        self.sessions.push_back(Session {
            number: self.begun,
            node: hello.from,
            connection,
            _place: place,
            outgoing,
            asked: VecDeque::new(),
            is_served: false,
            progressed: Instant::now(),
        });
    }

    /// One turn of everything that can be done now; `may_read` unless the worker is wanted for
    /// something else. True when there is more to do at once.
    pub(crate) fn turn(&mut self, context: &mut Context, may_read: bool) -> bool {
        let mut is_busy = false;
        self.sessions.retain_mut(|session| match session.turn() {
            Ok(more) => {
                is_busy |= more;
                true
            }
            Err(why) => {
                tracing::info!(node = %session.node, why, "reads here no more");
                false
            }
        });
        if may_read && !self.is_reading && context.worker.has_room() {
            self.serve(context);
        }
        is_busy
    }

    /// Gives the worker the request of whoever waits longest and has taken its last answer.
    fn serve(&mut self, context: &mut Context) {
        let Some(at) = self.sessions.iter().position(Session::waits) else { return };
        let Some(mut session) = self.sessions.remove(at) else { return };
        if let Some(wanted) = session.asked.pop_front() {
            (self.is_reading, session.is_served) = (true, true);
            let (session, bytes_max) = (session.number, READ_BYTES);
            context.worker.give(Job::Fetch { session, wanted, bytes_max });
        }
        self.sessions.push_back(session);
    }

    /// A read is done.
    pub(crate) fn handle_fetched(&mut self, number: u64, fetched: Fetched) {
        self.is_reading = false;
        let Some(session) = self.sessions.iter_mut().find(|s| s.number == number) else { return };
        let Fetched { wanted, frames, end, stop } = fetched;
        if let Stop::Damaged(why) = &stop {
            tracing::error!(node = %session.node, why, "cannot read what another node needs");
        }
        (session.is_served, session.progressed) = (false, Instant::now());
        session.outgoing.extend(frames.into_iter().map(|frame| frame.bytes));
        let message = Message::Fetched { stream: wanted.stream, end, stop };
        session.outgoing.push(Bytes::from(message.encode()));
    }

    /// Now and then.
    pub(crate) fn tick(&mut self) {
        self.sessions.retain(|session| {
            let is_there = session.is_served || session.progressed.elapsed() < IDLE_MAX;
            if !is_there {
                tracing::info!(node = %session.node, "neither asks nor takes anything: dropped");
            }
            is_there
        });
    }
}

impl Session {
    fn waits(&self) -> bool {
        let is_taken = self.outgoing.is_empty() && self.connection.is_free();
        !self.asked.is_empty() && !self.is_served && is_taken
    }

    fn turn(&mut self) -> Result<bool, String> {
        let mut taken = 0;
        while taken < ITEMS_PER_TURN
            && let Some((item, _)) = self.connection.take_received()
        {
            taken += 1;
            let Received::Message(Message::Fetch(wanted)) = item else {
                return Err("it sends what nobody sends who only reads".into());
            };
            if !is_replicated(wanted.stream) {
                return Err(format!("stream {} is this node's own", wanted.stream));
            }
            if self.asked.len() == ASKED_MAX {
                return Err(format!("it asks more than {ASKED_MAX} things at once"));
            }
            self.asked.push_back(wanted);
            self.progressed = Instant::now();
        }
        if self.connection.take_sent() {
            self.progressed = Instant::now();
        }
        if !self.outgoing.is_empty() && self.connection.is_free() {
            self.connection.send(std::mem::take(&mut self.outgoing));
        }
        match self.connection.ended() {
            Some(why) => Err(why),
            None => Ok(taken == ITEMS_PER_TURN),
        }
    }
}
