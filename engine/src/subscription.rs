//! Sealed frames for whoever sends them on: slices of the very buffer that is written. Nothing is
//! copied, nobody is waited for.

use std::time::Duration;

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};

use crate::batch::Sealed;
use crate::disk::Pool;
use crate::stream::StreamId;

/// Frames of one batch, handed over when it was sealed: before it is durable.
#[derive(Clone, Debug)]
pub enum SealedFrames {
    /// The frames, in order.
    Batch(Vec<FrameSlice>),
    /// The subscriber was too slow, or holds too many buffers: frames of one shard are missing
    /// here, and which one is not said. Read on from the streams.
    Lagged,
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
    /// it is dropped.
    pub bytes: Bytes,
}

/// Receives the sealed frames of all shards, mixed, through one queue.
///
/// A message is of one shard. Messages of one shard, and so the frames of one stream, come in the
/// order in which they were sealed; between shards there is no order, and the receiver has to merge
/// what it wants to see as one sequence.
#[derive(Debug)]
pub struct Subscription {
    receiver: Receiver<SealedFrames>,
}

impl Subscription {
    /// The next batch's frames, waiting for them; `None` when every shard is closed.
    pub fn next_blocking(&self) -> Option<SealedFrames> {
        self.receiver.recv().ok()
    }

    /// The next batch's frames; `None` when the time is over or every shard is closed.
    pub fn next_timeout(&self, timeout: Duration) -> Option<SealedFrames> {
        self.receiver.recv_timeout(timeout).ok()
    }
}

/// The shard's end of a [`Subscription`].
#[derive(Debug)]
pub(crate) struct Subscriber {
    sender: Sender<SealedFrames>,
    lagged: bool,
}

/// A subscription of `batches` messages and its other ends, one per shard.
pub(crate) fn subscribe(batches: usize, shards: usize) -> (Subscription, Vec<Subscriber>) {
    let (sender, receiver) = bounded(batches.max(1));
    let subscribers =
        (0..shards).map(|_| Subscriber { sender: sender.clone(), lagged: false }).collect();
    (Subscription { receiver }, subscribers)
}

impl Subscriber {
    /// Hands a batch's frames over. False when the subscriber is gone.
    pub(crate) fn hand_over(&mut self, batch: &Sealed, pool: &Pool) -> bool {
        if batch.frames.is_empty() || batch.moved {
            return true;
        }
        // Slices may pin at most half of the pool, so that no subscriber can starve the shard.
        if !batch.buffer.is_pooled() || pool.slots_free() < pool.slots() / 2 {
            return self.lag();
        }
        if self.lagged && !self.lag() {
            return false;
        }
        if self.lagged {
            return true;
        }
        let bytes = batch.buffer.to_bytes();
        let slice = |frame: &crate::batch::SealedFrame| FrameSlice {
            stream: frame.stream,
            epoch: frame.epoch,
            base_offset: frame.base,
            count: frame.count,
            bytes: bytes.slice(frame.position..frame.position + frame.length),
        };
        let frames = batch.frames.iter().map(slice).collect();
        match self.sender.try_send(SealedFrames::Batch(frames)) {
            Ok(()) => true,
            Err(TrySendError::Full(_)) => {
                self.lagged = true;
                true
            }
            Err(TrySendError::Disconnected(_)) => false,
        }
    }

    /// Says that frames are missing, as soon as there is room to say so.
    fn lag(&mut self) -> bool {
        match self.sender.try_send(SealedFrames::Lagged) {
            Ok(()) => {
                self.lagged = false;
                true
            }
            Err(TrySendError::Full(_)) => {
                self.lagged = true;
                true
            }
            Err(TrySendError::Disconnected(_)) => false,
        }
    }
}
