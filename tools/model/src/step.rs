//! The steps: each is one thing that one node does or that happens to it, at once. Each function begins
//! with the rules that allow it (`?` and `then_some`), and ends with what it changes.

use stateright::{Model, Property};

use crate::configuration::{Configuration, Variant};
use crate::properties::{self, Violation};
use crate::state::{
    Answer, Begin, EPOCHS_MAX, Entry, LOG_MAX, Leads, Logged, MAJORITY, NODES, Node, Record,
    Records, State, epoch_at,
};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    Elect { node: usize },
    LoseLease { node: usize },
    RenewLease { node: usize },
    Append { node: usize },
    Flush { node: usize },
    TakeFrame { node: usize },
    Report { node: usize, to: usize },
    Commit { node: usize },
    LearnWatermark { node: usize, from: usize },
    Answer { node: usize },
    SwitchOff { node: usize },
    SwitchOn { node: usize },
    QueueExtend { node: usize },
    Propose { node: usize, again: bool },
    Apply { node: usize },
    Promise { node: usize, to: usize },
    Fetch { node: usize },
    Crash { node: usize, keep: bool, replay: bool },
    LoseDisk { node: usize },
    Readmit { node: usize, by: usize },
    Snapshot { node: usize, from: usize },
    Feed { node: usize },
}

/// The model: a configuration, and the actions that it allows at all.
pub struct Epochs {
    pub configuration: Configuration,
    actions: Vec<Action>,
}

impl Epochs {
    pub fn new(configuration: Configuration) -> Self {
        let mut actions = Vec::new();
        for node in 0..NODES {
            actions.extend(actions_of(node, &configuration));
        }
        Self { configuration, actions }
    }

    fn is(&self, variant: Variant) -> bool {
        self.configuration.variant == Some(variant)
    }
}

fn actions_of(node: usize, configuration: &Configuration) -> Vec<Action> {
    use Action::*;
    let mut actions = vec![
        Append { node },
        Flush { node },
        TakeFrame { node },
        Commit { node },
        Answer { node },
        Apply { node },
        Promise { node, to: node },
        Fetch { node },
        Propose { node, again: false },
        Elect { node },
    ];
    for other in (0..NODES).filter(|other| *other != node) {
        actions.push(Report { node, to: other });
        actions.push(LearnWatermark { node, from: other });
        actions.push(Promise { node, to: other });
        if configuration.budget.snapshots > 0 {
            actions.push(Snapshot { node, from: other });
        }
        if configuration.budget.disks > 0 {
            actions.push(Readmit { node, by: other });
        }
    }
    if configuration.lease {
        actions.extend([LoseLease { node }, RenewLease { node }]);
    }
    if configuration.budget.extends > 0 {
        actions.extend([SwitchOff { node }, SwitchOn { node }, QueueExtend { node }]);
        actions.push(Propose { node, again: true });
    }
    if configuration.budget.crashes > 0 {
        actions.push(Crash { node, keep: false, replay: false });
        actions.push(Crash { node, keep: true, replay: false });
        if configuration.replays {
            actions.push(Crash { node, keep: false, replay: true });
        }
    }
    if configuration.budget.disks > 0 {
        actions.push(LoseDisk { node });
    }
    if configuration.machine {
        actions.push(Feed { node });
    }
    actions
}

