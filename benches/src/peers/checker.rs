//! Looks at every record that a replay shows.

use anyhow::{Result, ensure};

use crate::records::Records;

/// Expects the records of client 0, in order.
pub struct Checker {
    records: Records,
    seen: u64,
}

impl Checker {
    /// Nothing seen.
    pub fn new(record_bytes: usize) -> Checker {
        Checker { records: Records::new(0, record_bytes, 1), seen: 0 }
    }

    /// The next record.
    ///
    /// # Errors
    /// When it is not the one that was written.
    pub fn check(&mut self, record: &[u8]) -> Result<()> {
        ensure!(record == self.records.next(), "record {} is not what was written", self.seen);
        self.seen += 1;
        Ok(())
    }

    /// How many there were.
    pub fn seen(&self) -> u64 {
        self.seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_record_is_noticed() {
        let mut records = Records::new(0, 64, 1);
        let mut checker = Checker::new(64);
        checker.check(records.next()).unwrap();
        let mut wrong = records.next().to_vec();
        wrong[63] ^= 1;
        assert!(checker.check(&wrong).is_err());
        assert_eq!(checker.seen(), 1);
    }
}
