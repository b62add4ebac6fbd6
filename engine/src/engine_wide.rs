//! What all shards of an engine have in common while it is open: a few words, none behind a lock.
//! Nothing of it is in a file.

use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;

use crate::error::Poisoned;
use crate::frame_fence::FrameFence;
use crate::own_epoch::OwnEpoch;

/// One for each engine that is open.
#[derive(Debug, Default)]
pub(crate) struct EngineWide {
    pub(crate) own_epoch: OwnEpoch,
    pub(crate) frame_fence: FrameFence,
    /// Reads of the device by others than the shards' loops, each counted when it begins and when it ends: the
    /// shards share the device.
    pub(crate) reads: AtomicU64,
    /// The first failure of any shard (I-3), latched before anybody who waits is told.
    pub(crate) poisoned: OnceLock<Poisoned>,
}
