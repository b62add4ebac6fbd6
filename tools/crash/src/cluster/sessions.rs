//! The connections between leaders and followers: hello, admission, items both ways, and what the
//! follower's core asks for.

use std::collections::VecDeque;

use bytes::Bytes;
use ringwal_engine::StreamId;
use ringwal_engine::format::FrameHeader;
use ringwal_replication::follower::{Act, Refused, Why};
use ringwal_replication::node_id::NodeId;
use ringwal_replication::promise::{Admission, Promise, admit};
use ringwal_replication::wire::{
    Answer, ConnectionKind, Hello, Item, Message, PROTOCOL_VERSION, PROTOCOL_VERSION_MIN, Refusal,
};

use super::following::{Following, Taken};
use super::lies;
use super::node::{CLUSTER, Node, Part};
use super::world::World;
use crate::sim::trace;

/// Items that a connection takes before it is full.
const ITEMS_MAX: usize = 40;
/// Longest frame that is taken.
const FRAME_BYTES_MAX: usize = 64 << 10;

/// A connection from a leader to a follower.
#[derive(Default)]
pub struct Link {
    to_follower: VecDeque<Bytes>,
    to_leader: VecDeque<Vec<u8>>,
    /// The hello is with the follower.
    is_asked: bool,
    /// The follower has answered the hello, and the leader has seen it.
    is_admitted: bool,
    /// The leader's number of the session, when it is open.
    session: Option<u64>,
    /// Somebody has lied on it.
    pub is_tampered: bool,
}

/// A message of a session that is over.
pub struct Late {
    leader: usize,
    follower: usize,
    epoch: u64,
    session: u64,
    message: Message,
}

impl World {
    /// A leader without a connection to a member makes one.
    pub fn dial(&mut self) {
        let (leader, follower) = (self.any_leader(), self.any_node());
        let is_new = leader != follower && !self.links.contains_key(&(leader, follower));
        if !is_new || !self.hears_both_ways(leader, follower) {
            return;
        }
        let Node { part: Part::Leading(leading), id, run, .. } = &self.nodes[leader] else {
            return;
        };
        let hello = Hello {
            versions: (PROTOCOL_VERSION_MIN, PROTOCOL_VERSION),
            kind: ConnectionKind::Frames,
            cluster: CLUSTER,
            from: *id,
            to: self.nodes[follower].id,
            run: *run,
            engine: self.nodes[leader].engine(),
            epoch: leading.core.epoch(),
        };
        let mut link = Link::default();
        link.to_follower.push_back(Bytes::copy_from_slice(&hello.encode()));
        self.links.insert((leader, follower), link);
    }

    /// Something moves on a connection.
    pub fn serve(&mut self, leader: usize, follower: usize) {
        match self.random.below(3) {
            0 => self.send(leader, follower),
            1 if self.hears[follower][leader] => {
                for _ in 0..self.random.within(1..=8) {
                    if !self.deliver_to_follower(leader, follower) {
                        break;
                    }
                }
            }
            2 if self.hears[leader][follower] => {
                for _ in 0..self.random.within(1..=8) {
                    if !self.deliver_to_leader(leader, follower) {
                        break;
                    }
                }
            }
            _ => {}
        }
    }

    pub fn send(&mut self, leader: usize, follower: usize) {
        let Some(link) = self.links.get_mut(&(leader, follower)) else { return };
        let Part::Leading(leading) = &mut self.nodes[leader].part else { return };
        let Some(session) = link.session else {
            // It waits for the answer.
            return self.turn(follower);
        };
        if link.to_follower.len() < ITEMS_MAX {
            let slot = slot(leader, follower);
            let slices = leading.core.poll_send(slot, 8, self.now_ns);
            for slice in &slices {
                trace::tell(|| format!("{leader}>{follower} {}", describe(slice)));
            }
            // What is on its way keeps no buffer of the pool.
            link.to_follower.extend(slices.iter().map(|slice| Bytes::copy_from_slice(slice)));
            leading.core.handle_sent(slot, session);
        }
    }

