//! Which file system holds a directory, and how it is mounted.

use std::io;
use std::path::{Path, PathBuf};

/// What the engine can expect of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileSystemKind {
    /// ext4 and xfs: what the engine is tested on.
    FirstClass,
    /// tmpfs and ramfs: nothing there survives the machine.
    Memory,
    /// Copy-on-write (btrfs, bcachefs, zfs): an overwrite can need space.
    CopyOnWrite,
    /// overlayfs: another file system decides.
    Overlay,
    /// Somebody else's disk, which the engine refuses: nfs, cifs.
    Network,
    /// Another machine or process behind a file system of its own: 9p, virtiofs, fuse, …
    Remote,
    /// One that nobody has tried.
    Other,
}

/// The file system under a directory.
#[derive(Debug, Clone)]
pub struct FileSystem {
    /// "ext4", "tmpfs", …
    pub name: String,
    /// What kind it is.
    pub kind: FileSystemKind,
    /// Mount options and those of the file system itself, comma-separated.
    pub mount_options: String,
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// What is mounted: "/dev/vda1", "overlay", …
    pub source: String,
    /// Of an overlay: where its writes really go, when that can be seen.
    pub upper: Option<Upper>,
    /// Size of the file system.
    pub total_bytes: u64,
    /// What an unprivileged writer may still use.
    pub free_bytes: u64,
    /// Mounted read-only.
    pub read_only: bool,
}

/// The upper directory of an overlay.
#[derive(Debug, Clone)]
pub struct Upper {
    /// Its path.
    pub directory: PathBuf,
    /// The file system that it is on.
    pub file_system: String,
}

/// Names by the magic number of statfs(2), for where mountinfo is of no help.
const MAGIC: &[(u64, &str)] = &[
    (0xef53, "ext4"),
    (0x5846_5342, "xfs"),
    (0x0102_1994, "tmpfs"),
    (0x8584_58f6, "ramfs"),
    (0x9123_683e, "btrfs"),
    (0x794c_7630, "overlay"),
    (0x2fc1_2fc1, "zfs"),
    (0xca45_1a4e, "bcachefs"),
    (0xf2f5_2010, "f2fs"),
    (0x6969, "nfs"),
    (0xff53_4d42, "cifs"),
    (0xfe53_4d42, "smb2"),
    (0x0102_1997, "9p"),
    (0x6573_5546, "fuse"),
    (0x4d44, "vfat"),
    (0x2011_bab0, "exfat"),
];

/// The file system under `directory`, which exists.
pub fn file_system_of(directory: &Path) -> io::Result<FileSystem> {
    let statfs = rustix::fs::statfs(directory)?;
    let statvfs = rustix::fs::statvfs(directory)?;
    let magic = statfs.f_type as u64 & 0xffff_ffff;
    let by_magic = MAGIC.iter().find(|(number, _)| *number == magic).map(|(_, name)| *name);
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mount = find_mount(&text, directory);

    // ext2, ext3 and ext4 share a number; mountinfo tells them apart.
    let name = match (&mount, by_magic) {
        (Some(mount), _) => mount.file_system.clone(),
        (None, Some(name)) => name.to_owned(),
        (None, None) => format!("{magic:#x}"),
    };
    let upper = mount.as_ref().filter(|_| name == "overlay").and_then(|m| upper_of(&text, m));
    let mount = mount.unwrap_or_default();
    Ok(FileSystem {
        kind: kind_of(&name),
        mount_options: mount.options,
        mount_point: mount.mount_point,
        source: mount.source,
        upper,
        total_bytes: statvfs.f_blocks * statvfs.f_frsize,
        free_bytes: statvfs.f_bavail * statvfs.f_frsize,
        read_only: statvfs.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY),
        name,
    })
}

impl FileSystem {
    /// The mount option, if there is one, that keeps flushes from reaching the device.
    pub fn option_without_flushes(&self) -> Option<&str> {
        let options: &[&str] = match self.name.as_str() {
            "overlay" => &["volatile", "fsync=volatile"],
            _ => &["nobarrier", "barrier=0"],
        };
        self.mount_options.split(',').find(|option| options.contains(option))
    }
}

/// What the engine can expect of a file system of that name.
pub fn kind_of(name: &str) -> FileSystemKind {
    match name {
        "ext4" | "xfs" => FileSystemKind::FirstClass,
        "tmpfs" | "ramfs" | "rootfs" => FileSystemKind::Memory,
        "btrfs" | "bcachefs" | "zfs" => FileSystemKind::CopyOnWrite,
        "overlay" => FileSystemKind::Overlay,
        "nfs" | "nfs4" | "cifs" | "smb2" | "smb3" => FileSystemKind::Network,
        "9p" | "virtiofs" | "ceph" => FileSystemKind::Remote,
        name if name.starts_with("fuse") => FileSystemKind::Remote,
        _ => FileSystemKind::Other,
    }
}

