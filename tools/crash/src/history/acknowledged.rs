//! What clients were told of their commands, against the log.

use ringwal_replication::Ack;

use super::{Asked, Log, Outcome, There};

/// What is not as it was told, and how many commands of [`Ack::Local`] died with their leader. `was_cut` says whether
/// a command is kept as an orphan somewhere.
pub fn check<'a>(
    asked: impl IntoIterator<Item = &'a Asked>,
    log: &Log,
    was_cut: impl Fn(&Asked) -> bool,
) -> (Vec<String>, u64) {
    let (mut wrong, mut lost) = (Vec::new(), 0);
    for asked in asked {
        let there = log.executed.get(&asked.key);
        match &asked.outcome {
            Outcome::Unknown => {}
            Outcome::NotDone | Outcome::Refused => {
                if there.is_some() {
                    wrong.push(format!("{asked:?} is done: {there:?}"));
                }
            }
            Outcome::Executed { place, did, durable } => {
                let is_it = |there: &There| {
                    place.is_none_or(|place| place == there.place) && *did == there.did
                };
                if there.is_some_and(is_it) {
                    continue;
                }
                // Its epoch is over where its record was: the next one began without it.
                let is_over = place.is_none_or(|(epoch, offset)| {
                    log.epochs.get(offset as usize).is_none_or(|present| *present > epoch)
                });
                match durable {
                    Ack::Local if is_over && was_cut(asked) => lost += 1,
                    Ack::Local => {
                        wrong.push(format!("{asked:?} is lost without a trace: {there:?}"))
                    }
                    Ack::Quorum => wrong.push(format!("{asked:?} is lost: {there:?}")),
                }
            }
        }
    }
    (wrong, lost)
}
