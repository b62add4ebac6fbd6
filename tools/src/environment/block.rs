//! The block device under a directory, as /sys and /proc/diskstats describe it.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::mount::FileSystem;
use super::read_line;

/// A block device.
#[derive(Debug, Clone, Default)]
pub struct Device {
    /// "vda1", "nvme0n1p2", "dm-0".
    pub name: String,
    /// The whole disk that it is a part of; the device itself when it is whole.
    pub disk: String,
    /// Model name, where the device tells.
    pub model: String,
    /// Whether it spins.
    pub rotational: Option<bool>,
    /// "write back" or "write through".
    pub write_cache: String,
    /// Whether it takes forced-unit-access writes.
    pub fua: Option<bool>,
    /// The active I/O scheduler.
    pub scheduler: String,
    /// Names of the devices below it: those of a RAID, or the disk under device mapper.
    pub below: Vec<String>,
}

/// The device under `directory`; `None` for file systems without one (tmpfs, nfs, an overlay whose
/// upper directory cannot be seen).
pub fn device_of(directory: &Path, file_system: &FileSystem) -> Option<Device> {
    let directory = file_system.upper.as_ref().map_or(directory, |upper| &upper.directory);
    let number = std::fs::metadata(directory).ok()?.dev();
    device_by_number(rustix::fs::major(number), rustix::fs::minor(number))
        .or_else(|| device_by_source(&file_system.source))
}

/// btrfs and some others answer stat(2) with a number of their own.
fn device_by_source(source: &str) -> Option<Device> {
    let path = Path::new(source).strip_prefix("/dev").ok().map(|_| Path::new(source))?;
    let number = std::fs::metadata(path).ok()?.rdev();
    device_by_number(rustix::fs::major(number), rustix::fs::minor(number))
}

fn device_by_number(major: u32, minor: u32) -> Option<Device> {
    let path = std::fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).ok()?;
    let name = path.file_name()?.to_str()?.to_owned();
    let disk: PathBuf =
        if path.join("partition").exists() { path.parent()?.to_path_buf() } else { path };
    let queue = disk.join("queue");
    let flag = |name: &str| read_line(queue.join(name)).map(|value| value == "1");
    let below = std::fs::read_dir(disk.join("slaves"))
        .map(|entries| {
            entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect()
        })
        .unwrap_or_default();
    Some(Device {
        name,
        disk: disk.file_name()?.to_str()?.to_owned(),
        model: read_line(disk.join("device/model"))
            .or_else(|| read_line(disk.join("dm/name")))
            .or_else(|| read_line(disk.join("loop/backing_file")))
            .unwrap_or_default(),
        rotational: flag("rotational"),
        write_cache: read_line(queue.join("write_cache")).unwrap_or_default(),
        fua: flag("fua"),
        scheduler: read_line(queue.join("scheduler"))
            .map(|line| active_scheduler(&line))
            .unwrap_or_default(),
        below,
    })
}

/// `none [mq-deadline] kyber` has its active one in brackets.
fn active_scheduler(line: &str) -> String {
    line.split_whitespace()
        .find_map(|name| name.strip_prefix('[')?.strip_suffix(']'))
        .unwrap_or(line)
        .to_owned()
}

/// Flush requests that a disk has completed since it was there; `None` where the kernel does not
/// count them.
pub fn flush_requests(disk: &str) -> Option<u64> {
    parse_flush_requests(&std::fs::read_to_string("/proc/diskstats").ok()?, disk)
}

fn parse_flush_requests(diskstats: &str, disk: &str) -> Option<u64> {
    // Major, minor and name come first; "flush requests completed" is the 16th number after.
    const FIELD: usize = 3 + 15;
    diskstats
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .find(|fields| fields.get(2) == Some(&disk))
        .and_then(|fields| fields.get(FIELD)?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flushes_are_the_sixteenth_number() {
        let text = " 254       0 vda 40907 10125 5413530 38593 481971 9598 12967088 43693 0 43328 \
                    92941 8366 34 6393344 1295 225996 9359\n   7       0 loop0 0 0 0 0 0 0 0 0\n";
        assert_eq!(parse_flush_requests(text, "vda"), Some(225_996));
        assert_eq!(parse_flush_requests(text, "loop0"), None);
        assert_eq!(parse_flush_requests(text, "sda"), None);
    }

    #[test]
    fn the_active_scheduler_is_in_brackets() {
        assert_eq!(active_scheduler("none [mq-deadline] kyber bfq"), "mq-deadline");
        assert_eq!(active_scheduler("none"), "none");
    }
}
