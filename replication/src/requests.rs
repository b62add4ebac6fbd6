//! Requests between nodes over the one port, for whoever builds on replication: a connection of kind
//! [`ConnectionKind::Requests`](crate::wire::ConnectionKind::Requests).
//!
//! ```text
//! who asks                             who replies
//! hello (epoch 0) ───────────────────▶ of the same cluster?
//!        ◀── answer
//! request (number, bytes in parts) ──▶ Replies::handle, on the replication thread
//!        ◀── reply (number, bytes in parts), in any order; or no reply
//! ```
//!
//! Bytes mean nothing here. A request is sent at most once: whether it was sent is known from
//! [`RequestError::may_be_done`]. Whoever is of the cluster may ask, member or not; who may do what is
//! for [`Replies`] to decide. `thread/requesting.rs` does the work. Programs that are no node ask as a
//! [`Client`].

mod client;
pub(crate) mod parts;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::Sender;
use tokio::sync::oneshot;

use crate::config::Member;
use crate::node_id::NodeId;
use crate::promise::{Identity, refuse_foreign};
use crate::wake::Wake;
use crate::wire::{Hello, Refusal};

pub use client::{Client, ClientError};

/// Longest request or reply, in bytes.
pub const REQUEST_BYTES_MAX: usize = 4 << 20;
/// Requests to one node without a reply; and of one node, on the other side.
pub const REQUESTS_MAX: usize = 256;
/// Bytes of requests to one node that wait to be sent.
pub const WAITING_BYTES_MAX: usize = 64 << 20;
/// The name in a certificate with which programs that are no node may ask, as well as with a member's.
pub const OPERATOR: &str = "operator";
/// No request waits for longer.
const LIMIT_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// Why there is no reply.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// The other node is not reached, or does not take requests. Nothing was sent.
    #[error("node {node} takes no request: {why}")]
    NotReached {
        /// Which node.
        node: NodeId,
        /// Why.
        why: String,
    },
    /// The connection ended before the reply came.
    #[error("node {node} was asked and its reply is lost: {why}; the request may be done")]
    Lost {
        /// Which node.
        node: NodeId,
        /// Why.
        why: String,
    },
    /// There was no reply in time.
    #[error("no reply of node {node} within {limit:?}{}", if *is_sent { "; the request may be done" } else { "" })]
    Late {
        /// Which node.
        node: NodeId,
        /// The time that there was.
        limit: Duration,
        /// Whether it may be on its way.
        is_sent: bool,
    },
    /// The other node has taken the request and does not reply.
    #[error("node {node} has taken the request and gives no reply; it may be done")]
    NoReply {
        /// Which node.
        node: NodeId,
    },
    /// It is longer than [`REQUEST_BYTES_MAX`].
    #[error("a request of {length} bytes; at most {REQUEST_BYTES_MAX} are sent")]
    TooLong {
        /// Its length.
        length: usize,
    },
    /// Too many wait already, or too many bytes of them.
    #[error("too many requests to node {node} wait already; ask again when one is done")]
    Busy {
        /// Which node.
        node: NodeId,
    },
    /// This node is closed.
    #[error("this node is closed")]
    Closed,
}

impl RequestError {
    /// Whether the other node may have done what was asked. Otherwise it has not, and will not.
    pub fn may_be_done(&self) -> bool {
        match self {
            Self::Lost { .. } | Self::NoReply { .. } | Self::Late { is_sent: true, .. } => true,
            Self::NotReached { .. }
            | Self::Late { is_sent: false, .. }
            | Self::TooLong { .. }
            | Self::Busy { .. }
            | Self::Closed => false,
        }
    }
}

pub(crate) type Outcome = Result<Bytes, RequestError>;

/// A request that somebody waits for. However it ends, who waits learns whether it may be done.
pub(crate) struct Asking {
    pub(crate) to: Member,
    pub(crate) bytes: Bytes,
    pub(crate) limit: Duration,
    pub(crate) deadline: Instant,
    /// It was handed to a connection.
    pub(crate) is_sent: bool,
    outcome: Option<oneshot::Sender<Outcome>>,
}

impl Asking {
    pub(crate) fn new(to: Member, bytes: Bytes, limit: Duration) -> (Self, Request) {
        let (sender, receiver) = oneshot::channel();
        let (now, outcome) = (Instant::now(), Some(sender));
        let deadline = now.checked_add(limit).unwrap_or(now + LIMIT_MAX);
        (Self { to, bytes, limit, deadline, is_sent: false, outcome }, Request(receiver))
    }

