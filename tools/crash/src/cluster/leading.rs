//! A node's part as leader: what it appends, sends and reads for its followers.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::task::Poll;

use ringwal_engine::{
    AppendBatch, CommitError, FrameWalk, ReadError, SealedFrames, StreamId, Subscription,
};
use ringwal_replication::leader::{Leader, Limits, ReadOutcome, ReadRequest};

use super::oracle::{Oracle, payload};
use super::store::Store;
use crate::random::Random;

/// See the module.
pub struct Leading {
    pub core: Leader,
    /// One for each shard.
    subscriptions: Vec<Subscription>,
    /// Which of them is looked at next.
    turn: usize,
    /// Streams of which this leader was handed frames, or that it began with.
    seen: BTreeSet<StreamId>,
    /// What has been read of each shard.
    walks: Vec<FrameWalk>,
    /// Reads that are under way.
    pub reads: VecDeque<ReadRequest>,
    waiting: Vec<Waiting>,
    /// What it has told to be committed.
    told: BTreeMap<StreamId, u64>,
}

/// Records that were appended together.
struct Waiting {
    stream: StreamId,
    numbers: Vec<u64>,
    token: AppendBatch,
    quorum: bool,
    /// Epoch and first offset, when they are durable here.
    placed: Option<(u64, u64)>,
}

impl Leading {
    /// Begins an epoch that is promised.
    pub fn new(store: &mut Store, epoch: u64, followers: usize, random: &mut Random) -> Self {
        let held = store.all_held();
        let seen = held.keys().copied().collect();
        let number_of = |stream| store.number_of(stream);
        let streams: Vec<_> =
            held.into_iter().map(|(stream, held)| (stream, number_of(stream), held)).collect();
        let limits = Limits {
            window_bytes: random.within(4..=64) as usize * 1024,
            window_buffers: random.within(2..=8) as usize,
            read_bytes: random.within(1..=16) as usize * 1024,
            heartbeat_ns: 50_000_000,
        };
        // Messages that wait for the replication thread.
        let subscribed = random.pick(&[1, 2, 8, 8]) as usize;
        let begin = |shard: &mut ringwal_engine::Shard| {
            shard.set_epoch(epoch);
            shard.subscribe(subscribed)
        };
        Self {
            core: Leader::new(epoch, followers, limits, streams),
            subscriptions: store.shards().iter_mut().map(begin).collect(),
            walks: store.shards().iter().map(|shard| shard.walk_frames()).collect(),
            turn: 0,
            seen,
            reads: VecDeque::new(),
            waiting: Vec::new(),
            told: BTreeMap::new(),
        }
    }

    /// Appends some records; whether there was room.
    pub fn append(
        &mut self,
        store: &mut Store,
        stream: StreamId,
        random: &mut Random,
        oracle: &mut Oracle,
    ) {
        let count = random.pick(&[1, 1, 1, 2, 5]);
        let numbers: Vec<u64> = (0..count).map(|_| oracle.next_record()).collect();
        let records: Vec<Vec<u8>> = numbers
            .iter()
            .map(|number| payload(*number, random.within(8..=900) as usize))
            .collect();
        if let Ok(token) = store.of(stream).append_batch(stream, &records) {
            oracle.counts.appends += count;
            let quorum = random.chance(500);
            self.waiting.push(Waiting { stream, numbers, token, quorum, placed: None });
        }
    }

    /// Takes some of what was sealed.
    pub fn pump(&mut self, messages: u64, oracle: &mut Oracle) {
        let shards = self.subscriptions.len();
        for _ in 0..messages * shards as u64 {
            let shard = self.turn % shards;
            self.turn += 1;
            match self.subscriptions[shard].try_next() {
                Poll::Ready(Some(SealedFrames::Batch { frames, .. })) => {
                    self.seen.extend(frames.iter().map(|frame| frame.stream));
                    self.core.handle_sealed(shard as u16, &frames);
                }
                Poll::Ready(Some(SealedFrames::Lagged { .. })) => {
                    oracle.counts.lagged += 1;
                    self.core.handle_lagged(shard as u16);
                }
                _ => {}
            }
        }
    }

