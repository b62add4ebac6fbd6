//! The disk under test: a FUSE file system with one file, which a loop device is put over. It logs
//! every write and flush in order, has a volatile cache, and fails when told to.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyWrite, Request, Session, WriteFlags,
};
use rustix::mount::UnmountFlags;

use super::image::{BLOCK_BYTES, Image, is_zero};

const FILE: INodeNo = INodeNo(2);
const FOREVER: Duration = Duration::from_secs(3600);
const DETACH_LIMIT: Duration = Duration::from_secs(20);

/// What the disk was told, in order, and what was known at that point.
#[derive(Clone, Debug)]
pub enum Entry {
    /// Bytes were written; in the cache until the next flush.
    Write { offset: usize, data: Box<[u8]> },
    /// As many zeros were written.
    Zero { offset: usize, length: usize },
    /// Everything before it is durable.
    Flush,
    /// What the load said.
    Mark(String),
}

/// What is wrong with the disk.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// So many writes fail with EIO.
    pub write_errors: u32,
    /// Only writes to segments fail.
    pub only_data: bool,
    /// So many flushes fail with EIO.
    pub flush_errors: u32,
    /// A flush that fails loses what it should have made durable.
    pub drop_cache: bool,
    /// Each write takes that much longer.
    pub delay: Option<Duration>,
    /// Writes and flushes are not answered until this ends.
    pub stalled: bool,
}

/// Contents, log and faults of a disk, shared with its server.
#[derive(Debug)]
pub struct Device {
    state: Mutex<State>,
}

struct State {
    image: Image,
    log: Vec<Entry>,
    is_logging: bool,
    faults: Faults,
    /// What was there before each write since the last flush.
    undo: Vec<(usize, Box<[u8]>)>,
    /// Answers that wait for the end of a stall.
    held: Vec<Held>,
    writes: u64,
    flushes: u64,
    /// Writes to segments.
    data_writes: u64,
    /// Blocks of segments whose write or flush has failed, and writes to them since.
    suspect: BTreeSet<u64>,
    rewrites: u64,
    /// Requests that have failed.
    failed: u64,
    /// Blocks that belong to segments.
    data_blocks: BTreeSet<u64>,
}

enum Held {
    Write(ReplyWrite, u32),
    Flush(ReplyEmpty),
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("log", &self.log.len()).finish_non_exhaustive()
    }
}

