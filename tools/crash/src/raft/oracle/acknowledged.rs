//! What clients were told of their commands, against the log that is left at the end: what a majority
//! had is there; what the leader alone had is there or was cut, and kept; what is certainly not done is
//! not there; and each command was executed once.

use std::collections::BTreeMap;

use ringwal_raft_fallback::State;
use ringwal_raft_fallback::command::Record;
use ringwal_raft_fallback::simulating::Applied;
use ringwal_raft_fallback::state::Rejection;
use ringwal_replication::Ack;

use super::{Oracle, key};
use crate::raft::runtime::true_ns;

/// Whether it was not executed because of its session.
fn is_refused(applied: &Applied) -> bool {
    matches!(
        applied.outcome,
        Err(Rejection::SessionAhead { .. }
            | Rejection::SessionExpired { .. }
            | Rejection::SequenceForgotten { .. })
    )
}

/// A command of a client. Times are true ones.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Its session and number.
    pub key: (u64, u64),
    pub asked_ns: u64,
    pub answered_ns: u64,
    pub outcome: Outcome,
}

#[derive(Clone, Debug)]
pub enum Outcome {
    Executed { applied: Applied, durable: Ack },
    NotDone,
    Unknown,
}

/// A linearizable read of a client: it has seen everything below an offset.
#[derive(Clone, Debug)]
pub struct Read {
    pub asked_ns: u64,
    pub answered_ns: u64,
    pub end: u64,
    /// Epoch of the last record that it has seen.
    pub epoch: u64,
}

impl Oracle {
    pub fn note_asked(&mut self, asked: Asked) {
        let counts = &mut self.counts;
        match &asked.outcome {
            Outcome::Executed { applied, durable } => {
                counts.executed_again += u64::from(applied.is_retry);
                match durable {
                    Ack::Local => counts.executed_local += 1,
                    Ack::Quorum => counts.executed_quorum += 1,
                }
                let values = [6, true_ns(), applied.epoch, applied.offset];
                self.trace(&values);
            }
            Outcome::NotDone => counts.not_done += 1,
            Outcome::Unknown => counts.unknown += 1,
        }
        self.asked.push(asked);
    }

    pub fn note_read(&mut self, read: Read) {
        self.counts.reads += 1;
        self.trace(&[7, true_ns(), read.end]);
        self.reads.push(read);
    }

    /// At the end, with the records of the metadata stream, which all nodes have: epoch and bytes.
    pub fn check_acknowledged(&mut self, records: &[(u64, Vec<u8>)]) {
        let mut state = State::default();
        let mut executed: BTreeMap<(u64, u64), Applied> = BTreeMap::new();
        let mut outcomes = Vec::new();
        for ((epoch, bytes), offset) in records.iter().zip(0..) {
            let record = Record::decode(bytes).expect("a client's");
            let session = record.session;
            let applied = state.apply(offset, *epoch, record).expect("it was applied before");
            if let Some(session) = session.filter(|_| !applied.is_retry && !is_refused(&applied)) {
                let before = executed.insert(key(&session), applied);
                assert!(
                    before.is_none(),
                    "command {:?} is executed at {} and at {offset}",
                    key(&session),
                    before.map_or(0, |before| before.offset)
                );
            }
            outcomes.push(applied);
        }
        for asked in &self.asked {
            let there = executed.get(&asked.key);
            match &asked.outcome {
                Outcome::Unknown => {}
                Outcome::NotDone => {
                    assert!(there.is_none(), "{asked:?} is done: {there:?}");
                }
                Outcome::Executed { applied, .. } if is_refused(applied) => {
                    assert!(there.is_none(), "{asked:?} is refused and done: {there:?}");
                    self.counts.refused += 1;
                }
                Outcome::Executed { applied, durable } => {
                    let place = (applied.epoch, applied.offset);
                    let is_there = there.is_some_and(|there| {
                        (there.epoch, there.offset, &there.outcome)
                            == (applied.epoch, applied.offset, &applied.outcome)
                    });
                    match durable {
                        Ack::Quorum => assert!(is_there, "{asked:?} is lost: {there:?}"),
                        Ack::Local if is_there => {}
                        Ack::Local => {
                            let was_cut = self.orphans.contains(&place);
                            assert!(was_cut, "{asked:?} is lost without a trace: {there:?}");
                            self.counts.lost_local += 1;
                        }
                    }
                }
            }
        }
        self.check_order(records, &executed);
    }
}