    /// Sometimes, somebody says what is not so.
    fn lies(&mut self) -> bool {
        self.has_liars && !self.is_healing && self.random.chance(40)
    }

    /// False when there is nothing, or no room for it.
    pub fn deliver_to_follower(&mut self, leader: usize, follower: usize) -> bool {
        let lies = self.lies();
        let Some(link) = self.links.get_mut(&(leader, follower)) else { return false };
        let Some(mut bytes) = link.to_follower.front().cloned() else { return false };
        trace::tell(|| format!("{leader}>{follower} comes {}", describe(&bytes)));
        if !link.is_admitted {
            let is_first = !std::mem::replace(&mut link.is_asked, true);
            if is_first {
                self.ask(leader, follower, &bytes);
            } else {
                self.turn(follower);
            }
            return false;
        }
        let epoch = match &self.nodes[follower].part {
            Part::Following(following) => following.core.epoch(),
            _ => return false,
        };
        if lies {
            link.is_tampered = true;
            bytes = lies::of_leader(&mut self.random, epoch, &bytes).into();
            self.tell(|| format!("{leader}>{follower} lies {}", describe(&bytes)));
        }
        let is_taken = self.take_item(follower, &bytes);
        match is_taken {
            Taken::Later => return false,
            Taken::Damaged => {
                assert!(lies, "the connection damages nothing");
                self.oracle.counts.lies_found += 1;
                self.drop_link((leader, follower));
                return true;
            }
            Taken::Yes => {}
        }
        // A lie comes beside the truth.
        if let Some(link) = self.links.get_mut(&(leader, follower)).filter(|_| !lies) {
            link.to_follower.pop_front();
        }
        self.do_acts(follower);
        if lies && self.links.contains_key(&(leader, follower)) {
            self.oracle.counts.lies_ignored += 1;
        }
        true
    }

    /// A follower takes a frame or a message.
    fn take_item(&mut self, follower: usize, bytes: &[u8]) -> Taken {
        let Ok(Some(item)) = Item::look(bytes, FRAME_BYTES_MAX) else { return Taken::Damaged };
        let is_frame = matches!(item, Item::Frame { .. });
        let Node { part, store, .. } = &mut self.nodes[follower];
        let (Part::Following(following), Some(store)) = (part, store) else { return Taken::Later };
        if !is_frame {
            let Ok(message) = Message::decode(bytes) else { return Taken::Damaged };
            following.core.handle_message(message);
            return Taken::Yes;
        }
        if !self.is_healing && self.random.chance(3) {
            return self.refuse(follower, bytes);
        }
        following.take_frame(store, bytes, &mut self.oracle)
    }

    /// A follower's engine does not take a frame.
    fn refuse(&mut self, number: usize, bytes: &[u8]) -> Taken {
        let (header, _) = FrameHeader::verify(bytes).expect("looked at before");
        let stream = StreamId::new(header.stream.get());
        let node = &mut self.nodes[number];
        node.turn_until(|node| node.is_quiet()).expect("nobody is in danger");
        let end = node.store().at(stream).end(stream);
        let why = self.random.pick(&[Refused::NoSpace, Refused::NoSpace, Refused::TooManyStreams]);
        if let Part::Following(following) = &mut node.part {
            self.oracle.counts.no_room += 1;
            following.settle();
            following.core.handle_refused(stream, end, why);
        }
        Taken::Yes
    }

    /// A hello has come.
    fn ask(&mut self, leader: usize, follower: usize, bytes: &[u8]) {
        let hello = Hello::decode(bytes).expect("sound");
        let members: Vec<NodeId> = self.nodes.iter().map(|node| node.id).collect();
        let node = &self.nodes[follower];
        match admit(node.identity(), &members, node.promised, &hello) {
            Admission::Follow => {
                if let Part::Following(following) = &mut self.nodes[follower].part {
                    following.is_over = true;
                }
                self.nodes[follower].admitting = Some((leader, hello));
            }
            Admission::Promise(promise) => {
                let link = self.links.remove(&(leader, follower));
                self.begin_promise(follower, promise);
                self.links.extend(link.map(|link| ((leader, follower), link)));
                self.nodes[follower].admitting = Some((leader, hello));
            }
            Admission::Refuse(why, text) => {
                self.oracle.counts.refused += 1;
                self.answer(leader, follower, Some((why, text)));
            }
        }
    }

