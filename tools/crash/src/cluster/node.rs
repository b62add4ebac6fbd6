//! One node: its disks, its shards, what it has promised, and its part as leader or follower.

use std::collections::BTreeMap;

use ringwal_engine::disk::sim::SimHandle;
use ringwal_engine::{Append, OpenError, StreamId};
use ringwal_replication::node_id::{ClusterId, NodeId, RunId};
use ringwal_replication::promise::{FACTS_STREAM, Fact, Identity, Promise};
use ringwal_replication::wire::Hello;

use super::following::Following;
use super::leading::Leading;
use super::oracle::Oracle;
use super::orphans::Keeping;
use super::store::{Store, blank_disks};
use crate::random::Random;

pub const CLUSTER: ClusterId = ClusterId::new([7; 16]);
/// Turns in which a healthy shard does what it was asked for.
const TURNS_MAX: usize = 20_000;

/// What a node does.
pub enum Part {
    /// Neither: it has just started, or has promised an epoch whose leader has not come yet.
    Idle,
    Leading(Box<Leading>),
    Following(Box<Following>),
}

/// A node died while it was at something: whoever notices takes it down.
#[derive(Debug)]
pub struct Died;

/// See the module.
pub struct Node {
    pub id: NodeId,
    pub disks: Vec<SimHandle>,
    pub store: Option<Store>,
    pub run: RunId,
    pub part: Part,
    pub promised: Option<Promise>,
    /// What it knows to be committed.
    pub committed: BTreeMap<StreamId, u64>,
    /// A hello that is answered when its promise is durable and nothing is under way.
    pub admitting: Option<(usize, Hello)>,
    /// It has lost its disks, and does not vote until it holds everything again (I-15).
    pub is_learner: bool,
    /// It dies after so many turns more, when it is waited for.
    pub dies_in: Option<u64>,
    /// Facts under way.
    saving: Vec<Append>,
    seed: u64,
    runs: u8,
    disks_lost: u8,
}

impl Node {
    pub fn new(number: u64, shards: u64, seed: u64) -> Self {
        let mut node = Self {
            id: NodeId::new(number),
            disks: blank_disks(shards, seed ^ number),
            store: None,
            run: RunId::new([0; 16]),
            part: Part::Idle,
            promised: None,
            committed: BTreeMap::new(),
            admitting: None,
            is_learner: false,
            dies_in: None,
            saving: Vec::new(),
            seed: seed ^ number,
            runs: 0,
            disks_lost: 0,
        };
        node.start().expect("new disks");
        node
    }

    pub fn identity(&self) -> Identity {
        Identity { cluster: CLUSTER, node: self.id }
    }

    /// Other disks have another engine.
    pub fn engine(&self) -> [u8; 16] {
        let mut engine = [self.id.get() as u8; 16];
        engine[15] = self.disks_lost;
        engine
    }

    pub fn is_up(&self) -> bool {
        self.store.is_some()
    }

    pub fn store(&mut self) -> &mut Store {
        self.store.as_mut().expect("the node is up")
    }

    /// Opens the shards again, and reads what was promised.
    pub fn start(&mut self) -> Result<(), OpenError> {
        let store = Store::open(&self.disks, self.engine())?;
        self.runs += 1;
        let mut run = [0; 16];
        run[..2].copy_from_slice(&[self.runs, self.id.get() as u8]);
        self.run = RunId::new(run);
        self.promised = None;
        self.committed.clear();
        for record in store.at(FACTS_STREAM).read(FACTS_STREAM, ..).expect("from its start") {
            let record = record.expect("sound");
            match Fact::decode(record.payload()).expect("a fact") {
                Fact::Promise(promise) => self.promised = Some(promise),
                Fact::Member(..) => panic!("no node here keeps the disks of others"),
                Fact::Begun(_) => panic!("no node here is driven"),
                Fact::Committed(ends) => self.committed.extend(ends),
            }
        }
        self.store = Some(store);
        Ok(())
    }

