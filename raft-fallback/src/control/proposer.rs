//! `Extend` entries: each one goes on where the one before ends. The first one of an epoch, and the first
//! after the fast path was closed, carries everything behind the committed watermark as well, so that a
//! committed entry never hangs above a hole.
//!
//! Some are under way at a time. openraft may refuse one and take the next in the same term (while a majority
//! does not answer, or while it hands the leadership over): that one hangs above a hole. So each but the first
//! says that it goes on where the one before ends, and does nothing on any node when that one has done nothing.

use std::collections::VecDeque;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesOrdered;
use openraft::AsyncRuntime;
use openraft::impls::OneshotResponder;
use ringwal_engine::mutants::{self, Mutant};

use super::{NotPlaced, Placed, Proposal, RaftHandle};
use crate::raft::{Effect, Payload, Types};
use crate::replica::{Led as _, METADATA_STREAM, Replica};
use crate::store::peers::Peers;

/// Entries that are proposed and not applied.
const IN_FLIGHT_MAX: usize = 2;
/// An entry's header, and the length before each record.
const ENTRY_HEADER_BYTES: usize = 128;
const RECORD_HEADER_BYTES: usize = 4;

/// Proposes in one epoch.
pub(super) struct Proposer<R, N: Replica, P>
where
    R: AsyncRuntime,
    P: Peers,
{
    raft: RaftHandle<R, N, P>,
    epoch: u64,
    entry_bytes_max: usize,
    /// Where the next entry goes on; none while the fast path is open, or nothing was proposed yet.
    next: Option<u64>,
    /// The next entry goes on where one before it ends.
    continues: bool,
    in_flight: FuturesOrdered<BoxFuture<'static, Outcome>>,
}

/// What became of an entry: whose records are in it, from which offset on.
struct Outcome {
    first: u64,
    proposals: Vec<Proposal>,
    effect: Result<Effect, String>,
}

impl<R: AsyncRuntime, N: Replica, P: Peers> Proposer<R, N, P> {
    pub(super) fn new(raft: RaftHandle<R, N, P>, epoch: u64, entry_bytes_max: usize) -> Self {
        let in_flight = FuturesOrdered::new();
        Self { raft, epoch, entry_bytes_max, next: None, continues: false, in_flight }
    }

    /// Whether nothing is under way.
    pub(super) fn is_empty(&self) -> bool {
        self.in_flight.is_empty()
    }

    pub(super) fn has_room(&self) -> bool {
        self.in_flight.len() < IN_FLIGHT_MAX
    }

    /// The stream goes on without it: what is proposed next looks where it is.
    pub(super) fn reset(&mut self) {
        assert!(self.is_empty(), "what is proposed was waited for");
        (self.next, self.continues) = (None, false);
    }

    /// Proposes records, behind the tail of the stream that a majority may lack.
    pub(super) async fn propose(
        &mut self,
        replica: &N,
        led: &N::Led,
        mut proposals: VecDeque<Proposal>,
    ) -> Result<(), String> {
        let mut next = match self.next {
            Some(next) => next,
            None => self.propose_tail(replica, led).await?,
        };
        while !proposals.is_empty() {
            let mut bytes = ENTRY_HEADER_BYTES;
            let fits = |proposal: &Proposal| {
                bytes += RECORD_HEADER_BYTES + proposal.record.len();
                bytes <= self.entry_bytes_max
            };
            let count = proposals.iter().map(fits).take_while(|fits| *fits).count();
            if count == 0 {
                let (long, max) = (proposals.pop_front(), self.entry_bytes_max);
                let why = format!(
                    "a record that is no entry of Raft's log, which has {max} bytes at most"
                );
                long.into_iter().for_each(|proposal| super::refuse(proposal, &why));
                continue;
            }
            let taken: Vec<Proposal> = proposals.drain(..count).collect();
            let records = taken.iter().map(|proposal| proposal.record.clone()).collect();
            self.propose_entry(next, records, taken).await?;
            next += count as u64;
            self.next = Some(next);
        }
        Ok(())
    }

    /// Everything behind the watermark, in entries of its own; where it ends.
    async fn propose_tail(&mut self, replica: &N, led: &N::Led) -> Result<u64, String> {
        let end = replica.metadata_end();
        let mut next = match mutants::is(Mutant::ExtendWithoutTail) {
            false => led.committed_end(METADATA_STREAM).min(end),
            true => end,
        };
        while next < end {
            let records = replica.read(next..end).await?;
            let mut bytes = ENTRY_HEADER_BYTES;
            let fits = |record: &Bytes| {
                bytes += RECORD_HEADER_BYTES + record.len();
                bytes <= self.entry_bytes_max
            };
            let count = records.iter().map(fits).take_while(|fits| *fits).count().max(1);
            if records.is_empty() {
                return Err(format!(
                    "the metadata stream has nothing at {next}, below its end {end}"
                ));
            }
            self.propose_entry(next, records[..count].to_vec(), Vec::new()).await?;
            next += count as u64;
        }
        self.next = Some(next);
        Ok(next)
    }

    async fn propose_entry(
        &mut self,
        base: u64,
        records: Vec<Bytes>,
        proposals: Vec<Proposal>,
    ) -> Result<(), String> {
        while !self.has_room() {
            self.next_done().await?;
        }
        let continues = self.continues;
        let payload = Payload::Extend { epoch: self.epoch, base, continues, records };
        let (responder, written) = OneshotResponder::<Types<R>, _>::new_pair();
        let given = self.raft.client_write_ff(payload, Some(responder)).await;
        if let Err(error) = given {
            return Err(error.to_string());
        }
        self.continues = true;
        self.in_flight.push_back(Box::pin(async move {
            let effect = match written.await {
                Ok(Ok(written)) => Ok(written.data),
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err("Raft has ended".to_owned()),
            };
            Outcome { first: base, proposals, effect }
        }));
        Ok(())
    }

    /// The next entry is applied, or is not: those whose records are in it learn where they are. An error
    /// ends the leadership: of what is proposed behind it nothing counts. Returns how many there were.
    pub(super) async fn next_done(&mut self) -> Result<usize, String> {
        let Some(Outcome { first, proposals, effect }) = self.in_flight.next().await else {
            return Ok(0);
        };
        let (epoch, count) = (self.epoch, proposals.len());
        for (proposal, offset) in proposals.into_iter().zip(first..) {
            let _ = proposal.placed.send(match &effect {
                Ok(Effect::Done) => Ok(Placed { epoch, offset, is_committed: true }),
                Ok(Effect::Nothing) => {
                    Err(NotPlaced::NotDone("its entry does not count: an entry before it was lost, or another epoch had begun".to_owned()))
                }
                Err(why) => Err(NotPlaced::Unknown(why.clone())),
            });
        }
        match effect {
            Ok(Effect::Done) => Ok(count),
            Ok(Effect::Nothing) => {
                Err("an entry did not count: another epoch has begun, or one before it was lost"
                    .to_owned())
            }
            Err(why) => Err(why),
        }
    }
}
