//! What Raft applies: each entry has its effect on the streams of this node, in the order of the log.
//!
//! | entry | effect |
//! | --- | --- |
//! | `EpochStart` | counts when its epoch is the term of its entry and greater than what has begun: cuts by I-17, then this node leads or follows in it |
//! | `Extend` | counts when its epoch is the term of its entry and the one that has begun, and, if it says that it goes on where the one before ends, when that one has counted: what is lacking below its base is fetched, what is lacking of its records is added; nothing is cut |
//! | membership | whose majorities count |
//!
//! Nothing of it is kept: after a restart the log is applied again from its beginning, or from the
//! base that took the place of that ([`Base`]). That changes nothing: an `EpochStart` that has begun, durably, is passed
//! over; so is an `Extend` of another epoch than that, and of one of the same epoch everything is here already,
//! or is added again. An entry is applied when its effect is durable, so no index is ahead of its effect.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::watch;
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use openraft::alias::{SnapshotMetaOf, SnapshotOf};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::type_config::TypeConfigExt as _;
use openraft::{AsyncRuntime, EntryPayload, OptionalSend};
use ringwal_engine::{EpochStart, StreamId};
use ringwal_replication::config::Member;
use ringwal_replication::node_id::NodeId;
use ringwal_replication::promise::Promise;

use crate::base::{Base, Chain, StreamBase};
use crate::raft::{Effect, Entry, LogId, Payload, StoredMembership, Types};
use crate::replica::{AddError, Begun, METADATA_STREAM, Replica};
use crate::store::peers::Peers;
use crate::store::wire::{Answer, Ask};

/// Between two attempts to bring what is missing below an `Extend`.
const AGAIN: Duration = Duration::from_millis(50);
/// Entries that are applied together, and the bytes of their records.
const TOGETHER_MAX: usize = 64;
const BYTES_MAX: usize = 4 << 20;
/// How long a node is asked how far it is.
const ASK_LIMIT: Duration = Duration::from_secs(2);

/// How far Raft's log is applied here.
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) struct AppliedLog {
    pub(crate) last: Option<LogId>,
    pub(crate) membership: Arc<StoredMembership>,
}

impl AppliedLog {
    /// The first entry that a leader writes is its blank one: then all before it is applied as well.
    pub(crate) fn has_applied_of_term(&self, term: u64) -> bool {
        self.last.is_some_and(|last| last.leader_id.term >= term)
    }

    pub(crate) fn has_applied(&self, index: u64) -> bool {
        self.last.is_some_and(|last| last.index >= index)
    }
}

/// What others watch of it.
#[derive(Debug)]
pub(crate) struct Watched<L> {
    pub(crate) applied: watch::Receiver<AppliedLog>,
    /// This node's leadership, when an epoch of its own has begun last.
    pub(crate) led: watch::Receiver<Option<L>>,
}

/// See the module.
pub(crate) struct Machine<R, N: Replica, P> {
    replica: N,
    peers: P,
    applied: watch::Sender<AppliedLog>,
    led: watch::Sender<Option<N::Led>>,
    /// Where an epoch starts, as its entry or the base said: of those that have been applied, the last that has begun.
    starts: Vec<(StreamId, u64)>,
    /// Which one; 0 for none. While the log is applied again it is less than what has begun, durably.
    started: u64,
    /// End of what entries have added to the metadata stream: it is committed.
    extended: u64,
    /// Where the last `Extend` of the epoch that started last ends, as the entries alone say.
    chain: Option<Chain>,
    runtime: std::marker::PhantomData<fn() -> R>,
}

impl<R: AsyncRuntime, N: Replica, P: Peers> Machine<R, N, P> {
    /// Goes on behind the base of the log, if there is one.
    pub(crate) fn new(replica: N, peers: P, base: Option<Base>) -> (Self, Watched<N::Led>) {
        let (last, membership) =
            base.as_ref().map(|base| (base.last, Arc::new(base.membership.clone()))).unzip();
        let membership = membership.unwrap_or_default();
        if last.is_some() {
            let engines = engines_of(&membership);
            replica.set_members(members_of(&membership), voters_of(&membership), engines);
        }
        let (applied, see_applied) = watch::channel(AppliedLog { last, membership });
        let extended = base.as_ref().map_or(0, committed_of);
        let starts = base.as_ref().map(|base| base.starts.clone()).unwrap_or_default();
        let started = base.as_ref().map_or(0, begun_epoch);
        let chain = base.as_ref().and_then(|base| base.chain);
        let (led, see_led) = watch::channel(None);
        let runtime = std::marker::PhantomData;
        let machine =
            Self { replica, peers, applied, led, starts, started, extended, chain, runtime };
        (machine, Watched { applied: see_applied, led: see_led })
    }

