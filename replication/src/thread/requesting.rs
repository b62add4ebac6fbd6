//! Requests to other nodes, and of other nodes: see [`crate::requests`]. A connection to each node that
//! is asked, dialled when it is first needed and closed when it has been idle for long.

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use crossbeam_channel::{Receiver, Sender, bounded};
use tokio::sync::oneshot;

use super::Context;
use super::accept::{Arrived, Place};
use super::connection::Connection;
use super::dial::{Dialled, Dialler};
use crate::config::Member;
use crate::link::Received;
use crate::node_id::NodeId;
use crate::requests::{
    Asked, Outcome, REQUEST_BYTES_MAX, REQUESTS_MAX, Replied, Replies, Reply, RequestError,
};
use crate::wire::{Answer, ConnectionKind, Message, Part};

/// Nodes that may ask at once.
const SESSIONS_MAX: usize = 64;
/// Requests of all of them together without a reply; more are not read until some have one.
const UNDER_WAY_MAX: usize = 4 * REQUESTS_MAX;
/// Bytes that are handed to a connection at once, about.
const SEND_BYTES: usize = 1 << 20;
/// Bytes of replies that wait for one who asks; beyond it nothing more of it is read.
const REPLY_BYTES_MAX: usize = 16 << 20;
/// Items of one connection that are taken in one turn.
const ITEMS_PER_TURN: usize = 64;
/// A connection that is not used for so long is closed.
const IDLE_MAX: Duration = Duration::from_secs(60);

/// A request that somebody waits for.
pub(crate) struct Asking {
    pub(crate) bytes: Bytes,
    pub(crate) limit: Duration,
    pub(crate) deadline: Instant,
    pub(crate) outcome: oneshot::Sender<Outcome>,
}

/// See the module.
pub(crate) struct Requesting {
    replies: Option<Arc<dyn Replies>>,
    targets: BTreeMap<NodeId, Target>,
    sessions: Vec<Session>,
    /// Sessions that have begun.
    begun: u64,
    /// Requests of others that have no reply yet, also of sessions that have ended.
    under_way: usize,
    way: Sender<Replied>,
    replied: Receiver<Replied>,
}

impl Default for Requesting {
    fn default() -> Self {
        let (way, replied) = bounded(UNDER_WAY_MAX);
        Self {
            replies: None,
            targets: BTreeMap::new(),
            sessions: Vec::new(),
            begun: 0,
            under_way: 0,
            way,
            replied,
        }
    }
}

impl Requesting {
    /// From now on requests are taken.
    pub(crate) fn handle_replies(&mut self, replies: Arc<dyn Replies>) {
        self.replies = Some(replies);
    }

    /// Why nobody more may ask, if so.
    pub(crate) fn is_full(&self) -> Option<String> {
        if self.replies.is_none() {
            return Some("nobody replies to requests here".into());
        }
        let is_full = self.sessions.len() >= SESSIONS_MAX;
        is_full.then(|| format!("{SESSIONS_MAX} others ask here; try again later"))
    }

    /// Asks a node.
    pub(crate) fn ask(&mut self, context: &Context, member: Member, asking: Asking) {
        let node = member.node;
        if self.targets.get(&node).is_some_and(|target| target.dialler.member() != &member) {
            // It has moved.
            if let Some(target) = self.targets.remove(&node) {
                target.end("it is asked at another address");
            }
        }
        let target = self.targets.entry(node).or_insert_with(|| Target::new(context, member));
        target.ask(asking);
    }

    /// Another node may ask: the answer to its hello, and then what it asks.
    pub(crate) fn begin(&mut self, context: &Context, arrived: Arrived, answer: &Answer) {
        let Arrived { reader, writer, hello, place, .. } = arrived;
        // A node asks over one connection; an older one is of a process that is gone, or is dead.
        self.sessions.retain(|session| session.node != hello.from);
        self.begun += 1;
        let connection = Connection::start(reader, writer, 0, context.wake.clone());
        let answer = Bytes::from(answer.encode());
        self.sessions.push(Session {
            number: self.begun,
            node: hello.from,
            connection,
            _place: place,
            outgoing_bytes: answer.len(),
            outgoing: VecDeque::from([answer]),
            coming: Coming::default(),
            under_way: 0,
            used: Instant::now(),
        });
    }

    /// One turn of everything that can be done now. True when there is more to do at once.
    pub(crate) fn turn(&mut self, context: &Context) -> bool {
        let mut is_busy = false;
        for target in self.targets.values_mut() {
            is_busy |= target.turn(context);
        }
        while let Ok(replied) = self.replied.try_recv() {
            self.under_way -= 1;
            let session = self.sessions.iter_mut().find(|s| s.number == replied.session);
            if let Some(session) = session {
                session.reply(replied);
            }
        }
        let mut taken = Vec::new();
        self.sessions.retain_mut(|session| {
            let room = UNDER_WAY_MAX - self.under_way - taken.len();
            match session.turn(room, &mut taken) {
                Ok(more) => {
                    is_busy |= more;
                    true
                }
                Err(why) => {
                    tracing::info!(node = %session.node, why, "asks no more here");
                    false
                }
            }
        });
        for taken in taken {
            self.handle(context, taken);
        }
        is_busy
    }

