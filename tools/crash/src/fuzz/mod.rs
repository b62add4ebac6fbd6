//! Fuzzing of everything that decodes bytes from disk or from other nodes: inputs that begin as real
//! ones, are mutated by structure, and mostly get their checksums put right again, so that what lies
//! behind them is reached. No panic, no memory beyond a bound that the input gives, no endless loop;
//! what is accepted is written as it was read.
//!
//! An execution is a function of the seed and its number, whatever thread runs it.

mod corpus;
mod disk;
mod leader;
mod memory;
mod mutate;
mod raft;
mod targets;
mod wire;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::cli::Request;
use crate::random::{Random, mix};
use crate::report::Report;
use corpus::Corpus;
use targets::{Bench, Outcome, Target, Verdict};

#[global_allocator]
static ALLOCATOR: memory::Counting = memory::Counting;

/// Executions when nothing else is asked for.
const EXECUTIONS: u64 = 5_000_000;
/// An execution that takes longer never ends.
const TIME_MAX: Duration = Duration::from_secs(20);
/// Failures of one kind that are told.
const FAILURES_TOLD: usize = 20;

thread_local! {
    /// What the panic of this thread said.
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// What the threads share.
struct Shared<'a> {
    seed: u64,
    corpus: &'a Corpus,
    /// Of each thread: its execution, and when it began, in milliseconds since `began`.
    running: Vec<(AtomicU64, AtomicU64)>,
    began: Instant,
    over: AtomicBool,
    /// By what was wrong: the first execution, and how many.
    failures: Mutex<BTreeMap<String, (u64, u64)>>,
}

/// Executions and how many of them were accepted.
type Counts = BTreeMap<Target, (u64, u64)>;

/// Runs it; `only` is the one execution to repeat.
pub fn run(request: Request, only: Option<u64>, report: &mut Report) -> Result<()> {
    let corpus = Corpus::load().context("the corpus; `ringwal-crash corpus` writes it")?;
    let count = request.count.unwrap_or(EXECUTIONS);
    let (first, count) = only.map_or((0, count), |only| (only, 1));
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(count as usize);
    let shared = Shared {
        seed: request.seed,
        corpus: &corpus,
        running: (0..threads.max(1)).map(|_| Default::default()).collect(),
        began: Instant::now(),
        over: AtomicBool::new(false),
        failures: Mutex::default(),
    };
    std::panic::set_hook(Box::new(|panic| {
        PANIC.with(|said| *said.borrow_mut() = Some(panic.to_string().replace('\n', " ")));
    }));
    let ran = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..shared.running.len())
            .map(|thread| {
                let shared = &shared;
                let step = shared.running.len();
                let executions = (first + thread as u64..first + count).step_by(step);
                scope.spawn(move || work(shared, thread, executions))
            })
            .collect();
        scope.spawn(|| watch(&shared));
        let ran: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        shared.over.store(true, Ordering::Relaxed);
        ran
    });
    drop(std::panic::take_hook());
    let mut failed = 0;
    for counts in ran {
        let counts = counts.map_err(|_| anyhow::anyhow!("a fuzzing thread panicked"))??;
        for (target, (executions, accepted)) in counts {
            report.pass(executions);
            report.cover(&format!("{target:?}: executions"), executions);
            report.cover(&format!("{target:?}: accepted"), accepted);
        }
    }
    let failures = shared.failures.into_inner().unwrap_or_default();
    for (what, (execution, times)) in failures.iter().take(FAILURES_TOLD) {
        failed += 1;
        report.fail(format!(
            "fuzz --seed {} --execution {execution}: {what} ({times} times)",
            request.seed
        ));
    }
    report.cover("kinds of failures", failures.len().max(failed) as u64);
    Ok(())
}

