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
mod connection;
mod dial;
mod fetching;
mod following;
mod leading;
mod repairing;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender};
use ringwal_engine::{Engine, StreamId};

use crate::config::Config;
use crate::follower::Follower;
use crate::history::Held;
use crate::link::Listener;
use crate::link::tls::Tls;
use crate::node_id::{NodeId, RunId};
use crate::promise::{Admission, Identity, Promise, admit};
use crate::repair::Marker;
use crate::stats::{Counters, NodeStats, Role};
use crate::term::Term;
use crate::wake::Wake;
use crate::wire::{Answer, ConnectionKind, PROTOCOL_VERSION, Refusal};
use crate::worker::{self, Job, Outcome, Worker};

use accept::{Arrivals, Arrived};
use connection::Connection;
use fetching::Fetching;
use following::{Appends, Following};
use leading::Leading;
use repairing::Repairing;

/// What a node knows to be committed is made durable so often, when it has changed.
const SAVE: Duration = Duration::from_secs(2);
/// A picture of the counts is made so often.
const PICTURE: Duration = Duration::from_millis(100);

/// What a caller asks for.
pub(crate) enum Command {
    /// Lead in this epoch.
    Lead { epoch: u64, reply: Sender<Result<Arc<Term>, LeadError>> },
    /// Lead no more, if it is in this epoch.
    Retire { epoch: u64, why: String },
    /// Drop a prefix of a stream as soon as followers allow it.
    Trim { stream: StreamId, before: u64 },
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
    #[error("epoch {0} is none: epochs are from 1 to 2^62")]
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
    /// The node is closed, or its thread has died.
    #[error("the node is closed")]
    Closed,
}

/// Greatest epoch; the engine keeps a bit for itself.
const EPOCH_MAX: u64 = 1 << 62;

/// What all parts share.
pub(crate) struct Context {
    pub(crate) engine: Engine,
    pub(crate) config: Arc<Config>,
    pub(crate) me: Identity,
    pub(crate) run: RunId,
    pub(crate) tls: Option<Arc<Tls>>,
    pub(crate) worker: Worker,
    pub(crate) wake: Arc<Wake>,
    pub(crate) waker: Waker,
    pub(crate) counters: Arc<Counters>,
    pub(crate) clock: Clock,
    /// What is known to be committed.
    pub(crate) committed: BTreeMap<StreamId, u64>,
    pub(crate) frame_bytes_max: usize,
    /// What a repair has taken away, until it is back.
    pub(crate) repairing: Option<Repairing>,
}

impl Context {
    /// Bytes of the segments in use.
    pub(crate) fn journal_bytes(&self) -> u64 {
        self.engine.stats().shards.iter().map(|shard| shard.segments.bytes).sum()
    }
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
    pub(crate) wake: Arc<Wake>,
    pub(crate) commands: Receiver<Command>,
    pub(crate) promised: Option<Promise>,
    pub(crate) committed: BTreeMap<StreamId, u64>,
    pub(crate) repairing: Option<Marker>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) picture: Arc<Mutex<NodeStats>>,
}

/// Runs until it is told to close.
pub(crate) fn run(setup: Setup) {
    tokio_uring::start(async move {
        let tick = setup.config.heartbeat.min(Duration::from_millis(50));
        let wake = setup.wake.clone();
        let mut replica = Replica::new(setup);
        let mut ticked = Instant::now();
        while !replica.is_over() {
            let is_busy = replica.turn();
            if ticked.elapsed() >= tick {
                ticked = Instant::now();
                replica.tick();
            }
            if is_busy {
                wake.wake();
            }
            wake.wait(tick).await;
        }
        replica.end("the node is closed");
        // Tasks that write a last message get their turn.
        tokio::time::sleep(Duration::from_millis(20)).await;
    });
}

/// See the module.
struct Replica {
    context: Context,
    commands: Receiver<Command>,
    arrivals: Arrivals,
    appends: Appends,
    fetching: Fetching,
    promised: Option<Promise>,
    part: Part,
    change: Option<Change>,
    closing: Option<Instant>,
    /// A save is under way, or was last made then.
    is_saving: bool,
    saved: Instant,
    saved_committed: BTreeMap<StreamId, u64>,
    picture: Arc<Mutex<NodeStats>>,
    pictured: Instant,
    tls_looked: Instant,
}

