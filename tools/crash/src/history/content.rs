//! What reads have seen of the state, against what it was at that place of the log.

use ringwal_raft_fallback::State;

use super::Place;

/// A read of a key.
#[derive(Clone, Debug)]
pub struct Look {
    /// Everything below this offset was seen.
    pub end: u64,
    /// Epoch of the last record that was seen, if that is known: then it was one that is in the log.
    pub epoch: Option<u64>,
    /// Which key.
    pub key: Vec<u8>,
    /// The record that had set it, if it was there.
    pub version: Option<Place>,
}

impl Look {
    fn last(&self) -> Option<Place> {
        Some((self.epoch?, self.end.checked_sub(1)?))
    }
}

/// Compares reads with a log while that is executed.
#[derive(Debug)]
pub struct Contents {
    /// Those that are not compared yet, the next one last.
    looks: Vec<Look>,
    /// Those that were of the log, and what they should not have seen.
    pub compared: u64,
    /// See there.
    pub wrong: Vec<String>,
    /// Those that have seen records which are not in the log.
    of_others: Vec<Look>,
}

impl Contents {
    /// Of these reads.
    pub fn new(mut looks: Vec<Look>) -> Contents {
        looks.sort_by_key(|look| std::cmp::Reverse(look.end));
        let mut contents =
            Contents { looks, compared: 0, wrong: Vec::new(), of_others: Vec::new() };
        contents.compare(&State::default());
        contents
    }

    /// The log has come to this state.
    pub fn compare(&mut self, state: &State) {
        while let Some(look) = self.looks.pop_if(|look| look.end <= state.end()) {
            let is_another = look.epoch.is_some_and(|epoch| epoch != state.epoch());
            if look.end != state.end() || is_another {
                self.of_others.push(look);
                continue;
            }
            self.compared += 1;
            let version = state.key(&look.key).map(|found| found.version);
            let version = version.map(|version| (version.epoch, version.offset));
            if version != look.version {
                self.wrong.push(format!("{look:?}, and it is {version:?} there"));
            }
        }
    }

    /// How many have seen what was cut later. Whatever else is not in the log was never there.
    pub fn finish(&mut self, was_cut: impl Fn(Place) -> bool) -> u64 {
        let of_others: Vec<Look> = self.of_others.drain(..).chain(self.looks.drain(..)).collect();
        for look in &of_others {
            if !look.last().is_some_and(&was_cut) {
                self.wrong.push(format!("{look:?} has seen what is in no log and in no orphan"));
            }
        }
        of_others.len() as u64
    }
}
