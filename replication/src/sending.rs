//! The sender alone, to be measured: the leader's core and a connection, fed with frames from memory.
//! No engine and no follower; the other side reads and drops. Not a part of the public interface.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ringwal_engine::{FrameSlice, StreamId};

use crate::history::Held;
use crate::leader::{Leader, Limits};
use crate::link::{Link, LinkError};
use crate::thread::{Connection, SLICES_MAX};
use crate::wake::Wake;
use crate::wire::Message;

/// The first stream: those before it are no ordinary ones.
const FIRST_STREAM: u64 = 16;
/// As a leader has them with the defaults of engine and configuration.
const LIMITS: Limits = Limits {
    window_bytes: 8 << 20,
    window_buffers: 14,
    read_bytes: 1 << 20,
    heartbeat_ns: u64::MAX,
};
/// Batches whose buffers take turns: as many bytes as the pool of a shard has, in all.
const BATCHES: usize = 32;
/// How long connecting may take, and what has been handed over last.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is sent: batches of frames, one of each stream.
#[derive(Copy, Clone, Debug)]
pub struct Load {
    /// Length of a frame, header included.
    pub frame_bytes: usize,
    /// Frames of a batch.
    pub frames_per_batch: usize,
}

/// What the connection took.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Default)]
pub struct Sent {
    /// Frames.
    pub frames: u64,
    /// System calls that wrote them.
    pub calls: u64,
}

/// Connects to `address` and keeps the sender busy until `is_over`: there is always as much sealed as
/// its window takes. `note` is told of each hand-over that was written: when it began, and how many
/// frames it had. Blocks the thread.
///
/// # Errors
/// When nobody takes the connection, or it breaks.
///
/// # Panics
/// When frames were dropped from memory: then this fed more than a leader's window.
pub fn run(
    address: &str,
    load: Load,
    note: &mut dyn FnMut(Instant, u64),
    is_over: &dyn Fn(Instant) -> bool,
) -> Result<Sent, LinkError> {
    tokio_uring::start(async {
        let link = Link::dial(address, None, PATIENCE).await?;
        let peer = link.peer();
        let (reader, writer) = link.split();
        let wake = Arc::new(Wake::default());
        let connection = Connection::start(reader, writer, load.frame_bytes, wake.clone());
        let mut sender = Sender::new(load);
        let begin = Instant::now();
        let mut handed: Option<(Instant, u64)> = None;
        let mut over: Option<Instant> = None;
        loop {
            if connection.take_sent() {
                sender.core.handle_sent(0, sender.session);
                if let Some((at, frames)) = handed.take() {
                    sender.sent.frames += frames;
                    note(at, frames);
                }
            }
            let now = Instant::now();
            if over.is_none() && is_over(now) {
                over = Some(now);
            }
            let why = connection.ended();
            let is_late = over.is_some_and(|over| over.elapsed() > PATIENCE);
            if why.is_some() || is_late {
                let why = why.unwrap_or_else(|| format!("nothing was read for {PATIENCE:?}"));
                return Err(LinkError::Write { peer, source: std::io::Error::other(why) });
            }
            if over.is_none() {
                sender.fill();
            }
            if connection.is_free() {
                if over.is_some() {
                    break;
                }
                let (slices, frames) = sender.take(begin.elapsed().as_nanos() as u64);
                handed = Some((Instant::now(), frames));
                connection.send(slices);
            }
            wake.wait(PATIENCE / 100).await;
        }
        Ok(Sent { calls: connection.calls(), ..sender.sent })
    })
}

/// The leader's core with one session, and what is sealed.
struct Sender {
    core: Leader,
    session: u64,
    load: Load,
    batches: Vec<Vec<Bytes>>,
    /// So many batches.
    sealed: u64,
    /// Frames that were taken to be sent.
    taken: u64,
    sent: Sent,
}

impl Sender {
    fn new(load: Load) -> Self {
        let streams: Vec<StreamId> =
            (FIRST_STREAM..).take(load.frames_per_batch).map(StreamId::new).collect();
        let held = streams.iter().map(|stream| (*stream, 0, Held::default()));
        let mut core = Leader::new(1, 1, LIMITS, held);
        let session = core.handle_connected(0, true, 0);
        let wants = Message::Want(streams.iter().map(|stream| (*stream, 0)).collect());
        core.handle_message(0, session, wants, 0).expect("a follower wants its streams");
        let batch = |index: usize| {
            let bytes = Bytes::from(vec![index as u8; load.frame_bytes * load.frames_per_batch]);
            let frames = (0..load.frames_per_batch).map(|frame| frame * load.frame_bytes);
            frames.map(|start| bytes.slice(start..start + load.frame_bytes)).collect()
        };
        let batches = (0..BATCHES).map(batch).collect();
        Self { core, session, load, batches, sealed: 0, taken: 0, sent: Sent::default() }
    }

    /// Seals as many batches as the window takes.
    fn fill(&mut self) {
        let frames_per_batch = self.load.frames_per_batch as u64;
        let batch_bytes = self.load.frame_bytes * self.load.frames_per_batch;
        let batches_max = LIMITS.window_buffers.min(LIMITS.window_bytes / batch_bytes) as u64;
        while self.sealed + 1 - self.sent.frames / frames_per_batch <= batches_max {
            let bytes = &self.batches[self.sealed as usize % BATCHES];
            let frames = (FIRST_STREAM..).zip(bytes).map(|(stream, bytes)| FrameSlice {
                stream: StreamId::new(stream),
                epoch: 1,
                base_offset: self.sealed,
                count: 1,
                bytes: bytes.clone(),
            });
            let frames: Vec<FrameSlice> = frames.collect();
            self.core.handle_sealed(0, &frames);
            self.sealed += 1;
        }
    }

    /// What goes to the connection next, and how many frames that are.
    fn take(&mut self, now_ns: u64) -> (Vec<Bytes>, u64) {
        let slices = self.core.poll_send(0, SLICES_MAX, now_ns);
        let counts = self.core.session(0).expect("a session").counts;
        assert_eq!(counts.frames_dropped, 0, "more was sealed than the window takes");
        let frames = counts.frames - std::mem::replace(&mut self.taken, counts.frames);
        (slices, frames)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn every_frame_arrives_and_small_ones_share_calls() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let address = listener.local_addr().expect("an address").to_string();
        let receiver = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            let (mut buffer, mut bytes) = (vec![0; 1 << 16], 0);
            while let read @ 1.. = stream.read(&mut buffer).expect("read") {
                bytes += read as u64;
            }
            bytes
        });
        let load = Load { frame_bytes: 200, frames_per_batch: 64 };
        let mut noted = 0;
        let enough = std::cell::Cell::new(0);
        let mut note = |_, frames| {
            noted += frames;
            enough.set(noted);
        };
        let sent = run(&address, load, &mut note, &|_| enough.get() > 100_000).expect("sent");
        assert_eq!(sent.frames, noted);
        assert!(sent.calls > 0 && sent.calls * 64 <= sent.frames, "{sent:?}");
        let received = receiver.join().expect("no panic");
        assert!(received > sent.frames * 200, "histories and frames: {received} bytes");
    }
}
