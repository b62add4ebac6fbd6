//! What came of a command.

use crate::command::BrokerId;
use crate::state::{KeyVersion, TopicId};

/// What came of a command: also a rejection is a result, which every node comes to.
pub type Outcome = Result<Done, Rejection>;

/// A record was applied.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct Applied {
    /// The epoch of the record that was executed: of the first, when this one repeats it. Whoever
    /// answers a retry waits until *that* record is as durable as was asked.
    pub epoch: u64,
    /// Its offset.
    pub offset: u64,
    /// It was executed before, and did nothing now.
    pub is_retry: bool,
    /// What came of it.
    pub outcome: Outcome,
}

/// What a command did.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
#[non_exhaustive]
pub enum Done {
    /// There is a topic that was not there before.
    TopicCreated {
        /// Its id, which no other topic has, ever.
        topic: TopicId,
    },
    /// A topic is there no more.
    TopicDeleted {
        /// Its id: its partitions were [`TopicId::stream`] of 0 to `partitions`.
        topic: TopicId,
        /// How many partitions it had.
        partitions: u32,
    },
    /// A broker or key is there that was not there before.
    Created,
    /// Something is not as it was.
    Changed,
    /// Everything is as it was.
    Unchanged,
    /// Watermarks were raised, as far as they were lower.
    Watermarks {
        /// How many times one was raised.
        raised: u32,
        /// How many were for partitions that are not there.
        unknown: u32,
    },
}

/// Something of which there are as many as there may be.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
#[non_exhaustive]
pub enum Bound {
    /// [`crate::limits::PARTITIONS_TOTAL_MAX`].
    Partitions,
    /// [`crate::limits::BROKERS_MAX`].
    Brokers,
    /// [`crate::limits::KEYS_BYTES_TOTAL_MAX`].
    KeyBytes,
    /// Streams that one epoch can give: 2^32, in each of 2^32 epochs.
    Streams,
}

/// Why a command did nothing. It is certain that it did nothing, on every node.
#[derive(Copy, Clone, Eq, PartialEq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Rejection {
    /// A topic of this name is there.
    #[error("the topic is there already, with id {topic}")]
    TopicExists {
        /// Its id.
        topic: TopicId,
    },
    /// No such topic.
    #[error("there is no such topic")]
    TopicNotFound,
    /// The name is the system's.
    #[error("topic names that begin with \"__\" are reserved; choose another one")]
    TopicReserved,
    /// The topic has fewer partitions.
    #[error("the topic has {partitions} partitions, counted from 0")]
    PartitionNotFound {
        /// How many it has.
        partitions: u32,
    },
    /// Fewer copies than asked for are never made silently.
    #[error(
        "{registered} brokers are registered, and {asked} copies of each partition are asked for; register more, or ask for fewer"
    )]
    TooFewBrokers {
        /// The replication factor.
        asked: u16,
        /// How many are registered.
        registered: u32,
    },
    /// No such broker.
    #[error("broker {broker} is not registered")]
    BrokerNotFound {
        /// Which.
        broker: BrokerId,
    },
    /// A broker does not know the metadata version.
    #[error("broker {broker} knows metadata version {knows} at most; update it first")]
    BrokerTooOld {
        /// Which.
        broker: BrokerId,
        /// The newest that it knows.
        knows: u32,
    },
    /// A broker holds no replica of the partition.
    #[error("broker {broker} has no replica of the partition")]
    NotAReplica {
        /// Which.
        broker: BrokerId,
    },
    /// A leader must be in sync.
    #[error("broker {broker} cannot lead: it is not among those in sync")]
    LeaderNotInSync {
        /// Which.
        broker: BrokerId,
    },
    /// The leader's epoch is less than the partition's, or the same for another leader.
    #[error("the partition has leader epoch {current}; another leader needs a greater one")]
    LeaderEpoch {
        /// The partition's.
        current: u64,
    },
    /// The key has another version than expected, or is there, or is not.
    #[error("the key is at {found:?}, which was not expected; read it again")]
    KeyVersion {
        /// Its version. None when it is not there.
        found: Option<KeyVersion>,
    },
    /// There are as many as there may be.
    #[error("there are as many as there may be: {bound:?}; remove some")]
    Full {
        /// Of what.
        bound: Bound,
    },
    /// The session is unknown, and may be one that was forgotten. The command may have been executed
    /// long ago: whoever repeats it has to look.
    #[error(
        "the session is unknown, and had begun before {end}: it may have been forgotten; look whether the command was done, and begin a new session"
    )]
    SessionExpired {
        /// The session must begin here or later.
        end: u64,
    },
    /// The session says that it began later than this record. It was not used before.
    #[error("the session claims to begin after offset {end}, where its record is; begin a new one")]
    SessionAhead {
        /// Offset of the record.
        end: u64,
    },
    /// Numbers up to this one are not remembered. The command may have been executed long ago.
    #[error(
        "outcomes up to number {upto} of the session are not remembered: look whether the command was done"
    )]
    SequenceForgotten {
        /// The greatest that is not.
        upto: u64,
    },
}

