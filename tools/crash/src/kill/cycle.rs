//! One life of a child: started, heard, killed in the phase aimed at, and checked.

use std::collections::BTreeSet;
use std::fmt;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use ringwal_engine::offline::{FileState, inspect, verify};
use ringwal_engine::{OpenError, Options};

use super::child::options;
use super::model::Model;
use crate::random::Random;
use crate::report::Report;

/// How long the phase aimed at may take to come; then any moment will do.
const PATIENCE: Duration = Duration::from_millis(400);

/// What a kill aims at.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Aim {
    Any,
    Open,
    Prepare,
    Roll,
    Trim,
    Close,
}

impl Aim {
    /// All that must be hit.
    pub const PHASES: [Aim; 5] = [Aim::Open, Aim::Prepare, Aim::Roll, Aim::Trim, Aim::Close];

    /// The name under which hits are counted.
    pub fn hits(self) -> String {
        format!("kills during {self}")
    }
}

impl fmt::Display for Aim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Aim::Any => "any",
            Aim::Open => "open",
            Aim::Prepare => "prepare",
            Aim::Roll => "roll",
            Aim::Trim => "trim",
            Aim::Close => "close",
        })
    }
}

/// How the child is ended.
#[derive(Debug)]
pub struct Life {
    pub contents: u64,
    pub seed: u64,
    pub shards: u16,
    pub way: &'static str,
    pub aim: Aim,
    /// When to strike, after the phase has begun.
    pub delay: Duration,
    pub close_after_ms: Option<u64>,
}

impl Life {
    /// A life, by chance.
    pub fn draw(random: &mut Random, contents: u64, shards: u16, cycle: u64) -> Self {
        let way = ["uring-dsync", "uring-fdatasync", "blocking"][(cycle % 3) as usize];
        let aim = match random.below(6) {
            0 => Aim::Any,
            at => Aim::PHASES[at as usize - 1],
        };
        let most_us = match aim {
            Aim::Any => 60_000,
            Aim::Open => 12_000,
            Aim::Prepare | Aim::Roll | Aim::Close => 3_000,
            Aim::Trim => 800,
        };
        let delay = Duration::from_micros(random.below(most_us));
        let closes = aim == Aim::Close || random.one_in(12);
        let close_after_ms = closes.then(|| 1 + random.below(25));
        Self { contents, seed: random.next(), shards, way, aim, delay, close_after_ms }
    }
}

/// A child that is dead at the latest when this is dropped.
pub struct Victim {
    process: Child,
    lines: Receiver<String>,
    reader: Option<std::thread::JoinHandle<()>>,
    /// Phases that have begun and not ended, by name and stream.
    within: BTreeSet<String>,
    /// It closed the engine and is gone by itself.
    pub closed: bool,
    /// It said that the engine has failed.
    pub error: Option<String>,
}

