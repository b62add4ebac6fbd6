//! The runtime that the nodes of a run share: openraft's simulated one, one thread with a virtual clock. Each
//! task belongs to one run of a node's process, or to nobody. So a process can die, or be stopped for a
//! while, with everything in it, and has a clock that goes a little faster or slower than the true one.

use std::any::Any;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::ops::{Add, AddAssign, Sub, SubAssign};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use openraft::{AsyncRuntime, Instant, OptionalSend};
use openraft_rt_sim::{SimInstant, SimRuntime};

/// Where clocks begin, so that a time before the start can be named.
const CLOCK_BEGINS_NS: u64 = 86_400_000_000_000;

thread_local! {
    static PRESENT: RefCell<Option<Arc<Run>>> = const { RefCell::new(None) };
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Locks something that nobody else can hold: there is one thread.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Nanoseconds of true time since the run began.
pub fn true_ns() -> u64 {
    SimInstant::now().elapsed_since_start().as_nanos() as u64
}

/// A task has panicked since this was asked last: what it said.
pub fn take_panic() -> Option<String> {
    PANICS.with_borrow_mut(|panics| (!panics.is_empty()).then(|| panics.remove(0)))
}

/// One run of a process.
pub struct Run {
    /// Whose.
    node: usize,
    /// By how many millionths its clock goes too fast.
    drift_ppm: i64,
    state: Mutex<RunState>,
}

#[derive(Default)]
struct RunState {
    is_dead: bool,
    is_stopped: bool,
    /// Tasks that were to go on while it was stopped.
    parked: Vec<Waker>,
    tasks: BTreeMap<u64, Arc<dyn Slot>>,
    spawned: u64,
}

/// Where a task is while nobody polls it.
trait Slot: Send + Sync {
    fn clear(&self);
}

impl<F: Send> Slot for Mutex<Option<Pin<Box<F>>>> {
    fn clear(&self) {
        let future = lock(self).take();
        // Not under the lock: it may wake others.
        drop(future);
    }
}

impl Run {
    pub fn new(node: usize, drift_ppm: i64) -> Arc<Self> {
        Arc::new(Self { node, drift_ppm, state: Mutex::default() })
    }

    /// Its clock, in nanoseconds.
    pub fn now_ns(&self) -> u64 {
        let true_ns = i128::from(true_ns());
        CLOCK_BEGINS_NS + (true_ns * (1_000_000 + i128::from(self.drift_ppm)) / 1_000_000) as u64
    }

    /// How much true time so much of its time takes, at least.
    fn true_time(&self, time: Duration) -> Duration {
        let ns = time.as_nanos() as i128 * 1_000_000;
        let true_ns = ns / (1_000_000 + i128::from(self.drift_ppm)) + 1;
        Duration::from_nanos(true_ns as u64)
    }

    pub fn is_dead(&self) -> bool {
        lock(&self.state).is_dead
    }

    /// The process is gone, with every task of it.
    pub fn end(self: &Arc<Self>) {
        let before = PRESENT.replace(Some(self.clone()));
        loop {
            let tasks = {
                let mut state = lock(&self.state);
                state.is_dead = true;
                state.parked.clear();
                std::mem::take(&mut state.tasks)
            };
            if tasks.is_empty() {
                break;
            }
            tasks.values().for_each(|task| task.clear());
        }
        PRESENT.set(before);
    }

    /// Nothing of it goes on.
    pub fn stop(&self) {
        lock(&self.state).is_stopped = true;
    }

    /// All of it goes on.
    pub fn go_on(&self) {
        let parked = {
            let mut state = lock(&self.state);
            state.is_stopped = false;
            std::mem::take(&mut state.parked)
        };
        parked.into_iter().for_each(Waker::wake);
    }
}

/// Spawns a task of a run, or of nobody. What a task of a run that has died would give never comes.
pub fn spawn_in<F>(
    run: Option<Arc<Run>>,
    future: F,
) -> <SimRuntime as AsyncRuntime>::JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    let slot = Arc::new(Mutex::new(Some(Box::pin(future))));
    let mut number = 0;
    if let Some(run) = &run {
        let mut state = lock(&run.state);
        if state.is_dead {
            slot.clear();
        } else {
            state.spawned += 1;
            number = state.spawned;
            state.tasks.insert(number, slot.clone());
        }
    }
    SimRuntime::spawn(Task { run, number, slot })
}

struct Task<F> {
    run: Option<Arc<Run>>,
    number: u64,
    slot: Arc<Mutex<Option<Pin<Box<F>>>>>,
}

