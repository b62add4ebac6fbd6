//! Sealed frames for whoever sends them on: slices of the very buffer that is written. Nothing is
//! copied, nobody is waited for.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, TryRecvError, TrySendError, bounded};

use crate::batch::Sealed;
use crate::disk::Pool;
use crate::stream::StreamId;

/// Frames of one batch, handed over when it was sealed: before it is durable.
#[derive(Clone, Debug)]
pub enum SealedFrames {
    /// The frames, in order.
    Batch {
        /// The shard that sealed them.
        shard: u16,
        /// The data frames of one batch. Where two of them follow one another in the batch, their
        /// bytes do so in memory.
        frames: Vec<FrameSlice>,
    },
    /// The subscriber was too slow, or holds too many buffers: here, frames of this shard are
    /// missing. Read on from its streams ([`crate::Stream::frames`]).
    Lagged {
        /// The shard whose frames are missing.
        shard: u16,
    },
}

/// A frame, header included, as it is on disk and on the wire.
#[derive(Clone, Debug)]
pub struct FrameSlice {
    /// Whose records.
    pub stream: StreamId,
    /// In which epoch.
    pub epoch: u64,
    /// Offset of the first.
    pub base_offset: u64,
    /// Number of records.
    pub count: u32,
    /// The bytes: a slice of the batch's buffer, which returns to its pool when the last slice of
    /// it is dropped, or of what was read ([`crate::Frames`]).
    pub bytes: Bytes,
}

/// Receives the sealed frames of all shards, mixed, through one queue.
///
/// A message is of one shard. Messages of one shard, and so the frames of one stream, come in the
/// order in which they were sealed; between shards there is no order, and the receiver has to merge
/// what it wants to see as one sequence. It is for one receiver: of several, each gets a part.
///
/// While slices of as many batches are alive as half of a shard's batch buffers
/// ([`crate::Engine::batch_buffers`]), the shard hands nothing over and its subscribers are
/// [lagged](SealedFrames::Lagged). So slices never pin more than half of them; those of all
/// subscribers count together, and a batch counts once. Buffers that records wait in do not count.
/// A receiver that means to keep up holds less; a slice that it keeps for long, it copies.
///
/// A shard that stops writing after an error ends its part, as one that is closed does.
#[derive(Debug)]
pub struct Subscription {
    receiver: Receiver<Message>,
    links: Vec<Arc<Link>>,
    parking: Arc<Parking>,
    seen: Mutex<Seen>,
}

/// What a shard sends.
#[derive(Debug)]
struct Message {
    /// Place of the shard among the links.
    link: usize,
    /// Batches that were not handed over before this one.
    missed: u64,
    /// Nothing when it only says that a batch was missed.
    frames: Vec<FrameSlice>,
}

/// What one shard says beside the queue, which may be full.
#[derive(Debug)]
struct Link {
    shard: u16,
    /// Batches that were not handed over.
    missed: AtomicU64,
}

/// What the receiver knows.
#[derive(Debug, Default)]
struct Seen {
    /// Of each link, how many batches it missed.
    missed: Vec<u64>,
    /// Behind what is missing in front of it; one at most.
    held: VecDeque<Message>,
}

/// Where a receiver waits that is not blocked in the queue.
#[derive(Debug)]
struct Parking {
    parked: AtomicBool,
    waker: Mutex<Option<Waker>>,
    /// Shards that may still send.
    open: AtomicUsize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Parking {
    /// Who is to be woken now that something has come.
    fn wake(&self) -> Option<Waker> {
        // Pairs with the one in `Subscription::park`: what has come was published before.
        fence(Ordering::SeqCst);
        let parked = self.parked.load(Ordering::Relaxed);
        let mine = parked && self.parked.swap(false, Ordering::SeqCst);
        if mine { lock(&self.waker).take() } else { None }
    }
}

impl Subscription {
    /// The next batch's frames, waiting for them; `None` when every shard is closed or has stopped
    /// writing.
    pub fn next_blocking(&self) -> Option<SealedFrames> {
        self.next_until(None)
    }

