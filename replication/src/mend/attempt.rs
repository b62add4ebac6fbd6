//! One attempt at one place: what its segment holds that cannot be read comes from other members, and
//! all else is moved out of the segment, which then is used again.

use std::collections::VecDeque;
use std::sync::PoisonError;

use ringwal_engine::format::FrameHeader;
use ringwal_engine::{
    AppendBatch, CommitError, DamagedFrame, EpochTable, MendError, ReadError, Refusal,
    SalvageError, Salvaged, StreamId,
};

use super::{Mended, NotMended, Source};
use crate::fetch::client::{Peer, Piece};
use crate::history::{Held, Parting, part};
use crate::node_id::NodeId;
use crate::promise::is_replicated;
use crate::repair::why_not;
use crate::wire::{History, Stop, Wanted};

/// Frames on their way to the disk.
const IN_FLIGHT_MAX: usize = 32;

/// Damaged records, and which of the members that were asked has them.
struct Wish {
    part: DamagedFrame,
    peer: Option<usize>,
}

impl Source {
    /// Mends the segment that holds a record which cannot be read.
    pub(super) fn attempt(&self, stream: StreamId, offset: u64) -> Result<Mended, NotMended> {
        // What of its segment is trimmed or cut by now is no damage any more.
        if self.reads(stream, offset).is_ok() {
            return Ok(Mended::default());
        }
        let mended = tokio_uring::start(async {
            tokio::select! {
                mended = self.mend(stream, offset) => mended,
                () = self.closing.notified() => Err("the node is closing".to_owned().into()),
            }
        })?;
        Ok(self.reads(stream, offset).map(|()| mended)?)
    }

