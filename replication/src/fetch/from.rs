//! What a driven node lacks comes from another node, on a thread of its own, while it leads nobody.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use ringwal_engine::format::FrameHeader;
use ringwal_engine::{AppendBatch, CommitError, Engine, EpochTable, Refusal, StreamId};

use super::client::{FetchError, Peer, Piece};
use crate::config::Member;
use crate::driven::Way;
use crate::history::{Held, Parting, known_difference, part};
use crate::link::tls::Tls;
use crate::node_id::NodeId;
use crate::promise::{Promise, is_replicated};
use crate::repair::why_not;
use crate::thread::Context;
use crate::wire::{
    ConnectionKind, Hello, History, PROTOCOL_VERSION, PROTOCOL_VERSION_MIN, Stop, Wanted,
};
use crate::worker::{BeginAnew, Snapshots, begin_anew};

/// Frames on their way to the disk.
const IN_FLIGHT_MAX: usize = 32;

/// Why records do not come from another node.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchFromError {
    /// The other node cannot be asked.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// Another node answers at that address.
    #[error("{address} is node {found}, not node {expected}")]
    OtherNode {
        /// Where.
        address: String,
        /// Who answers.
        found: NodeId,
        /// Who was to.
        expected: NodeId,
    },
    /// The beginning of what is wanted is trimmed there: a snapshot is needed.
    #[error("stream {stream} is trimmed up to {first} at node {node}: begin from a snapshot")]
    Trimmed {
        /// Which stream.
        stream: StreamId,
        /// First offset that is left there.
        first: u64,
        /// Who was asked.
        node: NodeId,
    },
    /// It has not all of that, or another history.
    #[error("stream {stream} at node {node}: {why}; ask another node")]
    Lacks {
        /// Which stream.
        stream: StreamId,
        /// Who was asked.
        node: NodeId,
        /// What it has not.
        why: String,
    },
    /// This node leads, or has changed its part meanwhile.
    #[error("nothing more was fetched: {0}")]
    Changed(String),
    /// The engine does not take it.
    #[error("stream {stream}, offset {offset}: not appended: {why}")]
    Append {
        /// Which stream.
        stream: StreamId,
        /// Where.
        offset: u64,
        /// Why.
        why: String,
    },
    /// Too much waits for this node already.
    #[error("too much waits here already; ask again")]
    Busy,
    /// The node was not started to be driven.
    #[error("this node is not driven: start it with start_driven")]
    NotDriven,
    /// The node is closed, or its thread has died.
    #[error("the node is closed")]
    Closed,
}

/// What is asked for, and who waits for it.
pub(crate) struct FetchFrom {
    member: Member,
    wants: Vec<(StreamId, Range<u64>)>,
    way: Way<(), FetchFromError>,
}

impl FetchFrom {
    pub(crate) fn new(
        member: Member,
        wants: Vec<(StreamId, Range<u64>)>,
        way: Way<(), FetchFromError>,
    ) -> Self {
        Self { member, wants, way }
    }

    pub(crate) fn finish(self, outcome: Result<(), FetchFromError>) {
        // Nobody may wait any more.
        let _ = self.way.send(outcome);
    }

    /// Begins, on a thread that ends with it.
    pub(crate) fn start(self, context: &Context) {
        let hello = Hello {
            versions: (PROTOCOL_VERSION_MIN, PROTOCOL_VERSION),
            kind: ConnectionKind::Fetch,
            cluster: context.me.cluster,
            from: context.me.node,
            to: self.member.node,
            run: context.run,
            engine: context.engine.id(),
            epoch: 0,
        };
        let changes = context.changes.clone();
        let before = changes.load(Ordering::Acquire);
        let (engine, tls) = (context.engine.clone(), context.tls.clone());
        let (snapshots, committed) = (context.snapshots.clone(), context.facts.committed.clone());
        let epoch = context.facts.promise;
        let Self { member, wants, mut way } = self;
        let fetch = move || {
            let trimmed = RefCell::default();
            let bring = Bring { engine, tls, hello, member, changes, before, committed, trimmed };
            let outcome = loop {
                let outcome = tokio_uring::start(async {
                    tokio::select! {
                        outcome = bring.all(&wants) => outcome,
                        () = way.closed() => Err(FetchFromError::Closed),
                    }
                });
                // A snapshot may be waited for here, where no runtime is.
                let trimmed = bring.trimmed.take().zip(epoch);
                match (outcome, trimmed) {
                    (Err(error @ FetchFromError::Trimmed { .. }), Some((trimmed, promise))) => {
                        if let Err(why) = bring.begin_anew(&*snapshots, &trimmed, promise) {
                            tracing::warn!(why, "a stream cannot begin anew from a snapshot");
                            break Err(error);
                        }
                    }
                    (outcome, _) => break outcome,
                }
            };
            let _ = way.send(outcome);
        };
        let thread = std::thread::Builder::new().name("ringwal-fetch".into()).spawn(fetch);
        if let Err(error) = thread {
            tracing::error!(%error, "cannot start a thread that fetches");
        }
    }
}

