//! The handle of a node that replicates: start, lead, append, wait, close.

use std::fmt;
use std::future::poll_fn;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::{Sender, TrySendError, bounded};
use ringwal_engine::format::RECORD_PREFIX_BYTES;
use ringwal_engine::{Append, AppendBatch, Engine, EpochTable, ReadError, Stream, StreamId, Tail};

use crate::acknowledge::{self, Ack, Committed, LedAppendError, Pending, Token};
use crate::beginning::Starts;
use crate::config::{Config, ConfigError, Member};
use crate::driven::{
    BeginError, Beginning, Due, ExtendError, Extending, Extension, Fetching, Members, PromiseError,
    Promising,
};
use crate::fetch::FetchFromError;
use crate::fetch::from::FetchFrom;
use crate::gate::{Counted, Gate};
use crate::link::tls::{Tls, TlsError};
use crate::link::{LinkError, Listener};
use crate::mend::{self, MendRangeError, Mender};
use crate::node_id::{NodeId, RunId};
use crate::promise::{Promise, is_replicated};
use crate::repair::{Marker, MarkerError};
use crate::requests::{Asking, REQUEST_BYTES_MAX, REQUESTS_MAX, Replies, Request, RequestError};
use crate::stats::{Counters, NodeStats};
use crate::term::Term;
use crate::thread::{self, BeginWay, Command, Driven, Extend, LeadError, Setup};
use crate::wake::Wake;
use crate::worker::{BeginAnew, Facts, FactsError, Snapshots, Worker};

