//! One node: its disk, its shard, what it has promised, and its part as leader or follower.

use std::collections::BTreeMap;
use std::time::Duration;

use ringwal_engine::disk::sim::{SimDisk, SimHandle, SimOptions};
use ringwal_engine::{Append, Clock, EpochStart, OpenError, Options, Shard, StreamId};
use ringwal_replication::node_id::{ClusterId, NodeId, RunId};
use ringwal_replication::promise::{FACTS_STREAM, Fact, Identity, Promise};

use super::following::Following;
use super::leading::Leading;
use super::oracle::{Oracle, records};
use crate::random::Random;

const SEGMENT_BYTES: u64 = 64 << 10;
const BATCH_BYTES: usize = 8 << 10;
pub const CLUSTER: ClusterId = ClusterId::new([7; 16]);
/// The time that one turn of a shard may wait.
const TURN: Duration = Duration::from_micros(300);
/// Turns in which a healthy shard does what it was asked for.
const TURNS_MAX: usize = 20_000;

/// What a node does.
pub enum Part {
    /// Neither: it has just started, or has promised an epoch whose leader has not come yet.
    Idle,
    Leading(Box<Leading>),
    Following(Box<Following>),
}

/// See the module.
pub struct Node {
    pub id: NodeId,
    pub sim: SimHandle,
    pub shard: Option<Shard>,
    pub run: RunId,
    pub part: Part,
    pub promised: Option<Promise>,
    /// What it knows to be committed.
    pub committed: BTreeMap<StreamId, u64>,
    /// The files of what was cut here, which outlive every crash: stream, offset, epoch, number.
    pub orphans: Vec<(StreamId, u64, u64, u64)>,
    /// Facts under way.
    saving: Vec<Append>,
    runs: u8,
    engine: [u8; 16],
}

impl Node {
    pub fn new(number: u64, seed: u64) -> Self {
        let sim = SimOptions {
            seed: seed ^ number,
            pool_bytes: 24 * BATCH_BYTES,
            slot_bytes: BATCH_BYTES,
            ..SimOptions::default()
        };
        let mut node = Self {
            id: NodeId::new(number),
            sim: SimHandle::with_options(sim),
            shard: None,
            run: RunId::new([0; 16]),
            part: Part::Idle,
            promised: None,
            committed: BTreeMap::new(),
            orphans: Vec::new(),
            saving: Vec::new(),
            runs: 0,
            engine: [number as u8; 16],
        };
        node.start().expect("a new disk");
        node
    }

    pub fn identity(&self) -> Identity {
        Identity { cluster: CLUSTER, node: self.id }
    }

    pub fn engine(&self) -> [u8; 16] {
        self.engine
    }

    pub fn is_up(&self) -> bool {
        self.shard.is_some()
    }

    pub fn shard(&mut self) -> &mut Shard {
        self.shard.as_mut().expect("the node is up")
    }

