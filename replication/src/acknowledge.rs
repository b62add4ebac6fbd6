//! What an append through a leader promises, and the token that waits for it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use ringwal_engine::{
    Append, AppendBatch, AppendError, CommitError, Engine, ReadError, Receipt, Receipts, Refusal,
    StreamId,
};

use crate::term::Term;

/// Where a record is durable when its receipt comes.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Default)]
pub enum Ack {
    /// On this node's device. It has been sent to the followers, and none is waited for: it can be
    /// lost if this node dies, is deposed, or is cut off before a follower has it.
    #[default]
    Local,
    /// On the devices of a majority of the members, this node among them: it survives the loss of
    /// any minority, as long as only nodes that hold it are made leaders (see [`crate::Node::lead`]).
    Quorum,
}

/// Why a leader does not take a record. Nothing of it was written.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LedAppendError {
    /// This node leads no more.
    #[error("this node does not lead in epoch {epoch} any more ({why}); append on the new leader")]
    NotLeading {
        /// In which epoch it led.
        epoch: u64,
        /// What ended it.
        why: String,
    },
    /// Its lease does not last any more, or was never given: see [`crate::Leadership::lease_until`].
    #[error("epoch {epoch}: this node has no lease now; append when it has one, or another way")]
    NoLease {
        /// In which epoch it leads.
        epoch: u64,
    },
    /// Too many bytes are not committed yet; only [`crate::Leadership::try_append`] says so.
    #[error(
        "{bytes} bytes are not committed yet (unreplicated_bytes_max = {max}); wait until followers \
         have them"
    )]
    Unreplicated {
        /// How many.
        bytes: u64,
        /// How many there may be.
        max: u64,
    },
    /// The stream is one of the node's own, which are not replicated.
    #[error("stream {0} is a node's own (ids 1 to 3) and is not replicated; use another id")]
    OwnStream(StreamId),
    /// The engine did not take it.
    #[error(transparent)]
    Engine(#[from] AppendError),
}

/// Why there is no receipt as it was asked for.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LedCommitError {
    /// It may be durable, here or elsewhere, or not: the term ended first.
    #[error(
        "outcome unknown: epoch {epoch} ended ({why}) before the record was acknowledged; look \
         for it with the new leader"
    )]
    Unknown {
        /// In which epoch it was appended.
        epoch: u64,
        /// What ended it.
        why: String,
    },
    /// It is not acknowledged in time; that may still come.
    #[error(
        "outcome unknown: not acknowledged within {waited:?} ({}); wait on, or look for it later",
        if *.is_durable_here { "durable here, and no majority has it: look at the followers' lag" }
        else { "not known to be durable here" }
    )]
    Late {
        /// How long it was waited for.
        waited: Duration,
        /// It is durable on this node, and waits for a majority.
        is_durable_here: bool,
    },
    /// It certainly is not there: this node does not lead.
    #[error(
        "not written: this node does not lead in epoch {epoch} any more; append on the new leader"
    )]
    NotLeading {
        /// In which epoch it led.
        epoch: u64,
    },
    /// It certainly is not there: its batch was sealed without a lease.
    #[error("not written: the lease of epoch {epoch} had lapsed; append again, or another way")]
    NoLease {
        /// In which epoch it was appended.
        epoch: u64,
    },
    /// The engine has no receipt for it.
    #[error(transparent)]
    Engine(CommitError),
}

/// Says where records of a batch are: their stream, epoch and end.
pub trait Placed {
    /// Whose.
    fn stream(&self) -> StreamId;
    /// Offset after the last.
    fn end(&self) -> u64;
}

impl Placed for Receipt {
    fn stream(&self) -> StreamId {
        Receipt::stream(self)
    }

    fn end(&self) -> u64 {
        self.offset() + 1
    }
}

impl Placed for Receipts {
    fn stream(&self) -> StreamId {
        Receipts::stream(self)
    }

    fn end(&self) -> u64 {
        self.offsets().end
    }
}

/// The receipt of a record or of a batch of them, and where they are durable.
#[derive(Clone, Debug)]
pub struct Acknowledged<R> {
    /// Stream, epoch and offset.
    pub receipt: R,
    /// Where it is durable.
    pub durable: Ack,
}

/// A token of the engine: what [`Pending`] waits for first.
pub trait Token: Future<Output = Result<Self::Receipt, CommitError>> + Unpin {
    /// What it becomes.
    type Receipt: Placed + Clone + std::fmt::Debug + Unpin;

