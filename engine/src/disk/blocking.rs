//! Plain system calls by the calling thread: for kernels and containers that refuse io_uring,
//! and as a yardstick. An operation runs inside [`Disk::submit`]; nothing is ever in flight.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{AtFlags, FallocateFlags, Mode};
use rustix::io::Errno;

use super::files::{CREATE_MODE, Directory, OpenFile, over_capacity, refuse, retry};
use super::{
    Completion, DirectoryEntry, Disk, DiskDescription, FileId, Operation, Pool, ReadAt, Token,
    Wait, Wake,
};

/// Completions that may wait for [`Disk::reap`].
const CAPACITY: usize = 256;

/// How a [`BlockingDisk`] is opened.
#[derive(Clone, Debug)]
pub struct BlockingOptions {
    /// Memory for batches, in bytes. Default 32 MiB.
    pub pool_bytes: usize,
    /// Bytes of one batch buffer, a multiple of [`super::BLOCK_BYTES`]. Default 1 MiB.
    pub slot_bytes: usize,
    /// Open files for reading only and refuse every change. Default false.
    pub read_only: bool,
}

impl Default for BlockingOptions {
    fn default() -> Self {
        Self { pool_bytes: 32 << 20, slot_bytes: 1 << 20, read_only: false }
    }
}

/// The disk of plain system calls.
#[derive(Debug)]
pub struct BlockingDisk {
    directory: Arc<Directory>,
    pool: Pool,
    wake: Arc<Wake>,
    completed: VecDeque<Completion>,
    notes: Vec<String>,
}

impl BlockingDisk {
    /// Opens a directory that exists.
    ///
    /// # Errors
    /// When the directory cannot be opened, the pool cannot be mapped, or the process is out of
    /// file descriptors.
    pub fn open(directory: &Path, options: BlockingOptions) -> io::Result<Self> {
        Ok(Self {
            directory: Arc::new(Directory::open(directory, options.read_only)?),
            pool: Pool::new(options.pool_bytes, options.slot_bytes)?,
            wake: Arc::new(Wake::new()?),
            completed: VecDeque::with_capacity(CAPACITY),
            notes: Vec::new(),
        })
    }

    /// Adds to its description what the operator should know.
    pub fn with_note(mut self, note: String) -> Self {
        self.notes.push(note);
        self
    }

    fn admit(&self, operation: &Operation) -> io::Result<()> {
        if self.completed.len() >= CAPACITY {
            return Err(over_capacity(CAPACITY));
        }
        self.directory.check(operation)
    }

    fn execute(&self, token: Token, operation: Operation) -> Completion {
        let mut returned = None;
        let result = match operation {
            Operation::Write { file, offset, buffer, from, length, durable } => {
                let bytes = &buffer[from..from + length];
                self.directory.get(file).and_then(|file| file.write(offset, bytes, durable))
            }
            Operation::Read { file, offset, mut buffer, length } => {
                let result = self.directory.read_at(file, offset, &mut buffer, length);
                returned = Some(buffer);
                result.map(|bytes| bytes as u64)
            }
            Operation::Sync { file } => self.on_file(file, |file| rustix::fs::fdatasync(file)),
            Operation::SyncAll { file } => self.on_file(file, |file| rustix::fs::fsync(file)),
            Operation::Allocate { file, length } => self.on_file(file, |file| {
                rustix::fs::fallocate(file, FallocateFlags::empty(), 0, length)
            }),
            Operation::Open { name, create } => self.open_file(name, create),
            Operation::Remove { name } => self.remove(&name),
            Operation::SyncDirectory => done(retry(|| rustix::fs::fsync(self.directory.handle()))),
        };
        Completion { token, result, buffer: returned }
    }

    fn on_file(
        &self,
        file: FileId,
        call: impl Fn(&File) -> rustix::io::Result<()>,
    ) -> io::Result<u64> {
        let file = self.directory.get(file)?;
        done(retry(|| call(&file.file)))
    }

    fn open_file(&self, name: String, create: bool) -> io::Result<u64> {
        let open = || {
            let flags = self.directory.open_flags(create);
            let mode = Mode::from_raw_mode(CREATE_MODE);
            retry(|| rustix::fs::openat(self.directory.handle(), &name, flags, mode))
        };
        let opened = match open() {
            Err(Errno::INVAL) if self.directory.is_direct() => {
                self.directory.set_buffered();
                open()
            }
            opened => opened,
        };
        let file = File::from(opened?);
        Ok(u64::from(self.directory.insert(OpenFile { name, file, slot: 0 }).0))
    }

