//! A state machine that keeps what it is told, and gives it away as a snapshot.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::{Stream, TryStreamExt};
use openraft::alias::StoredMembershipOf;
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend};
use ringwal_raft_fallback::raft::rpc::{Snapshot, SnapshotMeta};
use ringwal_raft_fallback::raft::{Effect, LogId, Payload, Types};

#[derive(Default)]
struct Kept {
    last: Option<LogId>,
    membership: StoredMembershipOf<Types>,
    /// The first byte and the length of each record.
    records: Vec<(u8, u32)>,
    snapshot: Option<Snapshot>,
}

#[derive(Clone, Default)]
pub struct Machine(Arc<Mutex<Kept>>);

impl Machine {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn records(&self) -> Vec<(u8, u32)> {
        self.lock().records.clone()
    }
}

/// A few records as many bytes, so that a snapshot has several parts.
const PADDING: usize = 100_000;

fn write(records: &[(u8, u32)]) -> Bytes {
    let mut bytes = Vec::new();
    for (first, length) in records {
        bytes.push(*first);
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.resize(bytes.len() + PADDING, *first);
    }
    bytes.into()
}

fn read(bytes: &[u8]) -> Vec<(u8, u32)> {
    let one = |piece: &[u8]| {
        assert!(piece[5..].iter().all(|byte| *byte == piece[0]), "the padding is whole");
        (piece[0], u32::from_le_bytes(piece[1..5].try_into().unwrap()))
    };
    bytes.chunks(5 + PADDING).map(one).collect()
}

impl RaftSnapshotBuilder<Types> for Machine {
    type SnapshotData = Bytes;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        let mut kept = self.lock();
        let meta =
            SnapshotMeta { last_log_id: kept.last, last_membership: kept.membership.clone() };
        let snapshot = Snapshot { meta, snapshot: write(&kept.records) };
        kept.snapshot = Some(snapshot.clone());
        Ok(snapshot)
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotData = Bytes;
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembershipOf<Types>)> {
        let kept = self.lock();
        Ok((kept.last, kept.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<Types>>> + Unpin + OptionalSend,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            let mut kept = self.lock();
            kept.last = Some(entry.log_id);
            match entry.payload {
                EntryPayload::Membership(membership) => {
                    kept.membership =
                        StoredMembershipOf::<Types>::new(Some(entry.log_id), membership);
                }
                EntryPayload::Normal(Payload::Extend { records, .. }) => {
                    kept.records
                        .extend(records.iter().map(|record| (record[0], record.len() as u32)));
                }
                EntryPayload::Normal(Payload::EpochStart { .. }) | EntryPayload::Blank => {}
            }
            drop(kept);
            if let Some(responder) = responder {
                responder.send(Effect::Done);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: Bytes) -> io::Result<()> {
        let mut kept = self.lock();
        kept.last = meta.last_log_id;
        kept.membership = meta.last_membership.clone();
        kept.records = read(&snapshot);
        kept.snapshot = Some(Snapshot { meta: meta.clone(), snapshot });
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        Ok(self.lock().snapshot.clone())
    }
}