    /// What an entry does; entries that only go on where it ends may have been joined to it.
    async fn effect(&mut self, log_id: LogId, payload: Payload) -> io::Result<Effect> {
        let term = log_id.leader_id.term;
        match payload {
            Payload::EpochStart { epoch, leader, run, starts } if epoch == term => {
                self.chain = None;
                let promise = Promise { epoch, leader, run };
                let begun = self.replica.begin(promise, starts.clone()).await;
                let begun = begun.map_err(|why| failed(log_id, &why))?;
                // Also of one that had begun before this run: its entry is applied again.
                if self.replica.begun().is_some_and(|begun| begun.epoch == epoch) {
                    (self.starts, self.started) = (starts, epoch);
                }
                let led = match begun {
                    Begun::Before => return Ok(Effect::Nothing),
                    Begun::Following => None,
                    Begun::Leading(led) => Some(led),
                };
                self.led.send_replace(led);
                Ok(Effect::Done)
            }
            // openraft may have refused an entry and taken those behind it: they hang above a hole.
            Payload::Extend { epoch, base, continues: true, .. }
                if self.chain != Some(Chain { epoch, end: base }) =>
            {
                Ok(Effect::Nothing)
            }
            Payload::Extend { epoch, base, records, .. } if epoch == term => {
                self.chain = Some(Chain { epoch, end: base + records.len() as u64 });
                self.extend(epoch, base, records).await.map_err(|why| failed(log_id, &why))
            }
            // Proposed late, in a term of the same node that is not its epoch.
            Payload::EpochStart { .. } | Payload::Extend { .. } => Ok(Effect::Nothing),
        }
    }

    async fn extend(
        &mut self,
        epoch: u64,
        base: u64,
        records: Vec<Bytes>,
    ) -> Result<Effect, String> {
        loop {
            match self.replica.extend(epoch, base, records.clone()).await {
                Ok(()) => {
                    self.extended = self.extended.max(base + records.len() as u64);
                    return Ok(Effect::Done);
                }
                Err(AddError::NotBegun) => return Ok(Effect::Nothing),
                Err(AddError::Failed(why)) => return Err(why),
                Err(AddError::Lacks { end }) => {
                    if !self.fetch_below(epoch, end, base).await {
                        Types::<R>::sleep(AGAIN).await;
                    }
                }
            }
        }
    }

    /// Brings the records of the metadata stream from `end` to `base`, from whoever has begun that epoch:
    /// it has cut what is not of this history. The leader may be dead.
    async fn fetch_below(&self, epoch: u64, end: u64, base: u64) -> bool {
        let membership = self.applied.borrow().membership.clone();
        for member in members_of(&membership) {
            if member.node == self.replica.id() {
                continue;
            }
            let about = self.peers.ask(&member, Ask::About, ASK_LIMIT).await;
            let Ok(Answer::About(about)) = about else { continue };
            // In a later epoch it has cut nothing of that: it is committed with the entry.
            if about.begun.is_none_or(|begun| begun.epoch < epoch) {
                continue;
            }
            match self.replica.fetch(&member, vec![(METADATA_STREAM, end..base)]).await {
                Ok(()) => return true,
                Err(why) => {
                    tracing::info!(node = %member.node, why, "records below an entry of Raft are not there");
                }
            }
        }
        false
    }

    /// Whether this node holds everything from before the present epoch, and has applied its start: only then
    /// its tables say all, and where that epoch starts.
    fn has_starts(&self) -> bool {
        if self.replica.begun().map_or(0, |begun| begun.epoch) != self.started {
            return false;
        }
        let streams = self.replica.standing().streams;
        let ends: BTreeMap<StreamId, u64> =
            streams.iter().map(|held| (held.stream, held.end)).collect();
        let has =
            |(stream, start): &(StreamId, u64)| ends.get(stream).copied().unwrap_or(0) >= *start;
        self.starts.iter().all(has)
    }

    /// What takes the place of the log up to what is applied.
    fn make_base(&self) -> Option<Base> {
        let applied = self.applied.borrow().clone();
        let begun = self.replica.begun();
        let committed: BTreeMap<StreamId, u64> =
            self.replica.committed_ends().into_iter().collect();
        let starts: BTreeMap<StreamId, u64> = self.starts.iter().copied().collect();
        let stream = |(stream, mut epochs): (StreamId, Vec<EpochStart>)| {
            // It begins with its entry, and not with its first record.
            if let Some(begun) = begun {
                let start = starts.get(&stream).copied().unwrap_or(0);
                epochs.retain(|entry| entry.epoch < begun.epoch && entry.start < start);
                epochs.push(EpochStart { epoch: begun.epoch, start });
            }
            let known = committed.get(&stream).copied().unwrap_or(0);
            // What is known of commits may be older than what is applied. Whatever entries of the log have
            // added lies below the start of the present epoch, or is counted.
            let start = epochs.last().map_or(0, |last| last.start);
            let added = if stream == METADATA_STREAM { self.extended } else { 0 };
            StreamBase { stream, committed: known.max(start).max(added), epochs }
        };
        Some(Base {
            last: applied.last?,
            membership: (*applied.membership).clone(),
            begun,
            starts: self.starts.clone(),
            chain: self.chain,
            streams: self.replica.epochs().into_iter().map(stream).collect(),
        })
    }

