//! What the block tests need of the kernel: a mount namespace of their own, loop devices, mounts,
//! and where the file system put a file's blocks.
//!
//! Everything made here is bound to the process: mounts live in its private namespace, and a loop
//! device detaches with its last user. However the process ends, nothing is left behind.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};

const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;
const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
const LOOP_FLAG_AUTOCLEAR: u32 = 4;
const BLKFLSBUF: libc::Ioctl = 0x1261;
const FS_IOC_FIEMAP: libc::Ioctl = 0xC020_660B;
const FIEMAP_EXTENTS_MAX: usize = 64;

/// The kernel's `struct loop_config`, with its `struct loop_info64` inside.
#[repr(C)]
struct LoopConfig {
    descriptor: u32,
    block_bytes: u32,
    info_head: [u64; 5],
    number: u32,
    encrypt: [u32; 2],
    flags: u32,
    names: [u8; 160],
    init: [u64; 2],
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<LoopConfig>() == 304);

/// The kernel's `struct fiemap_extent`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct FiemapExtent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved_wide: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

/// The kernel's `struct fiemap` with room for its extents.
#[repr(C)]
struct Fiemap {
    start: u64,
    length: u64,
    flags: u32,
    mapped_extents: u32,
    extent_count: u32,
    reserved: u32,
    extents: [FiemapExtent; FIEMAP_EXTENTS_MAX],
}

/// A place to mount things where nobody else sees them. It ends with the process.
#[derive(Debug)]
pub struct Private {
    root: PathBuf,
}

impl Private {
    /// Moves this thread, and those it starts, to a mount namespace of their own, with an empty
    /// tmpfs in it.
    ///
    /// # Errors
    /// Without root, or where namespaces are refused.
    pub fn enter() -> Result<Private> {
        if !rustix::process::geteuid().is_root() {
            bail!("mounting needs root");
        }
        leave_namespace()?;
        let candidates = ["/mnt", "/media", "/srv", "/run"];
        let root = candidates.iter().map(Path::new).find(|path| path.is_dir());
        let root = root.context("no directory to mount on: /mnt, /media, /srv, /run")?;
        rustix::mount::mount("tmpfs", root, "tmpfs", MountFlags::empty(), c"size=2g")
            .context("mounting a private tmpfs")?;
        Ok(Private { root: root.to_owned() })
    }

    /// A new directory in it.
    pub fn directory(&self, name: &str) -> Result<PathBuf> {
        let path = self.root.join(name);
        std::fs::create_dir_all(&path).with_context(|| format!("creating {}", path.display()))?;
        Ok(path)
    }
}

/// A copy of the mount namespace for this thread and those it starts.
pub fn leave_namespace() -> Result<()> {
    let flags = rustix::thread::UnshareFlags::NEWNS;
    // SAFETY: no descriptor table is unshared, which is what could break I/O safety.
    unsafe { rustix::thread::unshare_unsafe(flags) }.context("a mount namespace of its own")?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).context("making mounts private")
}

/// A network namespace of its own for this thread and those it starts, with nothing in it.
///
/// # Errors
/// Without root, or where namespaces are refused.
pub fn leave_network() -> Result<()> {
    let flags = rustix::thread::UnshareFlags::NEWNET;
    // SAFETY: no descriptor table is unshared, which is what could break I/O safety.
    unsafe { rustix::thread::unshare_unsafe(flags) }.context("a network namespace of its own")
}

/// A file in memory.
pub fn memory_file(bytes: u64) -> Result<File> {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let name = format!("ringwal-crash-{}-", std::process::id());
    let file = File::from(rustix::fs::memfd_create(name, flags)?);
    file.set_len(bytes)?;
    Ok(file)
}

/// A loop device over a file. It detaches when neither this nor a mount uses it any more.
#[derive(Debug)]
pub struct Loop {
    device: OwnedFd,
    path: PathBuf,
}

