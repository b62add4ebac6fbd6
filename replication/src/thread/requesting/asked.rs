//! A node that asks.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{IDLE_MAX, ITEMS_PER_TURN, send};
use crate::link::Received;
use crate::node_id::NodeId;
use crate::requests::Of;
use crate::requests::parts::{Coming, encode};
use crate::thread::Context;
use crate::thread::accept::{Arrived, Place};
use crate::thread::connection::Connection;
use crate::wire::{Answer, Message};

/// Bytes of replies that wait for one; beyond it nothing more of it is read.
const WAITING_BYTES_MAX: usize = 16 << 20;
/// One that does not take its replies for so long is dropped.
const STALLED_MAX: Duration = Duration::from_secs(30);

/// See the module.
pub(super) struct Session {
    number: u64,
    node: NodeId,
    connection: Connection,
    _place: Place,
    /// Replies that wait; `None` where there is none. Put into parts when their turn comes.
    waiting: VecDeque<(u64, Option<Bytes>)>,
    waiting_bytes: usize,
    encoded: VecDeque<Bytes>,
    coming: Coming,
    used: Instant,
    /// When the last reply had been written, or the first began to wait.
    progressed: Instant,
}

impl Session {
    pub fn new(context: &Context, arrived: Arrived, answer: &Answer, number: u64) -> Self {
        let Arrived { reader, writer, hello, place, .. } = arrived;
        Self {
            number,
            node: hello.from,
            connection: Connection::start(reader, writer, 0, context.wake.clone()),
            _place: place,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            encoded: VecDeque::from([answer.encode().into()]),
            coming: Coming::default(),
            used: Instant::now(),
            progressed: Instant::now(),
        }
    }

    pub fn number(&self) -> u64 {
        self.number
    }

    pub fn node(&self) -> NodeId {
        self.node
    }

    /// Bytes of replies that are not handed over yet.
    pub fn waiting_bytes(&self) -> usize {
        self.waiting_bytes + self.encoded.iter().map(Bytes::len).sum::<usize>()
    }

    pub fn is_used(&self) -> bool {
        match self.has_waiting() {
            true => self.progressed.elapsed() < STALLED_MAX,
            false => self.used.elapsed() < 2 * IDLE_MAX,
        }
    }

    fn has_waiting(&self) -> bool {
        !self.waiting.is_empty() || !self.encoded.is_empty()
    }

    pub fn reply(&mut self, number: u64, bytes: Option<Bytes>) {
        if !self.has_waiting() {
            self.progressed = Instant::now();
        }
        self.used = Instant::now();
        self.waiting_bytes += bytes.as_ref().map_or(0, Bytes::len);
        self.waiting.push_back((number, bytes));
    }

    /// Takes at most `room` requests, and sends what there is.
    pub fn turn(&mut self, room: usize, taken: &mut Vec<(Of, Bytes)>) -> Result<bool, String> {
        let (mut items, until) = (0, taken.len() + room);
        while items < ITEMS_PER_TURN
            && taken.len() < until
            && self.waiting_bytes() < WAITING_BYTES_MAX
            && let Some((item, _)) = self.connection.take_received()
        {
            items += 1;
            self.used = Instant::now();
            let Received::Message(Message::Request(part)) = item else {
                return Err("it says what nobody says who asks".into());
            };
            if let Some((number, bytes)) = self.coming.take(part)? {
                let (node, session, length) = (self.node, self.number, bytes.len());
                taken.push((Of { node, session, number, length }, bytes));
            }
        }
        if self.connection.take_sent() {
            self.progressed = Instant::now();
        }
        send(&self.connection, &mut self.encoded, || {
            let (number, bytes) = self.waiting.pop_front()?;
            self.waiting_bytes -= bytes.as_ref().map_or(0, Bytes::len);
            Some(match bytes {
                Some(bytes) => encode(number, &bytes, Message::Reply),
                None => vec![Message::NoReply { number }.encode().into()],
            })
        });
        match self.connection.ended() {
            Some(why) => Err(why),
            None => Ok(items == ITEMS_PER_TURN),
        }
    }
}
