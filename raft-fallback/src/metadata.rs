//! The state as a node shares it: one thread applies, everybody reads and waits.
//!
//! The applier takes the lock once per batch of records; decoding before and waking after happen
//! without it. Readers hold it for as long as they look.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::command::{BrokerId, Command, Record, TopicName};
use crate::state::{Applied, ApplyError, Assignment, Broker, State, TopicId};
use crate::waiters::{Key, Wait, Waiters};

/// How far a node has applied. It goes back only together with a greater epoch.
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash, Debug)]
pub struct Progress {
    /// The greatest epoch that this node has applied a record of, or was rebuilt in.
    pub epoch: u64,
    /// Everything below this offset is applied.
    pub end: u64,
}

/// Why a node applies nothing more.
#[derive(Clone, Eq, PartialEq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Stopped {
    /// A record could not be applied.
    #[error("{0}")]
    Record(ApplyError),
    /// The records cannot be read any more.
    #[error("the metadata stream cannot be applied: {cause}")]
    Unreadable {
        /// Why not.
        cause: String,
    },
    /// The applier was dropped.
    #[error("the node is shutting down")]
    Ended,
}

/// Why a state cannot take the place of the present one. Nothing has changed.
#[derive(Copy, Clone, Eq, PartialEq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplaceError {
    /// It belongs to an older epoch than what is there.
    #[error("the state is of epoch {epoch}, and the node is in epoch {}: it must not go back", present.epoch)]
    Epoch {
        /// The epoch that was named.
        epoch: u64,
        /// What is there.
        present: Progress,
    },
    /// It ends earlier, in the same epoch: nothing is cut within an epoch.
    #[error(
        "the state ends at {end}, and the node has applied everything below {} in the same epoch {}", present.end, present.epoch
    )]
    WentBack {
        /// Where it ends.
        end: u64,
        /// What is there.
        present: Progress,
    },
    /// It has records of a later epoch than it is said to be of.
    #[error("the state has records of epoch {found}, and is said to be of epoch {epoch}")]
    Later {
        /// The epoch of its last record.
        found: u64,
        /// The epoch that was named.
        epoch: u64,
    },
}

/// A record of the metadata stream.
#[derive(Copy, Clone, Debug)]
pub struct Entry<'a> {
    /// Its offset.
    pub offset: u64,
    /// Its epoch.
    pub epoch: u64,
    /// Its bytes: see [`Record`].
    pub payload: &'a [u8],
}

/// What this node has applied: for readers, and for those who wait.
#[derive(Clone)]
pub struct Metadata {
    shared: Arc<Shared>,
}

/// The one who applies.
pub struct Applier {
    shared: Arc<Shared>,
    /// Records of the present batch.
    decoded: Vec<(u64, u64, Record)>,
    /// What they were about, for those who wait.
    keys: Vec<Key>,
}

pub(crate) struct Shared {
    view: RwLock<View>,
    pub(crate) waiters: Waiters,
}

/// What is behind the lock.
pub(crate) struct View {
    pub(crate) state: State,
    /// See [`Progress::epoch`].
    epoch: u64,
    /// Counts the times that records may have been taken back.
    pub(crate) history: u64,
    pub(crate) stopped: Option<Stopped>,
}

impl View {
    pub(crate) fn progress(&self) -> Progress {
        Progress { epoch: self.epoch, end: self.state.end() }
    }
}

