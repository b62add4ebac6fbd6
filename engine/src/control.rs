//! Facts about streams and segments that the journal carries beside the records.
//!
//! A *checkpoint* is a run of these that says everything about the shard at one point; each
//! segment starts with one, so that nothing older has to be read for it. In between, single facts
//! follow. No I/O, no decisions.

use crate::format::{FormatError, check_counters};
use crate::stream::{EpochStart, EpochTable, StreamId};

/// One fact.
#[derive(Clone, Eq, PartialEq, Debug)]
pub enum Control {
    /// Records of the stream below `before` are gone.
    Trim {
        /// Whose.
        stream: StreamId,
        /// First offset that stays.
        before: u64,
    },
    /// From `start` on, the stream's records carry `epoch`; older ones from there on are cut.
    Epoch {
        /// Whose.
        stream: StreamId,
        /// The new epoch and where it starts.
        start: EpochStart,
    },
    /// Nothing in this life of this segment counts any more.
    Free {
        /// Segment number.
        number: u64,
        /// Its generation.
        generation: u64,
    },
    /// A checkpoint starts: forget what was said before.
    CheckpointBegin,
    /// A stream as it was sealed so far.
    CheckpointStream {
        /// Whose.
        stream: StreamId,
        /// First offset that is not trimmed.
        trimmed: u64,
        /// Offset that the next record gets.
        next: u64,
        /// Its epochs.
        epochs: EpochTable,
    },
    /// A segment that counts.
    CheckpointSegment {
        /// Segment number.
        number: u64,
        /// Its generation.
        generation: u64,
        /// CRC of its last batch's header, so that a segment of another history does not pass for
        /// it; 0 as long as it is written.
        last_crc: u32,
    },
    /// The checkpoint is complete.
    CheckpointEnd,
}

impl Control {
    /// Appends the fact's bytes.
    pub fn encode(&self, into: &mut Vec<u8>) {
        let mut put = |tag: u64, values: &[u64]| {
            into.extend_from_slice(&tag.to_le_bytes());
            for value in values {
                into.extend_from_slice(&value.to_le_bytes());
            }
        };
        match self {
            Self::Trim { stream, before } => put(1, &[stream.get(), *before]),
            Self::Epoch { stream, start } => put(2, &[stream.get(), start.epoch, start.start]),
            Self::Free { number, generation } => put(3, &[*number, *generation]),
            Self::CheckpointBegin => put(4, &[]),
            Self::CheckpointStream { stream, trimmed, next, epochs } => {
                put(5, &[stream.get(), *trimmed, *next, epochs.entries().len() as u64]);
                for entry in epochs.entries() {
                    into.extend_from_slice(&entry.epoch.to_le_bytes());
                    into.extend_from_slice(&entry.start.to_le_bytes());
                }
            }
            Self::CheckpointSegment { number, generation, last_crc } => {
                put(6, &[*number, *generation, u64::from(*last_crc)]);
            }
            Self::CheckpointEnd => put(7, &[]),
        }
    }

    /// Reads all facts of a control frame's payload.
    ///
    /// # Errors
    /// When a length or tag is not one that this version writes.
    pub fn decode_all(payload: &[u8]) -> Result<Vec<Self>, FormatError> {
        let mut words = Words(payload);
        let mut controls = Vec::new();
        while !words.0.is_empty() {
            let control = Self::decode(&mut words)?;
            control.check()?;
            controls.push(control);
        }
        Ok(controls)
    }

    /// Whether there can be such a fact.
    fn check(&self) -> Result<(), FormatError> {
        match self {
            Self::Trim { before, .. } => check_counters(&[*before]),
            Self::Epoch { start, .. } => check_counters(&[start.start]),
            Self::CheckpointStream { trimmed, next, epochs, .. } if trimmed <= next => {
                check_counters(&[*next, epochs.last().start])
            }
            Self::CheckpointStream { .. } => Err(FormatError::Length),
            Self::Free { number, generation }
            | Self::CheckpointSegment { number, generation, .. } => {
                check_counters(&[*number, *generation])
            }
            Self::CheckpointBegin | Self::CheckpointEnd => Ok(()),
        }
    }

    fn decode(words: &mut Words<'_>) -> Result<Self, FormatError> {
        Ok(match words.next()? {
            1 => Self::Trim { stream: StreamId::new(words.next()?), before: words.next()? },
            2 => Self::Epoch {
                stream: StreamId::new(words.next()?),
                start: EpochStart { epoch: words.next()?, start: words.next()? },
            },
            3 => Self::Free { number: words.next()?, generation: words.next()? },
            4 => Self::CheckpointBegin,
            5 => {
                let stream = StreamId::new(words.next()?);
                let (trimmed, next, count) = (words.next()?, words.next()?, words.next()?);
                if count > (words.0.len() / 16) as u64 {
                    return Err(FormatError::Length);
                }
                let mut entries = Vec::with_capacity(count as usize);
                for _ in 0..count {
                    entries.push(EpochStart { epoch: words.next()?, start: words.next()? });
                }
                let epochs = EpochTable::from_entries(entries).ok_or(FormatError::Length)?;
                Self::CheckpointStream { stream, trimmed, next, epochs }
            }
            6 => Self::CheckpointSegment {
                number: words.next()?,
                generation: words.next()?,
                last_crc: u32::try_from(words.next()?).map_err(|_| FormatError::Length)?,
            },
            7 => Self::CheckpointEnd,
            _ => return Err(FormatError::Magic),
        })
    }
}

struct Words<'a>(&'a [u8]);

impl Words<'_> {
    fn next(&mut self) -> Result<u64, FormatError> {
        let (word, rest) = self.0.split_first_chunk::<8>().ok_or(FormatError::Short)?;
        self.0 = rest;
        Ok(u64::from_le_bytes(*word))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_come_back_as_they_were_written() {
        let mut epochs = EpochTable::default();
        epochs.begin(EpochStart { epoch: 3, start: 10 }, 0);
        let controls = vec![
            Control::CheckpointBegin,
            Control::CheckpointStream { stream: StreamId::new(7), trimmed: 2, next: 12, epochs },
            Control::CheckpointSegment { number: 4, generation: 9, last_crc: 77 },
            Control::CheckpointEnd,
            Control::Trim { stream: StreamId::new(7), before: 4 },
            Control::Epoch { stream: StreamId::new(7), start: EpochStart { epoch: 5, start: 11 } },
            Control::Free { number: 4, generation: 9 },
        ];
        let mut bytes = Vec::new();
        controls.iter().for_each(|control| control.encode(&mut bytes));
        assert_eq!(Control::decode_all(&bytes).unwrap(), controls);
        for cut in 1..8 {
            assert!(Control::decode_all(&bytes[..bytes.len() - cut]).is_err());
        }
    }

    #[test]
    fn a_length_bomb_allocates_nothing() {
        let bytes: Vec<u8> =
            [5u64, 7, 0, 0, u64::MAX].iter().flat_map(|word| word.to_le_bytes()).collect();
        assert_eq!(Control::decode_all(&bytes).unwrap_err(), FormatError::Length);
    }
}