    fn handle(&mut self, context: &Context, taken: Taken) {
        let Some(replies) = &self.replies else { return };
        let Taken { session, from, number, bytes } = taken;
        self.under_way += 1;
        context.counters.requests_taken.add(1);
        let reply = Reply::new(session, number, (self.way.clone(), context.wake.clone()));
        let asked = Asked { from, bytes, reply };
        // Code of the embedder: its panic must not end this thread.
        if catch_unwind(AssertUnwindSafe(|| replies.handle(asked))).is_err() {
            tracing::error!(node = %from, "whoever replies to requests has panicked");
        }
    }

    /// Now and then.
    pub(crate) fn tick(&mut self) {
        let now = Instant::now();
        self.targets.retain(|_, target| target.tick(now));
        self.sessions.retain(|session| {
            session.under_way > 0
                || !session.outgoing.is_empty()
                || session.used.elapsed() < 2 * IDLE_MAX
        });
    }

    /// Whoever waits learns that it is over.
    pub(crate) fn end(&mut self) {
        self.replies = None;
        self.sessions.clear();
        for (_, target) in std::mem::take(&mut self.targets) {
            target.end("this node is closing");
        }
    }
}

/// Parts that have come of what is not whole yet.
#[derive(Default)]
struct Coming {
    number: u64,
    bytes: BytesMut,
    has_begun: bool,
}

impl Coming {
    /// The whole, with its last part.
    fn take(&mut self, part: Part) -> Result<Option<(u64, Bytes)>, String> {
        let Part { number, is_last, bytes } = part;
        if self.has_begun && self.number != number {
            return Err(format!("a part of {number} between those of {}", self.number));
        }
        if self.bytes.len() + bytes.len() > REQUEST_BYTES_MAX {
            return Err(format!("more than {REQUEST_BYTES_MAX} bytes in one"));
        }
        if is_last && !self.has_begun {
            return Ok(Some((number, bytes)));
        }
        (self.number, self.has_begun) = (number, !is_last);
        self.bytes.extend_from_slice(&bytes);
        Ok(is_last.then(|| (number, std::mem::take(&mut self.bytes).freeze())))
    }
}

/// Hands over what fits, when the connection is free.
fn send(connection: &Connection, outgoing: &mut VecDeque<Bytes>) -> usize {
    if outgoing.is_empty() || !connection.is_free() {
        return 0;
    }
    let (mut slices, mut bytes) = (Vec::new(), 0);
    while bytes < SEND_BYTES
        && let Some(next) = outgoing.pop_front()
    {
        bytes += next.len();
        slices.push(next);
    }
    connection.send(slices);
    bytes
}

/// Parts in bytes.
fn encode(number: u64, bytes: &Bytes, message: fn(Part) -> Message) -> impl Iterator<Item = Bytes> {
    Part::of(number, bytes).map(move |part| Bytes::from(message(part).encode()))
}

/// A node that is asked.
struct Target {
    node: NodeId,
    dialler: Dialler,
    connection: Option<(Connection, Instant)>,
    /// Not sent yet.
    waiting: VecDeque<Asking>,
    /// Sent, or being sent, by number.
    sent: BTreeMap<u64, Asking>,
    made: u64,
    outgoing: VecDeque<Bytes>,
    coming: Coming,
    used: Instant,
}

impl Target {
    fn new(context: &Context, member: Member) -> Self {
        let node = member.node;
        Self {
            node,
            dialler: Dialler::start(context, member, ConnectionKind::Requests, 0),
            connection: None,
            waiting: VecDeque::new(),
            sent: BTreeMap::new(),
            made: 0,
            outgoing: VecDeque::new(),
            coming: Coming::default(),
            used: Instant::now(),
        }
    }

    fn ask(&mut self, asking: Asking) {
        self.used = Instant::now();
        if self.waiting.len() + self.sent.len() >= REQUESTS_MAX {
            drop(asking.outcome.send(Err(RequestError::Busy { node: self.node })));
            return;
        }
        self.waiting.push_back(asking);
    }

    fn turn(&mut self, context: &Context) -> bool {
        match self.dialler.take() {
            None => {}
            Some(Dialled::Answered { reader, writer, .. }) => {
                let connection = Connection::start(reader, writer, 0, context.wake.clone());
                self.connection = Some((connection, Instant::now()));
            }
            Some(Dialled::Refused(refused)) => self.fail_waiting(&refused.why),
            Some(Dialled::Failed(why)) => self.fail_waiting(&why),
        }
        match self.exchange() {
            Ok(is_busy) => is_busy,
            Err(why) => {
                self.disconnect(&why);
                false
            }
        }
    }

