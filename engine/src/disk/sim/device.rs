//! The simulated device: its files, its directory, and what it is asked to do. It has no clock
//! but its own and outlives every [`super::SimDisk`] on it.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::super::files::{check_operation, file_of, not_open, over_capacity, refuse};
use super::super::{BufferMut, Completion, DirectoryEntry, FileId, Operation, Token};
use super::SimOptions;
use super::faults::{Fault, Faults, Kind};
use super::happened::Happened;
use super::inode::Inode;
use super::random::{Random, mix};

/// A change of the directory that no flush has covered.
#[derive(Clone, Debug)]
pub(super) struct DirectoryChange {
    sequence: u64,
    name: String,
    /// The file that got the name; `None` when the name was removed.
    inode: Option<usize>,
}

/// An operation that has been submitted and has not happened yet.
#[derive(Debug)]
pub(super) struct InFlight {
    token: Token,
    due_ns: u64,
    number: u64,
    pub operation: Operation,
    pub inode: usize,
    fault: Option<Fault>,
    /// What a flush covers: what had completed when it was submitted.
    covers: u64,
    covers_length: usize,
}

impl InFlight {
    pub fn number(&self) -> u64 {
        self.number
    }
}

#[derive(Debug)]
pub(super) struct Device {
    pub options: SimOptions,
    pub random: Random,
    pub faults: Faults,
    pub now_ns: u64,
    /// `now_ns`, for whoever shares the clock.
    pub clock: Arc<AtomicU64>,
    pub stalled_until_ns: u64,
    /// Counts disks; an older one is dead.
    pub generation: u64,
    pub in_flight: Vec<InFlight>,
    pub inodes: Vec<Inode>,
    pub entries: BTreeMap<String, usize>,
    pub durable_entries: BTreeMap<String, usize>,
    pub directory_log: Vec<DirectoryChange>,
    /// By [`FileId`].
    open: Vec<Option<usize>>,
    inodes_free: Vec<usize>,
    /// Counts completed changes, so that flushes know what they cover.
    pub sequence: u64,
    /// Counts submitted operations, over all disks.
    pub operations: u64,
    pub crash_at: Option<u64>,
    pub kill_at: Option<u64>,
    pub happened: Happened,
    pub trace: u64,
}

impl Device {
    pub fn new(options: SimOptions) -> Self {
        Self {
            random: Random::new(options.seed),
            options,
            faults: Faults::default(),
            now_ns: 0,
            clock: Arc::default(),
            stalled_until_ns: 0,
            generation: 0,
            in_flight: Vec::new(),
            inodes: Vec::new(),
            entries: BTreeMap::new(),
            durable_entries: BTreeMap::new(),
            directory_log: Vec::new(),
            open: Vec::new(),
            inodes_free: Vec::new(),
            sequence: 0,
            operations: 0,
            crash_at: None,
            kill_at: None,
            happened: Happened::default(),
            trace: 0,
        }
    }

    /// The same files on another device; nothing is in flight.
    pub fn fork(&self) -> Self {
        let mut fork = Self::new(self.options.clone());
        fork.set_now(self.now_ns);
        fork.random = self.random.clone();
        fork.inodes = self.inodes.clone();
        fork.entries = self.entries.clone();
        fork.durable_entries = self.durable_entries.clone();
        fork.directory_log = self.directory_log.clone();
        fork.sequence = self.sequence;
        fork.trace = self.trace;
        fork.close_all();
        fork
    }

    /// Puts other bytes in the place of a file's, durably.
    pub fn put(&mut self, name: &str, bytes: &[u8]) {
        let inode = match self.entries.get(name) {
            Some(&inode) => inode,
            None => self.create(name.to_owned()),
        };
        self.inodes[inode].clear();
        self.inodes[inode].write_durable(0, bytes);
        self.inodes[inode].flush_length(bytes.len());
        self.directory_log.retain(|change| change.name != name);
        self.durable_entries.insert(name.to_owned(), inode);
    }

    /// Lets time pass.
    pub fn set_now(&mut self, now_ns: u64) {
        self.now_ns = now_ns;
        self.clock.store(now_ns, Ordering::Relaxed);
    }

    /// A new disk: what the one before had in flight is as after a kill, its files are closed.
    pub fn attach(&mut self) -> u64 {
        if !self.in_flight.is_empty() {
            self.kill();
        }
        self.generation += 1;
        self.close_all();
        self.generation
    }

