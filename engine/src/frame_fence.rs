//! The fence for frames from elsewhere: what was given before it was raised is not sealed any more.
//! One word for all shards of an engine, which counts how often it was; in memory only.

use std::sync::atomic::{AtomicU64, Ordering};

/// The word. Looked at once for each frame that is given, and once for each batch that is sealed.
#[derive(Debug, Default)]
pub(crate) struct FrameFence(AtomicU64);

/// What it said when a frame was given or a batch was sealed.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) struct FenceRead(u64);

impl FrameFence {
    /// Shuts out every frame that was given before.
    pub(crate) fn raise(&self) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn get(&self) -> FenceRead {
        FenceRead(self.0.load(Ordering::Acquire))
    }
}

impl FenceRead {
    /// Whether a frame that was given when the fence was `self` may not be sealed now.
    pub(crate) fn is_behind(self, now: FenceRead) -> bool {
        self.0 < now.0
    }
}
