//! Linearizability, with the log as the witness: who was answered before another one has asked comes
//! before it in the log; a linearizable read has seen everything that was answered before it asked, and
//! nothing that was asked after it was answered, and reads do not go back. What died with its leader is
//! not in the log, and counts for nothing.

use super::{Asked, Log, Outcome, Read};

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

/// What is not in order. Where several things are not, the first.
pub fn check<'a>(
    asked: impl IntoIterator<Item = &'a Asked>,
    reads: impl IntoIterator<Item = &'a Read>,
    log: &Log,
) -> Vec<String> {
    let (mut answered, mut wrong) = (Vec::new(), Vec::new());
    for asked in asked {
        let Some(there) = log.executed.get(&asked.key) else { continue };
        let answered_ns = match &asked.outcome {
            Outcome::Executed { place, .. } if place.is_none_or(|place| place == there.place) => {
                asked.answered_ns
            }
            // Nobody can rely on it, and yet it was not there before it was asked.
            Outcome::Unknown => u64::MAX,
            _ => continue,
        };
        let offset = there.place.1;
        answered.push(Answered {
            asked_ns: asked.asked_ns,
            answered_ns,
            end: offset + 1,
            seen: offset,
            what: format!("{asked:?} at {offset}"),
        });
    }
    for read in reads {
        let last = |last: u64| log.epochs.get(last as usize).copied();
        let epoch = read.end.checked_sub(1).map_or(Some(0), last);
        if epoch.is_none_or(|epoch| read.epoch.is_some_and(|seen| seen != epoch)) {
            wrong.push(format!("{read:?} has seen what was not committed"));
            continue;
        }
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
        if let Some(furthest) = furthest
            && later.seen < furthest.end
        {
            wrong.push(format!("not linearizable: {} comes behind {}", later.what, furthest.what));
            break;
        }
    }
    wrong
}
