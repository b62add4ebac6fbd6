//! The sessions of this node's own callers. A command takes one for itself, with a number that was not used
//! in it before, and gives it back when it has its outcome; so of each session one command at most is
//! without one, but for those of which nobody learnt what came of them.

use std::fs::File;
use std::io::{self, Read};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::session::{Session, SessionId};

/// Commands of one store that are executed at once; more wait. So a few nodes do not make the cluster forget
/// sessions that are in use: it remembers [`SESSIONS_MAX`](crate::limits::SESSIONS_MAX).
const COMMANDS_MAX: usize = 1024;

/// See the module.
#[derive(Debug)]
pub(crate) struct Sessions {
    free: Mutex<Vec<Own>>,
    places: Arc<Semaphore>,
}

impl Default for Sessions {
    fn default() -> Self {
        Self { free: Mutex::default(), places: Arc::new(Semaphore::new(COMMANDS_MAX)) }
    }
}

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
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session for one command: one that is free, or one that begins at `applied`, which is applied here.
    /// Waits while too many are in use; the place is given back when it is dropped.
    pub(crate) async fn take(&self, applied: u64) -> io::Result<(Own, OwnedSemaphorePermit)> {
        let place = self.places.clone().acquire_owned().await.expect("it is never closed");
        let free = self.lock().pop();
        let own = match free {
            Some(own) => own,
            None => Own { id: SessionId::new(applied, random()?).expect("not 0"), next: 1 },
        };
        Ok((own, place))
    }

    /// Its command is over.
    pub(crate) fn give_back(&self, own: Own) {
        self.lock().push(Own { next: own.next + 1, ..own });
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
        let take = |applied| crate::blocking::block_on(sessions.take(applied)).unwrap().0;
        let (one, other) = (take(5), take(6));
        assert_ne!(one.command().id(), other.command().id());
        assert_eq!((one.command().sequence(), one.command().id().begun()), (1, 5));
        sessions.give_back(one);
        let again = take(9);
        assert_eq!((again.command().id(), again.command().sequence()), (one.command().id(), 2));
    }
}