    /// Takes the receipts that have come.
    pub fn settle(&mut self, oracle: &mut Oracle) {
        let progress = self.core.progress();
        self.waiting.retain_mut(|waiting| {
            if waiting.placed.is_none()
                && let Some(receipts) = waiting.token.try_receipt()
            {
                let receipts = match receipts {
                    Ok(receipts) => receipts,
                    Err(CommitError::Refused(_)) => {
                        // The epoch was over before it was sealed.
                        oracle.counts.refused_late += 1;
                        return false;
                    }
                    Err(error) => panic!("{error}"),
                };
                let epoch = receipts.epoch();
                let base = receipts.offsets().start;
                for (offset, number) in receipts.offsets().zip(&waiting.numbers) {
                    oracle.note_local(waiting.stream, epoch, offset, *number);
                }
                waiting.placed = Some((epoch, base));
            }
            let Some((epoch, base)) = waiting.placed else { return true };
            let end = base + waiting.numbers.len() as u64;
            if waiting.quorum && progress.enough(waiting.stream) < end {
                return true;
            }
            if waiting.quorum {
                for (offset, number) in (base..end).zip(&waiting.numbers) {
                    oracle.note_quorum(waiting.stream, epoch, offset, *number);
                }
            }
            false
        });
    }

    /// What this leader knows to be committed of a stream.
    pub fn committed(&self, stream: StreamId) -> u64 {
        self.told.get(&stream).copied().unwrap_or(0)
    }

    /// A session with a follower has ended.
    pub fn disconnect(&mut self, follower: usize, session: u64, oracle: &mut Oracle) {
        let counts = self.core.handle_disconnected(follower, session);
        oracle.counts.sent += counts.frames;
        oracle.counts.dropped += counts.frames_dropped;
        oracle.counts.read += counts.bytes_read;
    }

    /// Whether everything has its outcome at this node.
    pub fn is_quiet(&self) -> bool {
        self.waiting.iter().all(|waiting| waiting.token.try_receipt().is_some())
    }

    /// Whether every record has the receipt that it was appended for.
    pub fn is_settled(&self) -> bool {
        self.waiting.is_empty()
    }

    /// It leads no more: who waits does not know.
    pub fn give_up(mut self, oracle: &mut Oracle) {
        self.settle(oracle);
        oracle.counts.unknown += self.waiting.len() as u64;
    }

    /// Begins a read that a follower needs.
    pub fn read(&mut self) {
        if let Some(request) = self.core.poll_read() {
            self.reads.push_back(request);
        }
    }

    /// Ends the oldest read; `fails` when the disk cannot read the first of its streams now.
    pub fn finish_read(&mut self, fails: bool) {
        let Some(request) = self.reads.pop_front() else { return };
        let (failed, wanted) = request.wanted.split_at(usize::from(fails));
        let piece = self.walks[usize::from(request.shard)].next_piece(wanted, request.bytes_max);
        for (stream, error) in &piece.failed {
            assert!(matches!(error, ReadError::Trimmed { .. }), "stream {stream}: {error}");
        }
        let mut outcome = ReadOutcome::from(piece);
        outcome.failed.extend(failed.iter().map(|(stream, _)| *stream));
        self.core.handle_read(&request, outcome);
    }

    /// Tells the followers what is committed by now.
    pub fn tell_committed(&mut self, store: &Store, oracle: &mut Oracle) {
        let mut told = Vec::new();
        while let Some((stream, enough)) = self.core.poll_enough() {
            let end = enough.min(store.at(stream).end(stream));
            if end <= self.committed(stream) {
                // A follower that has begun anew has less; what is committed stays so.
                continue;
            }
            oracle.note_committed(store, stream, end);
            told.push((stream, end));
            self.told.insert(stream, end);
        }
        self.core.tell_committed(&told);
    }

    /// What is durable and was missed is found.
    pub fn check_ends(&mut self, store: &Store, oracle: &mut Oracle) {
        for (stream, held) in store.all_held() {
            if held.end > 0 && self.seen.insert(stream) {
                oracle.counts.found_late += 1;
            }
            self.core.handle_durable_end(stream, store.number_of(stream), held.end);
        }
    }

    /// Whether every follower has a session, and nobody is behind.
    pub fn is_followed(&self, followers: usize) -> bool {
        (0..followers).all(|follower| {
            let state = self.core.session(follower);
            state.is_some_and(|state| state.behind == 0 && state.lag_records == 0)
        })
    }
}
