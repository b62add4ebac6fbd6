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
    /// Those that no command has, with the number of their next one.
    free: Mutex<Vec<(SessionId, u64)>>,
    places: Arc<Semaphore>,
}

impl Default for Sessions {
    fn default() -> Self {
        Self { free: Mutex::default(), places: Arc::new(Semaphore::new(COMMANDS_MAX)) }
    }
}

/// A session that one command has. It goes back when this is dropped, whatever became of the command: its next
/// one has another number.
#[derive(Debug)]
pub(crate) struct Own {
    id: SessionId,
    next: u64,
    sessions: Arc<Sessions>,
    /// It is known to be of no use any more.
    is_gone: bool,
    _place: OwnedSemaphorePermit,
}

impl Own {
    /// The command that is executed now.
    pub(crate) fn command(&self) -> Session {
        Session::new(self.id, self.next).expect("numbers begin with 1")
    }

    /// The cluster does not know it any more.
    pub(crate) fn forget(mut self) {
        self.is_gone = true;
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        if !self.is_gone {
            self.sessions.lock().push((self.id, self.next + 1));
        }
    }
}

impl Sessions {
    fn lock(&self) -> MutexGuard<'_, Vec<(SessionId, u64)>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session for one command: one that is free, or one that begins at `applied`, which is applied here.
    /// Waits while too many are in use.
    pub(crate) async fn take(self: &Arc<Self>, applied: u64) -> io::Result<Own> {
        let place = self.places.clone().acquire_owned().await.expect("it is never closed");
        let free = self.lock().pop();
        let (id, next) = match free {
            Some(free) => free,
            None => (SessionId::new(applied, random()?).expect("not 0"), 1),
        };
        Ok(Own { id, next, sessions: self.clone(), is_gone: false, _place: place })
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
        let sessions = Arc::new(Sessions::default());
        let take = |applied| crate::blocking::block_on(sessions.take(applied)).unwrap();
        let (one, other) = (take(5), take(6));
        let command = one.command();
        assert_ne!(command.id(), other.command().id());
        assert_eq!((command.sequence(), command.id().begun()), (1, 5));
        drop(one);
        let again = take(9);
        assert_eq!((again.command().id(), again.command().sequence()), (command.id(), 2));
        again.forget();
        assert_eq!(take(9).command().id().begun(), 9, "another one");
    }
}