    /// The next batch's frames; `None` when the time is over, or every shard is closed or has stopped
    /// writing.
    pub fn next_timeout(&self, timeout: Duration) -> Option<SealedFrames> {
        match Instant::now().checked_add(timeout) {
            Some(deadline) => self.next_until(Some(deadline)),
            None => self.next_blocking(),
        }
    }

    fn next_until(&self, deadline: Option<Instant>) -> Option<SealedFrames> {
        loop {
            if let Poll::Ready(next) = self.try_next() {
                return next;
            }
            // Closed shards are found by the next look.
            let message = match deadline {
                None => self.receiver.recv().ok(),
                Some(deadline) => match self.receiver.recv_deadline(deadline) {
                    Err(error) if error.is_timeout() => return None,
                    received => received.ok(),
                },
            };
            if let Some(message) = message {
                lock(&self.seen).held.push_back(message);
            }
        }
    }

    /// The next batch's frames, if there are any: never waits. `Ready(None)` when every shard is
    /// closed or has stopped writing, `Pending` when nothing is there now. Registers nobody: see
    /// [`Subscription::park`].
    pub fn try_next(&self) -> Poll<Option<SealedFrames>> {
        let mut seen = lock(&self.seen);
        loop {
            let received = match seen.held.pop_front() {
                Some(message) => Ok(message),
                None => self.receiver.try_recv(),
            };
            let closed = match received {
                Ok(message) => match self.take(&mut seen, message) {
                    Some(next) => return Poll::Ready(Some(next)),
                    None => continue,
                },
                Err(error) => error == TryRecvError::Disconnected,
            };
            if let Some(link) = self.missed_more(&seen) {
                let missed = self.links[link].missed.load(Ordering::Acquire);
                // What was sent before that comes first, and may have come meanwhile.
                if let Ok(message) = self.receiver.try_recv() {
                    seen.held.push_back(message);
                    continue;
                }
                seen.missed[link] = missed;
                return Poll::Ready(Some(SealedFrames::Lagged { shard: self.links[link].shard }));
            }
            return if closed { Poll::Ready(None) } else { Poll::Pending };
        }
    }

    /// What a message says; it is held back when something is missing in front of it.
    fn take(&self, seen: &mut Seen, message: Message) -> Option<SealedFrames> {
        let shard = self.links[message.link].shard;
        if message.missed > seen.missed[message.link] {
            seen.missed[message.link] = message.missed;
            if !message.frames.is_empty() {
                seen.held.push_front(message);
            }
            return Some(SealedFrames::Lagged { shard });
        }
        let frames = message.frames;
        (!frames.is_empty()).then_some(SealedFrames::Batch { shard, frames })
    }

    /// A shard that has missed a batch, which the receiver was not told.
    fn missed_more(&self, seen: &Seen) -> Option<usize> {
        let links = self.links.iter().zip(&seen.missed);
        links.clone().position(|(link, seen)| link.missed.load(Ordering::Acquire) > *seen)
    }