/// Commands that wait for the thread.
const COMMANDS_MAX: usize = 256;
/// Bytes that are read at once to find damage.
const MEND_READ_BYTES: usize = 1 << 20;

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The configuration contradicts itself.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Certificates or keys cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Its port cannot be opened.
    #[error(transparent)]
    Listen(#[from] LinkError),
    /// What it has promised is not known.
    #[error(transparent)]
    Facts(#[from] FactsError),
    /// What a repair has left to be done cannot be read, or not be done.
    #[error(transparent)]
    Repair(#[from] MarkerError),
    /// A thread cannot be started, or no random number be had.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
}

/// A node of a cluster: it follows whoever leads with a later epoch, until it is told to lead itself.
///
/// From its start on, records of replicated streams (all but 1 to 3) are appended through a
/// [`Leadership`] only: the engine refuses its own. Reads and tails of the engine go on.
///
/// Dropping it closes it without waiting for followers.
#[derive(Debug)]
pub struct Node {
    inner: Arc<Inner>,
    thread: Option<JoinHandle<()>>,
    address: std::net::SocketAddr,
}

pub(crate) struct Inner {
    engine: Engine,
    node: NodeId,
    run: RunId,
    begun: Arc<Mutex<Option<Promise>>>,
    commands: Sender<Command>,
    asks: Sender<Asking>,
    wake: Arc<Wake>,
    picture: Arc<Mutex<NodeStats>>,
    mender: Mender,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner").field("stats", &self.picture).finish_non_exhaustive()
    }
}

impl Inner {
    fn send(&self, command: Command) -> bool {
        let is_sent = self.commands.send(command).is_ok();
        self.wake.wake();
        is_sent
    }

    /// As `send`, but never waits: the command, when too many wait. Dropping one says that the node is
    /// closed, as it is when there is nobody to send it to.
    fn try_send(&self, command: Command) -> Option<Command> {
        let refused = self.commands.try_send(command).err();
        self.wake.wake();
        refused.filter(TrySendError::is_full).map(TrySendError::into_inner)
    }
}

impl Node {
    /// Opens the port and starts the threads. A stream whose beginning its leader has trimmed
    /// begins where the leader's does.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn start(engine: Engine, config: Config) -> Result<Self, StartError> {
        Self::start_with_snapshots(engine, config, Arc::new(|anew: &BeginAnew| Some(anew.trimmed)))
    }

    /// As [`Node::start`], for an embedder whose snapshots hold what leaders have trimmed:
    /// `snapshots` puts one in and says where the stream goes on. It runs on a thread that may wait.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn start_with_snapshots(
        engine: Engine,
        config: Config,
        snapshots: Arc<Snapshots>,
    ) -> Result<Self, StartError> {
        Self::start_as(engine, config, snapshots, false)
    }

    fn start_as(
        engine: Engine,
        config: Config,
        snapshots: Arc<Snapshots>,
        is_driven: bool,
    ) -> Result<Self, StartError> {
        config.check()?;
        let node = config.node;
        let system = |what| move |source| StartError::System { what, source };
        let tls = config.tls.as_ref().map(Tls::load).transpose()?.map(Arc::new);
        let listener = Listener::bind(&config.listen)?;
        let address = listener.local_address();
        let mut facts = Facts::load(&engine)?;
        let mut repairing = Marker::load(engine.directory())?;
        if let Some(marker) = &repairing {
            facts = marker.settle_facts(&engine, facts)?;
            if marker.lacking(&engine).is_none() {
                Marker::remove(engine.directory())?;
                repairing = None;
            }
        }
        // Nobody leads yet.
        engine.close_epoch();
        if is_driven {
            engine.require_lease();
        }
        let begun = Arc::new(Mutex::new(facts.begun));
        let run = random_run().map_err(system("draw a random number"))?;
        let wake = Arc::new(Wake::default());
        let config = Arc::new(config);
        let mender = Mender::new(engine.clone(), config.clone(), tls.clone(), run);
        let counters = Arc::new(Counters::default());
        let (counts, wakes) = (counters.clone(), wake.clone());
        let worker =
            Worker::start(engine.clone(), snapshots.clone(), mender.clone(), counts, wakes);
        let worker = worker.map_err(system("start the worker's thread"))?;
        let (commands, to_do) = bounded(COMMANDS_MAX);
        let (asks, asked) = bounded(REQUESTS_MAX);
        let lacking = repairing.as_ref().and_then(|marker| marker.lacking(&engine));
        let picture = NodeStats {
            repairing: lacking,
            promised_epoch: facts.promise.map_or(0, |promise| promise.epoch),
            committed: facts.committed.clone(),
            ..NodeStats::default()
        };
        let picture = Arc::new(Mutex::new(picture));
        let setup = Setup {
            engine: engine.clone(),
            config,
            run,
            listener,
            tls,
            worker,
            snapshots,
            mender: mender.clone(),
            wake: wake.clone(),
            commands: to_do,
            asks: asked,
            facts,
            repairing,
            counters,
            picture: picture.clone(),
            begun: is_driven.then(|| begun.clone()),
        };
        let thread = std::thread::Builder::new()
            .name("ringwal-replica".into())
            .spawn(move || thread::run(setup))
            .map_err(system("start the replication thread"))?;
        let inner =
            Arc::new(Inner { engine, node, run, begun, commands, asks, wake, picture, mender });
        Ok(Self { inner, thread: Some(thread), address })
    }

    /// As [`Node::start_with_snapshots`], for an embedder that elects leaders and numbers epochs: it says
    /// what is promised, what has begun, and who counts; see [`crate::driven`]. A hello promises
    /// nothing here, and [`Node::lead`] is refused.
    ///
    /// `config.members` are the nodes that are known at first, all of them voters of one set, until
    /// [`Node::set_members`].
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn start_driven(
        engine: Engine,
        config: Config,
        snapshots: Arc<Snapshots>,
    ) -> Result<Self, StartError> {
        Self::start_as(engine, config, snapshots, true)
    }

    /// This run of this process: an epoch belongs to one run.
    pub fn run(&self) -> RunId {
        self.inner.run
    }

    /// Which node it is.
    pub fn id(&self) -> NodeId {
        self.inner.node
    }

    /// Promises an epoch: what this node was in an older one ends at once, everything in flight gets
    /// its outcome, and the promise is made durable; then its outcome says what is held. From then on
    /// this node takes, reports and acknowledges nothing of an older epoch. The same promise again is
    /// answered anew. Never waits itself.
    ///
    /// The token's errors are [`PromiseError`](crate::driven::PromiseError)s.
    pub fn promise(&self, promise: Promise) -> Promising {
        let (way, due) = Due::new();
        self.drive(Driven::Promise(promise, way));
        due
    }

    /// An epoch has begun, for good: it starts each stream at the offset that `starts` has for it, and
    /// at 0 where it has none. Records behind that, of another epoch, are kept as orphans and cut
    /// (I-17); it is made durable that the epoch has begun; then this node leads, when it is its leader
    /// in this run, or is followed by nobody but its leader. Promised first, if it is not. When a later
    /// one is promised, the cuts and the fact are made all the same. Never waits itself.
    ///
    /// Where it ends in between, it may be begun again.
    ///
    /// The token's errors are [`BeginError`](crate::driven::BeginError)s.
    pub fn begin(&self, promise: Promise, starts: Vec<(StreamId, u64)>) -> Beginning {
        let (way, due) = Due::new();
        let way = BeginWay { way, inner: self.inner.clone() };
        let starts = Starts::At(starts.into_iter().collect());
        self.drive(Driven::Begin(promise, starts, way));
        due
    }

    /// As [`Node::begin`], of an epoch before which others have begun that this node has not heard of: a
    /// snapshot of the embedder's log has taken the place of what said so. `epochs` has all epochs of each
    /// stream, as far as they are not trimmed; streams that are not in it are cut whole. This node
    /// never leads in it.
    ///
    /// The token's errors are [`BeginError`](crate::driven::BeginError)s.
    pub fn begin_known(&self, promise: Promise, epochs: Vec<(StreamId, EpochTable)>) -> Beginning {
        let (way, due) = Due::new();
        let way = BeginWay { way, inner: self.inner.clone() };
        let starts = Starts::Known(epochs.into_iter().collect());
        self.drive(Driven::Begin(promise, starts, way));
        due
    }

    fn drive(&self, driven: Driven) {
        if let Some(Command::Drive(driven)) = self.inner.try_send(Command::Drive(driven)) {
            driven.refuse(PromiseError::Busy, BeginError::Busy);
        }
    }

    /// Adds what is not here of an entry's records, and waits until all of them are durable in their
    /// epoch, whoever brings them; then they are committed, as far as this node knows. Those of one
    /// stream are added in the order of the calls. Never waits itself.
    ///
    /// The token's errors are [`ExtendError`](crate::driven::ExtendError)s.
    pub fn extend(&self, extension: Extension) -> Extending {
        let (way, due) = Due::new();
        let extend = Command::Extend(Extend::new(extension, way));
        if let Some(Command::Extend(extend)) = self.inner.try_send(extend) {
            extend.finish(Err(ExtendError::Busy));
        }
        due
    }

    /// Who is dialled, may dial, and counts, from now on; without meaning where nobody drives.
    pub fn set_members(&self, members: Members) {
        self.inner.send(Command::Members(members));
    }

    /// The epoch that has begun here last: it is durable.
    pub fn begun(&self) -> Option<Promise> {
        *self.inner.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fetches records that are not here from another node, and appends them, durably: of each stream
    /// from its end here up to the end of the range. For a node that does not lead, from one in which
    /// the same epoch has begun, or, to lead, in which the epoch to be is promised. It ends when this
    /// node changes its part. Has a thread of its own as long as it lasts.
    ///
    /// The token's errors are [`FetchFromError`](crate::fetch::FetchFromError)s.
    pub fn fetch_from(&self, member: &Member, wants: Vec<(StreamId, Range<u64>)>) -> Fetching {
        let (way, due) = Due::new();
        let fetch = Command::Fetch(FetchFrom::new(member.clone(), wants, way));
        if let Some(Command::Fetch(fetch)) = self.inner.try_send(fetch) {
            fetch.finish(Err(FetchFromError::Busy));
        }
        due
    }

    /// Where it listens.
    pub fn address(&self) -> std::net::SocketAddr {
        self.address
    }

    /// Its engine, to read from.
    pub fn engine(&self) -> &Engine {
        &self.inner.engine
    }

    /// Leads in an epoch that is greater than every one that this node has seen, and that no other
    /// run of any process uses. Returns when that is promised durably.
    ///
    /// Who leads is the embedder's to decide, and with it whether [`Ack::Quorum`] keeps its word: the
    /// new leader must hold, in every stream, the greatest (epoch of the last record, durable end) of
    /// a majority of the members, none of which takes frames of an earlier epoch any more when that is
    /// looked at. A node that lacks a record that a majority has makes the others cut it (and keep it
    /// as an orphan), unless they know already that it is committed: then they refuse to follow.
    ///
    /// A node that knows of damaged records ([`NodeStats::damage`]) does not begin to lead while other
    /// members could: it could not serve them. It forgets them when it is started again.
    ///
    /// # Errors
    /// See [`LeadError`].
    pub fn lead(&self, epoch: u64) -> Result<Leadership, LeadError> {
        let (reply, replied) = bounded(1);
        if !self.inner.send(Command::Lead { epoch, reply }) {
            return Err(LeadError::Closed);
        }
        let term = replied.recv().map_err(|_| LeadError::Closed)??;
        Ok(Leadership { inner: self.inner.clone(), term })
    }

    /// The durable records of a stream from `offset` on, as they come, on a leader or a follower.
    /// A record may be cut again here as long as it is not committed; a tail that stood behind it
    /// then gives what took its place.
    pub fn subscribe(&self, stream: StreamId, offset: u64) -> Tail {
        self.inner.engine.stream(stream).tail(offset)
    }

    /// Waits until the record at `offset` is durable here, at most until `deadline`; whether it is.
    ///
    /// # Errors
    /// When it is trimmed, cannot be read, or the engine is closed.
    pub fn wait_durable(
        &self,
        stream: StreamId,
        offset: u64,
        deadline: Instant,
    ) -> Result<bool, ReadError> {
        if self.inner.engine.stream(stream).end() > offset {
            return Ok(true);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let record = self.subscribe(stream, offset).next_timeout(left);
        let record = record.inspect_err(|error| self.inner.mender.note(error))?;
        Ok(record.is_some())
    }

    /// As [`Node::wait_durable`], without blocking the thread, and without a deadline.
    ///
    /// # Errors
    /// As [`Node::wait_durable`].
    pub async fn wait_durable_async(&self, stream: StreamId, offset: u64) -> Result<(), ReadError> {
        self.subscribe(stream, offset).next().await.map(|_| ())
    }

    /// Has what cannot be read of these offsets fetched again from other members, and waits for that:
    /// for whoever meets damage in a read or tail of the engine. What this node meets itself, when it
    /// reads for others, it mends by itself, and tries again now and then where nobody has it. Reads
    /// the whole range. At how many places records were damaged.
    ///
    /// Every sound record of a damaged segment is written again, elsewhere, and then the segment is
    /// free. A segment that is still being written is not mended before it is full.
    ///
    /// # Errors
    /// See [`MendRangeError`]; the range is mended up to there.
    pub fn mend(&self, stream: StreamId, offsets: Range<u64>) -> Result<u64, MendRangeError> {
        if !is_replicated(stream) {
            return Err(MendRangeError::OwnStream(stream));
        }
        let mut frames = self.inner.engine.stream(stream).frames(offsets.start);
        let mut places = 0;
        while frames.offset() < offsets.end {
            match frames.next_batch(MEND_READ_BYTES) {
                Ok(batch) if batch.is_empty() => break,
                Ok(_) => {}
                Err(ReadError::Trimmed { trimmed, .. }) => frames.seek(trimmed),
                Err(error) => {
                    let Some((stream, offset)) = mend::place(&error) else {
                        return Err(error.into());
                    };
                    self.inner.mender.mend_now(stream, offset, &error)?;
                    places += 1;
                    frames.seek(offset);
                }
            }
        }
        self.inner.mender.look_again(stream, offsets);
        Ok(places)
    }

    /// Drops the records of a stream below `before`. A leader keeps what a connected follower has
    /// not, as long as the journal is shorter than [`Config::retain_bytes_max`].
    pub fn trim(&self, stream: StreamId, before: u64) {
        self.inner.send(Command::Trim { stream, before });
    }

    /// A member has lost its disk, has a new one, and follows again: from now on it counts for a
    /// majority. Only when it has caught up, and when what it had promised with its old disk is no
    /// danger any more: no other node leads, or will, with a majority that counts the old one.
    pub fn readmit(&self, member: NodeId) {
        self.inner.send(Command::Readmit(member));
    }

    /// The way to ask other nodes, for any thread; see [`crate::requests`].
    pub fn requests(&self) -> Requests {
        Requests { inner: self.inner.clone() }
    }

    /// From now on requests of other nodes are given to `replies`; before, they are refused.
    pub fn reply_with(&self, replies: Arc<dyn Replies>) {
        self.inner.send(Command::Reply(replies));
    }

    /// Everything that is counted, as it was at most a tenth of a second ago.
    pub fn stats(&self) -> NodeStats {
        self.inner.picture.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sends what is sealed to the followers that are connected, within
    /// [`Config::drain_timeout`], and ends the threads. The engine stays open.
    pub fn close(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.inner.mender.close();
        self.inner.send(Command::Close);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the replication thread has panicked");
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.end();
    }
}

pub(crate) fn random_run() -> std::io::Result<RunId> {
    use std::io::Read as _;
    let mut run = [0; 16];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut run)?;
    Ok(RunId::new(run))
}

/// The right to append in one epoch. Clones share it; it ends when a greater epoch is seen, by
/// [`Leadership::retire`], or with the node.
#[derive(Clone, Debug)]
pub struct Leadership {
    inner: Arc<Inner>,
    term: Arc<Term>,
}

impl Leadership {
    pub(crate) fn new(inner: Arc<Inner>, term: Arc<Term>) -> Self {
        Self { inner, term }
    }

    /// In which epoch.
    pub fn epoch(&self) -> u64 {
        self.term.epoch()
    }

    /// Why it is over, if it is.
    pub fn ended(&self) -> Option<String> {
        self.term.ended().map(str::to_owned)
    }

    /// Copies a record into the next batch and fixes its order; waits for room when the queue is
    /// full, and in a driven node while too much is not committed
    /// ([`Config::unreplicated_bytes_max`]). It leaves for the followers when the batch is sealed; the
    /// token tells when it is durable as `ack` asks.
    ///
    /// # Errors
    /// See [`LedAppendError`].
    pub fn append(
        &self,
        stream: StreamId,
        record: impl AsRef<[u8]>,
        ack: Ack,
    ) -> Result<Pending<Append>, LedAppendError> {
        let record = record.as_ref();
        acknowledge::block_on(|waker| self.poll_room(waker));
        let append = || Ok(self.stream(stream)?.append(record)?);
        let token = self.counted(counted_bytes(record), append)?;
        Ok(self.pending(token, ack))
    }

    /// As [`Leadership::append`], but never waits.
    ///
    /// # Errors
    /// See [`LedAppendError`].
    pub fn try_append(
        &self,
        stream: StreamId,
        record: impl AsRef<[u8]>,
        ack: Ack,
    ) -> Result<Pending<Append>, LedAppendError> {
        let record = record.as_ref();
        let stream = self.stream(stream)?;
        if let Some((bytes, max)) = self.term.gate().and_then(Gate::full) {
            return Err(LedAppendError::Unreplicated { bytes, max });
        }
        let token = self.counted(counted_bytes(record), || Ok(stream.try_append(record)?))?;
        Ok(self.pending(token, ack))
    }

    /// As [`Leadership::append`], but waits for room without blocking the thread.
    ///
    /// # Errors
    /// See [`LedAppendError`].
    pub async fn append_async(
        &self,
        stream: StreamId,
        record: impl AsRef<[u8]>,
        ack: Ack,
    ) -> Result<Pending<Append>, LedAppendError> {
        let record = record.as_ref();
        poll_fn(|context| self.poll_room(context.waker())).await;
        let stream = self.stream(stream)?;
        let gate = self.term.gate();
        // Given back also when this future is dropped while it waits.
        let counted = gate.map(|gate| gate.count(counted_bytes(record)));
        let token = stream.append_async(record).await?;
        counted.into_iter().for_each(Counted::keep);
        Ok(self.pending(token, ack))
    }

    /// Appends records that follow one another, and of which a crash of this node keeps all or none.
    ///
    /// # Errors
    /// See [`LedAppendError`].
    pub fn append_batch<I>(
        &self,
        stream: StreamId,
        records: I,
        ack: Ack,
    ) -> Result<Pending<AppendBatch>, LedAppendError>
    where
        I: IntoIterator,
        I::Item: AsRef<[u8]>,
    {
        let records: Vec<I::Item> = records.into_iter().collect();
        let bytes = records.iter().map(|record| counted_bytes(record.as_ref())).sum();
        acknowledge::block_on(|waker| self.poll_room(waker));
        let append = || Ok(self.stream(stream)?.append_batch(&records)?);
        let token = self.counted(bytes, append)?;
        Ok(self.pending(token, ack))
    }

    /// Whether there is room, or something that is looked at next is in the way.
    fn poll_room(&self, waker: &Waker) -> Poll<()> {
        match self.term.gate() {
            Some(gate) if self.term.ended().is_none() => gate.poll_room(waker),
            _ => Poll::Ready(()),
        }
    }

    /// Counts bytes that are appended: before, so that they are when they are sealed.
    fn counted<T>(
        &self,
        bytes: u64,
        append: impl FnOnce() -> Result<T, LedAppendError>,
    ) -> Result<T, LedAppendError> {
        let Some(gate) = self.term.gate() else { return append() };
        gate.note_appended(bytes);
        append().inspect_err(|_| gate.release(bytes))
    }

    /// The lease lasts until then, by [`ringwal_engine::boottime_ns`]: a record is taken, its batch
    /// sealed, and its receipt given, only before. A leader of a driven node has none until this says
    /// so; others need none. For whoever hears of a majority.
    pub fn lease_until(&self, boottime_ns: u64) {
        if let Some(gate) = self.term.gate() {
            self.inner.engine.set_lease(self.term.epoch(), boottime_ns);
            gate.set_lease(boottime_ns);
        }
    }

    /// Whether the epoch and its lease last: for whoever answers later than the receipt came.
    pub fn holds_lease(&self) -> bool {
        self.term.ended().is_none() && self.term.has_lease()
    }

    /// From now on there is no lease: before leadership is given away.
    pub fn revoke_lease(&self) {
        self.lease_until(0);
    }

    /// Waits until a stream is committed up to `end`: until everything below it is durable here and
    /// with a majority, or was committed otherwise.
    ///
    /// The token's error is [`LedCommitError::Unknown`](crate::LedCommitError::Unknown), when the term is over first.
    pub fn committed(&self, stream: StreamId, end: u64) -> Committed {
        let engine = self.inner.engine.clone();
        Committed::new(acknowledge::committed(engine, self.term.clone(), stream, end))
    }

    /// Offset up to which a stream is committed, as far as this leader knows; it never falls.
    pub fn committed_end(&self, stream: StreamId) -> u64 {
        self.term.committed_end(stream, self.inner.engine.stream(stream).end())
    }

    /// Leads no more: records that wait get their outcome as *unknown*.
    pub fn retire(&self, why: &str) {
        let epoch = self.term.epoch();
        self.inner.send(Command::Retire { epoch, why: why.to_owned() });
    }

    /// The stream, if it may be appended to now.
    fn stream(&self, stream: StreamId) -> Result<Stream, LedAppendError> {
        if let Some(why) = self.term.ended() {
            let epoch = self.term.epoch();
            return Err(LedAppendError::NotLeading { epoch, why: why.to_owned() });
        }
        if !self.term.has_lease() {
            return Err(LedAppendError::NoLease { epoch: self.term.epoch() });
        }
        match is_replicated(stream) {
            true => Ok(self.inner.engine.stream(stream)),
            false => Err(LedAppendError::OwnStream(stream)),
        }
    }

    fn pending<T: Token>(&self, token: T, ack: Ack) -> Pending<T> {
        Pending::new(token, self.term.clone(), ack)
    }
}

/// What a record counts until it is committed: as in its frame, so that empty ones do, too.
fn counted_bytes(record: &[u8]) -> u64 {
    (RECORD_PREFIX_BYTES + record.len()) as u64
}

/// Asks other nodes. Clones share the connections.
#[derive(Clone, Debug)]
pub struct Requests {
    inner: Arc<Inner>,
}

impl Requests {
    /// Asks a node, a member or not; the outcome is there within `limit`, about. Never waits.
    pub fn ask(&self, to: &Member, bytes: impl Into<Bytes>, limit: Duration) -> Request {
        let (asking, request) = Asking::new(to.clone(), bytes.into(), limit);
        let length = asking.bytes.len();
        if length > REQUEST_BYTES_MAX {
            asking.finish(Err(RequestError::TooLong { length }));
            return request;
        }
        match self.inner.asks.try_send(asking) {
            Ok(()) => self.inner.wake.wake(),
            Err(TrySendError::Full(asking)) => {
                asking.finish(Err(RequestError::Busy { node: to.node }));
            }
            // Dropping it says that the node is closed.
            Err(TrySendError::Disconnected(_)) => {}
        }
        request
    }
}
