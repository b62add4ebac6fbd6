//! The epoch in which this node's own records are written, and whether they may be written at all:
//! one word for all shards of an engine, and one that says until when, where a lease is required. In
//! memory only: whoever leads in an epoch has promised it durably.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::error::Refusal;
use crate::stream::StreamId;

/// This node does not lead: the rest of the word is the greatest epoch in which it did.
const CLOSED: u64 = 1 << 63;

/// As the end of a lease: none is required.
const FOR_EVER: u64 = u64::MAX;

/// The words. Looked at once for each batch that is sealed, without a lock.
#[derive(Debug)]
pub(crate) struct OwnEpoch {
    word: AtomicU64,
    /// When the lease of the epoch ends, on the boot-time clock in nanoseconds.
    lease_until_ns: AtomicU64,
    /// Whether a lease is required. Whoever changes the words holds it.
    requires_lease: Mutex<bool>,
}

impl Default for OwnEpoch {
    fn default() -> Self {
        Self {
            word: AtomicU64::new(0),
            lease_until_ns: AtomicU64::new(FOR_EVER),
            requires_lease: Mutex::new(false),
        }
    }
}

/// What they said when a batch was sealed.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) struct OwnEpochRead {
    epoch: u64,
    is_open: bool,
    has_lease: bool,
}

impl OwnEpoch {
    fn requires_lease(&self) -> MutexGuard<'_, bool> {
        self.requires_lease.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets records be written in `epoch`, under a lease of its own if one is required: none has been
    /// given yet. One that is not greater than every one before changes nothing: what was closed stays
    /// closed.
    pub(crate) fn open(&self, epoch: u64) {
        assert!(epoch < CLOSED, "epoch {epoch} is greater than any; the greatest is 2^63 - 1");
        let requires_lease = self.requires_lease();
        if epoch <= self.word.load(Ordering::Acquire) & !CLOSED {
            return;
        }
        if *requires_lease {
            // Before the epoch, so that it never has that of the one before.
            self.lease_until_ns.store(0, Ordering::Release);
        }
        self.word.store(epoch, Ordering::Release);
    }

    /// Lets no more be written.
    pub(crate) fn close(&self) {
        let _writes = self.requires_lease();
        self.word.fetch_or(CLOSED, Ordering::AcqRel);
    }

    /// From now on records are written under a lease only.
    pub(crate) fn require_lease(&self) {
        *self.requires_lease() = true;
        self.lease_until_ns.store(0, Ordering::Release);
    }

    /// The lease of `epoch` lasts until then. Of another epoch than the last that was opened it means
    /// nothing, nor where none is required.
    pub(crate) fn set_lease(&self, epoch: u64, until_ns: u64) {
        let requires_lease = self.requires_lease();
        if *requires_lease && epoch == self.word.load(Ordering::Acquire) & !CLOSED {
            // No lease is for ever.
            self.lease_until_ns.store(until_ns.min(FOR_EVER - 1), Ordering::Release);
        }
    }

    /// What they say; `now_ns` is asked for the boot-time clock where there is a lease.
    pub(crate) fn get(&self, now_ns: impl FnOnce() -> u64) -> OwnEpochRead {
        let word = self.word.load(Ordering::Acquire);
        let has_lease = match self.lease_until_ns.load(Ordering::Acquire) {
            FOR_EVER => true,
            0 => false,
            // That of another epoch does not count for this one.
            until_ns => now_ns() < until_ns && self.word.load(Ordering::Acquire) == word,
        };
        OwnEpochRead { epoch: word & !CLOSED, is_open: word & CLOSED == 0, has_lease }
    }
}

impl OwnEpochRead {
    /// The least epoch of a record of this node in a stream whose last epoch is `last`.
    ///
    /// # Errors
    /// In a replicated stream, when this node does not lead, as far as it knows or as the stream
    /// shows: a record would be in somebody else's epoch; or when its lease has lapsed (I-13).
    pub(crate) fn admit(self, stream: StreamId, last: u64) -> Result<u64, Refusal> {
        let epoch = self.epoch;
        let leads = self.is_open && (epoch == 0 || last <= epoch);
        match (stream.is_local(), leads, self.has_lease) {
            (true, ..) | (_, true, true) => Ok(epoch),
            (false, false, _) => Err(Refusal::EpochClosed { stream, epoch, last }),
            (false, true, false) => Err(Refusal::LeaseLapsed { stream, epoch }),
        }
    }
}

