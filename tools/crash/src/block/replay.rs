//! `replay`: the equivalent of dm-log-writes. The engine runs on a real file system over our FUSE
//! file, which logs every write and flush with a mark for each receipt; then states that a loss of
//! power could have left are built from the log and judged.
//!
//! A state is a place in the log. What was flushed before it is there; of what was written since,
//! each write is there, is lost, or is torn: between sectors of 512 bytes in segments, between
//! blocks of 4 KiB in what belongs to the file system.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use super::device::{Device, Entry, Server};
use super::history::{Asked, History};
use super::image::{BLOCK_BYTES, Image};
use super::role::{Kind, Role, Setup};
use super::states::{State, StateDisk};
use super::system::{Private, leave_namespace, make_file_system};
use super::watchdog::Watchdog;
use crate::cli::Request;
use crate::random::Random;
use crate::report::Report;

const EXT4_BYTES: usize = 32 << 20;
const XFS_BYTES: usize = 300 << 20;
/// In CI.
const EXT4_STATES: u64 = 1_500;
const XFS_STATES: u64 = 200;
/// States of one recording.
const STATES_PER_RUN: u64 = 100;
/// States of each broken harness in a self-check.
const SELF_CHECK_STATES: u64 = 300;
const LINE_LIMIT: Duration = Duration::from_secs(60);
const STEP_LIMIT: Duration = Duration::from_secs(120);

/// The options of `replay`.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ReplayArguments {
    /// Only this file system: ext4 or xfs. Default: ext4, and xfs for every eighth state.
    #[arg(long, value_name = "KIND", value_parser = ["ext4", "xfs"])]
    fs: Option<String>,
    /// Shows that it has teeth: it must catch a log in which records are acknowledged early, and
    /// one whose flushes do nothing.
    #[arg(long)]
    self_check: bool,
    /// Keeps the image of each state that fails in this directory.
    #[arg(long, value_name = "DIRECTORY")]
    keep: Option<PathBuf>,
}

/// What is broken on purpose.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Broken {
    Nothing,
    /// Records count as acknowledged when they are submitted.
    Early,
    /// No flush makes anything durable.
    NoFlush,
}

/// Runs it.
///
/// # Errors
/// When the harness itself fails.
pub fn run(request: Request, arguments: &ReplayArguments, report: &mut Report) -> Result<()> {
    let private = match Private::enter() {
        Ok(private) => private,
        Err(error) => {
            report.skip("replay", &format!("{error:#}"));
            return Ok(());
        }
    };
    for (kind, count) in plan(request, arguments) {
        let replay = match Replay::new(&private, kind, request.seed, arguments) {
            Ok(replay) => replay,
            Err(error) => {
                report.skip(&format!("replay on {kind}"), &format!("{error:#}"));
                continue;
            }
        };
        if arguments.self_check {
            replay.self_check(count, report)?;
        } else {
            let caught = replay.states(count, Broken::Nothing, report)?.caught;
            report.pass(count - caught.len() as u64);
            caught.into_iter().for_each(|(_, what)| report.fail(what));
        }
    }
    Ok(())
}

fn plan(request: Request, arguments: &ReplayArguments) -> Vec<(&'static str, u64)> {
    if arguments.self_check {
        return vec![("ext4", request.count.unwrap_or(SELF_CHECK_STATES))];
    }
    match (arguments.fs.as_deref(), request.count) {
        (Some("xfs"), count) => vec![("xfs", count.unwrap_or(XFS_STATES))],
        (Some(_), count) => vec![("ext4", count.unwrap_or(EXT4_STATES))],
        (None, None) => vec![("ext4", EXT4_STATES), ("xfs", XFS_STATES)],
        (None, Some(count)) => vec![("ext4", count - count / 8), ("xfs", count / 8)],
    }
}

struct Replay<'a> {
    private: &'a Private,
    kind: &'static str,
    seed: u64,
    /// As mkfs left it.
    fresh: Image,
    keep: Option<&'a Path>,
}

/// One of the threads that record and judge; each has its own disks.
struct Worker<'a> {
    replay: &'a Replay<'a>,
    number: usize,
    disk: StateDisk,
    watchdog: Watchdog,
    seen: Seen,
}

