//! A node's part as follower: the frames that it appends, and the reports.

use std::collections::{BTreeMap, VecDeque};

use ringwal_engine::format::VerifiedFrame;
use ringwal_engine::{AppendBatch, AppendError, Shard, StreamId};
use ringwal_replication::follower::{Follower, Worth};

use super::oracle::{Oracle, all_held};

/// See the module.
pub struct Following {
    pub core: Follower,
    /// Number of the leader's node.
    pub leader: usize,
    appending: VecDeque<(StreamId, AppendBatch)>,
}

impl Following {
    /// Begins a session; nothing is being appended.
    pub fn new(
        shard: &Shard,
        leader: usize,
        epoch: u64,
        committed: BTreeMap<StreamId, u64>,
    ) -> Self {
        let core = Follower::new(epoch, true, all_held(shard), committed);
        Self { core, leader, appending: VecDeque::new() }
    }

    /// Takes a frame; false when there is no room for it now.
    pub fn take_frame(&mut self, shard: &mut Shard, bytes: &[u8], oracle: &mut Oracle) -> bool {
        let frame = VerifiedFrame::verify(bytes).expect("the connection damages nothing");
        let stream = StreamId::new(frame.header.stream.get());
        let mut core_after = self.core.clone();
        if core_after.handle_frame(&frame.header) == Worth::Ignore {
            oracle.counts.ignored += 1;
            self.core = core_after;
            return true;
        }
        match shard.append_frame(bytes) {
            Ok(token) => {
                oracle.counts.frames += 1;
                self.core = core_after;
                self.appending.push_back((stream, token));
                true
            }
            Err(AppendError::Full { .. }) => false,
            Err(error) => panic!("{error}"),
        }
    }

    /// Takes the receipts that have come.
    pub fn settle(&mut self) {
        while let Some((stream, token)) = self.appending.front()
            && let Some(receipts) = token.try_receipt()
        {
            let end = receipts.expect("the exact continuation").offsets().end;
            self.core.handle_durable(*stream, end, 1);
            self.appending.pop_front();
        }
    }

    /// Whether everything has its outcome.
    pub fn is_quiet(&self) -> bool {
        self.appending.iter().all(|(_, token)| token.try_receipt().is_some())
    }
}
