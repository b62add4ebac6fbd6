//! What replication counts, for programs (`Node::stats`) and as Prometheus text.

mod prometheus;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hdrhistogram::Histogram;
use ringwal_engine::{FrameSlice, StreamId};

use crate::config::Member;
use crate::leader::{SessionCounts, SessionState};
use crate::node_id::NodeId;
use crate::wire::{Cause, Refusal};

/// Longest latency that is told apart, in nanoseconds: a minute.
const LATENCY_NS_MAX: u64 = 60_000_000_000;
/// A sample that is not answered by then is given up: its follower is behind or gone.
const SAMPLE_LIMIT: Duration = Duration::from_secs(5);

/// A count that any thread raises.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counts of a node, whatever its part.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) accepted: Counter,
    pub(crate) too_many: Counter,
    pub(crate) bad_hellos: Counter,
    pub(crate) violations: Counter,
    pub(crate) differences: Counter,
    pub(crate) lagged: Counter,
    pub(crate) sessions_ended: Counter,
    pub(crate) frames_received: Counter,
    pub(crate) bytes_received: Counter,
    pub(crate) records_cut: Counter,
    pub(crate) begun_anew: Counter,
    pub(crate) tls_reloads: Counter,
    pub(crate) tls_reload_errors: Counter,
    pub(crate) requests_taken: Counter,
    refused: [Counter; Refusal::ALL.len()],
    left: [Counter; Cause::ALL.len()],
}

impl Counters {
    pub(crate) fn note_refused(&self, refusal: Refusal) {
        self.refused[refusal as usize - 1].add(1);
    }

    pub(crate) fn note_left(&self, cause: Cause) {
        self.left[cause as usize - 1].add(1);
    }
}

/// What a node does.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Default)]
pub enum Role {
    /// It waits for a leader.
    #[default]
    Idle,
    /// It leads.
    Leading {
        /// In which epoch.
        epoch: u64,
    },
    /// It follows.
    Following {
        /// In which epoch.
        epoch: u64,
        /// Whom.
        leader: NodeId,
    },
}

