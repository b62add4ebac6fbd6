//! What was promised, and what must hold. Each property is a file of its own; this one keeps what they
//! look at.
//!
//! - [`epochs`]: who begins an epoch, and what a leader may answer (I-13).
//! - [`records`]: one record for ever at each place (I-17), what is committed stays (I-14).
//! - [`acknowledged`]: what clients were told, by [`crate::history`].

mod acknowledged;
mod epochs;
mod records;

use std::collections::{BTreeMap, BTreeSet};

use ringwal_raft_fallback::simulating::Applied;
use ringwal_replication::promise::Promise;

use crate::history::{Asked, Read};
use crate::random::mix;

macro_rules! counts {
    ($($name:ident $text:literal)*) => {
        /// How often things happened.
        #[derive(Clone, Eq, PartialEq, Debug, Default)]
        pub struct Counts { $(#[doc = $text] pub $name: u64,)* }

        impl Counts {
            /// All of them, with their names.
            pub fn all(&self) -> Vec<(&'static str, u64)> { vec![$(($text, self.$name),)*] }

            /// Takes over what another run has counted.
            pub fn merge(&mut self, other: &Self) { $(self.$name += other.$name;)* }
        }
    };
}

counts! {
    executed_local "commands executed, Ack::Local"
    executed_quorum "commands executed, Ack::Quorum"
    executed_again "commands that had been executed before"
    refused "commands refused because of their session"
    unknown "commands whose outcome is unknown"
    not_done "commands that are certainly not done"
    reads "linearizable reads"
    reads_failed "linearizable reads that were not confirmed"
    local_reads "local reads"
    lost_local "commands of Ack::Local that died with their leader"
    fast "records answered by the fast path"
    extended "entries of records applied"
    epochs "epochs begun by their leader"
    promises "promises"
    sessions "sessions of followers"
    bases "bases of Raft's log made or taken"
    cuts "cuts"
    orphans "records cut"
    power_cuts "power cuts"
    kills "kills"
    stops "processes stopped for a while"
    quick_restarts "restarts within an election timeout"
    partitions "nodes cut off"
    one_way "nodes that one other node does not hear"
    lossy "times of losses"
    breaks "leaders whose sessions break"
    switched_off "fast path switched off"
    switched_on "fast path switched on"
    crashed_switching "crashes while the fast path is switched"
    lost_leaders "leaders that die while the fast path is switched off, and stay away"
    transfers "leadership given away"
    lost_messages "messages lost"
}

/// See the module.
#[derive(Default)]
pub struct Oracle {
    pub counts: Counts,
    /// Differs between two runs that differ.
    pub trace: u64,
    /// By epoch: whose it is.
    begun: BTreeMap<u64, Promise>,
    /// Epochs in which their leader has begun to lead.
    opened: BTreeSet<u64>,
    promised: BTreeMap<usize, u64>,
    /// By epoch and offset: a record's hash, and what came of it.
    seen: BTreeMap<(u64, u64), u64>,
    applied: BTreeMap<(u64, u64), Applied>,
    /// What is known to be committed, by offset: epoch and hash.
    committed: Vec<(u64, u64)>,
    orphans: BTreeSet<(u64, u64)>,
    asked: Vec<Asked>,
    reads: Vec<Read>,
}

impl Oracle {
    /// Something has happened.
    pub fn trace(&mut self, values: &[u64]) {
        for value in values {
            self.trace = mix(self.trace ^ value);
        }
    }

    pub fn committed_end(&self) -> u64 {
        self.committed.len() as u64
    }
}