impl Model for Epochs {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State::new(&self.configuration)]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.violations == 0 {
            actions.extend_from_slice(&self.actions);
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let next = match action {
            Action::Elect { node } => self.elect(state, node),
            Action::LoseLease { node } => lose_lease(state, node),
            Action::RenewLease { node } => renew_lease(state, node),
            Action::Append { node } => self.append(state, node),
            Action::Flush { node } => flush(state, node),
            Action::TakeFrame { node } => self.take_frame(state, node),
            Action::Report { node, to } => self.report(state, node, to),
            Action::Commit { node } => self.commit(state, node),
            Action::LearnWatermark { node, from } => learn_watermark(state, node, from),
            Action::Answer { node } => self.answer(state, node),
            Action::SwitchOff { node } => switch_off(state, node),
            Action::SwitchOn { node } => self.switch_on(state, node),
            Action::QueueExtend { node } => self.queue_extend(state, node),
            Action::Propose { node, again } => propose(state, node, again),
            Action::Apply { node } => self.apply(state, node),
            Action::Promise { node, to } => self.promise(state, node, to),
            Action::Fetch { node } => fetch(state, node),
            Action::Crash { node, keep, replay } => self.crash(state, node, keep, replay),
            Action::LoseDisk { node } => self.lose_disk(state, node),
            Action::Readmit { node, by } => self.readmit(state, node, by),
            Action::Snapshot { node, from } => self.snapshot(state, node, from),
            Action::Feed { node } => feed(state, node),
        }?;
        (next != *state).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = properties::always();
        properties.extend(self.configuration.reaches.iter().map(|reach| reach.property()));
        properties
    }
}

/// Raft: whoever is elected has all that is committed in its log, and a term has one leader. A majority
/// votes, and no voter does while a lease that it granted may be valid: so nobody has one.
impl Epochs {
    fn elect(&self, state: &State, node: usize) -> Option<State> {
        let voters = state.nodes.iter().filter(|it| self.may_vote(it)).count();
        let leased = state.nodes.iter().any(|it| it.leads.is_some_and(|leads| leads.lease));
        let waits = self.configuration.lease && leased && !self.is(Variant::NoLease);
        (self.may_vote(&state.nodes[node])
            && voters >= MAJORITY
            && state.term < self.configuration.terms
            && !waits)
            .then_some(())?;
        let mut next = *state;
        next.term += 1;
        next.log.push(Logged { term: next.term, entry: Entry::Blank });
        next.nodes[node].leads = Some(Leads::elected(next.term));
        Some(next)
    }

    fn may_vote(&self, node: &Node) -> bool {
        node.votes || self.is(Variant::BlankVotes)
    }

    /// I-13: whether the fast path may answer here.
    fn holds_lease(&self, state: &State, leads: &Leads) -> bool {
        match self.configuration.lease {
            _ if self.is(Variant::NoLease) => true,
            true => leads.lease,
            false => leads.epoch == state.term,
        }
    }
}

fn lose_lease(state: &State, node: usize) -> Option<State> {
    let mut next = *state;
    next.nodes[node].leads.as_mut()?.lease = false;
    Some(next)
}

/// A majority answers heartbeats of the last term only.
fn renew_lease(state: &State, node: usize) -> Option<State> {
    let mut next = *state;
    let leads = next.nodes[node].leads.as_mut()?;
    (leads.open && leads.epoch == state.term).then_some(())?;
    leads.lease = true;
    Some(next)
}

/// The fast path.
impl Epochs {
    fn append(&self, state: &State, node: usize) -> Option<State> {
        let leads = state.nodes[node].open()?;
        (leads.fast && state.left.records > 0 && self.holds_lease(state, &leads)).then_some(())?;
        let mut next = *state;
        next.left.records -= 1;
        next.values += 1;
        let record = Record { epoch: leads.epoch, value: next.values };
        next.nodes[node].stream.push(record);
        let sent = &mut next.sent[usize::from(leads.epoch)];
        if self.is(Variant::LeadershipRestored) {
            sent.truncate(next.nodes[node].stream.len() - 1);
        }
        sent.push(record);
        Some(next)
    }

