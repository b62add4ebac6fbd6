//! The seams of the product over a [`Place`]: its streams ([`Replica`]), its leadership ([`Led`]), and its
//! streams for Raft ([`Journal`]).

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use ringwal_engine::{
    Append, AppendBatch, AppendError, Change, EpochStart, EpochTable, ReadError, Record, StreamId,
};
use ringwal_raft_fallback::Progress;
use ringwal_raft_fallback::raft::{Held as HeldByRaft, Journal};
use ringwal_raft_fallback::simulating::{
    AddError, Applied, Base, Begun, Holding, Led, LedError, METADATA_STREAM, OutcomeError, Replica,
    Standing,
};
use ringwal_replication::config::Member;
use ringwal_replication::driven::BeginError;
use ringwal_replication::history::{Held, Parting, part};
use ringwal_replication::node_id::{NodeId, RunId};
use ringwal_replication::promise::{Fact, Promise, is_replicated};
use ringwal_replication::simulating::{Begins, Cut, cuts, frame_of};
use ringwal_replication::wire::History;
use tokio::sync::oneshot;

use super::leading::Leading;
use super::place::{BATCH_BYTES, Part, Place, State};
use super::runtime::lock;

/// So long something before an entry may take to come.
const GAP_NS: u64 = 1_000_000_000;

#[derive(Clone)]
pub struct SimReplica(pub Arc<Place>);

/// A leadership in one epoch.
#[derive(Clone)]
pub struct SimLed {
    place: Arc<Place>,
    epoch: u64,
}

/// A record that was given.
pub struct SimPending(oneshot::Receiver<Result<u64, LedError>>);

impl Future for SimPending {
    type Output = Result<u64, LedError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let outcome = Pin::new(&mut self.0).poll(context);
        let gone = |_| Err(LedError::Unknown("the leadership has ended".to_owned()));
        outcome.map(|outcome| outcome.unwrap_or_else(gone))
    }
}

impl SimLed {
    /// Looks at the leadership, if it lasts.
    fn with<T>(&self, look: impl FnOnce(&mut Leading) -> T) -> Option<T> {
        match &mut self.place.lock().part {
            Part::Leading(leading) if leading.epoch == self.epoch => Some(look(leading)),
            _ => None,
        }
    }

    fn over(&self) -> LedError {
        LedError::NotTaken(format!("epoch {} is over here", self.epoch))
    }
}

impl Led for SimLed {
    type Pending = SimPending;

    fn epoch(&self) -> u64 {
        self.epoch
    }

    fn ended(&self) -> Option<String> {
        self.with(|_| ()).is_none().then(|| self.over().to_string())
    }

    fn lease_until(&self, boottime_ns: u64) {
        self.with(|leading| leading.set_lease(boottime_ns));
    }

    fn holds_lease(&self) -> bool {
        let now_ns = self.place.run.now_ns();
        self.with(|leading| leading.has_lease(now_ns)).unwrap_or(false)
    }

    async fn append(&self, record: &[u8]) -> Result<SimPending, LedError> {
        let now_ns = || self.place.run.now_ns();
        let given = |state: &mut State| match &mut state.part {
            Part::Leading(leading) if leading.epoch == self.epoch => {
                if !leading.has_lease(now_ns()) {
                    return Some(Err(LedError::NotTaken("there is no lease".to_owned())));
                }
                let taken = leading.has_room().then(|| Ok(SimPending(leading.push(record))));
                self.place.note_given(state);
                taken
            }
            _ => Some(Err(self.over())),
        };
        self.place.wait_for(given).await
    }

    async fn drained(&self) -> Result<(), LedError> {
        let drained = |state: &mut State| match &state.part {
            Part::Leading(leading) if leading.epoch == self.epoch => {
                leading.is_drained().then_some(Ok(()))
            }
            _ => Some(Err(self.over())),
        };
        self.place.wait_for(drained).await
    }

    async fn committed(&self, end: u64) -> Result<(), LedError> {
        let committed = |state: &mut State| match &state.part {
            Part::Leading(leading) if leading.epoch == self.epoch => {
                let known = state.committed.get(&METADATA_STREAM).copied().unwrap_or(0);
                (known >= end).then_some(Ok(()))
            }
            _ => Some(Err(LedError::Unknown("the epoch is over".to_owned()))),
        };
        self.place.wait_for(committed).await
    }

    fn committed_end(&self, stream: StreamId) -> u64 {
        self.place.lock().committed.get(&stream).copied().unwrap_or(0)
    }
}

