//! The directory that is measured in: made, kept or removed, with room for what is measured
//! beside the main engine.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::settings::Settings;
use crate::environment::Surroundings;
use crate::exit::Failure;

/// Free space without which nothing is begun: the probe's file and the segments of one shard.
const FREE_BYTES_MIN: u64 = 768 << 20;

/// Why nothing can be measured in that directory.
pub fn unusable(path: &Path, error: &io::Error) -> Failure {
    Failure::environment(format!("cannot use {} for data", path.display()))
        .cause(error.to_string())
        .fix("--dir DIR with a directory that can be written to")
}

/// The data directory. Dropping it removes what was made only for this measurement.
#[derive(Debug)]
pub struct DataDirectory {
    path: PathBuf,
    /// Made for this measurement only.
    temporary: bool,
}

impl DataDirectory {
    /// Where `settings` want it; nothing is created yet.
    pub fn place(settings: &Settings) -> PathBuf {
        settings
            .directory
            .clone()
            .unwrap_or_else(|| PathBuf::from(format!("ringwal-data-{}", std::process::id())))
    }

    /// Creates it where it is not there yet.
    pub fn create(settings: &Settings, surroundings: &Surroundings) -> Result<DataDirectory> {
        let path = DataDirectory::place(settings);
        let free_bytes = surroundings.file_system.free_bytes;
        if free_bytes < FREE_BYTES_MIN {
            let there = surroundings.file_system.mount_point.display();
            return Err(Failure::environment(format!("not enough space in {}", path.display()))
                .cause(format!(
                    "{} MiB are free on {there}, {} MiB are needed",
                    free_bytes >> 20,
                    FREE_BYTES_MIN >> 20
                ))
                .fix("free space")
                .fix("--dir DIR on another file system")
                .into());
        }
        std::fs::create_dir_all(&path).map_err(|error| unusable(&path, &error))?;
        let temporary = settings.directory.is_none() && !settings.keep;
        Ok(DataDirectory { path, temporary })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it stays when the program ends.
    pub fn is_kept(&self) -> bool {
        !self.temporary
    }

    /// A directory below it for a run that needs its own; it is removed when that run is over.
    pub fn side(&self, name: &str) -> SideDirectory {
        SideDirectory(self.path.join(format!("bench-{name}-{}", std::process::id())))
    }
}

impl Drop for DataDirectory {
    fn drop(&mut self) {
        if self.temporary {
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

/// A directory of one run, on the same file system as the data directory. The engine there does
/// not mind: it looks at files only.
#[derive(Debug)]
pub struct SideDirectory(PathBuf);

impl SideDirectory {
    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Removes what is in it, and itself.
    pub fn clear(&self) -> Result<()> {
        match std::fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("removing {}", self.0.display()))
            }
            _ => Ok(()),
        }
    }
}

impl Drop for SideDirectory {
    fn drop(&mut self) {
        let _ = self.clear();
    }
}
