//! What openraft sends: its calls as requests of [`rpc`](super::rpc) over a [`Transport`].
//!
//! Appends are pipelined: several are on their way to a node at once, in pieces of at most about
//! [`APPEND_BYTES_MAX`], and their answers come in order. openraft counts entries and asks for as many as it
//! likes; it takes the answer to a piece as it takes the answer to a whole request. After the first answer that
//! is no success nothing more is sent, and openraft begins again where it is told.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{Either, select};
use futures_util::{Stream, StreamExt, stream};
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{
    NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable,
};
use openraft::network::{Backoff, RPCOption};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendError,
    StreamAppendResult, TransferLeaderError, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use openraft::type_config::TypeConfigExt as _;
use openraft::{AsyncRuntime, OptionalSend, RPCTypes, RaftNetworkFactory, RaftNetworkV2};
use ringwal_replication::Requests;
use ringwal_replication::config::Member;
use ringwal_replication::node_id::NodeId;
use ringwal_replication::requests::RequestError;

use super::away::Away;
use super::rpc::{
    self, APPEND_BYTES_MAX, Append, Appended, Ask, Candidacy, Chunk, Refusal, Reply, Request,
    SNAPSHOT_BYTES_MAX, SNAPSHOT_CHUNK_BYTES, Snapshot, SnapshotTaken, Transfer, Transferred,
    Voted,
};
use super::types::{LogId, RaftNode, Types, Vote};
use crate::lease::LeaseKeeper;

/// Appends to one node that are on their way at once. So many pieces, [`APPEND_BYTES_MAX`] each, are in memory.
const APPENDS_IN_FLIGHT: usize = 8;
/// A link that is slower than this is not for Raft: an Append may take so much longer as its bytes, and as many
/// before them as there may be, take at this speed. Without that a slow link would never get long ones through.
const LINK_BYTES_PER_SECOND: u64 = 4 << 20;
/// How long Raft leaves a node alone that does not answer, at first and at most; it doubles. Heartbeats go on.
const BACKOFF_MIN: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_millis(500);

/// How a request comes to another node, and its reply back. Requests to one node arrive in the order
/// in which they were asked, if they arrive. The product's transport is [`Requests`].
pub trait Transport: Send + Sync + 'static {
    /// Asks; the outcome is there within `limit`, about. The request may be done also when the future is
    /// dropped.
    fn ask(
        &self,
        to: &Member,
        bytes: Bytes,
        limit: Duration,
    ) -> impl Future<Output = Result<Bytes, RequestError>> + Send;
}

impl Transport for Requests {
    fn ask(
        &self,
        to: &Member,
        bytes: Bytes,
        limit: Duration,
    ) -> impl Future<Output = Result<Bytes, RequestError>> + Send {
        Requests::ask(self, to, bytes, limit)
    }
}

/// Makes the connections of a node to the others: what `Raft::new` asks for.
pub struct Networking<T, R: AsyncRuntime> {
    me: NodeId,
    transport: Arc<T>,
    lease: Arc<LeaseKeeper>,
    away: Arc<Away<InstantOf<R>>>,
}

type InstantOf<R> = <R as AsyncRuntime>::Instant;

impl<T, R: AsyncRuntime> Networking<T, R> {
    /// Of node `me`, whose lease is told of every Append.
    pub fn new(me: NodeId, transport: Arc<T>, lease: Arc<LeaseKeeper>) -> Self {
        Self { me, transport, lease, away: Arc::default() }
    }
}

impl<T: Transport, R: AsyncRuntime> RaftNetworkFactory<Types<R>> for Networking<T, R> {
    type Network = Network<T, R>;

    async fn new_client(&mut self, target: u64, node: &RaftNode) -> Network<T, R> {
        Network {
            me: self.me.get(),
            to: Member { node: NodeId::new(target), address: node.address.clone() },
            engine: node.engine,
            transport: self.transport.clone(),
            lease: self.lease.clone(),
            away: self.away.clone(),
        }
    }
}

/// What openraft sends to one node with the engine that the membership names.
pub struct Network<T, R: AsyncRuntime> {
    me: u64,
    to: Member,
    engine: [u8; 16],
    transport: Arc<T>,
    lease: Arc<LeaseKeeper>,
    away: Arc<Away<InstantOf<R>>>,
}

