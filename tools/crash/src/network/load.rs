//! What a leader's clients write: from several threads, to all streams, alone and in batches, with
//! both kinds of acknowledgement. What is about to be submitted is said before it is, and what came
//! of it when it is known.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use ringwal_engine::{Append, AppendBatch, StreamId};
use ringwal_replication::{Ack, Leadership, LedAppendError, LedCommitError, Pending};

use super::payload::{STREAMS, number, record};
use crate::nodes::Voice;
use crate::random::{Random, mix};

/// Clients of each kind.
const CLIENTS: u64 = 2;
/// Submissions of a client that wait for their outcome.
const WAITING_MAX: usize = 24;
/// Most bytes of a batch: what the engine takes as one.
const BATCH_BYTES_MAX: usize = 64 << 10;

/// The load of one epoch.
#[derive(Debug)]
pub struct Load {
    seed: u64,
    leadership: Leadership,
    voice: Voice,
    /// Submissions so far, of each stream.
    counts: [AtomicU64; STREAMS.len()],
    /// Clients that have not ended.
    clients: AtomicU64,
    /// They submit no more.
    is_quiet: AtomicBool,
}

/// A submission without an outcome.
struct Waiting {
    stream: u64,
    count: u64,
    pending: Submitted,
}

enum Submitted {
    Alone(Pending<Append>),
    Together(u64, Pending<AppendBatch>),
}

impl Load {
    /// Starts the clients; they end with the term, or when they are told to.
    pub fn start(seed: u64, leadership: Leadership, voice: Voice) -> Arc<Load> {
        let (counts, clients) = (Default::default(), AtomicU64::new(2 * CLIENTS));
        let is_quiet = AtomicBool::new(false);
        let load = Arc::new(Load { seed, leadership, voice, counts, clients, is_quiet });
        for client in 0..2 * CLIENTS {
            let load = load.clone();
            let ack = if client < CLIENTS { Ack::Local } else { Ack::Quorum };
            std::thread::spawn(move || load.run(client, ack));
        }
        load
    }

    /// The clients wait for their last outcomes, and end.
    pub fn quiet(&self) {
        self.is_quiet.store(true, Ordering::Release);
    }

    /// The term that it writes in.
    pub fn leadership(&self) -> &Leadership {
        &self.leadership
    }

    fn run(&self, client: u64, ack: Ack) {
        let epoch = self.leadership.epoch();
        let mut random = Random::new(mix(self.seed ^ mix(epoch)) ^ client);
        let mut waiting = VecDeque::new();
        while self.leadership.ended().is_none() && !self.is_quiet.load(Ordering::Acquire) {
            match self.submit(&mut random, ack) {
                Some(submitted) => waiting.push_back(submitted),
                None => break,
            }
            let most = random.within(1..=WAITING_MAX as u64) as usize;
            while waiting.len() >= most {
                self.hear(ack, waiting.pop_front().expect("there are some"));
            }
            std::thread::sleep(Duration::from_millis(random.within(1..=6)));
        }
        waiting.into_iter().for_each(|submitted| self.hear(ack, submitted));
        if self.clients.fetch_sub(1, Ordering::AcqRel) == 1 {
            let why = self.leadership.ended().unwrap_or_default();
            self.voice.say(&format!("over {epoch} {why}"));
        }
    }

    /// `None` when nothing is taken any more.
    fn submit(&self, random: &mut Random, ack: Ack) -> Option<Waiting> {
        let epoch = self.leadership.epoch();
        let at = random.below(STREAMS.len() as u64) as usize;
        let stream = STREAMS[at];
        let records = if random.one_in(3) { random.within(2..=16) } else { 1 };
        let count = self.counts[at].fetch_add(records, Ordering::AcqRel);
        let id = StreamId::new(stream);
        self.voice.say(&format!("submit {epoch} {stream} {count} {records}"));
        let record = |count| record(self.seed, stream, number(epoch, count));
        let pending = if records == 1 {
            self.leadership.append(id, record(count), ack).map(Submitted::Alone)
        } else {
            // Those that are long leave room for fewer; the others are not submitted.
            let mut bytes = 0;
            let batch: Vec<_> = (count..count + records)
                .map(record)
                .take_while(|record| {
                    bytes += record.len();
                    bytes < BATCH_BYTES_MAX
                })
                .collect();
            let taken = batch.len() as u64;
            let pending = self.leadership.append_batch(id, batch, ack);
            pending.map(|pending| Submitted::Together(taken, pending))
        };
        match pending {
            Ok(pending) => return Some(Waiting { stream, count, pending }),
            Err(LedAppendError::NotLeading { .. }) => {
                self.voice.say(&format!("not {epoch} {stream} {count} {records}"));
            }
            Err(error) => self.voice.say(&format!("broken append to {stream}: {error}")),
        }
        None
    }

    /// Waits for an outcome, and says it.
    fn hear(&self, ack: Ack, Waiting { stream, count, pending }: Waiting) {
        let (records, outcome) = match pending {
            Submitted::Alone(pending) => {
                let receipt = pending.wait().map(|acknowledged| acknowledged.receipt);
                (1, receipt.map(|receipt| (receipt.epoch(), receipt.offset())))
            }
            Submitted::Together(records, pending) => {
                let receipts = pending.wait().map(|acknowledged| acknowledged.receipt);
                (records, receipts.map(|receipts| (receipts.epoch(), receipts.offsets().start)))
            }
        };
        let epoch = self.leadership.epoch();
        let which = format!("{epoch} {stream} {count} {records}");
        self.voice.say(&match outcome {
            Ok((told, offset)) if told != epoch => {
                format!("broken a receipt of epoch {told} at {offset} for {which}")
            }
            Ok((_, offset)) => {
                let kind = if ack == Ack::Local { "local" } else { "quorum" };
                format!("{kind} {which} {offset}")
            }
            Err(LedCommitError::Unknown { .. }) => format!("unknown {which}"),
            Err(LedCommitError::NotLeading { .. }) => format!("not {which}"),
            Err(error) => format!("broken {which}: {error}"),
        });
    }
}
