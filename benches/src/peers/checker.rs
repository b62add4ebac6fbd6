//! Looks at every record that a replay shows.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

use crate::records::Records;

/// Expects the records of client 0, in order.
pub struct Checker {
    records: Records,
    expected: u64,
    seen: u64,
    complete: Option<Instant>,
}

impl Checker {
    /// Nothing seen, so many expected.
    pub fn new(record_bytes: usize, expected: u64) -> Checker {
        Checker { records: Records::new(0, record_bytes, 1), expected, seen: 0, complete: None }
    }

    /// The next record.
    ///
    /// # Errors
    /// When it is not the one that was written.
    pub fn check(&mut self, record: &[u8]) -> Result<()> {
        ensure!(record == self.records.next(), "record {} is not what was written", self.seen);
        self.seen += 1;
        if self.seen == self.expected {
            self.complete = Some(Instant::now());
        }
        Ok(())
    }

    /// When the last of them was seen.
    ///
    /// # Errors
    /// When there are more or fewer than were written.
    pub fn complete(&self) -> Result<Instant> {
        ensure!(self.seen == self.expected, "{} of {} records came back", self.seen, self.expected);
        self.complete.context("there are no records")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_record_is_noticed() {
        let mut records = Records::new(0, 64, 1);
        let mut checker = Checker::new(64, 2);
        checker.check(records.next()).unwrap();
        let mut wrong = records.next().to_vec();
        wrong[63] ^= 1;
        assert!(checker.check(&wrong).is_err());
        assert!(checker.complete().is_err(), "one is missing");
    }
}
