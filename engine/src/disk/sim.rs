//! A simulated disk for tests: a device with a volatile cache, seeded delays, faults and power
//! cuts, on a virtual clock. The same seed and the same calls give the same run, bit for bit.
//!
//! It is stricter than Linux where that costs an engine nothing: a length becomes durable only
//! by [`Operation::SyncAll`], and a name only by [`Operation::SyncDirectory`].

mod crash;
mod device;
mod faults;
mod happened;
mod inode;
mod random;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::files::check_range;
use super::{
    BufferMut, Completion, DirectoryEntry, Disk, DiskDescription, FileId, OngoingRead, Operation,
    Pool, ReadAt, Token, Wait, Wake,
};
use device::Device;
pub use faults::{Fault, Kind};
pub use happened::Happened;

/// How a simulated device is made.
#[derive(Clone, Debug)]
pub struct SimOptions {
    /// What all delays and losses come from. Default 0.
    pub seed: u64,
    /// Operations in flight at once. Default 64.
    pub capacity: usize,
    /// Memory for batches, in bytes. Default 4 MiB.
    pub pool_bytes: usize,
    /// Bytes of one batch buffer, a multiple of [`super::BLOCK_BYTES`]. Default 64 KiB.
    pub slot_bytes: usize,
    /// Room for all files, in bytes. Default `None`: no limit.
    pub capacity_bytes: Option<u64>,
    /// Shortest and longest time of an operation, in nanoseconds. Default 20 to 200 µs.
    pub delay_ns: (u64, u64),
}

impl Default for SimOptions {
    fn default() -> Self {
        Self {
            seed: 0,
            capacity: 64,
            pool_bytes: 4 << 20,
            slot_bytes: 64 << 10,
            capacity_bytes: None,
            delay_ns: (20_000, 200_000),
        }
    }
}

/// The simulated device: what is left when a [`SimDisk`] is gone, and where tests make things go
/// wrong. A clone is the same device.
#[derive(Clone, Debug)]
pub struct SimHandle(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    device: Mutex<Device>,
    /// Mapping memory costs more than a short run, so disks hand the pool on.
    pool: Mutex<Option<Pool>>,
}

impl SimHandle {
    /// An empty device with default options.
    pub fn new(seed: u64) -> Self {
        Self::with_options(SimOptions { seed, ..SimOptions::default() })
    }

    /// An empty device.
    pub fn with_options(options: SimOptions) -> Self {
        let device = Mutex::new(Device::new(options));
        Self(Arc::new(Shared { device, pool: Mutex::new(None) }))
    }

    /// Power cut: each 512-byte sector that no flush has covered, also of writes in flight, each
    /// name that no flush of the directory has covered, and each length that no
    /// [`Operation::SyncAll`] has covered is afterwards as before or as after, and in some cuts one
    /// sector of a write is neither, but noise. The disk is dead, and faults that were waiting are forgotten; go on with [`SimDisk::new`].
    pub fn crash(&self) {
        self.device().crash();
    }

    /// Death of the process: completed writes stay in the volatile cache, those in flight happen
    /// or not. The disk is dead afterwards; go on with [`SimDisk::new`].
    pub fn kill(&self) {
        let mut device = self.device();
        device.kill();
        device.happened.kills += 1;
    }

    /// Cuts the power when the operation with this number (from 0, see
    /// [`SimHandle::operations`]) has been submitted.
    pub fn crash_at(&self, operation: u64) {
        self.device().crash_at = Some(operation);
    }

    /// Kills the process when the operation with this number (from 0, see
    /// [`SimHandle::operations`]) has been submitted.
    pub fn kill_at(&self, operation: u64) {
        self.device().kill_at = Some(operation);
    }

    /// Lets the next operation of this kind fail. Several add up, in order.
    pub fn fail_next(&self, kind: Kind, errno: i32) {
        self.fault_next(kind, Fault::Errno(errno));
    }

    /// Lets something go wrong with the next operation of this kind. Several add up, in order.
    pub fn fault_next(&self, kind: Kind, fault: Fault) {
        self.device().faults.on_next(kind, fault);
    }

    /// Lets the operation with this number (from 0) fail.
    pub fn fail_at(&self, operation: u64, errno: i32) {
        self.fault_at(operation, Fault::Errno(errno));
    }

    /// Lets something go wrong with the operation with this number (from 0).
    pub fn fault_at(&self, operation: u64, fault: Fault) {
        self.device().faults.at(operation, fault);
    }

    /// Lets every operation of this kind fail, until [`SimHandle::clear_faults`] or a crash.
    pub fn fail_always(&self, kind: Kind, errno: i32) {
        self.device().faults.always(kind, errno);
    }

    /// Forgets the faults that have not happened yet.
    pub fn clear_faults(&self) {
        self.device().faults.clear();
    }

