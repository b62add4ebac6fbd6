//! The histories that a leader tells at the beginning of a session, put together and checked, until
//! it has told all of them.

use std::collections::BTreeMap;

use ringwal_engine::StreamId;

use crate::promise::is_replicated;
use crate::wire::{HISTORY_ENTRIES_MAX, History};

/// See the module.
#[derive(Clone, Debug, Default)]
pub(super) struct Told {
    histories: BTreeMap<StreamId, History>,
    /// The first pieces of a history that is not complete.
    unfinished: Option<History>,
    /// Epochs that were told in the whole session, of streams that were named for the first time.
    entries: usize,
    /// The leader has named all streams that it had; those that it names now are new.
    has_ended: bool,
}

impl Told {
    pub fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Takes a history or a piece of one; gives it when it is complete.
    pub fn take(
        &mut self,
        history: History,
        present_epoch: u64,
    ) -> Result<Option<History>, String> {
        let stream = history.stream;
        if !is_replicated(stream) {
            return Err(format!("names stream {stream}, which is each node's own"));
        }
        let is_unfinished = history.is_unfinished(present_epoch);
        let history = match self.unfinished.take() {
            None => history,
            Some(before) => before
                .join(history)
                .ok_or_else(|| format!("breaks a history off, or goes on wrongly: {stream}"))?,
        };
        if history.epochs.entries().len() > HISTORY_ENTRIES_MAX {
            return Err(too_many());
        }
        if is_unfinished {
            self.unfinished = Some(history);
            return Ok(None);
        }
        if history.epochs.last().epoch != present_epoch {
            return Err(format!("tells a history of stream {stream} that is of another epoch"));
        }
        if history.epochs.entries()[0].start > history.trimmed {
            return Err(format!("tells a history of stream {stream} that lacks its first epochs"));
        }
        Ok(Some(history))
    }

    /// Counts the history of a stream that is named for the first time.
    pub fn count(&mut self, history: &History) -> Result<(), String> {
        self.entries += history.epochs.entries().len();
        if self.entries > HISTORY_ENTRIES_MAX { Err(too_many()) } else { Ok(()) }
    }

    /// Keeps one until all have been told.
    pub fn keep(&mut self, history: History) -> Result<(), String> {
        self.count(&history)?;
        let stream = history.stream;
        match self.histories.insert(stream, history) {
            None => Ok(()),
            Some(_) => Err(format!("tells two histories of stream {stream}")),
        }
    }

    /// All have been told.
    pub fn end(&mut self) -> Result<BTreeMap<StreamId, History>, String> {
        if self.has_ended || self.unfinished.is_some() {
            return Err("ends its histories twice, or in the middle of one".into());
        }
        self.has_ended = true;
        Ok(std::mem::take(&mut self.histories))
    }
}

fn too_many() -> String {
    format!("tells more than {HISTORY_ENTRIES_MAX} epochs, which is more than a session may have")
}
