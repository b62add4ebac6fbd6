//! The device as the engine sees it: files by number, operations in, completions out.
//!
//! Three disks stand behind one trait: [`uring`] (the product), [`blocking`] (plain system
//! calls, for kernels and containers that refuse io_uring, and as a yardstick) and [`sim`]
//! (a simulated disk with a volatile cache, for tests). No word of the log lives here.

pub mod blocking;
pub mod buffer;
pub(crate) mod failing;
mod files;
pub(crate) mod lock;
pub mod sim;
pub mod uring;
pub mod wake;

use std::io;
use std::sync::Arc;
use std::time::Duration;

pub use buffer::{Buffer, BufferMut, Pool};
pub use wake::Wake;

/// The unit of every offset, length and address that reaches the device, in bytes.
pub const BLOCK_BYTES: usize = 4096;

/// A file that a disk holds open. Never reused while the disk lives.
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash, Debug)]
pub struct FileId(pub u32);

/// What the submitter calls an operation; comes back in its [`Completion`].
pub type Token = u64;

/// One thing to be done. Offsets and lengths of `Write` and `Read` are multiples of
/// [`BLOCK_BYTES`].
#[derive(Debug)]
pub enum Operation {
    /// Write `buffer[from..from + length]` at `offset`. With `durable` the completion means that
    /// the bytes (not earlier ones) are on the device (RWF_DSYNC).
    /// Result: bytes written, which may be fewer.
    Write {
        /// Where to.
        file: FileId,
        /// Byte offset in the file.
        offset: u64,
        /// The bytes; held by the disk until the completion has been reaped.
        buffer: Buffer,
        /// First byte of the buffer to write.
        from: usize,
        /// Number of bytes to write.
        length: usize,
        /// Ask for the flush with the write.
        durable: bool,
    },
    /// fdatasync: every write of this file *completed before this was submitted* is on the device
    /// when it succeeds. Result: 0.
    Sync {
        /// Which file.
        file: FileId,
    },
    /// fsync: data and metadata of the file (its length, its allocation). Result: 0.
    SyncAll {
        /// Which file.
        file: FileId,
    },
    /// Read `length` bytes at `offset` into the buffer, which the completion returns.
    /// Result: bytes read; fewer at the end of the file.
    Read {
        /// From where.
        file: FileId,
        /// Byte offset in the file.
        offset: u64,
        /// Room for the bytes, at least `length` of it.
        buffer: BufferMut,
        /// Number of bytes to read.
        length: usize,
    },
    /// Open a file of the disk's directory for direct I/O; `create` makes it when it is missing.
    /// Result: the [`FileId`].
    Open {
        /// File name, without a directory.
        name: String,
        /// Create it when missing.
        create: bool,
    },
    /// Reserve space, so that the file is `length` bytes long (fallocate). Result: 0.
    Allocate {
        /// Which file.
        file: FileId,
        /// Its length afterwards, in bytes.
        length: u64,
    },
    /// Remove a file by name. When it is open it is closed from the submission on, whatever the
    /// result. Result: 0.
    Remove {
        /// File name, without a directory.
        name: String,
    },
    /// Make the directory's entries durable. Result: 0.
    SyncDirectory,
}

/// The end of an operation.
#[derive(Debug)]
pub struct Completion {
    /// The submitter's name for it.
    pub token: Token,
    /// See each [`Operation`].
    pub result: io::Result<u64>,
    /// The buffer of a `Read`, whatever the result.
    pub buffer: Option<BufferMut>,
}

/// How long [`Disk::reap`] may sleep when nothing has completed yet.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Wait {
    /// Not at all.
    No,
    /// Until something completes, the [`Wake`] is called, or this time has passed.
    For(Duration),
    /// Until something completes or the [`Wake`] is called.
    Forever,
}

/// A file of the directory.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct DirectoryEntry {
    /// File name.
    pub name: String,
    /// Length in bytes.
    pub length: u64,
}

