//! What other nodes ask of this one: each request of [`rpc`](super::rpc) is given to openraft, or refused,
//! and gets its reply.
//!
//! # Who votes
//!
//! A leader's lease (I-13) rests on its voters: who has taken an Append refuses others for one lease, *also when it
//! was restarted meanwhile*. openraft (0.10.0-alpha.37) does not see to that, as read in its source:
//!
//! - The lease is kept in memory only. A voter that has started grants the first vote that it is asked for
//!   (`Leased::without_last_update`, of which `is_expired` is always true, in `Engine::handle_vote_req`), and
//!   would grant a pre-vote.
//! - It also *campaigns* at its first tick, without waiting for an election timeout, for the same reason
//!   (`RaftCore::handle_tick_election`), and then its vote for itself counts as anybody's.
//! - A hand-over of leadership makes every node that hears of it refuse nobody any more *until the term ends*,
//!   also when the hand-over comes to nothing (`Leased::disable_lease`); and a candidate that it is handed to asks for
//!   votes that are given in spite of a lease, whenever that request arrives.
//!
//! So, for one [lease](super::config::RaftTimes::voter_lease) after the start, [`Voting`] refuses votes, pre-votes
//! and hand-overs, and openraft must not campaign: [`raft_config`](super::config::raft_config) switches that off,
//! and whoever starts openraft switches it on when that time is over (`raft.runtime_config().elect(true)`),
//! and when the node may vote at all. A leader that hands over ends its lease for the rest of the term before it
//! tells anybody, whether or not it goes on to lead ([`Lease::end`](crate::lease::Lease::end), which the network
//! calls as well).

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, TransferLeaderError, TransferLeaderRequest,
    VoteRequest, VoteResponse,
};
use openraft::storage::RaftStateMachine;
use openraft::{AsyncRuntime, Raft};
use ringwal_replication::node_id::NodeId;

use super::rpc::{
    Append, Appended, Ask, Candidacy, Chunk, Refusal, Reply, Request, Snapshot, SnapshotMeta,
    SnapshotTaken, Transfer, Transferred, Voted,
};
use super::types::{Types, Vote};

/// What a node is asked to do for Raft.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Duty {
    /// Give its vote, or say that it would.
    Vote,
    /// Let another node lead, or campaign at once.
    Transfer,
    /// Take entries, which count for a majority.
    Append,
    /// Take a part of a snapshot, or install it.
    Snapshot,
}

/// Whether this node does its duties now: not with a blank disk or one that was cut by a repair, until it has been
/// admitted again (I-15); not when it is poisoned; no votes for one lease after its start; nothing
/// while it installs a snapshot.
pub trait Voting: Send + Sync + 'static {
    /// Why it does not do this now, for whoever asks; `None` when it does. Asked for each request, in Raft's thread.
    fn refuses(&self, duty: Duty) -> Option<String>;
}

impl<V: Voting + ?Sized> Voting for Arc<V> {
    fn refuses(&self, duty: Duty) -> Option<String> {
        (**self).refuses(duty)
    }
}

/// What becomes of a request.
#[derive(Clone, Eq, PartialEq, Debug)]
pub enum Served {
    /// The bytes of the reply.
    Reply(Bytes),
    /// A request of the store, which the caller replies to with [`Reply::Store`].
    Store(Bytes),
}

/// Serves one node's openraft to the others. Any number of requests at once; what comes from one node is
/// started in the order in which it came, or pipelined Appends conflict.
pub struct Serving<R, SM, V>
where
    R: AsyncRuntime,
    SM: RaftStateMachine<Types<R>>,
{
    raft: Raft<Types<R>, SM>,
    engine: [u8; 16],
    voting: V,
    snapshot: Mutex<Option<Collected>>,
}

/// The parts of a snapshot that have come. One at a time, whoever sends it, of at most
/// [`SNAPSHOT_BYTES_MAX`](super::rpc::SNAPSHOT_BYTES_MAX).
struct Collected {
    from: NodeId,
    vote: Vote,
    total: u64,
    checksum: u32,
    meta: SnapshotMeta,
    bytes: BytesMut,
}