    fn remove(&self, name: &str) -> io::Result<u64> {
        while self.directory.take(name).is_some() {}
        done(retry(|| rustix::fs::unlinkat(self.directory.handle(), name, AtFlags::empty())))
    }
}

impl Disk for BlockingDisk {
    fn capacity(&self) -> usize {
        CAPACITY
    }

    fn submit(&mut self, token: Token, operation: Operation) {
        let completion = match self.admit(&operation) {
            Ok(()) => self.execute(token, operation),
            Err(error) => refuse(token, operation, error),
        };
        self.completed.push_back(completion);
    }

    fn reap(&mut self, completions: &mut Vec<Completion>, wait: Wait) -> io::Result<()> {
        if !self.completed.is_empty() {
            completions.extend(self.completed.drain(..));
            return Ok(());
        }
        match wait {
            Wait::No => Ok(()),
            Wait::For(timeout) => self.wake.sleep(Some(timeout)),
            Wait::Forever => self.wake.sleep(None),
        }
    }

    fn list(&mut self) -> io::Result<Vec<DirectoryEntry>> {
        self.directory.list()
    }

    fn wake(&self) -> Arc<Wake> {
        self.wake.clone()
    }

    fn pool(&self) -> Pool {
        self.pool.clone()
    }

    fn reader(&self) -> Arc<dyn ReadAt> {
        self.directory.clone()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        self.directory.free_bytes()
    }

    fn description(&self) -> DiskDescription {
        let mut notes = self.notes.clone();
        notes.extend(self.directory.notes());
        DiskDescription {
            name: "blocking",
            direct: self.directory.is_direct(),
            buffers_registered: false,
            notes,
        }
    }
}

fn done(result: rustix::io::Result<()>) -> io::Result<u64> {
    result.map(|()| 0).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::super::{BLOCK_BYTES, BufferMut, run};
    use super::*;

    fn disk(read_only: bool) -> (tempfile::TempDir, BlockingDisk) {
        let path = tempfile::tempdir().unwrap();
        let options =
            BlockingOptions { pool_bytes: 4 * BLOCK_BYTES, slot_bytes: BLOCK_BYTES, read_only };
        let disk = BlockingDisk::open(path.path(), options).unwrap();
        (path, disk)
    }

    #[test]
    fn a_completion_waits_for_reap_and_reap_does_not_sleep() {
        let (_path, mut disk) = disk(false);
        disk.submit(7, Operation::SyncDirectory);
        let mut completions = Vec::new();
        disk.reap(&mut completions, Wait::Forever).unwrap();
        assert_eq!(completions[0].token, 7);
        assert_eq!(completions[0].result.as_ref().unwrap(), &0);
    }

    #[test]
    fn a_read_only_disk_reads_what_is_there_and_changes_nothing() {
        let (path, mut disk) = disk(true);
        std::fs::write(path.path().join("a"), vec![7; BLOCK_BYTES]).unwrap();
        let (id, _) = run(&mut disk, Operation::Open { name: "a".into(), create: true }).unwrap();
        let file = FileId(id as u32);
        let buffer = BufferMut::allocate(BLOCK_BYTES);
        let read = Operation::Read { file, offset: 0, buffer, length: BLOCK_BYTES };
        let (bytes, buffer) = run(&mut disk, read).unwrap();
        assert_eq!(bytes, BLOCK_BYTES as u64);
        assert!(buffer.unwrap().iter().all(|&byte| byte == 7));

        let write = Operation::Write {
            file,
            offset: 0,
            buffer: BufferMut::allocate(BLOCK_BYTES).freeze(),
            from: 0,
            length: BLOCK_BYTES,
            durable: true,
        };
        let error = run(&mut disk, write).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EROFS));
        let missing = run(&mut disk, Operation::Open { name: "b".into(), create: true });
        assert_eq!(missing.unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(run(&mut disk, Operation::Remove { name: "a".into() }).is_err());
        assert!(path.path().join("a").exists());
    }
}