    /// A frame may be under way for as long as it likes: what the leader of this epoch ever sent is taken,
    /// whatever has become of it. What it takes continues its stream in the epoch that it has applied.
    fn take_frame(&self, state: &State, node: usize) -> Option<State> {
        let follower = &state.nodes[node];
        let epoch = follower.epoch();
        let leads_it = follower.leads.is_some_and(|leads| leads.epoch == epoch);
        (follower.promised == epoch && !leads_it).then_some(())?;
        let record = *state.sent[usize::from(epoch)].get(follower.stream.len())?;
        let mut next = *state;
        let follower = &mut next.nodes[node];
        follower.stream.push(record);
        if !self.configuration.in_flight {
            follower.flush();
        }
        Some(next)
    }

    fn report(&self, state: &State, node: usize, to: usize) -> Option<State> {
        let follower = &state.nodes[node];
        let leads = state.nodes[to].leads.filter(|leads| leads.open)?;
        let session = follower.promised == leads.epoch || follower.reports_late;
        let applied = follower.epoch() == leads.epoch || self.is(Variant::WatermarkFromUnapplied);
        (session && applied && follower.votes && follower.leads.is_none_or(|it| !it.open))
            .then_some(())?;
        let mut next = *state;
        let reported = &mut next.nodes[to].leads.as_mut()?.reported[node];
        *reported = (*reported).max(follower.durable);
        Some(next)
    }

    fn commit(&self, state: &State, node: usize) -> Option<State> {
        let leader = &state.nodes[node];
        let leads = leader.open()?;
        let mut ends = leads.reported;
        ends[node] = if leader.votes { leader.durable } else { 0 };
        ends.sort_unstable();
        let mut watermark = ends[NODES - MAJORITY];
        if !self.is(Variant::WatermarkAboveOwnEnd) {
            watermark = watermark.min(leader.durable);
        }
        (watermark > leader.watermark).then_some(())?;
        let mut next = *state;
        next.nodes[node].watermark = watermark;
        let records = state.sent[usize::from(leads.epoch)];
        claim(&mut next, leads.epoch, &records[..usize::from(watermark)]);
        Some(next)
    }

    fn answer(&self, state: &State, node: usize) -> Option<State> {
        let leader = &state.nodes[node];
        let leads = leader.open()?;
        let own = leader.stream[..usize::from(leader.durable)].last()?.epoch == leads.epoch;
        (leads.fast && own && self.holds_lease(state, &leads)).then_some(())?;
        let mut next = *state;
        if leads.epoch < state.term {
            next.violate(Violation::Deposed);
        }
        Some(next)
    }
}

fn flush(state: &State, node: usize) -> Option<State> {
    let mut next = *state;
    next.nodes[node].flush();
    Some(next)
}

fn learn_watermark(state: &State, node: usize, from: usize) -> Option<State> {
    let leads = state.nodes[from].open()?;
    let follower = &state.nodes[node];
    let watermark = state.nodes[from].watermark.min(follower.durable);
    let session = follower.promised == leads.epoch && follower.epoch() == leads.epoch;
    (session && watermark > follower.watermark).then_some(())?;
    let mut next = *state;
    raise_watermark(&mut next, node, watermark);
    Some(next)
}

/// Somebody holds this to be committed. The oracle compares it with what was committed before and with
/// every later epoch that is open already.
fn claim(state: &mut State, epoch: u8, records: &[Record]) {
    for (offset, record) in records.iter().enumerate() {
        match state.committed.get(offset) {
            Some(committed) if committed != record => state.violate(Violation::TwoCommitted),
            Some(_) => state.committed_in[offset] = state.committed_in[offset].min(epoch),
            None => {
                state.committed.push(*record);
                state.committed_in[offset] = epoch;
            }
        }
        for later in epoch + 1..=state.term {
            if state.is_open(later) && state.sent[usize::from(later)].get(offset) != Some(record) {
                state.violate(Violation::Lost);
            }
        }
    }
}