impl Device {
    /// A disk with these contents.
    pub fn new(image: Image, is_logging: bool) -> Arc<Device> {
        let state = State {
            image,
            log: Vec::new(),
            is_logging,
            faults: Faults::default(),
            undo: Vec::new(),
            held: Vec::new(),
            writes: 0,
            flushes: 0,
            data_writes: 0,
            suspect: BTreeSet::new(),
            rewrites: 0,
            failed: 0,
            data_blocks: BTreeSet::new(),
        };
        Arc::new(Device { state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts what the load said into the log.
    pub fn mark(&self, line: String) {
        self.state().log.push(Entry::Mark(line));
    }

    /// The log so far.
    pub fn take_log(&self) -> Vec<Entry> {
        std::mem::take(&mut self.state().log)
    }

    /// Writes and flushes so far.
    pub fn counts(&self) -> (u64, u64) {
        let state = self.state();
        (state.writes, state.flushes)
    }

    /// Requests that have failed so far.
    pub fn failed(&self) -> u64 {
        self.state().failed
    }

    /// Writes to segments so far, failed ones included.
    pub fn data_writes(&self) -> u64 {
        self.state().data_writes
    }

    /// Writes to where a write or its flush had failed before.
    pub fn rewrites(&self) -> u64 {
        self.state().rewrites
    }

    /// More bytes that belong to segments.
    pub fn add_data(&self, bytes: Range<u64>) {
        let block = BLOCK_BYTES as u64;
        self.state().data_blocks.extend(bytes.start / block..bytes.end / block);
    }

    /// What is wrong from now on. The end of a stall answers everyone.
    pub fn set_faults(&self, faults: Faults) {
        let mut state = self.state();
        state.faults = faults;
        if faults.stalled {
            return;
        }
        for held in std::mem::take(&mut state.held) {
            match held {
                Held::Write(reply, length) => reply.written(length),
                Held::Flush(reply) => {
                    state.undo.clear();
                    reply.ok();
                }
            }
        }
    }

    /// Contents as the cache has them, and as a loss of power would leave them.
    pub fn contents(&self) -> (Image, Image) {
        let state = self.state();
        let mut durable = state.image.clone();
        for (offset, before) in state.undo.iter().rev() {
            durable.write(*offset, before);
        }
        (state.image.clone(), durable)
    }
}

impl State {
    fn write(&mut self, offset: usize, data: &[u8]) -> Result<(), Errno> {
        self.writes += 1;
        let block = offset as u64 / BLOCK_BYTES as u64;
        let is_data = self.data_blocks.contains(&block);
        let concerned = is_data || !self.faults.only_data;
        self.data_writes += u64::from(is_data);
        self.rewrites += u64::from(self.suspect.contains(&block));
        if self.faults.write_errors > 0 && concerned {
            self.failed += 1;
            self.suspect.extend(is_data.then_some(block));
            self.faults.write_errors -= u32::from(self.faults.write_errors != u32::MAX);
            return Err(Errno::EIO);
        }
        if offset + data.len() > self.image.len() {
            return Err(Errno::ENOSPC);
        }
        if self.is_logging {
            self.log.push(if is_zero(data) {
                Entry::Zero { offset, length: data.len() }
            } else {
                Entry::Write { offset, data: data.into() }
            });
        } else {
            self.undo.push((offset, self.image.slice(offset, data.len()).into()));
        }
        self.image.write(offset, data);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Errno> {
        self.flushes += 1;
        if self.faults.flush_errors > 0 {
            self.failed += 1;
            let unflushed = self.undo.iter().map(|(at, _)| (*at / BLOCK_BYTES) as u64);
            self.suspect.extend(unflushed.filter(|block| self.data_blocks.contains(block)));
            self.faults.flush_errors -= u32::from(self.faults.flush_errors != u32::MAX);
            if self.faults.drop_cache {
                for (offset, before) in std::mem::take(&mut self.undo).into_iter().rev() {
                    self.image.write(offset, &before);
                }
            }
            return Err(Errno::EIO);
        }
        if self.is_logging {
            self.log.push(Entry::Flush);
        }
        self.undo.clear();
        Ok(())
    }
}

/// A device that is mounted. Dropping it aborts what is still waiting for it.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    session: Option<BackgroundSession>,
}

impl Server {
    /// Serves a device in this directory.
    ///
    /// # Errors
    /// Without FUSE.
    pub fn start(device: Arc<Device>, path: &Path) -> Result<Server> {
        serve(OneFile { device, name: file_name(path) }, path)
    }

    /// The file. It is named as its directory: the only part of its path that is seen from other
    /// mount namespaces.
    pub fn file(&self) -> PathBuf {
        self.path.join(file_name(&self.path))
    }

    /// Waits until no loop device uses the file any more: the kernel takes the mounts of an ended
    /// process apart a little later.
    ///
    /// # Errors
    /// When that takes too long.
    pub fn wait_detached(&self) -> Result<()> {
        let name = file_name(&self.path);
        let deadline = Instant::now() + DETACH_LIMIT;
        while Instant::now() < deadline {
            let mut in_use = false;
            for device in std::fs::read_dir("/sys/block")?.flatten() {
                let backing = std::fs::read_to_string(device.path().join("loop/backing_file"));
                in_use |= backing.is_ok_and(|path| Path::new(path.trim_end()).ends_with(&name));
            }
            if !in_use {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        bail!("a loop device keeps {}", self.file().display())
    }
}

/// Mounts a file system of this process.
pub fn serve<F: Filesystem + Send + 'static>(file_system: F, path: &Path) -> Result<Server> {
    let mut config = Config::default();
    config.mount_options = vec![MountOption::FSName("ringwal-crash".into())];
    let session = Session::new(file_system, path, &config).context("mounting FUSE")?;
    let session = session.spawn().context("starting the FUSE server")?;
    Ok(Server { path: path.to_owned(), session: Some(session) })
}

impl Drop for Server {
    fn drop(&mut self) {
        // Forced: it ends every request in the kernel, whoever still has the file.
        let flags = UnmountFlags::FORCE | UnmountFlags::DETACH;
        let _ = rustix::mount::unmount(&self.path, flags);
        if let Some(session) = self.session.take() {
            let _ = session.umount_and_join();
        }
    }
}

fn file_name(path: &Path) -> OsString {
    path.file_name().unwrap_or_default().to_owned()
}

struct OneFile {
    device: Arc<Device>,
    name: OsString,
}

impl OneFile {
    fn attributes(&self, inode: INodeNo) -> Option<FileAttr> {
        match inode {
            INodeNo::ROOT => Some(attributes(inode, FileType::Directory, 0)),
            FILE => {
                let bytes = self.device.state().image.len() as u64;
                Some(attributes(inode, FileType::RegularFile, bytes))
            }
            _ => None,
        }
    }
}

/// Attributes of a file of root.
pub fn attributes(ino: INodeNo, kind: FileType, size: u64) -> FileAttr {
    FileAttr {
        ino,
        size,
        blocks: size.div_ceil(512),
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind,
        perm: 0o700,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Filesystem for OneFile {
    fn lookup(&self, _request: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.attributes(FILE) {
            Some(found) if name == self.name => reply.entry(&FOREVER, &found, Generation(0)),
            _ => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: Option<FileHandle>,
        reply: ReplyAttr,
    ) {
        match self.attributes(inode) {
            Some(found) => reply.attr(&FOREVER, &found),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _request: &Request, _inode: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        // Past the page cache: every read and write of the loop device comes here.
        let flags = FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES;
        reply.opened(FileHandle(0), flags);
    }

    fn read(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let state = self.device.state();
        let from = (offset as usize).min(state.image.len());
        let length = (size as usize).min(state.image.len() - from);
        reply.data(state.image.slice(from, length));
    }

    fn write(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut state = self.device.state();
        if let Err(error) = state.write(offset as usize, data) {
            return reply.error(error);
        }
        if state.faults.stalled {
            return state.held.push(Held::Write(reply, data.len() as u32));
        }
        let delay = state.faults.delay;
        drop(state);
        delay.into_iter().for_each(std::thread::sleep);
        reply.written(data.len() as u32);
    }

    fn fsync(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        let mut state = self.device.state();
        if state.faults.stalled {
            return state.held.push(Held::Flush(reply));
        }
        match state.flush() {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error),
        }
    }

    fn flush(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _lock: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn fallocate(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _offset: u64,
        _length: u64,
        _mode: i32,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EOPNOTSUPP);
    }
}