    /// Takes the place of a part of the log that is nowhere any more: cuts as its epochs would have,
    /// brings what is committed, and only then says that it is applied.
    async fn install(&mut self, base: Base) -> Result<(), String> {
        let (nodes, voters) = (members_of(&base.membership), voters_of(&base.membership));
        self.replica.set_members(nodes.clone(), voters, engines_of(&base.membership));
        if let Some(begun) = base.begun {
            let epochs = base.streams.iter().map(|of| (of.stream, of.epochs.clone())).collect();
            self.replica.begin_known(begun, epochs).await?;
            self.led.send_replace(None);
        }
        loop {
            let held = self.replica.standing().streams;
            let lacking = base.streams.iter().filter_map(|of| {
                let held = held.iter().find(|held| held.stream == of.stream);
                let end = held.map_or(0, |held| held.end);
                (end < of.committed).then_some((of.stream, end..of.committed))
            });
            let lacking: Vec<_> = lacking.collect();
            if lacking.is_empty() {
                break;
            }
            tracing::info!(streams = lacking.len(), "fetching what is committed below a base");
            for member in nodes.iter().filter(|member| member.node != self.replica.id()) {
                let about = self.peers.ask(member, Ask::About, ASK_LIMIT).await;
                let Ok(Answer::About(about)) = about else { continue };
                let has_cut =
                    |begun: Promise| about.begun.is_some_and(|of| of.epoch >= begun.epoch);
                if !base.begun.is_none_or(has_cut) {
                    continue;
                }
                match self.replica.fetch(member, lacking.clone()).await {
                    Ok(()) => break,
                    Err(why) => tracing::info!(node = %member.node, why, "not fetched from there"),
                }
            }
            Types::<R>::sleep(AGAIN).await;
        }
        self.replica.save_base(base.clone()).await?;
        self.starts.clone_from(&base.starts);
        self.started = begun_epoch(&base);
        self.extended = committed_of(&base);
        self.chain = base.chain;
        self.applied.send_modify(|applied| {
            applied.last = Some(base.last);
            applied.membership = Arc::new(base.membership.clone());
        });
        Ok(())
    }

    fn note(&self, log_id: LogId, membership: Option<StoredMembership>) {
        if let Some(membership) = &membership {
            let (nodes, voters) = (members_of(membership), voters_of(membership));
            self.replica.set_members(nodes, voters, engines_of(membership));
        }
        self.applied.send_modify(|applied| {
            applied.last = Some(log_id);
            if let Some(membership) = membership {
                applied.membership = Arc::new(membership);
            }
        });
    }
}

/// Joins an entry to the one before it, if it goes on where that ends and counts exactly when that does.
fn join(payload: &mut Payload, log_id: LogId, next: &Entry) -> bool {
    let Payload::Extend { epoch, base, records, .. } = payload else { return false };
    let EntryPayload::Normal(Payload::Extend {
        epoch: next_epoch,
        base: next_base,
        continues: true,
        records: more,
    }) = &next.payload
    else {
        return false;
    };
    let is_joined = next_epoch == epoch
        && next.log_id.leader_id == log_id.leader_id
        && *next_base == *base + records.len() as u64
        && records.iter().chain(more).map(Bytes::len).sum::<usize>() <= BYTES_MAX;
    if is_joined {
        records.extend_from_slice(more);
    }
    is_joined
}

/// What a base says to be committed of the metadata stream.
fn committed_of(base: &Base) -> u64 {
    let of = base.streams.iter().find(|of| of.stream == METADATA_STREAM);
    of.map_or(0, |of| of.committed)
}

/// The epoch that had begun last; 0 for none.
fn begun_epoch(base: &Base) -> u64 {
    base.begun.map_or(0, |begun| begun.epoch)
}

fn failed(log_id: LogId, why: &str) -> io::Error {
    io::Error::other(format!("applying entry {log_id} of Raft's log: {why}"))
}

/// All nodes of a membership, learners too, in order.
pub(crate) fn members_of(membership: &StoredMembership) -> Vec<Member> {
    let member = |(id, node): (&u64, &crate::raft::RaftNode)| Member {
        node: NodeId::new(*id),
        address: node.address.clone(),
    };
    membership.nodes().map(member).collect()
}

