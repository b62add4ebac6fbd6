//! The directory and the files that a real disk holds open, shared with readers on other threads.
//!
//! No operation is queued here: what this file calls blocks.

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::{Errno, ReadWriteFlags};

use super::{BLOCK_BYTES, BufferMut, Completion, DirectoryEntry, FileId, Operation, ReadAt, Token};

/// Permissions of new files: the data of one service, readable by its group.
pub(super) const CREATE_MODE: u32 = 0o640;

/// A file that is open. The last holder (table, operation in flight, reader) closes it, so a
/// descriptor never changes its meaning under an operation.
#[derive(Debug)]
pub(super) struct OpenFile {
    pub name: String,
    pub file: File,
    /// Its place in a ring's file table; 0 for a disk without one.
    pub slot: u32,
}

/// One directory and the files of it that are open.
#[derive(Debug)]
pub(super) struct Directory {
    handle: OwnedFd,
    read_only: bool,
    direct: AtomicBool,
    /// By [`FileId`]; an id is not used again, so a closed file leaves `None`.
    files: RwLock<Vec<Option<Arc<OpenFile>>>>,
}

impl Directory {
    pub fn open(path: &Path, read_only: bool) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let handle = retry(|| rustix::fs::open(path, flags, Mode::empty()))?;
        Ok(Self {
            handle,
            read_only,
            direct: AtomicBool::new(true),
            files: RwLock::new(Vec::new()),
        })
    }

    pub fn handle(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }

    /// Whether files are opened with O_DIRECT: until the file system has refused it once.
    pub fn is_direct(&self) -> bool {
        self.direct.load(Ordering::Relaxed)
    }

    /// Remembers that the file system refuses O_DIRECT.
    pub fn set_buffered(&self) {
        self.direct.store(false, Ordering::Relaxed);
    }

    /// What the operator should know about the file system.
    pub fn notes(&self) -> Vec<String> {
        if self.is_direct() {
            return Vec::new();
        }
        vec![
            "the file system refuses O_DIRECT (EINVAL): writes pass through the page cache and \
              cost a copy; use ext4 or xfs for direct I/O"
                .to_owned(),
        ]
    }

    /// The flags of openat(2) for the next file.
    pub fn open_flags(&self, create: bool) -> OFlags {
        let mut flags = OFlags::CLOEXEC;
        flags |= if self.read_only { OFlags::RDONLY } else { OFlags::RDWR };
        if self.is_direct() {
            flags |= OFlags::DIRECT;
        }
        if create && !self.read_only {
            flags |= OFlags::CREATE;
        }
        flags
    }

    /// Enters a file that has been opened.
    pub fn insert(&self, file: OpenFile) -> FileId {
        let mut files = self.files.write().unwrap_or_else(PoisonError::into_inner);
        let id = u32::try_from(files.len()).expect("fewer than 2^32 files are ever opened");
        files.push(Some(Arc::new(file)));
        FileId(id)
    }

    /// The file of this number, or `NotFound`.
    pub fn get(&self, id: FileId) -> io::Result<Arc<OpenFile>> {
        let files = self.files.read().unwrap_or_else(PoisonError::into_inner);
        files.get(id.0 as usize).cloned().flatten().ok_or_else(|| not_open(id))
    }

    /// Takes the files of this name off the table; `None` when it is not open.
    pub fn take(&self, name: &str) -> Option<Arc<OpenFile>> {
        let mut files = self.files.write().unwrap_or_else(PoisonError::into_inner);
        let named =
            |file: &&mut Option<Arc<OpenFile>>| file.as_ref().is_some_and(|file| file.name == name);
        files.iter_mut().find(named).and_then(Option::take)
    }

    /// Refuses what could not work or would break a rule of the trait, before it is submitted.
    pub fn check(&self, operation: &Operation) -> io::Result<()> {
        if self.read_only && is_change(operation) {
            return Err(io::Error::from(Errno::ROFS));
        }
        check_operation(operation)
    }

    pub fn list(&self) -> io::Result<Vec<DirectoryEntry>> {
        let mut entries = Vec::new();
        for entry in Dir::read_from(self.handle())? {
            // A name that is not UTF-8 is not one of ours.
            let entry = entry?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            let status = match rustix::fs::statat(self.handle(), name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => continue,
                status => status?,
            };
            if FileType::from_raw_mode(status.st_mode) == FileType::RegularFile {
                let length = u64::try_from(status.st_size).unwrap_or(0);
                entries.push(DirectoryEntry { name: name.to_owned(), length });
            }
        }
        entries.sort_by(|left, right| left.name.cmp(&right.name));
        Ok(entries)
    }

    pub fn free_bytes(&self) -> io::Result<u64> {
        let status = rustix::fs::fstatvfs(self.handle())?;
        Ok(status.f_bavail.saturating_mul(status.f_frsize))
    }
}

