//! The engine's directory: its lock, its identity, and what its file system can do.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::config::{Options, SEGMENT_BYTES_DEFAULT};
use crate::disk::BLOCK_BYTES;
use crate::engine_wide::EngineWide;
use crate::environment::{FileSystem, set_no_copy_on_write};
use crate::error::OpenError;
use crate::format::{EngineHeader, EngineId, FormatError};
use crate::mutants::{self, Mutant};
use crate::opening::{ANCHOR, Identity};
use crate::recovery::{Corruption, Damage};
use crate::segments::segment_number;

pub(crate) const ENGINE_FILE: &str = "engine";
const LOCK_FILE: &str = "lock";
/// Time between two looks at a lock that another process holds.
const LOCK_POLL: Duration = Duration::from_millis(2);

/// An engine's directory, locked.
pub(crate) struct Directory {
    pub(crate) path: PathBuf,
    /// Shared with every ring, so that the lock outlives the I/O of a killed process. A directory
    /// that cannot be written is read without a lock.
    lock: Mutex<Option<Arc<OwnedFd>>>,
    pub(crate) engine_id: EngineId,
    pub(crate) shards: u16,
    pub(crate) segment_bytes: u64,
    /// In no file: see [`EngineWide`].
    engine_wide: Arc<EngineWide>,
}

impl Directory {
    /// Opens it, or makes it when it is new and may be.
    pub(crate) fn open(path: &Path, options: &Options) -> Result<Self, OpenError> {
        Self::check_path(path, options.read_only)?;
        let lock = lock(path, options)?;
        let header = match fs::read(path.join(ENGINE_FILE)) {
            Ok(bytes) => Self::verify(path, &bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if options.read_only {
                    return Err(OpenError::Missing { directory: path.to_owned() });
                }
                if shard_folders(path).iter().any(|folder| is_used(folder)) {
                    let what = "the file that names the engine is missing, and shards were used";
                    return Err(corrupt(path, ENGINE_FILE, what));
                }
                Self::create(path, options)?
            }
            // A folder of that name: a source tree, perhaps.
            Err(error) if error.kind() == io::ErrorKind::IsADirectory && options.read_only => {
                return Err(OpenError::Missing { directory: path.to_owned() });
            }
            Err(error) => return Err(OpenError::io("read", path.join(ENGINE_FILE))(error)),
        };
        let directory = Self::held(path, lock, &header);
        directory.check_geometry(options)?;
        directory.check_shards(options)?;
        Ok(directory)
    }

    /// One whose lock and identity the caller has.
    pub(crate) fn held(path: &Path, lock: Option<Arc<OwnedFd>>, header: &EngineHeader) -> Self {
        Self {
            path: path.to_owned(),
            lock: Mutex::new(lock),
            engine_id: header.engine_id,
            shards: header.shards.get() as u16,
            segment_bytes: header.segment_bytes.get(),
            engine_wide: Arc::default(),
        }
    }

    /// What its shards are opened with.
    pub(crate) fn identity(&self) -> Identity {
        Identity {
            engine_id: self.engine_id,
            segment_bytes: self.segment_bytes,
            engine_wide: self.engine_wide.clone(),
        }
    }

    pub(crate) fn check_path(path: &Path, read_only: bool) -> Result<(), OpenError> {
        match fs::metadata(path) {
            Ok(metadata) if !metadata.is_dir() => {
                Err(OpenError::NotADirectory { directory: path.to_owned() })
            }
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound && !read_only => {
                let new: Vec<_> = path.ancestors().take_while(|path| !path.exists()).collect();
                fs::create_dir_all(path).map_err(OpenError::io("create", path))?;
                new.iter().try_for_each(|path| sync_directory(path.parent().unwrap_or(path)))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(OpenError::Missing { directory: path.to_owned() })
            }
            Err(error) => Err(OpenError::io("open", path)(error)),
        }
    }

    fn verify(path: &Path, bytes: &[u8]) -> Result<EngineHeader, OpenError> {
        let file = path.join(ENGINE_FILE);
        let copies = bytes.chunks(BLOCK_BYTES).map(EngineHeader::verify);
        let mut problem = FormatError::Short;
        for copy in copies {
            match copy {
                Ok(header) => return Ok(header),
                Err(error @ FormatError::Newer(..)) => {
                    return Err(OpenError::NewerFormat { file, found: error.to_string() });
                }
                Err(error) => problem = error,
            }
        }
        Err(OpenError::Corrupt(Box::new(Corruption {
            directory: path.to_owned(),
            damages: vec![Damage {
                file: ENGINE_FILE.into(),
                bytes: 0..bytes.len() as u64,
                what: format!("the file that names the engine is damaged ({problem})"),
            }],
            missing: Vec::new(),
        })))
    }

