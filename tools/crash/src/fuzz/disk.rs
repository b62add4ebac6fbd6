//! A directory in memory as a disk: what recovery is fuzzed on. Nothing is volatile and nothing
//! takes time; only the steps are counted, so that an endless loop ends.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ringwal_engine::disk::{
    BufferMut, Completion, DirectoryEntry, Disk, DiskDescription, FileId, Operation, Pool, ReadAt,
    Token, Wait, Wake,
};

/// Operations after which a disk refuses to go on.
const STEPS_MAX: u64 = 50_000;
/// The longest sleep.
const TICK: std::time::Duration = std::time::Duration::from_millis(1);
/// Longest file that may be made.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// The files; several images share what none has changed.
pub type Image = BTreeMap<String, Arc<Vec<u8>>>;

#[derive(Debug, Default)]
struct State {
    files: Image,
    open: Vec<Option<String>>,
    steps: u64,
}

/// See the module. A clone is another disk over the same files.
pub struct MemoryDisk {
    state: Arc<Mutex<State>>,
    ready: Vec<Completion>,
    pool: Pool,
}

impl Clone for MemoryDisk {
    fn clone(&self) -> Self {
        Self { state: self.state.clone(), ready: Vec::new(), pool: self.pool.clone() }
    }
}

impl MemoryDisk {
    /// Over these files.
    pub fn new(files: Image, pool: Pool) -> Self {
        let state = Arc::new(Mutex::new(State { files, ..State::default() }));
        Self { state, ready: Vec::new(), pool }
    }

    /// The files as they are now.
    pub fn files(&self) -> Image {
        self.state().files.clone()
    }

    /// Whether it was asked for more than any recovery needs.
    pub fn is_exhausted(&self) -> bool {
        self.state().steps > STEPS_MAX
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn step(&mut self) -> io::Result<()> {
        self.steps += 1;
        if self.steps > STEPS_MAX {
            return Err(io::Error::other("more steps than any recovery needs"));
        }
        Ok(())
    }

    fn name(&self, file: FileId) -> io::Result<String> {
        let name = self.open.get(file.0 as usize).cloned().flatten();
        name.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }

    fn read(&mut self, file: FileId, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        self.step()?;
        let name = self.name(file)?;
        let bytes = self.files.get(&name).ok_or(io::ErrorKind::NotFound)?;
        // As pread: an offset that no file can have is an error.
        if offset > i64::MAX as u64 || !offset.is_multiple_of(512) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
        let length = into.len().min(bytes.len() - from);
        into[..length].copy_from_slice(&bytes[from..from + length]);
        Ok(length)
    }

    fn run(&mut self, operation: Operation) -> (io::Result<u64>, Option<BufferMut>) {
        let result = match operation {
            Operation::Read { file, offset, mut buffer, length } => {
                let read = self.read(file, offset, &mut buffer[..length]);
                return (read.map(|read| read as u64), Some(buffer));
            }
            operation => self.step().and_then(|()| self.change(operation)),
        };
        (result, None)
    }

    fn change(&mut self, operation: Operation) -> io::Result<u64> {
        let mut extend = |name: &str, until: u64| {
            if until > FILE_BYTES_MAX {
                return Err(io::Error::from_raw_os_error(libc::ENOSPC));
            }
            let bytes = Arc::make_mut(self.files.entry(name.to_owned()).or_default());
            bytes.resize(bytes.len().max(until as usize), 0);
            Ok(())
        };
        match operation {
            Operation::Write { file, offset, buffer, from, length, .. } => {
                let name = self.open.get(file.0 as usize).cloned().flatten();
                let name = name.ok_or(io::ErrorKind::NotFound)?;
                extend(&name, offset.saturating_add(length as u64))?;
                let bytes = Arc::make_mut(self.files.entry(name).or_default());
                let at = offset as usize;
                bytes[at..at + length].copy_from_slice(&buffer[from..from + length]);
                Ok(length as u64)
            }
            Operation::Open { name, create } => {
                if !create && !self.files.contains_key(&name) {
                    return Err(io::ErrorKind::NotFound.into());
                }
                self.files.entry(name.clone()).or_default();
                self.open.push(Some(name));
                Ok(self.open.len() as u64 - 1)
            }
            Operation::Allocate { file, length } => {
                let name = self.open.get(file.0 as usize).cloned().flatten();
                extend(&name.ok_or(io::ErrorKind::NotFound)?, length)?;
                Ok(0)
            }
            Operation::Remove { name } => {
                self.open.iter_mut().filter(|open| open.as_ref() == Some(&name)).for_each(|open| {
                    *open = None;
                });
                let removed = self.files.remove(&name);
                removed.map(|_| 0).ok_or_else(|| io::ErrorKind::NotFound.into())
            }
            Operation::Sync { .. }
            | Operation::SyncAll { .. }
            | Operation::SyncDirectory
            | Operation::Read { .. } => Ok(0),
        }
    }
}

impl Disk for MemoryDisk {
    fn capacity(&self) -> usize {
        64
    }

    fn submit(&mut self, token: Token, operation: Operation) {
        let (result, buffer) = self.state().run(operation);
        self.ready.push(Completion { token, result, buffer });
    }

    fn reap(&mut self, completions: &mut Vec<Completion>, wait: Wait) -> io::Result<()> {
        match wait {
            // Nothing else is ever going to happen, but that time passes.
            Wait::For(time) if self.ready.is_empty() => std::thread::sleep(time.min(TICK)),
            Wait::Forever if self.ready.is_empty() => self.state().step()?,
            _ => {}
        }
        completions.append(&mut self.ready);
        Ok(())
    }

    fn list(&mut self) -> io::Result<Vec<DirectoryEntry>> {
        let entry = |(name, bytes): (&String, &Arc<Vec<u8>>)| DirectoryEntry {
            name: name.clone(),
            length: bytes.len() as u64,
        };
        Ok(self.state().files.iter().map(entry).collect())
    }

    fn wake(&self) -> Arc<Wake> {
        Arc::new(Wake::inert())
    }

    fn pool(&self) -> Pool {
        self.pool.clone()
    }

    fn reader(&self) -> Arc<dyn ReadAt> {
        Arc::new(Reader(self.state.clone()))
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok(1 << 40)
    }

    fn description(&self) -> DiskDescription {
        DiskDescription { name: "memory", ..DiskDescription::default() }
    }
}

struct Reader(Arc<Mutex<State>>);

impl ReadAt for Reader {
    fn read_at(
        &self,
        file: FileId,
        offset: u64,
        into: &mut BufferMut,
        length: usize,
    ) -> io::Result<usize> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.read(file, offset, &mut into[..length])
    }
}
