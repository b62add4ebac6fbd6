//! Exactly once: which commands of which client were executed, and what came of them.
//!
//! A client numbers its commands. A command that is appended again with the same number does
//! nothing, and gets the first outcome again, with the offset and the epoch of the first record. Memory
//! is bounded in both directions, by what every node sees in the same order:
//! - of each session, [`SESSION_OUTCOMES_MAX`] outcomes are remembered. The one with the least number
//!   goes first, and commands up to that number are refused from then on;
//! - of [`SESSIONS_MAX`] sessions, the one whose last record is the oldest is forgotten first.
//!
//! A forgotten session must not look like a new one, or a late retry would execute again. So its id
//! says from which applied end on it can have been used ([`SessionId::begun`]), no record of it is taken
//! that lies before, and the greatest offset is kept at which a forgotten session was used last. An
//! unknown session that had begun by then is refused, since it may be a forgotten one. It costs no round
//! trip: a client knows an applied end from whatever node it asked.

use std::collections::{BTreeMap, VecDeque};

use crate::limits::{SESSION_OUTCOMES_MAX, SESSIONS_MAX};
use crate::state::{Applied, Rejection};

/// Who a client is: 128 bits, of which a half is random.
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash, Debug)]
pub struct SessionId {
    begun: u64,
    random: u64,
}

impl SessionId {
    /// A session that begins now. `begun` is an applied end ([`crate::State::end`]) that some node told
    /// the client; `random` is greater than 0 and never used by another client. None for 0.
    pub const fn new(begun: u64, random: u64) -> Option<Self> {
        if random == 0 { None } else { Some(Self { begun, random }) }
    }

    /// No record of this session has a lesser offset.
    pub const fn begun(self) -> u64 {
        self.begun
    }

    /// What tells it from others.
    pub const fn random(self) -> u64 {
        self.random
    }
}

/// One command of a session.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct Session {
    id: SessionId,
    sequence: u64,
}

impl Session {
    /// The command with this number, from 1 on, of a session. None for 0. A client counts on by one,
    /// and has fewer than [`SESSION_OUTCOMES_MAX`] numbers between the oldest without an answer and the
    /// newest.
    pub const fn new(id: SessionId, sequence: u64) -> Option<Self> {
        if sequence == 0 { None } else { Some(Self { id, sequence }) }
    }

    /// Whose.
    pub const fn id(&self) -> SessionId {
        self.id
    }

    /// Its number.
    pub const fn sequence(&self) -> u64 {
        self.sequence
    }
}

/// What is remembered of all sessions.
#[derive(Clone, Eq, PartialEq, Debug, Default)]
pub(crate) struct Sessions {
    sessions: BTreeMap<SessionId, Remembered>,
    /// The same by the offset of the last record.
    by_use: BTreeMap<u64, SessionId>,
    /// One more than the greatest last offset of a session that was forgotten.
    forgotten_end: u64,
}

/// What is remembered of one.
#[derive(Clone, Eq, PartialEq, Debug, Default)]
pub(crate) struct Remembered {
    /// Offset of its last record, a retry or not.
    pub(crate) last_used: u64,
    /// Outcomes up to this number are not remembered.
    pub(crate) forgotten: u64,
    /// The others, by ascending number.
    pub(crate) outcomes: VecDeque<(u64, Applied)>,
}

/// What to do with a command.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum Admission {
    /// Execute it, and then remember what came of it.
    Execute,
    /// It was executed: this came of it.
    Again(Applied),
    /// Do nothing.
    Refuse(Rejection),
}

impl Sessions {
    /// Decides about the record at `offset`, which is greater than any before.
    pub(crate) fn admit(&mut self, session: Session, offset: u64) -> Admission {
        let Session { id, sequence } = session;
        let Some(remembered) = self.sessions.get_mut(&id) else {
            // In this order a session that is forgotten later had begun before its last record.
            if id.begun > offset {
                return Admission::Refuse(Rejection::SessionAhead { end: offset });
            }
            if id.begun < self.forgotten_end {
                return Admission::Refuse(Rejection::SessionExpired { end: self.forgotten_end });
            }
            self.make_room();
            let remembered = Remembered { last_used: offset, ..Remembered::default() };
            self.sessions.insert(id, remembered);
            self.by_use.insert(offset, id);
            return Admission::Execute;
        };
        self.by_use.remove(&remembered.last_used);
        self.by_use.insert(offset, id);
        remembered.last_used = offset;
        if sequence <= remembered.forgotten {
            let upto = remembered.forgotten;
            return Admission::Refuse(Rejection::SequenceForgotten { upto });
        }
        match remembered.find(sequence) {
            Ok(place) => Admission::Again(remembered.outcomes[place].1),
            Err(_) => Admission::Execute,
        }
    }

    fn make_room(&mut self) {
        if self.sessions.len() < SESSIONS_MAX {
            return;
        }
        let (last_used, id) = self.by_use.pop_first().expect("every session is in both maps");
        self.sessions.remove(&id);
        self.forgotten_end = last_used + 1;
    }

