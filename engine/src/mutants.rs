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
    /// A follower reports a frame when it has taken it.
    ReportBeforeFsync,
    /// A promised epoch is not made durable.
    PromiseNotPersisted,
    /// A follower takes a frame behind a gap.
    GapAccepted,
    /// A follower cuts one record more than it has to.
    CutBelowCommitted,
    /// A leader answers whether it holds its lease or not.
    LeaseIgnored,
    /// What a majority may lack is not proposed before new commands.
    ExtendWithoutTail,
    /// The fast path opens while something that was proposed is not applied yet.
    SwitchOnEarly,
    /// A command that is tried again executes again.
    SessionIgnored,
}

impl Mutant {
    /// All of them.
    pub const ALL: [Mutant; 17] = [
        Mutant::NoFsync,
        Mutant::ReceiptBeforeFsync,
        Mutant::NoDirectorySync,
        Mutant::FsyncRetried,
        Mutant::ShortWriteIgnored,
        Mutant::NoGeneration,
        Mutant::NoChain,
        Mutant::NoDurableWatermark,
        Mutant::TailBlockRewritten,
        Mutant::ReportBeforeFsync,
        Mutant::PromiseNotPersisted,
        Mutant::GapAccepted,
        Mutant::CutBelowCommitted,
        Mutant::LeaseIgnored,
        Mutant::ExtendWithoutTail,
        Mutant::SwitchOnEarly,
        Mutant::SessionIgnored,
    ];

    /// Whether it is one of replication, which a cluster shows and a single node does not.
    pub fn is_of_replication(self) -> bool {
        self as u8 >= Mutant::ReportBeforeFsync as u8
    }

    /// Whether it is one of the store on top of Raft, which only a cluster with Raft shows.
    pub fn is_of_raft(self) -> bool {
        self as u8 >= Mutant::LeaseIgnored as u8
    }

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
            Mutant::ReportBeforeFsync => "report-before-fsync",
            Mutant::PromiseNotPersisted => "promise-not-persisted",
            Mutant::GapAccepted => "gap-accepted",
            Mutant::CutBelowCommitted => "cut-below-committed",
            Mutant::LeaseIgnored => "lease-ignored",
            Mutant::ExtendWithoutTail => "extend-without-tail",
            Mutant::SwitchOnEarly => "switch-on-early",
            Mutant::SessionIgnored => "session-ignored",
        }
    }
}

/// Whether the engine has this bug now.
#[cfg(not(ringwal_mutants))]
#[inline(always)]
pub const fn is(_mutant: Mutant) -> bool {
    false
}

/// Whether the engine has this bug now.
#[cfg(ringwal_mutants)]
pub fn is(mutant: Mutant) -> bool {
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
