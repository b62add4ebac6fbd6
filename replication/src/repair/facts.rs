//! A repair never makes a node forget what it has promised (I-15).
//!
//! What can be read of stream 3 goes into the marker. Where something of it may be lost, the node
//! promises the greatest epoch that any other member has promised, or that its own records carry:
//! only members lead, and whoever leads has promised its epoch durably itself before it asks anybody
//! to follow. So no epoch that was promised here is greater. Whose that epoch is stays open
//! ([`NOBODY`]).

use super::local::Local;
use super::marker::{Marker, greater};
use super::{Asking, RepairFromError};
use crate::fetch::client::{Peer, say_hello};
use crate::node_id::RunId;
use crate::promise::{FACTS_STREAM, NOBODY, Promise};

/// Puts into the marker what must not be forgotten; returns a promise that is new.
pub(super) async fn settle(
    asking: &Asking<'_>,
    local: &Local,
    peer: &Peer,
    marker: &mut Marker,
) -> Result<Option<Promise>, RepairFromError> {
    if local.is_told(FACTS_STREAM).is_none() {
        return Ok(None);
    }
    (marker.promise, marker.committed) = (local.promise, local.committed.clone());
    if local.are_facts_whole {
        return Ok(None);
    }
    // A commitment that is forgotten is learnt again from a leader.
    marker.must_follow = true;
    let own = local.held.values().map(|held| held.epochs.last().epoch).max().unwrap_or(0);
    let mut seen = own.max(peer.answer.epoch);
    let config = &asking.options.config;
    let others =
        config.members.iter().filter(|m| m.node != config.node && m.node != peer.answer.node);
    for member in others {
        match say_hello(&member.address, asking.tls.as_ref(), &asking.hello()).await {
            Ok((_, _, answer)) => seen = seen.max(answer.epoch),
            Err(_) if !asking.options.accept_loss_from.is_empty() => {}
            Err(error) => {
                let (node, source) = (member.node, Box::new(error));
                return Err(RepairFromError::Promises { node, source });
            }
        }
    }
    let known = marker.promise.map_or(0, |promise| promise.epoch);
    let unknown = Promise { epoch: seen, leader: NOBODY, run: RunId::new([0; 16]) };
    let promise = (seen > known).then_some(unknown);
    marker.promise = greater(marker.promise, promise);
    Ok(promise)
}
