//! What clients of a metadata store were told, against the log that is left when all nodes hold the same: of
//! simulated clusters and of real ones.
//!
//! - [`acknowledged`]: what a majority had is there; what the leader alone had is there or was cut, and kept; what is
//!   certainly not done is not there; and each command was executed once.
//! - [`epochs`]: a leader that has been replaced answers nothing (I-13).
//! - [`order`]: the order of what clients were told, against true time.
//! - [`content`]: what reads have seen.

pub mod acknowledged;
pub mod content;
pub mod epochs;
pub mod order;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use ringwal_raft_fallback::State;
use ringwal_raft_fallback::command::Record;
use ringwal_raft_fallback::operator::DoneShown;
use ringwal_raft_fallback::session::Session;
use ringwal_raft_fallback::state::{Done, Rejection};
use ringwal_replication::Ack;

/// What tells a command from all others: its session and number, or 0 and a hash of what it says.
pub type Key = (u64, u64);
/// Epoch and offset of a record.
pub type Place = (u64, u64);
/// What a command did, or why it did nothing.
pub type Did = Result<DoneShown, String>;

/// The key of a session's command.
pub fn session_key(session: &Session) -> Key {
    (session.id().random(), session.sequence())
}

/// Whoever has a session wants what it asks for.
pub fn origin_by_session(record: &Record) -> Origin {
    record.session.as_ref().map_or(Origin::Nobody, |session| Origin::Client(session_key(session)))
}

/// A command of a client. Times are true ones.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Which.
    pub key: Key,
    /// When the client began with it.
    pub asked_ns: u64,
    /// When it had the outcome, or the greatest number when nobody lives to tell.
    pub answered_ns: u64,
    /// What it was told.
    pub outcome: Outcome,
}

/// What a client was told of a command.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// It was executed.
    Executed {
        /// Where its record is, if that was said.
        place: Option<Place>,
        /// What came of it.
        did: Did,
        /// What that is worth.
        durable: Ack,
    },
    /// It was refused because of its session, and not executed.
    Refused,
    /// Certainly not executed.
    NotDone,
    /// Perhaps.
    Unknown,
}

/// A read of a client: it has seen everything below an offset.
#[derive(Clone, Debug)]
pub struct Read {
    /// When it was begun.
    pub asked_ns: u64,
    /// When the client had what it saw.
    pub answered_ns: u64,
    /// Where it ends.
    pub end: u64,
    /// Epoch of the last record that it has seen, if that is known.
    pub epoch: Option<u64>,
}

/// A command that was executed, as the log says.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct There {
    /// Where its record is.
    pub place: Place,
    /// What came of it.
    pub did: Did,
}

/// Who wanted a record.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Origin {
    /// A client: its command.
    Client(Key),
    /// A leader, for itself; it does nothing.
    Leader,
    /// Nobody.
    Nobody,
}

/// The log that is left, executed once more from its beginning.
#[derive(Debug, Default)]
pub struct Log {
    /// Epochs of its records.
    pub epochs: Vec<u64>,
    /// What was executed, and not refused or only repeated.
    pub executed: BTreeMap<Key, There>,
    /// The state at its end.
    pub state: State,
    /// What must not be.
    pub wrong: Vec<String>,
}

/// Whether a command is not executed because of its session.
pub fn is_of_session(rejection: &Rejection) -> bool {
    matches!(
        rejection,
        Rejection::SessionAhead { .. }
            | Rejection::SessionExpired { .. }
            | Rejection::SequenceForgotten { .. }
    )
}

/// How an outcome is told.
pub fn did(outcome: Result<Done, Rejection>) -> Did {
    outcome.map(DoneShown::from).map_err(|rejection| rejection.to_string())
}

/// What a client is told of a command that was applied there.
pub fn outcome(place: Place, outcome: Result<Done, Rejection>, durable: Ack) -> Outcome {
    match outcome {
        Err(rejection) if is_of_session(&rejection) => Outcome::Refused,
        outcome => Outcome::Executed { place: Some(place), did: did(outcome), durable },
    }
}

impl Log {
    /// Executes records: the epoch and the bytes of each. `origin_of` knows who wanted each; `look`
    /// sees the state after it.
    pub fn execute<'a>(
        records: impl IntoIterator<Item = (u64, &'a [u8])>,
        origin_of: impl Fn(&Record) -> Origin,
        mut look: impl FnMut(&State),
    ) -> Log {
        let mut log = Log::default();
        for ((epoch, bytes), offset) in records.into_iter().zip(0..) {
            log.epochs.push(epoch);
            let record = match Record::decode(bytes) {
                Ok(record) => record,
                Err(error) => {
                    log.wrong.push(format!("offset {offset} is no command: {error}"));
                    return log;
                }
            };
            let origin = origin_of(&record);
            if origin == Origin::Nobody {
                log.wrong.push(format!("nobody has asked for what is at {offset}: {record:?}"));
            }
            let applied = match log.state.apply(offset, epoch, record) {
                Ok(applied) => applied,
                Err(error) => {
                    log.wrong.push(format!("offset {offset} cannot be applied: {error}"));
                    return log;
                }
            };
            look(&log.state);
            let is_refused = matches!(&applied.outcome, Err(rejection) if is_of_session(rejection));
            if let Origin::Client(key) = origin
                && !applied.is_retry
                && !is_refused
            {
                let there = There { place: (epoch, offset), did: did(applied.outcome) };
                if let Some(before) = log.executed.insert(key, there) {
                    let before = before.place.1;
                    log.wrong
                        .push(format!("command {key:?} is executed at {before} and at {offset}"));
                }
            }
        }
        log
    }
}