fn standing(state: &State) -> Standing {
    let holding = |(stream, held): (StreamId, Held)| Holding {
        stream,
        trimmed: held.trimmed,
        end: held.end,
        epoch: held.end.checked_sub(1).map_or(0, |last| held.epochs.epoch_at(last)),
    };
    Standing { streams: state.all_held().into_iter().map(holding).collect(), begun: state.begun }
}

/// What is written of a node's facts, the promise last.
fn facts(state: &State, promised: Option<Promise>, begun: Option<Promise>) -> Vec<Fact> {
    let ends = state.committed.iter().map(|(stream, end)| (*stream, *end)).collect();
    let (begun, promise) = (begun.map(Fact::Begun), promised.map(Fact::Promise));
    [Fact::Committed(ends)].into_iter().chain(begun).chain(promise).collect()
}

impl SimReplica {
    /// Everything that is durable of these, or the first that is not.
    async fn saved(&self, tokens: Vec<Append>) {
        let is_saved = move |_: &mut State| {
            let receipts: Option<Vec<_>> = tokens.iter().map(Append::try_receipt).collect();
            receipts.map(|all| all.into_iter().for_each(|one| assert!(one.is_ok(), "a sound disk")))
        };
        self.0.wait_for(is_saved).await
    }

    /// Nothing of an older epoch is in flight any more.
    async fn hold(&self) {
        let barrier = {
            let mut state = self.0.lock();
            let barrier = state.shard().barrier().expect("a sound disk");
            self.0.note_given(&mut state);
            barrier
        };
        self.0.wait_for(|_| barrier.try_receipt().map(|held| held.expect("a sound disk"))).await;
    }

    async fn change(&self, why: &str) {
        {
            let mut state = self.0.lock();
            state.is_changing = true;
            self.0.end_part(&mut state, why);
            state.shard().close_epoch();
            state.shard().fence_frames();
        }
        self.hold().await;
    }

    async fn try_begin(&self, promise: Promise, begins: Begins) -> Result<Begun<SimLed>, String> {
        let place = &self.0;
        let start = match &begins {
            Begins::At(starts) => {
                let start = starts.iter().find(|(stream, _)| *stream == METADATA_STREAM);
                start.map_or(0, |(_, start)| *start)
            }
            Begins::Known(_) => u64::MAX,
        };
        let me = (place.id(), place.run_id);
        let latest = place.lock().promised.map_or(0, |promised| promised.epoch);
        let leads = (promise.leader, promise.run) == me && latest <= promise.epoch;
        let (held, committed) = {
            let state = place.lock();
            (state.all_held(), state.committed.clone())
        };
        let cut = match cuts(promise, begins, leads, &held, &committed) {
            Ok(cuts) => cuts,
            Err(error @ BeginError::BelowCommitted { .. }) => panic!("I-14: {error}"),
            Err(error) => return Err(error.to_string()),
        };
        let mut cut_from = None;
        for Cut { stream, start, end, epoch } in cut {
            let change = {
                let mut state = place.lock();
                if stream == METADATA_STREAM {
                    cut_from = Some(start);
                    let shard = state.shard();
                    place.cluster.oracle(|oracle| oracle.note_cut(place.number, shard, start..end));
                }
                let change = state.shard().truncate(stream, start, epoch);
                place.note_given(&mut state);
                change.map_err(|error| error.to_string())?
            };
            place.wait_for(|_| change.try_receipt()).await.map_err(|error| error.to_string())?;
        }
        let promised = place.lock().promised.filter(|other| other.epoch > promise.epoch);
        let promised = promised.or(Some(promise));
        let tokens = {
            let mut state = place.lock();
            let facts = facts(&state, promised, Some(promise));
            place.save(&mut state, &facts)
        };
        self.saved(tokens).await;
        let mut state = place.lock();
        let state = &mut *state;
        (state.promised, state.begun) = (promised, Some(promise));
        place.begin_applying(state, promise.epoch, cut_from);
        place.cluster.oracle(|oracle| {
            oracle.note_begun(place.number, promise, start, leads);
        });
        if !leads {
            return Ok(Begun::Following);
        }
        let (members, voters) = (state.members.clone(), state.voters.clone());
        let held = state.all_held();
        let leading = Leading::new(place, state.shard(), promise.epoch, held, &members, &voters);
        state.part = Part::Leading(Box::new(leading));
        Ok(Begun::Leading(SimLed { place: place.clone(), epoch: promise.epoch }))
    }

