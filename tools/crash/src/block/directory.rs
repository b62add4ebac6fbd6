//! A file system in memory, served by FUSE, for what must reach the engine itself: short writes,
//! and no space at each step of preparing a segment. What was not synced can be taken away, names
//! of files included.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};

use super::device::{Server, attributes, serve};
use super::image::is_zero;

const BLOCK: u64 = 4096;
const FREE_BLOCKS: u64 = 1 << 16;
/// What is written of a write that is cut short.
const SHORT_BYTES: usize = 512;
const NOT_KEPT: Duration = Duration::ZERO;

/// What the engine does to a segment file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Step {
    Create,
    Allocate,
    Zero,
    Sync,
    SyncDirectory,
    Header,
    HeaderCopy,
    /// Batches and footers.
    Batch,
}

/// What happens then.
#[derive(Clone, Copy, Debug)]
pub enum Trouble {
    /// ENOSPC.
    NoSpace,
    /// EIO.
    Error,
    /// Only [`SHORT_BYTES`] are written: of one write, and then of its rest, so many times; of
    /// every write when there is no end to it.
    Short(u32),
}

#[derive(Clone, Debug)]
enum Node {
    Directory { names: BTreeMap<OsString, u64>, durable: BTreeMap<OsString, u64> },
    File { bytes: Vec<u8>, durable: Vec<u8> },
}

/// Contents and faults, shared with the server.
#[derive(Debug)]
pub struct Files {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    nodes: BTreeMap<u64, Node>,
    next: u64,
    trouble: Option<(Step, Trouble)>,
    troubled: u64,
    writes: u64,
    /// Where the rest of a write that was cut short begins.
    short_at: Option<u64>,
}

