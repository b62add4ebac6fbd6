//! The log: what openraft asks of it, over a [`Journal`].
//!
//! Writes keep their order. Entries follow one another in their stream, and their task reports them in
//! that order. Whatever else is written (a vote, a cut, a purge) first waits until all entries before it have
//! their outcome, and returns when it is durable itself: between streams, and between records and changes,
//! the engine keeps no order. Those writes are rare.

use std::fmt::{Debug, Display};
use std::io;
use std::marker::PhantomData;
use std::ops::{Bound, Range, RangeBounds};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use openraft::alias::MpscSenderOf;
use openraft::async_runtime::MpscSender;
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::type_config::TypeConfigExt;
use openraft::{AsyncRuntime, OptionalSend};
use ringwal_engine::{AppendError, CommitError, ReadError, StreamId};

use super::cache::Cache;
use super::codec::Malformed;
use super::completion::{Written, complete};
use super::entry::{self, ENTRY_BYTES_MAX};
use super::journal::{Held, Journal};
use super::types::{Entry, LogId, Types, Vote};
use super::vote::LogFacts;

/// The stream of the log: an entry's index is its offset.
pub const LOG_STREAM: StreamId = StreamId::new(1);
/// The stream of the vote, and of what has been purged and is committed.
pub const STATE_STREAM: StreamId = StreamId::new(2);

/// Writes of entries that wait for their outcome. The engine's lane for streams 1 to 3 is full before.
const WRITES_WAITING_MAX: usize = 1024;
/// Records of stream 2 that are left before it is trimmed.
const STATE_RECORDS_MAX: u64 = 64;
/// About what one read gives to a follower, in bytes.
const READ_BYTES_MAX: usize = 1 << 20;

