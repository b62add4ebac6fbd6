//! What a node has while one run of its process lasts: its shard, what it has promised, its part as leader or
//! follower, its state machine. All of it is behind one lock, and goes on in turns.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use openraft::AsyncRuntime as _;
use ringwal_engine::disk::sim::{SimDisk, SimHandle, SimOptions};
use ringwal_engine::{Append, AppendBatch, Barrier, Clock, EpochTable, Options, Shard, StreamId};
use ringwal_raft_fallback::simulating::{Applied, Base, METADATA_STREAM};
use ringwal_raft_fallback::{Applier, Entry, Metadata, State as Machine, command};
use ringwal_replication::config::Member;
use ringwal_replication::follower::Follower;
use ringwal_replication::history::Held;
use ringwal_replication::node_id::{ClusterId, NodeId, RunId};
use ringwal_replication::promise::{
    Admission, FACTS_STREAM, Fact, Identity, Promise, admit_driven, is_replicated,
};
use ringwal_replication::wire::{Answer, Hello, Message, PROTOCOL_VERSION, Refusal};
use tokio::sync::Notify;

use super::cluster::Cluster;
use super::following::Following;
use super::leading::Leading;
use super::links::Connection;
use super::runtime::{NodeRuntime, Run, lock};

pub const CLUSTER: ClusterId = ClusterId::new([7; 16]);
pub const BATCH_BYTES: usize = 8 << 10;
const SEGMENT_BYTES: u64 = 64 << 10;
/// Of the disk's time, in a turn of the shard.
const DISK_TURN: Duration = Duration::from_micros(300);
/// Between two turns of a node that has something under way.
const TURN: Duration = Duration::from_micros(300);
/// Turns after the last operation of the disk, until a node is taken to have nothing under way.
const TURNS_IDLE: u32 = 12;
/// A node with nothing under way looks around so often.
const LOOK: Duration = Duration::from_millis(40);

/// What is left of a node when its process is gone.
#[derive(Clone)]
pub struct Disk {
    pub sim: SimHandle,
    /// The file with the base of Raft's log.
    pub base: Arc<Mutex<Option<Base>>>,
}

impl Disk {
    /// An empty one.
    pub fn blank(seed: u64) -> Self {
        let sim = SimHandle::with_options(SimOptions {
            seed,
            pool_bytes: 24 * BATCH_BYTES,
            slot_bytes: BATCH_BYTES,
            ..SimOptions::default()
        });
        Self { sim, base: Arc::default() }
    }
}

/// See the module.
pub struct Place {
    pub number: usize,
    pub run_id: RunId,
    pub run: Arc<Run>,
    pub disk: Disk,
    pub cluster: Arc<Cluster>,
    pub metadata: Metadata,
    state: Mutex<State>,
    /// There is something to do.
    pub wake: Notify,
    /// A turn is over.
    pub turned: Notify,
    /// One promise or beginning after the other.
    pub driving: tokio::sync::Mutex<()>,
}

/// What a node does.
pub enum Part {
    Idle,
    Leading(Box<Leading>),
    Following(Box<Following>),
}

pub struct State {
    pub shard: Option<Shard>,
    pub promised: Option<Promise>,
    pub begun: Option<Promise>,
    pub committed: BTreeMap<StreamId, u64>,
    pub part: Part,
    /// A promise or a beginning is under way: nobody is followed.
    pub is_changing: bool,
    /// How often the part has changed.
    pub changes: u64,
    /// Since when nobody is followed.
    pub idle_since_ns: u64,
    pub arrived: VecDeque<(Arc<Connection>, Hello)>,
    admitting: Option<(Arc<Connection>, Promise, Barrier)>,
    pub members: Vec<Member>,
    pub voters: Vec<BTreeSet<NodeId>>,
    /// Frames of entries, while nobody is followed.
    pub extending: Vec<AppendBatch>,
    applier: Applier,
    /// By offset: the epoch of the record, and what came of it.
    pub outcomes: Vec<(u64, Applied)>,
    operations: u64,
    turns_idle: u32,
}

