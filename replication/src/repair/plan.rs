//! What has to come from the other node, and whether it has it. A decision without I/O, but for
//! [`Plan::check`].

use std::collections::{BTreeMap, BTreeSet};

use ringwal_engine::StreamId;
use ringwal_engine::offline::{Cut, Repair, StreamRange};

use super::local::Local;
use super::marker::{self, Marker};
use super::{Brought, Lacks, RepairFromError};
use crate::fetch::client::Peer;
use crate::history::{Held, Parting, part};
use crate::node_id::NodeId;
use crate::promise::is_replicated;
use crate::wire::{History, Stop, Wanted};

/// See the module.
pub(super) struct Plan {
    pub(super) peer: NodeId,
    pub(super) marker: Marker,
    /// What is to be fetched.
    pub(super) wanted: Vec<Wanted>,
    /// What only a leader can bring back.
    pub(super) left: Vec<(StreamId, String)>,
    shards: u16,
}

/// What becomes of one stream.
#[derive(Eq, PartialEq, Debug)]
enum Way {
    /// Nothing of it is lost, as far as is known.
    Stays,
    /// Fetch it up to there.
    Fetch(u64),
    /// A leader has to bring it.
    Leave(String),
    /// The other node does not have it.
    Lacks(String),
}

/// What is given up of a stream.
#[derive(Default)]
struct GivenUp {
    /// First offset that is lost, or comes back in another history.
    from: Option<u64>,
    /// First offset that comes back in another history.
    returned: Option<u64>,
}

impl Plan {
    /// Compares (I-17). `accepted` are the shards whose loss somebody has accepted.
    pub(super) fn new(
        local: &Local,
        would: &Repair,
        peer: &Peer,
        accepted: &[Cut],
    ) -> Result<Self, RepairFromError> {
        let (shards, node) = (local.shards, peer.answer.node);
        let marker = Marker::default();
        let mut plan = Self { peer: node, marker, wanted: Vec::new(), left: Vec::new(), shards };
        let given_up = given_up(would);
        let is_accepted = |shard| accepted.iter().any(|cut| cut.shard == shard);
        plan.marker.must_follow =
            local.damaged.iter().any(|(shard, is_told)| !is_told || is_accepted(*shard));
        let mut lacks = Vec::new();
        let streams: BTreeSet<StreamId> =
            local.held.keys().chain(peer.held.keys()).copied().collect();
        for stream in streams.into_iter().filter(|stream| is_replicated(*stream)) {
            let Some(is_told) = local.is_told(stream) else { continue };
            let held = local.held.get(&stream).cloned().unwrap_or_default();
            let lost =
                given_up.get(&stream).map_or_else(GivenUp::default, |lost| GivenUp { ..*lost });
            let from = lost.from.unwrap_or(held.end).min(held.end);
            let theirs = peer.held.get(&stream);
            let way = way(stream, &held, from, theirs, is_told);
            let shard = local.shard(stream);
            let target = match way {
                Way::Stays => continue,
                Way::Fetch(end) => {
                    plan.wanted.push(Wanted { stream, from, end, is_check: true });
                    end
                }
                Way::Leave(why) => {
                    plan.left.push((stream, why));
                    held.end
                }
                Way::Lacks(why) if is_accepted(shard) => {
                    plan.left.push((stream, why));
                    theirs.map_or(0, |theirs| theirs.end).min(held.end)
                }
                Way::Lacks(why) => {
                    lacks.push(Lacks { stream, shard, why });
                    continue;
                }
            };
            plan.marker.ends.insert(stream, target);
            plan.marker.trimmed.insert(stream, held.trimmed);
            if let Some(returned) = lost.returned {
                plan.marker.returned.insert(stream, returned);
            }
        }
        if !lacks.is_empty() {
            return Err(RepairFromError::PeerLacks { node, lacks });
        }
        plan.take_own(local, is_accepted)?;
        Ok(plan)
    }

    /// Streams 1 and 2 are carried over, or nothing is given up.
    fn take_own(
        &mut self,
        local: &Local,
        is_accepted: impl Fn(u16) -> bool,
    ) -> Result<(), RepairFromError> {
        for (stream, own) in &local.own {
            match own {
                Ok(frames) => {
                    self.marker.own.extend_from_slice(frames);
                    let end = frames.last().and_then(|frame| marker::offsets(frame));
                    if let Some((_, offsets)) = end {
                        self.marker.ends.insert(*stream, offsets.end);
                    }
                }
                Err(_) if is_accepted(local.shard(*stream)) => {}
                Err(why) => {
                    let (stream, why) = (*stream, why.clone());
                    return Err(RepairFromError::OwnStream { stream, why });
                }
            }
        }
        Ok(())
    }

    /// Has the other node read and check all that will be asked of it.
    pub(super) async fn check(
        &mut self,
        peer: &mut Peer,
        accepted: &[Cut],
    ) -> Result<(), RepairFromError> {
        let (node, mut lacks) = (self.peer, Vec::new());
        for wanted in &self.wanted {
            let (stream, shard) = (wanted.stream, wanted.stream.shard(self.shards));
            let (end, stop) = peer.check(*wanted).await?;
            let Some(why) = why_not(end, &stop, wanted.end) else { continue };
            if accepted.iter().any(|cut| cut.shard == shard) {
                self.left.push((stream, why));
            } else {
                lacks.push(Lacks { stream, shard, why });
            }
        }
        if lacks.is_empty() { Ok(()) } else { Err(RepairFromError::PeerLacks { node, lacks }) }
    }

