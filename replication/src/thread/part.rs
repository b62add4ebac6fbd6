//! How a node changes its part, one change at a time: what it was ends at once; the worker waits until
//! nothing is in flight any more and makes the new promise durable; then the new part begins.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use crossbeam_channel::Sender;
use ringwal_engine::StreamId;

use super::accept::Arrived;
use super::connection::Connection;
use super::driving::{BeginWay, Driven};
use super::following::{Appends, Ending, Following};
use super::leading::Leading;
use super::{LeadError, Replica};
use crate::beginning::{Begin, Starts};
use crate::driven::{PromiseError, Promised, Way};
use crate::follower::Follower;
use crate::history::Held;
use crate::promise::Promise;
use crate::term::Term;
use crate::wire::{Cause, Refusal};
use crate::worker::Job;

/// What a node does now.
pub(super) enum Part {
    Idle,
    Leading(Box<Leading>),
    Following(Box<Following>),
}

/// A change of part that is under way.
pub(super) struct Change {
    pub(super) to: To,
    pub(super) promise: Promise,
    is_promising: bool,
}

pub(super) enum To {
    Lead(Sender<Result<Arc<Term>, LeadError>>),
    Follow(Box<Arrived>),
    /// Nothing, with a promise of the embedder's.
    Promise(Way<Promised, PromiseError>),
    /// What an epoch that begins makes of it: where that starts streams.
    Begin(Starts, BeginWay),
}

impl To {
    /// Whether the embedder has asked for it, and so waits until it is done.
    pub(super) fn is_driven(&self) -> bool {
        matches!(self, Self::Promise(_) | Self::Begin(..))
    }
}

impl Replica {
    /// What this node was ends at once; what it will be begins when nothing is in flight.
    pub(super) fn begin_change(&mut self, to: To, promise: Promise) {
        let why = format!("epoch {} of node {} begins", promise.epoch, promise.leader);
        // What was given to the engine beside the part is shut out with it.
        self.context.changes.fetch_add(1, Ordering::AcqRel);
        self.extending.interrupt();
        if let Some(before) = self.change.take() {
            self.give_up(before, Refusal::NotNow, &why);
        }
        let is_followed = |part: &Part| matches!(part, Part::Following(following) if following.promise == promise);
        match &self.part {
            part if is_followed(part) => {
                self.end(Cause::Changing, "the leader dials again");
            }
            _ => self.end(Cause::Changing, &why),
        }
        self.change = Some(Change { to, promise, is_promising: false });
    }

    pub(super) fn give_up(&self, change: Change, refusal: Refusal, why: &str) {
        match change.to {
            To::Follow(arrived) => self.refuse(*arrived, refusal, why.to_owned()),
            To::Lead(reply) => {
                let asked = change.promise.epoch;
                let _ = reply.send(Err(LeadError::Overtaken { asked, why: why.to_owned() }));
            }
            To::Promise(way) => Driven::Promise(change.promise, way).fail(why),
            To::Begin(starts, way) => Driven::Begin(change.promise, starts, way).fail(why),
        }
    }

    pub(super) fn advance_change(&mut self) {
        // Frames of an earlier leader are fenced off, and what was sealed of them is waited for.
        let is_quiet = self.context.worker.is_idle();
        let promised = self.context.facts.promise.map_or(0, |promise| promise.epoch);
        let is_overtaken =
            |change: &mut Change| change.promise.epoch < promised && !change.to.is_driven();
        if let Some(change) = self.change.take_if(is_overtaken) {
            let why = format!("epoch {promised} has been promised meanwhile");
            return self.give_up(change, Refusal::Epoch, &why);
        }
        let Some(change) = &mut self.change else { return };
        if change.is_promising || !is_quiet {
            return;
        }
        change.is_promising = true;
        let (promise, facts) = (change.promise, self.context.facts.clone());
        let job = match &mut change.to {
            To::Begin(starts, _) => {
                let starts = std::mem::take(starts);
                let leads = matches!(starts, Starts::At(_)) && self.is_own(promise);
                Job::Begin(Box::new(Begin { promise, starts, leads, facts }))
            }
            _ => Job::Promise { promise, facts },
        };
        self.context.worker.give(job);
    }

