//! What is kept beside the log, and its bytes: a record of stream 2. The last one counts; each says all.
//!
//! ```text
//!  0  version 1  u8     1  vote: 0 none, 1 given, 2 granted by a majority  u8     2  zero  u16
//!  4  vote: term u64, node u64
//! 20  purged:    term u64, index + 1 u64 (0: none)
//! 36  committed: term u64, index + 1 u64 (0: none)
//! ```

use bytes::{BufMut, Bytes};

use super::codec::{Malformed, Taker, zero};
use super::entry::{put_log_id, take_log_id};
use super::types::{LogId, Vote};

const VERSION: u8 = 1;

/// See the module.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Default)]
pub(crate) struct LogFacts {
    pub(crate) vote: Option<Vote>,
    /// The last entry that is not in the log any more. Kept here because it is not in the log.
    pub(crate) purged: Option<LogId>,
    /// What is known to be committed; more may be.
    pub(crate) committed: Option<LogId>,
}

impl LogFacts {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let kind = self.vote.map_or(0, |vote| 1 + u8::from(vote.committed));
        let mut bytes = vec![VERSION, kind, 0, 0];
        bytes.put_u64_le(self.vote.map_or(0, |vote| vote.leader_id.term));
        bytes.put_u64_le(self.vote.map_or(0, |vote| vote.leader_id.voted_for));
        put_log_id(&mut bytes, self.purged);
        put_log_id(&mut bytes, self.committed);
        bytes
    }

    pub(crate) fn decode(bytes: Bytes) -> Result<Self, Malformed> {
        let mut from = Taker::new(bytes);
        let found = from.u8()?;
        if found != VERSION {
            return Err(Malformed::Version { what: "vote", found, known: VERSION });
        }
        let kind = from.u8()?;
        zero("reserved field", from.u16()?.into())?;
        let (term, node) = (from.u64()?, from.u64()?);
        let vote = match kind {
            0 => zero("term or node of no vote", term | node).map(|()| None)?,
            1 => Some(Vote::new(term, node)),
            2 => Some(Vote::new_committed(term, node)),
            kind => return Err(Malformed::Unknown { what: "kind of vote", value: kind.into() }),
        };
        let (purged, committed) = (take_log_id(&mut from)?, take_log_id(&mut from)?);
        from.end()?;
        Ok(Self { vote, purged, committed })
    }
}

/// The term of the vote in a record of stream 2; 0 when there is none.
pub(crate) fn stored_term(bytes: Bytes) -> Result<u64, Malformed> {
    let facts = LogFacts::decode(bytes)?;
    Ok(facts.vote.map_or(0, |vote| vote.leader_id.term))
}

#[cfg(test)]
mod tests {
    use super::super::entry::log_id;
    use super::*;

    #[test]
    fn it_comes_back_as_it_was() {
        for vote in [None, Some(Vote::new(3, 9)), Some(Vote::new_committed(u64::MAX, 1))] {
            let facts = LogFacts { vote, purged: Some(log_id(0, 0)), committed: None };
            let bytes = Bytes::from(facts.encode());
            assert_eq!(LogFacts::decode(bytes.clone()), Ok(facts));
            for length in 0..bytes.len() {
                assert!(LogFacts::decode(bytes.slice(..length)).is_err());
            }
        }
        let mut bytes = LogFacts::default().encode();
        bytes.push(0);
        assert_eq!(LogFacts::decode(bytes.into()), Err(Malformed::Trailing { bytes: 1 }));
    }
}
