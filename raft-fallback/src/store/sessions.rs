//! The sessions of this node's own callers. A command takes one for itself, with a number that was not used
//! in it before, and gives it back when it has its outcome; so of each session one command at most is
//! without one, but for those of which nobody learnt what came of them.

use std::fs::File;
use std::io::{self, Read};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::session::{Session, SessionId};

/// Commands of this node that wait at once without making the cluster forget sessions that are in use: there are
/// [`SESSIONS_MAX`](crate::limits::SESSIONS_MAX) for all nodes together.
const KEPT_MAX: usize = 512;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Sessions(Mutex<Vec<Own>>);

/// One session, and the number of its next command.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Own {
    id: SessionId,
    next: u64,
}

impl Own {
    /// The command that is executed now.
    pub(crate) fn command(&self) -> Session {
        Session::new(self.id, self.next).expect("numbers begin with 1")
    }
}

impl Sessions {
    fn lock(&self) -> MutexGuard<'_, Vec<Own>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session for one command: one that is free, or one that begins at `applied`, which is applied here.
    pub(crate) fn take(&self, applied: u64) -> io::Result<Own> {
        match self.lock().pop() {
            Some(own) => Ok(own),
            None => Ok(Own { id: SessionId::new(applied, random()?).expect("not 0"), next: 1 }),
        }
    }

    /// Its command is over.
    pub(crate) fn give_back(&self, own: Own) {
        let mut kept = self.lock();
        if kept.len() < KEPT_MAX {
            kept.push(Own { next: own.next + 1, ..own });
        }
    }
}

/// Never 0.
fn random() -> io::Result<u64> {
    let mut bytes = [0; 8];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes) | 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_one_commands_and_its_numbers_go_on() {
        let sessions = Sessions::default();
        let (one, other) = (sessions.take(5).unwrap(), sessions.take(6).unwrap());
        assert_ne!(one.command().id(), other.command().id());
        assert_eq!((one.command().sequence(), one.command().id().begun()), (1, 5));
        sessions.give_back(one);
        let again = sessions.take(9).unwrap();
        assert_eq!((again.command().id(), again.command().sequence()), (one.command().id(), 2));
    }
}
