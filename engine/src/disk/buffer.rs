//! Aligned memory: one mapping cut into slots for batches, and single buffers for reading.
//!
//! A slot is written by one owner ([`BufferMut`]), frozen, and then shared ([`Buffer`], and
//! `Bytes` slices of it) until the last holder drops it; only then is it handed out again (I-8).

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

use super::{BLOCK_BYTES, Wake};

/// The buffers of one shard: a single mapping, so that it can be registered as one.
///
/// The last slot handed back is the first handed out again, so an idle engine touches few pages.
#[derive(Clone)]
pub struct Pool(Arc<PoolShared>);

struct PoolShared {
    mapping: NonNull<u8>,
    mapping_bytes: usize,
    slot_bytes: usize,
    free: Mutex<Vec<u32>>,
    /// Set by an owner that found no slot; the next slot that comes back calls `waker`.
    starved: AtomicBool,
    /// Slots of which somebody has slices: see [`Buffer::lend`].
    lent: AtomicUsize,
    waker: OnceLock<Arc<Wake>>,
}

// SAFETY: the mapping is plain memory; each slot is reached only through the one `BufferMut` that
// holds its number, or read-only through `Buffer`s.
unsafe impl Send for PoolShared {}
// SAFETY: as above; the free list has its lock.
unsafe impl Sync for PoolShared {}

impl Pool {
    /// Where the mapping is in memory.
    pub(crate) fn addresses(&self) -> std::ops::Range<usize> {
        let start = self.0.mapping.as_ptr().addr();
        start..start + self.0.mapping_bytes
    }

    /// Maps `pool_bytes / slot_bytes` slots of `slot_bytes` each, a multiple of [`BLOCK_BYTES`].
    ///
    /// # Errors
    /// When the memory cannot be mapped.
    pub fn new(pool_bytes: usize, slot_bytes: usize) -> io::Result<Self> {
        assert!(slot_bytes > 0 && slot_bytes.is_multiple_of(BLOCK_BYTES));
        let slots = u32::try_from((pool_bytes / slot_bytes).max(1)).map_err(io::Error::other)?;
        let mapping_bytes = slots as usize * slot_bytes;
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice.
        let mapping = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                mapping_bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )?
        };
        // Large pages make a batch few pieces for the device and spare the copying thread page-table
        // walks. Without them everything works.
        // SAFETY: the mapping is ours and nothing is in it yet.
        let _ = unsafe { madvise(mapping, mapping_bytes, Advice::LinuxHugepage) };
        let mapping =
            NonNull::new(mapping.cast()).ok_or_else(|| io::Error::other("mmap gave 0"))?;
        Ok(Self(Arc::new(PoolShared {
            mapping,
            mapping_bytes,
            slot_bytes,
            free: Mutex::new((0..slots).rev().collect()),
            starved: AtomicBool::new(false),
            lent: AtomicUsize::new(0),
            waker: OnceLock::new(),
        })))
    }

    /// Calls `waker` when a slot comes back after [`Pool::acquire`] found none.
    pub fn set_waker(&self, waker: Arc<Wake>) {
        let _ = self.0.waker.set(waker);
    }

    /// A slot to write in, or `None` when all are out.
    pub fn acquire(&self) -> Option<BufferMut> {
        let mut free = self.0.free.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(slot) = free.pop() else {
            self.0.starved.store(true, Ordering::SeqCst);
            return None;
        };
        drop(free);
        // SAFETY: the slot number is below the slot count, so the address is inside the mapping.
        let pointer = unsafe { self.0.mapping.add(slot as usize * self.0.slot_bytes) };
        let owner = Owner::Pool { pool: self.0.clone(), slot };
        Some(BufferMut { pointer, length: self.0.slot_bytes, owner })
    }

    /// Asks for the waker to be called when a slot comes back. Look for a slot again afterwards:
    /// one may have come back in between.
    pub fn starve(&self) {
        self.0.starved.store(true, Ordering::SeqCst);
    }

    /// Slots that are not handed out.
    pub fn slots_free(&self) -> usize {
        self.0.free.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Slots that slices pin, of buffers that were lent.
    pub fn slots_lent(&self) -> usize {
        self.0.lent.load(Ordering::Acquire)
    }

    /// All slots.
    pub fn slots(&self) -> usize {
        self.0.mapping_bytes / self.0.slot_bytes
    }

    /// Bytes of a slot.
    pub fn slot_bytes(&self) -> usize {
        self.0.slot_bytes
    }

    /// Address and length of the mapping, for registering it.
    pub fn mapping(&self) -> (*mut u8, usize) {
        (self.0.mapping.as_ptr(), self.0.mapping_bytes)
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("slots", &self.slots())
            .field("slot_bytes", &self.0.slot_bytes)
            .finish_non_exhaustive()
    }
}

