//! What is done to the nodes and to the network between them, one thing after another. Each turn ends healed, and
//! with commands that go on at every node.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::operator::{FRAIL, Operator, leads};
use crate::nodes::Hearing as _;
use crate::nodes::topology::{Disturbance, NODES};
use crate::random::Random;
use crate::report::Report;

/// Commands go on within this while a majority can speak with each other.
const CHANGE_LIMIT: Duration = Duration::from_secs(12);
/// Where packets are lost, nothing is waited for longer than this.
const LOSS_LIMIT: Duration = Duration::from_secs(2);
/// After healing commands go on at every node within this.
const PROGRESS_LIMIT: Duration = Duration::from_secs(20);
/// Commands that are progress.
const PROGRESS: u64 = 5;
/// Attempts to have another node lead.
const TRANSFERS_MAX: usize = 8;

/// What a turn does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Turn {
    /// Kills the leader.
    KillLeader,
    /// Kills a follower.
    KillFollower,
    /// Kills all nodes.
    KillAll,
    /// Cuts the leader off; another one leads.
    CutLeader,
    /// Cuts a follower off.
    CutFollower,
    /// Loses what the leader sends to one follower, or to both.
    DeafFollowers,
    /// Loses what one follower sends to the leader, or both.
    DeafLeader,
    /// Loses thirty of a hundred packets of one node.
    Loss,
    /// Stops the leader until another one leads.
    StopLeader,
    /// Stops a follower for a while.
    StopFollower,
    /// Switches the fast path off for a while, now and then with the leader killed meanwhile.
    Switch,
    /// Gives the leadership away.
    Transfer,
    /// Every write to the leader's disk fails.
    Poison,
}

impl Turn {
    /// All kinds.
    pub const ALL: [Turn; 13] = [
        Turn::KillLeader,
        Turn::KillFollower,
        Turn::KillAll,
        Turn::CutLeader,
        Turn::CutFollower,
        Turn::DeafFollowers,
        Turn::DeafLeader,
        Turn::Loss,
        Turn::StopLeader,
        Turn::StopFollower,
        Turn::Switch,
        Turn::Transfer,
        Turn::Poison,
    ];

    /// How it is counted.
    pub fn name(self) -> &'static str {
        match self {
            Turn::KillLeader => "kills of the leader",
            Turn::KillFollower => "kills of a follower",
            Turn::KillAll => "kills of all nodes",
            Turn::CutLeader => "leaders cut off",
            Turn::CutFollower => "followers cut off",
            Turn::DeafFollowers => "losses one way, from the leader",
            Turn::DeafLeader => "losses one way, to the leader",
            Turn::Loss => "losses of 30 %",
            Turn::StopLeader => "stops of the leader",
            Turn::StopFollower => "stops of a follower",
            Turn::Switch => "times that the fast path was switched off and on",
            Turn::Transfer => "leadership given away",
            Turn::Poison => "leaders whose disk failed",
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
    /// Packets are lost in this turn, beside what it does.
    pub has_loss: bool,
    /// The longest times until commands of a majority go on beside a disturbance, and until all go on after it.
    pub progress_max: (Duration, Duration),
}

impl Turns<'_> {
    /// One turn, and progress after it.
    ///
    /// # Errors
    /// When there is no progress, or a node does what none does.
    pub fn take(&mut self, turn: Turn) -> Result<()> {
        let leader = self.operator.leader(PROGRESS_LIMIT)?;
        let disturbed = self.disturb(turn, leader).with_context(|| format!("{turn:?} of {leader}"));
        if let Err(error) = disturbed {
            // What they say of it when they can speak again.
            let states = self.operator.ask("state")?;
            return Err(error.context(super::operator::tell(&states)));
        }
        let dropped = self.operator.processes.topology.dropped()?;
        self.report.cover("packets dropped", dropped);
        self.operator.processes.topology.heal()?;
        let healed = Instant::now();
        self.operator.start_all()?;
        let all = self.operator.wait_for_all(PROGRESS, PROGRESS_LIMIT);
        all.with_context(|| format!("after {turn:?} of {leader}, healed"))?;
        self.progress_max.1 = self.progress_max.1.max(healed.elapsed());
        Ok(())
    }