impl<F: Future> Future for Task<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        if let Some(run) = &self.run {
            let mut state = lock(&run.state);
            if state.is_stopped {
                state.parked.push(context.waker().clone());
                return Poll::Pending;
            }
        }
        let Some(mut future) = lock(&self.slot).take() else { return Poll::Pending };
        let before = PRESENT.replace(self.run.clone());
        let polled = catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context)));
        let is_dead = self.run.as_ref().is_some_and(|run| run.is_dead());
        let polled = match polled {
            Ok(Poll::Pending) if !is_dead => {
                *lock(&self.slot) = Some(future);
                Poll::Pending
            }
            Ok(polled) => {
                drop(future);
                polled
            }
            Err(panic) => {
                PANICS.with_borrow_mut(|panics| panics.push(message(&*panic)));
                Poll::Pending
            }
        };
        PRESENT.set(before);
        if let (Poll::Ready(_), Some(run)) = (&polled, &self.run) {
            lock(&run.state).tasks.remove(&self.number);
        }
        polled
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(text), _) => (*text).to_owned(),
        (_, Some(text)) => text.clone(),
        _ => "a panic without a message".to_owned(),
    }
}

/// A time on the clock of whoever asks.
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Debug)]
pub struct NodeInstant(u64);

impl Instant for NodeInstant {
    fn now() -> Self {
        let now_ns = |run: &Option<Arc<Run>>| run.as_ref().map(|run| run.now_ns());
        Self(PRESENT.with_borrow(now_ns).unwrap_or_else(|| CLOCK_BEGINS_NS + true_ns()))
    }
}

fn ns(time: Duration) -> u64 {
    time.as_nanos() as u64
}

impl Add<Duration> for NodeInstant {
    type Output = Self;

    fn add(self, time: Duration) -> Self {
        Self(self.0.saturating_add(ns(time)))
    }
}

impl AddAssign<Duration> for NodeInstant {
    fn add_assign(&mut self, time: Duration) {
        *self = *self + time;
    }
}

impl Sub<Duration> for NodeInstant {
    type Output = Self;

    fn sub(self, time: Duration) -> Self {
        Self(self.0.checked_sub(ns(time)).expect("clocks begin a day late"))
    }
}

impl SubAssign<Duration> for NodeInstant {
    fn sub_assign(&mut self, time: Duration) {
        *self = *self - time;
    }
}

impl Sub for NodeInstant {
    type Output = Duration;

    fn sub(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// openraft's simulated runtime, with a clock for each node.
#[derive(Debug)]
pub struct NodeRuntime;

fn true_time(time: Duration) -> Duration {
    PRESENT.with_borrow(|run| run.as_ref().map_or(time, |run| run.true_time(time)))
}

impl AsyncRuntime for NodeRuntime {
    type JoinError = <SimRuntime as AsyncRuntime>::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = <SimRuntime as AsyncRuntime>::JoinHandle<T>;
    type Sleep = <SimRuntime as AsyncRuntime>::Sleep;
    type Instant = NodeInstant;
    type TimeoutError = <SimRuntime as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + OptionalSend> =
        <SimRuntime as AsyncRuntime>::Timeout<R, T>;
    type ThreadLocalRng = <SimRuntime as AsyncRuntime>::ThreadLocalRng;
    type Mpsc = <SimRuntime as AsyncRuntime>::Mpsc;
    type Watch = <SimRuntime as AsyncRuntime>::Watch;
    type Oneshot = <SimRuntime as AsyncRuntime>::Oneshot;
    type Mutex<T: OptionalSend + 'static> = <SimRuntime as AsyncRuntime>::Mutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        spawn_in(PRESENT.with_borrow(Clone::clone), future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        SimRuntime::sleep(true_time(duration))
    }

    fn sleep_until(deadline: NodeInstant) -> Self::Sleep {
        Self::sleep(deadline - NodeInstant::now())
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(
        duration: Duration,
        future: F,
    ) -> Self::Timeout<R, F> {
        SimRuntime::timeout(true_time(duration), future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(
        deadline: NodeInstant,
        future: F,
    ) -> Self::Timeout<R, F> {
        Self::timeout(deadline - NodeInstant::now(), future)
    }

    fn is_panic(error: &Self::JoinError) -> bool {
        SimRuntime::is_panic(error)
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        SimRuntime::thread_rng()
    }

    fn new(threads: usize) -> Self {
        unreachable!("a run makes its own runtime, not one of {threads} threads")
    }

    fn block_on<F: Future<Output = T>, T>(&mut self, _: F) -> T {
        unreachable!("a run blocks on its own runtime")
    }

    fn spawn_blocking<F, T>(blocking: F) -> impl Future<Output = Result<T, std::io::Error>> + Send
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        SimRuntime::spawn_blocking(blocking)
    }
}

/// For a log: true time, and which clock of which run is looked at.
pub struct TrueTime;

impl tracing_subscriber::fmt::time::FormatTime for TrueTime {
    fn format_time(
        &self,
        to: &mut tracing_subscriber::fmt::format::Writer<'_>,
    ) -> std::fmt::Result {
        let ns = SimInstant::try_now().map_or(0, |now| now.elapsed_since_start().as_nanos() as u64);
        let node = PRESENT.with_borrow(|run| run.as_ref().map(|run| run.node));
        write!(
            to,
            "{:>9.3} {}",
            ns as f64 / 1e6,
            node.map_or("-".into(), |node| format!("node {node}"))
        )
    }
}