    /// Makes the folders of all shards, each with a blank anchor, and when they are durable the
    /// file that names the engine: aside, synced, renamed, the directory synced. So a folder or an
    /// anchor that is missing beside that file was there before.
    fn create(path: &Path, options: &Options) -> Result<EngineHeader, OpenError> {
        check_file_system(path)?;
        let segment_bytes = options.segment_bytes.unwrap_or(SEGMENT_BYTES_DEFAULT);
        let shards = u32::from(options.shards.unwrap_or(1));
        make_folders(path, shards as u16)?;
        let engine_id = random_id().map_err(OpenError::io("read", "/dev/urandom"))?;
        let header = EngineHeader::new(engine_id, shards, segment_bytes);
        let mut blocks = vec![0; 2 * BLOCK_BYTES];
        let (first, second) = blocks.split_at_mut(BLOCK_BYTES);
        header.write(first);
        header.write(second);
        let (aside, file) = (path.join("engine.new"), path.join(ENGINE_FILE));
        let written = File::create(&aside)
            .and_then(|mut file| file.write_all(&blocks).and_then(|()| file.sync_all()))
            .and_then(|()| fs::rename(&aside, &file));
        written.map_err(OpenError::io("write", &file))?;
        sync_directory(path)?;
        Ok(header)
    }

    fn check_geometry(&self, options: &Options) -> Result<(), OpenError> {
        let checks = [
            ("shards", u64::from(self.shards), options.shards.map(u64::from)),
            ("segment_bytes", self.segment_bytes, options.segment_bytes),
        ];
        for (option, stored, asked) in checks {
            if let Some(asked) = asked.filter(|asked| *asked != stored) {
                let directory = self.path.clone();
                return Err(OpenError::Geometry { directory, option, stored, asked });
            }
        }
        Ok(())
    }

    /// Refuses a directory that lacks a shard; sees to it that the others can be written to.
    fn check_shards(&self, options: &Options) -> Result<(), OpenError> {
        let lost = (0..self.shards).filter_map(|shard| Some((shard, self.lost_shard(shard)?)));
        let damages: Vec<_> = lost
            .map(|(shard, what)| Damage {
                file: shard_name(shard),
                bytes: 0..0,
                what: format!(
                    "{what}; restore it from a backup, or give the shard up with `ringwal repair \
                     --accept-data-loss-from {shard}:0:0`"
                ),
            })
            .collect();
        if !damages.is_empty() {
            let directory = self.path.clone();
            let corruption = Corruption { directory, damages, missing: Vec::new() };
            return Err(OpenError::Corrupt(Box::new(corruption)));
        }
        if options.read_only {
            return Ok(());
        }
        (0..self.shards).try_for_each(|shard| check_copy_on_write(&self.shard_path(shard)))?;
        // Whoever made it may have died before the last name was durable.
        sync_directory(&self.path)
    }

    /// What of a shard is missing that was there when the directory was finished.
    pub(crate) fn lost_shard(&self, shard: u16) -> Option<&'static str> {
        let path = self.shard_path(shard);
        if !path.is_dir() {
            return Some("the folder of this shard is missing, with every record in it");
        }
        let is_empty = !path.join(ANCHOR).exists() && segment_files(&path).is_empty();
        is_empty.then_some("the folder of this shard has neither an anchor nor segments any more")
    }

    /// The lock, for a ring to hold on to.
    pub(crate) fn lock(&self) -> Option<Arc<OwnedFd>> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Lets another process have the directory, as soon as no ring holds the lock.
    pub(crate) fn unlock(&self) {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Folder of one shard.
    pub(crate) fn shard_path(&self, shard: u16) -> PathBuf {
        self.path.join(shard_name(shard))
    }
}

/// Name of a shard's folder.
pub(crate) fn shard_name(shard: u16) -> String {
    format!("shard-{shard:02}")
}

/// The folders of a directory whose making may have been cut short before, with other options.
fn make_folders(path: &Path, shards: u16) -> Result<(), OpenError> {
    for surplus in shard_folders(path) {
        if (0..shards).any(|shard| path.join(shard_name(shard)) == surplus) {
            continue;
        }
        fs::remove_file(surplus.join(ANCHOR))
            .or_else(|error| match error.kind() {
                io::ErrorKind::NotFound => Ok(()),
                _ => Err(error),
            })
            .and_then(|()| fs::remove_dir(&surplus))
            .map_err(OpenError::io("remove", &surplus))?;
    }
    for shard in 0..shards {
        make_folder(&path.join(shard_name(shard)))?;
    }
    sync_directory(path)
}

