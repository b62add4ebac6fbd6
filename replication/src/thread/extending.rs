//! Records of entries of the embedder's log: what of them is not here is added. Through the follower's
//! core while a leader is followed, so that its cursors stay right; otherwise straight to the engine.
//! Nothing is added while the node changes its part. What of them is here before is compared first, by the
//! thread that waits for disks: other bytes in the same epoch are two histories, of which one must be wrong.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use ringwal_engine::{AppendError, CommitError, EpochTable, Refusal, StreamId};

use super::Context;
use super::Replica;
use super::following::{Appends, Ending, Following};
use super::part::Part;
use crate::driven::{ExtendError, Extension, Way};
use crate::fetch::FetchFromError;
use crate::fetch::from::FetchFrom;
use crate::follower::Refused;
use crate::framing::frame_of;
use crate::promise::is_replicated;
use crate::worker::{Compare, Job};

/// Extensions that wait.
const WAITING_MAX: usize = 256;
/// So long a leader may take to dial, and one that is followed to bring what is before an extension.
const GAP: Duration = Duration::from_secs(1);

/// See the module.
pub(super) struct Extending {
    waiting: VecDeque<Extend>,
    /// Frames that were given to the engine while nobody is followed.
    appends: Appends,
    /// Of streams that have such frames: where the next one begins; `None` when one was refused, so
    /// that those behind it will be.
    given: BTreeMap<StreamId, Option<u64>>,
    /// Comparisons that were asked for.
    comparisons: u64,
    /// Since when nobody is followed, while that is so: its leader is about to dial, maybe.
    idle_since: Instant,
}

/// An extension, and who waits for it.
pub(crate) struct Extend {
    extension: Extension,
    way: Way<(), ExtendError>,
    /// Since when something before it has been lacking.
    lacking: Option<Instant>,
    compared: Compared,
}

/// Whether what is held of an extension is what it says.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
enum Compared {
    No,
    /// The comparison with this number is under way.
    Asked(u64),
    Same,
    /// From this offset on it is not.
    Other(u64),
}

impl Extend {
    pub(crate) fn new(extension: Extension, way: Way<(), ExtendError>) -> Self {
        Self { extension, way, lacking: None, compared: Compared::No }
    }

    pub(crate) fn finish(self, outcome: Result<(), ExtendError>) {
        // Nobody may wait any more.
        let _ = self.way.send(outcome);
    }
}

/// What a look at an extension has come to.
enum Step {
    /// All of it is durable, up to this durable end.
    Durable(u64),
    Waits,
    Refused(ExtendError),
}

fn failed(why: impl ToString) -> Step {
    Step::Refused(ExtendError::Failed(why.to_string()))
}

impl Default for Extending {
    fn default() -> Self {
        Self {
            waiting: VecDeque::new(),
            appends: Appends::default(),
            given: BTreeMap::new(),
            comparisons: 0,
            idle_since: Instant::now(),
        }
    }
}

impl Extending {
    /// Nobody is followed from now on, until somebody dials.
    pub(super) fn note_idle(&mut self) {
        self.idle_since = Instant::now();
    }

