//! What happens to a cluster while clients use it.

use std::time::Duration;

use openraft::AsyncRuntime as _;
use openraft_rt_sim::SimRuntime;

use super::oracle::Counts;
use super::runtime::spawn_in;
use super::world::World;

impl World {
    fn count(&self, count: impl FnOnce(&mut Counts) -> &mut u64) {
        self.cluster.oracle(|oracle| *count(&mut oracle.counts) += 1);
    }

    fn any_node(&mut self) -> usize {
        let nodes = self.nodes() as u64;
        self.random.below(nodes) as usize
    }

    /// Who leads, mostly.
    fn leader_or_any(&mut self) -> usize {
        match self.leader() {
            Some(leader) if self.random.chance(800) => leader,
            _ => self.any_node(),
        }
    }

    /// One thing after another, for a while.
    pub async fn make_trouble(&mut self) {
        self.pass_ms(600, 2500).await;
        for _ in 0..self.random.pick(&[6, 12, 24]) {
            self.trouble().await;
            self.pass_ms(10, 600).await;
        }
    }

    async fn trouble(&mut self) {
        match self.random.below(100) {
            0..12 => {
                let node = self.leader_or_any();
                self.crash_and_restart(node).await;
            }
            12..18 => {
                let node = self.any_node();
                self.crash_and_restart(node).await;
            }
            18..24 => self.crash_all().await,
            24..34 => self.stop_for_a_while().await,
            34..46 => self.cut_off(),
            46..54 => self.cut_one_way(),
            54..66 => self.cluster.links.heal(),
            66..72 => {
                self.count(|counts| &mut counts.lossy);
                let (lost, slow) = (self.random.within(0..=300), self.random.within(0..=200));
                self.cluster.links.set_quality(lost, slow);
            }
            72..76 => self.cluster.links.set_quality(0, 0),
            76..86 => self.switch().await,
            86..94 => self.transfer(),
            _ => {
                let node = self.leader_or_any();
                if let Some(up) = self.cluster.up(node) {
                    self.count(|counts| &mut counts.breaks);
                    up.place.break_sessions();
                }
            }
        }
    }

    async fn crash_and_restart(&mut self, node: usize) {
        let power = self.random.chance(600);
        if self.crash(node, power) {
            // The shortest ones lie within an election timeout.
            let is_quick = self.random.chance(400);
            if is_quick {
                self.count(|counts| &mut counts.quick_restarts);
                self.pass_ms(1, 300).await;
                self.restart(node);
            } else if self.random.chance(700) {
                self.pass_ms(300, 3000).await;
                self.restart(node);
            }
            // Otherwise it stays down until somebody starts it.
        } else {
            self.restart(node);
        }
    }

    async fn crash_all(&mut self) {
        for node in 0..self.nodes() {
            let power = self.random.chance(700);
            self.crash(node, power);
        }
        for node in 0..self.nodes() {
            self.pass_ms(0, 400).await;
            self.restart(node);
        }
    }

    async fn stop_for_a_while(&mut self) {
        let node = self.leader_or_any();
        let Some(up) = self.cluster.up(node) else { return };
        self.count(|counts| &mut counts.stops);
        self.tell(|| format!("node {node} is stopped"));
        up.place.run.stop();
        self.pass_ms(50, 2000).await;
        self.tell(|| format!("node {node} goes on"));
        up.place.run.go_on();
    }

    fn cut_off(&mut self) {
        let node = self.leader_or_any();
        self.count(|counts| &mut counts.partitions);
        self.tell(|| format!("node {node} is cut off"));
        for other in (0..self.nodes()).filter(|other| *other != node) {
            self.cluster.links.cut(node, other);
            self.cluster.links.cut(other, node);
        }
    }

    fn cut_one_way(&mut self) {
        let (one, other) = (self.leader_or_any(), self.any_node());
        if one != other {
            self.count(|counts| &mut counts.one_way);
            let (hearer, speaker) =
                if self.random.chance(500) { (one, other) } else { (other, one) };
            self.tell(|| format!("node {hearer} does not hear node {speaker}"));
            self.cluster.links.cut(hearer, speaker);
        }
    }

    /// Switches the fast path on all nodes, as an operator does; sometimes the leader dies in it.
    async fn switch(&mut self) {
        self.is_fast = !self.is_fast;
        let is_fast = self.is_fast;
        self.count(
            |counts| {
                if is_fast { &mut counts.switched_on } else { &mut counts.switched_off }
            },
        );
        self.tell(|| format!("the fast path is switched: {is_fast}"));
        self.set_fast_path(is_fast);
        if self.random.chance(350) {
            self.pass_ms(0, 15).await;
            if let Some(leader) = self.leader() {
                self.count(|counts| &mut counts.crashed_switching);
                self.crash(leader, true);
                self.pass_ms(1, 1500).await;
                self.restart(leader);
            }
        } else if self.random.chance(500) {
            self.pass_ms(1, 60).await;
            self.set_fast_path(!is_fast);
        }
    }

    /// Says on every node that is up whether the fast path may be used.
    fn set_fast_path(&mut self, is_fast: bool) {
        self.is_fast = is_fast;
        for node in 0..self.nodes() {
            if let Some(node) = self.cluster.node(node) {
                node.set_fast_path(is_fast);
            }
        }
    }

    /// A leader dies while its fast path is switched off, with records that its followers may lack, and stays
    /// away: a majority is enough for everything that has an answer.
    pub async fn lose_leader(&mut self) {
        self.cluster.links.set_quality(0, 0);
        self.cluster.links.heal();
        for node in 0..self.nodes() {
            if let Some(up) = self.cluster.up(node) {
                up.place.run.go_on();
            }
            self.restart(node);
        }
        self.set_fast_path(true);
        self.pass_ms(1800, 2500).await;
        let Some(leader) = self.leader() else { return };
        // Who has not come to know the cluster yet gives nobody a vote (I-15), and would be needed.
        let has_begun =
            |node| self.cluster.up(node).is_some_and(|up| up.place.lock().begun.is_some());
        if !(0..self.nodes()).all(has_begun) {
            return;
        }
        let Some(up) = self.cluster.up(leader) else { return };
        up.place.break_sessions();
        self.pass_ms(5, 30).await;
        self.set_fast_path(false);
        self.pass_ms(3, 25).await;
        if self.crash(leader, true) {
            self.count(|counts| &mut counts.lost_leaders);
            self.lost = Some(leader);
        }
    }

    fn transfer(&mut self) {
        let Some(leader) = self.leader() else { return };
        let Some(up) = self.cluster.up(leader) else { return };
        let Some(node) = up.node else { return };
        self.count(|counts| &mut counts.transfers);
        self.tell(|| format!("node {leader} gives its leadership away"));
        drop(spawn_in(Some(up.place.run.clone()), async move {
            let _ = node.transfer(None, Duration::from_millis(500)).await;
        }));
    }
}

/// So long a client thinks.
pub async fn think(random: &mut crate::random::Random) {
    let ms = random.pick(&[1, 5, 5, 20, 60, 200]);
    SimRuntime::sleep(Duration::from_micros(random.within(200..=1000 * ms))).await;
}
