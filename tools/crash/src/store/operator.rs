//! The operator of three nodes with a metadata store: starts and kills them, hears what they and all clients say.
//! They found their cluster and elect their leaders themselves.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::child::{Setup, State};
use super::outside::OUTSIDE;
use super::record::Record;
use crate::block::device::Server;
use crate::block::directory::{Files, Step, Trouble};
use crate::nodes::topology::{NODES, Topology};
use crate::nodes::{Heard, Hearing, Processes};
use crate::report::Report;

/// A node answers a question within this, or is taken not to.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// Between two looks at something that will come.
const LOOK: Duration = Duration::from_millis(20);
/// The node whose disk can fail.
pub const FRAIL: usize = 0;

/// What all nodes have when nothing happens any more.
#[derive(Clone, Debug)]
pub struct Rest {
    /// End of the metadata stream.
    pub end: u64,
    /// Of the state of each.
    pub digests: Vec<u64>,
}

/// A disk in memory that can fail, and the directory where it is mounted.
struct FrailDisk {
    files: Arc<Files>,
    _server: Server,
}

/// See the module.
pub struct Operator {
    seed: u64,
    place: PathBuf,
    /// The nodes, and the network between them.
    pub processes: Processes,
    frail: Option<FrailDisk>,
    questions: u64,
    answers: BTreeMap<usize, State>,
    /// Counts of all lives.
    counts: BTreeMap<(usize, u64), Vec<(String, u64)>>,
    /// What clients have asked and were told.
    pub record: Record,
    /// What went wrong that no disturbance explains.
    pub broken: Vec<String>,
    /// Nodes that are started have no clients of their own.
    pub is_quiet: bool,
}

impl Hearing for Operator {
    fn processes(&mut self) -> &mut Processes {
        &mut self.processes
    }

    fn hear(&mut self, Heard { node, life, line }: Heard) -> Result<()> {
        let Some(line) = line else {
            bail!("node {node} has ended by itself: {:?}", self.broken);
        };
        if self.record.hear(node, &line)? {
            return Ok(());
        }
        let (word, rest) = line.split_once(' ').unwrap_or((&line, ""));
        match word {
            "state" => {
                let state: State = serde_json::from_str(rest).context("a node's state")?;
                self.counts.insert((node, life), state.counts.clone());
                if state.question == self.questions {
                    self.answers.insert(node, state);
                }
            }
            "broken" => self.broken.push(format!("node {node}: {rest}")),
            _ => self.processes.keep_said(node, line),
        }
        Ok(())
    }
}

impl Operator {
    /// Of nodes that are not started yet.
    pub fn new(seed: u64, place: &Path, topology: Topology) -> Operator {
        Operator {
            seed,
            place: place.to_owned(),
            processes: Processes::new("store-node", topology),
            frail: None,
            questions: 0,
            answers: BTreeMap::new(),
            counts: BTreeMap::new(),
            record: Record::default(),
            broken: Vec::new(),
            is_quiet: false,
        }
    }

    /// Gives the frail node its disk.
    ///
    /// # Errors
    /// Without FUSE.
    pub fn mount_frail_disk(&mut self) -> Result<()> {
        let directory = self.directory(FRAIL);
        std::fs::create_dir_all(&directory).context("creating a directory to mount on")?;
        let files = Files::new();
        let server = files.serve(&directory)?;
        self.frail = Some(FrailDisk { files, _server: server });
        Ok(())
    }

    /// Whether a disk can fail.
    pub fn has_frail_disk(&self) -> bool {
        self.frail.is_some()
    }

    /// From now on every write of records to the frail disk fails, or none.
    pub fn set_failing(&self, is_failing: bool) {
        if let Some(disk) = &self.frail {
            disk.files.set_trouble(is_failing.then_some((Step::Batch, Trouble::Error)));
        }
    }

    /// How often the frail disk has failed.
    pub fn failures(&self) -> u64 {
        self.frail.as_ref().map_or(0, |disk| disk.files.troubled())
    }

