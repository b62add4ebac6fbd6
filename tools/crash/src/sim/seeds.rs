//! Runs seeds on all cores until they have seen enough, and catches what fails.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, Once};
use std::thread;

use super::clones;
use super::corruption;
use super::driver::World;
use super::events::{Counts, Event};
use super::given_up;
use super::shards;

/// Lives of one world.
const LIVES: u64 = 24;

/// What a seed is for; the seed alone says it, so that it can be repeated alone.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Kind {
    /// One shard through crashes, kills and errors.
    World,
    /// Several that die together.
    Shards,
    /// Bits that turn over at rest.
    Rot,
    /// A write that is lost or goes elsewhere.
    Astray,
    /// Files of a copy that went its own way.
    Clone,
    /// An end that somebody insists on.
    GivenUp,
}

impl Kind {
    /// What this seed is for.
    pub fn of(seed: u64) -> Kind {
        match seed % 20 {
            0 | 10 => Kind::Rot,
            5 | 15 => Kind::Astray,
            7 | 17 => Kind::Clone,
            3 => Kind::Shards,
            12 => Kind::GivenUp,
            _ => Kind::World,
        }
    }

    /// As it is printed.
    pub fn name(self) -> &'static str {
        match self {
            Kind::World => "crashes",
            Kind::Shards => "shards",
            Kind::Rot => "rot",
            Kind::Astray => "astray",
            Kind::Clone => "clones",
            Kind::GivenUp => "given up",
        }
    }
}

/// What a run was: its trace and what happened.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct Outcome {
    /// Over every operation of its devices.
    pub trace: u64,
    pub counts: Counts,
}

/// A run that showed something that must not be.
#[derive(Clone, Debug)]
pub struct Failure {
    pub seed: u64,
    pub message: String,
}

/// Runs one seed.
pub fn run(seed: u64) -> Outcome {
    match Kind::of(seed) {
        Kind::World => {
            let mut world = World::new(seed);
            world.run(LIVES);
            world.into_outcome()
        }
        Kind::Shards => shards::run(seed),
        Kind::Rot => corruption::rot(seed),
        Kind::Astray => corruption::astray(seed),
        Kind::Clone => clones::run(seed),
        Kind::GivenUp => given_up::run(seed),
    }
}

/// Runs something that panics when an oracle is hurt; what it said then.
pub fn catch<T>(what: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let others = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !CATCHES.get() {
                return others(info);
            }
            let place = info.location().map(|at| format!("{}:{}", at.file(), at.line()));
            PLACE.set(place.unwrap_or_default());
        }));
    });
    let outer = CATCHES.replace(true);
    let outcome = panic::catch_unwind(AssertUnwindSafe(what));
    CATCHES.set(outer);
    outcome.map_err(|panic| format!("{} ({})", message(&*panic), PLACE.take()))
}

thread_local! {
    /// This thread's panics are caught and reported by [`catch`].
    static CATCHES: Cell<bool> = const { Cell::new(false) };
    /// Where the last one was.
    static PLACE: RefCell<String> = const { RefCell::new(String::new()) };
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without words".to_owned())
}

/// All that a series of seeds has seen.
#[derive(Default)]
pub struct Series {
    pub counts: Counts,
    pub runs: u64,
    /// The seed behind the last one that was run.
    pub next: u64,
    pub failures: Vec<Failure>,
}

/// Runs the seeds from `first` on until they have seen `crash_points`, or one has failed.
pub fn run_until(first: u64, crash_points: u64) -> Series {
    let next = AtomicU64::new(first);
    let seen = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let series = Mutex::new(Series::default());
    let work = || {
        let mut counts = Counts::default();
        let (mut runs, mut failures) = (0, Vec::new());
        while !stop.load(Ordering::Relaxed) && seen.load(Ordering::Relaxed) < crash_points {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            runs += 1;
            match catch(|| run(seed)) {
                Ok(outcome) => {
                    seen.fetch_add(outcome.counts.get(Event::CrashPoints), Ordering::Relaxed);
                    counts.merge(&outcome.counts);
                }
                Err(message) => {
                    failures.push(Failure { seed, message });
                    stop.store(true, Ordering::Relaxed);
                }
            }
        }
        let mut series = series.lock().expect("no thread panics");
        series.counts.merge(&counts);
        series.runs += runs;
        series.failures.append(&mut failures);
    };
    let threads = thread::available_parallelism().map_or(2, usize::from);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    let mut series = series.into_inner().expect("no thread panics");
    series.next = next.into_inner();
    series
}
