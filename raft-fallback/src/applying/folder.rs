//! The snapshots of a node: files in a folder of the engine's directory.
//!
//! ```text
//! metadata-snapshots/
//!   END-EPOCH.snapshot   whole: it was synced before it got its name    END, EPOCH: 20 digits each
//!   END-EPOCH.writing    not whole, or nobody knows; the next writer removes it
//!   END-EPOCH.damaged    could not be read, and an older one was taken; kept to be looked at
//! ```
//!
//! What is in a file is in [`crate::snapshot`]. One thread writes at a time; others may read.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::snapshot::{self, SnapshotError};
use crate::state::State;

/// Name of the folder.
pub(super) const FOLDER: &str = "metadata-snapshots";
/// How many are kept.
const KEPT: usize = 2;
/// The records of one service, readable by its group, as the segments are.
const FILE_MODE: u32 = 0o640;
const FOLDER_MODE: u32 = 0o750;
const READ_BYTES: usize = 1 << 20;

/// Which state a snapshot holds. The greatest is the newest.
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash, Debug)]
pub struct SnapshotId {
    /// Everything below this offset is in it.
    pub end: u64,
    /// The epoch of its last record.
    pub epoch: u64,
}

impl SnapshotId {
    pub(super) fn of(state: &State) -> Self {
        Self { end: state.end(), epoch: state.epoch() }
    }

    fn name(self, kind: &str) -> String {
        format!("{:020}-{:020}.{kind}", self.end, self.epoch)
    }

    fn from_name(name: &str, kind: &str) -> Option<Self> {
        let (end, epoch) = name.strip_suffix(kind)?.strip_suffix('.')?.split_once('-')?;
        let id = Self { end: end.parse().ok()?, epoch: epoch.parse().ok()? };
        (id.name(kind) == name).then_some(id)
    }
}

const WHOLE: &str = "snapshot";
const WRITING: &str = "writing";
const DAMAGED: &str = "damaged";

/// Something went wrong with the files of snapshots.
#[derive(Debug, thiserror::Error)]
#[error("{what} {}: {source}", path.display())]
pub struct FolderError {
    /// What was being done.
    what: &'static str,
    /// To which path.
    path: PathBuf,
    /// What the file system said.
    source: io::Error,
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FolderError + use<> {
    let path = path.to_owned();
    move |source| FolderError { what, path, source }
}

/// A snapshot that is there as a whole, opened for somebody else: it can be read on when it is removed
/// meanwhile.
#[derive(Debug)]
pub struct SnapshotFile {
    id: SnapshotId,
    bytes: u64,
    file: File,
}

impl SnapshotFile {
    /// Which state it holds.
    pub fn id(&self) -> SnapshotId {
        self.id
    }

    /// Its length in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// A piece of it, shorter at its end. Nothing is checked: whoever puts it together does.
    ///
    /// # Errors
    /// What the file system says.
    pub fn read_at(&self, from: u64, length: usize) -> io::Result<Vec<u8>> {
        let left = self.bytes.saturating_sub(from);
        let mut bytes = vec![0; length.min(usize::try_from(left).unwrap_or(usize::MAX))];
        self.file.read_exact_at(&mut bytes, from)?;
        Ok(bytes)
    }
}

#[derive(Clone, Debug)]
pub(super) struct Folder {
    /// The engine's directory.
    parent: PathBuf,
    path: PathBuf,
}

/// What is being written, until it has its name.
pub(super) struct Unfinished<'a> {
    folder: &'a Folder,
    path: PathBuf,
    file: File,
    is_whole: bool,
}

impl Folder {
    pub(super) fn new(engine: &Path) -> Self {
        Self { parent: engine.to_owned(), path: engine.join(FOLDER) }
    }

    fn path_of(&self, id: SnapshotId, kind: &str) -> PathBuf {
        self.path.join(id.name(kind))
    }

    /// Those that are whole, the newest first.
    pub(super) fn list(&self) -> Result<Vec<SnapshotId>, FolderError> {
        let mut found: Vec<_> =
            self.names()?.iter().filter_map(|name| SnapshotId::from_name(name, WHOLE)).collect();
        found.sort_unstable_by(|one, other| other.cmp(one));
        Ok(found)
    }

