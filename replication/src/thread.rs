//! The replication thread: one loop over everything that comes from connections, shards, the worker
//! and callers. Nothing here waits for a disk or for a peer.
//!
//! ```text
//! turn:  commands ─▶ arrivals ─▶ outcomes of the worker ─▶ change of part ─▶ leading or following
//! ```
//!
//! A node changes its part in three steps, one at a time: what it was ends; when nothing is in flight
//! any more, the new epoch is promised durably; then the new part begins.

mod accept;
mod admit;
mod connection;
mod dial;
mod driving;
mod extending;
mod fetching;
mod following;
mod leading;
mod part;
mod repairing;
mod requesting;
#[cfg(test)]
mod tests;
mod uncommitted;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use ringwal_engine::{Engine, StreamId};

use crate::config::Config;
use crate::driven::Members;
use crate::fetch::from::FetchFrom;
use crate::link::Listener;
use crate::link::tls::{Tls, TlsError};
use crate::mend::Mender;
use crate::node_id::{NodeId, RunId};
use crate::promise::{Identity, Promise};
use crate::repair::Marker;
use crate::requests::{Asking, Replies};
use crate::stats::{Counters, NodeStats, Role};
use crate::term::Term;
use crate::wake::Wake;
use crate::wire::{Cause, EPOCH_MAX, Refusal};
use crate::worker::{Facts, Job, Outcome, Snapshots, Worker};

use accept::Arrivals;
pub(crate) use connection::Connection;
use driving::Driving;
pub(crate) use driving::{BeginWay, Driven};
pub(crate) use extending::Extend;
use extending::Extending;
use fetching::Fetching;
use following::Appends;
pub(crate) use leading::SLICES_MAX;
use part::{Change, Part, To};
use repairing::Repairing;
use requesting::Requesting;

/// What a node knows to be committed is made durable so often, when it has changed.
const SAVE: Duration = Duration::from_secs(2);
/// Connections are ended within this.
const LAST_WORDS: Duration = Duration::from_millis(300);
/// A picture of the counts is made so often, at most.
const PICTURE: Duration = Duration::from_millis(100);

/// What a caller asks for.
pub(crate) enum Command {
    /// Lead in this epoch.
    Lead { epoch: u64, reply: Sender<Result<Arc<Term>, LeadError>> },
    /// A member counts with the disk that it has now.
    Readmit(NodeId),
    /// Lead no more, if it is in this epoch.
    Retire { epoch: u64, why: String },
    /// Drop a prefix of a stream as soon as followers allow it.
    Trim { stream: StreamId, before: u64 },
    /// Take requests of other nodes from now on.
    Reply(Arc<dyn Replies>),
    /// Promise an epoch, or begin one.
    Drive(Driven),
    /// Add records of an entry.
    Extend(Extend),
    /// Others are dialled and count.
    Members(Members),
    /// Fetch from another node, if this one does not lead.
    Fetch(FetchFrom),
    /// Send what is sealed, within the limit, and end.
    Close,
}

/// Why a node does not begin to lead.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LeadError {
    /// It has promised that epoch, or a later one.
    #[error(
        "epoch {asked} is not greater than epoch {promised}, which this node has promised to node \
         {leader}; an epoch is used by one run of one process only: use {} or a greater one", promised + 1
    )]
    EpochUsed {
        /// What was asked for.
        asked: u64,
        /// What is promised.
        promised: u64,
        /// To whom.
        leader: NodeId,
    },
    /// Epochs begin with 1, and have a bound.
    #[error(
        "epoch {0} is none: epochs are from 1 to {EPOCH_MAX}; milliseconds since 1970 are small enough"
    )]
    NoEpoch(u64),
    /// A greater epoch came while it was about to.
    #[error("epoch {asked} was overtaken: {why}")]
    Overtaken {
        /// What was asked for.
        asked: u64,
        /// By what.
        why: String,
    },
    /// The promise could not be made durable.
    #[error("the promise of epoch {asked} cannot be made durable: {why}")]
    NotPromised {
        /// What was asked for.
        asked: u64,
        /// Why.
        why: String,
    },
    /// A repair has taken something away here that is not all back.
    #[error(
        "this node was repaired and not everything is back, so it must not lead: {lacking}; let it \
         follow another leader first"
    )]
    Repairing {
        /// What is not.
        lacking: String,
    },
    /// Records cannot be read here, and another member may have them.
    #[error(
        "records are damaged here, so it must not lead: {damage}; let another node lead, or start this \
         one again to have it forget that"
    )]
    Damaged {
        /// Which.
        damage: String,
    },
    /// Its embedder drives it: it leads when an epoch of its own begins.
    #[error("this node is driven: it leads in an epoch that has begun, see Node::begin")]
    Driven,
    /// The node is closed, or its thread has died.
    #[error("the node is closed")]
    Closed,
}

