//! How a node and its cluster are, as far as the node knows.

use std::sync::atomic::Ordering;
use std::time::Duration;

use ringwal_replication::node_id::NodeId;
use ringwal_replication::promise::Promise;

use super::stats::{CommandCounts, Reason, StoreLatencies};
use crate::control::Leads;
use crate::machine::voters_of;
use crate::metadata::Progress;
use crate::node::Inner;
use crate::replica::product::boottime_ns;
use crate::replica::{METADATA_STREAM, Replica as _};

/// How commands are taken here.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
#[non_exhaustive]
pub enum Mode {
    /// Another node leads: they are forwarded.
    Forwarding,
    /// No leader is known.
    NoLeader,
    /// This node has been elected, and its epoch has not begun.
    Recovering,
    /// This node leads, and they go through Raft, for this reason.
    Raft(Reason),
    /// This node leads, and the fast path is open.
    Fast,
}

impl Mode {
    /// As it is called in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Forwarding => "forwarding",
            Self::NoLeader => "no_leader",
            Self::Recovering => "recovering",
            Self::Raft(_) => "raft",
            Self::Fast => "fast",
        }
    }
}

/// A node of the cluster.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct MemberStatus {
    /// Which.
    pub node: NodeId,
    /// Where it is reached.
    pub address: String,
    /// The disk with which it is a member.
    pub engine: [u8; 16],
    /// Whether it votes; otherwise it learns.
    pub is_voter: bool,
}

/// See [`MetadataStore::status`](crate::MetadataStore::status).
#[derive(Clone, Debug)]
pub struct StoreStatus {
    /// This node.
    pub node: NodeId,
    /// Its disk.
    pub engine: [u8; 16],
    /// Who leads, as far as it knows: none when it has not heard of a leader for two election timeouts.
    pub leader: Option<NodeId>,
    /// Raft's term.
    pub term: u64,
    /// The epoch that has begun here last, and whose it is.
    pub begun: Option<Promise>,
    /// How commands are taken here.
    pub mode: Mode,
    /// Whether the fast path is switched on here.
    pub is_fast_path: bool,
    /// For how many milliseconds this leader's lease lasts; none when it has none.
    pub lease_ms: Option<u64>,
    /// What is applied of the metadata stream.
    pub applied: Progress,
    /// What is durable here of it.
    pub durable: u64,
    /// What is known to be committed of it.
    pub committed: u64,
    /// Who is in the cluster, in order.
    pub members: Vec<MemberStatus>,
    /// Commands since the start.
    pub commands: CommandCounts,
    /// How long they took, since the start.
    pub latencies: StoreLatencies,
    /// Commands that wait for their outcome here.
    pub waiting: usize,
    /// Waits for a topic, a broker, an assignment, or a record to be applied here.
    pub waiting_for_state: usize,
    /// Records of all streams that were cut here since the start, and are kept as orphans.
    pub records_cut: u64,
    /// The newest snapshot that this run made: its end, its bytes, and how long it took, in milliseconds.
    pub snapshot: Option<(u64, u64, u64)>,
    /// Why this node does not vote or lead, if so.
    pub unfit: Option<String>,
    /// Why nothing is applied any more, or for now, if so.
    pub trouble: Option<String>,
}

pub(super) fn status(raft: &Inner) -> StoreStatus {
    let seen = raft.shared.seen.borrow().clone();
    let node = raft.node.id();
    let voters = voters_of(&seen.membership);
    let members = seen.membership.nodes().map(|(id, member)| MemberStatus {
        node: NodeId::new(*id),
        address: member.address.clone(),
        engine: member.engine,
        is_voter: voters.iter().any(|set| set.contains(&NodeId::new(*id))),
    });
    // Raft does not forget who led last.
    let heard_ns = raft.shared.heard_ns.load(Ordering::Relaxed);
    let silence = Duration::from_nanos(boottime_ns().saturating_sub(heard_ns));
    let is_heard = silence < 2 * raft.config.raft.times.election_max;
    let mode = match (seen.leads, seen.leader) {
        (Some(Leads::Recovering), _) => Mode::Recovering,
        (Some(Leads::Raft(why)), _) => Mode::Raft(why),
        (Some(Leads::Fast), _) => Mode::Fast,
        (None, Some(leader)) if leader != node && is_heard => Mode::Forwarding,
        (None, _) => Mode::NoLeader,
    };
    let (_, until) = raft.started.lease.valid_until();
    let left = until.and_then(|until| until.checked_sub(boottime_ns()));
    let stats = raft.node.stats();
    let snapshot = raft.applying.last_snapshot();
    let stopped = raft.metadata.stopped().map(|stopped| stopped.to_string());
    StoreStatus {
        node,
        engine: raft.node.engine().id(),
        leader: seen.leader.filter(|_| mode != Mode::NoLeader),
        term: seen.term,
        begun: raft.node.begun(),
        mode,
        is_fast_path: raft.shared.switch.borrow().is_on,
        lease_ms: left.map(|left| left / 1_000_000),
        applied: raft.metadata.progress(),
        durable: raft.node.engine().stream(METADATA_STREAM).end(),
        committed: stats.committed.get(&METADATA_STREAM).copied().unwrap_or(0),
        members: members.collect(),
        commands: raft.counters.stats(),
        latencies: raft.counters.latencies(raft.applying.latencies()),
        waiting: raft.applying.waiting(),
        waiting_for_state: raft.metadata.waiting(),
        records_cut: stats.records_cut,
        snapshot: snapshot.map(|made| (made.id.end, made.bytes, made.took.as_millis() as u64)),
        unfit: raft.started.executor.replica.unfit(),
        trouble: stopped.or_else(|| raft.applying.trouble()),
    }
}
