//! Waking a shard that sleeps in its disk. While it is awake, a call costs a
//! SeqCst fence and a load.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

/// Interrupts [`super::Disk::reap`].
///
/// The sleeper calls [`Wake::park`], looks once more for work, sleeps, and calls
/// [`Wake::unpark`]. Whoever brings work publishes it first and then calls [`Wake::wake`], so
/// that either the sleeper's second look sees the work or the caller sees the flag.
#[derive(Debug)]
pub struct Wake {
    parked: AtomicBool,
    event: Option<OwnedFd>,
}

impl Wake {
    /// A wake-up over an eventfd, which the disk listens to.
    ///
    /// # Errors
    /// When the process is out of file descriptors.
    pub fn new() -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { parked: AtomicBool::new(false), event: Some(event) })
    }

    /// A wake-up for a disk that never sleeps (the simulated one).
    pub fn inert() -> Self {
        Self { parked: AtomicBool::new(false), event: None }
    }

    /// The eventfd to listen to.
    pub fn event(&self) -> Option<BorrowedFd<'_>> {
        self.event.as_ref().map(AsFd::as_fd)
    }

    /// Says that the owner is about to sleep.
    pub fn park(&self) {
        self.parked.store(true, Ordering::SeqCst);
    }

    /// Says that the owner is awake.
    pub fn unpark(&self) {
        self.parked.store(false, Ordering::SeqCst);
    }

    /// Wakes the owner when it sleeps.
    pub fn wake(&self) {
        // Pairs with the SeqCst store in `park`: the caller's work was published before.
        std::sync::atomic::fence(Ordering::SeqCst);
        if self.parked.load(Ordering::Relaxed) && self.parked.swap(false, Ordering::SeqCst) {
            self.ring();
        }
    }

    fn ring(&self) {
        if let Some(event) = &self.event {
            // A full counter (EAGAIN) means that a wake-up is pending already.
            let _ = rustix::io::write(event, &1u64.to_ne_bytes());
        }
    }

    /// Sleeps until it is called or `timeout` has passed, without a disk that could wake as well.
    pub fn sleep(&self, timeout: Option<Duration>) -> io::Result<()> {
        let Some(event) = &self.event else { return Ok(()) };
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let left = left.and_then(|left| Timespec::try_from(left).ok());
            match poll(&mut [PollFd::new(event, PollFlags::IN)], left.as_ref()) {
                Err(Errno::INTR) => {}
                Ok(0) => return Ok(()),
                Ok(_) => {
                    self.clear();
                    return Ok(());
                }
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Takes the pending wake-ups off the eventfd.
    pub fn clear(&self) {
        if let Some(event) = &self.event {
            let mut count = [0u8; 8];
            let _ = rustix::io::read(event, &mut count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sleep_ends_with_its_time_or_a_call() {
        let wake = Wake::new().unwrap();
        wake.sleep(Some(Duration::from_millis(1))).unwrap();
        wake.park();
        wake.wake();
        wake.sleep(None).unwrap();
        // The call was taken: this one ends by its time.
        wake.sleep(Some(Duration::from_millis(1))).unwrap();
    }
}