impl Shared {
    pub(crate) fn view(&self) -> RwLockReadGuard<'_, View> {
        // A panic of the applier ends it, which is said; what is there can still be looked at.
        self.view.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn view_mut(&self) -> RwLockWriteGuard<'_, View> {
        self.view.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Metadata {
    /// Shares a state: an empty one, or one from a snapshot. `epoch` is the epoch that the node is in, at
    /// least that of the state's last record.
    pub fn new(state: State, epoch: u64) -> (Self, Applier) {
        let epoch = epoch.max(state.epoch());
        let view = View { state, epoch, history: 0, stopped: None };
        let shared = Arc::new(Shared { view: RwLock::new(view), waiters: Waiters::default() });
        let applier = Applier { shared: shared.clone(), decoded: Vec::new(), keys: Vec::new() };
        (Self { shared }, applier)
    }

    /// How far this node is.
    pub fn progress(&self) -> Progress {
        self.shared.view().progress()
    }

    /// Why nothing more is applied, if so.
    pub fn stopped(&self) -> Option<Stopped> {
        self.shared.view().stopped.clone()
    }

    /// Looks at the state, and says of when it was. The applier waits meanwhile: take what you need and
    /// return, and call nothing of this type in between.
    pub fn read<R>(&self, look: impl FnOnce(&State) -> R) -> (Progress, R) {
        let view = self.shared.view();
        let looked = look(&view.state);
        (view.progress(), looked)
    }

    /// Waits until the record at `offset` is applied here. Compare the epoch that it gives with the one
    /// of the record's receipt: if it is greater, another record may have that offset by now. If the
    /// history changes while it is waited for, that is an error of its own.
    pub fn wait_applied(&self, offset: u64) -> Wait<Progress> {
        let history = self.shared.view().history;
        let look = move |view: &View| (view.state.end() > offset).then(|| view.progress());
        Wait::new(self.shared.clone(), Key::Applied(offset), Some(history), Box::new(look))
    }

    /// Waits until this node is in that epoch, or a later one, and has applied as much: whatever that node
    /// had seen is seen here then. In an older epoch, what is applied may be another history.
    pub fn wait_progress(&self, progress: Progress) -> Wait<Progress> {
        let look = move |view: &View| {
            let present = view.progress();
            (present.epoch >= progress.epoch && present.end >= progress.end).then_some(present)
        };
        let key = Key::Applied(progress.end.saturating_sub(1));
        Wait::new(self.shared.clone(), key, None, Box::new(look))
    }

    /// Waits until a topic of this name is there.
    pub fn wait_for_topic(&self, name: TopicName) -> Wait<TopicId> {
        let key = Key::Topic(name.clone());
        let look = move |view: &View| view.state.topic(&name).map(|(id, _)| id);
        Wait::new(self.shared.clone(), key, None, Box::new(look))
    }

    /// Waits until a broker is registered.
    pub fn wait_for_broker(&self, broker: BrokerId) -> Wait<Broker> {
        let look = move |view: &View| view.state.broker(broker).cloned();
        Wait::new(self.shared.clone(), Key::Broker(broker), None, Box::new(look))
    }

    /// Waits until a topic of this name has this partition, and somebody leads it. A topic with fewer
    /// partitions is waited out: another one may take its name.
    pub fn wait_for_assignment(&self, name: TopicName, partition: u32) -> Wait<Assignment> {
        let key = Key::Topic(name.clone());
        let look = move |view: &View| {
            let assignment = view.state.assignment(&name, partition);
            assignment.filter(|assignment| assignment.placed.leader.is_some())
        };
        Wait::new(self.shared.clone(), key, None, Box::new(look))
    }
}

impl fmt::Debug for Metadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metadata").field("progress", &self.progress()).finish_non_exhaustive()
    }
}

impl Applier {
    /// How far it is.
    pub fn progress(&self) -> Progress {
        self.shared.view().progress()
    }

    /// Applies records in order, appends what came of each to `applied`, and wakes whoever waits for them.
    ///
    /// # Errors
    /// When a record cannot be applied. Those before it are, and are in `applied`; nothing is applied any
    /// more, and whoever waits learns why, until [`Applier::replace`].
    pub fn apply<'a>(
        &mut self,
        entries: impl IntoIterator<Item = Entry<'a>>,
        applied: &mut Vec<Applied>,
    ) -> Result<(), ApplyError> {
        let mut outcome = Ok(());
        self.decoded.clear();
        for Entry { offset, epoch, payload } in entries {
            match Record::decode(payload) {
                Ok(record) => self.decoded.push((offset, epoch, record)),
                Err(error) => {
                    outcome = Err(ApplyError::Decode { offset, error });
                    break;
                }
            }
        }
        let mut view = self.shared.view_mut();
        if let Some(Stopped::Record(error)) = &view.stopped {
            return Err(error.clone());
        }
        let is_waited_for = self.shared.waiters.is_any();
        for (offset, epoch, record) in self.decoded.drain(..) {
            let about = is_waited_for.then(|| About::of(&record.command)).flatten();
            match view.state.apply(offset, epoch, record) {
                Ok(one) => {
                    applied.push(one);
                    self.keys.extend(about.and_then(|about| about.key(&view.state)));
                }
                // It comes before one that could not even be read.
                Err(error) => {
                    outcome = Err(error);
                    break;
                }
            }
        }
        view.epoch = view.epoch.max(view.state.epoch());
        let end = view.state.end();
        if let Err(error) = &outcome {
            view.stopped = Some(Stopped::Record(error.clone()));
        }
        drop(view);
        if is_waited_for {
            self.shared.waiters.wake(end, &mut self.keys);
        }
        if outcome.is_err() {
            self.shared.waiters.wake_all();
        }
        outcome
    }

    /// Puts another state in the place of the present one: from a snapshot of another node, or rebuilt
    /// after a cut. `epoch` is the one that the node is in. If it is greater than before, records may have
    /// been taken back, and whoever waits for one of them learns it; within an epoch a state only goes
    /// on. Everybody else who waits looks again. What stopped the applier before does not any more.
    ///
    /// # Errors
    /// When it would take something back that must not be.
    pub fn replace(&mut self, state: State, epoch: u64) -> Result<(), ReplaceError> {
        let mut view = self.shared.view_mut();
        let (present, end, found) = (view.progress(), state.end(), state.epoch());
        if epoch < present.epoch {
            return Err(ReplaceError::Epoch { epoch, present });
        }
        if epoch == present.epoch && end < present.end {
            return Err(ReplaceError::WentBack { end, present });
        }
        if found > epoch {
            return Err(ReplaceError::Later { found, epoch });
        }
        let before = std::mem::replace(&mut view.state, state);
        view.history += u64::from(epoch > present.epoch);
        view.epoch = epoch;
        view.stopped = None;
        drop(view);
        self.shared.waiters.wake_all();
        // It can be large, and the lock has been given back.
        drop(before);
        Ok(())
    }
}