    /// Opens the shard again, and reads what was promised.
    pub fn start(&mut self) -> Result<(), OpenError> {
        let options = Options::new().batch_bytes_max(BATCH_BYTES);
        let disk = Box::new(SimDisk::new(self.sim.clone()));
        let clock = Clock::Manual(self.sim.clock());
        let shard = options.open_on(disk, self.engine, SEGMENT_BYTES, clock)?;
        self.runs += 1;
        self.run =
            RunId::new([self.runs, self.id.get() as u8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        self.promised = None;
        self.committed.clear();
        for record in shard.read(FACTS_STREAM, ..).expect("from its start") {
            let record = record.expect("sound");
            match Fact::decode(record.payload()).expect("a fact") {
                Fact::Promise(promise) => self.promised = Some(promise),
                Fact::Committed(ends) => self.committed.extend(ends),
            }
        }
        self.part = Part::Idle;
        self.saving.clear();
        self.shard = Some(shard);
        Ok(())
    }

    /// The machine loses its power, or the process dies.
    pub fn crash(&mut self, power: bool) {
        let Some(shard) = self.shard.take() else { return };
        if power {
            self.sim.crash();
        } else {
            self.sim.kill();
        }
        shard.abandon();
        self.part = Part::Idle;
    }

    /// One turn of the shard's loop.
    pub fn turn(&mut self) {
        if let Some(shard) = &mut self.shard {
            shard.run_once(Some(TURN)).expect("the disk is sound");
        }
    }

    /// Turns until `done`.
    pub fn turn_until(&mut self, mut done: impl FnMut(&mut Self) -> bool) {
        for _ in 0..TURNS_MAX {
            if done(self) {
                return;
            }
            self.turn();
        }
        panic!("node {} makes no progress", self.id);
    }

    /// Makes a fact durable, sooner or later.
    pub fn save(&mut self, fact: &Fact) {
        let bytes = fact.encode();
        loop {
            match self.shard().append(FACTS_STREAM, &bytes) {
                Ok(token) => return self.saving.push(token),
                Err(_) => self.turn(),
            }
        }
    }

    /// Whether all facts are durable.
    pub fn is_saved(&mut self) -> bool {
        self.saving.retain(|token| match token.try_receipt() {
            Some(receipt) => receipt.map(|_| false).expect("the disk is sound"),
            None => true,
        });
        self.saving.is_empty()
    }

    /// Everything that was being appended has its outcome.
    pub fn is_quiet(&mut self) -> bool {
        let is_saved = self.is_saved();
        is_saved
            && match &self.part {
                Part::Idle => true,
                Part::Leading(leading) => leading.is_quiet(),
                Part::Following(following) => following.is_quiet(),
            }
    }

    /// Keeps records as orphans, then cuts them and begins an epoch there; waits for all of it.
    pub fn cut(&mut self, stream: StreamId, from: u64, epoch: u64, oracle: &mut Oracle) {
        let end = super::oracle::held(self.shard(), stream).end;
        let cut = records(self.shard(), stream, from, end);
        oracle.note_cut(stream, &cut);
        for (offset, (epoch, number)) in cut {
            self.orphans.push((stream, offset, epoch, number));
        }
        let start = EpochStart { epoch, start: from };
        let token = self.shard().truncate(stream, start.start, start.epoch).expect("room");
        let mut outcome = None;
        self.turn_until(|_| {
            outcome = token.try_receipt();
            outcome.is_some()
        });
        outcome.expect("it came").expect("the cut is allowed");
    }

    /// Begins a stream anew at an offset, as from a snapshot; waits for it.
    pub fn begin_anew(&mut self, stream: StreamId, at: u64, epoch: u64, oracle: &mut Oracle) {
        oracle.counts.anew += 1;
        let held = super::oracle::held(self.shard(), stream);
        for (offset, (epoch, number)) in records(self.shard(), stream, held.trimmed, held.end) {
            self.orphans.push((stream, offset, epoch, number));
        }
        let skipped = self.shard().skip_to(stream, at).expect("room");
        let begun = self.shard().truncate(stream, at, epoch).expect("room");
        let mut outcome = None;
        self.turn_until(|_| {
            outcome = begun.try_receipt();
            outcome.is_some()
        });
        skipped.try_receipt().expect("it came first").expect("anything may be skipped");
        outcome.expect("it came").expect("nothing is left of an older epoch");
    }

    /// Appends a frame of another node; waits for room only.
    pub fn append_frame(&mut self, frame: &[u8]) {
        while self.shard().append_frame(frame).is_err() {
            self.turn();
        }
    }

    /// Persists what is known to be committed.
    pub fn save_committed(&mut self, random: &mut Random) {
        if random.chance(300) && !self.committed.is_empty() {
            let ends = self.committed.iter().map(|(stream, end)| (*stream, *end)).collect();
            self.save(&Fact::Committed(ends));
        }
    }
}