/// What all parts share.
pub(crate) struct Context {
    pub(crate) engine: Engine,
    pub(crate) config: Arc<Config>,
    pub(crate) me: Identity,
    pub(crate) run: RunId,
    pub(crate) tls: Option<Arc<Tls>>,
    pub(crate) worker: Worker,
    pub(crate) mender: Mender,
    pub(crate) wake: Arc<Wake>,
    pub(crate) waker: Waker,
    pub(crate) counters: Arc<Counters>,
    pub(crate) clock: Clock,
    pub(crate) facts: Facts,
    pub(crate) frame_bytes_max: usize,
    /// Why the engine takes nothing any more.
    pub(crate) failed: Option<String>,
    /// This thread did not run for so long that others only seem to be silent.
    pub(crate) was_late: bool,
    /// What a repair has taken away, until it is back.
    pub(crate) repairing: Option<Repairing>,
    /// The embedder elects leaders: see [`crate::driven`].
    pub(crate) is_driven: bool,
    /// As configured, or as the embedder said last.
    pub(crate) members: Members,
    /// What takes the place of records that are trimmed elsewhere.
    pub(crate) snapshots: Arc<Snapshots>,
    /// Counts changes of the part: whoever appends beside this thread looks at it.
    pub(crate) changes: Arc<AtomicU64>,
}

/// Nanoseconds since the thread began, for the cores.
pub(crate) struct Clock(Instant);

impl Clock {
    pub(crate) fn now_ns(&self) -> u64 {
        self.0.elapsed().as_nanos() as u64
    }
}

/// What the thread is started with.
pub(crate) struct Setup {
    pub(crate) engine: Engine,
    pub(crate) config: Arc<Config>,
    pub(crate) run: RunId,
    pub(crate) listener: Listener,
    pub(crate) tls: Option<Arc<Tls>>,
    pub(crate) worker: Worker,
    pub(crate) snapshots: Arc<Snapshots>,
    pub(crate) mender: Mender,
    pub(crate) wake: Arc<Wake>,
    pub(crate) commands: Receiver<Command>,
    pub(crate) asks: Receiver<Asking>,
    pub(crate) facts: Facts,
    pub(crate) repairing: Option<Marker>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) picture: Arc<Mutex<NodeStats>>,
    /// `None` where nobody drives; otherwise what has begun last.
    pub(crate) begun: Option<Arc<Mutex<Option<Promise>>>>,
}

/// Runs until it is told to close.
pub(crate) fn run(setup: Setup) {
    tokio_uring::start(async move {
        let tick = setup.config.heartbeat.min(Duration::from_millis(50));
        let late = setup.config.session_timeout / 2;
        let drain_timeout = setup.config.drain_timeout;
        let fence = Fence { engine: setup.engine.clone(), picture: setup.picture.clone() };
        let wake = setup.wake.clone();
        let mut replica = Replica::new(setup);
        let mut ticked = Instant::now();
        while !replica.is_over() {
            let is_busy = replica.turn();
            if ticked.elapsed() >= tick {
                replica.context.was_late = ticked.elapsed() >= late;
                ticked = Instant::now();
                replica.tick();
            }
            if is_busy {
                wake.wake();
            }
            wake.wait(tick).await;
        }
        replica.end(Cause::Closing, "the node is closed");
        replica.requesting.end();
        drop((replica, fence));
        // Tasks that write a last message and end their connections get their time.
        tokio::time::sleep(LAST_WORDS.min(drain_timeout)).await;
    });
}