fn raise_watermark(state: &mut State, node: usize, watermark: u8) {
    let records = state.nodes[node].stream;
    if state.nodes[node].watermark > watermark {
        state.violate(Violation::WatermarkFell);
    }
    if usize::from(watermark) > records.len() {
        state.violate(Violation::WatermarkAboveEnd);
        return;
    }
    state.nodes[node].watermark = watermark;
    let epoch = state.nodes[node].epoch();
    claim(state, epoch, &records[..usize::from(watermark)]);
}

/// Switching, and what goes through Raft.
impl Epochs {
    fn switch_on(&self, state: &State, node: usize) -> Option<State> {
        let leader = &state.nodes[node];
        let leads = leader.open()?;
        let waiting =
            leader.queued != Entry::Nothing || usize::from(leader.applied) < state.log.len();
        (!leads.fast && (!waiting || self.is(Variant::SwitchOnEarly))).then_some(())?;
        let mut next = *state;
        next.nodes[node].leads.as_mut()?.fast = true;
        Some(next)
    }

    /// An entry begins where the one before it ends, if that is not applied yet, and at the watermark
    /// otherwise: it carries what a majority may lack, and then the new command.
    fn queue_extend(&self, state: &State, node: usize) -> Option<State> {
        let leader = &state.nodes[node];
        let leads = leader.open()?;
        (!leads.fast && state.left.extends > 0 && leader.queued == Entry::Nothing).then_some(())?;
        let waiting = state.log.iter().skip(usize::from(leader.applied)).rev();
        let before = waiting.filter_map(|logged| match &logged.entry {
            Entry::Extend { epoch, base, records } if *epoch == leads.epoch => {
                Some(base + records.len() as u8)
            }
            _ => None,
        });
        let mut next = *state;
        let mut records = Records::new();
        let base = match before.max() {
            Some(end) => end,
            None if self.is(Variant::ExtendWithoutRecords) => leader.end(),
            None => {
                records.extend(&leader.stream[usize::from(leader.watermark)..]);
                leader.watermark
            }
        };
        next.left.extends -= 1;
        next.values += 1;
        records.push(Record { epoch: leads.epoch, value: next.values });
        next.nodes[node].queued = Entry::Extend { epoch: leads.epoch, base, records };
        Some(next)
    }

    fn apply(&self, state: &State, node: usize) -> Option<State> {
        let index = usize::from(state.nodes[node].applied);
        let logged = *state.log.get(index)?;
        let mut next = *state;
        match logged.entry {
            Entry::EpochStart { epoch, start } => {
                let this_term = epoch == logged.term || self.is(Variant::EpochStartOfAnotherTerm);
                if this_term && epoch > state.nodes[node].epoch() {
                    self.begin_epoch(&mut next, node, epoch, start);
                }
            }
            Entry::Extend { epoch, base, records } => {
                let this_term = epoch == logged.term || self.is(Variant::ExtendOfAnotherTerm);
                let over = epoch < state.nodes[node].epoch();
                if this_term && !over || over && self.is(Variant::ExtendOfOldEpoch) {
                    self.extend(&mut next, node, epoch, usize::from(base), &records)?;
                }
            }
            Entry::Blank | Entry::Nothing => {}
        }
        next.nodes[node].applied += 1;
        Some(next)
    }

    fn begin_epoch(&self, state: &mut State, node: usize, epoch: u8, start: u8) {
        state.nodes[node].table.push(Begin { epoch, start });
        self.cut(state, node);
        let it = &mut state.nodes[node];
        it.promised = it.promised.max(epoch);
        match it.leads.as_mut() {
            Some(leads) if leads.epoch == epoch => leads.open = true,
            Some(leads) if leads.epoch < epoch => it.leads = None,
            _ => {}
        }
        if it.leads.is_some_and(|leads| leads.epoch == epoch) {
            let stream = it.stream;
            if it.end() < start {
                state.violate(Violation::Hole);
            }
            let lost = state.committed.iter().enumerate().any(|(offset, record)| {
                state.committed_in[offset] < epoch && stream.get(offset) != Some(record)
            });
            if lost {
                state.violate(Violation::Lost);
            }
            state.sent[usize::from(epoch)] = stream;
            state.opened |= 1 << epoch;
        }
    }