/// What was covered, and the states that break the promise, by number.
#[derive(Debug, Default)]
struct Seen {
    covered: BTreeMap<String, u64>,
    caught: Vec<(u64, String)>,
}

/// A disk at the beginning of a recording, and what it must hold.
struct Beginning {
    image: Image,
    history: History,
    asked: Asked,
    life: u32,
    shards: u16,
}

/// A recording.
struct Recording {
    image: Image,
    history: History,
    asked: Asked,
    log: Vec<Entry>,
    next_life: u32,
    shards: u16,
}

impl<'a> Replay<'a> {
    /// Makes the file system, and looks whether everything else is there.
    fn new(
        private: &'a Private,
        kind: &'static str,
        seed: u64,
        arguments: &'a ReplayArguments,
    ) -> Result<Replay<'a>> {
        let fresh = fresh_image(private, kind)?;
        drop(StateDisk::new(private, kind, "try", fresh.len())?);
        let place = private.directory("try-fuse")?;
        drop(Server::start(Device::new(Image::new(BLOCK_BYTES), true), &place)?);
        Ok(Replay { private, kind, seed, fresh, keep: arguments.keep.as_deref() })
    }

    /// Judges so many states, some at a time: they wait for the disk more than for the processor.
    fn states(&self, count: u64, broken: Broken, report: &mut Report) -> Result<Seen> {
        let next_run = AtomicU64::new(0);
        let workers = 2 * std::thread::available_parallelism().map_or(1, usize::from);
        let outcomes: Vec<Result<Seen>> = std::thread::scope(|scope| {
            let work = |number| {
                let next_run = &next_run;
                move || Worker::new(self, number)?.run(count, broken, next_run)
            };
            let workers: Vec<_> = (0..workers).map(|number| scope.spawn(work(number))).collect();
            let joined = workers.into_iter().map(|worker| worker.join());
            joined.map(|outcome| outcome.unwrap_or_else(|_| bail!("a worker panicked"))).collect()
        });
        let mut caught = Vec::new();
        for seen in outcomes {
            let seen = seen?;
            caught.extend(seen.caught);
            for (what, number) in seen.covered {
                report.cover(&format!("{}: {what}", self.kind), number);
            }
        }
        caught.sort();
        Ok(Seen { covered: BTreeMap::new(), caught })
    }

    fn self_check(&self, count: u64, report: &mut Report) -> Result<()> {
        for (broken, what) in [
            (Broken::Early, "records acknowledged when they are submitted"),
            (Broken::NoFlush, "flushes that do nothing"),
        ] {
            let caught = self.states(count, broken, report)?.caught;
            match caught.first() {
                Some((first, example)) => {
                    let number = caught.len();
                    println!("{what}: caught in {number} of {count} states, first in {first}");
                    println!("  {example}");
                    report.pass(1);
                    report.cover(&format!("caught: {what}"), number as u64);
                }
                None => report.fail(format!("{what}: not caught in {count} states")),
            }
        }
        Ok(())
    }
}