    fn reads(&self, stream: StreamId, offset: u64) -> Result<(), String> {
        match self.engine.stream(stream).frames(offset).next_batch(1) {
            Ok(_) | Err(ReadError::Trimmed { .. }) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }

    async fn mend(&self, stream: StreamId, offset: u64) -> Result<Mended, NotMended> {
        let salvage = match self.engine.stream(stream).salvage(offset) {
            Ok(salvage) => salvage,
            Err(SalvageError::Gone { .. } | SalvageError::NotHeld { .. }) => {
                return Ok(Mended::default());
            }
            Err(error) => return Err(error.to_string().into()),
        };
        let damaged = salvage.filter_map(|part| match part {
            Salvaged::Damaged(part) if is_replicated(part.stream) => Some(part),
            _ => None,
        });
        let mut wishes: Vec<_> = damaged.map(|part| Wish { part, peer: None }).collect();
        let (mut peers, lacking) = self.ask(&mut wishes).await;
        if lacking.is_none() {
            // First, so that whoever ends this in between leaves the damage to be found again.
            self.move_sound(stream, offset)?;
        }
        let mut mended = Mended::default();
        for Wish { part, peer } in &wishes {
            let Some((node, peer)) = peer.and_then(|peer| peers.get_mut(peer)) else { continue };
            self.fetch(part, peer).await.map_err(|why| format!("node {node}: {why}"))?;
            mended.records += part.offsets.end - part.offsets.start;
            if !mended.from.contains(node) {
                mended.from.push(*node);
            }
        }
        let Some(why) = lacking else { return Ok(mended) };
        let without = wishes.iter().filter(|wish| wish.peer.is_none());
        let others = without.map(|wish| (wish.part.stream, wish.part.offsets.start)).collect();
        Err(NotMended { why, others })
    }

    /// Asks one member after the other, until somebody has each damaged part: has read and checked
    /// it. Those who have something; and what nobody has, in words.
    async fn ask(&self, wishes: &mut [Wish]) -> (Vec<(NodeId, Peer)>, Option<String>) {
        let (mut peers, mut reasons) = (Vec::new(), Vec::new());
        let members = self.members.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let others = members.iter().filter(|m| m.node != self.config.node);
        for member in others {
            if wishes.iter().all(|wish| wish.peer.is_some()) {
                break;
            }
            let tls = self.tls.as_deref();
            let node = member.node;
            let connected = Peer::connect(&member.address, tls, &self.hello(node)).await;
            let mut peer = match connected {
                Ok(peer) if peer.answer.node == node => peer,
                Ok(peer) => {
                    let found = peer.answer.node;
                    reasons.push(format!("{} is node {found}, not {node}", member.address));
                    continue;
                }
                Err(error) => {
                    reasons.push(format!("node {node}: {error}"));
                    continue;
                }
            };
            let mut has_some = false;
            for wish in wishes.iter_mut().filter(|wish| wish.peer.is_none()) {
                match self.check(&wish.part, &mut peer).await {
                    Ok(()) => (has_some, wish.peer) = (true, Some(peers.len())),
                    Err(why) => {
                        let why = format!("node {node}: stream {}: {why}", wish.part.stream);
                        if !reasons.contains(&why) {
                            reasons.push(why);
                        }
                    }
                }
            }
            if has_some {
                peers.push((node, peer));
            }
        }
        let is_lacking = wishes.iter().any(|wish| wish.peer.is_none());
        if reasons.is_empty() {
            reasons.push("there is no other member".to_owned());
        }
        (peers, is_lacking.then(|| reasons.join("; ")))
    }

    /// Whether another node has the same history up to there, and can read it.
    async fn check(&self, part: &DamagedFrame, peer: &mut Peer) -> Result<(), String> {
        let theirs = peer.held.get(&part.stream).cloned().ok_or("it is not there")?;
        self.compare(part, &theirs)?;
        let wanted = wanted(part, part.offsets.start);
        let checked = peer.check(wanted).await.map_err(|error| error.to_string())?;
        why_not(checked.0, &checked.1, wanted.end).map_or(Ok(()), Err)
    }

    fn compare(&self, damaged: &DamagedFrame, theirs: &Held) -> Result<(), String> {
        let stream = self.engine.stream(damaged.stream);
        let epochs = EpochTable::from_entries(stream.epochs()).unwrap_or_default();
        let held = Held { trimmed: stream.trimmed(), end: stream.end(), epochs };
        let Held { trimmed, end, epochs } = theirs.clone();
        let offsets = &damaged.offsets;
        match part(&held, &History { stream: damaged.stream, trimmed, epochs }) {
            _ if trimmed > offsets.start => Err(format!("it is trimmed up to {trimmed} there")),
            _ if end < offsets.end => Err(format!("it ends at {end} there")),
            Parting::At(at) if at < offsets.end => {
                Err(format!("from offset {at} on it has other records there, of another epoch"))
            }
            Parting::TooFar { .. } | Parting::LeaderLacks { .. } => {
                Err("its history there cannot be compared with this one".into())
            }
            Parting::Nowhere | Parting::At(_) => Ok(()),
        }
    }

    /// Moves everything that can be read out of the segment.
    fn move_sound(&self, stream: StreamId, offset: u64) -> Result<(), String> {
        let Ok(salvage) = self.engine.stream(stream).salvage(offset) else { return Ok(()) };
        let mut writing = Writing::default();
        for part in salvage {
            if let Salvaged::Sound(frame) = part {
                match self.engine.stream(frame.stream).mend(&frame.bytes) {
                    Ok(token) => writing.push(token)?,
                    // It was cut meanwhile.
                    Err(MendError::Beyond { .. } | MendError::OtherHistory { .. }) => {}
                    Err(error) => return Err(error.to_string()),
                }
            }
        }
        writing.settle(0)
    }

    /// Fetches damaged records and puts them back.
    async fn fetch(&self, part: &DamagedFrame, peer: &mut Peer) -> Result<(), String> {
        let (mut next, mut writing) = (part.offsets.start, Writing::default());
        let why = |error: crate::fetch::client::FetchError| error.to_string();
        while next < part.offsets.end {
            let wanted = wanted(part, next);
            peer.ask(wanted).await.map_err(why)?;
            let stop = loop {
                match peer.next_of(wanted).await.map_err(why)? {
                    Piece::Frame(frame) => {
                        let told = peer.held.get(&part.stream);
                        let header = header(&frame, part, next, told)?;
                        let token = self.engine.stream(part.stream).mend(&frame);
                        writing.push(token.map_err(|error| error.to_string())?)?;
                        next = header.end_offset();
                    }
                    Piece::End { end, stop } if end == next => break stop,
                    Piece::End { .. } => return Err("fewer frames than it says".into()),
                }
            };
            if stop != Stop::More
                && let Some(why) = why_not(next, &stop, wanted.end)
            {
                return Err(why);
            }
        }
        writing.settle(0)
    }
}

fn wanted(part: &DamagedFrame, from: u64) -> Wanted {
    Wanted { stream: part.stream, from, end: part.offsets.end, is_check: false }
}

/// A frame that continues at `next`, in the epoch that the other node has told, and is what was here
/// as far as anything tells.
fn header(
    frame: &[u8],
    part: &DamagedFrame,
    next: u64,
    told: Option<&Held>,
) -> Result<FrameHeader, String> {
    let header = FrameHeader::verify(frame).map_err(|error| error.to_string())?.0;
    let epoch = header.epoch.get();
    let is_told = |offset| told.is_some_and(|held| held.epochs.epoch_at(offset) == epoch);
    let is_wanted = (header.stream.get(), header.base_offset.get()) == (part.stream.get(), next)
        && header.count.get() > 0
        && is_told(next)
        && is_told(header.end_offset() - 1);
    if !is_wanted {
        return Err("another frame than was asked for".into());
    }
    if part.contradicts(&header) {
        return Err(format!("it has other records of the same epoch at {next} than were here"));
    }
    Ok(header)
}

/// What is on its way to the disk.
#[derive(Default)]
struct Writing(VecDeque<AppendBatch>);

impl Writing {
    fn push(&mut self, token: AppendBatch) -> Result<(), String> {
        self.0.push_back(token);
        self.settle(IN_FLIGHT_MAX)
    }

    /// Waits until no more than `left` are.
    fn settle(&mut self, left: usize) -> Result<(), String> {
        while self.0.len() > left
            && let Some(token) = self.0.pop_front()
        {
            match token.wait() {
                // A trim or cut was faster.
                Ok(_) | Err(CommitError::Refused(Refusal::Dead { .. })) => {}
                Err(error) => return Err(error.to_string()),
            }
        }
        Ok(())
    }
}