struct Bring {
    engine: Engine,
    tls: Option<Arc<Tls>>,
    hello: Hello,
    member: Member,
    /// How often the node had changed its part when this began, and has by now.
    changes: Arc<AtomicU64>,
    before: u64,
    /// What is known to be committed here.
    committed: BTreeMap<StreamId, u64>,
    /// The stream that must begin anew, and what the other node has of it.
    trimmed: RefCell<Option<(StreamId, Held)>>,
}

impl Bring {
    async fn all(&self, wants: &[(StreamId, Range<u64>)]) -> Result<(), FetchFromError> {
        let lacks = |(stream, wanted): &&(StreamId, Range<u64>)| {
            is_replicated(*stream) && self.engine.stream(*stream).end() < wanted.end
        };
        let wants: Vec<_> = wants.iter().filter(lacks).collect();
        if wants.is_empty() {
            return Ok(());
        }
        let (address, expected) = (&self.member.address, self.member.node);
        let mut peer = Peer::connect(address, self.tls.as_deref(), &self.hello).await?;
        let found = peer.answer.node;
        if found != expected {
            let address = address.clone();
            return Err(FetchFromError::OtherNode { address, found, expected });
        }
        for (stream, wanted) in wants {
            self.stream(*stream, wanted.end, &mut peer).await?;
        }
        Ok(())
    }

    /// Whatever this node does now, it is not what was asked for.
    fn check(&self) -> Result<(), FetchFromError> {
        if self.changes.load(Ordering::Acquire) == self.before {
            return Ok(());
        }
        Err(FetchFromError::Changed("this node has changed its part meanwhile".into()))
    }

    /// Puts in a snapshot of what is trimmed there; the stream goes on behind it.
    fn begin_anew(
        &self,
        snapshots: &Snapshots,
        (stream, theirs): &(StreamId, Held),
        promise: Promise,
    ) -> Result<(), String> {
        self.check().map_err(|error| error.to_string())?;
        let here = self.engine.stream(*stream);
        let (held, from) = (here.trimmed()..here.end(), self.member.node);
        let anew = BeginAnew { stream: *stream, trimmed: theirs.trimmed, held, from };
        begin_anew(&self.engine, snapshots, &anew, &theirs.epochs, promise.into()).map(drop)
    }

    fn lacks(&self, stream: StreamId, why: impl Into<String>) -> FetchFromError {
        FetchFromError::Lacks { stream, node: self.member.node, why: why.into() }
    }

    async fn stream(&self, id: StreamId, end: u64, peer: &mut Peer) -> Result<(), FetchFromError> {
        let theirs = peer.held.get(&id).cloned();
        let theirs = theirs.ok_or_else(|| self.lacks(id, "it is not there"))?;
        loop {
            // Frames of a leader that is followed may come at the same time, and be faster.
            let next = self.compare(id, end, &theirs)?;
            if next >= end || self.piece(id, next..end, &theirs, peer).await? {
                return Ok(());
            }
            self.check()?;
        }
    }

    /// From where on it is wanted: the history up to there is the same.
    fn compare(&self, id: StreamId, end: u64, theirs: &Held) -> Result<u64, FetchFromError> {
        let stream = self.engine.stream(id);
        let epochs = EpochTable::from_entries(stream.epochs()).unwrap_or_default();
        let held = Held { trimmed: stream.trimmed(), end: stream.end(), epochs };
        let Held { trimmed, end: their_end, ref epochs } = *theirs;
        let history = History { stream: id, trimmed, epochs: epochs.clone() };
        let (node, first) = (self.member.node, trimmed);
        match part(&held, &history) {
            _ if held.end >= end => Ok(held.end),
            Parting::TooFar { .. } => {
                let parts = known_difference(&held, &history);
                let committed = self.committed.get(&id).copied().unwrap_or(0);
                if parts.is_none_or(|at| at >= committed) {
                    *self.trimmed.borrow_mut() = Some((id, theirs.clone()));
                }
                Err(FetchFromError::Trimmed { stream: id, first, node })
            }
            _ if their_end < end => Err(self.lacks(id, format!("it ends at {their_end} there"))),
            Parting::Nowhere => Ok(held.end),
            Parting::At(at) => {
                let why = format!("from offset {at} on it has another history there");
                Err(self.lacks(id, why))
            }
            Parting::LeaderLacks { end } => Err(self.lacks(id, format!("it ended at {end} there"))),
        }
    }