    fn names(&self) -> Result<Vec<String>, FolderError> {
        let entries = match fs::read_dir(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed("list", &self.path))?,
        };
        let name = |entry: io::Result<fs::DirEntry>| Ok(entry?.file_name().into_string().ok());
        let names: io::Result<Vec<_>> =
            entries.filter_map(|entry| name(entry).transpose()).collect();
        names.map_err(failed("list", &self.path))
    }

    /// Reads and checks all of one.
    pub(super) fn read(&self, id: SnapshotId) -> Result<State, SnapshotError> {
        let file = File::open(self.path_of(id, WHOLE))?;
        let state = snapshot::read(&mut BufReader::with_capacity(READ_BYTES, file))?;
        if SnapshotId::of(&state) != id {
            let found = SnapshotId::of(&state);
            let text = format!("it is named as {id:?}, and holds {found:?}");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text).into());
        }
        Ok(state)
    }

    /// The newest that can be read, if there is one; those that cannot are said, loudly, and taken out
    /// of the way if their bytes are the reason.
    pub(super) fn load_newest(&self) -> Result<Option<State>, FolderError> {
        for id in self.list()? {
            match self.read(id) {
                Ok(state) => return Ok(Some(state)),
                Err(error) => {
                    let path = self.path_of(id, WHOLE);
                    tracing::error!(
                        snapshot = %path.display(), %error,
                        "a snapshot of the metadata cannot be used; the next older one is tried"
                    );
                    if is_damage(&error) {
                        let aside = self.path_of(id, DAMAGED);
                        fs::rename(&path, &aside).map_err(failed("rename", &path))?;
                        self.sync()?;
                    }
                }
            }
        }
        Ok(None)
    }

    /// Opens the newest for somebody else.
    pub(super) fn open_newest(&self) -> Result<Option<SnapshotFile>, FolderError> {
        loop {
            let Some(id) = self.list()?.into_iter().next() else { return Ok(None) };
            let path = self.path_of(id, WHOLE);
            match File::open(&path) {
                Ok(file) => {
                    let bytes = file.metadata().map_err(failed("look at", &path))?.len();
                    return Ok(Some(SnapshotFile { id, bytes, file }));
                }
                // Newer ones have come meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed("open", &path)(error)),
            }
        }
    }

    /// Begins to write one, under a name that nobody takes for a whole one. What others have left
    /// unfinished is removed.
    pub(super) fn begin(&self) -> Result<Unfinished<'_>, FolderError> {
        let made = DirBuilder::new().mode(FOLDER_MODE).create(&self.path);
        match made {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(failed("make", &self.path)(error)),
        }
        for name in self.names()?.iter().filter(|name| name.ends_with(WRITING)) {
            let path = self.path.join(name);
            fs::remove_file(&path).map_err(failed("remove", &path))?;
        }
        let path = self.path.join(format!("snapshot.{WRITING}"));
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create_new(true).mode(FILE_MODE).open(&path);
        let file = file.map_err(failed("make", &path))?;
        Ok(Unfinished { folder: self, path, file, is_whole: false })
    }

    /// Removes all but the two newest, and returns which those are.
    pub(super) fn prune(&self) -> Result<Vec<SnapshotId>, FolderError> {
        let mut kept = self.list()?;
        for id in kept.split_off(kept.len().min(KEPT)) {
            let path = self.path_of(id, WHOLE);
            fs::remove_file(&path).map_err(failed("remove", &path))?;
        }
        Ok(kept)
    }

    fn sync(&self) -> Result<(), FolderError> {
        // Always both: whoever made the folder may have died before its name was durable.
        for path in [&self.path, &self.parent] {
            let folder = if path.as_os_str().is_empty() { Path::new(".") } else { path };
            File::open(folder)
                .and_then(|folder| folder.sync_all())
                .map_err(failed("sync", folder))?;
        }
        Ok(())
    }
}

/// Whether the bytes are wrong, as opposed to this build being too old, or the file out of reach.
fn is_damage(error: &SnapshotError) -> bool {
    match error {
        SnapshotError::Io(error) => error.kind() == io::ErrorKind::InvalidData,
        SnapshotError::Format { .. } | SnapshotError::NewerVersion { .. } => false,
        _ => true,
    }
}

impl Unfinished<'_> {
    /// Writes a state, and gives it its name. It is durable then.
    pub(super) fn write(mut self, state: &State) -> Result<u64, FolderError> {
        snapshot::write(state, &mut self.file).map_err(failed("write", &self.path))?;
        self.finish(SnapshotId::of(state))
    }

    /// Copies bytes that somebody else gives, and checks them while they come.
    pub(super) fn copy(&mut self, reader: &mut dyn Read) -> Result<State, SnapshotError> {
        let mut copying = Copying { reader, file: &mut self.file };
        let state = snapshot::read(&mut BufReader::with_capacity(READ_BYTES, &mut copying))?;
        Ok(state)
    }

    /// Gives it its name, and returns its length.
    pub(super) fn finish(mut self, id: SnapshotId) -> Result<u64, FolderError> {
        self.file.sync_all().map_err(failed("sync", &self.path))?;
        let bytes = self.file.metadata().map_err(failed("look at", &self.path))?.len();
        let path = self.folder.path_of(id, WHOLE);
        fs::rename(&self.path, &path).map_err(failed("rename", &self.path))?;
        self.is_whole = true;
        self.folder.sync()?;
        Ok(bytes)
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if !self.is_whole {
            // When this fails, the next one who writes does it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Writes whatever is read.
struct Copying<'a> {
    reader: &'a mut dyn Read,
    file: &'a mut File,
}

impl Read for Copying<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(bytes)?;
        io::Write::write_all(self.file, &bytes[..read])?;
        Ok(read)
    }
}