    /// Whether nobody waits any more, or has waited for too long.
    pub(crate) fn is_over(&self, now: Instant) -> bool {
        self.deadline <= now || self.outcome.as_ref().is_none_or(oneshot::Sender::is_closed)
    }

    pub(crate) fn finish(mut self, outcome: Outcome) {
        if let Some(way) = self.outcome.take() {
            // Nobody may wait any more.
            let _ = way.send(outcome);
        }
    }

    pub(crate) fn finish_late(self) {
        let (node, limit, is_sent) = (self.to.node, self.limit, self.is_sent);
        self.finish(Err(RequestError::Late { node, limit, is_sent }));
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        if let (true, Some(way)) = (self.is_sent, self.outcome.take()) {
            let (node, why) = (self.to.node, "the thread that asks has ended".to_owned());
            let _ = way.send(Err(RequestError::Lost { node, why }));
        }
    }
}

/// A request on its way: a future for any runtime, or [`Request::wait`]. Dropping it only means that
/// nobody waits.
#[derive(Debug)]
pub struct Request(oneshot::Receiver<Outcome>);

impl Request {
    /// Blocks the thread until there is a reply, or none any more.
    ///
    /// # Errors
    /// See [`RequestError`].
    ///
    /// # Panics
    /// Within an asynchronous runtime: await it there.
    pub fn wait(self) -> Result<Bytes, RequestError> {
        self.0.blocking_recv().unwrap_or(Err(RequestError::Closed))
    }
}

impl Future for Request {
    type Output = Result<Bytes, RequestError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let received = Pin::new(&mut self.0).poll(context);
        received.map(|received| received.unwrap_or(Err(RequestError::Closed)))
    }
}

/// Whoever replies to the requests of other nodes.
pub trait Replies: Send + Sync {
    /// A request has come. This runs on the replication thread: give it to whoever does the work, and
    /// return at once. No method of [`Node`](crate::Node) may be called here: they wait for this
    /// thread. Whoever replies and needs its node holds it weakly, or the node never ends.
    fn handle(&self, asked: Asked);
}

/// A request of another node.
#[derive(Debug)]
pub struct Asked {
    /// Who asks.
    pub from: NodeId,
    /// What; means nothing to replication.
    pub bytes: Bytes,
    /// The way back.
    pub reply: Reply,
}

/// The way back of a request. Dropping it says that there will be no reply.
pub struct Reply {
    pub(crate) of: Of,
    /// `None` when it is used. One request has one reply, and requests that have none are counted, so
    /// there is always room.
    way: Option<(Sender<Replied>, Arc<Wake>)>,
}

/// Which request it is, of which node, and how long it was.
#[derive(Copy, Clone)]
pub(crate) struct Of {
    pub(crate) node: NodeId,
    pub(crate) session: u64,
    pub(crate) number: u64,
    pub(crate) length: usize,
}

/// What has been replied to a request, `None` for no reply.
pub(crate) struct Replied {
    pub(crate) of: Of,
    pub(crate) bytes: Option<Bytes>,
}

impl Reply {
    pub(crate) fn new(of: Of, way: (Sender<Replied>, Arc<Wake>)) -> Self {
        Self { of, way: Some(way) }
    }

    /// Replies, from any thread. More than [`REQUEST_BYTES_MAX`] bytes are no reply.
    pub fn send(mut self, bytes: impl Into<Bytes>) {
        let bytes = bytes.into();
        let is_short = bytes.len() <= REQUEST_BYTES_MAX;
        if !is_short {
            tracing::error!(length = bytes.len(), "a reply that is too long is none");
        }
        self.give(is_short.then_some(bytes));
    }

    fn give(&mut self, bytes: Option<Bytes>) {
        let Some((way, wake)) = self.way.take() else { return };
        // Nobody is there any more when the node is closed.
        let _ = way.try_send(Replied { of: self.of, bytes });
        wake.wake();
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.give(None);
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reply").field("number", &self.of.number).finish_non_exhaustive()
    }
}

/// Why somebody may not ask here, if so.
pub(crate) fn refuse(me: Identity, hello: &Hello) -> Option<(Refusal, String)> {
    let Hello { from, to, epoch, .. } = hello;
    if let Some(refused) = refuse_foreign(me, hello) {
        return Some(refused);
    }
    if *to != me.node || *from == me.node || from.get() == 0 {
        let what = format!("this is node {}, and node {from} asks node {to}", me.node);
        return Some((Refusal::Node, what));
    }
    (*epoch != 0).then(|| {
        let what = format!("who asks claims no epoch, and node {from} claims {epoch}");
        (Refusal::Kind, what)
    })
}