    /// I-17: from the first record on that carries another epoch than the table says, or that lies behind
    /// the start of an epoch that it is not of.
    fn cut(&self, state: &mut State, node: usize) {
        let it = &mut state.nodes[node];
        let other = |(offset, record): (usize, &Record)| {
            (record.epoch != epoch_at(&it.table, offset)).then_some(offset)
        };
        let Some(from) = it.stream.iter().enumerate().find_map(other) else { return };
        let cut = it.stream;
        it.stream.truncate(from);
        it.durable = it.durable.min(from as u8);
        if !self.is(Variant::ApplyNotReverted) {
            it.machine.truncate(from);
        }
        let committed = |offset: usize| state.committed.get(offset) == Some(&cut[offset]);
        if from < usize::from(it.watermark) || (from..cut.len()).any(committed) {
            state.violate(Violation::CutCommitted);
        }
    }

    /// What is missing below `base` comes from a node that has applied the entry before this one; it waits
    /// until there is one. Then what is missing of `records` is added; nothing is taken away.
    fn extend(
        &self,
        state: &mut State,
        node: usize,
        epoch: u8,
        base: usize,
        records: &Records,
    ) -> Option<()> {
        if state.nodes[node].stream.len() < base {
            if self.is(Variant::ExtendWithoutRecords) {
                return Some(()); // Frames are to bring it, some day.
            }
            self.fetch_below(state, node, base)?;
        }
        let leads = state.nodes[node].leads.is_some_and(|leads| leads.epoch == epoch);
        let it = &mut state.nodes[node];
        let before = it.stream;
        if self.is(Variant::ExtendCuts) {
            it.stream.truncate(base);
        }
        for (at, record) in records.iter().enumerate() {
            if base + at >= it.stream.len() {
                it.stream.push(*record);
            }
        }
        let stream = it.stream;
        let end = (base + records.len()) as u8;
        if !self.is(Variant::IndexBeforeEffect) || leads {
            it.flush();
            let watermark = it.watermark.max(end);
            raise_watermark(state, node, watermark);
        }
        if !stream.starts_with(&before) {
            state.violate(Violation::ExtendCut);
        }
        if leads {
            state.sent[usize::from(epoch)] = stream;
        }
        Some(())
    }

    fn fetch_below(&self, state: &mut State, node: usize, base: usize) -> Option<()> {
        let it = &state.nodes[node];
        let agrees = |records: &[Record]| {
            records.iter().enumerate().all(|(offset, record)| {
                offset < it.stream.len() || record.epoch == epoch_at(&it.table, offset)
            })
        };
        let source = *state.nodes.iter().find(|other| {
            other.applied >= it.applied
                && usize::from(other.durable) >= base
                && agrees(&other.stream[..base])
        })?;
        let it = &mut state.nodes[node];
        let end = it.stream.len();
        it.stream.extend(&source.stream[end..base]);
        it.flush();
        Some(())
    }
}

fn switch_off(state: &State, node: usize) -> Option<State> {
    let leader = &state.nodes[node];
    let leads = leader.open()?;
    (leads.fast && state.left.switches > 0 && leader.durable == leader.end()).then_some(())?;
    let mut next = *state;
    next.left.switches -= 1;
    next.nodes[node].leads.as_mut()?.fast = false;
    Some(next)
}

/// Only whoever was elected last can have an entry committed, and it is so at once: an entry that is
/// proposed and lost is one that stays in the queue for ever. It may have waited there since an earlier
/// term, and an `Extend` may be proposed twice.
fn propose(state: &State, node: usize, again: bool) -> Option<State> {
    let it = &state.nodes[node];
    let leads = it.leads.filter(|leads| leads.epoch == state.term)?;
    (it.queued != Entry::Nothing && state.log.len() < LOG_MAX).then_some(())?;
    let mut next = *state;
    if again {
        (matches!(it.queued, Entry::Extend { .. }) && state.left.repeats > 0).then_some(())?;
        next.left.repeats -= 1;
    } else {
        next.nodes[node].queued = Entry::Nothing;
    }
    next.log.push(Logged { term: leads.epoch, entry: it.queued });
    Some(next)
}