    /// An epoch begins here.
    async fn begin_as(&self, promise: Promise, begins: Begins) -> Result<Begun<SimLed>, String> {
        let place = &self.0;
        let _one = place.driving.lock().await;
        {
            let state = place.lock();
            if state.begun.is_some_and(|begun| begun.epoch >= promise.epoch) {
                return Ok(Begun::Before);
            }
            let same = state.promised.filter(|promised| promised.epoch == promise.epoch);
            if let Some(promised) = same.filter(|promised| *promised != promise) {
                return Err(format!("epoch {} is promised to another run", promised.epoch));
            }
        }
        self.change(&format!("epoch {} begins", promise.epoch)).await;
        let begun = self.try_begin(promise, begins).await;
        place.lock().is_changing = false;
        begun
    }
}

/// Whether a promise shuts another one out.
fn is_in_the_way(promised: Promise, asked: Promise) -> bool {
    promised.epoch > asked.epoch || (promised.epoch == asked.epoch && promised != asked)
}

impl Replica for SimReplica {
    type Led = SimLed;

    fn id(&self) -> NodeId {
        self.0.id()
    }

    fn run(&self) -> RunId {
        self.0.run_id
    }

    fn engine(&self) -> [u8; 16] {
        self.0.engine()
    }

    fn begun(&self) -> Option<Promise> {
        self.0.lock().begun
    }

    fn unfit(&self) -> Option<String> {
        None
    }

    fn boottime_ns(&self) -> u64 {
        self.0.run.now_ns()
    }

    fn now_ms(&self) -> u64 {
        self.0.run.now_ns() / 1_000_000
    }

    async fn promise(&self, promise: Promise) -> Result<Standing, String> {
        let place = &self.0;
        let _one = place.driving.lock().await;
        let is_part_of_it = {
            let state = place.lock();
            if let Some(promised) = state.promised.filter(|other| is_in_the_way(*other, promise)) {
                return Err(format!("epoch {} is promised", promised.epoch));
            }
            state.begun == Some(promise) && !matches!(state.part, Part::Idle)
        };
        if is_part_of_it {
            self.hold().await;
            return Ok(standing(&place.lock()));
        }
        self.change(&format!("epoch {} is promised", promise.epoch)).await;
        let tokens = {
            let mut state = place.lock();
            let facts = facts(&state, Some(promise), state.begun);
            place.save(&mut state, &facts)
        };
        self.saved(tokens).await;
        place.lock().promised = Some(promise);
        place.cluster.oracle(|oracle| oracle.note_promise(place.number, promise));
        let mut state = place.lock();
        state.is_changing = false;
        Ok(standing(&state))
    }

    async fn begin(
        &self,
        promise: Promise,
        starts: Vec<(StreamId, u64)>,
    ) -> Result<Begun<SimLed>, String> {
        self.begin_as(promise, Begins::At(starts)).await
    }

    async fn begin_known(
        &self,
        promise: Promise,
        streams: Vec<(StreamId, Vec<EpochStart>)>,
    ) -> Result<(), String> {
        let table =
            |(stream, epochs)| (stream, EpochTable::from_entries(epochs).expect("in order"));
        let tables = streams.into_iter().map(table).collect();
        self.begin_as(promise, Begins::Known(tables)).await.map(drop)
    }

    fn epochs(&self) -> Vec<(StreamId, Vec<EpochStart>)> {
        let mut state = self.0.lock();
        let shard = state.shard();
        let streams = shard.streams().into_iter().map(|summary| summary.stream);
        let streams = streams.filter(|stream| is_replicated(*stream));
        streams.map(|stream| (stream, shard.epochs(stream))).collect()
    }

    async fn load_base(&self) -> Result<Option<Base>, String> {
        Ok(lock(&self.0.disk.base).clone())
    }

    async fn save_base(&self, base: Base) -> Result<(), String> {
        self.0.cluster.oracle(|oracle| oracle.counts.bases += 1);
        *lock(&self.0.disk.base) = Some(base);
        Ok(())
    }