    /// A hello is answered when the promise is durable and everything has its outcome.
    pub fn go_on_admitting(&mut self, number: usize) {
        let node = &mut self.nodes[number];
        let Some((leader, hello)) = node.admitting else { return };
        if !node.is_up() || !node.is_quiet() {
            return;
        }
        node.admitting = None;
        let promise = Promise { epoch: hello.epoch, leader: hello.from, run: hello.run };
        self.oracle.note_promise(node.id, promise);
        if let Part::Following(following) = &mut node.part {
            following.settle();
        }
        self.end_part(number);
        self.oracle.counts.sessions += 1;
        let node = &mut self.nodes[number];
        node.save_committed(&mut self.random);
        let store = node.store.as_ref().expect("it is up");
        let following = Following::new(store, leader, hello.epoch, node.committed.clone());
        node.part = Part::Following(Box::new(following));
        self.answer(leader, number, None);
    }

    fn answer(&mut self, leader: usize, follower: usize, refused: Option<(Refusal, String)>) {
        let node = &self.nodes[follower];
        let answer = Answer {
            version: PROTOCOL_VERSION,
            refused,
            node: node.id,
            run: node.run,
            engine: node.engine(),
            epoch: node.promised.map_or(0, |promise| promise.epoch),
        };
        let link = self.links.get_mut(&(leader, follower)).expect("it is there");
        link.to_follower.pop_front();
        link.is_admitted = true;
        link.to_leader.push_back(answer.encode());
    }

    pub fn deliver_to_leader(&mut self, leader: usize, follower: usize) -> bool {
        let lies = self.lies();
        let stream = self.random.pick(&self.streams);
        let Some(link) = self.links.get_mut(&(leader, follower)) else { return false };
        let Some(mut bytes) = link.to_leader.front().cloned() else { return false };
        let Part::Leading(leading) = &mut self.nodes[leader].part else { return false };
        let Some(session) = link.session else {
            link.to_leader.pop_front();
            self.take_answer(leader, follower, &bytes);
            return true;
        };
        if lies {
            link.is_tampered = true;
            bytes = lies::of_follower(&mut self.random, &bytes, stream);
        } else {
            link.to_leader.pop_front();
        }
        trace::tell(|| format!("{leader}<{follower} comes {}", describe(&bytes)));
        let message = Message::decode(&bytes);
        assert!(lies || message.is_ok(), "the connection damages nothing");
        let slot = slot(leader, follower);
        let is_right = message.is_ok_and(|message| {
            let outcome = leading.core.handle_message(slot, session, message, self.now_ns);
            let is_right = outcome.is_ok();
            assert!(lies || is_right, "{outcome:?}");
            is_right
        });
        self.oracle.counts.lies_found += u64::from(lies && !is_right);
        self.oracle.counts.lies_ignored += u64::from(lies && is_right);
        if !is_right {
            self.drop_link((leader, follower));
        }
        true
    }

    fn take_answer(&mut self, leader: usize, follower: usize, bytes: &[u8]) {
        let Part::Leading(leading) = &mut self.nodes[leader].part else { return };
        let answer = Answer::decode(bytes).expect("sound");
        let Some((refusal, _)) = answer.refused else {
            let session = leading.core.handle_connected(slot(leader, follower), true, self.now_ns);
            let link = self.links.get_mut(&(leader, follower)).expect("it is there");
            link.session = Some(session);
            return;
        };
        assert_eq!(refusal, Refusal::Epoch, "nothing else is refused here");
        let is_over = answer.epoch > leading.core.epoch();
        self.drop_link((leader, follower));
        if is_over {
            self.depose(leader);
        }
    }