impl<'a> Worker<'a> {
    fn new(replay: &'a Replay<'a>, number: usize) -> Result<Worker<'a>> {
        // The roles of other workers must not copy this one's mounts: a state would stay mounted.
        leave_namespace()?;
        let place = format!("state-{}-{number}", replay.kind);
        let disk = StateDisk::new(replay.private, replay.kind, &place, replay.fresh.len())?;
        let watchdog = Watchdog::new("replay", STEP_LIMIT);
        Ok(Worker { replay, number, disk, watchdog, seen: Seen::default() })
    }

    /// One run after another, until there are so many states.
    fn run(mut self, count: u64, broken: Broken, next_run: &AtomicU64) -> Result<Seen> {
        loop {
            let run = next_run.fetch_add(1, Ordering::Relaxed);
            let (first, end) = (run * STATES_PER_RUN, count.min((run + 1) * STATES_PER_RUN));
            if first >= end {
                return Ok(self.seen);
            }
            let mut random = Random::with_purpose(self.replay.seed, 0x5747 + run);
            // The second recording begins in a state that the first one left after a crash.
            let half = if random.chance(700) { first + (end - first) / 2 } else { end };
            let fresh = self.beginning(&mut random);
            let crashed = self.record_and_judge(fresh, broken, first..half, &mut random)?;
            let next = match crashed {
                Some(crashed) => {
                    self.cover("recordings that begin after a crash", 1);
                    crashed
                }
                None => self.beginning(&mut random),
            };
            if half < end {
                self.record_and_judge(next, broken, half..end, &mut random)?;
            }
        }
    }

    fn cover(&mut self, what: &str, count: u64) {
        *self.seen.covered.entry(what.to_owned()).or_default() += count;
    }

    fn record_and_judge(
        &mut self,
        beginning: Beginning,
        broken: Broken,
        states: Range<u64>,
        random: &mut Random,
    ) -> Result<Option<Beginning>> {
        self.watchdog.step(format!("recording for states {states:?}"));
        self.cover("recordings", 1);
        match self.record(beginning, broken, random)? {
            Ok(recording) => self.judge(recording, broken, states, random),
            Err(what) => {
                self.seen.caught.push((states.start, what));
                Ok(None)
            }
        }
    }

    fn beginning(&self, random: &mut Random) -> Beginning {
        Beginning {
            image: self.replay.fresh.clone(),
            history: History::default(),
            asked: Asked::default(),
            life: 1,
            shards: if random.chance(250) { 2 } else { 1 },
        }
    }

    /// Runs the engine on the disk, in one process after another, and takes down what it writes.
    /// An engine that fails on a sound disk is a finding.
    fn record(
        &mut self,
        beginning: Beginning,
        broken: Broken,
        random: &mut Random,
    ) -> Result<Result<Recording, String>> {
        let Beginning { image, history, mut asked, life, shards } = beginning;
        let Replay { private, kind, seed, .. } = *self.replay;
        let device = Device::new(image.clone(), true);
        let place = format!("device-{}-{}", std::process::id(), self.number);
        let place = private.directory(&place)?;
        let server = Server::start(device.clone(), &place)?;
        let roles = 1 + random.below(3) as u32;
        for number in 0..roles {
            let setup = Setup {
                role: Kind::Load,
                file: Some(server.file()),
                file_system: kind.to_owned(),
                place: private.directory(&format!("recorded-{}", self.number))?,
                seed,
                life: life + number,
                shards,
                backend: random.below(10).saturating_sub(7) as usize,
                early: broken == Broken::Early,
                tells_extents: false,
            };
            if let Err(error) = play(&setup, &device) {
                let life = setup.life;
                let what = format!("{kind} seed {seed}: recording, life {life}: {error:#}");
                return Ok(Err(what));
            }
            server.wait_detached()?;
        }
        let (writes, flushes) = device.counts();
        self.cover("writes logged", writes);
        self.cover("flushes logged", flushes);
        drop(server);
        let log = device.take_log();
        for entry in &log {
            if let Entry::Mark(line) = entry {
                asked.note(line)?;
            }
        }
        self.cover("opens recorded", u64::from(roles));
        Ok(Ok(Recording { image, history, asked, log, next_life: life + roles, shards }))
    }

    /// Builds states from a recording, in the order of the log, and judges each. One of them is
    /// where another recording may begin.
    fn judge(
        &mut self,
        recording: Recording,
        broken: Broken,
        states: Range<u64>,
        random: &mut Random,
    ) -> Result<Option<Beginning>> {
        let Replay { kind, seed, .. } = *self.replay;
        let wanted = states.end - states.start;
        let places = places(&recording.log, wanted, random);
        let carry_from = states.start + random.below(wanted.max(1));
        let mut carried = None;
        let mut walk = Walk::new(recording, broken);
        for (state, place) in states.zip(places) {
            let entries = walk.recording.log.len();
            let name = format!("{kind} seed {seed} state {state} (entry {place} of {entries})");
            self.watchdog.step(name.clone());
            if let Err(error) = walk.advance(place) {
                self.seen.caught.push((state, format!("{name}: {error:#}")));
                return Ok(None);
            }
            let mut built = Random::with_purpose(seed, state | 1 << 63);
            let made = walk.build(&mut built);
            self.cover("states", 1);
            self.cover("states without unflushed writes", u64::from(made.is_empty()));
            self.cover("unflushed writes kept", made.kept);
            self.cover("unflushed writes lost", made.lost);
            self.cover("unflushed writes torn", made.torn);
            let judged = State {
                seed,
                history: &walk.recording.history,
                asked: &walk.recording.asked,
                shards: walk.recording.shards,
                backend: built.below(10).saturating_sub(7) as usize,
            };
            if let Err(error) = self.disk.check(&walk.image, &judged, &mut built) {
                self.keep_image(&walk.image, state)?;
                self.seen.caught.push((state, format!("{name}, {made:?}: {error:#}")));
            } else if state >= carry_from && carried.is_none() {
                carried = Some(Beginning {
                    image: walk.image.clone(),
                    history: walk.recording.history.clone(),
                    asked: walk.recording.asked.clone(),
                    life: walk.recording.next_life,
                    shards: walk.recording.shards,
                });
            }
            walk.restore();
        }
        Ok(carried)
    }

    fn keep_image(&self, image: &Image, state: u64) -> Result<()> {
        let Some(directory) = self.replay.keep else { return Ok(()) };
        let Replay { kind, seed, .. } = *self.replay;
        let path = directory.join(format!("{kind}-seed-{seed}-state-{state}.img"));
        let file = std::fs::File::create(&path)?;
        file.set_len(image.len() as u64)?;
        image.store(&file).with_context(|| format!("keeping {}", path.display()))
    }
}