    /// The part changes: what was given and is not sealed is shut out, and given again if it still
    /// belongs there.
    pub(super) fn interrupt(&mut self) {
        self.appends = Appends::default();
        self.given.clear();
    }

    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.appends.is_empty()
    }

    /// Everybody who waits learns that the node is closing.
    pub(super) fn end(&mut self) {
        self.interrupt();
        self.waiting.drain(..).for_each(|extend| extend.finish(Err(ExtendError::Closed)));
    }

    /// A comparison has come to an end.
    pub(super) fn handle_compared(&mut self, number: u64, other: Option<u64>) {
        let asked = Compared::Asked(number);
        if let Some(extend) = self.waiting.iter_mut().find(|extend| extend.compared == asked) {
            extend.compared = other.map_or(Compared::Same, Compared::Other);
        }
    }

    /// Has what is held of an extension compared, once. Something else is said, counted and logged.
    fn compare(&mut self, context: &mut Context, extend: &mut Extend) -> Option<Step> {
        let Extension { epoch, stream, base, ref records, .. } = extend.extension;
        match extend.compared {
            Compared::Same => None,
            Compared::Asked(_) => Some(Step::Waits),
            Compared::Other(offset) => {
                context.counters.differences.add(1);
                let error = ExtendError::Differs { stream, epoch, offset };
                tracing::error!(%error, "an entry is not added");
                Some(Step::Refused(error))
            }
            Compared::No => {
                let handle = context.engine.stream(stream);
                let held = base.max(handle.trimmed())..handle.end().min(extend.extension.end());
                if held.is_empty() {
                    extend.compared = Compared::Same;
                    return None;
                }
                if context.worker.has_room() {
                    self.comparisons += 1;
                    let number = self.comparisons;
                    let records =
                        &records[(held.start - base) as usize..(held.end - base) as usize];
                    let (base, records) = (held.start, records.to_vec());
                    let compare = Compare { number, stream, epoch, base, records };
                    context.worker.give(Job::Compare(Box::new(compare)));
                    extend.compared = Compared::Asked(number);
                }
                Some(Step::Waits)
            }
        }
    }

    /// What the engine has done with frames that it was given.
    fn take_appended(&mut self, context: &mut Context) {
        let stream = self.appends.waits_for_room();
        match (stream, self.appends.poll_waiting(&context.waker)) {
            (None, _) | (_, Ok(())) => {}
            (Some(stream), Err(AppendError::NoSpace { .. })) => {
                self.given.insert(stream, None);
            }
            (Some(stream), Err(error)) => self.fail(stream, &error),
        }
        while let Some((stream, _, _, outcome)) = self.appends.poll_appended(&context.waker) {
            match outcome {
                Ok(()) => {}
                // Others were faster, or the fence was raised: it is looked at again.
                Err(CommitError::Refused(
                    Refusal::NotContinuation { .. } | Refusal::Fenced { .. },
                )) => {
                    self.given.insert(stream, None);
                    let of_stream = |extend: &&mut Extend| extend.extension.stream == stream;
                    let waiting = self.waiting.iter_mut().filter(of_stream);
                    waiting.for_each(|extend| extend.compared = Compared::No);
                }
                Err(error) => {
                    if matches!(error, CommitError::Unknown(_) | CommitError::NotWritten(_)) {
                        context.failed = Some(error.to_string());
                    }
                    self.fail(stream, &error);
                }
            }
        }
    }

    fn fail(&mut self, stream: StreamId, why: &impl ToString) {
        self.given.insert(stream, None);
        let of_stream = |extend: &Extend| extend.extension.stream == stream;
        let (failed, left): (VecDeque<_>, VecDeque<_>) =
            std::mem::take(&mut self.waiting).into_iter().partition(of_stream);
        self.waiting = left;
        let error = ExtendError::Failed(why.to_string());
        failed.into_iter().for_each(|extend| extend.finish(Err(error.clone())));
    }

    /// Gives the engine what is not here, while nobody is followed.
    fn give(&mut self, context: &Context, extension: &Extension, part: &Part) -> Step {
        let (stream, end) = (extension.stream, extension.end());
        let handle = context.engine.stream(stream);
        let durable = handle.end();
        if durable >= end {
            return Step::Durable(durable);
        }
        let mut next = match self.given.get(&stream) {
            _ if !self.appends.has(stream) => durable,
            Some(Some(next)) => *next,
            // What is under way will be refused.
            _ => return Step::Waits,
        };
        if next < extension.base {
            let lacks = ExtendError::Lacks { stream, end: durable, base: extension.base };
            let may_come = matches!(part, Part::Idle) && self.idle_since.elapsed() < GAP;
            let waits = may_come || self.appends.has(stream);
            return if waits { Step::Waits } else { Step::Refused(lacks) };
        }
        while next < end && self.appends.waits_for_room().is_none() {
            let records = &extension.records[(next - extension.base) as usize..];
            let frame = frame_of(stream, extension.epoch, next, records, context.frame_bytes_max);
            match self.appends.give(&handle, frame, &context.waker) {
                Ok((given_end, record_bytes)) => {
                    if let Part::Leading(leading) = part
                        && let Some(gate) = leading.term.gate()
                    {
                        gate.note_appended(record_bytes);
                    }
                    next = given_end;
                    self.given.insert(stream, Some(next));
                }
                // Until there is room again.
                Err(AppendError::NoSpace { .. }) => return Step::Waits,
                Err(error) => return failed(error),
            }
        }
        Step::Waits
    }
}

impl Replica {
    pub(super) fn handle_extend(&mut self, extend: Extend) {
        if !self.context.is_driven {
            return extend.finish(Err(ExtendError::NotDriven));
        }
        if self.closing.is_some() {
            return extend.finish(Err(ExtendError::Closed));
        }
        if self.extending.waiting.len() >= WAITING_MAX {
            return extend.finish(Err(ExtendError::Busy));
        }
        self.extending.waiting.push_back(extend);
    }

    /// One look at every extension, in their order.
    pub(super) fn extend(&mut self) {
        if self.change.is_some() || self.extending.is_idle() {
            return;
        }
        self.extending.take_appended(&mut self.context);
        for mut extend in std::mem::take(&mut self.extending.waiting) {
            match self.step(&mut extend) {
                Step::Waits => self.extending.waiting.push_back(extend),
                Step::Refused(error) => extend.finish(Err(error)),
                Step::Durable(durable) => {
                    let outcome = self.finish_extension(&extend.extension, durable);
                    extend.finish(outcome);
                }
            }
        }
    }