/// However the thread ends, nobody appends here any more, and nobody is told that it leads.
struct Fence {
    engine: Engine,
    picture: Arc<Mutex<NodeStats>>,
}

impl Drop for Fence {
    fn drop(&mut self) {
        self.engine.close_epoch();
        self.picture.lock().unwrap_or_else(PoisonError::into_inner).role = Role::Idle;
    }
}

/// See the module.
struct Replica {
    context: Context,
    commands: Receiver<Command>,
    asks: Receiver<Asking>,
    arrivals: Arrivals,
    appends: Appends,
    fetching: Fetching,
    requesting: Requesting,
    driving: Driving,
    extending: Extending,
    part: Part,
    change: Option<Change>,
    closing: Option<Instant>,
    /// A save is under way, or was last made then.
    is_saving: bool,
    saved: Instant,
    saved_facts: Facts,
    picture: Arc<Mutex<NodeStats>>,
    next_picture: Instant,
    tls_looked: Instant,
}

impl Replica {
    fn new(setup: Setup) -> Self {
        let Setup { engine, config, run, listener, tls, worker, wake, commands, .. } = setup;
        let arrivals = Arrivals::default();
        let counters = setup.counters;
        accept::start(listener, tls.clone(), &config, &arrivals, counters.clone(), wake.clone());
        let members = Members::all(config.members.clone());
        let me = Identity { cluster: config.cluster, node: config.node };
        let context = Context {
            frame_bytes_max: engine.frame_bytes_max(),
            failed: None,
            engine,
            me,
            config,
            run,
            tls,
            worker,
            mender: setup.mender,
            waker: Waker::from(wake.clone()),
            wake,
            counters,
            clock: Clock(Instant::now()),
            was_late: false,
            facts: setup.facts.clone(),
            repairing: setup.repairing.map(Repairing::new),
            is_driven: setup.begun.is_some(),
            members,
            snapshots: setup.snapshots,
            changes: Arc::default(),
        };
        Self {
            context,
            commands,
            asks: setup.asks,
            arrivals,
            appends: Appends::default(),
            fetching: Fetching::default(),
            requesting: Requesting::default(),
            driving: Driving::new(setup.begun.unwrap_or_default()),
            extending: Extending::default(),
            part: Part::Idle,
            change: None,
            closing: None,
            is_saving: false,
            saved: Instant::now(),
            saved_facts: setup.facts,
            picture: setup.picture,
            next_picture: Instant::now(),
            tls_looked: Instant::now(),
        }
    }

    /// One turn of everything that can be done now. True when there is more to do at once.
    fn turn(&mut self) -> bool {
        // As many as can wait; a caller that is refused and comes again at once must not keep the rest.
        for _ in 0..self.commands.len() {
            if let Ok(command) = self.commands.try_recv() {
                self.handle_command(command);
            }
        }
        for asking in self.asks.try_iter().take(self.asks.len()) {
            self.requesting.ask(&self.context, asking);
        }
        while let Some(arrived) = self.arrivals.take() {
            self.handle_arrived(arrived);
        }
        while let Some(outcome) = self.context.worker.take() {
            self.handle_outcome(outcome);
        }
        self.drive();
        self.advance_change();
        self.extend();
        let may_read = self.change.is_none() && self.closing.is_none();
        let is_read = self.fetching.turn(&mut self.context, may_read);
        let is_asked = self.requesting.turn(&self.context, self.closing.is_some());
        let is_busy = self.turn_part();
        if matches!(self.part, Part::Following(_)) {
            // What has just become durable may be all of one.
            self.extend();
        }
        is_read | is_asked | is_busy
    }