    /// Nothing completes for this long, whatever is in flight.
    pub fn stall(&self, time: Duration) {
        let mut device = self.device();
        device.stalled_until_ns = device.now_ns.saturating_add(nanoseconds(time));
        device.happened.stalls += u64::from(!device.in_flight.is_empty());
    }

    /// Sets the room for all files, in bytes; below what is used means that it is full.
    pub fn set_capacity_bytes(&self, capacity_bytes: Option<u64>) {
        self.device().options.capacity_bytes = capacity_bytes;
    }

    /// Sets the shortest and longest time of an operation, in nanoseconds.
    pub fn set_delay_ns(&self, shortest: u64, longest: u64) {
        self.device().options.delay_ns = (shortest, longest);
    }

    /// Bit rot: turns one bit of a file over, on the medium and in the cache. `false` when the
    /// file or the byte is not there.
    pub fn flip(&self, name: &str, offset: u64, bit: u32) -> bool {
        let mut device = self.device();
        let Some(&inode) = device.entries.get(name) else { return false };
        let inode = &mut device.inodes[inode];
        let inside = offset < inode.length() as u64;
        if inside {
            inode.flip(offset as usize, bit);
        }
        inside
    }

    /// Lets virtual time pass without looking at completions.
    pub fn advance(&self, time: Duration) {
        let mut device = self.device();
        let now_ns = device.now_ns.saturating_add(nanoseconds(time));
        device.set_now(now_ns);
    }

    /// The virtual clock as it moves, in nanoseconds.
    pub fn clock(&self) -> Arc<AtomicU64> {
        self.device().clock.clone()
    }

    /// Power cuts so far, those of [`SimHandle::crash_at`] included.
    pub fn crashes(&self) -> u64 {
        self.device().happened.power_cuts
    }

    /// Deaths of the process so far, those of [`SimHandle::kill_at`] included.
    pub fn kills(&self) -> u64 {
        self.device().happened.kills
    }

    /// What has happened to the device so far, for reports.
    pub fn happened(&self) -> Happened {
        self.device().happened
    }

    /// A copy of the device that goes its own way: files, names, cache and all. The disk on this
    /// one is dead afterwards, as after [`SimHandle::kill`].
    pub fn fork(&self) -> Self {
        let mut device = self.device();
        device.kill();
        let shared = Shared { device: Mutex::new(device.fork()), pool: Mutex::new(None) };
        Self(Arc::new(shared))
    }

    /// Puts other bytes in the place of a file's, durably, or makes the file: as somebody does who
    /// copies it there while nothing runs.
    pub fn put(&self, name: &str, bytes: &[u8]) {
        self.device().put(name, bytes);
    }

    /// The first bytes of a file as the process sees them, as far as there are so many.
    pub fn head(&self, name: &str, length: usize) -> Option<Vec<u8>> {
        let device = self.device();
        let view = device.inodes[*device.entries.get(name)?].view();
        Some(view[..view.len().min(length)].to_vec())
    }

    /// The virtual clock, in nanoseconds since the device was made.
    pub fn now_ns(&self) -> u64 {
        self.device().now_ns
    }

    /// Operations submitted since the device was made; also the number of the next one.
    pub fn operations(&self) -> u64 {
        self.device().operations
    }

    /// A number that tells two runs apart: over every operation, its bytes, result and time.
    pub fn trace_hash(&self) -> u64 {
        self.device().trace
    }

    /// The files as the process sees them.
    pub fn list(&self) -> Vec<DirectoryEntry> {
        self.device().list()
    }

    /// The bytes of a file as the process sees them.
    pub fn bytes(&self, name: &str) -> Option<Vec<u8>> {
        let device = self.device();
        device.entries.get(name).map(|&inode| device.inodes[inode].view().to_vec())
    }

    /// The bytes that a power cut is sure to leave of a file, if it is sure to leave its name.
    pub fn durable_bytes(&self, name: &str) -> Option<Vec<u8>> {
        self.device().durable_bytes(name)
    }

    fn device(&self) -> MutexGuard<'_, Device> {
        self.0.device.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The device, when it is still the one that this disk was made on.
    fn device_of(&self, generation: u64) -> io::Result<MutexGuard<'_, Device>> {
        let device = self.device();
        if device.generation == generation {
            return Ok(device);
        }
        Err(io::Error::other("the simulated machine is down"))
    }

    fn take_pool(&self) -> Pool {
        let idle = self.0.pool.lock().unwrap_or_else(PoisonError::into_inner).take();
        match idle {
            Some(pool) if pool.slots_free() == pool.slots() => pool,
            _ => {
                let device = self.device();
                Pool::new(device.options.pool_bytes, device.options.slot_bytes)
                    .expect("a test has the memory for its pool")
            }
        }
    }
}

