//! A group-commit storage engine for Linux: durable appends to ordered streams, one flush per
//! batch of whatever many callers bring at once.
//!
//! ```text
//! caller ─append─▶ queue ─▶ batch (aligned buffer, one copy)
//!                             │ seal: offsets, checksums
//!                             ▼
//!                  io_uring write + flush (one per batch)
//!                             ▼
//!                  durable: receipts in order ─▶ readers and tails
//! ```
//!
//! The path of a record by file: `engine.rs` → `shared.rs` → `queue.rs` → `batch.rs` →
//! `shard.rs` (the loop) → `flush.rs` → `disk/uring.rs` → `receipt.rs`, and for reading
//! `index.rs` → `reader.rs`. Opening: `directory.rs` → `opening.rs` → `recovery.rs`, `scan.rs`.
//! The folder with a file's name holds its parts.
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let directory = tempfile::tempdir()?;
//! # let data = directory.path();
//! use ringwal_engine::{Engine, StreamId};
//!
//! let engine = Engine::options().shards(1).open(data)?;
//! let orders = engine.stream(StreamId::new(7));
//! let receipt = orders.append(b"one")?.wait()?; // blocking; `.await` on any runtime
//! let receipts = orders.append_batch([b"a", b"b"])?.wait()?; // all or none after a crash
//! assert_eq!((receipt.offset(), receipts.offsets()), (0, 1..3));
//! for record in orders.read(receipt.offset()..)? {
//!     let record = record?;
//!     println!("{}: {:?}", record.offset(), record.payload());
//! }
//! let mut tail = orders.tail(receipt.offset()); // durable records only
//! assert_eq!(tail.next_blocking()?.payload(), b"one");
//! orders.trim(1)?;
//! engine.close()?;
//! # Ok(())
//! # }
//! ```
//!
//! A receipt means: the record, and every record before it in its shard, is on the device. What a
//! crash leaves is a prefix of what was appended, with every acknowledged record in it; where the
//! device lost one, opening, or reading it from a sealed segment, says so instead of returning less.

mod batch;
mod checkpoint;
mod clock;
mod config;
mod control;
mod directory;
#[doc(hidden)]
pub mod disk;
mod engine;
mod engine_wide;
pub mod environment;
mod error;
mod flush;
mod footer;
#[doc(hidden)]
pub mod format;
mod frame_fence;
#[doc(hidden)]
pub mod fuzzing;
mod index;
mod mend;
mod mover;
#[doc(hidden)]
pub mod mutants;
pub mod offline;
mod open_segment;
mod opening;
mod own_epoch;
mod own_loop;
mod queue;
mod reader;
mod receipt;
mod recovery;
mod scan;
mod sealing;
mod segments;
mod shard;
mod shared;
mod stats;
mod stream;
mod subscription;
mod thread;

#[doc(hidden)]
pub use clock::Clock;
pub use clock::boottime_ns;
pub use config::{Io, Options, SyncMode};
pub use engine::{CloseReport, Engine, Stream, StreamSummary};
pub use error::{
    AppendError, CloseError, CommitError, MendError, OpenError, OpenErrorKind, PoisonCause,
    Poisoned, ReadError, Refusal, SalvageError, TrimError,
};
pub use format::{FormatError, JournalEnd};
pub use opening::RecoveryReport;
pub use own_loop::Shard;
pub use reader::{
    DamagedFrame, FramePiece, FrameWalk, Frames, Record, Records, Salvage, Salvaged, Tail,
};
pub use receipt::{Append, AppendBatch, Barrier, Change, Receipt, Receipts};
pub use recovery::{Corruption, Damage};
pub use stats::{ErrorStats, SegmentStats, ShardStats, Stats};
pub use stream::{EpochStart, EpochTable, StreamId};
pub use subscription::{FrameSlice, SealedFrames, Subscription};
