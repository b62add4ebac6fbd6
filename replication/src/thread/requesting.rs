//! Requests to other nodes, and of other nodes: see [`crate::requests`]. A connection to each node that
//! is asked, dialled when it is first needed and closed when it has been idle for long.

mod asked;
mod asking;

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, bounded};

use super::Context;
use super::accept::Arrived;
use super::connection::Connection;
use crate::config::Member;
use crate::node_id::NodeId;
use crate::requests::{Asked, Asking, Of, REQUESTS_MAX, Replied, Replies, Reply, RequestError};
use crate::wire::Answer;
use asked::Session;
use asking::Target;

/// Nodes that may ask at once.
const SESSIONS_MAX: usize = 64;
/// Clients that may ask at once, beside those: they take no node's place.
const CLIENT_SESSIONS_MAX: usize = 32;
/// Requests of one client without a reply.
const CLIENT_REQUESTS_MAX: usize = 16;
/// Nodes, or addresses of them, that are asked at once.
const TARGETS_MAX: usize = 64;
/// Requests of all nodes together without a reply; more are not read until some have one.
const UNDER_WAY_MAX: usize = 4 * REQUESTS_MAX;
/// Bytes of those.
const UNDER_WAY_BYTES_MAX: usize = 64 << 20;
/// Bytes of replies that wait to be written, of all nodes together; what is beyond is no reply.
const REPLIES_BYTES_MAX: usize = 256 << 20;
/// Bytes that are handed to a connection at once, about.
const SEND_BYTES: usize = 1 << 20;
/// Items of one connection that are taken in one turn.
const ITEMS_PER_TURN: usize = 64;
/// A connection that is not used for so long is closed.
const IDLE_MAX: Duration = Duration::from_secs(60);

/// See the module.
pub(crate) struct Requesting {
    replies: Option<Arc<dyn Replies>>,
    targets: BTreeMap<(NodeId, String), Target>,
    sessions: VecDeque<Session>,
    /// Sessions that have begun.
    begun: u64,
    /// Requests of each node that have no reply yet, also of sessions that have ended; never 0.
    under_way: BTreeMap<NodeId, usize>,
    /// All of them together, and their bytes.
    under_way_all: (usize, usize),
    way: Sender<Replied>,
    replied: Receiver<Replied>,
}

