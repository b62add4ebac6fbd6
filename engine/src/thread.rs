//! A shard's own thread: opens the disk, recovers, and then turns the loop until it is closed.

use std::io;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{JoinHandle, ThreadId};

use crate::clock::Clock;
use crate::config::{Io, Options};
use crate::directory::Directory;
use crate::disk::Disk;
use crate::disk::blocking::{BlockingDisk, BlockingOptions};
use crate::disk::failing::FailingDisk;
use crate::disk::uring::{UringDisk, UringOptions};
use crate::engine::end_readers;
use crate::error::{OpenError, Poisoned};
use crate::opening::{Driven, Opened, RecoveryReport, open_shard};
use crate::shared::Shared;

/// A shard that runs.
pub(crate) struct ShardThread {
    pub(crate) shared: Arc<Shared>,
    pub(crate) report: RecoveryReport,
    pub(crate) handle: Option<JoinHandle<Option<Poisoned>>>,
}

impl ShardThread {
    /// The thread, unless it has been joined.
    pub(crate) fn id(&self) -> Option<ThreadId> {
        self.handle.as_ref().map(|handle| handle.thread().id())
    }
}

type Ready = Result<(Arc<Shared>, RecoveryReport), OpenError>;

/// Starts the thread of one shard; [`Starting::finish`] waits until it is open.
pub(crate) struct Starting {
    shard: u16,
    handle: JoinHandle<Option<Poisoned>>,
    ready: std::sync::mpsc::Receiver<Ready>,
}

/// Starts a shard's thread.
pub(crate) fn start(
    directory: &Arc<Directory>,
    shard: u16,
    options: &Options,
    clock: Clock,
) -> Result<Starting, OpenError> {
    // Without room, so that the thread knows whether somebody has heard it.
    let (sender, ready) = sync_channel(0);
    let (directory, options) = (directory.clone(), options.clone());
    let handle = std::thread::Builder::new()
        .name(thread_name(shard))
        .spawn(move || thread(&directory, shard, &options, clock, &sender))
        .map_err(|source| OpenError::Thread { shard, source })?;
    Ok(Starting { shard, handle, ready })
}

impl Starting {
    /// The running shard, or why it could not be opened.
    pub(crate) fn finish(self) -> Result<ShardThread, OpenError> {
        let shard = self.shard;
        let (shared, report) = self.ready.recv().unwrap_or_else(|_| {
            let source = io::Error::other("it ended before it was open");
            Err(OpenError::Thread { shard, source })
        })?;
        Ok(ShardThread { shared, report, handle: Some(self.handle) })
    }
}

fn thread(
    directory: &Directory,
    shard: u16,
    options: &Options,
    clock: Clock,
    ready: &SyncSender<Ready>,
) -> Option<Poisoned> {
    if options.pin {
        // Best effort: a refusal (a smaller cpuset, say) only means that the thread may move.
        let _ = pin(shard);
    }
    // Waits are timed in microseconds; the default slack of 50 would blur them.
    let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1_000));
    let opened = match open(directory, shard, options, clock) {
        Ok(opened) => opened,
        Err(error) => {
            let _ = ready.send(Err(error));
            return None;
        }
    };
    let Opened { shared, driven, report } = opened;
    shared.stats().thread_id = rustix::thread::gettid().as_raw_nonzero().get() as u32;
    let nobody_waits = ready.send(Ok((shared.clone(), report))).is_err();
    match driven {
        // Another shard failed to start: the directory is not open.
        Driven::Loop(mut shard) if nobody_waits => {
            shard.abandon();
            None
        }
        Driven::Loop(mut shard) => {
            while !shard.is_done() {
                let wait = shard.next_wait();
                shard.step(wait, true);
            }
            // Also when nobody joins this thread.
            end_readers(&shared);
            shard.poisoned().cloned()
        }
        Driven::ReadOnly { .. } => None,
    }
}

/// Opens a shard's disk and recovers it, in the thread that will drive it.
pub(crate) fn open(
    directory: &Directory,
    shard: u16,
    options: &Options,
    clock: Clock,
) -> Result<Opened, OpenError> {
    let path = directory.shard_path(shard);
    let mut disk = open_disk(directory, shard, options)?;
    if let Some(fails) = &options.fails {
        disk = Box::new(FailingDisk::new(disk, fails.clone()));
    }
    open_shard(disk, &path, shard, &directory.identity(), options, clock)
}