/// A new leader.
impl Epochs {
    fn promise(&self, state: &State, node: usize, to: usize) -> Option<State> {
        let asker = &state.nodes[to];
        let leads = asker.leads.filter(|leads| !leads.open && leads.answers[node].is_none())?;
        let blank = |logged: &Logged| logged.term == leads.epoch && logged.entry == Entry::Blank;
        let blank = state.log.iter().position(blank)?;
        let it = &state.nodes[node];
        let applied = it.applied >= asker.applied || self.is(Variant::PromiseBeforeApplied);
        (usize::from(asker.applied) > blank
            && applied
            && self.may_vote(it)
            && it.promised <= leads.epoch)
            .then_some(())?;
        let mut next = *state;
        let it = &mut next.nodes[node];
        if self.is(Variant::PromiseWithBatchesInFlight) && node != to {
            it.reports_late = it.durable < it.end();
        } else {
            it.flush();
        }
        it.promised = leads.epoch;
        it.leads = it.leads.filter(|own| own.epoch >= leads.epoch);
        let durable = &it.stream[..usize::from(it.durable)];
        let answer = Answer {
            last_epoch: durable.last().map_or(0, |record| record.epoch),
            end: it.durable,
            watermark: it.watermark,
        };
        next.nodes[to].leads.as_mut()?.answers[node] = Some(answer);
        Some(next)
    }
}

/// With answers from a majority: fetch what is greatest, make it durable, queue the `EpochStart`.
fn fetch(state: &State, node: usize) -> Option<State> {
    let it = &state.nodes[node];
    let leads = it.leads.filter(|leads| !leads.open)?;
    let own = leads.answers[node]?;
    let answers = leads.answers.iter().enumerate();
    let answers = answers.filter_map(|(from, answer)| answer.map(|it| (from, it)));
    let proposed = state.log.iter().any(
        |logged| matches!(logged.entry, Entry::EpochStart { epoch, .. } if epoch == leads.epoch),
    );
    (answers.clone().count() >= MAJORITY && !proposed && it.queued == Entry::Nothing)
        .then_some(())?;
    let known = answers.clone().map(|(_, answer)| answer.watermark).max()?;
    let (from, best) = answers.max_by_key(|(_, answer)| (answer.last_epoch, answer.end))?;
    let source = &state.nodes[from];
    (source.durable >= best.end).then_some(())?; // Its disk may have gone since.
    let mut next = *state;
    let it = &mut next.nodes[node];
    let end = usize::from(best.end);
    if it.stream.len() < end {
        let from = it.stream.len();
        it.stream.extend(&source.stream[from..end]);
    }
    it.flush();
    it.queued = Entry::EpochStart { epoch: leads.epoch, start: it.end() };
    let (mine, end) = (it.watermark, it.end());
    if (own.last_epoch, own.end) < (best.last_epoch, best.end) && best.end < end {
        next.violate(Violation::Hole); // It would have to cut to take what is greatest.
    }
    if known > end {
        next.violate(Violation::Lost);
    } else {
        raise_watermark(&mut next, node, known.max(mine));
    }
    Some(next)
}

