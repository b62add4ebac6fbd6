//! A node's part as leader: what it appends under its lease, and its sessions with followers.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use ringwal_engine::{
    Append, AppendError, CommitError, FrameWalk, SealedFrames, Shard, StreamId, Subscription,
};
use ringwal_raft_fallback::simulating::{LedError, METADATA_STREAM};
use ringwal_replication::config::Member;
use ringwal_replication::history::Held;
use ringwal_replication::leader::{Leader, Limits, ReadOutcome};
use ringwal_replication::node_id::NodeId;
use ringwal_replication::progress::Voters;
use ringwal_replication::wire::{
    Answer, ConnectionKind, Hello, Message, PROTOCOL_VERSION, PROTOCOL_VERSION_MIN, Refusal,
};
use tokio::sync::oneshot;

use super::following::{HEARTBEAT_NS, SILENCE_NS};
use super::links::Connection;
use super::place::{CLUSTER, Place};

/// Records that wait for the shard.
const QUEUE_MAX: usize = 64;
/// Batches that wait to be handed on.
const SEALED_MAX: usize = 16;
/// Slices that are sent to a follower in a turn.
const SLICES_PER_TURN: usize = 16;
/// Between two attempts to reach a follower.
const AGAIN_NS: u64 = 40_000_000;
/// Between two looks at what is durable.
const LOOK_NS: u64 = 500_000_000;

/// Where the offset of a record goes.
type Way = oneshot::Sender<Result<u64, LedError>>;

/// See the module.
pub struct Leading {
    pub epoch: u64,
    core: Leader,
    subscription: Subscription,
    walk: FrameWalk,
    followers: Vec<Follower>,
    /// Of each stream that enough followers have more of than was told to be committed: how much.
    risen: BTreeMap<StreamId, u64>,
    queue: VecDeque<(Bytes, Way)>,
    waiting: VecDeque<(Append, Way)>,
    lease_until_ns: u64,
    looked_ns: u64,
}

struct Follower {
    member: Member,
    /// Its number in the core.
    number: usize,
    link: Link,
}

enum Link {
    /// Until it is tried again.
    None {
        again_ns: u64,
    },
    Dialling {
        connection: Arc<Connection>,
        since_ns: u64,
    },
    Session {
        connection: Arc<Connection>,
        number: u64,
        heard_ns: u64,
    },
}

impl Leading {
    pub fn new(
        place: &Place,
        shard: &mut Shard,
        epoch: u64,
        held: BTreeMap<StreamId, Held>,
        members: &[Member],
        voters: &[BTreeSet<NodeId>],
    ) -> Self {
        let subscription = shard.subscribe(SEALED_MAX);
        shard.set_epoch(epoch);
        let limits = Limits {
            window_bytes: 64 << 10,
            window_buffers: 6,
            read_bytes: 16 << 10,
            heartbeat_ns: HEARTBEAT_NS,
        };
        let streams = held.into_iter().map(|(stream, held)| (stream, 0, held));
        let mut leading = Self {
            epoch,
            core: Leader::new(epoch, 0, limits, streams).driven(),
            subscription,
            walk: shard.walk_frames(),
            followers: Vec::new(),
            risen: BTreeMap::new(),
            queue: VecDeque::new(),
            waiting: VecDeque::new(),
            lease_until_ns: 0,
            looked_ns: 0,
        };
        leading.set_members(place, members, voters);
        leading
    }

    pub fn set_members(&mut self, place: &Place, members: &[Member], voters: &[BTreeSet<NodeId>]) {
        let me = place.id();
        let is_wanted = |member: &Member| member.node != me && members.contains(member);
        let (left, gone): (Vec<_>, Vec<_>) = std::mem::take(&mut self.followers)
            .into_iter()
            .partition(|follower| is_wanted(&follower.member));
        self.followers = left;
        for follower in gone {
            self.core.remove_follower(follower.number);
            follower.link.break_it();
        }
        for member in members.iter().filter(|member| member.node != me) {
            if self.followers.iter().any(|follower| follower.member == *member) {
                continue;
            }
            let number = self.core.add_follower();
            let link = Link::None { again_ns: 0 };
            self.followers.push(Follower { member: member.clone(), number, link });
        }
        let number = |node: &NodeId| {
            let follower = self.followers.iter().find(|follower| follower.member.node == *node);
            follower.map(|follower| follower.number)
        };
        let voters = voters.iter().map(|set| {
            let followers = set.iter().filter_map(number).collect();
            Voters::new(set.len(), set.contains(&me), followers)
        });
        self.core.set_voters(voters.collect());
    }

