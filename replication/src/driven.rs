//! A *driven* node: an embedder that elects leaders and numbers epochs says what it promises, which
//! epoch has begun, and who counts. What is asked, what is answered, and the tokens that wait for it.
//!
//! ```text
//! promise(5) ─▶ older epochs end here, durably ─▶ what is held
//! begin(5)   ─▶ what is not of it is cut (I-17) ─▶ leads, or lets itself be dialled by its leader
//! extend     ─▶ records of an entry that are not here are added; nothing is ever cut
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use ringwal_engine::StreamId;
use tokio::sync::oneshot;

use crate::config::Member;
use crate::fetch::FetchFromError;
use crate::history::Held;
use crate::node::Leadership;
use crate::node_id::NodeId;
use crate::promise::Promise;
use crate::wire::EPOCH_MAX;

/// What a node holds when it has promised an epoch: nothing of an older one comes any more.
#[derive(Clone, Debug)]
pub struct Promised {
    /// Of each replicated stream, what is durable.
    pub held: BTreeMap<StreamId, Held>,
    /// What is known to be committed; all of it is durable here.
    pub committed: BTreeMap<StreamId, u64>,
    /// The epoch that has begun here last.
    pub begun: Option<Promise>,
}

/// What the beginning of an epoch has come to here.
#[derive(Clone, Debug)]
pub enum Begun {
    /// This node leads in it.
    Leading(Leadership),
    /// Its leader is followed when it dials.
    Following,
    /// It has begun here, and a later one is promised already: nobody is followed in it.
    Overtaken,
    /// That epoch or a later one had begun before: nothing was done.
    Before,
}

/// Who is dialled, may dial, and counts.
#[derive(Clone, Eq, PartialEq, Debug, Default)]
pub struct Members {
    /// All nodes, this one included; those that are in no set of voters learn only.
    pub nodes: Vec<Member>,
    /// A majority of each of these sets makes a record committed: one set, or two while the membership
    /// is changing. Nothing is committed while there is none.
    pub voters: Vec<BTreeSet<NodeId>>,
    /// With which engine each node counts (I-15). Of a node that is not named here, the first one that
    /// this leader has met.
    pub engines: BTreeMap<NodeId, [u8; 16]>,
}

impl Members {
    /// All of them, voters of one set.
    pub fn all(nodes: Vec<Member>) -> Self {
        let voters = nodes.iter().map(|member| member.node).collect();
        Self { nodes, voters: vec![voters], engines: BTreeMap::new() }
    }
}

/// Records of an entry of the embedder's log: what this node lacks of them is added, nothing is ever
/// cut. Of offsets from where the epoch began on only: all of them are of that epoch.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct Extension {
    /// The epoch in which they are.
    pub epoch: u64,
    /// Whose.
    pub stream: StreamId,
    /// Offset of the first.
    pub base: u64,
    /// The records.
    pub records: Vec<Bytes>,
    /// Offset up to which the stream is committed when the entry is, as its proposer knew; the end of
    /// the records when that is greater.
    pub committed: u64,
}

impl Extension {
    /// Offset after the last record.
    pub fn end(&self) -> u64 {
        self.base.saturating_add(self.records.len() as u64)
    }
}

/// Why an epoch is not promised.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PromiseError {
    /// A greater epoch is promised, or the same one to another run.
    #[error(
        "epoch {asked} is not promised: epoch {} is, to node {}; ask in a greater one",
        promised.epoch, promised.leader
    )]
    Promised {
        /// What was asked for.
        asked: u64,
        /// What is promised.
        promised: Promise,
    },
    /// Epochs begin with 1, and have a bound.
    #[error("epoch {0} is none: epochs are from 1 to {EPOCH_MAX}")]
    NoEpoch(u64),
    /// What a repair has taken away is not all back, so what is held says little.
    #[error("this node was repaired and not everything is back: {lacking}; it must not promise")]
    Repairing {
        /// What is not.
        lacking: String,
    },
    /// The engine has failed, or what is in flight has no outcome.
    #[error("the promise cannot be made durable: {0}")]
    Failed(String),
    /// Too many promises and beginnings wait.
    #[error("too many promises and beginnings wait here already; ask again")]
    Busy,
    /// The node was not started to be driven.
    #[error("this node is not driven: start it with start_driven")]
    NotDriven,
    /// The node is closed, or its thread has died.
    #[error("the node is closed")]
    Closed,
}