impl Bound {
    const ALL: [Self; 4] = [Self::Partitions, Self::Brokers, Self::KeyBytes, Self::Streams];
}

/// As a code and two words, for snapshots: see [`crate::snapshot`].
pub(crate) fn to_words(outcome: Outcome) -> (u16, u64, u64) {
    let done = match outcome {
        Ok(done) => done,
        Err(rejection) => return rejection_to_words(rejection),
    };
    match done {
        Done::TopicCreated { topic } => (1, topic.get(), 0),
        Done::TopicDeleted { topic, partitions } => (2, topic.get(), partitions.into()),
        Done::Created => (3, 0, 0),
        Done::Changed => (4, 0, 0),
        Done::Unchanged => (5, 0, 0),
        Done::Watermarks { raised, unknown } => (6, raised.into(), unknown.into()),
    }
}

fn rejection_to_words(rejection: Rejection) -> (u16, u64, u64) {
    match rejection {
        Rejection::TopicExists { topic } => (101, topic.get(), 0),
        Rejection::TopicNotFound => (102, 0, 0),
        Rejection::TopicReserved => (103, 0, 0),
        Rejection::PartitionNotFound { partitions } => (104, partitions.into(), 0),
        Rejection::TooFewBrokers { asked, registered } => (105, asked.into(), registered.into()),
        Rejection::BrokerNotFound { broker } => (106, broker.get(), 0),
        Rejection::BrokerTooOld { broker, knows } => (107, broker.get(), knows.into()),
        Rejection::NotAReplica { broker } => (108, broker.get(), 0),
        Rejection::LeaderNotInSync { broker } => (109, broker.get(), 0),
        Rejection::LeaderEpoch { current } => (110, current, 0),
        Rejection::KeyVersion { found: None } => (111, 0, 0),
        Rejection::KeyVersion { found: Some(KeyVersion { epoch, offset }) } => (112, epoch, offset),
        Rejection::Full { bound } => (113, bound as u64, 0),
        Rejection::SessionExpired { end } => (114, end, 0),
        Rejection::SessionAhead { end } => (115, end, 0),
        Rejection::SequenceForgotten { upto } => (116, upto, 0),
    }
}

/// The outcome that has these words, if there is one.
pub(crate) fn from_words(code: u16, one: u64, two: u64) -> Option<Outcome> {
    let number = |word: u64| u32::try_from(word).ok();
    let broker = BrokerId::new(one);
    let outcome = match code {
        1 => Ok(Done::TopicCreated { topic: TopicId::new(one) }),
        2 => Ok(Done::TopicDeleted { topic: TopicId::new(one), partitions: number(two)? }),
        3 => Ok(Done::Created),
        4 => Ok(Done::Changed),
        5 => Ok(Done::Unchanged),
        6 => Ok(Done::Watermarks { raised: number(one)?, unknown: number(two)? }),
        101 => Err(Rejection::TopicExists { topic: TopicId::new(one) }),
        102 => Err(Rejection::TopicNotFound),
        103 => Err(Rejection::TopicReserved),
        104 => Err(Rejection::PartitionNotFound { partitions: number(one)? }),
        105 => {
            let asked = u16::try_from(one).ok()?;
            Err(Rejection::TooFewBrokers { asked, registered: number(two)? })
        }
        106 => Err(Rejection::BrokerNotFound { broker }),
        107 => Err(Rejection::BrokerTooOld { broker, knows: number(two)? }),
        108 => Err(Rejection::NotAReplica { broker }),
        109 => Err(Rejection::LeaderNotInSync { broker }),
        110 => Err(Rejection::LeaderEpoch { current: one }),
        111 => Err(Rejection::KeyVersion { found: None }),
        112 => Err(Rejection::KeyVersion { found: Some(KeyVersion { epoch: one, offset: two }) }),
        113 => {
            let bound = Bound::ALL.get(usize::try_from(one).ok()?)?;
            Err(Rejection::Full { bound: *bound })
        }
        114 => Err(Rejection::SessionExpired { end: one }),
        115 => Err(Rejection::SessionAhead { end: one }),
        116 => Err(Rejection::SequenceForgotten { upto: one }),
        _ => return None,
    };
    // One outcome has one form: what the words do not need is 0.
    (to_words(outcome) == (code, one, two)).then_some(outcome)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_comes_back_as_it_was() {
        let words = [(0, 0), (1, 0), (1, 2), (7, 9), (u64::MAX, u64::MAX)];
        let mut known = 0;
        for code in 0..200 {
            let outcomes = words.map(|(one, two)| (one, two, from_words(code, one, two)));
            for (one, two, outcome) in outcomes {
                assert!(outcome.is_none_or(|outcome| to_words(outcome) == (code, one, two)));
            }
            known += usize::from(outcomes.iter().any(|(.., outcome)| outcome.is_some()));
        }
        assert_eq!(known, 6 + 16);
        for (number, bound) in Bound::ALL.into_iter().enumerate() {
            assert_eq!(bound as usize, number);
        }
    }
}