impl Default for Requesting {
    fn default() -> Self {
        let (way, replied) = bounded(UNDER_WAY_MAX);
        Self {
            replies: None,
            targets: BTreeMap::new(),
            sessions: VecDeque::new(),
            begun: 0,
            under_way: BTreeMap::new(),
            under_way_all: (0, 0),
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

    /// Why this node may not ask now, if so. What it asked over before makes room for it.
    pub(crate) fn refusal(&self, node: NodeId) -> Option<String> {
        if self.replies.is_none() {
            return Some("nobody replies to requests here".into());
        }
        let is_other = |other: NodeId| other != node && other.is_client() == node.is_client();
        let others = self.sessions.iter().filter(|session| is_other(session.node())).count();
        let max = if node.is_client() { CLIENT_SESSIONS_MAX } else { SESSIONS_MAX };
        (others >= max).then(|| format!("{max} others ask here; try again later"))
    }

    /// Asks a node.
    pub(crate) fn ask(&mut self, context: &Context, asking: Asking) {
        let Member { node, address } = &asking.to;
        let (node, place) = (*node, (*node, address.clone()));
        if !self.targets.contains_key(&place) && self.targets.len() >= TARGETS_MAX {
            let why = format!("{TARGETS_MAX} other nodes are being asked");
            return asking.finish(Err(RequestError::NotReached { node, why }));
        }
        let begin = || Target::new(context, asking.to.clone());
        self.targets.entry(place).or_insert_with(begin).ask(asking);
    }

    /// Another node may ask: the answer to its hello, and then what it asks.
    pub(crate) fn begin(&mut self, context: &Context, arrived: Arrived, answer: &Answer) {
        // A node asks over one connection; an older one is of a process that is gone, or is dead.
        let node = arrived.hello.from;
        let before = self.sessions.len();
        self.sessions.retain(|session| session.node() != node);
        if self.sessions.len() < before {
            tracing::info!(%node, "asks over a new connection: the one before is dropped");
        }
        self.begun += 1;
        self.sessions.push_back(Session::new(context, arrived, answer, self.begun));
    }

    /// One turn of everything that can be done now. True when there is more to do at once. Nothing
    /// more is taken when `is_closing`.
    pub(crate) fn turn(&mut self, context: &Context, is_closing: bool) -> bool {
        let mut is_busy = false;
        for target in self.targets.values_mut() {
            is_busy |= target.turn(context);
        }
        while let Ok(replied) = self.replied.try_recv() {
            self.handle_replied(replied);
        }
        // Each is the first in its turn.
        self.sessions.rotate_left(usize::from(!self.sessions.is_empty()));
        let mut taken = Vec::new();
        let (mut room, bytes) = (UNDER_WAY_MAX - self.under_way_all.0, self.under_way_all.1);
        if is_closing || bytes >= UNDER_WAY_BYTES_MAX {
            room = 0;
        }
        self.sessions.retain_mut(|session| {
            let of_node = self.under_way.get(&session.node()).copied().unwrap_or(0);
            let is_client = session.node().is_client();
            let max = if is_client { CLIENT_REQUESTS_MAX } else { REQUESTS_MAX };
            let room = (room - taken.len()).min(max.saturating_sub(of_node));
            match session.turn(room, &mut taken) {
                Ok(more) => {
                    is_busy |= more;
                    true
                }
                Err(why) => {
                    // Clients come and go.
                    match is_client {
                        true => tracing::debug!(client = %session.node(), why, "asks no more here"),
                        false => tracing::info!(node = %session.node(), why, "asks no more here"),
                    }
                    false
                }
            }
        });
        for (of, bytes) in taken {
            self.handle(context, of, bytes);
        }
        is_busy
    }

    fn handle_replied(&mut self, Replied { of, bytes }: Replied) {
        self.under_way_all.0 -= 1;
        self.under_way_all.1 -= of.length;
        if let Some(under_way) = self.under_way.get_mut(&of.node) {
            *under_way -= 1;
            if *under_way == 0 {
                self.under_way.remove(&of.node);
            }
        }
        let waiting: usize = self.sessions.iter().map(Session::waiting_bytes).sum();
        let bytes = bytes.filter(|bytes| waiting + bytes.len() <= REPLIES_BYTES_MAX);
        if let Some(session) = self.sessions.iter_mut().find(|s| s.number() == of.session) {
            session.reply(of.number, bytes);
        }
    }

    fn handle(&mut self, context: &Context, of: Of, bytes: Bytes) {
        let Some(replies) = &self.replies else { return };
        self.under_way_all.0 += 1;
        self.under_way_all.1 += of.length;
        *self.under_way.entry(of.node).or_default() += 1;
        context.counters.requests_taken.add(1);
        let reply = Reply::new(of, (self.way.clone(), context.wake.clone()));
        let asked = Asked { from: of.node, bytes, reply };
        // Code of the embedder: its panic must not end this thread.
        if catch_unwind(AssertUnwindSafe(|| replies.handle(asked))).is_err() {
            tracing::error!(node = %of.node, "whoever replies to requests has panicked");
        }
    }

    /// Now and then.
    pub(crate) fn tick(&mut self) {
        self.targets.retain(|_, target| target.tick());
        self.sessions.retain(|session| {
            let is_used = session.is_used();
            if !is_used {
                tracing::info!(node = %session.node(), "neither asks nor takes a reply: dropped");
            }
            is_used
        });
    }

    /// Whether every reply has been written.
    pub(crate) fn is_drained(&self) -> bool {
        self.sessions.iter().all(|session| session.waiting_bytes() == 0)
    }

    /// Whoever waits learns that it is over.
    pub(crate) fn end(&mut self) {
        self.sessions.clear();
        for (_, target) in std::mem::take(&mut self.targets) {
            target.end("this node is closing");
        }
    }
}

/// Hands over what fits, when the connection is free; `next` is asked for more. How many bytes.
fn send(
    connection: &Connection,
    encoded: &mut VecDeque<Bytes>,
    mut next: impl FnMut() -> Option<Vec<Bytes>>,
) -> usize {
    if !connection.is_free() {
        return 0;
    }
    let (mut slices, mut bytes) = (Vec::new(), 0);
    while bytes < SEND_BYTES {
        match encoded.pop_front() {
            Some(part) => {
                bytes += part.len();
                slices.push(part);
            }
            None => match next() {
                Some(parts) => encoded.extend(parts),
                None => break,
            },
        }
    }
    if !slices.is_empty() {
        connection.send(slices);
    }
    bytes
}