/// Why the log could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Reading the streams failed.
    #[error("reading Raft's log: {0}")]
    Read(#[from] ReadError),
    /// A record is not what it should be.
    #[error(
        "Raft's log: stream {stream}, offset {offset}: {cause}; restore the directory, or let the node join again with a blank one"
    )]
    Malformed {
        /// Which stream.
        stream: StreamId,
        /// Where in it.
        offset: u64,
        /// What is wrong.
        cause: Malformed,
    },
    /// Entries are missing at the start.
    #[error(
        "Raft's log begins with entry {first}, and is said to be purged up to {purged} only: something else trimmed stream 1; let the node join again with a blank directory"
    )]
    Missing {
        /// The first entry that is there.
        first: u64,
        /// The first that should be.
        purged: u64,
    },
    /// Finishing a purge that a crash interrupted failed.
    #[error("finishing a purge of Raft's log: {0}")]
    Append(#[from] AppendError),
    /// The same.
    #[error("finishing a purge of Raft's log: {0}")]
    Commit(#[from] CommitError),
}

/// Raft's log, vote and committed index, in streams 1 and 2 of a journal. One per journal.
///
/// `append` returns when the entries are in memory and in the engine's queue; a task on Raft's runtime
/// tells when they are durable. The newest entries stay in memory, up to a number of bytes, older ones are
/// read from the journal.
///
/// After a failure of the engine every write fails and nothing is reported durable any more; reading goes
/// on.
pub struct RaftLog<J, R: AsyncRuntime> {
    reader: RaftLogReader<J, R>,
    written: MpscSenderOf<Types<R>, Written<R>>,
    state_trimmed: u64,
}

/// Reads a [`RaftLog`]. Clones see the same.
pub struct RaftLogReader<J, R> {
    journal: Arc<J>,
    shared: Arc<Shared>,
    runtime: PhantomData<fn() -> R>,
}

impl<J, R> Clone for RaftLogReader<J, R> {
    fn clone(&self) -> Self {
        let (journal, shared) = (self.journal.clone(), self.shared.clone());
        Self { journal, shared, runtime: PhantomData }
    }
}

/// What the log, its readers and its task share. Locked once for each call, never during I/O.
#[derive(Debug)]
pub(super) struct Shared(Mutex<State>);

#[derive(Debug)]
struct State {
    facts: LogFacts,
    /// Index of the first entry, and of the one that comes next.
    first: u64,
    next: u64,
    last: Option<LogId>,
    /// Entries below are durable.
    durable: u64,
    cache: Cache,
    /// Counts cuts and purges: what was read meanwhile may be of before or of after.
    changes: u64,
    /// The first failure.
    failed: Option<String>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Latches the first failure.
    pub(super) fn fail(&self, cause: &dyn Display) {
        self.lock().failed.get_or_insert_with(|| cause.to_string());
    }

    /// The first failure.
    pub(super) fn check(&self) -> io::Result<()> {
        let failed = self.lock().failed.clone();
        failed.map_or(Ok(()), |cause| Err(io::Error::other(format!("Raft's log: {cause}"))))
    }

    /// The entries below `end` are durable.
    pub(super) fn durable(&self, end: u64) {
        let mut state = self.lock();
        // Behind a failure there is a gap.
        if state.failed.is_none() {
            assert!(state.durable <= end && end <= state.next, "entries become durable in order");
            state.durable = end;
            state.cache.evict(end);
        }
    }
}

impl<J: Journal, R: AsyncRuntime> RaftLog<J, R> {
    /// Opens the log of a journal, empty or as it was left, and starts its task on the runtime that this
    /// runs on. `cache_bytes_max` bounds the entries kept in memory beyond those that are on their way.
    ///
    /// # Errors
    /// When the streams cannot be read, or do not hold what they should.
    pub async fn open(journal: J, cache_bytes_max: usize) -> Result<Self, OpenError> {
        let mut facts = LogFacts::default();
        let state = journal.held(STATE_STREAM);
        if let Some(record) = read_last(&journal, STATE_STREAM, state).await? {
            let malformed = |cause| malformed(STATE_STREAM, state.end - 1, cause);
            facts = LogFacts::decode(record).map_err(malformed)?;
        }
        let first = facts.purged.map_or(0, |purged| purged.index + 1);
        let mut log = journal.held(LOG_STREAM);
        if log.trimmed > first {
            return Err(OpenError::Missing { first: log.trimmed, purged: first });
        }
        if log.trimmed < first {
            // A crash came between the two halves of a purge.
            journal.skip_to(LOG_STREAM, first)?.await?;
            log = journal.held(LOG_STREAM);
        }
        let mut last = facts.purged;
        if let Some(record) = read_last(&journal, LOG_STREAM, log).await? {
            let index = log.end - 1;
            let (entry, committed) =
                decode_at(index, record).map_err(|cause| malformed(LOG_STREAM, index, cause))?;
            last = Some(entry.log_id);
            facts.committed = facts.committed.max(committed);
        }
        // What was committed may have been lost here, if it was not durable here.
        facts.committed = facts.committed.max(facts.purged).min(last);
        let shared = Arc::new(Shared(Mutex::new(State {
            facts,
            first,
            next: log.end,
            last,
            durable: log.end,
            cache: Cache::new(log.end, cache_bytes_max),
            changes: 0,
            failed: None,
        })));
        let (written, receiver) = Types::<R>::mpsc(WRITES_WAITING_MAX);
        drop(Types::<R>::spawn(complete::<R>(receiver, shared.clone())));
        let reader = RaftLogReader { journal: Arc::new(journal), shared, runtime: PhantomData };
        Ok(Self { reader, written, state_trimmed: state.trimmed })
    }

    /// Longest entry that this log takes, in bytes: [`ENTRY_BYTES_MAX`], or less where the engine's batches are
    /// shorter. A longer one fails the log: who proposes entries looks here first.
    pub fn entry_bytes_max(&self) -> usize {
        self.reader.journal.record_bytes_max().min(ENTRY_BYTES_MAX)
    }

    fn journal(&self) -> &J {
        &self.reader.journal
    }

    fn shared(&self) -> &Shared {
        &self.reader.shared
    }

    /// Waits until every entry before has its outcome.
    async fn settle(&self) -> io::Result<()> {
        let (answer, answered) = Types::<R>::oneshot();
        self.tell(Written::Settle(answer)).await?;
        answered.await.map_err(|_| task_ended())?
    }

    async fn tell(&self, written: Written<R>) -> io::Result<()> {
        self.written.send(written).await.map_err(|_| task_ended())
    }

    /// The outcome of a write; a failure is the last one.
    fn outcome<T, E: Display>(&self, outcome: Result<T, E>) -> io::Result<T> {
        outcome.map_err(|error| {
            self.shared().fail(&error);
            io::Error::other(format!("Raft's log: {error}"))
        })
    }

    /// Makes facts durable, and then believes them.
    async fn write_facts(&mut self, change: impl FnOnce(&mut LogFacts)) -> io::Result<()> {
        let mut facts = self.shared().lock().facts;
        change(&mut facts);
        let record = facts.encode();
        let token = self.journal().append(STATE_STREAM, &[&record]).await;
        let receipts = self.outcome(self.outcome(token)?.await)?;
        self.shared().lock().facts = facts;
        let last = receipts.offsets().start;
        if last - self.state_trimmed >= STATE_RECORDS_MAX {
            // Nobody waits for it: the next one does as well.
            drop(self.outcome(self.journal().skip_to(STATE_STREAM, last))?);
            self.state_trimmed = last;
        }
        Ok(())
    }

    /// Lets an empty log go on at `index`.
    async fn skip_to(&self, index: u64) -> io::Result<()> {
        let change = self.journal().skip_to(LOG_STREAM, index);
        self.outcome(self.outcome(change)?.await)?;
        let mut state = self.shared().lock();
        (state.first, state.next, state.durable) = (index, index, index);
        state.cache.purge(index);
        state.changes += 1;
        Ok(())
    }

    /// Encodes entries and makes them readable. Returns where they begin, their bytes, and where each ends.
    fn take_entries(&self, entries: Vec<Entry>) -> io::Result<(u64, Vec<u8>, Vec<usize>)> {
        let mut state = self.shared().lock();
        let (base, committed) = (state.next, state.facts.committed);
        let (mut bytes, mut ends) = (Vec::new(), Vec::with_capacity(entries.len()));
        for (entry, expected) in entries.iter().zip(base..) {
            let found = entry.log_id.index;
            if found != expected {
                let cause = Malformed::OutOfPlace { expected, found };
                return Err(io::Error::new(io::ErrorKind::InvalidInput, cause));
            }
            let length = entry::encode(entry, committed, &mut bytes)
                .and_then(|length| match self.entry_bytes_max() {
                    max if length > max => Err(Malformed::TooLong { bytes: length, max }),
                    _ => Ok(length),
                })
                .map_err(|cause| io::Error::new(io::ErrorKind::InvalidInput, cause))?;
            ends.push(ends.last().map_or(0, |end| *end) + length);
        }
        let mut start = 0;
        for (entry, end) in entries.into_iter().zip(&ends) {
            state.next += 1;
            state.last = Some(entry.log_id);
            state.cache.push(entry, end - start);
            start = *end;
        }
        let durable = state.durable;
        state.cache.evict(durable);
        Ok((base, bytes, ends))
    }
}

/// How many of these records fit one batch; at least one, which does.
fn batch_length(records: &[&[u8]], bytes_max: usize) -> usize {
    let mut bytes = 0;
    let fits = |record: &&&[u8]| {
        bytes += record.len() + 4;
        bytes <= bytes_max + 4
    };
    records.iter().take_while(fits).count().max(1)
}

impl<J: Journal, R: AsyncRuntime> RaftLogStorage<Types<R>> for RaftLog<J, R> {
    type LogReader = RaftLogReader<J, R>;

    async fn get_log_state(&mut self) -> io::Result<LogState<Types<R>>> {
        let state = self.shared().lock();
        Ok(LogState { last_purged_log_id: state.facts.purged, last_log_id: state.last })
    }

    async fn get_log_reader(&mut self) -> RaftLogReader<J, R> {
        self.reader.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        self.settle().await?;
        self.write_facts(|facts| facts.vote = Some(*vote)).await
    }

    /// Kept in memory, and written with the next entries, vote or purge: what is not known after a restart is
    /// told again by a leader.
    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        self.shared().lock().facts.committed = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.shared().lock().facts.committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types<R>>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        self.shared().check()?;
        let Some(first) = entries.first().map(|entry| entry.log_id.index) else {
            callback.io_completed(self.settle().await);
            return Ok(());
        };
        let begins_later = {
            let state = self.shared().lock();
            state.first == state.next && first > state.next
        };
        if begins_later {
            self.skip_to(first).await?;
        }
        let (mut base, bytes, ends) = self.take_entries(entries)?;
        let mut start = 0;
        let records: Vec<&[u8]> =
            ends.iter().map(|end| &bytes[std::mem::replace(&mut start, *end)..*end]).collect();
        let (mut rest, mut callback) = (&records[..], Some(callback));
        while !rest.is_empty() {
            let (batch, behind) =
                rest.split_at(batch_length(rest, self.journal().record_bytes_max()));
            let token = self.outcome(self.journal().append(LOG_STREAM, batch).await)?;
            let indexes = base..base + batch.len() as u64;
            base = indexes.end;
            let callback = if behind.is_empty() { callback.take() } else { None };
            self.tell(Written::Entries { token, indexes, callback }).await?;
            rest = behind;
        }
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        self.settle().await?;
        let start = last.map_or(0, |last| last.index + 1);
        let (first, next) = {
            let state = self.shared().lock();
            (state.first, state.next)
        };
        if start >= next {
            return Ok(());
        }
        if start < first {
            let what = format!("Raft's log begins with entry {first} and cannot be cut at {start}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        // Epochs of this stream count its cuts, and mean nothing else.
        let epoch = self.journal().held(LOG_STREAM).epoch + 1;
        let change = self.journal().truncate(LOG_STREAM, start, epoch);
        self.outcome(self.outcome(change)?.await)?;
        let mut state = self.shared().lock();
        (state.next, state.durable, state.last) = (start, start, last);
        state.cache.truncate(start);
        state.changes += 1;
        Ok(())
    }

    async fn purge(&mut self, last: LogId) -> io::Result<()> {
        self.settle().await?;
        if self.shared().lock().facts.purged >= Some(last) {
            return Ok(());
        }
        // First what was purged, then the purge: after a crash in between, opening finishes it.
        self.write_facts(|facts| facts.purged = Some(last)).await?;
        let start = last.index + 1;
        if start >= self.shared().lock().next {
            self.skip_to(start).await?;
            self.shared().lock().last = Some(last);
            return Ok(());
        }
        // Nothing waits for the trim.
        drop(self.outcome(self.journal().skip_to(LOG_STREAM, start))?);
        let mut state = self.shared().lock();
        state.first = state.first.max(start);
        state.cache.purge(start);
        state.changes += 1;
        Ok(())
    }
}

impl<J: Journal, R: AsyncRuntime> RaftLogReader<J, R> {
    /// Entries of a range, as far as there are any, until they have `bytes_max` or more.
    async fn read(&self, range: impl RangeBounds<u64>, bytes_max: usize) -> io::Result<Vec<Entry>> {
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(start) => start.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(end) => end.saturating_add(1),
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        'again: loop {
            let (range, changes) = {
                let state = self.shared.lock();
                (start.max(state.first)..end.min(state.next), state.changes)
            };
            let (mut entries, mut bytes) = (Vec::new(), 0);
            loop {
                let older = {
                    let state = self.shared.lock();
                    if state.changes != changes {
                        // It would be neither what was there before nor what is now.
                        continue 'again;
                    }
                    let from = range.start + entries.len() as u64;
                    if from >= range.end || bytes >= bytes_max {
                        return Ok(entries);
                    }
                    if from >= state.cache.first() {
                        state.cache.read(from..range.end, bytes_max - bytes, &mut entries);
                        return Ok(entries);
                    }
                    from..range.end.min(state.cache.first())
                };
                match self.read_older(older, (bytes_max - bytes).min(READ_BYTES_MAX)).await {
                    Ok((more, their_bytes)) => {
                        entries.extend(more);
                        bytes += their_bytes;
                    }
                    // It was there when it was asked for.
                    Err(_) if self.shared.lock().changes != changes => continue 'again,
                    Err(error) => return Err(error),
                }
            }
        }
    }

    /// Entries of a range that is durable and not empty, at least one, and their bytes.
    async fn read_older(
        &self,
        range: Range<u64>,
        bytes_max: usize,
    ) -> io::Result<(Vec<Entry>, usize)> {
        let records = self.journal.read(LOG_STREAM, range.clone(), bytes_max).await;
        let records = records.map_err(io::Error::other)?;
        if records.is_empty() {
            let what = format!("Raft's log: entry {} should be there, and is not", range.start);
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, what));
        }
        let (mut entries, mut bytes) = (Vec::with_capacity(records.len()), 0);
        for (record, index) in records.into_iter().zip(range) {
            bytes += record.payload().len();
            // A copy: a slice would keep the whole block that was read.
            let record = Bytes::copy_from_slice(record.payload());
            let (entry, _) = decode_at(index, record).map_err(|cause| {
                let what = malformed(LOG_STREAM, index, cause);
                io::Error::new(io::ErrorKind::InvalidData, what)
            })?;
            entries.push(entry);
        }
        Ok((entries, bytes))
    }
}