impl State {
    pub fn shard(&mut self) -> &mut Shard {
        self.shard.as_mut().expect("the process lives")
    }

    /// What is held of a stream.
    pub fn held(&self, stream: StreamId) -> Held {
        held(self.shard.as_ref().expect("the process lives"), stream)
    }

    pub fn all_held(&self) -> BTreeMap<StreamId, Held> {
        all_held(self.shard.as_ref().expect("the process lives"))
    }

    pub fn end(&self, stream: StreamId) -> u64 {
        self.shard.as_ref().map_or(0, |shard| shard.end(stream))
    }
}

fn held(shard: &Shard, stream: StreamId) -> Held {
    let epochs = EpochTable::from_entries(shard.epochs(stream)).unwrap_or_default();
    Held { trimmed: shard.trimmed(stream), end: shard.end(stream), epochs }
}

pub fn all_held(shard: &Shard) -> BTreeMap<StreamId, Held> {
    let streams = shard.streams().into_iter().map(|summary| summary.stream);
    streams
        .filter(|stream| is_replicated(*stream))
        .map(|stream| (stream, held(shard, stream)))
        .collect()
}

impl Place {
    /// Opens what is on a disk.
    pub fn open(
        number: usize,
        run_id: RunId,
        run: Arc<Run>,
        disk: Disk,
        cluster: Arc<Cluster>,
    ) -> Result<Arc<Self>, String> {
        let options = Options::new().batch_bytes_max(BATCH_BYTES);
        let simulated = Box::new(SimDisk::new(disk.sim.clone()));
        let clock = Clock::Manual(disk.sim.clock());
        let engine = [number as u8 + 1; 16];
        let shard = options.open_on(simulated, engine, SEGMENT_BYTES, clock);
        let shard = shard.map_err(|error| error.to_string())?;
        let (mut promised, mut begun, mut committed) = (None, None, BTreeMap::new());
        for record in shard.read(FACTS_STREAM, ..).map_err(|error| error.to_string())? {
            let record = record.map_err(|error| error.to_string())?;
            match Fact::decode(record.payload()) {
                Some(Fact::Promise(promise)) => promised = Some(promise),
                Some(Fact::Begun(promise)) => begun = Some(promise),
                Some(Fact::Committed(ends)) => committed.extend(ends),
                other => return Err(format!("{other:?} among the facts")),
            }
        }
        let epoch = begun.map_or(0, |begun: Promise| begun.epoch);
        let (metadata, applier) = Metadata::new(Machine::default(), epoch);
        let state = State {
            shard: Some(shard),
            promised,
            begun,
            committed,
            part: Part::Idle,
            is_changing: false,
            changes: 0,
            idle_since_ns: run.now_ns(),
            arrived: VecDeque::new(),
            admitting: None,
            members: Vec::new(),
            voters: Vec::new(),
            extending: Vec::new(),
            applier,
            outcomes: Vec::new(),
            operations: 0,
            turns_idle: 0,
        };
        Ok(Arc::new(Self {
            number,
            run_id,
            run,
            disk,
            cluster,
            metadata,
            state: Mutex::new(state),
            wake: Notify::new(),
            turned: Notify::new(),
            driving: tokio::sync::Mutex::new(()),
        }))
    }

    pub fn id(&self) -> NodeId {
        NodeId::new(self.number as u64 + 1)
    }

    pub fn engine(&self) -> [u8; 16] {
        [self.number as u8 + 1; 16]
    }

