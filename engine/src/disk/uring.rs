//! The product's disk: one io_uring, driven by one thread.
//!
//! The ring belongs to the thread that first submits or reaps; another thread gets an error from
//! [`Disk::reap`]. A buffer in the kernel's hands is held in a slab until its completion has been
//! seen, also while the disk is dropped (I-8).

mod ongoing_read;
mod refusal;
mod registration;
mod setup;

use std::collections::VecDeque;
use std::ffi::CString;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use io_uring::types::{Fd, Fixed, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, squeue};

use super::files::{CREATE_MODE, Directory, OpenFile, file_of, over_capacity, refuse};
use super::{
    Completion, DirectoryEntry, Disk, DiskDescription, Operation, Pool, ReadAt, Token, Wait, Wake,
};
use ongoing_read::RingReader;
pub use refusal::UringError;
use registration::Registration;
pub use setup::UringOptions;
use setup::{DIRECTORY_SLOT, EVENT_SLOT, FIRST_FILE_SLOT, build_ring, register_files};

/// `user_data` of the read of the wake-up event; all others are places in the slab.
const WAKE_DATA: u64 = u64::MAX;

/// Where the kernel puts the count of wake-ups, which nobody reads. It outlives every ring.
static WAKE_COUNT: AtomicU64 = AtomicU64::new(0);

/// Pause after EAGAIN: the kernel has no memory for a request just now.
const MEMORY_PAUSE: Duration = Duration::from_micros(50);

/// An operation in the kernel's hands, with all that it points to.
struct InFlight {
    token: Token,
    operation: Operation,
    file: Option<Arc<OpenFile>>,
    path: Option<CString>,
}

/// The disk of one ring.
pub struct UringDisk {
    ring: IoUring,
    /// The ring is created disabled, so that it belongs to the first thread that uses it.
    started: bool,
    sqpoll: bool,
    slab: Vec<Option<InFlight>>,
    slab_free: Vec<u32>,
    /// Ended without the ring.
    ready: VecDeque<Completion>,
    directory: Arc<Directory>,
    file_slots_free: Vec<u32>,
    /// Removed from the table, perhaps still in use; their slots are not free yet.
    retired: Vec<Arc<OpenFile>>,
    pool: Pool,
    registered: Registration,
    wake: Arc<Wake>,
    /// The read of the wake-up event is in the kernel's hands.
    listening: bool,
    /// Kernels before 5.15 do not wait in a read of a non-blocking event: poll it instead.
    listens_by_poll: bool,
    /// The event was rung and no sleeping reap has returned for it yet.
    woken: bool,
    #[cfg(test)]
    enters: u64,
    notes: Vec<String>,
    _lock: Option<Arc<OwnedFd>>,
}

impl UringDisk {
    /// Opens a directory that exists. `lock` is what keeps other processes out of it: the ring
    /// holds it as long as the kernel may still work on something, also after a kill.
    ///
    /// # Errors
    /// When the directory cannot be opened or the kernel refuses the ring; the message names the
    /// reason. A refused registration of buffers is only a note in the description.
    pub fn open(
        directory: &Path,
        options: UringOptions,
        lock: Option<Arc<OwnedFd>>,
    ) -> Result<Self, UringError> {
        let path = directory;
        let directory = Directory::open(path, options.read_only)
            .map_err(|source| UringError::Directory { path: path.to_owned(), source })?;
        let memory = |source| UringError::Memory { pool_bytes: options.pool_bytes, source };
        let pool = Pool::new(options.pool_bytes, options.slot_bytes).map_err(memory)?;
        let wake = Wake::new().map_err(|source| UringError::Event { source })?;
        let ring = build_ring(&options)?;
        let entries = options.entries_clamped();
        let lock_fd = lock.as_ref().map_or(-1, |lock| lock.as_raw_fd());
        let event_fd = wake.event().map_or(-1, |event| event.as_raw_fd());
        let own = [lock_fd, event_fd, directory.handle().as_raw_fd()];
        let files = register_files(&ring, options.files_max, &own)?;
        let mut disk = Self {
            ring,
            started: false,
            sqpoll: options.sqpoll_idle.is_some(),
            slab: (0..entries).map(|_| None).collect(),
            slab_free: (0..entries).rev().collect(),
            ready: VecDeque::with_capacity(entries as usize),
            directory: Arc::new(directory),
            file_slots_free: (FIRST_FILE_SLOT..files).rev().collect(),
            retired: Vec::new(),
            pool,
            registered: Registration::default(),
            wake: Arc::new(wake),
            listening: false,
            listens_by_poll: false,
            woken: false,
            #[cfg(test)]
            enters: 0,
            notes: Vec::new(),
            _lock: lock,
        };
        if options.register_buffers {
            let submitter = disk.ring.submitter();
            disk.registered = Registration::new(&submitter, &disk.pool, &mut disk.notes);
        }
        Ok(disk)
    }