    pub(super) fn finish_change(
        &mut self,
        promise: Promise,
        held: Result<BTreeMap<StreamId, Held>, String>,
    ) {
        if held.is_ok() {
            self.context.facts.promise = Some(promise);
        }
        // Another one may have taken its place meanwhile, and makes a promise of its own.
        let is_it =
            |change: &mut Change| change.promise == promise && !matches!(change.to, To::Begin(..));
        let Some(change) = self.change.take_if(is_it) else { return };
        let held = match held {
            Ok(held) => held,
            Err(why) => {
                tracing::error!(epoch = promise.epoch, why, "cannot make a promise durable");
                return match change.to {
                    To::Follow(arrived) => self.refuse(*arrived, Refusal::NotNow, why),
                    To::Lead(reply) => {
                        let asked = promise.epoch;
                        drop(reply.send(Err(LeadError::NotPromised { asked, why })));
                    }
                    to => self.give_up(Change { to, ..change }, Refusal::NotNow, &why),
                };
            }
        };
        match change.to {
            To::Lead(reply) => self.lead(promise, held, &reply),
            To::Follow(arrived) => self.follow(promise, held, *arrived),
            To::Promise(way) => drop(way.send(Ok(self.promised(held)))),
            To::Begin(..) => unreachable!("it has an outcome of its own"),
        }
    }

    fn lead(
        &mut self,
        promise: Promise,
        held: BTreeMap<StreamId, Held>,
        reply: &Sender<Result<Arc<Term>, LeadError>>,
    ) {
        let is_alone = self.context.members.nodes.len() <= 1;
        let term = Arc::new(Term::new(promise.epoch, is_alone));
        self.begin_to_lead(term.clone(), held);
        let _ = reply.send(Ok(term));
    }

    pub(super) fn begin_to_lead(&mut self, term: Arc<Term>, held: BTreeMap<StreamId, Held>) {
        tracing::info!(epoch = term.epoch(), "leading");
        let leading = Leading::new(&self.context, term, held);
        self.part = Part::Leading(Box::new(leading));
        self.make_picture();
    }

    fn follow(&mut self, promise: Promise, held: BTreeMap<StreamId, Held>, arrived: Arrived) {
        if let Some(repairing) = &mut self.context.repairing {
            repairing.handle_session();
        }
        let context = &self.context;
        let committed = context.facts.committed.clone();
        let follows_trims = context.config.follow_trims;
        let core = Follower::new(promise.epoch, follows_trims, held, committed);
        let core = if context.is_driven { core.driven() } else { core };
        let answer = Bytes::from(self.answer(None).encode());
        let Arrived { reader, writer, place, .. } = arrived;
        let (bytes_max, wake) = (context.frame_bytes_max, context.wake.clone());
        let connection = Connection::start(reader, writer, bytes_max, wake);
        let following = Following::new(promise, core, connection, place, answer);
        self.part = Part::Following(Box::new(following));
        tracing::info!(epoch = promise.epoch, leader = %promise.leader, "following");
        self.make_picture();
        self.context.wake.wake();
    }

    /// Whatever it does, it does no more; callers who wait learn why, and a leader that was followed.
    pub(super) fn end(&mut self, cause: Cause, why: &str) {
        match &mut self.part {
            Part::Idle => {}
            Part::Following(_) => {
                return self.end_following(Ending { cause: Some(cause), why: why.to_owned() });
            }
            Part::Leading(leading) => {
                self.context.engine.close_epoch();
                leading.end(why);
                tracing::info!(epoch = leading.term.epoch(), why, "leading no more");
            }
        }
        self.part = Part::Idle;
        self.make_picture();
    }

    pub(super) fn end_following(&mut self, Ending { cause, why }: Ending) {
        if let Part::Following(following) = std::mem::replace(&mut self.part, Part::Idle) {
            // They may wait for space, for ever: none of them is sealed any more.
            self.context.engine.fence_frames();
            self.appends = Appends::default();
            self.extending.note_idle();
            self.context.facts.committed.clone_from(following.core().committed());
            self.context.counters.sessions_ended.add(1);
            let Promise { epoch, leader, .. } = following.promise;
            if let Some(cause) = cause {
                self.context.counters.note_left(cause);
                let promised = self.context.facts.promise.map_or(epoch, |promise| promise.epoch);
                following.leave(promised, cause, &why);
            }
            match cause {
                Some(cause) if cause.remedy().is_some() => {
                    tracing::warn!(epoch, %leader, cause = cause.name(), why, "following no more");
                }
                _ => tracing::info!(epoch, %leader, why, "following no more"),
            }
            self.make_picture();
        }
    }
}
