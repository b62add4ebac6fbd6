//! A disk that fails when a test says so: for tests of what a node does around an engine that fails under it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{
    Completion, DirectoryEntry, Disk, DiskDescription, Operation, Pool, ReadAt, Token, Wait, Wake,
};

/// Another disk, of which no write and no flush succeeds once `fails` is true. Nothing of those that fail is
/// done, and those that are under way then have the outcome that they have.
pub(crate) struct FailingDisk {
    disk: Box<dyn Disk>,
    fails: Arc<AtomicBool>,
    failed: Vec<Token>,
}

impl FailingDisk {
    pub(crate) fn new(disk: Box<dyn Disk>, fails: Arc<AtomicBool>) -> Self {
        Self { disk, fails, failed: Vec::new() }
    }
}

impl Disk for FailingDisk {
    fn capacity(&self) -> usize {
        self.disk.capacity()
    }

    fn submit_alone(&mut self, token: Token, operation: Operation) {
        if self.fails.load(Ordering::SeqCst) {
            self.submit(token, operation);
        } else {
            self.disk.submit_alone(token, operation);
        }
    }

    fn submit(&mut self, token: Token, operation: Operation) {
        let is_written = matches!(
            operation,
            Operation::Write { .. } | Operation::Sync { .. } | Operation::SyncAll { .. }
        );
        if is_written && self.fails.load(Ordering::SeqCst) {
            self.failed.push(token);
        } else {
            self.disk.submit(token, operation);
        }
    }

    fn reap(&mut self, completions: &mut Vec<Completion>, wait: Wait) -> io::Result<()> {
        let wait = if self.failed.is_empty() { wait } else { Wait::No };
        let failed = self.failed.drain(..).map(|token| Completion {
            token,
            result: Err(rustix::io::Errno::IO.into()),
            buffer: None,
        });
        completions.extend(failed);
        self.disk.reap(completions, wait)
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