    fn in_flight(&self) -> usize {
        self.slab.len() - self.slab_free.len()
    }

    fn admit(&self, operation: &Operation) -> io::Result<Option<Arc<OpenFile>>> {
        if self.slab_free.is_empty() {
            return Err(over_capacity(self.slab.len()));
        }
        self.directory.check(operation)?;
        file_of(operation).map(|id| self.directory.get(id)).transpose()
    }

    fn start(&mut self, token: Token, operation: Operation, file: Option<Arc<OpenFile>>) {
        let path = match &operation {
            Operation::Open { name, .. } | Operation::Remove { name } => {
                Some(CString::new(name.as_str()).expect("names with NUL have been refused"))
            }
            _ => None,
        };
        if let Operation::Remove { name } = &operation {
            while let Some(file) = self.directory.take(name) {
                self.retired.push(file);
            }
        }
        let index = self.slab_free.pop().expect("admitted below capacity");
        self.slab[index as usize] = Some(InFlight { token, operation, file, path });
        self.push_slab(index);
    }

    /// Queues what is in this place of the slab; when even that fails, it ends here.
    fn push_slab(&mut self, index: u32) {
        let in_flight = self.slab[index as usize].as_mut().expect("filled by the caller");
        let registered = match &in_flight.operation {
            Operation::Write { buffer, from, .. } => {
                let address = buffer[*from..].as_ptr() as usize;
                self.registered.index_of(&self.ring.submitter(), address)
            }
            _ => None,
        };
        let entry = entry(in_flight, &self.directory, registered);
        if let Err(error) = self.push(entry.user_data(u64::from(index))) {
            let in_flight = self.slab[index as usize].take().expect("filled above");
            self.slab_free.push(index);
            self.ready.push_back(refuse(in_flight.token, in_flight.operation, error));
        }
    }

    fn push(&mut self, entry: squeue::Entry) -> io::Result<()> {
        // SAFETY: what the entry points to is owned by the slab until the completion has been
        // seen, or is static.
        while unsafe { self.ring.submission().push(&entry) }.is_err() {
            self.enter(0, None)?;
            if self.sqpoll {
                self.ring.submitter().squeue_wait()?;
            }
        }
        Ok(())
    }

    /// Asks to be woken by the event, unless that has been asked for already.
    fn listen(&mut self) -> io::Result<()> {
        if self.listening {
            return Ok(());
        }
        let event = Fixed(EVENT_SLOT);
        let entry = if self.listens_by_poll {
            opcode::PollAdd::new(event, libc::POLLIN as u32).build()
        } else {
            opcode::Read::new(event, WAKE_COUNT.as_ptr().cast(), 8).build()
        };
        self.push(entry.user_data(WAKE_DATA))?;
        self.listening = true;
        Ok(())
    }

    /// A durable write by a plain call: through the ring, a worker of the kernel completes it and asks for
    /// the flush, some microseconds more. `None`: it has to go through the ring, as what is queued goes first.
    fn write_alone(&mut self, operation: &Operation) -> Option<io::Result<u64>> {
        let Operation::Write { offset, buffer, from, length, durable: true, .. } = operation else {
            return None;
        };
        if self.has_queued() {
            return None;
        }
        let file = self.admit(operation).ok()??;
        let result = file.write(*offset, &buffer[*from..*from + *length], true);
        // Refused, as by a filter that knows only the ring: the same bytes go to the same place once more, and
        // only that outcome counts.
        let refused = result.as_ref().is_err_and(is_refused);
        (!refused).then_some(result)
    }

    fn on_wake(&mut self, result: i32) -> io::Result<()> {
        self.listening = false;
        match (result, self.listens_by_poll) {
            (0.., false) => self.woken = true,
            (0.., true) => {
                self.wake.clear();
                self.woken = true;
            }
            (_, false) => self.listens_by_poll = true,
            (errno, true) => return Err(io::Error::from_raw_os_error(-errno)),
        }
        Ok(())
    }

    /// One io_uring_enter: submits what is queued and waits for `want` completions, or less.
    fn enter(&mut self, want: usize, timeout: Option<Duration>) -> io::Result<()> {
        #[cfg(test)]
        {
            self.enters += 1;
        }
        let submitter = self.ring.submitter();
        if !self.started {
            submitter.register_enable_rings()?;
            self.started = true;
        }
        let result = match timeout {
            None => submitter.submit_and_wait(want),
            Some(timeout) => {
                let timeout = Timespec::from(timeout);
                submitter.submit_with_args(want, &SubmitArgs::new().timespec(&timeout))
            }
        };
        let Err(error) = result else { return Ok(()) };
        match error.raw_os_error() {
            Some(libc::EEXIST) => Err(io::Error::other(
                "a ring can only be driven by the thread that used it first (EEXIST)",
            )),
            _ => pass_over(error),
        }
    }