/// The kernel keeps 15 bytes of a name, which must tell the shards apart.
fn thread_name(shard: u16) -> String {
    match shard {
        0..=9 => format!("ringwal-shard-{shard}"),
        10.. => format!("ringwal-shard{shard}"),
    }
}

fn open_disk(
    directory: &Directory,
    shard: u16,
    options: &Options,
) -> Result<Box<dyn Disk>, OpenError> {
    let path = directory.shard_path(shard);
    let slot_bytes = options.batch_bytes_for(directory.segment_bytes);
    let (pool_bytes, read_only) = (options.pool_bytes, options.read_only);
    let blocking = || {
        BlockingDisk::open(&path, BlockingOptions { pool_bytes, slot_bytes, read_only })
            .map_err(OpenError::io("open", &path))
    };
    // Reading happens on the readers' threads; a ring would only cost memory.
    if options.io == Io::Blocking || read_only {
        return Ok(Box::new(blocking()?));
    }
    let uring = UringOptions {
        pool_bytes,
        slot_bytes,
        sqpoll_idle: options.sqpoll,
        files_max: files_max(),
        read_only,
        ..UringOptions::default()
    };
    match UringDisk::open(&path, uring, directory.lock()) {
        Ok(disk) => Ok(Box::new(disk)),
        Err(error) if options.io_fallback => {
            let note = format!("plain system calls in place of io_uring: {error}");
            Ok(Box::new(blocking()?.with_note(note)))
        }
        Err(error) => Err(error.into()),
    }
}

/// Files that a ring can know: as many as the process may open, within reason. 8 bytes each.
fn files_max() -> u32 {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit.unwrap_or(u64::MAX).min(1 << 16) as u32
}

fn pin(shard: u16) -> io::Result<()> {
    let allowed = rustix::thread::sched_getaffinity(None)?;
    let cores: Vec<usize> = (0..1024).filter(|core| allowed.is_set(*core)).collect();
    let mut wanted = rustix::thread::CpuSet::new();
    let core = cores.get(shard as usize % cores.len().max(1));
    wanted.set(*core.ok_or_else(|| io::Error::other("no core is allowed"))?);
    rustix::thread::sched_setaffinity(None, &wanted)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::format::SHARDS_MAX;

    /// As when the thread of another shard cannot be started, at any point of the opening.
    #[test]
    fn a_start_that_nobody_waits_for_gives_the_directory_back() {
        let path = tempfile::tempdir().unwrap();
        let options = Options::default().io(Io::Blocking).segment_bytes(64 << 10);
        let anchor = path.path().join("shard-00").join(crate::opening::ANCHOR);
        for looks in 0..40 {
            let directory = Arc::new(Directory::open(path.path(), &options).unwrap());
            let starting = start(&directory, 0, &options, Clock::real()).unwrap();
            drop(directory);
            if looks >= 20 {
                // The last file of an opening; after that the thread only has to say so.
                while !anchor.exists() {
                    std::thread::yield_now();
                }
                (0..100 * (looks - 20)).for_each(|_| std::thread::yield_now());
            }
            let Starting { handle, ready, .. } = starting;
            drop(ready);
            let (sender, ended) = sync_channel(1);
            std::thread::spawn(move || sender.send(handle.join().is_ok_and(|end| end.is_none())));
            assert_eq!(ended.recv_timeout(Duration::from_secs(30)), Ok(true), "it goes on");
        }
        let mut shard = options.lock_wait(Duration::ZERO).open_shard(path.path()).unwrap();
        let token = shard.append(crate::StreamId::new(7), b"one").unwrap();
        shard.close().unwrap();
        assert_eq!(token.wait().unwrap().offset(), 0);
    }

    #[test]
    fn every_shard_has_a_name_that_the_kernel_keeps_whole() {
        let names: Vec<_> = (0..SHARDS_MAX as u16).map(thread_name).collect();
        assert_eq!((names[3].as_str(), names[42].as_str()), ("ringwal-shard-3", "ringwal-shard42"));
        assert!(names.iter().all(|name| name.len() <= 15), "{names:?}");
        let distinct: std::collections::HashSet<_> = names.iter().collect();
        assert_eq!(distinct.len(), names.len());
    }
}