    async fn extend(&self, epoch: u64, base: u64, records: Vec<Bytes>) -> Result<(), AddError> {
        let place = &self.0;
        let end = base + records.len() as u64;
        let mut lacking_ns = None;
        let mut step = |state: &mut State| {
            step_extend(place, state, epoch, base, &records, &mut lacking_ns).transpose()
        };
        place.wait_for(&mut step).await?;
        let mut state = place.lock();
        let state = &mut *state;
        let table = EpochTable::from_entries(state.shard().epochs(METADATA_STREAM));
        let table = table.unwrap_or_default();
        let of = |offset: u64| table.epoch_at(offset);
        if end > base && (of(base) != epoch || of(end - 1) != epoch) {
            return Err(AddError::Failed(format!(
                "offsets {base}..{end} are not of epoch {epoch}"
            )));
        }
        place.cluster.oracle(|oracle| {
            oracle.note_extended(place.number, state.shard.as_ref().expect("it lives"), end);
        });
        match &mut state.part {
            Part::Following(following) => following.core.handle_committed(METADATA_STREAM, end),
            Part::Leading(leading) => leading.handle_committed(METADATA_STREAM, end),
            Part::Idle => {}
        }
        let known = state.committed.entry(METADATA_STREAM).or_default();
        *known = end.max(*known);
        Ok(())
    }

    async fn fetch(
        &self,
        from: &Member,
        wanted: Vec<(StreamId, Range<u64>)>,
    ) -> Result<(), String> {
        let place = &self.0;
        let changes = {
            let state = place.lock();
            if state.is_changing || matches!(state.part, Part::Leading(_)) {
                return Err("this node changes its part, or leads".to_owned());
            }
            state.changes
        };
        for (stream, range) in wanted {
            let (theirs, frames) =
                place.cluster.fetch(place.number, from.node, stream, range.clone()).await?;
            let header = |frame: &Bytes| {
                ringwal_engine::format::FrameHeader::verify(frame).expect("just read").0
            };
            let end = frames.last().map_or(range.start, |frame| header(frame).end_offset());
            let Held { trimmed, epochs, .. } = theirs;
            let history = History { stream, trimmed, epochs };
            if part(&place.lock().held(stream), &history) != Parting::Nowhere {
                return Err(format!("node {} has another history of stream {stream}", from.node));
            }
            if end < range.end {
                return Err(format!("node {} has stream {stream} up to {end} only", from.node));
            }
            let mut tokens: Vec<AppendBatch> = Vec::new();
            for frame in frames {
                let give = |state: &mut State| {
                    if state.changes != changes || state.is_changing {
                        return Some(Err("this node has changed its part".to_owned()));
                    }
                    let given = state.shard().append_frame(&frame);
                    place.note_given(state);
                    match given {
                        Ok(token) => Some(Ok(token)),
                        Err(AppendError::Full { .. }) => None,
                        Err(error) => Some(Err(error.to_string())),
                    }
                };
                tokens.push(place.wait_for(give).await?);
            }
            for token in tokens {
                let taken = place.wait_for(|_| token.try_receipt()).await;
                taken.map_err(|error| error.to_string())?;
            }
        }
        Ok(())
    }

    fn set_members(
        &self,
        nodes: Vec<Member>,
        voters: Vec<BTreeSet<NodeId>>,
        _engines: BTreeMap<NodeId, [u8; 16]>,
    ) {
        let mut state = self.0.lock();
        if let Part::Leading(leading) = &mut state.part {
            leading.set_members(&self.0, &nodes, &voters);
        }
        (state.members, state.voters) = (nodes, voters);
    }

    fn metadata_end(&self) -> u64 {
        self.0.lock().end(METADATA_STREAM)
    }

    fn committed_ends(&self) -> Vec<(StreamId, u64)> {
        self.0.lock().committed.iter().map(|(stream, end)| (*stream, *end)).collect()
    }

    fn standing(&self) -> Standing {
        standing(&self.0.lock())
    }

    async fn read(&self, offsets: Range<u64>) -> Result<Vec<Bytes>, String> {
        let mut state = self.0.lock();
        let records = state.shard().read(METADATA_STREAM, offsets);
        let records = records.map_err(|error| error.to_string())?;
        let bytes = |record: Result<Record, ReadError>| {
            let record = record.map_err(|error| error.to_string())?;
            Ok(Bytes::copy_from_slice(record.payload()))
        };
        records.map(bytes).collect()
    }

    async fn outcome(&self, epoch: u64, offset: u64) -> Result<Applied, OutcomeError> {
        let place = &self.0;
        let look = |state: &mut State| {
            let superseded = |end: usize, epoch: u64| {
                OutcomeError::Superseded(Progress { epoch, end: end as u64 })
            };
            if let Some((of, applied)) = state.outcomes.get(offset as usize) {
                let is_it = *of == epoch;
                return Some(is_it.then_some(*applied).ok_or_else(|| superseded(0, *of)));
            }
            let begun = state.begun.map_or(0, |begun| begun.epoch);
            (begun > epoch).then(|| Err(superseded(state.outcomes.len(), begun)))
        };
        place.wait_for(look).await
    }
}