/// A piece of an Append, as bytes.
struct Piece {
    bytes: Bytes,
    vote: Vote,
    previous: Option<LogId>,
    last: Option<LogId>,
}

/// The pieces of an Append, each encoded when it is asked for.
struct Pieces {
    engine: [u8; 16],
    append: Append,
    /// Entries that pieces have, or `None` when there is no more piece.
    done: Option<usize>,
}

impl Iterator for Pieces {
    type Item = Result<Piece, String>;

    fn next(&mut self) -> Option<Self::Item> {
        let done = self.done?;
        let Append { vote, previous, ref entries, .. } = self.append;
        let encoded = rpc::encode_append(self.engine, &self.append, done, APPEND_BYTES_MAX);
        let (bytes, taken) = match encoded {
            Ok(encoded) => encoded,
            Err(error) => {
                self.done = None;
                return Some(Err(error.to_string()));
            }
        };
        let end = done + taken;
        self.done = (end < entries.len()).then_some(end);
        let before = |at: usize| match at.checked_sub(1).and_then(|at| entries.get(at)) {
            Some(entry) => Some(entry.log_id),
            None => previous,
        };
        Some(Ok(Piece { bytes: bytes.into(), vote, previous: before(done), last: before(end) }))
    }
}

impl<T: Transport, R: AsyncRuntime> Network<T, R> {
    fn pieces(&self, request: AppendEntriesRequest<Types<R>>) -> Pieces {
        let AppendEntriesRequest { vote, prev_log_id: previous, entries, leader_commit } = request;
        let append = Append { vote, previous, entries, committed: leader_commit };
        Pieces { engine: self.engine, append, done: Some(0) }
    }

    /// Sends a piece and waits for what becomes of it.
    async fn append(
        &self,
        piece: Result<Piece, String>,
        limit: Duration,
    ) -> Result<StreamAppendResult<Types<R>>, RPCError<Types<R>>> {
        let piece = piece.map_err(unreachable)?;
        let bytes = (piece.bytes.len() * APPENDS_IN_FLIGHT) as u64;
        let transfer_ms = bytes * 1000 / LINK_BYTES_PER_SECOND;
        let limit = limit + Duration::from_millis(transfer_ms);
        let term = piece.vote.leader_id.term;
        let Some(sent) = self.lease.handle_sent(term, self.to.node.get()) else {
            return Err(unreachable("no majority answers: others shall have the time to elect"));
        };
        let reply = self.ask(piece.bytes, limit, RPCTypes::AppendEntries).await?;
        let Reply::Append(appended) = reply else { return Err(self.not_an_answer(&reply)) };
        match (appended, piece.previous) {
            (Appended::Success, _) => {
                self.lease.handle_acked(sent);
                Ok(Ok(piece.last))
            }
            (Appended::InPart(end), previous) if end >= previous && end <= piece.last => {
                Ok(Ok(end))
            }
            (Appended::HigherVote(vote), _) => Ok(Err(StreamAppendError::HigherVote(vote))),
            (Appended::Conflict, Some(previous)) => Ok(Err(StreamAppendError::Conflict(previous))),
            // Nothing is before the first entry, and cannot conflict.
            (Appended::InPart(_) | Appended::Conflict, _) => Err(self.not_an_answer(&reply)),
        }
    }

    async fn ask_for(
        &self,
        ask: Ask,
        limit: Duration,
        action: RPCTypes,
    ) -> Result<Reply, RPCError<Types<R>>> {
        let request = Request { to_engine: self.engine, ask };
        let bytes = request.encode().map_err(unreachable)?;
        self.ask(bytes.into(), limit, action).await
    }