impl Files {
    /// An empty directory.
    pub fn new() -> Arc<Files> {
        let root = Node::Directory { names: BTreeMap::new(), durable: BTreeMap::new() };
        let nodes = BTreeMap::from([(INodeNo::ROOT.0, root)]);
        let state = State { nodes, next: 2, trouble: None, troubled: 0, writes: 0, short_at: None };
        Arc::new(Files { state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Mounts it.
    ///
    /// # Errors
    /// Without FUSE.
    pub fn serve(self: &Arc<Files>, path: &Path) -> Result<Server> {
        serve(Served { files: self.clone() }, path)
    }

    /// What goes wrong from now on.
    pub fn set_trouble(&self, trouble: Option<(Step, Trouble)>) {
        self.state().trouble = trouble;
    }

    /// How often something went wrong.
    pub fn troubled(&self) -> u64 {
        self.state().troubled
    }

    /// Writes to segments so far.
    pub fn writes(&self) -> u64 {
        self.state().writes
    }

    /// Copies everything to a plain directory: as it is, or only what was synced.
    pub fn copy_to(&self, directory: &Path, only_durable: bool) -> Result<()> {
        self.state().copy(INodeNo::ROOT.0, directory, only_durable)
    }
}

impl State {
    fn copy(&self, inode: u64, path: &Path, only_durable: bool) -> Result<()> {
        match &self.nodes[&inode] {
            Node::File { bytes, durable } => {
                std::fs::write(path, if only_durable { durable } else { bytes })?;
            }
            Node::Directory { names, durable } => {
                std::fs::create_dir_all(path)?;
                for (name, inode) in if only_durable { durable } else { names } {
                    self.copy(*inode, &path.join(name), only_durable)?;
                }
            }
        }
        Ok(())
    }

    fn attributes(&self, inode: u64) -> Result<FileAttr, Errno> {
        let (kind, size) = match self.nodes.get(&inode).ok_or(Errno::ENOENT)? {
            Node::Directory { .. } => (FileType::Directory, 0),
            Node::File { bytes, .. } => (FileType::RegularFile, bytes.len() as u64),
        };
        Ok(attributes(INodeNo(inode), kind, size))
    }

    fn names(&mut self, inode: u64) -> Result<&mut BTreeMap<OsString, u64>, Errno> {
        match self.nodes.get_mut(&inode) {
            Some(Node::Directory { names, .. }) => Ok(names),
            Some(Node::File { .. }) => Err(Errno::ENOTDIR),
            None => Err(Errno::ENOENT),
        }
    }

    fn bytes(&mut self, inode: u64) -> Result<&mut Vec<u8>, Errno> {
        match self.nodes.get_mut(&inode) {
            Some(Node::File { bytes, .. }) => Ok(bytes),
            Some(Node::Directory { .. }) => Err(Errno::EISDIR),
            None => Err(Errno::ENOENT),
        }
    }

    fn find(&mut self, parent: u64, name: &OsStr) -> Result<u64, Errno> {
        self.names(parent)?.get(name).copied().ok_or(Errno::ENOENT)
    }

    fn is_segment(&self, inode: u64) -> bool {
        self.nodes.values().any(|node| match node {
            Node::Directory { names, .. } => {
                names.iter().any(|(name, at)| *at == inode && is_segment_name(name))
            }
            Node::File { .. } => false,
        })
    }

    /// Whether this step fails now.
    fn fail(&mut self, step: Step) -> Result<(), Errno> {
        match self.trouble {
            Some((at, trouble @ (Trouble::NoSpace | Trouble::Error))) if at == step => {
                self.troubled += 1;
                Err(if matches!(trouble, Trouble::Error) { Errno::EIO } else { Errno::ENOSPC })
            }
            _ => Ok(()),
        }
    }

    fn make(&mut self, parent: u64, name: &OsStr, node: Node) -> Result<FileAttr, Errno> {
        if self.names(parent)?.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        let inode = self.next;
        self.next += 1;
        self.nodes.insert(inode, node);
        self.names(parent)?.insert(name.to_owned(), inode);
        self.attributes(inode)
    }

    fn write(&mut self, inode: u64, offset: u64, data: &[u8]) -> Result<usize, Errno> {
        let mut length = data.len();
        if self.is_segment(inode) {
            self.writes += 1;
            let step = match offset {
                // The rest of a batch may be padding only.
                _ if self.short_at == Some(offset) => Step::Batch,
                _ if is_zero(data) => Step::Zero,
                0 => Step::Header,
                BLOCK => Step::HeaderCopy,
                _ => Step::Batch,
            };
            self.fail(step)?;
            if let Some((at, Trouble::Short(left @ 1..))) = self.trouble
                && at == step
                && length > SHORT_BYTES
                && (left == u32::MAX || self.short_at.is_none_or(|at| at == offset))
            {
                self.short_at = Some(offset + SHORT_BYTES as u64);
                let left = if left == u32::MAX { left } else { left - 1 };
                self.trouble = Some((at, Trouble::Short(left)));
                self.troubled += 1;
                length = SHORT_BYTES;
            }
        }
        let bytes = self.bytes(inode)?;
        let end = offset as usize + length;
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        bytes[offset as usize..end].copy_from_slice(&data[..length]);
        Ok(length)
    }

    fn sync(&mut self, inode: u64) -> Result<(), Errno> {
        match self.nodes.get_mut(&inode).ok_or(Errno::ENOENT)? {
            Node::Directory { names, durable } => durable.clone_from(names),
            Node::File { bytes, durable } => durable.clone_from(bytes),
        }
        Ok(())
    }
}

fn is_segment_name(name: &OsStr) -> bool {
    name.to_string_lossy().starts_with("segment-")
}

struct Served {
    files: Arc<Files>,
}

fn answer(reply: ReplyEmpty, outcome: Result<(), Errno>) {
    match outcome {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error),
    }
}

impl Filesystem for Served {
    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let mut state = self.files.state();
        match state.find(parent.0, name).and_then(|inode| state.attributes(inode)) {
            Ok(found) => reply.entry(&NOT_KEPT, &found, Generation(0)),
            Err(error) => reply.error(error),
        }
    }

    fn getattr(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: Option<FileHandle>,
        reply: ReplyAttr,
    ) {
        match self.files.state().attributes(inode.0) {
            Ok(found) => reply.attr(&NOT_KEPT, &found),
            Err(error) => reply.error(error),
        }
    }

    fn setattr(
        &self,
        _request: &Request,
        inode: INodeNo,
        _mode: Option<u32>,
        _owner: Option<u32>,
        _group: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<std::time::SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<std::time::SystemTime>,
        _chgtime: Option<std::time::SystemTime>,
        _bkuptime: Option<std::time::SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut state = self.files.state();
        let resized = match size {
            Some(size) => state.bytes(inode.0).map(|bytes| bytes.resize(size as usize, 0)),
            None => Ok(()),
        };
        match resized.and_then(|()| state.attributes(inode.0)) {
            Ok(found) => reply.attr(&NOT_KEPT, &found),
            Err(error) => reply.error(error),
        }
    }

    fn mkdir(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        let node = Node::Directory { names: BTreeMap::new(), durable: BTreeMap::new() };
        match self.files.state().make(parent.0, name, node) {
            Ok(made) => reply.entry(&NOT_KEPT, &made, Generation(0)),
            Err(error) => reply.error(error),
        }
    }

    fn create(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let mut state = self.files.state();
        let node = Node::File { bytes: Vec::new(), durable: Vec::new() };
        let space = if is_segment_name(name) { state.fail(Step::Create) } else { Ok(()) };
        match space.and_then(|()| state.make(parent.0, name, node)) {
            Ok(made) => {
                let flags = FopenFlags::empty();
                reply.created(&NOT_KEPT, &made, Generation(0), FileHandle(0), flags);
            }
            Err(error) => reply.error(error),
        }
    }

    fn unlink(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        // Its contents stay: a name that was not synced away may come back.
        let outcome = self
            .files
            .state()
            .names(parent.0)
            .and_then(|names| names.remove(name).map(|_| ()).ok_or(Errno::ENOENT));
        answer(reply, outcome);
    }

    fn rename(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mut state = self.files.state();
        let taken = state.names(parent.0).and_then(|names| names.remove(name).ok_or(Errno::ENOENT));
        let outcome = taken.and_then(|inode| {
            state.names(new_parent.0)?.insert(new_name.to_owned(), inode);
            Ok(())
        });
        answer(reply, outcome);
    }

    fn open(&self, _request: &Request, _inode: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        // Not FOPEN_DIRECT_IO, with which the kernel forgets RWF_DSYNC.
        reply.opened(FileHandle(0), FopenFlags::empty());
    }

    fn read(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.files.state().bytes(inode.0) {
            Ok(bytes) => {
                let from = bytes.len().min(offset as usize);
                let to = bytes.len().min(from + size as usize);
                reply.data(&bytes[from..to]);
            }
            Err(error) => reply.error(error),
        }
    }

    fn write(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.files.state().write(inode.0, offset, data) {
            Ok(length) => reply.written(length as u32),
            Err(error) => reply.error(error),
        }
    }

    fn fsync(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        let mut state = self.files.state();
        let is_step = !datasync && state.is_segment(inode.0);
        let space = if is_step { state.fail(Step::Sync) } else { Ok(()) };
        let outcome = space.and_then(|()| state.sync(inode.0));
        answer(reply, outcome);
    }

    fn fsyncdir(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        let mut state = self.files.state();
        let outcome = state.fail(Step::SyncDirectory).and_then(|()| state.sync(inode.0));
        answer(reply, outcome);
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
        inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        if mode != 0 {
            return reply.error(Errno::EOPNOTSUPP);
        }
        let mut state = self.files.state();
        let outcome = state.fail(Step::Allocate).and_then(|()| {
            let bytes = state.bytes(inode.0)?;
            let end = bytes.len().max((offset + length) as usize);
            bytes.resize(end, 0);
            Ok(())
        });
        answer(reply, outcome);
    }

    fn statfs(&self, _request: &Request, _inode: INodeNo, reply: ReplyStatfs) {
        let block = BLOCK as u32;
        reply.statfs(FREE_BLOCKS, FREE_BLOCKS, FREE_BLOCKS, 1 << 16, 1 << 16, block, 255, block);
    }

    fn readdir(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let mut state = self.files.state();
        let names = match state.names(inode.0) {
            Ok(names) => names.clone(),
            Err(error) => return reply.error(error),
        };
        for (at, (name, inode)) in names.iter().enumerate().skip(offset as usize) {
            let Ok(found) = state.attributes(*inode) else { continue };
            if reply.add(INodeNo(*inode), at as u64 + 1, found.kind, name) {
                break;
            }
        }
        reply.ok();
    }
}