impl Applier {
    /// The node is in a later epoch by now, and nothing was taken back. An earlier one is ignored.
    pub fn raise_epoch(&mut self, epoch: u64) {
        let mut view = self.shared.view_mut();
        view.epoch = view.epoch.max(epoch);
        drop(view);
        self.shared.waiters.wake_all();
    }

    /// Nothing more is applied, for this reason, unless there is one already. Whoever waits learns it.
    pub fn stop(&mut self, why: Stopped) {
        self.shared.view_mut().stopped.get_or_insert(why);
        self.shared.waiters.wake_all();
    }
}

impl Drop for Applier {
    fn drop(&mut self) {
        self.shared.view_mut().stopped.get_or_insert(Stopped::Ended);
        self.shared.waiters.wake_all();
    }
}

impl fmt::Debug for Applier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Applier").field("progress", &self.progress()).finish_non_exhaustive()
    }
}

/// What somebody may wait for that a command can bring about.
enum About {
    Name(TopicName),
    Topic(TopicId),
    Broker(BrokerId),
}

impl About {
    fn of(command: &Command) -> Option<Self> {
        match command {
            Command::CreateTopic { name, .. } => Some(Self::Name(name.clone())),
            Command::SetLeader { topic, .. } => Some(Self::Topic(*topic)),
            Command::RegisterBroker { broker, .. } => Some(Self::Broker(*broker)),
            _ => None,
        }
    }

    fn key(self, state: &State) -> Option<Key> {
        match self {
            Self::Name(name) => Some(Key::Topic(name)),
            Self::Topic(id) => state.topic_by_id(id).map(|topic| Key::Topic(topic.name.clone())),
            Self::Broker(broker) => Some(Key::Broker(broker)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::{Wake, Waker};
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn as_far_in_an_older_epoch_is_not_as_far() {
        let (metadata, mut applier) = Metadata::new(State::default(), 1);
        let command = Command::DeleteKey { key: vec![1], expected: Default::default() };
        let payload = Record { time_ms: 0, session: None, command }.encode().unwrap();
        applier.apply([Entry { offset: 0, epoch: 1, payload: &payload }], &mut Vec::new()).unwrap();
        let told = Progress { epoch: 2, end: 1 };
        let mut wait = metadata.wait_progress(told);
        assert!(matches!(wait.wait(Instant::now()), Err(crate::WaitError::Late { .. })));
        let waiting =
            std::thread::spawn(move || wait.wait(Instant::now() + Duration::from_secs(30)));
        applier.raise_epoch(2);
        assert_eq!(waiting.join().unwrap(), Ok(told));
    }

    #[derive(Default)]
    struct Flag(AtomicBool);

    impl Wake for Flag {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    /// Who looks at the state before a record is applied, and registers before that, is woken.
    #[test]
    fn whoever_registers_while_the_applier_waits_for_the_lock_is_woken() {
        let (metadata, mut applier) = Metadata::new(State::default(), 1);
        let shared = metadata.shared.clone();
        let view = shared.view();
        let thread = std::thread::spawn(move || {
            let command = Command::DeleteKey { key: vec![1], expected: Default::default() };
            let payload = Record { time_ms: 0, session: None, command }.encode().unwrap();
            let entry = Entry { offset: 0, epoch: 1, payload: &payload };
            applier.apply([entry], &mut Vec::new()).unwrap();
            applier
        });
        // The lock lets no reader in while the applier waits for it. If that should change, the test
        // goes on, and only notices less.
        let limit = Instant::now() + Duration::from_secs(5);
        while shared.view.try_read().is_ok() && Instant::now() < limit {
            std::thread::yield_now();
        }
        let flag = Arc::new(Flag::default());
        shared.waiters.register(&Key::Applied(0), &mut None, &Waker::from(flag.clone()));
        drop(view);
        let _applier = thread.join().unwrap();
        assert!(flag.0.load(Ordering::SeqCst));
        assert!(!shared.waiters.is_any());
    }
}
