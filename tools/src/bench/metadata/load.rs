//! The work of one part: clients of the leader or of a follower, or the probe in all processes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use hdrhistogram::Histogram;

use super::super::Bench;
use super::super::counters::Counters;
use super::super::measure::{Part, Tally, joined};
use super::super::recorder::Window;
use super::PROBE_WRITE_BYTES;
use super::cluster::{Cluster, histogram_of};
use super::local::create_until;
use crate::interrupt::Interrupt;
use crate::probe::DeviceProbe;
use ringwal_replication::Ack;

/// Between two looks for the end.
const LOOK: Duration = Duration::from_millis(20);
/// The probe finds out in so long which method is better.
const PROBE_FIRST: Duration = Duration::from_millis(50);

/// How topics are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// In the leader's process, on the fast path.
    Fast,
    /// In the leader's process, through Raft.
    Raft,
    /// In a follower's process, on the fast path.
    Port,
    /// Not at all: bare writes in all processes.
    Probe,
}

/// See the module.
pub struct Load<'a> {
    cluster: &'a Cluster,
    interrupt: Interrupt,
    probe: Mutex<Probe>,
    /// Parts so far, for names that are new.
    parts: AtomicU64,
    /// What was counted while measuring, by run and name.
    counted: Mutex<BTreeMap<String, BTreeMap<String, f64>>>,
}

struct Probe {
    device: DeviceProbe,
    is_begun: bool,
}

impl<'a> Load<'a> {
    pub fn new(bench: &Bench, cluster: &'a Cluster, device: DeviceProbe) -> Load<'a> {
        Load {
            cluster,
            interrupt: bench.interrupt.clone(),
            probe: Mutex::new(Probe { device, is_begun: false }),
            parts: AtomicU64::new(0),
            counted: Mutex::default(),
        }
    }

    /// Further numbers of a run.
    pub fn extra_of(&self, run: &str) -> BTreeMap<String, f64> {
        let counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        counted.get(run).cloned().unwrap_or_default()
    }

    fn add(&self, run: &str, name: String, value: f64) {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        *counted.entry(run.to_owned()).or_default().entry(name).or_insert(0.0) += value;
    }

    /// One part.
    pub fn work(&self, part: &Part<'_>, run: &str, way: Way, clients: usize) -> Result<Tally> {
        if way == Way::Probe {
            return self.probe(part);
        }
        self.cluster.set_fast_path(way != Way::Raft)?;
        // What the part before has left is not this one's.
        let followers = 2..=self.cluster.followers() as u64 + 1;
        followers.clone().try_for_each(|node| self.cluster.wait_for(node))?;
        let number = self.parts.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("{run}-{number}");
        if way == Way::Port {
            return self.through_port(part, clients, &prefix);
        }
        let store = &self.cluster.node.store;
        let otherwise = AtomicU64::new(0);
        let wanted = if way == Way::Fast { Ack::Local } else { Ack::Quorum };
        let window = part.begin();
        let client = |index: usize| {
            let mut recorder = part.recorder(index, clients);
            let prefix = format!("{prefix}-{index}");
            create_until(
                store,
                &prefix,
                |now| part.is_over(now),
                |start, took, executed| {
                    recorder.record(start, took);
                    if executed.durable != wanted {
                        otherwise.fetch_add(1, Ordering::Relaxed);
                    }
                },
            )
        };
        let counters = thread::scope(|scope| {
            let counting = scope.spawn(|| self.count(part, window, run));
            let threads: Vec<_> = (0..clients)
                .map(|index| {
                    thread::Builder::new()
                        .name(format!("client-{index}"))
                        .stack_size(256 << 10)
                        .spawn_scoped(scope, move || client(index))
                        .with_context(|| format!("starting client {index}"))
                })
                .collect();
            let mut outcome = Ok(());
            for thread in threads {
                outcome = outcome.and(thread.and_then(joined));
            }
            let counted = joined(counting);
            outcome.and(counted)
        })?;
        // Not the way that this run is about.
        self.add(run, "other_way".to_owned(), otherwise.into_inner() as f64);
        Ok(Tally { counters: Some(counters), ..Tally::default() })
    }

    /// What is counted in the window: of this node all, of the others what makes them durable.
    fn count(&self, part: &Part<'_>, window: Window, run: &str) -> Result<Counters> {
        let look = || -> Result<(Counters, Vec<(u64, u64)>)> {
            let here = || {
                let node = &self.cluster.node;
                let counters = Counters::of(&node.engine().stats().shards);
                Ok(counters.with_store(&node.store.status().latencies))
            };
            let (answers, here) = self.cluster.ask_all("counts", here)?;
            let pair = |answer: &String| {
                let (batches, flushes) = answer.split_once(' ')?;
                Some((batches.parse().ok()?, flushes.parse().ok()?))
            };
            Ok((here, answers.iter().filter_map(pair).collect()))
        };
        sleep_until(part, window.from);
        let (before, others_before) = look()?;
        sleep_until(part, window.until);
        let (after, others_after) = look()?;
        let mut counters = Counters::default();
        counters.add_difference(&before, &after);
        self.add(run, "node_1_flushes".to_owned(), counters.flushes as f64);
        let others = (2..).zip(others_before.into_iter().zip(others_after));
        for (node, ((batches_before, before), (batches, after))) in others {
            self.add(run, format!("node_{node}_flushes"), after.saturating_sub(before) as f64);
            let batches = batches.saturating_sub(batches_before) as f64;
            self.add(run, format!("node_{node}_batches"), batches);
        }
        Ok(counters)
    }

    fn through_port(&self, part: &Part<'_>, clients: usize, prefix: &str) -> Result<Tally> {
        let window = part.begin();
        let (warmup, length) = times(window);
        let create = format!("create {clients} {warmup} {length} {prefix}");
        let answer = self.cluster.ask(2, &create)?;
        record_all(part, window, &histogram_of(&answer)?);
        Ok(Tally::default())
    }

    fn probe(&self, part: &Part<'_>) -> Result<Tally> {
        let mut probe = self.probe.lock().unwrap_or_else(PoisonError::into_inner);
        if !probe.is_begun {
            self.cluster.ask_all("probe 0", || probe.device.slice(PROBE_FIRST, &self.interrupt))?;
            probe.is_begun = true;
        }
        let window = part.begin();
        sleep_until(part, window.from);
        let (_, length) = times(window);
        let time = Duration::from_nanos(length);
        let bare = || probe.device.bare(PROBE_WRITE_BYTES, time, &self.interrupt);
        let (answers, here) = self.cluster.ask_all(&format!("probe {length}"), bare)?;
        record_all(part, window, &here.latency);
        for answer in answers {
            record_all(part, window, &histogram_of(&answer)?);
        }
        Ok(Tally::default())
    }
}

/// Nanoseconds from now to its beginning, and its length.
fn times(window: Window) -> (u64, u64) {
    let warmup = window.from.saturating_duration_since(Instant::now());
    (warmup.as_nanos() as u64, (window.until - window.from).as_nanos() as u64)
}

fn sleep_until(part: &Part<'_>, then: Instant) {
    loop {
        let now = Instant::now();
        if now >= then || part.is_over(now) {
            return;
        }
        thread::sleep((then - now).min(LOOK));
    }
}

/// What another process has measured is one interval, at the beginning.
fn record_all(part: &Part<'_>, window: Window, latency: &Histogram<u64>) {
    let mut recorder = part.recorder(0, 1);
    for value in latency.iter_recorded() {
        let took = Duration::from_nanos(value.value_iterated_to());
        recorder.record_many(window.from, took, value.count_at_value());
    }
}