    /// Closes every file and reuses those that no name reaches.
    pub fn close_all(&mut self) {
        self.open.clear();
        let mut reached = vec![false; self.inodes.len()];
        let named = self.entries.values().chain(self.durable_entries.values()).copied();
        let logged = self.directory_log.iter().filter_map(|change| change.inode);
        named.chain(logged).for_each(|inode| reached[inode] = true);
        self.inodes_free.clear();
        for (index, inode) in self.inodes.iter_mut().enumerate() {
            if !reached[index] {
                inode.clear();
                self.inodes_free.push(index);
            }
        }
    }

    /// Takes an operation; what cannot start ends at once.
    pub fn submit(&mut self, token: Token, operation: Operation) -> Option<Completion> {
        let inode = match self.admit(&operation) {
            Ok(inode) => inode,
            Err(error) => return Some(refuse(token, operation, error)),
        };
        let number = self.operations;
        self.operations += 1;
        self.trace_operation(token, &operation);
        if let Operation::Remove { name } = &operation {
            self.close(name);
        }
        let kind = Kind::of(&operation);
        let fault = self.faults.take(number, kind);
        if let Some(fault) = fault {
            self.happened.note_fault(kind, fault);
        }
        let delays = self.options.delay_ns;
        let delay_ns = delays.0 + self.random.below(delays.1.saturating_sub(delays.0) + 1);
        self.in_flight.push(InFlight {
            token,
            due_ns: self.now_ns + delay_ns,
            number,
            fault,
            operation,
            inode,
            covers: self.sequence,
            covers_length: self.inodes.get(inode).map_or(0, Inode::length),
        });
        if self.crash_at == Some(number) {
            self.crash_at = None;
            self.crash();
        } else if self.kill_at == Some(number) {
            self.kill_at = None;
            self.kill();
            self.happened.kills += 1;
        }
        None
    }

    fn admit(&self, operation: &Operation) -> io::Result<usize> {
        if self.in_flight.len() >= self.options.capacity {
            return Err(over_capacity(self.options.capacity));
        }
        check_operation(operation)?;
        file_of(operation).map_or(Ok(usize::MAX), |file| self.inode(file))
    }

    fn inode(&self, file: FileId) -> io::Result<usize> {
        self.open.get(file.0 as usize).copied().flatten().ok_or_else(|| not_open(file))
    }

    /// When the next operation happens.
    pub fn next_due_ns(&self) -> Option<u64> {
        let next = self.in_flight.iter().map(|operation| operation.due_ns).min();
        next.map(|due_ns| due_ns.max(self.stalled_until_ns).max(self.now_ns))
    }

    /// Lets everything happen that is due by now.
    pub fn complete_due(&mut self, completions: &mut Vec<Completion>) {
        if self.now_ns < self.stalled_until_ns {
            return;
        }
        loop {
            let due = self.in_flight.iter().enumerate();
            let due = due.filter(|(_, operation)| operation.due_ns <= self.now_ns);
            let next = due.min_by_key(|(_, operation)| (operation.due_ns, operation.number));
            let Some((index, _)) = next else { break };
            let in_flight = self.in_flight.swap_remove(index);
            completions.push(self.complete(in_flight));
        }
    }

    fn complete(&mut self, in_flight: InFlight) -> Completion {
        let token = in_flight.token;
        self.note_overtaking(&in_flight);
        let (result, buffer) = self.perform(in_flight);
        let traced = match &result {
            Ok(value) => *value,
            Err(error) => !(error.raw_os_error().unwrap_or(-1) as u64),
        };
        self.trace(&[token, traced, self.now_ns]);
        Completion { token, result, buffer }
    }

    fn note_overtaking(&mut self, in_flight: &InFlight) {
        let is_write = |operation: &Operation| matches!(operation, Operation::Write { .. });
        let overtakes = is_write(&in_flight.operation)
            && self.in_flight.iter().any(|other| {
                is_write(&other.operation)
                    && other.inode == in_flight.inode
                    && other.number < in_flight.number
            });
        self.happened.overtaking_writes += u64::from(overtakes);
    }

