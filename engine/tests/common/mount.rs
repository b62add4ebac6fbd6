//! File systems of a test's own, mounted where nobody else sees them: images in sparse files on
//! loop devices, and whatever else mount(8) knows.
//!
//! Each test's thread gets a mount namespace of its own, which its threads and children share. It
//! ends with the last of them, however they end, and its mounts and loop devices with it; dropping
//! a [`Mounted`] only is earlier.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::skipped::skipped;

/// A mounted file system and what it needs.
pub struct Mounted {
    path: PathBuf,
    _directory: tempfile::TempDir,
}

impl Mounted {
    /// Makes and mounts an image of `bytes` with `mkfs.<kind>`. `None`, having said why, where
    /// this machine cannot.
    pub fn image(kind: &str, bytes: u64, mkfs_options: &[&str]) -> Option<Self> {
        let directory = private_directory()?;
        let image = directory.path().join("image");
        File::create_new(&image).and_then(|file| file.set_len(bytes)).unwrap();
        let mut mkfs = Command::new(format!("mkfs.{kind}"));
        attempt(mkfs.args(mkfs_options).arg(&image))?;
        let path = directory.path().join("mounted");
        std::fs::create_dir(&path).unwrap();
        // `-o loop` lets the kernel detach the device with the last mount of it.
        attempt(Command::new("mount").args(["-t", kind, "-o", "loop"]).arg(&image).arg(&path))?;
        Some(Self { path, _directory: directory })
    }

    /// Mounts a file system without a device; `options` is given the test's own directory.
    #[allow(dead_code, reason = "not every test needs one")]
    pub fn virtual_one(kind: &str, options: impl FnOnce(&Path) -> String) -> Option<Self> {
        let directory = private_directory()?;
        let path = directory.path().join("mounted");
        std::fs::create_dir(&path).unwrap();
        let options = options(directory.path());
        attempt(Command::new("mount").args(["-t", kind, "-o", &options, kind]).arg(&path))?;
        Some(Self { path, _directory: directory })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // A child that was killed may hold on to it for a moment; lazily, it goes with that.
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}

/// A new directory, in a namespace whose mounts nobody else sees.
fn private_directory() -> Option<tempfile::TempDir> {
    if !rustix::process::geteuid().is_root() {
        skipped("mounting needs root");
        return None;
    }
    // SAFETY: no memory is involved; only this thread and those it starts are moved.
    if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
        skipped(&format!("no mount namespace: {}", std::io::Error::last_os_error()));
        return None;
    }
    attempt(Command::new("mount").args(["--make-rprivate", "/"]))?;
    Some(tempfile::tempdir().unwrap())
}

fn attempt(command: &mut Command) -> Option<()> {
    let refused = match command.output() {
        Ok(output) if output.status.success() => return Some(()),
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(error) => error.to_string(),
    };
    skipped(&format!("{command:?}: {refused}"));
    None
}
