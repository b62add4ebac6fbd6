//! What must hold in every state, and what must happen somewhere, so that the rest means something.
//!
//! What one step must not do is marked by the step as a *violation*; nothing follows such a state. What a
//! state must be is looked at here.

use stateright::Property;

use crate::state::{Entry, RECORDS_MAX, State, epoch_at};
use crate::step::Epochs;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Violation {
    Lost,
    TwoCommitted,
    CutCommitted,
    Deposed,
    ExtendCut,
    WatermarkFell,
    WatermarkAboveEnd,
    Hole,
}

impl Violation {
    pub fn bit(self) -> u16 {
        1 << self as u16
    }
}

fn without(violation: Violation) -> impl Fn(&State) -> bool {
    move |state| state.violations & violation.bit() == 0
}

pub fn always() -> Vec<Property<Epochs>> {
    vec![
        Property::always("what is committed is in every later epoch", |_, state: &State| {
            without(Violation::Lost)(state)
        }),
        Property::always("an offset is committed with one record", |_, state: &State| {
            without(Violation::TwoCommitted)(state)
        }),
        Property::always("nothing committed is cut (I-14)", |_, state: &State| {
            without(Violation::CutCommitted)(state)
        }),
        Property::always("no deposed leader answers (I-13)", |_, state: &State| {
            without(Violation::Deposed)(state)
        }),
        Property::always("an Extend takes nothing away", |_, state: &State| {
            without(Violation::ExtendCut)(state)
        }),
        Property::always("no watermark falls", |_, state: &State| {
            without(Violation::WatermarkFell)(state)
        }),
        Property::always("a stored watermark is not above the durable end", |_, state: &State| {
            without(Violation::WatermarkAboveEnd)(state)
        }),
        Property::always("nothing hangs above a hole", |_, state: &State| {
            without(Violation::Hole)(state)
        }),
        Property::always("a record's epoch is the table's (I-17)", |_, state: &State| {
            epochs_agree(state)
        }),
        Property::always("an epoch uses an offset once (I-17)", |_, state: &State| {
            one_content(state)
        }),
        Property::always("state machines agree below the watermark", |_, state: &State| {
            machines_agree(state)
        }),
    ]
}

fn epochs_agree(state: &State) -> bool {
    state.nodes.iter().all(|node| {
        node.stream
            .iter()
            .enumerate()
            .all(|(offset, record)| record.epoch == epoch_at(&node.table, offset))
    })
}

fn one_content(state: &State) -> bool {
    let mut seen = [[0; RECORDS_MAX]; 8];
    let mut once = |first: usize, records: &[crate::state::Record]| {
        records.iter().enumerate().all(|(at, record)| {
            let place = &mut seen[usize::from(record.epoch)][first + at];
            let same = *place == 0 || *place == record.value;
            *place = record.value;
            same
        })
    };
    state.nodes.iter().all(|node| once(0, &node.stream))
        && state.sent.iter().all(|sent| once(0, sent))
        && state.log.iter().all(|logged| match &logged.entry {
            Entry::Extend { base, records, .. } => once(usize::from(*base), records),
            _ => true,
        })
}

fn machines_agree(state: &State) -> bool {
    state.nodes.iter().all(|node| {
        let known = node.machine.iter().take(usize::from(node.watermark));
        known.zip(state.committed.iter()).all(|(applied, committed)| applied == committed)
    })
}

/// Something that a configuration is there to reach.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reach {
    CommittedByReports,
    CommittedByExtend,
    CommittedInEpoch2,
    CommittedInEpoch3,
    CommittedFastRaftFast,
    Orphans,
    LateEntry,
    Readmitted,
}

impl Reach {
    pub fn property(self) -> Property<Epochs> {
        match self {
            Self::CommittedByReports => {
                Property::sometimes("committed by reports", |_, state: &State| {
                    !state.committed.is_empty() && extend_end(state) == 0
                })
            }
            Self::CommittedByExtend => {
                Property::sometimes("committed by an Extend", |_, state: &State| {
                    extend_end(state) > 0 && state.committed.len() >= extend_end(state)
                })
            }
            Self::CommittedInEpoch2 => {
                Property::sometimes("committed in epoch 2", |_, state: &State| {
                    state.committed.iter().any(|record| record.epoch == 2)
                })
            }
            Self::CommittedInEpoch3 => {
                Property::sometimes("committed in epoch 3", |_, state: &State| {
                    state.committed.iter().any(|record| record.epoch == 3)
                })
            }
            Self::CommittedFastRaftFast => Property::sometimes(
                "committed fast, by Raft, and fast again",
                |_, state: &State| {
                    let (base, end) = extend_range(state);
                    base > 0 && state.committed.len() > end && epochs_of(state) == 1
                },
            ),
            Self::Orphans => Property::sometimes("records become orphans", |_, state: &State| {
                state.nodes.iter().any(|node| {
                    node.table.windows(2).any(|pair| {
                        usize::from(pair[1].start) < state.sent[usize::from(pair[0].epoch)].len()
                    })
                })
            }),
            Self::LateEntry => {
                Property::sometimes("an entry is proposed a term too late", |_, state: &State| {
                    state.log.iter().any(|logged| match logged.entry {
                        Entry::EpochStart { epoch, .. } | Entry::Extend { epoch, .. } => {
                            epoch < logged.term
                        }
                        _ => false,
                    })
                })
            }
            Self::Readmitted => Property::sometimes(
                "a node with a new disk votes again",
                |model: &Epochs, state: &State| {
                    state.left.disks < model.configuration.budget.disks
                        && state.nodes.iter().all(|node| node.votes)
                },
            ),
        }
    }
}

fn epochs_of(state: &State) -> usize {
    state.opened.count_ones() as usize
}

/// Where the last Extend that somebody could apply begins and ends.
fn extend_range(state: &State) -> (usize, usize) {
    let last = state.log.iter().rev().find_map(|logged| match &logged.entry {
        Entry::Extend { base, records, .. } => {
            Some((usize::from(*base), usize::from(*base) + records.len()))
        }
        _ => None,
    });
    last.unwrap_or((0, 0))
}

fn extend_end(state: &State) -> usize {
    extend_range(state).1
}