    /// Blocks the thread until the outcome is known.
    ///
    /// # Errors
    /// As the engine's.
    fn wait(self) -> Result<Self::Receipt, CommitError>;
}

impl Token for Append {
    type Receipt = Receipt;

    fn wait(self) -> Result<Receipt, CommitError> {
        Append::wait(self)
    }
}

impl Token for AppendBatch {
    type Receipt = Receipts;

    fn wait(self) -> Result<Receipts, CommitError> {
        AppendBatch::wait(self)
    }
}

/// A record, or a batch of them, that a leader has taken. [`Pending::wait`], or a future on any
/// runtime; dropping it only detaches.
#[derive(Debug)]
#[must_use = "the record is durable only when its receipt has come; drop(..) to ignore it"]
pub struct Pending<T: Token> {
    stage: Stage<T>,
    term: Arc<Term>,
    ack: Ack,
    /// Where it is registered with the term.
    number: Option<u64>,
}

#[derive(Debug)]
enum Stage<T: Token> {
    /// Not known to be durable here.
    Local(T),
    /// Durable here.
    Durable(T::Receipt),
    /// Being taken apart.
    Over,
}

impl<T: Token> Pending<T> {
    pub(crate) fn new(token: T, term: Arc<Term>, ack: Ack) -> Self {
        Self { stage: Stage::Local(token), term, ack, number: None }
    }

    /// Blocks the thread until the outcome is known.
    ///
    /// # Errors
    /// When there is no receipt: see [`LedCommitError`] for what is certain then.
    pub fn wait(mut self) -> Result<Acknowledged<T::Receipt>, LedCommitError> {
        let receipt = match std::mem::replace(&mut self.stage, Stage::Over) {
            // The engine wakes all threads of a batch at once.
            Stage::Local(token) => token.wait().map_err(|error| failed(&self.term, error))?,
            Stage::Durable(receipt) => receipt,
            Stage::Over => unreachable!("it is waited for once"),
        };
        self.stage = Stage::Durable(receipt);
        let mut pending = self;
        loop {
            if let Some(outcome) = pending.wait_until(None) {
                return outcome;
            }
        }
    }

    /// As [`Pending::wait`], but no longer than `limit`; it can be waited for again.
    ///
    /// # Errors
    /// As [`Pending::wait`]; [`LedCommitError::Late`] when it is not acknowledged by then.
    pub fn wait_timeout(
        &mut self,
        limit: Duration,
    ) -> Result<Acknowledged<T::Receipt>, LedCommitError> {
        let deadline = Instant::now().checked_add(limit);
        self.wait_until(deadline).unwrap_or_else(|| {
            let is_durable_here = matches!(self.stage, Stage::Durable(_));
            Err(LedCommitError::Late { waited: limit, is_durable_here })
        })
    }

    /// `None` when the time is over, or nothing is known.
    fn wait_until(
        &mut self,
        deadline: Option<Instant>,
    ) -> Option<Result<Acknowledged<T::Receipt>, LedCommitError>> {
        let waker = UNPARK.with(Waker::clone);
        let mut context = Context::from_waker(&waker);
        loop {
            if let Poll::Ready(outcome) = Pin::new(&mut *self).poll(&mut context) {
                return Some(outcome);
            }
            let Some(deadline) = deadline else {
                std::thread::park();
                continue;
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            std::thread::park_timeout(left);
        }
    }
}

fn failed(term: &Term, error: CommitError) -> LedCommitError {
    let epoch = term.epoch();
    match error {
        CommitError::Refused(Refusal::EpochClosed { .. }) => LedCommitError::NotLeading { epoch },
        CommitError::Refused(Refusal::LeaseLapsed { .. }) => LedCommitError::NoLease { epoch },
        error => LedCommitError::Engine(error),
    }
}

impl<T: Token> Future for Pending<T> {
    type Output = Result<Acknowledged<T::Receipt>, LedCommitError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let Stage::Local(token) = &mut self.stage {
            match Pin::new(token).poll(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(failed(&self.term, error))),
                Poll::Ready(Ok(receipt)) => self.stage = Stage::Durable(receipt),
            }
        }
        let Self { stage, term, ack, number } = &mut *self;
        let Stage::Durable(receipt) = stage else { return Poll::Pending };
        let outcome = match ack {
            // Released only while the epoch lasts: what comes later may be cut.
            Ack::Local => match term.ended() {
                None => Ok(()),
                Some(why) => Err(why.to_owned()),
            },
            Ack::Quorum => {
                let (stream, end) = (receipt.stream(), receipt.end());
                match term.poll_majority(stream, end, number, context.waker()) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(outcome) => outcome,
                }
            }
        };
        let receipt = receipt.clone();
        Poll::Ready(match outcome {
            // The third look at it (I-13): somebody else may lead by now.
            Ok(()) if !term.has_lease() => {
                let why = "the lease has lapsed".to_owned();
                Err(LedCommitError::Unknown { epoch: term.epoch(), why })
            }
            Ok(()) => Ok(Acknowledged { receipt, durable: *ack }),
            Err(why) => Err(LedCommitError::Unknown { epoch: term.epoch(), why }),
        })
    }
}

