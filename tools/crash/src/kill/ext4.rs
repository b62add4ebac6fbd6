//! A file system that is shut down under the engine (EXT4_IOC_SHUTDOWN): what the journal of the
//! file system had not written is gone, as after a power cut; data that reached the device stays.
//! Finds what was not synced in directories and metadata.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::Stop;
use super::cycle::{Aim, Bench, Victim};
use crate::random::Random;
use crate::report::Report;

/// `_IOR('X', 125, u32)` of linux/ext4.h.
const EXT4_IOC_SHUTDOWN: libc::c_ulong = 0x8004_587D;
/// With its journal, it is full of life and still made in a moment.
const IMAGE_BYTES: u64 = 64 << 20;
/// How long a file system may be busy with what a dead process left.
const UNMOUNT_PATIENCE: Duration = Duration::from_secs(10);

/// The ways to shut down: everything written first; the file system's journal only; nothing.
const WAYS: [(u32, &str); 3] = [(0, "default"), (1, "logflush"), (2, "nologflush")];

/// Runs the shutdowns, or says why it cannot.
pub fn run(seed: u64, cycles: u64, stop: &Stop, report: &mut Report) -> Result<()> {
    // Mounts are seen by this thread and its children only, and are gone with them.
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| run_here(seed, cycles, stop, report));
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn run_here(seed: u64, cycles: u64, stop: &Stop, report: &mut Report) -> Result<()> {
    let image = match Image::new() {
        Ok(image) => image,
        Err(error) => {
            report.skip("ext4 shutdown", &format!("{error:#}"));
            return Ok(());
        }
    };
    let mut random = Random::new(!seed);
    let mut bench = Bench::new(!seed, &image.mounted);
    for cycle in 0..cycles {
        stop.check()?;
        let (flag, name) = WAYS[(cycle % 3) as usize];
        if random.one_in(10) {
            bench.begin_directory();
        }
        let mut life = bench.draw(cycle);
        (life.aim, life.close_after_ms) = (Aim::Any, None);
        life.delay = Duration::from_micros(random.below(80_000));
        let (data, model) = bench.data_and_model();
        let mut victim = Victim::start(data, &life)?;
        let mut outcome = victim.hear(model, Instant::now() + life.delay, |_| false).map(drop);
        image.shut_down(flag).context("EXT4_IOC_SHUTDOWN")?;
        // What it acknowledges from now on counts, too; what fails is no fault of the engine's.
        let linger = Duration::from_millis(random.below(4));
        let heard = victim.hear(model, Instant::now() + linger, |_| false).map(drop);
        outcome = outcome.and(heard).and(victim.kill(model));
        drop(victim);
        image.remount()?;
        report.cover(&format!("ext4 shutdowns, {name}"), 1);
        let outcome = outcome.and_then(|()| bench.check(report));
        if bench.judge(cycle, &life, outcome, report)? {
            report.pass(1);
        }
    }
    bench.count_into(report);
    Ok(())
}

/// An ext4 in a file, mounted where nobody else sees it.
struct Image {
    image: PathBuf,
    mounted: PathBuf,
    _directory: tempfile::TempDir,
}

impl Image {
    fn new() -> Result<Self> {
        if !rustix::process::geteuid().is_root() {
            bail!("mounting needs root");
        }
        // SAFETY: no memory is involved; only this thread and those it starts are moved.
        if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
            bail!("no mount namespace: {}", std::io::Error::last_os_error());
        }
        attempt(Command::new("mount").args(["--make-rprivate", "/"]))?;
        let directory = tempfile::tempdir()?;
        let image = directory.path().join("image");
        File::create_new(&image)?.set_len(IMAGE_BYTES)?;
        attempt(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image))?;
        let mounted = directory.path().join("mounted");
        std::fs::create_dir(&mounted)?;
        let image = Self { image, mounted, _directory: directory };
        image.mount()?;
        Ok(image)
    }

    fn mount(&self) -> Result<()> {
        // `-o loop` lets the kernel detach the device with the last mount of it.
        let options = ["-t", "ext4", "-o", "loop"];
        attempt(Command::new("mount").args(options).arg(&self.image).arg(&self.mounted))
    }

    fn shut_down(&self, flag: u32) -> Result<()> {
        let root = File::open(&self.mounted)?;
        // SAFETY: the request reads one u32 from the address, which is that of a live one.
        if unsafe { libc::ioctl(root.as_raw_fd(), EXT4_IOC_SHUTDOWN, &raw const flag) } != 0 {
            return Err(std::io::Error::last_os_error().into());
        }
        Ok(())
    }

    fn remount(&self) -> Result<()> {
        let began = Instant::now();
        // The kernel may be busy with the rings of the dead.
        while let Err(error) = attempt(Command::new("umount").arg(&self.mounted)) {
            if began.elapsed() > UNMOUNT_PATIENCE {
                return Err(error);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        self.mount()
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        // Lazily: a child that was killed may hold on to it for a moment.
        let _ = Command::new("umount").arg("-l").arg(&self.mounted).output();
    }
}

fn attempt(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
