//! Known bugs that can be switched on, to show that the tests would notice them. Built in only
//! with `--cfg ringwal_mutants`; in every other build `is` is a constant `false`.

/// A known bug.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
#[repr(u8)]
pub enum Mutant {
    /// Batches are never flushed.
    NoFsync = 1,
    /// Receipts leave when the batch is written; the flush comes later.
    ReceiptBeforeFsync,
    /// Names of new files are not made durable.
    NoDirectorySync,
    /// A flush that failed is tried again.
    FsyncRetried,
    /// A write that ended early is taken for a whole one.
    ShortWriteIgnored,
    /// Checksums are not bound to the life of a segment.
    NoGeneration,
    /// The CRC of the batch before is not compared.
    NoChain,
    /// Batches do not say which ones before them were durable.
    NoDurableWatermark,
    /// The last block of the batch before is written once more with each batch.
    TailBlockRewritten,
}

impl Mutant {
    /// All of them.
    pub const ALL: [Mutant; 9] = [
        Mutant::NoFsync,
        Mutant::ReceiptBeforeFsync,
        Mutant::NoDirectorySync,
        Mutant::FsyncRetried,
        Mutant::ShortWriteIgnored,
        Mutant::NoGeneration,
        Mutant::NoChain,
        Mutant::NoDurableWatermark,
        Mutant::TailBlockRewritten,
    ];

    /// As it is chosen.
    pub fn name(self) -> &'static str {
        match self {
            Mutant::NoFsync => "no-fsync",
            Mutant::ReceiptBeforeFsync => "receipt-before-fsync",
            Mutant::NoDirectorySync => "no-directory-sync",
            Mutant::FsyncRetried => "fsync-retried",
            Mutant::ShortWriteIgnored => "short-write-ignored",
            Mutant::NoGeneration => "no-generation",
            Mutant::NoChain => "no-chain",
            Mutant::NoDurableWatermark => "no-durable-watermark",
            Mutant::TailBlockRewritten => "tail-block-rewritten",
        }
    }
}

/// Whether the engine has this bug now.
#[cfg(not(ringwal_mutants))]
#[inline(always)]
pub(crate) const fn is(_mutant: Mutant) -> bool {
    false
}

#[cfg(ringwal_mutants)]
pub(crate) fn is(mutant: Mutant) -> bool {
    chosen::get() == mutant as u8
}

/// Gives the engine a bug, in the whole process. `false` when no mutant has this name, or this
/// build has none.
pub fn choose(name: &str) -> bool {
    let mutant = Mutant::ALL.into_iter().find(|mutant| mutant.name() == name);
    #[cfg(ringwal_mutants)]
    if let Some(mutant) = mutant {
        chosen::set(mutant as u8);
    }
    mutant.is_some() && cfg!(ringwal_mutants)
}

#[cfg(ringwal_mutants)]
mod chosen {
    use std::sync::atomic::{AtomicU8, Ordering};

    static CHOSEN: AtomicU8 = AtomicU8::new(0);

    pub fn get() -> u8 {
        CHOSEN.load(Ordering::Relaxed)
    }

    pub fn set(mutant: u8) {
        CHOSEN.store(mutant, Ordering::Relaxed);
    }
}
