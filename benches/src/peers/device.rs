//! The block device below a directory, and the flushes that it has counted.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// A whole disk.
#[derive(Debug, Clone, Default)]
pub struct Device {
    /// "vda", "nvme0n1"; empty where there is none to be seen.
    pub disk: String,
    /// "write back" or "write through".
    pub write_cache: String,
    /// Whether it takes forced-unit-access writes, which are no flushes.
    pub fua: bool,
}

impl Device {
    /// The disk below `directory`.
    pub fn of(directory: &Path) -> Device {
        disk_of(directory).and_then(|path| read(&path)).unwrap_or_default()
    }

    /// Flush requests that it has completed, where the number says something: a disk without a volatile cache
    /// is sent none, and one with forced unit access fewer than are asked for.
    pub fn flushes(&self) -> Option<u64> {
        if self.fua || self.write_cache != "write back" {
            return None;
        }
        flushes_in(&std::fs::read_to_string("/proc/diskstats").ok()?, &self.disk)
    }
}

fn disk_of(directory: &Path) -> Option<PathBuf> {
    let number = std::fs::metadata(directory).ok()?.dev();
    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
    let path = std::fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).ok()?;
    match path.join("partition").exists() {
        true => path.parent().map(Path::to_path_buf),
        false => Some(path),
    }
}

fn read(disk: &Path) -> Option<Device> {
    let line = |name: &str| {
        let text = std::fs::read_to_string(disk.join("queue").join(name)).unwrap_or_default();
        text.trim().to_owned()
    };
    Some(Device {
        disk: disk.file_name()?.to_str()?.to_owned(),
        write_cache: line("write_cache"),
        fua: line("fua") == "1",
    })
}

/// Major, minor and name come first; the 16th number after them counts flushes.
fn flushes_in(diskstats: &str, disk: &str) -> Option<u64> {
    let mut lines = diskstats.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    lines.find(|fields| fields.get(2) == Some(&disk))?.get(3 + 15)?.parse().ok()
}