/// The folder of a shard with a blank anchor, durable but for its own name.
pub(crate) fn make_folder(path: &Path) -> Result<(), OpenError> {
    match fs::create_dir(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(OpenError::io("create", path)(error)),
    }
    check_copy_on_write(path)?;
    let anchor = path.join(ANCHOR);
    File::create(&anchor)
        .and_then(|mut file| file.write_all(&[0; 2 * BLOCK_BYTES]).and_then(|()| file.sync_all()))
        .map_err(OpenError::io("write", &anchor))?;
    sync_directory(path)
}

fn check_copy_on_write(path: &Path) -> Result<(), OpenError> {
    if FileSystem::of(path).map_err(OpenError::io("statfs", path))? != FileSystem::Btrfs {
        return Ok(());
    }
    set_no_copy_on_write(path).map_err(|error| OpenError::FileSystem {
        directory: path.to_owned(),
        file_system: "btrfs".into(),
        message: format!(
            "copy-on-write cannot be switched off ({error}); overwriting could run out of space; \
             use ext4 or xfs"
        ),
    })
}

/// Whether a shard was ever opened: creation leaves no segment, and an anchor of zeros.
pub(crate) fn is_used(folder: &Path) -> bool {
    let is_blank =
        |anchor: io::Result<Vec<u8>>| anchor.map_or(true, |bytes| bytes.iter().all(|b| *b == 0));
    !segment_files(folder).is_empty() || !is_blank(fs::read(folder.join(ANCHOR)))
}

/// Refuses what cannot work at all; what makes nothing durable is for the caller to report.
fn check_file_system(path: &Path) -> Result<(), OpenError> {
    let file_system = FileSystem::of(path).map_err(OpenError::io("statfs", path))?;
    if let FileSystem::Network(name) = &file_system {
        return Err(OpenError::FileSystem {
            directory: path.to_owned(),
            file_system: name.clone(),
            message: "a network file system promises neither direct I/O nor durability here; use \
                      a local ext4 or xfs"
                .into(),
        });
    }
    Ok(())
}

/// Folders of shards, in order.
pub(crate) fn shard_folders(path: &Path) -> Vec<PathBuf> {
    (0..=u16::from(u8::MAX))
        .map(|shard| path.join(shard_name(shard)))
        .filter(|folder| folder.is_dir())
        .collect()
}

/// Files of a shard's folder that are named like segments.
pub(crate) fn segment_files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().to_str().and_then(segment_number).is_some())
        .map(|entry| entry.path())
        .collect()
}

/// Damage to what the directory itself holds.
pub(crate) fn corrupt(path: &Path, file: &str, what: &str) -> OpenError {
    OpenError::Corrupt(Box::new(Corruption {
        directory: path.to_owned(),
        damages: vec![Damage { file: file.to_owned(), bytes: 0..0, what: what.to_owned() }],
        missing: Vec::new(),
    }))
}

pub(crate) fn sync_directory(path: &Path) -> Result<(), OpenError> {
    if mutants::is(Mutant::NoDirectorySync) {
        return Ok(());
    }
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    #[cfg(test)]
    tests::note_synced(path);
    File::open(path).and_then(|directory| directory.sync_all()).map_err(OpenError::io("sync", path))
}

fn random_id() -> io::Result<EngineId> {
    let mut id = EngineId::default();
    File::open("/dev/urandom")?.read_exact(&mut id)?;
    Ok(id)
}

/// Takes the lock (I-6): an OFD lock, exclusive for writing, shared for reading.
pub(crate) fn lock(path: &Path, options: &Options) -> Result<Option<Arc<OwnedFd>>, OpenError> {
    let file_path = path.join(LOCK_FILE);
    let opened = if options.read_only {
        match OpenOptions::new().read(true).open(&file_path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(OpenError::io("open", file_path)(error)),
        }
    } else {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&file_path)
            .map_err(OpenError::io("open", &file_path))?
    };
    let began = Instant::now();
    while let Err(error) = crate::disk::lock::lock_file(opened.as_fd(), !options.read_only) {
        if error.kind() != io::ErrorKind::WouldBlock {
            return Err(OpenError::io("lock", file_path)(error));
        }
        if began.elapsed() >= options.lock_wait {
            return Err(OpenError::InUse {
                directory: path.to_owned(),
                holder_id: read_holder(&opened),
                waited: options.lock_wait,
            });
        }
        // The kernel has no lock with a deadline; this wait ends with a killed process's I/O.
        std::thread::sleep(LOCK_POLL);
    }
    if !options.read_only {
        // It only serves another's error message, and must not need space on a full disk.
        let _ = write_holder(&opened);
    }
    Ok(Some(Arc::new(opened.into())))
}

/// The lock's holder leaves its process id in the file, for the other's error message.
fn write_holder(mut file: &File) -> io::Result<()> {
    file.set_len(0)?;
    file.write_all(std::process::id().to_string().as_bytes())
}