    /// As far as it is known without the bytes.
    pub(super) fn would_bring(&self) -> Vec<Brought> {
        let brought = |wanted: &Wanted| Brought {
            stream: wanted.stream,
            offsets: wanted.from..wanted.end,
            bytes: 0,
        };
        self.wanted.iter().map(brought).collect()
    }
}

/// Why a range does not come to its end, if it does not.
pub(crate) fn why_not(end: u64, stop: &Stop, wanted: u64) -> Option<String> {
    match stop {
        _ if end >= wanted => None,
        Stop::Whole | Stop::More | Stop::End => Some(format!("it ends at {end} there")),
        Stop::Trimmed(before) => Some(format!("{end} is gone there, trimmed up to {before}")),
        Stop::Damaged(why) => Some(format!("{end} cannot be read there either: {why}")),
    }
}

fn given_up(would: &Repair) -> BTreeMap<StreamId, GivenUp> {
    let mut given_up: BTreeMap<StreamId, GivenUp> = BTreeMap::new();
    let lower = |to: &mut Option<u64>, range: &StreamRange| {
        *to = Some(to.map_or(range.offsets.start, |known| known.min(range.offsets.start)));
    };
    for (_, loss) in &would.cuts {
        for range in &loss.lost {
            lower(&mut given_up.entry(range.stream).or_default().from, range);
        }
        for range in &loss.returned {
            let given_up = given_up.entry(range.stream).or_default();
            lower(&mut given_up.from, range);
            lower(&mut given_up.returned, range);
        }
    }
    given_up
}

/// What becomes of a stream of a damaged shard, of which everything from `from` on is given up.
fn way(stream: StreamId, held: &Held, from: u64, theirs: Option<&Held>, is_told: bool) -> Way {
    let is_lost = from < held.end;
    let lacks = |why: String| if is_lost { Way::Lacks(why) } else { Way::Stays };
    let Some(theirs) = theirs else {
        return lacks(format!("it was durable here up to {} and is not there", held.end));
    };
    let Held { trimmed, end, epochs } = theirs.clone();
    let parting = part(held, &History { stream, trimmed, epochs });
    // An epoch that has no record yet is all that differs.
    let goes_on = matches!(parting, Parting::At(at) if at >= held.end);
    let target = if is_told || goes_on { held.end } else { held.end.max(end) };
    match parting {
        _ if from >= target => Way::Stays,
        Parting::LeaderLacks { end } => {
            lacks(format!("{} is trimmed here, and there it ended at {end}", held.trimmed))
        }
        Parting::At(at) if at < held.end.min(end) => {
            lacks(format!("from offset {at} on it has other records there, of another epoch"))
        }
        _ if end < held.end => {
            lacks(format!("it was durable here up to {} and ends at {end} there", held.end))
        }
        Parting::TooFar { trimmed } => {
            Way::Leave(format!("it is trimmed up to {trimmed} there: it begins anew with a leader"))
        }
        _ if from < trimmed => Way::Leave(format!(
            "{from} to {trimmed} are trimmed there: it begins anew with a leader"
        )),
        Parting::Nowhere | Parting::At(_) => Way::Fetch(target),
    }
}

#[cfg(test)]
mod tests {
    use ringwal_engine::{EpochStart, EpochTable};

    use super::*;

    fn held(trimmed: u64, end: u64, epochs: &[(u64, u64)]) -> Held {
        let entry = |(epoch, start): &(u64, u64)| EpochStart { epoch: *epoch, start: *start };
        let epochs =
            EpochTable::from_entries(epochs.iter().map(entry).collect()).expect("in order");
        Held { trimmed, end, epochs }
    }

    #[test]
    fn only_who_has_the_same_history_up_to_there_is_asked() {
        let ours = held(10, 50, &[(1, 0), (2, 30)]);
        let way = |from, theirs: Option<Held>, is_told| {
            way(StreamId::new(9), &ours, from, theirs.as_ref(), is_told)
        };
        let same = |end| Some(held(0, end, &[(1, 0), (2, 30)]));
        assert_eq!(way(20, same(50), true), Way::Fetch(50));
        assert_eq!(way(20, same(70), true), Way::Fetch(50), "no more than was here");
        assert_eq!(way(20, same(70), false), Way::Fetch(70), "more may have been here");
        assert_eq!(way(50, same(70), true), Way::Stays);
        assert_eq!(way(50, same(40), false), Way::Stays, "nothing is lost");
        let later = held(20, 90, &[(1, 0), (2, 30), (5, 60)]);
        assert_eq!(way(20, Some(later), true), Way::Fetch(50));
        let lacks = |way: Way| matches!(way, Way::Lacks(_));
        assert!(lacks(way(20, same(49), true)));
        assert!(lacks(way(20, Some(held(0, 30, &[(1, 0)])), true)));
        assert!(lacks(way(20, None, true)));
        assert!(lacks(way(20, Some(held(0, 70, &[(1, 0)])), true)));
        assert!(lacks(way(20, Some(held(0, 70, &[(1, 0), (2, 30), (3, 40)])), true)));
        assert_eq!(way(50, None, true), Way::Stays);
        let trimmed = way(20, Some(held(30, 70, &[(1, 0), (2, 30)])), true);
        assert!(matches!(trimmed, Way::Leave(_)), "{trimmed:?}");
        let gone = way(20, Some(held(60, 70, &[(2, 30)])), true);
        assert!(matches!(gone, Way::Leave(_)), "{gone:?}");
    }
}