    pub fn set_lease(&mut self, until_ns: u64) {
        self.lease_until_ns = until_ns;
    }

    pub fn has_lease(&self, now_ns: u64) -> bool {
        now_ns < self.lease_until_ns
    }

    pub fn has_room(&self) -> bool {
        self.queue.len() < QUEUE_MAX
    }

    /// Takes a record for the next batch.
    pub fn push(&mut self, record: &[u8]) -> oneshot::Receiver<Result<u64, LedError>> {
        let (way, outcome) = oneshot::channel();
        self.queue.push_back((Bytes::copy_from_slice(record), way));
        outcome
    }

    /// Whether nothing is in flight.
    pub fn is_drained(&self) -> bool {
        self.queue.is_empty() && self.waiting.is_empty()
    }

    /// A stream is committed so far, whoever says it.
    pub fn handle_committed(&mut self, stream: StreamId, end: u64) {
        self.core.tell_committed(&[(stream, end)]);
    }

    /// One turn; an error ends the leadership.
    pub fn turn(
        &mut self,
        place: &Arc<Place>,
        shard: &mut Shard,
        committed: &mut BTreeMap<StreamId, u64>,
        now_ns: u64,
    ) -> Result<(), String> {
        while let Poll::Ready(Some(sealed)) = self.subscription.try_next() {
            match sealed {
                SealedFrames::Batch { shard, frames } => self.core.handle_sealed(shard, &frames),
                SealedFrames::Lagged { shard } => self.core.handle_lagged(shard),
            }
        }
        self.give(shard, now_ns);
        self.settle(place, now_ns);
        for follower in 0..self.followers.len() {
            self.serve(place, follower, now_ns)?;
        }
        self.raise(place, shard, committed);
        if now_ns.saturating_sub(self.looked_ns) > LOOK_NS {
            self.looked_ns = now_ns;
            for summary in shard.streams() {
                self.core.handle_durable_end(summary.stream, 0, summary.end);
            }
        }
        self.core.handle_time(now_ns);
        while let Some(request) = self.core.poll_read() {
            let piece = self.walk.next_piece(&request.wanted, request.bytes_max);
            self.core.handle_read(&request, ReadOutcome::from(piece));
        }
        self.send(place, now_ns);
        Ok(())
    }

    /// Gives the shard what waits for it: not without the lease.
    fn give(&mut self, shard: &mut Shard, now_ns: u64) {
        let has_lease = self.has_lease(now_ns);
        while let Some((record, way)) = self.queue.pop_front() {
            if !has_lease {
                let _ = way.send(Err(LedError::NotTaken("the lease has lapsed".to_owned())));
                continue;
            }
            match shard.append(METADATA_STREAM, &record) {
                Ok(token) => self.waiting.push_back((token, way)),
                Err(AppendError::Full { .. }) => return self.queue.push_front((record, way)),
                Err(error) => drop(way.send(Err(LedError::NotTaken(error.to_string())))),
            }
        }
    }

    /// What is durable is answered: not without the lease (I-13).
    fn settle(&mut self, place: &Place, now_ns: u64) {
        let has_lease = self.has_lease(now_ns);
        while let Some(outcome) = self.waiting.front().and_then(|(token, _)| token.try_receipt()) {
            let (_, way) = self.waiting.pop_front().expect("it was looked at");
            let outcome = match outcome {
                Ok(receipt) if has_lease => {
                    place.cluster.oracle(|oracle| oracle.note_fast(place.number, self.epoch));
                    Ok(receipt.offset())
                }
                Ok(_) => Err(LedError::Unknown("the lease has lapsed".to_owned())),
                Err(error @ (CommitError::NotWritten(_) | CommitError::Refused(_))) => {
                    Err(LedError::NotTaken(error.to_string()))
                }
                Err(error) => Err(LedError::Unknown(error.to_string())),
            };
            // Nobody may wait any more.
            let _ = way.send(outcome);
        }
    }

