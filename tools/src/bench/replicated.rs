//! Runs with followers: a node leads and appends with `Ack::Local` and `Ack::Quorum`, in turn with
//! an engine of its own that has no followers. The followers are nodes in this process, or the other
//! members of a configuration.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use ringwal_engine::Engine;
use ringwal_replication::config::Config;
use ringwal_replication::stats::{FollowerStats, NodeStats};
use ringwal_replication::{Ack, LeadError, Leadership, Node};

use super::closed_loop::{Clients, description};
use super::data::SideDirectory;
use super::measure::{Part, Tally, Variant, Yardstick, measure};
use super::settings::{Followers, Replication, replicated_name};
use super::{Bench, peer, wait_until_prepared};
use crate::cli::{self, AckName, RunName};
use crate::exit::{Exit, Failure};
use crate::interrupt::Interrupt;
use crate::nodes;
use crate::report::Run;

/// Segments of all nodes of one process, unless their directories have others already.
const SEGMENT_BYTES: u64 = 32 << 20;
/// How long followers may take to connect, and to take what they lack.
const FOLLOWERS_WAIT: Duration = Duration::from_secs(10);
/// How long followers that lag are waited for between two parts of a run.
const IN_STEP_WAIT: Duration = Duration::from_secs(60);
/// How long after the end of a part the last appends may take; then nobody answers any more.
const LAST_APPENDS: Duration = Duration::from_secs(5);
/// Between two looks at either.
const LOOK: Duration = Duration::from_millis(20);

/// All nodes of the measurement that are in this process. The leader is closed first, so that what
/// it has sent is taken.
struct Cluster {
    leader: Arc<Node>,
    leadership: Leadership,
    followers: Vec<Node>,
    members: usize,
    alone: Option<Alone>,
}

/// An engine without followers, and its directory, which is removed when the engine is closed.
struct Alone {
    engine: Engine,
    _directory: SideDirectory,
}

/// Makes all runs with followers.
pub fn run(bench: &mut Bench) -> Result<()> {
    let replication = bench.settings.replication.clone().expect("it was asked for");
    let cluster = Cluster::start(bench, &replication)?;
    let outcome = cluster.measure(bench, &replication);
    cluster.close()?;
    outcome
}

impl Cluster {
    fn start(bench: &mut Bench, replication: &Replication) -> Result<Cluster> {
        bench.progress.show("starting nodes");
        let io = bench.settings.io[0];
        let (followers, config, alone) = match &replication.followers {
            Followers::InProcess(count) => {
                bench.warn(format!(
                    "the leader and {count} followers share the processors and the disk of this \
                     machine: on machines of their own they would not wait for each other."
                ));
                let (followers, config) = start_followers(bench, *count)?;
                let directory = bench.data.side("alone");
                let engine = bench.open_at(io, directory.path(), Some(SEGMENT_BYTES))?;
                (followers, config, Some(Alone { engine, _directory: directory }))
            }
            Followers::Members(path) => (Vec::new(), nodes::read_config(path)?, None),
        };
        let members = config.members.len();
        let path = bench.data.path().to_owned();
        let segment_bytes = alone.as_ref().map(|_| SEGMENT_BYTES);
        let engine = bench.open_at(io, &path, segment_bytes)?;
        wait_until_prepared(&engine);
        if let Some(alone) = &alone {
            wait_until_prepared(&alone.engine);
        }
        let leader = nodes::start(engine, config)?;
        let epoch = replication.epoch.unwrap_or_else(milliseconds_since_1970);
        let leadership = leader.lead(epoch).map_err(cannot_lead)?;
        let leader = Arc::new(leader);
        Ok(Cluster { leader, leadership, followers, members, alone })
    }

    fn measure(&self, bench: &mut Bench, replication: &Replication) -> Result<()> {
        self.wait_for_followers(bench, replication)?;
        for run in bench.settings.runs.clone() {
            if bench.interrupt.is_asked() {
                break;
            }
            let variants = self.variants(bench, replication, run);
            let measured = measure(bench, variants)?;
            bench.keep_all(measured);
        }
        Ok(())
    }