/// Why an epoch does not begin here.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BeginError {
    /// It would take back what a majority has, or what was trimmed here (I-14).
    #[error(
        "epoch {epoch} would cut stream {stream} at {start}, below its committed offset {committed}; \
         nothing was changed: look at the leader's disk before anything else"
    )]
    BelowCommitted {
        /// Which epoch.
        epoch: u64,
        /// Which stream.
        stream: StreamId,
        /// Where it would be cut.
        start: u64,
        /// What is known to be committed, or was trimmed.
        committed: u64,
    },
    /// This node would lead in it, and its stream does not end where the epoch is said to start.
    #[error(
        "epoch {epoch} is said to start stream {stream} at {start}, and this node, which would lead, \
         ends it at {end}; nothing was changed: give the ends that this node told with its promise"
    )]
    NotItsEnd {
        /// Which epoch.
        epoch: u64,
        /// Which stream.
        stream: StreamId,
        /// Where it is said to start.
        start: u64,
        /// The durable end.
        end: u64,
    },
    /// The same epoch is promised to another run.
    #[error(
        "epoch {} is promised to node {} in another run: two leaders have used it; nothing was changed",
        promised.epoch, promised.leader
    )]
    OtherRun {
        /// What is promised.
        promised: Promise,
    },
    /// Epochs begin with 1, and have a bound.
    #[error("epoch {0} is none: epochs are from 1 to {EPOCH_MAX}")]
    NoEpoch(u64),
    /// What a repair has taken away is not all back, and this node would lead.
    #[error("this node was repaired and not everything is back: {lacking}; it must not lead")]
    Repairing {
        /// What is not.
        lacking: String,
    },
    /// The engine has failed, or what is cut cannot be kept. What was done may be done again.
    #[error("the epoch cannot begin: {0}; it may be begun again")]
    Failed(String),
    /// Too many promises and beginnings wait.
    #[error("too many promises and beginnings wait here already; ask again")]
    Busy,
    /// The node was not started to be driven.
    #[error("this node is not driven: start it with start_driven")]
    NotDriven,
    /// The node is closed, or its thread has died.
    #[error("the node is closed")]
    Closed,
}

/// Why records of an entry are not added.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExtendError {
    /// Records before them are not here: fetch those first.
    #[error(
        "stream {stream} ends at {end}, and the records begin at {base}: fetch what is between"
    )]
    Lacks {
        /// Which stream.
        stream: StreamId,
        /// Its durable end.
        end: u64,
        /// Where the records begin.
        base: u64,
    },
    /// Their epoch is not the one that has begun last: nothing was done, nor has to be.
    #[error("epoch {asked} is not the one that has begun last ({begun:?}): nothing was done")]
    NotBegun {
        /// Epoch of the records.
        asked: u64,
        /// What has begun.
        begun: Option<Promise>,
    },
    /// Other bytes are held there, in the same epoch: of two histories one is wrong (I-17). Nothing was done.
    #[error(
        "stream {stream} holds another record than the entry's at offset {offset}, both of epoch {epoch} \
         (I-17): nothing was added; compare the nodes with `ringwal dump`, and keep this one's directory"
    )]
    Differs {
        /// Which stream.
        stream: StreamId,
        /// Epoch of the records.
        epoch: u64,
        /// Where the first one is that is another.
        offset: u64,
    },
    /// The engine does not take them, or has something else there.
    #[error("the records are not added: {0}")]
    Failed(String),
    /// Too many of them wait.
    #[error("too many extensions wait here already; wait for some of them")]
    Busy,
    /// The node was not started to be driven.
    #[error("this node is not driven: start it with start_driven")]
    NotDriven,
    /// The node is closed, or its thread has died.
    #[error("the node is closed")]
    Closed,
}

/// Errors that say that the node is closed.
pub(crate) trait Closed {
    fn closed() -> Self;
}

impl Closed for PromiseError {
    fn closed() -> Self {
        Self::Closed
    }
}

impl Closed for BeginError {
    fn closed() -> Self {
        Self::Closed
    }
}

impl Closed for ExtendError {
    fn closed() -> Self {
        Self::Closed
    }
}

impl Closed for FetchFromError {
    fn closed() -> Self {
        Self::Closed
    }
}

/// Where an outcome goes.
pub(crate) type Way<T, E> = oneshot::Sender<Result<T, E>>;

/// Something that a node was asked for: a future for any runtime, or `wait`. Dropping it only means
/// that nobody waits.
#[must_use = "the outcome comes by it; drop(..) to ignore it"]
pub struct Due<T, E>(oneshot::Receiver<Result<T, E>>);

/// See [`Node::promise`](crate::Node::promise).
pub type Promising = Due<Promised, PromiseError>;
/// See [`Node::begin`](crate::Node::begin).
pub type Beginning = Due<Begun, BeginError>;
/// See [`Node::extend`](crate::Node::extend).
pub type Extending = Due<(), ExtendError>;
/// See [`Node::fetch_from`](crate::Node::fetch_from).
pub type Fetching = Due<(), FetchFromError>;

impl<T, E> Due<T, E> {
    pub(crate) fn new() -> (Way<T, E>, Self) {
        let (way, outcome) = oneshot::channel();
        (way, Self(outcome))
    }
}

#[expect(private_bounds, reason = "nobody else makes one of these")]
impl<T, E: Closed> Due<T, E> {
    /// Blocks the thread until the outcome is known.
    ///
    /// # Errors
    /// As what was asked for.
    ///
    /// # Panics
    /// Within an asynchronous runtime: await it there.
    pub fn wait(self) -> Result<T, E> {
        self.0.blocking_recv().unwrap_or_else(|_| Err(E::closed()))
    }
}

impl<T, E: Closed> Future for Due<T, E> {
    type Output = Result<T, E>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let received = Pin::new(&mut self.0).poll(context);
        received.map(|received| received.unwrap_or_else(|_| Err(E::closed())))
    }
}

impl<T, E> fmt::Debug for Due<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Due")
    }
}