    fn serve(&mut self, place: &Arc<Place>, index: usize, now_ns: u64) -> Result<(), String> {
        let Follower { member, number: follower, link } = &mut self.followers[index];
        let other = (member.node.get() - 1) as usize;
        match link {
            Link::None { again_ns } if *again_ns > now_ns => {}
            Link::None { .. } => {
                let connection = Connection::new(place.cluster.links.clone(), place.number, other);
                let hello = Hello {
                    versions: (PROTOCOL_VERSION_MIN, PROTOCOL_VERSION),
                    kind: ConnectionKind::Frames,
                    cluster: CLUSTER,
                    from: place.id(),
                    to: member.node,
                    run: place.run_id,
                    engine: place.engine(),
                    epoch: self.epoch,
                };
                place.cluster.dial(connection.clone(), hello);
                *link = Link::Dialling { connection, since_ns: now_ns };
            }
            Link::Dialling { connection, since_ns } => {
                if let Some(answer) = connection.take(false) {
                    let answer = Answer::decode(&answer).expect("the connection damages nothing");
                    match answer.refused {
                        None => {
                            let number = self.core.handle_connected(*follower, true, now_ns);
                            let connection = connection.clone();
                            *link = Link::Session { connection, number, heard_ns: now_ns };
                        }
                        Some((refusal, why)) => {
                            *link = Link::None { again_ns: now_ns + AGAIN_NS };
                            if refusal == Refusal::Epoch && answer.epoch >= self.epoch {
                                return Err(why);
                            }
                        }
                    }
                } else if connection.is_broken() || now_ns.saturating_sub(*since_ns) > SILENCE_NS {
                    connection.break_it();
                    *link = Link::None { again_ns: now_ns + AGAIN_NS };
                }
            }
            Link::Session { connection, number, heard_ns } => {
                let mut is_over = connection.is_broken();
                while let Some(item) = connection.take(false) {
                    *heard_ns = now_ns;
                    let message = Message::decode(&item).expect("the connection damages nothing");
                    if let Message::Leaving { epoch, reason, .. } = message {
                        if epoch > self.epoch {
                            return Err(reason);
                        }
                        is_over = true;
                        continue;
                    }
                    let outcome = self.core.handle_message(*follower, *number, message, now_ns);
                    outcome.unwrap_or_else(|violation| panic!("{violation}"));
                }
                if is_over || now_ns.saturating_sub(*heard_ns) > SILENCE_NS {
                    connection.break_it();
                    self.core.handle_disconnected(*follower, *number);
                    *link = Link::None { again_ns: now_ns + AGAIN_NS };
                }
            }
        }
        Ok(())
    }

    fn raise(&mut self, place: &Place, shard: &Shard, committed: &mut BTreeMap<StreamId, u64>) {
        self.risen.extend(std::iter::from_fn(|| self.core.poll_enough()));
        let mut told = Vec::new();
        self.risen.retain(|stream, enough| {
            let end = shard.end(*stream).min(*enough);
            let known = committed.entry(*stream).or_default();
            if end > *known {
                *known = end;
                told.push((*stream, end));
            }
            end < *enough
        });
        self.core.tell_committed(&told);
        if let Some((_, end)) = told.iter().find(|(stream, _)| *stream == METADATA_STREAM) {
            place.cluster.oracle(|oracle| oracle.note_committed(shard, *end));
        }
    }

    fn send(&mut self, place: &Place, now_ns: u64) {
        for follower in &self.followers {
            let Link::Session { connection, number, .. } = &follower.link else { continue };
            let slices = self.core.poll_send(follower.number, SLICES_PER_TURN, now_ns);
            for slice in &slices {
                let (cluster, to) = (place.cluster.clone(), connection.follower);
                // What is on its way keeps no buffer of the pool.
                connection.send(true, Bytes::copy_from_slice(slice), move || cluster.rouse(to));
            }
            if !slices.is_empty() {
                self.core.handle_sent(follower.number, *number);
            }
        }
    }

    pub fn break_sessions(&self) {
        self.followers.iter().for_each(|follower| follower.link.break_it());
    }

    /// It leads no more: whoever waits does not know.
    pub fn end(self, why: &str) {
        self.break_sessions();
        for (_, way) in self.queue {
            let _ = way.send(Err(LedError::NotTaken(why.to_owned())));
        }
        for (_, way) in self.waiting {
            let _ = way.send(Err(LedError::Unknown(why.to_owned())));
        }
    }
}

impl Link {
    fn break_it(&self) {
        match self {
            Self::None { .. } => {}
            Self::Dialling { connection, .. } | Self::Session { connection, .. } => {
                connection.break_it();
            }
        }
    }
}
