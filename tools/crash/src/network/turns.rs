//! What is done to the nodes and to the network between them, one thing after another. Each turn ends
//! healed, with a leader that gets receipts of a majority.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::child::State;
use super::operator::{Operator, tell};
use super::payload::STREAMS;
use crate::nodes::Hearing as _;
use crate::nodes::topology::{Disturbance, NODES};
use crate::random::Random;
use crate::report::Report;

/// A change of the leader is given up after so long: then it is started over.
const CHANGE_LIMIT: Duration = Duration::from_secs(10);
/// After healing there is progress within this. A dial that was lost is tried again after a second,
/// and then again.
const PROGRESS_LIMIT: Duration = Duration::from_secs(20);
/// Receipts that are progress.
const PROGRESS: u64 = 5;

/// What a turn does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Turn {
    /// Cuts one node off.
    Cut,
    /// Loses everything from one node to one other, or to all.
    OneWay,
    /// Loses thirty of a hundred packets of one node.
    Loss,
    /// Lets little through to a follower.
    Slow,
    /// Kills the leader; another one leads.
    KillLeader,
    /// Kills a follower.
    KillFollower,
    /// Stops a follower, and lets it go on.
    StopFollower,
    /// Stops the leader; another one leads before it goes on.
    StopLeader,
    /// Retires the leader; another one leads.
    Retire,
    /// Cuts the leader off; another one leads while it goes on alone.
    Replace,
    /// Another one leads while the leader serves it.
    Overtake,
    /// Drops a prefix of streams, with a follower cut off or not.
    Trim,
}

impl Turn {
    /// All kinds.
    pub const ALL: [Turn; 12] = [
        Turn::Cut,
        Turn::OneWay,
        Turn::Loss,
        Turn::Slow,
        Turn::KillLeader,
        Turn::KillFollower,
        Turn::StopFollower,
        Turn::StopLeader,
        Turn::Retire,
        Turn::Replace,
        Turn::Overtake,
        Turn::Trim,
    ];

    /// How it is counted.
    pub fn name(self) -> &'static str {
        match self {
            Turn::Cut => "nodes cut off",
            Turn::OneWay => "losses one way",
            Turn::Loss => "losses of 30 %",
            Turn::Slow => "limits of the rate",
            Turn::KillLeader => "kills of the leader",
            Turn::KillFollower => "kills of a follower",
            Turn::StopFollower => "stops of a follower",
            Turn::StopLeader => "leaders replaced while they stood still",
            Turn::Retire => "leaders retired",
            Turn::Replace => "leaders replaced while they were cut off",
            Turn::Overtake => "leaders overtaken",
            Turn::Trim => "turns with trims",
        }
    }
}

/// Takes turns with one set of nodes.
pub struct Turns<'a> {
    /// Who does what is decided here.
    pub operator: &'a mut Operator,
    /// Where that is counted.
    pub report: &'a mut Report,
    /// What everything random comes from.
    pub random: Random,
}