    fn disturb(&mut self, turn: Turn, leader: usize) -> Result<()> {
        let follower = (leader + 1 + self.random.below(2) as usize) % NODES;
        let third = NODES - leader - follower;
        let others = [follower, third];
        let is_on_its_own = matches!(
            turn,
            Turn::KillLeader | Turn::KillFollower | Turn::StopLeader | Turn::StopFollower
        );
        self.has_loss = is_on_its_own && self.random.one_in(3);
        if self.has_loss {
            let node = self.random.below(NODES as u64) as usize;
            self.network(&[Disturbance::Loss(node)])?;
            self.report.cover("kills and stops with loss", 1);
        }
        match turn {
            Turn::KillLeader => {
                self.operator.end(leader)?;
                if self.random.one_in(2) {
                    // Within the election timeout, and in the same term.
                    self.operator.start_all()?;
                    self.report.cover("leaders that came back at once", 1);
                }
                self.go_on(&others)?;
            }
            Turn::KillFollower => {
                self.operator.end(follower)?;
                self.go_on(&[leader, third])?;
                self.listen(0..=900)?;
            }
            Turn::KillAll => {
                for node in [follower, leader, third] {
                    self.operator.end(node)?;
                }
            }
            Turn::CutLeader => {
                self.network(&[Disturbance::Cut(leader)])?;
                self.go_on(&others)?;
                self.listen(0..=1500)?;
            }
            Turn::CutFollower => {
                self.network(&[Disturbance::Cut(follower)])?;
                self.go_on(&[leader, third])?;
                self.listen(300..=2000)?;
            }
            Turn::DeafFollowers => {
                let both =
                    [Disturbance::OneWay(leader, follower), Disturbance::OneWay(leader, third)];
                self.one_way(both)?;
            }
            Turn::DeafLeader => {
                let both =
                    [Disturbance::OneWay(follower, leader), Disturbance::OneWay(third, leader)];
                self.one_way(both)?;
            }
            Turn::Loss => {
                let node = self.random.pick(&[leader, follower]);
                self.network(&[Disturbance::Loss(node)])?;
                self.listen(800..=2500)?;
            }
            Turn::StopLeader => {
                self.operator.processes.set_stopped(leader, true)?;
                let gone_on = self.go_on(&others);
                self.operator.processes.set_stopped(leader, false)?;
                gone_on?;
            }
            Turn::StopFollower => {
                self.operator.processes.set_stopped(follower, true)?;
                let gone_on = self.go_on(&[leader, third]);
                let listened = self.listen(500..=2000);
                self.operator.processes.set_stopped(follower, false)?;
                gone_on.and(listened)?;
            }
            Turn::Switch => self.switch(leader)?,
            Turn::Transfer => {
                // It may be refused; then it is asked of whoever leads.
                let (mut leader, mut attempts) = (leader, 1);
                while !self.transfer(leader, [0, (leader as u64 + 1) % NODES as u64 + 1])? {
                    if attempts == TRANSFERS_MAX {
                        return Ok(());
                    }
                    attempts += 1;
                    leader = self.operator.leader(CHANGE_LIMIT)?;
                }
            }
            Turn::Poison => {
                if !self.poison()? {
                    return Ok(());
                }
            }
        }
        self.report.cover(turn.name(), 1);
        Ok(())
    }

    fn listen(&mut self, ms: std::ops::RangeInclusive<u64>) -> Result<()> {
        let ms = self.random.within(ms);
        self.operator.listen(Duration::from_millis(ms))
    }

    fn network(&mut self, disturbances: &[Disturbance]) -> Result<()> {
        self.operator.processes.topology.disturb(disturbances)
    }

