//! What clients were told of their commands, against the log that is left at the end.

use ringwal_replication::Ack;

use super::Oracle;
use crate::history::{Asked, Log, Outcome, Read, acknowledged, order, origin_by_session};
use crate::raft::runtime::true_ns;

impl Oracle {
    pub fn note_asked(&mut self, asked: Asked) {
        let counts = &mut self.counts;
        match &asked.outcome {
            Outcome::Executed { place, durable, .. } => {
                match durable {
                    Ack::Local => counts.executed_local += 1,
                    Ack::Quorum => counts.executed_quorum += 1,
                }
                let (epoch, offset) = place.unwrap_or_default();
                self.trace(&[6, true_ns(), epoch, offset]);
            }
            Outcome::Refused => counts.refused += 1,
            Outcome::NotDone => counts.not_done += 1,
            Outcome::Unknown => counts.unknown += 1,
        }
        self.asked.push(asked);
    }

    pub fn note_read(&mut self, read: Read) {
        self.counts.reads += 1;
        self.trace(&[7, true_ns(), read.end]);
        self.reads.push(read);
    }

    /// At the end, with the records of the metadata stream, which all nodes have: epoch and bytes.
    pub fn check_acknowledged(&mut self, records: &[(u64, Vec<u8>)]) {
        let records = records.iter().map(|(epoch, bytes)| (*epoch, &bytes[..]));
        let log = Log::execute(records, origin_by_session, |_| {});
        let orphans = &self.orphans;
        let was_cut = |asked: &Asked| matches!(&asked.outcome, Outcome::Executed { place: Some(place), .. } if orphans.contains(place));
        let (wrong, lost) = acknowledged::check(&self.asked, &log, was_cut);
        self.counts.lost_local += lost;
        let out_of_order = order::check(&self.asked, &self.reads, &log);
        let wrong = log.wrong.iter().chain(&wrong).chain(&out_of_order).next();
        assert!(wrong.is_none(), "{}", wrong.expect("there is one"));
    }
}
