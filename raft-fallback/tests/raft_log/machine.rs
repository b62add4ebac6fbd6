//! A state machine that only counts: what openraft needs beside a log.

use std::io::{self, Cursor};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::{Stream, TryStreamExt};
use openraft::alias::{SnapshotMetaOf, SnapshotOf, StoredMembershipOf};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend};
use ringwal_raft_fallback::raft::{Effect, LogId, Types};

type Data = Cursor<Vec<u8>>;
type Meta = SnapshotMetaOf<Types>;
type Snapshot = SnapshotOf<Types, Data>;

#[derive(Default)]
struct Counted {
    last: Option<LogId>,
    membership: StoredMembershipOf<Types>,
    snapshot: Option<Meta>,
}

#[derive(Clone, Default)]
pub struct Machine(Arc<Mutex<Counted>>);

impl Machine {
    fn lock(&self) -> MutexGuard<'_, Counted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RaftSnapshotBuilder<Types> for Machine {
    type SnapshotData = Data;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        let mut counted = self.lock();
        let meta = Meta { last_log_id: counted.last, last_membership: counted.membership.clone() };
        counted.snapshot = Some(meta.clone());
        Ok(Snapshot { meta, snapshot: Data::default() })
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotData = Data;
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembershipOf<Types>)> {
        let counted = self.lock();
        Ok((counted.last, counted.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<Types>>> + Unpin + OptionalSend,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            let mut counted = self.lock();
            counted.last = Some(entry.log_id);
            if let EntryPayload::Membership(membership) = entry.payload {
                counted.membership =
                    StoredMembershipOf::<Types>::new(Some(entry.log_id), membership);
            }
            drop(counted);
            if let Some(responder) = responder {
                responder.send(Effect::Done);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(&mut self, meta: &Meta, _: Data) -> io::Result<()> {
        let mut counted = self.lock();
        counted.last = meta.last_log_id;
        counted.membership = meta.last_membership.clone();
        counted.snapshot = Some(meta.clone());
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        let meta = self.lock().snapshot.clone();
        Ok(meta.map(|meta| Snapshot { meta, snapshot: Data::default() }))
    }
}