    /// Asks, and gives a reply that is no refusal.
    async fn ask(
        &self,
        bytes: Bytes,
        limit: Duration,
        action: RPCTypes,
    ) -> Result<Reply, RPCError<Types<R>>> {
        let reply = self.transport.ask(&self.to, bytes, limit).await;
        let (id, target) = (self.me, self.to.node.get());
        self.note_reply(&reply);
        let reply = reply.map_err(|error| match error {
            RequestError::Late { .. } => {
                RPCError::Timeout(Timeout { action, id, target, timeout: limit })
            }
            RequestError::Lost { .. } | RequestError::NoReply { .. } => {
                RPCError::Network(NetworkError::new(&error))
            }
            _ => RPCError::Unreachable(Unreachable::new(&error)),
        })?;
        match Reply::decode(reply) {
            Ok(Reply::Refused(refusal)) => Err(self.refused(&refusal)),
            Ok(reply) => Ok(reply),
            Err(error) => Err(unreachable(format!("the reply of node {target}: {error}"))),
        }
    }

    /// Says when a node goes and comes back.
    fn note_reply(&self, reply: &Result<Bytes, RequestError>) {
        let (Member { node, address }, now) = (&self.to, Types::<R>::now());
        match reply {
            Ok(_) => {
                if let Some(silence) = self.away.handle_answered(node.get(), now) {
                    tracing::warn!(%node, address, ?silence, "a node answers Raft again");
                }
            }
            Err(error) => {
                if let Some(silence) = self.away.handle_failed(node.get(), now) {
                    tracing::warn!(%node, address, ?silence, %error, "a node does not answer Raft");
                }
            }
        }
    }

    fn refused(&self, refusal: &Refusal) -> RPCError<Types<R>> {
        unreachable(format!("node {} at {}: {refusal}", self.to.node, self.to.address))
    }

    fn not_an_answer(&self, reply: &Reply) -> RPCError<Types<R>> {
        unreachable(format!("node {} answers something else: {reply:?}", self.to.node))
    }

    /// Sends a snapshot part by part.
    async fn send_snapshot(
        &self,
        vote: Vote,
        snapshot: Snapshot,
        limit: Duration,
    ) -> Result<SnapshotResponse<Types<R>>, RPCError<Types<R>>> {
        let all = snapshot.snapshot;
        if all.len() > SNAPSHOT_BYTES_MAX {
            let length = all.len();
            return Err(unreachable(format!(
                "a snapshot of Raft with {length} bytes; at most {SNAPSHOT_BYTES_MAX} are sent"
            )));
        }
        let (total, checksum) = (all.len() as u64, crc32c::crc32c(&all));
        let mut meta = Some(snapshot.meta);
        let mut start = 0;
        loop {
            let end = all.len().min(start + SNAPSHOT_CHUNK_BYTES);
            let (offset, bytes) = (start as u64, all.slice(start..end));
            let chunk = Chunk { vote, total, checksum, offset, meta: meta.take(), bytes };
            let is_last = chunk.is_last();
            let reply = self.ask_for(Ask::Snapshot(chunk), limit, RPCTypes::InstallSnapshot);
            match reply.await? {
                Reply::Snapshot(SnapshotTaken::Installed(vote)) if is_last => {
                    return Ok(SnapshotResponse::new(vote));
                }
                Reply::Snapshot(SnapshotTaken::More(offset))
                    if offset == end as u64 && !is_last =>
                {
                    start = end;
                }
                other => return Err(self.not_an_answer(&other)),
            }
        }
    }
}

fn unreachable<R: AsyncRuntime>(why: impl ToString) -> RPCError<Types<R>> {
    RPCError::Unreachable(Unreachable::from_string(why))
}

