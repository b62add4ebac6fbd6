//! The operator of three nodes: starts and kills them, hears what they say, and decides who leads.
//!
//! **Who may lead.** There is no election here, so the operator has to do what one would. Whoever is
//! told to lead must have every record that a majority is known to have. The rule:
//!
//! 1. *Silence.* Whoever led before is put where it can get no more receipts of a majority: it is
//!    killed, or stopped, or retired, or all of its traffic is cut; or, when it may go on with the
//!    candidate alone, cut from the third node. Then the sessions that are cut are waited out, until
//!    no other node follows it over them. From here on, every receipt of a majority that the old
//!    leader may still give rests on reports that a follower made before its answer below, of
//!    records that were durable with it then; or, in the last case, on reports of the candidate.
//! 2. *Ask.* A majority of the nodes that are not silenced says, for each stream, the epoch of its
//!    last record and its durable end. As a majority shares a member with every other, whatever has
//!    a receipt, or may still get one, is held by one of those that answer.
//! 3. *Choose* one that is not less than the others that answer, as (epoch, end), in every stream. By
//!    the argument of Raft's elections, it has what each of those has that may have a receipt.
//! 4. *Hold* the silence until a majority has durably promised the new epoch. Without that, the old
//!    leader would come back, and get receipts from the third node, which has promised nothing yet.
//!
//! Asking without silence would not do: between the answer and the promise the old leader commits
//! more with the third node. When a step takes too long, everybody who may lead is killed and started
//! again: a node that has just been started leads nobody, and every epoch is used once.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::child::{Setup, State};
use super::ledger::Ledger;
use super::payload::STREAMS;
use crate::nodes::topology::{NODES, Topology};
use crate::nodes::{Heard, Hearing, Processes};
use crate::report::Report;

/// A node answers a question within this, or is taken not to.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// Between two looks at something that will come.
const LOOK: Duration = Duration::from_millis(20);
/// Most memory that a node may have had.
const MEMORY_KIB_MAX: u64 = 128 << 10;

/// What nodes have said, a line each.
pub fn tell(states: &BTreeMap<usize, State>) -> String {
    let tell = |(node, state): (&usize, &State)| {
        let State { leads, follows, promised, streams, followers, .. } = state;
        let streams: Vec<_> = streams.iter().map(|held| (held.epoch, held.end)).collect();
        format!(
            "\n  node {node}: leads {leads:?}, follows {follows:?}, promised {promised}, last epochs \
             and ends {streams:?}, {followers:?}"
        )
    };
    states.iter().map(tell).collect()
}

/// See the module.
pub struct Operator {
    seed: u64,
    place: PathBuf,
    /// The nodes, and the network between them.
    pub processes: Processes,
    questions: u64,
    answers: BTreeMap<usize, State>,
    /// Counts of the present lives; those of earlier ones are in the report.
    counts: BTreeMap<(usize, u64), Vec<(String, u64)>>,
    /// What clients were told.
    pub ledger: Ledger,
    /// Who leads, as far as is known.
    pub leader: Option<usize>,
    /// Who may get receipts of a majority: all that were told to lead since a majority last promised
    /// an epoch to one of them.
    may_lead: BTreeSet<usize>,
    /// The greatest epoch that was given to anybody.
    pub epoch: u64,
    /// What went wrong that no disturbance explains.
    pub broken: Vec<String>,
    /// The longest time from a healing to receipts of a majority, and until all follow.
    pub progress_max: (Duration, Duration),
}

impl Hearing for Operator {
    fn processes(&mut self) -> &mut Processes {
        &mut self.processes
    }