/// Plays one role to its end, with its marks in the log.
fn play(setup: &Setup, device: &Arc<Device>) -> Result<()> {
    let marks = device.clone();
    let mut role = Role::start(setup, move |line| marks.mark(line.to_owned()))?;
    let mut last = String::new();
    while let Some(line) = role.hear(LINE_LIMIT)? {
        if line == "opened" {
            role.tell("go on")?;
        }
        last = line;
    }
    let status = role.end(LINE_LIMIT)?;
    ensure!(status.success(), "the load ended with {status}; its last line: {last}");
    ensure!(last == "done" || last == "killed", "the load's last line: {last}");
    Ok(())
}

/// An image with an empty file system.
///
/// # Errors
/// Without mkfs.
pub fn fresh_image(private: &Private, kind: &str) -> Result<Image> {
    let (bytes, options): (usize, &[&str]) = match kind {
        "ext4" => {
            let options = ["-q", "-F", "-m", "0", "-b", "4096", "-N", "256", "-E"];
            (EXT4_BYTES, &[&options[..], &["nodiscard,lazy_itable_init=0"]].concat())
        }
        "xfs" => (XFS_BYTES, &["-q", "-K"]),
        other => bail!("no images of {other}"),
    };
    let path = private.directory("images")?.join(kind);
    let file = std::fs::File::create_new(&path)?;
    drop(file);
    let file = std::fs::File::options().read(true).write(true).open(&path)?;
    file.set_len(bytes as u64)?;
    make_file_system(kind, options, &path)?;
    let image = Image::read(&file, bytes)?;
    std::fs::remove_file(&path)?;
    Ok(image)
}

/// Ascending places in the log: most right behind a write, the others right behind a receipt.
fn places(log: &[Entry], count: u64, random: &mut Random) -> Vec<usize> {
    let behind = |wanted: fn(&Entry) -> bool| -> Vec<usize> {
        (0..log.len()).filter(|at| wanted(&log[*at])).map(|at| at + 1).collect()
    };
    let writes = behind(|entry| matches!(entry, Entry::Write { .. } | Entry::Zero { .. }));
    let receipts =
        behind(|entry| matches!(entry, Entry::Mark(line) if line.starts_with(['A', 'T', 'O'])));
    let mut places: Vec<usize> = (0..count)
        .map(|_| {
            let among = if random.chance(650) { &writes } else { &receipts };
            match among.len() as u64 {
                0 => log.len(),
                length => among[random.below(length) as usize],
            }
        })
        .collect();
    places.sort_unstable();
    places
}

/// A place in a recording: the image as flushed so far, and what is written on top.
struct Walk {
    recording: Recording,
    broken: Broken,
    image: Image,
    at: usize,
    /// Writes since the last flush.
    unflushed: Vec<usize>,
    undo: Vec<(usize, Box<[u8]>)>,
}

