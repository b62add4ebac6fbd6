//! A directory as an offline tool holds it: its identity from whatever still tells it, its lock
//! when that is wanted, and its shards' folders read-only.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::config::Options;
use crate::directory::{
    Directory, ENGINE_FILE, corrupt, is_used, lock, segment_files, shard_folders, shard_name,
};
use crate::disk::BLOCK_BYTES;
use crate::disk::blocking::{BlockingDisk, BlockingOptions};
use crate::error::OpenError;
use crate::format::{DATA_START, EngineHeader, FormatError, JournalEnd, SegmentHeader};
use crate::opening::{Identity, Survey, survey};

/// How a directory is held meanwhile.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(super) enum Hold {
    /// Not at all: an engine may run in it.
    Not,
    /// Others may read.
    Shared,
    /// Nobody else may.
    Exclusive,
}

/// How long an engine that was just killed may keep the lock.
const LOCK_WAIT: Duration = Duration::from_secs(2);

/// See the module.
pub(super) struct Site {
    pub(super) directory: Directory,
    pub(super) header: EngineHeader,
    /// What is wrong with each of the two copies in the engine file.
    pub(super) copies: [Option<FormatError>; 2],
}

impl Site {
    /// Whether an engine's directory is there, whatever is wrong with it.
    pub(super) fn check(path: &Path) -> Result<(), OpenError> {
        Directory::check_path(path, true)?;
        let looks_like_one = path.join(ENGINE_FILE).is_file()
            || shard_folders(path).iter().any(|folder| is_used(folder));
        if looks_like_one { Ok(()) } else { Err(OpenError::Missing { directory: path.to_owned() }) }
    }

    pub(super) fn open(path: &Path, hold: Hold) -> Result<Self, OpenError> {
        Self::check(path)?;
        let lock = match hold {
            Hold::Not => None,
            Hold::Shared | Hold::Exclusive => {
                let options = Options::new().read_only(hold == Hold::Shared).lock_wait(LOCK_WAIT);
                lock(path, &options)?
            }
        };
        Self::read(path, lock)
    }

    /// The directory again, with what a repair has changed; the lock stays.
    pub(super) fn again(&self) -> Result<Self, OpenError> {
        Self::read(&self.directory.path, self.directory.lock())
    }

    fn read(path: &Path, lock: Option<Arc<OwnedFd>>) -> Result<Self, OpenError> {
        let bytes = match fs::read(path.join(ENGINE_FILE)) {
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::IsADirectory
                ) =>
            {
                Vec::new()
            }
            bytes => bytes.map_err(OpenError::io("read", path.join(ENGINE_FILE)))?,
        };
        let copies =
            [0, BLOCK_BYTES].map(|at| EngineHeader::verify(bytes.get(at..).unwrap_or(&[])));
        for copy in &copies {
            if let Err(error @ FormatError::Newer(..)) = copy {
                let (file, found) = (path.join(ENGINE_FILE), error.to_string());
                return Err(OpenError::NewerFormat { file, found });
            }
        }
        let valid = copies.iter().find_map(|copy| copy.as_ref().ok().copied());
        let header = valid.or_else(|| rebuilt_header(path)).ok_or_else(|| {
            let what = "the file that names the engine is damaged, and no segment tells its \
                        contents; restore it from a backup";
            corrupt(path, ENGINE_FILE, what)
        })?;
        let directory = Directory::held(path, lock, &header);
        Ok(Self { directory, header, copies: copies.map(Result::err) })
    }

    /// Whether an engine has the directory now.
    pub(super) fn is_in_use(path: &Path) -> bool {
        let options = Options::new().read_only(true).lock_wait(Duration::ZERO);
        matches!(lock(path, &options), Err(OpenError::InUse { .. }))
    }

    pub(super) fn identity(&self) -> Identity {
        self.directory.identity()
    }

    pub(super) fn shards(&self) -> std::ops::Range<u16> {
        0..self.directory.shards
    }

    /// Name of a shard's folder.
    pub(super) fn shard_name(shard: u16) -> String {
        shard_name(shard)
    }

    /// The shard's folder, read-only.
    pub(super) fn disk(&self, shard: u16) -> Result<BlockingDisk, OpenError> {
        let path = self.directory.shard_path(shard);
        if let Some(what) = self.directory.lost_shard(shard) {
            return Err(corrupt(&self.directory.path, &Self::shard_name(shard), what));
        }
        let options =
            BlockingOptions { pool_bytes: BLOCK_BYTES, slot_bytes: BLOCK_BYTES, read_only: true };
        BlockingDisk::open(&path, options).map_err(OpenError::io("open", path))
    }

    /// What recovery makes of a shard, on a disk of its own.
    pub(super) fn survey(
        &self,
        shard: u16,
        forced: Option<JournalEnd>,
        assumed: &HashMap<String, SegmentHeader>,
    ) -> Result<(BlockingDisk, Survey), OpenError> {
        let mut disk = self.disk(shard)?;
        let path = self.directory.shard_path(shard);
        let survey = survey(&mut disk, &path, shard, &self.identity(), forced, assumed)?;
        Ok((disk, survey))
    }
}

/// What the engine file said, from the headers of the segments; they must agree.
fn rebuilt_header(path: &Path) -> Option<EngineHeader> {
    let folders = shard_folders(path);
    let mut told = None;
    for file in folders.iter().flat_map(|folder| segment_files(folder)) {
        let mut blocks = vec![0; DATA_START as usize];
        let read = File::open(file).and_then(|mut file| file.read_exact(&mut blocks));
        let copies = blocks.chunks(BLOCK_BYTES).filter_map(|copy| SegmentHeader::verify(copy).ok());
        if let (Ok(()), Some(header)) = (read, copies.into_iter().next()) {
            let tells = (header.engine_id, header.segment_bytes.get());
            if *told.get_or_insert(tells) != tells {
                return None;
            }
        }
    }
    let (engine_id, segment_bytes) = told?;
    let header = EngineHeader::new(engine_id, folders.len() as u32, segment_bytes);
    header.check_geometry().ok().map(|()| header)
}