/// A disk on a simulated device. It never sleeps: waiting moves the virtual clock.
#[derive(Debug)]
pub struct SimDisk {
    sim: SimHandle,
    generation: u64,
    ready: Vec<Completion>,
    pool: Pool,
    wake: Arc<Wake>,
}

impl SimDisk {
    /// A disk on this device. Another one that is still there is dead from now on, as after
    /// [`SimHandle::kill`].
    pub fn new(sim: SimHandle) -> Self {
        let generation = sim.device().attach();
        let pool = sim.take_pool();
        Self { sim, generation, ready: Vec::new(), pool, wake: Arc::new(Wake::inert()) }
    }
}

impl Drop for SimDisk {
    fn drop(&mut self) {
        if let Ok(mut device) = self.sim.device_of(self.generation) {
            // As the ring does: everything in flight ends first.
            while let Some(due_ns) = device.next_due_ns() {
                device.set_now(due_ns);
                device.complete_due(&mut self.ready);
            }
            device.generation += 1;
        }
        *self.sim.0.pool.lock().unwrap_or_else(PoisonError::into_inner) = Some(self.pool.clone());
    }
}

impl Disk for SimDisk {
    fn capacity(&self) -> usize {
        self.sim.device().options.capacity
    }

    fn submit(&mut self, token: Token, operation: Operation) {
        // What a dead machine is given is gone; `reap` says so.
        if let Ok(mut device) = self.sim.device_of(self.generation) {
            self.ready.extend(device.submit(token, operation));
        }
    }

    fn submit_alone(&mut self, token: Token, operation: Operation) {
        let is_durable_write = matches!(operation, Operation::Write { durable: true, .. });
        self.submit(token, operation);
        let has_ended = |ready: &[Completion]| ready.iter().any(|end| end.token == token);
        if !is_durable_write || has_ended(&self.ready) {
            return;
        }
        let Ok(mut device) = self.sim.device_of(self.generation) else { return };
        device.happened.lone_writes += 1;
        while !has_ended(&self.ready) {
            let Some(due_ns) = device.next_due_ns() else { return };
            device.set_now(due_ns);
            device.complete_due(&mut self.ready);
        }
    }

    fn reap(&mut self, completions: &mut Vec<Completion>, wait: Wait) -> io::Result<()> {
        let mut device = self.sim.device_of(self.generation)?;
        let before = completions.len();
        completions.append(&mut self.ready);
        device.complete_due(completions);
        if completions.len() > before {
            return Ok(());
        }
        let end_ns = match wait {
            Wait::No => return Ok(()),
            Wait::For(timeout) => device.now_ns.saturating_add(nanoseconds(timeout)),
            Wait::Forever => u64::MAX,
        };
        match device.next_due_ns() {
            Some(due_ns) if due_ns <= end_ns => device.set_now(due_ns),
            // Nothing can ever happen: the caller has to notice.
            _ if wait == Wait::Forever => {}
            _ => device.set_now(end_ns),
        }
        device.complete_due(completions);
        Ok(())
    }

    fn list(&mut self) -> io::Result<Vec<DirectoryEntry>> {
        Ok(self.sim.device_of(self.generation)?.list())
    }

    fn wake(&self) -> Arc<Wake> {
        self.wake.clone()
    }

    fn pool(&self) -> Pool {
        self.pool.clone()
    }

    fn reader(&self) -> Arc<dyn ReadAt> {
        Arc::new(SimReader { sim: self.sim.clone(), generation: self.generation })
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok(self.sim.device_of(self.generation)?.free_bytes())
    }

    fn description(&self) -> DiskDescription {
        DiskDescription {
            name: "sim",
            direct: true,
            buffers_registered: false,
            notes: vec!["simulated: nothing is stored outside of this process".to_owned()],
        }
    }
}

struct SimReader {
    sim: SimHandle,
    generation: u64,
}

impl ReadAt for SimReader {
    fn read_at(
        &self,
        file: FileId,
        offset: u64,
        into: &mut BufferMut,
        length: usize,
    ) -> io::Result<usize> {
        check_range(offset, 0, length, into.len())?;
        let mut device = self.sim.device_of(self.generation)?;
        device.read_at(file, offset, &mut into[..length])
    }

    fn ongoing_read(&self) -> Option<Box<dyn OngoingRead>> {
        let reader = Self { sim: self.sim.clone(), generation: self.generation };
        Some(Box::new(SimRead { reader, read: None }))
    }
}

/// What it gives is what there was when it was begun.
struct SimRead {
    reader: SimReader,
    read: Option<BufferMut>,
}

impl OngoingRead for SimRead {
    fn begin(&mut self, file: FileId, offset: u64, mut buffer: BufferMut, length: usize) -> bool {
        let read = self.reader.read_at(file, offset, &mut buffer, length);
        self.read = read.is_ok_and(|read| read == length).then_some(buffer);
        true
    }

    fn end(&mut self) -> Option<BufferMut> {
        self.read.take()
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