    fn step(&mut self, extend: &mut Extend) -> Step {
        let extension = &extend.extension;
        let begun = self.context.facts.begun;
        if begun.is_none_or(|begun| begun.epoch != extension.epoch) {
            return Step::Refused(ExtendError::NotBegun { asked: extension.epoch, begun });
        }
        if let Some(why) = &self.context.failed {
            return failed(why);
        }
        if !is_replicated(extension.stream) {
            return failed(format!("stream {} is a node's own (1 to 3)", extension.stream));
        }
        if let Some(step) = self.extending.compare(&mut self.context, extend) {
            if let Step::Refused(error @ ExtendError::Differs { .. }) = &step {
                // It must count for nobody: one of two histories is wrong.
                self.fail(&error.to_string());
            }
            return step;
        }
        let extension = &extend.extension;
        let Part::Following(following) = &mut self.part else {
            return self.extending.give(&self.context, extension, &self.part);
        };
        match follow(following, extend, &mut self.context, &mut self.appends) {
            Ok(step) => step,
            Err(ending) => {
                self.end_following(ending);
                // Then nobody is followed: see the next turn.
                self.context.wake.wake();
                Step::Waits
            }
        }
    }

    /// All of it is durable: it is committed, if it is what it should be.
    fn finish_extension(&mut self, extension: &Extension, durable: u64) -> Result<(), ExtendError> {
        let Extension { epoch, stream, base, .. } = *extension;
        let end = extension.end();
        let handle = self.context.engine.stream(stream);
        let table = EpochTable::from_entries(handle.epochs()).unwrap_or_default();
        let first = base.max(handle.trimmed());
        let other = [first, end.saturating_sub(1)]
            .into_iter()
            .filter(|offset| (first..end).contains(offset))
            .find(|offset| table.epoch_at(*offset) != epoch);
        if let Some(offset) = other {
            let held = table.epoch_at(offset);
            return Err(ExtendError::Failed(format!(
                "stream {stream} holds offset {offset} in epoch {held}, not in {epoch}: an extension \
                 begins where its epoch did, or later"
            )));
        }
        let committed = extension.committed.max(end).min(durable);
        match &mut self.part {
            Part::Following(following) => following.handle_committed(stream, committed),
            Part::Leading(leading) => leading.handle_committed(stream, committed),
            Part::Idle => {}
        }
        let known = self.context.facts.committed.entry(stream).or_default();
        *known = committed.max(*known);
        Ok(())
    }

    /// Somebody fetches what is not here, beside this thread.
    pub(super) fn handle_fetch(&mut self, fetch: FetchFrom) {
        let refused = match &self.part {
            _ if !self.context.is_driven => Some(FetchFromError::NotDriven),
            _ if self.closing.is_some() => Some(FetchFromError::Closed),
            _ if self.context.failed.is_some() => {
                let why = self.context.failed.clone().unwrap_or_default();
                Some(FetchFromError::Changed(why))
            }
            _ if self.change.is_some() => {
                Some(FetchFromError::Changed("this node changes its part; try again".into()))
            }
            Part::Leading(leading) => {
                let why = format!("this node leads in epoch {}", leading.term.epoch());
                Some(FetchFromError::Changed(why))
            }
            Part::Idle | Part::Following(_) => None,
        };
        match refused {
            Some(error) => fetch.finish(Err(error)),
            None => fetch.start(&self.context),
        }
    }
}

/// Through the core of what is followed.
fn follow(
    following: &mut Following,
    extend: &mut Extend,
    context: &mut Context,
    appends: &mut Appends,
) -> Result<Step, Ending> {
    let extension = &extend.extension;
    let (stream, end) = (extension.stream, extension.end());
    let handle = context.engine.stream(stream);
    loop {
        let Some((next, durable)) = following.extendable(&handle, appends) else {
            return Ok(Step::Waits);
        };
        if durable >= end {
            return Ok(Step::Durable(durable));
        }
        if next >= end || appends.waits_for_room().is_some() {
            return Ok(Step::Waits);
        }
        if next < extension.base {
            let since = *extend.lacking.get_or_insert_with(Instant::now);
            if since.elapsed() < GAP {
                return Ok(Step::Waits);
            }
            let base = extension.base;
            return Ok(Step::Refused(ExtendError::Lacks { stream, end: durable, base }));
        }
        let held = following.core().epoch_at(stream, next).unwrap_or(extension.epoch);
        if held != extension.epoch {
            let epoch = extension.epoch;
            return Ok(failed(format!("offset {next} is in epoch {held}, not in {epoch}")));
        }
        let records = &extension.records[(next - extension.base) as usize..];
        let frame = frame_of(stream, extension.epoch, next, records, context.frame_bytes_max);
        following.take_frame(frame, Instant::now(), context, appends)?;
        let refused = following.core().refused().get(&stream);
        let waits = [Refused::Discontinuous, Refused::NoSpace];
        if let Some(why) = refused.filter(|why| !waits.contains(why)) {
            return Ok(failed(format!("the engine takes no more of stream {stream}: {why:?}")));
        }
        if following.core().next_offset(stream).is_none_or(|now| now <= next) {
            return Ok(Step::Waits);
        }
    }
}
