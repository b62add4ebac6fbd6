//! Options: what can be chosen, its default, its bounds and what it costs. Parsed once; nothing
//! here reads the environment.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crate::disk::BLOCK_BYTES;
use crate::error::OpenError;
pub use crate::flush::SyncMode;
use crate::format::{SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN, SHARDS_MAX};

/// Which way the engine talks to the device.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Default)]
pub enum Io {
    /// io_uring. The default.
    #[default]
    Uring,
    /// Plain system calls of the shard's own thread: for kernels and containers that refuse
    /// io_uring, and as a yardstick.
    Blocking,
}

/// How to open an engine. Every setter takes and returns the options.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let directory = tempfile::tempdir()?;
/// let engine = ringwal_engine::Engine::options()
///     .shards(2)
///     .segment_bytes(8 << 20)
///     .open(directory.path())?;
/// engine.close()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Options {
    pub(crate) shards: Option<u16>,
    pub(crate) io: Io,
    pub(crate) io_fallback: bool,
    pub(crate) sync: SyncMode,
    pub(crate) flush_slots: usize,
    pub(crate) linger: Duration,
    pub(crate) spin: Duration,
    pub(crate) sqpoll: Option<Duration>,
    pub(crate) pin: bool,
    pub(crate) segment_bytes: Option<u64>,
    pub(crate) pool_bytes: usize,
    pub(crate) batch_bytes_max: Option<usize>,
    pub(crate) segments_ahead: usize,
    pub(crate) segments_reserved: usize,
    pub(crate) segments_free_max: usize,
    pub(crate) idle_seal: Option<Duration>,
    pub(crate) lock_wait: Duration,
    pub(crate) read_only: bool,
    pub(crate) accept_loss_from: Option<(u16, crate::JournalEnd)>,
    pub(crate) fails: Option<Arc<AtomicBool>>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            shards: None,
            io: Io::Uring,
            io_fallback: false,
            sync: SyncMode::Dsync,
            flush_slots: 2,
            linger: Duration::ZERO,
            spin: Duration::ZERO,
            sqpoll: None,
            pin: false,
            segment_bytes: None,
            pool_bytes: 32 << 20,
            batch_bytes_max: None,
            segments_ahead: 1,
            segments_reserved: 2,
            segments_free_max: 2,
            idle_seal: Some(Duration::from_millis(5)),
            lock_wait: Duration::from_secs(2),
            read_only: false,
            accept_loss_from: None,
            fails: None,
        }
    }
}

/// Length of a segment when nothing else is asked for.
pub(crate) const SEGMENT_BYTES_DEFAULT: u64 = 64 << 20;
/// Longest batch when nothing else is asked for.
const BATCH_BYTES_DEFAULT: usize = 1 << 20;
/// A segment has room for at least this many of the longest batches.
pub(crate) const SEGMENT_BATCHES_MIN: usize = 4;
/// Batches that may be in flight at most.
pub(crate) const FLUSH_SLOTS_MAX: usize = 32;

impl Options {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Threads, each with its own ring, journal and buffers; streams are spread over them.
    /// Default 1, 1 to 64. Fixed when the directory is created.
    pub fn shards(mut self, shards: u16) -> Self {
        self.shards = Some(shards);
        self
    }

    /// Which way to talk to the device. Default [`Io::Uring`].
    pub fn io(mut self, io: Io) -> Self {
        self.io = io;
        self
    }

    /// For tests: the device fails once this is true.
    #[doc(hidden)]
    pub fn fails(mut self, fails: Arc<AtomicBool>) -> Self {
        self.fails = Some(fails);
        self
    }

    /// Use [`Io::Blocking`] where io_uring is refused, instead of an error. Default false.
    pub fn io_fallback(mut self, io_fallback: bool) -> Self {
        self.io_fallback = io_fallback;
        self
    }

    /// How a flush is asked for. Default [`SyncMode::Dsync`].
    pub fn sync(mut self, sync: SyncMode) -> Self {
        self.sync = sync;
        self
    }

    /// Batches in flight at once. Default 2, 1 to 32. A batch that nobody else is expected to follow may hold
    /// the shard until it is durable, whatever this says.
    pub fn flush_slots(mut self, flush_slots: usize) -> Self {
        self.flush_slots = flush_slots;
        self
    }

    /// Time that a batch waits for company. Default zero: it is sealed as soon as a flush slot is
    /// free. Trades latency for size.
    pub fn linger(mut self, linger: Duration) -> Self {
        self.linger = linger;
        self
    }

    /// Time that an idle shard looks for work before it sleeps. Default zero. Costs a core.
    pub fn spin(mut self, spin: Duration) -> Self {
        self.spin = spin;
        self
    }

    /// Let a kernel thread poll the submission queue; it sleeps after this idle time. Default off.
    pub fn sqpoll(mut self, idle: Option<Duration>) -> Self {
        self.sqpoll = idle;
        self
    }

    /// Pin shard N to the N-th core that the process may use. Default false.
    pub fn pin(mut self, pin: bool) -> Self {
        self.pin = pin;
        self
    }

    /// Length of a segment file in bytes, a multiple of 4096. Default 64 MiB, 64 KiB to 2 GiB; less
    /// than 4 MiB also shortens batches. Fixed when the directory is created.
    pub fn segment_bytes(mut self, segment_bytes: u64) -> Self {
        self.segment_bytes = Some(segment_bytes);
        self
    }

