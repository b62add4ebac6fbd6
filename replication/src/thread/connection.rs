//! One connection behind its hello: a task that reads and a task that writes, and between them and
//! the loop what has come and what goes.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::Notify;

use crate::link::{LinkReader, LinkWriter, Received};
use crate::wake::Wake;

/// Received bytes that wait for the loop; beyond it nothing more is read.
const RECEIVED_BYTES_MAX: usize = 4 << 20;
/// Last words are written within this, or not at all.
const LAST_WORDS_LIMIT: Duration = Duration::from_millis(250);
/// What an item is counted for beside its bytes.
const ITEM_BYTES: usize = 128;

/// Dropping it closes the connection, whatever is being written; see [`Connection::say_last`].
pub(crate) struct Connection {
    line: Rc<Line>,
}

struct Line {
    state: RefCell<State>,
    /// There is something to write.
    to_write: Notify,
    /// The loop has taken something.
    has_room: Notify,
    /// It is to be closed.
    closing: Notify,
    wake: Arc<Wake>,
}

struct State {
    received: VecDeque<(Received, Instant)>,
    received_bytes: usize,
    heard: Instant,
    outgoing: Option<Vec<Bytes>>,
    /// To be written when it is closed.
    last_words: Option<Bytes>,
    /// Handed over, and not reported as written by [`Connection::take_sent`].
    is_sending: bool,
    is_sent: bool,
    calls: u64,
    is_closed: bool,
    ended: Option<String>,
}

impl Connection {
    /// Starts its tasks. Frames may be `frame_bytes_max` long.
    pub(crate) fn start(
        reader: LinkReader,
        writer: LinkWriter,
        frame_bytes_max: usize,
        wake: Arc<Wake>,
    ) -> Self {
        let state = State {
            received: VecDeque::new(),
            received_bytes: 0,
            heard: Instant::now(),
            outgoing: None,
            last_words: None,
            is_sending: false,
            is_sent: false,
            calls: 0,
            is_closed: false,
            ended: None,
        };
        let line = Rc::new(Line {
            state: RefCell::new(state),
            to_write: Notify::new(),
            has_room: Notify::new(),
            closing: Notify::new(),
            wake,
        });
        tokio_uring::spawn(read(line.clone(), reader, frame_bytes_max));
        tokio_uring::spawn(write(line.clone(), writer));
        Self { line }
    }

    /// The next item and when it came.
    pub(crate) fn take_received(&self) -> Option<(Received, Instant)> {
        let mut state = self.line.state.borrow_mut();
        let (item, came) = state.received.pop_front()?;
        let was_full = state.received_bytes >= RECEIVED_BYTES_MAX;
        state.received_bytes -= counted(&item);
        if was_full && state.received_bytes < RECEIVED_BYTES_MAX {
            self.line.has_room.notify_one();
        }
        Some((item, came))
    }

    /// For how long the other side has been silent. It is not while this one does not listen.
    pub(crate) fn silence(&self) -> Duration {
        let state = self.line.state.borrow();
        let listens = state.received_bytes < RECEIVED_BYTES_MAX;
        if listens { state.heard.elapsed() } else { Duration::ZERO }
    }

    /// Why it has ended, once everything that came before has been taken.
    pub(crate) fn ended(&self) -> Option<String> {
        let state = self.line.state.borrow();
        if state.received.is_empty() { state.ended.clone() } else { None }
    }

    /// Whether it takes something to write.
    pub(crate) fn is_free(&self) -> bool {
        let state = self.line.state.borrow();
        !state.is_sending && state.ended.is_none()
    }

    /// Hands slices over, which are written in order; it is free.
    pub(crate) fn send(&self, slices: Vec<Bytes>) {
        let mut state = self.line.state.borrow_mut();
        assert!(!state.is_sending, "one hand-over at a time");
        (state.is_sending, state.outgoing) = (true, Some(slices));
        self.line.to_write.notify_one();
    }

    /// An item that is written when this is dropped, before the end, unless the other side does not
    /// read or something is being written.
    pub(crate) fn say_last(&self, item: Bytes) {
        self.line.state.borrow_mut().last_words = Some(item);
    }

    /// Whether what was handed over has been written since the last look.
    pub(crate) fn take_sent(&self) -> bool {
        let mut state = self.line.state.borrow_mut();
        let is_sent = std::mem::take(&mut state.is_sent);
        state.is_sending &= !is_sent;
        is_sent
    }

    /// System calls that wrote, so far.
    pub(crate) fn calls(&self) -> u64 {
        self.line.state.borrow().calls
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.line.state.borrow_mut().is_closed = true;
        self.line.closing.notify_one();
        self.line.has_room.notify_one();
    }
}

impl Line {
    fn end(&self, why: String) {
        let mut state = self.state.borrow_mut();
        state.ended.get_or_insert(why);
        drop(state);
        self.wake.wake();
    }

    /// None behind what was not begun; behind what was broken off the connection takes none.
    fn take_last_words(&self) -> Option<Bytes> {
        let mut state = self.state.borrow_mut();
        state.last_words.take().filter(|_| state.outgoing.is_none())
    }

    fn is_closed(&self) -> bool {
        self.state.borrow().is_closed
    }
}

/// What an item takes in memory, about.
fn counted(item: &Received) -> usize {
    ITEM_BYTES
        + match item {
            Received::Frame(frame) => frame.len(),
            Received::Message(message) => message.bytes(),
        }
}

async fn read(line: Rc<Line>, mut reader: LinkReader, frame_bytes_max: usize) {
    loop {
        loop {
            match reader.next_item(frame_bytes_max) {
                Ok(Some(item)) => {
                    let mut state = line.state.borrow_mut();
                    state.received_bytes += counted(&item);
                    let heard = state.heard;
                    state.received.push_back((item, heard));
                }
                Ok(None) => break,
                Err(error) => return line.end(error.to_string()),
            }
        }
        line.wake.wake();
        while line.state.borrow().received_bytes >= RECEIVED_BYTES_MAX && !line.is_closed() {
            line.has_room.notified().await;
        }
        if line.is_closed() {
            return;
        }
        match reader.receive().await {
            Ok(0) => return line.end("the other side has closed the connection".into()),
            Ok(_) => line.state.borrow_mut().heard = Instant::now(),
            Err(error) => return line.end(error.to_string()),
        }
    }
}

async fn write(line: Rc<Line>, mut writer: LinkWriter) {
    while !line.is_closed() {
        let outgoing = line.state.borrow_mut().outgoing.take();
        let Some(slices) = outgoing else {
            tokio::select! {
                () = line.to_write.notified() => {}
                () = line.closing.notified() => {}
            }
            continue;
        };
        let written = tokio::select! {
            written = writer.write_all(slices) => written,
            // The kernel keeps what it is writing until it has let go of it.
            () = line.closing.notified() => break,
        };
        match written {
            Ok(counts) => {
                let mut state = line.state.borrow_mut();
                (state.is_sent, state.calls) = (true, state.calls + counts.calls);
            }
            Err(error) => {
                line.end(error.to_string());
                break;
            }
        }
        line.wake.wake();
    }
    if let Some(item) = line.take_last_words() {
        let _ = tokio::time::timeout(LAST_WORDS_LIMIT, writer.write_all(vec![item])).await;
    }
    writer.shutdown().await;
}