    fn turn_part(&mut self) -> bool {
        match &mut self.part {
            Part::Idle => false,
            Part::Leading(leading) => {
                let (turn, is_busy) = leading.turn(&mut self.context);
                match turn {
                    leading::Turn::Goes => is_busy || !leading.park(&self.context.waker),
                    leading::Turn::Deposed(why) => {
                        self.end(Cause::Changing, &why);
                        false
                    }
                }
            }
            Part::Following(following) => {
                match following.turn(&mut self.context, &mut self.appends) {
                    following::Turn::Goes(is_busy) => is_busy,
                    following::Turn::Ends(ending) => {
                        self.end_following(ending);
                        false
                    }
                }
            }
        }
    }

    fn handle_command(&mut self, command: Command) {
        match command {
            Command::Lead { epoch, reply } => {
                let lacking = self.lacking();
                let is_alone = self.context.members.nodes.len() <= 1;
                let damage = self.context.mender.damage().filter(|_| !is_alone);
                // A promise that is about to be made counts too: they never go down.
                let coming = self.change.as_ref().map(|change| change.promise);
                let promised =
                    self.context.facts.promise.into_iter().chain(coming).max_by_key(|p| p.epoch);
                let refused = match promised {
                    _ if self.closing.is_some() => Some(LeadError::Closed),
                    _ if self.context.is_driven => Some(LeadError::Driven),
                    _ if lacking.is_some() => {
                        lacking.map(|lacking| LeadError::Repairing { lacking })
                    }
                    _ if damage.is_some() => damage.map(|damage| LeadError::Damaged { damage }),
                    _ if !(1..=EPOCH_MAX).contains(&epoch) => Some(LeadError::NoEpoch(epoch)),
                    Some(Promise { epoch: promised, leader, .. }) if promised >= epoch => {
                        Some(LeadError::EpochUsed { asked: epoch, promised, leader })
                    }
                    _ => None,
                };
                match refused {
                    Some(error) => drop(reply.send(Err(error))),
                    None => {
                        let (leader, run) = (self.context.me.node, self.context.run);
                        self.begin_change(To::Lead(reply), Promise { epoch, leader, run });
                    }
                }
            }
            Command::Readmit(node) => match &mut self.part {
                Part::Leading(leading) => leading.readmit(node, &mut self.context.facts),
                _ => drop(self.context.facts.members.remove(&node)),
            },
            Command::Retire { epoch, why } => {
                if let Part::Leading(leading) = &self.part
                    && leading.term.epoch() == epoch
                {
                    self.end(Cause::Changing, &why);
                }
            }
            Command::Trim { stream, before } => match &mut self.part {
                Part::Leading(leading) => leading.handle_trim(stream, before),
                _ if self.context.worker.has_room() => {
                    self.context.worker.give(Job::Trim { stream, before });
                }
                _ => tracing::warn!(%stream, before, "too busy to trim; ask again"),
            },
            Command::Reply(replies) => self.requesting.handle_replies(replies),
            Command::Drive(driven) => self.handle_driven(driven),
            Command::Extend(extend) => self.handle_extend(extend),
            Command::Members(members) => self.handle_members(members),
            Command::Fetch(fetch) => self.handle_fetch(fetch),
            Command::Close => {
                self.closing.get_or_insert_with(Instant::now);
                if let Some(change) = self.change.take() {
                    self.give_up(change, Refusal::NotNow, "this node is closing");
                }
                self.end_driving();
                self.extending.end();
                // Whoever fetches appends no more.
                self.context.changes.fetch_add(1, Ordering::AcqRel);
                // Nothing more is sealed; what is, still goes out.
                self.context.engine.close_epoch();
            }
        }
    }