enum Part {
    Idle,
    Leading(Box<Leading>),
    Following(Box<Following>),
}

/// A change of part that is under way.
struct Change {
    to: To,
    promise: Promise,
    is_promising: bool,
}

enum To {
    Lead(Sender<Result<Arc<Term>, LeadError>>),
    Follow(Box<Arrived>),
}

impl Replica {
    fn new(setup: Setup) -> Self {
        let Setup { engine, config, run, listener, tls, worker, wake, commands, .. } = setup;
        let arrivals = Arrivals::default();
        let counters = setup.counters;
        accept::start(listener, tls.clone(), &config, &arrivals, counters.clone(), wake.clone());
        let me = Identity { cluster: config.cluster, node: config.node };
        let context = Context {
            frame_bytes_max: engine.frame_bytes_max(),
            engine,
            me,
            config,
            run,
            tls,
            worker,
            waker: Waker::from(wake.clone()),
            wake,
            counters,
            clock: Clock(Instant::now()),
            committed: setup.committed.clone(),
            repairing: setup.repairing.map(Repairing::new),
        };
        Self {
            context,
            commands,
            arrivals,
            appends: Appends::default(),
            fetching: Fetching::default(),
            promised: setup.promised,
            part: Part::Idle,
            change: None,
            closing: None,
            is_saving: false,
            saved: Instant::now(),
            saved_committed: setup.committed,
            picture: setup.picture,
            pictured: Instant::now(),
            tls_looked: Instant::now(),
        }
    }

    /// One turn of everything that can be done now. True when there is more to do at once.
    fn turn(&mut self) -> bool {
        while let Ok(command) = self.commands.try_recv() {
            self.handle_command(command);
        }
        while let Some(arrived) = self.arrivals.take() {
            self.handle_arrived(arrived);
        }
        while let Some(outcome) = self.context.worker.take() {
            self.handle_outcome(outcome);
        }
        self.advance_change();
        let may_read = self.change.is_none() && self.closing.is_none();
        let is_read = self.fetching.turn(&mut self.context, may_read);
        let is_busy = is_read
            | match &mut self.part {
                Part::Idle => {
                    // What the last session left.
                    let waker = self.context.waker.clone();
                    let _ = self.appends.poll_waiting(&waker);
                    while self.appends.poll_appended(&waker).is_some() {}
                    false
                }
                Part::Leading(leading) => {
                    let (turn, is_busy) = leading.turn(&mut self.context);
                    match turn {
                        leading::Turn::Goes => is_busy || !leading.park(&self.context.waker),
                        leading::Turn::Deposed(why) => {
                            self.end(&why);
                            false
                        }
                    }
                }
                Part::Following(following) => {
                    match following.turn(&mut self.context, &mut self.appends) {
                        following::Turn::Goes(is_busy) => is_busy,
                        following::Turn::Ends(why) => {
                            self.end_following(&why);
                            false
                        }
                    }
                }
            };
        // What is left to a change may have ended with this turn.
        is_busy
            || self.change.as_ref().is_some_and(|change| !change.is_promising) && self.is_quiet()
    }

