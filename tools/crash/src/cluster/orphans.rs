//! What is cut is kept first (I-12): in a stream of the node's own, on the same disks, so that a
//! crash may come between.

use std::collections::BTreeSet;

use ringwal_engine::{AppendBatch, AppendError, StreamId};

use super::oracle::Written;
use super::store::Store;

const ORPHANS: StreamId = StreamId::new(2);
/// Records of it that fit a batch.
const TOGETHER: usize = 100;

/// A record that was cut: stream, offset, epoch, number.
pub type Orphan = (StreamId, u64, u64, u64);

/// What is being kept.
pub struct Keeping {
    left: Vec<Orphan>,
    tokens: Vec<AppendBatch>,
}

impl Keeping {
    /// Records of a stream.
    pub fn new(stream: StreamId, records: &[(u64, Written)]) -> Self {
        let orphan =
            |(offset, (epoch, number)): &(u64, Written)| (stream, *offset, *epoch, *number);
        Self { left: records.iter().map(orphan).collect(), tokens: Vec::new() }
    }

    /// Goes on; whether all of it is durable.
    pub fn advance(&mut self, store: &mut Store) -> bool {
        while !self.left.is_empty() {
            let at = self.left.len().saturating_sub(TOGETHER);
            let encode = |(stream, offset, epoch, number): &Orphan| {
                [stream.get(), *offset, *epoch, *number].map(u64::to_le_bytes).concat()
            };
            let records: Vec<Vec<u8>> = self.left[at..].iter().map(encode).collect();
            match store.of(ORPHANS).append_batch(ORPHANS, &records) {
                Ok(token) => self.tokens.push(token),
                Err(AppendError::Full { .. }) => return false,
                Err(error) => panic!("{error}"),
            }
            self.left.truncate(at);
        }
        self.tokens.retain(|token| match token.try_receipt() {
            Some(receipts) => receipts.map(|_| false).expect("the disk is sound"),
            None => true,
        });
        self.tokens.is_empty()
    }
}

/// Everything that was ever kept.
pub fn all(store: &Store) -> BTreeSet<Orphan> {
    let records = store.at(ORPHANS).read(ORPHANS, ..).expect("from its start");
    let decode = |record: Result<ringwal_engine::Record, _>| {
        let record = record.expect("sound");
        let bytes: &[u8] = record.payload();
        let word = |at: usize| u64::from_le_bytes(*bytes[8 * at..].first_chunk().expect("4 words"));
        (StreamId::new(word(0)), word(1), word(2), word(3))
    };
    records.map(decode).collect()
}
