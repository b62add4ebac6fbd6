//! Whether batches come one at a time: nobody, be it one caller or many, comes before the last one is durable.

/// Flushes in a row during which nobody else came, before the next counts as alone.
const LONE_FLUSHES: u32 = 4;

/// Who came during the last flushes.
#[derive(Debug, Default)]
pub(super) struct Company {
    lone_flushes: u32,
}

impl Company {
    /// Batches have become durable. `nobody_came`: it was one batch, nothing is in flight, nothing waits behind it.
    pub(super) fn note_durable(&mut self, nobody_came: bool) {
        self.lone_flushes = if nobody_came { self.lone_flushes.saturating_add(1) } else { 0 };
    }

    /// Nobody is expected before the flush that begins now has ended.
    pub(super) fn is_alone(&self) -> bool {
        self.lone_flushes >= LONE_FLUSHES
    }
}