impl PoolShared {
    fn release(&self, slot: u32) {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).push(slot);
        if self.starved.load(Ordering::SeqCst)
            && self.starved.swap(false, Ordering::SeqCst)
            && let Some(waker) = self.waker.get()
        {
            waker.wake();
        }
    }
}

impl Drop for PoolShared {
    fn drop(&mut self) {
        // SAFETY: every slot holds an `Arc` of this, so none is out; the mapping is ours.
        let _ = unsafe { munmap(self.mapping.as_ptr().cast(), self.mapping_bytes) };
    }
}

/// Whose memory a buffer is.
enum Owner {
    Pool { pool: Arc<PoolShared>, slot: u32 },
    Heap { layout: Layout },
}

/// Aligned bytes with one owner.
pub struct BufferMut {
    pointer: NonNull<u8>,
    length: usize,
    owner: Owner,
}

// SAFETY: a `BufferMut` is the only way to its memory.
unsafe impl Send for BufferMut {}
// SAFETY: shared access only reads.
unsafe impl Sync for BufferMut {}

impl BufferMut {
    /// Zeroed memory outside any pool, `length` rounded up to whole blocks.
    pub fn allocate(length: usize) -> Self {
        let length = super::block_round_up(length.max(1));
        let layout = Layout::from_size_align(length, BLOCK_BYTES).expect("length below isize::MAX");
        // SAFETY: the layout has a size above zero.
        let pointer = unsafe { alloc_zeroed(layout) };
        let Some(pointer) = NonNull::new(pointer) else { handle_alloc_error(layout) };
        Self { pointer, length, owner: Owner::Heap { layout } }
    }

    /// Gives up writing, so that the bytes can be shared.
    pub fn freeze(self) -> Buffer {
        Buffer(Arc::new(self))
    }

    /// Whether the memory belongs to a pool (and so to what a ring has registered).
    pub fn is_pooled(&self) -> bool {
        matches!(self.owner, Owner::Pool { .. })
    }
}

impl Drop for BufferMut {
    fn drop(&mut self) {
        match &self.owner {
            Owner::Pool { pool, slot } => pool.release(*slot),
            // SAFETY: allocated with this very layout in `allocate`.
            Owner::Heap { layout } => unsafe { dealloc(self.pointer.as_ptr(), *layout) },
        }
    }
}

impl Deref for BufferMut {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `pointer` is valid for `length` initialized bytes while the owner lives.
        unsafe { std::slice::from_raw_parts(self.pointer.as_ptr(), self.length) }
    }
}