/// Crashes, disks and snapshots.
impl Epochs {
    /// `keep`: it was killed, and what the kernel held is made durable by the next open. `replay`: the last
    /// entry's effect was durable and its index not yet.
    fn crash(&self, state: &State, node: usize, keep: bool, replay: bool) -> Option<State> {
        let it = &state.nodes[node];
        let in_flight = it.durable < it.end();
        (state.left.crashes > 0 && (!keep || in_flight) && (!replay || it.applied > 0))
            .then_some(())?;
        let mut next = *state;
        next.left.crashes -= 1;
        let it = &mut next.nodes[node];
        if keep {
            it.flush();
        }
        it.stream.truncate(usize::from(it.durable));
        it.machine.truncate(usize::from(it.watermark));
        it.applied -= u8::from(replay);
        it.queued = Entry::Nothing;
        it.reports_late = false;
        it.leads = match it.leads {
            Some(mut leads) if self.is(Variant::LeadershipRestored) => {
                leads.reported = [0; NODES];
                Some(leads)
            }
            _ => None,
        };
        if self.is(Variant::PromiseNotPersisted) {
            it.promised = it.epoch();
        }
        if it.watermark > it.durable {
            next.violate(Violation::WatermarkAboveEnd); // The next open would call it corruption.
        }
        Some(next)
    }

    fn lose_disk(&self, state: &State, node: usize) -> Option<State> {
        (state.left.disks > 0).then_some(())?;
        let mut next = *state;
        next.left.disks -= 1;
        next.nodes[node] = Node { votes: false, ..Node::new() };
        if !self.is(Variant::ReportOutlivesDisk) {
            for leads in next.nodes.iter_mut().filter_map(|it| it.leads.as_mut()) {
                leads.reported[node] = 0; // Reports are kept by engine id (I-15).
            }
        }
        Some(next)
    }

    /// The leader admits it when it has applied all and is durable up to the watermark, which must have
    /// reached the start of the epoch: before that, more may be committed than the leader knows.
    fn readmit(&self, state: &State, node: usize, by: usize) -> Option<State> {
        let leader = &state.nodes[by];
        let leads = leader.open()?;
        let it = &state.nodes[node];
        let start = leader.table.last()?.start;
        let known = leader.watermark >= start || self.is(Variant::ReadmitBelowStart);
        (leads.epoch == state.term
            && !it.votes
            && usize::from(it.applied) == state.log.len()
            && it.promised == leads.epoch
            && it.durable >= leader.watermark
            && known)
            .then_some(())?;
        let mut next = *state;
        next.nodes[node].votes = true;
        Some(next)
    }

    /// A snapshot of Raft carries the table and the watermark. What it skips of the log may have carried
    /// records, so those below its watermark must be here before it counts as installed.
    fn snapshot(&self, state: &State, node: usize, from: usize) -> Option<State> {
        let source = state.nodes[from];
        (state.left.snapshots > 0 && source.applied > state.nodes[node].applied).then_some(())?;
        let mut next = *state;
        next.left.snapshots -= 1;
        let it = &mut next.nodes[node];
        it.applied = source.applied;
        it.table = source.table;
        let epoch = it.epoch();
        it.promised = it.promised.max(epoch);
        it.leads = it.leads.filter(|leads| leads.epoch > epoch);
        if !self.is(Variant::SnapshotWithoutCut) {
            self.cut(&mut next, node);
        }
        let it = &mut next.nodes[node];
        let watermark = source.watermark;
        let end = it.stream.len();
        if !self.is(Variant::SnapshotWithoutRecords) && end < usize::from(watermark) {
            it.stream.extend(&source.stream[end..usize::from(watermark)]);
            it.flush();
        }
        let known = it.watermark.max(watermark.min(it.durable));
        raise_watermark(&mut next, node, known);
        Some(next)
    }
}

fn feed(state: &State, node: usize) -> Option<State> {
    let mut next = *state;
    let it = &mut next.nodes[node];
    let (fed, durable) = (it.machine.len(), usize::from(it.durable));
    let records = it.stream;
    it.machine.extend(records.get(fed..durable)?);
    Some(next)
}

const _: () = assert!(EPOCHS_MAX > 3, "three terms, numbered from 1");
