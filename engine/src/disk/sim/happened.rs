//! What has happened to a device, so that a test can show that it tested something.

use super::faults::{Fault, Kind};

/// Counts since the device was made.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Default)]
pub struct Happened {
    /// Power cuts.
    pub power_cuts: u64,
    /// Deaths of the process.
    pub kills: u64,
    /// Stalls with something in flight.
    pub stalls: u64,
    /// Writes that completed before one of the same file that was submitted earlier.
    pub overtaking_writes: u64,
    /// Writes of which a power cut left some sectors.
    pub torn_writes: u64,
    /// Sectors that a power cut left as noise.
    pub shorn_sectors: u64,
    /// Changes of the directory that a power cut took back.
    pub names_lost: u64,
    /// Files that a power cut made shorter.
    pub lengths_lost: u64,
    /// Writes that failed with EIO.
    pub errors_write: u64,
    /// Flushes that failed with EIO.
    pub errors_sync: u64,
    /// fsyncs of a file that failed with EIO.
    pub errors_sync_all: u64,
    /// Reads that failed with EIO.
    pub errors_read: u64,
    /// Other operations that failed with EIO.
    pub errors_other: u64,
    /// Allocations that failed with ENOSPC, for want of room or by a fault.
    pub no_space: u64,
    /// Reads that ended early.
    pub short_reads: u64,
    /// Writes that ended early.
    pub short_writes: u64,
    /// Writes that went nowhere.
    pub lost_writes: u64,
    /// Writes that went elsewhere.
    pub misdirected_writes: u64,
    /// Durable writes that ended before whoever submitted them did anything else.
    pub lone_writes: u64,
}

impl Happened {
    pub(super) fn note_fault(&mut self, kind: Kind, fault: Fault) {
        let count = match (fault, kind) {
            (Fault::Errno(libc::EIO), Kind::Write) => &mut self.errors_write,
            (Fault::Errno(libc::EIO), Kind::Sync) => &mut self.errors_sync,
            (Fault::Errno(libc::EIO), Kind::SyncAll) => &mut self.errors_sync_all,
            (Fault::Errno(libc::EIO), Kind::Read) => &mut self.errors_read,
            (Fault::Errno(libc::EIO), _) => &mut self.errors_other,
            (Fault::Short(_), Kind::Read) => &mut self.short_reads,
            (Fault::Short(_), Kind::Write) => &mut self.short_writes,
            (Fault::Lost, Kind::Write) => &mut self.lost_writes,
            (Fault::Misdirected(_), Kind::Write) => &mut self.misdirected_writes,
            _ => return,
        };
        *count += 1;
    }
}