    /// Whether entries wait that the kernel will not take by itself.
    fn has_queued(&mut self) -> bool {
        let queue = self.ring.submission();
        !queue.is_empty() && (!self.sqpoll || queue.need_wakeup())
    }

    /// Whether the kernel holds completions back until it is entered.
    fn has_deferred(&mut self) -> bool {
        let queue = self.ring.submission();
        queue.taskrun() || queue.cq_overflow()
    }

    /// Takes over every completion that the kernel has posted.
    fn drain(&mut self, completions: &mut Vec<Completion>) -> io::Result<()> {
        loop {
            let Some(entry) = self.ring.completion().next() else { break };
            match entry.user_data() {
                WAKE_DATA => self.on_wake(entry.result())?,
                index => self.finish(index as u32, entry.result(), completions),
            }
        }
        completions.extend(self.ready.drain(..));
        if !self.retired.is_empty() {
            self.release_retired();
        }
        Ok(())
    }

    fn finish(&mut self, index: u32, result: i32, completions: &mut Vec<Completion>) {
        let Some(in_flight) = self.slab[index as usize].take() else {
            unreachable!("the kernel completes only what is in flight");
        };
        let is_open = matches!(in_flight.operation, Operation::Open { .. });
        if is_open && result == -libc::EINVAL && self.directory.is_direct() {
            self.directory.set_buffered();
            self.slab[index as usize] = Some(in_flight);
            return self.push_slab(index);
        }
        self.slab_free.push(index);
        let InFlight { token, operation, .. } = in_flight;
        let result = match u32::try_from(result) {
            Ok(value) => Ok(value),
            Err(_) => Err(io::Error::from_raw_os_error(-result)),
        };
        let (result, buffer) = match operation {
            Operation::Open { name, .. } => {
                (result.and_then(|descriptor| self.finish_open(descriptor as RawFd, name)), None)
            }
            Operation::Read { buffer, .. } => (result.map(u64::from), Some(buffer)),
            _ => (result.map(u64::from), None),
        };
        completions.push(Completion { token, result, buffer });
    }

    fn finish_open(&mut self, descriptor: RawFd, name: String) -> io::Result<u64> {
        // SAFETY: the kernel has just opened it for this operation; nobody else knows it.
        let file = File::from(unsafe { OwnedFd::from_raw_fd(descriptor) });
        self.release_retired();
        let Some(slot) = self.file_slots_free.pop() else {
            return Err(io::Error::other(
                "the ring's file table is full; raise the limit of open files (ulimit -n)",
            ));
        };
        if let Err(error) = self.ring.submitter().register_files_update(slot, &[descriptor]) {
            self.file_slots_free.push(slot);
            return Err(error);
        }
        Ok(u64::from(self.directory.insert(OpenFile { name, file, slot }).0))
    }

    /// Closes removed files that no operation uses any more. Earlier would be wrong: a worker of
    /// the kernel looks a registered file up only when it starts.
    fn release_retired(&mut self) {
        for file in std::mem::take(&mut self.retired) {
            let in_use = Arc::strong_count(&file) > 1;
            if in_use || self.ring.submitter().register_files_update(file.slot, &[-1]).is_err() {
                self.retired.push(file);
            } else {
                self.file_slots_free.push(file.slot);
            }
        }
    }

    /// Ends everything in flight, for dropping.
    fn settle(&mut self) -> io::Result<()> {
        let mut completions = Vec::new();
        if self.listening
            && let Some(event) = self.wake.event()
        {
            rustix::io::write(event, &1u64.to_ne_bytes())?;
        }
        while self.in_flight() > 0 || self.listening {
            self.enter(1, None)?;
            self.drain(&mut completions)?;
            completions.clear();
        }
        Ok(())
    }
}

impl fmt::Debug for UringDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UringDisk").field("in_flight", &self.in_flight()).finish_non_exhaustive()
    }
}

impl Drop for UringDisk {
    fn drop(&mut self) {
        if self.settle().is_err() {
            // The kernel may still use these buffers (the ring is broken, or another thread's):
            // they are leaked rather than reused.
            self.slab.drain(..).for_each(std::mem::forget);
        }
        // The kernel tears a ring down later; the lock and the files must be free now.
        let _ = self.ring.submitter().unregister_files();
    }
}

impl Disk for UringDisk {
    fn capacity(&self) -> usize {
        self.slab.len()
    }

    fn submit(&mut self, token: Token, operation: Operation) {
        match self.admit(&operation) {
            Ok(file) => self.start(token, operation, file),
            Err(error) => self.ready.push_back(refuse(token, operation, error)),
        }
    }

