//! Whether direct I/O works in a directory: what the kernel says and what a real write shows.
//! Nothing is left behind, whatever happens: the file never has a name.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};

use crate::probe::AlignedBuffer;

/// Direct I/O in one directory.
#[derive(Debug, Clone, Default)]
pub struct DirectIo {
    /// Alignment of addresses in memory; 0 when not available.
    pub memory_alignment: u32,
    /// Alignment of offsets and lengths; 0 when not available.
    pub offset_alignment: u32,
    /// The kernel told the alignment (STATX_DIOALIGN, Linux 6.1); otherwise it was tried.
    pub told_by_kernel: bool,
    /// A 4 KiB O_DIRECT write from an aligned buffer worked.
    pub works: bool,
    /// Such a write with RWF_DSYNC worked.
    pub dsync_works: bool,
    /// Why nothing could be tried, in words.
    pub untested: Option<String>,
    /// Why not, in words.
    pub problem: Option<String>,
}

/// A file without a name in `directory`, opened with O_DIRECT or without.
///
/// Where the file system has no O_TMPFILE it is created and unlinked at once.
pub fn scratch_file(directory: &Path, direct: bool) -> io::Result<File> {
    let mut flags = OFlags::RDWR | OFlags::CLOEXEC;
    if direct {
        flags |= OFlags::DIRECT;
    }
    let mode = Mode::RUSR | Mode::WUSR;
    match rustix::fs::open(directory, flags | OFlags::TMPFILE, mode) {
        Ok(file) => Ok(File::from(file)),
        // EINVAL may also mean that O_DIRECT is refused; the next open will say so again.
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR | rustix::io::Errno::INVAL) => {
            let path = directory.join(format!(".ringwal-scratch-{}", std::process::id()));
            let file = std::fs::OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .custom_flags(if direct { OFlags::DIRECT.bits() as i32 } else { 0 })
                .mode(0o600)
                .open(&path);
            let removed = std::fs::remove_file(&path);
            let file = file?;
            removed?;
            Ok(file)
        }
        Err(error) => Err(error.into()),
    }
}

/// Tries it in `directory`, which exists.
pub fn try_in(directory: &Path) -> DirectIo {
    let mut found = DirectIo::default();
    let file = match scratch_file(directory, true) {
        Ok(file) => file,
        Err(error) => {
            let is_refusal = error.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error());
            if is_refusal {
                let problem = "open with O_DIRECT: the file system refuses it (EINVAL)";
                found.problem = Some(problem.to_owned());
            } else {
                found.untested = Some(format!("creating a file: {error}"));
            }
            return found;
        }
    };
    match rustix::fs::statx(&file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN) {
        Ok(statx) if statx.stx_mask & StatxFlags::DIOALIGN.bits() != 0 => {
            found.told_by_kernel = statx.stx_dio_offset_align != 0;
            found.memory_alignment = statx.stx_dio_mem_align;
            found.offset_alignment = statx.stx_dio_offset_align;
        }
        _ => {}
    }
    let buffer = AlignedBuffer::filled(4096, 1);
    match crate::probe::write_at(&file, buffer.bytes(), 0, false) {
        Ok(()) => found.works = true,
        Err(error) => found.problem = Some(format!("a 4 KiB O_DIRECT write: {error}")),
    }
    match crate::probe::write_at(&file, buffer.bytes(), 0, true) {
        Ok(()) => found.dsync_works = true,
        Err(error) if found.works => {
            found.problem = Some(format!("a 4 KiB O_DIRECT write with RWF_DSYNC: {error}"));
        }
        Err(_) => {}
    }
    if found.works && !found.told_by_kernel {
        found.memory_alignment = 4096;
        found.offset_alignment = smallest_write(&file, &buffer);
    }
    found
}

/// The smallest write that is accepted, among those that devices ask for.
fn smallest_write(file: &File, buffer: &AlignedBuffer) -> u32 {
    [512_u32, 1024, 2048]
        .into_iter()
        .find(|&bytes| {
            let piece = &buffer.bytes()[..bytes as usize];
            crate::probe::write_at(file, piece, u64::from(bytes), false).is_ok()
        })
        .unwrap_or(4096)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scratch_file_never_shows() {
        let directory = tempfile::tempdir().unwrap();
        let file = scratch_file(directory.path(), false).unwrap();
        crate::probe::write_at(&file, b"here", 0, false).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 4);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
