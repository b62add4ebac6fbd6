//! A node of a measurement as a process of its own, and the commands that it takes until its input ends.

use std::fmt::Write as _;
use std::io::stdin;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use hdrhistogram::Histogram;
use ringwal_raft_fallback::MetadataStore;
use ringwal_raft_fallback::command::TopicName;
use ringwal_replication::node_id::NodeId;

use super::super::counters::Counters;
use super::super::engine_options;
use super::super::measure::joined;
use super::local::{LocalNode, create_until, monotonic_ns};
use super::{PROBE_BYTES, PROBE_WRITE_BYTES};
use crate::cli::BenchNodeArgs;
use crate::exit::{self, Exit};
use crate::interrupt::Interrupt;
use crate::logging;
use crate::probe::{DeviceProbe, histogram, record};

/// Whoever waits longer for a topic waits for nothing.
const PATIENCE: Duration = Duration::from_secs(30);
/// For another node to lead.
const TRANSFER: Duration = Duration::from_secs(5);

/// Runs the process.
pub fn run(args: &BenchNodeArgs) -> Result<Exit> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .context("asking to die with the parent")?;
    // It may have gone before that.
    anyhow::ensure!(std::os::unix::process::parent_id() == args.parent, "the parent is gone");
    logging::start(None);
    let options = engine_options(args.io, args.sync).shards(args.shards);
    let node = LocalNode::start(options, &args.dir, args.node, &args.members)?;
    exit::print(&format!("{}\n", args.members[args.node as usize - 1]))?;
    let outcome = obey(&node, args);
    node.close()?;
    outcome.map(|()| Exit::Success)
}

fn obey(node: &LocalNode, args: &BenchNodeArgs) -> Result<()> {
    let mut probe: Option<DeviceProbe> = None;
    let mut watching: Option<JoinHandle<Result<Vec<u64>>>> = None;
    for line in stdin().lines() {
        let line = line.context("reading a command")?;
        let words: Vec<&str> = line.split(' ').collect();
        let answer = match words[..] {
            ["counts"] => {
                let counted = Counters::of(&node.engine().stats().shards);
                format!("{} {}", counted.batches, counted.flushes)
            }
            ["status"] => {
                let status = node.store.status();
                format!("{} {}", status.mode.name(), status.applied.end)
            }
            ["fast-path", is_on] => {
                node.store.set_fast_path(is_on.parse()?);
                "done".to_owned()
            }
            ["transfer", to] => {
                let to = NodeId::new(to.parse()?);
                match node.store.transfer_leader(Some(to), TRANSFER).wait() {
                    Ok(()) => "done".to_owned(),
                    Err(error) => format!("not done: {error}").replace('\n', " "),
                }
            }
            ["create", clients, warmup_ns, length_ns, prefix] => {
                let warmup = Duration::from_nanos(warmup_ns.parse()?);
                let length = Duration::from_nanos(length_ns.parse()?);
                text_of(&create(&node.store, clients.parse()?, warmup, length, prefix)?)
            }
            ["probe", length_ns] => {
                let length = Duration::from_nanos(length_ns.parse()?);
                let interrupt = Interrupt::default();
                let probe = match &mut probe {
                    Some(probe) => probe,
                    empty => empty.insert(
                        DeviceProbe::prepare(&args.dir, PROBE_BYTES, Instant::now())
                            .context("the probe's file")?,
                    ),
                };
                match length.is_zero() {
                    // Which method is better has to be known first.
                    true => probe
                        .slice(Duration::from_millis(50), &interrupt)
                        .map(|()| String::new())?,
                    false => text_of(&probe.bare(PROBE_WRITE_BYTES, length, &interrupt)?.latency),
                }
            }
            ["watch", prefix, count] => {
                let (store, prefix, count) =
                    (node.store.clone(), prefix.to_owned(), count.parse()?);
                watching = Some(thread::spawn(move || watch(&store, &prefix, count)));
                "watching".to_owned()
            }
            ["seen"] => {
                let watching = watching.take().context("nothing is watched")?;
                let seen = watching.join().map_err(|_| anyhow!("the watcher panicked"))??;
                seen.iter().map(u64::to_string).collect::<Vec<_>>().join(" ")
            }
            _ => bail!("{line:?} is no command"),
        };
        exit::print(&format!("{answer}\n"))?;
    }
    Ok(())
}

/// When each topic is there, one after the other, as they are made.
fn watch(store: &MetadataStore, prefix: &str, count: u64) -> Result<Vec<u64>> {
    let mut seen = Vec::new();
    for number in 0..count {
        let name = TopicName::new(&format!("{prefix}-{number}")).context("the name of a topic")?;
        let there = store.metadata().wait_for_topic(name).wait(Instant::now() + PATIENCE);
        there.context("waiting for a topic")?;
        seen.push(monotonic_ns());
    }
    Ok(seen)
}

/// Clients of this node make topics: what those took that began in the time.
fn create(
    store: &MetadataStore,
    clients: usize,
    warmup: Duration,
    length: Duration,
    prefix: &str,
) -> Result<Histogram<u64>> {
    let from = Instant::now() + warmup;
    let until = from + length;
    let client = |index: usize| {
        let mut latency = histogram();
        create_until(
            store,
            &format!("{prefix}-{index}"),
            |now| now >= until,
            |start, took, _| {
                if (from..until).contains(&start) {
                    record(&mut latency, took);
                }
            },
        )?;
        Ok(latency)
    };
    thread::scope(|scope| {
        let threads: Vec<_> =
            (0..clients).map(|index| scope.spawn(move || client(index))).collect();
        let mut sum = histogram();
        for thread in threads {
            sum.add(joined(thread)?).expect("a growing histogram takes every value");
        }
        Ok(sum)
    })
}

/// Every value with its count.
fn text_of(latency: &Histogram<u64>) -> String {
    let mut text = String::new();
    for value in latency.iter_recorded() {
        let _ = write!(text, "{}:{} ", value.value_iterated_to(), value.count_at_value());
    }
    text.trim_end().to_owned()
}
