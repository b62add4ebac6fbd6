//! What was given up comes back: facts and own streams from the marker, all else from the other
//! node, frame by frame, the same bytes.

use std::collections::VecDeque;
use std::ops::Range;
use std::path::Path;

use bytes::Bytes;
use ringwal_engine::{AppendBatch, Engine, EpochTable, Io, StreamId};

use super::plan::why_not;
use super::{Marker, RepairFrom, RepairFromError, marker};
use crate::fetch::client::{Peer, Piece};
use crate::history::{Held, Parting, part};
use crate::orphans::{self, Reason};
use crate::promise::is_replicated;
use crate::wire::{History, Stop, Wanted};
use crate::worker::Facts;

/// Frames on their way to the disk.
const APPENDING_MAX: usize = 64;
/// As long as any engine allows, so that every frame fits that fitted before.
const BATCH_BYTES_MAX: usize = 16 << 20;
const POOL_BYTES: usize = 8 * BATCH_BYTES_MAX;

/// What came of a stream, or would come.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct Brought {
    /// Which one.
    pub stream: StreamId,
    /// Offsets.
    pub offsets: Range<u64>,
    /// Bytes of frames; 0 when nothing was fetched yet.
    pub bytes: u64,
}

pub(super) struct Bringing {
    pub(super) brought: Vec<Brought>,
    pub(super) left: Vec<(StreamId, String)>,
    /// What is not back.
    pub(super) lacking: Option<String>,
}

/// Does what the marker says; what is there already is left alone.
pub(super) async fn bring(
    directory: &Path,
    marker: &mut Marker,
    peer: &mut Peer,
    options: &RepairFrom,
) -> Result<Bringing, RepairFromError> {
    let engine = Engine::options()
        .io(Io::Blocking)
        .batch_bytes_max(BATCH_BYTES_MAX)
        .pool_bytes(POOL_BYTES)
        .open(directory)?;
    // Nothing here is this node's own writing.
    engine.close_epoch();
    marker.settle_facts(&engine, Facts::load(&engine)?)?;
    append_own(&engine, marker)?;
    if !marker.own.is_empty() {
        // They are this node's to change again, and must not come back over what it makes of them.
        marker.own.clear();
        marker.ends.retain(|stream, _| is_replicated(*stream));
        marker.store(directory)?;
    }
    let marker = &*marker;
    let left_to_stop = options.stop_after_frames;
    let mut bring =
        Bring { engine: &engine, marker, peer, appending: VecDeque::new(), left_to_stop };
    let (mut brought, mut left) = (Vec::new(), Vec::new());
    for (stream, end) in marker.ends.iter().filter(|(stream, _)| is_replicated(**stream)) {
        match bring.stream(*stream, *end).await? {
            Ok(Some(stream)) => brought.push(stream),
            Ok(None) => {}
            Err(why) => left.push((*stream, why)),
        }
    }
    let lacking = marker.lacking(&engine);
    engine.close()?;
    Ok(Bringing { brought, left, lacking })
}

/// Streams 1 and 2 as they were.
fn append_own(engine: &Engine, marker: &Marker) -> Result<(), RepairFromError> {
    for frame in &marker.own {
        let Some((id, offsets)) = marker::offsets(frame) else { continue };
        let stream = engine.stream(id);
        let failed =
            |why: String| RepairFromError::Append { stream: id, offset: offsets.start, why };
        if offsets.end <= stream.end() {
            continue;
        }
        if stream.end() < offsets.start {
            // What is before was trimmed.
            let skip = stream.skip_to(offsets.start).map_err(|error| failed(error.to_string()))?;
            skip.wait().map_err(|error| failed(error.to_string()))?;
        }
        let token = stream.append_frame(frame).map_err(|error| failed(error.to_string()))?;
        token.wait().map_err(|error| failed(error.to_string()))?;
    }
    Ok(())
}

struct Bring<'a> {
    engine: &'a Engine,
    marker: &'a Marker,
    peer: &'a mut Peer,
    appending: VecDeque<(u64, AppendBatch)>,
    left_to_stop: Option<u64>,
}

/// What came, or why no more.
type Outcome = Result<Option<Brought>, String>;

