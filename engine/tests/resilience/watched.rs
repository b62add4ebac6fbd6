//! A disk between the shard and the simulated one, which sees what the shard asks for.

use std::collections::HashSet;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use ringwal_engine::disk::sim::SimDisk;
use ringwal_engine::disk::{
    Completion, DirectoryEntry, Disk, DiskDescription, Operation, Pool, ReadAt, Token, Wait, Wake,
};

type Hook = Box<dyn FnMut(&Operation) + Send>;

/// What was seen, and what is to happen.
pub struct Watch {
    reaps: AtomicU64,
    endless_reaps: AtomicU64,
    /// Number of the first reap that fails.
    end_after: AtomicU64,
    fail_next_create: AtomicBool,
    before_each: Mutex<Option<Hook>>,
}

impl Default for Watch {
    fn default() -> Self {
        Self {
            reaps: AtomicU64::new(0),
            endless_reaps: AtomicU64::new(0),
            end_after: AtomicU64::new(u64::MAX),
            fail_next_create: AtomicBool::new(false),
            before_each: Mutex::new(None),
        }
    }
}

impl Watch {
    /// How often the shard looked for completions.
    pub fn reaps(&self) -> u64 {
        self.reaps.load(Ordering::SeqCst)
    }

    /// How often it would have waited for as long as it takes.
    pub fn endless_reaps(&self) -> u64 {
        self.endless_reaps.load(Ordering::SeqCst)
    }

    /// Lets the disk break at the reap with this number, so that no test waits for ever.
    pub fn end_after(&self, reaps: u64) {
        self.end_after.store(reaps, Ordering::SeqCst);
    }

    /// The next file that is created is there, but cannot be had.
    pub fn fail_next_create(&self) {
        self.fail_next_create.store(true, Ordering::SeqCst);
    }

    /// Calls `hook` before each operation is submitted.
    pub fn before_each(&self, hook: impl FnMut(&Operation) + Send + 'static) {
        *self.before_each.lock().unwrap() = Some(Box::new(hook));
    }
}

pub struct Watched {
    disk: SimDisk,
    watch: Arc<Watch>,
    /// Operations that succeed and say that they did not.
    denied: HashSet<Token>,
}

impl Watched {
    pub fn new(disk: SimDisk, watch: Arc<Watch>) -> Self {
        Self { disk, watch, denied: HashSet::new() }
    }
}

impl Disk for Watched {
    fn capacity(&self) -> usize {
        self.disk.capacity()
    }

    fn submit(&mut self, token: Token, operation: Operation) {
        if let Some(hook) = self.watch.before_each.lock().unwrap().as_mut() {
            hook(&operation);
        }
        let creates = matches!(operation, Operation::Open { create: true, .. });
        if creates && self.watch.fail_next_create.swap(false, Ordering::SeqCst) {
            self.denied.insert(token);
        }
        self.disk.submit(token, operation);
    }

    fn reap(&mut self, completions: &mut Vec<Completion>, wait: Wait) -> io::Result<()> {
        let reaps = self.watch.reaps.fetch_add(1, Ordering::SeqCst);
        if wait == Wait::Forever {
            self.watch.endless_reaps.fetch_add(1, Ordering::SeqCst);
        }
        if reaps >= self.watch.end_after.load(Ordering::SeqCst) {
            return Err(io::Error::other(format!("{reaps} looks at the disk")));
        }
        let before = completions.len();
        self.disk.reap(completions, wait)?;
        for completion in &mut completions[before..] {
            if self.denied.remove(&completion.token) {
                completion.result = Err(io::Error::from_raw_os_error(libc::EMFILE));
            }
        }
        Ok(())
    }

    fn list(&mut self) -> io::Result<Vec<DirectoryEntry>> {
        self.disk.list()
    }

    fn wake(&self) -> Arc<Wake> {
        self.disk.wake()
    }

    fn pool(&self) -> Pool {
        self.disk.pool()
    }

    fn reader(&self) -> Arc<dyn ReadAt> {
        self.disk.reader()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        self.disk.free_bytes()
    }

    fn description(&self) -> DiskDescription {
        self.disk.description()
    }
}