    /// For a receiver that is an event loop: asks for `waker` to be called once when
    /// [`Subscription::try_next`] has something to say, and then looks. False when it has already;
    /// then nobody is called. While nobody is parked, a shard pays a fence and a load for each batch.
    ///
    /// The waker runs on a shard's thread, as those of tokens do: it may do no more than to signal.
    /// A subscription has one: the last that was given.
    pub fn park(&self, waker: &Waker) -> bool {
        let mut registered = lock(&self.parking.waker);
        let before = match &*registered {
            Some(known) if known.will_wake(waker) => None,
            _ => registered.replace(waker.clone()),
        };
        drop(registered);
        // Other people's code, and the lock has been given back.
        drop(before);
        self.parking.parked.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        let is_ready = {
            let seen = lock(&self.seen);
            !seen.held.is_empty()
                || !self.receiver.is_empty()
                || self.missed_more(&seen).is_some()
                || self.parking.open.load(Ordering::Acquire) == 0
        };
        if is_ready {
            self.parking.parked.store(false, Ordering::SeqCst);
        }
        !is_ready
    }
}

impl Drop for Subscription {
    /// The shards keep their ends until they next have something to send.
    fn drop(&mut self) {
        let waker = lock(&self.parking.waker).take();
        drop(waker);
    }
}

/// The shard's end of a [`Subscription`].
#[derive(Debug)]
pub(crate) struct Subscriber {
    place: usize,
    missed: u64,
    /// Dropped before `end`, which wakes the receiver for it.
    sender: Sender<Message>,
    end: End,
}

/// Says at its end that this shard sends no more.
#[derive(Debug)]
struct End {
    link: Arc<Link>,
    parking: Arc<Parking>,
}

impl Drop for End {
    fn drop(&mut self) {
        self.parking.open.fetch_sub(1, Ordering::Release);
        if let Some(waker) = self.parking.wake() {
            waker.wake();
        }
    }
}

/// A subscription of `batches` messages and its other ends, one for each of `shards`.
pub(crate) fn subscribe(batches: usize, shards: &[u16]) -> (Subscription, Vec<Subscriber>) {
    let (sender, receiver) = bounded(batches.max(1));
    let links: Vec<_> = shards
        .iter()
        .map(|shard| Arc::new(Link { shard: *shard, missed: AtomicU64::new(0) }))
        .collect();
    let parking = Arc::new(Parking {
        parked: AtomicBool::new(false),
        waker: Mutex::default(),
        open: AtomicUsize::new(shards.len()),
    });
    let subscribers = links.iter().enumerate().map(|(place, link)| Subscriber {
        place,
        missed: 0,
        sender: sender.clone(),
        end: End { link: link.clone(), parking: parking.clone() },
    });
    let subscribers = subscribers.collect();
    let seen = Mutex::new(Seen { missed: vec![0; shards.len()], held: VecDeque::new() });
    (Subscription { receiver, links, parking, seen }, subscribers)
}

impl Subscriber {
    /// Hands a batch's frames over: `bytes` is its buffer, or nothing when no more may be lent. False
    /// when the subscriber is gone. `wakers` gets whom to wake once the batch is on its way and no
    /// lock is held.
    fn hand_over(
        &mut self,
        batch: &Sealed,
        bytes: Option<&Bytes>,
        wakers: &mut Vec<Waker>,
    ) -> bool {
        let is_refused = bytes.is_none();
        let frames = bytes.map_or_else(Vec::new, |bytes| slices(batch, bytes));
        if is_refused {
            self.miss();
        }
        let message = Message { link: self.place, missed: self.missed, frames };
        match self.sender.try_send(message) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) if is_refused => {}
            Err(TrySendError::Full(_)) => self.miss(),
            Err(TrySendError::Disconnected(_)) => return false,
        }
        wakers.extend(self.end.parking.wake());
        true
    }

    /// Counts a batch that the receiver does not get. Where there is no room to say so, it finds
    /// the count when it has taken everything else.
    fn miss(&mut self) {
        self.missed += 1;
        self.end.link.missed.store(self.missed, Ordering::Release);
    }
}

/// Hands a batch's frames to all who want them. Who is gone goes.
pub(crate) fn hand_over(
    subscribers: &mut Vec<Subscriber>,
    batch: &Sealed,
    pool: &Pool,
    wakers: &mut Vec<Waker>,
) {
    // Only records that others may want are built in the pool: not those of the node's own streams.
    if batch.frames.is_empty() || batch.moved || !batch.buffer.is_pooled() {
        return;
    }
    // Slices may pin at most half of the pool, so that no subscriber can starve the shard. Only this
    // thread lends, so the count does not grow in between.
    let may_lend = pool.slots_lent() < pool.slots() / 2;
    let bytes = may_lend.then(|| batch.buffer.lend());
    subscribers.retain_mut(|subscriber| subscriber.hand_over(batch, bytes.as_ref(), wakers));
}

fn slices(batch: &Sealed, bytes: &Bytes) -> Vec<FrameSlice> {
    let slice = |frame: &crate::batch::SealedFrame| FrameSlice {
        stream: frame.stream,
        epoch: frame.epoch,
        base_offset: frame.base,
        count: frame.count,
        bytes: bytes.slice(frame.position..frame.position + frame.length),
    };
    batch.frames.iter().map(slice).collect()
}
