//! Power cuts at any moment: what was acknowledged is there afterwards, in order, and nothing else.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use openraft::alias::OneshotReceiverOf;
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::type_config::TypeConfigExt;
use openraft::{EntryPayload, RaftLogReader};
use openraft_rt_tokio::TokioRuntime;
use ringwal_engine::disk::sim::SimHandle;
use ringwal_raft_fallback::raft::{Entry, LogId, Payload, RaftLog, Types, Vote};

use crate::simulated::{SimJournal, blank_disk, pause};

type Log = RaftLog<SimJournal, TokioRuntime>;

/// Xorshift.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }
}

pub fn log_id(term: u64, index: u64) -> LogId {
    LogId { leader_id: openraft::vote::leader_id_std::CommittedLeaderId::new(term), index }
}

pub fn entry(term: u64, index: u64, bytes: usize) -> Entry {
    let record = Bytes::from(vec![(term ^ index) as u8; bytes]);
    let payload =
        Payload::Extend { epoch: term, base: index, continues: false, records: vec![record] };
    Entry { log_id: log_id(term, index), payload: EntryPayload::Normal(payload) }
}

/// A write of which nobody said whether it happened.
enum Doubt {
    Vote(Vote),
    Cut(u64),
    Purge(LogId),
}

/// What must be there.
#[derive(Default)]
struct Model {
    term: u64,
    first: u64,
    next: u64,
    /// Entries that were given to the log.
    entries: BTreeMap<u64, Entry>,
    /// Entries below are acknowledged.
    acknowledged: u64,
    vote: Option<Vote>,
    purged: Option<LogId>,
    doubt: Option<Doubt>,
}

/// What ends where, and where that is told.
type Waiting = Vec<(u64, OneshotReceiverOf<Types, io::Result<()>>)>;

impl Model {
    /// Takes what has been acknowledged, which must have been in order. False after a failure.
    fn hear(&mut self, waiting: &mut Waiting) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        let mut all_sound = true;
        let mut is_open = false;
        waiting.retain_mut(|(end, receiver)| match Pin::new(receiver).poll(&mut context) {
            Poll::Pending => {
                is_open = true;
                true
            }
            Poll::Ready(Ok(Ok(()))) => {
                assert!(!is_open && all_sound, "acknowledged behind what was not");
                self.acknowledged = *end;
                false
            }
            Poll::Ready(_) => {
                all_sound = false;
                false
            }
        });
        all_sound
    }

    /// One write. False when the machine is down.
    async fn act(&mut self, log: &mut Log, random: &mut Random, waiting: &mut Waiting) -> bool {
        match random.below(100) {
            0..70 => {
                let count = 1 + random.below(4);
                let bytes = random.below(3000) as usize;
                let entries: Vec<Entry> = (self.next..self.next + count)
                    .map(|index| entry(self.term, index, bytes))
                    .collect();
                let (sender, receiver) = Types::<TokioRuntime>::oneshot();
                self.next += count;
                waiting.push((self.next, receiver));
                self.entries
                    .extend(entries.iter().map(|entry| (entry.log_id.index, entry.clone())));
                log.append(entries, IOFlushed::signal(sender)).await.is_ok()
            }
            70..82 => {
                self.term += 1;
                let vote = Vote::new(self.term, random.below(3));
                self.doubt = Some(Doubt::Vote(vote));
                let saved = log.save_vote(&vote).await.is_ok();
                if saved {
                    (self.vote, self.doubt) = (Some(vote), None);
                    assert!(
                        self.hear(waiting) && waiting.is_empty(),
                        "a vote is behind all entries"
                    );
                }
                saved
            }
            82..90 => {
                let end = self.first + random.below(self.next - self.first + 1);
                self.doubt = Some(Doubt::Cut(end));
                let last = end.checked_sub(1).map(|index| match self.entries.get(&index) {
                    Some(entry) => entry.log_id,
                    None => self.purged.expect("what is before the first is purged"),
                });
                let cut = log.truncate_after(last).await.is_ok();
                if cut {
                    assert!(self.hear(waiting) && waiting.is_empty());
                    self.cut(end);
                    self.term += 1;
                    self.doubt = None;
                }
                cut
            }
            90..97 => {
                // Sometimes behind the end, as after a snapshot.
                let index = self.first + random.below(self.next - self.first + 3);
                let last = match self.entries.get(&index) {
                    Some(entry) => entry.log_id,
                    None => log_id(self.term, index),
                };
                self.doubt = Some(Doubt::Purge(last));
                let purged = log.purge(last).await.is_ok();
                if purged {
                    assert!(self.hear(waiting) && waiting.is_empty());
                    self.purge(last);
                    self.doubt = None;
                }
                purged
            }
            _ => {
                for _ in 0..random.below(20) {
                    pause().await;
                }
                self.hear(waiting)
            }
        }
    }

    fn cut(&mut self, end: u64) {
        self.entries.retain(|index, _| *index < end);
        self.next = end;
        self.acknowledged = self.acknowledged.min(end);
    }

    fn purge(&mut self, last: LogId) {
        let first = last.index + 1;
        (self.purged, self.first) = (Some(last), first);
        self.entries.retain(|index, _| *index >= first);
        self.next = self.next.max(first);
        self.acknowledged = self.acknowledged.max(first);
    }

    /// Compares, and goes on from what there is.
    async fn check(&mut self, log: &mut Log) {
        let state = log.get_log_state().await.unwrap();
        let mut reader = log.get_log_reader().await;
        let vote = reader.read_vote().await.unwrap();
        match self.doubt.take() {
            Some(Doubt::Vote(other)) if vote == Some(other) => self.vote = vote,
            Some(Doubt::Purge(last)) if state.last_purged_log_id == Some(last) => self.purge(last),
            Some(Doubt::Cut(end)) => self.acknowledged = self.acknowledged.min(end),
            _ => {}
        }
        assert_eq!((vote, state.last_purged_log_id), (self.vote, self.purged));
        let found = reader.try_get_log_entries(..).await.unwrap();
        let end = self.first + found.len() as u64;
        assert!(
            self.acknowledged <= end && end <= self.next,
            "{end} entries; {} acknowledged, {} given",
            self.acknowledged,
            self.next
        );
        for (entry, index) in found.iter().zip(self.first..) {
            assert_eq!(Some(entry), self.entries.get(&index), "entry {index}");
        }
        assert_eq!(state.last_log_id, found.last().map(|entry| entry.log_id).or(self.purged));
        let committed = log.read_committed().await.unwrap();
        assert!(committed <= state.last_log_id);
        self.cut(end);
        self.acknowledged = end;
        self.term += 1;
    }
}

