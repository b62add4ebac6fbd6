//! What the embedder of a driven node asks for: promises, beginnings of epochs, members. One promise
//! or beginning after the other, in the order in which they were asked for.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use ringwal_engine::StreamId;

use super::Replica;
use super::part::{Part, To};
use crate::beginning::Starts;
use crate::driven::{BeginError, Begun, Members, PromiseError, Promised, Way};
use crate::gate::Gate;
use crate::history::Held;
use crate::node::{Inner, Leadership};
use crate::promise::{NOBODY, Promise};
use crate::term::Term;
use crate::wire::EPOCH_MAX;

/// Promises and beginnings that wait.
const WAITING_MAX: usize = 64;

/// See the module.
pub(super) struct Driving {
    waiting: VecDeque<Driven>,
    /// Whoever has asked again for what is promised, and waits for what is in flight.
    holding: VecDeque<Way<Promised, PromiseError>>,
    /// What has begun last, for the handles of this node.
    begun: Arc<Mutex<Option<Promise>>>,
}

/// What was asked for.
pub(crate) enum Driven {
    Promise(Promise, Way<Promised, PromiseError>),
    Begin(Promise, Starts, BeginWay),
}

/// Where the outcome of a beginning goes, and what a leadership needs.
pub(crate) struct BeginWay {
    pub(crate) way: Way<Begun, BeginError>,
    pub(crate) inner: Arc<Inner>,
}

impl BeginWay {
    fn refuse(self, error: BeginError) {
        let _ = self.way.send(Err(error));
    }
}

impl Driven {
    pub(crate) fn refuse(self, promise: PromiseError, begin: BeginError) {
        match self {
            Self::Promise(_, way) => drop(way.send(Err(promise))),
            Self::Begin(_, _, way) => way.refuse(begin),
        }
    }

    /// It is not done because the node cannot.
    pub(super) fn fail(self, why: &str) {
        self.refuse(PromiseError::Failed(why.to_owned()), BeginError::Failed(why.to_owned()));
    }
}

impl Driving {
    pub(super) fn new(begun: Arc<Mutex<Option<Promise>>>) -> Self {
        Self { waiting: VecDeque::new(), holding: VecDeque::new(), begun }
    }
}

impl Replica {
    pub(super) fn handle_driven(&mut self, driven: Driven) {
        if !self.context.is_driven {
            return driven.refuse(PromiseError::NotDriven, BeginError::NotDriven);
        }
        if self.driving.waiting.len() >= WAITING_MAX {
            return driven.refuse(PromiseError::Busy, BeginError::Busy);
        }
        self.driving.waiting.push_back(driven);
    }

    /// Begins with the next one, when the one before is done.
    pub(super) fn drive(&mut self) {
        while self.change.as_ref().is_none_or(|change| !change.to.is_driven())
            && let Some(driven) = self.driving.waiting.pop_front()
        {
            if self.closing.is_some() {
                driven.refuse(PromiseError::Closed, BeginError::Closed);
            } else if let Some(why) = self.context.failed.clone() {
                driven.fail(&why);
            } else {
                match driven {
                    // What it holds is no measure of what there was. Following brings it back.
                    Driven::Promise(_, way) if self.context.repairing.is_some() => {
                        let noted = || "all is back, and that is being noted".to_owned();
                        let lacking = self.lacking().unwrap_or_else(noted);
                        drop(way.send(Err(PromiseError::Repairing { lacking })));
                    }
                    Driven::Promise(promise, way) => self.promise(promise, way),
                    Driven::Begin(promise, starts, way) => self.begin(promise, starts, way),
                }
            }
        }
    }

    fn promise(&mut self, promise: Promise, way: Way<Promised, PromiseError>) {
        let asked = promise.epoch;
        if !(1..=EPOCH_MAX).contains(&asked) {
            return drop(way.send(Err(PromiseError::NoEpoch(asked))));
        }
        if let Some(promised) = self.context.facts.promise.filter(|p| is_in_the_way(*p, promise)) {
            return drop(way.send(Err(PromiseError::Promised { asked, promised })));
        }
        // Who leads or follows in it has nothing of an older one in flight, and goes on.
        let is_part_of_it = match &self.part {
            Part::Idle => false,
            Part::Leading(_) | Part::Following(_) => self.context.facts.begun == Some(promise),
        };
        if is_part_of_it && self.context.worker.has_room() {
            self.driving.holding.push_back(way);
            return self.context.worker.give(crate::worker::Job::Hold);
        }
        self.begin_change(To::Promise(way), promise);
    }