impl ReadAt for Directory {
    fn read_at(
        &self,
        file: FileId,
        offset: u64,
        into: &mut BufferMut,
        length: usize,
    ) -> io::Result<usize> {
        check_range(offset, 0, length, into.len())?;
        let file = self.get(file)?;
        let mut done = 0;
        // A short read is the end of the file, or hides the error of what comes next.
        while done < length && done.is_multiple_of(BLOCK_BYTES) {
            let (rest, at) = (&mut into[done..length], offset + done as u64);
            match retry(|| rustix::io::pread(&file.file, &mut *rest, at))? {
                0 => break,
                read => done += read,
            }
        }
        Ok(done)
    }
}

impl OpenFile {
    /// Writes whole blocks at `offset`, with `durable` also to the device (RWF_DSYNC). Returns how many
    /// bytes were written.
    ///
    /// # Errors
    /// What the device says.
    pub(super) fn write(&self, offset: u64, bytes: &[u8], durable: bool) -> io::Result<u64> {
        let written = if durable {
            let slices = [IoSlice::new(bytes)];
            retry(|| rustix::io::pwritev2(&self.file, &slices, offset, ReadWriteFlags::DSYNC))
        } else {
            retry(|| rustix::io::pwrite(&self.file, bytes, offset))
        };
        Ok(written? as u64)
    }
}

/// Repeats a call that a signal interrupted before it did anything.
pub(super) fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

/// The error of an operation on a file that is not open.
pub(super) fn not_open(id: FileId) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("file {} is not open", id.0))
}

/// The error of an operation beyond [`super::Disk::capacity`].
pub(super) fn over_capacity(capacity: usize) -> io::Error {
    io::Error::other(format!(
        "more than {capacity} operations in flight; reap before submitting more"
    ))
}

/// The end of an operation that was never started.
pub(super) fn refuse(token: Token, operation: Operation, error: io::Error) -> Completion {
    let buffer = match operation {
        Operation::Read { buffer, .. } => Some(buffer),
        _ => None,
    };
    Completion { token, result: Err(error), buffer }
}

/// The file that an operation works on.
pub(super) fn file_of(operation: &Operation) -> Option<FileId> {
    match operation {
        Operation::Write { file, .. }
        | Operation::Read { file, .. }
        | Operation::Sync { file }
        | Operation::SyncAll { file }
        | Operation::Allocate { file, .. } => Some(*file),
        Operation::Open { .. } | Operation::Remove { .. } | Operation::SyncDirectory => None,
    }
}

/// Checks names, and that ranges are whole blocks inside their buffer.
pub(super) fn check_operation(operation: &Operation) -> io::Result<()> {
    match operation {
        Operation::Write { offset, buffer, from, length, .. } => {
            check_range(*offset, *from, *length, buffer.len())
        }
        Operation::Read { offset, buffer, length, .. } => {
            check_range(*offset, 0, *length, buffer.len())
        }
        Operation::Open { name, .. } | Operation::Remove { name } => check_name(name),
        Operation::Allocate { length, .. } if i64::try_from(*length).is_err() => {
            Err(invalid(format!("a file cannot be {length} bytes long")))
        }
        _ => Ok(()),
    }
}