#[cfg(test)]
impl OwnEpochRead {
    /// An open epoch.
    pub(crate) fn open(epoch: u64) -> Self {
        Self { epoch, is_open: true, has_lease: true }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: StreamId = StreamId::new(7);

    impl OwnEpoch {
        fn admit_at(&self, stream: StreamId, now_ns: u64) -> Result<u64, Refusal> {
            self.get(|| now_ns).admit(stream, 0)
        }
    }

    #[test]
    fn only_a_greater_epoch_opens_it_again() {
        let own = OwnEpoch::default();
        assert_eq!(
            own.get(|| unreachable!("no lease is required")).admit(STREAM, 9),
            Ok(0),
            "nobody said anything: as it always was"
        );
        own.open(5);
        own.open(3);
        assert_eq!(own.get(|| unreachable!("no lease is required")).admit(STREAM, 5), Ok(5));
        own.close();
        own.open(5);
        let refused = Refusal::EpochClosed { stream: STREAM, epoch: 5, last: 2 };
        assert_eq!(own.get(|| unreachable!("no lease is required")).admit(STREAM, 2), Err(refused));
        own.open(6);
        assert_eq!(own.get(|| unreachable!("no lease is required")).admit(STREAM, 2), Ok(6));
    }

    #[test]
    fn nothing_is_written_in_the_epoch_of_another_leader() {
        let own = OwnEpoch::default();
        own.open(5);
        let refused = Refusal::EpochClosed { stream: STREAM, epoch: 5, last: 6 };
        assert_eq!(own.get(|| unreachable!("no lease is required")).admit(STREAM, 6), Err(refused));
        own.close();
        for local in 1..=3 {
            assert_eq!(
                own.get(|| unreachable!("no lease is required")).admit(StreamId::new(local), 6),
                Ok(5)
            );
        }
        assert!(
            own.get(|| unreachable!("no lease is required")).admit(StreamId::new(0), 0).is_err()
                && own.get(|| unreachable!("no lease is required")).epoch == 5
        );
    }

    #[test]
    fn a_lease_is_required_by_each_epoch_anew_and_lapses() {
        let own = OwnEpoch::default();
        own.set_lease(0, 10);
        assert_eq!(own.admit_at(STREAM, 99), Ok(0), "none is required");
        own.require_lease();
        own.open(5);
        let lapsed = Err(Refusal::LeaseLapsed { stream: STREAM, epoch: 5 });
        assert_eq!(own.admit_at(STREAM, 1), lapsed, "none was given");
        own.set_lease(4, 100);
        assert_eq!(own.admit_at(STREAM, 1), lapsed, "that of another epoch");
        own.set_lease(5, 100);
        assert_eq!((own.admit_at(STREAM, 99), own.admit_at(STREAM, 100)), (Ok(5), lapsed.clone()));
        for local in 1..=3 {
            assert_eq!(own.admit_at(StreamId::new(local), 100), Ok(5));
        }
        own.set_lease(5, u64::MAX);
        assert_eq!(own.admit_at(STREAM, u64::MAX), lapsed, "none is for ever");
        own.set_lease(5, 0);
        assert_eq!(own.admit_at(STREAM, 0), lapsed, "it was revoked");
        own.set_lease(5, 100);
        own.open(6);
        own.set_lease(5, 100);
        let lapsed = Err(Refusal::LeaseLapsed { stream: STREAM, epoch: 6 });
        assert_eq!(own.admit_at(STREAM, 1), lapsed);
        own.set_lease(6, 100);
        assert_eq!(own.admit_at(STREAM, 1), Ok(6));
        own.close();
        assert!(matches!(own.admit_at(STREAM, 1), Err(Refusal::EpochClosed { .. })));
    }

    #[test]
    #[should_panic(expected = "greater than any")]
    fn an_epoch_has_63_bits() {
        OwnEpoch::default().open(1 << 63);
    }
}