    /// Sends and receives.
    fn exchange(&mut self) -> Result<bool, String> {
        let Some((connection, _)) = &self.connection else { return Ok(false) };
        let mut taken = 0;
        while taken < ITEMS_PER_TURN
            && let Some((item, _)) = connection.take_received()
        {
            taken += 1;
            let (number, outcome) = match item {
                Received::Message(Message::Reply(part)) => match self.coming.take(part)? {
                    Some((number, bytes)) => (number, Ok(bytes)),
                    None => continue,
                },
                Received::Message(Message::NoReply { number }) => {
                    (number, Err(RequestError::NoReply { node: self.node }))
                }
                _ => return Err("it says what nobody says who is asked".into()),
            };
            // Of one that was given up, nobody hears.
            if let Some(asking) = self.sent.remove(&number) {
                let _ = asking.outcome.send(outcome);
            }
        }
        connection.take_sent();
        if let Some(why) = connection.ended() {
            return Err(why);
        }
        if self.outgoing.is_empty() && connection.is_free() {
            let mut bytes = 0;
            while bytes < SEND_BYTES
                && let Some(asking) = self.waiting.pop_front()
            {
                bytes += asking.bytes.len();
                self.made += 1;
                self.outgoing.extend(encode(self.made, &asking.bytes, Message::Request));
                self.sent.insert(self.made, asking);
            }
        }
        send(connection, &mut self.outgoing);
        Ok(taken == ITEMS_PER_TURN)
    }

    fn disconnect(&mut self, why: &str) {
        if let Some((_, since)) = self.connection.take() {
            self.dialler.again(since.elapsed());
        }
        self.outgoing.clear();
        self.coming = Coming::default();
        for (_, asking) in std::mem::take(&mut self.sent) {
            let lost = RequestError::Lost { node: self.node, why: why.to_owned() };
            let _ = asking.outcome.send(Err(lost));
        }
    }

    fn fail_waiting(&mut self, why: &str) {
        for asking in std::mem::take(&mut self.waiting) {
            let not_reached = RequestError::NotReached { node: self.node, why: why.to_owned() };
            let _ = asking.outcome.send(Err(not_reached));
        }
    }

    fn end(mut self, why: &str) {
        self.disconnect(why);
        self.fail_waiting(why);
    }

    /// Gives up what is late; false when it is not needed any more.
    fn tick(&mut self, now: Instant) -> bool {
        let node = self.node;
        let late = |asking: Asking, is_sent| {
            let late = RequestError::Late { node, limit: asking.limit, is_sent };
            let _ = asking.outcome.send(Err(late));
        };
        let is_over = |asking: &Asking| asking.deadline <= now || asking.outcome.is_closed();
        let over: Vec<u64> =
            self.sent.iter().filter(|(_, asking)| is_over(asking)).map(|(at, _)| *at).collect();
        for asking in over.iter().filter_map(|number| self.sent.remove(number)).collect::<Vec<_>>()
        {
            late(asking, true);
        }
        let (over, waiting) =
            std::mem::take(&mut self.waiting).into_iter().partition::<VecDeque<_>, _>(is_over);
        self.waiting = waiting;
        over.into_iter().for_each(|asking| late(asking, false));
        let is_used = !self.waiting.is_empty() || !self.sent.is_empty();
        is_used || self.used.elapsed() < IDLE_MAX
    }
}

/// A node that asks.
struct Session {
    number: u64,
    node: NodeId,
    connection: Connection,
    _place: Place,
    outgoing: VecDeque<Bytes>,
    outgoing_bytes: usize,
    coming: Coming,
    under_way: usize,
    used: Instant,
}

impl Session {
    fn reply(&mut self, replied: Replied) {
        self.under_way -= 1;
        let before = self.outgoing.len();
        match &replied.bytes {
            Some(bytes) => self.outgoing.extend(encode(replied.number, bytes, Message::Reply)),
            None => {
                let none = Message::NoReply { number: replied.number };
                self.outgoing.push_back(none.encode().into());
            }
        }
        self.outgoing_bytes += self.outgoing.iter().skip(before).map(Bytes::len).sum::<usize>();
    }

    /// Takes at most `room` requests, and sends what there is.
    fn turn(&mut self, room: usize, taken: &mut Vec<Taken>) -> Result<bool, String> {
        let (mut items, until) = (0, taken.len() + room);
        while items < ITEMS_PER_TURN
            && taken.len() < until
            && self.under_way < REQUESTS_MAX
            && self.outgoing_bytes < REPLY_BYTES_MAX
            && let Some((item, _)) = self.connection.take_received()
        {
            items += 1;
            self.used = Instant::now();
            let Received::Message(Message::Request(part)) = item else {
                return Err("it says what nobody says who asks".into());
            };
            if let Some((number, bytes)) = self.coming.take(part)? {
                self.under_way += 1;
                taken.push(Taken { session: self.number, from: self.node, number, bytes });
            }
        }
        self.connection.take_sent();
        self.outgoing_bytes -= send(&self.connection, &mut self.outgoing);
        match self.connection.ended() {
            Some(why) => Err(why),
            None => Ok(items == ITEMS_PER_TURN),
        }
    }
}

/// A request that has come.
struct Taken {
    session: u64,
    from: NodeId,
    number: u64,
    bytes: Bytes,
}