/// What became of the unflushed writes of a state.
#[derive(Clone, Copy, Debug, Default)]
struct Made {
    kept: u64,
    lost: u64,
    torn: u64,
}

impl Made {
    fn is_empty(&self) -> bool {
        self.kept + self.lost + self.torn == 0
    }
}

impl Walk {
    fn new(mut recording: Recording, broken: Broken) -> Walk {
        let image = std::mem::replace(&mut recording.image, Image::new(0));
        Walk { recording, broken, image, at: 0, unflushed: Vec::new(), undo: Vec::new() }
    }

    /// Goes on to a place behind the present one.
    fn advance(&mut self, place: usize) -> Result<()> {
        while self.at < place {
            match &self.recording.log[self.at] {
                Entry::Write { .. } | Entry::Zero { .. } => self.unflushed.push(self.at),
                Entry::Flush if self.broken == Broken::NoFlush => {}
                Entry::Flush => {
                    for at in std::mem::take(&mut self.unflushed) {
                        apply(&mut self.image, &self.recording.log[at]);
                    }
                }
                Entry::Mark(line) => self.recording.history.note(line, &self.recording.asked)?,
            }
            self.at += 1;
        }
        Ok(())
    }

    /// Writes some of the unflushed writes to the image, until [`Walk::restore`].
    fn build(&mut self, random: &mut Random) -> Made {
        let mut made = Made::default();
        let keep_percent = [0, 10, 50, 50, 90, 100][random.below(6) as usize];
        let torn_percent = [0, 0, 10, 50][random.below(4) as usize];
        for at in 0..self.unflushed.len() {
            let at = self.unflushed[at];
            if random.chance(torn_percent * 10) {
                made.torn += 1;
                self.tear(at, random);
            } else if random.chance(keep_percent * 10) {
                made.kept += 1;
                let (offset, length) = extent(&self.recording.log[at]);
                self.undo.push((offset, self.image.slice(offset, length).into()));
                apply(&mut self.image, &self.recording.log[at]);
            } else {
                made.lost += 1;
            }
        }
        made
    }

    /// Writes a part of one write: a beginning, an end, or any of its sectors.
    fn tear(&mut self, at: usize, random: &mut Random) {
        let (offset, length) = extent(&self.recording.log[at]);
        self.undo.push((offset, self.image.slice(offset, length).into()));
        let units = units(offset, length, &self.recording.asked);
        let way = random.below(3);
        let cut = random.below(units.len() as u64 + 1) as usize;
        for (number, (from, to)) in units.into_iter().enumerate() {
            let kept = match way {
                0 => number < cut,
                1 => number >= cut,
                _ => random.chance(500),
            };
            if !kept {
                continue;
            }
            match &self.recording.log[at] {
                Entry::Write { data, .. } => {
                    self.image.write(from, &data[from - offset..to - offset]);
                }
                _ => self.image.write(from, &vec![0; to - from]),
            }
        }
    }

    /// Takes back what [`Walk::build`] has written.
    fn restore(&mut self) {
        for (offset, before) in self.undo.drain(..).rev() {
            self.image.write(offset, &before);
        }
    }
}

fn extent(entry: &Entry) -> (usize, usize) {
    match entry {
        Entry::Write { offset, data } => (*offset, data.len()),
        Entry::Zero { offset, length } => (*offset, *length),
        Entry::Flush | Entry::Mark(_) => (0, 0),
    }
}

fn apply(image: &mut Image, entry: &Entry) {
    match entry {
        Entry::Write { offset, data } => image.write(*offset, data),
        Entry::Zero { offset, length } => image.write(*offset, &vec![0; *length]),
        Entry::Flush | Entry::Mark(_) => {}
    }
}

/// The parts of a write that a disk keeps or loses as a whole.
fn units(offset: usize, length: usize, asked: &Asked) -> Vec<(usize, usize)> {
    let mut units = Vec::new();
    let mut from = offset;
    while from < offset + length {
        let block = from / BLOCK_BYTES;
        let is_data = asked.data_blocks.contains(&(block as u64));
        let end = if is_data { (from / 512 + 1) * 512 } else { (block + 1) * BLOCK_BYTES };
        let to = end.min(offset + length);
        units.push((from, to));
        from = to;
    }
    units
}
