//! What clients say, a line each: what they are about to ask, before they do, and what they were told. The lines
//! of a node are with the operator before the node goes on, so that a kill loses none; what has no answer then
//! may be done.

use ringwal_raft_fallback::command::{Command, Record};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::history::{Did, Key, Place};
use crate::random::hash;

/// Nanoseconds of a clock that all processes of a machine share, and that goes on while they are stopped.
pub fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// What tells a command without a session from all others.
pub fn content(command: &Command) -> Key {
    let record = Record { time_ms: 0, session: None, command: command.clone() };
    (0, hash(&record.encode().expect("a command that was, or could have been, encoded")))
}

/// Something that is about to be asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Question {
    /// Which: never used again.
    pub number: u64,
    /// When.
    pub at_ns: u64,
    /// What.
    pub what: What,
}

/// What is asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum What {
    /// A command.
    Command(Key),
    /// A read of a key, by this client of this life of a node.
    Read {
        /// Who reads.
        client: u64,
        /// Which key.
        key: String,
        /// As of now.
        is_linearizable: bool,
    },
}

/// What came of a question.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Told {
    /// Of which.
    pub number: u64,
    /// When it was known.
    pub at_ns: u64,
    /// What.
    pub answer: Answer,
}

/// What came of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Answer {
    /// It was executed.
    Executed {
        /// Epoch and offset of its record; a rejection does not say them.
        place: Option<Place>,
        /// What it did.
        did: Did,
        /// A majority has it.
        is_quorum: bool,
        /// It had been executed before.
        is_retry: bool,
    },
    /// Its session was refused.
    Refused,
    /// Certainly not done.
    NotDone,
    /// Perhaps.
    Unknown,
    /// A read has seen this.
    Saw {
        /// Epoch that the node was in, and epoch of the last record, if they were told.
        epochs: Option<(u64, u64)>,
        /// Offset behind it.
        end: u64,
        /// The record that had set the key.
        version: Option<Place>,
    },
    /// A read was not confirmed.
    NotConfirmed,
}

impl Question {
    /// As it is said.
    pub fn line(&self) -> String {
        format!("ask {}", serde_json::to_string(self).expect("numbers and text"))
    }
}

impl Told {
    /// As it is said.
    pub fn line(&self) -> String {
        format!("told {}", serde_json::to_string(self).expect("numbers and text"))
    }
}
