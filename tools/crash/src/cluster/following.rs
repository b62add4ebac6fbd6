//! A node's part as follower: the frames that it appends, what it cuts and begins anew, and the
//! reports. Nothing is waited for, so that a crash may come at every point.

use std::collections::{BTreeMap, VecDeque};

use ringwal_engine::format::VerifiedFrame;
use ringwal_engine::{AppendBatch, AppendError, Change, StreamId};
use ringwal_replication::follower::{Follower, Worth};
use ringwal_replication::node_id::NodeId;

use super::oracle::Oracle;
use super::orphans::Keeping;
use super::store::Store;

/// See the module.
pub struct Following {
    pub core: Follower,
    /// Number of the leader's node.
    pub leader: usize,
    /// The session is over: what is under way gets its outcome, and nothing else is done.
    pub is_over: bool,
    appending: VecDeque<(StreamId, AppendBatch)>,
    changing: Vec<Changing>,
}

/// A stream that is cut, or begun anew.
struct Changing {
    stream: StreamId,
    at: u64,
    epoch: u64,
    is_anew: bool,
    step: Step,
}

enum Step {
    /// Until everything that was being appended has its outcome.
    Waiting,
    Keeping(Keeping),
    Changing(Change),
    Done,
}

/// What came of a frame.
#[derive(Copy, Clone, Eq, PartialEq)]
pub enum Taken {
    Yes,
    /// There is no room for it now.
    Later,
    /// It is damaged.
    Damaged,
}

impl Following {
    /// Begins a session; nothing is being appended.
    pub fn new(
        store: &Store,
        leader: usize,
        epoch: u64,
        committed: BTreeMap<StreamId, u64>,
    ) -> Self {
        let core = Follower::new(epoch, true, store.all_held(), committed);
        Self { core, leader, is_over: false, appending: VecDeque::new(), changing: Vec::new() }
    }

    /// Takes a frame.
    pub fn take_frame(&mut self, store: &mut Store, bytes: &[u8], oracle: &mut Oracle) -> Taken {
        let Ok(frame) = VerifiedFrame::verify(bytes) else { return Taken::Damaged };
        let stream = StreamId::new(frame.header.stream.get());
        let mut core_after = self.core.clone();
        if core_after.handle_frame(&frame.header) == Worth::Ignore {
            oracle.counts.ignored += 1;
            self.core = core_after;
            return Taken::Yes;
        }
        match store.of(stream).append_frame(bytes) {
            Ok(token) => {
                oracle.counts.frames += 1;
                self.core = core_after;
                self.appending.push_back((stream, token));
                Taken::Yes
            }
            Err(AppendError::Full { .. }) => Taken::Later,
            Err(error) => panic!("{error}"),
        }
    }

    /// Takes the receipts that have come, in any order between shards.
    pub fn settle(&mut self) {
        let core = &mut self.core;
        self.appending.retain(|(stream, token)| {
            let Some(receipts) = token.try_receipt() else { return true };
            let end = receipts.expect("the exact continuation").offsets().end;
            core.handle_durable(*stream, end, 1);
            false
        });
    }

    /// Begins to cut a stream.
    pub fn cut(&mut self, stream: StreamId, at: u64, epoch: u64) {
        let step = Step::Waiting;
        self.changing.push(Changing { stream, at, epoch, is_anew: false, step });
    }

    /// Begins to begin a stream anew.
    pub fn begin_anew(&mut self, stream: StreamId, at: u64, epoch: u64) {
        let step = Step::Waiting;
        self.changing.push(Changing { stream, at, epoch, is_anew: true, step });
    }

    /// Goes on with what is cut and begun anew.
    pub fn advance(&mut self, me: NodeId, store: &mut Store, oracle: &mut Oracle) {
        let mut changing = std::mem::take(&mut self.changing);
        for change in &mut changing {
            let is_settled = !self.appending.iter().any(|(stream, _)| *stream == change.stream);
            change.advance(is_settled, self.is_over, me, store, oracle);
            if !matches!(change.step, Step::Done) || self.is_over {
                continue;
            }
            if change.is_anew {
                oracle.counts.anew += 1;
                self.core.handle_begun_anew(change.stream, change.at);
            } else {
                self.core.handle_cut(change.stream, change.at);
            }
        }
        changing.retain(|change| !matches!(change.step, Step::Done));
        self.changing = changing;
    }

    /// Whether everything has its outcome.
    pub fn is_quiet(&self) -> bool {
        let is_done = |change: &Changing| match &change.step {
            Step::Changing(token) => token.try_receipt().is_some(),
            // Nothing has been changed yet, and nothing will be.
            _ => true,
        };
        self.appending.iter().all(|(_, token)| token.try_receipt().is_some())
            && self.changing.iter().all(is_done)
    }

    /// Whether a stream is being cut or begun anew.
    pub fn is_changing(&self) -> bool {
        !self.changing.is_empty()
    }
}

impl Changing {
    fn advance(
        &mut self,
        is_settled: bool,
        is_over: bool,
        me: NodeId,
        store: &mut Store,
        oracle: &mut Oracle,
    ) {
        let Self { stream, at, epoch, is_anew, .. } = *self;
        match &mut self.step {
            Step::Waiting | Step::Keeping(_) if is_over => self.step = Step::Done,
            Step::Waiting if is_settled => {
                let held = store.held(stream);
                let from = if is_anew { held.trimmed } else { at };
                let records = store.records(stream, from, held.end);
                oracle.note_cut(me, stream, &records, at);
                self.step = Step::Keeping(Keeping::new(stream, &records));
            }
            Step::Keeping(keeping) => {
                if !keeping.advance(store) {
                    return;
                }
                let shard = store.of(stream);
                let queued = match is_anew {
                    true => shard.begin_anew(stream, at, epoch),
                    false => shard.truncate(stream, at, epoch),
                };
                match queued {
                    Ok(token) => self.step = Step::Changing(token),
                    Err(AppendError::Full { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            Step::Changing(token) => {
                if let Some(outcome) = token.try_receipt() {
                    outcome.expect("it is allowed");
                    self.step = Step::Done;
                }
            }
            Step::Waiting | Step::Done => {}
        }
    }
}
