//! What mends a finding without losing a record: bytes that another copy or the batches tell, and
//! files put back where they belong.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// See the module. Paths are relative to the engine's directory.
#[derive(Clone)]
pub(super) enum Remedy {
    /// Write these bytes at these offsets.
    Write { file: PathBuf, writes: Vec<(u64, Vec<u8>)>, what: &'static str },
    /// Give the file its length again, with zeros.
    Extend { file: PathBuf, from: u64, length: u64 },
    /// Give it the name that its header tells.
    Move { from: PathBuf, to: PathBuf },
    /// Move it to the backup.
    SetAside { file: PathBuf },
}

impl Remedy {
    /// In one line.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Write { file, what, .. } => format!("{}: {what}", file.display()),
            Self::Extend { file, from, length } => {
                format!("{}: extend it from {from} to {length} bytes with zeros", file.display())
            }
            Self::Move { from, to } => format!("{}: rename it to {}", from.display(), to.display()),
            Self::SetAside { file } => {
                format!("{}: move it to the backup, where it changes nothing", file.display())
            }
        }
    }

    /// Whether it changes a name, which must be the last thing done to a file.
    pub(super) fn renames(&self) -> bool {
        matches!(self, Self::Move { .. } | Self::SetAside { .. })
    }

    /// The file that changes.
    pub(super) fn file(&self) -> &Path {
        match self {
            Self::Write { file, .. } | Self::Extend { file, .. } | Self::SetAside { file } => file,
            Self::Move { from, .. } => from,
        }
    }

    /// Does it, durably.
    pub(super) fn apply(&self, directory: &Path, backup: &Path) -> io::Result<()> {
        let path = directory.join(self.file());
        match self {
            Self::Write { writes, .. } => {
                let file =
                    OpenOptions::new().write(true).create(true).truncate(false).open(&path)?;
                for (offset, bytes) in writes {
                    file.write_all_at(bytes, *offset)?;
                }
                file.sync_all()?;
            }
            Self::Extend { from, length, .. } => {
                let file = OpenOptions::new().write(true).open(&path)?;
                let zeros = vec![0; 1 << 20];
                let mut offset = *from;
                while offset < *length {
                    let bytes = (length - offset).min(zeros.len() as u64);
                    file.write_all_at(&zeros[..bytes as usize], offset)?;
                    offset += bytes;
                }
                file.sync_all()?;
            }
            Self::Move { to, .. } => rename(&path, &directory.join(to))?,
            Self::SetAside { file } if backup.join(file).exists() => fs::remove_file(&path)?,
            Self::SetAside { .. } => return Err(io::Error::other("the backup has no copy of it")),
        }
        sync_parent(&path)
    }
}

impl fmt::Debug for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.describe())
    }
}

fn rename(from: &Path, to: &Path) -> io::Result<()> {
    if to.exists() {
        let message = format!("{} exists", to.display());
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
    }
    fs::rename(from, to)?;
    sync_parent(to)
}

/// Makes the entry of a file durable.
pub(super) fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}
