//! What clients have submitted and been told, whoever told it.

use std::collections::{BTreeMap, HashSet};

use super::payload::{number, parts};

/// A record with a receipt.
#[derive(Clone, Copy, Debug)]
pub struct Acknowledged {
    /// The node that gave it, from 0.
    pub node: usize,
    /// Which stream.
    pub stream: u64,
    /// In which epoch.
    pub epoch: u64,
    /// Where.
    pub offset: u64,
    /// Which submission: see [`number`].
    pub number: u64,
    /// A majority has it.
    pub is_quorum: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Submissions by stream and epoch.
    submitted: BTreeMap<(u64, u64), u64>,
    /// Submissions that were certainly not written, with their streams.
    refused: HashSet<(u64, u64)>,
    /// Every receipt.
    pub acknowledged: Vec<Acknowledged>,
    /// Receipts of a majority, of one node alone, and outcomes that nobody knows: counted.
    pub quorum: u64,
    /// See [`Ledger::quorum`].
    pub local: u64,
    /// See [`Ledger::quorum`].
    pub unknown: u64,
    /// Submissions that were certainly not written.
    pub not_written: u64,
    /// Offset after the last record that a majority is known to have, by stream.
    pub committed: BTreeMap<u64, u64>,
    /// Offsets below which records were to be dropped, by stream.
    pub trimmed: BTreeMap<u64, u64>,
}

impl Ledger {
    /// Takes a line of a leader; whether it was one for the ledger.
    pub fn hear(&mut self, node: usize, line: &str) -> bool {
        let mut words = line.split(' ');
        let kind = words.next().unwrap_or_default();
        let numbers: Vec<u64> = words.filter_map(|word| word.parse().ok()).collect();
        let [epoch, stream, count, records, ref rest @ ..] = numbers[..] else { return false };
        match (kind, rest) {
            ("submit", []) => {
                let until = self.submitted.entry((stream, epoch)).or_default();
                *until = (count + records).max(*until);
            }
            ("not", []) => {
                self.not_written += records;
                let numbers = (count..count + records).map(|count| (stream, number(epoch, count)));
                self.refused.extend(numbers);
            }
            ("unknown", []) => self.unknown += records,
            ("local" | "quorum", [offset]) => {
                let is_quorum = kind == "quorum";
                for at in 0..records {
                    let (offset, number) = (offset + at, number(epoch, count + at));
                    let receipt = Acknowledged { node, stream, epoch, offset, number, is_quorum };
                    self.acknowledged.push(receipt);
                }
                if is_quorum {
                    self.quorum += records;
                    let committed = self.committed.entry(stream).or_default();
                    *committed = (offset + records).max(*committed);
                } else {
                    self.local += records;
                }
            }
            _ => return false,
        }
        true
    }

    /// Whether a submission was made, and may have been written.
    ///
    /// # Errors
    /// Why not.
    pub fn may_be_there(&self, stream: u64, number: u64) -> Result<(), String> {
        let (epoch, count) = parts(number);
        let until = self.submitted.get(&(stream, epoch)).copied().unwrap_or(0);
        if count >= until {
            return Err(format!(
                "submission {count} of epoch {epoch} was never made ({until} were)"
            ));
        }
        if self.refused.contains(&(stream, number)) {
            return Err(format!("submission {count} of epoch {epoch} was said not to be written"));
        }
        Ok(())
    }

    /// Offset up to which records of a stream may be missing.
    pub fn trimmed(&self, stream: u64) -> u64 {
        self.trimmed.get(&stream).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_knows_what_may_be_there() {
        let mut ledger = Ledger::default();
        assert!(ledger.hear(1, "submit 3 10 0 4"));
        assert!(ledger.hear(1, "quorum 3 10 0 2 100"));
        assert!(ledger.hear(1, "not 3 10 2 1"));
        assert!(!ledger.hear(1, "state 3 10 2 1"));
        assert!(!ledger.hear(1, "up"));
        assert_eq!((ledger.quorum, ledger.local, ledger.not_written), (2, 0, 1));
        assert_eq!(ledger.committed[&10], 102);
        assert_eq!(ledger.acknowledged[1].number, number(3, 1));
        assert!(ledger.may_be_there(10, number(3, 3)).is_ok());
        assert!(ledger.may_be_there(10, number(3, 2)).is_err());
        assert!(ledger.may_be_there(10, number(3, 4)).is_err());
        assert!(ledger.may_be_there(10, number(2, 0)).is_err());
    }
}