impl<J: Journal, R: AsyncRuntime> openraft::RaftLogReader<Types<R>> for RaftLogReader<J, R> {
    async fn try_get_log_entries<B: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: B,
    ) -> io::Result<Vec<Entry>> {
        self.read((range.start_bound().cloned(), range.end_bound().cloned()), usize::MAX).await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.read(start..end, READ_BYTES_MAX).await
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.shared.lock().facts.vote)
    }
}

/// The last record of a stream.
async fn read_last<J: Journal>(
    journal: &J,
    stream: StreamId,
    held: Held,
) -> Result<Option<Bytes>, ReadError> {
    if held.end == held.trimmed {
        return Ok(None);
    }
    let last = held.end - 1;
    let records = journal.read(stream, last..held.end, 1).await?;
    let record = records.into_iter().next();
    let missing = ReadError::Missing { stream, offset: last, next: held.end };
    record.map(|record| Some(Bytes::copy_from_slice(record.payload()))).ok_or(missing)
}

fn malformed(stream: StreamId, offset: u64, cause: Malformed) -> OpenError {
    OpenError::Malformed { stream, offset, cause }
}

/// The entry that lies at `index`.
fn decode_at(index: u64, record: Bytes) -> Result<(Entry, Option<LogId>), Malformed> {
    let (entry, committed) = entry::decode(record)?;
    let found = entry.log_id.index;
    if found != index {
        return Err(Malformed::OutOfPlace { expected: index, found });
    }
    Ok((entry, committed))
}

fn task_ended() -> io::Error {
    io::Error::other("Raft's log: its task has ended, with the runtime that it ran on")
}