impl Bring<'_> {
    async fn stream(&mut self, stream: StreamId, end: u64) -> Result<Outcome, RepairFromError> {
        let Some(theirs) = self.peer.held.get(&stream).cloned() else {
            return Ok(Err("it is not there".into()));
        };
        let history = History { stream, trimmed: theirs.trimmed, epochs: theirs.epochs.clone() };
        if let Err(why) = self.prepare(stream, &history)? {
            let is_there = self.engine.stream(stream).end() >= end;
            return Ok(if is_there { Ok(None) } else { Err(why) });
        }
        let from = self.engine.stream(stream).end();
        let mut brought = Brought { stream, offsets: from..from, bytes: 0 };
        let mut why = None;
        while brought.offsets.end < end {
            let wanted = Wanted { stream, from: brought.offsets.end, end, is_check: false };
            self.peer.ask(wanted).await?;
            let stop = loop {
                match self.peer.next_of(wanted).await? {
                    Piece::Frame(frame) => self.take(frame, &theirs, &mut brought).await?,
                    Piece::End { end, stop } if end == brought.offsets.end => break stop,
                    Piece::End { .. } => {
                        return Err(self.peer.unexpected("fewer frames than it says").into());
                    }
                }
            };
            if stop != Stop::More {
                why = why_not(brought.offsets.end, &stop, end);
                break;
            }
        }
        self.settle(stream, 0).await?;
        Ok(match why {
            Some(why) => Err(why),
            None => Ok(Some(brought).filter(|brought| !brought.offsets.is_empty())),
        })
    }

    /// Makes the stream end where the other node's history goes on.
    fn prepare(
        &mut self,
        id: StreamId,
        theirs: &History,
    ) -> Result<Result<(), String>, RepairFromError> {
        let stream = self.engine.stream(id);
        let trimmed = self.marker.trimmed.get(&id).copied().unwrap_or(0);
        if stream.end() < trimmed {
            // All that came back was trimmed, and the trim was behind the damage.
            let epoch = theirs.epochs.epoch_at(trimmed);
            let anew = stream.begin_anew(trimmed, epoch);
            let anew = anew.map_err(RepairFromError::append(id, trimmed))?;
            anew.wait().map_err(RepairFromError::change(id, trimmed))?;
        }
        let epochs = EpochTable::from_entries(stream.epochs()).unwrap_or_default();
        let held = Held { trimmed: stream.trimmed(), end: stream.end(), epochs };
        match part(&held, theirs) {
            Parting::Nowhere => Ok(Ok(())),
            Parting::At(at) => {
                // Nothing but a leader's history cuts (I-17), or that of this node itself, when the
                // epoch that had cut these records is behind the damage.
                let returned = self.marker.returned.get(&id);
                if at < held.end && returned.is_none_or(|returned| at < *returned) {
                    return Ok(Err(format!("it has other records there from offset {at} on")));
                }
                let epoch = theirs.epochs.epoch_at(at);
                let (leader, run) = (self.peer.answer.node, self.peer.answer.run);
                orphans::keep(self.engine, id, at, held.end, Reason { epoch, leader, run })?;
                let cut = stream.truncate(at, epoch).map_err(RepairFromError::append(id, at))?;
                cut.wait().map_err(RepairFromError::change(id, at))?;
                Ok(Ok(()))
            }
            Parting::TooFar { trimmed } => Ok(Err(format!("it is trimmed up to {trimmed} there"))),
            Parting::LeaderLacks { end } => Ok(Err(format!("it ended at {end} there"))),
        }
    }

    /// Appends a frame, when it is the continuation in the epoch that the other node has told.
    async fn take(
        &mut self,
        frame: Bytes,
        theirs: &Held,
        brought: &mut Brought,
    ) -> Result<(), RepairFromError> {
        let (id, next) = (brought.stream, brought.offsets.end);
        let told = ringwal_engine::format::FrameHeader::verify(&frame).ok();
        let header = told.map(|(header, _)| header).filter(|header| {
            let epoch = header.epoch.get();
            (header.stream.get(), header.base_offset.get()) == (id.get(), next)
                && header.count.get() > 0
                && theirs.epochs.epoch_at(next) == epoch
                && theirs.epochs.epoch_at(header.end_offset() - 1) == epoch
        });
        let header =
            header.ok_or_else(|| self.peer.unexpected("another frame than was asked for"))?;
        self.settle(id, APPENDING_MAX - 1).await?;
        (brought.offsets.end, brought.bytes) =
            (header.end_offset(), brought.bytes + frame.len() as u64);
        let token = self.engine.stream(id).append_frame_async(frame).await;
        self.appending.push_back((next, token.map_err(RepairFromError::append(id, next))?));
        match &mut self.left_to_stop {
            Some(0 | 1) => {
                self.settle(id, 0).await?;
                Err(RepairFromError::Stopped(1))
            }
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Waits until no more than `left` frames are on their way.
    async fn settle(&mut self, stream: StreamId, left: usize) -> Result<(), RepairFromError> {
        while self.appending.len() > left
            && let Some((offset, token)) = self.appending.pop_front()
        {
            token.await.map_err(RepairFromError::change(stream, offset))?;
        }
        Ok(())
    }
}
