//! A node's part as leader: what it appends, sends and reads for its followers.

use std::collections::{BTreeMap, VecDeque};
use std::task::Poll;

use ringwal_engine::{AppendBatch, ReadError, SealedFrames, Shard, StreamId, Subscription};
use ringwal_replication::leader::{Leader, Limits, ReadOutcome, ReadRequest};

use super::oracle::{Oracle, all_held, held, payload};
use crate::random::Random;

/// Messages that wait for the replication thread.
const SUBSCRIBED: usize = 8;

/// See the module.
pub struct Leading {
    pub core: Leader,
    subscription: Subscription,
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
    pub fn new(shard: &mut Shard, epoch: u64, followers: usize, random: &mut Random) -> Self {
        shard.set_epoch(epoch);
        let streams = all_held(shard).into_iter().map(|(stream, held)| (stream, 0, held));
        let limits = Limits {
            window_bytes: random.within(4..=64) as usize * 1024,
            window_buffers: random.within(2..=8) as usize,
            read_bytes: random.within(1..=16) as usize * 1024,
            heartbeat_ns: 50_000_000,
        };
        Self {
            core: Leader::new(epoch, followers, limits, streams),
            subscription: shard.subscribe(SUBSCRIBED),
            reads: VecDeque::new(),
            waiting: Vec::new(),
            told: BTreeMap::new(),
        }
    }

    /// Appends some records; whether there was room.
    pub fn append(
        &mut self,
        shard: &mut Shard,
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
        if let Ok(token) = shard.append_batch(stream, &records) {
            oracle.counts.appends += count;
            let quorum = random.chance(500);
            self.waiting.push(Waiting { stream, numbers, token, quorum, placed: None });
        }
    }

    /// Takes some of what was sealed.
    pub fn pump(&mut self, messages: u64, oracle: &mut Oracle) {
        for _ in 0..messages {
            match self.subscription.try_next() {
                Poll::Ready(Some(SealedFrames::Batch { shard, frames })) => {
                    self.core.handle_sealed(shard, &frames);
                }
                Poll::Ready(Some(SealedFrames::Lagged { shard })) => {
                    oracle.counts.lagged += 1;
                    self.core.handle_lagged(shard);
                }
                _ => return,
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
                let receipts = receipts.expect("the disk is sound");
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

    /// Ends the oldest read.
    pub fn finish_read(&mut self, shard: &Shard) {
        let Some(request) = self.reads.pop_front() else { return };
        let outcome = match shard.frames(request.stream, request.from).next_batch(request.bytes_max)
        {
            Ok(frames) => {
                let end = frames
                    .last()
                    .map_or(request.from, |frame| frame.base_offset + u64::from(frame.count));
                let at_end = end >= held(shard, request.stream).end;
                ReadOutcome::Frames { frames, at_end }
            }
            Err(ReadError::Trimmed { trimmed, .. }) => ReadOutcome::Trimmed { trimmed },
            Err(error) => panic!("{error}"),
        };
        self.core.handle_read(request, outcome);
    }

    /// Tells the followers what is committed by now.
    pub fn tell_committed(&mut self, shard: &Shard, oracle: &mut Oracle) {
        let mut told = Vec::new();
        while let Some((stream, enough)) = self.core.poll_risen() {
            let end = enough.min(held(shard, stream).end);
            oracle.note_committed(shard, stream, end);
            told.push((stream, end));
            self.told.insert(stream, end);
        }
        self.core.tell_committed(&told);
    }

    /// What is durable and was missed is found.
    pub fn check_ends(&mut self, shard: &Shard) {
        for (stream, held) in all_held(shard) {
            self.core.handle_durable_end(stream, 0, held.end);
        }
    }
}