    /// Fetches and appends; false when somebody else was faster and it has to be looked at again.
    async fn piece(
        &self,
        id: StreamId,
        offsets: Range<u64>,
        theirs: &Held,
        peer: &mut Peer,
    ) -> Result<bool, FetchFromError> {
        let (mut next, end) = (offsets.start, offsets.end);
        let (mut writing, mut is_behind) = (VecDeque::new(), false);
        while next < end {
            let wanted = Wanted { stream: id, from: next, end, is_check: false };
            peer.ask(wanted).await?;
            let stop = loop {
                match peer.next_of(wanted).await? {
                    Piece::Frame(frame) => {
                        let header = self.header(&frame, id, next, theirs, peer)?;
                        // The rest of an answer is read to its end in any case.
                        if !is_behind {
                            writing.push_back((next, self.append(id, next, frame).await?));
                            is_behind = !self.settle(id, &mut writing, IN_FLIGHT_MAX).await?;
                        }
                        next = header.end_offset();
                    }
                    Piece::End { end, stop } if end == next => break stop,
                    Piece::End { .. } => {
                        return Err(peer.unexpected("fewer frames than it says").into());
                    }
                }
            };
            if is_behind {
                break;
            }
            if stop != Stop::More
                && let Some(why) = why_not(next, &stop, end)
            {
                return Err(match stop {
                    Stop::Trimmed(first) => {
                        FetchFromError::Trimmed { stream: id, first, node: self.member.node }
                    }
                    _ => self.lacks(id, why),
                });
            }
        }
        Ok(self.settle(id, &mut writing, 0).await? && !is_behind)
    }

    /// A frame that continues there, in the epoch that the other node has told.
    fn header(
        &self,
        frame: &[u8],
        id: StreamId,
        next: u64,
        theirs: &Held,
        peer: &Peer,
    ) -> Result<FrameHeader, FetchFromError> {
        let header = FrameHeader::verify(frame).ok().map(|(header, _)| header);
        let header = header.filter(|header| {
            let epoch = header.epoch.get();
            (header.stream.get(), header.base_offset.get()) == (id.get(), next)
                && header.count.get() > 0
                && theirs.epochs.epoch_at(next) == epoch
                && theirs.epochs.epoch_at(header.end_offset() - 1) == epoch
        });
        header.ok_or_else(|| peer.unexpected("another frame than was asked for").into())
    }

    async fn append(
        &self,
        id: StreamId,
        offset: u64,
        frame: Bytes,
    ) -> Result<AppendBatch, FetchFromError> {
        // Given before it is asked whether the part has changed: whoever changes it later raises the
        // fence, which shuts this frame out.
        let given = self.engine.stream(id).append_frame_async(frame);
        self.check()?;
        given.await.map_err(|error| append_failed(id, offset, &error))
    }

    /// Waits until no more than `left` are on their way. False when one was not the continuation.
    async fn settle(
        &self,
        id: StreamId,
        writing: &mut VecDeque<(u64, AppendBatch)>,
        left: usize,
    ) -> Result<bool, FetchFromError> {
        let mut is_right = true;
        while writing.len() > left
            && let Some((offset, token)) = writing.pop_front()
        {
            match token.await {
                Ok(_) => {}
                Err(CommitError::Refused(
                    Refusal::NotContinuation { .. } | Refusal::Fenced { .. },
                )) => {
                    self.check()?;
                    is_right = false;
                }
                Err(error) => return Err(append_failed(id, offset, &error)),
            }
        }
        Ok(is_right)
    }
}

fn append_failed(stream: StreamId, offset: u64, why: &impl ToString) -> FetchFromError {
    FetchFromError::Append { stream, offset, why: why.to_string() }
}