impl<T: Token> Drop for Pending<T> {
    fn drop(&mut self) {
        if let (Some(number), Stage::Durable(receipt)) = (self.number, &self.stage) {
            self.term.forget(receipt.stream(), receipt.end(), number);
        }
    }
}

/// Blocks the thread until `poll` is ready.
pub(crate) fn block_on<T>(mut poll: impl FnMut(&Waker) -> Poll<T>) -> T {
    // Most are at once.
    if let Poll::Ready(outcome) = poll(Waker::noop()) {
        return outcome;
    }
    let waker = UNPARK.with(Waker::clone);
    loop {
        if let Poll::Ready(outcome) = poll(&waker) {
            return outcome;
        }
        std::thread::park();
    }
}

/// See [`Committed`].
pub(crate) async fn committed(
    engine: Engine,
    term: Arc<Term>,
    stream: StreamId,
    end: u64,
) -> Result<(), LedCommitError> {
    let epoch = term.epoch();
    let unknown = |why| LedCommitError::Unknown { epoch, why };
    let mut registered = Registered { term, stream, end, number: None };
    let mut durable = std::pin::pin!(is_durable(engine, stream, end));
    std::future::poll_fn(|context| {
        let Registered { term, number, .. } = &mut registered;
        let majority = term.poll_majority(stream, end, number, context.waker());
        match majority.map_err(unknown) {
            Poll::Ready(Ok(())) => {}
            outcome => return outcome,
        }
        // Followers may be ahead of this node's own flush.
        if let Poll::Ready(outcome) = durable.as_mut().poll(context) {
            return Poll::Ready(outcome.map_err(unknown));
        }
        match term.wake_at_end(number, context.waker()) {
            Ok(()) => Poll::Pending,
            Err(why) => Poll::Ready(Err(unknown(why))),
        }
    })
    .await
}

/// Waits until everything below `end` is durable here.
async fn is_durable(engine: Engine, stream: StreamId, end: u64) -> Result<(), String> {
    let stream = engine.stream(stream);
    while stream.end() < end {
        match stream.tail(end - 1).next().await {
            Ok(_) | Err(ReadError::Trimmed { .. }) => {}
            // It is durable where it cannot be read.
            Err(error) if stream.end() < end => return Err(error.to_string()),
            Err(_) => {}
        }
    }
    Ok(())
}

/// Where somebody waits with a term.
struct Registered {
    term: Arc<Term>,
    stream: StreamId,
    end: u64,
    number: Option<u64>,
}

impl Drop for Registered {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.term.forget(self.stream, self.end, number);
            self.term.forget_end(number);
        }
    }
}

thread_local! {
    static UNPARK: Waker = Waker::from(Arc::new(Unpark(std::thread::current())));
}

/// Wakes a thread that is parked.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits until a stream is committed up to an offset, or the term is over: a future for any runtime, or
/// [`Committed::wait`]. See [`crate::Leadership::committed`].
pub struct Committed(Pin<Box<dyn Future<Output = Result<(), LedCommitError>> + Send>>);

impl Committed {
    pub(crate) fn new(
        waiting: impl Future<Output = Result<(), LedCommitError>> + Send + 'static,
    ) -> Self {
        Self(Box::pin(waiting))
    }

    /// Blocks the thread until it is known.
    ///
    /// # Errors
    /// [`LedCommitError::Unknown`] when the term is over first.
    pub fn wait(mut self) -> Result<(), LedCommitError> {
        block_on(|waker| Pin::new(&mut self).poll(&mut Context::from_waker(waker)))
    }
}

impl Future for Committed {
    type Output = Result<(), LedCommitError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(context)
    }
}

impl std::fmt::Debug for Committed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Committed")
    }
}