    /// Copies what the frail disk holds, for evidence.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn keep_frail_disk(&self) -> Result<()> {
        let Some(disk) = &self.frail else { return Ok(()) };
        disk.files.copy_to(&self.place.join(format!("node-{FRAIL}-in-memory")), false)
    }

    /// A node's engine directory.
    pub fn directory(&self, node: usize) -> PathBuf {
        self.place.join(format!("node-{node}"))
    }

    /// Starts those that are not there, and waits until all are.
    ///
    /// # Errors
    /// When one does not come up.
    pub fn start_all(&mut self) -> Result<()> {
        let mut awaited = Vec::new();
        for node in 0..NODES {
            if !self.processes.is_there(node) {
                let setup = Setup {
                    node,
                    life: self.processes.lives + 1,
                    directory: self.directory(node),
                    log: self.place.join(format!("node-{node}.log")),
                    seed: self.seed,
                    is_quiet: self.is_quiet,
                };
                self.processes.start(node, &setup)?;
                awaited.push(node);
            }
        }
        self.wait_up(awaited)
    }

    /// Asks every node that runs, `state` or `digest`; those that answer in time.
    ///
    /// # Errors
    /// When a node has ended by itself.
    pub fn ask(&mut self, what: &str) -> Result<BTreeMap<usize, State>> {
        self.questions += 1;
        self.answers.clear();
        let asked = self.processes.tell_all(&format!("{what} {}", self.questions));
        let deadline = Instant::now() + ANSWER_LIMIT;
        while self.answers.len() < asked && Instant::now() < deadline {
            self.listen(Duration::from_millis(1))?;
        }
        Ok(self.answers.clone())
    }

    /// Waits until something is so of the states of those that answer.
    ///
    /// # Errors
    /// When it is not, within the limit: with all that they have said.
    pub fn wait_states(
        &mut self,
        what: &str,
        limit: Duration,
        is_so: impl Fn(&BTreeMap<usize, State>) -> bool,
    ) -> Result<BTreeMap<usize, State>> {
        let deadline = Instant::now() + limit;
        loop {
            let states = self.ask("state")?;
            if is_so(&states) {
                return Ok(states);
            }
            if Instant::now() >= deadline {
                bail!("not within {limit:?}: {what}: {}", tell(&states));
            }
            self.listen(LOOK)?;
        }
    }

    /// The node that leads, when one does.
    ///
    /// # Errors
    /// When none does, within the limit.
    pub fn leader(&mut self, limit: Duration) -> Result<usize> {
        let states =
            self.wait_states("a node that leads", limit, |states| leads(states).is_some())?;
        Ok(leads(&states).expect("it was waited for"))
    }

    /// Tells a node to do something, and waits until it has, or says why not.
    ///
    /// # Errors
    /// When it says neither.
    pub fn order(
        &mut self,
        node: usize,
        line: &str,
        limit: Duration,
    ) -> Result<Result<(), String>> {
        self.processes.tell(node, line);
        self.outcome(node, line, limit)
    }

    /// Waits for the outcome of what a node was told to do.
    ///
    /// # Errors
    /// When it says none.
    pub fn outcome(
        &mut self,
        node: usize,
        line: &str,
        limit: Duration,
    ) -> Result<Result<(), String>> {
        let (done, not) = (format!("done {line}"), format!("not {line}"));
        let mut outcome = None;
        self.wait(&format!("node {node} does: {line}"), limit, |operator| {
            if operator.processes.take_said(node, &done).is_some() {
                outcome = Some(Ok(()));
            } else if let Some(why) = operator.processes.take_said(node, &not) {
                outcome = Some(Err(why));
            }
            outcome.is_some()
        })?;
        Ok(outcome.expect("it was waited for"))
    }

    /// Waits until the clients of these nodes together have been told of so many more commands that a majority has.
    ///
    /// # Errors
    /// When they are not, within the limit.
    pub fn wait_for_commands(&mut self, of: &[usize], count: u64, limit: Duration) -> Result<()> {
        let committed = |operator: &Operator| -> u64 {
            of.iter().map(|node| operator.record.committed[*node]).sum()
        };
        let until = committed(self) + count;
        let what = format!("commands of a majority, of clients of {of:?}");
        self.wait(&what, limit, |operator| committed(operator) >= until)
    }

    /// Waits until the clients of every node, and the others, go on.
    ///
    /// # Errors
    /// When those of one do not.
    pub fn wait_for_all(&mut self, count: u64, limit: Duration) -> Result<()> {
        let before = self.record.committed;
        let is_so = |operator: &mut Operator| {
            let present = operator.record.committed;
            (0..=OUTSIDE).all(|who| present[who] >= before[who] + count)
        };
        if let Err(error) = self.wait("all clients go on", limit, is_so) {
            let (states, present) = (self.ask("state")?, self.record.committed);
            return Err(error.context(format!("{before:?}, {present:?}: {}", tell(&states))));
        }
        Ok(())
    }

    /// Waits until all nodes hold and have applied the same, and a majority has it.
    ///
    /// # Errors
    /// When they do not, within the limit.
    pub fn rest(&mut self, limit: Duration) -> Result<Rest> {
        self.wait_states("all nodes hold the same", limit, |states| end(states).is_some())?;
        let states = self.ask("digest")?;
        let Some(end) = end(&states) else {
            bail!("they have not come to rest: {}", tell(&states))
        };
        let digests = states.into_values().map(|state| state.digest.context("a digest"));
        Ok(Rest { end, digests: digests.collect::<Result<Vec<u64>>>()? })
    }

    /// What is in the counts of all lives, into the report.
    pub fn count_into(&self, report: &mut Report) {
        for (what, count) in self.counts.values().flatten() {
            report.cover(what, *count);
        }
        report.cover("lives of nodes", self.processes.lives);
        report.cover("most memory of a node, KiB", self.processes.memory_kib_max);
    }
}

/// The one of the greatest term that leads.
pub fn leads(states: &BTreeMap<usize, State>) -> Option<usize> {
    let leaders = states.iter().filter(|(_, state)| state.leads());
    leaders.max_by_key(|(_, state)| state.term).map(|(node, _)| *node)
}

/// Where the metadata stream ends on all nodes, when all of it is applied and committed on each.
fn end(states: &BTreeMap<usize, State>) -> Option<u64> {
    let end = states.get(&0)?.ends[0];
    let is_at_rest = states.len() == NODES && states.values().all(|state| state.ends == [end; 3]);
    is_at_rest.then_some(end)
}

/// What nodes have said, a line each.
pub fn tell(states: &BTreeMap<usize, State>) -> String {
    let tell = |(node, state): (&usize, &State)| {
        let State { mode, leader, term, epoch, ends, trouble, .. } = state;
        format!(
            "\n  node {node}: {mode}, leader {leader:?}, term {term}, epoch {epoch:?}, applied, durable and \
             committed {ends:?}, {trouble:?}"
        )
    };
    states.iter().map(tell).collect()
}