impl Loop {
    /// Attaches a free one, through the page cache (`direct-io=off`).
    ///
    /// # Errors
    /// Without loop devices.
    pub fn attach(file: &File) -> Result<Loop> {
        let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control");
        let control = control.context("/dev/loop-control")?;
        // Another process may be faster with the device that was free.
        for _ in 0..64 {
            // SAFETY: this request has no argument.
            let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
            if number < 0 {
                return Err(io::Error::last_os_error()).context("a free loop device");
            }
            let path = PathBuf::from(format!("/dev/loop{number}"));
            let device = OpenOptions::new().read(true).write(true).open(&path);
            let device = OwnedFd::from(device.with_context(|| path.display().to_string())?);
            let config = LoopConfig {
                descriptor: file.as_raw_fd() as u32,
                block_bytes: 0,
                info_head: [0; 5],
                number: 0,
                encrypt: [0; 2],
                flags: LOOP_FLAG_AUTOCLEAR,
                names: [0; 160],
                init: [0; 2],
                reserved: [0; 8],
            };
            // SAFETY: the kernel reads one `struct loop_config`, whose layout this is.
            if unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) } == 0 {
                return Ok(Loop { device, path });
            }
            let error = io::Error::last_os_error();
            if error.raw_os_error() != Some(libc::EBUSY) {
                return Err(error).with_context(|| format!("attaching {}", path.display()));
            }
        }
        bail!("no loop device stays free long enough")
    }

    /// Its name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Forgets what the kernel has cached of it: the file behind it is about to change.
    pub fn forget_cache(&self) -> Result<()> {
        // SAFETY: this request has no argument.
        if unsafe { libc::ioctl(self.device.as_fd().as_raw_fd(), BLKFLSBUF, 0) } != 0 {
            return Err(io::Error::last_os_error()).context("flushing a loop device");
        }
        Ok(())
    }
}

/// A mounted file system; unmounted when dropped.
#[derive(Debug)]
pub struct Mount {
    path: PathBuf,
}

impl Mount {
    /// Mounts a device.
    ///
    /// # Errors
    /// What mount(2) says.
    pub fn new(kind: &str, device: &Path, path: &Path, options: &str) -> Result<Mount> {
        let options = std::ffi::CString::new(options)?;
        let flags = MountFlags::NOATIME;
        rustix::mount::mount(device, path, kind, flags, options.as_c_str())
            .with_context(|| format!("mounting {kind} from {}", device.display()))?;
        Ok(Mount { path: path.to_owned() })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Unmounts it, with its error.
    pub fn unmount(self) -> Result<()> {
        let path = self.path.clone();
        std::mem::forget(self);
        // What a ring of this process still holds goes with its last reference.
        for _ in 0..200 {
            match rustix::mount::unmount(&path, UnmountFlags::empty()) {
                Err(rustix::io::Errno::BUSY) => {
                    std::thread::sleep(std::time::Duration::from_millis(5));
                }
                outcome => return outcome.context("unmounting"),
            }
        }
        let _ = rustix::mount::unmount(&path, UnmountFlags::DETACH);
        bail!("{} stays busy", path.display())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.path, UnmountFlags::DETACH);
    }
}

/// Makes a file system in a file.
///
/// # Errors
/// When mkfs is missing or refuses.
pub fn make_file_system(kind: &str, options: &[&str], image: &Path) -> Result<()> {
    let mut mkfs = Command::new(format!("mkfs.{kind}"));
    mkfs.args(options).arg(image);
    let output = mkfs.output().with_context(|| format!("mkfs.{kind}"))?;
    if !output.status.success() {
        bail!("mkfs.{kind}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Which bytes of its device a file has.
///
/// # Errors
/// Where the file system does not tell.
pub fn extents(file: &File) -> io::Result<Vec<Range<u64>>> {
    let mut map = Fiemap {
        start: 0,
        length: u64::MAX,
        flags: 0,
        mapped_extents: 0,
        extent_count: FIEMAP_EXTENTS_MAX as u32,
        reserved: 0,
        extents: [FiemapExtent::default(); FIEMAP_EXTENTS_MAX],
    };
    // SAFETY: the kernel reads the head and writes at most `extent_count` extents behind it.
    if unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FIEMAP, &raw mut map) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let mapped = &map.extents[..map.mapped_extents as usize];
    Ok(mapped.iter().map(|extent| extent.physical..extent.physical + extent.length).collect())
}

/// A descriptor of standard output that buffers nothing.
pub fn raw_stdout() -> io::Result<File> {
    // SAFETY: dup gives a new descriptor that nobody else knows.
    let descriptor = unsafe { libc::dup(libc::STDOUT_FILENO) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as above; it is owned by nobody.
    Ok(unsafe { File::from_raw_fd(descriptor) })
}
