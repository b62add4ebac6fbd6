//! What a directory's file system is and can do, asked of the kernel and tried for real.

use std::fmt;
use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::{AtFlags, IFlags, StatxFlags, ioctl_getflags, ioctl_setflags, statx};

use crate::disk::{BLOCK_BYTES, BufferMut};

/// The file systems that the engine tells apart.
#[derive(Clone, Eq, PartialEq, Debug)]
pub enum FileSystem {
    /// First class.
    Ext4,
    /// First class.
    Xfs,
    /// Copy-on-write is switched off for segments.
    Btrfs,
    /// Accepts everything and makes nothing durable.
    Tmpfs,
    /// As good as what is below it.
    Overlay,
    /// Refused.
    Network(String),
    /// Any other, by its magic number.
    Other(i64),
}

impl FileSystem {
    /// The file system of `path`.
    ///
    /// # Errors
    /// What statfs says.
    pub fn of(path: &Path) -> io::Result<Self> {
        let magic = rustix::fs::statfs(path)?.f_type;
        Ok(match magic {
            0xEF53 => Self::Ext4,
            0x5846_5342 => Self::Xfs,
            0x9123_683E => Self::Btrfs,
            0x0102_1994 => Self::Tmpfs,
            0x794C_7630 => Self::Overlay,
            0x6969 => Self::Network("nfs".into()),
            0xFF53_4D42 | 0xFE53_4D42 => Self::Network("cifs".into()),
            other => Self::Other(other),
        })
    }

    /// Whether a flush means anything on it, as far as its kind tells.
    pub fn is_durable(&self) -> bool {
        !matches!(self, Self::Tmpfs)
    }
}

impl fmt::Display for FileSystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ext4 => f.write_str("ext4"),
            Self::Xfs => f.write_str("xfs"),
            Self::Btrfs => f.write_str("btrfs"),
            Self::Tmpfs => f.write_str("tmpfs"),
            Self::Overlay => f.write_str("overlay"),
            Self::Network(name) => f.write_str(name),
            Self::Other(magic) => write!(f, "{magic:#x}"),
        }
    }
}

/// What a directory can do.
#[derive(Clone, Debug)]
pub struct DirectoryProbe {
    /// Its file system.
    pub file_system: FileSystem,
    /// An aligned O_DIRECT write of one block succeeded.
    pub direct: bool,
    /// Memory alignment that statx asks for, in bytes; 0 when it does not say.
    pub memory_alignment: u32,
    /// Offset alignment that statx asks for, in bytes; 0 when it does not say.
    pub offset_alignment: u32,
}

/// Asks and tries; leaves nothing behind.
///
/// # Errors
/// When nothing can be created in the directory.
///
/// ```
/// let directory = tempfile::tempdir()?;
/// let probe = ringwal_engine::environment::probe_directory(directory.path())?;
/// println!("{} direct: {}", probe.file_system, probe.direct);
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn probe_directory(directory: &Path) -> io::Result<DirectoryProbe> {
    let file_system = FileSystem::of(directory)?;
    let path = directory.join(format!(".probe-{}", std::process::id()));
    let file = File::options().read(true).write(true).create_new(true).open(&path)?;
    let result = probe_file(&file, &path, file_system);
    std::fs::remove_file(&path)?;
    result
}

fn probe_file(file: &File, path: &Path, file_system: FileSystem) -> io::Result<DirectoryProbe> {
    let (memory_alignment, offset_alignment) =
        match statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN) {
            Ok(answer) if answer.stx_mask & StatxFlags::DIOALIGN.bits() != 0 => {
                (answer.stx_dio_mem_align, answer.stx_dio_offset_align)
            }
            _ => (0, 0),
        };
    let direct = try_direct_write(path).unwrap_or(false);
    Ok(DirectoryProbe { file_system, direct, memory_alignment, offset_alignment })
}

fn try_direct_write(path: &Path) -> io::Result<bool> {
    let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::DIRECT;
    let file = rustix::fs::open(path, flags, rustix::fs::Mode::empty())?;
    let block = BufferMut::allocate(BLOCK_BYTES);
    Ok(rustix::io::pwrite(&file, &block, 0)? == BLOCK_BYTES)
}

/// Switches copy-on-write off for files that are created in a btrfs directory from now on.
pub(crate) fn set_no_copy_on_write(directory: &Path) -> io::Result<()> {
    let directory = File::open(directory)?;
    let flags = ioctl_getflags(&directory)?;
    if !flags.contains(IFlags::NOCOW) {
        ioctl_setflags(&directory, flags | IFlags::NOCOW)?;
    }
    Ok(())
}

/// Bytes left for this process on the file system of `path`.
///
/// # Errors
/// What statvfs says.
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    let answer = rustix::fs::statvfs(path)?;
    Ok(answer.f_bavail * answer.f_frsize)
}