    fn perform(&mut self, in_flight: InFlight) -> (io::Result<u64>, Option<BufferMut>) {
        let InFlight { operation, inode, fault, covers, covers_length, .. } = in_flight;
        let errno = match fault {
            Some(Fault::Errno(errno)) => Some(errno),
            _ => None,
        };
        let result = match operation {
            Operation::Write { offset, buffer, from, length, durable, .. } => {
                let bytes = &buffer[from..from + length];
                self.write(inode, offset, bytes, durable, fault)
            }
            Operation::Read { offset, mut buffer, length, .. } => {
                let length = match fault {
                    Some(Fault::Short(bytes)) => length.min(bytes),
                    _ => length,
                };
                let read = || self.read(inode, offset, &mut buffer[..length]) as u64;
                return (fail_or(errno, read), Some(buffer));
            }
            Operation::Sync { .. } => self.flush(inode, covers, errno),
            Operation::SyncAll { .. } => self.flush(inode, covers, errno).inspect(|_| {
                self.inodes[inode].flush_length(covers_length);
            }),
            Operation::SyncDirectory => self.flush_directory(covers, errno),
            Operation::Open { name, create } => match errno {
                Some(errno) => Err(io::Error::from_raw_os_error(errno)),
                None => self.open(name, create),
            },
            Operation::Allocate { length, .. } => {
                let result = match errno {
                    Some(errno) => Err(io::Error::from_raw_os_error(errno)),
                    None => self.allocate(inode, length as usize),
                };
                let full = |error: &io::Error| error.raw_os_error() == Some(libc::ENOSPC);
                self.happened.no_space += u64::from(result.as_ref().is_err_and(full));
                result
            }
            Operation::Remove { name } => match errno {
                Some(errno) => Err(io::Error::from_raw_os_error(errno)),
                None => self.remove(name),
            },
        };
        (result, None)
    }

    fn write(
        &mut self,
        inode: usize,
        offset: u64,
        bytes: &[u8],
        durable: bool,
        fault: Option<Fault>,
    ) -> io::Result<u64> {
        let mut offset = offset as usize;
        let mut written = bytes.len();
        match fault {
            None => {}
            Some(Fault::Lost) => return Ok(written as u64),
            Some(Fault::Misdirected(to)) => offset = to as usize,
            Some(Fault::Short(length)) => written = written.min(length),
            Some(Fault::Errno(errno)) => {
                self.inodes[inode].write_failed(offset, bytes, &mut self.random);
                return Err(io::Error::from_raw_os_error(errno));
            }
        }
        self.reserve(inode, offset + written)?;
        self.sequence += 1;
        let file = &mut self.inodes[inode];
        if durable {
            file.write_durable(offset, &bytes[..written]);
        } else {
            file.write(self.sequence, offset, &bytes[..written]);
        }
        Ok(written as u64)
    }

    pub fn read(&self, inode: usize, offset: u64, into: &mut [u8]) -> usize {
        let view = self.inodes[inode].view();
        let start = usize::try_from(offset).map_or(view.len(), |offset| offset.min(view.len()));
        let length = into.len().min(view.len() - start);
        into[..length].copy_from_slice(&view[start..start + length]);
        length
    }

    pub fn read_at(&mut self, file: FileId, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let inode = self.inode(file)?;
        // A reader's call is no operation, so it has no number.
        match self.faults.take(u64::MAX, Kind::Read) {
            Some(Fault::Errno(errno)) => Err(io::Error::from_raw_os_error(errno)),
            Some(Fault::Short(bytes)) => {
                let length = into.len().min(bytes);
                Ok(self.read(inode, offset, &mut into[..length]))
            }
            _ => Ok(self.read(inode, offset, into)),
        }
    }

    fn flush(&mut self, inode: usize, covers: u64, errno: Option<i32>) -> io::Result<u64> {
        if let Some(errno) = errno {
            self.inodes[inode].flush_failed(covers, &mut self.random);
            return Err(io::Error::from_raw_os_error(errno));
        }
        self.inodes[inode].flush(covers);
        Ok(0)
    }

    fn flush_directory(&mut self, covers: u64, errno: Option<i32>) -> io::Result<u64> {
        let covered = self.directory_log.partition_point(|change| change.sequence <= covers);
        for change in self.directory_log.drain(..covered) {
            // After a failed flush each change is there or not, and will not be tried again.
            if errno.is_none() || self.random.coin() {
                apply_change(&mut self.durable_entries, &change);
            }
        }
        if errno.is_some() {
            // As with data: what is seen afterwards is what the device has.
            self.entries = self.durable_entries.clone();
            for change in &self.directory_log {
                apply_change(&mut self.entries, change);
            }
        }
        errno.map_or(Ok(0), |errno| Err(io::Error::from_raw_os_error(errno)))
    }

