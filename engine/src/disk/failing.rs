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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::sim::{SimDisk, SimHandle};
    use crate::disk::{BLOCK_BYTES, BufferMut, FileId, run};

    #[test]
    fn a_lone_write_fails_as_any_other_and_is_not_done() {
        let (sim, fails) = (SimHandle::new(1), Arc::new(AtomicBool::new(false)));
        let mut disk = FailingDisk::new(Box::new(SimDisk::new(sim.clone())), fails.clone());
        let open = Operation::Open { name: "a".into(), create: true };
        let file = FileId(run(&mut disk, open).unwrap().0 as u32);
        let mut write_alone = |byte: u8| {
            let mut buffer = BufferMut::allocate(BLOCK_BYTES);
            buffer.fill(byte);
            let (buffer, length) = (buffer.freeze(), BLOCK_BYTES);
            disk.submit_alone(
                1,
                Operation::Write { file, offset: 0, buffer, from: 0, length, durable: true },
            );
            let mut completions = Vec::new();
            disk.reap(&mut completions, Wait::No).unwrap();
            completions.remove(0).result.map_err(|error| error.raw_os_error())
        };
        assert_eq!(write_alone(1), Ok(BLOCK_BYTES as u64));
        fails.store(true, Ordering::SeqCst);
        assert_eq!(write_alone(2), Err(Some(libc::EIO)));
        assert_eq!(sim.happened().lone_writes, 1);
        assert!(sim.bytes("a").unwrap().iter().all(|byte| *byte == 1));
    }
}