    /// Does what a follower's core asks for, or begins to.
    pub fn do_acts(&mut self, number: usize) {
        loop {
            let Part::Following(following) = &mut self.nodes[number].part else { return };
            if following.is_over {
                return;
            }
            let leader = following.leader;
            let Some(act) = following.core.poll_act() else { return };
            self.tell(|| format!("node {number}: {act:?}"));
            let Node { part: Part::Following(following), store: Some(store), .. } =
                &mut self.nodes[number]
            else {
                return;
            };
            match act {
                Act::Send(message) => {
                    let link = self.links.get_mut(&(leader, number));
                    if let Some(link) = link.filter(|link| link.is_admitted) {
                        link.to_leader.push_back(message.encode());
                    }
                }
                Act::Cut { stream, from, epoch, .. } => following.cut(stream, from, epoch),
                Act::BeginAnew { stream, trimmed, epochs, .. } => {
                    following.begin_anew(stream, trimmed, epochs.epoch_at(trimmed));
                }
                // It is told again when there is room.
                Act::Trim { stream, before } => drop(store.of(stream).trim(stream, before)),
                Act::Leave(why) => return self.leave(leader, number, why),
            }
        }
    }

    /// A follower leaves a leader.
    fn leave(&mut self, leader: usize, number: usize, why: Why) {
        let link = self.links.get(&(leader, number));
        let is_lied_to = link.is_some_and(|link| link.is_tampered);
        let may_leave = is_lied_to && matches!(why, Why::Violation(_));
        assert!(may_leave, "node {}: {why}", self.nodes[number].id);
        self.oracle.counts.lies_found += 1;
        self.drop_link((leader, number));
    }

    pub fn drop_link(&mut self, which: (usize, usize)) {
        let Some(link) = self.links.remove(&which) else { return };
        let admitting = &mut self.nodes[which.1].admitting;
        if admitting.is_some_and(|(leader, _)| leader == which.0) {
            *admitting = None;
        }
        let (Some(session), Part::Leading(leading)) = (link.session, &mut self.nodes[which.0].part)
        else {
            return;
        };
        let slot = slot(which.0, which.1);
        leading.disconnect(slot, session, &mut self.oracle);
        let messages = link.to_leader.iter().filter_map(|bytes| Message::decode(bytes).ok());
        let epoch = leading.core.epoch();
        let (leader, follower) = which;
        let late = messages.map(|message| Late { leader, follower, epoch, session, message });
        self.late = late.collect();
    }

    pub fn drop_links(&mut self, which: impl Fn((usize, usize)) -> bool) {
        let links: Vec<_> = self.links.keys().copied().filter(|link| which(*link)).collect();
        links.into_iter().for_each(|link| self.drop_link(link));
    }

    /// What came in a session that is over must not count in the next.
    pub fn deliver_late(&mut self) {
        for Late { leader, follower, epoch, session, message } in std::mem::take(&mut self.late) {
            let Part::Leading(leading) = &mut self.nodes[leader].part else { continue };
            if leading.core.epoch() != epoch {
                continue;
            }
            self.oracle.counts.old_messages += 1;
            let slot = slot(leader, follower);
            let before = leading.core.session(slot);
            let outcome = leading.core.handle_message(slot, session, message, self.now_ns);
            assert!(outcome.is_ok(), "{outcome:?}");
            assert_eq!(leading.core.session(slot), before, "a message of an older session counts");
        }
    }
}

/// The number of a follower among those of a leader.
pub fn slot(leader: usize, follower: usize) -> usize {
    follower - usize::from(follower > leader)
}

/// An item, for a person.
fn describe(bytes: &[u8]) -> String {
    match Item::look(bytes, FRAME_BYTES_MAX) {
        Ok(Some(Item::Message { .. })) => format!("{:?}", Message::decode(bytes)),
        Ok(Some(Item::Frame { .. })) => {
            let (header, _) = FrameHeader::verify(bytes).expect("a frame");
            let (stream, epoch) = (header.stream.get(), header.epoch.get());
            format!("frame {stream} {epoch} {}..{}", header.base_offset.get(), header.end_offset())
        }
        _ => "a hello, or a lie".into(),
    }
}