    /// Commands of clients of these nodes go on. Between two that are left, and lose packets, they need not.
    fn go_on(&mut self, nodes: &[usize]) -> Result<()> {
        if self.has_loss {
            let gone_on = self.operator.wait_for_commands(nodes, PROGRESS, LOSS_LIMIT);
            self.report.cover(
                "disturbances with loss that nothing went on beside",
                gone_on.is_err().into(),
            );
            // Whoever has ended by itself is missed later.
            return Ok(());
        }
        let begun = Instant::now();
        self.operator.wait_for_commands(nodes, PROGRESS, CHANGE_LIMIT)?;
        self.progress_max.0 = self.progress_max.0.max(begun.elapsed());
        Ok(())
    }

    /// One of these losses, or both: two nodes still hear each other.
    fn one_way(&mut self, both: [Disturbance; 2]) -> Result<()> {
        let count = 1 + self.random.below(2) as usize;
        self.network(&both[..count])?;
        let all: Vec<usize> = (0..NODES).collect();
        // What was on its way before does not count.
        self.listen(100..=100)?;
        self.go_on(&all)?;
        self.listen(300..=2500)
    }

    fn switch(&mut self, leader: usize) -> Result<()> {
        self.operator.processes.tell_all("fast off");
        let is_off = |mode: &str| mode == "raft";
        self.wait_for_mode("a leader that goes through Raft", is_off)?;
        let all: Vec<usize> = (0..NODES).collect();
        self.go_on(&all)?;
        self.listen(0..=800)?;
        if self.random.one_in(3) {
            self.operator.end(leader)?;
            self.report.cover("leaders killed while the fast path was switched off", 1);
            self.listen(0..=500)?;
        }
        self.operator.processes.tell_all("fast on");
        self.operator.start_all()?;
        self.wait_for_mode("a leader by the fast path", |mode| mode == "fast")
    }

    fn wait_for_mode(&mut self, what: &str, is_it: impl Fn(&str) -> bool) -> Result<()> {
        let is_it = |states: &std::collections::BTreeMap<usize, super::child::State>| {
            leads(states).is_some_and(|leader| is_it(&states[&leader].mode))
        };
        self.operator.wait_states(what, CHANGE_LIMIT, is_it).map(drop)
    }

    /// Whether the leader has given the leadership away: to one of these, 0 being whoever is best.
    fn transfer(&mut self, leader: usize, to: [u64; 2]) -> Result<bool> {
        let to = self.random.pick(&to);
        let outcome = self.operator.order(leader, &format!("transfer {to}"), CHANGE_LIMIT)?;
        if let Err(why) = &outcome {
            println!("  node {leader} does not give the leadership to {to}: {why}");
            self.report.cover("leadership that was not given away", 1);
        }
        Ok(outcome.is_ok())
    }

    /// Whether the disk of a leader has failed.
    fn poison(&mut self) -> Result<bool> {
        let mut attempts = 0;
        loop {
            let leader = self.operator.leader(CHANGE_LIMIT)?;
            if leader == FRAIL {
                break;
            }
            if attempts == TRANSFERS_MAX {
                return Ok(false);
            }
            attempts += 1;
            self.transfer(leader, [FRAIL as u64 + 1; 2])?;
            self.listen(100..=300)?;
        }
        let before = self.operator.failures();
        self.operator.set_failing(true);
        let others: Vec<usize> = (0..NODES).filter(|node| *node != FRAIL).collect();
        self.operator
            .wait("a disk that fails", CHANGE_LIMIT, |operator| operator.failures() > before)?;
        self.go_on(&others)?;
        let another = |states: &std::collections::BTreeMap<usize, super::child::State>| {
            let is_unfit = states.get(&FRAIL).is_some_and(|state| !state.trouble.is_empty());
            is_unfit && leads(states).is_some_and(|leader| leader != FRAIL)
        };
        self.operator.wait_states("another leader", CHANGE_LIMIT, another)?;
        // It executes what it is asked, elsewhere.
        self.go_on(&[FRAIL]).context("clients of the node whose disk has failed")?;
        self.operator.end(FRAIL)?;
        self.operator.set_failing(false);
        if self.operator.failures() == before {
            bail!("the disk has not failed");
        }
        Ok(true)
    }
}