    /// While it is down, somebody puts in blank disks.
    pub fn lose_disks(&mut self) {
        assert!(!self.is_up(), "it is down");
        self.disks_lost += 1;
        let seed = self.seed ^ (u64::from(self.disks_lost) << 48);
        self.disks = blank_disks(self.disks.len() as u64, seed);
        self.is_learner = true;
    }

    /// The machine loses its power, or the process dies. What it did, if it led.
    pub fn crash(&mut self, power: bool) -> Option<Box<Leading>> {
        let store = self.store.take()?;
        for disk in &self.disks {
            if power {
                disk.crash();
            } else {
                disk.kill();
            }
        }
        store.abandon();
        self.saving.clear();
        self.admitting = None;
        self.dies_in = None;
        match std::mem::replace(&mut self.part, Part::Idle) {
            Part::Leading(leading) => Some(leading),
            _ => None,
        }
    }

    /// One turn of the shards' loops.
    pub fn turn(&mut self) {
        if let Some(store) = &mut self.store {
            store.turn();
        }
    }

    /// Turns until `done`, or until it dies.
    pub fn turn_until(&mut self, mut done: impl FnMut(&mut Self) -> bool) -> Result<(), Died> {
        for _ in 0..TURNS_MAX {
            match &mut self.dies_in {
                Some(0) => return Err(Died),
                Some(turns) => *turns -= 1,
                None => {}
            }
            if done(self) {
                return Ok(());
            }
            self.turn();
        }
        panic!("node {} makes no progress", self.id);
    }

    /// Makes a fact durable, sooner or later.
    pub fn save(&mut self, fact: &Fact) {
        let bytes = fact.encode();
        loop {
            match self.store().of(FACTS_STREAM).append(FACTS_STREAM, &bytes) {
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

    /// Whether a stream is being cut or begun anew, as a follower.
    pub fn is_changing(&self) -> bool {
        matches!(&self.part, Part::Following(following) if following.is_changing())
    }

    /// Keeps records as orphans, then cuts them and begins an epoch there; waits for all of it.
    pub fn cut(
        &mut self,
        stream: StreamId,
        from: u64,
        epoch: u64,
        oracle: &mut Oracle,
    ) -> Result<(), Died> {
        self.keep(stream, from, from, oracle)?;
        let cut = self.store().of(stream).truncate(stream, from, epoch).expect("room");
        self.turn_until(|_| cut.try_receipt().is_some())?;
        cut.try_receipt().expect("it came").expect("the cut is allowed");
        Ok(())
    }

    /// Begins a stream anew at an offset, as from a snapshot; waits for it.
    pub fn begin_anew(
        &mut self,
        stream: StreamId,
        at: u64,
        epoch: u64,
        oracle: &mut Oracle,
    ) -> Result<(), Died> {
        oracle.counts.anew += 1;
        let trimmed = self.store().held(stream).trimmed;
        self.keep(stream, trimmed, at, oracle)?;
        let begun = self.store().of(stream).begin_anew(stream, at, epoch).expect("room");
        self.turn_until(|_| begun.try_receipt().is_some())?;
        begun.try_receipt().expect("it came").expect("anything may be begun anew");
        Ok(())
    }

    /// Keeps what is held of a stream from an offset on; waits for it. From `lost` on, nothing else
    /// has it.
    fn keep(
        &mut self,
        stream: StreamId,
        from: u64,
        lost: u64,
        oracle: &mut Oracle,
    ) -> Result<(), Died> {
        let end = self.store().held(stream).end;
        let records = self.store().records(stream, from, end);
        oracle.note_cut(self.id, stream, &records, lost);
        let mut keeping = Keeping::new(stream, &records);
        self.turn_until(|node| keeping.advance(node.store()))
    }

    /// Appends a frame of another node; waits for room only.
    pub fn append_frame(&mut self, stream: StreamId, frame: &[u8]) {
        while self.store().of(stream).append_frame(frame).is_err() {
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