/// With which engine each of them is a member.
pub(crate) fn engines_of(membership: &StoredMembership) -> BTreeMap<NodeId, [u8; 16]> {
    membership.nodes().map(|(id, node)| (NodeId::new(*id), node.engine)).collect()
}

/// The sets whose majorities count: two while it is joint.
pub(crate) fn voters_of(membership: &StoredMembership) -> Vec<BTreeSet<NodeId>> {
    let set = |ids: &BTreeSet<u64>| ids.iter().copied().map(NodeId::new).collect();
    membership.membership().get_joint_config().iter().map(set).collect()
}

impl<R: AsyncRuntime, N: Replica, P: Peers> RaftStateMachine<Types<R>> for Machine<R, N, P> {
    type SnapshotData = Bytes;
    type SnapshotBuilder = Builder<N>;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        let applied = self.applied.borrow();
        Ok((applied.last, (*applied.membership).clone()))
    }

    async fn apply<S>(&mut self, entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<Types<R>>>> + Unpin + OptionalSend,
    {
        // What is there already; entries that go on where others end become durable together with them.
        let mut ready = entries.ready_chunks(TOGETHER_MAX);
        while let Some(chunk) = ready.next().await {
            let mut chunk = chunk.into_iter().peekable();
            while let Some(entry) = chunk.next() {
                let (entry, responder) = entry?;
                let mut applied = vec![(entry.log_id, responder)];
                let (effect, membership) = match entry.payload {
                    EntryPayload::Blank => (Effect::Done, None),
                    EntryPayload::Membership(membership) => {
                        let stored = StoredMembership::new(Some(entry.log_id), membership);
                        (Effect::Done, Some(stored))
                    }
                    EntryPayload::Normal(mut payload) => {
                        while let Some(Ok((next, _))) = chunk.peek()
                            && join(&mut payload, entry.log_id, next)
                            && let Some(Ok((next, responder))) = chunk.next()
                        {
                            applied.push((next.log_id, responder));
                        }
                        (self.effect(entry.log_id, payload).await?, None)
                    }
                };
                let last = applied.last().map_or(entry.log_id, |(log_id, _)| *log_id);
                self.note(last, membership);
                for responder in applied.into_iter().filter_map(|(_, responder)| responder) {
                    responder.send(effect);
                }
            }
        }
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<Builder<N>> {
        if !force && !self.has_starts() {
            return None;
        }
        Some(self.get_snapshot_builder().await)
    }

    async fn get_snapshot_builder(&mut self) -> Builder<N> {
        // Not asked for by what is used of openraft; it would wait here for what is applied behind it.
        while !self.has_starts() {
            Types::<R>::sleep(AGAIN).await;
        }
        Builder { replica: self.replica.clone(), base: self.make_base() }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMetaOf<Types<R>>,
        snapshot: Bytes,
    ) -> io::Result<()> {
        let base = Base::decode(&snapshot).map_err(io::Error::other)?;
        if Some(base.last) != meta.last_log_id {
            let (found, expected) = (base.last, meta.last_log_id);
            let what = format!("a base up to {found} came for one up to {expected:?}");
            return Err(io::Error::other(what));
        }
        self.install(base).await.map_err(io::Error::other)
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<SnapshotOf<Types<R>, Bytes>>> {
        let base = self.replica.load_base().await.map_err(io::Error::other)?;
        base.as_ref().map(snapshot_of::<R>).transpose()
    }
}

fn snapshot_of<R: AsyncRuntime>(base: &Base) -> io::Result<SnapshotOf<Types<R>, Bytes>> {
    let bytes = base.encode().map_err(io::Error::other)?;
    let (last_log_id, last_membership) = (Some(base.last), base.membership.clone());
    let meta = SnapshotMetaOf::<Types<R>> { last_log_id, last_membership };
    Ok(SnapshotOf::<Types<R>, Bytes> { meta, snapshot: bytes.into() })
}

/// Makes a base durable: what it says was taken between two entries.
pub(crate) struct Builder<N> {
    replica: N,
    base: Option<Base>,
}

impl<R: AsyncRuntime, N: Replica> RaftSnapshotBuilder<Types<R>> for Builder<N> {
    type SnapshotData = Bytes;

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf<Types<R>, Bytes>> {
        let base = self.base.take();
        let base = base.ok_or_else(|| io::Error::other("nothing of Raft's log is applied yet"))?;
        let snapshot = snapshot_of::<R>(&base)?;
        self.replica.save_base(base).await.map_err(io::Error::other)?;
        Ok(snapshot)
    }
}

#[cfg(test)]
mod tests;