fn work(
    shared: &Shared<'_>,
    thread: usize,
    executions: impl Iterator<Item = u64>,
) -> Result<Counts> {
    let bench = Bench::new()?;
    let mut counts = Counts::new();
    let (current, begun) = &shared.running[thread];
    for execution in executions {
        current.store(execution, Ordering::Relaxed);
        begun.store(shared.began.elapsed().as_millis() as u64 + 1, Ordering::Relaxed);
        let (target, outcome) = run_one(shared, execution, &bench);
        match outcome {
            Ok(verdict) => {
                let (executions, accepted) = counts.entry(target).or_default();
                *executions += 1;
                *accepted += u64::from(verdict == Verdict::Accepted);
            }
            Err(what) => {
                let mut failures = shared.failures.lock().unwrap_or_else(|lock| lock.into_inner());
                failures.entry(format!("{target:?}: {what}")).or_insert((execution, 0)).1 += 1;
            }
        }
    }
    begun.store(0, Ordering::Relaxed);
    Ok(counts)
}

fn run_one(shared: &Shared<'_>, execution: u64, bench: &Bench) -> (Target, Outcome) {
    let mut random =
        Random::new(mix(shared.seed).wrapping_add(execution.wrapping_mul(0x9E37_79B9)));
    let target = Target::draw(&mut random);
    let input =
        catch_unwind(AssertUnwindSafe(|| targets::input(target, shared.corpus, &mut random)));
    let input = match input {
        Ok(input) => input,
        Err(_) => return (target, Err(format!("the mutation itself: {}", panic_message()))),
    };
    let length = input.length();
    let (outcome, peak) = memory::peak_of(|| {
        catch_unwind(AssertUnwindSafe(|| targets::execute(target, &input, bench)))
    });
    let outcome = outcome.unwrap_or_else(|_| Err(panic_message()));
    let outcome = outcome.and_then(|verdict| match target.bytes_max(length) {
        most if peak > most => {
            // In powers of two, so that one bug is one failure.
            Err(format!("holds more than {} KiB", peak.next_power_of_two() >> 11))
        }
        _ => Ok(verdict),
    });
    if outcome.is_err()
        && let Some(folder) = std::env::var_os("RINGWAL_FUZZ_KEEP")
    {
        let path = Path::new(&folder).join(format!("{target:?}-{execution}"));
        let _ = std::fs::write(path, input.archive());
    }
    (target, outcome)
}

fn panic_message() -> String {
    PANIC.with(|said| said.borrow_mut().take()).unwrap_or_else(|| "a panic".into())
}

/// Ends the program when an execution does not end: nothing else can end a loop.
fn watch(shared: &Shared<'_>) {
    while !shared.over.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(50));
        let now = shared.began.elapsed().as_millis() as u64 + 1;
        for (execution, begun) in &shared.running {
            let begun = begun.load(Ordering::Relaxed);
            if begun != 0 && now.saturating_sub(begun) > TIME_MAX.as_millis() as u64 {
                let execution = execution.load(Ordering::Relaxed);
                println!("FAILED fuzz --seed {} --execution {execution}: no end", shared.seed);
                println!("0 passed, 1 failed, 0 skipped");
                std::process::exit(1);
            }
        }
    }
}

/// Writes the files that fuzzing starts from.
pub fn write_corpus(folder: &Path, report: &mut Report) -> Result<()> {
    for (name, bytes) in corpus::write(folder)? {
        report.cover(&format!("{name}: bytes"), bytes as u64);
        report.pass(1);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_hundred_thousand_executions_find_nothing() {
        let mut report = Report::new("fuzz", 7);
        let request = Request { seed: 7, count: Some(200_000) };
        run(request, None, &mut report).unwrap();
        assert_eq!(report.failed(), 0);
        let least = [
            ("Batch", 100),
            ("Controls", 100),
            ("Orphan", 100),
            ("Hello", 100),
            ("Answer", 100),
            ("Message", 1000),
            ("Items", 1000),
            ("Follower", 1000),
            ("Recovery", 10),
            ("Raft(Request)", 100),
            ("Raft(Reply)", 100),
            ("Raft(Entry)", 100),
            ("Raft(Facts)", 100),
            ("Raft(StoreAsk)", 100),
            ("Raft(StoreAnswer)", 100),
            ("Raft(Question)", 20),
            ("Raft(Base)", 100),
            ("Raft(Snapshot)", 100),
            ("Raft(Record)", 100),
        ];
        for (kind, least) in least {
            assert!(report.covered(&format!("{kind}: accepted")) > least, "{kind}");
        }
    }
}
