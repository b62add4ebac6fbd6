//! What a directory's file system is and has room for, asked of the kernel.

use std::fmt;
use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};

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
