//! Where a measurement takes place: kernel, processor, file system, device, limits.
//! Facts only; judging them is `doctor`'s and the warnings' affair.

mod block;
mod direct;
mod host;
mod mount;
mod ring;

use std::io;
use std::path::{Path, PathBuf};

pub use block::{Device, flush_requests};
pub use direct::{DirectIo, scratch_file};
pub use host::{Host, Seccomp};
pub use mount::{FileSystem, FileSystemKind};
pub use ring::{DEFER_TASKRUN, Ring, RingError, SINGLE_ISSUER, WRITE_FIXED};

use crate::report::model;

/// What was found out about one directory and the machine around it.
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// The directory that was looked at, absolute; the nearest existing parent of the one asked
    /// for.
    pub directory: PathBuf,
    /// Kernel, processors, memory, limits.
    pub host: Host,
    /// The file system under the directory.
    pub file_system: FileSystem,
    /// The block device under that, where there is one.
    pub device: Option<Device>,
    /// What direct I/O there needs, tried with a real write.
    pub direct: DirectIo,
    /// The kernel's io_uring.
    pub ring: Ring,
}

/// Looks at `directory`, which need not exist yet.
pub fn look(directory: &Path) -> io::Result<Surroundings> {
    let directory = nearest_existing(directory)?;
    let file_system = mount::file_system_of(&directory)?;
    Ok(Surroundings {
        host: host::look(),
        device: block::device_of(&directory, &file_system),
        direct: direct::try_in(&directory),
        ring: ring::look(),
        file_system,
        directory,
    })
}

/// The directory itself, or the closest parent that exists, absolute.
pub fn nearest_existing(directory: &Path) -> io::Result<PathBuf> {
    let absolute = std::path::absolute(directory)?;
    let mut candidate = absolute.as_path();
    loop {
        match std::fs::metadata(candidate) {
            Ok(metadata) if metadata.is_dir() => return candidate.canonicalize(),
            Ok(_) => return Err(io::Error::from(io::ErrorKind::NotADirectory)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        match candidate.parent() {
            Some(parent) => candidate = parent,
            None => return Err(io::Error::from(io::ErrorKind::NotFound)),
        }
    }
}

impl Surroundings {
    /// As `report.json` holds it.
    pub fn to_model(&self, directory: &Path, io: &str, sync: &str) -> model::Environment {
        let device = self.device.clone().unwrap_or_default();
        model::Environment {
            kernel: self.host.kernel.clone(),
            cpu: self.host.cpu.clone(),
            cpus: self.host.cpus,
            memory_bytes: self.host.memory_bytes,
            virtualization: self.host.virtualization.clone(),
            directory: directory.display().to_string(),
            file_system: self.file_system.name.clone(),
            mount_options: self.file_system.mount_options.clone(),
            device: device.name,
            device_model: device.model,
            rotational: device.rotational,
            write_cache: device.write_cache,
            fua: device.fua,
            scheduler: device.scheduler,
            direct_io_alignment: model::DirectIoAlignment {
                memory_bytes: self.direct.memory_alignment,
                offset_bytes: self.direct.offset_alignment,
            },
            ring_features: self.ring.features.iter().map(|&name| name.to_owned()).collect(),
            memlock_bytes: self.host.memlock.bytes,
            load: self.host.load,
            clock_source: self.host.clock_source.clone(),
            build: if cfg!(debug_assertions) { "debug" } else { "release" }.to_owned(),
            compiler: format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
            io: io.to_owned(),
            sync: sync.to_owned(),
        }
    }
}

/// A one-line file of the kernel, trimmed; `None` where it is missing or empty.
fn read_line(path: impl AsRef<Path>) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().next()?.trim();
    (!line.is_empty()).then(|| line.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_does_not_exist_yet_is_judged_by_its_parent() {
        let parent = tempfile::tempdir().unwrap();
        let asked = parent.path().join("not/yet/there");
        assert_eq!(nearest_existing(&asked).unwrap(), parent.path().canonicalize().unwrap());
        let file = parent.path().join("file");
        std::fs::write(&file, b"").unwrap();
        assert!(nearest_existing(&file).is_err());
        assert!(nearest_existing(&file.join("below")).is_err());
    }

    #[test]
    fn looking_leaves_nothing_behind() {
        let directory = tempfile::tempdir().unwrap();
        let found = look(directory.path()).unwrap();
        assert!(!found.host.kernel.is_empty());
        assert!(!found.file_system.name.is_empty());
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