fn read_holder(mut file: &File) -> Option<u32> {
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    thread_local! {
        /// What this thread has synced. No test can cut the power of a real directory.
        static SYNCED: RefCell<Vec<PathBuf>> = const { RefCell::new(Vec::new()) };
    }

    pub(super) fn note_synced(path: &Path) {
        SYNCED.with_borrow_mut(|synced| synced.push(path.to_owned()));
    }

    #[test]
    fn every_directory_that_got_an_entry_is_synced() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a/b/c");
        let options = Options::default().shards(2);
        drop(Directory::open(&path, &options).unwrap());
        let synced = SYNCED.take();
        for parent in [root.path(), &root.path().join("a"), &root.path().join("a/b"), &path] {
            assert!(synced.iter().any(|other| other == parent), "{parent:?} not in {synced:?}");
        }
        // Its folders were there already, but the open that made them may have died before it
        // had synced them.
        drop(Directory::open(&path, &options).unwrap());
        assert_eq!(SYNCED.take(), std::slice::from_ref(&path));
        drop(Directory::open(&path, &options.read_only(true)).unwrap());
        assert_eq!(SYNCED.take(), [] as [PathBuf; 0]);
    }

    fn names(path: &Path) -> Vec<String> {
        let entries = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<_> = entries.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_making_that_was_cut_short_is_completed() {
        let cut_short: [fn(&Path); 5] = [
            |_| {},
            |path| fs::create_dir(path.join("shard-00")).unwrap(),
            |path| {
                make_folders(path, 3).unwrap();
                fs::remove_file(path.join("shard-02/anchor")).unwrap();
            },
            |path| {
                make_folders(path, 2).unwrap();
                fs::write(path.join("shard-01/anchor"), [0; 100]).unwrap();
            },
            |path| {
                make_folders(path, 2).unwrap();
                fs::write(path.join("engine.new"), b"RWENG").unwrap();
            },
        ];
        for make in cut_short {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path();
            make(path);
            drop(Directory::open(path, &Options::new().shards(2)).unwrap());
            assert_eq!(names(path), ["engine", "lock", "shard-00", "shard-01"]);
            for shard in ["shard-00", "shard-01"] {
                let anchor = fs::read(path.join(shard).join(ANCHOR)).unwrap();
                assert_eq!(anchor, [0; 2 * BLOCK_BYTES]);
            }
            drop(Directory::open(path, &Options::new()).unwrap());
        }
    }

    #[test]
    fn a_finished_directory_without_a_shard_is_damaged() {
        let lose: [fn(&Path); 2] = [
            |shard| fs::remove_dir_all(shard).unwrap(),
            |shard| fs::remove_file(shard.join(ANCHOR)).unwrap(),
        ];
        for lose in lose {
            for read_only in [false, true] {
                let directory = tempfile::tempdir().unwrap();
                let path = directory.path();
                drop(Directory::open(path, &Options::new().shards(2)).unwrap());
                lose(&path.join("shard-01"));
                let before = names(path);
                let options = Options::new().read_only(read_only);
                let refused = Directory::open(path, &options).err().unwrap();
                assert!(matches!(refused, OpenError::Corrupt(_)), "{refused}");
                let text = refused.to_string();
                assert!(text.contains("shard-01: ") && text.contains("from 1:0:0"), "{text}");
                assert_eq!(names(path), before);
            }
        }
        // An anchor with contents, and no file that names the engine.
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        make_folders(path, 1).unwrap();
        fs::write(path.join("shard-00/anchor"), [1; 8192]).unwrap();
        let refused = Directory::open(path, &Options::new()).err().unwrap();
        assert!(matches!(refused, OpenError::Corrupt(_)), "{refused}");
        assert_eq!(fs::read(path.join("shard-00/anchor")).unwrap(), [1; 8192]);
    }

    #[test]
    fn an_engine_file_with_impossible_numbers_is_damage() {
        for (shards, segment_bytes) in [(0, 1 << 20), (65_537, 1 << 20), (1, 3), (1, u64::MAX)] {
            let directory = tempfile::tempdir().unwrap();
            let mut block = [0; BLOCK_BYTES];
            EngineHeader::new([1; 16], shards, segment_bytes).write(&mut block);
            fs::write(directory.path().join(ENGINE_FILE), block.repeat(2)).unwrap();
            let refused = Directory::open(directory.path(), &Options::new()).err().unwrap();
            assert!(matches!(refused, OpenError::Corrupt(_)), "{refused}");
            assert!(refused.to_string().contains(&format!("{shards} shards")), "{refused}");
            assert!(!directory.path().join("shard-00").exists());
        }
    }
}
