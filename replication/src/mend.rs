//! Online repair: durable records of replicated streams that cannot be read are fetched again from
//! another member and put back, while the node runs.
//!
//! ```text
//! a read fails ─▶ place noted ─▶ what of its segment cannot be read? ─▶ who of the members has it?
//!                     ▲                                                      │
//!                     └── pause, growing ◀── nobody             somebody ────┘
//!                                                                   ▼
//!                what can be read is moved out ─▶ the rest is fetched, compared and put back
//! ```
//!
//! It has a thread of its own as long as there is a place, so that neither followers nor callers wait
//! for it. Places are in memory only: after a restart they are found again when they are read.

mod attempt;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ringwal_engine::{Engine, ReadError, StreamId};
use tokio::sync::Notify;

use crate::config::{Config, Member};
use crate::link::tls::Tls;
use crate::node_id::{NodeId, RunId};
use crate::promise::is_replicated;
use crate::stats::NodeStats;
use crate::wire::{ConnectionKind, Hello, PROTOCOL_VERSION, PROTOCOL_VERSION_MIN};

/// Places that are known at once. What is beyond is found again when it is read again.
const PLACES_MAX: usize = 1024;
/// Between two attempts: the shortest, which doubles, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Why records are not put back.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MendRangeError {
    /// No other node has this stream.
    #[error("stream {0} is this node's own, and no other node has it; restore it from a backup")]
    OwnStream(StreamId),
    /// The range cannot be read for a reason that is no damage.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// No other member could give them.
    #[error("stream {stream}, offset {offset} is damaged and not mended: {why}; it is tried again")]
    NotMended {
        /// Whose.
        stream: StreamId,
        /// The first that cannot be read.
        offset: u64,
        /// Why.
        why: String,
    },
}

/// The handle of it; clones are the same.
#[derive(Clone)]
pub(crate) struct Mender(Arc<Inner>);

struct Inner {
    source: Source,
    state: Mutex<State>,
    changed: Condvar,
}

/// What attempts are made with.
struct Source {
    engine: Engine,
    config: Arc<Config>,
    /// Who is asked: as configured, or as an embedder that drives said last.
    members: Mutex<Vec<Member>>,
    tls: Option<Arc<Tls>>,
    run: RunId,
    closing: Notify,
}

#[derive(Default)]
struct State {
    places: BTreeMap<(StreamId, u64), Place>,
    /// Its thread is there.
    is_running: bool,
    is_closed: bool,
    counts: Counts,
}

/// Records that cannot be read begin here.
struct Place {
    due: Instant,
    attempts: u32,
    why: String,
}

/// Since the node started.
#[derive(Copy, Clone, Default)]
struct Counts {
    found: u64,
    mended: u64,
    failures: u64,
    records: u64,
}

impl Mender {
    pub(crate) fn new(
        engine: Engine,
        config: Arc<Config>,
        tls: Option<Arc<Tls>>,
        run: RunId,
    ) -> Self {
        let members = Mutex::new(config.members.clone());
        let source = Source { engine, config, members, tls, run, closing: Notify::new() };
        Self(Arc::new(Inner { source, state: Mutex::default(), changed: Condvar::new() }))
    }

    /// A read has failed: when it is damage, it will be mended.
    pub(crate) fn note(&self, error: &ReadError) {
        if let Some((stream, offset)) = place(error)
            && is_replicated(stream)
        {
            drop(self.0.note(stream, offset, error));
        }
    }