/// Checks that `from..from + length` is whole blocks inside a buffer of `room` bytes, and that
/// the offset is a multiple of a block.
pub(super) fn check_range(offset: u64, from: usize, length: usize, room: usize) -> io::Result<()> {
    let aligned = offset.is_multiple_of(BLOCK_BYTES as u64)
        && from.is_multiple_of(BLOCK_BYTES)
        && length.is_multiple_of(BLOCK_BYTES);
    if !aligned {
        return Err(invalid(format!(
            "offset {offset}, start {from} and length {length} must be multiples of {BLOCK_BYTES}"
        )));
    }
    let inside = from.checked_add(length).is_some_and(|end| end <= room);
    let small = u32::try_from(length).is_ok()
        && offset.checked_add(length as u64).is_some_and(|end| i64::try_from(end).is_ok());
    if inside && small {
        return Ok(());
    }
    Err(invalid(format!(
        "{length} bytes from {from} at offset {offset} do not fit a buffer of {room} bytes or a file"
    )))
}

fn check_name(name: &str) -> io::Result<()> {
    if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) {
        return Err(invalid(format!("{name:?} is not the name of a file in the directory")));
    }
    Ok(())
}

fn is_change(operation: &Operation) -> bool {
    matches!(
        operation,
        Operation::Write { .. } | Operation::Allocate { .. } | Operation::Remove { .. }
    )
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory() -> (tempfile::TempDir, Directory) {
        let path = tempfile::tempdir().unwrap();
        let directory = Directory::open(path.path(), false).unwrap();
        (path, directory)
    }

    fn open_file(path: &Path, name: &str) -> OpenFile {
        let file = File::create_new(path.join(name)).unwrap();
        OpenFile { name: name.to_owned(), file, slot: 0 }
    }

    #[test]
    fn ids_are_never_used_again() {
        let (path, directory) = directory();
        let first = directory.insert(open_file(path.path(), "a"));
        let taken = directory.take("a").unwrap();
        assert_eq!(taken.name, "a");
        assert!(directory.take("a").is_none());
        let second = directory.insert(open_file(path.path(), "b"));
        assert_ne!(first, second);
        assert_eq!(directory.get(first).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(directory.get(second).unwrap().name, "b");
    }

    #[test]
    fn only_regular_files_are_listed_in_order() {
        let (path, directory) = directory();
        std::fs::write(path.path().join("b"), b"12345").unwrap();
        std::fs::write(path.path().join("a"), b"").unwrap();
        std::fs::create_dir(path.path().join("c")).unwrap();
        let names: Vec<_> =
            directory.list().unwrap().into_iter().map(|entry| (entry.name, entry.length)).collect();
        assert_eq!(names, [("a".to_owned(), 0), ("b".to_owned(), 5)]);
        assert!(directory.free_bytes().unwrap() > 0);
    }

    #[test]
    fn ranges_are_whole_blocks_inside_their_buffer() {
        assert!(check_range(0, 0, 4096, 4096).is_ok());
        assert!(check_range(8192, 4096, 4096, 8192).is_ok());
        for (offset, from, length, room) in [
            (1, 0, 4096, 4096),
            (0, 512, 4096, 8192),
            (0, 0, 100, 4096),
            (0, 4096, 4096, 4096),
            (u64::MAX - 4095, 0, 4096, 4096),
            (0, usize::MAX - 4095, 4096, 4096),
        ] {
            let error = check_range(offset, from, length, room).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
    }

    #[test]
    fn names_stay_in_the_directory() {
        for name in ["", ".", "..", "a/b", "/etc/passwd", "a\0b"] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
        assert!(check_name("00000001.segment").is_ok());
    }

    #[test]
    fn a_read_only_directory_refuses_changes() {
        let path = tempfile::tempdir().unwrap();
        let directory = Directory::open(path.path(), true).unwrap();
        let error = directory.check(&Operation::Remove { name: "a".into() }).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::ROFS.raw_os_error()));
        assert!(!directory.open_flags(true).contains(OFlags::CREATE));
        assert!(!directory.open_flags(true).contains(OFlags::RDWR));
    }
}