    /// Remembers what came of a command that was to be executed.
    pub(crate) fn remember(&mut self, session: Session, applied: Applied) {
        let Session { id, sequence } = session;
        let remembered = self.sessions.get_mut(&id).expect("it was admitted");
        let place = remembered.find(sequence).expect_err("it is executed once");
        remembered.outcomes.insert(place, (sequence, applied));
        if remembered.outcomes.len() > SESSION_OUTCOMES_MAX {
            let (oldest, _) = remembered.outcomes.pop_front().expect("there are some");
            remembered.forgotten = oldest;
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.sessions.len()
    }

    /// See the field.
    pub(crate) fn forgotten_end(&self) -> u64 {
        self.forgotten_end
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (SessionId, &Remembered)> {
        self.sessions.iter().map(|(id, remembered)| (*id, remembered))
    }

    /// With what a snapshot says of it.
    pub(crate) fn restored(forgotten_end: u64) -> Self {
        Self { forgotten_end, ..Self::default() }
    }

    /// Takes one from a snapshot, in ascending order; false when it cannot be there.
    pub(crate) fn restore(&mut self, id: SessionId, remembered: Remembered) -> bool {
        let last_used = remembered.last_used;
        let is_last = self.sessions.last_key_value().is_none_or(|(last, _)| *last < id);
        if !is_last || self.sessions.len() == SESSIONS_MAX {
            return false;
        }
        self.sessions.insert(id, remembered);
        self.by_use.insert(last_used, id).is_none()
    }
}

impl Remembered {
    fn find(&self, sequence: u64) -> Result<usize, usize> {
        self.outcomes.binary_search_by_key(&sequence, |(number, _)| *number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Done;

    fn id(begun: u64, random: u64) -> SessionId {
        SessionId::new(begun, random).unwrap()
    }

    fn session(id: SessionId, sequence: u64) -> Session {
        Session::new(id, sequence).unwrap()
    }

    fn applied(offset: u64) -> Applied {
        Applied { epoch: 3, offset, is_retry: false, outcome: Ok(Done::Changed) }
    }

    /// As the state does it.
    fn execute(sessions: &mut Sessions, session: Session, offset: u64) -> Admission {
        let admission = sessions.admit(session, offset);
        if admission == Admission::Execute {
            sessions.remember(session, applied(offset));
        }
        admission
    }

    #[test]
    fn zero_is_nobody_and_no_number() {
        assert_eq!(SessionId::new(5, 0), None);
        assert_eq!(Session::new(id(0, 1), 0), None);
    }

    #[test]
    fn a_retry_gets_the_first_outcome() {
        let mut sessions = Sessions::default();
        let one = id(0, 7);
        assert_eq!(execute(&mut sessions, session(one, 1), 10), Admission::Execute);
        // Out of order, since commands are pipelined.
        assert_eq!(execute(&mut sessions, session(one, 3), 11), Admission::Execute);
        assert_eq!(execute(&mut sessions, session(one, 2), 12), Admission::Execute);
        for (sequence, offset) in [(1, 10), (2, 12), (3, 11)] {
            let again = execute(&mut sessions, session(one, sequence), 20 + sequence);
            assert_eq!(again, Admission::Again(applied(offset)));
        }
        assert_eq!(execute(&mut sessions, session(id(0, 8), 1), 30), Admission::Execute);
    }

    #[test]
    fn what_is_not_remembered_is_refused() {
        let mut sessions = Sessions::default();
        let one = id(0, 7);
        let last = SESSION_OUTCOMES_MAX as u64 + 5;
        for sequence in 1..=last {
            let outcome = execute(&mut sessions, session(one, sequence), sequence);
            assert_eq!(outcome, Admission::Execute);
        }
        let forgotten = Admission::Refuse(Rejection::SequenceForgotten { upto: 5 });
        assert_eq!(execute(&mut sessions, session(one, 5), 100), forgotten);
        let again = Admission::Again(applied(6));
        assert_eq!(execute(&mut sessions, session(one, 6), 101), again);
        assert_eq!(sessions.sessions[&one].outcomes.len(), SESSION_OUTCOMES_MAX);
    }

    #[test]
    fn the_session_used_longest_ago_is_forgotten_and_refused() {
        let mut sessions = Sessions::default();
        for number in 0..SESSIONS_MAX as u64 {
            let outcome = execute(&mut sessions, session(id(0, number + 1), 1), number);
            assert_eq!(outcome, Admission::Execute);
        }
        let mut offset = SESSIONS_MAX as u64;
        // The first is used again, by a retry; so the second goes.
        let retry = execute(&mut sessions, session(id(0, 1), 1), offset);
        assert_eq!(retry, Admission::Again(applied(0)));
        offset += 1;
        let newcomer = id(offset, 1 << 40);
        assert_eq!(execute(&mut sessions, session(newcomer, 1), offset), Admission::Execute);
        assert_eq!(sessions.len(), SESSIONS_MAX);
        offset += 1;
        let expired = Admission::Refuse(Rejection::SessionExpired { end: 2 });
        assert_eq!(execute(&mut sessions, session(id(0, 2), 1), offset), expired);
        assert_eq!(execute(&mut sessions, session(id(1, 9999), 1), offset), expired, "it may be");
        // One that had not begun by then is another one.
        assert_eq!(execute(&mut sessions, session(id(2, 9999), 1), offset), Admission::Execute);
    }

    #[test]
    fn nobody_begins_in_the_future() {
        let mut sessions = Sessions::default();
        let ahead = Admission::Refuse(Rejection::SessionAhead { end: 10 });
        assert_eq!(execute(&mut sessions, session(id(11, 1), 1), 10), ahead);
        assert_eq!(execute(&mut sessions, session(id(10, 1), 1), 10), Admission::Execute);
        assert_eq!(sessions.len(), 1);
    }
}