impl Turns<'_> {
    /// One turn, and progress after it.
    ///
    /// # Errors
    /// When there is no progress, or a node does what none does.
    pub fn take(&mut self, turn: Turn) -> Result<()> {
        // A change that takes too long is no failure by itself, only no progress afterwards is.
        if let Err(error) = self.disturb(turn) {
            self.report.cover("changes that were started over", 1);
            if !self.operator.broken.is_empty() {
                return Err(error);
            }
            println!("  {turn:?}: {error:#}");
        }
        self.report.cover(turn.name(), 1);
        let dropped = self.operator.processes.topology.dropped()?;
        self.report.cover("packets dropped", dropped);
        self.operator.processes.topology.heal()?;
        self.operator.start_all()?;
        if self.operator.leader.is_none() {
            self.operator.start_over(PROGRESS_LIMIT)?;
        }
        let before = self.operator.ledger.quorum;
        let healed = Instant::now();
        let progress = self.operator.wait("receipts of a majority", PROGRESS_LIMIT, |operator| {
            operator.ledger.quorum >= before + PROGRESS
        });
        let leader = self.operator.leader;
        let what = || format!("after {turn:?}, healed, leader {leader:?}");
        if let Err(error) = progress {
            let states = self.operator.ask()?;
            return Err(error).with_context(|| format!("{}: {}", what(), tell(&states)));
        }
        let until_progress = healed.elapsed();
        if turn == Turn::Cut || self.random.one_in(2) {
            let epoch = Some(self.operator.epoch);
            let follow = |states: &BTreeMap<usize, State>| {
                states.values().filter(|state| state.follows == epoch).count() == NODES - 1
            };
            let all = self.operator.wait_states("all follow", PROGRESS_LIMIT, follow);
            all.with_context(what)?;
            let (_, longest) = &mut self.operator.progress_max;
            *longest = healed.elapsed().max(*longest);
        }
        let (longest, _) = &mut self.operator.progress_max;
        *longest = until_progress.max(*longest);
        Ok(())
    }

    fn disturb(&mut self, turn: Turn) -> Result<()> {
        let leader = self.operator.leader.context("there is a leader after each turn")?;
        let follower = (leader + 1 + self.random.below(2) as usize) % NODES;
        let third = 3 - leader - follower;
        if self.random.one_in(3) {
            self.trim(leader);
        }
        let is_on_its_own = matches!(turn, Turn::KillLeader | Turn::KillFollower | Turn::Retire);
        if is_on_its_own && self.random.one_in(3) {
            let node = self.random.below(NODES as u64) as usize;
            self.operator.processes.topology.disturb(&[Disturbance::Loss(node)])?;
            self.report.cover("kills and changes with loss", 1);
        }
        match turn {
            Turn::Cut => {
                let node = self.random.pick(&[leader, follower]);
                // Long enough for what was begun before to be given up, and begun again.
                let ms = if self.random.one_in(4) { 3000..=6000 } else { 300..=1500 };
                self.network(&[Disturbance::Cut(node)], ms)
            }
            Turn::OneWay => {
                let (from, to) =
                    self.random.pick(&[(leader, follower), (follower, leader), (follower, third)]);
                let both =
                    [Disturbance::OneWay(from, to), Disturbance::OneWay(from, 3 - from - to)];
                let count = 1 + self.random.below(2) as usize;
                self.network(&both[..count], 300..=1500)
            }
            Turn::Loss => {
                let node = self.random.pick(&[leader, follower]);
                self.network(&[Disturbance::Loss(node)], 800..=2000)
            }
            Turn::Slow => {
                self.operator.processes.topology.slow(follower)?;
                self.listen(2000..=3500)
            }
            Turn::KillFollower => {
                self.operator.kill(follower)?;
                self.listen(0..=900)
            }
            Turn::StopFollower => self.stop_follower(follower),
            Turn::Trim => {
                if self.random.one_in(2) {
                    self.network(&[Disturbance::Cut(follower)], 600..=900)?;
                }
                for _ in 0..4 {
                    self.trim(leader);
                    self.listen(30..=150)?;
                }
                Ok(())
            }
            Turn::KillLeader => self.kill_leader(leader, follower),
            Turn::StopLeader => {
                self.operator.leader = None;
                self.operator.processes.set_stopped(leader, true)?;
                let changed = self.change(leader, &[]);
                self.operator.processes.set_stopped(leader, false)?;
                changed
            }
            Turn::Retire => self.retire(leader),
            Turn::Replace => self.replace(leader),
            Turn::Overtake => self.overtake(leader, follower, third),
        }
    }

    fn listen(&mut self, ms: std::ops::RangeInclusive<u64>) -> Result<()> {
        let ms = self.random.within(ms);
        self.operator.listen(Duration::from_millis(ms))
    }

    fn network(
        &mut self,
        disturbances: &[Disturbance],
        ms: std::ops::RangeInclusive<u64>,
    ) -> Result<()> {
        self.operator.processes.topology.disturb(disturbances)?;
        self.listen(ms)
    }

    /// Drops records that a majority has, which whoever leads has.
    fn trim(&mut self, leader: usize) {
        let stream = self.random.pick(&STREAMS);
        let committed = self.operator.ledger.committed.get(&stream).copied().unwrap_or(0);
        let trimmed = self.operator.ledger.trimmed(stream);
        // Not too much: what is gone cannot be held against its receipt.
        let before = trimmed + self.random.below(committed.saturating_sub(trimmed) / 4 + 1);
        if before > trimmed {
            self.report.cover("trims", 1);
            self.operator.ledger.trimmed.insert(stream, before);
            self.operator.processes.tell(leader, &format!("trim {stream} {before}"));
        }
    }

    /// The leader goes on without it, and keeps no more for it than it may.
    fn stop_follower(&mut self, follower: usize) -> Result<()> {
        let before = self.operator.ledger.local;
        self.operator.processes.set_stopped(follower, true)?;
        let listened = self.listen(1000..=2500);
        self.operator.processes.set_stopped(follower, false)?;
        listened?;
        let receipts = self.operator.ledger.local - before;
        self.report.cover("local receipts while a follower stood still", receipts);
        if receipts == 0 {
            self.operator.broken.push("no local receipt while a follower stood still".into());
        }
        Ok(())
    }

    fn kill_leader(&mut self, leader: usize, follower: usize) -> Result<()> {
        if self.random.one_in(2) {
            // So that the two that are left differ.
            self.network(&[Disturbance::Cut(follower)], 300..=900)?;
            self.operator.processes.topology.disturb(&[])?;
            self.report.cover("kills of the leader just after a cut", 1);
        }
        self.operator.kill(leader)?;
        self.listen(0..=200)?;
        if self.random.one_in(4) {
            // It is back before another one leads: it leads nobody, and may be chosen again.
            self.operator.start_all()?;
        }
        self.choose(&[])
    }

    fn retire(&mut self, leader: usize) -> Result<()> {
        self.operator.leader = None;
        let epoch = self.operator.epoch;
        self.operator.processes.tell(leader, "retire");
        self.operator.wait("a leader that was retired says so", CHANGE_LIMIT, |operator| {
            operator.processes.take_said(leader, &format!("over {epoch}")).is_some()
        })?;
        self.choose(&[])
    }

    /// Another one leads while this one is silenced: by what is given here, or as it is already.
    fn change(&mut self, leader: usize, disturbances: &[Disturbance]) -> Result<()> {
        self.operator.leader = None;
        if !disturbances.is_empty() {
            self.operator.processes.topology.disturb(disturbances)?;
        }
        let limit = CHANGE_LIMIT;
        self.operator.wait_states(
            "sessions end with a leader that is silenced",
            limit,
            |states| states.iter().all(|(node, state)| *node == leader || state.follows.is_none()),
        )?;
        self.listen(0..=400)?;
        self.choose(&[leader])
    }

    /// The one that is cut off goes on alone, and now and then outlives its successor too.
    fn replace(&mut self, leader: usize) -> Result<()> {
        self.change(leader, &[Disturbance::Cut(leader)])?;
        if self.random.one_in(2) {
            return Ok(());
        }
        self.listen(0..=300)?;
        let successor = self.operator.leader.context("it has just been chosen")?;
        self.operator.kill(successor)?;
        self.operator.start_all()?;
        self.report.cover("successors killed while the one before was cut off", 1);
        self.choose(&[leader])
    }

    /// The third is cut from the leader; the candidate is not.
    fn overtake(&mut self, leader: usize, candidate: usize, third: usize) -> Result<()> {
        self.operator.processes.topology.disturb(&[Disturbance::CutBetween(leader, third)])?;
        let limit = CHANGE_LIMIT;
        self.operator.wait_states("a session ends that is cut", limit, |states| {
            states.get(&third).is_some_and(|state| state.follows.is_none())
        })?;
        let states = self.operator.ask()?;
        if !Operator::dominant(&states, &[leader]).contains(&candidate) {
            // The third has more: the leader leads on.
            self.report.cover("candidates that had less than the third", 1);
            return Ok(());
        }
        self.operator.lead(candidate, limit)
    }

    /// One that may lead, now that those are silenced.
    fn choose(&mut self, silenced: &[usize]) -> Result<()> {
        let states = self.operator.ask()?;
        let candidates = Operator::dominant(&states, silenced);
        if candidates.is_empty() {
            self.report.cover("times that nobody might lead", 1);
            bail!("nobody may lead: {} answer", states.len());
        }
        let candidate = self.random.pick(&candidates);
        self.operator.lead(candidate, CHANGE_LIMIT)
    }
}