    /// Memory for batches, in bytes, for each shard. Default 32 MiB, 8 of the longest
    /// batches to 1 GiB.
    pub fn pool_bytes(mut self, pool_bytes: usize) -> Self {
        self.pool_bytes = pool_bytes;
        self
    }

    /// Longest batch in bytes, a multiple of 4096; bounds the longest record too. Default 1 MiB,
    /// 8 KiB to 16 MiB. Never more than a quarter of a segment: where more is asked for, that
    /// quarter holds, and the notes of the shard's disk description say so.
    /// [`crate::Engine::record_bytes_max`] tells what it comes to.
    pub fn batch_bytes_max(mut self, batch_bytes_max: usize) -> Self {
        self.batch_bytes_max = Some(batch_bytes_max);
        self
    }

    /// Segments prepared before they are needed. Default 1, 1 to 64. Costs disk space. After opening, filling
    /// them waits as long as the journal is read, until the first record comes.
    pub fn segments_ahead(mut self, segments_ahead: usize) -> Self {
        self.segments_ahead = segments_ahead;
        self
    }

    /// Segments that only the engine's own records (trims, checkpoints) may use, so that a full
    /// disk can be opened and trimmed. Default 2, 1 to 8; with one, a full disk can be opened only
    /// once before something is trimmed. Records of streams 1 to 3, which are the node's own, may use
    /// as much of all but the last as a quarter of a segment holds. Costs disk space.
    pub fn segments_reserved(mut self, segments_reserved: usize) -> Self {
        self.segments_reserved = segments_reserved;
        self
    }

    /// Freed segments that are kept for reuse; more are removed. Default 2, up to 1024.
    pub fn segments_free_max(mut self, segments_free_max: usize) -> Self {
        self.segments_free_max = segments_free_max;
        self
    }

    /// How long after its last batch became durable an idle shard writes an empty one, which says
    /// so: the loss of that batch, whatever frames it held, would then be noticed. Default 5 ms;
    /// `None` is never.
    pub fn idle_seal(mut self, idle_seal: Option<Duration>) -> Self {
        self.idle_seal = idle_seal;
        self
    }

    /// How long to wait for another process that holds the directory, such as one that was killed
    /// and whose last writes are still under way. Default 2 s.
    pub fn lock_wait(mut self, lock_wait: Duration) -> Self {
        self.lock_wait = lock_wait;
        self
    }

    /// Open for reading: nothing is written, damage is no error, what is readable can be read.
    /// Default false.
    pub fn read_only(mut self, read_only: bool) -> Self {
        self.read_only = read_only;
        self
    }

    /// Give up everything of one shard behind `end`, the last batch to keep. For repairing by
    /// hand: what is behind it is lost for the engine. Open with `read_only` first to see what
    /// stays, and whether it is whole ([`crate::RecoveryReport::damages`]); an end that no batch
    /// has is an error, and changes nothing.
    pub fn accept_loss_from(mut self, shard: u16, end: crate::JournalEnd) -> Self {
        self.accept_loss_from = Some((shard, end));
        self
    }

    /// Checks every bound, before anything is touched.
    pub(crate) fn check(&self) -> Result<(), OpenError> {
        let bounds = |option, value: u64, low: u64, high: u64, multiple: u64| {
            if (low..=high).contains(&value) && value.is_multiple_of(multiple) {
                return Ok(());
            }
            let of =
                if multiple > 1 { format!(", a multiple of {multiple}") } else { String::new() };
            let bounds = format!("{low} to {high}{of}");
            Err(OpenError::Option { option, value: value.to_string(), bounds })
        };
        let block = BLOCK_BYTES as u64;
        let segment_bytes = self.segment_bytes.unwrap_or(SEGMENT_BYTES_DEFAULT);
        bounds("shards", u64::from(self.shards.unwrap_or(1)), 1, u64::from(SHARDS_MAX), 1)?;
        bounds("segment_bytes", segment_bytes, SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX, block)?;
        bounds("flush_slots", self.flush_slots as u64, 1, FLUSH_SLOTS_MAX as u64, 1)?;
        let batch_bytes_max = self.batch_bytes_max.unwrap_or(BATCH_BYTES_DEFAULT) as u64;
        bounds("batch_bytes_max", batch_bytes_max, 2 * block, 16 << 20, block)?;
        bounds("segments_ahead", self.segments_ahead as u64, 1, 64, 1)?;
        bounds("segments_reserved", self.segments_reserved as u64, 1, 8, 1)?;
        bounds("segments_free_max", self.segments_free_max as u64, 0, 1024, 1)?;
        let pool_min = 8 * self.batch_bytes_for(segment_bytes) as u64;
        bounds("pool_bytes", self.pool_bytes as u64, pool_min, 1 << 30, 1)
    }

    /// Longest batch with segments of this length.
    pub(crate) fn batch_bytes_for(&self, segment_bytes: u64) -> usize {
        let quarter = segment_bytes as usize / SEGMENT_BATCHES_MIN / BLOCK_BYTES * BLOCK_BYTES;
        self.batch_bytes_max.unwrap_or(BATCH_BYTES_DEFAULT).min(quarter)
    }

    /// What the operator should know when batches are shorter than what was asked for.
    pub(crate) fn batch_bytes_note(&self, segment_bytes: u64) -> Option<String> {
        let (asked, held) = (self.batch_bytes_max?, self.batch_bytes_for(segment_bytes));
        (asked > held).then(|| {
            format!(
                "batches are at most {held} bytes long, a quarter of a segment, not {asked} as \
                 asked for by batch_bytes_max; only a directory with longer segments allows more"
            )
        })
    }
}
