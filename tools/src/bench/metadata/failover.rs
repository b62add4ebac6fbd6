//! The death of a leader: from SIGKILL to the first answer from the next one's own log, under load. The
//! clients are in this process, which follows; so a leader is another process each time.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use ringwal_replication::Ack;

use super::super::Bench;
use super::super::measure::Measured;
use super::NAMES;
use super::cluster::Cluster;
use super::local::create;
use crate::probe::histogram;
use crate::report::{Run, RunBuilder};

/// How often.
const ROUNDS: u64 = 5;
const CLIENTS: u64 = 8;
/// Load before the leader dies.
const BEFORE: Duration = Duration::from_millis(300);
/// Nobody waits for longer.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(5);

/// Measures it.
pub fn run(bench: &mut Bench, cluster: &Cluster) -> Result<()> {
    let start_ns = bench.elapsed_ns();
    let begin = Instant::now();
    let mut latency = histogram();
    for round in 0..ROUNDS {
        bench.progress.show(NAMES[6]);
        let victim = round % cluster.followers() as u64 + 2;
        cluster.lead(victim)?;
        (2..=cluster.followers() as u64 + 1).try_for_each(|node| cluster.wait_for(node))?;
        if bench.interrupt.is_asked() {
            break;
        }
        let Some(took) = die(bench, cluster, victim, round)? else { break };
        latency.record(took.as_nanos() as u64)?;
        cluster.start_peer(victim)?;
        cluster.wait_for(victim)?;
    }
    let run = Run {
        name: NAMES[6].to_owned(),
        description: format!(
            "{CLIENTS} clients of a follower make topics; from SIGKILL of the leader to the first \
             answer on the next one's fast path"
        ),
        clients: CLIENTS,
        followers: cluster.followers() as u32,
        ack: "local".to_owned(),
        start_ns,
        duration_ns: begin.elapsed().as_nanos() as u64,
        records: latency.len(),
        ..Run::default()
    };
    let (run, histograms) = RunBuilder::new(run, latency).finish();
    bench.keep(Measured { run, histograms, yardstick: Vec::new() });
    Ok(())
}

/// One death; `None` when interrupted.
fn die(bench: &Bench, cluster: &Cluster, victim: u64, round: u64) -> Result<Option<Duration>> {
    let store = &cluster.node.store;
    let epoch = store.status().begun.map_or(0, |begun| begun.epoch);
    let over = AtomicBool::new(false);
    let made = AtomicU64::new(0);
    let first: Mutex<Option<Instant>> = Mutex::new(None);
    let found = || *first.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let client = |client: u64| {
        for number in 0_u64.. {
            if over.load(Ordering::Relaxed) {
                break;
            }
            // One whose outcome is not known is no answer; the next one has another name.
            let Ok(executed) = create(store, &format!("failover-{round}-{client}-{number}")) else {
                continue;
            };
            let now = Instant::now();
            made.fetch_add(1, Ordering::Relaxed);
            if executed.epoch > epoch && executed.durable == Ack::Local {
                first.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get_or_insert(now);
                break;
            }
        }
    };
    let killed = thread::scope(|scope| {
        for number in 0..CLIENTS {
            scope.spawn(move || client(number));
        }
        thread::sleep(BEFORE);
        let killed = Instant::now();
        cluster.kill(victim);
        while found().is_none() && killed.elapsed() < PATIENCE && !bench.interrupt.is_asked() {
            thread::sleep(LOOK);
        }
        over.store(true, Ordering::Relaxed);
        killed
    });
    if made.load(Ordering::Relaxed) == 0 {
        bail!("no topic was made before the leader was killed");
    }
    match found() {
        Some(first) => Ok(Some(first.saturating_duration_since(killed))),
        None if bench.interrupt.is_asked() => Ok(None),
        None => bail!(
            "no answer on the fast path within {PATIENCE:?} after the leader was killed; node 1: {:?}",
            store.status().mode
        ),
    }
}
