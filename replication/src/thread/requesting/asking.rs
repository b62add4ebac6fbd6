//! A node that is asked.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use bytes::Bytes;

use super::{IDLE_MAX, ITEMS_PER_TURN, send};
use crate::config::Member;
use crate::link::Received;
use crate::node_id::NodeId;
use crate::requests::parts::{Coming, encode};
use crate::requests::{Asking, REQUESTS_MAX, RequestError, WAITING_BYTES_MAX};
use crate::thread::Context;
use crate::thread::connection::Connection;
use crate::thread::dial::{Dialled, Dialler};
use crate::wire::{ConnectionKind, Message};

/// See the module.
pub(super) struct Target {
    node: NodeId,
    dialler: Dialler,
    connection: Option<(Connection, Instant)>,
    /// Not sent yet, and their bytes.
    waiting: VecDeque<Asking>,
    waiting_bytes: usize,
    /// Sent, or being sent, by number.
    sent: BTreeMap<u64, Asking>,
    /// Sent, and nobody waits for their replies any more: the other side still counts them.
    given_up: BTreeSet<u64>,
    made: u64,
    encoded: VecDeque<Bytes>,
    coming: Coming,
    used: Instant,
}

impl Target {
    pub fn new(context: &Context, member: Member) -> Self {
        let node = member.node;
        Self {
            node,
            dialler: Dialler::start(context, member, ConnectionKind::Requests, 0),
            connection: None,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            sent: BTreeMap::new(),
            given_up: BTreeSet::new(),
            made: 0,
            encoded: VecDeque::new(),
            coming: Coming::default(),
            used: Instant::now(),
        }
    }

    pub fn ask(&mut self, asking: Asking) {
        self.used = Instant::now();
        let count = self.waiting.len() + self.sent.len() + self.given_up.len();
        let bytes = self.waiting_bytes + asking.bytes.len();
        if count >= REQUESTS_MAX || bytes > WAITING_BYTES_MAX {
            return asking.finish(Err(RequestError::Busy { node: self.node }));
        }
        self.waiting_bytes = bytes;
        self.waiting.push_back(asking);
    }

    pub fn turn(&mut self, context: &Context) -> bool {
        match self.dialler.take() {
            None => {}
            Some(Dialled::Answered { reader, writer, .. }) => {
                let connection = Connection::start(reader, writer, 0, context.wake.clone());
                self.connection = Some((connection, Instant::now()));
            }
            Some(Dialled::Refused(refused)) => self.fail_waiting(&refused.why),
            Some(Dialled::Failed(why)) => self.fail_waiting(&why),
        }
        match self.exchange() {
            Ok(is_busy) => is_busy,
            Err(why) => {
                self.disconnect(&why);
                false
            }
        }
    }

    /// Sends and receives.
    fn exchange(&mut self) -> Result<bool, String> {
        let Some((connection, _)) = &self.connection else { return Ok(false) };
        let mut taken = 0;
        while taken < ITEMS_PER_TURN
            && let Some((item, _)) = connection.take_received()
        {
            taken += 1;
            let (number, outcome) = match item {
                Received::Message(Message::Reply(part)) => match self.coming.take(part)? {
                    Some((number, bytes)) => (number, Ok(bytes)),
                    None => continue,
                },
                Received::Message(Message::NoReply { number }) => {
                    (number, Err(RequestError::NoReply { node: self.node }))
                }
                _ => return Err("it says what nobody says who is asked".into()),
            };
            match self.sent.remove(&number) {
                Some(asking) => asking.finish(outcome),
                None if self.given_up.remove(&number) => {}
                None => return Err(format!("it replies to {number}, which was not asked")),
            }
        }
        connection.take_sent();
        if let Some(why) = connection.ended() {
            return Err(why);
        }
        let now = Instant::now();
        send(connection, &mut self.encoded, || {
            loop {
                let mut asking = self.waiting.pop_front()?;
                self.waiting_bytes -= asking.bytes.len();
                if asking.is_over(now) {
                    asking.finish_late();
                    continue;
                }
                self.made += 1;
                let parts = encode(self.made, &asking.bytes, Message::Request);
                (asking.is_sent, asking.bytes) = (true, Bytes::new());
                self.sent.insert(self.made, asking);
                return Some(parts);
            }
        });
        Ok(taken == ITEMS_PER_TURN)
    }

    fn disconnect(&mut self, why: &str) {
        if let Some((_, since)) = self.connection.take() {
            self.dialler.again(since.elapsed());
        }
        self.encoded.clear();
        self.given_up.clear();
        self.coming = Coming::default();
        for (_, asking) in std::mem::take(&mut self.sent) {
            asking.finish(Err(RequestError::Lost { node: self.node, why: why.to_owned() }));
        }
    }

    fn fail_waiting(&mut self, why: &str) {
        self.waiting_bytes = 0;
        for asking in std::mem::take(&mut self.waiting) {
            asking.finish(Err(RequestError::NotReached { node: self.node, why: why.to_owned() }));
        }
    }

    pub fn end(mut self, why: &str) {
        self.disconnect(why);
        self.fail_waiting(why);
    }

    /// Gives up what is late; false when it is not needed any more.
    pub fn tick(&mut self) -> bool {
        let now = Instant::now();
        let over = self.sent.iter().filter(|(_, asking)| asking.is_over(now));
        for number in over.map(|(number, _)| *number).collect::<Vec<_>>() {
            if let Some(asking) = self.sent.remove(&number) {
                self.given_up.insert(number);
                asking.finish_late();
            }
        }
        for asking in std::mem::take(&mut self.waiting) {
            if asking.is_over(now) {
                self.waiting_bytes -= asking.bytes.len();
                asking.finish_late();
            } else {
                self.waiting.push_back(asking);
            }
        }
        let is_used = !self.waiting.is_empty() || !self.sent.is_empty();
        is_used || self.used.elapsed() < IDLE_MAX
    }
}
