//! A node's part as follower of a leader's session.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use ringwal_engine::format::{FrameHeader, VerifiedFrame};
use ringwal_engine::{AppendBatch, AppendError, CommitError, EpochTable, Refusal, Shard, StreamId};
use ringwal_replication::follower::{Act, Follower, Refused, Worth};
use ringwal_replication::promise::Promise;
use ringwal_replication::simulating::rest_of;
use ringwal_replication::wire::{Item, Message};

use super::links::Connection;
use super::place::Place;

/// Items that are taken in a turn.
const ITEMS_PER_TURN: usize = 64;
/// Longest frame that is taken.
pub const FRAME_BYTES_MAX: usize = 64 << 10;
/// A side that hears nothing for so long gives up.
pub const SILENCE_NS: u64 = 1_000_000_000;
/// A side says that it is there after so long.
pub const HEARTBEAT_NS: u64 = 100_000_000;

/// See the module.
pub struct Following {
    pub promise: Promise,
    pub core: Follower,
    connection: Arc<Connection>,
    appending: VecDeque<(StreamId, u64, AppendBatch)>,
    /// A frame for which there was no room.
    waiting: Option<Bytes>,
    heard_ns: u64,
    spoke_ns: u64,
}

impl Following {
    pub fn new(promise: Promise, core: Follower, connection: Arc<Connection>, now_ns: u64) -> Self {
        let (appending, waiting) = (VecDeque::new(), None);
        Self { promise, core, connection, appending, waiting, heard_ns: now_ns, spoke_ns: now_ns }
    }

    /// Sends a message to the leader.
    pub fn say(&self, place: &Place, message: Message) {
        let (cluster, leader) = (place.cluster.clone(), self.connection.leader);
        self.connection.send(false, message.encode().into(), move || cluster.rouse(leader));
    }

    /// See `Follower::extendable`: offset of the next record, and the durable end. What was fetched meanwhile
    /// is seen.
    pub fn extendable(&mut self, shard: &Shard, stream: StreamId) -> Option<(u64, u64)> {
        let (next, durable) = self.core.extendable(stream)?;
        let end = shard.end(stream);
        if end <= next || self.appending.iter().any(|(other, ..)| *other == stream) {
            return Some((next, durable));
        }
        let table = EpochTable::from_entries(shard.epochs(stream)).unwrap_or_default();
        self.core.handle_brought(stream, end, table.epoch_at(end - 1));
        self.core.extendable(stream)
    }

    /// One turn; an error ends the session.
    pub fn turn(&mut self, place: &Place, shard: &mut Shard, now_ns: u64) -> Result<(), String> {
        if self.connection.is_broken() {
            return Err("the connection is broken".to_owned());
        }
        if let Some(frame) = self.waiting.take() {
            self.take_frame(shard, frame)?;
        }
        for _ in 0..ITEMS_PER_TURN {
            if self.waiting.is_some() {
                break;
            }
            let Some(item) = self.connection.take(true) else { break };
            self.heard_ns = now_ns;
            match Item::look(&item, FRAME_BYTES_MAX) {
                Ok(Some(Item::Frame { .. })) => self.take_frame(shard, item)?,
                _ => match Message::decode(&item).expect("the connection damages nothing") {
                    Message::Leaving { reason, .. } => return Err(reason),
                    message => self.core.handle_message(message),
                },
            }
        }
        self.settle(shard);
        self.core.handle_time(now_ns);
        while let Some(act) = self.core.poll_act() {
            match act {
                Act::Send(message) => {
                    self.spoke_ns = now_ns;
                    self.say(place, message);
                }
                Act::Trim { .. } => {}
                // What is not of an epoch was cut when it began.
                act => panic!("node {} in epoch {}: {act:?}", place.id(), self.promise.epoch),
            }
        }
        if now_ns.saturating_sub(self.heard_ns) > SILENCE_NS {
            return Err("the leader is silent".to_owned());
        }
        if now_ns.saturating_sub(self.spoke_ns) > HEARTBEAT_NS {
            self.spoke_ns = now_ns;
            self.say(place, Message::Heartbeat { time_ns: now_ns });
        }
        Ok(())
    }

    fn settle(&mut self, shard: &Shard) {
        let core = &mut self.core;
        self.appending.retain(|(stream, end, token)| {
            match token.try_receipt() {
                None => return true,
                Some(Ok(_)) => core.handle_durable(*stream, *end, 1),
                Some(Err(CommitError::Refused(
                    Refusal::NotContinuation { .. } | Refusal::Fenced { .. },
                ))) => core.handle_refused(*stream, shard.end(*stream), Refused::Discontinuous),
                Some(Err(error)) => panic!("{error}"),
            }
            false
        });
    }

    /// Takes a frame, of the leader or of an entry.
    pub fn take_frame(&mut self, shard: &mut Shard, mut frame: Bytes) -> Result<(), String> {
        let (mut header, _) = FrameHeader::verify(&frame).expect("the connection damages nothing");
        let stream = StreamId::new(header.stream.get());
        if let Some(next) = self.core.next_offset(stream)
            && (header.base_offset.get() + 1..header.end_offset()).contains(&next)
        {
            let whole = VerifiedFrame::verify(&frame).expect("the connection damages nothing");
            frame = rest_of(&whole, next);
            (header, _) = FrameHeader::verify(&frame).expect("just made");
        }
        let mut after = self.core.clone();
        if after.handle_frame(&header) == Worth::Ignore {
            self.core = after;
            return Ok(());
        }
        match shard.append_frame(&frame) {
            Ok(token) => {
                self.core = after;
                self.appending.push_back((stream, header.end_offset(), token));
                Ok(())
            }
            Err(AppendError::Full { .. }) => {
                self.waiting = Some(frame);
                Ok(())
            }
            Err(error) => Err(format!("the engine does not take stream {stream}: {error}")),
        }
    }

    pub fn break_session(&self) {
        self.connection.break_it();
    }

    pub fn has_room(&self) -> bool {
        self.waiting.is_none()
    }
}