impl Victim {
    /// Starts one.
    pub fn start(data: &Path, life: &Life) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe().context("finding this program")?);
        command.arg("kill-child").arg("--data").arg(data);
        command.arg("--contents").arg(life.contents.to_string());
        command.arg("--life").arg(life.seed.to_string());
        command.arg("--shards").arg(life.shards.to_string());
        command.arg("--way").arg(life.way);
        command.arg("--parent").arg(std::process::id().to_string());
        if let Some(close_after_ms) = life.close_after_ms {
            command.arg("--close-after-ms").arg(close_after_ms.to_string());
        }
        if matches!(life.aim, Aim::Prepare | Aim::Roll) {
            command.arg("--watch");
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut process = command.spawn().context("starting the child")?;
        let stdout = process.stdout.take().context("the child has no output")?;
        let (sender, lines) = sync_channel(4096);
        let reader = std::thread::spawn(move || {
            let mut stdout = BufReader::new(stdout);
            let mut line = String::new();
            while stdout.read_line(&mut line).is_ok_and(|length| length > 0) {
                // A line without its end was cut by the kill: it was not said.
                let Some(whole) = line.strip_suffix('\n') else { return };
                if sender.send(whole.to_owned()).is_err() {
                    return;
                }
                line.clear();
            }
        });
        let (within, reader) = (BTreeSet::new(), Some(reader));
        Ok(Self { process, lines, reader, within, closed: false, error: None })
    }

    /// Hears lines until `until`, or one for which `done` holds, or the child has gone.
    pub fn hear(
        &mut self,
        model: &mut Model,
        until: Instant,
        mut done: impl FnMut(&str) -> bool,
    ) -> Result<bool, String> {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    let is_done = done(&line);
                    self.take(model, &line)?;
                    if is_done {
                        return Ok(true);
                    }
                }
                Err(RecvTimeoutError::Timeout) => return Ok(false),
                Err(RecvTimeoutError::Disconnected) => return Ok(false),
            }
        }
    }

    fn take(&mut self, model: &mut Model, line: &str) -> Result<(), String> {
        if let Some(error) = line.strip_prefix("error ") {
            self.error = Some(error.to_owned());
            return Ok(());
        }
        let phase: String = line.split(' ').skip(1).take(2).collect::<Vec<_>>().join(" ");
        if line.starts_with("begin ") {
            self.within.insert(phase);
        } else if line.starts_with("end ") {
            self.within.remove(&phase);
            self.closed |= line == "end close";
        }
        model.hear(line)
    }

    /// Kills it, waits until it is gone, and hears the rest.
    pub fn kill(&mut self, model: &mut Model) -> Result<(), String> {
        // It may be gone by itself.
        let _ = self.process.kill();
        self.process.wait().map_err(|error| format!("waiting for the child: {error}"))?;
        while let Ok(line) = self.lines.recv() {
            self.take(model, &line)?;
        }
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        Ok(())
    }

    /// Whether it was killed in this phase, as it said itself.
    fn was_within(&self, aim: Aim) -> bool {
        let name = aim.to_string();
        self.within.iter().any(|phase| phase.split(' ').next() == Some(name.as_str()))
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Directories that are written and killed one life after another.
pub struct Bench {
    seed: u64,
    random: Random,
    place: PathBuf,
    directories: u64,
    data: PathBuf,
    shards: u16,
    model: Model,
    receipts: u64,
    compared: u64,
}

impl Bench {
    /// In this directory.
    pub fn new(seed: u64, place: &Path) -> Self {
        let mut bench = Self {
            seed,
            random: Random::new(seed),
            place: place.to_owned(),
            directories: 0,
            data: PathBuf::new(),
            shards: 1,
            model: Model::new(0),
            receipts: 0,
            compared: 0,
        };
        bench.begin_directory();
        bench
    }

    /// Goes on in a directory that is not there yet.
    pub fn begin_directory(&mut self) {
        self.receipts += self.model.receipts;
        self.compared += self.model.compared;
        let _ = std::fs::remove_dir_all(&self.data);
        self.directories += 1;
        self.data = self.place.join(format!("data-{}", self.directories));
        self.shards = 1 + self.random.below(2) as u16;
        self.model = Model::new(self.random.next());
    }

    /// One life and its end; whether all was well. What was wrong is in the report then.
    ///
    /// # Errors
    /// When the child cannot even be started.
    pub fn kill_and_check(&mut self, cycle: u64, report: &mut Report) -> Result<bool> {
        if cycle > 0 && self.random.one_in(12) {
            self.begin_directory();
        }
        let life = self.draw(cycle);
        let mut victim = Victim::start(&self.data, &life)?;
        let outcome = self.kill(&mut victim, &life).and_then(|()| {
            report.cover(if victim.closed { "clean closes" } else { "kills" }, 1);
            report.cover(&format!("lives with {}", life.way), 1);
            if let Some(error) = &victim.error {
                return Err(format!("the child failed: {error}"));
            }
            let evidence = Evidence::of(&self.data);
            for aim in Aim::PHASES {
                if !victim.closed && (victim.was_within(aim) || evidence.shows(aim)) {
                    report.cover(&aim.hits(), 1);
                }
            }
            self.check(report)
        });
        self.judge(cycle, &life, outcome, report)
    }

    /// What the next life is like.
    pub fn draw(&mut self, cycle: u64) -> Life {
        Life::draw(&mut self.random, self.model.contents(), self.shards, cycle)
    }

    /// The directory and what was heard of it.
    pub fn data_and_model(&mut self) -> (&Path, &mut Model) {
        (&self.data, &mut self.model)
    }

    /// Reports what was wrong and begins anew then.
    pub fn judge(
        &mut self,
        cycle: u64,
        life: &Life,
        outcome: Result<(), String>,
        report: &mut Report,
    ) -> Result<bool> {
        let Err(what) = outcome else { return Ok(true) };
        let kept = tempfile::Builder::new().prefix("ringwal-kill-").tempdir()?.keep();
        let copied = copy(&self.data, &kept);
        report.fail(format!(
            "kill --seed {}, cycle {cycle}, {life:?}: {what}; the directory is kept in {} \
             (copied: {})",
            self.seed,
            kept.display(),
            copied.is_ok()
        ));
        self.begin_directory();
        Ok(false)
    }

    fn kill(&mut self, victim: &mut Victim, life: &Life) -> Result<(), String> {
        let patience = Instant::now() + PATIENCE;
        match life.aim {
            Aim::Any => {}
            aim => {
                let name = format!("begin {aim}");
                victim.hear(&mut self.model, patience, |line| line.starts_with(&name))?;
            }
        }
        victim.hear(&mut self.model, Instant::now() + life.delay, |_| false)?;
        victim.kill(&mut self.model)
    }

    /// Opens the directory and holds it against what was heard.
    pub fn check(&mut self, report: &mut Report) -> Result<(), String> {
        self.check_opened(&options("blocking").read_only(true))?;
        report.cover("checks after a read-only open", 1);
        if self.random.one_in(4) && !self.model.is_new {
            let verification = verify(&self.data).map_err(|error| error.to_string())?;
            if verification.is_damaged() {
                return Err(format!("verify finds {:?}", verification.findings));
            }
            report.cover("checks by verify", 1);
            self.check_opened(&options("uring-dsync"))?;
            report.cover("checks after an open for writing", 1);
        }
        Ok(())
    }

    fn check_opened(&mut self, options: &Options) -> Result<(), String> {
        let engine = match options.open(&self.data) {
            Ok(engine) => engine,
            Err(OpenError::Missing { .. }) if self.model.may_be_missing() => return Ok(()),
            Err(error) => return Err(format!("opening: {error}")),
        };
        self.model.check(&engine)?;
        engine.close().map(drop).map_err(|error| format!("closing: {error}"))
    }

    /// Adds what was heard and compared to the report.
    pub fn count_into(&mut self, report: &mut Report) {
        report.cover("directories", self.directories);
        report.cover("receipts heard", self.receipts + self.model.receipts);
        report.cover("records compared", self.compared + self.model.compared);
    }
}

/// What a kill left behind, from which the phase can be told.
#[derive(Debug, Default)]
struct Evidence {
    unfinished: bool,
    rolling: bool,
}

impl Evidence {
    fn of(data: &Path) -> Self {
        let Ok(inspection) = inspect(data) else { return Self::default() };
        let mut evidence = Self::default();
        for shard in &inspection.shards {
            let count = |state| shard.files.iter().filter(|file| file.state == state).count();
            evidence.unfinished |= count(FileState::Unreadable) > 0;
            // The newest has begun, and the one before has no footer yet.
            evidence.rolling |= count(FileState::Live) + count(FileState::Open) > 1;
        }
        evidence
    }

    fn shows(&self, aim: Aim) -> bool {
        match aim {
            Aim::Prepare => self.unfinished,
            Aim::Roll => self.rolling,
            _ => false,
        }
    }
}

fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