    fn submit_alone(&mut self, token: Token, operation: Operation) {
        match self.write_alone(&operation) {
            Some(result) => self.ready.push_back(Completion { token, result, buffer: None }),
            None => self.submit(token, operation),
        }
    }

    fn reap(&mut self, completions: &mut Vec<Completion>, wait: Wait) -> io::Result<()> {
        let before = completions.len();
        let deadline = match wait {
            Wait::For(timeout) => Instant::now().checked_add(timeout),
            Wait::No | Wait::Forever => None,
        };
        self.drain(completions)?;
        let mut satisfied = wait == Wait::No || self.woken || completions.len() > before;
        if !satisfied {
            self.listen()?;
        }
        let mut must_enter = self.has_queued() || (wait == Wait::No && self.has_deferred());
        while must_enter || !satisfied {
            let timeout = deadline.map(|end| end.saturating_duration_since(Instant::now()));
            self.enter(usize::from(!satisfied), timeout.filter(|_| !satisfied))?;
            self.drain(completions)?;
            satisfied =
                satisfied || self.woken || completions.len() > before || has_passed(deadline);
            must_enter = self.has_queued();
        }
        if wait != Wait::No {
            self.woken = false;
        }
        Ok(())
    }

    fn list(&mut self) -> io::Result<Vec<DirectoryEntry>> {
        self.directory.list()
    }

    fn wake(&self) -> Arc<Wake> {
        self.wake.clone()
    }

    fn pool(&self) -> Pool {
        self.pool.clone()
    }

    fn reader(&self) -> Arc<dyn ReadAt> {
        Arc::new(RingReader { directory: self.directory.clone() })
    }

    fn free_bytes(&self) -> io::Result<u64> {
        self.directory.free_bytes()
    }

    fn description(&self) -> DiskDescription {
        let mut notes = self.notes.clone();
        notes.extend(self.directory.notes());
        DiskDescription {
            name: "uring",
            direct: self.directory.is_direct(),
            buffers_registered: self.registered.is_some(),
            notes,
        }
    }
}

/// An enter that ended early is no error: the caller looks again. The kernel may be short of room or memory.
fn pass_over(error: io::Error) -> io::Result<()> {
    match error.raw_os_error() {
        Some(libc::EINTR | libc::ETIME | libc::EBUSY) => Ok(()),
        Some(libc::EAGAIN) => {
            std::thread::sleep(MEMORY_PAUSE);
            Ok(())
        }
        _ => Err(error),
    }
}

fn is_refused(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM | libc::EOPNOTSUPP))
}

fn has_passed(deadline: Option<Instant>) -> bool {
    deadline.is_some_and(|end| Instant::now() >= end)
}

/// The kernel's form of an operation. It points into `in_flight`, whose buffers and path do not
/// move with it.
fn entry(
    in_flight: &mut InFlight,
    directory: &Directory,
    registered: Option<u16>,
) -> squeue::Entry {
    let file = Fixed(in_flight.file.as_ref().map_or(DIRECTORY_SLOT, |file| file.slot));
    let path = in_flight.path.as_ref().map_or(std::ptr::null(), |path| path.as_ptr());
    let directory_fd = Fd(directory.handle().as_raw_fd());
    match &mut in_flight.operation {
        Operation::Write { offset, buffer, from, length, durable, .. } => {
            let flags = if *durable { libc::RWF_DSYNC } else { 0 };
            let bytes = buffer[*from..*from + *length].as_ptr();
            let length = *length as u32;
            if let Some(part) = registered {
                let write = opcode::WriteFixed::new(file, bytes, length, part);
                write.offset(*offset).rw_flags(flags).build()
            } else {
                let write = opcode::Write::new(file, bytes, length);
                write.offset(*offset).rw_flags(flags).build()
            }
        }
        Operation::Read { offset, buffer, length, .. } => {
            opcode::Read::new(file, buffer.as_mut_ptr(), *length as u32).offset(*offset).build()
        }
        Operation::Sync { .. } => opcode::Fsync::new(file).flags(FsyncFlags::DATASYNC).build(),
        Operation::SyncAll { .. } | Operation::SyncDirectory => opcode::Fsync::new(file).build(),
        Operation::Open { create, .. } => {
            let flags = directory.open_flags(*create).bits() as i32;
            opcode::OpenAt::new(directory_fd, path).flags(flags).mode(CREATE_MODE).build()
        }
        Operation::Allocate { length, .. } => opcode::Fallocate::new(file, *length).build(),
        Operation::Remove { .. } => opcode::UnlinkAt::new(directory_fd, path).build(),
    }
}

#[cfg(test)]
mod tests;