impl<R, SM, V> Serving<R, SM, V>
where
    R: AsyncRuntime,
    SM: RaftStateMachine<Types<R>, SnapshotData = Bytes>,
    V: Voting,
{
    /// Of the node with this engine.
    pub fn new(raft: Raft<Types<R>, SM>, engine: [u8; 16], voting: V) -> Self {
        Self { raft, engine, voting, snapshot: Mutex::new(None) }
    }

    /// Serves a request of a node.
    pub async fn serve(&self, from: NodeId, bytes: Bytes) -> Served {
        let reply = match Request::decode(bytes) {
            Ok(Request { to_engine, ask }) => match (self.is_meant(to_engine, &ask), ask) {
                (true, Ask::Store(store)) => return Served::Store(store),
                (true, _) if from.is_client() => {
                    let what = "only nodes take part in Raft".to_owned();
                    Err(Refusal::NotUnderstood(what))
                }
                (true, ask) => self.reply(from, ask).await,
                (false, _) => Err(Refusal::OtherDisk { engine: self.engine }),
            },
            Err(error) => Err(Refusal::NotUnderstood(error.to_string())),
        };
        Served::Reply(reply.unwrap_or_else(Reply::Refused).encode().into())
    }

    /// Whether this engine is meant. Raft always says which; the store may ask whichever it is.
    fn is_meant(&self, to_engine: [u8; 16], ask: &Ask) -> bool {
        to_engine == self.engine || (matches!(ask, Ask::Store(_)) && to_engine == [0; 16])
    }

    async fn reply(&self, from: NodeId, ask: Ask) -> Result<Reply, Refusal> {
        match ask {
            Ask::Append(append) => {
                self.check(Duty::Append, from, append.vote)?;
                self.append(append).await.map(Reply::Append)
            }
            Ask::Vote(candidacy) => {
                self.check(Duty::Vote, from, candidacy.vote)?;
                let voted = self.raft.vote(vote_request(candidacy)).await;
                voted.map(|voted| Reply::Vote(answer(voted))).map_err(ended)
            }
            Ask::PreVote(candidacy) => {
                self.check(Duty::Vote, from, candidacy.vote)?;
                let voted = self.raft.pre_vote(vote_request(candidacy)).await;
                voted.map(|voted| Reply::PreVote(answer(voted))).map_err(ended)
            }
            Ask::TransferLeader(transfer) => {
                self.check(Duty::Transfer, from, transfer.vote)?;
                self.transfer(transfer).await.map(Reply::TransferLeader)
            }
            Ask::Snapshot(chunk) => {
                self.check(Duty::Snapshot, from, chunk.vote)?;
                self.snapshot(from, chunk).await.map(Reply::Snapshot)
            }
            // The caller's; see `serve`.
            Ask::Store(_) => Err(Refusal::NotReady("no store replies here".to_owned())),
        }
    }

    /// Whether it does that now, for somebody who speaks for himself.
    fn check(&self, duty: Duty, from: NodeId, vote: Vote) -> Result<(), Refusal> {
        let of = vote.leader_id.voted_for;
        if of != from.get() {
            let what = format!("node {from} speaks for node {of}");
            return Err(Refusal::NotUnderstood(what));
        }
        match (self.voting.refuses(duty), duty) {
            (None, _) => Ok(()),
            (Some(why), Duty::Vote) => Err(Refusal::NoVote(why)),
            (Some(why), _) => Err(Refusal::NotReady(why)),
        }
    }

    async fn append(&self, append: Append) -> Result<Appended, Refusal> {
        let Append { vote, previous, entries, committed } = append;
        let request =
            AppendEntriesRequest { vote, prev_log_id: previous, entries, leader_commit: committed };
        match self.raft.append_entries(request).await.map_err(ended)? {
            AppendEntriesResponse::Success => Ok(Appended::Success),
            AppendEntriesResponse::PartialSuccess(end) => Ok(Appended::InPart(end)),
            AppendEntriesResponse::Conflict => Ok(Appended::Conflict),
            AppendEntriesResponse::HigherVote(vote) => Ok(Appended::HigherVote(vote)),
        }
    }

    async fn transfer(&self, transfer: Transfer) -> Result<Transferred, Refusal> {
        let Transfer { vote, to, last } = transfer;
        let request = TransferLeaderRequest::new(vote, to, last);
        match self.raft.handle_transfer_leader(request).await.map_err(ended)? {
            Ok(()) => Ok(Transferred::Done),
            Err(TransferLeaderError::VoteChanged { expected, actual }) => {
                Ok(Transferred::VoteChanged { expected, actual })
            }
            Err(TransferLeaderError::LogNotFlushed { expected, actual }) => {
                Ok(Transferred::NotFlushed { expected, actual })
            }
        }
    }

    async fn snapshot(&self, from: NodeId, chunk: Chunk) -> Result<SnapshotTaken, Refusal> {
        let (end, is_last) = (chunk.end(), chunk.is_last());
        collect(&mut self.lock(), from, chunk)?;
        if !is_last {
            return Ok(SnapshotTaken::More(end));
        }
        let Some(whole) = self.lock().take() else {
            return Err(begin_anew());
        };
        let (vote, snapshot) = whole.verified()?;
        let answer = self.raft.install_full_snapshot(vote, snapshot).await.map_err(ended)?;
        Ok(SnapshotTaken::Installed(answer.vote))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Collected>> {
        self.snapshot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Adds a part. A first one begins anew, unless a later leader's snapshot is coming.
fn collect(slot: &mut Option<Collected>, from: NodeId, chunk: Chunk) -> Result<(), Refusal> {
    let Chunk { vote, total, checksum, offset, meta, bytes } = chunk;
    if let Some(meta) = meta {
        if slot.as_ref().is_some_and(|coming| vote < coming.vote) {
            return Err(Refusal::NotReady("a later leader sends a snapshot".to_owned()));
        }
        let bytes = BytesMut::from(&bytes[..]);
        *slot = Some(Collected { from, vote, total, checksum, meta, bytes });
        return Ok(());
    }
    let goes_on = |coming: &&mut Collected| {
        (coming.from, coming.vote, coming.total, coming.checksum) == (from, vote, total, checksum)
            && coming.bytes.len() as u64 == offset
    };
    let coming = slot.as_mut().filter(goes_on).ok_or_else(begin_anew)?;
    coming.bytes.extend_from_slice(&bytes);
    Ok(())
}

impl Collected {
    /// The snapshot, when it is what was sent. openraft panics at one that no leader of that vote can have.
    fn verified(self) -> Result<(Vote, Snapshot), Refusal> {
        let snapshot = self.bytes.freeze();
        let found = crc32c::crc32c(&snapshot);
        if found != self.checksum {
            let expected = self.checksum;
            return Err(Refusal::NotReady(format!(
                "the snapshot came with checksum {found:08x} instead of {expected:08x}; send it again"
            )));
        }
        let last = self.meta.last_log_id;
        if last.is_some_and(|last| last.leader_id.term > self.vote.leader_id.term) {
            let what = format!("a snapshot up to {last:?} of the leader of vote {}", self.vote);
            return Err(Refusal::NotUnderstood(what));
        }
        Ok((self.vote, Snapshot { meta: self.meta, snapshot }))
    }
}

fn begin_anew() -> Refusal {
    Refusal::NotReady("this part of a snapshot does not go on where it was; begin anew".to_owned())
}

/// openraft does not answer any more.
fn ended(error: impl fmt::Display) -> Refusal {
    Refusal::NotReady(error.to_string())
}

fn vote_request<R: AsyncRuntime>(candidacy: Candidacy) -> VoteRequest<Types<R>> {
    let Candidacy { vote, last: last_log_id, is_transfer: leadership_transfer } = candidacy;
    VoteRequest { vote, last_log_id, leadership_transfer }
}

fn answer<R: AsyncRuntime>(voted: VoteResponse<Types<R>>) -> Voted {
    let VoteResponse { vote, vote_granted: is_granted, last_log_id: last } = voted;
    Voted { vote, is_granted, last }
}

#[cfg(test)]
mod tests;
