//! What a shard counts and measures: plain structs, times in nanoseconds.

use hdrhistogram::Histogram;

use crate::disk::DiskDescription;

/// Everything the engine counts.
#[derive(Clone, Debug)]
pub struct Stats {
    /// One entry per shard.
    pub shards: Vec<ShardStats>,
}

/// Files of a shard.
#[derive(Copy, Clone, Debug, Default)]
pub struct SegmentStats {
    /// Hold records, or are being written.
    pub live: usize,
    /// Ready to be written.
    pub prepared: usize,
    /// Kept for reuse.
    pub free: usize,
    /// Of the prepared ones: kept for the engine's own records.
    pub reserved: usize,
    /// Bytes of all of them on disk.
    pub bytes: u64,
}

/// Errors by kind. After a write or sync error a shard takes no more writes.
#[derive(Copy, Clone, Debug, Default)]
pub struct ErrorStats {
    /// Writes of batches and footers.
    pub write: u64,
    /// fdatasync.
    pub sync: u64,
    /// Reads for moving records.
    pub read: u64,
    /// Preparing segments: no space, mostly.
    pub prepare: u64,
}

/// What one shard counts. Counters start at zero when the engine is opened.
#[derive(Clone, Debug)]
pub struct ShardStats {
    /// Shard number.
    pub shard: u16,
    /// Linux thread id of its loop; 0 when it has not run.
    pub thread_id: u32,
    /// Batches durable.
    pub batches: u64,
    /// Records durable.
    pub records: u64,
    /// Bytes of those records.
    pub payload_bytes: u64,
    /// Bytes of those batches, headers and padding included.
    pub written_bytes: u64,
    /// Flushes asked for: writes with RWF_DSYNC, or fdatasync.
    pub flushes: u64,
    /// Changes to a new segment.
    pub rotations: u64,
    /// Empty batches written because the shard was idle.
    pub idle_seals: u64,
    /// Records moved out of otherwise dead segments.
    pub moved_records: u64,
    /// Records per batch.
    pub batch_records: Histogram<u64>,
    /// Bytes per batch on disk.
    pub batch_bytes: Histogram<u64>,
    /// Stage *queue*: first append of a batch to its sealing.
    pub queue_ns: Histogram<u64>,
    /// Stage *batch*: sealing, which assigns offsets and computes checksums.
    pub seal_ns: Histogram<u64>,
    /// Stage *write and flush*: handed to the device to durable.
    pub flush_ns: Histogram<u64>,
    /// Stage *receipt*: durable to receipts sent and waiters woken.
    pub receipt_ns: Histogram<u64>,
    /// Time that appends waited for room.
    pub backpressure_ns: u64,
    /// Appends that waited for room.
    pub backpressure_count: u64,
    /// Bytes that wait to be sealed.
    pub queue_bytes: u64,
    /// Records that wait to be sealed.
    pub queue_records: u64,
    /// Files.
    pub segments: SegmentStats,
    /// Bytes that the file system has left.
    pub free_bytes: u64,
    /// Errors by kind.
    pub errors: ErrorStats,
    /// Why the shard takes no more writes.
    pub poisoned: Option<String>,
    /// Why records wait: no segment can be prepared for them. `None` when none waits.
    pub no_space: Option<String>,
    /// The disk behind it.
    pub disk: DiskDescription,
}

impl ShardStats {
    pub(crate) fn new(shard: u16, disk: DiskDescription) -> Self {
        let histogram = || Histogram::new(3).expect("three digits are allowed");
        Self {
            shard,
            thread_id: 0,
            batches: 0,
            records: 0,
            payload_bytes: 0,
            written_bytes: 0,
            flushes: 0,
            rotations: 0,
            idle_seals: 0,
            moved_records: 0,
            batch_records: histogram(),
            batch_bytes: histogram(),
            queue_ns: histogram(),
            seal_ns: histogram(),
            flush_ns: histogram(),
            receipt_ns: histogram(),
            backpressure_ns: 0,
            backpressure_count: 0,
            queue_bytes: 0,
            queue_records: 0,
            segments: SegmentStats::default(),
            free_bytes: 0,
            errors: ErrorStats::default(),
            poisoned: None,
            no_space: None,
            disk,
        }
    }
}
