//! The links between nodes: what is sent arrives later, or not. Requests between two nodes arrive in
//! their order, with gaps; replies in any. A connection of replication keeps its order and loses nothing: it stalls
//! while the other side does not hear, or breaks.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use openraft::AsyncRuntime as _;
use openraft_rt_sim::SimRuntime;

use super::runtime::{lock, spawn_in, true_ns};
use crate::random::Random;

/// How what is sent arrives.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Class {
    /// In order, if at all.
    Request,
    /// If at all.
    Reply,
    /// In order, some day.
    Stream,
}

type Deliver = Box<dyn FnOnce() + Send>;

/// See the module. Nodes are numbers from 0 on.
pub struct Links(Mutex<State>);

struct State {
    random: Random,
    /// By who hears and who speaks.
    hears: Vec<Vec<bool>>,
    lost_thousandths: u64,
    slow_thousandths: u64,
    /// When the last one arrives, by from, to, and whether it is of a stream.
    last_ns: Vec<Vec<[u64; 2]>>,
    /// What has to wait, by from and to.
    stalled: Vec<Vec<VecDeque<Deliver>>>,
    lost: u64,
}

impl Links {
    pub fn new(nodes: usize, random: Random) -> Arc<Self> {
        Arc::new(Self(Mutex::new(State {
            random,
            hears: vec![vec![true; nodes]; nodes],
            lost_thousandths: 0,
            slow_thousandths: 0,
            last_ns: vec![vec![[0; 2]; nodes]; nodes],
            stalled: (0..nodes).map(|_| (0..nodes).map(|_| VecDeque::new()).collect()).collect(),
            lost: 0,
        })))
    }

    /// From now on so much is lost, and so much is late.
    pub fn set_quality(&self, lost_thousandths: u64, slow_thousandths: u64) {
        let mut state = lock(&self.0);
        state.lost_thousandths = lost_thousandths;
        state.slow_thousandths = slow_thousandths;
    }

    /// One node does not hear another.
    pub fn cut(&self, hearer: usize, speaker: usize) {
        lock(&self.0).hears[hearer][speaker] = hearer == speaker;
    }

    /// Everybody hears everybody.
    pub fn heal(&self) {
        let stalled = {
            let mut state = lock(&self.0);
            state.hears.iter_mut().for_each(|hears| hears.fill(true));
            let stalled = state.stalled.iter_mut().flatten();
            stalled.flat_map(std::mem::take).collect::<Vec<Deliver>>()
        };
        stalled.into_iter().for_each(|deliver| deliver());
    }

    pub fn lost(&self) -> u64 {
        lock(&self.0).lost
    }

    /// Sends something. False when it is lost at once, and its sender could know.
    pub fn send(
        self: &Arc<Self>,
        from: usize,
        to: usize,
        class: Class,
        deliver: impl FnOnce() + Send + 'static,
    ) {
        let mut state = lock(&self.0);
        let is_slow = {
            let slow = state.slow_thousandths;
            state.random.chance(slow)
        };
        let longest = if is_slow { 400_000 } else { 2_000 };
        let delay_ns = 1000 * state.random.within(50..=longest);
        let lost = state.lost_thousandths;
        if class != Class::Stream && state.random.chance(lost) {
            state.lost += 1;
            return;
        }
        let mut at_ns = true_ns() + delay_ns;
        if class != Class::Reply {
            let last_ns = &mut state.last_ns[from][to][usize::from(class == Class::Stream)];
            at_ns = at_ns.max(*last_ns + 1);
            *last_ns = at_ns;
        }
        drop(state);
        let (links, deliver): (_, Deliver) = (self.clone(), Box::new(deliver));
        let delay = Duration::from_nanos(at_ns - true_ns());
        drop(spawn_in(None, async move {
            SimRuntime::sleep(delay).await;
            links.arrive(from, to, class, deliver);
        }));
    }

    fn arrive(&self, from: usize, to: usize, class: Class, deliver: Deliver) {
        let mut state = lock(&self.0);
        if class == Class::Stream && (!state.hears[to][from] || !state.stalled[from][to].is_empty())
        {
            return state.stalled[from][to].push_back(deliver);
        }
        if !state.hears[to][from] {
            state.lost += 1;
            return;
        }
        drop(state);
        deliver();
    }
}

/// A connection of replication, from a leader to a follower.
pub struct Connection {
    pub leader: usize,
    pub follower: usize,
    links: Arc<Links>,
    ends: Mutex<Ends>,
}

#[derive(Default)]
struct Ends {
    is_broken: bool,
    to_follower: VecDeque<Bytes>,
    to_leader: VecDeque<Bytes>,
}

impl Connection {
    pub fn new(links: Arc<Links>, leader: usize, follower: usize) -> Arc<Self> {
        Arc::new(Self { leader, follower, links, ends: Mutex::default() })
    }

    pub fn is_broken(&self) -> bool {
        lock(&self.ends).is_broken
    }

    /// Nothing more comes on it.
    pub fn break_it(&self) {
        lock(&self.ends).is_broken = true;
    }

    /// Sends an item; `woken` is called when it has come.
    pub fn send(
        self: &Arc<Self>,
        to_follower: bool,
        item: Bytes,
        woken: impl FnOnce() + Send + 'static,
    ) {
        let connection = self.clone();
        let (from, to) = match to_follower {
            true => (self.leader, self.follower),
            false => (self.follower, self.leader),
        };
        self.links.send(from, to, Class::Stream, move || {
            let mut ends = lock(&connection.ends);
            if !ends.is_broken {
                let items = if to_follower { &mut ends.to_follower } else { &mut ends.to_leader };
                items.push_back(item);
                drop(ends);
                woken();
            }
        });
    }

    /// An item that has come.
    pub fn take(&self, as_follower: bool) -> Option<Bytes> {
        let mut ends = lock(&self.ends);
        if as_follower { ends.to_follower.pop_front() } else { ends.to_leader.pop_front() }
    }
}