/// One look at records of an entry: they are durable, or it is waited for something.
fn step_extend(
    place: &Place,
    state: &mut State,
    epoch: u64,
    base: u64,
    records: &[Bytes],
    lacking_ns: &mut Option<u64>,
) -> Result<Option<()>, AddError> {
    if state.begun.is_none_or(|begun| begun.epoch != epoch) {
        return Err(AddError::NotBegun);
    }
    if state.is_changing {
        return Ok(None);
    }
    let (stream, end, now_ns) = (METADATA_STREAM, base + records.len() as u64, place.run.now_ns());
    let failed = |error: &dyn std::fmt::Display| AddError::Failed(error.to_string());
    let shard = state.shard.as_mut().expect("the process lives");
    if let Part::Following(following) = &mut state.part {
        loop {
            let Some((next, durable)) = following.extendable(shard, stream) else {
                return Ok(None);
            };
            if durable >= end {
                return Ok(Some(()));
            }
            if next >= end || !following.has_room() {
                return Ok(None);
            }
            if next < base {
                let since_ns = *lacking_ns.get_or_insert(now_ns);
                if now_ns - since_ns < GAP_NS {
                    return Ok(None);
                }
                return Err(AddError::Lacks { end: durable });
            }
            let rest = &records[(next - base) as usize..];
            let frame = frame_of(stream, epoch, next, rest, BATCH_BYTES / 2);
            following.take_frame(shard, frame).map_err(|error| failed(&error))?;
            if following.core.next_offset(stream).is_none_or(|now| now <= next) {
                return Ok(None);
            }
        }
    }
    let durable = shard.end(stream);
    if durable >= end {
        return Ok(Some(()));
    }
    if !state.extending.is_empty() {
        return Ok(None);
    }
    if durable < base {
        let is_idle = matches!(state.part, Part::Idle);
        if is_idle && now_ns - state.idle_since_ns < GAP_NS {
            return Ok(None);
        }
        return Err(AddError::Lacks { end: durable });
    }
    let mut next = durable;
    while next < end {
        let frame =
            frame_of(stream, epoch, next, &records[(next - base) as usize..], BATCH_BYTES / 2);
        let header = ringwal_engine::format::FrameHeader::verify(&frame).expect("just made").0;
        match shard.append_frame(&frame) {
            Ok(token) => state.extending.push(token),
            Err(AppendError::Full { .. }) => break,
            Err(error) => return Err(failed(&error)),
        }
        next = header.end_offset();
    }
    place.note_given(state);
    Ok(None)
}

/// Raft's streams of a place.
pub struct SimJournal(pub Arc<Place>);

impl Journal for SimJournal {
    async fn append(
        &self,
        stream: StreamId,
        records: &[&[u8]],
    ) -> Result<AppendBatch, AppendError> {
        let give = |state: &mut State| {
            let given = state.shard().append_batch(stream, records);
            self.0.note_given(state);
            (!matches!(given, Err(AppendError::Full { .. }))).then_some(given)
        };
        self.0.wait_for(give).await
    }

    fn truncate(&self, stream: StreamId, start: u64, epoch: u64) -> Result<Change, AppendError> {
        let mut state = self.0.lock();
        self.0.note_given(&mut state);
        state.shard().truncate(stream, start, epoch)
    }

    fn skip_to(&self, stream: StreamId, before: u64) -> Result<Change, AppendError> {
        let mut state = self.0.lock();
        self.0.note_given(&mut state);
        state.shard().skip_to(stream, before)
    }

    fn held(&self, stream: StreamId) -> HeldByRaft {
        let held = self.0.lock().held(stream);
        let epoch = held.epochs.last().epoch;
        HeldByRaft { trimmed: held.trimmed, end: held.end, epoch }
    }

    async fn read(
        &self,
        stream: StreamId,
        range: Range<u64>,
        bytes_max: usize,
    ) -> Result<Vec<Record>, ReadError> {
        let records = self.0.lock().shard().read(stream, range)?;
        let mut bytes = 0;
        let until_full = |record: &Result<Record, ReadError>| {
            let is_wanted = bytes < bytes_max;
            bytes += record.as_ref().map_or(0, |record| record.payload().len());
            is_wanted
        };
        records.take_while(until_full).collect()
    }

    fn record_bytes_max(&self) -> usize {
        // As Engine::record_bytes_max: a batch less its header and those of a frame and a record.
        BATCH_BYTES - 128 - 4
    }
}
