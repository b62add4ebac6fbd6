//! Records of a node are given up without asking another node (`ringwal repair
//! --accept-data-loss-from` without `--from`): what it must not forget, and that it has to follow.

use std::path::Path;

use ringwal_engine::offline::Repair;

use super::RepairFromError;
use super::local::Local;
use super::marker::{Marker, greater};
use crate::node_id::RunId;
use crate::promise::{NOBODY, Promise};

/// Marks a directory, durably, before [`ringwal_engine::offline::repair()`] does what a dry run of it
/// said that it `would`: if it is, or may be, that of a node, this node follows a leader before it
/// leads (see [`Marker::must_follow`]). What of its promises and of what it knows to be committed can
/// be read is kept. Whether it is marked.
///
/// What it has promised to leaders of whom it has no record may be forgotten where stream 3 is
/// damaged: only the other members could tell ([`super::repair_from`] asks them).
///
/// # Errors
/// See [`RepairFromError`].
pub fn mark_given_up(directory: impl AsRef<Path>, would: &Repair) -> Result<bool, RepairFromError> {
    let directory = directory.as_ref();
    let earlier = Marker::load(directory)?;
    if would.cuts.is_empty() {
        return Ok(earlier.is_some());
    }
    let local = Local::read(directory, &would.before)?;
    if earlier.is_none() && !local.may_be_of_a_node() {
        return Ok(false);
    }
    let own = local.held.values().map(|held| held.epochs.last().epoch).max().unwrap_or(0);
    let unknown = Promise { epoch: own, leader: NOBODY, run: RunId::new([0; 16]) };
    let is_unknown = own > local.promise.map_or(0, |promise| promise.epoch);
    let mut marker = Marker {
        must_follow: true,
        promise: greater(local.promise, is_unknown.then_some(unknown)),
        committed: local.committed,
        ..Marker::default()
    };
    if let Some(earlier) = earlier {
        marker.join(earlier);
    }
    marker.store(directory)?;
    Ok(true)
}
