//! The epoch in which this node's own records are written, and whether they may be written at all:
//! one word for all shards of an engine. In memory only: whoever leads in an epoch has promised it
//! durably.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::Refusal;
use crate::stream::StreamId;

/// This node does not lead: the rest of the word is the greatest epoch in which it did.
const CLOSED: u64 = 1 << 63;

/// The word. Looked at once for each batch that is sealed.
#[derive(Debug, Default)]
pub(crate) struct OwnEpoch(AtomicU64);

/// What it said when a batch was sealed.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) struct OwnEpochRead {
    epoch: u64,
    is_open: bool,
}

impl OwnEpoch {
    /// Lets records be written in `epoch`. One that is not greater than every one before changes
    /// nothing: what was closed stays closed.
    pub(crate) fn open(&self, epoch: u64) {
        assert!(epoch < CLOSED, "epoch {epoch} is greater than any; the greatest is 2^63 - 1");
        let _ = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
            (epoch > word & !CLOSED).then_some(epoch)
        });
    }

    /// Lets no more be written.
    pub(crate) fn close(&self) {
        self.0.fetch_or(CLOSED, Ordering::AcqRel);
    }

    pub(crate) fn get(&self) -> OwnEpochRead {
        let word = self.0.load(Ordering::Acquire);
        OwnEpochRead { epoch: word & !CLOSED, is_open: word & CLOSED == 0 }
    }
}

impl OwnEpochRead {
    /// The least epoch of a record of this node in a stream whose last epoch is `last`.
    ///
    /// # Errors
    /// In a replicated stream, when this node does not lead, as far as it knows or as the stream
    /// shows: a record would be in somebody else's epoch.
    pub(crate) fn admit(self, stream: StreamId, last: u64) -> Result<u64, Refusal> {
        let epoch = self.epoch;
        let leads = self.is_open && (epoch == 0 || last <= epoch);
        if leads || stream.is_local() {
            Ok(epoch)
        } else {
            Err(Refusal::EpochClosed { stream, epoch, last })
        }
    }
}

#[cfg(test)]
impl OwnEpochRead {
    /// An open epoch.
    pub(crate) fn open(epoch: u64) -> Self {
        Self { epoch, is_open: true }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: StreamId = StreamId::new(7);

    #[test]
    fn only_a_greater_epoch_opens_it_again() {
        let own = OwnEpoch::default();
        assert_eq!(own.get().admit(STREAM, 9), Ok(0), "nobody said anything: as it always was");
        own.open(5);
        own.open(3);
        assert_eq!(own.get().admit(STREAM, 5), Ok(5));
        own.close();
        own.open(5);
        let refused = Refusal::EpochClosed { stream: STREAM, epoch: 5, last: 2 };
        assert_eq!(own.get().admit(STREAM, 2), Err(refused));
        own.open(6);
        assert_eq!(own.get().admit(STREAM, 2), Ok(6));
    }

    #[test]
    fn nothing_is_written_in_the_epoch_of_another_leader() {
        let own = OwnEpoch::default();
        own.open(5);
        let refused = Refusal::EpochClosed { stream: STREAM, epoch: 5, last: 6 };
        assert_eq!(own.get().admit(STREAM, 6), Err(refused));
        own.close();
        for local in 1..=3 {
            assert_eq!(own.get().admit(StreamId::new(local), 6), Ok(5));
        }
        assert!(own.get().admit(StreamId::new(0), 0).is_err() && own.get().epoch == 5);
    }

    #[test]
    #[should_panic(expected = "greater than any")]
    fn an_epoch_has_63_bits() {
        OwnEpoch::default().open(1 << 63);
    }
}
