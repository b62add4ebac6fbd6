//! The process that runs the engine under test, and the lines that it and its parent exchange.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use ringwal_engine::{Engine, Io, Options, SyncMode};
use serde::{Deserialize, Serialize};

use super::system::{Loop, Mount, leave_namespace, raw_stdout};
use super::{load, obey};

/// What a role is given.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Setup {
    /// What it does.
    pub role: Kind,
    /// The file under its loop device; without one the engine runs in `place` itself.
    pub file: Option<PathBuf>,
    /// File system on the loop device.
    pub file_system: String,
    /// Where it is mounted, or what is used as it is.
    pub place: PathBuf,
    /// What everything random comes from.
    pub seed: u64,
    /// Counts the opens of a run.
    pub life: u32,
    /// Shards of the engine.
    pub shards: u16,
    /// One of [`BACKENDS`].
    pub backend: usize,
    /// Break the harness: say that a record is acknowledged when it is submitted.
    pub early: bool,
    /// [`Kind::Obey`]: say with each answer where the segments are on the device. To look, it reads
    /// directories, which a disk that stands still does not answer.
    pub tells_extents: bool,
}

/// What a role does.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub enum Kind {
    /// Appends, trims, rolls and closes; says what was acknowledged.
    Load,
    /// Does what it is told, line by line.
    Obey,
}

/// The ways to the device that are tested.
pub const BACKENDS: [(&str, Io, SyncMode); 3] = [
    ("uring dsync", Io::Uring, SyncMode::Dsync),
    ("uring fdatasync", Io::Uring, SyncMode::Fdatasync),
    ("blocking", Io::Blocking, SyncMode::Dsync),
];

/// Length of every segment here.
pub const SEGMENT_BYTES: u64 = 1 << 20;

/// The options of every engine here.
pub fn options(shards: u16, backend: usize) -> Options {
    let (_, io, sync) = BACKENDS[backend];
    let options = Engine::options().segment_bytes(SEGMENT_BYTES).pool_bytes(2 << 20);
    options.shards(shards).io(io).sync(sync)
}

impl Setup {
    /// As [`options`].
    pub fn options(&self) -> Options {
        options(self.shards, self.backend)
    }

    /// Name of the loop device that is mounted at its place.
    ///
    /// # Errors
    /// When nothing is.
    pub fn device_name(&self) -> Result<String> {
        let mounts = std::fs::read_to_string("/proc/self/mounts")?;
        let place = self.place.to_string_lossy();
        let line = mounts.lines().find(|line| line.split(' ').nth(1) == Some(&*place));
        let device = line.and_then(|line| line.split(' ').next());
        let name = device.and_then(|device| device.strip_prefix("/dev/"));
        Ok(name.with_context(|| format!("nothing is mounted on {place}"))?.to_owned())
    }

    /// The engine's directory.
    pub fn directory(&self) -> PathBuf {
        self.place.join(super::states::DIRECTORY)
    }
}

/// Options that one file system needs to be mounted here.
pub fn mount_options(file_system: &str) -> &'static str {
    match file_system {
        "xfs" => "nouuid",
        _ => "errors=remount-ro",
    }
}

/// The hidden command: what [`Role::start`] starts.
#[derive(Debug, clap::Args)]
pub struct RoleArguments {
    setup: String,
}

impl RoleArguments {
    /// Plays the role. It dies with its parent.
    ///
    /// # Errors
    /// Whatever goes wrong before or after the load itself.
    pub fn play(&self) -> Result<()> {
        let kill = rustix::process::Signal::KILL;
        rustix::process::set_parent_process_death_signal(Some(kill))?;
        let setup: Setup = serde_json::from_str(&self.setup).context("the setup of a role")?;
        leave_namespace()?;
        let mut mounted = None;
        if let Some(path) = &setup.file {
            let file = File::options().read(true).write(true).open(path);
            let device = Loop::attach(&file.context("the file under the loop device")?)?;
            let mut options = mount_options(&setup.file_system).to_owned();
            if setup.role == Kind::Obey {
                // A fault that comes once is for the engine, not for a commit of the journal.
                options += ",commit=300";
            }
            let mount = Mount::new(&setup.file_system, device.path(), &setup.place, &options)?;
            mounted = Some((mount, device));
        }
        let voice = Voice::new()?;
        match setup.role {
            Kind::Load => load::run(&setup, &voice)?,
            Kind::Obey => obey::run(&setup, &voice)?,
        }
        if let Some((mount, device)) = mounted {
            mount.unmount()?;
            drop(device);
        }
        voice.say("done");
        Ok(())
    }
}

/// How the process of a role ends.
pub fn exit_code(outcome: Result<()>) -> std::process::ExitCode {
    match outcome {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

/// How a role talks to its parent.
#[derive(Clone, Debug)]
pub struct Voice {
    output: Arc<Mutex<File>>,
}

impl Voice {
    fn new() -> Result<Voice> {
        Ok(Voice { output: Arc::new(Mutex::new(raw_stdout()?)) })
    }

    /// One line; it is with the parent when this returns.
    pub fn say(&self, line: &str) {
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        // A parent that is gone takes this process with it.
        let _ = output.write_all(format!("{line}\n").as_bytes());
    }

    /// The parent's next line; `None` when there is no more.
    pub fn hear(&self) -> Option<String> {
        let mut line = String::new();
        match std::io::stdin().read_line(&mut line) {
            Ok(1..) => Some(line.trim_end().to_owned()),
            _ => None,
        }
    }
}

/// A role that is being played; killed at the latest when this is dropped.
#[derive(Debug)]
pub struct Role {
    process: Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl Role {
    /// Starts a process. Each of its lines goes through `on_line`, at once, and then to
    /// [`Role::hear`].
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(setup: &Setup, on_line: impl Fn(&str) + Send + 'static) -> Result<Role> {
        let mut process = Command::new("/proc/self/exe")
            .args(["block-role", &serde_json::to_string(setup)?])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting a role")?;
        let output = process.stdout.take().context("its output")?;
        let input = process.stdin.take();
        let (said, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                on_line(&line);
                if said.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Role { process, input, lines })
    }

    /// Tells it something.
    pub fn tell(&mut self, line: &str) -> Result<()> {
        let input = self.input.as_mut().context("its input")?;
        writeln!(input, "{line}").context("telling a role")
    }

    /// Its next line; `None` when it has ended.
    ///
    /// # Errors
    /// When it says nothing for too long.
    pub fn hear(&mut self, limit: Duration) -> Result<Option<String>> {
        match self.lines.recv_timeout(limit) {
            Ok(line) => Ok(Some(line)),
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => bail!("a role has said nothing for {limit:?}"),
        }
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When that takes too long.
    pub fn end(&mut self, limit: Duration) -> Result<std::process::ExitStatus> {
        let deadline = Instant::now() + limit;
        self.input = None;
        while Instant::now() < deadline {
            if let Some(status) = self.process.try_wait()? {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        bail!("a role does not end")
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        let _ = self.process.kill();
        // Not for ever: its last I/O may wait for a disk that is about to be aborted.
        let _ = self.end(Duration::from_secs(2));
    }
}