    fn begin(&mut self, promise: Promise, starts: Starts, way: BeginWay) {
        let Promise { epoch, .. } = promise;
        if !(1..=EPOCH_MAX).contains(&epoch) {
            return way.refuse(BeginError::NoEpoch(epoch));
        }
        if self.context.facts.begun.is_some_and(|begun| begun.epoch >= epoch) {
            return drop(way.way.send(Ok(Begun::Before)));
        }
        let promised = self.context.facts.promise.filter(|promised| promised.epoch == epoch);
        if let Some(promised) = promised.filter(|promised| is_in_the_way(*promised, promise)) {
            return way.refuse(BeginError::OtherRun { promised });
        }
        if self.context.repairing.is_some() && self.is_own(promise) {
            let noted = || "all is back, and that is being noted".to_owned();
            return way
                .refuse(BeginError::Repairing { lacking: self.lacking().unwrap_or_else(noted) });
        }
        self.begin_change(To::Begin(starts, way), promise);
    }

    /// Whether this node is to lead in it: not when a later one is promised.
    pub(super) fn is_own(&self, promise: Promise) -> bool {
        let is_latest = self.context.facts.promise.is_none_or(|p| p.epoch <= promise.epoch);
        (promise.leader, promise.run) == (self.context.me.node, self.context.run) && is_latest
    }

    pub(super) fn promised(&self, held: BTreeMap<StreamId, Held>) -> Promised {
        let committed = match &self.part {
            Part::Following(following) => following.core().committed().clone(),
            _ => self.context.facts.committed.clone(),
        };
        Promised { held, committed, begun: self.context.facts.begun }
    }

    pub(super) fn finish_hold(&mut self, held: Result<BTreeMap<StreamId, Held>, String>) {
        let Some(way) = self.driving.holding.pop_front() else { return };
        let promised = held.map(|held| self.promised(held)).map_err(PromiseError::Failed);
        let _ = way.send(promised);
    }

    /// An epoch has begun here, durably, or has not.
    pub(super) fn finish_begin(
        &mut self,
        promise: Promise,
        may_be_promised: bool,
        leads: bool,
        begun: Result<BTreeMap<StreamId, Held>, BeginError>,
    ) {
        let promised = &mut self.context.facts.promise;
        // One that may be durable must not be taken back.
        if (may_be_promised || begun.is_ok())
            && promised.is_none_or(|promised| promised.epoch <= promise.epoch)
        {
            *promised = Some(promise);
        }
        let is_latest = *promised == Some(promise);
        if begun.is_ok() {
            self.context.facts.begun = Some(promise);
            *self.driving.begun.lock().unwrap_or_else(PoisonError::into_inner) = Some(promise);
            self.extending.note_idle();
            tracing::info!(epoch = promise.epoch, leader = %promise.leader, "the epoch has begun");
        }
        let is_it = |change: &mut super::part::Change| {
            change.promise == promise && matches!(change.to, To::Begin(..))
        };
        // The node may be closing, or have failed.
        let Some(change) = self.change.take_if(is_it) else { return };
        let To::Begin(_, BeginWay { way, inner }) = change.to else { return };
        let outcome = match begun {
            Err(error) => {
                tracing::error!(epoch = promise.epoch, %error, "an epoch does not begin here");
                Err(error)
            }
            Ok(_) if !is_latest => Ok(Begun::Overtaken),
            Ok(held) if leads && self.is_own(promise) => {
                let context = &self.context;
                let gate = Gate::new(context.config.unreplicated_bytes_max);
                let term = Term::driven(promise.epoch, gate, &context.facts.committed);
                let term = Arc::new(term);
                self.begin_to_lead(term.clone(), held);
                Ok(Begun::Leading(Leadership::new(inner, term)))
            }
            Ok(_) => Ok(Begun::Following),
        };
        self.make_picture();
        let _ = way.send(outcome);
    }

    pub(super) fn handle_members(&mut self, members: Members) {
        if !self.context.is_driven {
            return tracing::warn!("the members of a node that is not driven are configured");
        }
        self.context.mender.set_members(&members.nodes);
        self.context.members = members;
        if let Part::Leading(leading) = &mut self.part {
            leading.set_members(&self.context);
        }
        self.make_picture();
    }

    /// Nothing more is promised or begun: everybody who waits learns it.
    pub(super) fn end_driving(&mut self) {
        for driven in std::mem::take(&mut self.driving.waiting) {
            driven.refuse(PromiseError::Closed, BeginError::Closed);
        }
    }
}

/// Whether a promise shuts another one out.
fn is_in_the_way(promised: Promise, asked: Promise) -> bool {
    let is_same = promised == asked || promised.leader == NOBODY;
    promised.epoch > asked.epoch || (promised.epoch == asked.epoch && !is_same)
}