impl<T: Transport, R: AsyncRuntime> RaftNetworkV2<Types<R>> for Network<T, R> {
    type SnapshotData = Bytes;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types<R>>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types<R>>, RPCError<Types<R>>> {
        let mut pieces = self.pieces(request);
        // There is always a first one, and what is not in it is left to openraft.
        let piece = pieces.next().unwrap_or_else(|| Err("no piece of an Append".to_owned()));
        let is_whole = pieces.done.is_none();
        let last = piece.as_ref().ok().and_then(|piece| piece.last);
        Ok(match self.append(piece, option.soft_ttl()).await? {
            Ok(end) if is_whole && end == last => AppendEntriesResponse::Success,
            Ok(end) => AppendEntriesResponse::PartialSuccess(end),
            Err(StreamAppendError::Conflict(_)) => AppendEntriesResponse::Conflict,
            Err(StreamAppendError::HigherVote(vote)) => AppendEntriesResponse::HigherVote(vote),
        })
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<
        's,
        Result<
            BoxStream<'s, Result<StreamAppendResult<Types<R>>, RPCError<Types<R>>>>,
            RPCError<Types<R>>,
        >,
    >
    where
        S: Stream<Item = AppendEntriesRequest<Types<R>>> + OptionalSend + Unpin + 'static,
    {
        let this: &'s Self = self;
        let limit = option.soft_ttl();
        let answers = input
            .flat_map(move |request| stream::iter(this.pieces(request)))
            .map(move |piece| async move {
                let last = piece.as_ref().ok().and_then(|piece| piece.last);
                let answer = this.append(piece, limit).await;
                let goes_on = matches!(&answer, Ok(Ok(end)) if *end == last);
                (answer, goes_on)
            })
            .buffered(APPENDS_IN_FLIGHT);
        // What is on its way when one has failed is of no interest.
        let until_failed = stream::unfold(Some(Box::pin(answers)), |answers| async move {
            let mut answers = answers?;
            let (answer, goes_on) = answers.next().await?;
            Some((answer, goes_on.then_some(answers)))
        });
        let until_failed: BoxStream<'s, _> = Box::pin(until_failed);
        Box::pin(async move { Ok(until_failed) })
    }

    async fn vote(
        &mut self,
        request: VoteRequest<Types<R>>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types<R>>, RPCError<Types<R>>> {
        let ask = Ask::Vote(candidacy(&request));
        match self.ask_for(ask, option.soft_ttl(), RPCTypes::Vote).await? {
            Reply::Vote(voted) => Ok(answer(voted)),
            other => Err(self.not_an_answer(&other)),
        }
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<Types<R>>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types<R>>, RPCError<Types<R>>> {
        let ask = Ask::PreVote(candidacy(&request));
        match self.ask_for(ask, option.soft_ttl(), RPCTypes::Vote).await? {
            Reply::PreVote(voted) => Ok(answer(voted)),
            other => Err(self.not_an_answer(&other)),
        }
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<Types<R>>, StreamingError<Types<R>>> {
        let sending = Box::pin(self.send_snapshot(vote, snapshot, option.soft_ttl()));
        match select(Box::pin(cancel), sending).await {
            Either::Left((closed, _)) => Err(closed.into()),
            Either::Right((outcome, _)) => outcome.map_err(StreamingError::from),
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Types<R>>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types<R>>, RPCError<Types<R>>> {
        let vote = *request.from_leader();
        // Whoever has heard of it refuses nobody any more in this term.
        self.lease.end(vote.leader_id.term);
        let (to, last) = (*request.to_node_id(), request.last_log_id().copied());
        let ask = Ask::TransferLeader(Transfer { vote, to, last });
        match self.ask_for(ask, option.soft_ttl(), RPCTypes::TransferLeader).await? {
            Reply::TransferLeader(Transferred::Done) => Ok(Ok(())),
            Reply::TransferLeader(Transferred::VoteChanged { expected, actual }) => {
                Ok(Err(TransferLeaderError::VoteChanged { expected, actual }))
            }
            Reply::TransferLeader(Transferred::NotFlushed { expected, actual }) => {
                Ok(Err(TransferLeaderError::LogNotFlushed { expected, actual }))
            }
            other => Err(self.not_an_answer(&other)),
        }
    }

    fn backoff(&self) -> Option<Backoff> {
        let double = |delay: &Duration| Some((*delay * 2).min(BACKOFF_MAX));
        Some(Backoff::new(std::iter::successors(Some(BACKOFF_MIN), double)))
    }
}

fn candidacy<R: AsyncRuntime>(request: &VoteRequest<Types<R>>) -> Candidacy {
    let VoteRequest { vote, last_log_id, leadership_transfer } = request;
    Candidacy { vote: *vote, last: *last_log_id, is_transfer: *leadership_transfer }
}

fn answer<R: AsyncRuntime>(voted: Voted) -> VoteResponse<Types<R>> {
    VoteResponse::new(voted.vote, voted.last, voted.is_granted)
}

#[cfg(test)]
mod tests;