    fn variants(
        &self,
        bench: &Bench,
        replication: &Replication,
        run: RunName,
    ) -> Vec<Variant<'static>> {
        let name = cli::name_of(&run);
        let count = if run == RunName::Idle { 1 } else { bench.settings.clients };
        let followers = self.members - 1;
        let clients = |engine: &Engine, led| Clients {
            engine: engine.clone(),
            count,
            seed: bench.settings.seed,
            record_bytes: bench.settings.record_bytes,
            receipts: bench.receipts.clone(),
            led,
        };
        let counted = |name: String, description: String, followers: usize, ack: &str| Run {
            name,
            description,
            clients: count as u64,
            in_flight: 1,
            followers: followers as u32,
            ack: ack.to_owned(),
            record_bytes: bench.settings.record_bytes as u64,
            ..Run::default()
        };
        let mut variants = Vec::new();
        if let Some(Alone { engine, .. }) = &self.alone {
            // Its receipts would name other records than the leader's.
            let clients = Clients { receipts: None, ..clients(engine, None) };
            variants.push(Variant {
                run: counted(name.clone(), description(count), 0, ""),
                engine: Some(engine.clone()),
                node: None,
                yardstick: Yardstick::Slice,
                work: Box::new(move |part| clients.work(part).map(|()| Tally::default())),
            });
        }
        for ack_name in &replication.acks {
            let (ack, text) = match ack_name {
                AckName::Local => (Ack::Local, "local"),
                AckName::Quorum => (Ack::Quorum, "quorum"),
            };
            let engine = self.leader.engine();
            let clients = clients(engine, Some((self.leadership.clone(), ack)));
            let about = format!("{}, Ack::{ack:?}, followers: {followers}", description(count));
            let (leader, interrupt) = (self.leader.clone(), bench.interrupt.clone());
            variants.push(Variant {
                run: counted(replicated_name(*ack_name, &name), about, followers, text),
                engine: Some(engine.clone()),
                node: Some(self.leader.clone()),
                yardstick: Yardstick::Slice,
                work: Box::new(move |part| {
                    work(part, &clients, &leader, &interrupt).map(|()| Tally::default())
                }),
            });
        }
        variants
    }

    /// Nothing is measured while followers still take what they lack.
    fn wait_for_followers(&self, bench: &mut Bench, replication: &Replication) -> Result<()> {
        let patience = Instant::now() + FOLLOWERS_WAIT;
        let is_in_step = |f: &FollowerStats| f.is_connected && f.lag_records == 0;
        let stats = loop {
            bench.progress.show("waiting for followers");
            let stats = self.leader.stats();
            // The first pictures are from before it led.
            let is_known = stats.followers.len() + 1 == self.members;
            if is_known && stats.followers.iter().all(is_in_step) || bench.interrupt.is_asked() {
                return Ok(());
            }
            if let Some(why) = self.leadership.ended() {
                return Err(ended(&why).into());
            }
            if Instant::now() >= patience {
                break stats;
            }
            thread::sleep(LOOK);
        };
        let connected = stats.followers.iter().filter(|f| f.is_connected).count();
        let is_majority = (connected + 1) * 2 > self.members;
        if !is_majority && replication.acks.contains(&AckName::Quorum) {
            let mut failure = Failure::environment(format!(
                "{} of {} members are connected, which is no majority",
                connected + 1,
                self.members
            ));
            for cause in absences(&stats) {
                failure = failure.cause(cause);
            }
            return Err(failure
                .fix("start the other members: ringwal follow DIR --config FILE")
                .or("--ack local, which waits for nobody")
                .into());
        }
        for follower in stats.followers.iter().filter(|f| !is_in_step(f)) {
            let (node, lag) = (follower.node, follower.lag_records);
            bench.warn(match follower.is_connected {
                true => format!("node {node} was {lag} records behind when the runs began."),
                false => format!("node {node} was not connected when the runs began."),
            });
        }
        Ok(())
    }

    fn close(self) -> Result<()> {
        let Cluster { leader, leadership, followers, alone, .. } = self;
        drop(leadership);
        let node = Arc::into_inner(leader).context("the leader is still in use")?;
        for node in std::iter::once(node).chain(followers) {
            let engine = node.engine().clone();
            node.close();
            engine.close().context("closing the engine of a node")?;
        }
        match alone {
            Some(Alone { engine, _directory }) => {
                engine.close().context("closing the engine without followers").map(drop)
            }
            None => Ok(()),
        }
    }
}