    /// What a repair has taken away and is not back.
    fn lacking(&self) -> Option<String> {
        let is_following = matches!(self.part, Part::Following(_));
        let (engine, is_alone) = (&self.context.engine, self.context.members.nodes.len() <= 1);
        self.context.repairing.as_ref()?.lacking(engine, is_following, is_alone)
    }

    fn handle_outcome(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Promised(promise, held) => self.finish_change(promise, held),
            Outcome::Begun { promise, may_be_promised, leads, begun } => {
                self.finish_begin(promise, may_be_promised, leads, begun);
            }
            Outcome::Held(held) => self.finish_hold(held),
            Outcome::Compared { number, other } => self.extending.handle_compared(number, other),
            Outcome::Saved(facts, saved) => {
                self.is_saving = false;
                match saved {
                    Ok(()) => {
                        if let Part::Leading(leading) = &mut self.part {
                            leading.handle_saved(&facts);
                        }
                        self.saved_facts = facts;
                    }
                    Err(error) => tracing::warn!(error, "cannot make durable what is committed"),
                }
            }
            Outcome::Trimmed { stream, before, outcome } => {
                if let Part::Leading(leading) = &mut self.part {
                    leading.handle_trimmed(stream, before, outcome.is_ok());
                }
                if let Err(why) = outcome {
                    tracing::warn!(%stream, before, why, "cannot trim");
                }
            }
            Outcome::Reloaded(outcome) => self.note_reloaded(outcome),
            Outcome::Fetched(session, fetched) => self.fetching.handle_fetched(session, fetched),
            Outcome::RepairEnded(ended) => self.finish_repair(ended),
            Outcome::Read(request, read) => {
                if let Part::Leading(leading) = &mut self.part {
                    leading.handle_read(&request, read);
                }
            }
            outcome => {
                if let Part::Following(following) = &mut self.part
                    && let Err(ending) = following.handle_outcome(outcome, &self.context)
                {
                    self.end_following(ending);
                }
            }
        }
    }

    /// Now and then.
    fn tick(&mut self) {
        match &mut self.part {
            Part::Idle => {}
            Part::Leading(leading) => {
                if let leading::Turn::Deposed(why) = leading.tick(&mut self.context) {
                    self.end(Cause::Changing, &why);
                }
            }
            Part::Following(following) => {
                if let Err(ending) = following.tick(&self.context) {
                    self.end_following(ending);
                }
            }
        }
        self.fetching.tick();
        self.requesting.tick();
        self.end_repair();
        if self.context.worker.has_died() {
            self.fail("the worker of this node has panicked: see its log");
        }
        if self.context.failed.is_none()
            && let Some(cause) = self.context.engine.poisoned()
        {
            self.fail(&format!("this node's engine has failed: {cause}"));
        }
        self.save();
        self.reload_certificates();
        if Instant::now() >= self.next_picture {
            self.make_picture();
        }
    }

    /// What a repair has taken away is back: that is said durably before anything else is done
    /// with it.
    fn end_repair(&mut self) {
        let is_over = self.context.repairing.is_some() && self.lacking().is_none();
        let Some(repairing) = &mut self.context.repairing else { return };
        if is_over && !repairing.is_ending && self.context.worker.has_room() {
            repairing.is_ending = true;
            self.context.worker.give(Job::EndRepair);
        }
    }

    fn finish_repair(&mut self, ended: Result<(), String>) {
        match ended {
            Ok(()) => {
                tracing::info!("what a repair has taken away is back");
                self.context.repairing = None;
            }
            Err(error) => {
                tracing::error!(
                    error,
                    "what a repair has taken away is back, and that cannot be noted"
                );
                if let Some(repairing) = &mut self.context.repairing {
                    repairing.is_ending = false;
                }
            }
        }
    }

    /// Nothing can be promised, written or followed here any more.
    fn fail(&mut self, why: &str) {
        tracing::error!(why, "this node does nothing any more");
        self.context.failed = Some(why.to_owned());
        if let Some(change) = self.change.take() {
            match change.to {
                To::Follow(arrived) => self.refuse(*arrived, Refusal::NotNow, why.to_owned()),
                To::Lead(reply) => {
                    let asked = change.promise.epoch;
                    let _ = reply.send(Err(LeadError::NotPromised { asked, why: why.to_owned() }));
                }
                _ => self.give_up(change, Refusal::NotNow, why),
            }
        }
        self.end(Cause::Engine, why);
    }

    /// What is known to be committed survives this process: it is never cut (I-14). A member counts
    /// when it is known durably which disk it has: that is saved at once.
    fn save(&mut self) {
        let facts = &mut self.context.facts;
        let is_new = facts.members != self.saved_facts.members;
        let is_due = is_new || self.saved.elapsed() >= SAVE;
        let is_free = !self.is_saving && self.change.is_none() && self.context.failed.is_none();
        if !is_due || !is_free || !self.context.worker.has_room() || facts.promise.is_none() {
            return;
        }
        self.saved = Instant::now();
        if let Part::Following(following) = &self.part {
            facts.committed.clone_from(following.core().committed());
        }
        if self.saved_facts == *facts {
            return;
        }
        self.is_saving = true;
        self.context.worker.give(Job::Save(facts.clone()));
    }

    fn reload_certificates(&mut self) {
        let (Some(tls), Some(config)) = (&self.context.tls, &self.context.config.tls) else {
            return;
        };
        if self.tls_looked.elapsed() < config.reload {
            return;
        }
        if !self.context.worker.has_room() {
            return;
        }
        self.tls_looked = Instant::now();
        self.context.worker.give(Job::Reload(tls.clone()));
    }

    fn note_reloaded(&self, outcome: Result<bool, TlsError>) {
        match outcome {
            Ok(false) => {}
            Ok(true) => {
                self.context.counters.tls_reloads.add(1);
                tracing::info!("certificates loaded anew");
            }
            Err(error) => {
                self.context.counters.tls_reload_errors.add(1);
                tracing::error!(%error, "certificates are not loaded anew; the old ones go on");
            }
        }
    }

    fn make_picture(&mut self) {
        let began = Instant::now();
        let mut stats = self.context.counters.stats();
        stats.promised_epoch = self.context.facts.promise.map_or(0, |promise| promise.epoch);
        match &self.part {
            Part::Idle => {}
            Part::Leading(leading) => {
                stats.role = Role::Leading { epoch: leading.term.epoch() };
                stats.followers = leading.follower_stats(&self.context.clock);
                stats.times = Some(leading.times().clone());
            }
            Part::Following(following) => {
                let Promise { epoch, leader, .. } = following.promise;
                stats.role = Role::Following { epoch, leader };
                stats.following = Some(following.stats());
            }
        }
        stats.committed = match &self.part {
            Part::Following(following) => following.core().committed().clone(),
            _ => self.context.facts.committed.clone(),
        };
        let noted = || "all is back, and that is being noted".to_owned();
        self.context.mender.fill(&mut stats);
        let repairing = self.context.repairing.is_some();
        stats.repairing = repairing.then(|| self.lacking().unwrap_or_else(noted));
        *self.picture.lock().unwrap_or_else(PoisonError::into_inner) = stats;
        // With many streams it takes long: never more than a hundredth of the thread's time.
        self.next_picture = Instant::now() + PICTURE.max(began.elapsed() * 100);
    }

    /// It was told to close, and has sent what it can.
    fn is_over(&self) -> bool {
        let Some(since) = self.closing else { return false };
        let is_drained = match &self.part {
            Part::Leading(leading) => leading.is_drained(),
            Part::Following(_) => self.appends.is_empty(),
            Part::Idle => true,
        };
        let is_at_rest =
            is_drained && self.context.worker.is_idle() && self.requesting.is_drained();
        is_at_rest || since.elapsed() >= self.context.config.drain_timeout
    }
}