    fn hear(&mut self, Heard { node, life, line }: Heard) -> Result<()> {
        let Some(line) = line else {
            bail!("node {node} has ended by itself: {:?}", self.broken);
        };
        if self.ledger.hear(node, &line) {
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
            processes: Processes::new("network-node", topology),
            questions: 0,
            answers: BTreeMap::new(),
            counts: BTreeMap::new(),
            ledger: Ledger::default(),
            leader: None,
            may_lead: BTreeSet::new(),
            epoch: 0,
            broken: Vec::new(),
            progress_max: Default::default(),
        }
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
                    directory: self.directory(node),
                    log: self.place.join(format!("node-{node}.log")),
                    // Frames of one shard have to arrive in two, and the other way round.
                    shards: [1, 2, 1 + (self.seed % 2) as u16][node],
                    seed: self.seed,
                };
                self.processes.start(node, &setup)?;
                awaited.push(node);
            }
        }
        self.wait_up(awaited)
    }

    /// Ends a node without warning. What it said before is heard.
    ///
    /// # Errors
    /// When it does not end.
    pub fn kill(&mut self, node: usize) -> Result<()> {
        self.end(node)?;
        self.may_lead.remove(&node);
        if self.leader == Some(node) {
            self.leader = None;
        }
        Ok(())
    }

    /// Asks every node that runs; those that answer in time.
    ///
    /// # Errors
    /// When a node has ended by itself.
    pub fn ask(&mut self) -> Result<BTreeMap<usize, State>> {
        self.questions += 1;
        self.answers.clear();
        let asked = self.processes.tell_all(&format!("state {}", self.questions));
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
            let states = self.ask()?;
            if is_so(&states) {
                return Ok(states);
            }
            if Instant::now() >= deadline {
                bail!("not within {limit:?}: {what}: {}", tell(&states));
            }
            self.listen(LOOK)?;
        }
    }

    // Who leads.

    /// One of these whom a majority of them allows to lead: a pair in which it is not less.
    pub fn dominant(states: &BTreeMap<usize, State>, silenced: &[usize]) -> Vec<usize> {
        let answers = |node: &usize| !silenced.contains(node);
        let nodes: Vec<usize> = states.keys().copied().filter(answers).collect();
        let is_not_less = |one: &usize, other: &usize| {
            let pairs = states[one].streams.iter().zip(&states[other].streams);
            states[one].streams.len() == STREAMS.len() && pairs.into_iter().all(|(a, b)| a >= b)
        };
        let may = |one: &&usize| {
            let voices = nodes.iter().filter(|other| is_not_less(one, other)).count();
            voices > NODES / 2
        };
        nodes.iter().filter(may).copied().collect()
    }

    /// Tells a node to lead, and waits until it does and a majority has promised that: steps 3 and 4
    /// of the rule. Whoever led before is silenced, and stays so meanwhile.
    ///
    /// # Errors
    /// When that takes too long: then it is not known who leads.
    pub fn lead(&mut self, node: usize, limit: Duration) -> Result<()> {
        self.leader = None;
        self.epoch += 1;
        let epoch = self.epoch;
        self.may_lead.insert(node);
        self.processes.tell(node, &format!("lead {epoch}"));
        let mut refused = false;
        self.wait(&format!("node {node} leads in epoch {epoch}"), limit, |operator| {
            refused |= operator.processes.take_said(node, &format!("unled {epoch} ")).is_some();
            refused || operator.processes.take_said(node, &format!("led {epoch}")).is_some()
        })?;
        if refused {
            bail!("node {node} does not lead in epoch {epoch}");
        }
        self.wait_states(&format!("a majority has promised epoch {epoch}"), limit, |states| {
            states.values().filter(|state| state.promised >= epoch).count() > NODES / 2
        })?;
        self.leader = Some(node);
        self.may_lead = BTreeSet::from([node]);
        Ok(())
    }

    /// From whatever there is to a node that leads: all that may lead are killed, everything is
    /// healed, and one of all nodes is chosen.
    ///
    /// # Errors
    /// When that does not come to anything.
    pub fn start_over(&mut self, limit: Duration) -> Result<()> {
        for node in 0..NODES {
            if self.processes.is_stopped(node) {
                self.processes.set_stopped(node, false)?;
            }
        }
        self.processes.topology.heal()?;
        let states = self.ask()?;
        for node in 0..NODES {
            if self.may_lead.contains(&node) || !states.contains_key(&node) {
                self.kill(node)?;
            }
        }
        self.start_all()?;
        let states = self.wait_states("a node that may lead", limit, |states| {
            states.len() == NODES && !Self::dominant(states, &[]).is_empty()
        })?;
        let candidate = Self::dominant(&states, &[])[0];
        self.lead(candidate, limit)
    }

    /// Ends the load, and waits until all nodes hold the same.
    ///
    /// # Errors
    /// When they do not, within the limit.
    pub fn rest(&mut self, limit: Duration) -> Result<()> {
        let (leader, epoch) = (self.leader.context("there is a leader")?, self.epoch);
        self.processes.tell(leader, "quiet");
        self.wait("clients end", limit, |operator| {
            operator.processes.take_said(leader, &format!("over {epoch}")).is_some()
        })?;
        self.wait_states("all nodes hold the same", limit, |states| {
            let mut holdings = states.values().map(|state| &state.streams);
            let first = holdings.next();
            states.len() == NODES && holdings.all(|other| Some(other) == first)
        })?;
        Ok(())
    }

    /// What is in the counts of all lives, into the report.
    pub fn count_into(&self, report: &mut Report) {
        for (what, count) in self.counts.values().flatten() {
            report.cover(what, *count);
        }
        report.cover("receipts of a majority", self.ledger.quorum);
        report.cover("receipts of one node", self.ledger.local);
        report.cover("outcomes that are unknown", self.ledger.unknown);
        report.cover("submissions that were not written", self.ledger.not_written);
        report.cover("lives of nodes", self.processes.lives);
        report.cover("epochs", self.epoch);
        report.cover("most memory of a node, KiB", self.processes.memory_kib_max);
        let (progress, all_follow) = self.progress_max;
        report.cover("longest time until a majority goes on, ms", progress.as_millis() as u64);
        report.cover("longest time until all go on, ms", all_follow.as_millis() as u64);
    }

    /// Whether any node has had too much memory.
    ///
    /// # Errors
    /// How much.
    pub fn check_memory(&self) -> Result<(), String> {
        let kib = self.processes.memory_kib_max;
        if kib > MEMORY_KIB_MAX {
            Err(format!("a node has had {kib} KiB of memory"))
        } else {
            Ok(())
        }
    }
}