/// Everything that is counted of a node. Counts are since it started.
#[derive(Clone, Debug, Default)]
pub struct NodeStats {
    /// What it does.
    pub role: Role,
    /// The greatest epoch that it has promised; 0 when none.
    pub promised_epoch: u64,
    /// Connections that came.
    pub accepted: u64,
    /// Of those, refused because too many were open.
    pub too_many: u64,
    /// Of those, without a sound hello in time.
    pub bad_hellos: u64,
    /// Hellos that were refused, by reason.
    pub refused: Vec<(&'static str, u64)>,
    /// Sessions with a leader that this node ended, by cause.
    pub left: Vec<(&'static str, u64)>,
    /// Sessions that ended because the other side did what it must not.
    pub violations: u64,
    /// Entries of the embedder's log whose records are others than those that are held here, in the same epoch.
    pub differences: u64,
    /// Times that the engine handed over less than it sealed.
    pub lagged: u64,
    /// Sessions that ended.
    pub sessions_ended: u64,
    /// Frames that came from leaders.
    pub frames_received: u64,
    /// Their bytes.
    pub bytes_received: u64,
    /// Records that were cut here, and are kept as orphans.
    pub records_cut: u64,
    /// Streams that were begun anew.
    pub begun_anew: u64,
    /// Times that certificates were loaded anew.
    pub tls_reloads: u64,
    /// Times that they could not be.
    pub tls_reload_errors: u64,
    /// Requests of other nodes that were taken.
    pub requests_taken: u64,
    /// Offsets up to which streams are known to be committed.
    pub committed: BTreeMap<StreamId, u64>,
    /// What a repair has taken away and is not back, in words: until then the node does not lead,
    /// and is not to be counted by whoever elects one.
    pub repairing: Option<String>,
    /// How far it is behind; empty unless it follows.
    pub following: Option<FollowingStats>,
    /// Which records cannot be read here and are not mended, in words: until then the node does not
    /// begin to lead, and is not to be counted by whoever elects one.
    pub damage: Option<String>,
    /// Places at which that is so.
    pub places_damaged: usize,
    /// Places at which a read has met damage.
    pub places_found: u64,
    /// Of those, mended, or trimmed or cut meanwhile.
    pub places_mended: u64,
    /// Attempts that have not mended a place.
    pub mends_failed: u64,
    /// Records that came from other members.
    pub records_mended: u64,
    /// Of each follower; empty unless it leads.
    pub followers: Vec<FollowerStats>,
    /// Latencies; empty unless it leads.
    pub times: Option<StageTimes>,
}

/// How far a follower is behind its leader.
#[derive(Copy, Clone, Debug, Default)]
pub struct FollowingStats {
    /// Records that the leader says are committed, and that are not durable here. What the leader has
    /// beyond that is not known here.
    pub lag_records: u64,
    /// For how long nothing has come from the leader; it is zero while this node takes nothing.
    pub silence: Duration,
}

/// What a leader counts of one follower.
#[derive(Clone, Debug)]
pub struct FollowerStats {
    /// Which node.
    pub node: NodeId,
    /// Where it is dialled.
    pub address: String,
    /// It is connected.
    pub is_connected: bool,
    /// Its disk is another one than it had: it does not count for a majority.
    pub is_other_disk: bool,
    /// Sessions that began.
    pub connects: u64,
    /// Attempts that did not reach it.
    pub failures: u64,
    /// The last of them.
    pub last_failure: Option<String>,
    /// Attempts that it refused.
    pub refused: u64,
    /// The same by reason.
    pub refused_by: Vec<(&'static str, u64)>,
    /// Sessions that it ended and said why, by cause.
    pub left_by: Vec<(&'static str, u64)>,
    /// Frames sent.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Of those, bytes that were read from segments.
    pub bytes_resent: u64,
    /// Frames that were dropped from memory, to be read again.
    pub frames_dropped: u64,
    /// Hand-overs to the connection.
    pub sends: u64,
    /// System calls that wrote to its connections: one for all the slices that it takes at once.
    pub calls: u64,
    /// Bytes that wait for it in memory.
    pub queued_bytes: usize,
    /// Streams that are read from segments for it.
    pub streams_behind: usize,
    /// Records that it has not reported as durable.
    pub lag_records: u64,
    /// About how many bytes those are, when that is known.
    pub lag_bytes: Option<u64>,
    /// For how long it has been behind.
    pub lag: Option<Duration>,
    /// The last round trip of a heartbeat.
    pub round_trip: Option<Duration>,
}

/// Latencies from the moment that a frame is sealed, in nanoseconds; of samples.
#[derive(Clone, Debug)]
pub struct StageTimes {
    /// Until it was written to the connection of a follower.
    pub send_ns: Histogram<u64>,
    /// From being written to the connection until the report has come, without the time that the
    /// follower says it took: the network both ways, and waiting for threads on both sides.
    pub network_ns: Histogram<u64>,
    /// From its arrival at a follower until it was durable there, by the follower's own clock.
    pub follower_ns: Histogram<u64>,
    /// Until a follower's report that it is durable has come.
    pub reported_ns: Histogram<u64>,
    /// Until enough followers had reported it.
    pub committed_ns: Histogram<u64>,
}

impl Default for StageTimes {
    fn default() -> Self {
        let new = || Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3).expect("sound bounds");
        Self {
            send_ns: new(),
            network_ns: new(),
            follower_ns: new(),
            reported_ns: new(),
            committed_ns: new(),
        }
    }
}

/// What a leader counts of a follower beside its sessions.
#[derive(Debug)]
pub(crate) struct FollowerCounters {
    node: NodeId,
    address: String,
    pub(crate) connects: u64,
    pub(crate) is_other_disk: bool,
    failures: u64,
    last_failure: Option<String>,
    refused: [u64; Refusal::ALL.len()],
    left: [u64; Cause::ALL.len()],
    last_left: Option<String>,
    /// Of sessions that have ended.
    counts: SessionCounts,
    /// System calls that wrote, of the same.
    calls: u64,
}

impl FollowerCounters {
    pub(crate) fn new(member: &Member) -> Self {
        Self {
            node: member.node,
            address: member.address.clone(),
            connects: 0,
            is_other_disk: false,
            failures: 0,
            last_failure: None,
            refused: [0; Refusal::ALL.len()],
            left: [0; Cause::ALL.len()],
            last_left: None,
            counts: SessionCounts::default(),
            calls: 0,
        }
    }

    /// It was not reached. Said once, not at every attempt.
    pub(crate) fn note_failure(&mut self, why: &str) {
        self.failures += 1;
        if self.last_failure.as_deref() != Some(why) {
            tracing::info!(node = %self.node, why, "cannot reach a follower");
            self.last_failure = Some(why.to_owned());
        }
    }

    pub(crate) fn note_refused(&mut self, refusal: Refusal, why: &str) {
        self.refused[refusal as usize - 1] += 1;
        if self.last_failure.as_deref() != Some(why) {
            match refusal {
                // It is a matter of milliseconds.
                Refusal::NotBegun => {
                    tracing::debug!(node = %self.node, %refusal, why, "a follower refuses")
                }
                _ => tracing::warn!(node = %self.node, %refusal, why, "a follower refuses"),
            }
            self.last_failure = Some(why.to_owned());
        }
    }

    /// It has left. Said once, with what is to be done, not each time that it comes and leaves again.
    pub(crate) fn note_left(&mut self, cause: Cause, why: &str) {
        self.left[cause as usize - 1] += 1;
        let Some(remedy) = cause.remedy() else { return };
        if self.last_left.as_deref() != Some(why) {
            let (node, cause) = (self.node, cause.name());
            tracing::warn!(%node, cause, why, "a follower does not follow: {remedy}");
            self.last_left = Some(why.to_owned());
        }
    }

    /// A session has ended, whose connection took so many system calls to write.
    pub(crate) fn add(&mut self, session: &SessionCounts, calls: u64) {
        self.calls += calls;
        let counts = &mut self.counts;
        counts.frames += session.frames;
        counts.bytes += session.bytes;
        counts.bytes_read += session.bytes_read;
        counts.frames_dropped += session.frames_dropped;
        counts.sends += session.sends;
    }

    pub(crate) fn stats(
        &self,
        session: Option<SessionState>,
        calls: u64,
        now_ns: u64,
    ) -> FollowerStats {
        let now = session.map(|session| session.counts).unwrap_or_default();
        let before = &self.counts;
        let since = session.and_then(|session| session.behind_since_ns);
        FollowerStats {
            node: self.node,
            address: self.address.clone(),
            is_connected: session.is_some(),
            is_other_disk: self.is_other_disk,
            connects: self.connects,
            failures: self.failures,
            last_failure: self.last_failure.clone(),
            refused: self.refused.iter().sum(),
            refused_by: Refusal::ALL.map(Refusal::name).into_iter().zip(self.refused).collect(),
            left_by: Cause::ALL.map(Cause::name).into_iter().zip(self.left).collect(),
            frames: before.frames + now.frames,
            bytes: before.bytes + now.bytes,
            bytes_resent: before.bytes_read + now.bytes_read,
            frames_dropped: before.frames_dropped + now.frames_dropped,
            sends: before.sends + now.sends,
            calls: self.calls + calls,
            queued_bytes: session.map_or(0, |session| session.queued_bytes),
            streams_behind: session.map_or(0, |session| session.behind),
            lag_records: session.map_or(0, |session| session.lag_records),
            lag_bytes: session.and_then(|session| session.lag_bytes),
            lag: since.map(|since| Duration::from_nanos(now_ns.saturating_sub(since))),
            round_trip: session.and_then(|s| s.round_trip_ns).map(Duration::from_nanos),
        }
    }
}

/// Follows one frame at a time through the stages: all of them would cost a look-up per frame.
#[derive(Debug, Default)]
pub(crate) struct LeaderTimes {
    times: StageTimes,
    sample: Option<Sample>,
}

#[derive(Debug)]
struct Sample {
    stream: StreamId,
    end: u64,
    /// Where its bytes are, to know them again.
    at: usize,
    sealed: Instant,
    followers: Vec<Stage>,
    /// Of each follower, when it was sent, in nanoseconds since it was sealed.
    sent_ns: Vec<u64>,
}

#[derive(Copy, Clone, Eq, PartialEq, Debug)]
enum Stage {
    Sealed,
    Handed,
    Sent,
    Reported,
}

impl LeaderTimes {
    pub(crate) fn times(&self) -> &StageTimes {
        &self.times
    }

    /// Frames were sealed; `followers` are connected.
    pub(crate) fn note_sealed(&mut self, frames: &[FrameSlice], followers: usize) {
        let is_busy = |sample: &Sample| sample.sealed.elapsed() < SAMPLE_LIMIT;
        if followers == 0 || self.sample.as_ref().is_some_and(is_busy) {
            return;
        }
        self.sample = frames.last().map(|frame| Sample {
            stream: frame.stream,
            end: frame.base_offset + u64::from(frame.count),
            at: frame.bytes.as_ptr().addr(),
            sealed: Instant::now(),
            followers: vec![Stage::Sealed; followers],
            sent_ns: vec![0; followers],
        });
    }

    fn advance(&mut self, follower: usize, from: Stage, to: Stage) -> Option<u64> {
        let sample = self.sample.as_mut()?;
        let stage = sample.followers.get_mut(follower)?;
        if *stage != from {
            return None;
        }
        *stage = to;
        Some(sample.sealed.elapsed().as_nanos() as u64)
    }

    /// Slices were handed to the connection of a follower.
    pub(crate) fn note_handed(&mut self, follower: usize, slices: &[Bytes]) {
        let at = self.sample.as_ref().map(|sample| sample.at);
        if at.is_some_and(|at| slices.iter().any(|slice| slice.as_ptr().addr() == at)) {
            self.advance(follower, Stage::Sealed, Stage::Handed);
        }
    }

    /// What was handed to a follower's connection was written.
    pub(crate) fn note_sent(&mut self, follower: usize) {
        if let Some(took_ns) = self.advance(follower, Stage::Handed, Stage::Sent) {
            self.times.send_ns.saturating_record(took_ns);
            if let Some(sample) = &mut self.sample {
                sample.sent_ns[follower] = took_ns;
            }
        }
    }

    /// A follower has reported durable ends.
    pub(crate) fn note_reported(
        &mut self,
        follower: usize,
        took_ns: u64,
        ends: &[(StreamId, u64)],
    ) {
        let Some(sample) = &self.sample else { return };
        let sent_ns = sample.sent_ns.get(follower).copied().unwrap_or(0);
        let is_in =
            |(stream, end): &(StreamId, u64)| *stream == sample.stream && *end >= sample.end;
        if !ends.iter().any(is_in) {
            return;
        }
        if let Some(reported_ns) = self.advance(follower, Stage::Sent, Stage::Reported) {
            let network_ns = reported_ns.saturating_sub(sent_ns).saturating_sub(took_ns);
            self.times.network_ns.saturating_record(network_ns);
            self.times.follower_ns.saturating_record(took_ns);
            self.times.reported_ns.saturating_record(reported_ns);
        }
    }

    /// Enough followers have a stream up to `enough`.
    pub(crate) fn note_enough(&mut self, stream: StreamId, enough: u64) {
        let is_in = |sample: &&Sample| sample.stream == stream && enough >= sample.end;
        if let Some(sample) = self.sample.as_ref().filter(is_in) {
            let committed_ns = sample.sealed.elapsed().as_nanos() as u64;
            self.times.committed_ns.saturating_record(committed_ns);
            self.sample = None;
        }
    }
}

impl Counters {
    /// A picture of them, to be completed by whoever knows the rest.
    pub(crate) fn stats(&self) -> NodeStats {
        let refused = Refusal::ALL.iter().map(|refusal| {
            let count = self.refused[*refusal as usize - 1].get();
            (refusal.name(), count)
        });
        let left =
            Cause::ALL.iter().map(|cause| (cause.name(), self.left[*cause as usize - 1].get()));
        NodeStats {
            left: left.collect(),
            accepted: self.accepted.get(),
            too_many: self.too_many.get(),
            bad_hellos: self.bad_hellos.get(),
            refused: refused.collect(),
            violations: self.violations.get(),
            differences: self.differences.get(),
            lagged: self.lagged.get(),
            sessions_ended: self.sessions_ended.get(),
            frames_received: self.frames_received.get(),
            bytes_received: self.bytes_received.get(),
            records_cut: self.records_cut.get(),
            begun_anew: self.begun_anew.get(),
            tls_reloads: self.tls_reloads.get(),
            tls_reload_errors: self.tls_reload_errors.get(),
            requests_taken: self.requests_taken.get(),
            ..NodeStats::default()
        }
    }
}