/// One line of mountinfo.
#[derive(Debug, Clone, Default, PartialEq)]
struct Mount {
    mount_point: PathBuf,
    options: String,
    file_system: String,
    source: String,
}

/// The mount that `path` lies on: the last one, in order of mounting, with the longest mount
/// point above it.
fn find_mount(mountinfo: &str, path: &Path) -> Option<Mount> {
    mountinfo
        .lines()
        .filter_map(parse_mount)
        .filter(|mount| path.starts_with(&mount.mount_point))
        .max_by_key(|mount| mount.mount_point.components().count())
}

/// `36 35 98:0 /root /mount/point rw,noatime shared:1 - ext4 /dev/root rw,errors=continue`
fn parse_mount(line: &str) -> Option<Mount> {
    let (mount, file_system) = line.split_once(" - ")?;
    let mut mount = mount.split(' ').skip(4);
    let mount_point = PathBuf::from(unescape(mount.next()?));
    let mut options: Vec<&str> = mount.next()?.split(',').collect();
    let mut fields = file_system.split(' ');
    let name = fields.next()?.to_owned();
    let source = unescape(fields.next()?);
    for option in fields.next().unwrap_or_default().split(',') {
        if !options.contains(&option) && !option.is_empty() {
            options.push(option);
        }
    }
    Some(Mount { mount_point, options: options.join(","), file_system: name, source })
}

/// Spaces and other awkward characters are written as three octal digits.
fn unescape(field: &str) -> String {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let octal = tail.get(..3).and_then(|d| std::str::from_utf8(d).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if first == b'\\' => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            _ => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn upper_of(mountinfo: &str, overlay: &Mount) -> Option<Upper> {
    let upper = overlay.options.split(',').find_map(|option| option.strip_prefix("upperdir="))?;
    // Inside a container that path belongs to the host: it says nothing here.
    std::fs::metadata(upper).ok()?;
    let directory = PathBuf::from(upper);
    let file_system = find_mount(mountinfo, &directory)?.file_system;
    Some(Upper { directory, file_system })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTINFO: &str = "\
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
30 27 0:25 / /dev/shm rw,relatime - tmpfs tmpfs rw,size=24684096k
41 27 7:0 / /mnt/with\\040space rw,noatime shared:1 - xfs /dev/loop0 rw,attr2
42 41 0:50 / /mnt/with\\040space/o rw - overlay overlay rw,lowerdir=/l,upperdir=/mnt/with\\040space/u
";

    #[test]
    fn the_deepest_mount_holds_the_path() {
        let root = find_mount(MOUNTINFO, Path::new("/var/data")).unwrap();
        assert_eq!((root.file_system.as_str(), root.source.as_str()), ("ext4", "/dev/vda"));
        assert_eq!(root.options, "rw,relatime,discard");
        let shm = find_mount(MOUNTINFO, Path::new("/dev/shm/x")).unwrap();
        assert_eq!(shm.file_system, "tmpfs");
        let xfs = find_mount(MOUNTINFO, Path::new("/mnt/with space/d")).unwrap();
        assert_eq!((xfs.file_system.as_str(), xfs.options.as_str()), ("xfs", "rw,noatime,attr2"));
        let overlay = find_mount(MOUNTINFO, Path::new("/mnt/with space/o/p")).unwrap();
        assert_eq!(overlay.file_system, "overlay");
        // A name that only begins like the mount point is not below it.
        assert_eq!(find_mount(MOUNTINFO, Path::new("/dev/shmoo")).unwrap().file_system, "ext4");
    }

    #[test]
    fn kinds_follow_names() {
        assert_eq!(kind_of("ext4"), FileSystemKind::FirstClass);
        assert_eq!(kind_of("fuse.sshfs"), FileSystemKind::Remote);
        assert_eq!(kind_of("ext2"), FileSystemKind::Other);
    }

    #[test]
    fn shared_memory_is_tmpfs() {
        let found = file_system_of(Path::new("/dev/shm")).unwrap();
        assert_eq!((found.name.as_str(), found.kind), ("tmpfs", FileSystemKind::Memory));
        assert!(found.total_bytes >= found.free_bytes);
    }
}