    /// Has a place mended now, and waits for what comes of it.
    pub(crate) fn mend_now(
        &self,
        stream: StreamId,
        offset: u64,
        error: &ReadError,
    ) -> Result<(), MendRangeError> {
        let mut state = self.0.note(stream, offset, error);
        let Some(place) = state.places.get_mut(&(stream, offset)) else {
            let why = format!("{PLACES_MAX} other places wait");
            return Err(MendRangeError::NotMended { stream, offset, why });
        };
        place.due = Instant::now();
        let attempts = place.attempts;
        self.0.changed.notify_all();
        loop {
            match state.places.get(&(stream, offset)) {
                None => return Ok(()),
                Some(place) if place.attempts != attempts || !state.is_running => {
                    let why = place.why.clone();
                    return Err(MendRangeError::NotMended { stream, offset, why });
                }
                Some(_) => {}
            }
            state = self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Has places looked at again now: what was damaged there may be gone.
    pub(crate) fn look_again(&self, stream: StreamId, offsets: Range<u64>) {
        let mut state = self.0.state();
        let places = state.places.range_mut((stream, offsets.start)..(stream, offsets.end));
        places.for_each(|(_, place)| place.due = Instant::now());
        self.0.changed.notify_all();
    }

    /// What is damaged and not mended, in words.
    pub(crate) fn damage(&self) -> Option<String> {
        self.0.state().damage()
    }

    /// Adds its counts.
    pub(crate) fn fill(&self, stats: &mut NodeStats) {
        let state = self.0.state();
        stats.damage = state.damage();
        stats.places_damaged = state.places.len();
        stats.places_found = state.counts.found;
        stats.places_mended = state.counts.mended;
        stats.mends_failed = state.counts.failures;
        stats.records_mended = state.counts.records;
    }

    /// Others are asked from now on.
    pub(crate) fn set_members(&self, members: &[Member]) {
        let mut known = self.0.source.members.lock().unwrap_or_else(PoisonError::into_inner);
        members.clone_into(&mut known);
    }

    /// Ends it. A disk that stands still is not waited for.
    pub(crate) fn close(&self) {
        self.0.state().is_closed = true;
        self.0.changed.notify_all();
        self.0.source.closing.notify_one();
    }
}

/// Where records cannot be read, when an error says that.
pub(crate) fn place(error: &ReadError) -> Option<(StreamId, u64)> {
    match error {
        ReadError::Corrupt { stream, offset, .. } | ReadError::Io { stream, offset, .. } => {
            Some((*stream, *offset))
        }
        _ => None,
    }
}

impl State {
    fn damage(&self) -> Option<String> {
        let ((stream, offset), place) = self.places.first_key_value()?;
        let more = match self.places.len() - 1 {
            0 => String::new(),
            more => format!(", and {more} more of the kind"),
        };
        Some(format!("stream {stream} cannot be read at offset {offset} ({}){more}", place.why))
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(
        self: &Arc<Self>,
        stream: StreamId,
        offset: u64,
        error: &ReadError,
    ) -> MutexGuard<'_, State> {
        let mut state = self.state();
        let (is_known, is_full) =
            (state.places.contains_key(&(stream, offset)), state.places.len() >= PLACES_MAX);
        if !is_known && !is_full && !state.is_closed {
            tracing::error!(%error, "durable records are damaged; other members are asked for them");
            let place = Place { due: Instant::now(), attempts: 0, why: error.to_string() };
            state.places.insert((stream, offset), place);
            state.counts.found += 1;
            self.changed.notify_all();
        }
        if !state.is_running && !state.is_closed && !state.places.is_empty() {
            let inner = self.clone();
            let thread = std::thread::Builder::new().name("ringwal-mender".into());
            match thread.spawn(move || inner.run()) {
                Ok(_) => state.is_running = true,
                Err(error) => tracing::error!(%error, "cannot start the thread that mends"),
            }
        }
        state
    }

    /// Until nothing is left to be mended.
    fn run(self: Arc<Self>) {
        let running = Running(self.clone());
        while let Some((stream, offset)) = self.next_place() {
            let attempt = AssertUnwindSafe(|| self.source.attempt(stream, offset));
            let outcome = catch_unwind(attempt)
                .unwrap_or_else(|_| Err("the attempt has panicked: see its log".to_owned().into()));
            self.note_outcome(stream, offset, outcome);
        }
        drop(running);
    }

    /// Waits for a place that is due.
    fn next_place(&self) -> Option<(StreamId, u64)> {
        let mut state = self.state();
        loop {
            let is_closed = state.is_closed;
            let next = state.places.iter_mut().min_by_key(|(_, place)| place.due);
            let Some((key, place)) = next.filter(|_| !is_closed) else {
                // With the lock held: whoever notes a place from now on starts another thread.
                state.is_running = false;
                return None;
            };
            let pause = place.due.saturating_duration_since(Instant::now());
            if pause.is_zero() {
                // Should the attempt end this thread, the next one comes late.
                place.due = Instant::now() + PAUSES.1;
                return Some(*key);
            }
            let waited = self.changed.wait_timeout(state, pause);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn note_outcome(&self, stream: StreamId, offset: u64, outcome: Result<Mended, NotMended>) {
        let mut state = self.state();
        if let Err(NotMended { why, others }) = &outcome {
            // Each has to be mended, also when the place that led here is.
            let room = PLACES_MAX.saturating_sub(state.places.len());
            for other in others.iter().take(room) {
                let due = Instant::now() + PAUSES.0;
                if let Entry::Vacant(place) = state.places.entry(*other) {
                    place.insert(Place { due, attempts: 0, why: why.clone() });
                    state.counts.found += 1;
                }
            }
        }
        let Some(place) = state.places.get_mut(&(stream, offset)) else { return };
        match outcome {
            Ok(Mended { records, from }) => {
                state.places.remove(&(stream, offset));
                state.counts.mended += 1;
                state.counts.records += records;
                let from = from.iter().map(NodeId::to_string).collect::<Vec<_>>().join(", ");
                tracing::info!(%stream, offset, records, from, "damaged records are mended");
            }
            Err(NotMended { why, .. }) => {
                let pause = PAUSES.0.saturating_mul(1 << place.attempts.min(6)).min(PAUSES.1);
                place.due = Instant::now() + pause;
                place.attempts += 1;
                if place.why != why {
                    tracing::warn!(%stream, offset, why, "damaged records are not mended");
                    place.why = why;
                }
                state.counts.failures += 1;
            }
        }
        self.changed.notify_all();
    }
}

/// What an attempt has done.
#[derive(Default)]
struct Mended {
    /// Records that were fetched.
    records: u64,
    /// Who had them.
    from: Vec<NodeId>,
}

/// Why an attempt has not mended everything.
struct NotMended {
    why: String,
    /// Damaged places of the same segment that nobody has.
    others: Vec<(StreamId, u64)>,
}

impl From<String> for NotMended {
    fn from(why: String) -> Self {
        Self { why, others: Vec::new() }
    }
}

/// However the thread ends, nobody waits for it.
struct Running(Arc<Inner>);

impl Drop for Running {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.state().is_running = false;
            tracing::error!("the thread that mends has panicked; it is tried again later");
        }
        self.0.changed.notify_all();
    }
}

impl Source {
    fn hello(&self, to: NodeId) -> Hello {
        Hello {
            versions: (PROTOCOL_VERSION_MIN, PROTOCOL_VERSION),
            kind: ConnectionKind::Fetch,
            cluster: self.config.cluster,
            from: self.config.node,
            to,
            run: self.run,
            engine: self.engine.id(),
            epoch: 0,
        }
    }
}
