//! Linearizability, with the log as the witness: who was answered before another one has asked comes
//! before it in the log; a linearizable read has seen everything that was answered before it asked, and
//! nothing that was asked after it was answered, and reads do not go back. What died with its leader is
//! not in the log, and counts for nothing.

use std::collections::BTreeMap;

use ringwal_raft_fallback::simulating::Applied;

use super::Oracle;
use super::acknowledged::Outcome;

/// Something that was answered: when it was asked and answered, and what it has before it in the log, and
/// what behind it.
struct Answered {
    asked_ns: u64,
    answered_ns: u64,
    /// Everything that is asked later has an end that is greater, or as great if both are reads.
    end: u64,
    /// Everything that was answered before has an end of at most this.
    seen: u64,
    what: String,
}

impl Oracle {
    pub(super) fn check_order(
        &self,
        records: &[(u64, Vec<u8>)],
        executed: &BTreeMap<(u64, u64), Applied>,
    ) {
        let mut answered: Vec<Answered> = Vec::new();
        for asked in &self.asked {
            let Outcome::Executed { applied, .. } = &asked.outcome else { continue };
            let is_there = executed.get(&asked.key).is_some_and(|there| {
                (there.epoch, there.offset) == (applied.epoch, applied.offset)
            });
            if is_there {
                answered.push(Answered {
                    asked_ns: asked.asked_ns,
                    answered_ns: asked.answered_ns,
                    end: applied.offset + 1,
                    seen: applied.offset,
                    what: format!("{asked:?}"),
                });
            }
        }
        for read in &self.reads {
            let epoch = read
                .end
                .checked_sub(1)
                .map_or(0, |last| records.get(last as usize).map_or(u64::MAX, |(epoch, _)| *epoch));
            assert_eq!(epoch, read.epoch, "{read:?} has seen what was not committed");
            answered.push(Answered {
                asked_ns: read.asked_ns,
                answered_ns: read.answered_ns,
                end: read.end,
                seen: read.end,
                what: format!("{read:?}"),
            });
        }
        let mut by_answer: Vec<&Answered> = answered.iter().collect();
        by_answer.sort_by_key(|one| one.answered_ns);
        let mut by_question: Vec<&Answered> = answered.iter().collect();
        by_question.sort_by_key(|one| one.asked_ns);
        let mut before = by_answer.into_iter().peekable();
        let mut furthest: Option<&Answered> = None;
        for later in by_question {
            while let Some(earlier) = before.next_if(|one| one.answered_ns < later.asked_ns) {
                if furthest.is_none_or(|furthest| furthest.end < earlier.end) {
                    furthest = Some(earlier);
                }
            }
            if let Some(furthest) = furthest {
                let is_after = later.seen >= furthest.end;
                assert!(
                    is_after,
                    "not linearizable: {} comes behind {}",
                    later.what, furthest.what
                );
            }
        }
    }
}