/// One life of the machine: opens, checks, writes, and loses power at some operation of the disk.
fn live(sim: &SimHandle, model: &mut Model, random: &mut Random) {
    let before = sim.crashes();
    sim.crash_at(sim.operations() + random.below(160));
    let journal = match SimJournal::open(sim) {
        Ok(journal) => journal,
        Err(error) => {
            assert!(sim.crashes() > before, "the power was on while it opened: {error}");
            return;
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let turned = journal.clone();
    runtime.spawn(async move {
        loop {
            turned.turn();
            tokio::task::yield_now().await;
        }
    });
    let cache_bytes = [0, 2000, 1 << 20][random.below(3) as usize];
    runtime.block_on(async {
        let mut log = match Log::open(journal.clone(), cache_bytes).await {
            Ok(log) => log,
            Err(error) => {
                assert!(sim.crashes() > before, "the power was on while it opened: {error}");
                return;
            }
        };
        model.check(&mut log).await;
        let mut waiting = Vec::new();
        for _ in 0..120 {
            if !model.act(&mut log, random, &mut waiting).await {
                break;
            }
            if random.below(3) == 0 {
                let committed = model.acknowledged.checked_sub(1);
                let known = committed.and_then(|index| model.entries.get(&index));
                log.save_committed(known.map(|entry| entry.log_id).or(model.purged)).await.unwrap();
            }
        }
        model.hear(&mut waiting);
    });
    drop(runtime);
    sim.crash();
    journal.abandon();
}

#[test]
fn what_was_acknowledged_survives_every_power_cut() {
    let (mut power_cuts, mut entries, mut purged) = (0, 0, 0);
    for seed in 1..=400 {
        let sim = blank_disk(seed);
        let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let mut model = Model::default();
        let lives = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..6 {
                live(&sim, &mut model, &mut random);
            }
        }));
        if let Err(panic) = lives {
            eprintln!("seed {seed}");
            std::panic::resume_unwind(panic);
        }
        power_cuts += sim.crashes();
        entries += model.next;
        purged += model.first;
    }
    println!("{power_cuts} power cuts, {entries} entries, {purged} of them purged");
    assert!(power_cuts > 2000 && entries > 4000 && purged > 1000, "too little happened");
}