/// What a disk tells about itself, for reports and warnings.
#[derive(Clone, Debug, Default)]
pub struct DiskDescription {
    /// `uring`, `blocking` or `sim`.
    pub name: &'static str,
    /// Whether files are opened with O_DIRECT.
    pub direct: bool,
    /// Whether the pool is registered with the ring.
    pub buffers_registered: bool,
    /// What the operator should know, once (such as why buffers are not registered).
    pub notes: Vec<String>,
}

/// One directory on one device, driven by one thread.
pub trait Disk: Send {
    /// Operations that may be in flight at once; `submit` beyond it is a bug of the caller.
    fn capacity(&self) -> usize;

    /// Takes an operation over. Nothing is reported from here: every outcome, also of an
    /// operation that cannot even be submitted, comes as a [`Completion`].
    fn submit(&mut self, token: Token, operation: Operation);

    /// As [`Disk::submit`], for a caller that would only wait for this: it may block until the operation is
    /// done, where that is faster. The completion comes from [`Disk::reap`] all the same.
    fn submit_alone(&mut self, token: Token, operation: Operation) {
        self.submit(token, operation);
    }

    /// Hands what was submitted to the device and appends what has completed.
    ///
    /// # Errors
    /// Only when the disk itself cannot go on (the ring is broken).
    fn reap(&mut self, completions: &mut Vec<Completion>, wait: Wait) -> io::Result<()>;

    /// The files of the directory. Blocks; for opening only.
    ///
    /// # Errors
    /// What the directory's read says.
    fn list(&mut self) -> io::Result<Vec<DirectoryEntry>>;

    /// Interrupts a sleeping [`Disk::reap`] from another thread.
    fn wake(&self) -> Arc<Wake>;

    /// The buffers that batches are built in.
    fn pool(&self) -> Pool;

    /// Reads of other threads, which never touch the ring.
    fn reader(&self) -> Arc<dyn ReadAt>;

    /// Bytes that the file system still has for this process.
    ///
    /// # Errors
    /// What statvfs says.
    fn free_bytes(&self) -> io::Result<u64>;

    /// What it is.
    fn description(&self) -> DiskDescription;
}

/// Positioned reads by any thread.
pub trait ReadAt: Send + Sync {
    /// Reads `length` bytes (a multiple of [`BLOCK_BYTES`]) at `offset`, fewer only where the file
    /// ends.
    ///
    /// # Errors
    /// What the device says; a file that is no longer open gives `NotFound`.
    fn read_at(
        &self,
        file: FileId,
        offset: u64,
        into: &mut BufferMut,
        length: usize,
    ) -> io::Result<usize>;

    /// The means to let a read go on while the caller does something else; `None` where a disk has none, or lends
    /// no more.
    fn ongoing_read(&self) -> Option<Box<dyn OngoingRead>> {
        None
    }
}

/// One read that goes on while its owner does something else.
pub trait OngoingRead: Send + Sync {
    /// Begins a read as by [`ReadAt::read_at`]; one that is under way ends first, and is forgotten. False when it
    /// did not begin.
    fn begin(&mut self, file: FileId, offset: u64, buffer: BufferMut, length: usize) -> bool;

    /// Waits for what was begun. The buffer when all of it was read, else nothing: whoever reads the same place
    /// by [`ReadAt::read_at`] learns why.
    fn end(&mut self) -> Option<BufferMut>;
}

/// Runs one operation to its end; for opening, where nothing else is in flight.
///
/// # Errors
/// What the operation or the disk says.
pub fn run(disk: &mut dyn Disk, operation: Operation) -> io::Result<(u64, Option<BufferMut>)> {
    let mut completions = Vec::with_capacity(1);
    disk.submit(0, operation);
    while completions.is_empty() {
        disk.reap(&mut completions, Wait::Forever)?;
    }
    let completion = completions.remove(0);
    completion.result.map(|value| (value, completion.buffer))
}

/// The block that holds a byte, as the offset of its first one.
pub const fn block_round_down(position: u64) -> u64 {
    position / BLOCK_BYTES as u64 * BLOCK_BYTES as u64
}

/// Length rounded up to whole blocks.
pub const fn block_round_up(bytes: usize) -> usize {
    bytes.div_ceil(BLOCK_BYTES) * BLOCK_BYTES
}
