//! The bare device: each thread writes blocks into space that was written before, and flushes each.

use std::fs::File;
use std::io::IoSlice;
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result, ensure};
use ringwal_engine::disk::BufferMut;
use rustix::io::ReadWriteFlags;

use crate::engine::{Contender, Kind, Opened, Shared, Writer};
use crate::flush_calls;

/// The unit of a write.
const BLOCK_BYTES: usize = 4096;
/// Bytes of the file; when its end is reached, writes begin anew.
const FILE_BYTES: u64 = 256 << 20;

/// With RWF_DSYNC.
pub fn dsync() -> Contender {
    Contender {
        name: "device-dsync",
        how: "O_DIRECT write of whole blocks with RWF_DSYNC, on space written before",
        kind: Kind::Device,
        is_looped: false,
        open: |directory, _| open(directory, true),
        replay: None,
    }
}

/// With fdatasync.
pub fn fdatasync() -> Contender {
    Contender {
        name: "device-fdatasync",
        how: "O_DIRECT write of whole blocks, then fdatasync, on space written before",
        open: |directory, _| open(directory, false),
        ..dsync()
    }
}

struct Device {
    file: File,
    dsync: bool,
    next_block: AtomicU64,
}

fn open(directory: &Path, dsync: bool) -> Result<Opened> {
    let path = directory.join("blocks");
    let file = File::options()
        .create_new(true)
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(&path)
        .with_context(|| format!("opening {} with O_DIRECT", path.display()))?;
    let zeros = BufferMut::allocate(1 << 20);
    for offset in (0..FILE_BYTES).step_by(zeros.len()) {
        std::os::unix::fs::FileExt::write_all_at(&file, &zeros, offset)?;
    }
    file.sync_all()?;
    Ok(Opened::Threads(Box::new(Device { file, dsync, next_block: AtomicU64::new(0) })))
}

impl Shared for Device {
    fn writer(&self, _: usize) -> Result<Box<dyn Writer + Send + '_>> {
        Ok(Box::new(Blocks { device: self, buffer: BufferMut::allocate(BLOCK_BYTES) }))
    }
}

struct Blocks<'a> {
    device: &'a Device,
    buffer: BufferMut,
}

impl Blocks<'_> {
    fn write(&mut self) -> Result<()> {
        let blocks = (self.buffer.len() / BLOCK_BYTES) as u64;
        let file_blocks = FILE_BYTES / BLOCK_BYTES as u64;
        // A write does not go over the end.
        let block = loop {
            let block = self.device.next_block.fetch_add(blocks, Ordering::Relaxed) % file_blocks;
            if block + blocks <= file_blocks {
                break block;
            }
        };
        let flags = if self.device.dsync { ReadWriteFlags::DSYNC } else { ReadWriteFlags::empty() };
        let slices = [IoSlice::new(&self.buffer)];
        let offset = block * BLOCK_BYTES as u64;
        let written = rustix::io::pwritev2(self.device.file.as_fd(), &slices, offset, flags)?;
        ensure!(written == self.buffer.len(), "a short write of {written} bytes");
        if self.device.dsync {
            flush_calls::note();
        } else {
            self.device.file.sync_data()?;
        }
        Ok(())
    }

    fn fit(&mut self, bytes: usize) {
        let bytes = bytes.next_multiple_of(BLOCK_BYTES);
        if self.buffer.len() != bytes {
            self.buffer = BufferMut::allocate(bytes);
        }
    }
}

impl Writer for Blocks<'_> {
    fn append(&mut self, record: &[u8]) -> Result<()> {
        self.fit(record.len());
        self.buffer[..record.len()].copy_from_slice(record);
        self.write()
    }

    fn append_batch(&mut self, records: &[&[u8]]) -> Result<()> {
        self.fit(records.iter().map(|record| record.len()).sum());
        let mut at = 0;
        for record in records {
            self.buffer[at..at + record.len()].copy_from_slice(record);
            at += record.len();
        }
        self.write()
    }
}