/// The followers of a leader in this process, and its configuration. They take free ports, so that
/// nobody else can have them.
fn start_followers(bench: &Bench, count: usize) -> Result<(Vec<Node>, Config)> {
    let io = bench.settings.io[0];
    let mut followers = Vec::new();
    let mut addresses = Vec::new();
    for node in 2..=count as u64 + 1 {
        let path = bench.data.path().join(format!("follower-{node}"));
        let engine = bench.open_at(io, &path, Some(SEGMENT_BYTES))?;
        let config = peer::follower(node, count as u64 + 1, "127.0.0.1:0");
        let follower = nodes::start(engine, config)?;
        addresses.push(follower.address().to_string());
        followers.push(follower);
    }
    Ok((followers, peer::leader(&addresses)))
}

/// Waits until every follower that is connected has reported all that its leader has sealed, for a while.
pub fn wait_until_in_step(leader: &Node, bench: &Bench) {
    let patience = Instant::now() + IN_STEP_WAIT;
    let is_lagging = |f: &FollowerStats| f.is_connected && f.lag_records > 0;
    while leader.stats().followers.iter().any(is_lagging)
        && Instant::now() < patience
        && !bench.interrupt.is_asked()
    {
        thread::sleep(LOOK);
    }
}

/// One part of a run, and somebody who sees to it that it ends: without a majority, an append waits
/// for ever.
fn work(part: &Part<'_>, clients: &Clients, leader: &Node, interrupt: &Interrupt) -> Result<()> {
    let Some((leadership, _)) = &clients.led else { return clients.work(part) };
    let over = AtomicBool::new(false);
    // Why, when it is given up: known only as long as the node leads.
    let given_up: OnceLock<Vec<String>> = OnceLock::new();
    let outcome = thread::scope(|scope| {
        scope.spawn(|| {
            let mut ended: Option<Instant> = None;
            while !over.load(Ordering::Relaxed) {
                thread::sleep(LOOK);
                if part.is_over(Instant::now()) {
                    let ended = *ended.get_or_insert_with(Instant::now);
                    let limit = if interrupt.is_asked() { LOOK } else { LAST_APPENDS };
                    if ended.elapsed() >= limit && given_up.set(absences(&leader.stats())).is_ok() {
                        leadership.retire("the measurement is over");
                    }
                }
            }
        });
        let outcome = clients.work(part);
        over.store(true, Ordering::Relaxed);
        outcome
    });
    match (outcome, given_up.into_inner()) {
        (Err(_), Some(_)) if interrupt.is_asked() => Ok(()),
        (Err(_), Some(causes)) => {
            let text =
                format!("appends were not acknowledged {LAST_APPENDS:?} after the end of a run");
            let mut failure = Failure::new(Exit::Failure, text);
            for cause in causes {
                failure = failure.cause(cause);
            }
            Err(failure.fix("look at the members, and start those that do not run").into())
        }
        (outcome, _) => outcome,
    }
}

/// Why members are not there, a sentence each.
fn absences(stats: &NodeStats) -> Vec<String> {
    let absent = stats.followers.iter().filter(|follower| !follower.is_connected);
    absent
        .map(|follower| {
            let why = follower.last_failure.as_deref().unwrap_or("no answer yet");
            format!("node {} at {}: {why}", follower.node, follower.address)
        })
        .collect()
}

pub fn milliseconds_since_1970() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.as_millis() as u64
}

pub fn cannot_lead(error: LeadError) -> Failure {
    match &error {
        LeadError::EpochUsed { promised, .. } => {
            Failure::usage("cannot lead").cause(error.to_string()).fix(format!(
                "--epoch {} or a greater one, or none, which takes it from the clock",
                promised + 1
            ))
        }
        _ => Failure::new(Exit::Failure, "cannot lead").cause(error.to_string()),
    }
}

fn ended(why: &str) -> Failure {
    Failure::new(Exit::Failure, "this node leads no more")
        .cause(why)
        .fix("see who leads now; a later run takes a greater epoch")
}
