//! `ringwal node`: one node of a cluster with its metadata store, until it is told to stop.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use ringwal_engine::Engine;
use ringwal_raft_fallback::{
    MetadataReplicator, MetadataStore, MetadataWal, Mode, Raft, StoreStatus, operator,
};
use ringwal_replication::node_id::NodeId;
use rustix::process::{Signal, set_parent_process_death_signal};
use serde_json::{Value, json};
use signal_hook::consts::SIGUSR1;

use super::files::data_folder;
use crate::bench::engine_options;
use crate::cli::NodeArgs;
use crate::exit::{self, Exit, Failure};
use crate::interrupt::Interrupt;
use crate::{logging, nodes};

/// Between two looks at what the node does.
const LOOK: Duration = Duration::from_millis(50);
/// How long a leader that is told to stop looks for another one.
const TRANSFER: Duration = Duration::from_secs(2);

/// Runs the subcommand.
pub fn run(args: &NodeArgs) -> Result<Exit> {
    if let Some(parent) = args.parent {
        set_parent_process_death_signal(Some(Signal::TERM))
            .context("asking to end with the parent")?;
        // It may have gone before that.
        ensure!(std::os::unix::process::parent_id() == parent, "the parent is gone");
    }
    logging::start(args.log);
    let interrupt = Interrupt::install().context("catching signals")?;
    let metrics = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(SIGUSR1, metrics.clone()).context("catching SIGUSR1")?;
    let mut config = nodes::read_store_config(&args.config)?;
    config.raft.join |= args.join;
    let me = config.replication.node;
    let directory = args.directory.clone().unwrap_or_else(|| PathBuf::from(data_folder(me)));
    let engine = open(args, &directory)?;
    let raft = nodes::start_raft(engine.clone(), config)?;
    let (wal, replicator) = (MetadataWal::new(&raft), MetadataReplicator::new(&raft));
    let store = MetadataStore::new_with_wal(&raft, wal, replicator);
    operator::serve(&store);
    let mut lines = Lines { json: args.json, before: None };
    let outcome = lines
        .started(&raft, me, &directory)
        .and_then(|()| watch(&raft, &store, &interrupt, &metrics, &mut lines));
    // Whatever ended it: somebody else may lead, and what has come is made durable.
    give_up_leadership(&store);
    raft.close();
    drop((store, raft));
    engine.close().context("closing the engine")?;
    outcome?;
    lines.put("closed", json!({"event": "closed"}))?;
    Ok(if interrupt.is_termination() { Exit::Success } else { Exit::Interrupted })
}

fn open(args: &NodeArgs, directory: &std::path::Path) -> Result<Engine> {
    let options = engine_options(args.io, args.sync).shards(args.shards);
    let mut options = options.lock_wait(nodes::LOCK_WAIT);
    if let Some(bytes) = args.segment_size {
        options = options.segment_bytes(bytes.as_u64());
    }
    options.open(directory).map_err(|error| Failure::open(&error).into())
}

/// A cluster that changes its leader in order waits for no election.
fn give_up_leadership(store: &MetadataStore) {
    let status = store.status();
    let is_leader = status.leader == Some(status.node);
    let voters = status.members.iter().filter(|member| member.is_voter).count();
    if is_leader
        && voters > 1
        && let Err(error) = store.transfer_leader(None, TRANSFER).wait()
    {
        exit::log(&format!("nobody else leads yet: {error}"));
    }
}

/// Says what changes until a signal comes.
fn watch(
    raft: &Raft,
    store: &MetadataStore,
    interrupt: &Interrupt,
    metrics: &AtomicBool,
    lines: &mut Lines,
) -> Result<()> {
    while !interrupt.is_asked() {
        if metrics.swap(false, Ordering::Relaxed) {
            exit::print(&raft.node().stats().prometheus())?;
        }
        lines.changes(store.status())?;
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// A line for each change: for people, or as JSON.
struct Lines {
    json: bool,
    before: Option<StoreStatus>,
}

impl Lines {
    fn put(&self, text: &str, json: Value) -> Result<()> {
        exit::print(&if self.json { format!("{json}\n") } else { format!("{text}\n") })
    }

    fn started(&self, raft: &Raft, me: NodeId, directory: &std::path::Path) -> Result<()> {
        let address = raft.address();
        let engine: String =
            raft.node().engine().id().iter().map(|byte| format!("{byte:02x}")).collect();
        let directory = directory.display().to_string();
        self.put(
            &format!("node {me} listens at {address}, engine {engine} in {directory}"),
            json!({
                "event": "started", "node": me.get(), "address": address.to_string(),
                "engine": engine, "directory": directory,
            }),
        )
    }

    fn changes(&mut self, now: StoreStatus) -> Result<()> {
        let before = self.before.as_ref();
        let epoch = now.begun.map_or(0, |begun| begun.epoch);
        if before.map(|before| (before.mode, before.leader)) != Some((now.mode, now.leader)) {
            let leader = now.leader.map(NodeId::get);
            let text = match (now.mode, leader) {
                (Mode::Fast, _) => format!("leads in epoch {epoch}, on the fast path"),
                (Mode::Raft(why), _) => format!("leads in epoch {epoch}, through Raft: {why}"),
                (Mode::Recovering, _) => format!("elected in term {}", now.term),
                (_, Some(leader)) => format!("node {leader} leads"),
                (_, None) => "no leader is known".to_owned(),
            };
            let json = json!({
                "event": "mode", "mode": now.mode.name(), "leader": leader, "epoch": epoch,
                "term": now.term,
            });
            self.put(&text, json)?;
        }
        for (what, was, is) in [
            ("unfit", before.and_then(|before| before.unfit.as_ref()), now.unfit.as_ref()),
            ("trouble", before.and_then(|before| before.trouble.as_ref()), now.trouble.as_ref()),
        ] {
            if was != is {
                let text = match (what, is) {
                    ("unfit", Some(why)) => format!("does not vote or lead: {why}"),
                    ("unfit", None) => "may vote and lead".to_owned(),
                    (_, Some(why)) => format!("applies nothing: {why}"),
                    (_, None) => "applies again".to_owned(),
                };
                self.put(&text, json!({"event": what, "why": is}))?;
            }
        }
        self.before = Some(now);
        Ok(())
    }
}
