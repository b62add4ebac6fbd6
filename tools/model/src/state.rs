//! The state of the model: three nodes, one replicated stream, the committed part of Raft's log.
//! No step is here.

use std::hash::{Hash, Hasher};

use crate::configuration::Configuration;
use crate::packed::PackedHasher;
use crate::properties::Violation;
use crate::sequence::Sequence;

pub const NODES: usize = 3;
pub const MAJORITY: usize = 2;
pub const RECORDS_MAX: usize = 5;
/// Epochs are numbered from 1; 0 is unused.
pub const EPOCHS_MAX: usize = 4;
pub const LOG_MAX: usize = 9;

pub type Records = Sequence<Record, RECORDS_MAX>;

/// The offset is the position. Every record that is made has a value of its own.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Record {
    pub epoch: u8,
    pub value: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Begin {
    pub epoch: u8,
    pub start: u8,
}

/// A stream's durable table of epochs (I-17).
pub type Table = Sequence<Begin, EPOCHS_MAX>;

pub fn epoch_at(table: &Table, offset: usize) -> u8 {
    table.iter().rev().find(|begin| usize::from(begin.start) <= offset).map_or(0, |it| it.epoch)
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Entry {
    #[default]
    Nothing,
    Blank,
    EpochStart {
        epoch: u8,
        start: u8,
    },
    Extend {
        epoch: u8,
        base: u8,
        records: Records,
    },
}

/// A committed entry of Raft with the term it was proposed in.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Logged {
    pub term: u8,
    pub entry: Entry,
}

/// What a node says when it promises.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Answer {
    pub last_epoch: u8,
    pub end: u8,
    pub watermark: u8,
}

/// What a node that believes to lead keeps in memory; a crash takes it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Leads {
    pub epoch: u8,
    /// It has applied its own `EpochStart`.
    pub open: bool,
    pub fast: bool,
    pub lease: bool,
    pub answers: [Option<Answer>; NODES],
    pub reported: [u8; NODES],
}

impl Leads {
    pub fn elected(epoch: u8) -> Self {
        Self {
            epoch,
            open: false,
            fast: true,
            lease: false,
            answers: [None; NODES],
            reported: [0; NODES],
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Node {
    pub stream: Records,
    /// How much of `stream` is durable; the rest is in flight.
    pub durable: u8,
    /// What the state machine was given, speculatively.
    pub machine: Records,
    pub table: Table,
    pub promised: u8,
    /// How many entries of Raft's log are applied.
    pub applied: u8,
    /// The committed watermark that it knows.
    pub watermark: u8,
    /// Not so after its disk was lost, until it is admitted again (I-15).
    pub votes: bool,
    /// A known mistake: batches of an older epoch are in flight behind a promise.
    pub reports_late: bool,
    pub leads: Option<Leads>,
    /// What it wants to propose; proposed late if it is deposed and elected again.
    pub queued: Entry,
}

impl Node {
    pub fn new() -> Self {
        let mut table = Table::new();
        table.push(Begin { epoch: 1, start: 0 });
        Self {
            stream: Records::new(),
            durable: 0,
            machine: Records::new(),
            table,
            promised: 1,
            applied: 0,
            watermark: 0,
            votes: true,
            reports_late: false,
            leads: None,
            queued: Entry::Nothing,
        }
    }

    pub fn end(&self) -> u8 {
        self.stream.len() as u8
    }

    /// The epoch that it has applied last.
    pub fn epoch(&self) -> u8 {
        self.table.last().map_or(0, |begin| begin.epoch)
    }

    pub fn flush(&mut self) {
        self.durable = self.end();
    }

    /// It leads in this epoch, has opened it, and has promised no other.
    pub fn open(&self) -> Option<Leads> {
        self.leads.filter(|leads| leads.open && leads.epoch == self.promised)
    }
}

/// How often what is rare may still happen.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Budget {
    pub records: u8,
    pub extends: u8,
    pub switches: u8,
    pub repeats: u8,
    pub crashes: u8,
    pub disks: u8,
    pub snapshots: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct State {
    pub nodes: [Node; NODES],
    /// What Raft has committed. An entry that was proposed and lost was never here.
    pub log: Sequence<Logged, LOG_MAX>,
    /// The greatest term that somebody was elected in.
    pub term: u8,
    pub left: Budget,
    /// How many records were made: the next one's value.
    pub values: u8,
    /// For the oracle, and for frames that are under way for ever: the stream of the leader of each epoch
    /// with all it ever sent.
    pub sent: [Records; EPOCHS_MAX],
    /// For the oracle: epochs that were opened, by bit.
    pub opened: u8,
    /// For the oracle: what somebody held to be committed.
    pub committed: Records,
    /// For the oracle: the first epoch in which each of them was held to be so.
    pub committed_in: [u8; RECORDS_MAX],
    pub violations: u16,
}

impl State {
    pub fn new(configuration: &Configuration) -> Self {
        let mut nodes = [Node::new(); NODES];
        nodes[0].leads = Some(Leads { open: true, lease: true, ..Leads::elected(1) });
        Self {
            nodes,
            log: Sequence::new(),
            term: 1,
            left: configuration.budget,
            values: 0,
            sent: [Records::new(); EPOCHS_MAX],
            opened: 1 << 1,
            committed: Records::new(),
            committed_in: [0; RECORDS_MAX],
            violations: 0,
        }
    }

    pub fn violate(&mut self, violation: Violation) {
        self.violations |= violation.bit();
    }

    pub fn is_open(&self, epoch: u8) -> bool {
        self.opened & 1 << epoch != 0
    }

    /// The same with nodes 1 and 2 in each other's place.
    fn mirrored(&self) -> Self {
        let mut other = *self;
        other.nodes.swap(1, 2);
        for leads in other.nodes.iter_mut().filter_map(|node| node.leads.as_mut()) {
            leads.answers.swap(1, 2);
            leads.reported.swap(1, 2);
        }
        other
    }

    fn hash_as_it_is(&self) -> u64 {
        let mut hasher = PackedHasher::new();
        (self.nodes, self.log, self.term, self.left, self.values).hash(&mut hasher);
        (self.sent, self.opened, self.committed, self.committed_in).hash(&mut hasher);
        self.violations.hash(&mut hasher);
        hasher.finish()
    }
}

/// Nodes 1 and 2 begin alike and obey the same rules, so two states that differ only in their names count
/// as one. The states themselves stay as they are: a trace keeps its names.
impl Hash for State {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.hash_as_it_is().min(self.mirrored().hash_as_it_is()).hash(hasher);
    }
}