    pub fn open(&mut self, name: String, create: bool) -> io::Result<u64> {
        let inode = match self.entries.get(&name) {
            Some(&inode) => inode,
            None if create => self.create(name),
            None => return Err(io::Error::from_raw_os_error(libc::ENOENT)),
        };
        self.open.push(Some(inode));
        Ok(self.open.len() as u64 - 1)
    }

    fn create(&mut self, name: String) -> usize {
        let inode = self.inodes_free.pop().unwrap_or(self.inodes.len());
        if inode == self.inodes.len() {
            self.inodes.push(Inode::default());
        }
        self.change_directory(name, Some(inode));
        inode
    }

    pub fn remove(&mut self, name: String) -> io::Result<u64> {
        if !self.entries.contains_key(&name) {
            return Err(io::Error::from_raw_os_error(libc::ENOENT));
        }
        self.change_directory(name, None);
        Ok(0)
    }

    fn close(&mut self, name: &str) {
        let inode = self.entries.get(name);
        for open in self.open.iter_mut().filter(|open| open.as_ref() == inode) {
            *open = None;
        }
    }

    fn change_directory(&mut self, name: String, inode: Option<usize>) {
        self.sequence += 1;
        let change = DirectoryChange { sequence: self.sequence, name: name.clone(), inode };
        self.directory_log.push(change);
        match inode {
            Some(inode) => self.entries.insert(name, inode),
            None => self.entries.remove(&name),
        };
    }

    pub fn allocate(&mut self, inode: usize, length: usize) -> io::Result<u64> {
        self.reserve(inode, length)?;
        self.inodes[inode].extend(length);
        Ok(0)
    }

    /// ENOSPC when the file cannot become this long.
    fn reserve(&self, inode: usize, length: usize) -> io::Result<()> {
        let growth = length.saturating_sub(self.inodes[inode].length()) as u64;
        if growth > 0 && growth > self.free_bytes() {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        Ok(())
    }

    pub fn free_bytes(&self) -> u64 {
        let Some(capacity_bytes) = self.options.capacity_bytes else { return u64::MAX / 2 };
        let used = self.entries.values().map(|&inode| self.inodes[inode].length() as u64);
        capacity_bytes.saturating_sub(used.sum())
    }

    pub fn list(&self) -> Vec<DirectoryEntry> {
        let length = |&inode: &usize| self.inodes[inode].length() as u64;
        let entries = self.entries.iter();
        entries
            .map(|(name, inode)| DirectoryEntry { name: name.clone(), length: length(inode) })
            .collect()
    }

    fn trace_operation(&mut self, token: Token, operation: &Operation) {
        let kind = Kind::of(operation) as u64;
        let file = file_of(operation).map_or(u64::MAX, |file| u64::from(file.0));
        let hash = |bytes: &[u8]| u64::from(crc32c::crc32c(bytes));
        let detail = match operation {
            Operation::Write { offset, buffer, from, length, durable, .. } => {
                let bytes = &buffer[*from..*from + *length];
                [*offset, *length as u64, hash(bytes) << 1 | u64::from(*durable)]
            }
            Operation::Read { offset, length, .. } => [*offset, *length as u64, 0],
            Operation::Open { name, create } => [hash(name.as_bytes()), u64::from(*create), 0],
            Operation::Remove { name } => [hash(name.as_bytes()), 0, 0],
            Operation::Allocate { length, .. } => [*length, 0, 0],
            Operation::Sync { .. } | Operation::SyncAll { .. } | Operation::SyncDirectory => [0; 3],
        };
        self.trace(&[token, kind, file]);
        self.trace(&detail);
    }

    pub fn trace(&mut self, values: &[u64]) {
        for &value in values {
            self.trace = mix(self.trace.wrapping_add(0x9e37_79b9_7f4a_7c15) ^ value);
        }
    }
}

/// Makes one change of a directory.
pub(super) fn apply_change(entries: &mut BTreeMap<String, usize>, change: &DirectoryChange) {
    match change.inode {
        Some(inode) => entries.insert(change.name.clone(), inode),
        None => entries.remove(&change.name),
    };
}

fn fail_or(errno: Option<i32>, value: impl FnOnce() -> u64) -> io::Result<u64> {
    errno.map_or_else(|| Ok(value()), |errno| Err(io::Error::from_raw_os_error(errno)))
}