    pub fn identity(&self) -> Identity {
        Identity { cluster: CLUSTER, node: self.id() }
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Something is to be done.
    pub fn rouse(&self) {
        self.wake.notify_one();
    }

    /// The machine loses its power, or the process dies. Its tasks are gone already.
    pub fn abandon(&self) {
        let shard = self.lock().shard.take();
        if let Some(shard) = shard {
            shard.abandon();
        }
    }

    /// Waits until a look at the state gives something; one turn after the other.
    pub async fn wait_for<T>(&self, mut look: impl FnMut(&mut State) -> Option<T> + Send) -> T {
        loop {
            let turned = self.turned.notified();
            let seen = look(&mut self.lock());
            if let Some(seen) = seen {
                return seen;
            }
            turned.await;
        }
    }

    /// Goes on for ever.
    pub async fn run(self: Arc<Self>) {
        loop {
            let is_busy = self.turn();
            self.turned.notify_waiters();
            if is_busy {
                NodeRuntime::sleep(TURN).await;
            } else {
                let _ = NodeRuntime::timeout(LOOK, self.wake.notified()).await;
            }
        }
    }

    /// One turn of everything. Whether something is under way.
    fn turn(self: &Arc<Self>) -> bool {
        let mut state = self.lock();
        let state = &mut *state;
        state.shard().run_once(Some(DISK_TURN)).expect("the disk is sound");
        self.admit(state);
        let now_ns = self.run.now_ns();
        let over = match &mut state.part {
            Part::Idle => None,
            Part::Leading(leading) => {
                let shard = state.shard.as_mut().expect("the process lives");
                leading.turn(self, shard, &mut state.committed, now_ns).err()
            }
            Part::Following(following) => {
                let shard = state.shard.as_mut().expect("the process lives");
                following.turn(self, shard, now_ns).err()
            }
        };
        if let Some(why) = over {
            self.end_part(state, &why);
        }
        state.extending.retain(|token| token.try_receipt().is_none());
        // Meanwhile records may be cut that are applied.
        if !state.is_changing {
            self.apply(state);
        }
        let operations = self.disk.sim.operations();
        state.turns_idle = if operations == state.operations { state.turns_idle + 1 } else { 0 };
        state.operations = operations;
        state.turns_idle < TURNS_IDLE || state.is_changing || state.admitting.is_some()
    }

    /// Something was given to the shard beside a turn.
    pub fn note_given(&self, state: &mut State) {
        state.turns_idle = 0;
        self.rouse();
    }

    /// Its sessions break, whichever side it is.
    pub fn break_sessions(&self) {
        match &self.lock().part {
            Part::Idle => {}
            Part::Leading(leading) => leading.break_sessions(),
            Part::Following(following) => following.break_session(),
        }
    }

    /// Whatever this node does, it does no more.
    pub fn end_part(&self, state: &mut State, why: &str) {
        state.changes += 1;
        state.admitting = None;
        state.idle_since_ns = self.run.now_ns();
        let promised = state.promised.map_or(0, |promise| promise.epoch);
        match std::mem::replace(&mut state.part, Part::Idle) {
            Part::Idle => {}
            Part::Leading(leading) => {
                state.shard().close_epoch();
                leading.end(why);
            }
            Part::Following(following) => {
                state.shard().fence_frames();
                state.committed.clone_from(following.core.committed());
                let message = Message::Leaving {
                    epoch: promised,
                    cause: ringwal_replication::wire::Cause::Changing,
                    reason: why.to_owned(),
                };
                following.say(self, message);
            }
        }
    }

    /// Leaders that have dialled.
    fn admit(&self, state: &mut State) {
        while let Some((connection, hello)) = state.arrived.pop_front() {
            let admission = match state.is_changing {
                true => Admission::Refuse(Refusal::NotBegun, "busy".to_owned()),
                false => admit_driven(self.identity(), state.promised, state.begun, &hello),
            };
            match admission {
                Admission::Follow => {
                    let promise =
                        Promise { epoch: hello.epoch, leader: hello.from, run: hello.run };
                    self.end_part(state, "the leader dials again");
                    let barrier = state.shard().barrier().expect("the disk is sound");
                    state.admitting = Some((connection, promise, barrier));
                }
                Admission::Promise(_) => panic!("a driven node promises nothing by itself"),
                Admission::Refuse(refusal, why) => {
                    self.answer(state, &connection, Some((refusal, why)));
                }
            }
        }
        let is_quiet = |(_, _, barrier): &mut (Arc<Connection>, Promise, Barrier)| {
            barrier.try_receipt().is_some()
        };
        if let Some((connection, promise, _)) = state.admitting.take_if(is_quiet) {
            let committed = state.committed.clone();
            let core = Follower::new(promise.epoch, false, state.all_held(), committed).driven();
            self.answer(state, &connection, None);
            let following = Following::new(promise, core, connection, self.run.now_ns());
            state.part = Part::Following(Box::new(following));
            self.cluster.oracle(|oracle| oracle.counts.sessions += 1);
        }
    }

    fn answer(
        &self,
        state: &State,
        connection: &Arc<Connection>,
        refused: Option<(Refusal, String)>,
    ) {
        let answer = Answer {
            version: PROTOCOL_VERSION,
            refused,
            node: self.id(),
            run: self.run_id,
            engine: self.engine(),
            epoch: state.promised.map_or(0, |promise| promise.epoch),
        };
        let (cluster, leader) = (self.cluster.clone(), connection.leader);
        connection.send(false, answer.encode().into(), move || cluster.rouse(leader));
    }

    /// Facts on their way to the disk; the last token tells of all.
    pub fn save(&self, state: &mut State, facts: &[Fact]) -> Vec<Append> {
        let tokens = facts.iter().map(|fact| {
            let bytes = fact.encode();
            loop {
                match state.shard().append(FACTS_STREAM, &bytes) {
                    Ok(token) => return token,
                    Err(_) => drop(state.shard().run_once(Some(DISK_TURN))),
                }
            }
        });
        let tokens = tokens.collect();
        self.note_given(state);
        tokens
    }

    /// Applies what is durable and is not applied yet.
    fn apply(&self, state: &mut State) {
        let (applied, end) = (state.outcomes.len() as u64, state.end(METADATA_STREAM));
        assert!(applied <= end, "{applied} are applied, and {end} are there");
        if applied == end {
            return;
        }
        let records =
            state.shard().read(METADATA_STREAM, applied..end).expect("nothing is trimmed");
        let records: Vec<_> = records.map(|record| record.expect("the disk is sound")).collect();
        let entries = records.iter().map(|record| Entry {
            offset: record.offset(),
            epoch: record.epoch(),
            payload: record.payload(),
        });
        let mut outcomes = Vec::new();
        state.applier.apply(entries, &mut outcomes).unwrap_or_else(|error| panic!("{error}"));
        let epochs = records.iter().map(|record| record.epoch());
        let applied: Vec<_> = epochs.zip(outcomes).collect();
        self.cluster.oracle(|oracle| oracle.note_applied(self.number, &records, &applied));
        state.outcomes.extend(applied);
    }

    /// An epoch has begun: the state machine is made anew where records of it were cut.
    pub fn begin_applying(&self, state: &mut State, epoch: u64, cut_from: Option<u64>) {
        let from = cut_from.unwrap_or(u64::MAX);
        if from >= state.outcomes.len() as u64 {
            return state.applier.raise_epoch(epoch);
        }
        state.outcomes.truncate(from as usize);
        let mut machine = Machine::default();
        let records = state.shard().read(METADATA_STREAM, 0..from).expect("nothing is trimmed");
        for record in records {
            let record = record.expect("the disk is sound");
            let decoded = command::Record::decode(record.payload()).expect("it was applied before");
            let applied = machine.apply(record.offset(), record.epoch(), decoded);
            applied.expect("it was applied before");
        }
        state.applier.replace(machine, epoch).unwrap_or_else(|error| panic!("{error}"));
    }
}
