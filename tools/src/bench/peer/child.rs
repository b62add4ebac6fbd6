//! The process itself: a node or an engine, and the commands that it takes until its input ends.

use std::collections::VecDeque;
use std::io::stdin;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use ringwal_engine::{Append, Engine, StreamId};

use super::super::counters::Counters;
use super::super::writer::Writer;
use super::super::{trimmer, wait_until_prepared};
use crate::bench::engine_options;
use crate::cli::BenchPeerArgs;
use crate::exit::{self, Exit, Failure};
use crate::payload::mix;
use crate::{logging, nodes};

/// Where a node keeps what it has promised: the first thing that a session with a leader writes.
const PROMISES: StreamId = StreamId::new(3);
/// Between two looks for the beginning of a session, and for what is durable.
const LOOK: Duration = Duration::from_micros(500);
/// Whoever waits longer waits for nothing.
const PATIENCE: Duration = Duration::from_secs(600);
/// Bursts that a writer leaves on their way before it waits.
const BURSTS_MAX: usize = 64;

/// Runs the process.
pub fn run(args: &BenchPeerArgs) -> Result<Exit> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .context("asking to die with the parent")?;
    // It may have gone before that.
    anyhow::ensure!(std::os::unix::process::parent_id() == args.parent, "the parent is gone");
    logging::start(None);
    let engine = engine_options(args.io, args.sync)
        .shards(args.shards)
        .segment_bytes(args.segment_bytes)
        .lock_wait(nodes::LOCK_WAIT)
        .open(&args.dir)
        .map_err(|error| Failure::open(&error))?;
    wait_until_prepared(&engine);
    let node = match (args.node, args.members, &args.listen) {
        (Some(node), Some(members), Some(listen)) => {
            Some(nodes::start(engine.clone(), super::follower(node, members, listen))?)
        }
        _ => None,
    };
    let address = node.as_ref().map(|node| node.address().to_string()).unwrap_or_default();
    exit::print(&format!("{address}\n"))?;
    if let Some(records) = args.await_records {
        let took = wait_for(&engine, records)?;
        exit::print(&format!("{}\n", took.as_nanos()))?;
    }
    let outcome = obey(&engine, args, node.is_none());
    if let Some(node) = node {
        node.close();
    }
    engine.close().context("closing the engine")?;
    outcome.map(|()| Exit::Success)
}

fn obey(engine: &Engine, args: &BenchPeerArgs, is_writer: bool) -> Result<()> {
    let over = Arc::new(AtomicBool::new(false));
    let trimming = is_writer.then(|| {
        let (engine, over, bytes) = (engine.clone(), over.clone(), args.record_bytes as u64);
        thread::spawn(move || trimmer::run(&engine, None, bytes, &over))
    });
    let mut writing: Option<Writing> = None;
    for line in stdin().lines() {
        let line = line.context("reading a command")?;
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["counts"] => {
                let Counters { batches, records, written_bytes, .. } =
                    Counters::of(&engine.stats().shards);
                exit::print(&format!("{batches} {records} {written_bytes}\n"))?;
            }
            ["write", records, bursts] if writing.is_none() => {
                let (records, bursts) = (records.parse()?, bursts.parse()?);
                writing = Some(Writing::start(engine, args, records, bursts));
                exit::print("writing\n")?;
            }
            ["stop"] => {
                writing.take().map_or(Ok(()), Writing::end)?;
                exit::print("stopped\n")?;
            }
            _ => bail!("{line:?} is no command"),
        }
    }
    writing.take().map_or(Ok(()), Writing::end)?;
    over.store(true, Ordering::Relaxed);
    trimming.map_or(Ok(()), joined)
}

/// From the beginning of the session until so many records of others are durable here.
fn wait_for(engine: &Engine, records: u64) -> Result<Duration> {
    let start = Instant::now();
    let promises = engine.stream(PROMISES);
    while promises.end() == 0 {
        if start.elapsed() > PATIENCE {
            bail!("nobody leads");
        }
        thread::sleep(LOOK);
    }
    let begin = Instant::now();
    loop {
        let streams = engine.streams();
        let of_others = streams.iter().filter(|summary| !summary.stream.is_local());
        let durable: u64 = of_others.map(|summary| summary.end).sum();
        if durable >= records {
            return Ok(begin.elapsed());
        }
        if begin.elapsed() > PATIENCE {
            bail!("{durable} of {records} records are durable after {PATIENCE:?}");
        }
        thread::sleep(LOOK);
    }
}

/// A thread that writes.
struct Writing {
    thread: JoinHandle<Result<()>>,
    over: Arc<AtomicBool>,
}

impl Writing {
    fn start(engine: &Engine, args: &BenchPeerArgs, records: f64, bursts: f64) -> Writing {
        let over = Arc::new(AtomicBool::new(false));
        let writers = (0..args.streams)
            .map(|stream| Writer::new(engine, stream, args.seed, args.record_bytes, None))
            .collect();
        let is_over = over.clone();
        let thread = thread::spawn(move || write(writers, records, bursts, &is_over));
        Writing { thread, over }
    }

    fn end(self) -> Result<()> {
        self.over.store(true, Ordering::Relaxed);
        joined(self.thread)
    }
}

/// Appends so many records per second, in so many bursts: as a follower is given what its leader has
/// sealed. The bursts are as irregular as that: each comes after up to twice the mean time, and has
/// what is due by then. Streams get them in turn.
fn write(
    mut writers: Vec<Writer>,
    records_per_second: f64,
    bursts_per_second: f64,
    over: &AtomicBool,
) -> Result<()> {
    let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
    let begin = Instant::now();
    let (mut sent, mut stream, mut due_seconds) = (0, 0, 0.0);
    let mut in_flight: VecDeque<Append> = VecDeque::new();
    for burst in 0.. {
        let share = mix(burst) as f64 / u64::MAX as f64;
        due_seconds += 2.0 * share / bursts_per_second;
        let intended = begin + Duration::from_secs_f64(due_seconds);
        thread::sleep(intended.saturating_duration_since(Instant::now()));
        if over.load(Ordering::Relaxed) {
            break;
        }
        let mut last = None;
        while sent < (due_seconds * records_per_second) as u64 {
            writers[stream].make();
            last = Some(writers[stream].append()?);
            stream = (stream + 1) % writers.len();
            sent += 1;
        }
        in_flight.extend(last);
        while in_flight.front().is_some_and(|first| first.try_receipt().is_some())
            || in_flight.len() > BURSTS_MAX
        {
            wait_for_first(&mut in_flight)?;
        }
    }
    while !in_flight.is_empty() {
        wait_for_first(&mut in_flight)?;
    }
    Ok(())
}

fn wait_for_first(in_flight: &mut VecDeque<Append>) -> Result<()> {
    match in_flight.pop_front() {
        Some(first) => first.wait().map(drop).context("waiting for a receipt"),
        None => Ok(()),
    }
}

fn joined(thread: JoinHandle<Result<()>>) -> Result<()> {
    thread.join().unwrap_or_else(|_| Err(anyhow!("a thread of this process panicked")))
}
