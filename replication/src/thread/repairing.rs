//! Until what a repair has taken away is back, this node does not lead (I-15): see
//! [`crate::repair::Marker`].

use std::collections::BTreeMap;

use ringwal_engine::{Engine, EpochTable, StreamId};

use crate::repair::Marker;
use crate::wire::Message;

/// See the module.
pub(crate) struct Repairing {
    marker: Marker,
    /// Of each stream of the leader that is followed.
    told: BTreeMap<StreamId, Told>,
    is_all_told: bool,
    /// Its end is being made durable.
    pub(crate) is_ending: bool,
}

/// What a leader had of a stream when its epoch began.
struct Told {
    end: u64,
    /// Epoch of the record before that end.
    before: u64,
    /// The last epoch that was told of.
    last: u64,
}

impl Repairing {
    pub(crate) fn new(marker: Marker) -> Self {
        Self { marker, told: BTreeMap::new(), is_all_told: false, is_ending: false }
    }

    /// Another leader is followed, or the same one again.
    pub(crate) fn handle_session(&mut self) {
        self.told.clear();
        self.is_all_told = false;
    }

    /// A leader tells its histories.
    pub(crate) fn handle_message(&mut self, message: &Message) {
        match message {
            // What a leader tells later are streams that are made meanwhile.
            Message::Histories(histories) if !self.is_all_told => {
                for history in histories {
                    let before = match history.epochs.entries() {
                        [.., before, _] => before.epoch,
                        // The rest of a long table: the epoch before is in the piece before.
                        _ => self.told.get(&history.stream).map_or(0, |told| told.last),
                    };
                    let last = history.epochs.last();
                    let told = Told { end: last.start, before, last: last.epoch };
                    self.told.insert(history.stream, told);
                }
            }
            Message::HistoriesEnd => self.is_all_told = true,
            _ => {}
        }
    }

    /// What is not back, in words; `None` when all is. A leader has everything that is committed, so
    /// whoever holds all that it had when its epoch began lacks nothing, whatever the ends say that
    /// were noted before the repair.
    pub(crate) fn lacking(
        &self,
        engine: &Engine,
        is_following: bool,
        is_alone: bool,
    ) -> Option<String> {
        if is_alone {
            return self.marker.lacking_alone(engine);
        }
        if is_following && self.is_all_told && self.told.iter().all(|told| has_all(engine, told)) {
            return self.marker.lacking_own(engine);
        }
        self.marker.lacking(engine)
    }
}

fn has_all(engine: &Engine, (stream, told): (&StreamId, &Told)) -> bool {
    let stream = engine.stream(*stream);
    if told.end <= stream.trimmed() {
        return true;
    }
    // The same epoch at the last offset is the same history up to there (I-17).
    let epochs = EpochTable::from_entries(stream.epochs());
    let epoch = epochs.map(|epochs| epochs.epoch_at(told.end - 1));
    stream.end() >= told.end && epoch == Some(told.before)
}