    fn handle_command(&mut self, command: Command) {
        match command {
            Command::Lead { epoch, reply } => {
                let lacking = self.lacking();
                let refused = match self.promised {
                    _ if lacking.is_some() => {
                        lacking.map(|lacking| LeadError::Repairing { lacking })
                    }
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
            Command::Retire { epoch, why } => {
                if let Part::Leading(leading) = &self.part
                    && leading.term.epoch() == epoch
                {
                    self.end(&why);
                }
            }
            Command::Trim { stream, before } => match &mut self.part {
                Part::Leading(leading) => leading.handle_trim(stream, before),
                _ => {
                    let _ = self.context.engine.stream(stream).trim_async(before);
                }
            },
            Command::Close => {
                self.closing.get_or_insert_with(Instant::now);
                // Nothing more is sealed; what is, still goes out.
                self.context.engine.close_epoch();
            }
        }
    }

    /// What a repair has taken away and is not back.
    fn lacking(&self) -> Option<String> {
        let is_following = matches!(self.part, Part::Following(_));
        self.context.repairing.as_ref()?.lacking(&self.context.engine, is_following)
    }

    fn handle_arrived(&mut self, arrived: Arrived) {
        if arrived.hello.kind == ConnectionKind::Fetch {
            return self.handle_reader(arrived);
        }
        let members: Vec<NodeId> = self.context.config.members.iter().map(|m| m.node).collect();
        let admission = match self.closing {
            Some(_) => Admission::Refuse(Refusal::NotNow, "this node is closing".into()),
            None if !self.may_speak_for(&arrived) => {
                let why = format!(
                    "the certificate names {:?}, which is not node {}",
                    arrived.names, arrived.hello.from
                );
                Admission::Refuse(Refusal::NotAMember, why)
            }
            None => admit(self.context.me, &members, self.promised, &arrived.hello),
        };
        let promise = match admission {
            Admission::Promise(promise) => promise,
            Admission::Follow => self.promised.expect("it is promised"),
            Admission::Refuse(refusal, why) => return self.refuse(arrived, refusal, why),
        };
        let is_later = |change: &Change| change.promise.epoch > promise.epoch;
        if self.change.as_ref().is_some_and(is_later) {
            let why = "a later epoch is about to begin here".to_owned();
            return self.refuse(arrived, Refusal::Epoch, why);
        }
        self.begin_change(To::Follow(Box::new(arrived)), promise);
    }

    /// Somebody wants to read, to repair its own.
    fn handle_reader(&mut self, arrived: Arrived) {
        let members: Vec<NodeId> = self.context.config.members.iter().map(|m| m.node).collect();
        let refused = crate::fetch::refuse(self.context.me, &members, &arrived.hello);
        let not_now = |why: String| (Refusal::NotNow, why);
        let refused = refused.or_else(|| match self.lacking() {
            _ if !self.may_speak_for(&arrived) => {
                let (names, node) = (&arrived.names, arrived.hello.from);
                let why = format!("the certificate names {names:?}, which is not node {node}");
                Some((Refusal::NotAMember, why))
            }
            _ if self.closing.is_some() => Some(not_now("this node is closing".into())),
            // What it has is no measure of what there was.
            Some(lacking) => Some(not_now(format!("this node is being repaired: {lacking}"))),
            None => self.fetching.is_full().map(not_now),
        });
        match refused {
            Some((refusal, why)) => self.refuse(arrived, refusal, why),
            None => {
                let answer = self.answer(None);
                self.fetching.begin(&self.context, arrived, &answer);
                self.context.wake.wake();
            }
        }
    }

    /// With TLS a certificate says who somebody is: the host of a member's address, or `node-N`.
    fn may_speak_for(&self, arrived: &Arrived) -> bool {
        let Some(names) = &arrived.names else { return true };
        let node = arrived.hello.from;
        let member = self.context.config.members.iter().find(|member| member.node == node);
        let own = format!("node-{node}");
        member.is_some_and(|member| {
            names.iter().any(|name| *name == own || name.eq_ignore_ascii_case(member.host()))
        })
    }

    fn refuse(&self, arrived: Arrived, refusal: Refusal, why: String) {
        self.context.counters.note_refused(refusal);
        tracing::info!(node = %arrived.hello.from, epoch = arrived.hello.epoch, %refusal, why, "refused");
        let answer = self.answer(Some((refusal, why)));
        accept::refuse(arrived, &answer);
    }

    fn answer(&self, refused: Option<(Refusal, String)>) -> Answer {
        Answer {
            version: if refused.is_some() { 0 } else { PROTOCOL_VERSION },
            refused,
            node: self.context.me.node,
            run: self.context.run,
            engine: self.context.engine.id(),
            epoch: self.promised.map_or(0, |promise| promise.epoch),
        }
    }

    /// What this node was ends at once; what it will be begins when nothing is in flight.
    fn begin_change(&mut self, to: To, promise: Promise) {
        let why = format!("epoch {} of node {} begins", promise.epoch, promise.leader);
        if let Some(before) = self.change.take() {
            self.give_up(before, Refusal::NotNow, &why);
        }
        let is_followed = |part: &Part| matches!(part, Part::Following(following) if following.promise == promise);
        match &self.part {
            part if is_followed(part) => self.end_following("the leader dials again"),
            _ => self.end(&why),
        }
        self.change = Some(Change { to, promise, is_promising: false });
    }

    fn give_up(&self, change: Change, refusal: Refusal, why: &str) {
        match change.to {
            To::Follow(arrived) => self.refuse(*arrived, refusal, why.to_owned()),
            To::Lead(reply) => {
                let asked = change.promise.epoch;
                let _ = reply.send(Err(LeadError::Overtaken { asked, why: why.to_owned() }));
            }
        }
    }

    /// Nothing of an earlier part is in flight.
    fn is_quiet(&self) -> bool {
        self.appends.is_empty() && self.context.worker.is_idle()
    }

    fn advance_change(&mut self) {
        let is_quiet = self.is_quiet();
        let Some(change) = &mut self.change else { return };
        if change.is_promising || !is_quiet {
            return;
        }
        if self.promised == Some(change.promise) && matches!(change.to, To::Follow(_)) {
            let promise = change.promise;
            let held = worker::held(&self.context.engine);
            return self.finish_change(promise, Ok(held));
        }
        change.is_promising = true;
        let (promise, committed) = (change.promise, self.context.committed.clone());
        self.context.worker.give(Job::Promise { promise, committed });
    }

    fn finish_change(&mut self, promise: Promise, held: Result<BTreeMap<StreamId, Held>, String>) {
        if held.is_ok() {
            self.promised = Some(promise);
        }
        // Another one may have taken its place meanwhile, and makes a promise of its own.
        let Some(change) = self.change.take_if(|change| change.promise == promise) else { return };
        let held = match held {
            Ok(held) => held,
            Err(why) => {
                tracing::error!(epoch = promise.epoch, why, "cannot make a promise durable");
                return match change.to {
                    To::Follow(arrived) => self.refuse(*arrived, Refusal::NotNow, why),
                    To::Lead(reply) => {
                        let asked = promise.epoch;
                        drop(reply.send(Err(LeadError::NotPromised { asked, why })));
                    }
                };
            }
        };
        match change.to {
            To::Lead(reply) => self.lead(promise, held, &reply),
            To::Follow(arrived) => self.follow(promise, held, *arrived),
        }
    }

    fn lead(
        &mut self,
        promise: Promise,
        held: BTreeMap<StreamId, Held>,
        reply: &Sender<Result<Arc<Term>, LeadError>>,
    ) {
        let is_alone = self.context.config.members.len() <= 1;
        let term = Arc::new(Term::new(promise.epoch, is_alone));
        let leading = Leading::new(&self.context, term.clone(), held);
        self.part = Part::Leading(Box::new(leading));
        tracing::info!(epoch = promise.epoch, "leading");
        self.make_picture();
        let _ = reply.send(Ok(term));
    }

    fn follow(&mut self, promise: Promise, held: BTreeMap<StreamId, Held>, arrived: Arrived) {
        if let Some(repairing) = &mut self.context.repairing {
            repairing.handle_session();
        }
        let context = &self.context;
        let committed = context.committed.clone();
        let follows_trims = context.config.follow_trims;
        let core = Follower::new(promise.epoch, follows_trims, held, committed);
        let answer = Bytes::from(self.answer(None).encode());
        let Arrived { reader, writer, place, .. } = arrived;
        let (bytes_max, wake) = (context.frame_bytes_max, context.wake.clone());
        let connection = Connection::start(reader, writer, bytes_max, wake);
        let following = Following::new(promise, core, connection, place, answer);
        self.part = Part::Following(Box::new(following));
        tracing::info!(epoch = promise.epoch, leader = %promise.leader, "following");
        self.make_picture();
        self.context.wake.wake();
    }

    fn handle_outcome(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Promised(promise, held) => self.finish_change(promise, held),
            Outcome::Saved(saved) => {
                self.is_saving = false;
                if let Err(error) = saved {
                    tracing::warn!(error, "cannot make durable what is committed");
                }
            }
            Outcome::Fetched(session, fetched) => self.fetching.handle_fetched(session, fetched),
            Outcome::RepairEnded(ended) => self.finish_repair(ended),
            Outcome::Read(request, read) => {
                if let Part::Leading(leading) = &mut self.part {
                    leading.handle_read(request, read);
                }
            }
            outcome => {
                if let Part::Following(following) = &mut self.part
                    && let Err(why) = following.handle_outcome(outcome, &self.context)
                {
                    self.end_following(&why);
                }
            }
        }
    }

    /// Whatever it does, it does no more; callers who wait learn why.
    fn end(&mut self, why: &str) {
        match &mut self.part {
            Part::Idle => {}
            Part::Following(_) => return self.end_following(why),
            Part::Leading(leading) => {
                self.context.engine.close_epoch();
                leading.end(why);
                tracing::info!(epoch = leading.term.epoch(), why, "leading no more");
            }
        }
        self.part = Part::Idle;
        self.make_picture();
    }

    fn end_following(&mut self, why: &str) {
        if let Part::Following(following) = std::mem::replace(&mut self.part, Part::Idle) {
            self.context.committed.clone_from(following.core().committed());
            self.context.counters.sessions_ended.add(1);
            let Promise { epoch, leader, .. } = following.promise;
            tracing::info!(epoch, %leader, why, "following no more");
            self.make_picture();
        }
    }

    /// Now and then.
    fn tick(&mut self) {
        match &mut self.part {
            Part::Idle => {}
            Part::Leading(leading) => leading.tick(&mut self.context),
            Part::Following(following) => {
                if let Err(why) = following.tick(&self.context) {
                    self.end_following(&why);
                }
            }
        }
        self.fetching.tick();
        self.end_repair();
        self.save_committed();
        self.reload_certificates();
        if self.pictured.elapsed() >= PICTURE {
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

    /// What is known to be committed survives this process: it is never cut (I-14).
    fn save_committed(&mut self) {
        if let Part::Following(following) = &self.part {
            self.context.committed.clone_from(following.core().committed());
        }
        let is_due = self.saved.elapsed() >= SAVE && !self.is_saving && self.change.is_none();
        if !is_due || !self.context.worker.has_room() || self.promised.is_none() {
            return;
        }
        self.saved = Instant::now();
        if self.saved_committed == self.context.committed {
            return;
        }
        let committed = self.context.committed.clone();
        self.saved_committed.clone_from(&committed);
        self.is_saving = true;
        self.context.worker.give(Job::SaveCommitted { promise: self.promised, committed });
    }

    fn reload_certificates(&mut self) {
        let (Some(tls), Some(config)) = (&self.context.tls, &self.context.config.tls) else {
            return;
        };
        if self.tls_looked.elapsed() < config.reload {
            return;
        }
        self.tls_looked = Instant::now();
        match tls.reload_if_changed() {
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
        self.pictured = Instant::now();
        let mut stats = self.context.counters.stats();
        stats.promised_epoch = self.promised.map_or(0, |promise| promise.epoch);
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
            }
        }
        stats.committed = self.context.committed.clone();
        let noted = || "all is back, and that is being noted".to_owned();
        let repairing = self.context.repairing.is_some();
        stats.repairing = repairing.then(|| self.lacking().unwrap_or_else(noted));
        *self.picture.lock().unwrap_or_else(PoisonError::into_inner) = stats;
    }

    /// It was told to close, and has sent what it can.
    fn is_over(&self) -> bool {
        let Some(since) = self.closing else { return false };
        let is_drained = match &self.part {
            Part::Leading(leading) => leading.is_drained(),
            Part::Following(_) => self.appends.is_empty(),
            Part::Idle => true,
        };
        let is_at_rest = is_drained && self.context.worker.is_idle();
        is_at_rest || since.elapsed() >= self.context.config.drain_timeout
    }
}