impl DerefMut for BufferMut {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` is the only way to the bytes.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.as_ptr(), self.length) }
    }
}

impl fmt::Debug for BufferMut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BufferMut").field("length", &self.length).finish_non_exhaustive()
    }
}

/// Aligned bytes that nobody writes any more. A clone counts a holder; nothing is copied.
#[derive(Clone, Debug)]
pub struct Buffer(Arc<BufferMut>);

impl Buffer {
    /// Whether the memory belongs to a pool.
    pub fn is_pooled(&self) -> bool {
        self.0.is_pooled()
    }

    /// The bytes to write to again, if nobody else holds them.
    pub fn into_mut(self) -> Option<BufferMut> {
        Arc::try_unwrap(self.0).ok()
    }

    /// The whole buffer as `Bytes` over the same memory. One small allocation; slices of the
    /// result share it.
    pub fn to_bytes(&self) -> Bytes {
        Bytes::from_owner(self.clone())
    }
}

impl Buffer {
    /// As [`Buffer::to_bytes`], and as long as a slice of it lives, its slot counts as lent.
    pub fn lend(&self) -> Bytes {
        let count = match &self.0.owner {
            Owner::Pool { pool, .. } => {
                pool.lent.fetch_add(1, Ordering::AcqRel);
                Some(LentCount(pool.clone()))
            }
            Owner::Heap { .. } => None,
        };
        Bytes::from_owner(Lent { buffer: self.clone(), _count: count })
    }
}

/// A buffer behind slices. Given back before it is counted no more.
struct Lent {
    buffer: Buffer,
    _count: Option<LentCount>,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

struct LentCount(Arc<PoolShared>);

impl Drop for LentCount {
    fn drop(&mut self) {
        self.0.lent.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_returns_when_the_last_slice_drops() {
        let pool = Pool::new(2 * BLOCK_BYTES, BLOCK_BYTES).unwrap();
        let mut slot = pool.acquire().unwrap();
        slot[..3].copy_from_slice(b"abc");
        let address = slot.as_ptr();
        let buffer = slot.freeze();
        let slice = buffer.to_bytes().slice(..3);
        assert_eq!(slice.as_ptr(), address);
        drop(buffer);
        assert_eq!(pool.slots_free(), 1);
        let other = std::thread::spawn(move || assert_eq!(&slice[..], b"abc"));
        other.join().unwrap();
        assert_eq!(pool.slots_free(), 2);
    }

    #[test]
    fn a_slot_counts_as_lent_as_long_as_a_slice_of_it_lives() {
        let pool = Pool::new(2 * BLOCK_BYTES, BLOCK_BYTES).unwrap();
        let buffer = pool.acquire().unwrap().freeze();
        assert_eq!(pool.slots_lent(), 0, "who fills it or writes it is no borrower");
        let whole = buffer.lend();
        let slices = [whole.slice(..3), whole.slice(3..5)];
        drop((buffer, whole));
        assert_eq!((pool.slots_lent(), pool.slots_free()), (1, 1));
        drop(slices);
        assert_eq!((pool.slots_lent(), pool.slots_free()), (0, 2));
        let buffer = pool.acquire().unwrap().freeze();
        drop(buffer.lend());
        assert_eq!((pool.slots_lent(), pool.slots_free()), (0, 1), "its write goes on");
        assert_eq!(BufferMut::allocate(1).freeze().lend().len(), BLOCK_BYTES);
    }

    #[test]
    fn an_empty_pool_says_so_and_wakes_when_a_slot_returns() {
        let pool = Pool::new(BLOCK_BYTES, BLOCK_BYTES).unwrap();
        let wake = Arc::new(Wake::new().unwrap());
        pool.set_waker(wake.clone());
        let slot = pool.acquire().unwrap();
        assert!(pool.acquire().is_none());
        wake.park();
        drop(slot);
        let mut count = [0u8; 8];
        assert_eq!(rustix::io::read(wake.event().unwrap(), &mut count).unwrap(), 8);
        assert!(pool.acquire().is_some());
    }

    #[test]
    fn a_buffer_is_written_to_again_only_when_nobody_holds_a_slice() {
        let buffer = BufferMut::allocate(1).freeze();
        let slice = buffer.to_bytes().slice(1..);
        assert!(buffer.clone().into_mut().is_none());
        drop(slice);
        assert!(buffer.into_mut().is_some());
    }

    #[test]
    fn heap_buffers_are_aligned_and_zeroed() {
        let buffer = BufferMut::allocate(5000);
        assert_eq!(buffer.len(), 8192);
        assert_eq!(buffer.as_ptr() as usize % BLOCK_BYTES, 0);
        assert!(buffer.iter().all(|&byte| byte == 0));
        assert!(!buffer.is_pooled());
    }
}
